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
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// certificates are those that domains do not bring themselves, in a cache of our own: the tls app's would
// make them part of its automation policies, from which nothing can be taken at run time.
type certificates struct {
	cache  *certmagic.Cache
	once   sync.Once
	config atomic.Pointer[certmagic.Config] // of the config in force; nil: no domain needs one
}

// errNoIssuer is what the cache hears between configs.
var errNoIssuer = errors.New("no config has an issuer")

func (s *certificates) open() {
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

// close ends the maintenance of the cache.
func (s *certificates) close() { s.once.Do(s.cache.Stop) }

// use puts the issuer of a config in force.
func (s *certificates) use(cfg *certmagic.Config) { s.config.Store(cfg) }

// internalIssuer returns a config that issues from Caddy's local CA.
func (s *certificates) internalIssuer(ctx caddy.Context) (*certmagic.Config, error) {
	module, err := ctx.LoadModuleByID("tls.issuance.internal", nil)
	if err != nil {
		return nil, fmt.Errorf("loading the internal issuer: %w", err)
	}
	return certmagic.New(s.cache, certmagic.Config{
		Storage: ctx.Storage(),
		Issuers: []certmagic.Issuer{module.(certmagic.Issuer)},
		OCSP:    certmagic.OCSPConfig{DisableStapling: true}, // the local CA has no responder
		Logger:  ctx.Logger().Named("certificates"),
	}), nil
}

// obtainInternal issues or loads the certificates of names from Caddy's local CA, and keeps them renewed. A name
// that fails is logged: it must not keep the others from being served.
func obtainInternal(ctx context.Context, cfg *certmagic.Config, names []string, logger *zap.Logger) {
	for _, name := range names {
		if err := cfg.ManageSync(ctx, []string{name}); err != nil {
			logger.Error("obtaining a certificate from the internal CA", zap.String(keyDomain, name), zap.Error(err))
		}
	}
}

// certificateFor returns the certificate that a route is served with: the domain's own pair, or the
// issued one of exactly the route's name.
func (s *state) certificateFor(r *route) (*tls.Certificate, error) {
	if r.pair != nil {
		return r.pair, nil
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
