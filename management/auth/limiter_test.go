package auth

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// clock is one that tests turn.
type clock struct{ time.Time }

func (c *clock) now() time.Time          { return c.Time }
func (c *clock) forward(d time.Duration) { c.Time = c.Add(d) }

func newClock() *clock { return &clock{time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)} }

// allowed returns how many of n requests of a key pass.
func allowed(l *Limiter, key string, n int) int {
	passed := 0
	for range n {
		if _, ok := l.Allow(key); ok {
			passed++
		}
	}
	return passed
}

func TestLimiter(t *testing.T) {
	c := newClock()
	l := NewCredentialLimiter(20, c.now)
	if got := allowed(l, "key_1", 100); got != 40 {
		t.Fatalf("%d at once, want 40", got)
	}
	if retry, ok := l.Allow("key_1"); ok || retry != 50*time.Millisecond {
		t.Errorf("%v, %v", retry, ok)
	}
	if got := allowed(l, "key_2", 100); got != 40 {
		t.Errorf("another key has %d", got)
	}
	c.forward(50*time.Millisecond - 1)
	if retry, ok := l.Allow("key_1"); ok || retry != 1 {
		t.Errorf("a moment too early: %v, %v", retry, ok)
	}
	c.forward(1)
	if got := allowed(l, "key_1", 100); got != 1 {
		t.Errorf("%d after the time that it said", got)
	}
	c.forward(time.Second)
	if got := allowed(l, "key_1", 100); got != 20 {
		t.Errorf("%d after a second", got)
	}
	c.forward(time.Hour)
	if got := allowed(l, "key_1", 100); got != 40 {
		t.Errorf("%d after an hour", got)
	}
	for _, none := range []*Limiter{NewCredentialLimiter(0, nil), NewCredentialLimiter(-1, nil), nil} {
		if got := allowed(none, "key_1", 1000); got != 1000 {
			t.Errorf("no limit: %d", got)
		}
	}
}

// TestLimiterForgets wants buckets gone when they are full, and none before.
func TestLimiterForgets(t *testing.T) {
	c := newClock()
	l := NewLimiter(5, time.Minute, 5, c.now)
	// A token each 12 s keeps the bucket as empty as it is, over many generations.
	allowed(l, "a", 5)
	for i := range 50 {
		c.forward(12 * time.Second)
		if got := allowed(l, "a", 5); got != 1 {
			t.Fatalf("round %d: %d pass", i, got)
		}
	}
	// At whatever time between two generations, an empty bucket stays one until time fills it.
	for wait := time.Duration(0); wait < 2*time.Minute; wait += 7 * time.Second {
		l, c := NewLimiter(5, time.Minute, 5, nil), newClock()
		l.now, l.start = c.now, c.now()
		c.forward(wait)
		allowed(l, "b", 5)
		c.forward(59 * time.Second)
		if got := allowed(l, "b", 5); got != 4 {
			t.Errorf("emptied after %v, then 59 s: %d pass, want 4", wait, got)
		}
	}
	for i := range 1000 {
		l.Allow(fmt.Sprint("once ", i))
	}
	for range 3 {
		c.forward(time.Minute)
		l.Allow("a")
	}
	if n := len(l.recent) + len(l.before); n != 2 { // of "a", in both generations
		t.Errorf("%d buckets are kept", n)
	}
}

// TestLimiterFlood has more keys than there is room for: memory stays bounded, and no flood makes the limiter forget.
func TestLimiterFlood(t *testing.T) {
	c := newClock()
	l := NewLimiter(5, time.Minute, 5, c.now)
	l.most = 100
	allowed(l, "early", 5)
	flood := func() {
		for i := range 1000 {
			l.Allow(fmt.Sprint("flood ", c.Time.Unix(), i))
		}
	}
	flood()
	late := ""
	for i := range 10000 { // a key that came too late for a bucket of its own, and whose shared one has tokens
		key := fmt.Sprint("late ", i)
		if l.shared[maphash.String(l.seed, key)%sharedBuckets] == 0 {
			late = key
			break
		}
	}
	if got := allowed(l, late, 10); got != 5 {
		t.Errorf("the late one has %d", got)
	}
	for range 40 { // over several generations
		c.forward(3 * time.Second)
		flood()
		if len(l.recent) > l.most || len(l.before) > l.most {
			t.Fatalf("%d and %d buckets", len(l.recent), len(l.before))
		}
	}
	// In these 120 s each had 10 tokens more, and nobody took them; but a bucket holds 5.
	for _, key := range []string{"early", late} {
		if got := allowed(l, key, 100); got > 5 {
			t.Errorf("%s has %d", key, got)
		}
	}
	c.forward(time.Hour)
	for _, key := range []string{"early", late, "new"} {
		if got := allowed(l, key, 100); got != 5 {
			t.Errorf("after the flood %s has %d", key, got)
		}
	}
}

