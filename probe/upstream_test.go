package probe

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// serveThrough is serve with a listener of somebody else's around the real one.
func serveThrough(t *testing.T, wrap func(net.Listener) net.Listener, handle func(net.Conn)) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { acceptAll(wrap(listener), &running, handle) })
	t.Cleanup(func() {
		listener.Close()
		running.Wait()
	})
	return listener.Addr().String()
}

// readsProxy is a listener that reads PROXY headers by a policy.
func readsProxy(policy proxyproto.Policy) func(net.Listener) net.Listener {
	return func(l net.Listener) net.Listener {
		return &proxyproto.Listener{Listener: l, ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) { return policy, nil }}
	}
}

func plainListener(l net.Listener) net.Listener { return l }

// serveHTTP is net/http on a listener.
func serveHTTP(t *testing.T, wrap func(net.Listener) net.Listener, status int) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })}
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(wrap(listener)) })
	t.Cleanup(func() {
		server.Close()
		running.Wait()
	})
	return listener.Addr().String()
}

// behindV1 wants a header of version 1, and closes without one.
func behindV1(handle func(net.Conn)) func(net.Conn) {
	return func(conn net.Conn) {
		line := make([]byte, len(headerV1))
		if _, err := io.ReadFull(conn, line); err == nil && string(line) == string(headerV1) {
			handle(conn)
		}
	}
}

// counted counts connections.
func counted(n *atomic.Int32) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		n.Add(1)
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
}

const upstreamPatience = 20 * time.Second // for servers that answer

