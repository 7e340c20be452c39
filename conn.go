package pqproxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mholt/caddy-l4/layer4"
	proxyproto "github.com/pires/go-proxyproto"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/internal/id"
)

// conn is one client connection. It belongs to the goroutine of serve; others that touch it are named
// where they do.
type conn struct {
	record // reason, closedBy and err are guarded by mu, the rest belongs to serve's goroutine

	owner  *state
	limits *Limits
	start  time.Time

	ctx    context.Context    // of the dial: ends when the connection is aborted
	cancel context.CancelFunc // guarded by mu; nil when there is nothing to cancel any more

	clientWire *clientWire
	tls        *tls.Conn
	detached   bool // from caddy-l4

	routed        atomic.Pointer[route] // the route, for whoever looks from outside; nil: none yet
	relaying      atomic.Bool           // sessions and upstream are known, and change no more
	ending        atomic.Bool           // an end has been scheduled
	entered       bool                  // in the list of its route's domain; guarded by the lists' lock, as these two:
	before, after *conn

	challenged       bool        // the client is a certificate authority that validates the name
	expect           endReason   // why crypto/tls is about to refuse the hello
	alerted          atomic.Bool // the client was sent an alert, which a reset would take from it
	order            []*upstream
	offerProto       string        // ALPN that both sides shall have; empty: none
	negotiatedSignal chan struct{} // closed when session is known, before the client's Finished

	dialed    chan dialResult // nil: no dial was started
	earlySlot bool

	mu      sync.Mutex
	up      *upstreamConn // guarded by mu
	aborted bool          // guarded by mu

	in, out      atomic.Int64  // bytes relayed
	lastActive   atomic.Int64  // nanoseconds since start
	halfClosed   atomic.Bool   // one side has ended
	clientEnded  atomic.Bool   // the client was the first
	over         atomic.Bool   // both have
	firstByteIn  atomic.Int64  // nanoseconds from the start of the relay; 0: none yet
	relayStarted time.Duration // since start
	idle         *time.Timer
	unsent       int // of checkIdle: what the kernel held when it looked last
}

// serve serves one connection from caddy-l4. It returns when the connection has ended and left its record, or,
// where caddy-l4 has nothing left to do for it, when the relay has begun: caddy-l4's goroutine, whose stack the
// handshake has grown, and what hangs on it then do not wait for an idle connection to end.
func (s *state) serve(cx *layer4.Connection) {
	growStack()
	c := s.newConn(cx)
	s.live.add(c)
	up := c.open()
	switch {
	case up == nil:
		c.finish()
	case c.detached:
		go c.relayToEnd(up)
	default:
		c.relayToEnd(up)
	}
}

// newConn prepares a connection. One from our own listener becomes ours alone: what a matcher has prefetched is
// taken over, and caddy-l4's Close does nothing. Layers of other handlers are read through.
func (s *state) newConn(cx *layer4.Connection) *conn {
	c := &conn{
		owner:            s,
		limits:           &s.settings.Load().limits,
		start:            time.Now(),
		negotiatedSignal: make(chan struct{}),
	}
	c.id = id.New()
	c.ctx, c.cancel = context.WithCancel(context.Background())
	w := &clientWire{conn: c}
	w.piece = clientPiece
	c.clientWire = w
	c.client = addrPort(cx.RemoteAddr())

	below := beneath(cx)
	if accepted, ok := below.(*acceptedConn); ok {
		c.start = accepted.accepted
	}
	switch direct := cx.Conn.(type) {
	case *acceptedConn:
		c.detached = true
		w.unread = bytes.Clone(cx.MatchingBytes())
		w.sock, w.raw, w.Conn = direct, rawConn(direct), direct.detach()
	case socket:
		w.unread = bytes.Clone(cx.MatchingBytes())
		w.sock, w.raw, w.Conn = direct, rawConn(direct), direct
	default:
		w.Conn = cx
		w.sock, _ = below.(socket)
	}
	return c
}

// open does what comes before the relay. It returns nil where that failed, and the reason has been said.
func (c *conn) open() *upstreamConn {
	defer c.survivePanic()
	if !c.shakeHands() {
		return nil
	}
	if c.challenged {
		c.end(reasonACMEChallenge, sideEdge, nil)
		_ = c.tls.CloseWrite()
		return nil
	}
	up, err := c.awaitUpstream()
	if err != nil {
		c.end(err.reason, sideEdge, err)
		c.clientWire.reset() // never close_notify: the client must not take it for an end
		return nil
	}
	return up
}

