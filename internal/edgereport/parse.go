package edgereport

import (
	"errors"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pace"
)

// Parse reads a report, which ends with r. What it returns keeps to all bounds and is in normal form: names of domains as
// domain.NormalName has them, times in UTC, minutes whole, free text printable and cut to its bound. Its error is
// ErrTooLarge, the reader's, or an *Error with the first fault.
//
// A member that is given twice is a fault. Members that are not known are IGNORED, unlike in a domain: an edge may be newer
// than its management plane, and what it knows to tell beyond this must not keep the rest from being counted. For the
// same reason the words of end reasons, groups and states are not compared with a list.
func Parse(r io.Reader) (*Report, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxSize {
		return nil, ErrTooLarge
	}
	if !utf8.Valid(data) {
		return nil, &Error{Malformed: true, Err: errors.New("it is not UTF-8 text")}
	}
	p := &parser{data: data, pace: pace.Pace{Free: -1}, texts: make(map[string]string), names: make(map[string]string)}
	report := new(Report)
	object(p, report, reportFields)
	if p.err == nil && p.next() != 0 {
		p.syntax("something follows the report")
	}
	if p.err != nil {
		return nil, p.err
	}
	return report, nil
}

var reportFields = []field[Report]{
	{"edge", true, func(p *parser, r *Report) { object(p, &r.Edge, edgeFields) }},
	{"sequence", true, func(p *parser, r *Report) {
		if r.Sequence = uint64(p.count(maxCount)); r.Sequence == 0 {
			p.fault("must be 1 or more")
		}
	}},
	{"sent_at", true, func(p *parser, r *Report) { r.SentAt = p.time() }},
	{"revision", false, func(p *parser, r *Report) { r.Revision = uint64(p.count(maxCount)) }},
	{"draining", false, func(p *parser, r *Report) { r.Draining = p.bool() }},
	{"live_connections", false, func(p *parser, r *Report) { r.LiveConnections = p.count(maxEvents) }},
	{"rejected", false, func(p *parser, r *Report) { objects(p, MaxStates, &r.Rejected, rejectedFields) }},
	{"certificates", false, func(p *parser, r *Report) { objects(p, MaxStates, &r.Certificates, certificateFields) }},
	{"upstreams", false, func(p *parser, r *Report) { objects(p, MaxStates, &r.Upstreams, upstreamFields) }},
	{"counters", false, func(p *parser, r *Report) { objects(p, MaxCounters, &r.Counters, counterFields) }},
	{"connections", false, func(p *parser, r *Report) { objects(p, MaxConnections, &r.Connections, connectionFields) }},
	{"dropped", false, func(p *parser, r *Report) { r.Dropped = p.count(maxEvents) }},
}

var edgeFields = []field[Edge]{
	{"name", true, func(p *parser, e *Edge) {
		if e.Name = p.exact(MaxName); e.Name == "" {
			p.fault("is empty")
		}
	}},
	{"region", false, func(p *parser, e *Edge) { e.Region = p.exact(MaxName) }},
	{"version", false, func(p *parser, e *Edge) { e.Version = p.text(64) }},
	{"started_at", true, func(p *parser, e *Edge) { e.StartedAt = p.time().Truncate(time.Millisecond) }},
}

var rejectedFields = []field[Rejected]{
	{"name", true, func(p *parser, r *Rejected) { r.Name = p.name() }},
	{"field", false, func(p *parser, r *Rejected) { r.Field = p.text(MaxText) }},
	{"detail", false, func(p *parser, r *Rejected) { r.Detail = p.text(MaxText) }},
}

var certificateFields = []field[CertificateState]{
	{"name", true, func(p *parser, c *CertificateState) { c.Name = p.name() }},
	{"source", false, func(p *parser, c *CertificateState) { c.Source = p.term() }},
	{"issuer", false, func(p *parser, c *CertificateState) { c.Issuer = p.text(MaxText) }},
	{"not_after", false, func(p *parser, c *CertificateState) { at := p.time(); c.NotAfter = &at }},
	{"state", true, func(p *parser, c *CertificateState) { c.State = p.term() }},
	{"error", false, func(p *parser, c *CertificateState) { c.Error = p.text(MaxText) }},
}

