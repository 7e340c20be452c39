package management

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

var (
	statusNow  = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	statusPast = statusNow.Add(-time.Hour)
	statusSoon = statusNow.Add(90 * 24 * time.Hour)
)

// settledView is a domain that is active, to be spoilt by the cases.
func settledView() domainView {
	return domainView{
		row: &DomainRow{
			ID: "dom_1", TenantID: "ten_1", Name: "app.example.com", Token: "token", Revision: 5, Proof: ProofTXT, ProvenAt: statusPast, ActivatedAt: statusPast,
			CreatedAt: statusPast, UpdatedAt: statusPast,
			Settings: &domain.Domain{Name: "app.example.com", Upstreams: []domain.Upstream{{Dial: "10.0.0.5:1"}, {Dial: "10.0.0.6:1"}}, Certificate: domain.Certificate{Source: domain.ACME}},
			Facts:    DomainFacts{CheckedAt: statusPast, PointedAt: statusPast, DNS: Finding{State: FoundOK}, TXT: Finding{State: FoundOK}},
		},
		tenant:  &Tenant{},
		edges:   EdgeState{Of: 3, Applied: 3, Live: 3, LiveSince: statusPast, Certificate: EdgeCertificate{Held: 3, NotAfter: statusSoon}},
		targets: []Target{{"a", "203.0.113.10"}},
		now:     statusNow,
	}
}

