package pqproxy

import (
	"slices"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// staged are changes, in the shards of the table, so that apply goes through both side by side. A name is staged once: who
// reads a set sees to that.
type staged [tableShards]*stagedShard

// stagedShard are the changes of one shard. nil: none.
type stagedShard struct {
	changes []stagedChange
	room    room     // for new entries
	pieces  []*piece // where entries are
	gone    []string // names that are to go
}

// stagedChange is what is to become of a name. Like slot, it has no pointer.
type stagedChange struct {
	hash  uint64
	piece uint32 // in pieces, counted from 1; 0: the name is to go
	at    uint32 // in the piece, or in gone
}

// of returns the changes of names of a hash.
func (s *staged) of(hash uint64) *stagedShard {
	at := &s[shardOf(hash)]
	if *at == nil {
		*at = new(stagedShard)
	}
	return *at
}

// put stages a new entry of a domain whose JSON is known.
func (s *staged) put(d *domain.Domain, body []byte, source sourceRank) {
	hash := hashOf(d.Name)
	shard := s.of(hash)
	shard.add(hash, shard.room.entry(d, body, source))
}

// same stages an entry that there is.
func (s *staged) same(e entry) {
	hash := hashOf(e.name())
	s.of(hash).add(hash, e)
}

// remove stages that a name is to go.
func (s *staged) remove(name string) {
	hash := hashOf(name)
	shard := s.of(hash)
	shard.gone = append(shard.gone, name)
	shard.changes = append(shard.changes, stagedChange{hash: hash, at: uint32(len(shard.gone) - 1)})
}

func (s *stagedShard) add(hash uint64, e entry) {
	if n := len(s.pieces); n == 0 || s.pieces[n-1] != e.in {
		s.pieces = append(s.pieces, e.in)
	}
	s.changes = append(s.changes, stagedChange{hash, uint32(len(s.pieces)), uint32(e.at)})
}

// entry returns what a name is to have; none: it is to go.
func (s *stagedShard) entry(c *stagedChange) entry {
	if c.piece == 0 {
		return entry{}
	}
	p := s.pieces[c.piece-1]
	return entry{&p.facts[c.at], p}
}

func (s *stagedShard) name(c *stagedChange) string {
	if c.piece == 0 {
		return s.gone[c.at]
	}
	return s.entry(c).name()
}

func (s *staged) find(name string) (shard *stagedShard, at int) {
	hash := hashOf(name)
	if shard = s[shardOf(hash)]; shard != nil {
		for i := range shard.changes {
			if c := &shard.changes[i]; c.hash == hash && shard.name(c) == name {
				return shard, i
			}
		}
	}
	return nil, -1
}

func (s *staged) has(name string) bool {
	_, at := s.find(name)
	return at >= 0
}

func (s *staged) drop(name string) {
	if shard, at := s.find(name); at >= 0 {
		shard.changes = slices.Delete(shard.changes, at, at+1)
	}
}

func (s *staged) empty() bool {
	for range s.names {
		return false
	}
	return true
}

// names yields the names, shard by shard.
func (s *staged) names(yield func(string) bool) {
	for _, shard := range s {
		if shard == nil {
			continue
		}
		for i := range shard.changes {
			if !yield(shard.name(&shard.changes[i])) {
				return
			}
		}
	}
}
