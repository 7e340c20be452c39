package management

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Member is a user in a tenant.
type Member struct {
	TenantID string    `json:"-"`
	UserID   string    `json:"user"` // usr_…
	Email    string    `json:"email"`
	Role     Role      `json:"role"`
	JoinedAt time.Time `json:"joined_at"`
	Version  int64     `json:"-"`
}

// maxMembers is how many members a tenant has, invited ones not counted.
const maxMembers = 500

func checkRole(r Role) error {
	if !slices.Contains(Roles, r) {
		return errors.New("must be viewer, operator, admin or owner")
	}
	return nil
}

// addMember stores a member.
func (p *Plane) addMember(tx Tx, who *Principal, tenantID, userID string, role Role) error {
	if n, err := tx.CountMembers(tenantID); err != nil {
		return err
	} else if n >= maxMembers {
		return Errorf(QuotaExceeded, "The tenant has as many members as it can have: %d.", maxMembers)
	}
	member := &Member{TenantID: tenantID, UserID: userID, Role: role, JoinedAt: p.now(), Version: 1}
	if err := tx.InsertMember(member); err != nil {
		return err
	}
	return p.audit(tx, who, "member.created", tenantID, userID, nil, facts{"role": role})
}

// keepAnOwner refuses to let a member with that role go if it is the last owner.
func keepAnOwner(tx Tx, tenantID string, role Role) error {
	if role != Owner {
		return nil
	}
	n, err := tx.CountOwners(tenantID)
	if err == nil && n <= 1 {
		return Errorf(Conflict, "A tenant keeps its last owner: make somebody else an owner first, or delete the tenant.")
	}
	return err
}

// mayHandle refuses who has less than a member has, or is to have.
func mayHandle(who *Principal, roles ...Role) error {
	for _, r := range roles {
		if !covers(who, r.Scopes()) {
			return Errorf(Forbidden, "The role %s can do more than you can.", r)
		}
	}
	return nil
}

// FindMembers lists the members of the caller's tenant.
func (p *Plane) FindMembers(ctx context.Context, who *Principal, page Page) (members []*Member, next string, err error) {
	if err := who.Require(MembersWrite); err != nil {
		return nil, "", err
	}
	after, err := afterID(page, UserID)
	if err != nil {
		return nil, "", err
	}
	err = p.store.View(ctx, func(tx Tx) error {
		members, err = tx.FindMembers(who.TenantID, after, page.Limit+1)
		return err
	})
	members, next = onePage(members, page, func(m *Member) string { return m.UserID })
	return members, next, err
}

// UpdateMember gives a member of the caller's tenant another role. Nobody changes who can do more, nor gives what he does not have.
func (p *Plane) UpdateMember(ctx context.Context, who *Principal, userID string, role *Role, match Precondition) (member *Member, err error) {
	if err := who.Require(MembersWrite); err != nil {
		return nil, err
	}
	if err := isID(UserID, userID, "member"); err != nil {
		return nil, err
	}
	if role != nil {
		if err := refuse(faultAt("/role", checkRole(*role))); err != nil {
			return nil, err
		}
	}
	err = p.store.Update(ctx, func(tx Tx) error {
		if member, err = tx.FindMember(who.TenantID, userID); err != nil {
			return found("member", err)
		}
		if err := match.check(member.Version); err != nil {
			return err
		}
		if role == nil || *role == member.Role {
			return nil
		}
		if err := mayHandle(who, member.Role, *role); err != nil {
			return err
		}
		if err := keepAnOwner(tx, who.TenantID, member.Role); err != nil {
			return err
		}
		before := member.Role
		member.Role = *role
		member.Version++
		// Invitations are what he could give; what he can give now may be less.
		if err := errors.Join(tx.UpdateMember(member), tx.DeleteInvitationsBy(who.TenantID, userID)); err != nil {
			return err
		}
		return p.audit(tx, who, "member.updated", who.TenantID, userID, facts{"role": before}, facts{"role": member.Role})
	})
	if err != nil {
		return nil, err
	}
	return member, nil
}

// DeleteMember takes a member out of the caller's tenant. Everybody who signed in can leave; nobody removes who can do more.
// API keys that the member made are the tenant's and stay.
func (p *Plane) DeleteMember(ctx context.Context, who *Principal, userID string, match Precondition) error {
	leaves := requireSession(who) == nil && who.UserID == userID && who.TenantID != ""
	if !leaves {
		if err := who.Require(MembersWrite); err != nil {
			return err
		}
	}
	if err := isID(UserID, userID, "member"); err != nil {
		return err
	}
	return p.store.Update(ctx, func(tx Tx) error {
		member, err := tx.FindMember(who.TenantID, userID)
		if err != nil {
			return found("member", err)
		}
		if err := match.check(member.Version); err != nil {
			return err
		}
		if !leaves {
			if err := mayHandle(who, member.Role); err != nil {
				return err
			}
		}
		if err := keepAnOwner(tx, who.TenantID, member.Role); err != nil {
			return err
		}
		user, err := tx.FindUser(userID)
		if err != nil {
			return err
		}
		user.UpdatedAt = p.now() // from when on he may be without any tenant
		err = errors.Join(tx.UpdateUser(user), tx.DeleteMember(who.TenantID, userID), tx.DeleteInvitationsBy(who.TenantID, userID))
		if err != nil {
			return err
		}
		return p.audit(tx, who, "member.deleted", who.TenantID, userID, facts{"role": member.Role}, nil)
	})
}