func TestUpstream(t *testing.T) {
	ca := newCA(t)
	leaf := ca.issue(t, leafTemplate("app.test"))
	tlsServer := func(wrap func(net.Listener) net.Listener, change func(*tls.Config)) func(*testing.T) string {
		return func(t *testing.T) string {
			config := &tls.Config{Certificates: []tls.Certificate{leaf}, NextProtos: []string{"h2", "http/1.1"}}
			if change != nil {
				change(config)
			}
			return serveThrough(t, wrap, func(conn net.Conn) { serveConn(conn, config) })
		}
	}
	httpServer := func(wrap func(net.Listener) net.Listener, status int) func(*testing.T) string {
		return func(t *testing.T) string { return serveHTTP(t, wrap, status) }
	}
	withTLS := &UpstreamTLS{ServerName: "app.test", RootCAs: ca.pool}
	hybrid := UpstreamResult{Reachable: true, TLSVersion: "TLS 1.3", Group: "X25519MLKEM768", PostQuantum: true, ALPN: "h2", ChainOK: true}
	with := func(r UpstreamResult, change func(*UpstreamResult)) UpstreamResult { change(&r); return r }
	for _, test := range []struct {
		name      string
		server    func(*testing.T) string
		options   UpstreamOptions
		want      UpstreamResult // Error: a part of it
		recommend string         // JSON without the text; empty: none
		text      string         // in that text
		most      int32          // connections
	}{
		{
			name: "TLS", server: tlsServer(plainListener, nil), options: UpstreamOptions{TLS: withTLS, ProxyProtocol: "off"},
			want:      with(hybrid, func(r *UpstreamResult) { r.ProxyProtocol = ProxyRefused }),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"off"}`, text: "post-quantum (X25519MLKEM768); post_quantum require", most: 3,
		},
		{
			name: "TLS that reads PROXY", server: tlsServer(readsProxy(proxyproto.USE), nil), options: UpstreamOptions{TLS: withTLS, ProxyProtocol: "off"},
			want:      with(hybrid, func(r *UpstreamResult) { r.ProxyProtocol = ProxyAccepted }),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"v2"}`, text: "reads PROXY headers (v1 and v2)", most: 3,
		},
		{
			name: "TLS that requires PROXY", server: tlsServer(readsProxy(proxyproto.REQUIRE), nil), options: UpstreamOptions{TLS: withTLS, ProxyProtocol: "v2"},
			want:      with(hybrid, func(r *UpstreamResult) { r.ProxyProtocol = ProxyRequired }),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"v2"}`, text: "only behind a PROXY header (v1 and v2)", most: 6,
		},
		{
			name: "TLS that requires PROXY, and gets none", server: tlsServer(readsProxy(proxyproto.REQUIRE), nil), options: UpstreamOptions{TLS: withTLS, ProxyProtocol: "off"},
			want:      with(hybrid, func(r *UpstreamResult) { r.ProxyProtocol, r.Error = ProxyRequired, "set proxy_protocol to v2" }),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"v2"}`, most: 6,
		},
		{
			name: "TLS that requires version 1", options: UpstreamOptions{TLS: withTLS, ProxyProtocol: "v2"},
			server: func(t *testing.T) string {
				config := &tls.Config{Certificates: []tls.Certificate{leaf}, NextProtos: []string{"h2"}}
				return serve(t, behindV1(func(conn net.Conn) { serveConn(conn, config) }))
			},
			want: with(hybrid, func(r *UpstreamResult) {
				r.ProxyProtocol, r.Error = ProxyRequired, "does not read PROXY headers of version v2: set proxy_protocol to v1"
			}),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"v1"}`, most: 6,
		},
		{
			name: "TLS that chokes on what is sent", server: tlsServer(plainListener, nil), options: UpstreamOptions{TLS: withTLS, ProxyProtocol: "v1"},
			want:      with(hybrid, func(r *UpstreamResult) { r.ProxyProtocol, r.Error = ProxyRefused, "chokes on it" }),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"off"}`, most: 3,
		},
		{
			name: "TLS where plain TCP is sent", server: tlsServer(plainListener, nil), options: UpstreamOptions{Asked: "app.test"},
			want: with(hybrid, func(r *UpstreamResult) {
				r.ProxyProtocol, r.ChainOK, r.Error = ProxyRefused, false, "sends plain TCP to this upstream, but the server speaks TLS: add tls"
			}),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"off"}`, text: "tls.ca_pem", most: 3,
		},
		{
			name: "post-quantum after a retry", server: tlsServer(plainListener, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.SecP384r1MLKEM1024} }),
			options: UpstreamOptions{TLS: &UpstreamTLS{ServerName: "app.test", RootCAs: ca.pool, PostQuantum: "require"}},
			want: with(hybrid, func(r *UpstreamResult) {
				r.Group, r.HelloRetryRequest, r.ProxyProtocol = "SecP384r1MLKEM1024", true, ProxyRefused
			}),
			recommend: `{"tls":{"post_quantum":"require"},"proxy_protocol":"off"}`, text: "HelloRetryRequest", most: 3,
		},
		{
			name: "classical", server: tlsServer(plainListener, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }),
			options: UpstreamOptions{TLS: &UpstreamTLS{ServerName: "app.test", RootCAs: ca.pool, PostQuantum: "require"}},
			want: with(hybrid, func(r *UpstreamResult) {
				r.Group, r.PostQuantum, r.ProxyProtocol, r.Error = "X25519", false, ProxyRefused, "requires post-quantum key exchange with this upstream, and the server negotiates X25519"
			}),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"off"}`, text: "enable the group X25519MLKEM768", most: 3,
		},
		{
			name: "TLS 1.2", server: tlsServer(plainListener, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), options: UpstreamOptions{TLS: withTLS},
			want: with(hybrid, func(r *UpstreamResult) {
				r.TLSVersion, r.Group, r.PostQuantum, r.ProxyProtocol, r.Error = "TLS 1.2", "X25519", false, ProxyRefused, "no TLS 1.3"
			}),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"off"}`, text: "speaks TLS 1.2 at best", most: 3,
		},
		{
			name: "TLS 1.0", server: tlsServer(plainListener, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }), options: UpstreamOptions{TLS: withTLS},
			want: with(hybrid, func(r *UpstreamResult) {
				r.TLSVersion, r.Group, r.PostQuantum, r.ProxyProtocol, r.Error = "TLS 1.0", "X25519", false, ProxyRefused, "no TLS 1.3"
			}),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"off"}`, most: 3,
		},
		{
			name: "HTTP/1.1 alone", server: tlsServer(plainListener, func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }), options: UpstreamOptions{TLS: withTLS},
			want:      with(hybrid, func(r *UpstreamResult) { r.ALPN, r.ProxyProtocol = "http/1.1", ProxyRefused }),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"off"}`, most: 3,
		},
		{
			name: "another ALPN alone", server: tlsServer(plainListener, func(c *tls.Config) { c.NextProtos = []string{"imap"} }), options: UpstreamOptions{TLS: withTLS},
			want:      with(hybrid, func(r *UpstreamResult) { r.ALPN, r.ProxyProtocol = "", ProxyRefused }),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"off"}`, most: 4,
		},
		{
			name: "another ALPN alone, behind PROXY", server: tlsServer(readsProxy(proxyproto.REQUIRE), func(c *tls.Config) { c.NextProtos = []string{"imap"} }),
			options: UpstreamOptions{TLS: withTLS},
			want:    UpstreamResult{Reachable: true, ProxyProtocol: ProxyRequired, Error: "no application protocol"}, most: 6,
		},
		{
			name: "another name", server: tlsServer(plainListener, nil), options: UpstreamOptions{TLS: &UpstreamTLS{RootCAs: ca.pool}, Asked: "*.other.test"},
			want: with(hybrid, func(r *UpstreamResult) {
				r.ChainOK, r.ProxyProtocol, r.Error = false, ProxyRefused, "not good for pqproxy-probe.other.test"
			}),
			recommend: `{"tls":{"server_name":"app.test","post_quantum":"prefer"},"proxy_protocol":"off"}`, text: "set tls.server_name", most: 3,
		},
		{
			name: "another CA", server: tlsServer(plainListener, nil), options: UpstreamOptions{TLS: &UpstreamTLS{}, Asked: "app.test"},
			want: with(hybrid, func(r *UpstreamResult) {
				r.ChainOK, r.ProxyProtocol, r.Error = false, ProxyRefused, "unknown authority"
			}),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"off"}`, text: "tls.ca_pem", most: 3,
		},
		{
			name: "another CA, and nobody minds", server: tlsServer(plainListener, nil), options: UpstreamOptions{TLS: &UpstreamTLS{InsecureSkipVerify: true}, Asked: "app.test"},
			want:      with(hybrid, func(r *UpstreamResult) { r.ChainOK, r.ProxyProtocol = false, ProxyRefused }),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"off"}`, most: 3,
		},
		{
			name: "client certificate", server: tlsServer(plainListener, func(c *tls.Config) { c.ClientAuth = tls.RequestClientCert }), options: UpstreamOptions{TLS: withTLS},
			want:      with(hybrid, func(r *UpstreamResult) { r.ProxyProtocol = ProxyRefused }),
			recommend: `{"tls":{"post_quantum":"prefer"},"proxy_protocol":"off"}`, text: "asks for a client certificate", most: 3,
		},
		{
			name: "alert", options: UpstreamOptions{TLS: withTLS},
			server: tlsServer(plainListener, func(c *tls.Config) {
				c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, errors.New("no") }
			}),
			want: UpstreamResult{Reachable: true, ProxyProtocol: ProxyUnknown, Error: "refuses the TLS handshake (remote error: tls: internal error)"}, most: 4,
		},
		{
			name: "HTTP", server: httpServer(plainListener, 200), options: UpstreamOptions{ProxyProtocol: "off"},
			want:      UpstreamResult{Reachable: true, ProxyProtocol: ProxyRefused},
			recommend: `{"tls":null,"proxy_protocol":"off"}`, text: "HTTP over plain TCP", most: 4,
		},
		{
			name: "HTTP that has nothing", server: httpServer(plainListener, 404), options: UpstreamOptions{ProxyProtocol: "v2"},
			want:      UpstreamResult{Reachable: true, ProxyProtocol: ProxyRefused, Error: "chokes on it"},
			recommend: `{"tls":null,"proxy_protocol":"off"}`, most: 4,
		},
		{
			name: "HTTP that always refuses", server: httpServer(plainListener, 400),
			want:      UpstreamResult{Reachable: true, ProxyProtocol: ProxyUnknown},
			recommend: `{"tls":null}`, text: "could not be told", most: 4,
		},
		{
			name: "HTTP that reads PROXY", server: httpServer(readsProxy(proxyproto.USE), 403),
			want:      UpstreamResult{Reachable: true, ProxyProtocol: ProxyAccepted},
			recommend: `{"tls":null,"proxy_protocol":"v2"}`, most: 4,
		},
		{
			name: "HTTP that requires PROXY", server: httpServer(readsProxy(proxyproto.REQUIRE), 200), options: UpstreamOptions{ProxyProtocol: "v1"},
			want:      UpstreamResult{Reachable: true, ProxyProtocol: ProxyRequired},
			recommend: `{"tls":null,"proxy_protocol":"v2"}`, most: 6,
		},
		{
			name: "HTTP where TLS is sent", server: httpServer(plainListener, 200), options: UpstreamOptions{TLS: withTLS},
			want:      UpstreamResult{Reachable: true, ProxyProtocol: ProxyRefused, Error: "the server speaks plain HTTP"},
			recommend: `{"tls":null,"proxy_protocol":"off"}`, most: 4,
		},
		{
			name: "speaks first", server: func(t *testing.T) string {
				return serve(t, func(conn net.Conn) { io.WriteString(conn, "SSH-2.0-x\r\n"); waitForClose(conn) })
			},
			want:      UpstreamResult{Reachable: true, ProxyProtocol: ProxyUnknown},
			recommend: `{"tls":null}`, text: "neither TLS nor HTTP", most: 2,
		},
		{
			name: "terminal sequences", server: func(t *testing.T) string { return serve(t, answer("\x1b[2J\x1b[31m")) }, options: UpstreamOptions{TLS: withTLS},
			want:      UpstreamResult{Reachable: true, ProxyProtocol: ProxyUnknown, Error: "does not speak TLS"},
			recommend: `{"tls":null}`, most: 2,
		},
		{
			name: "endless bytes", server: func(t *testing.T) string {
				return serve(t, func(conn net.Conn) {
					for line := strings.Repeat("\x16\x03\x03\x00\x00", 1000); ; {
						if _, err := io.WriteString(conn, line); err != nil {
							return
						}
					}
				})
			},
			want: UpstreamResult{Reachable: true, ProxyProtocol: ProxyUnknown}, recommend: `{"tls":null}`, most: 2,
		},
		{
			name: "closes at once", server: func(t *testing.T) string { return serve(t, func(net.Conn) {}) },
			want: UpstreamResult{Reachable: true, ProxyProtocol: ProxyUnknown, Error: "answers neither TLS nor HTTP"}, most: 6,
		},
		{
			name: "resets", server: func(t *testing.T) string {
				return serve(t, func(conn net.Conn) { readHello(conn); conn.(*net.TCPConn).SetLinger(0) })
			},
			want: UpstreamResult{Reachable: true, ProxyProtocol: ProxyUnknown, Error: "answers neither TLS nor HTTP"}, most: 6,
		},
		{
			name: "silent", server: func(t *testing.T) string { return serve(t, waitForClose) }, options: UpstreamOptions{Timeout: 200 * time.Millisecond},
			want: UpstreamResult{Reachable: true, ProxyProtocol: ProxyUnknown, Error: "the server accepts connections, but"}, most: 6,
		},
		{
			name: "slow", options: UpstreamOptions{Timeout: 200 * time.Millisecond, TLS: withTLS}, server: func(t *testing.T) string {
				return serve(t, func(conn net.Conn) { // the head of a record that never ends
					io.WriteString(conn, "\x16\x03\x03\x40\x00\x02")
					waitForClose(conn)
				})
			},
			want: UpstreamResult{Reachable: true, ProxyProtocol: ProxyUnknown, Error: "the server"}, recommend: "any", most: 6,
		},
		{
			name: "closed port", server: closedPort,
			want: UpstreamResult{ProxyProtocol: ProxyUnknown, Error: "the connection was refused"}, most: 1,
		},
		{
			name: "no port", server: func(*testing.T) string { return "app.test" },
			want: UpstreamResult{ProxyProtocol: ProxyUnknown, Error: "give host:port"},
		},
		{
			name: "socket", server: func(*testing.T) string { return "unix//run/docker.sock" },
			want: UpstreamResult{ProxyProtocol: ProxyUnknown, Error: "give host:port"},
		},
		{
			name: "name that is none", server: func(*testing.T) string { return "127.0.0.1:80" }, options: UpstreamOptions{Asked: "x\r\nEvil: 1"},
			want: UpstreamResult{ProxyProtocol: ProxyUnknown, Error: "cannot be in a host"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			o := test.options
			o.Dial = test.server(t)
			if o.Timeout == 0 {
				o.Timeout = upstreamPatience
			}
			var connections atomic.Int32
			o.DialContext = counted(&connections)
			got := Upstream(t.Context(), o)
			if n := connections.Load(); n > test.most {
				t.Errorf("%d connections, want at most %d", n, test.most)
			}
			if (got.Error == "") != (test.want.Error == "") || !strings.Contains(got.Error, test.want.Error) {
				t.Errorf("error %q, want %q", got.Error, test.want.Error)
			}
			if got.Dial != o.Dial {
				t.Errorf("dial %q", got.Dial)
			}
			facts := *got
			facts.Dial, facts.Recommend, facts.Error = "", nil, test.want.Error
			if facts != test.want {
				t.Errorf("got %+v, want %+v", facts, test.want)
			}
			if test.recommend == "any" {
				return
			}
			if (got.Recommend != nil) != (test.recommend != "") {
				t.Fatalf("recommends %+v, want %s", got.Recommend, test.recommend)
			}
			if got.Recommend == nil {
				return
			}
			if got.Recommend.Text == "" || !strings.Contains(got.Recommend.Text, test.text) {
				t.Errorf("text %q, want %q", got.Recommend.Text, test.text)
			}
			if text := withoutText(t, *got.Recommend); text != test.recommend {
				t.Errorf("recommends %s, want %s", text, test.recommend)
			}
		})
	}
}

