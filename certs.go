package pqproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// certificates are those that domains do not bring themselves, in a cache of our own: the tls app's would make them
// part of its automation policies, from which nothing can be taken at run time. They are loaded from storage when the
// first client comes, so that memory follows the names that are visited.
type certificates struct {
	owner  *state
	cache  *certmagic.Cache
	config atomic.Pointer[issuing] // of the config in force; nil: there is none yet
	orders orders
	known  certIndex
	hurry  chan struct{} // a sweep is wanted now

	http      atomic.Bool // a server of ours answers challenges on port 80
	checking  atomic.Pointer[checkKey]
	checkPort string        // 80 but in tests
	resolver  *net.Resolver // nil but in tests
	rest      time.Duration // between sweeps

	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	working sync.WaitGroup

	mu      sync.Mutex
	loading map[string]*loading  // by name, while it is read from storage or issued by the local CA
	missing map[string]time.Time // names that the storage had no certificate of, and until when it is not asked again
}

// Bounds of what is in memory.
const (
	certsInMemory  = 20_000 // about 15 KB each; who is not among them is loaded again
	missingEntries = 10_000
	missingFor     = 5 * time.Second
	loadTimeout    = 10 * time.Second
)

// errNoIssuer is what the cache hears between configs.
var errNoIssuer = errors.New("no config has an issuer")

func (s *certificates) open(owner *state) {
	s.owner = owner
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.loading, s.missing = make(map[string]*loading), make(map[string]time.Time)
	s.hurry, s.checkPort, s.rest = make(chan struct{}, 1), "80", sweepRest
	s.orders.open(s)
	options := certmagic.CacheOptions{
		GetConfigForCert: func(cert certmagic.Certificate) (*certmagic.Config, error) {
			now := s.config.Load()
			switch {
			case now == nil:
				return nil, errNoIssuer
			case s.isInternal(cert.Names):
				return now.internal, nil
			}
			return now.acme, nil
		},
		Capacity:           certsInMemory,
		RenewCheckInterval: 365 * 24 * time.Hour,
		Logger:             caddy.Log().Named("pqproxy.certificates"),
	}
	// Our sweeper renews, visited or not: the cache's own maintenance, which the interval at its beginning decides about, is
	// left with OCSP. From then on the interval says how early a renewal may be.
	s.cache = certmagic.NewCache(options)
	options.RenewCheckInterval = renewSlack
	s.cache.SetOptions(options)
}

// isInternal reports whether the domain of a certificate has it from the local CA.
func (s *certificates) isInternal(names []string) bool {
	if len(names) == 0 {
		return false
	}
	e := s.owner.table.Load().named(names[0])
	return e != nil && e.certificate == fromInternal
}

// close ends the maintenance of the cache, the orders and the sweeper. Nothing may be applied any more.
func (s *certificates) close() {
	s.cancel()
	s.orders.close()
	s.working.Wait()
	s.cache.Stop()
}

// use puts the issuers of a config in force.
func (s *certificates) use(now *issuing) {
	if s.config.Swap(now) == nil {
		s.orders.start()
		s.working.Go(s.sweepForever)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.missing) // the storage may be another one
}

// followAtOnce is how many names a change may have for them to be looked at one by one. The sweeper finds the others.
const followAtOnce = 10_000

// servesHTTP reports whether names can be reached on port 80.
func (s *certificates) servesHTTP() bool { return s.http.Load() }

// follow takes up what apply has changed: certificates that are wanted now are obtained in the background, and those
// that nobody wants any more leave memory. It is called under the state's lock and does not wait.
func (s *certificates) follow(changes []changed) {
	var gone []certmagic.SubjectIssuer
	for i, c := range changes {
		had, has := certNone, certNone
		if c.before != nil {
			had = c.before.certificate
		}
		if c.now != nil {
			has = c.now.certificate
		}
		if had.issued() && had != has {
			s.orders.cancel(c.name)
			s.known.forget(c.name)
			if s.inMemory(c.name) {
				gone = append(gone, certmagic.SubjectIssuer{Subject: c.name})
			}
		}
		if has.issued() && i < followAtOnce {
			s.forgetMissing(c.name)
			if has == fromACME {
				s.orders.want(c.name, c.now)
			}
		}
	}
	if len(changes) > followAtOnce {
		s.sweepSoon()
	}
	if len(gone) > 0 {
		s.working.Go(func() { s.cache.RemoveManaged(gone) })
	}
}

