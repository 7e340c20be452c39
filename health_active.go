package pqproxy

import (
	"container/heap"
	"container/list"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pace"
)

// checker runs the checks of upstreams that domains ask for. One goroutine, run, knows what is checked and when; checks
// themselves run beside it, a bounded number at a time. It begins with the first domain that asks, and ends with stop.
type checker struct {
	owner *state
	hurry time.Duration // what intervals are divided by: 1, but in tests

	mu      sync.Mutex         // guards what follows
	changes []changed          // that run has not seen
	cancel  context.CancelFunc // nil: run has not begun
	stopped bool

	wake    chan struct{}    // there are changes
	results chan checkResult // room for all
	ended   chan struct{}    // closed when run has ended

	// From here on all is run's alone.
	targets map[targetKey]*target
	waiting dueHeap[*target]
	turns   turns
	running int
	pace    pace.Pace
}

// checksAtOnce bounds the checks under way. Past that they are late: upstreams that do not answer hold each for its timeout.
// Tenants take turns, so that those of one cannot keep those of others from being checked.
const checksAtOnce = 64

// changesAtOnce is how many changes are taken up before checks that are due are looked after.
const changesAtOnce = 256

// target is an upstream that is checked in one way, however many domains ask for it.
type target struct {
	key      targetKey
	upstream *upstream
	tenant   string
	names    map[string]struct{} // of the domains
	name     string              // one of them, that it is asked for and reported as

	due   time.Time
	place int  // in waiting; negative: not there
	gone  bool // no domain asks any more

	streak  int  // results in a row that contradict down
	refused bool // the last check was refused by our own policy

	down    bool          // written by run, with health.mu held
	trouble trouble       // guarded by health.mu; meaningless unless down
	failing *list.Element // in watch.failing; guarded by health.mu
	counted bool          // in upstream.down
}

func (t *target) dueAt() time.Time { return t.due }
func (t *target) moved(place int)  { t.place = place }

// targetKey is what checks that are the same have in common. The policy that an address is held to depends on the source.
type targetKey struct {
	upstream upstreamKey
	check    domain.HealthCheck
	proxy    domain.ProxyProtocol
	static   bool
}

// watch is what all checks of an upstream say together: that it is healthy if each does.
type watch struct {
	targets int           // run's alone
	failing list.List     // of *target; guarded by health.mu, as listed is
	listed  *list.Element // in health.down; nil: it is healthy
}

// checkResult is how a check ended.
type checkResult struct {
	target *target
	begun  time.Time
	err    error
}

func (k *checker) open(s *state) {
	k.owner, k.hurry = s, 1
	k.wake = make(chan struct{}, 1)
	k.results = make(chan checkResult, checksAtOnce)
	k.ended = make(chan struct{})
	k.targets = make(map[targetKey]*target)
}

// follow hands changes of domains that are checked to run. It does not wait: apply calls it.
func (k *checker) follow(changes *changes) {
	var ours []changed
	for c := range changes.all {
		if !c.before.none() && c.before.checked || !c.now.none() && c.now.checked {
			ours = append(ours, c)
		}
	}
	if len(ours) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped {
		return
	}
	k.changes = append(k.changes, ours...)
	if k.cancel == nil {
		ctx, cancel := context.WithCancel(context.Background())
		k.cancel = cancel
		go k.run(ctx)
	}
	k.wakeUp()
}

func (k *checker) wakeUp() {
	select {
	case k.wake <- struct{}{}:
	default: // it will see to all there is
	}
}

// stop ends run and the checks under way, and waits for them.
func (k *checker) stop() {
	k.mu.Lock()
	k.stopped = true
	cancel := k.cancel
	k.mu.Unlock()
	if cancel != nil {
		cancel()
		<-k.ended
	}
}

// run takes up changes and has checks made when they are due, until ctx ends.
func (k *checker) run(ctx context.Context) {
	defer close(k.ended)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		k.takeUp()
		timer.Reset(k.begin(ctx))
		select {
		case <-k.wake:
		case <-timer.C:
		case r := <-k.results:
			k.running--
			k.take(r)
		case <-ctx.Done():
		}
	}
	for ; k.running > 0; k.running-- {
		<-k.results
	}
	for _, t := range k.targets {
		k.forget(t)
	}
}

// takeUp takes up some of the changes.
func (k *checker) takeUp() {
	k.mu.Lock()
	some := k.changes[:min(len(k.changes), changesAtOnce)]
	k.changes = k.changes[len(some):]
	if len(k.changes) == 0 {
		k.changes = nil
	} else {
		k.wakeUp()
	}
	k.mu.Unlock()
	for _, c := range some {
		k.pace.Step()
		k.change(c)
	}
}

// wanted is a check that a domain asks for.
type wanted struct {
	key      targetKey
	tenant   string
	settings domain.Upstream
}

// wantedBy returns the checks that an entry asks for: none where no connection goes.
func wantedBy(e entry) (all []wanted) {
	if e.none() || !e.checked {
		return nil
	}
	d := e.domain()
	if d.Suspended {
		return nil
	}
	for _, u := range d.Upstreams {
		key := targetKey{keyOf(d.Tenant, u), *d.HealthCheck, d.ProxyProtocol, e.source == rankStatic}
		all = append(all, wanted{key, d.Tenant, u})
	}
	return all
}

