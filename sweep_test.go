package pqproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/acmetest"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestRenewal renews certificates of a few seconds' life, whether anybody visits or not, while clients come all the time: no
// handshake fails, and none meets a certificate that has expired.
func TestRenewal(t *testing.T) {
	pqtest.Leaks(t)
	const life = 9 * time.Second
	ca := acmetest.Start(t, acmetest.Options{NoRenewalInfo: true, Profiles: []acmetest.Profile{{Name: "classic", Validity: 90 * 24 * time.Hour}, {Name: "brief", Validity: life}}})
	e := startACMEEdge(t, ca, "profile brief")
	e.serve("visited.example.com", "other.example.com")
	for _, name := range []string{"visited.example.com", "other.example.com"} {
		e.issued(name)
	}
	visits := 0
	e.sweepUntil("both to be renewed", func() bool {
		if err := visit(e.addr, e.clientOf("visited.example.com")); err != nil {
			t.Fatalf("visit %d: %v", visits, err)
		}
		visits++
		return len(ca.Issued("visited.example.com")) == 2 && len(ca.Issued("other.example.com")) == 2
	})
	for _, name := range []string{"visited.example.com", "other.example.com"} {
		if line := e.ordered("certificate renewed", name); time.Until(time.Unix(0, int64(line.num("not_after")*1e9))) < life/3 {
			t.Errorf("%s is renewed until %v", name, line["not_after"])
		}
		first, second := ca.Issued(name)[0], ca.Issued(name)[1]
		if renewed := second.NotBefore.Sub(first.NotBefore); renewed < life/2 || renewed > life {
			t.Errorf("%s was renewed after %s", name, renewed)
		}
		if leaf, err := e.leafFor(name); err != nil || !leaf.Equal(second) {
			t.Errorf("%s: the new one is not served: %v", name, err)
		}
	}
	if n := ca.Orders(""); n != 4 {
		t.Errorf("%d orders, want 4", n)
	}
	e.log.all(func(l logLine) bool {
		if reason := l.str("end_reason"); l.str("msg") == "connection" && reason != string(reasonDone) && reason != string(reasonACMEChallenge) {
			t.Errorf("record: %v", l)
		}
		return false
	})
}

// TestRenewalInfo renews when the CA says so, and not before.
func TestRenewalInfo(t *testing.T) {
	pqtest.Leaks(t)
	ca := acmetest.Start(t, acmetest.Options{RenewalRetryAfter: time.Second, Profiles: []acmetest.Profile{{Name: "classic", Validity: 200 * time.Second}}})
	e := startACMEEdge(t, ca)
	e.serve("app.example.com", "b.example.com")
	for _, name := range []string{"app.example.com", "b.example.com"} {
		e.issued(name)
		far := time.Now().Add(100 * time.Second) // Pebble would have it renewed at any time of so short a life
		if err := ca.SetRenewalWindow(ca.Issued(name)[0], far, far.Add(20*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	e.visit("app.example.com")
	asked := func(name string) int {
		return ca.Count(acmetest.Match{Endpoint: acmetest.RenewalInfo, Name: name})
	}
	before := asked("b.example.com")
	if err := ca.RenewNow(ca.Issued("app.example.com")[0]); err != nil {
		t.Fatal(err)
	}
	e.sweepUntil("the renewal", func() bool { return len(ca.Issued("app.example.com")) == 2 })
	e.ordered("certificate renewed", "app.example.com")
	if leaf, err := e.leafFor("app.example.com"); err != nil || !leaf.Equal(ca.Issued("app.example.com")[1]) {
		t.Errorf("the new one is not served: %v", err)
	}
	e.sweepUntil("the CA to be asked about the other one", func() bool { return asked("b.example.com") > before })
	for range 20 {
		e.certs().sweep()
	}
	if n := asked("b.example.com"); n != before+1 || len(ca.Issued("b.example.com")) != 1 {
		t.Errorf("the CA was asked %d times, and issued %d", n-before, len(ca.Issued("b.example.com")))
	}
}

// aheadState is a state with certificates of so many names in storage, which are due in a while.
func aheadState(t testing.TB, names ...string) (*state, *testStorage, *pqtest.CA) {
	t.Helper()
	s, st := newStoredState(t)
	ca := pqtest.NewCA(t)
	for _, name := range names {
		keepPair(t, st, "first", name, ca.Issue(t, name))
	}
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, names...)
	s.certs.orders.mu.Lock()
	for _, one := range s.certs.orders.byName { // what follow wants is not what is tested
		s.certs.orders.drop(one)
	}
	s.certs.orders.mu.Unlock()
	return s, st, ca
}

// TestSweep orders what storage has not, or what is due, and passes over what it knows.
func TestSweep(t *testing.T) {
	s, st, ca := aheadState(t, "good.example.com", "visited.example.com")
	keepPair(t, st, "second", "due.example.com", *agedCert(t, ca, "due.example.com"))
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, "due.example.com", "none.example.com")
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{Source: domain.Internal}, "internal.example.com")
	for _, name := range []string{"due.example.com", "none.example.com"} {
		s.certs.orders.cancel(name)
	}
	s.certs.sweep()
	for name, want := range map[string]bool{
		"good.example.com": false, "visited.example.com": false, "due.example.com": true, "none.example.com": true, "internal.example.com": false,
	} {
		if s.certs.orders.has(name) != want {
			t.Errorf("%s is ordered: %v", name, !want)
		}
	}
	counts := s.certs.count(time.Now())
	if counts.valid != 3 || counts.expired != 0 {
		t.Errorf("counted %+v", counts)
	}
	before := st.count("Load")
	s.certs.sweep()
	if n := st.count("Load") - before; n != 0 {
		t.Errorf("%d reads of what is known or ordered", n)
	}

	// What another edge has renewed comes into memory, where it is, when this edge would have renewed it.
	if _, err := s.certificateFor(routed(t, s, "visited.example.com")); err != nil {
		t.Fatal(err)
	}
	renewed := keepPair(t, st, "first", "visited.example.com", ca.Issue(t, "visited.example.com"))
	keepPair(t, st, "first", "good.example.com", ca.Issue(t, "good.example.com"))
	for _, name := range []string{"visited.example.com", "good.example.com"} {
		s.certs.known.look(name, time.Now())
	}
	s.certs.sweep()
	if got := s.certs.memory.peek("visited.example.com"); got == nil || !got.Leaf.Equal(renewed.cert.Leaf) {
		t.Error("memory has the old one")
	}
	if s.certs.memory.peek("good.example.com") != nil {
		t.Error("memory has one that nobody visited")
	}
}

