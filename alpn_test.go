package pqproxy

import (
	"crypto/tls"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

func offering(protos ...string) func(*tls.Config) {
	return func(cfg *tls.Config) { cfg.NextProtos = protos }
}

// TestALPN offers lists to upstreams of every kind: the client gets what the upstream selects.
func TestALPN(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	cert := []tls.Certificate{e.ca.Issue(t, "app.example.com")}
	for _, test := range []struct {
		name     string
		upstream []string // protocols of a TLS upstream; "plain": plain TCP
		alpn     string   // of the domain
		offered  []string
		want     string
		alert    int
	}{
		{"h2", []string{"h2", "http/1.1"}, "", []string{"h2", "http/1.1"}, "h2", 0},
		{"http/1.1 only upstream", []string{"http/1.1"}, "", []string{"h2", "http/1.1"}, "http/1.1", 0},
		{"imap", []string{"imap"}, "", []string{"imap"}, "imap", 0},
		{"arbitrary", []string{"x-own/7"}, "", []string{"foo", "x-own/7"}, "x-own/7", 0},
		{"acme-tls/1 is not passed on", []string{"acme-tls/1", "h2"}, "", []string{"acme-tls/1", "h2"}, "h2", 0},
		{"acme-tls/1 alone", []string{"acme-tls/1"}, "", []string{"acme-tls/1"}, "", 120},
		{"none offered", []string{"h2"}, "", nil, "", 0},
		{"upstream without ALPN", nil, "", []string{"h2", "http/1.1"}, "", 0},
		{"upstream refuses", []string{"imap"}, "", []string{"h2"}, "", 120},
		{"plain, http/1.1 offered", []string{"plain"}, "", []string{"h2", "http/1.1"}, "http/1.1", 0},
		{"plain, h2 alone", []string{"plain"}, "", []string{"h2"}, "", 120},
		{"plain, imap", []string{"plain"}, "", []string{"imap"}, "", 0},
		{"plain, alpn set", []string{"plain"}, "alpn imap h2", []string{"h2", "imap"}, "imap", 0},
		{"alpn set, none in common", []string{"plain"}, "alpn imap", []string{"h2"}, "", 120},
		{"alpn set replaces learning", []string{"h2", "http/1.1"}, "alpn http/1.1", []string{"h2", "http/1.1"}, "http/1.1", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg, options := pqtest.UpstreamConfig{}, ""
			if len(test.upstream) != 1 || test.upstream[0] != "plain" {
				cfg.TLS = &tls.Config{Certificates: cert, NextProtos: test.upstream}
				options = "{\n tls_server_name app.example.com\n tls_ca $CA\n}"
			}
			up := pqtest.StartUpstream(t, cfg)
			e.load(fmt.Sprintf(`domain app.example.com {
				upstream %s %s
				%s
				certificate $CHAIN $KEY
			}`, up.Addr(), options, test.alpn))
			for range 2 { // learned, then remembered
				c, err := e.handshake(e.client("app.example.com", offering(test.offered...)))
				if alert := alertOfHandshake(err); alert != test.alert || alert == 0 && err != nil {
					t.Fatalf("handshake: %v, want alert %d", err, test.alert)
				}
				if test.alert != 0 {
					if r := e.log.nextRecord(); r.str("end_reason") != "alpn_mismatch" {
						t.Errorf("end_reason %s (%s)", r.str("end_reason"), r.str("error"))
					}
					continue
				}
				if got := c.ConnectionState().NegotiatedProtocol; got != test.want {
					t.Errorf("the client got %q, want %q", got, test.want)
				}
				echo(t, c, "hi")
				c.Close()
				if r := e.log.nextRecord(); r.str("alpn") != test.want || r.str("end_reason") != "done" {
					t.Errorf("record has alpn %q, end_reason %s (%s)", r.str("alpn"), r.str("end_reason"), r.str("error"))
				}
				if conns := up.Conns(); cfg.TLS != nil && conns[len(conns)-1].State.NegotiatedProtocol != test.want {
					t.Errorf("the upstream has %q, the client %q", conns[len(conns)-1].State.NegotiatedProtocol, test.want)
				}
			}
		})
	}
}

