package management

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// claimsFor is how long a claim that ended keeps others from proving the name by pointing it at the edges: the record may
// still be there, and says nothing about who comes next.
const claimsFor = 90 * 24 * time.Hour

// proofText is what stands in DNS or on the customer's server.
func proofText(token string) string { return "pqproxy-verify=" + token }

func newProofToken() string { return strings.ToLower(rand.Text()) }

// proofRank sorts proofs: the lower the stronger.
func proofRank(p Proof) int {
	return slices.Index([]Proof{ProofTrusted, ProofTXT, ProofHTTP, ProofDNS, ""}, p)
}

// shownProof returns the strongest proof that the facts show as of now, "" for none. What could not be asked the last time
// proves nothing anew.
func shownProof(row *DomainRow, tenant *Tenant) Proof {
	fresh := func(f Finding) bool { return f.State == FoundOK && f.Trouble == "" }
	switch {
	case tenant.Trusted:
		return ProofTrusted
	case fresh(row.Facts.TXT):
		return ProofTXT
	case fresh(row.Facts.HTTP):
		return ProofHTTP
	case fresh(row.Facts.DNS) && !row.Facts.Contested:
		return ProofDNS
	}
	return ""
}

// decideOwnership gives the name to row, lets it keep it, or takes it away, by its facts. It stores what others lose, not
// row itself.
func (p *Plane) decideOwnership(tx Tx, who *Principal, row *DomainRow, tenant *Tenant) (err error) {
	if row.Facts.Contested, err = tx.DomainContested(row.TenantID, row.Name, p.now().Add(-claimsFor)); err != nil {
		return err
	}
	best := shownProof(row, tenant)
	if row.Proof != "" {
		return p.keepOwnership(tx, who, row, tenant, best)
	}
	owner, err := tx.FindDomainOwner(row.Name)
	if err != nil && !errors.Is(err, ErrNoRow) {
		return err
	}
	row.Facts.Taken = owner != nil
	if owner != nil && row.Facts.TXT.State == FoundOK && row.Facts.TXT.Trouble == "" {
		best = ProofTXT // also of a tenant that is trusted: its word takes no name from others, its record does
	}
	if best == "" || owner != nil && (best != ProofTXT || !givesWay(owner)) {
		return nil
	}
	if owner != nil {
		owner.Facts.Taken, owner.Facts.Lost = true, true
		if err := p.loseOwnership(tx, system, owner); err != nil { // whose doing it was is not for the other tenant's log
			return err
		}
		if err := p.refreshRows(tx, []*DomainRow{owner}); err != nil {
			return err
		}
	}
	row.Proof, row.ProvenAt = best, p.now()
	row.Facts.Taken, row.Facts.Lost = false, false
	if err := p.publish(tx, row, tenant); err != nil {
		return err
	}
	return p.audit(tx, who, "domain.verified", row.TenantID, row.ID, nil, map[string]any{"name": row.Name, "proof": best})
}

// givesWay reports whether a proven claim yields to another tenant's token in DNS: one that only points at the edges does,
// and one whose own token is gone and whose name points elsewhere by now. That somebody answered so is known, not guessed.
func givesWay(owner *DomainRow) bool {
	gone := func(f Finding) bool { return (f.State == FoundAbsent || f.State == FoundWrong) && f.Trouble == "" }
	switch owner.Proof {
	case ProofDNS:
		return true
	case ProofTXT:
		return gone(owner.Facts.TXT) && gone(owner.Facts.DNS)
	case ProofHTTP:
		return gone(owner.Facts.TXT) && gone(owner.Facts.DNS) && gone(owner.Facts.HTTP)
	}
	return false
}

// keepOwnership is decideOwnership for a proven claim. A stronger proof takes the place of the one before. Nothing that DNS
// says takes the name away: that would turn a working domain off. Only a tenant that is trusted no longer needs a proof of
// its own, and has the name until DNS has said that there is none.
func (p *Plane) keepOwnership(tx Tx, who *Principal, row *DomainRow, tenant *Tenant, best Proof) error {
	distrusted := row.Proof == ProofTrusted && !tenant.Trusted
	switch {
	case best != "" && (distrusted || proofRank(best) < proofRank(row.Proof)):
		before := row.Proof
		row.Proof = best
		return p.audit(tx, who, "domain.verified", row.TenantID, row.ID, map[string]any{"proof": before}, map[string]any{"proof": best})
	case distrusted && row.Facts.TXT.State.definite() && row.Facts.TXT.Trouble == "" && row.Facts.DNS.Trouble == "" && row.Facts.DNS.State != FoundUnknown:
		row.Facts.Lost = true
		return p.loseOwnership(tx, who, row)
	}
	return nil
}

// loseOwnership takes the name away from row, which the caller stores.
func (p *Plane) loseOwnership(tx Tx, who *Principal, row *DomainRow) error {
	before := row.Proof
	row.Proof, row.ProvenAt, row.ActivatedAt = "", time.Time{}, time.Time{}
	row.DueAt, row.Tries = p.now(), 0
	if err := p.withdraw(tx, row); err != nil {
		return err
	}
	if err := tx.UpdateDomain(row); err != nil { // the name is free for whoever comes next in this transaction
		return err
	}
	return p.audit(tx, who, "domain.ownership_lost", row.TenantID, row.ID, map[string]any{"name": row.Name, "proof": before}, nil)
}

