package dashboard

import (
	"bufio"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
	"github.com/pqproxy/caddy-pqproxy/management"
)

var fragmentHeader = http.Header{"Pqproxy-Fragment": {"1"}, "Accept": {"text/html"}}

// TestOnboarding has a customer add a domain, by forms alone, and take it through its life.
func TestOnboarding(t *testing.T) {
	s := newDomainSite(t)
	b := s.visitor()

	// The start page of who has nothing teaches, and leads to the first step.
	start := b.get("/").want(http.StatusOK, "Add your first domain", "Certificates on the public web are still classical")
	check(t, s.site, start)
	first := b.get(start.link("Add a domain")).want(http.StatusOK, "Name", "Address of your server")
	check(t, s.site, first)

	bad := b.submit(first, "domain", typed("name", "com", "upstreams.0.dial", "127.0.0.1:443", "certificate.chain_pem", "no PEM", "certificate.key_pem", "SECRETKEY"))
	bad.want(http.StatusUnprocessableEntity, "Something has to be put right")
	check(t, s.site, bad)
	if _, form := bad.form("domain"); form.Get("upstreams.0.dial") != "127.0.0.1:443" || form.Get("name") != "com" || strings.Contains(bad.body, "SECRETKEY") {
		t.Errorf("the form has %v", form)
	}
	for _, input := range []string{"f-domain-name", "f-domain-upstreams-0-dial"} {
		if bad.fault(input) == "" {
			t.Errorf("%s is not marked", input)
		}
	}
	wild := b.submit(first, "domain", typed("name", "*.example.com", "upstreams.0.dial", "origin.example.net:443"))
	wild.want(http.StatusUnprocessableEntity)
	if wild.find(func(n *html.Node) bool { return n.Data == "details" && has(n, "open") }) == nil {
		t.Error("what a wildcard needs is folded away")
	}
	check(t, s.site, wild)

	made := b.submit(bad, "domain", typed("name", "App.Example.COM", "upstreams.0.dial", "origin.example.net:8443", "certificate.chain_pem", "", "certificate.key_pem", ""))
	path := strings.TrimSuffix(made.header.Get("Location"), "/setup/dns")
	id := strings.TrimPrefix(path, "/domains/")
	made.leadsTo(path + "/setup/dns")

	// The records, exactly, and what stands in their place: live, or by a button.
	dns := b.follow(made).want(http.StatusOK, "app.example.com is added.", "We expect", "Not looked at yet")
	check(t, s.site, dns)
	b.submit(first, "domain", typed("name", "app.example.com", "upstreams.0.dial", "x.example.net:1")).want(http.StatusConflict, "There is a domain of that name already")
	copies := dns.copied()
	token := s.find(id).Records[1].Value
	for _, want := range []string{"app.example.com", "203.0.113.10", "_pqproxy.app.example.com", token} {
		if !slices.Contains(copies, want) {
			t.Errorf("%q cannot be copied: %q", want, copies)
		}
	}
	part := b.do("GET", path+"/setup/dns/live", nil, fragmentHeader)
	if part.status != http.StatusOK || !strings.Contains(part.body, "&lt;script&gt;") || strings.Contains(part.body, "<script") || !strings.Contains(part.body, "Looked at last") || s.world.looks() != 1 {
		t.Errorf("looking at the step did not look at DNS: %d\n%s", part.status, part.body)
	}
	b.do("GET", path+"/setup/dns/live", nil, fragmentHeader)
	if n := s.world.looks(); n != 1 {
		t.Errorf("DNS was asked %d times in one moment", n)
	}
	asked := b.submit(dns, "check", nil)
	b.follow(asked.leadsTo(path+"/setup/dns")).want(http.StatusOK, "something is still to be done", hostile, "to be set", "your turn")
	s.world.set(true, true)
	s.pass(recheckAfter)
	if part := b.do("GET", path+"/setup/dns/live", nil, fragmentHeader); !strings.Contains(part.body, "DNS is as it should be.") {
		t.Errorf("the step does not see what changed:\n%s", part.body)
	}

	// The upstream: probed, and what is recommended is set by a button.
	ups := b.get(dns.link("Next: the upstream")).want(http.StatusOK, "Probe now")
	check(t, s.site, ups)
	probed := b.submit(ups, "probe", nil).want(http.StatusOK, "does not work as it is set up", "X25519MLKEM768", "origin.example.net:8443: with TLS", "PROXY protocol: v2", hostile)
	check(t, s.site, probed)
	b.follow(b.submit(probed, "recommended", nil).leadsTo(path+"/setup/upstream")).want(http.StatusOK, "The upstreams are saved.")
	if d := s.find(id); d.Upstreams[0].TLS == nil || d.Upstreams[0].TLS.ServerName != "inner.example.net" || d.ProxyProtocol != "v2" {
		t.Errorf("applied: %+v, %s", d.Upstreams[0].TLS, d.ProxyProtocol)
	}
	again := b.submit(b.get(path+"/setup/upstream"), "probe", nil).want(http.StatusOK, "What is set is what the probe recommends.")
	check(t, s.site, again)
	b.submit(probed, "recommended", typed("_once", "another")).want(http.StatusPreconditionFailed, "Somebody else changed this")

	// The policy, and the proof.
	policy := b.get(again.link("Next: the policy")).want(http.StatusOK, "Hybrid key exchange alone")
	check(t, s.site, policy)
	done := b.follow(b.submit(policy, "policy", typed("post_quantum", "require")).leadsTo(path + "/setup/done"))
	done.want(http.StatusOK, "Prove it", "caddy pqproxy probe app.example.com", "No edge has reported")
	check(t, s.site, done)
	if d := s.find(id); d.PostQuantum != "require" || d.ProxyProtocol != "v2" || d.Suspended {
		t.Errorf("the policy is %+v", d)
	}

	// It goes live on the edge, and the page says since when. The script hears of it.
	server := httptest.NewTLSServer(s)
	defer server.Close()
	defer s.Close()
	in := bufio.NewReader(b.listen(t.Context(), server, path+"/setup/done/live", "").Body)
	if _, _, data := event(t, in); !strings.Contains(data, "No edge has reported") {
		t.Errorf("the stream begins with %s", data)
	}
	s.report(func(r *edgereport.Report) { holds(r, s.find(id), s.now().Add(60*24*time.Hour)) })
	if _, _, data := event(t, in); !strings.Contains(data, "Live on 1 of 1 edges") || !strings.Contains(data, "Live on all of them since") {
		t.Errorf("the stream goes on with %s", data)
	}
	b.submit(dns, "check", nil)
	page := b.get(path).want(http.StatusOK, "active", "nothing to do", "Live on 1 of 1 edges")
	check(t, s.site, page)
	b.get("/domains").want(http.StatusOK, "app.example.com", "active", "60 days", "no traffic, require")
	check(t, s.site, b.get("/").want(http.StatusOK, "No domain waits for anybody", "Handshakes"))

	s.life(b, path, id)
}

