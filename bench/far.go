//go:build linux

package main

import (
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// farConn is a TCP connection whose other end is some milliseconds away: what is written reaches the socket, and what
// the socket received reaches Read, only after the distance. It stands for netem, which needs root and a kernel module.
// What it cannot show: congestion windows and loss. Segments that were sent together arrive together.
type farConn struct {
	net.Conn
	distance time.Duration

	toSocket   chan flight
	fromSocket chan flight
	unread     []byte // the rest of the flight that Read is at
	readErr    error
	closeOnce  sync.Once
	closed     chan struct{}
}

// flight is bytes on their way, or the end of the stream.
type flight struct {
	bytes []byte
	err   error
	due   time.Time
}

// flightsUnderWay is how many writes may be on their way at once; past it Write waits, as a full window would.
const flightsUnderWay = 64

// dialFar connects to addr as a client that is distance away: the SYN travels one distance before the server sees it,
// and the SYN-ACK another before dialFar returns, so that it takes one round trip as connect(2) would.
func dialFar(addr string, distance time.Duration) (net.Conn, error) {
	start := time.Now()
	sleepUntil(start.Add(distance))
	near, err := net.Dial("tcp4", addr)
	if err != nil {
		return nil, err
	}
	sleepUntil(start.Add(2 * distance))
	if err := near.SetDeadline(time.Now().Add(connDeadline)); err != nil {
		near.Close()
		return nil, err
	}
	c := &farConn{
		Conn:       near,
		distance:   distance,
		toSocket:   make(chan flight, flightsUnderWay),
		fromSocket: make(chan flight, flightsUnderWay),
		closed:     make(chan struct{}),
	}
	go c.carryToSocket()
	go c.carryFromSocket()
	return c, nil
}

// Write returns at once, as a socket with room does; an error of the socket shows at Read.
func (c *farConn) Write(p []byte) (int, error) {
	select {
	case c.toSocket <- flight{bytes: append([]byte(nil), p...), due: time.Now().Add(c.distance)}:
		return len(p), nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

// Read returns bytes that have arrived.
func (c *farConn) Read(p []byte) (int, error) {
	for len(c.unread) == 0 {
		if c.readErr != nil {
			return 0, c.readErr
		}
		select {
		case arrived := <-c.fromSocket:
			sleepUntil(arrived.due)
			c.unread, c.readErr = arrived.bytes, arrived.err
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	n := copy(p, c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

// SetWriteDeadline does nothing: Write does not wait for the socket, and crypto/tls, which calls this to forbid writes
// after its close_notify, must not stop the close_notify that is still on its way.
func (c *farConn) SetWriteDeadline(time.Time) error { return nil }

// CloseWrite sends FIN behind what is still on its way.
func (c *farConn) CloseWrite() error {
	select {
	case c.toSocket <- flight{err: io.EOF, due: time.Now().Add(c.distance)}:
		return nil
	case <-c.closed:
		return net.ErrClosed
	}
}

// Close drops what is on its way and ends both carriers.
func (c *farConn) Close() error {
	c.closeOnce.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// carryToSocket ends at Close or at the first error of the socket, which the reading side then sees too.
func (c *farConn) carryToSocket() {
	for {
		select {
		case sent := <-c.toSocket:
			sleepUntil(sent.due)
			if sent.err != nil {
				_ = c.Conn.(*net.TCPConn).CloseWrite()
				continue
			}
			if _, err := c.Conn.Write(sent.bytes); err != nil {
				c.Conn.Close()
				return
			}
		case <-c.closed:
			return
		}
	}
}

// carryFromSocket ends when the socket does, or at Close.
func (c *farConn) carryFromSocket() {
	for {
		buf := make([]byte, relayChunk)
		n, err := c.Conn.Read(buf)
		select {
		case c.fromSocket <- flight{bytes: buf[:n], err: err, due: time.Now().Add(c.distance)}:
		case <-c.closed:
			return
		}
		if err != nil {
			return
		}
	}
}

// sleepUntil is time.Sleep to the tenth of a millisecond. The runtime's own timers wait in epoll, in whole
// milliseconds: over the six ways of a connection's first byte that came to 4 ms of noise.
func sleepUntil(due time.Time) {
	for left := time.Until(due); left > 0; left = time.Until(due) {
		interval := unix.NsecToTimespec(left.Nanoseconds())
		_ = unix.Nanosleep(&interval, nil) // a signal ends it early; the loop sleeps the rest
	}
}
