package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"time"
)

// SQLite appends commits to a log beside the file (WAL) and moves them into the file at a checkpoint, which takes as long as
// the disk needs for thousands of scattered pages. By default a commit does so every 1000 pages, while all other writers wait.
// Here a connection of its own does it beside them.
const (
	checkpointEvery = time.Second
	longLog         = 4096         // pages of 4 KiB, upon which writers are to begin the log anew
	tooLongLog      = 16 * longLog // upon which readers are waited for, for a moment

	turnLimit    = 5 * time.Second
	readersLimit = 100 * time.Millisecond // writers wait as long
)

// checkpointer moves what was committed into one file.
type checkpointer struct {
	file   string
	beside *sql.DB // one connection
	write  *sql.DB // the writers' one
	failed bool    // the last time: it is said once
}

func (c *checkpointer) open() (err error) {
	c.beside, err = openPool(c.file, 1, url.Values{"_synchronous": {"FULL"}})
	return err
}

// checkpoints does so until ctx ends.
func (s *Store) checkpoints(ctx context.Context, c *checkpointer) {
	tick := time.NewTicker(checkpointEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.checkpoint(ctx, c)
		case <-ctx.Done():
			return
		}
	}
}

func (s *Store) checkpoint(ctx context.Context, c *checkpointer) {
	err := c.run(ctx)
	if err != nil && !c.failed && ctx.Err() == nil {
		s.log.Warn("the database's log cannot be moved into its file and grows; it is tried again every second", "error", err)
	}
	c.failed = err != nil
}

// run moves what is there; of a long log also what comes meanwhile, which is less each time, until little is left to be done in a
// writer's turn. Then all of it is in the file, and the next writer begins the log anew, unless a reader needs what is in it.
func (c *checkpointer) run(ctx context.Context) error {
	pages, moved, err := checkpoint(ctx, c.beside, "PASSIVE")
	for before := 0; err == nil && pages >= longLog && moved == pages && pages-before >= longLog/16; {
		before = pages
		if pages, moved, err = checkpoint(ctx, c.beside, "PASSIVE"); pages-before >= longLog {
			return err // writers are faster than the disk
		}
	}
	if err != nil || pages < longLog || moved < pages && pages < tooLongLog {
		return err
	}
	turn, cancel := context.WithTimeout(ctx, turnLimit)
	defer cancel()
	if err = c.takeTurn(turn, pages >= tooLongLog); turn.Err() != nil {
		return nil // others write: later
	}
	return err
}

// takeTurn does a checkpoint while nobody writes; wait: nobody reads either, if that comes to pass soon.
func (c *checkpointer) takeTurn(ctx context.Context, wait bool) (err error) {
	conn, err := c.write.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if !wait {
		_, _, err = checkpoint(ctx, conn, "PASSIVE")
		return err
	}
	defer func() {
		_, back := conn.ExecContext(context.WithoutCancel(ctx), fmt.Sprintf(`PRAGMA busy_timeout = %d`, busyLimit.Milliseconds()))
		err = errors.Join(err, back)
	}()
	if _, err := conn.ExecContext(ctx, fmt.Sprintf(`PRAGMA busy_timeout = %d`, readersLimit.Milliseconds())); err != nil {
		return err
	}
	_, _, err = checkpoint(ctx, conn, "RESTART")
	return err
}

// checkpoint moves what no reader keeps in the log, and returns how many pages the log had at the beginning and how many of them are
// in the file. Where somebody else is at it, it does nothing, and both are -1.
func checkpoint(ctx context.Context, on interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}, how string) (pages, moved int, err error) {
	var busy int
	err = on.QueryRowContext(ctx, `PRAGMA wal_checkpoint(`+how+`)`).Scan(&busy, &pages, &moved)
	return pages, moved, err
}
