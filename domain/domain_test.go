package domain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// record returns the JSON of a minimal domain with the fields in more, which begin with a comma.
func record(more string) string {
	return `{"name":"app.example.com","upstreams":[{"dial":"10.0.0.5:8443"}]` + more + `}`
}

func TestParseDefaults(t *testing.T) {
	d, err := Parse([]byte(`{"name":"App.Example.com.","upstreams":[{"dial":"10.0.0.5:8443","tls":{}},{"dial":"10.0.0.6:8443"}],"alpn":[]}`), Remote)
	if err != nil {
		t.Fatal(err)
	}
	want := &Domain{
		Name: "app.example.com",
		Upstreams: []Upstream{
			{Dial: "10.0.0.5:8443", TLS: &UpstreamTLS{PostQuantum: Prefer}},
			{Dial: "10.0.0.6:8443"},
		},
		LoadBalancing: First,
		ProxyProtocol: ProxyOff,
		PostQuantum:   Prefer,
		Certificate:   Certificate{Source: ACME, Fallback: FallbackNone},
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got %+v, want %+v", d, want)
	}
}

func TestParseAllFields(t *testing.T) {
	ca := testCertificatePEM(t)
	d := &Domain{
		Name:   "*.example.com",
		Tenant: "ten ä 1",
		Upstreams: []Upstream{
			{Dial: "10.0.0.5:8443", Region: "gru", TLS: &UpstreamTLS{ServerName: "app.internal", CAPEM: ca, PostQuantum: Require, InsecureSkipVerify: true}},
			{Dial: "unix//run/app.sock", TLS: &UpstreamTLS{CAFile: "/etc/ca.pem", PostQuantum: Off}},
		},
		LoadBalancing:  LeastConn,
		HealthCheck:    &HealthCheck{Type: HealthTLS, Interval: Duration(time.Minute), Timeout: Duration(time.Second), Rise: 1, Fall: 5},
		ProxyProtocol:  ProxyV2,
		PostQuantum:    Require,
		ALPN:           []string{"h2", "http/1.1"},
		Certificate:    Certificate{Source: BYOC, ChainFile: "/etc/a.pem", KeyFile: "/etc/a.key", Fallback: FallbackNone},
		MaxConnections: 100,
		Suspended:      true,
	}
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(text, Static)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, d) {
		t.Errorf("got %+v, want %+v", got, d)
	}
}

