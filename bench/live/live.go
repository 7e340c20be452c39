//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// stage is a proxy with checked connections through it and visitors beside, for both live scenarios: what is the same
// for pqproxy and caddy-l4.
type stage struct {
	*bench
	proxy   *lab.Proxy
	load    *load
	dials   upstreams
	servers []*server

	visiting sync.WaitGroup
	stop     chan struct{} // ends the visits
	visits   []lab.Sample  // to be read when visiting is done

	quiet, changing window
	quietCPU        float64 // CPU seconds a second of relaying and visits alone
	requests        []float64
	faults          []error
}

// window is a stretch of time.
type window struct{ start, end time.Time }

func (w window) seconds() float64 { return w.end.Sub(w.start).Seconds() }

// newStage starts the upstreams. names are those that the connections will ask for.
func (b *bench) newStage(names []string) (*stage, error) {
	s := &stage{bench: b, stop: make(chan struct{})}
	s.load = newLoad(b.opts.Size.Conns, names, time.Duration(b.opts.Size.FrameMillis)*time.Millisecond)
	for i := range 2 {
		plain, err := startServer(nil, s.load.conn)
		if err != nil {
			return nil, err
		}
		secure, err := startServer(b.pki.upstreamTLS(), s.load.conn)
		if err != nil {
			return nil, err
		}
		s.servers = append(s.servers, plain, secure)
		s.dials.plain[i], s.dials.tls[i] = plain.addr, secure.addr
	}
	return s, nil
}

// close ends the upstreams' listeners and the proxy.
func (s *stage) close() {
	for _, server := range s.servers {
		_ = server.close()
	}
	if s.proxy != nil {
		s.proxies.Stop(s.proxy)
	}
}

// begin opens the connections, then relays for a while with nothing else going on, to know what that costs.
func (s *stage) begin() error {
	d := &lab.Dialer{Addr: s.proxy.Addr, Roots: s.pki.roots}
	if err := s.load.open(d.Dial); err != nil {
		return err
	}
	s.visiting.Go(func() {
		s.visits = lab.OpenLoop(s.opts.Size.VisitRate, s.stop, func(i int) error { return visitName(d, s.load.conns[i%len(s.load.conns)].name) })
	})
	before, err := s.proxy.CPUNow()
	if err != nil {
		return err
	}
	s.quiet.start = time.Now()
	time.Sleep(time.Duration(s.opts.Size.QuietSecs) * time.Second)
	s.quiet.end = time.Now()
	used, err := s.cpuSince(before)
	s.quietCPU = used / s.quiet.seconds()
	s.changing.start = time.Now()
	return err
}

// cpuSince returns the CPU seconds that the proxy used since a reading.
func (s *stage) cpuSince(before lab.CPUTime) (float64, error) {
	now, err := s.proxy.CPUNow()
	if err != nil {
		return 0, err
	}
	used, err := now.Since(before)
	return used.Seconds(), err
}

// request sends a change to the admin endpoint and notes how long the answer took.
func (s *stage) request(method, path string, body any) error {
	start := time.Now()
	_, err := s.proxy.Admin.Call(method, path, body)
	s.requests = append(s.requests, lab.Milliseconds(time.Since(start)))
	return err
}

// finish ends visits and connections and returns the figures that both proxies have.
func (s *stage) finish() map[string]float64 {
	s.changing.end = time.Now()
	close(s.stop)
	s.visiting.Wait()
	s.load.end()
	t := s.load.tally()
	s.faults = append(s.faults, t.faults...)
	_, before := lab.Within(s.visits, s.quiet.start, s.quiet.end)
	for _, err := range before {
		s.faults = append(s.faults, fmt.Errorf("new connection before any change: %w", err))
	}
	visits, failed := lab.Within(s.visits, s.changing.start, s.changing.end)
	for _, err := range failed {
		s.faults = append(s.faults, fmt.Errorf("new connection: %w", err))
	}
	values := map[string]float64{
		"conns":           float64(t.conns),
		"relayed_mib":     float64(t.bytes) / (1 << 20),
		"lost_bytes":      float64(t.lost),
		"wrong":           float64(t.wrong),
		"reset":           float64(t.reset),
		"otherwise":       float64(t.otherwise),
		"visits":          float64(len(visits) + len(failed)),
		"visits_failed":   float64(len(failed)),
		"quiet_failed":    float64(len(before)),
		"seconds":         s.changing.seconds(),
		"request_ms":      lab.PercentileOf(s.requests, 50),
		"request_most_ms": lab.PercentileOf(s.requests, 100),
		"ten_thousand_s":  10 * lab.PercentileOf(s.requests, 50),
		"quiet_cores":     s.quietCPU,
	}
	values["visits_failed_percent"] = 100 * values["visits_failed"] / max(values["visits"], 1)
	for name, w := range map[string]window{"quiet": s.quiet, "change": s.changing} {
		var ways []float64
		for _, f := range t.frameTimes {
			if at := clockStart.Add(f.at); at.After(w.start) && at.Before(w.end) {
				ways = append(ways, lab.Milliseconds(f.took))
			}
		}
		values[name+"_p99_ms"], values[name+"_most_ms"] = lab.PercentileOf(ways, 99), lab.PercentileOf(ways, 100)
	}
	return values
}

