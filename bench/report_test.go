//go:build linux

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

func TestVerdict(t *testing.T) {
	figures := func(own, base float64) map[string]lab.Spread {
		return map[string]lab.Spread{"pqproxy": {Median: own}, baseline: {Median: base}}
	}
	for _, tt := range []struct {
		name       string
		row        row
		met, known bool
	}{
		{"no target", row{contender: figures(1, 2)}, false, false},
		{"ratio below", row{contender: figures(80, 100), target: 0.88}, true, true},
		{"ratio as the table rounds it", row{contender: figures(88.4, 100), target: 0.88}, true, true},
		{"ratio above", row{contender: figures(89, 100), target: 0.88}, false, true},
		{"no baseline", row{contender: map[string]lab.Spread{"pqproxy": {Median: 1}}, target: 1}, false, false},
		{"no pqproxy", row{contender: map[string]lab.Spread{baseline: {Median: 1}}, target: 1}, false, false},
		{"limit kept", row{contender: figures(124, 145), target: 124, absolute: true}, true, true},
		{"limit missed", row{contender: figures(124.1, 145), target: 124, absolute: true}, false, true},
		{"limit without pqproxy", row{contender: map[string]lab.Spread{baseline: {Median: 1}}, target: 124, absolute: true}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			met, known := tt.row.verdict()
			if known != tt.known || known && met != tt.met {
				t.Errorf("verdict() = %v, %v, want %v, %v", met, known, tt.met, tt.known)
			}
		})
	}
}

// measurements are made for every cell and contender that can run it: figure × 1, 2, 3 in three rounds.
func measurements(figure map[string]float64) []measurement {
	var all []measurement
	for round := 1; round <= 3; round++ {
		for _, c := range cells() {
			for contender, value := range figure {
				values := map[string]float64{}
				for _, m := range c.metrics {
					values[m.key] = value * float64(round)
				}
				all = append(all, measurement{Type: "measurement", Round: round, Cell: c.name, Contender: contender, Values: values})
			}
		}
	}
	return all
}

func TestRowsOf(t *testing.T) {
	rows := rowsOf(measurements(map[string]float64{"pqproxy": 40, baseline: 50}))

	full := rows[scenarioHandshake][0]
	if full.label != "group=X25519MLKEM768/kind=full/upstream=plain" || full.target != fullPlainTarget {
		t.Errorf("first row is %q with target %v", full.label, full.target)
	}
	if got, want := full.contender["pqproxy"], (lab.Spread{Median: 80, Least: 40, Most: 120}); got != want {
		t.Errorf("pqproxy = %+v, want %+v", got, want)
	}
	if ratio, ok := full.ratio("pqproxy"); !ok || ratio != 0.8 {
		t.Errorf("ratio = %v, %v, want 0.8", ratio, ok)
	}

	relay := rows[scenarioRelay]
	last := relay[len(relay)-1]
	if last.target != relayMedianTarget || last.contender["pqproxy"].Median != 0.8 || last.contender[baseline].Median != 1 {
		t.Errorf("the relay's last row is %+v, want the median ratio 0.8 of all cells", last)
	}
	if met, known := last.verdict(); !met || !known {
		t.Errorf("verdict of the relay's median = %v, %v, want met", met, known)
	}

	firstByte := rows[scenarioFirstByte]
	if hidden := firstByte[len(firstByte)-1]; !hidden.absolute || hidden.contender["pqproxy"].Median != 0 {
		t.Errorf("the last row of first_byte is %+v, want a difference of 0 between both cells", hidden)
	}
}

func TestRowsOfPartOfTheCells(t *testing.T) {
	var ping []measurement
	for _, m := range measurements(map[string]float64{"nginx": 1}) {
		if strings.HasPrefix(m.Cell, scenarioPing) {
			ping = append(ping, m)
		}
	}
	rows := rowsOf(ping)
	if len(rows) != 1 || len(rows[scenarioPing]) != 6 {
		t.Errorf("rows = %+v, want the six of ping alone", rows)
	}
}

func TestRenderSummary(t *testing.T) {
	e := environment{
		Time:     time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC),
		CPU:      "a processor",
		Cores:    2,
		Kernel:   "6.18",
		Go:       "go1.26.8",
		Versions: map[string]string{baseline: "v0.1.2"},
		Absent:   []string{"haproxy"},
		Options:  options{Rounds: 3, MemoryRounds: 3},
	}
	summary := renderSummary(e, measurements(map[string]float64{"pqproxy": 40, baseline: 50, "nginx": 200}))
	for _, want := range []string{
		"a processor, 2 cores, Linux 6.18, go1.26.8. Rounds: 3 (memory: 3).",
		"- haproxy: not installed",
		"| cell | figure | pqproxy | caddy-l4 | nginx | target | met |",
		"| group=X25519MLKEM768 kind=full upstream=plain | CPU ms per 1,000 connections | 80.0 [40.0–120] **×0.80** | 100 [50.0–150] | 400 [200–600] **×4.00** | 1.00 | met |",
		"| median of all cells | CPU per GiB, ratio | 0.80 **×0.80** | 1.00 | 4.00 **×4.00** | 0.85 | met |",
		"| upstream=tls | KiB per idle connection | 80.0 [40.0–120] **×0.80** | 100 [50.0–150] | 400 [200–600] **×4.00** | 0.35 | **not met** |",
	} {
		if !strings.Contains(summary, want) {
			t.Errorf("the summary lacks %q:\n%s", want, summary)
		}
	}
}

// Cell names choose with -run and join raw results with each other: one that stands twice would mix two cells.
func TestCellNames(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range cells() {
		if seen[c.name] {
			t.Errorf("%q stands twice", c.name)
		}
		seen[c.name] = true
		for part := range strings.SplitSeq(c.name, "/") {
			if key, value, ok := strings.Cut(part, "="); !ok || key == "" || value == "" {
				t.Errorf("%q: %q is not key=value", c.name, part)
			}
		}
	}
	if len(seen) != 8+12+2+2+2 {
		t.Errorf("%d cells", len(seen))
	}
}