func TestDeriveStatus(t *testing.T) {
	fresh := func(v *domainView) { v.row.ActivatedAt = time.Time{} }
	for _, c := range []struct {
		about   string
		spoil   func(v *domainView)
		status  Status
		serving bool
		stuck   bool
		who     string // of the next action; "": there is none
	}{
		{"all is well", func(*domainView) {}, Active, true, false, ""},
		{"for the first time", fresh, Active, true, false, ""},
		{"nothing compared with targets", func(v *domainView) { v.targets = nil; v.row.Facts.DNS = Finding{State: FoundOff} }, Active, true, false, ""},

		{"never checked", func(v *domainView) { fresh(v); v.row.Facts = DomainFacts{}; v.row.Proof = "" }, PendingDNS, false, true, WhoCustomer},
		{"absent", func(v *domainView) {
			fresh(v)
			v.row.Facts.DNS.State = FoundAbsent
			v.row.Facts.PointedAt = time.Time{}
		}, PendingDNS, true, true, WhoCustomer},
		{"elsewhere, was here before it was active", func(v *domainView) { fresh(v); v.row.Facts.DNS.State = FoundWrong }, PendingDNS, true, true, WhoCustomer},
		{"nobody could be asked", func(v *domainView) { fresh(v); v.row.Facts.DNS.State = FoundUnknown }, PendingDNS, true, true, WhoService},
		{"not proven", func(v *domainView) { fresh(v); v.row.Proof = "" }, Verifying, false, true, WhoCustomer},
		{"not proven, TXT could not be asked", func(v *domainView) {
			fresh(v)
			v.row.Proof = ""
			v.row.Facts.TXT.Trouble = "No answer."
			v.row.UpdatedAt = statusNow
		}, Verifying, false, false, WhoService},
		{"taken by another", func(v *domainView) { fresh(v); v.row.Proof = ""; v.row.Facts.Taken, v.row.Facts.Lost = true, true }, Verifying, false, true, WhoCustomer},
		{"no certificate", func(v *domainView) { fresh(v); v.edges.Live, v.edges.Certificate = 0, EdgeCertificate{} }, Issuing, false, true, WhoService},
		{"no certificate yet", func(v *domainView) {
			fresh(v)
			v.edges.Live, v.edges.Certificate = 0, EdgeCertificate{}
			v.row.ProvenAt = statusNow
		}, Issuing, false, false, WhoService},
		{"CAA forbids it", func(v *domainView) {
			fresh(v)
			v.edges.Live, v.edges.Certificate = 0, EdgeCertificate{}
			v.row.Facts.CAA = Finding{State: FoundWrong, Detail: "CAA."}
		}, Issuing, false, true, WhoCustomer},
		{"CAA could not be asked", func(v *domainView) {
			fresh(v)
			v.edges.Live, v.edges.Certificate = 0, EdgeCertificate{}
			v.row.Facts.CAA, v.row.UpdatedAt = Finding{State: FoundUnknown}, statusNow
		}, Issuing, false, false, WhoService},
		{"no edge", func(v *domainView) { fresh(v); v.edges = EdgeState{} }, Issuing, false, true, WhoOperator},
		{"two of three", func(v *domainView) { fresh(v); v.edges.Live, v.edges.Applied = 2, 2; v.row.UpdatedAt = statusNow }, Deploying, true, false, WhoService},
		{"refused by an edge", func(v *domainView) { fresh(v); v.edges.Live, v.edges.Rejected = 2, "upstreams[0].dial: no" }, Deploying, true, true, WhoCustomer},

		{"moved away", func(v *domainView) { v.row.Facts.DNS.State = FoundWrong }, Moved, true, true, WhoCustomer},
		{"gone from DNS", func(v *domainView) { v.row.Facts.DNS.State = FoundAbsent }, Moved, true, true, WhoCustomer},
		{"DNS is down, was fine", func(v *domainView) { v.row.Facts.DNS.Trouble = "No answer." }, Active, true, false, ""},
		{"DNS never answered since targets came", func(v *domainView) { v.row.Facts.DNS = Finding{State: FoundUnknown} }, Active, true, false, ""},
		{"all upstreams down", func(v *domainView) {
			v.edges.Upstreams = []EdgeUpstream{{"10.0.0.5:1", "refused", 1}, {"10.0.0.6:1", "", 3}}
		}, Degraded, true, true, WhoCustomer},
		{"one upstream down", func(v *domainView) { v.edges.Upstreams = []EdgeUpstream{{"10.0.0.5:1", "refused", 3}} }, Active, true, false, ""},
		{"an upstream it has no more is down", func(v *domainView) {
			v.edges.Upstreams = []EdgeUpstream{{"10.0.0.5:1", "refused", 3}, {"10.0.0.9:1", "refused", 3}}
		}, Active, true, false, ""},
		{"certificate ended", func(v *domainView) { v.edges.Certificate.NotAfter, v.edges.Live = statusPast, 0 }, Degraded, false, true, WhoService},
		{"renewal fails, still good", func(v *domainView) { v.edges.Certificate.Error = "no" }, Active, true, false, ""},
		{"own pair ended", func(v *domainView) {
			v.row.Settings.Certificate.Source, v.row.CertificateNotAfter = domain.BYOC, statusPast
		}, Degraded, true, true, WhoCustomer},
		{"own pair ended, edges fall back", func(v *domainView) {
			v.row.Settings.Certificate = domain.Certificate{Source: domain.BYOC, Fallback: domain.FallbackACME}
			v.row.CertificateNotAfter = statusPast
		}, Active, true, false, ""},
		{"certificate lost", func(v *domainView) { v.edges.Live, v.edges.Certificate = 0, EdgeCertificate{} }, Degraded, false, true, WhoService},
		{"being told of a change", func(v *domainView) { v.edges.Live, v.edges.Applied = 0, 0 }, Active, true, false, ""},
		{"refused by an edge after a change", func(v *domainView) { v.edges.Rejected = "no" }, Degraded, true, true, WhoCustomer},
		{"edges say nothing any more", func(v *domainView) { v.edges = EdgeState{} }, Active, true, false, ""},
		{"suspended", func(v *domainView) { v.row.Settings.Suspended = true }, Suspended, false, false, WhoCustomer},
		{"tenant suspended", func(v *domainView) { v.tenant.Suspended = true }, Suspended, false, false, WhoOperator},
		{"deleting", func(v *domainView) { v.row.DeletingAt, v.row.Proof, v.row.Settings.Suspended = statusNow, "", true }, Deleting, false, false, WhoService},
	} {
		v := settledView()
		c.spoil(&v)
		s := derive(v)
		who := ""
		if s.NextAction != nil {
			who = s.NextAction.Who
		}
		if s.Status != c.status || s.Serving != c.serving || s.Stuck != c.stuck || who != c.who {
			t.Errorf("%s: %s serving=%v stuck=%v %q; want %s %v %v %q", c.about, s.Status, s.Serving, s.Stuck, who, c.status, c.serving, c.stuck, c.who)
		}
	}
}

