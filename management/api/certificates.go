package api

import (
	"net/http"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

type putCertificateIn struct {
	byID
	conditional
	Body struct {
		ChainPEM string `json:"chain_pem" doc:"The certificate, then its intermediates, as PEM."`
		KeyPEM   string `json:"key_pem" doc:"Its private key as PEM, not encrypted. Never returned."`
	}
}

type certificatesIn struct {
	paging
	Within time.Duration `query:"expiring_within" minimum:"0" doc:"Only certificates that end within this time, such as 21d, the first to end first. Default: all, by name."`
}

// certificateRoutes are the routes of certificates.
func certificateRoutes() []route {
	op := func(method, path, id, summary string, scope management.Scope) operation {
		return operation{method: method, path: path, id: id, tag: "certificates", summary: summary, scope: scope}
	}
	const path = "/v1/domains/{id}/certificate"
	list := op(http.MethodGet, "/v1/certificates", "listCertificates", "List certificates", management.DomainsRead)
	put := op(http.MethodPut, path, "putCertificate", "Upload a certificate", management.CertificatesWrite)
	put.description = "Sets certificate.source to byoc. The key is kept encrypted and never returned."
	put.codes = []management.Code{management.PreconditionFailed, management.Conflict}
	remove := op(http.MethodDelete, path, "deleteCertificate", "Remove the uploaded certificate", management.CertificatesWrite)
	remove.description = "Sets certificate.source back to acme."
	remove.codes = []management.Code{management.PreconditionFailed, management.Conflict}
	return []route{
		endpoint(list, func(c *call, in *certificatesIn) (*answer[listOfCertificates], error) {
			found, next, err := c.plane.FindCertificates(c.ctx, c.who, in.Within, in.page())
			if err != nil {
				return nil, err
			}
			return listOf(found, next), nil
		}),
		endpoint(op(http.MethodGet, path, "getCertificate", "Read a domain's certificate", management.DomainsRead),
			func(c *call, in *byID) (*answer[*management.Certificate], error) {
				return certificateAnswer(c.plane.FindCertificate(c.ctx, c.who, in.ID))
			}),
		endpoint(put, func(c *call, in *putCertificateIn) (*answer[*management.Certificate], error) {
			return certificateAnswer(c.plane.PutCertificate(c.ctx, c.who, in.ID, in.Body.ChainPEM, in.Body.KeyPEM, in.IfMatch))
		}),
		endpoint(remove, func(c *call, in *deleteDomainIn) (*answer[*management.Certificate], error) {
			return certificateAnswer(c.plane.DeleteCertificate(c.ctx, c.who, in.ID, in.IfMatch))
		}),
	}
}

type listOfCertificates = list[*management.Certificate]

func certificateAnswer(c *management.Certificate, err error) (*answer[*management.Certificate], error) {
	if err != nil {
		return nil, err
	}
	return okLive(management.ETag(c.Version), c), nil
}
