package acmetest

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

func TestRejectNonces(t *testing.T) {
	t.Parallel()
	solver := startHTTPSolver(t)
	settings := func() string {
		environment.Lock() // of tests that start a server at this moment
		defer environment.Unlock()
		return os.Getenv("PEBBLE_WFE_NONCEREJECT")
	}
	before := settings()
	never := Start(t, Options{RejectNonces: 100})
	c := anonymous(t, never, solver.solvers())
	// The client tries for seconds, but three times will do.
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := c.NewAccount(ctx, c.account)
		ended <- err
	}()
	pqtest.Wait(t, "three refusals", func() bool {
		n := 0
		for _, r := range never.Requests() {
			if r.Endpoint == NewAccount && r.Status == http.StatusBadRequest && r.Problem == "badNonce" {
				n++
			}
		}
		return n >= 3
	})
	cancel()
	if err := <-ended; err == nil {
		t.Error("an account was made")
	}

	// The next one is none the wiser for it.
	s := Start(t, Options{})
	s.ForwardHTTP(solver.addr())
	newClient(t, s, solver.solvers()).obtain("app.example.com")
	for _, r := range s.Requests() {
		if r.Problem != "" {
			t.Errorf("%+v: want no problem", r)
		}
	}
	if now := settings(); now != before {
		t.Errorf("%q was left in the environment, where there was %q", now, before)
	}
}

func TestExternalAccounts(t *testing.T) {
	t.Parallel()
	solver := startHTTPSolver(t)
	s := Start(t, Options{ExternalAccounts: map[string]string{"kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"}})
	s.ForwardHTTP(solver.addr())
	bind := func(eab acme.EAB) (*client, error) {
		c := anonymous(t, s, solver.solvers())
		if eab.KeyID != "" {
			if err := c.account.SetExternalAccountBinding(t.Context(), c.Client.Client, eab); err != nil {
				t.Fatal(err)
			}
		}
		account, err := c.NewAccount(t.Context(), c.account)
		c.account = account
		return c, err
	}
	_, err := bind(acme.EAB{})
	problemOf(t, err, "externalAccountRequired")
	_, err = bind(acme.EAB{KeyID: "kid-1", MACKey: "AAAAZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"})
	problemOf(t, err, "unauthorized")
	c, err := bind(acme.EAB{KeyID: "kid-1", MACKey: s.opts.ExternalAccounts["kid-1"]})
	if err != nil {
		t.Fatal(err)
	}
	c.obtain("app.example.com")
}

func TestReuseAuthorizations(t *testing.T) {
	t.Parallel()
	for reuse, want := range map[bool]int{false: 3, true: 1} {
		s, c := start(t, Options{ReuseAuthorizations: reuse})
		for range 3 {
			c.obtain("app.example.com")
		}
		if n := s.Count(Match{Challenge, "app.example.com"}); n != want {
			t.Errorf("with ReuseAuthorizations %t three orders take %d challenges, want %d", reuse, n, want)
		}
	}
}

func TestHoldIssuance(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	release := s.HoldIssuance("Slow.example.com")
	done := make(chan error, 1)
	go func() {
		_, err := c.tryObtain(order{names: []string{"slow.example.com"}})
		done <- err
	}()
	slow := Match{Order, "slow.example.com"}
	pqtest.Wait(t, "two polls of the order", func() bool { return s.Count(slow) >= 2 })
	if len(s.Issued("slow.example.com")) != 1 {
		t.Error("Pebble has not signed")
	}
	other := newClient(t, s, c.ChallengeSolvers)
	other.obtain("other.example.com")
	select {
	case err := <-done:
		t.Fatalf("the client has finished: %v", err)
	default:
	}
	release()
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := len(s.Issued("")); n != 2 {
		t.Errorf("%d certificates, want 2", n)
	}

	// All names at once, twice over.
	one, two := s.HoldIssuance(""), s.HoldIssuance("")
	one()
	if !s.isHeld([]string{"other.example.com"}) {
		t.Error("one hold ended the other")
	}
	two()
	if s.isHeld([]string{"other.example.com"}) {
		t.Error("a hold does not end")
	}
}

