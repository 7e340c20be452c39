// Package module makes the management plane a part of Caddy: the app `pqproxy_management`, which owns database, keys and
// background work, the HTTP handler of the same name, which serves one of its two faces, and the commands for the operator.
// It is the only package that knows all others of the management plane.
//
//	{
//		pqproxy_management
//	}
//	https://console.example.com {
//		pqproxy_management public
//	}
//	https://manage.internal:9443 {
//		tls internal
//		pqproxy_management edge
//	}
package module

import (
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

func init() {
	caddy.RegisterModule(new(App))
}

// appName is the ID of the app, and the name of the Caddyfile's option and directive.
const appName = "pqproxy_management"

// App is the management plane. Everything has a default: a SQLite file, a master key and a set-up token in Caddy's data
// directory under `pqproxy/`, each readable by its owner alone.
//
// A reload that changes nothing here keeps the running service; one that does opens the new one beside the old one.
type App struct {
	// Database is where everything is kept. Default: SQLite, in `management.db` under Caddy's data directory. Several
	// instances share one PostgreSQL.
	Database Database `json:"database,omitzero"`

	// PublicURL is where people reach the public face; links in mails and answers begin with it. Default: links are
	// paths without a host.
	PublicURL string `json:"public_url,omitempty"`

	// SetupToken is what the first run asks for, as a placeholder: `{env.NAME}` or `{file./path}`. Default: the content of
	// the file `setup-token` under Caddy's data directory, which is made at the first start.
	SetupToken string `json:"setup_token,omitempty"`

	// MasterKeys encrypt tenants' private keys in the database: each is a placeholder, `{env.NAME}` or `{file./path}`, for
	// 32 bytes in base64. The first encrypts, all of them decrypt. Default: the file `master.key` under Caddy's data
	// directory, which is made at the first start; with PostgreSQL it must be given, since all instances need the same.
	// Without it the uploaded keys are lost: keep a copy, apart from the backups.
	MasterKeys []string `json:"master_keys,omitempty"`

	// SigningKey is a file of `pqproxy keygen`: edges that have its public half in `verify_key` take no set that it did
	// not sign. Default: sets are not signed.
	SigningKey string `json:"signing_key,omitempty"`

	// Targets are what customers point their names at: the addresses of the edges, or a name. Default: none; then DNS is
	// not checked, and ownership needs a record of its own.
	Targets []Target `json:"targets,omitempty"`

	// Resolvers are the DNS servers that are asked about customers' names, `host:port` or an address. Default: those of
	// the system.
	Resolvers []string `json:"resolvers,omitempty"`

	// CertificateSources are what domains may choose from: `acme`, `byoc`, `internal`. Default: acme and byoc.
	CertificateSources []string `json:"certificate_sources,omitempty"`

	// Signup says whether strangers may make an account: `closed` (default) or `open`.
	Signup string `json:"signup,omitempty"`

	// SMTP is how mail leaves. Default: there is no mail; invitations then return their link, and
	// `pqproxy-management reset-password` prints one.
	SMTP *SMTP `json:"smtp,omitempty"`

	// Retention is how long what was observed is kept.
	Retention Retention `json:"retention,omitzero"`

	// ClientIP says what is kept of clients' addresses: `full` (default), or `prefix`, the /24 or the /48 of IPv6.
	ClientIP string `json:"client_ip,omitempty"`

	// RateLimit is how many requests a second each credential may make, with bursts of twice as many. Default: 20.
	// 0: no limit.
	RateLimit *int `json:"rate_limit,omitempty"`

	// UpstreamPolicy says where tenants' upstreams may be, beyond public addresses. It is the API's; each edge has its own.
	UpstreamPolicy UpstreamPolicy `json:"upstream_policy,omitzero"`

	settings settings
	log      *zap.Logger

	held    *state // set before started is closed
	started chan struct{}
	ended   bool // held was released
}

// Database says where rows are kept.
type Database struct {
	// Driver is `sqlite` (default) or `postgres`.
	Driver string `json:"driver,omitempty"`

	// Source is a file, or a URL such as `postgres://pqproxy:{env.PGPASSWORD}@db.internal/pqproxy`. A password in it is a
	// placeholder.
	Source string `json:"source,omitempty"`
}

// Target is an address of the edges.
type Target struct {
	Type  string `json:"type"`  // `a`, `aaaa` or `cname`
	Value string `json:"value"` // an address, or a host name
}

// SMTP is a mail server.
type SMTP struct {
	// Address is `host:port`. Port 465 is TLS from the start; on all others STARTTLS is demanded, but of loopback.
	Address string `json:"address"`

	// From is the sender's address.
	From string `json:"from"`

	// Username and Password log in, where there is one. The password is a placeholder.
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
}

// Retention is how long what was observed is kept.
type Retention struct {
	Connections caddy.Duration `json:"connections,omitempty"` // records of connections; default 14d
	Usage       caddy.Duration `json:"usage,omitempty"`       // sums by hour; default 400d
	Audit       caddy.Duration `json:"audit,omitempty"`       // who changed what; default 400d
}

// UpstreamPolicy says where upstreams may be.
type UpstreamPolicy struct {
	// Allow lists address ranges that are open although they are not public, such as `10.0.0.0/8`.
	Allow []string `json:"allow,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: appName, New: func() caddy.Module { return new(App) }}
}

// Provision reads the settings and finds their faults. It makes no files and opens nothing: configs are also provisioned
// to be looked at.
func (a *App) Provision(ctx caddy.Context) error {
	a.log = ctx.Logger()
	a.started = make(chan struct{})
	settings, err := a.resolve(caddy.NewReplacer())
	if err != nil {
		return err // Caddy says of which app
	}
	a.settings = settings
	return nil
}

// Validate finds faults of the secrets, which Provision does not look into.
func (a *App) Validate() error {
	if len(a.settings.masterKeys) == 0 {
		return nil // the file is for the user of the service, who may be another
	}
	_, err := a.settings.vault()
	return err
}

// Start begins to open the database and returns at once: a database that is down must not keep Caddy from serving.
func (a *App) Start() error {
	held, err := acquire(a.settings, a.log)
	if err != nil {
		return err
	}
	a.held = held
	close(a.started)
	live.Lock()
	defer live.Unlock()
	live.apps = append(live.apps, a)
	return nil
}

// live are the apps that have started and not been cleaned up: one, or two in the middle of a reload.
var live struct {
	sync.Mutex
	apps []*App
}

// latest returns the last that started; nil: none is left.
func latest() *App {
	live.Lock()
	defer live.Unlock()
	if len(live.apps) == 0 {
		return nil
	}
	return live.apps[len(live.apps)-1]
}

// Stop does nothing: servers of this config may still have requests, since Caddy stops apps in any order. See Cleanup.
func (*App) Stop() error { return nil }

// Cleanup leaves the service to the next config, or ends it where there is none. Caddy calls it when all apps of the config have
// stopped, and also where it never called Stop.
func (a *App) Cleanup() error {
	if a.held == nil || a.ended {
		return nil
	}
	a.ended = true
	live.Lock()
	live.apps = slices.DeleteFunc(live.apps, func(other *App) bool { return other == a })
	live.Unlock()
	return a.held.release(a.log)
}

// startWait is how long a request waits for the service to begin: servers may begin before it, and it opens a database.
const startWait = 5 * time.Second

// service returns what serves; nil where nothing does.
func (a *App) service(done <-chan struct{}) *service {
	select {
	case <-a.started:
		if serving := a.held.serving.Load(); serving != nil {
			return serving
		}
	default:
	}
	timer := time.NewTimer(startWait)
	defer timer.Stop()
	for _, step := range []func() <-chan struct{}{
		func() <-chan struct{} { return a.started },
		func() <-chan struct{} { return a.held.tried },
	} {
		select {
		case <-step():
		case <-done:
			return nil
		case <-timer.C:
			return nil
		}
	}
	return a.held.serving.Load()
}

// Interface guards.
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.Validator    = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
