package management

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// Purpose says what a Token is for. A token of one purpose is never found as one of another.
type Purpose string

// The purposes, spelled as package auth has them.
const (
	SessionToken      Purpose = "session"
	ResetToken        Purpose = "password-reset"
	InvitationToken   Purpose = "invitation"
	VerificationToken Purpose = "email-verification"
)

// How long sessions and links are good for.
const (
	SessionLifetime      = 30 * 24 * time.Hour // from signing in, however busy the session is
	SessionIdle          = 24 * time.Hour      // from the last request
	ResetLifetime        = time.Hour
	VerificationLifetime = 24 * time.Hour
	InvitationLifetime   = 7 * 24 * time.Hour
)

// Auth is what signing in is made of, beside Passwords. Package auth has the pieces.
//
// An implementation MUST be safe for concurrent use.
type Auth interface {
	// NewToken returns a new random token and the hash under which it is stored.
	NewToken(Purpose) (token string, hash []byte)
	// HashToken returns the hash by which a presented token is looked up, and false for what is no token at all.
	HashToken(p Purpose, token string) (hash []byte, ok bool)

	// BeginLogin counts a try to prove to be the account with that e-mail address, whether or not there is one, from that
	// client. Not ok: too many tries, and the next one has a chance in retryAfter. Else succeeded takes the try back.
	BeginLogin(email string, client netip.Addr) (succeeded func(), retryAfter time.Duration, ok bool)

	// NewTOTPSecret returns a new secret for one-time passwords (RFC 6238), and TOTPURI what an app reads it from.
	NewTOTPSecret() []byte
	TOTPURI(account string, secret []byte) string
	// CheckTOTP checks a code. last is the step of the last code that was accepted: that one and older ones are refused.
	CheckTOTP(secret []byte, code string, now time.Time, last int64) (step int64, ok bool)
}

// noAuth stands where Parts.Auth is nil: nobody can sign in.
type noAuth struct{}

func (noAuth) NewToken(Purpose) (string, []byte)        { s := NewSecret("off_"); return "", s.Hash() }
func (noAuth) HashToken(Purpose, string) ([]byte, bool) { return nil, false }
func (noAuth) NewTOTPSecret() []byte                    { return nil }
func (noAuth) TOTPURI(string, []byte) string            { return "" }
func (noAuth) BeginLogin(string, netip.Addr) (func(), time.Duration, bool) {
	return nil, time.Hour, false
}
func (noAuth) CheckTOTP([]byte, string, time.Time, int64) (int64, bool) { return 0, false }

// Token is the secret of a session or of a link. Whatever prints it hides it; Reveal is for the cookie and the mail.
type Token struct {
	text string
}

// Reveal returns the token itself.
func (t Token) Reveal() string { return t.text }

// String returns an ellipsis.
func (t Token) String() string { return "…" }

// Format prints String whatever the verb.
func (t Token) Format(f fmt.State, _ rune) { io.WriteString(f, t.String()) }

