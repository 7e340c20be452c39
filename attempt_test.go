package pqproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// refusing is an issuer that refuses, and counts.
func refusing(name string, calls *atomic.Int64, err error) *testIssuer {
	return &testIssuer{name, func(context.Context, string, *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		calls.Add(1)
		return nil, err
	}}
}

// backOffOf reads what storage has of a name's failures.
func backOffOf(t testing.TB, st certmagic.Storage, name string) *keptBackOff {
	t.Helper()
	content, err := st.Load(context.Background(), backOffKey(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var kept keptBackOff
	if err := errors.Join(err, json.Unmarshal(content, &kept)); err != nil {
		t.Fatal(err)
	}
	return &kept
}

// waitFailed waits until a name's order has failed so often, and waits for its next attempt.
func waitFailed(t testing.TB, s *state, name string, attempts int) orderReport {
	t.Helper()
	var r orderReport
	pqtest.Wait(t, fmt.Sprintf("failure %d of %s", attempts, name), func() bool {
		r = s.certs.orders.report(name)
		return r.attempts == attempts && !r.next.IsZero()
	})
	return r
}

// TestBackOff grows, differs from name to name, and has an end; a CA that refused is left alone for longer than a name that
// does not lead here.
func TestBackOff(t *testing.T) {
	a := new(attempt)
	for _, c := range []struct {
		steps   []time.Duration
		refused bool
	}{{backOff, true}, {checkBackOff, false}} {
		for n := 1; n <= len(c.steps)+3; n++ {
			want := c.steps[min(n, len(c.steps))-1]
			seen := make(map[time.Duration]bool)
			for range 20 {
				got := a.pause(n, 0)
				if !c.refused {
					got = a.pause(5, n)
				}
				if got < want-want/4 || got > want+want/4 {
					t.Errorf("after %d failures: %s, want %s give or take a quarter", n, got, want)
				}
				seen[got] = true
			}
			if len(seen) < 10 {
				t.Errorf("after %d failures the pause is always the same", n)
			}
			if n > 1 && want < c.steps[min(n-1, len(c.steps))-1] {
				t.Errorf("after %d failures the pause is shorter", n)
			}
		}
	}
	if checkBackOff[0] >= backOff[0] || checkBackOff[len(checkBackOff)-1] >= backOff[len(backOff)-1] {
		t.Error("a name that was pointed here waits as long as one that a CA has refused")
	}
}

// TestBackOffSurvives has an edge that was refused started anew, and another one beside it: none of them asks the CA again
// before it is time.
func TestBackOffSurvives(t *testing.T) {
	st := newTestStorage(t)
	var calls atomic.Int64
	const name = "app.example.com"
	edges := 0
	start := func() *state {
		edges++
		s := newStateOn(t, st, refusing("first", &calls, errors.New("injected")))
		s.certs.start()
		serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, name)
		waitFailed(t, s, name, 1)
		return s
	}
	first := start()
	kept := backOffOf(t, st, name)
	if kept == nil || kept.Attempts != 1 || kept.Refused != 1 || kept.Error != "injected" || time.Until(kept.Next) < backOff[0]/2 {
		t.Fatalf("kept: %+v", kept)
	}
	second := start()
	first.certs.close()
	third := start()
	for i, s := range []*state{first, second, third} {
		if r := s.certs.orders.report(name); r.attempts != 1 || r.last != "injected" || !r.next.Equal(kept.Next) {
			t.Errorf("edge %d: %+v, want what was kept", i, r)
		}
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("%d edges asked the CA %d times", edges, n)
	}
	// When it is time one of them asks, and the others hear of that too.
	ripe := *kept
	ripe.Next = time.Now().Add(-time.Second)
	content, _ := json.Marshal(ripe)
	if err := st.Store(t.Context(), backOffKey(name), content); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*state{second, third} {
		o := &s.certs.orders
		o.mu.Lock()
		o.waiting[0].next = time.Now()
		o.mu.Unlock()
		o.ripen()
	}
	for _, s := range []*state{second, third} {
		waitFailed(t, s, name, 2)
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("the CA was asked %d times", n)
	}
	if again := backOffOf(t, st, name); again.Attempts != 2 || again.Next.Sub(kept.Next) < backOff[1]/2 {
		t.Errorf("kept: %+v", again)
	}
}

// TestBackOffOfKilledProcess ends a process while the CA is asked, as no Stop does: the next one does not begin at once.
func TestBackOffOfKilledProcess(t *testing.T) {
	st := newTestStorage(t)
	const name = "app.example.com"
	asked, stop := make(chan struct{}), make(chan struct{})
	killed := newStateOn(t, st, &testIssuer{"first", func(context.Context, string, *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		close(asked)
		<-stop
		return nil, errors.New("injected")
	}})
	defer close(stop)
	killed.certs.start()
	serveDomains(t, killed, "", "192.0.2.1:1", domain.Certificate{}, name)
	<-asked
	if err := st.FileStorage.Unlock(t.Context(), "issue_cert_"+name); err != nil { // as its lock becomes stale
		t.Fatal(err)
	}
	var calls atomic.Int64
	s := newStateOn(t, st, refusing("first", &calls, errors.New("injected")))
	s.certs.start()
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, name)
	waitFailed(t, s, name, 1)
	if r := s.certs.orders.report(name); calls.Load() != 0 || time.Until(r.next) < backOff[0]/2 || !strings.Contains(r.last, "the process ended") {
		t.Errorf("asked %d times, %+v", calls.Load(), r)
	}
}

