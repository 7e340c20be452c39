// Package store keeps the management plane's rows in SQLite or PostgreSQL: one implementation on database/sql, with the
// few things in which the two differ in dialect.go.
//
//	s, err := store.Open(ctx, store.Options{Driver: store.SQLite, Source: "/var/lib/pqproxy/management.db"})
//
// Times are microseconds since 1970, documents are JSON texts, secrets arrive hashed or sealed.
//
// What fails because the database cannot be reached, is full or too busy wraps a *management.Error with the code
// unavailable; the cause is in the text of the error and in the log.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// Store implements management.Store.
type Store struct {
	d   *dialect
	log *slog.Logger

	write *sql.DB // SQLite: one connection; PostgreSQL: two, so that Updates queue up in Go and leave the others to readers
	read  *sql.DB // many connections; SQLite's can only read

	// Connection records. SQLite keeps them in a file of their own, so that the many commits there never wait for, nor hold
	// up, the few that matter here; PostgreSQL in the same database, with connections of their own.
	observe     *sql.DB // writes; SQLite: one connection
	observeRead *sql.DB

	more []*sql.DB // what else is to be closed

	schema  schema // of the files, when they were opened
	changes changes
	fold    sweep
	stop    context.CancelFunc
	running sync.WaitGroup // the listener for other instances' changes, or SQLite's checkpoints; ends with stop
}

// changes wakes who waits for a revision.
type changes struct {
	mu   sync.Mutex // guards next
	next chan struct{}
}

func (c *changes) wait() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = make(chan struct{})
	}
	return c.next
}

func (c *changes) announce() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next != nil {
		close(c.next)
		c.next = nil
	}
}

// Changed returns a channel that is closed at the next commit that raised the revision. It may also be closed where nothing
// changed: after the connection that listens was lost, for one.
func (s *Store) Changed() <-chan struct{} { return s.changes.wait() }

// How long a transaction takes at most, waiting for its turn included, whatever the caller's context says.
const (
	viewLimit   = time.Minute
	updateLimit = 30 * time.Second
)

// View calls fn with a snapshot that it can only read.
func (s *Store) View(ctx context.Context, fn func(management.Tx) error) error {
	limited, cancel := context.WithTimeout(ctx, viewLimit)
	defer cancel()
	return s.fault(ctx, s.inTx(limited, s.read, &sql.TxOptions{ReadOnly: true, Isolation: s.d.viewIsolation}, false, fn))
}

// attempts is how often a transaction is tried that the database broke off by itself.
const attempts = 5

// Update calls fn in a transaction that no other Update runs beside.
func (s *Store) Update(ctx context.Context, fn func(management.Tx) error) error {
	limited, cancel := context.WithTimeout(ctx, updateLimit)
	defer cancel()
	var err error
	for range attempts {
		if err = s.inTx(limited, s.write, nil, true, fn); err == nil || !s.d.retry(err) || limited.Err() != nil {
			break
		}
	}
	return s.fault(ctx, err)
}

// inTx is one transaction. It ends with fn, however that ends.
func (s *Store) inTx(ctx context.Context, db *sql.DB, opts *sql.TxOptions, writes bool, fn func(management.Tx) error) (err error) {
	begun, err := db.BeginTx(ctx, opts)
	if err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	defer begun.Rollback() // without effect once committed; also where fn panics
	t := &tx{ctx: ctx, d: s.d, on: begun}
	if writes && s.d.serialize != "" {
		if _, err := t.exec(s.d.serialize); err != nil {
			return fmt.Errorf("waiting for other writers: %w", err)
		}
	}
	if err := fn(t); err != nil {
		return err
	}
	if t.failed != nil {
		return fmt.Errorf("nothing is committed after a statement failed: %w", t.failed)
	}
	if t.revised && s.d.notify != "" {
		if _, err := t.exec(s.d.notify); err != nil {
			return fmt.Errorf("announcing the change: %w", err)
		}
	}
	err = begun.Commit()
	if t.revised {
		// Also where it failed: the connection may have been lost between the commit and the word of it.
		s.changes.announce()
	}
	if err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	return nil
}

// retryAfter is what clients are told while the database is away.
const retryAfter = 5 * time.Second

// fault makes an error recognisable that is the database's, and neither fn's nor the caller's, whose context is ctx.
func (s *Store) fault(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	if _, ok := errors.AsType[*management.Error](err); ok {
		return err
	}
	kind := s.d.classify(err)
	if kind != away && kind != tryAgain && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	s.log.Warn("the database is not available", "error", err)
	return fmt.Errorf("%w: %w", &management.Error{
		Code: management.Unavailable, Detail: "The service cannot reach its database just now. Try again in a moment.", RetryAfter: retryAfter,
	}, err)
}

// leaseSlack is how much later than a new lease an old one may end. One that ends later still was taken by a clock that has
// been put back since, and would otherwise be held until that clock caught up.
const leaseSlack = time.Minute

// Lease takes or prolongs a lease. Time is the database's where several instances share it.
func (s *Store) Lease(ctx context.Context, name, owner string, ttl time.Duration) (held bool, err error) {
	limited, cancel := context.WithTimeout(ctx, updateLimit)
	defer cancel()
	result, err := s.write.ExecContext(limited, s.d.rebind(`INSERT INTO leases (name, owner, until) VALUES (?, ?, `+s.d.nowMicros+` + ?)
		ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until
		WHERE leases.owner = excluded.owner OR leases.until < `+s.d.nowMicros+` OR leases.until > excluded.until + ?`),
		name, owner, ttl.Microseconds(), leaseSlack.Microseconds())
	if err != nil {
		return false, s.fault(ctx, fmt.Errorf("taking the lease %s: %w", name, err))
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

// readyLimit is how long Ready waits: whoever asks wants to know soon.
const readyLimit = 5 * time.Second

// Ready returns nil while the database answers and has the schema of this binary.
func (s *Store) Ready(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	version, err := schemaVersion(limited, s.read)
	if err != nil {
		return s.fault(ctx, fmt.Errorf("asking for the schema: %w", err))
	}
	return s.schema.check(version)
}

// Close ends what runs and closes the databases. Transactions that run end with an error or with their commit.
func (s *Store) Close() error {
	if s.stop != nil {
		s.stop()
	}
	s.running.Wait()
	var errs []error
	for _, db := range append(s.more, s.read, s.observeRead, s.write, s.observe) {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}
