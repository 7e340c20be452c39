package pqproxy

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/caddyblock"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("pqproxy", parseGlobalOption)
}

// parseGlobalOption adapts the global option `pqproxy`.
func parseGlobalOption(d *caddyfile.Dispenser, existing any) (any, error) {
	if existing != nil {
		d.Next() // so that the error has its line
		return nil, d.Err("the global option pqproxy is given twice; put everything in one block")
	}
	app := new(App)
	if err := app.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "pqproxy", Value: caddyconfig.JSON(app, nil)}, nil
}

// UnmarshalCaddyfile sets up the app from Caddyfile tokens. Each option is the JSON key of the same name, `tls_x` is
// `tls.x`, and what may be repeated is the singular of its plural key. Syntax:
//
//	pqproxy {
//		http <addresses...>
//		limits {
//			max_connections        <count>
//			early_dials            <count>
//			early_dials_per_client <count>
//			max_hello              <bytes>
//			handshake_timeout      <duration>
//			dial_timeout           <duration>
//			idle_timeout           <duration>
//			linger                 <duration>
//			grace_period           <duration>
//		}
//		email           <address>
//		issuer          <name> [<arguments...>] {
//			...
//		}
//		management <url> {
//			token           <placeholder>
//			interval        <duration>
//			max_body        <size>
//			allow_empty
//			verify_key      <file>
//			tls_ca          <file>
//			tls_certificate <certificate file> <key file>
//			tls_server_name <name>
//			edge            <name>
//			region          <name>
//			report          on|off
//		}
//		upstream_policy {
//			allow <ranges...>
//		}
//		persist_admin
//		domain <name> {
//			tenant          <tenant>
//			upstream <address> {
//				tls
//				tls_server_name          <name>
//				tls_ca                   <file>
//				tls_post_quantum         prefer|require|off
//				tls_insecure_skip_verify
//				region                   <label>
//			}
//			load_balancing  first|random|least_conn|ip_hash
//			health_check {
//				type     tcp|tls
//				interval <duration>
//				timeout  <duration>
//				rise     <count>
//				fall     <count>
//			}
//			proxy_protocol  off|v1|v2
//			post_quantum    prefer|require|off
//			alpn            <protocols...>
//			certificate     <chain file> <key file>
//			certificate     acme|internal
//			max_connections <count>
//			suspended
//		}
//	}
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	o := options{caddyblock.Block{Dispenser: d}}
	o.NoArgument("pqproxy")
	for o.More() {
		switch d.Val() {
		case "http":
			o.Once()
			if a.HTTP = d.RemainingArgs(); len(a.HTTP) == 0 {
				o.Fail(d.Errf("http needs an address such as :80"))
			}
		case "limits":
			o.Once()
			o.limits(&a.Limits)
		case "email":
			a.Email = o.Text()
		case "issuer":
			o.issuer(&a.IssuersRaw)
		case "management":
			o.Once()
			a.Management = new(Management)
			o.management(a.Management)
		case "upstream_policy":
			o.Once()
			o.upstreamPolicy(&a.UpstreamPolicy)
		case "persist_admin":
			o.Flag(&a.PersistAdmin)
		case "domain":
			a.Domains = append(a.Domains, o.domain())
		default:
			o.Unknown("pqproxy", "http, limits, email, issuer, management, upstream_policy, persist_admin, domain")
		}
	}
	return o.Err
}

// options are those of a block, with what the app's own blocks have.
type options struct {
	caddyblock.Block
}

func (o *options) limits(l *Limits) {
	counts := map[string]*int{
		"max_connections": &l.MaxConnections, "early_dials": &l.EarlyDials,
		"early_dials_per_client": &l.EarlyDialsPerClient, "max_hello": &l.MaxHello,
	}
	durations := map[string]*caddy.Duration{
		"handshake_timeout": &l.HandshakeTimeout, "dial_timeout": &l.DialTimeout, "idle_timeout": &l.IdleTimeout,
		"linger": &l.Linger, "grace_period": &l.GracePeriod,
	}
	o.NoArgument("limits")
	o.Within(func() {
		if n := counts[o.Val()]; n != nil {
			o.Count(n)
		} else if t := durations[o.Val()]; t != nil {
			o.Duration(t)
		} else {
			o.Unknown("limits", "max_connections, early_dials, early_dials_per_client, max_hello, handshake_timeout, dial_timeout, idle_timeout, linger, grace_period")
		}
	})
}

