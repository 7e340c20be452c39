package management

import (
	"context"
	"errors"
	"time"
)

// Invitation is a tenant's offer to somebody to join it.
type Invitation struct {
	ID        string    `json:"id"` // inv_…
	TenantID  string    `json:"-"`
	Email     string    `json:"email"`
	Role      Role      `json:"role"`
	InvitedBy string    `json:"invited_by"` // usr_…
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
	Hash      []byte    `json:"-"`
}

// Invited is an invitation that was just made.
type Invited struct {
	*Invitation
	URL Link // to hand over, where there is no mail; else empty
}

// Link is a URL with a token in it. Whatever prints it hides it.
type Link struct{ Token }

// maxInvitations is how many invitations of a tenant wait at a time.
const maxInvitations = 50

func (p *Plane) newInvitation(tenantID, email string, role Role, who *Principal) (*Invitation, string) {
	token, hash := p.auth.NewToken(InvitationToken)
	now := p.now()
	return &Invitation{
		ID: NewID(InvitationID), TenantID: tenantID, Email: email, Role: role, InvitedBy: who.UserID, Hash: hash,
		CreatedAt: now, ExpiresAt: now.Add(InvitationLifetime),
	}, token
}

func (p *Plane) insertInvitation(tx Tx, who *Principal, invitation *Invitation) error {
	if err := tx.InsertInvitation(invitation); err != nil {
		return err
	}
	return p.audit(tx, who, "invitation.created", invitation.TenantID, invitation.ID, nil, facts{"role": invitation.Role})
}

// deliver sends an invitation that is stored, or returns its URL.
func (p *Plane) deliver(invitation *Invitation, token, tenantName string) *Invited {
	link := p.link("/invitation") + "?token=" + token
	if p.mailer != nil {
		p.mailer.SendInvitation(invitation.Email, tenantName, link)
		return &Invited{Invitation: invitation}
	}
	return &Invited{invitation, Link{Token{link}}}
}

// CreateInvitation invites somebody to the caller's tenant, with a role that gives no more than the caller has. One that waits
// for the same address is replaced.
func (p *Plane) CreateInvitation(ctx context.Context, who *Principal, email string, role Role) (*Invited, error) {
	if err := who.Require(MembersWrite); err != nil {
		return nil, err
	}
	email, emailErr := ParseEmail(email)
	if err := refuse(faultAt("/email", emailErr), faultAt("/role", checkRole(role))); err != nil {
		return nil, err
	}
	if err := mayHandle(who, role); err != nil {
		return nil, err
	}
	if p.mailer != nil { // each is a mail: a tenant that revokes and invites in turn must not fill somebody's mailbox
		if _, err := p.beginLogin(who, who.TenantID); err != nil {
			return nil, err
		}
	}
	invitation, token := p.newInvitation(who.TenantID, email, role, who)
	var tenant *Tenant
	err := p.store.Update(ctx, func(tx Tx) (err error) {
		if tenant, err = tx.FindTenant(who.TenantID); err != nil {
			return found("tenant", err)
		}
		user, err := tx.FindUserByEmail(EmailKey(email))
		if err == nil {
			_, err = tx.FindMember(who.TenantID, user.ID)
			if err == nil {
				return Errorf(Conflict, "Somebody with this address is a member already.")
			}
		}
		if !errors.Is(err, ErrNoRow) {
			return err
		}
		if err := tx.DeleteInvitationsTo(who.TenantID, EmailKey(email)); err != nil {
			return err
		}
		if n, err := tx.CountInvitations(who.TenantID); err != nil {
			return err
		} else if n >= maxInvitations {
			return Errorf(QuotaExceeded, "The tenant has %d invitations waiting: revoke some.", maxInvitations)
		}
		return p.insertInvitation(tx, who, invitation)
	})
	if err != nil {
		return nil, err
	}
	return p.deliver(invitation, token, tenant.Name), nil
}

// FindInvitations lists the invitations of the caller's tenant that wait.
func (p *Plane) FindInvitations(ctx context.Context, who *Principal, page Page) (invitations []*Invitation, next string, err error) {
	if err := who.Require(MembersWrite); err != nil {
		return nil, "", err
	}
	after, err := afterID(page, InvitationID)
	if err != nil {
		return nil, "", err
	}
	err = p.store.View(ctx, func(tx Tx) error {
		invitations, err = tx.FindInvitations(who.TenantID, after, page.Limit+1)
		return err
	})
	invitations, next = onePage(invitations, page, func(i *Invitation) string { return i.ID })
	return invitations, next, err
}