// TestSweepGoesOn sweeps in slices: each goes on where the one before has ended, though nothing that was looked at is known for that.
func TestSweepGoesOn(t *testing.T) {
	s, st, _ := aheadState(t)
	names := make([]string, 50)
	for i := range names {
		names[i] = fmt.Sprintf("n%d.example.com", i)
	}
	s.certs.orders.close() // nobody's can be ordered
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, names...)
	before, at, slices := st.count("Load"), 0, 1
	for ; !s.certs.sweepOn(&at, -1); slices++ {
	}
	looks := st.count("Load") - before
	if before = st.count("Load"); slices != tableShards+1 || at != 0 {
		t.Errorf("%d slices, and the next sweep begins at %d", slices, at)
	}
	if s.certs.sweep(); looks < len(names) || looks != st.count("Load")-before {
		t.Errorf("%d looks in slices, %d at once", looks, st.count("Load")-before)
	}
}

// TestSweepFindsTheOthers has more names in a change than are looked at one by one.
func TestSweepFindsTheOthers(t *testing.T) {
	s, _ := newStoredState(t)
	const more = 50
	c := s.newChangeSet(rankRemote, true, nil)
	for i := range followAtOnce + more {
		if err := c.put(typical(i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.apply(c, nil); err != nil {
		t.Fatal(err)
	}
	if pending, _ := s.certs.orders.summary(); pending != 0 {
		t.Errorf("%d orders at once", pending)
	}
	select {
	case <-s.certs.hurry:
	default:
		t.Error("nobody is told to look for the others")
	}
	s.certs.sweep()
	if pending, _ := s.certs.orders.summary(); pending != followAtOnce+more {
		t.Errorf("%d orders after a sweep", pending)
	}
}

// TestSweepWithoutStorage orders nothing while the storage is down, for that is no sign that there are no certificates.
func TestSweepWithoutStorage(t *testing.T) {
	s, st, _ := aheadState(t, manyNames("n", 10)...)
	st.fail("Load", errors.New("injected"))
	s.certs.sweep()
	if pending, failed := s.certs.orders.summary(); pending+failed != 0 {
		t.Errorf("%d orders", pending+failed)
	}
	st.fail("Load", nil)
	s.certs.sweep()
	if counts := s.certs.count(time.Now()); counts.valid != 10 {
		t.Errorf("counted %+v", counts)
	}
}

// TestSweepsGoOn sweeps again after a rest, and ends when the process does.
func TestSweepsGoOn(t *testing.T) {
	pqtest.Leaks(t)
	s, st := newStoredState(t)
	s.certs.rest = time.Millisecond
	s.certs.start()
	ca := pqtest.NewCA(t)
	for i := range 5 {
		name := fmt.Sprintf("n%d.example.com", i)
		st.fail("Load", errors.New("injected")) // so that nothing but a later sweep finds it
		serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, name)
		waitFailed(t, s, name, 1)
		s.certs.orders.cancel(name)
		keepPair(t, st, "first", name, ca.Issue(t, name))
		st.fail("Load", nil)
		pqtest.Wait(t, "a sweep", func() bool { _, ok := s.certs.known.of(name); return ok })
	}
	s.certs.close()
}

// TestNotValidYet serves the certificate before until one that a CA has given for later is valid.
func TestNotValidYet(t *testing.T) {
	const name = "app.example.com"
	s, st, ca := aheadState(t, name)
	old, err := s.certificateFor(routed(t, s, name))
	if err != nil {
		t.Fatal(err)
	}
	begins := time.Now().Add(2 * time.Second).Truncate(time.Second)
	early := keepPair(t, st, "first", name, ca.IssueWith(t, func(c *x509.Certificate) { c.NotBefore = begins }, name))
	s.certs.take(name, early, false, false)
	for time.Now().Before(begins.Add(-100 * time.Millisecond)) {
		if cert, err := s.certificateFor(routed(t, s, name)); err != nil || cert != old && time.Now().Before(begins) {
			t.Fatalf("too early: %v", err)
		}
		s.certs.sweep()
	}
	pqtest.Wait(t, "the other one", func() bool {
		s.certs.sweep()
		cert, err := s.certificateFor(routed(t, s, name))
		return err == nil && cert.Leaf.Equal(early.cert.Leaf)
	})
	if time.Now().Before(begins) || s.certs.orders.has(name) {
		t.Error("it came too early, or was ordered again")
	}
}

// infoIssuer answers when to renew.
type infoIssuer struct {
	testIssuer
	info func(ctx context.Context, leaf *x509.Certificate) (acme.RenewalInfo, error)
}

func (i *infoIssuer) GetRenewalInfo(ctx context.Context, cert certmagic.Certificate) (acme.RenewalInfo, error) {
	return i.info(ctx, cert.Leaf)
}

// infoState is a state with certificates whose issuer may be asked when to renew them.
func infoState(t testing.TB, info func(ctx context.Context, leaf *x509.Certificate) (acme.RenewalInfo, error), names ...string) (*state, *testStorage) {
	t.Helper()
	st := newTestStorage(t)
	s := newStateOn(t, st, &infoIssuer{testIssuer{name: "first"}, info})
	now, ca := s.certs.config.Load(), pqtest.NewCA(t)
	for _, name := range names {
		held := keepPair(t, st, "first", name, ca.Issue(t, name))
		held.setData([]byte(`{"renewal_info":{}}`))
		if err := now.saveData(t.Context(), held, name); err != nil {
			t.Fatal(err)
		}
	}
	return s, st
}

// TestRenewalInfoBesideTheSweep asks a CA that does not answer: the sweep goes on, and so does the process's end.
func TestRenewalInfoBesideTheSweep(t *testing.T) {
	pqtest.Leaks(t)
	names := manyNames("n", maxAsks+50)
	var asked atomic.Int64
	s, _ := infoState(t, func(ctx context.Context, _ *x509.Certificate) (acme.RenewalInfo, error) {
		asked.Add(1)
		<-ctx.Done()
		return acme.RenewalInfo{}, ctx.Err()
	}, names...)
	s.certs.start()
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, names...)
	pqtest.Wait(t, "the questions", func() bool { s.certs.sweepSoon(); return asked.Load() == askers })
	pqtest.Wait(t, "the sweep to know all", func() bool { return s.certs.count(time.Now()).valid == len(names) })
	s.certs.close()
}

// TestRenewalInfoFails asks again hours later, and does not renew for want of an answer.
func TestRenewalInfoFails(t *testing.T) {
	const name = "app.example.com"
	for what, info := range map[string]func(context.Context, *x509.Certificate) (acme.RenewalInfo, error){
		"error": func(context.Context, *x509.Certificate) (acme.RenewalInfo, error) {
			return acme.RenewalInfo{}, errors.New("injected")
		},
		"panic":   func(context.Context, *x509.Certificate) (acme.RenewalInfo, error) { panic("injected") },
		"nothing": func(context.Context, *x509.Certificate) (acme.RenewalInfo, error) { return acme.RenewalInfo{}, nil },
	} {
		var asked atomic.Int64
		s, st := infoState(t, func(ctx context.Context, leaf *x509.Certificate) (acme.RenewalInfo, error) {
			asked.Add(1)
			return info(ctx, leaf)
		}, name)
		serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, name)
		s.certs.askWhen(name)
		held, err := s.certs.config.Load().held(t.Context(), s.certs.config.Load().issuers, name)
		if err != nil || held == nil {
			t.Fatal(held, err)
		}
		if held.due(time.Now()) || time.Until(held.askAt()) < ariRest-time.Minute {
			t.Errorf("%s: asked at %s, %v", what, held.askAt(), err)
		}
		s.certs.askWhen(name)
		if n := asked.Load(); n != 1 {
			t.Errorf("%s: asked %d times", what, n)
		}
		st.fail("Store", errors.New("injected")) // then only this process knows
		s.certs.askWhen("unknown.example.com")
	}
}

// TestMemoryHasNoGap replaces a certificate in memory over and over while clients ask for it: there always is one.
func TestMemoryHasNoGap(t *testing.T) {
	const name = "app.example.com"
	s, _, ca := aheadState(t, name)
	if _, err := s.certificateFor(routed(t, s, name)); err != nil {
		t.Fatal(err)
	}
	certs := [2]tls.Certificate{ca.Issue(t, name), ca.Issue(t, name)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 2000 {
			s.certs.take(name, &heldCert{cert: &certs[i%2]}, false, false)
		}
	}()
	for {
		if s.certs.memory.get(name) == nil {
			t.Fatal("there was none")
		}
		select {
		case <-done:
			return
		default:
		}
	}
}
