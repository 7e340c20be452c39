package pqproxy

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// truncationKinds are upstreams of every kind, by name. Their connections are in the hands of the test.
type truncationKinds map[string]*pqtest.Upstream

// startTruncation starts a street with a domain KIND.wild.example.com for each kind of upstream.
func startTruncation(t *testing.T, limits string) (*street, truncationKinds) {
	t.Helper()
	s := startStreet(t, "", nil)
	kinds := truncationKinds{
		"tls":   pqtest.StartUpstream(t, pqtest.UpstreamConfig{Handler: pqtest.Hold, TLS: &tls.Config{Certificates: []tls.Certificate{s.ca.Issue(t, "tls.wild.example.com")}}}),
		"plain": pqtest.StartUpstream(t, pqtest.UpstreamConfig{Handler: pqtest.Hold}),
		"unix":  pqtest.StartUpstream(t, pqtest.UpstreamConfig{Handler: pqtest.Hold, Network: "unix"}),
	}
	s.upstreams += len(kinds)
	option := limits + neighbourDomain
	for kind, up := range kinds {
		secure := ""
		if kind == "tls" {
			secure = "{\ntls_ca $CA\n}"
		}
		option += fmt.Sprintf("domain %s.wild.example.com {\nupstream %s %s\n$PAIR\n}\n", kind, up.Addr(), secure)
	}
	s.load(s.fill(option))
	return s, kinds
}

// connect returns both ends of a connection to the upstream of a kind, over which a word went each way. They are
// closed with the test.
func (k truncationKinds) connect(t *testing.T, s *street, kind string) (client *tls.Conn, up *pqtest.UpstreamConn) {
	t.Helper()
	client = pqtest.Dial(t, s.addr, s.client(kind+".wild.example.com"))
	up = k[kind].Next(t)
	t.Cleanup(func() { up.Close() })
	say(t, client, up, "ping")
	say(t, up, client, "pong")
	return client, up
}

// say sends a text from one end to the other.
func say(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatalf("writing: %v", err)
	}
	expect(t, to, text)
}

