package pqproxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/internal/id"
)

// endedRecord is a record as finish leaves it.
func endedRecord(name string, bytes int64) *record {
	return &record{
		id: id.New(), route: &route{Domain: &domain.Domain{Name: name, Tenant: "acme"}, source: domain.Remote},
		completed: true, handshake: 3 * time.Millisecond, session: session{version: tls.VersionTLS13, group: tls.X25519MLKEM768, helloRetry: bytes%2 == 0},
		bytesIn: bytes, bytesOut: 2 * bytes, reason: reasonDone, closedBy: sideClient,
	}
}

// total adds counters up, by domain and a span of so many seconds.
func total(cells []outgoingCell, span int64) map[string]edgereport.Counter {
	sums := make(map[string]edgereport.Counter)
	for _, o := range cells {
		key := o.key.domain
		if span > 0 {
			key = fmt.Sprint(key, " ", o.key.minute/span)
		}
		sums[key] = addCounter(sums[key], o.wire())
	}
	return sums
}

func addCounter(a, b edgereport.Counter) edgereport.Counter {
	a.Domain, a.Tenant = b.Domain, b.Tenant
	a.Connections += b.Connections
	a.BytesIn += b.BytesIn
	a.BytesOut += b.BytesOut
	a.HelloRetries += b.HelloRetries
	a.Groups, a.EndReasons = addCounts(a.Groups, b.Groups), addCounts(a.EndReasons, b.EndReasons)
	sum := make([]int64, edgereport.BucketCount)
	copy(sum, a.Handshakes)
	for i, n := range b.Handshakes {
		sum[i] += n
	}
	a.Handshakes = sum
	return a
}

func addCounts(a, b map[string]int64) map[string]int64 {
	sum := maps.Clone(b)
	for key, n := range a {
		if sum == nil {
			sum = make(map[string]int64)
		}
		sum[key] += n
	}
	return sum
}

// TestCountersStayExact counts connections of days through a store that has room for a few minutes. What was merged sums up
// to the same, by the hour where that was enough, else by the day, else by the domain; and there is a bound.
func TestCountersStayExact(t *testing.T) {
	begin := time.Date(2026, 11, 20, 22, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name    string
		minutes int
		domains int
		limit   int
		span    int64
		most    int
	}{
		{"no merging", 3, 20, 1000, 60, 60},
		{"hours", 10 * 60, 20, 240, 3600, 240 * counterShards},
		{"days", 8 * 24 * 60, 20, 200, 24 * 3600, 200 * counterShards},
		{"one each", 90 * 24 * 60, 20, 4, 0, 4 * counterShards * 4},
		{"more domains than thought of", 3 * 60, 2000, 4, 0, 2000 * 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &counters{limit: c.limit}
			want := make(map[string]edgereport.Counter)
			random := rand.New(rand.NewPCG(1, 2))
			step := max(1, c.minutes/5000)
			for minute := 0; minute < c.minutes; minute += step {
				now := begin.Add(time.Duration(minute) * time.Minute)
				for range 5 {
					r := endedRecord(fmt.Sprintf("d%d.example", random.IntN(c.domains)), random.Int64N(1000))
					if random.IntN(5) == 0 {
						r.completed, r.reason = false, reasonClientGone
					}
					k.count(r, now)
					only := new(cell)
					only.count(r)
					key := r.route.Name
					if c.span > 0 {
						key = fmt.Sprint(key, " ", minuteOf(now.Unix())/c.span)
					}
					want[key] = addCounter(want[key], (&outgoingCell{cellKey{"acme", r.route.Name, 0}, only}).wire())
				}
				if n := k.size(); n > c.most {
					t.Fatalf("%d cells, want at most %d", n, c.most)
				}
			}
			got := k.drain()
			if k.size() != 0 {
				t.Error("something is left")
			}
			compareCounters(t, total(got, c.span), want)
			k.putBack(got, begin)
			compareCounters(t, total(k.drain(), c.span), want)
		})
	}
}

func compareCounters(t *testing.T, got, want map[string]edgereport.Counter) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d sums, want %d", len(got), len(want))
	}
	for key, w := range want {
		if g := got[key]; fmt.Sprint(g) != fmt.Sprint(w) {
			t.Errorf("%s:\ngot  %v\nwant %v", key, g, w)
		}
	}
}

