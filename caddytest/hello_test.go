package caddytest

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestHelloInPieces sends ClientHellos as unusual networks and clients cut them. With a hybrid key share
// a hello no longer fits one segment, so that each of these happens.
func TestHelloInPieces(t *testing.T) {
	for name, split := range map[string]func([]byte) [][]byte{
		"byte at a time": func(hello []byte) [][]byte { return chunks(hello, 1) },
		"segments":       func(hello []byte) [][]byte { return chunks(hello, 100) },
		"records":        func(hello []byte) [][]byte { return [][]byte{pqtest.SplitRecords(hello, 100)} },
		"records of one byte, in segments": func(hello []byte) [][]byte {
			return chunks(pqtest.SplitRecords(hello, 1), 1000)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ca, p := startWithEcho(t)
			conn := tls.Client(&splitConn{Conn: pqtest.DialRaw(t, p.addr), split: split}, &tls.Config{ServerName: echoName, RootCAs: ca.Pool()})
			checkEcho(t, conn)
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			if r := p.recordOf(t, echoName, port(conn)); r.Group != hybrid || r.EndReason != "done" {
				t.Errorf("the record is %+v", r)
			}
		})
	}
}

// TestHelloTooLarge sends a ClientHello of more than 16 KiB: it is refused with the alert decode_error
// (50), which arrives although the proxy has not read all of the hello.
func TestHelloTooLarge(t *testing.T) {
	_, p := startWithEcho(t)
	conn := pqtest.DialRaw(t, p.addr)
	hello := pqtest.ClientHello(t, &tls.Config{ServerName: echoName})
	if _, err := conn.Write(pqtest.WithPadding(hello, 17<<10)); err != nil {
		t.Fatal(err)
	}
	if level, code, ok := pqtest.ReadAlert(t, conn); !ok || level != 2 || code != 50 {
		t.Errorf("the answer is alert %d of level %d, %v, want alert 50 of level 2", code, level, ok)
	}
	conn.Close()
	r := p.record(t, func(r record) bool { return r.ClientPort == port(conn) })
	if r.EndReason != "hello_too_large" || r.ClosedBy != "edge" || r.Upstream != "" {
		t.Errorf("the record is %+v", r)
	}
}

// splitConn writes the first flight in the pieces that split makes of it, a segment each.
type splitConn struct {
	net.Conn
	split func([]byte) [][]byte
	done  bool
}

func (c *splitConn) Write(b []byte) (int, error) {
	if c.done {
		return c.Conn.Write(b)
	}
	c.done = true
	for _, piece := range c.split(b) {
		if _, err := c.Conn.Write(piece); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// chunks cuts b into pieces of at most size bytes.
func chunks(b []byte, size int) [][]byte {
	var pieces [][]byte
	for len(b) > 0 {
		n := min(size, len(b))
		pieces = append(pieces, b[:n])
		b = b[n:]
	}
	return pieces
}

// echoName is the domain of startWithEcho.
const echoName = "echo.example.com"

// startWithEcho runs the proxy with one domain, whose upstream sends back what it gets, in plain TCP.
// Options are of the pqproxy block, such as limits.
func startWithEcho(t *testing.T, options ...string) (authority, *proxy) {
	t.Helper()
	ca := newAuthority(t)
	return ca, startProxy(t, echoBlock(t, ca, options...))
}

// echoBlock is what startWithEcho configures.
func echoBlock(t *testing.T, ca authority, options ...string) string {
	t.Helper()
	block := domainBlock(echoName, "upstream "+pqtest.StartUpstream(t, pqtest.UpstreamConfig{}).Addr(), certificate(ca.files(t, echoName)))
	return strings.Join(append(options, block), "\n")
}

// checkEcho sends a line and waits until it is back.
func checkEcho(t *testing.T, conn net.Conn) {
	t.Helper()
	const line = "there and back again\n"
	if _, err := io.WriteString(conn, line); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != line {
		t.Fatalf("the echo is %q, %v", got, err)
	}
}

// port returns the local port of a connection.
func port(conn net.Conn) int {
	return conn.LocalAddr().(*net.TCPAddr).Port
}
