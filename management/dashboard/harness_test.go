package dashboard

import (
	"bytes"
	"context"
	flags "flag"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

var update = flags.Bool("update", false, "rewrite the golden files")

// What the first run of a test's service is told. The tenant's name is an attack.
const (
	testToken    = "the set-up token"
	testEmail    = "root@example.com"
	testPassword = "correct horse battery"
	hostile      = `<script>alert(1)</script>"'><img src=x onerror=alert(2)>{{.}}`
)

// site is a service with its pages: real database, real sessions, cheap passwords, and a clock that stands.
type site struct {
	*Dashboard
	t     *testing.T
	store *store.Store
	log   *syncBuffer
	made  *management.SetUp
	root  *management.Principal // the operator and owner, signed in

	mu    sync.Mutex
	clock time.Time
}

// newSite returns a service that is set up.
func newSite(t *testing.T) *site {
	t.Helper()
	s := newBareSite(t, Options{}, nil)
	s.setUp()
	return s
}

// newBareSite returns a service before its first run. routes nil: all that there are.
func newBareSite(t *testing.T, opts Options, routes []route) *site {
	t.Helper()
	s := &site{t: t, store: storetest.Open(t, store.SQLite), log: new(syncBuffer), clock: time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)}
	sealer, err := vault.New(vault.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	cfg := management.Config{SetupToken: testToken, SignupOpen: true, Targets: []management.Target{{Type: "a", Value: "203.0.113.10"}}}
	parts := management.Parts{Store: s.store, Sealer: sealer, Passwords: cheap{}, Auth: auth.NewPlane("pqproxy", s.now), Resolver: noResolver{}, Prober: noProber{}, Log: log, Clock: s.now}
	plane, err := management.New(cfg, parts)
	if err != nil {
		t.Fatal(err)
	}
	opts.Log, opts.Clock, opts.SignupOpen = log, s.now, true
	if routes == nil {
		routes = table()
	}
	s.Dashboard = newDashboard(plane, opts, routes)
	t.Cleanup(s.Close)
	return s
}

func (s *site) setUp() {
	s.t.Helper()
	var err error
	s.made, err = s.plane.SetUp(s.t.Context(), nobody(), management.Setup{Token: testToken, Email: testEmail, Password: testPassword, Tenant: hostile, APIKey: true})
	if err != nil {
		s.t.Fatal(err)
	}
	in, err := s.plane.LogIn(s.t.Context(), nobody(), management.Login{Email: testEmail, Password: testPassword})
	if err != nil {
		s.t.Fatal(err)
	}
	if s.root, err = s.plane.PrincipalOfSession(s.t.Context(), in.Token.Reveal(), ""); err != nil {
		s.t.Fatal(err)
	}
}

func nobody() *management.Principal {
	return &management.Principal{ClientAddr: netip.MustParseAddr("192.0.2.99"), RequestID: "req_test"}
}

func (s *site) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clock
}

// pass lets time go by.
func (s *site) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = s.clock.Add(d)
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// browser is somebody with cookies.
type browser struct {
	s       *site
	t       *testing.T
	cookies map[string]*http.Cookie
	address string
}

func (s *site) browser() *browser {
	return &browser{s: s, t: s.t, cookies: map[string]*http.Cookie{}, address: "192.0.2.1:4711"}
}

// signedIn returns a browser of the operator.
func (s *site) signedIn() *browser {
	s.t.Helper()
	b := s.browser()
	b.logIn(testEmail, testPassword)
	return b
}

func (b *browser) logIn(email, password string) {
	b.t.Helper()
	got := b.post("/login", url.Values{"email": {email}, "password": {password}})
	if got.status != http.StatusSeeOther || b.cookies[auth.SessionCookie] == nil {
		b.t.Fatalf("signing in as %s: %d\n%s", email, got.status, got.body)
	}
}

// seen is an answer.
type seen struct {
	t      *testing.T
	path   string
	status int
	header http.Header
	body   string
	doc    *html.Node
}

func (b *browser) get(path string) *seen { b.t.Helper(); return b.do("GET", path, nil, nil) }

func (b *browser) post(path string, form url.Values) *seen {
	b.t.Helper()
	return b.do("POST", path, form, nil)
}

// do sends a request as a browser does from a page of this origin.
func (b *browser) do(method, path string, form url.Values, header http.Header) *seen {
	b.t.Helper()
	r := httptest.NewRequestWithContext(b.t.Context(), method, "https://console.example.com"+path, nil)
	r.RequestURI, r.RemoteAddr = path, b.address
	if method == "POST" {
		r = httptest.NewRequestWithContext(b.t.Context(), method, "https://console.example.com"+path, strings.NewReader(form.Encode()))
		r.RemoteAddr = b.address
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		r.Header.Set("Origin", "https://console.example.com")
	}
	for name, values := range header {
		r.Header[name] = values
	}
	return b.send(r)
}

func (b *browser) send(r *http.Request) *seen {
	b.t.Helper()
	for _, cookie := range b.cookies {
		r.AddCookie(&http.Cookie{Name: cookie.Name, Value: cookie.Value})
	}
	w := httptest.NewRecorder()
	b.s.ServeHTTP(w, r)
	res := w.Result()
	for _, cookie := range res.Cookies() {
		if !cookie.Secure || !cookie.HttpOnly || cookie.SameSite != http.SameSiteLaxMode || cookie.Path != "/" || !strings.HasPrefix(cookie.Name, "__Host-") {
			b.t.Errorf("%s: the cookie %s is not kept to us", r.URL.Path, cookie.Name)
		}
		if cookie.MaxAge < 0 {
			delete(b.cookies, cookie.Name)
			continue
		}
		b.cookies[cookie.Name] = cookie
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	got := &seen{t: b.t, path: r.URL.RequestURI(), status: res.StatusCode, header: res.Header, body: string(body)}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") {
		if got.doc, err = html.Parse(bytes.NewReader(body)); err != nil {
			b.t.Fatal(err)
		}
	}
	return got
}

