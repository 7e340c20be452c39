package pqproxy

import (
	"encoding/json"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/dustin/go-humanize"
)

// management reads the option of that name.
func (o *options) management(m *Management) {
	m.URL = o.one("a URL", "its other settings go into its block")
	o.block(func() {
		switch o.Val() {
		case "token":
			m.Token = o.text()
		case "interval":
			o.duration(&m.Interval)
		case "max_body":
			o.size(&m.MaxBody)
		case "allow_empty":
			o.flag(&m.AllowEmpty)
		case "verify_key":
			m.VerifyKeys = append(m.VerifyKeys, o.one("a file", "write a line of its own for each key"))
		case "tls_ca":
			m.tls().CAFile = o.text()
		case "tls_certificate":
			o.pair(&m.tls().CertificateFile, &m.tls().KeyFile)
		case "tls_server_name":
			m.tls().ServerName = o.text()
		default:
			o.unknown("management", "token, interval, max_body, allow_empty, verify_key, tls_ca, tls_certificate, tls_server_name")
		}
	})
}

func (m *Management) tls() *ManagementTLS {
	if m.TLS == nil {
		m.TLS = new(ManagementTLS)
	}
	return m.TLS
}

// upstreamPolicy reads the option upstream_policy.
func (o *options) upstreamPolicy(p *UpstreamPolicy) {
	o.noArgument("upstream_policy")
	o.block(func() {
		if o.Val() != "allow" {
			o.unknown("upstream_policy", "allow")
			return
		}
		ranges := o.RemainingArgs()
		if len(ranges) == 0 {
			o.fail(o.Errf("allow needs ranges such as 10.0.0.0/8"))
		}
		p.Allow = append(p.Allow, ranges...)
	})
}

// pair reads a certificate file and its key file.
func (o *options) pair(certificate, key *string) {
	o.once()
	option := o.Val()
	args := o.RemainingArgs()
	if len(args) != 2 {
		o.fail(o.Errf("%s takes a certificate file and a key file, not %q", option, args))
		return
	}
	*certificate, *key = args[0], args[1]
}

// size reads a number of bytes such as 64MiB.
func (o *options) size(into *int64) {
	option := o.Val()
	text := o.text()
	n, err := humanize.ParseBytes(text)
	if (err != nil || n == 0 || n > 1<<40) && o.err == nil {
		o.fail(o.Errf("%s takes a size of more than 0 such as 64MiB, not %q", option, text))
	}
	*into = int64(n)
}

// issuer reads one of Caddy's issuer modules, with whatever arguments and options that has.
func (o *options) issuer(issuers *[]json.RawMessage) {
	if !o.NextArg() {
		o.fail(o.Errf("issuer needs the name of one of Caddy's issuers, such as acme or internal"))
		return
	}
	name := o.Val()
	module, err := caddyfile.UnmarshalModule(o.Dispenser, "tls.issuance."+name)
	if err != nil {
		o.fail(err)
		return
	}
	*issuers = append(*issuers, caddyconfig.JSONModuleObject(module, "module", name, nil))
}
