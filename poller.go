package pqproxy

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/feed"
)

// syncResult says how one poll of the management plane went. It is a metric's label; docs/operations.md says what to
// do about each. Beside these there are the reasons of package feed.
type syncResult string

const (
	syncApplied   syncResult = "applied"
	syncUnchanged syncResult = "unchanged"
	syncMalformed syncResult = "malformed"   // the document is no set
	syncRevision  syncResult = "no_revision" // it is signed and has none
	syncRollback  syncResult = "rollback"    // it is older than one that was accepted
	syncEmpty     syncResult = "empty"       // it would end every domain
)

// syncError is a set that was refused as a whole.
type syncError struct {
	result syncResult
	err    error
}

func (e *syncError) Error() string { return e.err.Error() }
func (e *syncError) Unwrap() error { return e.err }

// resultOf classifies the error of a poll.
func resultOf(err error) syncResult {
	var refused *syncError
	var fetch *feed.Error
	switch {
	case errors.As(err, &refused):
		return refused.result
	case errors.As(err, &fetch):
		return syncResult(fetch.Reason)
	default:
		return syncMalformed
	}
}

// syncReport says how one poll went.
type syncReport struct {
	Time     time.Time  `json:"time"`     // when it ended
	Duration float64    `json:"duration"` // in seconds, from the complete answer to the new table
	Result   syncResult `json:"result"`
	Error    string     `json:"error,omitempty"`
	Revision version    `json:"revision"` // that is in force now
	Outcome  *outcome   `json:"outcome,omitempty"`

	moved bool // there is another set in force than before
}

// poller fetches the set of one management URL again and again and applies what changed. One runs at a time.
type poller struct {
	owner    *state
	settings *Management
	client   *feed.Client
	requests chan syncRequest
	restored chan struct{} // closed when the kept set is in the table, or there is none
	done     chan struct{} // closed when it has ended
	ctx      context.Context
	stop     context.CancelFunc // ends ctx; called with the state's lock held

	holds     bool        // the server holds requests until something changes, as far as is known
	forgotten atomic.Bool // what it applied has been taken out of the table

	mu        sync.Mutex
	interrupt context.CancelFunc // ends the wait for an answer; nil: nothing is awaited
}

// syncRequest asks for a poll now.
type syncRequest struct {
	accept *uint64 // go back to this revision, or a later one
	answer chan<- *syncReport
}

// errInterrupted ends a long poll because somebody wants an answer now.
var errInterrupted = errors.New("interrupted")

// manage has the set of a management URL polled from now on, or none if m is nil. Call it with the lock held.
func (s *state) manage(m *Management) {
	before := s.poller.Load()
	if before != nil && m != nil && before.settings.fingerprint == m.fingerprint {
		return
	}
	s.poller.Store(nil)
	if before != nil {
		before.stop()
		if m == nil {
			s.reports.use(nil, nil)
			before.forgotten.Store(true)
			s.forgetRemote()
		}
	}
	if m == nil {
		return
	}
	client, err := feed.New(m.config)
	if err != nil { // it was tried in provision
		s.settings.Load().logger.Error("polling the management URL", zap.Error(err))
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	p := &poller{
		owner: s, settings: m, client: client, ctx: ctx, stop: stop,
		requests: make(chan syncRequest), restored: make(chan struct{}), done: make(chan struct{}),
	}
	s.poller.Store(p)
	go p.run(s.polled)
	s.polled = p.done
	s.reports.use(m, p.restored)
}

// forgetRemote takes the management plane's domains out, since a config has come into force that does without it. Call it
// with the lock held.
func (s *state) forgetRemote() {
	s.settings.Load().logger.Info("the config has no management any more: its domains leave")
	s.applyLocked(s.newChangeSet(rankRemote, true, nil))
	before, reset := s.polled, make(chan struct{})
	s.polled = reset
	go func() {
		defer close(reset)
		<-before
		s.remote.reset()
	}()
}

// inCharge keeps a poller that was stopped meanwhile from applying anything.
func (p *poller) inCharge(*table) error { return p.ctx.Err() }

// run polls until it is stopped. before is closed when whoever used the remoteState before has ended.
func (p *poller) run(before <-chan struct{}) {
	ctx := p.ctx
	defer close(p.done)
	defer p.client.Close()
	if before != nil {
		<-before
	}
	p.restore()
	keeper := p.newKeeper()
	defer keeper.close()
	retry := firstRetry
	var request *syncRequest
	for {
		begun, asked := time.Now(), request
		report, waited := p.poll(ctx, request)
		if request != nil {
			request.answer <- report
		}
		if ctx.Err() != nil {
			return
		}
		keeper.poke()
		interval := time.Duration(p.settings.Interval)
		var pause time.Duration
		switch {
		case report == nil: // interrupted: a request is on its way
			pause = interval
		case report.Error != "":
			pause = min(retry, interval)
			pause -= rand.N(pause/4 + 1)
			retry = min(2*retry, interval)
		case waited && (report.moved || time.Since(begun) > time.Second), asked != nil && p.holds:
			retry = firstRetry
		default: // also for a server that says it has waited and has not
			retry = firstRetry
			pause = interval - rand.N(interval/4+1)
		}
		if request = p.await(ctx, pause, keeper); ctx.Err() != nil {
			return
		}
	}
}

// await waits for the next poll: for the time given, or until somebody asks for one, which it returns. What waits to be
// kept is written meanwhile.
func (p *poller) await(ctx context.Context, pause time.Duration, keeper *keeper) *syncRequest {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case r := <-p.requests:
			return &r
		case <-timer.C:
			return nil
		case <-keeper.timer.C:
			keeper.poke()
		case what := <-keeper.saved:
			keeper.done(what)
		case <-ctx.Done():
			return nil
		}
	}
}

