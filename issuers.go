package pqproxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddypki"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// issuing is how the config in force obtains certificates: Caddy's issuer modules, which do ACME, and its storage. When
// they are asked, and what becomes of the answers, is ours: certmagic's own management repeats attempts for as long as
// a month, while it holds the lock of the name.
type issuing struct {
	issuers []certmagic.Issuer // of `acme` domains, asked in order; despite that name any of Caddy's
	local   []certmagic.Issuer // Caddy's local CA alone
	storage certmagic.Storage
	logger  *zap.Logger
	clients []*http.Client // of the issuers
}

// newIssuing provisions the issuers of a config: those that it lists, or ACME with Caddy's defaults.
func newIssuing(ctx caddy.Context, a *App, wantsInternal bool) (*issuing, error) {
	i := &issuing{storage: ctx.Storage(), logger: a.logger.Named("certificates")}
	var err error
	if i.issuers, err = loadIssuers(ctx, a); err != nil {
		return nil, err
	}
	var magic *certmagic.Config
	// It wants a cache, and would look there for other certificates than those of challenges, which is all that it serves.
	cache := new(certmagic.Cache)
	cache.SetOptions(certmagic.CacheOptions{GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return magic, nil }})
	magic = certmagic.New(cache, certmagic.Config{Storage: i.storage, Logger: i.logger, Issuers: i.issuers})
	for _, issuer := range i.issuers {
		if aware, ok := issuer.(caddytls.ConfigSetter); ok {
			aware.SetConfig(magic)
		}
		if client := watchAnswers(issuer); client != nil {
			i.clients = append(i.clients, client)
		}
	}
	local, err := ctx.LoadModuleByID("tls.issuance.internal", nil)
	if err != nil {
		return nil, fmt.Errorf("loading the internal issuer: %w", err)
	}
	i.local = []certmagic.Issuer{local.(certmagic.Issuer)}
	if !wantsInternal {
		return i, keepOutOfTrustStore(ctx)
	}
	return i, nil
}

// closeIdle closes the connections with CAs that nobody uses.
func (i *issuing) closeIdle() {
	for _, client := range i.clients {
		client.CloseIdleConnections()
	}
}

// loadIssuers loads the modules of `issuers`, in order, or the default.
func loadIssuers(ctx caddy.Context, a *App) ([]certmagic.Issuer, error) {
	if len(a.IssuersRaw) == 0 {
		a.IssuersRaw = []json.RawMessage{[]byte(`{"module":"acme"}`)}
	}
	for n, raw := range a.IssuersRaw {
		a.IssuersRaw[n] = withEmail(raw, a.Email)
	}
	loaded, err := ctx.LoadModule(a, "IssuersRaw")
	if err != nil {
		return nil, fmt.Errorf("issuers: %w", err)
	}
	var issuers []certmagic.Issuer
	for n, module := range loaded.([]any) {
		issuer, ok := module.(certmagic.Issuer)
		if !ok {
			return nil, fmt.Errorf("issuers[%d]: %T issues no certificates", n, module)
		}
		issuers = append(issuers, issuer)
	}
	return issuers, nil
}

// withEmail returns the settings of an ACME issuer with the address that the CA may write to, where they have none.
// They are changed before the module reads them, since it looks at them once.
func withEmail(raw json.RawMessage, email string) json.RawMessage {
	var settings map[string]any
	if email == "" || json.Unmarshal(raw, &settings) != nil || settings["module"] != "acme" || settings["email"] != nil {
		return raw
	}
	settings["email"] = email
	changed, err := json.Marshal(settings)
	if err != nil {
		return raw // cannot be: it was JSON
	}
	return changed
}