func (o *options) domain() (d domain.Domain) {
	d.Name = o.One("a name", "give each name a domain block of its own")
	o.Within(func() {
		switch o.Val() {
		case "tenant":
			d.Tenant = o.Text()
		case "upstream":
			d.Upstreams = append(d.Upstreams, o.upstream())
		case "load_balancing":
			caddyblock.OneOf(&o.Block, &d.LoadBalancing, domain.First, domain.Random, domain.LeastConn, domain.IPHash)
		case "health_check":
			o.Once()
			d.HealthCheck = o.healthCheck()
		case "proxy_protocol":
			caddyblock.OneOf(&o.Block, &d.ProxyProtocol, domain.ProxyOff, domain.ProxyV1, domain.ProxyV2)
		case "post_quantum":
			caddyblock.OneOf(&o.Block, &d.PostQuantum, domain.Prefer, domain.Require, domain.Off)
		case "alpn":
			o.Once()
			if d.ALPN = o.RemainingArgs(); len(d.ALPN) == 0 {
				o.Fail(o.Errf("alpn needs protocols such as h2 http/1.1; leave it out to learn them from the upstream"))
			}
		case "certificate":
			o.certificate(&d.Certificate)
		case "max_connections":
			o.Count(&d.MaxConnections)
		case "suspended":
			o.Flag(&d.Suspended)
		default:
			o.Unknown("domain", "tenant, upstream, load_balancing, health_check, proxy_protocol, post_quantum, alpn, certificate, max_connections, suspended")
		}
	})
	if len(d.Upstreams) == 0 {
		o.Fail(o.Errf("domain %s has no upstream; give one, such as upstream 10.0.0.5:8443", d.Name))
	}
	return d
}

// healthCheck reads the options of active checks. Without any, all of them have their defaults.
func (o *options) healthCheck() *domain.HealthCheck {
	h := new(domain.HealthCheck)
	o.NoArgument("health_check")
	o.Within(func() {
		switch o.Val() {
		case "type":
			caddyblock.OneOf(&o.Block, &h.Type, domain.HealthTCP, domain.HealthTLS)
		case "interval":
			o.Duration((*caddy.Duration)(&h.Interval))
		case "timeout":
			o.Duration((*caddy.Duration)(&h.Timeout))
		case "rise":
			o.Count(&h.Rise)
		case "fall":
			o.Count(&h.Fall)
		default:
			o.Unknown("health_check", "type, interval, timeout, rise, fall")
		}
	})
	return h
}

func (o *options) certificate(c *domain.Certificate) {
	o.Once()
	switch args := o.RemainingArgs(); {
	case len(args) == 2:
		*c = domain.Certificate{Source: domain.BYOC, ChainFile: args[0], KeyFile: args[1]}
	case len(args) == 1 && (args[0] == string(domain.ACME) || args[0] == string(domain.Internal)):
		c.Source = domain.CertificateSource(args[0])
	default:
		o.Fail(o.Errf("certificate takes a chain file and a key file, or the word acme or internal, not %q", args))
	}
}

func (o *options) upstream() (u domain.Upstream) {
	u.Dial = o.One("an address", "write a line of its own for each upstream")
	tls := func() *domain.UpstreamTLS {
		if u.TLS == nil {
			u.TLS = new(domain.UpstreamTLS)
		}
		return u.TLS
	}
	o.Within(func() {
		switch o.Val() {
		case "tls":
			var on bool
			o.Flag(&on)
			tls()
		case "tls_server_name":
			tls().ServerName = o.Text()
		case "tls_ca":
			tls().CAFile = o.Text()
		case "tls_post_quantum":
			caddyblock.OneOf(&o.Block, &tls().PostQuantum, domain.Prefer, domain.Require, domain.Off)
		case "tls_insecure_skip_verify":
			o.Flag(&tls().InsecureSkipVerify)
		case "region":
			u.Region = o.Text()
		default:
			o.Unknown("upstream", "tls, tls_server_name, tls_ca, tls_post_quantum, tls_insecure_skip_verify, region")
		}
	})
	return u
}

// Interface guard
var _ caddyfile.Unmarshaler = (*App)(nil)
