package pqproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/keptset"
	"github.com/pqproxy/caddy-pqproxy/internal/pace"
)

// What is kept in storage: the domains that the admin API has set, and for each management URL its last good set and
// the revision below which no set may come any more.
const (
	keptAdmin    = "admin"
	keptRemote   = "remote-"
	keptAccepted = "accepted-"
)

// A storage may be far away, and may not answer at all: writing a set is waited for in the background, reading one by the
// clients of all domains, and the revision, which is small, by the next poll.
const (
	keepTimeout     = 2 * time.Minute
	restoreTimeout  = 30 * time.Second
	revisionTimeout = 5 * time.Second
)

// openKept opens what is kept for this edge. A machine that cannot keep anything goes on without, and says so: what it
// serves must not depend on that.
func openKept(ctx caddy.Context, logger *zap.Logger) *keptset.Store {
	key, warning, err := keptset.OpenKey(caddy.AppConfigDir())
	if err != nil {
		logger.Error("nothing is kept across restarts: after one, this edge has no domains of the management plane until that answers", zap.Error(err))
		return nil
	}
	if warning != "" {
		logger.Warn(warning)
	}
	return keptset.New(ctx.Storage(), key)
}

// keptPart is a member of a kept document of which records were refused, so that it is not all of what its revision or ETag
// stands for. Older versions go over it.
const keptPart = "part"

// saveSet keeps what one source says in a table. part is as keptPart.
func saveSet(store *keptset.Store, name string, meta keptset.Meta, t *table, source sourceRank, part bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
	defer cancel()
	return store.Save(ctx, name, meta, func(w io.Writer) error {
		var pace pace.Pace
		out := bufio.NewWriter(w)
		_, _ = out.WriteString(`{"domains":[`) // the writer remembers the first error
		separator := ""
		for e := range t.all {
			if e = e.of(source); e.none() {
				continue
			}
			pace.Step()
			_, _ = out.WriteString(separator)
			_, _ = out.WriteString(e.body())
			separator = ","
		}
		_, _ = out.WriteString("]")
		if part {
			_, _ = out.WriteString(`,"` + keptPart + `":true`)
		}
		_, _ = out.WriteString("}")
		return out.Flush()
	})
}

// loadSet applies a kept set. What it cannot read it reports and leaves alone; where there is none the error is
// fs.ErrNotExist. part says that records are missing, when it was kept or now.
func (s *state) loadSet(store *keptset.Store, name string, source sourceRank, allowed func(*table) error) (meta keptset.Meta, part bool, err error) {
	settings := s.settings.Load()
	ctx, cancel := context.WithTimeout(context.Background(), restoreTimeout)
	defer cancel()
	defer func() {
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, context.Canceled) {
			settings.logger.Error("a kept set of domains is ignored", zap.String("name", name), zap.Error(err))
		}
	}()
	meta, content, err := store.Load(ctx, name, math.MaxInt64)
	if err != nil {
		return meta, false, err
	}
	defer content.Close()
	c := s.newChangeSet(source, false, settings.policy)
	c.restore = true
	header, err := readInto(c, content)
	if err != nil {
		return meta, false, err
	}
	c.full = false // what came in meanwhile is newer
	if _, err := s.apply(c, allowed); err != nil {
		return meta, false, err
	}
	settings.logger.Info("serving a kept set of domains until there is a newer one", zap.String("name", name),
		zap.Int("domains", header.Domains), zap.Time("saved", meta.Saved))
	return meta, c.refusedCount > 0 || slices.Contains(header.Ignored, keptPart), nil
}

// restore loads what the admin API had set, waits for the set of the management plane, and lets connections in.
func (s *state) restore(store *keptset.Store, p *poller) {
	defer close(s.ready)
	if store != nil {
		if _, _, err := s.loadSet(store, keptAdmin, rankAdmin, nil); err != nil && !unreadable(err) {
			s.adminUnread = err
		}
	}
	if p != nil {
		<-p.restored
	}
}

// unreadable reports whether an error says that there is nothing that anybody could read. Otherwise the storage, or another
// version, may give it yet.
func unreadable(err error) bool {
	var fault *domain.SetError
	for _, gone := range []error{fs.ErrNotExist, keptset.ErrForeign, keptset.ErrTruncated, keptset.ErrCorrupt, keptset.ErrOtherKey, keptset.ErrOtherName} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return errors.As(err, &fault)
}

// adminKept is what was kept last of what the admin API has set.
type adminKept struct {
	store   *keptset.Store
	version uint64
}

// keepAdmin keeps the domains that the admin API has set, where the config says so. When it returns nil they are kept.
func (s *state) keepAdmin() error {
	settings := s.settings.Load()
	if !settings.persistAdmin {
		return nil
	}
	if settings.kept == nil {
		return errors.New("persist_admin: this edge can keep nothing; see the log of its start")
	}
	s.keepingAdmin.Lock()
	defer s.keepingAdmin.Unlock()
	if s.adminUnread != nil {
		return fmt.Errorf("persist_admin: what was kept before the last start could not be read, and is not overwritten; mend that and restart, or delete it: %w", s.adminUnread)
	}
	t := s.table.Load() // within the lock, so that the last to write has the latest
	now := adminKept{settings.kept, t.adminVersion}
	if s.adminKept == now {
		return nil // with those that came before
	}
	if err := saveSet(settings.kept, keptAdmin, keptset.Meta{}, t, rankAdmin, false); err != nil {
		return fmt.Errorf("persist_admin: %w", err)
	}
	s.adminKept = now
	return nil
}

