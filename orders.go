package pqproxy

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
)

// orders are the certificates that are to be obtained or renewed: a queue that is fair between tenants, with one
// attempt at a time and a back-off that is kept in storage, so that neither a restart nor another edge of the fleet
// forgets it.
type orders struct {
	certs *certificates

	mu      sync.Mutex
	more    *sync.Cond // there may be something to do, or the end has come
	closed  bool
	byName  map[string]*order
	tenants map[string]*tenantOrders // those with orders that are due or running
	turn    []*tenantOrders          // those with orders that are due, the next one first
	waiting orderHeap                // for their time to come
	timer   *time.Timer              // for the first of them
	queued  int                      // orders that are due
}

// order is one certificate that is wanted.
type order struct {
	name, tenant string
	attempts     int       // that failed
	next         time.Time // when it is tried again; zero: at once
	last         string    // what went wrong the last time; empty: nothing yet
	renewal      bool
	running      bool
	cancelled    bool // while it runs: what comes of it is nobody's business any more
	again        bool // while it runs: it was wanted anew
	place        int  // in waiting; -1: not there
}

// tenantOrders are a tenant's orders that are due, the first come first.
type tenantOrders struct {
	name    string
	due     []*order
	running int
}

// Bounds of the work. A tenant may have half of the workers, so that one whose names all take the longest possible does
// not keep the others from theirs.
const (
	orderWorkers   = 16
	workersATenant = orderWorkers / 2
	orderTimeout   = 3 * time.Minute
	maxOrders      = 200_000 // waiting for something; the sweeper finds what is beyond that
)

// backOff is how long after so many failures the next attempt follows, give or take a quarter.
var backOff = []time.Duration{
	time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour,
}

// rateLimited is the least back-off after a CA said that there were too many orders.
const rateLimited = time.Hour

func (o *orders) open(certs *certificates) {
	o.certs = certs
	o.more = sync.NewCond(&o.mu)
	o.byName, o.tenants = make(map[string]*order), make(map[string]*tenantOrders)
	o.timer = time.AfterFunc(time.Hour, o.ripen)
	o.timer.Stop()
}

// start begins to work: listeners that answer challenges are open by then.
func (o *orders) start() {
	for range orderWorkers {
		o.certs.working.Go(o.work)
	}
}

func (o *orders) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.timer.Stop()
	o.more.Broadcast()
}

// want has a certificate obtained or renewed for a name that e serves, unless that is on its way.
func (o *orders) want(name string, e *entry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if one := o.byName[name]; one != nil {
		one.again = one.running
		return
	}
	if o.closed || len(o.byName) >= maxOrders {
		return
	}
	one := &order{name: name, tenant: e.domain().Tenant, place: -1}
	o.byName[name] = one
	o.ready(one)
}

// cancel forgets the order of a name.
func (o *orders) cancel(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	one := o.byName[name]
	if one == nil {
		return
	}
	one.cancelled = true
	delete(o.byName, name)
	if one.place >= 0 {
		heap.Remove(&o.waiting, one.place)
	}
}

// summary returns how many orders have not failed yet, and how many have.
func (o *orders) summary() (pending, failed int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, one := range o.byName {
		if one.last != "" {
			failed++
		} else {
			pending++
		}
	}
	return pending, failed
}

// state says in words what becomes of a name's certificate.
func (o *orders) state(name string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	one := o.byName[name]
	switch {
	case one == nil:
		return "it is not being obtained"
	case one.last != "" && !one.running:
		return fmt.Sprintf("attempt %d failed, the next one is at %s: %s", one.attempts, one.next.UTC().Format(time.RFC3339), one.last)
	case one.running:
		return "it is being obtained"
	}
	return "it waits for its turn to be obtained"
}

// ready puts an order that is due into its tenant's queue. Call it with the lock held.
func (o *orders) ready(one *order) {
	t := o.tenants[one.tenant]
	if t == nil {
		t = &tenantOrders{name: one.tenant}
		o.tenants[one.tenant] = t
	}
	if t.due = append(t.due, one); len(t.due) == 1 {
		o.turn = append(o.turn, t)
	}
	o.queued++
	o.more.Signal()
}

// ripen moves orders whose time has come to the queues.
func (o *orders) ripen() {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for len(o.waiting) > 0 && !o.waiting[0].next.After(now) {
		o.ready(heap.Pop(&o.waiting).(*order))
	}
	o.setTimer()
}

// setTimer has ripen called when the first order is due. Call it with the lock held.
func (o *orders) setTimer() {
	if len(o.waiting) > 0 && !o.closed {
		o.timer.Reset(max(0, time.Until(o.waiting[0].next)))
	}
}

