package pqproxy

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"
)

// clientWire is the wire of a client's connection, with what only matters until its hello is parsed.
type clientWire struct {
	wire
	conn *conn

	helloParsed bool // crypto/tls has a hello
	gone        bool // the client ended or reset the connection
	muted       bool // we have sent an alert of our own
	holding     bool // our flight has left: what crypto/tls writes then are session tickets, kept in header
}

// Read reads for crypto/tls. Until there is a hello it bounds what crypto/tls may read, prefetched bytes
// included: crypto/tls itself would take 64 KiB.
func (w *clientWire) Read(p []byte) (int, error) {
	if w.relaying {
		return w.wire.Read(p)
	}
	if !w.helloParsed {
		left := w.conn.limits.MaxHello - w.records.taken
		if left <= 0 {
			return 0, w.conn.refuse(alertDecodeError, reasonHelloTooLarge,
				fmt.Errorf("the hello is longer than max_hello (%d bytes)", w.conn.limits.MaxHello))
		}
		p = p[:min(len(p), left)]
	}
	n, err := w.wire.Read(p)
	w.gone = w.gone || errors.Is(err, io.EOF) || isReset(err)
	return n, err
}

// holdTickets is called when our flight has left. Session tickets, which follow the client's Finished, then leave
// with the first data, in one segment instead of two.
func (w *clientWire) holdTickets() { w.holding = true }

// stopHolding lets go of what was held: the tickets with the next write, an alert at once.
func (w *clientWire) stopHolding(failed bool) {
	if w.holding = false; failed && w.header != nil {
		_, _ = w.wire.Write(nil)
	}
}

// helloDone lifts the bound on the hello.
func (w *clientWire) helloDone() { w.helloParsed = true }

// Write writes for crypto/tls, unless an alert of ours has been the last word.
func (w *clientWire) Write(p []byte) (int, error) {
	switch {
	case w.muted:
		return len(p), nil
	case w.holding:
		w.header = append(w.header, p...)
		return len(p), nil
	}
	n, err := w.wire.Write(p)
	if err != nil && !w.relaying && isReset(err) {
		w.gone = true
	}
	return n, err
}

// lingerAfterAlert bounds how long and how much is read from a client that was sent an alert: closing
// a socket with unread bytes sends a reset, which can overtake the alert.
const (
	lingerAfterAlert      = time.Second
	lingerAfterAlertBytes = 256 << 10
)

// closeGently ends our direction, waits for the client to end its own, and closes.
func (w *clientWire) closeGently() {
	defer w.Close()
	if w.sock == nil || w.gone || w.sock.CloseWrite() != nil {
		return
	}
	_ = w.SetReadDeadline(time.Now().Add(lingerAfterAlert))
	_, _ = io.CopyN(io.Discard, w.Conn, lingerAfterAlertBytes)
}

// isReset reports whether an error says that the peer reset the connection, or is gone.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNABORTED)
}
