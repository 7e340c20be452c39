package pqproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/acmetest"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// keepPair puts a pair into storage as an issuer's.
func keepPair(t testing.TB, st certmagic.Storage, issuer, name string, cert tls.Certificate) *heldCert {
	t.Helper()
	chain, key := pqtest.EncodePair(t, cert)
	held, err := newHeld(issuer, name, chain, key)
	if err != nil {
		t.Fatal(err)
	}
	held.setData([]byte(`{}`))
	if err := (&issuing{storage: st}).save(context.Background(), held, nil, name); err != nil {
		t.Fatal(err)
	}
	return held
}

// routed returns the route of a name.
func routed(t testing.TB, s *state, name string) *route {
	t.Helper()
	e := s.table.Load().named(name)
	if e.none() {
		t.Fatalf("%s is not in the table", name)
	}
	return s.routeOf(e)
}

// TestNoIssuanceInHandshake has a client come while the CA is about to issue: it is refused at once, with the reason in the
// record, and the order goes on.
func TestNoIssuanceInHandshake(t *testing.T) {
	pqtest.Leaks(t)
	ca := acmetest.Start(t, acmetest.Options{})
	e := startACMEEdge(t, ca)
	release := ca.HoldIssuance("")
	defer release()
	e.serve("app.example.com")
	pqtest.Wait(t, "the CA to sign", func() bool { return len(ca.Issued("app.example.com")) == 1 })
	for range 3 {
		if _, err := e.handshake(e.clientOf("app.example.com")); alertOfHandshake(err) != alertInternalError {
			t.Errorf("without a certificate: %v", err)
		}
		line := e.log.recordWhere("end_reason", string(reasonNoCertificate))
		if !strings.Contains(line.str("error"), "there is no certificate for app.example.com yet: it is being obtained") {
			t.Errorf("record: %v", line)
		}
	}
	release()
	e.issued("app.example.com")
	e.visit("app.example.com") // although storage had nothing a moment ago
	if n := ca.Orders(""); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
}

// TestLazyLoad has a thousand clients come at once to a name whose certificate is in storage alone: it is read once.
func TestLazyLoad(t *testing.T) {
	s, st := newStoredState(t)
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, "app.example.com")
	ca := pqtest.NewCA(t)
	want := keepPair(t, st, "second", "app.example.com", ca.Issue(t, "app.example.com"))
	r := routed(t, s, "app.example.com")
	reading, gate := make(chan struct{}, 1000), make(chan struct{})
	st.hook("Load", func(string) error {
		reading <- struct{}{}
		<-gate
		return nil
	})
	const clients = 1000
	var wg sync.WaitGroup
	var wrong atomic.Int64
	for range clients {
		wg.Go(func() {
			if cert, err := s.certificateFor(r); err != nil || !cert.Leaf.Equal(want.cert.Leaf) {
				wrong.Add(1)
			}
		})
	}
	<-reading
	close(gate)
	wg.Wait()
	if n := wrong.Load(); n != 0 {
		t.Errorf("%d of %d clients met no or another certificate", n, clients)
	}
	once := st.count("Load") // key and chain of the first issuer, and the three values of the second
	if once != 5 {
		t.Errorf("%d reads, want 5", once)
	}
	if _, err := s.certificateFor(r); err != nil || st.count("Load") != once {
		t.Errorf("a certificate in memory was read again: %v", err)
	}
	if _, ok := s.certs.known.of("app.example.com"); !ok {
		t.Error("the end of the certificate is not known")
	}
}

// TestLazyLoadFails asks a storage without the certificate, or that fails, once in a while, whoever comes; its wait has an
// end.
func TestLazyLoadFails(t *testing.T) {
	s, st := newStoredState(t)
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, "none.example.com", "broken.example.com", "stuck.example.com")
	for range 10 {
		_, err := s.certificateFor(routed(t, s, "none.example.com"))
		if err == nil || !strings.Contains(err.Error(), "there is no certificate for none.example.com yet: it waits for its turn") {
			t.Errorf("%v", err)
		}
	}
	if n := st.count("Load"); n != 4 { // key and chain of two issuers
		t.Errorf("%d reads, want 4", n)
	}
	st.fail("Load", errors.New("injected"))
	before := st.count("Load")
	for range 10 {
		if _, err := s.certificateFor(routed(t, s, "broken.example.com")); err == nil || !strings.Contains(err.Error(), "injected") {
			t.Errorf("%v", err)
		}
	}
	if n := st.count("Load") - before; n != 1 {
		t.Errorf("%d reads, want 1", n)
	}
	// When there is one at last, nobody waits for the pause to be over.
	st.fail("Load", nil)
	held := keepPair(t, st, "first", "none.example.com", pqtest.NewCA(t).Issue(t, "none.example.com"))
	s.certs.take("none.example.com", held, false, false)
	if _, err := s.certificateFor(routed(t, s, "none.example.com")); err != nil {
		t.Error(err)
	}
	// The end of the process ends a wait for a storage that does not answer.
	stuck := make(chan struct{})
	met := sync.OnceFunc(func() { close(stuck) }) // what is read has several parts
	st.hook("Load", func(string) error {
		met()
		<-s.certs.ctx.Done()
		return s.certs.ctx.Err()
	})
	failed := make(chan error)
	go func() {
		_, err := s.certificateFor(routed(t, s, "stuck.example.com"))
		failed <- err
	}()
	<-stuck
	s.certs.close()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := s.certificateFor(routed(t, s, "broken.example.com")); err == nil {
		t.Error("something was loaded after the end")
	}
}

