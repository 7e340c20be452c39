package module

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// service is what a state has while its database is open.
type service struct {
	public, edge http.Handler

	endWaits func()          // has requests answered that only wait
	cutting  context.Context // ends when requests must
	cut      context.CancelFunc
	forget   func() bool // the end of the process

	mu      sync.Mutex    // guards what follows
	n       int           // requests that are being answered
	closed  bool          // no more are taken
	waiting chan struct{} // gets a value when n falls to 0
}

func newService(public, edge http.Handler, endWaits func()) *service {
	s := &service{public: public, edge: edge, endWaits: endWaits, waiting: make(chan struct{}, 1)}
	s.cutting, s.cut = context.WithCancel(context.Background())
	// The process ends only when its servers have, which have to hear of it from here.
	s.forget = context.AfterFunc(exiting, func() {
		s.endWaits()
		time.AfterFunc(exitDrain, s.cut)
	})
	return s
}

// answer has h answer the request, and reports false where the service has ended.
func (s *service) answer(h http.Handler, w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return false
	}
	s.n++
	s.mu.Unlock()
	defer s.leave()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.cutting, cancel)()
	h.ServeHTTP(w, r.WithContext(ctx))
	return true
}

func (s *service) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n--; s.n == 0 {
		select {
		case s.waiting <- struct{}{}:
		default:
		}
	}
}

// drainLimit is how long requests may go on where no config has the service any more; a stream of events, which has no end, is
// cut off then. A variable for tests.
var drainLimit = 10 * time.Second

// How long they may go on otherwise.
const (
	exitDrain = 2 * time.Second // where the process ends
	cutLimit  = 5 * time.Second // of those that were cut off
)

// drain returns when no request is being answered any more, and how many were cut off for that. Until then new ones are taken:
// servers of the old config may have some.
func (s *service) drain() (cutOff int) {
	defer s.cut()
	defer s.forget()
	s.endWaits()
	limit := time.NewTimer(drainLimit)
	defer limit.Stop()
	for {
		if s.close(false) == 0 {
			return 0
		}
		select {
		case <-s.waiting:
			continue
		case <-limit.C:
		case <-s.cutting.Done():
		}
		break
	}
	cutOff = s.close(true)
	s.cut()
	limit.Reset(cutLimit)
	for s.close(true) > 0 {
		select {
		case <-s.waiting:
		case <-limit.C:
			return cutOff
		}
	}
	return cutOff
}

// close takes no more requests if there are none, or always, and returns how many there are.
func (s *service) close(always bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if always || s.n == 0 {
		s.closed = true
	}
	return s.n
}
