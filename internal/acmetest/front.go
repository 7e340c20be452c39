package acmetest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strconv"
	"strings"
	"time"
)

// connKey is where a request's context has its connection.
type connKey struct{}

// listen starts to serve.
func (s *Server) listen() {
	s.tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.tb.Fatal(err)
	}
	s.url = "https://" + ln.Addr().String() + s.path
	s.http = http.Server{
		Handler:           http.HandlerFunc(s.serve),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{s.api.Issue(s.tb, "127.0.0.1")}},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          s.opts.Logger,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conn)
		},
	}
	s.wg.Go(func() { s.accept(ln) })
}

// accept is ended by Close.
func (s *Server) accept(ln net.Listener) {
	if err := s.http.ServeTLS(ln, "", ""); !errors.Is(err, http.ErrServerClosed) {
		s.tb.Errorf("acmetest: serving: %v", err)
	}
}

// serve notes a request, and gives it to a fault or to Pebble.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	s.handlers.Add(1)
	s.mu.Unlock()
	defer s.handlers.Done()

	switch r.URL.Path {
	case s.path:
		r.URL.Path = directoryPath
	case directoryPath: // see started
		http.NotFound(w, r)
		return
	}
	c, err := s.read(w, r)
	if err != nil {
		http.Error(w, "cannot read the request", http.StatusBadRequest)
		return
	}
	request := &Request{Endpoint: c.endpoint, Method: r.Method, Path: r.URL.Path, Names: c.names}
	s.mu.Lock()
	s.requests = append(s.requests, request)
	action := s.fault(c)
	s.mu.Unlock()

	watched := &watcher{ResponseWriter: w}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		request.Status, request.Problem = watched.status, watched.problemType()
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler {
				s.tb.Errorf("acmetest: a request to %s panicked: %v", r.URL.Path, p)
			}
			request.Status = 0
			panic(http.ErrAbortHandler)
		}
	}()
	action(watched, r, http.HandlerFunc(s.ask))
}

// ask lets Pebble handle a request. The answer is written when Pebble is done.
func (s *Server) ask(w http.ResponseWriter, r *http.Request) {
	c, err := s.read(w, r)
	if err != nil {
		http.Error(w, "cannot read the request", http.StatusBadRequest)
		return
	}
	pass(w, s.handle(r, c))
}

// pass writes a recorded answer.
func pass(w http.ResponseWriter, answer *httptest.ResponseRecorder) {
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes()) // to a client that may be gone
}

// handle is one request to Pebble, with what comes before and after it.
func (s *Server) handle(r *http.Request, c *call) *httptest.ResponseRecorder {
	s.pebble.mu.Lock()
	defer s.pebble.mu.Unlock()
	if c.endpoint == NewOrder && !s.opts.ReuseAuthorizations {
		s.pebble.retire(c.account, c.identifiers)
	}
	answer := httptest.NewRecorder()
	s.pebble.wfe.ServeHTTP(answer, r)
	if answer.Code >= 300 {
		return answer
	}
	switch c.endpoint {
	case Directory:
		if s.opts.NoRenewalInfo {
			s.edit(answer, func(directory map[string]any) { delete(directory, "renewalInfo") })
		}
	case NewOrder:
		s.ordered(answer, c)
	case Finalize:
		cert, err := s.pebble.waitIssued(c.id)
		if err != nil {
			s.tb.Errorf("acmetest: %v", err)
			break
		}
		s.mu.Lock()
		s.issued = append(s.issued, cert)
		s.mu.Unlock()
	case Order:
		if s.isHeld(c.names) {
			s.hide(answer)
		}
	case RenewalInfo:
		if d := s.opts.RenewalRetryAfter; d > 0 {
			answer.Header().Set("Retry-After", seconds(d))
		}
	}
	return answer
}

// ordered notes an order that was accepted, and gives it the first profile instead of one at random.
func (s *Server) ordered(answer *httptest.ResponseRecorder, c *call) {
	id := path.Base(answer.Header().Get("Location"))
	s.mu.Lock()
	s.orders[id] = c.names
	s.mu.Unlock()
	if c.profile == "" {
		first := s.opts.Profiles[0].Name
		s.pebble.setProfile(id, first)
		s.edit(answer, func(order map[string]any) { order["profile"] = first })
	}
}

// hide makes an order that is issued look as if it was not yet.
func (s *Server) hide(answer *httptest.ResponseRecorder) {
	s.edit(answer, func(order map[string]any) {
		if order["status"] == "valid" {
			order["status"] = "processing"
			delete(order, "certificate")
			if d := s.opts.RetryAfter; d > 0 {
				answer.Header().Set("Retry-After", seconds(d))
			}
		}
	})
}

// edit changes an object that Pebble answers with.
func (s *Server) edit(answer *httptest.ResponseRecorder, change func(map[string]any)) {
	var object map[string]any
	err := json.Unmarshal(answer.Body.Bytes(), &object)
	if err == nil {
		change(object)
		var text []byte
		text, err = json.Marshal(object)
		answer.Body = bytes.NewBuffer(text)
	}
	if err != nil {
		s.tb.Errorf("acmetest: an answer of Pebble is not understood: %v", err)
	}
}

// seconds is a Retry-After header (RFC 9110, section 10.2.3), rounded up.
func seconds(d time.Duration) string {
	return strconv.Itoa(int((d + time.Second - 1) / time.Second))
}

// watcher notes what is answered.
type watcher struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer // of problems
}

func (w *watcher) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *watcher) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if strings.HasPrefix(w.Header().Get("Content-Type"), problemType) {
		w.body.Write(p)
	}
	return w.ResponseWriter.Write(p)
}

// problemType is the content type of problem documents, and errorNamespace the prefix of their types (RFC 8555, section 6.7).
const (
	problemType    = "application/problem+json"
	errorNamespace = "urn:ietf:params:acme:error:"
)

func (w *watcher) problemType() string {
	var problem struct {
		Type string `json:"type"`
	}
	if w.body.Len() == 0 || json.Unmarshal(w.body.Bytes(), &problem) != nil {
		return ""
	}
	return strings.TrimPrefix(problem.Type, errorNamespace)
}
