package management

import (
	"context"
	"errors"
	"time"
)

// Tenant is a customer: whose rows are whose.
type Tenant struct {
	ID         string    `json:"id"` // ten_…
	Name       string    `json:"name"`
	Trusted    bool      `json:"trusted"`     // its word is proof enough that a domain is its own
	Suspended  bool      `json:"suspended"`   // its domains are not served, and it can only read
	MaxDomains int       `json:"max_domains"` // at most so many domains
	Version    int64     `json:"-"`           // counts changes, from 1
	CreatedAt  time.Time `json:"created_at"`
	UpdatedAt  time.Time `json:"updated_at"`
	DeletedAt  time.Time `json:"-"` // zero: it is there
}

// How many domains a tenant may have.
const (
	defaultMaxDomains = 1_000     // of whoever signs up
	mostDomains       = 1_000_000 // what an operator can set, and what the first tenant has
)

// newTenant returns a tenant of that name as of now.
func (p *Plane) newTenant(name string) *Tenant {
	now := p.now()
	return &Tenant{ID: NewID(TenantID), Name: name, MaxDomains: defaultMaxDomains, Version: 1, CreatedAt: now, UpdatedAt: now}
}

// found gives a row that was looked for the error that callers see.
func found(what string, err error) error {
	if errors.Is(err, ErrNoRow) {
		return errNotFound(what)
	}
	return err
}

// isID returns NotFound for what can be no ID of that kind: databases differ in what they make of odd bytes.
func isID(kind Kind, id, what string) error {
	if !IsID(kind, id) {
		return errNotFound(what)
	}
	return nil
}

// FindTenant returns the caller's tenant. Every member can.
func (p *Plane) FindTenant(ctx context.Context, who *Principal) (tenant *Tenant, err error) {
	if err := who.Require(DomainsRead); err != nil {
		return nil, err
	}
	err = p.store.View(ctx, func(tx Tx) error {
		tenant, err = tx.FindTenant(who.TenantID)
		return found("tenant", err)
	})
	return tenant, err
}

// RenameTenant gives the caller's tenant another name. Only who has the tenant itself can: an owner, or a key with `*`.
func (p *Plane) RenameTenant(ctx context.Context, who *Principal, name *string, match Precondition) (tenant *Tenant, err error) {
	if err := who.Require(All); err != nil {
		return nil, err
	}
	return p.updateTenant(ctx, who, who.TenantID, TenantUpdate{Name: name}, match)
}

// TenantUpdate is what to change of a tenant; nil stays as it is.
type TenantUpdate struct {
	Name       *string
	Suspended  *bool
	Trusted    *bool
	MaxDomains *int
}

// UpdateTenant changes any tenant, for operators of the platform. When a tenant is suspended its domains are no longer served.
func (p *Plane) UpdateTenant(ctx context.Context, who *Principal, id string, update TenantUpdate, match Precondition) (*Tenant, error) {
	if err := who.Require(Platform); err != nil {
		return nil, err
	}
	if err := isID(TenantID, id, "tenant"); err != nil {
		return nil, err
	}
	return p.updateTenant(ctx, who, id, update, match)
}

func (u *TenantUpdate) check() error {
	var name, limit error
	if u.Name != nil {
		name = checkTitle(*u.Name)
	}
	if u.MaxDomains != nil {
		limit = checkMaxDomains(*u.MaxDomains)
	}
	return refuse(faultAt("/name", name), faultAt("/max_domains", limit))
}

func checkMaxDomains(n int) error {
	if n < 0 || n > mostDomains {
		return errors.New("must be 0 to 1000000")
	}
	return nil
}

func (p *Plane) updateTenant(ctx context.Context, who *Principal, id string, update TenantUpdate, match Precondition) (*Tenant, error) {
	if err := update.check(); err != nil {
		return nil, err
	}
	var tenant *Tenant
	err := p.store.Update(ctx, func(tx Tx) (err error) {
		if tenant, err = tx.FindTenant(id); err != nil {
			return found("tenant", err)
		}
		if err := match.check(tenant.Version); err != nil {
			return err
		}
		before := *tenant
		set(&tenant.Name, update.Name)
		set(&tenant.Suspended, update.Suspended)
		set(&tenant.Trusted, update.Trusted)
		set(&tenant.MaxDomains, update.MaxDomains)
		if *tenant == before {
			return nil
		}
		tenant.Version++
		tenant.UpdatedAt = p.now()
		if err := tx.UpdateTenant(tenant); err != nil {
			return err
		}
		if tenant.Suspended != before.Suspended || tenant.Trusted != before.Trusted {
			if err := p.tenantChanged(tx, tenant); err != nil {
				return err
			}
		}
		return p.audit(tx, who, "tenant.updated", tenant.ID, tenant.ID, &before, tenant)
	})
	return tenant, err
}

// set gives a field a new value, if there is one.
func set[T any](field, value *T) {
	if value != nil {
		*field = *value
	}
}

