package management

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// CreateDomain claims a name for the tenant, with the settings of body: section 4's object as JSON, at most domain.MaxSize
// bytes, without `tenant`. A pair in it needs the scope certificates:write too.
func (p *Plane) CreateDomain(ctx context.Context, who *Principal, body []byte) (d *Domain, err error) {
	if err := who.Require(DomainsWrite); err != nil {
		return nil, err
	}
	tree, err := readObject(body)
	if err != nil {
		return nil, err
	}
	s, err := p.parseSettings(tree, who.TenantID, false)
	if err != nil {
		return nil, err
	}
	now := p.now()
	row := &DomainRow{
		ID: NewID(DomainID), TenantID: who.TenantID, Name: s.domain.Name, Settings: s.domain, Token: newProofToken(), Version: 1,
		DueAt: now, CreatedAt: now, UpdatedAt: now, Status: PendingDNS,
	}
	pair, err := p.newPair(who, row, s)
	if err != nil {
		return nil, err
	}
	err = p.store.Update(ctx, func(tx Tx) error {
		row := *row // the function may be called again
		tenant, err := p.changingTenant(tx, who)
		if err != nil {
			return err
		}
		if err := p.admit(tx, &row, tenant); err != nil {
			return err
		}
		if err := tx.InsertDomain(&row); err != nil {
			return err
		}
		if pair != nil {
			if err := p.putPair(tx, &row, pair); err != nil {
				return err
			}
		}
		if err := p.audit(tx, who, "domain.created", row.TenantID, row.ID, nil, auditedSettings(row.Settings)); err != nil {
			return err
		}
		d, err = p.saveDomain(tx, who, &row, tenant)
		return err
	})
	return d, err
}

// changingTenant returns the tenant whose domains who is about to change.
func (p *Plane) changingTenant(tx Tx, who *Principal) (*Tenant, error) {
	tenant, err := tx.FindTenant(who.TenantID)
	if err != nil {
		return nil, found("tenant", err)
	}
	if tenant.Suspended {
		return nil, Errorf(Forbidden, "The account is suspended, so nothing can be changed. Ask the operator of this service.")
	}
	return tenant, nil
}

// admit refuses a claim that the tenant cannot make.
func (p *Plane) admit(tx Tx, row *DomainRow, tenant *Tenant) error {
	if !tenant.Trusted {
		if p.ownName(row.Name) {
			return InvalidField("/name", "is a name of this service itself; give one of yours")
		}
		if !strings.Contains(strings.TrimPrefix(row.Name, "*."), ".") {
			return InvalidField("/name", "is a single label, which nobody can prove to be his; give a full host name such as app.example.com")
		}
	}
	old, err := tx.FindDomainByName(row.TenantID, row.Name)
	switch {
	case errors.Is(err, ErrNoRow):
	case err != nil:
		return err
	case old.DeletingAt.IsZero():
		return Errorf(DomainExists, "There is a domain of that name already.")
	default: // its name goes from one claim to the next, without waiting for edges
		if err := tx.DeleteDomain(old.ID); err != nil {
			return err
		}
	}
	n, err := tx.CountDomains(row.TenantID)
	if err != nil {
		return err
	}
	if n >= tenant.MaxDomains {
		return Errorf(QuotaExceeded, "The account can have %d domains. Delete one, or ask the operator for more.", tenant.MaxDomains)
	}
	return nil
}

// saveDomain decides who owns the name after a change of row, tells edges, derives the status and stores row.
func (p *Plane) saveDomain(tx Tx, who *Principal, row *DomainRow, tenant *Tenant) (*Domain, error) {
	owned := row.Proof != ""
	if err := p.decideOwnership(tx, who, row, tenant); err != nil {
		return nil, err
	}
	if owned && row.Proof != "" {
		if err := p.publish(tx, row, tenant); err != nil {
			return nil, err
		}
	}
	return p.storeDomain(tx, row, tenant)
}

// storeDomain derives the status of row and stores it.
func (p *Plane) storeDomain(tx Tx, row *DomainRow, read ...*Tenant) (*Domain, error) {
	views, err := p.viewsOf(tx, []*DomainRow{row}, read...)
	if err != nil {
		return nil, err
	}
	p.settle(views[0])
	return views[0].shown(), tx.UpdateDomain(row)
}

// PatchDomain changes the settings of one of the tenant's domains by a merge patch (RFC 7396). `name` stays as it is. A
// change of the pair needs the scope certificates:write too.
func (p *Plane) PatchDomain(ctx context.Context, who *Principal, id string, patch []byte, match Precondition) (d *Domain, err error) {
	if err := who.Require(DomainsWrite); err != nil {
		return nil, err
	}
	changes, err := readObject(patch)
	if err != nil {
		return nil, err
	}
	if err := refuse(unknownNulls("", changes)...); err != nil {
		return nil, err
	}
	pair, err := p.patchedPair(ctx, who, id, changes, match)
	if err != nil {
		return nil, err
	}
	err = p.store.Update(ctx, func(tx Tx) error {
		tenant, row, err := p.changingDomain(tx, who, id, match)
		if err != nil {
			return err
		}
		s, err := p.patched(row, changes)
		if err != nil {
			return err
		}
		if pair == nil && sameSettings(s.domain, row.Settings) {
			d, err = p.showRow(tx, row)
			return err
		}
		d, err = p.changeDomain(tx, who, row, tenant, s.domain, pair)
		return err
	})
	return d, err
}