// DeleteInvitation revokes an invitation of the caller's tenant.
func (p *Plane) DeleteInvitation(ctx context.Context, who *Principal, id string) error {
	if err := who.Require(MembersWrite); err != nil {
		return err
	}
	if err := isID(InvitationID, id, "invitation"); err != nil {
		return err
	}
	return p.store.Update(ctx, func(tx Tx) error {
		invitation, err := tx.FindInvitation(who.TenantID, id)
		if err != nil {
			return found("invitation", err)
		}
		if err := tx.DeleteInvitation(who.TenantID, id); err != nil {
			return err
		}
		return p.audit(tx, who, "invitation.deleted", who.TenantID, id, facts{"role": invitation.Role}, nil)
	})
}

// AcceptInvitation makes the invited address a member. password is the new user's, or that of the account that the address
// has. It begins no session.
func (p *Plane) AcceptInvitation(ctx context.Context, who *Principal, token, password string) (*Membership, error) {
	hash, ok := p.auth.HashToken(InvitationToken, token)
	if !ok {
		return nil, errNoLink()
	}
	// find returns the invitation while it is good, and its user, nil if there is none.
	find := func(tx Tx) (*Invitation, *Tenant, *User, error) {
		invitation, err := tx.FindInvitationByHash(hash)
		if errors.Is(err, ErrNoRow) || err == nil && !p.now().Before(invitation.ExpiresAt) {
			return nil, nil, nil, errNoLink()
		}
		if err != nil {
			return nil, nil, nil, err
		}
		tenant, err := tx.FindTenant(invitation.TenantID)
		if errors.Is(err, ErrNoRow) {
			return nil, nil, nil, errNoLink()
		}
		if err != nil {
			return nil, nil, nil, err
		}
		user, err := tx.FindUserByEmail(EmailKey(invitation.Email))
		if errors.Is(err, ErrNoRow) {
			return invitation, tenant, nil, nil
		}
		return invitation, tenant, user, err
	}
	var (
		invitation *Invitation
		checked    *User
	)
	err := p.store.View(ctx, func(tx Tx) (err error) {
		invitation, _, checked, err = find(tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	isNew := checked == nil
	if checked, err = p.invitee(ctx, who, invitation, checked, password); err != nil {
		return nil, err
	}
	who = who.as(checked.ID)
	var joined *Membership
	err = p.store.Update(ctx, func(tx Tx) error {
		invitation, tenant, user, err := find(tx)
		switch {
		case err != nil:
			return err
		case isNew != (user == nil) || user != nil && user.PasswordHash != checked.PasswordHash:
			return errUserChanged()
		case isNew:
			if err := p.insertUser(tx, who, checked, tenant.ID); err != nil {
				return err
			}
		}
		if err := tx.DeleteInvitation(tenant.ID, invitation.ID); err != nil {
			return err
		}
		switch _, err := tx.FindMember(tenant.ID, checked.ID); {
		case err == nil:
			return Errorf(Conflict, "You are a member already.")
		case !errors.Is(err, ErrNoRow):
			return err
		}
		joined = &Membership{tenant, invitation.Role}
		return p.addMember(tx, who, tenant.ID, checked.ID, invitation.Role)
	})
	if err != nil {
		return nil, err
	}
	return joined, nil
}

// invitee returns the user who accepts: the one there is, if the password is his, or a new one, not stored yet.
func (p *Plane) invitee(ctx context.Context, who *Principal, invitation *Invitation, user *User, password string) (*User, error) {
	succeeded, err := p.beginLogin(who, invitation.Email)
	if err != nil {
		return nil, err
	}
	if user == nil {
		if err := refuse(faultAt("/password", p.passwords.Check(password, invitation.Email))); err != nil {
			return nil, err
		}
		hash, err := p.hashPassword(ctx, password)
		if err != nil {
			return nil, err
		}
		succeeded()
		return p.newUser(invitation.Email, hash), nil
	}
	if who.UserID == user.ID && requireSession(who) == nil {
		succeeded()
		return user, nil // he signed in: no need to ask again
	}
	ok, _, err := p.verifyPassword(ctx, user.PasswordHash, password)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errBadLogin()
	}
	succeeded()
	return user, nil
}
