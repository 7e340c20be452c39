package management

import (
	"context"
	"errors"
	"slices"
	"time"
)

// APIKey is a credential of a tenant. It belongs to the tenant, not to who made it, and stays when that user goes; Platform
// works only while its maker is an operator of the platform.
type APIKey struct {
	ID         string    `json:"id"` // key_…
	TenantID   string    `json:"tenant"`
	Name       string    `json:"name"`
	Scopes     Scopes    `json:"scopes"`
	Prefix     string    `json:"prefix"`     // what can be shown of the secret
	CreatedBy  string    `json:"created_by"` // usr_…
	CreatedAt  time.Time `json:"created_at"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"`   // absent: never
	LastUsedAt time.Time `json:"last_used_at,omitzero"` // by the minute; absent: not used yet
	Version    int64     `json:"-"`
	Hash       []byte    `json:"-"`
}

// maxAPIKeys is how many keys a tenant has.
const maxAPIKeys = 100

func (p *Plane) newAPIKey(tenantID, userID, name string, scopes Scopes, expires time.Time) (*APIKey, Secret) {
	secret := NewSecret(APIKeySecret)
	return &APIKey{
		ID: NewID(APIKeyID), TenantID: tenantID, Name: name, Scopes: scopes, Prefix: secret.Prefix(), Hash: secret.Hash(),
		CreatedBy: userID, CreatedAt: p.now(), ExpiresAt: expires, Version: 1,
	}, secret
}

// NewAPIKey is a key that somebody wants.
type NewAPIKey struct {
	Name      string
	Scopes    Scopes
	ExpiresAt time.Time // zero: never
}

func checkScopes(scopes Scopes) error {
	if len(scopes) == 0 {
		return errors.New("name at least one scope")
	}
	for i, s := range scopes {
		switch {
		case !KnownScope(s):
			return errors.New("has what is no scope: see the scopes in the documentation")
		case slices.Contains(scopes[:i], s):
			return errors.New("names a scope twice")
		}
	}
	return nil
}

// CreateAPIKey makes a key of the caller's tenant, which can do no more, and is good no longer, than what the caller has.
func (p *Plane) CreateAPIKey(ctx context.Context, who *Principal, wanted NewAPIKey) (*APIKey, Secret, error) {
	if err := who.Require(KeysWrite); err != nil {
		return nil, Secret{}, err
	}
	expires := wanted.ExpiresAt
	if !expires.IsZero() {
		expires = expires.UTC().Truncate(time.Microsecond)
	}
	var past error
	if !expires.IsZero() && !expires.After(p.now()) {
		past = errors.New("is in the past")
	} else if expires.Year() > 9999 {
		past = errors.New("is too far away: leave it out for a key that does not expire")
	}
	err := refuse(faultAt("/name", checkTitle(wanted.Name)), faultAt("/scopes", checkScopes(wanted.Scopes)), faultAt("/expires_at", past))
	if err != nil {
		return nil, Secret{}, err
	}
	if !covers(who, wanted.Scopes) {
		return nil, Secret{}, Errorf(Forbidden, "A key cannot have a scope that you do not have.")
	}
	key, secret := p.newAPIKey(who.TenantID, who.UserID, wanted.Name, slices.Clone(wanted.Scopes), expires)
	err = p.store.Update(ctx, func(tx Tx) error {
		if who.APIKeyID != "" {
			maker, err := tx.FindAPIKey(who.TenantID, who.APIKeyID)
			if err != nil {
				return found("API key", err)
			}
			if !maker.ExpiresAt.IsZero() && (expires.IsZero() || expires.After(maker.ExpiresAt)) {
				return InvalidField("/expires_at", "must not be later than when the key that you use expires")
			}
		}
		if n, err := tx.CountAPIKeys(who.TenantID); err != nil {
			return err
		} else if n >= maxAPIKeys {
			return Errorf(QuotaExceeded, "The tenant has %d API keys: delete some.", maxAPIKeys)
		}
		if err := tx.InsertAPIKey(key); err != nil {
			return err
		}
		return p.audit(tx, who, "api_key.created", who.TenantID, key.ID, nil, key)
	})
	if err != nil {
		return nil, Secret{}, err
	}
	return key, secret, nil
}

