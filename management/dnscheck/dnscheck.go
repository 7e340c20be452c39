// Package dnscheck asks about a customer's domain from outside: what DNS says of it, and whether a proof can be
// fetched from it. Each answer names what was expected, what was seen and, in words for people, what to do.
//
//	r, err := dnscheck.New(dnscheck.Options{}) // the system's servers
//	seen := r.Look(ctx, dnscheck.Request{Name: "app.example.com", Targets: []dnscheck.Target{{Type: "a", Value: "203.0.113.10"}}})
//	fmt.Println(seen.Traffic.State, seen.Traffic.Detail)
//
// Two things are kept apart all the way: that the record is not there ([Absent], [Wrong]), which somebody answered, and
// that nobody could be asked ([Unknown]), from which nothing follows. A caller turns nothing off for Unknown.
//
// Nothing is cached: customers change a record and press "check". Names, records and answers are taken to be hostile;
// every wait has a deadline, every list and text a bound, and texts are printable ASCII but for what this package says
// itself. Names are resolved as the configured servers see them: with servers that know internal names, customers read
// the addresses of these.
package dnscheck

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// State is what a check came to.
type State string

// The states.
const (
	OK      State = "ok"      // it is as it should be
	Absent  State = "absent"  // asked, and there is no such record: it was not set yet, or was removed
	Wrong   State = "wrong"   // asked, and something else is there, alone or beside what should be
	Unknown State = "unknown" // could not be asked: nothing is known, nothing may follow from it
	Off     State = "off"     // there was nothing to compare with
)

// Verdict is a state with a text for the owner of the domain: what is wrong, and what to do.
type Verdict struct {
	State  State
	Detail string
}

// What a record is for.
const (
	PurposeTraffic   = "traffic"
	PurposeOwnership = "ownership"
)

// Target is an address of the edges that names are to point at.
type Target struct {
	Type  string // "a", "aaaa" or "cname"
	Value string // an address, or a host name in normal form
}

// Record is a record that is expected, and what stands in its place.
//
// Records of type CNAME and those of type A and AAAA are alternatives: a name cannot have both.
type Record struct {
	Purpose string `json:"purpose"` // PurposeTraffic, PurposeOwnership
	Type    string `json:"type"`    // "A", "AAAA", "CNAME", "TXT", or "ALIAS" at an apex that no address target is for
	Name    string `json:"name"`    // "*.example.com" for a wildcard
	Value   string `json:"value"`

	// Seen is what DNS has: addresses, the CNAME chain, texts; the first 16 of them. Addresses stand in place of a CNAME
	// that is not there. Never nil.
	Seen []string `json:"seen"`

	// OK is whether nothing is left to do about this record: it is there and nothing contradicts it, or the traffic comes
	// by an alternative.
	OK bool `json:"ok"`
}

// Request says what to look at.
type Request struct {
	Name      string   // in normal form; may be a wildcard
	Targets   []Target // none: traffic is Off
	Ownership string   // the text expected at _pqproxy.NAME; empty: ownership is Off
	Issuers   []string // the domains by which CAA knows the CAs, such as "letsencrypt.org"; none: CAA is Off
}

// Observation is what was seen of a domain.
type Observation struct {
	// Records are those that are expected: for traffic in the order of Request.Targets, then ownership.
	Records []Record

	Traffic   Verdict // does the name point at the targets, and at nothing else?
	Ownership Verdict
	CAA       Verdict // may one of the issuers issue? Unknown also stops CAs

	// Apex is whether the name is the top of a zone (it has SOA or NS records), where no CNAME can stand. False where it
	// could not be asked, and for a wildcard.
	Apex bool

	Chain     []string // the CNAMEs that the name leads through, in order
	Addresses []string // A and AAAA at its end

	// CDN names the content delivery network that answers for the name, as far as it can be told; empty: none is known.
	CDN string
}

const (
	lookTime = 9 * time.Second // all of one Look; the API answers within 10 s
	maxSeen  = 16              // entries of a list that is shown
	maxShown = 255             // bytes of a text or name that is shown
)

// Look asks DNS about a domain. It ends within 9 s, or when ctx does; what was not answered by then is Unknown. It may
// be called by many goroutines at a time.
func (r *Resolver) Look(ctx context.Context, req Request) Observation {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	l := look{resolver: r, req: req, base: strings.TrimPrefix(req.Name, "*.")}
	l.wildcard = l.base != req.Name
	l.asked = req.Name
	if l.wildcard {
		l.asked = randomLabel() + "." + l.base
	}
	l.ask(ctx)
	return l.judge()
}

