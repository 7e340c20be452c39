package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// The drivers, as the option `database` spells them.
const (
	SQLite   = "sqlite"
	Postgres = "postgres"
)

// Options say where the rows are.
type Options struct {
	Driver string // SQLite or Postgres
	Source string // a file, or a postgres:// URL; errors never show the URL's password

	Log *slog.Logger // nil: slog.Default

	// Existing opens nothing but a database that has this binary's schema: none is made, and none is changed beneath a service
	// of another version that uses it.
	Existing bool
}

// Open opens the database, makes it where there is none, and brings its schema to this binary's version. It returns soon
// where the database cannot be reached, so that the caller can go on without and try again; it can take as long as ctx
// lets it where another instance is changing the schema. errors.Is(err, ErrNewer): a newer binary was here.
//
// With Existing it makes and changes nothing: errors.Is(err, ErrMissing) where there is nothing to open.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	var s *Store
	var err error
	switch {
	case o.Source == "":
		err = errors.New("it names no file and no URL")
	case o.Driver == SQLite:
		s, err = openSQLite(ctx, o)
	case o.Driver == Postgres:
		s, err = openPostgres(ctx, o)
	default:
		return nil, fmt.Errorf("database: there is no driver %q: use %s or %s", o.Driver, SQLite, Postgres)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the %s database: %w", o.Driver, err)
	}
	return s, nil
}

// reachLimit is how long Open tries to reach a database.
const reachLimit = 10 * time.Second
