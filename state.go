package pqproxy

import (
	"context"
	"crypto/tls"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/internal/keptset"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// states holds the one state of the process while any config has the app, so that it outlives reloads.
var states = caddy.NewUsagePool()

const stateKey = "pqproxy"

// inForce is the state of the config in force, for those whom no config leads to it: the admin endpoint outlives
// reloads that failed, with the context of the failed config. nil: no config has the app.
var inForce atomic.Pointer[state]

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
	http01   http01

	upstreams upstreamPool
	health    health
	remote    remoteState // of the poller
	reports   reporter

	keepingAdmin sync.Mutex // held while the admin-set domains are written to storage; guards these two
	adminKept    adminKept
	adminUnread  error // why what was kept before is not known, and must not be overwritten

	once   sync.Once              // closes ready
	mu     sync.Mutex             // guards the rest, and who writes table, settings and poller; apply may hold it for seconds
	apps   []*App                 // started: the one in force, then its successor during a reload
	poller atomic.Pointer[poller] // nil: there is no management URL
	polled <-chan struct{}        // closed when the poller before, if there was one, has ended

	told     sync.Mutex          // guards the rest, for reports, which do not wait for apply
	shadowed map[string]struct{} // names that several sources give
	rejects  rejects             // of the management plane
}

// rejects are records of the management plane that are not in force as it last said them.
type rejects struct {
	names   map[string]struct{}
	unnamed int       // records without a readable name
	list    []refusal // the last of them
}

// settings are what connections take from the config in force.
type settings struct {
	limits       Limits
	policy       *netpolicy.Policy // for domains that did not come from the config
	own          *netpolicy.Policy // for those that did: only loops are refused
	kept         *keptset.Store    // nil: nothing can be kept, or nothing has to be
	persistAdmin bool
	http         bool          // plain HTTP is served
	httpsPort    string        // that it is redirected to: `:8443`, empty for 443
	caddyTLS     *caddytls.TLS // has Caddy's own certificates; nil: there are none
	logger       *zap.Logger
	accessLog    *zap.Logger
}

func newState() *state {
	s := &state{ready: make(chan struct{}), shadowed: make(map[string]struct{})}
	s.outer = &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: s.hello,
	}
	s.table.Store(&table{adminVersion: epochs.Add(1) << 32}) // which no other state has had
	s.certs.open(s)
	s.http01.open(s, usualHTTPBounds)
	s.health.open(s)
	s.reports.open(s)
	return s
}

// drains counts states that are being drained: at exit they are waited for.
var drains sync.WaitGroup

func init() {
	caddy.OnExit(func(context.Context) { drains.Wait() })
}

// draining is the state whose connections are being ended, for the admin endpoint. nil: none, or there has been another
// config with the app since.
var draining atomic.Pointer[state]

// Destruct is called when no config has the app any more. When Caddy exits it returns after the drain,
// otherwise the drain goes on in the background.
func (s *state) Destruct() error {
	draining.Store(s)
	inForce.CompareAndSwap(s, nil)
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
	defer draining.CompareAndSwap(s, nil)
	defer s.certs.close()
	defer s.stopPolling()()
	defer s.http01.shut()()
	s.reports.drain()
	defer s.reports.finish() // the first of these, when all records are there
	s.health.stop()
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

// stopPolling stops the poller, and returns what waits until it has kept what it had to, or a storage has had time enough.
func (s *state) stopPolling() (wait func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.poller.Load()
	if p == nil {
		return func() {}
	}
	p.stop()
	return func() {
		select {
		case <-p.done:
		case <-time.After(lastKeep):
		}
	}
}

// lastKeep is how long the last set may take to be kept when the process may be exiting: before systemd loses its patience.
// A variable for tests.
var lastKeep = 10 * time.Second

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
	a, before := s.apps[0], s.settings.Load()
	s.settings.Store(&settings{
		limits: a.Limits, kept: a.kept, persistAdmin: a.PersistAdmin,
		policy: a.policy, own: (*netpolicy.Policy)(nil).WithOwn(ownListeners),
		http: len(a.httpAddrs) > 0, httpsPort: a.httpsPort, caddyTLS: a.caddyTLS,
		logger: a.logger, accessLog: a.accessLog,
	})
	admission.limit.Store(int64(a.Limits.MaxConnections))
	refused := s.refuseOverLimit
	admission.refused.Store(&refused)
	s.certs.http.Store(len(a.httpAddrs) > 0 || a.http01s.Load() > 0)
	s.certs.use(a.issuing)
	static := s.newChangeSet(rankStatic, true, nil)
	for _, d := range a.drafts {
		_ = static.put(d) // refuses nothing that was checked in Provision
	}
	s.applyLocked(static)
	s.manage(a.management())
	inForce.Store(s)
	s.once.Do(func() {
		store := a.kept
		if !a.PersistAdmin {
			store = nil
		}
		go s.restore(store, s.poller.Load())
	})
	if before != nil && a.PersistAdmin && !before.persistAdmin {
		go s.beginToKeep()
	}
}

// adopted takes the management settings that a config loader has handed to an app, if that is in force; else enforce
// will.
func (s *state) adopted(a *App) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.apps) == 0 || s.apps[0] != a {
		return
	}
	now := *s.settings.Load()
	now.kept = a.kept
	s.settings.Store(&now)
	s.manage(a.management())
}
