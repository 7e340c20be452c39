package store

import (
	"database/sql"

	"github.com/pqproxy/caddy-pqproxy/management"
)

const memberColumns = `members.tenant_id, members.user_id, users.email, members.role, members.joined_at, members.version`

func memberFields(r *management.Member) []any {
	return []any{&r.TenantID, &r.UserID, &r.Email, &r.Role, moment{&r.JoinedAt}, &r.Version}
}

// InsertMember stores a new member.
func (t *tx) InsertMember(r *management.Member) error {
	_, err := t.exec(`INSERT INTO members (tenant_id, user_id, role, version, joined_at) VALUES (?, ?, ?, ?, ?)`,
		r.TenantID, r.UserID, string(r.Role), r.Version, micros(r.JoinedAt))
	return err
}

// FindMember returns a member of a tenant.
func (t *tx) FindMember(tenantID, userID string) (*management.Member, error) {
	return one(t, memberFields, `SELECT `+memberColumns+` FROM members JOIN users ON users.id = members.user_id
		WHERE members.tenant_id = ? AND members.user_id = ?`, tenantID, userID)
}

// FindMembers returns members of a tenant, by the user's ID.
func (t *tx) FindMembers(tenantID, after string, limit int) ([]*management.Member, error) {
	return all(t, memberFields, `SELECT `+memberColumns+` FROM members JOIN users ON users.id = members.user_id
		WHERE members.tenant_id = ? AND members.user_id > ? ORDER BY members.user_id LIMIT ?`, tenantID, after, limit)
}

// FindMemberships returns the tenants of a user, first joined first.
func (t *tx) FindMemberships(userID string) (memberships []*management.Membership, err error) {
	err = t.each(`SELECT `+tenantColumns+`, members.role FROM members JOIN tenants ON tenants.id = members.tenant_id
		WHERE members.user_id = ? AND tenants.deleted_at IS NULL ORDER BY members.joined_at, members.tenant_id`, []any{userID},
		func(rows *sql.Rows) error {
			m := &management.Membership{Tenant: new(management.Tenant)}
			memberships = append(memberships, m)
			return rows.Scan(append(tenantFields(m.Tenant), &m.Role)...)
		})
	return memberships, err
}

// UpdateMember stores a member's role again.
func (t *tx) UpdateMember(r *management.Member) error {
	return t.execOne(`UPDATE members SET role = ?, version = ? WHERE tenant_id = ? AND user_id = ?`,
		string(r.Role), r.Version, r.TenantID, r.UserID)
}

// DeleteMember takes a user out of a tenant.
func (t *tx) DeleteMember(tenantID, userID string) error {
	return t.execOne(`DELETE FROM members WHERE tenant_id = ? AND user_id = ?`, tenantID, userID)
}

// CountMembers returns how many members a tenant has.
func (t *tx) CountMembers(tenantID string) (int, error) {
	return t.count(`SELECT COUNT(*) FROM members WHERE tenant_id = ?`, tenantID)
}

// CountOwners returns how many owners a tenant has.
func (t *tx) CountOwners(tenantID string) (int, error) {
	return t.count(`SELECT COUNT(*) FROM members WHERE tenant_id = ? AND role = ?`, tenantID, string(management.Owner))
}

const invitationColumns = `id, tenant_id, email, role, invited_by, created_at, expires_at, hash`

func invitationFields(r *management.Invitation) []any {
	return []any{&r.ID, &r.TenantID, &r.Email, &r.Role, &r.InvitedBy, moment{&r.CreatedAt}, moment{&r.ExpiresAt}, &r.Hash}
}

// InsertInvitation stores a new invitation.
func (t *tx) InsertInvitation(r *management.Invitation) error {
	_, err := t.exec(`INSERT INTO invitations (id, tenant_id, email, email_key, role, invited_by, created_at, expires_at, hash)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, r.ID, r.TenantID, r.Email, management.EmailKey(r.Email), string(r.Role), r.InvitedBy,
		micros(r.CreatedAt), micros(r.ExpiresAt), r.Hash)
	return err
}

// FindInvitation returns an invitation of a tenant.
func (t *tx) FindInvitation(tenantID, id string) (*management.Invitation, error) {
	return one(t, invitationFields, `SELECT `+invitationColumns+` FROM invitations WHERE tenant_id = ? AND id = ?`, tenantID, id)
}

// FindInvitationByHash returns the invitation of a link.
func (t *tx) FindInvitationByHash(hash []byte) (*management.Invitation, error) {
	return one(t, invitationFields, `SELECT `+invitationColumns+` FROM invitations WHERE hash = ?`, hash)
}

// FindInvitations returns invitations of a tenant, by ID.
func (t *tx) FindInvitations(tenantID, after string, limit int) ([]*management.Invitation, error) {
	return all(t, invitationFields, `SELECT `+invitationColumns+` FROM invitations WHERE tenant_id = ? AND id > ? ORDER BY id LIMIT ?`,
		tenantID, after, limit)
}

// CountInvitations returns how many invitations a tenant has.
func (t *tx) CountInvitations(tenantID string) (int, error) {
	return t.count(`SELECT COUNT(*) FROM invitations WHERE tenant_id = ?`, tenantID)
}

// DeleteInvitation removes an invitation of a tenant.
func (t *tx) DeleteInvitation(tenantID, id string) error {
	return t.execOne(`DELETE FROM invitations WHERE tenant_id = ? AND id = ?`, tenantID, id)
}

// DeleteInvitationsTo removes a tenant's invitations of an address.
func (t *tx) DeleteInvitationsTo(tenantID, key string) error {
	return t.removeAll(`DELETE FROM invitations WHERE tenant_id = ? AND email_key = ?`, tenantID, key)
}

// DeleteInvitationsBy removes what a member invited.
func (t *tx) DeleteInvitationsBy(tenantID, userID string) error {
	return t.removeAll(`DELETE FROM invitations WHERE tenant_id = ? AND invited_by = ?`, tenantID, userID)
}

// DeleteInvitationsOf removes all invitations of a tenant.
func (t *tx) DeleteInvitationsOf(tenantID string) error {
	return t.removeAll(`DELETE FROM invitations WHERE tenant_id = ?`, tenantID)
}