// lock takes the lock of a name, so that of all edges with this storage one orders. It is the one that certmagic takes:
// Caddy's own sites may be of the same name. errBusy: another edge has it.
func (i *issuing) lock(ctx context.Context, name string) (unlock func(), err error) {
	key := "issue_cert_" + name
	trying, ok := i.storage.(certmagic.TryLocker)
	if !ok {
		return i.lockKey(ctx, key)
	}
	got, err := trying.TryLock(ctx, key)
	if err == nil && !got {
		err = errBusy
	}
	if err != nil {
		return nil, err
	}
	return i.holdLock(ctx, key)
}

// lockKey waits for a lock of the storage.
func (i *issuing) lockKey(ctx context.Context, key string) (unlock func(), err error) {
	if err := i.storage.Lock(ctx, key); err != nil {
		return nil, err
	}
	return i.holdLock(ctx, key)
}

// holdLock has a lock that was taken last for an order, where the storage would let it go, and returns what ends it.
func (i *issuing) holdLock(ctx context.Context, key string) (unlock func(), err error) {
	unlock = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
		defer cancel()
		if err := i.storage.Unlock(ctx, key); err != nil {
			i.logger.Error("letting go of a lock in storage", zap.String("lock", key), zap.Error(err))
		}
	}
	if lease, ok := i.storage.(certmagic.LockLeaseRenewer); ok {
		if err := lease.RenewLockLease(ctx, key, orderTimeout); err != nil {
			unlock()
			return nil, err
		}
	}
	return unlock, nil
}

var errBusy = errors.New("another edge is about to obtain it")

// askError is why no issuer gave a certificate.
type askError struct{ faults []issuerFault }

// issuerFault is why an issuer gave none, and until when it is not to be asked again; zero: it did not say.
type issuerFault struct {
	issuer string
	err    error // nil: it was not asked
	until  time.Time
}

// asked reports whether any issuer was asked.
func (e *askError) asked() bool {
	return slices.ContainsFunc(e.faults, func(fault issuerFault) bool { return fault.err != nil })
}

