package management

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

func (p *Plane) initDomains() {
	p.domains.running = make(map[string]int)
	p.domains.walk = make(map[Status]string)
	p.onTenantChange(p.tenantOfDomains)
}

func (p *Plane) domainWorkers() []worker {
	return []worker{
		{name: "domain-checks", every: 2 * time.Second, run: p.checkDue},
		{name: "domain-removals", every: 2 * time.Second, run: p.removeDeleted},
		{name: "domain-statuses", every: 5 * time.Second, run: p.walkStatuses},
		{name: "domain-history", every: 10 * time.Minute, run: p.forgetHistory},
	}
}

// How many domains are checked. A tenant's slow name servers hold up no more than its own share of a turn.
const (
	checksSide    = 64  // at a time
	checksInTurn  = 512 // until due ones are looked for again
	checksOfOne   = 16  // of one tenant in a turn
	checksInWrite = 16  // of which the results are stored in one transaction: people wait for theirs meanwhile
	walkedInATurn = 2000

	// startsFor is how long checks are begun until the lease has to be prolonged: those begun last take workTime more.
	startsFor = 15 * time.Second
)

// checkDue checks what is due.
func (p *Plane) checkDue(ctx context.Context) error {
	for until := time.Now().Add(startsFor); time.Now().Before(until); {
		var rows []*DomainRow
		err := p.store.View(ctx, func(tx Tx) (err error) {
			rows, err = tx.FindDomainsDue(p.now(), checksOfOne, checksInTurn)
			return err
		})
		if err != nil || len(rows) == 0 {
			return err
		}
		if err := p.checkRows(ctx, rows, until); err != nil {
			return err
		}
	}
	return nil
}

// checkRows checks domains side by side and stores what came of it, of many in one transaction: a write for each would keep
// people waiting for theirs. What is not begun until then stays due.
func (p *Plane) checkRows(ctx context.Context, rows []*DomainRow, until time.Time) error {
	results := make([]*seen, len(rows))
	places := make(chan struct{}, checksSide)
	var all sync.WaitGroup
	for i, row := range rows {
		places <- struct{}{}
		if !time.Now().Before(until) {
			break
		}
		all.Go(func() {
			defer func() { <-places }()
			looking, cancel := context.WithTimeout(ctx, workTime)
			defer cancel()
			results[i] = p.look(looking, row)
		})
	}
	all.Wait()
	if err := ctx.Err(); err != nil {
		return err // the service ends: what was asked for is not known
	}
	byID := make(map[string]*seen, len(rows))
	for i, result := range results {
		if result != nil { // else not begun
			byID[rows[i].ID] = result
		}
	}
	rows = slices.DeleteFunc(rows, func(row *DomainRow) bool { return byID[row.ID] == nil })
	for len(rows) > 0 {
		var ids []string
		if ids, rows = someNames(rows, checksInWrite); len(ids) > 0 {
			if err := p.recordChecks(ctx, ids, byID); err != nil {
				return err
			}
		}
	}
	return nil
}

// someNames splits the IDs of at most that many rows off, and the rest, so that none of those split off has the name of another:
// what is decided of one may change its rival.
func someNames(rows []*DomainRow, most int) (ids []string, rest []*DomainRow) {
	names := make(map[string]bool)
	for _, row := range rows {
		if len(ids) == most || names[row.Name] {
			rest = append(rest, row)
			continue
		}
		names[row.Name] = true
		ids = append(ids, row.ID)
	}
	return ids, rest
}

// recordChecks stores what the checks of some domains came to. Those that were deleted meanwhile are gone.
func (p *Plane) recordChecks(ctx context.Context, ids []string, byID map[string]*seen) error {
	return p.store.Update(ctx, func(tx Tx) error {
		rows, err := tx.FindDomainsByID(ids)
		if err != nil {
			return err
		}
		results := make([]*seen, len(rows))
		for i, row := range rows {
			results[i] = byID[row.ID]
		}
		_, err = p.record(tx, system, rows, results)
		return err
	})
}