// life goes on with a domain that is live.
func (s *domainSite) life(b *browser, path, id string) {
	t := s.t
	t.Helper()

	// Two people with one policy: the second is told what the first made of it.
	one, two := b.get(path+"/policy"), b.get(path+"/policy")
	check(t, s.site, one)
	b.follow(b.submit(one, "policy", typed("post_quantum", "prefer", "alpn", "h2, http/1.1", "max_connections", "7")).leadsTo(path+"/policy")).want(http.StatusOK, "The policy is saved")
	told := b.submit(two, "policy", typed("load_balancing", "random", "max_connections", "8"))
	told.want(http.StatusPreconditionFailed, "Somebody else changed this", "Now it is 7", "Now it is Prefer", "Now it is h2, http/1.1")
	check(t, s.site, told)
	if d := s.find(id); d.PostQuantum != "prefer" || d.MaxConnections != 7 || d.LoadBalancing != "first" || len(d.ALPN) != 2 {
		t.Errorf("the second overwrote the first: %+v", d)
	}
	b.submit(told, "policy", typed("post_quantum", "prefer", "alpn", "", "max_connections", "")).leadsTo(path + "/policy")
	if d := s.find(id); d.MaxConnections != 0 || d.LoadBalancing != "random" || len(d.ALPN) != 0 {
		t.Errorf("knowingly overwritten: %+v", d)
	}
	odd := b.submit(b.get(path+"/policy"), "policy", typed("max_connections", "-5", "post_quantum", hostile, "alpn", "acme-tls/1"))
	odd.want(http.StatusUnprocessableEntity)
	check(t, s.site, odd)
	for _, input := range []string{"f-policy-max_connections", "f-policy-alpn"} {
		if odd.fault(input) == "" {
			t.Errorf("%s is not marked", input)
		}
	}
	b.follow(b.submit(b.get(path+"/policy"), "policy", typed("suspended", "true"))).want(http.StatusOK, "The domain is suspended")
	b.get(path).want(http.StatusOK, "suspended")
	b.submit(b.get(path+"/policy"), "policy", url.Values{"suspended": nil})
	if s.find(id).Suspended {
		t.Error("it stays suspended")
	}

	// Upstreams: another one, a fault in its row, the first removed.
	ups := b.get(path + "/upstreams")
	check(t, s.site, ups)
	bad := b.submit(ups, "upstreams", typed("upstreams.1.dial", "no port", "upstreams.1._tls", "on", "upstreams.1.tls.ca_pem", "no PEM"))
	bad.want(http.StatusUnprocessableEntity)
	check(t, s.site, bad)
	if bad.fault("f-upstreams-upstreams-1-dial") == "" || bad.fault("f-upstreams-upstreams-1-tls-ca_pem") == "" || bad.fault("f-upstreams-upstreams-0-dial") != "" {
		t.Errorf("the faults are not at the second upstream:\n%s", bad.text())
	}
	b.submit(bad, "upstreams", typed("upstreams.1.dial", "second.example.net:443", "upstreams.1.tls.ca_pem", "", "upstreams.0._remove", "true")).leadsTo(path + "/upstreams")
	if d := s.find(id); len(d.Upstreams) != 1 || d.Upstreams[0].Dial != "second.example.net:443" || d.Upstreams[0].TLS == nil {
		t.Errorf("the upstreams are %+v", d.Upstreams)
	}
	b.submit(b.get(path+"/upstreams"), "upstreams", typed("upstreams.0._remove", "true")).want(http.StatusUnprocessableEntity)
	b.submit(b.get(path+"/upstreams"), "upstreams", typed("upstreams.0._tls", "off")).leadsTo(path + "/upstreams")
	if d := s.find(id); d.Upstreams[0].TLS != nil {
		t.Errorf("TLS stays: %+v", d.Upstreams[0].TLS)
	}

	s.certificates(b, path, id)

	// What came is there to be seen, whatever strangers put into it.
	d := s.find(id)
	s.report(func(r *edgereport.Report) {
		records(r, d, s.now().Add(-time.Second), 25)
		counts(r, d, s.now(), 40, 30)
	})
	connections := b.get(path+"/connections").want(http.StatusOK, "198.51.100.0", "X25519MLKEM768", "upstream closed early: "+hostile)
	check(t, s.site, connections)
	if n := len(connections.all(func(n *html.Node) bool {
		return n.Data == "svg" && strings.Contains(attr(n, "aria-label"), "upstream handshake 9.00 ms")
	})); n != domainConnections {
		t.Errorf("%d waterfalls", n)
	}
	check(t, s.site, b.get(connections.link("Next page")).want(http.StatusOK, "198.51.100.24"))
	b.get(path+"/connections?from=2020-01-01&to=2020-01-02").want(http.StatusOK, "No connections in this time")
	overview := b.get(path).want(http.StatusOK, "Handshakes by hour", "How long handshakes took")
	check(t, s.site, overview)
	b.get("/domains").want(http.StatusOK, "75.0 %, prefer")
	start := b.get("/").want(http.StatusOK, "75.0 %", "30 of 40 handshakes")
	check(t, s.site, start)
	b.get(path+"/policy").want(http.StatusOK, "that would have been 10 of 40")

	activity := b.get(path+"/activity").want(http.StatusOK, "domain.created", "domain.updated", "certificate.uploaded", "you", "suspended: true", "suspended: was true", "post_quantum: require → prefer")
	check(t, s.site, activity)

	// Gone, but not by a slip.
	slip := b.submit(b.get(path), "delete", typed("name", "app.example.org"))
	slip.want(http.StatusUnprocessableEntity, "is not the name of this domain")
	check(t, s.site, slip)
	gone := b.submit(slip, "delete", typed("name", " App.Example.com. "))
	list := b.follow(gone.leadsTo("/domains")).want(http.StatusOK, "app.example.com is being deleted", "deleting")
	check(t, s.site, list)
	left := b.get(path).want(http.StatusOK, "Edges are letting go of it")
	check(t, s.site, left)
	if left.find(func(n *html.Node) bool { return n.Data == "form" && attr(n, "id") != "" }) != nil {
		t.Error("a form is left on the page of what is being deleted")
	}
	late := b.submit(told, "policy", nil).want(http.StatusPreconditionFailed, "Somebody else changed this since you read it", "being deleted")
	check(t, s.site, late)
}

