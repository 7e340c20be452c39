//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// figuresOf returns the figures of a cell, in front of them for handshakes how those beside a sweep compare with those
// with ten domains, and those with each other.
func figuresOf(c lab.Cell, measured []lab.Measurement) []lab.Figure {
	figures := lab.FiguresOf(c, measured)
	if isHandshake(c) {
		figures = slices.Concat(
			lab.PhaseRatios(c, measured, phaseSweep, phaseTen, lab.AtMost(handshakeTarget)),
			lab.PhaseRatios(c, measured, phaseAgain, phaseTen, nil),
			figures)
	}
	return figures
}

// renderSummary writes the tables as Markdown.
func renderSummary(e lab.Environment, opts options, measured []lab.Measurement) string {
	var out strings.Builder
	lab.RenderHead(&out, "Certificates", e, fmt.Sprintf("%d domains with certificates in storage (stored), "+
		"%d in the table, of which %d have one (table), and those alone (ten).", opts.Stored, opts.Table, servedNames))
	for _, section := range []struct{ scenario, title string }{
		{scenarioStart, "Start"},
		{scenarioVisit, "Visits"},
		{scenarioMemory, "Memory"},
		{scenarioHandshake, "Handshakes beside a sweep"},
	} {
		lab.RenderSection(&out, section.title, cells, section.scenario, func(c lab.Cell) []lab.Figure { return figuresOf(c, measured) })
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