// TestRetryAfter goes through an order by hand, since acmez would wait as it is told.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	solver := startHTTPSolver(t)
	s := Start(t, Options{RetryAfter: time.Hour})
	c := newClient(t, s, solver.solvers())
	defer s.HoldIssuance("")()
	ctx, cancel := context.WithTimeout(t.Context(), pqtest.Timeout)
	defer cancel()
	told := func(when string, n int) {
		t.Helper()
		seen := c.sawRetryAfter()
		if len(seen) != n {
			t.Fatalf("%s: Retry-After was %q, want %d in all", when, seen, n)
		}
		date, err := http.ParseTime(seen[n-1])
		if seen[n-1] != "3600" && (err != nil || time.Until(date) > time.Hour || time.Until(date) < time.Hour-time.Minute) {
			t.Errorf("%s: Retry-After is %q, want an hour", when, seen[n-1])
		}
	}

	name := acme.Identifier{Type: "dns", Value: "app.example.com"}
	o, err := c.NewOrder(ctx, c.account, acme.Order{Identifiers: []acme.Identifier{name}})
	if err != nil {
		t.Fatal(err)
	}
	authz := func() acme.Authorization {
		t.Helper()
		authz, err := c.GetAuthorization(ctx, c.account, o.Authorizations[0])
		if err != nil {
			t.Fatal(err)
		}
		return authz
	}
	for _, challenge := range authz().Challenges {
		if challenge.Type == acme.ChallengeTypeHTTP01 {
			challenge.Identifier = name
			if err := solver.Present(ctx, challenge); err != nil {
				t.Fatal(err)
			}
			if _, err := c.InitiateChallenge(ctx, c.account, challenge); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The relay does not know where to yet.
	if authz().Status != acme.StatusPending {
		t.Error("the name was validated nowhere")
	}
	told("of an authorization", 1)
	s.ForwardHTTP(solver.addr())
	pqtest.Wait(t, "the validation", func() bool { return authz().Status == acme.StatusValid })
	polls := len(c.sawRetryAfter())

	csr, err := acmez.NewCSR(c.key, []string{name.Value})
	if err != nil {
		t.Fatal(err)
	}
	finalizing, stop := context.WithCancel(ctx)
	finalized := make(chan error, 1)
	go func() {
		_, err := c.FinalizeOrder(finalizing, c.account, o, csr.Raw)
		finalized <- err
	}()
	pqtest.Wait(t, "the finalization", func() bool { return len(c.sawRetryAfter()) > polls })
	stop()
	<-finalized
	told("of an order being finalized", polls+1)
	if o, err = c.GetOrder(ctx, c.account, o); err != nil || o.Status != acme.StatusProcessing || o.Certificate != "" {
		t.Errorf("the order is %s with %q (%v), want it processing", o.Status, o.Certificate, err)
	}
	told("of an order held back", polls+2)
}

// TestPollWhileIssued: Pebble writes an order's status without a lock while it issues, and locks an order twice over to
// show it. A poll in that moment could race, or hang with all requests behind it, so that requests go in one by one.
func TestPollWhileIssued(t *testing.T) {
	t.Parallel()
	solver := startHTTPSolver(t)
	s := Start(t, Options{ReuseAuthorizations: true})
	s.ForwardHTTP(solver.addr())
	frontend := s.pebble.wfe
	s.pebble.wfe = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.pebble.mu.TryLock() {
			defer s.pebble.mu.Unlock()
			t.Errorf("%s goes in without the lock", r.URL.Path)
		}
		frontend.ServeHTTP(w, r)
	})
	c := newClient(t, s, solver.solvers())
	c.obtain("app.example.com")
	ctx, cancel := context.WithTimeout(t.Context(), pqtest.Timeout)
	defer cancel()
	csr, err := acmez.NewCSR(c.key, []string{"app.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		ready, err := c.NewOrder(ctx, c.account, acme.Order{Identifiers: []acme.Identifier{{Type: "dns", Value: "app.example.com"}}})
		if err != nil || ready.Status != acme.StatusReady {
			t.Fatalf("the order is %s (%v), want it ready", ready.Status, err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for status := ""; status != acme.StatusValid; {
					polled, err := c.GetOrder(ctx, c.account, acme.Order{Location: ready.Location})
					if err != nil {
						t.Error(err)
						return
					}
					status = polled.Status
				}
			})
		}
		if _, err := c.FinalizeOrder(ctx, c.account, ready, csr.Raw); err != nil {
			t.Error(err)
		}
		wg.Wait()
	}
	if n := len(s.Issued("app.example.com")); n != 6 {
		t.Errorf("%d certificates, want 6", n)
	}
}

// TestConcurrent has orders of one account for the same and other names at once.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := c.tryObtain(order{names: []string{"app.example.com", fmt.Sprintf("n%d.example.com", i)}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n, issued := s.Orders("app.example.com"), len(s.Issued("app.example.com")); n != 8 || issued != 8 {
		t.Errorf("%d orders and %d certificates, want 8", n, issued)
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	s.FailDNS("nx.example.com", "NXDOMAIN")
	s.FailDNS("broken.example.com", "servfail")
	s.Resolve("far.example.com", "127.0.0.9", "127.0.0.1")
	s.Resolve("six.example.com", "::ffff:127.0.0.1")
	for _, name := range []string{"nx.example.com", "broken.example.com", "far.example.com"} {
		c.refused("connection", name)
		if n := len(s.Issued(name)); n != 0 {
			t.Errorf("%s: issued %d times", name, n)
		}
	}
	c.obtain("app.example.com")
	c.obtain("six.example.com")
	for _, name := range []string{"NX.example.com.", "broken.example.com", "far.example.com"} {
		s.Resolve(name)
		c.obtain(strings.ToLower(strings.TrimSuffix(name, ".")))
	}
}
