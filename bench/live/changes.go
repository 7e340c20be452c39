//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// plan makes the changes of the live scenario and remembers what must be live after them, by source. Names in use have
// connections all the time: they are touched and never removed, and their first upstream stays. All others come,
// change and go. It is the same in every run. One goroutine uses it.
type plan struct {
	random *rand.Rand
	pki    *pki
	dials  upstreams
	inUse  int // names in use of each source

	sources map[string]*sourcePlan
}

// sourcePlan is what one source has.
type sourcePlan struct {
	name    string
	zone    string
	touched []int       // of each name in use, how often it was touched
	others  map[int]int // number of a typical domain: its version
	order   []int       // the numbers of others, in any order but always the same
	next    int         // number of the next domain to add
}

// upstreams are the addresses that names in use have: half of the names plain TCP, half TLS, two of each.
type upstreams struct {
	plain, tls [2]string
}

// Sources, as DESIGN.md calls them. Each has the typical domains from a number of its own on.
const (
	sourceStatic = "static"
	sourceAdmin  = "admin"
	sourceRemote = "remote"

	firstAdmin = lab.MaxDomains / 2
)

// change is a record that takes the place of what has its name, or a removal.
type change struct {
	name   string
	record []byte // JSON; nil: the name goes
}

func newPlan(p *pki, dials upstreams, inUse int) *plan {
	return &plan{
		random: rand.New(rand.NewPCG(3, 3)), pki: p, dials: dials, inUse: inUse,
		sources: map[string]*sourcePlan{
			sourceStatic: newSourcePlan(sourceStatic, staticZone, inUse, 0),
			sourceAdmin:  newSourcePlan(sourceAdmin, adminZone, inUse, firstAdmin),
			sourceRemote: newSourcePlan(sourceRemote, remoteZone, inUse, 0),
		},
	}
}

func newSourcePlan(name, zone string, inUse, first int) *sourcePlan {
	return &sourcePlan{name: name, zone: zone, touched: make([]int, inUse), others: map[int]int{}, next: first}
}

func (s *sourcePlan) usedName(i int) string { return fmt.Sprintf("use-%d%s", i, s.zone) }

// usedNames are the names in use of all sources, taking turns.
func (p *plan) usedNames() []string {
	var names []string
	for i := range p.inUse {
		for _, source := range []string{sourceStatic, sourceAdmin, sourceRemote} {
			names = append(names, p.sources[source].usedName(i))
		}
	}
	return names
}

// used is the record of a name in use as it is now. Each touch changes something that must not end connections: how
// upstreams are chosen, the bound on connections (never below what is open), labels, an upstream more or less.
func (p *plan) used(s *sourcePlan, i int) object {
	touched := s.touched[i]
	dials, certificate := p.dials.plain, p.pki.byoc()
	if i%2 == 1 {
		dials = p.dials.tls
	}
	if s.name == sourceStatic {
		certificate = p.pki.byocFiles()
	}
	var to []object
	for _, dial := range dials[:1+touched%2] {
		u := object{"dial": dial, "region": []string{"gru", "fra", "sin"}[touched%3]}
		if i%2 == 1 {
			u["tls"] = object{"server_name": upstreamName, "ca_pem": p.pki.ca}
		}
		to = append(to, u)
	}
	return object{
		"name": s.usedName(i), "tenant": fmt.Sprintf("tenant-%d", i%7), "upstreams": to,
		"load_balancing":  []string{"first", "random", "least_conn", "ip_hash"}[touched%4],
		"max_connections": []int{0, 100_000, 200_000}[touched%3],
		"certificate":     certificate,
	}
}

// touch changes a name in use.
func (p *plan) touch(s *sourcePlan, i int) change {
	s.touched[i]++
	return change{s.usedName(i), mustJSON(p.used(s, i))}
}

// add makes a new domain.
func (s *sourcePlan) add() change {
	i := s.next
	s.next++
	s.others[i] = 0
	s.order = append(s.order, i)
	return change{lab.TypicalName(i), lab.AppendTypical(nil, i, 0)}
}

// fill adds n domains at once.
func (s *sourcePlan) fill(n int) {
	for range n {
		s.add()
	}
}

// changes makes n changes of different names: a quarter touches names in use, the rest adds, changes the upstream, or
// removes, in equal parts.
func (p *plan) changes(source string, n int) []change {
	s := p.sources[source]
	var all []change
	for seen := map[string]bool{}; len(all) < n; {
		c := p.change(s, seen)
		seen[c.name] = true
		all = append(all, c)
	}
	return all
}

// change makes one of them. Names that are taken already are left alone: a domain is added instead.
func (p *plan) change(s *sourcePlan, taken map[string]bool) change {
	kind := p.random.IntN(8)
	if i := p.random.IntN(p.inUse); kind < 2 && !taken[s.usedName(i)] {
		return p.touch(s, i)
	}
	if kind < 4 || len(s.order) == 0 {
		return s.add()
	}
	at := p.random.IntN(len(s.order))
	i := s.order[at]
	if taken[lab.TypicalName(i)] {
		return s.add()
	}
	if kind < 6 {
		s.others[i]++
		return change{lab.TypicalName(i), lab.AppendTypical(nil, i, s.others[i])}
	}
	s.order[at] = s.order[len(s.order)-1]
	s.order = s.order[:len(s.order)-1]
	delete(s.others, i)
	return change{name: lab.TypicalName(i)}
}

// replaceAll changes the upstream of every domain of a source that is not in use.
func (s *sourcePlan) replaceAll() {
	for i := range s.others {
		s.others[i]++
	}
}

// elements are all records of a source, as elements of a `domains` list.
func (p *plan) elements(source string) []byte {
	s := p.sources[source]
	var b []byte
	for i := range s.touched {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, mustJSON(p.used(s, i))...)
	}
	for _, i := range slices.Sorted(maps.Keys(s.others)) {
		b = lab.AppendTypical(append(b, ','), i, s.others[i])
	}
	return b
}

// count is how many domains a source has.
func (p *plan) count(source string) int {
	s := p.sources[source]
	return len(s.touched) + len(s.others)
}

// split makes the two lists of a change set.
func split(changes []change) (domains []byte, removed []string) {
	domains, removed = []byte{}, []string{}
	for _, c := range changes {
		if c.record == nil {
			removed = append(removed, c.name)
			continue
		}
		if len(domains) > 0 {
			domains = append(domains, ',')
		}
		domains = append(domains, c.record...)
	}
	return domains, removed
}

func mustJSON(v any) []byte {
	content, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps, strings and numbers
	}
	return content
}
