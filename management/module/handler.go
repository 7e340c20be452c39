package module

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/api"
)

func init() {
	caddy.RegisterModule(new(Handler))
}

// The faces.
const (
	publicFace = "public"
	edgeFace   = "edge"
)

// Handler serves one face of the management plane: `public`, for customers and operators, or `edge`, for the proxies. It
// answers every request itself, with a 404 for all that belongs to the other face.
type Handler struct {
	// Face is `public` or `edge`. Both are to have an address of their own: the edge face need not be reachable from the
	// internet. It speaks plain HTTP to loopback peers alone, since edges send a token.
	Face string `json:"face"`

	app *App
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers." + appName, New: func() caddy.Module { return new(Handler) }}
}

// Provision finds the app, which exists with its defaults where the config does not have it.
func (h *Handler) Provision(ctx caddy.Context) error {
	if h.Face != publicFace && h.Face != edgeFace {
		return fmt.Errorf("face is %s or %s, not %q", publicFace, edgeFace, h.Face)
	}
	app, err := ctx.App(appName)
	if err != nil {
		return err
	}
	h.app = app.(*App)
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		// At the end of the process a server waits for its requests, by default without limit, and some of ours end when the
		// client wants. After a reload they may go on as long as the service does.
		server.RegisterOnShutdown(func() {
			if caddy.Exiting() {
				exit()
			}
		})
	}
	return nil
}

// ServeHTTP answers the request. next is never called.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	if h.Face == edgeFace && r.TLS == nil && !fromLoopback(r) {
		api.WriteProblem(w, r, management.Errorf(management.Forbidden, "The edge face speaks TLS to peers that are not on this machine."))
		return nil
	}
	// Whether the process is alive is no question for a database.
	alive := r.URL.Path == "/healthz" && (r.Method == http.MethodGet || r.Method == http.MethodHead)
	wait := r.Context().Done()
	if alive {
		wait = already
	}
	// A server of an old config may still read a request when all else of the config has ended.
	for app, before := h.app, (*App)(nil); app != nil && app != before; app, before = latest(), app {
		if h.answer(app, wait, w, r) {
			return nil
		}
	}
	if alive {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		io.WriteString(w, `{"status":"ok"}`+"\n")
		return nil
	}
	api.WriteProblem(w, r, unavailable())
	return nil
}

// answer has the service of an app answer, and reports false where it has none.
func (h *Handler) answer(app *App, done <-chan struct{}, w http.ResponseWriter, r *http.Request) bool {
	serving := app.service(done)
	if serving == nil {
		return false
	}
	face := serving.public
	if h.Face == edgeFace {
		face = serving.edge
	}
	return serving.answer(face, w, r)
}

// already is closed.
var already = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// retryAfter is when clients are to try again while the database is away.
const retryAfter = 2 * time.Second

// unavailable is what everybody is told while the database is away: why is in the log.
func unavailable() *management.Error {
	e := management.Errorf(management.Unavailable, "The service is not ready. Traffic is not affected; try again.")
	e.RetryAfter = retryAfter
	return e
}

// fromLoopback reports whether the TCP peer, whatever it says about clients behind it, is on this machine.
func fromLoopback(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr == "" || r.RemoteAddr == "@" // a unix socket
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// clientAddr returns the client's address as Caddy sees it, trusted_proxies included.
func clientAddr(r *http.Request) netip.Addr {
	text, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}
	}
	return addr.Unmap().WithZone("")
}

// Interface guards.
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
