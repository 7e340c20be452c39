// Package domain is the wire format of a domain: the host name of a tenant with its settings, as the
// management plane publishes it, the admin API accepts it and the edge runs it. One Go type, one parser
// and one validator serve all three. The package knows no Caddy, no SQL and no HTTP.
//
//	d, err := domain.Parse([]byte(`{"name":"app.example.com","upstreams":[{"dial":"10.0.0.5:8443"}]}`), domain.Remote)
//
// Parse reads a record from JSON; (*Domain).Normalize does the same for a value that something else
// decoded. What either of them accepted is in normal form: names are A-labels in lower case, addresses are
// written in one way, defaults are filled in, and the JSON of it parses to an equal value. Later code
// relies on that and checks nothing twice.
//
// A BYOC pair is carried but not looked into, since whether it is good depends on the time: see CheckPair.
// Whether a domain may point where it does is package netpolicy's question.
package domain

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Source says who gave a domain.
type Source string

// The sources, in order of precedence: a name in two of them is served as the first one says. Static
// alone may name files and unix sockets of the edge; any other value is held to the rules of Remote.
const (
	Static Source = "static" // the Caddy configuration
	Admin  Source = "admin"  // the admin API
	Remote Source = "remote" // the management plane
)

// PostQuantum is a policy for the key exchange.
type PostQuantum string

// The policies. The empty value means Prefer.
const (
	Prefer  PostQuantum = "prefer"  // hybrid groups, and classical ones for peers that have no hybrid
	Require PostQuantum = "require" // hybrid groups alone
	Off     PostQuantum = "off"     // classical groups alone
)

// LoadBalancing says in which order the upstreams of a domain are tried.
type LoadBalancing string

// The orders. The empty value means First.
const (
	First     LoadBalancing = "first"      // as listed: the later ones are for fail-over
	Random    LoadBalancing = "random"     // a random one first
	LeastConn LoadBalancing = "least_conn" // the one with the fewest open connections of this edge first
	IPHash    LoadBalancing = "ip_hash"    // the same one for the same client address, while the list stays the same
)

// ProxyProtocol is the version of the PROXY protocol header that an upstream is sent.
type ProxyProtocol string

// The versions. The empty value means ProxyOff.
const (
	ProxyOff ProxyProtocol = "off"
	ProxyV1  ProxyProtocol = "v1"
	ProxyV2  ProxyProtocol = "v2"
)

// CertificateSource says where the certificate of a domain comes from.
type CertificateSource string

// The certificate sources. The empty value means ACME.
const (
	ACME     CertificateSource = "acme"     // obtained from the edge's issuers
	Internal CertificateSource = "internal" // Caddy's local CA
	BYOC     CertificateSource = "byoc"     // the tenant's own pair
)

// What is done when a BYOC pair expires, for Certificate.Fallback. The empty value means FallbackNone.
const (
	FallbackNone = "none" // it goes on being served, until the tenant brings a new one: clients that verify refuse it and say why
	FallbackACME = "acme" // one from the edge's issuers is served, obtained a week ahead; until there is one, the pair
)

// Limits of a record.
const (
	MaxSize      = 1 << 20 // bytes of JSON that Parse reads: what the API takes as a body
	MaxUpstreams = 16
	MaxALPN      = 16
	MaxLabel     = 128 // bytes of Tenant and of Region
)

