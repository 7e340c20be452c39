// Package dashboard is the pages that people look at: written on the server, with a few small scripts for what is live.
//
//	pages := dashboard.New(plane, dashboard.Options{})
//	http.Handle("/", pages)
//
// # How a page is added
//
// A page is one Go file and one template, templates/pages/NAME.html. The file has a function that returns its routes, which table.go calls:
//
//	func keyRoutes() []route {
//		return []route{
//			{method: "GET", path: "/keys", scope: management.KeysWrite, handle: showKeys},
//			{method: "POST", path: "/keys", scope: management.KeysWrite, handle: createKey, again: showKeys},
//		}
//	}
//
// A handler calls a method of c.plane with c.ctx and c.who, and returns an error as it came, or c.render("keys", "API keys", data) for a
// GET, or c.flash(…) and c.redirect(path) for a POST. What is told once (secrets) is rendered from the POST itself. A POST that is refused
// calls `again`, the GET's handler: the form is shown with what was typed, the faults at their fields, and the code's status. Parameters:
// c.param("id"), c.query("q"), c.page(25), c.span(day); forms: c.value("name"), c.body(text("name"), flag("suspended")), c.match().
//
// The template defines "main"; its dot is a *view, and .Data is what the handler gave. Layout, h1, navigation, flash come from layout.html.
//
//	{{define "main"}}
//	{{$f := $.Form "create" "/keys"}}{{/* "version" .Data.Version adds If-Match; names are the JSON keys, /a/0/b is a.0.b */}}
//	{{template "form" $f}}
//	{{template "field" ($f.Text "name" "Name" "hint" "For people." "required" true "value" .Data.Name)}}
//	{{template "field" ($f.Select "role" "Role" "options" (options "viewer" "Viewer"))}}
//	<button type="submit">Create</button>
//	{{template "end" $f}}
//	{{end}}
//
// What else there is to know:
//
//   - Every link goes through $.URL "/path" "name" value…: it carries the tenant. A form's action is the plain path. $.With "status" "active" is
//     this page with another parameter. Values of parameters are compared with constants before they choose anything.
//   - Components (components.html, testdata/components.html): badge (badge "ok" "Live"), (status .Status), (axis .State), (pq .PostQuantum); empty,
//     pager, filter and $.Filter, when ($.When .T), copy, curl ($.Curl …), progress, steps, tabs, plot, waterfall, calendar; dl.facts, .cards-row
//     and .card, .note, .actions, details.confirm. Formats: count, bytes, percent, seconds, words.
//   - Tables that phones show as cards: <table class="cards" role="table">, rowgroup, row and cell roles, <th scope>, data-label on each td.
//   - Live: <div data-live="{{$.URL "/keys/live"}}">{{template "part-keys" .}}</div> and {{template "live-state" .}}; "part-keys" is defined in the
//     same file, and its route is {method: "GET", path: "/keys/live", endless: true, handle: live("keys", "part-keys", 2*time.Second, load)},
//     where load returns what the page has as data. What data-live-say in the part has is said aloud when it changes. For a tail: c.stream,
//     sendFragment("prepend", …), keep; data-live-max bounds the rows.
//   - Nothing inline: no style=, no on…=, no <style>, no <script>. Headings go h1, h2, h3. Every input comes from "field". Never template.HTML of
//     what came from outside. Nothing of a password, key or token in a page, but a new secret in the answer to the POST that made it.
//
// TestPages opens what is in the navigation and in the list in pages_test.go, and checks all of the above; call check for pages that need an ID.
// harness_test.go has a browser for stories, story_test.go examples of them. templates/pages/settings.html and settings.go are a page to copy.
//
// TestDashboard of caddytest clicks through all of it in headless Chromium, against the real service with real edges: a violation of the policy,
// a message in the console, a failed request, a shift of the layout, or anything that axe-core finds fails it. It leaves pictures of every page
// in screenshots/ (desktop light, phone dark), which CI keeps: whoever changes a page looks at them. A new page goes into its list of pages, or
// is looked at with b.look where the story comes by.
//
// # What holds it together
//
// The session's cookie and the tenant in form, query or cookie make the Principal; scopes are refused before a handler runs, and decided in
// Plane. Forms pass auth.CrossOrigin. A form has a random `_once`: sent twice, it is answered once, through Plane's idempotency. A session
// that ended in the middle of a form leads to a page to sign in that carries what was typed, secrets apart, and sends it again. Pages are
// executed into memory and then written; what is no *management.Error is logged under the request's ID and shown as a neutral sentence.
package dashboard