// liveRun is the live scenario with pqproxy.
type liveRun struct {
	*stage
	plan *plan
	feed *lab.Feed

	changes, resyncs, reloads int
	deltaMs, resyncMs         []float64
	reloadMs                  []float64
	resyncCPU                 float64
}

// measureLive is the demonstration: connections relay in both directions, every byte compared, over names of all three
// sources to plain and TLS upstreams, while thousands of domains change by deltas and by the admin API, full sets
// replace the remote source (every other one after a 410, every other one changing all domains that have no
// connections), and the config is reloaded. A quarter of the changes touches the very names that have connections. In
// the end every connection is ended in order by its client, both sides have counted, and what is live is compared with
// what was planned.
//
// The number cannot show: connections that end for a reason (a domain suspended, removed, handed over), networks.
func (b *bench) measureLive() error {
	size := b.opts.Size
	p := newPlan(b.pki, upstreams{}, size.Names)
	s, err := b.newStage(p.usedNames())
	if err != nil {
		return err
	}
	defer s.close()
	p.dials = s.dials
	f, err := lab.StartFeed()
	if err != nil {
		return err
	}
	defer f.Close()
	l := &liveRun{stage: s, plan: p, feed: f}
	err = l.run()
	if err != nil && s.proxy != nil {
		err = fmt.Errorf("live, pqproxy: %w\nits log ends:\n%s", err, s.proxy.LogTail())
	}
	return err
}

func (l *liveRun) run() (err error) {
	size := l.opts.Size
	var static []object
	for i := range size.Names {
		static = append(static, l.plan.used(l.plan.sources[sourceStatic], i))
	}
	l.plan.sources[sourceRemote].fill(size.LiveDomains)
	l.plan.sources[sourceAdmin].fill(size.LiveDomains / 10)
	revision, _ := l.feed.PublishFull(l.plan.elements(sourceRemote), true)
	if l.proxy, err = l.launch("pqproxy", proxyCore, managed(l.feed.URL, static)); err != nil {
		return err
	}
	if _, err := l.proxy.AwaitRevision(revision, 10*time.Millisecond); err != nil {
		return err
	}
	if _, err := l.proxy.Admin.Call(http.MethodPut, "/pqproxy/domains", changeSet(l.plan.elements(sourceAdmin), nil)); err != nil {
		return err
	}
	if err := l.begin(); err != nil {
		return err
	}
	before, err := l.proxy.CPUNow()
	if err != nil {
		return err
	}
	pace := time.Duration(size.ChangeSecs) * time.Second / time.Duration(size.Steps)
	for n := range size.Steps {
		time.Sleep(time.Until(l.changing.start.Add(time.Duration(n) * pace)))
		if err := l.step(n); err != nil {
			return fmt.Errorf("step %d: %w", n+1, err)
		}
	}
	used, err := l.cpuSince(before)
	if err != nil {
		return err
	}
	perChange := (used - l.resyncCPU - l.quietCPU*time.Since(l.changing.start).Seconds()) * 1000 / float64(l.changes)
	if err := l.check(); err != nil {
		return fmt.Errorf("what is live is not what was asked for: %w", err)
	}
	values := l.finish()
	for name, v := range map[string]float64{
		"changes": float64(l.changes), "resyncs": float64(l.resyncs), "reloads": float64(l.reloads),
		"delta_ms": lab.PercentileOf(l.deltaMs, 50), "resync_ms": lab.PercentileOf(l.resyncMs, 50), "reload_ms": lab.PercentileOf(l.reloadMs, 50),
		"cpu_ms_per_change": perChange, "ten_thousand_cpu_s": perChange * 10,
	} {
		values[name] = v
	}
	return l.Record(livePQProxy, 1, values, map[string][]float64{"delta": l.deltaMs, "resync": l.resyncMs, "reload": l.reloadMs, "request": l.requests}, l.faults)
}

