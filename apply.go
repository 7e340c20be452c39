package pqproxy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pace"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// changeSet is what one source wants changed, staged beside the table: nothing of it shows until apply.
type changeSet struct {
	owner  *state
	source sourceRank
	full   bool // names of the source that are not mentioned are to go
	policy *netpolicy.Policy

	changes staged
	keep    map[string]bool // refused names, whose last good version stays
	keepAll bool            // a record without a readable name was refused: it may be that of any name
	restore bool            // of domains that were accepted before a restart
	warned  int             // warnings of pairs that were logged

	refused      []refusal // the first of them
	refusedCount int
	unnamed      int // of refusedCount: they are not in keep
	pace         pace.Pace
	json         []byte // scratch of put
}

// refusal is a record that was not applied, for reports. It never holds input beyond what the error quotes.
type refusal struct {
	Name   string `json:"name,omitempty"`
	Field  string `json:"field,omitempty"`
	Detail string `json:"detail"`
}

// refusalsKept is how many refusals of a set are reported one by one. The others are counted.
const refusalsKept = 100

// newChangeSet begins a change of what a source says. The policy judges where its domains point; nil: nothing does.
func (s *state) newChangeSet(source sourceRank, full bool, policy *netpolicy.Policy) *changeSet {
	return &changeSet{owner: s, source: source, full: full, policy: policy, keep: make(map[string]bool)}
}

// put stages a domain in normal form. A domain that is refused is noted, and leaves its last good version as it is.
// The error is what was noted.
func (c *changeSet) put(d *domain.Domain) error {
	c.pace.Step()
	c.json = d.AppendJSON(c.json[:0])
	if had := c.owner.table.Load().named(d.Name).of(c.source); !had.none() && had.body() == string(c.json) {
		c.changes.same(had)
		return nil
	}
	if err := c.check(d); err != nil {
		c.refuse(d.Name, err)
		return err
	}
	c.changes.put(d, c.json, c.source)
	return nil
}

// remove stages that a name is to go.
func (c *changeSet) remove(name string) {
	c.pace.Step()
	c.changes.remove(name)
}

