//go:build linux

package main

import (
	"encoding/json"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management/store"
)

// All of it works, on both databases, with the smallest numbers there can be: what is sent is what is found, nothing fails.
func TestRun(t *testing.T) {
	opts, err := parseOptions([]string{"-quick", "-domains", "500", "-records", "3000", "-out", filepath.Join(t.TempDir(), "out")})
	if err != nil {
		t.Fatal(err)
	}
	s := &opts.Size
	s.Tenants, s.Large, s.Deltas, s.ListSecs, s.QuerySecs, s.Edges, s.PollSecs, s.PageSecs, s.ReportSecs, s.CheckOf = 10, 60, 3, 1, 1, 5, 1, 2, 2, 2
	if err := run(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(opts.out + "-summary.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, database := range databases["both"] {
		for _, want := range []string{
			"| database=" + database + " | tenants whose sums are not what was sent | 0.00 | ≤ 0.00 | met |",
			"| database=" + database + " | records too many or too few | 0.00 | ≤ 0.00 | met |",
			"| database=" + database + " | tenants whose records are not those sent | 0.00 | ≤ 0.00 | met |",
			"| database=" + database + " reports=yes | changes that an edge did not get | 0.00 | ≤ 0.00 | met |",
			"| database=" + database + " | s, the full set after a change |",
			database + ", typical", database + ", operator", "The slowest page, database=" + database + "/user=large: `",
		} {
			if !strings.Contains(string(text), want) {
				t.Errorf("the summary lacks %q", want)
			}
		}
	}
	for _, c := range cells() {
		if strings.HasPrefix(c.Name, scenarioPages) {
			user := c.Name[strings.LastIndexByte(c.Name, '=')+1:]
			checkPages(t, opts.out+lab.RawSuffix, c.Name, pagesOf(user))
		}
	}
	if strings.Contains(string(text), "Faults in") {
		t.Errorf("there were faults:\n%s", text)
	}
	raw, err := os.ReadFile(opts.out + lab.RawSuffix)
	if lines := strings.Count(string(raw), "\n"); err != nil || lines != 1+len(cells()) {
		t.Errorf("%d raw lines, %v, want one for each of %d cells and the environment", lines, err, len(cells()))
	}
}

// checkPages looks at what was written down of the pages of a user: each of them was loaded, and has a size that a page has.
func checkPages(t *testing.T, raw, cell string, kinds []pageKind) {
	t.Helper()
	text, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var m lab.Measurement
		if err := json.Unmarshal([]byte(line), &m); err != nil || m.Cell != cell {
			continue
		}
		most := 0.0
		for _, k := range kinds {
			most = max(most, m.Values[k.name+"_p95_ms"])
			if m.Values[k.name+"_alone_ms"] <= 0 || m.Values[k.name+"_p95_ms"] < m.Values[k.name+"_p50_ms"] || m.Values[k.name+"_p50_ms"] <= 0 ||
				m.Values[k.name+"_kib"] <= m.Values["static_kib"] || m.Values[k.name+"_kib"] > m.Values["worst_kib"] {
				t.Errorf("%s: %s was not measured, or is not what a page is", cell, k.name)
			}
		}
		if name := slowest(m.Values); most != m.Values["worst_p95_ms"] || m.Values[name+"_p95_ms"] != most {
			t.Errorf("%s: the slowest page is said to be %s with %v ms, want %v ms", cell, name, m.Values["worst_p95_ms"], most)
		}
		return
	}
	t.Errorf("%s is not in the raw results", cell)
}

func TestFormOf(t *testing.T) {
	page := []byte(`<form method="post" action="/logout"><input name="a" value="1"></form>
		<form method="post" action="/login"><input type="hidden" name="_once" value="x&amp;y"><input name="email"><button>Go</button></form>`)
	fields, err := formOf(page, "/login")
	if want := (url.Values{"_once": {"x&y"}, "email": {""}}); err != nil || !maps.EqualFunc(fields, want, slices.Equal) {
		t.Errorf("formOf = %v, %v, want %v", fields, err, want)
	}
	if _, err := formOf(page, "/setup"); err == nil {
		t.Error("a form that is not there was found")
	}
}

func TestPagesOf(t *testing.T) {
	known := map[string]bool{}
	for _, user := range pageUsers {
		for _, k := range pagesOf(user) {
			known[k.name] = true
		}
	}
	for _, k := range pageKinds {
		if !known[k.name] {
			t.Errorf("nobody looks at %s", k.name)
		}
	}
	if n, of := len(pagesOf(platformOperator)), len(pageKinds); n == 0 || n >= of {
		t.Errorf("an operator looks at %d of %d pages", n, of)
	}
}

