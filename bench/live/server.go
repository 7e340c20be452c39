//go:build linux

package main

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// A connection to an upstream begins with a greeting of 16 bytes: 4 of magic, then the number of the checked
// connection, or 0 for a visitor, whose greeting is sent back and who then closes.
const (
	greetingSize  = 16
	greetingMagic = 0x70716c77
)

type greeting [greetingSize]byte

func newGreeting(conn uint64) (g greeting) {
	binary.BigEndian.PutUint32(g[:], greetingMagic)
	binary.BigEndian.PutUint64(g[8:], conn)
	return g
}

// stall is how long a read or write on a connection may make no progress before it counts as lost.
const stall = 30 * time.Second

// server is an upstream, part of the load: plain TCP, or TLS.
type server struct {
	addr     string
	listener net.Listener
	tls      *tls.Config // nil: plain TCP
	// checked finds the checked connection of a greeting; nil where there is none of that number.
	checked func(conn uint64) *checkedConn
}

// startServer listens on a free port until close.
func startServer(config *tls.Config, checked func(conn uint64) *checkedConn) (*server, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{addr: listener.Addr().String(), listener: listener, tls: config, checked: checked}
	go s.acceptLoop()
	return s, nil
}

// close stops accepting. Connections end with their clients, or when they stall.
func (s *server) close() error { return s.listener.Close() }

// acceptLoop ends with the listener.
func (s *server) acceptLoop() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		go s.serveConn(conn)
	}
}

// serveConn ends with the connection. What goes wrong before the greeting is no fault: a proxy may open connections
// of its own, and give up those whose client has gone. Behind it, a fault is the checked connection's.
func (s *server) serveConn(raw net.Conn) {
	defer raw.Close()
	if raw.SetDeadline(time.Now().Add(stall)) != nil {
		return
	}
	conn := duplex(raw.(*net.TCPConn))
	if s.tls != nil {
		secure := tls.Server(raw, s.tls)
		defer secure.Close()
		conn = secure
	}
	var g greeting
	if _, err := io.ReadFull(conn, g[:]); err != nil || binary.BigEndian.Uint32(g[:]) != greetingMagic {
		return
	}
	number := binary.BigEndian.Uint64(g[8:])
	if number == 0 {
		_, _ = conn.Write(g[:])
		_, _ = conn.Read(g[:1]) // until the visitor closes
		return
	}
	if c := s.checked(number); c != nil {
		c.serveUpstream(conn)
	}
}

// duplex is a connection of which one side can be ended: *tls.Conn and *net.TCPConn.
type duplex interface {
	net.Conn
	CloseWrite() error
}

// visitName is a connection that reaches the upstream and back.
func visitName(d *lab.Dialer, name string) error {
	conn, err := d.Dial(name)
	if err != nil {
		return err
	}
	defer conn.Close()
	return errors.Join(conn.SetDeadline(time.Now().Add(visitPatience)), visit(conn))
}

// visitPatience is how long a visitor waits for the answer.
const visitPatience = 10 * time.Second

// visit sends a greeting and waits for it: a connection that works from end to end.
func visit(conn net.Conn) error {
	g := newGreeting(0)
	if _, err := conn.Write(g[:]); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	var back greeting
	if _, err := io.ReadFull(conn, back[:]); err != nil {
		return fmt.Errorf("waiting for the answer: %w", err)
	}
	if back != g {
		return errors.New("the answer is not what was sent")
	}
	return nil
}
