package store

import (
	"database/sql"
	"errors"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
)

const domainColumns = `id, tenant_id, name, settings, token, version, revision, proof, proven_at, facts, status, activated_at, due_at, tries,
	certificate_not_after, created_at, updated_at, deleting_at`

// settingsText scans and writes settings.
type settingsText struct{ to **domain.Domain }

func (s settingsText) Scan(v any) (err error) {
	switch v := v.(type) {
	case string:
		*s.to, err = domain.Reread([]byte(v))
	case []byte:
		*s.to, err = domain.Reread(v)
	default:
		err = errors.New("settings are no text")
	}
	return err
}

func scanDomain(scan func(...any) error) (*management.DomainRow, error) {
	var r management.DomainRow
	err := scan(&r.ID, &r.TenantID, &r.Name, settingsText{&r.Settings}, &r.Token, &r.Version, &r.Revision, &r.Proof, moment{&r.ProvenAt},
		document{&r.Facts}, &r.Status, moment{&r.ActivatedAt}, moment{&r.DueAt}, &r.Tries, moment{&r.CertificateNotAfter},
		moment{&r.CreatedAt}, moment{&r.UpdatedAt}, moment{&r.DeletingAt})
	if err != nil {
		return nil, err
	}
	return &r, nil
}

// domain reads one row by what follows FROM domains.
func (t *tx) domain(where string, args ...any) (*management.DomainRow, error) {
	return scanDomain(func(to ...any) error { return t.get(`SELECT `+domainColumns+` FROM domains `+where, args, to...) })
}

func (t *tx) domains(where string, args ...any) (all []*management.DomainRow, err error) {
	err = t.each(`SELECT `+domainColumns+` FROM domains `+where, args, func(rows *sql.Rows) error {
		r, err := scanDomain(rows.Scan)
		all = append(all, r)
		return err
	})
	return all, err
}

// coveredBy is what the column of that name says of a name.
func coveredBy(name string) string {
	if strings.HasPrefix(name, "*.") {
		return name
	}
	wildcard, _ := domain.WildcardOf(name)
	return wildcard
}

// InsertDomain adds a claim.
func (t *tx) InsertDomain(r *management.DomainRow) error {
	facts, err := text(&r.Facts)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO domains (`+domainColumns+`, suspended, covered_by) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		r.ID, r.TenantID, r.Name, string(r.Settings.AppendJSON(nil)), r.Token, r.Version, int64(r.Revision), string(r.Proof), micros(r.ProvenAt), facts,
		string(r.Status), micros(r.ActivatedAt), micros(r.DueAt), r.Tries, micros(r.CertificateNotAfter), micros(r.CreatedAt), micros(r.UpdatedAt),
		micros(r.DeletingAt), r.Settings.Suspended, coveredBy(r.Name))
	return err
}

// UpdateDomain stores what changes in the life of a claim.
func (t *tx) UpdateDomain(r *management.DomainRow) error {
	facts, err := text(&r.Facts)
	if err != nil {
		return err
	}
	return t.execOne(`UPDATE domains SET settings = ?, suspended = ?, version = ?, revision = ?, proof = ?, proven_at = ?, facts = ?, status = ?,
		activated_at = ?, due_at = ?, tries = ?, certificate_not_after = ?, updated_at = ?, deleting_at = ? WHERE id = ?`,
		string(r.Settings.AppendJSON(nil)), r.Settings.Suspended, r.Version, int64(r.Revision), string(r.Proof), micros(r.ProvenAt), facts, string(r.Status),
		micros(r.ActivatedAt), micros(r.DueAt), r.Tries, micros(r.CertificateNotAfter), micros(r.UpdatedAt), micros(r.DeletingAt), r.ID)
}

// DeleteDomain removes a claim. Its certificate and what edges know of it are rows of their own.
func (t *tx) DeleteDomain(id string) error { return t.execOne(`DELETE FROM domains WHERE id = ?`, id) }

