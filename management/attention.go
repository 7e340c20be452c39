package management

import (
	"context"
	"time"
)

// OverviewTx is the part of Tx that a first look at everything needs.
type OverviewTx interface {
	// FindStaleEdges returns edges that last reported at t or before, the last to fall silent first, at most limit.
	FindStaleEdges(t time.Time, limit int) ([]*EdgeRow, error)
	// CountEdgesSince counts those that reported after t.
	CountEdgesSince(t time.Time) (int, error)
}

// FindDomainsOf returns the tenant's first domains of each of these statuses, at most `most` of each, by status as given and by name;
// and of which statuses there are more. The status is the one that was stored, as with FindDomains. It is one snapshot, in which what
// all domains share is read once.
func (p *Plane) FindDomainsOf(ctx context.Context, who *Principal, statuses []Status, most int) (domains []*Domain, more []Status, err error) {
	if err := who.Require(DomainsRead); err != nil {
		return nil, nil, err
	}
	err = p.store.View(ctx, func(tx Tx) error {
		var rows []*DomainRow
		for _, status := range statuses {
			some, err := tx.FindDomains(DomainFilter{TenantID: who.TenantID, Status: status, Limit: most + 1})
			if err != nil {
				return err
			}
			if len(some) > most {
				some, more = some[:most], append(more, status)
			}
			rows = append(rows, some...)
		}
		views, err := p.viewsOf(tx, rows)
		if err != nil {
			return err
		}
		for _, v := range views {
			domains = append(domains, v.shown())
		}
		return nil
	})
	return domains, more, err
}

// EdgeSummary says how many edges are up, how many are not, and which of these fell silent last.
type EdgeSummary struct {
	Up, Stale int
	Silent    []*Edge
}

// SummarizeEdges counts all edges, for operators of the platform, and returns at most `most` of those that are stale.
func (p *Plane) SummarizeEdges(ctx context.Context, who *Principal, most int) (*EdgeSummary, error) {
	if err := who.Require(Platform); err != nil {
		return nil, err
	}
	now, s := p.now(), new(EdgeSummary)
	fresh := now.Add(-edgeFresh)
	err := p.store.View(ctx, func(tx Tx) error {
		all, err := tx.CountEdges()
		if err != nil {
			return err
		}
		if s.Up, err = tx.CountEdgesSince(fresh); err != nil {
			return err
		}
		s.Stale = all - s.Up
		rows, err := tx.FindStaleEdges(fresh, most)
		for _, r := range rows {
			s.Silent = append(s.Silent, r.edge(now))
		}
		return err
	})
	return s, err
}