// TestFields has every rule of every field, passing and failing. Names and addresses have more in
// TestNormalName and TestNormalDial.
func TestFields(t *testing.T) {
	ca, err := json.Marshal(testCertificatePEM(t))
	if err != nil {
		t.Fatal(err)
	}
	pem := func(text string) string { return strings.ReplaceAll(text, "CA", string(ca)) }
	upstreams := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf(`{"dial":"10.0.0.5:%d"}`, i+1))
		}
		return `{"name":"a.example","upstreams":[` + strings.Join(list, ",") + `]}`
	}
	tls := func(fields string) string {
		return `{"name":"a.example","upstreams":[{"dial":"10.0.0.5:1","tls":{` + fields + `}}]}`
	}
	alpn := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf(`"p%d"`, i))
		}
		return record(`,"alpn":[` + strings.Join(list, ",") + `]`)
	}
	wildcard := func(certificate string) string {
		return `{"name":"*.example.com","upstreams":[{"dial":"10.0.0.5:1"}],"certificate":{` + certificate + `}}`
	}
	byoc := func(fields string) string { return record(`,"certificate":{"source":"byoc"` + fields + `}`) }

	tests := []struct {
		name string
		src  Source
		in   string
		want []string // the faulty fields; empty: accepted
	}{
		{"name missing", Remote, `{"upstreams":[{"dial":"a:1"}]}`, []string{"name"}},
		{"name bad", Remote, `{"name":"10.0.0.1","upstreams":[{"dial":"a:1"}]}`, []string{"name"}},

		{"tenant of 128 bytes", Remote, record(`,"tenant":"` + strings.Repeat("t", 128) + `"`), nil},
		{"tenant of 129 bytes", Remote, record(`,"tenant":"` + strings.Repeat("t", 129) + `"`), []string{"tenant"}},
		{"tenant with line break", Remote, record(`,"tenant":"a\nb"`), []string{"tenant"}},
		{"tenant with bidi override", Remote, record(`,"tenant":"a\u202eb"`), []string{"tenant"}},
		{"tenant with half a character", Remote, record(`,"tenant":"a\ud800b"`), []string{"tenant"}},

		{"upstreams missing", Remote, `{"name":"a.example"}`, []string{"upstreams"}},
		{"upstreams empty", Remote, upstreams(0), []string{"upstreams"}},
		{"16 upstreams", Remote, upstreams(16), nil},
		{"17 upstreams", Remote, upstreams(17), []string{"upstreams"}},
		{"dial missing", Remote, `{"name":"a.example","upstreams":[{}]}`, []string{"upstreams[0].dial"}},
		{"dial bad", Remote, `{"name":"a.example","upstreams":[{"dial":"a:1"},{"dial":"a"}]}`, []string{"upstreams[1].dial"}},
		{"dial twice", Remote, `{"name":"a.example","upstreams":[{"dial":"a:1"},{"dial":"A:01"}]}`, []string{"upstreams[1].dial"}},
		{"dial of a socket", Remote, `{"name":"a.example","upstreams":[{"dial":"unix//s"}]}`, []string{"upstreams[0].dial"}},
		{"region too long", Remote, `{"name":"a.example","upstreams":[{"dial":"a:1","region":"` + strings.Repeat("r", 129) + `"}]}`, []string{"upstreams[0].region"}},
		{"region with control character", Remote, `{"name":"a.example","upstreams":[{"dial":"a:1","region":"\u0007"}]}`, []string{"upstreams[0].region"}},

		{"server name", Remote, tls(`"server_name":"B.example."`), nil},
		{"server address", Remote, tls(`"server_name":"10.0.0.5"`), nil},
		{"server name bad", Remote, tls(`"server_name":"*.example"`), []string{"upstreams[0].tls.server_name"}},
		{"CA", Remote, pem(tls(`"ca_pem":CA`)), nil},
		{"CA with insecure", Remote, pem(tls(`"ca_pem":CA,"server_name":"b","insecure_skip_verify":true`)), nil},
		{"CA empty of certificates", Remote, tls(`"ca_pem":"# none"`), []string{"upstreams[0].tls.ca_pem"}},
		{"CA damaged", Remote, tls(`"ca_pem":"-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----\n"`), []string{"upstreams[0].tls.ca_pem"}},
		{"CA not DER", Remote, tls(`"ca_pem":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"`), []string{"upstreams[0].tls.ca_pem"}},
		{"CA with key", Remote, tls(`"ca_pem":"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"`), []string{"upstreams[0].tls.ca_pem"}},
		{"CA with something else", Remote, tls(`"ca_pem":"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"`), []string{"upstreams[0].tls.ca_pem"}},
		{"CA file", Static, tls(`"ca_file":"/etc/ca.pem"`), nil},
		{"CA file from elsewhere", Admin, tls(`"ca_file":"/etc/ca.pem"`), []string{"upstreams[0].tls.ca_file"}},
		{"CA file with NUL", Static, tls(`"ca_file":"a\u0000"`), []string{"upstreams[0].tls.ca_file"}},
		{"CA both ways", Static, pem(tls(`"ca_pem":CA,"ca_file":"/etc/ca.pem"`)), []string{"upstreams[0].tls.ca_file"}},
		{"upstream post_quantum", Remote, tls(`"post_quantum":"require"`), nil},
		{"upstream post_quantum bad", Remote, tls(`"post_quantum":"on"`), []string{"upstreams[0].tls.post_quantum"}},

		{"load_balancing", Remote, record(`,"load_balancing":"ip_hash"`), nil},
		{"load_balancing bad", Remote, record(`,"load_balancing":"round_robin"`), []string{"load_balancing"}},
		{"load_balancing in upper case", Remote, record(`,"load_balancing":"First"`), []string{"load_balancing"}},
		{"proxy_protocol", Remote, record(`,"proxy_protocol":"v1"`), nil},
		{"proxy_protocol bad", Remote, record(`,"proxy_protocol":"v3"`), []string{"proxy_protocol"}},
		{"post_quantum", Remote, record(`,"post_quantum":"off"`), nil},
		{"post_quantum bad", Remote, record(`,"post_quantum":"required"`), []string{"post_quantum"}},

		{"16 alpn names", Remote, alpn(16), nil},
		{"17 alpn names", Remote, alpn(17), []string{"alpn"}},
		{"alpn of 255 bytes", Remote, record(`,"alpn":["` + strings.Repeat("p", 255) + `"]`), nil},
		{"alpn of 256 bytes", Remote, record(`,"alpn":["` + strings.Repeat("p", 256) + `"]`), []string{"alpn[0]"}},
		{"alpn empty name", Remote, record(`,"alpn":["h2",""]`), []string{"alpn[1]"}},
		{"alpn twice", Remote, record(`,"alpn":["h2","h2"]`), []string{"alpn[1]"}},
		{"alpn acme", Remote, record(`,"alpn":["acme-tls/1"]`), []string{"alpn[0]"}},

		{"max_connections zero", Remote, record(`,"max_connections":0`), nil},
		{"max_connections negative", Remote, record(`,"max_connections":-1`), []string{"max_connections"}},

		{"certificate source bad", Remote, record(`,"certificate":{"source":"file"}`), []string{"certificate.source"}},
		{"byoc", Remote, byoc(`,"chain_pem":"c","key_pem":"k"`), nil},
		{"byoc falling back", Remote, byoc(`,"chain_pem":"c","key_pem":"k","fallback":"acme"`), nil},
		{"byoc fallback bad", Remote, byoc(`,"chain_pem":"c","key_pem":"k","fallback":"internal"`), []string{"certificate.fallback"}},
		{"byoc without pair", Remote, byoc(``), []string{"certificate.chain_pem", "certificate.key_pem"}},
		{"byoc without key", Remote, byoc(`,"chain_pem":"c"`), []string{"certificate.key_pem"}},
		{"byoc without chain", Remote, byoc(`,"key_pem":"k"`), []string{"certificate.chain_pem"}},
		{"byoc files", Static, byoc(`,"chain_file":"c","key_file":"k"`), nil},
		{"byoc without key file", Static, byoc(`,"chain_file":"c"`), []string{"certificate.key_file"}},
		{"byoc without chain file", Static, byoc(`,"key_file":"k"`), []string{"certificate.chain_file"}},
		{"byoc both ways", Static, byoc(`,"chain_pem":"c","key_pem":"k","chain_file":"c","key_file":"k"`), []string{"certificate.chain_file", "certificate.key_file"}},
		{"byoc mixed", Static, byoc(`,"chain_pem":"c","key_file":"k"`), []string{"certificate.key_file"}},
		{"byoc files from elsewhere", Remote, byoc(`,"chain_file":"c","key_file":"k"`), []string{"certificate.chain_file", "certificate.key_file"}},
		{"byoc one file from elsewhere", Remote, byoc(`,"chain_file":"c"`), []string{"certificate.key_pem", "certificate.chain_file"}},
		{"byoc file that does not print", Static, byoc(`,"chain_file":"c\n","key_file":"k\n"`), []string{"certificate.chain_file", "certificate.key_file"}},
		{"pair with acme", Remote, record(`,"certificate":{"chain_pem":"c","key_pem":"k"}`), []string{"certificate.chain_pem", "certificate.key_pem"}},
		{"files with internal", Static, record(`,"certificate":{"source":"internal","chain_file":"c","key_file":"k"}`), []string{"certificate.chain_file", "certificate.key_file"}},
		{"fallback with acme", Remote, record(`,"certificate":{"fallback":"acme"}`), []string{"certificate.fallback"}},
		{"fallback none with acme", Remote, record(`,"certificate":{"fallback":"none"}`), nil},

		{"wildcard by default", Remote, wildcard(``), []string{"certificate.source"}},
		{"wildcard acme", Remote, wildcard(`"source":"acme"`), []string{"certificate.source"}},
		{"wildcard internal", Remote, wildcard(`"source":"internal"`), nil},
		{"wildcard byoc", Remote, wildcard(`"source":"byoc","chain_pem":"c","key_pem":"k"`), nil},
		{"wildcard falling back", Remote, wildcard(`"source":"byoc","chain_pem":"c","key_pem":"k","fallback":"acme"`), []string{"certificate.fallback"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := Parse([]byte(tt.in), tt.src)
			if got := fields(err); !slices.Equal(got, tt.want) {
				t.Fatalf("faulty fields %q, want %q: %v", got, tt.want, err)
			}
			if (d == nil) != (err != nil) {
				t.Errorf("Parse returned %v with error %v", d, err)
			}
		})
	}
}

