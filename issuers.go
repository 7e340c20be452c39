package pqproxy

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddypki"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// issuing is how the config in force obtains certificates.
type issuing struct {
	acme     *certmagic.Config // of the issuers; despite the name any of Caddy's
	internal *certmagic.Config // of Caddy's local CA
	storage  certmagic.Storage
	logger   *zap.Logger
}

// newIssuing provisions the issuers of a config: those that it lists, or ACME with Caddy's defaults.
func newIssuing(ctx caddy.Context, a *App, cache *certmagic.Cache, wantsInternal bool) (*issuing, error) {
	i := &issuing{storage: ctx.Storage(), logger: a.logger.Named("certificates")}
	modules, err := loadIssuers(ctx, a)
	if err != nil {
		return nil, err
	}
	i.acme = certmagic.New(cache, certmagic.Config{Storage: i.storage, Logger: i.logger, DisableStorageCheck: true})
	i.acme.Issuers = nil // New has put certmagic's default there
	for _, issuer := range modules {
		if aware, ok := issuer.(caddytls.ConfigSetter); ok {
			aware.SetConfig(i.acme)
		}
		i.acme.Issuers = append(i.acme.Issuers, onceIssuer{issuer})
	}
	local, err := ctx.LoadModuleByID("tls.issuance.internal", nil)
	if err != nil {
		return nil, fmt.Errorf("loading the internal issuer: %w", err)
	}
	if !wantsInternal {
		if err := keepOutOfTrustStore(ctx); err != nil {
			return nil, err
		}
	}
	i.internal = certmagic.New(cache, certmagic.Config{
		Storage: i.storage, Logger: i.logger, DisableStorageCheck: true,
		Issuers: []certmagic.Issuer{onceIssuer{local.(certmagic.Issuer)}},
		OCSP:    certmagic.OCSPConfig{DisableStapling: true}, // the local CA has no responder
	})
	return i, nil
}

// loadIssuers loads the modules of `issuers`, in order, or the default.
func loadIssuers(ctx caddy.Context, a *App) ([]certmagic.Issuer, error) {
	if len(a.IssuersRaw) == 0 {
		settings, err := json.Marshal(map[string]string{"email": a.Email})
		if err != nil {
			return nil, err
		}
		module, err := ctx.LoadModuleByID("tls.issuance.acme", settings)
		if err != nil {
			return nil, fmt.Errorf("loading the ACME issuer: %w", err)
		}
		return []certmagic.Issuer{module.(certmagic.Issuer)}, nil
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
		if acme, ok := module.(*caddytls.ACMEIssuer); ok && acme.Email == "" {
			acme.Email = a.Email
		}
		issuers = append(issuers, issuer)
	}
	return issuers, nil
}

// onceIssuer makes certmagic give up after one attempt, so that the queue of orders decides when there is another: its
// own retries would hold a worker, and the storage's lock of the name, for as long as a month.
type onceIssuer struct{ certmagic.Issuer }

// Issue implements certmagic.Issuer.
func (o onceIssuer) Issue(ctx context.Context, request *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	issued, err := o.Issuer.Issue(ctx, request)
	if err != nil {
		return nil, certmagic.ErrNoRetry{Err: err}
	}
	return issued, nil
}

// PreCheck implements certmagic.PreChecker.
func (o onceIssuer) PreCheck(ctx context.Context, names []string, interactive bool) error {
	checker, ok := o.Issuer.(certmagic.PreChecker)
	if !ok {
		return nil
	}
	if err := checker.PreCheck(ctx, names, interactive); err != nil {
		return certmagic.ErrNoRetry{Err: err}
	}
	return nil
}

// keepOutOfTrustStore sets install_trust of the local CA to false, unless the config says otherwise or has sites that
// may want it: domains may ask for the local CA at any time, and nobody has asked for its root on this machine.
func keepOutOfTrustStore(ctx caddy.Context) error {
	http, err := ctx.AppIfConfigured("http")
	if err != nil && !errors.Is(err, caddy.ErrNotConfigured) {
		return err
	}
	if http != nil {
		return nil
	}
	app, err := ctx.App("pki")
	if err != nil {
		return err
	}
	if ca := app.(*caddypki.PKI).CAs[caddypki.DefaultCAID]; ca != nil && ca.InstallTrust == nil {
		ca.InstallTrust = new(bool)
	}
	return nil
}
