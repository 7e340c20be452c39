package pqtest

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// RawConn is a stream socket: *net.TCPConn or *net.UnixConn.
type RawConn interface {
	net.Conn
	syscall.Conn
	CloseRead() error
	CloseWrite() error
}

// Dial connects to addr, host:port or unix//path, and does the TLS handshake. The connection has a deadline
// of Timeout altogether, so that no test hangs; a test that needs longer sets its own. It is closed when the
// test ends. Raw returns the socket beneath it.
func Dial(tb testing.TB, addr string, cfg *tls.Config) *tls.Conn {
	tb.Helper()
	conn, err := TryDial(tb, addr, cfg)
	if err != nil {
		tb.Fatalf("dialing %s: %v", addr, err)
	}
	return conn
}

// TryDial is Dial for a handshake that may fail: it returns its error, and then no connection. To be refused
// the TCP connection still fails the test.
func TryDial(tb testing.TB, addr string, cfg *tls.Config) (*tls.Conn, error) {
	tb.Helper()
	conn := tls.Client(&wire{RawConn: DialRaw(tb, addr)}, cfg)
	if err := conn.Handshake(); err != nil {
		conn.Close()
		return nil, err
	}
	tb.Cleanup(func() { conn.Close() })
	return conn, nil
}

// DialRaw connects to addr, host:port or unix//path, and no more: for hellos written by hand. Deadline and
// closing are as in Dial.
func DialRaw(tb testing.TB, addr string) RawConn {
	tb.Helper()
	network, address := "tcp", addr
	if path, ok := strings.CutPrefix(addr, "unix/"); ok {
		network, address = "unix", path
	}
	ctx, cancel := context.WithTimeout(tb.Context(), bound(tb))
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		tb.Fatalf("dialing %s: %v", addr, err)
	}
	tb.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(bound(tb))); err != nil {
		tb.Fatal(err)
	}
	return conn.(RawConn)
}

// Raw is the socket beneath a connection of this package: a *tls.Conn from Dial, an *UpstreamConn, or a
// RawConn itself. It ends the test for any other.
func Raw(tb testing.TB, conn net.Conn) RawConn {
	tb.Helper()
	for {
		switch c := conn.(type) {
		case *tls.Conn:
			conn = c.NetConn()
		case *UpstreamConn:
			conn = c.Raw
		case *wire:
			conn = c.RawConn
		case RawConn:
			return c
		default:
			tb.Fatalf("%T is no connection of this package", conn)
		}
	}
}

// Reset closes a TCP connection of this package (see Raw) so that the peer sees a reset and no FIN.
func Reset(tb testing.TB, conn net.Conn) {
	tb.Helper()
	raw, ok := Raw(tb, conn).(*net.TCPConn)
	if !ok {
		tb.Fatal("only TCP connections can be reset")
	}
	if err := raw.SetLinger(0); err != nil {
		tb.Fatalf("resetting: %v", err)
	}
	if err := raw.Close(); err != nil {
		tb.Fatalf("resetting: %v", err)
	}
	if up, ok := conn.(*UpstreamConn); ok {
		up.abort()
	}
}

// End is how a peer ended its direction of a connection.
type End string

// The ends. crypto/tls reads both CloseNotify and FIN as io.EOF.
const (
	CloseNotify End = "close_notify" // TLS said so
	FIN         End = "fin"          // the socket ended without it
	RST         End = "reset"        // the socket was reset
)

// ReadToEnd reads conn, a connection of this package (see Raw), until the peer ended its direction, and
// returns what came and how it ended. A silent peer, or any other error, fails the test.
func ReadToEnd(tb testing.TB, conn net.Conn) ([]byte, End) {
	tb.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(bound(tb))); err != nil {
		tb.Fatal(err)
	}
	data, err := io.ReadAll(conn)
	switch {
	case errors.Is(err, syscall.ECONNRESET):
		return data, RST
	case err == nil && !rawEnded(conn):
		return data, CloseNotify
	case err == nil, errors.Is(err, io.ErrUnexpectedEOF):
		return data, FIN
	}
	tb.Fatalf("reading to the end: %v (after %d bytes)", err, len(data))
	return nil, ""
}

// rawEnded says whether the end of conn that was read is that of its socket, not of TLS above it.
func rawEnded(conn net.Conn) bool {
	if up, ok := conn.(*UpstreamConn); ok {
		conn = up.Conn
	}
	t, ok := conn.(*tls.Conn)
	if !ok {
		return true
	}
	w := t.NetConn().(*wire)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.eof
}

// firstRead is the room for the first read: a PROXY header and the largest hello that Go's client sends,
// session ticket and all.
const firstRead = 8 << 10

// wire is a socket that remembers its first read and whether its end was read. One goroutine reads.
type wire struct {
	RawConn
	pending []byte // read ahead: at first, or by unread
	total   int    // bytes read from the socket

	mu       sync.Mutex // guards what follows
	first    []byte
	segments int
	eof      bool
}

// Read takes the first bytes from the socket with room for all that is there, however little p holds.
func (w *wire) Read(p []byte) (int, error) {
	if len(w.pending) == 0 && w.total == 0 {
		ahead := make([]byte, firstRead)
		n, err := w.read(ahead)
		if n == 0 {
			return 0, err
		}
		w.pending = ahead[:n]
	}
	if len(w.pending) == 0 {
		return w.read(p)
	}
	n := copy(p, w.pending)
	if w.pending = w.pending[n:]; len(w.pending) == 0 {
		w.pending = nil
	}
	return n, nil
}

// read reads from the socket.
func (w *wire) read(p []byte) (int, error) {
	n, err := w.RawConn.Read(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.total == 0 && n > 0 {
		w.first = append([]byte(nil), p[:n]...)
		w.segments = dataSegments(w.RawConn)
	}
	w.total += n
	w.eof = w.eof || err == io.EOF
	return n, err
}

// unread gives back bytes that were read too far.
func (w *wire) unread(p []byte) {
	w.pending = append(append([]byte(nil), p...), w.pending...)
}
