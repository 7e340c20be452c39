//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// upstreamKind is one of the servers behind the proxies.
type upstreamKind string

const (
	upstreamPlain upstreamKind = "plain"
	upstreamTLS   upstreamKind = "tls"
	// upstreamSlow speaks TLS and lets handshakeDelay pass between the ClientHello and its answer.
	upstreamSlow upstreamKind = "slow"
)

// upstreamKinds are all of them; each contender has a front for each.
var upstreamKinds = []upstreamKind{upstreamPlain, upstreamTLS, upstreamSlow}

// handshakeDelay is how long the slow upstream thinks before it answers a ClientHello.
const handshakeDelay = 20 * time.Millisecond

// connDeadline ends a connection of the harness that makes no progress, hence a run whose proxy hangs. It is above
// the time that the longest cell takes.
const connDeadline = 2 * time.Minute

// upstream is a server behind the proxies, part of the load: it runs on the load's core. It reads a PROXY v1 header
// before TLS or inside it, and serves the harness's protocol until the proxy closes.
type upstream struct {
	kind upstreamKind
	addr string

	listener net.Listener
	tls      *tls.Config // nil: plain TCP
	open     atomic.Int64

	mu     sync.Mutex // guards failed
	failed error
}

// startUpstream listens on a free port and serves until the process ends: its accept loop ends with the listener,
// which nobody needs to close before.
func startUpstream(kind upstreamKind, p *pki) (*upstream, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	u := &upstream{kind: kind, addr: listener.Addr().String(), listener: listener}
	if kind != upstreamPlain {
		u.tls = &tls.Config{
			MinVersion:   tls.VersionTLS13,
			Certificates: []tls.Certificate{p.upstream},
			// Full records from the first byte, as OpenSSL and BoringSSL servers send them.
			DynamicRecordSizingDisabled: true,
		}
	}
	if kind == upstreamSlow {
		u.tls.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			sleepUntil(time.Now().Add(handshakeDelay))
			return nil, nil
		}
	}
	go u.acceptLoop()
	return u, nil
}

func (u *upstream) acceptLoop() {
	for {
		conn, err := u.listener.Accept()
		if err != nil {
			u.fail(fmt.Errorf("accepting: %w", err))
			return
		}
		u.open.Add(1)
		go u.serveConn(conn)
	}
}

// serveConn ends when the proxy closes, or at connDeadline.
func (u *upstream) serveConn(conn net.Conn) {
	defer u.open.Add(-1)
	defer conn.Close()
	if err := u.converse(conn); err != nil {
		u.fail(err)
	}
}

// converse reads the header, shakes hands and answers requests. A connection that ends before its first request is
// no fault: a proxy may open one of its own, to learn what the upstream speaks.
func (u *upstream) converse(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(connDeadline)); err != nil {
		return err
	}
	var about report
	// Small: it only serves headers and frames. Reads of whole chunks go past it.
	stream := bufio.NewReaderSize(conn, 2*maxProxyV1)
	client, found, err := readProxyV1(stream)
	if err != nil {
		return ignoreEOF(err)
	}
	if found {
		about.place, about.client = headerClear, client
	}
	if u.tls == nil {
		return u.answer(stream, conn, about)
	}

	secure := tls.Server(readerConn{conn, stream}, u.tls)
	ctx, cancel := context.WithTimeout(context.Background(), connDeadline)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	state := secure.ConnectionState()
	about.group, about.resumed = state.CurveID, state.DidResume
	stream = bufio.NewReaderSize(secure, 2*maxProxyV1)
	client, found, err = readProxyV1(stream)
	if err != nil {
		return ignoreEOF(err)
	}
	if found {
		about.place, about.client = headerInsideTLS, client
	}
	defer secure.Close()
	return u.answer(stream, secure, about)
}

// answer serves requests until the client's side of the stream ends.
func (u *upstream) answer(r io.Reader, w io.Writer, about report) error {
	var (
		request frame
		buf     []byte
	)
	for {
		if _, err := io.ReadFull(r, request[:]); err != nil {
			return ignoreEOF(err)
		}
		if err := request.check(); err != nil {
			return err
		}
		reply := request
		switch request.op() {
		case opReport:
			reply = about.frame()
		case opEcho:
		case opDown:
			if err := sendPattern(w, request.n()); err != nil {
				return err
			}
			continue
		case opUp:
			if buf == nil {
				buf = make([]byte, relayChunk)
			}
			if err := receivePattern(r, request.n(), buf); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unknown operation in %x", request[:])
		}
		if _, err := w.Write(reply[:]); err != nil {
			return err
		}
	}
}

// fail keeps the first fault since takeFault.
func (u *upstream) fail(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.failed == nil {
		u.failed = fmt.Errorf("upstream %s: %w", u.kind, err)
	}
}

// takeFault returns the first fault since the last call, nil if there was none.
func (u *upstream) takeFault() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	err := u.failed
	u.failed = nil
	return err
}

// drained waits until no connection is open: the proxy has passed on every end.
func (u *upstream) drained() error {
	for wait := time.Now().Add(10 * time.Second); u.open.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(wait) {
			return fmt.Errorf("upstream %s: %d connections are still open although their clients have closed", u.kind, u.open.Load())
		}
	}
	return nil
}

// readerConn is a connection whose first bytes were read ahead.
type readerConn struct {
	net.Conn
	r io.Reader
}

func (c readerConn) Read(p []byte) (int, error) { return c.r.Read(p) }

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
