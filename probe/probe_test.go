package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func TestRunNegotiates(t *testing.T) {
	ca := newCA(t)
	leaf := ca.issue(t, leafTemplate("app.test"))
	hybrid := []tls.CurveID{tls.X25519MLKEM768, tls.X25519}
	for _, test := range []struct {
		name   string
		server *tls.Config
		alpn   []string
		groups []tls.CurveID
		want   Result
	}{
		{
			name:   "hybrid",
			server: &tls.Config{CurvePreferences: hybrid},
			want:   Result{TLSVersion: "TLS 1.3", Group: "X25519MLKEM768", PostQuantum: true},
		},
		{
			name:   "X25519 only",
			server: &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}},
			want:   Result{TLSVersion: "TLS 1.3", Group: "X25519"},
		},
		{
			name:   "hybrid after HelloRetryRequest",
			server: &tls.Config{CurvePreferences: []tls.CurveID{tls.SecP384r1MLKEM1024}},
			want:   Result{TLSVersion: "TLS 1.3", Group: "SecP384r1MLKEM1024", PostQuantum: true, HelloRetryRequest: true},
		},
		{
			name:   "classical after HelloRetryRequest",
			server: &tls.Config{CurvePreferences: []tls.CurveID{tls.CurveP384}},
			want:   Result{TLSVersion: "TLS 1.3", Group: "CurveP384", HelloRetryRequest: true},
		},
		{
			name:   "groups chosen by the caller",
			server: &tls.Config{CurvePreferences: hybrid},
			groups: []tls.CurveID{tls.X25519},
			want:   Result{TLSVersion: "TLS 1.3", Group: "X25519", OfferedGroups: []string{"X25519"}},
		},
		{
			name:   "TLS 1.2",
			server: &tls.Config{MaxVersion: tls.VersionTLS12, CurvePreferences: hybrid},
			want:   Result{TLSVersion: "TLS 1.2", CipherSuite: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", Group: "X25519"},
		},
		{
			name:   "TLS 1.2 without forward secrecy",
			server: &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
			want:   Result{TLSVersion: "TLS 1.2", CipherSuite: "TLS_RSA_WITH_AES_128_GCM_SHA256"},
		},
		{
			name:   "ALPN",
			server: &tls.Config{NextProtos: []string{"http/1.1", "h2"}},
			alpn:   []string{"h2", "imap"},
			want:   Result{TLSVersion: "TLS 1.3", Group: "X25519MLKEM768", PostQuantum: true, ALPN: "h2"},
		},
		{
			name:   "ALPN offered to a server that has none",
			server: &tls.Config{},
			alpn:   []string{"h2"},
			want:   Result{TLSVersion: "TLS 1.3", Group: "X25519MLKEM768", PostQuantum: true},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := test.server.Clone()
			config.Certificates = []tls.Certificate{leaf}
			if slices.Contains(config.CipherSuites, tls.TLS_RSA_WITH_AES_128_GCM_SHA256) {
				config.Certificates = []tls.Certificate{ca.issueRSA(t, leafTemplate("app.test"))}
			}
			var sni string
			config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				sni = hello.ServerName
				return nil, nil
			}
			address, wait := serveTLS(t, config)
			got, err := Run(t.Context(), Options{
				Address: address, ServerName: "app.test", RootCAs: ca.pool, ALPN: test.alpn, Groups: test.groups,
			})
			if err != nil {
				t.Fatalf("Run: %v", err)
			}
			wait() // for sni, and it proves that the connection was closed
			if sni != "app.test" {
				t.Errorf("SNI %q, want app.test", sni)
			}
			if got.TLSVersion != test.want.TLSVersion || got.Group != test.want.Group ||
				got.PostQuantum != test.want.PostQuantum || got.HelloRetryRequest != test.want.HelloRetryRequest ||
				got.ALPN != test.want.ALPN {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if got.CipherSuite == "" || test.want.CipherSuite != "" && got.CipherSuite != test.want.CipherSuite {
				t.Errorf("cipher suite %q, want %q", got.CipherSuite, test.want.CipherSuite)
			}
			wantOffered := test.want.OfferedGroups
			if wantOffered == nil {
				wantOffered = []string{
					"X25519MLKEM768", "SecP256r1MLKEM768", "SecP384r1MLKEM1024", "X25519", "CurveP256", "CurveP384",
				}
			}
			if !slices.Equal(got.OfferedGroups, wantOffered) {
				t.Errorf("offered %v, want %v", got.OfferedGroups, wantOffered)
			}
			if !got.ChainOK || got.ChainError != "" || got.Error != "" || got.Stage != "" {
				t.Errorf("chain_ok %t, chain_error %q, stage %q, error %q, want a good chain and no error",
					got.ChainOK, got.ChainError, got.Stage, got.Error)
			}
			if got.Address != address || got.RemoteIP != "127.0.0.1" || got.ServerName != "app.test" {
				t.Errorf("address %q, remote_ip %q, server_name %q", got.Address, got.RemoteIP, got.ServerName)
			}
			timings := got.Timings
			if timings.DNS != 0 || timings.Connect <= 0 || timings.Handshake <= 0 || timings.Total < timings.Handshake {
				t.Errorf("timings %+v", timings)
			}
		})
	}
}

