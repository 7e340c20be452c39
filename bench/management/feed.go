//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
)

// measureFeed asks for the full set: once after a change, so that it must be made, and once more, when it is kept.
func (s *site) measureFeed(ctx context.Context) error {
	for round := range s.opts.Size.FeedRounds {
		changed, err := s.change(ctx, round)
		if err != nil {
			return err
		}
		var values map[string]float64
		err = lab.Await("a set that is new", time.Minute, time.Second, func() (bool, error) {
			var revision uint64
			values, revision, err = s.fullSet(ctx)
			return revision >= changed, err // one that took long to make is given out for a while, to whoever comes then
		})
		if err != nil {
			return err
		}
		begun := time.Now()
		if _, err = s.plane.poll(ctx, 0, 0); err != nil {
			return err
		}
		values["again_s"] = time.Since(begun).Seconds()
		if err := s.record(scenarioFeed, "", values, nil); err != nil {
			return err
		}
	}
	return nil
}

// fullSet asks for it once.
func (s *site) fullSet(ctx context.Context) (values map[string]float64, revision uint64, err error) {
	if err := s.plane.forgetPeak(); err != nil {
		return nil, 0, err
	}
	before, err := s.plane.MemoryNow()
	if err != nil {
		return nil, 0, err
	}
	cpu, err := s.plane.CPUNow()
	if err != nil {
		return nil, 0, err
	}
	begun := time.Now()
	f, err := s.plane.poll(ctx, 0, 0)
	if err != nil {
		return nil, 0, err
	}
	took := time.Since(begun)
	now, err := s.plane.CPUNow()
	if err != nil {
		return nil, 0, err
	}
	peak, err := s.plane.peak()
	if err != nil {
		return nil, 0, err
	}
	values = map[string]float64{
		"seconds": took.Seconds(), "wire_mib": float64(f.wire) / mebi, "header_s": f.header.Sub(begun).Seconds(),
		"rss_before_mib": float64(before.RSS) / mebi, "rss_peak_mib": peak,
	}
	if used, err := now.Since(cpu); err == nil { // else a thread has ended and took its time with it
		values["cpu_s"] = used.Seconds()
	}
	return values, f.revision, nil
}

// measureDeltas makes one change at a time and asks for it.
func (s *site) measureDeltas(ctx context.Context) error {
	f, err := s.plane.poll(ctx, s.revision.Load(), 0)
	if err != nil {
		return err
	}
	at := max(f.revision, s.revision.Load())
	var times []float64
	var bytes int64
	for i := range s.opts.Size.Deltas {
		if _, err := s.change(ctx, i*7); err != nil {
			return err
		}
		begun := time.Now()
		f, err := s.plane.poll(ctx, at, 0)
		if err != nil {
			return err
		}
		times = append(times, lab.Milliseconds(time.Since(begun)))
		if f.unchanged || f.revision <= at {
			return fmt.Errorf("change %d is not in the feed after %d", i, at)
		}
		at, bytes = f.revision, bytes+f.wire
	}
	values := map[string]float64{"bytes": float64(bytes) / float64(len(times)), "deltas": float64(len(times))}
	addTimes(values, "delta", times)
	return s.record(scenarioDelta, "", values, nil)
}

// arrival is when an edge had a revision.
type arrival struct {
	revision uint64
	at       time.Time
}

// answer is when a change was answered, and when it was asked for.
type answered struct {
	revision   uint64
	begun, end time.Time
}

// poller is an edge that holds a request to the feed.
type poller struct {
	edge     *edge
	at       uint64
	arrivals []arrival
	bytes    int64
	faults   []error

	// Of the goroutine that reports.
	reports      int
	reportFaults []error
}

// run polls, and where reporting is set reports what it has, at most once a second, as an edge does that has applied a
// change. It ends with ctx.
func (p *poller) run(ctx context.Context, s *site, reporting bool) {
	news := make(chan uint64, 1)
	var reporter sync.WaitGroup
	if reporting {
		reporter.Go(func() { p.report(ctx, s, news) })
	}
	const hold = 25 * time.Second
	for ctx.Err() == nil {
		f, err := s.plane.poll(ctx, p.at, hold)
		switch {
		case err != nil && ctx.Err() != nil:
		case err != nil:
			p.faults = append(p.faults, err)
			time.Sleep(100 * time.Millisecond)
		case f.unchanged:
		default:
			p.at = f.revision
			p.arrivals = append(p.arrivals, arrival{f.revision, time.Now()})
			p.bytes += f.wire
			select {
			case <-news: // the one before has not been reported, and need not be
			default:
			}
			news <- f.revision
		}
	}
	close(news)
	reporter.Wait()
}