// patchedPair checks and seals the pair that a patch brings, before the change: other writers need not wait for that. It does
// not depend on what may change meanwhile.
func (p *Plane) patchedPair(ctx context.Context, who *Principal, id string, changes object, match Precondition) (pair *CertificateRow, err error) {
	if _, given := changes["certificate"]; !given {
		return nil, nil
	}
	var row *DomainRow
	err = p.store.View(ctx, func(tx Tx) error {
		_, row, err = p.changingDomain(tx, who, id, match)
		return err
	})
	if err != nil {
		return nil, err
	}
	s, err := p.patched(row, changes)
	if err != nil {
		return nil, err
	}
	return p.newPair(who, row, s)
}

// patched returns the settings of row with changes. It leaves both as they are.
func (p *Plane) patched(row *DomainRow, changes object) (*settings, error) {
	if name, given := changes["name"]; given {
		text, _ := name.(string)
		if normal, err := domain.NormalName(text); err != nil || normal != row.Name {
			return nil, InvalidField("/name", "cannot be changed; create another domain and delete this one")
		}
	}
	if _, given := changes["tenant"]; given {
		return nil, InvalidField("/tenant", "is set by the service; leave it out")
	}
	tree, err := readObject(row.Settings.AppendJSON(nil))
	if err != nil {
		return nil, err
	}
	hasPair := row.Settings.Certificate.Source == domain.BYOC
	tree = merge(tree, changes)
	tree["name"] = row.Name
	delete(tree, "tenant")
	if certificate, _ := tree["certificate"].(object); hasPair && certificate != nil && certificate["source"] != string(domain.BYOC) {
		if given, _ := changes["certificate"].(object); given["fallback"] == nil {
			delete(certificate, "fallback") // it was of the pair that goes
		}
	}
	return p.parseSettings(tree, row.TenantID, hasPair)
}

// changeDomain stores new settings of row and, where it is not nil, its new pair, and tells edges.
func (p *Plane) changeDomain(tx Tx, who *Principal, row *DomainRow, tenant *Tenant, to *domain.Domain, pair *CertificateRow) (*Domain, error) {
	before := row.Settings
	row.Settings = to
	row.Version++
	row.UpdatedAt = p.now()
	row.DueAt, row.Tries = row.UpdatedAt, 0
	if pair != nil {
		if err := p.putPair(tx, row, pair); err != nil {
			return nil, err
		}
	} else if before.Certificate.Source == domain.BYOC && to.Certificate.Source != domain.BYOC {
		if err := p.dropPair(tx, who, row); err != nil {
			return nil, err
		}
	}
	if err := p.audit(tx, who, "domain.updated", row.TenantID, row.ID, auditedSettings(before), auditedSettings(to)); err != nil {
		return nil, err
	}
	return p.saveDomain(tx, who, row, tenant)
}

// DeleteDomain ends the tenant's claim. Edges are told at once; until they have let go of it, the domain is shown as deleting.
func (p *Plane) DeleteDomain(ctx context.Context, who *Principal, id string, match Precondition) (d *Domain, err error) {
	if err := who.Require(DomainsWrite); err != nil {
		return nil, err
	}
	err = p.store.Update(ctx, func(tx Tx) error {
		row, err := tx.FindDomainByID(who.TenantID, id)
		if err != nil {
			return found("domain", err)
		}
		if !row.DeletingAt.IsZero() {
			d, err = p.showRow(tx, row)
			return err
		}
		if err := match.check(row.Version); err != nil {
			return err
		}
		served := row.Published()
		now := p.now()
		row.Proof, row.ProvenAt, row.DueAt = "", time.Time{}, time.Time{}
		row.DeletingAt, row.UpdatedAt, row.CertificateNotAfter = now, now, time.Time{}
		row.Version++
		if err := p.withdraw(tx, row); err != nil {
			return err
		}
		if err := errors.Join(tx.DeleteCertificate(row.ID), p.purgeDomain(tx, row.TenantID, row.ID), p.audit(tx, who, "domain.deleted", row.TenantID, row.ID, auditedSettings(row.Settings), nil)); err != nil {
			return err
		}
		if d, err = p.storeDomain(tx, row); err != nil {
			return err
		}
		if !served {
			err = tx.DeleteDomain(row.ID) // no edge has it
		}
		return errors.Join(err, p.endClaim(tx, row))
	})
	return d, err
}

// auditedSettings is what the audit log keeps of settings: of CA certificates, which are long, the digest.
func auditedSettings(d *domain.Domain) *domain.Domain {
	d = d.Redacted()
	for _, u := range d.Upstreams {
		if u.TLS != nil && u.TLS.CAPEM != "" {
			sum := sha256.Sum256([]byte(u.TLS.CAPEM))
			u.TLS.CAPEM = "sha256:" + hex.EncodeToString(sum[:])
		}
	}
	return d
}
