package pqproxy

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/internal/id"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestReport wants each connection of the management plane's domains in the counters and in a record that says what the
// log says, and no other connection.
func TestReport(t *testing.T) {
	pqtest.Leaks(t)
	e := startReporting(t, "edge gru-1", "region gru")
	e.apply(numbered(7, 0, "", e.record("a.example.com"), e.record("b.example.com", "post_quantum", `"require"`)))
	classical := e.client("a.example.com", func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} })
	e.visits("a.example.com", 3)
	if err := visit(e.addr, classical); err != nil {
		t.Fatal(err)
	}
	classical.ServerName = "b.example.com"
	if _, err := e.handshake(classical); err == nil {
		t.Fatal("a classical handshake succeeded")
	}
	if _, err := e.handshake(e.client("unknown.example.com")); err == nil {
		t.Fatal("an unknown name is served")
	}
	a, b := e.counted("a.example.com", 4), e.counted("b.example.com", 1)
	if a.BytesIn != 20 || a.BytesOut != 20 || a.Tenant != "acme" || a.HelloRetries != 0 ||
		!reflect.DeepEqual(a.Groups, map[string]int64{"X25519MLKEM768": 3, "X25519": 1}) || !reflect.DeepEqual(a.EndReasons, map[string]int64{"done": 4}) {
		t.Errorf("a: %+v", a)
	}
	var handshakes int64
	for _, n := range a.Handshakes {
		handshakes += n
	}
	if handshakes != 4 {
		t.Errorf("%d handshakes in the histogram", handshakes)
	}
	if len(b.Groups) > 0 || !reflect.DeepEqual(b.EndReasons, map[string]int64{"no_common_group": 1}) {
		t.Errorf("b: %+v", b)
	}
	e.until("the records", func() bool { return len(e.records) == 5 })
	e.mu.Lock()
	if got := names(e.receiver.counters); len(got) != 2 {
		t.Errorf("counted for %v", got)
	}
	e.mu.Unlock()
	for id, got := range e.records {
		if got.Domain == "b.example.com" && (got.EndReason != "no_common_group" || got.OfferedPostQuantum || got.Group != "" || got.Error == "") {
			t.Errorf("record %+v", got)
		}
		line := e.managed.log.recordWhere("id", id)
		want := edgereport.Connection{
			Time: got.Time, ID: id, ServerName: line.str("server_name"), Domain: line.str("domain"), Tenant: line.str("tenant"), Source: line.str("source"),
			ClientIP: got.ClientIP, ClientPort: uint16(line.num("client_port")), TLSVersion: line.str("tls_version"), CipherSuite: line.str("cipher_suite"),
			Group: line.str("group"), PostQuantum: line["post_quantum"] == true, OfferedPostQuantum: line["offered_post_quantum"] == true,
			HelloRetry: line["hello_retry"] == true, Resumed: line["resumed"] == true, ALPN: line.str("alpn"), Upstream: line.str("upstream"),
			ProxyProtocol: line.str("proxy_protocol"), HelloWait: line.num("hello_wait"), Handshake: line.num("handshake"),
			UpstreamConnect: line.num("upstream_connect"), UpstreamHandshake: line.num("upstream_handshake"), FirstByte: line.num("first_byte"),
			Duration: line.num("duration"), BytesIn: int64(line.num("bytes_in")), BytesOut: int64(line.num("bytes_out")),
			ClosedBy: line.str("closed_by"), EndReason: line.str("end_reason"), Error: line.str("error"),
		}
		if got != want || got.ClientIP.String() != "127.0.0.1" || time.Since(got.Time) > time.Minute || got.Time.After(time.Now()) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	e.until("the revision", func() bool { return e.reports[len(e.reports)-1].Revision == 7 })
	last := e.newest()
	if last.Edge.Name != "gru-1" || last.Edge.Region != "gru" || last.Edge.Version == "" || last.Draining || time.Since(last.SentAt) > time.Minute {
		t.Errorf("the last report is %+v", last)
	}
	if got := e.certificate("a.example.com", "valid"); got.Source != "byoc" || got.NotAfter == nil || got.Issuer == "" {
		t.Errorf("certificate %+v", got)
	}
}

