//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// figuresOf returns the figures of a cell, in front of them for handshakes how those during apply compare with idle ones.
func figuresOf(c lab.Cell, measured []lab.Measurement) []lab.Figure {
	figures := lab.FiguresOf(c, measured)
	if strings.HasPrefix(c.Name, scenarioHandshake) {
		var limit *float64
		if strings.HasSuffix(c.Name, "/cores=1") { // with all cores the load has none for itself
			limit = lab.AtMost(handshakeTarget)
		}
		figures = slices.Insert(figures, 0, lab.PhaseRatios(c, measured, "apply", "idle", limit)...)
	}
	return figures
}

// renderSummary writes the tables as Markdown.
func renderSummary(e lab.Environment, domains int, measured []lab.Measurement) string {
	var out strings.Builder
	lab.RenderHead(&out, "Live domains", e, fmt.Sprintf("Large sets: %d domains.", domains))
	for _, section := range []struct{ scenario, title string }{
		{scenarioSet, "Full sets"},
		{scenarioMemory, "Memory"},
		{scenarioDelta, "Deltas"},
		{scenarioHandshake, "Handshakes beside full sets"},
		{scenarioLookup, "Lookup"},
	} {
		lab.RenderSection(&out, section.title, cells, section.scenario, func(c lab.Cell) []lab.Figure { return figuresOf(c, measured) })
	}
	renderLive(&out, measured)
	return out.String()
}

// renderLive puts both proxies beside each other. The target is pqproxy's.
func renderLive(out *strings.Builder, measured []lab.Measurement) {
	ours, theirs := map[string]lab.Figure{}, map[string]lab.Figure{}
	cell, _ := lab.FindCell(cells, livePQProxy)
	other, _ := lab.FindCell(cells, liveCaddyL4)
	for _, f := range figuresOf(cell, measured) {
		ours[f.Key] = f
	}
	for _, f := range figuresOf(other, measured) {
		theirs[f.Key] = f
	}
	if len(ours)+len(theirs) == 0 {
		return
	}
	fmt.Fprint(out, "\n## Connections that stay while domains change\n\n| figure | pqproxy | caddy-l4 | target | met |\n|---|---|---|---|---|\n")
	for _, m := range cell.Metrics {
		own, okOwn := ours[m.Key]
		their, okTheir := theirs[m.Key]
		if !okOwn && !okTheir {
			continue
		}
		text := func(f lab.Figure, ok bool) string {
			if !ok {
				return "–"
			}
			return f.Values.String()
		}
		verdict := "–"
		if okOwn {
			verdict = own.Verdict()
		}
		fmt.Fprintf(out, "| %s | %s | %s | %s | %s |\n", m.Unit, text(own, okOwn), text(their, okTheir), lab.Figure{Metric: m}.Target(), verdict)
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
