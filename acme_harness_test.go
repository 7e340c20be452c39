package pqproxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/acmetest"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// acmeEdge is an edge whose certificates a real ACME server issues. Of all names it says that they lead to itself.
type acmeEdge struct {
	*edge
	ca  *acmetest.Server
	dns *testDNS
	up  *pqtest.Upstream
}

// startACMEEdge runs an edge with plain HTTP and one issuer, whose block may have further lines.
func startACMEEdge(t *testing.T, ca *acmetest.Server, lines ...string) *acmeEdge {
	t.Helper()
	return startACMEEdgeWith(t, ca, "http 127.0.0.1:0\n"+issuerOf(t, ca, lines...))
}

// startACMEEdgeWith runs an edge with an option of one's own, which may have domains only of other sources than ACME.
func startACMEEdgeWith(t *testing.T, ca *acmetest.Server, option string) *acmeEdge {
	t.Helper()
	e := &acmeEdge{ca: ca, dns: startDNS(t), up: pqtest.StartUpstream(t, pqtest.UpstreamConfig{})}
	e.edge = startAdminEdge(t, "upstream_policy {\nallow 127.0.0.0/8\n}\n"+option)
	ca.ForwardTLS(e.addr)
	s := e.certs()
	s.resolver = e.dns.resolver() // no order has been made yet
	if strings.Contains(option, "http 127") {
		_, addr := listeningOn(t, "http/127.0.0.1:0")
		_, s.checkPort, _ = net.SplitHostPort(addr)
		ca.ForwardHTTP(addr)
	}
	return e
}

// issuerOf is an option of the app: the issuer that the server is. certmagic finds its own ports taken.
func issuerOf(t *testing.T, ca *acmetest.Server, lines ...string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	port := ln.Addr().(*net.TCPAddr).Port
	return fmt.Sprintf("issuer acme %s {\ntrusted_roots %s\nalt_http_port %d\nalt_tlsalpn_port %d\n%s\n}\n",
		ca.URL(), ca.CA().PEMFile(t), port, port, strings.Join(lines, "\n"))
}

func (e *acmeEdge) certs() *certificates { return &inForce.Load().certs }

// serve has domains served that are to have certificates of the issuers, as the admin API does.
func (e *acmeEdge) serve(names ...string) {
	e.t.Helper()
	serveDomains(e.t, inForce.Load(), "acme", e.up.Addr(), domain.Certificate{}, names...)
}

// serveDomains applies domains of a tenant.
func serveDomains(t testing.TB, s *state, tenant, upstream string, cert domain.Certificate, names ...string) {
	t.Helper()
	c := s.newChangeSet(rankAdmin, false, nil)
	for _, name := range names {
		d := &domain.Domain{Name: name, Tenant: tenant, Upstreams: []domain.Upstream{{Dial: upstream}}, Certificate: cert}
		if err := d.Normalize(domain.Admin); err != nil {
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

// removeDomains takes domains away.
func removeDomains(t testing.TB, s *state, names ...string) {
	t.Helper()
	c := s.newChangeSet(rankAdmin, false, nil)
	for _, name := range names {
		c.remove(name)
	}
	if _, err := s.apply(c, nil); err != nil {
		t.Fatal(err)
	}
}

// issued waits until a name has its certificate, as its log line says.
func (e *acmeEdge) issued(name string) logLine {
	e.t.Helper()
	return e.ordered("certificate obtained", name)
}

// failed waits until an attempt for a name has failed.
func (e *acmeEdge) failed(name string) logLine {
	e.t.Helper()
	return e.ordered("obtaining a certificate", name)
}

func (e *acmeEdge) ordered(message, name string) logLine {
	e.t.Helper()
	return e.log.take(message+" for "+name, func(line logLine) bool { return line.str("msg") == message && line.str("domain") == name })
}

// clientOf trusts what the ACME server issues.
func (e *acmeEdge) clientOf(name string, change ...func(*tls.Config)) *tls.Config {
	return e.client(name, append([]func(*tls.Config){func(c *tls.Config) { c.RootCAs = e.ca.Roots(0) }}, change...)...)
}

// visit does a handshake, verifies the certificate and has an echo.
func (e *acmeEdge) visit(name string, change ...func(*tls.Config)) *tls.Conn {
	e.t.Helper()
	c := e.dial(e.clientOf(name, change...))
	echo(e.t, c, "hello")
	return c
}

// sweepUntil sweeps until something is so.
func (e *acmeEdge) sweepUntil(what string, cond func() bool) {
	e.t.Helper()
	s := e.certs()
	pqtest.Wait(e.t, what, func() bool {
		s.sweepSoon()
		return cond()
	})
}

// testDNS is a DNS server that knows every name: 127.0.0.1, if nothing else was said.
type testDNS struct {
	ln net.Listener

	mu      sync.Mutex
	answers map[string]string // an address, or the name of an error
	asked   int
}

func startDNS(t testing.TB) *testDNS {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &testDNS{ln: ln, answers: make(map[string]string)}
	started, ended := make(chan struct{}), make(chan struct{})
	server := &dns.Server{Listener: ln, Handler: d, NotifyStartedFunc: func() { close(started) }}
	go func() {
		defer close(ended)
		_ = server.ActivateAndServe()
	}()
	<-started
	t.Cleanup(func() {
		_ = server.Shutdown()
		<-ended
	})
	return d
}

// set gives a name another address, or an error such as NXDOMAIN.
func (d *testDNS) set(name, answer string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers[dns.CanonicalName(name)] = answer
}

func (d *testDNS) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", d.ln.Addr().String())
	}}
}

// ServeDNS implements dns.Handler.
func (d *testDNS) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg)
	reply.SetReply(query)
	for _, q := range query.Question {
		d.mu.Lock()
		d.asked++
		answer := ""
		for name, its := range d.answers {
			if strings.HasPrefix(dns.CanonicalName(q.Name), name) { // with a search domain of the machine behind it as well
				answer = its
			}
		}
		d.mu.Unlock()
		if answer == "" {
			answer = "127.0.0.1"
		}
		header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET}
		if code, isError := dns.StringToRcode[answer]; isError {
			reply.Rcode = code
		} else if q.Qtype == dns.TypeA {
			reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: net.ParseIP(answer).To4()})
		}
	}
	_ = w.WriteMsg(reply)
}

// sweep looks at every name once.
func (s *certificates) sweep() { s.sweepOn(new(int), time.Hour) }
