//go:build linux

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// Cell is one measurement: a scenario with every parameter fixed. Its name is made of key=value, so that -run can
// choose and raw results can be joined.
type Cell struct {
	Name    string
	Metrics []Metric // the first is the main figure
}

// Metric is one figure of a cell. Less is better where there is a limit, more where there is a floor; it has at most one.
type Metric struct {
	Key, Unit string
	Limit     *float64 // the target: at most this, at the median; nil: none
	Most      bool     // each single figure must keep it, not the median
	Floor     *float64 // the target: at least this, at the median; nil: none
}

// AtMost makes a limit.
func AtMost(v float64) *float64 { return &v }

// AtLeast makes a floor.
func AtLeast(v float64) *float64 { return &v }

// Measurement is one line of the raw results.
type Measurement struct {
	Type   string             `json:"type"` // "measurement"
	Time   time.Time          `json:"time"`
	Round  int                `json:"round"` // from 1
	Cell   string             `json:"cell"`
	Values map[string]float64 `json:"values"`
	// Samples are single times in ms, where a figure is made of them.
	Samples map[string][]float64 `json:"samples,omitempty"`
	// Faults are what went wrong without ending the run, the first few.
	Faults []string `json:"faults,omitempty"`
}

// Environment is the first line of the raw results: what a figure means nothing without.
type Environment struct {
	Type    string    `json:"type"` // "environment"
	Time    time.Time `json:"time"`
	CPU     string    `json:"cpu"`
	Cores   int       `json:"cores"`
	Kernel  string    `json:"kernel"`
	Go      string    `json:"go"`
	Commit  string    `json:"commit,omitempty"`
	Binary  string    `json:"binary"`  // versions in it
	Load    string    `json:"load"`    // /proc/loadavg before: of others, and of what was built
	Options any       `json:"options"` // of the program
}

// EnvironmentNow describes this machine, a binary of the proxy and the options of the program.
func EnvironmentNow(binary string, options any) Environment {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		load = []byte(err.Error())
	}
	return Environment{
		Type:    "environment",
		Time:    time.Now().UTC(),
		CPU:     CPUModel(),
		Cores:   runtime.NumCPU(),
		Kernel:  KernelRelease(),
		Go:      runtime.Version(),
		Commit:  Commit(),
		Binary:  BinaryVersions(binary),
		Load:    strings.TrimSpace(string(load)),
		Options: options,
	}
}

// ResultPrefix chooses where the results of a program go: to given, or where that is empty into bench/results, under
// the date and the program's kind.
func ResultPrefix(given, kind string, partial bool) (string, error) {
	if given == "" {
		root, err := ModuleRoot()
		if err != nil {
			return "", err
		}
		given = filepath.Join(root, "bench", "results", time.Now().UTC().Format(time.DateOnly)+"-"+kind)
		if partial {
			given += "-partial"
		}
	}
	return FreePrefix(given)
}

// Results are the cells of a program and what was measured of them. One goroutine may use them at a time.
type Results struct {
	Cells    []Cell         // in the order of a run
	Filter   *regexp.Regexp // chooses cells by name
	Raw      *RawFile
	Measured []Measurement
}

// Wants reports whether any cell is asked for whose name begins so.
func (r *Results) Wants(prefix string) bool {
	for _, c := range r.Cells {
		if strings.HasPrefix(c.Name, prefix) && r.Filter.MatchString(c.Name) {
			return true
		}
	}
	return false
}

// Record writes a measurement, if its cell is asked for.
func (r *Results) Record(cellName string, round int, values map[string]float64, samples map[string][]float64, faults []error) error {
	c, ok := FindCell(r.Cells, cellName)
	if !ok {
		return fmt.Errorf("%q is no cell", cellName)
	}
	if !r.Filter.MatchString(cellName) {
		return nil
	}
	m := Measurement{Type: "measurement", Time: time.Now().UTC(), Round: round, Cell: cellName, Values: values, Samples: samples}
	const most = 20
	for _, fault := range faults[:min(len(faults), most)] {
		m.Faults = append(m.Faults, fault.Error())
	}
	main := c.Metrics[0]
	fmt.Printf("%-44s %2d  %10s %s\n", cellName, round, Number(values[main.Key]), main.Unit)
	for _, fault := range m.Faults {
		fmt.Println("    " + strings.ReplaceAll(fault, "\n", "\n    "))
	}
	r.Measured = append(r.Measured, m)
	return r.Raw.Write(m)
}

