package pqproxy

import (
	"container/heap"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// startChecking runs an edge whose checks come a hundred times as often as domains say.
func startChecking(t *testing.T) (*edge, *state) {
	t.Helper()
	e := startEdge(t, "")
	s := stateInForce(t)
	s.health.checks.hurry = 100
	return e, s
}

// checked is a domain with a check; what it leaves out is the default.
func checked(name, tenant, dial string, u *domain.UpstreamTLS, check domain.HealthCheck) domain.Domain {
	d := domain.Domain{Name: name, Tenant: tenant, Upstreams: []domain.Upstream{{Dial: dial, TLS: u}}, HealthCheck: &check}
	if strings.HasPrefix(name, "*.") {
		d.Certificate.Source = domain.Internal // the default does not go with it
	}
	return d
}

// everySecond is a check that counts at once.
var everySecond = domain.HealthCheck{Interval: domain.Duration(time.Second), Rise: 1, Fall: 1}

// applyTo changes what a source says, as if it had passed the judgement of where domains may point.
func applyTo(t *testing.T, s *state, source sourceRank, removed []string, domains ...domain.Domain) {
	t.Helper()
	c := s.newChangeSet(source, false, nil)
	for _, name := range removed {
		c.remove(name)
	}
	for i := range domains {
		d := domains[i].Clone()
		if err := d.Normalize(source.source()); err != nil {
			t.Fatal(err)
		}
		if err := c.put(d); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.apply(c, nil); err != nil {
		t.Fatal(err)
	}
}

// checksSince returns how the metrics of checks have changed.
func checksSince(t *testing.T, before map[string]float64) (healthy, unhealthy, ok, failed float64) {
	t.Helper()
	now := values(t)
	since := func(name string) float64 { return now[name] - before[name] }
	return since(`upstreams{state="healthy"}`), since(`upstreams{state="unhealthy"}`),
		since(`health_checks_total{result="ok"}`), since(`health_checks_total{result="failed"}`)
}

// awaitUnhealthy waits until so many upstreams are unhealthy by checks, and returns them.
func awaitUnhealthy(t *testing.T, s *state, want int) []unhealthyUpstream {
	t.Helper()
	var found []unhealthyUpstream
	pqtest.Wait(t, fmt.Sprintf("%d upstreams to be unhealthy", want), func() bool {
		all, _ := s.health.unhealthy(100)
		found = nil
		for _, u := range all {
			if u.By == "checks" {
				found = append(found, u)
			}
		}
		return len(found) == want
	})
	return found
}

// awaitChecks waits for so many checks of either result from now on.
func awaitChecks(t *testing.T, n float64) {
	t.Helper()
	before := values(t)
	pqtest.Wait(t, fmt.Sprintf("%v checks", n), func() bool {
		_, _, ok, failed := checksSince(t, before)
		return ok+failed >= n
	})
}

// TestHealthChecks has an upstream fail its checks: clients go elsewhere without trying it, reloads change nothing about
// that, and when it is well again they come back. When the domain leaves, so do the checks.
func TestHealthChecks(t *testing.T) {
	pqtest.Leaks(t)
	before := values(t)
	e, s := startChecking(t)
	p := &pair{edge: e, state: s, first: startFickle(t, e.ca), second: startFickle(t, e.ca)}
	load := func(grace, check string) {
		t.Helper()
		e.load(fmt.Sprintf("limits {\n grace_period %s\n}\ndomain app.example.com {\n%s health_check {\n %s\n}\n certificate $CHAIN $KEY\n}",
			grace, p.upstreams(), check))
	}
	goesTo := func(f *fickle) {
		t.Helper()
		c := e.dial(e.client("app.example.com"))
		echo(t, c, "hi")
		c.Close()
		if r := e.recordOf(t, c); r.str("upstream") != f.Addr() {
			t.Errorf("a client went to %s, want %s", r.str("upstream"), f.Addr())
		}
		if u := p.known(t, 0); u.failed.Load() != 0 {
			t.Error("a client has tried the first upstream in vain")
		}
	}
	load("1s", "interval 1s\n fall 2\n rise 2")
	awaitChecks(t, 4)
	if healthy, unhealthy, ok, failed := checksSince(t, before); healthy != 2 || unhealthy != 0 || ok < 4 || failed != 0 {
		t.Errorf("%v are healthy, %v not; %v checks were ok, %v failed", healthy, unhealthy, ok, failed)
	}
	goesTo(p.first)

	p.first.broken.Store(true)
	line := e.log.message("upstream is down")
	if line.str("level") != "warn" || line.str(keyDomain) != "app.example.com" || line.str(keyUpstream) != p.first.Addr() ||
		!strings.Contains(line.str(keyError), "other.internal") {
		t.Errorf("the log says %v", line)
	}
	down := awaitUnhealthy(t, s, 1)[0]
	if down.Domain != "app.example.com" || down.Dial != p.first.Addr() || down.Error != line.str(keyError) || time.Since(down.Since) > patience {
		t.Errorf("unhealthy is %+v", down)
	}
	if healthy, unhealthy, _, failed := checksSince(t, before); healthy != 1 || unhealthy != 1 || failed < 2 {
		t.Errorf("%v are healthy, %v not; %v checks failed", healthy, unhealthy, failed)
	}
	goesTo(p.second)

	load("2s", "interval 1s\n fall 2\n rise 2")
	load("2s", "interval 2s\n fall 3\n rise 2")
	awaitChecks(t, 10)
	if now := awaitUnhealthy(t, s, 1)[0]; now != down {
		t.Errorf("after reloads it is %+v, before it was %+v", now, down)
	}
	goesTo(p.second)

	p.first.broken.Store(false)
	if line := e.log.message("upstream is up"); line.str("level") != "info" || line.str(keyUpstream) != p.first.Addr() {
		t.Errorf("the log says %v", line)
	}
	awaitUnhealthy(t, s, 0)
	goesTo(p.first)
	lines := e.log.all(func(l logLine) bool {
		return l.str("level") != "debug" && strings.HasPrefix(l.str("msg"), "upstream is") || strings.HasPrefix(l.str("msg"), "upstream failed")
	})
	if len(lines) != 2 {
		t.Errorf("the log has %d lines of two changes: %v", len(lines), lines)
	}

	e.load("")
	pqtest.Wait(t, "the checks to end", func() bool {
		healthy, unhealthy, _, _ := checksSince(t, before)
		return healthy == 0 && unhealthy == 0
	})
}

// TestHealthChecksSuspended stops the checks of a domain that is suspended or removed, and begins them again. The checks
// of another domain are the clock.
func TestHealthChecksSuspended(t *testing.T) {
	pqtest.Leaks(t)
	before := values(t)
	_, s := startChecking(t)
	up, clock := pqtest.StartUpstream(t, pqtest.UpstreamConfig{}), pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	d := checked("app.example.com", "", up.Addr(), nil, everySecond)
	suspended := d
	suspended.Suspended = true
	applyTo(t, s, rankStatic, nil, d, checked("b.example.com", "", clock.Addr(), nil, everySecond))
	seen := func() {
		t.Helper()
		n := up.Accepted()
		pqtest.Wait(t, "further checks", func() bool { return up.Accepted() > n })
	}
	notSeen := func() {
		t.Helper()
		pqtest.Wait(t, "the checks to end", func() bool {
			healthy, _, _, _ := checksSince(t, before)
			return healthy == 1
		})
		ticks := func(n int) {
			now := clock.Accepted()
			pqtest.Wait(t, "the other domain's checks", func() bool { return clock.Accepted() >= now+n })
		}
		ticks(3) // one may have been under way
		n := up.Accepted()
		ticks(5)
		if more := up.Accepted() - n; more > 0 {
			t.Errorf("there were %d more checks", more)
		}
	}
	seen()
	applyTo(t, s, rankStatic, nil, suspended)
	notSeen()
	applyTo(t, s, rankStatic, nil, d)
	seen()
	applyTo(t, s, rankStatic, []string{"app.example.com"})
	notSeen()
}

// TestHealthChecksAnnounceThemselves reads what checks send: a PROXY header that says that there is no client, where the
// domain sends one, and TLS that ends properly.
func TestHealthChecksAnnounceThemselves(t *testing.T) {
	pqtest.Leaks(t)
	e, s := startChecking(t)
	for _, version := range []domain.ProxyProtocol{domain.ProxyV1, domain.ProxyV2} {
		for _, typ := range []domain.HealthCheckType{domain.HealthTCP, domain.HealthTLS} {
			t.Run(string(version+"/")+string(typ), func(t *testing.T) {
				ended := make(chan error, 1)
				cfg := pqtest.UpstreamConfig{Proxy: true, Handler: func(c *pqtest.UpstreamConn) {
					_, err := io.ReadAll(c)
					select {
					case ended <- err:
					default:
					}
				}}
				var secure *domain.UpstreamTLS
				if typ == domain.HealthTLS {
					cfg.TLS = &tls.Config{Certificates: []tls.Certificate{e.ca.Issue(t, "app.example.com")}}
					secure = &domain.UpstreamTLS{CAPEM: string(e.ca.PEM())}
				}
				up := pqtest.StartUpstream(t, cfg)
				check := everySecond
				check.Type = typ
				d := checked("app.example.com", "", up.Addr(), secure, check)
				d.ProxyProtocol = version
				applyTo(t, s, rankStatic, nil, d)
				c := up.Next(t)
				if c.Err != nil || c.Header.Command != proxyproto.LOCAL {
					t.Fatalf("the header is %+v (%v)", c.Header, c.Err)
				}
				if typ == domain.HealthTLS && (c.State.ServerName != "app.example.com" || c.State.CurveID != tls.X25519MLKEM768 || c.State.DidResume) {
					t.Errorf("the handshake is for %q, with %s, resumed %v", c.State.ServerName, c.State.CurveID, c.State.DidResume)
				}
				if err := <-ended; err != nil {
					t.Errorf("it ended with %v", err)
				}
				if typ == domain.HealthTLS && up.Next(t).State.DidResume {
					t.Error("the second check resumed a session")
				}
				applyTo(t, s, rankStatic, []string{"app.example.com"})
			})
		}
	}
	if found, total := s.health.unhealthy(10); total != 0 {
		t.Errorf("unhealthy: %+v", found)
	}
}

// TestHealthCheckVerdicts checks upstreams of all kinds.
func TestHealthCheckVerdicts(t *testing.T) {
	pqtest.Leaks(t)
	e, s := startChecking(t)
	secure := func(names ...string) string {
		return pqtest.StartUpstream(t, pqtest.UpstreamConfig{TLS: &tls.Config{Certificates: []tls.Certificate{e.ca.Issue(t, names...)}}}).Addr()
	}
	silent := pqtest.StartUpstream(t, pqtest.UpstreamConfig{Handler: pqtest.Hold}).Addr()
	gone := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	gone.Close()
	knowsNames := pqtest.StartUpstream(t, pqtest.UpstreamConfig{Handler: func(c *pqtest.UpstreamConn) {
		_, _ = c.Read(make([]byte, 8<<10))
		_, _ = c.Write([]byte{21, 3, 3, 0, 2, 2, alertUnrecognizedName})
		_, _ = io.Copy(io.Discard, c)
	}}).Addr()
	classical := pqtest.StartUpstream(t, pqtest.UpstreamConfig{TLS: &tls.Config{
		Certificates: []tls.Certificate{e.ca.Issue(t, "app.internal")}, CurvePreferences: []tls.CurveID{tls.X25519},
	}}).Addr()
	const tcp, whole = domain.HealthTCP, domain.HealthTLS
	ca := string(e.ca.PEM())
	for _, test := range []struct {
		what, domain, dial string
		tls                *domain.UpstreamTLS
		typ                domain.HealthCheckType
		want               string // in the error; empty: healthy
	}{
		{"connects", "app.example.com", silent, nil, tcp, ""},
		{"refuses", "app.example.com", gone.Addr(), nil, tcp, "refused"},
		{"right name", "app.example.com", secure("app.example.com"), &domain.UpstreamTLS{CAPEM: ca}, whole, ""},
		{"wrong name", "app.example.com", secure("other.internal"), &domain.UpstreamTLS{CAPEM: ca}, whole, "other.internal"},
		{"wrong name, tcp", "app.example.com", secure("other.internal"), &domain.UpstreamTLS{CAPEM: ca}, tcp, ""},
		{"wrong name, not verified", "app.example.com", secure("other.internal"), &domain.UpstreamTLS{InsecureSkipVerify: true}, whole, ""},
		{"unknown authority", "app.example.com", secure("app.example.com"), &domain.UpstreamTLS{}, whole, "authority"},
		{"silent", "app.example.com", silent, &domain.UpstreamTLS{CAPEM: ca}, whole, "timeout"},
		{"silent, tcp", "app.example.com", silent, &domain.UpstreamTLS{CAPEM: ca}, tcp, ""},
		{"no hybrid group", "app.example.com", classical, &domain.UpstreamTLS{CAPEM: ca, ServerName: "app.internal", PostQuantum: domain.Require}, whole, "handshake failure"},
		{"a wildcard's upstream has other names", "*.example.com", secure("a.example.com"), &domain.UpstreamTLS{CAPEM: ca}, whole, ""},
		{"a wildcard's upstream, unknown authority", "*.example.com", secure("x.example.com"), &domain.UpstreamTLS{}, whole, "authority"},
		{"a wildcard's upstream has a wrong fixed name", "*.example.com", secure("x.example.com"), &domain.UpstreamTLS{CAPEM: ca, ServerName: "app.internal"}, whole, "app.internal"},
		{"a wildcard's upstream wants a name it knows", "*.example.com", knowsNames, &domain.UpstreamTLS{CAPEM: ca}, whole, ""},
		{"a name is not known", "app.example.com", knowsNames, &domain.UpstreamTLS{CAPEM: ca}, whole, "unrecognized name"},
	} {
		t.Run(test.what, func(t *testing.T) {
			check := everySecond
			check.Type, check.Timeout = test.typ, domain.Duration(time.Second)
			if test.want == "timeout" {
				check.Timeout = domain.Duration(100 * time.Millisecond)
			}
			before := values(t)
			applyTo(t, s, rankStatic, nil, checked(test.domain, test.what, test.dial, test.tls, check))
			if test.want == "" {
				pqtest.Wait(t, "two checks that pass", func() bool {
					_, _, ok, _ := checksSince(t, before)
					return ok >= 2
				})
				if _, _, _, failed := checksSince(t, before); failed != 0 {
					t.Errorf("%v checks have failed: %s", failed, e.log.text())
				}
			} else if down := awaitUnhealthy(t, s, 1)[0]; !strings.Contains(down.Error, test.want) {
				t.Errorf("it is down because of %q, want %q", down.Error, test.want)
			}
			applyTo(t, s, rankStatic, []string{test.domain})
			pqtest.Wait(t, "the checks to end", func() bool {
				healthy, unhealthy, _, _ := checksSince(t, before)
				return healthy == 0 && unhealthy == 0
			})
		})
	}
}

// TestHealthCheckTimeout lets no check take longer than clients' connections have, whatever the domain says: one tenant
// could otherwise keep all checks of the edge waiting for an hour.
func TestHealthCheckTimeout(t *testing.T) {
	pqtest.Leaks(t)
	e, s := startChecking(t)
	silent := pqtest.StartUpstream(t, pqtest.UpstreamConfig{Handler: pqtest.Hold})
	e.load("limits {\n dial_timeout 100ms\n}")
	hour := domain.Duration(time.Hour)
	applyTo(t, s, rankStatic, nil, checked("app.example.com", "", silent.Addr(), new(domain.UpstreamTLS),
		domain.HealthCheck{Interval: hour, Timeout: hour, Fall: 1}))
	awaitUnhealthy(t, s, 1)
}

// TestHealthCheckDenied checks an address that the policy does not allow. It is reported, and means nothing for a domain
// of the config, which may go there.
func TestHealthCheckDenied(t *testing.T) {
	pqtest.Leaks(t)
	e, s := startChecking(t)
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	allowed := checked("app.example.com", "acme", up.Addr(), nil, everySecond)
	denied := allowed
	denied.Name = "b.example.com"
	applyTo(t, s, rankStatic, nil, allowed)
	pqtest.Wait(t, "a check", func() bool { return up.Accepted() > 0 })
	applyTo(t, s, rankRemote, nil, denied)
	found := awaitUnhealthy(t, s, 1)[0]
	if found.Domain != "b.example.com" || found.Dial != up.Addr() || !strings.Contains(found.Error, "loopback") {
		t.Errorf("unhealthy is %+v", found)
	}
	if line := e.log.message("upstream is down"); line.str(keyDomain) != "b.example.com" {
		t.Errorf("the log says %v", line)
	}
	u := upstreamOf(s, "app.example.com", 0)
	if upstreamOf(s, "b.example.com", 0) != u {
		t.Fatal("the domains do not share the upstream")
	}
	if got := s.health.standingOf(u); got != standingGood {
		t.Errorf("its standing is %d", got)
	}
	applyTo(t, s, rankRemote, []string{"b.example.com"})
	awaitUnhealthy(t, s, 0)
}

// TestHealthCheckShared has two domains ask for the same check: it is made once, as long as one of them is there.
func TestHealthCheckShared(t *testing.T) {
	pqtest.Leaks(t)
	e, s := startChecking(t)
	f, clock := startFickle(t, e.ca), pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	secure := &domain.UpstreamTLS{ServerName: "app.internal", CAPEM: string(e.ca.PEM())}
	check := everySecond
	check.Timeout = domain.Duration(time.Second)
	a, b := checked("a.example.com", "", f.Addr(), secure, check), checked("b.example.com", "", f.Addr(), secure, check)
	release := f.hold(t)
	applyTo(t, s, rankStatic, nil, a, b, checked("c.example.com", "", clock.Addr(), nil, everySecond))
	pqtest.Wait(t, "20 checks of the other upstream", func() bool { return clock.Accepted() >= 20 && f.Accepted() > 0 })
	if n := f.Accepted(); n != 1 {
		t.Errorf("%d checks are under way at once", n)
	}
	release()
	further := func() {
		t.Helper()
		n := f.Accepted()
		pqtest.Wait(t, "further checks", func() bool { return f.Accepted() > n+1 })
	}
	further()
	applyTo(t, s, rankStatic, []string{"a.example.com"})
	further()
	f.broken.Store(true)
	if found := awaitUnhealthy(t, s, 1)[0]; found.Domain != "b.example.com" {
		t.Errorf("it is reported as %s", found.Domain)
	}
	applyTo(t, s, rankStatic, []string{"b.example.com"})
	awaitUnhealthy(t, s, 0)
}

// TestHealthCheckDomainMoves has a source take over a domain that says the same. Nobody must be left behind that
// checks for the one before.
func TestHealthCheckDomainMoves(t *testing.T) {
	pqtest.Leaks(t)
	before := values(t)
	_, s := startChecking(t)
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	d := checked("app.example.com", "", up.Addr(), nil, everySecond)
	applyTo(t, s, rankStatic, nil, d)
	applyTo(t, s, rankAdmin, nil, d)
	awaitChecks(t, 3)
	awaitUnhealthy(t, s, 0)
	applyTo(t, s, rankStatic, []string{"app.example.com"})
	awaitUnhealthy(t, s, 1) // the policy holds now
	applyTo(t, s, rankAdmin, []string{"app.example.com"})
	pqtest.Wait(t, "the checks to end", func() bool {
		healthy, unhealthy, _, _ := checksSince(t, before)
		return healthy == 0 && unhealthy == 0
	})
}

// TestHealthChecksAreBounded asks for a thousand checks of upstreams that do not answer. There are never more than
// checksAtOnce under way, and all have their turn.
func TestHealthChecksAreBounded(t *testing.T) {
	const targets = 1000
	pqtest.Leaks(t)
	before := values(t)
	e, s := startChecking(t)
	e.load("limits {\n dial_timeout 10m\n}")
	s.health.checks.hurry = 36000 // all want to be checked ten times a second
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var held []net.Conn
	accepted, released, most, over := 0, 0, 0, false
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			accepted++
			most = max(most, accepted-released)
			if over {
				released++
				c.Close()
			} else {
				held = append(held, c)
			}
			mu.Unlock()
		}
	})
	t.Cleanup(func() { ln.Close(); accepting.Wait() })
	hour := domain.Duration(time.Hour)
	var domains []domain.Domain
	for i := range targets {
		domains = append(domains, checked(fmt.Sprintf("d%d.example.com", i), fmt.Sprint("tenant", i%7), ln.Addr().String(),
			&domain.UpstreamTLS{ServerName: fmt.Sprintf("d%d.internal", i)}, domain.HealthCheck{Interval: hour, Timeout: hour, Fall: 1}))
	}
	applyTo(t, s, rankStatic, nil, domains...)
	underWay := func(n int) {
		t.Helper()
		pqtest.Wait(t, fmt.Sprintf("%d checks", n), func() bool {
			mu.Lock()
			defer mu.Unlock()
			return accepted-released == n
		})
	}
	underWay(checksAtOnce)
	for range 10 { // each that ends makes room for one
		mu.Lock()
		c := held[0]
		held = held[1:]
		released++
		mu.Unlock()
		c.Close()
		underWay(checksAtOnce)
	}
	mu.Lock()
	if most > checksAtOnce {
		t.Errorf("%d checks were under way at once", most)
	}
	over = true
	released += len(held)
	for _, c := range held {
		c.Close()
	}
	mu.Unlock()
	pqtest.Wait(t, "all to be checked", func() bool {
		_, unhealthy, _, _ := checksSince(t, before)
		return unhealthy == targets
	})
	if found, total := s.health.unhealthy(5); len(found) != 5 || total != targets {
		t.Errorf("%d of %d are reported", len(found), total)
	}
	var names []string
	for _, d := range domains {
		names = append(names, d.Name)
	}
	applyTo(t, s, rankStatic, names)
	pqtest.Wait(t, "the checks to end", func() bool {
		healthy, unhealthy, _, _ := checksSince(t, before)
		return healthy == 0 && unhealthy == 0
	})
}

