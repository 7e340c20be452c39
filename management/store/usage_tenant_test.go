package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// reported stores counters as an edge's report does.
func reported(t *testing.T, s *Store, sequence uint64, at time.Time, usage ...management.UsageEntry) {
	t.Helper()
	_, err := s.Ingest(t.Context(), &management.Ingest{
		Edge: edgereport.Edge{Name: "e1", StartedAt: at.Truncate(24 * time.Hour)}, Sequence: sequence, Now: at, Usage: usage,
	})
	if err != nil {
		t.Fatal(err)
	}
}

func used(tenant, domain string, minute time.Time, n int64) management.UsageEntry {
	return management.UsageEntry{
		DomainKey: management.DomainKey{TenantID: tenant, ID: domain, Name: domain + ".example.com"}, Minute: minute.Truncate(time.Minute),
		Sums:   management.Sums{Connections: n, BytesIn: 2 * n, BytesOut: 3 * n, Handshakes: 4 * n, PostQuantum: 5 * n, HelloRetries: 6 * n, Refused: 7 * n},
		Detail: management.Detail{Groups: map[string]int64{"X25519": n}},
	}
}

// totals returns what the sums of a tenant are, as kept for it and as its domains' add up to, by step.
func totals(t *testing.T, s *Store, tenant string, from, to time.Time) (own, of string) {
	t.Helper()
	view(t, s, func(tx *tx) error {
		for _, step := range []management.Step{management.Minute, management.Hour, management.Day} {
			q := management.UsageQuery{TenantID: tenant, Step: step, From: from.Truncate(24 * time.Hour), To: to.Add(24 * time.Hour).Truncate(24 * time.Hour), ByStart: true, Limit: 10000}
			kept, err := tx.FindUsage(&q)
			if err != nil {
				return err
			}
			q.ByDomain = true
			each, err := tx.FindUsage(&q)
			if err != nil {
				return err
			}
			var added []management.UsageSum
			for _, one := range each {
				if n := len(added); n == 0 || !added[n-1].Start.Equal(one.Start) {
					added = append(added, management.UsageSum{Start: one.Start})
				}
				added[len(added)-1].Add(one.Sums)
			}
			// What was taken out of a sum leaves a row of nothing.
			kept = slices.DeleteFunc(kept, func(u management.UsageSum) bool { return u.Sums == management.Sums{} })
			for _, u := range kept {
				own += fmt.Sprintln(step, u.Start, u.Sums)
			}
			for _, u := range added {
				of += fmt.Sprintln(step, u.Start, u.Sums)
			}
		}
		return nil
	})
	return own, of
}