// TestReportLostAnswers has answers lost, and the management plane away or faulty by turns, while connections come: each is
// counted once.
func TestReportLostAnswers(t *testing.T) {
	pqtest.Leaks(t)
	e := startReporting(t)
	e.apply(numbered(7, 0, "", e.record("a.example.com")))
	e.feels(func(n int) mood {
		return []mood{takesAndDo, blames, isDown, takes, takesAndDo, takesAndDo, resends}[n%7]
	})
	for range 10 {
		e.visits("a.example.com", 5)
		e.mu.Lock()
		n := e.asked
		e.mu.Unlock()
		e.until("more requests", func() bool { return e.asked >= n+3 })
	}
	got := e.counted("a.example.com", 50)
	if got.BytesIn != 250 || got.Groups["X25519MLKEM768"] != 50 {
		t.Errorf("counted %+v", got)
	}
	e.until("the records", func() bool { return len(e.records) == 50 })
	e.mu.Lock()
	if e.duplicates == 0 || e.dropped != 0 {
		t.Errorf("%d duplicates, %d left out", e.duplicates, e.dropped)
	}
	e.mu.Unlock()
	e.until("all states", func() bool { return e.certs["a.example.com"].State == "valid" })
}

// TestReportRefused has the management plane refuse reports: what was counted is counted with a later one, and the records
// that went with it are said to be missing.
func TestReportRefused(t *testing.T) {
	pqtest.Leaks(t)
	e := startReporting(t)
	e.apply(numbered(7, 0, "", e.record("a.example.com")))
	e.certificate("a.example.com", "valid")
	e.feel(refuses)
	e.visits("a.example.com", 5)
	e.mu.Lock()
	n := e.refused
	e.mu.Unlock()
	e.until("more refusals", func() bool { return e.refused >= n+5 })
	e.managed.log.message("refuses a report")
	e.feel(takes)
	if got := e.counted("a.example.com", 5); got.BytesIn != 25 {
		t.Errorf("counted %+v", got)
	}
	e.until("what was left out", func() bool { return e.dropped+int64(len(e.records)) == 5 })
	e.until("a record that was left out", func() bool { return e.dropped > 0 })
	e.certificate("a.example.com", "valid")
}

// TestReportOutage keeps the management plane away while more ends than there is room for, and wants every connection
// counted, and how many records are missing.
func TestReportOutage(t *testing.T) {
	pqtest.Leaks(t)
	e := startReporting(t)
	e.apply(numbered(7, 0, "", e.record("a.example.com"), e.record("b.example.com")))
	e.certificate("a.example.com", "valid")
	e.feel(isDown)
	e.managed.log.message("reporting to the management plane")
	r := &inForce.Load().reports
	const most = recordShards * shardRecords
	ended := endedRecord("a.example.com", 3)
	for range most + 1000 {
		ended.id = id.New()
		r.ended(ended)
	}
	e.visits("b.example.com", 5)
	if waiting := r.records.waiting.Load(); waiting > most {
		t.Errorf("%d records wait", waiting)
	}
	e.feel(takes)
	if got := e.counted("a.example.com", most+1000); got.BytesIn != 3*(most+1000) {
		t.Errorf("counted %+v", got)
	}
	e.counted("b.example.com", 5)
	e.until("the records", func() bool { return int64(len(e.records))+e.dropped == most+1005 })
	e.managed.log.message("takes reports again")
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dropped < 1000 {
		t.Errorf("%d were left out", e.dropped)
	}
	for _, report := range e.reports {
		if len(report.Connections) > edgereport.MaxConnections {
			t.Errorf("a report has %d records", len(report.Connections))
		}
	}
}

// TestReportReload changes the edge's settings while a report is under way, and wants nothing lost and nothing twice. A
// config without reports, and one without management, end them.
func TestReportReload(t *testing.T) {
	pqtest.Leaks(t)
	e := startReporting(t)
	e.apply(numbered(7, 0, "", e.record("a.example.com")))
	started := e.newestStart()
	for i := range 5 {
		e.visits("a.example.com", 2)
		e.mu.Lock()
		n := e.asked
		e.mu.Unlock()
		e.feels(func(now int) mood {
			if m := []mood{takesAndDo, isDown, stalls}[i%3]; m != stalls || now == n+2 { // one that is under way when the config comes
				return m
			}
			return takes
		})
		e.until("more requests", func() bool { return e.asked >= n+2 })
		e.settings = fmt.Sprintf("edge e%d", i)
		e.load(e.option())
		e.failedOrUnchanged()
		e.visits("a.example.com", 2)
		e.feel(takes)
		e.until("the new name", func() bool {
			return len(e.reports) > 0 && e.reports[len(e.reports)-1].Edge.Name == fmt.Sprintf("e%d", i)
		})
		e.certificate("a.example.com", "valid")
	}
	e.counted("a.example.com", 20)
	e.until("the records", func() bool { return len(e.records) == 20 })
	if got := e.newestStart(); got != started {
		t.Errorf("the state began at %s, now at %s", started, got)
	}
	e.settings = "report off"
	e.load(e.option())
	e.mu.Lock()
	n := e.asked
	e.mu.Unlock()
	e.visits("a.example.com", 3)
	if r := &inForce.Load().reports; r.on.Load() || r.counters.size() > 0 {
		t.Error("connections are counted for nobody")
	}
	e.settings = ""
	e.load(e.option())
	e.until("reports again", func() bool { return e.asked > n })
	e.counted("a.example.com", 20)
	e.load("")
	pqtest.Wait(t, "the end of reports", func() bool { return !inForce.Load().reports.on.Load() })
}

