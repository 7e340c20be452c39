package dashboard

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// TestMembers invites somebody, changes the role, and removes the member.
func TestMembers(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	list := b.get("/members").want(http.StatusOK, testEmail, "owner")
	check(t, s, list)
	bad := b.submit(list, "invite", url.Values{"email": {"nobody"}, "role": {"king"}})
	check(t, s, bad.want(http.StatusUnprocessableEntity, "E-mail address:", "Role: must be viewer, operator, admin or owner"))
	check(t, s, b.submit(list, "invite", url.Values{"email": {testEmail}}).want(http.StatusConflict, "is a member already"))

	made := b.submit(list, "invite", url.Values{"email": {"new@example.com"}, "role": {"operator"}})
	check(t, s, made.want(http.StatusOK, "Invitation of new@example.com", "It is shown once", "Invitations that wait"))
	link := told(made, "https://console.example.com/invitation?token=")
	again := b.get("/members").want(http.StatusOK, "new@example.com")
	if strings.Contains(again.body, "token=") {
		t.Error("the link is told twice")
	}
	waiting := b.get(attr(again.find(func(n *html.Node) bool { return strings.HasPrefix(attr(n, "href"), "/members/invitations/") }), "href"))
	check(t, s, waiting.want(http.StatusOK, "operator", "The link is not kept"))
	if strings.Contains(waiting.body, "token=") {
		t.Error("the link is told twice")
	}

	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	guest := s.browser()
	guest.submit(guest.get(u.RequestURI()), "invitation", url.Values{"password": {"password of a guest"}}).leadsTo("/login")
	guest.logIn("new@example.com", "password of a guest")
	guest.get("/members").want(http.StatusForbidden)

	list = b.get("/members").want(http.StatusOK, "new@example.com", "operator")
	var path string
	for _, n := range list.all(func(n *html.Node) bool { return strings.HasPrefix(attr(n, "href"), "/members/usr_") }) {
		if textOf(n) == "new@example.com" {
			path = attr(n, "href")
		}
	}
	first, second := b.get(path), b.get(path)
	check(t, s, first.want(http.StatusOK, "Change the role", "Remove new@example.com"))
	b.follow(b.submit(first, "role", url.Values{"role": {"admin"}}).leadsTo("/members")).want(http.StatusOK, "The role is admin now.")
	guest.get("/members").want(http.StatusOK) // at once
	stale := b.submit(second, "role", url.Values{"role": {"viewer"}})
	check(t, s, stale.want(http.StatusPreconditionFailed, "Somebody else changed this"))

	page := b.get(path)
	b.follow(b.submit(page, "remove", nil).leadsTo("/members")).want(http.StatusOK, "The member is removed.")
	b.get(path).want(http.StatusNotFound, "There is no such member.")
	guest.get("/keys").want(http.StatusForbidden)

	// An invitation that is revoked is good for nothing.
	made = b.submit(b.get("/members"), "invite", url.Values{"email": {"other@example.com"}, "role": {"viewer"}})
	u, err = url.Parse(told(made, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	waiting = b.get(attr(made.find(func(n *html.Node) bool { return strings.HasPrefix(attr(n, "href"), "/members/invitations/") }), "href"))
	b.follow(b.submit(waiting, "revoke", nil).leadsTo("/members")).want(http.StatusOK, "The invitation is revoked")
	stranger := s.browser()
	stranger.submit(stranger.get(u.RequestURI()), "invitation", url.Values{"password": {"password of a guest"}}).want(http.StatusNotFound)
}

// TestMemberEscalation has an admin hand out what an admin has not.
func TestMemberEscalation(t *testing.T) {
	s := newSite(t)
	b := s.memberBrowser("admin@example.com", management.Admin)
	list := b.get("/members").want(http.StatusOK)
	if list.find(func(n *html.Node) bool { return attr(n, "name") == "role" && attr(n, "value") == "owner" }) != nil {
		t.Error("an admin is offered to make owners")
	}
	atRole := func(page *seen, form, text string) {
		t.Helper()
		check(t, s, page.want(http.StatusForbidden, "Role: "+text))
		input := page.find(func(n *html.Node) bool { return attr(n, "id") == "f-"+form+"-role-0" })
		if attr(input, "aria-invalid") != "true" {
			t.Errorf("%s: the field is not marked", page.path)
		}
	}
	refused := b.submit(list, "invite", url.Values{"email": {"friend@example.com"}, "role": {"owner"}})
	atRole(refused, "invite", "The role owner can do more than you can.")
	if _, typed := refused.form("invite"); typed.Get("email") != "friend@example.com" {
		t.Error("what was typed is lost")
	}
	owner := b.get("/members/" + s.made.User.ID).want(http.StatusOK)
	atRole(b.submit(owner, "role", url.Values{"role": {"viewer"}}), "role", "The role owner can do more than you can.")
	check(t, s, b.submit(owner, "remove", nil).want(http.StatusForbidden, "The role owner can do more than you can."))
	members, _, err := s.plane.FindMembers(t.Context(), s.root, management.Page{Limit: 10})
	if err != nil || len(members) != 2 {
		t.Errorf("%d members, %v", len(members), err)
	}
}

// TestLeave has the last owner stay, and another member go.
func TestLeave(t *testing.T) {
	s := newSite(t)
	root := s.signedIn()
	self := root.get("/members/"+s.made.User.ID).want(http.StatusOK, "you", "Leave the tenant")
	check(t, s, root.submit(self, "remove", nil).want(http.StatusConflict, "keeps its last owner"))
	check(t, s, root.submit(self, "role", url.Values{"role": {"viewer"}}).want(http.StatusConflict, "keeps its last owner"))

	b := s.memberBrowser("admin@example.com", management.Admin)
	me := b.get("/members").find(func(n *html.Node) bool {
		return textOf(n) == "admin@example.com" && attr(n, "href") != "/settings" && n.Data == "a"
	})
	page := b.get(attr(me, "href")).want(http.StatusOK, "Leave the tenant")
	b.follow(b.submit(page, "role", url.Values{"role": {"viewer"}}).leadsTo("/settings")).want(http.StatusOK, "The role is viewer now.")

	b = s.memberBrowser("second@example.com", management.Admin)
	me = b.get("/members").find(func(n *html.Node) bool {
		return textOf(n) == "second@example.com" && attr(n, "href") != "/settings" && n.Data == "a"
	})
	page = b.get(attr(me, "href"))
	b.follow(b.submit(page, "remove", nil).leadsTo("/settings")).want(http.StatusOK, "You have left the tenant.")
	b.get("/members").want(http.StatusForbidden)
}
