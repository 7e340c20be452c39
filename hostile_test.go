package pqproxy

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/mholt/caddy-l4/modules/l4subroute"
	_ "github.com/mholt/caddy-l4/modules/l4tls"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// Alerts that clients see here (RFC 8446, section 6), beside those that we send ourselves. 0 is none.
const (
	noAlert                = 0
	alertUnexpectedMessage = 10
	alertBadRecordMAC      = 20
	alertRecordOverflow    = 22
	alertProtocolVersion   = 70
	alertUnsupportedExt    = 110
)

// street is an edge with a neighbour on it: a connection that was there first and must not notice what
// happens to others.
type street struct {
	*edge
	up        *pqtest.Upstream // TLS with a certificate for every name of the edge; not the neighbour's
	neighbour *tls.Conn        // to b.example.com, which echoes
	upstreams int              // that run, the neighbour's included
}

// startStreet starts an edge with the domains, in which `$UP` is `street.up` with its braces, and `$PAIR` a certificate
// option. The handler is that of the upstream (nil: it echoes).
func startStreet(t *testing.T, option string, handler func(*pqtest.UpstreamConn), handlers ...string) *street {
	t.Helper()
	s := &street{edge: startEdge(t, "", handlers...), upstreams: 2}
	s.up = pqtest.StartUpstream(t, pqtest.UpstreamConfig{Handler: handler, TLS: &tls.Config{
		Certificates: []tls.Certificate{s.ca.Issue(t, "app.example.com", "*.wild.example.com")},
	}})
	beside := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	option += fmt.Sprintf("\ndomain b.example.com {\nupstream %s\n$PAIR\n}", beside.Addr())
	s.load(s.fill(option), handlers...)
	s.neighbour = pqtest.Dial(t, s.addr, s.client("b.example.com"))
	s.disturbed(t)
	return s
}

// leaks is pqtest.Leaks within a test. It waits for the edge and the upstreams to accept connections: a goroutine
// that has not come so far does not show whose it is, and would count as leaked later.
func (s *street) leaks(t *testing.T) {
	t.Helper()
	pqtest.Wait(t, "edge and upstreams to accept", func() bool {
		buf := make([]byte, 1<<20)
		edges, upstreams := 0, 0
		for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			head, calls, _ := strings.Cut(stack, "\n")
			if strings.Contains(calls, ".(*listenHandle).Accept(") && strings.Contains(head, "[select") { // else one that is closed
				edges++
			}
			if strings.Contains(calls, ".(*Upstream).accept(") {
				upstreams++
			}
		}
		return edges == 1 && upstreams >= s.upstreams
	})
	pqtest.Leaks(t)
}

// fill replaces `$UP` and `$PAIR`.
func (s *street) fill(option string) string {
	return strings.NewReplacer(
		"$UP", "upstream "+s.up.Addr()+" {\ntls_ca $CA\n}",
		"$PAIR", "certificate $CHAIN $KEY",
	).Replace(option)
}

// disturbed fails the test if the neighbour has noticed anything.
func (s *street) disturbed(t *testing.T) {
	t.Helper()
	if err := s.neighbour.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	echo(t, s.neighbour, "still here")
}

// recordOf returns the record of a client's connection.
func (e *edge) recordOf(t *testing.T, c net.Conn) logLine {
	t.Helper()
	return e.log.recordWhere(keyClientPort, float64(addrPort(c.LocalAddr()).Port()))
}

// checkEnd compares how a record says that its connection ended.
func checkEnd(t *testing.T, r logLine, reason endReason, by side) {
	t.Helper()
	if r.str(keyEndReason) != string(reason) || r.str(keyClosedBy) != string(by) {
		t.Errorf("record has end_reason=%s closed_by=%s (%s), want %s and %s",
			r.str(keyEndReason), r.str(keyClosedBy), r.str(keyError), reason, by)
	}
}

// checkAlert expects the next record to be a fatal alert, or with noAlert the end of the stream.
func checkAlert(t *testing.T, c net.Conn, want byte) {
	t.Helper()
	if want == noAlert {
		return
	}
	level, got, ok := pqtest.ReadAlert(t, c)
	if !ok || level != 2 || got != want {
		t.Errorf("read an alert: %v; level %d, number %d; want a fatal %d", ok, level, got, want)
	}
}

// checkReached connects to a host and expects that no more than so many connections reached the upstream
// before. Accept queues are in order, so that none can be on its way still.
func (s *street) checkReached(t *testing.T, host string, want int) {
	t.Helper()
	c := pqtest.Dial(t, s.addr, s.client(host))
	echo(t, c, "hi")
	c.Close()
	checkEnd(t, s.recordOf(t, c), reasonDone, sideClient)
	if got := s.up.Accepted() - 1; got != want {
		t.Errorf("%d connections had reached the upstream, want %d", got, want)
	}
}

// hostileDomains are domains on the upstream of a street, one for each thing that a name decides.
const hostileDomains = `
	domain app.example.com {
		$UP
		$PAIR
	}
	domain require.wild.example.com {
		$UP
		post_quantum require
		$PAIR
	}
	domain alpn.wild.example.com {
		$UP
		alpn imap
		$PAIR
	}
	domain v2.wild.example.com {
		$UP
		proxy_protocol v2
		$PAIR
	}
	domain suspended.wild.example.com {
		$UP
		suspended
		$PAIR
	}`

// neighbourDomain keeps the neighbour's domain in a config. What is open goes on where it was.
const neighbourDomain = `
	domain b.example.com {
		upstream 127.0.0.1:9
		$PAIR
	}
`

