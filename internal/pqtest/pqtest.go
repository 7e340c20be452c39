// Package pqtest holds what tests all over the project need: a certificate authority, upstreams that read
// PROXY headers and TLS, clients, ClientHellos to take apart, and a check for leaks. Everything talks over
// real sockets on the loopback address.
//
//	ca := pqtest.NewCA(t)
//	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{
//		Proxy: true,
//		TLS:   &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "app.internal")}},
//	})
//	// … a proxy in between, that dials up.Addr() …
//	conn := pqtest.Dial(t, proxyAddr, &tls.Config{RootCAs: ca.Pool(), ServerName: "app.example.com"})
//	header := up.Next(t).Header
//
// What a function starts or opens ends with the test that it was given. Functions that take a testing.TB end
// the test when they fail and must therefore be called on its own goroutine.
package pqtest

import (
	"testing"
	"time"
)

// Timeout is how long anything here waits before it calls the test failed: far longer than the slowest thing
// that works, with the race detector on a busy machine.
const Timeout = 20 * time.Second

// bound is Timeout, or half of what is left until the test binary is killed, so that the test that hangs is
// the one to say so.
func bound(tb testing.TB) time.Duration {
	if t, ok := tb.(interface{ Deadline() (time.Time, bool) }); ok {
		if deadline, ok := t.Deadline(); ok {
			return min(Timeout, time.Until(deadline)/2)
		}
	}
	return Timeout
}

// Wait returns when cond is true, which it asks every few milliseconds, and fails the test after Timeout.
// What names the thing waited for: "the upstream to see the end". Prefer a channel where there is one.
func Wait(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	if !poll(bound(tb), cond) {
		tb.Fatalf("waited in vain for %s", what)
	}
}

// poll asks cond until it is true or limit is over, and returns what it said last.
func poll(limit time.Duration, cond func() bool) bool {
	if cond() {
		return true
	}
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	end := time.NewTimer(limit)
	defer end.Stop()
	for {
		select {
		case <-again.C:
			if cond() {
				return true
			}
		case <-end.C:
			return cond()
		}
	}
}
