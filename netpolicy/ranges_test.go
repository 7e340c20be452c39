package netpolicy

import (
	"errors"
	"net/netip"
	"testing"
)

// TestRanges checks the edges of every special range without any allow: first and last address are in it,
// their neighbours are in what the table says, "" being public.
func TestRanges(t *testing.T) {
	tests := []struct{ before, prefix, class, first, last, after string }{
		{"", "0.0.0.0/32", "unspecified", "0.0.0.0", "0.0.0.0", "this network"},
		{"unspecified", "0.0.0.0/8", "this network", "0.0.0.1", "0.255.255.255", ""},
		{"", "10.0.0.0/8", "private network", "10.0.0.0", "10.255.255.255", ""},
		{"", "100.64.0.0/10", "shared address space", "100.64.0.0", "100.127.255.255", ""},
		{"shared address space", "100.100.100.200/32", "cloud metadata", "100.100.100.200", "100.100.100.200", "shared address space"},
		{"", "127.0.0.0/8", "loopback", "127.0.0.0", "127.255.255.255", ""},
		{"", "168.63.129.16/32", "cloud metadata", "168.63.129.16", "168.63.129.16", ""},
		{"", "169.254.0.0/16", "link-local", "169.254.0.0", "169.254.255.255", ""},
		{"link-local", "169.254.0.23/32", "cloud metadata", "169.254.0.23", "169.254.0.23", "link-local"},
		{"link-local", "169.254.42.42/32", "cloud metadata", "169.254.42.42", "169.254.42.42", "link-local"},
		{"link-local", "169.254.169.254/32", "cloud metadata", "169.254.169.254", "169.254.169.254", "link-local"},
		{"link-local", "169.254.170.2/32", "cloud metadata", "169.254.170.2", "169.254.170.2", "link-local"},
		{"link-local", "169.254.170.23/32", "cloud metadata", "169.254.170.23", "169.254.170.23", "link-local"},
		{"", "172.16.0.0/12", "private network", "172.16.0.0", "172.31.255.255", ""},
		{"", "192.0.0.0/24", "protocol assignments", "192.0.0.0", "192.0.0.255", ""},
		{"protocol assignments", "192.0.0.192/32", "cloud metadata", "192.0.0.192", "192.0.0.192", "protocol assignments"},
		{"", "192.0.2.0/24", "documentation", "192.0.2.0", "192.0.2.255", ""},
		{"", "192.88.99.0/24", "old tunnel", "192.88.99.0", "192.88.99.255", ""},
		{"", "192.168.0.0/16", "private network", "192.168.0.0", "192.168.255.255", ""},
		{"", "198.18.0.0/15", "benchmarking", "198.18.0.0", "198.19.255.255", ""},
		{"", "198.51.100.0/24", "documentation", "198.51.100.0", "198.51.100.255", ""},
		{"", "203.0.113.0/24", "documentation", "203.0.113.0", "203.0.113.255", ""},
		{"", "224.0.0.0/4", "multicast", "224.0.0.0", "239.255.255.255", "reserved"},
		{"multicast", "240.0.0.0/4", "reserved", "240.0.0.0", "255.255.255.254", "broadcast"},
		{"reserved", "255.255.255.255/32", "broadcast", "255.255.255.255", "255.255.255.255", ""},

		{"", "::/128", "unspecified", "::", "::", "loopback"},
		{"unspecified", "::1/128", "loopback", "::1", "::1", "old tunnel"},
		{"loopback", "::/96", "old tunnel", "::2", "::ffff:ffff", "reserved"},
		{"old tunnel", "::/3", "reserved", "::1:0:0", "::fffe:ffff:ffff", "unspecified"}, // then IPv4-mapped 0.0.0.0
		{"reserved", "::ffff:0:0:0/96", "old tunnel", "::ffff:0:0:0", "::ffff:0:ffff:ffff", "reserved"},
		{"reserved", "64:ff9b:1::/48", "local-use NAT64", "64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "reserved"},
		{"reserved", "100::/64", "discard-only", "100::", "100::ffff:ffff:ffff:ffff", "discard-only"},
		{"discard-only", "100:0:0:1::/64", "discard-only", "100:0:0:1::", "100::1:ffff:ffff:ffff:ffff", "reserved"},
		{"discard-only", "::/3", "reserved", "100:0:0:2::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"", "2001::/32", "old tunnel", "2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "protocol assignments"},
		{"old tunnel", "2001::/23", "protocol assignments", "2001:1::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"protocol assignments", "2001:2::/48", "benchmarking", "2001:2::", "2001:2:0:ffff:ffff:ffff:ffff:ffff", "protocol assignments"},
		{"", "2001:db8::/32", "documentation", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"", "2002::/16", "old tunnel", "2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"", "3fff::/20", "documentation", "3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"", "4000::/2", "reserved", "4000::", "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "protocol assignments"},
		{"reserved", "5f00::/16", "protocol assignments", "5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "reserved"},
		{"protocol assignments", "4000::/2", "reserved", "5f01::", "7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "reserved"},
		{"reserved", "8000::/1", "reserved", "8000::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "private network"},
		{"reserved", "fc00::/7", "private network", "fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "reserved"},
		{"private network", "fd00:42::42/128", "cloud metadata", "fd00:42::42", "fd00:42::42", "private network"},
		{"private network", "fd00:c1::a9fe:a9fe/128", "cloud metadata", "fd00:c1::a9fe:a9fe", "fd00:c1::a9fe:a9fe", "private network"},
		{"private network", "fd00:100::100:200/128", "cloud metadata", "fd00:100::100:200", "fd00:100::100:200", "private network"},
		{"private network", "fd00:ec2::23/128", "cloud metadata", "fd00:ec2::23", "fd00:ec2::23", "private network"},
		{"private network", "fd00:ec2::254/128", "cloud metadata", "fd00:ec2::254", "fd00:ec2::254", "private network"},
		{"private network", "fd00:a9fe:a9fe::1/128", "cloud metadata", "fd00:a9fe:a9fe::1", "fd00:a9fe:a9fe::1", "private network"},
		{"private network", "fd20:ce::254/128", "cloud metadata", "fd20:ce::254", "fd20:ce::254", "private network"},
		{"private network", "8000::/1", "reserved", "fe00::", "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "link-local"},
		{"reserved", "fe80::/10", "link-local", "fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "site-local"},
		{"link-local", "fe80::a9fe:a9fe/128", "cloud metadata", "fe80::a9fe:a9fe", "fe80::a9fe:a9fe", "link-local"},
		{"link-local", "fec0::/10", "site-local", "fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "multicast"},
		{"site-local", "ff00::/8", "multicast", "ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
	}
	p := mustNew(t)
	class := func(addr netip.Addr) string {
		var denied *DeniedError
		if errors.As(p.Check(addr), &denied) {
			return denied.Class
		}
		return ""
	}
	seen := map[string]bool{"64:ff9b::/96": true} // see TestEmbeddedAddresses
	for _, tt := range tests {
		seen[tt.prefix] = true
		first, last := netip.MustParseAddr(tt.first), netip.MustParseAddr(tt.last)
		wantDenied(t, p.Check(first), tt.prefix, tt.class)
		wantDenied(t, p.Check(last), tt.prefix, tt.class)
		if before := first.Prev(); before.IsValid() && class(before) != tt.before {
			t.Errorf("%s, before %s: %q, want %q", before, tt.prefix, class(before), tt.before)
		}
		if after := last.Next(); after.IsValid() && class(after) != tt.after {
			t.Errorf("%s, behind %s: %q, want %q", after, tt.prefix, class(after), tt.after)
		}
		if first.Is4() {
			mapped := netip.AddrFrom16(first.As16())
			wantDenied(t, p.Check(mapped), tt.prefix, tt.class)
		}
	}
	for _, r := range ranges {
		if !seen[r.prefix.String()] {
			t.Errorf("%s is in no row", r.prefix)
		}
	}
}

// TestEmbeddedAddresses checks at its edges that NAT64's well-known range, between two reserved ones, is
// judged by the IPv4 address inside, and that the neighbours of IPv4-mapped addresses are none.
func TestEmbeddedAddresses(t *testing.T) {
	p := mustNew(t)
	for text, want := range map[string]string{
		"64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff": "::/3",
		"64:ff9b::":                             "0.0.0.0/32",
		"64:ff9b::ffff:ffff":                    "255.255.255.255/32",
		"64:ff9b::1:0:0":                        "::/3",
		"64:ff9b::169.254.169.254":              "169.254.169.254/32",
		"64:ff9b::127.0.0.1":                    "127.0.0.0/8",
		"::fffe:ffff:ffff":                      "::/3",
		"::ffff:0.0.0.0":                        "0.0.0.0/32",
		"::ffff:255.255.255.255":                "255.255.255.255/32",
		"::1:0:0:0":                             "::/3",
		"::169.254.169.254":                     "::/96",
		"::ffff:0:127.0.0.1":                    "::ffff:0:0:0/96",
		"2002:7f00:1::":                         "2002::/16",
		"2001:0:7f00:1::":                       "2001::/32",
	} {
		var denied *DeniedError
		if err := p.Check(netip.MustParseAddr(text)); !errors.As(err, &denied) || denied.Range.String() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	for _, text := range []string{"64:ff9b::8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::1.0.0.0"} {
		if err := p.Check(netip.MustParseAddr(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}
