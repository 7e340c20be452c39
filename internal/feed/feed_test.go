package feed

import (
	"context"
	"crypto/sha512"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

const (
	testToken   = "pqe_aaaabbbbccccddddeeeeffff"
	secretQuery = "key=sekrit"
	set         = `{"revision":420,"domains":[]}`
)

// protocols are what every server here may speak.
var protocols = []string{"http/1.1", "https/1.1", "h2"}

// server is an HTTP server that counts its connections.
type server struct {
	*httptest.Server
	ca  *pqtest.CA
	tls *tls.Config // for clients

	mu       sync.Mutex
	accepted int
	open     map[net.Conn]bool
}

// serve starts a server. Its handlers may wait for the request's context, which ends with the connection.
func serve(t *testing.T, protocol string, handler http.HandlerFunc, edit ...func(*tls.Config)) *server {
	t.Helper()
	s := &server{Server: httptest.NewUnstartedServer(handler), open: make(map[net.Conn]bool)}
	s.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch state {
		case http.StateNew:
			s.accepted++
			s.open[conn] = true
		case http.StateClosed, http.StateHijacked:
			delete(s.open, conn)
		}
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // the clients say what went wrong
	if protocol == "http/1.1" {
		s.Start()
	} else {
		s.ca = pqtest.NewCA(t)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{s.ca.Issue(t, "127.0.0.1", "feed.invalid")}}
		s.tls = &tls.Config{RootCAs: s.ca.Pool()}
		for _, e := range edit {
			e(s.TLS)
		}
		s.EnableHTTP2 = protocol == "h2"
		s.StartTLS()
	}
	t.Cleanup(s.Close)
	return s
}

func (s *server) counts() (accepted, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted, len(s.open)
}

// client returns a client of s, whose query and token must not show.
func (s *server) client(t *testing.T, edit ...func(*Config)) *Client {
	t.Helper()
	return newClient(t, s.URL+"/feed?"+secretQuery, append(edit, func(cfg *Config) {
		if cfg.TLS == nil {
			cfg.TLS = s.tls
		}
	})...)
}

