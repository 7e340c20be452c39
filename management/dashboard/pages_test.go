package dashboard

import (
	"math"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// openPages are pages that are opened as they are, by the operator, with hostile rows in the database. A page that needs an ID or more has a test of
// its own, which calls check.
var openPages = []string{"/settings", "/settings/totp", "/logout", "/signup", "/forgot", "/verify?token=x", "/reset?token=x", "/invitation?token=x", "/no-such-page"}

// publicPages are those that whoever is not signed in can open.
var publicPages = []string{"/login", "/login?next=/domains", "/logout", "/signup", "/forgot", "/verify?token=x", "/reset?token=x", "/invitation?token=x"}

func TestPages(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	for _, e := range navigation {
		if s.serves(e.Path) && !slices.Contains(openPages, e.Path) {
			openPages = append(openPages, e.Path)
		}
	}
	for _, path := range openPages {
		t.Run(path, func(t *testing.T) {
			page := b.get(path)
			page.t = t
			check(t, s, page)
		})
	}
	for _, path := range publicPages {
		t.Run("public "+path, func(t *testing.T) {
			page := s.browser().get(path)
			page.t = t
			page.want(http.StatusOK)
			check(t, s, page)
		})
	}
}

func TestSetupPage(t *testing.T) {
	s := newBareSite(t, Options{}, nil)
	page := s.browser().get("/setup")
	page.want(http.StatusOK)
	check(t, s, page)
}

const maxPageBytes = 60 << 10

// check looks at what every page has to be.
func check(t *testing.T, s *site, page *seen) {
	t.Helper()
	checkHeaders(t, page)
	checkWellFormed(t, page.body)
	checkInline(t, page)
	checkHeadings(t, page)
	checkForms(t, page)
	checkIDs(t, page)
	checkLinks(t, s, page)
	checkTables(t, page)
	checkFolded(t, page)
	checkLive(t, page)
	size := len(page.body)
	for _, f := range s.static.byURL {
		size += len(f.plain)
	}
	if size > maxPageBytes {
		t.Errorf("%s has %d bytes with styles and scripts, want at most %d", page.path, size, maxPageBytes)
	}
	for _, secret := range []string{testPassword, testToken, s.secretOfKey()} {
		if secret != "" && strings.Contains(page.body, secret) {
			t.Errorf("%s tells a secret", page.path)
		}
	}
	if strings.Contains(page.body, "ZgotmplZ") {
		t.Errorf("%s has a value that html/template refused", page.path)
	}
}

func (s *site) secretOfKey() string {
	if s.made == nil {
		return ""
	}
	return s.made.Secret.Reveal()
}

func checkHeaders(t *testing.T, page *seen) {
	t.Helper()
	for name, want := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
		"X-Content-Type-Options":  "nosniff", "Referrer-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
		"Cache-Control": "no-store", "X-Frame-Options": "DENY", "Content-Type": "text/html; charset=utf-8",
	} {
		if got := page.header.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %s is %q, want %q", page.path, name, got, want)
		}
	}
	if page.header.Get("X-Request-Id") == "" {
		t.Errorf("%s has no request ID", page.path)
	}
}

