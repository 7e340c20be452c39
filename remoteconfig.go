package pqproxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/internal/feed"
	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
	"github.com/pqproxy/caddy-pqproxy/internal/pace"
)

func init() {
	caddy.RegisterModule(&ConfigLoader{})
}

// Management is where the domains of source `remote` come from: a URL that serves the set of them, a management
// plane's or a JSON file's behind any web server.
type Management struct {
	// URL is asked with GET, `http` or `https`. The least that it may answer is `{"domains":[…]}`. Redirects are not
	// followed: they would carry the token elsewhere.
	URL string `json:"url"`

	// Token is sent as `Authorization: Bearer`. It is a placeholder (`{env.NAME}` or `{file./path}`), since Caddy
	// shows its configuration, and is replaced anew for every request, so that it can be changed without a
	// reload. Default: none is sent.
	Token string `json:"token,omitempty"`

	// Interval is how long after one answer the next request begins at the latest; it is shortened at random by up
	// to a quarter, so that edges spread. A server that holds requests until something changes (`Prefer: wait`) is
	// asked again at once. After failures it is asked sooner. From 1s. Default: 20s.
	Interval caddy.Duration `json:"interval,omitempty"`

	// MaxBody is the largest document in bytes, after decompression. Default: 1 GiB.
	MaxBody int64 `json:"max_body,omitempty"`

	// AllowEmpty accepts a full set without a single domain, which ends all that there were. Default: false. Where there
	// were none yet, as with a new management plane, an empty set is accepted anyway.
	AllowEmpty bool `json:"allow_empty,omitempty"`

	// VerifyKeys are files with public keys, as `caddy pqproxy keygen` writes them; several while keys are rotated.
	// Where there are any, a set must be signed by one of them and have a revision. Default: signatures are not
	// looked at.
	VerifyKeys []string `json:"verify_keys,omitempty"`

	// TLS is how the URL's server is trusted and what it is shown.
	TLS *ManagementTLS `json:"tls,omitempty"`

	// Edge is this edge's name in reports and on the management plane's pages: at most 128 printable bytes, one for each
	// edge. Placeholders are replaced. Default: the host name of the machine.
	Edge string `json:"edge,omitempty"`

	// Region says where the edge is, for people; placeholders are replaced. Default: empty.
	Region string `json:"region,omitempty"`

	// Report is whether the management plane is told who connected to its domains and how those are doing, at the URL with
	// `/domains` at its end replaced by `/reports`: `on` or `off`. Default: on where the URL ends in `/v1/edge/domains`, as
	// those of management planes do, else off.
	Report string `json:"report,omitempty"`

	feed        string // names the feed in storage
	signers     string // the IDs of verify_keys; empty: there are none
	fingerprint string // of all settings and of what their files hold
	config      feed.Config

	edge, region string // as Edge and Region, without placeholders; edge is empty only without reports
	reports      bool   // reports are sent
	reportsURL   string
}

// ManagementTLS are the TLS settings towards the management URL. The zero value trusts the system's roots and has no
// certificate to show.
type ManagementTLS struct {
	// CAFile names PEM certificates that the server's chain must end in, instead of the system's roots.
	CAFile string `json:"ca_file,omitempty"`

	// CertificateFile and KeyFile name the pair that is shown to a server that asks for one. They are read again
	// for each connection, so that they can be renewed without a reload.
	CertificateFile string `json:"certificate_file,omitempty"`
	KeyFile         string `json:"key_file,omitempty"`

	// ServerName is what the server's certificate must cover. Default: the host of the URL.
	ServerName string `json:"server_name,omitempty"`
}

// Bounds and defaults of the poller.
const (
	defaultInterval = 20 * time.Second
	leastInterval   = time.Second
	defaultMaxBody  = 1 << 30

	longPoll = 25 * time.Second // Prefer: wait
)

// firstRetry is how long after a failure the next request begins, and is doubled up to the interval. A variable for
// tests.
var firstRetry = time.Second

// provision checks the settings and reads the files that they name. Every fault names its field.
func (m *Management) provision() error {
	var faults []error
	fault := func(field string, err error) { faults = append(faults, fmt.Errorf("management.%s: %w", field, err)) }
	if m.Interval == 0 {
		m.Interval = caddy.Duration(defaultInterval)
	}
	if time.Duration(m.Interval) < leastInterval {
		fault("interval", fmt.Errorf("%s is less than %s", time.Duration(m.Interval), leastInterval))
	}
	if m.MaxBody < 0 {
		fault("max_body", fmt.Errorf("%d is negative; leave it out for the default (%d)", m.MaxBody, int64(defaultMaxBody)))
	}
	if m.MaxBody == 0 {
		m.MaxBody = defaultMaxBody
	}
	if m.Token != "" && !strings.Contains(m.Token, "{env.") && !strings.Contains(m.Token, "{file.") {
		fault("token", errors.New("is written out, and Caddy shows its configuration to everybody who asks the admin endpoint; write {env.NAME} or {file./path/to/token}"))
	}
	address, err := caddy.NewReplacer().ReplaceOrErr(m.URL, true, true)
	if err != nil {
		fault("url", err)
	}
	faults = append(faults, m.provisionReports(address)...)
	m.config = feed.Config{URL: address, MaxBody: m.MaxBody, UserAgent: userAgent(), Token: m.token, Pace: pace.GiveWay}
	state := sha256.New()
	for _, file := range m.VerifyKeys {
		key, err := feedsig.ReadPublicKey(file)
		if err != nil {
			fault("verify_keys", err)
			continue
		}
		m.config.Keys = append(m.config.Keys, key)
		m.signers += " " + key.ID()
		_, _ = state.Write(key.Marshal())
	}
	if m.TLS != nil {
		ca, err := m.TLS.provision(&m.config)
		if err != nil {
			faults = append(faults, err)
		}
		_, _ = state.Write(ca)
	}
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	client, err := feed.New(m.config)
	if err != nil {
		return fmt.Errorf("management: %w", err)
	}
	client.Close()

	settings, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, _ = state.Write(settings)
	_, _ = state.Write([]byte("\x00" + m.edge + "\x00" + m.region))
	m.fingerprint = address + " " + hex.EncodeToString(state.Sum(nil))
	name := sha256.Sum256([]byte(address))
	m.feed = hex.EncodeToString(name[:8])
	return nil
}

