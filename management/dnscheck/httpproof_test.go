package dnscheck

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

const (
	proofToken = "t0ken"
	proofText  = "pqproxy-verify=abc123"
)

// prover fetches from a server on this host.
func prover(t *testing.T, s *server, web *httptest.Server, allow ...string) *HTTPProver {
	t.Helper()
	policy, err := netpolicy.New(allow)
	if err != nil {
		t.Fatal(err)
	}
	return &HTTPProver{Resolver: s.resolver(t, patient), Policy: policy, Port: int(netip.MustParseAddrPort(web.Listener.Addr().String()).Port())}
}

func TestProve(t *testing.T) {
	for _, test := range []struct {
		name   string
		serve  func(http.ResponseWriter, *http.Request)
		state  State
		detail string
	}{
		{"right", func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "GET" || r.Host != "app.test" || r.URL.Path != ProofPath+proofToken || r.Header.Get("Accept-Encoding") != "" {
				w.WriteHeader(400)
			}
			fmt.Fprint(w, proofText)
		}, OK, "is right"},
		{"with a newline", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, proofText+"\r\n") }, OK, ""},
		{"another text", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "secret of "+"the host") }, Wrong, "is not the proof"},
		{"longer text", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, proofText+"4") }, Wrong, "is not the proof"},
		{"empty", func(http.ResponseWriter, *http.Request) {}, Wrong, "is not the proof"},
		{"not found", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); fmt.Fprint(w, proofText) }, Wrong, "answers 404"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+r.Host+ProofPath+"elsewhere", http.StatusFound)
		}, Wrong, "redirects"},
		{"redirect with the proof", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "https://"+r.Host)
			w.WriteHeader(301)
			fmt.Fprint(w, proofText)
		}, Wrong, "redirects"},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			for line := bytes.Repeat([]byte(" "), 4096); ; {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		}, Wrong, "longer than 1 KiB"},
		{"cut off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, proofText)
		}, Unknown, "to its end"},
		{"no HTTP", func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			io.WriteString(conn, "220 mail\r\n")
			conn.Close()
		}, Unknown, "not HTTP"},
		{"endless header", func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
			for {
				if _, err := io.WriteString(conn, "X: "+strings.Repeat("x", 1000)+"\r\n"); err != nil {
					return
				}
			}
		}, Unknown, "not HTTP"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int32
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				test.serve(w, r)
			}))
			defer web.Close()
			got := prover(t, newServer(t, "app.test. A 127.0.0.1"), web, "127.0.0.0/8").Prove(t.Context(), "app.test", proofToken, proofText)
			if got.State != test.state || !strings.Contains(got.Detail, test.detail) {
				t.Errorf("%+v, want %s, %q", got, test.state, test.detail)
			}
			if strings.Contains(got.Detail, proofText) || strings.Contains(got.Detail, "secret") {
				t.Errorf("detail %q shows what the server sent", got.Detail)
			}
			if n := requests.Load(); n != 1 {
				t.Errorf("%d requests, want one", n)
			}
		})
	}
}

// The name says where to connect: that must not become a way to what only this host can reach.
func TestProveObeysThePolicy(t *testing.T) {
	var requests atomic.Int32
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		fmt.Fprint(w, proofText)
	}))
	defer web.Close()
	s := newServer(t, "loop.test. A 127.0.0.1", "meta.test. CNAME m.test.", "m.test. A 169.254.169.254", "mapped.test. AAAA ::ffff:127.0.0.1", "zero.test. A 0.0.0.0")
	byDefault := prover(t, s, web)
	byDefault.Policy = nil
	for name, class := range map[string]string{"loop.test": "loopback", "meta.test": "cloud metadata", "mapped.test": "loopback", "zero.test": "unspecified"} {
		for what, p := range map[string]*HTTPProver{"empty policy": prover(t, s, web), "no policy": byDefault} {
			if got := p.Prove(t.Context(), name, proofToken, proofText); got.State != Wrong || !strings.Contains(got.Detail, "not public ("+class+")") {
				t.Errorf("%s, %s: %+v", name, what, got)
			}
		}
	}
	if requests.Load() != 0 {
		t.Error("a forbidden address was connected to")
	}
}

func TestProveWithoutAnswer(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	s := newServer(t, "app.test. A 127.0.0.1", "mute.test. A 127.0.0.1").do("bad.test", servfail)
	p := prover(t, s, web, "127.0.0.0/8")
	p.Port = int(netip.MustParseAddrPort(closed.Addr().String()).Port())
	for _, test := range []struct {
		name, token string
		state       State
		detail      string
	}{
		{"app.test", proofToken, Unknown, "connection failed"},
		{"gone.test", proofToken, Absent, "no address"},
		{"bad.test", proofToken, Unknown, "SERVFAIL"},
		{"*.app.test", proofToken, Off, "wildcard"},
		{"app.test", "", Off, "no proof"},
	} {
		if got := p.Prove(t.Context(), test.name, test.token, proofText); got.State != test.state || !strings.Contains(got.Detail, test.detail) {
			t.Errorf("%s: %+v, want %s, %q", test.name, got, test.state, test.detail)
		}
	}
	if got := p.Prove(t.Context(), "app.test", proofToken, ""); got.State != Off {
		t.Errorf("without a text: %+v", got) // an empty body would prove everything
	}
}

func TestProveEndsWithItsContext(t *testing.T) {
	arrived := make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done() // silent
	}))
	defer web.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	got := prover(t, newServer(t, "app.test. A 127.0.0.1"), web, "127.0.0.0/8").Prove(ctx, "app.test", proofToken, proofText)
	if got.State != Unknown {
		t.Errorf("%+v", got)
	}
}

// Of several addresses one that answers is enough: the others may be of a family that this host has not.
func TestProveTriesAllAddresses(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, proofText) }))
	defer web.Close()
	p := prover(t, newServer(t, "app.test. A 10.0.0.1", "app.test. A 127.0.0.1").do("app.test AAAA", servfail), web, "127.0.0.0/8")
	if got := p.Prove(t.Context(), "app.test", proofToken, proofText); got.State != OK {
		t.Errorf("%+v", got)
	}
}