// TestHostileHello sends hellos that cannot succeed. Each gets its alert and a FIN, is told of by its record,
// and opens nothing towards the upstream.
func TestHostileHello(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, hostileDomains, nil)
	hello := func(t *testing.T, change ...func(*tls.Config)) []byte {
		return pqtest.ClientHello(t, s.client("app.example.com", change...))
	}
	version := func(v uint16) func(*tls.Config) {
		return func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, v }
	}
	named := func(name string) func(*tls.Config) {
		return func(c *tls.Config) { c.ServerName = name }
	}
	sni := func(name string) func(*testing.T) []byte {
		return func(t *testing.T) []byte { return pqtest.WithSNI(hello(t), []byte(name)) }
	}
	// serverName is a server_name extension with names one after the other (RFC 6066, section 3).
	serverName := func(names ...string) []byte {
		var list []byte
		for _, name := range names {
			list = append(binary.BigEndian.AppendUint16(append(list, 0), uint16(len(name))), name...)
		}
		return append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...)
	}
	extension := func(data []byte) func(*testing.T) []byte {
		return func(t *testing.T) []byte { return pqtest.WithExtension(hello(t), 0, data) }
	}
	text := func(text string) func(*testing.T) []byte {
		return func(*testing.T) []byte { return []byte(text) }
	}
	for _, test := range []struct {
		name   string
		hello  func(t *testing.T) []byte
		alert  byte
		reason endReason
	}{
		{"unknown name", sni("unknown.example.com"), alertUnrecognizedName, reasonUnknownDomain},
		{"name under a name", sni("x.app.example.com"), alertUnrecognizedName, reasonUnknownDomain},
		{"no name", func(t *testing.T) []byte { return pqtest.WithoutSNI(hello(t)) }, alertUnrecognizedName, reasonNoSNI},
		{"IPv4 literal", sni("127.0.0.1"), alertUnrecognizedName, reasonUnknownDomain},
		{"IPv6 literal", sni("2001:db8::1"), alertUnrecognizedName, reasonUnknownDomain},
		{"IPv6 literal in brackets", sni("[::1]"), alertUnrecognizedName, reasonUnknownDomain},
		{"name with a port", sni("app.example.com:443"), alertUnrecognizedName, reasonUnknownDomain},
		{"name with a zero byte", sni("app.example.com\x00.example.org"), alertUnrecognizedName, reasonUnknownDomain},
		{"name that is no text", sni("\xff\xfe"), alertUnrecognizedName, reasonUnknownDomain},
		{"name of one dot", sni("."), alertDecodeError, reasonBadHello},
		{"name with a final dot", sni("app.example.com."), alertDecodeError, reasonBadHello},
		{"name of a wildcard", sni("*.example.com"), alertUnrecognizedName, reasonUnknownDomain},
		{"overlong name", sni(strings.Repeat("a.", 200) + "example.com"), alertUnrecognizedName, reasonUnknownDomain},
		{"name of 8 KiB", sni(strings.Repeat("a", 8<<10)), alertUnrecognizedName, reasonUnknownDomain},
		{"empty name", sni(""), alertDecodeError, reasonBadHello},
		{"empty server_name", extension(nil), alertDecodeError, reasonBadHello},
		{"empty list of names", extension([]byte{0, 0}), alertDecodeError, reasonBadHello},
		{"two names", extension(serverName("app.example.com", "b.example.com")), alertDecodeError, reasonBadHello},
		{"list cut short", extension(serverName("app.example.com")[:9]), alertDecodeError, reasonBadHello},
		{"server_name twice", func(t *testing.T) []byte {
			h := pqtest.ParseHello(hello(t))
			h.Extensions = append(h.Extensions, pqtest.Extension{Type: 0, Data: serverName("b.example.com")})
			return h.Bytes()
		}, alertDecodeError, reasonBadHello},
		{"suspended", sni("suspended.wild.example.com"), alertUnrecognizedName, reasonSuspended},
		{"longer than max_hello", func(t *testing.T) []byte { return pqtest.WithPadding(hello(t), 16<<10+1) }, alertDecodeError, reasonHelloTooLarge},
		{"much longer than max_hello", func(t *testing.T) []byte { return pqtest.WithPadding(hello(t), 60_000) }, alertDecodeError, reasonHelloTooLarge},
		{"longer than max_hello by record headers", func(t *testing.T) []byte {
			return pqtest.SplitRecords(pqtest.WithPadding(hello(t), 8<<10), 4)
		}, alertDecodeError, reasonHelloTooLarge},
		{"TLS 1.2", func(t *testing.T) []byte { return hello(t, version(tls.VersionTLS12)) }, alertProtocolVersion, reasonTLSVersion},
		{"TLS 1.2 without extensions", func(t *testing.T) []byte {
			h := pqtest.ParseHello(hello(t, version(tls.VersionTLS12)))
			h.Extensions = h.Extensions[:0]
			h.SetExtension(0, serverName("app.example.com"))
			return h.Bytes()
		}, alertProtocolVersion, reasonTLSVersion},
		{"no common group", func(t *testing.T) []byte {
			return hello(t, named("require.wild.example.com"), onlyGroup(tls.X25519))
		}, alertHandshakeFailure, reasonNoCommonGroup},
		{"early data", func(t *testing.T) []byte { return pqtest.WithEarlyData(hello(t)) }, alertUnsupportedExt, reasonEarlyData},
		{"other protocol", func(t *testing.T) []byte {
			return hello(t, named("alpn.wild.example.com"), offering("h2", "http/1.1"))
		}, alertNoApplicationProtocol, reasonALPNMismatch},
		{"ACME validation", func(t *testing.T) []byte { return hello(t, offering(acmeTLS)) }, alertNoApplicationProtocol, reasonALPNMismatch},
		{"plain HTTP", text("GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n"), noAlert, reasonNotTLS},
		{"SSH", text("SSH-2.0-OpenSSH_9.2p1\r\n"), noAlert, reasonNotTLS},
		{"zeros", text(string(make([]byte, 1000))), noAlert, reasonNotTLS},
		{"PROXY header", text("PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n"), noAlert, reasonNotTLS},
		{"SSLv2", text("\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10"), alertProtocolVersion, reasonNotTLS},
		{"record that is too long", text("\x16\x03\x01\xff\xff" + strings.Repeat("x", 100)), alertRecordOverflow, reasonNotTLS},
		{"other message than a hello", text("\x16\x03\x01\x00\x04\x14\x00\x00\x00"), alertUnexpectedMessage, reasonBadHello},
		{"hello of nothing", text("\x16\x03\x01\x00\x04\x01\x00\x00\x00"), alertDecodeError, reasonBadHello},
		{"empty records", text(strings.Repeat("\x16\x03\x01\x00\x00", 100)), alertUnexpectedMessage, reasonBadHello},
		{"truncated extensions", func(t *testing.T) []byte {
			b := hello(t)
			b[len(b)-1]++ // changes what is inside of the last extension, which has lengths
			return cutMessage(b, len(b)-5-4-20)
		}, alertDecodeError, reasonBadHello},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.leaks(t)
			c := pqtest.DialRaw(t, s.addr)
			if _, err := c.Write(test.hello(t)); err != nil {
				t.Fatal(err)
			}
			checkAlert(t, c, test.alert)
			if data, end := pqtest.ReadToEnd(t, c); len(data) > 0 || end != pqtest.FIN {
				t.Errorf("read %q and then %s, want a FIN alone", data, end)
			}
			c.Close()
			r := s.recordOf(t, c)
			checkEnd(t, r, test.reason, sideEdge)
			if r.str("level") != "info" {
				t.Errorf("the record has level %s", r.str("level"))
			}
			s.disturbed(t)
		})
	}
	s.checkReached(t, "app.example.com", 0)
}