// poll asks once and applies what comes. It returns nil where it was interrupted. waited says that the server held the
// request as it was asked to.
func (p *poller) poll(ctx context.Context, request *syncRequest) (report *syncReport, waited bool) {
	ask := feed.Request{Wait: longPoll}
	if request != nil {
		ask.Wait = 0
	}
	remote, now := &p.owner.remote, &syncReport{}
	known := p.knows(remote)
	if request != nil && request.accept != nil {
		before := remote.accepted
		remote.accepted = min(before, *request.accept)
		defer func() {
			if now.Result != syncApplied {
				remote.accepted = before // it was for this poll alone
			}
		}()
		known = false
	}
	if known {
		ask.ETag = remote.etag
		if remote.version.hasRevision {
			ask.After = &remote.version.revision
		}
	}
	var err error
	for range 2 {
		var again bool
		again, waited, err = p.attempt(ctx, ask, now)
		if !again {
			break
		}
		ask.After, ask.ETag = nil, ""
	}
	if errors.Is(err, errInterrupted) || ctx.Err() != nil {
		return nil, false
	}
	p.finish(now, err)
	return now, waited
}

// knows reports whether the set that is in force is of this management URL, and as it would be now: keys that were
// configured later have to verify the whole set, and another policy has to judge what was refused.
func (p *poller) knows(remote *remoteState) bool {
	return remote.feed == p.settings.feed && (p.settings.signers == "" || p.settings.signers == remote.verified) &&
		!(remote.refusing && remote.policy != p.owner.settings.Load().policy)
}

// attempt asks once. again says that the edge has to ask for the full set.
func (p *poller) attempt(ctx context.Context, ask feed.Request, report *syncReport) (again, waited bool, err error) {
	answer, err := p.fetch(ctx, ask)
	if err != nil {
		return false, false, err
	}
	if answer.Body != nil {
		defer answer.Body.Close()
	}
	if ask.Wait > 0 {
		p.holds = answer.Waited
	}
	switch {
	case answer.NotModified:
		report.Result = syncUnchanged
		return false, answer.Waited, nil
	case answer.Gone:
		return true, false, nil
	}
	begun := time.Now()
	defer func() { report.Duration = time.Since(begun).Seconds() }()
	again, err = p.take(answer, report)
	if again && ask.After == nil {
		return false, false, &syncError{syncMalformed, errors.New("the management URL answers with a change of a set that was not asked for; a full set has no base")}
	}
	return again, answer.Waited, err
}

// fetch is the client's Fetch, which a request may interrupt.
func (p *poller) fetch(ctx context.Context, ask feed.Request) (*feed.Answer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if ask.Wait > 0 {
		p.mu.Lock()
		p.interrupt = func() { cancel(errInterrupted) }
		p.mu.Unlock()
		defer func() {
			p.mu.Lock()
			p.interrupt = nil
			p.mu.Unlock()
		}()
	}
	answer, err := p.client.Fetch(ctx, ask)
	if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		return nil, errInterrupted
	}
	return answer, err
}

