package dashboard

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// Options are what a Dashboard needs to know beside the Plane. The zero value serves.
type Options struct {
	// PublicURL is where people reach the API, for curl lines; nil: the host that the browser asked for.
	PublicURL *url.URL

	// SignupOpen shows the page where people sign up; the Plane decides whether they can.
	SignupOpen bool

	// RateLimit is how many requests a second a user may make, and all who are not signed in from one address; twice as many at
	// once. 0: no limit. Static files are not counted.
	RateLimit int

	// ClientAddr returns where a request came from; nil: RemoteAddr.
	ClientAddr func(*http.Request) netip.Addr

	Log   *slog.Logger     // nil: slog.Default
	Clock func() time.Time // nil: time.Now
}

// Dashboard serves the pages. It is safe for concurrent use.
type Dashboard struct {
	plane       *management.Plane
	opts        Options
	crossOrigin *auth.CrossOrigin
	users       *auth.Limiter
	strangers   *auth.Limiter
	streams     *streams
	routes      []route
	pages       map[string]*pageTemplate
	static      *staticFiles
	secret      [32]byte // of this process: signs and seals what a page carries for minutes
	log         *slog.Logger
	now         func() time.Time
}

// New returns a Dashboard of plane. It panics where a template or a route is wrong: that is a mistake in the program.
func New(plane *management.Plane, opts Options) *Dashboard { return newDashboard(plane, opts, table()) }

func newDashboard(plane *management.Plane, opts Options, routes []route) *Dashboard {
	d := &Dashboard{
		plane: plane, opts: opts, streams: newStreams(), routes: routes, log: opts.Log, now: opts.Clock,
		users: auth.NewCredentialLimiter(opts.RateLimit, opts.Clock), strangers: auth.NewCredentialLimiter(opts.RateLimit, opts.Clock),
	}
	if d.opts.ClientAddr == nil {
		d.opts.ClientAddr = remoteAddr
	}
	if d.log == nil {
		d.log = slog.Default()
	}
	if d.now == nil {
		d.now = time.Now
	}
	rand.Read(d.secret[:])
	var err error
	if d.crossOrigin, err = auth.NewCrossOrigin(); err != nil {
		panic(err) // no origins, no error
	}
	checkRoutes(routes)
	d.static = newStatic()
	d.pages = parsePages()
	return d
}

// Close ends the streams of live pages, which connect again by themselves. Requests go on being served.
func (d *Dashboard) Close() { d.streams.close() }

// policy is the Content-Security-Policy of all that is served here: nothing inline, nothing from elsewhere.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; " +
	"frame-ancestors 'none'; base-uri 'none'"

// setHeaders sets what every answer has.
func setHeaders(h http.Header, requestID string) {
	h.Set("X-Request-Id", requestID)
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	// Not no-referrer: with it browsers send `Origin: null` with forms, and one without Sec-Fetch-Site would be refused.
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
}

// Knows reports whether there is a page or a file at the path of r, whatever the method.
func (d *Dashboard) Knows(r *http.Request) bool {
	if strings.HasPrefix(r.URL.Path, staticPath) {
		return true
	}
	found, _ := d.match(r.URL.EscapedPath())
	return len(found) > 0 || d.serves(strings.TrimRight(r.URL.EscapedPath(), "/"))
}

const pageTimeout = 30 * time.Second // for everything but streams

// ServeHTTP answers one request. Whatever goes wrong ends here.
func (d *Dashboard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	who := &management.Principal{RequestID: management.NewID("req_"), ClientAddr: d.opts.ClientAddr(r)}
	setHeaders(w.Header(), who.RequestID)
	if strings.HasPrefix(r.URL.Path, staticPath) {
		d.static.serve(w, r)
		return
	}
	c := &ctx{ctx: r.Context(), cancel: func() {}, dash: d, plane: d.plane, who: who, w: w, r: r}
	defer func() { c.cancel() }()
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p == http.ErrAbortHandler || c.written {
			panic(http.ErrAbortHandler) // half an answer is out
		}
		// The value of a panic may quote what came in: it is for the log alone.
		c.out = nil
		c.fail(fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
		c.write()
	}()
	if err := c.answer(); err != nil {
		c.out = nil
		c.fail(err)
	}
	c.write()
}

// answer goes through all that a request has to pass.
func (c *ctx) answer() error {
	found, path := c.dash.match(c.r.URL.EscapedPath())
	if found == nil {
		if to := strings.TrimRight(c.r.URL.EscapedPath(), "/"); isRead(c.r) && c.dash.serves(to) {
			return c.seeOther(to + query(c.r.URL.RawQuery))
		}
	}
	c.path = path
	for _, rt := range found {
		if rt.method == c.r.Method || rt.method == http.MethodGet && c.r.Method == http.MethodHead {
			c.route = rt
		}
	}
	if c.route == nil || c.route.access == byAnybody {
		if wait, ok := c.dash.strangers.Allow(auth.AddressKey(c.who.ClientAddr)); !ok {
			return tooMany(wait)
		}
	}
	if c.route == nil {
		if err := c.identify(); err != nil && management.CodeOf(err) == management.Internal {
			return err
		}
		if len(found) == 0 {
			return management.Errorf(management.NotFound, "There is no such page.")
		}
		e := management.Errorf(management.MethodNotAllowed, "This page is not made for that method.")
		for _, rt := range found {
			e.Allow = append(e.Allow, rt.method)
		}
		return e
	}
	if !c.route.endless {
		c.ctx, c.cancel = context.WithTimeout(c.ctx, max(c.route.timeout, pageTimeout))
	}
	if err := c.readQuery(); err != nil {
		return err
	}
	if c.r.Method == http.MethodPost {
		// Also of those who are not signed in: another site must not sign anybody in, or set anything up.
		if !c.dash.crossOrigin.Allow(c.r) {
			return management.Errorf(management.CrossOrigin, "The form came from another site. Open the page here and send it again.")
		}
		if err := c.readForm(); err != nil {
			return err
		}
	}
	return c.run()
}

// run calls the handler for whoever may.
func (c *ctx) run() error {
	if c.route.access == byUser {
		if err := c.identify(); err != nil {
			return err
		}
		if wait, ok := c.dash.users.Allow(c.who.Actor()); !ok {
			return tooMany(wait)
		}
		if c.route.scope != "" {
			if err := c.who.Require(c.route.scope); err != nil {
				return err
			}
		}
	}
	if c.r.Method != http.MethodPost {
		return c.route.handle(c)
	}
	err := c.unread
	if err == nil {
		err = c.onceOnly(c.route.handle)
	}
	if err == nil || !c.showAgain(err) {
		return err
	}
	e, status := c.expected(err)
	c.refusal, c.status, c.out = e, status, nil
	return c.route.again(c)
}

// showAgain reports whether the form is shown again for that error: then nothing that was typed is lost.
func (c *ctx) showAgain(err error) bool {
	if c.route.again == nil {
		return false
	}
	switch management.CodeOf(err) {
	case management.NotFound, management.CrossOrigin, management.TooLarge:
		return false
	case management.Unauthenticated:
		return c.route.access == byAnybody // a wrong password, not a session that ended
	}
	return true
}

func tooMany(wait time.Duration) error {
	e := management.Errorf(management.RateLimited, "There are too many requests. Try again in a moment.")
	e.RetryAfter = max(wait, time.Millisecond)
	return e
}

func isRead(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }

func query(raw string) string {
	if raw == "" {
		return ""
	}
	return "?" + raw
}

// remoteAddr is the TCP peer.
func remoteAddr(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	return addr.Unmap().WithZone("")
}
