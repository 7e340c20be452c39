package store

import (
	"cmp"
	"database/sql"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// Beside the sums of each domain there are those of all of a tenant's. Both change in the same transactions: they are the same
// figures, and to add up a day of ten thousand domains by hour would be to read 240,000 rows.

// totalKey names a row of usage_totals.
type totalKey struct {
	tenantID string
	step     management.Step
	start    int64
}

// maxTotal is where the sums of a tenant stop: far above MaxSum, so that no domain's lie hides what others did.
const maxTotal = 1 << 62

var maxTotalText = strconv.Itoa(maxTotal)

// addTotals adds to the sums of tenants what FoldUsage adds to those of domains. It comes after these: who waits for a row of
// usage_totals never has one of usage to wait for.
func (t *tx) addTotals(add map[usageKey]*usageRow) error {
	totals := make(map[totalKey]*management.Sums)
	for k, r := range add {
		key := totalKey{r.tenantID, k.step, k.start}
		if totals[key] == nil {
			totals[key] = new(management.Sums)
		}
		totals[key].Add(bounded(r.sums))
	}
	keys := make([]totalKey, 0, len(totals))
	for key := range totals {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b totalKey) int {
		return cmp.Or(strings.Compare(a.tenantID, b.tenantID), cmp.Compare(a.step, b.step), cmp.Compare(a.start, b.start))
	})
	rows := make([][]any, len(keys))
	for i, key := range keys {
		rows[i] = append([]any{key.tenantID, int(key.step), key.start}, sumValues(totals[key], maxTotal)...)
	}
	return insertRows(t, `INSERT INTO usage_totals (tenant_id, step, start, `+sumColumns+`) VALUES `,
		` ON CONFLICT (tenant_id, step, start) DO UPDATE SET `+eachSum(func(column string) string {
			return `CASE WHEN usage_totals.` + column + ` > ` + maxTotalText + ` - excluded.` + column + ` THEN ` + maxTotalText + `
				ELSE usage_totals.` + column + ` + excluded.` + column + ` END`
		}), 10, rows)
}

// bounded is what a row of usage takes of sums at a time.
func bounded(s management.Sums) management.Sums {
	for _, n := range sumFields(&s) {
		*n = min(*n, management.MaxSum)
	}
	return s
}

// sumFields are the columns sumColumns.
func sumFields(s *management.Sums) []*int64 {
	return []*int64{&s.Connections, &s.BytesIn, &s.BytesOut, &s.Handshakes, &s.PostQuantum, &s.HelloRetries, &s.Refused}
}

func sumValues(s *management.Sums, most int64) (values []any) {
	for _, n := range sumFields(s) {
		values = append(values, min(*n, most))
	}
	return values
}

// eachSum returns `column = what` for each of sumColumns.
func eachSum(what func(column string) string) string {
	var set []string
	for column := range strings.SplitSeq(sumColumns, ", ") {
		set = append(set, column+` = `+what(column))
	}
	return strings.Join(set, `, `)
}

// deleteDomainUsage removes sums of a domain, and takes them out of those of its tenant.
func (t *tx) deleteDomainUsage(tenantID, domainID string, limit int) (removed int, err error) {
	var rows [][]any
	err = t.each(`DELETE FROM usage WHERE (domain_id, step, start) IN (SELECT domain_id, step, start FROM usage WHERE domain_id = ? AND COALESCE(tenant_id, '') = ? LIMIT ?)
		RETURNING step, start, `+sumColumns, []any{domainID, tenantID, limit}, func(r *sql.Rows) error {
		var step, start int64
		var sums management.Sums
		to := []any{&step, &start}
		for _, n := range sumFields(&sums) {
			to = append(to, n)
		}
		if err := r.Scan(to...); err != nil {
			return err
		}
		rows = append(rows, append([]any{step, start}, sumValues(&sums, maxTotal)...))
		return nil
	})
	if err != nil {
		return 0, err
	}
	slices.SortFunc(rows, func(a, b []any) int { // as addTotals takes them
		return cmp.Or(cmp.Compare(a[0].(int64), b[0].(int64)), cmp.Compare(a[1].(int64), b[1].(int64)))
	})
	number := 2 // of the column of k
	set := eachSum(func(column string) string {
		number++
		k := `k.column` + string(rune('0'+number))
		return `CASE WHEN usage_totals.` + column + ` > ` + k + ` THEN usage_totals.` + column + ` - ` + k + ` ELSE 0 END`
	})
	one := `(` + strings.TrimSuffix(strings.Repeat(`CAST(? AS BIGINT), `, 9), `, `) + `)`
	const atOnce = 200
	for some := range slices.Chunk(rows, atOnce) {
		args := make([]any, 0, 9*len(some)+1)
		for _, row := range some {
			args = append(args, row...)
		}
		_, err := t.exec(`UPDATE usage_totals SET `+set+` FROM (VALUES `+one+strings.Repeat(`, `+one, len(some)-1)+`) AS k
			WHERE usage_totals.tenant_id = ? AND usage_totals.step = k.column1 AND usage_totals.start = k.column2`, append(args, tenantID)...)
		if err != nil {
			return 0, err
		}
	}
	return len(rows), nil
}

// deleteTenantUsage removes sums of a tenant, of all of it and of its domains.
func (t *tx) deleteTenantUsage(tenantID string, limit int) (removed int, err error) {
	for _, query := range []string{
		`DELETE FROM usage WHERE (domain_id, step, start) IN (SELECT domain_id, step, start FROM usage WHERE tenant_id = ? LIMIT ?)`,
		`DELETE FROM usage_totals WHERE (tenant_id, step, start) IN (SELECT tenant_id, step, start FROM usage_totals WHERE tenant_id = ? LIMIT ?)`,
	} {
		n, err := t.exec(query, tenantID, limit)
		if err != nil {
			return 0, err
		}
		removed += int(n)
	}
	return removed, nil
}

// DeleteTotalsBefore removes sums of tenants that are too old.
func (t *tx) DeleteTotalsBefore(step management.Step, before time.Time, limit int) (int, error) {
	n, err := t.exec(`DELETE FROM usage_totals WHERE (tenant_id, step, start) IN
		(SELECT tenant_id, step, start FROM usage_totals WHERE step + 0 = ? AND start - 0 < ? ORDER BY start - 0 LIMIT ?)`, int(step), before.UnixMicro(), limit)
	return int(n), err
}
