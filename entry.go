package pqproxy

import (
	"hash/maphash"
	"strings"
	"sync/atomic"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// entry is what one source says of one name, as small as it can be: a million of them are held, of which few are
// visited at a time. What a connection needs is compiled when the first one asks for it. All but the route is immutable
// when it is in a table. The zero value is nothing; it is not to be asked for its facts or its text.
type entry struct {
	*facts
	in *piece
}

// facts are what is asked of an entry without reading its JSON. They have no pointer.
type facts struct {
	epoch       uint64    // see route; 0: in no table yet
	security    uint64    // digest of what epoch depends on
	text        uint32    // where its JSON begins in the piece's text
	pairEnds    epochTime // when the tenant's own pair expires; 0: it has none
	at          uint16    // its place in the piece
	source      sourceRank
	nameLen     uint8
	certificate certKind
	checked     bool // has a health_check
}

// piece is memory for entries that came together. With two objects for each, and pointers between them, the collector would follow
// millions of those each time, and connections would wait for it: a piece has its facts and its JSON in one object each, in which the
// collector has nothing to look for.
type piece struct {
	facts  []facts
	text   strings.Builder // the domains' JSON, one behind the other; each begins with the name
	routes atomic.Pointer[[]atomic.Pointer[route]]
	under  []entry // the same names of the next sources, which these shadow; nil: none
}

// A piece has at most so many entries, or so many bytes of JSON if that is more than one.
const (
	pieceEntries = 128
	pieceText    = 48 << 10
)

func newPiece(entries, text int) *piece {
	p := &piece{facts: make([]facts, 0, entries)}
	p.text.Grow(text)
	return p
}

// add returns the entry whose text is the piece's from start on.
func (p *piece) add(f facts, start int) entry {
	f.text, f.at = uint32(start), uint16(len(p.facts))
	p.facts = append(p.facts, f)
	return entry{&p.facts[f.at], p}
}

// room makes entries, in pieces the larger the more it has made. The zero value is ready.
type room struct {
	open *piece // which may take further ones
	made int
}

// entry returns the entry of a domain whose JSON is known.
func (r *room) entry(d *domain.Domain, body []byte, source sourceRank) entry {
	f := factsOf(d, source)
	p := r.take(len(body), f.certificate.own())
	start := p.text.Len()
	_, _ = p.text.Write(body)
	return p.add(f, start)
}

// copy returns a copy of an entry.
func (r *room) copy(from entry) entry {
	body := from.body()
	p := r.take(len(body), from.certificate.own())
	start := p.text.Len()
	_, _ = p.text.WriteString(body)
	e := p.add(*from.facts, start)
	e.cover(from.below())
	if route := from.route(); route != nil {
		e.keep(route)
	}
	return e
}

// take returns a piece that can take another entry. One with a private key has a piece of its own, so that the key does not stay in
// memory because of others.
func (r *room) take(size int, own bool) *piece {
	if own {
		return newPiece(1, size)
	}
	if r.open == nil || len(r.open.facts) == cap(r.open.facts) || r.open.text.Cap()-r.open.text.Len() < size {
		n := min(max(1, 3*r.made), pieceEntries)
		r.open = newPiece(n, max(size, min(n*size, pieceText)))
	}
	r.made++
	return r.open
}

// newEntry makes the entry of a domain in normal form, apart from others.
func newEntry(d *domain.Domain, source sourceRank) entry {
	return new(room).entry(d, d.AppendJSON(nil), source)
}

// factsOf returns the facts of a domain.
func factsOf(d *domain.Domain, source sourceRank) facts {
	return facts{
		security: securityOf(d), pairEnds: pairEndsOf(d), source: source, nameLen: uint8(len(d.Name)),
		certificate: certKindOf(d), checked: d.HealthCheck != nil,
	}
}

// securityOf digests what the sessions of a domain depend on. An ACME renewal changes nothing here.
func securityOf(d *domain.Domain) uint64 {
	var h maphash.Hash
	h.SetSeed(nameSeed)
	for _, text := range []string{d.Tenant, string(d.PostQuantum), d.Certificate.ChainPEM, d.Certificate.KeyPEM} {
		_, _ = h.WriteString(text)
		_ = h.WriteByte(0) // which none of them has
	}
	if d.Suspended {
		_ = h.WriteByte(1)
	}
	return h.Sum64()
}

// none reports whether it is nothing.
func (e entry) none() bool { return e.facts == nil }

// namePrefix is what the JSON of a domain begins with; the name follows, which needs no escapes in normal form.
const namePrefix = `{"name":"`

// name is part of something large. Who keeps it clones it.
func (e entry) name() string {
	start := int(e.text) + len(namePrefix)
	return e.in.text.String()[start : start+int(e.nameLen)]
}

// body is the domain's JSON, which is part of something large.
func (e entry) body() string {
	text := e.in.text.String()
	if next := int(e.at) + 1; next < len(e.in.facts) {
		return text[e.text:e.in.facts[next].text]
	}
	return text[e.text:]
}

// domain reads the entry's domain from its JSON.
func (e entry) domain() *domain.Domain {
	d, err := domain.Reread([]byte(e.body()))
	if err != nil {
		panic(err) // we wrote it
	}
	return d
}

// route returns what was compiled, or nil if nobody asked yet.
func (e entry) route() *route {
	if all := e.in.routes.Load(); all != nil {
		return (*all)[e.at].Load()
	}
	return nil
}

// keep keeps a route unless there is one, and returns that which is kept.
func (e entry) keep(r *route) *route {
	all := e.in.routes.Load()
	if all == nil {
		made := make([]atomic.Pointer[route], cap(e.in.facts))
		if e.in.routes.CompareAndSwap(nil, &made) {
			all = &made
		} else {
			all = e.in.routes.Load()
		}
	}
	one := &(*all)[e.at]
	for !one.CompareAndSwap(nil, r) {
		if had := one.Load(); had != nil { // somebody else was first
			return had
		}
	}
	return r
}

// forget drops the route.
func (e entry) forget() {
	if all := e.in.routes.Load(); all != nil {
		(*all)[e.at].Store(nil)
	}
}

// below returns what the entry shadows: the same name of the next source.
func (e entry) below() entry {
	if e.in.under == nil {
		return entry{}
	}
	return e.in.under[e.at]
}

// cover sets what the entry shadows. It must be in no table yet.
func (e entry) cover(below entry) {
	if e.in.under == nil {
		if below.none() {
			return
		}
		e.in.under = make([]entry, cap(e.in.facts))
	}
	e.in.under[e.at] = below
}

// of returns what a source says of the name, or nothing.
func (e entry) of(source sourceRank) entry {
	for ; !e.none(); e = e.below() {
		if e.source == source {
			break
		}
	}
	return e
}

// with returns the chain of the same name with put in place of what its source had; without put that is taken out. What
// it returns shares entries with e and put, unless those are in a table and would change: then the room makes others.
func (e entry) with(r *room, source sourceRank, put entry) entry {
	switch {
	case e.none() || e.source > source:
		if put.none() {
			return e
		}
		return put.over(r, e)
	case e.source == source:
		if put.none() {
			return e.below()
		}
		return put.over(r, e.below())
	}
	return e.over(r, e.below().with(r, source, put))
}

// over returns an entry that shadows another: this one, or else a copy.
func (e entry) over(r *room, below entry) entry {
	if e.below() == below {
		return e
	}
	if e.epoch != 0 {
		e = r.copy(e)
	}
	e.cover(below)
	return e
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
