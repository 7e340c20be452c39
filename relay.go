package pqproxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

const (
	// maxPlaintext and recordOverhead are what one TLS 1.3 record holds and what it adds on the wire:
	// header, inner content type and AEAD tag (RFC 8446, sections 5.1 and 5.2).
	maxPlaintext   = 16 << 10
	recordOverhead = 5 + 1 + 16

	// bufferRecords full records are read, sealed and written with one system call each.
	bufferRecords = 4
	relayChunk    = bufferRecords * maxPlaintext
)

// buffer holds bufferRecords full records as they are on the wire.
type buffer [bufferRecords * (maxPlaintext + recordOverhead)]byte

// buffers lends the relay its memory. No buffer is held while a socket has nothing to read.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

// socket is a stream socket that can end one direction. *net.TCPConn and *net.UnixConn are.
type socket interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// errNothingBuffered is how a wire in relay mode tells crypto/tls that everything received has been read.
// crypto/tls keeps no error that says it is temporary, and what it has of a record, so that the next
// Read goes on where this one ended.
var errNothingBuffered net.Error = nothingBuffered{}

type nothingBuffered struct{}

func (nothingBuffered) Error() string   { return "nothing buffered" }
func (nothingBuffered) Timeout() bool   { return false }
func (nothingBuffered) Temporary() bool { return true }

// wire is the net.Conn beneath one TLS connection, or a plain one. During the handshake it passes reads
// and writes through. In relay mode reads are served from what fill has received, so that waiting for
// the peer happens here, with no buffer and no stack of crypto/tls, and writes can be gathered.
type wire struct {
	net.Conn        // what the handshake reads and writes: caddy-l4's layers, or the socket
	sock     socket // beneath all layers; nil where a layer is of an unknown kind

	// raw is the socket's descriptor where reading from it is reading from Conn; nil otherwise: then
	// fill waits with a buffer in hand.
	raw syscall.RawConn

	relaying bool
	ahead    int                   // how much fill receives at most
	readable func(fd uintptr) bool // w.tryRead, bound once
	buf      *buffer               // lent; nil when nothing of it is unread
	unread   []byte                // of buf, of small, or prefetched
	readErr  error                 // of the last tryRead
	small    []byte                // of fillBlocking
	bulk     bool                  // of fillBlocking: much came last time

	wmu    sync.Mutex // guards out and header, and keeps records in order while out is written
	out    []byte     // gathered writes; nil: writes pass through
	header []byte     // leaves in front of the first write: a PROXY header, session tickets
}

// newWire returns the wire of a connection that is its own socket.
func newWire(sock socket) *wire {
	return &wire{Conn: sock, sock: sock, raw: rawConn(sock)}
}

// Read serves what fill has received in relay mode, and reads from the connection before it.
func (w *wire) Read(p []byte) (int, error) {
	if len(w.unread) > 0 {
		n := copy(p, w.unread)
		if w.unread = w.unread[n:]; len(w.unread) == 0 {
			w.release()
		}
		return n, nil
	}
	if w.relaying {
		return 0, errNothingBuffered
	}
	return w.Conn.Read(p)
}

// fill waits until the peer has sent something and receives it. It returns io.EOF when the peer has
// ended its direction. It MUST only be called when nothing is unread.
func (w *wire) fill() error {
	if w.raw == nil {
		return w.fillBlocking()
	}
	if err := w.raw.Read(w.readable); err != nil {
		return err
	}
	return w.readErr
}

// waitingBuffer is what a connection holds while it waits, where it cannot wait without.
const waitingBuffer = 2 << 10

// fillBlocking is fill where nothing can be waited for but a read. While little comes it reads into a small
// buffer of its own.
func (w *wire) fillBlocking() error {
	if w.bulk {
		buf := buffers.Get().(*buffer)
		n, err := w.Conn.Read(buf[:w.ahead])
		w.bulk = n >= waitingBuffer
		if n > 0 {
			w.buf, w.unread = buf, buf[:n]
			return nil // an error will be met again
		}
		buffers.Put(buf)
		return err
	}
	if w.small == nil {
		w.small = make([]byte, waitingBuffer)
	}
	n, err := w.Conn.Read(w.small)
	w.bulk = n == len(w.small)
	if n > 0 {
		w.unread = w.small[:n]
		return nil
	}
	return err
}

// tryRead reads from the socket into a buffer that it takes only for that; false means that there is
// nothing to read yet. The attempt must be made inside RawConn.Read: the poller is edge-triggered and
// forgets what became readable before the call.
func (w *wire) tryRead(fd uintptr) bool {
	buf := buffers.Get().(*buffer)
	n, err := readDescriptor(fd, buf[:w.ahead])
	switch {
	case n > 0:
		w.buf, w.unread, w.readErr = buf, buf[:n], nil
		return true
	case err == nil:
		err = io.EOF
	}
	buffers.Put(buf)
	if errors.Is(err, syscall.EAGAIN) {
		return false
	}
	w.readErr = err
	return true
}

// giveBack returns a buffer, if there is one.
func giveBack(buf *buffer) {
	if buf != nil {
		buffers.Put(buf)
	}
}

