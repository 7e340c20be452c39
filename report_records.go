package pqproxy

import (
	"crypto/tls"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
)

// Bounds of the records that wait to be reported: some 400 bytes each with what they point to, so about 8 MB.
const (
	recordShards = 16
	shardRecords = 1250
)

// recordsAtOnce is how many waiting records make a report due.
const recordsAtOnce = 500

// endedConns keeps the records of the last connections that ended, until they are reported: of those there is no room
// for, the oldest are left out and counted. Its shards keep connections that end at the same time from waiting for one
// another.
type endedConns struct {
	waiting atomic.Int64 // records that there are
	dropped atomic.Int64 // since the last report
	shards  [recordShards]recordShard
}

// recordShard is a ring.
type recordShard struct {
	mu    sync.Mutex
	ring  []endedConn // grows to shardRecords
	first int         // the oldest
	count int
	_     [16]byte // as of counterShard
}

// ringKept is up to which length a ring stays when it is empty: enough for a busy edge, and small.
const ringKept = 128

// endedConn is a record without what may hold on to memory elsewhere.
type endedConn struct {
	record              // without route and err
	end                 time.Time
	domain, tenant      string
	proxyProtocol, text string // text is of the error
}

// add keeps the record of a connection, which has a route. It returns how many there are, and whether one was left out.
func (e *endedConns) add(r *record, end time.Time) (waiting int64, dropped bool) {
	c := endedConn{record: *r, end: end, domain: r.route.Name, tenant: r.route.Tenant, proxyProtocol: string(r.route.ProxyProtocol)}
	if r.err != nil { // an error may hold on to a connection
		c.text = strings.Clone(cutText(r.err.Error(), edgereport.MaxText))
	}
	c.route, c.err = nil, nil
	s := &e.shards[r.id[15]%recordShards] // random bits
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count == shardRecords {
		s.ring[s.first] = c
		s.first = (s.first + 1) % shardRecords
		e.dropped.Add(1)
		return e.waiting.Load(), true
	}
	s.push(c)
	return e.waiting.Add(1), false
}

func (s *recordShard) push(c endedConn) {
	if s.count == len(s.ring) {
		larger := make([]endedConn, min(max(2*len(s.ring), 16), shardRecords))
		n := copy(larger, s.ring[s.first:])
		copy(larger[n:], s.ring[:s.first])
		s.ring, s.first = larger, 0
	}
	s.ring[(s.first+s.count)%len(s.ring)] = c
	s.count++
}

// take returns at most so many records, the oldest of each shard.
func (e *endedConns) take(most int) []endedConn {
	var all []endedConn
	for i := range e.shards {
		all = e.shards[i].take(all, (most-len(all))/(recordShards-i))
	}
	e.waiting.Add(-int64(len(all)))
	return all
}

func (s *recordShard) take(all []endedConn, most int) []endedConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range min(most, s.count) {
		all = append(all, s.ring[s.first])
		s.ring[s.first] = endedConn{}
		s.first = (s.first + 1) % len(s.ring)
		s.count--
	}
	if s.count == 0 && len(s.ring) > ringKept {
		s.ring, s.first = nil, 0
	}
	return all
}

// wire returns a record as it is reported.
func (c *endedConn) wire() *edgereport.Connection {
	w := &edgereport.Connection{
		Time: c.end.UTC().Truncate(time.Microsecond), ID: c.id.String(), ServerName: c.serverName,
		Domain: c.domain, Tenant: c.tenant, Source: string(rankRemote.source()),
		ClientIP: c.client.Addr().Unmap().WithZone(""), ClientPort: c.client.Port(), OfferedPostQuantum: c.offeredPQ,
		Upstream: c.upstream, ProxyProtocol: c.proxyProtocol,
		HelloWait: c.helloWait.Seconds(), Handshake: c.handshake.Seconds(),
		UpstreamConnect: c.upstreamConnect.Seconds(), UpstreamHandshake: c.upstreamHandshake.Seconds(),
		FirstByte: c.firstByte.Seconds(), Duration: c.duration.Seconds(),
		BytesIn: c.bytesIn, BytesOut: c.bytesOut, ClosedBy: string(c.closedBy), EndReason: string(c.reason), Error: c.text,
	}
	if s := &c.session; s.version != 0 {
		w.TLSVersion, w.CipherSuite, w.Group = tls.VersionName(s.version), tls.CipherSuiteName(s.cipherSuite), s.group.String()
		w.PostQuantum, w.HelloRetry, w.Resumed, w.ALPN = isPostQuantum(s.group), s.helloRetry, s.resumed, s.alpn
	}
	if s := &c.upstreamSession; s.version != 0 {
		w.UpstreamGroup, w.UpstreamPostQuantum, w.UpstreamResumed = s.group.String(), isPostQuantum(s.group), s.resumed
	}
	return w
}