// publish puts row, which is proven, into the feed as it is now, as a change of its own.
func (p *Plane) publish(tx Tx, row *DomainRow, tenant *Tenant) error {
	shown := row.Settings.Clone()
	record := &FeedRecord{Name: row.Name, DomainID: row.ID, TenantID: row.TenantID, Suspended: shown.Suspended || tenant.Suspended}
	shown.Suspended = false
	if shown.Certificate.Source == domain.BYOC {
		pair, err := tx.FindCertificate(row.ID)
		if err != nil {
			return fmt.Errorf("the pair of %s: %w", row.ID, err)
		}
		shown.Certificate.ChainPEM, record.SealedKey = pair.ChainPEM, pair.Key
	}
	var err error
	if row.Revision, err = tx.NextRevision(); err != nil {
		return err
	}
	record.Revision, record.Settings = row.Revision, shown.AppendJSON(nil)
	return tx.PutFeedRecord(record)
}

// withdraw takes row out of the feed, where it is there.
func (p *Plane) withdraw(tx Tx, row *DomainRow) error {
	record, err := tx.FindFeedRecord(row.Name)
	if errors.Is(err, ErrNoRow) || err == nil && (record.Removed || record.DomainID != row.ID) {
		return nil
	}
	if err != nil {
		return err
	}
	if row.Revision, err = tx.NextRevision(); err != nil {
		return err
	}
	return tx.PutFeedRecord(&FeedRecord{
		Name: row.Name, Revision: row.Revision, DomainID: row.ID, TenantID: row.TenantID, Removed: true, At: p.now(),
	})
}

// appendFeedRecord appends the record that edges are sent, key included, to b. It fails where the key cannot be opened.
func (p *Plane) appendFeedRecord(b []byte, r *FeedRecord) ([]byte, error) {
	if r.SealedKey == nil {
		return appendSuspended(append(b, r.Settings...), r.Suspended), nil
	}
	d, err := domain.Reread(r.Settings)
	if err != nil {
		return b, fmt.Errorf("the settings of %s: %w", r.DomainID, err)
	}
	key, err := p.sealer.Open(r.SealedKey, sealContext(r.TenantID, r.DomainID))
	if err != nil {
		return b, fmt.Errorf("opening the key of %s: %w", r.DomainID, err)
	}
	d.Certificate.KeyPEM = string(key)
	d.Suspended = r.Suspended
	return d.AppendJSON(b), nil
}

// appendSuspended puts the member into the record that ends b.
func appendSuspended(b []byte, suspended bool) []byte {
	if !suspended {
		return b
	}
	return append(b[:len(b)-1], `,"suspended":true}`...)
}

// endClaim remembers that row is no claim any more and lets those who wait for the name be checked.
func (p *Plane) endClaim(tx Tx, row *DomainRow) error {
	if err := tx.InsertDomainClaim(row.TenantID, row.Name, p.now()); err != nil {
		return err
	}
	const most = 100 // they are all due within the hour anyway
	rivals, err := tx.FindDomainRivals(row.TenantID, row.Name, most)
	if err != nil {
		return err
	}
	for _, rival := range rivals {
		rival.Facts.Taken = false
		rival.DueAt, rival.Tries = p.now(), 0
		if err := tx.UpdateDomain(rival); err != nil {
			return err
		}
	}
	return nil
}

// tenantOfDomains is called when a tenant is suspended, comes back, gains or loses trust, or is deleted.
func (p *Plane) tenantOfDomains(tx Tx, tenant *Tenant) error {
	if !tenant.DeletedAt.IsZero() {
		return p.endDomainsOf(tx, tenant.ID)
	}
	if err := tx.SetDomainsDue(tenant.ID, p.now()); err != nil {
		return err
	}
	differ, err := tx.FeedRecordsDiffer(tenant.ID, tenant.Suspended)
	if err != nil {
		return err
	}
	if differ {
		revision, err := tx.NextRevision()
		if err != nil {
			return err
		}
		if err := tx.SuspendFeedRecords(tenant.ID, tenant.Suspended, revision); err != nil {
			return err
		}
	}
	for after := ""; ; {
		rows, err := tx.FindDomainsOfTenant(tenant.ID, after, 500)
		if err != nil || len(rows) == 0 {
			return err
		}
		if err := p.refreshRows(tx, rows); err != nil {
			return err
		}
		after = rows[len(rows)-1].ID
	}
}

// endDomainsOf takes all domains of a tenant out of service and away. The claims are remembered.
func (p *Plane) endDomainsOf(tx Tx, tenantID string) error {
	revision, err := tx.NextRevision()
	if err != nil {
		return err
	}
	return tx.DeleteDomainsOfTenant(tenantID, revision, p.now())
}
