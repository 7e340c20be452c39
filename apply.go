package pqproxy

import (
	"crypto/tls"
	"encoding/json"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// draft is a domain that has been validated and whose files have been read: all that can fail is done.
type draft struct {
	*domain.Domain
	source    domain.Source
	pair      *tls.Certificate // nil unless byoc
	upstreams []*upstream      // as new
}

// epochs counts the security epochs of all routes of the process.
var epochs atomic.Uint64

// apply replaces the table by one of the drafts. It is the table's only writer; call it with the lock
// held.
func (s *state) apply(drafts []*draft) {
	old := s.table.Load()
	next := &table{routes: make(map[string]*route, len(drafts))}
	shared := make(map[upstreamKey]*upstream)
	for _, d := range drafts {
		next.routes[d.Name] = s.compile(d, old.routes[d.Name], shared)
	}
	s.upstreams = shared
	s.table.Store(next)

	counts := make(map[domain.Source]int)
	for _, r := range next.routes {
		counts[r.source]++
	}
	for _, source := range []domain.Source{domain.Static, domain.Admin, domain.Remote} {
		metrics.domains.WithLabelValues(string(source)).Set(float64(counts[source]))
	}
	s.settings.Load().logger.Info("domains applied", zap.Int("domains", len(next.routes)), zap.Int("before", len(old.routes)))
	s.endAffected()
}

// compile makes the next version of a route, handing over what belongs to the name and not to the version.
func (s *state) compile(d *draft, before *route, shared map[upstreamKey]*upstream) *route {
	r := &route{
		Domain: d.Domain,
		source: d.source,
		policy: groupPolicies[d.PostQuantum],
		pair:   d.pair,
		open:   new(atomic.Int64),
	}
	if before != nil {
		r.open = before.open
	}
	if before != nil && sameSecurity(r, before) {
		r.epoch = before.epoch
	} else {
		r.epoch = epochs.Add(1)
	}
	for i, u := range d.upstreams {
		key := keyOf(d.Tenant, &d.Upstreams[i], u)
		have := shared[key]
		if have == nil {
			have = s.upstreams[key]
		}
		if have == nil {
			have = u
		}
		shared[key] = have
		r.upstreams = append(r.upstreams, have)
	}
	return r
}

// sameSecurity reports whether sessions of one version of a route may be resumed under the other. An ACME
// renewal changes nothing here.
func sameSecurity(a, b *route) bool {
	return a.Tenant == b.Tenant && a.PostQuantum == b.PostQuantum && a.Suspended == b.Suspended && samePair(a.pair, b.pair)
}

func samePair(a, b *tls.Certificate) bool {
	if a == nil || b == nil {
		return a == b
	}
	return string(a.Certificate[0]) == string(b.Certificate[0])
}

// upstreamKey names what domains may share: an address with its TLS settings, of one tenant.
type upstreamKey struct {
	tenant, dial, tls string
}

func keyOf(tenant string, u *domain.Upstream, compiled *upstream) upstreamKey {
	key := upstreamKey{tenant: tenant, dial: u.Dial}
	if u.TLS != nil {
		settings := *u.TLS
		settings.CAPEM, settings.CAFile = compiled.caPEM, ""
		encoded, err := json.Marshal(settings)
		if err != nil {
			panic(err) // strings and a bool
		}
		key.tls = string(encoded)
	}
	return key
}