// DeleteDomainsOfTenant is a few statements whatever the number of domains: it holds up all other writers.
func (t *tx) DeleteDomainsOfTenant(tenantID string, revision uint64, at time.Time) error {
	for _, step := range []struct {
		query string
		args  []any
	}{
		{`INSERT INTO domain_claims (name, tenant_id, covered_by, ended_at) SELECT name, tenant_id, covered_by, ? FROM domains WHERE tenant_id = ?
			ON CONFLICT (name, tenant_id) DO UPDATE SET ended_at = excluded.ended_at`, []any{micros(at), tenantID}},
		{`UPDATE domains SET due_at = ?, tries = 0 WHERE proof = '' AND tenant_id <> ? AND status <> ?
			AND name IN (SELECT name FROM domains WHERE tenant_id = ?)`, []any{micros(at), tenantID, string(management.Deleting), tenantID}},
		{`UPDATE feed SET removed = TRUE, revision = ?, at = ?, settings = '', sealed_key = NULL, suspended = FALSE WHERE tenant_id = ? AND NOT removed`,
			[]any{int64(revision), micros(at), tenantID}},
		{`DELETE FROM certificates WHERE tenant_id = ?`, []any{tenantID}},
		{`DELETE FROM domains WHERE tenant_id = ?`, []any{tenantID}},
	} {
		if _, err := t.exec(step.query, step.args...); err != nil {
			return err
		}
	}
	return nil
}

// FindDomainByID finds a claim, of any tenant where none is named.
func (t *tx) FindDomainByID(tenantID, id string) (*management.DomainRow, error) {
	if tenantID == "" {
		return t.domain(`WHERE id = ?`, id)
	}
	return t.domain(`WHERE id = ? AND tenant_id = ?`, id, tenantID)
}

// FindDomainsByID finds claims.
func (t *tx) FindDomainsByID(ids []string) ([]*management.DomainRow, error) {
	comparison, list, err := t.anyOf(ids)
	if err != nil {
		return nil, err
	}
	return t.domains(`WHERE id`+comparison+` ORDER BY id`, list)
}

// FindDomainByName finds a tenant's claim of a name.
func (t *tx) FindDomainByName(tenantID, name string) (*management.DomainRow, error) {
	return t.domain(`WHERE tenant_id = ? AND name = ?`, tenantID, name)
}

// likeEscaper makes a text match itself in LIKE.
var likeEscaper = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// FindDomains finds a tenant's claims. The inner query is answered from an index alone, also where it passes over many names
// that do not contain the text; only what is shown is then read whole.
func (t *tx) FindDomains(f management.DomainFilter) ([]*management.DomainRow, error) {
	where, args := `tenant_id = ?`, []any{f.TenantID}
	add := func(condition string, values ...any) {
		where += ` AND ` + condition
		args = append(args, values...)
	}
	if f.Status != "" {
		add(`status = ?`, string(f.Status))
	}
	if f.Name != "" {
		add(`name = ?`, f.Name)
	}
	if f.Contains != "" {
		add(`name LIKE ? ESCAPE '\'`, `%`+likeEscaper.Replace(f.Contains)+`%`)
	}
	order := `name`
	if !f.ExpiringBefore.IsZero() {
		order = `certificate_not_after, id`
		add(`certificate_not_after IS NOT NULL`)
		add(`certificate_not_after < ?`, micros(f.ExpiringBefore))
		if f.AfterID != "" {
			add(`(certificate_not_after > ? OR (certificate_not_after = ? AND id > ?))`, micros(f.AfterTime), micros(f.AfterTime), f.AfterID)
		}
	} else if f.After != "" {
		add(`name > ?`, f.After)
	}
	args = append(args, f.Limit)
	return t.domains(`WHERE id IN (SELECT id FROM domains WHERE `+where+` ORDER BY `+order+` LIMIT ?) ORDER BY `+order, args...)
}

// FindDomainsByStatus walks through all claims of a status.
func (t *tx) FindDomainsByStatus(status management.Status, afterID string, limit int) ([]*management.DomainRow, error) {
	return t.domains(`WHERE status = ? AND id > ? ORDER BY id LIMIT ?`, string(status), afterID, limit)
}

