package pqproxy

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/mholt/caddy-l4/layer4"
)

func init() {
	caddy.RegisterModule(&Handler{})
}

// Handler is the terminal caddy-l4 handler that serves a connection: it terminates TLS 1.3, routes by SNI,
// tells the upstream the client's address and relays until both sides ended. Domains and limits are
// those of the `pqproxy` app. The listener of its server should be of the network `pqproxy/`, such as
// `pqproxy/:443`: it survives reloads and running out of descriptors.
//
// It may stand behind caddy-l4's `proxy_protocol` handler, whose addresses it passes on, and behind
// matchers; it must not stand behind a handler that terminates TLS.
type Handler struct {
	app *App
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "layer4.handlers.pqproxy",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision finds the app, which may itself be provisioning still.
func (h *Handler) Provision(ctx caddy.Context) error {
	app, err := ctx.App("pqproxy")
	if err != nil {
		return err
	}
	h.app = app.(*App)
	h.app.handlers.Add(1)
	return nil
}

// Handle serves the connection and returns when it has ended. Faults of peers are in the connection's
// record and no error here.
func (h *Handler) Handle(cx *layer4.Connection, _ layer4.Handler) error {
	// Caddy starts apps in any order: layer4 may accept before there is a table. It also stops them in any
	// order: a connection may come when this app is gone and the state serves for its successor.
	select {
	case <-h.app.state.ready:
	case <-h.app.gone:
		select {
		case <-h.app.state.ready:
		default:
			return nil // the config never came into force
		}
	}
	h.app.state.serve(cx)
	return nil
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	pqproxy
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the handler's name
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("the pqproxy handler takes no options; domains and limits belong in the global option pqproxy, found %q", d.Val())
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Handler)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
	_ layer4.NextHandler    = (*Handler)(nil)
)
