package pqtest

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"io"
	"strings"
	"testing"
)

// Every edited hello goes to crypto/tls: it takes those that are whole, and says what is wrong with the others.
func TestHellos(t *testing.T) {
	Leaks(t)
	ca := NewCA(t)
	hello := ClientHello(t, &tls.Config{ServerName: "first.example"})
	const (
		serverHello          = byte(0) // no alert
		decodeError          = byte(50)
		unsupportedExtension = byte(110)
	)
	for _, tc := range []struct {
		name      string
		hello     []byte
		wantAlert byte
		wantName  string
		wantRetry bool
	}{
		{"as it is", hello, serverHello, "first.example", false},
		{"put together again", ParseHello(hello).Bytes(), serverHello, "first.example", false},
		{"records of one byte", SplitRecords(hello, 1), serverHello, "first.example", false},
		{"records of 100 bytes", SplitRecords(hello, 100), serverHello, "first.example", false},
		{"other name", WithSNI(hello, []byte("second.example")), serverHello, "second.example", false},
		{"no name", WithoutSNI(hello), serverHello, "", false},
		{"final dot", WithSNI(hello, []byte("first.example.")), decodeError, "", false},
		{"malformed name list", WithExtension(hello, extServerName, []byte{0, 9, 0}), decodeError, "", false},
		{"early data", WithEarlyData(hello), unsupportedExtension, "first.example", false},
		{"padded", WithPadding(hello, 9000), serverHello, "first.example", false},
		{"padded over a record", WithPadding(hello, 20_000), serverHello, "first.example", false},
		{"one key share", WithKeyShares(hello, tls.X25519MLKEM768), serverHello, "first.example", false},
		{"no key share", WithKeyShares(hello), serverHello, "first.example", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			names := make(chan string, 1)
			up := StartUpstream(t, UpstreamConfig{TLS: &tls.Config{
				Certificates: []tls.Certificate{ca.Issue(t, name)},
				GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
					names <- info.ServerName
					return nil, nil
				},
			}})
			conn := DialRaw(t, up.Addr())
			if _, err := conn.Write(tc.hello); err != nil {
				t.Fatal(err)
			}
			if tc.wantAlert != serverHello {
				if level, code, ok := ReadAlert(t, conn); !ok || level != 2 || code != tc.wantAlert {
					t.Errorf("alert of level %d, code %d, %t, want code %d", level, code, ok, tc.wantAlert)
				}
			} else if retry := readServerHello(t, conn); retry != tc.wantRetry {
				t.Errorf("HelloRetryRequest: %t, want %t", retry, tc.wantRetry)
			}
			select {
			case got := <-names:
				if got != tc.wantName {
					t.Errorf("the server read the name %q, want %q", got, tc.wantName)
				}
			default:
				if tc.wantName != "" {
					t.Error("the server did not understand the hello")
				}
			}
		})
	}
}

func TestSetExtensionKeepsPSKLast(t *testing.T) {
	ca := NewCA(t)
	up := StartUpstream(t, UpstreamConfig{TLS: &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, name)}}})
	cfg := &tls.Config{RootCAs: ca.Pool(), ServerName: name, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	conn := Dial(t, up.Addr(), cfg)
	echo(t, conn) // the ticket comes before it

	h := ParseHello(WithEarlyData(ClientHello(t, cfg)))
	if last := h.Extensions[len(h.Extensions)-1]; last.Type != extPSK {
		t.Errorf("the last extension is %d", last.Type)
	}
	if _, ok := h.Extension(extEarlyData); !ok {
		t.Error("early_data was not added")
	}
}

func TestWithPadding(t *testing.T) {
	hello := ClientHello(t, &tls.Config{ServerName: "first.example"})
	for size := len(hello) + 4; size < 3*maxRecord; size += 97 {
		if got := len(WithPadding(hello, size)); got < size || got > size+recordHead {
			t.Fatalf("padded to %d bytes, want %d", got, size)
		}
	}
	for _, size := range []int{maxRecord - 1, maxRecord, maxRecord + 1} {
		if got := len(WithPadding(hello, size)); got != size {
			t.Errorf("padded to %d bytes, want %d", got, size)
		}
	}
	if got := WithPadding(hello, len(hello)); !bytes.Equal(got, hello) {
		t.Error("a hello of that size already was changed")
	}
}

func TestParseHelloRefuses(t *testing.T) {
	hello := ClientHello(t, &tls.Config{ServerName: "first.example"})
	for what, b := range map[string][]byte{
		"half a hello": hello[:len(hello)/2], "half a record head": hello[:3], "an alert": {recordAlert, 3, 3, 0, 2, 2, 40},
		"a ServerHello": append([]byte{recordHandshake, 3, 3, 0, 4, 2}, 0, 0, 0),
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s was taken for a hello", what)
				}
			}()
			ParseHello(b)
		}()
	}
}

func TestReadAlertOfSomethingElse(t *testing.T) {
	for what, send := range map[string]string{"an end": "", "another record": strings.Repeat("\x16", 7), "half an alert": "\x15\x03\x03"} {
		up := StartUpstream(t, UpstreamConfig{Handler: func(c *UpstreamConn) { _, _ = io.WriteString(c, send) }})
		if _, _, ok := ReadAlert(t, DialRaw(t, up.Addr())); ok {
			t.Errorf("%s was taken for an alert", what)
		}
	}
}

// readServerHello reads one record and says whether the ServerHello in it is a HelloRetryRequest, which has a
// random of its own (RFC 8446 section 4.1.3).
func readServerHello(t *testing.T, conn io.Reader) (retry bool) {
	t.Helper()
	var b [recordHead + messageHead + 2 + sha256.Size]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		t.Fatalf("reading a ServerHello: %v", err)
	}
	if b[0] != recordHandshake || b[recordHead] != 2 {
		t.Fatalf("%x is no ServerHello", b)
	}
	return [sha256.Size]byte(b[recordHead+messageHead+2:]) == sha256.Sum256([]byte("HelloRetryRequest"))
}
