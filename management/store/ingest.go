package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// Ingest stores a report. On SQLite the records come first, into their own file, where they are remembered as taken: what breaks
// off between the two is sent again and then counted.
func (s *Store) Ingest(ctx context.Context, in *management.Ingest) (done *management.Ingested, err error) {
	limited, cancel := context.WithTimeout(ctx, updateLimit)
	defer cancel()
	records, counters := connectionRows(in.Connections), inboxRows(in) // before anybody waits for a transaction
	db := s.observe
	if s.d.name == SQLite {
		db = s.write
		if len(in.Connections) > 0 {
			err := s.apart(limited, s.observe, func(t *tx, _ *sql.Conn) error { return t.ingestRecords(in, records) })
			if err != nil {
				return nil, s.fault(ctx, fmt.Errorf("storing records: %w", err))
			}
		}
	}
	err = s.apart(limited, db, func(t *tx, conn *sql.Conn) error {
		done, err = t.ingest(in)
		if err != nil || done.Duplicate {
			return err
		}
		if s.d.name == SQLite {
			return insertRows(t, `INSERT INTO usage_inbox (`+strings.Join(inboxColumns, ", ")+`) VALUES `, ``, len(inboxColumns), counters)
		}
		if err := copyRows(limited, conn, "usage_inbox", inboxColumns, counters); err != nil {
			return err
		}
		return copyRows(limited, conn, "connections", connectionColumns, records)
	})
	if err != nil {
		return nil, s.fault(ctx, fmt.Errorf("storing a report: %w", err))
	}
	return done, nil
}

// apart calls fn in a transaction that is no Update: others run beside it. fn may be called again from the start.
func (s *Store) apart(ctx context.Context, db *sql.DB, fn func(t *tx, conn *sql.Conn) error) (err error) {
	for range attempts {
		if err = s.apartOnce(ctx, db, fn); err == nil || !s.d.retry(err) || ctx.Err() != nil {
			break
		}
	}
	return err
}

func (s *Store) apartOnce(ctx context.Context, db *sql.DB, fn func(t *tx, conn *sql.Conn) error) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	begun, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer begun.Rollback() // without effect once committed
	t := &tx{ctx: ctx, d: s.d, on: begun}
	if err := fn(t, conn); err != nil {
		return err
	}
	if t.failed != nil {
		return t.failed
	}
	return begun.Commit()
}

// copyRows adds rows with PostgreSQL's COPY, in the transaction that the connection has begun.
func copyRows(ctx context.Context, conn *sql.Conn, table string, columns []string, rows [][]any) error {
	if len(rows) == 0 {
		return nil
	}
	return conn.Raw(func(driver any) error {
		on, ok := driver.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("the driver's connection is a %T", driver)
		}
		_, err := on.Conn().CopyFrom(ctx, pgx.Identifier{table}, columns, pgx.CopyFromRows(rows))
		return err
	})
}

// insertParams bounds the parameters of a statement: SQLite takes 32,766, PostgreSQL 65,535.
const insertParams = 4000

// insertRows runs an INSERT with many rows at a time. tail is what comes behind them.
func insertRows(t *tx, head, tail string, columns int, rows [][]any) error {
	one := `(?` + strings.Repeat(`, ?`, columns-1) + `)`
	for some := range slices.Chunk(rows, insertParams/columns) {
		args := make([]any, 0, len(some)*columns)
		for _, row := range some {
			args = append(args, row...)
		}
		if _, err := t.exec(head+one+strings.Repeat(`, `+one, len(some)-1)+tail, args...); err != nil {
			return err
		}
	}
	return nil
}

