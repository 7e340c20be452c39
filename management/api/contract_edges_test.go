package api_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/id"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/api"
)

// testEdge is an edge that reports by hand.
type testEdge struct {
	c           *contract
	name, token string
	started     string
	sequence    int
}

func (c *contract) newEdge(name, token string) *testEdge {
	return &testEdge{c: c, name: name, token: token, started: c.clock.now().UTC().Format(time.RFC3339Nano)}
}

// body is the next report: with that revision and what is given as JSON members.
func (e *testEdge) body(revision uint64, members string) string {
	e.sequence++
	if members != "" {
		members = "," + members
	}
	return fmt.Sprintf(`{"edge":{"name":%q,"region":"gru","version":"v1","started_at":%q},"sequence":%d,"sent_at":%q,"revision":%d,"draining":false,`+
		`"live_connections":3,"dropped":0%s}`, e.name, e.started, e.sequence, e.c.clock.now().UTC().Format(time.RFC3339), revision, members)
}

func (e *testEdge) report(revision uint64, members string) *reply {
	e.c.t.Helper()
	return e.c.do(e.token, "POST", "/v1/edge/reports", e.body(revision, members)).want(200).shape(S{"revision": "num", "duplicate": "bool", "resend": "bool"})
}

func TestContractFeed(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	token := c.edgeToken()
	get := func(query string, header ...string) *reply {
		return c.do(token, "GET", "/v1/edge/domains"+query, "", header...)
	}
	c.do("", "GET", "/v1/edge/domains", "").problem(401, "unauthenticated")

	a := c.domain(c.key, "a.example.com")
	c.domain(c.key, "b.example.com")
	full := get("").want(200).is(2, "revision")
	if tag := full.Header.Get("ETag"); tag != `"2"` || full.at("base") != nil || len(full.list("domains")) != 2 || full.at("removed") != nil {
		t.Error(tag, full.text)
	}
	c.signed(full)
	zipped := get("", "Accept-Encoding", "gzip").want(200)
	if zipped.Header.Get("Content-Encoding") != "gzip" || zipped.text != full.text || zipped.Header.Get("ETag") != `"2"` {
		t.Error(zipped.Header)
	}
	c.signed(zipped)
	if none := get("", "If-None-Match", `"2"`).want(304); none.text != "" || none.Header.Get("ETag") != `"2"` {
		t.Error(none.Header)
	}
	get("", "If-None-Match", `"1"`).want(200)
	get("?after=0").want(200).is(nil, "base")
	get("?after=x").problem(422, "invalid", "?after")
	get("?after=3").want(410)
	equal := get("?after=2").want(200).is(2, "revision").is(2, "base")
	if len(equal.list("domains")) != 0 || len(equal.list("removed")) != 0 {
		t.Error(equal.text)
	}
	c.signed(equal)
	get("?after=2", "If-None-Match", `"2"`).want(304)

	c.do(c.key, "PATCH", "/v1/domains/"+a, `{"max_connections":7}`).want(200).is(3, "revision")
	delta := get("?after=2").want(200).is(3, "revision").is(2, "base").is("a.example.com", "domains", 0, "name").is(7, "domains", 0, "max_connections")
	if len(delta.list("domains")) != 1 || delta.Header.Get("ETag") != `"3"` {
		t.Error(delta.text)
	}
	c.do(c.key, "DELETE", "/v1/domains/"+a, "").want(202)
	get("?after=3").want(200).is("a.example.com", "removed", 0).is(4, "revision")
	get("?after=1").want(200).is("a.example.com", "removed", 0).is("b.example.com", "domains", 0, "name")
	if full := get("").want(200); len(full.list("domains")) != 1 {
		t.Error(full.text)
	}

	// A name that comes back in the meantime is there once.
	c.domain(c.key, "a.example.com")
	back := get("?after=3").want(200).is("a.example.com", "domains", 0, "name")
	if len(back.list("removed")) != 0 {
		t.Error(back.text)
	}

	// Waiting.
	waited := get("?after=5", "Prefer", "wait=1").want(200)
	if waited.Header.Get("Preference-Applied") != "wait=1" || len(waited.list("domains")) != 0 {
		t.Error(waited.Header, waited.text)
	}
	if waited = get("?after=5", "Prefer", "wait=1", "If-None-Match", `"5"`).want(304); waited.Header.Get("Preference-Applied") == "" {
		t.Error(waited.Header)
	}
	answers := make(chan *reply, 20)
	for range cap(answers) {
		go func() { answers <- get("?after=5", "Prefer", "wait=30", "If-None-Match", `"5"`) }()
	}
	begun := time.Now()
	c.domain(c.key, "c.example.com")
	for range cap(answers) {
		(<-answers).want(200).is("c.example.com", "domains", 0, "name").is(6, "revision")
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("a change took %v", took)
	}

	// What is older than a day of changes cannot be told.
	c.clock.move(26 * time.Hour)
	c.domain(c.key, "d.example.com")
	c.do(c.key, "DELETE", "/v1/domains/"+c.do(c.key, "GET", "/v1/domains?name=b.example.com", "").str("data", 0, "id"), "").want(202)
	c.clock.move(26 * time.Hour)
	c.work()
	c.until("the difference is forgotten", func() *reply { return get("?after=1") }, func(a *reply) bool { return a.StatusCode == 410 })
	get("").want(200)
}