// cutMessage returns a hello in one record with its message cut to n bytes of body, all lengths around it right.
func cutMessage(hello []byte, n int) []byte {
	cut := slices.Clone(hello[:5+4+n])
	binary.BigEndian.PutUint16(cut[3:], uint16(4+n))
	cut[6], cut[7], cut[8] = byte(n>>16), byte(n>>8), byte(n)
	return cut
}

// TestHostileHelloPrefetched has a matcher read the hello before us: what it has read counts too.
func TestHostileHelloPrefetched(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, "limits {\nmax_hello 4096\n}"+hostileDomains, nil, `subroute {
		@known tls sni app.example.com b.example.com
		route @known {
			pqproxy
		}
	}`)
	hello := pqtest.ClientHello(t, s.client("app.example.com"))
	for _, size := range []int{4097, 8 << 10, 16 << 10} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s.leaks(t)
			c := pqtest.DialRaw(t, s.addr)
			if _, err := c.Write(pqtest.WithPadding(hello, size)); err != nil {
				t.Fatal(err)
			}
			checkAlert(t, c, alertDecodeError)
			if data, end := pqtest.ReadToEnd(t, c); len(data) > 0 || end != pqtest.FIN {
				t.Errorf("read %q and then %s, want a FIN alone", data, end)
			}
			c.Close()
			checkEnd(t, s.recordOf(t, c), reasonHelloTooLarge, sideEdge)
			s.disturbed(t)
		})
	}
	s.checkReached(t, "app.example.com", 0)
	checkLargestHello(t, s, 4096)
}

// checkLargestHello expects a hello of exactly that size to be answered by a ServerHello.
func checkLargestHello(t *testing.T, s *street, size int) {
	t.Helper()
	hello := pqtest.WithPadding(pqtest.ClientHello(t, s.client("app.example.com")), size)
	if len(hello) != size {
		t.Fatalf("the hello has %d bytes, want %d", len(hello), size)
	}
	c := pqtest.DialRaw(t, s.addr)
	if _, err := c.Write(hello); err != nil {
		t.Fatal(err)
	}
	readServerHello(t, c)
	c.Close()
	checkEnd(t, s.recordOf(t, c), reasonClientGone, sideClient)
}

// readServerHello reads one record and expects it to be of the handshake.
func readServerHello(t *testing.T, c net.Conn) {
	t.Helper()
	var head [5]byte
	if _, err := io.ReadFull(c, head[:]); err != nil || head[0] != 22 {
		t.Fatalf("read a record of type %d (%v), want a ServerHello", head[0], err)
	}
	if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(head[3:]))); err != nil {
		t.Fatal(err)
	}
}

// TestLargestHello sends a hello of exactly max_hello.
func TestLargestHello(t *testing.T) {
	pqtest.Leaks(t)
	checkLargestHello(t, startStreet(t, hostileDomains, nil), 16<<10)
}

// rewriter is a client's socket whose first write, the hello, goes through split and leaves in several
// segments.
type rewriter struct {
	net.Conn
	split func(hello []byte) [][]byte
}

