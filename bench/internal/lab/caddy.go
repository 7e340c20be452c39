//go:build linux

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// Admin calls the admin endpoint of a Caddy over its unix socket. Its methods may be called from any goroutine.
type Admin struct {
	client http.Client
}

// adminPatience is how long an answer may take: a reload of many routes, a listing of many domains.
const adminPatience = 2 * time.Minute

// NewAdmin returns a caller of the endpoint on the socket. It connects when it is first used; call Close.
func NewAdmin(socket string) *Admin {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Admin{http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 4}, Timeout: adminPatience}}
}

// Close closes the connections that are kept.
func (a *Admin) Close() { a.client.CloseIdleConnections() }

// Call sends one request and returns the answer's body. A body is encoded as JSON, unless it is nil or []byte, which is
// JSON already. An answer that is not of the 200s is an error with the beginning of its text.
func (a *Admin) Call(method, path string, body any) ([]byte, error) {
	var content []byte
	switch b := body.(type) {
	case nil:
	case []byte:
		content = b
	default:
		var err error
		if content, err = json.Marshal(b); err != nil {
			return nil, err
		}
	}
	request, err := http.NewRequest(method, "http://localhost"+path, bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	if content != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	res, err := a.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if res.StatusCode/100 != 2 {
		const most = 500
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, res.Status, strings.TrimSpace(string(answer[:min(len(answer), most)])))
	}
	return answer, nil
}

// CollectGarbage makes the process run a collection now, through Caddy's own pprof route, as the runtime does by itself
// after two minutes without one.
func (a *Admin) CollectGarbage() error {
	_, err := a.Call(http.MethodGet, "/debug/pprof/heap?gc=1", nil)
	return err
}
