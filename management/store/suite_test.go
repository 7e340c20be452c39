package store

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pgtest"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// engines are the databases that the suite runs on.
var engines = []string{SQLite, Postgres}

// eachEngine runs fn as a subtest on each database, with an empty store of its own.
func eachEngine(t *testing.T, fn func(t *testing.T, s *Store)) {
	t.Helper()
	eachDatabase(t, func(t *testing.T, o Options) { fn(t, open(t, o)) })
}

// eachDatabase is eachEngine for tests that open the store themselves, or several on one database.
func eachDatabase(t *testing.T, fn func(t *testing.T, o Options)) {
	t.Helper()
	for _, driver := range engines {
		t.Run(driver, func(t *testing.T) { fn(t, emptyDatabase(t, driver)) })
	}
}

// emptyDatabase returns how to open a database of the test's own, which has the schema already.
func emptyDatabase(t testing.TB, driver string) Options {
	t.Helper()
	o := Options{Driver: driver, Log: slog.New(slog.DiscardHandler)}
	if driver == SQLite {
		files, err := migratedFiles()
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		o.Source = filepath.Join(dir, "management.db")
		return o
	}
	o.Source = pgtest.Clone(t, "migrated", func(url string) error {
		o := o
		o.Source = url
		s, err := Open(context.Background(), o)
		if err != nil {
			return err
		}
		return s.Close()
	})
	return o
}

// migratedFiles returns the files of an empty SQLite database, by name.
var migratedFiles = sync.OnceValues(func() (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "migrated")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	s, err := Open(context.Background(), Options{Driver: SQLite, Source: filepath.Join(dir, "management.db"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	return readFiles(dir)
})

func readFiles(dir string) (map[string][]byte, error) {
	entries, err := os.ReadDir(dir)
	files := make(map[string][]byte)
	for _, entry := range entries {
		content, readErr := os.ReadFile(filepath.Join(dir, entry.Name()))
		files[entry.Name()], err = content, errors.Join(err, readErr)
	}
	return files, err
}

// open opens a store that is closed with the test.
func open(t testing.TB, o Options) *Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// update calls fn in an Update that must succeed. fn gets the package's own tx, for methods that no interface has yet.
func update(t testing.TB, s *Store, fn func(tx *tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), func(on management.Tx) error { return fn(on.(*tx)) }); err != nil {
		t.Fatal(err)
	}
}

// view is update for View.
func view(t testing.TB, s *Store, fn func(tx *tx) error) {
	t.Helper()
	if err := s.View(t.Context(), func(on management.Tx) error { return fn(on.(*tx)) }); err != nil {
		t.Fatal(err)
	}
}

// bump raises the revision and returns it.
func bump(t testing.TB, s *Store) (revision uint64) {
	t.Helper()
	update(t, s, func(tx *tx) (err error) {
		revision, err = tx.NextRevision()
		return err
	})
	return revision
}

// revision returns the revision that is visible.
func revision(t testing.TB, s *Store) (revision uint64) {
	t.Helper()
	view(t, s, func(tx *tx) (err error) {
		revision, err = tx.Revision()
		return err
	})
	return revision
}

// patience is how long a test waits for what comes soon.
const patience = 20 * time.Second

// closed waits for a channel to be closed.
func closed(t testing.TB, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
}
