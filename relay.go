package pqproxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	// relayChunk is how much is read from a peer at once, and how much plaintext leaves in one write: a multiple
	// of a record's, so that none is cut short.
	relayChunk = 4 * maxPlaintext

	// recordOverhead is what TLS 1.3 adds to each record: header, inner content type and AEAD tag (RFC 8446,
	// section 5.2). sealedRecord is the longest record, sealedChunk relayChunk in such records.
	recordOverhead = recordHeaderLen + 1 + 16
	sealedRecord   = maxPlaintext + recordOverhead
	sealedChunk    = relayChunk/maxPlaintext*sealedRecord + slack

	// slack is room for the answer to a key update, and for tickets that leave with the first data.
	slack = 1 << 10

	// helloChunk is how much of a handshake is read at once: a hybrid hello, or a server's flight, as a rule.
	helloChunk = 4 << 10
)

// What the relay lends. Nothing is held while a socket has nothing to read.
var (
	chunks       = sync.Pool{New: func() any { return new([relayChunk]byte) }}
	sealedChunks = sync.Pool{New: func() any { return new([sealedChunk]byte) }}
	plaintexts   = sync.Pool{New: func() any { return new([maxPlaintext]byte) }}
	helloChunks  = sync.Pool{New: func() any { return new([helloChunk]byte) }}
)

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

// wire is the net.Conn beneath one TLS connection, or a plain one. During the handshake reads wait as usual. In
// relay mode they are served from what fill has received, so that waiting for the peer happens there, with no
// buffer in hand and outside of crypto/tls.
type wire struct {
	net.Conn        // what is read and written: caddy-l4's layers, or the socket
	sock     socket // beneath all layers; nil where a layer is of an unknown kind

	// raw is the socket's descriptor where reading from it is reading from Conn; nil otherwise: then
	// fill waits with a buffer in hand.
	raw syscall.RawConn

	piece    int // of records
	records  recordCutter
	relaying bool

	// In relay mode, what fill and Read do with the descriptor. A plain peer's data is received by fill, that of
	// a TLS connection by crypto/tls in a buffer of its own, which saves a copy.
	attempt func(fd uintptr) bool
	reading func(fd uintptr) bool // nil: plain, or no descriptor
	asked   bool                  // of tryPeek
	into    []byte                // of readNow
	n       int                   // of readNow
	readErr error                 // of the last of them
	drained bool                  // readNow got less than it had room for
	ended   bool                  // readNow has met the peer's FIN

	chunk  *[relayChunk]byte // lent; nil when nothing of it is unread
	hello  *[helloChunk]byte // the same
	small  []byte            // of fillBlocking
	bulk   bool              // of fillBlocking: much came last time
	unread []byte            // of one of these, or prefetched

	wmu    sync.Mutex // guards the rest, and keeps what is written in order
	told   bool       // a write was told that the peer has reset the connection
	header []byte     // leaves in front of the first write: a PROXY header, session tickets
	out    []byte     // gathered writes; nil: writes pass through
}

// newWire returns the wire of a connection that is its own socket.
func newWire(sock socket) *wire {
	return &wire{Conn: sock, sock: sock, raw: rawConn(sock), piece: upstreamPiece}
}

// Read reads for crypto/tls. In relay mode it returns what is there, or errNothingBuffered.
func (w *wire) Read(p []byte) (int, error) {
	if w.relaying {
		return w.readWaiting(p)
	}
	for {
		n, used := w.records.cut(p, w.unread, w.piece)
		w.take(used)
		if n > 0 {
			return n, nil
		}
		if err := w.receive(); err != nil {
			return 0, err
		}
	}
}

// readWaiting reads what has come, without waiting for more.
func (w *wire) readWaiting(p []byte) (int, error) {
	switch {
	case len(w.unread) > 0:
		n := copy(p, w.unread)
		w.take(n)
		return n, nil
	case w.reading == nil:
		return 0, errNothingBuffered
	case w.drained: // fill looks again before it waits
		w.drained = false
		return 0, errNothingBuffered
	}
	w.into = p
	if err := w.raw.Read(w.reading); err != nil {
		return 0, err
	}
	switch {
	case w.n > 0:
		w.drained = w.n < min(len(p), helloChunk) // in bulk there may be more by now, and it goes into the same write
		return w.n, nil
	case w.readErr == nil:
		w.ended = true
		return 0, io.EOF
	case errors.Is(w.readErr, syscall.EAGAIN):
		return 0, errNothingBuffered
	}
	return 0, w.readErr
}

// readNow reads from the socket, whether or not there is something.
func (w *wire) readNow(fd uintptr) bool {
	w.n, w.readErr = readDescriptor(fd, w.into)
	w.into = nil
	return true
}

