package acmetest

import (
	"context"
	"crypto/x509"
	"log"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// start runs a server that validates over HTTP-01 at a solver, with a client of it.
func start(t *testing.T, opts Options) (*Server, *client) {
	t.Helper()
	solver := startHTTPSolver(t)
	s := Start(t, opts)
	s.ForwardHTTP(solver.addr())
	return s, newClient(t, s, solver.solvers())
}

func TestObtainHTTP01(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	chain := c.obtainChain("app.example.com", "b.example.com")
	if err := verify(s, 0, chain, "b.example.com"); err != nil {
		t.Error(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(s.RootPEM(0)) || !pool.Equal(s.Roots(0)) {
		t.Error("RootPEM and Roots differ")
	}

	for _, name := range []string{"app.example.com", "B.Example.com", ""} {
		if certs := s.Issued(name); len(certs) != 1 || !certs[0].Equal(chain[0]) {
			t.Errorf("Issued(%q) returned %d certificates, want the one", name, len(certs))
		}
		if n := s.Orders(name); n != 1 {
			t.Errorf("Orders(%q) is %d, want 1", name, n)
		}
	}
	if len(s.Issued("c.example.com")) != 0 || s.Orders("c.example.com") != 0 {
		t.Error("something was counted for another name")
	}
	for endpoint, want := range map[Endpoint]int{
		Directory: 1, NewNonce: 1, NewAccount: 1, NewOrder: 1, Challenge: 2, Finalize: 1, Certificate: 1, RenewalInfo: 1, RevokeCert: 0,
	} {
		if n := s.Count(Match{Endpoint: endpoint}); n != want {
			t.Errorf("%d requests to %s, want %d", n, endpoint, want)
		}
	}
	// All that is about one of the names knows it.
	for _, endpoint := range []Endpoint{NewOrder, Authorization, Challenge, Finalize, Order, Certificate, RenewalInfo} {
		if s.Count(Match{endpoint, "app.example.com"}) == 0 || s.Count(Match{endpoint, "c.example.com"}) != 0 {
			t.Errorf("requests to %s are not told apart by name", endpoint)
		}
	}
	if n := s.Count(Match{Challenge, "app.example.com"}); n != 1 {
		t.Errorf("%d challenges for one of two names, want 1", n)
	}
	for _, r := range s.Requests() {
		if r.Status/100 != 2 || r.Problem != "" || r.Endpoint == "" {
			t.Errorf("%+v: want an answer 2xx of an endpoint", r)
		}
	}
}

// TestObtainTLSALPN01 also has Pebble connect to a port that is given, without our relay.
func TestObtainTLSALPN01(t *testing.T) {
	t.Parallel()
	solver := startTLSSolver(t)
	solvers := map[string]acmez.Solver{acme.ChallengeTypeTLSALPN01: solver}
	for name, opts := range map[string]Options{"relay": {}, "port": {TLSPort: solver.ln.Addr().(*net.TCPAddr).Port}} {
		t.Run(name, func(t *testing.T) {
			s := Start(t, opts)
			if opts.TLSPort == 0 {
				s.ForwardTLS(solver.ln.Addr().String())
			}
			if err := verify(s, 0, newClient(t, s, solvers).obtainChain("app.example.com"), "app.example.com"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestHTTPPort(t *testing.T) {
	t.Parallel()
	solver := startHTTPSolver(t)
	s := Start(t, Options{HTTPPort: solver.Listener.Addr().(*net.TCPAddr).Port})
	newClient(t, s, solver.solvers()).obtain("app.example.com")
	if solver.hits == 0 {
		t.Error("nobody came to the port")
	}
}

// TestCertmagic obtains and renews as Caddy does, with a listener of ours for the challenge.
func TestCertmagic(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{Profiles: []Profile{{"long", 90 * 24 * time.Hour}, {"week", 7 * 24 * time.Hour}}})
	var cache *certmagic.Cache
	var config *certmagic.Config
	cache = certmagic.NewCache(certmagic.CacheOptions{
		Logger:           zap.NewNop(),
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return config, nil },
	})
	defer cache.Stop()
	config = certmagic.New(cache, certmagic.Config{Storage: &certmagic.FileStorage{Path: t.TempDir()}, Logger: zap.NewNop()})

	// certmagic opens the port for the time of the challenge, or finds that somebody has.
	var issuer *certmagic.ACMEIssuer
	ready := make(chan struct{})
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-ready
		if !issuer.HandleHTTPChallenge(w, r) {
			http.NotFound(w, r)
		}
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(ln) })
	defer wg.Wait()
	defer server.Close()
	s.ForwardHTTP(ln.Addr().String())

	issuer = certmagic.NewACMEIssuer(config, certmagic.ACMEIssuer{
		CA: s.URL(), TestCA: s.URL(), TrustedRoots: s.CA().Pool(), Email: "test@example.com", Agreed: true, Profile: "week",
		ListenHost: "127.0.0.1", AltHTTPPort: ln.Addr().(*net.TCPAddr).Port, DisableTLSALPNChallenge: true, Logger: zap.NewNop(),
	})
	config.Issuers = []certmagic.Issuer{issuer}
	close(ready)
	ctx, cancel := context.WithTimeout(context.Background(), pqtest.Timeout)
	defer cancel()
	if err := config.ObtainCertSync(ctx, "app.example.com"); err != nil {
		t.Fatal(err)
	}
	issued := s.Issued("app.example.com")
	if len(issued) != 1 || lifetime(issued[0]) != 7*24*time.Hour {
		t.Fatalf("%d certificates were issued, want one for a week", len(issued))
	}
	if err := config.RenewCertSync(ctx, "app.example.com", true); err != nil {
		t.Fatal(err)
	}
	if n := len(s.Issued("app.example.com")); n != 2 {
		t.Errorf("%d certificates were issued, want one more", n)
	}
}

// lifetime counts the last second (RFC 5280, section 4.1.2.5).
func lifetime(cert *x509.Certificate) time.Duration {
	return cert.NotAfter.Sub(cert.NotBefore) + time.Second
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{Profiles: []Profile{{"soon", 30 * time.Second}, {"short", 160 * time.Hour}, {"long", 45 * 24 * time.Hour}}})
	for _, profile := range s.opts.Profiles {
		chains, err := c.tryObtain(order{names: []string{"app.example.com"}, profile: profile.Name})
		if err != nil {
			t.Fatal(err)
		}
		if got := lifetime(chains[0][0]); got != profile.Validity {
			t.Errorf("%s is valid for %v, want %v", profile.Name, got, profile.Validity)
		}
	}
	// Pebble would take any of them, so that several tries are needed to see it.
	for range 4 {
		if got := lifetime(c.obtain("app.example.com")); got != 30*time.Second {
			t.Errorf("without a profile it is valid for %v, want the first's 30s", got)
		}
	}
	classic, client := start(t, Options{})
	if got := lifetime(client.obtain("app.example.com")); got != 90*24*time.Hour {
		t.Errorf("by default %v, want 90 days", got)
	}
	directory, err := client.GetDirectory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, profile := range classic.opts.Profiles {
		if _, ok := directory.Meta.Profiles[profile.Name]; !ok {
			t.Errorf("profile %q is not offered", profile.Name)
		}
	}
}

func TestAlternateChains(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{AlternateChains: 2, ChainLength: 2})
	chains, err := c.tryObtain(order{names: []string{"app.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(chains) != 3 {
		t.Fatalf("got %d chains, want 3", len(chains))
	}
	for i, chain := range chains {
		if len(chain) != 3 {
			t.Errorf("chain %d has %d certificates, want 3", i, len(chain))
		}
		for root := range chains {
			if err := verify(s, root, chain, "app.example.com"); (err == nil) != (root == i) {
				t.Errorf("chain %d under root %d: %v", i, root, err)
			}
		}
	}
}

func TestTwoServers(t *testing.T) {
	t.Parallel()
	solver := startHTTPSolver(t)
	servers := [2]*Server{Start(t, Options{}), Start(t, Options{})}
	var clients [2]*client
	for i, s := range servers {
		s.ForwardHTTP(solver.addr())
		clients[i] = newClient(t, s, solver.solvers())
	}
	remove := servers[0].Inject(Match{}, 0, Problem(http.StatusServiceUnavailable, "serverInternal", "down for maintenance", 0))
	clients[0].refused("serverInternal", "app.example.com")
	chain := clients[1].obtainChain("app.example.com")
	for i, s := range servers {
		if n := len(s.Issued("app.example.com")); n != i {
			t.Errorf("server %d has issued %d, want %d", i, n, i)
		}
		if err := verify(s, 0, chain, "app.example.com"); (err == nil) != (i == 1) {
			t.Errorf("under the root of server %d: %v", i, err)
		}
	}
	remove()
	clients[0].obtain("app.example.com")
}

func TestLogger(t *testing.T) {
	t.Parallel()
	var text lockedBuffer
	solver := startHTTPSolver(t)
	s := Start(t, Options{Logger: log.New(&text, "pebble: ", 0)})
	s.ForwardHTTP(solver.addr())
	newClient(t, s, solver.solvers()).obtain("app.example.com")
	s.Close()
	if !strings.Contains(text.String(), "pebble: Issued certificate serial") {
		t.Errorf("the log is %q", text.String())
	}
}

// lockedBuffer may be read while validations write their last words.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// TestClose counts what is left of two servers, one with a request and a validation that would go on.
func TestClose(t *testing.T) {
	pqtest.Leaks(t)
	before := pebbleGoroutines()
	solver := startHTTPSolver(t)
	for range 2 {
		s := Start(t, Options{})
		s.ForwardHTTP(solver.addr())
		c := newClient(t, s, solver.solvers())
		c.obtain("app.example.com")

		s.Inject(Match{}, 1, Hold(nil))
		requests := s.Count(Match{})
		held := make(chan error, 1)
		go func() {
			_, err := c.GetAccount(context.Background(), c.account)
			held <- err
		}()
		pqtest.Wait(t, "the request", func() bool { return s.Count(Match{}) > requests })
		s.Close()
		if err := <-held; err == nil {
			t.Error("the request was answered")
		}
		s.Close()
	}

	// Nobody answers this one's challenge: the relay does not know where to.
	s := Start(t, Options{})
	c := newClient(t, s, solver.solvers())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	obtained := make(chan error, 1)
	go func() {
		_, err := c.ObtainCertificateForSANs(ctx, c.account, c.key, []string{"app.example.com"})
		obtained <- err
	}()
	pqtest.Wait(t, "the validation", func() bool {
		s.relays[0].mu.Lock()
		defer s.relays[0].mu.Unlock()
		return len(s.relays[0].conns) > 0
	})
	cancel()
	<-obtained
	s.Close()
	solver.Close()
	pqtest.Wait(t, "the end of Pebble's goroutines", func() bool { return pebbleGoroutines() <= before })
}

func pebbleGoroutines() int {
	stacks := make([]byte, 1<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "created by github.com/letsencrypt/pebble/")
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]Options{
		"profile without name":   {Profiles: []Profile{{"", time.Hour}}},
		"two of a name":          {Profiles: []Profile{{"a", time.Hour}, {"a", time.Minute}}},
		"half a second":          {Profiles: []Profile{{"a", 500 * time.Millisecond}}},
		"Retry-After":            {RetryAfter: time.Millisecond},
		"Retry-After of renewal": {RenewalRetryAfter: -time.Second},
		"key":                    {ExternalAccounts: map[string]string{"kid": "=="}},
		"no key":                 {ExternalAccounts: map[string]string{"kid": ""}},
		"percentage":             {RejectNonces: 101},
	} {
		if opts.check() == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	if err := (Options{Profiles: DefaultProfiles()}).check(); err != nil {
		t.Error(err)
	}
}