// fields returns the fields of the faults in err.
func fields(err error) []string {
	var all []string
	for _, e := range Errors(err) {
		all = append(all, e.Field)
	}
	return all
}

func TestParseStrictJSON(t *testing.T) {
	tests := []struct {
		name    string
		in      string
		field   string
		wantErr string
	}{
		{"empty", ``, "", "not one JSON object"},
		{"no JSON", `{"name":`, "", "not one JSON object"},
		{"trailing value", record(``) + `{}`, "", "after top-level value"},
		{"trailing text", record(``) + ` x`, "", "after top-level value"},
		{"line break in string", "{\"name\":\"a\n\"}", "", "byte 11"},
		{"not UTF-8", "{\"name\":\"\xff\"}", "", "UTF-8"},
		{"too long", record(`,"tenant":"` + strings.Repeat("a", MaxSize) + `"`), "", "1048576"},
		{"deeply nested", strings.Repeat("[", 20000) + strings.Repeat("]", 20000), "", "max depth"},
		{"array", `[]`, "", "must be an object, not an array"},
		{"null", `null`, "", "must be an object, not null"},
		{"string", `"a"`, "", "must be an object, not a string"},
		{"number", ` 1 `, "", "must be an object, not a number"},

		{"unknown field", record(`,"nam":"x"`), "nam", "unknown field"},
		{"unknown field with values", record(`,"x":{"a":[1,{"b":"]}"},null],"c":-1e5}`), "x", "unknown field"},
		{"other case", `{"Name":"a.example","name":"a.example","upstreams":[{"dial":"a:1"}]}`, "Name", "unknown field"},
		{"unknown in upstream", `{"name":"a","upstreams":[{"dial":"a:1"},{"dial":"a:2","weight":1}]}`, "upstreams[1].weight", "unknown field"},
		{"unknown in tls", `{"name":"a","upstreams":[{"dial":"a:1","tls":{"sni":"x"}}]}`, "upstreams[0].tls.sni", "unknown field"},
		{"unknown in certificate", record(`,"certificate":{"Source":"acme"}`), "certificate.Source", "unknown field"},
		{"unknown with odd name", record(`,"a b":1`), `"a b"`, "unknown field"},
		{"unknown without name", record(`,"":1`), `""`, "unknown field"},
		{"unknown with long name", record(`,"` + strings.Repeat("x", 1000) + `":1`), `"` + strings.Repeat("x", 64) + `"...`, "unknown field"},

		{"name twice", record(`,"name":"b.example"`), "name", "given twice"},
		{"name twice, escaped", record(`,"n\u0061me":"b.example"`), "name", "given twice"},
		{"list twice", record(`,"upstreams":[{"dial":"a:1"}]`), "upstreams", "given twice"},
		{"dial twice", `{"name":"a","upstreams":[{"dial":"a:1","dial":"a:2"}]}`, "upstreams[0].dial", "given twice"},
		{"in tls twice", `{"name":"a","upstreams":[{"dial":"a:1","tls":{"post_quantum":"off","post_quantum":"off"}}]}`, "upstreams[0].tls.post_quantum", "given twice"},
		{"in certificate twice", record(`,"certificate":{"source":"acme","source":"internal"}`), "certificate.source", "given twice"},

		{"name a number", `{"name":1,"upstreams":[{"dial":"a:1"}]}`, "name", "must be a string, not a number"},
		{"name null", `{"name":null,"upstreams":[{"dial":"a:1"}]}`, "name", "not null"},
		{"upstreams an object", `{"name":"a","upstreams":{"dial":"a:1"}}`, "upstreams", "must be an array, not an object"},
		{"upstreams null", `{"name":"a","upstreams":null}`, "upstreams", "must be an array, not null"},
		{"upstream a string", `{"name":"a","upstreams":["a:1"]}`, "upstreams[0]", "must be an object, not a string"},
		{"tls null", `{"name":"a","upstreams":[{"dial":"a:1","tls":null}]}`, "upstreams[0].tls", "leave the field out"},
		{"tls true", `{"name":"a","upstreams":[{"dial":"a:1","tls":true}]}`, "upstreams[0].tls", "must be an object, not a boolean"},
		{"alpn a string", record(`,"alpn":"h2"`), "alpn", "must be an array, not a string"},
		{"alpn with a number", record(`,"alpn":["h2",2]`), "alpn[1]", "must be a string, not a number"},
		{"certificate a string", record(`,"certificate":"acme"`), "certificate", "must be an object, not a string"},
		{"suspended a string", record(`,"suspended":"true"`), "suspended", "must be true or false, not a string"},
		{"max_connections a string", record(`,"max_connections":"1"`), "max_connections", "must be a whole number, not a string"},
		{"max_connections a fraction", record(`,"max_connections":1.0`), "max_connections", "digits only"},
		{"max_connections with exponent", record(`,"max_connections":1e3`), "max_connections", "digits only"},
		{"max_connections too high", record(`,"max_connections":99999999999999999999`), "max_connections", "digits only"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := Parse([]byte(tt.in), Remote)
			list := Errors(err)
			if d != nil || len(list) != 1 {
				t.Fatalf("got %v and %d faults, want one: %v", d, len(list), err)
			}
			if list[0].Field != tt.field || !strings.Contains(list[0].Error(), tt.wantErr) {
				t.Errorf("fault %q of field %q, want %q of %q", list[0], list[0].Field, tt.wantErr, tt.field)
			}
			// White space between tokens changes nothing.
			if !json.Valid([]byte(tt.in)) || len(tt.in) > MaxSize {
				return
			}
			var spaced bytes.Buffer
			if err := json.Indent(&spaced, []byte(tt.in), "", "\t"); err != nil {
				t.Fatal(err)
			}
			if _, err2 := Parse(spaced.Bytes(), Remote); err2 == nil || err2.Error() != err.Error() {
				t.Errorf("indented: %v, want %v", err2, err)
			}
		})
	}
}

