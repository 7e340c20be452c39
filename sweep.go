package pqproxy

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// heldCert is what the storage has of a name's certificate.
type heldCert struct {
	issuerKey           string
	leaf                *x509.Certificate
	notBefore, notAfter time.Time
	meta                certmagic.CertificateResource
	ari                 acme.RenewalInfo
}

// renewalRatio is the last part of a certificate's life in which it is renewed, as certmagic has it.
const renewalRatio = certmagic.DefaultRenewalWindowRatio

// renewSlack is by how much a renewal may be early, and five times that what is never waited for: the interval of
// certmagic's own maintenance, as we tell it.
const renewSlack = time.Minute

// due reports whether it is to be renewed, by the CA's word (RFC 9773) or by what is left of its life.
func (h *heldCert) due(now time.Time) bool {
	if at := h.ari.SelectedTime; !at.IsZero() && now.After(at.Add(-renewSlack)) {
		return true
	}
	left, life := h.notAfter.Sub(now), h.notAfter.Sub(h.notBefore)
	return left < time.Duration(float64(life)*renewalRatio) || left < 5*renewSlack
}

// inStorage returns the newest certificate of a name that the issuers of the config have put into storage; nil: none.
// One without its key is none: a process was ended while it wrote them.
func (s *certificates) inStorage(ctx context.Context, now *issuing, name string) (*heldCert, error) {
	return readHeld(ctx, now.storage, now.acme.Issuers, name)
}

func readHeld(ctx context.Context, storage certmagic.Storage, issuers []certmagic.Issuer, name string) (newest *heldCert, err error) {
	for _, issuer := range issuers {
		held := &heldCert{issuerKey: issuer.IssuerKey()}
		chain, err := storage.Load(ctx, certmagic.StorageKeys.SiteCert(held.issuerKey, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(chain)
		if block == nil {
			continue
		}
		if held.leaf, err = x509.ParseCertificate(block.Bytes); err != nil {
			continue
		}
		held.notBefore, held.notAfter = held.leaf.NotBefore, held.leaf.NotAfter
		if newest != nil && !held.notAfter.After(newest.notAfter) || !storage.Exists(ctx, certmagic.StorageKeys.SitePrivateKey(held.issuerKey, name)) {
			continue
		}
		meta, err := storage.Load(ctx, certmagic.StorageKeys.SiteMeta(held.issuerKey, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if json.Unmarshal(meta, &held.meta) == nil {
			var issued acme.Certificate
			if json.Unmarshal(held.meta.IssuerData, &issued) == nil && issued.RenewalInfo != nil {
				held.ari = *issued.RenewalInfo
			}
		}
		newest = held
	}
	return newest, nil
}

// certIndex is what is known of the certificates that we obtain, for those that were looked at: when they end, in
// seconds since 1970. It is 40 bytes or so a name.
type certIndex struct {
	mu       sync.Mutex
	notAfter map[string]int64
}

func (i *certIndex) note(name string, notAfter time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.notAfter == nil {
		i.notAfter = make(map[string]int64)
	}
	i.notAfter[name] = notAfter.Unix()
}

func (i *certIndex) forget(name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.notAfter, name)
}

// of returns when the certificate of a name ends, if it is known.
func (i *certIndex) of(name string) (time.Time, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	at, ok := i.notAfter[name]
	return time.Unix(at, 0), ok
}

// summary returns how many certificates are known, and when the first of them ends.
func (i *certIndex) summary() (n int, earliest int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, at := range i.notAfter {
		if n == 0 || at < earliest {
			earliest = at
		}
		n++
	}
	return n, earliest
}

// The sweeper goes through all names whose certificates we obtain, visited or not. Between two sweeps it rests; a name
// of which the end is known and far is passed over without a look into storage.
const (
	sweepRest   = 10 * time.Minute
	sweepBeside = 200 * time.Microsecond // rest after each look into storage, at least
	ariRest     = 6 * time.Hour          // between two questions to the CA about one certificate, if it does not say
)

// sweepSoon begins the next sweep now.
func (s *certificates) sweepSoon() {
	select {
	case s.hurry <- struct{}{}:
	default: // one is coming
	}
}

// sweepForever sweeps until close.
func (s *certificates) sweepForever() {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-rest.C:
		case <-s.hurry:
		}
		s.sweep()
		rest.Reset(s.rest - rand.N(s.rest/4+1))
	}
}

// sweep looks at every name once.
func (s *certificates) sweep() {
	asked := make(map[string]bool) // IDs of certificates that the CA was asked about
	var pace pace
	for e := range s.owner.table.Load().all {
		if s.ctx.Err() != nil {
			return
		}
		pace.step()
		switch e.certificate {
		case fromACME:
			s.look(e, asked)
		case fromInternal:
			s.lookInternal(e.name())
		case fromTenantOrACME:
			if tenantPairEnds(e.domain()).Before(time.Now().Add(takeOverBefore)) {
				s.look(e, asked)
			}
		}
	}
}

// takeOverBefore is how long before a tenant's pair expires another certificate is obtained, where the domain says so.
const takeOverBefore = 7 * 24 * time.Hour

// tenantPairEnds returns when a tenant's pair expires.
func tenantPairEnds(d *domain.Domain) time.Time {
	block, _ := pem.Decode(bytes.TrimSpace([]byte(d.Certificate.ChainPEM)))
	if block == nil {
		return time.Time{}
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}
	}
	return leaf.NotAfter
}

