//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/internal/id"
)

// account is a tenant: what is known of it here.
type account struct {
	id      string // ten_…
	key     string // API key with all scopes
	domains []int  // numbers of its domains
}

// world is all that the management plane has, and what is known of it here. The same numbers make the same world, IDs and
// times aside.
type world struct {
	accounts []account
	names    []string // of domains, by number
	ids      []string // dom_…
	owner    []int    // numbers of tenants
	token    string   // of edges

	visitors map[string][]visitor // those who sign in, by what they are
	password string               // of all of them
}

// visitor is somebody who looks at pages.
type visitor struct {
	email   string
	account int // number of the tenant
}

// popularity is how uneven traffic is: the domain of rank k gets a share in proportion to k to the power of minus this.
const popularity = 1.1

// domainName is the name of a domain.
func domainName(number, tenant int) string {
	return fmt.Sprintf("app-%07d.tenant-%04d.example.com", number, tenant)
}

// ownerOf spreads domains over tenants: the first has `large` of them, the others take turns.
func ownerOf(number int, s size) int {
	if number < s.Large {
		return 0
	}
	return 1 + (number-s.Large)%(s.Tenants-1)
}

// traffic makes records of connections. It is for one goroutine.
type traffic struct {
	w      *world
	random *rand.Rand
	rank   *rand.Zipf
}

func newTraffic(w *world, seed uint64) *traffic {
	random := rand.New(rand.NewPCG(seed, 5))
	return &traffic{w: w, random: random, rank: rand.NewZipf(random, popularity, 1, uint64(len(w.names)-1))}
}

// domain picks one: popular ones are spread over the tenants.
func (t *traffic) domain() int {
	const step = 7919 // prime: ranks next to each other are not
	return int((t.rank.Uint64()*step + topDomain) % uint64(len(t.w.names)))
}

// topDomain is the number of the most popular one, which is the large tenant's.
const topDomain = 17

// What connections are like. One in five clients knows no hybrid group.
var (
	groups  = []string{"X25519MLKEM768", "X25519MLKEM768", "X25519MLKEM768", "SecP256r1MLKEM768", "X25519"}
	reasons = []string{"done", "done", "done", "done", "done", "done", "done", "idle_timeout", "client_reset", "upstream_closed_early"}
)

// record makes the record of a connection that ended then, as an edge would, about 700 bytes of JSON.
func (t *traffic) record(at time.Time) (c edgereport.Connection, number int) {
	c, number = t.connection(at)
	c.ID = id.New().String()
	return c, number
}

// connection is record without an ID.
func (t *traffic) connection(at time.Time) (c edgereport.Connection, number int) {
	number = t.domain()
	n := t.random.Uint64()
	group := groups[n%uint64(len(groups))]
	took := float64(1+n>>8%200) / 10_000
	tenant := t.w.owner[number]
	return edgereport.Connection{
		Time: at, ServerName: t.w.names[number], Domain: t.w.names[number], Tenant: t.w.accounts[tenant].id, Source: "remote",
		ClientIP: netip.AddrFrom4([4]byte{198, 18 + byte(n>>16&1), byte(n >> 24), byte(n >> 32)}), ClientPort: 1024 + uint16(n>>40%60_000),
		TLSVersion: "TLS 1.3", CipherSuite: "TLS_AES_128_GCM_SHA256", Group: group, PostQuantum: group != "X25519", OfferedPostQuantum: group != "X25519",
		HelloRetry: n>>48%50 == 0, Resumed: n>>50%4 == 0, ALPN: "h2", Upstream: "10.0.1.7:8443", UpstreamGroup: "X25519MLKEM768", UpstreamPostQuantum: true,
		ProxyProtocol: "v1", HelloWait: took / 9, Handshake: took, UpstreamConnect: took / 3, UpstreamHandshake: took * 1.1, FirstByte: took * 5,
		Duration: took * 1234, BytesIn: int64(400 + n>>20%5000), BytesOut: int64(900 + n>>12%200_000), ClosedBy: "client", EndReason: reasons[n>>4%uint64(len(reasons))],
	}, number
}

// tally is what was sent of a tenant, for comparison with what the API says.
type tally struct {
	connections, bytesIn, bytesOut int64
	postQuantum, helloRetries      int64
	ids                            uint64 // the sum of hashes of the records' IDs: the same only for the same records, each once
}

func (t *tally) add(o tally) {
	t.connections += o.connections
	t.bytesIn += o.bytesIn
	t.bytesOut += o.bytesOut
	t.postQuantum += o.postQuantum
	t.helloRetries += o.helloRetries
	t.ids += o.ids
}

// tallyOf is what one record adds.
func tallyOf(c *edgereport.Connection) tally {
	one := tally{connections: 1, bytesIn: c.BytesIn, bytesOut: c.BytesOut, ids: hashID(c.ID)}
	if c.PostQuantum {
		one.postQuantum = 1
	}
	if c.HelloRetry {
		one.helloRetries = 1
	}
	return one
}

func hashID(text string) uint64 {
	h := fnv.New128a()
	h.Write([]byte(text))
	return binary.BigEndian.Uint64(h.Sum(nil)) // the upper half
}

// countKey names a counter.
type countKey struct {
	domain int
	begin  int64 // of its minute
}

// counts are the counters of some connections.
type counts map[countKey]*edgereport.Counter

// add counts a connection of a domain within the time of that width in which it ended.
func (all counts) add(c *edgereport.Connection, domain int, width time.Duration) {
	begin := c.Time.Truncate(width)
	counter := all[countKey{domain, begin.Unix()}]
	if counter == nil {
		counter = &edgereport.Counter{
			Domain: c.Domain, Tenant: c.Tenant, Minute: begin, Groups: map[string]int64{}, EndReasons: map[string]int64{},
			Handshakes: make([]int64, edgereport.BucketCount),
		}
		all[countKey{domain, begin.Unix()}] = counter
	}
	counter.Connections++
	counter.BytesIn += c.BytesIn
	counter.BytesOut += c.BytesOut
	counter.Groups[c.Group]++
	counter.EndReasons[c.EndReason]++
	counter.Handshakes[edgereport.BucketOf(c.Handshake)]++
	if c.HelloRetry {
		counter.HelloRetries++
	}
}

// batch is what a report has of connections.
type batch struct {
	edgereport.Builder
	tallies map[int]tally // by tenant
}

// batch makes n records of connections that ended from start on, over so long, and hands each to
// count, where that is not nil.
func (t *traffic) batch(n int, start time.Time, over time.Duration, count func(c *edgereport.Connection, domain int)) *batch {
	b := &batch{tallies: make(map[int]tally)}
	for i := range n {
		c, number := t.record(start.Add(over * time.Duration(i) / time.Duration(n)).UTC().Truncate(time.Microsecond))
		if !b.AddConnection(&c) {
			panic("a report has no room for " + strconv.Itoa(n) + " records")
		}
		if count != nil {
			count(&c, number)
		}
		tenant := b.tallies[t.w.owner[number]]
		tenant.add(tallyOf(&c))
		b.tallies[t.w.owner[number]] = tenant
	}
	return b
}
