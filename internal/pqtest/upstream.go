package pqtest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// UpstreamConfig says what an upstream expects of a connection. The zero value is an echo server on TCP.
type UpstreamConfig struct {
	// TLS is spoken with every client. Nil: none.
	TLS *tls.Config

	// Proxy requires a PROXY header of either version, in clear, before TLS.
	Proxy bool

	// Network is "tcp" (default; on 127.0.0.1) or "unix".
	Network string

	// Handler has the connection once header and handshake have been read; when it returns, the connection
	// is closed, with close_notify under TLS. Nil: Echo. Hold leaves the connection to the test.
	Handler func(*UpstreamConn)
}

// Echo is the handler that sends back what it reads until the client ends its direction.
func Echo(c *UpstreamConn) {
	// An error is the client's doing, and its test sees the consequence.
	_, _ = io.Copy(c.Conn, c.Conn)
}

// Hold is the handler that does nothing until the connection is closed by the test or with it.
func Hold(c *UpstreamConn) {
	<-c.closed
}

// Upstream is a server that proxies are pointed at. It records every connection. Its methods may be called
// from any goroutine, Next from the test's only.
type Upstream struct {
	cfg UpstreamConfig
	tb  testing.TB
	ln  net.Listener
	wg  sync.WaitGroup // one for the accept loop, which Close ends, and one for each connection

	mu       sync.Mutex // guards what follows
	closed   bool
	accepted int
	open     map[*UpstreamConn]struct{}
	conns    []*UpstreamConn
	next     int           // of conns, for Next
	more     chan struct{} // closed, and replaced, when conns grows
}

// UpstreamConn is one connection that an upstream accepted. Its fields do not change once it is returned by
// Conns or Next, or handed to the handler.
type UpstreamConn struct {
	// Conn is the *tls.Conn, or the plain connection without TLS. Where Err is set it is of no use.
	net.Conn

	// Raw is the socket. Its CloseWrite ends a TLS stream without close_notify.
	Raw RawConn

	// Header is the PROXY header, with command LOCAL for version 1's UNKNOWN too, and HeaderLen its
	// length in bytes. Nil and 0: none was required, or it was bad.
	Header    *proxyproto.Header
	HeaderLen int

	// State is of the TLS handshake done. Zero: there was none.
	State tls.ConnectionState

	// Err is why reading the header or the handshake failed. Such a connection never reaches the handler.
	Err error

	wire    *wire
	closing sync.Once
	closed  chan struct{}
}

// StartUpstream starts a server. When the test ends it is closed as by Close.
func StartUpstream(tb testing.TB, cfg UpstreamConfig) *Upstream {
	tb.Helper()
	if cfg.Handler == nil {
		cfg.Handler = Echo
	}
	u := &Upstream{
		cfg: cfg, tb: tb, ln: listen(tb, cfg.Network),
		open: make(map[*UpstreamConn]struct{}), more: make(chan struct{}),
	}
	u.wg.Go(u.accept)
	tb.Cleanup(u.Close)
	return u
}

// Addr is the address to dial, as an upstream's `dial` is written: host:port, or unix//path.
func (u *Upstream) Addr() string {
	if u.ln.Addr().Network() == "unix" {
		return "unix/" + u.ln.Addr().String()
	}
	return u.ln.Addr().String()
}

// Accepted is the number of connections accepted so far, counted before a byte of them is read.
func (u *Upstream) Accepted() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.accepted
}

// Conns are the connections whose header and handshake were read, or failed, in that order. Those of checks,
// with a LOCAL or UNKNOWN header, are among them.
func (u *Upstream) Conns() []*UpstreamConn {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]*UpstreamConn(nil), u.conns...)
}

// Next waits for the next one of Conns that it has not returned yet.
func (u *Upstream) Next(tb testing.TB) *UpstreamConn {
	tb.Helper()
	limit := time.NewTimer(bound(tb))
	defer limit.Stop()
	for {
		u.mu.Lock()
		if u.next < len(u.conns) {
			c := u.conns[u.next]
			u.next++
			u.mu.Unlock()
			return c
		}
		more := u.more
		u.mu.Unlock()
		select {
		case <-more:
		case <-limit.C:
			tb.Fatalf("no further connection reached the upstream (%d accepted, %d returned)", u.Accepted(), u.next)
		}
	}
}

