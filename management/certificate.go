package management

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// CertificateRow is a tenant's own pair for a domain, as it is stored.
type CertificateRow struct {
	ID, DomainID, TenantID string

	ChainPEM string
	Key      []byte // sealed, bound to sealContext

	Issuer, Serial, SHA256, KeyType string
	Names                           []string
	Warnings                        []string
	NotBefore, NotAfter, CreatedAt  time.Time
}

// sealContext is what the key of a domain's pair is bound to: put into another row, it cannot be opened.
func sealContext(tenantID, domainID string) string { return "byoc/" + tenantID + "/" + domainID }

// Certificate is a domain's certificate as it is shown, never with its key. Of one that edges obtained, what they report.
type Certificate struct {
	ID        string                   `json:"id"` // crt_…
	Name      string                   `json:"domain" doc:"the domain's name"`
	Domain    string                   `json:"domain_id"`
	Source    domain.CertificateSource `json:"source" enum:"acme,byoc,internal"`
	State     AxisState                `json:"state" enum:"ok,pending,failed,unknown,off"`
	Detail    string                   `json:"detail"`
	Issuer    string                   `json:"issuer"`
	Serial    string                   `json:"serial"`
	SHA256    string                   `json:"sha256"`
	KeyType   string                   `json:"key_type"`
	Names     []string                 `json:"names" nullable:"false"`
	NotBefore *time.Time               `json:"not_before"`
	NotAfter  *time.Time               `json:"not_after"`
	Warnings  []string                 `json:"warnings" nullable:"false"`

	Version int64 `json:"-"` // the domain's, for the ETag
}

// newPair checks the pair that came with settings of row and seals its key; nil: none came.
func (p *Plane) newPair(who *Principal, row *DomainRow, s *settings) (*CertificateRow, error) {
	if s.chain == "" && s.key == "" {
		return nil, nil
	}
	if err := who.Require(CertificatesWrite); err != nil {
		return nil, err
	}
	return p.sealPair(row, s.chain, s.key, "")
}

// sealPair checks a pair for row. below is the field that the request's body is: see domainFaults.
func (p *Plane) sealPair(row *DomainRow, chain, key, below string) (*CertificateRow, error) {
	now := p.now()
	cert, warnings, err := domain.CheckPair([]byte(chain), []byte(key), row.Name, now)
	if err != nil {
		return nil, refuse(domainFaults(err, below)...)
	}
	sealed, err := p.sealer.Seal([]byte(key), sealContext(row.TenantID, row.ID))
	if err != nil {
		return nil, fmt.Errorf("sealing a key: %w", err)
	}
	leaf := cert.Leaf
	sum := sha256.Sum256(leaf.Raw)
	return &CertificateRow{
		ID: NewID(CertificateID), DomainID: row.ID, TenantID: row.TenantID, ChainPEM: chain, Key: sealed,
		Issuer: clip(printable(leaf.Issuer.String()), 512), Serial: serialText(leaf), SHA256: hex.EncodeToString(sum[:]), KeyType: keyTypeOf(leaf.PublicKey),
		Names: clipNames(leaf.DNSNames), Warnings: warnings, NotBefore: leaf.NotBefore.UTC(), NotAfter: leaf.NotAfter.UTC(), CreatedAt: now,
	}, nil
}

// serialText spells a serial number as browsers and openssl do.
func serialText(c *x509.Certificate) string {
	return clip(strings.ToLower(hex.EncodeToString(c.SerialNumber.Bytes())), 64)
}