// follow goes where a redirect leads, to a page.
func (b *browser) follow(from *seen) *seen {
	b.t.Helper()
	for range 5 {
		to := from.header.Get("Location")
		if to == "" {
			return from
		}
		from = b.get(to)
	}
	b.t.Fatal("redirects without end")
	return nil
}

// submit fills in the form of that name and sends it. Boxes that are not checked are not sent, as in a browser; an empty list in fields takes
// a field out.
func (b *browser) submit(page *seen, name string, fields url.Values) *seen {
	b.t.Helper()
	action, form := page.form(name)
	for field, values := range fields {
		if form[field] = values; len(values) == 0 {
			delete(form, field)
		}
	}
	return b.post(action, form)
}

// form returns where a form goes and what it would send.
func (p *seen) form(name string) (action string, values url.Values) {
	p.t.Helper()
	form := p.find(func(n *html.Node) bool { return n.Data == "form" && attr(n, "id") == "form-"+name })
	if form == nil {
		p.t.Fatalf("%s has no form %s:\n%s", p.path, name, p.body)
	}
	values = url.Values{}
	for n := range form.Descendants() {
		field := attr(n, "name")
		if n.Type != html.ElementNode || field == "" {
			continue
		}
		switch n.Data {
		case "input":
			kind := attr(n, "type")
			if (kind == "checkbox" || kind == "radio") && !has(n, "checked") || kind == "file" {
				continue
			}
			values.Add(field, attr(n, "value"))
		case "textarea":
			values.Add(field, strings.TrimPrefix(textOf(n), "\n"))
		case "select":
			chosen, filled := "", false // the first, unless one is selected
			for o := range n.Descendants() {
				if o.Data == "option" && (!filled || has(o, "selected")) {
					chosen, filled = attr(o, "value"), true
				}
			}
			values.Add(field, chosen)
		}
	}
	return attr(form, "action"), values
}

func (p *seen) find(is func(*html.Node) bool) *html.Node {
	if p.doc == nil {
		p.t.Fatalf("%s is no page: %d %s", p.path, p.status, p.body)
	}
	for n := range p.doc.Descendants() {
		if n.Type == html.ElementNode && is(n) {
			return n
		}
	}
	return nil
}

func (p *seen) all(is func(*html.Node) bool) (found []*html.Node) {
	if p.doc == nil {
		p.t.Fatalf("%s is no page: %d %s", p.path, p.status, p.body)
	}
	for n := range p.doc.Descendants() {
		if n.Type == html.ElementNode && is(n) {
			found = append(found, n)
		}
	}
	return found
}

// text is what the main part says, with single spaces.
func (p *seen) text() string {
	return strings.Join(strings.Fields(textOf(p.find(func(n *html.Node) bool { return n.Data == "main" }))), " ")
}

// want fails unless the status is as wanted and the main part has all the texts.
func (p *seen) want(status int, texts ...string) *seen {
	p.t.Helper()
	if p.status != status {
		p.t.Fatalf("%s: status %d, want %d\n%s", p.path, p.status, status, p.body)
	}
	for _, text := range texts {
		if !strings.Contains(p.text(), text) {
			p.t.Errorf("%s does not say %q:\n%s", p.path, text, p.text())
		}
	}
	return p
}

// leadsTo fails unless the answer is a redirect to that place.
func (p *seen) leadsTo(location string) *seen {
	p.t.Helper()
	if p.status != http.StatusSeeOther || p.header.Get("Location") != location {
		p.t.Fatalf("%s: %d to %q, want a redirect to %q\n%s", p.path, p.status, p.header.Get("Location"), location, p.body)
	}
	return p
}

func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func has(n *html.Node, name string) bool {
	return slices.ContainsFunc(n.Attr, func(a html.Attribute) bool { return a.Key == name })
}

func textOf(n *html.Node) string {
	if n == nil {
		return ""
	}
	var out strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			out.WriteString(d.Data)
		}
	}
	return out.String()
}

// golden compares text with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil { //nolint:gosec // it is committed
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; look at it, then -update:\n%s", name, got)
	}
}

var unsteady = regexp.MustCompile(`name="_once" value="[^"]*"|Request req_[0-9a-z]+`)

// steady takes out what is random.
func steady(body string) string { return unsteady.ReplaceAllString(body, "RANDOM") }

// cheap hashes passwords without the work.
type cheap struct{}

func (cheap) Check(password, email string) error { return auth.NewPasswords(1).Check(password, email) }
func (cheap) Hash(_ context.Context, password string) (string, error) {
	return "cheap " + password, nil
}
func (cheap) Verify(_ context.Context, hash, password string) (ok, stale bool, err error) {
	return hash != "" && hash == "cheap "+password, false, nil
}

type noResolver struct{}

func (noResolver) Look(context.Context, management.Lookup) management.Observation {
	return management.Observation{Traffic: management.Finding{State: management.FoundWrong, Detail: hostile}, Ownership: management.Finding{State: management.FoundAbsent, Detail: hostile}}
}
func (noResolver) Prove(context.Context, string, string, string) management.Finding {
	return management.Finding{State: management.FoundAbsent, Detail: hostile}
}
func (noResolver) PublicSuffix(string) bool { return false }

type noProber struct{}

func (noProber) Probe(_ context.Context, d *domain.Domain, _ *netpolicy.Policy) []management.UpstreamProbe {
	return make([]management.UpstreamProbe, len(d.Upstreams))
}
