package proxyheader

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"
)

var (
	client4 = netip.MustParseAddrPort("203.0.113.7:40000")
	local4  = netip.MustParseAddrPort("192.0.2.1:443")
	client6 = netip.MustParseAddrPort("[2001:db8::7]:40000")
	local6  = netip.MustParseAddrPort("[2001:db8::1]:443")
)

// full is a Header with every field set, and each of them of its usual length.
var full = Header{
	Source: client4, Destination: local4,
	ALPN: "h2", Authority: "app.example.com", UniqueID: "0123456789abcdefghjkmnpqrs",
	TLS: true, TLSVersion: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, Group: tls.X25519MLKEM768,
}

func TestAppendV1(t *testing.T) {
	for _, tc := range []struct {
		name                string
		source, destination netip.AddrPort
		want                string
	}{
		{"v4", client4, local4, "PROXY TCP4 203.0.113.7 192.0.2.1 40000 443\r\n"},
		{"v6", client6, local6, "PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n"},
		{"mapped", netip.MustParseAddrPort("[::ffff:203.0.113.7]:40000"), netip.MustParseAddrPort("[::ffff:192.0.2.1]:443"), "PROXY TCP4 203.0.113.7 192.0.2.1 40000 443\r\n"},
		{"one mapped", netip.MustParseAddrPort("[::ffff:203.0.113.7]:40000"), local4, "PROXY TCP4 203.0.113.7 192.0.2.1 40000 443\r\n"},
		{"v4 client on v6", client4, local6, "PROXY TCP6 ::ffff:203.0.113.7 2001:db8::1 40000 443\r\n"},
		{"v6 client on v4", client6, local4, "PROXY TCP6 2001:db8::7 ::ffff:192.0.2.1 40000 443\r\n"},
		{"mapped client on v6", netip.MustParseAddrPort("[::ffff:203.0.113.7]:40000"), local6, "PROXY TCP6 ::ffff:203.0.113.7 2001:db8::1 40000 443\r\n"},
		{"zones", netip.MustParseAddrPort("[fe80::7%eth0]:1"), netip.MustParseAddrPort("[fe80::1%eth1]:2"), "PROXY TCP6 fe80::7 fe80::1 1 2\r\n"},
		{"extreme ports", netip.MustParseAddrPort("203.0.113.7:0"), netip.MustParseAddrPort("192.0.2.1:65535"), "PROXY TCP4 203.0.113.7 192.0.2.1 0 65535\r\n"},
		{"destination unknown v4", client4, netip.AddrPort{}, "PROXY TCP4 203.0.113.7 0.0.0.0 40000 0\r\n"},
		{"destination unknown v6", client6, netip.AddrPort{}, "PROXY TCP6 2001:db8::7 :: 40000 0\r\n"},
		{"client unknown", netip.AddrPort{}, local4, "PROXY UNKNOWN\r\n"},
		{
			"longest",
			netip.MustParseAddrPort("[2001:db80:1111:2222:3333:4444:5555:6666]:65535"), netip.MustParseAddrPort("[2001:db80:1111:2222:3333:4444:5555:7777]:65535"),
			"PROXY TCP6 2001:db80:1111:2222:3333:4444:5555:6666 2001:db80:1111:2222:3333:4444:5555:7777 65535 65535\r\n",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := Header{Source: tc.source, Destination: tc.destination}
			got := string(h.AppendV1(nil))
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if len(got) > 104 {
				t.Errorf("%d bytes, more than the 104 of section 2.1", len(got))
			}
			read(t, []byte(got))
		})
	}
}

