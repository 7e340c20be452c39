//go:build linux

package main

import "github.com/pqproxy/caddy-pqproxy/bench/internal/lab"

const (
	scenarioStart     = "scenario=start"
	scenarioVisit     = "scenario=visit"
	scenarioMemory    = "scenario=memory"
	scenarioHandshake = "scenario=handshake"

	// Where an edge has its domains from when it starts.
	fromFeed = "feed"
	fromKept = "kept"

	// How many names have been visited.
	visitedNone = "none"
	visitedSome = "some"
	visitedMany = "many"
)

// The targets, as the issue that asked for these measurements set them. It wants memory in proportion to the names
// visited; that is taken for at most a tenth more for each of many names than for each of some.
const (
	startTarget      = 5.0 // s, with certificates in storage
	handshakeTarget  = 1.05
	proportionTarget = 1.1
)

// cells lists everything that is measured, in the order of a run.
var cells = func() []lab.Cell {
	var all []lab.Cell
	for _, set := range []string{setStored, setTable, setTen} {
		for _, from := range []string{fromFeed, fromKept} {
			var limit *float64
			if set == setStored {
				limit = lab.AtMost(startTarget)
			}
			all = append(all, lab.Cell{Name: startCell(set, from), Metrics: []lab.Metric{
				{Key: "seconds", Unit: "s, from the process's start to the first handshake", Limit: limit},
				{Key: "cpu_s", Unit: "CPU s until then"},
				{Key: "rss_mib", Unit: "MiB resident then"},
			}})
		}
	}
	all = append(all, lab.Cell{Name: scenarioVisit + "/set=" + setStored, Metrics: []lab.Metric{
		{Key: "first_p50_ms", Unit: "ms, a name's first visit (its certificate is loaded), median"},
		{Key: "second_p50_ms", Unit: "ms, its second visit, median"},
		{Key: "load_p50_ms", Unit: "ms more for the first than for the second, median over names"},
		{Key: "first_p99_ms", Unit: "ms, first visit, p99"},
		{Key: "second_p99_ms", Unit: "ms, second visit, p99"},
		{Key: "names", Unit: "names"},
	}})
	memory := []lab.Metric{
		{Key: "heap_mib", Unit: "MiB, HeapInuse"},
		{Key: "rss_mib", Unit: "MiB resident"},
	}
	known := append(memory[:len(memory):len(memory)],
		lab.Metric{Key: "heap_known", Unit: "bytes per domain known, HeapInuse"},
		lab.Metric{Key: "rss_known", Unit: "bytes per domain known, resident"})
	visited := append(memory[:len(memory):len(memory)],
		lab.Metric{Key: "heap_visited_kib", Unit: "KiB per name visited, HeapInuse"},
		lab.Metric{Key: "rss_visited_kib", Unit: "KiB per name visited, resident"},
		lab.Metric{Key: "names", Unit: "names visited"})
	many := append(visited[:len(visited):len(visited)],
		lab.Metric{Key: "proportion", Unit: "KiB per name of many, times that of some, HeapInuse", Limit: lab.AtMost(proportionTarget)})
	all = append(all,
		lab.Cell{Name: memoryCell(setTen, visitedNone), Metrics: memory},
		lab.Cell{Name: memoryCell(setStored, visitedNone), Metrics: known},
		lab.Cell{Name: memoryCell(setStored, visitedSome), Metrics: visited},
		lab.Cell{Name: memoryCell(setStored, visitedMany), Metrics: many},
		lab.Cell{Name: memoryCell(setTable, visitedNone), Metrics: known},
	)
	for _, set := range []string{setStored, setTable} {
		all = append(all, lab.Cell{Name: handshakeCell(set), Metrics: []lab.Metric{
			{Key: "sweep_p99_ms", Unit: "ms, p99 of a round during a sweep"},
			{Key: "ten_p99_ms", Unit: "ms, p99 of a round with ten domains"},
			{Key: "again_p99_ms", Unit: "ms, p99 of a round with ten domains, again"},
			{Key: "sweep_p50_ms", Unit: "ms, median during a sweep"},
			{Key: "ten_p50_ms", Unit: "ms, median with ten domains"},
			{Key: "sweep_most_ms", Unit: "ms, longest during a sweep"},
			{Key: "ten_most_ms", Unit: "ms, longest with ten domains"},
			{Key: "sweep_cores", Unit: "cores used during a sweep"},
			{Key: "ten_cores", Unit: "cores used with ten domains"},
			{Key: "sweep_stolen_cores", Unit: "cores wanted that other machines of the host had (steal), during a sweep"},
			{Key: "ten_stolen_cores", Unit: "the same with ten domains"},
			{Key: "looked_per_s", Unit: "names that the sweep looks at in a second"},
			{Key: "sweep_min", Unit: "minutes for a whole sweep, reckoned from that"},
			{Key: "orders", Unit: "orders waiting or failed at the end of a round"},
			{Key: "tried_per_s", Unit: "orders that fail in a second"},
			{Key: "failed", Unit: "handshakes failed", Limit: lab.AtMost(0), Most: true},
		}})
	}
	return all
}()

func startCell(set, from string) string { return scenarioStart + "/set=" + set + "/from=" + from }
func memoryCell(set, visited string) string {
	return scenarioMemory + "/set=" + set + "/visited=" + visited
}
func handshakeCell(set string) string { return scenarioHandshake + "/set=" + set }
