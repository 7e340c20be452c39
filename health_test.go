package pqproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// fickle is a TLS upstream that completes handshakes or does not, as it is told.
type fickle struct {
	*pqtest.Upstream
	broken atomic.Bool
	gate   atomic.Pointer[chan struct{}] // handshakes wait until it is closed; nil: they do not wait
}

func startFickle(t *testing.T, ca *pqtest.CA) *fickle {
	t.Helper()
	f := new(fickle)
	good := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "app.internal")}, NextProtos: []string{"h2", "imap"}}
	good.SessionTicketsDisabled = true // with a ticket, no certificate is shown
	bad := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "other.internal")}}
	f.Upstream = pqtest.StartUpstream(t, pqtest.UpstreamConfig{TLS: &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			if gate := f.gate.Load(); gate != nil {
				<-*gate
			}
			if f.broken.Load() {
				return bad, nil
			}
			return good, nil
		},
	}})
	return f
}

// hold has handshakes wait until release is called.
func (f *fickle) hold(t *testing.T) (release func()) {
	gate := make(chan struct{})
	f.gate.Store(&gate)
	release = func() {
		if f.gate.CompareAndSwap(&gate, nil) {
			close(gate)
		}
	}
	t.Cleanup(release)
	return release
}

// pair is an edge whose app.example.com has two fickle upstreams.
type pair struct {
	*edge
	state         *state
	first, second *fickle
}

func startPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{edge: startEdge(t, "")}
	p.state = stateInForce(t)
	p.state.health.markFor = time.Hour
	p.first, p.second = startFickle(t, p.ca), startFickle(t, p.ca)
	p.load("domain app.example.com {\n" + p.upstreams() + "certificate $CHAIN $KEY\n}")
	return p
}

func (p *pair) upstreams() (option string) {
	for _, f := range []*fickle{p.first, p.second} {
		option += fmt.Sprintf("upstream %s {\n tls_server_name app.internal\n tls_ca $CA\n}\n", f.Addr())
	}
	return option
}

// known returns the edge's own upstream of a domain.
func (p *pair) known(t *testing.T, i int) *upstream {
	t.Helper()
	return upstreamOf(p.state, "app.example.com", i)
}

func upstreamOf(s *state, name string, i int) *upstream {
	return s.routeOf(s.table.Load().named(name)).upstreams[i]
}

// visit connects once and expects to reach an upstream, after so many connections to each.
func (p *pair) visit(t *testing.T, reach *fickle, first, second int, protos ...string) {
	t.Helper()
	c := p.dial(p.client("app.example.com", offering(protos...)))
	echo(t, c, "hi")
	c.Close()
	if r := p.recordOf(t, c); r.str("upstream") != reach.Addr() || r.str("end_reason") != "done" {
		t.Errorf("went to %s (%s: %s), want %s", r.str("upstream"), r.str("end_reason"), r.str("error"), reach.Addr())
	}
	if a, b := p.first.Accepted(), p.second.Accepted(); a != first || b != second {
		t.Errorf("the upstreams have had %d and %d connections, want %d and %d", a, b, first, second)
	}
}

// TestHealthAfterFailure has the first upstream fail: it is tried last, until enough time has passed, and first again when
// it has been seen to work.
func TestHealthAfterFailure(t *testing.T) {
	pqtest.Leaks(t)
	p := startPair(t)
	p.visit(t, p.first, 1, 0)
	p.first.broken.Store(true)
	p.visit(t, p.second, 2, 1)
	line := p.log.message("upstream failed")
	if line.str("level") != "warn" || line.str(keyDomain) != "app.example.com" || line.str(keyUpstream) != p.first.Addr() ||
		!strings.Contains(line.str(keyError), "other.internal") {
		t.Errorf("the log says %v", line)
	}
	p.visit(t, p.second, 2, 2)
	found, total := p.state.health.unhealthy(10)
	if total != 1 || len(found) != 1 || found[0].Domain != "app.example.com" || found[0].Dial != p.first.Addr() || found[0].By != "traffic" ||
		time.Since(found[0].Since) > patience || !strings.Contains(found[0].Error, "other.internal") {
		t.Errorf("%d are unhealthy: %+v", total, found)
	}

	p.second.broken.Store(true) // all have failed: both are tried
	c := p.dial(p.client("app.example.com"))
	if _, end := pqtest.ReadToEnd(t, c); end != pqtest.RST {
		t.Errorf("the client of no usable upstream saw %s", end)
	}
	p.recordOf(t, c)
	p.second.broken.Store(false)
	if a, b := p.first.Accepted(), p.second.Accepted(); a != 3 || b != 3 {
		t.Errorf("the upstreams have had %d and %d connections, want 3 each", a, b)
	}
	p.known(t, 1).failed.Store(overdue)
	p.visit(t, p.second, 3, 4) // which clears it

	p.known(t, 0).failed.Store(overdue) // as if the time had passed
	p.visit(t, p.second, 4, 5)          // it has failed again
	p.visit(t, p.second, 4, 6)
	p.known(t, 0).failed.Store(overdue)
	p.first.broken.Store(false)
	p.visit(t, p.first, 5, 6)
	p.visit(t, p.first, 6, 6)
	if found, total := p.state.health.unhealthy(10); total != 0 {
		t.Errorf("in the end %d are unhealthy: %+v", total, found)
	}
	for message, times := range map[string]int{"upstream failed": 2, "upstream works again": 2} {
		lines := p.log.all(func(l logLine) bool { return strings.HasPrefix(l.str("msg"), message) })
		if len(lines) != times {
			t.Errorf("%q was logged %d times, want %d: %v", message, len(lines), times, lines)
		}
	}
}

