package pqproxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/certmagic"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// plainDomains are what the tests of plain HTTP serve: two names, a wildcard, and one that is suspended.
const plainDomains = `
	domain app.example.com {
		upstream 192.0.2.1:1
		certificate $CHAIN $KEY
	}
	domain b.example.com {
		upstream 192.0.2.1:1
		certificate $CHAIN $KEY
		suspended
	}
	domain *.wild.example.com {
		upstream 192.0.2.1:1
		certificate $CHAIN $KEY
	}`

// startPlainEdge runs an edge that serves plain HTTP, and returns where.
func startPlainEdge(t *testing.T) (e *edge, addr string) {
	t.Helper()
	e = startEdge(t, "http 127.0.0.1:0\n"+plainDomains)
	_, addr = listeningOn(t, "http/127.0.0.1:0")
	return e, addr
}

// startPlain serves plain HTTP for the same domains without Caddy, within bounds. prepare, if not nil, may change what
// serves before it does.
func startPlain(t testing.TB, bounds httpBounds, prepare func(*http01)) (s *state, addr string) {
	t.Helper()
	s = newState()
	s.settings.Store(&settings{http: true, logger: zap.NewNop(), accessLog: zap.NewNop()})
	t.Cleanup(func() {
		_ = s.Destruct()
		drains.Wait()
	})
	c := s.newChangeSet(rankStatic, true, nil)
	for _, name := range []string{"app.example.com", "b.example.com", "*.wild.example.com"} {
		d := &domain.Domain{
			Name: name, Suspended: name == "b.example.com", Upstreams: []domain.Upstream{{Dial: "192.0.2.1:1"}},
			Certificate: domain.Certificate{Source: domain.Internal},
		}
		if err := errors.Join(d.Normalize(domain.Static), c.put(d)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.apply(c, nil); err != nil {
		t.Fatal(err)
	}
	s.http01.open(s, bounds)
	if prepare != nil {
		prepare(&s.http01)
	}
	h, err := hold(t.Context(), "http/127.0.0.1:0", "127.0.0.1:0", net.ListenConfig{}, "listening", s.http01.slots.admit)
	if err != nil {
		t.Fatal(err)
	}
	serving := make(chan error, 1)
	go func() { serving <- s.http01.server.Serve(h) }()
	t.Cleanup(func() {
		h.Close()
		if err := <-serving; !errors.Is(err, net.ErrClosed) {
			t.Errorf("serving ended with %v", err)
		}
	})
	return s, h.Addr().String()
}

// plainAnswer is what a request got.
type plainAnswer struct {
	status int
	header http.Header
	body   string
	closed bool // whether the server closed the connection behind it
}

// ask sends the bytes of one request and reads the answer.
func ask(t testing.TB, addr, request string) plainAnswer {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatalf("%q: writing: %v", request, err)
	}
	r := bufio.NewReader(c)
	method, _, _ := strings.Cut(request, " ")
	response, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: reading the answer: %v", request, err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%q: reading the body: %v", request, err)
	}
	a := plainAnswer{status: response.StatusCode, header: response.Header, body: string(body)}
	if response.Close {
		_, err := r.ReadByte()
		a.closed = errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
	}
	return a
}

