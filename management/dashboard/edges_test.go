package dashboard

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
)

func TestEdges(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	check(t, s, b.get("/edges").want(http.StatusOK, "No edges yet"))
	for name, revision := range map[string]uint64{"gru-1": 42, "fra-1": 40, "new-1": 0} {
		s.reporter(name).tell(func(r *edgereport.Report) {
			r.Revision, r.LiveConnections, r.Draining = revision, 10, name == "fra-1"
		})
	}
	page := b.get("/edges").want(http.StatusOK, "gru-1", "newest", "2 behind", "none yet", "draining", "just now", hostile)
	check(t, s, page)
	if !strings.Contains(page.text(), "Open connections30") || !strings.Contains(page.text(), "Behind2") {
		t.Error(page.text())
	}

	// Another life of one name, again and again: two edges share it.
	one, two := s.reporter("gru-1"), s.reporter("gru-1")
	one.Sequence = 1
	two.Edge.StartedAt = s.now().Add(-time.Hour)
	for range 3 {
		s.pass(time.Second)
		one.tell(func(r *edgereport.Report) { r.Revision = 42 })
		two.tell(func(r *edgereport.Report) { r.Revision = 42 })
	}
	check(t, s, b.get("/edges").want(http.StatusOK, "Two edges report under one name", "name used twice"))

	s.pass(2 * time.Minute)
	fragment := b.do("GET", "/edges/live", nil, http.Header{"Pqproxy-Fragment": {"1"}, "Accept": {"text/html"}})
	if fragment.status != http.StatusOK || strings.Contains(fragment.body, "<html") || !strings.Contains(fragment.body, "stale") || !strings.Contains(fragment.body, "2 minutes ago") {
		t.Errorf("%d %s", fragment.status, fragment.body)
	}
}

// TestEdgeTokens makes one, has an edge use it, and revokes it.
func TestEdgeTokens(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	list := b.get("/edges/tokens").want(http.StatusOK, "No edge tokens yet")
	check(t, s, list)
	bad := b.submit(list, "create", url.Values{"name": {""}})
	check(t, s, bad.want(http.StatusUnprocessableEntity, "Name: must be 1 to 128 characters"))
	made := b.submit(list, "create", url.Values{"name": {hostile}})
	check(t, s, made.want(http.StatusOK, "It is shown once", "management https://EDGE-FACE/v1/edge/domains", "{env.PQPROXY_EDGE_TOKEN}"))
	text := attr(made.find(func(n *html.Node) bool { return strings.HasPrefix(attr(n, "data-copy"), "pqe_") }), "data-copy")
	secret, err := management.ParseSecret(management.EdgeTokenSecret, text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.plane.PrincipalOfEdge(t.Context(), secret); err != nil {
		t.Error(err)
	}
	list = b.get("/edges/tokens").want(http.StatusOK, hostile, secret.Prefix())
	check(t, s, list)
	link := attr(list.find(func(n *html.Node) bool { return strings.HasPrefix(attr(n, "href"), "/edges/tokens/etk_") }), "href")
	page := b.get(link).want(http.StatusOK, secret.Prefix())
	check(t, s, page)
	for _, p := range []*seen{list, page} {
		if strings.Contains(p.body, text) {
			t.Error("the secret is told twice")
		}
	}
	if strings.Contains(s.log.String(), text) {
		t.Error("the secret is in the log")
	}
	b.follow(b.submit(page, "revoke", nil).leadsTo("/edges/tokens")).want(http.StatusOK, "The edge token is revoked", "No edge tokens yet")
	if _, err := s.plane.PrincipalOfEdge(t.Context(), secret); management.CodeOf(err) != management.Unauthenticated {
		t.Errorf("the token is good still: %v", err)
	}
	b.get(link).want(http.StatusNotFound, "There is no such edge token.")
	b.post(link+"/revoke", nil).want(http.StatusNotFound)
}
