package netpolicy

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// WithOwn returns a copy of p that also refuses, with an error that wraps ErrLoop, what reaches a listener
// of this edge. A nil Policy becomes one that allows everything else: an upstream that the operator wrote
// can point back by mistake as well. A nil listeners takes the check away.
//
// listeners returns the addresses that are listened on, as net.Listener's Addr has them. One on 0.0.0.0 owns
// its port on all IPv4 addresses of this host, one on :: on the IPv6 addresses too. Addresses that a router
// translates to this host's, such as a cloud's public ones, are on no interface: list them as well where
// they are known. It is called for each connection, by any number of goroutines at a time, and must not
// block; what it returns is not changed.
//
// Where the addresses of this host are asked for and cannot be read, the error of the system is returned.
func (p *Policy) WithOwn(listeners func() []netip.AddrPort) *Policy {
	if p == nil {
		p = &Policy{everywhere: true}
	}
	with := *p
	with.own = nil
	if listeners != nil {
		with.own = &ownListeners{listeners: listeners, host: &hostAddrs{list: net.InterfaceAddrs}}
	}
	return &with
}

// ownListeners knows where this edge listens.
type ownListeners struct {
	listeners func() []netip.AddrPort
	host      *hostAddrs
}

// check returns an error that wraps ErrLoop if a connection to that address ends at a listener.
func (o *ownListeners) check(to netip.AddrPort) error {
	addr := to.Addr().Unmap().WithZone("")
	if r := find(addr); r != nil && r.opening == always {
		addr = lastFour(addr) // the translator sends it back
	}
	for _, l := range o.listeners() {
		if l.Port() != to.Port() {
			continue
		}
		owned, err := o.owns(l.Addr().Unmap().WithZone(""), addr)
		if err != nil {
			return fmt.Errorf("looking for %s among the addresses of this host: %w", to, err)
		}
		if owned {
			return fmt.Errorf("%s is where this edge listens (%s): %w", to, l, ErrLoop)
		}
	}
	return nil
}

// owns reports whether a listener on one address, of the right port, accepts connections to another.
func (o *ownListeners) owns(listener, addr netip.Addr) (bool, error) {
	switch {
	case listener == addr:
		return true, nil
	case addr.IsUnspecified(): // connect(2) takes it for the loopback address
		return listener.IsUnspecified() || listener.IsLoopback(), nil
	case !listener.IsUnspecified(), listener.Is4() && addr.Is6():
		return false, nil
	case addr.IsLoopback(): // all of 127.0.0.0/8, of which interfaces have one
		return true, nil
	}
	return o.host.have(addr)
}

// hostAddrsAge is how long the addresses of this host are remembered: asking the system takes far longer
// than judging an address, and one that comes up later is known soon enough to end a loop.
const hostAddrsAge = 5 * time.Second

// hostAddrs are the addresses of this host's interfaces. Goroutines that find them too old at the same time
// all read them; none waits for another.
type hostAddrs struct {
	list func() ([]net.Addr, error) // net.InterfaceAddrs
	last atomic.Pointer[hostAddrsRead]
}

type hostAddrsRead struct {
	at    time.Time
	addrs map[netip.Addr]struct{}
}

// have reports whether an interface has the address.
func (h *hostAddrs) have(addr netip.Addr) (bool, error) {
	last := h.last.Load()
	if last == nil || time.Since(last.at) >= hostAddrsAge {
		var err error
		if last, err = h.read(); err != nil {
			return false, err
		}
		h.last.Store(last)
	}
	_, ok := last.addrs[addr]
	return ok, nil
}

func (h *hostAddrs) read() (*hostAddrsRead, error) {
	all, err := h.list()
	if err != nil {
		return nil, err
	}
	read := &hostAddrsRead{at: time.Now(), addrs: make(map[netip.Addr]struct{}, len(all))}
	for _, a := range all {
		ipNet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if addr, ok := netip.AddrFromSlice(ipNet.IP); ok {
			read.addrs[addr.Unmap()] = struct{}{}
		}
	}
	return read, nil
}
