package management

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// object is a JSON object as a tree of objects, []any, string, json.Number, bool and nil.
type object = map[string]any

// maxNesting is how deep a document may go: a domain goes five deep.
const maxNesting = 32

var errNoObject = Errorf(Malformed, "The body is not one JSON object.")

// readObject reads one JSON object and nothing behind it. A member that is there twice is a fault: two readers could take
// different ones.
func readObject(text []byte) (object, error) {
	if !utf8.Valid(text) {
		return nil, Errorf(Malformed, "The body is not UTF-8.")
	}
	r := treeReader{json.NewDecoder(bytes.NewReader(text)), nil}
	r.UseNumber()
	v, err := r.value("", 0)
	if err != nil {
		return nil, errNoObject
	}
	if _, err := r.Token(); !errors.Is(err, io.EOF) {
		return nil, errNoObject
	}
	tree, ok := v.(object)
	if !ok {
		return nil, errNoObject
	}
	return tree, refuse(r.faults...)
}

type treeReader struct {
	*json.Decoder
	faults []*Fault
}

func (r *treeReader) value(at string, depth int) (any, error) {
	token, err := r.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		tree := object{}
		for r.More() {
			key, err := r.Token()
			if err != nil {
				return nil, err
			}
			name := key.(string) // Token returns nothing else there
			pointer := at + "/" + shownKey(name)
			if _, twice := tree[name]; twice && len(r.faults) < 64 {
				r.faults = append(r.faults, &Fault{pointer, "is given twice; keep one"})
			}
			if tree[name], err = r.below(pointer, depth); err != nil {
				return nil, err
			}
		}
		_, err = r.Token()
		return tree, err
	case json.Delim('['):
		list := []any{}
		for r.More() {
			v, err := r.below(at+"/"+strconv.Itoa(len(list)), depth)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = r.Token()
		return list, err
	}
	return token, nil
}

func (r *treeReader) below(at string, depth int) (any, error) {
	if depth == maxNesting {
		return nil, errNoObject
	}
	return r.value(at, depth+1)
}

// shownKey returns a member's name as a pointer shows it: only one that could be ours is told back.
func shownKey(name string) string {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && c != '_' {
			return "…"
		}
	}
	if name == "" || len(name) > 32 {
		return "…"
	}
	return name
}

// merge applies a merge patch (RFC 7396 section 2) to a tree, which it changes. Lists of the patch become part of it.
func merge(tree object, patch object) object {
	if tree == nil {
		tree = object{}
	}
	for key, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(tree, key)
		case object:
			below, _ := tree[key].(object)
			tree[key] = merge(below, v) // a new object where there was none, so that its nulls go too
		default:
			tree[key] = v
		}
	}
	return tree
}

// mergeable are the members that a merge patch can remove, by the object they are in: a null elsewhere would be taken for
// the removal of what never was there.
var mergeable = map[string][]string{
	"":             {"name", "upstreams", "load_balancing", "health_check", "proxy_protocol", "post_quantum", "alpn", "certificate", "max_connections", "suspended"},
	"health_check": {"type", "interval", "timeout", "rise", "fall"},
	"certificate":  {"source", "chain_pem", "key_pem", "fallback"},
}

// unknownNulls returns the faults of a patch that removes members which no domain has.
func unknownNulls(in string, patch object) (faults []*Fault) {
	at := ""
	if in != "" {
		at = "/" + in
	}
	for _, key := range slices.Sorted(maps.Keys(patch)) {
		switch v := patch[key].(type) {
		case nil:
			if !slices.Contains(mergeable[in], key) {
				faults = append(faults, &Fault{at + "/" + shownKey(key), unknownMember})
			}
		case object:
			if in == "" && mergeable[key] != nil {
				faults = append(faults, unknownNulls(key, v)...)
			}
		}
	}
	return faults
}

const unknownMember = "is unknown here; remove it or correct its spelling"

// settings are what a body asks for.
type settings struct {
	domain *domain.Domain // in normal form, without the pair
	chain  string         // the pair that came with it; empty: none did
	key    string
}

// stored stands for a pair that the domain has already.
const stored = "stored"

// parseSettings makes settings of a tree. With hasPair, a byoc domain keeps the pair that it has unless the tree brings one.
func (p *Plane) parseSettings(tree object, tenantID string, hasPair bool) (*settings, error) {
	var faults []*Fault
	for _, key := range []string{"tenant", "id", "revision", "created_at", "updated_at", "status", "serving", "stuck", "next_action", "records", "axes"} {
		if _, given := tree[key]; given {
			faults = append(faults, &Fault{"/" + key, "is set by the service; leave it out"})
			delete(tree, key)
		}
	}
	tree["tenant"] = tenantID
	certificate, _ := tree["certificate"].(object)
	kept := hasPair && certificate["source"] == string(domain.BYOC) && certificate["chain_pem"] == nil && certificate["key_pem"] == nil
	if kept {
		certificate["chain_pem"], certificate["key_pem"] = stored, stored
	}
	text, err := json.Marshal(tree)
	if err != nil {
		return nil, err
	}
	d, err := domain.Parse(text, domain.Remote)
	if err != nil {
		return nil, refuse(append(faults, domainFaults(err, "")...)...)
	}
	s := &settings{domain: d}
	if !kept {
		s.chain, s.key = d.Certificate.ChainPEM, d.Certificate.KeyPEM
	}
	d.Certificate.ChainPEM, d.Certificate.KeyPEM = "", ""
	return s, refuse(append(faults, p.settingsFaults(d)...)...)
}

