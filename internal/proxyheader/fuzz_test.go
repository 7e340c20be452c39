package proxyheader

import (
	"crypto/tls"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"
)

// FuzzV1 writes the header of any two addresses in version 1 and reads it back.
func FuzzV1(f *testing.F) {
	f.Add(client4.Addr().AsSlice(), client4.Port(), local4.Addr().AsSlice(), local4.Port(), "")
	f.Add(client6.Addr().AsSlice(), client6.Port(), local4.Addr().AsSlice(), local4.Port(), "eth0")
	f.Add([]byte(nil), uint16(0), []byte(nil), uint16(0), "")
	f.Fuzz(func(t *testing.T, source []byte, sourcePort uint16, destination []byte, destinationPort uint16, zone string) {
		h := Header{Source: addrPort(source, sourcePort, zone), Destination: addrPort(destination, destinationPort, zone)}
		b := h.AppendV1(nil)
		if len(b) > 104 {
			t.Errorf("%d bytes: %q", len(b), b)
		}
		got := read(t, b)
		if !h.Source.IsValid() {
			if string(b) != "PROXY UNKNOWN\r\n" {
				t.Errorf("an unknown client is announced as %q", b)
			}
			return
		}
		family := byte(v2TCP6)
		if got.TransportProtocol == proxyproto.TCPv4 {
			family = v2TCP4
		}
		checkAddresses(t, h, got, family)
	})
}

// FuzzV2 writes any header in version 2, reads it back and verifies its checksum.
func FuzzV2(f *testing.F) {
	add := func(h Header, zone string) {
		f.Add(h.Source.Addr().AsSlice(), h.Source.Port(), h.Destination.Addr().AsSlice(), h.Destination.Port(), zone,
			h.ALPN, h.Authority, h.UniqueID, h.TLS, h.TLSVersion, h.CipherSuite, uint16(h.Group))
	}
	add(full, "")
	add(Header{Authority: "a.example"}, "eth0")
	add(Header{Source: client6, Destination: local4, ALPN: strings.Repeat("p", maxALPN), Authority: strings.Repeat("a", maxAuthority), UniqueID: strings.Repeat("u", maxUniqueID), TLS: true}, "")
	f.Fuzz(func(t *testing.T, source []byte, sourcePort uint16, destination []byte, destinationPort uint16, zone,
		alpn, authority, uniqueID string, withTLS bool, version, cipher, group uint16) {
		h := Header{
			Source: addrPort(source, sourcePort, zone), Destination: addrPort(destination, destinationPort, zone),
			ALPN: alpn, Authority: authority, UniqueID: uniqueID,
			TLS: withTLS, TLSVersion: version, CipherSuite: cipher, Group: tls.CurveID(group),
		}
		b := h.AppendV2(nil)
		if len(b) > MaxLen {
			t.Errorf("%d bytes", len(b))
		}
		tlvs := readTLVs(t, b)
		if h.Source.IsValid() {
			checkAddresses(t, h, read(t, b), b[13])
		} else if b[12] != v2Proxy || b[13] != v2Unspec {
			t.Errorf("an unknown client is announced with command %#x and family %#x", b[12], b[13])
		}
		checkTLV(t, tlvs, proxyproto.PP2_TYPE_AUTHORITY, authority, maxAuthority)
		checkTLV(t, tlvs, proxyproto.PP2_TYPE_UNIQUE_ID, uniqueID, maxUniqueID)
		if got, ok := find(tlvs, proxyproto.PP2_TYPE_ALPN); ok && got != alpn {
			t.Errorf("ALPN is %q, want %q", got, alpn)
		} else if room := MaxLen - len(b); !ok && 0 < len(alpn) && len(alpn) <= min(maxALPN, room-tlvHead) {
			t.Errorf("an ALPN of %d bytes was left out of a header with room for %d", len(alpn), room)
		}
		if ssl, ok := tlvparse.FindSSL(tlvs); ok != withTLS {
			t.Errorf("there is a well-formed SSL TLV: %t, want %t", ok, withTLS)
		} else if ok && (ssl.Verified() || !ssl.ClientSSL()) {
			t.Errorf("the SSL TLV says %+v", ssl)
		}
	})
}

// addrPort is the address of 4 or 16 bytes, and the invalid one of any other number.
func addrPort(ip []byte, port uint16, zone string) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.WithZone(zone), port)
}

// checkAddresses compares what was read in the family given with what h announces, whose Source is valid.
func checkAddresses(t *testing.T, h Header, got *proxyproto.Header, family byte) {
	t.Helper()
	source, destination := plain(h.Source), plain(h.Destination)
	if !destination.IsValid() {
		destination = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		if source.Addr().Is4() {
			destination = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
		}
	}
	if both4 := source.Addr().Is4() && destination.Addr().Is4(); both4 != (family == v2TCP4) {
		t.Errorf("%v and %v are announced in family %#x", source, destination, family)
	}
	if a := plain(rawAddr(t, got.SourceAddr, family)); a != source {
		t.Errorf("source is %v, want %v", a, source)
	}
	if a := plain(rawAddr(t, got.DestinationAddr, family)); a != destination {
		t.Errorf("destination is %v, want %v", a, destination)
	}
}

// plain is a without what a header does not tell: the zone, and whether an IPv4 address was mapped.
func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// checkTLV checks that the TLV is there exactly if value is neither empty nor longer than limit.
func checkTLV(t *testing.T, tlvs []proxyproto.TLV, typ proxyproto.PP2Type, value string, limit int) {
	t.Helper()
	got, ok := find(tlvs, typ)
	if want := value != "" && len(value) <= limit; ok != want || ok && got != value {
		t.Errorf("TLV %#x is %q, %t, want %q, %t", byte(typ), got, ok, value, want)
	}
}
