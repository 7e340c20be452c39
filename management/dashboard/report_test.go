package dashboard

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
)

func aCounter(d *management.Domain, minute time.Time, quantum, classical int64) edgereport.Counter {
	return edgereport.Counter{
		Domain: d.Name, Tenant: d.Tenant, Minute: minute.Truncate(time.Minute), Connections: quantum + classical, HelloRetries: 1,
		Groups: map[string]int64{"X25519MLKEM768": quantum, "X25519": classical}, EndReasons: map[string]int64{"done": quantum + classical},
	}
}

func TestPostQuantumReport(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	check(t, s, b.get("/reports/post-quantum").want(http.StatusOK, "No handshakes in this time", "nothing to conclude from"))

	d, quiet := s.madeDomain(s.root, "shop.example.com"), s.madeDomain(s.root, "quiet.example.com")
	theirs := s.madeDomain(s.otherTenant(), "theirs.example.com")
	now := s.now()
	e := s.reporter("e1")
	e.tell(func(r *edgereport.Report) {
		r.Counters = []edgereport.Counter{aCounter(d, now, 900, 100), aCounter(d, now.AddDate(0, 0, -2), 50, 0), aCounter(quiet, now, 3, 0), aCounter(theirs, now, 0, 7777)}
		for i := range 4 {
			one := aRecord(d, now.Add(-time.Minute))
			one.Group, one.PostQuantum, one.OfferedPostQuantum, one.ClientIP = "X25519", false, false, netip.AddrFrom4([4]byte{203, 0, byte(i / 3), byte(i)})
			r.Connections = append(r.Connections, one)
		}
	})
	page := b.get("/reports/post-quantum").want(http.StatusOK, "90.5 %", "953 of 1,053 handshakes", "2026-03-12", "100 %", "203.0.0.0/24", "complete", "Choose one domain above")
	check(t, s, page)
	if strings.Contains(page.text(), "7,777") || strings.Contains(page.text(), "not complete") {
		t.Error(page.text())
	}
	if names := textOf(page.find(func(n *html.Node) bool { return attr(n, "id") == "f-filter-domain" })); !strings.Contains(names, "quiet.example.com") || strings.Contains(names, "theirs") {
		t.Errorf("to choose from: %q", names)
	}
	policy := "/domains/" + d.ID + "/policy"
	for _, asked := range []string{"shop.example.com", d.ID} {
		page = b.get("/reports/post-quantum?days=1&domain="+asked).want(http.StatusOK, "10.0 % of 1,000 connections", "Set the domain's policy")
		check(t, s, page)
		if page.find(func(n *html.Node) bool { return n.Data == "a" && attr(n, "href") == policy }) == nil {
			t.Error("no button leads to the policy")
		}
	}
	// Whoever would be refused can be looked at.
	link := page.find(func(n *html.Node) bool { return n.Data == "a" && textOf(n) == "203.0.0.0/24" })
	found := b.get(attr(link, "href")).want(http.StatusOK)
	if n := len(recordsOn(found)); n != 3 {
		t.Errorf("%d records behind the network", n)
	}
	check(t, s, b.get("/reports/post-quantum?domain=quiet.example.com").want(http.StatusOK, "Nobody would have been refused."))

	// What edges left out is said.
	e.tell(func(r *edgereport.Report) { r.Dropped = 5 })
	check(t, s, b.get("/reports/post-quantum?domain="+d.ID).want(http.StatusOK, "not complete", "The sums are exact."))

	for post, want := range map[string]string{"off": "every client looks classical here", "require": "these were refused"} {
		if _, err := s.plane.PatchDomain(t.Context(), s.root, d.ID, []byte(`{"post_quantum":"`+post+`"}`), ""); err != nil {
			t.Fatal(err)
		}
		check(t, s, b.get("/reports/post-quantum?domain="+d.ID).want(http.StatusOK, want))
	}
	for filter, want := range map[string]string{"days=31": "must be 1 to 30", "days=x": "whole number", "domain=no+name": "neither the ID nor the name", "from=x": "must be a time", "from=2020-01-01": "longer than what is kept"} {
		check(t, s, b.get("/reports/post-quantum?"+filter).want(http.StatusUnprocessableEntity, want))
	}
	others := b.get("/reports/post-quantum?domain="+theirs.ID).want(http.StatusOK, "No handshakes in this time")
	if strings.Contains(others.text(), "Set the domain's policy") || strings.Contains(others.text(), "7,777") {
		t.Error("another tenant's domain is told of")
	}
}

// TestSimulateWhenAsked wants the report of many connections at once, and the simulator when somebody asks.
func TestSimulateWhenAsked(t *testing.T) {
	s := newSite(t)
	d := s.madeDomain(s.root, "shop.example.com")
	s.reporter("e1").tell(func(r *edgereport.Report) {
		r.Counters = []edgereport.Counter{aCounter(d, s.now(), requireAtOnce, 1)}
	})
	b := s.signedIn()
	page := b.get("/reports/post-quantum?from=2026-03-01&domain="+d.ID).want(http.StatusOK, "> 99.9 %", "Simulate")
	check(t, s, page)
	if strings.Contains(page.text(), "would have refused since") {
		t.Error("it was simulated unasked")
	}
	form := page.find(func(n *html.Node) bool {
		return n.Data == "form" && attr(n, "action") == "/reports/post-quantum#require"
	})
	asked := url.Values{}
	for n := range form.Descendants() {
		if n.Data == "input" {
			asked.Set(attr(n, "name"), attr(n, "value"))
		}
	}
	if asked.Get("domain") != d.Name || asked.Get("from") != "2026-03-01" || asked.Has("to") {
		t.Errorf("the form carries %v", asked)
	}
	asked.Set("days", "7")
	check(t, s, b.get("/reports/post-quantum?"+asked.Encode()).want(http.StatusOK, "would have refused since", "< 0.1 % of 50,001 connections"))
}

// TestReportOfManyDays wants a page of a long time no longer than others.
func TestReportOfManyDays(t *testing.T) {
	s := newSite(t)
	d := s.madeDomain(s.root, "shop.example.com")
	e := s.reporter("e1")
	const days = 80
	for range days {
		s.pass(24 * time.Hour)
		e.tell(func(r *edgereport.Report) { r.Counters = []edgereport.Counter{aCounter(d, s.now(), 90, 10)} })
	}
	e.tell(func(r *edgereport.Report) {
		for i := range 120 {
			one := aRecord(d, s.now())
			one.Group, one.PostQuantum, one.ClientIP = "X25519", false, netip.AddrFrom4([4]byte{203, 0, byte(i), 1})
			r.Connections = append(r.Connections, one)
		}
	})
	page := s.signedIn().get("/reports/post-quantum?from=2026-03-01").want(http.StatusOK, "Handshakes by week", "7,200 of 8,000", fmt.Sprint(days-reportDays, " older days"),
		fmt.Sprint(100-reportClients, " more networks"), "not complete")
	check(t, s, page)
	most := 0
	for _, n := range page.all(func(n *html.Node) bool { return strings.HasPrefix(attr(n, "class"), "bar ") }) {
		if attr(n, "class") == "bar s1" {
			most++
		}
	}
	if most > 13 {
		t.Errorf("%d bars", most)
	}
	check(t, s, s.signedIn().get("/reports/post-quantum").want(http.StatusOK, "Handshakes by day"))
}
