package pqproxy

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// wantOrders has names of a tenant ordered as apply does, without a table.
func wantOrders(o *orders, tenant string, names ...string) {
	for _, name := range names {
		o.want(name, newEntry(&domain.Domain{Name: name, Tenant: tenant, Upstreams: []domain.Upstream{{Dial: "192.0.2.1:1"}}}, rankAdmin))
	}
}

func manyNames(prefix string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s%05d.example.com", prefix, i)
	}
	return names
}

// TestOrdersTakeTurns gives every tenant its turn, however many orders another one has.
func TestOrdersTakeTurns(t *testing.T) {
	s, _ := newStoredState(t)
	o := &s.certs.orders
	wantOrders(o, "a", manyNames("a", 10_000)...)
	wantOrders(o, "b", manyNames("b", 3)...)
	wantOrders(o, "c", "c.example.com")
	done := func(one *order, of *tenantOrders) {
		o.mu.Lock()
		defer o.mu.Unlock()
		one.running = false
		of.running--
		o.tidy(of)
		delete(o.byName, one.name)
	}
	var turns []string
	for range 8 {
		one, of := o.take()
		turns = append(turns, one.name[:1])
		done(one, of)
	}
	if got := strings.Join(turns, ""); got != "abcababa" {
		t.Errorf("turns are %s", got)
	}
	// Who comes later is next but one, whoever has how many.
	wantOrders(o, "d", "d.example.com")
	for range 2 {
		one, of := o.take()
		if one.name == "d.example.com" {
			done(one, of)
			return
		}
		done(one, of)
	}
	t.Error("the one that came last was not among the next two")
}

// TestOrdersShareWorkers keeps half of the workers free of a tenant whose orders all take as long as they can.
func TestOrdersShareWorkers(t *testing.T) {
	pqtest.Leaks(t)
	st := newTestStorage(t)
	var mu sync.Mutex
	under := make(map[string]int) // by tenant
	most := 0
	small := make(chan struct{})
	s := newStateOn(t, st, &testIssuer{"first", func(ctx context.Context, name string, _ *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		tenant := name[:1]
		mu.Lock()
		under[tenant]++
		most = max(most, under[tenant])
		mu.Unlock()
		if tenant == "s" {
			close(small)
		} else {
			<-ctx.Done()
		}
		return nil, errors.New("injected")
	}})
	s.certs.start()
	serveDomains(t, s, "big", "192.0.2.1:1", domain.Certificate{}, manyNames("b", 1000)...)
	pqtest.Wait(t, "all workers that one tenant may have", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return under["b"] == workersATenant
	})
	serveDomains(t, s, "small", "192.0.2.1:1", domain.Certificate{}, "s.example.com")
	select {
	case <-small:
	case <-time.After(patience):
		t.Error("the other tenant waits")
	}
	mu.Lock()
	defer mu.Unlock()
	if most != workersATenant {
		t.Errorf("one tenant had %d workers", most)
	}
}

// TestOrdersOfBrokenNames has a tenant with thousands of names that fail their self-check, and counts how many of them
// come between the first order of another tenant and its certificate.
func TestOrdersOfBrokenNames(t *testing.T) {
	signer, st := newSigner(t), newTestStorage(t)
	s := newStateOn(t, st, &testIssuer{"first", func(_ context.Context, name string, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		if name != "small.example.com" {
			t.Errorf("the CA was asked for %s", name)
		}
		return signer.sign(csr, time.Hour), nil
	}})
	names := manyNames("b", 3000)
	dns := selfCheckable(t, s)
	for _, name := range names {
		dns.set(name, "NXDOMAIN")
	}
	asked := func() int { dns.mu.Lock(); defer dns.mu.Unlock(); return dns.asked / 2 } // A and AAAA
	s.certs.start()
	serveDomains(t, s, "big", "192.0.2.1:1", domain.Certificate{}, names...)
	pqtest.Wait(t, "the first of them", func() bool { return asked() > 100 })

	after := make(chan int, 1)
	st.hook("TryLock", func(string) error { // the other one has passed its self-check
		after <- asked()
		return nil
	})
	before := asked()
	serveDomains(t, s, "small", "192.0.2.1:1", domain.Certificate{}, "small.example.com")
	pqtest.Wait(t, "the certificate", func() bool { _, ok := s.certs.known.of("small.example.com"); return ok })
	// Those that were under way come between, and a turn of each worker or two.
	if between := <-after - before; between > 2*orderWorkers || before > len(names)-10*orderWorkers {
		t.Errorf("%d of %d self-checks came between", between, len(names)-before)
	}
}

