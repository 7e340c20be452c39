package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// sumColumns are what both usage and usage_inbox count.
const sumColumns = `connections, bytes_in, bytes_out, handshakes, post_quantum, hello_retries, refused`

var inboxColumns = []string{
	"tenant_id", "domain_id", "domain", "minute", "connections", "bytes_in", "bytes_out", "handshakes", "post_quantum", "hello_retries",
	"refused", "detail", "n",
}

// inboxKey is what a row of usage_inbox is known by.
const inboxKey = `tenant_id, domain_id, minute, n`

// inboxRows are the counters of a report. Their n is as good as unique: should a row have it already, the report is refused and comes again.
func inboxRows(in *management.Ingest) [][]any {
	rows := make([][]any, len(in.Usage))
	n := rand.Int64N(1 << 62)
	for i := range in.Usage {
		u := &in.Usage[i]
		rows[i] = []any{
			u.TenantID, u.ID, u.Name, u.Minute.UnixMicro(), u.Connections, u.BytesIn, u.BytesOut, u.Handshakes, u.PostQuantum, u.HelloRetries,
			u.Refused, detailText(&u.Detail), n + int64(i),
		}
	}
	return rows
}

// usageRows returns the query of the rows that a sum is made of: what was folded and what was not yet. Sums of all that a tenant has are
// made of its own rows, where nothing else is asked for.
func usageRows(q *management.UsageQuery) (query string, args []any) {
	width := q.Step.Duration().Microseconds()
	one := q.DomainID != "" || len(q.DomainIDs) > 0
	folded := `usage`
	if !one && q.Domain == "" && !q.ByDomain && !q.Detail {
		folded = `usage_totals`
	}
	part := func(from, start string, more string, moreArgs ...any) string {
		tenant := `tenant_id`
		if one && from == `usage` {
			tenant = `COALESCE(tenant_id, '')` // by the index of the domain: SQLite keeps no statistics by which it would know better
		}
		where := ` WHERE ` + tenant + ` = ? AND ` + start + ` >= ? AND ` + start + ` < ?` + more
		args = append(append(args, q.TenantID, q.From.UnixMicro(), q.To.UnixMicro()), moreArgs...)
		if q.DomainID != "" {
			where += ` AND domain_id = ?`
			args = append(args, q.DomainID)
		}
		if n := len(q.DomainIDs); n > 0 {
			where += ` AND domain_id IN (?` + strings.Repeat(`, ?`, n-1) + `)`
			for _, id := range q.DomainIDs {
				args = append(args, id)
			}
		}
		if q.Domain != "" {
			where += ` AND domain = ?`
			args = append(args, q.Domain)
		}
		columns := `start`
		if start == `minute` {
			columns = fmt.Sprintf(`minute - minute %% %d AS start`, width)
		}
		if folded != `usage_totals` {
			columns += `, domain_id, domain`
		}
		columns += `, ` + sumColumns
		if q.Detail {
			columns += `, detail` // else not: it is most of a row
		}
		return `SELECT ` + columns + ` FROM ` + from + where
	}
	query = part(folded, `start`, ` AND step = ?`, int(q.Step)) + ` UNION ALL ` + part(`usage_inbox`, `minute`, ``)
	return query, args
}

