package edgereport

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	end  = time.Date(2026, 11, 22, 12, 0, 31, 123456000, time.UTC)
)

// full is a report with every member.
func full() *Report {
	buckets := make([]int64, BucketCount)
	buckets[3] = 2
	return &Report{
		Edge:     Edge{Name: "gru-1", Region: "gru", Version: "v1.2.3", StartedAt: noon.Add(1500 * time.Millisecond)},
		Sequence: 7, SentAt: end, Revision: 420, Draining: true, LiveConnections: 12, Dropped: 3,
		Rejected: []Rejected{{"bad.example.com", "upstreams[0].dial", "10.0.0.1 is private"}, {Name: "good.example.com"}},
		Certificates: []CertificateState{
			{Name: "app.example.com", Source: "acme", Issuer: "CN=R3", NotAfter: &noon, State: CertificateValid},
			{Name: "gone.example.com", State: CertificateGone},
		},
		Upstreams: []UpstreamState{{"app.example.com", "10.0.0.5:8443", false, "connection refused"}},
		Counters: []Counter{{
			Domain: "*.example.com", Tenant: "ten_1", Minute: noon, Connections: 3, BytesIn: 10, BytesOut: 20,
			Groups: map[string]int64{"X25519MLKEM768": 1, "CurveID(4588)": 1}, EndReasons: map[string]int64{"done": 2, "over_limit": 1},
			HelloRetries: 1, Handshakes: buckets,
		}},
		Connections: []Connection{{
			Time: end, ID: "01m81wb050f3sr09tejjxabvjj", ServerName: "app.example.com", Domain: "app.example.com", Tenant: "ten_1",
			Source: "remote", ClientIP: netip.MustParseAddr("2001:db8::1"), ClientPort: 56276, TLSVersion: "TLS 1.3",
			CipherSuite: "TLS_AES_128_GCM_SHA256", Group: "X25519MLKEM768", PostQuantum: true, OfferedPostQuantum: true, HelloRetry: true,
			Resumed: true, ALPN: "h2", Upstream: "10.0.0.5:8443", UpstreamGroup: "X25519", UpstreamPostQuantum: true, UpstreamResumed: true,
			ProxyProtocol: "v2", HelloWait: 0.0004, Handshake: 0.0411, UpstreamConnect: 0.0009, UpstreamHandshake: 0.0024,
			FirstByte: 0.0131, Duration: 12.4, BytesIn: 1822, BytesOut: 90311, ClosedBy: "client", EndReason: "done", Error: "x",
		}},
	}
}

