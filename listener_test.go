package pqproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestSocketSurvivesReloads reloads with the same address, which keeps the socket, and with another one: it is
// opened, the old one is closed, and connections that came in by the old one go on.
func TestSocketSurvivesReloads(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	option := fmt.Sprintf("domain app.example.com {\nupstream %s\ncertificate $CHAIN $KEY\n}", up.Addr())
	before, _ := listeningOn(t, "127.0.0.1:0")
	e.load(option)
	if after, addr := listeningOn(t, "127.0.0.1:0"); after != before || addr != e.addr {
		t.Errorf("the reload left another socket, on %s", addr)
	}
	c := e.dial(e.client("app.example.com"))
	echo(t, c, "before")

	e.loadOptions("admin off\n" + strings.ReplaceAll(frontDoor, "127.0.0.1:0", "localhost:0") + "\npqproxy {\n" + option + "\n}")
	if _, err := net.Dial("tcp", e.addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("at the address before, a new connection gets %v", err)
	}
	echo(t, c, "after")
	_, e.addr = listeningOn(t, "localhost:0")
	if err := visit(e.addr, e.client("app.example.com")); err != nil {
		t.Errorf("at the new address: %v", err)
	}
	sockets.Lock()
	defer sockets.Unlock()
	if len(sockets.byAddress) != 1 {
		t.Errorf("there are %d sockets", len(sockets.byAddress))
	}
}

// TestSocketIsExclusive has another socket on the same port: nobody shares it, not even who asks for SO_REUSEPORT,
// as Caddy's own listeners do, and the error says what is taken.
func TestSocketIsExclusive(t *testing.T) {
	pqtest.Leaks(t)
	reusing := func(address string) (net.Listener, error) {
		addr, err := caddy.ParseNetworkAddress("tcp/" + address)
		if err != nil {
			t.Fatal(err)
		}
		ln, err := addr.Listen(t.Context(), 0, net.ListenConfig{})
		if err != nil {
			return nil, err
		}
		return ln.(net.Listener), nil
	}
	e := startEdge(t, "")
	if ln, err := reusing(e.addr); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("on our port, another listener got %v, %v", ln, err)
	}

	taken, err := reusing("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	host, port, _ := net.SplitHostPort(taken.Addr().String())
	if _, err := listen(t.Context(), listenNetwork, host, port, 0, net.ListenConfig{}); !errors.Is(err, syscall.EADDRINUSE) ||
		!strings.HasPrefix(err.Error(), "listening on pqproxy/"+taken.Addr().String()+": ") {
		t.Errorf("on a port that is taken, our listener got %v", err)
	}
	config := strings.ReplaceAll(frontDoor, "127.0.0.1:0", taken.Addr().String())
	err = caddy.Load(e.adapt("admin off\n"+config+"\npqproxy {\n}"), true)
	if err == nil || !strings.Contains(err.Error(), "listening on pqproxy/"+taken.Addr().String()) || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("the config's error is %v", err)
	}
	e.dialTCP() // the config before still listens
}