// FindAPIKeys lists the keys of the caller's tenant.
func (p *Plane) FindAPIKeys(ctx context.Context, who *Principal, page Page) (keys []*APIKey, next string, err error) {
	if err := who.Require(KeysWrite); err != nil {
		return nil, "", err
	}
	after, err := afterID(page, APIKeyID)
	if err != nil {
		return nil, "", err
	}
	err = p.store.View(ctx, func(tx Tx) error {
		keys, err = tx.FindAPIKeys(who.TenantID, after, page.Limit+1)
		return err
	})
	keys, next = onePage(keys, page, func(k *APIKey) string { return k.ID })
	return keys, next, err
}

// RotateAPIKey gives a key of the caller's tenant a new secret; the old one ends at once. As the caller then has it, the key
// must give no more than the caller has, nor be good for longer.
func (p *Plane) RotateAPIKey(ctx context.Context, who *Principal, id string) (key *APIKey, secret Secret, err error) {
	if err := who.Require(KeysWrite); err != nil {
		return nil, Secret{}, err
	}
	if err := isID(APIKeyID, id, "API key"); err != nil {
		return nil, Secret{}, err
	}
	secret = NewSecret(APIKeySecret)
	err = p.store.Update(ctx, func(tx Tx) error {
		if key, err = tx.FindAPIKey(who.TenantID, id); err != nil {
			return found("API key", err)
		}
		if !covers(who, key.Scopes) {
			return Errorf(Forbidden, "The key has a scope that you do not have.")
		}
		if who.APIKeyID != "" && who.APIKeyID != id {
			own, err := tx.FindAPIKey(who.TenantID, who.APIKeyID)
			if err != nil {
				return found("API key", err)
			}
			if !own.ExpiresAt.IsZero() && (key.ExpiresAt.IsZero() || key.ExpiresAt.After(own.ExpiresAt)) {
				return Errorf(Forbidden, "The key is good for longer than the one that you use.")
			}
		}
		before := *key
		key.Prefix, key.Hash = secret.Prefix(), secret.Hash()
		key.Version++
		if err := tx.UpdateAPIKey(key); err != nil {
			return err
		}
		return p.audit(tx, who, "api_key.rotated", who.TenantID, id, &before, key)
	})
	if err != nil {
		return nil, Secret{}, err
	}
	return key, secret, nil
}

// DeleteAPIKey revokes a key of the caller's tenant: no request that begins after it gets in.
func (p *Plane) DeleteAPIKey(ctx context.Context, who *Principal, id string) error {
	if err := who.Require(KeysWrite); err != nil {
		return err
	}
	if err := isID(APIKeyID, id, "API key"); err != nil {
		return err
	}
	return p.store.Update(ctx, func(tx Tx) error {
		key, err := tx.FindAPIKey(who.TenantID, id)
		if err != nil {
			return found("API key", err)
		}
		if err := tx.DeleteAPIKey(who.TenantID, id); err != nil {
			return err
		}
		return p.audit(tx, who, "api_key.deleted", who.TenantID, id, key, nil)
	})
}

// PrincipalOfKey returns who presents an API key. Unauthenticated: it is unknown, revoked or expired. ClientAddr and RequestID
// are the caller's to set.
func (p *Plane) PrincipalOfKey(ctx context.Context, secret Secret) (*Principal, error) {
	var (
		key      *APIKey
		tenant   *Tenant
		operator bool
	)
	err := p.store.View(ctx, func(tx Tx) (err error) {
		if key, err = tx.FindAPIKeyByHash(secret.Hash()); err != nil {
			return err
		}
		if tenant, err = tx.FindTenant(key.TenantID); err != nil {
			return err
		}
		if !key.Scopes.Has(Platform) {
			return nil
		}
		maker, err := tx.FindUser(key.CreatedBy)
		if errors.Is(err, ErrNoRow) {
			return nil // the key stays, without Platform
		}
		operator = err == nil && maker.Operator
		return err
	})
	if errors.Is(err, ErrNoRow) {
		return nil, errNoCredential()
	}
	if err != nil {
		return nil, err
	}
	if !key.ExpiresAt.IsZero() && !p.now().Before(key.ExpiresAt) {
		return nil, errNoCredential()
	}
	who := &Principal{UserID: key.CreatedBy, APIKeyID: key.ID, TenantID: key.TenantID, Scopes: key.Scopes}
	if !operator {
		who.Scopes = slices.DeleteFunc(who.Scopes, func(s Scope) bool { return s == Platform })
	}
	if tenant.Suspended {
		who.Scopes = whileSuspended(who.Scopes)
	}
	p.touch(use{apiKey: key.ID}, key.LastUsedAt)
	return who, nil
}
