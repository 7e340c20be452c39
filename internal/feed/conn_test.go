package feed

import (
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

func digest(s string) [sha512.Size]byte { return sha512.Sum512([]byte(s)) }

// TestReuse asks for one thing after the other on one connection, whatever the answers.
func TestReuse(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			leavesNothing(t)
			var status atomic.Int32
			s := serve(t, protocol, func(w http.ResponseWriter, r *http.Request) {
				if want := "HTTP/2.0"; (protocol == "h2") != (r.Proto == want) {
					t.Errorf("asked over %s", r.Proto)
				}
				w.WriteHeader(int(status.Load()))
				if status.Load() != 304 {
					io.WriteString(w, strings.Repeat(set, 1000))
				}
			})
			c := s.client(t)
			after := uint64(1)
			for _, code := range []int32{200, 304, 410, 200, 500, 401, 307, 200} {
				status.Store(code)
				answer, err := c.Fetch(t.Context(), Request{ETag: "e", After: &after})
				if (err != nil) != (code == 500 || code == 401 || code == 307) {
					t.Fatalf("%d: %v", code, err)
				}
				if err == nil {
					read(t, answer)
				}
			}
			if accepted, open := s.counts(); accepted != 1 || open != 1 {
				t.Errorf("there were %d connections, %d are open", accepted, open)
			}
			c.Close()
			pqtest.Wait(t, "the connection to be closed", func() bool {
				_, open := s.counts()
				return open == 0
			})
			status.Store(200)
			get(t, c, Request{})
		})
	}
}

// TestStale has the server close the connection between two requests, as all do at some time.
func TestStale(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			leavesNothing(t)
			s := serve(t, protocol, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, set) })
			c := s.client(t)
			for range 3 {
				if _, got := get(t, c, Request{}); got != set {
					t.Errorf("got %q", got)
				}
				s.CloseClientConnections()
			}
		})
	}
}

func TestTLS(t *testing.T) {
	leavesNothing(t)
	ca := pqtest.NewCA(t)
	ok := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, set) }
	s := serve(t, "h2", ok)
	mutual := serve(t, "h2", ok, func(cfg *tls.Config) {
		cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool()
	})
	certificate := func(cert tls.Certificate) func(*Config) {
		return func(cfg *Config) {
			cfg.TLS = mutual.tls.Clone()
			cfg.TLS.Certificates = []tls.Certificate{cert}
		}
	}
	expired := ca.IssueWith(t, func(cert *x509.Certificate) { cert.NotAfter = time.Now().Add(-time.Minute) }, "edge")

	if _, got := get(t, s.client(t), Request{}); got != set {
		t.Errorf("got %q", got)
	}
	if _, got := get(t, mutual.client(t, certificate(ca.Issue(t, "edge"))), Request{}); got != set {
		t.Errorf("with a client certificate, got %q", got)
	}
	fails(t, s.client(t, func(cfg *Config) { cfg.TLS = new(tls.Config) }), Request{}, Unreachable, "x509: certificate signed by unknown authority")
	fails(t, s.client(t, func(cfg *Config) { cfg.TLS = &tls.Config{RootCAs: ca.Pool()} }), Request{}, Unreachable, "x509: certificate signed by unknown authority")
	fails(t, s.client(t, func(cfg *Config) { cfg.TLS = &tls.Config{RootCAs: s.tls.RootCAs, ServerName: "other.example"} }), Request{}, Unreachable,
		"x509: certificate is valid for feed.invalid, not other.example")
	alerted(t, mutual.client(t), "tls: certificate required")
	alerted(t, mutual.client(t, certificate(expired)), "tls: expired certificate")
	fails(t, newClient(t, strings.Replace(s.URL, "https:", "http:", 1)), Request{}, Status, "Client sent an HTTP request to an HTTPS server")
	fails(t, newClient(t, strings.Replace(serve(t, "http/1.1", ok).URL, "http:", "https:", 1)), Request{}, Unreachable, "does not look like a TLS handshake")

	// The configuration is a copy.
	cfg := s.tls.Clone()
	c := newClient(t, s.URL, func(c *Config) { c.TLS = cfg })
	cfg.RootCAs = nil
	get(t, c, Request{})
}

