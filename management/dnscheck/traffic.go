package dnscheck

import (
	"net/netip"
	"slices"
	"strings"
)

// traffic is where the traffic of a name goes, judged against the targets.
type traffic struct {
	verdict Verdict
	records []Record
}

// family is what the name has of one kind of address.
type family struct {
	answer    *answer
	viaTarget bool         // a CNAME of the chain is a target: whatever it resolves to is right
	ours      []netip.Addr // the addresses that are a target's
	stray     []netip.Addr // the others: clients that take one of them miss us

	// known is false where a CNAME target could not be resolved: stray addresses may then be its all the same.
	known bool
}

// judgeTraffic compares. Right is a name all of whose addresses lead to the targets: with one that does not, a part of
// the clients misses us, and with a stray AAAA those with IPv6 do, which prefer it.
//
// Addresses that a CNAME target resolves to are right without the CNAME as well: at an apex DNS providers put them there
// (ALIAS, ANAME, flattening). They may put less than all of them, or rotate.
func (l *look) judgeTraffic(apex bool, cdn string) traffic {
	if len(l.req.Targets) == 0 {
		return traffic{verdict: Verdict{Off, "No target is configured, so it is not compared where the name points."}}
	}
	j := judged{look: l, apex: apex, cdn: cdn, v4: l.family(&l.a, "a"), v6: l.family(&l.aaaa, "aaaa")}
	verdict := j.verdict()
	return traffic{verdict: verdict, records: j.records(verdict.State)}
}

// family sorts addresses into right and wrong.
func (l *look) family(a *answer, kind string) family {
	f := family{answer: a, known: true}
	var right []netip.Addr
	for _, t := range l.req.Targets {
		if t.Type == kind {
			if addr, err := netip.ParseAddr(t.Value); err == nil {
				right = append(right, addr)
			}
		}
	}
	for i := range l.targets {
		t := &l.targets[i]
		f.viaTarget = f.viaTarget || slices.Contains(a.chain, t.name)
		resolved := &t.a
		if kind == "aaaa" {
			resolved = &t.aaaa
		}
		f.known = f.known && resolved.found != failed
		right = append(right, resolved.addrs()...)
	}
	for _, addr := range a.addrs() {
		if f.viaTarget || slices.Contains(right, addr) {
			f.ours = append(f.ours, addr)
		} else {
			f.stray = append(f.stray, addr)
		}
	}
	return f
}

// judged is everything that a verdict and its words are made of.
type judged struct {
	*look
	apex   bool
	cdn    string
	v4, v6 family
}

func (j *judged) verdict() Verdict {
	stray := append(slices.Clone(j.v4.stray), j.v6.stray...)
	ours := append(slices.Clone(j.v4.ours), j.v6.ours...)
	via := j.v4.viaTarget || j.v6.viaTarget
	failure := firstFailure(j.v4.answer, j.v6.answer)
	switch {
	case len(stray) > 0 && (len(j.v4.stray) == 0 || !j.v4.known) && (len(j.v6.stray) == 0 || !j.v6.known):
		return Verdict{Unknown, "The addresses of the target itself could not be asked for, so it cannot be told whether " + j.label() + " points at it. It is asked again."}
	case len(stray) > 0:
		return Verdict{Wrong, j.strayText(stray, ours)}
	case j.v4.answer.found == broken || j.v6.answer.found == broken:
		fault := j.v4.answer.fault
		if fault == "" {
			fault = j.v6.answer.fault
		}
		return Verdict{Wrong, "The records of " + j.label() + " cannot work: " + fault + ". " + j.instruction()}
	case via:
		// The CNAME is right, whatever the rest of the chain does.
		return Verdict{OK, j.viaText(len(ours) > 0, failure)}
	case failure != nil:
		return Verdict{Unknown, "DNS could not be asked for " + j.label() + ": " + failure.Reason + ". Nothing is concluded from that, and it is asked again; if it goes on, look at the name servers of the zone and at DNSSEC."}
	case len(ours) > 0:
		return Verdict{OK, j.oursText()}
	case len(j.chain()) > 0:
		return Verdict{Wrong, j.label() + " is a CNAME of " + cut(last(j.chain())) + ", which has no address and is not where it should lead. " + j.instruction()}
	case j.v4.answer.found == noName:
		return Verdict{Absent, j.absentText("does not exist in DNS")}
	}
	return Verdict{Absent, j.absentText("has no A, AAAA or CNAME record")}
}

