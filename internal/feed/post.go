package feed

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
)

// maxAnswer bounds the answer to a Post.
const maxAnswer = 64 << 10

// Post sends a body to the URL of the client, with its token and under the bounds of Fetch, and returns the body of the answer,
// which must be a 200. Redirects are not followed. The body is sent again where a connection turns out to be dead, so the
// server must know it for the same. An error is always an *Error. Where its reason is Status, what came of the body is
// returned beside it, without content decoding: it is the server's, and may have anything.
func (c *Client) Post(ctx context.Context, body []byte, header http.Header) ([]byte, error) {
	token, err := c.token()
	if err != nil {
		return nil, &Error{Reason: Token, Err: err, url: c.shown}
	}
	a := c.begin(ctx, 0, token)
	defer a.end()
	return a.post(body, header)
}

func (a *attempt) post(body []byte, header http.Header) ([]byte, error) {
	resp, err := a.transport.RoundTrip(a.postRequest(body, header))
	if err != nil && a.lastTry().Reused && a.ctx.Err() == nil { // as in ask
		a.hangUp()
		a.transport = a.c.current()
		resp, err = a.transport.RoundTrip(a.postRequest(body, header))
	}
	if err != nil {
		return nil, a.broken(Unreachable, a.explain(err))
	}
	a.body = resp.Body
	if err := a.ctx.Err(); err != nil { // the answer is to our hanging up, and came back faster than that did
		return nil, a.broken(Unreachable, err)
	}
	if resp.StatusCode != http.StatusOK {
		var said bytes.Buffer
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(resp.Body, &said), resp.Body}
		err := a.refused(resp)
		return said.Bytes(), err
	}
	a.within(a.c.header, TooSlow, "the answer does not end")
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, a.broken(Truncated, err)
	case len(answer) > maxAnswer:
		return nil, a.fail(TooLarge, errors.New("the answer is larger than 64 KiB"))
	}
	a.clean = true
	return answer, nil
}

func (a *attempt) postRequest(body []byte, header http.Header) *http.Request {
	h := header.Clone()
	if h == nil {
		h = make(http.Header)
	}
	h.Set("Accept", "application/json")
	h.Set("Accept-Encoding", "identity") // the transport, which knows no bound, would decode
	h.Set("User-Agent", a.c.cfg.UserAgent)
	if a.token != "" {
		h.Set("Authorization", "Bearer "+a.token)
	}
	u := *a.c.url
	reader := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	first, _ := reader()
	return (&http.Request{
		Method: http.MethodPost, URL: &u, Host: u.Host, Header: h,
		Body: first, GetBody: reader, ContentLength: int64(len(body)),
	}).WithContext(a.ctx)
}
