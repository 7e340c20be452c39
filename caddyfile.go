package pqproxy

import (
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/pqproxy/caddy-pqproxy/domain"
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
	o := options{Dispenser: d}
	o.noArgument("pqproxy")
	for o.next() {
		switch d.Val() {
		case "http":
			o.once()
			if a.HTTP = d.RemainingArgs(); len(a.HTTP) == 0 {
				o.fail(d.Errf("http needs an address such as :80"))
			}
		case "limits":
			o.once()
			o.limits(&a.Limits)
		case "email":
			a.Email = o.text()
		case "issuer":
			o.issuer(&a.IssuersRaw)
		case "management":
			o.once()
			a.Management = new(Management)
			o.management(a.Management)
		case "upstream_policy":
			o.once()
			o.upstreamPolicy(&a.UpstreamPolicy)
		case "persist_admin":
			o.flag(&a.PersistAdmin)
		case "domain":
			a.Domains = append(a.Domains, o.domain())
		default:
			o.unknown("pqproxy", "http, limits, email, issuer, management, upstream_policy, persist_admin, domain")
		}
	}
	return o.err
}

// options reads the options of a block. The first fault is kept and ends every block.
type options struct {
	*caddyfile.Dispenser
	err  error
	seen map[string]bool
	deep int
}

// next moves to the next option of the block that the dispenser is in.
func (o *options) next() bool { return o.err == nil && o.NextBlock(o.deep) }

// block reads the block of the present option, if it has one.
func (o *options) block(each func()) {
	outer, seen := o.deep, o.seen
	o.deep, o.seen = o.Nesting(), nil
	for o.next() {
		each()
	}
	o.deep, o.seen = outer, seen
}

// fail keeps the first fault, with file and line.
func (o *options) fail(err error) {
	if o.err == nil {
		o.err = err
	}
}

// unknown faults an option that a block does not have.
func (o *options) unknown(block, known string) {
	if o.Val() == "{" {
		o.fail(o.Errf("the option before this { takes no block; remove the block or write its lines beside the option"))
		return
	}
	o.fail(o.Errf("%s has no option %q; there are: %s", block, o.Val(), known))
}

// once faults an option that is given twice in its block.
func (o *options) once() {
	if o.seen == nil {
		o.seen = make(map[string]bool)
	}
	if o.seen[o.Val()] {
		o.fail(o.Errf("%s is given twice; keep one", o.Val()))
	}
	o.seen[o.Val()] = true
}

// noArgument faults arguments of an option whose settings are in its block.
func (o *options) noArgument(option string) {
	if args := o.RemainingArgs(); len(args) > 0 {
		o.fail(o.Errf("%s takes no argument; write its options in a block after it, not %q", option, args[0]))
	}
}

// flag reads an option without an argument.
func (o *options) flag(into *bool) {
	o.once()
	option := o.Val()
	if args := o.RemainingArgs(); len(args) > 0 {
		o.fail(o.Errf("%s takes no argument, its presence switches it on; remove %q", option, args[0]))
	}
	*into = true
}

// text reads the one argument of an option.
func (o *options) text() string {
	o.once()
	return o.one("a value", "put it in quotes if it has spaces")
}

// one reads the one argument of an option: what it is, and what to do with several.
func (o *options) one(what, several string) string {
	option := o.Val()
	args := o.RemainingArgs()
	switch {
	case len(args) == 0:
		o.fail(o.Errf("%s needs %s", option, what))
		return ""
	case len(args) > 1:
		o.fail(o.Errf("%s takes %s, not %d arguments; %s", option, what, len(args), several))
		return ""
	}
	return args[0]
}

// count reads a whole number that is not negative.
func (o *options) count(into *int) {
	option := o.Val()
	text := o.text()
	n, err := strconv.Atoi(text)
	if (err != nil || n < 0) && o.err == nil {
		o.fail(o.Errf("%s takes a whole number such as 1000, not %q", option, text))
	}
	*into = n
}

// duration reads a duration such as 30s or 1h.
func (o *options) duration(into *caddy.Duration) {
	option := o.Val()
	text := o.text()
	d, err := caddy.ParseDuration(text)
	if (err != nil || d <= 0) && o.err == nil {
		o.fail(o.Errf("%s takes a duration of more than 0 such as %s, not %q", option, 30*time.Second, text))
	}
	*into = caddy.Duration(d)
}

// oneOf reads one of a few words.
func oneOf[T ~string](o *options, into *T, words ...T) {
	option := o.Val()
	text := T(o.text())
	for _, w := range words {
		if text == w {
			*into = w
			return
		}
	}
	last := len(words) - 1
	o.fail(o.Errf("%s is %s or %s, not %q", option, join(words[:last]), words[last], text))
}