func withoutText(t *testing.T, r Recommendation) string {
	t.Helper()
	r.Text = ""
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(string(text), `,"text":""`, "", 1)
}

func TestUpstreamResultJSON(t *testing.T) {
	got := Upstream(t.Context(), UpstreamOptions{Dial: closedPort(t)})
	text, err := json.Marshal(got)
	want := `"reachable":false,"tls_version":"","group":"","post_quantum":false,"hello_retry_request":false,"alpn":"","chain_ok":false,"proxy_protocol":"unknown","recommend":null,"error":"the connection was refused`
	if err != nil || !strings.Contains(string(text), want) {
		t.Errorf("%s, %v, want %s", text, err, want)
	}
}

// The policy decides at each connection, and its words reach the owner.
func TestUpstreamDenied(t *testing.T) {
	var dials atomic.Int32
	got := Upstream(t.Context(), UpstreamOptions{Dial: "app.test:443", DialContext: func(context.Context, string, string) (net.Conn, error) {
		dials.Add(1)
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("10.0.0.1 is in 10.0.0.0/8\x1b[2J")}
	}})
	if got.Reachable || got.Error != `no connection: 10.0.0.1 is in 10.0.0.0/8\x1b[2J` || dials.Load() != 1 {
		t.Errorf("%+v after %d dials", got, dials.Load())
	}
}