// letGoFor is how long edges have to let go of a deleted domain. Those that are not heard of for so long find out when they
// come back: the feed remembers. Where none is heard of at all there is nobody to wait for.
const (
	letGoFor   = 5 * time.Minute
	letGoAlone = 5 * time.Second
)

// removeDeleted removes domains that no edge serves any more.
func (p *Plane) removeDeleted(ctx context.Context) error {
	const some = 500
	for after := ""; ; {
		var rows []*DomainRow
		var gone []string
		err := p.store.View(ctx, func(tx Tx) (err error) {
			if rows, err = tx.FindDomainsByStatus(Deleting, after, some); err != nil {
				return err
			}
			states, err := p.edgeStates(tx, rows)
			if err != nil {
				return err
			}
			for _, row := range rows {
				state := states[row.ID]
				since := p.now().Sub(row.DeletingAt)
				if state.Of > 0 && state.Applied == state.Of || state.Of == 0 && since > letGoAlone || since > letGoFor {
					gone = append(gone, row.ID)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if len(gone) > 0 {
			err := p.store.Update(ctx, func(tx Tx) error {
				for _, id := range gone {
					if err := tx.DeleteDomain(id); err != nil && !errors.Is(err, ErrNoRow) {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if len(rows) < some {
			return nil
		}
		after = rows[len(rows)-1].ID
	}
}

// walkStatuses derives anew the statuses that what edges do brings on, some of each at a time. Most have followed a report
// by then; this finds the others: reports whose news was lost with an instance, edges that came or went.
func (p *Plane) walkStatuses(ctx context.Context) error {
	const some = 200
	for _, status := range []Status{Issuing, Deploying, Degraded} {
		for range walkedInATurn / some {
			var rows []*DomainRow
			var changed []string
			err := p.store.View(ctx, func(tx Tx) (err error) {
				if rows, err = tx.FindDomainsByStatus(status, p.domains.walk[status], some); err != nil {
					return err
				}
				changed, err = p.unsettled(tx, rows)
				return err
			})
			if err != nil {
				return err
			}
			if err := p.refreshByID(ctx, changed); err != nil {
				return err
			}
			if len(rows) < some {
				delete(p.domains.walk, status)
				break
			}
			p.domains.walk[status] = rows[len(rows)-1].ID
		}
	}
	return nil
}

// unsettled returns the IDs of the domains of which what is stored of their state is not what is derived now.
func (p *Plane) unsettled(tx Tx, rows []*DomainRow) (ids []string, err error) {
	views, err := p.viewsOf(tx, rows)
	if err != nil {
		return nil, err
	}
	for _, v := range views {
		if p.settle(v) {
			ids = append(ids, v.row.ID)
		}
	}
	return ids, nil
}

// refreshByID derives the statuses of domains again.
func (p *Plane) refreshByID(ctx context.Context, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	return p.store.Update(ctx, func(tx Tx) error {
		rows, err := tx.FindDomainsByID(ids)
		if err != nil {
			return err
		}
		return p.refreshRows(tx, rows)
	})
}

// tombstonesFor is how long the feed remembers what was removed: edges that were away for longer ask for everything.
const tombstonesFor = 25 * time.Hour

// forgetHistory removes what is remembered of the past when it is of no use any more.
func (p *Plane) forgetHistory(ctx context.Context) error {
	const some = 1000
	for _, forget := range []func(Tx) (int, error){
		func(tx Tx) (int, error) { return tx.DeleteDomainClaimsBefore(p.now().Add(-claimsFor), some) },
		func(tx Tx) (int, error) { return tx.PruneFeed(p.now().Add(-tombstonesFor), some) },
	} {
		for n := 1; n > 0; {
			err := p.store.Update(ctx, func(tx Tx) (err error) {
				n, err = forget(tx)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