// Close stops listening, closes all connections without ceremony, and waits for their handlers. Connections
// made from then on are refused. It may be called again.
func (u *Upstream) Close() {
	u.ln.Close()
	u.mu.Lock()
	u.closed = true
	for c := range u.open {
		c.abort()
	}
	u.mu.Unlock()
	u.wg.Wait()
}

// accept is ended by Close.
func (u *Upstream) accept() {
	for {
		conn, err := u.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			u.tb.Errorf("upstream %s: %v", u.Addr(), err)
			return
		}
		raw := conn.(RawConn)
		c := &UpstreamConn{Raw: raw, wire: &wire{RawConn: raw}, closed: make(chan struct{})}
		c.Conn = c.wire
		u.mu.Lock()
		u.accepted++
		if u.closed {
			c.abort()
		}
		u.open[c] = struct{}{}
		u.mu.Unlock()
		u.wg.Go(func() { u.serve(c) })
	}
}

// serve is ended by the peer, or by Close.
func (u *Upstream) serve(c *UpstreamConn) {
	c.Err = c.start(u.cfg)
	u.record(c)
	if c.Err == nil {
		u.cfg.Handler(c)
	}
	c.Close()
	u.mu.Lock()
	delete(u.open, c)
	u.mu.Unlock()
}

func (u *Upstream) record(c *UpstreamConn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.conns = append(u.conns, c)
	close(u.more)
	u.more = make(chan struct{})
}

// start reads what comes before the handler's part.
func (c *UpstreamConn) start(cfg UpstreamConfig) error {
	if err := c.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return err
	}
	if cfg.Proxy {
		if err := c.readHeader(); err != nil {
			return fmt.Errorf("reading the PROXY header: %w", err)
		}
	}
	if cfg.TLS != nil {
		conn := tls.Server(c.wire, cfg.TLS)
		if err := conn.Handshake(); err != nil {
			return fmt.Errorf("in the TLS handshake: %w", err)
		}
		c.Conn, c.State = conn, conn.ConnectionState()
	}
	return c.SetDeadline(time.Time{})
}

func (c *UpstreamConn) readHeader() error {
	r := bufio.NewReader(c.wire)
	header, err := proxyproto.Read(r)
	if err != nil {
		return err
	}
	ahead, err := r.Peek(r.Buffered())
	if err != nil {
		return err
	}
	c.wire.unread(ahead)
	c.Header, c.HeaderLen = header, c.wire.total-len(c.wire.pending)
	return nil
}

// First is what the first read from the socket returned, with room for 8 KiB: what the peer wrote at once
// comes in it in one piece. Nil before that read, and as long as nothing came.
func (c *UpstreamConn) First() []byte {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	return bytes.Clone(c.wire.first)
}

// FirstSegments is how many TCP segments with data had come in when First was read. Writes in quick
// succession may be read as one but arrive as several, since Go sets TCP_NODELAY; 1 proves that all of First
// was one write. 0: not known, as on a unix socket or other systems than Linux.
func (c *UpstreamConn) FirstSegments() int {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	return c.wire.segments
}

// CloseWrite ends our direction: under TLS by close_notify alone, else by FIN.
func (c *UpstreamConn) CloseWrite() error {
	if t, ok := c.Conn.(*tls.Conn); ok {
		return t.CloseWrite()
	}
	return c.Raw.CloseWrite()
}

// Close closes the connection, under TLS with close_notify, and lets Hold return. It may be called again.
func (c *UpstreamConn) Close() error {
	err := c.Conn.Close()
	c.abort()
	return err
}

// abort closes the socket and lets Hold return.
func (c *UpstreamConn) abort() {
	c.Raw.Close()
	c.closing.Do(func() { close(c.closed) })
}

// listen opens a listener of the network on a port or path of its own.
func listen(tb testing.TB, network string) net.Listener {
	tb.Helper()
	address := "127.0.0.1:0"
	switch network {
	case "", "tcp":
		network = "tcp"
	case "unix":
		// Not in tb.TempDir, which holds the test's name: a socket's path has at most 107 bytes.
		dir, err := os.MkdirTemp("", "pqtest")
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { os.RemoveAll(dir) })
		address = filepath.Join(dir, "s")
	default:
		tb.Fatalf("no upstream on network %q", network)
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		tb.Fatal(err)
	}
	return ln
}