// GODEBUG can take hybrid groups away from an explicit list without an error, so that a probe would blame
// the server for what it did not offer itself.
func TestRunOffersWhatGODEBUGLeaves(t *testing.T) {
	t.Setenv("GODEBUG", "tlsmlkem=0")
	ca := newCA(t)
	address, _ := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(t, leafTemplate("app.test"))}})
	got, err := Run(t.Context(), Options{Address: address, ServerName: "app.test", RootCAs: ca.pool})
	if err != nil {
		t.Fatalf("Run: %v", err)
	}
	if want := []string{"X25519", "CurveP256", "CurveP384"}; !slices.Equal(got.OfferedGroups, want) {
		t.Errorf("offered %v, want %v", got.OfferedGroups, want)
	}
	if advice := got.advice(); !strings.Contains(advice, "says nothing about the server") {
		t.Errorf("advice %q blames the server", advice)
	}
}

func TestRunChain(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	expired := leafTemplate("app.test")
	expired.NotBefore, expired.NotAfter = time.Now().AddDate(-2, 0, 0), time.Now().AddDate(-1, 0, 0)
	ip := leafTemplate("app.test")
	ip.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	intermediate := ca.intermediate(t)
	for _, test := range []struct {
		name       string
		leaf       tls.Certificate
		serverName string
		roots      *x509.CertPool
		want       string // in chain_error; empty: the chain is good
		length     int
	}{
		{"good", ca.issue(t, leafTemplate("app.test")), "app.test", ca.pool, "", 1},
		{"final dot", ca.issue(t, leafTemplate("app.test")), "app.test.", ca.pool, "", 1},
		{"IP address", ca.issue(t, ip), "", ca.pool, "", 1},
		{"intermediate sent along", intermediate.issue(t, leafTemplate("app.test")), "app.test", ca.pool, "", 2},
		{"wrong name", ca.issue(t, leafTemplate("other.test")), "app.test", ca.pool, "valid for other.test, not app.test", 1},
		{"expired", ca.issue(t, expired), "app.test", ca.pool, "expired", 1},
		{"unknown authority", other.issue(t, leafTemplate("app.test")), "app.test", ca.pool, "unknown authority", 1},
		{"not in the system's roots", ca.issue(t, leafTemplate("app.test")), "app.test", nil, "unknown authority", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			address, _ := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{test.leaf}})
			got, err := Run(t.Context(), Options{Address: address, ServerName: test.serverName, RootCAs: test.roots})
			if err != nil {
				t.Fatalf("Run: %v", err)
			}
			if !got.PostQuantum {
				t.Error("a chain decided about the key exchange")
			}
			if got.ChainOK != (test.want == "") || (got.ChainError == "") != got.ChainOK || !strings.Contains(got.ChainError, test.want) {
				t.Errorf("chain_ok %t, chain_error %q, want %q", got.ChainOK, got.ChainError, test.want)
			}
			if len(got.Chain) != test.length {
				t.Fatalf("%d certificates, want %d", len(got.Chain), test.length)
			}
			leaf := got.Chain[0]
			if leaf.Subject != "CN=leaf" || leaf.KeyType != "ECDSA P-256" || len(leaf.SHA256) != 64 ||
				!leaf.NotAfter.Equal(test.leaf.Leaf.NotAfter) || !leaf.NotBefore.Equal(test.leaf.Leaf.NotBefore) {
				t.Errorf("leaf %+v", leaf)
			}
			if want := append(test.leaf.Leaf.DNSNames, ipStrings(test.leaf.Leaf)...); !slices.Equal(leaf.Names, want) {
				t.Errorf("names %v, want %v", leaf.Names, want)
			}
		})
	}
}