// TestHealthChecksEndWithState takes the app out of the config while a check waits for an answer.
func TestHealthChecksEndWithState(t *testing.T) {
	pqtest.Leaks(t)
	before := values(t)
	e, s := startChecking(t)
	e.load("limits {\n dial_timeout 10m\n}")
	silent := pqtest.StartUpstream(t, pqtest.UpstreamConfig{Handler: pqtest.Hold})
	applyTo(t, s, rankStatic, nil, checked("app.example.com", "", silent.Addr(), new(domain.UpstreamTLS),
		domain.HealthCheck{Interval: domain.Duration(time.Hour), Timeout: domain.Duration(time.Hour)}))
	pqtest.Wait(t, "the check", func() bool { return silent.Accepted() == 1 })
	e.loadOptions("admin off\n")
	drains.Wait()
	if healthy, unhealthy, ok, failed := checksSince(t, before); healthy != 0 || unhealthy != 0 || ok != 0 || failed != 0 {
		t.Errorf("%v healthy, %v unhealthy, %v ok, %v failed", healthy, unhealthy, ok, failed)
	}
	applyTo(t, s, rankStatic, nil, checked("b.example.com", "", silent.Addr(), nil, everySecond)) // nothing comes of it
	s.health.stop()
}

// entryFor makes the entry of a domain that checks upstreams.
func entryFor(t *testing.T, name string, check domain.HealthCheck, dials ...string) entry {
	t.Helper()
	d := &domain.Domain{Name: name, HealthCheck: &check}
	for _, dial := range dials {
		d.Upstreams = append(d.Upstreams, domain.Upstream{Dial: dial})
	}
	if err := d.Normalize(domain.Static); err != nil {
		t.Fatal(err)
	}
	return newEntry(d, rankStatic)
}

