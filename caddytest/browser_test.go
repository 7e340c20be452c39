package caddytest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// chromium is one browser for all tabs of a test.
type chromium struct {
	ctx    context.Context
	origin string // of the service: https://name
}

// startChromium runs a browser that finds a name at an address, and takes the certificate of that pin there.
func startChromium(t *testing.T, name, addr, pin string) *chromium {
	t.Helper()
	home := t.TempDir()
	allocator, stop := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(peer(t, "chromium")), chromedp.Env("HOME="+home), chromedp.UserDataDir(filepath.Join(home, "profile")),
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.WindowSize(1280, 900),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.Flag("disable-extensions", true),
		// Tabs in the background run as the one in front does.
		chromedp.Flag("disable-background-timer-throttling", true), chromedp.Flag("disable-backgrounding-occluded-windows", true),
		chromedp.Flag("disable-renderer-backgrounding", true), chromedp.Flag("force-color-profile", "srgb"), chromedp.Flag("no-proxy-server", true),
		chromedp.Flag("ignore-certificate-errors-spki-list", pin),
		chromedp.Flag("host-resolver-rules", "MAP "+name+" "+addr+", MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"))
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		cancel()
		stop()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting Chromium: %v", err)
	}
	return &chromium{ctx: ctx, origin: "https://" + name}
}

// tab is a page that somebody looks at. Whatever the browser complains about is a fault, and fails the test that asks for faults.
type tab struct {
	ctx    context.Context
	origin string
	close  func() // checks for faults

	mu       sync.Mutex // guards all below
	faults   []string
	expected []string // parts of faults that the test provokes
	shifts   []shift  // of the layout, of the page that is open; without those that follow an input
	requests map[network.RequestID]*request
}

// shift is a shift of the layout, as the browser weighs it: the part of the screen that moved, times how far.
type shift struct {
	Value float64
	What  string
}

// request is something that a page has loaded.
type request struct {
	url              string
	kind             network.ResourceType
	encoded, decoded int64 // bytes: as they came, with headers; as they are read
	done             bool
}

// open opens a tab with cookies and a cache of its own.
func (c *chromium) open(t *testing.T) *tab {
	t.Helper()
	return openTab(t, c.ctx, c.origin, chromedp.WithNewBrowserContext())
}

// another opens a tab of the same person.
func (b *tab) another(t *testing.T) *tab {
	t.Helper()
	return openTab(t, b.ctx, b.origin)
}

// watchScript runs in each page before all else, in a world of its own that the page's policy says nothing about.
const watchScript = `
addEventListener("securitypolicyviolation", (e) => watched(JSON.stringify({
	fault: "the policy refuses " + e.violatedDirective + ": " + e.blockedURI + " " + e.sourceFile + ":" + e.lineNumber + " " + e.sample })), true);
new PerformanceObserver((list) => {
	for (const e of list.getEntries()) if (!e.hadRecentInput) watched(JSON.stringify({
		shift: e.value, what: e.sources.map((s) => (s.node?.outerHTML || s.node?.textContent || "?").slice(0, 200)
			+ " from " + JSON.stringify(s.previousRect) + " to " + JSON.stringify(s.currentRect)).join("; ") }));
}).observe({ type: "layout-shift", buffered: true });`

func openTab(t *testing.T, parent context.Context, origin string, options ...chromedp.ContextOption) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(parent, options...)
	b := &tab{ctx: ctx, origin: origin, requests: make(map[network.RequestID]*request)}
	b.close = sync.OnceFunc(func() {
		b.check(t)
		cancel()
	})
	t.Cleanup(b.close)
	if err := chromedp.Do(ctx); err != nil { // without a deadline, which would be the tab's
		t.Fatal(err)
	}
	if err := chromedp.Listen(ctx, b.see); err != nil {
		t.Fatal(err)
	}
	const world = "watch"
	call(t, b, audits.Enable, cdp.Empty{})
	call(t, b, runtime.AddBinding, runtime.AddBindingParams{Name: "watched", ExecutionContextName: world})
	call(t, b, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: watchScript, WorldName: world})
	return b
}

