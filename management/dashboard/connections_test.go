package dashboard

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/internal/id"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// madeDomain makes a domain of who, with one upstream.
func (s *site) madeDomain(who *management.Principal, name string) *management.Domain {
	s.t.Helper()
	d, err := s.plane.CreateDomain(s.t.Context(), who, []byte(`{"name":"`+name+`","upstreams":[{"dial":"upstream.example.com:443"}]}`))
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// otherTenant makes a tenant that nobody of these tests is a member of, and returns who may do everything in it.
func (s *site) otherTenant() *management.Principal {
	s.t.Helper()
	tenant, _, err := s.plane.CreateTenant(s.t.Context(), s.root, management.NewTenant{Name: "Other", OwnerEmail: "other@example.com"})
	if err != nil {
		s.t.Fatal(err)
	}
	return &management.Principal{TenantID: tenant.ID, UserID: management.NewID(management.UserID), Scopes: management.Scopes{management.All}, RequestID: "req_other"}
}

// reporter is an edge that reports by hand.
type reporter struct {
	s *site
	edgereport.Report
}

func (s *site) reporter(name string) *reporter {
	r := &reporter{s: s}
	r.Edge = edgereport.Edge{Name: name, Region: hostile, Version: hostile, StartedAt: s.now()}
	return r
}

func (r *reporter) tell(edit func(*edgereport.Report)) {
	r.s.t.Helper()
	r.Sequence++
	one := r.Report
	one.SentAt = r.s.now()
	edit(&one)
	text, err := json.Marshal(&one)
	if err != nil {
		r.s.t.Fatal(err)
	}
	edge := &management.Principal{EdgeTokenID: management.NewID(management.EdgeTokenID)}
	if _, err := r.s.plane.Report(context.Background(), edge, strings.NewReader(string(text))); err != nil {
		r.s.t.Fatal(err)
	}
}

// aRecord is one with texts of strangers in it.
func aRecord(d *management.Domain, at time.Time) edgereport.Connection {
	return edgereport.Connection{
		Time: at, ID: id.New().String(), Domain: d.Name, Tenant: d.Tenant, ServerName: "=" + hostile, ClientIP: netip.MustParseAddr("198.51.100.23"), ClientPort: 4711,
		Group: "X25519MLKEM768", PostQuantum: true, OfferedPostQuantum: true, TLSVersion: "TLS 1.3", CipherSuite: hostile, ALPN: hostile, Upstream: "upstream.example.com:443", EndReason: "done",
		HelloWait: 0.001, Handshake: 0.02, UpstreamConnect: 0.003, UpstreamHandshake: 0.004, FirstByte: 0.01, Duration: 0.25, BytesIn: 500, BytesOut: 70000, Error: "+" + hostile,
	}
}

// recordsOn returns the links of the rows of the records on a page.
func recordsOn(page *seen) (links []string) {
	for _, n := range page.all(func(n *html.Node) bool {
		return n.Data == "a" && n.Parent.Data == "th" && strings.HasPrefix(attr(n, "href"), "/connections/")
	}) {
		links = append(links, attr(n, "href"))
	}
	return links
}

func TestConnections(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	check(t, s, b.get("/connections").want(http.StatusOK, "No connections in the last 24 hours"))
	check(t, s, b.get("/connections/tail").want(http.StatusOK))
	check(t, s, b.get("/connections?group="+url.QueryEscape(hostile)).want(http.StatusOK, "Nothing matches"))

	d, other := s.madeDomain(s.root, "shop.example.com"), s.madeDomain(s.otherTenant(), "theirs.example.com")
	now := s.now()
	classical := aRecord(d, now.Add(-2*time.Minute))
	s.reporter("e1").tell(func(r *edgereport.Report) {
		for i := range recordRows + 3 {
			r.Connections = append(r.Connections, aRecord(d, now.Add(-time.Duration(i)*time.Hour-time.Minute)))
		}
		classical.Group, classical.PostQuantum, classical.EndReason, classical.ClientIP = "X25519", false, "upstream_refused", netip.MustParseAddr("2001:db8::7")
		r.Connections = append(r.Connections, classical, aRecord(d, now.AddDate(0, 0, -3)), aRecord(other, now))
	})

	page := b.get("/connections").want(http.StatusOK, "shop.example.com", "198.51.100.23", "X25519MLKEM768", "upstream refused", "Hello wait")
	check(t, s, page)
	if strings.Contains(page.body, "theirs.example.com") {
		t.Error("another tenant's records are shown")
	}
	if n := len(recordsOn(page)); n != recordRows {
		t.Fatalf("%d rows", n)
	}
	pictures := page.all(func(n *html.Node) bool { return n.Data == "svg" && attr(n, "role") == "img" })
	if len(pictures) != recordRows || !strings.Contains(attr(pictures[0], "aria-label"), "handshake 20.0 ms") {
		t.Errorf("%d pictures", len(pictures))
	}
	second := b.get(attr(page.find(func(n *html.Node) bool { return attr(n, "rel") == "next" }), "href")).want(http.StatusOK, "First page")
	check(t, s, second)
	if n := len(recordsOn(second)); n != 4 {
		t.Errorf("%d rows on the second page", n)
	}

	for filter, want := range map[string]int{
		"domain=shop.example.com": recordRows, "domain=" + d.ID: recordRows, "domain=theirs.example.com": 0, "domain=" + other.ID: 0, "post_quantum=false": 1, "group=X25519": 1,
		"end_reason=upstream_refused": 1, "client_ip=2001:db8::/32": 1, "client_ip=203.0.113.1": 0, "from=2026-03-11&to=2026-03-11": 1, "from=2026-03-14T15:06&to=2026-03-14T15:08": 1,
		"post_quantum=true&limit=2": 2,
	} {
		page := b.get("/connections?" + filter).want(http.StatusOK)
		check(t, s, page)
		if got := len(recordsOn(page)); got != want {
			t.Errorf("%s: %d rows, want %d", filter, got, want)
		}
		if want > 0 && strings.Contains(filter, "from=") {
			for _, name := range []string{"from", "to"} {
				field := page.find(func(n *html.Node) bool { return attr(n, "id") == "f-filter-"+name })
				if _, err := time.Parse("2006-01-02T15:04:05", attr(field, "value")); err != nil {
					t.Errorf("%s: the field %s has %q, which no browser shows", filter, name, attr(field, "value"))
				}
			}
		}
	}
	for filter, field := range map[string]string{
		"client_ip=nonsense": "client_ip", "domain=not+a+name": "domain", "post_quantum=maybe": "post_quantum", "from=yesterday": "from", "from=2026-03-14&to=2026-03-12": "from",
	} {
		for _, path := range []string{"/connections", "/connections/tail"} {
			if path != "/connections" && field == "from" {
				continue
			}
			page := b.get(path+"?"+filter).want(http.StatusUnprocessableEntity, "Something has to be put right")
			check(t, s, page)
			input := page.find(func(n *html.Node) bool { return attr(n, "id") == "f-filter-"+field })
			if attr(input, "aria-invalid") != "true" {
				t.Errorf("%s?%s: the field is not marked", path, filter)
			}
		}
	}
	b.get("/connections?cursor=nonsense").want(http.StatusUnprocessableEntity, "begin again without one")

	// One record, by its link and by no other.
	link := recordsOn(b.get("/connections?post_quantum=false"))[0]
	one := b.get(link).want(http.StatusOK, "Connection to shop.example.com", "The client's side", "upstream refused", "2001:db8::7", "="+hostile, "classical", "Upstream handshake 4.00 ms")
	check(t, s, one)
	at := "?at=" + url.QueryEscape(classical.Time.Format(time.RFC3339Nano))
	for _, missing := range []string{"/connections/" + classical.ID, "/connections/" + classical.ID + "?at=now", "/connections/" + id.New().String() + at,
		"/connections/" + classical.ID + "?at=" + url.QueryEscape(now.Format(time.RFC3339Nano))} {
		b.get(missing).want(http.StatusNotFound, "There is no such record.")
	}
}

// TestOthersConnections wants a record of another tenant to be none.
func TestOthersConnections(t *testing.T) {
	s := newSite(t)
	theirs := s.madeDomain(s.otherTenant(), "theirs.example.com")
	record := aRecord(theirs, s.now())
	s.reporter("e1").tell(func(r *edgereport.Report) { r.Connections = []edgereport.Connection{record} })
	b := s.signedIn()
	b.get("/connections/"+record.ID+"?at="+url.QueryEscape(record.Time.Format(time.RFC3339Nano))).want(http.StatusNotFound, "There is no such record.")
	if got := b.get("/connections/export?from=2026-03-01&domain=" + theirs.ID); got.status != http.StatusOK || got.body != "" {
		t.Errorf("the export has %q", got.body)
	}
}

func TestExport(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	d := s.madeDomain(s.root, "shop.example.com")
	var all []string
	s.reporter("e1").tell(func(r *edgereport.Report) {
		for i := range exportBatch + 7 { // more than one page of the Plane's
			one := aRecord(d, s.now().Add(-time.Duration(i+1)*time.Second))
			if i%100 == 0 {
				one.PostQuantum, one.Group = false, "X25519"
			}
			r.Connections = append(r.Connections, one)
			all = append(all, one.ID)
		}
	})
	listed := func(filter string) (ids []string) {
		for page := b.get("/connections?limit=200&" + filter).want(http.StatusOK); ; {
			for _, link := range recordsOn(page) {
				u, err := url.Parse(link)
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, strings.TrimPrefix(u.Path, "/connections/"))
			}
			next := page.find(func(n *html.Node) bool { return attr(n, "rel") == "next" })
			if next == nil {
				return ids
			}
			page = b.get(attr(next, "href")).want(http.StatusOK)
		}
	}
	for filter, want := range map[string]int{"": exportBatch + 7, "post_quantum=false": 11, "from=2026-03-14T15:08&to=2026-03-14T15:09:26": 86, "domain=none.example.com": 0} {
		ids := all
		if filter != "" {
			ids = listed(filter)
		}
		if len(ids) != want {
			t.Fatalf("%q lists %d, want %d", filter, len(ids), want)
		}
		page := b.get("/connections?" + filter)
		for format, read := range map[string]func(string) []string{"ndjson": idsOfNDJSON(t), "csv": idsOfCSV(t)} {
			path := "/connections/export?format=" + format + "&" + filter
			if link := page.find(func(n *html.Node) bool {
				return has(n, "download") && strings.Contains(attr(n, "href"), "format="+format)
			}); link != nil {
				path = attr(link, "href")
			} else if want > 0 {
				t.Errorf("%q: the page has no link to the export as %s", filter, format)
			}
			got := b.get(path)
			if got.status != http.StatusOK || got.header.Get("X-Content-Type-Options") != "nosniff" ||
				got.header.Get("Content-Disposition") != `attachment; filename="connections-20260314T150926Z.`+format+`"` {
				t.Fatalf("%s: %d %v", path, got.status, got.header)
			}
			if exported := read(got.body); !slices.Equal(exported, ids) {
				t.Errorf("%s has %d records, the list %d, or others", path, len(exported), len(ids))
			}
		}
	}
	b.get("/connections/export?format=xml").want(http.StatusUnprocessableEntity, "must be ndjson or csv")
	b.get("/connections/export?client_ip=x").want(http.StatusUnprocessableEntity)
	s.browser().get("/connections/export").leadsTo("/login?next=%2Fconnections%2Fexport")
	if got := b.do("HEAD", "/connections/export", nil, nil); got.status != http.StatusOK || got.body != "" {
		t.Errorf("HEAD: %d %q", got.status, got.body)
	}
}

