package caddytest

import (
	"bytes"
	"net"
	"sync"
	"testing"
)

// relay is what edges know as the management plane's address: it may be elsewhere, or away.
type relay struct {
	addr string

	mu      sync.Mutex // guards all below
	target  string     // empty: whoever comes is sent away
	swallow bool       // what answers a report is lost on the way
	lost    int        // such answers
	conns   map[net.Conn]struct{}
}

// startRelay begins to pass connections on to an address.
func startRelay(t *testing.T, target string) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: ln.Addr().String(), target: target, conns: make(map[net.Conn]struct{})}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return // closed below
			}
			running.Go(func() { r.pass(conn) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		r.set("")
		running.Wait()
	})
	return r
}

// set changes where connections go. Those that are open end.
func (r *relay) set(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = target
	for conn := range r.conns {
		conn.Close()
	}
}

// loseAnswers begins and ends to lose what answers a report, and returns how many were lost.
func (r *relay) loseAnswers(on bool) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.swallow = on
	return r.lost
}

// pass is one connection. It ends when either side does.
func (r *relay) pass(conn net.Conn) {
	defer conn.Close()
	r.mu.Lock()
	target := r.target
	r.conns[conn] = struct{}{}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.conns, conn)
		r.mu.Unlock()
	}()
	if target == "" {
		return
	}
	up, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer up.Close()

	var lose bool // guarded by mu
	var back sync.WaitGroup
	back.Go(func() {
		defer conn.Close()
		piece := make([]byte, 64<<10)
		for {
			n, err := up.Read(piece)
			r.mu.Lock()
			losing := lose
			if losing && n > 0 {
				r.lost++
			}
			r.mu.Unlock()
			if losing || err != nil {
				return // the client sees its connection end where the answer should be
			}
			if _, err := conn.Write(piece[:n]); err != nil {
				return
			}
		}
	})
	piece := make([]byte, 64<<10)
	for {
		n, err := conn.Read(piece)
		if bytes.HasPrefix(piece[:n], []byte("POST ")) {
			r.mu.Lock()
			lose = r.swallow
			r.mu.Unlock()
		}
		if n > 0 {
			if _, err := up.Write(piece[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	up.Close()
	back.Wait()
}
