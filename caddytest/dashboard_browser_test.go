package caddytest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// keysNamed returns how many API keys of a name there are, by the page of them.
func keysNamed(t *testing.T, b *tab, name string) int {
	t.Helper()
	b.visit(t, "/keys")
	return evaluate[int](t, b, fmt.Sprintf(`[...document.querySelectorAll("main tbody th")].filter((e) => e.innerText === %q).length`, name))
}

// testNoScripts uses the forms with scripts switched off, also with two clicks where one was meant.
func testNoScripts(t *testing.T, w *dashboardWorld) {
	b := w.chromium.open(t)
	defer b.close()
	call(t, b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.visit(t, "/domains")
	b.signIn(t, firstPassword, 200)
	b.press(t, appName)
	b.sees(t, "Live on 2 of 2 edges", "This part does not change by itself without scripts")
	if shown := evaluate[bool](t, b, `[...document.querySelectorAll(".copy")].some((e) => e.checkVisibility())`); shown {
		t.Error("buttons that copy are shown, and would do nothing")
	}
	b.press(t, "Policy", "main")
	b.choose(t, "f-policy-load_balancing", "random")
	b.press(t, "Save")
	b.sees(t, "The policy is saved.")
	b.press(t, "API keys")
	b.fill(t, "f-create-name", "without scripts")
	b.refused(t, 422, "Make") // no scope
	if is := evaluate[string](t, b, `document.getElementById("f-create-name").value`); is != "without scripts" {
		t.Errorf("the name is %q after the refusal", is)
	}
	b.click(t, "domains:read")
	b.follow(t, 200, "a double click", chromedp.DoubleClick(named("Make")))
	if n := keysNamed(t, b, "without scripts"); n != 1 {
		t.Errorf("a double click makes %d keys", n)
	}
	b.press(t, "without scripts", "main")
	b.click(t, "Revoke this key")
	b.press(t, "Revoke without scripts")
	if n := keysNamed(t, b, "without scripts"); n != 0 {
		t.Errorf("%d keys are left", n)
	}
	b.press(t, "Sign out")
	b.sees(t, "You are signed out.")
}

// testBackAndTwice goes back after a form, changes it and sends it again, clicks twice, and edits in two windows at once.
func testBackAndTwice(t *testing.T, w *dashboardWorld) {
	b := w.person
	b.visit(t, "/settings")
	for _, name := range []string{"Platform A", "Platform B"} {
		b.fill(t, "f-tenant-name", name)
		b.press(t, "Rename", "form-tenant")
		b.until(t, "the new name", fmt.Sprintf(`document.querySelector(".tenant, .menu summary").innerText.includes(%q)`, name))
		b.do(t, "going back", chromedp.NavigateBack())
		b.at(t, "/settings")
		b.settle(t)
	}

	b.visit(t, "/keys")
	b.fill(t, "f-create-name", "twice")
	b.click(t, "domains:read")
	b.follow(t, 200, "a double click", chromedp.DoubleClick(named("Make")))
	b.sees(t, "It is shown once.") // the first of the two is the one that counts
	if n := keysNamed(t, b, "twice"); n != 1 {
		t.Errorf("a double click makes %d keys", n)
	}

	other := b.another(t)
	defer other.close()
	other.visit(t, w.domain+"/policy")
	b.visit(t, w.domain+"/policy")
	b.fill(t, "f-policy-max_connections", "2000")
	b.press(t, "Save")
	other.fill(t, "f-policy-max_connections", "3000")
	other.refused(t, 412, "Save")
	other.sees(t, "Now it is 2000")
	other.look(t, "domain-policy-conflict")
	other.press(t, "Save") // on purpose
	if is := evaluate[string](t, other, `document.getElementById("f-policy-max_connections").value`); is != "3000" {
		t.Errorf("the second of two people saves %q", is)
	}
}

// testSessionEnds signs out in one window while a form is filled in in another. Nothing that was typed is lost.
func testSessionEnds(t *testing.T, w *dashboardWorld) {
	b := w.person
	other := b.another(t)
	defer other.close()
	b.visit(t, w.domain+"/policy")
	b.click(t, "Suspended")
	b.fill(t, "f-policy-max_connections", "77")
	other.visit(t, "/")
	other.press(t, "Sign out")
	b.refused(t, 401, "Save")
	b.sees(t, "Your session has ended. Nothing that you typed is lost")
	b.look(t, "session-ended")
	b.signIn(t, firstPassword, 200)
	b.sees(t, "The domain is suspended")
	b.at(t, w.domain+"/policy")
	if is := evaluate[string](t, b, `document.getElementById("f-policy-max_connections").value`); is != "77" {
		t.Errorf("what was typed is %q now", is)
	}
	b.click(t, "Suspended")
	b.press(t, "Save")
}

// testKeyboard walks over a page with the tab key alone.
func testKeyboard(t *testing.T, w *dashboardWorld) {
	b := w.person
	b.visit(t, "/keys")
	b.settle(t)
	// Each thing that has the focus is seen, and is seen to have it.
	const focus = `(() => {
		const e = document.activeElement, r = e.getBoundingClientRect(), s = getComputedStyle(e);
		return { name: e.id || e.innerText.trim(), tag: e.tagName,
			seen: r.width > 0 && r.left >= 0 && r.right <= innerWidth && r.top >= 0 && r.bottom <= innerHeight,
			marked: s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2 };
	})()`
	type focused struct {
		Name, Tag    string
		Seen, Marked bool
	}
	var order []string
	for {
		b.do(t, "the tab key", chromedp.KeyEvent(kb.Tab))
		f := evaluate[focused](t, b, focus)
		if f.Tag == "BODY" || len(order) > 300 || len(order) > 0 && f.Name == order[0] {
			break // around
		}
		if !f.Seen || !f.Marked {
			t.Errorf("with the focus on %s %q: in sight %v, marked %v", f.Tag, f.Name, f.Seen, f.Marked)
		}
		order = append(order, f.Name)
	}
	last := -1
	for _, name := range []string{"Skip to the content", "Sign out", "Overview", "Domains", "Settings", "f-create-name", "f-create-scopes-0", "f-create-expires_at", "Make"} {
		at := slices.Index(order, name)
		if at <= last {
			t.Errorf("the tab key comes to %q at place %d, after place %d: %s", name, at, last, strings.Join(order, " | "))
		}
		last = max(last, at)
	}

	b.visit(t, "/keys")
	b.settle(t)
	b.do(t, "the skip link", chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter))
	b.until(t, "the content to have the focus", `document.activeElement.id === "main"`)
	b.do(t, "focusing a field", chromedp.Focus(chromedp.CSS("#f-create-name")), chromedp.KeyEvent("by keyboard"))
	b.do(t, "choosing a scope", chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(" "), chromedp.Focus(chromedp.CSS("#f-create-name")))
	b.follow(t, 200, "the enter key", chromedp.KeyEvent(kb.Enter))
	b.sees(t, "The key by keyboard")
}

