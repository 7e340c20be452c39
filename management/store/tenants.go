package store

import (
	"database/sql"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

const tenantColumns = `tenants.id, tenants.name, tenants.trusted, tenants.suspended, tenants.max_domains, tenants.version,
	tenants.created_at, tenants.updated_at, tenants.deleted_at`

func tenantFields(r *management.Tenant) []any {
	return []any{&r.ID, &r.Name, &r.Trusted, &r.Suspended, &r.MaxDomains, &r.Version, moment{&r.CreatedAt}, moment{&r.UpdatedAt}, moment{&r.DeletedAt}}
}

// InsertTenant stores a new tenant.
func (t *tx) InsertTenant(r *management.Tenant) error {
	_, err := t.exec(`INSERT INTO tenants (id, name, trusted, suspended, max_domains, version, created_at, updated_at, deleted_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		r.ID, r.Name, r.Trusted, r.Suspended, r.MaxDomains, r.Version, micros(r.CreatedAt), micros(r.UpdatedAt), micros(r.DeletedAt))
	return err
}

// FindTenant returns a tenant that is not deleted.
func (t *tx) FindTenant(id string) (*management.Tenant, error) {
	return one(t, tenantFields, `SELECT `+tenantColumns+` FROM tenants WHERE id = ? AND deleted_at IS NULL`, id)
}

// FindTenants returns tenants that are not deleted, by ID.
func (t *tx) FindTenants(after string, limit int) ([]*management.Tenant, error) {
	return all(t, tenantFields, `SELECT `+tenantColumns+` FROM tenants WHERE id > ? AND deleted_at IS NULL ORDER BY id LIMIT ?`, after, limit)
}

// UpdateTenant stores a tenant again.
func (t *tx) UpdateTenant(r *management.Tenant) error {
	return t.execOne(`UPDATE tenants SET name = ?, trusted = ?, suspended = ?, max_domains = ?, version = ?, updated_at = ?, deleted_at = ?
		WHERE id = ?`, r.Name, r.Trusted, r.Suspended, r.MaxDomains, r.Version, micros(r.UpdatedAt), micros(r.DeletedAt), r.ID)
}

// FindDeletedTenants returns the IDs of tenants that were deleted before.
func (t *tx) FindDeletedTenants(before time.Time, limit int) ([]string, error) {
	return t.texts(`SELECT id FROM tenants WHERE deleted_at < ? ORDER BY deleted_at LIMIT ?`, micros(before), limit)
}

// PurgeTenant removes a tenant and what goes with it.
func (t *tx) PurgeTenant(id string) error {
	for _, query := range []string{
		`DELETE FROM members WHERE tenant_id = ?`,
		`DELETE FROM invitations WHERE tenant_id = ?`,
		`DELETE FROM api_keys WHERE tenant_id = ?`,
	} {
		if _, err := t.exec(query, id); err != nil {
			return err
		}
	}
	return t.execOne(`DELETE FROM tenants WHERE id = ?`, id)
}

// one reads a row whose columns go where fields says.
func one[T any](t *tx, fields func(*T) []any, query string, args ...any) (*T, error) {
	row := new(T)
	if err := t.get(query, args, fields(row)...); err != nil {
		return nil, err
	}
	return row, nil
}

// all reads the rows of a result.
func all[T any](t *tx, fields func(*T) []any, query string, args ...any) (rows []*T, err error) {
	err = t.each(query, args, func(r *sql.Rows) error {
		row := new(T)
		rows = append(rows, row)
		return r.Scan(fields(row)...)
	})
	return rows, err
}

// texts reads a column of texts.
func (t *tx) texts(query string, args ...any) (column []string, err error) {
	err = t.each(query, args, func(r *sql.Rows) error {
		var text string
		err := r.Scan(&text)
		column = append(column, text)
		return err
	})
	return column, err
}

// count reads a number.
func (t *tx) count(query string, args ...any) (n int, err error) {
	err = t.get(query, args, &n)
	return n, err
}

// removeAll is exec for a statement of which it does not matter whether it touched anything.
func (t *tx) removeAll(query string, args ...any) error {
	_, err := t.exec(query, args...)
	return err
}
