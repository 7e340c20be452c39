package pqproxy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// newTestState is a state of no config, whose table can be filled.
func newTestState(t testing.TB) *state {
	s := newState()
	s.settings.Store(&settings{logger: zap.NewNop(), accessLog: zap.NewNop()})
	t.Cleanup(s.certs.close)
	return s
}

// typical is a domain as most are.
func typical(i int) *domain.Domain {
	d := &domain.Domain{
		Name: fmt.Sprintf("app-%07d.tenant-%04d.example.com", i, i%1000), Tenant: fmt.Sprintf("tenant-%04d", i%1000),
		Upstreams:     []domain.Upstream{{Dial: fmt.Sprintf("192.0.%d.%d:8443", i>>8&255, i&255), TLS: &domain.UpstreamTLS{ServerName: "app.internal.example.com"}}},
		ProxyProtocol: domain.ProxyV1,
	}
	if err := d.Normalize(domain.Remote); err != nil {
		panic(err)
	}
	return d
}

// filled applies so many typical domains.
func filled(t testing.TB, s *state, n int) {
	c := s.newChangeSet(rankRemote, true, nil)
	for i := range n {
		if err := c.put(typical(i)); err != nil {
			t.Fatal(err)
		}
	}
	if done, _ := s.apply(c, nil); done.Added != n {
		t.Fatalf("added %d of %d", done.Added, n)
	}
}

// inOneShard returns names that are next to each other in the table.
func inOneShard(n int) (names []string) {
	for i := 0; len(names) < n; i++ {
		if name := fmt.Sprintf("n%d.example.com", i); shardOf(hashOf(name)) == 7 {
			names = append(names, name)
		}
	}
	return names
}

// TestApplyModel applies random change sets of all sources and compares the table, and every older one, with what plain
// maps say.
func TestApplyModel(t *testing.T) {
	s := newTestState(t)
	var model [sources]map[string]string // name → tenant
	for i := range model {
		model[i] = make(map[string]string)
	}
	names := append(inOneShard(30), "*.example.com", "*.sub.example.com")
	serving := func() map[string]string {
		all := make(map[string]string)
		for rank := sources - 1; rank >= 0; rank-- {
			for name, tenant := range model[rank] {
				all[name] = fmt.Sprint(sourceNames[rank], " ", tenant)
			}
		}
		return all
	}
	contents := func(tb *table) map[string]string {
		all := make(map[string]string)
		for e := range tb.all {
			all[e.name()] = fmt.Sprint(e.source.source(), " ", e.domain().Tenant)
		}
		return all
	}
	type version struct {
		table *table
		want  map[string]string
	}
	var history []version
	random := rand.New(rand.NewPCG(1, 2))
	for range 400 {
		rank := sourceRank(random.IntN(sources))
		full := random.IntN(8) == 0
		c := s.newChangeSet(rank, full, nil)
		next := maps.Clone(model[rank])
		if full {
			clear(next)
		}
		var refused []string
		for _, i := range random.Perm(len(names))[:random.IntN(len(names)/2)] {
			name := names[i]
			switch random.IntN(6) {
			case 0:
				c.remove(name)
				delete(next, name)
			case 1:
				c.refuse(name, fmt.Errorf("no good"))
				refused = append(refused, name)
			default:
				d := &domain.Domain{Name: name, Tenant: fmt.Sprint(random.IntN(3)), Upstreams: []domain.Upstream{{Dial: "192.0.2.1:1"}}, Certificate: domain.Certificate{Source: domain.Internal}}
				if err := d.Normalize(domain.Remote); err != nil {
					t.Fatal(err)
				}
				if err := c.put(d); err != nil {
					t.Fatal(err)
				}
				next[name] = d.Tenant
			}
		}
		for _, name := range refused {
			delete(next, name)
			if had, ok := model[rank][name]; ok {
				next[name] = had
			}
		}
		before := model[rank]
		model[rank] = next
		done, _ := s.apply(c, nil)
		added, removed := 0, 0
		for name := range next {
			if _, ok := before[name]; !ok {
				added++
			}
		}
		for name := range before {
			if _, ok := next[name]; !ok {
				removed++
			}
		}
		if done.Added != added || done.Removed != removed || done.Rejected != len(refused) {
			t.Fatalf("reported %+v, want %d added, %d removed, %d rejected", done, added, removed, len(refused))
		}

		now, want := s.table.Load(), serving()
		if got := contents(now); !maps.Equal(got, want) {
			t.Fatalf("the table is\n%v, want\n%v", got, want)
		}
		var live [sources]int
		wildcards, shadowed := 0, 0
		for name := range want {
			e := now.named(name)
			live[e.source]++
			if strings.HasPrefix(name, "*.") {
				wildcards++
			}
			var chain []sourceRank
			for x := e; !x.none(); x = x.below() {
				chain = append(chain, x.source)
				if _, ok := model[x.source][name]; !ok {
					t.Fatalf("%s has an entry of %s", name, x.source.source())
				}
			}
			if !slices.IsSorted(chain) {
				t.Fatalf("%s is a chain of %v", name, chain)
			}
			if len(chain) > 1 {
				shadowed++
			}
		}
		if now.size != len(want) || now.live != live || now.wildcards != wildcards || len(s.shadowed) != shadowed {
			t.Fatalf("counted %d, %v, %d wildcards, %d shadowed; want %d, %v, %d, %d", now.size, now.live, now.wildcards, len(s.shadowed), len(want), live, wildcards, shadowed)
		}
		if history = append(history, version{now, want}); len(history) > 3 {
			history = history[1:]
		}
		for _, old := range history {
			if got := contents(old.table); !maps.Equal(got, old.want) {
				t.Fatal("a table has changed")
			}
		}
	}
}