// The errors of package net name the name servers of this host.
func TestUpstreamUnresolved(t *testing.T) {
	for _, test := range []struct {
		err  net.DNSError
		want string
	}{
		{net.DNSError{IsNotFound: true}, "does not resolve"},
		{net.DNSError{IsTimeout: true}, "in time"},
		{net.DNSError{}, "could not be resolved"},
	} {
		test.err.Err, test.err.Name, test.err.Server = "server misbehaving", "app.test", "10.9.8.7:53"
		got := Upstream(t.Context(), UpstreamOptions{Dial: "app.test:443", DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &test.err}
		}})
		if !strings.Contains(got.Error, test.want) || strings.Contains(got.Error, "10.9.8.7") {
			t.Errorf("error %q, want %q", got.Error, test.want)
		}
	}
}

// A name of several servers would give facts of one and the PROXY answer of another.
func TestUpstreamStaysWithOneServer(t *testing.T) {
	ca := newCA(t)
	address, _ := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(t, leafTemplate("app.test"))}})
	var mu sync.Mutex
	var dialled []string
	got := Upstream(t.Context(), UpstreamOptions{Dial: "app.test:443", TLS: &UpstreamTLS{RootCAs: ca.pool}, Timeout: upstreamPatience,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			mu.Lock()
			dialled = append(dialled, addr)
			mu.Unlock()
			var d net.Dialer
			return d.DialContext(ctx, network, address)
		}})
	if !got.ChainOK || got.Error != "" {
		t.Errorf("%+v", got)
	}
	if want := fmt.Sprint([]string{"app.test:443", address, address}); fmt.Sprint(dialled) != want {
		t.Errorf("dialled %v, want %v", dialled, want)
	}
}

