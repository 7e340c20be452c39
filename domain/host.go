package domain

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// maxName is the length of the longest host name in text: 255 bytes on the wire (RFC 1035 section 2.3.4)
// less the first length and the root.
const maxName = 253

// maxNameInput bounds what is given to IDNA: no A-label name of maxName bytes comes from a longer Unicode
// one, unless that is full of characters that are mapped to nothing.
const maxNameInput = 1024

// unixPrefix begins a dial address that is a socket of the file system; its path follows.
const unixPrefix = "unix/"

// profile maps and checks as browsers do (UTS #46, non-transitional). Underscores and `--` in the third and
// fourth place are in use and no business of IDNA's, so ASCII is left to hostFault.
var profile = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(false), idna.CheckHyphens(false))

// NormalName returns the normal form of a domain's name, which may be a wildcard. An error quotes the name
// and says what to do.
func NormalName(name string) (string, error) {
	rest, wildcard := strings.CutPrefix(name, "*.")
	if strings.Contains(rest, "*") {
		return "", fmt.Errorf("%s has a * in another place than before the first dot; a wildcard is written *.example.com and covers one label", quote(name))
	}
	host, err := normalHost(rest)
	if err != nil {
		return "", err
	}
	if !wildcard {
		return host, nil
	}
	if len(host)+2 > maxName {
		return "", tooLong(name)
	}
	return "*." + host, nil
}

// normalHost returns the normal form of a host name without wildcard.
func normalHost(name string) (string, error) {
	if name == "" {
		return "", errors.New("is missing; give a host name such as app.example.com")
	}
	if len(name) > maxNameInput {
		return "", tooLong(name)
	}
	if _, ok := parseAddr(strings.Trim(name, "[]")); ok {
		return "", fmt.Errorf("%s is an IP address; give a host name (clients send no IP address as server name, RFC 6066 section 3)", quote(name))
	}
	host := strings.ToLower(name)
	if needsIDNA(host) {
		var err error
		if host, err = toASCII(host); err != nil {
			// idna's errors hold the whole label.
			return "", fmt.Errorf("%s is no internationalised host name (UTS #46); correct its spelling", quote(name))
		}
	}
	host = strings.TrimSuffix(host, ".")
	if len(host) > maxName {
		return "", tooLong(name)
	}
	if fault, _ := hostFault(host); fault != "" {
		return "", fmt.Errorf("%s %s", quote(name), fault)
	}
	return host, nil
}

func tooLong(name string) error {
	return fmt.Errorf("%s is longer than the %d bytes that a host name can have", quote(name), maxName)
}

// needsIDNA reports whether there is anything in host, lower case, that is not plain ASCII or that claims
// to be an A-label.
func needsIDNA(host string) bool {
	for i := range len(host) {
		if host[i] >= utf8.RuneSelf {
			return true
		}
	}
	return strings.HasPrefix(host, "xn--") || strings.Contains(host, ".xn--")
}

// toASCII maps and checks host, and then its own result: profile sees the direction of characters such as
// U+2138, a Hebrew letter to UTS #46, only after they have been mapped. Without the second look, what one
// end writes the other would refuse.
func toASCII(host string) (string, error) {
	ascii, err := profile.ToASCII(host)
	if err != nil {
		return "", err
	}
	return profile.ToASCII(ascii)
}

// NormalHost returns the normal form of a server name from a ClientHello: sni in lower case. It returns
// false for what can be no domain's name: empty, more than 253 bytes, labels of 0 or more than 63 bytes,
// other characters than letters, digits, hyphen and underscore, a hyphen at either end of a label, IP
// literals in any form. A final dot is malformed too: RFC 6066 section 3 rules it out, and crypto/tls
// refuses it already.
//
// A-labels are not decoded: what the table holds is valid, and a lookup finds nothing else. It allocates
// only where sni has upper-case letters.
func NormalHost(sni string) (host string, ok bool) {
	fault, upper := hostFault(sni)
	if fault != "" {
		return "", false
	}
	if upper {
		return strings.ToLower(sni), true
	}
	return sni, true
}

// WildcardOf returns the wildcard name that covers host, "*.b.c" for "a.b.c". A single label has none.
func WildcardOf(host string) (wildcard string, ok bool) {
	i := strings.IndexByte(host, '.')
	if i <= 0 || i == len(host)-1 {
		return "", false
	}
	return "*" + host[i:], true
}

// hostFault says what keeps s from being an ASCII host name, or returns "", and whether s has upper-case
// letters. It is the only place that knows these rules, and it allocates nothing.
func hostFault(s string) (fault string, upper bool) {
	if len(s) > maxName {
		return "is longer than the 253 bytes that a host name can have", false
	}
	start := 0
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case 'A' <= c && c <= 'Z':
			upper = true
		case c == '.':
			if fault := labelFault(s[start:i]); fault != "" {
				return fault, false
			}
			start = i + 1
		default:
			return "has a character that no host name has; use letters, digits, hyphens and dots", false
		}
	}
	if fault := labelFault(s[start:]); fault != "" {
		return fault, false
	}
	if isNumber(s[start:]) {
		return "ends in a number, as an IP address does; the last label of a host name is no number", false
	}
	return "", upper
}