func (w *rewriter) Write(p []byte) (int, error) {
	if w.split == nil {
		return w.Conn.Write(p)
	}
	segments := w.split(p)
	w.split = nil
	for _, segment := range segments {
		if _, err := w.Conn.Write(segment); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// TestSplitHello sends good hellos in unusual pieces, directly and through a matcher, which must not matter.
func TestSplitHello(t *testing.T) {
	chunks := func(b []byte, n int) [][]byte { return slices.Collect(slices.Chunk(b, n)) }
	for front, handler := range map[string]string{
		"direct":  "pqproxy",
		"matcher": "subroute {\n@tls tls\nroute @tls {\npqproxy\n}\n}",
	} {
		t.Run(front, func(t *testing.T) {
			pqtest.Leaks(t)
			s := startStreet(t, hostileDomains, nil, handler)
			for _, test := range []struct {
				name  string
				split func(hello []byte) [][]byte
			}{
				{"byte at a time", func(b []byte) [][]byte { return chunks(b, 1) }},
				{"many records", func(b []byte) [][]byte { return [][]byte{pqtest.SplitRecords(b, 7)} }},
				{"records of one byte", func(b []byte) [][]byte { return [][]byte{pqtest.SplitRecords(b, 1)} }},
				{"many records and segments", func(b []byte) [][]byte { return chunks(pqtest.SplitRecords(b, 100), 31) }},
				{"record header apart", func(b []byte) [][]byte { return [][]byte{b[:5], b[5:]} }},
				{"message header in two records", func(b []byte) [][]byte {
					records := pqtest.SplitRecords(b, 2)
					return [][]byte{records[:7], records[7:]}
				}},
			} {
				t.Run(test.name, func(t *testing.T) {
					s.leaks(t)
					raw := pqtest.DialRaw(t, s.addr)
					c := tls.Client(&rewriter{Conn: raw, split: test.split}, s.client("app.example.com"))
					echo(t, c, "hello in pieces")
					c.Close()
					checkEnd(t, s.recordOf(t, raw), reasonDone, sideClient)
					s.disturbed(t)
				})
			}
		})
	}
}

// TestHelloRetryRequest has a client send no share of the one group that both know.
func TestHelloRetryRequest(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, "domain app.example.com {\n$UP\npost_quantum off\n$PAIR\n}", nil)
	c := pqtest.Dial(t, s.addr, s.client("app.example.com", func(c *tls.Config) {
		c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768, tls.CurveP256}
	}))
	echo(t, c, "again")
	c.Close()
	r := s.recordOf(t, c)
	checkEnd(t, r, reasonDone, sideClient)
	if r[keyHelloRetry] != true || r.str(keyGroup) != "CurveP256" {
		t.Errorf("record has hello_retry=%v group=%s, want true and CurveP256", r[keyHelloRetry], r.str(keyGroup))
	}
	s.disturbed(t)
}

// TestHostileSilence ends connections that do not go on: before the hello, in it, and after our ServerHello. The
// neighbour's handshake was long before.
func TestHostileSilence(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, hostileDomains, nil)
	hello := pqtest.ClientHello(t, s.client("app.example.com"))
	nothing := func(*testing.T, pqtest.RawConn) {}
	half := func(t *testing.T, c pqtest.RawConn) {
		if _, err := c.Write(hello[:len(hello)/2]); err != nil {
			t.Fatal(err)
		}
	}
	answered := func(hello []byte) func(*testing.T, pqtest.RawConn) {
		return func(t *testing.T, c pqtest.RawConn) {
			reached := s.up.Accepted()
			if _, err := c.Write(hello); err != nil {
				t.Fatal(err)
			}
			readServerHello(t, c)
			pqtest.Wait(t, "the early dial", func() bool { return s.up.Accepted() > reached })
		}
	}
	flight := answered(hello)
	// The dial for it waits with its header for a group that will never be known.
	retry := answered(pqtest.WithKeyShares(pqtest.ClientHello(t, s.client("v2.wild.example.com"))))
	remain := func(t *testing.T, c pqtest.RawConn) {
		if _, end := pqtest.ReadToEnd(t, c); end == pqtest.CloseNotify {
			t.Errorf("the client read %s, which says that all is well", end)
		}
	}
	leave := func(_ *testing.T, c pqtest.RawConn) { c.Close() }
	finish := func(t *testing.T, c pqtest.RawConn) {
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		remain(t, c)
	}
	reset := func(t *testing.T, c pqtest.RawConn) { pqtest.Reset(t, c) }
	alert := func(t *testing.T, c pqtest.RawConn) { // in clear, as clients do who cannot work with our share
		if _, err := c.Write([]byte{21, 3, 3, 0, 2, 2, 47}); err != nil {
			t.Fatal(err)
		}
		remain(t, c)
	}
	type deed struct {
		name   string
		before func(*testing.T, pqtest.RawConn)
		then   func(*testing.T, pqtest.RawConn)
		reason endReason
		by     side
		level  string
	}
	run := func(d deed) {
		t.Run(d.name, func(t *testing.T) {
			s.leaks(t)
			c := pqtest.DialRaw(t, s.addr)
			d.before(t, c)
			d.then(t, c)
			c.Close()
			r := s.recordOf(t, c)
			checkEnd(t, r, d.reason, d.by)
			if r.str("level") != d.level {
				t.Errorf("the record has level %s, want %s", r.str("level"), d.level)
			}
			s.disturbed(t)
		})
	}
	for _, d := range []deed{
		{"nothing, then FIN", nothing, leave, reasonNoHello, sideClient, "debug"},
		{"nothing, then half-close", nothing, finish, reasonNoHello, sideClient, "debug"},
		{"nothing, then reset", nothing, reset, reasonNoHello, sideClient, "debug"},
		{"half a hello, then FIN", half, leave, reasonClientGone, sideClient, "info"},
		{"half a hello, then half-close", half, finish, reasonClientGone, sideClient, "info"},
		{"half a hello, then reset", half, reset, reasonClientGone, sideClient, "info"},
		{"hello, then FIN", flight, leave, reasonClientGone, sideClient, "info"},
		{"hello, then half-close", flight, finish, reasonClientGone, sideClient, "info"},
		{"hello, then reset", flight, reset, reasonClientGone, sideClient, "info"},
		{"half of a retry, then FIN", retry, leave, reasonClientGone, sideClient, "info"},
		{"half of a retry, then reset", retry, reset, reasonClientGone, sideClient, "info"},
		{"hello, then alert", flight, alert, reasonHandshake, sideEdge, "info"},
	} {
		run(d)
	}
	s.load(s.fill("limits {\nhandshake_timeout 300ms\n}" + hostileDomains + neighbourDomain))
	for _, d := range []deed{
		{"nothing", nothing, remain, reasonHelloTimeout, sideEdge, "debug"},
		{"half a hello", half, remain, reasonHelloTimeout, sideEdge, "info"},
		{"hello", flight, remain, reasonHandshakeTime, sideEdge, "info"},
		{"half of a retry", retry, remain, reasonHandshakeTime, sideEdge, "info"},
	} {
		run(d)
	}
}

