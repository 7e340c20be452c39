package pqproxy

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/feed"
)

// reporter tells the management plane what this edge sees and does (DESIGN.md section 9, package edgereport): who
// connected, and how it stands with the domains that it was given. It outlives config reloads. Where no management plane is
// configured it keeps nothing.
//
// Connections come in by ended, which is on their way out and costs some hundred nanoseconds. One sender at a time takes them
// out. While the management plane is away, counters are merged and records left out, so memory is bounded; what was
// counted is never lost but with the process.
type reporter struct {
	owner     *state
	on        atomic.Bool // somebody wants to know
	counters  counters
	records   endedConns
	book      reportBook   // the sender's
	news      atomic.Int64 // since when, in nanoseconds since 1970, there is something that is not to wait; 0: there is not
	draining  atomic.Bool
	wake      chan struct{}
	finishing chan struct{} // closed when all that is left is to be sent at once

	mu         sync.Mutex // guards the rest
	sender     *sender    // nil: none
	done       <-chan struct{}
	finished   bool
	touched    []string // names that an apply has changed
	touchedAll bool     // more than touchedNames
}

// reportTimes say when reports are sent.
type reportTimes struct {
	every   time.Duration // regularly
	soon    time.Duration // after news, so that what belongs together goes together
	gap     time.Duration // from one report to one with news
	settle  time.Duration // between looks at certificates that are not valid yet
	retry   time.Duration // after a failure; doubled up to
	longest time.Duration
	last    time.Duration // for all that is left when the process ends
}

// reporting are the times of DESIGN.md section 9. A variable for tests.
var reporting = reportTimes{
	every: 30 * time.Second, soon: 50 * time.Millisecond, gap: 900 * time.Millisecond, settle: time.Second,
	retry: time.Second, longest: 30 * time.Second, last: 3 * time.Second,
}

// lastReportStart is when the last reporter of this process began, in milliseconds: no two may be alike.
var lastReportStart atomic.Int64

func (r *reporter) open(owner *state) {
	r.owner = owner
	r.counters.limit = shardCells
	r.wake, r.finishing = make(chan struct{}, 1), make(chan struct{})
	for {
		last := lastReportStart.Load()
		now := max(time.Now().UnixMilli(), last+1)
		if lastReportStart.CompareAndSwap(last, now) {
			r.book.started = time.UnixMilli(now).UTC()
			break
		}
	}
	r.book.states.open(owner)
}

// use has reports sent as a config says, once restored is closed: before, it is not known what is served. nil: none are.
// Call it with the state's lock held.
func (r *reporter) use(m *Management, restored <-chan struct{}) {
	if m != nil && !m.reports {
		m = nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.sender
	if r.finished || before == nil && m == nil {
		return
	}
	r.sender = nil
	r.on.Store(m != nil)
	if before != nil {
		before.stop()
	}
	if m == nil {
		was, done := r.done, make(chan struct{})
		r.done = done
		go r.forgetAfter(was, done)
		return
	}
	cfg := m.config
	cfg.URL, cfg.Keys, cfg.MaxBody, cfg.Pace = m.reportsURL, nil, 0, nil
	client, err := feed.New(cfg)
	if err != nil { // it was tried in provision
		r.logger().Error("reporting to the management plane", zap.Error(err))
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &sender{reporter: r, settings: m, client: client, restored: restored, ctx: ctx, stop: stop, done: make(chan struct{})}
	r.sender = s
	go s.run(r.done)
	r.done = s.done
}

// forgetAfter forgets what was to be reported when the last sender has ended, since nobody wants to know any more.
func (r *reporter) forgetAfter(was <-chan struct{}, done chan<- struct{}) {
	defer close(done)
	<-was
	r.counters.drain()
	for len(r.records.take(recordShards*shardRecords)) > 0 {
	}
	r.records.dropped.Store(0)
	r.book.sealed, r.book.outgoing = nil, nil
	r.book.states.forget()
}

func (r *reporter) logger() *zap.Logger { return r.owner.settings.Load().logger }

// ended takes note of a connection that has ended. Those of domains that the management plane did not give are no
// business of its; those that found no domain are of nobody's tenant; and those with which a CA validates a name are not
// the tenant's traffic.
func (r *reporter) ended(rec *record) {
	if !r.on.Load() || rec.route == nil || rec.route.source != domain.Remote || rec.reason == reasonACMEChallenge {
		return
	}
	now := time.Now()
	r.counters.count(rec, now)
	waiting, dropped := r.records.add(rec, now)
	if dropped {
		metrics.reportDropped.Inc()
	}
	if waiting%recordsAtOnce == 0 {
		r.wakeUp()
	}
}

func (r *reporter) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default: // it will see to all there is
	}
}

