package management

import (
	"context"
	"errors"
	"fmt"
)

// totpContext binds a sealed secret of one-time passwords to its user.
func totpContext(userID string) string { return "totp " + userID }

// BeginTOTP returns the otpauth URI of a new secret for one-time passwords, which is asked for once ConfirmTOTP had a code of it.
// Conflict: there is one already.
func (p *Plane) BeginTOTP(ctx context.Context, who *Principal, password string) (uri string, err error) {
	checked, err := p.confirm(ctx, who, password)
	if err != nil {
		return "", err
	}
	secret := p.auth.NewTOTPSecret()
	sealed, err := p.sealer.Seal(secret, totpContext(checked.ID))
	if err != nil {
		return "", fmt.Errorf("sealing the secret of one-time passwords: %w", err)
	}
	err = p.store.Update(ctx, func(tx Tx) error {
		user, err := sameUser(tx, checked)
		if err != nil {
			return err
		}
		if user.TOTP {
			return Errorf(Conflict, "One-time passwords are on already: turn them off first.")
		}
		user.TOTPPending = sealed
		return tx.UpdateUser(user)
	})
	if err != nil {
		return "", err
	}
	return p.auth.TOTPURI(checked.Email, secret), nil
}

// ConfirmTOTP turns one-time passwords on, with a code that shows that the app has the secret.
func (p *Plane) ConfirmTOTP(ctx context.Context, who *Principal, code string) error {
	if err := requireSession(who); err != nil {
		return err
	}
	user, err := p.findUser(ctx, who.UserID)
	if err != nil {
		return err
	}
	succeeded, err := p.beginLogin(who, user.Email)
	if err != nil {
		return err
	}
	err = p.store.Update(ctx, func(tx Tx) error {
		user, err := tx.FindUser(who.UserID)
		if errors.Is(err, ErrNoRow) {
			return errNoCredential()
		}
		if err != nil {
			return err
		}
		if len(user.TOTPPending) == 0 {
			return Errorf(Conflict, "There is nothing to confirm: begin with a new secret.")
		}
		secret, err := p.sealer.Open(user.TOTPPending, totpContext(user.ID))
		if err != nil {
			return fmt.Errorf("opening the secret of one-time passwords of %s: %w", user.ID, err)
		}
		step, ok := p.auth.CheckTOTP(secret, code, p.now(), 0)
		if !ok {
			return InvalidField("/code", "is not what the app shows now")
		}
		user.TOTP, user.TOTPSealed, user.TOTPPending, user.TOTPStep, user.UpdatedAt = true, user.TOTPPending, nil, step, p.now()
		if err := tx.UpdateUser(user); err != nil {
			return err
		}
		return p.audit(tx, who, "user.totp_on", "", user.ID, nil, nil)
	})
	if err == nil {
		succeeded()
	}
	return err
}

// EndTOTP turns one-time passwords off.
func (p *Plane) EndTOTP(ctx context.Context, who *Principal, password string) error {
	checked, err := p.confirm(ctx, who, password)
	if err != nil {
		return err
	}
	return p.store.Update(ctx, func(tx Tx) error {
		user, err := sameUser(tx, checked)
		if err != nil {
			return err
		}
		was := user.TOTP
		user.TOTP, user.TOTPSealed, user.TOTPPending, user.UpdatedAt = false, nil, nil, p.now()
		if err := tx.UpdateUser(user); err != nil || !was {
			return err
		}
		return p.audit(tx, who, "user.totp_off", "", user.ID, nil, nil)
	})
}

// rewrapUsers puts what is sealed of users under the first master key, and returns how many rows changed.
func (p *Plane) rewrapUsers(ctx context.Context) (changed int, err error) {
	const some = 200
	for after := ""; ; {
		users, n := []*User(nil), 0
		err := p.store.Update(ctx, func(tx Tx) error {
			n = 0
			var err error
			if users, err = tx.FindSealedUsers(after, some); err != nil {
				return err
			}
			for _, user := range users {
				rewrapped := false
				for _, sealed := range []*[]byte{&user.TOTPSealed, &user.TOTPPending} {
					if len(*sealed) == 0 {
						continue
					}
					anew, changed, err := p.sealer.Rewrap(*sealed)
					if err != nil {
						return fmt.Errorf("one-time passwords of %s: %w", user.ID, err)
					}
					*sealed, rewrapped = anew, rewrapped || changed
				}
				if !rewrapped {
					continue
				}
				n++
				if err := tx.UpdateUser(user); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return changed, err
		}
		changed += n
		if len(users) < some {
			return changed, nil
		}
		after = users[len(users)-1].ID
	}
}
