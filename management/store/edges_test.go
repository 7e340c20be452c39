package store

import (
	"slices"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
)

func TestHistoryIsReadAsWritten(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   any
		want []management.Applied
		bad  bool
	}{
		{"none", `[]`, []management.Applied{}, false},
		{"one", `[{"r":7,"t":1700000000000000}]`, []management.Applied{{Revision: 7, At: 1700000000000000}}, false},
		{"several", `[{"r":7,"t":1},{"r":18446744073709551615,"t":-2}]`, []management.Applied{{Revision: 7, At: 1}, {Revision: 1<<64 - 1, At: -2}}, false},
		{"written by others", ` [ {"t":2, "r":9} ]`, []management.Applied{{Revision: 9, At: 2}}, false},
		{"bytes", []byte(`[{"r":7,"t":1}]`), []management.Applied{{Revision: 7, At: 1}}, false},
		{"cut off", `[{"r":7,"t":1},{"r":8`, nil, true},
		{"not JSON", `[{"r":7,"t":1}x]`, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []management.Applied
			err := history{&got}.Scan(tt.in)
			if (err != nil) != tt.bad || err == nil && !slices.Equal(got, tt.want) {
				t.Errorf("Scan = %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
	var long []management.Applied
	for i := range 64 {
		long = append(long, management.Applied{Revision: uint64(i), At: int64(i) * 1e9})
	}
	written, err := text(long)
	if err != nil {
		t.Fatal(err)
	}
	var got []management.Applied
	if err := (history{&got}).Scan(written); err != nil || !slices.Equal(got, long) {
		t.Errorf("Scan of what was written = %+v, %v", got, err)
	}
}

// Within one transaction edges are read once, and those that are no longer up are left out all the same.
func TestFindEdgesAgain(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *Store) {
		now := time.Now().UTC().Truncate(time.Microsecond)
		report := func(name string, sequence uint64, at time.Time) {
			t.Helper()
			_, err := s.Ingest(t.Context(), &management.Ingest{Edge: edgereport.Edge{Name: name, StartedAt: now}, Sequence: sequence, Now: at})
			if err != nil {
				t.Fatal(err)
			}
		}
		report("early", 1, now.Add(-10*time.Second))
		report("late", 1, now)
		err := s.View(t.Context(), func(tx management.Tx) error {
			names := func(since time.Time, limit int) (names []string) {
				t.Helper()
				edges, err := tx.FindEdges("", since, limit)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range edges {
					names = append(names, e.Name)
				}
				return names
			}
			for _, step := range []struct {
				since time.Duration // before now
				limit int
				want  []string
			}{
				{20 * time.Second, 100, []string{"early", "late"}},
				{5 * time.Second, 100, []string{"late"}},
				{20 * time.Second, 100, []string{"early", "late"}}, // earlier than what was read
				{20 * time.Second, 1, []string{"early"}},
				{5 * time.Second, 1, []string{"late"}}, // which was cut off before
			} {
				if got := names(now.Add(-step.since), step.limit); !slices.Equal(got, step.want) {
					t.Errorf("up since %v before, at most %d: %q, want %q", step.since, step.limit, got, step.want)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
