package management

import (
	"context"
	"errors"
	"time"
)

// Signup is an account that waits for its address to be confirmed. It is no user yet: who signs up with somebody else's address
// has nothing, and the owner of the address loses nothing.
type Signup struct {
	Hash         []byte // of the token in the link
	Email        string
	PasswordHash string
	TenantName   string
	CreatedAt    time.Time
	ExpiresAt    time.Time
}

// maxSignups is how many sign-ups of an address wait at a time, and so how many mails it gets in VerificationLifetime.
const maxSignups = 3

// NewAccount is what somebody signs up with.
type NewAccount struct {
	Email    string
	Password string
	Tenant   string // the name of the new tenant
}

// SignUp makes an account: with mail, once the address is confirmed (see VerifySignup), without, at once. It says nothing of
// whether the address has an account already, which then stays as it is. Forbidden: sign-up is closed.
func (p *Plane) SignUp(ctx context.Context, who *Principal, account NewAccount) error {
	if !p.cfg.SignupOpen {
		return Errorf(Forbidden, "Sign-up is closed: ask for an invitation.")
	}
	if _, err := p.beginLogin(who, account.Email); err != nil {
		return err
	}
	email, emailErr := ParseEmail(account.Email)
	err := refuse(faultAt("/email", emailErr), faultAt("/password", p.passwords.Check(account.Password, account.Email)),
		faultAt("/tenant", checkTitle(account.Tenant)))
	if err != nil {
		return err
	}
	if required, err := p.SetupRequired(ctx); err != nil {
		return err
	} else if required {
		return Errorf(Forbidden, "The service is not set up yet.")
	}
	hash, err := p.hashPassword(ctx, account.Password)
	if err != nil {
		return err
	}
	if p.mailer == nil {
		return p.signUpAtOnce(ctx, who, email, hash, account.Tenant)
	}
	token, tokenHash := p.auth.NewToken(VerificationToken)
	var send func()
	err = p.store.Update(ctx, func(tx Tx) error {
		send = func() {}
		n, err := tx.CountSignups(EmailKey(email))
		if err != nil || n >= maxSignups {
			return err
		}
		// A sign-up of a known address is stored as well, with a token that nobody gets: the work is the same, and it counts.
		now := p.now()
		signup := &Signup{Hash: tokenHash, Email: email, PasswordHash: hash, TenantName: account.Tenant,
			CreatedAt: now, ExpiresAt: now.Add(VerificationLifetime)}
		if err := tx.InsertSignup(signup); err != nil {
			return err
		}
		switch _, err := tx.FindUserByEmail(EmailKey(email)); {
		case err == nil:
			send = func() { p.mailer.SendAlreadyRegistered(email, p.link("/login")) }
		case errors.Is(err, ErrNoRow):
			send = func() { p.mailer.SendVerification(email, p.link("/verify")+"?token="+token) }
		default:
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	send()
	return nil
}

// signUpAtOnce makes the account without asking the address.
func (p *Plane) signUpAtOnce(ctx context.Context, who *Principal, email, hash, tenantName string) error {
	user, tenant := p.newUser(email, hash), p.newTenant(tenantName)
	return p.store.Update(ctx, func(tx Tx) error {
		switch _, err := tx.FindUserByEmail(EmailKey(email)); {
		case err == nil:
			return nil // and nothing is said of it
		case !errors.Is(err, ErrNoRow):
			return err
		}
		return p.insertAccount(tx, who.as(user.ID), user, tenant)
	})
}

// VerifySignup makes the account that was signed up for with the link that holds the token, and signs in. The password is asked
// for again: else somebody could sign up with another's address and a password of his own, and wait for the other to click.
func (p *Plane) VerifySignup(ctx context.Context, who *Principal, token, password string) (*SignedIn, error) {
	hash, ok := p.auth.HashToken(VerificationToken, token)
	if !ok {
		return nil, errNoLink()
	}
	find := func(tx Tx) (*Signup, error) {
		signup, err := tx.FindSignup(hash)
		if errors.Is(err, ErrNoRow) || err == nil && !p.now().Before(signup.ExpiresAt) {
			return nil, errNoLink()
		}
		return signup, err
	}
	var signup *Signup
	err := p.store.View(ctx, func(tx Tx) (err error) {
		signup, err = find(tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	succeeded, err := p.beginLogin(who, signup.Email)
	if err != nil {
		return nil, err
	}
	ok, _, err = p.verifyPassword(ctx, signup.PasswordHash, password)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errBadLogin()
	}
	succeeded()
	user, tenant := p.newUser(signup.Email, signup.PasswordHash), p.newTenant(signup.TenantName)
	who = who.as(user.ID)
	var in *SignedIn
	err = p.store.Update(ctx, func(tx Tx) error {
		if _, err := find(tx); err != nil {
			return err
		}
		switch _, err := tx.FindUserByEmail(EmailKey(signup.Email)); {
		case err == nil:
			return errNoLink() // an invitation was accepted meanwhile
		case !errors.Is(err, ErrNoRow):
			return err
		}
		if err := p.insertAccount(tx, who, user, tenant); err != nil {
			return err
		}
		in, err = p.newSession(tx, user)
		return err
	})
	return in, err
}
