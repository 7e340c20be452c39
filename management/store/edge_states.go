package store

import (
	"database/sql"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
)

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
	if len(names) == 0 {
		return nil
	}
	comparison, list, err := t.anyOf(names)
	if err != nil {
		return err
	}
	_, err = t.exec(`DELETE FROM `+table+` WHERE edge = ? AND name`+comparison, edge, list)
	return err
}
