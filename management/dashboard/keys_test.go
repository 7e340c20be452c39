package dashboard

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// told returns the secret of that kind on a page, which must have it in one place to see and one to copy.
func told(page *seen, kind string) string {
	page.t.Helper()
	text := attr(page.find(func(n *html.Node) bool { return strings.HasPrefix(attr(n, "data-copy"), kind) }), "data-copy")
	if text == "" || strings.Count(page.body, text) != 2 {
		page.t.Fatalf("%s tells %q %d times", page.path, text, strings.Count(page.body, text))
	}
	return text
}

func (s *site) principalOf(secret string) (*management.Principal, error) {
	s.t.Helper()
	parsed, err := management.ParseSecret(management.APIKeySecret, secret)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.plane.PrincipalOfKey(s.t.Context(), parsed)
}

// TestKeys makes a key, rotates it and revokes it.
func TestKeys(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	list := b.get("/keys").want(http.StatusOK, "Make an API key", "domains:read")
	check(t, s, list)

	bad := b.submit(list, "create", url.Values{"name": {""}, "scopes": {"domains:read", "everything"}, "expires_at": {"tomorrow"}})
	bad.want(http.StatusUnprocessableEntity, "Name: must be 1 to 128", "Scopes: has what is no scope", "Last day: must be a day such as 2026-12-31")
	check(t, s, bad)
	if _, typed := bad.form("create"); typed.Get("expires_at") != "tomorrow" || !strings.Contains(strings.Join(typed["scopes"], " "), "domains:read") {
		t.Errorf("what was typed is lost: %v", typed)
	}
	check(t, s, b.submit(list, "create", url.Values{"name": {"x"}, "scopes": {"domains:read"}, "expires_at": {"2026-03-13"}}).want(http.StatusUnprocessableEntity, "is in the past"))
	check(t, s, b.submit(list, "create", url.Values{"name": {"x"}}).want(http.StatusUnprocessableEntity, "name at least one scope"))

	made := b.submit(list, "create", url.Values{"name": {hostile}, "scopes": {"domains:read", "usage:read"}, "expires_at": {"2026-03-14"}})
	check(t, s, made.want(http.StatusOK, "It is shown once", "domains:read, usage:read", "in 8 hours"))
	first := told(made, "pqk_")
	who, err := s.principalOf(first)
	if err != nil || who.TenantID != s.made.Tenant.ID || len(who.Scopes) != 2 {
		t.Fatalf("%+v %v", who, err)
	}

	// The same form again makes no second key, and tells nothing.
	_, fields := list.form("create")
	for name, values := range map[string][]string{"name": {hostile}, "scopes": {"domains:read", "usage:read"}, "expires_at": {"2026-03-14"}} {
		fields[name] = values
	}
	again := b.follow(b.post("/keys", fields)).want(http.StatusOK, "This was done already")
	if strings.Contains(again.body, first) {
		t.Error("the secret is told twice")
	}
	keys, _, err := s.plane.FindAPIKeys(t.Context(), s.root, management.Page{Limit: 10})
	if err != nil || len(keys) != 2 { // with that of the first run
		t.Fatalf("%d keys, %v", len(keys), err)
	}

	link := "/keys/" + who.APIKeyID
	page := b.get(link).want(http.StatusOK, first[:12], "2026-03-15 00:00:00 UTC")
	check(t, s, page)
	rotated := b.submit(page, "rotate", nil)
	check(t, s, rotated.want(http.StatusOK, "The old one ended just now"))
	second := told(rotated, "pqk_")
	if _, err := s.principalOf(first); management.CodeOf(err) != management.Unauthenticated {
		t.Errorf("the old secret is good still: %v", err)
	}
	if _, err := s.principalOf(second); err != nil {
		t.Error(err)
	}
	page = b.get(link)
	b.follow(b.submit(page, "revoke", nil).leadsTo("/keys")).want(http.StatusOK, "The API key is revoked")
	if _, err := s.principalOf(second); management.CodeOf(err) != management.Unauthenticated {
		t.Errorf("the key is good still: %v", err)
	}
	b.get(link).want(http.StatusNotFound, "There is no such API key.")
	for _, p := range []*seen{b.get("/keys"), b.get("/audit"), page} {
		if strings.Contains(p.body, first) || strings.Contains(p.body, second) {
			t.Errorf("%s tells a secret again", p.path)
		}
	}
	if strings.Contains(s.log.String(), first) || strings.Contains(s.log.String(), second) {
		t.Error("a secret is in the log")
	}
}

// TestKeyEscalation has an admin ask for what an admin has not.
func TestKeyEscalation(t *testing.T) {
	s := newSite(t)
	b := s.memberBrowser("admin@example.com", management.Admin)
	list := b.get("/keys").want(http.StatusOK)
	for _, scope := range []string{"*", "platform:*"} {
		if list.find(func(n *html.Node) bool { return attr(n, "name") == "scopes" && attr(n, "value") == scope }) != nil {
			t.Errorf("an admin is offered %s", scope)
		}
		bad := b.submit(list, "create", url.Values{"name": {"x"}, "scopes": {scope}})
		check(t, s, bad.want(http.StatusForbidden, "Scopes: A key cannot have a scope that you do not have."))
		if _, typed := bad.form("create"); typed.Get("name") != "x" {
			t.Error("what was typed is lost")
		}
	}
	// The key of the first run has all scopes: an admin can revoke it, and not take it over.
	page := b.get("/keys/" + s.made.APIKey.ID).want(http.StatusOK)
	check(t, s, b.submit(page, "rotate", nil).want(http.StatusForbidden, "The key has a scope that you do not have."))
	if _, err := s.principalOf(s.made.Secret.Reveal()); err != nil {
		t.Errorf("it was changed all the same: %v", err)
	}
}