func TestOptions(t *testing.T) {
	both := []string{store.Postgres, store.SQLite}
	for _, tt := range []struct {
		args      string
		databases []string
		domains   int
		seconds   float64
		partial   bool
		wantErr   bool
	}{
		{"", both, fullSize.Domains, 600, false, false},
		{"-quick", both, quickSize.Domains, quickSize.ReportSecs, true, false},
		{"-database sqlite", []string{store.SQLite}, fullSize.Domains, 600, true, false},
		{"-minutes 2", both, fullSize.Domains, 120, true, false},
		{"-quick -minutes 0.5 -domains 5000", both, 5000, 30, true, false},
		{"-records 7000000", both, fullSize.Domains, 600, true, false},
		{"-run scenario=poll", both, fullSize.Domains, 600, true, false},
		{"-database oracle", nil, 0, 0, true, true},
		{"-domains 100", nil, 0, 0, true, true},
		{"-records 1", nil, 0, 0, true, true},
		{"-minutes -1", nil, 0, 0, true, true},
		{"more", nil, 0, 0, true, true},
	} {
		t.Run(tt.args, func(t *testing.T) {
			opts, err := parseOptions(strings.Fields(tt.args))
			if (err != nil) != tt.wantErr || err == nil && (!slices.Equal(opts.Databases, tt.databases) || opts.Size.Domains != tt.domains ||
				opts.Size.ReportSecs != tt.seconds || opts.partial() != tt.partial) {
				t.Errorf("parseOptions = %+v, %v", opts, err)
			}
		})
	}
}

func TestCellNames(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range cells() {
		if seen[c.Name] {
			t.Errorf("%q stands twice", c.Name)
		}
		seen[c.Name] = true
		for part := range strings.SplitSeq(c.Name, "/") {
			if key, value, ok := strings.Cut(part, "="); !ok || key == "" || value == "" {
				t.Errorf("%q: %q is not key=value", c.Name, part)
			}
		}
		keys := map[string]bool{}
		for _, m := range c.Metrics {
			if keys[m.Key] {
				t.Errorf("%q has %q twice", c.Name, m.Key)
			}
			keys[m.Key] = true
		}
	}
}

// testWorld is a world that nobody has stored.
func testWorld(s size) *world {
	w := &world{accounts: make([]account, s.Tenants)}
	for i := range s.Domains {
		owner := ownerOf(i, s)
		w.names, w.ids, w.owner = append(w.names, domainName(i, owner)), append(w.ids, "dom_"), append(w.owner, owner)
		w.accounts[owner].domains = append(w.accounts[owner].domains, i)
	}
	return w
}

func TestOwners(t *testing.T) {
	w := testWorld(fullSize)
	for i, a := range w.accounts {
		if n := len(a.domains); i == 0 && n != fullSize.Large || i > 0 && (n < 90 || n > 91) {
			t.Fatalf("tenant %d has %d domains", i, n)
		}
	}
}

// What is counted is what the records say, whatever they are counted by.
func TestCountsAreOfTheRecords(t *testing.T) {
	w := testWorld(quickSize)
	start := time.Date(2026, 11, 22, 12, 0, 30, 0, time.UTC)
	counted := make(counts)
	const n = 2000
	b := newTraffic(w, 1).batch(n, start, time.Hour, func(c *edgereport.Connection, number int) {
		if w.names[number] != c.Domain || c.Time.Before(start) || !c.Time.Before(start.Add(time.Hour)) {
			t.Fatalf("a record of %s at %v", c.Domain, c.Time)
		}
		counted.add(c, number, time.Minute)
	})
	var records, counters tally
	for _, one := range b.tallies {
		records.add(one)
	}
	for key, c := range counted {
		var groups, reasons, handshakes int64
		for group, n := range c.Groups {
			groups += n
			if strings.Contains(group, "MLKEM") {
				counters.postQuantum += n
			}
		}
		for _, n := range c.EndReasons {
			reasons += n
		}
		for _, n := range c.Handshakes {
			handshakes += n
		}
		if c.Connections != groups || c.Connections != reasons || c.Connections != handshakes || !c.Minute.Equal(c.Minute.Truncate(time.Minute)) || c.Minute.Unix() != key.begin {
			t.Fatalf("a counter does not add up: %+v", c)
		}
		counters.add(tally{connections: c.Connections, bytesIn: c.BytesIn, bytesOut: c.BytesOut, helloRetries: c.HelloRetries})
	}
	counters.ids = records.ids
	if records != counters || records.connections != n || b.Connections() != n {
		t.Errorf("%d records are %+v, counted as %+v", b.Connections(), records, counters)
	}
	if len(counted) < 100 || len(counted) > n-100 {
		t.Errorf("%d counters of %d records: some names are to be popular", len(counted), n)
	}
}

func TestDelays(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(100, 0).Add(time.Duration(ms) * time.Millisecond) }
	changes := []answered{{5, at(0), at(10)}, {6, at(20), at(30)}, {9, at(50), at(60)}}
	late, total, missing := delays(changes, []arrival{{5, at(8)}, {7, at(70)}})
	if !slices.Equal(late, []float64{0, 40}) || !slices.Equal(total, []float64{8, 50}) || missing != 1 {
		t.Errorf("delays = %v, %v, %d", late, total, missing)
	}
}