// TestOneAttemptAtATime wants a name from all sides while its order is under way.
func TestOneAttemptAtATime(t *testing.T) {
	signer, st := newSigner(t), newTestStorage(t)
	var under, calls atomic.Int64
	started, release := make(chan struct{}, 10), make(chan struct{})
	s := newStateOn(t, st, &testIssuer{"first", func(_ context.Context, _ string, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		if under.Add(1) > 1 {
			t.Error("two attempts at a time")
		}
		defer under.Add(-1)
		calls.Add(1)
		started <- struct{}{}
		<-release
		return signer.sign(csr, time.Hour), nil
	}})
	s.certs.start()
	const name = "app.example.com"
	serveDomains(t, s, "a", "192.0.2.1:1", domain.Certificate{}, name)
	<-started
	// Removed and added again, for another tenant, visited and swept.
	for i := range 5 {
		removeDomains(t, s, name)
		if state := s.certs.orders.state(name); state != "it is being obtained" {
			t.Errorf("state: %s", state)
		}
		serveDomains(t, s, fmt.Sprint("b", i), "192.0.2.1:1", domain.Certificate{}, name)
		_, _ = s.certificateFor(routed(t, s, name))
		s.certs.sweepSoon()
	}
	close(release)
	pqtest.Wait(t, "the order", func() bool { return !s.certs.orders.has(name) })
	if _, ok := s.certs.known.of(name); !ok || calls.Load() != 1 {
		t.Errorf("%d orders", calls.Load())
	}
	if cert, err := s.certificateFor(routed(t, s, name)); err != nil || cert == nil {
		t.Errorf("after that: %v", err)
	}
}

// TestRemovedWhileObtained has a domain go while its order is under way, which fails: when it comes back it waits as long as
// if it had never been away.
func TestRemovedWhileObtained(t *testing.T) {
	st := newTestStorage(t)
	var calls atomic.Int64
	started, release := make(chan struct{}, 10), make(chan struct{})
	s := newStateOn(t, st, &testIssuer{"first", func(context.Context, string, *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		calls.Add(1)
		started <- struct{}{}
		<-release
		return nil, errors.New("injected")
	}})
	s.certs.start()
	const name = "app.example.com"
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, name)
	<-started
	removeDomains(t, s, name)
	close(release)
	pqtest.Wait(t, "the order to end", func() bool { return !s.certs.orders.has(name) })
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, name)
	waitFailed(t, s, name, 1)
	if n := calls.Load(); n != 1 {
		t.Errorf("the CA was asked %d times", n)
	}
	if state := s.certs.orders.state(name); !strings.Contains(state, "attempt 1 failed") || !strings.Contains(state, "injected") {
		t.Errorf("state: %s", state)
	}
}

