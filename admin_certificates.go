package pqproxy

import (
	"crypto/x509"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// certificateState is what is known of the certificate of a domain.
type certificateState struct {
	Source      domain.CertificateSource `json:"source"`
	State       string                   `json:"state"`
	Issuer      string                   `json:"issuer,omitempty"`
	NotBefore   *time.Time               `json:"not_before,omitempty"`
	NotAfter    *time.Time               `json:"not_after,omitempty"`    // nil: there is no certificate
	Error       string                   `json:"error,omitempty"`        // what went wrong last, or why clients meet none
	Attempts    int                      `json:"attempts,omitempty"`     // to obtain or renew it, that failed
	NextAttempt *time.Time               `json:"next_attempt,omitempty"` // nil: now, or none is necessary
}

// The states of a certificate.
const (
	certValid   = "valid"   // it is served, also while renewing it fails
	certPending = "pending" // there is none yet, or its time has not come
	certFailed  = "failed"  // there is none, and obtaining it failed; or it was revoked
	certExpired = "expired" // it is served all the same
)

// maxIssuer bounds the name of an issuer in bytes: a tenant's own CA may have any.
const maxIssuer = 256

// certificateState describes the certificate that an entry, whose domain is d, is served with, as far as that is known
// without a look into storage.
func (s *state) certificateState(e entry, d *domain.Domain) certificateState {
	state := certificateState{Source: d.Certificate.Source}
	leaf, err := s.leafOf(e, d)
	utc := func(t time.Time) *time.Time { t = t.UTC(); return &t }
	if leaf != nil {
		state.Issuer, state.NotBefore, state.NotAfter = cutText(leaf.Issuer.String(), maxIssuer), utc(leaf.NotBefore), utc(leaf.NotAfter)
	} else if notAfter, ok := s.certs.known.of(d.Name); ok {
		state.Issuer, state.NotAfter = s.certs.known.issuerOf(d.Name), utc(notAfter)
	}
	order := s.certs.orders.report(d.Name)
	state.Attempts = order.attempts
	if !order.next.IsZero() {
		state.NextAttempt = utc(order.next)
	}
	state.State, state.Error = s.judge(e, state, leaf, err, order)
	state.Error = cutText(state.Error, maxErrorText)
	return state
}

// judge returns the state of a certificate and what is wrong with it.
func (s *state) judge(e entry, c certificateState, leaf *x509.Certificate, err error, order orderReport) (state, fault string) {
	now := time.Now()
	switch {
	case err != nil:
		return certFailed, err.Error()
	case c.NotAfter == nil && order.last != "":
		return certFailed, s.certs.notIssued(e.name()).Error()
	case c.NotAfter == nil && e.certificate == fromInternal:
		return certPending, (&errNotIssued{e.name(), "the local CA issues it when the first client comes"}).Error()
	case c.NotAfter == nil:
		return certPending, s.certs.notIssued(e.name()).Error()
	case now.After(*c.NotAfter):
		state, fault = certExpired, "the certificate has expired"
	case leaf != nil && now.Before(leaf.NotBefore):
		return certPending, "the certificate is not valid yet; clients refuse it until " + c.NotBefore.Format(time.RFC3339)
	case leaf != nil && s.certs.staples.revoked(leaf):
		state, fault = certFailed, "its CA has revoked the certificate"
	default:
		return certValid, order.last
	}
	if order.last != "" {
		fault += ", and obtaining another one failed: " + order.last
	}
	return state, fault
}

// orderReport is what becomes of an order; zero: there is none, or it has not failed.
type orderReport struct {
	attempts int       // that failed
	last     string    // why the last of them did
	next     time.Time // when the next one is; zero: it runs
}

// report tells what has become of the order of a name.
func (o *orders) report(name string) orderReport {
	o.mu.Lock()
	defer o.mu.Unlock()
	one := o.byName[name]
	if one == nil || one.last == "" {
		return orderReport{}
	}
	r := orderReport{attempts: one.attempts, last: one.last}
	if one.place >= 0 {
		r.next = one.next
	}
	return r
}

// leafOf returns the server's own certificate: the one in memory, or that of a pair, whose key, which takes long to parse,
// is not looked at. It returns nil where there is none in memory.
func (s *state) leafOf(e entry, d *domain.Domain) (*x509.Certificate, error) {
	if r := e.route(); r != nil && r.pairError != nil {
		return nil, r.pairError
	}
	var own *x509.Certificate
	if d.Certificate.Source == domain.BYOC {
		var err error
		if own, err = leafOfPEM(d.Certificate.ChainPEM); err != nil || s.servesOwn(e) {
			return own, err
		}
	}
	if issued := s.certs.memory.peek(d.Name); issued != nil {
		return issued.Leaf, nil
	}
	if _, known := s.certs.known.of(d.Name); known {
		return nil, nil
	}
	return own, nil
}

// servesOwn reports whether a name is served with the tenant's own pair, whatever else there may be.
func (s *state) servesOwn(e entry) bool {
	return e.certificate == fromTenant || e.certificate == fromTenantOrACME && time.Now().Before(e.pairEnds.time())
}

// ends returns when the certificate that a name is served with expires, if that is known. It reads no record, since a
// million names are asked for one page.
func (s *state) ends(e entry) (time.Time, bool) {
	if !s.servesOwn(e) {
		if notAfter, ok := s.certs.known.of(e.name()); ok {
			return notAfter, true
		}
	}
	return e.pairEnds.time(), e.pairEnds != 0
}

// certificateAnswer is an entry of the list of certificates.
type certificateAnswer struct {
	Name string `json:"name"`
	certificateState
}

// listCertificates answers with a page of the certificates of all domains, by name.
func (q *adminRequest) listCertificates() error {
	limit, err := q.limit()
	if err != nil {
		return err
	}
	after, err := q.domainParam("after")
	if err != nil {
		return err
	}
	wanted := func(entry) bool { return true }
	if text, ok := q.query["expiring_within"]; ok {
		within, err := caddy.ParseDuration(text)
		if err != nil || within < 0 {
			return apiError(http.StatusBadRequest, "query: expiring_within is %s; give a duration such as 30d or 12h", quoteShort(text))
		}
		until := time.Now().Add(within)
		wanted = func(e entry) bool {
			ends, ok := q.state.ends(e)
			return ok && ends.Before(until)
		}
	}
	list, more, err := q.namesAfter(q.state.table.Load(), after, limit, wanted)
	if err != nil {
		return err
	}
	answer := struct {
		Certificates []certificateAnswer `json:"certificates"`
		Next         string              `json:"next,omitempty"`
	}{Certificates: make([]certificateAnswer, len(list))}
	for i, e := range list {
		answer.Certificates[i] = certificateAnswer{e.name(), q.state.certificateState(e, e.domain())}
	}
	if more {
		answer.Next = list[len(list)-1].name()
	}
	return q.answer(http.StatusOK, answer)
}
