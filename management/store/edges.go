package store

import (
	"database/sql"
	"strconv"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

const edgeColumns = `name, id, token_id, first_seen, last_seen, region, version, started_at, epoch, revision, history_from, draining,
	live_connections, dropped, unknown, other_started_at, other_seen, conflict_at`

func scanEdge(r *management.EdgeRow) []any {
	return []any{
		&r.Name, &r.ID, &r.TokenID, moment{&r.FirstSeen}, moment{&r.LastSeen}, &r.Region, &r.Version, moment{&r.StartedAt}, &r.Epoch,
		&r.Revision, &r.HistoryFrom, &r.Draining, &r.LiveConnections, &r.Dropped, &r.Unknown, moment{&r.OtherStartedAt},
		moment{&r.OtherSeen}, moment{&r.ConflictAt},
	}
}

// edgesFound is an answer of FindEdges.
type edgesFound struct {
	after string
	since time.Time
	limit int
	found []*management.EdgeRow
}

// history scans what putHistory wrote: up to 64 entries of every edge that is up, where a domain is shown that changed lately. What
// package json makes of the one form that it writes itself is read here in a tenth of the time.
type history struct{ to *[]management.Applied }

func (h history) Scan(v any) error {
	text, ok := v.(string)
	if !ok {
		return document{h.to}.Scan(v)
	}
	entries := make([]management.Applied, 0, strings.Count(text, "{"))
	for rest := strings.TrimPrefix(text, "["); rest != "" && rest != "]"; {
		one, after, closed := strings.Cut(rest, "}")
		one = strings.TrimPrefix(one, ",")
		revision, at, both := strings.Cut(strings.TrimPrefix(one, `{"r":`), `,"t":`)
		r, err := strconv.ParseUint(revision, 10, 64)
		t, err2 := strconv.ParseInt(at, 10, 64)
		if !closed || !both || err != nil || err2 != nil {
			return document{h.to}.Scan(v)
		}
		entries, rest = append(entries, management.Applied{Revision: r, At: t}), after
	}
	*h.to = entries
	return nil
}

// FindEdge finds an edge by its name.
func (t *tx) FindEdge(name string) (*management.EdgeRow, error) {
	r := new(management.EdgeRow)
	if err := t.get(`SELECT `+edgeColumns+` FROM edges WHERE name = ?`, []any{name}, scanEdge(r)...); err != nil {
		return nil, err
	}
	return r, nil
}

// FindEdges returns edges by name. Where many domains are looked at in one transaction, each look asks for the edges that are
// up, at a moment a little later: those read first are then taken again.
func (t *tx) FindEdges(after string, since time.Time, limit int) (all []*management.EdgeRow, err error) {
	if m := t.edges; m != nil && m.after == after && m.limit == limit && len(m.found) < limit && !since.Before(m.since) {
		for _, r := range m.found {
			if r.LastSeen.After(since) {
				all = append(all, r)
			}
		}
		return all, nil
	}
	if !since.IsZero() {
		defer func() {
			if err == nil {
				t.edges = &edgesFound{after, since, limit, all}
			}
		}()
	}
	from := int64(-1)
	if !since.IsZero() {
		from = since.UnixMicro()
	}
	err = t.each(`SELECT `+edgeColumns+` FROM edges WHERE name > ? AND last_seen > ? ORDER BY name LIMIT ?`, []any{after, from, limit},
		func(rows *sql.Rows) error {
			r := new(management.EdgeRow)
			all = append(all, r)
			return rows.Scan(scanEdge(r)...)
		})
	return all, err
}

// FindEdgeHistories finds them.
func (t *tx) FindEdgeHistories(names []string) (map[string][]management.Applied, error) {
	comparison, list, err := t.anyOf(names)
	if err != nil {
		return nil, err
	}
	found := make(map[string][]management.Applied, len(names))
	err = t.each(`SELECT edge, history FROM edge_histories WHERE edge`+comparison, []any{list}, func(rows *sql.Rows) error {
		var name string
		var entries []management.Applied
		err := rows.Scan(&name, history{&entries})
		found[name] = entries
		return err
	})
	return found, err
}

// putHistory stores the history of an edge, in place of what was there.
func (t *tx) putHistory(e *management.EdgeRow) error {
	history, err := text(e.History)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO edge_histories (edge, history) VALUES (?, ?) ON CONFLICT (edge) DO UPDATE SET history = excluded.history`, e.Name, history)
	return err
}

// CountEdges counts them.
func (t *tx) CountEdges() (n int, err error) {
	err = t.get(`SELECT COUNT(*) FROM edges`, nil, &n)
	return n, err
}

const noEpoch = 1<<63 - 1 // later than all

// DeleteEdgesBefore forgets edges, their states first.
func (t *tx) DeleteEdgesBefore(before, runs time.Time, limit int) (removed int, err error) {
	t.edges = nil
	var names []string
	err = t.each(`SELECT name FROM edges WHERE last_seen < ? ORDER BY last_seen LIMIT ?`, []any{before.UnixMicro(), limit}, func(rows *sql.Rows) error {
		var name string
		err := rows.Scan(&name)
		names = append(names, name)
		return err
	})
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		if removed >= limit {
			return removed, nil
		}
		n, err := t.deleteStates(name, noEpoch, limit-removed)
		if err != nil {
			return removed, err
		}
		if removed += n; n > 0 {
			continue // the edge goes when nothing of it is left
		}
		if _, err := t.exec(`DELETE FROM edge_histories WHERE edge = ?`, name); err != nil {
			return removed, err
		}
		if n, err := t.exec(`DELETE FROM edges WHERE name = ?`, name); err != nil {
			return removed, err
		} else {
			removed += int(n)
		}
	}
	n, err := t.exec(`DELETE FROM edge_runs WHERE (edge, started_at) IN (SELECT edge, started_at FROM edge_runs WHERE last_seen < ? LIMIT ?)`,
		runs.UnixMicro(), limit)
	return removed + int(n), err
}

func (t *tx) updateEdge(e *management.EdgeRow) error {
	micro := func(at time.Time) int64 {
		if at.IsZero() {
			return 0
		}
		return at.UnixMicro()
	}
	return t.execOne(`UPDATE edges SET token_id = ?, last_seen = ?, region = ?, version = ?, started_at = ?, epoch = ?, revision = ?, history_from = ?,
		draining = ?, live_connections = ?, dropped = ?, unknown = ?, other_started_at = ?, other_seen = ?, conflict_at = ? WHERE name = ?`,
		e.TokenID, micro(e.LastSeen), e.Region, e.Version, micro(e.StartedAt), e.Epoch, int64(e.Revision), int64(e.HistoryFrom), e.Draining, e.LiveConnections,
		e.Dropped, e.Unknown, micro(e.OtherStartedAt), micro(e.OtherSeen), micro(e.ConflictAt), e.Name)
}
