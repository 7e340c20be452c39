package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// How many connections an instance has to PostgreSQL at most, next to the one that listens: less than a fifth of the 100
// that a server allows by default, so that several instances fit.
const (
	postgresWriters   = 2 // Updates run one at a time; the second has begun when the first commits
	postgresReaders   = 12
	postgresObservers = 4
)

// Connections are made anew now and then, so that they spread again after a server was away.
const (
	postgresLifetime = 30 * time.Minute
	postgresIdle     = 5 * time.Minute
)

// Limits that the server keeps, unless the URL says otherwise. They are no less than ours, which end a statement in order.
var postgresLimits = map[string]string{
	"application_name":                    "pqproxy",
	"statement_timeout":                   "60s",
	"idle_in_transaction_session_timeout": "60s", // an instance that hangs must not hold up the others' Updates
	"timezone":                            "UTC",
}

// openPostgres opens the pools and begins to listen.
func openPostgres(ctx context.Context, o Options) (_ *Store, err error) {
	config, err := parsePostgres(o.Source)
	if err != nil {
		return nil, err
	}
	s := &Store{d: postgresDialect, log: o.Log}
	defer func() {
		if err != nil {
			err = errors.Join(withoutPassword(err, o.Source), s.Close())
		}
	}()
	if s.schema, err = migratePostgres(ctx, o, config); err != nil {
		return nil, err
	}
	s.write = postgresPool(config, postgresWriters)
	s.read = postgresPool(config, postgresReaders)
	s.observe = postgresPool(config, postgresObservers)
	s.observeRead = s.read

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.running.Go(func() { s.listen(running, config) })
	return s, nil
}

// parsePostgres reads a URL. pgx reads the PG… variables of the environment for what it does not say.
func parsePostgres(source string) (*pgx.ConnConfig, error) {
	parsed, err := url.Parse(source)
	if err != nil || parsed.Scheme != "postgres" && parsed.Scheme != "postgresql" {
		// Nothing of the text is repeated: where it cannot be read, nobody knows where the password is.
		return nil, errors.New("no URL of PostgreSQL: write postgres://USER:PASSWORD@HOST:PORT/DATABASE, and what is special in the password as %XX")
	}
	config, err := pgx.ParseConfig(source)
	if err != nil {
		// The text alone: pgx's error has the URL as it is in a field.
		return nil, errors.New("reading the URL: " + withoutPassword(err, source).Error())
	}
	for name, value := range postgresLimits {
		if _, ok := config.RuntimeParams[name]; !ok {
			config.RuntimeParams[name] = value
		}
	}
	if config.ConnectTimeout == 0 || config.ConnectTimeout > reachLimit {
		config.ConnectTimeout = reachLimit / 2
	}
	return config, nil
}

// redacted is an error without the password in its text.
type redacted struct {
	error
	text string
}

func (e *redacted) Error() string { return e.text }
func (e *redacted) Unwrap() error { return e.error }

// withoutPassword takes the password of the URL out of an error, however it is written. pgx takes care not to show it; this
// is for what pgx repeats of others.
func withoutPassword(err error, source string) error {
	parsed, parseErr := url.Parse(source)
	if parseErr != nil {
		return errors.New("the URL cannot be read")
	}
	var secrets []string
	if password, ok := parsed.User.Password(); ok {
		secrets = append(secrets, password, url.QueryEscape(password), url.PathEscape(password))
		if _, raw, ok := strings.Cut(parsed.User.String(), ":"); ok {
			secrets = append(secrets, raw)
		}
	}
	for _, name := range []string{"password", "sslpassword"} {
		for _, value := range parsed.Query()[name] {
			secrets = append(secrets, value, url.QueryEscape(value))
		}
	}
	text := err.Error()
	for _, secret := range secrets {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "…")
		}
	}
	if text == err.Error() {
		return err
	}
	return &redacted{err, text}
}

// postgresPool returns a pool of up to n connections. Nothing is opened yet.
func postgresPool(config *pgx.ConnConfig, n int) *sql.DB {
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	db.SetConnMaxLifetime(postgresLifetime)
	db.SetConnMaxIdleTime(postgresIdle)
	return db
}

// migratePostgres brings the schema up to date while no other instance does. A migration may take its time.
func migratePostgres(ctx context.Context, o Options, config *pgx.ConnConfig) (schema, error) {
	files, err := migrationsIn(postgresDialect.name)
	if err != nil {
		return 0, err
	}
	unhurried := config.Copy()
	unhurried.RuntimeParams = maps.Clone(config.RuntimeParams)
	unhurried.RuntimeParams["statement_timeout"] = "0"
	unhurried.RuntimeParams["idle_in_transaction_session_timeout"] = "0"
	unhurried.RuntimeParams["client_min_messages"] = "warning"
	db := postgresPool(unhurried, 2)
	defer db.Close()

	reach, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	if err := db.PingContext(reach); err != nil {
		return 0, err
	}
	// A lock of the transaction goes with the connection, however that ends. Migrations run on the other one.
	lock, err := db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer lock.Rollback()
	if _, err := lock.ExecContext(ctx, `SELECT pg_advisory_xact_lock(`+migrationLock+`)`); err != nil {
		return 0, fmt.Errorf("waiting for another instance to have changed the schema: %w", err)
	}
	version, _, err := migrate(ctx, o, postgresDialect.goose, db, files)
	return version, err
}
