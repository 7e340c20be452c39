package store

import (
	"context"
	"database/sql"
	"net/url"
	"time"
)

// SQLite appends commits to a log beside the file (WAL) and moves them into the file at a checkpoint, which takes as long as
// the disk needs for thousands of scattered pages. By default a commit does so every 1000 pages, while all other writers wait.
// Here nothing waits: a connection of its own does it beside them.
const (
	checkpointEvery = time.Second
	longLog         = 4096 // pages of 4 KiB, upon which writers are to begin the log anew
	checkpointLimit = time.Minute
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

// checkpoints does so for all files of s until ctx ends.
func (s *Store) checkpoints(ctx context.Context, files []*checkpointer) {
	tick := time.NewTicker(checkpointEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s.checkpointAll(ctx, files)
	}
}

func (s *Store) checkpointAll(ctx context.Context, files []*checkpointer) {
	for _, c := range files {
		err := c.run(ctx)
		if err != nil && !c.failed && ctx.Err() == nil {
			s.log.Warn("the database's log cannot be moved into its file and grows; it is tried again every second", "error", err)
		}
		c.failed = err != nil
	}
}

// run moves what is there. Once a long log is in the file but for what came meanwhile, that follows in a writer's turn: all of
// it is in the file then, and the next writer begins the log anew. A reader of an old state keeps both from happening; it is
// waited for by nobody.
func (c *checkpointer) run(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, checkpointLimit)
	defer cancel()
	pages, moved, err := checkpoint(limited, c.beside)
	if err == nil && pages >= longLog && pages-moved < longLog/4 {
		_, _, err = checkpoint(limited, c.write)
	}
	return err
}

// checkpoint moves what no reader keeps in the log, and returns how many pages the log has and how many of them are in the file.
// Where somebody else is at it, it does nothing.
func checkpoint(ctx context.Context, db *sql.DB) (pages, moved int, err error) {
	var busy int
	err = db.QueryRowContext(ctx, `PRAGMA wal_checkpoint(PASSIVE)`).Scan(&busy, &pages, &moved)
	return pages, moved, err
}
