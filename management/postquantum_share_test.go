package management_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// The figures of pages are those of /usage and of the report, whether they are folded or not.
func TestPostQuantumShares(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who, other := s.tenant(trusted), s.tenant(trusted)
		a, b, theirs := s.create(who, "a.example.com"), s.create(who, "b.example.com"), s.create(other, "c.example.com")
		quiet := s.create(who, "quiet.example.com")
		s.clock.at = time.Date(2026, 3, 10, 15, 30, 20, 0, time.UTC)
		now := s.clock.now()
		from := now.Add(-24 * time.Hour)
		s.newEdge("e1").tell(func(r *edgereport.Report) {
			r.Counters = []edgereport.Counter{
				counted(a, now, 4), counted(a, now.Add(-time.Hour), 8), counted(a, from, 16), counted(a, from.Add(-time.Minute), 32), counted(a, from.Add(-time.Hour), 64),
				counted(b, now, 128), counted(b, now.Add(-time.Hour), 7), counted(theirs, now, 1000),
			}
		}, false, false)
		check := func() {
			t.Helper()
			hours, err := s.PostQuantumByHour(t.Context(), who, from, now)
			if err != nil {
				t.Fatal(err)
			}
			if len(hours) != 25 || !hours[0].Start.Equal(from.Truncate(time.Hour)) || !hours[24].Start.Equal(now.Truncate(time.Hour)) {
				t.Fatalf("%v", hours)
			}
			used, err := s.FindUsage(t.Context(), who, "", from.Truncate(time.Hour), now, "hour")
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range hours {
				report, err := s.ReportPostQuantum(t.Context(), who, "", h.Start, h.Start.Add(time.Hour))
				if err != nil || report.Connections != h.Connections || report.PostQuantum != h.PostQuantum || report.Share != h.Share() {
					t.Errorf("%+v while the report says %+v; %v", h, report, err)
				}
				sum := int64(0)
				for _, u := range used {
					if u.Start.Equal(h.Start) {
						sum += u.Connections
					}
				}
				if sum != h.Connections { // of these, all completed the handshake
					t.Errorf("%+v while the usage is %d", h, sum)
				}
			}
			if got := fmt.Sprint(hours[0].PostQuantumShare, hours[1].PostQuantumShare, hours[23].PostQuantumShare, hours[24].PostQuantumShare); got != "{48 24} {0 0} {15 7} {132 66}" {
				t.Errorf("%s", got)
			}
			shares, err := s.PostQuantumShares(t.Context(), who, []string{b.ID, quiet.ID, a.ID, theirs.ID}, from, now)
			if got := fmt.Sprint(shares[a.ID], shares[b.ID], len(shares)); err != nil || got != "{28 14} {135 67} 2" {
				t.Errorf("%s; %v", got, err)
			}
			for _, id := range []string{a.ID, b.ID, quiet.ID} {
				report, err := s.ReportPostQuantum(t.Context(), who, id, from, now)
				if err != nil || report.Connections != shares[id].Connections || report.PostQuantum != shares[id].PostQuantum {
					t.Errorf("%+v while the report says %+v; %v", shares[id], report, err)
				}
			}
		}
		check()
		if _, err := s.store.FoldUsage(t.Context(), now.Add(-48*time.Hour), 3); err != nil {
			t.Fatal(err)
		}
		check()
		if err := management.FoldUsage(s.Plane, t.Context()); err != nil {
			t.Fatal(err)
		}
		check()

		if none, err := s.PostQuantumShares(t.Context(), who, nil, from, now); len(none) != 0 || err != nil {
			t.Errorf("of no domain: %v %v", none, err)
		}
		narrow := *who
		narrow.Scopes = management.Scopes{management.DomainsRead, management.ConnectionsRead}
		for code, calls := range map[management.Code][]func() error{
			management.Forbidden: {
				func() error { _, err := s.PostQuantumByHour(t.Context(), &narrow, from, now); return err },
				func() error {
					_, err := s.PostQuantumShares(t.Context(), &narrow, []string{a.ID}, from, now)
					return err
				},
			},
			management.Invalid: {
				func() error { _, err := s.PostQuantumByHour(t.Context(), who, now, now); return err },
				func() error { _, err := s.PostQuantumByHour(t.Context(), who, now.AddDate(0, 0, -32), now); return err },
				func() error { _, err := s.PostQuantumShares(t.Context(), who, []string{a.ID}, now, from); return err },
				func() error {
					_, err := s.PostQuantumShares(t.Context(), who, make([]string, 201), from, now)
					return err
				},
			},
		} {
			for i, call := range calls {
				if err := call(); management.CodeOf(err) != code {
					t.Errorf("%d: %v, want %s", i, err, code)
				}
			}
		}
	})
}

func TestFindDomainsOf(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who, other := s.tenant(trusted), s.tenant(trusted)
		var status management.Status
		for _, name := range []string{"a", "b", "c"} {
			status = s.create(who, name+".example.com").Status
		}
		s.create(other, "theirs.example.com")
		domains, more, err := s.FindDomainsOf(t.Context(), who, []management.Status{management.Degraded, status}, 2)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, d := range domains {
			names = append(names, d.Name)
		}
		if fmt.Sprint(names) != "[a.example.com b.example.com]" || len(more) != 1 || more[0] != status {
			t.Errorf("%v, more %v", names, more)
		}
		all, more, err := s.FindDomainsOf(t.Context(), who, management.Statuses, 3)
		if err != nil || len(all) != 3 || len(more) != 0 {
			t.Errorf("%v, more %v; %v", all, more, err)
		}
		narrow := *who
		narrow.Scopes = management.Scopes{management.UsageRead}
		if _, _, err := s.FindDomainsOf(t.Context(), &narrow, management.Statuses, 3); management.CodeOf(err) != management.Forbidden {
			t.Errorf("without the scope: %v", err)
		}
	})
}

func TestSummarizeEdges(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		operator := &management.Principal{Scopes: management.Scopes{management.Platform}}
		summary := func() string {
			t.Helper()
			sum, err := s.SummarizeEdges(t.Context(), operator, 2)
			if err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprint(sum.Up, " up ", sum.Stale, " stale")
			for _, e := range sum.Silent {
				text += " " + e.Name + " " + e.State
			}
			return text
		}
		if got := summary(); got != "0 up 0 stale" {
			t.Errorf("%s", got)
		}
		for _, name := range []string{"e1", "e2", "e3", "e4"} {
			s.newEdge(name).tell(nil, false, false)
			s.clock.pass(60 * time.Second)
		}
		if got := summary(); got != "1 up 3 stale e3 stale e2 stale" {
			t.Errorf("%s", got)
		}
		if _, err := s.SummarizeEdges(t.Context(), s.tenant(trusted), 2); management.CodeOf(err) != management.Forbidden {
			t.Errorf("without the scope: %v", err)
		}
	})
}
