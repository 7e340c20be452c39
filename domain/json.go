package domain

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Parse reads a record that src gave: one JSON object and nothing behind it, at most MaxSize bytes. The
// names of fields are compared exactly. Unknown fields, fields given twice, values of another type (null
// too), and text that is not UTF-8 are faults. The result is in normal form; see Normalize for its rules.
//
// On failure it returns nil and all faults of the record, joined: see Error and Errors.
func Parse(data []byte, src Source) (*Domain, error) {
	var f, semantic faults
	d := decode(data, MaxSize, &f)
	name := normalize(&d, src, &semantic)
	f.merge(&semantic)
	if err := f.err(name); err != nil {
		return nil, err
	}
	return &d, nil
}

// UnmarshalJSON reads JSON with the strictness of Parse, whatever decoder calls it, and judges no values:
// call Normalize before using d. On failure d stays as it was.
//
// A decoder that read the text into a map before, as Caddy does with its configuration, has already
// dropped fields given twice.
func (d *Domain) UnmarshalJSON(data []byte) error {
	var f faults
	read := decode(data, MaxSize, &f)
	if err := f.err(recordName(read.Name)); err != nil {
		return err
	}
	*d = read
	return nil
}

// Reread reads what AppendJSON wrote. Unlike UnmarshalJSON it takes any length: normal form may be longer than what came in,
// and so may be what is in the files that a static domain names.
func Reread(text []byte) (*Domain, error) {
	var f faults
	d := decode(text, len(text), &f)
	if err := f.err(recordName(d.Name)); err != nil {
		return nil, err
	}
	return &d, nil
}

// recordName returns what errors call the record that gives this name.
func recordName(name string) string {
	if normal, err := NormalName(name); err == nil {
		return normal
	}
	return shorten(name)
}

// decode reads as much of data, which may have so many bytes, as can be understood and reports the rest to f.
func decode(data []byte, most int, f *faults) (d Domain) {
	if err := checkSyntax(data, most); err != nil {
		f.add("", err)
		return d
	}
	r := decoder{data: data, faults: f}
	r.domain(&d)
	return d
}

// checkSyntax returns nil if data is one JSON text. encoding/json limits its nesting, and decoder goes no
// deeper than the fields of a domain do.
func checkSyntax(data []byte, most int) error {
	if len(data) > most {
		return fmt.Errorf("the record has %d bytes, more than the %d allowed; shorten its PEM texts", len(data), most)
	}
	// RFC 8259 section 8.1 asks for UTF-8; encoding/json would replace what is not.
	if !utf8.Valid(data) {
		return errors.New("the record is not UTF-8 text; encode it as UTF-8")
	}
	if json.Valid(data) {
		return nil
	}
	var text json.RawMessage
	err := json.Unmarshal(data, &text)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("the record is not one JSON object: byte %d: %w", syntax.Offset, err)
	}
	return err
}

// decoder reads a domain from JSON. encoding/json cannot: it takes "NAME" for "name", the last of two
// values, and null for anything, stops at the first fault, and does not say in which element it is.
type decoder struct {
	data []byte // has passed checkSyntax, so no method looks for bad syntax again
	pos  int
	*faults
}

func (r *decoder) domain(d *Domain) {
	r.object(func(key string) bool {
		switch key {
		case "name":
			r.string(&d.Name)
		case "tenant":
			r.string(&d.Tenant)
		case "upstreams":
			r.array(func() {
				d.Upstreams = append(d.Upstreams, Upstream{})
				r.upstream(&d.Upstreams[len(d.Upstreams)-1])
			})
		case "load_balancing":
			readWord(r, &d.LoadBalancing)
		case "health_check":
			d.HealthCheck = new(HealthCheck)
			r.healthCheck(d.HealthCheck)
		case "proxy_protocol":
			readWord(r, &d.ProxyProtocol)
		case "post_quantum":
			readWord(r, &d.PostQuantum)
		case "alpn":
			r.array(func() {
				var name string
				readWord(r, &name)
				d.ALPN = append(d.ALPN, name)
			})
		case "certificate":
			r.certificate(&d.Certificate)
		case "max_connections":
			r.int(&d.MaxConnections)
		case "suspended":
			r.bool(&d.Suspended)
		default:
			return false
		}
		return true
	})
}