// TestCountersChallenge keeps certificate authorities out of the groups, and in the connections.
func TestCountersChallenge(t *testing.T) {
	var c cell
	r := endedRecord("a.example", 0)
	r.reason = reasonACMEChallenge
	c.count(r)
	if c.connections != 1 || len(c.groups) > 0 || c.retries != 0 || c.buckets != [edgereport.BucketCount]int64{} {
		t.Errorf("got %+v", c)
	}
}

// TestEndedConns overflows the records: the oldest are left out and counted, and the others come once each.
func TestEndedConns(t *testing.T) {
	var e endedConns
	const room = recordShards * shardRecords
	ids := make(map[id.ID]bool)
	now, dropped := time.Now(), int64(0)
	for i := range room * 3 / 2 {
		r := endedRecord("a.example", int64(i))
		ids[r.id] = true
		if _, left := e.add(r, now); left {
			dropped++
		}
	}
	if dropped == 0 || dropped != e.dropped.Load() || e.waiting.Load()+dropped != room*3/2 {
		t.Errorf("%d left out (%d), %d wait", dropped, e.dropped.Load(), e.waiting.Load())
	}
	oldest := int64(room)
	for wait := e.waiting.Load(); wait > 0; wait = e.waiting.Load() {
		taken := e.take(edgereport.MaxConnections)
		if len(taken) == 0 || len(taken) > edgereport.MaxConnections {
			t.Fatalf("took %d of %d", len(taken), wait)
		}
		for _, c := range taken {
			if !ids[c.id] {
				t.Fatal("one came twice")
			}
			delete(ids, c.id)
			oldest = min(oldest, c.bytesIn)
		}
	}
	if int64(len(ids)) != dropped || oldest < room/3 {
		t.Errorf("%d did not come, %d were left out; the oldest is %d", len(ids), dropped, oldest)
	}
	if got := e.take(1000); got != nil {
		t.Errorf("%d more", len(got))
	}
}

// TestEndedConnHoldsNothing wants neither the route nor the error of a connection in what waits.
func TestEndedConnHoldsNothing(t *testing.T) {
	var e endedConns
	r := endedRecord("a.example", 1)
	r.err = errors.New(strings.Repeat("x", 10_000))
	e.add(r, time.Now())
	c := e.take(recordShards)[0]
	if c.route != nil || c.err != nil || len(c.text) > edgereport.MaxText {
		t.Errorf("got %+v", c)
	}
}

// TestEndedAllocates wants a connection's end to allocate no more than its record and its share of what grows.
func TestEndedAllocates(t *testing.T) {
	r := &reporter{wake: make(chan struct{}, 1)}
	r.counters.limit = shardCells
	r.on.Store(true)
	rec := endedRecord("a.example", 1)
	for range 2 * recordShards * shardRecords {
		rec.id = id.New()
		r.ended(rec)
	}
	if n := testing.AllocsPerRun(1000, func() { r.ended(rec) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	select {
	case <-r.wake:
	default:
		t.Error("nobody was woken")
	}
}

// TestEndedOthers keeps connections to itself that are no business of the management plane.
func TestEndedOthers(t *testing.T) {
	r := &reporter{wake: make(chan struct{}, 1)}
	static := endedRecord("a.example", 1)
	static.route.source = domain.Static
	unknown := endedRecord("a.example", 1)
	unknown.route = nil
	remote := endedRecord("a.example", 1)
	r.ended(remote) // nobody wants to know
	r.on.Store(true)
	r.ended(static)
	r.ended(unknown)
	if r.counters.size() > 0 || r.records.waiting.Load() > 0 {
		t.Error("they were counted")
	}
}

// BenchmarkEnded ends connections of one domain side by side, with somebody who takes them out. It shows what reporting adds to a
// connection; the lock of the domain's counters dominates where all connections are of one domain.
//
//	go test -run xxx -bench Ended -cpu 1,2 .
func BenchmarkEnded(b *testing.B) {
	for _, domains := range []int{1, 1000} {
		b.Run(fmt.Sprintf("domains=%d", domains), func(b *testing.B) {
			r := &reporter{wake: make(chan struct{}, 1)}
			r.counters.limit = shardCells
			r.on.Store(true)
			stop := make(chan struct{})
			var taking sync.WaitGroup
			taking.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-r.wake:
						r.records.take(edgereport.MaxConnections)
					}
				}
			})
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				records := make([]*record, domains)
				for i := range records {
					records[i] = endedRecord(fmt.Sprintf("d%d.example", i), 1)
				}
				for i := 0; pb.Next(); i++ {
					rec := records[i%domains]
					rec.id[15] = byte(i)
					r.ended(rec)
				}
			})
			close(stop)
			taking.Wait()
		})
	}
}
