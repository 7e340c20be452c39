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

// Entries about tenants themselves, as the index events_about_tenants has them.
const aboutTenants = `action IN ('tenant.created', 'tenant.updated', 'tenant.deleted')`

// FindEvents returns entries, newest first: by ID, which begins with the time. A Limit outside of 1 to 1000 is 1000.
func (t *tx) FindEvents(f management.EventFilter) ([]*management.Event, error) {
	limit := f.Limit
	if limit < 1 || limit > maxEvents {
		limit = maxEvents
	}
	var parts []string
	var args []any
	// part is one range of an index, of which the newest are read: no part is sorted, and none walks through what is others'.
	part := func(where, order string, values ...any) {
		args = append(args, values...)
		and := func(condition string, arg any) {
			where += " AND " + condition
			args = append(args, arg)
		}
		for _, equal := range []struct{ column, value string }{
			{"actor", f.Actor}, {"action", f.Action}, {"object", f.Object},
		} {
			if equal.value != "" {
				and(equal.column+" = ?", equal.value)
			}
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
		args = append(args, limit)
		parts = append(parts, `SELECT * FROM (SELECT id, at, tenant_id, actor, action, object, client_ip, request_id, before, after FROM events
			WHERE `+where+` ORDER BY `+order+` LIMIT ?) AS part`)
	}
	// As a range and not as a value: PostgreSQL would walk through everybody's entries by ID, to save itself the sorting of a few.
	const ofTenant, byTenant = `(tenant_id, id) >= (?, '') AND (tenant_id, id) < (?, '~')`, `tenant_id DESC, id DESC`
	switch {
	case f.TenantID == "":
		part(`1 = 1`, `id DESC`)
	case f.Platform:
		part(ofTenant, byTenant, f.TenantID, f.TenantID)
		part(ofTenant, byTenant, "", "")
		part(aboutTenants+` AND tenant_id <> ? AND tenant_id <> ''`, `id DESC`, f.TenantID)
	default:
		part(ofTenant, byTenant, f.TenantID, f.TenantID)
	}
	var events []*management.Event
	err := t.each(strings.Join(parts, ` UNION ALL `)+` ORDER BY id DESC LIMIT ?`, append(args, limit), func(rows *sql.Rows) error {
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