// take reads a document and applies it. again says that it is a change of another set than ours.
func (p *poller) take(answer *feed.Answer, report *syncReport) (again bool, err error) {
	s, remote := p.owner, &p.owner.remote
	digest, known := hex.EncodeToString(answer.Body.SHA512[:]), p.knows(remote)
	if known && digest == remote.digest {
		remote.etag = answer.ETag
		report.Result = syncUnchanged
		return false, nil
	}
	c := s.newChangeSet(rankRemote, false, s.settings.Load().policy)
	header, err := readInto(c, answer.Body)
	if err != nil {
		return false, &syncError{syncMalformed, err}
	}
	if len(header.Ignored) > 0 {
		s.settings.Load().logger.Warn("the set has members that this version does not know", zap.Strings("ignored", header.Ignored))
	}
	switch {
	case p.settings.signers != "" && !header.HasRevision:
		return false, &syncError{syncRevision, errors.New("the set is signed and has no revision; without one an old set could be played back")}
	case header.HasRevision && header.Revision < remote.accepted:
		return false, &syncError{syncRollback, fmt.Errorf("revision %d is older than %d, which was accepted before; if the management plane was restored from a backup, POST /pqproxy/sync?accept_revision=%d",
			header.Revision, remote.accepted, header.Revision)}
	case !header.Full && (!known || !remote.version.hasRevision || header.Base != remote.version.revision):
		return true, nil
	case header.Full && header.Domains+header.Refused == 0 && !p.settings.AllowEmpty && s.table.Load().live[rankRemote] > 0:
		return false, &syncError{syncEmpty, errors.New("the set has no domain, and would end all of them; if that is meant, set allow_empty")}
	case header.Full && !p.settings.AllowEmpty && c.endsAll(s.table.Load()):
		first := c.refused[0]
		return false, &syncError{syncEmpty, fmt.Errorf("the set has no domain that can be applied, and would end all of them; if that is meant, set allow_empty; the first: %w",
			&domain.Error{Name: first.Name, Field: first.Field, Err: errors.New(first.Detail)})}
	}
	done, err := s.apply(c, p.inCharge)
	if err != nil {
		return false, err
	}
	s.reports.applying(c)
	defer s.reports.applied()
	now := version{revision: header.Revision, hasRevision: header.HasRevision, label: answer.ETag}
	if now.label == "" {
		now.label = "sha512:" + digest[:32]
	}
	report.moved = !known || done.Added+done.Changed+done.Removed > 0 ||
		now.revision != remote.version.revision || now.hasRevision != remote.version.hasRevision
	report.Result = syncUnchanged
	if report.moved || done.Rejected > 0 {
		report.Result, report.Outcome, remote.unkept = syncApplied, &done, true
	}
	remote.mu.Lock()
	defer remote.mu.Unlock()
	remote.feed, remote.etag, remote.digest, remote.version = p.settings.feed, answer.ETag, digest, now
	remote.verified = p.settings.signers
	remote.policy, remote.refusing = c.policy, s.rejected().Count > 0
	if header.HasRevision {
		remote.accepted = header.Revision
	}
	return false, nil
}

// finish leaves the report of a poll where it is seen.
func (p *poller) finish(report *syncReport, err error) {
	s, remote := p.owner, &p.owner.remote
	logger := s.settings.Load().logger
	report.Time = time.Now().UTC()
	if err != nil {
		report.Result, report.Error = resultOf(err), err.Error()
	}
	remote.mu.Lock()
	defer remote.mu.Unlock()
	before := remote.last
	report.Revision = remote.version
	remote.last = report
	metrics.syncs.WithLabelValues(string(report.Result)).Inc()
	switch {
	case err == nil:
		remote.lastGood = report.Time
		if before != nil && before.Error != "" {
			logger.Info("the management URL answers again", zap.String("result", string(report.Result)))
		}
		metrics.revision.Set(float64(remote.version.revision)) // 0 where there is none
	case before == nil || before.Error != report.Error: // once, not every time
		logger.Error("polling the management URL: what was served before goes on being served",
			zap.String("result", string(report.Result)), zap.Error(err))
	}
}

// errNoManagement is what there is nothing to poll for.
var errNoManagement = errors.New("no management URL is configured; write management URL into the pqproxy option, or use the config loader pqproxy")

// syncNow polls the management plane now and waits for the result. accept, if not nil, is a revision that the edge may
// go back to.
func (s *state) syncNow(ctx context.Context, accept *uint64) (*syncReport, error) {
	p := s.poller.Load()
	if p == nil {
		return nil, errNoManagement
	}
	answer := make(chan *syncReport, 1)
	for {
		p.mu.Lock()
		if p.interrupt != nil {
			p.interrupt()
		}
		p.mu.Unlock()
		select {
		case p.requests <- syncRequest{accept, answer}:
		case <-time.After(interruptEvery): // it began to wait just now
			continue
		case <-p.done:
			return nil, errors.New("the config changed meanwhile; ask again")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		break
	}
	select {
	case report := <-answer:
		if report == nil {
			return nil, errors.New("the config changed meanwhile; ask again")
		}
		return report, nil
	case <-p.done:
		return nil, errors.New("the config changed meanwhile; ask again")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// interruptEvery is how often somebody who wants a poll looks whether the poller waits for an answer.
const interruptEvery = 50 * time.Millisecond

// readInto stages a document.
func readInto(c *changeSet, document interface{ Read([]byte) (int, error) }) (*domain.SetHeader, error) {
	header, err := domain.ReadSet(document, c.source.source(), domain.SetOptions{
		Domain:  func(d *domain.Domain) error { _ = c.put(d); return nil },
		Removed: func(name string) error { c.remove(name); return nil },
		Refused: func(r domain.Refusal) { c.refuse(r.Name, r.Err) },
	})
	if err != nil {
		return nil, err
	}
	c.full, c.keepAll = header.Full, header.Unnamed > 0
	return header, nil
}
