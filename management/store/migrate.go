package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

// migrations are by folder: sqlite and postgres, which make the same tables, and sqlite_observe, the file of connection
// records. Each file is one transaction, so one that was interrupted has left nothing and is run again.
//
//go:embed migrations
var migrations embed.FS

// ErrNewer is what Open and Ready report where a newer binary has changed the schema: this one must not touch it.
var ErrNewer = errors.New("the database was made by a newer version of pqproxy: use that version, or restore a backup of this one's")

// ErrMissing is what Open reports with Existing where there is no database.
var ErrMissing = errors.New("there is no database of the management plane")

// schema is the version that a database is to have: the number of its last migration.
type schema int64

// check compares it with the version that a database has.
func (want schema) check(version schema) error {
	switch {
	case version > want:
		return fmt.Errorf("%w (it has schema %d, this binary knows %d)", ErrNewer, version, want)
	case version < want:
		return fmt.Errorf("the database has schema %d instead of %d: it was replaced while it was in use", version, want)
	}
	return nil
}

// schemaVersion reads the version of a database that was migrated before.
func schemaVersion(ctx context.Context, db *sql.DB) (version schema, err error) {
	err = db.QueryRowContext(ctx, `SELECT COALESCE(MAX(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&version)
	return version, err
}

// migrationsIn returns a folder of migrations.
func migrationsIn(folder string) (fs.FS, error) { return fs.Sub(migrations, "migrations/"+folder) }

// migrate brings a database to the last version of files, forward only, and returns that version and how many migrations it
// took. The caller holds the lock that keeps others from doing the same. A folder without files, or none, is version 0. With
// o.Existing nothing is changed, and a version that is not the last one is an error.
func migrate(ctx context.Context, o Options, dialect goose.Dialect, db *sql.DB, files fs.FS) (_ schema, steps int, err error) {
	provider, err := goose.NewProvider(dialect, db, files, goose.WithDisableGlobalRegistry(true))
	if errors.Is(err, goose.ErrNoMigrations) || errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("reading the migrations: %w", err)
	}
	sources := provider.ListSources()
	want := schema(sources[len(sources)-1].Version)

	if o.Existing {
		return want, 0, existing(ctx, db, want)
	}
	have, err := provider.GetDBVersion(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("reading the version of the schema: %w", err)
	}
	if schema(have) > want {
		return 0, 0, want.check(schema(have))
	}
	applied, err := provider.Up(ctx)
	if partial, ok := errors.AsType[*goose.PartialError](err); ok {
		applied = partial.Applied
	}
	for _, result := range applied {
		o.Log.Info("database migrated", "migration", result.Source.Path, "duration", result.Duration)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("migrating the schema from version %d: %w", have, err)
	}
	return want, len(applied), nil
}

// existing returns nil for a database that has that schema. It asks nothing that goose would make tables for.
func existing(ctx context.Context, db *sql.DB, want schema) error {
	have, err := schemaVersion(ctx, db)
	switch {
	case err != nil:
		return fmt.Errorf("%w, or it cannot be read: %w", ErrMissing, err)
	case have < want:
		return fmt.Errorf("the database has schema %d and this version of pqproxy wants %d: start the service of this version first, or use the version that it runs", have, want)
	}
	return want.check(have)
}