func TestParseReportsAllFaults(t *testing.T) {
	in := `{
		"name": "App.example.com",
		"tenant": 7,
		"upstreams": [{"dial": "a"}, {"dial": "b:1", "tls": {"post_quantum": "x", "extra": {}}, "region": null}, 3],
		"load_balancing": "x", "proxy_protocol": "x", "post_quantum": "x",
		"alpn": ["acme-tls/1", ""],
		"certificate": {"source": "byoc", "source": "acme"},
		"max_connections": -1,
		"suspended": 0
	}`
	_, err := Parse([]byte(in), Remote)
	want := []string{
		"tenant", "upstreams[1].tls.extra", "upstreams[1].region", "upstreams[2]", "certificate.source", "suspended",
		"upstreams[0].dial", "upstreams[1].tls.post_quantum", "load_balancing", "proxy_protocol", "post_quantum",
		"alpn[0]", "alpn[1]", "certificate.chain_pem", "certificate.key_pem", "max_connections",
	}
	if got := fields(err); !slices.Equal(got, want) {
		t.Errorf("faulty fields\n%q, want\n%q", got, want)
	}
	for _, e := range Errors(err) {
		if e.Name != "app.example.com" {
			t.Errorf("fault of %s has name %q, want the record's", e.Field, e.Name)
		}
	}
}

