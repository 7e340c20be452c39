package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// tx implements management.Tx. Its methods by noun are in the files named after the nouns.
type tx struct {
	ctx     context.Context
	d       *dialect
	on      *sql.Tx
	revised bool // NextRevision was called: waiting pollers are to be told

	// failed is the first error of a statement. PostgreSQL takes no further statement in the transaction then and commits
	// nothing; SQLite would go on. So that both behave alike, and tests on SQLite tell, nothing goes on here either.
	// Where a row may exist already, see insert.
	failed error

	edges *edgesFound // see FindEdges
}

// fail remembers that a statement failed.
func (t *tx) fail(err error) error {
	err = t.d.rowError(err)
	if t.failed == nil {
		t.failed = err
	}
	return err
}

// usable returns an error once a statement has failed.
func (t *tx) usable() error {
	if t.failed != nil {
		return fmt.Errorf("the transaction ended when a statement failed: %w", t.failed)
	}
	return nil
}

// exec runs a statement, whose parameters are written as ?, and returns how many rows it touched. A row that exists
// already is management.ErrRowExists and, as every error of a statement, ends the transaction.
func (t *tx) exec(query string, args ...any) (rows int64, err error) {
	if err := t.usable(); err != nil {
		return 0, err
	}
	result, err := t.on.ExecContext(t.ctx, t.d.rebind(query), args...)
	if err != nil {
		return 0, t.fail(err)
	}
	return result.RowsAffected()
}

// insert runs an INSERT that ends in ON CONFLICT DO NOTHING: a row that exists already is management.ErrRowExists, and the
// transaction goes on.
func (t *tx) insert(query string, args ...any) error {
	rows, err := t.exec(query, args...)
	if err == nil && rows == 0 {
		err = management.ErrRowExists
	}
	return err
}

// execOne is exec for a statement that must touch one row: none is management.ErrNoRow.
func (t *tx) execOne(query string, args ...any) error {
	rows, err := t.exec(query, args...)
	if err == nil && rows == 0 {
		err = management.ErrNoRow
	}
	return err
}

// get reads one row into to: none is management.ErrNoRow.
func (t *tx) get(query string, args []any, to ...any) error {
	if err := t.usable(); err != nil {
		return err
	}
	err := t.on.QueryRowContext(t.ctx, t.d.rebind(query), args...).Scan(to...)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return management.ErrNoRow
	case err != nil:
		return t.fail(err)
	}
	return nil
}

// each calls scan for every row of the result. scan must run no statement: PostgreSQL has one result at a time.
func (t *tx) each(query string, args []any, scan func(*sql.Rows) error) error {
	if err := t.usable(); err != nil {
		return err
	}
	rows, err := t.on.QueryContext(t.ctx, t.d.rebind(query), args...)
	if err != nil {
		return t.fail(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return t.fail(err)
	}
	return nil
}

// Revision returns the number of the last change.
func (t *tx) Revision() (revision uint64, err error) {
	err = t.get(`SELECT revision FROM feed_revision WHERE single = 1`, nil, &revision) // by the index: the row leaves many dead ones behind
	return revision, err
}

// NextRevision counts one up.
func (t *tx) NextRevision() (revision uint64, err error) {
	t.revised = true
	err = t.get(`UPDATE feed_revision SET revision = revision + 1 WHERE single = 1 RETURNING revision`, nil, &revision)
	return revision, err
}

// micros is how times are stored; the zero Time is NULL.
func micros(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

// moment scans what micros wrote.
type moment struct{ to *time.Time }

func (m moment) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*m.to = time.Time{}
	case int64:
		*m.to = time.UnixMicro(v).UTC()
	default:
		return fmt.Errorf("a time is stored as %T", v)
	}
	return nil
}

// text is how documents are stored.
func text(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// blob is how bytes are stored: nil is no NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// document scans what text wrote into a pointer; NULL leaves it as it is.
type document struct{ to any }

func (d document) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		return json.Unmarshal([]byte(v), d.to)
	case []byte:
		return json.Unmarshal(v, d.to)
	}
	return fmt.Errorf("a document is stored as %T", v)
}
