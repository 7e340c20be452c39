//go:build linux

package main

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// middle is a TLS-terminating proxy for tests: what the client says goes to an upstream through pass.
type middle struct {
	addr string
	pass func(client *tls.Conn, upstream duplex)
}

func startMiddle(t *testing.T, p *pki, to *server, pass func(client *tls.Conn, upstream duplex)) *middle {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(p.chainFile, p.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	m := &middle{addr: listener.Addr().String(), pass: pass}
	go func() { // ends with the listener
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer raw.Close()
				upstream, err := net.Dial("tcp4", to.addr)
				if err != nil {
					return
				}
				defer upstream.Close()
				conn := duplex(upstream.(*net.TCPConn))
				if to.tls != nil {
					conn = tls.Client(upstream, &tls.Config{RootCAs: p.roots, ServerName: upstreamName})
				}
				m.pass(tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{pair}}), conn)
			}()
		}
	}()
	return m
}

// relayBoth relays until both sides have ended, with up reading what goes to the upstream.
func relayBoth(client *tls.Conn, upstream duplex, up io.Reader) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(client, upstream)
		_ = client.CloseWrite()
	}()
	_, _ = io.Copy(upstream, up)
	_ = upstream.CloseWrite()
	<-done
}

// testLoad runs connections through a middle until all of them have relayed some frames, or the load is not what it was,
// and ends them.
func testLoad(t *testing.T, secure bool, pass func(client *tls.Conn, upstream duplex), enough func(l *load) bool) tally {
	t.Helper()
	p, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const conns = 4
	l := newLoad(conns, []string{"a" + staticZone, "b" + remoteZone}, 5*time.Millisecond)
	var config *tls.Config
	if secure {
		config = p.upstreamTLS()
	}
	up, err := startServer(config, l.conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { up.close() })
	m := startMiddle(t, p, up, pass)
	d := &lab.Dialer{Addr: m.addr, Roots: p.roots}
	if err := l.open(d.Dial); err != nil {
		t.Fatal(err)
	}
	pqtest.Wait(t, "frames on all connections", func() bool { return enough(l) })
	l.end()
	got := l.tally()
	if got.conns != conns {
		t.Errorf("%d connections were counted, want %d", got.conns, conns)
	}
	return got
}

// moving reports whether each stream has relayed some frames.
func moving(l *load) bool {
	return !slices.ContainsFunc(l.conns, func(c *checkedConn) bool {
		return c.up.receivedFrames.Load() < 10 || c.down.receivedFrames.Load() < 10
	})
}

func TestLoad(t *testing.T) {
	for _, secure := range []bool{false, true} {
		got := testLoad(t, secure, func(client *tls.Conn, upstream duplex) { relayBoth(client, upstream, client) }, moving)
		if got.broken() != 0 || got.lost != 0 || got.bytes == 0 || len(got.frameTimes) < 4*2*10 || len(got.faults) != 0 {
			t.Errorf("TLS upstream %v: %d bytes, %d lost, %d frames, faults %v", secure, got.bytes, got.lost, len(got.frameTimes), got.faults)
		}
	}
}

// anyFault reports whether a connection has a fault.
func anyFault(l *load) bool {
	return slices.ContainsFunc(l.conns, func(c *checkedConn) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.faults) > 0
	})
}

// dropOne reads everything but one byte in the middle.
type dropOne struct {
	io.Reader
	passed int
}

func (r *dropOne) Read(p []byte) (int, error) {
	const at = 20_000
	n, err := r.Reader.Read(p)
	if r.passed < at && r.passed+n > at {
		n += copy(p[at-r.passed:n], p[at-r.passed+1:n]) - (n - (at - r.passed))
		r.passed++
	}
	r.passed += n
	return n, err
}

func TestLoadNoticesALostByte(t *testing.T) {
	var conns atomic.Int64
	got := testLoad(t, false, func(client *tls.Conn, upstream duplex) {
		if conns.Add(1) == 2 {
			relayBoth(client, upstream, &dropOne{Reader: client})
			return
		}
		relayBoth(client, upstream, client)
	}, anyFault)
	if got.wrong != 1 || got.broken() != 1 || got.lost == 0 {
		t.Errorf("%d connections with wrong bytes, %d broken, %d bytes lost, %v", got.wrong, got.broken(), got.lost, got.faults)
	}
}

// cutAfter ends the stream early.
type cutAfter struct {
	io.Reader
	left int
}

func (r *cutAfter) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, io.EOF
	}
	n, err := r.Reader.Read(p[:min(len(p), r.left)])
	r.left -= n
	return n, err
}

func TestLoadNoticesAnEarlyEnd(t *testing.T) {
	var conns atomic.Int64
	got := testLoad(t, false, func(client *tls.Conn, upstream duplex) {
		if conns.Add(1) == 3 {
			relayBoth(client, upstream, &cutAfter{client, 10_000})
			return
		}
		relayBoth(client, upstream, client)
	}, anyFault)
	if got.broken() != 1 || got.lost == 0 {
		t.Errorf("%d connections are broken, %d bytes lost, %v", got.broken(), got.lost, got.faults)
	}
}

func TestLoadNoticesAReset(t *testing.T) {
	var conns atomic.Int64
	got := testLoad(t, false, func(client *tls.Conn, upstream duplex) {
		if conns.Add(1) == 1 {
			_, _ = io.CopyN(upstream, client, 10_000)
			_ = client.NetConn().(*net.TCPConn).SetLinger(0)
			client.NetConn().Close()
			return
		}
		relayBoth(client, upstream, client)
	}, anyFault)
	if got.reset != 1 || got.broken() != 1 {
		t.Errorf("%d connections were reset, %d are broken, %v", got.reset, got.broken(), got.faults)
	}
}

func TestVisit(t *testing.T) {
	p, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	up, err := startServer(nil, func(uint64) *checkedConn { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer up.close()
	m := startMiddle(t, p, up, func(client *tls.Conn, upstream duplex) { relayBoth(client, upstream, client) })
	d := &lab.Dialer{Addr: m.addr, Roots: p.roots}
	if err := errors.Join(visitName(d, "a"+adminZone), d.Handshake("a"+adminZone)); err != nil {
		t.Error(err)
	}
	if err := d.Handshake("a.b" + adminZone); err == nil {
		t.Error("a certificate for another name was accepted")
	}
	bad := startMiddle(t, p, up, func(client *tls.Conn, upstream duplex) { _, _ = io.CopyN(client, client, 8) })
	if err := visitName(&lab.Dialer{Addr: bad.addr, Roots: p.roots}, "a"+adminZone); err == nil {
		t.Error("half an answer was taken for one")
	}
}
