package store

import (
	"database/sql"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// FindStaleEdges returns edges that fell silent.
func (t *tx) FindStaleEdges(at time.Time, limit int) (all []*management.EdgeRow, err error) {
	err = t.each(`SELECT `+edgeColumns+` FROM edges WHERE last_seen <= ? ORDER BY last_seen DESC, name LIMIT ?`, []any{at.UnixMicro(), limit},
		func(rows *sql.Rows) error {
			r := new(management.EdgeRow)
			all = append(all, r)
			return rows.Scan(scanEdge(r)...)
		})
	return all, err
}

// CountEdgesSince counts edges by the index of their age.
func (t *tx) CountEdgesSince(at time.Time) (n int, err error) {
	err = t.get(`SELECT COUNT(*) FROM edges WHERE last_seen > ?`, []any{at.UnixMicro()}, &n)
	return n, err
}