// FindDomainsOfTenant walks through all claims of a tenant.
func (t *tx) FindDomainsOfTenant(tenantID, afterID string, limit int) ([]*management.DomainRow, error) {
	return t.domains(`WHERE tenant_id = ? AND id > ? ORDER BY id LIMIT ?`, tenantID, afterID, limit)
}

// CountDomains counts what a tenant's quota is about.
func (t *tx) CountDomains(tenantID string) (n int, err error) {
	err = t.get(`SELECT COUNT(*) FROM domains WHERE tenant_id = ? AND status <> ?`, []any{tenantID, string(management.Deleting)}, &n)
	return n, err
}

// FindDomainOwner finds the proven claim of a name.
func (t *tx) FindDomainOwner(name string) (*management.DomainRow, error) {
	return t.domain(`WHERE name = ? AND proof <> ''`, name)
}

// FindDomainsOwnedByName finds the proven claims of names.
func (t *tx) FindDomainsOwnedByName(names []string) ([]*management.DomainRow, error) {
	comparison, list, err := t.anyOf(names)
	if err != nil {
		return nil, err
	}
	return t.domains(`WHERE proof <> '' AND name`+comparison, list)
}

// FindDomainRivals finds other tenants' unproven claims of a name.
func (t *tx) FindDomainRivals(tenantID, name string, limit int) ([]*management.DomainRow, error) {
	return t.domains(`WHERE name = ? AND tenant_id <> ? AND proof = '' AND status <> ? ORDER BY id LIMIT ?`, name, tenantID, string(management.Deleting), limit)
}

// DomainContested asks claims and ended claims of others.
func (t *tx) DomainContested(tenantID, name string, since time.Time) (contested bool, err error) {
	where, args := `name IN (?, ?)`, []any{name, coveredBy(name)}
	if strings.HasPrefix(name, "*.") {
		where, args = `covered_by = ?`, []any{name}
	}
	args = append(args, tenantID)
	both := append(append(append([]any{}, args...), args...), micros(since))
	err = t.get(`SELECT EXISTS (SELECT 1 FROM domains WHERE `+where+` AND tenant_id <> ? AND deleting_at IS NULL)
		OR EXISTS (SELECT 1 FROM domain_claims WHERE `+where+` AND tenant_id <> ? AND ended_at > ?)`, both, &contested)
	return contested, err
}

// InsertDomainClaim remembers the end of a claim; of several ends of one claim the last.
func (t *tx) InsertDomainClaim(tenantID, name string, ended time.Time) error {
	_, err := t.exec(`INSERT INTO domain_claims (name, tenant_id, covered_by, ended_at) VALUES (?, ?, ?, ?)
		ON CONFLICT (name, tenant_id) DO UPDATE SET ended_at = excluded.ended_at`, name, tenantID, coveredBy(name), micros(ended))
	return err
}

// DeleteDomainClaimsBefore forgets old claims.
func (t *tx) DeleteDomainClaimsBefore(before time.Time, limit int) (int, error) {
	n, err := t.exec(`DELETE FROM domain_claims WHERE (name, tenant_id) IN (SELECT name, tenant_id FROM domain_claims WHERE ended_at < ? LIMIT ?)`,
		micros(before), limit)
	return int(n), err
}

// FindDomainsDue takes turns between the tenants, so that one with ten thousand does not keep the others waiting.
func (t *tx) FindDomainsDue(now time.Time, perTenant, limit int) ([]*management.DomainRow, error) {
	return t.domains(`WHERE id IN (SELECT id FROM
		(SELECT id, due_at, ROW_NUMBER() OVER (PARTITION BY tenant_id ORDER BY due_at, id) AS turn FROM domains WHERE due_at <= ?) AS due
		WHERE turn <= ? ORDER BY turn, due_at LIMIT ?)`, micros(now), perTenant, limit)
}

// SetDomainsDue makes a tenant's domains due.
func (t *tx) SetDomainsDue(tenantID string, at time.Time) error {
	_, err := t.exec(`UPDATE domains SET due_at = ? WHERE tenant_id = ? AND status <> ?`, micros(at), tenantID, string(management.Deleting))
	return err
}
