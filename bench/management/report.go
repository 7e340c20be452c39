//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// renderSummary writes the tables as Markdown.
func renderSummary(e lab.Environment, opts options, measured []lab.Measurement) string {
	var out strings.Builder
	s := opts.Size
	lab.RenderHead(&out, "Management plane", e, fmt.Sprintf("%d domains of %d tenants, of which the first (large) has %d; %d connection records before.",
		s.Domains, s.Tenants, s.Large, s.Records))
	all := cells()
	figures := func(c lab.Cell) []lab.Figure { return lab.FiguresOf(c, measured) }
	for _, section := range []struct{ scenario, title string }{
		{scenarioReports, "Reports, beside changes of domains"},
		{scenarioPoll, fmt.Sprintf("%d edges polling, %d changes a second", s.Edges, s.ChangeRate)},
		{scenarioDelta, "Deltas"},
		{scenarioFeed, "Full set"},
		{scenarioSingle, "One domain"},
	} {
		lab.RenderSection(&out, section.title, all, section.scenario, figures)
	}
	renderKinds(&out, "Lists and searches of domains", scenarioList, 99, listKinds, all, figures)
	renderKinds(&out, "Questions about connections, at rest", scenarioQuery, 99, queryKinds, all, figures)
	renderKinds(&out, "Pages of the dashboard", scenarioPages, 95, pageNames(pageKinds), all, figures)
	for _, m := range measured {
		if label, ok := strings.CutPrefix(m.Cell, scenarioPages+"/"); ok && slowest(m.Values) != "" {
			fmt.Fprintf(&out, "\nThe slowest page, %s: `%s`.\n", label, slowest(m.Values))
		}
	}
	for _, m := range measured {
		if len(m.Faults) == 0 {
			continue
		}
		fmt.Fprintf(&out, "\nFaults in %s, round %d, the first %d:\n\n", m.Cell, m.Round, len(m.Faults))
		for _, fault := range m.Faults {
			fmt.Fprintf(&out, "- %s\n", strings.ReplaceAll(fault, "\n", "; "))
		}
	}
	return out.String()
}

// renderKinds puts the cells of a scenario beside each other: for each kind of request a percentile, and in brackets the median.
func renderKinds(out *strings.Builder, title, scenario string, percentile int, kinds [][2]string, all []lab.Cell, figuresOf func(lab.Cell) []lab.Figure) {
	var labels []string
	var columns []map[string]lab.Figure
	var others []lab.Figure // that are of no kind, those of the last column
	for _, c := range all {
		label, ok := strings.CutPrefix(c.Name, scenario+"/")
		figures := figuresOf(c)
		if !ok || len(figures) == 0 {
			continue
		}
		column := make(map[string]lab.Figure)
		others = nil
		for _, f := range figures {
			column[f.Key] = f
			if !slices.ContainsFunc(kinds, func(k [2]string) bool { return strings.HasPrefix(f.Key, k[0]+"_p") }) {
				others = append(others, f)
			}
		}
		labels, columns = append(labels, strings.NewReplacer("database=", "", "tenant=", "", "user=", "", "/", ", ").Replace(label)), append(columns, column)
	}
	if len(columns) == 0 {
		return
	}
	p := fmt.Sprintf("p%d", percentile)
	fmt.Fprintf(out, "\n## %s\n\nms: %s (median).\n\n| what | %s | target for %s | met |\n|---|%s---|---|\n", title, p, strings.Join(labels, " | "), p, strings.Repeat("---|", len(labels)))
	row := func(what string, cell func(column map[string]lab.Figure) string, key string) {
		target, verdict := "–", "–"
		fmt.Fprintf(out, "| %s |", what)
		for _, column := range columns {
			fmt.Fprintf(out, " %s |", cell(column))
			if f, ok := column[key]; ok && f.Limit != nil {
				target = f.Target()
				if verdict == "–" || f.Verdict() != "met" {
					verdict = f.Verdict()
				}
			}
		}
		fmt.Fprintf(out, " %s | %s |\n", target, verdict)
	}
	for _, k := range kinds {
		row(k[1], func(column map[string]lab.Figure) string {
			most, ok := column[k[0]+"_"+p+"_ms"]
			if !ok {
				return "–"
			}
			return fmt.Sprintf("%s (%s)", most.Values, column[k[0]+"_p50_ms"].Values)
		}, k[0]+"_"+p+"_ms")
	}
	for _, f := range others {
		row(f.Unit, func(column map[string]lab.Figure) string {
			f, ok := column[f.Key]
			if !ok {
				return "–"
			}
			return f.Values.String()
		}, f.Key)
	}
}