func TestRunFailures(t *testing.T) {
	ca := newCA(t)
	leaf := ca.issue(t, leafTemplate("app.test"))
	errDenied := errors.New("127.0.0.1 is in 127.0.0.0/8, which the policy denies")
	silent := func(t *testing.T) string { return serve(t, waitForClose) }
	for _, test := range []struct {
		name    string
		address func(*testing.T) string
		options Options
		stage   Stage
		is      error  // errors.Is; nil: not asked
		want    string // in Result.Error
	}{
		{
			name:    "not TLS",
			address: func(t *testing.T) string { return serve(t, answer("HTTP/1.1 400 Bad Request\r\n\r\n")) },
			stage:   StageHandshake, want: `not TLS (record header "HTTP/")`,
		},
		{
			name:    "not TLS, obeyed by terminals",
			address: func(t *testing.T) string { return serve(t, answer("\x1b[2J\x1b[31m")) },
			stage:   StageHandshake, want: `not TLS (record header "\x1b[2J\x1b")`,
		},
		{
			name:    "closed at once",
			address: func(t *testing.T) string { return serve(t, readHello) },
			stage:   StageHandshake, is: io.EOF, want: "the server closed the connection",
		},
		{
			name:    "closed inside a record",
			address: func(t *testing.T) string { return serve(t, answer("\x16\x03\x03\x00\x7a\x02")) },
			stage:   StageHandshake, is: io.ErrUnexpectedEOF, want: "the server closed the connection",
		},
		{
			name:    "silent",
			address: silent, options: Options{Timeout: 20 * time.Millisecond},
			stage: StageHandshake, is: context.DeadlineExceeded, want: "did not finish in time",
		},
		{
			name:    "silent and never reading",
			address: silent, options: Options{Timeout: 20 * time.Millisecond, ProxyHeader: []byte("PROXY"), Dial: dialPipe},
			stage: StageHandshake, is: context.DeadlineExceeded, want: "sending the PROXY header",
		},
		{
			name:    "refused",
			address: closedPort,
			stage:   StageConnect, is: syscall.ECONNREFUSED, want: "connection refused",
		},
		{
			name:    "denied by the caller's policy",
			address: silent, options: Options{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errDenied }},
			stage: StageConnect, is: errDenied, want: "policy denies",
		},
		{
			name:    "unresolvable name",
			address: func(*testing.T) string { return "app.invalid" }, options: Options{Dial: resolverIsDown},
			stage: StageDNS, want: "app.invalid",
		},
		{
			name: "alert: no version in common",
			address: func(t *testing.T) string {
				address, _ := serveTLS(t, &tls.Config{
					Certificates: []tls.Certificate{leaf}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11,
				})
				return address
			},
			stage: StageHandshake, want: "remote error: tls: protocol version not supported",
		},
		{
			name: "alert: no ALPN in common",
			address: func(t *testing.T) string {
				address, _ := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{leaf}, NextProtos: []string{"imap"}})
				return address
			},
			options: Options{ALPN: []string{"h2"}},
			stage:   StageHandshake, want: "remote error: tls: no application protocol",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.options.Address, test.options.ServerName = test.address(t), "app.test"
			got, err := Run(t.Context(), test.options)
			failure, ok := errors.AsType[*Error](err)
			if !ok || failure.Stage != test.stage {
				t.Fatalf("error %v, want one at stage %s", err, test.stage)
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("error %v, want one that is %v", err, test.is)
			}
			if got.Stage != test.stage || !strings.Contains(got.Error, test.want) {
				t.Errorf("stage %q, error %q, want %q", got.Stage, got.Error, test.want)
			}
			if got.PostQuantum || got.ChainOK {
				t.Errorf("post_quantum %t, chain_ok %t without a handshake", got.PostQuantum, got.ChainOK)
			}
			if offered := len(got.OfferedGroups) > 0; offered != (test.stage == StageHandshake && test.options.Dial == nil) {
				t.Errorf("offered %v", got.OfferedGroups)
			}
			if got.Timings.Total <= 0 {
				t.Errorf("timings %+v", got.Timings)
			}
		})
	}
}