func TestContractReports(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	token := c.edgeToken()
	c.domain(c.key, "a.example.com")
	e := c.newEdge("e1", token)
	first := e.body(1, "")
	c.do("", "POST", "/v1/edge/reports", first).problem(401, "unauthenticated")
	send := func(body string, header ...string) *reply {
		return c.do(token, "POST", "/v1/edge/reports", body, header...)
	}
	send(first).want(200).is(1, "revision").is(false, "duplicate").is(false, "resend")
	send(first).want(200).is(true, "duplicate").is(false, "resend")
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	if _, err := zip.Write([]byte(e.body(1, ""))); err != nil || zip.Close() != nil {
		t.Fatal(err)
	}
	send(packed.String(), "Content-Encoding", "gzip").want(200).is(false, "duplicate").is(false, "resend")
	e.sequence++
	e.report(1, "").is(true, "resend").is(false, "duplicate")
	e.report(1, "").is(false, "resend")
	late := c.newEdge("e2", token)
	late.sequence = 41
	late.report(1, "").is(true, "resend")
	send(`{`).problem(400, "malformed")
	send(`{"edge":{}}`).problem(422, "invalid")
	send(`{"edge":{"name":"`+strings.Repeat("x", 9<<20)+`"}}`).problem(413, "too_large")
	many := strings.TrimSuffix(strings.Repeat(`{"time":"2026-01-01T00:00:00Z","id":"01m82n8bbre1n870d2btkb3gsb","domain":"a.example.com","end_reason":"done"},`, 2001), ",")
	if a := send(c.newEdge("e3", token).body(1, `"connections":[`+many+`]`)); a.StatusCode != 413 && a.StatusCode != 422 {
		t.Error(a.StatusCode, a.text)
	}

	edges := c.do(c.key, "GET", "/v1/platform/edges", "").want(200).shape(page(edgeShape))
	edges.is("e1", "data", 0, "name").is("up", "data", 0, "state").is(1, "data", 0, "revision").is("v1", "data", 0, "version").is("gru", "data", 0, "region").is(3, "data", 0, "live_connections")
	c.clock.move(89 * time.Second)
	c.do(c.key, "GET", "/v1/platform/edges", "").want(200).is("up", "data", 0, "state")
	c.clock.move(2 * time.Second)
	c.do(c.key, "GET", "/v1/platform/edges", "").want(200).is("stale", "data", 0, "state")
}

