package pqproxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// legPair returns a leg of the edge and the peer at its other end, in relay mode. Under TLS the edge is the server.
func legPair(t *testing.T, ca *pqtest.CA, secure bool) (l *leg, peer net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	peer = pqtest.DialRaw(t, ln.Addr().String())
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	l = &leg{wire: newWire(conn.(*net.TCPConn))}
	if secure {
		l.tls = tls.Server(l.wire, &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "a.example")}})
		client := tls.Client(peer, &tls.Config{ServerName: "a.example", RootCAs: ca.Pool()})
		shaken := make(chan error, 1)
		go func() { shaken <- client.Handshake() }()
		if err := errors.Join(l.tls.Handshake(), <-shaken); err != nil {
			t.Fatal(err)
		}
		peer = client
	}
	l.startRelay()
	return l, peer
}

// watchedConn notes the longest write and the write deadlines that a connection gets.
type watchedConn struct {
	net.Conn
	longest   int
	deadlines []time.Time
}

func (c *watchedConn) Write(p []byte) (int, error) {
	c.longest = max(c.longest, len(p))
	return c.Conn.Write(p)
}

func (c *watchedConn) SetWriteDeadline(at time.Time) error {
	c.deadlines = append(c.deadlines, at)
	return c.Conn.SetWriteDeadline(at)
}

// TestCloseNotifyWithoutDeadline ends a TLS direction in order. crypto/tls gave the alert five seconds: to a client
// that read nothing for so long went a FIN without it, as if the data had been cut off.
func TestCloseNotifyWithoutDeadline(t *testing.T) {
	l, peer := legPair(t, pqtest.NewCA(t), true)
	watched := &watchedConn{Conn: l.Conn}
	l.Conn = watched
	l.closeWrite(endedNotify, false)
	if len(watched.deadlines) > 0 {
		t.Errorf("close_notify has to leave by %v", watched.deadlines)
	}
	if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer reads %v, want close_notify", err)
	}
}

// TestResetMetByWrite has a write meet the peer's reset. The kernel reports it once: the read after it met an end,
// which for a plain upstream became close_notify towards the client.
func TestResetMetByWrite(t *testing.T) {
	ca := pqtest.NewCA(t)
	for _, secure := range []bool{false, true} {
		src, peer := legPair(t, ca, secure)
		dst, _ := legPair(t, ca, false)
		pqtest.Reset(t, peer)
		var err error
		for err == nil {
			err = src.send([]byte("x"))
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("writing failed with %v, want a reset", err)
		}
		if ended, _, _ := relayUntilEnd(dst, src, func(int) {}); ended != endedReset {
			t.Errorf("TLS %t: the peer ended with %d, want a reset (%d)", secure, ended, endedReset)
		}
	}
}

// TestEndBeforeReset has a peer that ended in order and resets only what we wrote after that: its end stands.
func TestEndBeforeReset(t *testing.T) {
	src, peer := legPair(t, nil, false)
	dst, far := legPair(t, nil, false)
	if _, err := io.WriteString(peer, "all of it"); err != nil {
		t.Fatal(err)
	}
	peer.Close()
	var err error
	for err == nil {
		err = src.send([]byte("too late"))
	}
	if ended, _, _ := relayUntilEnd(dst, src, func(int) {}); ended != endedNotify {
		t.Errorf("after %v on writing, the peer ended with %d, want in order (%d)", err, ended, endedNotify)
	}
	expect(t, far, "all of it")
}