// result has a check of a target end, as if it had been made.
func (k *checker) result(t *target, err error) {
	heap.Remove(&k.waiting, t.place)
	k.take(checkResult{t, time.Now(), err})
}

// only returns the target, of which there is one.
func (k *checker) only(t *testing.T) *target {
	t.Helper()
	if len(k.targets) != 1 || len(k.waiting) != 1 {
		t.Fatalf("there are %d targets, %d of them waiting", len(k.targets), len(k.waiting))
	}
	return k.waiting[0]
}

// TestHealthRiseAndFall counts results in a row.
func TestHealthRiseAndFall(t *testing.T) {
	const ( // x: failed, o: passed, e: no descriptors, c: cut short; u: up, d: down
		results = "xxoxxexcxoxoexxoocoxxx"
		states  = "uuuuuudddddddddduuuuud"
	)
	h := healthAlone(t)
	k := &h.checks
	k.change(changed{now: entryFor(t, "a.example.com", domain.HealthCheck{Rise: 2, Fall: 3}, "10.0.0.1:1")})
	target := k.only(t)
	for i, r := range results {
		k.result(target, map[rune]error{
			'x': errors.New("no"), 'e': &net.OpError{Err: syscall.EMFILE}, 'c': context.Canceled,
		}[r])
		down := states[i] == 'd'
		_, total := h.unhealthy(1)
		if target.down != down || target.upstream.down.Load() > 0 != down || total > 0 != down {
			t.Errorf("after %s it is down: %v; want %v (%d are reported)", results[:i+1], target.down, down, total)
		}
	}
}