var upstreamFields = []field[UpstreamState]{
	{"domain", true, func(p *parser, u *UpstreamState) { u.Domain = p.name() }},
	{"dial", true, func(p *parser, u *UpstreamState) { u.Dial = p.exact(MaxDial) }},
	{"healthy", true, func(p *parser, u *UpstreamState) { u.Healthy = p.bool() }},
	{"error", false, func(p *parser, u *UpstreamState) { u.Error = p.text(MaxText) }},
}

var counterFields = []field[Counter]{
	{"domain", true, func(p *parser, c *Counter) { c.Domain = p.name() }},
	{"tenant", false, func(p *parser, c *Counter) { c.Tenant = p.exact(MaxName) }},
	{"minute", true, func(p *parser, c *Counter) { c.Minute = p.time().Truncate(time.Minute) }},
	{"connections", false, func(p *parser, c *Counter) { c.Connections = p.count(maxEvents) }},
	{"bytes_in", false, func(p *parser, c *Counter) { c.BytesIn = p.count(maxBytes) }},
	{"bytes_out", false, func(p *parser, c *Counter) { c.BytesOut = p.count(maxBytes) }},
	{"groups", false, func(p *parser, c *Counter) { c.Groups = p.counts(MaxGroups, isGroup) }},
	{"end_reasons", false, func(p *parser, c *Counter) { c.EndReasons = p.counts(MaxEndReasons, isWord) }},
	{"hello_retries", false, func(p *parser, c *Counter) { c.HelloRetries = p.count(maxEvents) }},
	{"handshake_buckets", false, func(p *parser, c *Counter) { c.Handshakes = p.buckets() }},
}

var connectionFields = []field[Connection]{
	{"time", true, func(p *parser, c *Connection) { c.Time = p.time() }},
	{"id", true, func(p *parser, c *Connection) { c.ID = p.id() }},
	{"server_name", false, func(p *parser, c *Connection) { c.ServerName = p.text(253) }},
	{"domain", true, func(p *parser, c *Connection) { c.Domain = p.name() }},
	{"tenant", false, func(p *parser, c *Connection) { c.Tenant = p.exact(MaxName) }},
	{"source", false, func(p *parser, c *Connection) { c.Source = p.term() }},
	{"client_ip", false, func(p *parser, c *Connection) { c.ClientIP = p.address() }},
	{"client_port", false, func(p *parser, c *Connection) { c.ClientPort = uint16(p.count(65535)) }},
	{"tls_version", false, func(p *parser, c *Connection) { c.TLSVersion = p.text(maxShort) }},
	{"cipher_suite", false, func(p *parser, c *Connection) { c.CipherSuite = p.text(maxShort) }},
	{"group", false, func(p *parser, c *Connection) { c.Group = p.group() }},
	{"post_quantum", false, func(p *parser, c *Connection) { c.PostQuantum = p.bool() }},
	{"offered_post_quantum", false, func(p *parser, c *Connection) { c.OfferedPostQuantum = p.bool() }},
	{"hello_retry", false, func(p *parser, c *Connection) { c.HelloRetry = p.bool() }},
	{"resumed", false, func(p *parser, c *Connection) { c.Resumed = p.bool() }},
	{"alpn", false, func(p *parser, c *Connection) { c.ALPN = p.text(255) }},
	{"upstream", false, func(p *parser, c *Connection) { c.Upstream = p.text(MaxDial) }},
	{"upstream_group", false, func(p *parser, c *Connection) { c.UpstreamGroup = p.group() }},
	{"upstream_post_quantum", false, func(p *parser, c *Connection) { c.UpstreamPostQuantum = p.bool() }},
	{"upstream_resumed", false, func(p *parser, c *Connection) { c.UpstreamResumed = p.bool() }},
	{"proxy_protocol", false, func(p *parser, c *Connection) { c.ProxyProtocol = p.term() }},
	{"hello_wait", false, func(p *parser, c *Connection) { c.HelloWait = p.seconds() }},
	{"handshake", false, func(p *parser, c *Connection) { c.Handshake = p.seconds() }},
	{"upstream_connect", false, func(p *parser, c *Connection) { c.UpstreamConnect = p.seconds() }},
	{"upstream_handshake", false, func(p *parser, c *Connection) { c.UpstreamHandshake = p.seconds() }},
	{"first_byte", false, func(p *parser, c *Connection) { c.FirstByte = p.seconds() }},
	{"duration", false, func(p *parser, c *Connection) { c.Duration = p.seconds() }},
	{"bytes_in", false, func(p *parser, c *Connection) { c.BytesIn = p.count(maxBytes) }},
	{"bytes_out", false, func(p *parser, c *Connection) { c.BytesOut = p.count(maxBytes) }},
	{"closed_by", false, func(p *parser, c *Connection) { c.ClosedBy = p.term() }},
	{"end_reason", true, func(p *parser, c *Connection) { c.EndReason = p.term() }},
	{"error", false, func(p *parser, c *Connection) { c.Error = p.text(MaxText) }},
}