// TestHostileHelloThenReset has clients reset while our flight is written: whether that or the next read
// meets the reset, they are the ones who went.
func TestHostileHelloThenReset(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, hostileDomains, nil)
	hello := pqtest.ClientHello(t, s.client("app.example.com"))
	for range 20 {
		c := pqtest.DialRaw(t, s.addr)
		if _, err := c.Write(hello); err != nil {
			t.Fatal(err)
		}
		pqtest.Reset(t, c)
		checkEnd(t, s.recordOf(t, c), reasonClientGone, sideClient)
	}
	s.disturbed(t)
}

// TestHostileClientRefusesUs has a client that does not trust our certificate.
func TestHostileClientRefusesUs(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, hostileDomains, nil)
	raw := pqtest.DialRaw(t, s.addr)
	c := tls.Client(raw, s.client("app.example.com", func(c *tls.Config) { c.RootCAs = x509.NewCertPool() }))
	var unknown x509.UnknownAuthorityError
	if err := c.Handshake(); !errors.As(err, &unknown) {
		t.Fatalf("handshake: %v, want an unknown authority", err)
	}
	c.Close()
	r := s.recordOf(t, raw)
	checkEnd(t, r, reasonHandshake, sideClient)
	if !strings.Contains(r.str(keyError), "bad certificate") {
		t.Errorf("the error does not name the client's alert: %s", r.str(keyError))
	}
	s.disturbed(t)
}

// sealer writes TLS 1.3 records in the place of a client's *tls.Conn, which has no way to send a key update or
// records that are wrong. The *tls.Conn must not write any more.
type sealer struct {
	hash   func() hash.Hash
	keyLen int
	secret []byte // client_application_traffic_secret_N (RFC 8446, section 7.1)
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

// dialSealing connects to a host and returns the connection with a sealer for it.
func dialSealing(t *testing.T, e *edge, host string) (*tls.Conn, *sealer) {
	t.Helper()
	var secrets bytes.Buffer
	c := pqtest.Dial(t, e.addr, e.client(host, func(c *tls.Config) { c.KeyLogWriter = &secrets }))
	s := new(sealer)
	switch suite := c.ConnectionState().CipherSuite; suite {
	case tls.TLS_AES_128_GCM_SHA256:
		s.hash, s.keyLen = sha256.New, 16
	case tls.TLS_AES_256_GCM_SHA384:
		s.hash, s.keyLen = sha512.New384, 32
	default:
		t.Fatalf("%s was negotiated; the sealer knows AES-GCM, which both ends prefer where the processor has AES", tls.CipherSuiteName(suite))
	}
	for line := range strings.Lines(secrets.String()) {
		if fields := strings.Fields(line); fields[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, err := hex.DecodeString(fields[2])
			if err != nil {
				t.Fatal(err)
			}
			s.rekey(t, secret)
			return c, s
		}
	}
	t.Fatal("no traffic secret was logged")
	return nil, nil
}

// rekey derives key and IV (RFC 8446, section 7.3).
func (s *sealer) rekey(t *testing.T, secret []byte) {
	t.Helper()
	block, err := aes.NewCipher(s.expand(t, secret, "key", s.keyLen))
	if err != nil {
		t.Fatal(err)
	}
	if s.aead, err = cipher.NewGCM(block); err != nil {
		t.Fatal(err)
	}
	s.secret, s.iv, s.seq = secret, s.expand(t, secret, "iv", 12), 0
}

// expand is HKDF-Expand-Label without context (RFC 8446, section 7.1).
func (s *sealer) expand(t *testing.T, secret []byte, label string, n int) []byte {
	t.Helper()
	label = "tls13 " + label
	info := string(binary.BigEndian.AppendUint16(nil, uint16(n))) + string(rune(len(label))) + label + "\x00"
	out, err := hkdf.Expand(s.hash, secret, info, n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// record returns one sealed record of a content type (RFC 8446, section 5.2).
func (s *sealer) record(typ byte, payload []byte) []byte {
	inner := append(slices.Clone(payload), typ)
	head := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(inner)+s.aead.Overhead()))
	nonce := slices.Clone(s.iv)
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^s.seq)
	s.seq++
	return s.aead.Seal(head, nonce, inner, head)
}

// data returns a text in one record.
func (s *sealer) data(text string) []byte { return s.record(23, []byte(text)) }