func TestParseTimes(t *testing.T) {
	pid, parent, own, waited, err := parseTimes("4217 (a (b) c) S 4216 4217 4217 0 -1 4194560 100 200 3 4 150 50 7 3 20 0 1 0 99 100 200")
	if err != nil || pid != 4217 || parent != 4216 || own != 2*time.Second || waited != 100*time.Millisecond {
		t.Errorf("parseTimes = %d, %d, %v, %v, %v", pid, parent, own, waited, err)
	}
	for _, bad := range []string{"", "1 (x) S 1 2", "x (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"} {
		if _, _, _, _, err := parseTimes(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestParsePeak(t *testing.T) {
	if got, err := parsePeak("Name:\tpqproxy\nVmHWM:\t  204800 kB\nVmRSS:\t 1024 kB\n"); err != nil || got != 200 {
		t.Errorf("parsePeak = %v, %v", got, err)
	}
	for _, bad := range []string{"", "VmHWM:\t many kB\n"} {
		if _, err := parsePeak(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestZone(t *testing.T) {
	z, err := startZone()
	if err != nil {
		t.Fatal(err)
	}
	defer z.close()
	for _, tt := range []struct {
		name string
		kind uint16
		want string
	}{
		{"app.example.com.", dns.TypeA, target},
		{"_pqproxy.app.example.com.", dns.TypeTXT, "pqproxy-verify=" + proofToken},
		{"app.example.com.", dns.TypeAAAA, ""},
		{"app.example.com.", dns.TypeCAA, ""},
	} {
		answer, err := dns.Exchange(new(dns.Msg).SetQuestion(tt.name, tt.kind), z.addr)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, rr := range answer.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				got += rr.A.String()
			case *dns.TXT:
				got += strings.Join(rr.Txt, "")
			}
		}
		if got != tt.want {
			t.Errorf("%s, type %d: %q, want %q", tt.name, tt.kind, got, tt.want)
		}
	}
}

func TestRenderSummary(t *testing.T) {
	e := lab.Environment{CPU: "a processor", Cores: 2, Kernel: "6.18", Go: "go1.26.8", Commit: "abc", Binary: "v1", Load: "0.1 0.2 0.3"}
	measured := []lab.Measurement{
		{Round: 1, Cell: scenarioReports + "/database=postgres", Values: map[string]float64{"records_per_s": 12_345, "write_p99_ms": 120, "sums_wrong": 0}},
		{Round: 1, Cell: scenarioReports + "/database=sqlite", Values: map[string]float64{"records_per_s": 3999, "sums_wrong": 1}, Faults: []string{"it\nbroke"}},
		{Round: 1, Cell: scenarioList + "/database=postgres/tenant=large", Values: map[string]float64{"first_p99_ms": 12, "first_p50_ms": 3, "failed": 0}},
		{Round: 1, Cell: scenarioList + "/database=sqlite/tenant=large", Values: map[string]float64{"first_p99_ms": 60, "first_p50_ms": 5, "failed": 0}},
		{Round: 1, Cell: scenarioPages + "/database=sqlite/user=large", Values: map[string]float64{
			"worst_p95_ms": 120, "worst_kib": 61, "overview_p95_ms": 120, "overview_p50_ms": 70, "keys_p95_ms": 20, "keys_p50_ms": 10, "failed": 0}},
		{Round: 1, Cell: scenarioPages + "/database=sqlite/user=operator", Values: map[string]float64{
			"worst_p95_ms": 9, "worst_kib": 50, "keys_p95_ms": 9, "keys_p50_ms": 8, "failed": 0}},
	}
	summary := renderSummary(e, options{Size: fullSize}, measured)
	for _, want := range []string{
		"100000 domains of 1000 tenants, of which the first (large) has 10000; 5000000 connection records before.",
		"| database=postgres | records a second | 12345 | ≥ 12000 | met |",
		"| database=postgres | ms, PATCH meanwhile, p99 | 120 | ≤ 100 | **not met** |",
		"| database=sqlite | records a second | 3999 | ≥ 4000 | **not met** |",
		"| database=sqlite | tenants whose sums are not what was sent | 1.00 | ≤ 0.00 | **not met** |",
		"| what | postgres, large | sqlite, large | target for p99 | met |\n|---|---|---|---|---|\n",
		"| the first page of 50 | 12.0 (3.00) | 60.0 (5.00) | ≤ 50.0 | **not met** |",
		"| requests failed | 0.00 | 0.00 | ≤ 0.00 | met |",
		"| what | sqlite, large | sqlite, operator | target for p95 | met |",
		"| overview | 120 (70.0) | – | ≤ 100 | **not met** |",
		"| API keys | 20.0 (10.0) | 9.00 (8.00) | ≤ 100 | met |",
		"| KiB, the largest page with styles and scripts | 61.0 | 50.0 | ≤ 60.0 | **not met** |",
		"\nThe slowest page, database=sqlite/user=large: `overview`.\n",
		"Faults in scenario=reports/database=sqlite, round 1, the first 1:\n\n- it; broke\n",
	} {
		if !strings.Contains(summary, want) {
			t.Errorf("the summary lacks %q:\n%s", want, summary)
		}
	}
	if strings.Contains(summary, "## Deltas") || strings.Contains(summary, "## Questions") {
		t.Error("there is a section of what was not measured")
	}
}
