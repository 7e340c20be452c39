//go:build linux

package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// footprint is the memory of an edge at rest, in bytes: of the heap the spans that hold anything after two collections,
// and the resident size, in which is also what the runtime has freed and not given back.
type footprint struct{ heap, rss float64 }

func footprintOf(p *lab.Proxy) (footprint, error) {
	heap, err := p.HeapAtRest()
	if err != nil {
		return footprint{}, err
	}
	memory, err := p.MemoryNow()
	return footprint{float64(heap.HeapInuse), float64(memory.RSS)}, err
}

// values are the figures that all cells have.
func (f footprint) values() map[string]float64 {
	return map[string]float64{"heap_mib": f.heap / (1 << 20), "rss_mib": f.rss / (1 << 20)}
}

// each returns what each of n things has added to an earlier footprint.
func (f footprint) each(before footprint, n int) (heap, rss float64) {
	return (f.heap - before.heap) / float64(n), (f.rss - before.rss) / float64(n)
}

// measureMemory measures edges that have started from a kept set: with ten domains, with the table, and with the domains
// whose certificates are in storage, of which then some are visited, and visited again, and then many.
func (b *bench) measureMemory() error {
	for round := 1; round <= b.opts.Size.MemoryRounds; round++ {
		ten, err := b.measureKnown(setTen, round, footprint{})
		if err != nil {
			return err
		}
		if b.Wants(memoryCell(setTable, visitedNone)) {
			if _, err := b.measureKnown(setTable, round, ten); err != nil {
				return err
			}
		}
		if b.Wants(scenarioMemory+"/set="+setStored) || b.Wants(scenarioVisit) {
			if err := b.measureVisits(round, ten); err != nil {
				return err
			}
		}
	}
	return nil
}

// measureKnown measures what domains cost that are known and not visited, but for the one of the first handshake, before
// the sweep has gone far.
func (b *bench) measureKnown(name string, round int, ten footprint) (footprint, error) {
	s := b.sets[name]
	p, _, err := b.start(s, fromKept, s.servedName(round))
	if err != nil {
		return footprint{}, fmt.Errorf("memory of set %s: %w", name, err)
	}
	defer b.proxies.Stop(p)
	at, err := footprintOf(p)
	if err != nil {
		return at, err
	}
	return at, b.recordKnown(s, round, at, ten)
}

func (b *bench) recordKnown(s *set, round int, at, ten footprint) error {
	values := at.values()
	if s.name != setTen {
		values["heap_known"], values["rss_known"] = at.each(ten, len(s.numbers)-servedNames)
	}
	return b.Record(memoryCell(s.name, visitedNone), round, values, nil, nil)
}

// measureVisits waits for the first sweep, so that it is not taken for visits: by then the edge knows when each of the
// certificates ends, and has none of them in memory. Then one client visits names, one at a time: a whole handshake, and
// away. Between the visits and each footprint nothing happens.
//
// The number cannot show: names that are visited at once, or so many that some leave memory again.
func (b *bench) measureVisits(round int, ten footprint) error {
	s, size := b.sets[setStored], b.opts.Size
	names := s.shuffledNames(size.VisitMany + 1)
	names, first := names[1:], names[0]
	p, _, err := b.start(s, fromKept, first)
	if err != nil {
		return err
	}
	defer b.proxies.Stop(p)
	err = b.measureVisitsOf(p, names, round, ten)
	if err != nil {
		err = fmt.Errorf("visiting: %w\nits log ends:\n%s", err, p.LogTail())
	}
	return err
}

func (b *bench) measureVisitsOf(p *lab.Proxy, names []string, round int, ten footprint) error {
	s, size := b.sets[setStored], b.opts.Size
	if err := awaitSwept(p, len(s.numbers)); err != nil {
		return err
	}
	none, err := footprintAtRest(p)
	if err != nil {
		return err
	}
	if err := b.recordKnown(s, round, none, ten); err != nil {
		return err
	}
	client := b.client(p)
	first, err := visitAll(client, names[:size.VisitSome])
	if err != nil {
		return err
	}
	second, err := visitAll(client, names[:size.VisitSome])
	if err != nil {
		return err
	}
	samples := map[string][]float64{"first": first, "second": second}
	if err := b.Record(scenarioVisit+"/set="+s.name, round, visitValues(first, second), samples, nil); err != nil {
		return err
	}
	some, err := footprintAtRest(p)
	if err != nil {
		return err
	}
	values := some.values()
	heapSome, rssSome := some.each(none, size.VisitSome)
	values["heap_visited_kib"], values["rss_visited_kib"], values["names"] = heapSome/1024, rssSome/1024, float64(size.VisitSome)
	if err := b.Record(memoryCell(s.name, visitedSome), round, values, nil, nil); err != nil {
		return err
	}
	if _, err := visitAll(client, names[size.VisitSome:]); err != nil {
		return err
	}
	many, err := footprintAtRest(p)
	if err != nil {
		return err
	}
	values = many.values()
	heapMany, rssMany := many.each(none, len(names))
	values["heap_visited_kib"], values["rss_visited_kib"], values["names"] = heapMany/1024, rssMany/1024, float64(len(names))
	values["proportion"] = heapMany / heapSome
	return b.Record(memoryCell(s.name, visitedMany), round, values, nil, nil)
}

// footprintAtRest is the footprint of an edge that does nothing.
func footprintAtRest(p *lab.Proxy) (footprint, error) {
	if _, err := p.Settle(); err != nil {
		return footprint{}, err
	}
	return footprintOf(p)
}

// awaitSwept waits until an edge has found n certificates in storage.
func awaitSwept(p *lab.Proxy, n int) error {
	const each = 20 * time.Millisecond // far more than the sweep takes
	return lab.Await(fmt.Sprintf("%d certificates to be looked at", n), time.Minute+time.Duration(n)*each, time.Second, func() (bool, error) {
		l, err := askLooked(p)
		return l.held >= n, err
	})
}

// visitAll visits names one after the other and returns the milliseconds that each took, from its SYN to the end of its
// handshake.
func visitAll(client *lab.Dialer, names []string) ([]float64, error) {
	times := make([]float64, len(names))
	for i, name := range names {
		start := time.Now()
		conn, err := client.Dial(name)
		if err != nil {
			return nil, fmt.Errorf("visit %d, %s: %w", i+1, name, err)
		}
		times[i] = lab.Milliseconds(time.Since(start))
		conn.Close()
	}
	return times, nil
}

// visitValues compares the first visits of names with the second ones, in the same order.
func visitValues(first, second []float64) map[string]float64 {
	more := slices.Clone(first)
	for i := range more {
		more[i] -= second[i]
	}
	return map[string]float64{
		"first_p50_ms": lab.PercentileOf(first, 50), "first_p99_ms": lab.PercentileOf(first, 99),
		"second_p50_ms": lab.PercentileOf(second, 50), "second_p99_ms": lab.PercentileOf(second, 99),
		"load_p50_ms": lab.PercentileOf(more, 50), "names": float64(len(first)),
	}
}
