//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

func TestParseProxyV1(t *testing.T) {
	for _, tt := range []struct {
		name    string
		in      string
		want    netip.AddrPort
		wantErr bool
	}{
		{"TCP4", "PROXY TCP4 127.0.0.1 127.0.0.2 51000 443\r\n", netip.MustParseAddrPort("127.0.0.1:51000"), false},
		{"TCP6", "PROXY TCP6 2001:db8::1 2001:db8::2 51000 443\r\n", netip.MustParseAddrPort("[2001:db8::1]:51000"), false},
		{"UNKNOWN, short", "PROXY UNKNOWN\r\n", netip.AddrPort{}, false},
		{"UNKNOWN, with addresses", "PROXY UNKNOWN ::1 ::1 1 2\r\n", netip.AddrPort{}, false},
		{"no CR", "PROXY TCP4 127.0.0.1 127.0.0.2 51000 443\n", netip.AddrPort{}, true},
		{"a field short", "PROXY TCP4 127.0.0.1 127.0.0.2 51000\r\n", netip.AddrPort{}, true},
		{"bad address", "PROXY TCP4 localhost 127.0.0.2 51000 443\r\n", netip.AddrPort{}, true},
		{"bad port", "PROXY TCP4 127.0.0.1 127.0.0.2 510000 443\r\n", netip.AddrPort{}, true},
		{"too long", "PROXY TCP4 127.0.0.1 127.0.0.2 51000 443" + strings.Repeat(" ", 100) + "\r\n", netip.AddrPort{}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseProxyV1(tt.in)
			if (err != nil) != tt.wantErr || got != tt.want {
				t.Errorf("parseProxyV1(%q) = %v, %v, want %v, error %v", tt.in, got, err, tt.want, tt.wantErr)
			}
		})
	}
}

func TestReadProxyV1LeavesOtherStreams(t *testing.T) {
	r := bufio.NewReader(strings.NewReader("bnch rest"))
	if _, found, err := readProxyV1(r); found || err != nil {
		t.Fatalf("found = %v, err = %v", found, err)
	}
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "bnch rest" {
		t.Errorf("%q is left, %v", rest, err)
	}
}

func TestReportRoundTrip(t *testing.T) {
	want := report{place: headerInsideTLS, client: netip.AddrPortFrom(netip.Addr{}, 51000), group: 4588, resumed: true}
	f := want.frame()
	got, err := parseReport(&f)
	if err != nil || got != want {
		t.Errorf("parseReport = %+v, %v, want %+v", got, err, want)
	}
	echo := newFrame(opEcho, 1)
	if _, err := parseReport(&echo); err == nil {
		t.Error("an echo was taken for a report")
	}
}

func TestPattern(t *testing.T) {
	const n = 2*lab.PatternPeriod + 12345
	var stream bytes.Buffer
	if err := sendPattern(&stream, n); err != nil {
		t.Fatal(err)
	}
	sent := stream.Bytes()
	// Odd pieces, so that no boundary of sender and receiver falls together.
	if err := receivePattern(bytes.NewReader(sent), n, make([]byte, 7919)); err != nil {
		t.Error(err)
	}
	for name, broken := range map[string][]byte{
		"a byte changed":   flip(sent, n-1),
		"a record missing": append(append([]byte(nil), sent[:16<<10]...), sent[32<<10:]...),
		"records swapped":  append(append(append([]byte(nil), sent[16<<10:32<<10]...), sent[:16<<10]...), sent[32<<10:]...),
		"cut off":          sent[:n-1],
	} {
		if err := receivePattern(bytes.NewReader(broken), n, make([]byte, relayChunk)); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
}

func flip(b []byte, at int) []byte {
	b = append([]byte(nil), b...)
	b[at] ^= 1
	return b
}

func TestInParallel(t *testing.T) {
	var calls [4]atomic.Int64
	count := func(worker int) error { calls[worker].Add(1); return nil }
	if err := inParallel(4, 10, false, count); err != nil {
		t.Fatal(err)
	}
	if total := calls[0].Load() + calls[1].Load() + calls[2].Load() + calls[3].Load(); total != 10 {
		t.Errorf("%d calls, want 10", total)
	}

	calls = [4]atomic.Int64{}
	if err := inParallel(4, 8, true, count); err != nil {
		t.Fatal(err)
	}
	for worker := range calls {
		if n := calls[worker].Load(); n != 2 {
			t.Errorf("worker %d was called %d times, want 2", worker, n)
		}
	}

	broken := errors.New("broken")
	if err := inParallel(4, 1_000_000_000, false, func(int) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("err = %v, want %v and an early end", err, broken)
	}
}

// farServer accepts one connection and hands it over.
func farServer(t *testing.T) (addr string, accepted <-chan net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	conns := make(chan net.Conn, 1)
	go func() { // ends with the first connection or with the listener
		conn, err := l.Accept()
		if err == nil {
			conns <- conn
		}
	}()
	return l.Addr().String(), conns
}

func TestFarConn(t *testing.T) {
	const distance = 5 * time.Millisecond
	addr, accepted := farServer(t)
	start := time.Now()
	conn, err := dialFar(addr, distance)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if took := time.Since(start); took < 2*distance {
		t.Errorf("connecting took %v, less than a round trip", took)
	}
	server := <-accepted
	defer server.Close()

	start = time.Now()
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	// As crypto/tls does behind its close_notify: what was written before still arrives.
	if err := conn.SetWriteDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*farConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(server)
	if err != nil || string(got) != "ping" {
		t.Fatalf("the server read %q, %v", got, err)
	}
	if took := time.Since(start); took < distance {
		t.Errorf("the way there took %v, less than the distance", took)
	}
	if _, err := server.Write([]byte("pong")); err != nil {
		t.Fatal(err)
	}
	server.Close()
	got, err = io.ReadAll(conn)
	if err != nil || string(got) != "pong" {
		t.Fatalf("the client read %q, %v", got, err)
	}
	if took := time.Since(start); took < 2*distance {
		t.Errorf("both ways took %v, less than a round trip", took)
	}
}

func TestFarConnCloseEndsRead(t *testing.T) {
	addr, _ := farServer(t)
	conn, err := dialFar(addr, 0)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := conn.Read(make([]byte, 1)); ended <- err }()
	conn.Close()
	if err := <-ended; err == nil {
		t.Error("Read returned no error")
	}
}

