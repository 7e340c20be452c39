package store

import (
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

const apiKeyColumns = `id, tenant_id, name, scopes, prefix, hash, created_by, version, created_at, expires_at, used_at`

func apiKeyFields(r *management.APIKey) []any {
	return []any{&r.ID, &r.TenantID, &r.Name, document{&r.Scopes}, &r.Prefix, &r.Hash, &r.CreatedBy, &r.Version,
		moment{&r.CreatedAt}, moment{&r.ExpiresAt}, moment{&r.LastUsedAt}}
}

// InsertAPIKey stores a new key.
func (t *tx) InsertAPIKey(r *management.APIKey) error {
	scopes, err := text(r.Scopes)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO api_keys (id, tenant_id, name, scopes, prefix, hash, created_by, version, created_at, expires_at, used_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, r.ID, r.TenantID, r.Name, scopes, r.Prefix, r.Hash, r.CreatedBy, r.Version,
		micros(r.CreatedAt), micros(r.ExpiresAt), micros(r.LastUsedAt))
	return err
}

// FindAPIKey returns a key of a tenant.
func (t *tx) FindAPIKey(tenantID, id string) (*management.APIKey, error) {
	return one(t, apiKeyFields, `SELECT `+apiKeyColumns+` FROM api_keys WHERE tenant_id = ? AND id = ?`, tenantID, id)
}

// FindAPIKeyByHash returns the key with a secret.
func (t *tx) FindAPIKeyByHash(hash []byte) (*management.APIKey, error) {
	return one(t, apiKeyFields, `SELECT `+apiKeyColumns+` FROM api_keys WHERE hash = ?`, hash)
}

// FindAPIKeys returns keys of a tenant, by ID.
func (t *tx) FindAPIKeys(tenantID, after string, limit int) ([]*management.APIKey, error) {
	return all(t, apiKeyFields, `SELECT `+apiKeyColumns+` FROM api_keys WHERE tenant_id = ? AND id > ? ORDER BY id LIMIT ?`, tenantID, after, limit)
}

// CountAPIKeys returns how many keys a tenant has.
func (t *tx) CountAPIKeys(tenantID string) (int, error) {
	return t.count(`SELECT COUNT(*) FROM api_keys WHERE tenant_id = ?`, tenantID)
}

// UpdateAPIKey gives a key another secret.
func (t *tx) UpdateAPIKey(r *management.APIKey) error {
	return t.execOne(`UPDATE api_keys SET prefix = ?, hash = ?, version = ? WHERE tenant_id = ? AND id = ?`,
		r.Prefix, r.Hash, r.Version, r.TenantID, r.ID)
}

// DeleteAPIKey removes a key of a tenant.
func (t *tx) DeleteAPIKey(tenantID, id string) error {
	return t.execOne(`DELETE FROM api_keys WHERE tenant_id = ? AND id = ?`, tenantID, id)
}

// DeleteAPIKeysOf removes all keys of a tenant.
func (t *tx) DeleteAPIKeysOf(tenantID string) error {
	return t.removeAll(`DELETE FROM api_keys WHERE tenant_id = ?`, tenantID)
}

// TouchAPIKey says when a key was used.
func (t *tx) TouchAPIKey(id string, at time.Time) error {
	return t.removeAll(`UPDATE api_keys SET used_at = ? WHERE id = ? AND (used_at IS NULL OR used_at < ?)`, micros(at), id, micros(at))
}

const edgeTokenColumns = `id, name, prefix, hash, created_by, created_at, used_at`

func edgeTokenFields(r *management.EdgeToken) []any {
	return []any{&r.ID, &r.Name, &r.Prefix, &r.Hash, &r.CreatedBy, moment{&r.CreatedAt}, moment{&r.LastUsedAt}}
}

// InsertEdgeToken stores a new edge token.
func (t *tx) InsertEdgeToken(r *management.EdgeToken) error {
	_, err := t.exec(`INSERT INTO edge_tokens (id, name, prefix, hash, created_by, created_at, used_at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		r.ID, r.Name, r.Prefix, r.Hash, r.CreatedBy, micros(r.CreatedAt), micros(r.LastUsedAt))
	return err
}

// FindEdgeToken returns an edge token.
func (t *tx) FindEdgeToken(id string) (*management.EdgeToken, error) {
	return one(t, edgeTokenFields, `SELECT `+edgeTokenColumns+` FROM edge_tokens WHERE id = ?`, id)
}

// FindEdgeTokenByHash returns the edge token with a secret.
func (t *tx) FindEdgeTokenByHash(hash []byte) (*management.EdgeToken, error) {
	return one(t, edgeTokenFields, `SELECT `+edgeTokenColumns+` FROM edge_tokens WHERE hash = ?`, hash)
}

// FindEdgeTokens returns edge tokens, by ID.
func (t *tx) FindEdgeTokens(after string, limit int) ([]*management.EdgeToken, error) {
	return all(t, edgeTokenFields, `SELECT `+edgeTokenColumns+` FROM edge_tokens WHERE id > ? ORDER BY id LIMIT ?`, after, limit)
}

// CountEdgeTokens returns how many edge tokens there are.
func (t *tx) CountEdgeTokens() (int, error) { return t.count(`SELECT COUNT(*) FROM edge_tokens`) }

// DeleteEdgeToken removes an edge token.
func (t *tx) DeleteEdgeToken(id string) error {
	return t.execOne(`DELETE FROM edge_tokens WHERE id = ?`, id)
}

// TouchEdgeToken says when an edge token was used.
func (t *tx) TouchEdgeToken(id string, at time.Time) error {
	return t.removeAll(`UPDATE edge_tokens SET used_at = ? WHERE id = ? AND (used_at IS NULL OR used_at < ?)`, micros(at), id, micros(at))
}
