package management

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// DomainEdge is what one edge that is up has of one domain.
//
// Edges are the platform's (DESIGN.md section 9). A tenant may watch its own domain go live on each, and so learns how many are up, which
// EdgesAxis tells too, and their regions, which its connection records tell. Names, versions and loads of edges, and edges that are not
// up, are nothing to it.
type DomainEdge struct {
	// Number is the edge's place, from 1, among those that are up, in the order in which they first reported: what tenants call it. It
	// stays while the same edges are up.
	Number int

	Name   string // empty for whoever is no operator of the platform
	Region string // empty: it names none

	Applied     bool   // it has the domain's last change, and did not reject it
	Certificate bool   // it holds a certificate for it
	Rejected    string // what it found wrong with the record; empty: nothing

	// LiveSince is when Applied and Certificate both came to be true of the last change. Zero: they are not. Not needed to the second.
	LiveSince time.Time
}

// Live reports whether the edge serves the domain as it was last changed.
func (e *DomainEdge) Live() bool { return !e.LiveSince.IsZero() }

// DomainEdges returns what each edge that is up has of one of the tenant's domains, by Number. There is none of a domain that edges are
// not told of: what they say of its name may be about another tenant's domain.
func (p *Plane) DomainEdges(ctx context.Context, who *Principal, id string) (edges []*DomainEdge, err error) {
	if err := who.Require(DomainsRead); err != nil {
		return nil, err
	}
	err = p.store.View(ctx, func(tx Tx) error {
		row, err := tx.FindDomainByID(who.TenantID, id)
		if err != nil {
			return found("domain", err)
		}
		if edges = nil; !row.Published() {
			return nil
		}
		edges, err = p.edgesOf(tx, row)
		return err
	})
	if who.Require(Platform) != nil {
		for _, e := range edges {
			e.Name = ""
		}
	}
	return edges, err
}

// edgesOf says of each edge what EdgeState adds up, and by the same rules.
func (p *Plane) edgesOf(tx Tx, row *DomainRow) ([]*DomainEdge, error) {
	now := p.now()
	fresh := now.Add(-edgeFresh)
	up, err := edgesUp(tx, fresh, []*DomainRow{row})
	if err != nil {
		return nil, err
	}
	said, err := tx.FindEdgeStates([]string{row.Name}, fresh)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(up, func(a, b *EdgeRow) int { return cmp.Or(a.FirstSeen.Compare(b.FirstSeen), cmp.Compare(a.ID, b.ID)) })
	rejected, certificates := make(map[string]string), make(map[string]*EdgeCertificateState)
	for _, r := range said.Rejected {
		rejected[r.Edge] = r.text()
	}
	for i := range said.Certificates {
		certificates[said.Certificates[i].Edge] = &said.Certificates[i]
	}
	edges := make([]*DomainEdge, len(up))
	for i, r := range up {
		e := &DomainEdge{Number: i + 1, Name: r.Name, Region: r.Region, Rejected: rejected[r.Name]}
		edges[i] = e
		e.Applied = e.Rejected == "" && row.Revision > 0 && r.Revision >= row.Revision
		if c := certificates[r.Name]; c != nil && c.Held(now) {
			if e.Certificate = true; e.Applied {
				e.LiveSince = latest(r.since(row.Revision, row.UpdatedAt), c.Since)
			}
		}
	}
	return edges, nil
}
