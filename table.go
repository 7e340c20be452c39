package pqproxy

import (
	"hash/maphash"
	"math/bits"
	"slices"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// tableShards is into how many parts the table is split. A change copies the shards that it touches and the array of
// them (112 KiB), so that a thousand changes to a million domains do not cost what the million does.
const tableShards = 1 << shardBits

const shardBits = 11

// table is all domains. It is immutable: apply builds the next one and swaps it.
type table struct {
	shards    [tableShards]shard
	size      int          // names
	live      [sources]int // names by the source that serves them
	wildcards int          // names that are wildcards

	adminVersion uint64 // counts the changes of what the admin API has set
}

// shard is a hash table with open addressing and linear probing. With a million domains nothing of it is in a cache,
// and what a lookup takes is the loads that wait for one another. A connection does with few of them, see likely; a map
// of Go takes more. What changes a shard must have it for its own: see clone.
type shard struct {
	slots []slot // as many as a power of two, at most three in four of them used
	used  int
	held  []heldPiece // where the entries are
}

// slot has the place of an entry. It has no pointer, for the sake of the collector: see piece.
type slot struct {
	hash  uint64
	piece uint32 // in held, counted from 1; 0: the slot is free
	at    uint32 // in the piece
}

// heldPiece is a piece, nil if its place is free, and how many of its entries are in slots.
type heldPiece struct {
	*piece
	live int
}

// nameSeed keeps those who choose names from choosing their place too.
var nameSeed = maphash.MakeSeed()

func hashOf(name string) uint64 { return maphash.String(nameSeed, name) }

// shardOf is the shard of a name's hash; the slot is chosen by the hash's other end.
func shardOf(hash uint64) int { return int(hash >> (64 - shardBits)) }

// find returns what serves a host name in normal form: the exact name's entry, else its wildcard's, else none. Wildcards
// are in the table as `*.example.com`.
func (t *table) find(host string) entry {
	if e := t.named(host); !e.none() {
		return e
	}
	if t.wildcards == 0 {
		return entry{}
	}
	if wildcard, ok := domain.WildcardOf(host); ok {
		return t.named(wildcard)
	}
	return entry{}
}

// likely is find by the names' hashes alone. It is for connections: they need the route anyway, which has the name, and
// are to see whether it covers the host.
func (t *table) likely(host string) entry {
	if e := t.hashed(hashOf(host)); !e.none() || t.wildcards == 0 {
		return e
	}
	if wildcard, ok := domain.WildcardOf(host); ok {
		return t.hashed(hashOf(wildcard))
	}
	return entry{}
}

// hashed returns the first entry of a name with that hash, or none.
func (t *table) hashed(hash uint64) entry {
	s := &t.shards[shardOf(hash)]
	if len(s.slots) == 0 {
		return entry{}
	}
	mask := len(s.slots) - 1
	for i := int(hash) & mask; ; i = (i + 1) & mask {
		if slot := &s.slots[i]; slot.hash == hash || slot.piece == 0 {
			return s.entry(slot)
		}
	}
}

// named returns the entry of exactly that name, or none.
func (t *table) named(name string) entry { return t.at(hashOf(name), name) }

// at is named for who knows the hash of the name.
func (t *table) at(hash uint64, name string) entry {
	s := &t.shards[shardOf(hash)]
	if i, ok := s.search(hash, name); ok {
		return s.entry(&s.slots[i])
	}
	return entry{}
}

// all yields the entries that are served, in no order.
func (t *table) all(yield func(entry) bool) {
	for i := range t.shards {
		for e := range t.shards[i].all {
			if !yield(e) {
				return
			}
		}
	}
}

// all yields the entries.
func (s *shard) all(yield func(entry) bool) {
	for i := range s.slots {
		if e := s.entry(&s.slots[i]); !e.none() && !yield(e) {
			return
		}
	}
}

// entry returns what is in a slot.
func (s *shard) entry(slot *slot) entry {
	if slot.piece == 0 {
		return entry{}
	}
	p := s.held[slot.piece-1].piece
	return entry{&p.facts[slot.at], p}
}

// search returns the slot of a name, or else the one where it would be put.
func (s *shard) search(hash uint64, name string) (at int, found bool) {
	if len(s.slots) == 0 {
		return 0, false
	}
	mask := len(s.slots) - 1
	for i := int(hash) & mask; ; i = (i + 1) & mask {
		slot := &s.slots[i]
		if slot.piece == 0 {
			return i, false
		}
		if slot.hash == hash && s.entry(slot).name() == name {
			return i, true
		}
	}
}

// put sets the entry of a name.
func (s *shard) put(hash uint64, e entry) {
	name := e.name()
	i, found := s.search(hash, name)
	if found {
		s.release(s.slots[i])
	} else {
		if 4*(s.used+1) > 3*len(s.slots) {
			s.resize(max(4, 2*len(s.slots)))
			i, _ = s.search(hash, name)
		}
		s.used++
	}
	s.slots[i] = slot{hash, s.hold(e.in), uint32(e.at)}
}

// remove takes a name out, and moves back those that had to go past its slot.
func (s *shard) remove(hash uint64, name string) {
	hole, found := s.search(hash, name)
	if !found {
		return
	}
	s.release(s.slots[hole])
	s.used--
	mask := len(s.slots) - 1
	for i := (hole + 1) & mask; s.slots[i].piece != 0; i = (i + 1) & mask {
		if home := int(s.slots[i].hash) & mask; (i-home)&mask >= (i-hole)&mask {
			s.slots[hole] = s.slots[i]
			hole = i
		}
	}
	s.slots[hole] = slot{}
}

// hold counts another entry of a piece, and returns the piece's place.
func (s *shard) hold(p *piece) uint32 {
	at := len(s.held)
	for i := len(s.held) - 1; i >= 0; i-- { // the last one it is, mostly
		if s.held[i].piece == p {
			s.held[i].live++
			return uint32(i) + 1
		}
		if s.held[i].piece == nil {
			at = i
		}
	}
	if at == len(s.held) {
		s.held = append(s.held, heldPiece{})
	}
	s.held[at] = heldPiece{p, 1}
	return uint32(at) + 1
}

// release is the opposite of hold, for the entry in a slot.
func (s *shard) release(slot slot) {
	if h := &s.held[slot.piece-1]; h.live > 1 {
		h.live--
	} else {
		*h = heldPiece{}
	}
}

// clone returns a shard that is the caller's own.
func (s *shard) clone() shard { return shard{slices.Clone(s.slots), s.used, slices.Clone(s.held)} }

// tidy gives back what changes have left behind: slots of which most are free, and pieces that are many or have many entries that
// are nobody's.
func (s *shard) tidy() {
	if len(s.slots) > 8 && 8*s.used <= len(s.slots) {
		size := 0
		if s.used > 0 {
			size = 1 << bits.Len(uint(2*s.used))
		}
		s.resize(size)
	}
	pieces, dead := 0, 0
	for _, h := range s.held {
		switch {
		case h.piece == nil:
			pieces++
		case h.facts[0].certificate.own(): // alone
		default:
			pieces++
			dead += len(h.facts) - h.live
		}
	}
	if pieces > 16+s.used/8 || dead > 16+s.used/4 {
		s.pack()
	}
}

// resize gives the shard so many slots.
func (s *shard) resize(size int) {
	old := s.slots
	s.slots = make([]slot, size)
	for _, o := range old {
		if o.piece == 0 {
			continue
		}
		i := int(o.hash) & (size - 1)
		for s.slots[i].piece != 0 {
			i = (i + 1) & (size - 1)
		}
		s.slots[i] = o
	}
}

// pack copies the entries into one piece, but for those with a private key, which stay alone.
func (s *shard) pack() {
	names, text := 0, 0
	for e := range s.all {
		if !e.certificate.own() {
			names++
			text += len(e.body())
		}
	}
	var r room
	if names > 0 {
		r.open = newPiece(min(names, 1<<16), min(text, 1<<30))
	}
	old := *s
	s.held = nil
	for i := range s.slots {
		e := old.entry(&s.slots[i])
		if e.none() {
			continue
		}
		if !e.certificate.own() {
			e = r.copy(e)
		}
		s.slots[i].piece, s.slots[i].at = s.hold(e.in), uint32(e.at)
	}
}
