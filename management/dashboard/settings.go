package dashboard

import (
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

func settingsRoutes() []route {
	return []route{
		{method: "GET", path: "/settings", handle: showSettings},
		{method: "POST", path: "/settings/tenant", scope: management.All, handle: renameTenant, again: showSettings},
		{method: "POST", path: "/settings/leave", handle: leaveTenant, again: showSettings},
		{method: "POST", path: "/settings/tenant/delete", scope: management.All, handle: deleteTenant, again: showSettings},
	}
}

// showSettings shows the user's account and tenant. What it needs came with the session.
func showSettings(c *ctx) error { return c.render("settings", "Settings", nil) }

func renameTenant(c *ctx) error {
	name := c.value("name")
	if _, err := c.plane.RenameTenant(c.ctx, c.who, &name, c.match()); err != nil {
		return err
	}
	c.flash("ok", "The tenant has its new name.")
	return c.redirect("/settings")
}

// leaveTenant ends the user's own membership, whatever the role: /members is for those who may change others' too.
func leaveTenant(c *ctx) error {
	if err := c.plane.DeleteMember(c.ctx, c.who, c.who.UserID, ""); err != nil {
		return err
	}
	c.setCookie(tenantCookie, "", -1)
	c.flash("ok", "You have left the tenant.")
	return c.seeOther("/settings")
}

func deleteTenant(c *ctx) error {
	if err := c.plane.DeleteTenant(c.ctx, c.who, c.value("password"), ""); err != nil {
		return err
	}
	c.setCookie(tenantCookie, "", -1)
	c.flash("warn", "The tenant is deleted, and its domains are no longer served.")
	return c.seeOther("/")
}

// leave ends the session of somebody who is no user any more.
func (c *ctx) leave(told string) error {
	auth.ClearSession(c.w)
	c.session = ""
	c.flash("ok", told)
	return c.seeOther("/login")
}
