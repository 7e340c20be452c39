package auth

import (
	"hash/maphash"
	"sync"
	"time"
)

// A Limiter's memory: most keys in each of its two generations, and the buckets that keys share when both are full. Some 6 MiB
// at worst, and next to nothing while few keys come.
const (
	mostKeys      = 1 << 16
	sharedBuckets = 1 << 10
)

// Limiter limits how often something is done for each of many keys: a token bucket for each key. It is safe for concurrent
// use. A nil Limiter limits nothing.
//
// Keys may come from anybody, so there is an upper bound on what is kept, and no way to make the limiter forget a bucket
// before it is full again, when forgetting it changes nothing. When there are too many, new keys share a few buckets: then
// somebody may be refused for what others did, but nobody gets more than his share.
type Limiter struct {
	interval time.Duration // in which a token comes back
	burst    time.Duration // interval times the size of a bucket: after it, an untouched bucket is full
	most     int
	now      func() time.Time
	start    time.Time // times are kept since this one, so the monotonic clock counts, and steps of the wall clock do not
	seed     maphash.Seed

	mu sync.Mutex // guards all below

	// A bucket is the time at which it will be full (the "theoretical arrival time" of GCRA, ITU-T I.371). What is not here is
	// full. A key that is charged is in recent; what was not charged for a whole burst falls out of before.
	recent, before map[uint64]time.Duration
	shared         [sharedBuckets]time.Duration
	turned         time.Duration // when recent became before
}

// NewLimiter returns a Limiter that allows n times in each period, and up to burst at once. n or burst 0 or less: nil, no limit. now
// is the clock; nil: time.Now.
func NewLimiter(n int, period time.Duration, burst int, now func() time.Time) *Limiter {
	if n <= 0 || burst <= 0 {
		return nil
	}
	if now == nil {
		now = time.Now
	}
	interval := max(period/time.Duration(n), 1)
	return &Limiter{
		interval: interval, burst: interval * time.Duration(burst), most: mostKeys, now: now, start: now(), seed: maphash.MakeSeed(),
		recent: make(map[uint64]time.Duration), before: make(map[uint64]time.Duration),
	}
}

// NewCredentialLimiter returns a Limiter for requests with a credential: perSecond in a second, twice that at once; 0: no limit.
func NewCredentialLimiter(perSecond int, now func() time.Time) *Limiter {
	return NewLimiter(perSecond, time.Second, 2*perSecond, now)
}

// Allow charges the key's bucket and returns true, or returns false and after how long it will have a token. What was refused
// is not charged: who keeps asking is not locked out for longer.
func (l *Limiter) Allow(key string) (retryAfter time.Duration, ok bool) {
	if l == nil {
		return 0, true
	}
	_, retryAfter, ok = l.take(key)
	return retryAfter, ok
}

// charge is one token taken from a bucket.
type charge struct {
	key uint64
	at  time.Duration
}

// take is Allow that also returns what was charged.
func (l *Limiter) take(key string) (taken charge, retryAfter time.Duration, ok bool) {
	sum := maphash.String(l.seed, key) // keys of any length cost the same; nobody outside can aim at a bucket
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.now().Sub(l.start)
	l.turn(at)
	full := max(l.fullAt(sum), at)
	if wait := full + l.interval - at - l.burst; wait > 0 {
		return charge{}, wait, false
	}
	l.set(sum, full+l.interval)
	return charge{sum, at}, 0, true
}

// refund gives back a charge, less what has come back by itself since: never more than was taken.
func (l *Limiter) refund(c charge) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.now().Sub(l.start)
	l.turn(at)
	left := l.interval - (at - c.at)
	if left <= 0 || left > l.interval {
		return
	}
	if full, ok := l.recent[c.key]; ok {
		l.recent[c.key] = full - left
	} else if full, ok := l.before[c.key]; ok {
		l.before[c.key] = full - left
	} // a shared bucket is not only ours to fill
}

// turn lets go of buckets that were not charged for a whole burst, and so are full.
func (l *Limiter) turn(at time.Duration) {
	switch since := at - l.turned; {
	case since < l.burst:
		return
	case since >= 2*l.burst:
		clear(l.recent)
	}
	l.recent, l.before = l.before, l.recent
	clear(l.recent)
	l.turned = at
}

func (l *Limiter) fullAt(sum uint64) time.Duration {
	if full, ok := l.recent[sum]; ok {
		return full
	}
	return max(l.before[sum], l.shared[sum%sharedBuckets])
}

func (l *Limiter) set(sum uint64, full time.Duration) {
	if _, ok := l.recent[sum]; ok || len(l.recent) < l.most {
		l.recent[sum] = full
		return
	}
	l.shared[sum%sharedBuckets] = full
}