// applying takes note of what a set changes. It is called before the set's revision is the one in force, so that no report
// has that revision without what belongs to it; applied is called after.
func (r *reporter) applying(c *changeSet) {
	if !r.on.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range c.changes.names {
		if r.touchedAll = r.touchedAll || len(r.touched) >= touchedNames; r.touchedAll {
			r.touched = nil
			return
		}
		r.touched = append(r.touched, strings.Clone(name))
	}
}

// applied has the management plane told soon.
func (r *reporter) applied() {
	if r.on.Load() && r.news.CompareAndSwap(0, time.Now().UnixNano()) {
		r.wakeUp()
	}
}

// takeTouched returns the names that were changed since it was called last; all: there were too many.
func (r *reporter) takeTouched() (names []string, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	names, all = r.touched, r.touchedAll
	r.touched, r.touchedAll = nil, false
	return names, all
}

// drain tells the management plane that this edge takes no connections any more.
func (r *reporter) drain() {
	r.draining.Store(true)
	r.wakeUp()
}

// finish sends what is left, and returns when that is done or has taken long enough. Nothing is sent afterwards.
func (r *reporter) finish() {
	r.mu.Lock()
	s, done := r.sender, r.done
	if !r.finished {
		r.finished = true
		close(r.finishing)
	}
	r.mu.Unlock()
	if s == nil {
		return
	}
	timer := time.AfterFunc(reporting.last, s.stop)
	defer timer.Stop()
	<-done
	r.on.Store(false)
}

// sender sends reports with the settings of one config. One runs at a time.
type sender struct {
	reporter *reporter
	settings *Management
	client   *feed.Client
	restored <-chan struct{}
	ctx      context.Context
	stop     context.CancelFunc // ends ctx
	done     chan struct{}      // closed when it has ended

	timer *time.Timer
	fault string // of the last attempt; empty: it was well
}

// run sends reports until it is stopped. before is closed when whoever used the book before has ended.
func (s *sender) run(before <-chan struct{}) {
	defer close(s.done)
	defer s.stop()
	defer s.client.Close()
	if before != nil {
		<-before
	}
	select {
	case <-s.restored:
	case <-s.ctx.Done():
		return
	}
	book := &s.reporter.book
	if now := s.settings.fingerprint; book.toldTo != now { // it may be another management plane, or we another edge
		book.toldTo = now
		book.states.forget()
	}
	book.regular = time.Time{}
	s.timer = time.NewTimer(time.Hour)
	defer s.timer.Stop()
	retry, lastTries := reporting.retry, 0
	for {
		final := s.await()
		if s.ctx.Err() != nil {
			return
		}
		if book.sealed == nil {
			s.seal(final)
		}
		if s.send() {
			retry = reporting.retry
			if final && book.saidLast && !s.left() {
				return
			}
			continue
		}
		if s.ctx.Err() != nil {
			return
		}
		if final {
			if lastTries++; lastTries > 1 { // it is away, and nobody waits for it here
				return
			}
		}
		s.pause(retry - rand.N(retry/4+1))
		retry = min(2*retry, reporting.longest)
	}
}

// left reports whether there is anything that has not been reported.
func (s *sender) left() bool {
	r := s.reporter
	return r.book.sealed != nil || len(r.book.outgoing) > 0 || r.counters.size() > 0 || r.records.waiting.Load() > 0
}

// pause waits after a failure, unless the process ends.
func (s *sender) pause(d time.Duration) {
	select {
	case <-s.reporter.finishing:
		d = min(d, reporting.last/10)
	default:
	}
	s.timer.Reset(d)
	select {
	case <-s.timer.C:
	case <-s.reporter.finishing:
		s.timer.Reset(min(d, reporting.last/10))
		select {
		case <-s.timer.C:
		case <-s.ctx.Done():
		}
	case <-s.ctx.Done():
	}
}

// await waits until a report is due. final: the process ends, and it waits for nothing.
func (s *sender) await() (final bool) {
	r := s.reporter
	for {
		now := time.Now()
		if r.book.states.settles(now) {
			r.news.CompareAndSwap(0, now.UnixNano())
		}
		due := s.due(now)
		select {
		case <-r.finishing:
			return true
		default:
		}
		if !due.After(now) {
			return false
		}
		s.timer.Reset(due.Sub(now))
		select {
		case <-s.timer.C:
		case <-r.wake:
		case <-r.finishing:
			return true
		case <-s.ctx.Done():
			return false
		}
	}
}

// due returns when there is to be a report, or when to look again.
func (s *sender) due(now time.Time) time.Time {
	r := s.reporter
	book := &r.book
	due := book.regular
	if at := r.news.Load(); at != 0 {
		due = earlier(due, later(time.Unix(0, at).Add(reporting.soon), book.sealedAt.Add(reporting.gap)))
	}
	if len(book.states.unsettled) > 0 {
		due = earlier(due, now.Add(reporting.settle))
	}
	if book.sealed != nil || book.states.telling || len(book.outgoing) > 0 || r.records.waiting.Load() >= recordsAtOnce || r.draining.Load() && !book.saidDraining {
		return now
	}
	return due
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
