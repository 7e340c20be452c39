package dashboard

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// withoutScope are the pages and forms that whoever is signed in may use: they are about himself, or leave out what he may not see.
var withoutScope = []string{
	"GET /", "GET /overview/live", "GET /settings", "GET /settings/totp", "POST /settings/password", "POST /settings/totp", "POST /settings/totp/confirm", "POST /settings/totp/off",
	"POST /settings/account/delete", "POST /settings/leave",
}

// newestEvent returns the ID of the last entry of the audit log.
func (s *site) newestEvent() string {
	s.t.Helper()
	id := ""
	err := s.store.View(s.t.Context(), func(tx management.Tx) error {
		events, err := tx.FindEvents(management.EventFilter{Limit: 1})
		if len(events) > 0 {
			id = events[0].ID
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// TestEveryRouteByRole has a member of each role, none of them an operator of the platform, try every page, every live part and every form: what the
// role has no scope for is refused and changes nothing, and nothing else is refused for that. Whoever is not signed in gets none of it.
func TestEveryRouteByRole(t *testing.T) {
	s := newSite(t)
	d := s.madeDomain(s.root, "shop.example.com")
	filled := func(path string) string { // with IDs of what there is
		first, _, _ := strings.Cut(path[1:], "/")
		id := cmp.Or(map[string]string{"domains": d.ID, "keys": s.made.APIKey.ID, "tenants": s.made.Tenant.ID}[first], "x")
		return strings.NewReplacer("{id}", id, "{user}", s.made.User.ID).Replace(path)
	}
	none := strings.NewReplacer("{id}", "x", "{user}", "x") // of nothing
	browsers := map[management.Role]*browser{}
	roles := []management.Role{management.Viewer, management.Operator, management.Admin, management.Owner}
	for _, role := range roles {
		browsers[role] = s.memberBrowser(string(role)+"@example.com", role)
	}
	stranger := s.browser()
	ended := s.browser()
	ended.logIn(testEmail, testPassword)
	if err := s.plane.LogOut(t.Context(), nobody(), ended.cookies[auth.SessionCookie].Value); err != nil {
		t.Fatal(err)
	}
	gone := *ended.cookies[auth.SessionCookie] // which an answer takes from the browser
	before := s.newestEvent()

	form := url.Values{"name": {"New name"}, "role": {"viewer"}, "post_quantum": {"off"}, "suspended": {"true"}, "max_domains": {"1"}, "email": {"friend@example.com"}, "scopes": {"domains:read"}}
	refused, allowed := 0, 0
	for _, rt := range s.routes {
		if rt.access != byUser {
			continue
		}
		name := rt.method + " " + rt.path
		if (rt.scope == "") != slices.Contains(withoutScope, name) {
			t.Errorf("%s asks for the scope %q", name, rt.scope)
		}
		sent := form
		if rt.method == http.MethodGet {
			sent = nil
		}
		for _, b := range []*browser{stranger, ended} {
			if b == ended {
				b.cookies[auth.SessionCookie] = &gone
			}
			got := b.do(rt.method, filled(rt.path), sent, nil)
			if rt.method == http.MethodGet && (got.status != http.StatusSeeOther || !strings.HasPrefix(got.header.Get("Location"), "/login")) {
				t.Errorf("%s without a session: %d to %q", name, got.status, got.header.Get("Location"))
			}
			if rt.method == http.MethodPost && (got.status != http.StatusUnauthorized || !strings.Contains(got.body, "Nothing that you typed is lost")) {
				t.Errorf("%s without a session: %d", name, got.status)
			}
			if rt.endless {
				b.do("GET", filled(rt.path), nil, fragmentHeader).mustBe(http.StatusUnauthorized, "Sign in first.\n")
			}
		}
		if rt.scope == "" {
			continue
		}
		for _, role := range roles {
			if role.Scopes().Has(rt.scope) {
				continue
			}
			refused++
			got := browsers[role].do(rt.method, filled(rt.path), sent, nil)
			if got.status != http.StatusForbidden || !strings.Contains(got.body, "This needs the scope "+string(rt.scope)) {
				t.Errorf("%s as %s: %d", name, role, got.status)
			}
		}
	}
	if now := s.newestEvent(); now != before {
		t.Errorf("something was changed by who may not")
	}

	// As who may, with IDs of nothing and without what has to be typed: it is refused, but not for the role.
	for _, rt := range s.routes {
		if rt.access != byUser || rt.scope == "" {
			continue
		}
		var sent url.Values
		if rt.method == http.MethodPost {
			sent = url.Values{}
		}
		for _, role := range roles {
			if !role.Scopes().Has(rt.scope) {
				continue
			}
			allowed++
			var header http.Header
			if rt.endless {
				header = fragmentHeader
			}
			if got := browsers[role].do(rt.method, none.Replace(rt.path), sent, header); got.status == http.StatusForbidden || got.status == http.StatusUnauthorized || got.status >= 500 {
				t.Errorf("%s %s as %s: %d", rt.method, rt.path, role, got.status)
			}
		}
	}
	if refused < 60 || allowed < 60 {
		t.Errorf("%d were refused and %d not: are the routes still there?", refused, allowed)
	}
}

// TestScopesOfTheAPI compares the scopes that forms ask for with those of the API's document for the same call: what a page lets somebody do, the API
// does too.
func TestScopesOfTheAPI(t *testing.T) {
	text, err := os.ReadFile("../api/testdata/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			Scope management.Scope `json:"x-scope"`
		}
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	scopes := map[string]management.Scope{}
	for _, rt := range table() {
		scopes[rt.method+" "+rt.path] = rt.scope
	}
	compared := 0
	for path, methods := range doc.Paths {
		for method, op := range methods {
			call := strings.ToUpper(method) + " " + path
			page := pagesOfCalls[call]
			scope, ok := scopes[page]
			if !ok || op.Scope == "" {
				continue // for machines, or for everybody: then the page may ask for more
			}
			if scope == "" && strings.HasPrefix(page, "GET ") && slices.Contains(withoutScope, page) || call == "GET /v1/domains/{id}/series" {
				continue // the page leaves out what its reader may not see
			}
			compared++
			if scope != op.Scope {
				t.Errorf("%s asks for %s, and %s for %q", call, op.Scope, page, scope)
			}
		}
	}
	if compared < 30 {
		t.Errorf("only %d calls were compared", compared)
	}
}

// TestDeepLinks opens every page by its address, with a question in it, as who is not signed in: signing in leads there, and nowhere else.
func TestDeepLinks(t *testing.T) {
	s := newSite(t)
	tried := 0
	for _, rt := range s.routes {
		if rt.method != http.MethodGet || rt.access != byUser || rt.endless {
			continue
		}
		tried++
		link := strings.NewReplacer("{id}", management.NewID(management.DomainID), "{user}", management.NewID(management.UserID)).Replace(rt.path) + "?q=a%26b%3Dc&from=2026-03-01"
		b := s.browser()
		asked := b.get(link).leadsTo("/login?next=" + url.QueryEscape(link))
		page := b.follow(asked).want(http.StatusOK)
		wrong := b.submit(page, "login", url.Values{"email": {testEmail}, "password": {"not the password"}}).want(http.StatusUnauthorized)
		b.submit(wrong, "login", url.Values{"password": {testPassword}}).leadsTo(link)
		b.get("/login?next=" + url.QueryEscape(link)).leadsTo(link) // who is signed in already goes on at once
		s.pass(time.Minute)                                         // for the limit on tries
	}
	if tried < 30 {
		t.Errorf("only %d pages", tried)
	}
}
