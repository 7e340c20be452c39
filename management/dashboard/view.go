package dashboard

import (
	"bytes"
	"crypto/rand"
	"embed"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

//go:embed templates
var templateFiles embed.FS

// pageTemplate is a page with layout and components.
type pageTemplate struct{ set *template.Template }

// parsePages parses each page of templates/pages together with layout and components.
func parsePages() map[string]*pageTemplate {
	base := template.Must(template.New("").Option("missingkey=error").Funcs(functions).ParseFS(templateFiles, "templates/*.html"))
	names, err := fs.Glob(templateFiles, "templates/pages/*.html")
	if err != nil {
		panic(err)
	}
	pages := map[string]*pageTemplate{}
	for _, file := range names {
		set := template.Must(template.Must(base.Clone()).ParseFS(templateFiles, file))
		if set.Lookup("main") == nil {
			panic(file + " does not define main")
		}
		pages[strings.TrimSuffix(path.Base(file), ".html")] = &pageTemplate{set}
	}
	return pages
}

func (p *pageTemplate) execute(w io.Writer, block string, v *view) error {
	if err := p.set.ExecuteTemplate(w, block, v); err != nil {
		return fmt.Errorf("executing a template: %w", err)
	}
	return nil
}

// view is the dot of every page: what the handler gave, and what all pages need.
type view struct {
	Title string // the heading
	Data  any

	c     *ctx
	forms []*form
}

// URL returns a link to a page of ours, with parameters as pairs of name and value.
func (v *view) URL(path string, pairs ...any) string { return v.c.url(path, texts(pairs)...) }

// With returns a link to this page with other parameters; an empty value takes one away. The cursor goes, unless it is given.
func (v *view) With(pairs ...any) string {
	values := url.Values{}
	for name, value := range v.c.asked {
		if name != "cursor" {
			values[name] = value
		}
	}
	for i, text := range texts(pairs) {
		if i%2 == 1 {
			values.Set(fmt.Sprint(pairs[i-1]), text)
		}
	}
	var all []string
	for name := range values {
		all = append(all, name, values.Get(name))
	}
	return v.c.url(v.c.r.URL.EscapedPath(), all...)
}

func texts(pairs []any) []string {
	all := make([]string, len(pairs))
	for i, p := range pairs {
		all[i] = fmt.Sprint(p)
	}
	return all
}

// Query returns a parameter of this page's address.
func (v *view) Query(name string) string { return v.c.query(name) }

// Static returns the address of a static file, with its hash in it.
func (v *view) Static(name string) (string, error) { return v.c.dash.static.url(name) }

// Can reports whether who looks at the page has a scope: for links and buttons that would only be refused.
func (v *view) Can(scope string) bool { return v.c.who.Require(management.Scope(scope)) == nil }

// Me is who looks at the page; nil: nobody who is signed in.
func (v *view) Me() *management.Me { return v.c.me }

// TenantID is whose rows the page shows.
func (v *view) TenantID() string { return v.c.who.TenantID }

// RequestID is what the log calls this request.
func (v *view) RequestID() string { return v.c.who.RequestID }

// Refused reports whether a form is shown again because of a fault.
func (v *view) Refused() bool { return v.c.refusal != nil }

// Flash is what the page before left to say; nil: nothing. It is said once.
func (v *view) Flash() *flash { return v.c.takeFlash() }

// SignupOpen reports whether people can sign up.
func (v *view) SignupOpen() bool { return v.c.dash.opts.SignupOpen }

// NavEntry is an entry of the navigation as one user sees it.
type NavEntry struct {
	entry
	Current bool
}

// Nav is the navigation, as far as the user's scopes and our pages go.
func (v *view) Nav() []NavEntry {
	if v.c.me == nil {
		return nil
	}
	here := ""
	if rt := v.c.route; rt != nil {
		here = rt.nav
		if here == "" && rt.path == "/reports/post-quantum" {
			here = rt.path
		} else if here == "" {
			first, _, _ := strings.Cut(rt.path[1:], "/")
			here = "/" + first
		}
	}
	var shown []NavEntry
	for _, e := range navigation {
		if e.scope != "" && v.c.who.Require(e.scope) != nil || !v.c.dash.serves(e.Path) {
			continue
		}
		shown = append(shown, NavEntry{e, e.Path == here})
	}
	return shown
}

// TenantLink is an entry of the switch of tenants.
type TenantLink struct {
	Name, URL string
	Current   bool
}

// Tenants are those that the user can switch to, of whom there are several; else none. A switch leads to the same list in the other tenant,
// and from a single object, which the other has not, to its start.
func (v *view) Tenants() []TenantLink {
	if v.c.me == nil || len(v.c.me.Tenants) < 2 {
		return nil
	}
	path := "/"
	if rt := v.c.route; rt != nil && !strings.Contains(rt.path, "{") && v.c.dash.serves(rt.path) {
		path = rt.path
	}
	links := make([]TenantLink, len(v.c.me.Tenants))
	for i, m := range v.c.me.Tenants {
		links[i] = TenantLink{m.Tenant.Name, path + "?" + url.Values{tenantParam: {m.Tenant.ID}}.Encode(), m.Tenant.ID == v.c.who.TenantID}
	}
	return links
}

// When is a moment for the template "when": UTC, and how long ago. It takes a time.Time or a pointer to one; zero and nil are "never".
func (v *view) When(t any) (moment, error) {
	switch t := t.(type) {
	case time.Time:
		return momentOf(t, v.c.now()), nil
	case *time.Time:
		if t == nil {
			return moment{}, nil
		}
		return momentOf(*t, v.c.now()), nil
	}
	return moment{}, fmt.Errorf("%T is no time", t)
}

// Now is the time of the page.
func (v *view) Now() time.Time { return v.c.now().UTC() }

// Pager leads through a list; next is the cursor of the next page, empty on the last.
func (v *view) Pager(next string) pager {
	p := pager{}
	if next != "" {
		p.Next = v.With("cursor", next)
	}
	if v.c.query("cursor") != "" {
		p.First = v.With()
	}
	return p
}

// pager is for the template "pager".
type pager struct{ First, Next string }

// Filter returns a field of a filter: its value is the parameter's of that name. Kind is "search", "text", "date", "datetime-local" or "select"; the
// pairs are those of a form's field.
func (v *view) Filter(kind, name, label string, pairs ...any) (*field, error) {
	f := &form{Name: "filter", v: v, values: v.c.asked, submitted: true}
	if v.c.refusal != nil {
		f.faults = v.c.refusal.Faults
	}
	fl, err := f.field(kind, name, label, pairs)
	if err != nil {
		return nil, err
	}
	fl.Error = f.faultOf("?" + name)
	return fl, nil
}

// Curl is the API call behind a form: method, path under the API's address, and the body as JSON or nil.
func (v *view) Curl(method, path string, body any) (curl, error) {
	base := &url.URL{Scheme: "https", Host: v.c.r.Host}
	if v.c.dash.opts.PublicURL != nil {
		base = v.c.dash.opts.PublicURL
	}
	return curlOf(method, strings.TrimSuffix(base.String(), "/")+path, body)
}

// mark returns a text that nothing else on the page has.
func (v *view) mark() string { return "<!-- " + rand.Text() + " -->" }

// fillIn puts the summaries of faults where the forms begin: only once all fields are drawn it is known what they are called.
func (v *view) fillIn(page []byte) []byte {
	for _, f := range v.forms {
		var summary bytes.Buffer
		if f.submitted && v.c.refusal != nil {
			if err := v.c.dash.pages["error"].set.ExecuteTemplate(&summary, "summary", f.summary()); err != nil {
				v.c.dash.log.Error("the faults of a form could not be shown", "request_id", v.c.who.RequestID, "error", err)
				summary.Reset()
			}
		}
		page = bytes.Replace(page, []byte(f.mark), summary.Bytes(), 1)
	}
	return page
}
