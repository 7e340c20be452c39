package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

var errOfTheTest = errors.New("an error of the test")

// event returns an entry whose ID sorts by n.
func event(n uint64) *management.Event {
	return &management.Event{ID: fmt.Sprintf("evt_%026d", n), Time: time.UnixMicro(int64(n)), Actor: "system", Action: "test.done"}
}

// TestRevisionsBecomeVisibleInOrder has two instances count up at once, and a reader that must never see a revision before
// what was done under it and under all before it.
func TestRevisionsBecomeVisibleInOrder(t *testing.T) {
	eachDatabase(t, func(t *testing.T, o Options) {
		stores := []*Store{open(t, o), open(t, o)}
		const writers, each = 3, 15
		var all sync.WaitGroup
		for _, s := range stores {
			for range writers {
				all.Go(func() {
					for range each {
						err := s.Update(t.Context(), func(tx management.Tx) error {
							n, err := tx.NextRevision()
							if err != nil {
								return err
							}
							return tx.InsertEvent(event(n))
						})
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
		done := make(chan struct{})
		go func() { all.Wait(); close(done) }()
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
			}
			for _, s := range stores {
				view(t, s, func(tx *tx) error {
					n, err := tx.Revision()
					if err != nil {
						return err
					}
					events, err := tx.FindEvents(management.EventFilter{})
					if len(events) != int(n) || n > 0 && events[0].ID != event(n).ID {
						t.Errorf("at revision %d there are %d entries", n, len(events))
					}
					return err
				})
			}
		}
		if n := revision(t, stores[0]); n != 2*writers*each {
			t.Errorf("the revision is %d after %d changes", n, 2*writers*each)
		}
	})
}

// TestUpdateWaitsForTheOneThatBegan is the order that loses changes where revisions come from a sequence: the first takes its
// number, the second takes the next, commits and is seen, and only then the first commits.
func TestUpdateWaitsForTheOneThatBegan(t *testing.T) {
	o := emptyDatabase(t, Postgres)
	first, second := open(t, o), open(t, o)
	counted, commit := make(chan struct{}), make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() {
		err := first.Update(t.Context(), func(tx management.Tx) error {
			n, err := tx.NextRevision()
			if n != 1 {
				t.Errorf("the first change has revision %d", n)
			}
			close(counted)
			<-commit
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-counted
	both.Go(func() {
		if n := bump(t, second); n != 2 {
			t.Errorf("the second change has revision %d", n)
		}
	})
	eventually(t, "the second to wait for the lock", func() bool {
		var waiting int
		err := second.read.QueryRow(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&waiting)
		if err != nil {
			t.Fatal(err)
		}
		return waiting == 1
	})
	if n := revision(t, second); n != 0 {
		t.Errorf("revision %d is visible before the first commit", n)
	}
	close(commit)
	both.Wait()
	if n := revision(t, first); n != 2 {
		t.Errorf("the revision is %d, want 2", n)
	}
}

func TestViewIsASnapshotAndOnlyReads(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *Store) {
		view(t, s, func(tx *tx) error {
			before, err := tx.Revision()
			if err != nil {
				return err
			}
			bump(t, s)
			after, err := tx.Revision()
			if before != 0 || after != 0 {
				t.Errorf("a snapshot saw revision %d and then %d", before, after)
			}
			return err
		})
		if n := revision(t, s); n != 1 {
			t.Errorf("the next snapshot sees revision %d, want 1", n)
		}
		err := s.View(t.Context(), func(tx management.Tx) error {
			_, err := tx.NextRevision()
			return err
		})
		if err == nil {
			t.Error("a View could write")
		}
		if n := revision(t, s); n != 1 {
			t.Errorf("a View has written: revision %d", n)
		}
	})
}

func TestUpdateUndoesWhatFails(t *testing.T) {
	failing := map[string]func(management.Tx) error{
		"error": func(management.Tx) error { return errOfTheTest },
		"panic": func(management.Tx) error { panic(errOfTheTest) },
	}
	eachEngine(t, func(t *testing.T, s *Store) {
		for name, fail := range failing {
			func() {
				defer func() {
					if v := recover(); v != nil && v != errOfTheTest {
						panic(v)
					}
				}()
				err := s.Update(t.Context(), func(tx management.Tx) error {
					if _, err := tx.NextRevision(); err != nil {
						return err
					}
					return fail(tx)
				})
				if err != errOfTheTest {
					t.Errorf("%s: the error is %v, want fn's own", name, err)
				}
			}()
			if n := revision(t, s); n != 0 {
				t.Errorf("%s: revision %d was committed", name, n)
			}
		}
		if n := bump(t, s); n != 1 {
			t.Errorf("the next change has revision %d, want 1", n)
		}
	})
}

// TestNothingIsCommittedAfterAFailedStatement: what PostgreSQL does by itself, and SQLite does not.
func TestNothingIsCommittedAfterAFailedStatement(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *Store) {
		err := s.Update(t.Context(), func(on management.Tx) error {
			if err := on.InsertEvent(event(1)); err != nil {
				t.Error(err)
			}
			if err := on.InsertEvent(event(1)); !errors.Is(err, management.ErrRowExists) {
				t.Errorf("the same entry again: %v, want ErrRowExists", err)
			}
			if _, err := on.Revision(); err == nil {
				t.Error("a statement after one that failed succeeded")
			}
			return nil
		})
		if err == nil {
			t.Error("the transaction was committed")
		}
		view(t, s, func(tx *tx) error {
			events, err := tx.FindEvents(management.EventFilter{})
			if len(events) != 0 {
				t.Errorf("%d entries were committed", len(events))
			}
			return err
		})
	})
}

func TestUpdateTriesAgainWhenTheDatabaseAsksForIt(t *testing.T) {
	eachDatabase(t, func(t *testing.T, o Options) {
		s := open(t, o)
		for name, c := range map[string]struct{ failures, wantCalls int }{
			"twice": {2, 3}, "always": {attempts, attempts},
		} {
			calls := 0
			err := s.Update(t.Context(), func(on management.Tx) error {
				if _, err := on.NextRevision(); err != nil {
					return err
				}
				if calls++; calls <= c.failures {
					return brokenOff(t, o, on.(*tx))
				}
				return nil
			})
			if calls != c.wantCalls {
				t.Errorf("%s: fn was called %d times, want %d", name, calls, c.wantCalls)
			}
			if succeeds := c.failures < attempts; succeeds && err != nil || !succeeds && management.CodeOf(err) != management.Unavailable {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n := revision(t, s); n != 1 {
			t.Errorf("the revision is %d after one change that succeeded", n)
		}
	})
}

// brokenOff returns an error with which a database asks for another try.
func brokenOff(t *testing.T, o Options, on *tx) error {
	if o.Driver == Postgres {
		_, err := on.exec(`DO $$ BEGIN RAISE EXCEPTION 'of the test' USING ERRCODE = 'serialization_failure'; END $$`)
		return err
	}
	impatient, err := sql.Open("sqlite", "file:"+o.Source+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer impatient.Close()
	_, err = impatient.Begin()
	return err
}

func TestContextEndsTransaction(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *Store) {
		ctx, cancel := context.WithCancel(t.Context())
		err := s.Update(ctx, func(tx management.Tx) error {
			if _, err := tx.NextRevision(); err != nil {
				return err
			}
			cancel()
			return nil
		})
		if !errors.Is(err, context.Canceled) && !errors.Is(err, sql.ErrTxDone) {
			t.Errorf("the error is %v, want context.Canceled", err)
		}
		if code := management.CodeOf(err); code == management.Unavailable {
			t.Error("a caller that went away is told that the database is not available")
		}
		if n := revision(t, s); n != 0 {
			t.Errorf("revision %d was committed", n)
		}
		if n := bump(t, s); n != 1 {
			t.Errorf("the next change has revision %d, want 1", n)
		}
	})
}

// TestConnectionLostInTransaction has the server end the connection between two statements.
func TestConnectionLostInTransaction(t *testing.T) {
	s := open(t, emptyDatabase(t, Postgres))
	calls := 0
	err := s.Update(t.Context(), func(on management.Tx) error {
		calls++
		if _, err := on.NextRevision(); err != nil {
			return err
		}
		var pid int
		if err := on.(*tx).get(`SELECT pg_backend_pid()`, nil, &pid); err != nil {
			return err
		}
		if _, err := s.observe.Exec(`SELECT pg_terminate_backend($1)`, pid); err != nil {
			t.Error(err)
		}
		_, err := on.NextRevision()
		return err
	})
	if management.CodeOf(err) != management.Unavailable || calls != 1 {
		t.Errorf("after %d calls: %v, want one and code unavailable", calls, err)
	}
	if n := revision(t, s); n != 0 {
		t.Errorf("revision %d was committed", n)
	}
	if n := bump(t, s); n != 1 {
		t.Errorf("the next change has revision %d, want 1", n)
	}
}

// TestFullDisk: a transaction that finds no space leaves nothing, and says what is wrong.
func TestFullDisk(t *testing.T) {
	s := open(t, emptyDatabase(t, SQLite))
	limit := func(pages string) {
		if _, err := s.write.Exec(`PRAGMA max_page_count = ` + pages); err != nil {
			t.Fatal(err)
		}
	}
	limit("1") // no less than what there is
	filler := strings.Repeat("x", 64<<10)
	fill := func(on management.Tx) error {
		if _, err := on.NextRevision(); err != nil {
			return err
		}
		for n := range uint64(64) {
			e := event(n)
			e.Object = filler
			if err := on.InsertEvent(e); err != nil {
				return err
			}
		}
		return nil
	}
	if err := s.Update(t.Context(), fill); management.CodeOf(err) != management.Unavailable || !strings.Contains(err.Error(), "full") {
		t.Errorf("the error is %v, want one that says it is full, with code unavailable", err)
	}
	view(t, s, func(tx *tx) error {
		events, err := tx.FindEvents(management.EventFilter{})
		n, _ := tx.Revision()
		if len(events) != 0 || n != 0 {
			t.Errorf("half of it was written: %d entries, revision %d", len(events), n)
		}
		return err
	})
	limit("1000000")
	if err := s.Update(t.Context(), fill); err != nil {
		t.Errorf("with space again: %v", err)
	}
}

func TestLease(t *testing.T) {
	eachDatabase(t, func(t *testing.T, o Options) {
		stores := []*Store{open(t, o), open(t, o)}
		take := func(at int, owner string, want bool) {
			t.Helper()
			held, err := stores[at].Lease(t.Context(), "work", owner, time.Hour)
			if err != nil || held != want {
				t.Errorf("%s has the lease: %v, want %v; %v", owner, held, want, err)
			}
		}
		shift := func(by time.Duration) {
			t.Helper()
			if _, err := stores[0].write.Exec(stores[0].d.rebind(`UPDATE leases SET until = until + ?`), by.Microseconds()); err != nil {
				t.Fatal(err)
			}
		}
		take(0, "a", true)
		take(1, "b", false)
		take(0, "a", true)
		if held, err := stores[1].Lease(t.Context(), "other work", "b", time.Hour); !held || err != nil {
			t.Errorf("another lease: %v, %v", held, err)
		}
		shift(-61 * time.Minute) // it has run out
		take(1, "b", true)
		take(0, "a", false)
		shift(24 * time.Hour) // it was taken by a clock that was a day ahead
		take(0, "a", true)
		take(1, "b", false)
	})
}

// TestLeaseHasOneOwner has many want one lease at once.
func TestLeaseHasOneOwner(t *testing.T) {
	eachDatabase(t, func(t *testing.T, o Options) {
		stores := []*Store{open(t, o), open(t, o)}
		var all sync.WaitGroup
		var mu sync.Mutex
		owners := 0
		for i := range 8 {
			all.Go(func() {
				held, err := stores[i%2].Lease(t.Context(), "work", fmt.Sprint(i), time.Hour)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if held {
					owners++
				}
			})
		}
		all.Wait()
		if owners != 1 {
			t.Errorf("%d have the lease", owners)
		}
	})
}

func TestChangedInTheSameInstance(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *Store) {
		change := s.Changed()
		bump(t, s)
		closed(t, "word of the change", change)
	})
}

// TestChangedIsSilentWithoutAChange is for SQLite: on PostgreSQL word may come at any time, from others.
func TestChangedIsSilentWithoutAChange(t *testing.T) {
	s := open(t, emptyDatabase(t, SQLite))
	change := s.Changed()
	update(t, s, func(tx *tx) error { return tx.InsertEvent(event(1)) })
	s.Update(t.Context(), func(tx management.Tx) error { tx.NextRevision(); return errOfTheTest })
	select {
	case <-change:
		t.Error("word of a change that there was not")
	default:
	}
}

// TestChangedInAnotherInstance also takes the listener's connection away: it comes back, says that something may have been
// missed, and hears again.
func TestChangedInAnotherInstance(t *testing.T) {
	o := emptyDatabase(t, Postgres)
	here, there := open(t, o), open(t, o)
	listening := func() (pids []int) {
		rows, err := here.read.Query(`SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%listening%'
			AND datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'`)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var pid int
			if err := rows.Scan(&pid); err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
		return pids
	}
	eventually(t, "both to listen", func() bool { return len(listening()) == 2 })
	heard := func() {
		t.Helper()
		// The first word may be that of the connection itself.
		for range 2 {
			change := here.Changed()
			bump(t, there)
			closed(t, "word of the other instance's change", change)
		}
	}
	heard()
	for _, pid := range listening() {
		if _, err := there.read.Exec(`SELECT pg_terminate_backend($1)`, pid); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both to listen again", func() bool { return len(listening()) == 2 })
	heard()
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !cond() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
