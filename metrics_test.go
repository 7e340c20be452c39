package pqproxy

import (
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// sample is one value of a metric; of a histogram, the count.
type sample struct {
	name   string // with its labels sorted, as `handshakes_total{group="X25519",...}`, without prefix
	labels map[string]string
	value  float64
}

// samples gathers all metrics of the process.
func samples(t *testing.T) []sample {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := metrics.register(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var all []sample
	for _, family := range families {
		for _, m := range family.GetMetric() {
			s := sample{labels: make(map[string]string)}
			var labels []string
			for _, l := range m.GetLabel() {
				s.labels[l.GetName()] = l.GetValue()
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			s.name = strings.TrimPrefix(family.GetName(), "caddy_pqproxy_")
			if len(labels) > 0 {
				s.name += "{" + strings.Join(labels, ",") + "}"
			}
			s.value = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			all = append(all, s)
		}
	}
	return all
}

// values are samples by name.
func values(t *testing.T) map[string]float64 {
	t.Helper()
	all := make(map[string]float64)
	for _, s := range samples(t) {
		all[s.name] = s.value
	}
	return all
}

// ended is the sum of connections_total over end_reason.
func ended(values map[string]float64) (sum float64) {
	for name, value := range values {
		if strings.HasPrefix(name, "connections_total{") {
			sum += value
		}
	}
	return sum
}

// TestMetricsAddUp ends connections in many ways, over reloads and a drain: what has ended, by whatever reason,
// and what is open are together all that were made.
func TestMetricsAddUp(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{
		TLS: &tls.Config{Certificates: []tls.Certificate{e.ca.Issue(t, "app.internal")}},
	})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	load := func(limits string, more ...string) {
		t.Helper()
		e.load(e.expand(fmt.Sprintf(`
			limits {
				%s
			}
			domain app.example.com {
				upstream %s {
					tls_server_name app.internal
					tls_ca $CA
				}
				certificate $CHAIN $KEY
			}
			domain r.wild.example.com {
				upstream %[3]s
				post_quantum require
				certificate $CHAIN $KEY
			}
			domain f.wild.example.com {
				upstream %[2]s
				max_connections 1
				certificate $CHAIN $KEY
			}
			%[4]s`, limits, up.Addr(), closed.Addr(), strings.Join(more, "\n"))))
	}
	const leaving = "domain b.example.com {\nupstream 127.0.0.1:1\ncertificate $CHAIN $KEY\nsuspended\n}"
	load("grace_period 1ms", leaving)
	before := values(t)
	made := 0
	addUp := func(open int) map[string]float64 {
		t.Helper()
		var now map[string]float64
		pqtest.Wait(t, fmt.Sprintf("%d connections to be open", open), func() bool {
			now = values(t)
			return now["connections_active"]-before["connections_active"] == float64(open)
		})
		if sum := ended(now) - ended(before); int(sum)+open != made {
			t.Errorf("%v have ended, %d are open, %d were made", sum, open, made)
		}
		return now
	}
	check := func(reason endReason, open int) {
		t.Helper()
		e.log.recordWhere("end_reason", string(reason))
		now := addUp(open)
		if key := fmt.Sprintf("connections_total{end_reason=%q}", reason); now[key] <= before[key] {
			t.Errorf("none is counted as %s", reason)
		}
	}
	shake := func(cfg *tls.Config) {
		made++
		_, _ = e.handshake(cfg)
	}
	raw := func(text string) *net.TCPConn {
		made++
		c := e.dialTCP()
		fmt.Fprint(c, text)
		return c
	}
	open := func(name string) *tls.Conn {
		t.Helper()
		made++
		c := pqtest.Dial(t, e.addr, e.client(name))
		echo(t, c, "12345")
		return c
	}

	open("app.example.com").Close()
	check(reasonDone, 0)
	raw("").Close()
	check(reasonNoHello, 0)
	raw("GET / HTTP/1.1\r\n\r\n")
	check(reasonNotTLS, 0)
	raw("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00")
	check(reasonBadHello, 0)
	raw("\x16\x03\x01").Close()
	check(reasonClientGone, 0)
	shake(&tls.Config{InsecureSkipVerify: true})
	check(reasonNoSNI, 0)
	shake(e.client("none.example.com"))
	check(reasonUnknownDomain, 0)
	shake(e.client("b.example.com"))
	check(reasonSuspended, 0)
	shake(e.client("app.example.com", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }))
	check(reasonTLSVersion, 0)
	shake(e.client("r.wild.example.com", onlyGroup(tls.X25519)))
	check(reasonNoCommonGroup, 0)
	shake(e.client("r.wild.example.com"))
	check(reasonRefused, 0)
	pqtest.Reset(t, open("app.example.com"))
	check(reasonClientReset, 0)

	// f.wild speaks plain TCP to a TLS upstream, which says nothing before it is sent something.
	made++
	full := pqtest.Dial(t, e.addr, e.client("f.wild.example.com"))
	shake(e.client("f.wild.example.com"))
	check(reasonDomainOver, 1)
	load("max_connections 1", leaving)
	raw("")
	check(reasonOverLimit, 1)
	full.Close()
	check(reasonDone, 0)

	load("handshake_timeout 10ms")
	raw("")
	check(reasonHelloTimeout, 0)
	load("grace_period 1ms", strings.Replace(strings.ReplaceAll(leaving, "127.0.0.1:1", up.Addr()+" {\ntls_insecure_skip_verify\n}"), "suspended", "", 1))
	open("b.example.com")
	load("grace_period 1ms")
	check(reasonDomainRemoved, 0)
	open("app.example.com")
	e.loadOptions("admin off")
	check(reasonDrained, 0)
	load("grace_period 1ms")
	_, e.addr = listeningOn(t, "127.0.0.1:0")
	last := open("app.example.com")
	addUp(1)
	last.Close()
	check(reasonDone, 0)
}

// TestMetricsOfConnections compares the other counters with one connection, and the gauge with the table.
func TestMetricsOfConnections(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{
		TLS: &tls.Config{Certificates: []tls.Certificate{e.ca.Issue(t, "app.internal")}, CurvePreferences: []tls.CurveID{tls.X25519}},
	})
	e.load(fmt.Sprintf("domain app.example.com {\nupstream %s {\ntls_server_name app.internal\ntls_ca $CA\n}\ncertificate $CHAIN $KEY\n}", up.Addr()))
	before := values(t)
	sessions := tls.NewLRUClientSessionCache(1)
	for range 2 {
		c := e.dial(e.client("app.example.com", func(c *tls.Config) { c.ClientSessionCache = sessions }))
		echo(t, c, "12345")
		c.Close()
		e.log.nextRecord()
	}
	e.load("") // counters are not the config's
	now := values(t)
	for name, want := range map[string]float64{
		`handshakes_total{group="X25519MLKEM768",hello_retry="false",resumed="false"}`: 1,
		`handshakes_total{group="X25519MLKEM768",hello_retry="false",resumed="true"}`:  1,
		`handshake_seconds{group="X25519MLKEM768"}`:                                    2,
		`upstream_handshakes_total{group="X25519",resumed="false"}`:                    1,
		`upstream_handshakes_total{group="X25519",resumed="true"}`:                     1,
		`upstream_connect_seconds`:                                                     2,
		`bytes_total{direction="in"}`:                                                  10,
		`bytes_total{direction="out"}`:                                                 10,
		`domains{source="static"}`:                                                     -1,
		`connections_active`:                                                           0,
		`connections_total{end_reason="done"}`:                                         2,
	} {
		if got := now[name] - before[name]; got != want {
			t.Errorf("%s has grown by %v, want %v", name, got, want)
		}
	}
}