func (s *certificates) inMemory(name string) bool { return len(s.of(name)) > 0 }

// of returns the certificates in memory that are for exactly that name.
func (s *certificates) of(name string) []certmagic.Certificate {
	return slices.DeleteFunc(s.cache.AllMatchingCertificates(name), func(c certmagic.Certificate) bool {
		return !slices.Contains(c.Names, name)
	})
}

// newest returns the certificate in memory that is valid longest, or nil.
func (s *certificates) newest(name string) *tls.Certificate {
	var newest *certmagic.Certificate
	for _, cert := range s.of(name) {
		if newest == nil || cert.Leaf.NotAfter.After(newest.Leaf.NotAfter) {
			newest = &cert
		}
	}
	if newest == nil {
		return nil
	}
	return &newest.Certificate
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
	if cert := s.certs.newest(r.Name); cert != nil {
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
	if until, ok := s.missing[r.Name]; ok && time.Now().Before(until) {
		s.mu.Unlock()
		return nil, s.notIssued(r.Name)
	}
	l := s.loading[r.Name]
	if l == nil {
		l = &loading{done: make(chan struct{})}
		s.loading[r.Name] = l
		s.working.Go(func() { s.fill(l, now, r.Name, internal) })
	}
	s.mu.Unlock()
	<-l.done // fill has a deadline
	if l.err != nil {
		return nil, l.err
	}
	cert := s.newest(r.Name)
	if cert == nil {
		return nil, s.notIssued(r.Name)
	}
	return cert, nil
}

// fill does the work of load.
func (s *certificates) fill(l *loading, now *issuing, name string, internal bool) {
	ctx, cancel := context.WithTimeout(s.ctx, loadTimeout)
	defer cancel()
	cfg := now.acme
	if internal {
		cfg = now.internal
	}
	cert, err := cfg.CacheManagedCertificate(ctx, name)
	if internal && (errors.Is(err, fs.ErrNotExist) || err == nil && cert.NeedsRenewal(cfg)) {
		if err == nil {
			err = cfg.RenewCertAsync(ctx, name, false)
		} else {
			err = cfg.ObtainCertAsync(ctx, name)
		}
		if err == nil {
			cert, err = cfg.CacheManagedCertificate(ctx, name)
		}
	}
	switch {
	case err == nil:
		s.known.note(name, cert.Leaf.NotAfter)
	case errors.Is(err, fs.ErrNotExist):
		if e := s.owner.table.Load().named(name); e != nil && e.certificate.issued() {
			s.orders.want(name, e)
		}
		err = s.notIssued(name)
	default:
		now.logger.Error("loading a certificate", zap.String(keyDomain, name), zap.Error(err))
		err = fmt.Errorf("loading the certificate of %s: %w", name, err)
	}
	l.err = err
	s.mu.Lock()
	delete(s.loading, name)
	if err != nil {
		if len(s.missing) >= missingEntries {
			clear(s.missing)
		}
		s.missing[name] = time.Now().Add(missingFor)
	}
	s.mu.Unlock()
	close(l.done)
}

func (s *certificates) notIssued(name string) error {
	return &errNotIssued{name, s.orders.state(name)}
}

func (s *certificates) forgetMissing(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.missing, name)
}

// renewed brings a certificate that was issued just now, by this edge or another one, into memory if its older version
// is there, and takes that out.
func (s *certificates) renewed(ctx context.Context, cfg *certmagic.Config, name string) error {
	s.forgetMissing(name)
	old := s.of(name)
	if len(old) == 0 {
		return nil
	}
	cert, err := cfg.CacheManagedCertificate(ctx, name)
	if err != nil {
		return err
	}
	var hashes []string
	for _, o := range old {
		if o.Hash() != cert.Hash() {
			hashes = append(hashes, o.Hash())
		}
	}
	s.cache.Remove(hashes)
	return nil
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