// far reports whether a certificate of which the end is known needs no look: half of the shortest life that CAs give
// for it to be longer than a week is left.
func (s *certificates) far(name string) bool {
	notAfter, ok := s.known.of(name)
	return ok && time.Until(notAfter) > 45*24*time.Hour
}

// look sees whether a name has a certificate in storage that needs no renewal, and has it obtained or renewed
// otherwise.
func (s *certificates) look(e *entry, asked map[string]bool) {
	name := e.name()
	if s.far(name) && rand.N(16) != 0 { // now and then all the same: CAs revoke, and say so by ARI
		return
	}
	now := s.config.Load()
	ctx, cancel := context.WithTimeout(s.ctx, loadTimeout)
	defer cancel()
	held, err := s.inStorage(ctx, now, name)
	time.Sleep(sweepBeside)
	switch {
	case err != nil:
		if s.ctx.Err() == nil {
			now.logger.Error("looking for a certificate in storage", zap.String(keyDomain, name), zap.Error(err))
		}
		return
	case held == nil:
		s.orders.want(name, e)
		return
	}
	s.known.note(name, held.notAfter)
	if !held.due(time.Now()) {
		s.askCA(ctx, now, held, name, asked)
	}
	switch {
	case held.due(time.Now()):
		s.orders.want(name, e)
	case s.olderInMemory(name, held.notAfter): // another edge has renewed it
		if err := s.renewed(ctx, now.acme, name); err != nil {
			now.logger.Error("loading a certificate that was renewed", zap.String(keyDomain, name), zap.Error(err))
		}
	}
}

// olderInMemory reports whether what is in memory ends earlier.
func (s *certificates) olderInMemory(name string, notAfter time.Time) bool {
	cert := s.newest(name)
	return cert != nil && cert.Leaf.NotAfter.Before(notAfter)
}

// lookInternal renews a certificate of the local CA that is in memory. Others are issued when somebody comes.
func (s *certificates) lookInternal(name string) {
	notAfter, ok := s.known.of(name)
	if !ok || !s.inMemory(name) {
		return
	}
	cert := s.newest(name)
	now := s.config.Load()
	if cert == nil || time.Until(notAfter) > time.Duration(float64(notAfter.Sub(cert.Leaf.NotBefore))*renewalRatio) {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, loadTimeout)
	defer cancel()
	err := now.internal.RenewCertAsync(ctx, name, false)
	if err == nil {
		err = s.renewed(ctx, now.internal, name)
	}
	if err != nil {
		now.logger.Error("renewing a certificate of the internal CA", zap.String(keyDomain, name), zap.Error(err))
		return
	}
	if cert := s.newest(name); cert != nil {
		s.known.note(name, cert.Leaf.NotAfter)
	}
}

// askCA asks the CA when a certificate is to be renewed (RFC 9773), if it is time to ask, and keeps the answer beside
// the certificate, where other edges find it.
func (s *certificates) askCA(ctx context.Context, now *issuing, held *heldCert, name string, asked map[string]bool) {
	id := held.ari.UniqueIdentifier
	if id == "" || held.ari.RetryAfter != nil && time.Now().Before(*held.ari.RetryAfter) || asked[id] {
		return
	}
	asked[id] = true
	for _, issuer := range now.acme.Issuers {
		once, ok := issuer.(onceIssuer)
		if !ok || issuer.IssuerKey() != held.issuerKey {
			continue
		}
		getter, ok := once.Issuer.(certmagic.RenewalInfoGetter)
		if !ok {
			return
		}
		var cert certmagic.Certificate
		cert.Leaf = held.leaf
		info, err := getter.GetRenewalInfo(ctx, cert)
		if err != nil {
			now.logger.Warn("asking the CA when to renew a certificate", zap.String(keyDomain, name), zap.Error(err))
			later := time.Now().Add(ariRest)
			info = held.ari
			info.RetryAfter = &later
		}
		if info.SameWindow(held.ari) && !held.ari.SelectedTime.IsZero() {
			info.SelectedTime = held.ari.SelectedTime
		}
		if info.RetryAfter == nil {
			later := time.Now().Add(ariRest)
			info.RetryAfter = &later
		}
		held.ari = info
		if err := keepRenewalInfo(ctx, now.storage, held, name); err != nil {
			now.logger.Error("keeping when a certificate is to be renewed", zap.String(keyDomain, name), zap.Error(err))
		}
		return
	}
}

// keepRenewalInfo writes what the CA said into the certificate's metadata, as certmagic does, who reads it.
func keepRenewalInfo(ctx context.Context, storage certmagic.Storage, held *heldCert, name string) error {
	var issued acme.Certificate
	if err := json.Unmarshal(held.meta.IssuerData, &issued); err != nil {
		return err
	}
	issued.RenewalInfo = &held.ari
	data, err := json.Marshal(issued)
	if err != nil {
		return err
	}
	held.meta.IssuerData = data
	meta, err := json.MarshalIndent(held.meta, "", "\t")
	if err != nil {
		return err
	}
	return storage.Store(ctx, certmagic.StorageKeys.SiteMeta(held.issuerKey, name), meta)
}
