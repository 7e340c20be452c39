package pqproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddypki"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// certificates are those that domains do not bring themselves, in a cache of our own: the tls app's would
// make them part of its automation policies, from which nothing can be taken at run time.
type certificates struct {
	cache  *certmagic.Cache
	config atomic.Pointer[certmagic.Config] // of the config in force; nil: there is none yet

	ctx       context.Context // ends with close
	cancel    context.CancelFunc
	obtaining sync.WaitGroup
}

// errNoIssuer is what the cache hears between configs.
var errNoIssuer = errors.New("no config has an issuer")

func (s *certificates) open() {
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) {
			if cfg := s.config.Load(); cfg != nil {
				return cfg, nil
			}
			return nil, errNoIssuer
		},
		Logger: caddy.Log().Named("pqproxy.certificates"),
	})
}

// close ends the maintenance of the cache and what is being obtained. Nothing may be applied any more.
func (s *certificates) close() {
	s.cancel()
	s.obtaining.Wait()
	s.cache.Stop()
}

// use puts the issuer of a config in force.
func (s *certificates) use(cfg *certmagic.Config) { s.config.Store(cfg) }

// internalIssuer returns a config that issues from Caddy's local CA, which domains may ask for at any time. Where the
// config itself does not, the CA's root is kept out of the system's trust store: nobody has asked for that.
func (s *certificates) internalIssuer(ctx caddy.Context, wanted bool) (*certmagic.Config, error) {
	module, err := ctx.LoadModuleByID("tls.issuance.internal", nil)
	if err != nil {
		return nil, fmt.Errorf("loading the internal issuer: %w", err)
	}
	if !wanted {
		if err := keepOutOfTrustStore(ctx); err != nil {
			return nil, err
		}
	}
	return certmagic.New(s.cache, certmagic.Config{
		Storage: ctx.Storage(),
		Issuers: []certmagic.Issuer{module.(certmagic.Issuer)},
		OCSP:    certmagic.OCSPConfig{DisableStapling: true}, // the local CA has no responder
		Logger:  ctx.Logger().Named("certificates"),
	}), nil
}

// keepOutOfTrustStore sets install_trust of the local CA to false, unless the config says otherwise or has sites that
// may want it.
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

// obtainInternal issues or loads the certificates of names from Caddy's local CA, and keeps them renewed. A name
// that fails is logged: it must not keep the others from being served.
func obtainInternal(ctx context.Context, cfg *certmagic.Config, names []string, logger *zap.Logger) {
	for _, name := range names {
		if err := cfg.ManageSync(ctx, []string{name}); err != nil && ctx.Err() == nil {
			logger.Error("obtaining a certificate from the internal CA", zap.String(keyDomain, name), zap.Error(err))
		}
	}
}

// follow takes up what apply has changed: certificates that are wanted now are obtained, in the background.
func (s *certificates) follow(changes []changed) {
	cfg := s.config.Load()
	var names []string
	for _, c := range changes {
		if c.now != nil && c.now.internal && c.now.source != rankStatic { // those of the config have been obtained by Start
			names = append(names, c.name)
		}
	}
	if cfg != nil && len(names) > 0 && s.ctx.Err() == nil {
		s.obtaining.Go(func() { obtainInternal(s.ctx, cfg, names, cfg.Logger) })
	}
}

// certificateFor returns the certificate that a route is served with: the domain's own pair, or the
// issued one of exactly the route's name.
func (s *state) certificateFor(r *route) (*tls.Certificate, error) {
	if r.pair != nil || r.pairError != nil {
		return r.pair, r.pairError
	}
	var newest *tls.Certificate
	for _, cert := range s.certs.cache.AllMatchingCertificates(r.Name) {
		if slices.Contains(cert.Names, r.Name) && (newest == nil || cert.Leaf.NotAfter.After(newest.Leaf.NotAfter)) {
			newest = &cert.Certificate
		}
	}
	if newest == nil {
		return nil, fmt.Errorf("there is no certificate for %s yet (source %s)", r.Name, r.Certificate.Source)
	}
	return newest, nil
}
