package netpolicy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func mustNew(t testing.TB, allow ...string) *Policy {
	t.Helper()
	p, err := New(allow)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// wantDenied checks that err is a *DeniedError of a range and class, which names the range and `allow`.
func wantDenied(t *testing.T, err error, prefix, class string) {
	t.Helper()
	var denied *DeniedError
	if !errors.As(err, &denied) {
		t.Fatalf("got %v, want a DeniedError", err)
	}
	if denied.Range.String() != prefix || denied.Class != class {
		t.Errorf("denied as %s (%s), want %s (%s)", denied.Range, denied.Class, prefix, class)
	}
	if text := err.Error(); class != "zone" && !strings.Contains(text, denied.Range.String()) || !strings.Contains(text, `allow`) {
		t.Errorf("text %q names not both the range and allow", text)
	}
}

func TestCheckAllow(t *testing.T) {
	tests := []struct {
		name   string
		allow  []string
		open   []string
		closed []string
	}{
		{
			name:   "private network",
			allow:  []string{"10.0.0.0/8"},
			open:   []string{"10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "8.8.8.8", "2606:4700::1"},
			closed: []string{"172.16.0.1", "192.168.0.1", "127.0.0.1", "169.254.169.254", "fc00::1", "64:ff9b:1::10.1.2.3"},
		},
		{
			name:   "part of a range, and one address",
			allow:  []string{"192.168.7.0/24", "172.16.0.9", "fd12:3456::/32", "fd00::9"},
			open:   []string{"192.168.7.0", "192.168.7.255", "172.16.0.9", "fd12:3456::", "fd12:3456:ffff:ffff:ffff:ffff:ffff:ffff", "fd00::9"},
			closed: []string{"192.168.6.255", "192.168.8.0", "172.16.0.8", "172.16.0.10", "fd12:3457::", "fd12:3455:ffff::", "fd00::8"},
		},
		{
			name:   "IPv4-mapped entries are IPv4",
			allow:  []string{"::ffff:10.0.0.0/104", "::ffff:192.168.0.1"},
			open:   []string{"10.0.0.1", "::ffff:10.0.0.1", "192.168.0.1"},
			closed: []string{"172.16.0.1", "192.168.0.2"},
		},
		{
			name:  "everything of IPv4",
			allow: []string{"0.0.0.0/0"},
			open:  []string{"10.0.0.1", "100.64.0.1", "198.18.0.1", "192.0.2.1", "192.0.0.1", "240.0.0.1", "255.255.255.254", "0.0.0.1"},
			closed: []string{"127.0.0.1", "169.254.1.1", "169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192",
				"0.0.0.0", "224.0.0.1", "255.255.255.255", "192.88.99.1", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1"},
		},
		{
			name:  "everything of IPv6",
			allow: []string{"::/0"},
			open:  []string{"fc00::1", "fec0::1", "100::1", "2001:db8::1", "2001:1::1", "5f00::1", "200::1", "64:ff9b::8.8.8.8"},
			closed: []string{"::", "::1", "fe80::1", "ff02::1", "fd00:ec2::254", "fd20:ce::254", "2002:808:808::1", "2001::1", "::8.8.8.8",
				"::ffff:0:8.8.8.8", "64:ff9b:1::8.8.8.8", "10.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::0.0.0.0"},
		},
		{
			name:   "halves of everything open no more than everything",
			allow:  []string{"0.0.0.0/1", "128.0.0.0/1", "126.0.0.0/7", "169.254.0.0/15", "::/1", "8000::/1", "fe00::/7"},
			open:   []string{"10.0.0.1", "192.168.0.1", "fc00::1"},
			closed: []string{"127.0.0.1", "169.254.1.1", "169.254.169.254", "::1", "fe80::1", "ff00::1"},
		},
		{
			name:   "loopback by name",
			allow:  []string{"127.0.0.0/8", "::1"},
			open:   []string{"127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1"},
			closed: []string{"0.0.0.0", "::", "169.254.1.1", "fe80::1", "::127.0.0.1"},
		},
		{
			name:   "link-local by name opens no metadata",
			allow:  []string{"169.254.0.0/16", "fe80::/10", "100.64.0.0/10", "fc00::/7", "168.63.0.0/16"},
			open:   []string{"169.254.1.1", "fe80::1", "100.64.0.1", "fd00::1"},
			closed: []string{"169.254.169.254", "169.254.170.2", "fe80::a9fe:a9fe", "100.100.100.200", "fd00:ec2::254", "168.63.129.16"},
		},
		{
			name:   "metadata by name",
			allow:  []string{"169.254.169.254", "fd00:ec2::254/128"},
			open:   []string{"169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254"},
			closed: []string{"169.254.169.253", "fd00:ec2::253", "169.254.170.2", "fd00:ec2::23"},
		},
		{
			name:   "local-use NAT64 opens what is public of IPv4",
			allow:  []string{"64:ff9b:1:ffff::/96"},
			open:   []string{"64:ff9b:1:ffff::8.8.8.8"},
			closed: []string{"64:ff9b:1:ffff::10.0.0.1", "64:ff9b:1:ffff::169.254.169.254", "64:ff9b:1:fffe::8.8.8.8", "10.0.0.1"},
		},
		{
			name:   "local-use NAT64 with an IPv4 range",
			allow:  []string{"64:ff9b:1::/96", "10.0.0.0/8"},
			open:   []string{"64:ff9b:1::10.0.0.1"},
			closed: []string{"64:ff9b:1::192.168.0.1", "64:ff9b:1::127.0.0.1", "64:ff9b:1::"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := mustNew(t, tt.allow...)
			for _, text := range tt.open {
				if err := p.Check(netip.MustParseAddr(text)); err != nil {
					t.Errorf("%s: %v", text, err)
				}
			}
			for _, text := range tt.closed {
				if err := p.Check(netip.MustParseAddr(text)); err == nil {
					t.Errorf("%s is allowed", text)
				}
			}
		})
	}
}

func TestNewFaults(t *testing.T) {
	tests := []struct{ entry, want string }{
		{"", "is no address and no range; write 10.0.0.0/8"},
		{"/8", "is no address and no range"},
		{"app.internal", "names are judged by the addresses they resolve to"},
		{"10.0.0.0/8 ", "write a number from 0 to 32"},
		{" 10.0.0.0/8", "is no address and no range"},
		{"010.0.0.0/8", "is no address and no range"},
		{"10/8", "is no address and no range"},
		{"10.0.0.5:8443", "is no address and no range"},
		{"10.0.0.0/33", "write a number from 0 to 32"},
		{"10.0.0.0/", "write a number from 0 to 32"},
		{"10.0.0.0/255.0.0.0", "write a number from 0 to 32"},
		{"fc00::/129", "write a number from 0 to 128"},
		{"10.0.0.5/8", "write 10.0.0.0/8 for the range or 10.0.0.5 for the address"},
		{"fd12::1/16", "write fd12::/16 for the range or fd12::1 for the address"},
		{"fe80::1%eth0", "has a zone, which names an interface of one host; write fe80::1"},
		{"fe80::%eth0/10", "has a zone"},
		{"0.0.0.0", "never allowed; remove it"},
		{"::", "never allowed; remove it"},
		{"::ffff:0.0.0.0", "never allowed; remove it"},
		{"224.0.0.0/4", "is in 224.0.0.0/4 (multicast, RFC 5771), which is never allowed; remove it"},
		{"239.1.2.3", "never allowed; remove it"},
		{"ff02::/16", "never allowed; remove it"},
		{"255.255.255.255", "never allowed; remove it"},
		{"2002::/16", "(old tunnel, 6to4, RFC 3056), which is never allowed"},
		{"2001:0:1::/48", "(old tunnel, Teredo, RFC 4380), which is never allowed"},
		{"::10.0.0.0/104", "never allowed; remove it"},
		{"64:ff9b::a00:0/104", "where the IPv4 address inside decides; write 10.0.0.0/8"},
		{"64:ff9b:1::/48", "write its /96, such as 64:ff9b:1::/96"},
	}
	for _, tt := range tests {
		p, err := New([]string{"10.0.0.0/8", tt.entry})
		if err == nil || p != nil {
			t.Errorf("%q: got %v, %v", tt.entry, p, err)
			continue
		}
		if text := err.Error(); !strings.HasPrefix(text, "allow \""+tt.entry+"\": ") || !strings.Contains(text, tt.want) {
			t.Errorf("%q: got %q, want %q in it", tt.entry, text, tt.want)
		}
	}
	if _, err := New([]string{"one", "10.0.0.0/8", "two"}); err == nil || !strings.Contains(err.Error(), `"one"`) || !strings.Contains(err.Error(), `"two"`) {
		t.Errorf("faults of two entries: %v", err)
	}
}

func TestCheckWithoutRange(t *testing.T) {
	p := mustNew(t, "fe80::/10", "::/0")
	wantDenied(t, p.Check(netip.MustParseAddr("fe80::1%eth0")), "fe80::1/128", "zone")
	wantDenied(t, p.Check(netip.MustParseAddr("2606:4700::1%eth0")), "2606:4700::1/128", "zone")
	err := p.Check(netip.Addr{})
	var denied *DeniedError
	if !errors.As(err, &denied) || denied.Class != "no address" || !strings.Contains(err.Error(), "allow") {
		t.Errorf("no address: %v", err)
	}
}

func TestDeniedErrorTexts(t *testing.T) {
	tests := []struct{ addr, want string }{
		{"10.0.0.5", `10.0.0.5 is in 10.0.0.0/8 (private network, RFC 1918), where only this network's own hosts are; "allow 10.0.0.0/8" in upstream_policy, or the part that is meant, permits it`},
		{"127.0.0.1", `127.0.0.1 is in 127.0.0.0/8 (loopback, RFC 1122 section 3.2.1.3), where services trust whoever is on this host; "allow 127.0.0.0/8" in upstream_policy, or a part of it, but nothing wider, permits it`},
		{"fd00:ec2::254", `fd00:ec2::254 is in fd00:ec2::254/128 (cloud metadata, EC2), which gives the credentials of this machine to whoever asks from it; "allow fd00:ec2::254" in upstream_policy, and nothing wider, permits it`},
		{"::ffff:224.0.0.1", `::ffff:224.0.0.1 is in 224.0.0.0/4 (multicast, RFC 5771), which is no single server; no "allow" in upstream_policy permits it`},
		{"64:ff9b::10.0.0.5", `64:ff9b::a00:5 (IPv4 10.0.0.5 inside) is in 10.0.0.0/8 (private network, RFC 1918), where only this network's own hosts are; "allow 10.0.0.0/8" in upstream_policy, or the part that is meant, permits it`},
		{"64:ff9b:1::8.8.8.8", `64:ff9b:1::808:808 is in 64:ff9b:1::/48 (local-use NAT64, RFC 8215), where a translator of this network reaches IPv4; "allow" the translator's /96 of it in upstream_policy, and what may be reached of IPv4, to permit it`},
		{"fe80::1%eth0", `fe80::1%eth0 has a zone, which picks an interface of this host, and no "allow" in upstream_policy permits that; leave the zone out`},
	}
	p := mustNew(t)
	for _, tt := range tests {
		if err := p.Check(netip.MustParseAddr(tt.addr)); err == nil || err.Error() != tt.want {
			t.Errorf("%s:\n got %v\nwant %s", tt.addr, err, tt.want)
		}
	}
	made := &DeniedError{Addr: netip.MustParseAddr("192.0.2.1"), Range: netip.MustParsePrefix("192.0.2.0/30"), Class: "test"}
	if got, want := made.Error(), `192.0.2.1 is in 192.0.2.0/30 (test); upstream_policy does not "allow" it`; got != want {
		t.Errorf("a range of another policy: got %q, want %q", got, want)
	}
	if got := (&DeniedError{}).Error(); got == "" {
		t.Error("the zero DeniedError has no text")
	}
}

func TestCheckDial(t *testing.T) {
	p := mustNew(t, "10.0.0.0/8")
	for _, dial := range []string{"10.0.0.5:8443", "8.8.8.8:443", "[2606:4700::1]:443", "[::ffff:10.0.0.5]:443", "app.internal:8443", "localhost:443", "app.example.com.:443"} {
		if err := p.CheckDial(dial); err != nil {
			t.Errorf("%s: %v", dial, err)
		}
	}
	denied := []struct{ dial, prefix, class string }{
		{"127.0.0.1:443", "127.0.0.0/8", "loopback"},
		{"169.254.169.254:80", "169.254.169.254/32", "cloud metadata"},
		{"[::ffff:127.0.0.1]:443", "127.0.0.0/8", "loopback"},
		{"[::1]:443", "::1/128", "loopback"},
		{"[fe80::1%eth0]:443", "fe80::1/128", "zone"},
		{":443", "::/128", "unspecified"},
	}
	for _, tt := range denied {
		wantDenied(t, p.CheckDial(tt.dial), tt.prefix, tt.class)
	}
	for _, dial := range []string{"", "10.0.0.5", "unix//run/app.sock", "unix//run/app.sock:80", "/run/a:80", "10.0.0.5:https", "10.0.0.5:65536", "::1"} {
		if err := p.CheckDial(dial); err == nil {
			t.Errorf("%q passes", dial)
		}
	}
}

func TestControl(t *testing.T) {
	p := mustNew(t, "10.0.0.0/8")
	if err := p.Control("tcp4", "10.0.0.5:443", nil); err != nil {
		t.Error(err)
	}
	wantDenied(t, p.Control("tcp4", "127.0.0.1:443", nil), "127.0.0.0/8", "loopback")
	wantDenied(t, p.Control("tcp6", "[::ffff:127.0.0.1]:443", nil), "127.0.0.0/8", "loopback")
	wantDenied(t, p.Control("tcp6", "[fe80::1%eth0]:443", nil), "fe80::1/128", "zone")
	wantDenied(t, p.Control("udp4", "169.254.169.254:80", nil), "169.254.169.254/32", "cloud metadata")
	wantDenied(t, p.Control("tcp", ":443", nil), "::/128", "unspecified")
	for _, tt := range [][2]string{{"unix", "/run/app.sock"}, {"unix", "10.0.0.5:443"}, {"ip4:1", "10.0.0.5"}, {"tcp", ""}, {"tcp", "app.internal:443"}} {
		if err := p.Control(tt[0], tt[1], nil); err == nil || !strings.Contains(err.Error(), "allow") {
			t.Errorf("%q: %v", tt, err)
		}
	}
}

func TestNilPolicyAllowsEverything(t *testing.T) {
	var none *Policy
	for _, p := range []*Policy{none, none.WithOwn(nil), none.WithOwn(func() []netip.AddrPort { return nil })} {
		for _, text := range []string{"127.0.0.1", "169.254.169.254", "::", "fe80::1%eth0", "224.0.0.1"} {
			if err := p.Check(netip.MustParseAddr(text)); err != nil {
				t.Errorf("%s: %v", text, err)
			}
		}
		if err := errors.Join(p.Check(netip.Addr{}), p.CheckDial("127.0.0.1:443"), p.CheckDial("unix//run/app.sock"), p.CheckDial("app.internal:443"),
			p.Control("tcp4", "127.0.0.1:443", nil), p.Control("unix", "/run/app.sock", nil)); err != nil {
			t.Error(err)
		}
	}
}

// What is allowed costs nothing that is collected; it is asked for each connection.
func TestCheckAllocatesNothing(t *testing.T) {
	p := mustNew(t, "10.0.0.0/8", "fd12:3456::/32")
	for _, text := range []string{"8.8.8.8", "10.0.0.5", "::ffff:10.0.0.5", "2606:4700::1", "fd12:3456::1", "64:ff9b::10.0.0.5"} {
		addr := netip.MustParseAddr(text)
		if n := testing.AllocsPerRun(100, func() { _ = p.Check(addr) }); n != 0 {
			t.Errorf("%s: %v allocations", text, n)
		}
	}
}

// BenchmarkCheck judges one address. In the loop is the table lookup, which first bytes with many ranges
// dominate; denied also allocates its error. It cannot show what Control costs: parsing the address again.
//
//	go test -run '^$' -bench Check ./netpolicy
func BenchmarkCheck(b *testing.B) {
	p, err := New([]string{"10.0.0.0/8", "fd12:3456::/32", "64:ff9b:1::/96"})
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range [][2]string{
		{"public4", "8.8.8.8"}, {"public6", "2606:4700::1"}, {"public2001", "2001:4860::8888"}, {"allowed4", "10.1.2.3"}, {"allowed6", "fd12:3456::1"},
		{"mapped", "::ffff:10.1.2.3"}, {"nat64", "64:ff9b::10.1.2.3"}, {"nat64local", "64:ff9b:1::10.1.2.3"}, {"denied", "192.168.0.1"},
	} {
		addr := netip.MustParseAddr(c[1])
		b.Run("addr="+c[0], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = p.Check(addr)
			}
		})
	}
}

// BenchmarkControl judges an address as a Dialer gives it.
func BenchmarkControl(b *testing.B) {
	p := mustNew(b).WithOwn(func() []netip.AddrPort { return nil })
	b.ReportAllocs()
	for b.Loop() {
		_ = p.Control("tcp4", "8.8.8.8:443", nil)
	}
}