// TestHealthOneTries has the time pass for an upstream that does not answer. One connection finds that out, and the
// others do not wait for it. It used to be all that came until the first had given up.
func TestHealthOneTries(t *testing.T) {
	pqtest.Leaks(t)
	p := startPair(t)
	p.first.broken.Store(true)
	p.visit(t, p.second, 1, 1)
	p.first.broken.Store(false)
	p.known(t, 0).failed.Store(overdue)
	release := p.first.hold(t)

	leaving := p.dialTCP()
	if _, err := leaving.Write(pqtest.ClientHello(t, p.client("app.example.com"))); err != nil {
		t.Fatal(err)
	}
	pqtest.Wait(t, "the upstream to be tried", func() bool { return p.first.Accepted() == 2 })
	p.visit(t, p.second, 2, 2)

	pqtest.Reset(t, leaving) // and nobody knows
	p.recordOf(t, leaving)
	if got := p.known(t, 0).failed.Load(); got != overdue {
		t.Errorf("after a client left, failed is %d", got)
	}
	release()
	p.visit(t, p.first, 3, 2)
	p.visit(t, p.first, 4, 2)
}

// TestHealthLearningALPN has the failure happen while ALPN is learned. The next list is not asked of that upstream.
func TestHealthLearningALPN(t *testing.T) {
	pqtest.Leaks(t)
	p := startPair(t)
	p.first.broken.Store(true)
	p.visit(t, p.second, 1, 2, "h2") // asked, and used
	p.visit(t, p.second, 1, 4, "imap")
	if _, total := p.state.health.unhealthy(0); total != 1 {
		t.Errorf("%d are unhealthy", total)
	}
	p.first.broken.Store(false)
	p.known(t, 0).failed.Store(overdue)
	p.visit(t, p.first, 3, 4, "h2", "imap")
}

// TestHealthNotTheUpstream has attempts fail for other reasons than the upstream: others must not be led elsewhere by that.
func TestHealthNotTheUpstream(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{TLS: &tls.Config{
		Certificates: []tls.Certificate{e.ca.Issue(t, "a.wild.example.com", "app.example.com")},
	}})
	odd := pqtest.StartUpstream(t, pqtest.UpstreamConfig{Handler: func(c *pqtest.UpstreamConn) {
		_, _ = c.Read(make([]byte, 1))
		_, _ = c.Write([]byte{21, 3, 3, 0, 2, 2, alertHandshakeFailure}) // to each list of protocols
	}})
	e.load(fmt.Sprintf(`
		domain *.wild.example.com {
			upstream %s {
				tls_ca $CA
			}
			certificate $CHAIN $KEY
		}
		domain app.example.com {
			upstream %s {
				tls_ca $CA
			}
			certificate $CHAIN $KEY
		}
		domain b.example.com {
			upstream %s
			certificate $CHAIN $KEY
		}`, up.Addr(), odd.Addr(), e.addr))
	s := stateInForce(t)
	for _, test := range []struct {
		name, host string
		protos     []string
		reason     endReason
	}{
		{"a name that the client chose", "b.wild.example.com", nil, reasonUpCertificate},
		{"the same, while ALPN is learned", "b.wild.example.com", []string{"h2"}, reasonUpCertificate},
		{"a list that the client chose", "app.example.com", []string{"h2"}, reasonUpTLS},
		{"our refusal", "b.example.com", nil, reasonUpLoop},
	} {
		t.Run(test.name, func(t *testing.T) {
			raw := e.dialTCP()
			c := tls.Client(raw, e.client(test.host, offering(test.protos...)))
			if c.Handshake() == nil {
				_, _ = io.Copy(io.Discard, c)
			}
			raw.Close()
			if r := e.recordOf(t, raw); r.str("end_reason") != string(test.reason) {
				t.Errorf("end_reason %s (%s)", r.str("end_reason"), r.str("error"))
			}
			if found, total := s.health.unhealthy(10); total != 0 {
				t.Errorf("unhealthy: %+v", found)
			}
		})
	}
}