// take marks n bytes as read.
func (w *wire) take(n int) {
	if w.unread = w.unread[n:]; len(w.unread) == 0 {
		w.release()
	}
}

// release gives back what was lent for reading.
func (w *wire) release() {
	if w.chunk != nil {
		chunks.Put(w.chunk)
	}
	if w.hello != nil {
		helloChunks.Put(w.hello)
	}
	w.chunk, w.hello, w.unread = nil, nil, nil
}

// receive waits for bytes of a handshake. Nothing must be unread.
func (w *wire) receive() error {
	buf := helloChunks.Get().(*[helloChunk]byte)
	n, err := w.Conn.Read(buf[:])
	if n == 0 {
		helloChunks.Put(buf)
		return err
	}
	w.hello, w.unread = buf, buf[:n]
	return nil // an error will be met again
}

// fill waits until the peer has sent something, and receives it unless crypto/tls does. It returns io.EOF when the
// peer has ended its direction. Nothing must be unread.
func (w *wire) fill() error {
	if w.raw == nil {
		return w.fillBlocking()
	}
	w.asked, w.readErr = false, nil
	if err := w.raw.Read(w.attempt); err != nil {
		return err
	}
	return w.readErr
}

// tryPeek reports whether there is something to read, or an end; asked again, it takes the poller's word for it. The
// attempt must be made inside RawConn.Read: the poller is edge-triggered and forgets what became readable before
// the call.
func (w *wire) tryPeek(fd uintptr) bool {
	if w.asked {
		return true
	}
	w.asked = true
	err := peekDescriptor(fd)
	if errors.Is(err, syscall.EAGAIN) {
		return false
	}
	w.readErr = err // the kernel reports a reset once: whoever reads after that reads an end
	return true
}

// tryRead reads from the socket into a buffer that it takes only for that; false means that there is
// nothing to read yet.
func (w *wire) tryRead(fd uintptr) bool {
	buf := chunks.Get().(*[relayChunk]byte)
	n, err := readDescriptor(fd, buf[:])
	switch {
	case n > 0:
		w.chunk, w.unread, w.readErr = buf, buf[:n], nil
		return true
	case err == nil:
		err = io.EOF
	}
	chunks.Put(buf)
	if errors.Is(err, syscall.EAGAIN) {
		return false
	}
	w.readErr = err
	return true
}

// waitingBuffer is what a connection holds while it waits, where it cannot wait without.
const waitingBuffer = 2 << 10

// fillBlocking is fill where nothing can be waited for but a read. While little comes it reads into a small
// buffer of its own.
func (w *wire) fillBlocking() error {
	if !w.bulk {
		if w.small == nil {
			w.small = make([]byte, waitingBuffer)
		}
		n, err := w.Conn.Read(w.small)
		w.bulk = n == len(w.small)
		if w.unread = w.small[:n]; n > 0 {
			return nil // an error will be met again
		}
		return err
	}
	buf := chunks.Get().(*[relayChunk]byte)
	n, err := w.Conn.Read(buf[:])
	w.bulk = n >= waitingBuffer
	if n == 0 {
		chunks.Put(buf)
		return err
	}
	w.chunk, w.unread = buf, buf[:n]
	return nil
}

// Write writes, or gathers between gather and flush; an empty write sends no more than the header. crypto/tls
// may write from the reading goroutine also (a key update's answer), hence the lock.
func (w *wire) Write(p []byte) (int, error) {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	if w.out != nil {
		w.out = append(append(w.out, w.header...), p...)
		w.header = nil
		return len(p), nil
	}
	if len(p)+len(w.header) == 0 {
		return 0, nil
	}
	ahead := len(w.header)
	if ahead > 0 {
		p = append(w.header, p...)
		w.header = nil
	}
	n, err := w.writeOut(p)
	return max(0, n-ahead), err
}

// writeOut writes to the peer. Call it with the lock held.
func (w *wire) writeOut(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.told = w.told || errors.Is(err, syscall.ECONNRESET)
	return n, err
}

// SetWriteDeadline does nothing in relay mode: crypto/tls would give close_notify five seconds, and a peer that
// reads nothing for that long would take an orderly end for a cut. The idle timeout bounds that write too.
func (w *wire) SetWriteDeadline(t time.Time) error {
	if w.relaying {
		return nil
	}
	return w.Conn.SetWriteDeadline(t)
}