// FindCell returns the cell of a name.
func FindCell(cells []Cell, name string) (Cell, bool) {
	for _, c := range cells {
		if c.Name == name {
			return c, true
		}
	}
	return Cell{}, false
}

// Figure is a metric of a cell, over its rounds.
type Figure struct {
	Metric
	Values Spread
}

// judged is what the target applies to.
func (f Figure) judged() float64 {
	if f.Most {
		return f.Values.Most
	}
	return f.Values.Median
}

// Target prints the limit, or the floor.
func (f Figure) Target() string {
	switch {
	case f.Limit != nil:
		return "≤ " + Number(*f.Limit)
	case f.Floor != nil:
		return "≥ " + Number(*f.Floor)
	}
	return "–"
}

// Verdict judges at the digits that the table shows.
func (f Figure) Verdict() string {
	switch {
	case f.Floor != nil:
		if f.Values.Median >= *f.Floor {
			return "met"
		}
		return "**not met**"
	case f.Limit == nil:
		return "–"
	case f.judged() <= *f.Limit || Number(f.judged()) == Number(*f.Limit):
		return "met"
	default:
		return "**not met**"
	}
}

// FiguresOf returns the figures of a cell, in the order of its metrics, without those that it has no value of.
func FiguresOf(c Cell, measured []Measurement) []Figure {
	var figures []Figure
	for _, m := range c.Metrics {
		var values []float64
		for _, one := range measured {
			if v, ok := one.Values[m.Key]; ok && one.Cell == c.Name {
				values = append(values, v)
			}
		}
		if len(values) > 0 {
			figures = append(figures, Figure{m, SpreadOf(values)})
		}
	}
	return figures
}

// PhaseRatios compares two phases of the rounds of a cell by the p99 of their samples: the medians of the rounds'
// values PHASE_p99_ms, and the p99s of all samples of all rounds together. limit is the target, nil where there is none.
func PhaseRatios(c Cell, measured []Measurement, phase, base string, limit *float64) []Figure {
	var p99s, pooled [2][]float64
	for _, m := range measured {
		if m.Cell != c.Name {
			continue
		}
		for i, phase := range []string{base, phase} {
			p99s[i] = append(p99s[i], m.Values[phase+"_p99_ms"])
			pooled[i] = append(pooled[i], m.Samples[phase]...)
		}
	}
	if len(p99s[0]) == 0 || len(pooled[0]) == 0 || len(pooled[1]) == 0 {
		return nil
	}
	one := func(how string, idle, beside float64) Figure {
		ratio := beside / idle
		return Figure{
			Metric{Unit: fmt.Sprintf("p99 during %s, times %s; %s", phase, base, how), Limit: limit},
			Spread{Median: ratio, Least: ratio, Most: ratio},
		}
	}
	return []Figure{
		one("medians of rounds", SpreadOf(p99s[0]).Median, SpreadOf(p99s[1]).Median),
		one("all rounds in one", PercentileOf(pooled[0], 99), PercentileOf(pooled[1], 99)),
	}
}

// RenderHead begins a summary: the title, what it was measured with, and what the tables say. More stands behind the
// versions.
func RenderHead(out *strings.Builder, title string, e Environment, more string) {
	fmt.Fprintf(out, "# %s, %s\n\n", title, e.Time.Format("2006-01-02 15:04 MST"))
	fmt.Fprintf(out, "%s, %d cores, Linux %s, %s", e.CPU, e.Cores, e.Kernel, e.Go)
	if e.Commit != "" {
		fmt.Fprintf(out, ", commit %s", e.Commit)
	}
	fmt.Fprintf(out, ". %s\n\n- binary: %s\n- load average before: %s\n", more, e.Binary, e.Load)
	fmt.Fprint(out, "\nMedian over rounds [least–most]. Targets are for medians, in “failed” for each round.\n")
}

// RenderSection writes the table of a scenario, if anything of it was measured.
func RenderSection(out *strings.Builder, title string, cells []Cell, scenario string, figuresOf func(c Cell) []Figure) {
	begun := false
	for _, c := range cells {
		label, ok := strings.CutPrefix(c.Name, scenario+"/")
		if !ok {
			continue
		}
		for _, f := range figuresOf(c) {
			if !begun {
				fmt.Fprintf(out, "\n## %s\n\n| cell | figure | pqproxy | target | met |\n|---|---|---|---|---|\n", title)
				begun = true
			}
			fmt.Fprintf(out, "| %s | %s | %s | %s | %s |\n", strings.ReplaceAll(label, "/", " "), f.Unit, f.Values, f.Target(), f.Verdict())
		}
	}
}
