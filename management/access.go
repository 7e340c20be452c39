package management

import (
	"net/netip"
	"slices"
)

// Role is what a member may do in a tenant.
type Role string

// The roles, each of which includes the ones before it.
const (
	Viewer   Role = "viewer"   // reads domains, connections, usage
	Operator Role = "operator" // also changes domains and certificates
	Admin    Role = "admin"    // also keys, members, and reads the audit log
	Owner    Role = "owner"    // also the tenant itself
)

// Roles lists the roles, weakest first.
var Roles = []Role{Viewer, Operator, Admin, Owner}

// Scope is a right. A credential has a set of them.
type Scope string

// The scopes.
const (
	DomainsRead       Scope = "domains:read"
	DomainsWrite      Scope = "domains:write"
	CertificatesWrite Scope = "certificates:write"
	ConnectionsRead   Scope = "connections:read"
	UsageRead         Scope = "usage:read"
	KeysWrite         Scope = "keys:write"
	MembersWrite      Scope = "members:write"
	AuditRead         Scope = "audit:read"
	All               Scope = "*"          // all of the above, and the tenant itself
	Platform          Scope = "platform:*" // edges, edge tokens, tenants: held by operators of the platform alone
)

// tenantScopes are what All stands for, apart from the tenant itself.
var tenantScopes = []Scope{DomainsRead, DomainsWrite, CertificatesWrite, ConnectionsRead, UsageRead, KeysWrite, MembersWrite, AuditRead}

// KnownScope reports whether s is one of the scopes.
func KnownScope(s Scope) bool { return s == All || s == Platform || slices.Contains(tenantScopes, s) }

// Scopes is a set of rights.
type Scopes []Scope

// Has reports whether s gives want. All gives every scope of a tenant, and never Platform.
func (s Scopes) Has(want Scope) bool {
	if slices.Contains(s, want) {
		return true
	}
	return want != Platform && slices.Contains(s, All)
}

// Scopes returns what a role gives in its tenant; nothing for what is no role.
func (r Role) Scopes() Scopes {
	switch r {
	case Viewer:
		return Scopes{DomainsRead, ConnectionsRead, UsageRead}
	case Operator:
		return Scopes{DomainsRead, DomainsWrite, CertificatesWrite, ConnectionsRead, UsageRead}
	case Admin:
		return slices.Clone(tenantScopes)
	case Owner:
		return Scopes{All}
	}
	return nil
}

// Principal is who calls: a user in a session, an API key, an edge, or the service itself. It is made anew for each request
// from what the database says at that moment, and never kept.
type Principal struct {
	UserID      string // usr_…, of a session; for a key: of whoever made it
	APIKeyID    string // key_…, where a key was presented
	EdgeTokenID string // etk_…, on the edge face
	TenantID    string // ten_…: the tenant whose rows exist for this call; empty for an edge, and for an operator without a tenant
	Role        Role   // of a session, in that tenant
	Scopes      Scopes // what it may do, Platform included where it holds it

	Email      string     // of the user, for people
	ClientAddr netip.Addr // where the request came from
	RequestID  string     // for the audit log
	System     bool       // background work of the service: may do everything, is "system" in the audit log
}

// Require returns nil if p has the scope, else a Forbidden Error that names it. A tenant's scope without a tenant is refused too.
func (p *Principal) Require(s Scope) error {
	switch {
	case p == nil:
		return Errorf(Unauthenticated, "Sign in, or send an API key as `Authorization: Bearer pqk_…`.")
	case p.System:
		return nil
	case !p.Scopes.Has(s):
		return Errorf(Forbidden, "This needs the scope %s.", s)
	case s != Platform && p.TenantID == "":
		return Errorf(Forbidden, "This needs a tenant, and the caller belongs to none.")
	}
	return nil
}

// Actor returns how the audit log calls p: an ID, or "system".
func (p *Principal) Actor() string {
	switch {
	case p == nil:
		return ""
	case p.APIKeyID != "":
		return p.APIKeyID
	case p.UserID != "":
		return p.UserID
	case p.EdgeTokenID != "":
		return p.EdgeTokenID
	case p.System:
		return "system"
	}
	return "anonymous"
}
