// Package pace spreads long work, so that whoever waits for the network does not wait for it.
package pace

import (
	"os"
	"sync"
	"time"
)

// Pace spreads one piece of long work. The zero value is ready.
//
// On one core a goroutine that is always ready keeps Go's scheduler from looking at the network for up to 10 ms at a
// time. Yielding changes nothing about that, since the goroutine is found again before the network is looked at, and
// sleeping takes at least a millisecond, by which a million domains would take twice as long. So after each stretch of
// work it waits for a byte in a pipe, as a connection waits for its peer: the scheduler then looks at the network, finds
// all that is ready there, and the byte.
type Pace struct {
	Free int // steps that are done at once, before it begins to give way; 0: 128, which is nothing to speak of; -1: none

	steps int
	since time.Time // when the present stretch of work began
}

const (
	few     = 128
	stretch = 60 * time.Microsecond
	look    = 4 // steps between looks at the clock
)

// Step is called for each piece of the work, of some microseconds.
func (p *Pace) Step() {
	free := p.Free
	if free == 0 {
		free = few
	}
	p.steps++
	if p.steps < free || p.steps%look != 0 {
		return
	}
	if p.since.IsZero() {
		p.since = time.Now()
	}
	if time.Since(p.since) >= stretch {
		GiveWay()
		p.since = time.Now()
	}
}

// paced is the pipe of GiveWay, which the process keeps.
var paced struct {
	sync.Mutex
	open sync.Once
	r, w *os.File // nil where the system has no pipe to give
}

// GiveWay lets everything run that is ready, also what waits for the network.
func GiveWay() {
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
