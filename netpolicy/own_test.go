package netpolicy

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// ownPolicy returns a policy of an edge on a host with fixed addresses.
func ownPolicy(p *Policy, listeners ...string) *Policy {
	var own []netip.AddrPort
	for _, l := range listeners {
		own = append(own, netip.MustParseAddrPort(l))
	}
	p = p.WithOwn(func() []netip.AddrPort { return own })
	p.own.host.list = func() ([]net.Addr, error) {
		return []net.Addr{
			&net.IPNet{IP: net.ParseIP("127.0.0.1"), Mask: net.CIDRMask(8, 32)}, // 16 bytes, as the system's may be
			&net.IPNet{IP: net.IPv4(10, 0, 0, 9).To4(), Mask: net.CIDRMask(24, 32)},
			&net.IPNet{IP: net.ParseIP("2606:4700::9"), Mask: net.CIDRMask(64, 128)},
			&net.IPNet{IP: net.ParseIP("fe80::9"), Mask: net.CIDRMask(64, 128)},
			&net.IPNet{},
			&net.IPAddr{IP: net.IPv4(10, 0, 0, 10)},
		}, nil
	}
	return p
}

func TestWithOwnFindsLoops(t *testing.T) {
	tests := []struct {
		listener    string
		loops, pass []string
	}{
		{
			listener: "[::]:443",
			loops: []string{"127.0.0.1:443", "127.9.9.9:443", "[::1]:443", "10.0.0.9:443", "[2606:4700::9]:443", "[::ffff:10.0.0.9]:443", "[64:ff9b::10.0.0.9]:443",
				"[fe80::9]:443", "[fe80::9%eth0]:443", "0.0.0.0:443", "[::]:443", ":443"},
			pass: []string{"127.0.0.1:8443", "10.0.0.8:443", "10.0.0.10:443", "[2606:4700::8]:443", "app.internal:443"},
		},
		{
			listener: "0.0.0.0:443",
			loops:    []string{"127.0.0.1:443", "10.0.0.9:443", "[::ffff:10.0.0.9]:443", "0.0.0.0:443", "[::]:443"},
			pass:     []string{"[::1]:443", "[2606:4700::9]:443", "10.0.0.8:443"},
		},
		{
			listener: "10.0.0.9:443",
			loops:    []string{"10.0.0.9:443", "[::ffff:10.0.0.9]:443", "[64:ff9b::10.0.0.9]:443"},
			pass:     []string{"127.0.0.1:443", "0.0.0.0:443", "[2606:4700::9]:443", "10.0.0.9:444"},
		},
		{
			listener: "127.0.0.1:443",
			loops:    []string{"127.0.0.1:443", "0.0.0.0:443", ":443"},
			pass:     []string{"127.0.0.2:443", "10.0.0.9:443", "[::1]:443"},
		},
		{
			listener: "203.0.113.7:443", // the cloud's address of this host, on no interface
			loops:    []string{"203.0.113.7:443"},
			pass:     []string{"127.0.0.1:443"},
		},
	}
	for _, tt := range tests {
		for name, p := range map[string]*Policy{"nil policy": nil, "policy": mustNew(t, "0.0.0.0/0", "127.0.0.0/8", "::/0", "::1", "fe80::/10")} {
			p := ownPolicy(p, "192.0.2.1:80", tt.listener)
			for _, dial := range tt.loops {
				for _, err := range []error{p.CheckDial(dial), p.Control("tcp", dial, nil)} {
					if !errors.Is(err, ErrLoop) || !strings.Contains(err.Error(), tt.listener) {
						t.Errorf("%s, listener %s: %s: %v, want a loop", name, tt.listener, dial, err)
					}
				}
			}
			for _, dial := range tt.pass {
				if err := p.CheckDial(dial); errors.Is(err, ErrLoop) || name == "nil policy" && err != nil {
					t.Errorf("%s, listener %s: %s: %v", name, tt.listener, dial, err)
				}
			}
		}
	}
}

func TestWithOwnLeavesThePolicy(t *testing.T) {
	p := mustNew(t)
	with := ownPolicy(p, "[::]:443")
	wantDenied(t, p.CheckDial("127.0.0.1:443"), "127.0.0.0/8", "loopback")
	wantDenied(t, with.CheckDial("127.0.0.1:8443"), "127.0.0.0/8", "loopback")
	wantDenied(t, with.WithOwn(nil).CheckDial("127.0.0.1:443"), "127.0.0.0/8", "loopback")
	if err := with.CheckDial("127.0.0.1:443"); !errors.Is(err, ErrLoop) {
		t.Errorf("got %v, want a loop", err)
	}
}

// TestOwnAddressesAreRemembered: the system is asked again when what it said is five seconds old.
func TestOwnAddressesAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := ownPolicy(nil, "[::]:443")
		asked := 0
		p.own.host.list = func() ([]net.Addr, error) {
			asked++
			return []net.Addr{&net.IPNet{IP: net.IPv4(10, 0, 0, byte(asked)), Mask: net.CIDRMask(24, 32)}}, nil
		}
		for _, dial := range []string{"10.0.0.9:80", "app.internal:443", "127.0.0.1:443"} {
			_ = p.CheckDial(dial)
		}
		if asked != 0 {
			t.Errorf("the addresses were read %d times where they decide nothing", asked)
		}
		for range 3 {
			if err := p.CheckDial("10.0.0.1:443"); !errors.Is(err, ErrLoop) {
				t.Errorf("got %v, want a loop", err)
			}
		}
		if asked != 1 {
			t.Errorf("the addresses were read %d times, want once", asked)
		}
		time.Sleep(hostAddrsAge) // of the bubble, not of the clock
		if err := p.CheckDial("10.0.0.1:443"); err != nil {
			t.Errorf("the address has gone, but: %v", err)
		}
		if err := p.CheckDial("10.0.0.2:443"); !errors.Is(err, ErrLoop) || asked != 2 {
			t.Errorf("the address has come; got %v after %d reads", err, asked)
		}
	})
}

// TestOwnAddressesUnknown: where the addresses cannot be read, what they would decide is refused.
func TestOwnAddressesUnknown(t *testing.T) {
	p := ownPolicy(nil, "[::]:443")
	broken := errors.New("no netlink")
	p.own.host.list = func() ([]net.Addr, error) { return nil, broken }
	if err := p.CheckDial("10.0.0.9:443"); !errors.Is(err, broken) || errors.Is(err, ErrLoop) {
		t.Errorf("got %v, want %v", err, broken)
	}
	if err := p.CheckDial("10.0.0.9:8443"); err != nil {
		t.Error(err)
	}
}
