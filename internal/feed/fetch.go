package feed

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Fetch asks once, and returns when the answer is complete. An error is always an *Error. It ends as soon as ctx
// does, and at the latest 40 s and Request.Wait after its start if no answer comes; then a body may take 30 s and
// its size at 64 KiB/s.
func (c *Client) Fetch(ctx context.Context, r Request) (*Answer, error) {
	token, err := c.token()
	if err != nil {
		return nil, &Error{Reason: Token, Err: err, url: c.shown}
	}
	a := c.begin(ctx, r.wait(), token)
	answer, err := a.ask(r)
	a.end()
	return answer, err
}

// attempt is one Fetch: what it may have open, and the bound that runs.
type attempt struct {
	c      *Client
	parent context.Context
	ctx    context.Context // ends with the attempt
	cancel context.CancelCauseFunc
	token  string

	transport *http.Transport
	body      io.Closer // of the answer, if there is one
	clean     bool      // the answer was read to its end, and its connection can be used again

	mu    sync.Mutex // guards what follows; the transport's goroutines use it too
	over  bool
	timer *time.Timer
	tries []httptrace.GotConnInfo // the connections that the request went to
}

// begin starts an attempt with the bound on connecting, which gives way to that on the header once there is a
// connection. Both together are a bound too, which no further connection extends.
func (c *Client) begin(parent context.Context, wait time.Duration, token string) *attempt {
	a := &attempt{c: c, parent: parent, token: token, transport: c.current()}
	ctx, cancel := context.WithCancelCause(parent)
	a.cancel = cancel
	ends := time.Now().Add(c.connect + wait + c.header)
	a.ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			a.mu.Lock()
			a.tries = append(a.tries, info)
			many := len(a.tries) > maxTries
			a.mu.Unlock()
			if many {
				a.cancel(&exceeded{Unreachable, fmt.Sprintf("the server took the request %d times and did not answer", maxTries)})
				return
			}
			a.within(min(wait+c.header, time.Until(ends)), Unreachable, fmt.Sprintf("no answer within %v", wait+c.header))
		},
	})
	a.within(c.connect, Unreachable, fmt.Sprintf("no connection within %v", c.connect))
	return a
}

// within replaces the bound that runs: the attempt ends after d, unless another bound is set or stop called.
func (a *attempt) within(d time.Duration, reason Reason, text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return
	}
	if a.timer != nil {
		a.timer.Stop()
	}
	a.timer = time.AfterFunc(d, func() { a.cancel(&exceeded{reason, text}) })
}

// stop ends the bound that runs.
func (a *attempt) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.timer.Stop()
}

// lastTry is the connection that the request went to last, if it went to any.
func (a *attempt) lastTry() httptrace.GotConnInfo {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.tries) == 0 {
		return httptrace.GotConnInfo{}
	}
	return a.tries[len(a.tries)-1]
}

// end ends the attempt. Unless it is clean, its connection is closed: HTTP/2 would keep it, even if it is dead.
func (a *attempt) end() {
	a.mu.Lock()
	a.over = true
	a.timer.Stop()
	a.mu.Unlock()
	if !a.clean {
		a.cancel(nil)
		a.hangUp()
	}
	if a.body != nil {
		a.body.Close()
	}
	a.cancel(nil)
}

// hangUp closes the connections that the request went to, and has the client begin with new ones. It closes the
// sockets: to close TLS is to say so first, to a peer that may not listen.
func (a *attempt) hangUp() {
	a.mu.Lock()
	tries := a.tries
	a.mu.Unlock()
	for _, try := range tries {
		conn := try.Conn
		for {
			over, ok := conn.(*tls.Conn)
			if !ok {
				break
			}
			conn = over.NetConn()
		}
		conn.Close()
	}
	a.c.retire(a.transport)
}

// ask sends the request and takes the answer. The transport is asked without an http.Client around it, which
// would follow redirects and put the URL into errors.
func (a *attempt) ask(r Request) (*Answer, error) {
	resp, err := a.transport.RoundTrip(a.request(r))
	if err != nil && a.lastTry().Reused && a.ctx.Err() == nil {
		// The server may have closed the connection since it was used. With HTTP/1 the transport tries
		// another one by itself, with HTTP/2 only if the server has said goodbye.
		a.hangUp()
		a.transport = a.c.current()
		resp, err = a.transport.RoundTrip(a.request(r))
	}
	if err != nil {
		return nil, a.broken(Unreachable, a.explain(err))
	}
	a.body = resp.Body
	answer := &Answer{Waited: hasWaited(resp.Header)}
	if etag := resp.Header.Get("ETag"); isETag(etag) {
		answer.ETag = etag
	}
	switch {
	case resp.StatusCode == http.StatusOK:
		if answer.Body, err = a.receive(resp); err != nil {
			return nil, err
		}
		return answer, nil
	case resp.StatusCode == http.StatusNotModified && (isETag(r.ETag) || r.After != nil):
		answer.NotModified = true
	case resp.StatusCode == http.StatusGone && r.After != nil:
		answer.Gone = true
	default:
		return nil, a.refused(resp)
	}
	a.rest(resp)
	return answer, nil
}

