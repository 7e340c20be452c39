package dashboard

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// TestLiveOnEachEdge has a customer watch a domain go live, edge by edge, in the last step and on its page.
func TestLiveOnEachEdge(t *testing.T) {
	s := newDomainSite(t)
	s.world.set(true, true)
	d := s.check(s.add("app.example.com").ID)
	edges := map[string]*reporter{}
	tell := func(name string, edit func(*edgereport.Report)) {
		t.Helper()
		r := edges[name]
		if r == nil {
			r = s.reporter(name)
			r.Edge.Region = "gru"
			edges[name] = r
		}
		r.tell(edit)
		s.pass(time.Second)
	}
	nothing := func(*edgereport.Report) {}
	applied := func(r *edgereport.Report) { r.Revision = d.Revision }
	tell("secret-name-1", nothing)
	edges["secret-name-2"] = s.reporter("secret-name-2") // of a hostile region
	tell("secret-name-2", nothing)

	b, root := s.visitor(), s.signedIn()
	path := "/domains/" + d.ID
	rows := func(body string) (all []string) {
		page := &seen{t: t, path: path, body: body}
		var err error
		if page.doc, err = html.Parse(strings.NewReader(body)); err != nil {
			t.Fatal(err)
		}
		for _, n := range page.all(func(n *html.Node) bool {
			if n.Data != "tr" || n.Parent.Data != "tbody" {
				return false
			}
			for c := range n.Descendants() {
				if attr(c, "data-label") == "Live since" {
					return true
				}
			}
			return false
		}) {
			all = append(all, strings.Join(strings.Fields(textOf(n)), " "))
		}
		return all
	}
	for _, page := range []string{path, path + "/setup/done"} {
		got := b.get(page).want(http.StatusOK, "Edge 1", "Edge 2", "gru", hostile)
		check(t, s.site, got)
		if all := rows(got.body); len(all) != 2 || all[0] != "Edge 1gru… not yet… not yet–" {
			t.Errorf("%s: %q", page, all)
		}
		if strings.Contains(got.body, "secret-name") {
			t.Errorf("%s tells a customer what edges are called", page)
		}
	}

	// The script hears of each edge as it goes live.
	server := httptest.NewTLSServer(s)
	defer server.Close()
	defer s.Close()
	in := bufio.NewReader(b.listen(t.Context(), server, path+"/setup/done/live", "").Body)
	if _, _, data := event(t, in); len(rows(data)) != 2 || strings.Contains(data, "secret-name") || !strings.Contains(data, `data-live-say="app.example.com: issuing, live on 0 of 2 edges"`) {
		t.Fatalf("the stream begins with %s", data)
	}
	first := s.now()
	tell("secret-name-1", func(r *edgereport.Report) { applied(r); holds(r, d, s.now().Add(60*24*time.Hour)) })
	_, _, data := event(t, in)
	live := "Edge 1gru✓ has it✓ has one" + momentOf(first, first).Exact
	if all := rows(data); len(all) != 2 || all[0] != live || all[1] != "Edge 2"+strings.Join(strings.Fields(hostile), " ")+"… not yet… not yet–" {
		t.Errorf("the stream goes on with %q, want %q", all, live)
	}
	tell("secret-name-2", applied)
	if part := b.do("GET", path+"/live", nil, fragmentHeader); len(rows(part.body)) != 2 || !strings.HasSuffix(rows(part.body)[1], "✓ has it… not yet–") {
		t.Errorf("without a certificate: %q", rows(part.body))
	}
	tell("secret-name-2", func(r *edgereport.Report) { applied(r); holds(r, d, s.now().Add(60*24*time.Hour)) })
	for data = ""; !strings.Contains(data, "live on 2 of 2 edges"); { // it may have looked in between
		_, _, data = event(t, in)
	}
	if strings.HasSuffix(rows(data)[1], "–") {
		t.Errorf("at the end: %s", data)
	}
	done := b.get(path + "/setup/done")
	check(t, s.site, done)

	// An edge that refuses says why, and whatever it says is text.
	tell("secret-name-2", func(r *edgereport.Report) {
		applied(r)
		r.Rejected = []edgereport.Rejected{{Name: d.Name, Field: "upstreams[0].dial", Detail: hostile}}
	})
	refused := b.get(path).want(http.StatusOK, "refused upstreams[0].dial: "+hostile)
	check(t, s.site, refused)

	// An operator knows edges by their names; one whose tenant has the domain, that is.
	mine, err := s.plane.CreateDomain(t.Context(), s.root, []byte(`{"name":"mine.example.com","upstreams":[{"dial":"origin.example.net:8443"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	check(t, s.site, root.get("/domains/"+mine.ID).want(http.StatusOK, "secret-name-1", "secret-name-2"))
	root.get(path).want(http.StatusNotFound)

	// Nobody is told of edges before the name is proven: what they say of it may be another tenant's.
	s.world.set(true, false)
	claim := s.add("mine.example.com")
	if got := b.get("/domains/" + claim.ID); len(rows(got.want(http.StatusOK).body)) != 0 {
		t.Errorf("a claim shows edges: %q", rows(got.body))
	}
}

// TestManyEdges shows those on which a domain is not live, and counts the rest.
func TestManyEdges(t *testing.T) {
	s := newDomainSite(t)
	d := s.addLive("app.example.com")
	for i := range mostEdges + 5 {
		r := s.reporter(fmt.Sprintf("e%02d", i))
		r.Edge.Region = fmt.Sprintf("region-%d", i)
		r.tell(func(r *edgereport.Report) {
			if i != 23 {
				r.Revision = 1 << 30
				holds(r, d, s.now().Add(60*24*time.Hour))
			}
		})
	}
	page := s.visitor().get("/domains/"+d.ID).want(http.StatusOK, "region-23", fmt.Sprintf("Live on %d of %d edges", mostEdges+5, mostEdges+6), "And 6 more.")
	check(t, s.site, page)
	n := len(page.all(func(n *html.Node) bool { return n.Data == "td" && attr(n, "data-label") == "Live since" }))
	if n != mostEdges {
		t.Errorf("%d edges are listed", n)
	}
	if status := s.find(d.ID).Status; status != management.Active && status != management.Degraded {
		t.Errorf("status %s", status)
	}
}
