package caddytest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// glass is what somebody looks at pages through.
type glass struct {
	name          string
	width, height int64
	scheme        string
	mobile        bool
}

var glasses = []glass{
	{name: "desktop-light", width: 1280, height: 900, scheme: "light"},
	{name: "phone-dark", width: 390, height: 844, scheme: "dark", mobile: true},
}

// through has the tab look like that from here on.
func (b *tab) through(t *testing.T, g glass) {
	t.Helper()
	call(t, b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: g.width, Height: g.height, DeviceScaleFactor: 1, Mobile: g.mobile})
	call(t, b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: g.scheme}}})
	b.frames(t)
}

// look looks at the page that is open, on a desktop and on a phone: axe-core has nothing to say, nothing is wider than the screen, and a
// picture is kept for whoever changes the page.
func (b *tab) look(t *testing.T, name string) {
	t.Helper()
	for _, g := range glasses {
		b.through(t, g)
		b.examine(t, name, g)
	}
	b.through(t, glasses[0])
}

// examine is look through one glass.
func (b *tab) examine(t *testing.T, name string, g glass) {
	t.Helper()
	name += "." + g.name
	if wide := evaluate[int64](t, b, "document.documentElement.scrollWidth"); wide > g.width {
		wider := evaluate[[]string](t, b, fmt.Sprintf(`[...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > %d).slice(0, 3)
			.map((e) => e.outerHTML.slice(0, 150))`, g.width))
		t.Errorf("%s is %d wide: %q", name, wide, wider)
	}
	for _, v := range b.violations(t) {
		t.Errorf("%s: axe says (%s) %s: %s", name, v.Impact, v.ID, v.Help)
		for _, n := range v.Nodes {
			t.Logf("%s: %s", n.HTML, n.FailureSummary)
		}
	}
	if err := os.WriteFile(filepath.Join(screenshots(t), name+".png"), b.picture(t), 0o644); err != nil {
		t.Error(err)
	}
}

// violation is a rule of axe-core that the page breaks.
type violation struct {
	ID     string `json:"id"`
	Impact string `json:"impact"` // minor, moderate, serious, critical
	Help   string `json:"help"`
	Nodes  []struct {
		HTML           string `json:"html"`
		FailureSummary string `json:"failureSummary"`
	} `json:"nodes"`
}

// violations asks axe-core, which comes into the page as somebody's at the DevTools would: the page's policy stays as it is.
func (b *tab) violations(t *testing.T) []violation {
	t.Helper()
	if !evaluate[bool](t, b, `"axe" in window`) {
		file := filepath.Join("..", ".peers", "node_modules", "axe-core", "axe.min.js")
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatalf("%v: run scripts/peers.sh", err)
		}
		evaluate[chromedp.Void](t, b, string(source)+"\n;0")
	}
	return evaluate[[]violation](t, b, `axe.run(document, { resultTypes: ["violations"], runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa"] })
		.then((found) => found.violations.map((v) => ({ id: v.id, impact: v.impact, help: v.help, nodes: v.nodes.map((n) => ({ html: n.html, failureSummary: n.failureSummary })) })))`)
}

// picture returns the whole page as PNG.
func (b *tab) picture(t *testing.T) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience/2)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.lost(t, "taking a picture: %v", err)
	}
	return picture
}

