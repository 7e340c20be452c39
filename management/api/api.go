package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// Options are what an API needs to know beside the Plane. The zero value serves.
type Options struct {
	// RateLimit is how many requests a second a credential may make, and twice as many at once; so, too, all requests without a
	// valid credential from one address. 0: no limit. Edges have none.
	RateLimit int

	// ClientAddr returns where a request came from; nil: RemoteAddr. The zero Addr stands for all who have none.
	ClientAddr func(*http.Request) netip.Addr

	Log   *slog.Logger     // nil: slog.Default
	Clock func() time.Time // nil: time.Now
}

// API serves the two faces. It is safe for concurrent use.
type API struct {
	plane       *management.Plane
	core        core
	crossOrigin *auth.CrossOrigin
	rate        *auth.Limiter // by credential
	strangers   *auth.Limiter // by address
	inFlight    *inFlight
	large       chan struct{} // one for each request with a large body
	clientAddr  func(*http.Request) netip.Addr
	log         *slog.Logger
	now         func() time.Time

	routes   []route
	router   map[face]*node
	document *document
}

// core is what the framework itself asks of the Plane.
type core interface {
	principals
	replies
	Ready(ctx context.Context) error
}

const (
	defaultTimeout = 30 * time.Second
	lookupTimeout  = 10 * time.Second // to find out who calls
	mostLarge      = 32               // requests with large bodies at once: 8 MiB each
	mostOfOne      = 128              // requests of one credential, or of one address without one, at once
	mostOfEdge     = 2048
	mostAtOnce     = 8192
)

// New returns an API that serves plane.
func New(plane *management.Plane, opts Options) *API { return newAPI(plane, plane, opts, table()) }

func newAPI(plane *management.Plane, core core, opts Options, routes []route) *API {
	a := &API{
		plane: plane, core: core, clientAddr: opts.ClientAddr, log: opts.Log, now: opts.Clock,
		rate: auth.NewCredentialLimiter(opts.RateLimit, opts.Clock), strangers: auth.NewCredentialLimiter(opts.RateLimit, opts.Clock),
		inFlight: newInFlight(mostAtOnce), large: make(chan struct{}, mostLarge),
	}
	if a.clientAddr == nil {
		a.clientAddr = remoteAddr
	}
	if a.log == nil {
		a.log = slog.Default()
	}
	if a.now == nil {
		a.now = time.Now
	}
	var err error
	if a.crossOrigin, err = auth.NewCrossOrigin(); err != nil {
		panic(err) // no origins, no error
	}
	a.routes = append(routes, a.ownRoutes()...)
	a.router = map[face]*node{onPublic: newRouter(a.routes, onPublic), onEdge: newRouter(a.routes, onEdge)}
	a.document = newDocument(a.routes)
	return a
}

// Public returns the face for customers and operators. It answers all that is not there with a problem document.
func (a *API) Public() http.Handler { return a.handler(onPublic) }

// Edge returns the face for the proxies.
func (a *API) Edge() http.Handler { return a.handler(onEdge) }

// Knows reports whether the public face has something at the path of r, whatever the method: a handler that serves pages at the
// same address asks.
func (a *API) Knows(r *http.Request) bool {
	found, _ := a.router[onPublic].find(r.URL.EscapedPath())
	return found != nil
}

func (a *API) handler(f face) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.serve(f, &tracker{ResponseWriter: w}, r)
	})
}

// serve answers one request. Whatever goes wrong ends here.
func (a *API) serve(f face, w *tracker, r *http.Request) {
	who := &management.Principal{RequestID: newRequestID(), ClientAddr: a.clientAddr(r)}
	commonHeader(w.Header(), who.RequestID)
	c := &call{ctx: r.Context(), plane: a.plane, who: who, request: r, api: a}
	var problem error
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			// The value of a panic may quote what came in: it is for the log alone.
			problem = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
		if problem == nil {
			return
		}
		where := []any{"method", r.Method}
		if c.route != nil {
			where = append(where, "operation", c.route.id)
		}
		if w.began && (r.Context().Err() != nil || errors.Is(problem, errCut) || errors.Is(problem, os.ErrDeadlineExceeded)) {
			a.log.Debug("the client went away in the middle of an answer", append(where, "request_id", who.RequestID, "error", problem)...)
			panic(http.ErrAbortHandler)
		}
		res := problemOf(r.Context(), problem, who.RequestID, a.log, where...)
		if w.began {
			panic(http.ErrAbortHandler) // half an answer is out
		}
		res.write(w, r)
	}()
	problem = a.answer(f, c, w)
}

