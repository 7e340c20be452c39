//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// figure is a metric of a cell, over its rounds.
type figure struct {
	metric
	values lab.Spread
}

// judged is what the target applies to.
func (f figure) judged() float64 {
	if f.most {
		return f.values.Most
	}
	return f.values.Median
}

func (f figure) target() string {
	if f.limit == nil {
		return "–"
	}
	return "≤ " + lab.Number(*f.limit)
}

// verdict judges at the digits that the table shows.
func (f figure) verdict() string {
	switch {
	case f.limit == nil:
		return "–"
	case f.judged() <= *f.limit || lab.Number(f.judged()) == lab.Number(*f.limit):
		return "met"
	default:
		return "**not met**"
	}
}

// figuresOf returns the figures of a cell, in the order of its metrics, without those that it has no value of.
func figuresOf(c cell, measured []measurement) []figure {
	var figures []figure
	for _, m := range c.metrics {
		var values []float64
		for _, one := range measured {
			if v, ok := one.Values[m.key]; ok && one.Cell == c.name {
				values = append(values, v)
			}
		}
		if len(values) > 0 {
			figures = append(figures, figure{m, lab.SpreadOf(values)})
		}
	}
	if strings.HasPrefix(c.name, scenarioHandshake) {
		figures = slices.Insert(figures, 0, ratiosOf(c, measured)...)
	}
	return figures
}

// ratiosOf compares the p99 of handshakes during apply with the idle one: the medians of the rounds, and the p99s of all
// handshakes of all rounds together.
func ratiosOf(c cell, measured []measurement) []figure {
	var p99s, pooled [2][]float64
	for _, m := range measured {
		if m.Cell != c.name {
			continue
		}
		for i, phase := range []string{"idle", "apply"} {
			p99s[i] = append(p99s[i], m.Values[phase+"_p99_ms"])
			pooled[i] = append(pooled[i], m.Samples[phase]...)
		}
	}
	if len(p99s[0]) == 0 || len(pooled[0]) == 0 || len(pooled[1]) == 0 {
		return nil
	}
	one := func(idle, apply float64) lab.Spread {
		ratio := apply / idle
		return lab.Spread{Median: ratio, Least: ratio, Most: ratio}
	}
	return []figure{
		{metric{unit: "p99 during apply, times idle; medians of rounds", limit: atMost(handshakeTarget)}, one(lab.SpreadOf(p99s[0]).Median, lab.SpreadOf(p99s[1]).Median)},
		{metric{unit: "p99 during apply, times idle; all rounds in one", limit: atMost(handshakeTarget)}, one(percentileOf(pooled[0], 99), percentileOf(pooled[1], 99))},
	}
}

// renderSummary writes the tables as Markdown.
func renderSummary(e environment, measured []measurement) string {
	var out strings.Builder
	fmt.Fprintf(&out, "# Live domains, %s\n\n", e.Time.Format("2006-01-02 15:04 MST"))
	fmt.Fprintf(&out, "%s, %d cores, Linux %s, %s", e.CPU, e.Cores, e.Kernel, e.Go)
	if e.Commit != "" {
		fmt.Fprintf(&out, ", commit %s", e.Commit)
	}
	fmt.Fprintf(&out, ". Large sets: %d domains.\n\n- binary: %s\n- load average before: %s\n", e.Options.Domains, e.Binary, e.Load)
	fmt.Fprint(&out, "\nMedian over rounds [least–most]. Targets are for medians, in “failed” for each round.\n")
	for _, section := range []struct{ scenario, title string }{
		{scenarioSet, "Full sets"},
		{scenarioMemory, "Memory"},
		{scenarioDelta, "Deltas"},
		{scenarioHandshake, "Handshakes beside full sets"},
		{scenarioLookup, "Lookup"},
	} {
		renderSection(&out, section.title, section.scenario, measured)
	}
	renderLive(&out, measured)
	return out.String()
}

func renderSection(out *strings.Builder, title, scenario string, measured []measurement) {
	begun := false
	for _, c := range cells {
		label, ok := strings.CutPrefix(c.name, scenario+"/")
		if !ok {
			continue
		}
		for _, f := range figuresOf(c, measured) {
			if !begun {
				fmt.Fprintf(out, "\n## %s\n\n| cell | figure | pqproxy | target | met |\n|---|---|---|---|---|\n", title)
				begun = true
			}
			fmt.Fprintf(out, "| %s | %s | %s | %s | %s |\n", strings.ReplaceAll(label, "/", " "), f.unit, f.values, f.target(), f.verdict())
		}
	}
}

// renderLive puts both proxies beside each other. The target is pqproxy's.
func renderLive(out *strings.Builder, measured []measurement) {
	ours, theirs := map[string]figure{}, map[string]figure{}
	cell, _ := findCell(livePQProxy)
	other, _ := findCell(liveCaddyL4)
	for _, f := range figuresOf(cell, measured) {
		ours[f.key] = f
	}
	for _, f := range figuresOf(other, measured) {
		theirs[f.key] = f
	}
	if len(ours)+len(theirs) == 0 {
		return
	}
	fmt.Fprint(out, "\n## Connections that stay while domains change\n\n| figure | pqproxy | caddy-l4 | target | met |\n|---|---|---|---|---|\n")
	for _, m := range cell.metrics {
		own, okOwn := ours[m.key]
		their, okTheir := theirs[m.key]
		if !okOwn && !okTheir {
			continue
		}
		text := func(f figure, ok bool) string {
			if !ok {
				return "–"
			}
			return f.values.String()
		}
		verdict := "–"
		if okOwn {
			verdict = own.verdict()
		}
		fmt.Fprintf(out, "| %s | %s | %s | %s | %s |\n", m.unit, text(own, okOwn), text(their, okTheir), figure{metric: m}.target(), verdict)
	}
	for _, m := range measured {
		if len(m.Faults) > 0 {
			fmt.Fprintf(out, "\nFaults in %s, the first %d:\n\n", m.Cell, len(m.Faults))
			for _, fault := range m.Faults {
				fmt.Fprintf(out, "- %s\n", strings.ReplaceAll(fault, "\n", "; "))
			}
		}
	}
}
