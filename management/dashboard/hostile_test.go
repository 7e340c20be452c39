package dashboard

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// hostileEmail is the worst that an address can be: letters of RFC 5322's atom alone.
const hostileEmail = `'{{.}}&lt=onerror=x@example.com`

// marked is an attack that says where it comes from.
func marked(from string) string { return "from-" + from + " " + hostile }

// hostileSite has an attack in every text that somebody else can set: tenants, members, edges, DNS, servers and strangers.
func hostileSite(t *testing.T) (s *domainSite, from []string) {
	s = newDomainSite(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	mark := func(name string) string {
		from = append(from, "from-"+name+" ")
		return marked(name)
	}
	ctx, now := t.Context(), s.now()

	// What people call things.
	name := mark("tenant")
	_, err := s.plane.RenameTenant(ctx, s.root, &name, "")
	must(err)
	_, _, err = s.plane.CreateTenant(ctx, s.root, management.NewTenant{Name: mark("other-tenant"), OwnerEmail: hostileEmail})
	must(err)
	_, _, err = s.plane.CreateAPIKey(ctx, s.root, management.NewAPIKey{Name: mark("key"), Scopes: management.Scopes{management.DomainsRead}})
	must(err)
	_, _, err = s.plane.CreateEdgeToken(ctx, s.root, mark("edge-token"))
	must(err)
	s.memberBrowser("member"+hostileEmail, management.Viewer)
	_, err = s.plane.CreateInvitation(ctx, s.root, "invited"+hostileEmail, management.Viewer)
	must(err)
	from = append(from, "member"+hostileEmail, "invited"+hostileEmail)
	body, err := json.Marshal(map[string]any{
		"name": "app.example.com", "upstreams": []any{map[string]string{"dial": "origin.example.net:8443", "region": mark("upstream-region")}}, "alpn": []string{mark("alpn-setting")},
	})
	must(err)
	d, err := s.plane.CreateDomain(ctx, s.root, body)
	must(err)
	refused, err := s.plane.CreateDomain(ctx, s.root, []byte(`{"name":"refused.example.com","upstreams":[{"dial":"origin.example.net:8443"}]}`))
	must(err)
	failing, err := s.plane.CreateDomain(ctx, s.root, []byte(`{"name":"failing.example.com","upstreams":[{"dial":"origin.example.net:8443"}]}`))
	must(err)
	s.domainWithPair(s.root, "byoc.example.com", now.Add(20*24*time.Hour)) // with a hostile subject
	from = append(from, `CN=\<script\>alert(1)\</script\>`)

	// What DNS says.
	for _, id := range []string{d.ID, failing.ID} {
		_, err = s.plane.CheckDomain(ctx, s.root, id)
		must(err)
	}

	// What an edge says, and through it upstreams, certificate authorities and strangers.
	e := s.reporter(mark("edge"))
	e.Edge.Region, e.Edge.Version = mark("region"), "v1 "+hostile
	e.tell(func(r *edgereport.Report) {
		until := now.Add(9 * 24 * time.Hour)
		r.Revision = 1 << 30
		r.Rejected = []edgereport.Rejected{{Name: refused.Name, Field: mark("rejected-field"), Detail: mark("rejected")}}
		r.Certificates = []edgereport.CertificateState{
			{Name: d.Name, Source: "acme", Issuer: mark("issuer"), NotAfter: &until, State: edgereport.CertificateValid, Error: mark("renewal")},
			{Name: failing.Name, Source: "acme", State: edgereport.CertificateFailed, Error: mark("order")},
		}
		r.Upstreams = []edgereport.UpstreamState{{Domain: d.Name, Dial: "origin.example.net:8443", Error: mark("upstream")}}
		c := aRecord(d, now.Add(-time.Second))
		// Groups, end reasons and their like are words: a report that has others is refused whole.
		c.ServerName, c.CipherSuite, c.ALPN, c.TLSVersion = mark("server-name"), mark("cipher-suite"), mark("alpn"), mark("tls-version")
		c.Upstream, c.Error = mark("dialled"), mark("error")
		r.Connections = append(r.Connections, c)
		counts(r, d, now, 10, 5)
	})
	return s, from
}

// TestHostileTexts walks by links over all pages, as an operator who owns a tenant and as a customer, and looks at each: attacks are shown as
// text, all of them are shown somewhere, and no page is left out.
func TestHostileTexts(t *testing.T) {
	s, from := hostileSite(t)
	s.addLive("customer.example.com")
	for name, b := range map[string]*browser{"operator": s.signedIn(), "customer": s.visitor()} {
		w := walk{t: t, s: s.site, b: b, seen: map[string]bool{}, opened: map[string]int{}}
		w.from("/")
		w.from("/settings/totp", "/forgot?email="+url.QueryEscape(hostile), "/login?next="+url.QueryEscape(hostile), "/no-such-page/"+url.PathEscape(hostile),
			"/domains/new?name="+url.QueryEscape(hostile)+"&dial="+url.QueryEscape(hostile), "/domains?q="+url.QueryEscape(hostile), "/connections?client_ip="+url.QueryEscape(hostile),
			"/audit?action="+url.QueryEscape(hostile)+"&actor="+url.QueryEscape(hostile), "/certificates?day="+url.QueryEscape(hostile), "/reports/post-quantum?domain="+url.QueryEscape(hostile))
		if name == "customer" {
			if strings.Contains(w.said.String(), "from-edge ") {
				t.Error("a customer is told what an edge is called")
			}
			continue
		}
		for _, text := range from {
			if !strings.Contains(w.said.String(), text) {
				t.Errorf("no page shows the text %s: either it should, or it has no place in this test", text)
			}
		}
		for _, text := range []string{"from-key ", "from-other-tenant ", "from-edge-token ", "from-tenant ", "from-upstream-region "} {
			if !strings.Contains(w.audit.String(), text) {
				t.Errorf("the audit log does not show the text %s", text)
			}
		}
		for _, rt := range s.routes {
			if rt.method == http.MethodGet && !rt.endless && rt.access == byUser && w.opened[rt.path] == 0 && rt.path != "/connections/export" && rt.path != "/domains/{id}/setup" {
				t.Errorf("the walk did not come to %s", rt.path)
			}
		}
		t.Logf("%d pages, %d parts", len(w.seen), w.parts)
	}
}

// walk follows links.
type walk struct {
	t      *testing.T
	s      *site
	b      *browser
	seen   map[string]bool // addresses, without what makes them one of many alike
	opened map[string]int  // by the path of the route
	parts  int
	said   strings.Builder // texts and attributes of all pages
	audit  strings.Builder // and of those of the audit log
}

const mostAlike = 40 // pages of one route

func (w *walk) from(paths ...string) {
	w.t.Helper()
	for len(paths) > 0 {
		path := paths[0]
		paths = paths[1:]
		u, err := url.Parse(path)
		if err != nil {
			w.t.Fatalf("%q is no link", path)
		}
		alike := u.EscapedPath() + "?" + strings.Join(slices.Sorted(func(yield func(string) bool) {
			for name := range u.Query() {
				if !yield(name) {
					return
				}
			}
		}), "&")
		found, _ := w.s.match(u.EscapedPath())
		if w.seen[alike] || len(found) > 0 && w.opened[found[0].path] >= mostAlike || strings.HasPrefix(u.Path, "/v1/") {
			continue
		}
		w.seen[alike] = true
		page := w.b.get(path)
		if page.status == http.StatusSeeOther {
			paths = append(paths, page.header.Get("Location"))
			continue
		}
		if page.status >= http.StatusInternalServerError {
			w.t.Errorf("%s: %d", path, page.status)
		}
		check(w.t, w.s, page)
		if page.status == http.StatusOK && len(found) > 0 {
			w.opened[found[0].path]++
		}
		note(&w.said, page)
		if len(found) > 0 && strings.HasPrefix(found[0].path, "/audit") {
			note(&w.audit, page)
		}
		for _, n := range page.all(func(n *html.Node) bool {
			return n.Data == "a" && strings.HasPrefix(attr(n, "href"), "/") && !has(n, "download")
		}) {
			paths = append(paths, attr(n, "href"))
		}
		for _, n := range page.all(func(n *html.Node) bool { return has(n, "data-live") }) {
			w.part(attr(n, "data-live"))
		}
	}
}

// part looks at a part that scripts put into a page.
func (w *walk) part(path string) {
	w.t.Helper()
	part := w.b.do("GET", path, nil, fragmentHeader)
	if part.status != http.StatusOK || part.doc == nil {
		w.t.Errorf("%s: %d", path, part.status)
		return
	}
	w.parts++
	checkInline(w.t, part)
	checkWellFormed(w.t, part.body)
}

func note(said *strings.Builder, page *seen) {
	for n := range page.doc.Descendants() {
		if n.Type == html.TextNode {
			said.WriteString(n.Data + "\n")
		}
		for _, a := range n.Attr {
			said.WriteString(a.Val + "\n")
		}
	}
}
