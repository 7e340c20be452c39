//go:build linux

package main

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

func newResults(t *testing.T, filter string) lab.Results {
	t.Helper()
	return lab.Results{Cells: cells, Filter: regexp.MustCompile(filter)}
}

func TestCellNames(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range cells {
		if seen[c.Name] {
			t.Errorf("%q stands twice", c.Name)
		}
		seen[c.Name] = true
		for part := range strings.SplitSeq(c.Name, "/") {
			if key, value, ok := strings.Cut(part, "="); !ok || key == "" || value == "" {
				t.Errorf("%q: %q is not key=value", c.Name, part)
			}
		}
		keys := map[string]bool{}
		for _, m := range c.Metrics {
			if keys[m.Key] {
				t.Errorf("%q has %q twice", c.Name, m.Key)
			}
			keys[m.Key] = true
		}
	}
	if len(seen) != 3*2+1+5+2 {
		t.Errorf("%d cells", len(seen))
	}
}

// Only the sets of the cells that are asked for are prepared: that takes long.
func TestSetsWanted(t *testing.T) {
	for _, tt := range []struct {
		filter string
		want   []string
	}{
		{"", []string{setTen, setStored, setTable}},
		{"scenario=visit", []string{setTen, setStored}},
		{"start/set=table", []string{setTen, setTable}},
		{"set=ten", []string{setTen}},
	} {
		b := &bench{Results: newResults(t, tt.filter)}
		if got := b.setsWanted(); !slices.Equal(got, tt.want) {
			t.Errorf("%q: %v, want %v", tt.filter, got, tt.want)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		args          string
		stored, table int
		partial       bool
		wantErr       bool
	}{
		{"", fullStored, fullTable, false, false},
		{"-quick", quickStored, quickTable, true, false},
		{"-quick -domains-table 100000", quickStored, 100_000, true, false},
		{"-domains-stored 20000", 20_000, fullTable, true, false},
		{"-run start", fullStored, fullTable, true, false},
		{"-domains-stored 100", 0, 0, false, true},
		{"-domains-table 1", 0, 0, false, true},
		{"-domains-table 50000000", 0, 0, false, true},
		{"more", 0, 0, false, true},
	} {
		t.Run(tt.args, func(t *testing.T) {
			opts, err := parseOptions(strings.Fields(tt.args))
			if (err != nil) != tt.wantErr || err == nil && (opts.Stored != tt.stored || opts.Table != tt.table || opts.partial() != tt.partial) {
				t.Errorf("parseOptions = %+v, %v", opts, err)
			}
		})
	}
}

func TestRenderSummary(t *testing.T) {
	e := lab.Environment{
		Time: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), CPU: "a processor", Cores: 2, Kernel: "6.18", Go: "go1.26.8",
		Commit: "abc", Binary: "v1", Load: "0.1 0.2 0.3",
	}
	var measured []lab.Measurement
	for round, seconds := range []float64{3, 20, 4} {
		measured = append(measured, lab.Measurement{Round: round + 1, Cell: startCell(setStored, fromKept), Values: map[string]float64{"seconds": seconds}})
	}
	for round, sweep := range []float64{2, 3} {
		measured = append(measured, lab.Measurement{
			Round: round + 1, Cell: handshakeCell(setTable), Faults: []string{"sweep: it\nbroke"},
			Values:  map[string]float64{"ten_p99_ms": 2, "sweep_p99_ms": sweep, "again_p99_ms": 2, "failed": float64(round)},
			Samples: map[string][]float64{"ten": {2}, "sweep": {sweep}, "again": {2.5}},
		})
	}
	measured = append(measured, lab.Measurement{Round: 1, Cell: memoryCell(setStored, visitedMany), Values: map[string]float64{"proportion": 1.2}})
	summary := renderSummary(e, options{Stored: fullStored, Table: fullTable}, measured)
	for _, want := range []string{
		"go1.26.8, commit abc. 100000 domains with certificates in storage (stored), 1000000 in the table, of which 10 have one (table), and those alone (ten).\n\n- binary: v1\n",
		"## Start\n\n| cell | figure | pqproxy | target | met |",
		"| set=stored from=kept | s, from the process's start to the first handshake | 4.00 [3.00–20.0] | ≤ 5.00 | met |",
		"| set=table | p99 during sweep, times ten; medians of rounds | 1.25 | ≤ 1.05 | **not met** |",
		"| set=table | p99 during sweep, times ten; all rounds in one | 1.50 | ≤ 1.05 | **not met** |",
		"| set=table | p99 during again, times ten; all rounds in one | 1.25 | – | – |",
		"| set=table | handshakes failed | 0.50 [0.00–1.00] | ≤ 0.00 | **not met** |",
		"| set=stored visited=many | KiB per name of many, times that of some, HeapInuse | 1.20 | ≤ 1.10 | **not met** |",
		"Faults in scenario=handshake/set=table, round 2, the first 1:\n\n- sweep: it; broke\n",
	} {
		if !strings.Contains(summary, want) {
			t.Errorf("the summary lacks %q:\n%s", want, summary)
		}
	}
	if strings.Contains(summary, "## Visits") {
		t.Error("there is a section of what was not measured")
	}
}
