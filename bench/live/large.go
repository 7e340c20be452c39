//go:build linux

package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// handshakeName is the static domain that handshakes are measured on.
const handshakeName = "front" + staticZone

// fewDomains is the size of the set that a large one's memory is compared with.
const fewDomains = 10

// large is a pqproxy that is given a large set, and what it is given.
type large struct {
	*bench
	cores string // in the names of cells
	proxy *lab.Proxy
	feed  *lab.Feed
	sets  [2][]byte // elements of full sets that differ in every domain
	next  int       // of sets, to be published

	upstream *server // of the names that are asked for
}

// measureLarge measures full sets, what they weigh, deltas on top (on one core) and handshakes beside. The process is
// one for all of it: a set takes long to load.
func (b *bench) measureLarge(cores string, core int) error {
	upstream, err := startServer(nil, func(uint64) *checkedConn { return nil })
	if err != nil {
		return err
	}
	defer upstream.close()
	f, err := lab.StartFeed()
	if err != nil {
		return err
	}
	defer f.Close()
	l := &large{bench: b, cores: cores, feed: f, upstream: upstream}
	for version := range l.sets {
		l.sets[version] = lab.TypicalSet(b.opts.Domains, version)
	}

	few, _ := f.PublishFull(lab.TypicalSet(fewDomains, 0), true)
	static := []object{{
		"name": handshakeName, "tenant": "bench", "upstreams": []object{{"dial": upstream.addr}}, "certificate": b.pki.byocFiles(),
	}}
	if l.proxy, err = b.launch("pqproxy", core, managed(f.URL, static)); err != nil {
		return err
	}
	defer b.proxies.Stop(l.proxy)
	if _, err := l.proxy.AwaitRevision(few, 20*time.Millisecond); err != nil {
		return l.explain(err)
	}
	if err := l.measureSets(); err != nil {
		return l.explain(err)
	}
	if b.Wants(l.cell(scenarioDelta)) {
		if err := l.measureDeltas(); err != nil {
			return l.explain(err)
		}
	}
	if b.Wants(l.cell(scenarioHandshake)) {
		if err := l.measureHandshakes(); err != nil {
			return l.explain(err)
		}
	}
	return nil
}

func (l *large) cell(scenario string) string { return scenario + "/cores=" + l.cores }

func (l *large) explain(err error) error {
	return fmt.Errorf("pqproxy with cores=%s: %w\nits log ends:\n%s", l.cores, err, l.proxy.LogTail())
}

