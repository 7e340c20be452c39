package api

import (
	"encoding/json"
	"net/http"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// domainBody is what the document says of a domain that is sent. Package domain reads it.
type domainBody struct {
	Name           string              `json:"name" maxLength:"1024" doc:"Host name, or *. and one: Unicode and upper case are taken. Fixed once the domain exists."`
	Upstreams      []domain.Upstream   `json:"upstreams" minItems:"1" maxItems:"16" nullable:"false"`
	LoadBalancing  string              `json:"load_balancing,omitempty" enum:"first,random,least_conn,ip_hash" default:"first"`
	HealthCheck    *domain.HealthCheck `json:"health_check,omitempty"`
	ProxyProtocol  string              `json:"proxy_protocol,omitempty" enum:"off,v1,v2" default:"off"`
	PostQuantum    string              `json:"post_quantum,omitempty" enum:"prefer,require,off" default:"prefer"`
	ALPN           []string            `json:"alpn,omitempty" maxItems:"16" nullable:"false"`
	Certificate    *domainCertificate  `json:"certificate,omitempty"`
	MaxConnections int                 `json:"max_connections,omitempty" minimum:"0"`
	Suspended      bool                `json:"suspended,omitempty"`
}

type domainCertificate struct {
	Source   string `json:"source,omitempty" enum:"acme,byoc,internal" default:"acme"`
	ChainPEM string `json:"chain_pem,omitempty" doc:"Of byoc: the certificate, then its intermediates. Never returned here."`
	KeyPEM   string `json:"key_pem,omitempty" doc:"Of byoc: the private key, not encrypted. Never returned."`
	Fallback string `json:"fallback,omitempty" enum:"none,acme" default:"none"`
}

// domainPatch is domainBody where nothing is required.
type domainPatch struct {
	Upstreams      []domain.Upstream   `json:"upstreams,omitempty" minItems:"1" maxItems:"16"`
	LoadBalancing  string              `json:"load_balancing,omitempty" enum:"first,random,least_conn,ip_hash"`
	HealthCheck    *domain.HealthCheck `json:"health_check,omitempty"`
	ProxyProtocol  string              `json:"proxy_protocol,omitempty" enum:"off,v1,v2"`
	PostQuantum    string              `json:"post_quantum,omitempty" enum:"prefer,require,off"`
	ALPN           []string            `json:"alpn,omitempty" maxItems:"16"`
	Certificate    *domainCertificate  `json:"certificate,omitempty"`
	MaxConnections int                 `json:"max_connections,omitempty" minimum:"0"`
	Suspended      bool                `json:"suspended,omitempty"`
}

type domainsIn struct {
	paging
	Status string `query:"status" enum:"pending_dns,verifying,issuing,deploying,active,degraded,moved,suspended,deleting" doc:"Only domains with this status."`
	Name   string `query:"name" maxLength:"1024" doc:"Only the domain of this name."`
	Q      string `query:"q" maxLength:"253" doc:"Only domains whose names contain this."`
}

type createDomainIn struct {
	Body json.RawMessage
}

type patchDomainIn struct {
	byID
	conditional
	Body json.RawMessage
}

type deleteDomainIn struct {
	byID
	conditional
}

type probesOut struct {
	Upstreams []management.UpstreamProbe `json:"upstreams" nullable:"false"`
}

// domainRoutes are the routes of domains.
func domainRoutes() []route {
	op := func(method, path, id, summary, description string) operation {
		return operation{method: method, path: path, id: id, tag: "domains", summary: summary, description: description, scope: management.DomainsWrite}
	}
	list := op(http.MethodGet, "/v1/domains", "listDomains", "List domains", "Sorted by name.")
	list.scope = management.DomainsRead
	create := op(http.MethodPost, "/v1/domains", "createDomain", "Add a domain",
		"The least that works is a name and an upstream. The answer says which DNS record to set. A pair needs the scope certificates:write too.")
	create.status, create.bodyLike = http.StatusCreated, domainBody{}
	create.codes = []management.Code{management.DomainExists, management.QuotaExceeded}
	find := op(http.MethodGet, "/v1/domains/{id}", "getDomain", "Read a domain", "")
	find.scope = management.DomainsRead
	patch := op(http.MethodPatch, "/v1/domains/{id}", "patchDomain", "Change a domain",
		"A merge patch (RFC 7396): null removes a setting, lists are replaced whole. The name is fixed. A pair needs the scope certificates:write too.")
	patch.bodyLike = domainPatch{}
	patch.codes = []management.Code{management.PreconditionFailed, management.Conflict}
	remove := op(http.MethodDelete, "/v1/domains/{id}", "deleteDomain", "Delete a domain",
		"Edges are told at once. The domain is shown as deleting until they have let go of it, then it is not found.")
	remove.status = http.StatusAccepted
	remove.codes = []management.Code{management.PreconditionFailed}
	check := op(http.MethodPost, "/v1/domains/{id}/check", "checkDomain", "Check a domain now", "Asks DNS and, for the proof of ownership, the name's web server.")
	check.codes = []management.Code{management.Conflict}
	probe := op(http.MethodPost, "/v1/domains/{id}/probe", "probeDomain", "Probe the upstreams", "Connects to each upstream from here: reachable, TLS, post-quantum, certificate, PROXY protocol; and recommends settings.")
	probe.codes = []management.Code{management.Conflict}
	return []route{
		endpoint(list, func(c *call, in *domainsIn) (*answer[listOfDomains], error) {
			found, next, err := c.plane.FindDomains(c.ctx, c.who, management.DomainQuery{
				Status: management.Status(in.Status), Name: in.Name, Q: in.Q, Page: in.page(),
			})
			if err != nil {
				return nil, err
			}
			return listOf(found, next), nil
		}),
		endpoint(create, func(c *call, in *createDomainIn) (*answer[*management.Domain], error) {
			d, err := c.plane.CreateDomain(c.ctx, c.who, in.Body)
			if err != nil {
				return nil, err
			}
			return created("/v1/domains/"+d.ID, management.ETag(d.Version), d), nil
		}),
		endpoint(find, func(c *call, in *byID) (*answer[*management.Domain], error) {
			return domainAnswer(c.plane.FindDomain(c.ctx, c.who, in.ID))
		}),
		endpoint(patch, func(c *call, in *patchDomainIn) (*answer[*management.Domain], error) {
			return domainAnswer(c.plane.PatchDomain(c.ctx, c.who, in.ID, in.Body, in.IfMatch))
		}),
		endpoint(remove, func(c *call, in *deleteDomainIn) (*answer[*management.Domain], error) {
			return domainAnswer(c.plane.DeleteDomain(c.ctx, c.who, in.ID, in.IfMatch))
		}),
		endpoint(check, func(c *call, in *byID) (*answer[*management.Domain], error) {
			return domainAnswer(c.plane.CheckDomain(c.ctx, c.who, in.ID))
		}),
		endpoint(probe, func(c *call, in *byID) (*answer[probesOut], error) {
			found, err := c.plane.ProbeDomain(c.ctx, c.who, in.ID)
			if err != nil {
				return nil, err
			}
			if found == nil {
				found = []management.UpstreamProbe{}
			}
			return ok("", probesOut{found}), nil
		}),
	}
}

type listOfDomains = list[*management.Domain]

func domainAnswer(d *management.Domain, err error) (*answer[*management.Domain], error) {
	if err != nil {
		return nil, err
	}
	return okLive(management.ETag(d.Version), d), nil
}