// TestLazyLoadPanics has a storage that cannot take what it finds there: whoever comes for it is refused, and nothing else happens.
func TestLazyLoadPanics(t *testing.T) {
	s, st := newStoredState(t)
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, "app.example.com", "b.example.com")
	keepPair(t, st, "first", "b.example.com", pqtest.NewCA(t).Issue(t, "b.example.com"))
	st.hook("Load", func(key string) error {
		if strings.Contains(key, "app.example.com") {
			panic("injected")
		}
		return nil
	})
	if _, err := s.certificateFor(routed(t, s, "app.example.com")); err == nil || !strings.Contains(err.Error(), "panic: injected") {
		t.Errorf("%v", err)
	}
	if _, err := s.certificateFor(routed(t, s, "b.example.com")); err != nil {
		t.Error(err)
	}
}

// TestMissingIsBounded forgets which names have no certificate rather than to remember any number.
func TestMissingIsBounded(t *testing.T) {
	s, _ := newStoredState(t)
	for i := range missingEntries - 5 {
		s.certs.missing[fmt.Sprint(i)] = missing{}
	}
	for i := range 10 {
		s.certs.fill(&loading{done: make(chan struct{})}, s.certs.config.Load(), fmt.Sprintf("n%d.example.com", i), false)
	}
	s.certs.mu.Lock()
	defer s.certs.mu.Unlock()
	if n := len(s.certs.missing); n == 0 || n > missingEntries {
		t.Errorf("%d names are remembered", n)
	}
}

// TestMemoryFollowsDomains forgets a certificate when its domain goes, also one that is being read just then, and takes
// another one where a domain's source changes.
func TestMemoryFollowsDomains(t *testing.T) {
	s, st := newStoredState(t)
	ca := pqtest.NewCA(t)
	keepPair(t, st, "first", "app.example.com", ca.Issue(t, "app.example.com"))
	serveDomains(t, s, "a", "192.0.2.1:1", domain.Certificate{}, "app.example.com")
	r := routed(t, s, "app.example.com")
	if _, err := s.certificateFor(r); err != nil {
		t.Fatal(err)
	}
	wantNothing := func(when string) {
		t.Helper()
		if s.certs.memory.peek("app.example.com") != nil {
			t.Errorf("%s: the certificate is in memory still", when)
		}
		if _, known := s.certs.known.of("app.example.com"); known {
			t.Errorf("%s: its end is known still", when)
		}
	}
	removeDomains(t, s, "app.example.com")
	wantNothing("after the domain has gone")

	serveDomains(t, s, "a", "192.0.2.1:1", domain.Certificate{}, "app.example.com")
	st.hook("Load", func(key string) error {
		if strings.HasSuffix(key, ".json") {
			st.hook("Load", nil)
			removeDomains(t, s, "app.example.com")
		}
		return nil
	})
	if _, err := s.certificateFor(r); err != nil {
		t.Fatal(err)
	}
	wantNothing("after the domain has gone while it was read")

	serveDomains(t, s, "a", "192.0.2.1:1", domain.Certificate{}, "app.example.com")
	if _, err := s.certificateFor(routed(t, s, "app.example.com")); err != nil {
		t.Fatal(err)
	}
	serveDomains(t, s, "a", "192.0.2.1:1", domain.Certificate{Source: domain.Internal}, "app.example.com")
	wantNothing("after another source was chosen")
	// A change of anything else, such as the tenant, keeps it.
	serveDomains(t, s, "a", "192.0.2.1:1", domain.Certificate{}, "app.example.com")
	if _, err := s.certificateFor(routed(t, s, "app.example.com")); err != nil {
		t.Fatal(err)
	}
	reads := st.count("Load")
	serveDomains(t, s, "b", "192.0.2.2:1", domain.Certificate{}, "app.example.com")
	if _, err := s.certificateFor(routed(t, s, "app.example.com")); err != nil || st.count("Load") != reads {
		t.Errorf("the certificate was read again: %v", err)
	}
}