// TestHTTP01Redirects sends what clients send, and what they should not, to names of ours and to others.
func TestHTTP01Redirects(t *testing.T) {
	pqtest.Leaks(t)
	_, addr := startPlainEdge(t)
	const app, wild = "https://app.example.com", "https://a.wild.example.com"
	line := func(target string) string { return "GET " + target + " HTTP/1.1\r\nHost: app.example.com\r\n\r\n" }
	host := func(host string) string { return "GET /path?query HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }
	for _, test := range []struct{ name, request, want string }{ // "": an empty 404; 400: any fault of the client's
		{"root", line("/"), app + "/"},
		{"path and query as they are", line("/a%2Fb/../c//d/%7e;p?x=%20&y=1;z&&a=b?c"), app + "/a%2Fb/../c//d/%7e;p?x=%20&y=1;z&&a=b?c"},
		{"empty query", line("/?"), app + "/?"},
		{"two slashes", line("//evil.example/x"), app + "//evil.example/x"},
		{"two slashes and userinfo", line("//user@evil.example/%2e%2e"), app + "//user@evil.example/%2e%2e"},
		{"backslash", line(`/\evil.example`), app + `/\evil.example`},
		{"at", line("/@evil.example"), app + "/@evil.example"},
		{"quotes and brackets", line(`/"<>{}|^[]`), app + `/"<>{}|^[]`},
		{"beyond ASCII", line("/\xc3\xa9?\xff"), app + "/%C3%A9?%FF"},
		{"fragment", line("/a#b?c#d"), app + "/a%23b?c%23d"},
		{"escaped line break", line("/%0d%0aSet-Cookie:x=1"), app + "/%0d%0aSet-Cookie:x=1"},
		{"line break", line("/a\rSet-Cookie:x=1"), "400"},
		{"control character", line("/a\x01"), "400"},
		{"space", line("/a b"), "400"},
		{"bad escape", line("/%zz"), "400"},
		{"long", line("/" + strings.Repeat("x", 4<<10)), app + "/" + strings.Repeat("x", 4<<10)},
		{"too long", line("/" + strings.Repeat("x", 8<<10)), "400"},

		{"upper case", host("APP.Example.COM"), app + "/path?query"},
		{"port", host("app.example.com:80"), app + "/path?query"},
		{"empty port", host("app.example.com:"), app + "/path?query"},
		{"final dot", host("app.example.com."), app + "/path?query"},
		{"wildcard", host("a.wild.example.com:8080"), wild + "/path?query"},
		{"two labels under a wildcard", host("a.b.wild.example.com"), ""},
		{"wildcard itself", host("*.wild.example.com"), ""},
		{"wildcard without its label", host("wild.example.com"), ""},
		{"suspended", host("b.example.com"), ""},
		{"unknown", host("nobody.example"), ""},
		{"known with more behind it", host("app.example.com.evil.example"), ""},
		{"userinfo", host("app.example.com@evil.example"), "400"},
		{"userinfo before", host("evil.example@app.example.com"), "400"},
		{"port and userinfo", host("app.example.com:80@evil.example"), "400"},
		{"port that is none", host("app.example.com:8x"), ""},
		{"two ports", host("app.example.com:80:80"), ""},
		{"two final dots", host("app.example.com.."), ""},
		{"no host", host(""), ""},
		{"dot", host("."), ""},
		{"IPv4", host("127.0.0.1"), ""},
		{"IPv6", host("[::1]"), ""},
		{"IPv6 and port", host("[::1]:80"), ""},
		{"IPv6 without brackets", host("::1"), ""},
		{"path in the host", host("app.example.com/x"), "400"},
		{"line break in the host", host("app.example.com\rX: y"), "400"},
		{"two hosts", "GET / HTTP/1.1\r\nHost: app.example.com\r\nHost: evil.example\r\n\r\n", "400"},
		{"HTTP/1.1 without Host", "GET / HTTP/1.1\r\n\r\n", "400"},
		{"HTTP/1.0 without Host", "GET / HTTP/1.0\r\n\r\n", ""},
		{"HTTP/1.0", "GET / HTTP/1.0\r\nHost: app.example.com\r\n\r\n", app + "/"},
		{"forwarded host", "GET / HTTP/1.1\r\nHost: app.example.com\r\nX-Forwarded-Host: evil.example\r\nForwarded: host=evil.example\r\n\r\n", app + "/"},
		{"folded header", "GET / HTTP/1.1\r\nHost: app.example.com\r\nX: a\r\n b\r\n\r\n", app + "/"},

		{"absolute form", "GET http://app.example.com/x?y HTTP/1.1\r\nHost: evil.example\r\n\r\n", app + "/x?y"},
		{"absolute form of https", "GET HTTPS://APP.example.com:443/x%2F?y HTTP/1.1\r\nHost: evil.example\r\n\r\n", app + "/x%2F?y"},
		{"absolute form without a path", line("http://app.example.com"), app + "/"},
		{"absolute form with a query alone", line("http://app.example.com?x"), app + "/?x"},
		{"absolute form of somebody else", line("http://evil.example/"), ""},
		{"absolute form with userinfo", line("http://user:password@app.example.com/"), ""},
		{"absolute form without a host", line("http:///x"), ""},
		{"another scheme", line("ftp://app.example.com/x"), ""},
		{"scheme without authority", line("x:.evil.example/"), ""},
		{"no scheme, no slash", line(".evil.example/"), "400"},
		{"asterisk", line("*"), ""},
		{"OPTIONS asterisk", "OPTIONS * HTTP/1.1\r\nHost: app.example.com\r\n\r\n", ""},
		{"CONNECT", "CONNECT app.example.com:443 HTTP/1.1\r\nHost: app.example.com\r\n\r\n", ""},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""},
		{"HTTP/2 upgrade", "GET / HTTP/1.1\r\nHost: app.example.com\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n", app + "/"},

		{"HEAD", "HEAD /x HTTP/1.1\r\nHost: app.example.com\r\n\r\n", app + "/x"},
		{"HEAD of somebody else", "HEAD /x HTTP/1.1\r\nHost: evil.example\r\n\r\n", ""},
		{"DELETE", "DELETE /x HTTP/1.1\r\nHost: app.example.com\r\n\r\n", app + "/x"},
		{"TRACE", "TRACE /x HTTP/1.1\r\nHost: app.example.com\r\n\r\n", app + "/x"},
		{"OPTIONS", "OPTIONS /x HTTP/1.1\r\nHost: app.example.com\r\n\r\n", app + "/x"},
		{"invented method", "BREW /x HTTP/1.1\r\nHost: app.example.com\r\n\r\n", app + "/x"},
		{"challenge that nobody asked for", line("/.well-known/acme-challenge/token"), app + "/.well-known/acme-challenge/token"},
		{"challenge for nobody", "GET /.well-known/acme-challenge/token HTTP/1.1\r\nHost: nobody.example\r\n\r\n", ""},
		{"TLS", "\x16\x03\x01\x00\x05hello\r\n\r\n", "400"},
	} {
		a := ask(t, addr, test.request)
		location := a.header.Get("Location")
		switch {
		case test.want == "400":
			if a.status < 400 || a.status > 499 || a.status == http.StatusNotFound || location != "" {
				t.Errorf("%s: status %d, location %q; want a fault", test.name, a.status, location)
			}
			continue
		case test.want == "":
			if a.status != http.StatusNotFound {
				t.Errorf("%s: status %d, location %q; want 404", test.name, a.status, location)
			}
		default:
			if a.status != http.StatusPermanentRedirect || location != test.want {
				t.Errorf("%s: status %d, location %q; want %s", test.name, a.status, location, test.want)
			}
		}
		if a.header.Del("Location"); a.body != "" {
			t.Errorf("%s: the body is %q", test.name, a.body)
		}
		for _, expected := range []string{"Date", "Content-Length", "Connection"} {
			a.header.Del(expected)
		}
		if len(a.header) > 0 {
			t.Errorf("%s: the header has %v too", test.name, slices.Sorted(maps.Keys(a.header)))
		}
	}
}

