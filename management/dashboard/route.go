package dashboard

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// route is one page, or one thing that a form does.
type route struct {
	method string // GET, which answers HEAD too, or POST
	path   string // such as /domains/{id}; a literal segment beats a parameter

	access access           // default: whoever is signed in
	scope  management.Scope // what the Plane's method asks for, refused before anything is done; empty: any user will do

	handle func(c *ctx) error
	again  func(c *ctx) error // of a POST: shows its form again when it is refused

	maxBody int64         // bytes of a form; default 1 MiB
	timeout time.Duration // default, and least: 30 s
	endless bool          // a stream: it has no timeout
	nav     string        // the path of the entry of the navigation that it belongs to; default: its first segment
}

// access says who gets in.
type access uint8

const (
	byUser    access = iota // whoever is signed in
	byAnybody               // no session is looked at
)

const maxPath = 1024 // bytes

// checkRoutes panics where two routes are in one place, or one cannot work.
func checkRoutes(routes []route) {
	seen := map[string]bool{}
	for _, rt := range routes {
		key := rt.method + " " + rt.path
		switch {
		case seen[key]:
			panic(key + " is there twice")
		case rt.handle == nil, rt.method != http.MethodGet && rt.method != http.MethodPost, !strings.HasPrefix(rt.path, "/"):
			panic(fmt.Sprintf("%s is no route", key))
		case rt.again != nil && rt.method != http.MethodPost:
			panic(key + ": nothing is refused but forms")
		}
		seen[key] = true
	}
}

// match returns the routes at a path, as it came, and its parameters; nil where there are none. Paths have one spelling.
func (d *Dashboard) match(escaped string) (found []*route, path map[string]string) {
	if len(escaped) > maxPath || !strings.HasPrefix(escaped, "/") {
		return nil, nil
	}
	segments := strings.Split(escaped[1:], "/")
	best := ""
	for i := range d.routes {
		rt := &d.routes[i]
		values, ok := rt.fits(segments)
		switch {
		case !ok:
		case found != nil && best == rt.path:
			found = append(found, rt)
		case found == nil || strings.Count(rt.path, "{") < strings.Count(best, "{"):
			found, path, best = []*route{rt}, values, rt.path
		}
	}
	return found, path
}

// fits compares the path segment by segment.
func (rt *route) fits(segments []string) (values map[string]string, ok bool) {
	pattern := strings.Split(rt.path[1:], "/")
	if len(pattern) != len(segments) {
		return nil, false
	}
	for i, want := range pattern {
		name, isParam := strings.CutPrefix(want, "{")
		if !isParam {
			if want != segments[i] {
				return nil, false
			}
			continue
		}
		value, err := url.PathUnescape(segments[i])
		if err != nil || value == "" || !clean(value) {
			return nil, false
		}
		if values == nil {
			values = map[string]string{}
		}
		values[strings.TrimSuffix(name, "}")] = value
	}
	return values, true
}

// serves reports whether there is a page at a path.
func (d *Dashboard) serves(escaped string) bool {
	found, _ := d.match(escaped)
	for _, rt := range found {
		if rt.method == http.MethodGet && !rt.endless {
			return true
		}
	}
	return false
}

// clean reports whether text can be a parameter: UTF-8 without control characters, which no name or ID has and which PostgreSQL
// takes in no text.
func clean(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl)
}

// localPage returns next if it is a page of ours, with its query; else the start page. It is what keeps /login?next= from leading
// elsewhere: //host, /\host, absolute URLs and whatever a browser makes of control characters are no pages of ours.
func (d *Dashboard) localPage(next string) string {
	const start = "/"
	if len(next) > 2*maxPath || !clean(next) || strings.Contains(next, `\`) || !strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") {
		return start
	}
	u, err := url.Parse(next)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" || !d.serves(u.EscapedPath()) {
		return start
	}
	switch u.Path {
	case "/login", "/logout", "/setup":
		return start
	}
	return (&url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery}).String()
}
