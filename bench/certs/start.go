//go:build linux

package main

import "fmt"

// measureStarts starts edges of all sets, with a feed that hands out the whole set, and with a kept set while the feed is
// down. The time is from the fork to the end of a client's handshake with a name whose certificate is in storage; the
// client dials every 2 ms. Storages are warm: what the kernel has cached of them is not taken away. In each round
// another one begins.
//
// The number cannot show: a disk that has to be read, a storage behind a network.
func (b *bench) measureStarts() error {
	type kind struct{ set, from string }
	var kinds []kind
	for _, set := range []string{setStored, setTable, setTen} {
		for _, from := range []string{fromFeed, fromKept} {
			if b.Wants(startCell(set, from)) {
				kinds = append(kinds, kind{set, from})
			}
		}
	}
	for round := 1; round <= b.opts.Size.StartRounds; round++ {
		for n := range kinds {
			k := kinds[(n+round)%len(kinds)]
			values, err := b.measureStart(b.sets[k.set], k.from, round)
			if err == nil {
				err = b.Record(startCell(k.set, k.from), round, values, nil, nil)
			}
			if err != nil {
				return fmt.Errorf("starting with set %s from %s: %w", k.set, k.from, err)
			}
		}
	}
	return nil
}

func (b *bench) measureStart(s *set, from string, round int) (map[string]float64, error) {
	p, took, err := b.start(s, from, s.servedName(round))
	if err != nil {
		return nil, err
	}
	defer b.proxies.Stop(p)
	memory, err := p.MemoryNow()
	if err != nil {
		return nil, err
	}
	cpu, err := p.CPUNow()
	if err != nil {
		return nil, err
	}
	used, err := cpu.Since(nil)
	return map[string]float64{"seconds": took.Seconds(), "cpu_s": used.Seconds(), "rss_mib": mebibytes(memory.RSS)}, err
}

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }
