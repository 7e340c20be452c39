package pqproxy

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
)

// heldCert is a certificate that an issuer has given us, and its key.
type heldCert struct {
	issuerKey  string
	cert       *tls.Certificate // with its Leaf
	chain, key []byte           // in PEM
	data       json.RawMessage  // the issuer's; of ACME an acme.Certificate
	ari        acme.RenewalInfo // in it
	torn       bool             // storage has halves of two pairs, and this is the one before
}

// newHeld puts a pair together. It fails where the key is not the certificate's, or the certificate not the name's.
func newHeld(issuerKey, name string, chain, key []byte) (*heldCert, error) {
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, err
	}
	if err := cert.Leaf.VerifyHostname(strings.Replace(name, "*", "any", 1)); err != nil {
		return nil, err
	}
	return &heldCert{issuerKey: issuerKey, cert: &cert, chain: chain, key: key}, nil
}

// String shows nothing of the key.
func (h *heldCert) String() string { return fmt.Sprintf("%v of %s", h.cert.Leaf.DNSNames, h.issuerKey) }

// setData takes over what the issuer says of the certificate. What it may say of another one is not believed.
func (h *heldCert) setData(data json.RawMessage) {
	h.data = data
	var issued acme.Certificate
	if json.Unmarshal(data, &issued) != nil || issued.RenewalInfo == nil {
		return
	}
	switch id, err := acme.ARIUniqueIdentifier(h.cert.Leaf); {
	case err != nil:
	case issued.RenewalInfo.UniqueIdentifier == id:
		h.ari = *issued.RenewalInfo
	case issued.RenewalInfo.UniqueIdentifier == "": // the CA has ARI, and did not answer when the certificate was issued
		h.ari = acme.RenewalInfo{UniqueIdentifier: id}
	}
}

// renewalRatio is the last part of a certificate's life in which it is renewed, as certmagic has it.
const renewalRatio = certmagic.DefaultRenewalWindowRatio

// renewSlack is by how much a renewal that a CA has set a time for may be early. Shorter lives have less.
const renewSlack = time.Minute

// due reports whether it is to be renewed, by the CA's word (RFC 9773) or by what is left of its life. The CA's word
// counts for nothing in the first hundredth of a life: a CA that errs would have us order without end.
func (h *heldCert) due(now time.Time) bool {
	leaf := h.cert.Leaf
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	if at := h.ari.SelectedTime; !at.IsZero() && now.After(at.Add(-min(renewSlack, life/60))) && now.Sub(leaf.NotBefore) > life/100 {
		return true
	}
	return h.torn || !now.Before(h.dueByLife())
}

// dueByLife returns when the last part of its life begins.
func (h *heldCert) dueByLife() time.Time {
	leaf := h.cert.Leaf
	return leaf.NotAfter.Add(-time.Duration(float64(leaf.NotAfter.Sub(leaf.NotBefore)) * renewalRatio))
}

// Bounds of how long nobody looks at a certificate in storage: others may change it.
const (
	lookAway = 24 * time.Hour
	ariRest  = 6 * time.Hour // between two questions to the CA about one certificate, if it does not say
)