// TestTinyRecords relays records of one byte each from TLS to TLS, more than fit into one write. The plaintext alone
// was counted, of which 64 KiB in such records are 1.4 MiB sealed: that much was held for a peer that did not read.
func TestTinyRecords(t *testing.T) {
	ca := pqtest.NewCA(t)
	src, from := legPair(t, ca, true)
	dst, to := legPair(t, ca, true)
	watched := &watchedConn{Conn: dst.Conn}
	dst.Conn = watched
	got := make(chan []byte, 1)
	go func() {
		all, _ := io.ReadAll(to)
		got <- all
	}()
	want := bytes.Repeat([]byte("0123456789"), 2000)
	for i := range want { // all of it is in the socket's buffers before any is relayed
		if _, err := from.Write(want[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := from.(*tls.Conn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	ended, readErr, writeErr := relayUntilEnd(dst, src, func(int) {})
	if ended != endedNotify || readErr != nil || writeErr != nil {
		t.Fatalf("ended with %d, %v, %v", ended, readErr, writeErr)
	}
	dst.closeWrite(ended, false)
	if all := <-got; !bytes.Equal(all, want) {
		t.Errorf("%d bytes arrived, or others than the %d sent", len(all), len(want))
	}
	if watched.longest > sealedChunk {
		t.Errorf("%d bytes were gathered for one write, want at most %d", watched.longest, sealedChunk)
	}
}

// TestLearningIsBounded sends hellos with ten different lists of protocols to an upstream that stays silent. Each
// opened a connection to it before any client had proven anything, whatever early_dials_per_client was.
func TestLearningIsBounded(t *testing.T) {
	const clients, most = 10, 2
	pqtest.Leaks(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	e := startEdge(t, fmt.Sprintf(`
		limits {
			early_dials_per_client %d
			dial_timeout 1m
		}
		domain app.example.com {
			upstream %s {
				tls_ca $CA
			}
			certificate $CHAIN $KEY
		}`, most, silent.Addr()))
	for i := range clients {
		hello := pqtest.ClientHello(t, e.client("app.example.com", offering(fmt.Sprint("protocol", i))))
		if _, err := e.dialTCP().Write(hello); err != nil {
			t.Fatal(err)
		}
	}
	var open []net.Conn
	accept := func() {
		c, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	for range most {
		accept()
	}
	slots := &stateInForce(t).learning
	pqtest.Wait(t, "the others to wait", func() bool {
		slots.mu.Lock()
		defer slots.mu.Unlock()
		return slots.total == most && slots.waiting.Len() == clients-most
	})
	for left := clients - 1; left >= 0; left-- { // whoever is done makes room for one more
		open[0].Close()
		open = open[1:]
		pqtest.Wait(t, "the slot", func() bool { return waitingOrOpen(slots) == left })
		if left >= most {
			accept()
		}
	}
}

// waitingOrOpen is how many dials have a slot or wait for one.
func waitingOrOpen(d *dialSlots) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.total + d.waiting.Len()
}

// TestSlotsTimeOut waits for a slot in vain, which leaves nothing behind.
func TestSlotsTimeOut(t *testing.T) {
	var d dialSlots
	client, limits := addrPort(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}).Addr(), &Limits{EarlyDials: 1, EarlyDialsPerClient: 1}
	if !d.wait(client, limits, time.Minute) {
		t.Fatal("the first slot is not given")
	}
	if d.wait(client, limits, time.Millisecond) {
		t.Fatal("a slot is given twice")
	}
	d.release(client)
	if n := waitingOrOpen(&d); n != 0 {
		t.Errorf("%d slots are taken or waited for at the end", n)
	}
}

// TestErrorTextIsBounded refuses a hello that is full of protocol names. The record quoted them all, which made a
// line of the log five times as long as the hello.
func TestErrorTextIsBounded(t *testing.T) {
	s := startStreet(t, hostileDomains, nil)
	protos := make([]string, 55)
	for i := range protos {
		protos[i] = fmt.Sprint(i) + strings.Repeat("\x01", 250)
	}
	raw := pqtest.DialRaw(t, s.addr)
	if _, err := raw.Write(pqtest.ClientHello(t, s.client("alpn.wild.example.com", offering(protos...)))); err != nil {
		t.Fatal(err)
	}
	r := s.recordOf(t, raw)
	checkEnd(t, r, reasonALPNMismatch, sideEdge)
	if text := r.str(keyError); len(text) > maxErrorText || !strings.HasSuffix(text, "…") {
		t.Errorf("the error has %d bytes and ends with %q", len(text), text[len(text)-10:])
	}
}

// TestGarbageAfterHello follows a good hello with what is no record. It was reported as not_tls, whose remedy is to
// look for plain HTTP on the port.
func TestGarbageAfterHello(t *testing.T) {
	s := startStreet(t, hostileDomains, nil)
	raw := pqtest.DialRaw(t, s.addr)
	if _, err := raw.Write(pqtest.ClientHello(t, s.client("app.example.com"))); err != nil {
		t.Fatal(err)
	}
	readServerHello(t, raw)
	if _, err := io.WriteString(raw, "GET / HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	checkEnd(t, s.recordOf(t, raw), reasonHandshake, sideEdge)
	s.disturbed(t)
}