// TestALPNLearnedOnce counts the connections of our own: one for each upstream and list, however many clients
// come at once, announced as ours where the domain sends PROXY.
func TestALPNLearnedOnce(t *testing.T) {
	pqtest.Leaks(t)
	for _, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			e := startEdge(t, "")
			up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{Proxy: true, TLS: &tls.Config{
				Certificates: []tls.Certificate{e.ca.Issue(t, "app.example.com")}, NextProtos: []string{"h2"},
			}})
			e.load(fmt.Sprintf(`domain app.example.com {
				upstream %s {
					tls_ca $CA
				}
				proxy_protocol %s
				certificate $CHAIN $KEY
			}`, up.Addr(), version))
			var clients sync.WaitGroup
			for range 8 {
				clients.Go(func() {
					c, err := tls.Dial("tcp", e.addr, e.client("app.example.com", offering("h2", "http/1.1")))
					if err != nil {
						t.Error(err)
						return
					}
					if got := c.ConnectionState().NegotiatedProtocol; got != "h2" {
						t.Errorf("a client got %q", got)
					}
					echo(t, c, "hi")
					c.Close()
				})
			}
			clients.Wait()
			for range 8 {
				e.log.nextRecord()
			}
			local := 0
			for _, c := range up.Conns() {
				if c.Err != nil {
					t.Errorf("a connection failed at the upstream: %v", c.Err)
				}
				if c.Header != nil && c.Header.Command == proxyproto.LOCAL {
					local++
				}
			}
			if all := up.Accepted(); local != 1 || all != 9 {
				t.Errorf("the upstream had %d connections, %d of our own; want 9 and 1", all, local)
			}
		})
	}
}

// TestALPNUpstreamChanges has an upstream that selects otherwise than it did: the connection ends by reset, and
// the next one is right.
func TestALPNUpstreamChanges(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	var mu sync.Mutex
	protos := []string{"h2"}
	cert := []tls.Certificate{e.ca.Issue(t, "app.example.com")}
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{TLS: &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			mu.Lock()
			defer mu.Unlock()
			return &tls.Config{Certificates: cert, NextProtos: protos}, nil
		},
	}})
	e.load(fmt.Sprintf(`domain app.example.com {
		upstream %s {
			tls_server_name app.example.com
			tls_ca $CA
		}
		certificate $CHAIN $KEY
	}`, up.Addr()))
	connect := func() *tls.Conn {
		return e.dial(e.client("app.example.com", offering("h2", "http/1.1")))
	}
	c := connect()
	echo(t, c, "hi")
	c.Close()
	e.log.nextRecord()

	mu.Lock()
	protos = []string{"http/1.1"}
	mu.Unlock()
	if _, end := pqtest.ReadToEnd(t, connect()); end != pqtest.RST {
		t.Errorf("the client saw %s, want a reset", end)
	}
	if r := e.log.nextRecord(); r.str("end_reason") != "upstream_alpn" {
		t.Errorf("end_reason %s (%s)", r.str("end_reason"), r.str("error"))
	}
	c = connect()
	if got := c.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("after forgetting, the client got %q", got)
	}
	echo(t, c, "hi")
	c.Close()
}

// TestALPNUpstreamGone has no usable upstream while ALPN is learned: that is before our ServerHello, so the client gets
// an alert.
func TestALPNUpstreamGone(t *testing.T) {
	pqtest.Leaks(t)
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	up.Close()
	e := startEdge(t, fmt.Sprintf(`domain app.example.com {
		upstream %s {
			tls
		}
		certificate $CHAIN $KEY
	}`, up.Addr()))
	_, err := e.handshake(e.client("app.example.com", offering("h2")))
	if alertOfHandshake(err) != 80 {
		t.Errorf("handshake: %v, want internal_error", err)
	}
	r := e.log.nextRecord()
	if r.str("end_reason") != "upstream_refused" || r.str("upstream") != up.Addr() || !strings.Contains(r.str("error"), "ALPN") {
		t.Errorf("record: %v", r)
	}
}
