package api

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

const (
	keyHeader      = "Idempotency-Key"
	replayedHeader = "Idempotency-Replayed"
	maxKey         = 255
	keepTimeout    = 10 * time.Second // to store an answer once its client may have gone
)

// replies remembers answers. *management.Plane does.
type replies interface {
	BeginReply(ctx context.Context, who *management.Principal, key string, hash []byte) (*management.Reply, error)
	FinishReply(ctx context.Context, who *management.Principal, key string, hash []byte, status int, header map[string]string, body []byte) error
	DropReply(ctx context.Context, who *management.Principal, key string, hash []byte) error
}

// keptHeaders are the headers of an answer that a replay repeats. Cookies are not among them.
var keptHeaders = []string{"Content-Type", "Location", "ETag", "Retry-After"}

// idempotent reports whether the route remembers answers: POSTs with an API key or a session. Where no credential is asked
// for there is nobody to whom a key could belong, so the header is not looked at; edges' reports have their own numbers.
func (r *route) idempotent() bool {
	return r.method == http.MethodPost && r.access == byCredential && r.answer != nil
}

// once calls run, unless the same request was answered before: then that answer is repeated, without what is told once.
func (c *call) once(run func() (*response, error)) (*response, error) {
	key, given, err := keyOf(c.request.Header)
	if err != nil {
		return nil, err
	}
	if !given || !c.route.idempotent() {
		return run()
	}
	hash := c.requestHash()
	done, err := c.api.core.BeginReply(c.ctx, c.who, key, hash)
	if err != nil {
		return nil, err
	}
	if done != nil {
		res := &response{status: done.Status, header: http.Header{replayedHeader: {"true"}}, body: done.Body}
		for name, value := range done.Header {
			res.header.Set(name, value)
		}
		return res, nil
	}

	// From here on the answer is kept or forgotten whatever happens, also to the client.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), c.route.lasts()+keepTimeout)
	defer cancel()
	kept := false
	defer func() {
		if kept {
			return
		}
		if err := c.api.core.DropReply(ctx, c.who, key, hash); err != nil {
			c.api.log.Warn("an idempotency key stays taken for a minute", "request_id", c.who.RequestID, "error", err)
		}
	}()
	res, err := run()
	shown := res
	if err != nil {
		shown = problemOf(c.ctx, err, c.who.RequestID, nil)
	}
	if shown.status >= http.StatusInternalServerError || shown.status == http.StatusTooManyRequests {
		return res, err
	}
	header := map[string]string{}
	for _, name := range keptHeaders {
		if value := shown.header.Get(name); value != "" {
			header[name] = value
		}
	}
	if err := c.api.core.FinishReply(ctx, c.who, key, hash, shown.status, header, redact(shown.body, c.route.once)); err != nil {
		c.api.log.Warn("an answer could not be kept for its idempotency key", "request_id", c.who.RequestID, "error", err)
		return res, nil
	}
	kept = true
	return res, err
}

// keyOf reads the header.
func keyOf(h http.Header) (key string, given bool, err error) {
	values := h.Values(keyHeader)
	if len(values) == 0 {
		return "", false, nil
	}
	key = values[0]
	bad := len(values) != 1 || key == "" || len(key) > maxKey
	for i := range len(key) {
		bad = bad || key[i] < ' ' || key[i] > '~'
	}
	if bad {
		return "", true, management.Errorf(management.Malformed, "%s must be there once, with 1 to %d printable ASCII characters.", keyHeader, maxKey)
	}
	return key, true, nil
}

// requestHash tells requests with one key apart: by method, path, query, tenant and body. It is an HMAC under the credential as it
// was presented, which is stored nowhere: a body may hold a password, and whoever has the database, or a backup of it, must not
// be able to try passwords against a plain hash.
func (c *call) requestHash() []byte {
	h := hmac.New(sha256.New, []byte(c.presented()))
	for _, part := range []string{c.request.Method, c.request.URL.EscapedPath(), c.request.URL.RawQuery, c.who.TenantID, string(c.body)} {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		io.WriteString(h, part)
	}
	return h.Sum(nil)
}

// presented returns the credential of a request that was let in, as text.
func (c *call) presented() string {
	if token, given, _ := bearerOf(c.request); given {
		return token
	}
	if cookie, err := c.request.Cookie(auth.SessionCookie); err == nil {
		return cookie.Value
	}
	return ""
}

// redact returns a JSON document with null for the values of all members, at any depth, that are called secret or as in more.
// Everything else stays as it is. What is no JSON is not kept at all.
func redact(body []byte, more []string) []byte {
	if len(body) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var out []byte
	copied := 0
	type level struct{ object, name bool } // name: the next token is one
	var open []level
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return append(out, body[copied:]...)
		}
		if err != nil {
			return nil
		}
		top := len(open) - 1
		if top >= 0 && open[top].object && open[top].name {
			if name, ok := tok.(string); ok {
				open[top].name = false
				if name != "secret" && !slices.Contains(more, name) {
					continue
				}
				out = append(append(out, body[copied:dec.InputOffset()]...), ":null"...)
				var value json.RawMessage
				if err := dec.Decode(&value); err != nil {
					return nil
				}
				copied = int(dec.InputOffset())
				open[top].name = true
				continue
			}
		}
		switch tok {
		case json.Delim('{'), json.Delim('['):
			open = append(open, level{object: tok == json.Delim('{'), name: true})
			continue
		case json.Delim('}'), json.Delim(']'):
			open = open[:top]
			top--
		}
		if top >= 0 {
			open[top].name = true // a value has ended
		}
	}
}
