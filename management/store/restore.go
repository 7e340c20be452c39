package store

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// ErrNotEmpty is what Restore reports where there is something that it would have to remove.
var ErrNotEmpty = errors.New("the database is not empty: restore into a new one, or force it to lose what is there")

// revisionLift is how much higher the revision is after a restore than it was in the backup. Edges have seen the revisions
// behind the backup and refuse what has a lower one; nobody makes a million changes between a backup and its restore.
const revisionLift = 1_000_000

// maxBackupLine bounds a line of a backup: far more than the largest row, which has a certificate chain or a domain of 1 MiB.
const maxBackupLine = 64 << 20

// Restore puts a backup into an empty database, or, with force, in place of what is there. The whole backup is read and
// verified before anything is touched, and then written in one transaction: it is restored wholly or not at all. It must be of
// the same schema, so of the same version of pqproxy or one near to it; either database restores the other's.
//
// Everybody signs in anew. API keys and edge tokens are as they were: those that were revoked since the backup work again and
// are to be revoked again.
//
// The revision is then 1,000,000 above the higher one of backup and database, and edges get the full set.
func (s *Store) Restore(ctx context.Context, r io.Reader, force bool) error {
	if err := s.Ready(ctx); err != nil {
		return err
	}
	// A file of our own, because it is read twice and must not change in between.
	file, err := os.CreateTemp("", "pqproxy-restore")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	head, err := verifyBackup(ctx, io.TeeReader(r, file), s.schema)
	if err != nil {
		return fmt.Errorf("the backup is not usable, and nothing was changed: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}

	begun, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return s.fault(ctx, fmt.Errorf("beginning to write: %w", err))
	}
	defer begun.Rollback()
	for _, statement := range []string{s.d.unhurried, s.d.serialize} {
		if statement != "" {
			if _, err := begun.ExecContext(ctx, statement); err != nil {
				return s.fault(ctx, err)
			}
		}
	}
	if err := s.restore(ctx, begun, file, head, force); err != nil {
		return s.fault(ctx, fmt.Errorf("restoring, and nothing was changed: %w", err))
	}
	if s.d.notify != "" {
		if _, err := begun.ExecContext(ctx, s.d.notify); err != nil {
			return err
		}
	}
	if err := begun.Commit(); err != nil {
		return s.fault(ctx, fmt.Errorf("committing what was restored: %w", err))
	}
	s.changes.announce()
	return nil
}

func (s *Store) restore(ctx context.Context, on *sql.Tx, file io.Reader, head *backupHeader, force bool) error {
	tables, err := s.d.tables(ctx, on)
	if err != nil {
		return err
	}
	var current uint64
	if err := on.QueryRowContext(ctx, `SELECT revision FROM feed_revision`).Scan(&current); err != nil {
		return err
	}
	for _, t := range slices.Backward(tables) {
		if err := empty(ctx, on, t, force); err != nil {
			return err
		}
	}
	for _, name := range forgotten {
		if _, err := on.ExecContext(ctx, `DELETE FROM `+quoted(name)); err != nil {
			return err
		}
	}
	lines, err := readBackup(file)
	if err != nil {
		return err
	}
	if _, err := lines.header(); err != nil {
		return err
	}
	in := restorer{ctx: ctx, d: s.d, on: on, tables: tables}
	if err := lines.each(in.begin, in.row); err != nil {
		return err
	}
	if err := in.finish(); err != nil {
		return err
	}

	revision := max(head.Revision, current) + revisionLift
	for _, t := range []string{"feed_revision", "feed_horizon"} {
		// The horizon too: an edge may have seen changes after the backup, which no delta would take back.
		if _, err := on.ExecContext(ctx, s.d.rebind(`UPDATE `+t+` SET revision = ?`), int64(revision)); err != nil {
			return err
		}
	}
	after, err := json.Marshal(map[string]any{"backup_of": head.CreatedAt, "backup_revision": head.Revision, "revision": revision})
	if err != nil {
		return err
	}
	log := &tx{ctx: ctx, d: s.d, on: on}
	return log.InsertEvent(&management.Event{
		ID: management.NewID(management.EventID), Time: time.Now(), Actor: "system", Action: "database.restored", After: after,
	})
}

// empty removes the rows of a table, or says that there are some. Tables of one row, which migrations fill, are no rows.
func empty(ctx context.Context, on *sql.Tx, t *table, force bool) error {
	if !force && !slices.Equal(t.key, []string{"single"}) {
		var found int
		err := on.QueryRowContext(ctx, `SELECT 1 FROM `+quoted(t.name)+` LIMIT 1`).Scan(&found)
		if err == nil {
			return fmt.Errorf("%w (table %s)", ErrNotEmpty, t.name)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
	}
	_, err := on.ExecContext(ctx, `DELETE FROM `+quoted(t.name))
	return err
}

// verifyBackup reads a whole backup and returns its header if all of it is as it was written, and of that schema.
func verifyBackup(ctx context.Context, r io.Reader, want schema) (*backupHeader, error) {
	lines, err := readBackup(r)
	if err != nil {
		return nil, err
	}
	head, err := lines.header()
	if err != nil {
		return nil, err
	}
	if head.Schema != want {
		return nil, fmt.Errorf("it has schema %d and this version of pqproxy schema %d: restore it with the version that made it, then start this one",
			head.Schema, want)
	}
	var columns int
	begin := func(t *backupTable) error {
		columns = len(t.Columns)
		return ctx.Err()
	}
	row := func(values []any) error {
		if len(values) != columns {
			return fmt.Errorf("a row has %d values for %d columns", len(values), columns)
		}
		return nil
	}
	if err := lines.each(begin, row); err != nil {
		return nil, err
	}
	return head, nil
}

// backupReader reads the lines of a backup.
type backupReader struct {
	raw   *bufio.Reader // gzip reads no further than its end: what is behind it is seen
	lines *bufio.Scanner
	sum   hash.Hash // of the lines before the present one
	line  []byte
	n     int
	rows  int64
}

func readBackup(r io.Reader) (*backupReader, error) {
	raw := bufio.NewReader(r)
	zip, err := gzip.NewReader(raw)
	if err != nil {
		return nil, fmt.Errorf("reading it: %w", err)
	}
	zip.Multistream(false)
	b := &backupReader{raw: raw, lines: bufio.NewScanner(zip), sum: sha256.New()}
	b.lines.Buffer(make([]byte, 64<<10), maxBackupLine)
	return b, nil
}

// next goes to the next line.
func (b *backupReader) next() error {
	if b.n > 0 {
		b.sum.Write(b.line)
		b.sum.Write([]byte{'\n'})
	}
	b.n++
	scanned := b.lines.Scan()
	if err := b.lines.Err(); err != nil { // a scanner hands out what it had of a line even then
		return fmt.Errorf("line %d: %w", b.n, err)
	}
	if scanned {
		b.line = b.lines.Bytes()
		return nil
	}
	return fmt.Errorf("it ends after %d lines, before its last one", b.n-1)
}

func (b *backupReader) header() (*backupHeader, error) {
	if err := b.next(); err != nil {
		return nil, err
	}
	head := new(backupHeader)
	if err := json.Unmarshal(b.line, head); err != nil || head.Format != backupFormat {
		return nil, errors.New("it is no backup of pqproxy")
	}
	if head.Version != backupVersion {
		return nil, fmt.Errorf("it has version %d of the format, and this binary reads version %d", head.Version, backupVersion)
	}
	if head.Revision > 1<<62 {
		return nil, errors.New("its revision is out of range")
	}
	return head, nil
}

// each calls begin for each table and row for each row of it, and verifies the last line.
func (b *backupReader) each(begin func(*backupTable) error, row func([]any) error) error {
	begun := false
	for {
		if err := b.next(); err != nil {
			return err
		}
		if len(b.line) > 0 && b.line[0] == '[' {
			values, err := parseRow(b.line)
			if err == nil && !begun {
				err = errors.New("a row before any table")
			}
			if err == nil {
				err = row(values)
			}
			if err != nil {
				return fmt.Errorf("line %d: %w", b.n, err)
			}
			b.rows++
			continue
		}
		var line struct {
			backupTable
			backupEnd
		}
		if err := json.Unmarshal(b.line, &line); err != nil {
			return fmt.Errorf("line %d is no JSON of a backup", b.n)
		}
		if line.Table == "" {
			return b.finish(line.backupEnd)
		}
		begun = true
		if err := begin(&line.backupTable); err != nil {
			return fmt.Errorf("line %d: %w", b.n, err)
		}
	}
}

// finish checks the last line.
func (b *backupReader) finish(end backupEnd) error {
	if end.Rows != b.rows || end.SHA256 != hex.EncodeToString(b.sum.Sum(nil)) {
		return errors.New("it is damaged: its checksum does not fit")
	}
	if b.lines.Scan() {
		return errors.New("something follows its last line")
	}
	if err := b.lines.Err(); err != nil { // of gzip's own checksum too
		return err
	}
	if _, err := b.raw.ReadByte(); err != io.EOF {
		return errors.Join(errors.New("something follows its end"), err)
	}
	return nil
}

// parseRow reads the line of a row.
func parseRow(line []byte) ([]any, error) {
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.UseNumber()
	var values []any
	if err := decoder.Decode(&values); err != nil {
		return nil, errors.New("a row is no JSON")
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("something follows a row")
	}
	for i, v := range values {
		var err error
		if values[i], err = parseValue(v); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// parseValue is the other way of appendValue. What was a boolean may be a number, and a number a boolean: see restorer.row.
func parseValue(v any) (any, error) {
	switch v := v.(type) {
	case nil, bool, string:
		return v, nil
	case json.Number:
		if n, err := strconv.ParseInt(v.String(), 10, 64); err == nil {
			return n, nil
		}
		return v.Float64()
	case map[string]any:
		for kind, text := range v {
			encoded, ok := text.(string)
			if !ok || len(v) != 1 {
				break
			}
			b, err := base64.StdEncoding.DecodeString(encoded)
			switch {
			case err != nil:
			case kind == "b":
				return b, nil
			case kind == "t":
				return string(b), nil
			}
		}
	}
	return nil, errors.New("a value is of a kind that is not known")
}

// restorer writes the rows of a backup.
type restorer struct {
	ctx    context.Context
	d      *dialect
	on     *sql.Tx
	tables []*table

	done    []string // the tables of the backup until now
	into    *table
	columns []column // of into, in the backup's order
	args    []any    // rows that are not written yet
	full    string   // the statement that writes as many rows as go at once
}

// rowsAtOnce is how many rows one statement writes, unless it had too many parameters then: SQLite takes 32,766.
const (
	rowsAtOnce   = 100
	paramsAtOnce = 5000
)

// begin goes to a table. Names are the schema's: the backup's are only compared with them.
func (r *restorer) begin(t *backupTable) error {
	if err := r.flush(); err != nil {
		return err
	}
	i := slices.IndexFunc(r.tables, func(have *table) bool { return have.name == t.Table })
	if i < 0 {
		return errors.New("the database has no table of that name")
	}
	r.into, r.columns, r.full = r.tables[i], nil, ""
	if slices.Contains(r.done, r.into.name) {
		return fmt.Errorf("table %s comes twice", r.into.name)
	}
	r.done = append(r.done, r.into.name)
	for _, name := range t.Columns {
		i := slices.IndexFunc(r.into.columns, func(c column) bool { return c.name == name })
		if i < 0 || slices.ContainsFunc(r.columns, func(c column) bool { return c.name == name }) {
			return fmt.Errorf("table %s has other columns", r.into.name)
		}
		r.columns = append(r.columns, r.into.columns[i])
	}
	if len(r.columns) != len(r.into.columns) {
		return fmt.Errorf("table %s has other columns", r.into.name)
	}
	return nil
}

func (r *restorer) row(values []any) error {
	if len(values) != len(r.columns) {
		return fmt.Errorf("table %s: a row has %d values for %d columns", r.into.name, len(values), len(r.columns))
	}
	for i, v := range values {
		// Booleans are numbers in SQLite.
		switch n, isNumber := v.(int64); {
		case isNumber && r.columns[i].boolean:
			v = n != 0
		case v == true && !r.columns[i].boolean:
			v = int64(1)
		case v == false && !r.columns[i].boolean:
			v = int64(0)
		}
		r.args = append(r.args, v)
	}
	if len(r.args) < r.atOnce()*len(r.columns) {
		return nil
	}
	return r.flush()
}

func (r *restorer) atOnce() int { return max(1, min(rowsAtOnce, paramsAtOnce/len(r.columns))) }

// flush writes the rows that wait.
func (r *restorer) flush() error {
	if len(r.args) == 0 {
		return nil
	}
	rows := len(r.args) / len(r.columns)
	statement := r.full
	if rows != r.atOnce() || statement == "" {
		names := make([]string, len(r.columns))
		for i, c := range r.columns {
			names[i] = c.name
		}
		override := ""
		if r.d.numbered {
			override = " OVERRIDING SYSTEM VALUE" // rows keep their numbers where the database numbers them
		}
		one := "(" + strings.Repeat("?, ", len(names)-1) + "?)"
		statement = r.d.rebind(`INSERT INTO ` + quoted(r.into.name) + ` (` + quoted(names...) + `)` + override +
			` VALUES ` + strings.Repeat(one+", ", rows-1) + one)
		if rows == r.atOnce() {
			r.full = statement
		}
	}
	_, err := r.on.ExecContext(r.ctx, statement, r.args...)
	r.args = r.args[:0]
	if err != nil {
		return fmt.Errorf("table %s: %w", r.into.name, err)
	}
	return nil
}

// finish writes what waits.
func (r *restorer) finish() error {
	if err := r.flush(); err != nil {
		return err
	}
	for _, t := range r.tables {
		if !slices.Contains(r.done, t.name) {
			return fmt.Errorf("it has no table %s", t.name)
		}
	}
	return nil
}
