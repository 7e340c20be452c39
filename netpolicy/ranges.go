package netpolicy

import (
	"cmp"
	"net/netip"
	"slices"
)

// opening says which entries of allow open a range.
type opening int

const (
	byAny  opening = iota // any that covers the address
	byName                // those that lie within the range
	never                 // none
	always                // open without; the address inside decides
)

// class is what a range is for.
type class struct {
	name    string
	danger  string // follows "ADDRESS is in RANGE (NAME, SOURCE), "
	opening opening
	embeds  bool // the last 32 bits are an IPv4 address that is judged as well
}

var (
	unspecified   = &class{name: "unspecified", danger: "which reaches this host itself", opening: never}
	thisNetwork   = &class{name: "this network", danger: "which names no host of any other network"}
	loopback      = &class{name: "loopback", danger: "where services trust whoever is on this host", opening: byName}
	linkLocal     = &class{name: "link-local", danger: "where the neighbours of this host are", opening: byName}
	metadata      = &class{name: "cloud metadata", danger: "which gives the credentials of this machine to whoever asks from it", opening: byName}
	private       = &class{name: "private network", danger: "where only this network's own hosts are"}
	shared        = &class{name: "shared address space", danger: "where the carrier's or an overlay's hosts are"}
	siteLocal     = &class{name: "site-local", danger: "where only this site's own hosts are"}
	benchmarking  = &class{name: "benchmarking", danger: "where only test networks are"}
	documentation = &class{name: "documentation", danger: "which stands for an address in examples"}
	assignments   = &class{name: "protocol assignments", danger: "which is for protocols, not for servers"}
	discard       = &class{name: "discard-only", danger: "where packets are dropped"}
	nat64         = &class{name: "NAT64", danger: "where the IPv4 address inside decides", opening: always, embeds: true}
	nat64Local    = &class{name: "local-use NAT64", danger: "where a translator of this network reaches IPv4", opening: byName, embeds: true}
	oldTunnel     = &class{name: "old tunnel", danger: "which hides an IPv4 address", opening: never}
	multicast     = &class{name: "multicast", danger: "which is no single server", opening: never}
	broadcast     = &class{name: "broadcast", danger: "which is no single server", opening: never}
	reserved      = &class{name: "reserved", danger: "which no public server has"}
)

// specialRange is a range of addresses that are refused unless they are opened.
type specialRange struct {
	prefix netip.Prefix
	*class
	source string
	index  int // in ranges
}

// ranges are all special ranges, narrow ones before the wider ones that they lie in: the first that has an
// address judges it. They follow the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890) in all
// that these do not call globally reachable, and refuse the few anycast addresses of protocols in
// 192.0.0.0/24 and 2001::/23 with them. Of IPv6, IANA has given out 2000::/3 only: the last three ranges are
// the rest, so that what is assigned in future is refused until it is known. Metadata addresses have no
// registry; each is documented by its cloud.
var ranges = sorted([]specialRange{
	special("0.0.0.0/32", unspecified, "RFC 1122 section 3.2.1.3"),
	special("0.0.0.0/8", thisNetwork, "RFC 791 section 3.2"),
	special("10.0.0.0/8", private, "RFC 1918"),
	special("100.64.0.0/10", shared, "RFC 6598"),
	special("127.0.0.0/8", loopback, "RFC 1122 section 3.2.1.3"),
	special("169.254.0.0/16", linkLocal, "RFC 3927"),
	special("172.16.0.0/12", private, "RFC 1918"),
	special("192.0.0.0/24", assignments, "RFC 6890 section 2.1"),
	special("192.0.2.0/24", documentation, "RFC 5737"),
	special("192.88.99.0/24", oldTunnel, "6to4 relays, RFC 7526"),
	special("192.168.0.0/16", private, "RFC 1918"),
	special("198.18.0.0/15", benchmarking, "RFC 2544"),
	special("198.51.100.0/24", documentation, "RFC 5737"),
	special("203.0.113.0/24", documentation, "RFC 5737"),
	special("224.0.0.0/4", multicast, "RFC 5771"),
	special("240.0.0.0/4", reserved, "RFC 1112 section 4"),
	special("255.255.255.255/32", broadcast, "RFC 919 section 7"),

	special("::/128", unspecified, "RFC 4291 section 2.5.2"),
	special("::1/128", loopback, "RFC 4291 section 2.5.3"),
	special("::/96", oldTunnel, "IPv4-compatible, RFC 4291 section 2.5.5.1"),
	special("::ffff:0:0:0/96", oldTunnel, "IPv4-translated, RFC 2765 section 2.1"),
	special("64:ff9b::/96", nat64, "RFC 6052 section 2.1"),
	special("64:ff9b:1::/48", nat64Local, "RFC 8215"),
	special("100::/64", discard, "RFC 6666"),
	special("100:0:0:1::/64", discard, "RFC 9780"),
	special("2001::/23", assignments, "RFC 2928"),
	special("2001::/32", oldTunnel, "Teredo, RFC 4380"),
	special("2001:2::/48", benchmarking, "RFC 5180"),
	special("2001:db8::/32", documentation, "RFC 3849"),
	special("2002::/16", oldTunnel, "6to4, RFC 3056"),
	special("3fff::/20", documentation, "RFC 9637"),
	special("5f00::/16", assignments, "segment routing, RFC 9602"),
	special("fc00::/7", private, "RFC 4193"),
	special("fe80::/10", linkLocal, "RFC 4291 section 2.5.6"),
	special("fec0::/10", siteLocal, "RFC 3879"),
	special("ff00::/8", multicast, "RFC 4291 section 2.7"),

	special("169.254.169.254/32", metadata, "EC2, Azure, Google Cloud, Oracle Cloud, DigitalOcean, OpenStack and others"),
	special("169.254.170.2/32", metadata, "Amazon ECS task credentials"),
	special("169.254.170.23/32", metadata, "Amazon EKS pod identity"),
	special("169.254.42.42/32", metadata, "Scaleway"),
	special("169.254.0.23/32", metadata, "Tencent Cloud"),
	special("100.100.100.200/32", metadata, "Alibaba Cloud"),
	special("168.63.129.16/32", metadata, "Azure WireServer"),
	special("192.0.0.192/32", metadata, "Oracle Cloud Classic"),
	special("fd00:ec2::254/128", metadata, "EC2"),
	special("fd00:ec2::23/128", metadata, "Amazon EKS pod identity"),
	special("fd20:ce::254/128", metadata, "Google Cloud"),
	special("fd00:c1::a9fe:a9fe/128", metadata, "Oracle Cloud"),
	special("fd00:42::42/128", metadata, "Scaleway"),
	special("fd00:100::100:200/128", metadata, "Alibaba Cloud"),
	special("fd00:a9fe:a9fe::1/128", metadata, "Akamai Cloud"),
	special("fe80::a9fe:a9fe/128", metadata, "OpenStack"),

	special("::/3", reserved, "outside 2000::/3, RFC 4291 section 2.4"),
	special("4000::/2", reserved, "outside 2000::/3, RFC 4291 section 2.4"),
	special("8000::/1", reserved, "outside 2000::/3, RFC 4291 section 2.4"),
})

