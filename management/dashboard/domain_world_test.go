package dashboard

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/internal/id"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
	"github.com/pqproxy/caddy-pqproxy/probe"
)

// domainWorld is DNS and upstreams that do as told. What they say is hostile.
type domainWorld struct {
	mu     sync.Mutex
	points bool // the names point at the edges
	proven bool // and have the TXT record
	looked int
	found  func(*domain.Domain) []management.UpstreamProbe
}

func (w *domainWorld) set(points, proven bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.points, w.proven = points, proven
}

func (w *domainWorld) looks() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.looked
}

func (w *domainWorld) Look(_ context.Context, q management.Lookup) management.Observation {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looked++
	finding := func(ok bool) management.Finding {
		if ok {
			return management.Finding{State: management.FoundOK}
		}
		return management.Finding{State: management.FoundWrong, Detail: hostile}
	}
	o := management.Observation{Traffic: finding(w.points), Ownership: finding(w.proven), CAA: finding(true)}
	for _, t := range q.Targets {
		o.Records = append(o.Records, management.Record{Purpose: management.ForTraffic, Type: strings.ToUpper(t.Type), Name: q.Name, Value: t.Value, Seen: []string{hostile}, OK: w.points})
	}
	base := "_pqproxy." + strings.TrimPrefix(q.Name, "*.")
	o.Records = append(o.Records, management.Record{Purpose: management.ForOwnership, Type: "TXT", Name: base, Value: q.Ownership, Seen: []string{hostile}, OK: w.proven})
	return o
}

func (w *domainWorld) Prove(context.Context, string, string, string) management.Finding {
	return management.Finding{State: management.FoundAbsent}
}

func (w *domainWorld) PublicSuffix(name string) bool { return name == "com" }

func (w *domainWorld) Probe(_ context.Context, d *domain.Domain, _ *netpolicy.Policy) []management.UpstreamProbe {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.found(d)
}

// speaksTLS is what a probe finds at servers that speak TLS with post-quantum and read PROXY headers.
func speaksTLS(d *domain.Domain) []management.UpstreamProbe {
	all := make([]management.UpstreamProbe, len(d.Upstreams))
	for i, u := range d.Upstreams {
		all[i] = management.UpstreamProbe{
			Dial: u.Dial, Reachable: true, TLSVersion: "TLS 1.3", Group: "X25519MLKEM768", PostQuantum: true, ALPN: hostile, ProxyProtocol: probe.ProxyAccepted,
			Recommend: &probe.Recommendation{TLS: &probe.RecommendedTLS{ServerName: "inner.example.net", PostQuantum: "prefer"}, ProxyProtocol: "v2", Text: "It speaks TLS. " + hostile},
		}
		if u.TLS == nil {
			all[i].Error = "the domain sends plain TCP to this upstream, but the server speaks TLS: add tls; " + hostile
		}
	}
	return all
}

// domainSite is a site with such a world, and a customer whom nobody trusts.
type domainSite struct {
	*site
	world    *domainWorld
	customer *management.Principal
	edge     edgereport.Report
}

const (
	customerEmail    = "customer@example.com"
	customerPassword = "twelve characters"
)

