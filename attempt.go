package pqproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// backOff is how long after so many refusals of a CA the next attempt follows, give or take a quarter. An attempt may be
// two failed validations, of which Let's Encrypt allows five in an hour. checkBackOff is for failures that no CA has seen:
// when a name is pointed here at last, it should not wait for long.
var (
	backOff      = []time.Duration{5 * time.Minute, 30 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour}
	checkBackOff = []time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour}
)

// An order that finds another edge about to obtain the same looks again soon, since that mostly takes seconds, and then more
// and more seldom.
const (
	otherEdge     = time.Second
	otherEdgeMost = 20 * time.Second
)

// attempt tries once, for a tenant. It returns when to try again, or zero if that is not necessary.
func (o *orders) attempt(one *order, tenant string) (next time.Time) {
	now := o.certs.config.Load()
	ctx, cancel := context.WithTimeout(o.certs.ctx, orderTimeout)
	defer cancel()
	a := &attempt{orders: o, order: one, tenant: tenant, issuing: now, ctx: ctx}
	defer func() {
		if p := recover(); p != nil {
			now.logger.Error("obtaining a certificate panicked", zap.String(keyDomain, one.name), zap.Any("panic", p), zap.Stack("stack"))
			next = a.failed(fmt.Errorf("panic: %v", p))
		}
	}()
	next = a.run()
	if next.IsZero() && a.overtaken() {
		return time.Now()
	}
	return next
}

// attempt is one attempt of an order under one config.
type attempt struct {
	*orders
	*order
	tenant string
	*issuing
	ctx context.Context

	renews bool
	before *keptBackOff // what storage had of earlier attempts; nil: nothing
	begun  bool         // storage has that this one was begun
}

// overtaken reports whether another config has come into force since the attempt began. What came of the attempt is
// not final then: the storage may be another one, and issuers fail whose config has gone.
func (a *attempt) overtaken() bool { return a.certs.config.Load() != a.issuing }

// run is what attempt does.
func (a *attempt) run() time.Time {
	held, err := a.held(a.ctx, a.issuers, a.name)
	if err != nil {
		return a.failed(fmt.Errorf("looking for it in storage: %w", err))
	}
	if a.enough(held) {
		return time.Time{} // another edge was faster, or there was no need
	}
	if next := a.obey(false); !next.IsZero() {
		return next
	}
	if a.unsaved == nil {
		if err := a.certs.reachesUs(a.ctx, a.order); err != nil {
			return a.failed(err)
		}
	}
	unlock, err := a.lock(a.ctx, a.name)
	switch {
	case errors.Is(err, errBusy):
		pause := min(otherEdge<<a.busy, otherEdgeMost)
		a.busy = min(a.busy+1, 10)
		return time.Now().Add(pause + rand.N(pause/2))
	case err != nil:
		return a.failed(fmt.Errorf("locking it in storage: %w", err))
	}
	defer unlock()
	a.busy = 0
	// Whoever had the lock may have obtained it, or have been refused.
	if held, err = a.held(a.ctx, a.issuers, a.name); err != nil {
		return a.failed(fmt.Errorf("looking for it in storage: %w", err))
	}
	if a.enough(held) {
		return time.Time{}
	}
	if next := a.obey(true); !next.IsZero() {
		return next
	}
	return a.obtain(held)
}

// enough reports whether storage has what is wanted, and takes note of it.
func (a *attempt) enough(held *heldCert) bool {
	if a.renews = held != nil; a.renews {
		a.certs.known.note(a.name, held.cert.Leaf)
	}
	if held == nil || held.due(time.Now()) || a.certs.staples.replace(held.cert.Leaf) {
		return false
	}
	a.certs.take(a.name, held, false, false)
	return true
}

