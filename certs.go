package pqproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// certificates are those that domains do not bring themselves, in a memory of our own: the tls app's would make them
// part of its automation policies, from which nothing can be taken at run time. They are loaded from storage when the
// first client comes, so that memory follows the names that are visited.
type certificates struct {
	owner   *state
	memory  certMemory
	config  atomic.Pointer[issuing] // of the config in force; nil: there is none yet
	orders  orders
	known   certIndex
	pairs   pairCounts
	staples staples
	hurry   chan struct{} // a sweep is wanted now
	asks    chan string   // names whose CA is to be asked when to renew

	http      atomic.Bool // a server of ours answers challenges on port 80
	checking  atomic.Pointer[checkKey]
	checkPort string        // 80 but in tests
	resolver  *net.Resolver // nil but in tests
	rest      time.Duration // between sweeps

	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	working sync.WaitGroup // of spawn
	started chan struct{}  // closed when all is at work that obtains certificates

	mu      sync.Mutex
	closed  bool
	loading map[string]*loading         // by name, while it is read from storage or issued by the local CA
	missing map[string]missing          // names that had no certificate
	lookups map[string]*challengeLookup // by name, while a challenge is looked for in storage
}

// missing is why a name has no certificate, and until when the storage is not asked again.
type missing struct {
	until time.Time
	err   error
}

// Bounds of what is in memory.
const (
	certsInMemory  = 20_000 // about 15 KB each; who is not among them is loaded again
	missingEntries = 10_000
	missingFor     = 5 * time.Second
	loadTimeout    = 10 * time.Second
)

// errNoIssuer is what handshakes meet before there is a config.
var errNoIssuer = errors.New("no config has an issuer")

func (s *certificates) open(owner *state) {
	s.owner = owner
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.started = make(chan struct{})
	s.loading, s.missing, s.lookups = make(map[string]*loading), make(map[string]missing), make(map[string]*challengeLookup)
	s.hurry, s.asks, s.checkPort, s.rest = make(chan struct{}, 1), make(chan string, maxAsks), "80", sweepRest
	s.memory.open(certsInMemory)
	s.orders.open(s)
	s.staples.open(s)
}

// spawn runs f beside; not after close, which waits for all. f ends with s.ctx.
func (s *certificates) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spawnLocked(f)
}

func (s *certificates) spawnLocked(f func()) bool {
	if !s.closed {
		s.working.Go(f)
	}
	return !s.closed
}

// closeTimeout is how long close waits: an order under way takes back what it has written and lets go of its lock.
const closeTimeout = 15 * time.Second

// close ends the orders, the sweeper and whatever reads from storage.
func (s *certificates) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.orders.close()
	done := make(chan struct{})
	go func() { s.working.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(closeTimeout): // a module of somebody else's does not end with its context
	}
	if now := s.config.Load(); now != nil {
		now.closeIdle()
	}
}

// use puts the issuers of a config in force.
func (s *certificates) use(now *issuing) {
	if s.config.Swap(now) == nil {
		s.spawn(s.begin)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.missing) // the storage may be another one
}

// begin starts what obtains certificates when Caddy has started all apps of its first config: until then challenges may
// find no listener, and certmagic, which listens in its place, could take the port of an app that is yet to start.
func (s *certificates) begin() {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := caddy.ActiveContext().AppIfConfigured("pqproxy"); err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
	}
	s.start()
}

func (s *certificates) start() {
	for range orderWorkers {
		s.spawn(s.orders.work)
	}
	for range askers {
		s.spawn(s.askForever)
	}
	s.spawn(s.sweepForever)
	close(s.started)
}

// followAtOnce is how many names a change may have for each to be looked at in storage at once. With more, as at every
// start of a large edge, the sweeper does it, which takes its time: the workers would keep the processor, and with it
// what applies the change, busy for seconds.
const followAtOnce = 1_000

// servesHTTP reports whether names can be reached on port 80.
func (s *certificates) servesHTTP() bool { return s.http.Load() }