// metricNames are the metrics of the contract that users rely on.
const metricNames = `connections_total connections_active handshakes_total handshake_seconds upstream_connect_seconds
	upstream_handshakes_total bytes_total domains revision rejected_records_total`

// moreMetrics are served once there is something to say.
const moreMetrics = `certificates certificate_earliest_not_after_seconds certificate_orders_total sync_total sync_age_seconds upstreams health_checks_total
	reports_total report_records_dropped_total`

// TestMetricsEndpoint reads all metrics from Caddy's admin endpoint after a reload. No label tells a name:
// their values are of closed sets.
func TestMetricsEndpoint(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{
		TLS: &tls.Config{Certificates: []tls.Certificate{e.ca.Issue(t, "app.internal")}},
	})
	admin := e.adminSocket()
	for _, grace := range []string{"1m", "2m"} {
		e.loadOptions(fmt.Sprintf(`
			admin unix/%s
			%s
			pqproxy {
				limits {
					grace_period %s
				}
				domain app.example.com {
					tenant acme
					upstream %s {
						tls_server_name app.internal
						tls_ca $CA
					}
					certificate $CHAIN $KEY
				}
			}`, admin, frontDoor, grace, up.Addr()))
	}
	if err := visit(e.addr, e.client("app.example.com")); err != nil {
		t.Fatal(err)
	}
	_, _ = e.handshake(e.client("secret-name.example.com"))
	e.log.recordWhere("end_reason", "done")
	e.log.recordWhere("end_reason", "unknown_domain")

	text := getAdmin(t, admin, "/metrics")
	var served []string
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "# TYPE caddy_pqproxy_"); ok {
			served = append(served, strings.Fields(name)[0])
		}
	}
	for _, name := range strings.Fields(metricNames) {
		if !slices.Contains(served, name) {
			t.Errorf("%s is not served", name)
		}
	}
	for _, name := range served {
		if !slices.Contains(strings.Fields(metricNames+" "+moreMetrics), name) {
			t.Errorf("%s is served, and in no list", name)
		}
	}
	if strings.Contains(text, "example.com") || strings.Contains(text, `"acme"`) || strings.Contains(text, "127.0.0.1") {
		t.Error("a label tells a name or an address")
	}

	var groups, sources, reasons []string
	for _, g := range groupPolicies[domain.Prefer].groups {
		groups = append(groups, g.String())
	}
	for _, s := range []domain.Source{domain.Static, domain.Admin, domain.Remote} {
		sources = append(sources, string(s))
	}
	for _, c := range constants(t, "log.go", "endReason") {
		reasons = append(reasons, c.value)
	}
	allowed := map[string][]string{
		"end_reason": reasons, "group": groups, "source": sources, "direction": {"in", "out"},
		"resumed": {"true", "false"}, "hello_retry": {"true", "false"}, "state": {"healthy", "unhealthy", "valid", "expired", "pending", "failed"}, "result": syncResults(t),
	}
	allowed["result"] = append(allowed["result"], "ok", "failed", "obtained", "renewed") // of health checks and orders
	for _, s := range samples(t) {
		for label, value := range s.labels {
			if !slices.Contains(allowed[label], value) {
				t.Errorf("%s: label %s has the value %q", s.name, label, value)
			}
		}
	}
}

// syncResults returns all values of the label of sync_total.
func syncResults(t *testing.T) (results []string) {
	for _, c := range constants(t, "poller.go", "syncResult") {
		results = append(results, c.value)
	}
	for _, c := range constants(t, "internal/feed/error.go", "Reason") {
		results = append(results, c.value)
	}
	return results
}