// TestCertMemory keeps what was used lately.
func TestCertMemory(t *testing.T) {
	var m certMemory
	m.open(4)
	now := time.Now()
	cert := func(from, to time.Duration) *tls.Certificate {
		return &tls.Certificate{Leaf: &x509.Certificate{NotBefore: now.Add(from), NotAfter: now.Add(to)}}
	}
	valid, next, early := cert(-time.Hour, time.Hour), cert(-time.Minute, 2*time.Hour), cert(time.Hour, 3*time.Hour)
	for i := range 4 {
		m.put(fmt.Sprint(i), valid)
		m.byName[fmt.Sprint(i)].used.Store(int64(i))
	}
	m.byName["2"].used.Store(-1)
	m.put("4", valid)
	if len(m.byName) != 4 || m.peek("2") != nil || m.peek("4") != valid {
		t.Errorf("after one too many: %v", m.byName)
	}
	m.peek("0")
	if m.get("1") != valid || m.get("2") != nil {
		t.Error("what was put is not there")
	}
	m.put("5", valid)
	if m.peek("0") != nil || m.peek("1") == nil {
		t.Error("to look is to use, or the other way round")
	}
	m.put("1", next)
	if m.get("1") != next {
		t.Error("a newer one was not taken")
	}
	// Until it is valid a certificate makes way for the one before, if that is.
	m.put("1", early)
	if m.get("1") != next {
		t.Error("one that is not valid yet was taken")
	}
	m.put("3", cert(-2*time.Hour, -time.Hour))
	m.put("3", early)
	if m.get("3") != early {
		t.Error("one that is not valid yet was not taken for one that is not any more")
	}
	m.forget("3")
	if m.get("3") != nil {
		t.Error("what was forgotten is there")
	}
}

// TestInternalCA issues at the first handshake, whatever the storage does, and renews what is in memory.
func TestInternalCA(t *testing.T) {
	pqtest.Leaks(t)
	ca, signer := pqtest.NewCA(t), newSigner(t)
	s, st := newStoredState(t)
	issued := make(map[string]int)
	const life = time.Hour
	s.certs.config.Load().local = []certmagic.Issuer{&testIssuer{"local", func(_ context.Context, name string, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		issued[name]++
		return signer.sign(csr, life), nil
	}}}
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{Source: domain.Internal}, "app.example.com", "b.example.com", "c.example.com")
	visit := func(name string) *x509.Certificate {
		t.Helper()
		cert, err := s.certificateFor(routed(t, s, name))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return cert.Leaf
	}
	first := visit("app.example.com")
	s.certs.sweep()
	if leaf := visit("app.example.com"); !leaf.Equal(first) || issued["app.example.com"] != 1 || issued["b.example.com"] != 0 {
		t.Errorf("issued %v", issued)
	}
	// Another edge, or this one when it was started anew, takes it from storage.
	other := newStateOn(t, st)
	serveDomains(t, other, "", "192.0.2.1:1", domain.Certificate{Source: domain.Internal}, "app.example.com")
	if cert, err := other.certificateFor(routed(t, other, "app.example.com")); err != nil || !cert.Leaf.Equal(first) {
		t.Errorf("another edge: %v", err)
	}
	// Two thirds of a life later the sweeper renews it, and with it what is in memory.
	s.certs.memory.put("app.example.com", agedCert(t, ca, "app.example.com"))
	keepPair(t, st, "local", "app.example.com", *agedCert(t, ca, "app.example.com"))
	s.certs.sweep()
	if leaf := visit("app.example.com"); issued["app.example.com"] != 2 || time.Until(leaf.NotAfter) < life/2 {
		t.Errorf("issued %v, until %s", issued, leaf.NotAfter)
	}
	// Where the storage takes nothing, or is down, what is in memory serves.
	st.fail("Store", errors.New("injected"))
	if leaf := visit("b.example.com"); visit("b.example.com") != leaf || issued["b.example.com"] != 1 {
		t.Errorf("issued %v", issued)
	}
	for _, method := range []string{"Load", "TryLock"} {
		st.fail(method, errors.New("injected"))
	}
	if leaf := visit("c.example.com"); visit("c.example.com") != leaf || issued["c.example.com"] != 1 {
		t.Errorf("issued %v", issued)
	}
}

