package management

import (
	"context"
	"errors"
	"fmt"
	"net/mail"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// User is somebody who can sign in.
type User struct {
	ID        string    `json:"id"` // usr_…
	Email     string    `json:"email"`
	Operator  bool      `json:"platform"` // of the platform, apart from any tenant
	TOTP      bool      `json:"totp"`     // signing in takes a one-time password
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`

	PasswordHash string `json:"-"`
	TOTPSealed   []byte `json:"-"` // the secret of one-time passwords; empty: none
	TOTPPending  []byte `json:"-"` // one that is not confirmed yet
	TOTPStep     int64  `json:"-"` // of the last code that was accepted
}

// The longest e-mail address and local part (RFC 5321 section 4.5.3.1, and erratum 1690 of RFC 3696).
const (
	maxEmail      = 254
	maxEmailLocal = 64
)

var errEmail = errors.New("must be an e-mail address such as name@example.com, in ASCII, of at most 254 characters")

// ParseEmail returns an e-mail address as it is kept: with its domain in lower case. It takes bare addresses alone: no display
// name, comment, quoted local part or address literal. The error never quotes it.
func ParseEmail(text string) (string, error) {
	if len(text) > maxEmail {
		return "", errEmail
	}
	for _, c := range []byte(text) {
		if c <= ' ' || c >= 0x7f {
			return "", errEmail
		}
	}
	parsed, err := mail.ParseAddress(text)
	if err != nil || parsed.Name != "" || parsed.Address != text {
		return "", errEmail
	}
	at := strings.LastIndexByte(text, '@')
	local, host := text[:at], strings.ToLower(text[at+1:])
	if len(local) > maxEmailLocal {
		return "", errEmail
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return "", errEmail
		}
	}
	return local + "@" + host, nil
}

// EmailKey returns the form by which an address is looked up and is unique: no two accounts differ by case alone.
func EmailKey(email string) string { return strings.ToLower(email) }

// checkTitle returns what is wrong with a name that people gave to something.
func checkTitle(name string) error {
	switch n := utf8.RuneCountInString(name); {
	case !utf8.ValidString(name) || n < 1 || n > 128:
		return errors.New("must be 1 to 128 characters of UTF-8")
	case strings.TrimSpace(name) != name:
		return errors.New("must not begin or end with a space")
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return errors.New("must have no line breaks, control characters or invisible characters")
	}
	return nil
}

// maxPassword bounds what is hashed when a password is checked: 128 characters of 4 bytes.
const maxPassword = 512

// verifyPassword checks a password against a stored hash; empty: nothing matches, in the same time.
func (p *Plane) verifyPassword(ctx context.Context, hash, password string) (ok, stale bool, err error) {
	if len(password) > maxPassword {
		hash, password = "", "" // the same work, and no match
	}
	ok, stale, err = p.passwords.Verify(ctx, hash, password)
	if err != nil {
		return false, false, p.noPasswords(ctx, err)
	}
	return ok, stale, nil
}

// hashPassword hashes a password that was checked.
func (p *Plane) hashPassword(ctx context.Context, password string) (string, error) {
	hash, err := p.passwords.Hash(ctx, password)
	if err != nil {
		return "", p.noPasswords(ctx, err)
	}
	return hash, nil
}

// noPasswords is for passwords that could be neither hashed nor checked: mostly there are too many at a time.
func (p *Plane) noPasswords(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("working on a password: %w", err)
	}
	p.log.Warn("a password could not be hashed or checked", "error", err)
	e := Errorf(Unavailable, "Too many passwords are being checked at this moment: try again soon.")
	e.RetryAfter = 5 * time.Second
	return e
}

// beginLogin counts a try to prove to be the account with that address.
func (p *Plane) beginLogin(who *Principal, email string) (succeeded func(), err error) {
	if len(email) > maxEmail {
		email = "" // of no account; one bucket for all
	}
	succeeded, after, ok := p.auth.BeginLogin(email, who.ClientAddr)
	if !ok {
		e := Errorf(RateLimited, "Too many tries: wait, then try again.")
		e.RetryAfter = after
		return nil, e
	}
	return succeeded, nil
}

// confirm returns the user of the session if the password is his.
func (p *Plane) confirm(ctx context.Context, who *Principal, password string) (*User, error) {
	if err := requireSession(who); err != nil {
		return nil, err
	}
	user, err := p.findUser(ctx, who.UserID)
	if err != nil {
		return nil, err
	}
	succeeded, err := p.beginLogin(who, user.Email)
	if err != nil {
		return nil, err
	}
	ok, _, err := p.verifyPassword(ctx, user.PasswordHash, password)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, InvalidField("/password", "is not your password")
	}
	succeeded()
	return user, nil
}

func (p *Plane) findUser(ctx context.Context, id string) (user *User, err error) {
	err = p.store.View(ctx, func(tx Tx) error {
		user, err = tx.FindUser(id)
		return err
	})
	if errors.Is(err, ErrNoRow) {
		return nil, errNoCredential()
	}
	return user, err
}

// findUserByEmail returns the user with that address, nil if there is none.
func (p *Plane) findUserByEmail(ctx context.Context, email string) (user *User, err error) {
	err = p.store.View(ctx, func(tx Tx) error {
		user, err = tx.FindUserByEmail(EmailKey(email))
		return err
	})
	if errors.Is(err, ErrNoRow) {
		return nil, nil
	}
	return user, err
}

// errUserChanged is for who proved to be somebody whose password changed before that was used.
func errUserChanged() *Error {
	return Errorf(Conflict, "The account was changed at this moment: try again.")
}

// sameUser reads the user again, in the transaction of a change, and makes sure that the password that was checked is still his.
func sameUser(tx Tx, checked *User) (*User, error) {
	user, err := tx.FindUser(checked.ID)
	if errors.Is(err, ErrNoRow) || err == nil && user.PasswordHash != checked.PasswordHash {
		return nil, errUserChanged()
	}
	return user, err
}

// Membership is a tenant that a user belongs to.
type Membership struct {
	Tenant *Tenant `json:"tenant"`
	Role   Role    `json:"role"`
}

// Me is who calls.
type Me struct {
	User     *User         `json:"user"`    // of a session; null for an API key
	APIKey   *APIKey       `json:"api_key"` // null for a session
	Tenant   *Tenant       `json:"tenant"`  // null for who belongs to none
	Role     *Role         `json:"role"`    // of a session in the tenant; null else
	Scopes   Scopes        `json:"scopes"`
	Platform bool          `json:"platform"`
	Tenants  []*Membership `json:"tenants"` // of a session: all that the user may name in PQProxy-Tenant, first joined first
}

// Me returns who the caller is and what the caller may do.
func (p *Plane) Me(ctx context.Context, who *Principal) (*Me, error) {
	if who == nil || who.UserID == "" && who.APIKeyID == "" {
		return nil, errNoCredential()
	}
	me := &Me{Scopes: who.Scopes, Platform: who.Scopes.Has(Platform), Tenants: []*Membership{}}
	if me.Scopes == nil {
		me.Scopes = Scopes{}
	}
	if who.Role != "" {
		me.Role = &who.Role
	}
	err := p.store.View(ctx, func(tx Tx) (err error) {
		if who.TenantID != "" {
			if me.Tenant, err = tx.FindTenant(who.TenantID); err != nil {
				return err
			}
		}
		if who.APIKeyID != "" {
			me.APIKey, err = tx.FindAPIKey(who.TenantID, who.APIKeyID)
			return err
		}
		if me.User, err = tx.FindUser(who.UserID); err != nil {
			return err
		}
		if memberships, err := tx.FindMemberships(who.UserID); err != nil || len(memberships) > 0 {
			me.Tenants = memberships
			return err
		}
		return nil
	})
	if errors.Is(err, ErrNoRow) {
		return nil, errNoCredential() // it went away since the request came in
	}
	if err != nil {
		return nil, err
	}
	return me, nil
}

// ChangePassword sets another password of the session's user, ends all of the user's sessions and begins a new one.
func (p *Plane) ChangePassword(ctx context.Context, who *Principal, password, newPassword string) (*SignedIn, error) {
	checked, err := p.confirm(ctx, who, password)
	if err != nil {
		return nil, err
	}
	if err := refuse(faultAt("/new_password", p.passwords.Check(newPassword, checked.Email))); err != nil {
		return nil, err
	}
	hash, err := p.hashPassword(ctx, newPassword)
	if err != nil {
		return nil, err
	}
	var in *SignedIn
	err = p.store.Update(ctx, func(tx Tx) error {
		user, err := sameUser(tx, checked)
		if err != nil {
			return err
		}
		if err := p.setPassword(tx, user, hash); err != nil {
			return err
		}
		if err := p.audit(tx, who, "user.password_changed", "", user.ID, nil, nil); err != nil {
			return err
		}
		in, err = p.newSession(tx, user)
		return err
	})
	return in, err
}

// setPassword stores a new password and ends what was begun with the old one: sessions and links.
func (p *Plane) setPassword(tx Tx, user *User, hash string) error {
	user.PasswordHash, user.UpdatedAt = hash, p.now()
	return errors.Join(tx.UpdateUser(user), tx.DeleteSessionsOf(user.ID), tx.DeleteResetsOf(user.ID))
}

// DeleteUser removes the session's user, who stays in the audit log as an ID. It is refused to the last owner of a tenant and
// to the last operator.
func (p *Plane) DeleteUser(ctx context.Context, who *Principal, password string) error {
	checked, err := p.confirm(ctx, who, password)
	if err != nil {
		return err
	}
	return p.store.Update(ctx, func(tx Tx) error {
		user, err := sameUser(tx, checked)
		if err != nil {
			return err
		}
		if user.Operator {
			if n, err := tx.CountOperators(); err != nil {
				return err
			} else if n <= 1 {
				return Errorf(Conflict, "You are the last operator of the platform.")
			}
		}
		memberships, err := tx.FindMemberships(user.ID)
		if err != nil {
			return err
		}
		for _, m := range memberships {
			if err := keepAnOwner(tx, m.Tenant.ID, m.Role); err != nil {
				return err
			}
			if err := tx.DeleteInvitationsBy(m.Tenant.ID, user.ID); err != nil {
				return err
			}
			if err := p.audit(tx, who, "member.deleted", m.Tenant.ID, user.ID, facts{"role": m.Role}, nil); err != nil {
				return err
			}
		}
		if err := tx.DeleteUser(user.ID); err != nil {
			return err
		}
		return p.audit(tx, who, "user.deleted", "", user.ID, nil, nil)
	})
}
