//go:build linux

package lab

import "strconv"

// A typical domain, of which the large sets consist: a name of four labels, a tenant that has a hundred of them, one
// upstream at an address and with a certificate name of its own (nothing that a table could share between domains),
// PROXY v1, the default policy written out. Its certificate comes from ACME, by default, and nobody asks for it.
// About 200 bytes of JSON:
//
//	{"name":"app-0001234.tenant-0012.example.com","tenant":"tenant-0012","upstreams":[{"dial":"10.0.4.210:8443",
//	"tls":{"server_name":"app-0001234.internal"}}],"proxy_protocol":"v1","post_quantum":"prefer"}
//
// The content depends on nothing but its number and version, so that every run and machine measures the same sets.

// MaxDomains is what the numbers in names have digits for.
const MaxDomains = 10_000_000

// TypicalCertificate is a further member of typical domains. Where nothing shall be ordered for them it makes their
// certificates those of the local CA, which are issued to who comes.
var TypicalCertificate = ""

// AppendTypical appends the JSON of domain i in some version. Versions differ in the upstream's port.
func AppendTypical(b []byte, i, version int) []byte {
	b = append(b, `{"name":"`...)
	b = appendTypicalName(b, i)
	b = append(b, `","tenant":"tenant-`...)
	b = appendPadded(b, i/100, 4)
	b = append(b, `","upstreams":[{"dial":"10.`...)
	b = strconv.AppendInt(b, int64(i>>16&0xff), 10)
	b = append(b, '.')
	b = strconv.AppendInt(b, int64(i>>8&0xff), 10)
	b = append(b, '.')
	b = strconv.AppendInt(b, int64(i&0xff), 10)
	b = append(b, ':')
	b = strconv.AppendInt(b, int64(8443+version%1000), 10)
	b = append(b, `","tls":{"server_name":"app-`...)
	b = appendPadded(b, i, 7)
	b = append(b, `.internal"}}],"proxy_protocol":"v1","post_quantum":"prefer"`...)
	return append(append(b, TypicalCertificate...), '}')
}

func appendTypicalName(b []byte, i int) []byte {
	b = append(b, "app-"...)
	b = appendPadded(b, i, 7)
	b = append(b, ".tenant-"...)
	b = appendPadded(b, i/100, 4)
	return append(b, ".example.com"...)
}

// TypicalName is the name of domain i.
func TypicalName(i int) string { return string(appendTypicalName(nil, i)) }

// appendPadded appends v with leading zeros.
func appendPadded(b []byte, v, width int) []byte {
	digits := strconv.Itoa(v)
	for range width - len(digits) {
		b = append(b, '0')
	}
	return append(b, digits...)
}

// TypicalSet returns the elements of a `domains` list: domains 0 to n-1 of a version, and behind them further records.
func TypicalSet(n, version int, further ...[]byte) []byte {
	b := make([]byte, 0, n*216+len(further)*1024)
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = AppendTypical(b, i, version)
	}
	for _, record := range further {
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = append(b, record...)
	}
	return b
}