// firstFailure returns why one of the questions could not be asked, or nil.
func firstFailure(all ...*answer) *LookupError {
	for _, a := range all {
		if a.found != failed {
			continue
		}
		if e, ok := a.err.(*LookupError); ok {
			return e
		}
	}
	return nil
}

// label is how texts call the name.
func (j *judged) label() string { return j.req.Name }

func (j *judged) absentText(what string) string {
	text := j.label() + " " + what
	if j.wildcard {
		text = "A name under " + j.label() + ", made up for this check, " + what
	}
	return text + " yet. " + j.instruction()
}

// viaText is for a name whose CNAME is right.
func (j *judged) viaText(resolves bool, failure *LookupError) string {
	text := j.label() + " points at the target by its CNAME."
	switch {
	case failure != nil && !resolves:
		text += " The addresses of the target could not be asked for (" + failure.Reason + ")."
	case !resolves:
		text += " But the target itself has no address, so nobody gets there: the operator of this service has to repair that."
	}
	return text
}

// oursText is for a name whose addresses are all right.
func (j *judged) oursText() string {
	text := j.label() + " points at the target by its addresses."
	missing := j.missing()
	if len(missing) > 0 {
		text += " Not all are there; add " + strings.Join(missing, " and ") + "."
	}
	return text
}

// missing returns the records that a name which uses address targets lacks.
func (j *judged) missing() []string {
	if !j.usesAddressTargets() {
		return nil
	}
	var missing []string
	for _, t := range j.req.Targets {
		if t.Type != "cname" && !j.has(t) {
			missing = append(missing, "the "+strings.ToUpper(t.Type)+" record "+t.Value)
		}
	}
	return missing
}

func (j *judged) usesAddressTargets() bool { return slices.ContainsFunc(j.req.Targets, j.has) }

// has reports whether the address of a target is among those of the name itself.
func (j *judged) has(t Target) bool {
	addr, err := netip.ParseAddr(t.Value)
	if err != nil {
		return false
	}
	return t.Type == "a" && slices.Contains(j.v4.ours, addr) || t.Type == "aaaa" && slices.Contains(j.v6.ours, addr)
}

// strayText is for a name of which a part, or all, leads elsewhere.
func (j *judged) strayText(stray, ours []netip.Addr) string {
	elsewhere := addrText(stray)
	var text string
	switch {
	case len(ours) == 0 && len(j.chain()) > 0:
		text = j.label() + " is a CNAME of " + cut(j.chain()[0]) + " and leads to " + elsewhere + ", which is not this service."
	case len(ours) == 0:
		text = j.label() + " points at " + elsewhere + ", which is not this service."
	case len(j.v4.stray) == 0:
		return j.label() + " points at the target, but also has the AAAA record " + elsewhere + ": clients with IPv6 prefer that and miss this service. Remove it" + j.orReplace6() + "."
	default:
		return j.label() + " points at the target, but also at " + elsewhere + ": a part of the clients goes there and misses this service. Remove what is not the target's."
	}
	if j.cdn != "" {
		return text + " It is an address of " + j.cdn + ", which ends TLS itself: switch its proxy off for this name (\"DNS only\"), or take the name out of it. " + j.instruction()
	}
	return text + " " + j.instruction()
}

// orReplace6 says what the AAAA record may be instead.
func (j *judged) orReplace6() string {
	for _, t := range j.req.Targets {
		if t.Type == "aaaa" {
			return ", or replace it with " + t.Value
		}
	}
	return ""
}