// TestBackOffThatCannotBeBelieved does not keep a name waiting for ever, nor is it an end to orders.
func TestBackOffThatCannotBeBelieved(t *testing.T) {
	for _, text := range []string{
		"", "{", "[]", `{"attempts":0,"next":"2099-01-01T00:00:00Z"}`, `{"attempts":1,"next":"2099-01-01T00:00:00Z"}`,
		`{"attempts":1,"refused":2,"next":"` + time.Now().Add(time.Hour).Format(time.RFC3339) + `"}`,
		`{"attempts":1,"next":"2020-01-01T00:00:00Z","told":{"first":"2099-01-01T00:00:00Z"}}`,
	} {
		signer, st := newSigner(t), newTestStorage(t)
		s := newStateOn(t, st, &testIssuer{"first", func(_ context.Context, _ string, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
			return signer.sign(csr, time.Hour), nil
		}})
		if err := st.Store(t.Context(), backOffKey("app.example.com"), []byte(text)); err != nil {
			t.Fatal(err)
		}
		s.certs.start()
		serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, "app.example.com")
		pqtest.Wait(t, "the certificate, with "+text, func() bool { _, ok := s.certs.known.of("app.example.com"); return ok })
		pqtest.Wait(t, "what was kept to go", func() bool { return backOffOf(t, st, "app.example.com") == nil })
	}
}

// TestTwoEdges has two edges on one storage that want the same certificates at the same time: each is ordered once, and both
// serve it.
func TestTwoEdges(t *testing.T) {
	signer, st := newSigner(t), newTestStorage(t)
	var calls atomic.Int64
	issuer := &testIssuer{"first", func(_ context.Context, _ string, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		calls.Add(1)
		return signer.sign(csr, time.Hour), nil
	}}
	names := manyNames("n", 6)
	a, b := newStateOn(t, st, issuer), newStateOn(t, st, issuer)
	for _, s := range []*state{a, b} {
		s.certs.start()
	}
	for _, s := range []*state{a, b} {
		serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, names...)
	}
	for _, s := range []*state{a, b} {
		for _, name := range names {
			pqtest.Wait(t, "the certificate of "+name, func() bool {
				s.certs.orders.mu.Lock()
				defer s.certs.orders.mu.Unlock()
				for _, one := range s.certs.orders.waiting { // for the other edge: it need not be that long
					one.next = time.Now()
				}
				s.certs.orders.setTimer()
				_, ok := s.certs.known.of(name)
				return ok
			})
			if cert, err := s.certificateFor(routed(t, s, name)); err != nil || cert.Leaf.DNSNames[0] != name {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if n := calls.Load(); n != int64(len(names)) {
		t.Errorf("%d orders for %d names", n, len(names))
	}
	for _, s := range []*state{a, b} {
		pqtest.Wait(t, "the end of all orders", func() bool { pending, failed := s.certs.orders.summary(); return pending+failed == 0 })
	}
}

// TestOrderTimeout gives up on a CA that does not answer.
func TestOrderTimeout(t *testing.T) {
	st := newTestStorage(t)
	s := newStateOn(t, st, &testIssuer{"first", func(ctx context.Context, _ string, _ *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		deadline, ok := ctx.Deadline()
		if left := time.Until(deadline); !ok || left > orderTimeout || left < orderTimeout-time.Minute {
			t.Errorf("the issuer has %s, %v", left, ok)
		}
		return nil, context.DeadlineExceeded
	}})
	s.certs.start()
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, "app.example.com")
	waitFailed(t, s, "app.example.com", 1)
}

// TestClockOff finds out that a certificate would be renewed as soon as it is there, and waits.
func TestClockOff(t *testing.T) {
	signer, st := newSigner(t), newTestStorage(t)
	var calls atomic.Int64
	s := newStateOn(t, st, &testIssuer{"first", func(_ context.Context, _ string, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		calls.Add(1)
		return signer.sign(csr, time.Hour, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(-50 * time.Hour) }), nil
	}})
	s.certs.start()
	const name = "app.example.com"
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, name)
	pqtest.Wait(t, "the failure", func() bool { return strings.Contains(s.certs.orders.state(name), "is the clock right?") })
	s.certs.sweep()
	if _, err := s.certificateFor(routed(t, s, name)); err != nil || calls.Load() != 1 {
		t.Errorf("%d orders, %v", calls.Load(), err)
	}
	if kept := backOffOf(t, st, name); kept == nil || time.Until(kept.Next) < checkBackOff[0]/2 {
		t.Errorf("kept: %+v", kept)
	}
}

