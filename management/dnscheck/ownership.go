package dnscheck

import (
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// judgeOwnership compares the texts at _pqproxy.NAME; for a wildcard, at that of the name below the star. CNAMEs are
// followed, as in ACME's DNS-01: whoever can set one there decides about the name. The record is nil where none was
// asked for.
func (l *look) judgeOwnership() (Verdict, *Record) {
	if l.req.Ownership == "" {
		return Verdict{Off, "No record was asked for."}, nil
	}
	if l.ownership == "" {
		return Verdict{Off, "The name is too long for a record at _pqproxy." + l.base + "; prove it over HTTP."}, nil
	}
	texts := textsOf(&l.txt)
	record := &Record{Purpose: PurposeOwnership, Type: "TXT", Name: l.ownership, Value: l.req.Ownership, Seen: shown(texts)}
	set := "Set at " + l.ownership + " a TXT record with the value given."
	switch {
	case l.txt.found == failed:
		failure := firstFailure(&l.txt)
		return Verdict{Unknown, "DNS could not be asked for the TXT record at " + l.ownership + ": " + failure.Reason + ". Nothing is concluded from that, and it is asked again."}, record
	case l.txt.found == broken:
		return Verdict{Wrong, "The records of " + l.ownership + " cannot work: " + l.txt.fault + ". " + set}, record
	case slices.Contains(texts, l.req.Ownership):
		record.OK = true
		return Verdict{OK, "The TXT record at " + l.ownership + " is right."}, record
	case len(texts) == 0:
		return Verdict{Absent, "There is no TXT record at " + l.ownership + " yet. " + set}, record
	case slices.ContainsFunc(texts, func(s string) bool { return strings.Trim(s, `\"' `) == l.req.Ownership }):
		return Verdict{Wrong, "The TXT record at " + l.ownership + " has quotes or spaces around its value, which are taken as a part of it. Remove them."}, record
	}
	return Verdict{Wrong, "The TXT record at " + l.ownership + " has another value. " + set + " Other TXT records beside it do no harm."}, record
}

// textsOf returns the texts of TXT records, the strings of each joined: providers split long ones. Package dns has escaped
// what is not printable ASCII.
func textsOf(a *answer) []string {
	var texts []string
	for _, rr := range a.rrs {
		if txt, ok := rr.(*dns.TXT); ok {
			texts = append(texts, strings.Join(txt.Txt, ""))
		}
	}
	slices.Sort(texts)
	return texts
}