// look is one Look: first everything is asked, then judged.
type look struct {
	resolver *Resolver
	req      Request
	base     string // Name without `*.`
	asked    string // whose addresses are asked for: Name, or a name that only the wildcard can answer for
	wildcard bool

	a, aaaa   answer
	soa, ns   answer
	txt       answer
	caa       caaSet
	targets   []answers // of the CNAME targets, in their order
	ownership string    // where the text is expected; empty: the name would be too long
}

// answers are the addresses of one name.
type answers struct {
	name    string
	a, aaaa answer
}

// ask asks everything at a time: one slow server must not eat the time of the others.
func (l *look) ask(ctx context.Context) {
	var all sync.WaitGroup
	question := func(into *answer, name string, qtype uint16) {
		all.Go(func() { *into = l.resolver.lookup(ctx, name, qtype) })
	}
	if len(l.req.Targets) > 0 {
		question(&l.a, l.asked, dns.TypeA)
		question(&l.aaaa, l.asked, dns.TypeAAAA)
		if !l.wildcard {
			question(&l.soa, l.req.Name, dns.TypeSOA)
			question(&l.ns, l.req.Name, dns.TypeNS)
		}
		for _, t := range l.req.Targets {
			if t.Type == "cname" {
				l.targets = append(l.targets, answers{name: canonical(t.Value)})
			}
		}
		for i := range l.targets {
			question(&l.targets[i].a, l.targets[i].name, dns.TypeA)
			question(&l.targets[i].aaaa, l.targets[i].name, dns.TypeAAAA)
		}
	}
	if name := "_pqproxy." + l.base; l.req.Ownership != "" && len(name) <= maxName {
		l.ownership = name
		question(&l.txt, name, dns.TypeTXT)
	}
	if len(l.req.Issuers) > 0 {
		all.Go(func() { l.caa = l.resolver.lookupCAA(ctx, l.base) })
	}
	all.Wait()
}

func (l *look) judge() Observation {
	o := Observation{
		Apex:  l.soa.direct() || l.ns.direct(),
		Chain: shown(l.chain()),
		CDN:   cdnOf(l.chain(), append(l.a.addrs(), l.aaaa.addrs()...)),
	}
	for _, addr := range append(l.a.addrs(), l.aaaa.addrs()...) {
		o.Addresses = append(o.Addresses, addr.String())
	}
	o.Addresses = shown(o.Addresses)
	traffic := l.judgeTraffic(o.Apex, o.CDN)
	o.Traffic, o.Records = traffic.verdict, traffic.records
	ownership, record := l.judgeOwnership()
	if o.Ownership = ownership; record != nil {
		o.Records = append(o.Records, *record)
	}
	o.CAA = l.caa.judge(l.req.Issuers, l.wildcard, l.req.Name)
	return o
}

// chain returns the CNAMEs of the name: both questions lead through the same ones, unless one was not answered.
func (l *look) chain() []string {
	if len(l.a.chain) >= len(l.aaaa.chain) {
		return l.a.chain
	}
	return l.aaaa.chain
}

// maxName is the length of the longest name in text (RFC 1035 section 2.3.4, less first length and root).
const maxName = 253

// randomLabel is a label that nobody has set: what answers for it is the wildcard. It is lower case, as some servers
// answer in another case than was asked.
func randomLabel() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return "pqproxy-check-" + hex.EncodeToString(b[:])
}

// shown returns what of a list is shown; never nil.
func shown(list []string) []string {
	out := make([]string, 0, min(len(list), maxSeen))
	for _, s := range list[:min(len(list), maxSeen)] {
		out = append(out, cut(s))
	}
	return out
}

// cut bounds a text that came from outside. It is ASCII: package dns escapes everything else.
func cut(s string) string {
	if len(s) > maxShown {
		return s[:maxShown] + "…"
	}
	return s
}

// canonical is the form in which names are compared: lower case without the final dot.
func canonical(name string) string {
	return strings.TrimSuffix(dns.CanonicalName(name), ".")
}

// sortedAddrs sorts and drops what is there twice: servers rotate their answers.
func sortedAddrs(addrs []netip.Addr) []netip.Addr {
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}
