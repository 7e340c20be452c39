//go:build linux

package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// The phases of a round of handshakes.
const (
	phaseTen   = "ten"   // with ten domains
	phaseSweep = "sweep" // with many, while they are swept
	phaseAgain = "again" // with ten once more: how far two rounds of the same differ
)

// phase is what handshakes were like with an edge.
type phase struct {
	times         []float64 // ms
	faults        []error
	seconds       float64 // in which they were begun
	cores         float64 // used meanwhile
	stolen        float64 // cores that other machines of the host had
	before, after looked
}

// measureHandshakes measures full handshakes with ten names, begun at a steady rate whatever the proxy does and measured
// from when they were due, beside the first sweep after a start, and with an edge that has those ten domains only, twice.
// All edges are started anew in each round, from a kept set while the feed is down, and have some seconds for what a start
// leaves behind. Each round begins with another phase. A phase in which other machines of the host had too much of the processors
// is measured again.
//
// Domains of the table have no certificate: each that the sweep looks at becomes an order, as it would when a table is
// new. The CA being down, orders fail as soon as they are tried; what that costs is in it.
//
// The number cannot show: a sweep that renews, or asks the CA when to (its certificates are new); names that are swept
// while their certificates are being loaded; a busy proxy.
func (b *bench) measureHandshakes() error {
	kinds := []string{phaseTen, phaseAgain}
	for _, set := range []string{setStored, setTable} {
		if b.Wants(handshakeCell(set)) {
			kinds = append(kinds, set)
		}
	}
	for round := 1; round <= b.opts.Size.HandshakeRounds; round++ {
		phases := map[string]phase{}
		for n := range kinds {
			kind := kinds[(n+round)%len(kinds)]
			s := b.sets[setTen]
			if kind == setStored || kind == setTable {
				s = b.sets[kind]
			}
			var faults []error // of all tries
			ph, _, err := lab.Calmest(phaseTries, func() (phase, float64, error) {
				ph, err := b.measurePhase(s)
				faults = append(faults, ph.faults...)
				return ph, ph.stolen, err
			})
			ph.faults = faults
			if err != nil {
				return fmt.Errorf("handshakes with set %s: %w", s.name, err)
			}
			phases[kind] = ph
		}
		for _, set := range []string{setStored, setTable} {
			if sweep, ok := phases[set]; ok {
				if err := b.recordHandshakes(b.sets[set], round, phases[phaseTen], sweep, phases[phaseAgain]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// phaseTries is how often a phase is measured while other machines of the host are in the way.
const phaseTries = 4

// measurePhase starts an edge and makes handshakes.
func (b *bench) measurePhase(s *set) (phase, error) {
	names := make([]string, servedNames)
	for i, at := range spread(servedNames, len(s.served)) {
		names[i] = lab.TypicalName(s.served[at])
	}
	p, _, err := b.start(s, fromKept, names[0])
	if err != nil {
		return phase{}, err
	}
	defer b.proxies.Stop(p)
	ph, err := b.handshakes(p, names, s.sweepShows())
	if err != nil {
		return ph, fmt.Errorf("%w\nits log ends:\n%s", err, p.LogTail())
	}
	if s.sweepShows() {
		err = ph.sweptAll(len(s.numbers))
	}
	return ph, err
}

// handshakes makes them with names in turn, whose certificates are in memory by then; where a sweep shows, from when it
// is under way.
func (b *bench) handshakes(p *lab.Proxy, names []string, sweeping bool) (phase, error) {
	size := b.opts.Size
	client := b.client(p)
	if _, err := visitAll(client, names); err != nil {
		return phase{}, err
	}
	time.Sleep(time.Duration(size.WarmSecs) * time.Second)
	ask := askLooked
	if sweeping {
		ask = awaitSweeping
	}
	before, err := ask(p)
	if err != nil {
		return phase{}, err
	}
	cpuBefore, err1 := p.CPUNow()
	steal, err2 := lab.StealNow()
	if err := errors.Join(err1, err2); err != nil {
		return phase{}, err
	}
	var (
		loop    sync.WaitGroup
		stop    = make(chan struct{})
		samples []lab.Sample
		start   = time.Now()
	)
	loop.Go(func() {
		samples = lab.OpenLoop(size.HandshakeRate, stop, func(i int) error { return client.Handshake(names[i%len(names)]) })
	})
	time.Sleep(time.Duration(size.HandshakeSecs) * time.Second)
	end := time.Now()
	cpu, err1 := p.CPUNow()
	stolen, err2 := steal.Cores()
	close(stop)
	loop.Wait()
	after, err3 := askLooked(p)
	if err := errors.Join(err1, err2, err3); err != nil {
		return phase{}, err
	}
	used, err := cpu.Since(cpuBefore)
	ph := phase{seconds: end.Sub(start).Seconds(), before: before, after: after, stolen: stolen}
	ph.times, ph.faults = lab.Within(samples, start, end)
	ph.cores = used.Seconds() / ph.seconds
	return ph, err
}

// Of many domains that are new at once the first become orders without waiting for the sweep, which comes to those first;
// and orders that wait are so many at most (certs.go and orders.go of the root package).
const (
	ordersAtOnce = 1_000
	maxOrders    = 200_000
)

// sweepShows reports whether the metrics of an edge with this set show a sweep.
func (s *set) sweepShows() bool { return len(s.numbers) > ordersAtOnce }

// awaitSweeping waits until a sweep has come to names that nothing else looks at.
func awaitSweeping(p *lab.Proxy) (looked, error) {
	first, err := askLooked(p)
	if err != nil {
		return first, err
	}
	now := first
	err = lab.Await("the sweep to come to names that are no orders", 2*time.Minute, 100*time.Millisecond, func() (bool, error) {
		now, err = askLooked(p)
		return now.all() > first.all(), err
	})
	return now, err
}

// sweptAll returns an error if a sweep of n domains was not beside the handshakes from the first to the last, as far as
// that shows.
func (ph phase) sweptAll(n int) error {
	switch {
	case ph.after.pending+ph.after.failed >= maxOrders:
		return nil
	case ph.after.all() >= n:
		return fmt.Errorf("the sweep of %d domains had ended before the handshakes did: take more domains", n)
	case ph.after.all() == ph.before.all():
		return errors.New("the sweep looked at nothing while there were handshakes")
	}
	return nil
}

func (b *bench) recordHandshakes(s *set, round int, ten, sweep, again phase) error {
	values, samples := map[string]float64{}, map[string][]float64{}
	var faults []error
	for name, ph := range map[string]phase{phaseTen: ten, phaseSweep: sweep, phaseAgain: again} {
		values[name+"_p50_ms"], values[name+"_p99_ms"] = lab.PercentileOf(ph.times, 50), lab.PercentileOf(ph.times, 99)
		values[name+"_most_ms"], values[name+"_cores"] = lab.PercentileOf(ph.times, 100), ph.cores
		values[name+"_stolen_cores"] = ph.stolen
		samples[name] = ph.times
		for _, fault := range ph.faults {
			faults = append(faults, fmt.Errorf("%s: %w", name, fault))
		}
	}
	values["failed"], values["orders"] = float64(len(faults)), float64(sweep.after.pending+sweep.after.failed)
	values["tried_per_s"] = float64(sweep.after.failed-sweep.before.failed) / sweep.seconds
	if more := sweep.after.all() - sweep.before.all(); more > 0 {
		values["looked_per_s"] = float64(more) / sweep.seconds
		values["sweep_min"] = float64(len(s.numbers)) / values["looked_per_s"] / 60
	}
	return b.Record(handshakeCell(s.name), round, values, samples, faults)
}

// isHandshake reports whether a cell is of this scenario.
func isHandshake(c lab.Cell) bool { return strings.HasPrefix(c.Name, scenarioHandshake) }
