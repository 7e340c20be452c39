package dashboard

import (
	"encoding/base64"
	"errors"
	"html/template"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// thing is what the pages of these tests edit.
type thing struct {
	mu      sync.Mutex
	name    string
	mode    string
	on      bool
	version int64
	made    atomic.Int64
	hold    chan struct{} // where not nil, making waits for it
	began   chan struct{}
}

const thingPage = `{{define "main"}}
{{$f := $.Form "edit" "/things/1" "version" .Data.Version}}
{{template "form" $f}}
{{template "field" ($f.Text "name" "The name" "value" .Data.Name "required" true "hint" "of it")}}
{{template "field" ($f.Select "mode" "Mode" "value" .Data.Mode "options" (options "a" "Mode A" "b" "Mode B"))}}
{{template "field" ($f.Check "on" "On" "checked" .Data.On)}}
{{template "field" ($f.Password "password" "Password")}}
<button type="submit">Save</button>
{{template "end" $f}}
{{$g := $.Form "make" "/things"}}
{{template "form" $g}}
{{template "field" ($g.Text "rows.0.dial" "First")}}
{{template "field" ($g.Text "rows.1.dial" "Second")}}
<button type="submit">Make</button>
{{template "end" $g}}
{{template "part-thing" .}}
{{end}}
{{define "part-thing"}}<p id="part">{{.Data.Name}}</p>
<p>{{.Data.Version}}</p>{{end}}`

type thingData struct {
	Name, Mode string
	On         bool
	Version    int64
}

func (th *thing) data(*ctx) (any, error) {
	th.mu.Lock()
	defer th.mu.Unlock()
	return thingData{th.name, th.mode, th.on, th.version}, nil
}

func (th *thing) show(c *ctx) error {
	data, err := th.data(c)
	if err != nil {
		return err
	}
	return c.render("thing", "Thing", data)
}

func (th *thing) edit(c *ctx) error {
	th.mu.Lock()
	defer th.mu.Unlock()
	switch name := c.value("name"); {
	case name == "boom":
		return errors.New("disk on fire at /secret/place")
	case name == "panic":
		panic("secret " + name)
	case string(c.match()) != management.ETag(th.version):
		return management.Errorf(management.PreconditionFailed, "Somebody else changed this.")
	case name == "":
		return management.InvalidField("/name", "must not be empty, %s", hostile)
	default:
		th.name, th.mode, th.on = name, c.value("mode"), c.form.Has("on")
	}
	th.version++
	c.flash("ok", "Saved "+th.name+".")
	return c.redirect("/things/1")
}

func (th *thing) create(c *ctx) error {
	if th.began != nil {
		th.began <- struct{}{}
		<-th.hold
	}
	th.made.Add(1)
	c.flash("ok", "Made.")
	return c.redirect("/things/1")
}

// newThings returns a site with pages for a thing, and the thing.
func newThings(t *testing.T) (*site, *thing) {
	t.Helper()
	th := &thing{name: "one", mode: "a", version: 7}
	routes := append(table(),
		route{method: "GET", path: "/things/{id}", scope: management.DomainsRead, handle: th.show},
		route{method: "POST", path: "/things/{id}", scope: management.DomainsWrite, handle: th.edit, again: th.show},
		route{method: "POST", path: "/things", scope: management.DomainsWrite, handle: th.create, again: th.show},
		route{method: "POST", path: "/things/1/secret", handle: func(c *ctx) error { th.made.Add(1); return c.render("setup_done", "Secret", "once only") }},
		route{method: "GET", path: "/things/1/platform", scope: management.Platform, handle: th.show},
		route{method: "GET", path: "/things/1/live", endless: true, scope: management.DomainsRead, handle: live("thing", "part-thing", time.Second, th.data)},
	)
	s := newBareSite(t, Options{}, routes)
	base := template.Must(template.New("").Funcs(functions).ParseFS(templateFiles, "templates/*.html"))
	s.pages["thing"] = &pageTemplate{template.Must(base.Parse(thingPage))}
	s.setUp()
	return s, th
}

func TestFirstRun(t *testing.T) {
	s := newBareSite(t, Options{}, nil)
	b := s.browser()
	for _, path := range []string{"/settings", "/login", "/settings/totp"} {
		b.get(path).leadsTo("/setup")
	}
	page := b.get("/setup")
	bad := b.submit(page, "setup", url.Values{"setup_token": {"wrong"}, "email": {"me@example.com"}, "password": {testPassword}, "tenant": {"Mine"}, "api_key": {"true"}})
	bad.want(http.StatusForbidden, "set-up token is wrong")
	if _, typed := bad.form("setup"); typed.Get("email") != "me@example.com" || typed.Get("tenant") != "Mine" || !typed.Has("api_key") {
		t.Errorf("what was typed is lost: %v", typed)
	}
	check(t, s, bad)

	bad = b.submit(page, "setup", url.Values{"setup_token": {testToken}, "email": {"nobody"}, "password": {"short"}, "tenant": {""}})
	bad.want(http.StatusUnprocessableEntity, "Something has to be put right", "E-mail address", "too short", "1 to 128 characters")
	for _, field := range []string{"email", "password", "tenant"} {
		input := bad.find(func(n *html.Node) bool { return attr(n, "id") == "f-setup-"+field })
		if attr(input, "aria-invalid") != "true" || !strings.Contains(attr(input, "aria-describedby"), attr(input, "id")+"-error") {
			t.Errorf("the field %s is not marked: %v", field, input.Attr)
		}
		if bad.find(func(n *html.Node) bool { return n.Data == "a" && attr(n, "href") == "#"+attr(input, "id") }) == nil {
			t.Errorf("the summary does not lead to %s", field)
		}
	}
	if title := textOf(bad.find(func(n *html.Node) bool { return n.Data == "title" })); !strings.HasPrefix(title, "Error: ") {
		t.Errorf("the title is %q", title)
	}
	check(t, s, bad)

	done := b.submit(page, "setup", url.Values{"setup_token": {testToken}, "email": {"me@example.com"}, "password": {testPassword}, "tenant": {hostile}, "api_key": {"true"}})
	done.want(http.StatusOK, "pqk_", "shown once")
	button := done.find(func(n *html.Node) bool { return has(n, "data-copy") })
	if !strings.HasPrefix(attr(button, "data-copy"), "pqk_") {
		t.Errorf("the key cannot be copied: %v", button)
	}
	b.get("/settings").want(http.StatusOK, "me@example.com", hostile)
	s.browser().get("/setup").leadsTo("/login")
	again := s.browser().post("/setup", url.Values{"setup_token": {testToken}, "email": {"x@example.com"}, "password": {testPassword}, "tenant": {"X"}})
	again.leadsTo("/login")
}

func TestLogIn(t *testing.T) {
	s := newSite(t)
	b := s.browser()
	b.get("/settings").leadsTo("/login?next=%2Fsettings")
	page := b.get("/login?next=%2Fsettings")
	bad := b.submit(page, "login", url.Values{"email": {testEmail}, "password": {"wrong password"}})
	bad.want(http.StatusUnauthorized, "e-mail address or the password is wrong")
	if _, typed := bad.form("login"); typed.Get("email") != testEmail || typed.Get("password") != "" || typed.Get("next") != "/settings" {
		t.Errorf("the form has %v", typed)
	}
	before := b.cookies[auth.SessionCookie]
	b.submit(bad, "login", url.Values{"password": {testPassword}}).leadsTo("/settings")
	if before != nil || b.cookies[auth.SessionCookie] == nil {
		t.Error("the session did not begin with the password")
	}
	b.get("/settings").want(http.StatusOK, testEmail)
	b.get("/login?next=%2Fsettings%2Ftotp").leadsTo("/settings/totp") // signed in already

	token := b.cookies[auth.SessionCookie].Value
	out := b.submit(b.get("/logout"), "logout", nil)
	out.leadsTo("/login")
	if b.cookies[auth.SessionCookie] != nil {
		t.Error("the cookie is left")
	}
	b.follow(out).want(http.StatusOK, "You are signed out.")
	b.cookies[auth.SessionCookie] = &http.Cookie{Name: auth.SessionCookie, Value: token}
	b.get("/settings").leadsTo("/login?next=%2Fsettings") // it has ended for the service too
}

// TestLogInThrottled wants guesses refused with a page that says when to come back.
func TestLogInThrottled(t *testing.T) {
	s := newSite(t)
	b := s.browser()
	var got *seen
	for range auth.LoginsPerAccount + 1 {
		got = b.post("/login", url.Values{"email": {"victim@example.com"}, "password": {"guess guess guess"}})
	}
	got.want(http.StatusTooManyRequests, "Too many tries")
}

func TestOneTimePasswords(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	settings := b.get("/settings")
	b.submit(settings, "totp", url.Values{"password": {"not mine at all"}}).want(http.StatusUnprocessableEntity, "is not your password")
	shown := b.submit(settings, "totp", url.Values{"password": {testPassword}})
	shown.want(http.StatusOK, "Open it in an app")
	secret := totpSecret(t, attr(shown.find(func(n *html.Node) bool { return has(n, "data-copy") }), "data-copy"))
	if href := attr(shown.find(func(n *html.Node) bool { return strings.HasPrefix(attr(n, "href"), "otpauth:") }), "href"); href == "" {
		t.Error("html/template did not let the otpauth link through")
	}
	wrong := b.submit(shown, "confirm", url.Values{"code": {"000000"}})
	wrong.want(http.StatusUnprocessableEntity, "is not what the app shows now")
	if strings.Contains(wrong.body, "otpauth") || strings.Contains(wrong.body, `value="000000"`) {
		t.Error("the page tells the secret twice, or the code")
	}
	done := b.submit(wrong, "confirm", url.Values{"code": {code(t, secret, s.now())}})
	b.follow(done.leadsTo("/settings")).want(http.StatusOK, "One-time passwords are on")
	s.pass(time.Minute)

	fresh := s.browser()
	asks := fresh.submit(fresh.get("/login?next=/settings"), "login", url.Values{"email": {testEmail}, "password": {testPassword}})
	asks.want(http.StatusOK, "six digits")
	check(t, s, asks)
	if asks.find(func(n *html.Node) bool { return attr(n, "type") == "password" }) != nil {
		t.Error("the password is asked for twice")
	}
	again := fresh.submit(asks, "login", url.Values{"totp": {"12 34"}})
	again.want(http.StatusUnauthorized, "One-time password needed")
	check(t, s, again)
	fresh.submit(again, "login", url.Values{"totp": {code(t, secret, s.now())}}).leadsTo("/settings")

	// A ticket of another process, or of too long ago, asks for the password again.
	late := s.browser()
	asks = late.submit(late.get("/login"), "login", url.Values{"email": {testEmail}, "password": {testPassword}})
	s.pass(ticketLasts + time.Second)
	late.submit(asks, "login", url.Values{"totp": {code(t, secret, s.now())}}).want(http.StatusUnauthorized)
	late.post("/login", url.Values{"_ticket": {base64.RawURLEncoding.EncodeToString(make([]byte, 300))}, "totp": {"123456"}}).want(http.StatusUnauthorized)

	off := fresh.submit(fresh.get("/settings"), "totp_off", url.Values{"password": {testPassword}})
	fresh.follow(off).want(http.StatusOK, "One-time passwords are off.")
}

func TestChangePassword(t *testing.T) {
	s := newSite(t)
	b, other := s.signedIn(), s.signedIn()
	page := b.get("/settings")
	b.submit(page, "password", url.Values{"password": {testPassword}, "new_password": {"short"}}).want(http.StatusUnprocessableEntity, "too short")
	old := b.cookies[auth.SessionCookie].Value
	done := b.submit(page, "password", url.Values{"password": {testPassword}, "new_password": {"an entirely new one"}})
	b.follow(done.leadsTo("/settings")).want(http.StatusOK, "The password is changed.")
	if b.cookies[auth.SessionCookie].Value == old {
		t.Error("the session is the same")
	}
	other.get("/settings").leadsTo("/login?next=%2Fsettings")
}

// TestLocalPage is the table of open redirects.
func TestLocalPage(t *testing.T) {
	s := newSite(t)
	for next, want := range map[string]string{
		"/settings": "/settings", "/settings?a=b&c=%2F%2Fevil": "/settings?a=b&c=%2F%2Fevil", "/settings/totp": "/settings/totp",
		"": "/", "settings": "/", "//evil.example": "/", "///evil.example": "/", `/\evil.example`: "/", `\\evil.example`: "/", "https://evil.example/settings": "/",
		"javascript:alert(1)": "/", "/\tsettings": "/", "/settings\r\nX: y": "/", "/%2f/evil.example": "/", "//evil.example/settings": "/", "/%5cevil.example": "/",
		"/nothing": "/", "/login?next=/login": "/", "/logout": "/", "https:/settings": "/", "/settings#frag": "/settings", " /settings": "/", "/.//evil.example": "/",
		"/settings/..//evil.example": "/", "/v1/me": "/", "/" + strings.Repeat("a", 5000): "/",
	} {
		if got := s.localPage(next); got != want {
			t.Errorf("localPage(%q) = %q, want %q", next, got, want)
		}
		b := s.browser()
		got := b.post("/login", url.Values{"email": {testEmail}, "password": {testPassword}, "next": {next}})
		if to := got.header.Get("Location"); to != want {
			t.Errorf("signing in with next=%q leads to %q", next, to)
		}
		s.pass(time.Minute) // for the limit on tries
	}
}

func FuzzLocalPage(f *testing.F) {
	d := &Dashboard{routes: table()}
	for _, seed := range []string{"/settings", "//x", `/\x`, "/settings?x=//y", "/%2e%2e//x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, next string) {
		got := d.localPage(next)
		u, err := url.Parse(got)
		if err != nil || u.IsAbs() || u.Host != "" || !strings.HasPrefix(got, "/") || strings.HasPrefix(got, "//") || strings.ContainsAny(got, "\\\r\n\t") {
			t.Errorf("localPage(%q) = %q", next, got)
		}
	})
}