func (p *receiver) newestStart() time.Time {
	p.t.Helper()
	p.until("a report", func() bool { return len(p.reports) > 0 })
	return p.newest().Edge.StartedAt
}

// failedOrUnchanged waits for the poll that a config with other settings begins with.
func (e *reportingEdge) failedOrUnchanged() {
	e.managed.t.Helper()
	pqtest.Wait(e.managed.t, "a poll", func() bool {
		status := inForce.Load().syncStatus()
		return status != nil && status.Last != nil
	})
}

// TestReportStates follows a domain that is refused, corrected, shadowed and removed, and one without a certificate.
func TestReportStates(t *testing.T) {
	pqtest.Leaks(t)
	e := startReporting(t)
	bad := e.record("bad.example.com", "upstreams", `[{"dial":"10.0.0.1:443"}]`)
	e.apply(numbered(7, 0, "", e.record("a.example.com"), bad, e.record("acme.example.com", "certificate", `{"source":"acme"}`),
		e.record("local.example.com", "certificate", `{"source":"internal"}`)))
	e.certificate("a.example.com", "valid")
	e.certificate("local.example.com", "valid") // it is issued in the first handshake
	if got := e.certificate("acme.example.com", "pending"); got.Source != "acme" || got.Error == "" || got.NotAfter != nil {
		t.Errorf("certificate %+v", got)
	}
	e.until("the refusal", func() bool { return e.rejected["bad.example.com"].Field == "upstreams[0].dial" })
	e.apply(numbered(8, 0, "", e.record("bad.example.com")))
	e.until("the correction", func() bool {
		return len(e.rejected) == 0 && reflect.DeepEqual(names(e.certs), []string{"bad.example.com"}) && e.reports[len(e.reports)-1].Revision == 8
	})
	put, err := domainOf(e.record("bad.example.com"))
	if err != nil {
		t.Fatal(err)
	}
	s := inForce.Load()
	admin := s.newChangeSet(rankAdmin, true, nil)
	if err := admin.put(put); err != nil {
		t.Fatal(err)
	}
	if _, err := s.apply(admin, nil); err != nil {
		t.Fatal(err)
	}
	e.until("the other source", func() bool { return e.rejected["bad.example.com"].Field == "name" && len(e.certs) == 0 })
	if _, err := s.apply(s.newChangeSet(rankAdmin, true, nil), nil); err != nil {
		t.Fatal(err)
	}
	e.until("its end", func() bool { return len(e.rejected) == 0 && e.certs["bad.example.com"].State == "valid" })

	e.feel(resends)
	e.settle()
	e.feel(takes)
	e.until("all states again", func() bool { return e.certs["bad.example.com"].State == "valid" })
	e.apply(`{"revision":9,"domains":[]}`)
	e.until("nothing", func() bool { return len(e.certs) == 0 && e.reports[len(e.reports)-1].Revision == 9 })
}

// TestReportUpstreams tells of an upstream that does not work, and that it works again.
func TestReportUpstreams(t *testing.T) {
	pqtest.Leaks(t)
	e := startReporting(t)
	dead := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	addr := dead.Addr()
	dead.Close()
	e.apply(numbered(7, 0, "", e.record("a.example.com", "upstreams", fmt.Sprintf(`[{"dial":%q},{"dial":%q}]`, addr, e.up.Addr()))))
	inForce.Load().health.markFor = time.Hour
	e.visits("a.example.com", 1)
	key := "a.example.com " + addr
	e.until("the failure", func() bool { return e.upstreams[key].Error != "" })
	e.mu.Lock()
	if len(e.upstreams) != 1 {
		t.Errorf("told of %v", names(e.upstreams))
	}
	e.mu.Unlock()
	u := inForce.Load().routeFor("a.example.com").upstreams[0]
	u.failed.Store(0) // a connection succeeded
	e.until("the recovery", func() bool { return len(e.upstreams) == 0 })
}