// change takes up what became of one domain.
func (k *checker) change(c changed) {
	name := strings.Clone(c.name()) // it is part of something large, and stays
	before, now := wantedBy(c.before), wantedBy(c.now)
	for _, w := range now {
		t := k.targets[w.key]
		if t == nil {
			t = k.add(w, name)
			for _, b := range before {
				if old := k.targets[b.key]; b.key.upstream == w.key.upstream && b.key.check.Type == w.key.check.Type && old != nil {
					k.inherit(t, old)
				}
			}
		}
		t.names[name] = struct{}{}
	}
	for _, b := range before {
		if !slices.ContainsFunc(now, func(w wanted) bool { return w.key == b.key }) {
			k.leave(b.key, name)
		}
	}
}

// spreadFully is with how many targets the first checks of new ones are spread over their whole interval.
const spreadFully = 1000

// add begins to check. The first check is made at once, or nearly so where there is little to check.
func (k *checker) add(w wanted, name string) *target {
	u := k.owner.upstreams.get(w.tenant, w.settings)
	t := &target{key: w.key, upstream: u, tenant: w.tenant, names: make(map[string]struct{}), name: name, place: -1}
	k.targets[w.key] = t
	spread := k.interval(t) * time.Duration(min(len(k.targets), spreadFully)) / spreadFully
	t.due = time.Now().Add(rand.N(spread + 1))
	heap.Push(&k.waiting, t)

	h := &k.owner.health
	h.mu.Lock()
	defer h.mu.Unlock()
	if u.watch == nil {
		u.watch = new(watch)
		metrics.upstreams.WithLabelValues(stateHealthy).Inc()
	}
	u.watch.targets++
	return t
}

// inherit gives a target what was known when the same upstream was checked under other terms.
func (k *checker) inherit(t, old *target) {
	t.streak, t.refused = old.streak, old.refused
	if old.down {
		k.declare(t, &old.trouble)
	}
}

// leave takes a domain away from a target, which goes with the last one.
func (k *checker) leave(key targetKey, name string) {
	t := k.targets[key]
	if t == nil {
		return
	}
	delete(t.names, name)
	if len(t.names) == 0 {
		k.forget(t)
		return
	}
	if t.name == name {
		for t.name = range t.names { // any of them
			break
		}
		h := &k.owner.health
		h.mu.Lock()
		defer h.mu.Unlock()
		t.trouble.domain = t.name
	}
}

// forget ends the checks of a target. One under way is left to end.
func (k *checker) forget(t *target) {
	t.gone = true
	delete(k.targets, t.key)
	if t.place >= 0 {
		heap.Remove(&k.waiting, t.place)
	}
	k.declare(t, nil)
	h, u := &k.owner.health, t.upstream
	h.mu.Lock()
	defer h.mu.Unlock()
	if u.watch.targets--; u.watch.targets == 0 {
		u.watch = nil
		metrics.upstreams.WithLabelValues(stateHealthy).Dec()
	}
}

// begin begins the checks that are due, as far as there is room, and returns how long there is nothing else to do.
func (k *checker) begin(ctx context.Context) time.Duration {
	now := time.Now()
	for len(k.waiting) > 0 && !k.waiting[0].due.After(now) {
		k.turns.push(heap.Pop(&k.waiting).(*target))
	}
	for k.running < checksAtOnce {
		t := k.turns.next()
		if t == nil {
			break
		}
		k.running++
		go k.check(ctx, t, t.name)
	}
	if len(k.waiting) == 0 {
		return time.Hour
	}
	return k.waiting[0].due.Sub(now)
}

// interval is the time between two checks of a target.
func (k *checker) interval(t *target) time.Duration {
	return time.Duration(t.key.check.Interval) / k.hurry
}

// take takes the result of a check, and has the next one made an interval after it began.
func (k *checker) take(r checkResult) {
	t := r.target
	if t.gone {
		return
	}
	t.due = r.begun.Add(k.interval(t))
	heap.Push(&k.waiting, t)
	if errors.Is(r.err, context.Canceled) {
		return
	}
	if r.err == nil {
		metrics.healthChecks.WithLabelValues("ok").Inc()
		k.passed(t)
		return
	}
	if entry := k.owner.health.logger().Check(zap.DebugLevel, "check failed"); entry != nil {
		entry.Write(zap.String(keyDomain, t.name), zap.String(keyUpstream, t.upstream.Dial), zap.Error(r.err))
	}
	if edgeExhausted(r.err) {
		return // says nothing of the upstream
	}
	metrics.healthChecks.WithLabelValues("failed").Inc()
	k.failed(t, r.err)
}

func (k *checker) passed(t *target) {
	t.refused = false
	if !t.down {
		t.streak = 0
		return
	}
	if t.streak++; t.streak < t.key.check.Rise {
		return
	}
	t.streak = 0
	k.declare(t, nil)
	k.owner.health.logUp("upstream is up", t.name, t.upstream)
}

