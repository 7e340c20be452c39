package api

import "sync"

// inFlight bounds how many requests are worked on at once, of each key and of all together.
type inFlight struct {
	most int

	mu  sync.Mutex // guards both
	all int
	of  map[string]int
}

func newInFlight(most int) *inFlight { return &inFlight{most: most, of: map[string]int{}} }

// enter counts a request, and returns false where there are too many.
func (f *inFlight) enter(key string, most int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all >= f.most || f.of[key] >= most {
		return false
	}
	f.all++
	f.of[key]++
	return true
}

// leave ends what enter began.
func (f *inFlight) leave(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all--
	if f.of[key]--; f.of[key] <= 0 {
		delete(f.of, key)
	}
}