// TestHealthBlame says of errors before there is a connection whether they are the upstream's fault.
func TestHealthBlame(t *testing.T) {
	op := func(err error) error { return &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", err)} }
	for _, test := range []struct {
		err  error
		want bool
	}{
		{op(syscall.ECONNREFUSED), true},
		{op(syscall.EHOSTUNREACH), true},
		{op(syscall.ECONNRESET), true},
		{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, true},
		{&net.DNSError{Err: "no such host", IsNotFound: true}, true},
		{op(syscall.EMFILE), false},
		{op(syscall.ENFILE), false},
		{op(syscall.ENOBUFS), false},
		{op(syscall.ENOMEM), false},
		{fmt.Errorf("dial: %w", netpolicy.ErrLoop), false},
		{fmt.Errorf("dial: %w", &netpolicy.DeniedError{Addr: netip.MustParseAddr("127.0.0.1")}), false},
	} {
		if got := unreachable(test.err); got != test.want {
			t.Errorf("%v: %v, want %v", test.err, got, test.want)
		}
	}
}

// healthAlone is the health of a state that no config leads to.
func healthAlone(t *testing.T) *health {
	t.Helper()
	s := newState()
	t.Cleanup(func() {
		s.certs.close()
		for _, target := range s.health.checks.targets { // of which metrics tell
			s.health.checks.forget(target)
		}
	})
	s.settings.Store(&settings{logger: zap.NewNop(), limits: Limits{DialTimeout: 1 << 40}})
	s.health.markFor = time.Hour
	return &s.health
}

// TestHealthShortOfTime has an attempt run out of time that others have used up before, or that was its own.
func TestHealthShortOfTime(t *testing.T) {
	h := healthAlone(t)
	c := &conn{owner: h.checks.owner, limits: &Limits{DialTimeout: 1000}, record: record{route: &route{Domain: new(domain.Domain)}}}
	for _, test := range []struct {
		timeout time.Duration
		reason  endReason
		blamed  bool
		want    bool
	}{
		{1000, reasonUpTimeout, true, true},
		{499, reasonUpTimeout, true, false},
		{-5, reasonUpTimeout, true, false},
		{499, reasonRefused, true, true},
		{1000, reasonUpALPN, false, false},
	} {
		u := new(upstream)
		c.try(u, test.timeout).ended(&dialError{test.reason, "", errors.New("no"), test.blamed})
		if got := u.failed.Load() > h.now(); got != test.want {
			t.Errorf("%+v: failed is %v", test, got)
		}
	}
}

// TestHealthOrder sorts by what is known, and leaves the order of load_balancing otherwise.
func TestHealthOrder(t *testing.T) {
	h := healthAlone(t)
	ups := make([]*upstream, 6)
	for i := range ups {
		ups[i] = &upstream{Upstream: domain.Upstream{Dial: fmt.Sprintf("10.0.0.%d:1", i)}}
	}
	failed, down := func(i int) { ups[i].failed.Store(h.now() + int64(time.Hour)) }, func(i int) { ups[i].down.Add(1) }
	check := func(what string, want ...int) {
		t.Helper()
		in := slices.Clone(ups)
		got := h.inTurn(in)
		for i, w := range want {
			if got[i] != ups[w] {
				t.Errorf("%s: place %d has %s, want %s", what, i, got[i].Dial, ups[w].Dial)
			}
		}
		if !slices.Equal(in, ups) || len(got) != len(ups) {
			t.Errorf("%s: what was given has changed", what)
		}
	}
	check("nothing known", 0, 1, 2, 3, 4, 5)
	down(1)
	failed(0)
	failed(4)
	check("checks weigh more than a connection", 2, 3, 5, 0, 4, 1)
	ups[3].failed.Store(overdue)
	check("the time has passed", 2, 3, 5, 0, 4, 1)
	for i := range ups {
		failed(i)
	}
	ups[1].down.Store(0)
	check("all have failed", 0, 1, 2, 3, 4, 5)
	for i := range ups {
		down(i)
	}
	ups[2].failed.Store(0)
	check("all are down", 0, 1, 2, 3, 4, 5)

	r := &route{Domain: &domain.Domain{LoadBalancing: domain.IPHash}, upstreams: ups}
	for i := range ups {
		ups[i].down.Store(0)
		ups[i].failed.Store(0)
	}
	client := netip.MustParseAddr("192.0.2.7")
	before := r.inOrder(client)
	before[0].down.Store(1)
	if got := h.inTurn(r.inOrder(client)); !slices.Equal(got, append(slices.Clone(before[1:]), before[0])) {
		t.Error("ip_hash: the others have not kept their order")
	}
	before[0].down.Store(0)

	one := &route{Domain: new(domain.Domain), upstreams: ups[:1]}
	c := &conn{owner: h.checks.owner, limits: &Limits{DialTimeout: 1000}, record: record{route: one}}
	if n := testing.AllocsPerRun(100, func() {
		for _, u := range h.inTurn(one.upstreams) {
			c.try(u, 1000).ended(nil)
		}
		h.inTurn(ups)
	}); n != 0 {
		t.Errorf("where nothing is wrong %v allocations are made", n)
	}
}

// TestHealthReportIsBounded has many upstreams fail: the last of them are told of, those that still exist.
func TestHealthReportIsBounded(t *testing.T) {
	h := healthAlone(t)
	var ups []*upstream
	for i := range 10 * recentFailures {
		u := &upstream{Upstream: domain.Upstream{Dial: fmt.Sprint("upstream", i)}}
		ups = append(ups, u)
		for range 2 { // one entry for each
			h.failed(u, fmt.Sprint("domain", i), errors.New(strings.Repeat("long ", troubleText)))
		}
	}
	last := len(ups) - 1
	found, total := h.unhealthy(3)
	if total != recentFailures || len(found) != 3 {
		t.Fatalf("%d of %d are reported, want 3 of %d", len(found), total, recentFailures)
	}
	for i, f := range found {
		if f.Dial != ups[last-i].Dial || f.Domain != fmt.Sprint("domain", last-i) || len(f.Error) > troubleText || f.By != "traffic" {
			t.Errorf("entry %d is %+v", i, f)
		}
	}
	for _, most := range []int{0, -1} {
		if found, total := h.unhealthy(most); len(found) != 0 || total != recentFailures {
			t.Errorf("at most %d: %d of %d", most, len(found), total)
		}
	}
	ups[last].failed.Store(overdue)
	if _, total := h.unhealthy(0); total != recentFailures-1 {
		t.Errorf("when the time has passed for one, there are %d", total)
	}
	runtime.KeepAlive(ups)
	ups = nil
	pqtest.Wait(t, "what is not in use any more to be forgotten", func() bool {
		runtime.GC()
		_, total := h.unhealthy(0)
		return total == 0
	})
}

// TestHealthClientKeepsWaiting has a client hold back what an upstream's PROXY header must tell, until the upstream hangs
// up: that is no fault of the upstream.
func TestHealthClientKeepsWaiting(t *testing.T) {
	h := healthAlone(t)
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{Handler: func(*pqtest.UpstreamConn) {}})
	u := newUpstream(domain.Upstream{Dial: up.Addr(), TLS: &domain.UpstreamTLS{ServerName: "app.internal", PostQuantum: domain.Prefer}})
	h.checks.owner.settings.Load().own = (*netpolicy.Policy)(nil).WithOwn(ownListeners)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, test := range []struct {
		wait time.Duration
		want bool
	}{{0, true}, {longWait + longWait/10, false}} {
		c := &conn{owner: h.checks.owner, ctx: ctx, negotiatedSignal: make(chan struct{}), clientWire: new(clientWire)}
		c.clientWire.Conn = pqtest.DialRaw(t, up.Addr()) // for its address
		c.limits = &h.checks.owner.settings.Load().limits
		c.route = &route{Domain: &domain.Domain{Name: "app.example.com", ProxyProtocol: domain.ProxyV2}, source: domain.Static, upstreams: []*upstream{u}}
		time.AfterFunc(test.wait, func() { close(c.negotiatedSignal) })
		if result := c.attempt(u, patience); result.err == nil || result.err.blamed != test.want {
			t.Errorf("after %s: %+v", test.wait, result.err)
		}
	}
}
