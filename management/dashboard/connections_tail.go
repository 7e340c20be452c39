package dashboard

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

const (
	tailPace    = 500 * time.Millisecond // between two events
	tailSpan    = time.Hour              // of what is shown at first
	tailRows    = recordRows
	tailShown   = 50 // rows of the part, and of one event
	tailCatchUp = 5  // events after which it is looked again for what came before the Plane's reader began: more than a second
	tailForget  = 30 // events after which no record comes twice
)

// showTail shows the newest records; a script adds those that come.
func showTail(c *ctx) error {
	page := c.recordsPage()
	page.Tail, page.Here = true, page.Follow
	q, err := c.recordFilter()
	if err == nil {
		page.Rows, err = c.newestRecords(q)
	}
	if page.Fault = c.filterFault(err, recordFields); err != nil && page.Fault == nil {
		return err
	}
	if page.Fault == nil {
		page.Live = c.url("/connections/tail/live", c.recordParams()...)
	}
	return c.render("connections", "Connections as they end", page)
}

// newestRecords returns what a tail begins with.
func (c *ctx) newestRecords(q management.ConnectionQuery) ([]recordRow, error) {
	q.To = c.now().UTC().Add(time.Minute) // edges' clocks may be ahead
	q.From = q.To.Add(-tailSpan)
	found, _, err := c.plane.FindConnections(c.ctx, c.who, q, management.Page{Limit: tailRows})
	return c.recordRows(found), err
}

// followTail streams records as they come. It begins with the newest, in place of what is shown: so nothing is missing, and nothing there twice, when
// the browser comes back after the network broke or the service began anew. Without a stream it answers with those.
func followTail(c *ctx) error {
	q, err := c.recordFilter()
	if err != nil {
		return err
	}
	if !strings.HasPrefix(c.r.Header.Get("Accept"), "text/event-stream") || c.r.Method == http.MethodHead {
		rows, err := c.newestRecords(q)
		if err != nil {
			return err
		}
		return c.fragment("connections", "part-records", recordsPage{Rows: rows})
	}
	tail, err := c.plane.TailConnections(c.ctx, c.who, q) // first, so that nothing comes between
	if err != nil {
		return err
	}
	defer tail.Close()
	return c.stream(func(s *stream) error { return s.follow(q, tail) })
}

// follow sends what comes until the stream ends.
func (s *stream) follow(q management.ConnectionQuery, tail *management.Tail) error {
	c, tenant := s.c, s.c.who.TenantID
	rows, err := c.newestRecords(q)
	if err != nil {
		return err
	}
	if err := s.sendFragment("fragment", "connections", "part-records", recordsPage{Rows: rows}); err != nil {
		return err
	}
	told := map[string]bool{} // IDs; while the tail and the database may give the same
	pace := time.NewTicker(tailPace)
	defer pace.Stop()
	for round := 1; ; round++ {
		for _, r := range rows {
			if told != nil {
				told[r.ID] = true
			}
		}
		select {
		case <-s.done():
			return nil
		case <-pace.C:
		}
		came, left := drain(tail)
		rows = c.recordRows(came)
		if round == tailCatchUp {
			missed, err := c.newestRecords(q)
			if err != nil {
				return err
			}
			rows = append(rows, missed...)
		}
		again := map[string]bool{}
		rows = slices.DeleteFunc(rows, func(r recordRow) bool {
			twice := told[r.ID] || again[r.ID]
			again[r.ID] = true
			return twice
		})
		if round == tailForget {
			told = nil
		}
		if len(rows) > 0 || left > 0 {
			if err := s.sendFragment("prepend", "connections", "part-records", recordsPage{Rows: rows, Left: left}); err != nil {
				return err
			}
		}
		if err := s.keep(); err != nil {
			return err
		}
		if s.c.who.TenantID != tenant {
			return nil // the user switched: the browser asks again, and gets that one's
		}
	}
}

// drain returns what has come, newest first and no more than is shown, and how many were left out.
func drain(tail *management.Tail) (came []*management.Connection, left int64) {
	for range 2000 { // more than wait at a time; a fast edge must not keep the loop going
		select {
		case r := <-tail.Records():
			came = append(came, r)
			continue
		default:
		}
		break
	}
	left = tail.Dropped()
	if n := len(came) - tailShown; n > 0 {
		came, left = came[n:], left+int64(n)
	}
	slices.Reverse(came)
	return came, left
}