// explain returns the TLS alert that the server ended the connection with, if it did, else err. With TLS 1.3 a
// server refuses a client certificate after the handshake (RFC 8446 section 4.4.2.4), while the request is
// written, and the transport's error may be that there is no connection any more.
func (a *attempt) explain(err error) error {
	conn, ok := a.lastTry().Conn.(*tls.Conn)
	if !ok || a.ctx.Err() != nil {
		return err
	}
	// The alert is here already, read by the transport or not: crypto/tls keeps it as the error of all reads.
	conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	_, readErr := conn.Read(make([]byte, 1))
	var alert *net.OpError
	if errors.As(readErr, &alert) && alert.Op == "remote error" {
		return alert
	}
	return err
}

func (a *attempt) request(r Request) *http.Request {
	u := *a.c.url
	if r.After != nil {
		if u.RawQuery != "" {
			u.RawQuery += "&"
		}
		u.RawQuery += "after=" + strconv.FormatUint(*r.After, 10)
	}
	h := http.Header{
		"Accept":          {"application/json"},
		"Accept-Encoding": {"gzip"}, // set here, so that the transport, which knows no bound, does not decode
		"User-Agent":      {a.c.cfg.UserAgent},
	}
	if a.token != "" {
		h.Set("Authorization", "Bearer "+a.token)
	}
	if isETag(r.ETag) {
		h.Set("If-None-Match", r.ETag)
	}
	if wait := r.wait(); wait > 0 {
		h.Set("Prefer", fmt.Sprintf("wait=%d", wait/time.Second))
	}
	return (&http.Request{Method: http.MethodGet, URL: &u, Host: u.Host, Header: h}).WithContext(a.ctx)
}

// isETag reports whether tag can be sent back: at most 1 KiB, and no control characters. It need not be in
// quotation marks: not all servers write them.
func isETag(tag string) bool {
	return tag != "" && len(tag) <= 1<<10 && !strings.ContainsFunc(tag, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// hasWaited reports whether Preference-Applied (RFC 7240 section 3) has `wait`, with a value or without.
func hasWaited(h http.Header) bool {
	for preference := range strings.SplitSeq(strings.Join(h.Values("Preference-Applied"), ","), ",") {
		name, _, _ := strings.Cut(preference, "=")
		if strings.EqualFold(strings.TrimSpace(name), "wait") {
			return true
		}
	}
	return false
}

// refused is the error of a status that is not expected.
func (a *attempt) refused(resp *http.Response) error {
	line := a.rest(resp)
	e := &Error{Reason: Status, Status: resp.StatusCode, url: a.c.shown}
	text := strings.TrimSpace(fmt.Sprintf("status %d %s", resp.StatusCode, http.StatusText(resp.StatusCode)))
	switch resp.StatusCode {
	case 301, 302, 303, 307, 308:
		target := "an address that cannot be read"
		if u, err := resp.Location(); err == nil {
			target = a.quotable(u.Scheme+"://"+u.Host, 200)
		}
		e.Reason = Redirect
		e.Err = fmt.Errorf("it redirects to %s (%s), which is not followed, since the token would go there; set url to the feed itself", target, text)
		return e
	case 401, 403:
		if a.token == "" {
			text += "; no token is sent, set the token"
		} else {
			text += "; look at the token, it is wrong, withdrawn or not meant for this"
		}
	case 304, 410:
		text += ", which is no answer to a request for the full set"
	}
	if line != "" {
		text += fmt.Sprintf("; the answer begins %q", line)
	}
	e.Err = errors.New(text)
	return e
}

// rest reads an answer's body that is not a set, so that its connection can be used again, and returns its
// first line, or as much as there is room for. It takes 64 KiB and Client.drain at most; what goes wrong says
// nothing, and costs the connection.
func (a *attempt) rest(resp *http.Response) (line string) {
	const most = 64 << 10
	a.within(a.c.drain, Status, "")
	b, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	a.clean = err == nil && len(b) <= most && a.ctx.Err() == nil
	if isGzip(resp.Header) {
		// Half a text or none, if it is damaged.
		text := make([]byte, 4<<10)
		r, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return ""
		}
		n, _ := io.ReadFull(r, text)
		b = text[:n]
	}
	first, _, _ := bytes.Cut(bytes.TrimSpace(b), []byte("\n"))
	return a.quotable(strings.TrimSpace(string(first)), 120)
}
