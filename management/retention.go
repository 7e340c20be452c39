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
	foldEvery   = 30 * time.Second    // what was counted of a domain in many reports meanwhile becomes one change of its sums
	foldFor     = 20 * time.Second    // until the lease has to be prolonged
	observedFor = 30 * 24 * time.Hour // what was observed of a domain is kept so long after it was removed
	purgeAgain  = time.Hour           // a purge is repeated for so long: a report may have been on its way
)

// purgeDomain has what was observed of a domain removed in 30 days. It is called in the transaction that removes the domain.
func (p *Plane) purgeDomain(tx Tx, tenantID, domainID string) error {
	return tx.InsertPurge(Purge{TenantID: tenantID, DomainID: domainID, Due: p.now().Add(observedFor)})
}

// pace is how background work shares the database: in each transaction it does what takes about so long, and then it rests half as
// long as it worked.
type pace struct {
	time time.Duration
	rows int // of a transaction
}

const (
	paceTime  = 20 * time.Millisecond  // people wait for it, and hardly notice
	paceApart = 200 * time.Millisecond // nobody does
	paceLeast = 50
	paceMost  = 2000
)

func newPace(time time.Duration) *pace { return &pace{time: time, rows: 4 * paceLeast} }

// rest is called after each transaction, with when it began.
func (p *pace) rest(ctx context.Context, begun time.Time) error {
	took := time.Since(begun)
	switch {
	case took > p.time:
		p.rows = max(p.rows*3/4, paceLeast)
	case took < p.time/2:
		p.rows = min(p.rows*3/2, paceMost)
	}
	return p.wait(ctx, begun)
}

// wait rests half as long as it is since begun.
func (*pace) wait(ctx context.Context, begun time.Time) error {
	timer := time.NewTimer(time.Since(begun) / 2)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// untilDone calls a task until it finds nothing more to do.
func (p *pace) untilDone(ctx context.Context, task func() (int, error)) error {
	for {
		begun := time.Now()
		n, err := task()
		if err != nil || n == 0 {
			return err
		}
		if err := p.rest(ctx, begun); err != nil {
			return err
		}
	}
}

// foldUsage adds what edges reported to the sums: all of it, or as much as it can until the lease has to be prolonged.
func (p *Plane) foldUsage(ctx context.Context) error {
	pace := newPace(paceApart)
	if p.store.OneWriter() {
		pace = newPace(paceTime)
	}
	for until := time.Now().Add(foldFor); time.Now().Before(until); {
		begun, rows := time.Now(), pace.rows
		n, err := p.store.FoldUsage(ctx, Minute.floor(p.now().Add(-minutesKept)), rows)
		if err != nil || n < rows {
			return err
		}
		if err := pace.rest(ctx, begun); err != nil {
			return err
		}
	}
	return errMore
}

// retain removes what is older than it may be.
func (p *Plane) retain(ctx context.Context) error {
	now := p.now()
	age := p.usageAge(now)
	update := func(fn func(tx Tx) (int, error)) func() (int, error) {
		return func() (n int, err error) {
			err = p.store.Update(ctx, func(tx Tx) error {
				n, err = fn(tx)
				return err
			})
			return n, err
		}
	}
	pace := newPace(paceTime)
	tasks := []func() (int, error){
		func() (int, error) {
			return p.store.DeleteConnectionsBefore(ctx, now.Add(-p.cfg.Retention.Connections), pace.rows)
		},
		update(func(tx Tx) (int, error) { return tx.DeleteTotalsBefore(Minute, age.Minutes, pace.rows) }),
		update(func(tx Tx) (int, error) { return tx.DeleteTotalsBefore(Hour, age.Hours, pace.rows) }),
		update(func(tx Tx) (int, error) { return tx.DeleteTotalsBefore(Day, age.Days, pace.rows) }),
		update(func(tx Tx) (int, error) { return 0, tx.DeleteDroppedBefore(age.Hours) }),
		update(func(tx Tx) (int, error) { return tx.DeleteEventsBefore(now.Add(-p.cfg.Retention.Audit), pace.rows) }),
		update(func(tx Tx) (int, error) { return tx.DeleteOldStates(pace.rows) }),
		update(func(tx Tx) (int, error) {
			return tx.DeleteEdgesBefore(now.Add(-edgeKept), now.Add(-runsKept), pace.rows)
		}),
	}
	for _, task := range tasks {
		if err := pace.untilDone(ctx, task); err != nil {
			return err
		}
	}
	return p.purge(ctx, pace)
}

// usageAge returns which sums are old.
func (p *Plane) usageAge(now time.Time) UsageAge {
	usage := now.Add(-p.cfg.Retention.Usage)
	return UsageAge{Minutes: now.Add(-minutesKept), Hours: usage, Days: usage.Add(-24 * time.Hour)}
}

const (
	oldUsageEvery  = time.Hour
	oldUsageAtOnce = 100 // domains
)

// retainUsage removes sums of domains that are too old. It goes through all domains, for as long as that takes, and keeps others from
// writing only while it removes.
func (p *Plane) retainUsage(ctx context.Context) error {
	age, pace, last := p.usageAge(p.now()), newPace(paceTime), ""
	for more := true; more; {
		var old []string
		begun := time.Now()
		err := p.store.View(ctx, func(tx Tx) (err error) {
			old, last, more, err = tx.FindOldUsage(age, last, oldUsageAtOnce)
			return err
		})
		if err != nil {
			return err
		}
		if err := pace.wait(ctx, begun); err != nil {
			return err
		}
		if len(old) == 0 {
			continue
		}
		err = pace.untilDone(ctx, func() (removed int, err error) {
			err = p.store.Update(ctx, func(tx Tx) error {
				removed, err = tx.DeleteUsageBefore(age, old, pace.rows)
				return err
			})
			return removed, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// purgesAtOnce bounds one round.
const purgesAtOnce = 200

// purge removes what was observed of tenants and domains that are gone.
func (p *Plane) purge(ctx context.Context, pace *pace) error {
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
		err := pace.untilDone(ctx, func() (int, error) {
			return p.store.DeleteConnectionsOf(ctx, one.TenantID, one.DomainID, pace.rows)
		})
		if err != nil {
			return err
		}
		err = pace.untilDone(ctx, func() (removed int, err error) {
			err = p.store.Update(ctx, func(tx Tx) (err error) {
				if removed, err = tx.DeleteUsageOf(one.TenantID, one.DomainID, pace.rows); err != nil || removed > 0 {
					return err
				}
				if one.Due.Add(purgeAgain).After(now) {
					return nil
				}
				return tx.DeletePurge(one)
			})
			return removed, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
