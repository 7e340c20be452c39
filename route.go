package pqproxy

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"runtime"
	"sync"
	"sync/atomic"
	"weak"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// route is a domain compiled for the data path. It is immutable.
type route struct {
	*domain.Domain
	source domain.Source

	// epoch changes whenever a session of this name must not be resumed any more: with tenant, policy,
	// BYOC pair and suspension. It is unique in the process.
	epoch uint64

	policy    *groupPolicy
	pair      *tls.Certificate // the domain's own; nil: the certificate store has it
	pairError error            // why there is none although there should be
	upstreams []*upstream
}

// epochs counts the security epochs of all routes of the process.
var epochs atomic.Uint64

// routeOf returns the route of an entry, compiling it for the first who asks.
func (s *state) routeOf(e entry) *route {
	if r := e.route(); r != nil {
		return r
	}
	return e.keep(s.compile(e))
}

// routeFor returns the route of a host name in normal form, or nil.
func (s *state) routeFor(host string) *route {
	t := s.table.Load()
	e := t.likely(host)
	if e.none() {
		return nil
	}
	if r := s.routeOf(e); r.covers(host) {
		return r
	}
	if e = t.find(host); e.none() { // another name of the same hash
		return nil
	}
	return s.routeOf(e)
}

// covers reports whether the route's name is the host's, or its wildcard.
func (r *route) covers(host string) bool {
	if r.Name == host {
		return true
	}
	wildcard, ok := domain.WildcardOf(host)
	return ok && r.Name == wildcard
}

// compile makes the route of an entry. The record was checked when it was applied, so that nothing is left to fail
// but a pair or a CA that this process takes for good no longer.
func (s *state) compile(e entry) *route {
	d := e.domain()
	r := &route{Domain: d, source: e.source.source(), epoch: e.epoch, policy: groupPolicies[d.PostQuantum]}
	if d.Certificate.Source == domain.BYOC {
		pair, err := tls.X509KeyPair([]byte(d.Certificate.ChainPEM), []byte(d.Certificate.KeyPEM))
		if err != nil {
			r.pairError = err
		} else {
			r.pair = &pair
		}
		d.Certificate.ChainPEM, d.Certificate.KeyPEM = "", "" // in the entry's JSON still, and parsed in pair
	}
	for i := range d.Upstreams {
		r.upstreams = append(r.upstreams, s.upstreams.get(d.Tenant, d.Upstreams[i]))
	}
	return r
}

// upstreamPool knows the upstreams in use, so that domains and versions of a domain share them: connection counts,
// health and the sessions that can be resumed are those of the upstream. It keeps none in use.
type upstreamPool struct {
	mu    sync.Mutex
	known map[upstreamKey]weak.Pointer[upstream]
}

// upstreamKey names what domains may share: an address with its TLS settings, of one tenant.
type upstreamKey [sha256.Size]byte

func keyOf(tenant string, u domain.Upstream) upstreamKey {
	settings, err := json.Marshal(struct {
		Tenant, Dial string
		TLS          *domain.UpstreamTLS
	}{tenant, u.Dial, u.TLS})
	if err != nil {
		panic(err) // strings and a bool
	}
	return sha256.Sum256(settings)
}

// get returns the upstream of those settings.
func (p *upstreamPool) get(tenant string, settings domain.Upstream) *upstream {
	key := keyOf(tenant, settings)
	p.mu.Lock()
	defer p.mu.Unlock()
	if u := p.known[key].Value(); u != nil {
		return u
	}
	u := newUpstream(settings)
	if p.known == nil {
		p.known = make(map[upstreamKey]weak.Pointer[upstream])
	}
	p.known[key] = weak.Make(u)
	runtime.AddCleanup(u, p.forget, key)
	return u
}

// forget drops what nobody uses any more, unless it has come back since.
func (p *upstreamPool) forget(key upstreamKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known[key].Value() == nil {
		delete(p.known, key)
	}
}