// The load against itself, without a proxy between: a TLS upstream answers every operation with the header in clear
// and inside TLS, and a header that names another client is noticed.
func TestUpstreamTLS(t *testing.T) {
	for _, tt := range []struct {
		name  string
		place headerPlace
		port  int // added to the client's port in the header
	}{
		{name: "header in clear", place: headerClear},
		{name: "header inside TLS", place: headerInsideTLS},
		{name: "no header", place: headerAbsent},
		{name: "header of another client", place: headerClear, port: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, pki := newUpstream(t, upstreamTLS)
			raw, header := dialUpstream(t, u, tt.port)
			if tt.place == headerClear {
				write(t, raw, header)
			}
			conn := &clientConn{Conn: tls.Client(raw, &tls.Config{RootCAs: pki.roots, ServerName: upstreamName})}
			if tt.place == headerInsideTLS {
				write(t, conn, header)
			}
			about, err := conn.report()
			if tt.place == headerAbsent || tt.port != 0 {
				if err == nil {
					t.Fatalf("report = %+v, want an error", about)
				}
				return
			}
			if err != nil || about.place != tt.place || about.resumed || about.group != tls.X25519MLKEM768 {
				t.Fatalf("report = %+v, %v", about, err)
			}
			if err := errors.Join(conn.echo(7), conn.down(3*relayChunk+1, make([]byte, relayChunk)), conn.up(3*relayChunk+1)); err != nil {
				t.Error(err)
			}
			if err := errors.Join(conn.finish(), u.drained(), u.takeFault()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUpstreamPlain(t *testing.T) {
	u, _ := newUpstream(t, upstreamPlain)
	raw, header := dialUpstream(t, u, 0)
	request := newFrame(opReport, 0)
	write(t, raw, header+string(request[:]))
	var answer frame
	if _, err := io.ReadFull(raw, answer[:]); err != nil {
		t.Fatal(err)
	}
	about, err := parseReport(&answer)
	if err != nil || about.place != headerClear || int(about.client.Port()) != raw.LocalAddr().(*net.TCPAddr).Port {
		t.Errorf("report = %+v, %v", about, err)
	}
	raw.Close()
	if err := errors.Join(u.drained(), u.takeFault()); err != nil {
		t.Error(err)
	}
}

// Wrong bytes from a proxy end the run, also when only the upstream sees them.
func TestUpstreamNoticesWrongBytes(t *testing.T) {
	u, _ := newUpstream(t, upstreamPlain)
	raw, header := dialUpstream(t, u, 0)
	request := newFrame(opUp, 4)
	write(t, raw, header+string(request[:])+"\x00\x00\x00\x00")
	_, _ = io.Copy(io.Discard, raw) // until the upstream closes: it may not have accepted yet
	if err := u.drained(); err != nil {
		t.Fatal(err)
	}
	if err := u.takeFault(); err == nil {
		t.Error("no fault")
	}
	if err := u.takeFault(); err != nil {
		t.Errorf("the fault was not taken: %v", err)
	}
}

func newUpstream(t *testing.T, kind upstreamKind) (*upstream, *pki) {
	t.Helper()
	pki, err := newPKI(t.TempDir(), frontNames())
	if err != nil {
		t.Fatal(err)
	}
	u, err := startUpstream(kind, pki)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.listener.Close() })
	return u, pki
}

// dialUpstream connects and returns the header that names this connection, its port off by some.
func dialUpstream(t *testing.T, u *upstream, off int) (net.Conn, string) {
	t.Helper()
	raw, err := net.Dial("tcp4", u.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	return raw, fmt.Sprintf("PROXY TCP4 127.0.0.1 127.0.0.1 %d 443\r\n", raw.LocalAddr().(*net.TCPAddr).Port+off)
}

func write(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}
