package pqproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/internal/keptset"
)

// What is kept in storage: the domains that the admin API has set, and for each management URL its last good set and
// the revision below which no set may come any more.
const (
	keptAdmin    = "admin"
	keptRemote   = "remote-"
	keptAccepted = "accepted-"
)

// keepTimeout bounds reading and writing of a kept set: a storage may be far away.
const keepTimeout = 2 * time.Minute

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

// saveSet keeps what one source says in a table.
func saveSet(store *keptset.Store, name string, meta keptset.Meta, t *table, source sourceRank) error {
	ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
	defer cancel()
	return store.Save(ctx, name, meta, func(w io.Writer) error {
		var pace pace
		out := bufio.NewWriter(w)
		_, _ = out.WriteString(`{"domains":[`) // the writer remembers the first error
		separator := ""
		for e := range t.all {
			if e = e.of(source); e == nil {
				continue
			}
			pace.step()
			_, _ = out.WriteString(separator)
			_, _ = out.WriteString(e.body)
			separator = ","
		}
		_, _ = out.WriteString("]}")
		return out.Flush()
	})
}

// loadSet applies a kept set. What it cannot read it reports and leaves alone.
func (s *state) loadSet(store *keptset.Store, name string, source sourceRank, allowed func(*table) error) (meta keptset.Meta, ok bool) {
	settings := s.settings.Load()
	ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
	defer cancel()
	ignored := func(err error) {
		settings.logger.Error("a kept set of domains is ignored", zap.String("name", name), zap.Error(err))
	}
	meta, content, err := store.Load(ctx, name, math.MaxInt64)
	if errors.Is(err, fs.ErrNotExist) {
		return meta, false
	}
	if err != nil {
		ignored(err)
		return meta, false
	}
	defer content.Close()
	c := s.newChangeSet(source, false, settings.policy)
	header, err := readInto(c, content)
	if err != nil {
		ignored(err)
		return meta, false
	}
	c.full = false // what came in meanwhile is newer
	if _, err := s.apply(c, allowed); err != nil {
		return meta, false
	}
	settings.logger.Info("serving a kept set of domains until there is a newer one", zap.String("name", name),
		zap.Int("domains", header.Domains), zap.Time("saved", meta.Saved))
	return meta, true
}

// restore loads what the admin API had set, waits for the set of the management plane, and lets connections in.
func (s *state) restore(store *keptset.Store, p *poller) {
	defer close(s.ready)
	if store != nil {
		s.loadSet(store, keptAdmin, rankAdmin, nil)
	}
	if p != nil {
		<-p.restored
	}
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
	t := s.table.Load() // within the lock, so that the last to write has the latest
	if err := saveSet(settings.kept, keptAdmin, keptset.Meta{}, t, rankAdmin); err != nil {
		return fmt.Errorf("persist_admin: %w", err)
	}
	return nil
}

// restore loads the last good set of the management URL and the revision that was accepted last.
func (p *poller) restore() {
	defer close(p.restored)
	s, feed := p.owner, p.settings.feed
	store := s.settings.Load().kept
	if store == nil || s.remote.feed == feed {
		return
	}
	r := &s.remote
	ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
	accepted, content, err := store.Load(ctx, keptAccepted+feed, 1<<10)
	cancel()
	if err == nil {
		_ = content.Close()
		r.accepted = accepted.Revision
	} else if !errors.Is(err, fs.ErrNotExist) {
		s.settings.Load().logger.Error("the revision that was accepted last cannot be read: an older set would be accepted", zap.Error(err))
	}
	meta, ok := s.loadSet(store, keptRemote+feed, rankRemote, p.inCharge)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.feed, r.etag, r.digest, r.verified = feed, meta.ETag, "", meta.Source
	r.version = version{revision: meta.Revision, hasRevision: meta.HasRevision, label: meta.ETag}
	r.accepted = max(r.accepted, meta.Revision)
	r.lastGood = meta.Saved
	if meta.HasRevision {
		metrics.revision.Set(float64(meta.Revision))
	}
}

// keeper keeps the last good set of a poller, beside its polls: writing a million domains takes seconds. The more that
// takes, the more seldom it is done; a set that is some minutes old is brought up to date by the first poll.
type keeper struct {
	p      *poller
	timer  *time.Timer
	next   time.Time  // when it may begin again
	saving bool       // one is under way
	saved  chan error // what became of it
}

// Between two times the set is kept there are so many times what the first took; after a failure a minute.
const (
	keepRest  = 20
	keepRetry = time.Minute
)

func (p *poller) newKeeper() *keeper {
	k := &keeper{p: p, timer: time.NewTimer(time.Hour), saved: make(chan error, 1)}
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
		ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
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
	meta := keptset.Meta{Revision: r.version.revision, HasRevision: r.version.hasRevision, ETag: r.etag, Source: r.verified}
	name := keptRemote + r.feed
	r.unkept, k.saving = false, true
	go func() {
		begun := time.Now()
		err := saveSet(store, name, meta, t, rankRemote)
		k.next = time.Now().Add(keepRest * time.Since(begun)) // read after saved was
		k.saved <- err
	}()
}

// done takes note of what became of keeping the set.
func (k *keeper) done(err error) {
	k.saving = false
	if err != nil {
		k.p.owner.remote.unkept = true
		k.next = time.Now().Add(keepRetry)
		k.failed(err)
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
		if err := <-k.saved; err != nil {
			k.failed(err)
		}
	}
}

// String is the version as a person reads it.
func (v version) String() string {
	if v.hasRevision {
		return strconv.FormatUint(v.revision, 10)
	}
	return v.label
}