func newClient(t *testing.T, url string, edit ...func(*Config)) *Client {
	t.Helper()
	cfg := Config{URL: url, Token: func() (string, error) { return testToken, nil }, MaxBody: 1 << 20}
	for _, e := range edit {
		e(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// leavesNothing is for the first line of a test: it may leave no goroutine, no connection and no file.
func leavesNothing(t *testing.T) {
	t.Helper()
	pqtest.Leaks(t)
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() { noFiles(t, dir) })
}

func noFiles(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the temporary folder: %v, %v", left, err)
	}
}

// get fetches a set and returns it, and the answer.
func get(t *testing.T, c *Client, r Request) (*Answer, string) {
	t.Helper()
	answer, err := c.Fetch(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return answer, read(t, answer)
}

// read closes the body that it reads.
func read(t *testing.T, answer *Answer) string {
	t.Helper()
	if answer.Body == nil {
		return ""
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != answer.Body.Size || sha512.Sum512(b) != answer.Body.SHA512 {
		t.Errorf("Size is %d, SHA512 %x, of %d bytes", answer.Body.Size, answer.Body.SHA512, len(b))
	}
	return string(b)
}

var reasons = []Reason{Unreachable, TooSlow, Status, Redirect, TooLarge, Encoding, Truncated, Signature, Storage, Token, Cancelled}

// failed checks an error for what holds for all.
func failed(t *testing.T, answer *Answer, err error) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || answer != nil {
		t.Fatalf("got %v, %T %v; want an *Error", answer, err, err)
	}
	text := err.Error()
	for _, secret := range []string{testToken, "sekrit"} {
		if strings.Contains(text, secret) || strings.Contains(fmt.Sprintf("%q", text), secret) {
			t.Errorf("%q shows %s", text, secret)
		}
	}
	if len(text) > 1000 || strings.ContainsAny(text, "\r\n\x00\x1b") {
		t.Errorf("the error is of %d bytes, or not of one line: %q", len(text), text)
	}
	if !slices.Contains(reasons, e.Reason) {
		t.Errorf("the reason is %q", e.Reason)
	}
	if e.Status != 0 && e.Reason != Status && e.Reason != Redirect {
		t.Errorf("the status is %d with reason %s", e.Status, e.Reason)
	}
	return e
}

// fails wants a Fetch to fail for the reason, with an error that says so.
func fails(t *testing.T, c *Client, r Request, reason Reason, says string) *Error {
	t.Helper()
	answer, err := c.Fetch(t.Context(), r)
	e := failed(t, answer, err)
	if e.Reason != reason || !strings.Contains(err.Error(), says) {
		t.Fatalf("got %s: %v\nwant %s: %s", e.Reason, err, reason, says)
	}
	return e
}

func TestNewRefuses(t *testing.T) {
	tests := []struct {
		name string
		cfg  Config
		says string
	}{
		{"no URL", Config{}, "url: it must begin with https://"},
		{"no scheme", Config{URL: "manage.internal:9443/feed"}, "url: it must begin with https://"},
		{"file", Config{URL: "file:///etc/passwd"}, "url: it must begin with https://"},
		{"no host", Config{URL: "https:///feed"}, "url: it names no host"},
		{"port alone", Config{URL: "https://:9443/feed"}, "url: it names no host"},
		{"opaque", Config{URL: "https:feed"}, "url: it names no host"},
		{"password", Config{URL: "https://user:sekrit@host/feed"}, "url: it holds a user name"},
		{"user", Config{URL: "https://sekrit@host/feed"}, "url: it holds a user name"},
		{"fragment", Config{URL: "https://host/feed#sekrit"}, "url: it has a fragment"},
		{"after", Config{URL: "https://host/feed?a=1&after=2"}, "url: its query has after"},
		{"unreadable", Config{URL: "https://user:sek/rit@host/"}, "url: it cannot be read"},
		{"unreadable escape", Config{URL: "https://host/%zzsekrit"}, "url: it cannot be read"},
		{"max_body", Config{URL: "https://host", MaxBody: -1}, "max_body: -1 bytes"},
		{"max_body that overflows", Config{URL: "https://host", MaxBody: 1<<40 + 1}, "max_body: "},
		{"user agent", Config{URL: "https://host", UserAgent: "a\r\nHost: b"}, "user_agent: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(tt.cfg)
			if err == nil || !strings.HasPrefix(err.Error(), tt.says) {
				t.Fatalf("got %v, want %s", err, tt.says)
			}
			if strings.Contains(err.Error(), "sek") || strings.Contains(err.Error(), "rit@") {
				t.Errorf("%v shows what may be a secret", err)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	c, err := New(Config{URL: "http://host"})
	if err != nil {
		t.Fatal(err)
	}
	if c.cfg.MaxBody != 1<<30 || c.cfg.UserAgent != "pqproxy" {
		t.Errorf("the defaults are %d, %q", c.cfg.MaxBody, c.cfg.UserAgent)
	}
	if got := []time.Duration{c.connect, c.header, c.allowance}; !slices.Equal(got, []time.Duration{10e9, 30e9, 30e9}) || c.rate != 65536 {
		t.Errorf("the bounds are %v, %d", got, c.rate)
	}
}

// TestFetch is one answer: what is asked, and what is given out.
func TestFetch(t *testing.T) {
	leavesNothing(t)
	var asked *http.Request
	s := serve(t, "http/1.1", func(w http.ResponseWriter, r *http.Request) {
		asked = r
		w.Header().Set("ETag", `W/"420"`)
		io.WriteString(w, set)
	})
	c := s.client(t)
	answer, err := c.Fetch(t.Context(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	body := answer.Body
	if answer.NotModified || answer.Gone || answer.Waited || answer.ETag != `W/"420"` || body == nil {
		t.Fatalf("the answer is %+v", answer)
	}
	// Nobody else finds the file.
	noFiles(t, os.TempDir())
	if info, err := body.file.Stat(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info.Mode(), err)
	}
	if b, err := io.ReadAll(body); err != nil || string(b) != set {
		t.Errorf("read %q, %v", b, err)
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		t.Error(err)
	}
	if got := read(t, answer); got != set {
		t.Errorf("read %q the second time", got)
	}
	if asked.Method != "GET" || asked.RequestURI != "/feed?"+secretQuery {
		t.Errorf("asked %s %s", asked.Method, asked.RequestURI)
	}
	want := http.Header{"Accept": {"application/json"}, "Accept-Encoding": {"gzip"}, "Authorization": {"Bearer " + testToken}, "User-Agent": {"pqproxy"}}
	if got := fmt.Sprint(asked.Header); got != fmt.Sprint(want) {
		t.Errorf("asked with %s\nwant %s", got, fmt.Sprint(want))
	}
}

// TestQuery has the server see what it was configured with, to the byte.
func TestQuery(t *testing.T) {
	leavesNothing(t)
	var got string
	s := serve(t, "http/1.1", func(w http.ResponseWriter, r *http.Request) { got = r.RequestURI })
	after := uint64(1<<64 - 1)
	for _, tt := range []struct {
		path  string
		after *uint64
		want  string
	}{
		{"", nil, "/"},
		{"", &after, "/?after=18446744073709551615"},
		{"/a%2Fb/?", &after, "/a%2Fb/?after=18446744073709551615"},
		{"/feed?b=%7e;c&&a=1", nil, "/feed?b=%7e;c&&a=1"},
		{"/feed?b=%7e;c&&a=1", &after, "/feed?b=%7e;c&&a=1&after=18446744073709551615"},
	} {
		if get(t, newClient(t, s.URL+tt.path), Request{After: tt.after}); got != tt.want {
			t.Errorf("%s: asked for %s, want %s", tt.path, got, tt.want)
		}
	}
}

func TestConditional(t *testing.T) {
	leavesNothing(t)
	revision := uint64(420)
	tests := []struct {
		name          string
		request       Request
		status        int
		answer        http.Header
		asked         http.Header // the fields given here
		want          Answer
		wantErrStatus bool
	}{
		{"not modified", Request{ETag: `"420"`}, 304, nil, http.Header{"If-None-Match": {`"420"`}, "Prefer": nil}, Answer{NotModified: true}, false},
		{"new ETag", Request{ETag: `"420"`}, 304, http.Header{"Etag": {`"421"`}}, nil, Answer{NotModified: true, ETag: `"421"`}, false},
		{"not modified since", Request{After: &revision}, 304, nil, http.Header{"If-None-Match": nil}, Answer{NotModified: true}, false},
		{"not modified, unasked", Request{}, 304, nil, nil, Answer{}, true},
		{"not modified, ETag not sent", Request{ETag: "a\nb"}, 304, nil, http.Header{"If-None-Match": nil}, Answer{}, true},
		{"gone", Request{After: &revision, ETag: `"420"`}, 410, nil, nil, Answer{Gone: true}, false},
		{"gone, unasked", Request{ETag: `"420"`}, 410, nil, nil, Answer{}, true},
		{"wait", Request{ETag: `"420"`, Wait: 25 * time.Second}, 304, http.Header{"Preference-Applied": {"wait"}}, http.Header{"Prefer": {"wait=25"}}, Answer{NotModified: true, Waited: true}, false},
		{"wait with its value", Request{ETag: `"420"`, Wait: 24*time.Second + 1}, 304, http.Header{"Preference-Applied": {"respond-async", "a=b , Wait = 25"}}, http.Header{"Prefer": {"wait=25"}}, Answer{NotModified: true, Waited: true}, false},
		{"wait not applied", Request{ETag: `"420"`, Wait: time.Millisecond}, 304, http.Header{"Preference-Applied": {"waiting=25"}}, http.Header{"Prefer": {"wait=1"}}, Answer{NotModified: true}, false},
		{"no wait", Request{ETag: `"420"`, Wait: -time.Second}, 304, nil, http.Header{"Prefer": nil}, Answer{NotModified: true}, false},
		{"wait for ever", Request{ETag: `"420"`, Wait: 1<<63 - 1}, 304, nil, http.Header{"Prefer": {"wait=3600"}}, Answer{NotModified: true}, false},
		{"longest ETag", Request{ETag: strings.Repeat("e", 1024)}, 304, http.Header{"Etag": {strings.Repeat("f", 1024)}}, http.Header{"If-None-Match": {strings.Repeat("e", 1024)}}, Answer{NotModified: true, ETag: strings.Repeat("f", 1024)}, false},
		{"ETag too long", Request{ETag: `"420"`}, 304, http.Header{"Etag": {strings.Repeat("f", 1025)}}, nil, Answer{NotModified: true}, false},
		{"ETag with a tab", Request{ETag: `"420"`}, 304, http.Header{"Etag": {"\"a\tb\""}}, nil, Answer{NotModified: true}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var asked http.Header
			s := serve(t, "http/1.1", func(w http.ResponseWriter, r *http.Request) {
				asked = r.Header
				for name, values := range tt.answer {
					w.Header()[name] = values
				}
				w.WriteHeader(tt.status)
			})
			c := s.client(t)
			if tt.wantErrStatus {
				fails(t, c, tt.request, Status, "no answer to a request for the full set")
			} else if answer, _ := get(t, c, tt.request); *answer != tt.want {
				t.Errorf("got %+v, want %+v", answer, tt.want)
			}
			for name, want := range tt.asked {
				if !slices.Equal(asked[name], want) {
					t.Errorf("asked with %s %q, want %q", name, asked[name], want)
				}
			}
		})
	}
}

// TestHeaderTime has the server wait as it is asked, longer than the header may take otherwise.
func TestHeaderTime(t *testing.T) {
	leavesNothing(t)
	c := newClient(t, "http://host")
	c.header = time.Nanosecond
	a := c.begin(t.Context(), Request{Wait: time.Hour}.wait(), "")
	defer a.end()
	httpGotConn(a)
	if a.ctx.Err() != nil {
		t.Errorf("waiting as asked has ended: %v", context.Cause(a.ctx))
	}
}

func TestToken(t *testing.T) {
	leavesNothing(t)
	var got []string
	s := serve(t, "http/1.1", func(w http.ResponseWriter, r *http.Request) {
		got = append(got, strings.Join(r.Header["Authorization"], "|"))
	})
	var token string
	var tokenErr error
	c := s.client(t, func(cfg *Config) { cfg.Token = func() (string, error) { return token, tokenErr } })
	for _, token = range []string{"first", " next\r\n", "", "\n"} {
		get(t, c, Request{})
	}
	get(t, s.client(t, func(cfg *Config) { cfg.Token = nil }), Request{})
	if want := []string{"Bearer first", "Bearer next", "", "", ""}; !slices.Equal(got, want) {
		t.Errorf("sent %q, want %q", got, want)
	}
	for _, token = range []string{testToken + "\r\nHost: b", testToken + " b", testToken + "\x00", testToken + "é", testToken + `"`, testToken + `\`} {
		fails(t, c, Request{}, Token, "characters that no token has")
	}
	tokenErr = os.ErrNotExist
	if e := fails(t, c, Request{}, Token, "reading the token: file does not exist"); !errors.Is(e, os.ErrNotExist) {
		t.Error("the cause is not wrapped")
	}
	if len(got) != 5 {
		t.Errorf("%d requests were sent without a token", len(got)-5)
	}
}