func TestParseBoundsFaults(t *testing.T) {
	var unknown strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&unknown, `,"x%d":1`, i)
	}
	_, err := Parse([]byte(record(unknown.String())), Remote)
	list := Errors(err)
	if len(list) != maxFaults+1 || !strings.Contains(list[maxFaults].Error(), "936 more faults") {
		t.Errorf("%d faults, the last %q; want %d and how many more", len(list), list[len(list)-1], maxFaults+1)
	}
}

func TestErrorText(t *testing.T) {
	_, err := Parse([]byte(`{"name":"App.example.com","upstreams":[{"dial":"10.0.0.5"}]}`), Remote)
	const want = `domain "app.example.com": upstreams[0].dial: "10.0.0.5" is not an address with a port; write host:port, such as 10.0.0.5:8443, [2001:db8::5]:8443 or app.internal:8443`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, err = Parse([]byte(`{}`), Remote)
	if err == nil || !strings.HasPrefix(err.Error(), "domain: name: is missing") {
		t.Errorf("without a name: %v", err)
	}
	long := strings.Repeat("ü", 300)
	_, err = Parse([]byte(`{"name":"`+long+`","upstreams":[{"dial":"a:1"}]}`), Remote)
	if list := Errors(err); len(list) != 1 || list[0].Name != long[:64] || len(list[0].Error()) > 400 {
		t.Errorf("long input is not shortened: %v", err)
	}
}