// obey returns until when storage wants nobody to try, or zero: another edge has tried, or this one before it was
// started anew. An attempt that is under way has ended without a word if its lock is ours; else it may still be going on.
func (a *attempt) obey(locked bool) time.Time {
	a.before = a.kept()
	if a.before == nil || !a.before.Next.After(time.Now()) || a.before.UnderWay && !locked {
		return time.Time{}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.attempts, a.refused, a.last, a.told = a.before.Attempts, a.before.Refused, a.before.Error, a.before.Told
	return a.before.Next
}

// obtain has the issuers asked, and keeps what they give. The lock of the name is held. before is what storage has.
func (a *attempt) obtain(before *heldCert) time.Time {
	fresh := a.unsaved
	if fresh == nil {
		// Before anybody is asked it is written down that somebody was: a process that is killed meanwhile does not begin
		// anew at once, and a storage that cannot be written to is found out in time.
		begun := keptBackOff{a.attempts + 1, a.refused + 1, time.Now().Add(a.pause(a.refused+1, 0)).UTC(), "the process ended while it was being obtained", a.told, true}
		if err := a.keep(begun); err != nil {
			return a.failed(fmt.Errorf("writing to storage, before a CA is asked: %w", err))
		}
		a.begun = true
		var err error
		if fresh, err = a.ask(a.ctx, a.issuers, a.name, a); err != nil {
			if a.ctx.Err() != nil {
				err = fmt.Errorf("it took longer than %s: %w", orderTimeout, err)
			}
			return a.failed(err)
		}
		a.limits.accepted(caTenant{fresh.issuerKey, a.tenant})
	}
	a.unsaved = nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), loadTimeout) // it was obtained: let it not be lost
	defer cancel()
	if err := a.save(ctx, fresh, before, a.name); err != nil {
		a.unsaved = fresh
		a.certs.take(a.name, fresh, false, true)
		return a.failed(fmt.Errorf("it was obtained, is served from memory, and could not be stored: %w", err))
	}
	a.certs.take(a.name, fresh, false, false)
	message, result := "certificate obtained", "obtained"
	if a.renews {
		message, result = "certificate renewed", "renewed"
	}
	metrics.orders.WithLabelValues(result).Inc()
	leaf := fresh.cert.Leaf
	a.logger.Info(message, zap.String(keyDomain, a.name), zap.String(keyTenant, a.tenant),
		zap.String("issuer", fresh.issuerKey), zap.Time("not_after", leaf.NotAfter))
	if fresh.due(time.Now()) { // it would be ordered again without end
		return a.failed(fmt.Errorf("the new certificate is of %s to %s, and should be renewed already: is the clock right?",
			leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339)))
	}
	if err := a.storage.Delete(ctx, backOffKey(a.name)); err != nil {
		a.logger.Error("forgetting the back-off of a certificate", zap.String(keyDomain, a.name), zap.Error(err))
	}
	return time.Time{}
}

// notBefore implements wishes: an issuer may have wished something about this name, or about all of the tenant.
func (a *attempt) notBefore(issuer string) time.Time {
	told, limit := a.told[issuer], a.limits.until(caTenant{issuer, a.tenant})
	if told.After(limit) {
		return told
	}
	return limit
}

// heed implements wishes.
func (a *attempt) heed(fault issuerFault) {
	a.limits.refused(caTenant{fault.issuer, a.tenant}, fault.until)
	told := maps.Clone(a.told) // what was kept is not to be changed
	delete(told, fault.issuer)
	if !fault.until.IsZero() {
		if told == nil {
			told = make(map[string]time.Time)
		}
		told[fault.issuer] = fault.until.UTC()
	}
	a.told = told
}

// pause returns how long it is to the next attempt after so many refusals of a CA, or other failures.
func (a *attempt) pause(refused, others int) time.Duration {
	steps, n := backOff, refused
	if others > 0 {
		steps, n = checkBackOff, others
	}
	pause := steps[min(n, len(steps))-1]
	return pause + rand.N(pause/2+1) - pause/4
}

// failed takes note of an attempt that failed, and returns when the next one is.
func (a *attempt) failed(err error) time.Time {
	if a.certs.ctx.Err() != nil || a.overtaken() {
		a.takeBack()
		return time.Now() // nobody's failure
	}
	refusal, _ := errors.AsType[*askError](err)
	if refusal != nil && !refusal.asked() {
		a.takeBack()
		return a.earliest().Add(rand.N(time.Minute))
	}
	o := a.orders
	o.mu.Lock()
	a.attempts++
	others := a.attempts - a.refused
	if refusal != nil {
		a.refused++
		others = 0
	}
	a.last = cutText(problemText(err), maxErrorText)
	kept := keptBackOff{a.attempts, a.refused, time.Now().Add(a.pause(a.refused, others)).UTC(), a.last, a.told, false}
	if at := a.earliest(); refusal != nil && at.After(kept.Next) {
		kept.Next = at.Add(rand.N(time.Minute)).UTC()
	}
	o.mu.Unlock()
	if err := a.keep(kept); err != nil {
		a.logger.Error("keeping the back-off of a certificate", zap.String(keyDomain, a.name), zap.Error(err))
	}
	metrics.orders.WithLabelValues("failed").Inc()
	a.logger.Error("obtaining a certificate", zap.String(keyDomain, a.name), zap.String(keyTenant, a.tenant),
		zap.Bool("renewal", a.renews), zap.Int("attempt", kept.Attempts), zap.Time("next", kept.Next), zap.String(keyError, kept.Error))
	return kept.Next
}