func encode(t testing.TB, r *Report) string {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestRoundTrip wants all that an edge says back, by the Builder as by encoding/json, and that each member has been tried.
func TestRoundTrip(t *testing.T) {
	r := full()
	var unset func(path string, v reflect.Value)
	unset = func(path string, v reflect.Value) {
		switch {
		case v.IsZero():
			t.Errorf("%s is not set in the test's report", path)
		case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
			unset(path, v.Index(0))
		case v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[time.Time]() && v.Type() != reflect.TypeFor[netip.Addr]():
			for i := range v.NumField() {
				if name := v.Type().Field(i).Name; v.Type() != reflect.TypeFor[CertificateState]() && v.Type() != reflect.TypeFor[UpstreamState]() {
					unset(path+"."+name, v.Field(i))
				}
			}
		}
	}
	unset("Report", reflect.ValueOf(*r))
	got, err := Parse(strings.NewReader(encode(t, r)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, r) {
		t.Errorf("got  %+v\nwant %+v", got, r)
	}

	var b Builder
	for _, e := range r.Rejected {
		b.AddRejected(e)
	}
	for _, e := range r.Certificates {
		b.AddCertificate(e)
	}
	for _, e := range r.Upstreams {
		b.AddUpstream(e)
	}
	for _, e := range r.Counters {
		b.AddCounter(e)
	}
	for i := range r.Connections {
		b.AddConnection(&r.Connections[i])
	}
	head := *r
	head.Rejected, head.Certificates, head.Upstreams, head.Counters, head.Connections = nil, nil, nil, nil, nil
	var built bytes.Buffer
	if err := b.WriteTo(&built, &head); err != nil {
		t.Fatal(err)
	}
	if got, err = Parse(&built); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("built: %v\ngot  %+v\nwant %+v", err, got, r)
	}
}

// TestBuilderBounds fills a report to its bounds, which Parse must take, and not a byte or an entry beyond.
func TestBuilderBounds(t *testing.T) {
	head := &Report{Edge: Edge{Name: strings.Repeat("\x01", MaxName), Region: strings.Repeat("<", MaxName), StartedAt: noon}, Sequence: 1<<63 - 1, SentAt: end}
	head.Edge.Name = strings.Repeat("<", MaxName) // six bytes each in JSON
	var small, large Builder
	one := full().Connections[0]
	for small.AddConnection(&one) {
	}
	if small.Connections() != MaxConnections {
		t.Errorf("%d records, want %d", small.Connections(), MaxConnections)
	}
	one.Error, one.ServerName = strings.Repeat("<", MaxText), strings.Repeat("<", 253)
	for large.AddConnection(&one) {
	}
	for large.AddCertificate(CertificateState{Name: "a.example", State: "valid", Error: one.Error}) {
	}
	for name, b := range map[string]*Builder{"entries": &small, "bytes": &large} {
		var out bytes.Buffer
		if err := b.WriteTo(&out, head); err != nil {
			t.Fatal(err)
		}
		if name == "bytes" && out.Len() < MaxSize-headRoom-8<<10 {
			t.Errorf("%d bytes is not full", out.Len())
		}
		if _, err := Parse(&out); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestParseFaults refuses what is beyond bounds or of another shape, says where, and never what.
func TestParseFaults(t *testing.T) {
	const head = `"edge":{"name":"e","started_at":"2026-01-01T00:00:00Z"},"sequence":1,"sent_at":"2026-01-01T00:00:00Z"`
	const secret = "geheim"
	counter := func(members string) string {
		return `{` + head + `,"counters":[{"domain":"a.example","minute":"2026-01-01T00:00:00Z"},{"domain":"a.example","minute":"2026-01-01T00:00:00Z"` + members + `}]}`
	}
	record := func(members string) string {
		return `{` + head + `,"connections":[{"time":"2026-01-01T00:00:00Z","id":"01m81wb050f3sr09tejjxabvjj","domain":"a.example","end_reason":"done"` + members + `}]}`
	}
	for _, c := range []struct {
		name, in, pointer string
		malformed         bool
	}{
		{"empty", ``, "", true},
		{"no object", `[]`, "", false},
		{"truncated", `{` + head, "", true},
		{"trailing", `{` + head + `} x`, "", true},
		{"trailing comma", `{` + head + `,}`, "/", true},
		{"not UTF-8", "{" + head + ",\"x\":\"\xff\"}", "", true},
		{"control character", "{" + head + ",\"x\":\"\n\"}", "", true},
		{"bad escape", `{` + head + `,"x":"\q"}`, "", true},
		{"bad number", `{` + head + `,"x":01}`, "", true},
		{"bad word", `{` + head + `,"draining":tru}`, "", true},
		{"member twice", `{` + head + `,"sequence":2}`, "/sequence", false},
		{"member twice as null", `{` + head + `,"revision":null,"revision":2}`, "/revision", false},
		{"member twice escaped", `{` + head + `,"\u0073equence":2}`, "/sequence", false},
		{"no edge", `{"sequence":1,"sent_at":"2026-01-01T00:00:00Z"}`, "/edge", false},
		{"no name", `{"edge":{"started_at":"2026-01-01T00:00:00Z"},"sequence":1}`, "/edge/name", false},
		{"empty name", `{"edge":{"name":"","started_at":"2026-01-01T00:00:00Z"}}`, "/edge/name", false},
		{"name that does not print", `{"edge":{"name":"a\u202e"}}`, "/edge/name", false},
		{"long name", `{"edge":{"name":"` + strings.Repeat("a", MaxName+1) + `"}}`, "/edge/name", false},
		{"sequence 0", `{"sequence":0}`, "/sequence", false},
		{"negative", `{"sequence":-1}`, "/sequence", false},
		{"fraction", `{"sequence":1.5}`, "/sequence", false},
		{"exponent", `{"sequence":1e3}`, "/sequence", false},
		{"overflow", `{"revision":9223372036854775808}`, "/revision", false},
		{"no time", `{"sent_at":"` + secret + `"}`, "/sent_at", false},
		{"early time", `{"sent_at":"0001-01-01T00:00:00Z"}`, "/sent_at", false},
		{"late time", `{"sent_at":"9999-01-01T00:00:00Z"}`, "/sent_at", false},
		{"type", `{"draining":"` + secret + `"}`, "/draining", false},
		{"list type", `{"counters":{}}`, "/counters", false},
		{"entry type", `{"counters":[1]}`, "/counters/0", false},
		{"deep", `{"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "-", false},
		{"domain", counter(`,"domain":"` + secret + `"`), "/counters/1/domain", false},
		{"domain name", `{"rejected":[{"name":"` + secret + ` x"}]}`, "/rejected/0/name", false},
		{"rejected name", `{"rejected":[{"detail":"x"}]}`, "/rejected/0/name", false},
		{"count", counter(`,"connections":-5`), "/counters/1/connections", false},
		{"count too high", counter(`,"connections":1099511627777`), "/counters/1/connections", false},
		{"bytes too many", counter(`,"bytes_in":9007199254740993`), "/counters/1/bytes_in", false},
		{"buckets", counter(`,"handshake_buckets":[1,-2]`), "/counters/1/handshake_buckets/1", false},
		{"too many buckets", counter(`,"handshake_buckets":[` + strings.Repeat("1,", maxBuckets) + `1]`), "/counters/1/handshake_buckets", false},
		{"group", counter(`,"groups":{"a b":1}`), "/counters/1/groups", false},
		{"group twice", counter(`,"groups":{"X25519":1,"X25519":1}`), "/counters/1/groups/X25519", false},
		{"end reason", counter(`,"end_reasons":{"Done":1}`), "/counters/1/end_reasons", false},
		{"end reason count", counter(`,"end_reasons":{"done":"x"}`), "/counters/1/end_reasons/done", false},
		{"id", record(`,"error":""}, {"id":"` + secret + `"`), "/connections/1/id", false},
		{"address", record(`,"client_ip":"` + secret + `"`), "/connections/0/client_ip", false},
		{"port", record(`,"client_port":65536`), "/connections/0/client_port", false},
		{"duration", record(`,"duration":-0.1`), "/connections/0/duration", false},
		{"endless", record(`,"duration":1e999`), "/connections/0/duration", false},
		{"closed_by", record(`,"closed_by":"` + secret + `!"`), "/connections/0/closed_by", false},
		{"dial", `{"upstreams":[{"domain":"a.example","dial":"` + strings.Repeat("a", MaxDial+1) + `"}]}`, "/upstreams/0/dial", false},
		{"no health", `{"upstreams":[{"domain":"a.example","dial":"a:1"}]}`, "/upstreams/0/healthy", false},
		{"certificate", `{"certificates":[{"name":"a.example"}]}`, "/certificates/0/state", false},
		{"records", `{"connections":[` + strings.Repeat(`{"time":"2026-01-01T00:00:00Z","id":"01m81wb050f3sr09tejjxabvjj","domain":"a.example","end_reason":"done"},`, MaxConnections) + `{}]}`, "/connections", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(strings.NewReader(c.in))
			var fault *Error
			if !errors.As(err, &fault) {
				t.Fatalf("got %v", err)
			}
			if fault.Malformed != c.malformed || !c.malformed && c.pointer != "-" && fault.Pointer != c.pointer {
				t.Errorf("got %q, malformed %v: %v", fault.Pointer, fault.Malformed, err)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error has the value: %v", err)
			}
		})
	}
	if _, err := Parse(strings.NewReader(strings.Repeat(" ", MaxSize+1))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	broken := errors.New("broken")
	if _, err := Parse(&failing{broken}); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: %v", err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// TestParseNormalises takes what an edge of another version may send, in the form in which it is kept.
func TestParseNormalises(t *testing.T) {
	got, err := Parse(strings.NewReader(`{
		"edge": {"name": "e", "started_at": "2026-01-01T01:00:00.1239+01:00", "zone": {"a": [1, -2.5e+3, true, false, null, "x"]}},
		"sequence": 1, "sent_at": "2026-01-01T00:00:00Z", "unknown": {}, "also": [], "counters": null, "Sequence": 2,
		"rejected": [{"name": "BÜCHER.example.", "detail": "a\u0000b\u202ec\nd` + strings.Repeat("é", MaxText) + `"}],
		"counters2": [], "connections": [{
			"time": "2026-01-01T00:00:00.5+02:00", "id": "01m81wb050f3sr09tejjxabvjj", "domain": "a.example", "end_reason": "of_a_newer_edge",
			"server_name": "x\u001bz", "client_ip": "::ffff:192.0.2.1", "group": "CurveID(9)"}],
		"upstreams": []}`))
	if err != nil {
		t.Fatal(err)
	}
	if !got.Edge.StartedAt.Equal(noon.AddDate(0, -10, -21).Add(-12*time.Hour + 123*time.Millisecond)) {
		t.Errorf("started at %s", got.Edge.StartedAt)
	}
	if r := got.Rejected[0]; r.Name != "xn--bcher-kva.example" || !strings.HasPrefix(r.Detail, "a\ufffdb\ufffdc\ufffdd") || len(r.Detail) > MaxText || !strings.HasSuffix(r.Detail, "é") {
		t.Errorf("rejected %+v", r)
	}
	c := got.Connections[0]
	if c.ServerName != "x\ufffdz" || c.ClientIP != netip.MustParseAddr("192.0.2.1") || c.Time.Location() != time.UTC || c.Time.Nanosecond() != 5e8 || c.EndReason != "of_a_newer_edge" {
		t.Errorf("record %+v", c)
	}
}

// TestQuantile compares quantiles of known times with what they are, within a bucket.
func TestQuantile(t *testing.T) {
	if len(HandshakeBuckets)+1 != BucketCount || !slices.IsSorted(HandshakeBuckets) {
		t.Fatalf("%d bounds, %d buckets", len(HandshakeBuckets), BucketCount)
	}
	for i := 1; i < len(HandshakeBuckets); i++ {
		if HandshakeBuckets[i] > 2*HandshakeBuckets[i-1] {
			t.Errorf("bound %d is more than twice the one before", i)
		}
	}
	for _, c := range []struct {
		seconds float64
		want    int
	}{{0, 0}, {0.0005, 0}, {0.00051, 1}, {10, BucketCount - 2}, {10.1, BucketCount - 1}, {math.Inf(1), BucketCount - 1}} {
		if got := BucketOf(c.seconds); got != c.want {
			t.Errorf("%v is in bucket %d, want %d", c.seconds, got, c.want)
		}
	}
	buckets := make([]int64, BucketCount)
	for i := range 1000 { // evenly from 1 to 100 ms
		buckets[BucketOf(0.001+0.099*float64(i)/999)]++
	}
	for _, c := range []struct{ q, low, high float64 }{
		{0.5, 0.045, 0.056}, {0.95, 0.090, 0.1}, {0.99, 0.097, 0.1}, {0, 0, 0.0016}, {1, 0.099, 0.1}, {2, 0.099, 0.1},
	} {
		if got := Quantile(buckets, c.q); got < c.low || got > c.high {
			t.Errorf("p%v is %v", 100*c.q, got)
		}
	}
	over := make([]int64, BucketCount)
	over[BucketCount-1] = 5
	if got := Quantile(over, 0.5); got != 10 {
		t.Errorf("all beyond the last bound: %v", got)
	}
	for _, none := range [][]int64{nil, make([]int64, BucketCount), {1}} {
		if got := Quantile(none, 0.5); !math.IsNaN(got) {
			t.Errorf("of nothing: %v", got)
		}
	}
}

// TestParseAnswer takes answers of a management plane, and nothing that something on the way to it says.
func TestParseAnswer(t *testing.T) {
	if a, err := ParseAnswer([]byte(`{"revision":7,"duplicate":true,"resend":true,"new":1}`)); err != nil || a != (Answer{7, true, true}) {
		t.Errorf("got %+v, %v", a, err)
	}
	for _, text := range []string{``, `{}`, `null`, `<html>`, `{"revision":-1}`} {
		if _, err := ParseAnswer([]byte(text)); err == nil {
			t.Errorf("%q is an answer", text)
		}
	}
}

// FuzzParse reads any bytes: what is taken keeps to the bounds, and is taken again as it is.
func FuzzParse(f *testing.F) {
	f.Add([]byte(encode(f, full())))
	f.Add([]byte(`{"edge":{"name":"e","started_at":"2026-01-01T00:00:00Z"},"sequence":1,"sent_at":"2026-01-01T00:00:00Z","x":[[{}]]}`))
	f.Add([]byte(`{"edge":{"name":"\ud800","started_at":""}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse(bytes.NewReader(data))
		if err != nil {
			var fault *Error
			if !errors.As(err, &fault) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if !json.Valid(data) {
			t.Fatal("that is no JSON")
		}
		again, err := Parse(strings.NewReader(encode(t, r)))
		if err != nil {
			t.Fatalf("what was taken is refused: %v", err)
		}
		if !reflect.DeepEqual(again, r) {
			t.Fatalf("got %+v\nwant %+v", again, r)
		}
	})
}

// BenchmarkParse reads reports of 500 records and as many counters. It is dominated by strings and times; the number is
// what one core of a management plane can read, without gzip and without a database.
//
//	go test -bench Parse ./internal/edgereport
func BenchmarkParse(b *testing.B) {
	r := full()
	for i := range 499 {
		c := r.Connections[0]
		c.ServerName = fmt.Sprintf("app%d.example.com", i)
		r.Connections = append(r.Connections, c)
		counter := r.Counters[0]
		counter.Domain = c.ServerName
		r.Counters = append(r.Counters, counter)
	}
	text := encode(b, r)
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := Parse(strings.NewReader(text)); err != nil {
			b.Fatal(err)
		}
	}
}
