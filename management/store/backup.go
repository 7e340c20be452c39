package store

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"strconv"
	"time"
	"unicode/utf8"
)

// A backup is a gzip stream of lines of JSON, the same for both databases, so that it also moves an installation from one to
// the other:
//
//	{"format":"pqproxy-backup","version":1,"schema":4,"revision":420,"created_at":"2026-01-02T15:04:05Z"}
//	{"table":"tenants","columns":["id","name"]}
//	["ten_…","acme"]
//	…
//	{"rows":123,"sha256":"…"}
//
// A table's line is followed by its rows. Numbers, texts, booleans and null are JSON's; bytes are {"b":base64}, and so are, as
// {"t":base64}, texts that are not UTF-8. The last line has the number of rows and the SHA-256 of all lines before it, in hex:
// it tells damage, not forgery. Secrets are in it as the database has them, hashed or sealed; the master key is not. Keep it as
// safe as the database all the same.
//
// Connection records are not in it: they are many, they go after days, and nothing depends on them. What was counted of
// connections, usage, is. Nor are sessions, links to reset passwords, and leases: see tables.go.
const (
	backupFormat  = "pqproxy-backup"
	backupVersion = 1
)

// backupHeader is the first line.
type backupHeader struct {
	Format    string    `json:"format"`
	Version   int       `json:"version"`
	Schema    schema    `json:"schema"`
	Revision  uint64    `json:"revision"`
	CreatedAt time.Time `json:"created_at"`
}

// backupTable begins a table.
type backupTable struct {
	Table   string   `json:"table"`
	Columns []string `json:"columns"`
}

// backupEnd is the last line.
type backupEnd struct {
	Rows   int64  `json:"rows"`
	SHA256 string `json:"sha256"`
}

// Backup writes everything but connection records, as it is at one moment, while the service goes on. A backup that ended with
// an error is of no use.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	if err := s.Ready(ctx); err != nil {
		return err
	}
	begun, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true, Isolation: s.d.viewIsolation})
	if err != nil {
		return s.fault(ctx, fmt.Errorf("beginning to read: %w", err))
	}
	defer begun.Rollback()
	if s.d.unhurried != "" {
		if _, err := begun.ExecContext(ctx, s.d.unhurried); err != nil {
			return err
		}
	}
	out := newBackupWriter(w)
	if err := s.backUp(ctx, begun, out); err != nil {
		return fmt.Errorf("writing the backup: %w", err)
	}
	return out.finish()
}

func (s *Store) backUp(ctx context.Context, on *sql.Tx, out *backupWriter) error {
	tables, err := s.d.tables(ctx, on)
	if err != nil {
		return err
	}
	head := backupHeader{Format: backupFormat, Version: backupVersion, Schema: s.schema, CreatedAt: time.Now().UTC().Truncate(time.Second)}
	if err := on.QueryRowContext(ctx, `SELECT revision FROM feed_revision`).Scan(&head.Revision); err != nil {
		return err
	}
	if err := out.line(head); err != nil {
		return err
	}
	for _, t := range tables {
		if err := out.line(backupTable{t.name, t.columnNames()}); err != nil {
			return err
		}
		if err := backUpRows(ctx, on, t, out); err != nil {
			return fmt.Errorf("table %s: %w", t.name, err)
		}
	}
	return nil
}

// backUpRows writes the rows of a table in the order of its key, so that two backups of the same rows are alike.
func backUpRows(ctx context.Context, on *sql.Tx, t *table, out *backupWriter) error {
	query := `SELECT ` + quoted(t.columnNames()...) + ` FROM ` + quoted(t.name)
	if len(t.key) > 0 {
		query += ` ORDER BY ` + quoted(t.key...)
	}
	rows, err := on.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	values, to := make([]any, len(t.columns)), make([]any, len(t.columns))
	for i := range values {
		to[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(to...); err != nil {
			return err
		}
		if err := out.row(t, values); err != nil {
			return err
		}
	}
	return rows.Err()
}

// backupWriter writes lines, counting rows and hashing on the way.
type backupWriter struct {
	zip  *gzip.Writer
	buf  *bufio.Writer // to zip and sum
	sum  hash.Hash
	text []byte // the line that is being made
	rows int64
}

func newBackupWriter(w io.Writer) *backupWriter {
	zip, sum := gzip.NewWriter(w), sha256.New()
	return &backupWriter{zip: zip, sum: sum, buf: bufio.NewWriterSize(io.MultiWriter(zip, sum), 64<<10)}
}

func (w *backupWriter) line(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.buf.Write(append(text, '\n'))
	return err
}

func (w *backupWriter) row(t *table, values []any) (err error) {
	w.text = append(w.text[:0], '[')
	for i, v := range values {
		if i > 0 {
			w.text = append(w.text, ',')
		}
		if w.text, err = appendValue(w.text, v); err != nil {
			return fmt.Errorf("column %s: %w", t.columns[i].name, err)
		}
	}
	if len(w.text) > maxBackupLine-2 {
		return fmt.Errorf("a row has more than %d MiB and could not be read back", maxBackupLine>>20)
	}
	w.rows++
	w.text = append(w.text, ']', '\n')
	_, err = w.buf.Write(w.text)
	return err
}

func (w *backupWriter) finish() error {
	if err := w.buf.Flush(); err != nil {
		return err
	}
	if err := w.line(backupEnd{w.rows, hex.EncodeToString(w.sum.Sum(nil))}); err != nil {
		return err
	}
	if err := w.buf.Flush(); err != nil {
		return err
	}
	return w.zip.Close()
}

// appendValue appends what a database returned for a column, as JSON.
func appendValue(to []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(to, "null"...), nil
	case bool:
		return strconv.AppendBool(to, v), nil
	case int64:
		return strconv.AppendInt(to, v, 10), nil
	case float64:
		text, err := json.Marshal(v)
		return append(to, text...), err
	case string:
		if !utf8.ValidString(v) {
			return appendBytes(to, "t", []byte(v)), nil
		}
		text, err := json.Marshal(v)
		return append(to, text...), err
	case []byte:
		return appendBytes(to, "b", v), nil
	}
	return nil, fmt.Errorf("a backup knows no %T", v)
}

func appendBytes(to []byte, kind string, b []byte) []byte {
	to = append(to, `{"`+kind+`":"`...)
	to = base64.StdEncoding.AppendEncode(to, b)
	return append(to, `"}`...)
}
