//go:build linux

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// front is where a contender offers one upstream: address and the name that clients ask for.
type front struct {
	addr string
	name string
}

// client opens connections to one front. ALPN is never offered, so that no contender spends time on choosing.
type client struct {
	front front
	bench *bench
	// group is the only one offered; 0 offers crypto/tls's default, whose key shares are X25519MLKEM768 and X25519.
	group tls.CurveID
	// sessions, where set, is asked for a session to resume and filled with tickets. One per worker.
	sessions tls.ClientSessionCache
	// distance is the time one segment travels between this client and the front.
	distance time.Duration
}

// dial connects and completes the handshake.
func (c *client) dial() (*clientConn, error) {
	raw, err := c.dialTCP()
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		RootCAs:            c.bench.pki.roots,
		ServerName:         c.front.name,
		ClientSessionCache: c.sessions,
		// Full records from the first byte, as browsers and OpenSSL send them.
		DynamicRecordSizingDisabled: true,
	}
	if c.group != 0 {
		config.CurvePreferences = []tls.CurveID{c.group}
	}
	conn := &clientConn{Conn: tls.Client(raw, config)}
	if err := conn.Handshake(); err != nil {
		raw.Close()
		return nil, fmt.Errorf("handshake with %s (%s): %w", c.front.addr, c.front.name, err)
	}
	if got := conn.ConnectionState().CurveID; c.group != 0 && got != c.group {
		raw.Close()
		return nil, fmt.Errorf("negotiated %v, want %v", got, c.group)
	}
	return conn, nil
}

func (c *client) dialTCP() (net.Conn, error) {
	if c.distance > 0 {
		return dialFar(c.front.addr, c.distance)
	}
	raw, err := net.Dial("tcp4", c.front.addr)
	if err != nil {
		return nil, err
	}
	if err := raw.SetDeadline(time.Now().Add(connDeadline)); err != nil {
		raw.Close()
		return nil, err
	}
	return raw, nil
}

// visit is one whole connection: open, ask for a report, close, and wait until the proxy has closed too.
func (c *client) visit() (report, tls.ConnectionState, error) {
	conn, err := c.dial()
	if err != nil {
		return report{}, tls.ConnectionState{}, err
	}
	defer conn.Close()
	about, err := conn.report()
	if err != nil {
		return report{}, tls.ConnectionState{}, err
	}
	return about, conn.ConnectionState(), conn.finish()
}

// clientConn is one connection through a proxy. One goroutine uses it.
type clientConn struct {
	*tls.Conn
}

// report asks the upstream what it knows, and checks that the PROXY header named this very connection.
func (c *clientConn) report() (report, error) {
	answer, err := c.exchange(newFrame(opReport, 0))
	if err != nil {
		return report{}, fmt.Errorf("asking for a report: %w", err)
	}
	about, err := parseReport(&answer)
	if err != nil {
		return report{}, err
	}
	if about.place == headerAbsent {
		return report{}, errors.New("the upstream saw no PROXY header")
	}
	local, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return report{}, err
	}
	if about.client.Port() != local.Port() {
		return report{}, fmt.Errorf("the PROXY header named port %d of the client, its port is %d", about.client.Port(), local.Port())
	}
	return about, nil
}

// exchange sends a request and reads an answer of one frame.
func (c *clientConn) exchange(request frame) (answer frame, err error) {
	if _, err := c.Write(request[:]); err != nil {
		return answer, err
	}
	_, err = io.ReadFull(c, answer[:])
	return answer, err
}

// echo is one round trip of one frame, numbered so that no answer can stand for another.
func (c *clientConn) echo(number int64) error {
	request := newFrame(opEcho, number)
	answer, err := c.exchange(request)
	if err != nil {
		return err
	}
	if answer != request {
		return fmt.Errorf("echo %d came back as %x", number, answer[:])
	}
	return nil
}

// down fetches n bytes and verifies them; buf holds at least one chunk.
func (c *clientConn) down(n int64, buf []byte) error {
	request := newFrame(opDown, n)
	if _, err := c.Write(request[:]); err != nil {
		return err
	}
	return receivePattern(c, n, buf)
}

// up sends n bytes and waits for the upstream to confirm that each was right.
func (c *clientConn) up(n int64) error {
	request := newFrame(opUp, n)
	if _, err := c.Write(request[:]); err != nil {
		return err
	}
	if err := sendPattern(c, n); err != nil {
		return err
	}
	var answer frame
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return fmt.Errorf("waiting for the upstream's confirmation: %w", err)
	}
	if answer != request {
		return fmt.Errorf("confirmation came back as %x", answer[:])
	}
	return nil
}

// finish says close_notify, waits for the other side to end the stream, and closes: the orderly end of a connection,
// so that its whole cost falls into the cell that opened it.
func (c *clientConn) finish() error {
	if err := c.CloseWrite(); err != nil {
		return fmt.Errorf("closing: %w", err)
	}
	var rest [1]byte
	if n, err := c.Read(rest[:]); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("waiting for the end of the stream: %d bytes, %v", n, err)
	}
	return c.Close()
}
