package pqproxy

import (
	"container/heap"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// orders are the certificates that are to be obtained or renewed: a queue that is fair between tenants, with one
// attempt at a time and a back-off that is kept in storage, so that neither a restart nor another edge of the fleet
// forgets it.
type orders struct {
	certs  *certificates
	limits caLimits

	mu      sync.Mutex
	more    *sync.Cond // there may be something to do, or the end has come
	closed  bool
	byName  map[string]*order
	tenants map[string]*tenantOrders // those with orders that are due or running
	turn    []*tenantOrders          // those with orders that are due, the next one first
	waiting dueHeap[*order]          // for their time to come
	timer   *time.Timer              // for the first of them
}

// order is one certificate that is wanted. The lock of orders guards it, but what only its worker uses.
type order struct {
	name, tenant string
	attempts     int       // that failed
	refused      int       // of these, by a CA
	next         time.Time // when it is tried again; zero: at once
	last         string    // what went wrong the last time; empty: nothing yet
	running      bool
	cancelled    bool // nobody wants it any more; while it runs that may change
	place        int  // in waiting; -1: not there

	told    map[string]time.Time // worker's: by issuer, when it wants to be asked again about this name
	unsaved *heldCert            // worker's: obtained, and the storage did not take it
	busy    int                  // worker's: how often in a row another edge had the lock
}

func (o *order) dueAt() time.Time { return o.next }
func (o *order) moved(place int)  { o.place = place }

// tenantOrders are a tenant's orders that are due, the first come first.
type tenantOrders struct {
	name    string
	due     []*order
	running int
}

// Bounds of the work. A tenant may have half of the workers, so that one whose names all take the longest possible does
// not keep the others from theirs, and so many orders in the queue: the sweeper finds the others when there is room.
const (
	orderWorkers   = 16
	workersATenant = orderWorkers / 2
	orderTimeout   = 3 * time.Minute
	maxOrders      = 200_000
	ordersATenant  = maxOrders / 10
)

func (o *orders) open(certs *certificates) {
	o.certs = certs
	o.more = sync.NewCond(&o.mu)
	o.byName, o.tenants = make(map[string]*order), make(map[string]*tenantOrders)
	o.timer = time.AfterFunc(time.Hour, o.ripen)
	o.timer.Stop()
}

func (o *orders) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.timer.Stop()
	o.more.Broadcast()
}

// has reports whether a name's certificate is on its way.
func (o *orders) has(name string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.byName[name] != nil
}

// want has a certificate obtained or renewed for a name that e serves, unless that is on its way.
func (o *orders) want(name string, e entry) {
	tenant := e.domain().Tenant
	o.mu.Lock()
	defer o.mu.Unlock()
	one := o.byName[name]
	switch {
	case one != nil && one.running:
		one.cancelled, one.tenant = false, tenant
	case one != nil && one.tenant == tenant:
	case one != nil: // it is due, or waits, among those of the tenant before
		moved := &order{name: one.name, tenant: tenant, attempts: one.attempts, refused: one.refused, next: one.next, last: one.last,
			told: one.told, unsaved: one.unsaved, place: -1}
		o.drop(one)
		o.byName[one.name] = moved
		if moved.next.After(time.Now()) {
			o.wait(moved)
		} else {
			o.ready(moved)
		}
	case o.room(tenant):
		name = strings.Clone(name) // it may be part of something large
		one = &order{name: name, tenant: tenant, place: -1}
		o.byName[name] = one
		o.ready(one)
	}
}

// room reports whether a tenant may have another order. Where there are too many, one that waits makes way: storage has
// its back-off, and the sweeper finds it again. Who has none due is never sent away. Call it with the lock held.
func (o *orders) room(tenant string) bool {
	t := o.tenants[tenant]
	if o.closed || t != nil && len(t.due) >= ordersATenant {
		return false
	}
	if len(o.byName) >= maxOrders {
		if last := len(o.waiting) - 1; last >= 0 {
			o.drop(o.waiting[last])
		} else {
			return t == nil || len(t.due) == 0
		}
	}
	return true
}

// cancel forgets the order of a name.
func (o *orders) cancel(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch one := o.byName[name]; {
	case one == nil:
	case one.running:
		one.cancelled = true // it is in byName until it ends, so that there is one attempt at a time
	default:
		o.drop(one)
	}
}

// drop takes out an order that does not run. Call it with the lock held.
func (o *orders) drop(one *order) {
	one.cancelled = true // where it is due, take passes over it
	delete(o.byName, one.name)
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
	case one.running && one.last != "":
		return fmt.Sprintf("it is being obtained again; attempt %d failed: %s", one.attempts, one.last)
	case one.running:
		return "it is being obtained"
	case one.last != "":
		return fmt.Sprintf("attempt %d failed, the next one is at %s: %s", one.attempts, one.next.UTC().Format(time.RFC3339), one.last)
	case one.place >= 0:
		return fmt.Sprintf("it is tried again at %s", one.next.UTC().Format(time.RFC3339))
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
	o.more.Signal()
}

// wait puts an order aside until its next attempt. Call it with the lock held.
func (o *orders) wait(one *order) {
	heap.Push(&o.waiting, one)
	o.setTimer()
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
	for !o.closed {
		i := slices.IndexFunc(o.turn, func(t *tenantOrders) bool { return t.running < workersATenant })
		if i < 0 {
			o.more.Wait()
			continue
		}
		t := o.turn[i]
		one := t.due[0]
		t.due[0], t.due = nil, t.due[1:]
		if i == 0 {
			o.turn = o.turn[1:] // without moving the others: there may be many
		} else {
			o.turn = slices.Delete(o.turn, i, i+1)
		}
		if len(t.due) > 0 {
			o.turn = append(o.turn, t) // behind the others
		}
		if one.cancelled {
			o.tidy(t)
			continue
		}
		one.running = true
		t.running++
		return one, t
	}
	return nil, nil
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
		next := o.attempt(one, t.name)
		o.mu.Lock()
		one.running = false
		t.running--
		o.tidy(t)
		if one.cancelled || next.IsZero() {
			delete(o.byName, one.name)
		} else {
			one.next = next
			o.wait(one)
		}
		o.more.Broadcast() // this tenant may have a worker again
		o.mu.Unlock()
	}
}