// warn says what is allowed and dangerous.
func (m *Management) warn(logger *zap.Logger) {
	u, err := url.Parse(m.config.URL)
	if err != nil || u.Scheme != "http" || m.Token == "" {
		return
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Hostname() != "localhost" && (err != nil || !ip.IsLoopback()) {
		logger.Warn("the token of the management URL travels in clear: use https", zap.String("url", m.shownURL()))
	}
}

// shownURL is the URL without its query, in which there may be secrets.
func (m *Management) shownURL() string {
	shown, _, _ := strings.Cut(m.config.URL, "?")
	return shown
}

// token returns the bearer token as it is now.
func (m *Management) token() (string, error) {
	if m.Token == "" {
		return "", nil
	}
	token, err := caddy.NewReplacer().ReplaceOrErr(m.Token, true, true)
	if err != nil {
		return "", fmt.Errorf("management.token: %w", err)
	}
	if token = strings.TrimSpace(token); token == "" {
		return "", fmt.Errorf("management.token: %s is empty", m.Token)
	}
	return token, nil
}

// provision reads the CA, whose PEM text it returns, and tries the pair.
func (t *ManagementTLS) provision(config *feed.Config) (ca []byte, err error) {
	var faults []error
	fault := func(field string, err error) {
		faults = append(faults, fmt.Errorf("management.tls.%s: %w", field, err))
	}
	config.TLS = &tls.Config{ServerName: t.ServerName}
	if t.CAFile != "" {
		if ca, err = os.ReadFile(t.CAFile); err != nil {
			fault("ca_file", err)
		} else if config.TLS.RootCAs = x509.NewCertPool(); !config.TLS.RootCAs.AppendCertsFromPEM(ca) {
			fault("ca_file", fmt.Errorf("%s holds no certificate in PEM form", t.CAFile))
		}
	}
	switch {
	case (t.CertificateFile == "") != (t.KeyFile == ""):
		fault("certificate_file", errors.New("certificate_file and key_file are given together or not at all"))
	case t.CertificateFile != "":
		read := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(t.CertificateFile, t.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("management.tls.certificate_file: %w", err)
			}
			return &pair, nil
		}
		if _, err := read(); err != nil {
			faults = append(faults, err)
		}
		config.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return read() }
	}
	return ca, errors.Join(faults...)
}

// userAgent names this program and its version.
func userAgent() string {
	simple, _ := caddy.Version()
	return "pqproxy (Caddy " + simple + ")"
}

// ConfigLoader fetches the domains of a management URL where Caddy's own way of pulling configuration is wanted. It
// never returns a config, so nothing reloads: it hands its settings to the app's poller, and each time Caddy asks it
// to load, the poller asks the URL.
//
//	{"admin": {"config": {"persist": false, "load_delay": "30s",
//		"load": {"module": "pqproxy", "management": {"url": "https://manage.internal:9443/v1/edge/domains"}}}}}
//
// The config needs the app `pqproxy`, without a management block of its own. Use it where configuration is managed by
// loaders; otherwise the block `management` of the app does the same.
type ConfigLoader struct {
	// Management is what the block of that name in the app is.
	Management *Management `json:"management"`

	app *App
}

// CaddyModule returns the Caddy module information.
func (*ConfigLoader) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "caddy.config_loaders.pqproxy",
		New: func() caddy.Module { return new(ConfigLoader) },
	}
}

// Provision hands the settings to the app, which fetches at once. Caddy calls it when all apps have started.
func (l *ConfigLoader) Provision(ctx caddy.Context) error {
	if l.Management == nil {
		return errors.New("management is missing; give at least {\"url\": …}")
	}
	app, err := ctx.AppIfConfigured("pqproxy")
	if err != nil {
		return fmt.Errorf("the config loader pqproxy needs the app pqproxy in the same config: %w", err)
	}
	l.app = app.(*App)
	if l.app.Management != nil {
		return errors.New("the app pqproxy has a management block, and so has the config loader; keep one of them")
	}
	if err := l.Management.provision(); err != nil {
		return err
	}
	l.Management.warn(l.app.logger)
	l.app.adopt(l.Management)
	return nil
}

// LoadConfig asks the management URL for changes, applies them, and returns nil: there is no config to load. What fails
// is in the log, in the status and in the metrics. Its only error is a load_delay that is missing.
func (l *ConfigLoader) LoadConfig(ctx caddy.Context) ([]byte, error) {
	// Without a delay Caddy asks once, before the config is the active one, and loads what it gets: nil would be no
	// config at all, and end everything. With a delay an error makes it ask again.
	if caddy.ActiveContext().Context != ctx.Context {
		return nil, errors.New("admin.config.load_delay is missing beside the config loader pqproxy; write \"load_delay\": \"30s\"")
	}
	waiting, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, _ = l.app.state.syncNow(waiting, nil)
	return nil, nil
}

// askTimeout bounds how long Caddy waits for us. The poller goes on.
const askTimeout = 30 * time.Second

// Interface guards
var (
	_ caddy.Provisioner  = (*ConfigLoader)(nil)
	_ caddy.ConfigLoader = (*ConfigLoader)(nil)
)