// TestContractReportsOfOthers: an edge of another version is believed what can be understood of it.
func TestContractReportsOfOthers(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	path := "/v1/domains/" + c.domain(c.key, "a.example.com")
	e := c.newEdge("e1", c.edgeToken())
	minute := c.clock.now().UTC().Truncate(time.Minute).Format(time.RFC3339)
	notAfter := c.clock.now().AddDate(0, 0, 60).UTC().Format(time.RFC3339)
	e.report(1, fmt.Sprintf(`"certificates":[{"name":"a.example.com","source":"acme","issuer":"CN=Test","not_after":%q,"state":"ok","error":null}],"rejected":[],"upstreams":[],
		"counters":[{"domain":"a.example.com","minute":%q,"connections":2,"bytes_in":1,"bytes_out":1,"groups":{"X25519":2},"end_reasons":{"done":2},"hello_retries":0,
		"handshake_buckets":[1,1]}],"connections":[],"new":{"x":1}`, notAfter, minute))
	c.world.set("a.example.com", true, "")
	c.do(c.key, "POST", path+"/check", "").want(200).is("active", "status").is(1, "axes", "edges", "live")
	c.do(c.key, "GET", "/v1/usage?step=total", "").want(200).is(2, "data", 0, "connections")
}

// counters is a member of a report: each so many connections of a domain in a minute, half of them post-quantum.
func counters(of ...any) string {
	var all []string
	for i := 0; i < len(of); i += 3 {
		n := of[i+2].(int)
		all = append(all, fmt.Sprintf(`{"domain":%q,"minute":%q,"connections":%d,"bytes_in":%d,"bytes_out":%d,"groups":{"X25519MLKEM768":%d,"X25519":%d},`+
			`"end_reasons":{"done":%d},"hello_retries":1,"handshake_buckets":[0,0,%d%s]}`, of[i], of[i+1].(time.Time).Format(time.RFC3339), n, 10*n, 100*n, n/2, n-n/2, n, n,
			strings.Repeat(",0", 25)))
	}
	return `"counters":[` + strings.Join(all, ",") + `]`
}

