package probe

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"
)

// WriteText writes r for a person at a terminal. The first line is the verdict, for example
// `post-quantum: yes (X25519MLKEM768)` or `post-quantum: no (X25519)`; then what was found, aligned, and
// where there is something to be done about it, what. It returns the error of w.
func (r *Result) WriteText(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "post-quantum: %s\n\n", r.verdict())
	r.writeFacts(&b)
	if advice := r.advice(); advice != "" {
		fmt.Fprintf(&b, "\n%s\n", advice)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func (r *Result) verdict() string {
	switch {
	case r.Error != "":
		return "unknown (no handshake)"
	case r.PostQuantum:
		return "yes (" + r.Group + ")"
	case r.Group == "":
		return "no (" + r.TLSVersion + ", no key-exchange group)"
	case r.TLSVersion != tls13:
		return "no (" + r.TLSVersion + ", " + r.Group + ")"
	}
	return "no (" + r.Group + ")"
}

const tls13 = "TLS 1.3"

func (r *Result) writeFacts(b *bytes.Buffer) {
	server := r.Address
	if host, _, _ := net.SplitHostPort(r.Address); r.RemoteIP != "" && r.RemoteIP != host {
		server += " (" + r.RemoteIP + ")"
	}
	writeFact(b, "server", server)
	writeFact(b, "server name", r.ServerName)
	writeFact(b, "failed", r.failed())
	writeFact(b, "version", r.TLSVersion)
	writeFact(b, "cipher suite", r.CipherSuite)
	writeFact(b, "group", r.Group)
	if r.Error == "" {
		writeFact(b, "hello retry", choose(r.HelloRetryRequest, "yes, one round trip more", "no"))
		writeFact(b, "alpn", choose(r.ALPN != "", r.ALPN, "none"))
	}
	writeFact(b, "timings", r.Timings.String())
	if len(r.Chain) > 0 {
		writeFact(b, "chain", choose(r.ChainOK, "ok", "not trusted: "+r.ChainError))
	}
	for i, certificate := range r.Chain {
		certificate.write(b, i+1)
	}
}

// writeFact leaves out what did not become known.
func writeFact(b *bytes.Buffer, label, value string) {
	if value != "" {
		fmt.Fprintf(b, "%-13s %s\n", label, value)
	}
}

func choose(yes bool, a, b string) string {
	if yes {
		return a
	}
	return b
}

func (r *Result) failed() string {
	if r.Stage == "" {
		return r.Error
	}
	return string(r.Stage) + ": " + r.Error
}

// String is, for example, `dns 12.3 ms, connect 20.1 ms, handshake 41.7 ms, total 74.2 ms`.
func (t Timings) String() string {
	return fmt.Sprintf("dns %.1f ms, connect %.1f ms, handshake %.1f ms, total %.1f ms",
		t.DNS*1000, t.Connect*1000, t.Handshake*1000, t.Total*1000)
}

func (c *Certificate) write(b *bytes.Buffer, number int) {
	fmt.Fprintf(b, "%12d. %s\n", number, choose(c.Subject != "", c.Subject, "(no subject)"))
	for _, fact := range []struct{ label, value string }{
		{"issuer", c.Issuer},
		{"names", shorten(c.Names)},
		{"valid", c.NotBefore.Format(time.DateOnly) + " to " + c.NotAfter.Format(time.DateOnly)},
		{"key", c.KeyType},
		{"sha256", c.SHA256},
	} {
		if fact.value != "" {
			fmt.Fprintf(b, "%13s %-6s  %s\n", "", fact.label, fact.value)
		}
	}
}

func shorten(names []string) string {
	const shown = 5 // about one line
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}

// advice says what to do about a result that is not post-quantum, in lines of at most 80 columns.
func (r *Result) advice() string {
	switch {
	case r.PostQuantum:
		return ""
	case r.Stage == StageDNS:
		return "Check the spelling of the name, and that it has an A or AAAA record."
	case r.Stage == StageConnect:
		return "Check that the server listens on this port and that no firewall is in between."
	case r.Stage == StageHandshake:
		return `Possible reasons: the port speaks something other than TLS, or TLS only after
STARTTLS; the server wants a PROXY protocol header first, a client certificate,
or another server name; or it fails on a ClientHello of more than one packet,
as post-quantum key shares make it.`
	case r.Error != "":
		return ""
	case !slices.ContainsFunc(r.OfferedGroups, isHybrid):
		return `This says nothing about the server: the probe itself offered no hybrid group.
Check GODEBUG (tlsmlkem=0 takes them away) and the groups that were asked for.`
	case r.TLSVersion != tls13:
		return `Traffic recorded today can be decrypted once a large quantum computer exists.
Hybrid key exchange needs TLS 1.3: enable it, and the group X25519MLKEM768, on
the server, or put pqproxy in front of it if it cannot be changed.`
	}
	return `Traffic recorded today can be decrypted once a large quantum computer exists.
Enable the group X25519MLKEM768 on the server (OpenSSL from 3.5 and Go from 1.24
have it by default), or put pqproxy in front of it if it cannot be changed.`
}
