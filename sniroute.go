package pqproxy

import (
	"hash/maphash"
	"math/bits"
	"slices"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/mholt/caddy-l4/layer4"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

func init() {
	caddy.RegisterModule(&Handler{})
}

// Handler is the terminal caddy-l4 handler that serves a connection: it terminates TLS 1.3, routes by SNI,
// tells the upstream the client's address and relays until both sides ended. Domains and limits are
// those of the `pqproxy` app. The listener of its server should be of the network `pqproxy/`, such as
// `pqproxy/:443`: it survives reloads and running out of descriptors.
//
// It may stand behind caddy-l4's `proxy_protocol` handler, whose addresses it passes on, and behind
// matchers; it must not stand behind a handler that terminates TLS.
type Handler struct {
	app *App
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "layer4.handlers.pqproxy",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision finds the app, which may itself be provisioning still.
func (h *Handler) Provision(ctx caddy.Context) error {
	app, err := ctx.App("pqproxy")
	if err != nil {
		return err
	}
	h.app = app.(*App)
	h.app.handlers.Add(1)
	return nil
}

// Handle serves the connection and returns when it has ended. Faults of peers are in the connection's
// record and no error here.
func (h *Handler) Handle(cx *layer4.Connection, _ layer4.Handler) error {
	// Caddy starts apps in any order: layer4 may accept before there is a table. It also stops them in any
	// order: a connection may come when this app is gone and the state serves for its successor.
	select {
	case <-h.app.state.ready:
	case <-h.app.gone:
		select {
		case <-h.app.state.ready:
		default:
			return nil // the config never came into force
		}
	}
	h.app.state.serve(cx)
	return nil
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	pqproxy
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the handler's name
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("the pqproxy handler takes no options; domains and limits belong in the global option pqproxy, found %q", d.Val())
	}
	return nil
}

// tableShards is into how many parts the table is split. A change copies the shards that it touches and the array of
// them (128 KiB), so that a thousand changes to a million domains do not cost what the million does.
const tableShards = 1 << shardBits

const shardBits = 12

// table is all domains. It is immutable: apply builds the next one and swaps it.
type table struct {
	shards    [tableShards]shard
	size      int          // names
	live      [sources]int // names by the source that serves them
	wildcards int          // names that are wildcards

	adminVersion uint64 // counts the changes of what the admin API has set
}

// shard is a hash table with open addressing and linear probing. With a million domains nothing of it is in a cache,
// and what a lookup takes is the loads that wait for one another. A connection does with one of them, see likely; a map
// of Go takes five.
type shard struct {
	slots []slot // as many as a power of two, at most three in four of them used
	used  int
}

// slot is free where e is nil.
type slot struct {
	hash uint64
	e    *entry
}

// nameSeed keeps those who choose names from choosing their place too.
var nameSeed = maphash.MakeSeed()

func hashOf(name string) uint64 { return maphash.String(nameSeed, name) }

// shardOf is the shard of a name's hash; the slot is chosen by the hash's other end.
func shardOf(hash uint64) int { return int(hash >> (64 - shardBits)) }

// find returns what serves a host name in normal form: the exact name's entry, else its wildcard's, else nil. Wildcards
// are in the table as `*.example.com`.
func (t *table) find(host string) *entry {
	if e := t.named(host); e != nil {
		return e
	}
	if t.wildcards == 0 {
		return nil
	}
	if wildcard, ok := domain.WildcardOf(host); ok {
		return t.named(wildcard)
	}
	return nil
}

// likely is find by the names' hashes alone. It is for connections: they need the route anyway, which has the name, and
// are to see whether it covers the host.
func (t *table) likely(host string) *entry {
	if e := t.hashed(hashOf(host)); e != nil || t.wildcards == 0 {
		return e
	}
	if wildcard, ok := domain.WildcardOf(host); ok {
		return t.hashed(hashOf(wildcard))
	}
	return nil
}

// hashed returns the first entry of a name with that hash, or nil.
func (t *table) hashed(hash uint64) *entry {
	s := &t.shards[shardOf(hash)]
	if len(s.slots) == 0 {
		return nil
	}
	mask := len(s.slots) - 1
	for i := int(hash) & mask; ; i = (i + 1) & mask {
		if slot := &s.slots[i]; slot.hash == hash || slot.e == nil {
			return slot.e
		}
	}
}

// named returns the entry of exactly that name, or nil.
func (t *table) named(name string) *entry { return t.at(hashOf(name), name) }

// at is named for who knows the hash of the name.
func (t *table) at(hash uint64, name string) *entry {
	s := &t.shards[shardOf(hash)]
	if i, ok := s.search(hash, name); ok {
		return s.slots[i].e
	}
	return nil
}

// all yields the entries that are served, in no order.
func (t *table) all(yield func(*entry) bool) {
	for i := range t.shards {
		for _, slot := range t.shards[i].slots {
			if slot.e != nil && !yield(slot.e) {
				return
			}
		}
	}
}

// search returns the slot of a name, or else the one where it would be put.
func (s *shard) search(hash uint64, name string) (at int, found bool) {
	if len(s.slots) == 0 {
		return 0, false
	}
	mask := len(s.slots) - 1
	for i := int(hash) & mask; ; i = (i + 1) & mask {
		slot := &s.slots[i]
		if slot.e == nil {
			return i, false
		}
		if slot.hash == hash && slot.e.name() == name {
			return i, true
		}
	}
}

// put sets the entry of a name. The shard must be its caller's own, slots and all.
func (s *shard) put(hash uint64, e *entry) {
	name := e.name()
	i, found := s.search(hash, name)
	if found {
		s.slots[i].e = e
		return
	}
	if 4*(s.used+1) > 3*len(s.slots) {
		old := s.slots
		s.slots = make([]slot, max(4, 2*len(old)))
		s.fill(old)
		i, _ = s.search(hash, name)
	}
	s.slots[i] = slot{hash, e}
	s.used++
}

// remove takes a name out, and moves back those that had to go past its slot. The shard must be its caller's own.
func (s *shard) remove(hash uint64, name string) {
	hole, found := s.search(hash, name)
	if !found {
		return
	}
	s.used--
	mask := len(s.slots) - 1
	for i := (hole + 1) & mask; s.slots[i].e != nil; i = (i + 1) & mask {
		if home := int(s.slots[i].hash) & mask; (i-home)&mask >= (i-hole)&mask {
			s.slots[hole] = s.slots[i]
			hole = i
		}
	}
	s.slots[hole] = slot{}
}

// clone returns a shard that is the caller's own.
func (s *shard) clone() shard { return shard{slices.Clone(s.slots), s.used} }

// shrink gives back slots of which most are free. The shard must be its caller's own.
func (s *shard) shrink() {
	if len(s.slots) <= 8 || 8*s.used > len(s.slots) {
		return
	}
	old := s.slots
	s.slots = nil
	if s.used > 0 {
		s.slots = make([]slot, 1<<bits.Len(uint(2*s.used)))
	}
	s.fill(old)
}

// fill puts entries into slots that are free.
func (s *shard) fill(entries []slot) {
	for _, o := range entries {
		if o.e != nil {
			at, _ := s.search(o.hash, o.e.name())
			s.slots[at] = o
		}
	}
}

// entry is what one source says of one name, as small as it can be: a million of them are held, of which few are
// visited at a time. What a connection needs is compiled when the first one asks for it. All but the route is
// immutable.
type entry struct {
	body        string                // the domain's JSON, which begins with its name
	next        *entry                // the same name of the next source, which this one shadows; nil: none
	route       atomic.Pointer[route] // compiled; nil: nobody asked yet
	epoch       uint64                // see route
	security    uint64                // digest of what epoch depends on
	source      sourceRank
	nameLen     uint8
	checked     bool // has a health_check
	certificate certKind
	pairEnds    epochTime // when the tenant's own pair expires; 0: it has none
}

// namePrefix is what the JSON of a domain begins with; the name follows, which needs no escapes in normal form.
const namePrefix = `{"name":"`

func (e *entry) name() string { return e.body[len(namePrefix) : len(namePrefix)+int(e.nameLen)] }

// domain reads the entry's domain from its JSON.
func (e *entry) domain() *domain.Domain {
	d, err := domain.Reread([]byte(e.body))
	if err != nil {
		panic(err) // we wrote it
	}
	return d
}

// of returns what a source says of the name, or nil.
func (e *entry) of(source sourceRank) *entry {
	for ; e != nil; e = e.next {
		if e.source == source {
			return e
		}
	}
	return nil
}

// with returns the chain of the same name with put in place of what its source had; nil put takes that out. What it
// returns shares entries with e and never put itself.
func (e *entry) with(source sourceRank, put *entry) *entry {
	switch {
	case e == nil || e.source > source:
		if put == nil {
			return e
		}
		return put.before(e)
	case e.source == source:
		if put == nil {
			return e.next
		}
		return put.before(e.next)
	}
	next := e.next.with(source, put)
	if next == e.next {
		return e
	}
	return e.before(next)
}

// before returns a copy of the entry that shadows next.
func (e *entry) before(next *entry) *entry {
	c := &entry{
		body: e.body, next: next, epoch: e.epoch, security: e.security, source: e.source, nameLen: e.nameLen,
		checked: e.checked, certificate: e.certificate, pairEnds: e.pairEnds,
	}
	c.route.Store(e.route.Load())
	return c
}

// sourceRank is a source's place in the order of precedence.
type sourceRank uint8

const (
	rankStatic sourceRank = iota
	rankAdmin
	rankRemote
	sources = iota
)

var sourceNames = [sources]domain.Source{domain.Static, domain.Admin, domain.Remote}

func (r sourceRank) source() domain.Source { return sourceNames[r] }

// Interface guards
var (
	_ caddy.Provisioner     = (*Handler)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
	_ layer4.NextHandler    = (*Handler)(nil)
)
