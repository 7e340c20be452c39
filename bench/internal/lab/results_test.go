//go:build linux

package lab

import (
	"fmt"
	"path/filepath"
	"regexp"
	"testing"
)

func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		name   string
		figure Figure
		want   string
	}{
		{"no target", Figure{Metric{}, Spread{Median: 1}}, "–"},
		{"met", Figure{Metric{Limit: AtMost(15)}, Spread{Median: 14, Most: 16}}, "met"},
		{"met as the table shows it", Figure{Metric{Limit: AtMost(1.2)}, Spread{Median: 1.204}}, "met"},
		{"not met", Figure{Metric{Limit: AtMost(1.2)}, Spread{Median: 1.21}}, "**not met**"},
		{"none allowed", Figure{Metric{Limit: AtMost(0)}, Spread{Median: 1}}, "**not met**"},
		{"enough", Figure{Metric{Floor: AtLeast(12000)}, Spread{Median: 12_000}}, "met"},
		{"not enough", Figure{Metric{Floor: AtLeast(12000)}, Spread{Median: 11_999.7}}, "**not met**"},
		{"one of many", Figure{Metric{Limit: AtMost(0), Most: true}, Spread{Median: 0, Most: 1}}, "**not met**"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.figure.Verdict(); got != tt.want {
				t.Errorf("Verdict() = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestRecord(t *testing.T) {
	raw, err := CreateRaw(filepath.Join(t.TempDir(), "raw"), Object{"type": "environment"})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	cells := []Cell{{"scenario=a/n=1", []Metric{{Key: "ms", Unit: "ms"}}}, {"scenario=b/n=1", []Metric{{Key: "ms"}}}}
	r := &Results{Cells: cells, Filter: regexp.MustCompile("scenario=a"), Raw: raw}
	if !r.Wants("scenario=a") || !r.Wants("scenario=a/n=1") || r.Wants("scenario=b") || r.Wants("scenario=c") {
		t.Error("Wants does not follow the filter")
	}
	for round, ms := range []float64{3, 1} {
		if err := r.Record("scenario=a/n=1", round+1, map[string]float64{"ms": ms}, nil, make([]error, 0, 1)); err != nil {
			t.Error(err)
		}
	}
	if err := r.Record("scenario=b/n=1", 1, map[string]float64{"ms": 9}, nil, nil); err != nil || len(r.Measured) != 2 {
		t.Errorf("what is not asked for was recorded: %v, %+v", err, r.Measured)
	}
	if err := r.Record("scenario=c", 1, nil, nil, nil); err == nil {
		t.Error("a cell that is none was recorded")
	}
	var faults []error
	for i := range 25 {
		faults = append(faults, fmt.Errorf("fault %d", i))
	}
	if err := r.Record("scenario=a/n=1", 3, map[string]float64{"other": 1}, nil, faults); err != nil || len(r.Measured[2].Faults) != 20 {
		t.Errorf("recorded with faults: %v, %+v", err, r.Measured[2:])
	}
	figures := FiguresOf(cells[0], r.Measured)
	if want := (Spread{Median: 2, Least: 1, Most: 3}); len(figures) != 1 || figures[0].Values != want {
		t.Errorf("FiguresOf = %+v, want one of %+v", figures, want)
	}
	if got := FiguresOf(cells[1], r.Measured); got != nil {
		t.Errorf("figures of what was not measured: %+v", got)
	}
}

func TestPhaseRatios(t *testing.T) {
	c := Cell{Name: "scenario=handshake/n=1"}
	var measured []Measurement
	for _, ms := range []float64{2, 3, 10} {
		measured = append(measured, Measurement{
			Cell: c.Name, Values: map[string]float64{"idle_p99_ms": 2, "busy_p99_ms": ms},
			Samples: map[string][]float64{"idle": {1, 2}, "busy": {1, ms}},
		})
	}
	figures := PhaseRatios(c, measured, "busy", "idle", AtMost(1.5))
	if len(figures) != 2 {
		t.Fatalf("PhaseRatios = %+v", figures)
	}
	for i, want := range []float64{1.5, 5} {
		if got := figures[i].Values.Median; got != want || *figures[i].Limit != 1.5 {
			t.Errorf("%s is %v, want %v", figures[i].Unit, got, want)
		}
	}
	if got := PhaseRatios(Cell{Name: "other"}, measured, "busy", "idle", nil); got != nil {
		t.Errorf("ratios of what was not measured: %+v", got)
	}
}