// follow takes up what apply has changed: certificates that are wanted now are obtained in the background, and those
// that nobody wants any more leave memory. It is called under the state's lock and does not wait.
func (s *certificates) follow(changes *changes) {
	atOnce := changes.size <= followAtOnce
	for c := range changes.all {
		had, has := certNone, certNone
		if !c.before.none() {
			had = c.before.certificate
		}
		if !c.now.none() {
			has = c.now.certificate
		}
		if had.issued() && (had != has || c.newPair()) {
			s.orders.cancel(c.name())
			s.known.forget(c.name())
			s.memory.forget(c.name())
		}
		if has.issued() && atOnce {
			s.forgetMissing(c.name())
			if c.now.wantsIssued() {
				s.orders.want(c.name(), c.now)
			}
		}
	}
	if !atOnce {
		s.sweepSoon()
	}
}

// certificateFor returns the certificate that a route is served with: the domain's own pair, or the issued one of
// exactly the route's name, which may have to be read from storage.
func (s *state) certificateFor(r *route) (*tls.Certificate, error) {
	if r.pairError != nil {
		return nil, r.pairError
	}
	if r.pair != nil && (r.Certificate.Fallback != domain.FallbackACME || time.Now().Before(r.pair.Leaf.NotAfter)) {
		return r.pair, nil
	}
	if cert := s.certs.memory.get(r.Name); cert != nil {
		return cert, nil
	}
	cert, err := s.certs.load(r)
	if err != nil && r.pair != nil {
		return r.pair, nil // expired, and all that there is
	}
	return cert, err
}

// loading is a certificate on its way into memory. All who want it wait for one.
type loading struct {
	done chan struct{} // closed when the rest is set
	cert *tls.Certificate
	err  error
}

// errNotIssued is what a domain without a certificate has.
type errNotIssued struct{ name, state string }

func (e *errNotIssued) Error() string {
	return fmt.Sprintf("there is no certificate for %s yet: %s", e.name, e.state)
}

// load reads the certificate of a route from storage, or has it issued by the local CA. A certificate of another CA
// is never waited for.
func (s *certificates) load(r *route) (*tls.Certificate, error) {
	now := s.config.Load()
	if now == nil {
		return nil, errNoIssuer
	}
	internal := r.Certificate.Source == domain.Internal
	s.mu.Lock()
	if m, ok := s.missing[r.Name]; ok && time.Now().Before(m.until) {
		s.mu.Unlock()
		if m.err == nil {
			return nil, s.notIssued(r.Name)
		}
		return nil, m.err
	}
	if cert := s.memory.get(r.Name); cert != nil { // it has just been read
		s.mu.Unlock()
		return cert, nil
	}
	l := s.loading[r.Name]
	if l == nil {
		l = &loading{done: make(chan struct{})}
		s.loading[r.Name] = l
		if !s.spawnLocked(func() { s.fill(l, now, r.Name, internal) }) {
			s.mu.Unlock()
			return nil, context.Canceled // the process ends
		}
	}
	s.mu.Unlock()
	select {
	case <-l.done:
		return l.cert, l.err
	case <-time.After(loadTimeout + time.Second): // a storage that does not end with its context
		return nil, fmt.Errorf("loading the certificate of %s: the storage does not answer", r.Name)
	}
}

// fill does the work of load.
func (s *certificates) fill(l *loading, now *issuing, name string, internal bool) {
	ctx, cancel := context.WithTimeout(s.ctx, loadTimeout)
	defer cancel()
	held, err := s.find(ctx, now, name, internal)
	switch e := s.owner.table.Load().named(name); {
	case err != nil:
		now.logger.Error("loading a certificate", zap.String(keyDomain, name), zap.Error(err))
		err = fmt.Errorf("loading the certificate of %s: %w", name, err)
	case held != nil:
		l.cert = held.cert
		s.take(name, held, internal, true)
	case !e.none() && e.wantsIssued():
		s.orders.want(name, e)
	}
	s.mu.Lock()
	delete(s.loading, name)
	if held == nil || err != nil {
		if len(s.missing) >= missingEntries {
			clear(s.missing)
		}
		s.missing[name] = missing{time.Now().Add(missingFor), err}
	}
	s.mu.Unlock()
	if l.err = err; l.cert == nil && err == nil {
		l.err = s.notIssued(name)
	}
	close(l.done)
}

