package acmetest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// relay passes connections on to an address that may become known, and change, later.
type relay struct {
	ln   net.Listener
	wg   sync.WaitGroup // of accept and pass, which close ends
	done chan struct{}

	mu     sync.Mutex // guards what follows
	target string
	known  chan struct{} // closed once there is a target
	conns  map[*net.TCPConn]struct{}
}

func startRelay(tb testing.TB) *relay {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &relay{ln: ln, done: make(chan struct{}), known: make(chan struct{}), conns: make(map[*net.TCPConn]struct{})}
	r.wg.Go(r.accept)
	return r
}

func (r *relay) port() int { return r.ln.Addr().(*net.TCPAddr).Port }

func (r *relay) forward(addr string) {
	if r == nil {
		panic("acmetest: nothing to forward, since Options has the port")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.target == "" {
		close(r.known)
	}
	r.target = addr
}

func (r *relay) close() {
	close(r.done)
	r.ln.Close()
	r.mu.Lock()
	for conn := range r.conns {
		conn.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// accept is ended by close.
func (r *relay) accept() {
	for {
		conn, err := r.ln.Accept()
		if err != nil {
			return
		}
		if client := conn.(*net.TCPConn); r.keep(client) {
			r.wg.Go(func() { r.pass(client) })
		}
	}
}

// keep has close end a connection too. It says false if that has happened already.
func (r *relay) keep(conn *net.TCPConn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.done:
		conn.Close()
		return false
	default:
		r.conns[conn] = struct{}{}
		return true
	}
}

func (r *relay) drop(conn *net.TCPConn) {
	conn.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, conn)
}

func (r *relay) pass(client *net.TCPConn) {
	defer r.drop(client)
	select {
	case <-r.known:
	case <-r.done:
		return
	}
	r.mu.Lock()
	target := r.target
	r.mu.Unlock()
	conn, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		_ = client.SetLinger(0) // a reset; fails for a connection that is gone
		return
	}
	server := conn.(*net.TCPConn)
	if !r.keep(server) {
		return
	}
	defer r.drop(server)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { copyAll(server, client) })
	copyAll(client, server)
}

// copyAll copies one direction and ends it, or the whole connection where that fails.
func copyAll(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil || to.CloseWrite() != nil {
		to.Close()
		from.Close()
	}
}
