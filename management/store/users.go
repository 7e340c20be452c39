package store

import (
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

const userColumns = `users.id, users.email, users.password_hash, users.operator, users.totp, users.totp IS NOT NULL, users.totp_pending,
	users.totp_step, users.created_at, users.updated_at`

func userFields(r *management.User) []any {
	return []any{&r.ID, &r.Email, &r.PasswordHash, &r.Operator, &r.TOTPSealed, &r.TOTP, &r.TOTPPending, &r.TOTPStep,
		moment{&r.CreatedAt}, moment{&r.UpdatedAt}}
}

// bytesOrNull stores an empty value as NULL.
func bytesOrNull(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}

// InsertUser stores a new user.
func (t *tx) InsertUser(r *management.User) error {
	_, err := t.exec(`INSERT INTO users (id, email, email_key, password_hash, operator, totp, totp_pending, totp_step, created_at, updated_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, r.ID, r.Email, management.EmailKey(r.Email), r.PasswordHash, r.Operator,
		bytesOrNull(r.TOTPSealed), bytesOrNull(r.TOTPPending), r.TOTPStep, micros(r.CreatedAt), micros(r.UpdatedAt))
	return err
}

// FindUser returns a user.
func (t *tx) FindUser(id string) (*management.User, error) {
	return one(t, userFields, `SELECT `+userColumns+` FROM users WHERE id = ?`, id)
}

// FindUserByEmail returns the user with an address.
func (t *tx) FindUserByEmail(key string) (*management.User, error) {
	return one(t, userFields, `SELECT `+userColumns+` FROM users WHERE email_key = ?`, key)
}

// UpdateUser stores a user again.
func (t *tx) UpdateUser(r *management.User) error {
	return t.execOne(`UPDATE users SET password_hash = ?, operator = ?, totp = ?, totp_pending = ?, totp_step = ?, updated_at = ? WHERE id = ?`,
		r.PasswordHash, r.Operator, bytesOrNull(r.TOTPSealed), bytesOrNull(r.TOTPPending), r.TOTPStep, micros(r.UpdatedAt), r.ID)
}

// DeleteUser removes a user and what goes with it.
func (t *tx) DeleteUser(id string) error {
	for _, query := range []string{
		`DELETE FROM members WHERE user_id = ?`,
		`DELETE FROM sessions WHERE user_id = ?`,
		`DELETE FROM password_resets WHERE user_id = ?`,
	} {
		if _, err := t.exec(query, id); err != nil {
			return err
		}
	}
	return t.execOne(`DELETE FROM users WHERE id = ?`, id)
}

// CountOperators returns how many users are operators of the platform.
func (t *tx) CountOperators() (int, error) {
	return t.count(`SELECT COUNT(*) FROM users WHERE operator = ?`, true)
}

// FindOrphans returns users without any tenant.
func (t *tx) FindOrphans(before time.Time, limit int) ([]string, error) {
	return t.texts(`SELECT id FROM users WHERE operator = ? AND updated_at < ?
		AND NOT EXISTS (SELECT 1 FROM members WHERE members.user_id = users.id) ORDER BY id LIMIT ?`, false, micros(before), limit)
}

// FindSealedUsers returns users with something sealed.
func (t *tx) FindSealedUsers(after string, limit int) ([]*management.User, error) {
	return all(t, userFields, `SELECT `+userColumns+` FROM users WHERE id > ? AND (totp IS NOT NULL OR totp_pending IS NOT NULL)
		ORDER BY id LIMIT ?`, after, limit)
}

// InsertSession stores a new session.
func (t *tx) InsertSession(r *management.Session) error {
	_, err := t.exec(`INSERT INTO sessions (hash, user_id, created_at, seen_at, expires_at) VALUES (?, ?, ?, ?, ?)`,
		r.Hash, r.UserID, micros(r.CreatedAt), micros(r.SeenAt), micros(r.ExpiresAt))
	return err
}

// FindSession returns the session of a token.
func (t *tx) FindSession(hash []byte) (*management.Session, error) {
	return one(t, func(r *management.Session) []any {
		return []any{&r.Hash, &r.UserID, moment{&r.CreatedAt}, moment{&r.SeenAt}, moment{&r.ExpiresAt}}
	}, `SELECT hash, user_id, created_at, seen_at, expires_at FROM sessions WHERE hash = ?`, hash)
}

// DeleteSession removes a session.
func (t *tx) DeleteSession(hash []byte) error {
	return t.execOne(`DELETE FROM sessions WHERE hash = ?`, hash)
}

// DeleteSessionsOf removes all sessions of a user.
func (t *tx) DeleteSessionsOf(userID string) error {
	return t.removeAll(`DELETE FROM sessions WHERE user_id = ?`, userID)
}

// TrimSessions removes a user's oldest sessions.
func (t *tx) TrimSessions(userID string, keep int) error {
	return t.removeAll(`DELETE FROM sessions WHERE user_id = ? AND hash NOT IN (
		SELECT hash FROM sessions WHERE user_id = ? ORDER BY created_at DESC, hash LIMIT ?)`, userID, userID, keep)
}

// TouchSession says when a session was used.
func (t *tx) TouchSession(hash []byte, at time.Time) error {
	return t.removeAll(`UPDATE sessions SET seen_at = ? WHERE hash = ? AND seen_at < ?`, micros(at), hash, micros(at))
}

// InsertSignup stores a new sign-up.
func (t *tx) InsertSignup(r *management.Signup) error {
	_, err := t.exec(`INSERT INTO signups (hash, email, email_key, password_hash, tenant_name, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		r.Hash, r.Email, management.EmailKey(r.Email), r.PasswordHash, r.TenantName, micros(r.CreatedAt), micros(r.ExpiresAt))
	return err
}

// FindSignup returns the sign-up of a link.
func (t *tx) FindSignup(hash []byte) (*management.Signup, error) {
	return one(t, func(r *management.Signup) []any {
		return []any{&r.Hash, &r.Email, &r.PasswordHash, &r.TenantName, moment{&r.CreatedAt}, moment{&r.ExpiresAt}}
	}, `SELECT hash, email, password_hash, tenant_name, created_at, expires_at FROM signups WHERE hash = ?`, hash)
}

// CountSignups returns how many sign-ups of an address wait.
func (t *tx) CountSignups(key string) (int, error) {
	return t.count(`SELECT COUNT(*) FROM signups WHERE email_key = ?`, key)
}

// DeleteSignups removes the sign-ups of an address.
func (t *tx) DeleteSignups(key string) error {
	return t.removeAll(`DELETE FROM signups WHERE email_key = ?`, key)
}

// InsertReset stores a new link.
func (t *tx) InsertReset(r *management.Reset) error {
	_, err := t.exec(`INSERT INTO password_resets (hash, user_id, drops_totp, created_at, expires_at) VALUES (?, ?, ?, ?, ?)`,
		r.Hash, r.UserID, r.DropsTOTP, micros(r.CreatedAt), micros(r.ExpiresAt))
	return err
}

// FindReset returns what a link resets.
func (t *tx) FindReset(hash []byte) (*management.Reset, error) {
	return one(t, func(r *management.Reset) []any {
		return []any{&r.Hash, &r.UserID, &r.DropsTOTP, moment{&r.CreatedAt}, moment{&r.ExpiresAt}}
	}, `SELECT hash, user_id, drops_totp, created_at, expires_at FROM password_resets WHERE hash = ?`, hash)
}

// CountResets returns how many links of a user are good.
func (t *tx) CountResets(userID string, at time.Time) (int, error) {
	return t.count(`SELECT COUNT(*) FROM password_resets WHERE user_id = ? AND expires_at > ?`, userID, micros(at))
}

// DeleteResetsOf removes the links of a user.
func (t *tx) DeleteResetsOf(userID string) error {
	return t.removeAll(`DELETE FROM password_resets WHERE user_id = ?`, userID)
}

// DeleteExpired removes what has ended.
func (t *tx) DeleteExpired(now, idle time.Time, limit int) (removed int, err error) {
	for _, c := range []struct {
		query string
		until time.Time
	}{
		{`DELETE FROM sessions WHERE hash IN (SELECT hash FROM sessions WHERE expires_at <= ? LIMIT ?)`, now},
		{`DELETE FROM sessions WHERE hash IN (SELECT hash FROM sessions WHERE seen_at <= ? LIMIT ?)`, idle},
		{`DELETE FROM signups WHERE hash IN (SELECT hash FROM signups WHERE expires_at <= ? LIMIT ?)`, now},
		{`DELETE FROM password_resets WHERE hash IN (SELECT hash FROM password_resets WHERE expires_at <= ? LIMIT ?)`, now},
		{`DELETE FROM invitations WHERE hash IN (SELECT hash FROM invitations WHERE expires_at <= ? LIMIT ?)`, now},
	} {
		rows, err := t.exec(c.query, micros(c.until), limit)
		if err != nil {
			return removed, err
		}
		removed += int(rows)
	}
	return removed, nil
}
