//go:build linux

package main

import (
	"fmt"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

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

// cells lists everything that is measured, in the order of a run.
var cells = func() []lab.Cell {
	var all []lab.Cell
	for _, cores := range []string{"1", "all"} {
		one := func(v float64) *float64 {
			if cores == "1" {
				return &v
			}
			return nil
		}
		for _, kind := range []string{"first", "replace"} {
			all = append(all, lab.Cell{Name: fmt.Sprintf("%s/cores=%s/kind=%s", scenarioSet, cores, kind), Metrics: []lab.Metric{
				{Key: "seconds", Unit: "s, from the answer to live", Limit: one(setTarget)},
				{Key: "cpu_s", Unit: "CPU s, until live"},
				{Key: "cpu_settled_s", Unit: "CPU s, until at rest (the set is kept)"},
				{Key: "transfer_s", Unit: "s, of which until the body was sent"},
				{Key: "reported_s", Unit: "s, as the status says (after the body)"},
				{Key: "body_mib", Unit: "MiB, the body"},
				{Key: "collections", Unit: "collections"},
				{Key: "pause_most_ms", Unit: "ms, longest stop of the world"},
				{Key: "pause_total_ms", Unit: "ms, all stops"},
			}})
		}
		for _, after := range []string{"first", "replace"} {
			all = append(all, lab.Cell{Name: fmt.Sprintf("%s/cores=%s/after=%s", scenarioMemory, cores, after), Metrics: []lab.Metric{
				{Key: "heap_inuse", Unit: "bytes per domain, HeapInuse", Limit: one(memoryTarget)},
				{Key: "heap_alloc", Unit: "bytes per domain, HeapAlloc"},
				{Key: "rss", Unit: "bytes per domain, resident, not settled"},
			}})
		}
		if cores == "1" {
			all = append(all, lab.Cell{Name: scenarioDelta + "/cores=" + cores, Metrics: []lab.Metric{
				{Key: "handshake_ms", Unit: "ms, to the first handshake of a new name", Limit: one(deltaTarget)},
				{Key: "status_ms", Unit: "ms, to the revision in the status", Limit: one(deltaTarget)},
				{Key: "reported_ms", Unit: "ms, as the status says (after the body)"},
				{Key: "cpu_ms", Unit: "CPU ms, until live, probes included"},
				{Key: "cpu_settled_ms", Unit: "CPU ms, until at rest"},
				{Key: "body_kib", Unit: "KiB, the body"},
				{Key: "pause_most_ms", Unit: "ms, longest stop of the world"},
			}})
		}
		all = append(all, lab.Cell{Name: scenarioHandshake + "/cores=" + cores, Metrics: []lab.Metric{
			{Key: "apply_p99_ms", Unit: "ms, p99 of a round while sets are applied"},
			{Key: "idle_p99_ms", Unit: "ms, p99 of a round with nothing beside"},
			{Key: "apply_p50_ms", Unit: "ms, median while sets are applied"},
			{Key: "idle_p50_ms", Unit: "ms, median with nothing beside"},
			{Key: "apply_most_ms", Unit: "ms, longest while sets are applied"},
			{Key: "idle_most_ms", Unit: "ms, longest with nothing beside"},
			{Key: "apply_cpu_s", Unit: "CPU s of a round while sets are applied"},
			{Key: "idle_cpu_s", Unit: "CPU s of a round with nothing beside"},
			{Key: "apply_count", Unit: "handshakes of a round while sets are applied"},
			{Key: "apply_stolen_cores", Unit: "cores wanted that other machines of the host had (steal), while sets are applied"},
			{Key: "idle_stolen_cores", Unit: "the same with nothing beside"},
			{Key: "failed", Unit: "handshakes failed", Limit: lab.AtMost(0), Most: true},
			{Key: "pause_most_ms", Unit: "ms, longest stop of the world meanwhile"},
		}})
	}
	for _, domains := range []int{10, 100_000, 1_000_000} {
		all = append(all, lab.Cell{Name: fmt.Sprintf("%s/domains=%d", scenarioLookup, domains), Metrics: []lab.Metric{
			{Key: "ns", Unit: "ns per lookup", Limit: lab.AtMost(lookupTarget)},
		}})
	}
	common := []lab.Metric{
		{Key: "lost_bytes", Unit: "bytes lost", Limit: lab.AtMost(lossTarget)},
		{Key: "wrong", Unit: "connections with wrong bytes", Limit: lab.AtMost(lossTarget)},
		{Key: "reset", Unit: "connections reset", Limit: lab.AtMost(lossTarget)},
		{Key: "otherwise", Unit: "connections ended early or stalled otherwise", Limit: lab.AtMost(lossTarget)},
		{Key: "conns", Unit: "connections open all the time"},
		{Key: "relayed_mib", Unit: "MiB relayed and compared"},
		{Key: "visits", Unit: "new connections beside, while changes are made"},
		{Key: "visits_failed", Unit: "of which failed"},
		{Key: "visits_failed_percent", Unit: "%, the same"},
		{Key: "quiet_failed", Unit: "new connections that failed before the changes"},
		{Key: "changes", Unit: "domains changed"},
		{Key: "resyncs", Unit: "full sets beside"},
		{Key: "reloads", Unit: "config reloads"},
		{Key: "seconds", Unit: "s, in which"},
		{Key: "request_ms", Unit: "ms, one change through the API, median"},
		{Key: "request_most_ms", Unit: "ms, one change through the API, longest"},
		{Key: "delta_ms", Unit: "ms, a delta until live, median"},
		{Key: "resync_ms", Unit: "ms, a full set until live, median"},
		{Key: "reload_ms", Unit: "ms, a config reload, median"},
		{Key: "quiet_cores", Unit: "cores used by relaying and new connections alone"},
		{Key: "cpu_ms_per_change", Unit: "CPU ms per change, relaying taken off"},
		{Key: "ten_thousand_s", Unit: "s, 10,000 changes through the API one by one, reckoned"},
		{Key: "ten_thousand_cpu_s", Unit: "CPU s, 10,000 changes, reckoned"},
		{Key: "quiet_p99_ms", Unit: "ms, p99 of a frame's way, before the changes"},
		{Key: "change_p99_ms", Unit: "ms, p99 of a frame's way, during the changes"},
		{Key: "quiet_most_ms", Unit: "ms, longest way of a frame, before the changes"},
		{Key: "change_most_ms", Unit: "ms, longest way of a frame, during the changes"},
	}
	return append(all, lab.Cell{Name: livePQProxy, Metrics: common}, lab.Cell{Name: liveCaddyL4, Metrics: common})
}()

// largePrefixes are what the names of the cells begin with that share a process and a large set.
func largePrefixes(cores string) []string {
	var prefixes []string
	for _, scenario := range []string{scenarioSet, scenarioMemory, scenarioDelta, scenarioHandshake} {
		prefixes = append(prefixes, scenario+"/cores="+cores)
	}
	return prefixes
}
