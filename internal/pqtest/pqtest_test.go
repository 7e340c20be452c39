package pqtest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/pqproxy/caddy-pqproxy/internal/proxyheader"
)

const name = "app.internal"

func TestCA(t *testing.T) {
	ca := NewCA(t)
	inter := ca.Intermediate(t)
	expired := func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Minute) }
	for _, tc := range []struct {
		name    string
		cert    tls.Certificate
		ask     string
		wantErr bool
	}{
		{"host", ca.Issue(t, name), name, false},
		{"wildcard", ca.Issue(t, "*.example.com"), "a.example.com", false},
		{"address", ca.Issue(t, "127.0.0.1", "::1"), "::1", false},
		{"RSA", ca.IssueRSA(t, name), name, false},
		{"intermediate", inter.Issue(t, name), name, false},
		{"other name", ca.Issue(t, "other.internal"), name, true},
		{"other CA", NewCA(t).Issue(t, name), name, true},
		{"expired", ca.IssueWith(t, expired, name), name, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			up := StartUpstream(t, UpstreamConfig{TLS: &tls.Config{Certificates: []tls.Certificate{tc.cert}}})
			_, err := TryDial(t, up.Addr(), &tls.Config{RootCAs: inter.Pool(), ServerName: tc.ask})
			if (err != nil) != tc.wantErr {
				t.Errorf("dialing: %v, want an error: %t", err, tc.wantErr)
			}
			if got := up.Next(t).Err; (got != nil) != tc.wantErr {
				t.Errorf("the upstream says %v, want an error: %t", got, tc.wantErr)
			}
		})
	}
}

func TestCAFiles(t *testing.T) {
	ca := NewCA(t)
	root, err := os.ReadFile(ca.PEMFile(t))
	if err != nil || string(root) != string(ca.PEM()) {
		t.Errorf("the root's file holds %q, %v", root, err)
	}
	if _, err := tls.X509KeyPair(ca.PairPEM(t, name)); err != nil {
		t.Errorf("the pair in PEM: %v", err)
	}
	if _, err := tls.LoadX509KeyPair(WritePair(t, ca.IssueRSA(t, name))); err != nil {
		t.Errorf("the RSA pair in files: %v", err)
	}
	chain, key := ca.Intermediate(t).PairFiles(t, name)
	pair, err := tls.LoadX509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(pair.Certificate) != 2 {
		t.Errorf("%d certificates in the chain, want leaf and intermediate", len(pair.Certificate))
	}
}

// What a proxy does with an upstream: header and ClientHello in one write, then the stream, on both networks.
func TestUpstreamWithHeaderAndTLS(t *testing.T) {
	Leaks(t)
	ca := NewCA(t)
	header := proxyheader.Header{
		Source:      netip.MustParseAddrPort("203.0.113.7:40000"),
		Destination: netip.MustParseAddrPort("192.0.2.1:443"),
		Authority:   "app.example.com",
	}
	for _, network := range []string{"tcp", "unix"} {
		for version, announce := range map[byte][]byte{1: header.AppendV1(nil), 2: header.AppendV2(nil)} {
			t.Run(fmt.Sprintf("network=%s/version=%d", network, version), func(t *testing.T) {
				up := StartUpstream(t, UpstreamConfig{
					Network: network, Proxy: true, TLS: &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, name)}},
				})
				raw := DialRaw(t, up.Addr())
				conn := tls.Client(&afterHeader{RawConn: raw, header: announce}, &tls.Config{RootCAs: ca.Pool(), ServerName: name})
				if err := conn.Handshake(); err != nil {
					t.Fatal(err)
				}
				got := up.Next(t)
				if got.Err != nil {
					t.Fatal(got.Err)
				}
				if got.Header.Version != version || got.Header.SourceAddr.String() != header.Source.String() {
					t.Errorf("the upstream read %+v", got.Header)
				}
				if got.State.ServerName != name || got.State.CurveID != tls.X25519MLKEM768 {
					t.Errorf("the upstream negotiated %v for %q", got.State.CurveID, got.State.ServerName)
				}
				first := got.First()
				if string(first[:got.HeaderLen]) != string(announce) {
					t.Errorf("the first read began with %q, want %q", first, announce)
				}
				if _, ok := ParseHello(first[got.HeaderLen:]).Extension(extServerName); !ok {
					t.Error("the first read did not hold the ClientHello")
				}
				if n := got.FirstSegments(); n > 1 {
					t.Errorf("the first read came in %d segments", n)
				}
				echo(t, conn)
				conn.Close()
			})
		}
	}
}

// Checks announce themselves by LOCAL and UNKNOWN, and what is no header is recorded with its error.
func TestUpstreamRecordsAll(t *testing.T) {
	Leaks(t)
	for _, tc := range []struct {
		name      string
		send      []byte
		wantErr   error
		wantLocal bool
	}{
		{"LOCAL", proxyheader.AppendV2Local(nil), nil, true},
		{"UNKNOWN", proxyheader.AppendV1Unknown(nil), nil, true},
		{"no header", []byte("GET / HTTP/1.1\r\n\r\n"), proxyproto.ErrNoProxyProtocol, false},
		{"nothing", nil, proxyproto.ErrNoProxyProtocol, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			up := StartUpstream(t, UpstreamConfig{Proxy: true})
			conn := DialRaw(t, up.Addr())
			if _, err := conn.Write(tc.send); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got := up.Next(t)
			if !errors.Is(got.Err, tc.wantErr) {
				t.Errorf("the upstream says %v, want %v", got.Err, tc.wantErr)
			}
			if tc.wantErr == nil && got.Header.Command.IsLocal() != tc.wantLocal {
				t.Errorf("the upstream read %+v", got.Header)
			}
			if n := len(up.Conns()); up.Accepted() != 1 || n != 1 {
				t.Errorf("%d accepted, %d recorded, want 1", up.Accepted(), n)
			}
		})
	}
}

func TestUpstreamClose(t *testing.T) {
	Leaks(t)
	up := StartUpstream(t, UpstreamConfig{Proxy: true, Handler: Hold})
	silent := DialRaw(t, up.Addr())
	held := DialRaw(t, up.Addr())
	if _, err := held.Write(proxyheader.AppendV2Local(nil)); err != nil {
		t.Fatal(err)
	}
	if c := up.Next(t); c.Err != nil {
		t.Fatal(c.Err)
	}
	Wait(t, "both to be accepted", func() bool { return up.Accepted() == 2 })
	up.Close()
	up.Close()
	for _, conn := range []RawConn{silent, held} {
		if _, end := ReadToEnd(t, conn); end != FIN {
			t.Errorf("the connection ended by %s", end)
		}
	}
}

// Either side sees how the other one ended.
func TestEnds(t *testing.T) {
	Leaks(t)
	ca := NewCA(t)
	server := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, name)}}
	client := &tls.Config{RootCAs: ca.Pool(), ServerName: name}
	for _, tc := range []struct {
		want     End
		byServer func(*testing.T, *UpstreamConn) error
		byClient func(*testing.T, *tls.Conn) error
	}{
		{CloseNotify,
			func(_ *testing.T, c *UpstreamConn) error { return c.CloseWrite() },
			func(_ *testing.T, c *tls.Conn) error { return c.CloseWrite() }},
		{FIN,
			func(_ *testing.T, c *UpstreamConn) error { return c.Raw.CloseWrite() },
			func(t *testing.T, c *tls.Conn) error { return Raw(t, c).CloseWrite() }},
		{RST,
			func(t *testing.T, c *UpstreamConn) error { Reset(t, c); return nil },
			func(t *testing.T, c *tls.Conn) error { Reset(t, c); return nil }},
	} {
		t.Run("by=server/end="+string(tc.want), func(t *testing.T) {
			up := StartUpstream(t, UpstreamConfig{TLS: server, Handler: Hold})
			conn := Dial(t, up.Addr(), client)
			if err := tc.byServer(t, up.Next(t)); err != nil {
				t.Fatal(err)
			}
			if _, end := ReadToEnd(t, conn); end != tc.want {
				t.Errorf("the client sees %s", end)
			}
		})
		t.Run("by=client/end="+string(tc.want), func(t *testing.T) {
			up := StartUpstream(t, UpstreamConfig{TLS: server, Handler: Hold})
			conn := Dial(t, up.Addr(), client)
			c := up.Next(t)
			if err := tc.byClient(t, conn); err != nil {
				t.Fatal(err)
			}
			if _, end := ReadToEnd(t, c); end != tc.want {
				t.Errorf("the upstream sees %s", end)
			}
		})
	}
}

// A check for leaks that finds none proves nothing until it has found some.
func TestLeaksFinds(t *testing.T) {
	before := takeStock()
	check := leaksSince(before)
	none := &recorder{TB: t}
	check(none, Timeout)
	if len(none.errors) != 0 {
		t.Errorf("without a leak: %q", none.errors)
	}

	up := StartUpstream(t, UpstreamConfig{})
	DialRaw(t, up.Addr())
	up.Next(t)
	some := &recorder{TB: t}
	check(some, 0)
	report := strings.Join(some.errors, "\n")
	wants := []string{"goroutines more", "Upstream"}
	if onLinux {
		wants = append(wants, "descriptors more", "socket:[")
	}
	for _, want := range wants {
		if !strings.Contains(report, want) {
			t.Errorf("the report does not mention %q:\n%s", want, report)
		}
	}
}

// onLinux says whether descriptors can be counted.
const onLinux = runtime.GOOS == "linux"

// recorder keeps what a check has to say.
type recorder struct {
	testing.TB
	errors []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

// afterHeader sends a PROXY header in one write with the first bytes.
type afterHeader struct {
	RawConn
	header []byte
}

func (c *afterHeader) Write(p []byte) (int, error) {
	if c.header == nil {
		return c.RawConn.Write(p)
	}
	head := len(c.header)
	n, err := c.RawConn.Write(append(c.header, p...))
	c.header = nil
	return max(0, n-head), err
}

// echo sends a line and wants it back.
func echo(t *testing.T, conn io.ReadWriter) {
	t.Helper()
	const line = "hello\n"
	if _, err := io.WriteString(conn, line); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != line {
		t.Fatalf("read back %q, %v", got, err)
	}
}