// TestLimiterFloodResetsNobody guesses all the time while others flood: the rate must hold whatever the memory goes through.
func TestLimiterFloodResetsNobody(t *testing.T) {
	for _, most := range []int{0, 1, 10, 100} {
		c := newClock()
		l := NewLimiter(5, time.Minute, 5, c.now)
		l.most = most
		passed := 0
		const minutes = 20
		for i := range minutes * 60 {
			for j := range 5 {
				l.Allow(fmt.Sprint("flood ", i%37, j))
			}
			passed += allowed(l, "guesser", 3)
			c.forward(time.Second)
		}
		if passed > 5*minutes+5 {
			t.Errorf("room for %d: %d tries in %d minutes", most, passed, minutes)
		}
	}
}

func TestLimiterAtOnce(t *testing.T) {
	c := newClock()
	l := NewLimiter(5, time.Minute, 5, c.now)
	var passed atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { passed.Add(int64(allowed(l, "a", 100))) })
	}
	all.Wait()
	if passed.Load() != 5 {
		t.Errorf("%d pass", passed.Load())
	}
}

func TestLoginThrottleAccount(t *testing.T) {
	c := newClock()
	throttle := NewLoginThrottle(c.now)
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}) }
	for i, email := range []string{"ada@example.com", "ADA@example.com", " ada@Example.com ", "ada@example.com", "ada@example.com"} {
		if _, _, ok := throttle.Begin(email, addr(i)); !ok {
			t.Fatalf("try %d is refused", i)
		}
	}
	if _, retry, ok := throttle.Begin("ada@example.com", addr(9)); ok || retry != 12*time.Second {
		t.Errorf("the sixth, from elsewhere: %v, %v", ok, retry)
	}
	if _, _, ok := throttle.Begin("bob@example.com", addr(9)); !ok {
		t.Error("another account is refused")
	}
	c.forward(12 * time.Second)
	if _, _, ok := throttle.Begin("ada@example.com", addr(9)); !ok {
		t.Error("refused after the time that it said")
	}
}

func TestLoginThrottleAddress(t *testing.T) {
	for _, test := range []struct{ one, same, other string }{
		{"203.0.113.1", "::ffff:203.0.113.1", "203.0.113.2"},
		{"2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", "2001:db8:0:2::1"},
		{"fe80::1%eth0", "fe80::2%eth1", "2001:db8::1"},
	} {
		c := newClock()
		throttle := NewLoginThrottle(c.now)
		for i := range 20 {
			from := test.one
			if i%2 == 1 {
				from = test.same
			}
			if _, _, ok := throttle.Begin(fmt.Sprint(i), netip.MustParseAddr(from)); !ok {
				t.Fatalf("try %d from %s is refused", i, from)
			}
		}
		for range 10 {
			if _, retry, ok := throttle.Begin("victim", netip.MustParseAddr(test.same)); ok || retry != 3*time.Second {
				t.Errorf("the 21st from %s: %v, %v", test.same, ok, retry)
			}
		}
		// What was refused for the address did not count for the account.
		for range 5 {
			if _, _, ok := throttle.Begin("victim", netip.MustParseAddr(test.other)); !ok {
				t.Errorf("%s is refused for what %s did", test.other, test.same)
			}
		}
	}
	var unknown netip.Addr
	throttle := NewLoginThrottle(newClock().now)
	for i := range 20 {
		throttle.Begin(fmt.Sprint(i), unknown)
	}
	if _, _, ok := throttle.Begin("x", unknown); ok {
		t.Error("clients without an address are not limited")
	}
}

// TestLoginThrottleSucceeded wants good log-ins free, and no use of them for whoever guesses at other accounts.
func TestLoginThrottleSucceeded(t *testing.T) {
	c := newClock()
	throttle := NewLoginThrottle(c.now)
	addr := netip.MustParseAddr("203.0.113.1")
	begin := func(email string) (Attempt, bool) {
		try, _, ok := throttle.Begin(email, addr)
		return try, ok
	}
	for i := range 100 {
		try, ok := begin("own@example.com")
		if !ok {
			t.Fatalf("good log-in %d is refused", i)
		}
		try.Succeeded()
	}
	guesses := 0
	for i := range 100 {
		if try, ok := begin("own@example.com"); ok {
			try.Succeeded()
		}
		if _, ok := begin(fmt.Sprintf("victim%d@example.com", i)); ok {
			guesses++
		}
	}
	if guesses > 20 {
		t.Errorf("%d guesses in a minute", guesses)
	}

	// A try that succeeds late gives back only what time has not yet: here nothing.
	c.forward(time.Hour)
	late, _ := begin("own@example.com")
	c.forward(12 * time.Second)
	for range 5 {
		begin("own@example.com")
	}
	late.Succeeded()
	if _, ok := begin("own@example.com"); ok {
		t.Error("a late success gave back a token twice")
	}
	Attempt{}.Succeeded()
}

func TestRetryAfter(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "1", 1: "1", time.Second: "1", time.Second + 1: "2", 12 * time.Second: "12"} {
		if got := RetryAfter(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