// LogValue keeps the token out of log/slog.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText refuses to put a token into a document by accident.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// IdentityTx is the part of Tx for tenants, users, sessions, members, invitations, API keys and edge tokens. Rows are found
// by exact keys; lists come in the order of their IDs, after the given one, and at most limit of them. Update… and Delete…
// return ErrNoRow where there is no such row; those for many rows do not.
type IdentityTx interface {
	InsertTenant(*Tenant) error
	// FindTenant returns a tenant that is not deleted.
	FindTenant(id string) (*Tenant, error)
	// FindTenants returns tenants that are not deleted.
	FindTenants(after string, limit int) ([]*Tenant, error)
	// UpdateTenant writes all fields but ID and CreatedAt, also of a deleted tenant.
	UpdateTenant(*Tenant) error
	// FindDeletedTenants returns the IDs of tenants deleted before t.
	FindDeletedTenants(t time.Time, limit int) ([]string, error)
	// PurgeTenant removes the row and those of its members, invitations and API keys.
	PurgeTenant(id string) error

	InsertUser(*User) error
	FindUser(id string) (*User, error)
	// FindUserByEmail takes what EmailKey returned.
	FindUserByEmail(key string) (*User, error)
	// UpdateUser writes all fields but ID, Email and CreatedAt.
	UpdateUser(*User) error
	// DeleteUser removes the user with memberships, sessions and links.
	DeleteUser(id string) error
	// CountOperators returns how many users are operators of the platform.
	CountOperators() (int, error)
	// FindOrphans returns the IDs of users who belong to no tenant, are no operators and were last changed before t.
	FindOrphans(t time.Time, limit int) ([]string, error)
	// FindSealedUsers returns users with something sealed.
	FindSealedUsers(after string, limit int) ([]*User, error)

	InsertMember(*Member) error
	// FindMember and FindMembers also set the user's Email.
	FindMember(tenantID, userID string) (*Member, error)
	FindMembers(tenantID, after string, limit int) ([]*Member, error)
	// FindMemberships returns the tenants of a user that are not deleted, first joined first.
	FindMemberships(userID string) ([]*Membership, error)
	UpdateMember(*Member) error
	DeleteMember(tenantID, userID string) error
	CountMembers(tenantID string) (int, error)
	CountOwners(tenantID string) (int, error)

	InsertSession(*Session) error
	FindSession(hash []byte) (*Session, error)
	DeleteSession(hash []byte) error
	DeleteSessionsOf(userID string) error
	// TrimSessions leaves a user the newest sessions, keep of them.
	TrimSessions(userID string, keep int) error
	// TouchSession sets SeenAt, unless it is later already, or the session gone.
	TouchSession(hash []byte, t time.Time) error

	InsertSignup(*Signup) error
	FindSignup(hash []byte) (*Signup, error)
	// CountSignups and DeleteSignups take what EmailKey returned.
	CountSignups(key string) (int, error)
	DeleteSignups(key string) error

	InsertReset(*Reset) error
	FindReset(hash []byte) (*Reset, error)
	// CountResets counts those that expire after t.
	CountResets(userID string, t time.Time) (int, error)
	DeleteResetsOf(userID string) error

	InsertInvitation(*Invitation) error
	FindInvitation(tenantID, id string) (*Invitation, error)
	FindInvitationByHash(hash []byte) (*Invitation, error)
	FindInvitations(tenantID, after string, limit int) ([]*Invitation, error)
	CountInvitations(tenantID string) (int, error)
	DeleteInvitation(tenantID, id string) error
	// DeleteInvitationsTo takes what EmailKey returned.
	DeleteInvitationsTo(tenantID, key string) error
	DeleteInvitationsBy(tenantID, userID string) error
	DeleteInvitationsOf(tenantID string) error

	InsertAPIKey(*APIKey) error
	FindAPIKey(tenantID, id string) (*APIKey, error)
	FindAPIKeyByHash(hash []byte) (*APIKey, error)
	FindAPIKeys(tenantID, after string, limit int) ([]*APIKey, error)
	CountAPIKeys(tenantID string) (int, error)
	// UpdateAPIKey writes Prefix, Hash and Version.
	UpdateAPIKey(*APIKey) error
	DeleteAPIKey(tenantID, id string) error
	DeleteAPIKeysOf(tenantID string) error
	// TouchAPIKey sets LastUsedAt, unless it is later already, or the key gone.
	TouchAPIKey(id string, t time.Time) error

	InsertEdgeToken(*EdgeToken) error
	FindEdgeToken(id string) (*EdgeToken, error)
	FindEdgeTokenByHash(hash []byte) (*EdgeToken, error)
	FindEdgeTokens(after string, limit int) ([]*EdgeToken, error)
	CountEdgeTokens() (int, error)
	DeleteEdgeToken(id string) error
	TouchEdgeToken(id string, t time.Time) error

	// DeleteExpired removes sessions, sign-ups, password resets and invitations that ended before now, or sessions not used
	// since idle; at most limit of each. It returns how many.
	DeleteExpired(now, idle time.Time, limit int) (int, error)
}

// identity is the Plane's own state for people and credentials.
type identity struct {
	mu   sync.Mutex // guards used
	used map[use]time.Time

	tenantHooks []func(Tx, *Tenant) error // see onTenantChange
}

// onTenantChange has fn called in the transaction in which a tenant is suspended, comes back, gains or loses trust, or is
// deleted (DeletedAt is set then). It is for the init functions of the other nouns: what is the tenant's follows.
func (p *Plane) onTenantChange(fn func(tx Tx, tenant *Tenant) error) {
	p.identity.tenantHooks = append(p.identity.tenantHooks, fn)
}

func (p *Plane) tenantChanged(tx Tx, tenant *Tenant) error {
	for _, fn := range p.identity.tenantHooks {
		if err := fn(tx, tenant); err != nil {
			return err
		}
	}
	return nil
}

// use is a credential that was used: one of the fields is set.
type use struct{ session, apiKey, edgeToken string }

func (p *Plane) initIdentity() {
	p.identity.used = make(map[use]time.Time)
	if p.auth == nil {
		p.auth = noAuth{}
	}
}

func (p *Plane) identityWorkers() []worker {
	return []worker{
		{name: "credential-use", every: usedEvery, run: p.storeUses, here: true},
		{name: "identity", every: time.Hour, run: p.tidyIdentity},
	}
}

// usedEvery is how exactly the last use of a credential is known, so that using one is no write.
const usedEvery = time.Minute

