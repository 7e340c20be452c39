package pqproxy

import (
	"crypto/tls"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
)

// Bounds of what is counted and not yet reported. A cell is some 400 bytes, so that the usual bound is about 26 MB: an hour
// of a thousand domains with a connection in each minute. Beyond it minutes become hours, hours days, and days one cell for
// each domain; that many there are in any case.
const (
	counterShards = 16
	shardCells    = 4096 // cells of a shard before they are merged
)

// counters counts connections that ended, by domain and minute, until they are reported. Nothing is ever left out. Its
// shards keep connections that end at the same time from waiting for one another.
type counters struct {
	limit  int // cells of a shard; shardCells but in tests
	shards [counterShards]counterShard
}

type counterShard struct {
	mu    sync.Mutex // guards the rest
	cells map[cellKey]*cell
	limit int      // that holds now; 0: counters.limit
	_     [24]byte // so that two shards are not on one cache line
}

// cellKey says what a cell counts.
type cellKey struct {
	tenant, domain string
	minute         int64 // its beginning, in seconds since 1970
}

// cell counts the connections of a domain that ended within a minute, or, once merged, an hour or more from it on.
type cell struct {
	connections, in, out, retries int64
	groups                        []groupCount
	reasons                       []reasonCount
	buckets                       [edgereport.BucketCount]int64
}

type groupCount struct {
	group tls.CurveID
	n     int64
}

type reasonCount struct {
	reason endReason
	n      int64
}

// count counts a connection, which has a route.
func (k *counters) count(r *record, end time.Time) {
	s := &k.shards[hashOf(r.route.Name)%counterShards]
	key := cellKey{r.route.Tenant, r.route.Name, minuteOf(end.Unix())}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cell(key, k.limit, end).count(r)
}

func minuteOf(unix int64) int64 { return unix - unix%60 }

// cell returns the cell of a key, a new one if need be. Call it with the lock held.
func (s *counterShard) cell(key cellKey, limit int, now time.Time) *cell {
	if c := s.cells[key]; c != nil {
		return c
	}
	if s.limit == 0 {
		s.limit = limit
	}
	if len(s.cells) >= s.limit {
		s.coarsen(now, limit)
	}
	if s.cells == nil {
		s.cells = make(map[cellKey]*cell)
	}
	c := new(cell)
	key.tenant, key.domain = strings.Clone(key.tenant), strings.Clone(key.domain) // they may be part of something large
	s.cells[key] = c
	return c
}

// coarsen merges cells of minutes that are over, into hours, else days, else one for each domain, until half of the limit is
// free. Where that is not enough, there are more domains than the limit has thought of, and it grows: so the merging
// costs little for each connection.
func (s *counterShard) coarsen(now time.Time, limit int) {
	const hour, day = 3600, 24 * 3600
	s.merge(now, func(key cellKey) int64 { return key.minute - key.minute%hour })
	if len(s.cells) > s.limit/2 {
		s.merge(now, func(key cellKey) int64 { return key.minute - key.minute%day })
	}
	if len(s.cells) > s.limit/2 {
		first := make(map[cellKey]int64)
		for key := range s.cells {
			of := cellKey{tenant: key.tenant, domain: key.domain}
			if minute, ok := first[of]; !ok || key.minute < minute {
				first[of] = key.minute
			}
		}
		s.merge(now, func(key cellKey) int64 { return first[cellKey{tenant: key.tenant, domain: key.domain}] })
	}
	if len(s.cells) > s.limit/2 {
		s.limit = max(limit, 2*len(s.cells))
	}
}

// merge brings cells of minutes that are over into those of the minutes that into returns.
func (s *counterShard) merge(now time.Time, into func(cellKey) int64) {
	current := minuteOf(now.Unix())
	merged := make(map[cellKey]*cell, len(s.cells)/2)
	for key, c := range s.cells {
		if key.minute < current {
			key.minute = into(key)
		}
		if has := merged[key]; has != nil {
			has.add(c)
		} else {
			merged[key] = c
		}
	}
	s.cells = merged
}

// drain returns all that was counted, and begins anew.
func (k *counters) drain() []outgoingCell {
	var all []outgoingCell
	for i := range k.shards {
		s := &k.shards[i]
		s.mu.Lock()
		cells := s.cells
		s.cells, s.limit = nil, 0
		s.mu.Unlock()
		for key, c := range cells {
			all = append(all, outgoingCell{key, c})
		}
	}
	return all
}

// outgoingCell is a cell on its way.
type outgoingCell struct {
	key  cellKey
	cell *cell
}

// putBack takes cells that were not reported.
func (k *counters) putBack(cells []outgoingCell, now time.Time) {
	for _, o := range cells {
		s := &k.shards[hashOf(o.key.domain)%counterShards]
		s.mu.Lock()
		s.cell(o.key, k.limit, now).add(o.cell)
		s.mu.Unlock()
	}
}

// size returns how many cells there are.
func (k *counters) size() (n int) {
	for i := range k.shards {
		s := &k.shards[i]
		s.mu.Lock()
		n += len(s.cells)
		s.mu.Unlock()
	}
	return n
}

func (c *cell) count(r *record) {
	c.connections++
	c.in += r.bytesIn
	c.out += r.bytesOut
	c.addReason(r.reason, 1)
	if !r.completed || r.reason == reasonACMEChallenge { // a CA is no client of the tenant's
		return
	}
	c.addGroup(r.session.group, 1)
	if r.session.helloRetry {
		c.retries++
	}
	c.buckets[edgereport.BucketOf(r.handshake.Seconds())]++
}

func (c *cell) add(other *cell) {
	c.connections += other.connections
	c.in += other.in
	c.out += other.out
	c.retries += other.retries
	for _, g := range other.groups {
		c.addGroup(g.group, g.n)
	}
	for _, r := range other.reasons {
		c.addReason(r.reason, r.n)
	}
	for i, n := range other.buckets {
		c.buckets[i] += n
	}
}

func (c *cell) addGroup(group tls.CurveID, n int64) {
	i := slices.IndexFunc(c.groups, func(g groupCount) bool { return g.group == group })
	if i < 0 {
		c.groups = append(c.groups, groupCount{group, n})
		return
	}
	c.groups[i].n += n
}

func (c *cell) addReason(reason endReason, n int64) {
	i := slices.IndexFunc(c.reasons, func(r reasonCount) bool { return r.reason == reason })
	if i < 0 {
		c.reasons = append(c.reasons, reasonCount{reason, n})
		return
	}
	c.reasons[i].n += n
}

// wire returns a cell as it is reported.
func (o *outgoingCell) wire() edgereport.Counter {
	c := o.cell
	w := edgereport.Counter{
		Domain: o.key.domain, Tenant: o.key.tenant, Minute: time.Unix(o.key.minute, 0).UTC(),
		Connections: c.connections, BytesIn: c.in, BytesOut: c.out, HelloRetries: c.retries,
		EndReasons: make(map[string]int64, len(c.reasons)),
	}
	for _, r := range c.reasons {
		w.EndReasons[string(r.reason)] += r.n
	}
	if len(c.groups) > 0 {
		w.Groups = make(map[string]int64, len(c.groups))
		for _, g := range c.groups {
			w.Groups[g.group.String()] += g.n
		}
		w.Handshakes = c.buckets[:]
	}
	return w
}
