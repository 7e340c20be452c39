package dashboard

import (
	"net/url"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func memberRoutes() []route {
	const scope = management.MembersWrite
	return []route{
		{method: "GET", path: "/members", scope: scope, handle: showMembers},
		{method: "POST", path: "/members/invitations", scope: scope, handle: inviteMember, again: showMembers},
		{method: "GET", path: "/members/invitations/{id}", scope: scope, handle: showWaiting},
		{method: "POST", path: "/members/invitations/{id}/revoke", scope: scope, handle: revokeInvitation, again: showWaiting},
		{method: "GET", path: "/members/{user}", scope: scope, handle: showMember},
		{method: "POST", path: "/members/{user}/role", scope: scope, handle: changeRole, again: showMember},
		{method: "POST", path: "/members/{user}/remove", scope: scope, handle: removeMember, again: showMember},
	}
}

const (
	memberRows  = 20
	mostMembers = 1000 // more than a tenant can have
)

// membersPage is the data of the list of members.
type membersPage struct {
	Rows    []*management.Member
	Next    string
	Waiting []*management.Invitation
	More    string   // leads to more of these
	Roles   []option // that who looks can give
	Invited *management.Invited
	Link    string // of Invited: told once
}

func showMembers(c *ctx) error { return c.renderMembers(membersPage{}) }

func (c *ctx) renderMembers(page membersPage) (err error) {
	if page.Rows, page.Next, err = c.plane.FindMembers(c.ctx, c.who, c.page(memberRows)); err != nil {
		return err
	}
	var next string
	if page.Waiting, next, err = c.plane.FindInvitations(c.ctx, c.who, management.Page{Limit: memberRows, Cursor: c.query("waiting")}); err != nil {
		return err
	}
	if next != "" {
		page.More = c.url("/members", "waiting", next)
	}
	page.Roles = c.roleOptions("")
	return c.render("members", "Members", page)
}

// roleOptions are the roles that who looks can give, and the present one.
func (c *ctx) roleOptions(present management.Role) (all []option) {
	hints := map[management.Role]string{
		management.Viewer: "Sees domains, connections and reports.", management.Operator: "Also changes domains and certificates.",
		management.Admin: "Also API keys, members and the audit log.", management.Owner: "Also the tenant itself.",
	}
	for _, r := range management.Roles {
		gives := true
		for _, s := range r.Scopes() {
			gives = gives && c.who.Scopes.Has(s)
		}
		if gives || r == present {
			all = append(all, option{Value: string(r), Text: string(r), Hint: hints[r]})
		}
	}
	return all
}

func inviteMember(c *ctx) error {
	invited, err := c.plane.CreateInvitation(c.ctx, c.who, c.value("email"), management.Role(c.value("role")))
	if err != nil {
		return atField(err, "/role")
	}
	link := c.absolute(invited.URL.Reveal())
	if link == "" {
		c.flash("ok", "The invitation is on its way to "+invited.Email+".")
		return c.redirect("/members")
	}
	return c.renderMembers(membersPage{Invited: invited, Link: link})
}

// absolute returns a link that can be handed over; Plane knows only a path where no public URL is set.
func (c *ctx) absolute(link string) string {
	u, err := url.Parse(link)
	if err != nil || link == "" || u.IsAbs() {
		return link
	}
	base := c.dash.opts.PublicURL
	if base == nil {
		base = &url.URL{Scheme: "https", Host: c.r.Host}
	}
	return base.ResolveReference(u).String()
}

func showWaiting(c *ctx) error {
	waiting, _, err := c.plane.FindInvitations(c.ctx, c.who, management.Page{Limit: 100})
	if err != nil {
		return err
	}
	for _, i := range waiting {
		if i.ID == c.param("id") {
			return c.render("invited", "Invitation of "+i.Email, i)
		}
	}
	return management.Errorf(management.NotFound, "There is no such invitation. It may have been accepted, or have ended.")
}

func revokeInvitation(c *ctx) error {
	if err := c.plane.DeleteInvitation(c.ctx, c.who, c.param("id")); err != nil {
		return err
	}
	c.flash("ok", "The invitation is revoked: its link is not good any more.")
	return c.redirect("/members")
}

// memberPage is the data of the page of one member.
type memberPage struct {
	*management.Member
	Self  bool
	Roles []option
}

func showMember(c *ctx) error {
	members, _, err := c.plane.FindMembers(c.ctx, c.who, management.Page{Limit: mostMembers})
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.UserID == c.param("user") {
			return c.render("member", m.Email, memberPage{m, m.UserID == c.who.UserID, c.roleOptions(m.Role)})
		}
	}
	return management.Errorf(management.NotFound, "There is no such member.")
}

func changeRole(c *ctx) error {
	role := management.Role(c.value("role"))
	member, err := c.plane.UpdateMember(c.ctx, c.who, c.param("user"), &role, c.match())
	if err != nil {
		return atField(err, "/role")
	}
	c.flash("ok", "The role is "+string(member.Role)+" now.")
	if member.UserID == c.who.UserID {
		return c.redirect("/settings") // which every role sees
	}
	return c.redirect("/members")
}

func removeMember(c *ctx) error {
	if err := c.plane.DeleteMember(c.ctx, c.who, c.param("user"), c.match()); err != nil {
		return err
	}
	if c.param("user") == c.who.UserID {
		c.setCookie(tenantCookie, "", -1)
		c.flash("ok", "You have left the tenant.")
		return c.seeOther("/settings")
	}
	c.flash("ok", "The member is removed. API keys that the member made are the tenant's and stay: look whether they should.")
	return c.redirect("/members")
}