func (p *poller) report(ctx context.Context, s *site, news <-chan uint64) {
	const gap = time.Second
	for revision := range news {
		switch _, _, _, _, err := p.edge.report(ctx, s.plane, new(edgereport.Builder), revision); {
		case err == nil:
			p.reports++
		case ctx.Err() == nil:
			p.reportFaults = append(p.reportFaults, err)
		}
		select {
		case <-time.After(gap):
		case <-ctx.Done():
		}
	}
}

// measurePolls has many edges wait for changes, without reports and with them.
func (s *site) measurePolls(ctx context.Context) error {
	for _, reporting := range []bool{false, true} {
		if err := s.measurePoll(ctx, reporting); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) measurePoll(ctx context.Context, reporting bool) error {
	polling, stop := context.WithCancel(ctx)
	defer stop()
	pollers := make([]*poller, s.opts.Size.Edges)
	var all sync.WaitGroup
	at := s.revision.Load()
	for i := range pollers {
		pollers[i] = &poller{edge: s.edges[i], at: at}
		all.Go(func() { pollers[i].run(polling, s, reporting) })
	}
	time.Sleep(time.Second) // until all requests are there
	before, err := s.usageNow()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var changes []answered
	samples := openFor(ctx, s.opts.Size.ChangeRate, seconds(s.opts.Size.PollSecs), func(i int) error {
		begun := time.Now()
		revision, err := s.change(ctx, i*13)
		if err == nil {
			mu.Lock()
			changes = append(changes, answered{revision, begun, time.Now()})
			mu.Unlock()
		}
		return err
	})
	values := map[string]float64{"edges": float64(len(pollers))}
	if err := before.cores(s, values); err != nil {
		return err
	}
	// What was changed last must have come before the edges are called home.
	if len(changes) == 0 {
		return errors.New("no domain could be changed")
	}
	time.Sleep(2 * time.Second)
	stop()
	all.Wait()

	patches, faults := timesOf(samples)
	addTimes(values, "patch", patches)
	var bytes, deltas, reports float64
	var waits, whole []float64
	for _, p := range pollers {
		faults = append(append(faults, p.faults...), p.reportFaults...)
		bytes += float64(p.bytes)
		deltas += float64(len(p.arrivals))
		reports += float64(p.reports)
		late, total, missing := delays(changes, p.arrivals)
		waits, whole = append(waits, late...), append(whole, total...)
		if missing > 0 {
			faults = append(faults, fmt.Errorf("%s did not get %d changes", p.edge.name, missing))
			values["missing"] += float64(missing)
		}
	}
	values["missing"] += 0
	values["changes"], values["failed"] = float64(len(changes)), float64(len(faults))
	addTimes(values, "delta", waits)
	addTimes(values, "whole", whole)
	took := float64(s.opts.Size.PollSecs)
	values["deltas_per_s"], values["kib_per_s"] = deltas/took, bytes/1024/took
	parameters := "reports=no"
	if reporting {
		parameters = "reports=yes"
		values["reports_per_s"] = reports / took
	}
	return s.record(scenarioPoll, parameters, values, faults)
}

// delays returns in ms how long after each change was answered, and after it was asked for, an edge had it; 0 where it had
// it before the answer was read.
func delays(changes []answered, arrivals []arrival) (late, total []float64, missing int) {
	for _, c := range changes {
		found := false
		for _, a := range arrivals {
			if a.revision >= c.revision {
				late = append(late, max(lab.Milliseconds(a.at.Sub(c.end)), 0))
				total = append(total, lab.Milliseconds(a.at.Sub(c.begun)))
				found = true
				break
			}
		}
		if !found {
			missing++
		}
	}
	return late, total, missing
}