// instruction says which records to set, in the order of the targets.
func (j *judged) instruction() string {
	var addresses, names []string
	cnameFirst := j.req.Targets[0].Type == "cname"
	for _, t := range j.req.Targets {
		if t.Type == "cname" {
			names = append(names, t.Value)
		} else {
			addresses = append(addresses, strings.ToUpper(t.Type)+" record "+t.Value)
		}
	}
	byAddress := strings.Join(addresses, " and ")
	byName := strings.Join(names, " or ")
	start := "Set for " + j.label() + " the "
	switch {
	case byName == "":
		return start + byAddress + "."
	case j.apex && byAddress == "":
		return j.label() + " is the top of its zone, where no CNAME can stand: set an ALIAS (or ANAME, or flattened CNAME) record to " + byName + ", or use a name below it, such as www."
	case j.apex:
		return j.label() + " is the top of its zone, where no CNAME can stand: set the " + byAddress + ", or an ALIAS (or ANAME) record to " + byName + "."
	case byAddress == "":
		return start + "CNAME record " + byName + "."
	case cnameFirst:
		return start + "CNAME record " + byName + ", or, where that cannot be, the " + byAddress + "; not both."
	}
	return start + byAddress + ", or instead a CNAME record " + byName + "; not both."
}

// records lists what is expected of the traffic, with what stands in its place.
func (j *judged) records(state State) []Record {
	clean := len(j.v4.stray)+len(j.v6.stray) == 0
	via := (j.v4.viaTarget || j.v6.viaTarget) && clean
	seen4, seen6, chain := addrTexts(j.v4.answer.addrs()), addrTexts(j.v6.answer.addrs()), j.chain()
	if !slices.ContainsFunc(j.req.Targets, func(t Target) bool { return t.Type == "aaaa" }) {
		seen4 = append(seen4, seen6...) // or a stray AAAA would be seen nowhere
	}
	if !slices.ContainsFunc(j.req.Targets, func(t Target) bool { return t.Type == "a" }) {
		seen6 = append(addrTexts(j.v4.answer.addrs()), seen6...)
	}
	hasAddressTargets := slices.ContainsFunc(j.req.Targets, func(t Target) bool { return t.Type != "cname" })
	otherWay := state == OK && !j.usesAddressTargets()
	var records []Record
	for _, t := range j.req.Targets {
		r := Record{Purpose: PurposeTraffic, Type: strings.ToUpper(t.Type), Name: j.req.Name, Value: t.Value}
		switch t.Type {
		case "a":
			r.Seen, r.OK = seen4, j.has(t) && clean || otherWay
		case "aaaa":
			r.Seen, r.OK = seen6, j.has(t) && clean || otherWay
		default:
			if j.apex && hasAddressTargets {
				continue
			}
			if j.apex {
				r.Type = "ALIAS"
			}
			r.OK = state == OK || via
			if r.Seen = chain; len(chain) == 0 {
				r.Seen = addrTexts(append(j.v4.answer.addrs(), j.v6.answer.addrs()...))
			}
		}
		r.Seen = shown(r.Seen)
		records = append(records, r)
	}
	return records
}

func addrTexts(addrs []netip.Addr) []string {
	texts := make([]string, len(addrs))
	for i, addr := range addrs {
		texts[i] = addr.String()
	}
	return texts
}

// addrText lists addresses in a sentence.
func addrText(addrs []netip.Addr) string {
	const most = 4
	texts := addrTexts(addrs[:min(len(addrs), most)])
	if len(addrs) > most {
		texts = append(texts, "others")
	}
	if len(texts) <= 1 {
		return strings.Join(texts, "")
	}
	return strings.Join(texts[:len(texts)-1], ", ") + " and " + texts[len(texts)-1]
}

func last(list []string) string { return list[len(list)-1] }
