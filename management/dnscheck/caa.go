package dnscheck

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// caaSet is the relevant CAA record set of a name (RFC 8659 section 3).
type caaSet struct {
	at      string // the name that has it; empty: none has
	records []*dns.CAA
	err     *LookupError // could not be asked for
	fault   string       // contradicting records on the way
}

// caaClimb bounds the climb: names that CAs issue for have at most about ten labels.
const caaClimb = 24

// lookupCAA asks for CAA at name and, where there is none, at its parents, up to the top-level domain. CNAMEs are
// followed at each, but it is not climbed from where they lead.
func (r *Resolver) lookupCAA(ctx context.Context, name string) caaSet {
	at := name
	for range caaClimb {
		a := r.lookup(ctx, at, dns.TypeCAA)
		switch a.found {
		case failed:
			return caaSet{at: at, err: firstFailure(&a)}
		case broken:
			return caaSet{at: at, fault: a.fault}
		case data:
			set := caaSet{at: at}
			for _, rr := range a.rrs {
				if caa, ok := rr.(*dns.CAA); ok {
					set.records = append(set.records, caa)
				}
			}
			return set
		}
		var more bool
		if _, at, more = strings.Cut(at, "."); !more {
			return caaSet{}
		}
	}
	return caaSet{at: at, err: &LookupError{Name: cut(name), Type: "CAA", Reason: "the name has too many labels"}}
}

// judge says whether one of the issuers may issue for the name (RFC 8659 section 4).
func (s *caaSet) judge(issuers []string, wildcard bool, name string) Verdict {
	switch {
	case len(issuers) == 0:
		return Verdict{Off, "No issuer is configured, so CAA records are not compared."}
	case s.err != nil:
		return Verdict{Unknown, "DNS could not be asked for the CAA records of " + cut(s.at) + ": " + s.err.Reason + ". Certificate authorities issue nothing while they cannot ask; look at the name servers of the zone and at DNSSEC."}
	case s.fault != "":
		return Verdict{Wrong, "The records of " + cut(s.at) + " cannot work: " + s.fault + ". Certificate authorities cannot ask for CAA records there."}
	case s.at == "":
		return Verdict{OK, "No CAA record restricts who may issue a certificate for " + name + "."}
	}
	tag, values, unknown := s.property(wildcard)
	if unknown != "" {
		return Verdict{Wrong, "The CAA records at " + cut(s.at) + " have the critical property " + unknown + ", which certificate authorities do not know and therefore issue nothing. Remove it."}
	}
	if tag == "" {
		return Verdict{OK, "The CAA records at " + cut(s.at) + " restrict nobody for " + name + "."}
	}
	var method, account bool
	for _, value := range values {
		issuer := parseIssuer(value)
		if !slices.ContainsFunc(issuers, func(s string) bool { return strings.EqualFold(s, issuer.domain) }) {
			continue
		}
		if !issuer.methodFits() {
			method = true
			continue
		}
		if account = issuer.account; !account {
			return Verdict{OK, "The CAA records at " + cut(s.at) + " allow " + issuer.domain + " to issue."}
		}
	}
	add := `. Add there: CAA 0 ` + tag + ` "` + issuers[0] + `"`
	switch {
	case account:
		return Verdict{OK, "The CAA records at " + cut(s.at) + " allow one account of the certificate authority only (accounturi). If no certificate comes, it is another account than this service's" + add + "."}
	case method:
		return Verdict{Wrong, "The CAA records at " + cut(s.at) + " allow the certificate authority only validation methods that this service does not use (validationmethods without http-01 and tls-alpn-01)" + add + "."}
	}
	return Verdict{Wrong, "The CAA records at " + cut(s.at) + " allow " + allowed(values) + " to issue for " + name + ", which this service does not use" + add + "."}
}

// property returns the values that decide: of issuewild for a wildcard, where there is any, else of issue. tag is empty
// where none restricts. unknown is a critical property that no CA is bound to know.
func (s *caaSet) property(wildcard bool) (tag string, values []string, unknown string) {
	byTag := make(map[string][]string)
	for _, caa := range s.records {
		switch tag := strings.ToLower(caa.Tag); tag {
		case "issue", "issuewild":
			byTag[tag] = append(byTag[tag], caa.Value)
		case "iodef", "contactemail", "contactphone", "issuemail", "issuevmc":
		default:
			if caa.Flag&0x80 != 0 {
				return "", nil, printable(caa.Tag)
			}
		}
	}
	if wildcard && byTag["issuewild"] != nil {
		return "issuewild", byTag["issuewild"], ""
	}
	if byTag["issue"] != nil {
		return "issue", byTag["issue"], ""
	}
	return "", nil, ""
}

// caaIssuer is the value of an issue or issuewild property (RFC 8659 section 4.2).
type caaIssuer struct {
	domain  string   // empty: nobody, also for a value that is malformed
	methods []string // of the parameter validationmethods (RFC 8657 section 4); nil: any
	account bool     // the parameter accounturi (section 3) is there
}

func parseIssuer(value string) caaIssuer {
	parts := strings.Split(value, ";")
	issuer := caaIssuer{domain: strings.Trim(parts[0], " \t")}
	if strings.ContainsFunc(issuer.domain, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }) {
		return caaIssuer{}
	}
	for _, part := range parts[1:] {
		tag, value, _ := strings.Cut(strings.Trim(part, " \t"), "=")
		switch strings.ToLower(strings.Trim(tag, " \t")) {
		case "accounturi":
			issuer.account = true
		case "validationmethods":
			issuer.methods = append(issuer.methods, strings.Split(strings.Trim(value, " \t"), ",")...)
		}
	}
	return issuer
}

// methodFits reports whether edges can validate by one of the methods: they answer over HTTP and TLS, and set no DNS.
func (i *caaIssuer) methodFits() bool {
	return i.methods == nil || slices.ContainsFunc(i.methods, func(m string) bool {
		m = strings.ToLower(strings.Trim(m, " \t"))
		return m == "http-01" || m == "tls-alpn-01"
	})
}

// allowed lists whom values allow.
func allowed(values []string) string {
	var domains []string
	for _, value := range values {
		if domain := parseIssuer(value).domain; domain != "" && !slices.Contains(domains, domain) {
			domains = append(domains, cut(domain))
		}
	}
	if len(domains) == 0 {
		return "nobody"
	}
	const most = 4
	if len(domains) > most {
		domains = append(domains[:most], "others")
	}
	return "only " + strings.Join(domains, ", ")
}

// printable quotes what came from outside as it is.
func printable(s string) string { return cut(strconv.QuoteToASCII(s)) }
