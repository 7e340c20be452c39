package pqproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// listenNetwork is the network that layer4 servers listen on: `pqproxy/:443`.
const listenNetwork = "pqproxy"

func init() {
	caddy.RegisterNetwork(listenNetwork, listen)
}

// sockets are the listening sockets of this process, by address, those of plain HTTP by `http/` and address. A socket
// stays open while any config listens on it, so that a reload hands it over: closing it and opening another with
// SO_REUSEPORT, as Caddy's own networks do, resets the connections that wait in the old one's queue.
var sockets = struct {
	sync.Mutex
	byAddress map[string]*listenSocket
}{byAddress: make(map[string]*listenSocket)}

// listening are the addresses of sockets, for those who may not wait for its lock.
var listening atomic.Pointer[[]netip.AddrPort]

// ownListeners returns the addresses that this process listens on for clients. They are not to be changed.
func ownListeners() []netip.AddrPort {
	if addrs := listening.Load(); addrs != nil {
		return *addrs
	}
	return nil
}

// noteListening brings listening up to date. Call it with the lock of sockets held.
func noteListening() {
	var addrs []netip.AddrPort
	for _, s := range sockets.byAddress {
		addrs = append(addrs, addrPort(s.ln.Addr()))
	}
	listening.Store(&addrs)
}

// admission counts the connections that came in by listenNetwork and closes those over the limit.
var admission admissionControl

type admissionControl struct {
	open    atomic.Int64
	limit   atomic.Int64                   // 0: none set yet
	refused atomic.Pointer[func(net.Conn)] // leaves the record of a refused connection
}

// admit counts a connection in, or reports that the limit is reached.
func (a *admissionControl) admit() bool {
	open := a.open.Add(1)
	if limit := a.limit.Load(); limit > 0 && open > limit {
		a.open.Add(-1)
		return false
	}
	return true
}

// listenSocket accepts for all configs that listen on its address.
type listenSocket struct {
	ln      net.Listener
	admit   func(*net.TCPConn) net.Conn // counts a connection in; it returns nil for one too many. nil: admitClient
	conns   chan net.Conn               // accepted, for whichever handle asks first
	handles int                         // guarded by sockets
	done    chan struct{}               // closed when the last handle is
}

// listen is the caddy.ListenerFunc of listenNetwork. It does not set SO_REUSEPORT: a second process on
// the port fails to bind instead of taking half of the connections.
func listen(ctx context.Context, _, host, portRange string, offset uint, cfg net.ListenConfig) (any, error) {
	first, _, err := caddyPortRange(portRange)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(host, strconv.FormatUint(uint64(first+offset), 10))
	h, err := hold(ctx, address, address, cfg, "listening", nil)
	if err != nil {
		return nil, fmt.Errorf("listening on %s/%s: %w", listenNetwork, address, err)
	}
	return h, nil
}

// hold returns a handle on the socket of that key, which is opened on the address if nobody has it: then it logs opened.
func hold(ctx context.Context, key, address string, cfg net.ListenConfig, opened string, admit func(*net.TCPConn) net.Conn) (*listenHandle, error) {
	sockets.Lock()
	defer sockets.Unlock()
	s := sockets.byAddress[key]
	if s == nil {
		ln, err := cfg.Listen(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		s = &listenSocket{ln: ln, admit: admit, conns: make(chan net.Conn), done: make(chan struct{})}
		sockets.byAddress[key] = s
		noteListening()
		logger := caddy.Log().Named("pqproxy")
		logger.Info(opened, zap.String("address", ln.Addr().String()))
		go s.accept(logger)
	}
	s.handles++
	return &listenHandle{listenSocket: s, key: key, closed: make(chan struct{})}, nil
}

// caddyPortRange reads the port or ports of a listener address as Caddy hands them to a ListenerFunc.
func caddyPortRange(ports string) (first, last uint, err error) {
	addr, err := caddy.ParseNetworkAddress("tcp/:" + ports)
	return addr.StartPort, addr.EndPort, err
}

// acceptBackoff bounds how long accept waits after the system refused it a descriptor or memory. Its
// longest is short: the next connection that ends makes room.
const acceptBackoffMin, acceptBackoffMax = 5 * time.Millisecond, 200 * time.Millisecond

// accept takes connections until the socket is closed, which its last handle does. caddy-l4's own loop
// ends at the first error; this one waits for errors to pass.
func (s *listenSocket) accept(logger *zap.Logger) {
	admit := s.admit
	if admit == nil {
		admit = admitClient
	}
	backoff := time.Duration(0)
	for {
		c, err := s.ln.Accept()
		switch {
		case err == nil:
			backoff = 0
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, syscall.ECONNABORTED):
			continue
		default:
			if backoff == 0 {
				logger.Error("accepting connections: is the descriptor limit (ulimit -n) too low?",
					zap.String("address", s.ln.Addr().String()), zap.Error(err))
			}
			backoff = min(max(2*backoff, acceptBackoffMin), acceptBackoffMax)
			select {
			case <-time.After(backoff):
			case <-s.done:
			}
			continue
		}
		conn := admit(c.(*net.TCPConn))
		if conn == nil {
			_ = c.Close()
			continue
		}
		select {
		case s.conns <- conn:
		case <-s.done:
			_ = conn.Close()
		}
	}
}

// admitClient counts in a connection of listenNetwork.
func admitClient(c *net.TCPConn) net.Conn {
	if !admission.admit() {
		if refused := admission.refused.Load(); refused != nil {
			(*refused)(c)
		}
		return nil
	}
	return &acceptedConn{TCPConn: c, accepted: time.Now()}
}

// listenHandle is one config's hold on a socket.
type listenHandle struct {
	*listenSocket
	key    string
	once   sync.Once
	closed chan struct{}
}

// Accept returns the next connection, as admit of its socket did. Its only error is net.ErrClosed.
func (h *listenHandle) Accept() (net.Conn, error) {
	select {
	case <-h.closed: // asked first: both may be ready
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close lets the socket go; the last handle closes it.
func (h *listenHandle) Close() error {
	var err error
	h.once.Do(func() {
		close(h.closed)
		sockets.Lock()
		defer sockets.Unlock()
		if h.handles--; h.handles > 0 {
			return
		}
		delete(sockets.byAddress, h.key)
		noteListening()
		err = h.ln.Close()
		close(h.done)
	})
	return err
}

// Addr is the address that the socket is bound to.
func (h *listenHandle) Addr() net.Addr { return h.ln.Addr() }

// acceptedConn is a connection that admission has counted.
type acceptedConn struct {
	*net.TCPConn
	accepted time.Time
	detached atomic.Bool
	counted  sync.Once
}

// detach makes the connection the caller's alone: Close, which caddy-l4 calls when its handlers return, does
// nothing from then on. Close of what detach returns closes it.
func (c *acceptedConn) detach() net.Conn {
	c.detached.Store(true)
	return detachedConn{c}
}

// Close closes the connection and counts it out, unless it is detached.
func (c *acceptedConn) Close() error {
	if c.detached.Load() {
		return nil
	}
	return c.close()
}

func (c *acceptedConn) close() error {
	c.counted.Do(func() { admission.open.Add(-1) })
	return c.TCPConn.Close()
}

// detachedConn is an acceptedConn in the hands of its only owner.
type detachedConn struct{ *acceptedConn }

func (c detachedConn) Close() error { return c.close() }
