package pqproxy

import (
	"encoding/json"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/dustin/go-humanize"

	"github.com/pqproxy/caddy-pqproxy/internal/caddyblock"
)

// management reads the option of that name.
func (o *options) management(m *Management) {
	m.URL = o.One("a URL", "its other settings go into its block")
	o.Within(func() {
		switch o.Val() {
		case "token":
			m.Token = o.Text()
		case "interval":
			o.Duration(&m.Interval)
		case "max_body":
			o.size(&m.MaxBody)
		case "allow_empty":
			o.Flag(&m.AllowEmpty)
		case "verify_key":
			m.VerifyKeys = append(m.VerifyKeys, o.One("a file", "write a line of its own for each key"))
		case "tls_ca":
			m.tls().CAFile = o.Text()
		case "tls_certificate":
			o.pair(&m.tls().CertificateFile, &m.tls().KeyFile)
		case "tls_server_name":
			m.tls().ServerName = o.Text()
		case "edge":
			m.Edge = o.Text()
		case "region":
			m.Region = o.Text()
		case "report":
			caddyblock.OneOf(&o.Block, &m.Report, ReportOn, ReportOff)
		default:
			o.Unknown("management", "token, interval, max_body, allow_empty, verify_key, tls_ca, tls_certificate, tls_server_name, edge, region, report")
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
	o.NoArgument("upstream_policy")
	o.Within(func() {
		if o.Val() != "allow" {
			o.Unknown("upstream_policy", "allow")
			return
		}
		ranges := o.RemainingArgs()
		if len(ranges) == 0 {
			o.Fail(o.Errf("allow needs ranges such as 10.0.0.0/8"))
		}
		p.Allow = append(p.Allow, ranges...)
	})
}

// pair reads a certificate file and its key file.
func (o *options) pair(certificate, key *string) {
	o.Once()
	option := o.Val()
	args := o.RemainingArgs()
	if len(args) != 2 {
		o.Fail(o.Errf("%s takes a certificate file and a key file, not %q", option, args))
		return
	}
	*certificate, *key = args[0], args[1]
}

// size reads a number of bytes such as 64MiB.
func (o *options) size(into *int64) {
	option := o.Val()
	text := o.Text()
	n, err := humanize.ParseBytes(text)
	if (err != nil || n == 0 || n > 1<<40) && o.Err == nil {
		o.Fail(o.Errf("%s takes a size of more than 0 such as 64MiB, not %q", option, text))
	}
	*into = int64(n)
}

// issuer reads one of Caddy's issuer modules, with whatever arguments and options that has.
func (o *options) issuer(issuers *[]json.RawMessage) {
	if !o.NextArg() {
		o.Fail(o.Errf("issuer needs the name of one of Caddy's issuers, such as acme or internal"))
		return
	}
	name := o.Val()
	module, err := caddyfile.UnmarshalModule(o.Dispenser, "tls.issuance."+name)
	if err != nil {
		o.Fail(err)
		return
	}
	*issuers = append(*issuers, caddyconfig.JSONModuleObject(module, "module", name, nil))
}