// Bounds of values. Sums of a million counters at their bound still fit 63 bits where they count events.
const (
	maxCount   = 1<<63 - 1
	maxEvents  = 1 << 40
	maxBytes   = 1 << 53 // what a JavaScript reader takes, and 83 days at 10 Gbit/s
	maxSeconds = 1e9
	maxShort   = 64
	maxWord    = 40
	maxBuckets = 256
)

// bool reads true or false.
func (p *parser) bool() bool {
	switch p.next() {
	case 't':
		return p.word("true")
	case 'f':
		p.word("false")
	default:
		p.wrong("true or false")
	}
	return false
}

// count reads a whole number from 0 to most.
func (p *parser) count(most int64) int64 {
	text, ok := p.number()
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(string(text), 10, 63)
	if err != nil || int64(n) > most {
		p.fault("must be a whole number from 0 to " + strconv.FormatInt(most, 10) + ", in digits only")
		return 0
	}
	return int64(n)
}

// seconds reads a duration.
func (p *parser) seconds() float64 {
	text, ok := p.number()
	if !ok {
		return 0
	}
	n, err := strconv.ParseFloat(string(text), 64)
	if err != nil || n < 0 || n > maxSeconds {
		p.fault("must be a number of seconds from 0 to 1000000000")
		return 0
	}
	return n
}

// Times outside of these years are some clock's fault, and more than databases take.
const firstYear, lastYear = 2000, 9000

// time reads a time as RFC 3339 has it.
func (p *parser) time() time.Time {
	text, ok := p.raw()
	if !ok {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339Nano, string(text))
	if at = at.UTC(); err != nil || at.Year() < firstYear || at.Year() > lastYear {
		p.fault("must be a time as RFC 3339 has it, such as 2026-01-31T12:00:00Z")
		return time.Time{}
	}
	return at
}

// known returns a text as a string, the same one each time for those that are short.
func (p *parser) known(text []byte) string {
	if len(text) > maxShort {
		return string(text)
	}
	s, ok := p.texts[string(text)]
	if !ok {
		s = string(text)
		p.texts[s] = s
	}
	return s
}

// text reads free text: what does not print is replaced, and what is too long is cut.
func (p *parser) text(most int) string {
	text, ok := p.raw()
	if !ok {
		return ""
	}
	if isPlain(text) && len(text) <= most {
		return p.known(text)
	}
	return cut(printable(string(text)), most)
}