func TestContractUsage(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	now := c.clock.now().UTC()
	noon := now.Truncate(24 * time.Hour).Add(12*time.Hour + 30*time.Second)
	c.clock.move(noon.Sub(now)) // so that days and hours have room on both sides
	a, b := c.domain(c.key, "a.example.com"), c.domain(c.key, "b.example.com")
	hour := noon.Truncate(time.Hour)
	midnight := noon.Truncate(24 * time.Hour)
	e := c.newEdge("e1", c.edgeToken())
	e.report(2, counters(
		"a.example.com", hour, 2, "a.example.com", hour.Add(-time.Minute), 4, "a.example.com", hour.Add(-time.Hour), 8,
		"a.example.com", midnight, 16, "a.example.com", midnight.Add(-time.Minute), 32, "b.example.com", hour, 64,
	))
	at := func(t time.Time) string { return t.Format(time.RFC3339) }
	rows := func(query string) string {
		t.Helper()
		list := c.do(c.key, "GET", "/v1/usage?"+query, "").want(200)
		var got []string
		for i := range list.list("data") {
			list.shape(S{"start": "time", "domain": "text", "domain_id": "dom_", "connections": "num", "bytes_in": "num", "bytes_out": "num"}, "data", i)
			n := list.at("data", i, "connections").(float64)
			if list.at("data", i, "bytes_in") != 10*n || list.at("data", i, "bytes_out") != 100*n {
				t.Error(list.text)
			}
			got = append(got, fmt.Sprint(strings.TrimSuffix(list.str("data", i, "start")[5:], ":00Z"), " ", list.str("data", i, "domain")[:1], " ", n))
		}
		return strings.Join(got, ", ")
	}
	day := func(at time.Time) string { return at.Format("01-02T15:04") }
	for _, of := range []struct{ query, want string }{
		{"step=hour&domain=" + a, fmt.Sprintf("%s a 32, %s a 16, %s a 12, %s a 2", day(midnight.Add(-time.Hour)), day(midnight), day(hour.Add(-time.Hour)), day(hour))},
		{"step=day", fmt.Sprintf("%s a 32, %s a 30, %s b 64", day(midnight.AddDate(0, 0, -1)), day(midnight), day(midnight))},
		{"step=total&domain=a.example.com", fmt.Sprintf("%s a 62", day(noon.Add(-24*time.Hour)))},
		{"step=total&domain=" + b, fmt.Sprintf("%s b 64", day(noon.Add(-24*time.Hour)))},
		// from is inclusive, to exclusive.
		{"step=hour&domain=" + a + "&from=" + at(hour.Add(-time.Hour)) + "&to=" + at(hour), fmt.Sprintf("%s a 12", day(hour.Add(-time.Hour)))},
		{"step=day&domain=" + a + "&from=" + at(midnight) + "&to=" + at(midnight.AddDate(0, 0, 1)), fmt.Sprintf("%s a 30", day(midnight))},
		{"step=day&domain=" + a + "&from=" + at(midnight.AddDate(0, 0, -1)) + "&to=" + at(midnight), fmt.Sprintf("%s a 32", day(midnight.AddDate(0, 0, -1)))},
		{"step=total&domain=" + a + "&from=" + at(hour.Add(-time.Minute)) + "&to=" + at(hour), fmt.Sprintf("%s a 4", day(hour.Add(-time.Minute)))},
		{"step=day&domain=" + a + "&from=" + at(hour.Add(-time.Minute)) + "&to=" + at(hour), fmt.Sprintf("%s a 4", day(midnight))},
		{"step=total&domain=nobody.example.com", ""},
	} {
		if got := rows(of.query); got != of.want {
			t.Errorf("%s: %s, want %s", of.query, got, of.want)
		}
	}
	for query, pointer := range map[string]string{
		"step=minute": "?step", "domain=!": "?domain", "from=" + at(noon) + "&to=" + at(noon): "?from", "from=" + at(noon.AddDate(-3, 0, 0)): "?from",
	} {
		c.do(c.key, "GET", "/v1/usage?"+query, "").problem(422, "invalid", pointer)
	}

	series := c.do(c.key, "GET", "/v1/domains/"+a+"/series?step=hour&from="+at(hour.Add(-time.Hour))+"&to="+at(hour.Add(time.Hour)), "").want(200)
	series.is(at(hour.Add(-time.Hour)), "start").is("hour", "step").is(12, "series", "connections", 0).is(2, "series", "connections", 1)
	if p50, ok := series.at("series", "handshake_p50", 0).(float64); !ok || p50 <= 0 || len(series.list("series", "handshake_p50")) != 2 {
		t.Error(series.text)
	}
	c.do(c.key, "GET", "/v1/domains/"+a+"/series", "").want(200).shape(S{"start": "time", "step": "text", "series": "any"})
	c.do(c.key, "GET", "/v1/domains/"+management.NewID(management.DomainID)+"/series", "").problem(404, "not_found")

	report := c.do(c.key, "GET", "/v1/reports/post-quantum?domain="+a+"&from="+at(midnight), "").want(200)
	report.shape(S{"from": "time", "to": "time", "connections": "num", "post_quantum": "num", "share": "num", "hello_retries": "num",
		"by_day": []any{S{"day": "text", "connections": "num", "post_quantum": "num", "share": "num", "hello_retries": "num"}}})
	report.is(30, "connections").is(15, "post_quantum").is(0.5, "share").is(4, "hello_retries").is(30, "by_day", 0, "connections").is(midnight.Format(time.DateOnly), "by_day", 0, "day")
	require := c.do(c.key, "GET", "/v1/reports/require?days=1&domain="+a, "").want(200)
	require.shape(S{"from": "time", "to": "time", "connections": "num", "refused": "num", "share": "num", "complete": "bool", "by_client": "list"}).is(62, "connections").is(31, "refused").is(0.5, "share")
	c.do(c.key, "GET", "/v1/reports/require?days=0", "").problem(422, "invalid", "?days")
	c.do(c.key, "GET", "/v1/reports/require", "").want(200)
}