// TestHTTP01Bodies sends bodies, which nobody reads: the answer comes at once, and the connection is not used again,
// so that nothing in a body is taken for a request.
func TestHTTP01Bodies(t *testing.T) {
	pqtest.Leaks(t)
	_, addr := startPlain(t, usualHTTPBounds, nil)
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: app.example.com\r\n\r\n"
	for _, headers := range []string{
		"Content-Length: 100000000\r\n\r\n",
		"Content-Length: 100000\r\nExpect: 100-continue\r\n\r\n",
		fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(smuggled), smuggled),
		"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n",
	} {
		for host, want := range map[string]int{"app.example.com": http.StatusPermanentRedirect, "nobody.example": http.StatusNotFound} {
			c := pqtest.DialRaw(t, addr)
			if _, err := io.WriteString(c, "POST /form HTTP/1.1\r\nHost: "+host+"\r\n"+headers); err != nil {
				t.Fatal(err)
			}
			// The server may wait for the rest of a body, for a while, so that its answer is read before it resets.
			r := bufio.NewReader(c)
			response, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if response.StatusCode != want || !response.Close || response.ContentLength != 0 {
				t.Errorf("%s, %q: status %d, close %v", host, headers, response.StatusCode, response.Close)
			}
			if err := c.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s, %q: then came %q, %v", host, headers, rest, err)
			}
			c.Close()
		}
	}
}