// nextLook returns when there is something to do about a certificate that is not due: renew it, or ask its CA.
func (h *heldCert) nextLook(now time.Time) time.Time {
	next := now.Add(lookAway)
	if begins := h.cert.Leaf.NotBefore; begins.After(now) {
		return begins // memory may have another one until then
	}
	for _, at := range []time.Time{h.dueByLife(), h.ari.SelectedTime, h.askAt()} {
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	return next
}

// askAt returns when its CA is to be asked when to renew it; zero: never.
func (h *heldCert) askAt() time.Time {
	switch {
	case h.ari.RetryAfter != nil:
		return *h.ari.RetryAfter
	case h.ari.UniqueIdentifier != "":
		return h.cert.Leaf.NotBefore
	}
	return time.Time{}
}

// held returns the best certificate of a name that the issuers have put into storage; nil: none that can be served.
func (i *issuing) held(ctx context.Context, issuers []certmagic.Issuer, name string) (best *heldCert, err error) {
	now := time.Now()
	for _, issuer := range issuers {
		held, err := i.heldFrom(ctx, issuer.IssuerKey(), name)
		if err != nil {
			return nil, err
		}
		if held != nil && (best == nil || held.betterThan(best, now)) {
			best = held
		}
	}
	return best, nil
}

// betterThan reports whether it is to be served rather than another one: if it alone is valid, or was issued later.
func (h *heldCert) betterThan(other *heldCert, now time.Time) bool {
	a, b := isValid(h.cert, now), isValid(other.cert, now)
	if a != b {
		return a
	}
	return h.cert.Leaf.NotBefore.After(other.cert.Leaf.NotBefore)
}

func isValid(cert *tls.Certificate, now time.Time) bool {
	return !now.Before(cert.Leaf.NotBefore) && !now.After(cert.Leaf.NotAfter)
}

// heldFrom returns what one issuer has given for a name. A process that was killed while it wrote, and a storage that
// failed, leave halves of two pairs: then it is the one before, if that is there, or nothing.
func (i *issuing) heldFrom(ctx context.Context, issuerKey, name string) (*heldCert, error) {
	for range 2 { // somebody may be writing
		key, err := i.load(ctx, certmagic.StorageKeys.SitePrivateKey(issuerKey, name))
		if err != nil {
			return nil, err
		}
		chain, err := i.load(ctx, certmagic.StorageKeys.SiteCert(issuerKey, name))
		if err != nil || key == nil && chain == nil {
			return nil, err
		}
		if held, err := newHeld(issuerKey, name, chain, key); err == nil {
			return held, i.loadData(ctx, held, name)
		}
		before, err := i.load(ctx, keyBefore(issuerKey, name))
		if err != nil {
			return nil, err
		}
		if held, err := newHeld(issuerKey, name, before, before); err == nil {
			held.torn = true
			return held, nil
		}
	}
	i.logger.Warn("storage has no key and certificate that belong together: another one is obtained",
		zap.String(keyDomain, name), zap.String("issuer", issuerKey))
	return nil, nil
}

// load reads a value from storage; nil: it is not there.
func (i *issuing) load(ctx context.Context, key string) ([]byte, error) {
	value, err := i.storage.Load(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return value, err
}

func (i *issuing) loadData(ctx context.Context, held *heldCert, name string) error {
	text, err := i.load(ctx, certmagic.StorageKeys.SiteMeta(held.issuerKey, name))
	if err != nil {
		return err
	}
	var meta certmagic.CertificateResource
	if json.Unmarshal(text, &meta) == nil {
		held.setData(meta.IssuerData)
	}
	return nil
}

// keyBefore is where a pair is kept while another one is written over it, in one value: of the pair itself key and
// chain are two, as certmagic has them, and a name may not be without a certificate between the one and the other.
func keyBefore(issuerKey, name string) string {
	return path.Join("pqproxy/before", certmagic.StorageKeys.Safe(issuerKey), certmagic.StorageKeys.Safe(name)+".pem")
}

// save writes a certificate where certmagic would. before is what is there now; nil: nothing.
func (i *issuing) save(ctx context.Context, held, before *heldCert, name string) error {
	keeps := before != nil && before.issuerKey == held.issuerKey
	if keeps && !before.torn {
		if err := i.storage.Store(ctx, keyBefore(held.issuerKey, name), append(before.key[:len(before.key):len(before.key)], before.chain...)); err != nil {
			return err
		}
	}
	if err := i.storage.Store(ctx, certmagic.StorageKeys.SitePrivateKey(held.issuerKey, name), held.key); err != nil {
		return err
	}
	if err := i.storage.Store(ctx, certmagic.StorageKeys.SiteCert(held.issuerKey, name), held.chain); err != nil {
		return err
	}
	if err := i.saveData(ctx, held, name); err != nil {
		return err
	}
	if keeps {
		return i.storage.Delete(ctx, keyBefore(held.issuerKey, name))
	}
	return nil
}

func (i *issuing) saveData(ctx context.Context, held *heldCert, name string) error {
	meta, err := json.MarshalIndent(certmagic.CertificateResource{SANs: []string{name}, IssuerData: held.data}, "", "\t")
	if err != nil {
		return err
	}
	return i.storage.Store(ctx, certmagic.StorageKeys.SiteMeta(held.issuerKey, name), meta)
}