// A server may name a hybrid group in its ServerHello and then fail to prove that it holds the keys.
func TestRunUnfinishedHandshakeIsNotPostQuantum(t *testing.T) {
	ca := newCA(t)
	leaf := ca.issue(t, leafTemplate("app.test"))
	address := serve(t, func(conn net.Conn) {
		truncated := &truncatingConn{Conn: conn}
		tls.Server(truncated, &tls.Config{Certificates: []tls.Certificate{leaf}}).Handshake()
	})
	got, err := Run(t.Context(), Options{Address: address, ServerName: "app.test", RootCAs: ca.pool})
	if err == nil || got.PostQuantum {
		t.Errorf("post_quantum %t, error %v", got.PostQuantum, err)
	}
	if got.TLSVersion != "TLS 1.3" || got.Group != "X25519MLKEM768" {
		t.Errorf("version %q, group %q, want what the ServerHello said", got.TLSVersion, got.Group)
	}
}

func TestRunOldVersionOnRequest(t *testing.T) {
	ca := newCA(t)
	address, _ := serveTLS(t, &tls.Config{
		Certificates: []tls.Certificate{ca.issue(t, leafTemplate("app.test"))},
		MinVersion:   tls.VersionTLS10, MaxVersion: tls.VersionTLS10,
	})
	got, err := Run(t.Context(), Options{Address: address, ServerName: "app.test", ServerTLSMin: tls.VersionTLS10})
	if err != nil || got.TLSVersion != "TLS 1.0" {
		t.Errorf("version %q, error %v, want TLS 1.0", got.TLSVersion, err)
	}
}

func TestRunCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	address := serve(t, func(conn net.Conn) {
		readHello(conn)
		cancel()
		waitForClose(conn)
	})
	_, err := Run(ctx, Options{Address: address, ServerName: "app.test"})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

func TestRunResolves(t *testing.T) {
	ca := newCA(t)
	address, _ := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(t, leafTemplate("localhost"))}})
	_, port, _ := net.SplitHostPort(address)
	got, err := Run(t.Context(), Options{Address: "localhost:" + port, RootCAs: ca.pool})
	if err != nil {
		t.Fatalf("Run: %v", err)
	}
	if got.Timings.DNS <= 0 || got.ServerName != "localhost" || !got.ChainOK {
		t.Errorf("dns %g, server name %q, chain_error %q", got.Timings.DNS, got.ServerName, got.ChainError)
	}
}

func TestRunWritesProxyHeaderFirst(t *testing.T) {
	ca := newCA(t)
	leaf := ca.issue(t, leafTemplate("app.test"))
	header := "PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n"
	received := make(chan string, 1)
	address := serve(t, func(conn net.Conn) {
		got := make([]byte, len(header))
		io.ReadFull(conn, got)
		received <- string(got)
		serveConn(conn, &tls.Config{Certificates: []tls.Certificate{leaf}})
	})
	got, err := Run(t.Context(), Options{
		Address: address, ServerName: "app.test", RootCAs: ca.pool, ProxyHeader: []byte(header),
	})
	if err != nil || !got.PostQuantum {
		t.Errorf("post_quantum %t, error %v", got.PostQuantum, err)
	}
	if got := <-received; got != header {
		t.Errorf("received %q before TLS, want %q", got, header)
	}
}