func idsOfNDJSON(t *testing.T) func(string) []string {
	return func(body string) (ids []string) {
		for line := range strings.Lines(body) {
			var r management.Connection
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatal(err)
			}
			if r.ServerName != "="+hostile || r.BytesOut != 70000 {
				t.Fatalf("%+v", r)
			}
			ids = append(ids, r.ID)
		}
		return ids
	}
}

func idsOfCSV(t *testing.T) func(string) []string {
	return func(body string) (ids []string) {
		lines, err := csv.NewReader(strings.NewReader(body)).ReadAll()
		if err != nil || len(lines) == 0 {
			t.Fatal(err)
		}
		column := map[string]int{}
		for i, name := range lines[0] {
			column[name] = i
		}
		for _, line := range lines[1:] {
			// A formula of a stranger is a text.
			if line[column["server_name"]] != "'="+hostile || line[column["error"]] != "'+"+hostile || line[column["handshake"]] != "0.02" || line[column["bytes_out"]] != "70000" ||
				line[column["client_ip"]] != "198.51.100.23" || line[column["tenant"]] == "" {
				t.Fatalf("%q", line)
			}
			ids = append(ids, line[column["id"]])
		}
		return ids
	}
}

// TestTail follows records on a page, over a restart of the service.
func TestTail(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	d, theirs := s.madeDomain(s.root, "shop.example.com"), s.madeDomain(s.otherTenant(), "theirs.example.com")
	e := s.reporter("e1")
	n := 0
	record := func(of *management.Domain) string {
		s.pass(time.Second)
		one := aRecord(of, s.now())
		n++
		one.ClientIP = netip.AddrFrom4([4]byte{203, 0, 113, byte(n)})
		e.tell(func(r *edgereport.Report) { r.Connections = []edgereport.Connection{one} })
		return one.ID
	}
	before := record(d)

	page := b.get("/connections/tail?post_quantum=true").want(http.StatusOK, "203.0.113.1")
	check(t, s, page)
	rows := page.find(func(n *html.Node) bool { return has(n, "data-live") })
	path := attr(rows, "data-live")
	if rows.Data != "tbody" || path != "/connections/tail/live?post_quantum=true" || !has(rows, "data-live-rows") {
		t.Fatalf("%s %v", rows.Data, rows.Attr)
	}

	working, stop := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() { defer close(stopped); s.plane.Run(working, "test") }()
	defer func() { stop(); <-stopped }()
	server := httptest.NewTLSServer(s)
	in := bufio.NewReader(b.listen(t.Context(), server, path, "").Body)
	if name, _, data := event(t, in); name != "fragment" || strings.Count(data, "<tr") != 1 || !strings.Contains(data, before) {
		t.Fatalf("%s %s", name, data)
	}
	record(theirs)
	first := record(d)
	name, _, data := event(t, in)
	if name != "prepend" || strings.Count(data, "<tr") != 1 || !strings.Contains(data, first) || strings.Contains(data, "<script") || strings.Contains(data, "theirs") {
		t.Fatalf("%s %s", name, data)
	}
	next := record(d)
	if name, _, data := event(t, in); name != "prepend" || strings.Count(data, "<tr") != 1 || !strings.Contains(data, next) {
		t.Fatalf("a record came twice, or not: %s %s", name, data)
	}

	// The service begins anew. What came meanwhile is there when the browser is back, once.
	s.Close()
	server.Close()
	missed := record(d)
	again := newDashboard(s.plane, s.opts, table())
	defer again.Close()
	server = httptest.NewTLSServer(again)
	defer server.Close()
	defer again.Close()
	in = bufio.NewReader(b.listen(t.Context(), server, path, "").Body)
	name, _, data = event(t, in)
	if name != "fragment" || strings.Count(data, "<tr") != 4 || !strings.Contains(data, missed) || strings.Index(data, missed) > strings.Index(data, next) {
		t.Fatalf("%s %s", name, data)
	}
	last := record(d)
	if name, _, data := event(t, in); name != "prepend" || strings.Count(data, "<tr") != 1 || !strings.Contains(data, last) {
		t.Fatalf("%s %s", name, data)
	}
}