// see takes note of what the browser says. It runs on the goroutine that reads from it.
func (b *tab) see(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventBindingCalled:
		var said struct {
			Fault, What string
			Shift       float64
		}
		if err := json.Unmarshal([]byte(e.Payload), &said); err != nil {
			b.fault("what a page reports: %v", err)
		}
		if said.Fault != "" {
			b.fault("%s", said.Fault)
		}
		if said.Shift > 0 {
			b.shifts = append(b.shifts, shift{said.Shift, said.What})
		}
	case *runtime.EventConsoleAPICalled:
		if e.Type == "error" || e.Type == "warning" || e.Type == "assert" {
			var words []string
			for _, arg := range e.Args {
				words = append(words, string(arg.Value)+arg.Description)
			}
			b.fault("console.%s: %s", e.Type, strings.Join(words, " "))
		}
	case *runtime.EventExceptionThrown:
		b.fault("exception: %s", asJSON(e.ExceptionDetails))
	case *log.EventEntryAdded:
		if e.Entry.Level == "error" || e.Entry.Level == "warning" {
			b.fault("%s %s: %s %s", e.Entry.Source, e.Entry.Level, e.Entry.Text, e.Entry.URL)
		}
	case *audits.EventIssueAdded:
		b.fault("issue %s: %s", e.Issue.Code, asJSON(e.Issue.Details))
	case *network.EventRequestWillBeSent:
		if e.Type == network.ResourceTypeDocument && string(e.RequestID) == string(e.LoaderID) {
			clear(b.requests)
			b.shifts = nil
		}
		b.requests[e.RequestID] = &request{url: e.Request.URL, kind: e.Type}
	case *network.EventDataReceived:
		if r := b.requests[e.RequestID]; r != nil {
			r.decoded += e.DataLength
		}
	case *network.EventLoadingFinished:
		if r := b.requests[e.RequestID]; r != nil {
			r.encoded, r.done = int64(e.EncodedDataLength), true
		}
	case *network.EventLoadingFailed:
		// A page that is left, and a stream that a script closes, are cancelled.
		if r := b.requests[e.RequestID]; r != nil && !e.Canceled && e.ErrorText != "net::ERR_ABORTED" {
			b.fault("%s of %s failed: %s %s", e.Type, r.url, e.ErrorText, e.BlockedReason)
		}
	}
}

func asJSON(v any) string {
	out, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// fault notes what is wrong. The caller holds the mutex.
func (b *tab) fault(format string, args ...any) {
	said := fmt.Sprintf(format, args...)
	known := slices.ContainsFunc(b.expected, func(part string) bool { return strings.Contains(said, part) })
	if !known && !slices.Contains(b.faults, said) {
		b.faults = append(b.faults, said)
	}
}

// expect names parts of the faults that the test is about to provoke, and nothing else that it named before.
func (b *tab) expect(parts ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expected = parts
}

// status is what the browser's log says of an answer with that status, for expect.
func status(code int) string { return "responded with a status of " + strconv.Itoa(code) }

// taken returns the faults so far, and forgets them.
func (b *tab) taken() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	faults := b.faults
	b.faults = nil
	return faults
}

// check fails the test for each fault.
func (b *tab) check(t *testing.T) {
	t.Helper()
	for _, fault := range b.taken() {
		t.Errorf("the browser says: %s", fault)
	}
}

// call runs one command of the DevTools protocol.
func call[P, R any](t *testing.T, b *tab, command cdp.Command[P, R], params P) R {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	result, err := chromedp.Call(ctx, command, params)
	if err != nil {
		t.Fatalf("%s: %v", command.Method, err)
	}
	return result
}

// do runs actions.
func (b *tab) do(t *testing.T, what string, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience/2)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.lost(t, "%s: %v", what, err)
	}
}

// lost ends the test, and says where it was.
func (b *tab) lost(t *testing.T, format string, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	where, _ := chromedp.Run(ctx, chromedp.Evaluate[string](`location.href + "\n" + document.body.innerText`))
	if picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100)); err == nil {
		if err := os.WriteFile(filepath.Join(screenshots(t), "lost.png"), picture, 0o644); err != nil {
			t.Error(err)
		}
	}
	t.Fatalf("%s; the page is %s", fmt.Sprintf(format, args...), where)
}

// evaluate asks the page.
func evaluate[T any](t *testing.T, b *tab, script string) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience/2)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		b.lost(t, "%s: %v", script, err)
	}
	return v
}

// until asks the page again until the script says true.
func (b *tab) until(t *testing.T, what, script string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		if evaluate[bool](t, b, "Boolean("+script+")") {
			return
		}
		if time.Now().After(deadline) {
			b.lost(t, "waited in vain for %s", what)
		}
	}
}

// sees waits until the page says something.
func (b *tab) sees(t *testing.T, words ...string) {
	t.Helper()
	for _, w := range words {
		b.until(t, "the page to say "+strconv.Quote(w), "document.body.innerText.includes("+strconv.Quote(w)+")")
	}
}

// says returns the text of what a CSS selector finds first.
func (b *tab) says(t *testing.T, selector string) string {
	t.Helper()
	return evaluate[string](t, b, "document.querySelector("+strconv.Quote(selector)+")?.innerText ?? ''")
}