func newDomainSite(t *testing.T) *domainSite {
	t.Helper()
	s := &domainSite{site: newBareSite(t, Options{}, nil), world: &domainWorld{found: speaksTLS}}
	sealer, err := vault.New(vault.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	cfg := management.Config{SetupToken: testToken, SignupOpen: true, Targets: []management.Target{{Type: "a", Value: "203.0.113.10"}}}
	s.plane, err = management.New(cfg, management.Parts{
		Store: s.store, Sealer: sealer, Passwords: cheap{}, Auth: auth.NewPlane("pqproxy", s.now), Resolver: s.world, Prober: s.world,
		Log: slog.New(slog.NewTextHandler(s.log, nil)), Clock: s.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.setUp()
	if err := s.plane.SignUp(t.Context(), nobody(), management.NewAccount{Email: customerEmail, Password: customerPassword, Tenant: "Customer"}); err != nil {
		t.Fatal(err)
	}
	in, err := s.plane.LogIn(t.Context(), nobody(), management.Login{Email: customerEmail, Password: customerPassword})
	if err != nil {
		t.Fatal(err)
	}
	if s.customer, err = s.plane.PrincipalOfSession(t.Context(), in.Token.Reveal(), ""); err != nil {
		t.Fatal(err)
	}
	s.edge.Edge = edgereport.Edge{Name: "edge-1", Region: "gru", Version: "v1", StartedAt: s.now().Truncate(time.Millisecond)}
	return s
}

// visitor returns a browser of the customer.
func (s *domainSite) visitor() *browser {
	s.t.Helper()
	b := s.browser()
	b.address = "192.0.2.2:4711"
	b.logIn(customerEmail, customerPassword)
	return b
}

// add gives the customer a domain.
func (s *domainSite) add(name string) *management.Domain {
	s.t.Helper()
	d, err := s.plane.CreateDomain(s.t.Context(), s.customer, []byte(`{"name":"`+name+`","upstreams":[{"dial":"origin.example.net:8443"}]}`))
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// addLive gives the customer a domain that edges serve.
func (s *domainSite) addLive(name string) *management.Domain {
	s.t.Helper()
	s.world.set(true, true)
	d := s.check(s.add(name).ID)
	s.report(func(r *edgereport.Report) { holds(r, d, s.now().Add(60*24*time.Hour)) })
	return s.check(d.ID)
}

func (s *domainSite) check(id string) *management.Domain {
	s.t.Helper()
	d, err := s.plane.CheckDomain(s.t.Context(), s.customer, id)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s *domainSite) find(id string) *management.Domain {
	s.t.Helper()
	d, err := s.plane.FindDomain(s.t.Context(), s.customer, id)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// report has the edge report, with what edit adds, that it has applied everything.
func (s *domainSite) report(edit func(*edgereport.Report)) {
	s.t.Helper()
	s.edge.Sequence++
	s.edge.Revision = 1 << 30
	s.edge.SentAt = s.now()
	r := s.edge
	if edit != nil {
		edit(&r)
	}
	text, err := json.Marshal(&r)
	if err != nil {
		s.t.Fatal(err)
	}
	who := &management.Principal{EdgeTokenID: management.NewID(management.EdgeTokenID)}
	if _, err := s.plane.Report(s.t.Context(), who, strings.NewReader(string(text))); err != nil {
		s.t.Fatal(err)
	}
}

// holds adds that the edge has a certificate of d.
func holds(r *edgereport.Report, d *management.Domain, until time.Time) {
	r.Certificates = append(r.Certificates, edgereport.CertificateState{Name: d.Name, Source: "acme", Issuer: "CN=" + hostile, NotAfter: &until, State: edgereport.CertificateValid})
}

// counts adds n handshakes of d, of which so many were post-quantum.
func counts(r *edgereport.Report, d *management.Domain, at time.Time, n, hybrid int64) {
	buckets := make([]int64, edgereport.BucketCount)
	buckets[5] = n
	r.Counters = append(r.Counters, edgereport.Counter{
		Domain: d.Name, Tenant: d.Tenant, Minute: at.Truncate(time.Minute), Connections: n, BytesIn: n, BytesOut: n,
		Groups: map[string]int64{"X25519MLKEM768": hybrid, "X25519": n - hybrid}, EndReasons: map[string]int64{"done": n}, Handshakes: buckets,
	})
}

// records adds n records of connections of d, with all that a stranger can put into one.
func records(r *edgereport.Report, d *management.Domain, at time.Time, n int) {
	for i := range n {
		r.Connections = append(r.Connections, edgereport.Connection{
			Time: at.Add(-time.Duration(i) * time.Second), ID: id.New().String(), Domain: d.Name, Tenant: d.Tenant, ServerName: hostile,
			ClientIP: netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), ClientPort: 4711, TLSVersion: "TLS 1.3", Group: "X25519MLKEM768", PostQuantum: i%2 == 0, ALPN: hostile,
			Upstream: hostile, EndReason: "upstream_closed_early", ClosedBy: "upstream", Error: hostile,
			HelloWait: 0.001, Handshake: 0.012, UpstreamConnect: 0.004, UpstreamHandshake: 0.009, FirstByte: 0.02, Duration: 1.5, BytesIn: 1 << 20, BytesOut: 1 << 30,
		})
	}
}

// copied returns what the page offers to copy.
func (p *seen) copied() (all []string) {
	for _, n := range p.all(func(n *html.Node) bool { return has(n, "data-copy") }) {
		all = append(all, attr(n, "data-copy"))
	}
	return all
}

// fault returns what the page says of an input.
func (p *seen) fault(input string) string {
	return strings.TrimSpace(textOf(p.find(func(n *html.Node) bool { return attr(n, "id") == input+"-error" })))
}

// link returns where a link of that text leads.
func (p *seen) link(text string) string {
	p.t.Helper()
	n := p.find(func(n *html.Node) bool { return n.Data == "a" && strings.TrimSpace(textOf(n)) == text })
	if n == nil {
		p.t.Fatalf("%s has no link %q:\n%s", p.path, text, p.text())
	}
	return attr(n, "href")
}

func nameOf(i int) string {
	return fmt.Sprintf("host-%03d.a-rather-long-name-of-a-department.example.com", i)
}

func typed(pairs ...string) url.Values {
	values := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		values.Set(pairs[i], pairs[i+1])
	}
	return values
}