// TestReportDraining wants the management plane told when the edge begins to drain, and, last of all, of the connection that
// kept it.
func TestReportDraining(t *testing.T) {
	pqtest.Leaks(t)
	e := startReporting(t)
	e.apply(numbered(7, 0, "", e.record("a.example.com")))
	e.certificate("a.example.com", "valid")
	e.load(strings.Replace(e.option(), "grace_period 50ms", "grace_period 1m", 1))
	open := e.dial(e.client("a.example.com"))
	echo(t, open, "hello")
	stopped := make(chan error, 1)
	go func() { stopped <- caddy.Stop() }()
	e.until("draining", func() bool { r := e.reports[len(e.reports)-1]; return r.Draining && r.LiveConnections == 1 })
	open.Close()
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	drains.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	last := e.reports[len(e.reports)-1]
	if e.counters["a.example.com"].Connections != 1 || len(e.records) != 1 || !last.Draining || last.LiveConnections != 0 || last.Revision != 7 {
		t.Errorf("counted %+v; the last report is %+v", e.counters, last)
	}
	if e.certs["a.example.com"].State != "valid" {
		t.Errorf("certificates %v", e.certs)
	}
}

// TestReportExitAway ends an edge whose management plane does not answer: it does not wait for long.
func TestReportExitAway(t *testing.T) {
	for name, m := range map[string]mood{"down": isDown, "hangs": stalls} {
		t.Run(name, func(t *testing.T) {
			pqtest.Leaks(t)
			before := reporting.last
			reporting.last = 50 * time.Millisecond
			defer func() { reporting.last = before }()
			e := startReporting(t)
			e.apply(numbered(7, 0, "", e.record("a.example.com")))
			e.newestStart()
			e.visits("a.example.com", 1)
			e.mu.Lock()
			n := e.asked
			e.mu.Unlock()
			e.feel(m)
			e.until("another request", func() bool { return e.asked > n })
			begun := time.Now()
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			drains.Wait()
			if took := time.Since(begun); took > patience/2 {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestReportTLS reports over TLS with a private CA and a client certificate, and not to somebody else's server.
func TestReportTLS(t *testing.T) {
	pqtest.Leaks(t)
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Setenv("PQPROXY_TEST_TOKEN", "pqe_geheim")
	p := newReceiver(t)
	p.token = "pqe_geheim"
	ca := pqtest.NewCA(t)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) != 1 {
			t.Error("no client certificate")
		}
		if r.URL.Path == "/v1/edge/reports" {
			p.post(w, r)
			return
		}
		_, _ = io.WriteString(w, `{"domains":[]}`)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "127.0.0.1")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool()}
	server.StartTLS()
	t.Cleanup(server.Close)
	dir := t.TempDir()
	chain, key := ca.PairPEM(t, "edge.example")
	for name, content := range map[string][]byte{"chain.pem": chain, "key.pem": key, "ca.pem": ca.PEM()} {
		writeFile(t, filepath.Join(dir, name), content)
	}
	startEdge(t, fmt.Sprintf("management %s/v1/edge/domains {\n allow_empty\n token {env.PQPROXY_TEST_TOKEN}\n tls_ca %s/ca.pem\n tls_certificate %s/chain.pem %s/key.pem\n}", server.URL, dir, dir, dir))
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	p.newestStart()
	if got := p.newest().Edge; got.Name != host || got.Region != "" {
		t.Errorf("it is called %+v", got)
	}
}

// TestReportsByURL says where reports go, and for which URLs.
func TestReportsByURL(t *testing.T) {
	for _, c := range []struct{ url, report, want string }{
		{"https://m.example/v1/edge/domains", "", "https://m.example/v1/edge/reports"},
		{"https://m.example/console/v1/edge/domains?x=/domains", "", "https://m.example/console/v1/edge/reports?x=/domains"},
		{"https://m.example/v1/edge/domains", "off", ""},
		{"https://m.example/domains", "", ""},
		{"https://m.example/domains", "on", "https://m.example/reports"},
		{"https://m.example/set.json", "", ""},
		{"https://m.example/set.json?/v1/edge/domains", "", ""},
	} {
		m := &Management{URL: c.url, Report: c.report, Edge: "e"}
		if err := m.provision(); err != nil {
			t.Fatal(err)
		}
		if m.reportsURL != c.want || m.reports != (c.want != "") {
			t.Errorf("%s, report %q: %v at %q", c.url, c.report, m.reports, m.reportsURL)
		}
	}
	t.Setenv("PQPROXY_TEST_NAME", "from the environment")
	for _, c := range []struct {
		m    Management
		want string
	}{
		{Management{Report: "maybe"}, "management.report"},
		{Management{Edge: "a\nb"}, "management.edge"},
		{Management{Edge: strings.Repeat("é", 65)}, "management.edge"},
		{Management{Region: "\u202e"}, "management.region"},
		{Management{Region: "{env.PQPROXY_TEST_NONE}"}, "management.region"},
		{Management{Edge: "{env.PQPROXY_TEST_NAME}"}, ""},
	} {
		c.m.URL = "https://m.example/v1/edge/domains"
		err := c.m.provision()
		if c.want == "" && (err != nil || c.m.edge != "from the environment") || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v", c.m, err)
		}
	}
}