// join lists words for a message.
func join[T ~string](words []T) string {
	texts := make([]string, len(words))
	for i, w := range words {
		texts[i] = string(w)
	}
	return strings.Join(texts, ", ")
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
	o.noArgument("limits")
	o.block(func() {
		if n := counts[o.Val()]; n != nil {
			o.count(n)
		} else if t := durations[o.Val()]; t != nil {
			o.duration(t)
		} else {
			o.unknown("limits", "max_connections, early_dials, early_dials_per_client, max_hello, handshake_timeout, dial_timeout, idle_timeout, linger, grace_period")
		}
	})
}

func (o *options) domain() (d domain.Domain) {
	d.Name = o.one("a name", "give each name a domain block of its own")
	o.block(func() {
		switch o.Val() {
		case "tenant":
			d.Tenant = o.text()
		case "upstream":
			d.Upstreams = append(d.Upstreams, o.upstream())
		case "load_balancing":
			oneOf(o, &d.LoadBalancing, domain.First, domain.Random, domain.LeastConn, domain.IPHash)
		case "health_check":
			o.once()
			d.HealthCheck = o.healthCheck()
		case "proxy_protocol":
			oneOf(o, &d.ProxyProtocol, domain.ProxyOff, domain.ProxyV1, domain.ProxyV2)
		case "post_quantum":
			oneOf(o, &d.PostQuantum, domain.Prefer, domain.Require, domain.Off)
		case "alpn":
			o.once()
			if d.ALPN = o.RemainingArgs(); len(d.ALPN) == 0 {
				o.fail(o.Errf("alpn needs protocols such as h2 http/1.1; leave it out to learn them from the upstream"))
			}
		case "certificate":
			o.certificate(&d.Certificate)
		case "max_connections":
			o.count(&d.MaxConnections)
		case "suspended":
			o.flag(&d.Suspended)
		default:
			o.unknown("domain", "tenant, upstream, load_balancing, health_check, proxy_protocol, post_quantum, alpn, certificate, max_connections, suspended")
		}
	})
	if len(d.Upstreams) == 0 {
		o.fail(o.Errf("domain %s has no upstream; give one, such as upstream 10.0.0.5:8443", d.Name))
	}
	return d
}

// healthCheck reads the options of active checks. Without any, all of them have their defaults.
func (o *options) healthCheck() *domain.HealthCheck {
	h := new(domain.HealthCheck)
	o.noArgument("health_check")
	o.block(func() {
		switch o.Val() {
		case "type":
			oneOf(o, &h.Type, domain.HealthTCP, domain.HealthTLS)
		case "interval":
			o.duration((*caddy.Duration)(&h.Interval))
		case "timeout":
			o.duration((*caddy.Duration)(&h.Timeout))
		case "rise":
			o.count(&h.Rise)
		case "fall":
			o.count(&h.Fall)
		default:
			o.unknown("health_check", "type, interval, timeout, rise, fall")
		}
	})
	return h
}

func (o *options) certificate(c *domain.Certificate) {
	o.once()
	switch args := o.RemainingArgs(); {
	case len(args) == 2:
		*c = domain.Certificate{Source: domain.BYOC, ChainFile: args[0], KeyFile: args[1]}
	case len(args) == 1 && (args[0] == string(domain.ACME) || args[0] == string(domain.Internal)):
		c.Source = domain.CertificateSource(args[0])
	default:
		o.fail(o.Errf("certificate takes a chain file and a key file, or the word acme or internal, not %q", args))
	}
}

func (o *options) upstream() (u domain.Upstream) {
	u.Dial = o.one("an address", "write a line of its own for each upstream")
	tls := func() *domain.UpstreamTLS {
		if u.TLS == nil {
			u.TLS = new(domain.UpstreamTLS)
		}
		return u.TLS
	}
	o.block(func() {
		switch o.Val() {
		case "tls":
			var on bool
			o.flag(&on)
			tls()
		case "tls_server_name":
			tls().ServerName = o.text()
		case "tls_ca":
			tls().CAFile = o.text()
		case "tls_post_quantum":
			oneOf(o, &tls().PostQuantum, domain.Prefer, domain.Require, domain.Off)
		case "tls_insecure_skip_verify":
			o.flag(&tls().InsecureSkipVerify)
		case "region":
			u.Region = o.text()
		default:
			o.unknown("upstream", "tls, tls_server_name, tls_ca, tls_post_quantum, tls_insecure_skip_verify, region")
		}
	})
	return u
}

// Interface guard
var _ caddyfile.Unmarshaler = (*App)(nil)
