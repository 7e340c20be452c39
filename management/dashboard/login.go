package dashboard

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

func loginRoutes() []route {
	return []route{
		{method: "GET", path: "/login", access: byAnybody, handle: showLogin},
		{method: "POST", path: "/login", access: byAnybody, handle: logIn, again: showLogin, maxBody: 4 * defaultMaxForm}, // with a form that is carried
		{method: "GET", path: "/logout", access: byAnybody, handle: showLogout},
		{method: "POST", path: "/logout", access: byAnybody, handle: logOut},
	}
}

// loginPage is the data of the page to sign in.
type loginPage struct {
	Next   string // a page of ours
	Carry  string // a form that is sent again afterwards
	Ticket string // the password was right, and sealed: a one-time password is missing
	Email  string // with Ticket
}

func showLogin(c *ctx) error {
	page := loginPage{Next: c.dash.localPage(c.query("next"))}
	if c.form != nil {
		page.Next, page.Carry = c.dash.localPage(c.value("next")), c.value(carryField)
	} else if c.identify() == nil {
		return c.seeOther(page.Next)
	} else if required, err := c.plane.SetupRequired(c.ctx); err != nil {
		return err
	} else if required {
		return c.seeOther("/setup")
	}
	if c.refusal != nil && c.refusal.Code == management.TOTPRequired {
		email, password := c.credentials()
		page.Email, page.Ticket = email, c.dash.seal(ticket{email, password, c.now().Add(ticketLasts)})
		if c.value("totp") == "" {
			c.refusal, c.status = nil, 0 // it is the next step, and no fault
		}
		return c.render("login", "One-time password", page)
	}
	return c.render("login", "Sign in", page)
}

// credentials returns what was typed, now or in the step before.
func (c *ctx) credentials() (email, password string) {
	if t, ok := c.dash.open(c.value("_ticket")); ok && c.now().Before(t.Ends) {
		return t.Email, t.Password
	}
	return c.value("email"), c.value("password")
}

func logIn(c *ctx) error {
	email, password := c.credentials()
	in, err := c.plane.LogIn(c.ctx, c.who, management.Login{Email: email, Password: password, TOTP: c.value("totp")})
	if err != nil {
		return err
	}
	return c.enter(in)
}

// enter goes to where somebody wanted to go who has just signed in.
func (c *ctx) enter(in *management.SignedIn) error {
	token := in.Token.Reveal()
	c.signIn(token)
	if carry := c.value(carryField); carry != "" {
		return c.resume(carry, token)
	}
	return c.seeOther(c.dash.localPage(c.value("next")))
}

func showLogout(c *ctx) error { return c.render("logout", "Sign out", nil) }

// logOut ends the session. It is for anybody: one that has ended already is no reason to ask for a password.
func logOut(c *ctx) error {
	if token := cookieValue(c.r, auth.SessionCookie); token != "" {
		if err := c.plane.LogOut(c.ctx, c.who, token); err != nil {
			return err
		}
	}
	auth.ClearSession(c.w)
	c.session = ""
	if cookieValue(c.r, tenantCookie) != "" {
		c.setCookie(tenantCookie, "", -1)
	}
	c.flash("ok", "You are signed out.")
	return c.seeOther("/login")
}

// ticket is what was typed in the first of two steps. It travels in the page, sealed by this process: nothing is kept here, and after a
// restart the password is asked for again.
type ticket struct {
	Email    string    `json:"e"`
	Password string    `json:"p"`
	Ends     time.Time `json:"t"`
}

const ticketLasts = 5 * time.Minute

func (d *Dashboard) aead() cipher.AEAD {
	block, err := aes.NewCipher(d.secret[:])
	if err != nil {
		panic(err) // the key has the right length
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func (d *Dashboard) seal(t ticket) string {
	text, err := json.Marshal(t)
	if err != nil {
		return ""
	}
	// Padded, so that the page does not tell how long the password is.
	for len(text)%256 != 0 {
		text = append(text, ' ')
	}
	return base64.RawURLEncoding.EncodeToString(d.aead().Seal(nil, nil, text, []byte("login")))
}

func (d *Dashboard) open(sealed string) (t ticket, ok bool) {
	both, err := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil || sealed == "" {
		return t, false
	}
	text, err := d.aead().Open(nil, nil, both, []byte("login"))
	return t, err == nil && json.Unmarshal(text, &t) == nil
}