func (k *checker) failed(t *target, err error) {
	reason := connectReason(err)
	t.refused = reason == reasonUpDenied || reason == reasonUpLoop
	text := cutText(err.Error(), troubleText)
	if t.down {
		t.streak = 0
		k.declare(t, &trouble{since: t.trouble.since, domain: t.name, err: text})
		return
	}
	if t.streak++; t.streak < t.key.check.Fall {
		return
	}
	t.streak = 0
	k.declare(t, &trouble{since: time.Now(), domain: t.name, err: text})
	k.owner.health.logDown("upstream is down", t.name, t.upstream, text)
}

// declare makes known that a target is down and why, or, with nil, that it is up. What is refused by our own policy is down,
// but counts for nothing where the upstream is tried: another source's domains may be allowed what this one's are not.
func (k *checker) declare(t *target, why *trouble) {
	h, u := &k.owner.health, t.upstream
	h.mu.Lock()
	defer h.mu.Unlock()
	w := u.watch
	t.down = why != nil
	if t.down {
		t.trouble = *why
	}
	switch {
	case t.down && t.failing == nil:
		t.failing = w.failing.PushBack(t)
	case !t.down && t.failing != nil:
		w.failing.Remove(t.failing)
		t.failing = nil
	}
	switch {
	case w.failing.Len() > 0 && w.listed == nil:
		w.listed = h.down.PushBack(u)
		metrics.upstreams.WithLabelValues(stateHealthy).Dec()
		metrics.upstreams.WithLabelValues(stateUnhealthy).Inc()
	case w.failing.Len() == 0 && w.listed != nil:
		h.down.Remove(w.listed)
		w.listed = nil
		metrics.upstreams.WithLabelValues(stateUnhealthy).Dec()
		metrics.upstreams.WithLabelValues(stateHealthy).Inc()
	}
	if counts := t.down && !t.refused; counts != t.counted {
		t.counted = counts
		if counts {
			u.down.Add(1)
		} else {
			u.down.Add(-1)
		}
	}
}

// check makes one check.
func (k *checker) check(ctx context.Context, t *target, name string) {
	result := checkResult{target: t, begun: time.Now()}
	defer func() {
		if p := recover(); p != nil {
			k.owner.health.logger().Error("check panicked", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			result.err = fmt.Errorf("panic: %v", p)
		}
		k.results <- result
	}()
	result.err = k.ask(ctx, t, name)
}

// ask connects to an upstream as for a client, says that there is none, and completes the TLS handshake if the check is of
// that type. It has no longer than a client's connection has.
func (k *checker) ask(ctx context.Context, t *target, name string) error {
	settings, u := k.owner.settings.Load(), t.upstream
	policy := settings.policy
	if t.key.static {
		policy = settings.own
	}
	timeout := min(time.Duration(t.key.check.Timeout), time.Duration(settings.limits.DialTimeout))
	deadline := time.Now().Add(timeout)
	sock, err := dialSocket(ctx, u, policy, timeout)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	defer sock.Close()
	_ = sock.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = sock.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	header := ownHeader(t.key.proxy)
	if t.key.check.Type != domain.HealthTLS {
		if len(header) > 0 {
			_, err = sock.Write(header)
		}
		return err
	}
	w := newWire(sock)
	w.header = header
	cfg, madeUp := u.checkConfig(name)
	conn := tls.Client(w, cfg)
	err = conn.Handshake()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case madeUp && alertOf(err) == alertUnrecognizedName:
		return nil // it works, and need not know that name
	case err != nil:
		return err
	}
	if group := conn.ConnectionState().CurveID; !u.policy.allows(group) {
		return fmt.Errorf("%w: %s", errUpstreamGroup, group)
	}
	_ = conn.Close() // with close_notify, so that nobody logs a fault
	return nil
}

// checkConfig returns the TLS config of a check on behalf of a domain. Where clients choose the name, under a wildcard, none
// of their names is known: the upstream is asked for one with an x for the star, and need not have a certificate for
// that one, as long as its chain is good. madeUp says so.
func (u *upstream) checkConfig(name string) (cfg *tls.Config, madeUp bool) {
	if suffix, wildcard := strings.CutPrefix(name, "*."); wildcard {
		name = "x." + suffix // as long as the wildcard, so it is no longer than a name may be
		madeUp = u.namedByClient()
	}
	cfg = u.clientConfig(name, nil)
	cfg.ClientSessionCache = nil // with a ticket of a client's connection the certificate would not be shown again
	if madeUp && !cfg.InsecureSkipVerify {
		cfg.InsecureSkipVerify = true // but for what follows
		cfg.VerifyConnection = func(state tls.ConnectionState) error { return verifyChain(state.PeerCertificates, cfg.RootCAs) }
	}
	return cfg, madeUp
}

// verifyChain verifies a server's certificates, whatever names they have.
func verifyChain(certs []*x509.Certificate, roots *x509.CertPool) error {
	between := x509.NewCertPool()
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between})
	return err
}