func keyTypeOf(key any) string {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Curve.Params().Name
	case *rsa.PublicKey:
		return "RSA " + strconv.Itoa(key.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return "unknown"
}

// printable returns s without what a terminal or a page might obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// clipNames bounds what is kept of a certificate's names: public CAs issue up to 100.
func clipNames(names []string) []string {
	const most = 256
	out := make([]string, 0, min(len(names), most))
	for _, name := range names[:min(len(names), most)] {
		out = append(out, clip(printable(name), 255))
	}
	return out
}

// putPair stores a pair of row.
func (p *Plane) putPair(tx Tx, row *DomainRow, pair *CertificateRow) error {
	row.CertificateNotAfter = pair.NotAfter
	return tx.PutCertificate(pair)
}

// dropPair removes the pair of row, which is no byoc domain any more.
func (p *Plane) dropPair(tx Tx, who *Principal, row *DomainRow) error {
	if err := who.Require(CertificatesWrite); err != nil {
		return err
	}
	row.CertificateNotAfter = time.Time{}
	return tx.DeleteCertificate(row.ID)
}

// PutCertificate gives a domain the tenant's own pair and sets its source to byoc. The settings of a wildcard, which had to
// come with a pair, keep their fallback.
func (p *Plane) PutCertificate(ctx context.Context, who *Principal, id, chain, key string, match Precondition) (c *Certificate, err error) {
	if err := who.Require(CertificatesWrite); err != nil {
		return nil, err
	}
	var seen *DomainRow
	err = p.store.View(ctx, func(tx Tx) error {
		_, seen, err = p.changingDomain(tx, who, id, match)
		return err
	})
	if err != nil {
		return nil, err
	}
	pair, err := p.sealPair(seen, chain, key, "certificate") // before the change: other writers need not wait for that
	if err != nil {
		return nil, err
	}
	err = p.store.Update(ctx, func(tx Tx) error {
		tenant, row, err := p.changingDomain(tx, who, id, match)
		if err != nil {
			return err
		}
		to := row.Settings.Clone()
		if to.Certificate.Source != domain.BYOC {
			to.Certificate = domain.Certificate{Source: domain.BYOC, Fallback: domain.FallbackNone}
		}
		if err := refuse(p.settingsFaults(to)...); err != nil {
			return Errorf(Conflict, "This service does not take certificates of your own, or the domain's settings are no longer allowed: see PATCH.")
		}
		old, err := tx.FindCertificate(row.ID)
		if err != nil && !errors.Is(err, ErrNoRow) {
			return err
		}
		if _, err := p.changeDomain(tx, who, row, tenant, to, pair); err != nil {
			return err
		}
		if err := p.audit(tx, who, "certificate.uploaded", row.TenantID, row.ID, auditedPair(old), auditedPair(pair)); err != nil {
			return err
		}
		c, err = p.certificateOf(tx, row)
		return err
	})
	return c, err
}

// auditedPair is what the audit log keeps of a pair.
func auditedPair(c *CertificateRow) any {
	if c == nil {
		return nil
	}
	return map[string]any{"id": c.ID, "serial": c.Serial, "sha256": c.SHA256, "issuer": c.Issuer, "not_after": c.NotAfter}
}

// changingDomain finds a domain that who is about to change.
func (p *Plane) changingDomain(tx Tx, who *Principal, id string, match Precondition) (*Tenant, *DomainRow, error) {
	tenant, err := p.changingTenant(tx, who)
	if err != nil {
		return nil, nil, err
	}
	row, err := tx.FindDomainByID(who.TenantID, id)
	if err != nil {
		return nil, nil, found("domain", err)
	}
	if err := match.check(row.Version); err != nil {
		return nil, nil, err
	}
	if !row.DeletingAt.IsZero() {
		return nil, nil, Errorf(Conflict, "The domain is being deleted.")
	}
	return tenant, row, nil
}

// DeleteCertificate removes the pair of a domain and sets its source back to acme. It returns what takes the pair's place.
func (p *Plane) DeleteCertificate(ctx context.Context, who *Principal, id string, match Precondition) (c *Certificate, err error) {
	if err := who.Require(CertificatesWrite); err != nil {
		return nil, err
	}
	err = p.store.Update(ctx, func(tx Tx) error {
		tenant, row, err := p.changingDomain(tx, who, id, match)
		if err != nil {
			return err
		}
		if row.Settings.Certificate.Source != domain.BYOC {
			return Errorf(NotFound, "The domain has no certificate of its own.")
		}
		if strings.HasPrefix(row.Name, "*.") {
			return Errorf(Conflict, "A wildcard cannot do without a certificate of its own: ACME over HTTP proves no wildcard. Upload another, or delete the domain.")
		}
		old, err := tx.FindCertificate(row.ID)
		if err != nil {
			return err
		}
		to := row.Settings.Clone()
		to.Certificate = domain.Certificate{Source: domain.ACME, Fallback: domain.FallbackNone}
		if err := refuse(p.settingsFaults(to)...); err != nil {
			return Errorf(Conflict, "This service obtains no certificates, or the domain's settings are no longer allowed: see PATCH.")
		}
		if _, err := p.changeDomain(tx, who, row, tenant, to, nil); err != nil {
			return err
		}
		if err := p.audit(tx, who, "certificate.deleted", row.TenantID, row.ID, auditedPair(old), nil); err != nil {
			return err
		}
		c, err = p.certificateOf(tx, row)
		return err
	})
	return c, err
}

// FindCertificate returns the certificate of a domain.
func (p *Plane) FindCertificate(ctx context.Context, who *Principal, id string) (c *Certificate, err error) {
	if err := who.Require(DomainsRead); err != nil {
		return nil, err
	}
	err = p.store.View(ctx, func(tx Tx) error {
		row, err := tx.FindDomainByID(who.TenantID, id)
		if err != nil {
			return found("domain", err)
		}
		c, err = p.certificateOf(tx, row)
		return err
	})
	return c, err
}

func (p *Plane) certificateOf(tx Tx, row *DomainRow) (*Certificate, error) {
	views, err := p.viewsOf(tx, []*DomainRow{row})
	if err != nil {
		return nil, err
	}
	if row.Settings.Certificate.Source != domain.BYOC {
		return views[0].shownCertificate(nil), nil
	}
	pair, err := tx.FindCertificate(row.ID)
	if err != nil && !errors.Is(err, ErrNoRow) { // none: the domain is being deleted
		return nil, err
	}
	return views[0].shownCertificate(pair), nil
}

// certificatesOf asks the database once for all pairs.
func (p *Plane) certificatesOf(tx Tx, rows []*DomainRow) ([]*Certificate, error) {
	views, err := p.viewsOf(tx, rows)
	if err != nil {
		return nil, err
	}
	pairs := map[string]*CertificateRow{}
	for some := range slices.Chunk(rows, 500) {
		var own []string
		for _, row := range some {
			if row.Settings.Certificate.Source == domain.BYOC {
				own = append(own, row.ID)
			}
		}
		found, err := tx.FindCertificates(own)
		if err != nil {
			return nil, err
		}
		for _, pair := range found {
			pairs[pair.DomainID] = pair
		}
	}
	all := make([]*Certificate, len(views))
	for i, v := range views {
		all[i] = v.shownCertificate(pairs[v.row.ID])
	}
	return all, nil
}

// shownCertificate is the certificate of a domain, with its pair if it has one.
func (v *domainView) shownCertificate(pair *CertificateRow) *Certificate {
	row, axis := v.row, v.certificate()
	c := &Certificate{
		ID: string(CertificateID) + strings.TrimPrefix(row.ID, string(DomainID)), Domain: row.ID, Name: row.Name, Source: row.Settings.Certificate.Source,
		State: axis.State, Detail: axis.Detail, NotAfter: axis.NotAfter, Issuer: clip(printable(v.edges.Certificate.Issuer), 512),
		Names: []string{row.Name}, Warnings: []string{}, Version: row.Version,
	}
	if pair == nil {
		return c
	}
	c.ID, c.Issuer, c.Serial, c.SHA256, c.KeyType, c.Names = pair.ID, pair.Issuer, pair.Serial, pair.SHA256, pair.KeyType, pair.Names
	c.NotBefore, c.NotAfter = moment(pair.NotBefore), moment(pair.NotAfter)
	if pair.Warnings != nil {
		c.Warnings = pair.Warnings
	}
	return c
}

// FindCertificates lists the tenant's certificates, pairs of its own and those that edges report. With within, those that
// end within that time, the first to end first; else all, by name.
func (p *Plane) FindCertificates(ctx context.Context, who *Principal, within time.Duration, page Page) (all []*Certificate, next string, err error) {
	if err := who.Require(DomainsRead); err != nil {
		return nil, "", err
	}
	filter := DomainFilter{TenantID: who.TenantID, Limit: page.Limit + 1}
	key := func(r *DomainRow) string { return r.Name }
	if within > 0 {
		filter.ExpiringBefore = p.now().Add(within)
		key = func(r *DomainRow) string {
			return strconv.FormatInt(r.CertificateNotAfter.UnixMicro(), 10) + " " + r.ID
		}
	}
	keys, err := page.keys(1)
	if err != nil {
		return nil, "", err
	}
	if keys != nil {
		filter.After = keys[0]
		if at, id, ok := strings.Cut(keys[0], " "); within > 0 {
			n, err := strconv.ParseInt(at, 10, 64)
			if err != nil || !ok || !IsID(DomainID, id) {
				return nil, "", InvalidField("?cursor", "no cursor of this list: begin again without one")
			}
			filter.AfterTime, filter.AfterID = time.UnixMicro(n), id
		}
	}
	err = p.store.View(ctx, func(tx Tx) error {
		rows, err := tx.FindDomains(filter)
		if err != nil {
			return err
		}
		rows, next = onePage(rows, page, key)
		all, err = p.certificatesOf(tx, rows)
		return err
	})
	return all, next, err
}

// RotateMasterKey puts everything that is sealed under the first master key, and returns how many rows changed. It goes on
// where it was interrupted when it is called again.
func (p *Plane) RotateMasterKey(ctx context.Context) (changed int, err error) {
	const some = 100
	for after := ""; ; {
		rows, n := []*CertificateRow(nil), 0
		err := p.store.Update(ctx, func(tx Tx) (err error) {
			n = 0
			if rows, err = tx.FindSealedKeys(after, some); err != nil {
				return err
			}
			for _, row := range rows {
				key, again, err := p.sealer.Rewrap(row.Key)
				if err != nil {
					return fmt.Errorf("the key of %s: %w", row.ID, err)
				}
				if !again {
					continue
				}
				n++
				if err := tx.UpdateSealedKey(row.ID, row.DomainID, key); err != nil {
					return err
				}
			}
			return nil
		})
		changed += n
		if err != nil {
			return changed, err
		}
		if len(rows) < some {
			break
		}
		after = rows[len(rows)-1].ID
	}
	n, err := p.rewrapUsers(ctx)
	return changed + n, err
}