// TestHealthCheckChanges keeps what is known of an upstream where the upstream and the type of the check stay.
func TestHealthCheckChanges(t *testing.T) {
	h := healthAlone(t)
	k := &h.checks
	const name = "a.example.com"
	had := entry{}
	change := func(check domain.HealthCheck, dials ...string) {
		t.Helper()
		now := entryFor(t, name, check, dials...)
		k.change(changed{had, now})
		had = now
	}
	fall := func(n int) domain.HealthCheck { return domain.HealthCheck{Fall: n} }
	change(fall(3), "10.0.0.1:1")
	k.result(k.only(t), errors.New("no"))
	k.result(k.only(t), errors.New("no"))
	change(fall(4), "10.0.0.1:1")
	k.result(k.only(t), errors.New("no"))
	if k.only(t).down {
		t.Error("it is down after 3 failures of 4")
	}
	k.result(k.only(t), errors.New("not at all"))
	down, total := h.unhealthy(1)
	if total != 1 || down[0].Error != "not at all" {
		t.Fatalf("unhealthy: %+v", down)
	}
	change(fall(1), "10.0.0.1:1")
	if now, total := h.unhealthy(1); total != 1 || now[0] != down[0] {
		t.Errorf("after a change of the check, unhealthy: %+v, before %+v", now, down)
	}
	change(fall(1), "10.0.0.2:1")
	if _, total := h.unhealthy(1); total != 0 {
		t.Error("another upstream is down from the start")
	}
	k.result(k.only(t), errors.New("no"))
	k.change(changed{before: had})
	if _, total := h.unhealthy(1); total != 0 || len(k.targets)+len(k.waiting) != 0 {
		t.Errorf("after the domain left there are %d targets, %d waiting, %d down", len(k.targets), len(k.waiting), total)
	}
}

