package management

import (
	"context"
	"errors"
	"time"
)

// Reset is a link with which a user sets a new password.
type Reset struct {
	Hash      []byte
	UserID    string
	DropsTOTP bool // made by who runs the service, for somebody who may have lost the app as well
	CreatedAt time.Time
	ExpiresAt time.Time
}

// maxResets is how many links of a user are good at a time, so that nobody fills somebody's mailbox.
const maxResets = 3

// RequestPasswordReset sends a link to the user with that address. Whether there is one is not to be learned: the answer and
// the work are the same. Without mail nothing is sent: see PasswordResetLink.
func (p *Plane) RequestPasswordReset(ctx context.Context, who *Principal, email string) error {
	if _, err := p.beginLogin(who, email); err != nil {
		return err
	}
	parsed, err := ParseEmail(email)
	if err := refuse(faultAt("/email", err)); err != nil {
		return err
	}
	if p.mailer == nil {
		return nil
	}
	token, hash := p.auth.NewToken(ResetToken)
	var to string
	err = p.store.Update(ctx, func(tx Tx) error {
		to = ""
		user, err := tx.FindUserByEmail(EmailKey(parsed))
		switch {
		case errors.Is(err, ErrNoRow):
			user = &User{} // its link is of nobody, and goes at once
		case err != nil:
			return err
		}
		n, err := tx.CountResets(user.ID, p.now())
		if err != nil || n >= maxResets {
			return err
		}
		if err := p.insertReset(tx, user.ID, hash, false); err != nil {
			return err
		}
		if user.ID == "" {
			return tx.DeleteResetsOf("")
		}
		to = user.Email
		return nil
	})
	if err != nil {
		return err
	}
	if to != "" {
		p.mailer.SendReset(to, p.resetLink(token))
	}
	return nil
}

// PasswordResetLink returns a link with which the user sets a new password, and which turns one-time passwords off. It is for
// who runs the service, and asks nobody: whoever can call it has the database.
func (p *Plane) PasswordResetLink(ctx context.Context, email string) (link string, err error) {
	if email, err = ParseEmail(email); err != nil {
		return "", errNotFound("user")
	}
	token, hash := p.auth.NewToken(ResetToken)
	err = p.store.Update(ctx, func(tx Tx) error {
		user, err := tx.FindUserByEmail(EmailKey(email))
		if errors.Is(err, ErrNoRow) {
			return errNotFound("user")
		}
		if err != nil {
			return err
		}
		if err := p.insertReset(tx, user.ID, hash, true); err != nil {
			return err
		}
		return p.audit(tx, system, "user.reset_link_made", "", user.ID, nil, nil)
	})
	if err != nil {
		return "", err
	}
	return p.resetLink(token), nil
}

func (p *Plane) insertReset(tx Tx, userID string, hash []byte, dropsTOTP bool) error {
	now := p.now()
	return tx.InsertReset(&Reset{Hash: hash, UserID: userID, DropsTOTP: dropsTOTP, CreatedAt: now, ExpiresAt: now.Add(ResetLifetime)})
}

func (p *Plane) resetLink(token string) string { return p.link("/reset") + "?token=" + token }

func errNoLink() *Error {
	return Errorf(NotFound, "This link is not good, or not any more: ask for a new one.")
}

// ResetPassword sets the password of the user whom the link with that token is of. All of the user's sessions and links end.
func (p *Plane) ResetPassword(ctx context.Context, who *Principal, token, password string) error {
	hash, ok := p.auth.HashToken(ResetToken, token)
	if !ok {
		return errNoLink()
	}
	// find returns the user whom the link is of, while it is good.
	find := func(tx Tx) (*Reset, *User, error) {
		reset, err := tx.FindReset(hash)
		if errors.Is(err, ErrNoRow) || err == nil && !p.now().Before(reset.ExpiresAt) {
			return nil, nil, errNoLink()
		}
		if err != nil {
			return nil, nil, err
		}
		user, err := tx.FindUser(reset.UserID)
		if errors.Is(err, ErrNoRow) {
			return nil, nil, errNoLink()
		}
		return reset, user, err
	}
	var email string
	err := p.store.View(ctx, func(tx Tx) error {
		_, user, err := find(tx)
		if err == nil {
			email = user.Email
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := refuse(faultAt("/password", p.passwords.Check(password, email))); err != nil {
		return err
	}
	hashed, err := p.hashPassword(ctx, password)
	if err != nil {
		return err
	}
	return p.store.Update(ctx, func(tx Tx) error {
		reset, user, err := find(tx)
		if err != nil {
			return err
		}
		if reset.DropsTOTP {
			user.TOTP, user.TOTPSealed, user.TOTPPending = false, nil, nil
		}
		if err := p.setPassword(tx, user, hashed); err != nil {
			return err
		}
		return p.audit(tx, who.as(user.ID), "user.password_reset", "", user.ID, nil, nil)
	})
}