// What is kept for a tenant is what its domains' sums add up to, whatever of it is folded, too old, or removed.
func TestTenantTotals(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *Store) {
		now := time.Date(2026, 3, 10, 15, 30, 0, 0, time.UTC)
		from := now.AddDate(0, 0, -3)
		same := func(when string) string {
			t.Helper()
			own, of := totals(t, s, "a", from, now)
			if own != of {
				t.Errorf("%s the tenant has\n%swhile its domains have\n%s", when, own, of)
			}
			return own
		}
		fold := func(limit int) {
			t.Helper()
			if _, err := s.FoldUsage(t.Context(), now.Add(-48*time.Hour), limit); err != nil {
				t.Fatal(err)
			}
		}
		reported(t, s, 1, now, used("a", "one", now, 1), used("a", "two", now, 10), used("a", "two", now.Add(-time.Hour), 100), used("a", "one", from, 1000),
			used("a", "two", from, 10000), used("b", "three", now, 5), used("b", "three", from, 6))
		all := same("before it is folded")
		if !strings.Contains(all, "{11 22 33 44 55 66 77}") || !strings.Contains(all, "{11000 ") {
			t.Fatalf("%s", all)
		}
		for i := range 7 {
			fold(1)
			same(fmt.Sprint("with so many folded: ", i+1))
		}
		reported(t, s, 2, now, used("a", "one", now, 1), used("a", "four", now, 2))
		same("with more to be folded")
		fold(100)
		if again := same("folded onto what was there"); !strings.Contains(again, "{14 28 42 56 70 84 98}") {
			t.Errorf("%s", again)
		}
		_, before := totals(t, s, "b", from, now)

		for removed := 1; removed > 0; {
			update(t, s, func(tx *tx) (err error) {
				removed, err = tx.DeleteUsageOf("a", "two", 2)
				return err
			})
			same("while a domain's are removed")
		}
		if left := same("without one of the domains"); !strings.Contains(left, "{4 8 12 16 20 24 28}") || !strings.Contains(left, "{1000 ") || strings.Contains(left, "{100 ") {
			t.Errorf("%s", left)
		}
		age, last := management.UsageAge{Hours: now.Add(-time.Hour)}, ""
		var old []string
		for more := true; more; {
			view(t, s, func(tx *tx) (err error) {
				var found []string
				found, last, more, err = tx.FindOldUsage(age, last, 1)
				old = append(old, found...)
				return err
			})
		}
		if want := []string{"one", "three"}; !slices.Equal(old, want) {
			t.Errorf("of %q there is something old, want %q", old, want)
		}
		for removed := 1; removed > 0; {
			update(t, s, func(tx *tx) (err error) {
				removed, err = tx.DeleteUsageBefore(age, old, 1)
				return err
			})
		}
		for removed := 1; removed > 0; {
			update(t, s, func(tx *tx) (err error) {
				removed, err = tx.DeleteTotalsBefore(management.Hour, age.Hours, 1)
				return err
			})
		}
		if left := same("without old hours"); strings.Contains(left, "hour "+from.Truncate(time.Hour).String()) || !strings.Contains(left, "day "+from.Truncate(24*time.Hour).String()) {
			t.Errorf("%s", left)
		}
		for removed := 1; removed > 0; {
			update(t, s, func(tx *tx) (err error) {
				removed, err = tx.DeleteUsageOf("a", "", 2)
				return err
			})
		}
		if own, of := totals(t, s, "a", from, now); own+of != "" {
			t.Errorf("of a tenant that is gone: %s%s", own, of)
		}
		var rows int
		if err := s.read.QueryRow(`SELECT COUNT(*) FROM usage_totals WHERE tenant_id = 'a'`).Scan(&rows); err != nil || rows != 0 {
			t.Errorf("%d rows are left; %v", rows, err)
		}
		if own, of := totals(t, s, "b", from, now); own == "" || strings.Contains(own, "hour "+from.Truncate(time.Hour).String()) || own != of || !strings.HasPrefix(before, own[:40]) {
			t.Errorf("of another tenant: %s%s", own, of)
		}
	})
}

// A domain that is said to have more than there can be neither breaks the sums of its tenant, nor those of others.
func TestTenantTotalsEnd(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *Store) {
		now := time.Date(2026, 3, 10, 15, 30, 0, 0, time.UTC)
		lie := func(domain string) management.UsageEntry {
			u := used("a", domain, now, 1)
			u.BytesIn = management.MaxSum
			return u
		}
		for i := range uint64(4) {
			reported(t, s, i+1, now, lie("one"), lie("one"), lie("two"), used("a", "three", now, 1))
			if _, err := s.FoldUsage(t.Context(), now.Add(-48*time.Hour), 3); err != nil {
				t.Fatal(err)
			}
		}
		update(t, s, func(tx *tx) error {
			// As if a thousand domains had lied before.
			_, err := tx.exec(`UPDATE usage_totals SET bytes_in = ?`, int64(maxTotal-1))
			return err
		})
		reported(t, s, 9, now, lie("one"))
		if _, err := s.FoldUsage(t.Context(), now.Add(-48*time.Hour), 100); err != nil {
			t.Fatal(err)
		}
		view(t, s, func(tx *tx) error {
			sums, err := tx.FindUsage(&management.UsageQuery{TenantID: "a", Step: management.Day, From: now.Truncate(24 * time.Hour), To: now.Add(24 * time.Hour), Limit: 10})
			if len(sums) != 1 || sums[0].BytesIn != maxTotal || sums[0].Connections != 17 {
				t.Errorf("%+v", sums)
			}
			return err
		})
	})
}

