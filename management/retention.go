package management

import (
	"context"
	"time"
)

// Purge says that what was observed of a tenant, or of one of its domains, is to be removed.
type Purge struct {
	TenantID string
	DomainID string // empty: all of the tenant's
	Due      time.Time
}

// Times of observations.
const (
	foldEvery   = 5 * time.Second
	foldRows    = 500
	observedFor = 30 * 24 * time.Hour // what was observed of a domain is kept so long after it was removed
	purgeAgain  = time.Hour           // a purge is repeated for so long: a report may have been on its way
	removeRows  = 2000                // at once, so that nobody waits long
)

// purgeDomain has what was observed of a domain removed in 30 days. It is called in the transaction that removes the domain.
func (p *Plane) purgeDomain(tx Tx, tenantID, domainID string) error {
	return tx.InsertPurge(Purge{TenantID: tenantID, DomainID: domainID, Due: p.now().Add(observedFor)})
}

// foldUsage adds what edges reported to the sums.
func (p *Plane) foldUsage(ctx context.Context) error {
	for {
		n, err := p.store.FoldUsage(ctx, Minute.floor(p.now().Add(-minutesKept)), foldRows)
		if err != nil || n < foldRows {
			return err
		}
	}
}

// retain removes what is older than it may be.
func (p *Plane) retain(ctx context.Context) error {
	now := p.now()
	usage := now.Add(-p.cfg.Retention.Usage)
	update := func(fn func(tx Tx) (int, error)) func() (int, error) {
		return func() (n int, err error) {
			err = p.store.Update(ctx, func(tx Tx) error {
				n, err = fn(tx)
				return err
			})
			return n, err
		}
	}
	tasks := []func() (int, error){
		func() (int, error) {
			return p.store.DeleteConnectionsBefore(ctx, now.Add(-p.cfg.Retention.Connections), removeRows)
		},
		update(func(tx Tx) (int, error) { return tx.DeleteUsageBefore(Minute, now.Add(-minutesKept), removeRows) }),
		update(func(tx Tx) (int, error) { return tx.DeleteUsageBefore(Hour, usage, removeRows) }),
		update(func(tx Tx) (int, error) { return tx.DeleteUsageBefore(Day, usage.Add(-24*time.Hour), removeRows) }),
		update(func(tx Tx) (int, error) { return 0, tx.DeleteDroppedBefore(usage) }),
		update(func(tx Tx) (int, error) { return tx.DeleteEventsBefore(now.Add(-p.cfg.Retention.Audit), removeRows) }),
		update(func(tx Tx) (int, error) { return tx.DeleteOldStates(removeRows) }),
		update(func(tx Tx) (int, error) {
			return tx.DeleteEdgesBefore(now.Add(-edgeKept), now.Add(-runsKept), removeRows)
		}),
	}
	for _, task := range tasks {
		for {
			n, err := task()
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
		}
	}
	return p.purge(ctx)
}

// purgesAtOnce bounds one round.
const purgesAtOnce = 200

// purge removes what was observed of tenants and domains that are gone.
func (p *Plane) purge(ctx context.Context) error {
	now := p.now()
	var due []Purge
	err := p.store.View(ctx, func(tx Tx) (err error) {
		due, err = tx.FindPurges(now, purgesAtOnce)
		return err
	})
	if err != nil {
		return err
	}
	for _, one := range due {
		for {
			n, err := p.store.DeleteConnectionsOf(ctx, one.TenantID, one.DomainID, removeRows)
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
		}
		for removed := 1; removed > 0; {
			err := p.store.Update(ctx, func(tx Tx) (err error) {
				if removed, err = tx.DeleteUsageOf(one.TenantID, one.DomainID, removeRows); err != nil || removed > 0 {
					return err
				}
				if one.Due.Add(purgeAgain).After(now) {
					return nil
				}
				return tx.DeletePurge(one)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