func TestErrors(t *testing.T) {
	a, b := &Error{Field: "a", Err: errors.New("x")}, &Error{Field: "b", Err: errors.New("y")}
	joined := fmt.Errorf("set: %w", errors.Join(a, errors.New("other"), fmt.Errorf("record: %w", b)))
	if got := Errors(joined); !slices.Equal(got, []*Error{a, b}) {
		t.Errorf("got %v, want both faults", got)
	}
	if got := Errors(nil); got != nil {
		t.Errorf("of nil: %v", got)
	}
	if got := Errors(errors.New("other")); got != nil {
		t.Errorf("of another error: %v", got)
	}
}

func TestNormalizeLeavesInputAlone(t *testing.T) {
	shared := []Upstream{{Dial: "A:1", TLS: &UpstreamTLS{ServerName: "B."}}}
	bad := Domain{Name: "A.example", Upstreams: shared, MaxConnections: -1}
	before := bad.Clone()
	if err := bad.Normalize(Static); !slices.Equal(fields(err), []string{"max_connections"}) {
		t.Fatalf("unexpected result: %v", err)
	}
	if !reflect.DeepEqual(&bad, before) {
		t.Errorf("a refused domain was changed to %v", bad)
	}
	good := Domain{Name: "A.example", Upstreams: shared}
	if err := good.Normalize(Static); err != nil {
		t.Fatal(err)
	}
	if shared[0].Dial != "A:1" || shared[0].TLS.ServerName != "B." {
		t.Errorf("memory of the caller was written to: %+v", shared[0])
	}
	if good.Name != "a.example" || good.Upstreams[0].Dial != "a:1" || good.Upstreams[0].TLS.ServerName != "b" {
		t.Errorf("not in normal form: %v", good)
	}
}

// JSON is always text; a struct need not be.
func TestNormalizeRefusesWhatJSONCannotCarry(t *testing.T) {
	d := Domain{
		Name:        "a.example",
		Tenant:      "\xff",
		Upstreams:   []Upstream{{Dial: "a:1", TLS: &UpstreamTLS{CAPEM: testCertificatePEM(t) + "\xff"}}},
		ALPN:        []string{"\xff"},
		Certificate: Certificate{Source: BYOC, ChainPEM: "\xff", KeyPEM: "\xff"},
	}
	want := []string{"tenant", "upstreams[0].tls.ca_pem", "alpn[0]", "certificate.chain_pem", "certificate.key_pem"}
	if got := fields(d.Normalize(Static)); !slices.Equal(got, want) {
		t.Errorf("faulty fields %q, want %q", got, want)
	}
}