// measureSets publishes full sets, the first on top of a few domains, the others each in place of one as large, in which
// every domain changes. The time is from the answer's first byte to the first status that shows the revision: sending
// (loopback), hashing, parsing, building, swapping, and the temporary file are in it. So is the pause between two looks
// at the status, 10 ms. CPU is given until then, and until the process rests, when the set has also been kept.
//
// The number cannot show: a slow line, decompression, verifying a signature (its cost is the hash), or a set whose domains
// share upstreams.
func (l *large) measureSets() error {
	if _, err := l.proxy.Settle(); err != nil {
		return err
	}
	before, err := l.proxy.HeapAtRest()
	if err != nil {
		return err
	}
	memory, err := l.proxy.MemoryNow()
	if err != nil {
		return err
	}
	sets := 0
	if l.Wants(l.cell(scenarioSet)) || l.Wants(l.cell(scenarioMemory)) {
		sets = 1
		if l.cores == "1" { // what the targets are for
			sets = l.opts.Size.FullSets
		}
	}
	for n := range 1 + sets {
		kind := "replace"
		if n == 0 {
			kind = "first"
		}
		values, err := l.measureSet()
		if err != nil {
			return err
		}
		if err := l.Record(l.cell(scenarioSet)+"/kind="+kind, max(n, 1), values, nil, nil); err != nil {
			return err
		}
		if n == 0 || n == sets {
			if err := l.measureMemory(kind, before, memory); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *large) measureSet() (map[string]float64, error) {
	cpu, err := l.proxy.Settle()
	if err != nil {
		return nil, err
	}
	heap, err := l.proxy.Memstats()
	if err != nil {
		return nil, err
	}
	revision, a, live, err := l.applySet()
	if err != nil {
		return nil, err
	}
	cpuLive, err := l.proxy.CPUNow()
	if err != nil {
		return nil, err
	}
	cpuSettled, err := l.proxy.Settle()
	if err != nil {
		return nil, err
	}
	untilLive, err1 := cpuLive.Since(cpu)
	untilSettled, err2 := cpuSettled.Since(cpu)
	after, err3 := l.proxy.Memstats()
	status, err4 := l.proxy.Status()
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	if got, want := status.Domains["remote"], l.opts.Domains; got != want {
		return nil, fmt.Errorf("%d domains are live, %d were published", got, want)
	}
	values := map[string]float64{
		"seconds":       live.Sub(a.Start).Seconds(),
		"transfer_s":    a.End.Sub(a.Start).Seconds(),
		"cpu_s":         untilLive.Seconds(),
		"cpu_settled_s": untilSettled.Seconds(),
		"body_mib":      float64(a.Bytes) / (1 << 20),
	}
	status.AddReported(values, "reported_s", revision, time.Second)
	addPauses(values, after.PausesSince(heap))
	return values, nil
}

// addPauses adds what collections stopped the world for.
func addPauses(values map[string]float64, pauses []time.Duration) {
	longest, total := time.Duration(0), time.Duration(0)
	for _, p := range pauses {
		longest, total = max(longest, p), total+p
	}
	values["collections"] = float64(len(pauses))
	values["pause_most_ms"], values["pause_total_ms"] = lab.Milliseconds(longest), lab.Milliseconds(total)
}

// applySet publishes the next full set and waits until it is live.
func (l *large) applySet() (revision uint64, a *lab.Answer, live time.Time, err error) {
	revision, a = l.feed.PublishFull(l.sets[l.next%len(l.sets)], false)
	l.next++
	live, err = l.awaitLive(revision, a, 10*time.Millisecond)
	return revision, a, live, err
}

// awaitLive waits until the status shows a revision, and for the end of the answer that brought it.
func (l *large) awaitLive(revision uint64, a *lab.Answer, every time.Duration) (time.Time, error) {
	live, err := l.proxy.AwaitRevision(revision, every)
	if err != nil {
		return live, err
	}
	<-a.Done // it was answered, or it would not be live
	return live, a.Err
}

// measureMemory compares the heap after two collections with the same of a few domains: HeapInuse, which counts the
// spans that hold anything, and HeapAlloc, what is in them. The resident size is for information: what the runtime
// has freed and not given back yet is in it.
//
// The number cannot show: certificates, of which these domains have none yet, and the peak during an apply, when the old
// table and the new one exist beside each other (rss is near it).
func (l *large) measureMemory(after string, before lab.Memstats, memory lab.Memory) error {
	heap, err := l.proxy.HeapAtRest()
	if err != nil {
		return err
	}
	now, err := l.proxy.MemoryNow()
	if err != nil {
		return err
	}
	each := func(more, less float64) float64 { return (more - less) / float64(l.opts.Domains-fewDomains) }
	return l.Record(l.cell(scenarioMemory)+"/after="+after, 1, map[string]float64{
		"heap_inuse": each(float64(heap.HeapInuse), float64(before.HeapInuse)),
		"heap_alloc": each(float64(heap.HeapAlloc), float64(before.HeapAlloc)),
		"rss":        each(float64(now.RSS), float64(memory.RSS)),
	}, nil, nil)
}

// measureDeltas publishes deltas of a thousand domains on top of the large set: 90 in a hundred change, 5 are new, 5 go.
// One of the new ones brings its certificate; a client asks for it every millisecond until its handshake is not
// refused with unrecognized_name, and then succeeds. The time is from the delta's first byte, which answers a long
// poll, to the end of that handshake; the status is asked too, every 5 ms. Both look on from the other core, and cost
// the proxy's core some percent.
//
// The number cannot show: how long a change waits in the management plane, or an edge that polls without `wait`.
func (l *large) measureDeltas() error {
	for n := range l.opts.Size.Deltas {
		values, err := l.measureDelta(n)
		if err != nil {
			return fmt.Errorf("delta %d: %w", n+1, err)
		}
		if err := l.Record(l.cell(scenarioDelta), n+1, values, nil, nil); err != nil {
			return err
		}
	}
	return nil
}

func (l *large) measureDelta(n int) (map[string]float64, error) {
	probe := fmt.Sprintf("delta-%d%s", n, remoteZone)
	domains, removed, err := l.deltaOf(n, probe)
	if err != nil {
		return nil, err
	}
	cpu, err := l.proxy.Settle()
	if err != nil {
		return nil, err
	}
	heap, err := l.proxy.Memstats()
	if err != nil {
		return nil, err
	}
	// One group: the key share of the default costs the clients more than all the rest of a refused hello.
	client := &lab.Dialer{Addr: l.proxy.Addr, Roots: l.pki.roots, Groups: []tls.CurveID{tls.X25519}}
	if err := client.Handshake(probe); !lab.IsUnknownName(err) {
		return nil, fmt.Errorf("a handshake for %s before the delta: %v, want unrecognized_name", probe, err)
	}

	var (
		watching           sync.WaitGroup
		byHandshake        time.Time
		byStatus           time.Time
		errProbe, errWatch error
	)
	revision, a := l.feed.PublishDelta(domains, removed, nil)
	watching.Go(func() { byHandshake, errProbe = awaitName(client, probe) })
	watching.Go(func() { byStatus, errWatch = l.awaitLive(revision, a, 5*time.Millisecond) })
	watching.Wait()
	if err := errors.Join(errProbe, errWatch); err != nil {
		return nil, err
	}
	if a.Full {
		return nil, errors.New("the edge asked for the full set, not for the delta")
	}
	cpuLive, err1 := l.proxy.CPUNow()
	cpuSettled, err2 := l.proxy.Settle()
	after, err3 := l.proxy.Memstats()
	status, err4 := l.proxy.Status()
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	untilLive, err1 := cpuLive.Since(cpu)
	untilSettled, err2 := cpuSettled.Since(cpu)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	values := map[string]float64{
		"handshake_ms":   lab.Milliseconds(byHandshake.Sub(a.Start)),
		"status_ms":      lab.Milliseconds(byStatus.Sub(a.Start)),
		"cpu_ms":         lab.Milliseconds(untilLive),
		"cpu_settled_ms": lab.Milliseconds(untilSettled),
		"body_kib":       float64(a.Bytes) / 1024,
	}
	status.AddReported(values, "reported_ms", revision, time.Millisecond)
	addPauses(values, after.PausesSince(heap))
	return values, nil
}

// awaitName dials until a name is served, and returns when that handshake had succeeded.
func awaitName(client *lab.Dialer, name string) (time.Time, error) {
	var seen time.Time
	err := lab.Await("handshakes for "+name, time.Minute, time.Millisecond, func() (bool, error) {
		err := client.Handshake(name)
		seen = time.Now()
		if lab.IsUnknownName(err) {
			return false, nil
		}
		return err == nil, err
	})
	return seen, err
}

// deltaOf makes the nth delta. Names that it removes are of the set's end and go once; names that it adds are above.
func (l *large) deltaOf(n int, probe string) (domains []byte, removed []string, err error) {
	size, total := l.opts.Size, l.opts.Domains
	few := size.DeltaDomains / 20 // added, and as many removed
	record, err := json.Marshal(object{
		"name": probe, "tenant": "bench", "upstreams": []object{{"dial": l.upstream.addr}}, "certificate": l.pki.byoc(),
	})
	if err != nil {
		return nil, nil, err
	}
	domains = record
	add := func(i int) { domains = lab.AppendTypical(append(domains, ','), i, 2+n) }
	for i := range few - 1 {
		add(total + n*few + i)
	}
	for _, i := range chooseDomains(size.DeltaDomains-2*few, total-size.Deltas*few, uint64(n)) {
		add(i)
	}
	for i := range few {
		removed = append(removed, lab.TypicalName(total-1-n*few-i))
	}
	return domains, removed, nil
}

// measureHandshakes measures full handshakes on a static domain, begun at a steady rate whatever the proxy does, first
// with nothing going on, then while full sets are applied one after another; in the next round the other way round.
// A phase in which other machines of the host had too much of the processors is measured again.
// Times count from when a handshake was due, so that a stall is felt by all that fall into it. The load has the other
// core; with cores=all the proxy may use that one too, and then they contend for it.
//
// The number cannot show: handshakes at a rate that the proxy is busy with, where there is no idle CPU for applying.
func (l *large) measureHandshakes() error {
	size := l.opts.Size
	for round := 1; round <= size.HandshakeRound; round++ {
		samples := map[string][]float64{}
		values := map[string]float64{}
		var faults []error
		phases := []string{"idle", "apply"}
		if round%2 == 0 {
			phases = []string{"apply", "idle"}
		}
		for _, phase := range phases {
			ph, stolen, err := lab.Calmest(phaseTries, func() (ph handshakePhase, stolen float64, err error) {
				if _, err := l.proxy.Settle(); err != nil {
					return ph, 0, err
				}
				heap, err := l.proxy.Memstats()
				if err != nil {
					return ph, 0, err
				}
				if ph, stolen, err = l.handshakesDuring(phase == "apply"); err != nil {
					return ph, 0, err
				}
				faults = append(faults, ph.faults...) // those of all tries
				after, err := l.proxy.Memstats()
				ph.pauses = after.PausesSince(heap)
				return ph, stolen, err
			})
			if err != nil {
				return err
			}
			samples[phase] = ph.times
			values[phase+"_cpu_s"], values[phase+"_stolen_cores"] = ph.cpu, stolen
			values[phase+"_p50_ms"], values[phase+"_p99_ms"] = lab.PercentileOf(ph.times, 50), lab.PercentileOf(ph.times, 99)
			values[phase+"_most_ms"] = lab.PercentileOf(ph.times, 100)
			values[phase+"_count"] = float64(len(ph.times))
			if phase == "apply" {
				addPauses(values, ph.pauses)
			}
		}
		values["failed"] = float64(len(faults))
		if err := l.Record(l.cell(scenarioHandshake), round, values, samples, faults); err != nil {
			return err
		}
	}
	return nil
}

// phaseTries is how often a phase is measured while other machines of the host are in the way.
const phaseTries = 4

// handshakePhase is what handshakes were like for some seconds.
type handshakePhase struct {
	times  []float64 // ms
	faults []error
	cpu    float64 // s, of the proxy
	pauses []time.Duration
}

// handshakesDuring makes handshakes for a phase, beside full sets or with nothing beside. Only those count that were due
// between the first answer and the last set's going live.
func (l *large) handshakesDuring(apply bool) (ph handshakePhase, stolen float64, err error) {
	length := time.Duration(l.opts.Size.HandshakeSecs) * time.Second
	client := &lab.Dialer{Addr: l.proxy.Addr, Roots: l.pki.roots}
	steal, err1 := lab.StealNow()
	cpu, err2 := l.proxy.CPUNow()
	if err := errors.Join(err1, err2); err != nil {
		return ph, 0, err
	}
	var (
		loop    sync.WaitGroup
		stop    = make(chan struct{})
		samples []lab.Sample
	)
	loop.Go(func() {
		samples = lab.OpenLoop(l.opts.Size.HandshakeRate, stop, func(int) error { return client.Handshake(handshakeName) })
	})
	start := time.Now()
	end := start.Add(length)
	if !apply {
		time.Sleep(length)
	}
	for first := true; apply && err == nil && (first || time.Now().Before(start.Add(length))); first = false {
		var a *lab.Answer
		_, a, end, err = l.applySet()
		if first && err == nil {
			start = a.Start
		}
	}
	close(stop)
	loop.Wait()
	if err != nil {
		return ph, 0, err
	}
	cpuAfter, err1 := l.proxy.CPUNow()
	stolen, err2 = steal.Cores()
	if err := errors.Join(err1, err2); err != nil {
		return ph, 0, err
	}
	used, err := cpuAfter.Since(cpu)
	ph.cpu = used.Seconds()
	ph.times, ph.faults = lab.Within(samples, start, end)
	return ph, stolen, err
}