// handshakeStack is the stack that a handshake with hybrid groups needs, and stackSink keeps it from being
// optimised away.
const handshakeStack = 16 << 10

var stackSink byte

// growStack makes room for a handshake in one step, while there is little on the stack to move: growing from
// 2 KiB by doubling, deep in crypto/tls, cost as much as the PROXY header and the dial together.
//
//go:noinline
func growStack() {
	var room [handshakeStack]byte
	if stackSink != 0 {
		stackSink = room[stackSink]
	}
}

// beneath returns the connection below all layers whose kind is known.
func beneath(c net.Conn) net.Conn {
	for {
		switch layer := c.(type) {
		case *layer4.Connection:
			c = layer.Conn
		case *proxyproto.Conn:
			c = layer.Raw()
		default:
			return c
		}
	}
}

// addrPort returns the address of a TCP peer, or the zero value for others.
func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort()
	}
	return netip.AddrPort{}
}

// shakeHands runs the handshake with the client under handshake_timeout.
func (c *conn) shakeHands() bool {
	_ = c.clientWire.SetDeadline(c.start.Add(time.Duration(c.limits.HandshakeTimeout)))
	c.tls = tls.Server(c.clientWire, c.owner.outer)
	err := c.tls.Handshake()
	c.sentAnything = c.clientWire.records.taken > 0
	if c.clientWire.helloParsed {
		c.handshake = time.Since(c.start) - c.helloWait
	}
	c.releaseEarlySlot()
	c.clientWire.stopHolding(err != nil)
	if err != nil {
		c.handshakeFailed(err)
		return false
	}
	_ = c.clientWire.SetDeadline(time.Time{})
	c.completed = true
	metrics.handshake(&c.record)
	return true
}

// handshakeFailed decides what the record says of a failed handshake. What the client hears was decided
// where it failed.
func (c *conn) handshakeFailed(err error) {
	c.alerted.Store(!errors.Is(err, os.ErrDeadlineExceeded))
	w := c.clientWire
	var notTLS tls.RecordHeaderError
	var remote *net.OpError
	switch {
	case errors.Is(err, errRefused): // the record says why
	case c.expect != "":
		c.end(c.expect, sideEdge, err)
	case errors.Is(err, os.ErrDeadlineExceeded) && !w.helloParsed:
		c.end(reasonHelloTimeout, sideEdge, nil)
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.end(reasonHandshakeTime, sideEdge, nil)
	case w.gone && w.records.taken == 0:
		c.end(reasonNoHello, sideClient, nil)
	case w.gone:
		c.end(reasonClientGone, sideClient, err)
	case errors.As(err, &notTLS) && !w.helloParsed:
		c.end(reasonNotTLS, sideEdge, err)
	case !w.helloParsed:
		c.end(reasonBadHello, sideEdge, err)
	case errors.As(err, &remote) && remote.Op == "remote error":
		c.end(reasonHandshake, sideClient, fmt.Errorf("the client sent an alert: %w", remote.Err))
	default:
		c.end(reasonHandshake, sideEdge, err)
	}
}

// refuse sends an alert in clear before our ServerHello, mutes the one that crypto/tls would send, and
// returns the error that ends the handshake.
func (c *conn) refuse(alert byte, reason endReason, err error) error {
	c.end(reason, sideEdge, err)
	// An alert record of legacy version 3.3, level fatal (RFC 8446, sections 5.1 and 6).
	_, _ = c.clientWire.Conn.Write([]byte{21, 3, 3, 0, 2, 2, alert})
	c.clientWire.muted = true
	return errRefused
}

// end says how the connection ended, unless that has been said: the first word counts. Any goroutine may
// call it.
func (c *conn) end(reason endReason, by side, err error) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first = c.reason == ""; first {
		c.reason, c.closedBy, c.err = reason, by, err
	}
	return first
}

