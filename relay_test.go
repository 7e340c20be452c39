//go:build linux

package pqproxy

import (
	"crypto/tls"
	"errors"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestPeekKeepsReset has a peer that resets the connection before it is waited for. The kernel reports a reset once:
// when the peek took it, the read after it met an end, and the other side got a FIN for a reset.
func TestPeekKeepsReset(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	peer := pqtest.DialRaw(t, ln.Addr().String())
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l := &leg{wire: newWire(conn.(*net.TCPConn)), tls: new(tls.Conn)}
	l.startRelay()

	pqtest.Reset(t, peer)
	waitForHangUp(t, l.raw)
	if err := l.fill(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("fill returns %v, want a reset", err)
	}
}

// waitForHangUp waits until the kernel knows that the peer is gone, without taking what it has to say of it.
func waitForHangUp(t *testing.T, raw syscall.RawConn) {
	t.Helper()
	err := raw.Control(func(fd uintptr) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}, int(patience.Milliseconds()))
		if n != 1 || err != nil {
			t.Errorf("poll: %d, %v", n, err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