func TestAppendV2Addresses(t *testing.T) {
	for _, tc := range []struct {
		name                string
		source, destination netip.AddrPort
		wantFamily          byte
		wantSource, wantDst string
	}{
		{"v4", client4, local4, v2TCP4, "203.0.113.7:40000", "192.0.2.1:443"},
		{"v6", client6, local6, v2TCP6, "[2001:db8::7]:40000", "[2001:db8::1]:443"},
		{"mapped", netip.MustParseAddrPort("[::ffff:203.0.113.7]:40000"), local4, v2TCP4, "203.0.113.7:40000", "192.0.2.1:443"},
		{"v4 client on v6", client4, local6, v2TCP6, "[::ffff:203.0.113.7]:40000", "[2001:db8::1]:443"},
		{"v6 client on v4", client6, local4, v2TCP6, "[2001:db8::7]:40000", "[::ffff:192.0.2.1]:443"},
		{"zone", netip.MustParseAddrPort("[fe80::7%eth0]:1"), local6, v2TCP6, "[fe80::7]:1", "[2001:db8::1]:443"},
		{"destination unknown", client4, netip.AddrPort{}, v2TCP4, "203.0.113.7:40000", "0.0.0.0:0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := Header{Source: tc.source, Destination: tc.destination}
			b := h.AppendV2(nil)
			if b[13] != tc.wantFamily {
				t.Errorf("family and transport are %#x, want %#x", b[13], tc.wantFamily)
			}
			got := read(t, b)
			if src := rawAddr(t, got.SourceAddr, tc.wantFamily); src.String() != tc.wantSource {
				t.Errorf("source is %s, want %s", src, tc.wantSource)
			}
			if dst := rawAddr(t, got.DestinationAddr, tc.wantFamily); dst.String() != tc.wantDst {
				t.Errorf("destination is %s, want %s", dst, tc.wantDst)
			}
		})
	}
}

// The golden bytes were put together by hand from section 2.2, the checksums computed with another program.
func TestAppendV2Golden(t *testing.T) {
	for _, tc := range []struct {
		name   string
		header Header
		want   string
	}{
		{"bare v4", Header{Source: client4, Destination: local4}, `
			0d0a0d0a000d0a515549540a 21 11 0013
			cb007107 c0000201 9c40 01bb
			03 0004 b5c4c324`},
		{"unknown client", Header{Authority: "a.example"}, `
			0d0a0d0a000d0a515549540a 21 00 0013
			02 0009 612e6578616d706c65
			03 0004 f6a74165`},
		{"all", full, `
			0d0a0d0a000d0a515549540a 21 11 0083
			cb007107 c0000201 9c40 01bb
			02 000f 6170702e6578616d706c652e636f6d
			20 0039 01 00000001
			21 0007 544c5376312e33
			23 0016 544c535f4145535f3132385f47434d5f534841323536
			26 000e 5832353531394d4c4b454d373638
			05 001a 3031323334353637383961626364656667686a6b6d6e70717273
			01 0002 6832
			03 0004 418acfe1`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want, err := hex.DecodeString(strings.Join(strings.Fields(tc.want), ""))
			if err != nil {
				t.Fatal(err)
			}
			if got := tc.header.AppendV2(nil); !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
		})
	}
}

func TestAppendV2TLVs(t *testing.T) {
	b := full.AppendV2(nil)
	tlvs := readTLVs(t, b)
	for typ, want := range map[proxyproto.PP2Type]string{
		proxyproto.PP2_TYPE_ALPN:      "h2",
		proxyproto.PP2_TYPE_AUTHORITY: "app.example.com",
		proxyproto.PP2_TYPE_UNIQUE_ID: "0123456789abcdefghjkmnpqrs",
	} {
		if got, ok := find(tlvs, typ); !ok || got != want {
			t.Errorf("TLV %#x is %q, want %q", byte(typ), got, want)
		}
	}

	ssl, ok := tlvparse.FindSSL(tlvs)
	if !ok {
		t.Fatal("no SSL TLV, or a malformed one")
	}
	if ssl.Verified() || ssl.ClientCertConn() || ssl.ClientCertSess() {
		t.Error("the SSL TLV claims a client certificate")
	}
	if !ssl.ClientSSL() {
		t.Error("the SSL TLV does not say that the client spoke TLS")
	}
	for what, got := range map[string]func() (string, bool){
		"TLSv1.3": ssl.SSLVersion, "TLS_AES_128_GCM_SHA256": ssl.SSLCipher, "X25519MLKEM768": ssl.SSLGroup,
	} {
		if s, ok := got(); !ok || s != what {
			t.Errorf("the SSL TLV says %q, want %q", s, what)
		}
	}
}

