package dashboard

import "github.com/pqproxy/caddy-pqproxy/management"

func setupRoutes() []route {
	return []route{
		{method: "GET", path: "/setup", access: byAnybody, handle: showSetup},
		{method: "POST", path: "/setup", access: byAnybody, handle: setUp, again: showSetup},
	}
}

func showSetup(c *ctx) error {
	required, err := c.plane.SetupRequired(c.ctx)
	if err != nil {
		return err
	}
	if !required {
		c.flash("warn", "The service was set up already: sign in.")
		return c.seeOther("/login")
	}
	return c.render("setup", "First run", nil)
}

// setUp makes the first account and signs it in.
func setUp(c *ctx) error {
	made, err := c.plane.SetUp(c.ctx, c.who, management.Setup{
		Token: c.value("setup_token"), Email: c.value("email"), Password: c.value("password"), Tenant: c.value("tenant"), APIKey: c.form.Has("api_key"),
	})
	if err != nil {
		return err
	}
	in, err := c.plane.LogIn(c.ctx, c.who, management.Login{Email: c.value("email"), Password: c.value("password")})
	if err != nil {
		c.dash.log.Warn("who set the service up could not be signed in", "request_id", c.who.RequestID, "error", err)
		if made.APIKey == nil {
			return c.seeOther("/login")
		}
	} else {
		c.signIn(in.Token.Reveal())
	}
	if made.APIKey != nil {
		return c.render("setup_done", "The service is set up", made.Secret.Reveal())
	}
	c.flash("ok", "The service is set up, and you are signed in.")
	return c.seeOther("/")
}