// Domain is a host name of a tenant with its settings.
//
// Its JSON carries the private key. Everything that prints a Domain for people (fmt, log/slog, zap's Any)
// leaves it out, whatever the verb. The exception is a Domain in an unexported field of another struct that
// is printed itself: fmt cannot call methods there. Hold a *Domain, whose address is all that %v, %+v and
// %#v show there, and log Name.
type Domain struct {
	// Name is the host name as an A-label in lower case without a final dot, or `*.` and such a name,
	// which covers one label. Input may be Unicode, upper case, and end with a dot.
	// At most 253 bytes; no IP address literals. Underscores are allowed: clients send them, and a
	// tenant's own CA signs them, though public CAs do not. One label (`localhost`) is enough.
	Name string `json:"name"`

	// Tenant is the customer account that the domain belongs to. It is opaque here: printable, at most
	// 128 bytes. Default: empty.
	Tenant string `json:"tenant,omitempty"`

	// Upstreams are where the traffic of the domain goes: 1 to 16 of them, each `dial` once.
	Upstreams []Upstream `json:"upstreams"`

	// LoadBalancing is the order in which upstreams are tried: `first` (default; fail over in the order
	// listed), `random`, `least_conn`, `ip_hash`.
	LoadBalancing LoadBalancing `json:"load_balancing,omitempty"`

	// HealthCheck, where present, has the edge check the upstreams by itself; `{}` is all defaults. Absent:
	// no upstream is connected to but for clients.
	HealthCheck *HealthCheck `json:"health_check,omitempty"`

	// ProxyProtocol tells the upstream the client's address with a PROXY protocol header of that
	// version, in clear before any TLS: `off` (default), `v1`, `v2`.
	ProxyProtocol ProxyProtocol `json:"proxy_protocol,omitempty"`

	// PostQuantum is the key-exchange policy towards clients: `prefer` (default), `require` (clients
	// without a hybrid group are refused with handshake_failure), `off`.
	PostQuantum PostQuantum `json:"post_quantum,omitempty"`

	// ALPN, where set, is what clients are offered, the first that they know winning, and replaces
	// learning from the upstream. Normally absent; an empty list is the same as absent. At most 16 names
	// of 1 to 255 bytes, each once, and never `acme-tls/1`.
	ALPN []string `json:"alpn,omitempty"`

	// Certificate says where the domain's certificate comes from. Default: `{"source":"acme"}`.
	Certificate Certificate `json:"certificate,omitzero"`

	// MaxConnections is the highest number of connections that this domain may have open on one edge.
	// Default: 0, no limit of its own. Never negative.
	MaxConnections int `json:"max_connections,omitempty"`

	// Suspended refuses new connections (alert unrecognized_name) and ends open ones. Default: false.
	Suspended bool `json:"suspended,omitempty"`
}

// Upstream is an address that a domain's traffic goes to.
type Upstream struct {
	// Dial is `host:port`, `[v6]:port`, or (static source only) `unix//path`. The port is a number from 1
	// to 65535. A final dot of the host stays: it keeps the resolver's search list away. An IPv6 zone
	// (`[fe80::1%eth0]:443`) names an interface of the edge, so static source only.
	Dial string `json:"dial"`

	// TLS, where present, encrypts towards the upstream. Absent: plain TCP.
	TLS *UpstreamTLS `json:"tls,omitempty"`

	// Region is a label for people: printable, at most 128 bytes. Default: empty.
	Region string `json:"region,omitempty"`
}

// UpstreamTLS is how the edge speaks TLS 1.3 to an upstream. The zero value verifies the upstream's
// name and chain against the system's roots.
type UpstreamTLS struct {
	// ServerName is sent as SNI and must be covered by the upstream's certificate. Default: the host of
	// `dial`; where that is an IP address or a socket, the name that the client asked for. An IP address
	// is allowed: the certificate must then name it, and no SNI is sent.
	ServerName string `json:"server_name,omitempty"`

	// CAPEM holds the PEM certificates that the upstream's chain must end in, instead of the system's
	// roots: at least one, and nothing but certificates.
	CAPEM string `json:"ca_pem,omitempty"`

	// CAFile names a file of the same content (static source only).
	CAFile string `json:"ca_file,omitempty"`

	// PostQuantum is the key-exchange policy towards the upstream: `prefer` (default), `require`, `off`.
	PostQuantum PostQuantum `json:"post_quantum,omitempty"`

	// InsecureSkipVerify accepts any certificate from the upstream, so whoever sits between can read and
	// change the traffic. It is warned about. CAPEM and CAFile are without effect then. Default: false.
	InsecureSkipVerify bool `json:"insecure_skip_verify,omitempty"`
}

// Certificate says where the certificate of a domain comes from.
type Certificate struct {
	// Source is `acme` (default), `internal` (Caddy's local CA) or `byoc`.
	Source CertificateSource `json:"source,omitempty"`

	// ChainPEM and KeyPEM are the tenant's pair (`byoc`, which needs one): leaf first, then its
	// intermediates; an unencrypted PKCS #8, PKCS #1 or SEC 1 key.
	ChainPEM string `json:"chain_pem,omitempty"`
	KeyPEM   string `json:"key_pem,omitempty"`

	// ChainFile and KeyFile name files of the same content (static source only), instead of both of the above.
	ChainFile string `json:"chain_file,omitempty"`
	KeyFile   string `json:"key_file,omitempty"`

	// Fallback is what is done when the pair expires: `none` (default) or `acme` (`byoc` only, and not for
	// a wildcard).
	Fallback string `json:"fallback,omitempty"`
}

