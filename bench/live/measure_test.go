//go:build linux

package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

func TestParseBenchmark(t *testing.T) {
	const output = `goos: linux
BenchmarkLookup/domains=10         	25000000	        47.11 ns/op	       0 B/op	       0 allocs/op
BenchmarkLookup/domains=100000-2   	20000000	        60 ns/op
PASS
`
	got, err := parseBenchmark([]byte(output))
	want := []benchmarkResult{{"BenchmarkLookup/domains=10", 47.11}, {"BenchmarkLookup/domains=100000", 60}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("parseBenchmark = %v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "PASS\n", "BenchmarkLookup/x 10 many ns/op\n"} {
		if _, err := parseBenchmark([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
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
	}
	if len(seen) != 2*(2+2+1)+1+3+2 {
		t.Errorf("%d cells", len(seen))
	}
}

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		args    string
		domains int
		partial bool
		wantErr bool
	}{
		{"", fullDomains, false, false},
		{"-quick", quickDomains, true, false},
		{"-quick -domains 1000", 1000, true, false},
		{"-domains 200000", 200_000, true, false},
		{"-run set", fullDomains, true, false},
		{"-domains 10", 0, false, true},
		{"-domains 50000000", 0, false, true},
		{"more", 0, false, true},
	} {
		t.Run(tt.args, func(t *testing.T) {
			opts, err := parseOptions(strings.Fields(tt.args))
			if (err != nil) != tt.wantErr || err == nil && (opts.Domains != tt.domains || opts.partial() != tt.partial) {
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
	for round, seconds := range []float64{9, 20, 10} {
		measured = append(measured, lab.Measurement{Round: round + 1, Cell: "scenario=set/cores=1/kind=replace", Values: map[string]float64{"seconds": seconds}})
	}
	for round, apply := range []float64{2, 3} {
		measured = append(measured, lab.Measurement{
			Round: round + 1, Cell: "scenario=handshake/cores=1",
			Values:  map[string]float64{"idle_p99_ms": 2, "apply_p99_ms": apply, "failed": float64(round)},
			Samples: map[string][]float64{"idle": {2}, "apply": {apply}},
		})
	}
	measured = append(measured,
		lab.Measurement{Round: 1, Cell: livePQProxy, Values: map[string]float64{"lost_bytes": 0, "reset": 2, "changes": 10_000}, Faults: []string{"it\nbroke"}},
		lab.Measurement{Round: 1, Cell: liveCaddyL4, Values: map[string]float64{"lost_bytes": 7}},
	)
	summary := renderSummary(e, fullDomains, measured)
	for _, want := range []string{
		"a processor, 2 cores, Linux 6.18, go1.26.8, commit abc. Large sets: 1000000 domains.\n\n- binary: v1\n- load average before: 0.1 0.2 0.3\n",
		"## Full sets\n\n| cell | figure | pqproxy | target | met |",
		"| cores=1 kind=replace | s, from the answer to live | 10.0 [9.00–20.0] | ≤ 15.0 | met |",
		"| cores=1 | p99 during apply, times idle; medians of rounds | 1.25 | ≤ 1.20 | **not met** |",
		"| cores=1 | p99 during apply, times idle; all rounds in one | 1.50 | ≤ 1.20 | **not met** |",
		"| cores=1 | handshakes failed | 0.50 [0.00–1.00] | ≤ 0.00 | **not met** |",
		"| bytes lost | 0.00 | 7.00 | ≤ 0.00 | met |",
		"| connections reset | 2.00 | – | ≤ 0.00 | **not met** |",
		"Faults in scenario=live/proxy=pqproxy, the first 1:\n\n- it; broke\n",
	} {
		if !strings.Contains(summary, want) {
			t.Errorf("the summary lacks %q:\n%s", want, summary)
		}
	}
	if strings.Contains(summary, "## Lookup") {
		t.Error("there is a section of what was not measured")
	}
}