// TestHealthChecksCombine has two domains check one upstream differently: it is down if either says so, and told of once.
func TestHealthChecksCombine(t *testing.T) {
	h := healthAlone(t)
	k := &h.checks
	entries := make(map[string]entry)
	targets := make(map[string]*target)
	for i, name := range []string{"a.example.com", "b.example.com"} {
		entries[name] = entryFor(t, name, domain.HealthCheck{Fall: 1, Rise: 1 + i}, "10.0.0.1:1")
		k.change(changed{now: entries[name]})
		for _, target := range k.targets {
			if target.name == name {
				targets[name] = target
			}
		}
	}
	a, b := targets["a.example.com"], targets["b.example.com"]
	u := a.upstream
	if b.upstream != u {
		t.Fatal("they have an upstream each")
	}
	state := func(what string, down bool, as string) {
		t.Helper()
		found, total := h.unhealthy(5)
		if got := h.standingOf(u) == standingDown; got != down || total > 0 != down || len(found) != total || total > 1 {
			t.Fatalf("%s: down %v, want %v; reported: %+v", what, got, down, found)
		}
		if down && found[0].Domain != as {
			t.Errorf("%s: it is reported as %s, want %s", what, found[0].Domain, as)
		}
	}
	state("at first", false, "")
	k.result(b, errors.New("no"))
	state("one", true, "b.example.com")
	k.result(a, errors.New("no"))
	state("both", true, "b.example.com")
	k.result(b, nil)
	k.result(b, nil)
	state("the other", true, "a.example.com")
	k.change(changed{before: entries["a.example.com"]})
	state("the other has left", false, "")
	k.change(changed{before: entries["b.example.com"]})
	if u.watch != nil {
		t.Error("somebody checks it still")
	}
}

