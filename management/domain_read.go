package management

import (
	"context"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// Domain is a domain as it is shown: its settings, without the pair of its certificate, and how it is.
type Domain struct {
	ID             string               `json:"id"`
	Name           string               `json:"name"`
	Tenant         string               `json:"tenant"`
	Upstreams      []domain.Upstream    `json:"upstreams" nullable:"false"`
	LoadBalancing  domain.LoadBalancing `json:"load_balancing" enum:"first,random,least_conn,ip_hash"`
	HealthCheck    *domain.HealthCheck  `json:"health_check,omitempty"`
	ProxyProtocol  domain.ProxyProtocol `json:"proxy_protocol" enum:"off,v1,v2"`
	PostQuantum    domain.PostQuantum   `json:"post_quantum" enum:"prefer,require,off"`
	ALPN           []string             `json:"alpn,omitempty"`
	Certificate    CertificateSettings  `json:"certificate"`
	MaxConnections int                  `json:"max_connections"`
	Suspended      bool                 `json:"suspended"`
	Revision       uint64               `json:"revision" doc:"of the last change that edges see; 0: they have not seen it yet"`
	CreatedAt      time.Time            `json:"created_at"`
	UpdatedAt      time.Time            `json:"updated_at"`
	DomainState

	Version int64 `json:"-"` // for the ETag
}

// CertificateSettings say where a certificate comes from. The pair itself is at /certificate.
type CertificateSettings struct {
	Source   domain.CertificateSource `json:"source" enum:"acme,byoc,internal"`
	Fallback string                   `json:"fallback,omitempty" enum:"none,acme" doc:"of byoc: what to serve when the pair has ended"`
}

// shown returns the domain of a view.
func (v *domainView) shown() *Domain {
	s := v.row.Settings
	d := &Domain{
		ID: v.row.ID, Name: v.row.Name, Tenant: v.row.TenantID, Upstreams: s.Upstreams, LoadBalancing: s.LoadBalancing, HealthCheck: s.HealthCheck,
		ProxyProtocol: s.ProxyProtocol, PostQuantum: s.PostQuantum, ALPN: s.ALPN, Certificate: CertificateSettings{Source: s.Certificate.Source},
		MaxConnections: s.MaxConnections, Suspended: s.Suspended, Revision: v.row.Revision, CreatedAt: v.row.CreatedAt, UpdatedAt: v.row.UpdatedAt,
		DomainState: derive(*v), Version: v.row.Version,
	}
	if s.Certificate.Source == domain.BYOC {
		d.Certificate.Fallback = s.Certificate.Fallback
	}
	return d
}

// DomainQuery selects domains of a tenant.
type DomainQuery struct {
	Status Status // empty: all
	Name   string // exactly this one, in any spelling; empty: all
	Q      string // a part of the name; empty: all
	Page   Page
}

// FindDomains lists the tenant's domains by name. The status is looked for as it was stored when something of the domain last
// changed; the state that is shown is as of now.
func (p *Plane) FindDomains(ctx context.Context, who *Principal, q DomainQuery) (domains []*Domain, next string, err error) {
	if err := who.Require(DomainsRead); err != nil {
		return nil, "", err
	}
	keys, err := q.Page.keys(1)
	if err != nil {
		return nil, "", err
	}
	filter := DomainFilter{TenantID: who.TenantID, Status: q.Status, Limit: q.Page.Limit + 1}
	if keys != nil {
		filter.After = keys[0]
	}
	if q.Name != "" {
		if filter.Name, err = domain.NormalName(q.Name); err != nil {
			return nil, "", nil // no domain is called so
		}
	}
	if filter.Contains = strings.ToLower(strings.TrimSpace(q.Q)); filter.Contains != "" {
		if normal, err := domain.NormalName(filter.Contains); err == nil {
			filter.Contains = normal
		}
	}
	err = p.store.View(ctx, func(tx Tx) error {
		rows, err := tx.FindDomains(filter)
		if err != nil {
			return err
		}
		rows, next = onePage(rows, q.Page, func(r *DomainRow) string { return r.Name })
		views, err := p.viewsOf(tx, rows)
		if err != nil {
			return err
		}
		domains = make([]*Domain, len(views))
		for i, v := range views {
			domains[i] = v.shown()
		}
		return nil
	})
	return domains, next, err
}

// FindDomain returns one of the tenant's domains.
func (p *Plane) FindDomain(ctx context.Context, who *Principal, id string) (d *Domain, err error) {
	if err := who.Require(DomainsRead); err != nil {
		return nil, err
	}
	err = p.store.View(ctx, func(tx Tx) error {
		row, err := tx.FindDomainByID(who.TenantID, id)
		if err != nil {
			return found("domain", err)
		}
		d, err = p.showRow(tx, row)
		return err
	})
	return d, err
}

func (p *Plane) showRow(tx Tx, row *DomainRow) (*Domain, error) {
	views, err := p.viewsOf(tx, []*DomainRow{row})
	if err != nil {
		return nil, err
	}
	return views[0].shown(), nil
}
