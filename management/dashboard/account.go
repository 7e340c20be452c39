package dashboard

import (
	"html/template"
	"net/url"
)

// accountRoutes are what people do with their own account. The page is /settings.
func accountRoutes() []route {
	return []route{
		{method: "POST", path: "/settings/password", handle: changePassword, again: showSettings},
		{method: "GET", path: "/settings/totp", handle: showTOTP},
		{method: "POST", path: "/settings/totp", handle: beginTOTP, again: showSettings},
		{method: "POST", path: "/settings/totp/confirm", handle: confirmTOTP, again: showTOTP},
		{method: "POST", path: "/settings/totp/off", handle: endTOTP, again: showSettings},
		{method: "POST", path: "/settings/account/delete", handle: deleteAccount, again: showSettings},
	}
}

// changePassword ends all other sessions; this browser has a new one.
func changePassword(c *ctx) error {
	in, err := c.plane.ChangePassword(c.ctx, c.who, c.value("password"), c.value("new_password"))
	if err != nil {
		return err
	}
	c.signIn(in.Token.Reveal())
	c.flash("ok", "The password is changed. All other sessions of yours have ended.")
	return c.redirect("/settings")
}

// totpPage is the data of the page that turns one-time passwords on.
type totpPage struct {
	URI    template.URL  // told once, by the POST that made the secret; else empty
	QR     template.HTML // the URI as a picture; empty: it is too long for one
	Secret string
}

func showTOTP(c *ctx) error { return c.render("totp", "One-time passwords", totpPage{}) }

func beginTOTP(c *ctx) error {
	uri, err := c.plane.BeginTOTP(c.ctx, c.who, c.value("password"))
	if err != nil {
		return err
	}
	var page totpPage
	if u, err := url.Parse(uri); err == nil && u.Scheme == "otpauth" {
		page = totpPage{template.URL(u.String()), qrSVG(u.String()), u.Query().Get("secret")} //nolint:gosec // Plane made it, and the scheme is looked at
	}
	return c.render("totp", "One-time passwords", page)
}

func confirmTOTP(c *ctx) error {
	if err := c.plane.ConfirmTOTP(c.ctx, c.who, c.value("code")); err != nil {
		return err
	}
	c.flash("ok", "One-time passwords are on. From now on signing in takes a code of your app.")
	return c.redirect("/settings")
}

func endTOTP(c *ctx) error {
	if err := c.plane.EndTOTP(c.ctx, c.who, c.value("password")); err != nil {
		return err
	}
	c.flash("warn", "One-time passwords are off.")
	return c.redirect("/settings")
}

func deleteAccount(c *ctx) error {
	if err := c.plane.DeleteUser(c.ctx, c.who, c.value("password")); err != nil {
		return err
	}
	return c.leave("Your account is deleted.")
}