// abort ends the connection from outside by resetting both sides. It reports whether nothing had ended it before. Any
// goroutine may call it, at any time.
func (c *conn) abort(reason endReason, by side, err error) (first bool) {
	first = c.end(reason, by, err)
	c.mu.Lock()
	c.aborted = true
	up := c.up
	if c.cancel != nil {
		c.cancel()
	}
	c.mu.Unlock()
	if !c.alerted.Load() {
		c.clientWire.reset()
	}
	if up != nil {
		up.reset()
	}
	return first
}

// breakOff ends a connection whose client has broken TLS. crypto/tls has told it so; the upstream meets a reset.
func (c *conn) breakOff(err error) {
	c.alerted.Store(true)
	_ = c.clientWire.Conn.SetWriteDeadline(time.Now().Add(lingerAfterAlert))
	c.abort(reasonClientReset, sideClient, err)
}

// brokeTLS reports whether a read failed because what came is not TLS as it was negotiated: crypto/tls has sent an alert
// then.
func brokeTLS(err error) bool {
	var op *net.OpError
	return !isReset(err) && !errors.Is(err, net.ErrClosed) && !(errors.As(err, &op) && op.Op == "remote error")
}

// awaitUpstream returns the upstream connection: the early dial's, or a new one.
func (c *conn) awaitUpstream() (*upstreamConn, *dialError) {
	if c.dialed == nil {
		c.startDial()
	}
	result := <-c.dialed
	c.dialed = nil
	c.upstreamConnect, c.upstreamHandshake = result.connect, result.handshake
	c.upstream = result.dial
	if result.err != nil {
		return nil, result.err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up = result.conn
	c.cancel()
	c.ctx, c.cancel, c.order, c.negotiatedSignal = nil, nil, nil, nil // not to be held while the connection idles
	if c.aborted {
		return nil, &dialError{reason: reasonInternal, err: context.Canceled} // the reason has been said
	}
	c.upstreamSession = result.conn.session
	return result.conn, nil
}

// relayToEnd copies both ways until both sides ended, and leaves the record.
func (c *conn) relayToEnd(upstream *upstreamConn) {
	defer c.finish()
	client, up := &leg{wire: &c.clientWire.wire, tls: c.tls}, &upstream.leg
	client.startRelay()
	up.startRelay()
	c.relayStarted = time.Since(c.start)
	c.lastActive.Store(int64(c.relayStarted))
	c.relaying.Store(true)
	c.idle = time.AfterFunc(time.Duration(c.limits.IdleTimeout), c.checkIdle)

	downDone := make(chan struct{})
	go c.relayDown(client, up, downDone)
	c.relayUp(up, client)
	<-downDone
	c.over.Store(true)
	c.idle.Stop()
}

// relayUp relays what the client sends, until it ends.
func (c *conn) relayUp(up, client *leg) {
	defer c.survivePanic()
	c.direction(up, client, sideClient, func(n int) {
		c.in.Add(int64(n))
		c.touch()
	})
}

// relayDown relays what the upstream sends, until it ends.
func (c *conn) relayDown(client, up *leg, done chan<- struct{}) {
	defer close(done)
	defer c.survivePanic()
	c.direction(client, up, sideUpstream, func(n int) {
		if c.out.Add(int64(n)) == int64(n) {
			c.firstByteIn.Store(int64(time.Since(c.start) - c.relayStarted))
		}
		c.touch()
	})
}

// direction relays one way and passes on how it ended.
func (c *conn) direction(dst, src *leg, from side, relayed func(n int)) {
	ended, readErr, writeErr := relayUntilEnd(dst, src, relayed)
	switch {
	case writeErr != nil && from == sideClient:
		c.abort(c.earlyOr(reasonUpstreamReset), sideUpstream, c.explainEarly(fmt.Errorf("writing to the upstream: %w", writeErr)))
	case writeErr != nil:
		c.abort(reasonClientReset, sideClient, fmt.Errorf("writing to the client: %w", writeErr))
	case ended == endedReset && from == sideClient && brokeTLS(readErr):
		c.breakOff(fmt.Errorf("reading from the client: %w", readErr))
	case ended == endedReset && from == sideClient:
		c.abort(reasonClientReset, sideClient, fmt.Errorf("reading from the client: %w", readErr))
	case ended == endedReset:
		c.abort(c.earlyOr(reasonUpstreamReset), sideUpstream, c.explainEarly(fmt.Errorf("reading from the upstream: %w", readErr)))
	case from == sideUpstream && c.endedEarly() && !(src.tls != nil && ended == endedNotify):
		// Not even TLS says that this end was meant: the client must not take it for one.
		c.abort(reasonUpClosedEarly, sideUpstream, c.explainEarly(errors.New("the upstream closed the connection")))
	default:
		if from == sideUpstream && c.endedEarly() {
			c.end(reasonUpClosedEarly, sideUpstream, c.explainEarly(errors.New("the upstream closed the connection")))
		}
		both := c.halfClosed.Swap(true)
		if !both {
			c.mu.Lock()
			if c.closedBy == "" {
				c.closedBy = from
			}
			c.mu.Unlock()
			c.clientEnded.Store(from == sideClient)
			c.touch()
			c.idle.Reset(time.Duration(c.limits.Linger))
		}
		dst.closeWrite(ended, both)
	}
}

// endedEarly reports whether an end of the upstream comes before its first byte and before the client
// ended.
func (c *conn) endedEarly() bool { return c.out.Load() == 0 && !c.clientEnded.Load() }

// earlyOr returns upstream_closed_early if the upstream has sent nothing, else the reason given.
func (c *conn) earlyOr(reason endReason) endReason {
	if c.endedEarly() {
		return reasonUpClosedEarly
	}
	return reason
}

// explainEarly adds what usually makes an upstream hang up before its first byte.
func (c *conn) explainEarly(err error) error {
	if !c.endedEarly() {
		return err
	}
	return fmt.Errorf("%w before its first byte: %s", err, c.route.proxyHint())
}

// touch notes that something was relayed.
func (c *conn) touch() { c.lastActive.Store(int64(time.Since(c.start))) }

// checkIdle ends the connection if nothing was relayed for idle_timeout, or for linger once one side has
// ended. It runs on the timer's goroutine.
func (c *conn) checkIdle() {
	limit, what := time.Duration(c.limits.IdleTimeout), "nothing was relayed for idle_timeout (%s)"
	if c.halfClosed.Load() {
		limit, what = time.Duration(c.limits.Linger), "one side ended, and nothing was relayed for linger (%s)"
	}
	if c.over.Load() {
		return
	}
	quiet := time.Since(c.start) - time.Duration(c.lastActive.Load())
	if quiet < limit {
		c.idle.Reset(limit - quiet)
		return
	}
	// What was relayed last may be megabytes in the kernel, on their way to a slow peer: that is not idle.
	c.mu.Lock()
	up := c.up
	c.mu.Unlock()
	unsent := c.clientWire.unsent() + up.unsent()
	if unsent != c.unsent {
		c.unsent = unsent
		c.touch()
		c.idle.Reset(limit)
		return
	}
	c.abort(reasonIdleTimeout, sideEdge, fmt.Errorf(what, limit))
}

// survivePanic keeps a panic in one connection from ending the process.
func (c *conn) survivePanic() {
	if p := recover(); p != nil {
		c.owner.settings.Load().logger.Error("connection panicked",
			zap.String(keyID, c.id.String()), zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
		c.abort(reasonInternal, sideEdge, fmt.Errorf("panic: %v", p))
	}
}

// finish closes what the connection opened and leaves its record.
func (c *conn) finish() {
	c.mu.Lock()
	up := c.up
	if c.cancel != nil {
		c.cancel()
	}
	c.mu.Unlock()
	c.releaseEarlySlot()
	if c.dialed != nil {
		result := <-c.dialed
		c.upstreamConnect, c.upstreamHandshake = result.connect, result.handshake
		if result.conn != nil {
			result.conn.close()
		}
	}
	if up != nil {
		up.close()
	}
	if c.alerted.Load() {
		c.clientWire.closeGently()
	} else {
		_ = c.clientWire.Close()
	}

	c.mu.Lock() // a drain or the admin API may hold on to c still
	if c.reason == "" {
		c.reason = reasonDone // direction has said who ended first
	}
	c.mu.Unlock()
	c.bytesIn, c.bytesOut = c.in.Load(), c.out.Load()
	c.firstByte = time.Duration(c.firstByteIn.Load())
	c.duration = time.Since(c.start)
	metrics.ended(&c.record)
	c.record.log(c.owner.settings.Load().accessLog)
	c.owner.reports.ended(&c.record)
	c.owner.live.remove(c) // last: when Caddy exits, the process ends once none is left
}