// Error says what the issuers said.
func (e *askError) Error() string {
	var texts []string
	for _, fault := range e.faults {
		text := "it was not asked, as it wished"
		if fault.err != nil {
			text = problemText(fault.err)
		}
		if len(e.faults) > 1 {
			text = fault.issuer + ": " + text
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, "; ")
}

// wishes remembers when issuers want to be asked.
type wishes interface {
	// notBefore returns when an issuer may be asked; zero or past: now.
	notBefore(issuer string) time.Time
	// heed takes note of a refusal.
	heed(fault issuerFault)
}

// ask asks the issuers, in order, for a certificate with a new key, but those that wish to be left alone; nil wishes: there
// are none. The error is an *askError, unless this machine fails.
func (i *issuing) ask(ctx context.Context, issuers []certmagic.Issuer, name string, w wishes) (*heldCert, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	keyPEM, err := certmagic.PEMEncodePrivateKey(key)
	if err != nil {
		return nil, err
	}
	var failed askError
	for _, issuer := range issuers {
		fault := issuerFault{issuer: issuer.IssuerKey()}
		if w != nil {
			fault.until = w.notBefore(fault.issuer)
		}
		if !time.Now().Before(fault.until) {
			var held *heldCert
			heard := new(answer)
			if held, fault.err = i.askOne(context.WithValue(ctx, answerKey{}, heard), issuer, name, key, keyPEM); fault.err == nil {
				return held, nil
			}
			fault.until = heard.until(fault.err)
			if w != nil {
				w.heed(fault)
			}
		}
		failed.faults = append(failed.faults, fault)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, &failed
}

// askOne asks one issuer, and believes nothing that it says.
func (i *issuing) askOne(ctx context.Context, issuer certmagic.Issuer, name string, key *ecdsa.PrivateKey, keyPEM []byte) (held *heldCert, err error) {
	defer func() {
		if p := recover(); p != nil { // in a module: an answer may have been stranger than it thought
			i.logger.Error("an issuer panicked", zap.String(keyDomain, name), zap.Any("panic", p), zap.Stack("stack"))
			err = fmt.Errorf("the issuer panicked: %v", p)
		}
	}()
	template := &x509.CertificateRequest{DNSNames: []string{name}}
	if _, ok := issuer.(*caddytls.ZeroSSLIssuer); ok && len(name) <= 64 {
		template = &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}} // as its API demands
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, err
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	if checker, ok := issuer.(certmagic.PreChecker); ok {
		if err := checker.PreCheck(ctx, []string{name}, false); err != nil {
			return nil, err
		}
	}
	issued, err := issuer.Issue(ctx, request)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(issued.Metadata)
	if err != nil {
		return nil, fmt.Errorf("encoding what the issuer says of the certificate: %w", err)
	}
	held, err = newHeld(issuer.IssuerKey(), name, issued.Certificate, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("the issuer gave another certificate than was asked for: %w", err)
	}
	if err := i.believe(held, name); err != nil {
		return nil, fmt.Errorf("the issuer gave a certificate that clients refuse: %w", err)
	}
	held.setData(data)
	return held, nil
}

// clockOff is by how much the clock of this machine or of an issuer may be wrong: a certificate that is not valid yet
// is kept, since nobody can tell here whose clock is, and to order it again would not help.
const clockOff = 48 * time.Hour

// believe checks a certificate that an issuer gave. Whether clients trust its root is not known here.
func (i *issuing) believe(held *heldCert, name string) error {
	at, early := time.Now(), time.Until(held.cert.Leaf.NotBefore)
	if early > 0 && early <= clockOff {
		i.logger.Warn("an issuer gave a certificate that is not valid yet: are the clocks right?", zap.String(keyDomain, name),
			zap.String("issuer", held.issuerKey), zap.Time("not_before", held.cert.Leaf.NotBefore))
		at = held.cert.Leaf.NotBefore
	}
	_, _, err := domain.CheckPair(held.chain, held.key, name, at)
	return err
}

// keepOutOfTrustStore sets install_trust of the local CA to false, unless the config says otherwise or has sites with
// certificates of it: domains may ask for the local CA at any time, and nobody has asked for its root on this machine.
func keepOutOfTrustStore(ctx caddy.Context) error {
	for _, name := range []string{"http", "tls"} { // in this order: the first decides what the second issues
		app, err := ctx.AppIfConfigured(name)
		if err != nil && !errors.Is(err, caddy.ErrNotConfigured) {
			return err
		}
		if tls, ok := app.(*caddytls.TLS); ok && issuesInternal(tls) {
			return nil
		}
	}
	app, err := loadPKI(ctx)
	if err != nil {
		return err
	}
	if ca := app.(*caddypki.PKI).CAs[caddypki.DefaultCAID]; ca != nil && ca.InstallTrust == nil {
		ca.InstallTrust = new(bool)
	}
	return nil
}

// loadPKI provisions Caddy's app of local CAs under a lock of the storage: it makes the root of a new storage without one, and
// of two edges that start on one storage at the same time the second would read what the first has written half of.
func loadPKI(ctx caddy.Context) (any, error) {
	const lock, patience = "pqproxy_local_ca", 15 * time.Second
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := ctx.Storage().Lock(waiting, lock); err != nil {
		// Mostly there is nothing to make any more, and a storage that cannot lock may still be read.
		ctx.Logger().Warn("loading the local CA without a lock in storage", zap.Error(err))
		return ctx.App("pki")
	}
	defer func() {
		if err := ctx.Storage().Unlock(context.WithoutCancel(ctx), lock); err != nil {
			ctx.Logger().Warn("letting go of a lock in storage", zap.String("lock", lock), zap.Error(err))
		}
	}()
	return ctx.App("pki")
}

// issuesInternal reports whether the tls app has certificates of the local CA issued.
func issuesInternal(app *caddytls.TLS) bool {
	if app.Automation == nil {
		return false
	}
	for _, policy := range app.Automation.Policies {
		for _, issuer := range policy.Issuers {
			if _, ok := issuer.(*caddytls.InternalIssuer); ok {
				return true
			}
		}
	}
	return false
}