// TestHTTP01Challenges routes challenges: first to ours, which are asked for all paths that are well known, of known names
// and others, and then to the redirects.
func TestHTTP01Challenges(t *testing.T) {
	pqtest.Leaks(t)
	var asked atomic.Int64
	answer := func(w http.ResponseWriter, r *http.Request) bool {
		asked.Add(1)
		if _, bounded := r.Context().Deadline(); !bounded {
			t.Error("a challenge may be looked for without end")
		}
		switch {
		case strings.HasSuffix(r.URL.Path, "/token"):
			_, _ = io.WriteString(w, r.Host+" token.thumbprint")
			return true
		case strings.HasSuffix(r.URL.Path, "/panic"):
			panic("injected")
		}
		return false
	}
	_, addr := startPlain(t, usualHTTPBounds, func(h *http01) { h.answer = answer })
	get := func(host, path string) plainAnswer {
		t.Helper()
		return ask(t, addr, "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	}
	for _, host := range []string{"app.example.com", "b.example.com", "nobody.example", "192.0.2.1"} {
		if a := get(host, "/.well-known/acme-challenge/token"); a.status != http.StatusOK || a.body != host+" token.thumbprint" {
			t.Errorf("%s: status %d, %q", host, a.status, a.body)
		}
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("asked %d times", n)
	}
	for path, want := range map[string]int64{
		"/.well-known/acme-challenge/other": 1, "/.well-known/pki-validation/x.txt": 1, "/%2ewell-known/x": 1,
		"/token": 0, "/.well-known": 0, "//.well-known/token": 0, "/x/../.well-known/token": 0,
	} {
		asked.Store(0)
		if a := get("app.example.com", path); a.status != http.StatusPermanentRedirect || a.header.Get("Location") != "https://app.example.com"+path {
			t.Errorf("%s: status %d to %q", path, a.status, a.header.Get("Location"))
		}
		if a := get("nobody.example", path); a.status != http.StatusNotFound || a.body != "" {
			t.Errorf("%s of nobody: status %d, %q", path, a.status, a.body)
		}
		if n := asked.Load(); n != 2*want {
			t.Errorf("%s: asked %d times, want %d", path, n, 2*want)
		}
	}

	// A panic ends its own connection without an answer, and nothing else.
	c := pqtest.DialRaw(t, addr)
	if _, err := io.WriteString(c, "GET /.well-known/panic HTTP/1.1\r\nHost: app.example.com\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if data, _ := pqtest.ReadToEnd(t, c); len(data) > 0 {
		t.Errorf("after a panic came %q", data)
	}
	if a := get("app.example.com", "/"); a.status != http.StatusPermanentRedirect {
		t.Errorf("after a panic: status %d", a.status)
	}
}

// TestHTTP01CaddysChallenges answers a challenge of Caddy's own certificates, which another instance with the same
// storage has begun.
func TestHTTP01CaddysChallenges(t *testing.T) {
	pqtest.Leaks(t)
	e, addr := startPlainEdge(t)
	const name, ca = "site.example.net", "https://ca.example/directory"
	config := editJSON(t, e.adapt("admin off\n"+frontDoor+"\npqproxy {\nhttp 127.0.0.1:0\n}"), func(apps map[string]any) {
		apps["tls"] = map[string]any{"automation": map[string]any{"policies": []any{map[string]any{
			"subjects": []string{name}, "issuers": []any{map[string]any{"module": "acme", "ca": ca}},
		}}}}
	})
	key := "acme/" + (&certmagic.ACMEIssuer{CA: ca}).IssuerKey() + "/challenge_tokens/" + certmagic.StorageKeys.Safe(name) + ".json"
	if err := os.MkdirAll(filepath.Dir(e.dir+"/storage/"+key), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, e.dir+"/storage/"+key, []byte(`{"type":"http-01","token":"tok","keyAuthorization":"tok.thumbprint","identifier":{"type":"dns","value":"`+name+`"}}`))

	const path = "GET /.well-known/acme-challenge/tok HTTP/1.1\r\nHost: " + name + "\r\n\r\n"
	if a := ask(t, addr, path); a.status != http.StatusNotFound {
		t.Errorf("without Caddy's own certificates: status %d", a.status)
	}
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
	if a := ask(t, addr, path); a.status != http.StatusOK || a.body != "tok.thumbprint" {
		t.Errorf("status %d, %q", a.status, a.body)
	}
	if a := ask(t, addr, strings.Replace(path, "acme-challenge/tok", "acme-challenge/other", 1)); a.status != http.StatusNotFound || a.body != "" {
		t.Errorf("another token: status %d, %q", a.status, a.body)
	}
}

// TestHTTP01Reloads reloads 100 times while requests come without a pause, over connections that stay and over new
// ones. Each of them is answered, the connections that stay do stay, and nothing is left behind.
func TestHTTP01Reloads(t *testing.T) {
	const reloads = 100
	pqtest.Leaks(t)
	e, addr := startPlainEdge(t)
	socket, _ := listeningOn(t, "http/127.0.0.1:0")
	const request = "GET /x HTTP/1.1\r\nHost: app.example.com\r\n\r\n"
	once := func(c net.Conn, r *bufio.Reader) error {
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(c, request); err != nil {
			return err
		}
		response, err := http.ReadResponse(r, nil)
		if err == nil && (response.StatusCode != http.StatusPermanentRedirect || response.Close || response.ContentLength != 0) {
			err = fmt.Errorf("status %d, close %v", response.StatusCode, response.Close)
		}
		return err
	}
	stop := make(chan struct{})
	var asking sync.WaitGroup
	var asked [2]atomic.Int64
	for kind := range asked {
		asking.Go(func() {
			var c net.Conn
			var r *bufio.Reader
			for {
				select {
				case <-stop:
					if c != nil {
						c.Close()
					}
					return
				default:
				}
				var err error
				if c == nil {
					if c, err = net.Dial("tcp", addr); err != nil {
						t.Errorf("dialling during reloads: %v", err)
						return
					}
					r = bufio.NewReader(c)
				}
				err = once(c, r)
				if kind == 0 || err != nil {
					c.Close()
					c = nil
				}
				if err != nil {
					t.Errorf("a request during reloads: %v", err)
					return
				}
				asked[kind].Add(1)
			}
		})
	}
	for i := range reloads {
		e.load(fmt.Sprintf("http 127.0.0.1:0\nlimits {\nmax_connections %d\n}\n%s", 100+i, plainDomains))
		if now := admission.limit.Load(); now != int64(100+i) {
			t.Fatalf("reload %d is not in force", i)
		}
	}
	close(stop)
	asking.Wait()
	if now, _ := listeningOn(t, "http/127.0.0.1:0"); now != socket {
		t.Error("the socket is another one")
	}
	for kind := range asked {
		if n := asked[kind].Load(); n < reloads/10 {
			t.Errorf("there were only %d requests of kind %d", n, kind)
		}
	}
	t.Logf("%d requests over new connections and %d over one, during %d reloads", asked[0].Load(), asked[1].Load(), reloads)
	waitForConns(t, stateInForce(t), 0)
	if lines := e.log.all(func(l logLine) bool { return l.str("msg") == "listening for plain HTTP" }); len(lines) != 1 || lines[0].str("level") != "info" || lines[0].str("address") != addr {
		t.Errorf("the log says: %v", lines)
	}
}

// TestHTTP01Addresses changes the addresses by reload, takes them away, and fails to.
func TestHTTP01Addresses(t *testing.T) {
	pqtest.Leaks(t)
	t.Setenv("PQPROXY_TEST_HTTP", "127.0.0.1:0")
	e, addr := startPlainEdge(t)
	const request = "GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n"
	serves := func(what, addr string) {
		t.Helper()
		if a := ask(t, addr, request); a.status != http.StatusPermanentRedirect {
			t.Errorf("%s: status %d", what, a.status)
		}
	}
	refused := func(what, addr string) {
		t.Helper()
		if c, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
			if err == nil {
				c.Close()
			}
			t.Errorf("%s: %s gives %v", what, addr, err)
		}
	}
	count := func() int {
		sockets.Lock()
		defer sockets.Unlock()
		return len(sockets.byAddress)
	}
	serves("at first", addr)
	e.load("http {$PQPROXY_TEST_HTTP}\n" + plainDomains) // the same, by Caddy's own placeholder of the Caddyfile
	e.load("http {env.PQPROXY_TEST_HTTP} 127.0.0.2:0\n" + plainDomains)
	_, second := listeningOn(t, "http/127.0.0.2:0")
	serves("with another beside it", addr)
	serves("the other", second)
	if own := fmt.Sprint(ownListeners()); !strings.Contains(own, addr) || !strings.Contains(own, second) {
		t.Errorf("own listeners are %s, without %s or %s", own, addr, second)
	}

	e.load("http 127.0.0.2:0\n" + plainDomains)
	refused("the first, taken away", addr)
	serves("the second, kept", second)

	// What fails to load leaves nothing, whoever fails and whenever.
	failing := withApp(t, e.adapt("admin off\n"+frontDoor+"\npqproxy {\nhttp 127.0.0.3:0\n}"), "pqproxy_test_failing", struct{}{})
	for range 10 {
		if err := caddy.Load(failing, true); err == nil || !strings.Contains(err.Error(), errInjected.Error()) {
			t.Fatalf("loading: %v", err)
		}
		if n := count(); n != 2 {
			t.Fatalf("there are %d sockets after a config that failed", n)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	err = e.tryLoad("http 127.0.0.3:0 " + taken.Addr().String() + "\n" + plainDomains)
	if err == nil || !strings.Contains(err.Error(), "http[1]: listen tcp "+taken.Addr().String()) || !strings.Contains(err.Error(), "address already in use (if the running config") {
		t.Errorf("on a taken port: %v", err)
	}
	if n := count(); n != 2 {
		t.Errorf("there are %d sockets after a config that failed", n)
	}
	serves("the second, after configs that failed", second)

	// Nobody shares the port, not even who asks for SO_REUSEPORT, as Caddy's own listeners do.
	other, err := caddy.ParseNetworkAddress(second)
	if err != nil {
		t.Fatal(err)
	}
	if ln, err := other.Listen(t.Context(), 0, net.ListenConfig{}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("on our port, another listener got %v, %v", ln, err)
	}

	// A connection that is open when the option goes is told to come no more.
	c, err := net.Dial("tcp", second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(c)
	for _, last := range []bool{false, true} {
		if last {
			e.load(plainDomains)
			refused("without the option", second)
		}
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(r, nil)
		if err != nil || response.StatusCode != http.StatusPermanentRedirect || response.Close != last {
			t.Fatalf("the last answer (%v) is %v, %v", last, response, err)
		}
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("behind the last answer: %v", err)
	}
	if n := count(); n != 1 {
		t.Errorf("there are %d sockets at the end", n)
	}
}

// TestHTTP01FollowsDomains adds and removes a name, and then the app, which ends a connection that is open.
func TestHTTP01FollowsDomains(t *testing.T) {
	pqtest.Leaks(t)
	e, addr := startPlainEdge(t)
	for i := range 3 {
		option, want := "", http.StatusNotFound
		if i%2 == 0 {
			option, want = plainDomains, http.StatusPermanentRedirect
		}
		e.load("http 127.0.0.1:0\n" + option)
		if a := ask(t, addr, "GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n"); a.status != want {
			t.Errorf("load %d: status %d, want %d", i, a.status, want)
		}
	}
	c := pqtest.DialRaw(t, addr)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if response, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || response.Close {
		t.Fatalf("%v, %v", response, err)
	}
	e.loadOptions("admin off") // no pqproxy at all
	if data, end := pqtest.ReadToEnd(t, c); len(data) > 0 || end != pqtest.FIN {
		t.Errorf("without the app, an open connection gets %q and %v", data, end)
	}
	if _, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("without the app: %v", err)
	}
}

// waitForConns waits until so many connections are counted.
func waitForConns(t *testing.T, s *state, want int) {
	t.Helper()
	slots := &s.http01.slots
	pqtest.Wait(t, fmt.Sprint(want, " connections to be counted"), func() bool {
		slots.mu.Lock()
		defer slots.mu.Unlock()
		return slots.total == want && (want > 0 || len(slots.byClient) == 0)
	})
}

// TestHTTP01Full fills the listener: connections over the bound are closed when accepted, and when others have left
// there is room again.
func TestHTTP01Full(t *testing.T) {
	pqtest.Leaks(t)
	bounds := usualHTTPBounds
	bounds.connections, bounds.perClient = 8, 2
	s, addr := startPlain(t, bounds, nil)
	const request = "GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n"
	var open []pqtest.RawConn
	for range 4 { // one client's: half of the bound
		open = append(open, pqtest.DialRaw(t, addr))
	}
	waitForConns(t, s, 4)
	for range 8 {
		c := pqtest.DialRaw(t, addr)
		if data, end := pqtest.ReadToEnd(t, c); len(data) > 0 || end != pqtest.FIN {
			t.Errorf("over the bound: %q and %v", data, end)
		}
		c.Close()
	}
	for _, c := range open {
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		if response, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || response.StatusCode != http.StatusPermanentRedirect {
			t.Errorf("within the bound: %v, %v", response, err)
		}
		c.Close()
	}
	waitForConns(t, s, 0)
	if a := ask(t, addr, request); a.status != http.StatusPermanentRedirect {
		t.Errorf("then status %d", a.status)
	}
}

// TestHTTP01Slow has clients that say nothing, never end their header, or stay after their request. Each is ended.
func TestHTTP01Slow(t *testing.T) {
	pqtest.Leaks(t)
	bounds := usualHTTPBounds
	bounds.read, bounds.idle = 100*time.Millisecond, 100*time.Millisecond
	s, addr := startPlain(t, bounds, nil)
	const request = "GET / HTTP/1.1\r\nHost: app.example.com\r\n"
	for _, sent := range []string{"", request[:20], request, request + "\r\n"} {
		c := pqtest.DialRaw(t, addr)
		if _, err := io.WriteString(c, sent); err != nil {
			t.Fatal(err)
		}
		data, end := pqtest.ReadToEnd(t, c)
		if answered := strings.HasPrefix(string(data), "HTTP/1.1 308"); answered != (sent == request+"\r\n") || end != pqtest.FIN {
			t.Errorf("%q: %q and %v", sent, data, end)
		}
	}

	// One that always has a little more to say has no more time.
	c := pqtest.DialRaw(t, addr)
	drops := time.NewTicker(5 * time.Millisecond)
	defer drops.Stop()
	_, err := io.WriteString(c, request+"X: ")
	for begun := time.Now(); err == nil && time.Since(begun) < patience; <-drops.C {
		_, err = io.WriteString(c, "x")
	}
	if err == nil {
		t.Error("a header without end goes on")
	}
	waitForConns(t, s, 0)
}

// TestHTTPSlots has one client take half of what there is and its own share beyond that, others the rest, and nobody
// more than all of it.
func TestHTTPSlots(t *testing.T) {
	pqtest.Leaks(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	slots := httpSlots{most: 10, perClient: 3}
	admit := func(from string) net.Conn {
		t.Helper()
		client, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return slots.admit(c.(*net.TCPConn))
	}
	var first []net.Conn
	for range 8 {
		if c := admit("127.0.0.1"); c != nil {
			first = append(first, c)
		}
	}
	if len(first) != 5 {
		t.Errorf("one client got %d of 10", len(first))
	}
	for _, others := range []struct {
		from string
		want int
	}{{"127.0.0.2", 3}, {"127.0.0.3", 2}, {"127.0.0.4", 0}} {
		got := 0
		for range 5 {
			if admit(others.from) != nil {
				got++
			}
		}
		if got != others.want {
			t.Errorf("%s got %d, want %d", others.from, got, others.want)
		}
	}
	for range 2 { // closing twice is closing once
		first[0].Close()
	}
	if admit("127.0.0.4") == nil || admit("127.0.0.4") != nil {
		t.Error("closing one connection did not make room for exactly one")
	}
}

// TestHTTPAddresses reads addresses, and compares them with those of other servers.
func TestHTTPAddresses(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{":80", ":80"}, {"0.0.0.0:80", ":80"}, {"[::]:80", ":80"}, {"[::ffff:192.0.2.1]:080", "192.0.2.1:80"},
		{"192.0.2.1:8080", "192.0.2.1:8080"}, {"[2001:DB8::1]:80", "[2001:db8::1]:80"}, {"127.0.0.1:0", "127.0.0.1:0"},
		{"80", ""}, {"", ""}, {":", ""}, {":http", ""}, {":65536", ""}, {":-1", ""}, {":80-81", ""}, {"2001:db8::1:80", ""},
		{"localhost:80", ""}, {"tcp/:80", ""}, {"pqproxy/:80", ""}, {"unix//run/x.sock", ""}, {"[192.0.2.1]:80:80", ""},
	} {
		got, err := parseHTTPAddress(test.in)
		if (err != nil) != (test.want == "") || err == nil && got.String() != test.want {
			t.Errorf("%s is read as %s, %v; want %s", test.in, got, err, test.want)
		}
		if err != nil && (!strings.HasPrefix(err.Error(), fmt.Sprintf("%q ", test.in)) || !strings.Contains(err.Error(), "write :80")) {
			t.Errorf("%s: the error is %v", test.in, err)
		}
	}
	for _, test := range []struct {
		own, other string
		want       bool
	}{
		{":80", ":80", true}, {":80", "127.0.0.1:80", true}, {"127.0.0.1:80", ":80", true}, {"127.0.0.1:80", "0.0.0.0:80", true},
		{"127.0.0.1:80", "[::]:80", true}, {"127.0.0.1:80", "127.0.0.1:80", true}, {"127.0.0.1:80", "[::ffff:127.0.0.1]:80", true},
		{"127.0.0.1:80", "127.0.0.2:80", false}, {"127.0.0.1:80", "[::1]:80", false}, {"[::1]:80", "[::1]:80", true},
		{":80", ":81", false}, {":80", ":443", false}, {":80", ":78-82", true}, {":80", ":81-90", false},
		{":80", "tcp4/:80", true}, {":80", "tcp6/[::1]:80", true}, {":80", "udp/:80", false}, {":80", "unix//run/80", false},
		{":80", "pqproxy/:80", true}, {"127.0.0.1:80", "pqproxy/127.0.0.1:80", true}, {":80", "tailscale/:80", false},
		{"127.0.0.1:80", "localhost:80", true}, {"[::1]:80", "localhost:80", true}, {"192.0.2.1:80", "localhost:80", false},
		{":80", "example.com:80", true}, {"192.0.2.1:80", "example.com:80", false}, {"127.0.0.1:0", "127.0.0.1:0", false},
	} {
		own, err := parseHTTPAddress(test.own)
		if err != nil {
			t.Fatal(err)
		}
		other, err := caddy.ParseNetworkAddress(test.other)
		if err != nil {
			t.Fatal(err)
		}
		if got := own.meets(other); got != test.want {
			t.Errorf("%s and %s: %v", test.own, test.other, got)
		}
	}
}

// TestHTTPConflicts has each kind of neighbour on the port, and none.
func TestHTTPConflicts(t *testing.T) {
	t.Setenv("PQPROXY_TEST_PORT", "80")
	own := func(texts ...string) (list []httpAddress) {
		for _, text := range texts {
			addr, err := parseHTTPAddress(text)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, addr)
		}
		return list
	}
	web := func(name string, listen ...string) *caddyhttp.App {
		return &caddyhttp.App{Servers: map[string]*caddyhttp.Server{"away": {Listen: []string{":443"}}, name: {Listen: listen}}}
	}
	front := func(name string, listen ...string) *layer4.App {
		return &layer4.App{Servers: map[string]*layer4.Server{"away": {Listen: []string{"pqproxy/:443"}}, name: {Listen: listen}}}
	}
	for _, test := range []struct {
		name string
		own  []httpAddress
		web  *caddyhttp.App
		l4   *layer4.App
		want []string
	}{
		{"nobody", own(":80"), nil, nil, nil},
		{"others", own(":80"), web("srv0", ":8080"), front("srv0", ":25"), nil},
		{"http server", own(":8080", ":80"), web("srv1", ":8443", "127.0.0.1:80"), nil,
			[]string{"http[1]: :80 is taken by the http server \"srv1\"", "listens on 127.0.0.1:80", "pqproxy_http01", "auto_https disable_redirects"}},
		{"http server on all addresses", own("127.0.0.1:80"), web("srv1", ":80"), nil, []string{"http[0]: 127.0.0.1:80", "listens on :80"}},
		{"automatic redirects", own(":80"), web("remaining_auto_https_redirects", ":80"), nil,
			[]string{`the http server "remaining_auto_https_redirects"`, "auto_https disable_redirects"}},
		{"layer4 server", own(":80"), nil, front("mail", ":25", "pqproxy/[::1]:80"),
			[]string{`http[0]: :80 is taken by the layer4 server "mail"`, "listens on pqproxy/[::1]:80", "another address"}},
		{"layer4 server with a placeholder", own(":80"), nil, front("mail", ":{env.PQPROXY_TEST_PORT}"), []string{"layer4", ":{env.PQPROXY_TEST_PORT}"}},
		{"option not used", nil, web("srv0", ":80"), front("srv0", ":80"), nil},
	} {
		err := httpConflict(test.own, neighboursOf(test.web, test.l4))
		if (err == nil) != (test.want == nil) {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		for _, part := range test.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: the error does not mention %q: %v", test.name, part, err)
			}
		}
	}

	for _, test := range []struct {
		listen []string
		want   string
	}{
		{nil, ""}, {[]string{"pqproxy/:443"}, ""}, {[]string{"pqproxy/:8443"}, ":8443"}, {[]string{"pqproxy/:8443", "pqproxy/:443"}, ""},
		{[]string{":25", "tcp/:9443", "pqproxy/127.0.0.1:8444", "pqproxy/:8443"}, ":8444"}, {[]string{"pqproxy/:440-450"}, ""},
		{[]string{"pqproxy/:0", "pqproxy/:8000-8001"}, ":8000"},
	} {
		if got := httpsPort(neighboursOf(nil, &layer4.App{Servers: map[string]*layer4.Server{"front": {Listen: test.listen}}})); got != test.want {
			t.Errorf("%q: redirects go to port %q, want %q", test.listen, got, test.want)
		}
	}
}

// tryLoadSites loads a config of the given global options and sites. Whatever they are, the root of its local CA is kept
// out of this machine's trust store: with auto_https off, the adapter forgets skip_install_trust.
func (e *edge) tryLoadSites(options, sites string) error {
	e.t.Helper()
	config := `{
		admin off
		persist_config off
		skip_install_trust
		storage file_system $DIR/storage
		log default {
			output pqproxy_test
			format json
		}
		` + options + `
	}
	` + sites
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(e.expand(config)), nil)
	if err != nil {
		e.t.Fatalf("adapting: %v", err)
	}
	adapted = withApp(e.t.(*testing.T), adapted, "pki", map[string]any{
		"certificate_authorities": map[string]any{"local": map[string]any{"install_trust": false}},
	})
	return caddy.Load(adapted, true)
}

