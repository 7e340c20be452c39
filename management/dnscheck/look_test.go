package dnscheck

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

var (
	targetA    = Target{"a", "192.0.2.1"}
	targetA2   = Target{"a", "192.0.2.2"}
	targetAAAA = Target{"aaaa", "2001:db8::1"}
	targetName = Target{"cname", "edge.pq.test"}
)

// edge is the zone of the target's name.
var edge = []string{"edge.pq.test. A 192.0.2.1", "edge.pq.test. A 192.0.2.2", "edge.pq.test. AAAA 2001:db8::1"}

func TestLookTraffic(t *testing.T) {
	const app = "app.example.com"
	all := []Target{targetA, targetAAAA, targetName}
	for _, test := range []struct {
		name    string
		asked   string // default app
		targets []Target
		records []string
		does    map[string]string
		state   State
		detail  []string // in the text
		want    string   // records: `TYPE value ok|no [seen …]`, by line
	}{
		{
			name: "no target", state: Off, detail: []string{"No target"},
		},
		{
			name: "not there", targets: []Target{targetA}, state: Absent, detail: []string{app + " does not exist", "A record 192.0.2.1"},
			want: "A 192.0.2.1 no []",
		},
		{
			name: "no data", targets: all, records: []string{app + ". TXT x"}, state: Absent,
			detail: []string{"no A, AAAA or CNAME", "A record 192.0.2.1 and AAAA record 2001:db8::1, or instead a CNAME record edge.pq.test; not both"},
			want:   "A 192.0.2.1 no []\nAAAA 2001:db8::1 no []\nCNAME edge.pq.test no []",
		},
		{
			name: "address", targets: []Target{targetA}, records: []string{app + ". A 192.0.2.1"}, state: OK, detail: []string{"by its addresses."},
			want: "A 192.0.2.1 ok [192.0.2.1]",
		},
		{
			name: "CNAME", targets: []Target{targetName, targetA}, records: []string{app + ". CNAME edge.pq.test."}, state: OK, detail: []string{"by its CNAME."},
			want: "CNAME edge.pq.test ok [edge.pq.test]\nA 192.0.2.1 ok [192.0.2.1 192.0.2.2 2001:db8::1]",
		},
		{
			name: "CNAME through another", targets: []Target{targetName}, records: []string{app + ". CNAME www.other.test.", "www.other.test. CNAME Edge.PQ.test."}, state: OK,
			want: "CNAME edge.pq.test ok [www.other.test edge.pq.test]",
		},
		{
			name: "CNAME to a target without address", targets: []Target{{"cname", "gone.pq.test"}}, records: []string{app + ". CNAME gone.pq.test."}, state: OK,
			detail: []string{"the operator of this service has to"}, want: "CNAME gone.pq.test ok [gone.pq.test]",
		},
		{
			name: "CNAME to a target that cannot be resolved", targets: []Target{targetName}, records: []string{app + ". CNAME edge.pq.test."},
			does: map[string]string{"edge.pq.test": servfail, app + " AAAA": servfail}, state: OK, want: "CNAME edge.pq.test ok [edge.pq.test]",
		},
		{
			name: "CNAME elsewhere", targets: []Target{targetName}, records: []string{app + ". CNAME shop.other.test.", "shop.other.test. A 198.51.100.7"}, state: Wrong,
			detail: []string{"is a CNAME of shop.other.test and leads to 198.51.100.7", "CNAME record edge.pq.test."}, want: "CNAME edge.pq.test no [shop.other.test]",
		},
		{
			name: "CNAME that dangles", targets: []Target{targetName}, records: []string{app + ". CNAME shop.other.test."}, state: Wrong,
			detail: []string{"shop.other.test, which has no address"}, want: "CNAME edge.pq.test no [shop.other.test]",
		},
		{
			name: "CNAMEs in a circle", targets: []Target{targetName}, records: []string{app + ". CNAME b.test.", "b.test. CNAME " + app + "."}, state: Wrong,
			detail: []string{"circle"}, want: "CNAME edge.pq.test no [b.test " + app + "]",
		},
		{
			name: "flattened", targets: []Target{targetName}, records: []string{app + ". A 192.0.2.2", app + ". AAAA 2001:db8::1"}, state: OK,
			want: "CNAME edge.pq.test ok [192.0.2.2 2001:db8::1]",
		},
		{
			name: "flattened, and the target cannot be resolved", targets: []Target{targetName}, records: []string{app + ". A 192.0.2.2"},
			does: map[string]string{"edge.pq.test A": servfail}, state: Unknown, detail: []string{"target itself could not be asked"}, want: "CNAME edge.pq.test no [192.0.2.2]",
		},
		{
			name: "flattened, and elsewhere besides", targets: []Target{targetName}, records: []string{app + ". A 192.0.2.2", app + ". A 198.51.100.7"}, state: Wrong,
			detail: []string{"also at 198.51.100.7", "a part of the clients"}, want: "CNAME edge.pq.test no [192.0.2.2 198.51.100.7]",
		},
		{
			name: "another address", targets: []Target{targetA}, records: []string{app + ". A 198.51.100.7"}, state: Wrong,
			detail: []string{"points at 198.51.100.7, which is not this service", "A record 192.0.2.1."}, want: "A 192.0.2.1 no [198.51.100.7]",
		},
		{
			name: "right and wrong", targets: []Target{targetA}, records: []string{app + ". A 192.0.2.1", app + ". A 198.51.100.7"}, state: Wrong,
			detail: []string{"also at 198.51.100.7: a part of the clients"}, want: "A 192.0.2.1 no [192.0.2.1 198.51.100.7]",
		},
		{
			name: "stray AAAA", targets: []Target{targetA}, records: []string{app + ". A 192.0.2.1", app + ". AAAA 2001:db8::bad"}, state: Wrong,
			detail: []string{"AAAA record 2001:db8::bad", "Remove it."}, want: "A 192.0.2.1 no [192.0.2.1 2001:db8::bad]",
		},
		{
			name: "stray AAAA that may be replaced", targets: []Target{targetA, targetAAAA}, records: []string{app + ". A 192.0.2.1", app + ". AAAA 2001:db8::bad"}, state: Wrong,
			detail: []string{"replace it with 2001:db8::1"}, want: "A 192.0.2.1 no [192.0.2.1]\nAAAA 2001:db8::1 no [2001:db8::bad]",
		},
		{
			name: "mapped AAAA", targets: []Target{targetA}, records: []string{app + ". A 192.0.2.1", app + ". AAAA ::ffff:192.0.2.1"}, state: Wrong,
			want: "A 192.0.2.1 no [192.0.2.1 ::ffff:192.0.2.1]",
		},
		{
			name: "one of two, without AAAA", targets: []Target{targetA, targetA2, targetAAAA}, records: []string{app + ". A 192.0.2.2"}, state: OK,
			detail: []string{"add the A record 192.0.2.1 and the AAAA record 2001:db8::1"}, want: "A 192.0.2.1 no [192.0.2.2]\nA 192.0.2.2 ok [192.0.2.2]\nAAAA 2001:db8::1 no []",
		},
		{
			name: "addresses where a CNAME is possible", targets: []Target{targetName, targetA}, records: []string{app + ". A 192.0.2.1"}, state: OK,
			want: "CNAME edge.pq.test ok [192.0.2.1]\nA 192.0.2.1 ok [192.0.2.1]",
		},
		{
			name: "apex", targets: []Target{targetName}, records: []string{app + ". SOA ns. mail. 1 2 3 4 5"}, state: Absent,
			detail: []string{"top of its zone", "ALIAS"}, want: "ALIAS edge.pq.test no []",
		},
		{
			name: "apex with addresses", targets: all, records: []string{app + ". NS ns.test."}, state: Absent,
			detail: []string{"top of its zone", "A record 192.0.2.1 and AAAA record 2001:db8::1, or an ALIAS"}, want: "A 192.0.2.1 no []\nAAAA 2001:db8::1 no []",
		},
		{
			name: "apex flattened", targets: []Target{targetName}, records: []string{app + ". SOA ns. mail. 1 2 3 4 5", app + ". A 192.0.2.1"}, state: OK,
			want: "ALIAS edge.pq.test ok [192.0.2.1]",
		},
		{
			name: "SERVFAIL", targets: []Target{targetA}, does: map[string]string{app: servfail}, state: Unknown,
			detail: []string{"could not be asked", "SERVFAIL (DNSSEC Bogus)", "Nothing is concluded"}, want: "A 192.0.2.1 no []",
		},
		{
			name: "AAAA cannot be asked", targets: []Target{targetA}, records: []string{app + ". A 192.0.2.1"}, does: map[string]string{app + " AAAA": servfail}, state: Unknown,
			want: "A 192.0.2.1 ok [192.0.2.1]",
		},
		{
			name: "A elsewhere, AAAA cannot be asked", targets: []Target{targetA}, records: []string{app + ". A 198.51.100.7"}, does: map[string]string{app + " AAAA": servfail}, state: Wrong,
			want: "A 192.0.2.1 no [198.51.100.7]",
		},
		{
			name: "behind Cloudflare", targets: []Target{targetA}, records: []string{app + ". A 104.16.1.2"}, state: Wrong,
			detail: []string{"address of Cloudflare", "DNS only"}, want: "A 192.0.2.1 no [104.16.1.2]",
		},
		{
			name: "behind CloudFront", targets: []Target{targetName}, records: []string{app + ". CNAME d1.cloudfront.net.", "d1.cloudfront.net. A 198.51.100.7"}, state: Wrong,
			detail: []string{"CloudFront"}, want: "CNAME edge.pq.test no [d1.cloudfront.net]",
		},
		{
			name: "wildcard", asked: "*.example.com", targets: []Target{targetA}, records: []string{"*.example.com. A 192.0.2.1"}, state: OK,
			want: "A 192.0.2.1 ok [192.0.2.1]",
		},
		{
			name: "wildcard CNAME", asked: "*.example.com", targets: []Target{targetName}, records: []string{"*.example.com. CNAME edge.pq.test."}, state: OK,
			want: "CNAME edge.pq.test ok [edge.pq.test]",
		},
		{
			name: "wildcard, and only one name is there", asked: "*.example.com", targets: []Target{targetA}, records: []string{"www.example.com. A 192.0.2.1", "example.com. A 192.0.2.1"}, state: Absent,
			detail: []string{"A name under *.example.com, made up for this check, does not exist", "Set for *.example.com the A record"}, want: "A 192.0.2.1 no []",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			name := test.asked
			if name == "" {
				name = app
			}
			s := newServer(t, append(slices.Clone(edge), test.records...)...)
			for name, what := range test.does {
				s.do(name, what)
			}
			got := s.resolver(t, patient).Look(t.Context(), Request{Name: name, Targets: test.targets})
			if got.Traffic.State != test.state {
				t.Errorf("state %s (%s), want %s", got.Traffic.State, got.Traffic.Detail, test.state)
			}
			for _, want := range test.detail {
				if !strings.Contains(got.Traffic.Detail, want) {
					t.Errorf("detail %q does not say %q", got.Traffic.Detail, want)
				}
			}
			if got.Traffic.Detail == "" || strings.Contains(got.Traffic.Detail, "  ") || !strings.HasSuffix(got.Traffic.Detail, ".") {
				t.Errorf("detail %q", got.Traffic.Detail)
			}
			if text := recordsText(got.Records); text != test.want {
				t.Errorf("records\n%s\nwant\n%s", text, test.want)
			}
			for _, r := range got.Records {
				if r.Name != name || r.Purpose != PurposeTraffic {
					t.Errorf("record %+v", r)
				}
			}
			if got.Ownership.State != Off || got.CAA.State != Off {
				t.Errorf("ownership %+v, CAA %+v, want both off", got.Ownership, got.CAA)
			}
		})
	}
}

func recordsText(records []Record) string {
	var lines []string
	for _, r := range records {
		ok := "no"
		if r.OK {
			ok = "ok"
		}
		lines = append(lines, fmt.Sprintf("%s %s %s %v", r.Type, r.Value, ok, r.Seen))
	}
	return strings.Join(lines, "\n")
}

func TestLookFacts(t *testing.T) {
	s := newServer(t, "example.com. SOA ns. mail. 1 2 3 4 5", "example.com. A 192.0.2.1", "www.example.com. CNAME x.fastly.net.", "x.fastly.net. A 198.51.100.1")
	r := s.resolver(t, patient)
	apex := r.Look(t.Context(), Request{Name: "example.com", Targets: []Target{targetA}})
	if !apex.Apex || !slices.Equal(apex.Addresses, []string{"192.0.2.1"}) || apex.CDN != "" {
		t.Errorf("%+v", apex)
	}
	www := r.Look(t.Context(), Request{Name: "www.example.com", Targets: []Target{targetA}})
	if www.Apex || !slices.Equal(www.Chain, []string{"x.fastly.net"}) || www.CDN != "Fastly" {
		t.Errorf("%+v", www)
	}
}

// A name behind which there is a zone of somebody else is no apex, although that one is.
func TestLookApexIsOfTheNameItself(t *testing.T) {
	s := newServer(t, "www.example.com. CNAME other.test.", "other.test. SOA ns. mail. 1 2 3 4 5", "other.test. NS ns.test.")
	if got := s.resolver(t, patient).Look(t.Context(), Request{Name: "www.example.com", Targets: []Target{targetA}}); got.Apex {
		t.Error("the apex of the CNAME's target was taken for the name's")
	}
}

