package pqproxy

import (
	"container/list"
	"net/netip"
	"sync"
	"time"
)

// dialSlots bounds the dials beside unfinished handshakes, in all and for each client: an IPv4 address or
// an IPv6 /64.
type dialSlots struct {
	mu       sync.Mutex
	total    int
	byClient map[netip.Addr]int
	waiting  list.List // of *slotWaiter, the first to come in front
}

// slotWaiter waits for a slot.
type slotWaiter struct {
	client  netip.Addr // as dialClient returns it
	limits  *Limits
	granted chan struct{} // closed when the slot is the waiter's
}

// acquire takes a slot if there is one.
func (d *dialSlots) acquire(client netip.Addr, limits *Limits) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.take(dialClient(client), limits)
}

// wait takes a slot as soon as there is one, and reports false if there is none within timeout.
func (d *dialSlots) wait(client netip.Addr, limits *Limits, timeout time.Duration) bool {
	w := &slotWaiter{client: dialClient(client), limits: limits, granted: make(chan struct{})}
	d.mu.Lock()
	if d.take(w.client, limits) {
		d.mu.Unlock()
		return true
	}
	element := d.waiting.PushBack(w)
	d.mu.Unlock()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-w.granted:
		return true
	case <-timer.C:
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-w.granted: // in the meantime
		return true
	default:
		d.waiting.Remove(element)
		return false
	}
}

// take is acquire for what dialClient returned. Call it with the lock held.
func (d *dialSlots) take(client netip.Addr, limits *Limits) bool {
	if d.total >= limits.EarlyDials || d.byClient[client] >= limits.EarlyDialsPerClient {
		return false
	}
	if d.byClient == nil {
		d.byClient = make(map[netip.Addr]int)
	}
	d.total++
	d.byClient[client]++
	return true
}

// release gives a slot back, to the first that waits and may have it.
func (d *dialSlots) release(client netip.Addr) {
	client = dialClient(client)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.total--
	if d.byClient[client]--; d.byClient[client] == 0 {
		delete(d.byClient, client)
	}
	for element := d.waiting.Front(); element != nil; element = element.Next() {
		if w := element.Value.(*slotWaiter); d.take(w.client, w.limits) {
			d.waiting.Remove(element)
			close(w.granted)
			return
		}
	}
}

// dialClient is what counts as one client.
func dialClient(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is6() {
		prefix, _ := a.WithZone("").Prefix(64)
		return prefix.Addr()
	}
	return a
}