// TestHTTPConflictsAtStart loads configs whose servers would share a port, in whatever order Caddy starts apps. The port
// is kept for the test by a socket that lets Caddy's own join it.
func TestHTTPConflictsAtStart(t *testing.T) {
	pqtest.Leaks(t)
	e, addr := startPlainEdge(t)
	free, err := caddy.ParseNetworkAddress("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := free.Listen(t.Context(), 0, net.ListenConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.(net.Listener).Close()
	_, port, _ := net.SplitHostPort(ln.(net.Listener).Addr().String())

	option := "pqproxy {\nhttp 127.0.0.1:" + port + "\n}\n"
	for _, test := range []struct {
		name, sites, options string
		want                 []string
	}{
		{"site", "http://127.0.0.1:" + port + " {\nbind 127.0.0.1\nrespond no\n}\n", "http_port " + port, []string{`the http server "srv0"`}},
		{"automatic redirects", "https://site.example.com:0 {\nbind 127.0.0.1\ntls internal\n}\n", "http_port " + port,
			[]string{`the http server "remaining_auto_https_redirects"`, "auto_https disable_redirects"}},
		{"layer4", "", "layer4 {\n127.0.0.1:" + port + " {\nroute {\npqproxy\n}\n}\n}\n", []string{`the layer4 server "srv0"`}},
	} {
		for range 5 {
			err := e.tryLoadSites(test.options+"\n"+option, test.sites)
			for _, part := range append(test.want, "pqproxy app module: start: http[0]: 127.0.0.1:"+port+" is taken by ") {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Fatalf("%s: the error does not mention %q: %v", test.name, part, err)
				}
			}
		}
	}
	if a := ask(t, addr, "GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n"); a.status != http.StatusPermanentRedirect {
		t.Errorf("the config before answers with %d", a.status)
	}
	// What the error advises works.
	ln.(net.Listener).Close()
	if err := e.tryLoadSites("auto_https disable_redirects\nhttp_port "+port+"\n"+option, "https://site.example.com:0 {\nbind 127.0.0.1\ntls internal\n}\n"); err != nil {
		t.Errorf("without the redirects: %v", err)
	}
}