// TestHealthChecksSpread spreads the first checks over the interval where there are many, and not where there are few.
func TestHealthChecksSpread(t *testing.T) {
	h := healthAlone(t)
	k := &h.checks
	interval := 10 * time.Second
	begun := time.Now()
	var last time.Duration
	for i := range 2 * spreadFully {
		name := fmt.Sprintf("d%d.example.com", i)
		k.change(changed{now: entryFor(t, name, domain.HealthCheck{Interval: domain.Duration(interval)}, fmt.Sprintf("10.0.0.1:%d", i+1))})
		if i == 0 {
			if due := time.Until(k.waiting[0].due); due > interval/spreadFully {
				t.Errorf("the first of all is due in %s", due)
			}
		}
	}
	in := make([]int, 5) // parts of the interval
	for _, target := range k.waiting {
		due := target.due.Sub(begun)
		last = max(last, due)
		in[min(int(due*5/interval), 4)]++
	}
	for i, n := range in {
		if n < spreadFully/5 {
			t.Errorf("%d of %d are due in part %d of the interval", n, 2*spreadFully, i)
		}
	}
	if last > interval+time.Since(begun) {
		t.Errorf("one is due after %s", last)
	}
}

// TestHealthTurns has tenants take turns.
func TestHealthTurns(t *testing.T) {
	var q turns
	push := func(tenant, name string) *target {
		target := &target{tenant: tenant, name: name}
		q.push(target)
		return target
	}
	for i := range 4 {
		push("many", fmt.Sprint("m", i))
	}
	push("few", "f0")
	push("gone", "g0").gone = true
	push("few", "f1")
	push("one", "o0")
	var got []string
	for next := q.next(); next != nil; next = q.next() {
		if got = append(got, next.name); len(got) == 3 {
			push("late", "l0")
		}
	}
	if want := "m0 f0 o0 m1 f1 l0 m2 m3"; strings.Join(got, " ") != want {
		t.Errorf("the order is %v, want %s", got, want)
	}
	if q.order.Len()+len(q.tenants) != 0 {
		t.Error("something is left over")
	}
}

// TestHealthChecksAreFullHandshakes has clients' connections leave tickets behind. With one of them a check would see
// nothing of a certificate that has become bad since.
func TestHealthChecksAreFullHandshakes(t *testing.T) {
	pqtest.Leaks(t)
	e, _ := startChecking(t)
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{TLS: &tls.Config{Certificates: []tls.Certificate{e.ca.Issue(t, "app.internal")}}})
	e.load(fmt.Sprintf("domain app.example.com {\n upstream %s {\n tls_server_name app.internal\n tls_ca $CA\n}\n health_check\n certificate $CHAIN $KEY\n}", up.Addr()))
	for _, resumed := range []bool{false, true} {
		c := e.dial(e.client("app.example.com"))
		echo(t, c, "tickets come with this")
		c.Close()
		if r := e.recordOf(t, c); r["upstream_resumed"] != resumed {
			t.Errorf("upstream_resumed is %v, want %v", r["upstream_resumed"], resumed)
		}
		awaitChecks(t, 3)
	}
	resumed := 0
	for _, c := range up.Conns() {
		if c.State.DidResume {
			resumed++
		}
	}
	if resumed != 1 {
		t.Errorf("%d connections resumed a session, want the second client's alone", resumed)
	}
}
