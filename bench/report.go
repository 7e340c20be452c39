//go:build linux

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// row is one line of the summary: a figure of every contender that has it.
type row struct {
	label     string
	unit      string
	contender map[string]lab.Spread
	target    float64 // a ratio to the baseline, or with absolute a figure in unit; 0: none
	absolute  bool
}

// ratio returns a contender's median over the baseline's.
func (r row) ratio(contender string) (float64, bool) {
	own, ok := r.contender[contender]
	base, okBase := r.contender[baseline]
	if !ok || !okBase || base.Median == 0 {
		return 0, false
	}
	return own.Median / base.Median, true
}

// verdict says whether pqproxy meets the row's target, judged at the two decimals (one in absolute figures) that the
// table shows; known is false without a target or a figure.
func (r row) verdict() (met, known bool) {
	if r.target == 0 {
		return false, false
	}
	if r.absolute {
		own, ok := r.contender["pqproxy"]
		return own.Median < r.target+0.05, ok
	}
	ratio, ok := r.ratio("pqproxy")
	return ratio < r.target+0.005, ok
}

// rowsOf turns measurements into rows, in the order of the cells, and adds those that are made of several cells.
func rowsOf(measured []measurement) map[string][]row {
	values := map[string]map[string][]float64{} // cell and metric → contender → rounds
	for _, m := range measured {
		for name, value := range m.Values {
			id := m.Cell + " " + name
			if values[id] == nil {
				values[id] = map[string][]float64{}
			}
			values[id][m.Contender] = append(values[id][m.Contender], value)
		}
	}
	rows := map[string][]row{}
	for _, c := range cells() {
		scenario, label, _ := strings.Cut(c.name, "/")
		for _, m := range c.metrics {
			of := values[c.name+" "+m.key]
			if of == nil {
				continue
			}
			r := row{label: label, unit: m.unit, contender: map[string]lab.Spread{}, target: m.ratio}
			if m.limit != 0 {
				r.target, r.absolute = m.limit, true
			}
			for contender, rounds := range of {
				r.contender[contender] = lab.SpreadOf(rounds)
			}
			rows[scenario] = append(rows[scenario], r)
		}
	}
	if r, ok := relayMedian(rows[scenarioRelay]); ok {
		rows[scenarioRelay] = append(rows[scenarioRelay], r)
	}
	if r, ok := notHidden(rows[scenarioFirstByte]); ok {
		rows[scenarioFirstByte] = append(rows[scenarioFirstByte], r)
	}
	return rows
}

// relayMedian is the median over the relay's cells of each contender's ratio to the baseline.
func relayMedian(rows []row) (row, bool) {
	ratios := map[string][]float64{}
	for _, r := range rows {
		if r.target == 0 {
			continue // throughput
		}
		for contender := range r.contender {
			if ratio, ok := r.ratio(contender); ok {
				ratios[contender] = append(ratios[contender], ratio)
			}
		}
	}
	all := row{label: "median of all cells", unit: "CPU per GiB, ratio", contender: map[string]lab.Spread{}, target: relayMedianTarget}
	for contender, of := range ratios {
		all.contender[contender] = lab.SpreadOf(of)
	}
	return all, len(ratios) > 0
}

// notHidden is how much later the first byte comes when the upstream takes its time.
func notHidden(rows []row) (row, bool) {
	if len(rows) != 2 {
		return row{}, false
	}
	quick, slow := rows[0], rows[1]
	if slow.target == 0 {
		return row{}, false
	}
	late := row{label: "difference of the two: what is not hidden", unit: "ms", contender: map[string]lab.Spread{}, target: hiddenTarget, absolute: true}
	for contender := range slow.contender {
		difference := slow.contender[contender].Median - quick.contender[contender].Median
		late.contender[contender] = lab.Spread{Median: difference, Least: difference, Most: difference}
	}
	return late, len(late.contender) > 0
}

// renderSummary writes the tables as Markdown.
func renderSummary(e environment, measured []measurement) string {
	var (
		out   strings.Builder
		rows  = rowsOf(measured)
		names []string
	)
	for _, name := range contenderNames() {
		if slices.ContainsFunc(measured, func(m measurement) bool { return m.Contender == name }) {
			names = append(names, name)
		}
	}
	fmt.Fprintf(&out, "# Benchmark, %s\n\n", e.Time.Format("2006-01-02 15:04 MST"))
	fmt.Fprintf(&out, "%s, %d cores, Linux %s, %s", e.CPU, e.Cores, e.Kernel, e.Go)
	if e.Commit != "" {
		fmt.Fprintf(&out, ", commit %s", e.Commit)
	}
	fmt.Fprintf(&out, ". Rounds: %d (memory: %d).\n\n", e.Options.Rounds, e.Options.MemoryRounds)
	for _, name := range slices.Sorted(maps.Keys(e.Versions)) {
		fmt.Fprintf(&out, "- %s: %s\n", name, e.Versions[name])
	}
	for _, name := range e.Absent {
		fmt.Fprintf(&out, "- %s: not installed\n", name)
	}
	fmt.Fprintf(&out, "\nMedian over the rounds [least–most]; **×** is the ratio to %s. Less is better, but of connections/s and MiB/s. The target is pqproxy's ratio, or with ≤ its figure.\n", baseline)
	for _, section := range []struct{ scenario, title string }{
		{scenarioHandshake, "Handshakes"},
		{scenarioRelay, "Relay"},
		{scenarioPing, "Ping"},
		{scenarioFirstByte, "Time to first byte, client 40 ms away"},
		{scenarioMemory, "Memory per idle connection"},
	} {
		if len(rows[section.scenario]) > 0 {
			renderTable(&out, section.title, names, rows[section.scenario])
		}
	}
	return out.String()
}

func renderTable(out *strings.Builder, title string, names []string, rows []row) {
	fmt.Fprintf(out, "\n## %s\n\n| cell | figure |", title)
	for _, name := range names {
		fmt.Fprintf(out, " %s |", name)
	}
	out.WriteString(" target | met |\n|---|---|")
	out.WriteString(strings.Repeat("---|", len(names)+2) + "\n")
	for _, r := range rows {
		fmt.Fprintf(out, "| %s | %s |", strings.ReplaceAll(r.label, "/", " "), r.unit)
		for _, name := range names {
			fmt.Fprintf(out, " %s |", r.figure(name))
		}
		fmt.Fprintf(out, " %s | %s |\n", r.targetText(), r.verdictText())
	}
}

func (r row) figure(contender string) string {
	own, ok := r.contender[contender]
	if !ok {
		return "–"
	}
	text := own.String()
	if ratio, ok := r.ratio(contender); ok && contender != baseline {
		text += fmt.Sprintf(" **×%.2f**", ratio)
	}
	return text
}

func (r row) targetText() string {
	switch {
	case r.target == 0:
		return "–"
	case r.absolute:
		return "≤ " + lab.Number(r.target)
	default:
		return fmt.Sprintf("%.2f", r.target)
	}
}

func (r row) verdictText() string {
	met, known := r.verdict()
	switch {
	case !known:
		return "–"
	case met:
		return "met"
	default:
		return "**not met**"
	}
}
