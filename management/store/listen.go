package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	listenProbe    = 20 * time.Second // how often a silent connection is asked whether it is still there
	listenBackoff  = 100 * time.Millisecond
	listenMaxDelay = 10 * time.Second
)

// listen wakes who waits for a change when another instance makes one. It ends with ctx, and reconnects until then.
func (s *Store) listen(ctx context.Context, config *pgx.ConnConfig) {
	config = config.Copy()
	config.RuntimeParams["application_name"] += " (listening)"
	delay := listenBackoff
	for {
		heard, err := s.hear(ctx, config)
		if ctx.Err() != nil {
			return
		}
		if heard {
			delay = listenBackoff
		}
		s.log.Warn("lost the connection that announces changes of other instances", "error", err, "again_in", delay)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay/2 + rand.N(delay)):
		}
		delay = min(2*delay, listenMaxDelay)
	}
}

// hear listens over one connection until it is lost, and reports whether it ever stood.
func (s *Store) hear(ctx context.Context, config *pgx.ConnConfig) (heard bool, err error) {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return false, err
	}
	defer func() {
		// ctx may have ended; closing must still tell the server, and must not take long.
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Close(closing)
	}()
	if _, err := conn.Exec(ctx, `LISTEN `+revisionChannel); err != nil {
		return false, err
	}
	s.changes.announce() // there may have been changes that nobody told us of
	for {
		quiet, cancel := context.WithTimeout(ctx, listenProbe)
		_, err := conn.WaitForNotification(quiet)
		cancel()
		switch {
		case err == nil:
			s.changes.announce()
		case ctx.Err() != nil:
			return true, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			// A connection whose other end is gone without a word is as silent as one on which nothing happens.
			probe, cancel := context.WithTimeout(ctx, listenProbe/4)
			err := conn.Ping(probe)
			cancel()
			if err != nil {
				return true, err
			}
		default:
			return true, err
		}
	}
}