// voids are the elements without an end.
var voids = []string{"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}

// checkWellFormed counts tags: parsers mend what is not closed, and so would not tell.
func checkWellFormed(t *testing.T, body string) {
	t.Helper()
	z := html.NewTokenizer(strings.NewReader(body))
	var open []string
	for {
		switch z.Next() {
		case html.ErrorToken:
			if len(open) > 0 {
				t.Errorf("not closed: %v", open)
			}
			return
		case html.StartTagToken:
			name, _ := z.TagName()
			if !slices.Contains(voids, string(name)) {
				open = append(open, string(name))
			}
		case html.EndTagToken:
			name, _ := z.TagName()
			if len(open) == 0 || open[len(open)-1] != string(name) {
				t.Fatalf("</%s> closes %v", name, open)
			}
			open = open[:len(open)-1]
		}
	}
}

// checkInline looks for what the policy would refuse, and for hostile texts that became markup.
func checkInline(t *testing.T, page *seen) {
	t.Helper()
	for _, n := range page.all(func(*html.Node) bool { return true }) {
		for _, a := range n.Attr {
			lower := strings.ToLower(strings.TrimSpace(a.Val))
			if a.Key == "style" || strings.HasPrefix(a.Key, "on") || a.Key == "src" && !strings.HasPrefix(a.Val, "/") || strings.HasPrefix(lower, "javascript:") ||
				a.Key == "href" && strings.HasPrefix(lower, "data:") {
				t.Errorf("%s: <%s %s=%q>", page.path, n.Data, a.Key, a.Val)
			}
		}
		switch {
		case n.Data == "style", n.Data == "iframe", n.Data == "object", n.Data == "base", n.Data == "script" && (attr(n, "src") == "" || n.FirstChild != nil),
			n.Data == "img" && attr(n, "src") == "x":
			t.Errorf("%s has <%s> %v", page.path, n.Data, n.Attr)
		case n.Data == "form" && !strings.HasPrefix(attr(n, "action"), "/"):
			t.Errorf("%s: a form goes to %q", page.path, attr(n, "action"))
		}
	}
}

// checkHeadings wants one h1, and no level left out.
func checkHeadings(t *testing.T, page *seen) {
	t.Helper()
	last, ones := 0, 0
	for _, n := range page.all(func(n *html.Node) bool {
		return len(n.Data) == 2 && n.Data[0] == 'h' && n.Data[1] >= '1' && n.Data[1] <= '6'
	}) {
		level := int(n.Data[1] - '0')
		if inSummary(n) {
			continue
		}
		if level == 1 {
			ones++
		}
		if level > last+1 {
			t.Errorf("%s: <%s> %q follows h%d", page.path, n.Data, textOf(n), last)
		}
		if strings.TrimSpace(textOf(n)) == "" {
			t.Errorf("%s: an empty <%s>", page.path, n.Data)
		}
		last = level
	}
	if ones != 1 {
		t.Errorf("%s has %d h1", page.path, ones)
	}
	title := page.find(func(n *html.Node) bool { return n.Data == "title" })
	if title == nil || strings.TrimSpace(textOf(title)) == "" || attr(page.find(func(n *html.Node) bool { return n.Data == "html" }), "lang") != "en" {
		t.Errorf("%s has no title, or no language", page.path)
	}
}

func inSummary(n *html.Node) bool {
	for p := range n.Ancestors() {
		if strings.Contains(attr(p, "class"), "summary") {
			return true
		}
	}
	return false
}

// checkForms wants a name for every control, and what makes a form count once and for one tenant.
func checkForms(t *testing.T, page *seen) {
	t.Helper()
	labels := map[string]bool{}
	for _, n := range page.all(func(n *html.Node) bool { return n.Data == "label" }) {
		if strings.TrimSpace(textOf(n)) != "" {
			labels[attr(n, "for")] = true
		}
	}
	for _, n := range page.all(func(n *html.Node) bool { return n.Data == "input" || n.Data == "select" || n.Data == "textarea" }) {
		if kind := attr(n, "type"); kind != "hidden" && !labels[attr(n, "id")] && attr(n, "aria-label") == "" {
			t.Errorf("%s: <%s name=%q> has no label", page.path, n.Data, attr(n, "name"))
		}
		if attr(n, "type") == "password" && attr(n, "value") != "" {
			t.Errorf("%s: the password %q is filled in", page.path, attr(n, "name"))
		}
	}
	for _, n := range page.all(func(n *html.Node) bool { return n.Data == "button" || n.Data == "a" || n.Data == "summary" }) {
		if strings.TrimSpace(textOf(n)) == "" && attr(n, "aria-label") == "" {
			t.Errorf("%s: <%s> %v says nothing", page.path, n.Data, n.Attr)
		}
		if n.Data == "button" && attr(n, "type") == "" {
			t.Errorf("%s: the button %q has no type", page.path, textOf(n))
		}
	}
	for _, n := range page.all(func(n *html.Node) bool { return n.Data == "form" && attr(n, "method") == "post" }) {
		if attr(n, "action") == "/logout" {
			continue
		}
		found := map[string]bool{}
		for d := range n.Descendants() {
			found[attr(d, "name")] = true
		}
		if !found[onceField] || !found[formField] {
			t.Errorf("%s: the form %q does not begin with the template form", page.path, attr(n, "id"))
		}
	}
}

// checkIDs wants each ID once, and what refers to one to find it.
func checkIDs(t *testing.T, page *seen) {
	t.Helper()
	ids := map[string]bool{}
	for _, n := range page.all(func(n *html.Node) bool { return has(n, "id") }) {
		if ids[attr(n, "id")] {
			t.Errorf("%s: the ID %q is there twice", page.path, attr(n, "id"))
		}
		ids[attr(n, "id")] = true
	}
	for _, n := range page.all(func(*html.Node) bool { return true }) {
		refs := append(strings.Fields(attr(n, "aria-describedby")), strings.Fields(attr(n, "aria-labelledby"))...)
		if n.Data == "label" {
			refs = append(refs, attr(n, "for"))
		}
		if to, ok := strings.CutPrefix(attr(n, "href"), "#"); ok && n.Data == "a" {
			refs = append(refs, to)
		}
		for _, ref := range refs {
			if !ids[ref] {
				t.Errorf("%s: <%s> refers to %q, which is not there", page.path, n.Data, ref)
			}
		}
	}
}

// checkLinks opens no links, but wants a page behind each that is ours.
func checkLinks(t *testing.T, s *site, page *seen) {
	t.Helper()
	for _, n := range page.all(func(n *html.Node) bool { return n.Data == "a" || n.Data == "form" }) {
		to := attr(n, "href") + attr(n, "action")
		if to == "" || strings.HasPrefix(to, "#") || !strings.HasPrefix(to, "/") {
			continue
		}
		u, err := url.Parse(to)
		if err != nil {
			t.Errorf("%s: %q is no link", page.path, to)
			continue
		}
		if found, _ := s.match(u.EscapedPath()); found == nil && !strings.HasPrefix(u.Path, "/v1/") {
			// Pages of the navigation may be still to come.
			if slices.ContainsFunc(navigation, func(e entry) bool { return u.Path == e.Path }) {
				continue
			}
			t.Errorf("%s leads to %s, where nothing is", page.path, to)
		}
	}
}

// checkTables wants tables that phones show as cards to keep what a table is.
func checkTables(t *testing.T, page *seen) {
	t.Helper()
	for _, table := range page.all(func(n *html.Node) bool { return n.Data == "table" && strings.Contains(attr(n, "class"), "cards") }) {
		roles := map[string]string{"tr": "row", "td": "cell", "thead": "rowgroup", "tbody": "rowgroup"}
		if attr(table, "role") != "table" {
			t.Errorf("%s: a table of cards needs role=table, since display: block takes it away", page.path)
		}
		for n := range table.Descendants() {
			if want := roles[n.Data]; n.Type == html.ElementNode && want != "" && attr(n, "role") != want {
				t.Errorf("%s: <%s> of a table of cards needs role=%s", page.path, n.Data, want)
			}
			if n.Data == "th" && attr(n, "scope") == "" {
				t.Errorf("%s: <th> %q has no scope", page.path, textOf(n))
			}
			if n.Data == "td" && !has(n, "data-label") {
				t.Errorf("%s: <td> %q has no data-label", page.path, strings.TrimSpace(textOf(n)))
			}
		}
	}
}

// checkFolded wants what a refusal says to be seen: no fault, and nothing that is wrong, in a part that is closed.
func checkFolded(t *testing.T, page *seen) {
	t.Helper()
	for _, n := range page.all(func(n *html.Node) bool {
		class := " " + attr(n, "class") + " "
		return strings.Contains(class, " summary ") || strings.Contains(class, " error ") || has(n, "aria-invalid")
	}) {
		for p := range n.Ancestors() {
			if p.Data == "details" && !has(p, "open") {
				t.Errorf("%s: %q is folded away", page.path, strings.TrimSpace(textOf(n)))
				break
			}
		}
	}
}

// checkLive wants one place that says how the live parts are, which stays while they are replaced (WCAG 2.2, 4.1.3).
func checkLive(t *testing.T, page *seen) {
	t.Helper()
	states := page.all(func(n *html.Node) bool { return has(n, "data-live-state") })
	lives := page.all(func(n *html.Node) bool { return has(n, "data-live") })
	if len(lives) > 0 && len(states) != 1 {
		t.Errorf("%s: %d live parts and %d places that say how they are", page.path, len(lives), len(states))
	}
	for _, n := range states {
		if attr(n, "role") != "status" {
			t.Errorf("%s: how the live parts are is not said aloud", page.path)
		}
		for p := range n.Ancestors() {
			if has(p, "data-live") {
				t.Errorf("%s: how the live part is goes with it when it is replaced", page.path)
			}
		}
	}
}

var colourLine = regexp.MustCompile(`--([a-z0-9-]+): #([0-9a-f]{6});`)

// TestColours measures the contrast of what stands on what, in both schemes (WCAG 2.2, 1.4.3 and 1.4.11).
func TestColours(t *testing.T) {
	css, err := staticSources.ReadFile("static/style.css")
	if err != nil {
		t.Fatal(err)
	}
	schemes := strings.SplitN(string(css), "@media (prefers-color-scheme: dark)", 2)
	for i, name := range []string{"light", "dark"} {
		colours := map[string]string{}
		for _, m := range colourLine.FindAllStringSubmatch(schemes[i], -1) {
			if colours[m[1]] == "" {
				colours[m[1]] = m[2]
			}
		}
		for _, pair := range []struct {
			front, back string
			least       float64
		}{
			{"text", "bg", 4.5}, {"text", "surface", 4.5}, {"muted", "bg", 4.5}, {"muted", "surface", 4.5}, {"link", "bg", 4.5}, {"link", "surface", 4.5}, {"act-text", "act", 4.5},
			{"ok", "ok-bg", 4.5}, {"warn", "warn-bg", 4.5}, {"bad", "bad-bg", 4.5}, {"info", "info-bg", 4.5}, {"off", "off-bg", 4.5}, {"ok", "bg", 4.5}, {"warn", "bg", 4.5}, {"bad", "bg", 4.5},
			{"edge", "bg", 3}, {"focus", "bg", 3}, {"s1", "bg", 4.5}, {"s2", "bg", 4.5}, {"s3", "bg", 4.5}, {"s4", "bg", 4.5}, {"s5", "bg", 4.5}, {"s6", "bg", 4.5},
		} {
			if got := contrast(t, colours[pair.front], colours[pair.back]); got < pair.least {
				t.Errorf("%s: %s on %s has %.2f, want %.1f", name, pair.front, pair.back, got, pair.least)
			}
		}
	}
}
func contrast(t *testing.T, a, b string) float64 {
	t.Helper()
	l1, l2 := luminance(t, a), luminance(t, b)
	return (max(l1, l2) + 0.05) / (min(l1, l2) + 0.05)
}

func luminance(t *testing.T, hex string) float64 {
	t.Helper()
	if len(hex) != 6 {
		t.Fatalf("%q is no colour", hex)
	}
	sum := 0.0
	for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
		n, err := strconv.ParseUint(hex[2*i:2*i+2], 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		c := float64(n) / 255
		if c <= 0.04045 {
			c /= 12.92
		} else {
			c = math.Pow((c+0.055)/1.055, 2.4)
		}
		sum += weight * c
	}
	return sum
}