// FindUsage adds up what was folded and what was not yet, in one snapshot.
func (t *tx) FindUsage(q *management.UsageQuery) (sums []management.UsageSum, err error) {
	both, args := usageRows(q)
	if q.Detail {
		return t.findDetail(both, args)
	}
	var keys []string
	columns := `0`
	if q.ByStart {
		keys = append(keys, `start`)
		columns = `start`
	}
	if q.ByDomain {
		keys = append(keys, `domain_id`)
		columns += `, domain_id, MAX(domain) AS name`
	} else {
		columns += `, '', '' AS name`
	}
	for column := range strings.SplitSeq(sumColumns, ", ") {
		// In two halves: SQLite has no number for a sum beyond 63 bits, and the query would fail. PostgreSQL makes a NUMERIC of each.
		columns += `, CAST(SUM(` + column + ` / 4294967296) AS BIGINT), CAST(SUM(` + column + ` % 4294967296) AS BIGINT)`
	}
	query := `SELECT ` + columns + ` FROM (` + both + `) AS u`
	if len(keys) > 0 {
		query += ` GROUP BY ` + strings.Join(keys, `, `)
		order := slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return key == `domain_id` })
		query += ` ORDER BY ` + strings.Join(append(order, `name`), `, `)
	} else {
		query += ` HAVING COUNT(*) > 0`
	}
	err = t.each(query+` LIMIT ?`, append(args, q.Limit), func(rows *sql.Rows) error {
		var s management.UsageSum
		var start int64
		var n [7]halves
		if err := rows.Scan(&start, &s.DomainID, &s.Domain, &n[0].high, &n[0].low, &n[1].high, &n[1].low, &n[2].high, &n[2].low, &n[3].high, &n[3].low,
			&n[4].high, &n[4].low, &n[5].high, &n[5].low, &n[6].high, &n[6].low); err != nil {
			return err
		}
		s.Sums = management.Sums{
			Connections: n[0].sum(), BytesIn: n[1].sum(), BytesOut: n[2].sum(), Handshakes: n[3].sum(), PostQuantum: n[4].sum(),
			HelloRetries: n[5].sum(), Refused: n[6].sum(),
		}
		if q.ByStart {
			s.Start = time.UnixMicro(start).UTC()
		}
		sums = append(sums, s)
		return nil
	})
	return sums, err
}

// halves is a sum, of the upper and of the lower 32 bits of what was added up.
type halves struct{ high, low int64 }

// sum returns it, or the largest number there is.
func (h halves) sum() int64 {
	if high := h.high + h.low>>32; high < 1<<31 {
		return high<<32 | h.low&(1<<32-1)
	}
	return math.MaxInt64
}

// findDetail adds up by start, with what is in documents.
func (t *tx) findDetail(query string, args []any) (sums []management.UsageSum, err error) {
	var detail details
	err = t.each(`SELECT * FROM (`+query+`) AS u ORDER BY start`, args, func(rows *sql.Rows) error {
		var s management.UsageSum
		if err := rows.Scan(moment{&s.Start}, &s.DomainID, &s.Domain, &s.Connections, &s.BytesIn, &s.BytesOut, &s.Handshakes, &s.PostQuantum,
			&s.HelloRetries, &s.Refused, &detail); err != nil {
			return err
		}
		if n := len(sums); n > 0 && sums[n-1].Start.Equal(s.Start) {
			sums[n-1].Sums.Add(s.Sums)
		} else {
			sums = append(sums, s)
		}
		sums[len(sums)-1].Detail.Add(detail.Detail)
		return nil
	})
	return sums, err
}

// foldLock is the key of the advisory lock under which sums are made.
const foldLock = "7316392005119012883"

// usageKey names a row of usage.
type usageKey struct {
	domainID string
	step     management.Step
	start    int64
}

// usageRow is what is added to a row of usage.
type usageRow struct {
	tenantID, domain string
	sums             management.Sums
	detail           management.Detail
}

// sweep is how far FoldUsage is on its way through the inbox, tenant by tenant and domain by domain: what was counted of one domain in
// many reports becomes one change of each of its sums. What comes for those that it has passed is for the next one.
type sweep struct {
	mu sync.Mutex // guards the rest, and lets one call fold at a time
	sweepAt
}

// sweepAt is the first domain that is not folded yet. The zero value: a sweep begins.
type sweepAt struct{ tenant, domain string }