func TestAppendV2Names(t *testing.T) {
	for _, tc := range []struct {
		name    string
		header  Header
		version string
		cipher  string
		group   string
	}{
		{"nothing known", Header{}, "unknown", "", ""},
		{"TLS 1.0", Header{TLSVersion: tls.VersionTLS10}, "TLSv1", "", ""},
		{"TLS 1.1", Header{TLSVersion: tls.VersionTLS11}, "TLSv1.1", "", ""},
		{"TLS 1.2", Header{TLSVersion: tls.VersionTLS12, CipherSuite: tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, Group: tls.X25519}, "TLSv1.2", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "X25519"},
		{"TLS 1.3", Header{TLSVersion: tls.VersionTLS13, CipherSuite: tls.TLS_AES_256_GCM_SHA384, Group: tls.SecP384r1MLKEM1024}, "TLSv1.3", "TLS_AES_256_GCM_SHA384", "SecP384r1MLKEM1024"},
		{"unassigned", Header{CipherSuite: 0xfefe, Group: 0xfe00}, "unknown", "0xFEFE", "CurveID(65024)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.header.Source, tc.header.Destination, tc.header.TLS = client4, local4, true
			ssl, ok := tlvparse.FindSSL(readTLVs(t, tc.header.AppendV2(nil)))
			if !ok {
				t.Fatal("no SSL TLV, or a malformed one")
			}
			version, _ := ssl.SSLVersion()
			cipher, _ := ssl.SSLCipher()
			group, _ := ssl.SSLGroup()
			if version != tc.version || cipher != tc.cipher || group != tc.group {
				t.Errorf("got %q, %q, %q", version, cipher, group)
			}
		})
	}
}

// The names in cipherName must stay those of the standard library.
func TestCipherName(t *testing.T) {
	for _, suite := range tls.CipherSuites() {
		if got := cipherName(suite.ID); got != suite.Name {
			t.Errorf("%#04x is %q, want %q", suite.ID, got, suite.Name)
		}
	}
}

func TestAppendV2WhatDoesNotFit(t *testing.T) {
	longest := Header{
		Source: client6, Destination: local6,
		Authority: strings.Repeat("a", maxAuthority), UniqueID: strings.Repeat("u", maxUniqueID), ALPN: "h2",
		TLS: true, TLSVersion: tls.VersionTLS13, Group: tls.SecP384r1MLKEM1024,
	}
	for _, suite := range tls.CipherSuites() {
		if longest.CipherSuite == 0 || len(suite.Name) > len(tls.CipherSuiteName(longest.CipherSuite)) {
			longest.CipherSuite = suite.ID
		}
	}
	with := func(edit func(*Header)) Header {
		h := longest
		edit(&h)
		return h
	}
	for _, tc := range []struct {
		name                 string
		header               Header
		authority, uid, alpn bool
		wantLen              int // 0: not of interest
		wantSSL              bool
	}{
		{name: "longest", header: longest, authority: true, uid: true, wantSSL: true, wantLen: MaxLen - 1},
		{name: "ALPN fills it", header: with(func(h *Header) { h.UniqueID, h.ALPN = "", strings.Repeat("p", 129) }), authority: true, alpn: true, wantSSL: true, wantLen: MaxLen},
		{name: "ALPN one too long", header: with(func(h *Header) { h.UniqueID, h.ALPN = "", strings.Repeat("p", 130) }), authority: true, wantSSL: true},
		{name: "no host name", header: with(func(h *Header) { h.Authority = strings.Repeat("a", 256) }), uid: true, alpn: true, wantSSL: true},
		{name: "no unique ID", header: with(func(h *Header) { h.UniqueID = strings.Repeat("u", 129) }), authority: true, alpn: true, wantSSL: true},
		{name: "no protocol name", header: Header{Source: client4, Destination: local4, ALPN: strings.Repeat("p", 256)}},
		{name: "longest protocol name", header: Header{Source: client4, Destination: local4, ALPN: strings.Repeat("p", 255)}, alpn: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := tc.header.AppendV2(nil)
			if len(b) > MaxLen || tc.wantLen != 0 && len(b) != tc.wantLen {
				t.Errorf("%d bytes, want %d", len(b), tc.wantLen)
			}
			tlvs := readTLVs(t, b)
			for _, want := range []struct {
				typ   proxyproto.PP2Type
				there bool
			}{
				{proxyproto.PP2_TYPE_AUTHORITY, tc.authority}, {proxyproto.PP2_TYPE_UNIQUE_ID, tc.uid},
				{proxyproto.PP2_TYPE_ALPN, tc.alpn}, {proxyproto.PP2_TYPE_SSL, tc.wantSSL},
			} {
				if _, ok := find(tlvs, want.typ); ok != want.there {
					t.Errorf("TLV %#x is there: %t, want %t", byte(want.typ), ok, want.there)
				}
			}
		})
	}
}