// certificates goes from ACME to a pair of the tenant's and back.
func (s *domainSite) certificates(b *browser, path, id string) {
	t := s.t
	t.Helper()
	now := s.now()
	valid := func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.Add(10*24*time.Hour) }
	ca := pqtest.NewCA(t)
	chain, key := pqtest.EncodePair(t, ca.IssueWith(t, valid, "app.example.com"))
	_, otherKey := pqtest.EncodePair(t, ca.IssueWith(t, valid, "app.example.com"))
	otherName, otherNameKey := pqtest.EncodePair(t, ca.IssueWith(t, valid, "www.example.org"))

	page := b.get(path+"/certificate").want(http.StatusOK, "by ACME", "CN="+hostile)
	check(t, s.site, page)
	for name, c := range map[string]struct {
		chain, key string
		at         []string
	}{
		"nothing":     {"", "", []string{"f-certificate-chain_pem", "f-certificate-key_pem"}},
		"garbage":     {"garbage", "GARBAGEKEY", []string{"f-certificate-chain_pem", "f-certificate-key_pem"}},
		"another key": {string(chain), string(otherKey), []string{"f-certificate-key_pem"}},
		"other name":  {string(otherName), string(otherNameKey), []string{"f-certificate-chain_pem"}},
	} {
		bad := b.submit(page, "certificate", typed("chain_pem", c.chain, "key_pem", c.key))
		bad.want(http.StatusUnprocessableEntity, "Something has to be put right")
		check(t, s.site, bad)
		for _, input := range c.at {
			if bad.fault(input) == "" {
				t.Errorf("%s: %s is not marked:\n%s", name, input, bad.text())
			}
		}
		if c.key != "" && strings.Contains(bad.body, strings.Split(c.key, "\n")[min(1, strings.Count(c.key, "\n"))]) {
			t.Errorf("%s: the page has the key", name)
		}
		if _, form := bad.form("certificate"); strings.TrimSpace(form.Get("chain_pem")) != strings.TrimSpace(c.chain) {
			t.Errorf("%s: the chain that was given is lost", name)
		}
	}
	second := b.get(path + "/certificate")
	good := b.submit(page, "certificate", typed("chain_pem", string(chain), "key_pem", string(key)))
	shown := b.follow(good.leadsTo(path+"/certificate")).want(http.StatusOK, "The certificate is in place", "Replace it", "in 10 days")
	check(t, s.site, shown)
	if strings.Contains(shown.body, strings.Split(string(key), "\n")[1]) {
		t.Error("the page has the key")
	}
	b.submit(second, "certificate", typed("chain_pem", string(chain), "key_pem", string(key))).want(http.StatusPreconditionFailed, "Somebody else changed this")
	b.get("/").want(http.StatusOK, "Certificates that end soon", "app.example.com")
	b.get("/domains").want(http.StatusOK, "10 days")
	b.follow(b.submit(shown, "fallback", typed("certificate.fallback", "acme")).leadsTo(path+"/certificate")).want(http.StatusOK, "Saved.")
	back := b.submit(b.get(path+"/certificate"), "acme", nil)
	check(t, s.site, b.follow(back.leadsTo(path+"/certificate")).want(http.StatusOK, "Your certificate is removed", "Bring your own"))
	if d := s.find(id); d.Certificate.Source != "acme" {
		t.Error(d.Certificate.Source)
	}
}

