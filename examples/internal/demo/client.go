package demo

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// pageTimeout bounds one connection for a page.
const pageTimeout = 10 * time.Second

// Page is what a client got.
type Page struct {
	Text       string
	Group      tls.CurveID // negotiated
	ClientPort int         // of the client
}

// Get loads the page of cfg.ServerName from a proxy, on a connection of its own that has ended when Get returns.
func Get(ctx context.Context, address string, cfg *tls.Config) (*Page, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	transport := &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		TLSClientConfig:   cfg,
		ForceAttemptHTTP2: true,
	}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+cfg.ServerName+"/", nil)
	if err != nil {
		return nil, err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	return &Page{Text: string(text), Group: response.TLS.CurveID, ClientPort: conn.LocalAddr().(*net.TCPAddr).Port}, nil
}

// ShellWord quotes a word for sh where it needs that.
func ShellWord(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@=") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
