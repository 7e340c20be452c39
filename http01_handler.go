package pqproxy

import (
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(&HTTP01{})
	httpcaddyfile.RegisterHandlerDirective("pqproxy_http01", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		handler := new(HTTP01)
		return handler, handler.UnmarshalCaddyfile(h.Dispenser)
	})
	// Before everything that answers, and before everything that changes the path.
	httpcaddyfile.RegisterDirectiveOrder("pqproxy_http01", httpcaddyfile.Before, "redir")
}

// HTTP01 is an HTTP handler for an existing server on port 80: it answers the challenges of ACME's HTTP-01 for the
// domains of the app `pqproxy`, and redirects all other requests for their names to https. What is for other names goes on
// to the next handler, and so does what came by TLS.
//
// Choose it where Caddy serves sites on port 80, be it only their redirects; choose the app's option `http` where
// nothing else uses the port.
type HTTP01 struct{}

// CaddyModule returns the Caddy module information.
func (*HTTP01) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.pqproxy_http01",
		New: func() caddy.Module { return new(HTTP01) },
	}
}

// Provision sees to it that the config has the app, which may itself be provisioning still.
func (*HTTP01) Provision(ctx caddy.Context) error {
	app, err := ctx.App("pqproxy")
	if err != nil {
		return err
	}
	app.(*App).http01s.Add(1)
	return nil
}

// ServeHTTP answers by the config in force, which need not be the one that the handler belongs to: both run side by
// side during a reload.
func (*HTTP01) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if s := inForce.Load(); s != nil && r.TLS == nil && s.answerHTTP(w, r, nil) {
		return nil
	}
	return next.ServeHTTP(w, r)
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	pqproxy_http01 [<matcher>]
func (*HTTP01) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("pqproxy_http01 takes no options; domains belong in the global option pqproxy, found %q", d.Val())
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner           = (*HTTP01)(nil)
	_ caddyfile.Unmarshaler       = (*HTTP01)(nil)
	_ caddyhttp.MiddlewareHandler = (*HTTP01)(nil)
)