// take waits for an order: the next one of the next tenant that may have another worker. It returns nil at the end.
func (o *orders) take() (*order, *tenantOrders) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		if o.closed {
			return nil, nil
		}
		for i, t := range o.turn {
			if t.running >= workersATenant {
				continue
			}
			one := t.due[0]
			t.due[0] = nil
			t.due = t.due[1:]
			o.turn = append(o.turn[:i], o.turn[i+1:]...)
			if len(t.due) > 0 {
				o.turn = append(o.turn, t) // behind the others
			}
			o.queued--
			if one.cancelled {
				o.tidy(t)
				o.more.Signal()
				break
			}
			one.running = true
			t.running++
			return one, t
		}
		if !o.possible() {
			o.more.Wait()
		}
	}
}

// possible reports whether a worker would find an order. Call it with the lock held.
func (o *orders) possible() bool {
	for _, t := range o.turn {
		if t.running < workersATenant {
			return true
		}
	}
	return false
}

// tidy forgets a tenant that has nothing left. Call it with the lock held.
func (o *orders) tidy(t *tenantOrders) {
	if len(t.due) == 0 && t.running == 0 {
		delete(o.tenants, t.name)
	}
}

// work is one worker. It ends with close.
func (o *orders) work() {
	for {
		one, t := o.take()
		if one == nil {
			return
		}
		next := o.attempt(one)
		o.mu.Lock()
		one.running = false
		t.running--
		o.tidy(t)
		switch {
		case one.cancelled:
		case next.IsZero() && one.again:
			one.again = false
			o.ready(one)
		case next.IsZero():
			delete(o.byName, one.name)
		default:
			one.next, one.again = next, false
			heap.Push(&o.waiting, one)
			o.setTimer()
		}
		o.more.Broadcast() // this tenant may have a worker again
		o.mu.Unlock()
	}
}

// attempt tries once. It returns when to try again, or zero if that is not necessary.
func (o *orders) attempt(one *order) (next time.Time) {
	s := o.certs
	now := s.config.Load()
	ctx, cancel := context.WithTimeout(s.ctx, orderTimeout)
	defer cancel()
	held, err := s.inStorage(ctx, now, one.name)
	if err != nil {
		return o.failed(ctx, now, one, fmt.Errorf("looking for it in storage: %w", err))
	}
	if held != nil && !held.due(time.Now()) {
		s.known.note(one.name, held.notAfter)
		if err := s.renewed(ctx, now.acme, one.name); err != nil { // another edge was faster
			now.logger.Error("loading a certificate that was renewed", zap.String(keyDomain, one.name), zap.Error(err))
		}
		return time.Time{}
	}
	one.renewal = held != nil
	if kept := o.keptBackOff(ctx, now, one.name); kept != nil && kept.Next.After(time.Now()) && kept.Attempts > one.attempts {
		o.mu.Lock()
		one.attempts, one.last = kept.Attempts, kept.Error
		o.mu.Unlock()
		return kept.Next
	}
	err = s.reachesUs(ctx, one)
	if err == nil && one.renewal {
		err = now.acme.RenewCertAsync(ctx, one.name, false)
	} else if err == nil {
		err = now.acme.ObtainCertAsync(ctx, one.name)
	}
	if err != nil {
		if ctx.Err() != nil && s.ctx.Err() == nil {
			err = fmt.Errorf("it took longer than %s", orderTimeout)
		}
		return o.failed(ctx, now, one, err)
	}
	return o.obtained(ctx, now, one)
}

// obtained takes note of a new certificate.
func (o *orders) obtained(ctx context.Context, now *issuing, one *order) time.Time {
	s := o.certs
	_ = now.storage.Delete(ctx, backOffKey(one.name))
	held, err := s.inStorage(ctx, now, one.name)
	if err != nil || held == nil {
		return o.failed(ctx, now, one, fmt.Errorf("it was obtained and is not in storage (%w)", err))
	}
	s.known.note(one.name, held.notAfter)
	if err := s.renewed(ctx, now.acme, one.name); err != nil {
		now.logger.Error("loading a new certificate", zap.String(keyDomain, one.name), zap.Error(err))
	}
	message, result := "certificate obtained", "obtained"
	if one.renewal {
		message, result = "certificate renewed", "renewed"
	}
	metrics.orders.WithLabelValues(result).Inc()
	now.logger.Info(message, zap.String(keyDomain, one.name), zap.String(keyTenant, one.tenant),
		zap.String("issuer", held.issuerKey), zap.Time("not_after", held.notAfter))
	return time.Time{}
}