// TestDeriveIsTotal derives states of what may be in no database, and checks what must hold for each.
func TestDeriveIsTotal(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	states := []AxisState{AxisOK, AxisPending, AxisFailed, AxisUnknown, AxisOff}
	times := []time.Time{{}, statusPast, statusNow, statusSoon}
	finding := func() Finding {
		return Finding{State: pick(r, FoundOK, FoundAbsent, FoundWrong, FoundUnknown, FoundOff, "", "odd"), Trouble: pick(r, "", "trouble"), Detail: pick(r, "", "detail"), At: pick(r, times...)}
	}
	flip := func() bool { return r.IntN(2) == 0 }
	for range 200_000 {
		v := settledView()
		row := v.row
		row.Name = pick(r, "app.example.com", "*.example.com", strings.Repeat("a.", 122)+"example")
		row.Proof = pick(r, "", ProofTrusted, ProofTXT, ProofHTTP, ProofDNS, "odd")
		row.Settings.Certificate = domain.Certificate{Source: pick(r, domain.ACME, domain.BYOC, domain.Internal, ""), Fallback: pick(r, "", "none", "acme")}
		row.Settings.Suspended, v.tenant.Suspended, v.tenant.Trusted = r.IntN(8) == 0, r.IntN(8) == 0, flip()
		if flip() {
			row.Settings.Upstreams = nil
		}
		row.Facts = DomainFacts{DNS: finding(), TXT: finding(), HTTP: finding(), CAA: finding(), CheckedAt: pick(r, times...), PointedAt: pick(r, times...),
			Contested: flip(), Taken: flip(), Lost: flip()}
		if flip() {
			row.Facts.Records = []Record{{Purpose: pick(r, ForTraffic, ForOwnership, "odd"), OK: flip()}}
		}
		row.ActivatedAt, row.DeletingAt, row.CertificateNotAfter = pick(r, times...), pick(r, time.Time{}, time.Time{}, statusNow), pick(r, times...)
		row.UpdatedAt, row.ProvenAt = pick(r, times...), pick(r, times...)
		of := r.IntN(4)
		v.edges = EdgeState{Of: of, Applied: r.IntN(of + 1), Rejected: pick(r, "", "no"), LiveSince: pick(r, times...),
			Certificate: EdgeCertificate{Held: r.IntN(of + 1), NotAfter: pick(r, times...), Error: pick(r, "", "no")}}
		v.edges.Live = r.IntN(v.edges.Applied + 1)
		if flip() {
			v.edges.Upstreams = []EdgeUpstream{{"10.0.0.5:1", "", r.IntN(3)}}
		}
		if flip() {
			v.targets = nil
		}
		s := derive(v)
		for name, state := range map[string]AxisState{"ownership": s.Axes.Ownership.State, "dns": s.Axes.DNS.State, "certificate": s.Axes.Certificate.State,
			"upstream": s.Axes.Upstream.State, "edges": s.Axes.Edges.State} {
			if !slices.Contains(states, state) {
				t.Fatalf("%s is %q of %+v", name, state, v)
			}
		}
		published := row.Proof != "" && row.DeletingAt.IsZero()
		suspended := row.Settings.Suspended || v.tenant.Suspended
		for about, broken := range map[string]bool{
			"no known status":                    !slices.Contains(Statuses, s.Status),
			"deleting":                           (s.Status == Deleting) == row.DeletingAt.IsZero(),
			"suspended":                          (s.Status == Suspended) != (suspended && row.DeletingAt.IsZero()),
			"served without a proof":             s.Serving && !published,
			"served while suspended":             s.Serving && suspended,
			"active without a proof":             (s.Status == Active || s.Status == Degraded) && !published,
			"active with something to do":        s.Status == Active && (s.NextAction != nil || s.Stuck),
			"not active with nothing to do":      s.Status != Active && s.NextAction == nil,
			"a next action without words":        s.NextAction != nil && (s.NextAction.Text == "" || s.NextAction.Who == ""),
			"records are null":                   s.Records == nil || slices.ContainsFunc(s.Records, func(r Record) bool { return r.Seen == nil }),
			"a record to set that needs nothing": s.NextAction != nil && s.NextAction.Record != nil && s.NextAction.Who != WhoCustomer,
		} {
			if broken {
				t.Fatalf("%s: %s, %+v, of %+v, row %+v, edges %+v", about, s.Status, s.NextAction, v, *row, v.edges)
			}
		}
	}
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// TestDomainJSON holds the shape of section 9 to the letter.
func TestDomainJSON(t *testing.T) {
	v := settledView()
	text, err := json.Marshal(v.shown())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		`"id":"dom_1"`, `"tenant":"ten_1"`, `"revision":5`, `"status":"active"`, `"serving":true`, `"stuck":false`, `"next_action":null`,
		`"records":[{"purpose":"traffic","type":"A","name":"app.example.com","value":"203.0.113.10","seen":[],"ok":false},{"purpose":"ownership","type":"TXT","name":"_pqproxy.app.example.com","value":"pqproxy-verify=token","seen":[],"ok":true}]`,
		`"axes":{"ownership":{"state":"ok","detail":`, `"proof":"txt"`, `"edges":{"state":"ok",`, `"live":3,"of":3,"since":"2026-05-01T11:00:00Z"`,
	} {
		if !strings.Contains(string(text), part) {
			t.Errorf("%s lacks %s", text, part)
		}
	}
}