// byFirstByte4 and byFirstByte6 list, in the order of ranges, those that have addresses with a first byte.
// Most bytes have none or one: looking through all ranges would take ten times as long.
var byFirstByte4, byFirstByte6 = index(ranges)

func special(prefix string, c *class, source string) specialRange {
	return specialRange{prefix: netip.MustParsePrefix(prefix), class: c, source: source}
}

func sorted(all []specialRange) []specialRange {
	slices.SortStableFunc(all, func(a, b specialRange) int { return cmp.Compare(b.prefix.Bits(), a.prefix.Bits()) })
	for i := range all {
		all[i].index = i
	}
	return all
}

func index(all []specialRange) (v4, v6 [256][]*specialRange) {
	for i := range all {
		r := &all[i]
		lists := &v6
		if r.prefix.Addr().Is4() {
			lists = &v4
		}
		first := int(r.prefix.Addr().AsSlice()[0])
		for b := range 1 << max(8-r.prefix.Bits(), 0) {
			lists[first+b] = append(lists[first+b], r)
		}
	}
	return v4, v6
}

// find returns the narrowest special range that has addr, which is not IPv4-mapped; nil where it is public.
func find(addr netip.Addr) *specialRange {
	var list []*specialRange
	if addr.Is4() {
		bytes := addr.As4()
		list = byFirstByte4[bytes[0]]
	} else {
		bytes := addr.As16()
		list = byFirstByte6[bytes[0]]
	}
	for _, r := range list {
		if r.prefix.Contains(addr) {
			return r
		}
	}
	return nil
}

// findPrefix returns the narrowest special range that has all of prefix, or nil.
func findPrefix(prefix netip.Prefix) *specialRange {
	i := slices.IndexFunc(ranges, func(r specialRange) bool { return covers(r.prefix, prefix) })
	if i < 0 {
		return nil
	}
	return &ranges[i]
}

// rangeOf returns the special range with that prefix, or nil.
func rangeOf(prefix netip.Prefix) *specialRange {
	if r := findPrefix(prefix); r != nil && r.prefix == prefix {
		return r
	}
	return nil
}

// covers reports whether all of inner is in outer.
func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// lastFour returns the IPv4 address in the last 32 bits of an IPv6 address, where IPv4-mapped addresses and
// a NAT64 /96 have it (RFC 6052 section 2.2).
func lastFour(addr netip.Addr) netip.Addr {
	bytes := addr.As16()
	return netip.AddrFrom4([4]byte(bytes[12:]))
}