// testRestart takes the service away under a page that is live, and brings it back.
func testRestart(t *testing.T, w *dashboardWorld) {
	const name = "again.example.com"
	b := w.person
	b.visit(t, "/domains/new")
	b.fill(t, "f-domain-name", name)
	b.fill(t, "f-domain-upstreams-0-dial", w.upstream)
	b.press(t, "Add the domain")
	w.domain = strings.TrimSuffix(evaluate[string](t, b, "location.pathname"), "/setup/dns")
	b.visit(t, w.domain)
	b.settle(t)
	loaded := b.loadedAt(t)
	b.expect("net::ERR_")
	w.way.set("")
	w.service.stop(t)
	b.until(t, "the page to say that the service is away", `/again…|does not answer/.test(document.querySelector("[data-live-state]").textContent)`)
	w.service = startSecureService(t, w.service.dir, w.dns, dashboardOptions, dashboardName, w.cert)
	w.service.waitReady(t)
	w.way.set(w.service.secure)
	b.until(t, "the page to be live again", connected)
	b.expect()

	other := b.another(t)
	defer other.close()
	other.visit(t, w.domain+"/policy")
	other.click(t, "Suspended")
	other.press(t, "Save")
	b.until(t, "the page to say what happened since", `document.querySelector("p.state").innerText.includes("suspended")`)
	if b.loadedAt(t) != loaded {
		t.Error("the page was loaded again")
	}
}
