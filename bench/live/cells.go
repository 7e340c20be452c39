//go:build linux

package main

import "fmt"

// cell is one measurement: a scenario with every parameter fixed. Its name is made of key=value, so that -run can
// choose and raw results can be joined.
type cell struct {
	name    string
	metrics []metric // the first is the main figure
}

// metric is one figure of a cell. Less is better where there is a limit.
type metric struct {
	key, unit string
	limit     *float64 // the target: at most this, at the median; nil: none
	most      bool     // each single figure must keep it, not the median
}

const (
	scenarioSet       = "scenario=set"
	scenarioMemory    = "scenario=memory"
	scenarioHandshake = "scenario=handshake"
	scenarioDelta     = "scenario=delta"
	scenarioLookup    = "scenario=lookup"
	scenarioLive      = "scenario=live"

	livePQProxy = scenarioLive + "/proxy=pqproxy"
	liveCaddyL4 = scenarioLive + "/proxy=caddy-l4"
)

// The targets, as the issue that asked for these measurements set them.
const (
	setTarget       = 15.0  // s, on one core
	memoryTarget    = 600.0 // bytes per typical domain beyond its certificate
	deltaTarget     = 50.0  // ms, a delta of 1,000
	handshakeTarget = 1.2   // p99 during apply, times idle
	lookupTarget    = 200.0 // ns
	lossTarget      = 0.0   // bytes lost, connections reset
)

func atMost(v float64) *float64 { return &v }

// cells lists everything that is measured, in the order of a run.
var cells = func() []cell {
	var all []cell
	for _, cores := range []string{"1", "all"} {
		one := func(v float64) *float64 {
			if cores == "1" {
				return &v
			}
			return nil
		}
		for _, kind := range []string{"first", "replace"} {
			all = append(all, cell{fmt.Sprintf("%s/cores=%s/kind=%s", scenarioSet, cores, kind), []metric{
				{key: "seconds", unit: "s, from the answer to live", limit: one(setTarget)},
				{key: "cpu_s", unit: "CPU s, until live"},
				{key: "cpu_settled_s", unit: "CPU s, until at rest (the set is kept)"},
				{key: "transfer_s", unit: "s, of which until the body was sent"},
				{key: "reported_s", unit: "s, as the status says (after the body)"},
				{key: "body_mib", unit: "MiB, the body"},
				{key: "collections", unit: "collections"},
				{key: "pause_most_ms", unit: "ms, longest stop of the world"},
				{key: "pause_total_ms", unit: "ms, all stops"},
			}})
		}
		for _, after := range []string{"first", "replace"} {
			all = append(all, cell{fmt.Sprintf("%s/cores=%s/after=%s", scenarioMemory, cores, after), []metric{
				{key: "heap_inuse", unit: "bytes per domain, HeapInuse", limit: one(memoryTarget)},
				{key: "heap_alloc", unit: "bytes per domain, HeapAlloc"},
				{key: "rss", unit: "bytes per domain, resident, not settled"},
			}})
		}
		if cores == "1" {
			all = append(all, cell{scenarioDelta + "/cores=" + cores, []metric{
				{key: "handshake_ms", unit: "ms, to the first handshake of a new name", limit: one(deltaTarget)},
				{key: "status_ms", unit: "ms, to the revision in the status", limit: one(deltaTarget)},
				{key: "reported_ms", unit: "ms, as the status says (after the body)"},
				{key: "cpu_ms", unit: "CPU ms, until live, probes included"},
				{key: "cpu_settled_ms", unit: "CPU ms, until at rest"},
				{key: "body_kib", unit: "KiB, the body"},
				{key: "pause_most_ms", unit: "ms, longest stop of the world"},
			}})
		}
		all = append(all, cell{scenarioHandshake + "/cores=" + cores, []metric{
			{key: "apply_p99_ms", unit: "ms, p99 of a round while sets are applied"},
			{key: "idle_p99_ms", unit: "ms, p99 of a round with nothing beside"},
			{key: "apply_p50_ms", unit: "ms, median while sets are applied"},
			{key: "idle_p50_ms", unit: "ms, median with nothing beside"},
			{key: "apply_most_ms", unit: "ms, longest while sets are applied"},
			{key: "idle_most_ms", unit: "ms, longest with nothing beside"},
			{key: "apply_cpu_s", unit: "CPU s of a round while sets are applied"},
			{key: "idle_cpu_s", unit: "CPU s of a round with nothing beside"},
			{key: "apply_count", unit: "handshakes of a round while sets are applied"},
			{key: "failed", unit: "handshakes failed", limit: atMost(0), most: true},
			{key: "pause_most_ms", unit: "ms, longest stop of the world meanwhile"},
		}})
	}
	for _, domains := range []int{10, 100_000, 1_000_000} {
		all = append(all, cell{fmt.Sprintf("%s/domains=%d", scenarioLookup, domains), []metric{
			{key: "ns", unit: "ns per lookup", limit: atMost(lookupTarget)},
		}})
	}
	common := []metric{
		{key: "lost_bytes", unit: "bytes lost", limit: atMost(lossTarget)},
		{key: "wrong", unit: "connections with wrong bytes", limit: atMost(lossTarget)},
		{key: "reset", unit: "connections reset", limit: atMost(lossTarget)},
		{key: "otherwise", unit: "connections ended early or stalled otherwise", limit: atMost(lossTarget)},
		{key: "conns", unit: "connections open all the time"},
		{key: "relayed_mib", unit: "MiB relayed and compared"},
		{key: "visits", unit: "new connections beside, while changes are made"},
		{key: "visits_failed", unit: "of which failed"},
		{key: "visits_failed_percent", unit: "%, the same"},
		{key: "quiet_failed", unit: "new connections that failed before the changes"},
		{key: "changes", unit: "domains changed"},
		{key: "resyncs", unit: "full sets beside"},
		{key: "reloads", unit: "config reloads"},
		{key: "seconds", unit: "s, in which"},
		{key: "request_ms", unit: "ms, one change through the API, median"},
		{key: "request_most_ms", unit: "ms, one change through the API, longest"},
		{key: "delta_ms", unit: "ms, a delta until live, median"},
		{key: "resync_ms", unit: "ms, a full set until live, median"},
		{key: "reload_ms", unit: "ms, a config reload, median"},
		{key: "quiet_cores", unit: "cores used by relaying and new connections alone"},
		{key: "cpu_ms_per_change", unit: "CPU ms per change, relaying taken off"},
		{key: "ten_thousand_s", unit: "s, 10,000 changes through the API one by one, reckoned"},
		{key: "ten_thousand_cpu_s", unit: "CPU s, 10,000 changes, reckoned"},
		{key: "quiet_p99_ms", unit: "ms, p99 of a frame's way, before the changes"},
		{key: "change_p99_ms", unit: "ms, p99 of a frame's way, during the changes"},
		{key: "quiet_most_ms", unit: "ms, longest way of a frame, before the changes"},
		{key: "change_most_ms", unit: "ms, longest way of a frame, during the changes"},
	}
	return append(all, cell{livePQProxy, common}, cell{liveCaddyL4, common})
}()

// largePrefixes are what the names of the cells begin with that share a process and a large set.
func largePrefixes(cores string) []string {
	var prefixes []string
	for _, scenario := range []string{scenarioSet, scenarioMemory, scenarioDelta, scenarioHandshake} {
		prefixes = append(prefixes, scenario+"/cores="+cores)
	}
	return prefixes
}

func findCell(name string) (cell, bool) {
	for _, c := range cells {
		if c.name == name {
			return c, true
		}
	}
	return cell{}, false
}