// keyUpdate returns a KeyUpdate, which may ask for the peer's, and seals what follows with the next keys (RFC
// 8446, sections 4.6.3 and 7.2). It is in one record, or cut in two.
func (s *sealer) keyUpdate(t *testing.T, ask, inTwo bool) (records []byte) {
	t.Helper()
	message := []byte{24, 0, 0, 1, 0}
	if ask {
		message[4] = 1
	}
	if inTwo {
		records = s.record(22, message[:2])
		message = message[2:]
	}
	records = append(records, s.record(22, message)...)
	s.rekey(t, s.expand(t, s.secret, "traffic upd", len(s.secret)))
	return records
}

// expect reads a text.
func expect(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q (%v), want %q", got, err, want)
	}
}

// TestKeyUpdate changes keys between data, also while data flows the other way, and sends harmless empty records. All
// of it is allowed.
func TestKeyUpdate(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, hostileDomains, nil)
	c, seal := dialSealing(t, s.edge, "app.example.com")
	raw := pqtest.Raw(t, c)
	write := func(b []byte) {
		t.Helper()
		if _, err := raw.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		write(seal.keyUpdate(t, i%2 == 0, i%3 == 0))
		for range 5 {
			write(seal.record(23, nil))
		}
		text := fmt.Sprint("after key update ", i)
		update := seal.keyUpdate(t, true, false)
		write(append(update, seal.data(text)...))
		expect(t, c, text)
	}

	// Thousands in one stream, each with a byte that makes it allowed. None asks for ours: the answers would
	// come in rows that a *tls.Conn takes for a storm in its turn.
	const storm = 3000
	sent := make(chan error, 1)
	var stream []byte
	for range storm {
		stream = append(stream, seal.keyUpdate(t, false, false)...)
		stream = append(stream, seal.data("x")...)
	}
	go func() {
		_, err := raw.Write(stream)
		sent <- err
	}()
	expect(t, c, strings.Repeat("x", storm))
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	s.disturbed(t)
	write(seal.record(21, []byte{1, 0})) // close_notify
	if data, end := pqtest.ReadToEnd(t, c); len(data) > 0 || end != pqtest.CloseNotify {
		t.Errorf("read %q and %s, want close_notify", data, end)
	}
	checkEnd(t, s.recordOf(t, c), reasonDone, sideClient)
}

// TestHostileRecords breaks TLS after the handshake. The client gets the alert and a reset, the upstream a reset.
func TestHostileRecords(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, hostileDomains, pqtest.Hold)
	hello := pqtest.ClientHello(t, s.client("app.example.com"))
	repeat := func(n int, one func() []byte) (all []byte) {
		for range n {
			all = append(all, one()...)
		}
		return all
	}
	for _, test := range []struct {
		name  string
		bytes func(t *testing.T, seal *sealer) []byte
		alert int
		// outrun: so much goes out before the alert that the reset can overtake it.
		outrun bool
	}{
		{"corrupted record", func(_ *testing.T, seal *sealer) []byte {
			record := seal.data("hello")
			record[len(record)-1] ^= 1
			return record
		}, alertBadRecordMAC, false},
		{"record twice", func(_ *testing.T, seal *sealer) []byte {
			record := seal.data("hello")
			return append(record, record...)
		}, alertBadRecordMAC, false},
		{"hello after the handshake", func(_ *testing.T, seal *sealer) []byte { return seal.record(22, hello[5:]) }, alertUnexpectedMessage, false},
		{"hello in clear", func(*testing.T, *sealer) []byte { return hello }, alertProtocolVersion, false},
		{"key update storm", func(t *testing.T, seal *sealer) []byte {
			return repeat(1000, func() []byte { return seal.keyUpdate(t, false, false) })
		}, alertUnexpectedMessage, false},
		{"key update storm that asks for ours", func(t *testing.T, seal *sealer) []byte {
			return repeat(1000, func() []byte { return seal.keyUpdate(t, true, false) })
		}, alertUnexpectedMessage, true},
		{"key update that is none", func(_ *testing.T, seal *sealer) []byte { return seal.record(22, []byte{24, 0, 0, 1, 7}) }, alertDecodeError, false},
		{"empty records", func(_ *testing.T, seal *sealer) []byte {
			return repeat(1000, func() []byte { return seal.record(23, nil) })
		}, alertUnexpectedMessage, false},
		{"plain HTTP", func(*testing.T, *sealer) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }, alertProtocolVersion, false},
		{"record that is too long", func(*testing.T, *sealer) []byte { return []byte{23, 3, 3, 0x41, 0x01} }, alertRecordOverflow, false},
		{"text that is too long", func(_ *testing.T, seal *sealer) []byte { return seal.record(23, make([]byte, maxPlaintext+1)) }, alertRecordOverflow, false},
		{"unknown content type", func(_ *testing.T, seal *sealer) []byte { return seal.record(99, []byte("x")) }, alertUnexpectedMessage, false},
		{"data within a message", func(_ *testing.T, seal *sealer) []byte {
			return append(seal.record(22, []byte{24, 0}), seal.data("x")...)
		}, alertUnexpectedMessage, false},
		{"endless message", func(_ *testing.T, seal *sealer) []byte {
			first := append(seal.record(22, []byte{24, 0xff, 0xff, 0xff}), seal.record(22, make([]byte, maxPlaintext))...)
			return append(first, repeat(8, func() []byte { return seal.record(22, make([]byte, maxPlaintext)) })...)
		}, alertInternalError, false},
		{"fatal alert", func(_ *testing.T, seal *sealer) []byte { return seal.record(21, []byte{2, 80}) }, noAlert, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.leaks(t)
			c, seal := dialSealing(t, s.edge, "app.example.com")
			raw := pqtest.Raw(t, c)
			up := s.up.Next(t)
			defer up.Close()
			if _, err := raw.Write(seal.data("first")); err != nil {
				t.Fatal(err)
			}
			expect(t, up, "first")
			// What is not read any more may be reset while it is written.
			_, _ = raw.Write(test.bytes(t, seal))

			_, err := io.Copy(io.Discard, c)
			reset := errors.Is(err, syscall.ECONNRESET)
			if got := alertOfHandshake(err); got != test.alert && !(test.outrun && reset) {
				t.Errorf("the client read %v, want alert %d", err, test.alert)
			}
			_ = raw.Close() // the edge waits for that, lest a reset overtake its alert
			if test.alert == noAlert && !reset {
				t.Errorf("the client read %v, want a reset", err)
			}
			if _, end := pqtest.ReadToEnd(t, up); end != pqtest.RST {
				t.Errorf("the upstream read %s, want a reset", end)
			}
			checkEnd(t, s.recordOf(t, c), reasonClientReset, sideClient)
			s.disturbed(t)
		})
	}
}

