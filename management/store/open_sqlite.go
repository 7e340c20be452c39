package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
)

// How long SQLite waits for the lock of another process, such as the backup command or a second instance.
const busyLimit = 10 * time.Second

// openSQLite opens the two files.
func openSQLite(ctx context.Context, o Options) (_ *Store, err error) {
	file, err := filepath.Abs(o.Source)
	if err != nil {
		return nil, err
	}
	s := &Store{d: sqliteDialect, log: o.Log}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if o.Existing {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s is not there", ErrMissing, file)
		}
	} else if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	unlock, err := lockSQLite(ctx, beside(file, "-migration.lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()

	// FULL: a commit that an edge has seen must not be lost with the power, or the edge would refuse what comes after it as
	// older than what it has. Connection records are the best effort anyway, and NORMAL keeps the file whole.
	s.schema, s.write, s.read, err = openFile(ctx, o, file, "sqlite", "FULL")
	if err != nil {
		return nil, err
	}
	_, s.observe, s.observeRead, err = openFile(ctx, o, beside(file, "-connections.db"), "sqlite_observe", "NORMAL")
	if err != nil {
		return nil, fmt.Errorf("connection records: %w", err)
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	for _, c := range []checkpointer{{file: file, write: s.write}, {file: beside(file, "-connections.db"), write: s.observe}} {
		if err := c.open(); err != nil {
			return nil, err
		}
		s.more = append(s.more, c.beside)
		s.running.Go(func() { s.checkpoints(running, &c) })
	}
	return s, nil
}

// beside returns the name of another file of the same database: management.db has management-connections.db beside it.
func beside(file, suffix string) string { return strings.TrimSuffix(file, filepath.Ext(file)) + suffix }

// openFile opens one file for writing and for reading, with the schema of a folder of migrations.
func openFile(ctx context.Context, o Options, file, folder, synchronous string) (version schema, write, read *sql.DB, err error) {
	defer func() {
		if err != nil {
			for _, db := range []*sql.DB{write, read} {
				if db != nil {
					db.Close()
				}
			}
			write, read = nil, nil
		}
	}()
	if o.Existing {
		if _, err := os.Stat(file); err != nil {
			return 0, nil, nil, err
		}
	} else if err := private(file); err != nil {
		return 0, nil, nil, err
	}
	if version, err = migrateFile(ctx, o, file, folder); err != nil {
		return 0, nil, nil, err
	}

	// One connection: SQLite has one writer at a time, and those who wait in database/sql wait in order.
	write, err = openPool(file, 1, url.Values{
		"_txlock": {"immediate"}, "_journal_mode": {"WAL"}, "_synchronous": {synchronous}, "_foreign_keys": {"on"},
		"_pragma": {"cache_size(-16384)", "journal_size_limit(67108864)", "wal_autocheckpoint(0)"},
	})
	if err != nil {
		return 0, nil, nil, err
	}
	var mode string
	if err := write.QueryRowContext(ctx, `PRAGMA journal_mode`).Scan(&mode); err != nil {
		return 0, write, nil, err
	}
	if mode != "wal" {
		return 0, write, nil, fmt.Errorf("%s: the file system cannot do SQLite's WAL (it is on a network?): use a local disk", file)
	}
	read, err = openPool(file, max(4, 2*runtime.GOMAXPROCS(0)), url.Values{"_query_only": {"on"}, "_pragma": {"cache_size(-8192)"}})
	return version, write, read, err
}

// openPool returns a pool of up to n connections to a file. Nothing is opened yet.
func openPool(file string, n int, params url.Values) (*sql.DB, error) {
	params.Set("_busy_timeout", fmt.Sprint(busyLimit.Milliseconds()))
	params.Set("_dqs", "0")       // "text" is a name, never a string: a misspelt column must not be a constant
	params.Set("_defensive", "1") // no statement may damage the file
	params.Set("_error_rc", "1")  // texts of errors fit their codes
	path := filepath.ToSlash(file)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // C:/…
	}
	connector, err := sqlite.NewConnector((&url.URL{Scheme: "file", Path: path, RawQuery: params.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db, nil
}

// private makes the file, for its owner alone; SQLite gives its companions the same rights. An existing file is never
// opened here: closing it would take the locks that other connections of this process hold on it (fcntl(2)).
func private(file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no file", file)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return os.Chmod(file, info.Mode().Perm()&^0o077)
	}
	return nil
}

// migrateFile brings the schema of a file up to date, over a connection of its own: with foreign keys enforced, a migration
// that makes a table anew would remove the rows that point at the old one. They are checked afterwards instead.
func migrateFile(ctx context.Context, o Options, file, folder string) (schema, error) {
	files, err := migrationsIn(folder)
	if err != nil {
		return 0, err
	}
	db, err := openPool(file, 1, url.Values{
		"_txlock": {"immediate"}, "_journal_mode": {"WAL"}, "_synchronous": {"FULL"}, "_foreign_keys": {"off"},
	})
	if err != nil {
		return 0, err
	}
	defer db.Close()
	version, steps, err := migrate(ctx, o, goose.DialectSQLite3, db, files)
	if err != nil || steps == 0 {
		return version, err
	}
	var table string
	err = db.QueryRowContext(ctx, `SELECT "table" FROM pragma_foreign_key_check LIMIT 1`).Scan(&table)
	if errors.Is(err, sql.ErrNoRows) {
		return version, nil
	}
	if err == nil {
		err = fmt.Errorf("table %s has rows that point at rows that are not there: restore a backup", table)
	}
	return 0, err
}

// lockSQLite waits until no other process changes the schema, and keeps others from it until unlock is called or the process
// ends. The lock is SQLite's own on an empty database, which works across processes on every system.
func lockSQLite(ctx context.Context, file string) (unlock func(), err error) {
	if err := private(file); err != nil {
		return nil, err
	}
	db, err := openPool(file, 1, url.Values{"_txlock": {"immediate"}})
	if err != nil {
		return nil, err
	}
	for {
		tx, err := db.BeginTx(ctx, nil)
		if err == nil {
			return func() { tx.Rollback(); db.Close() }, nil
		}
		if ctx.Err() != nil || classifySQLite(err) != tryAgain {
			db.Close()
			return nil, fmt.Errorf("waiting for another process to have opened the database: %w", err)
		}
	}
}
