package acmetest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// client is acmez with an account, and what it needs to answer challenges.
type client struct {
	acmez.Client
	tb      testing.TB
	account acme.Account
	key     crypto.Signer // of certificates

	mu          sync.Mutex // guards what follows
	retryAfters []string   // headers seen
}

// newClient makes a client with a new account that can solve what solvers do, by challenge type.
func newClient(tb testing.TB, s *Server, solvers map[string]acmez.Solver) *client {
	tb.Helper()
	c := anonymous(tb, s, solvers)
	account, err := c.NewAccount(context.Background(), c.account)
	if err != nil {
		tb.Fatalf("making an account: %v", err)
	}
	c.account = account
	return c
}

// anonymous is newClient without the account.
func anonymous(tb testing.TB, s *Server, solvers map[string]acmez.Solver) *client {
	tb.Helper()
	c := &client{tb: tb, key: newKey(tb)}
	c.account = acme.Account{TermsOfServiceAgreed: true, PrivateKey: newKey(tb)}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.CA().Pool()}, ForceAttemptHTTP2: true}
	tb.Cleanup(transport.CloseIdleConnections)
	c.Client = acmez.Client{
		Client: &acme.Client{
			Directory:    s.URL(),
			HTTPClient:   &http.Client{Transport: &witness{transport, c}},
			PollInterval: 5 * time.Millisecond,
			PollTimeout:  pqtest.Timeout,
		},
		ChallengeSolvers: solvers,
	}
	return c
}

// witness is a client's transport, which notes the Retry-After of what was answered.
type witness struct {
	http.RoundTripper
	client *client
}

func (w *witness) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := w.RoundTripper.RoundTrip(r)
	if err == nil {
		if after := resp.Header.Get("Retry-After"); after != "" && !strings.Contains(r.URL.Path, "renewalInfo") {
			w.client.mu.Lock()
			defer w.client.mu.Unlock()
			w.client.retryAfters = append(w.client.retryAfters, after)
		}
	}
	return resp, err
}

func (c *client) sawRetryAfter() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.retryAfters...)
}

// order is what obtain orders.
type order struct {
	names    []string
	profile  string
	replaces *x509.Certificate
}

// tryObtain returns the chains that an order ends with, each leaf first.
func (c *client) tryObtain(o order) ([][]*x509.Certificate, error) {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), pqtest.Timeout)
	defer cancel()
	csr, err := acmez.NewCSR(c.key, o.names)
	if err != nil {
		c.tb.Fatal(err)
	}
	params, err := acmez.OrderParametersFromCSR(c.account, csr)
	if err != nil {
		c.tb.Fatal(err)
	}
	params.Profile, params.Replaces = o.profile, o.replaces
	certs, err := c.ObtainCertificate(ctx, params)
	if err != nil {
		return nil, err
	}
	var chains [][]*x509.Certificate
	for _, cert := range certs {
		chains = append(chains, parseChain(c.tb, cert.ChainPEM))
	}
	return chains, nil
}

// obtain obtains a certificate and returns the leaf of its default chain.
func (c *client) obtain(names ...string) *x509.Certificate {
	c.tb.Helper()
	return c.obtainChain(names...)[0]
}

func (c *client) obtainChain(names ...string) []*x509.Certificate {
	c.tb.Helper()
	chains, err := c.tryObtain(order{names: names})
	if err != nil {
		c.tb.Fatalf("obtaining a certificate for %q: %v", names, err)
	}
	return chains[0]
}

// refused expects that obtaining fails with a problem.
func (c *client) refused(kind string, names ...string) acme.Problem {
	c.tb.Helper()
	_, err := c.tryObtain(order{names: names})
	return problemOf(c.tb, err, kind)
}

func problemOf(tb testing.TB, err error, kind string) acme.Problem {
	tb.Helper()
	var problem acme.Problem
	if !errors.As(err, &problem) || problem.Type != errorNamespace+kind {
		tb.Fatalf("error is %v, want the problem %s", err, kind)
	}
	return problem
}

func parseChain(tb testing.TB, text []byte) []*x509.Certificate {
	tb.Helper()
	var chain []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			tb.Fatal(err)
		}
		chain = append(chain, cert)
	}
	if len(chain) == 0 {
		tb.Fatalf("no chain in %q", text)
	}
	return chain
}

// verify verifies a chain for a name to a root of the server.
func verify(s *Server, root int, chain []*x509.Certificate, name string) error {
	pool := x509.NewCertPool()
	for _, cert := range chain[1:] {
		pool.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{DNSName: name, Roots: s.Roots(root), Intermediates: pool})
	return err
}

func newKey(tb testing.TB) crypto.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// httpSolver answers HTTP-01 on a listener of its own.
type httpSolver struct {
	*httptest.Server
	mu   sync.Mutex
	keys map[string]string // key authorisations by host and path
	hits int
}

func startHTTPSolver(tb testing.TB) *httpSolver {
	h := &httpSolver{keys: make(map[string]string)}
	h.Server = httptest.NewServer(h)
	tb.Cleanup(h.Close)
	return h
}

func (h *httpSolver) addr() string { return h.Listener.Addr().String() }

func (h *httpSolver) solvers() map[string]acmez.Solver {
	return map[string]acmez.Solver{acme.ChallengeTypeHTTP01: h}
}

func (h *httpSolver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, _, err := net.SplitHostPort(r.Host)
	h.mu.Lock()
	key := h.keys[host+r.URL.Path]
	h.hits++
	h.mu.Unlock()
	if err != nil || key == "" {
		http.NotFound(w, r)
		return
	}
	_, _ = w.Write([]byte(key))
}

func (h *httpSolver) Present(_ context.Context, chal acme.Challenge) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keys[chal.Identifier.Value+chal.HTTP01ResourcePath()] = chal.KeyAuthorization
	return nil
}

func (h *httpSolver) CleanUp(_ context.Context, chal acme.Challenge) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.keys, chal.Identifier.Value+chal.HTTP01ResourcePath())
	return nil
}

// tlsSolver answers TLS-ALPN-01 on a listener of its own.
type tlsSolver struct {
	ln    net.Listener
	wg    sync.WaitGroup
	mu    sync.Mutex
	certs map[string]*tls.Certificate
}

func startTLSSolver(tb testing.TB) *tlsSolver {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := &tlsSolver{ln: ln, certs: make(map[string]*tls.Certificate)}
	s.wg.Go(s.serve)
	tb.Cleanup(func() { ln.Close(); s.wg.Wait() })
	return s
}

func (s *tlsSolver) serve() {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(pqtest.Timeout))
			_ = tls.Server(conn, &tls.Config{
				NextProtos: []string{acmez.ACMETLS1Protocol},
				GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
					s.mu.Lock()
					defer s.mu.Unlock()
					return s.certs[hello.ServerName], nil
				},
			}).Handshake()
		})
	}
}

func (s *tlsSolver) Present(_ context.Context, chal acme.Challenge) error {
	cert, err := acmez.TLSALPN01ChallengeCert(chal)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.certs[chal.Identifier.Value] = cert
	return nil
}

func (s *tlsSolver) CleanUp(context.Context, acme.Challenge) error { return nil }
