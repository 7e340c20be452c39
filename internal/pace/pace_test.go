package pace

import (
	"sync"
	"testing"
	"time"
)

// TestStep begins to look at the clock after the free steps, and gives way when a stretch of work is over.
func TestStep(t *testing.T) {
	for name, c := range map[string]struct {
		pace Pace
		free int
	}{"a few thousand": {Pace{}, few}, "so many": {Pace{Free: 100}, 100}, "none": {Pace{Free: -1}, 0}} {
		p := c.pace
		for range c.free - 1 {
			p.Step()
		}
		if !p.since.IsZero() {
			t.Errorf("%s: it begins too early", name)
		}
		for range look + 1 {
			p.Step()
		}
		if p.since.IsZero() {
			t.Errorf("%s: after %d steps it has not begun", name, p.steps)
		}
		long := time.Now().Add(-time.Hour)
		p.since = long
		for range look {
			p.Step()
		}
		if p.since.Equal(long) {
			t.Errorf("%s: after an hour it has not given way", name)
		}
	}
}

// TestGiveWay has many give way at once.
func TestGiveWay(t *testing.T) {
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for range 20 {
				GiveWay()
			}
		})
	}
	all.Wait()
}
