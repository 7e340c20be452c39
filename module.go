package pqproxy

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/keptset"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

func init() {
	caddy.RegisterModule(&App{})
}

// App is the post-quantum front door: the domains that are served and the limits that hold for all of
// them. Connections reach it through the caddy-l4 handler `pqproxy`, whose server should listen on the
// network `pqproxy/`:
//
//	{
//		"apps": {
//			"layer4": {"servers": {"front": {"listen": ["pqproxy/:443"], "routes": [{"handle": [{"handler": "pqproxy"}]}]}}},
//			"pqproxy": {"domains": [{"name": "app.example.com", "upstreams": [{"dial": "10.0.0.5:8443", "tls": {}}],
//				"certificate": {"source": "byoc", "chain_file": "/etc/ssl/app.pem", "key_file": "/etc/ssl/app.key"}}]}
//		}
//	}
//
// A config reload touches no connection, except those of domains that are gone, suspended or another tenant's.
type App struct {
	// Limits are the bounds and deadlines of every connection.
	Limits Limits `json:"limits,omitzero"`

	// HTTP are addresses, such as `:80`, where plain HTTP is served: the challenges of ACME's HTTP-01, and redirects of the
	// domains' names to https. All else gets an empty 404. An address is a port, or an IP address and a port; placeholders
	// are replaced. It must not be one that another server of the config listens on; `http.handlers.pqproxy_http01` does
	// the same inside such a server. Default: none, and then no CA can reach this edge by HTTP-01.
	HTTP []string `json:"http,omitempty"`

	// Management is where domains of source `remote` come from. Default: nowhere.
	Management *Management `json:"management,omitempty"`

	// Email is the address that certificate authorities may write to, for issuers that have none of their own. Default: none.
	Email string `json:"email,omitempty"`

	// IssuersRaw are Caddy's issuer modules, asked in order for the certificates of `acme` domains. Default: `acme`, with
	// that module's own defaults.
	IssuersRaw []json.RawMessage `json:"issuers,omitempty" caddy:"namespace=tls.issuance inline_key=module"`

	// UpstreamPolicy says where domains may point that come from the management plane or the admin API. Domains of
	// this config may point anywhere but back to the edge itself.
	UpstreamPolicy UpstreamPolicy `json:"upstream_policy,omitzero"`

	// PersistAdmin keeps the domains that the admin API has set across restarts, in Caddy's storage, encrypted with
	// a key of this edge. Without it they last until the process ends; reloads they survive in any case. Default: false.
	PersistAdmin bool `json:"persist_admin,omitempty"`

	// Domains are those of source `static`. Placeholders such as `{env.*}` and `{file.*}` are replaced in
	// names, addresses and file names.
	Domains []domain.Domain `json:"domains,omitempty"`

	ctx       caddy.Context
	logger    *zap.Logger
	accessLog *zap.Logger
	handlers  atomic.Int64 // of the same config

	drafts  []*domain.Domain // the static domains in normal form, with what their files hold
	policy  *netpolicy.Policy
	kept    *keptset.Store // nil: nothing is kept
	issuing *issuing

	adopted atomic.Pointer[Management] // from a config loader

	httpAddrs   []httpAddress
	httpHandles []*listenHandle
	serving     sync.WaitGroup // of httpHandles
	http01s     atomic.Int64   // handlers of the same config that do the same in other servers
	httpsPort   string         // that plain HTTP is redirected to: `:8443`, empty for 443
	caddyTLS    *caddytls.TLS  // nil: the config has no certificates of Caddy's own

	state    *state
	stopping sync.Once
	release  bool          // whether Cleanup must let go of the state
	gone     chan struct{} // closed by Cleanup
}