// TestHTTP01Handler has the handler in a site of Caddy's on port 80: names of ours are redirected, others are the
// site's, also after reloads, and also where the site redirects everything.
func TestHTTP01Handler(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	load := func(site, domains string) (addr string) {
		t.Helper()
		before := len(e.log.all(func(l logLine) bool { return l.str("msg") == "port 0 listener" }))
		options := "auto_https off\n" + frontDoor + "\npqproxy {\n" + domains + "\n}"
		if err := e.tryLoadSites(options, "http://:0 {\nbind 127.0.0.1\n"+site+"\n}\n"); err != nil {
			t.Fatal(err)
		}
		lines := e.log.all(func(l logLine) bool { return l.str("msg") == "port 0 listener" })
		if len(lines) <= before {
			t.Fatal("no http server has started")
		}
		return lines[len(lines)-1].str("actual_address")
	}
	for _, site := range []string{
		"pqproxy_http01\nrespond {path} 418",
		"respond {path} 418\npqproxy_http01",
		"redir https://elsewhere.example{uri} 302\npqproxy_http01",
		"rewrite * /rewritten\nrespond {path} 418\npqproxy_http01",
	} {
		addr := load(site, plainDomains)
		for host, want := range map[string]string{
			"app.example.com": "https://app.example.com", "x.wild.example.com:8080": "https://x.wild.example.com",
			"b.example.com": "", "nobody.example": "", "127.0.0.1": "",
		} {
			const target = "//evil.example/%2F?a=b;c"
			a := ask(t, addr, "POST "+target+" HTTP/1.1\r\nHost: "+host+"\r\nContent-Length: 0\r\n\r\n")
			location := a.header.Get("Location")
			switch {
			case want != "" && (a.status != http.StatusPermanentRedirect || location != want+target):
				t.Errorf("%s, %s: status %d to %q", site, host, a.status, location)
			case want == "" && a.status != http.StatusTeapot && location != "https://elsewhere.example"+target:
				t.Errorf("%s, %s: status %d", site, host, a.status)
			}
		}
	}
	addr := load("pqproxy_http01\nrespond site 418", "")
	if a := ask(t, addr, "GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n"); a.status != http.StatusTeapot || a.body != "site" {
		t.Errorf("without the domain: status %d, %q", a.status, a.body)
	}
}