// frames waits until two frames are drawn.
func (b *tab) frames(t *testing.T) {
	t.Helper()
	evaluate[bool](t, b, "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
}

// maxPageBytes is for a page with its styles and scripts, as they are read.
const maxPageBytes = 60 << 10

// testPages opens every page with an empty cache. Nothing moves while it loads, and it is small.
func testPages(t *testing.T, w *dashboardWorld) {
	b := w.person
	first := func(page, selector string) string { // the first link of a list
		b.visit(t, page)
		href := evaluate[string](t, b, fmt.Sprintf("document.querySelector(%q)?.getAttribute('href') ?? ''", selector))
		if href == "" {
			b.lost(t, "%s has no %s", page, selector)
		}
		return href
	}
	row := "main table tbody th a"
	b.visit(t, "/members") // one invitation waits
	b.fill(t, "f-invite-email", "later@example.com")
	b.press(t, "Invite")
	pages := []namedPath{
		{"overview", "/"}, {"domains", "/domains"}, {"domain", w.domain}, {"domain-connections", w.domain + "/connections"},
		{"domain-certificate", w.domain + "/certificate"}, {"domain-upstreams", w.domain + "/upstreams"}, {"domain-policy", w.domain + "/policy"},
		{"domain-activity", w.domain + "/activity"}, {"wizard-name", "/domains/new"}, {"wizard-dns", w.domain + "/setup/dns"},
		{"wizard-upstream", w.domain + "/setup/upstream"}, {"wizard-policy", w.domain + "/setup/policy"}, {"wizard-done", w.domain + "/setup/done"},
		{"connections", "/connections"}, {"connections-nothing", "/connections?client_ip=192.0.2.1"}, {"connections-tail", "/connections/tail"},
		{"connection", first("/connections", row)}, {"report", "/reports/post-quantum"}, {"report-require", "/reports/post-quantum?days=1"},
		{"certificates", "/certificates"}, {"keys", "/keys"}, {"key", first("/keys", row)}, {"members", "/members"}, {"member", first("/members", row)},
		{"invitation-sent", first("/members", "main table th a[href*='/members/invitations/']")}, {"second-factor", "/settings/totp"},
		{"audit", "/audit"}, {"audit-entry", first("/audit", row)}, {"edges", "/edges"}, {"edge-tokens", "/edges/tokens"},
		{"edge-token", first("/edges/tokens", row)}, {"tenants", "/tenants"}, {"tenant", first("/tenants", row)}, {"settings", "/settings"},
		{"logout", "/logout"}, {"domains-nothing", "/domains?q=zzz"},
	}
	b.check(t)
	t.Run("pages", func(t *testing.T) {
		for _, g := range glasses {
			t.Run(g.name, func(t *testing.T) {
				t.Parallel()
				w.person.another(t).sweep(t, g, pages)
			})
		}
	})

	b.expect(status(404))
	b.follow(t, 404, "opening what is not there", chromedp.Navigate(b.origin+"/no-such-page"))
	b.expect()
	b.look(t, "not-found")
}

// testPublicPages is testPages of what somebody sees who is not signed in.
func testPublicPages(t *testing.T, w *dashboardWorld) {
	b := w.chromium.open(t)
	defer b.close()
	for _, g := range glasses {
		b.sweep(t, g, []namedPath{
			{"login", "/login"}, {"forgot", "/forgot"}, {"signup", "/signup"}, {"reset", "/reset?token=x"}, {"invitation", "/invitation?token=x"},
			{"verify", "/verify?token=x"},
		})
	}
}

// namedPath is a page, and what its pictures are called.
type namedPath struct{ name, path string }

// sweep opens pages, as that.
func (b *tab) sweep(t *testing.T, g glass, pages []namedPath) {
	t.Helper()
	call(t, b, network.SetCacheDisabled, network.SetCacheDisabledParams{CacheDisabled: true})
	b.through(t, g)
	for _, p := range pages {
		b.visit(t, p.path)
		b.settle(t)
		encoded, decoded := b.loaded(t)
		t.Logf("%-20s %5d bytes over the network, %5d as read", p.name, encoded, decoded)
		if decoded > maxPageBytes {
			t.Errorf("%s has %d bytes with styles and scripts, want at most %d", p.path, decoded, maxPageBytes)
		}
		b.examine(t, p.name, g)
		for range again {
			if len(b.moved()) > 0 {
				b.visit(t, p.path)
				b.settle(t)
				b.examine(t, p.name, g)
			}
		}
		for _, s := range b.moved() {
			t.Errorf("the layout of %s shifts on %s by %.4f: %s", p.path, g.name, s.Value, s.What)
		}
		b.check(t)
	}
}

// A page that moves its layout does so whenever it is loaded. A slow machine may draw one of which the end is still on its way: mostly
// that moves less than leastShift, and not again when it is loaded again.
const (
	leastShift = 0.005
	again      = 2
)

// moved returns the shifts of the layout since the page began to load, if they are worth speaking of.
func (b *tab) moved() []shift {
	b.mu.Lock()
	defer b.mu.Unlock()
	sum := 0.0
	for _, s := range b.shifts {
		sum += s.Value
	}
	if sum < leastShift {
		return nil
	}
	return slices.Clone(b.shifts)
}

// loaded returns the bytes of the page with styles and scripts: as they came, and as they are read.
func (b *tab) loaded(t *testing.T) (encoded, decoded int64) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	kinds := make(map[network.ResourceType]int)
	for _, r := range b.requests {
		if !r.done || strings.HasPrefix(r.url, "data:") {
			continue // a stream is not over
		}
		kinds[r.kind]++
		encoded, decoded = encoded+r.encoded, decoded+r.decoded
	}
	if kinds[network.ResourceTypeDocument] != 1 || kinds[network.ResourceTypeStylesheet] != 1 || kinds[network.ResourceTypeScript] < 1 {
		t.Errorf("the page has loaded %v", kinds)
	}
	return encoded, decoded
}

// testWatching does what pages must not, and wants each of it to be noticed.
func testWatching(t *testing.T, w *dashboardWorld) {
	b := w.person.another(t)
	defer b.close()
	b.visit(t, "/settings")
	b.settle(t)
	b.check(t)
	evaluate[chromedp.Void](t, b, `document.body.insertAdjacentHTML("beforeend", '<p style="color: red">inline</p><img src="https://elsewhere.example/x.png">');
		console.error("somebody complains");
		setTimeout(() => { throw new Error("nobody catches this"); });
		fetch("/no-such-page").catch(() => {});
		0`)
	var faults string
	for _, part := range []string{"the policy refuses style-src", "the policy refuses img-src", "ContentSecurityPolicyIssue", "somebody complains", "nobody catches this", status(404)} {
		pqtest.Wait(t, "the browser to say "+part, func() bool {
			faults += strings.Join(b.taken(), "\n") + "\n"
			return strings.Contains(faults, part)
		})
	}
	b.frames(t)
	evaluate[chromedp.Void](t, b, `document.querySelector("main").prepend(Object.assign(document.createElement("pre"), { textContent: "\n\n\n\n\n\n" })); 0`)
	pqtest.Wait(t, "a shift of the layout", func() bool { return len(b.moved()) > 0 })
	b.taken()
}