// TestContractUsageOfTheRemoved: connections end up to grace_period after their domain was deleted, and what they carried was lost.
func TestContractUsageOfTheRemoved(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	c.work()
	id := c.domain(c.key, "a.example.com")
	e := c.newEdge("e1", c.edgeToken())
	e.report(1, "")
	c.do(c.key, "DELETE", "/v1/domains/"+id, "").want(202)
	e.report(2, "")
	c.until("the domain is gone", func() *reply { return c.do(c.key, "GET", "/v1/domains/"+id, "") }, func(a *reply) bool { return a.StatusCode == 404 })
	now := c.clock.now().UTC()
	e.report(2, counters("a.example.com", now.Truncate(time.Minute), 2)+`,"connections":[`+record("a.example.com", now)+`]`)
	c.do(c.key, "GET", "/v1/usage?step=total&domain="+id, "").want(200).is(2, "data", 0, "connections")
	c.do(c.key, "GET", "/v1/usage?step=total&domain=a.example.com", "").want(200).is(2, "data", 0, "connections")
	if seen := c.do(c.key, "GET", "/v1/connections?domain=a.example.com&to="+now.Add(time.Minute).Format(time.RFC3339), "").want(200); len(seen.list("data")) != 1 {
		t.Error(seen.text)
	}
}

// record is one of a connection.
func record(name string, at time.Time) string {
	return fmt.Sprintf(`{"time":%q,"id":%q,"server_name":%q,"domain":%[3]q,"source":"remote","client_ip":"198.51.100.23","client_port":4711,"tls_version":"TLS 1.3",
		"cipher_suite":"TLS_AES_128_GCM_SHA256","group":"X25519MLKEM768","post_quantum":true,"alpn":"h2","upstream":"10.0.0.5:8443","hello_wait":0.001,"duration":1.5,
		"bytes_in":5,"bytes_out":7,"closed_by":"client","end_reason":"done"}`, at.Format(time.RFC3339Nano), id.New().String(), name)
}

