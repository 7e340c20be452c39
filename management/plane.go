package management

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"net/url"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// What a Tx reports about rows.
var (
	ErrNoRow     = errors.New("no such row")
	ErrRowExists = errors.New("the row exists")
)

// What is kept of clients' addresses.
const (
	ClientIPFull   = "full"   // all of it
	ClientIPPrefix = "prefix" // the /24, or the /48 of IPv6
)

// Target is an address of the edges: what customers point their names at.
type Target struct {
	Type  string // "a", "aaaa" or "cname"
	Value string // an address, or a host name in normal form
}

// Retention is how long what was observed is kept.
type Retention struct {
	Connections time.Duration // default 14 days
	Usage       time.Duration // default 400 days
	Audit       time.Duration // default 400 days
}

// Config is what the operator decides. The zero value of each field is its default.
type Config struct {
	PublicURL  *url.URL // where people reach the public face; nil: links are paths
	SetupToken string   // what the first run asks for; never empty
	Targets    []Target // none: the axis dns is "off"

	// CertificateSources are what domains may choose. Default: acme, byoc.
	CertificateSources []domain.CertificateSource

	SignupOpen     bool
	Retention      Retention
	ClientIP       string            // ClientIPFull (default) or ClientIPPrefix
	UpstreamPolicy *netpolicy.Policy // nil: netpolicy's own defaults
	CAAIssuers     []string          // issuer domains that CAA records must allow; none: not compared
}

// Sealer encrypts what must not be readable in the database. Package vault has it.
type Sealer interface {
	// Seal encrypts plaintext, bound to the context: Open with another one fails.
	Seal(plaintext []byte, context string) ([]byte, error)
	Open(sealed []byte, context string) ([]byte, error)
	// Rewrap returns sealed under the first master key, and false where it already was.
	Rewrap(sealed []byte) ([]byte, bool, error)
}

// Passwords hashes and checks passwords. Package auth has it.
type Passwords interface {
	// Check returns what is wrong with a new password, for people; nil: nothing.
	Check(password, email string) error
	Hash(ctx context.Context, password string) (string, error)
	// Verify takes as long for an empty hash, which nothing matches. stale: hash the password again.
	Verify(ctx context.Context, hash, password string) (ok, stale bool, err error)
}

// Mailer sends mail to people. It returns at once; what cannot be delivered is logged. A nil Mailer: there is no mail.
type Mailer interface {
	SendVerification(to, link string)
	SendAlreadyRegistered(to, link string)
	SendInvitation(to, tenant, link string)
	SendReset(to, link string)
}

// Parts are what a Plane is made of.
type Parts struct {
	Store     Store
	Sealer    Sealer
	Passwords Passwords
	Auth      Auth   // nil: nobody can sign in
	Mailer    Mailer // nil: no mail
	Resolver  Resolver
	Prober    Prober
	Signer    Signer           // nil: the feed is not signed
	Log       *slog.Logger     // nil: slog.Default
	Clock     func() time.Time // nil: time.Now
}

// Signer signs the feed. *feedsig.PrivateKey is one.
type Signer interface {
	// Sign returns the value of the header PQProxy-Signature for a body of that SHA-512.
	Sign(digest [64]byte) string
}

// Plane is the management plane: its methods are what can be done. It is safe for concurrent use.
type Plane struct {
	cfg       Config
	store     Store
	sealer    Sealer
	passwords Passwords
	auth      Auth
	mailer    Mailer
	resolver  Resolver
	prober    Prober
	signer    Signer
	log       *slog.Logger
	clock     func() time.Time

	identity identity // identity.go's own state: throttles and the like
	domains  domains  // domain_*.go's own state
	edges    edges    // edge_*.go's own state: the feed's cache, who waits
}

// New returns a Plane. It starts nothing: see Run.
func New(cfg Config, parts Parts) (*Plane, error) {
	switch {
	case parts.Store == nil || parts.Sealer == nil || parts.Passwords == nil || parts.Resolver == nil || parts.Prober == nil:
		return nil, errors.New("the management plane needs Store, Sealer, Passwords, Resolver and Prober")
	case cfg.SetupToken == "":
		return nil, errors.New("the management plane needs a set-up token")
	}
	if len(cfg.CertificateSources) == 0 {
		cfg.CertificateSources = []domain.CertificateSource{domain.ACME, domain.BYOC}
	}
	const day = 24 * time.Hour
	for value, def := range map[*time.Duration]time.Duration{
		&cfg.Retention.Connections: 14 * day, &cfg.Retention.Usage: 400 * day, &cfg.Retention.Audit: 400 * day,
	} {
		if *value == 0 {
			*value = def
		}
	}
	if cfg.ClientIP == "" {
		cfg.ClientIP = ClientIPFull
	}
	if cfg.UpstreamPolicy == nil {
		policy, err := netpolicy.New(nil)
		if err != nil {
			return nil, err
		}
		cfg.UpstreamPolicy = policy
	}
	p := &Plane{
		cfg: cfg, store: parts.Store, sealer: parts.Sealer, passwords: parts.Passwords, auth: parts.Auth, mailer: parts.Mailer,
		resolver: parts.Resolver, prober: parts.Prober, signer: parts.Signer, log: parts.Log, clock: parts.Clock,
	}
	if p.log == nil {
		p.log = slog.Default()
	}
	if p.clock == nil {
		p.clock = time.Now
	}
	p.initIdentity()
	p.initDomains()
	p.initEdges()
	return p, nil
}

// link returns the URL of a page of the public face.
func (p *Plane) link(path string) string {
	if p.cfg.PublicURL == nil {
		return path
	}
	return p.cfg.PublicURL.JoinPath(path).String()
}

// system is the principal of background work.
var system = &Principal{System: true, ClientAddr: netip.Addr{}}