// alerted wants a Fetch to fail with the server's alert. It asks again if the server's reset was quicker than our
// first words, as may be on loopback: then nobody reads the alert.
func alerted(t *testing.T, c *Client, alert string) {
	t.Helper()
	var err error
	for range 20 {
		var answer *Answer
		answer, err = c.Fetch(t.Context(), Request{})
		if e := failed(t, answer, err); e.Reason != Unreachable || strings.Contains(err.Error(), "could not be established") {
			t.Fatalf("got %s: %v", e.Reason, err)
		}
		if strings.Contains(err.Error(), alert) {
			return
		}
	}
	t.Errorf("got %v, want %s", err, alert)
}

// TestExplain has the alert be read before anybody asks for it, as the transport may.
func TestExplain(t *testing.T) {
	s := serve(t, "h2", func(http.ResponseWriter, *http.Request) {}, func(cfg *tls.Config) { cfg.ClientAuth = tls.RequireAnyClientCert })
	cfg := s.tls.Clone()
	cfg.ServerName = "127.0.0.1"
	conn := pqtest.Dial(t, s.Listener.Addr().String(), cfg)
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Fatal("the server takes a client without a certificate")
	}
	a := newClient(t, "https://host").begin(t.Context(), 0, "")
	defer a.end()
	httptrace.ContextClientTrace(a.ctx).GotConn(httptrace.GotConnInfo{Conn: conn})
	if err := a.explain(io.EOF); !strings.Contains(err.Error(), "tls: certificate required") {
		t.Errorf("got %v", err)
	}
	a.cancel(nil)
	if err := a.explain(io.EOF); err != io.EOF {
		t.Errorf("when cancelled, got %v", err)
	}
}

// TestConnectBound has a server, and a proxy, take a connection and say nothing.
func TestConnectBound(t *testing.T) {
	for _, proxy := range []bool{false, true} {
		t.Run(fmt.Sprintf("proxy=%t", proxy), func(t *testing.T) {
			leavesNothing(t)
			closed := make(chan error, 1)
			addr := listen(t, func(conn net.Conn) {
				_, err := io.Copy(io.Discard, conn)
				closed <- err
			})
			c := newClient(t, "https://"+addr+"/feed?"+secretQuery)
			c.transport.TLSHandshakeTimeout = 0 // which would do it too, later
			if proxy {
				c.transport.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: addr, User: url.UserPassword("user", "sekrit")})
			}
			c.connect = 50 * time.Millisecond
			if e := fails(t, c, Request{Wait: time.Hour}, Unreachable, "no connection within 50ms"); !e.Retryable() {
				t.Error("not retryable")
			}
			if err := <-closed; err != nil && strings.Contains(err.Error(), "timeout") {
				t.Error("the connection was left open")
			}
		})
	}
}

// TestGoodbyes has a server speak HTTP/2 and, at each request, say that it was not seen and close. The transport
// tries again without end; there were hundreds of handshakes a second.
func TestGoodbyes(t *testing.T) {
	leavesNothing(t)
	ca := pqtest.NewCA(t)
	cfg := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "127.0.0.1")}, NextProtos: []string{"h2"}}
	var goodbyes atomic.Int32
	addr := listen(t, func(raw net.Conn) {
		conn := tls.Server(raw, cfg)
		if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		framer := http2.NewFramer(conn, conn)
		framer.WriteSettings()
		for {
			frame, err := framer.ReadFrame()
			if err != nil {
				return
			}
			if _, ok := frame.(*http2.HeadersFrame); ok {
				goodbyes.Add(1)
				framer.WriteGoAway(0, http2.ErrCodeNo, nil)
				conn.CloseWrite()
				io.Copy(io.Discard, conn)
				return
			}
		}
	})
	c := newClient(t, "https://"+addr, func(cfg *Config) { cfg.TLS = &tls.Config{RootCAs: ca.Pool()} })
	if e := fails(t, c, Request{}, Unreachable, "the server took the request 4 times and did not answer"); !e.Retryable() {
		t.Error("not retryable")
	}
	if goodbyes.Load() != maxTries {
		t.Errorf("%d requests were sent", goodbyes.Load())
	}
}

