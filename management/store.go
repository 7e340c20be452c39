package management

import (
	"context"
	"encoding/json"
	"time"
)

// Store keeps everything. Package store has the one implementation.
//
// A store MUST be safe for concurrent use by several instances of the service on one PostgreSQL.
type Store interface {
	// View calls fn with a consistent snapshot that it can only read.
	View(ctx context.Context, fn func(Tx) error) error

	// Update calls fn in a transaction and commits if it returns nil. All Updates of all instances run one after the other:
	// what fn reads stays true until the commit. Keep it short and do no I/O but the database's in it. fn may be called again
	// from the start where the database asked to retry, so it must not leave traces outside of the transaction.
	Update(ctx context.Context, fn func(Tx) error) error

	// Changed returns a channel that is closed at the next commit, of any instance, that raised the revision. Take the
	// channel first, then read, then wait.
	Changed() <-chan struct{}

	// Lease takes or prolongs the named lease for owner and reports whether owner has it now. Background work runs where
	// the lease is; after ttl without a call it is free for others.
	Lease(ctx context.Context, name, owner string, ttl time.Duration) (held bool, err error)

	// Observations is what edges report, in transactions of its own.
	Observations

	// Ready returns nil while the database answers and has the schema of this binary.
	Ready(ctx context.Context) error

	Close() error
}

// Tx is what Store.View and Store.Update hand to their functions: all reads and writes of rows, grouped by noun. The methods
// check no rights. A row that is not there is reported by ErrNoRow, one that exists already by ErrRowExists.
// A Tx must not be used after the function returned, nor by two goroutines.
type Tx interface {
	// Revision returns the number of the last change that edges see.
	Revision() (uint64, error)

	// NextRevision counts one up and returns the new number. It can be called several times: each change its own.
	NextRevision() (uint64, error)

	// InsertEvent adds an entry to the audit log.
	InsertEvent(*Event) error

	// FindEvents returns entries, newest first.
	FindEvents(EventFilter) ([]*Event, error)

	// DeleteEventsBefore removes entries that are older, at most limit, and returns how many.
	DeleteEventsBefore(t time.Time, limit int) (int, error)

	IdempotencyTx
	IdentityTx
	DomainTx
	EdgeTx
	OverviewTx
}

// IdempotencyTx is the part of Tx that remembers answers to requests with an Idempotency-Key.
type IdempotencyTx interface {
	// InsertReply stores r; ErrRowExists where (Credential, Key) has one.
	InsertReply(r *Reply) error
	// UpdateReply sets Status, Header and Body of the reply of (Credential, Key).
	UpdateReply(r *Reply) error
	FindReply(credential, key string) (*Reply, error)
	DeleteReply(credential, key string) error
	// DeleteRepliesBefore removes what is older, at most limit rows, and returns how many.
	DeleteRepliesBefore(t time.Time, limit int) (int, error)
}

// Reply is a remembered answer.
type Reply struct {
	Credential  string // Actor of the principal
	Key         string // as the client sent it
	RequestHash []byte // HMAC-SHA-256 over method, path, query, tenant and body, under the credential
	Status      int    // 0 while the first request is still being answered
	Header      map[string]string
	Body        []byte // with `secret` null
	CreatedAt   time.Time
}

// Event is an entry of the audit log: who did what to which object, and how it looked before and after.
type Event struct {
	ID        string          `json:"id"` // evt_…
	Time      time.Time       `json:"time"`
	TenantID  string          `json:"tenant,omitempty"` // empty: the platform's
	Actor     string          `json:"actor"`            // usr_…, key_…, etk_… or "system"
	Action    string          `json:"action"`           // noun.verb, such as domain.created
	Object    string          `json:"object,omitempty"` // the ID of what was changed
	ClientIP  string          `json:"client_ip,omitempty"`
	RequestID string          `json:"request_id,omitempty"`
	Before    json.RawMessage `json:"before"` // null where there was nothing; never a secret
	After     json.RawMessage `json:"after"`
}

// EventFilter selects entries of the audit log.
type EventFilter struct {
	TenantID string    // empty: of all tenants and the platform's own
	Platform bool      // with a TenantID: the platform's own too, and what became of all tenants
	Actor    string    // empty: all
	Action   string    // empty: all
	Object   string    // empty: all
	From, To time.Time // zero: open
	Before   string    // the ID after which to go on; entries have lower ones
	Limit    int
}
