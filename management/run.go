package management

import (
	"context"
	"errors"
	"sync"
	"time"
)

// worker is a piece of background work: called again and again, on one instance at a time.
type worker struct {
	name  string                          // of its lease
	every time.Duration                   // between the end of one call and the next
	run   func(ctx context.Context) error // errMore: it is called again at once, when the lease has been prolonged
	here  bool                            // on every instance, without a lease: work on the instance's own memory
}

// errMore says that there is more to do.
var errMore = errors.New("there is more to do")

// leaseFor is how long an instance that stopped answering keeps its work from the others.
const leaseFor = 30 * time.Second

// Run does the background work until ctx ends, and returns when all of it has stopped. owner names this instance.
func (p *Plane) Run(ctx context.Context, owner string) {
	var all sync.WaitGroup
	for _, w := range p.workers() {
		all.Go(func() { p.work(ctx, owner, w) })
	}
	all.Wait()
}

func (p *Plane) workers() []worker {
	var all []worker
	all = append(all, p.identityWorkers()...)
	all = append(all, p.domainWorkers()...)
	all = append(all, p.edgeWorkers()...)
	return append(all, worker{name: "replies", every: 10 * time.Minute, run: p.forgetReplies})
}

// work runs one worker while this instance has its lease. It ends with ctx.
func (p *Plane) work(ctx context.Context, owner string, w worker) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		rest := w.every
		err := p.turn(ctx, owner, w)
		switch {
		case errors.Is(err, errMore):
			rest = 0
		case err != nil && ctx.Err() == nil:
			p.log.Error("background work failed", "work", w.name, "error", err)
		}
		timer.Reset(rest)
	}
}

// turn is one call of a worker, if the lease is ours. A call that outlasts the lease is ended.
func (p *Plane) turn(ctx context.Context, owner string, w worker) error {
	if w.here {
		return w.run(ctx)
	}
	ttl := max(leaseFor, w.every+leaseFor)
	held, err := p.store.Lease(ctx, w.name, owner, ttl)
	if err != nil || !held {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, ttl)
	defer cancel()
	return w.run(ctx)
}

// repliesFor is how long an Idempotency-Key is remembered.
const repliesFor = 24 * time.Hour

// forgetReplies removes remembered answers that are too old.
func (p *Plane) forgetReplies(ctx context.Context) error {
	for {
		removed := 0
		err := p.store.Update(ctx, func(tx Tx) (err error) {
			removed, err = tx.DeleteRepliesBefore(p.now().Add(-repliesFor), 1000)
			return err
		})
		if err != nil || removed == 0 {
			return err
		}
	}
}