// FoldUsage moves rows of the inbox into the sums. One transaction does so at a time, since documents are read, added to and
// written.
func (s *Store) FoldUsage(ctx context.Context, from time.Time, limit int) (n int, err error) {
	limited, cancel := context.WithTimeout(ctx, updateLimit)
	defer cancel()
	db := s.observe
	if s.d.name == SQLite {
		db = s.write
	}
	s.fold.mu.Lock()
	defer s.fold.mu.Unlock()
	var at sweepAt
	err = s.apart(limited, db, func(t *tx, _ *sql.Conn) error {
		if s.d.name == Postgres {
			// PostgreSQL makes its statistics of the inbox when that is empty: it would read and sort all of it for a few rows.
			if _, err := t.exec(`SELECT pg_advisory_xact_lock(` + foldLock + `), set_config('enable_seqscan', 'off', TRUE),
				set_config('enable_sort', 'off', TRUE)`); err != nil {
				return err
			}
		}
		at = s.fold.sweepAt
		n, err = t.foldUsage(from.UnixMicro(), limit, &at)
		return err
	})
	if err == nil {
		s.fold.sweepAt = at
	}
	return n, s.fault(ctx, err)
}

// OneWriter reports whether whoever writes waits for whoever else does.
func (s *Store) OneWriter() bool { return s.d.name == SQLite }

func (t *tx) foldUsage(from int64, limit int, at *sweepAt) (n int, err error) {
	add := make(map[usageKey]*usageRow)
	for all := false; n < limit && !all; {
		all = *at == sweepAt{}
		took, err := t.takeInbox(from, limit-n, at, add)
		if err != nil {
			return 0, err
		}
		if n += took; n < limit {
			*at = sweepAt{} // the sweep has ended
		}
	}
	if n == 0 {
		return 0, nil
	}
	keys := make([]usageKey, 0, len(add))
	for key := range add {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b usageKey) int {
		return cmp.Or(strings.Compare(a.domainID, b.domainID), cmp.Compare(a.step, b.step), cmp.Compare(a.start, b.start))
	})
	const atOnce = 200
	for some := range slices.Chunk(keys, atOnce) {
		if err := t.addUsage(some, add); err != nil {
			return 0, err
		}
	}
	return n, t.addTotals(add)
}

var maxSum = strconv.Itoa(management.MaxSum)

// takeInbox returns what takes at most limit rows of a sweep out of the inbox.
func takeInbox(d *dialect, at *sweepAt, limit int) (query string, args []any) {
	const some = ` FROM usage_inbox WHERE (tenant_id, domain_id) >= (?, ?) ORDER BY tenant_id, domain_id, minute LIMIT ?`
	which := `(` + inboxKey + `) IN (SELECT ` + inboxKey + some + `)`
	if d.name == Postgres {
		// Where the rows are, instead of by the index again; and no join, of which one side would be guessed to be empty.
		which = `ctid = ANY (ARRAY(SELECT ctid` + some + `))`
	}
	return `DELETE FROM usage_inbox WHERE ` + which + ` RETURNING tenant_id, domain_id, domain, minute, ` + sumColumns + `, detail`,
		[]any{at.tenant, at.domain, limit}
}

// takeInbox takes at most limit rows of a sweep, and adds them up.
func (t *tx) takeInbox(from int64, limit int, at *sweepAt, add map[usageKey]*usageRow) (n int, err error) {
	query, args := takeInbox(t.d, at, limit)
	var detail details
	err = t.each(query, args, func(rows *sql.Rows) error {
		var r usageRow
		var domainID string
		var minute int64
		if err := rows.Scan(&r.tenantID, &domainID, &r.domain, &minute, &r.sums.Connections, &r.sums.BytesIn, &r.sums.BytesOut, &r.sums.Handshakes,
			&r.sums.PostQuantum, &r.sums.HelloRetries, &r.sums.Refused, &detail); err != nil {
			return err
		}
		n++
		if r.tenantID > at.tenant || r.tenantID == at.tenant && domainID > at.domain {
			at.tenant, at.domain = r.tenantID, domainID
		}
		for _, step := range []management.Step{management.Minute, management.Hour, management.Day} {
			if step == management.Minute && minute < from {
				continue
			}
			key := usageKey{domainID, step, minute - minute%step.Duration().Microseconds()}
			row := add[key]
			if row == nil {
				row = &usageRow{tenantID: r.tenantID, domain: r.domain}
				add[key] = row
			}
			row.sums.Add(r.sums)
			row.detail.Add(detail.Detail)
		}
		return nil
	})
	return n, err
}