// DeleteTenant removes the caller's tenant. Only an owner who signed in can, with his password. Its domains end at once, as do
// its API keys and invitations.
func (p *Plane) DeleteTenant(ctx context.Context, who *Principal, password string, match Precondition) error {
	if err := requireSession(who); err != nil {
		return err
	}
	if err := who.Require(All); err != nil {
		return err
	}
	checked, err := p.confirm(ctx, who, password)
	if err != nil {
		return err
	}
	return p.store.Update(ctx, func(tx Tx) error {
		if _, err := sameUser(tx, checked); err != nil {
			return err
		}
		member, err := tx.FindMember(who.TenantID, who.UserID)
		if err != nil || member.Role != Owner {
			return found("tenant", err)
		}
		tenant, err := tx.FindTenant(who.TenantID)
		if err != nil {
			return found("tenant", err)
		}
		if err := match.check(tenant.Version); err != nil {
			return err
		}
		before := *tenant
		tenant.DeletedAt, tenant.UpdatedAt = p.now(), p.now()
		tenant.Version++
		err = errors.Join(tx.UpdateTenant(tenant), tx.DeleteAPIKeysOf(tenant.ID), tx.DeleteInvitationsOf(tenant.ID))
		if err != nil {
			return err
		}
		if err := p.tenantChanged(tx, tenant); err != nil {
			return err
		}
		return p.audit(tx, who, "tenant.deleted", tenant.ID, tenant.ID, &before, nil)
	})
}

// FindTenants lists all tenants, for operators of the platform.
func (p *Plane) FindTenants(ctx context.Context, who *Principal, page Page) (tenants []*Tenant, next string, err error) {
	if err := who.Require(Platform); err != nil {
		return nil, "", err
	}
	after, err := afterID(page, TenantID)
	if err != nil {
		return nil, "", err
	}
	err = p.store.View(ctx, func(tx Tx) error {
		tenants, err = tx.FindTenants(after, page.Limit+1)
		return err
	})
	tenants, next = onePage(tenants, page, func(t *Tenant) string { return t.ID })
	return tenants, next, err
}

// afterID returns the ID behind which a page begins, of a list that is sorted by ID.
func afterID(page Page, kind Kind) (string, error) {
	keys, err := page.keys(1)
	if err != nil || keys == nil {
		return "", err
	}
	if !IsID(kind, keys[0]) {
		return "", InvalidField("?cursor", "no cursor of this list: begin again without one")
	}
	return keys[0], nil
}

// onePage cuts the row off that was read to learn whether there is more, and returns the cursor of the next page.
func onePage[T any](rows []T, page Page, id func(T) string) ([]T, string) {
	if page.Limit <= 0 || len(rows) <= page.Limit {
		return rows, ""
	}
	rows = rows[:page.Limit]
	return rows, newCursor(id(rows[len(rows)-1]))
}

// NewTenant is a tenant that an operator makes.
type NewTenant struct {
	Name       string
	OwnerEmail string // who is invited to own it; empty: the caller owns it
	Trusted    bool
	MaxDomains *int // nil: the default
}

// CreateTenant makes a tenant, for operators of the platform. invited is nil where nobody was.
func (p *Plane) CreateTenant(ctx context.Context, who *Principal, made NewTenant) (tenant *Tenant, invited *Invited, err error) {
	if err := who.Require(Platform); err != nil {
		return nil, nil, err
	}
	var limitErr, emailErr error
	if made.MaxDomains != nil {
		limitErr = checkMaxDomains(*made.MaxDomains)
	}
	email := ""
	if made.OwnerEmail != "" {
		email, emailErr = ParseEmail(made.OwnerEmail)
	}
	err = refuse(faultAt("/name", checkTitle(made.Name)), faultAt("/owner_email", emailErr), faultAt("/max_domains", limitErr))
	if err != nil {
		return nil, nil, err
	}
	tenant = p.newTenant(made.Name)
	tenant.Trusted = made.Trusted
	set(&tenant.MaxDomains, made.MaxDomains)
	var invitation *Invitation
	var token string
	if email != "" {
		invitation, token = p.newInvitation(tenant.ID, email, Owner, who)
	}
	err = p.store.Update(ctx, func(tx Tx) error {
		if err := tx.InsertTenant(tenant); err != nil {
			return err
		}
		if err := p.audit(tx, who, "tenant.created", tenant.ID, tenant.ID, nil, tenant); err != nil {
			return err
		}
		if invitation != nil {
			return p.insertInvitation(tx, who, invitation)
		}
		if _, err := tx.FindUser(who.UserID); err != nil {
			return found("user", err) // whoever made the key is gone: there is nobody to own it
		}
		return p.addMember(tx, who, tenant.ID, who.UserID, Owner)
	})
	if err != nil {
		return nil, nil, err
	}
	if invitation != nil {
		invited = p.deliver(invitation, token, tenant.Name)
	}
	return tenant, invited, nil
}