// TestTailFallback wants the same URL to give the newest as HTML.
func TestTailFallback(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	one := aRecord(s.madeDomain(s.root, "shop.example.com"), s.now())
	s.reporter("e1").tell(func(r *edgereport.Report) { r.Connections = []edgereport.Connection{one} })
	got := b.do("GET", "/connections/tail/live", nil, http.Header{"Pqproxy-Fragment": {"1"}, "Accept": {"text/html"}})
	if got.status != http.StatusOK || !strings.HasPrefix(got.body, "<tr") || !strings.Contains(got.body, one.ID) {
		t.Errorf("%d %s", got.status, got.body)
	}
	for _, accept := range []string{"text/html", "text/event-stream"} {
		if got := b.do("GET", "/connections/tail/live?client_ip=x", nil, http.Header{"Pqproxy-Fragment": {"1"}, "Accept": {accept}}); got.status != http.StatusUnprocessableEntity {
			t.Errorf("%s: %d", accept, got.status)
		}
	}
}

// TestTailTooFast wants what nobody can read counted, and not sent.
func TestTailTooFast(t *testing.T) {
	s := newSite(t)
	s.routes = append(s.routes, route{method: "GET", path: "/fast", handle: func(c *ctx) error {
		var found []*management.Connection
		for i := range 3 {
			found = append(found, &management.Connection{ID: fmt.Sprint("id", i), Time: c.now()})
		}
		return c.fragment("connections", "part-records", recordsPage{Rows: c.recordRows(found), Left: 1234})
	}})
	got := s.signedIn().get("/fast")
	if strings.Count(got.body, "<tr") != 4 || !strings.Contains(got.body, "1,234 more came too fast to be shown.") {
		t.Error(got.body)
	}
}
