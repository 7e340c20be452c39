package management

import (
	"context"
	"time"
)

// What tests of edges call of the background work.
var (
	FoldUsage        = (*Plane).foldUsage
	Retain           = (*Plane).retain
	RetainUsage      = (*Plane).retainUsage
	RefreshTouched   = (*Plane).refreshTouched
	StatesOnEdges    = (*Plane).edgeStates
	PurgeDomain      = (*Plane).purgeDomain
	PollTails        = func(p *Plane) func(context.Context) error { return p.edges.tail.poll(p) }
	TailBuffer       = tailBuffer
	FeedInMemory     = feedInMemory
	PostQuantumGroup = postQuantumGroup
)

// FeedWaiting returns how many requests are held.
func (p *Plane) FeedWaiting() int {
	p.edges.feed.mu.Lock()
	defer p.edges.feed.mu.Unlock()
	return p.edges.feed.waiting
}

// CheckTokensAlways has the token looked at again after every wait.
func (p *Plane) CheckTokensAlways() { p.edges.feed.tokenAge = 0 }

// RunWorker does one piece of background work as Run does, until ctx ends. more is what it returns where there is more to do.
func RunWorker(ctx context.Context, p *Plane, every time.Duration, run func(more error) error) {
	p.work(ctx, "test", worker{name: "test", every: every, run: func(context.Context) error { return run(errMore) }})
}