// ingest stores all of a report but for its counters and records.
func (t *tx) ingest(in *management.Ingest) (*management.Ingested, error) {
	started, now := in.Edge.StartedAt.UnixMicro(), in.Now.UnixMicro()
	_, err := t.exec(`INSERT INTO edges (`+edgeColumns+`) VALUES (?, ?, ?, ?, ?, '', '', 0, 0, 0, 0, ?, 0, 0, 0, 0, 0, 0) ON CONFLICT (name) DO NOTHING`,
		in.Edge.Name, management.NewID(management.EdgeID), in.TokenID, now, now, false)
	if err != nil {
		return nil, err
	}
	lock := ``
	if t.d.name == Postgres {
		lock = ` FOR UPDATE` // reports of one edge, one after the other
	}
	e := new(management.EdgeRow)
	if err := t.get(`SELECT `+edgeColumns+` FROM edges WHERE name = ?`+lock, []any{in.Edge.Name}, scanEdge(e)...); err != nil {
		return nil, err
	}
	var last uint64
	var resend bool
	err = t.get(`SELECT last, resend FROM edge_runs WHERE edge = ? AND started_at = ?`, []any{e.Name, started}, &last, &resend)
	known := err == nil
	if err != nil && !errors.Is(err, management.ErrNoRow) {
		return nil, err
	}
	done := &management.Ingested{Before: e.Revision, Main: e.StartedAt.Equal(in.Edge.StartedAt)}
	if known && in.Sequence <= last {
		done.Duplicate, done.Resend = true, resend && in.Sequence == last
		_, err := t.exec(`UPDATE edges SET last_seen = ? WHERE name = ? AND started_at = ?`, now, e.Name, started)
		return done, err
	}
	forget := false
	switch {
	case !known, !done.Main && !e.LastSeen.After(in.Fresh): // a new life, or one that is all that is left
		done.Main, forget, done.Resend = true, true, known || in.Sequence != 1
		e.StartedAt = in.Edge.StartedAt
	case done.Main && in.Sequence != last+1:
		forget, done.Resend = true, true
	}
	if forget {
		e.Epoch++
	}
	if done.Main {
		e.LastSeen, e.TokenID, e.Region, e.Version = in.Now, in.TokenID, in.Edge.Region, in.Edge.Version
		e.Draining, e.LiveConnections = in.Draining, in.LiveConnections
		if in.Revision != e.Revision {
			histories, err := t.FindEdgeHistories([]string{e.Name})
			if err != nil {
				return nil, err
			}
			e.History = histories[e.Name]
			e.SetRevision(in.Revision, in.Now)
			if err := t.putHistory(e); err != nil {
				return nil, err
			}
		}
	} else {
		e.MeetOther(in.Edge.StartedAt, in.Now)
	}
	e.Dropped = min(e.Dropped+in.Dropped, management.MaxSum)
	e.Unknown = min(e.Unknown+in.Unknown, management.MaxSum)
	if err := t.updateEdge(e); err != nil {
		return nil, err
	}
	if _, err := t.exec(`INSERT INTO edge_runs (edge, started_at, last, resend, last_seen) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (edge, started_at) DO UPDATE SET last = excluded.last, resend = excluded.resend, last_seen = excluded.last_seen`,
		e.Name, started, int64(in.Sequence), done.Resend, now); err != nil {
		return nil, err
	}
	if !known {
		if err := t.trimRuns("edge_runs", e.Name); err != nil {
			return nil, err
		}
	}
	if in.Dropped > 0 {
		if _, err := t.exec(`INSERT INTO record_drops (hour, edge, dropped) VALUES (?, ?, ?)
			ON CONFLICT (hour, edge) DO UPDATE SET dropped = record_drops.dropped + excluded.dropped`,
			in.Now.Truncate(time.Hour).UnixMicro(), e.Name, in.Dropped); err != nil {
			return nil, err
		}
	}
	if !done.Main || done.Resend {
		return done, nil // what it says of states is not believed, or comes again
	}
	return done, t.putStates(e, in)
}

// runsOfEdge is how many lives of one edge are remembered. An honest one does not restart so often within a week.
const runsOfEdge = 1000

func (t *tx) trimRuns(table, edge string) error {
	_, err := t.exec(`DELETE FROM `+table+` WHERE (edge, started_at) IN
		(SELECT edge, started_at FROM `+table+` WHERE edge = ? ORDER BY last_seen DESC, started_at LIMIT ? OFFSET ?)`, edge, runsOfEdge, runsOfEdge)
	return err
}