// UpstreamPolicy says which addresses upstreams may have.
type UpstreamPolicy struct {
	// Allow opens ranges (`10.0.0.0/8`) or addresses that are closed otherwise: private networks and other special
	// ranges. Loopback, link-local and cloud metadata addresses are opened only by an entry that lies within the
	// very range. Multicast, broadcast and unspecified addresses, and the edge's own listeners, are never opened.
	// Literal addresses are judged when a domain comes in, names by what they resolve to at every dial. Default: none.
	Allow []string `json:"allow,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "pqproxy",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision checks the config, reads the files that it names and proves the groups. It changes nothing that is
// in force.
func (a *App) Provision(ctx caddy.Context) error {
	a.gone = make(chan struct{})
	a.ctx = ctx
	a.logger = ctx.Logger()
	a.accessLog = a.logger.Named("log.access")
	if err := a.Limits.provision(); err != nil {
		return err
	}
	if err := a.prepareHTTP(); err != nil {
		return err
	}
	if err := a.prepareDomains(); err != nil {
		return err
	}
	policy, err := netpolicy.New(a.UpstreamPolicy.Allow)
	if err != nil {
		return fmt.Errorf("upstream_policy: %w", err)
	}
	a.policy = policy.WithOwn(ownListeners)
	if a.Management != nil {
		if err := a.Management.provision(); err != nil {
			return err
		}
		a.Management.warn(a.logger)
	}
	warning, err := checkGroups(a.policiesInUse())
	if err != nil {
		return err
	}
	if warning != "" {
		a.logger.Warn(warning)
	}
	if err := metrics.register(ctx.GetMetricsRegistry()); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	value, _, err := states.LoadOrNew(stateKey, func() (caddy.Destructor, error) { return newState(), nil })
	if err != nil {
		return err
	}
	a.state, a.release = value.(*state), true
	a.issuing, err = newIssuing(ctx, a, a.wantsInternal())
	return err
}

// policiesInUse are the group policies of all domains and upstreams, and the default.
func (a *App) policiesInUse() map[domain.PostQuantum]bool {
	use := make(map[domain.PostQuantum]bool)
	for _, d := range a.drafts {
		use[d.PostQuantum] = true
		for _, u := range d.Upstreams {
			if u.TLS != nil {
				use[u.TLS.PostQuantum] = true
			}
		}
	}
	if len(a.drafts) == 0 {
		use[domain.Prefer] = true
	}
	return use
}

// prepareDomains makes drafts of the static domains. All faults of all of them are reported at once.
func (a *App) prepareDomains() error {
	var faults []error
	seen := make(map[string]int)
	for i := range a.Domains {
		d, err := a.prepare(a.Domains[i].Clone())
		if err != nil {
			for _, fault := range domain.Errors(err) {
				faults = append(faults, fmt.Errorf("domains[%d]: %w", i, fault))
			}
			if len(domain.Errors(err)) == 0 {
				faults = append(faults, fmt.Errorf("domains[%d]: %w", i, err))
			}
			continue
		}
		if first, ok := seen[d.Name]; ok {
			faults = append(faults, fmt.Errorf("domains[%d]: %w", i,
				&domain.Error{Name: d.Name, Field: "name", Err: fmt.Errorf("domains[%d] has the same name; keep one of them", first)}))
			continue
		}
		seen[d.Name] = i
		for _, warning := range d.Warnings() {
			a.logger.Warn(warning, zap.String(keyDomain, d.Name))
		}
		a.drafts = append(a.drafts, d)
	}
	return errors.Join(faults...)
}

// wantsInternal reports whether a static domain has a certificate of the internal CA.
func (a *App) wantsInternal() bool {
	return slices.ContainsFunc(a.drafts, func(d *domain.Domain) bool { return d.Certificate.Source == domain.Internal })
}

// prepare brings one static domain into normal form and puts what its files hold beside their names.
func (a *App) prepare(d *domain.Domain) (*domain.Domain, error) {
	if err := replacePlaceholders(d); err != nil {
		return nil, err
	}
	if err := d.Normalize(domain.Static); err != nil {
		return nil, err
	}
	var faults []error
	read := func(field, file string, into *string) {
		if file == "" {
			return
		}
		content, err := os.ReadFile(file)
		if err != nil {
			faults = append(faults, &domain.Error{Name: d.Name, Field: field, Err: err})
		}
		*into = string(content)
	}
	for i := range d.Upstreams {
		u := d.Upstreams[i].TLS
		if u == nil || u.CAFile == "" {
			continue
		}
		field, before := fmt.Sprintf("upstreams[%d].tls.ca_file", i), len(faults)
		read(field, u.CAFile, &u.CAPEM)
		if len(faults) == before && !x509.NewCertPool().AppendCertsFromPEM([]byte(u.CAPEM)) {
			faults = append(faults, &domain.Error{Name: d.Name, Field: field, Err: fmt.Errorf("%s holds no certificate in PEM form", u.CAFile)})
		}
	}
	cert := &d.Certificate
	if cert.Source == domain.BYOC {
		before := len(faults)
		read("certificate.chain_file", cert.ChainFile, &cert.ChainPEM)
		read("certificate.key_file", cert.KeyFile, &cert.KeyPEM)
		if len(faults) == before {
			if err := a.checkPair(d); err != nil {
				faults = append(faults, err)
			}
		}
	}
	return d, errors.Join(faults...)
}

// checkPair checks the pair of a static domain. One that is out of date is served all the same, and warned about:
// refusing it would keep the other domains of the config from starting too.
func (a *App) checkPair(d *domain.Domain) error {
	_, warnings, err := domain.CheckPair([]byte(d.Certificate.ChainPEM), []byte(d.Certificate.KeyPEM), d.Name, time.Now())
	for _, w := range warnings {
		a.logger.Warn(w, zap.String(keyDomain, d.Name))
	}
	if err != nil && !outOfDate(err) {
		return err
	}
	if errors.Is(err, domain.ErrExpired) {
		a.logger.Error("serving an expired certificate: replace it", zap.String(keyDomain, d.Name), zap.Error(err))
	} else if err != nil {
		a.logger.Error("serving a certificate that is not valid yet: replace it, or correct the clock", zap.String(keyDomain, d.Name), zap.Error(err))
	}
	return nil
}

// replacePlaceholders replaces placeholders where a static domain may have them.
func replacePlaceholders(d *domain.Domain) error {
	repl := caddy.NewReplacer()
	var faults []error
	replace := func(field string, value *string) {
		if !strings.Contains(*value, "{") {
			return
		}
		replaced, err := repl.ReplaceOrErr(*value, true, true)
		if err != nil {
			faults = append(faults, &domain.Error{Name: d.Name, Field: field, Err: err})
			return
		}
		*value = replaced
	}
	replace("name", &d.Name)
	replace("tenant", &d.Tenant)
	replace("certificate.chain_file", &d.Certificate.ChainFile)
	replace("certificate.key_file", &d.Certificate.KeyFile)
	replace("certificate.chain_pem", &d.Certificate.ChainPEM)
	replace("certificate.key_pem", &d.Certificate.KeyPEM)
	for i := range d.Upstreams {
		u := &d.Upstreams[i]
		replace(fmt.Sprintf("upstreams[%d].dial", i), &u.Dial)
		if u.TLS != nil {
			replace(fmt.Sprintf("upstreams[%d].tls.server_name", i), &u.TLS.ServerName)
			replace(fmt.Sprintf("upstreams[%d].tls.ca_file", i), &u.TLS.CAFile)
			replace(fmt.Sprintf("upstreams[%d].tls.ca_pem", i), &u.TLS.CAPEM)
		}
	}
	return errors.Join(faults...)
}

// Start puts the config in force. It never waits for the network.
func (a *App) Start() error {
	a.warnOfPlainListeners()
	if err := a.meetNeighbours(); err != nil {
		return err
	}
	if err := a.openHTTP(); err != nil { // before a CA is asked to come
		return err
	}
	if a.Management != nil || a.PersistAdmin {
		a.kept = openKept(a.ctx, a.logger)
	}
	a.state.start(a)
	a.serveHTTP()
	return nil
}

// management returns where remote domains come from, or nil.
func (a *App) management() *Management {
	if a.Management != nil {
		return a.Management
	}
	return a.adopted.Load()
}

// adopt takes the settings of a config loader, which Caddy loads when the apps have started.
func (a *App) adopt(m *Management) {
	if a.kept == nil {
		a.kept = openKept(a.ctx, a.logger)
	}
	a.adopted.Store(m)
	a.state.adopted(a)
}

// warnOfPlainListeners warns of TCP listeners that may lead to our handler and are not of our network. The
// routes of a server cannot be seen from outside, so a server of other handlers is named too where
// ours exists.
func (a *App) warnOfPlainListeners() {
	if a.handlers.Load() == 0 {
		return
	}
	app, err := a.ctx.AppIfConfigured("layer4")
	if err != nil {
		return
	}
	for name, server := range app.(*layer4.App).Servers {
		for _, listen := range server.Listen {
			addr, err := caddy.ParseNetworkAddress(listen)
			if err == nil && strings.HasPrefix(addr.Network, "tcp") {
				a.logger.Warn("a layer4 server listens without pqproxy/: if its routes lead to the pqproxy handler, reloads can lose connections, "+
					"max_connections does not hold, and running out of descriptors ends the listener; write "+listenNetwork+"/"+listen,
					zap.String("server", name), zap.String("listen", listen))
			}
		}
	}
}

// Stop takes the config out of force. It does not wait for connections: those of a reload go on, and at exit
// every app must have stopped listening first.
func (a *App) Stop() error {
	a.stopping.Do(func() {
		a.closeHTTP()
		if a.state != nil {
			a.state.stop(a)
		}
	})
	return nil
}

// Cleanup does what Stop does, where Caddy has not called it, and lets go of the state. When Caddy exits
// it returns after the drain.
func (a *App) Cleanup() error {
	_ = a.Stop()
	if !a.release {
		return nil
	}
	a.release = false
	close(a.gone)
	_, err := states.Delete(stateKey)
	return err
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