// TestPlainListener serves on one of Caddy's own listeners, with a warning when it starts.
func TestPlainListener(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	if lines := e.log.all(func(l logLine) bool { return l.str("level") == "warn" && l.str("logger") == "pqproxy" }); len(lines) > 0 {
		t.Errorf("our own listener warns: %v", lines)
	}
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	option := fmt.Sprintf("pqproxy {\ndomain app.example.com {\nupstream %s\ncertificate $CHAIN $KEY\n}\n}", up.Addr())
	// The kernel's choice cannot be had from Caddy; a port that has just been free is taken by others
	// rarely, and not often in a row.
	var err error
	for range 10 {
		var ln net.Listener
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		e.addr = ln.Addr().String()
		ln.Close()
		plain := strings.ReplaceAll(frontDoor, "pqproxy/127.0.0.1:0", e.addr)
		if err = caddy.Load(e.adapt("admin off\n"+plain+"\n"+option), true); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if line := e.log.message("listens without pqproxy/"); line.str("level") != "warn" || line.str("listen") != e.addr ||
		!strings.HasSuffix(line.str("msg"), "write pqproxy/"+e.addr) {
		t.Errorf("the warning is %v", line)
	}
	if err := visit(e.addr, e.client("app.example.com")); err != nil {
		t.Error(err)
	}
	if r := e.log.nextRecord(); r.str("end_reason") != "done" {
		t.Errorf("the record is %v", r)
	}
}

// TestHandles shares one socket between two configs, as during a reload: what one handle does not take
// goes to the other, and the last one closes the socket.
func TestHandles(t *testing.T) {
	pqtest.Leaks(t)
	open := func() *listenHandle {
		h, err := listen(context.Background(), listenNetwork, "127.0.0.1", "0", 0, net.ListenConfig{})
		if err != nil {
			t.Fatal(err)
		}
		return h.(*listenHandle)
	}
	before, after := open(), open()
	defer after.Close()
	if before.Addr() != after.Addr() {
		t.Fatalf("one address has two sockets, %s and %s", before.Addr(), after.Addr())
	}
	for range 2 { // closing twice is closing once
		if err := before.Close(); err != nil {
			t.Error(err)
		}
	}
	for range 20 { // a closed handle takes nothing, ready as it may be
		client := pqtest.DialRaw(t, after.Addr().String())
		if _, err := before.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("a closed handle's Accept returned %v", err)
		}
		got, err := after.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got.RemoteAddr().String() != client.LocalAddr().String() {
			t.Errorf("accepted %s, want %s", got.RemoteAddr(), client.LocalAddr())
		}
		got.Close()
	}
	// Closing the last handle wakes its Accept and refuses who comes.
	waiting := make(chan error, 1)
	go func() { _, err := after.Accept(); waiting <- err }()
	if err := after.Close(); err != nil {
		t.Error(err)
	}
	if err := <-waiting; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept returned %v when its handle was closed", err)
	}
	if _, err := net.Dial("tcp", after.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the last handle, a new connection gets %v", err)
	}
}

// failingListener fails with each of its errors first.
type failingListener struct {
	net.Listener
	errs  []error
	asked atomic.Int64
}

func (l *failingListener) Accept() (net.Conn, error) {
	if n := l.asked.Add(1); n <= int64(len(l.errs)) {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: l.errs[n-1]}
	}
	return l.Listener.Accept()
}

// TestAcceptOutOfDescriptors lets the system refuse connections for a while: the listener says so once, waits,
// and goes on.
func TestAcceptOutOfDescriptors(t *testing.T) {
	pqtest.Leaks(t)
	log := collectLog(t)
	e := &edge{t: t, dir: t.TempDir()}
	e.loadOptions("admin off") // for its log
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	failing := &failingListener{Listener: ln, errs: []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS, syscall.ENOMEM,
	}}
	s := &listenSocket{ln: failing, conns: make(chan net.Conn), done: make(chan struct{})}
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		s.accept(caddy.Log().Named("pqproxy"))
	}()
	client := pqtest.DialRaw(t, ln.Addr().String())
	got := <-s.conns
	if got.RemoteAddr().String() != client.LocalAddr().String() {
		t.Errorf("accepted %s, want %s", got.RemoteAddr(), client.LocalAddr())
	}
	open := admission.open.Load()
	for range 2 { // closing twice is closing once
		got.Close()
	}
	if now := admission.open.Load(); now != open-1 {
		t.Errorf("%d connections are counted after one of %d has ended", now, open)
	}
	ln.Close()
	close(s.done)
	<-accepting
	if n := failing.asked.Load(); n != int64(len(failing.errs))+2 {
		t.Errorf("Accept was called %d times", n)
	}
	line := log.message("accepting connections")
	if line.str("level") != "error" || !strings.Contains(line.str("msg"), "ulimit -n") || !strings.Contains(line.str("error"), syscall.EMFILE.Error()) {
		t.Errorf("the log says %v", line)
	}
	if again := log.all(func(l logLine) bool { return l.str("msg") == line.str("msg") }); len(again) != 1 {
		t.Errorf("it says so %d times", len(again))
	}
}

// TestAcceptWhileBackingOff closes a socket while the system refuses it connections: its loop ends.
func TestAcceptWhileBackingOff(t *testing.T) {
	pqtest.Leaks(t)
	full := &fullListener{asked: make(chan struct{}, 1), closed: make(chan struct{})}
	s := &listenSocket{ln: full, conns: make(chan net.Conn), done: make(chan struct{})}
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		s.accept(zap.NewNop())
	}()
	<-full.asked
	close(full.closed)
	close(s.done)
	<-accepting
}

// fullListener has no descriptor for anybody until it is closed.
type fullListener struct {
	net.Listener
	asked, closed chan struct{}
}

func (*fullListener) Addr() net.Addr { return new(net.TCPAddr) }

func (l *fullListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case l.asked <- struct{}{}:
	default:
	}
	return nil, syscall.EMFILE
}
