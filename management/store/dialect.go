package store

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// dialect is what differs between the databases, apart from their migrations.
type dialect struct {
	name          string // the folder of its migrations
	goose         goose.Dialect
	numbered      bool // parameters are $1, $2, … instead of ?
	viewIsolation sql.IsolationLevel
	serialize     string // what an Update runs first, so that it is alone; "" where opening the transaction does that
	notify        string // tells other instances, at commit, that the revision rose; "" where there are none
	unhurried     string // takes the limits of time off a transaction that may be long; "" where there are none
	nowMicros     string // the database's clock, in microseconds since 1970
	classify      func(error) failure
}

// failure is what an error of a driver means.
type failure int

const (
	otherFailure failure = iota
	rowExists
	tryAgain // the transaction was undone to let another one pass
	away     // the database cannot be reached, or cannot write just now
)

// Keys of advisory locks: any two numbers that nothing else uses.
const (
	updatesLock   = "7316392005119012881" // Updates
	migrationLock = "7316392005119012882" // changes of the schema
)

// revisionChannel is where PostgreSQL tells all instances that the revision rose.
const revisionChannel = "pqproxy_revision"

var (
	sqliteDialect = &dialect{
		name: SQLite, goose: goose.DialectSQLite3,
		nowMicros: `CAST(unixepoch('subsec') * 1000000 AS INTEGER)`,
		classify:  classifySQLite,
	}
	postgresDialect = &dialect{
		name: Postgres, goose: goose.DialectPostgres, numbered: true, viewIsolation: sql.LevelRepeatableRead,
		serialize: `SELECT pg_advisory_xact_lock(` + updatesLock + `)`,
		notify:    `NOTIFY ` + revisionChannel,
		unhurried: `SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0`,
		nowMicros: `CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)`,
		classify:  classifyPostgres,
	}
)

func classifySQLite(err error) failure {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return otherFailure
	}
	switch e.Code() {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID:
		return rowExists
	}
	switch e.Code() & 0xff { // the rest is detail
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return tryAgain
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOMEM:
		return away
	}
	return otherFailure
}

func classifyPostgres(err error) failure {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch e.Code {
		case "23505": // unique_violation
			return rowExists
		case "40001", "40P01": // serialization_failure, deadlock_detected
			return tryAgain
		case "57014", "55P03", "25006": // query_canceled (by a time limit), lock_not_available, read_only_sql_transaction
			return away
		}
		switch e.Code[:min(2, len(e.Code))] {
		case "08", "53", "57", "58": // connection, insufficient resources, operator intervention, system error
			return away
		}
		if e.Code == "25P03" || e.Code == "25P04" { // idle_in_transaction_session_timeout, transaction_timeout
			return away
		}
		return otherFailure
	}
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return away
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return away
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return away
	}
	return otherFailure
}

func (d *dialect) retry(err error) bool { return d.classify(err) == tryAgain }

// rowError makes an existing row recognisable for callers that know no drivers.
func (d *dialect) rowError(err error) error {
	if d.classify(err) == rowExists {
		return errors.Join(management.ErrRowExists, err)
	}
	return err
}

// rebind writes the parameters of a query as the database wants them. Queries hold no ? but parameters.
func (d *dialect) rebind(query string) string {
	if !d.numbered {
		return query
	}
	var b strings.Builder
	b.Grow(len(query) + 16)
	n := 0
	for part := range strings.SplitSeq(query, "?") {
		if n > 0 {
			b.WriteByte('$')
			b.WriteString(strconv.Itoa(n))
		}
		b.WriteString(part)
		n++
	}
	return b.String()
}