// None is answered before all are there, so that one after the other would never end.
func TestUpstreamsInParallel(t *testing.T) {
	ca := newCA(t)
	config := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, leafTemplate("app.test"))}}
	const n = 4
	var arrived sync.WaitGroup
	arrived.Add(n)
	var all []UpstreamOptions
	for range n {
		var first sync.Once
		address := serve(t, func(conn net.Conn) {
			first.Do(arrived.Done)
			arrived.Wait()
			serveConn(conn, config)
		})
		all = append(all, UpstreamOptions{Dial: address, TLS: &UpstreamTLS{RootCAs: ca.pool}, Asked: "app.test", Timeout: upstreamPatience})
	}
	for i, got := range Upstreams(t.Context(), all) {
		if got.Dial != all[i].Dial || got.Error != "" || got.ProxyProtocol != ProxyRefused {
			t.Errorf("%+v", got)
		}
	}
}

func TestUpstreamEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	address := serve(t, func(conn net.Conn) {
		cancel()
		waitForClose(conn)
	})
	got := Upstream(ctx, UpstreamOptions{Dial: address, Timeout: time.Hour})
	if got.Error == "" || got.ProxyProtocol != ProxyUnknown || got.Recommend != nil {
		t.Errorf("%+v", got)
	}
}

// A server that has no time for the header connections was not shown to refuse headers.
func TestUpstreamWithoutTimeForHeaders(t *testing.T) {
	ca := newCA(t)
	config := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, leafTemplate("app.test"))}}
	ctx, cancel := context.WithCancel(t.Context())
	var connections atomic.Int32
	address := serve(t, func(conn net.Conn) {
		if connections.Add(1) == 1 {
			serveConn(conn, config)
			return
		}
		cancel()
		waitForClose(conn)
	})
	got := Upstream(ctx, UpstreamOptions{Dial: address, TLS: &UpstreamTLS{RootCAs: ca.pool}, Asked: "app.test", Timeout: upstreamPatience})
	if !got.ChainOK || got.ProxyProtocol != ProxyUnknown || !strings.Contains(got.Error, "time was over") || got.Recommend == nil {
		t.Errorf("%+v", got)
	}
}

func FuzzStatusOf(f *testing.F) {
	for _, seed := range []string{"HTTP/1.1 200 OK\r\n", "HTTP/1.0 404", "HTTP/2 200", "HTTP/1.1 9", "HTTP/1.1 -12", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if status := statusOf(line); status < 0 || status > 999 || status != 0 && !strings.HasPrefix(string(line), "HTTP/1.") {
			t.Errorf("%q: %d", line, status)
		}
	})
}
