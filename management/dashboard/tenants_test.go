package dashboard

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// TestTenantsPage makes a tenant for somebody else, limits, trusts and suspends it.
func TestTenantsPage(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	list := b.get("/tenants").want(http.StatusOK, hostile, "served")
	check(t, s, list)
	bad := b.submit(list, "create", url.Values{"name": {""}, "owner_email": {"nobody"}, "max_domains": {"many"}})
	check(t, s, bad.want(http.StatusUnprocessableEntity, "Name: must be 1 to 128", "E-mail address of the owner:", "At most so many domains: must be 0 to 1000000"))
	if _, typed := bad.form("create"); typed.Get("max_domains") != "many" || typed.Get("owner_email") != "nobody" {
		t.Errorf("what was typed is lost: %v", typed)
	}
	made := b.submit(list, "create", url.Values{"name": {"Their " + hostile}, "owner_email": {"owner@example.com"}, "max_domains": {"7"}, "trusted": {"true"}})
	check(t, s, made.want(http.StatusOK, "It is shown once", "7 domains", "trusted"))
	u, err := url.Parse(told(made, "https://console.example.com/invitation?token="))
	if err != nil {
		t.Fatal(err)
	}
	owner := s.browser()
	owner.submit(owner.get(u.RequestURI()), "invitation", url.Values{"password": {"password of an owner"}}).leadsTo("/login")
	owner.logIn("owner@example.com", "password of an owner")
	owner.get("/keys").want(http.StatusOK)
	owner.get("/tenants").want(http.StatusForbidden)

	var path string
	for _, n := range b.get("/tenants").all(func(n *html.Node) bool { return strings.HasPrefix(attr(n, "href"), "/tenants/ten_") }) {
		if strings.HasPrefix(textOf(n), "Their") {
			path = attr(n, "href")
		}
	}
	first, second := b.get(path), b.get(path)
	check(t, s, first.want(http.StatusOK, "At most so many domains", "Suspended"))
	b.follow(b.submit(first, "tenant", url.Values{"suspended": {"true"}, "max_domains": {"8"}}).leadsTo(path)).want(http.StatusOK, "is suspended: its domains are not served")
	owner.get("/keys").want(http.StatusForbidden) // it can only read
	owner.get("/certificates").want(http.StatusOK)
	owner.get("/audit").want(http.StatusOK)
	stale := b.submit(second, "tenant", url.Values{"name": {"Renamed"}})
	check(t, s, stale.want(http.StatusPreconditionFailed, "Now it is 8", "Now it is on"))
	for _, value := range []string{"", "x", "-5", "1000001"} {
		check(t, s, b.submit(b.get(path), "tenant", url.Values{"max_domains": {value}}).want(http.StatusUnprocessableEntity, "must be 0 to 1000000"))
	}
	b.follow(b.submit(b.get(path), "tenant", url.Values{"suspended": nil}).leadsTo(path)).want(http.StatusOK, "Saved Their")
	owner.get("/keys").want(http.StatusOK)
	tenant, err := s.plane.FindTenant(t.Context(), &management.Principal{TenantID: strings.TrimPrefix(path, "/tenants/"), Scopes: management.Scopes{management.All}})
	if err != nil || tenant.MaxDomains != 8 || !tenant.Trusted || tenant.Suspended {
		t.Errorf("%+v %v", tenant, err)
	}

	// One of the operator's own: the switch of tenants has it.
	done := b.submit(list, "create", url.Values{"name": {"Mine"}})
	b.follow(done).want(http.StatusOK, "The tenant Mine is made, and you own it.")
	if page := b.get("/tenants"); !strings.Contains(textOf(page.find(func(n *html.Node) bool { return strings.Contains(attr(n, "class"), "menu") })), "Mine") {
		t.Error("the new tenant cannot be switched to")
	}
}
