package store

import (
	"bytes"
	"context"
	"database/sql"
	"log/slog"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestCheckpoints has writers write while a reader keeps an old state: no commit moves anything into the file, and once the reader is
// gone the log begins anew.
func TestCheckpoints(t *testing.T) {
	s := open(t, emptyDatabase(t, SQLite))
	for name, write := range map[string]*sql.DB{"management.db": s.write, "management-connections.db": s.observe} {
		var pages int
		if err := write.QueryRow(`PRAGMA wal_autocheckpoint`).Scan(&pages); err != nil || pages != 0 {
			t.Errorf("%s: commits move pages every %d; %v", name, pages, err)
		}
	}
	fill, old := beginOld(t, s)
	const most = longLog / 256 // MiB
	for range most + 2 {
		fill()
	}
	c := &checkpointer{file: fileOf(t, s), write: s.write}
	if err := c.open(); err != nil {
		t.Fatal(err)
	}
	defer c.beside.Close()
	run := func() (pages int) {
		t.Helper()
		if err := c.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		fill()                                                   // the next writer, who begins the log anew if it may
		pqtest.Wait(t, "a look at the log", func() (seen bool) { // the one that runs by itself may be at it: it has -1 pages then
			var err error
			if pages, _, err = checkpoint(t.Context(), c.beside, "PASSIVE"); err != nil {
				t.Fatal(err)
			}
			return pages >= 0
		})
		return pages
	}
	if pages := run(); pages < longLog {
		t.Errorf("the log has %d pages, although somebody reads what was before them", pages)
	}
	old.Rollback()
	pqtest.Wait(t, "the log to be begun anew", func() bool { return run() < longLog })
}

// TestCheckpointWaits has a reader keep a log from being begun anew that is too long: writers wait for it, but not for long.
func TestCheckpointWaits(t *testing.T) {
	s := open(t, emptyDatabase(t, SQLite))
	fill, old := beginOld(t, s)
	fill()
	c := &checkpointer{file: fileOf(t, s), write: s.write}
	if err := c.takeTurn(t.Context(), true); err != nil {
		t.Error(err)
	}
	var timeout int64
	if err := s.write.QueryRow(`PRAGMA busy_timeout`).Scan(&timeout); err != nil || timeout != busyLimit.Milliseconds() {
		t.Errorf("writers wait %d ms for others from now on, want %d; %v", timeout, busyLimit.Milliseconds(), err)
	}
	fill()
	old.Rollback()
	pqtest.Wait(t, "the log to be begun anew", func() bool {
		if err := c.takeTurn(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if _, err := s.write.Exec(`INSERT INTO filler VALUES (zeroblob(1))`); err != nil {
			t.Fatal(err)
		}
		pages, moved, err := checkpoint(t.Context(), s.write, "PASSIVE")
		if err != nil {
			t.Fatal(err)
		}
		return pages >= 0 && pages == moved && pages < 256
	})
}

// beginOld begins to read, and returns what writes a MiB that this reader does not see.
func beginOld(t *testing.T, s *Store) (fill func(), old *sql.Tx) {
	t.Helper()
	if _, err := s.write.Exec(`CREATE TABLE filler (content BLOB)`); err != nil {
		t.Fatal(err)
	}
	old, err := s.read.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = old.Rollback() })
	var n int
	if err := old.QueryRow(`SELECT COUNT(*) FROM filler`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if _, err := s.write.Exec(`INSERT INTO filler VALUES (zeroblob(1048576))`); err != nil {
			t.Fatal(err)
		}
	}, old
}

// fileOf returns the path of the main file.
func fileOf(t *testing.T, s *Store) (file string) {
	t.Helper()
	if err := s.read.QueryRow(`SELECT file FROM pragma_database_list WHERE name = 'main'`).Scan(&file); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestCheckpointFails says once that it does.
func TestCheckpointFails(t *testing.T) {
	var log bytes.Buffer
	s := &Store{log: slog.New(slog.NewTextHandler(&log, nil))}
	other := open(t, emptyDatabase(t, SQLite))
	c := &checkpointer{file: fileOf(t, other), write: other.write}
	if err := c.open(); err != nil {
		t.Fatal(err)
	}
	c.beside.Close()
	for range 3 {
		s.checkpoint(t.Context(), c)
	}
	if n := strings.Count(log.String(), "cannot be moved"); n != 1 {
		t.Errorf("it is said %d times:\n%s", n, &log)
	}
	if err := c.open(); err != nil {
		t.Fatal(err)
	}
	defer c.beside.Close()
	s.checkpoint(t.Context(), c)
	c.beside.Close()
	s.checkpoint(t.Context(), c)
	if n := strings.Count(log.String(), "cannot be moved"); n != 2 {
		t.Errorf("after it worked again, it is said %d times in all:\n%s", n, &log)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	s.checkpoints(ended, c)
}