// TestReloadInTheMiddle reloads while an order is under way: it is not lost, and nobody is to blame.
func TestReloadInTheMiddle(t *testing.T) {
	pqtest.Leaks(t)
	ca := acmetest.Start(t, acmetest.Options{})
	e := startACMEEdge(t, ca)
	option := "http 127.0.0.1:0\nupstream_policy {\nallow 127.0.0.0/8\n}\n" + issuerOf(t, ca)
	release := make(chan struct{})
	ca.Inject(acmetest.Match{Endpoint: acmetest.Finalize}, 1, acmetest.Hold(release))
	e.serve("app.example.com")
	pqtest.Wait(t, "the order", func() bool { return ca.Count(acmetest.Match{Endpoint: acmetest.Finalize}) == 1 })
	e.load(option)
	close(release)
	e.issued("app.example.com")
	e.visit("app.example.com")
	if n := ca.Orders(""); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
	// What fails while the config changes is tried again at once, with what the new one has.
	hold := make(chan struct{})
	ca.Inject(acmetest.Match{Endpoint: acmetest.NewOrder}, 1, func(w http.ResponseWriter, r *http.Request, pebble http.Handler) {
		<-hold
		acmetest.Problem(500, "serverInternal", "injected", 0)(w, r, pebble)
	})
	e.serve("b.example.com")
	pqtest.Wait(t, "the order", func() bool { return ca.Count(acmetest.Match{Endpoint: acmetest.NewOrder, Name: "b.example.com"}) == 1 })
	e.load(option + "email ops@example.com\n")
	close(hold)
	e.issued("b.example.com")
	if lines := e.log.all(func(l logLine) bool { return l.str("msg") == "obtaining a certificate" }); len(lines) > 0 {
		t.Errorf("failures: %v", lines)
	}
	// The order of a reload to another storage ends there too.
	release2 := make(chan struct{})
	ca.Inject(acmetest.Match{Endpoint: acmetest.Finalize}, 1, acmetest.Hold(release2))
	e.serve("c.example.com")
	pqtest.Wait(t, "the order", func() bool { return ca.Count(acmetest.Match{Endpoint: acmetest.Finalize, Name: "c.example.com"}) == 1 })
	e.dir = t.TempDir()
	e.load(option)
	close(release2)
	e.issued("c.example.com") // in the old storage
	e.issued("c.example.com") // in the new one
	if found, _ := filepath.Glob(e.dir + "/storage/certificates/*/c.example.com/c.example.com.crt"); len(found) != 1 {
		t.Errorf("the new storage has %v", found)
	}
}

// TestStopInTheMiddle stops while orders are under way: nobody waits for the CA, nothing is left behind, and the next start
// begins at once.
func TestStopInTheMiddle(t *testing.T) {
	pqtest.Leaks(t)
	ca := acmetest.Start(t, acmetest.Options{})
	t.Run("first", func(t *testing.T) {
		e := startACMEEdge(t, ca)
		release := make(chan struct{})
		t.Cleanup(func() { close(release) }) // after the edge has gone
		ca.Inject(acmetest.Match{Endpoint: acmetest.NewOrder}, 3, acmetest.Hold(release))
		e.serve("a.example.com", "b.example.com", "c.example.com")
		defer func() {
			if t.Failed() {
				fmt.Println(e.log.text())
			}
		}()
		pqtest.Wait(t, "the orders", func() bool { return ca.Count(acmetest.Match{Endpoint: acmetest.NewOrder}) == 3 })
	})
	st := newTestStorage(t)
	s := newStateOn(t, st)
	called := make(chan struct{})
	s.certs.config.Load().issuers = []certmagic.Issuer{&testIssuer{name: "first", issue: func(ctx context.Context, _ string, _ *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		close(called)
		<-ctx.Done()
		return nil, ctx.Err()
	}}}
	s.certs.start()
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, "app.example.com")
	<-called
	s.certs.close()
	if st.has(t, backOffKey("app.example.com")) {
		t.Error("the end of the process counts as a failure")
	}
	if st.has(t, "locks/issue_cert_app.example.com.lock") {
		t.Error("the lock is held still")
	}
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, "late.example.com") // nobody is there to take it
	if s.certs.orders.has("late.example.com") {
		t.Error("an order was taken after the end")
	}
}

// TestStopWithStubbornIssuer does not wait for a module that does not end with its context.
func TestStopWithStubbornIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStateOn(t, newTestStorage(t))
		stuck, free := make(chan struct{}), make(chan struct{})
		s.certs.spawn(func() { close(stuck); <-free })
		<-stuck
		start := time.Now()
		s.certs.close()
		if took := time.Since(start); took != closeTimeout {
			t.Errorf("it took %s", took)
		}
		close(free)
	})
}

// TestLazyLoadOfStuckStorage lets nobody wait for a storage for ever.
func TestLazyLoadOfStuckStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, st := newStoredState(t)
		serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, "app.example.com")
		free := make(chan struct{})
		st.hook("Load", func(string) error { <-free; return nil })
		if _, err := s.certificateFor(routed(t, s, "app.example.com")); err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Error(err)
		}
		close(free)
		synctest.Wait()
	})
}

// agedCert is a certificate that is due.
func agedCert(t testing.TB, ca *pqtest.CA, name string) *tls.Certificate {
	t.Helper()
	cert := ca.IssueWith(t, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-50*time.Minute), time.Now().Add(10*time.Minute)
	}, name)
	return &cert
}
