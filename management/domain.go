package management

import (
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// Status is where a domain is in its life.
type Status string

// The statuses. Until a domain was active for the first time it is the first of PendingDNS, Verifying, Issuing and Deploying
// that has not been passed.
const (
	PendingDNS Status = "pending_dns" // the name does not point at the edges yet
	Verifying  Status = "verifying"   // the tenant has not proven that the name is its own
	Issuing    Status = "issuing"     // the edges have no certificate for it
	Deploying  Status = "deploying"   // not all edges have it
	Active     Status = "active"
	Degraded   Status = "degraded"  // was active, and something of it fails
	Moved      Status = "moved"     // pointed at the edges and does so no longer
	Suspended  Status = "suspended" // by its own setting, or because the tenant is
	Deleting   Status = "deleting"  // removed; edges are letting go of it
)

// Statuses lists them.
var Statuses = []Status{PendingDNS, Verifying, Issuing, Deploying, Active, Degraded, Moved, Suspended, Deleting}

// Proof is how a tenant has shown that a name is its own.
type Proof string

// The proofs, strongest first. The empty value: none.
const (
	ProofTrusted Proof = "trusted" // the operator vouches for the tenant
	ProofTXT     Proof = "txt"     // the token stands in DNS at _pqproxy.NAME
	ProofHTTP    Proof = "http"    // the token stands at http://NAME/.well-known/pqproxy/TOKEN
	ProofDNS     Proof = "dns"     // the name points at the edges, and nobody else claims it
)

// DomainRow is a tenant's claim of a name with the settings for it, as it is stored.
type DomainRow struct {
	ID, TenantID, Name string

	// Settings are in normal form, with the tenant, without the certificate's pair: see CertificateRow.
	Settings *domain.Domain

	Token    string // what proves ownership: 26 characters of lower-case base32, for the life of the claim
	Version  int64  // counts changes that the tenant makes, from 1
	Revision uint64 // of the last change that edges see; 0: they never saw it

	Proof    Proof // not empty: the claim is proven, and no other claim of the name is
	ProvenAt time.Time

	Facts       DomainFacts
	Status      Status // derived at the last change of anything it depends on: what lists are filtered by
	ActivatedAt time.Time

	DueAt time.Time // when to check it again; zero: never
	Tries int       // checks in a row that left it pending

	// CertificateNotAfter is when the certificate in use ends, as far as known: what lists are filtered by.
	CertificateNotAfter time.Time

	CreatedAt, UpdatedAt time.Time
	DeletingAt           time.Time // zero unless Status is Deleting
}

// Published reports whether the domain is in the feed, or was until it is deleted.
func (r *DomainRow) Published() bool { return r.Proof != "" && r.DeletingAt.IsZero() }

// DomainFilter selects domains, sorted by name and, across tenants, by ID.
type DomainFilter struct {
	TenantID string
	Status   Status // empty: all
	Name     string // in normal form; empty: all
	Contains string // a part of the name, in lower case; empty: all
	After    string // the name behind which to begin
	Limit    int

	// ExpiringBefore selects domains whose certificate ends before it, sorted by that and by ID; After is not used then, but
	// AfterTime and AfterID.
	ExpiringBefore time.Time
	AfterTime      time.Time
	AfterID        string
}

// DomainTx is the part of Tx about domains, their certificates and what of them is in the feed.
type DomainTx interface {
	// InsertDomain adds a row; ErrRowExists where the tenant has one of that name.
	InsertDomain(*DomainRow) error
	// UpdateDomain stores everything but ID, TenantID, Name, Token and CreatedAt. ErrRowExists where Proof is set and another
	// claim of the name is proven.
	UpdateDomain(*DomainRow) error
	DeleteDomain(id string) error
	// DeleteDomainsOfTenant removes all claims of a tenant with their pairs, remembers that they ended, marks what was in the
	// feed as removed with that revision, and makes others' claims of the names due.
	DeleteDomainsOfTenant(tenantID string, revision uint64, at time.Time) error
	// FindDomainByID finds it if it is that tenant's; an empty tenantID: anybody's.
	FindDomainByID(tenantID, id string) (*DomainRow, error)
	// FindDomainsByID finds those that are there, of any tenants, by ID.
	FindDomainsByID(ids []string) ([]*DomainRow, error)
	FindDomainByName(tenantID, name string) (*DomainRow, error)
	FindDomains(DomainFilter) ([]*DomainRow, error)
	// FindDomainsByStatus returns domains of all tenants with IDs after the given one, by ID, at most limit.
	FindDomainsByStatus(status Status, afterID string, limit int) ([]*DomainRow, error)
	// FindDomainsOfTenant returns domains with IDs after the given one, by ID, at most limit.
	FindDomainsOfTenant(tenantID, afterID string, limit int) ([]*DomainRow, error)
	// CountDomains counts those that are not being deleted.
	CountDomains(tenantID string) (int, error)

	// FindDomainOwner returns the proven claim of exactly that name, or ErrNoRow.
	FindDomainOwner(name string) (*DomainRow, error)
	// FindDomainsOwnedByName returns the proven claims of those names: what edges call them by.
	FindDomainsOwnedByName(names []string) ([]*DomainRow, error)
	// FindDomainRivals returns the unproven claims of that name of all tenants but the given one, at most limit.
	FindDomainRivals(tenantID, name string, limit int) ([]*DomainRow, error)
	// DomainContested reports whether another tenant than the given one claims the name, or held a claim that ended after
	// since; for a name that a wildcard covers, or a wildcard, also that wildcard, or what it covers.
	DomainContested(tenantID, name string, since time.Time) (bool, error)
	// InsertDomainClaim remembers that a tenant's claim of a name ended.
	InsertDomainClaim(tenantID, name string, ended time.Time) error
	DeleteDomainClaimsBefore(t time.Time, limit int) (int, error)

	// FindDomainsDue returns domains to check: at most perTenant of each tenant, the longest due first.
	FindDomainsDue(now time.Time, perTenant, limit int) ([]*DomainRow, error)
	// SetDomainsDue makes all domains of a tenant due.
	SetDomainsDue(tenantID string, at time.Time) error

	// PutCertificate stores the pair of a domain, in place of the one before.
	PutCertificate(*CertificateRow) error
	FindCertificate(domainID string) (*CertificateRow, error)
	// FindCertificates returns the pairs of at most 1,000 domains, without ChainPEM and Key.
	FindCertificates(domainIDs []string) ([]*CertificateRow, error)
	// DeleteCertificate removes a domain's pair; none is no error.
	DeleteCertificate(domainID string) error
	// FindSealedKeys returns IDs, domains and sealed keys alone, with IDs after the given one, by ID.
	FindSealedKeys(afterID string, limit int) ([]*CertificateRow, error)
	// FindSealedHeads returns the different first n bytes of what is sealed in the database, of certificates and of users.
	FindSealedHeads(n int) ([][]byte, error)
	// UpdateSealedKey stores another wrapping of the same key, in the certificate and in the feed.
	UpdateSealedKey(certificateID, domainID string, key []byte) error

	FeedTx
}

// FeedRecord is what edges are to know of a name.
type FeedRecord struct {
	Name     string
	Revision uint64 // of the change that made it so
	DomainID string
	TenantID string

	// Removed: the name is served no more. Nothing below is set then, but At, when that was.
	Removed bool
	At      time.Time

	// Settings is the record of section 4 as JSON, in normal form, without key_pem and without suspended: see
	// Plane.appendFeedRecord.
	Settings  []byte
	SealedKey []byte // nil: the domain has no pair of its own
	Suspended bool
}

// FeedTx is the part of Tx about what edges are told. A name is there at most once: what is served, or that it no longer is.
type FeedTx interface {
	PutFeedRecord(*FeedRecord) error
	// FindFeedRecord returns what is known of a name, removed or not, or ErrNoRow.
	FindFeedRecord(name string) (*FeedRecord, error)
	// SuspendFeedRecords sets Suspended of a tenant's records, where off to each domain's own setting, and the revision of
	// those that it changed, and of their domains.
	SuspendFeedRecords(tenantID string, on bool, revision uint64) error
	// FeedRecordsDiffer reports whether SuspendFeedRecords would change any.
	FeedRecordsDiffer(tenantID string, on bool) (bool, error)
	// EachFeedRecord calls fn with the records changed after that revision, by revision, one at a time: the record is good
	// until fn returns. After revision 0 that is the full set, without what was removed.
	EachFeedRecord(after uint64, fn func(*FeedRecord) error) error
	// FeedHorizon returns the revision from which on every removal is remembered: a delta after an older one would be
	// incomplete.
	FeedHorizon() (uint64, error)
	// PruneFeed forgets removals before t, at most limit, and lifts the horizon.
	PruneFeed(t time.Time, limit int) (int, error)
}