// step is a hundredth of the changes: a delta, and while it goes live, requests to the admin API; now and then a full
// set and a config reload.
func (l *liveRun) step(n int) error {
	size := l.opts.Size
	domains, removed := split(l.plan.changes(sourceRemote, size.StepDelta))
	revision, a := l.feed.PublishDelta(domains, removed, nil)
	var (
		watching sync.WaitGroup
		live     time.Time
		errWatch error
	)
	watching.Go(func() { live, errWatch = l.proxy.AwaitRevision(revision, 5*time.Millisecond) })
	err := l.administer()
	watching.Wait()
	if err := errors.Join(err, errWatch); err != nil {
		return err
	}
	<-a.Done
	l.deltaMs = append(l.deltaMs, lab.Milliseconds(live.Sub(a.Start)))
	l.changes += size.StepDelta + size.StepSingle + size.StepPatch
	// Spread over all steps, whatever their number.
	if (n+1)*size.Resyncs/size.Steps > n*size.Resyncs/size.Steps {
		if err := l.resync(); err != nil {
			return fmt.Errorf("full set: %w", err)
		}
	}
	if (n+1)*size.Reloads/size.Steps > n*size.Reloads/size.Steps {
		return l.reload()
	}
	return nil
}

// administer sends single changes and a change set.
func (l *liveRun) administer() error {
	for range l.opts.Size.StepSingle {
		c := l.plan.changes(sourceAdmin, 1)[0]
		method, body := http.MethodPut, any(c.record)
		if c.record == nil {
			method, body = http.MethodDelete, nil
		}
		if err := l.request(method, "/pqproxy/domains/"+c.name, body); err != nil {
			return err
		}
	}
	domains, removed := split(l.plan.changes(sourceAdmin, l.opts.Size.StepPatch))
	_, err := l.proxy.Admin.Call(http.MethodPatch, "/pqproxy/domains", changeSet(domains, removed))
	return err
}

// resync replaces the whole remote source.
func (l *liveRun) resync() error {
	l.resyncs++
	gone := l.resyncs%2 == 1
	if !gone {
		l.plan.sources[sourceRemote].replaceAll()
	}
	elements := l.plan.elements(sourceRemote)
	before, err := l.proxy.CPUNow()
	if err != nil {
		return err
	}
	start := time.Now()
	revision, a := l.feed.PublishFull(elements, gone)
	live, err := l.proxy.AwaitRevision(revision, 5*time.Millisecond)
	if err != nil {
		return err
	}
	<-a.Done
	l.resyncMs = append(l.resyncMs, lab.Milliseconds(live.Sub(a.Start)))
	used, err := l.cpuSince(before)
	l.resyncCPU += used - l.quietCPU*time.Since(start).Seconds()
	return err
}

// reload changes a static domain in use through Caddy's own API, which reloads the whole config.
func (l *liveRun) reload() error {
	i := l.reloads % l.opts.Size.Names
	l.reloads++
	c := l.plan.touch(l.plan.sources[sourceStatic], i)
	start := time.Now()
	if _, err := l.proxy.Admin.Call(http.MethodPatch, fmt.Sprintf("/config/apps/pqproxy/domains/%d", i), c.record); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	l.reloadMs = append(l.reloadMs, lab.Milliseconds(time.Since(start)))
	return nil
}

// check compares what is live with the plan: numbers by source, and for some names whether they are served.
func (l *liveRun) check() error {
	s, err := l.proxy.Status()
	if err != nil {
		return err
	}
	for _, source := range []string{sourceStatic, sourceAdmin, sourceRemote} {
		if got, want := s.Domains[source], l.plan.count(source); got != want {
			return fmt.Errorf("%d domains of source %s, want %d", got, source, want)
		}
	}
	const some = 20
	client := &lab.Dialer{Addr: l.proxy.Addr, Roots: l.pki.roots}
	for _, source := range []string{sourceAdmin, sourceRemote} {
		plan := l.plan.sources[source]
		for k := range some {
			i := plan.order[k*len(plan.order)/some]
			if err := client.Handshake(lab.TypicalName(i)); lab.IsUnknownName(err) {
				return fmt.Errorf("%s, source %s, is not served", lab.TypicalName(i), source)
			}
		}
		gone := 0
		for i := plan.next - 1; i >= 0 && gone < some; i-- {
			if _, there := plan.others[i]; there {
				continue
			}
			if err := client.Handshake(lab.TypicalName(i)); !lab.IsUnknownName(err) {
				return fmt.Errorf("%s, source %s, is served still: %v", lab.TypicalName(i), source, err)
			}
			gone++
		}
	}
	return nil
}

// changeSet is the body of PUT and PATCH: lists of records, as elements, and of names.
func changeSet(domains []byte, removed []string) any {
	set := object{"domains": json.RawMessage("[" + string(domains) + "]")}
	if removed != nil {
		set["removed"] = removed
	}
	return set
}
