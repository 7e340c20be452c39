package pqproxy

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

// BenchmarkLookup finds names at random, as connections do. What dominates with many domains is memory: one load that is
// in no cache. The name is not compared here, but with the route's, which a connection needs next.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{10, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("domains=%d", n), func(b *testing.B) {
			s := newTestState(b)
			filled(b, s, n)
			var text strings.Builder // all names in one piece, so that they are read from a cache, as a hello's is
			names := make([]string, 1<<16)
			for range names {
				text.WriteString(typical(rand.IntN(n)).Name)
			}
			for i := range names {
				names[i] = text.String()[i*text.Len()/len(names) : (i+1)*text.Len()/len(names)]
			}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				if s.table.Load().likely(names[i&(len(names)-1)]).none() {
					b.Fatal("not found")
				}
				i++
			}
		})
	}
}

// BenchmarkApplyDelta changes a thousand domains of many: what a change costs must not grow with the table.
func BenchmarkApplyDelta(b *testing.B) {
	for _, n := range []int{1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("domains=%d", n), func(b *testing.B) {
			s := newTestState(b)
			filled(b, s, n)
			round := 0
			b.ReportAllocs()
			for b.Loop() {
				round++
				c := s.newChangeSet(rankRemote, false, nil)
				for i := range 1000 {
					d := typical((i*7919 + round) % n)
					d.MaxConnections = round
					if err := c.put(d); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := s.apply(c, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkApplySet reads full sets and applies them, each of which changes every domain, and tells the memory that a
// domain takes. Reading dominates.
func BenchmarkApplySet(b *testing.B) {
	const n = 1_000_000
	var documents [2]bytes.Buffer
	for i := range documents {
		documents[i].WriteString(`{"domains":[`)
		for k := range n {
			if k > 0 {
				documents[i].WriteByte(',')
			}
			d := typical(k)
			d.MaxConnections = i
			documents[i].Write(d.AppendJSON(nil))
		}
		documents[i].WriteString(`]}`)
	}
	s := newTestState(b)
	before := heapInUse()
	round := 0
	b.ReportAllocs()
	b.SetBytes(int64(documents[0].Len()))
	for b.Loop() {
		c := s.newChangeSet(rankRemote, false, nil)
		if _, err := readInto(c, bytes.NewReader(documents[round&1].Bytes())); err != nil {
			b.Fatal(err)
		}
		if _, err := s.apply(c, nil); err != nil {
			b.Fatal(err)
		}
		round++
	}
	b.ReportMetric(float64(heapInUse()-before)/n, "B/domain")
	runtime.KeepAlive(documents)
}

// heapInUse is the memory that is in use.
func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