func TestRecordJSON(t *testing.T) {
	s := newServer(t)
	got := s.resolver(t, patient).Look(t.Context(), Request{Name: "app.example.com", Targets: []Target{targetA}})
	text, err := json.Marshal(got.Records)
	want := `[{"purpose":"traffic","type":"A","name":"app.example.com","value":"192.0.2.1","seen":[],"ok":false}]`
	if err != nil || string(text) != want {
		t.Errorf("%s, %v, want %s", text, err, want)
	}
}

func TestLookOwnership(t *testing.T) {
	const value = "pqproxy-verify=abc123"
	for _, test := range []struct {
		name    string
		asked   string
		records []string
		does    string
		state   State
		detail  string
		seen    string
	}{
		{name: "there", records: []string{`_pqproxy.app.test. TXT "` + value + `"`}, state: OK, detail: "is right", seen: "[" + value + "]"},
		{name: "there beside others", records: []string{`_pqproxy.app.test. TXT "other"`, `_pqproxy.app.test. TXT "` + value + `"`}, state: OK, seen: "[other " + value + "]"},
		{name: "split", records: []string{`_pqproxy.app.test. TXT "pqproxy-" "verify=" "abc123"`}, state: OK, seen: "[" + value + "]"},
		{name: "through a CNAME", records: []string{"_pqproxy.app.test. CNAME proof.test.", `proof.test. TXT "` + value + `"`}, state: OK, seen: "[" + value + "]"},
		{name: "wildcard", asked: "*.app.test", records: []string{`_pqproxy.app.test. TXT "` + value + `"`}, state: OK, seen: "[" + value + "]"},
		{name: "absent", state: Absent, detail: "no TXT record at _pqproxy.app.test yet", seen: "[]"},
		{name: "at the name itself", records: []string{`app.test. TXT "` + value + `"`}, state: Absent, seen: "[]"},
		{name: "other", records: []string{`_pqproxy.app.test. TXT "pqproxy-verify=other"`}, state: Wrong, detail: "another value", seen: "[pqproxy-verify=other]"},
		{name: "longer", records: []string{`_pqproxy.app.test. TXT "` + value + `4"`}, state: Wrong, seen: "[" + value + "4]"},
		{name: "other case", records: []string{`_pqproxy.app.test. TXT "PQPROXY-verify=abc123"`}, state: Wrong, seen: "[PQPROXY-verify=abc123]"},
		{name: "quoted", records: []string{`_pqproxy.app.test. TXT "\"` + value + `\""`}, state: Wrong, detail: "quotes or spaces", seen: `[\"` + value + `\"]`},
		{name: "SERVFAIL", does: servfail, state: Unknown, detail: "Nothing is concluded", seen: "[]"},
		{name: "circle", records: []string{"_pqproxy.app.test. CNAME b.test.", "b.test. CNAME _pqproxy.app.test."}, state: Wrong, detail: "circle", seen: "[]"},
		{name: "control characters", records: []string{`_pqproxy.app.test. TXT "\027[31m\255"`}, state: Wrong, seen: `[\027[31m\255]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			name := test.asked
			if name == "" {
				name = "app.test"
			}
			s := newServer(t, test.records...).do("_pqproxy.app.test", test.does)
			got := s.resolver(t, patient).Look(t.Context(), Request{Name: name, Ownership: value})
			if got.Ownership.State != test.state || !strings.Contains(got.Ownership.Detail, test.detail) {
				t.Errorf("%+v, want %s, %q", got.Ownership, test.state, test.detail)
			}
			if len(got.Records) != 1 {
				t.Fatalf("records %v", got.Records)
			}
			r := got.Records[0]
			if r.Purpose != PurposeOwnership || r.Type != "TXT" || r.Name != "_pqproxy.app.test" || r.Value != value || r.OK != (test.state == OK) || fmt.Sprint(r.Seen) != test.seen {
				t.Errorf("record %+v, want seen %s", r, test.seen)
			}
		})
	}
}

// What a zone can hold is more than what anybody wants to see: the value is found in it all the same.
func TestLookOwnershipAmongManyAndLong(t *testing.T) {
	s := newServer(t)
	var records []string
	for i := range 100 {
		records = append(records, fmt.Sprintf(`_pqproxy.app.test. TXT "%03d%s" "%s"`, i, strings.Repeat("x", 200), strings.Repeat("y", 200)))
	}
	s.set(t, append(records, `_pqproxy.app.test. TXT "zzz"`)...)
	s.do("_pqproxy.app.test", truncated)
	got := s.resolver(t, patient).Look(t.Context(), Request{Name: "app.test", Ownership: "zzz"})
	if got.Ownership.State != OK {
		t.Fatalf("%+v", got.Ownership)
	}
	if seen := got.Records[0].Seen; len(seen) != maxSeen || len(seen[0]) > maxShown+len("…") {
		t.Errorf("%d are shown, the first of %d bytes", len(seen), len(seen[0]))
	}
}

func TestLookOwnershipOfALongName(t *testing.T) {
	name := strings.TrimSuffix(strings.Repeat(strings.Repeat("a", 61)+".", 4), ".")
	got := newServer(t).resolver(t, patient).Look(t.Context(), Request{Name: name, Ownership: "x"})
	if got.Ownership.State != Off || len(got.Records) != 0 || !strings.Contains(got.Ownership.Detail, "HTTP") {
		t.Errorf("%+v, %v", got.Ownership, got.Records)
	}
}

func TestLookCAA(t *testing.T) {
	for _, test := range []struct {
		name    string
		asked   string
		records []string
		does    map[string]string
		state   State
		detail  string
	}{
		{name: "none", state: OK, detail: "No CAA record"},
		{name: "at the name", records: []string{`a.b.test. CAA 0 issue "CA.test"`}, state: OK, detail: "at a.b.test allow CA.test"},
		{name: "at the parent", records: []string{`b.test. CAA 0 issue "ca.test"`}, state: OK, detail: "at b.test"},
		{name: "at the top", records: []string{`test. CAA 0 issue "other.test"`}, state: Wrong, detail: `at test allow only other.test`},
		{name: "the nearest decides", records: []string{`a.b.test. CAA 0 issue "ca.test"`, `b.test. CAA 0 issue ";"`}, state: OK},
		{name: "the second issuer", records: []string{`b.test. CAA 0 issue "second.test"`}, state: OK},
		{name: "one of several", records: []string{`b.test. CAA 0 issue "other.test"`, `b.test. CAA 0 issue "ca.test; x=y"`}, state: OK},
		{name: "nobody", records: []string{`b.test. CAA 0 issue ";"`}, state: Wrong, detail: `nobody to issue for a.b.test, which this service does not use. Add there: CAA 0 issue "ca.test".`},
		{name: "malformed", records: []string{`b.test. CAA 0 issue "ca test"`}, state: Wrong, detail: "nobody"},
		{name: "only iodef", records: []string{`b.test. CAA 0 iodef "mailto:x@b.test"`, `test. CAA 0 issue ";"`}, state: OK, detail: "restrict nobody"},
		{name: "tag in capitals", records: []string{`b.test. CAA 0 ISSUE "other.test"`}, state: Wrong},
		{name: "critical and unknown", records: []string{`b.test. CAA 128 future "x"`, `b.test. CAA 0 issue "ca.test"`}, state: Wrong, detail: `"future"`},
		{name: "unknown", records: []string{`b.test. CAA 0 future "x"`}, state: OK},
		{name: "issuewild does not bind others", records: []string{`b.test. CAA 0 issuewild ";"`}, state: OK},
		{name: "issuewild binds wildcards", asked: "*.b.test", records: []string{`b.test. CAA 0 issue "ca.test"`, `b.test. CAA 0 issuewild "other.test"`}, state: Wrong, detail: "CAA 0 issuewild"},
		{name: "issuewild allows wildcards", asked: "*.b.test", records: []string{`b.test. CAA 0 issue ";"`, `b.test. CAA 0 issuewild "ca.test"`}, state: OK},
		{name: "issue binds wildcards without issuewild", asked: "*.b.test", records: []string{`b.test. CAA 0 issue ";"`}, state: Wrong, detail: "CAA 0 issue "},
		{name: "methods that fit", records: []string{`b.test. CAA 0 issue "ca.test; validationmethods=dns-01,http-01"`}, state: OK},
		{name: "methods that do not", records: []string{`b.test. CAA 0 issue "ca.test;validationmethods=dns-01"`}, state: Wrong, detail: "validationmethods"},
		{name: "an account", records: []string{`b.test. CAA 0 issue "ca.test; accounturi=https://ca.test/1"`}, state: OK, detail: "accounturi"},
		{name: "SERVFAIL", does: map[string]string{"b.test CAA": servfail}, records: []string{`test. CAA 0 issue ";"`}, state: Unknown, detail: "could not be asked for the CAA records of b.test"},
		{name: "circle", records: []string{"a.b.test. CNAME c.test.", "c.test. CNAME a.b.test."}, state: Wrong, detail: "circle"},
		{name: "at the target of a CNAME", records: []string{"a.b.test. CNAME c.other.", `c.other. CAA 0 issue "other.test"`}, state: Wrong},
		{name: "not at the parent of that target", records: []string{"a.b.test. CNAME c.d.other.", `d.other. CAA 0 issue ";"`, "c.d.other. A 192.0.2.1", `b.test. CAA 0 issue "ca.test"`}, state: OK, detail: "at b.test"},
		{name: "of a name with many labels", asked: strings.Repeat("a.", 30) + "test", state: Unknown, detail: "too many labels"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			name := test.asked
			if name == "" {
				name = "a.b.test"
			}
			s := newServer(t, test.records...)
			for name, what := range test.does {
				s.do(name, what)
			}
			got := s.resolver(t, patient).Look(t.Context(), Request{Name: name, Issuers: []string{"ca.test", "second.test"}}).CAA
			if got.State != test.state || !strings.Contains(got.Detail, test.detail) || !strings.HasSuffix(got.Detail, ".") {
				t.Errorf("%+v, want %s, %q", got, test.state, test.detail)
			}
		})
	}
}

// A slow server of one record must not make the others unknown.
func TestLookKeepsWhatWasAnswered(t *testing.T) {
	s := newServer(t, "app.test. A 192.0.2.1").do("_pqproxy.app.test", silent).do("test", silent)
	got := s.resolver(t, impatient*10).Look(t.Context(), Request{Name: "app.test", Targets: []Target{targetA}, Ownership: "x", Issuers: []string{"ca.test"}})
	if got.Traffic.State != OK || got.Ownership.State != Unknown || got.CAA.State != Unknown {
		t.Errorf("traffic %+v, ownership %+v, CAA %+v", got.Traffic, got.Ownership, got.CAA)
	}
}

func TestCDNOf(t *testing.T) {
	for name, want := range map[string]string{
		"x.cdn.cloudflare.net": "Cloudflare", "e1.a.akamaiedge.net": "Akamai", "www.example.com.edgekey.net": "Akamai",
		"d.cloudfront.net": "CloudFront", "notcloudfront.net": "", "cloudfront.net.evil.test": "",
	} {
		if got := cdnOf([]string{name}, nil); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	a := answer{rrs: []dns.RR{rr(t, "a.test. AAAA 2606:4700::1"), rr(t, "a.test. A 192.0.2.1")}}
	if got := cdnOf(nil, a.addrs()); got != "Cloudflare" {
		t.Errorf("an address of Cloudflare: %q", got)
	}
}

func rr(t *testing.T, text string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}