// However many rows others have, and domains of a tenant, a sum reads those that it is made of.
func TestUsageIsFoundByIndex(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *Store) {
		now := time.Date(2026, 3, 10, 15, 0, 0, 0, time.UTC)
		all := management.UsageQuery{TenantID: "a", Step: management.Hour, From: now.Add(-24 * time.Hour), To: now, Limit: 10}
		one, some, byDomain := all, all, all
		one.DomainID, some.DomainIDs, byDomain.ByDomain = "one", []string{"one", "two"}, true
		for name, c := range map[string]struct {
			q    management.UsageQuery
			want string // SQLite's plan
		}{
			"a tenant":           {all, "usage_totals USING PRIMARY KEY (tenant_id=? AND step=? AND start>? AND start<?)"},
			"a domain":           {one, "usage USING PRIMARY KEY (domain_id=? AND step=? AND start>? AND start<?)"},
			"some domains":       {some, "usage USING PRIMARY KEY (domain_id=? AND step=? AND start>? AND start<?)"},
			"all domains, apart": {byDomain, "usage USING INDEX usage_of_tenant (tenant_id=? AND step=? AND start>? AND start<?)"},
		} {
			query, args := usageRows(&c.q)
			plan := planOf(t, s, query, args)
			inbox := "usage_inbox_pkey"
			if s.d.name == SQLite {
				inbox = "SEARCH usage_inbox USING PRIMARY KEY (tenant_id=?"
			}
			if readsAll(plan) || !strings.Contains(plan, inbox) {
				t.Errorf("%s: rows of others are read:\n%s", name, plan)
			}
			if s.d.name == SQLite && !strings.Contains(plan, "SEARCH "+c.want) {
				t.Errorf("%s: %s\nwant %s", name, plan, c.want)
			}
		}
	})
}

// What goes on all the time beside the reports reads what it is to remove.
func TestUsageIsRemovedByIndex(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *Store) {
		take, takeArgs := takeInbox(s.d, &sweepAt{"a", "one"}, 10)
		old, oldArgs := deleteOldUsage(management.UsageAge{}, []string{"one", "two"}, 10)
		find, findArgs := findOldUsage(management.UsageAge{}, "one", 10)
		for query, args := range map[string][]any{take: takeArgs, find: findArgs, old: oldArgs} {
			if plan := planOf(t, s, query, args); readsAll(plan) {
				t.Errorf("%s\n%s", query, plan)
			}
		}
	})
}

func readsAll(plan string) bool {
	return strings.Contains(plan, "SCAN usage") || strings.Contains(plan, "Seq Scan")
}

// planOf returns how a query is to be run.
func planOf(t *testing.T, s *Store, query string, args []any) (plan string) {
	t.Helper()
	update(t, s, func(tx *tx) error {
		explain := `EXPLAIN QUERY PLAN `
		if tx.d.name == Postgres {
			explain = `EXPLAIN `
			if _, err := tx.exec(`SET LOCAL enable_seqscan = off`); err != nil { // which is right where there is nothing
				return err
			}
		}
		rows, err := tx.on.QueryContext(t.Context(), explain+tx.d.rebind(query), args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var line string
			to := []any{&line}
			if tx.d.name == SQLite {
				to = []any{new(int), new(int), new(int), &line}
			}
			if err := rows.Scan(to...); err != nil {
				return err
			}
			plan += line + "\n"
		}
		return rows.Err()
	})
	return plan
}