// TestOrdersMoveWithTheirTenant does not have a domain wait behind those of the tenant that had it.
func TestOrdersMoveWithTheirTenant(t *testing.T) {
	s, _ := newStoredState(t)
	o := &s.certs.orders
	wantOrders(o, "a", manyNames("a", 100)...)
	wantOrders(o, "a", "moved.example.com", "waits.example.com")
	o.mu.Lock()
	waits := o.byName["waits.example.com"]
	o.tenants["a"].due = slices.DeleteFunc(o.tenants["a"].due, func(one *order) bool { return one == waits })
	waits.attempts, waits.last, waits.next = 3, "injected", time.Now().Add(time.Hour)
	o.wait(waits)
	o.mu.Unlock()
	wantOrders(o, "b", "moved.example.com", "waits.example.com")
	o.take()
	if one, of := o.take(); one.name != "moved.example.com" || of.name != "b" {
		t.Errorf("%s of %s is next", one.name, of.name)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if one := o.byName["waits.example.com"]; one.tenant != "b" || one.attempts != 3 || one.last != "injected" || one.place < 0 || len(o.waiting) != 1 {
		t.Errorf("the one that waits: %+v", one)
	}
}

// TestOrdersAreBounded has room for who has none, whatever others have.
func TestOrdersAreBounded(t *testing.T) {
	s, _ := newStoredState(t)
	o := &s.certs.orders
	fill := func(tenant string, n int, waits bool) {
		o.mu.Lock()
		defer o.mu.Unlock()
		for i := range n {
			one := &order{name: fmt.Sprintf("%s%d", tenant, i), tenant: tenant, place: -1}
			o.byName[one.name] = one
			if waits {
				one.next = time.Now().Add(time.Hour)
				o.waiting.Push(one)
			} else {
				o.ready(one)
			}
		}
	}
	count := func(tenant string) int {
		o.mu.Lock()
		defer o.mu.Unlock()
		return len(o.tenants[tenant].due)
	}
	fill("big", ordersATenant, false)
	wantOrders(o, "big", "one.more.example.com")
	if n := count("big"); n != ordersATenant || o.has("one.more.example.com") {
		t.Errorf("one tenant has %d orders", n)
	}
	fill("waits", maxOrders-ordersATenant, true)
	wantOrders(o, "small", "small.example.com", "small2.example.com")
	if count("small") != 2 || len(o.byName) != maxOrders {
		t.Errorf("%d orders of the small tenant, %d of all", count("small"), len(o.byName))
	}
	o.mu.Lock()
	for len(o.waiting) > 0 {
		o.drop(o.waiting[len(o.waiting)-1])
	}
	o.mu.Unlock()
	for i := range 9 {
		fill(fmt.Sprint("t", i), ordersATenant, false)
	}
	wantOrders(o, "small", "small3.example.com")
	wantOrders(o, "new", "new.example.com", "new2.example.com")
	if o.has("small3.example.com") || !o.has("new.example.com") || o.has("new2.example.com") {
		t.Error("who has none due is sent away, or others are not")
	}
}

// TestCancelledOrders leave the queue, and the heap of those that wait stays one.
func TestCancelledOrders(t *testing.T) {
	s, _ := newStoredState(t)
	o := &s.certs.orders
	names := manyNames("a", 100)
	wantOrders(o, "a", names...)
	for i, name := range names {
		if i%3 == 0 {
			o.cancel(name)
		}
	}
	pending, failed := o.summary()
	if pending != 66 || failed != 0 {
		t.Errorf("%d pending, %d failed", pending, failed)
	}
	for i := range 66 {
		one, of := o.take()
		if strings.HasSuffix(one.name, "x") || one.cancelled {
			t.Fatalf("%s was taken", one.name)
		}
		o.mu.Lock()
		one.running = false
		of.running--
		one.next = time.Now().Add(time.Duration(i%7+1) * time.Hour)
		o.wait(one)
		o.mu.Unlock()
	}
	for i, name := range names {
		if i%2 == 0 {
			o.cancel(name)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.waiting) != 33 || len(o.byName) != 33 {
		t.Errorf("%d wait, %d are known", len(o.waiting), len(o.byName))
	}
	for i, one := range o.waiting {
		if one.place != i || i > 0 && one.next.Before(o.waiting[(i-1)/2].next) {
			t.Errorf("order %d of the heap is in the wrong place", i)
		}
	}
}