// A client behind a unix socket has no address. It is relayed all the same, so that the header must not
// say LOCAL, and its TLVs are written.
func TestAppendV2UnknownClient(t *testing.T) {
	h := full
	h.Source = netip.AddrPort{}
	b := h.AppendV2(nil)
	if b[12] != v2Proxy || b[13] != v2Unspec {
		t.Fatalf("command %#x, family %#x, want PROXY with AF_UNSPEC", b[12], b[13])
	}
	if _, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(b))); !errors.Is(err, proxyproto.ErrUnsupportedAddressFamilyAndProtocol) {
		t.Errorf("go-proxyproto says %v, which it is free to", err)
	}
	if got, _ := find(readTLVs(t, b), proxyproto.PP2_TYPE_AUTHORITY); got != h.Authority {
		t.Errorf("authority is %q, want %q", got, h.Authority)
	}
}

func TestOwnConnections(t *testing.T) {
	v1 := AppendV1Unknown(nil)
	if string(v1) != "PROXY UNKNOWN\r\n" {
		t.Errorf("version 1 is %q", v1)
	}
	if got := read(t, v1); !got.Command.IsLocal() {
		t.Errorf("version 1 reads as %v", got)
	}
	v2 := AppendV2Local(nil)
	if want := "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"; string(v2) != want {
		t.Errorf("version 2 is %q", v2)
	}
	if got := read(t, v2); !got.Command.IsLocal() {
		t.Errorf("version 2 reads as %v", got)
	}
}