// TestHostileUpstreamRecords has an upstream break TLS after the handshake: the client gets a reset.
func TestHostileUpstreamRecords(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, hostileDomains, pqtest.Hold)
	for name, bytes := range map[string][]byte{
		"plain text":        []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"record of garbage": append([]byte{23, 3, 3, 0, 64}, make([]byte, 64)...),
		"alert in clear":    {21, 3, 3, 0, 2, 2, 40},
	} {
		for _, first := range []string{"", "first"} {
			t.Run(name+"/after "+fmt.Sprint(len(first)), func(t *testing.T) {
				s.leaks(t)
				c := pqtest.Dial(t, s.addr, s.client("app.example.com"))
				up := s.up.Next(t)
				defer up.Close()
				if _, err := io.WriteString(up, first); err != nil {
					t.Fatal(err)
				}
				expect(t, c, first)
				if _, err := up.Raw.Write(bytes); err != nil {
					t.Fatal(err)
				}
				if data, end := pqtest.ReadToEnd(t, c); len(data) > 0 || end != pqtest.RST {
					t.Errorf("read %q and %s, want a reset", data, end)
				}
				reason := reasonUpstreamReset
				if first == "" {
					reason = reasonUpClosedEarly
				}
				checkEnd(t, s.recordOf(t, c), reason, sideUpstream)
				s.disturbed(t)
			})
		}
	}
}

// unusable is an upstream that no connection can be made to.
type unusable struct {
	name   string
	option string // of the domain, $UP aside
	reason endReason
	by     side
	err    string // what the record's error must mention
}