// TestCrossOrigin sends every form of the dashboard from another site.
func TestCrossOrigin(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	sent := 0
	for _, rt := range s.routes {
		if rt.method != "POST" {
			continue
		}
		sent++
		path := strings.NewReplacer("{id}", "dom_x", "{user}", "usr_x").Replace(rt.path)
		for name, header := range map[string]http.Header{
			"cross-site": {"Sec-Fetch-Site": {"cross-site"}}, "same-site": {"Sec-Fetch-Site": {"same-site"}},
			"origin": {"Sec-Fetch-Site": {}, "Origin": {"https://evil.example"}}, "null": {"Sec-Fetch-Site": {}, "Origin": {"null"}},
		} {
			for who, from := range map[string]*browser{"signed in": b, "stranger": s.browser()} {
				if got := from.do("POST", path, url.Values{"a": {"b"}}, header); got.status != http.StatusForbidden || !strings.Contains(got.body, "another site") {
					t.Errorf("%s %s, %s: %d", path, name, who, got.status)
				}
			}
		}
	}
	if sent < 10 {
		t.Errorf("only %d forms", sent)
	}
	b.get("/settings").want(http.StatusOK)
}

func TestRefusals(t *testing.T) {
	s, _ := newThings(t)
	b := s.signedIn()
	b.get("/nothing").want(http.StatusNotFound, "There is no such page.")
	s.browser().get("/nothing").want(http.StatusNotFound)
	wrong := b.post("/settings", url.Values{})
	wrong.want(http.StatusMethodNotAllowed)
	if wrong.header.Get("Allow") != "GET" {
		t.Errorf("Allow: %q", wrong.header.Get("Allow"))
	}
	b.do("PUT", "/settings", nil, nil).want(http.StatusMethodNotAllowed)
	b.get("/settings/").leadsTo("/settings")
	if got := b.get("//evil.example/"); got.status != http.StatusNotFound {
		t.Errorf("//evil.example/ is %d to %q", got.status, got.header.Get("Location"))
	}
	b.get("/settings?x=%ff").want(http.StatusBadRequest)
	b.get("/settings?x=%00").want(http.StatusBadRequest)
	b.get("/settings?" + strings.Repeat("x", maxQuery+1)).want(http.StatusRequestEntityTooLarge)
	b.post("/settings/tenant", url.Values{"name": {"a\x00b"}}).want(http.StatusBadRequest)
	b.post("/settings/tenant", url.Values{"name": {strings.Repeat("x", defaultMaxForm)}}).want(http.StatusRequestEntityTooLarge)
	b.do("POST", "/settings/tenant", url.Values{}, http.Header{"Content-Type": {"application/json"}}).want(http.StatusUnsupportedMediaType)
	b.do("HEAD", "/settings", nil, nil).mustBe(http.StatusOK, "")
	for _, page := range []*seen{b.get("/nothing"), b.get("/settings?x=%ff"), b.post("/settings", nil)} {
		check(t, s, page)
	}

	boom := b.post("/things/1", url.Values{"name": {"boom"}, "_form": {"edit"}})
	boom.want(http.StatusInternalServerError, "tell the operator the ID req_")
	panicked := b.post("/things/1", url.Values{"name": {"panic"}, "_form": {"edit"}})
	panicked.want(http.StatusInternalServerError, "tell the operator the ID req_")
	for _, page := range []*seen{boom, panicked} {
		if strings.Contains(page.body, "secret") {
			t.Error("a page tells what went wrong inside")
		}
		if id := page.header.Get("X-Request-Id"); !strings.Contains(page.body, id) || !strings.Contains(s.log.String(), id) {
			t.Errorf("the ID %s is not in page and log", id)
		}
	}
	if !strings.Contains(s.log.String(), "disk on fire") {
		t.Error("the log does not say what went wrong")
	}
	if _, typed := boom.form("edit"); typed.Get("name") != "boom" {
		t.Error("what was typed is lost")
	}
}