// TestHTTP01HandlerAsks asks for challenges of ours, leaves Caddy's to Caddy, and steps aside where there is nothing to
// say: no config in force, or a request that came by TLS.
func TestHTTP01HandlerAsks(t *testing.T) {
	pqtest.Leaks(t)
	answer := func(w http.ResponseWriter, r *http.Request) bool {
		_, _ = io.WriteString(w, "token.thumbprint")
		return true
	}
	s, _ := startPlain(t, usualHTTPBounds, func(h *http01) { h.answer = answer })
	next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		w.WriteHeader(http.StatusTeapot)
		return nil
	})
	get := func(url string) *httptest.ResponseRecorder {
		t.Helper()
		w := httptest.NewRecorder()
		if err := new(HTTP01).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, url, nil), next); err != nil {
			t.Error(err)
		}
		return w
	}
	const challenge = "http://nobody.example/.well-known/acme-challenge/token"
	if w := get(challenge); w.Code != http.StatusTeapot {
		t.Errorf("no config is in force, and the status is %d", w.Code)
	}
	inForce.Store(s) // until Destruct
	if w := get(challenge); w.Code != http.StatusOK || w.Body.String() != "token.thumbprint" {
		t.Errorf("a challenge gets %d, %q", w.Code, w.Body)
	}
	if w := get("http://app.example.com/x"); w.Code != http.StatusPermanentRedirect || w.Header().Get("Location") != "https://app.example.com/x" {
		t.Errorf("a name of ours gets %d to %q", w.Code, w.Header().Get("Location"))
	}
	for _, url := range []string{"http://nobody.example/", "https://app.example.com/", "https://app.example.com/.well-known/acme-challenge/token"} {
		if w := get(url); w.Code != http.StatusTeapot {
			t.Errorf("%s gets %d", url, w.Code)
		}
	}
}