func TestUnmarshalJSON(t *testing.T) {
	var list []Domain
	err := json.Unmarshal([]byte(`[{"name":"A","upstreams":[]},{"name":"b"}]`), &list)
	if err != nil || len(list) != 2 || list[0].Name != "A" || list[1].Name != "b" {
		t.Errorf("semantics are not its business: %v, %v", list, err)
	}
	for _, in := range []string{`[{"name":"a","nome":1}]`, `[null]`, `[{"name":"a","name":"a"}]`} {
		var list []Domain
		if err := json.Unmarshal([]byte(in), &list); len(Errors(err)) != 1 {
			t.Errorf("%s was accepted: %v", in, err)
		}
	}
	d := Domain{Name: "old", Suspended: true}
	if err := d.UnmarshalJSON([]byte(`{"name":1}`)); err == nil || d.Name != "old" || !d.Suspended {
		t.Errorf("after a failure: %v, %v", d, err)
	}
	if err := d.UnmarshalJSON([]byte(`{"name":"new"}`)); err != nil || d.Name != "new" || d.Suspended {
		t.Errorf("nothing of the old value may stay: %v, %v", d, err)
	}
}

const secret = "MC4CAQAwBQYDK2VwBCIEIFsecretsecretsecret"

const secretPEM = "-----BEGIN PRIVATE KEY-----\n" + secret + "\n-----END PRIVATE KEY-----\n"

func TestPrintingHidesKey(t *testing.T) {
	d := &Domain{
		Name:        "a.example",
		Upstreams:   []Upstream{{Dial: "a:1", TLS: &UpstreamTLS{CAPEM: "ca " + secret}}},
		Certificate: Certificate{Source: BYOC, ChainPEM: "chain", KeyPEM: secretPEM},
	}
	var texts []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t"} {
		for _, v := range []any{d, *d, d.Certificate, &d.Certificate, []Domain{*d}, map[string]any{"d": *d}, struct{ D Domain }{*d}} {
			texts = append(texts, fmt.Sprintf(verb, v))
		}
	}
	hidden := struct{ d *Domain }{d}
	texts = append(texts, fmt.Sprintf("%v %+v %#v", hidden, hidden, hidden))
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "d", d, "v", *d, "c", d.Certificate)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "d", d, "v", *d, "c", d.Certificate)
	redacted, err := json.Marshal(d.Redacted())
	if err != nil {
		t.Fatal(err)
	}
	texts = append(texts, d.String(), d.Certificate.String(), log.String())
	for _, text := range texts {
		if strings.Contains(text, "secretsecret") || strings.Contains(text, fmt.Sprintf("%x", "secretsecret")) {
			t.Errorf("the key is shown: %s", text)
		}
	}
	if strings.Contains(string(redacted), "BEGIN PRIVATE") {
		t.Errorf("the redacted copy has the key: %s", redacted)
	}
	if !strings.Contains(d.String(), `"key_pem":"(set)"`) || !strings.Contains(d.String(), `"name":"a.example"`) {
		t.Errorf("too much is hidden: %s", d)
	}
	if d.Certificate.KeyPEM != secretPEM || d.Upstreams[0].TLS.CAPEM == "(set)" {
		t.Errorf("printing changed the domain")
	}
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var back Domain
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(&back, d) {
		t.Errorf("JSON must carry the key: %v", err)
	}
}

// A key that was pasted into the wrong place must not reach logs through the error about that.
func TestErrorsHideKeys(t *testing.T) {
	key, err := json.Marshal(secretPEM)
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{
		`{"name":K,"tenant":K,"upstreams":[{"dial":K,"region":K,"tls":{"server_name":K,"ca_pem":K,"ca_file":K,"post_quantum":K}}],` +
			`"load_balancing":K,"proxy_protocol":K,"post_quantum":K,"alpn":[K,K],"certificate":{"source":K,"fallback":K},K:1}`,
		`{"name":"a.example","upstreams":[{"dial":"a:1"}],"certificate":{"chain_pem":K,"key_pem":K,"chain_file":K,"key_file":K}}`,
		`{"name":"a.example","certificate":{"source":"byoc","key_pem":K,"key_pem":K,"x":K}}`,
		`{"name":"ü` + secretPEM[:20] + `","certificate":{"key_pem":K}`,
	} {
		for _, src := range []Source{Static, Remote} {
			_, err := Parse([]byte(strings.ReplaceAll(in, "K", string(key))), src)
			if err == nil {
				t.Fatalf("accepted: %s", in)
			}
			asJSON, jsonErr := json.Marshal(Errors(err))
			if jsonErr != nil {
				t.Fatal(jsonErr)
			}
			text := fmt.Sprintf("%v %+v %#v %s", err, Errors(err), Errors(err), asJSON)
			if strings.Contains(text, "MC4C") || strings.Contains(text, "secretsecret") {
				t.Errorf("the key is shown: %s", text)
			}
		}
	}
}

