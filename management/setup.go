package management

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"time"
)

// Setup is what the first run asks for.
type Setup struct {
	Token    string // the set-up token
	Email    string
	Password string
	Tenant   string // the name of the first tenant
	APIKey   bool   // make a key that can do everything
}

// SetUp is what the first run made.
type SetUp struct {
	Tenant *Tenant
	User   *User
	APIKey *APIKey // nil unless asked for
	Secret Secret  // of the key
}

// SetupRequired reports whether nobody has set the service up yet: there is no operator of the platform.
func (p *Plane) SetupRequired(ctx context.Context) (required bool, err error) {
	err = p.store.View(ctx, func(tx Tx) error {
		n, err := tx.CountOperators()
		required = n == 0
		return err
	})
	return required, err
}

func errSetupDone() *Error { return Errorf(SetupDone, "The service was set up already: sign in.") }

// SetUp makes the first tenant, which is trusted, and its owner, who is an operator of the platform. It works once: SetupDone.
// Wrong token: Forbidden.
func (p *Plane) SetUp(ctx context.Context, who *Principal, setup Setup) (*SetUp, error) {
	required, err := p.SetupRequired(ctx)
	if err != nil {
		return nil, err
	}
	if !required {
		return nil, errSetupDone()
	}
	succeeded, err := p.beginLogin(who, "") // guesses at the token are counted as of one account
	if err != nil {
		return nil, err
	}
	// The hashes have one length, so the time tells nothing of the token, nor of how long it is.
	got, want := sha256.Sum256([]byte(setup.Token)), sha256.Sum256([]byte(p.cfg.SetupToken))
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return nil, Errorf(Forbidden, "The set-up token is wrong: it is what setup_token says, or in the file setup-token.")
	}
	succeeded()
	email, emailErr := ParseEmail(setup.Email)
	err = refuse(faultAt("/email", emailErr), faultAt("/password", p.passwords.Check(setup.Password, setup.Email)),
		faultAt("/tenant", checkTitle(setup.Tenant)))
	if err != nil {
		return nil, err
	}
	hash, err := p.hashPassword(ctx, setup.Password)
	if err != nil {
		return nil, err
	}
	made := &SetUp{Tenant: p.newTenant(setup.Tenant), User: p.newUser(email, hash)}
	made.Tenant.Trusted, made.Tenant.MaxDomains = true, mostDomains
	made.User.Operator = true
	if setup.APIKey {
		made.APIKey, made.Secret = p.newAPIKey(made.Tenant.ID, made.User.ID, "set-up", Scopes{All, Platform}, time.Time{})
	}
	who = who.as(made.User.ID)
	err = p.store.Update(ctx, func(tx Tx) error {
		if n, err := tx.CountOperators(); err != nil {
			return err
		} else if n > 0 {
			return errSetupDone() // somebody was quicker
		}
		if err := p.insertAccount(tx, who, made.User, made.Tenant); err != nil {
			return err
		}
		if made.APIKey == nil {
			return nil
		}
		if err := tx.InsertAPIKey(made.APIKey); err != nil {
			return err
		}
		return p.audit(tx, who, "api_key.created", made.Tenant.ID, made.APIKey.ID, nil, made.APIKey)
	})
	if err != nil {
		return nil, err
	}
	return made, nil
}

func (p *Plane) newUser(email, passwordHash string) *User {
	now := p.now()
	return &User{ID: NewID(UserID), Email: email, PasswordHash: passwordHash, CreatedAt: now, UpdatedAt: now}
}

// insertAccount stores a new user with a new tenant of his own.
func (p *Plane) insertAccount(tx Tx, who *Principal, user *User, tenant *Tenant) error {
	if err := p.insertUser(tx, who, user, tenant.ID); err != nil {
		return err
	}
	if err := tx.InsertTenant(tenant); err != nil {
		return err
	}
	if err := p.audit(tx, who, "tenant.created", tenant.ID, tenant.ID, nil, tenant); err != nil {
		return err
	}
	return p.addMember(tx, who, tenant.ID, user.ID, Owner)
}

// insertUser stores a new user. Whatever waited for that address to be confirmed is void.
func (p *Plane) insertUser(tx Tx, who *Principal, user *User, tenantID string) error {
	if err := errors.Join(tx.InsertUser(user), tx.DeleteSignups(EmailKey(user.Email))); err != nil {
		return err
	}
	return p.audit(tx, who, "user.created", tenantID, user.ID, nil, facts{"platform": user.Operator})
}
