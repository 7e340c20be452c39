package dnscheck

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

const (
	headerLen  = 12  // RFC 1035 section 4.1.1
	maxAnswers = 512 // records of one answer that are looked at; a name that works has a few
	maxChain   = 8   // CNAMEs that are followed: resolvers give up at 8 to 16
)

// readReply reads a message that came in answer to a query. It returns errNotOurs for what answers something else,
// errTruncated and errMalformed for what does, but cannot be used.
//
// Package dns takes a message with less records than it announces; here it is malformed, because a record that is lost
// would pass for one that is not there.
func readReply(b []byte, query *dns.Msg) (*dns.Msg, error) {
	if len(b) < headerLen || binary.BigEndian.Uint16(b) != query.Id || b[2]&0x80 == 0 { // QR
		return nil, errNotOurs
	}
	if b[2]&0x02 != 0 { // TC: what there is of it need not make sense
		return nil, errTruncated
	}
	m := new(dns.Msg)
	err := m.Unpack(b)
	if err == nil && (len(m.Question) != 1 || !sameQuestion(m.Question[0], query.Question[0])) {
		return nil, errNotOurs
	}
	if err != nil || m.Opcode != dns.OpcodeQuery ||
		len(m.Answer) != int(binary.BigEndian.Uint16(b[6:])) || len(m.Ns) != int(binary.BigEndian.Uint16(b[8:])) ||
		len(m.Extra) != int(binary.BigEndian.Uint16(b[10:])) || len(m.Answer) > maxAnswers {
		return nil, errMalformed
	}
	for _, rr := range m.Answer {
		if t := rr.Header().Rrtype; t == dns.TypeA || t == dns.TypeAAAA {
			if _, ok := addrOf(rr); !ok { // without data, as in an update (RFC 2136)
				return nil, errMalformed
			}
		}
	}
	return m, nil
}

func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

// found is what became of a question.
type found int

const (
	notAsked found = iota
	failed         // could not be asked: err says why
	data           // records are there
	noData         // the name exists, records of the type do not
	noName         // the name does not exist (NXDOMAIN)
	broken         // the records contradict themselves: fault says how
)

// answer is the answer to one question, CNAMEs followed. The zero value: it was not asked.
type answer struct {
	found found
	rrs   []dns.RR // of the type, at the end of the chain
	chain []string // the targets of the CNAMEs on the way, canonical, also where the rest failed
	fault string   // for broken
	err   error    // for failed, a *LookupError
}

// direct reports whether there are records at the name itself, and not where a CNAME leads.
func (a *answer) direct() bool { return a.found == data && len(a.chain) == 0 }

// addrs returns the addresses of an answer, sorted.
func (a *answer) addrs() []netip.Addr {
	var addrs []netip.Addr
	for _, rr := range a.rrs {
		if addr, ok := addrOf(rr); ok {
			addrs = append(addrs, addr)
		}
	}
	return sortedAddrs(addrs)
}

func addrOf(rr dns.RR) (netip.Addr, bool) {
	switch rr := rr.(type) {
	case *dns.A:
		addr, ok := netip.AddrFromSlice(rr.A.To4())
		return addr, ok
	case *dns.AAAA:
		// Not unmapped: ::ffff:192.0.2.1 in an AAAA record reaches nobody.
		addr, ok := netip.AddrFromSlice(rr.AAAA)
		return addr, ok
	}
	return netip.Addr{}, false
}

// lookup asks for the records of one type and follows CNAMEs, at most 8. Servers that follow them give the whole chain
// at once; what is missing at its end is asked for.
func (r *Resolver) lookup(ctx context.Context, name string, qtype uint16) answer {
	at := canonical(name)
	a := answer{}
	seen := map[string]bool{at: true}
	for {
		m, err := r.ask(ctx, at, qtype)
		if err != nil {
			a.found, a.err = failed, err
			return a
		}
		links := len(a.chain)
		if !a.follow(m, &at, seen) {
			if a.found == failed {
				a.err = &LookupError{Name: cut(canonical(name)), Type: dns.TypeToString[qtype], Reason: "it leads through more than 8 CNAMEs, which many resolvers do not follow"}
			}
			return a
		}
		if a.take(m, at, qtype); a.found != notAsked {
			return a
		}
		if len(a.chain) == links {
			a.found = noData
			return a
		}
	}
}

// follow moves at along the CNAMEs in m; what else is in there, of names that nobody asked for, is not looked at. It
// returns false where there is no end.
func (a *answer) follow(m *dns.Msg, at *string, seen map[string]bool) bool {
	for {
		target, err := cnameOf(m, *at)
		if err != nil {
			a.found, a.fault = broken, err.Error()
			return false
		}
		if target == "" {
			return true
		}
		if len(a.chain) == maxChain {
			a.found = failed
			return false
		}
		a.chain = append(a.chain, target)
		if seen[target] {
			a.found, a.fault = broken, "its CNAME records lead in a circle"
			return false
		}
		seen[target] = true
		*at = target
	}
}

// cnameOf returns the target of the CNAME at a name, canonical; empty: there is none.
func cnameOf(m *dns.Msg, name string) (string, error) {
	target := ""
	for _, rr := range m.Answer {
		cname, ok := rr.(*dns.CNAME)
		if !ok || cname.Hdr.Class != dns.ClassINET || canonical(cname.Hdr.Name) != name {
			continue
		}
		to := canonical(cname.Target)
		if to == "" {
			return "", errors.New("its CNAME leads to the root of DNS")
		}
		if target != "" && target != to {
			return "", errors.New("it has more than one CNAME, of which resolvers take any") // RFC 2181 section 10.1
		}
		target = to
	}
	return target, nil
}

// take takes the records at the end of the chain. It leaves found alone where the message does not tell.
func (a *answer) take(m *dns.Msg, at string, qtype uint16) {
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Rrtype == qtype && h.Class == dns.ClassINET && canonical(h.Name) == at {
			a.rrs = append(a.rrs, rr)
		}
	}
	switch {
	case len(a.rrs) > 0:
		a.found = data
	case m.Rcode == dns.RcodeNameError: // of the last name of the chain (RFC 6604 section 3)
		a.found = noName
	}
}