// addUsage adds to rows of usage.
func (t *tx) addUsage(keys []usageKey, add map[usageKey]*usageRow) error {
	args := make([]any, 0, 3*len(keys))
	for _, k := range keys {
		args = append(args, k.domainID, int(k.step), k.start)
	}
	const one = `(CAST(? AS TEXT), CAST(? AS BIGINT), CAST(? AS BIGINT))`
	values := `VALUES ` + one + strings.Repeat(`, `+one, len(keys)-1)
	// Key by key: SQLite reads the whole table for (a, b, c) IN (VALUES …), and so does PostgreSQL while its statistics are of
	// a table that was empty.
	const row = `SELECT u.domain_id, u.step, u.start, u.detail FROM `
	const same = `usage AS u WHERE u.domain_id = k.column1 AND u.step = k.column2 AND u.start = k.column3`
	query := row + `(` + values + `) AS k CROSS JOIN ` + same // which SQLite takes in that order
	if t.d.name == Postgres {
		query = `SELECT u.* FROM (` + values + `) AS k, LATERAL (` + row + same + ` LIMIT 1) AS u`
	}
	var detail details
	err := t.each(query, args, func(rows *sql.Rows) error {
		var k usageKey
		if err := rows.Scan(&k.domainID, &k.step, &k.start, &detail); err != nil {
			return err
		}
		add[k].detail.Add(detail.Detail)
		return nil
	})
	if err != nil {
		return err
	}
	most := func(n int64) int64 { return min(n, management.MaxSum) }
	rows := make([][]any, len(keys))
	for i, k := range keys {
		r := add[k]
		rows[i] = []any{
			k.domainID, int(k.step), k.start, r.tenantID, r.domain, most(r.sums.Connections), most(r.sums.BytesIn), most(r.sums.BytesOut),
			most(r.sums.Handshakes), most(r.sums.PostQuantum), most(r.sums.HelloRetries), most(r.sums.Refused), detailText(&r.detail),
		}
	}
	var set []string
	for column := range strings.SplitSeq(sumColumns, ", ") {
		// Neither is above MaxSum, so what they add up to is a number.
		sum := `usage.` + column + ` + excluded.` + column
		set = append(set, column+` = CASE WHEN `+sum+` > `+maxSum+` THEN `+maxSum+` ELSE `+sum+` END`)
	}
	return insertRows(t, `INSERT INTO usage (domain_id, step, start, tenant_id, domain, `+sumColumns+`, detail) VALUES `,
		` ON CONFLICT (domain_id, step, start) DO UPDATE SET `+strings.Join(set, `, `)+`, detail = excluded.detail`, 13, rows)
}

// CountDropped counts records that edges left out.
func (t *tx) CountDropped(from, to time.Time) (n int64, err error) {
	err = t.get(`SELECT CAST(COALESCE(SUM(dropped), 0) AS BIGINT) FROM record_drops WHERE hour >= ? AND hour < ?`,
		[]any{from.Truncate(time.Hour).UnixMicro(), to.UnixMicro()}, &n)
	return n, err
}

// FindOldUsage finds domains with old sums.
func (t *tx) FindOldUsage(age management.UsageAge, after string, limit int) (domains []string, last string, more bool, err error) {
	query, args := findOldUsage(age, after, limit)
	n := 0
	err = t.each(query, args, func(rows *sql.Rows) error {
		var is bool
		if err := rows.Scan(&last, &is); err != nil {
			return err
		}
		if n++; is {
			domains = append(domains, last)
		}
		return nil
	})
	return domains, last, n == limit, err
}

// findOldUsage steps from one domain to the next in the order of the primary key.
func findOldUsage(age management.UsageAge, after string, limit int) (query string, args []any) {
	var old []string
	args = []any{after}
	for step, before := range oldSteps(age) {
		old = append(old, `EXISTS (SELECT 1 FROM usage WHERE usage.domain_id = of.id AND step = ? AND start < ?)`)
		args = append(args, step, before)
	}
	return `WITH RECURSIVE of(id) AS (
			SELECT (SELECT MIN(domain_id) FROM usage WHERE domain_id > ?)
			UNION ALL SELECT (SELECT MIN(usage.domain_id) FROM usage WHERE usage.domain_id > of.id) FROM of WHERE of.id IS NOT NULL
		) SELECT id, ` + strings.Join(old, ` OR `) + ` FROM of WHERE id IS NOT NULL LIMIT ?`, append(args, limit)
}

