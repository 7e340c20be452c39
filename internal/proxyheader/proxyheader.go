// Package proxyheader writes PROXY protocol headers, versions 1 and 2, as the HAProxy project specifies
// them in proxy-protocol.txt (sections cited here are of that text). It only writes: what arrives from a
// proxy in front of us is read elsewhere.
//
//	h := proxyheader.Header{Source: client, Destination: local}
//	buf = h.AppendV1(buf[:0]) // "PROXY TCP4 203.0.113.7 192.0.2.1 40000 443\r\n"
//
// Every function appends to the slice it is given and returns the longer one. With room for [MaxLen] bytes
// behind it nothing is allocated, TLS 1.3 and the groups that crypto/tls names assumed.
package proxyheader

import (
	"crypto/tls"
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"strconv"
)

// MaxLen is the most bytes that one call appends: what every TCP/IP host takes in one segment, 576 bytes
// of IPv4 packet less 40 of headers (section 2). A receiver may therefore refuse a header that does not
// arrive in one read.
const MaxLen = 536

// Header is what an upstream is told about one client connection. The zero value is a client whose
// address is not known. A Header is only read by its methods, which may be called concurrently.
type Header struct {
	// Source is the client's address, Destination the one it connected to.
	//
	// IPv4 addresses mapped into IPv6 are announced as IPv4. When one of the two is IPv4 and the other
	// IPv6, both are announced as IPv6, the former mapped (::ffff:192.0.2.1), because a header has one
	// family. Zones are dropped: they mean nothing on another host.
	//
	// An invalid Source, as of a peer on a unix socket, makes version 1 say UNKNOWN, and version 2 PROXY
	// with AF_UNSPEC. Not LOCAL, although no receiver may refuse that: LOCAL claims that nobody stands
	// behind the connection, and upstreams trust it like a health check. AF_UNSPEC a receiver is free to
	// refuse (section 2.2), and HAProxy and go-proxyproto do: it fails closed.
	//
	// An invalid Destination alone hides no client: it is announced as the unspecified address and port 0.
	Source, Destination netip.AddrPort

	// ALPN, Authority and UniqueID are TLVs of version 2; version 1 has no place for them. An empty one
	// is left out, and so is one that is longer than its kind can be, lest half of it pass for the whole.
	//
	// ALPN is the protocol negotiated with the client (section 2.2.1), at most 255 bytes (RFC 7301
	// section 3.1). Authority is the host name the client asked for (section 2.2.2), at most 255 bytes
	// (RFC 1035 section 2.3.4). UniqueID names the connection in logs (section 2.2.5), at most 128 bytes.
	//
	// Where not all fits into MaxLen, ALPN is left out; all else always fits.
	ALPN, Authority, UniqueID string

	// TLS says that the client spoke TLS with us: version 2 gets the SSL TLV (section 2.2.6) with the
	// three facts below. Its verify field is 1, since no client certificate was verified.
	TLS bool

	// TLSVersion is the negotiated version, such as tls.VersionTLS13, announced as OpenSSL and therefore
	// HAProxy spell it: "TLSv1.3". The section requires it, so an unknown one is announced as "unknown".
	TLSVersion uint16

	// CipherSuite is announced by its IANA name, as of tls.CipherSuiteName. Zero: left out.
	CipherSuite uint16

	// Group is the key exchange, announced as Group.String() spells it: "X25519MLKEM768". It is how an
	// upstream knows whether this very connection was post-quantum. Zero (no group, or not known): left out.
	Group tls.CurveID
}

// TLV types and lengths that the specification gives (section 2.2).
const (
	typeALPN       = 0x01 // PP2_TYPE_ALPN
	typeAuthority  = 0x02 // PP2_TYPE_AUTHORITY
	typeCRC32C     = 0x03 // PP2_TYPE_CRC32C
	typeUniqueID   = 0x05 // PP2_TYPE_UNIQUE_ID
	typeSSL        = 0x20 // PP2_TYPE_SSL
	typeSSLVersion = 0x21 // PP2_SUBTYPE_SSL_VERSION
	typeSSLCipher  = 0x23 // PP2_SUBTYPE_SSL_CIPHER
	typeSSLGroup   = 0x26 // PP2_SUBTYPE_SSL_GROUP

	clientSSL = 0x01 // PP2_CLIENT_SSL

	tlvHead = 3 // type and length of a TLV

	maxALPN      = 255
	maxAuthority = 255
	maxUniqueID  = 128
)