// check judges what depends on this edge and on the time.
func (c *changeSet) check(d *domain.Domain) error {
	var faults []error
	fault := func(field string, err error) {
		faults = append(faults, &domain.Error{Name: d.Name, Field: field, Err: err})
	}
	if len(c.json) > domain.MaxSize && c.source != rankStatic { // what is kept would not be read after a restart
		fault("", fmt.Errorf("the record has %d bytes in normal form, more than the %d allowed; shorten its PEM texts", len(c.json), domain.MaxSize))
	}
	for i := range d.Upstreams {
		if err := c.policy.CheckDial(d.Upstreams[i].Dial); err != nil {
			fault(fmt.Sprintf("upstreams[%d].dial", i), err)
		}
	}
	if d.Certificate.Source == domain.BYOC && c.source != rankStatic { // those of the config have been checked
		if err := c.checkPair(d); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// refuse notes a record that is not applied. A name that was staged before is taken back.
func (c *changeSet) refuse(name string, err error) {
	c.refusedCount++
	if name == "" {
		c.unnamed++
	} else {
		c.changes.drop(name)
		c.keep[name] = true
	}
	for _, r := range refusals(name, err) {
		if len(c.refused) < refusalsKept {
			c.refused = append(c.refused, r)
		}
	}
}

// refusals takes an error apart into its faults.
func refusals(name string, err error) []refusal {
	faults := domain.Errors(err)
	if len(faults) == 0 {
		return []refusal{{Name: name, Detail: err.Error()}}
	}
	list := make([]refusal, len(faults))
	for i, f := range faults {
		list[i] = refusal{Name: f.Name, Field: f.Field, Detail: f.Err.Error()}
	}
	return list
}

// outcome is what apply did with a change set.
type outcome struct {
	Added     int       `json:"added"`
	Changed   int       `json:"changed"`
	Removed   int       `json:"removed"`
	Unchanged int       `json:"unchanged"`
	Rejected  int       `json:"rejected"`             // records
	Rejects   []refusal `json:"rejections,omitempty"` // the first of them
}

// changed is what became of one name: what served it before, and what does now.
type changed struct{ before, now entry }

// name is as entry's.
func (c changed) name() string {
	if c.now.none() {
		return c.before.name()
	}
	return c.now.name()
}

// changes are a list of changed in pieces: one of a million names in one piece would be copied again and again as it
// grows, tens of milliseconds each time, in which nothing else runs on this processor.
type changes struct {
	pieces [][]changed
	size   int
}

const changesPiece = 1024

func (l *changes) add(c changed) {
	if l.size%changesPiece == 0 {
		l.pieces = append(l.pieces, make([]changed, 0, changesPiece))
	}
	last := &l.pieces[len(l.pieces)-1]
	*last = append(*last, c)
	l.size++
}

// all yields the changes, giving way to others.
func (l *changes) all(yield func(changed) bool) {
	var pace pace.Pace
	for _, piece := range l.pieces {
		for _, c := range piece {
			pace.Step()
			if !yield(c) {
				return
			}
		}
	}
}

// apply brings a change set into the table. All changes of domains, of whatever source, go through here; it is the only
// writer of the table, under the state's lock. What has to follow the domains is told at its end.
//
// allowed, if not nil, is asked under the lock, and what it returns keeps the change set from being applied.
func (s *state) apply(c *changeSet, allowed func(now *table) error) (outcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if allowed != nil {
		if err := allowed(s.table.Load()); err != nil {
			return outcome{}, err
		}
	}
	return s.applyLocked(c), nil
}

func (s *state) applyLocked(c *changeSet) outcome {
	begun := time.Now()
	old := s.table.Load()
	if c.full && !c.keepAll {
		c.removeUnlisted(old)
	}
	next := *old
	done := outcome{Rejected: c.refusedCount, Rejects: c.refused}
	var changes changes
	for i, staged := range c.changes {
		if staged == nil {
			continue
		}
		own := false // the shard of next is no longer that of old
		shard := &next.shards[i]
		for k := range staged.changes {
			c.pace.Step()
			change := &staged.changes[k]
			hash, name, put := change.hash, staged.name(change), staged.entry(change)
			had := next.at(hash, name)
			prev := had.of(c.source)
			switch {
			case put.none() && prev.none():
				continue
			case !put.none() && !prev.none() && put.body() == prev.body():
				done.Unchanged++
				continue
			case put.none():
				done.Removed++
			case prev.none():
				done.Added++
			default:
				done.Changed++
			}
			if !own {
				own = true
				*shard = shard.clone()
			}
			now := had.with(&staged.room, c.source, put)
			fresh := !put.none() && put.epoch == 0 // it is in no table yet
			if fresh {
				put.epoch = epochs.Add(1)
			}
			now = settle(&staged.room, had, now, fresh && now.source == c.source)
			next.replace(hash, had, now)
			s.noteShadowed(name, had, now)
			if had.none() || now.none() || had.epoch != now.epoch || had.source != now.source || had.body() != now.body() {
				changes.add(changed{had, now})
			}
		}
		if own {
			shard.tidy()
		}
	}
	if c.source == rankAdmin && done.Added+done.Changed+done.Removed > 0 {
		next.adminVersion++
	}
	s.table.Store(&next)
	s.noteRejects(c)

	for rank, n := range next.live {
		metrics.domains.WithLabelValues(string(sourceNames[rank])).Set(float64(n))
	}
	metrics.rejected.Add(float64(c.refusedCount))
	if changes.size > 0 || c.refusedCount > 0 {
		s.logApplied(c, done, next.size, time.Since(begun))
	}
	s.endAffected(&changes)
	s.certs.follow(&changes)
	s.health.follow(&changes)
	for c := range changes.all {
		if !c.before.none() {
			c.before.forget() // where it is some are that stay
		}
	}
	return done
}

// settle gives the entry that serves a name from now on its epoch: that of the one before if sessions of that may be
// resumed, else a new one. What is fresh is in no table yet and has a new one.
func settle(r *room, had, now entry, fresh bool) entry {
	if now.none() {
		return now
	}
	epoch := now.epoch
	if !had.none() && had.security == now.security {
		epoch = had.epoch
	} else if !fresh {
		epoch = epochs.Add(1)
	}
	if now.epoch != epoch {
		if !fresh { // it may be in the table that is read from now
			now = r.copy(now)
			now.forget()
		}
		now.epoch = epoch
	}
	return now
}

// replace puts what serves a name now in place of what did. The name's shard must be this table's own.
func (t *table) replace(hash uint64, had, now entry) {
	count := func(e entry, n int) {
		t.size += n
		t.live[e.source] += n
		if strings.HasPrefix(e.name(), "*.") {
			t.wildcards += n
		}
	}
	shard := &t.shards[shardOf(hash)]
	if !had.none() {
		count(had, -1)
	}
	if now.none() {
		shard.remove(hash, had.name())
		return
	}
	count(now, 1)
	shard.put(hash, now)
}

// removeUnlisted stages the end of names of the source that a full set does not mention.
func (c *changeSet) removeUnlisted(old *table) {
	var mentioned []bool // by slot of a shard
	for i := range old.shards {
		shard := &old.shards[i]
		mentioned = slices.Grow(mentioned[:0], len(shard.slots))[:len(shard.slots)]
		clear(mentioned)
		if staged := c.changes[i]; staged != nil {
			for k := range staged.changes {
				if at, ok := shard.search(staged.changes[k].hash, staged.name(&staged.changes[k])); ok {
					mentioned[at] = true
				}
			}
		}
		for at := range shard.slots {
			c.pace.Step()
			e := shard.entry(&shard.slots[at])
			if e.none() || mentioned[at] || e.of(c.source).none() {
				continue
			}
			if name := e.name(); !c.keep[name] {
				c.changes.remove(name)
			}
		}
	}
}

// endsAll reports whether a full set has nothing that can be applied, and would end all that the source has.
func (c *changeSet) endsAll(now *table) bool {
	if !c.changes.empty() || c.keepAll || now.live[c.source] == 0 {
		return false
	}
	for name := range c.keep {
		if !now.named(name).of(c.source).none() {
			return false
		}
	}
	return true
}

// noteShadowed keeps account of the names that several sources give.
func (s *state) noteShadowed(name string, had, now entry) {
	is := !now.none() && !now.below().none()
	if was := !had.none() && !had.below().none(); !is && !was {
		return
	}
	s.told.Lock()
	defer s.told.Unlock()
	if is {
		s.shadowed[strings.Clone(name)] = struct{}{}
	} else if delete(s.shadowed, name); len(s.shadowed) == 0 {
		s.shadowed = make(map[string]struct{}) // a map does not give back what it has grown to
	}
}

// noteRejects keeps what a set of the management plane had refused, for the status.
func (s *state) noteRejects(c *changeSet) {
	if c.source != rankRemote {
		return // who wrote it has been told
	}
	s.told.Lock()
	defer s.told.Unlock()
	kept := &s.rejects
	if c.full || kept.names == nil {
		*kept = rejects{names: make(map[string]struct{})}
	}
	if len(kept.names) > 0 {
		for name := range c.changes.names {
			delete(kept.names, name)
		}
	}
	for name := range c.keep {
		kept.names[name] = struct{}{}
	}
	kept.unnamed += c.unnamed
	kept.list = slices.DeleteFunc(kept.list, func(r refusal) bool {
		return c.changes.has(r.Name) || c.keep[r.Name]
	})
	kept.list = append(kept.list, c.refused...)
	if over := len(kept.list) - refusalsKept; over > 0 {
		kept.list = slices.Delete(kept.list, 0, over)
	}
}

// logApplied writes what was done, never what is in it.
func (s *state) logApplied(c *changeSet, done outcome, total int, took time.Duration) {
	logger := s.settings.Load().logger
	logger.Info("domains applied", zap.String(keySource, string(c.source.source())),
		zap.Int("added", done.Added), zap.Int("changed", done.Changed), zap.Int("removed", done.Removed),
		zap.Int("unchanged", done.Unchanged), zap.Int("rejected", done.Rejected), zap.Int("domains", total),
		zap.Duration("took", took))
	for _, r := range c.refused {
		logger.Warn("domain rejected: its last good version stays", zap.String(keySource, string(c.source.source())),
			zap.String(keyDomain, r.Name), zap.String("field", r.Field), zap.String(keyError, r.Detail))
	}
}
