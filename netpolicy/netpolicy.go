// Package netpolicy decides where this program connects on behalf of others. A tenant names the upstreams of
// its domains; without a policy it could name what only this host can reach: the services on its loopback,
// the cloud's metadata service with the credentials of the machine, the operator's private network.
//
// Everything that is no public unicast address is refused; the operator opens what tenants are meant to reach:
//
//	policy, err := netpolicy.New([]string{"10.0.0.0/8"})
//	if err != nil {
//		return err
//	}
//	dialer := net.Dialer{Control: policy.Control}
//
// Control judges the address that is connected to, after names have been resolved, so that a name which
// resolves to something else the second time gains nothing. CheckDial judges records when they come in, to
// tell their owner at once; it does not replace Control.
//
// What no policy in this process can see is what routers do to an address: a NAT64 prefix of the operator's
// own, a public address that is translated to a private one. A network where that matters needs a firewall.
package netpolicy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
)

// Policy says which addresses may be connected to. A nil Policy allows all of them: it is for upstreams that
// the operator wrote into the configuration. Policies never change and are for any number of goroutines.
type Policy struct {
	everywhere bool             // made from a nil Policy: only own is checked
	open       [][]netip.Prefix // what is allowed in each of ranges, by its index
	own        *ownListeners    // nil: none
}

// New returns a policy that allows public addresses and, of the special ranges, what allow opens. Entries
// are ranges in CIDR notation or single addresses, of IPv4 or IPv6; nil opens nothing. All faulty entries
// are reported at once, joined, each with what to write instead.
//
// Private networks and most other ranges are opened by any entry that covers the address, 0.0.0.0/0 and
// ::/0 included. Loopback, link-local, local-use NAT64 and cloud metadata addresses are opened only by an
// entry that lies within that very range: 127.0.0.0/8 opens loopback and 0.0.0.0/0 does not; 169.254.169.254
// opens that address and 169.254.0.0/16 does not. Whoever opens them has then written so. Unspecified,
// multicast and broadcast addresses and those of the old IPv6 tunnels (IPv4-compatible, IPv4-translated,
// 6to4, Teredo) are never opened, and entries for them alone are faults.
//
// An address that carries an IPv4 address is judged by that one: IPv4-mapped and NAT64 (64:ff9b::/96, RFC
// 6052) addresses always, local-use NAT64 (64:ff9b:1::/48, RFC 8215) once an entry has said where the
// translator's /96 is.
func New(allow []string) (*Policy, error) {
	p := &Policy{open: make([][]netip.Prefix, len(ranges))}
	var faults []error
	for _, text := range allow {
		entry, err := parseEntry(text)
		if err == nil {
			err = p.allow(entry)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("allow %q: %w", text, err))
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return p, nil
}

// parseEntry reads a range or an address. What is written as IPv4-mapped IPv6 becomes IPv4, as which it is
// judged.
func parseEntry(text string) (netip.Prefix, error) {
	host, _, ranged := strings.Cut(text, "/")
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{}, errors.New("is no address and no range; write 10.0.0.0/8, 10.0.0.5 or fd12:3456::/32 (names are judged by the addresses they resolve to)")
	}
	if addr.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("has a zone, which names an interface of one host; write %s", addr.WithZone(""))
	}
	if !ranged {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	entry, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("has no usable prefix length; write a number from 0 to %d behind the slash", addr.BitLen())
	}
	if entry != entry.Masked() {
		return netip.Prefix{}, fmt.Errorf("has bits beyond its prefix length; write %s for the range or %s for the address", entry.Masked(), addr)
	}
	if addr.Is4In6() && entry.Bits() >= 96 {
		return netip.PrefixFrom(addr.Unmap(), entry.Bits()-96), nil
	}
	return entry, nil
}

// allow opens entry in every range that it can open. It faults an entry that opens nothing where its author
// must have meant to.
func (p *Policy) allow(entry netip.Prefix) error {
	if r := findPrefix(entry); r != nil {
		switch {
		case r.opening == never:
			return fmt.Errorf("is in %s (%s, %s), which is never allowed; remove it", r.prefix, r.class.name, r.source)
		case r.opening == always:
			inner := lastFour(entry.Addr())
			return fmt.Errorf("is in %s (%s, %s), where the IPv4 address inside decides; write %s", r.prefix, r.class.name, r.source, netip.PrefixFrom(inner, max(entry.Bits()-96, 0)))
		case r.embeds && entry.Bits() < 96:
			return fmt.Errorf("is in %s (%s, %s) and wider than a translator's range; write its /96, such as %s/96, because the IPv4 address inside is judged too and its place depends on that", r.prefix, r.class.name, r.source, entry.Addr())
		}
	}
	for i := range ranges {
		r := &ranges[i]
		if r.opening == byAny && r.prefix.Overlaps(entry) || r.opening == byName && covers(r.prefix, entry) {
			p.open[i] = append(p.open[i], entry)
		}
	}
	return nil
}

// Check judges an address. It returns nil or a *DeniedError. Addresses with a zone are refused whatever is
// allowed: a zone names an interface of this host (RFC 4007 section 11). The zero Addr is refused too.
//
// It allocates nothing for what is allowed.
func (p *Policy) Check(addr netip.Addr) error {
	if p == nil || p.everywhere {
		return nil
	}
	if !addr.IsValid() {
		return &DeniedError{Class: classInvalid}
	}
	if addr.Zone() != "" {
		plain := addr.Unmap().WithZone("")
		return &DeniedError{Addr: addr, Range: netip.PrefixFrom(plain, plain.BitLen()), Class: classZone}
	}
	target := addr.Unmap()
	for {
		r := find(target)
		if r == nil {
			return nil
		}
		if r.opening != always && !contains(p.open[r.index], target) {
			return &DeniedError{Addr: addr, Range: r.prefix, Class: r.class.name}
		}
		if !r.embeds {
			return nil
		}
		target = lastFour(target) // IPv4: the next round is the last
	}
}

// CheckDial judges the address of an upstream as a record has it, host:port. A literal address gets Check's
// *DeniedError, or an error that wraps ErrLoop where it is one of the listeners that WithOwn tells of. A
// name passes: Control judges what it resolves to. A nil Policy lets pass everything else too; any other
// refuses unix sockets and what is no address, which records from outside cannot have.
func (p *Policy) CheckDial(dial string) error {
	if p == nil {
		return nil
	}
	host, portText, err := net.SplitHostPort(dial)
	if err != nil || strings.Contains(host, "/") {
		return p.refuseOther(dial)
	}
	if host == "" {
		host = noHost
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nil
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return fmt.Errorf("%q has no port in numbers, so that what it reaches cannot be judged; give one from 1 to 65535", dial)
	}
	return p.checkAddrPort(netip.AddrPortFrom(addr, uint16(port)))
}

// Control is for the field of that name of net.Dialer, which calls it for each address it is about to
// connect to. What it returns ends that attempt before a packet is sent, and comes out of DialContext in a
// *net.OpError, so that errors.As finds the *DeniedError and errors.Is finds ErrLoop. The RawConn is not
// used and may be nil. A nil Policy has a Control as well, which allows everything.
//
// Where the Dialer has a ControlContext, package net does not call Control: call it from there.
func (p *Policy) Control(network, address string, _ syscall.RawConn) error {
	if p == nil {
		return nil
	}
	if strings.HasPrefix(address, ":") {
		address = "[" + noHost + "]" + address
	}
	to, err := netip.ParseAddrPort(address)
	if err != nil || strings.HasPrefix(network, "unix") {
		return p.refuseOther(address)
	}
	return p.checkAddrPort(to)
}

// noHost is what package net takes a missing host for: this one.
const noHost = "::"

// refuseOther is the answer to what is no address and port of the Internet protocols.
func (p *Policy) refuseOther(address string) error {
	if p.everywhere {
		return nil
	}
	return fmt.Errorf("%q is no IP address with a port, and may reach what trusts this host; upstream_policy can allow nothing else", address)
}

// checkAddrPort asks for loops first: that an address is the edge's own tells its owner more than that it
// is private.
func (p *Policy) checkAddrPort(to netip.AddrPort) error {
	if p.own != nil {
		if err := p.own.check(to); err != nil {
			return err
		}
	}
	return p.Check(to.Addr())
}

// contains reports whether one of prefixes has addr.
func contains(prefixes []netip.Prefix, addr netip.Addr) bool {
	for _, prefix := range prefixes {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}
