package management

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Session is somebody's being signed in. Its token is known to the browser alone.
type Session struct {
	Hash      []byte
	UserID    string
	CreatedAt time.Time
	SeenAt    time.Time // by the minute
	ExpiresAt time.Time // however busy it is
}

// SignedIn is a session that has just begun.
type SignedIn struct {
	Token     Token
	ExpiresAt time.Time
	User      *User
}

// Login is what somebody proves to be a user with.
type Login struct {
	Email    string
	Password string
	TOTP     string // empty: none given
}

// maxSessions is how many sessions a user has: the oldest gives way.
const maxSessions = 50

func errBadLogin() *Error {
	return Errorf(Unauthenticated, "The e-mail address or the password is wrong.")
}

// LogIn begins a session. who has ClientAddr and RequestID alone: whatever session the client had is not looked at, and the
// token is new. Unknown addresses and wrong passwords look and last alike: Unauthenticated. TOTPRequired is said to who had the
// right password alone. Too many tries: RateLimited.
func (p *Plane) LogIn(ctx context.Context, who *Principal, login Login) (*SignedIn, error) {
	checked, stale, err := p.prove(ctx, who, login)
	if err != nil {
		return nil, err
	}
	rehashed := ""
	if stale {
		if rehashed, err = p.hashPassword(ctx, login.Password); err != nil {
			return nil, err
		}
	}
	var in *SignedIn
	err = p.store.Update(ctx, func(tx Tx) error {
		user, err := sameUser(tx, checked)
		if err != nil {
			return err
		}
		if user.TOTP {
			if checked.TOTPStep <= user.TOTPStep {
				return errTOTP() // somebody was quicker with the same code, or turned it on at this moment
			}
			user.TOTPStep = checked.TOTPStep
		}
		if rehashed != "" {
			user.PasswordHash = rehashed
		}
		if user.TOTP || rehashed != "" {
			if err := tx.UpdateUser(user); err != nil {
				return err
			}
		}
		if err := p.audit(tx, who.as(user.ID), "session.created", "", user.ID, nil, nil); err != nil {
			return err
		}
		in, err = p.newSession(tx, user)
		return err
	})
	return in, err
}

func errTOTP() *Error {
	return Errorf(TOTPRequired, "A one-time password is needed: send the six digits that the app shows now as totp. Each is good once.")
}

// prove returns the user whom the login is of, with TOTPStep set to the step of the code. Nothing is stored.
func (p *Plane) prove(ctx context.Context, who *Principal, login Login) (user *User, stale bool, err error) {
	succeeded, err := p.beginLogin(who, login.Email)
	if err != nil {
		return nil, false, err
	}
	email, err := ParseEmail(login.Email)
	if err == nil {
		if user, err = p.findUserByEmail(ctx, email); err != nil {
			return nil, false, err
		}
	}
	hash := ""
	if user != nil {
		hash = user.PasswordHash
	}
	ok, stale, err := p.verifyPassword(ctx, hash, login.Password)
	if err != nil {
		return nil, false, err
	}
	if !ok || user == nil {
		return nil, false, errBadLogin()
	}
	if user.TOTP {
		if login.TOTP == "" {
			return nil, false, errTOTP()
		}
		secret, err := p.sealer.Open(user.TOTPSealed, totpContext(user.ID))
		if err != nil {
			return nil, false, fmt.Errorf("opening the secret of one-time passwords of %s: %w", user.ID, err)
		}
		step, ok := p.auth.CheckTOTP(secret, login.TOTP, p.now(), user.TOTPStep)
		if !ok {
			return nil, false, errTOTP()
		}
		user.TOTPStep = step
	}
	succeeded()
	return user, stale, nil
}

// newSession begins a session of a user, with a token that nobody had before.
func (p *Plane) newSession(tx Tx, user *User) (*SignedIn, error) {
	token, hash := p.auth.NewToken(SessionToken)
	now := p.now()
	session := &Session{Hash: hash, UserID: user.ID, CreatedAt: now, SeenAt: now, ExpiresAt: now.Add(SessionLifetime)}
	if err := errors.Join(tx.InsertSession(session), tx.TrimSessions(user.ID, maxSessions)); err != nil {
		return nil, err
	}
	return &SignedIn{Token: Token{token}, ExpiresAt: session.ExpiresAt, User: user}, nil
}

// LogOut ends the session with that token. One that is none is none already.
func (p *Plane) LogOut(ctx context.Context, who *Principal, token string) error {
	hash, ok := p.auth.HashToken(SessionToken, token)
	if !ok {
		return nil
	}
	return p.store.Update(ctx, func(tx Tx) error {
		session, err := tx.FindSession(hash)
		if errors.Is(err, ErrNoRow) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := tx.DeleteSession(hash); err != nil {
			return err
		}
		return p.audit(tx, who.as(session.UserID), "session.deleted", "", session.UserID, nil, nil)
	})
}

// PrincipalOfSession returns who has the session with that token. tenantID is the one that the client named; empty: the first
// that the user joined; one that the user does not belong to: NotFound. A session that is none: Unauthenticated.
// ClientAddr and RequestID are the caller's to set.
func (p *Plane) PrincipalOfSession(ctx context.Context, token, tenantID string) (*Principal, error) {
	hash, ok := p.auth.HashToken(SessionToken, token)
	if !ok {
		return nil, errNoCredential()
	}
	var (
		session     *Session
		user        *User
		memberships []*Membership
	)
	err := p.store.View(ctx, func(tx Tx) (err error) {
		if session, err = tx.FindSession(hash); err != nil {
			return err
		}
		if user, err = tx.FindUser(session.UserID); err != nil {
			return err
		}
		memberships, err = tx.FindMemberships(user.ID)
		return err
	})
	if errors.Is(err, ErrNoRow) {
		return nil, errNoCredential()
	}
	if err != nil {
		return nil, err
	}
	// A clock that went back makes a session live no longer than it would have.
	if now := p.now(); !now.Before(session.ExpiresAt) || now.Sub(session.SeenAt) >= SessionIdle {
		return nil, errNoCredential()
	}
	who := &Principal{UserID: user.ID, Email: user.Email}
	for _, m := range memberships {
		if tenantID == "" || m.Tenant.ID == tenantID {
			who.TenantID, who.Role, who.Scopes = m.Tenant.ID, m.Role, m.Role.Scopes()
			if m.Tenant.Suspended {
				who.Scopes = whileSuspended(who.Scopes)
			}
			break
		}
	}
	if tenantID != "" && who.TenantID == "" {
		return nil, errNotFound("tenant")
	}
	if user.Operator {
		who.Scopes = append(who.Scopes, Platform)
	}
	p.touch(use{session: string(hash)}, session.SeenAt)
	return who, nil
}
