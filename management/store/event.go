package store

import (
	"database/sql"
	"encoding/json"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// InsertEvent adds an entry to the audit log.
func (t *tx) InsertEvent(e *management.Event) error {
	_, err := t.exec(`INSERT INTO events (id, at, tenant_id, actor, action, object, client_ip, request_id, before, after)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		e.ID, e.Time.UnixMicro(), e.TenantID, e.Actor, e.Action, e.Object, e.ClientIP, e.RequestID, orNull(e.Before), orNull(e.After))
	return err
}

// orNull is how the log keeps an object that there was not.
func orNull(object json.RawMessage) string {
	if len(object) == 0 {
		return "null"
	}
	return string(object)
}

// maxEvents bounds what one call of FindEvents returns.
const maxEvents = 1000

// FindEvents returns entries, newest first: by ID, which begins with the time. A Limit outside of 1 to 1000 is 1000.
func (t *tx) FindEvents(f management.EventFilter) ([]*management.Event, error) {
	where, args := []string{"1 = 1"}, []any(nil)
	and := func(condition string, arg any) {
		where = append(where, condition)
		args = append(args, arg)
	}
	for _, equal := range []struct{ column, value string }{
		{"actor", f.Actor}, {"action", f.Action}, {"object", f.Object},
	} {
		if equal.value != "" {
			and(equal.column+" = ?", equal.value)
		}
	}
	switch {
	case f.TenantID == "":
	case f.Platform:
		and("(tenant_id IN (?, '') OR action IN ('tenant.created', 'tenant.updated', 'tenant.deleted'))", f.TenantID)
	default:
		and("tenant_id = ?", f.TenantID)
	}
	if f.Before != "" {
		and("id < ?", f.Before)
	}
	if !f.From.IsZero() {
		and("at >= ?", f.From.UnixMicro())
	}
	if !f.To.IsZero() {
		and("at < ?", f.To.UnixMicro())
	}
	limit := f.Limit
	if limit < 1 || limit > maxEvents {
		limit = maxEvents
	}
	var events []*management.Event
	err := t.each(`SELECT id, at, tenant_id, actor, action, object, client_ip, request_id, before, after FROM events
		WHERE `+strings.Join(where, " AND ")+` ORDER BY id DESC LIMIT ?`, append(args, limit), func(rows *sql.Rows) error {
		e := new(management.Event)
		events = append(events, e)
		return rows.Scan(&e.ID, moment{&e.Time}, &e.TenantID, &e.Actor, &e.Action, &e.Object, &e.ClientIP, &e.RequestID,
			document{&e.Before}, document{&e.After})
	})
	return events, err
}

// DeleteEventsBefore removes entries that are older, at most limit, and returns how many.
func (t *tx) DeleteEventsBefore(before time.Time, limit int) (int, error) {
	n, err := t.exec(`DELETE FROM events WHERE id IN (SELECT id FROM events WHERE at < ? ORDER BY at LIMIT ?)`, before.UnixMicro(), limit)
	return int(n), err
}