// oldSteps returns before when the sums of a step are old, by step.
func oldSteps(age management.UsageAge) []int64 {
	return []int64{
		management.Minute: age.Minutes.UnixMicro(), management.Hour: age.Hours.UnixMicro(), management.Day: age.Days.UnixMicro(),
	}
}

// DeleteUsageBefore removes old sums of some domains.
func (t *tx) DeleteUsageBefore(age management.UsageAge, domains []string, limit int) (int, error) {
	if len(domains) == 0 {
		return 0, nil
	}
	query, args := deleteOldUsage(age, domains, limit)
	n, err := t.exec(query, args...)
	return int(n), err
}

func deleteOldUsage(age management.UsageAge, domains []string, limit int) (query string, args []any) {
	var old []string
	for step, before := range oldSteps(age) {
		old = append(old, `SELECT domain_id, step, start FROM usage
			WHERE domain_id IN (?`+strings.Repeat(`, ?`, len(domains)-1)+`) AND step = ? AND start < ?`)
		for _, id := range domains {
			args = append(args, id)
		}
		args = append(args, step, before)
	}
	// One SELECT around: else SQLite reads the whole table.
	return `DELETE FROM usage WHERE (domain_id, step, start) IN
		(SELECT domain_id, step, start FROM (` + strings.Join(old, ` UNION ALL `) + `) AS old LIMIT ?)`, append(args, limit)
}

// DeleteDroppedBefore removes old counts.
func (t *tx) DeleteDroppedBefore(before time.Time) error {
	_, err := t.exec(`DELETE FROM record_drops WHERE hour < ?`, before.UnixMicro())
	return err
}

// DeleteUsageOf removes sums, and what would become sums.
func (t *tx) DeleteUsageOf(tenantID, domainID string, limit int) (n int, err error) {
	where, args := `tenant_id = ?`, []any{tenantID}
	if domainID == "" {
		n, err = t.deleteTenantUsage(tenantID, limit)
	} else {
		where, args = `tenant_id = ? AND domain_id = ?`, []any{tenantID, domainID}
		n, err = t.deleteDomainUsage(tenantID, domainID, limit)
	}
	if err != nil {
		return 0, err
	}
	inbox, err := t.exec(`DELETE FROM usage_inbox WHERE (`+inboxKey+`) IN (SELECT `+inboxKey+` FROM usage_inbox WHERE `+where+` LIMIT ?)`, append(args, limit)...)
	return n + int(inbox), err
}

// InsertPurge remembers what is to be removed.
func (t *tx) InsertPurge(p management.Purge) error {
	_, err := t.exec(`INSERT INTO purges (tenant_id, domain_id, due) VALUES (?, ?, ?)
		ON CONFLICT (tenant_id, domain_id) DO UPDATE SET due = excluded.due`, p.TenantID, p.DomainID, p.Due.UnixMicro())
	return err
}

// FindPurges returns those that are due.
func (t *tx) FindPurges(now time.Time, limit int) (due []management.Purge, err error) {
	err = t.each(`SELECT tenant_id, domain_id, due FROM purges WHERE due <= ? ORDER BY due LIMIT ?`, []any{now.UnixMicro(), limit}, func(rows *sql.Rows) error {
		var p management.Purge
		err := rows.Scan(&p.TenantID, &p.DomainID, moment{&p.Due})
		due = append(due, p)
		return err
	})
	return due, err
}

// DeletePurge forgets one.
func (t *tx) DeletePurge(p management.Purge) error {
	_, err := t.exec(`DELETE FROM purges WHERE tenant_id = ? AND domain_id = ?`, p.TenantID, p.DomainID)
	return err
}