// exact reads a text that names something: what does not print, or is too long, is a fault.
func (p *parser) exact(most int) string {
	text, ok := p.raw()
	switch {
	case !ok:
		return ""
	case len(text) > most:
		p.fault("has more than " + strconv.Itoa(most) + " bytes")
		return ""
	case !isPlain(text) && printable(string(text)) != string(text):
		p.fault("has characters that do not print")
		return ""
	}
	return p.known(text)
}

// term reads one of our own words, such as an end reason.
func (p *parser) term() string {
	text, ok := p.raw()
	if ok && !isWord(text) {
		p.fault("must be a word of lower-case letters, digits and underscores")
		return ""
	}
	return p.known(text)
}

func (p *parser) group() string {
	text, ok := p.raw()
	if ok && !isGroup(text) {
		p.fault("must be the name of a group, such as X25519MLKEM768")
		return ""
	}
	return p.known(text)
}

func isWord(text []byte) bool {
	return len(text) > 0 && len(text) <= maxWord && !slices.ContainsFunc(text, func(c byte) bool {
		return c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9')
	})
}

// isGroup takes what crypto/tls prints: a name, or CurveID(1234).
func isGroup(text []byte) bool {
	return len(text) > 0 && len(text) <= maxWord && !slices.ContainsFunc(text, func(c byte) bool {
		return c != '(' && c != ')' && c != '_' && c != '-' && (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9')
	})
}

// name reads the name of a domain.
func (p *parser) name() string {
	text, ok := p.raw()
	if !ok {
		return ""
	}
	if name, known := p.names[string(text)]; known {
		return name
	}
	name, err := domain.NormalName(string(text))
	if err != nil { // which quotes the name
		p.fault("is no name of a domain; write it as the feed does")
		return ""
	}
	p.names[string(text)] = name
	return name
}

// id reads the ID of a connection: 26 characters of Crockford's base32 in lower case, of a UUID.
func (p *parser) id() string {
	text, ok := p.raw()
	if !ok {
		return ""
	}
	if len(text) != 26 || text[0] > '7' || slices.ContainsFunc(text, func(c byte) bool {
		return (c < '0' || c > '9') && (c < 'a' || c > 'z' || c == 'i' || c == 'l' || c == 'o' || c == 'u')
	}) {
		p.fault("must be an ID: 26 characters of Crockford's base32 in lower case")
		return ""
	}
	return string(text)
}

// address reads an IP address, without its zone, which says nothing elsewhere. Empty: unknown.
func (p *parser) address() netip.Addr {
	text, ok := p.raw()
	if !ok || len(text) == 0 {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(string(text))
	if err != nil {
		p.fault("must be an IP address")
		return netip.Addr{}
	}
	return addr.Unmap().WithZone("")
}

// counts reads an object of counts whose keys are good.
func (p *parser) counts(most int, good func([]byte) bool) map[string]int64 {
	counts := make(map[string]int64)
	p.members(func(key []byte) {
		if !good(key) {
			p.fault("has a key of other characters than it may have")
			return
		}
		name := p.known(key)
		if _, again := counts[name]; again {
			p.fault("is given twice; keep one")
		} else if len(counts) == most {
			p.fault("has more than " + strconv.Itoa(most) + " members")
		} else {
			counts[name] = p.count(maxEvents)
		}
		if p.err != nil {
			p.within(name)
		}
	})
	if len(counts) == 0 {
		return nil
	}
	return counts
}

func (p *parser) buckets() []int64 {
	buckets := make([]int64, 0, BucketCount)
	p.array(maxBuckets, func(int) { buckets = append(buckets, p.count(maxEvents)) })
	if len(buckets) != BucketCount {
		return nil // an edge with other bounds: all else that it counts is as good
	}
	return buckets
}

// isPlain reports whether a text is printable ASCII.
func isPlain(text []byte) bool {
	return !slices.ContainsFunc(text, func(c byte) bool { return c < ' ' || c > '~' })
}

// printable replaces what does not show as it is: control characters, invisible ones, other spaces, and those that turn
// the direction of text around.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// cut returns at most so many bytes of a text, whole characters.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}