// Byte 13 (version and command) and byte 14 (family and transport) of a version 2 header.
const (
	v2Local  = 0x20
	v2Proxy  = 0x21
	v2Unspec = 0x00
	v2TCP4   = 0x11
	v2TCP6   = 0x21

	v2Fixed  = 16 // signature, bytes 13 and 14, length
	v2Length = 14 // where the length is: what follows the fixed part, in bytes
)

const (
	v1Unknown   = "PROXY UNKNOWN\r\n"
	v2Signature = "\r\n\r\n\x00\r\nQUIT\n"
)

// castagnoli is the polynomial of CRC32C (RFC 4960 appendix B).
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// AppendV1 appends the header in version 1 (section 2.1), at most 104 bytes. Addresses are all it holds.
func (h *Header) AppendV1(b []byte) []byte {
	source, destination, ok := h.addresses()
	if !ok {
		return AppendV1Unknown(b)
	}
	// The grammar of section 2.1 has no dots in TCP6. A mapped address has them here all the same, as
	// HAProxy writes it: every reader built on inet_pton takes it, and people recognise it.
	if source.Addr().Is4() {
		b = append(b, "PROXY TCP4 "...)
	} else {
		b = append(b, "PROXY TCP6 "...)
	}
	b = append(source.Addr().AppendTo(b), ' ')
	b = append(destination.Addr().AppendTo(b), ' ')
	b = append(strconv.AppendUint(b, uint64(source.Port()), 10), ' ')
	b = strconv.AppendUint(b, uint64(destination.Port()), 10)
	return append(b, "\r\n"...)
}

// AppendV2 appends the header in version 2 (section 2.2) with its TLVs and a checksum, at most MaxLen bytes.
func (h *Header) AppendV2(b []byte) []byte {
	start := len(b)
	b = append(b, v2Signature...)
	b = h.appendV2Addresses(b)

	b = appendTLV(b, typeAuthority, upTo(h.Authority, maxAuthority))
	if h.TLS {
		b = h.appendSSL(b)
	}
	// The longest of everything up to here, with the longest UniqueID and the checksum behind it, is 535 bytes:
	// only an ALPN may find no room.
	b = appendTLV(b, typeUniqueID, upTo(h.UniqueID, maxUniqueID))
	alpn := upTo(h.ALPN, maxALPN)
	if room := MaxLen - (len(b) - start) - (tlvHead + crc32.Size); tlvHead+len(alpn) <= room {
		b = appendTLV(b, typeALPN, alpn)
	}
	return finishV2(b, start)
}

// AppendV1Unknown appends the header, in version 1, of a connection of our own, such as a check: there is no
// client to announce. It is 15 bytes long. The specification prefers that a checker announces its own
// addresses, since old receivers may refuse UNKNOWN; but then the upstream would take it for a client.
func AppendV1Unknown(b []byte) []byte {
	return append(b, v1Unknown...)
}

// AppendV2Local appends the header, in version 2, of a connection of our own, such as a check: command LOCAL,
// no addresses, no TLVs, 16 bytes. Receivers must accept it and use the addresses of the socket.
func AppendV2Local(b []byte) []byte {
	b = append(b, v2Signature...)
	return append(b, v2Local, v2Unspec, 0, 0)
}