func TestContractConnections(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	domainID := c.domain(c.key, "a.example.com")
	e := c.newEdge("e1", c.edgeToken())
	now := c.clock.now().UTC().Truncate(time.Second)
	classical := strings.NewReplacer("X25519MLKEM768", "X25519", `"post_quantum":true`, `"post_quantum":false`, "198.51.100.23", "2001:db8::1", `"done"`, `"idle_timeout"`).
		Replace(record("a.example.com", now.Add(-time.Minute)))
	e.report(1, `"connections":[`+record("a.example.com", now.Add(-2*time.Minute))+`,`+classical+`,`+record("a.example.com", now.Add(-25*time.Hour))+`,`+
		record("nobody.example.com", now.Add(-time.Minute))+`]`)
	list := c.do(c.key, "GET", "/v1/connections", "").want(200).shape(page(connectionShape))
	if len(list.list("data")) != 2 {
		t.Fatal(list.text)
	}
	list.is("X25519", "data", 0, "group").is(false, "data", 0, "post_quantum").is("2001:db8::1", "data", 0, "client_ip").is("a.example.com", "data", 0, "domain").
		is(domainID, "data", 0, "domain_id").is("e1", "data", 0, "edge").is("gru", "data", 0, "region").is(1.5, "data", 0, "duration").is(false, "data", 1, "resumed").
		is(0, "data", 1, "first_byte").is(c.tenant, "data", 0, "tenant")
	count := func(query string) int {
		t.Helper()
		return len(c.do(c.key, "GET", "/v1/connections?"+query, "").want(200).list("data"))
	}
	at := func(t time.Time) string { return t.Format(time.RFC3339) }
	for query, want := range map[string]int{
		"domain=" + domainID: 2, "domain=a.example.com": 2, "domain=other.example.com": 0, "group=X25519": 1, "post_quantum=true": 1, "post_quantum=false": 1,
		"end_reason=done": 1, "client_ip=198.51.100.23": 1, "client_ip=198.51.100.0/24": 1, "client_ip=2001:db8::/32": 1, "client_ip=192.0.2.1": 0,
		"from=" + at(now.Add(-48*time.Hour)):                                       3,
		"from=" + at(now.Add(-2*time.Minute)) + "&to=" + at(now.Add(-time.Minute)): 1,
		"from=" + at(now.Add(-2*time.Minute)):                                      2,
		"from=" + at(now.Add(-2*time.Minute).Add(time.Second)):                     1,
	} {
		if got := count(query); got != want {
			t.Errorf("%s: %d, want %d", query, got, want)
		}
	}
	for query, pointer := range map[string]string{"client_ip=x": "?client_ip", "post_quantum=1": "?post_quantum", "domain=!": "?domain", "limit=1001": "?limit"} {
		c.do(c.key, "GET", "/v1/connections?"+query, "").problem(422, "invalid", pointer)
	}
	first := c.do(c.key, "GET", "/v1/connections?limit=1", "").want(200)
	second := c.do(c.key, "GET", "/v1/connections?limit=1&cursor="+first.str("next_cursor"), "").want(200)
	if first.str("data", 0, "id") == second.str("data", 0, "id") || second.at("next_cursor") != nil {
		t.Error(second.text)
	}
	lines := c.do(c.key, "GET", "/v1/connections", "", "Accept", "application/x-ndjson").want(200)
	if !strings.HasPrefix(lines.Header.Get("Content-Type"), "application/x-ndjson") || strings.Count(lines.text, "\n") != 2 {
		t.Error(lines.Header, lines.text)
	}
	for line := range strings.Lines(lines.text) {
		var one any
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatal(err)
		}
		c.shape("a line", one, connectionShape)
	}

	clients := c.do(c.key, "GET", "/v1/reports/require?days=2", "").want(200)
	clients.shape([]any{S{"client": "=2001:db8::/48", "alpn": "=h2", "refused": "num", "last_seen": "time"}}, "by_client").is(true, "complete")

	// The tail: what comes from now on.
	c.work()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", c.public.URL+"/v1/connections/tail?domain=a.example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.key)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatal(resp.Status, resp.Header)
	}
	stop, told := make(chan struct{}), make(chan struct{})
	defer func() { close(stop); <-told }()
	go func() { // reports until one is seen: the tail begins within a second
		defer close(told)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			e.report(1, `"connections":[`+record("a.example.com", c.clock.now().UTC())+`]`)
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	events := bufio.NewScanner(resp.Body)
	for events.Scan() {
		if data, ok := strings.CutPrefix(events.Text(), "data: "); ok {
			var one any
			if err := json.Unmarshal([]byte(data), &one); err != nil {
				t.Fatal(err)
			}
			c.shape("an event", one, connectionShape)
			return
		}
	}
	t.Error("no event came")
}

func TestContractClientAddresses(t *testing.T) {
	c := newContract(t, func(cfg *management.Config, _ *api.Options) { cfg.ClientIP = management.ClientIPPrefix })
	c.setUp()
	c.domain(c.key, "a.example.com")
	e := c.newEdge("e1", c.edgeToken())
	e.report(1, `"connections":[`+record("a.example.com", c.clock.now().UTC().Add(-time.Minute))+`]`)
	list := c.do(c.key, "GET", "/v1/connections?client_ip=198.51.100.99", "").want(200).is("198.51.100.0/24", "data", 0, "client_ip").is(0, "data", 0, "client_port")
	if strings.Contains(list.text, "198.51.100.23") {
		t.Error("the whole address is kept")
	}
}