// The certificate chain is the one place where a server can send much text.
func TestRunHostileChain(t *testing.T) {
	ca := newCA(t)
	leaf := leafTemplate("\x1b]0;owned\x07.test", strings.Repeat("a", 5000))
	leaf.Subject.CommonName = "\x1b[31m\u202eevil\n\u009b"
	for i := range 2 * maxNames {
		leaf.DNSNames = append(leaf.DNSNames, fmt.Sprintf("n%d.test", i))
	}
	long := ca.issueUnder(t, strings.Repeat("x", 3*maxDN), leaf)
	for range 2 * maxChain {
		long.Certificate = append(long.Certificate, ca.certificate.Raw)
	}
	address, _ := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{long}})
	got, err := Run(t.Context(), Options{Address: address, ServerName: "app.test", RootCAs: ca.pool})
	if err != nil {
		t.Fatalf("Run: %v", err)
	}
	if len(got.Chain) != maxChain || len(got.Chain[0].Names) != maxNames {
		t.Fatalf("%d certificates, %d names, want %d and %d", len(got.Chain), len(got.Chain[0].Names), maxChain, maxNames)
	}
	shown := append(slices.Clone(got.Chain[0].Names), got.Chain[0].Subject, got.Chain[0].Issuer, got.ChainError)
	for _, s := range shown {
		checkClean(t, s, maxText)
	}
	if want := `CN=\x1b[31m\u202eevil\n\u009b`; got.Chain[0].Subject != want {
		t.Errorf("subject %s, want %s", got.Chain[0].Subject, want)
	}
	if !strings.HasPrefix(got.Chain[0].Issuer, "(not shown: ") {
		t.Errorf("issuer of %d bytes shown", len(got.Chain[0].Issuer))
	}
	var text bytes.Buffer
	got.WriteText(&text)
	for line := range strings.Lines(text.String()) {
		checkClean(t, strings.TrimSuffix(line, "\n"), 8*maxText)
	}
}

func TestRunInvalidOptions(t *testing.T) {
	dial := func(context.Context, string, string) (net.Conn, error) {
		t.Error("dialed in spite of invalid options")
		return nil, io.EOF
	}
	for _, test := range []struct {
		name    string
		options Options
		want    string
	}{
		{"no address", Options{}, "the host is missing"},
		{"port alone", Options{Address: ":443"}, "the host is missing"},
		{"URL", Options{Address: "https://app.test/"}, "not a URL"},
		{"path", Options{Address: "app.test/"}, "not a URL"},
		{"port 0", Options{Address: "app.test:0"}, "want a number from 1 to 65535"},
		{"port 65536", Options{Address: "app.test:65536"}, "want a number from 1 to 65535"},
		{"port by name", Options{Address: "app.test:https"}, "want a number from 1 to 65535"},
		{"no port after colon", Options{Address: "app.test:"}, "want a number from 1 to 65535"},
		{"Unicode", Options{Address: "müller.test"}, "give its A-label"},
		{"control character", Options{Address: "app\x1b.test"}, `'\x1b' cannot be in a host`},
		{"control character in a zone", Options{Address: "[fe80::1%\x1b]:443"}, `'\x1b' cannot be in a host`},
		{"name in brackets", Options{Address: "[app:test]"}, "want host, host:port or [v6]:port"},
		{"IPv6 with a port and no brackets", Options{Address: "2001:db8::1:2:3:4:5:6:443"}, "want host, host:port or [v6]:port"},
		{"too long", Options{Address: strings.Repeat("a.", 128)}, "longer than"},
		{"server name", Options{Address: "app.test", ServerName: "a b"}, `server name "a b"`},
		{"empty ALPN name", Options{Address: "app.test", ALPN: []string{""}}, "want 1 to 255 bytes"},
		{"long ALPN name", Options{Address: "app.test", ALPN: []string{strings.Repeat("h", 256)}}, "want 1 to 255 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.options.Dial = dial
			got, err := Run(t.Context(), test.options)
			if _, ok := errors.AsType[*Error](err); err == nil || ok {
				t.Fatalf("error %v, want one that is no *Error", err)
			}
			if !strings.Contains(err.Error(), test.want) || got.Error == "" || got.Stage != "" {
				t.Errorf("error %v, result %+v, want %q", err, got, test.want)
			}
			checkClean(t, got.Address, maxText)
			checkClean(t, got.Error, maxText)
		})
	}
}

