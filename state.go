package pqproxy

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// states holds the one state of the process while any config has the app, so that it outlives reloads.
var states = caddy.NewUsagePool()

const stateKey = "pqproxy"

// state is what outlives config reloads: the table, open connections, ticket keys, what was learned of
// upstreams, certificates.
type state struct {
	// outer is the one long-lived TLS config towards clients. crypto/tls rotates its ticket keys every day
	// and keeps them for a week.
	outer *tls.Config

	ready    chan struct{} // closed when a config is in force
	table    atomic.Pointer[table]
	settings atomic.Pointer[settings] // of the config in force
	live     liveConns
	early    dialSlots
	learning dialSlots // of ALPN: the same bounds, apart from those of the early dials
	alpn     alpnCache
	certs    certificates

	once      sync.Once  // closes ready
	mu        sync.Mutex // guards the rest, and who writes table and settings
	apps      []*App     // started: the one in force, then its successor during a reload
	upstreams map[upstreamKey]*upstream
}

// settings are what connections take from the config in force.
type settings struct {
	limits    Limits
	logger    *zap.Logger
	accessLog *zap.Logger
}

func newState() *state {
	s := &state{ready: make(chan struct{})}
	s.outer = &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: s.hello,
	}
	s.table.Store(&table{})
	s.certs.open()
	return s
}

// drains counts states that are being drained: at exit they are waited for.
var drains sync.WaitGroup

func init() {
	caddy.OnExit(func(context.Context) { drains.Wait() })
}

// Destruct is called when no config has the app any more. When Caddy exits it returns after the drain,
// otherwise the drain goes on in the background.
func (s *state) Destruct() error {
	grace := time.Duration(defaultGracePeriod)
	if settings := s.settings.Load(); settings != nil {
		grace = time.Duration(settings.limits.GracePeriod)
	}
	drains.Add(1)
	if caddy.Exiting() {
		s.drain(grace)
	} else {
		go s.drain(grace)
	}
	return nil
}

// closingTime bounds how long connections may take to leave once they have been reset.
const closingTime = 5 * time.Second

// drain lets open connections end by themselves for the grace period, then ends them. It returns when all
// are gone.
func (s *state) drain(grace time.Duration) {
	defer drains.Done()
	defer s.certs.close()
	select {
	case <-s.live.empty():
		return
	case <-time.After(grace):
	}
	for _, c := range s.live.list() {
		c.abort(reasonDrained, sideEdge, nil)
	}
	select {
	case <-s.live.empty():
	case <-time.After(closingTime):
	}
}

// start queues an app's config. It comes into force now if no other is, else when the one before it stops:
// Caddy starts all apps of a config and only then stops those of the one before, so that a config of
// which another app fails to start never has an effect.
func (s *state) start(a *App) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.apps = append(s.apps, a); len(s.apps) == 1 {
		s.enforce()
	}
}

// stop takes an app's config out of force, or out of the queue.
func (s *state) stop(a *App) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.apps, a)
	if i < 0 {
		return
	}
	if s.apps = slices.Delete(s.apps, i, i+1); i == 0 && len(s.apps) > 0 {
		s.enforce()
	}
}

// enforce puts the first app's settings and domains in force. Call it with the lock held.
func (s *state) enforce() {
	a := s.apps[0]
	s.settings.Store(&settings{limits: a.Limits, logger: a.logger, accessLog: a.accessLog})
	admission.limit.Store(int64(a.Limits.MaxConnections))
	refused := s.refuseOverLimit
	admission.refused.Store(&refused)
	s.certs.use(a.internal)
	s.apply(a.drafts)
	s.once.Do(func() { close(s.ready) })
}

// enter counts a connection in on its route. It reports false where the domain is full.
func (s *state) enter(c *conn, r *route) bool {
	c.route = r
	c.routed.Store(r)
	if open := r.open.Add(1); r.MaxConnections > 0 && open > int64(r.MaxConnections) {
		r.open.Add(-1)
		return false
	}
	c.entered = true
	s.endIfAffected(c) // apply may have looked for such connections since r was found, and not seen this one
	return true
}

// endAffected ends the connections of routes that are gone, suspended or another tenant's, spread over the
// grace period so that their clients do not all come back at once.
func (s *state) endAffected() {
	for _, c := range s.live.list() {
		s.endIfAffected(c)
	}
}

// endIfAffected is endAffected for one connection.
func (s *state) endIfAffected(c *conn) {
	had := c.routed.Load()
	if had == nil {
		return
	}
	now := s.table.Load().routes[had.Name]
	var reason endReason
	switch {
	case now == nil, now.Tenant != had.Tenant:
		reason = reasonDomainRemoved
	case now.Suspended:
		reason = reasonSuspended
	default:
		return
	}
	if c.ending.CompareAndSwap(false, true) {
		grace := time.Duration(s.settings.Load().limits.GracePeriod)
		time.AfterFunc(rand.N(grace+1), func() { c.abort(reason, sideEdge, nil) })
	}
}

// liveConns are the open connections.
type liveConns struct {
	mu      sync.Mutex
	conns   map[*conn]struct{}
	waiting []chan struct{} // closed when there are none
}

func (l *liveConns) add(c *conn) {
	metrics.active.Inc()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		l.conns = make(map[*conn]struct{})
	}
	l.conns[c] = struct{}{}
}

func (l *liveConns) remove(c *conn) {
	metrics.active.Dec()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	if len(l.conns) == 0 {
		for _, w := range l.waiting {
			close(w)
		}
		l.waiting = nil
	}
}

// list returns the connections that are open now.
func (l *liveConns) list() []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	conns := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	return conns
}

// empty returns a channel that is closed when no connection is open.
func (l *liveConns) empty() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := make(chan struct{})
	if len(l.conns) == 0 {
		close(w)
	} else {
		l.waiting = append(l.waiting, w)
	}
	return w
}

// refuseOverLimit leaves the record of a connection that was closed when accepted.
func (s *state) refuseOverLimit(c net.Conn) {
	r := &record{
		id:       newConnID(),
		client:   addrPort(c.RemoteAddr()),
		closedBy: sideEdge,
		reason:   reasonOverLimit,
	}
	metrics.ended(r)
	r.log(s.settings.Load().accessLog)
}