// TestTriesExtendNothing has the transport try again after a while.
func TestTriesExtendNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, "http://host")
		a := c.begin(t.Context(), 25*time.Second, "")
		defer a.end()
		start := time.Now()
		time.Sleep(9 * time.Second)
		httpGotConn(a)
		time.Sleep(25 * time.Second)
		httpGotConn(a)
		<-a.ctx.Done()
		if took := time.Since(start); took != 65*time.Second {
			t.Errorf("it took %v", took)
		}
		if e := failed(t, nil, a.broken(Truncated, io.EOF)); e.Reason != Unreachable || !strings.Contains(e.Error(), "no answer within 55s") {
			t.Errorf("got %s: %v", e.Reason, e)
		}
	})
}

// TestOver sets a bound when the attempt is over: none begins.
func TestOver(t *testing.T) {
	c := newClient(t, "http://host")
	a := c.begin(t.Context(), 0, "")
	timer := a.timer
	a.end()
	if a.within(time.Hour, Unreachable, ""); a.timer != timer {
		t.Error("the attempt has a bound")
	}
}

const (
	childURL = "PQPROXY_FEED_TEST_URL"
	childCA  = "PQPROXY_FEED_TEST_CA"
)

// TestProxyFromEnvironment fetches in another process, since net/http reads the environment once, and from a
// name that no resolver knows, since loopback needs no proxy.
func TestProxyFromEnvironment(t *testing.T) {
	if os.Getenv(childURL) != "" {
		fetchAsChild(t)
		return
	}
	leavesNothing(t)
	origin := serve(t, "h2", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "by CONNECT") })
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.Host+" "+r.Header.Get("Proxy-Authorization")+" "+r.Header.Get("Authorization"))
		if r.Method != http.MethodConnect {
			io.WriteString(w, "by proxy")
			return
		}
		tunnel(t, w, origin.Listener.Addr().String())
	}))
	t.Cleanup(proxy.Close)

	child := func(feed string, proxy string) string {
		t.Helper()
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestProxyFromEnvironment$")
		cmd.Env = append(os.Environ(), childURL+"="+feed, childCA+"="+string(origin.ca.PEM()), "HTTP_PROXY="+proxy, "HTTPS_PROXY="+proxy, "NO_PROXY=", "no_proxy=", "REQUEST_METHOD=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	through := strings.Replace(proxy.URL, "http://", "http://user:sekrit@", 1)
	if out := child("http://feed.invalid/feed", through); !strings.Contains(out, "by proxy") {
		t.Error(out)
	}
	if out := child("https://feed.invalid/feed", through); !strings.Contains(out, "by CONNECT") {
		t.Error(out)
	}
	basic := "Basic dXNlcjpzZWtyaXQ="
	if want := []string{"GET feed.invalid " + basic + " Bearer " + testToken, "CONNECT feed.invalid:443 " + basic + " "}; fmt.Sprint(asked) != fmt.Sprint(want) {
		t.Errorf("the proxy was asked %q, want %q", asked, want)
	}
	proxy.Close()
	if out := child("https://feed.invalid/feed", through); !strings.Contains(out, "proxyconnect tcp: dial tcp 127.0.0.1:") || strings.Contains(out, "sekrit") {
		t.Error(out)
	}
}

// fetchAsChild prints what it fetches.
func fetchAsChild(t *testing.T) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(os.Getenv(childCA)))
	c := newClient(t, os.Getenv(childURL), func(cfg *Config) { cfg.TLS = &tls.Config{RootCAs: roots} })
	answer, err := c.Fetch(t.Context(), Request{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(read(t, answer))
}

// tunnel connects a CONNECT request to addr, until either side ends.
func tunnel(t *testing.T, w http.ResponseWriter, addr string) {
	up, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer up.Close()
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	done := make(chan struct{})
	go func() {
		io.Copy(up, conn)
		up.Close()
		close(done)
	}()
	io.Copy(conn, up)
	conn.Close()
	<-done
}
