package domain

import (
	"strconv"
	"unicode/utf8"
)

// AppendJSON appends d as JSON to b and returns the longer slice: all fields, the private key too, and without
// those that json.Marshal leaves out. It is for writing a million domains: no reflection, and no memory but b's.
// What either of them writes reads the same.
//
// The text BEGINS with `{"name":"`, the name and a quotation mark. In normal form a name has no character that
// is escaped, so whoever reads such texts again finds the name without parsing. Code relies on that: name stays
// the first member.
//
// Bytes that are not UTF-8, which normal form has none of, become U+FFFD, as with json.Marshal. Characters that
// have a meaning in HTML are not escaped.
func (d *Domain) AppendJSON(b []byte) []byte {
	b = append(b, `{"name":`...)
	b = appendString(b, d.Name)
	b = appendText(b, "tenant", d.Tenant)
	b = appendUpstreams(b, d.Upstreams)
	b = appendText(b, "load_balancing", string(d.LoadBalancing))
	if d.HealthCheck != nil {
		b = appendHealthCheck(b, d.HealthCheck)
	}
	b = appendText(b, "proxy_protocol", string(d.ProxyProtocol))
	b = appendText(b, "post_quantum", string(d.PostQuantum))
	b = appendALPN(b, d.ALPN)
	if d.Certificate != (Certificate{}) {
		b = appendCertificate(b, &d.Certificate)
	}
	b = appendInt(b, "max_connections", d.MaxConnections)
	b = appendTrue(b, "suspended", d.Suspended)
	return append(b, '}')
}

func appendUpstreams(b []byte, upstreams []Upstream) []byte {
	b = appendKey(b, "upstreams")
	if upstreams == nil {
		return append(b, "null"...)
	}
	b = append(b, '[')
	for i := range upstreams {
		if i > 0 {
			b = append(b, ',')
		}
		u := &upstreams[i]
		b = append(b, `{"dial":`...)
		b = appendString(b, u.Dial)
		if u.TLS != nil {
			b = appendUpstreamTLS(b, u.TLS)
		}
		b = appendText(b, "region", u.Region)
		b = append(b, '}')
	}
	return append(b, ']')
}

func appendUpstreamTLS(b []byte, t *UpstreamTLS) []byte {
	b = append(appendKey(b, "tls"), '{')
	b = appendText(b, "server_name", t.ServerName)
	b = appendText(b, "ca_pem", t.CAPEM)
	b = appendText(b, "ca_file", t.CAFile)
	b = appendText(b, "post_quantum", string(t.PostQuantum))
	b = appendTrue(b, "insecure_skip_verify", t.InsecureSkipVerify)
	return append(b, '}')
}

func appendHealthCheck(b []byte, h *HealthCheck) []byte {
	b = append(appendKey(b, "health_check"), '{')
	b = appendText(b, "type", string(h.Type))
	b = appendDuration(b, "interval", h.Interval)
	b = appendDuration(b, "timeout", h.Timeout)
	b = appendInt(b, "rise", h.Rise)
	b = appendInt(b, "fall", h.Fall)
	return append(b, '}')
}

func appendALPN(b []byte, names []string) []byte {
	if len(names) == 0 {
		return b
	}
	b = append(appendKey(b, "alpn"), '[')
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, name)
	}
	return append(b, ']')
}

func appendCertificate(b []byte, c *Certificate) []byte {
	b = append(appendKey(b, "certificate"), '{')
	b = appendText(b, "source", string(c.Source))
	b = appendText(b, "chain_pem", c.ChainPEM)
	b = appendText(b, "key_pem", c.KeyPEM)
	b = appendText(b, "chain_file", c.ChainFile)
	b = appendText(b, "key_file", c.KeyFile)
	b = appendText(b, "fallback", c.Fallback)
	return append(b, '}')
}

// appendKey begins a member of the object that b is in.
func appendKey(b []byte, key string) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	b = append(b, '"')
	b = append(b, key...)
	return append(b, `":`...)
}

// appendText and those below append a member unless its value is zero.
func appendText(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	return appendString(appendKey(b, key), value)
}

func appendInt(b []byte, key string, value int) []byte {
	if value == 0 {
		return b
	}
	return strconv.AppendInt(appendKey(b, key), int64(value), 10)
}

func appendDuration(b []byte, key string, value Duration) []byte {
	if value == 0 {
		return b
	}
	b = append(appendKey(b, key), '"')
	b = append(b, value.String()...)
	return append(b, '"')
}

func appendTrue(b []byte, key string, value bool) []byte {
	if !value {
		return b
	}
	return append(appendKey(b, key), "true"...)
}

// appendString appends s as a JSON string (RFC 8259 section 7), in pieces between what must be escaped: mostly
// in one.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	done := 0
	for i := 0; i < len(s); {
		c := s[i]
		if ' ' <= c && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			if _, size := utf8.DecodeRuneInString(s[i:]); size > 1 {
				i += size
				continue
			}
		}
		b = append(b, s[done:i]...)
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n': // PEM texts are full of them
			b = append(b, `\n`...)
		case c < ' ':
			b = append(b, `\u00`...)
			b = append(b, hex[c>>4], hex[c&15])
		default:
			b = append(b, `\ufffd`...)
		}
		i++
		done = i
	}
	b = append(b, s[done:]...)
	return append(b, '"')
}