// addresses returns both addresses in one family, IPv4 as such only if both are, and without zones.
// It is false if there is no client address to announce.
func (h *Header) addresses() (source, destination netip.AddrPort, ok bool) {
	if !h.Source.Addr().IsValid() {
		return source, destination, false
	}
	src, dst, dstPort := h.Source.Addr().Unmap(), h.Destination.Addr().Unmap(), h.Destination.Port()
	switch {
	case dst.IsValid():
	case src.Is4():
		dst, dstPort = netip.IPv4Unspecified(), 0
	default:
		dst, dstPort = netip.IPv6Unspecified(), 0
	}
	if !src.Is4() || !dst.Is4() {
		// As16 maps what is IPv4 and leaves the zone behind.
		src, dst = netip.AddrFrom16(src.As16()), netip.AddrFrom16(dst.As16())
	}
	return netip.AddrPortFrom(src, h.Source.Port()), netip.AddrPortFrom(dst, dstPort), true
}

// appendV2Addresses appends byte 13 up to the end of the addresses. The length in between is left zero.
func (h *Header) appendV2Addresses(b []byte) []byte {
	source, destination, ok := h.addresses()
	switch {
	case !ok:
		return append(b, v2Proxy, v2Unspec, 0, 0)
	case source.Addr().Is4():
		src, dst := source.Addr().As4(), destination.Addr().As4()
		b = append(b, v2Proxy, v2TCP4, 0, 0)
		b = append(append(b, src[:]...), dst[:]...)
	default:
		src, dst := source.Addr().As16(), destination.Addr().As16()
		b = append(b, v2Proxy, v2TCP6, 0, 0)
		b = append(append(b, src[:]...), dst[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, source.Port())
	return binary.BigEndian.AppendUint16(b, destination.Port())
}

// appendSSL appends the SSL TLV: what the client's TLS connection negotiated.
func (h *Header) appendSSL(b []byte) []byte {
	start := len(b)
	b = append(b, typeSSL, 0, 0)
	b = append(b, clientSSL)
	b = binary.BigEndian.AppendUint32(b, 1) // verify: zero would claim a verified client certificate
	b = appendTLV(b, typeSSLVersion, versionName(h.TLSVersion))
	if h.CipherSuite != 0 {
		b = appendTLV(b, typeSSLCipher, cipherName(h.CipherSuite))
	}
	if h.Group != 0 {
		b = appendTLV(b, typeSSLGroup, h.Group.String())
	}
	binary.BigEndian.PutUint16(b[start+1:], uint16(len(b)-start-tlvHead))
	return b
}

// finishV2 appends the checksum TLV to the header that begins at start and fills in length and checksum. The
// checksum is over the whole header, the length final and the checksum itself zero (section 2.2.3).
func finishV2(b []byte, start int) []byte {
	b = append(b, typeCRC32C, 0, crc32.Size, 0, 0, 0, 0)
	header := b[start:]
	binary.BigEndian.PutUint16(header[v2Length:], uint16(len(header)-v2Fixed))
	binary.BigEndian.PutUint32(header[len(header)-crc32.Size:], crc32.Checksum(header, castagnoli))
	return b
}

// appendTLV appends one TLV, or nothing for an empty value.
func appendTLV(b []byte, typ byte, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, typ)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	return append(b, value...)
}

// upTo is s, or empty if s is longer than limit bytes.
func upTo(s string, limit int) string {
	if len(s) > limit {
		return ""
	}
	return s
}

// versionName spells a TLS version as OpenSSL's SSL_get_version does, which is what HAProxy puts here.
func versionName(version uint16) string {
	switch version {
	case tls.VersionTLS10:
		return "TLSv1"
	case tls.VersionTLS11:
		return "TLSv1.1"
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS13:
		return "TLSv1.3"
	}
	return "unknown"
}

// cipherName is tls.CipherSuiteName, which builds a list of all suites at each call, without that for those
// of TLS 1.3.
func cipherName(id uint16) string {
	switch id {
	case tls.TLS_AES_128_GCM_SHA256:
		return "TLS_AES_128_GCM_SHA256"
	case tls.TLS_AES_256_GCM_SHA384:
		return "TLS_AES_256_GCM_SHA384"
	case tls.TLS_CHACHA20_POLY1305_SHA256:
		return "TLS_CHACHA20_POLY1305_SHA256"
	}
	return tls.CipherSuiteName(id)
}