// TestSameHash tells names apart that have one hash: nobody can make such, and nothing relies on that.
func TestSameHash(t *testing.T) {
	s := newTestState(t)
	filled(t, s, 2)
	next := *s.table.Load()
	first, second := typical(0).Name, typical(1).Name
	hash := hashOf(second)
	e := next.named(first)
	shard := &next.shards[shardOf(hash)]
	*shard = shard.clone()
	shard.remove(hash, second)
	shard.put(hash, e) // an entry of another name under the hash of the second
	s.table.Store(&next)
	if got := s.routeFor(second); got != nil {
		t.Errorf("%s is served by %s", second, got.Name)
	}
	if got := s.routeFor(first); got == nil || got.Name != first {
		t.Errorf("%s is served by %v", first, got)
	}
}

// TestEpochs changes the epoch of a name, and with it what tickets are good for, exactly when its owner, its policy, its
// pair or its suspension change, whichever source serves it.
func TestEpochs(t *testing.T) {
	s := newTestState(t)
	const name = "app-0000001.tenant-0001.example.com"
	epoch := func() uint64 { return s.table.Load().named(name).epoch }
	apply := func(rank sourceRank, change func(*domain.Domain)) {
		t.Helper()
		c := s.newChangeSet(rank, false, nil)
		if change == nil {
			c.remove(name)
		} else {
			d := typical(1)
			change(d)
			if err := c.put(d); err != nil {
				t.Fatal(err)
			}
		}
		s.apply(c, nil)
	}
	same := func(*domain.Domain) {}
	apply(rankRemote, same)
	seen := map[uint64]bool{epoch(): true}
	for i, step := range []struct {
		what  string
		rank  sourceRank
		do    func(*domain.Domain)
		fresh bool
	}{
		{"nothing", rankRemote, same, false},
		{"load balancing", rankRemote, func(d *domain.Domain) { d.LoadBalancing = domain.Random }, false},
		{"another source, the same owner", rankAdmin, same, false},
		{"a change below", rankRemote, func(d *domain.Domain) { d.Tenant = "other" }, false},
		{"back to the source below", rankAdmin, nil, true},
		{"back to the owner before", rankRemote, same, true},
		{"policy", rankRemote, func(d *domain.Domain) { d.PostQuantum = domain.Require }, true},
		{"policy back", rankRemote, same, true},
		{"suspended", rankRemote, func(d *domain.Domain) { d.Suspended = true }, true},
		{"resumed", rankRemote, same, true},
		{"static", rankStatic, func(d *domain.Domain) { d.Tenant = "another" }, true},
		{"static gone", rankStatic, nil, true},
	} {
		before := epoch()
		apply(step.rank, step.do)
		now := epoch()
		if fresh := now != before; fresh != step.fresh {
			t.Errorf("%d, %s: a new epoch is %v, want %v", i, step.what, fresh, step.fresh)
		}
		if now != before && seen[now] {
			t.Errorf("%d, %s: an epoch comes again", i, step.what)
		}
		seen[now] = true
		if r := s.routeOf(s.table.Load().named(name)); r.epoch != now {
			t.Errorf("%d, %s: the route has epoch %d, the entry %d", i, step.what, r.epoch, now)
		}
	}
}