// answer goes through all that a request has to pass. Cheap refusals come first, and nothing of the body is read before it is
// known who sends it and that he may.
func (a *API) answer(f face, c *call, w *tracker) error {
	r := c.request
	at, path := a.router[f].find(r.URL.EscapedPath())
	if at != nil {
		c.route = at.routes[r.Method]
		if c.route == nil && r.Method == http.MethodHead && at.routes[http.MethodGet] != nil && !at.routes[http.MethodGet].endless {
			c.route = at.routes[http.MethodGet]
		}
	}
	if c.route == nil || c.route.access == byAnybody {
		if c.route != nil && c.route.free {
			return c.route.serve(c, w, path)
		}
		if err := a.admitStranger(c); err != nil {
			return err
		}
	}
	if at == nil {
		return errNoRoute()
	}
	if c.route == nil {
		e := management.Errorf(management.MethodNotAllowed, "This is not done with that method.")
		e.Allow = at.allow
		return e
	}

	timeout := c.route.lasts()
	if timeout > 0 {
		ctx, cancel := context.WithTimeout(c.ctx, timeout)
		defer cancel()
		c.ctx = ctx
	}
	key, most := "address "+auth.AddressKey(c.who.ClientAddr), mostOfOne
	if c.route.access == byAnybody {
		// A page of another origin must not sign somebody in or up, either. Who is no browser has no Origin.
		if !a.crossOrigin.Allow(r) {
			return errCrossOrigin()
		}
	} else {
		if err := a.identify(c); err != nil {
			return err
		}
		key = c.who.Actor()
		if c.route.access == byEdgeToken {
			most = mostOfEdge
		} else if !c.route.free {
			if wait, ok := a.rate.Allow(key); !ok {
				return tooMany(wait)
			}
		}
	}
	if !a.inFlight.enter(key, most) {
		return tooMany(time.Second)
	}
	defer a.inFlight.leave(key)
	if c.route.scope != "" {
		if err := c.who.Require(c.route.scope); err != nil {
			return err
		}
	}
	return c.route.serve(c, w, path)
}

// identify finds out who calls.
func (a *API) identify(c *call) error {
	// The lookup reads the database, and nobody in particular asks: it is bounded by address, as are wrong credentials.
	key := "unknown " + auth.AddressKey(c.who.ClientAddr)
	if !a.inFlight.enter(key, mostOfEdge) {
		return tooMany(time.Second)
	}
	defer a.inFlight.leave(key)
	ctx, cancel := context.WithTimeout(c.ctx, lookupTimeout) // a route may have no timeout of its own
	defer cancel()
	who, presented, err := a.authenticate(ctx, c.request, c.route.access)
	switch {
	case err == nil && who == nil:
		return fmt.Errorf("%s: a credential of nobody", c.route.id)
	case err == nil:
		who.ClientAddr, who.RequestID = c.who.ClientAddr, c.who.RequestID
		c.who = who
		return nil
	}
	// Only what failed is charged, after the fact: who has a valid credential is never locked out by a neighbour's guesses.
	if management.CodeOf(err) == management.Unauthenticated || !presented {
		if limited := a.admitStranger(c); limited != nil {
			return limited
		}
	}
	return err
}

// admitStranger charges the address of a request without a credential.
func (a *API) admitStranger(c *call) error {
	if wait, ok := a.strangers.Allow(auth.AddressKey(c.who.ClientAddr)); !ok {
		return tooMany(wait)
	}
	return nil
}

// lasts is how long the route may take; 0: as long as it likes.
func (r *route) lasts() time.Duration {
	if r.timeout == 0 {
		return defaultTimeout
	}
	return max(r.timeout, 0)
}

// serve reads the request and answers it.
func (r *route) serve(c *call, w *tracker, path map[string]string) error {
	if r.maxBody > defaultMaxBody {
		select {
		case c.api.large <- struct{}{}:
			defer func() { <-c.api.large }()
		case <-c.ctx.Done():
			return management.Errorf(management.Unavailable, "There are too many large requests at once. Try again.")
		}
	}
	if r.in.body == readerBody {
		defer c.deadline(w, 0)
	}
	in, err := c.decode(w, path)
	if err != nil {
		return err
	}
	if r.stream != nil {
		return r.stream(c, in, w)
	}
	res, err := c.once(func() (*response, error) { return r.answer(c, in) })
	if err != nil {
		return err
	}
	res.write(w, c.request)
	return nil
}

func tooMany(wait time.Duration) error {
	e := management.Errorf(management.RateLimited, "There are too many requests. Try again later.")
	e.RetryAfter = max(wait, time.Millisecond)
	return e
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
