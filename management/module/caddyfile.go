package module

import (
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/pqproxy/caddy-pqproxy/internal/caddyblock"
)

func init() {
	httpcaddyfile.RegisterGlobalOption(appName, parseGlobalOption)
	httpcaddyfile.RegisterHandlerDirective(appName, parseDirective)
	httpcaddyfile.RegisterDirectiveOrder(appName, httpcaddyfile.Before, "respond")
}

func parseGlobalOption(d *caddyfile.Dispenser, existing any) (any, error) {
	if existing != nil {
		d.Next() // for the line
		return nil, d.Errf("%s is given twice; keep one", appName)
	}
	var app App
	if err := app.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: appName, Value: caddyconfig.JSON(&app, nil)}, nil
}

func parseDirective(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	return handler, handler.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile reads the directive:
//
//	pqproxy_management public|edge
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	b := caddyblock.Block{Dispenser: d}
	caddyblock.OneOf(&b, &h.Face, publicFace, edgeFace)
	b.Within(func() { b.Unknown(appName, "none: settings go into the global option of that name") })
	return b.Err
}

// UnmarshalCaddyfile reads the global option:
//
//	pqproxy_management {
//		database            sqlite|postgres <file or URL>
//		public_url          <url>
//		setup_token         <placeholder>
//		master_key          <placeholder>
//		signing_key         <file>
//		target              a|aaaa|cname <value>
//		resolver            <address>
//		certificate_sources <acme|byoc|internal...>
//		signup              closed|open
//		smtp <host:port> {
//			from     <address>
//			username <name>
//			password <placeholder>
//		}
//		retention {
//			connections <duration>
//			usage       <duration>
//			audit       <duration>
//		}
//		client_ip  full|prefix
//		rate_limit <requests a second>
//		upstream_policy {
//			allow <ranges...>
//		}
//	}
//
// master_key, target and resolver may be repeated. A placeholder is {env.NAME} or {file./path}.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	b := &caddyblock.Block{Dispenser: d}
	b.NoArgument(appName)
	for b.More() {
		switch d.Val() {
		case "database":
			b.Once()
			two(b, "a driver and a file or URL, such as sqlite /var/lib/pqproxy/management.db", &a.Database.Driver, &a.Database.Source)
		case "public_url":
			a.PublicURL = b.Text()
		case "setup_token":
			a.SetupToken = b.Text()
		case "master_key":
			a.MasterKeys = append(a.MasterKeys, b.One("a placeholder", "write a line of its own for each key"))
		case "signing_key":
			a.SigningKey = b.Text()
		case "target":
			var t Target
			two(b, "a type and a value, such as a 203.0.113.10", &t.Type, &t.Value)
			a.Targets = append(a.Targets, t)
		case "resolver":
			a.Resolvers = append(a.Resolvers, b.One("an address", "write a line of its own for each server"))
		case "certificate_sources":
			b.Once()
			if a.CertificateSources = d.RemainingArgs(); len(a.CertificateSources) == 0 {
				b.Fail(d.Errf("certificate_sources needs sources such as acme byoc"))
			}
		case "signup":
			caddyblock.OneOf(b, &a.Signup, "closed", "open")
		case "smtp":
			b.Once()
			a.SMTP = &SMTP{Address: b.One("host:port", "its other settings go into its block")}
			b.Within(func() { a.SMTP.option(b) })
		case "retention":
			b.Once()
			b.NoArgument("retention")
			b.Within(func() { a.Retention.option(b) })
		case "client_ip":
			caddyblock.OneOf(b, &a.ClientIP, "full", "prefix")
		case "rate_limit":
			a.RateLimit = new(int)
			b.Count(a.RateLimit)
		case "upstream_policy":
			b.Once()
			b.NoArgument("upstream_policy")
			b.Within(func() { a.UpstreamPolicy.option(b) })
		default:
			b.Unknown(appName, "database, public_url, setup_token, master_key, signing_key, target, resolver, certificate_sources, signup, smtp, retention, client_ip, rate_limit, upstream_policy")
		}
	}
	return b.Err
}

// two reads the two arguments of an option.
func two(b *caddyblock.Block, what string, first, second *string) {
	option := b.Val()
	args := b.RemainingArgs()
	if len(args) != 2 {
		b.Fail(b.Errf("%s takes %s, not %d arguments", option, what, len(args)))
		return
	}
	*first, *second = args[0], args[1]
}

func (s *SMTP) option(b *caddyblock.Block) {
	switch b.Val() {
	case "from":
		s.From = b.Text()
	case "username":
		s.Username = b.Text()
	case "password":
		s.Password = b.Text()
	default:
		b.Unknown("smtp", "from, username, password")
	}
}

func (r *Retention) option(b *caddyblock.Block) {
	switch b.Val() {
	case "connections":
		b.Duration(&r.Connections)
	case "usage":
		b.Duration(&r.Usage)
	case "audit":
		b.Duration(&r.Audit)
	default:
		b.Unknown("retention", "connections, usage, audit")
	}
}

func (p *UpstreamPolicy) option(b *caddyblock.Block) {
	if b.Val() != "allow" {
		b.Unknown("upstream_policy", "allow")
		return
	}
	ranges := b.RemainingArgs()
	if len(ranges) == 0 {
		b.Fail(b.Errf("allow needs ranges such as 10.0.0.0/8"))
	}
	p.Allow = append(p.Allow, ranges...)
}

// Interface guards.
var (
	_ caddyfile.Unmarshaler = (*App)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
)