func (r *decoder) upstream(u *Upstream) {
	r.object(func(key string) bool {
		switch key {
		case "dial":
			r.string(&u.Dial)
		case "tls":
			u.TLS = new(UpstreamTLS)
			r.upstreamTLS(u.TLS)
		case "region":
			r.string(&u.Region)
		default:
			return false
		}
		return true
	})
}

func (r *decoder) upstreamTLS(t *UpstreamTLS) {
	r.object(func(key string) bool {
		switch key {
		case "server_name":
			r.string(&t.ServerName)
		case "ca_pem":
			r.string(&t.CAPEM)
		case "ca_file":
			r.string(&t.CAFile)
		case "post_quantum":
			readWord(r, &t.PostQuantum)
		case "insecure_skip_verify":
			r.bool(&t.InsecureSkipVerify)
		default:
			return false
		}
		return true
	})
}

func (r *decoder) healthCheck(h *HealthCheck) {
	r.object(func(key string) bool {
		switch key {
		case "type":
			readWord(r, &h.Type)
		case "interval":
			r.duration(&h.Interval)
		case "timeout":
			r.duration(&h.Timeout)
		case "rise":
			r.int(&h.Rise)
		case "fall":
			r.int(&h.Fall)
		default:
			return false
		}
		return true
	})
}

func (r *decoder) certificate(c *Certificate) {
	r.object(func(key string) bool {
		switch key {
		case "source":
			readWord(r, &c.Source)
		case "chain_pem":
			r.string(&c.ChainPEM)
		case "key_pem":
			r.string(&c.KeyPEM)
		case "chain_file":
			r.string(&c.ChainFile)
		case "key_file":
			r.string(&c.KeyFile)
		case "fallback":
			readWord(r, &c.Fallback)
		default:
			return false
		}
		return true
	})
}

// object reads an object. member reads the value of a field it knows and returns true, or returns false
// and reads nothing.
func (r *decoder) object(member func(key string) bool) {
	if !r.is('{', "an object") {
		return
	}
	r.pos++
	seen := make([]string, 0, 10) // fields known to member only, so few that a linear search is best
	for c := r.next(); c != '}'; c = r.next() {
		if c == ',' {
			r.pos++
			r.next()
		}
		key := r.word()
		r.next()
		r.pos++ // the colon
		mark := r.enter(pathKey(key))
		if slices.Contains(seen, key) {
			r.addf("", "the field is given twice; keep one")
			r.skip()
		} else if member(key) {
			seen = append(seen, key)
		} else {
			r.addf("", "unknown field; remove it or correct its spelling (upper and lower case differ)")
			r.skip()
		}
		r.leave(mark)
	}
	r.pos++
}

// array reads an array; element reads one value.
func (r *decoder) array(element func()) {
	if !r.is('[', "an array") {
		return
	}
	r.pos++
	i := 0
	for c := r.next(); c != ']'; c = r.next() {
		if c == ',' {
			r.pos++
		}
		mark := r.index(i)
		element()
		r.leave(mark)
		i++
	}
	r.pos++
}

func (r *decoder) string(to *string) {
	if r.is('"', "a string") {
		*to = r.text()
	}
}

// readWord is string for what is mostly one of words.
func readWord[T ~string](r *decoder, to *T) {
	if r.is('"', "a string") {
		*to = T(r.word())
	}
}

func (r *decoder) bool(to *bool) {
	if c := r.next(); c == 't' || c == 'f' {
		*to = c == 't'
		r.skip()
		return
	}
	r.wrongType("true or false")
}

func (r *decoder) int(to *int) {
	if c := r.next(); c != '-' && (c < '0' || c > '9') {
		r.wrongType("a whole number")
		return
	}
	start := r.pos
	r.skip()
	n, err := strconv.Atoi(string(r.data[start:r.pos]))
	if err != nil {
		r.addf("", "must be a whole number up to %d, in digits only", math.MaxInt)
		return
	}
	*to = n
}

func (r *decoder) duration(to *Duration) {
	if c := r.next(); c == '-' || '0' <= c && c <= '9' {
		r.addf("", "must be a duration, not a number; %s", howDuration)
		r.skip()
		return
	}
	if !r.is('"', "a duration") {
		return
	}
	d, err := parseDuration(r.word())
	if err != nil {
		r.add("", err)
		return
	}
	*to = d
}