// find asks the storage or the local CA. A visitor must not be able to end the process by coming for what breaks a storage module.
func (s *certificates) find(ctx context.Context, now *issuing, name string, internal bool) (held *heldCert, err error) {
	defer func() {
		if p := recover(); p != nil {
			now.logger.Error("loading a certificate panicked", zap.String(keyDomain, name), zap.Any("panic", p), zap.Stack("stack"))
			held, err = nil, fmt.Errorf("panic: %v", p)
		}
	}()
	if internal {
		return s.local(ctx, now, name)
	}
	return now.held(ctx, now.issuers, name)
}

// local returns the certificate that the local CA has issued for a name, or issues now. Where the storage fails it is
// issued all the same, and held in memory alone.
func (s *certificates) local(ctx context.Context, now *issuing, name string) (*heldCert, error) {
	held, err := now.held(ctx, now.local, name)
	if err == nil && held != nil && !held.due(time.Now()) {
		return held, nil
	}
	unlock, lockErr := now.lock(ctx, name)
	if lockErr == nil {
		defer unlock()
	}
	if before, err := now.held(ctx, now.local, name); err == nil && before != nil {
		if held = before; !held.due(time.Now()) { // another edge was faster
			return held, nil
		}
	}
	fresh, err := now.ask(ctx, now.local, name, nil)
	if err != nil {
		if held != nil && isValid(held.cert, time.Now()) {
			now.logger.Error("renewing a certificate of the local CA", zap.String(keyDomain, name), zap.Error(err))
			return held, nil
		}
		return nil, err
	}
	if lockErr == nil {
		lockErr = now.save(ctx, fresh, held, name)
	}
	if lockErr != nil {
		now.logger.Error("keeping a certificate of the local CA", zap.String(keyDomain, name), zap.Error(lockErr))
	}
	return fresh, nil
}

func (s *certificates) notIssued(name string) error {
	return &errNotIssued{name, s.orders.state(name)}
}

func (s *certificates) forgetMissing(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.missing, name)
}

// take takes note of a certificate that storage has, or is to have; internal: of the local CA. Memory gets it if it has
// one of the name, or if it is wanted there.
func (s *certificates) take(name string, held *heldCert, internal, wanted bool) {
	s.known.note(name, held.cert.Leaf)
	s.known.look(name, held.nextLook(time.Now()))
	s.forgetMissing(name)
	if old := s.memory.peek(name); wanted && old == nil || old != nil && !old.Leaf.Equal(held.cert.Leaf) {
		s.memory.put(name, held.cert)
	}
	// The domain may have gone meanwhile: then follow comes after this, or the table is changed already.
	if e := s.owner.table.Load().named(name); e.none() || !internal && !e.wantsIssued() || internal != (e.certificate == fromInternal) {
		s.known.forget(name)
		s.memory.forget(name)
	}
}

// certKind says where an entry's certificate comes from.
type certKind uint8

const (
	certNone certKind = iota
	fromACME          // the issuers
	fromInternal
	fromTenant
	fromTenantOrACME // a pair of the tenant's that the issuers replace when it expires
)

// issued reports whether the certificate is one that we obtain.
func (k certKind) issued() bool { return k == fromACME || k == fromInternal || k == fromTenantOrACME }

// own reports whether the tenant has given a pair, whose private key is in the domain's JSON.
func (k certKind) own() bool { return k == fromTenant || k == fromTenantOrACME }

func certKindOf(d *domain.Domain) certKind {
	switch d.Certificate.Source {
	case domain.Internal:
		return fromInternal
	case domain.BYOC:
		if d.Certificate.Fallback == domain.FallbackACME {
			return fromTenantOrACME
		}
		return fromTenant
	}
	return fromACME
}
