package dashboard

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

const (
	tenantCookie = "__Host-pqproxy_tenant"
	tenantParam  = "tenant"  // of the query
	tenantField  = "_tenant" // of a form
)

// identify finds out who is signed in, and for which of their tenants.
func (c *ctx) identify() error {
	cookies := c.r.CookiesNamed(auth.SessionCookie)
	if len(cookies) != 1 {
		return errSignIn()
	}
	return c.identifyBy(cookies[0].Value)
}

func errSignIn() error { return management.Errorf(management.Unauthenticated, "Sign in first.") }

func (c *ctx) identifyBy(token string) error {
	if token == "" {
		return errSignIn()
	}
	tenant, named, err := c.namedTenant()
	if err != nil {
		return err
	}
	who, err := c.plane.PrincipalOfSession(c.ctx, token, tenant)
	if management.CodeOf(err) == management.NotFound && !named {
		who, err = c.plane.PrincipalOfSession(c.ctx, token, "") // the cookie is of a tenant that the user left
	}
	if err != nil {
		return err
	}
	who.ClientAddr, who.RequestID = c.who.ClientAddr, c.who.RequestID
	me, err := c.plane.Me(c.ctx, who)
	if err != nil {
		return err
	}
	c.who, c.me, c.session = who, me, token
	if len(me.Tenants) > 1 && who.TenantID != "" && cookieValue(c.r, tenantCookie) != who.TenantID {
		c.setCookie(tenantCookie, who.TenantID, int(auth.SessionLifetime.Seconds()))
	}
	return nil
}

// namedTenant returns the tenant that the request is for. A form and the query name it; else it is the one that was used last.
func (c *ctx) namedTenant() (id string, named bool, err error) {
	inForm, inQuery := c.form.Get(tenantField), c.asked.Get(tenantParam)
	if inForm != "" && inQuery != "" && inForm != inQuery {
		return "", false, management.Errorf(management.Malformed, "The form is of another tenant than the page.")
	}
	for _, id := range []string{inForm, inQuery} {
		if id == "" {
			continue
		}
		if !management.IsID(management.TenantID, id) {
			return "", false, management.Errorf(management.NotFound, "There is no such tenant.")
		}
		return id, true, nil
	}
	if id := cookieValue(c.r, tenantCookie); management.IsID(management.TenantID, id) {
		return id, false, nil
	}
	return "", false, nil
}

func cookieValue(r *http.Request, name string) string {
	if cookies := r.CookiesNamed(name); len(cookies) == 1 {
		return cookies[0].Value
	}
	return ""
}

// setCookie sets a cookie of ours; maxAge below 0 removes it.
func (c *ctx) setCookie(name, value string, maxAge int) {
	c.cookies = append(c.cookies, &http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: maxAge, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

// secretFields are names of fields, or of the last part of theirs, that are never written into a page, nor carried.
var secretFields = []string{"password", "new_password", "key_pem", "totp", "code", "token", "setup_token", "secret"}

func isSecret(field string) bool {
	field = field[strings.LastIndexByte(field, '.')+1:]
	for _, secret := range secretFields {
		if field == secret || strings.HasSuffix(field, "_"+secret) {
			return true
		}
	}
	return false
}

// hasKey reports whether a text has a private key in it: in a field that is no secret it was pasted by mistake.
func hasKey(text string) bool { return strings.Contains(text, "PRIVATE KEY-----") }

// carried is a form that waits for its sender to sign in again. It travels in the page to sign in.
type carried struct {
	Path string     `json:"path"`
	Form url.Values `json:"form"`
}

const carryField = "_carry"

// clean reports whether the form is one that readForm would take: it has been in the hands of the browser.
func (f *carried) clean() bool {
	fields := 0
	for name, values := range f.Form {
		fields += len(values)
		if !cleanField(name) || isSecret(name) || slices.ContainsFunc(values, func(v string) bool { return !cleanField(v) }) {
			return false
		}
	}
	return fields <= maxFields
}

// carryForm shows the page to sign in, with the form that was sent.
func (c *ctx) carryForm() error {
	form := url.Values{}
	for name, values := range c.form {
		if !isSecret(name) && !slices.ContainsFunc(values, hasKey) {
			form[name] = values
		}
	}
	text, err := json.Marshal(carried{c.r.URL.EscapedPath() + query(c.r.URL.RawQuery), form})
	if err != nil {
		return err
	}
	c.status = http.StatusUnauthorized
	return c.render("login", "Sign in again", loginPage{Carry: string(text)})
}

// resume sends a carried form, as whoever has just signed in. What it was stripped of is asked for by the form itself.
func (c *ctx) resume(text, token string) error {
	var sent carried
	if err := json.Unmarshal([]byte(text), &sent); err != nil || !sent.clean() {
		return c.redirect("/")
	}
	u, err := url.Parse(sent.Path)
	if err != nil || u.Scheme != "" || u.Host != "" || !strings.HasPrefix(sent.Path, "/") || !clean(sent.Path) {
		return c.redirect("/")
	}
	found, path := c.dash.match(u.EscapedPath())
	for _, rt := range found {
		if rt.method != http.MethodPost || rt.access != byUser {
			continue
		}
		asked, err := url.ParseQuery(u.RawQuery)
		if err != nil {
			return c.redirect("/")
		}
		r := c.r.Clone(c.ctx)
		r.URL, r.RequestURI = u, u.RequestURI()
		again := &ctx{ctx: c.ctx, dash: c.dash, plane: c.plane, who: c.who, w: c.w, r: r, route: rt, path: path, asked: asked, form: sent.Form}
		if again.form == nil {
			again.form = url.Values{}
		}
		// The request that signs in has no session's cookie, or one that has ended: the new one is what counts.
		r.Header.Del("Cookie")
		r.AddCookie(&http.Cookie{Name: auth.SessionCookie, Value: token})
		if tenant := cookieValue(c.r, tenantCookie); tenant != "" {
			r.AddCookie(&http.Cookie{Name: tenantCookie, Value: tenant})
		}
		if err := again.run(); err != nil {
			again.out = nil
			again.fail(err)
		}
		c.out, c.told, c.cookies = again.out, again.told, append(c.cookies, again.cookies...)
		c.session = token
		return nil
	}
	return c.redirect("/")
}