// wasReset reports whether the end that was read is in truth a reset. The kernel reports a reset once: where a write
// has met it, a read meets an end.
func (w *wire) wasReset() bool {
	if w.sock == nil {
		return false
	}
	raw, broken := rawConn(w.sock), false
	if raw == nil || raw.Control(func(fd uintptr) { broken = descriptorBroken(fd) }) != nil || !broken {
		return false
	}
	w.wmu.Lock() // not for long: no write waits where none can succeed
	defer w.wmu.Unlock()
	return w.told
}

// gather makes writes collect in a lent buffer, until flush.
func (w *wire) gather() *[sealedChunk]byte {
	buf := sealedChunks.Get().(*[sealedChunk]byte)
	w.wmu.Lock()
	w.out = buf[:0]
	w.wmu.Unlock()
	return buf
}

// flush writes what was gathered, in one system call where the socket takes it, and gives the buffer back.
func (w *wire) flush(buf *[sealedChunk]byte) (err error) {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	if len(w.out) > 0 {
		_, err = w.writeOut(w.out)
	}
	w.out = nil
	sealedChunks.Put(buf)
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

// startRelay switches to relay mode.
func (l *leg) startRelay() {
	l.relaying = true
	if l.attempt = l.tryRead; l.tls != nil && l.raw != nil {
		l.attempt, l.reading = l.tryPeek, l.readNow
	}
}

// relayUntilEnd copies from src to dst until src ends or dst takes no more. relayed is told of every
// chunk.
func relayUntilEnd(dst, src *leg, relayed func(n int)) (ended ending, readErr, writeErr error) {
	defer src.release()
	for first := true; ; first = false {
		var err error
		if !first || src.tls == nil { // what came with the last handshake message has been received already
			err = src.fill()
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && src.wasReset():
			return endedReset, syscall.ECONNRESET, nil
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

// forward hands what the peer has sent to dst. It returns when that is used up, with how the peer
// ended, if it did, or with dst's write error.
func (l *leg) forward(dst *leg, relayed func(n int)) (ended ending, readErr, writeErr error) {
	for {
		var n int
		var err error
		switch {
		case l.tls == nil:
			n, err = len(l.unread), errNothingBuffered
			writeErr = l.forwardPlain(dst)
		case dst.tls == nil:
			n, err, writeErr = l.openTo(dst)
		default:
			n, err, writeErr = l.openAndSealTo(dst)
		}
		if n > 0 {
			relayed(n)
		}
		switch {
		case writeErr != nil:
			return endedNot, nil, writeErr
		case err == nil:
		case err == errNothingBuffered:
			return endedNot, nil, nil
		case l.ended && l.wasReset():
			return endedReset, syscall.ECONNRESET, nil
		case l.ended:
			return endedFIN, nil, nil
		case err == io.EOF:
			return endedNotify, nil, nil
		default:
			return endedReset, err, nil
		}
	}
}

// forwardPlain is forward from a plain peer.
func (l *leg) forwardPlain(dst *leg) error {
	defer l.release()
	if dst.tls == nil || len(l.unread) <= maxPlaintext { // one record: nothing to gather
		return dst.send(l.unread)
	}
	sealed := dst.gather()
	err := dst.send(l.unread)
	l.release() // flush may wait for long
	return errors.Join(err, dst.flush(sealed))
}

// openTo is forward from TLS to a plain peer: up to relayChunk in one write.
func (l *leg) openTo(dst *leg) (n int, readErr, writeErr error) {
	buf := chunks.Get().(*[relayChunk]byte)
	defer chunks.Put(buf)
	for n < relayChunk && readErr == nil {
		var m int
		m, readErr = l.tls.Read(buf[n:])
		n += m
	}
	if n > 0 {
		writeErr = dst.send(buf[:n])
	}
	return n, readErr, writeErr
}

// openAndSealTo is forward from TLS to TLS: the same, each record being sealed while it is in the processor's nearest
// cache.
func (l *leg) openAndSealTo(dst *leg) (n int, readErr, writeErr error) {
	plain := plaintexts.Get().(*[maxPlaintext]byte)
	sealed := dst.gather()
	// Room is counted in sealed bytes: records of one byte are sealed into more than twenty times as many.
	for room := sealedChunk - slack; room >= sealedRecord && readErr == nil && writeErr == nil; {
		var m int
		if m, readErr = l.tls.Read(plain[:]); m > 0 {
			writeErr = dst.send(plain[:m])
		}
		n += m
		room -= m + recordOverhead
	}
	plaintexts.Put(plain)
	if err := dst.flush(sealed); writeErr == nil {
		writeErr = err
	}
	return n, readErr, writeErr
}

// send writes data to the peer, sealed where it speaks TLS.
func (l *leg) send(data []byte) error {
	var err error
	if l.tls != nil {
		_, err = l.tls.Write(data)
	} else {
		_, err = l.wire.Write(data)
	}
	return err
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