// TestDomainOfAnother has every page and form about a domain refused to another tenant, as if there was none.
func TestDomainOfAnother(t *testing.T) {
	s := newDomainSite(t)
	d := s.addLive("app.example.com")
	stranger := s.signedIn() // the operator, in another tenant
	n := 0
	for _, rt := range s.routes {
		if !strings.HasPrefix(rt.path, "/domains/{id}") || strings.HasSuffix(rt.path, "/setup") {
			continue
		}
		n++
		path := strings.Replace(rt.path, "{id}", d.ID, 1)
		for _, at := range []string{path, strings.Replace(path, d.ID, "dom_x", 1), strings.Replace(path, d.ID, management.NewID(management.DomainID), 1), strings.Replace(path, d.ID, "%27%20OR%201=1", 1)} {
			form := typed("name", d.Name, "post_quantum", "off", "chain_pem", "x", "key_pem", "x")
			if rt.method == "GET" {
				form = nil
			}
			if got := stranger.do(rt.method, at, form, nil); got.status != http.StatusNotFound || strings.Contains(got.body, d.Name) || !strings.Contains(got.body, "There is no such domain.") {
				t.Errorf("%s %s: %d", rt.method, at, got.status)
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d routes", n)
	}
	if after := s.find(d.ID); after.Version != d.Version || after.Status != management.Active {
		t.Errorf("it changed: %+v", after)
	}
	list := stranger.get("/domains").want(http.StatusOK)
	if strings.Contains(list.body, d.Name) || strings.Contains(stranger.get("/").body, d.Name) {
		t.Error("a list shows another tenant's domain")
	}
}

// TestDomainForViewers wants every page about a domain readable for a viewer, without a form, and what is not for viewers refused.
func TestDomainForViewers(t *testing.T) {
	s := newDomainSite(t)
	d := s.addLive("app.example.com")
	invited, err := s.plane.CreateInvitation(t.Context(), s.customer, "viewer@example.com", management.Viewer)
	if err != nil {
		t.Fatal(err)
	}
	link, err := url.Parse(invited.URL.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	b := s.browser()
	b.submit(b.get(link.RequestURI()), "invitation", typed("password", "password of a viewer"))
	b.logIn("viewer@example.com", "password of a viewer")
	for _, part := range []string{"", "/connections", "/certificate", "/upstreams", "/policy", "/setup/dns", "/setup/upstream", "/setup/policy", "/setup/done"} {
		page := b.get("/domains/" + d.ID + part).want(http.StatusOK)
		check(t, s.site, page)
		if n := page.find(func(n *html.Node) bool {
			return n.Data == "form" && attr(n, "method") == "post" && attr(n, "action") != "/logout"
		}); n != nil {
			t.Errorf("%s shows a viewer the form %s", page.path, attr(n, "id"))
		}
		if page.find(func(n *html.Node) bool { return strings.HasSuffix(attr(n, "href"), "/activity") }) != nil {
			t.Errorf("%s shows a viewer the tab of the audit log", page.path)
		}
	}
	b.get("/domains/"+d.ID+"/activity").want(http.StatusForbidden, "audit:read")
	b.get("/domains/new").want(http.StatusForbidden)
	for _, part := range []string{"/policy", "/upstreams", "/upstreams/probe", "/upstreams/apply", "/certificate", "/certificate/acme", "/check", "/delete", "/setup/dns", "/setup/policy"} {
		b.post("/domains/"+d.ID+part, typed("name", d.Name)).want(http.StatusForbidden)
	}
	s.world.set(false, false)
	s.pass(time.Hour)
	before := s.world.looks()
	b.do("GET", "/domains/"+d.ID+"/setup/dns/live", nil, fragmentHeader)
	if s.world.looks() != before {
		t.Error("a viewer has DNS asked")
	}
	check(t, s.site, b.get("/"))
	check(t, s.site, b.get("/domains"))
}

// TestDomainList pages through many rows, searches and filters.
func TestDomainList(t *testing.T) {
	s := newDomainSite(t)
	b := s.visitor()
	check(t, s.site, b.get("/domains").want(http.StatusOK, "No domains yet"))
	for i := range 60 {
		s.add(nameOf(i))
	}
	live := s.addLive("zebra.example.com")
	seen := map[string]bool{}
	page := b.get("/domains")
	for pages := 1; ; pages++ {
		page.want(http.StatusOK)
		check(t, s.site, page)
		for _, n := range page.all(func(n *html.Node) bool { return n.Data == "th" && attr(n, "scope") == "row" }) {
			if seen[textOf(n)] {
				t.Errorf("%s is there twice", textOf(n))
			}
			seen[textOf(n)] = true
		}
		next := page.find(func(n *html.Node) bool { return attr(n, "rel") == "next" })
		if next == nil {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		page = b.get(attr(next, "href"))
	}
	if len(seen) != 61 {
		t.Errorf("%d domains are listed", len(seen))
	}
	found := b.get("/domains?q=HOST-007").want(http.StatusOK, nameOf(7))
	if strings.Contains(found.body, nameOf(8)) {
		t.Error("the search finds others")
	}
	check(t, s.site, found)
	active := b.get("/domains?status=active").want(http.StatusOK, live.Name, "60 days")
	if strings.Contains(active.body, nameOf(1)) {
		t.Error("the filter lets others through")
	}
	none := b.get("/domains?status=moved&q=" + url.QueryEscape(hostile))
	check(t, s.site, none.want(http.StatusOK, "No domain fits"))
	b.get("/domains?status=odd").want(http.StatusUnprocessableEntity)
	b.get("/domains?cursor=odd").want(http.StatusUnprocessableEntity)
	check(t, s.site, b.get("/domains?q=%25").want(http.StatusOK, "No domain fits"))

	start := b.get("/").want(http.StatusOK, "Needs attention", nameOf(0), "your turn", "There are more that are", "pending DNS")
	check(t, s.site, start)
	b.get(start.link("pending DNS")).want(http.StatusOK, nameOf(0))
}

// TestOverviewOfOperator shows edges, and among them those that do not report, to operators alone.
func TestOverviewOfOperator(t *testing.T) {
	s := newDomainSite(t)
	s.addLive("app.example.com")
	b := s.signedIn()
	check(t, s.site, b.get("/").want(http.StatusOK, "1 up."))
	s.pass(2 * time.Minute)
	stale := b.get("/").want(http.StatusOK, "None is up", "Edges that do not report", "edge-1", "stale")
	check(t, s.site, stale)
	part := b.do("GET", "/overview/live", nil, fragmentHeader)
	if part.status != http.StatusOK || !strings.Contains(part.body, "edge-1") {
		t.Errorf("the live part: %d\n%s", part.status, part.body)
	}
	if strings.Contains(s.visitor().get("/").body, "edge-1") {
		t.Error("a customer sees the edges")
	}
	if again := b.do("GET", "/overview/live", nil, fragmentHeader); again.body != part.body {
		t.Error("the part changes though nothing did")
	}
}

// TestWildcardByForm needs a pair from the start, and can be proven by a name that it covers.
func TestWildcardByForm(t *testing.T) {
	s := newDomainSite(t)
	b := s.visitor()
	now := s.now()
	valid := func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.Add(90*24*time.Hour) }
	chain, key := pqtest.EncodePair(t, pqtest.NewCA(t).IssueWith(t, valid, "*.example.com"))
	made := b.submit(b.get("/domains/new?name=*.example.com"), "domain", typed("upstreams.0.dial", "origin.example.net:443", "certificate.chain_pem", string(chain), "certificate.key_pem", string(key)))
	path := strings.TrimSuffix(made.header.Get("Location"), "/setup/dns")
	b.follow(made).want(http.StatusOK, "*.example.com is added.")
	done := b.get(path+"/setup/done").want(http.StatusOK, "caddy pqproxy probe 203.0.113.10:443 --server-name www.example.com")
	check(t, s.site, done)
	check(t, s.site, b.get(path+"/certificate").want(http.StatusOK, "A wildcard keeps a certificate of its own"))
	if got := b.get(path + "/setup"); got.status != http.StatusSeeOther || got.header.Get("Location") != path+"/setup/dns" {
		t.Errorf("the set-up begins at %d %s", got.status, got.header.Get("Location"))
	}
}

func TestChangedMembers(t *testing.T) {
	for name, c := range map[string]struct{ before, after, want string }{
		"changed":  {`{"a":1,"b":"x"}`, `{"a":2, "b":"x"}`, "a:1>2"},
		"added":    {`null`, `{"a":"text"}`, "a:>text"},
		"removed":  {`{"a":{"b":[1]}}`, `null`, `a:{"b":[1]}>`},
		"spaces":   {`{"a":[1, 2]}`, `{"a":[1,2]}`, ""},
		"no JSON":  {`{`, ``, ""},
		"no tree":  {`"x"`, `[1]`, ""},
		"long":     {`null`, `{"a":"` + strings.Repeat("ä", 200) + `"}`, "a:>" + strings.Repeat("ä", 80) + "…"},
		"markup":   {`null`, `{"a":"<b>"}`, "a:><b>"},
		"two keys": {`{"b":1,"a":1}`, `{"b":2,"a":2}`, "a:1>2 b:1>2"},
	} {
		var got []string
		for _, m := range changedMembers([]byte(c.before), []byte(c.after)) {
			got = append(got, m.Name+":"+m.Before+">"+m.After)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func FuzzChangedMembers(f *testing.F) {
	f.Add([]byte(`{"a":1}`), []byte(`{"a":"\ud800"}`))
	f.Add([]byte(`null`), []byte(`{"a":{"b":[]}}`))
	f.Fuzz(func(t *testing.T, before, after []byte) {
		for _, m := range changedMembers(before, after) {
			if len(m.Before) > mostOfValue+len("…") || len(m.After) > mostOfValue+len("…") {
				t.Errorf("%q is long", m)
			}
		}
	})
}
