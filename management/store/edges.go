package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
)

const edgeColumns = `name, id, token_id, first_seen, last_seen, region, version, started_at, epoch, revision, history, draining,
	live_connections, dropped, unknown, other_started_at, other_seen, conflict_at`

func scanEdge(r *management.EdgeRow) []any {
	return []any{
		&r.Name, &r.ID, &r.TokenID, moment{&r.FirstSeen}, moment{&r.LastSeen}, &r.Region, &r.Version, moment{&r.StartedAt}, &r.Epoch,
		&r.Revision, history{&r.History}, &r.Draining, &r.LiveConnections, &r.Dropped, &r.Unknown, moment{&r.OtherStartedAt},
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

// history scans what updateEdge wrote. All edges that are up are read, with up to 64 entries each, wherever a domain is shown:
// what package json makes of the one form that it writes itself is read here in a tenth of the time.
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

// CountEdges counts them.
func (t *tx) CountEdges() (n int, err error) {
	err = t.get(`SELECT COUNT(*) FROM edges`, nil, &n)
	return n, err
}

// stateTables are those of what edges say of names, with their keys.
var stateTables = map[string]string{"edge_rejected": "name, edge", "edge_certificates": "name, edge", "edge_upstreams": "name, dial, edge"}

// deleteStates removes what an edge said before an epoch, at most limit rows.
func (t *tx) deleteStates(edge string, epoch int64, limit int) (removed int, err error) {
	for _, table := range slices.Sorted(maps.Keys(stateTables)) {
		if limit <= removed {
			break
		}
		key := stateTables[table]
		n, err := t.exec(`DELETE FROM `+table+` WHERE (`+key+`) IN (SELECT `+key+` FROM `+table+` WHERE edge = ? AND epoch < ? LIMIT ?)`,
			edge, epoch, limit-removed)
		if err != nil {
			return removed, err
		}
		removed += int(n)
	}
	return removed, nil
}

// DeleteOldStates removes what edges said in former lives. It asks for each edge, since a join would read all states.
func (t *tx) DeleteOldStates(limit int) (removed int, err error) {
	epochs := make(map[string]int64)
	err = t.each(`SELECT name, epoch FROM edges`, nil, func(rows *sql.Rows) error {
		var name string
		var epoch int64
		if err := rows.Scan(&name, &epoch); err != nil {
			return err
		}
		epochs[name] = epoch
		return nil
	})
	for name, epoch := range epochs {
		if err != nil || removed >= limit {
			break
		}
		var n int
		n, err = t.deleteStates(name, epoch, limit-removed)
		removed += n
	}
	return removed, err
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

// inChunks calls fn with pieces of names and with what stands for them in a query.
func inChunks(names []string, fn func(marks string, args []any) error) error {
	for some := range slices.Chunk(names, maxList) {
		args := make([]any, len(some))
		for i, name := range some {
			args[i] = name
		}
		if err := fn(`?`+strings.Repeat(`, ?`, len(some)-1), args); err != nil {
			return err
		}
	}
	return nil
}

// ownedNames is a table k of names for a query, and its arguments. PostgreSQL has one statement for any number of them, and one
// text is quick for SQLite to take apart.
func (t *tx) ownedNames(names []management.OwnedName) (table string, args []any, err error) {
	if t.d.name == SQLite {
		pairs := make([][2]string, len(names))
		for i, n := range names {
			pairs[i] = [2]string{n.TenantID, n.Name}
		}
		list, err := text(pairs)
		return `(SELECT value ->> 0 AS tenant_id, value ->> 1 AS name FROM json_each(?)) AS k`, []any{list}, err
	}
	tenants, texts := make([]string, len(names)), make([]string, len(names))
	for i, n := range names {
		tenants[i], texts[i] = n.TenantID, n.Name
	}
	return `unnest(CAST(? AS TEXT[]), CAST(? AS TEXT[])) AS k(tenant_id, name)`, []any{tenants, texts}, nil
}

// domainKeys reads what a query says of names.
func (t *tx) domainKeys(query string, args []any) (map[management.OwnedName]management.DomainKey, error) {
	keys := make(map[management.OwnedName]management.DomainKey)
	err := t.each(query, args, func(rows *sql.Rows) error {
		var asked management.OwnedName
		var k management.DomainKey
		err := rows.Scan(&asked.TenantID, &k.ID, &k.TenantID, &k.Name)
		asked.Name = k.Name
		keys[asked] = k
		return err
	})
	return keys, err
}

// FindDomainKeys finds domains name by name, each by the index that has just that: PostgreSQL takes all tenants for equally large,
// and would read the ten thousand names of one rather than look up thirty.
func (t *tx) FindDomainKeys(names []management.OwnedName) (map[management.OwnedName]management.DomainKey, error) {
	table, args, err := t.ownedNames(names)
	if err != nil {
		return nil, err
	}
	one := func(where string) string {
		if t.d.name == SQLite {
			return ` CROSS JOIN domains AS d WHERE ` + where // in that order
		}
		return ` CROSS JOIN LATERAL (SELECT id, tenant_id, name FROM domains AS d WHERE ` + where + ` LIMIT 1) AS d WHERE TRUE`
	}
	const columns = `SELECT k.tenant_id, d.id, d.tenant_id, d.name FROM `
	return t.domainKeys(columns+table+one(`d.tenant_id = k.tenant_id AND d.name = k.name`)+` AND k.tenant_id <> '' UNION ALL `+
		columns+table+one(`d.name = k.name AND d.proof <> ''`)+` AND k.tenant_id = ''`, append(args, args...))
}

// FindRemovedDomainKeys finds domains in what the feed remembers of removals.
func (t *tx) FindRemovedDomainKeys(names []management.OwnedName) (map[management.OwnedName]management.DomainKey, error) {
	table, args, err := t.ownedNames(names)
	if err != nil {
		return nil, err
	}
	return t.domainKeys(`SELECT k.tenant_id, f.domain_id, f.tenant_id, f.name FROM `+table+` CROSS JOIN feed AS f
		JOIN tenants AS t ON t.id = f.tenant_id AND t.deleted_at IS NULL
		WHERE f.name = k.name AND f.removed AND k.tenant_id IN (f.tenant_id, '')`, args)
}

// anyOf is what a column is compared with to be one of some texts, and the parameter of that.
func (t *tx) anyOf(texts []string) (comparison string, arg any, err error) {
	if t.d.name == SQLite {
		list, err := text(texts)
		return ` IN (SELECT value FROM json_each(?))`, list, err
	}
	return ` = ANY (CAST(? AS TEXT[]))`, texts, nil
}

// FindEdgeStates finds what edges say of names in their present life. It is one question, since it is asked wherever a domain is
// shown or changed.
func (t *tx) FindEdgeStates(names []string, since time.Time) (*management.EdgeStates, error) {
	const (
		rejected = iota
		certificate
		upstream
	)
	comparison, list, err := t.anyOf(names)
	if err != nil {
		return nil, err
	}
	var args []any
	part := func(kind int, columns, table string) string {
		args = append(args, list, since.UnixMicro())
		// In that order of the tables: SQLite would begin with all edges.
		return `SELECT ` + strconv.Itoa(kind) + `, s.edge AS edge, s.name AS name, ` + columns + ` FROM ` + table + ` AS s CROSS JOIN edges AS e
			WHERE s.name` + comparison + ` AND e.name = s.edge AND e.epoch = s.epoch AND e.last_seen > ?`
	}
	const none = `0, CAST(NULL AS BIGINT)`
	said := new(management.EdgeStates)
	err = t.each(part(rejected, `s.field, s.detail, '', '', `+none, `edge_rejected`)+` UNION ALL `+
		part(certificate, `s.source, s.issuer, s.state, s.error, s.since, s.not_after`, `edge_certificates`)+` UNION ALL `+
		part(upstream, `s.dial, s.error, '', '', `+none, `edge_upstreams`)+` ORDER BY name, edge`, args, func(rows *sql.Rows) error {
		var kind int
		var edge, name string
		var texts [4]string
		var since, notAfter time.Time
		if err := rows.Scan(&kind, &edge, &name, &texts[0], &texts[1], &texts[2], &texts[3], moment{&since}, moment{&notAfter}); err != nil {
			return err
		}
		switch kind {
		case rejected:
			said.Rejected = append(said.Rejected, management.EdgeRejection{
				Edge: edge, Rejected: edgereport.Rejected{Name: name, Field: texts[0], Detail: texts[1]},
			})
		case certificate:
			c := management.EdgeCertificateState{Edge: edge, Since: since, CertificateState: edgereport.CertificateState{
				Name: name, Source: texts[0], Issuer: texts[1], State: texts[2], Error: texts[3],
			}}
			if !notAfter.IsZero() {
				c.NotAfter = &notAfter
			}
			said.Certificates = append(said.Certificates, c)
		default:
			said.Upstreams = append(said.Upstreams, management.EdgeUpstreamState{
				Edge: edge, UpstreamState: edgereport.UpstreamState{Domain: name, Dial: texts[0], Error: texts[1]},
			})
		}
		return nil
	})
	return said, err
}

// Ingest stores a report. On SQLite the records come first, into their own file, where they are remembered as taken: what breaks
// off between the two is sent again and then counted.
func (s *Store) Ingest(ctx context.Context, in *management.Ingest) (done *management.Ingested, err error) {
	limited, cancel := context.WithTimeout(ctx, updateLimit)
	defer cancel()
	db := s.observe
	if s.d.name == SQLite {
		db = s.write
		if len(in.Connections) > 0 {
			err := s.apart(limited, s.observe, func(t *tx, _ *sql.Conn) error { return t.ingestRecords(in) })
			if err != nil {
				return nil, s.fault(ctx, fmt.Errorf("storing records: %w", err))
			}
		}
	}
	err = s.apart(limited, db, func(t *tx, conn *sql.Conn) error {
		done, err = t.ingest(in)
		if err != nil || done.Duplicate {
			return err
		}
		if s.d.name == SQLite {
			return insertRows(t, `INSERT INTO usage_inbox (`+strings.Join(inboxColumns, ", ")+`) VALUES `, ``, len(inboxColumns), inboxRows(in))
		}
		if err := copyRows(limited, conn, "usage_inbox", inboxColumns, inboxRows(in)); err != nil {
			return err
		}
		return copyRows(limited, conn, "connections", connectionColumns, connectionRows(in.Connections))
	})
	if err != nil {
		return nil, s.fault(ctx, fmt.Errorf("storing a report: %w", err))
	}
	return done, nil
}

// apart calls fn in a transaction that is no Update: others run beside it. fn may be called again from the start.
func (s *Store) apart(ctx context.Context, db *sql.DB, fn func(t *tx, conn *sql.Conn) error) (err error) {
	for range attempts {
		if err = s.apartOnce(ctx, db, fn); err == nil || !s.d.retry(err) || ctx.Err() != nil {
			break
		}
	}
	return err
}

func (s *Store) apartOnce(ctx context.Context, db *sql.DB, fn func(t *tx, conn *sql.Conn) error) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	begun, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer begun.Rollback() // without effect once committed
	t := &tx{ctx: ctx, d: s.d, on: begun}
	if err := fn(t, conn); err != nil {
		return err
	}
	if t.failed != nil {
		return t.failed
	}
	return begun.Commit()
}

// copyRows adds rows with PostgreSQL's COPY, in the transaction that the connection has begun.
func copyRows(ctx context.Context, conn *sql.Conn, table string, columns []string, rows [][]any) error {
	if len(rows) == 0 {
		return nil
	}
	return conn.Raw(func(driver any) error {
		on, ok := driver.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("the driver's connection is a %T", driver)
		}
		_, err := on.Conn().CopyFrom(ctx, pgx.Identifier{table}, columns, pgx.CopyFromRows(rows))
		return err
	})
}

// insertParams bounds the parameters of a statement: SQLite takes 32,766, PostgreSQL 65,535.
const insertParams = 4000

// insertRows runs an INSERT with many rows at a time. tail is what comes behind them.
func insertRows(t *tx, head, tail string, columns int, rows [][]any) error {
	one := `(?` + strings.Repeat(`, ?`, columns-1) + `)`
	for some := range slices.Chunk(rows, insertParams/columns) {
		args := make([]any, 0, len(some)*columns)
		for _, row := range some {
			args = append(args, row...)
		}
		if _, err := t.exec(head+one+strings.Repeat(`, `+one, len(some)-1)+tail, args...); err != nil {
			return err
		}
	}
	return nil
}

// ingest stores all of a report but for its counters and records.
func (t *tx) ingest(in *management.Ingest) (*management.Ingested, error) {
	started, now := in.Edge.StartedAt.UnixMicro(), in.Now.UnixMicro()
	_, err := t.exec(`INSERT INTO edges (`+edgeColumns+`) VALUES (?, ?, ?, ?, ?, '', '', 0, 0, 0, '[]', ?, 0, 0, 0, 0, 0, 0) ON CONFLICT (name) DO NOTHING`,
		in.Edge.Name, management.NewID(management.EdgeID), in.TokenID, now, now, false)
	if err != nil {
		return nil, err
	}
	lock := ``
	if t.d.name == Postgres {
		lock = ` FOR UPDATE` // reports of one edge, one after the other
	}
	e := new(management.EdgeRow)
	if err := t.get(`SELECT `+edgeColumns+` FROM edges WHERE name = ?`+lock, []any{in.Edge.Name}, scanEdge(e)...); err != nil {
		return nil, err
	}
	var last uint64
	var resend bool
	err = t.get(`SELECT last, resend FROM edge_runs WHERE edge = ? AND started_at = ?`, []any{e.Name, started}, &last, &resend)
	known := err == nil
	if err != nil && !errors.Is(err, management.ErrNoRow) {
		return nil, err
	}
	done := &management.Ingested{Before: e.Revision, Main: e.StartedAt.Equal(in.Edge.StartedAt)}
	if known && in.Sequence <= last {
		done.Duplicate, done.Resend = true, resend && in.Sequence == last
		_, err := t.exec(`UPDATE edges SET last_seen = ? WHERE name = ? AND started_at = ?`, now, e.Name, started)
		return done, err
	}
	forget := false
	switch {
	case !known, !done.Main && !e.LastSeen.After(in.Fresh): // a new life, or one that is all that is left
		done.Main, forget, done.Resend = true, true, known || in.Sequence != 1
		e.StartedAt = in.Edge.StartedAt
	case done.Main && in.Sequence != last+1:
		forget, done.Resend = true, true
	}
	if forget {
		e.Epoch++
	}
	if done.Main {
		e.LastSeen, e.TokenID, e.Region, e.Version = in.Now, in.TokenID, in.Edge.Region, in.Edge.Version
		e.Draining, e.LiveConnections = in.Draining, in.LiveConnections
		e.SetRevision(in.Revision, in.Now)
	} else {
		e.MeetOther(in.Edge.StartedAt, in.Now)
	}
	e.Dropped = min(e.Dropped+in.Dropped, management.MaxSum)
	e.Unknown = min(e.Unknown+in.Unknown, management.MaxSum)
	if err := t.updateEdge(e); err != nil {
		return nil, err
	}
	if _, err := t.exec(`INSERT INTO edge_runs (edge, started_at, last, resend, last_seen) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (edge, started_at) DO UPDATE SET last = excluded.last, resend = excluded.resend, last_seen = excluded.last_seen`,
		e.Name, started, int64(in.Sequence), done.Resend, now); err != nil {
		return nil, err
	}
	if !known {
		if err := t.trimRuns("edge_runs", e.Name); err != nil {
			return nil, err
		}
	}
	if in.Dropped > 0 {
		if _, err := t.exec(`INSERT INTO record_drops (hour, edge, dropped) VALUES (?, ?, ?)
			ON CONFLICT (hour, edge) DO UPDATE SET dropped = record_drops.dropped + excluded.dropped`,
			in.Now.Truncate(time.Hour).UnixMicro(), e.Name, in.Dropped); err != nil {
			return nil, err
		}
	}
	if !done.Main || done.Resend {
		return done, nil // what it says of states is not believed, or comes again
	}
	return done, t.putStates(e, in)
}

func (t *tx) updateEdge(e *management.EdgeRow) error {
	history, err := text(e.History)
	if err != nil {
		return err
	}
	micro := func(at time.Time) int64 {
		if at.IsZero() {
			return 0
		}
		return at.UnixMicro()
	}
	return t.execOne(`UPDATE edges SET token_id = ?, last_seen = ?, region = ?, version = ?, started_at = ?, epoch = ?, revision = ?, history = ?,
		draining = ?, live_connections = ?, dropped = ?, unknown = ?, other_started_at = ?, other_seen = ?, conflict_at = ? WHERE name = ?`,
		e.TokenID, micro(e.LastSeen), e.Region, e.Version, micro(e.StartedAt), e.Epoch, int64(e.Revision), history, e.Draining, e.LiveConnections,
		e.Dropped, e.Unknown, micro(e.OtherStartedAt), micro(e.OtherSeen), micro(e.ConflictAt), e.Name)
}

// runsOfEdge is how many lives of one edge are remembered. An honest one does not restart so often within a week.
const runsOfEdge = 1000

func (t *tx) trimRuns(table, edge string) error {
	_, err := t.exec(`DELETE FROM `+table+` WHERE (edge, started_at) IN
		(SELECT edge, started_at FROM `+table+` WHERE edge = ? ORDER BY last_seen DESC, started_at LIMIT ? OFFSET ?)`, edge, runsOfEdge, runsOfEdge)
	return err
}

// upstreamsOfEdge bounds the faulty upstreams that one edge can tell of: the names are bounded, the addresses are not.
const upstreamsOfEdge = 100000

// putStates stores what changed of an edge's states. A key that comes twice counts as it came last.
func (t *tx) putStates(e *management.EdgeRow, in *management.Ingest) error {
	now := in.Now.UnixMicro()
	rejected := make(map[string]*edgereport.Rejected, len(in.Rejected))
	for i := range in.Rejected {
		rejected[in.Rejected[i].Name] = &in.Rejected[i]
	}
	var put [][]any
	var end []string
	for _, name := range slices.Sorted(maps.Keys(rejected)) {
		if r := rejected[name]; r.Detail == "" {
			end = append(end, name)
		} else {
			put = append(put, []any{name, e.Name, e.Epoch, r.Field, r.Detail, now})
		}
	}
	if err := t.endStates("edge_rejected", e.Name, end); err != nil {
		return err
	}
	err := insertRows(t, `INSERT INTO edge_rejected (name, edge, epoch, field, detail, since) VALUES `,
		` ON CONFLICT (name, edge) DO UPDATE SET epoch = excluded.epoch, field = excluded.field, detail = excluded.detail, since = excluded.since`, 6, put)
	if err != nil {
		return err
	}

	certificates := make(map[string]*edgereport.CertificateState, len(in.Certificates))
	for i := range in.Certificates {
		certificates[in.Certificates[i].Name] = &in.Certificates[i]
	}
	put, end = nil, nil
	for _, name := range slices.Sorted(maps.Keys(certificates)) {
		c := certificates[name]
		if c.State == edgereport.CertificateGone {
			end = append(end, name)
			continue
		}
		var notAfter any
		if c.NotAfter != nil {
			notAfter = c.NotAfter.UnixMicro()
		}
		put = append(put, []any{name, e.Name, e.Epoch, c.Source, c.Issuer, notAfter, c.State, c.Error, now})
	}
	if err := t.endStates("edge_certificates", e.Name, end); err != nil {
		return err
	}
	err = insertRows(t, `INSERT INTO edge_certificates (name, edge, epoch, source, issuer, not_after, state, error, since) VALUES `,
		` ON CONFLICT (name, edge) DO UPDATE SET epoch = excluded.epoch, source = excluded.source, issuer = excluded.issuer,
		not_after = excluded.not_after, state = excluded.state, error = excluded.error,
		since = CASE WHEN edge_certificates.state = excluded.state THEN edge_certificates.since ELSE excluded.since END`, 9, put)
	if err != nil {
		return err
	}
	return t.putUpstreams(e, in)
}

func (t *tx) putUpstreams(e *management.EdgeRow, in *management.Ingest) error {
	if len(in.Upstreams) == 0 {
		return nil
	}
	type key struct{ name, dial string }
	upstreams := make(map[key]*edgereport.UpstreamState, len(in.Upstreams))
	for i := range in.Upstreams {
		u := &in.Upstreams[i]
		upstreams[key{u.Domain, u.Dial}] = u
	}
	var put, end [][]any
	for k, u := range upstreams {
		if u.Healthy {
			end = append(end, []any{k.name, k.dial, e.Name})
		} else {
			put = append(put, []any{k.name, k.dial, e.Name, e.Epoch, u.Error, in.Now.UnixMicro()})
		}
	}
	// Of IN (VALUES …) alone SQLite would read the whole table.
	err := insertRows(t, `DELETE FROM edge_upstreams WHERE (name, dial, edge) IN (SELECT column1, column2, column3 FROM (VALUES `, `) AS k)`, 3, end)
	if err != nil || len(put) == 0 {
		return err
	}
	var n int
	if err := t.get(`SELECT COUNT(*) FROM edge_upstreams WHERE edge = ? AND epoch = ?`, []any{e.Name, e.Epoch}, &n); err != nil {
		return err
	}
	put = put[:min(len(put), max(upstreamsOfEdge-n, 0))]
	return insertRows(t, `INSERT INTO edge_upstreams (name, dial, edge, epoch, error, since) VALUES `,
		` ON CONFLICT (name, dial, edge) DO UPDATE SET epoch = excluded.epoch, error = excluded.error`, 6, put)
}

// endStates removes what an edge said of names.
func (t *tx) endStates(table, edge string, names []string) error {
	return inChunks(names, func(marks string, args []any) error {
		_, err := t.exec(`DELETE FROM `+table+` WHERE edge = ? AND name IN (`+marks+`)`, append([]any{edge}, args...)...)
		return err
	})
}
