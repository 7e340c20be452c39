package pqproxy

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// certificateState is what is known of the certificate of a domain.
type certificateState struct {
	Source    domain.CertificateSource `json:"source"`
	Issuer    string                   `json:"issuer,omitempty"`
	NotBefore *time.Time               `json:"not_before,omitempty"`
	NotAfter  *time.Time               `json:"not_after,omitempty"` // nil: there is no certificate
	Error     string                   `json:"error,omitempty"`     // why clients meet none, or one that they refuse
}

// maxIssuer bounds the name of an issuer in bytes: a tenant's own CA may have any.
const maxIssuer = 256

// certificateState describes the certificate that an entry, whose domain is d, is served with, as far as that is known
// without a look into storage.
func (s *state) certificateState(e *entry, d *domain.Domain) certificateState {
	state := certificateState{Source: d.Certificate.Source}
	leaf, err := s.leafOf(e, d)
	switch {
	case leaf != nil:
		notBefore, notAfter := leaf.NotBefore.UTC(), leaf.NotAfter.UTC()
		state.Issuer, state.NotBefore, state.NotAfter = cutText(leaf.Issuer.String(), maxIssuer), &notBefore, &notAfter
	case err != nil:
		state.Error = cutText(err.Error(), maxErrorText)
	default:
		if notAfter, ok := s.certs.known.of(d.Name); ok {
			notAfter = notAfter.UTC()
			state.NotAfter = &notAfter
		} else {
			state.Error = cutText(s.certs.notIssued(d.Name).Error(), maxErrorText)
		}
	}
	if state.NotAfter != nil && time.Now().After(*state.NotAfter) {
		state.Error = "the certificate has expired"
	}
	return state
}

// leafOf returns the server's own certificate: the one in memory, or that of a pair, whose key, which takes long to parse,
// is not looked at. It returns nil where there is none in memory.
func (s *state) leafOf(e *entry, d *domain.Domain) (*x509.Certificate, error) {
	pair := d.Certificate
	if r := e.route.Load(); pair.Source == domain.BYOC && r != nil && r.pairError != nil {
		return nil, r.pairError
	}
	var own *x509.Certificate
	if pair.Source == domain.BYOC {
		block, _ := pem.Decode([]byte(pair.ChainPEM))
		if block == nil {
			return nil, errors.New("the domain has no pair")
		}
		var err error
		if own, err = x509.ParseCertificate(block.Bytes); err != nil || pair.Fallback != domain.FallbackACME || time.Now().Before(own.NotAfter) {
			return own, err
		}
	}
	if issued := s.certs.newest(d.Name); issued != nil {
		return issued.Leaf, nil
	}
	return own, nil
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
	wanted := func(*entry) bool { return true }
	if text, ok := q.query["expiring_within"]; ok {
		within, err := caddy.ParseDuration(text)
		if err != nil || within < 0 {
			return apiError(http.StatusBadRequest, "query: expiring_within is %s; give a duration such as 30d or 12h", quoteShort(text))
		}
		until := time.Now().Add(within)
		wanted = func(e *entry) bool {
			state := q.state.certificateState(e, e.domain())
			return state.NotAfter != nil && state.NotAfter.Before(until)
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