// memberBrowser returns a browser of somebody with that role in the first tenant.
func (s *site) memberBrowser(email string, role management.Role) *browser {
	s.t.Helper()
	invited, err := s.plane.CreateInvitation(s.t.Context(), s.root, email, role)
	if err != nil {
		s.t.Fatal(err)
	}
	link, err := url.Parse(invited.URL.Reveal())
	if err != nil {
		s.t.Fatal(err)
	}
	const password = "password of a member"
	if _, err := s.plane.AcceptInvitation(s.t.Context(), nobody(), link.Query().Get("token"), password); err != nil {
		s.t.Fatal(err)
	}
	b := s.browser()
	b.logIn(email, password)
	return b
}

// TestConsoleRoles wants whoever has not the scope refused, and shown no form.
func TestConsoleRoles(t *testing.T) {
	s := newSite(t)
	d := s.domainWithPair(s.root, "shop.example.com", s.now().Add(72*time.Hour))
	viewer, operator, admin := s.memberBrowser("viewer@example.com", management.Viewer), s.memberBrowser("operator@example.com", management.Operator), s.memberBrowser("admin@example.com", management.Admin)
	for _, path := range []string{"/connections", "/connections/tail", "/reports/post-quantum?domain=" + d.ID, "/certificates"} {
		page := viewer.get(path).want(http.StatusOK)
		check(t, s, page)
		for _, n := range page.all(func(n *html.Node) bool { return n.Data == "form" && attr(n, "method") == "post" }) {
			if attr(n, "action") != "/logout" {
				t.Errorf("%s shows a viewer the form %s", path, attr(n, "id"))
			}
		}
	}
	key, owner := "/keys/"+s.made.APIKey.ID, "/members/"+s.made.User.ID
	for _, path := range []string{"/keys", key, "/members", owner, "/audit"} {
		for _, b := range []*browser{viewer, operator} {
			b.get(path).want(http.StatusForbidden, "This needs the scope")
		}
		check(t, s, admin.get(path).want(http.StatusOK))
	}
	for _, path := range []string{"/keys", key + "/rotate", key + "/revoke", "/members/invitations", owner + "/role", owner + "/remove"} {
		viewer.post(path, url.Values{"name": {"x"}, "role": {"viewer"}}).want(http.StatusForbidden, "This needs the scope")
	}
	for _, path := range []string{"/edges", "/edges/tokens", "/tenants", "/tenants/" + s.made.Tenant.ID} {
		admin.get(path).want(http.StatusForbidden, "platform:*")
	}
	for _, path := range []string{"/edges/tokens", "/tenants", "/tenants/" + s.made.Tenant.ID} {
		admin.post(path, url.Values{"name": {"x"}}).want(http.StatusForbidden, "platform:*")
	}
}

// TestOthersIDs wants what is another tenant's to be as if it were not there.
func TestOthersIDs(t *testing.T) {
	s := newSite(t)
	other := s.otherTenant()
	key, _, err := s.plane.CreateAPIKey(t.Context(), other, management.NewAPIKey{Name: "Theirs", Scopes: management.Scopes{management.DomainsRead}})
	if err != nil {
		t.Fatal(err)
	}
	invited, err := s.plane.CreateInvitation(t.Context(), other, "somebody@example.com", management.Viewer)
	if err != nil {
		t.Fatal(err)
	}
	events, err := s.plane.FindEvents(t.Context(), other, management.EventFilter{Action: "api_key.created", Limit: 1})
	if err != nil || len(events) != 1 {
		t.Fatal(events, err)
	}
	b := s.signedIn()
	for _, path := range []string{
		"/keys/" + key.ID, "/keys/" + management.NewID(management.APIKeyID), "/keys/x", "/members/" + other.UserID, "/members/x", "/members/invitations/" + invited.ID, "/audit/" + events[0].ID,
		"/audit/" + management.NewID(management.EventID), "/audit/x", "/tenants/" + management.NewID(management.TenantID), "/tenants/x", "/edges/tokens/" + management.NewID(management.EdgeTokenID),
	} {
		page := b.get(path)
		check(t, s, page.want(http.StatusNotFound))
		if strings.Contains(page.text(), "Theirs") || strings.Contains(page.text(), "somebody@") {
			t.Errorf("%s tells whose it is", path)
		}
	}
	for _, path := range []string{
		"/keys/" + key.ID + "/rotate", "/keys/" + key.ID + "/revoke", "/members/" + other.UserID + "/role", "/members/" + other.UserID + "/remove", "/members/invitations/" + invited.ID + "/revoke",
		"/tenants/" + management.NewID(management.TenantID), "/edges/tokens/x/revoke",
	} {
		b.post(path, url.Values{"role": {"viewer"}, "name": {"x"}, "max_domains": {"1"}}).want(http.StatusNotFound)
	}
	for _, path := range []string{"/keys", "/members", "/audit?object=" + key.ID} {
		if text := b.get(path).want(http.StatusOK).text(); strings.Contains(text, "Theirs") || strings.Contains(text, "somebody@") {
			t.Errorf("%s shows another tenant's", path)
		}
	}
}
