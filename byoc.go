package pqproxy

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"sync"
	"time"
	"weak"

	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pace"
)

// A tenant's own pair serves the names of its own records and no others: it is compiled into their routes, and is in
// no cache that is asked by name.

// checkPair judges the pair of a record. One that is out of date is refused where it is new, so that who brings it
// hears of it, and where an older version stays. It is not refused for what only time has done: the domain would be gone after
// a restart, or could not even be suspended.
func (c *changeSet) checkPair(d *domain.Domain) error {
	_, warnings, err := domain.CheckPair([]byte(d.Certificate.ChainPEM), []byte(d.Certificate.KeyPEM), d.Name, time.Now())
	if err != nil && !(outOfDate(err) && c.takesOutOfDate(d)) {
		return err
	}
	for _, w := range warnings {
		if c.warned++; c.warned <= refusalsKept {
			c.owner.settings.Load().logger.Warn(w, zap.String(keyDomain, d.Name))
		}
	}
	return nil
}

// takesOutOfDate reports whether a pair that is out of date is taken all the same.
func (c *changeSet) takesOutOfDate(d *domain.Domain) bool {
	if c.restore {
		return true
	}
	for e := c.owner.table.Load().named(d.Name); !e.none(); e = e.below() {
		had := e.domain().Certificate
		if had.ChainPEM == d.Certificate.ChainPEM && had.KeyPEM == d.Certificate.KeyPEM {
			return true
		}
	}
	// Edges that had it in time serve what the issuers gave in its place: one that starts today does so too.
	return c.source == rankRemote && d.Certificate.Fallback == domain.FallbackACME
}

// outOfDate reports whether nothing is wrong with a pair but the time.
func outOfDate(err error) bool {
	faults := domain.Errors(err)
	return len(faults) > 0 && !slices.ContainsFunc(faults, func(fault *domain.Error) bool {
		return !errors.Is(fault, domain.ErrExpired) && !errors.Is(fault, domain.ErrNotYetValid)
	})
}

// pairWarnings returns what is allowed but doubtful in the pair of a domain.
func pairWarnings(d *domain.Domain) []string {
	if d.Certificate.Source != domain.BYOC {
		return nil
	}
	_, warnings, _ := domain.CheckPair([]byte(d.Certificate.ChainPEM), []byte(d.Certificate.KeyPEM), d.Name, time.Now())
	return warnings
}

// pairEndsOf returns when a tenant's own pair expires.
func pairEndsOf(d *domain.Domain) epochTime {
	if d.Certificate.Source != domain.BYOC {
		return 0
	}
	leaf, err := leafOfPEM(d.Certificate.ChainPEM)
	if err != nil {
		return 1 // cannot be, since it was checked: it counts as expired
	}
	return max(1, epochTimeOf(leaf.NotAfter))
}

// takeOverBefore is how long before a tenant's pair expires another certificate is obtained, where the domain says so.
const takeOverBefore = 7 * 24 * time.Hour

// wantsIssued reports whether a name is to have a certificate of the issuers now.
func (e entry) wantsIssued() bool {
	return e.certificate == fromACME ||
		e.certificate == fromTenantOrACME && e.pairEnds.time().Before(time.Now().Add(takeOverBefore))
}

// newPair reports whether a name has another pair of the tenant's than before, as far as its end tells.
func (c *changed) newPair() bool {
	return !c.before.none() && !c.now.none() && c.before.pairEnds != c.now.pairEnds
}

// leafOfPEM returns the first certificate of a chain.
func leafOfPEM(chain string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(chain))
	if block == nil {
		return nil, errors.New("the domain has no pair")
	}
	return x509.ParseCertificate(block.Bytes)
}

// expiryNotices are how long before a pair expires the log says so.
var expiryNotices = [...]time.Duration{30 * 24 * time.Hour, 7 * 24 * time.Hour, 0}

// noticed has, by the digest of what a route's sessions depend on, how many of expiryNotices were logged about a pair. It
// has the pairs that are near their end alone, and is the sweeper's own.
type noticed map[uint64]int

// lookAtPairs logs which of the tenants' own pairs come near their end, each once for each notice.
func (s *certificates) lookAtPairs(before noticed) noticed {
	now, logger := time.Now(), s.config.Load().logger
	after := make(noticed)
	var pace pace.Pace
	for e := range s.owner.table.Load().all {
		pace.Step()
		left := e.pairEnds.time().Sub(now)
		if e.pairEnds == 0 || left > expiryNotices[0] {
			continue
		}
		notice := 0
		for notice < len(expiryNotices) && left <= expiryNotices[notice] {
			notice++
		}
		if notice > max(before[e.security], after[e.security]) {
			s.logPairEnd(logger, e, notice)
		}
		after[e.security] = max(after[e.security], notice)
	}
	return after
}

func (s *certificates) logPairEnd(logger *zap.Logger, e entry, notice int) {
	d := e.domain()
	fields := []zap.Field{
		zap.String(keyDomain, d.Name), zap.String(keyTenant, d.Tenant),
		zap.Time("not_after", e.pairEnds.time().UTC()), zap.String("fallback", d.Certificate.Fallback),
	}
	notAfter, issued := s.known.of(d.Name)
	switch {
	case notice < len(expiryNotices):
		days := int(expiryNotices[notice-1] / (24 * time.Hour))
		logger.Warn("a domain's own certificate expires soon: replace it", append(fields, zap.Int("within_days", days))...)
	case e.certificate == fromTenantOrACME && issued && time.Now().Before(notAfter):
		logger.Warn("a domain's own certificate has expired: one of the issuers is served", fields...)
	default:
		logger.Error("serving an expired certificate: replace it", fields...)
	}
}

// pairCounts remembers the counts of the tenants' own pairs for as long as they hold.
type pairCounts struct {
	mu     sync.Mutex
	of     weak.Pointer[table]
	until  epochTime // when the next one expires
	counts certCounts
}

// count counts the certificates of the edge. One that the issuers gave in place of an expired pair counts in its stead.
func (s *certificates) count(now time.Time) certCounts {
	counts := s.pairs.count(s, epochTimeOf(now))
	var issued certCounts
	s.known.count(&issued, now)
	if issued.valid+issued.expired > 0 && (counts.valid+counts.expired == 0 || issued.earliest < counts.earliest) {
		counts.earliest = issued.earliest
	}
	counts.valid += issued.valid
	counts.expired += issued.expired
	return counts
}

func (p *pairCounts) count(s *certificates, now epochTime) certCounts {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := s.owner.table.Load()
	if p.of == weak.Make(t) && now < p.until {
		return p.counts
	}
	p.of, p.until, p.counts = weak.Make(t), now+pairCountsFor, certCounts{}
	var pace pace.Pace
	for e := range t.all {
		pace.Step()
		if e.pairEnds == 0 {
			continue
		}
		if e.pairEnds < now && e.certificate == fromTenantOrACME {
			if _, replaced := s.known.of(e.name()); replaced {
				continue
			}
		}
		p.counts.add(e.pairEnds, now)
		if e.pairEnds >= now {
			p.until = min(p.until, e.pairEnds+1)
		}
	}
	return p.counts
}

// pairCountsFor bounds how long counts are remembered, in seconds: that a pair was replaced by an issued certificate
// changes nothing in the table.
const pairCountsFor = 60

// sameLeaf reports whether a route serves a certificate, or nobody has asked for its pair yet.
func (r *route) sameLeaf(leaf *x509.Certificate) bool {
	return r == nil || r.pair != nil && bytes.Equal(r.pair.Certificate[0], leaf.Raw)
}