// TestHostileUpstream has upstreams that cannot be used. A client that offers no ALPN has its ServerHello by then and
// gets a reset, never close_notify; one that does is still waiting for it where the upstream is asked for
// ALPN, and gets an alert.
func TestHostileUpstream(t *testing.T) {
	pqtest.Leaks(t)
	names := startDNS(t)
	names.set("no-such-name.internal", "NXDOMAIN")
	names.set("no-answer.internal", "SERVFAIL")
	usual := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = usual }) // when the edge has ended
	net.DefaultResolver = names.resolver()
	s := startStreet(t, "", nil)
	cert := func(name string) []tls.Certificate { return []tls.Certificate{s.ca.Issue(t, name)} }
	start := func(cfg pqtest.UpstreamConfig) string {
		s.upstreams++
		return pqtest.StartUpstream(t, cfg).Addr()
	}
	secure := func(cfg *tls.Config) string { return start(pqtest.UpstreamConfig{TLS: cfg}) }
	hangUp := func(c *pqtest.UpstreamConn) { _, _ = c.Read(make([]byte, 4)) }
	closed := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	closed.Close()
	const trusted = " {\ntls_ca $CA\n}"
	domains := []unusable{
		{"no-such-name", "upstream no-such-name.internal:80", reasonUnreachable, sideEdge, "no such host"},
		{"no-answer", "upstream no-answer.internal:443" + trusted, reasonUnreachable, sideEdge, "server misbehaving"},
		{"refused", "upstream " + closed.Addr(), reasonRefused, sideEdge, "refused"},
		{"refused-tls", "upstream " + closed.Addr() + trusted, reasonRefused, sideEdge, "refused"},
		{"no-socket", "upstream unix/$DIR/none", reasonRefused, sideEdge, "no such file"},
		{"wrong-name", "upstream " + secure(&tls.Config{Certificates: cert("other.internal")}) + trusted, reasonUpCertificate, sideEdge, "other.internal"},
		{"unknown-ca", "upstream " + secure(&tls.Config{Certificates: cert("unknown-ca.wild.example.com")}) + " {\ntls\n}", reasonUpCertificate, sideEdge, "authority"},
		{"expired", "upstream " + secure(&tls.Config{Certificates: []tls.Certificate{s.ca.IssueWith(t, func(c *x509.Certificate) {
			c.NotAfter = time.Now().Add(-time.Minute)
		}, "expired.wild.example.com")}}) + trusted, reasonUpCertificate, sideEdge, "expired"},
		{"classical", "upstream " + secure(&tls.Config{Certificates: cert("classical.wild.example.com"), CurvePreferences: []tls.CurveID{tls.X25519}}) +
			" {\ntls_ca $CA\ntls_post_quantum require\n}", reasonUpGroup, sideEdge, "handshake failure"},
		{"old", "upstream " + secure(&tls.Config{Certificates: cert("old.wild.example.com"), MaxVersion: tls.VersionTLS12}) + trusted, reasonUpTLS, sideEdge, "version"},
		{"no-tls", "upstream " + start(pqtest.UpstreamConfig{Handler: func(c *pqtest.UpstreamConn) {
			_, _ = io.WriteString(c, "220 mail.example.com ESMTP\r\n")
			_, _ = io.Copy(io.Discard, c)
		}}) + trusted, reasonUpTLS, sideEdge, "TLS"},
		{"hangs-up", "upstream " + start(pqtest.UpstreamConfig{Handler: hangUp}) + trusted, reasonUpClosedEarly, sideEdge, "proxy_protocol is off"},

		// PROXY is expected or not, and the domain has it the other way round.
		{"header-missing-tls", "upstream " + start(pqtest.UpstreamConfig{Proxy: true, TLS: &tls.Config{Certificates: cert("header-missing-tls.wild.example.com")}}) + trusted,
			reasonUpClosedEarly, sideEdge, "proxy_protocol is off"},
		{"header-v1-tls", "upstream " + secure(&tls.Config{Certificates: cert("header-v1-tls.wild.example.com")}) + trusted + "\nproxy_protocol v1",
			reasonUpClosedEarly, sideEdge, "proxy_protocol is v1"},
		{"header-v2-tls", "upstream " + secure(&tls.Config{Certificates: cert("header-v2-tls.wild.example.com")}) + trusted + "\nproxy_protocol v2",
			reasonUpClosedEarly, sideEdge, "proxy_protocol is v2"},
		{"header-missing", "upstream " + start(pqtest.UpstreamConfig{Proxy: true}), reasonUpClosedEarly, sideUpstream, "proxy_protocol is off"},
		{"header-v1", "upstream " + start(pqtest.UpstreamConfig{Handler: hangUp}) + "\nproxy_protocol v1", reasonUpClosedEarly, sideUpstream, "proxy_protocol is v1"},
		{"header-v2", "upstream " + start(pqtest.UpstreamConfig{Handler: hangUp}) + "\nproxy_protocol v2", reasonUpClosedEarly, sideUpstream, "proxy_protocol is v2"},
	}
	option := neighbourDomain
	for _, d := range domains {
		option += fmt.Sprintf("domain %s.wild.example.com {\n%s\n$PAIR\n}\n", d.name, d.option)
	}
	s.load(s.fill(option))
	for _, d := range domains {
		asked := strings.Contains(d.option, "tls") // an upstream without TLS is not asked for ALPN
		for _, protos := range [][]string{nil, {"h2", "http/1.1"}} {
			t.Run(fmt.Sprintf("%s/alpn=%d", d.name, len(protos)), func(t *testing.T) {
				s.leaks(t)
				raw := pqtest.DialRaw(t, s.addr)
				c := tls.Client(raw, s.client(d.name+".wild.example.com", offering(protos...)))
				err := c.Handshake()
				if asked && protos != nil {
					if alertOfHandshake(err) != alertInternalError {
						t.Errorf("handshake: %v, want internal_error", err)
					}
				} else if err != nil {
					t.Errorf("handshake: %v", err)
				} else {
					// The upstream may wait for what the client has to say. The reset may be there before that.
					if _, err = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n"); err == nil {
						_, err = io.ReadAll(c)
					}
					if !isReset(err) {
						t.Errorf("the client met %v, want a reset", err)
					}
				}
				c.Close()
				r := s.recordOf(t, raw)
				checkEnd(t, r, d.reason, d.by)
				if !strings.Contains(r.str(keyError), d.err) {
					t.Errorf("the error does not mention %q: %s", d.err, r.str(keyError))
				}
				if !strings.Contains(s.expand(d.option), r.str(keyUpstream)) || r.str(keyUpstream) == "" {
					t.Errorf("the record has upstream=%q", r.str(keyUpstream))
				}
				s.disturbed(t)
			})
		}
	}
}

// TestHostileUpstreamALPN has an upstream that first selects a protocol and then does not know it any more, by alert or by
// silence.
func TestHostileUpstreamALPN(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, "", nil)
	for name, later := range map[string][]string{"refuses": {"http/1.1"}, "selects none": nil} {
		t.Run(name, func(t *testing.T) {
			cert := []tls.Certificate{s.ca.Issue(t, "app.example.com")}
			asked := make(chan []string, 4) // what to select from next
			asked <- []string{"h2"}
			asked <- later
			asked <- []string{"http/1.1"}
			asked <- []string{"http/1.1"}
			up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{TLS: &tls.Config{
				GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
					return &tls.Config{Certificates: cert, NextProtos: <-asked}, nil
				},
			}})
			s.load(s.fill(neighbourDomain + fmt.Sprintf(`domain app.example.com {
				upstream %s {
					tls_ca $CA
				}
				$PAIR
			}`, up.Addr())))
			c := pqtest.Dial(t, s.addr, s.client("app.example.com", offering("h2", "http/1.1")))
			if data, end := pqtest.ReadToEnd(t, c); len(data) > 0 || end != pqtest.RST {
				t.Errorf("read %q and %s, want a reset", data, end)
			}
			checkEnd(t, s.recordOf(t, c), reasonUpALPN, sideEdge)
			s.disturbed(t)

			again := pqtest.Dial(t, s.addr, s.client("app.example.com", offering("h2", "http/1.1")))
			echo(t, again, "learned again")
			again.Close()
			if r := s.recordOf(t, again); r.str(keyALPN) != "http/1.1" {
				t.Errorf("after forgetting, the client got %q", r.str(keyALPN))
			}
		})
	}
}