// endWriting ends one direction in one of three ways. CloseNotify on a plain connection is its FIN.
func endWriting(t *testing.T, c net.Conn, how pqtest.End) {
	t.Helper()
	var err error
	switch how {
	case pqtest.CloseNotify:
		err = c.(interface{ CloseWrite() error }).CloseWrite()
	case pqtest.FIN:
		err = pqtest.Raw(t, c).CloseWrite()
	case pqtest.RST:
		pqtest.Reset(t, c)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// checkEnding reads to the end and compares how that came.
func checkEnding(t *testing.T, who string, c net.Conn, want pqtest.End) {
	t.Helper()
	if data, end := pqtest.ReadToEnd(t, c); len(data) > 0 || end != want {
		t.Errorf("the %s read %q and %s, want %s alone", who, data, end, want)
	}
}

// TestTruncationFromClient ends the client's direction in every way. The upstream sees what it was, the other
// direction goes on, and the end of that is passed on as well.
func TestTruncationFromClient(t *testing.T) {
	pqtest.Leaks(t)
	s, kinds := startTruncation(t, "")
	for _, test := range []struct {
		kind      string
		how, want pqtest.End
	}{
		{"tls", pqtest.CloseNotify, pqtest.CloseNotify},
		{"tls", pqtest.FIN, pqtest.FIN},
		{"tls", pqtest.RST, pqtest.RST},
		{"plain", pqtest.CloseNotify, pqtest.FIN},
		{"plain", pqtest.FIN, pqtest.FIN},
		{"plain", pqtest.RST, pqtest.RST},
		{"unix", pqtest.CloseNotify, pqtest.FIN},
		{"unix", pqtest.FIN, pqtest.FIN},
		{"unix", pqtest.RST, pqtest.FIN}, // these sockets know no reset
	} {
		t.Run(fmt.Sprintf("%s/%s", test.kind, test.how), func(t *testing.T) {
			s.leaks(t)
			client, up := kinds.connect(t, s, test.kind)
			endWriting(t, client, test.how)
			checkEnding(t, "upstream", up, test.want)
			if test.how == pqtest.RST {
				checkEnd(t, s.recordOf(t, client), reasonClientReset, sideClient)
				s.disturbed(t)
				return
			}
			say(t, up, client, "and one more thing")
			endWriting(t, up, pqtest.CloseNotify)
			checkEnding(t, "client", client, pqtest.CloseNotify)
			checkEnd(t, s.recordOf(t, client), reasonDone, sideClient)
			s.disturbed(t)
		})
	}
}

// TestTruncationFromUpstream ends the upstream's direction in every way, likewise.
func TestTruncationFromUpstream(t *testing.T) {
	pqtest.Leaks(t)
	s, kinds := startTruncation(t, "")
	for _, test := range []struct {
		kind      string
		how, want pqtest.End
		answer    pqtest.End // how the upstream sees the client's close_notify
	}{
		{"tls", pqtest.CloseNotify, pqtest.CloseNotify, pqtest.CloseNotify},
		{"tls", pqtest.FIN, pqtest.FIN, pqtest.CloseNotify},
		{"tls", pqtest.RST, pqtest.RST, ""},
		{"plain", pqtest.FIN, pqtest.CloseNotify, pqtest.FIN},
		{"plain", pqtest.RST, pqtest.RST, ""},
		{"unix", pqtest.FIN, pqtest.CloseNotify, pqtest.FIN},
	} {
		t.Run(fmt.Sprintf("%s/%s", test.kind, test.how), func(t *testing.T) {
			s.leaks(t)
			client, up := kinds.connect(t, s, test.kind)
			endWriting(t, up, test.how)
			checkEnding(t, "client", client, test.want)
			if test.how == pqtest.RST {
				checkEnd(t, s.recordOf(t, client), reasonUpstreamReset, sideUpstream)
				s.disturbed(t)
				return
			}
			say(t, client, up, "and one more thing")
			endWriting(t, client, pqtest.CloseNotify)
			checkEnding(t, "upstream", up, test.answer)
			checkEnd(t, s.recordOf(t, client), reasonDone, sideUpstream)
			s.disturbed(t)
		})
	}
}

// TestTruncationBehindLayer has caddy-l4's proxy_protocol handler wrap the client's socket in a connection of its own,
// which has no half-close and whose descriptor must not be read.
func TestTruncationBehindLayer(t *testing.T) {
	pqtest.Leaks(t)
	p := &proxied{street: startStreetBehindProxy(t, hostileDomains, pqtest.Hold)}
	connect := func(t *testing.T) (client *tls.Conn, tap *tapped, up *pqtest.UpstreamConn, port float64) {
		raw, header, port := p.connect(t, "192.0.2.1")
		if _, err := raw.Write(header); err != nil {
			t.Fatal(err)
		}
		tap = &tapped{RawConn: raw}
		client = tls.Client(tap, p.client("app.example.com"))
		if err := client.Handshake(); err != nil {
			t.Fatal(err)
		}
		up = p.up.Next(t)
		t.Cleanup(func() { up.Close() })
		say(t, client, up, "ping")
		say(t, up, client, "pong")
		return client, tap, up, port
	}
	for _, how := range []pqtest.End{pqtest.CloseNotify, pqtest.FIN, pqtest.RST} {
		t.Run("client/"+string(how), func(t *testing.T) {
			p.leaks(t)
			client, tap, up, port := connect(t)
			if how == pqtest.CloseNotify {
				endWriting(t, client, how)
			} else {
				endWriting(t, tap.RawConn, how)
			}
			checkEnding(t, "upstream", up, how)
			if how == pqtest.RST {
				checkEnd(t, p.log.recordWhere(keyClientPort, port), reasonClientReset, sideClient)
				return
			}
			say(t, up, client, "and one more thing")
			endWriting(t, up, pqtest.CloseNotify)
			tap.checkEnding(t, client, pqtest.CloseNotify)
			checkEnd(t, p.log.recordWhere(keyClientPort, port), reasonDone, sideClient)
		})
		t.Run("upstream/"+string(how), func(t *testing.T) {
			p.leaks(t)
			client, tap, up, port := connect(t)
			endWriting(t, up, how)
			tap.checkEnding(t, client, how)
			if how == pqtest.RST {
				checkEnd(t, p.log.recordWhere(keyClientPort, port), reasonUpstreamReset, sideUpstream)
				return
			}
			say(t, client, up, "and one more thing")
			endWriting(t, client, pqtest.CloseNotify)
			checkEnding(t, "upstream", up, pqtest.CloseNotify)
			checkEnd(t, p.log.recordWhere(keyClientPort, port), reasonDone, sideUpstream)
		})
	}
}

// tapped is the socket of a client that sent something before TLS. It remembers whether its end was read:
// crypto/tls reads close_notify as io.EOF, too.
type tapped struct {
	pqtest.RawConn
	ended bool
}

func (c *tapped) Read(p []byte) (int, error) {
	n, err := c.RawConn.Read(p)
	c.ended = c.ended || err == io.EOF
	return n, err
}

// checkEnding is the function of that name for the *tls.Conn above.
func (c *tapped) checkEnding(t *testing.T, client *tls.Conn, want pqtest.End) {
	t.Helper()
	data, err := io.ReadAll(client)
	end := pqtest.CloseNotify
	switch {
	case isReset(err):
		end = pqtest.RST
	case err != nil:
		t.Fatalf("reading to the end: %v", err)
	case c.ended:
		end = pqtest.FIN
	}
	if len(data) > 0 || end != want {
		t.Errorf("the client read %q and %s, want %s alone", data, end, want)
	}
}

// TestTruncationOfBulk ends a direction right behind more bytes than any buffer holds: all of them arrive before
// the end.
func TestTruncationOfBulk(t *testing.T) {
	pqtest.Leaks(t)
	s, kinds := startTruncation(t, "")
	bulk := bytes.Repeat([]byte("0123456789abcdef-"), 300_000) // 5.1 MB, in no step with records
	for _, test := range []struct {
		kind                 string
		down                 bool
		how, client, upwards pqtest.End
	}{
		{"tls", false, pqtest.CloseNotify, "", pqtest.CloseNotify},
		{"tls", false, pqtest.FIN, "", pqtest.FIN},
		{"plain", false, pqtest.CloseNotify, "", pqtest.FIN},
		{"tls", true, pqtest.CloseNotify, pqtest.CloseNotify, ""},
		{"tls", true, pqtest.FIN, pqtest.FIN, ""},
		{"plain", true, pqtest.FIN, pqtest.CloseNotify, ""},
	} {
		t.Run(fmt.Sprintf("%s/down=%v/%s", test.kind, test.down, test.how), func(t *testing.T) {
			s.leaks(t)
			client, up := kinds.connect(t, s, test.kind)
			from, to, want := net.Conn(client), net.Conn(up), test.upwards
			if test.down {
				from, to, want = up, client, test.client
			}
			sent := make(chan error, 1)
			go func() {
				_, err := from.Write(bulk)
				sent <- err
			}()
			got := make([]byte, len(bulk))
			if _, err := io.ReadFull(to, got[:len(bulk)/2]); err != nil { // the rest is on its way when it ends
				t.Fatal(err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			endWriting(t, from, test.how)
			rest, end := pqtest.ReadToEnd(t, to)
			copy(got[len(bulk)/2:], rest)
			if len(rest) != len(bulk)-len(bulk)/2 || !bytes.Equal(got, bulk) || end != want {
				t.Errorf("read the last %d bytes of %d (right: %v) and %s, want %s",
					len(rest), len(bulk)-len(bulk)/2, bytes.Equal(got, bulk), end, want)
			}
			to.Close()
			r := s.recordOf(t, client)
			key := keyBytesIn
			if test.down {
				key = keyBytesOut
			}
			if r.num(key) != float64(len(bulk)+4) || r.str(keyEndReason) != string(reasonDone) {
				t.Errorf("record has %s=%v end_reason=%s, want %d and done", key, r[key], r.str(keyEndReason), len(bulk)+4)
			}
			s.disturbed(t)
		})
	}
}

// TestTruncationWithinRecord ends the client's stream in the middle of a record: what was whole arrives, and the
// upstream does not see an orderly end.
func TestTruncationWithinRecord(t *testing.T) {
	pqtest.Leaks(t)
	s, kinds := startTruncation(t, "")
	client, seal := dialSealing(t, s.edge, "tls.wild.example.com")
	raw := pqtest.Raw(t, client)
	up := kinds["tls"].Next(t)
	t.Cleanup(func() { up.Close() })
	whole, cut := seal.data("whole"), seal.data("cut short")
	if _, err := raw.Write(append(whole, cut[:len(cut)-3]...)); err != nil {
		t.Fatal(err)
	}
	expect(t, up, "whole")
	endWriting(t, client, pqtest.FIN)
	checkEnding(t, "upstream", up, pqtest.FIN)
	endWriting(t, up, pqtest.CloseNotify)
	checkEnding(t, "client", client, pqtest.CloseNotify)
	checkEnd(t, s.recordOf(t, client), reasonDone, sideClient)
	s.disturbed(t)
}

// TestTruncationWithLastData has data and end arrive together, so that one read of the relay meets both.
func TestTruncationWithLastData(t *testing.T) {
	pqtest.Leaks(t)
	s, kinds := startTruncation(t, "")
	client, seal := dialSealing(t, s.edge, "tls.wild.example.com")
	up := kinds["tls"].Next(t)
	t.Cleanup(func() { up.Close() })
	if _, err := pqtest.Raw(t, client).Write(append(seal.data("last words"), seal.record(21, []byte{1, 0})...)); err != nil {
		t.Fatal(err)
	}
	if data, end := pqtest.ReadToEnd(t, up); string(data) != "last words" || end != pqtest.CloseNotify {
		t.Errorf("the upstream read %q and %s, want the last words and close_notify", data, end)
	}
	endWriting(t, up, pqtest.CloseNotify)
	checkEnding(t, "client", client, pqtest.CloseNotify)
	checkEnd(t, s.recordOf(t, client), reasonDone, sideClient)
}

// TestTruncationBeforeFirstByte has upstreams end before their first byte and before the client has: they hung up.
// Only TLS can say that this was meant.
func TestTruncationBeforeFirstByte(t *testing.T) {
	pqtest.Leaks(t)
	s, kinds := startTruncation(t, "")
	for _, test := range []struct {
		kind      string
		how, want pqtest.End
	}{
		{"tls", pqtest.CloseNotify, pqtest.CloseNotify},
		{"tls", pqtest.FIN, pqtest.RST},
		{"tls", pqtest.RST, pqtest.RST},
		{"plain", pqtest.FIN, pqtest.RST},
		{"plain", pqtest.RST, pqtest.RST},
		{"unix", pqtest.FIN, pqtest.RST},
	} {
		t.Run(fmt.Sprintf("%s/%s", test.kind, test.how), func(t *testing.T) {
			s.leaks(t)
			client := pqtest.Dial(t, s.addr, s.client(test.kind+".wild.example.com"))
			up := kinds[test.kind].Next(t)
			defer up.Close()
			say(t, client, up, "anybody there?")
			endWriting(t, up, test.how)
			checkEnding(t, "client", client, test.want)
			client.Close()
			checkEnd(t, s.recordOf(t, client), reasonUpClosedEarly, sideUpstream)
			s.disturbed(t)
		})
	}
	// Once the client has ended, an upstream without a word is none that hung up.
	client := pqtest.Dial(t, s.addr, s.client("plain.wild.example.com"))
	up := kinds["plain"].Next(t)
	endWriting(t, client, pqtest.CloseNotify)
	checkEnding(t, "upstream", up, pqtest.FIN)
	up.Close()
	checkEnding(t, "client", client, pqtest.CloseNotify)
	checkEnd(t, s.recordOf(t, client), reasonDone, sideClient)
}

// TestTruncationWhilePeerIsGone has one side end and go while the other still sends: that is a reset, too.
func TestTruncationWhilePeerIsGone(t *testing.T) {
	pqtest.Leaks(t)
	s, kinds := startTruncation(t, "")
	for _, test := range []struct {
		name   string
		gone   func(client, up net.Conn) net.Conn
		reason endReason
	}{
		{"client", func(client, _ net.Conn) net.Conn { return client }, reasonClientReset},
		{"upstream", func(_, up net.Conn) net.Conn { return up }, reasonUpstreamReset},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.leaks(t)
			client, up := kinds.connect(t, s, "tls")
			gone := test.gone(client, up)
			var rest net.Conn = client
			by := sideUpstream
			if gone == client {
				rest, by = up, sideClient
			}
			gone.Close()
			checkEnding(t, "other side", rest, pqtest.CloseNotify)
			// The kernel answers what is sent to a closed socket by a reset; the next write of the relay meets it.
			for {
				if _, err := io.WriteString(rest, "are you there?"); err != nil {
					if !isReset(err) {
						t.Errorf("writing to who is gone: %v, want a reset", err)
					}
					break
				}
			}
			checkEnd(t, s.recordOf(t, client), test.reason, by)
			s.disturbed(t)
		})
	}
}

// TestLinger ends one side and leaves the other silent: after linger both are reset, long before idle_timeout.
func TestLinger(t *testing.T) {
	pqtest.Leaks(t)
	s, kinds := startTruncation(t, "limits {\nlinger 300ms\n}")
	for _, kind := range []string{"tls", "plain"} {
		for _, first := range []side{sideClient, sideUpstream} {
			t.Run(kind+"/"+string(first), func(t *testing.T) {
				s.leaks(t)
				client, up := kinds.connect(t, s, kind)
				ended, rest := net.Conn(client), net.Conn(up)
				if first == sideUpstream {
					ended, rest = up, client
				}
				endWriting(t, ended, pqtest.CloseNotify)
				passedOn := pqtest.CloseNotify
				if kind == "plain" && first == sideClient {
					passedOn = pqtest.FIN
				}
				checkEnding(t, "silent side", rest, passedOn)
				checkEnding(t, "side that ended", ended, pqtest.RST)
				r := s.recordOf(t, client)
				// The deadline is what ended it, although one side had ended before.
				checkEnd(t, r, reasonIdleTimeout, sideEdge)
				s.disturbed(t)
			})
		}
	}
}

// TestLingerSlowReader has a client that takes several times linger to read what the upstream sent before it ended.
// Nothing is relayed any more meanwhile, but what the kernel holds goes on leaving: a reset would cut the answer off.
func TestLingerSlowReader(t *testing.T) {
	pqtest.Leaks(t)
	const linger = 200 * time.Millisecond
	s, kinds := startTruncation(t, fmt.Sprintf("limits {\nlinger %s\n}", linger))
	client, up := kinds.connect(t, s, "plain")
	if err := pqtest.Raw(t, client).(*net.TCPConn).SetReadBuffer(32 << 10); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 2<<20)
	if _, err := up.Write(answer); err != nil {
		t.Fatal(err)
	}
	endWriting(t, up, pqtest.CloseNotify)

	pace := time.NewTicker(linger / 4)
	defer pace.Stop()
	buf, got := make([]byte, len(answer)/20), 0
	for begun := time.Now(); time.Since(begun) < 4*linger; <-pace.C {
		n, err := io.ReadFull(client, buf)
		if got += n; err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
	}
	rest, end := pqtest.ReadToEnd(t, client)
	if got += len(rest); got != len(answer) || end != pqtest.CloseNotify {
		t.Errorf("the client read %d of %d bytes and %s", got, len(answer), end)
	}
	client.Close()
	checkEnd(t, s.recordOf(t, client), reasonDone, sideUpstream)
}
