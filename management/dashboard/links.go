package dashboard

import "github.com/pqproxy/caddy-pqproxy/management"

// linkRoutes are the pages that links in mails lead to, and the one where a link is asked for.
func linkRoutes() []route {
	return []route{
		{method: "GET", path: "/signup", access: byAnybody, handle: showSignup},
		{method: "POST", path: "/signup", access: byAnybody, handle: signUp, again: showSignup},
		{method: "GET", path: "/verify", access: byAnybody, handle: showVerify},
		{method: "POST", path: "/verify", access: byAnybody, handle: verify, again: showVerify},
		{method: "GET", path: "/forgot", access: byAnybody, handle: showForgot},
		{method: "POST", path: "/forgot", access: byAnybody, handle: requestReset, again: showForgot},
		{method: "GET", path: "/reset", access: byAnybody, handle: showReset},
		{method: "POST", path: "/reset", access: byAnybody, handle: resetPassword, again: showReset},
		{method: "GET", path: "/invitation", access: byAnybody, handle: showInvitation},
		{method: "POST", path: "/invitation", access: byAnybody, handle: acceptInvitation, again: showInvitation},
	}
}

// linkPage is the data of pages that a link leads to.
type linkPage struct {
	Token    string // of the link, from the address to the form
	SignedIn bool
}

func (c *ctx) link() linkPage {
	token := c.query("token")
	if c.form != nil {
		token = c.value("token")
	}
	return linkPage{Token: token}
}

func showSignup(c *ctx) error {
	if !c.dash.opts.SignupOpen {
		return management.Errorf(management.NotFound, "Sign-up is closed: ask for an invitation.")
	}
	return c.render("signup", "Sign up", nil)
}

func signUp(c *ctx) error {
	account := management.NewAccount{Email: c.value("email"), Password: c.value("password"), Tenant: c.value("tenant")}
	if err := c.plane.SignUp(c.ctx, c.who, account); err != nil {
		return err
	}
	c.flash("ok", "Thank you. Look into your mailbox: a link there opens the account. Where this service sends no mail, sign in now.")
	return c.seeOther("/login")
}

func showVerify(c *ctx) error { return c.render("verify", "Confirm your address", c.link()) }

func verify(c *ctx) error {
	in, err := c.plane.VerifySignup(c.ctx, c.who, c.value("token"), c.value("password"))
	if err != nil {
		return err
	}
	return c.enter(in)
}

func showForgot(c *ctx) error { return c.render("forgot", "Forgotten password", nil) }

func requestReset(c *ctx) error {
	if err := c.plane.RequestPasswordReset(c.ctx, c.who, c.value("email")); err != nil {
		return err
	}
	c.flash("ok", "If the address has an account, a link is on its way to it. Where this service sends no mail, ask its operator for a link.")
	return c.seeOther("/login")
}

func showReset(c *ctx) error { return c.render("reset", "New password", c.link()) }

func resetPassword(c *ctx) error {
	if err := c.plane.ResetPassword(c.ctx, c.who, c.value("token"), c.value("password")); err != nil {
		return err
	}
	c.flash("ok", "The new password is set, and all sessions have ended. Sign in with it.")
	return c.seeOther("/login")
}

func showInvitation(c *ctx) error {
	page := c.link()
	page.SignedIn = c.me != nil || c.identify() == nil
	return c.render("invitation", "Invitation", page)
}

func acceptInvitation(c *ctx) error {
	signedIn := c.identify() == nil // whoever is signed in as the one who was invited need not say the password
	joined, err := c.plane.AcceptInvitation(c.ctx, c.who, c.value("token"), c.value("password"))
	if err != nil {
		return err
	}
	c.flash("ok", "You are a member of "+joined.Tenant.Name+" now.")
	if signedIn {
		c.setCookie(tenantCookie, joined.Tenant.ID, 0)
		return c.seeOther("/?" + tenantParam + "=" + joined.Tenant.ID)
	}
	return c.seeOther("/login")
}
