package pqproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// adminClient asks a running Caddy's admin endpoint, in the way of Caddy's own commands. Those use
// caddycmd.AdminAPIRequest, which has no deadline and does not announce the length of a body.
type adminClient struct {
	network, address string
	shown            string // the address as it was given
	base             string // of URLs
	origin           string // what the endpoint looks for in the header of that name; empty: not sent
	client           *http.Client
}

// newAdminClient takes an address as Caddy's `admin` option does.
func newAdminClient(address string) (*adminClient, error) {
	if strings.Contains(address, "://") {
		return nil, fmt.Errorf("%q is a URL; write HOST:PORT or unix//PATH", address)
	}
	parsed, err := caddy.ParseNetworkAddress(address)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", address, err)
	}
	a := &adminClient{network: parsed.Network, shown: address}
	switch {
	case parsed.IsUnixNetwork():
		a.address, _, _ = strings.Cut(parsed.Host, "|") // permissions may follow
		a.base = "http://127.0.0.1"                     // a name that says nothing, as Caddy's own
		if a.address == "" {
			return nil, fmt.Errorf("%q names no socket; write unix//PATH", address)
		}
	case !strings.HasPrefix(parsed.Network, "tcp"):
		return nil, fmt.Errorf("%q: %s is not a network to connect to; write HOST:PORT or unix//PATH", address, parsed.Network)
	case parsed.StartPort == 0 || parsed.PortRangeSize() != 1:
		return nil, fmt.Errorf("%q does not name one port; write HOST:PORT or unix//PATH", address)
	default:
		a.address = parsed.JoinHostPort(0)
		a.base = "http://" + a.address
		a.origin = a.base
	}
	dialer := net.Dialer{Timeout: adminDialTimeout}
	a.client = &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, a.network, a.address)
			},
			DisableKeepAlives: true,
		},
		// A redirect would take the domains, and keys among them, elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return a, nil
}

const (
	adminDialTimeout = 10 * time.Second
	maxAdminAnswer   = 1 << 20 // an outcome with as many refusals as are kept is a tenth of it
)

// putDomains replaces all domains of source admin by the set, which has the size in bytes. ctx bounds all of it.
func (a *adminClient) putDomains(ctx context.Context, set io.Reader, size int64) (*outcome, error) {
	done, err := a.tryPutDomains(ctx, set, size)
	if err != nil {
		return nil, fmt.Errorf("putting the domains to the admin API at %s: %w", a.shown, err)
	}
	return done, nil
}

func (a *adminClient) tryPutDomains(ctx context.Context, set io.Reader, size int64) (*outcome, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, a.base+adminDomains, io.NopCloser(set))
	if err != nil {
		return nil, err
	}
	request.ContentLength = size
	request.Header.Set("Content-Type", "application/json")
	if a.origin != "" {
		request.Header.Set("Origin", a.origin)
	}
	response, err := a.client.Do(request)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the URL is of no use where it is a socket's
		}
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
			return nil, fmt.Errorf("%w; is Caddy running, and is this its admin address?", err)
		}
		return nil, fmt.Errorf("no answer, so they may have been applied or not: %w", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAdminAnswer+1))
	if response.StatusCode != http.StatusOK {
		return nil, adminRefusal(response.StatusCode, text)
	}
	if err == nil && len(text) > maxAdminAnswer {
		err = fmt.Errorf("it has more than %d bytes", maxAdminAnswer)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the answer, so they may have been applied or not: %w", err)
	}
	return readOutcome(text)
}

// adminRefusal is the error of an answer other than 200. Caddy's have the form {"error": "..."}.
func adminRefusal(status int, text []byte) error {
	var answer struct {
		Error string `json:"error"`
	}
	said := ""
	if json.Unmarshal(text, &answer) == nil && answer.Error != "" {
		said = ": " + shortened(answer.Error, 2000)
	} else if line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n"); line != "" {
		said = fmt.Sprintf("; the answer begins %q", shortened(line, 120))
	}
	if status == http.StatusNotFound && answer.Error == "" {
		said += "; is it a Caddy with pqproxy?"
	}
	return fmt.Errorf("status %d %s%s", status, http.StatusText(status), said)
}

// shortened is printable for texts of any length.
func shortened(s string, most int) string {
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return printable(s)
}

// readOutcome reads the answer to a change. Members that it does not know are skipped.
func readOutcome(text []byte) (*outcome, error) {
	answer := struct {
		outcome
		Added *int `json:"added"` // in place of that of outcome, to tell an outcome from any other object
	}{}
	if err := json.Unmarshal(text, &answer); err != nil || answer.Added == nil {
		return nil, errors.New("the answer is not an outcome, so the address is not that of Caddy's admin API, or Caddy's pqproxy is of another version")
	}
	answer.outcome.Added = *answer.Added
	return &answer.outcome, nil
}