// settingsFaults returns what the operator's configuration has against a domain.
func (p *Plane) settingsFaults(d *domain.Domain) (faults []*Fault) {
	if !slices.Contains(p.cfg.CertificateSources, d.Certificate.Source) {
		faults = append(faults, &Fault{"/certificate/source", "is not offered by this service; give " + p.sourcesText()})
	}
	for i, u := range d.Upstreams {
		if err := p.cfg.UpstreamPolicy.CheckDial(u.Dial); err != nil {
			faults = append(faults, &Fault{"/upstreams/" + strconv.Itoa(i) + "/dial", deniedText(err)})
		}
	}
	if p.resolver.PublicSuffix(strings.TrimPrefix(d.Name, "*.")) {
		faults = append(faults, &Fault{"/name", "is a name under which anybody can register names, so it is nobody's; give one below it"})
	}
	return faults
}

func (p *Plane) sourcesText() string {
	var words []string
	for _, s := range p.cfg.CertificateSources {
		words = append(words, string(s))
	}
	return strings.Join(words, " or ")
}

// deniedText says why an upstream is refused, without the address and without what the operator could configure.
func deniedText(err error) string {
	const todo = "; give a public address, or ask the operator to allow it"
	if denied, ok := errors.AsType[*netpolicy.DeniedError](err); ok && denied.Class != "" {
		return "is an address that this service does not connect to (" + denied.Class + ")" + todo
	}
	return "is an address that this service does not connect to" + todo
}

// ownName reports whether a name is the service's: the console's, or what customers point their names at. It points at the
// edges by itself, which must not prove that it is a customer's.
func (p *Plane) ownName(name string) bool {
	own := make([]string, 0, len(p.cfg.Targets)+1)
	if p.cfg.PublicURL != nil {
		own = append(own, p.cfg.PublicURL.Hostname())
	}
	for _, t := range p.cfg.Targets {
		if t.Type == "cname" {
			own = append(own, t.Value)
		}
	}
	return slices.ContainsFunc(own, func(o string) bool {
		normal, err := domain.NormalName(o)
		if err != nil {
			return false
		}
		wildcard, _ := domain.WildcardOf(normal)
		return name == normal || name == wildcard
	})
}

// domainFaults makes faults of what package domain found. below is the field that the body is: with "certificate", what is
// at certificate.key_pem there is at /key_pem here.
func domainFaults(err error, below string) []*Fault {
	all := domain.Errors(err)
	if len(all) == 0 {
		return []*Fault{{"", "cannot be read"}}
	}
	faults := make([]*Fault, 0, len(all))
	for _, e := range all {
		pointer := pointerOf(e.Field)
		if below != "" {
			pointer = strings.TrimPrefix(pointer, "/"+below)
		}
		faults = append(faults, &Fault{pointer, withoutInput(e)})
	}
	return faults
}

// pointerOf makes a JSON pointer of a path such as upstreams[0].tls.ca_pem.
func pointerOf(field string) string {
	if strings.Contains(field, `"`) { // a member's name that is none of ours: up to it
		field = strings.TrimSuffix(field[:strings.Index(field, `"`)], ".") + ".…"
	}
	var b strings.Builder
	for part := range strings.FieldsFuncSeq(field, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		b.WriteString("/")
		if part[0] >= '0' && part[0] <= '9' {
			b.WriteString(part)
		} else {
			b.WriteString(shownKey(part))
		}
	}
	return b.String()
}

var (
	// quotedInput finds what package domain quotes of a record: it stands behind a space or begins the text. Its own examples
	// stand in brackets.
	quotedInput = regexp.MustCompile(`(^| )"(?:[^"\\]|\\.)*"(?:\.\.\.)?`)
	givenNumber = regexp.MustCompile(`^is -?[0-9]+;`)
)

// withoutInput returns what is wrong without what was given: answers go into logs and pages that the value was not meant for.
// The names in a certificate, which anybody can see, stay: without them nobody finds the right file.
func withoutInput(e *domain.Error) string {
	text := e.Err.Error()
	if e.Field == "certificate.chain_pem" && !strings.Contains(text, "PEM") && !strings.Contains(text, " block") {
		return text
	}
	text = quotedInput.ReplaceAllString(text, "${1}this")
	return givenNumber.ReplaceAllString(text, "is out of range;")
}

// sameSettings reports whether two domains in normal form say the same.
func sameSettings(a, b *domain.Domain) bool { return bytes.Equal(a.AppendJSON(nil), b.AppendJSON(nil)) }
