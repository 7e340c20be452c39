package pqproxy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// TestPieces changes many names of one shard, one by one and together, and sees that what is held of entries that are nobody's stays in
// proportion to those that are somebody's, and that routes stay with their entries.
func TestPieces(t *testing.T) {
	s := newTestState(t)
	names := inOneShard(200)
	random := rand.New(rand.NewPCG(3, 4))
	versions := make(map[string]int)
	set := func(full bool, names ...string) {
		t.Helper()
		c := s.newChangeSet(rankRemote, full, nil)
		for _, name := range names {
			versions[name]++
			d := typical(versions[name])
			d.Name = name
			if err := c.put(d); err != nil {
				t.Fatal(err)
			}
		}
		s.apply(c, nil)
	}
	held := func() (pieces, dead, text int) {
		shard := &s.table.Load().shards[7]
		for _, h := range shard.held {
			if h.piece != nil {
				pieces++
				dead += len(h.facts) - h.live
				text += h.text.Cap()
			}
		}
		return pieces, dead, text
	}
	check := func(when string) {
		t.Helper()
		size := 0
		for name, version := range versions {
			e := s.table.Load().named(name)
			if e.none() || e.domain().Upstreams[0].Dial != typical(version).Upstreams[0].Dial {
				t.Fatalf("%s: %s is not as it was set", when, name)
			}
			size += len(e.body())
		}
		used := s.table.Load().shards[7].used
		if pieces, dead, text := held(); used != len(versions) || pieces > 20+used/8 || dead > 20+used/4 || text > 2*size+pieceText {
			t.Errorf("%s: %d names in %d pieces of %d bytes, of %d wanted, with %d dead entries", when, used, pieces, text, size, dead)
		}
	}
	set(true, names[:5]...)
	check("a few")
	set(true, names...)
	check("all at once")
	if pieces, dead, _ := held(); pieces < 4 || dead != 0 {
		t.Errorf("a set is in %d pieces, with %d entries that are nobody's", pieces, dead)
	}
	set(true, names...)
	check("all replaced")
	if _, dead, _ := held(); dead != 0 {
		t.Errorf("when all were replaced %d entries are still held", dead)
	}
	for i := range 1000 {
		name := names[random.IntN(len(names))]
		route := s.routeOf(s.table.Load().named(names[0]))
		set(false, name)
		if now := s.table.Load().named(names[0]).route(); name != names[0] && now != route {
			t.Fatalf("change %d: the route of another name is gone", i)
		} else if name == names[0] && now != nil {
			t.Fatalf("change %d: a new version of the name has the old route", i)
		}
	}
	check("one by one")
	for _, name := range names[10:] {
		c := s.newChangeSet(rankRemote, false, nil)
		c.remove(name)
		s.apply(c, nil)
		delete(versions, name)
	}
	check("most removed")
}

// TestPiecesOfKeys: a private key leaves memory with its domain, whatever stays beside.
func TestPiecesOfKeys(t *testing.T) {
	s := newTestState(t)
	names := inOneShard(40)
	c := s.newChangeSet(rankStatic, false, nil)
	for i, name := range names {
		d := &domain.Domain{Name: name, Tenant: "acme", Upstreams: []domain.Upstream{{Dial: "192.0.2.1:1"}}}
		if i%2 == 0 {
			d.Certificate = domain.Certificate{Source: domain.BYOC, ChainPEM: "chain", KeyPEM: "secret of " + name + ";"}
		}
		c.changes.put(d, d.AppendJSON(nil), rankStatic)
	}
	s.apply(c, nil)
	gone := s.newChangeSet(rankStatic, false, nil)
	for i, name := range names {
		if i%2 == 0 && i > 0 {
			gone.remove(name)
		}
	}
	s.apply(gone, nil)
	var kept []string
	for _, h := range s.table.Load().shards[7].held {
		if h.piece != nil && strings.Contains(h.text.String(), "secret") {
			kept = append(kept, h.text.String())
		}
	}
	if len(kept) != 1 || strings.Count(kept[0], "secret") != 1 || !strings.Contains(kept[0], names[0]) {
		t.Errorf("%d texts still have keys, want that of the one that is left: %q", len(kept), kept)
	}
}

// TestEntryChains takes sources of one name in and out, in every order.
func TestEntryChains(t *testing.T) {
	var r room
	made := func(source sourceRank, version int) entry {
		d := typical(version)
		return r.entry(d, d.AppendJSON(nil), source)
	}
	for order := range 6 {
		var e entry
		var want [sources]entry
		random := rand.New(rand.NewPCG(uint64(order), 1))
		for step := range 60 {
			source := sourceRank(random.IntN(sources))
			var put entry
			if random.IntN(3) > 0 {
				put = made(source, step)
			}
			before := fmt.Sprint(chainOf(e))
			had := e
			e = e.with(&r, source, put)
			for x := e; !x.none(); x = x.below() {
				x.epoch = 1 // it is in a table now
			}
			if after := fmt.Sprint(chainOf(had)); after != before {
				t.Fatalf("step %d: what was in a table has changed from %s to %s", step, before, after)
			}
			want[source] = put
			for source, put := range want {
				got := e.of(sourceRank(source))
				if got.none() != put.none() || !put.none() && (got.body() != put.body() || got.source != sourceRank(source)) {
					t.Fatalf("step %d: source %d has another entry than was put", step, source)
				}
			}
			if chain := chainOf(e); !strings.HasPrefix("012", chain) && chain != "1" && chain != "2" && chain != "02" && chain != "12" {
				t.Fatalf("step %d: the chain is %s", step, chain)
			}
		}
	}
}

// chainOf returns the sources of a chain.
func chainOf(e entry) (sources string) {
	for ; !e.none(); e = e.below() {
		sources += fmt.Sprint(e.source)
	}
	return sources
}