func TestTarget(t *testing.T) {
	for _, test := range []struct{ in, address, serverName string }{
		{"app.test", "app.test:443", "app.test"},
		{"app.test.:8443", "app.test.:8443", "app.test"},
		{"_a-b.test:1", "_a-b.test:1", "_a-b.test"},
		{"192.0.2.1", "192.0.2.1:443", "192.0.2.1"},
		{"192.0.2.1:65535", "192.0.2.1:65535", "192.0.2.1"},
		{"2001:db8::1", "[2001:db8::1]:443", "2001:db8::1"},
		{"[2001:db8::1]", "[2001:db8::1]:443", "2001:db8::1"},
		{"[2001:db8::1]:8443", "[2001:db8::1]:8443", "2001:db8::1"},
		{"[fe80::1%eth0]:8443", "[fe80::1%eth0]:8443", "fe80::1"},
	} {
		got, err := (&Options{Address: test.in}).target()
		if err != nil {
			t.Errorf("%s: %v", test.in, err)
			continue
		}
		if got.address != test.address || got.config.ServerName != test.serverName || got.timeout != 10*time.Second {
			t.Errorf("%s: address %q, server name %q, timeout %s, want %q, %q, 10s",
				test.in, got.address, got.config.ServerName, got.timeout, test.address, test.serverName)
		}
	}
}

func TestHelloGroupsOfGarbage(t *testing.T) {
	for _, hello := range []string{"", "\x16", "\x16\x03\x01\x00\x04\x01\x00\x00\x00", "GET / HTTP/1.1\r\n\r\n"} {
		if got := helloGroups([]byte(hello)); len(got) != 0 {
			t.Errorf("helloGroups(%q) = %v, want none", hello, got)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "CN=app.test", "\x1b[31m", "\u202e\u009b\u200b", "\xff\xed\xa0\x80", "ü\ufffd\U000e0001", strings.Repeat("é", 40)} {
		f.Add(s, 64)
	}
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = min(max(limit, 0), 4096)
		got := clean(s, limit)
		checkClean(t, got, limit)
		printable := utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
		if printable && len(s) <= limit && got != s {
			t.Errorf("clean(%q) = %q, want it unchanged", s, got)
		}
	})
}

func checkClean(t *testing.T, s string, limit int) {
	t.Helper()
	if !utf8.ValidString(s) {
		t.Errorf("%q is not UTF-8", s)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
		t.Errorf("%q is not printable at byte %d", s, i)
	}
	// The longest escape is that of a rune beyond U+FFFF, 10 bytes, and the ellipsis takes 3.
	if len(s) > limit+9+len("…") {
		t.Errorf("%d bytes, want at most %d and an ellipsis", len(s), limit)
	}
}

func closedPort(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	return listener.Addr().String()
}

// dialPipe returns a connection whose other end never reads, so that a write blocks from its first byte.
func dialPipe(context.Context, string, string) (net.Conn, error) {
	client, _ := net.Pipe()
	return client, nil
}

func resolverIsDown(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Resolver: &net.Resolver{
		PreferGo: true,
		Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
		},
	}}
	return dialer.DialContext(ctx, network, address)
}

func ipStrings(certificate *x509.Certificate) []string {
	var ips []string
	for _, ip := range certificate.IPAddresses {
		ips = append(ips, ip.String())
	}
	return ips
}