// failed takes note of an attempt that failed, and returns when the next one is.
func (o *orders) failed(ctx context.Context, now *issuing, one *order, err error) time.Time {
	if o.certs.ctx.Err() != nil {
		return time.Now().Add(time.Hour) // the process ends: that is nobody's failure
	}
	o.mu.Lock()
	one.attempts++
	one.last = cutText(problemText(err), maxErrorText)
	attempts, last, cancelled := one.attempts, one.last, one.cancelled
	o.mu.Unlock()
	if cancelled {
		return time.Time{}
	}
	pause := backOff[min(attempts, len(backOff))-1]
	pause += rand.N(pause/2+1) - pause/4
	next := time.Now().Add(pause)
	if told, ok := retryAfter(err); ok && told.After(next) {
		next = told.Add(rand.N(time.Minute))
	}
	metrics.orders.WithLabelValues("failed").Inc()
	now.logger.Error("obtaining a certificate", zap.String(keyDomain, one.name), zap.String(keyTenant, one.tenant),
		zap.Bool("renewal", one.renewal), zap.Int("attempt", attempts), zap.Time("next", next), zap.String(keyError, last))
	kept, marshalErr := json.Marshal(keptBackOff{attempts, next.UTC(), last})
	if marshalErr == nil {
		storing, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
		marshalErr = now.storage.Store(storing, backOffKey(one.name), kept)
		cancel()
	}
	if marshalErr != nil {
		now.logger.Error("keeping the back-off of a certificate", zap.String(keyDomain, one.name), zap.Error(marshalErr))
	}
	return next
}

// keptBackOff is what the storage has of an order that failed.
type keptBackOff struct {
	Attempts int       `json:"attempts"`
	Next     time.Time `json:"next"`
	Error    string    `json:"error"`
}

func backOffKey(name string) string {
	return "pqproxy/orders/" + certmagic.StorageKeys.Safe(name) + ".json"
}

// keptBackOff returns what was kept, by this edge or another one; nil: nothing that can be read.
func (o *orders) keptBackOff(ctx context.Context, now *issuing, name string) *keptBackOff {
	content, err := now.storage.Load(ctx, backOffKey(name))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			now.logger.Error("reading the back-off of a certificate", zap.String(keyDomain, name), zap.Error(err))
		}
		return nil
	}
	var kept keptBackOff
	if err := json.Unmarshal(content, &kept); err != nil || kept.Attempts < 1 || time.Until(kept.Next) > 2*backOff[len(backOff)-1] {
		return nil
	}
	return &kept
}

// problemText returns what a CA said was wrong, if it was the CA, else the error.
func problemText(err error) string {
	problem, ok := errors.AsType[acme.Problem](err)
	if !ok {
		return err.Error()
	}
	text := strings.TrimPrefix(problem.Type, "urn:ietf:params:acme:error:") + ": " + problem.Detail
	for _, sub := range problem.Subproblems {
		text += "; " + sub.Identifier.Value + ": " + sub.Detail
	}
	return text
}

// saidTime finds when to come again in what CAs write: the header Retry-After does not come through acmez.
var saidTime = regexp.MustCompile(`retry after (\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d ?(?:UTC|Z))`)

// retryAfter returns when a CA that has too many orders wants to be asked again.
func retryAfter(err error) (time.Time, bool) {
	problem, ok := errors.AsType[acme.Problem](err)
	if !ok || problem.Type != "urn:ietf:params:acme:error:rateLimited" {
		return time.Time{}, false
	}
	if said := saidTime.FindStringSubmatch(problem.Detail); said != nil {
		for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05 MST", "2006-01-02 15:04:05 Z"} {
			if at, err := time.Parse(layout, said[1]); err == nil && time.Until(at) < 8*24*time.Hour {
				return at, true
			}
		}
	}
	return time.Now().Add(rateLimited), true
}

// orderHeap has the order that is due first in front.
type orderHeap []*order

func (h orderHeap) Len() int           { return len(h) }
func (h orderHeap) Less(i, j int) bool { return h[i].next.Before(h[j].next) }
func (h orderHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}
func (h *orderHeap) Push(x any) {
	one := x.(*order)
	one.place = len(*h)
	*h = append(*h, one)
}
func (h *orderHeap) Pop() any {
	last := len(*h) - 1
	one := (*h)[last]
	one.place = -1
	(*h)[last] = nil
	*h = (*h)[:last]
	return one
}