// touch remembers that a credential was used now. stored is what the database says.
func (p *Plane) touch(u use, stored time.Time) {
	now := p.now()
	if now.Sub(stored) < usedEvery {
		return
	}
	p.identity.mu.Lock()
	p.identity.used[u] = now
	p.identity.mu.Unlock()
}

// usesAtOnce keeps other writers from waiting long.
const usesAtOnce = 500

// storeUses writes down which credentials were used.
func (p *Plane) storeUses(ctx context.Context) error {
	p.identity.mu.Lock()
	used := p.identity.used
	p.identity.used = make(map[use]time.Time, len(used))
	p.identity.mu.Unlock()
	for len(used) > 0 {
		var some []use
		for u := range used {
			if some = append(some, u); len(some) == usesAtOnce {
				break
			}
		}
		err := p.store.Update(ctx, func(tx Tx) error {
			for _, u := range some {
				var err error
				switch at := used[u]; {
				case u.session != "":
					err = tx.TouchSession([]byte(u.session), at)
				case u.apiKey != "":
					err = tx.TouchAPIKey(u.apiKey, at)
				case u.edgeToken != "":
					err = tx.TouchEdgeToken(u.edgeToken, at)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("storing when credentials were used: %w", err) // what is lost comes again with the next use
		}
		for _, u := range some {
			delete(used, u)
		}
	}
	return nil
}

// deletedFor is how long a deleted tenant's rows, and users without any tenant, are kept.
const deletedFor = 30 * 24 * time.Hour

// tidyIdentity removes what has ended.
func (p *Plane) tidyIdentity(ctx context.Context) error {
	const some = 500
	for {
		removed := 0
		err := p.store.Update(ctx, func(tx Tx) error {
			now := p.now()
			var err error
			if removed, err = tx.DeleteExpired(now, now.Add(-SessionIdle), some); err != nil {
				return err
			}
			tenants, err := tx.FindDeletedTenants(now.Add(-deletedFor), some)
			if err != nil {
				return err
			}
			for _, id := range tenants {
				if err := tx.PurgeTenant(id); err != nil {
					return err
				}
			}
			users, err := tx.FindOrphans(now.Add(-deletedFor), some)
			if err != nil {
				return err
			}
			for _, id := range users {
				if err := tx.DeleteUser(id); err != nil {
					return err
				}
				if err := p.audit(tx, system, "user.deleted", "", id, nil, nil); err != nil {
					return err
				}
			}
			removed += len(tenants) + len(users)
			return nil
		})
		if err != nil || removed == 0 {
			return err
		}
	}
}

// errNoCredential is what all credentials that are not good have in common: unknown, revoked, expired, of nobody any more.
func errNoCredential() *Error {
	return Errorf(Unauthenticated, "The API key, token or session is not valid: it may have ended or been revoked.")
}

// requireSession refuses who did not sign in as a person.
func requireSession(who *Principal) error {
	switch {
	case who == nil || who.UserID == "" && who.APIKeyID == "":
		return Errorf(Unauthenticated, "Sign in first.")
	case who.APIKeyID != "" || who.UserID == "":
		return Errorf(Forbidden, "This needs somebody who signed in; an API key does not do.")
	}
	return nil
}

// covers reports whether who may hand on all of the wanted scopes, having them.
func covers(who *Principal, wanted Scopes) bool {
	if who.System {
		return true
	}
	for _, s := range wanted {
		if !who.Scopes.Has(s) {
			return false
		}
	}
	return true
}

// whileSuspended returns what is left of scopes in a suspended tenant: reading, and what has nothing to do with a tenant.
func whileSuspended(scopes Scopes) Scopes {
	var left Scopes
	for _, s := range []Scope{DomainsRead, ConnectionsRead, UsageRead, AuditRead, Platform} {
		if scopes.Has(s) {
			left = append(left, s)
		}
	}
	return left
}

// faultAt returns the fault of a field, nil for none.
func faultAt(pointer string, err error) *Fault {
	if err == nil {
		return nil
	}
	return &Fault{pointer, err.Error()}
}

// refuse returns an Invalid Error with those faults that are not nil; nil if all are.
func refuse(faults ...*Fault) error {
	e := Errorf(Invalid, "The request has faults.")
	for _, f := range faults {
		if f != nil {
			e.Faults = append(e.Faults, *f)
		}
	}
	if len(e.Faults) == 0 {
		return nil
	}
	return e
}

// as returns who as the user himself, where a request without a credential turned out to come from him.
func (p *Principal) as(userID string) *Principal {
	return &Principal{UserID: userID, ClientAddr: p.ClientAddr, RequestID: p.RequestID}
}

// facts are what the audit log shows of what has no more to show: no e-mail address, as a deleted user stays there by ID alone.
type facts map[string]any