func labelFault(s string) string {
	switch {
	case s == "":
		return "has an empty label; remove the dot too many"
	case len(s) > 63:
		return "has a label of more than 63 bytes"
	case s[0] == '-' || s[len(s)-1] == '-':
		return "has a label that begins or ends with a hyphen"
	}
	return ""
}

// isNumber reports whether a name with this last label is an IPv4 address to some: inet_aton, and with it
// the system's resolver, takes 127.1, 017700000001 and 0x7f000001 for 127.0.0.1 (WHATWG URL section 3.5).
func isNumber(last string) bool {
	hex := len(last) >= 2 && last[0] == '0' && last[1]|0x20 == 'x'
	if hex {
		last = last[2:]
	}
	for i := range len(last) {
		c := last[i]
		if ('0' > c || c > '9') && (!hex || c|0x20 < 'a' || c|0x20 > 'f') {
			return false
		}
	}
	return true
}

// normalServerName returns the normal form of the name that an upstream's certificate must cover.
func normalServerName(name string) (string, error) {
	if addr, ok := parseAddr(name); ok {
		if addr.Zone() != "" {
			return "", fmt.Errorf("%s has a zone, which no certificate has; leave it out", quote(name))
		}
		return addrText(addr.Unmap(), name), nil
	}
	if strings.HasPrefix(name, "[") {
		return "", fmt.Errorf("%s has brackets; give an IP address without them", quote(name))
	}
	if strings.HasPrefix(name, "*") {
		return "", fmt.Errorf("%s is a wildcard; give the one name that the upstream's certificate must cover", quote(name))
	}
	return normalHost(name)
}

// normalDial returns the normal form of an upstream's address.
func normalDial(dial string, src Source) (string, error) {
	const example = "write host:port, such as 10.0.0.5:8443, [2001:db8::5]:8443 or app.internal:8443"
	if dial == "" {
		return "", errors.New("is missing; " + example)
	}
	if path, ok := strings.CutPrefix(dial, unixPrefix); ok {
		return dial, checkSocket(path, src)
	}
	if strings.Contains(dial, "://") {
		return "", fmt.Errorf("%s is a URL; %s", quote(dial), example)
	}
	host, port, err := net.SplitHostPort(dial)
	if err != nil || host == "" || port == "" {
		return "", fmt.Errorf("%s is not an address with a port; %s", quote(dial), example)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", fmt.Errorf("%s has the port %s; give a number from 1 to 65535", quote(dial), quote(port))
	}
	normal, err := normalDialHost(host, dial[0] == '[', src)
	if err != nil {
		return "", err
	}
	if normal == host && port[0] != '0' {
		return dial, nil
	}
	return net.JoinHostPort(normal, strconv.FormatUint(n, 10)), nil
}

func normalDialHost(host string, bracketed bool, src Source) (string, error) {
	addr, isAddr := parseAddr(host)
	if bracketed && (!isAddr || !addr.Is6()) {
		return "", fmt.Errorf("%s in brackets is not an IPv6 address; brackets are for those alone", quote(host))
	}
	if isAddr {
		if addr.Zone() == "" {
			return addrText(addr.Unmap(), host), nil
		}
		if src != Static {
			return "", fmt.Errorf("%s has a zone, which names an interface of the edge; only the edge's own configuration may do that", quote(host))
		}
		if !printable(host) {
			return "", fmt.Errorf("%s has a zone with control characters; remove them", quote(host))
		}
		return addr.String(), nil
	}
	name, err := normalHost(host)
	if err != nil {
		return "", err
	}
	if strings.HasSuffix(host, ".") && len(name) < maxName {
		name += "."
	}
	return name, nil
}

// parseAddr is netip.ParseAddr, without making an error for each host name: that took half of the time that a
// name takes.
func parseAddr(s string) (addr netip.Addr, ok bool) {
	if s == "" || (s[len(s)-1] < '0' || s[len(s)-1] > '9') && !strings.Contains(s, ":") {
		return addr, false // IPv4 ends in a digit
	}
	addr, err := netip.ParseAddr(s)
	return addr, err == nil
}

// addrText returns addr.String(), as given if that is the same.
func addrText(addr netip.Addr, given string) string {
	var buf [64]byte
	if text := addr.AppendTo(buf[:0]); string(text) == given {
		return given
	}
	return addr.String()
}

// maxSocketPath is sun_path of unix(7) without its final zero byte.
const maxSocketPath = 107

func checkSocket(path string, src Source) error {
	switch {
	case src != Static:
		return errors.New("is a unix socket, which only the edge's own configuration may name; give host:port")
	case !strings.HasPrefix(path, "/") || len(path) == 1:
		return errors.New("names a unix socket without an absolute path; write unix//run/app.sock")
	case len(path) > maxSocketPath:
		return fmt.Errorf("has a path of %d bytes; a unix socket's has at most %d", len(path), maxSocketPath)
	case !printable(path):
		return errors.New("has a path with control characters; remove them")
	}
	return nil
}

// printable reports whether s is text that shows as it is: no control characters, no invisible ones, no
// spaces but the ASCII one, and nothing that was lost in an encoding.
func printable(s string) bool {
	for _, c := range s {
		if !unicode.IsPrint(c) || c == utf8.RuneError {
			return false
		}
	}
	return true
}
