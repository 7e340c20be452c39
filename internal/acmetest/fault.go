package acmetest

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"time"
)

// Action is what happens to a request. It may answer itself, ask Pebble, at most once, and change what Pebble says, or
// end the request without an answer by panicking with http.ErrAbortHandler.
type Action func(w http.ResponseWriter, r *http.Request, pebble http.Handler)

// fault is an injected action.
type fault struct {
	match  Match
	left   int // requests to act on; negative: any number
	action Action
}

// Inject has an action handle the next requests that match: times of them, or all while times is 0. Where several
// were injected the first acts that is not used up, so that they make a script. Remove takes it back.
func (s *Server) Inject(m Match, times int, action Action) (remove func()) {
	f := &fault{m, times, action}
	if times == 0 {
		f.left = -1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, f)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.faults = slices.DeleteFunc(s.faults, func(other *fault) bool { return other == f })
	}
}

// fault returns what is to be done with a request. The caller holds mu.
func (s *Server) fault(c *call) Action {
	for _, f := range s.faults {
		if f.left == 0 || !f.match.covers(c.endpoint, c.names) {
			continue
		}
		if f.left > 0 {
			f.left--
		}
		return f.action
	}
	return func(w http.ResponseWriter, r *http.Request, pebble http.Handler) { pebble.ServeHTTP(w, r) }
}

// RateLimited answers 429 with a Retry-After and the problem rateLimited (RFC 8555, section 6.6).
func RateLimited(retryAfter time.Duration) Action {
	return Problem(http.StatusTooManyRequests, "rateLimited", "too many of these recently", retryAfter)
}

// BadNonce refuses a nonce, with a fresh one to try again with (RFC 8555, section 6.5).
func BadNonce() Action {
	return Problem(http.StatusBadRequest, "badNonce", "JWS has an invalid anti-replay nonce", 0)
}

// Problem answers with a problem document. Its kind is the type without the prefix (RFC 8555, section 6.7). There is no
// Retry-After if that is 0; else whole seconds, rounded up.
func Problem(status int, kind, detail string, retryAfter time.Duration) Action {
	return func(w http.ResponseWriter, r *http.Request, pebble http.Handler) {
		if r.Method == http.MethodPost {
			w.Header().Set("Replay-Nonce", freshNonce(r, pebble))
		}
		if retryAfter > 0 {
			w.Header().Set("Retry-After", seconds(retryAfter))
		}
		body, err := json.Marshal(map[string]any{"type": errorNamespace + kind, "detail": detail, "status": status})
		if err != nil {
			panic(err) // strings and a number
		}
		Respond(status, problemType, string(body))(w, r, pebble)
	}
}

// freshNonce asks Pebble for a nonce, for an answer that is not Pebble's.
func freshNonce(r *http.Request, pebble http.Handler) string {
	ask := httptest.NewRequestWithContext(r.Context(), http.MethodHead, noncePath, nil)
	ask.Header.Set("User-Agent", "acmetest")
	answer := httptest.NewRecorder()
	pebble.ServeHTTP(answer, ask)
	return answer.Header().Get("Replay-Nonce")
}

// Respond answers with a body of any kind: a server's bare 500 or 503, a proxy's HTML, half of an object.
func Respond(status int, contentType, body string) Action {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body)) // to a client that may be gone
	}
}

// Cut resets the connection before Pebble sees the request. Injected for all requests, the server is down.
func Cut() Action {
	return func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { reset(r) }
}

// CutAnswer lets Pebble do what is asked, and resets the connection instead of answering.
func CutAnswer() Action {
	return func(_ http.ResponseWriter, r *http.Request, pebble http.Handler) {
		pebble.ServeHTTP(httptest.NewRecorder(), r)
		reset(r)
	}
}

// reset closes a request's connection, with all that goes on in it under HTTP/2.
func reset(r *http.Request) {
	conn := r.Context().Value(connKey{}).(*tls.Conn).NetConn().(*net.TCPConn)
	_ = conn.SetLinger(0) // fails for a connection that is gone already
	conn.Close()
	panic(http.ErrAbortHandler)
}

// Hold keeps a request from Pebble until release is closed; nil never is. If the client leaves before, Pebble never
// sees it.
func Hold(release <-chan struct{}) Action {
	return func(w http.ResponseWriter, r *http.Request, pebble http.Handler) {
		wait(r, release)
		pebble.ServeHTTP(w, r)
	}
}

// HoldAnswer lets Pebble do what is asked, and keeps back the answer until release is closed.
func HoldAnswer(release <-chan struct{}) Action {
	return func(w http.ResponseWriter, r *http.Request, pebble http.Handler) {
		answer := httptest.NewRecorder()
		pebble.ServeHTTP(answer, r)
		wait(r, release)
		pass(w, answer)
	}
}

// Delay is Hold for a time, as a slow CA does.
func Delay(d time.Duration) Action {
	return func(w http.ResponseWriter, r *http.Request, pebble http.Handler) {
		over := make(chan struct{})
		defer time.AfterFunc(d, func() { close(over) }).Stop()
		wait(r, over)
		pebble.ServeHTTP(w, r)
	}
}

// wait ends the request if the client leaves, or the server is closed, before release.
func wait(r *http.Request, release <-chan struct{}) {
	select {
	case <-release:
	case <-r.Context().Done():
		panic(http.ErrAbortHandler)
	}
}

// rewrite changes the body of what Pebble answers with 200.
func rewrite(change func([]byte) []byte) Action {
	return func(w http.ResponseWriter, r *http.Request, pebble http.Handler) {
		answer := httptest.NewRecorder()
		pebble.ServeHTTP(answer, r)
		if answer.Code == http.StatusOK {
			answer.Body = bytes.NewBuffer(change(answer.Body.Bytes()))
		}
		pass(w, answer)
	}
}
