package pqproxy

import (
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/id"
)

// liveConns are the open connections, by the name of the domain that they entered, so that what a change costs does
// not depend on how many connections it leaves alone.
type liveConns struct {
	mu      sync.Mutex
	open    int
	outside connList             // those that have entered no domain
	inside  map[string]*connList // by the domain's name; no empty ones
	waiting []chan struct{}      // closed when there are none
}

// connList is a list through the connections themselves.
type connList struct {
	first *conn
	size  int
}

func (l *connList) push(c *conn) {
	c.after = l.first
	if l.first != nil {
		l.first.before = c
	}
	l.first = c
	l.size++
}

func (l *connList) drop(c *conn) {
	if c.before != nil {
		c.before.after = c.after
	} else {
		l.first = c.after
	}
	if c.after != nil {
		c.after.before = c.before
	}
	c.before, c.after = nil, nil
	l.size--
}

func (l *connList) appendTo(conns []*conn) []*conn {
	for c := l.first; c != nil; c = c.after {
		conns = append(conns, c)
	}
	return conns
}

func (l *liveConns) add(c *conn) {
	metrics.active.Inc()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open++
	l.outside.push(c)
}

// enter moves a connection to the domain of its route. It reports false where that is full.
func (l *liveConns) enter(c *conn, name string, most int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.inside[name]
	if list != nil && most > 0 && list.size >= most {
		return false
	}
	if list == nil {
		if l.inside == nil {
			l.inside = make(map[string]*connList)
		}
		list = new(connList)
		l.inside[name] = list
	}
	l.outside.drop(c)
	list.push(c)
	c.entered = true
	return true
}

func (l *liveConns) remove(c *conn) {
	metrics.active.Dec()
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.entered {
		list := l.inside[c.route.Name]
		list.drop(c)
		if list.size == 0 {
			delete(l.inside, c.route.Name)
		}
	} else {
		l.outside.drop(c)
	}
	if l.open--; l.open == 0 {
		for _, w := range l.waiting {
			close(w)
		}
		l.waiting = nil
	}
}

// count returns how many connections are open.
func (l *liveConns) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// list returns the connections that are open now.
func (l *liveConns) list() []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	conns := l.outside.appendTo(make([]*conn, 0, l.open))
	for _, list := range l.inside {
		conns = list.appendTo(conns)
	}
	return conns
}

// of returns the connections that have entered a domain.
func (l *liveConns) of(name string) []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if list := l.inside[name]; list != nil {
		return list.appendTo(nil)
	}
	return nil
}

// empty returns a channel that is closed when no connection is open.
func (l *liveConns) empty() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := make(chan struct{})
	if l.open == 0 {
		close(w)
	} else {
		l.waiting = append(l.waiting, w)
	}
	return w
}

// enter counts a connection in on its domain. It reports false where the domain is full.
func (s *state) enter(c *conn, r *route) bool {
	c.route = r
	c.routed.Store(r)
	if !s.live.enter(c, r.Name, r.MaxConnections) {
		return false
	}
	s.endIfAffected(c) // apply may have looked for such connections since r was found, and not seen this one
	return true
}

// endAffected ends the connections of domains that are gone, suspended or another tenant's, spread over the grace
// period so that their clients do not all come back at once.
func (s *state) endAffected(changes *changes) {
	for change := range changes.all {
		if change.before.none() {
			continue
		}
		for _, c := range s.live.of(change.name()) {
			s.endIfAffected(c)
		}
	}
}

// endIfAffected is endAffected for one connection.
func (s *state) endIfAffected(c *conn) {
	if s.affected(c) == "" || !c.ending.CompareAndSwap(false, true) {
		return
	}
	grace := time.Duration(s.settings.Load().limits.GracePeriod)
	time.AfterFunc(rand.N(grace+1), func() {
		c.ending.Store(false) // first: who makes it affected from now on schedules it again
		if reason := s.affected(c); reason != "" {
			c.abort(reason, sideEdge, nil)
		}
	})
}

// affected returns why a connection may not go on, or nothing.
func (s *state) affected(c *conn) endReason {
	had := c.routed.Load()
	if had == nil {
		return ""
	}
	e := s.table.Load().named(had.Name)
	if e.none() {
		return reasonDomainRemoved
	}
	switch now := s.routeOf(e); {
	case now.Tenant != had.Tenant:
		return reasonDomainRemoved
	case now.Suspended:
		return reasonSuspended
	}
	return ""
}

// refuseOverLimit leaves the record of a connection that was closed when accepted.
func (s *state) refuseOverLimit(c net.Conn) {
	r := &record{
		id:       id.New(),
		client:   addrPort(c.RemoteAddr()),
		closedBy: sideEdge,
		reason:   reasonOverLimit,
	}
	metrics.ended(r)
	r.log(s.settings.Load().accessLog)
}