// Network returns what net.Dialer takes: "unix" and the path, or "tcp" and Dial.
func (u Upstream) Network() (network, address string) {
	if path, ok := strings.CutPrefix(u.Dial, unixPrefix); ok {
		return "unix", path
	}
	return "tcp", u.Dial
}

// TLSServerName returns the name that the upstream's certificate must cover, for a client that asked for
// the host name asked: see UpstreamTLS.ServerName for the order. u is in normal form, TLS may be nil.
func (u Upstream) TLSServerName(asked string) string {
	if u.TLS != nil && u.TLS.ServerName != "" {
		return u.TLS.ServerName
	}
	network, address := u.Network()
	if network == "unix" {
		return asked
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return asked
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return asked
	}
	return strings.TrimSuffix(host, ".")
}

// Warnings returns what is allowed but dangerous in d, one sentence each, beginning with the field. The
// edge logs them when d goes live. None: nil.
func (d *Domain) Warnings() []string {
	var warnings []string
	for i, u := range d.Upstreams {
		if u.TLS == nil || !u.TLS.InsecureSkipVerify {
			continue
		}
		w := fmt.Sprintf("upstreams[%d].tls.insecure_skip_verify: any certificate is accepted from %s, so whoever sits between can read and change the traffic", i, quote(u.Dial))
		if u.TLS.CAPEM != "" || u.TLS.CAFile != "" {
			w += "; the CA given beside it is not used"
		}
		warnings = append(warnings, w)
	}
	return warnings
}

// Clone returns a copy that shares no memory with d that could be written to.
func (d *Domain) Clone() *Domain {
	c := *d
	c.ALPN = slices.Clone(d.ALPN)
	c.Upstreams = slices.Clone(d.Upstreams)
	for i, u := range c.Upstreams {
		if u.TLS != nil {
			t := *u.TLS
			c.Upstreams[i].TLS = &t
		}
	}
	if d.HealthCheck != nil {
		h := *d.HealthCheck
		c.HealthCheck = &h
	}
	return &c
}

// Redacted returns a copy of d without its private key: what may be shown. The copy of a `byoc` domain is
// no valid record any more.
func (d *Domain) Redacted() *Domain {
	c := d.Clone()
	c.Certificate.KeyPEM = ""
	return c
}

// String returns d as JSON, with "(set)" in place of every PEM text.
func (d Domain) String() string {
	c := d.Clone()
	c.Certificate = c.Certificate.brief()
	for _, u := range c.Upstreams {
		if u.TLS != nil {
			hide(&u.TLS.CAPEM)
		}
	}
	return toJSON(c)
}

// Format prints String whatever the verb: %+v, %#v and mistakes such as %d would print the fields, and with
// them the key.
func (d Domain) Format(s fmt.State, _ rune) { io.WriteString(s, d.String()) }

// LogValue keeps the key out of log/slog, whose JSON handler would marshal d.
func (d Domain) LogValue() slog.Value { return slog.StringValue(d.String()) }

// String returns c as JSON, with "(set)" in place of both PEM texts.
func (c Certificate) String() string { return toJSON(c.brief()) }

// Format prints String whatever the verb, as Domain's does.
func (c Certificate) Format(s fmt.State, _ rune) { io.WriteString(s, c.String()) }

// LogValue keeps the key out of log/slog.
func (c Certificate) LogValue() slog.Value { return slog.StringValue(c.String()) }

func (c Certificate) brief() Certificate {
	hide(&c.ChainPEM)
	hide(&c.KeyPEM)
	return c
}

func hide(s *string) {
	if *s != "" {
		*s = "(set)"
	}
}

func toJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return "(" + err.Error() + ")" // no such value can be built from these types
	}
	return string(text)
}

// Interface guards.
var (
	_ json.Unmarshaler = (*Domain)(nil)
	_ fmt.Formatter    = Domain{}
	_ fmt.Formatter    = Certificate{}
	_ slog.LogValuer   = Domain{}
	_ slog.LogValuer   = Certificate{}
)