func TestNetwork(t *testing.T) {
	tests := []struct{ dial, network, address string }{
		{"10.0.0.5:8443", "tcp", "10.0.0.5:8443"},
		{"unix//run/app.sock", "unix", "/run/app.sock"},
		{"unix:443", "tcp", "unix:443"},
	}
	for _, tt := range tests {
		network, address := Upstream{Dial: tt.dial}.Network()
		if network != tt.network || address != tt.address {
			t.Errorf("%s: %s %s, want %s %s", tt.dial, network, address, tt.network, tt.address)
		}
	}
}

func TestTLSServerName(t *testing.T) {
	tests := []struct{ dial, serverName, want string }{
		{"app.internal:443", "", "app.internal"},
		{"app.internal.:443", "", "app.internal"},
		{"app.internal:443", "other", "other"},
		{"10.0.0.5:443", "", "asked.example"},
		{"10.0.0.5:443", "other", "other"},
		{"[2001:db8::5]:443", "", "asked.example"},
		{"[fe80::1%eth0]:443", "", "asked.example"},
		{"unix//run/app.sock", "", "asked.example"},
	}
	for _, tt := range tests {
		u := Upstream{Dial: tt.dial, TLS: &UpstreamTLS{ServerName: tt.serverName}}
		if got := u.TLSServerName("asked.example"); got != tt.want {
			t.Errorf("%s with %q: %s, want %s", tt.dial, tt.serverName, got, tt.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	d := Domain{Upstreams: []Upstream{
		{Dial: "a:1"},
		{Dial: "b:1", TLS: &UpstreamTLS{}},
		{Dial: "c:1", TLS: &UpstreamTLS{InsecureSkipVerify: true}},
		{Dial: "d:1", TLS: &UpstreamTLS{InsecureSkipVerify: true, CAFile: "x"}},
	}}
	got := d.Warnings()
	if len(got) != 2 || !strings.HasPrefix(got[0], "upstreams[2].tls.insecure_skip_verify: ") || strings.Contains(got[0], "CA") || !strings.Contains(got[1], "CA") {
		t.Errorf("warnings %q", got)
	}
}

func ExampleParse() {
	d, err := Parse([]byte(`{"name":"Bücher.Example.","upstreams":[{"dial":"[2001:DB8::5]:8443"}]}`), Remote)
	fmt.Println(d.Name, d.Upstreams[0].Dial, d.Certificate.Source, err)

	_, err = Parse([]byte(`{"name":"app.example.com","upstreams":[],"post_quantum":"yes"}`), Remote)
	for _, fault := range Errors(err) {
		fmt.Println(fault.Field)
	}
	// Output:
	// xn--bcher-kva.example [2001:db8::5]:8443 acme <nil>
	// upstreams
	// post_quantum
}

// BenchmarkParse reads a typical record. Parsing dominates the start of an edge with a full set: the
// number is what one domain of it costs, without TLS or CA certificates. Run:
//
//	go test -bench Parse -benchtime 2s ./domain
func BenchmarkParse(b *testing.B) {
	in := []byte(`{"name":"app.example.com","tenant":"ten_01j9","upstreams":[{"dial":"10.0.0.5:8443","tls":{"server_name":"app.internal"},"region":"gru"},{"dial":"10.0.0.6:8443","tls":{}}],"load_balancing":"first","proxy_protocol":"v1","post_quantum":"prefer","certificate":{"source":"acme"}}`)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(in, Remote); err != nil {
			b.Fatal(err)
		}
	}
}