// is reports whether the next value begins with c; else it reports a fault and skips the value.
func (r *decoder) is(c byte, want string) bool {
	if r.next() == c {
		return true
	}
	r.wrongType(want)
	return false
}

func (r *decoder) wrongType(want string) {
	var got string
	switch r.next() {
	case 'n':
		r.addf("", "must be %s, not null; leave the field out to get its default", want)
		r.skip()
		return
	case '{':
		got = "an object"
	case '[':
		got = "an array"
	case '"':
		got = "a string"
	case 't', 'f':
		got = "a boolean"
	default:
		got = "a number"
	}
	r.addf("", "must be %s, not %s", want, got)
	r.skip()
}

// next goes over white space and returns the byte there.
func (r *decoder) next() byte {
	for {
		switch c := r.data[r.pos]; c {
		case ' ', '\t', '\r', '\n':
			r.pos++
		default:
			return c
		}
	}
}

// skip goes over one value.
func (r *decoder) skip() {
	depth := 0
	for {
		switch r.next() {
		case '"':
			r.quoted()
		case '{', '[':
			depth++
			r.pos++
		case '}', ']':
			depth--
			r.pos++
		case ',', ':':
			r.pos++
		default:
			r.literal()
		}
		if depth == 0 {
			return
		}
	}
}

// literal goes over a number, true, false or null.
func (r *decoder) literal() {
	for r.pos < len(r.data) {
		switch r.data[r.pos] {
		case ' ', '\t', '\r', '\n', ',', ':', ']', '}':
			return
		}
		r.pos++
	}
}

// quoted goes over a string and returns it with its quotation marks.
func (r *decoder) quoted() (raw []byte, escaped bool) {
	start := r.pos
	for r.pos++; r.data[r.pos] != '"'; r.pos++ {
		if r.data[r.pos] == '\\' {
			escaped = true
			r.pos++
		}
	}
	r.pos++
	return r.data[start:r.pos], escaped
}

// text reads a string.
func (r *decoder) text() string { return r.unquoted(r.quoted()) }

// word reads a string that is mostly one of words.
func (r *decoder) word() string {
	raw, escaped := r.quoted()
	if word, ok := words[string(raw[1:len(raw)-1])]; ok { // none has an escape
		return word
	}
	return r.unquoted(raw, escaped)
}

// unquoted returns the text of what quoted returned.
func (r *decoder) unquoted(raw []byte, escaped bool) string {
	if !escaped {
		return string(raw[1 : len(raw)-1])
	}
	var s string // declared here, since json makes it escape
	if err := json.Unmarshal(raw, &s); err != nil {
		r.add("", err)
	}
	return s
}

// words are the texts that every record has: the fields' names and the values of closed sets. Sharing them
// saves half of the allocations of reading a record, and a million records keep no copies of them.
var words = func() map[string]string {
	m := make(map[string]string)
	for _, list := range [][]string{
		{"name", "tenant", "upstreams", "load_balancing", "health_check", "proxy_protocol", "post_quantum", "alpn", "certificate", "max_connections", "suspended"},
		{"dial", "tls", "region"},
		{"server_name", "ca_pem", "ca_file", "insecure_skip_verify"},
		{"type", "interval", "timeout", "rise", "fall", string(HealthTCP), "10s", "5s"},
		{"source", "chain_pem", "key_pem", "chain_file", "key_file", "fallback"},
		{string(Prefer), string(Require), string(Off)},
		{string(First), string(Random), string(LeastConn), string(IPHash)},
		{string(ProxyV1), string(ProxyV2)},
		{string(ACME), string(Internal), string(BYOC), FallbackNone},
		{"h2", "http/1.1"},
	} {
		for _, word := range list {
			m[word] = word
		}
	}
	return m
}()

// pathKey returns key as a field's path shows it: a field that we do not know may have any name.
func pathKey(key string) string {
	if key == "" || len(key) > maxQuoted {
		return quote(key)
	}
	for _, c := range []byte(key) {
		if c != '_' && c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return quote(key)
		}
	}
	return key
}