// What is in the slice before stays, and the checksum does not cover it.
func TestAppendKeepsPrefix(t *testing.T) {
	prefix := []byte("before")
	for name, write := range map[string]func([]byte) []byte{
		"v1": full.AppendV1, "v2": full.AppendV2, "v1 unknown": AppendV1Unknown, "v2 local": AppendV2Local,
	} {
		if got, want := write(bytes.Clone(prefix)), append(bytes.Clone(prefix), write(nil)...); !bytes.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestAllocations(t *testing.T) {
	buf := make([]byte, 0, MaxLen)
	h := full
	for name, write := range map[string]func(){
		"v1": func() { h.AppendV1(buf) }, "v2": func() { h.AppendV2(buf) },
		"v1 unknown": func() { AppendV1Unknown(buf) }, "v2 local": func() { AppendV2Local(buf) },
	} {
		if n := testing.AllocsPerRun(100, write); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// BenchmarkAppend writes one header of the usual size into a buffer that is kept, as a connection does once.
// Checksum and address formatting dominate; what it costs to send the bytes is not in here.
//
//	go test -run '^$' -bench Append ./internal/proxyheader
func BenchmarkAppend(b *testing.B) {
	h6 := full
	h6.Source, h6.Destination = client6, local6
	for _, bc := range []struct {
		name  string
		write func([]byte) []byte
	}{
		{"version=1/family=4", full.AppendV1}, {"version=1/family=6", h6.AppendV1},
		{"version=2/family=4", full.AppendV2}, {"version=2/family=6", h6.AppendV2},
	} {
		b.Run(bc.name, func(b *testing.B) {
			buf := make([]byte, 0, MaxLen)
			b.ReportAllocs()
			for b.Loop() {
				buf = bc.write(buf[:0])
			}
			b.SetBytes(int64(len(buf)))
		})
	}
}

// read reads b with go-proxyproto, which must take exactly the header and leave what follows it.
func read(t *testing.T, b []byte) *proxyproto.Header {
	t.Helper()
	const rest = "the first bytes of the stream"
	r := bufio.NewReader(bytes.NewReader(append(bytes.Clone(b), rest...)))
	h, err := proxyproto.Read(r)
	if err != nil {
		t.Fatalf("reading %q: %v", b, err)
	}
	left := make([]byte, r.Buffered())
	if _, err := r.Read(left); err != nil || string(left) != rest {
		t.Fatalf("after %q came %q, %v", b, left, err)
	}
	return h
}

// readTLVs reads a version 2 header's TLVs and verifies its checksum. Since go-proxyproto refuses PROXY with
// AF_UNSPEC, it is shown LOCAL in that place.
func readTLVs(t *testing.T, b []byte) []proxyproto.TLV {
	t.Helper()
	if b[13] == v2Unspec {
		b = bytes.Clone(b)
		verifyChecksum(t, b)
		b[12] = v2Local
		tlvs, err := read(t, b).TLVs()
		if err != nil {
			t.Fatalf("reading the TLVs of %x: %v", b, err)
		}
		return tlvs
	}
	tlvs, err := read(t, b).TLVs()
	if err != nil {
		t.Fatalf("reading the TLVs of %x: %v", b, err)
	}
	verifyChecksum(t, b)
	return tlvs
}

// verifyChecksum does what section 2.2.3 asks of a receiver, for a checksum that is the last TLV.
func verifyChecksum(t *testing.T, b []byte) {
	t.Helper()
	zeroed := bytes.Clone(b)
	field := zeroed[len(zeroed)-crc32.Size:]
	if head := zeroed[len(zeroed)-crc32.Size-tlvHead : len(zeroed)-crc32.Size]; !bytes.Equal(head, []byte{typeCRC32C, 0, crc32.Size}) {
		t.Fatalf("the last TLV of %x is no checksum", b)
	}
	stored := binary.BigEndian.Uint32(field)
	clear(field)
	if sum := crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli)); sum != stored {
		t.Fatalf("the checksum of %x is %#x, want %#x", b, stored, sum)
	}
}

// rawAddr is an address as read, in the family it had on the wire: a net.IP alone does not tell ::ffff:a.b.c.d
// from a.b.c.d.
func rawAddr(t *testing.T, a net.Addr, family byte) netip.AddrPort {
	t.Helper()
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		t.Fatalf("%v is no TCP address", a)
	}
	ip := tcp.IP.To16()
	if family == v2TCP4 {
		ip = tcp.IP.To4()
	}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		t.Fatalf("%v is no address of family %#x", a, family)
	}
	return netip.AddrPortFrom(addr, uint16(tcp.Port))
}

func find(tlvs []proxyproto.TLV, typ proxyproto.PP2Type) (string, bool) {
	for _, tlv := range tlvs {
		if tlv.Type == typ {
			return string(tlv.Value), true
		}
	}
	return "", false
}