// beginToKeep keeps what the admin API had set before a config came that wants it kept.
func (s *state) beginToKeep() {
	<-s.ready
	if err := s.keepAdmin(); err != nil {
		s.settings.Load().logger.Error("what the admin API has set cannot be kept: it would be lost in a restart", zap.Error(err))
	}
}

// restore loads the revision that was accepted last of the management URL, and its last good set, unless there is a set
// already: what another URL said stays until this one answers.
func (p *poller) restore() {
	defer close(p.restored)
	s, r, feed := p.owner, &p.owner.remote, p.settings.feed
	store := s.settings.Load().kept
	if r.acceptedOf != feed {
		r.acceptedOf, r.accepted, r.acceptedKept = feed, 0, 0
		if store != nil {
			p.restoreAccepted(store)
		}
		if r.feed == feed {
			r.accepted = max(r.accepted, r.version.revision)
		}
	}
	if store == nil || r.feed != "" {
		return
	}
	meta, part, err := s.loadSet(store, keptRemote+feed, rankRemote, p.inCharge)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.feed, r.etag, r.digest, r.verified = feed, meta.ETag, "", meta.Source
	r.refusing, r.policy = part, nil // so that the whole set comes again
	r.version = version{revision: meta.Revision, hasRevision: meta.HasRevision, label: meta.ETag}
	r.accepted = max(r.accepted, meta.Revision)
	r.lastGood = meta.Saved
	if meta.HasRevision {
		metrics.revision.Set(float64(meta.Revision))
	}
}

// restoreAccepted loads the revision that was accepted last.
func (p *poller) restoreAccepted(store *keptset.Store) {
	r := &p.owner.remote
	ctx, cancel := context.WithTimeout(context.Background(), revisionTimeout)
	defer cancel()
	meta, content, err := store.Load(ctx, keptAccepted+p.settings.feed, 1<<10)
	if err == nil {
		_ = content.Close()
		r.accepted, r.acceptedKept = meta.Revision, meta.Revision
	} else if !errors.Is(err, fs.ErrNotExist) {
		p.owner.settings.Load().logger.Error("the revision that was accepted last cannot be read: an older set would be accepted", zap.Error(err))
	}
}

// keeper keeps the last good set of a poller, beside its polls: writing a million domains takes seconds. The more that
// takes, the more seldom it is done; a set that is some minutes old is brought up to date by the first poll.
type keeper struct {
	p      *poller
	timer  *time.Timer
	next   time.Time       // when it may begin again
	saving bool            // one is under way
	saved  chan keepResult // what became of it
}

// keepResult is what became of keeping a set.
type keepResult struct {
	err  error
	next time.Time // when the next one may begin
}

// Between two times the set is kept there are so many times what the first took; after a failure a minute.
const (
	keepRest  = 20
	keepRetry = time.Minute
)

func (p *poller) newKeeper() *keeper {
	k := &keeper{p: p, timer: time.NewTimer(time.Hour), saved: make(chan keepResult, 1)}
	k.timer.Stop()
	return k
}

// poke sees to what a poll has left to be kept: the accepted revision at once, the set when it is time.
func (k *keeper) poke() {
	r, store := &k.p.owner.remote, k.p.owner.settings.Load().kept
	if !r.unkept || store == nil {
		return
	}
	if r.accepted != r.acceptedKept {
		ctx, cancel := context.WithTimeout(context.Background(), revisionTimeout)
		defer cancel()
		err := store.Save(ctx, keptAccepted+r.feed, keptset.Meta{Revision: r.accepted, HasRevision: true}, func(io.Writer) error { return nil })
		if err != nil {
			k.failed(err)
		} else {
			r.acceptedKept = r.accepted
		}
	}
	if k.saving {
		return // and is poked again
	}
	if wait := time.Until(k.next); wait > 0 {
		k.timer.Reset(wait)
		return
	}
	k.begin(store)
}

// begin keeps the set as it is now, in the background.
func (k *keeper) begin(store *keptset.Store) {
	r, t := &k.p.owner.remote, k.p.owner.table.Load()
	if k.p.forgotten.Load() { // asked after t was loaded, which may lack the set
		return
	}
	meta := keptset.Meta{Revision: r.version.revision, HasRevision: r.version.hasRevision, ETag: r.etag, Source: r.verified}
	name, part := keptRemote+r.feed, r.refusing
	r.unkept, k.saving = false, true
	go func() {
		begun := time.Now()
		err := saveSet(store, name, meta, t, rankRemote, part)
		k.saved <- keepResult{err, time.Now().Add(keepRest * time.Since(begun))}
	}()
}

// done takes note of what became of keeping the set.
func (k *keeper) done(what keepResult) {
	k.saving, k.next = false, what.next
	if what.err != nil {
		k.p.owner.remote.unkept = true
		k.next = time.Now().Add(keepRetry)
		k.failed(what.err)
	}
	k.poke()
}

func (k *keeper) failed(err error) {
	k.p.owner.settings.Load().logger.Error("the last good set of domains cannot be kept: after a restart an older one would be served", zap.Error(err))
}

// close keeps what is not kept yet, and waits for that.
func (k *keeper) close() {
	k.timer.Stop()
	if k.saving {
		k.done(<-k.saved)
	}
	k.next = time.Time{}
	k.poke()
	if k.saving {
		if what := <-k.saved; what.err != nil {
			k.failed(what.err)
		}
	}
}