// takeBack has storage say what it said before an attempt that does not count.
func (a *attempt) takeBack() {
	if !a.begun {
		return
	}
	var err error
	if a.before != nil {
		err = a.keep(*a.before)
	} else {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), loadTimeout)
		defer cancel()
		err = a.storage.Delete(ctx, backOffKey(a.name))
	}
	if err != nil {
		a.logger.Error("keeping the back-off of a certificate", zap.String(keyDomain, a.name), zap.Error(err))
	}
}

// earliest returns when the first of the issuers may be asked again.
func (a *attempt) earliest() (at time.Time) {
	for i, issuer := range a.issuers {
		if until := a.notBefore(issuer.IssuerKey()); i == 0 || until.Before(at) {
			at = until
		}
	}
	return at
}

// keptBackOff is what the storage has of an order that failed, or is under way.
type keptBackOff struct {
	Attempts int                  `json:"attempts"`
	Refused  int                  `json:"refused,omitempty"`
	Next     time.Time            `json:"next"`
	Error    string               `json:"error"`
	Told     map[string]time.Time `json:"told,omitempty"`
	UnderWay bool                 `json:"under_way,omitempty"` // the rest is for the case that it ends without a word
}

func backOffKey(name string) string {
	return "pqproxy/orders/" + certmagic.StorageKeys.Safe(name) + ".json"
}

// keep writes what is to be remembered.
func (a *attempt) keep(kept keptBackOff) error {
	content, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), loadTimeout)
	defer cancel()
	return a.storage.Store(ctx, backOffKey(a.name), content)
}

// kept returns what was remembered, by this edge or another one; nil: nothing that can be believed.
func (a *attempt) kept() *keptBackOff {
	content, err := a.load(a.ctx, backOffKey(a.name))
	if err != nil {
		a.logger.Error("reading the back-off of a certificate", zap.String(keyDomain, a.name), zap.Error(err))
		return nil
	}
	var kept keptBackOff
	if json.Unmarshal(content, &kept) != nil || kept.Attempts < 1 || kept.Refused < 0 || kept.Refused > kept.Attempts ||
		time.Until(kept.Next) > longestWait+time.Hour {
		return nil
	}
	maps.DeleteFunc(kept.Told, func(_ string, at time.Time) bool { return time.Until(at) > longestWait+time.Hour })
	kept.Error = cutText(kept.Error, maxErrorText)
	return &kept
}

// caLimits are CAs that take no more orders of a tenant, whichever name they are for. A CA does not say whether it has too
// many of the name, of the domain above it, or of us; when several names were refused one after the other it is not the
// name. It is no conclusion about other tenants: one that has used up what its own domain may have stops nobody else.
type caLimits struct {
	mu    sync.Mutex
	known map[caTenant]caLimit
}

type caTenant struct{ issuer, tenant string }

type caLimit struct {
	inRow int
	until time.Time
}

// Bounds of caLimits: how many refusals in a row mean that it is not the name, and how long others are believed to be
// refused too.
const (
	limitedInRow = 3
	limitedMost  = time.Hour
)

// refused notes that a CA did not take an order because it has too many, until a time. Zero: it was for another reason.
func (l *caLimits) refused(who caTenant, until time.Time) {
	if until.IsZero() {
		l.accepted(who)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil {
		l.known = make(map[caTenant]caLimit)
	}
	limit := l.known[who]
	if limit.inRow++; limit.inRow >= limitedInRow {
		if limit.until = time.Now().Add(limitedMost); until.Before(limit.until) {
			limit.until = until
		}
	}
	l.known[who] = limit
}

// accepted notes that a CA took an order.
func (l *caLimits) accepted(who caTenant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.known, who)
}

// until returns when a CA takes orders of a tenant again; zero or past: it takes them.
func (l *caLimits) until(who caTenant) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known[who].until
}