// release gives the read buffer back.
func (w *wire) release() {
	giveBack(w.buf)
	w.buf, w.unread = nil, nil
}

// Write writes, or gathers between gather and flush; an empty write sends no more than the header. crypto/tls may write from the reading goroutine
// also (a key update's answer), hence the lock.
func (w *wire) Write(p []byte) (int, error) {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	if w.out != nil {
		w.out = append(w.out, p...)
		return len(p), nil
	}
	if w.header == nil {
		if len(p) == 0 {
			return 0, nil
		}
		return w.Conn.Write(p)
	}
	first := append(w.header, p...)
	w.header = nil
	n, err := w.Conn.Write(first)
	return max(0, n-(len(first)-len(p))), err
}

// gather makes writes collect in out, which is of a lent buffer, until flush.
func (w *wire) gather() *buffer {
	buf := buffers.Get().(*buffer)
	w.wmu.Lock()
	w.out = append(buf[:0], w.header...)
	w.header = nil
	w.wmu.Unlock()
	return buf
}

// flush writes what was gathered, in one system call where the socket takes it.
func (w *wire) flush() error {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	out := w.out
	w.out = nil
	_, err := w.Conn.Write(out)
	return err
}

// ending says how a peer ended its direction of a connection.
type ending int

const (
	endedNot    ending = iota
	endedNotify        // close_notify, or the FIN of a plain connection: all was said
	endedFIN           // FIN under TLS without close_notify: it may have been cut off
	endedReset         // reset, or something that is not TLS any more
)

// leg is one side of a relay.
type leg struct {
	*wire
	tls *tls.Conn // nil: plain
}

// startRelay switches to relay mode. From a plain peer no more is received at once than fits in full records
// of the other side.
func (l *leg) startRelay() {
	l.relaying = true
	l.readable = l.tryRead
	l.ahead = len(buffer{})
	if l.tls == nil {
		l.ahead = relayChunk
	}
}

// forward hands what the peer has sent to dst. It returns when that is used up, with how the peer
// ended, if it did, or with dst's write error.
func (l *leg) forward(dst *leg, relayed func(n int)) (ended ending, readErr, writeErr error) {
	if l.tls == nil {
		n := len(l.unread)
		buf, data := l.buf, l.unread
		l.buf, l.unread = nil, nil
		if err := dst.send(buf, data); err != nil {
			return endedNot, nil, err
		}
		relayed(n)
		return endedNot, nil, nil
	}
	for {
		buf := buffers.Get().(*buffer)
		n, err := 0, error(nil)
		for n < relayChunk && err == nil {
			var m int
			m, err = l.tls.Read(buf[n:relayChunk])
			n += m
		}
		if n > 0 {
			if werr := dst.send(buf, buf[:n]); werr != nil {
				return endedNot, nil, werr
			}
			relayed(n)
		} else {
			buffers.Put(buf)
		}
		switch {
		case err == nil:
		case err == errNothingBuffered:
			return endedNot, nil, nil
		case err == io.EOF:
			return endedNotify, nil, nil
		default:
			return endedReset, err, nil
		}
	}
}

// send writes data, which lies in buf (nil: in memory of the reader's own), and gives buf back as soon as it is not
// needed.
func (l *leg) send(buf *buffer, data []byte) error {
	if l.tls == nil {
		_, err := l.Conn.Write(data)
		giveBack(buf)
		return err
	}
	gathered := l.gather()
	defer buffers.Put(gathered)
	_, err := l.tls.Write(data)
	giveBack(buf) // flush may wait for long
	if flushErr := l.flush(); err == nil {
		err = flushErr
	}
	return err
}

// relayUntilEnd copies from src to dst until src ends or dst takes no more. relayed is told of every
// chunk.
func relayUntilEnd(dst, src *leg, relayed func(n int)) (ended ending, readErr, writeErr error) {
	defer src.release()
	for first := true; ; first = false {
		var err error
		if !first || src.tls == nil { // what came with the last handshake message is in crypto/tls already
			err = src.fill()
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && src.tls == nil:
			return endedNotify, nil, nil
		case errors.Is(err, io.EOF):
			return endedFIN, nil, nil
		default:
			return endedReset, err, nil
		}
		if ended, readErr, writeErr = src.forward(dst, relayed); ended != endedNot || writeErr != nil {
			return ended, readErr, writeErr
		}
	}
}

// closeWrite ends the direction towards the peer the way the other side ended it. Where both have ended, the FIN
// is left to Close, which follows.
func (l *leg) closeWrite(how ending, both bool) {
	if l.tls != nil && how == endedNotify {
		_ = l.tls.CloseWrite() // close_notify; the FIN follows it
	} else {
		_, _ = l.wire.Write(nil) // tickets that no data has taken along
	}
	if l.sock != nil && !both {
		_ = l.sock.CloseWrite()
	}
}

// reset closes the connection so that the peer sees a reset and cannot take it for an orderly end.
func (w *wire) reset() {
	if tcp, ok := w.sock.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0)
	}
	_ = w.Conn.Close()
}
