//go:build linux

package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
)

// bench is one run: what its scenarios share.
type bench struct {
	lab.Results
	opts    options
	dir     string
	proxies *lab.Proxies
}

// wantsOf reports whether any cell of a database is asked for.
func (b *bench) wantsOf(database string) bool {
	return slices.ContainsFunc(b.Cells, func(c lab.Cell) bool {
		return strings.Contains(c.Name, "database="+database) && b.Filter.MatchString(c.Name)
	})
}

// site is a management plane on a database, with its world.
type site struct {
	*bench
	db       *database
	w        *world
	plane    *plane
	edges    []*edge
	since    time.Time // all that comes while it is measured ends after that
	revision atomic.Uint64
	changes  atomic.Int64 // of domains, so far: no two of them are the same
}

// measure fills a database, starts the management plane on it and runs the scenarios that are asked for.
func (b *bench) measure(ctx context.Context, name string) error {
	dir, err := os.MkdirTemp(b.dir, name+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d, err := startDatabase(name, dir)
	if err != nil {
		return err
	}
	defer d.close()
	s := &site{bench: b, db: d, edges: newEdges(max(b.opts.Size.Edges, b.reporters(name), holders))}
	if s.w, s.since, err = fill(ctx, d, b.opts.Size, s.edges); err != nil {
		return err
	}
	s.revision.Store(uint64(len(s.w.names)))
	zone, err := startZone()
	if err != nil {
		return err
	}
	defer zone.close()
	if s.plane, err = startPlane(b.proxies, d, dir, zone.addr, s.w.token, len(s.edges)); err != nil {
		return err
	}
	defer s.plane.stop(b.proxies)
	alive, stop := context.WithCancel(ctx)
	var keeping sync.WaitGroup
	defer keeping.Wait()
	defer stop()
	keeping.Go(func() { s.keepAlive(alive) })
	for _, part := range []struct {
		scenario string
		run      func(context.Context) error
	}{
		{scenarioFeed, s.measureFeed},
		{scenarioDelta, s.measureDeltas},
		{scenarioList, s.measureLists},
		{scenarioSingle, s.measureSingles},
		{scenarioQuery, s.measureQueries},
		{scenarioPoll, s.measurePolls},
		{scenarioPages, s.measurePages},
		{scenarioReports, s.measureReports},
	} {
		if !b.Wants(part.scenario + "/database=" + name) {
			continue
		}
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("%s: %w\nthe management plane's log ends:\n%s", part.scenario, err, s.plane.LogTail())
		}
		if !s.plane.Running() {
			return fmt.Errorf("%s: the management plane has ended; its log ends:\n%s", part.scenario, s.plane.LogTail())
		}
	}
	return nil
}

// keepAlive has the edges that hold the certificates report, so that they are up. It ends with ctx.
func (s *site) keepAlive(ctx context.Context) {
	every := time.NewTicker(20 * time.Second)
	defer every.Stop()
	for {
		for _, e := range s.edges[:holders] {
			// Whoever measures reports finds out what is wrong with them.
			_, _, _, _, _ = e.report(ctx, s.plane, new(edgereport.Builder), s.revision.Load())
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
	}
}

// change changes the n-th domain, wherever the numbers end, so that edges must be told.
func (s *site) change(ctx context.Context, number int) (revision uint64, err error) {
	revision, err = s.plane.change(ctx, s.w, number%len(s.w.names), int(s.changes.Add(1)))
	for was := s.revision.Load(); revision > was && !s.revision.CompareAndSwap(was, revision); was = s.revision.Load() {
	}
	return revision, err
}

// record writes down what was measured of a cell of this database.
func (s *site) record(scenario, parameters string, values map[string]float64, faults []error) error {
	cell := scenario + "/database=" + s.db.name
	if parameters != "" {
		cell += "/" + parameters
	}
	return s.Record(cell, 1+s.rounds(cell), values, nil, faults)
}

// rounds returns how often a cell was measured.
func (s *site) rounds(cell string) (n int) {
	for _, m := range s.Measured {
		if m.Cell == cell {
			n++
		}
	}
	return n
}

// usage is the CPU time that the two sides have used, and what the machine has wanted and not got since other machines had it.
type usage struct {
	at     time.Time
	plane  lab.CPUTime
	server time.Duration
	stolen lab.Steal
}

func (s *site) usageNow() (u usage, err error) {
	u.at = time.Now()
	if u.plane, err = s.plane.CPUNow(); err != nil {
		return u, err
	}
	if u.stolen, err = lab.StealNow(); err != nil {
		return u, err
	}
	u.server, err = s.db.cpu()
	return u, err
}

// cores puts down how many cores were busy since, on average.
func (u usage) cores(s *site, values map[string]float64) error {
	now, err := s.usageNow()
	if err != nil {
		return err
	}
	seconds := now.at.Sub(u.at).Seconds()
	if used, err := now.plane.Since(u.plane); err == nil { // else a thread has ended and took its time with it
		values["plane_cores"] = used.Seconds() / seconds
	}
	if values["stolen_cores"], err = u.stolen.Cores(); err != nil {
		return err
	}
	if s.db.server != nil {
		values["server_cores"] = (now.server - u.server).Seconds() / seconds
	}
	return nil
}

// addTimes puts percentiles of times in ms down under a name.
func addTimes(values map[string]float64, name string, times []float64) {
	if len(times) == 0 {
		return
	}
	values[name+"_p50_ms"] = lab.PercentileOf(times, 50)
	values[name+"_p99_ms"] = lab.PercentileOf(times, 99)
	values[name+"_most_ms"] = slices.Max(times)
}

// timesOf splits samples into times in ms and faults.
func timesOf(samples []lab.Sample) (times []float64, faults []error) {
	return lab.Within(samples, time.Time{}, time.Unix(math.MaxInt32, 0))
}

// openFor calls one at a steady rate for so long.
func openFor(ctx context.Context, rate int, d time.Duration, one func(i int) error) []lab.Sample {
	stop := make(chan struct{})
	timed, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	context.AfterFunc(timed, func() { close(stop) })
	return lab.OpenLoop(rate, stop, one)
}

const mebi = 1 << 20

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }
