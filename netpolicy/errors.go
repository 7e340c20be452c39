package netpolicy

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrLoop is what CheckDial's and Control's errors wrap where an address is a listener of this edge. No entry
// of allow changes that.
var ErrLoop = errors.New("connections to it would come back to this edge without end; name the server behind it")

// Classes of refused addresses that have no range.
const (
	classInvalid = "no address"
	classZone    = "zone"
)

// DeniedError is an address that the policy does not allow.
type DeniedError struct {
	// Addr is the address as it was given: IPv4-mapped where it was so. Invalid: there was none.
	Addr netip.Addr

	// Range is the special range that Addr is in, the narrowest of several. Where Addr carries an IPv4
	// address which decided, Range is that one's. For a zone it is the address itself.
	Range netip.Prefix

	// Class says what Range is for: `unspecified`, `this network`, `loopback`, `link-local`, `cloud
	// metadata`, `private network`, `shared address space`, `site-local`, `benchmarking`, `documentation`,
	// `protocol assignments`, `discard-only`, `local-use NAT64`, `old tunnel`, `multicast`, `broadcast`,
	// `reserved`, or, without a range, `zone` and `no address`.
	Class string
}

// Error tells what Addr is, what is dangerous about it, and which `allow` would open it, if any does.
func (e *DeniedError) Error() string {
	switch e.Class {
	case classInvalid:
		return `no address was given, and upstream_policy can "allow" none; give one`
	case classZone:
		return fmt.Sprintf(`%s has a zone, which picks an interface of this host, and no "allow" in upstream_policy permits that; leave the zone out`, e.Addr)
	}
	subject := e.Addr.String()
	if inner := e.Addr.Unmap(); e.Range.Addr().Is4() && inner.Is6() {
		subject += fmt.Sprintf(" (IPv4 %s inside)", lastFour(inner))
	}
	r := rangeOf(e.Range)
	if r == nil {
		return fmt.Sprintf(`%s is in %s (%s); upstream_policy does not "allow" it`, subject, e.Range, e.Class)
	}
	text := fmt.Sprintf("%s is in %s (%s, %s), %s; ", subject, r.prefix, r.class.name, r.source, r.class.danger)
	switch {
	case r.opening == never:
		return text + `no "allow" in upstream_policy permits it`
	case r.embeds:
		return text + `"allow" the translator's /96 of it in upstream_policy, and what may be reached of IPv4, to permit it`
	case r.prefix.IsSingleIP():
		return text + fmt.Sprintf(`"allow %s" in upstream_policy, and nothing wider, permits it`, r.prefix.Addr())
	case r.opening == byName:
		return text + fmt.Sprintf(`"allow %s" in upstream_policy, or a part of it, but nothing wider, permits it`, r.prefix)
	}
	return text + fmt.Sprintf(`"allow %s" in upstream_policy, or the part that is meant, permits it`, r.prefix)
}