// mustBe is want for what is no page.
func (p *seen) mustBe(status int, body string) {
	p.t.Helper()
	if p.status != status || p.body != body {
		p.t.Errorf("%s: %d %q, want %d %q", p.path, p.status, p.body, status, body)
	}
}

// TestScopes wants a page refused, and its entry of the navigation left out, for whoever may not see it.
func TestScopes(t *testing.T) {
	s, _ := newThings(t)
	invited, err := s.plane.CreateInvitation(t.Context(), s.root, "viewer@example.com", management.Viewer)
	if err != nil {
		t.Fatal(err)
	}
	link, err := url.Parse(invited.URL.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	b := s.browser()
	done := b.submit(b.get(link.RequestURI()), "invitation", url.Values{"password": {"password of a viewer"}})
	b.follow(done.leadsTo("/login")).want(http.StatusOK, "You are a member of "+hostile)
	b.get(link.RequestURI()).want(http.StatusOK)
	b.submit(b.get(link.RequestURI()), "invitation", url.Values{"password": {"password of a viewer"}}).want(http.StatusNotFound, "This link is not good")

	b.logIn("viewer@example.com", "password of a viewer")
	b.get("/things/1").want(http.StatusOK)
	b.get("/things/1/platform").want(http.StatusForbidden, "platform:*")
	b.post("/things/1", url.Values{"name": {"x"}}).want(http.StatusForbidden, "domains:write")
	b.post("/settings/tenant", url.Values{"name": {"x"}}).want(http.StatusForbidden)
	settings := b.get("/settings")
	if settings.find(func(n *html.Node) bool { return attr(n, "id") == "form-tenant" }) != nil {
		t.Error("a viewer is shown how to rename the tenant")
	}
	for _, e := range []string{"/keys", "/members", "/audit", "/edges", "/tenants"} {
		if settings.find(func(n *html.Node) bool { return attr(n, "href") == e }) != nil {
			t.Errorf("a viewer is shown %s", e)
		}
	}
	s.browser().get("/things/1/platform").leadsTo("/login?next=%2Fthings%2F1%2Fplatform")
}

// TestTwoEditors has two people change one thing from the same page.
func TestTwoEditors(t *testing.T) {
	s, th := newThings(t)
	b := s.signedIn()
	first, second := b.get("/things/1"), b.get("/things/1")
	b.submit(first, "edit", url.Values{"name": {"first's"}, "on": {"true"}}).leadsTo("/things/1")
	told := b.submit(second, "edit", url.Values{"name": {"second's"}, "mode": {"b"}, "password": {"typed in vain"}})
	told.want(http.StatusPreconditionFailed, "Somebody else changed this", "Now it is first's", "Now it is Mode A", "Now it is on")
	check(t, s, told)
	_, typed := told.form("edit")
	if typed.Get("name") != "second's" || typed.Get("mode") != "b" || typed.Has("on") || typed.Get("_version") != "8" || strings.Contains(told.body, "typed in vain") {
		t.Errorf("the form has %v", typed)
	}
	if th.name != "first's" {
		t.Fatalf("it was overwritten: %s", th.name)
	}
	b.follow(b.submit(told, "edit", nil)).want(http.StatusOK, "Saved second's.")
	if th.name != "second's" || th.mode != "b" || th.on {
		t.Errorf("overwriting knowingly made %+v", th.name)
	}
}

func TestFaults(t *testing.T) {
	s, _ := newThings(t)
	b := s.signedIn()
	bad := b.submit(b.get("/things/1"), "edit", url.Values{"name": {""}, "mode": {"b"}})
	bad.want(http.StatusUnprocessableEntity, "The name: must not be empty, "+hostile)
	check(t, s, bad)
	if _, typed := bad.form("edit"); typed.Get("mode") != "b" {
		t.Error("what was typed is lost")
	}
	other := bad.find(func(n *html.Node) bool { return attr(n, "id") == "form-make" })
	for n := range other.Descendants() {
		if attr(n, "aria-invalid") != "" || strings.Contains(attr(n, "class"), "summary") {
			t.Error("the fault is shown at another form")
		}
	}
	hostileBack := b.submit(bad, "edit", url.Values{"name": {""}, "mode": {hostile}, "_form": {"edit"}})
	check(t, s, hostileBack)
}

// TestFlash wants a sentence said once, and to nobody else.
func TestFlash(t *testing.T) {
	s, _ := newThings(t)
	b := s.signedIn()
	b.submit(b.get("/things/1"), "edit", url.Values{"name": {hostile}}).leadsTo("/things/1")
	kept := b.cookies[flashCookie]
	if kept == nil || strings.Contains(kept.Value, "script") {
		t.Fatalf("the cookie is %v", kept)
	}
	b.do("HEAD", "/things/1", nil, nil) // a look ahead does not use it up
	page := b.get("/things/1").want(http.StatusOK, "Saved "+hostile)
	check(t, s, page)
	if strings.Contains(b.get("/things/1").text(), "Saved") {
		t.Error("it is said twice")
	}
	other := s.signedIn()
	other.cookies[flashCookie] = kept
	if strings.Contains(other.get("/things/1").text(), "Saved") {
		t.Error("it is said in another session")
	}
	raw, _ := base64.RawURLEncoding.DecodeString(kept.Value)
	raw[len(raw)-3] ^= 1
	b.cookies[flashCookie] = &http.Cookie{Name: flashCookie, Value: base64.RawURLEncoding.EncodeToString(raw)}
	if strings.Contains(b.get("/things/1").text(), "Saved") {
		t.Error("a changed cookie is believed")
	}
}

// TestSubmitTwice has one form sent twice at once, again later, and with other content.
func TestSubmitTwice(t *testing.T) {
	s, th := newThings(t)
	b := s.signedIn()
	page := b.get("/things/1")
	th.began, th.hold = make(chan struct{}, 1), make(chan struct{})
	answers := make(chan *seen, 2)
	_, fields := page.form("make")
	send := func() {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "https://console.example.com/things", strings.NewReader(fields.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		r.AddCookie(&http.Cookie{Name: auth.SessionCookie, Value: b.cookies[auth.SessionCookie].Value})
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		answers <- &seen{t: t, path: "/things", status: w.Code, header: w.Header()}
	}
	go send()
	<-th.began // the first is being worked on
	go send()
	close(th.hold)
	for range 2 {
		(<-answers).leadsTo("/things/1")
	}
	th.began = nil
	b.follow(b.post("/things", fields)).want(http.StatusOK, "Made.")
	if n := th.made.Load(); n != 1 {
		t.Fatalf("one form made %d things", n)
	}
	b.submit(page, "make", url.Values{"rows.0.dial": {"changed after going back"}}).leadsTo("/things/1")
	if n := th.made.Load(); n != 2 {
		t.Errorf("a changed form made %d things in all", n)
	}

	// What is told once is not told again, and not done again.
	secret := url.Values{"_once": {"abc"}}
	b.post("/things/1/secret", secret).want(http.StatusOK, "once only")
	again := b.post("/things/1/secret", secret)
	b.follow(again).want(http.StatusOK, "This was done already")
	if n := th.made.Load(); n != 3 {
		t.Errorf("%d things in all", n)
	}
}

// TestSessionEndsInForm has a session end between page and form.
func TestSessionEndsInForm(t *testing.T) {
	s, th := newThings(t)
	b := s.signedIn()
	page := b.get("/things/1")
	s.pass(management.SessionIdle + time.Second)
	asks := b.submit(page, "edit", url.Values{"name": {"typed " + hostile}, "mode": {"b"}, "password": {"not to be carried"}})
	asks.want(http.StatusUnauthorized, "Nothing that you typed is lost")
	check(t, s, asks)
	if strings.Contains(asks.body, "not to be carried") {
		t.Error("the page carries a password")
	}
	if b.cookies[auth.SessionCookie] != nil {
		t.Error("the cookie of a session that ended is left")
	}
	wrong := b.submit(asks, "login", url.Values{"email": {testEmail}, "password": {"wrong wrong wrong"}})
	wrong.want(http.StatusUnauthorized, "Nothing that you typed is lost")
	done := b.submit(wrong, "login", url.Values{"password": {testPassword}})
	b.follow(done.leadsTo("/things/1")).want(http.StatusOK, "Saved typed")
	if th.name != "typed "+hostile || th.mode != "b" {
		t.Errorf("what arrived is %q, %q", th.name, th.mode)
	}

	// With a fault, the form comes back, signed in.
	page = b.get("/things/1")
	s.pass(management.SessionIdle + time.Second)
	asks = b.submit(page, "edit", url.Values{"name": {""}, "mode": {"a"}})
	back := b.submit(asks, "login", url.Values{"email": {testEmail}, "password": {testPassword}})
	back.want(http.StatusUnprocessableEntity, "must not be empty")
	check(t, s, back)
	b.submit(back, "edit", url.Values{"name": {"fine"}}).leadsTo("/things/1")

	for _, carry := range []string{"{", `{"path":"https://evil.example/","form":{}}`, `{"path":"//evil.example","form":null}`, `{"path":"/login","form":{}}`, `{"path":"/nothing","form":{}}`, `null`,
		`{"path":"/things","form":{"a":["\u0000"]}}`, `{"path":"/things","form":{"password":["x"]}}`} {
		s.pass(time.Minute)
		s.browser().post("/login", url.Values{"email": {testEmail}, "password": {testPassword}, "_carry": {carry}}).leadsTo("/")
	}
}

// TestTenants has an owner of two tenants look at one in each window.
func TestTenants(t *testing.T) {
	s, th := newThings(t)
	second, _, err := s.plane.CreateTenant(t.Context(), s.root, management.NewTenant{Name: "Second " + hostile})
	if err != nil {
		t.Fatal(err)
	}
	first := s.made.Tenant.ID
	b := s.signedIn()
	one := b.get("/things/1?tenant=" + first)
	two := b.get("/things/1?tenant=" + second.ID)
	for tenant, page := range map[string]*seen{first: one, second.ID: two} {
		page.want(http.StatusOK)
		check(t, s, page)
		if _, fields := page.form("edit"); fields.Get("_tenant") != tenant {
			t.Errorf("the form is of %q, want %q", fields.Get("_tenant"), tenant)
		}
		for _, n := range page.all(func(n *html.Node) bool { return n.Data == "a" && strings.HasPrefix(attr(n, "href"), "/") }) {
			if !strings.Contains(attr(n, "href"), "tenant=ten_") {
				t.Errorf("the link %s is of any tenant", attr(n, "href"))
			}
		}
	}
	if !strings.Contains(b.get("/settings").text(), "Second") {
		t.Error("the tenant used last is not the one that a bare link shows")
	}
	// The form of the first window is of the first tenant, though the second was looked at last.
	b.submit(one, "edit", url.Values{"name": {"of the first"}}).leadsTo("/things/1?tenant=" + first)
	if th.name != "of the first" {
		t.Error(th.name)
	}
	_, mixed := one.form("edit")
	b.post("/things/1?tenant="+second.ID, mixed).want(http.StatusBadRequest)
	b.get("/settings?tenant="+management.NewID(management.TenantID)).want(http.StatusNotFound, "no such tenant")
	b.get("/settings?tenant=x").want(http.StatusNotFound)
	b.cookies[tenantCookie] = &http.Cookie{Name: tenantCookie, Value: management.NewID(management.TenantID)} // of a tenant that was left
	b.get("/settings").want(http.StatusOK)
	for _, path := range openPages {
		page := b.get(path + map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")] + "tenant=" + second.ID)
		if page.status != http.StatusOK {
			continue
		}
		for _, n := range page.all(func(n *html.Node) bool { return n.Data == "a" && strings.HasPrefix(attr(n, "href"), "/") }) {
			if page.find(func(n *html.Node) bool { return n.Data == "nav" }) != nil && !strings.Contains(attr(n, "href"), "tenant=ten_") {
				t.Errorf("%s: the link %s is of any tenant", path, attr(n, "href"))
			}
		}
	}
}

// TestRateLimit wants bounds for users and for strangers, apart.
func TestRateLimit(t *testing.T) {
	s := newBareSite(t, Options{RateLimit: 2}, nil)
	s.setUp()
	stranger := s.browser()
	var got *seen
	for range 5 {
		got = stranger.get("/forgot")
	}
	got.want(http.StatusTooManyRequests)
	if got.header.Get("Retry-After") == "" {
		t.Error("it does not say when to come back")
	}
	other := s.browser()
	other.address = "192.0.2.77:1"
	other.logIn(testEmail, testPassword)
	for range 5 {
		got = other.get("/settings")
	}
	got.want(http.StatusTooManyRequests)
	for u := range s.static.byURL {
		if got := stranger.get(u); got.status != http.StatusOK {
			t.Errorf("%s: %d", u, got.status)
		}
	}
}

func TestStatic(t *testing.T) {
	s := newBareSite(t, Options{}, nil)
	b := s.browser()
	for u, f := range s.static.byURL {
		got := b.get(u)
		if got.status != http.StatusOK || got.body != string(f.plain) || got.header.Get("Cache-Control") != "public, max-age=31536000, immutable" ||
			got.header.Get("Content-Type") != f.kind || got.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d %v", u, got.status, got.header)
		}
		packed := b.do("GET", u, nil, http.Header{"Accept-Encoding": {"br, gzip;q=0.5"}})
		if f.gzip != nil && (packed.header.Get("Content-Encoding") != "gzip" || len(packed.body) >= len(f.plain)) {
			t.Errorf("%s does not come as gzip", u)
		}
		if refused := b.do("GET", u, nil, http.Header{"Accept-Encoding": {"gzip;q=0"}}); refused.header.Get("Content-Encoding") != "" {
			t.Errorf("%s comes as gzip to who refuses it", u)
		}
	}
	for _, path := range []string{"/static/", "/static/style.css", "/static/../doc.go", "/static/x.js"} {
		if got := b.get(path); got.status != http.StatusNotFound {
			t.Errorf("%s: %d", path, got.status)
		}
	}
	if got := b.do("DELETE", s.static.urls["app.js"], nil, nil); got.status != http.StatusMethodNotAllowed {
		t.Error(got.status)
	}
}

func TestLinks(t *testing.T) {
	s := newSite(t)
	b := s.browser()
	b.follow(b.submit(b.get("/signup"), "signup", url.Values{"email": {"new@example.com"}, "password": {"twelve characters"}, "tenant": {"New"}})).want(http.StatusOK, "Thank you.")
	b.logIn("new@example.com", "twelve characters")
	b.get("/settings").want(http.StatusOK, "new@example.com", "owner")
	b.follow(b.submit(b.get("/forgot"), "forgot", url.Values{"email": {"new@example.com"}}))
	b.submit(b.get("/verify?token=x"), "verify", url.Values{"password": {"x"}}).want(http.StatusNotFound, "This link is not good")

	made, err := s.plane.PasswordResetLink(t.Context(), "new@example.com")
	if err != nil {
		t.Fatal(err)
	}
	page := b.get(made)
	bad := b.submit(page, "reset", url.Values{"password": {"short"}})
	bad.want(http.StatusUnprocessableEntity, "too short")
	fresh := s.browser()
	done := fresh.submit(bad, "reset", url.Values{"password": {"another twelve characters"}})
	fresh.follow(done.leadsTo("/login")).want(http.StatusOK, "The new password is set")
	fresh.logIn("new@example.com", "another twelve characters")
	left := fresh.submit(fresh.get("/settings"), "delete_tenant", url.Values{"password": {"another twelve characters"}})
	left.leadsTo("/")
	gone := fresh.submit(fresh.get("/settings"), "delete_account", url.Values{"password": {"another twelve characters"}})
	fresh.follow(gone.leadsTo("/login")).want(http.StatusOK, "Your account is deleted.")
}

func TestRenameTenant(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	first, second := b.get("/settings"), b.get("/settings")
	b.follow(b.submit(first, "tenant", url.Values{"name": {"One"}})).want(http.StatusOK, "The tenant has its new name.")
	told := b.submit(second, "tenant", url.Values{"name": {"Two"}})
	told.want(http.StatusPreconditionFailed, "Now it is One")
	check(t, s, told)
	b.submit(told, "tenant", nil).leadsTo("/settings")
	b.get("/settings").want(http.StatusOK, "Two")
	if me, err := s.plane.Me(t.Context(), s.root); err != nil || me.Tenant.Name != "Two" || strconv.FormatInt(me.Tenant.Version, 10) != "3" {
		t.Error(me, err)
	}
}
