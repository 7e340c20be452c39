package store

import (
	"database/sql"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

const feedColumns = `name, revision, domain_id, tenant_id, removed, at, settings, sealed_key, suspended`

// PutFeedRecord stores what edges are to know of a name, in place of what they knew.
func (t *tx) PutFeedRecord(r *management.FeedRecord) error {
	_, err := t.exec(`INSERT INTO feed (`+feedColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, domain_id = excluded.domain_id, tenant_id = excluded.tenant_id,
		removed = excluded.removed, at = excluded.at, settings = excluded.settings, sealed_key = excluded.sealed_key, suspended = excluded.suspended`,
		r.Name, int64(r.Revision), r.DomainID, r.TenantID, r.Removed, micros(r.At), string(r.Settings), r.SealedKey, r.Suspended)
	return err
}

// FindFeedRecord finds what is known of a name.
func (t *tx) FindFeedRecord(name string) (*management.FeedRecord, error) {
	var r management.FeedRecord
	err := t.get(`SELECT `+feedColumns+` FROM feed WHERE name = ?`, []any{name},
		&r.Name, &r.Revision, &r.DomainID, &r.TenantID, &r.Removed, moment{&r.At}, &r.Settings, &r.SealedKey, &r.Suspended)
	if err != nil {
		return nil, err
	}
	return &r, nil
}

// suspendedWhen is what Suspended of a record becomes; its one parameter: whether the tenant is suspended.
const suspendedWhen = `CASE WHEN ? THEN TRUE ELSE COALESCE((SELECT d.suspended FROM domains d WHERE d.id = feed.domain_id), FALSE) END`

// SuspendFeedRecords takes a tenant's names out of service, or back into it.
func (t *tx) SuspendFeedRecords(tenantID string, on bool, revision uint64) error {
	_, err := t.exec(`UPDATE domains SET revision = ? WHERE id IN
		(SELECT domain_id FROM feed WHERE tenant_id = ? AND NOT removed AND suspended <> `+suspendedWhen+`)`, int64(revision), tenantID, on)
	if err != nil {
		return err
	}
	_, err = t.exec(`UPDATE feed SET revision = ?, suspended = `+suspendedWhen+` WHERE tenant_id = ? AND NOT removed AND suspended <> `+suspendedWhen,
		int64(revision), on, tenantID, on)
	return err
}

// FeedRecordsDiffer asks the same question.
func (t *tx) FeedRecordsDiffer(tenantID string, on bool) (differ bool, err error) {
	err = t.get(`SELECT EXISTS (SELECT 1 FROM feed WHERE tenant_id = ? AND NOT removed AND suspended <> `+suspendedWhen+`)`, []any{tenantID, on}, &differ)
	return differ, err
}

// EachFeedRecord streams what changed.
func (t *tx) EachFeedRecord(after uint64, fn func(*management.FeedRecord) error) error {
	where := `revision > ?`
	if after == 0 {
		where += ` AND NOT removed`
	}
	var r management.FeedRecord
	var settings, key sql.RawBytes // good until the next row, so nothing is copied
	return t.each(`SELECT `+feedColumns+` FROM feed WHERE `+where+` ORDER BY revision, name`, []any{int64(after)}, func(rows *sql.Rows) error {
		if err := rows.Scan(&r.Name, &r.Revision, &r.DomainID, &r.TenantID, &r.Removed, moment{&r.At}, &settings, &key, &r.Suspended); err != nil {
			return err
		}
		r.Settings, r.SealedKey = settings, key
		if len(key) == 0 {
			r.SealedKey = nil
		}
		return fn(&r)
	})
}

// FeedHorizon returns the highest revision of a removal that was forgotten.
func (t *tx) FeedHorizon() (revision uint64, err error) {
	err = t.get(`SELECT revision FROM feed_horizon`, nil, &revision)
	return revision, err
}

// PruneFeed forgets old removals, those of the lowest revisions first, so that no delta after the horizon lacks one.
func (t *tx) PruneFeed(before time.Time, limit int) (int, error) {
	var horizon sql.NullInt64
	err := t.get(`SELECT MAX(revision) FROM (SELECT revision FROM feed WHERE removed AND at < ? ORDER BY revision LIMIT ?) AS old`, []any{micros(before), limit}, &horizon)
	if err != nil || !horizon.Valid {
		return 0, err
	}
	n, err := t.exec(`DELETE FROM feed WHERE removed AND at < ? AND revision <= ?`, micros(before), horizon.Int64)
	if err != nil {
		return 0, err
	}
	_, err = t.exec(`UPDATE feed_horizon SET revision = ? WHERE revision < ?`, horizon.Int64, horizon.Int64)
	return int(n), err
}