// TestStorageFailsBeforeTheCA asks no CA while the storage could not keep what it gives.
func TestStorageFailsBeforeTheCA(t *testing.T) {
	for method, err := range map[string]error{"Load": errors.New("injected"), "TryLock": syscall.EROFS, "Store": syscall.ENOSPC} {
		st := newTestStorage(t)
		var calls atomic.Int64
		s := newStateOn(t, st, refusing("first", &calls, errors.New("asked")))
		st.fail(method, err)
		s.certs.start()
		serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, "app.example.com")
		waitFailed(t, s, "app.example.com", 1)
		r := s.certs.orders.report("app.example.com")
		if calls.Load() != 0 || !strings.Contains(r.last, err.Error()) || time.Until(r.next) > 2*checkBackOff[0] {
			t.Errorf("%s: asked %d times, %+v", method, calls.Load(), r)
		}
	}
}

// TestStorageFailsBehindTheCA serves a certificate that the storage did not take, and orders no other.
func TestStorageFailsBehindTheCA(t *testing.T) {
	const name = "app.example.com"
	for _, suffix := range []string{".key", ".crt", ".json", ".pem"} {
		signer, st := newSigner(t), newTestStorage(t)
		var calls atomic.Int64
		s := newStateOn(t, st, &testIssuer{"first", func(_ context.Context, _ string, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
			calls.Add(1)
			return signer.sign(csr, time.Hour), nil
		}})
		if suffix == ".pem" { // of a renewal
			keepPair(t, st, "first", name, *agedCert(t, pqtest.NewCA(t), name))
		}
		st.hook("Store", func(key string) error {
			if strings.HasSuffix(key, suffix) && !strings.Contains(key, "orders") {
				return syscall.ENOSPC
			}
			return nil
		})
		s.certs.start()
		serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, name)
		waitFailed(t, s, name, 1)
		if state := s.certs.orders.state(name); !strings.Contains(state, "could not be stored") {
			t.Errorf("state: %s", state)
		}
		cert, err := s.certificateFor(routed(t, s, name))
		if err != nil || !cert.Leaf.NotAfter.After(time.Now().Add(50*time.Minute)) {
			t.Errorf("%s: %v", suffix, err)
		}
		st.hook("Store", nil)
		again := func() {
			s.certs.orders.mu.Lock()
			defer s.certs.orders.mu.Unlock()
			kept, _ := json.Marshal(keptBackOff{Attempts: 1, Next: time.Now().Add(-time.Second)})
			if err := st.FileStorage.Store(t.Context(), backOffKey(name), kept); err != nil {
				t.Error(err)
			}
			s.certs.orders.waiting[0].next = time.Now()
			s.certs.orders.setTimer()
		}
		again()
		pqtest.Wait(t, "the storage to have it", func() bool { return !s.certs.orders.has(name) })
		held, err := s.certs.config.Load().heldFrom(t.Context(), "first", name)
		if err != nil || held == nil || !held.cert.Leaf.Equal(cert.Leaf) || calls.Load() != 1 {
			t.Errorf("%s: in storage is %v, %v; %d orders", suffix, held, err, calls.Load())
		}
	}
}

// TestFailedRenewal serves the certificate that there is while it cannot be renewed, also when the edge was started anew, and
// also when it has expired.
func TestFailedRenewal(t *testing.T) {
	const name = "app.example.com"
	ca := pqtest.NewCA(t)
	expired := ca.IssueWith(t, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}, name)
	for what, cert := range map[string]*tls.Certificate{"due": agedCert(t, ca, name), "expired": &expired} {
		st := newTestStorage(t)
		keepPair(t, st, "first", name, *cert)
		var calls atomic.Int64
		for range 2 {
			s := newStateOn(t, st, refusing("first", &calls, errors.New("injected")))
			serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, name)
			s.certs.start()
			waitFailed(t, s, name, 1)
			if got, err := s.certificateFor(routed(t, s, name)); err != nil || !got.Leaf.Equal(cert.Leaf) {
				t.Errorf("%s: %v", what, err)
			}
			if state := s.certs.orders.state(name); !strings.Contains(state, "attempt 1 failed") || !strings.Contains(state, "injected") {
				t.Errorf("%s: state: %s", what, state)
			}
			s.certs.close()
		}
		if n := calls.Load(); n != 1 {
			t.Errorf("%s: the CA was asked %d times", what, n)
		}
	}
}

// TestIssuerPanics lives on.
func TestIssuerPanics(t *testing.T) {
	st := newTestStorage(t)
	s := newStateOn(t, st, &testIssuer{"first", func(context.Context, string, *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		panic("injected")
	}})
	s.certs.start()
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, manyNames("n", 3*orderWorkers)...)
	pqtest.Wait(t, "all failures", func() bool { _, failed := s.certs.orders.summary(); return failed == 3*orderWorkers })
	if state := s.certs.orders.state("n00000.example.com"); !strings.Contains(state, "the issuer panicked: injected") {
		t.Errorf("state: %s", state)
	}
}