// follow does what leads to another page, waits until that has loaded, and wants that status.
func (b *tab) follow(t *testing.T, want int64, what string, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience/2)
	defer cancel()
	answer, err := chromedp.RunResponse(ctx, actions...)
	if err != nil {
		b.lost(t, "%s: %v", what, err)
	}
	if answer == nil || answer.Status != want {
		b.lost(t, "%s: the answer is %s, want %d", what, asJSON(answer), want)
	}
}

// visit opens a page of the service by its path.
func (b *tab) visit(t *testing.T, path string) {
	t.Helper()
	b.follow(t, 200, "opening "+path, chromedp.Navigate(b.origin+path))
}

// at wants the page to be at that path.
func (b *tab) at(t *testing.T, path string) {
	t.Helper()
	if is := evaluate[string](t, b, "location.pathname"); is != path {
		b.lost(t, "the page is at %s, want %s", is, path)
	}
}

// named finds what can be clicked by what it says. It is in that part of the page, if one is given: the ID of an element.
func named(label string, in ...string) chromedp.Search {
	scope := ""
	for _, id := range in {
		scope = fmt.Sprintf("//*[@id=%q]", id)
	}
	return chromedp.Search(fmt.Sprintf("%s//*[self::a or self::button or self::summary or self::label][normalize-space()=%q]", scope, label))
}

// click clicks on what says that.
func (b *tab) click(t *testing.T, label string, in ...string) {
	t.Helper()
	b.do(t, "clicking on "+label, chromedp.Click(named(label, in...)))
}

// press is click where that leads to another page.
func (b *tab) press(t *testing.T, label string, in ...string) {
	t.Helper()
	b.follow(t, 200, "pressing "+label, chromedp.Click(named(label, in...)))
}

// refused is press where the service refuses the form with that status.
func (b *tab) refused(t *testing.T, code int64, label string, in ...string) {
	t.Helper()
	b.expect(status(int(code)))
	b.follow(t, code, "pressing "+label, chromedp.Click(named(label, in...)))
	b.expect()
}

// fill writes into the field of that ID, as by pasting, after a click on its label.
func (b *tab) fill(t *testing.T, id, content string) {
	t.Helper()
	b.do(t, "writing into "+id,
		chromedp.Click(chromedp.CSS(fmt.Sprintf("label[for=%q]", id))),
		chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			focused, err := chromedp.Evaluate[string](`document.activeElement.select(), document.activeElement.id`)(ctx, target)
			if err == nil && focused != id {
				err = fmt.Errorf("a click on the label leads to %q", focused)
			}
			if err != nil {
				return err
			}
			_, err = cdp.Call(ctx, target, input.InsertText, input.InsertTextParams{Text: content})
			return err
		}))
	if is := evaluate[string](t, b, "document.getElementById("+strconv.Quote(id)+").value"); strings.ReplaceAll(is, "\r\n", "\n") != content {
		t.Errorf("%s has %q after writing", id, is)
	}
}

// choose chooses the option with that value, by the keyboard.
func (b *tab) choose(t *testing.T, id, value string) {
	t.Helper()
	quoted := strconv.Quote(id)
	text := evaluate[string](t, b, fmt.Sprintf("[...document.getElementById(%s).options].find((o) => o.value === %q)?.text ?? ''", quoted, value))
	if text == "" {
		b.lost(t, "%s has no option %q", id, value)
	}
	b.do(t, "choosing "+value, chromedp.SendKeys(chromedp.CSS("#"+strings.ReplaceAll(id, ".", `\.`)), text))
	if is := evaluate[string](t, b, "document.getElementById("+quoted+").value"); is != value {
		b.lost(t, "%s is %q after choosing %q", id, is, value)
	}
}

// connected is true where a page says that what is live in it is.
const connected = `/^(?!.*(again|does not answer|no longer)).+/.test(document.querySelector("[data-live-state]").textContent)`

// settle waits until the page has loaded, what is live in it is connected, and two frames are drawn.
func (b *tab) settle(t *testing.T) {
	t.Helper()
	b.until(t, "the page to be loaded and live", `document.readyState === "complete" &&
		(!document.querySelector("[data-live]") || `+connected+")")
	b.frames(t)
}

// copies clicks on a button that copies, and returns what is in the clipboard then.
func (b *tab) copies(t *testing.T, label string) string {
	t.Helper()
	b.click(t, label)
	b.sees(t, "Copied")
	return evaluate[string](t, b, "navigator.clipboard.readText()")
}

// screenshots returns the folder of pictures, which git ignores and CI keeps.
func screenshots(t *testing.T) string {
	t.Helper()
	dir := filepath.Join("..", "screenshots")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
