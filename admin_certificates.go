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

// certificateState describes the certificate that an entry, whose domain is d, is served with.
func (s *state) certificateState(e *entry, d *domain.Domain) certificateState {
	state := certificateState{Source: d.Certificate.Source}
	leaf, err := s.leafOf(e, d)
	if err != nil {
		state.Error = cutText(err.Error(), maxErrorText)
		return state
	}
	notBefore, notAfter := leaf.NotBefore.UTC(), leaf.NotAfter.UTC()
	state.Issuer, state.NotBefore, state.NotAfter = cutText(leaf.Issuer.String(), maxIssuer), &notBefore, &notAfter
	if time.Now().After(notAfter) {
		state.Error = "the certificate has expired"
	}
	return state
}

// leafOf returns the server's own certificate. A pair's key, which takes long to parse, is not looked at.
func (s *state) leafOf(e *entry, d *domain.Domain) (*x509.Certificate, error) {
	if d.Certificate.Source != domain.BYOC {
		cert, err := s.certificateFor(&route{Domain: d})
		if err != nil {
			return nil, err
		}
		return cert.Leaf, nil
	}
	if r := e.route.Load(); r != nil && r.pairError != nil {
		return nil, r.pairError
	}
	block, _ := pem.Decode([]byte(d.Certificate.ChainPEM))
	if block == nil {
		return nil, errors.New("the domain has no pair")
	}
	return x509.ParseCertificate(block.Bytes)
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
			leaf, err := q.state.leafOf(e, e.domain())
			return err == nil && leaf.NotAfter.Before(until)
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
