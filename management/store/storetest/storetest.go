// Package storetest gives tests of other packages a store: the real one, on SQLite and on PostgreSQL.
//
//	storetest.Each(t, func(t *testing.T, s *store.Store) { plane, err := management.New(cfg, management.Parts{Store: s, …}); … })
//
// A store is empty, has the newest schema, and goes with its test. Making one costs tens of milliseconds.
package storetest

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
	"github.com/pqproxy/caddy-pqproxy/management/store"
)

// Each runs fn as a subtest on each database.
func Each(t *testing.T, fn func(t *testing.T, s *store.Store)) {
	t.Helper()
	for _, driver := range []string{store.SQLite, store.Postgres} {
		t.Run(driver, func(t *testing.T) { fn(t, Open(t, driver)) })
	}
}

// Open returns a store on a database of its own.
func Open(tb testing.TB, driver string) *store.Store {
	tb.Helper()
	return Reopen(tb, Options(tb, driver))
}

// Reopen returns another store on the same database, as another instance of the service has one.
func Reopen(tb testing.TB, o store.Options) *store.Store {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := store.Open(ctx, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// Options returns those of a database of its own: for who opens the store otherwise, or several times.
func Options(tb testing.TB, driver string) store.Options {
	tb.Helper()
	o := store.Options{Driver: driver, Log: slog.New(slog.DiscardHandler)}
	if driver == store.SQLite {
		files, err := migrated()
		if err != nil {
			tb.Fatal(err)
		}
		dir := tb.TempDir()
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				tb.Fatal(err)
			}
		}
		o.Source = filepath.Join(dir, "management.db")
		return o
	}
	o.Source = pgtest.Clone(tb, "storetest", func(url string) error {
		o := o
		o.Source = url
		s, err := store.Open(context.Background(), o)
		if err != nil {
			return err
		}
		return s.Close()
	})
	return o
}

// migrated returns the files of an empty SQLite database, by name: with the race detector, copying them takes a tenth of the
// time of making them.
var migrated = sync.OnceValues(func() (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "storetest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	s, err := store.Open(context.Background(), store.Options{
		Driver: store.SQLite, Source: filepath.Join(dir, "management.db"), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	files := make(map[string][]byte)
	for _, entry := range entries {
		content, readErr := os.ReadFile(filepath.Join(dir, entry.Name()))
		files[entry.Name()], err = content, errors.Join(err, readErr)
	}
	return files, err
})