// onceListener gives one connection away.
type onceListener struct{ conns chan net.Conn }

func (l onceListener) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (onceListener) Close() error   { return nil }
func (onceListener) Addr() net.Addr { return new(net.TCPAddr) }

// scriptedConn is a client that has sent everything, and what it got.
type scriptedConn struct {
	net.Conn
	in     io.Reader
	mu     sync.Mutex
	out    bytes.Buffer
	once   sync.Once
	closed chan struct{}
}

func (c *scriptedConn) Read(p []byte) (int, error) { return c.in.Read(p) }
func (c *scriptedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}
func (c *scriptedConn) Close() error                     { c.once.Do(func() { close(c.closed) }); return nil }
func (*scriptedConn) LocalAddr() net.Addr                { return new(net.TCPAddr) }
func (*scriptedConn) RemoteAddr() net.Addr               { return new(net.TCPAddr) }
func (*scriptedConn) SetDeadline(time.Time) error        { return nil }
func (*scriptedConn) SetReadDeadline(t time.Time) error  { return nil }
func (*scriptedConn) SetWriteDeadline(t time.Time) error { return nil }

// FuzzHTTP01 sends any bytes. Whatever they are, each answer is an empty 404, a fault of the client's, or a redirect to
// https and a name of ours.
func FuzzHTTP01(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n",
		"GET //evil.example/%2F?a#b HTTP/1.1\r\nHost: A.wild.example.com.:80\r\n\r\nHEAD /\\x HTTP/1.0\r\nHost: b.example.com\r\n\r\n",
		"GET http://user@app.example.com@evil.example/x HTTP/1.1\r\nHost: app.example.com\r\n\r\n",
		"GET http://app.example.com:80?x HTTP/1.1\r\nHost: [::1]\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: app.example.com\r\n\r\n",
		"CONNECT app.example.com:443 HTTP/1.1\r\nHost: app.example.com\r\n\r\n",
		"GET x:.evil.example HTTP/1.1\r\nHost: app.example.com\r\n\r\n",
		"POST /.well-known/acme-challenge/\xff HTTP/1.1\r\nHost: app.example.com\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET /\r\nHost: app.example.com\r\n\r\n",
		"\x16\x03\x01\x02\x00",
	} {
		f.Add([]byte(seed))
	}
	var panicked atomic.Bool
	s, _ := startPlain(f, usualHTTPBounds, nil)
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if p := recover(); p != nil {
					panicked.Store(true)
					panic(p)
				}
			}()
			s.http01.server.Handler.ServeHTTP(w, r)
		}),
		MaxHeaderBytes: s.http01.server.MaxHeaderBytes, DisableGeneralOptionsHandler: true,
		Protocols: s.http01.server.Protocols, ErrorLog: s.http01.server.ErrorLog,
	}
	ln := onceListener{make(chan net.Conn)}
	f.Cleanup(func() { close(ln.conns) })
	go func() { _ = server.Serve(ln) }()
	f.Fuzz(func(t *testing.T, sent []byte) {
		c := &scriptedConn{in: bytes.NewReader(sent), closed: make(chan struct{})}
		ln.conns <- c
		<-c.closed
		if panicked.Load() {
			t.Fatal("a request panicked")
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for r := bufio.NewReader(&c.out); ; {
			if _, err := r.Peek(1); err == io.EOF {
				return
			}
			response, err := http.ReadResponse(r, &http.Request{Method: http.MethodHead}) // our bodies are empty
			if err != nil {
				t.Fatalf("the answer cannot be read: %v", err)
			}
			switch location := response.Header.Get("Location"); {
			case response.StatusCode == http.StatusPermanentRedirect:
				checkLocation(t, location)
			case location != "":
				t.Fatalf("status %d with location %q", response.StatusCode, location)
			case response.StatusCode == http.StatusNotFound:
			case response.StatusCode >= 400 && response.StatusCode < 500,
				response.StatusCode == http.StatusNotImplemented, response.StatusCode == http.StatusHTTPVersionNotSupported:
				return // net/http's own, with a text, and then it closes
			default:
				t.Fatalf("status %d", response.StatusCode)
			}
			if response.ContentLength > 0 || response.TransferEncoding != nil {
				t.Fatalf("status %d has a body", response.StatusCode)
			}
		}
	})
}

// checkLocation wants a location on https and a name of plainDomains that is not suspended.
func checkLocation(t *testing.T, location string) {
	t.Helper()
	u, err := url.Parse(location)
	if err != nil {
		// Paths may have what url.Parse refuses; the part before them must still be ours.
		if u, err = url.Parse(location[:strings.IndexByte(strings.TrimPrefix(location, "https://"), '/')+len("https://")]); err != nil {
			t.Fatalf("the location %q cannot be read: %v", location, err)
		}
	}
	label, isWild := strings.CutSuffix(u.Host, ".wild.example.com")
	if u.Scheme != "https" || u.User != nil || u.Host != "app.example.com" && (!isWild || label == "" || strings.Contains(label, ".")) {
		t.Fatalf("the location is %q", location)
	}
	if !strings.HasPrefix(location, "https://"+u.Host+"/") || strings.ContainsFunc(location, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		t.Fatalf("the location is %q", location)
	}
}
