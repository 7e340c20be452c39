package pqproxy

import (
	"os"
	"sync"
	"time"
)

// pace spreads long work, so that handshakes do not wait for it. The zero value is ready.
//
// On one core a goroutine that is always ready keeps Go's scheduler from looking at the network for up to 10 ms at a
// time. Yielding changes nothing about that, since the goroutine is found again before the network is looked at, and
// sleeping takes at least a millisecond, by which a million domains would take twice as long. So after each stretch of
// work it waits for a byte in a pipe, as a connection waits for its peer: the scheduler then looks at the network, finds
// all that is ready there, and the byte.
type pace struct {
	steps int
	since time.Time // when the present stretch of work began
}

// Work of a few thousand steps is done at once; beyond that it gives way after each stretch.
const (
	paceFree    = 4096
	paceStretch = 200 * time.Microsecond
	paceLook    = 16 // steps between looks at the clock
)

// step is called for each piece of the work, of some microseconds.
func (p *pace) step() {
	p.steps++
	if p.steps < paceFree || p.steps%paceLook != 0 {
		return
	}
	if p.since.IsZero() {
		p.since = time.Now()
	}
	if time.Since(p.since) >= paceStretch {
		giveWay()
		p.since = time.Now()
	}
}

// paceBody returns what gives way while a document is received: after each stretch of 256 KiB or so.
func paceBody() func() {
	pieces := 0
	return func() {
		if pieces++; pieces%paceLook == 0 {
			giveWay()
		}
	}
}

// paced is the pipe of giveWay, which the process keeps.
var paced struct {
	sync.Mutex
	open sync.Once
	r, w *os.File // nil where the system has no pipe to give
}

// giveWay lets everything run that is ready, also what waits for the network.
func giveWay() {
	paced.Lock()
	defer paced.Unlock()
	paced.open.Do(func() {
		if r, w, err := os.Pipe(); err == nil {
			paced.r, paced.w = r, w
		}
	})
	if paced.r == nil {
		time.Sleep(time.Microsecond)
		return
	}
	go paced.w.Write(make([]byte, 1)) // runs when we wait
	_, _ = paced.r.Read(make([]byte, 1))
}
