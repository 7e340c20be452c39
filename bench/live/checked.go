//go:build linux

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// checkedConn is one client connection through the proxy to an upstream of this program, with a checked stream each
// way. Either side goes on sending until end; whatever ends it before is recorded, never repaired.
type checkedConn struct {
	number   uint64
	name     string // SNI
	up, down stream // towards the upstream, towards the client

	interval time.Duration // between frames, each way
	ending   chan struct{} // closed by end, for all connections of a load at once
	upEnded  chan struct{} // closed when the upstream has read the last of up

	greeted atomic.Bool    // the upstream has the greeting
	served  chan struct{}  // closed when the upstream has done its part
	work    sync.WaitGroup // the goroutines of the client's side

	mu     sync.Mutex // guards faults
	faults []error
}

// load is many checked connections.
type load struct {
	conns  []*checkedConn
	ending chan struct{}
	begun  time.Time
}

// newLoad makes n connections, not open yet. names are used in turn.
func newLoad(n int, names []string, interval time.Duration) *load {
	l := &load{ending: make(chan struct{})}
	for i := range n {
		number := uint64(i + 1)
		c := &checkedConn{
			number:   number,
			name:     names[i%len(names)],
			interval: interval,
			ending:   l.ending,
			upEnded:  make(chan struct{}),
			served:   make(chan struct{}),
		}
		c.up.id, c.down.id = 2*number, 2*number+1
		l.conns = append(l.conns, c)
	}
	return l
}

// conn returns the connection of a number in a greeting.
func (l *load) conn(number uint64) *checkedConn {
	if number < 1 || number > uint64(len(l.conns)) {
		return nil
	}
	return l.conns[number-1]
}

// open opens all connections, some at a time, and starts to send on each as soon as it is open. An error is of the
// first that failed; call end then too.
func (l *load) open(dial func(name string) (*tls.Conn, error)) error {
	const atOnce = 8
	var (
		next   atomic.Int64
		group  sync.WaitGroup
		mu     sync.Mutex
		failed error
	)
	for range atOnce {
		group.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(l.conns) {
					return
				}
				if err := l.conns[i].open(dial); err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	group.Wait()
	l.begun = time.Now()
	return failed
}

// end ends both streams of all connections in order and waits until that has worked or failed.
func (l *load) end() {
	close(l.ending)
	for _, c := range l.conns {
		c.work.Wait()
		if c.greeted.Load() {
			<-c.served
		}
	}
}

func (c *checkedConn) open(dial func(name string) (*tls.Conn, error)) error {
	conn, err := dial(c.name)
	if err != nil {
		return fmt.Errorf("connection %d, %s: %w", c.number, c.name, err)
	}
	g := newGreeting(c.number)
	if err := errors.Join(conn.SetDeadline(time.Now().Add(stall)), write(conn, g[:])); err != nil {
		conn.Close()
		return fmt.Errorf("connection %d, %s: %w", c.number, c.name, err)
	}
	c.work.Go(func() {
		defer conn.Close()
		var sending sync.WaitGroup
		sending.Go(func() { c.sendAll(conn, &c.up, c.ending) })
		c.receiveAll(conn, &c.down)
		sending.Wait()
	})
	return nil
}

// serveUpstream is the upstream's end of the connection; it returns when both streams have ended. The upstream goes on
// until the client has ended its stream, so that each end is seen to be passed on.
func (c *checkedConn) serveUpstream(conn duplex) {
	if !c.greeted.CompareAndSwap(false, true) {
		c.fault(errors.New("the upstream was greeted twice"))
		return
	}
	defer close(c.served)
	var sending sync.WaitGroup
	sending.Go(func() { c.sendAll(conn, &c.down, c.upEnded) })
	c.receiveAll(conn, &c.up)
	close(c.upEnded)
	sending.Wait()
}

// sendAll sends frames at the connection's pace until stop is closed, then ends the stream.
func (c *checkedConn) sendAll(conn duplex, s *stream, stop <-chan struct{}) {
	out := newSender(s, conn)
	// Not all at once: connections begin anywhere within the interval.
	timer := time.NewTimer(time.Duration(out.random.Int64N(int64(c.interval))))
	defer timer.Stop()
	for {
		select {
		case <-stop:
			if err := conn.CloseWrite(); err != nil {
				c.fault(fmt.Errorf("ending stream %d: %w", s.id, err))
			}
			return
		case <-timer.C:
		}
		timer.Reset(c.interval)
		if err := errors.Join(conn.SetWriteDeadline(time.Now().Add(stall)), out.send()); err != nil {
			c.fault(fmt.Errorf("sending on stream %d: %w", s.id, err))
			return
		}
	}
}

// receiveAll compares frames until the stream ends. It is a fault if that was before it was to.
func (c *checkedConn) receiveAll(conn duplex, s *stream) {
	in := newReceiver(s, conn)
	for {
		err := conn.SetReadDeadline(time.Now().Add(stall))
		if err == nil {
			err = in.receive()
		}
		switch {
		case err == nil:
			continue
		case !errors.Is(err, io.EOF):
			c.fault(fmt.Errorf("receiving on stream %d: %w", s.id, err))
		case !c.isEnding():
			c.fault(fmt.Errorf("receiving on stream %d: %w", s.id, errEarlyEnd))
		}
		if err != io.EOF {
			conn.Close() // the sender would go on for nobody
		}
		return
	}
}

var errEarlyEnd = errors.New("the stream was ended by nobody of us")

func (c *checkedConn) isEnding() bool {
	select {
	case <-c.ending:
		return true
	default:
		return false
	}
}

func (c *checkedConn) fault(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, err)
}

// tally is what became of the connections of a load.
type tally struct {
	conns      int
	bytes      int64 // received and right, both ways
	lost       int64 // sent and never received, both ways
	wrong      int   // connections with wrong bytes
	reset      int   // connections that were reset
	otherwise  int   // connections that ended early or stalled in another way
	faults     []error
	frameTimes []sampleTime
}

// tally counts, after end. Bytes that are sent and not received are lost, whatever the reason; on a broken connection
// those include what was under way.
func (l *load) tally() tally {
	t := tally{conns: len(l.conns)}
	for _, c := range l.conns {
		c.mu.Lock()
		faults := c.faults
		c.mu.Unlock()
		for _, s := range []*stream{&c.up, &c.down} {
			t.bytes += s.received.Load()
			t.lost += s.sent.Load() - s.received.Load()
			t.frameTimes = append(t.frameTimes, s.times...)
		}
		if len(faults) == 0 {
			continue
		}
		all := fmt.Errorf("connection %d (%s): %w", c.number, c.name, errors.Join(faults...))
		t.faults = append(t.faults, all)
		switch {
		case errors.Is(all, errWrongBytes):
			t.wrong++
		case errors.Is(all, syscall.ECONNRESET) || errors.Is(all, syscall.EPIPE):
			t.reset++
		default:
			t.otherwise++
		}
	}
	return t
}

// broken counts the connections that did not reach their end in order.
func (t tally) broken() int { return t.wrong + t.reset + t.otherwise }

func write(w net.Conn, b []byte) error {
	_, err := w.Write(b)
	return err
}