func TestPointerOf(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "name": "/name", "upstreams[0].tls.ca_pem": "/upstreams/0/tls/ca_pem", "alpn[12]": "/alpn/12",
		`upstreams[1]."we.ird"`: "/upstreams/1/…", `"x"`: "/…", "SECRET": "/…",
	} {
		if got := pointerOf(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestMerge has the cases of RFC 7396 appendix A whose target and patch are objects.
func TestMerge(t *testing.T) {
	for _, c := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
	} {
		target, err := readObject([]byte(c[0]))
		if err != nil {
			t.Fatal(err)
		}
		patch, err := readObject([]byte(c[1]))
		if err != nil {
			t.Fatal(err)
		}
		if text, _ := json.Marshal(merge(target, patch)); string(text) != c[2] {
			t.Errorf("%s with %s is %s, want %s", c[0], c[1], text, c[2])
		}
		if text, _ := json.Marshal(patch); string(text) != c[1] {
			t.Errorf("the patch %s became %s", c[1], text)
		}
	}
}

// FuzzReadObject: what is taken reads the same for encoding/json, and nothing panics.
func FuzzReadObject(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a":[1,{"b":null}],"c":"\u0000"}`, `{"a":1,"a":2}`, `[`, `{"a":1e999}`, `{} `, `nul`, "{\"\xff\":1}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		tree, err := readObject(text)
		if err != nil {
			if code := CodeOf(err); code != Malformed && code != Invalid {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if !json.Valid(text) {
			t.Errorf("%q is no JSON", text)
		}
		again, err := json.Marshal(merge(object{}, tree))
		if err != nil {
			t.Fatalf("%q cannot be written: %v", text, err)
		}
		if _, err := readObject(again); err != nil {
			t.Errorf("%q was written as %q: %v", text, again, err)
		}
	})
}
