// Package probe shows what a TLS server negotiates: the key-exchange group above all, then version,
// cipher suite, ALPN and certificate chain, with the time that each step took. It makes one ordinary
// connection with crypto/tls, finishes the handshake, sends no data and closes. The package knows no
// Caddy, so that both planes can use it.
//
//	r, err := probe.Run(ctx, probe.Options{Address: "example.com"})
//	fmt.Println(r.PostQuantum, r.Group, err) // true X25519MLKEM768 <nil>
//
// The server is taken to be hostile: a probe ends at its deadline, keeps a bounded amount of what it is
// told, and every string of a [Result] is printable UTF-8, safe to write to a terminal.
package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptrace"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Options says what to probe, and how. The zero value of every field but Address is its default.
type Options struct {
	// Address is the server: `host`, `host:port`, `[v6]:port` or an IPv6 address alone. The port is a
	// number, default 443. A host name is ASCII: an internationalised one is given as its A-label
	// (`xn--…`, RFC 5890 section 2.3.2.1). Required.
	Address string

	// ServerName is sent as SNI and must be covered by the certificate. Default: the host of Address.
	// An IP address is checked against the certificate but never sent (RFC 6066 section 3).
	ServerName string

	// ALPN are the protocol names to offer, in order of preference, 1 to 255 bytes each
	// (RFC 7301 section 3.1). Empty: the extension is not sent.
	ALPN []string

	// RootCAs are what the chain must end in. Default: the system's roots.
	RootCAs *x509.CertPool

	// Groups are the key-exchange groups to offer. crypto/tls orders them by itself and sends key shares
	// for X25519MLKEM768 and X25519 where they are among them. Default: X25519MLKEM768,
	// SecP256r1MLKEM768, SecP384r1MLKEM1024, X25519, CurveP256, CurveP384. GODEBUG can take some away:
	// Result.OfferedGroups has those that were left.
	Groups []tls.CurveID

	// Timeout bounds the whole probe, from DNS to the end of the handshake; an earlier deadline of the
	// context holds too. Default, also for negative values: 10 s.
	Timeout time.Duration

	// ProxyHeader is written in clear before the ClientHello: a PROXY protocol header for a server that
	// wants one. It is sent as it is. Default: none.
	ProxyHeader []byte

	// Dial opens the connection to addr, which is Address with its port, the name not yet resolved;
	// network is always `tcp`. It may enforce an address policy, and must give up when ctx is done. An
	// error that wraps a *net.DNSError counts as StageDNS, any other as StageConnect.
	// Default: a net.Dialer's DialContext.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// ServerTLSMin is the oldest version that is accepted, so that an old server is shown and not merely
	// refused. Default: tls.VersionTLS12.
	ServerTLSMin uint16
}

// Stage is a step of a probe.
type Stage string

// The stages, in order.
const (
	StageDNS       Stage = "dns"       // resolving the name
	StageConnect   Stage = "connect"   // opening the TCP connection, where an address policy may refuse too
	StageHandshake Stage = "handshake" // the PROXY header, where there is one, and TLS
)

// Error says at which stage a probe failed.
type Error struct {
	Stage Stage
	Err   error
}

func (e *Error) Error() string { return string(e.Stage) + ": " + e.Err.Error() }

// Unwrap returns the cause: context.DeadlineExceeded at the end of the time given, for example, a
// *net.OpError whose text names the TLS alert that the server sent, or tls.RecordHeaderError where it
// does not speak TLS.
func (e *Error) Unwrap() error { return e.Err }

// Run makes one connection to o.Address and reports what was negotiated. A certificate that does not
// verify is reported in Result.ChainError and is no error.
//
// The Result is never nil and holds what became known before a failure. The error is an *Error if the
// probe failed, and of another type if o is invalid, in which case nothing was sent. Run ends when ctx
// does; it may be called by many goroutines at a time.
func Run(ctx context.Context, o Options) (*Result, error) {
	t, err := o.target()
	if err != nil {
		r := newResult(clean(o.Address, maxText), clean(o.ServerName, maxText))
		r.Error = clean(err.Error(), maxText)
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()

	r := newResult(t.address, t.config.ServerName)
	start := time.Now()
	seen, failure := t.probe(ctx, r)
	r.Timings.Total = seconds(time.Since(start))

	r.setOffered(seen.hello)
	r.setNegotiated(seen.state, t.config)
	if failure != nil {
		r.Stage, r.Error = failure.Stage, clean(failure.Err.Error(), maxText)
		return r, failure
	}
	return r, nil
}

// target is Options with the defaults filled in and everything checked.
type target struct {
	address     string // host:port
	timeout     time.Duration
	proxyHeader []byte
	dial        func(ctx context.Context, network, addr string) (net.Conn, error)
	config      *tls.Config
}

func (o *Options) target() (*target, error) {
	host, port, err := splitAddress(o.Address)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", o.Address, err)
	}
	serverName := host
	if o.ServerName != "" {
		if err := checkHost(o.ServerName); err != nil {
			return nil, fmt.Errorf("server name %q: %w", o.ServerName, err)
		}
		serverName = o.ServerName
	}
	for _, protocol := range o.ALPN {
		if len(protocol) < 1 || len(protocol) > 255 {
			return nil, fmt.Errorf("ALPN name %q: want 1 to 255 bytes", clean(protocol, maxText))
		}
	}
	t := &target{
		address:     net.JoinHostPort(host, port),
		timeout:     o.Timeout,
		proxyHeader: o.ProxyHeader,
		dial:        o.Dial,
		config: &tls.Config{
			ServerName:       certificateName(serverName),
			RootCAs:          o.RootCAs,
			NextProtos:       o.ALPN,
			CurvePreferences: o.Groups,
			MinVersion:       o.ServerTLSMin,
			CipherSuites:     allCipherSuites(),
			// A bad chain must not hide the rest: verifyChain looks at it afterwards.
			InsecureSkipVerify: true,
		},
	}
	if t.timeout <= 0 {
		t.timeout = 10 * time.Second
	}
	if t.dial == nil {
		t.dial = new(net.Dialer).DialContext
	}
	if len(t.config.CurvePreferences) == 0 {
		t.config.CurvePreferences = []tls.CurveID{
			tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024,
			tls.X25519, tls.CurveP256, tls.CurveP384,
		}
	}
	if t.config.MinVersion == 0 {
		t.config.MinVersion = tls.VersionTLS12
	}
	return t, nil
}

// allCipherSuites also holds the suites of TLS 1.2 that crypto/tls leaves out by default, key exchange
// by RSA among them: servers that know nothing newer are those that a probe is to find. No data is sent
// under them, and crypto/tls lists them last.
func allCipherSuites() []uint16 {
	var ids []uint16
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		ids = append(ids, suite.ID)
	}
	return ids
}

// session is what a probe saw, to be looked at when no clock runs any more.
type session struct {
	hello []byte // the first ClientHello
	state tls.ConnectionState
}

// probe does everything that is timed, and fills in the timings.
func (t *target) probe(ctx context.Context, r *Result) (session, *Error) {
	conn, failure := t.connect(ctx, r)
	if failure != nil {
		return session{}, failure
	}
	defer conn.Close()

	start := time.Now()
	seen, err := t.handshake(ctx, conn)
	r.Timings.Handshake = seconds(time.Since(start))
	if err != nil {
		return seen, &Error{StageHandshake, explain(err)}
	}
	return seen, nil
}

func (t *target) connect(ctx context.Context, r *Result) (net.Conn, *Error) {
	var lookup lookupTimer
	start := time.Now()
	conn, err := t.dial(lookup.watch(ctx), "tcp", t.address)
	elapsed, dns := time.Since(start), lookup.total()
	r.Timings.DNS = seconds(dns)
	if err != nil {
		if _, ok := errors.AsType[*net.DNSError](err); ok {
			return nil, &Error{StageDNS, err}
		}
		r.Timings.Connect = seconds(elapsed - dns)
		return nil, &Error{StageConnect, err}
	}
	r.Timings.Connect = seconds(elapsed - dns)
	if addr, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		r.RemoteIP = addr.Addr().Unmap().String()
	}
	return conn, nil
}

// handshake returns what it saw also when it fails, and closes the connection, with close_notify where
// there was a handshake.
func (t *target) handshake(ctx context.Context, conn net.Conn) (session, error) {
	if err := writeHeader(ctx, conn, t.proxyHeader); err != nil {
		return session{}, fmt.Errorf("sending the PROXY header: %w", err)
	}
	recorder := &helloRecorder{Conn: conn}
	client := tls.Client(recorder, t.config)
	defer client.Close()
	err := client.HandshakeContext(ctx)
	return session{recorder.hello, client.ConnectionState()}, err
}

func writeHeader(ctx context.Context, conn net.Conn, header []byte) error {
	if len(header) == 0 {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(header); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return nil
}

// explain puts into words those errors of a handshake whose own text says too little.
func explain(err error) error {
	if header, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fmt.Errorf("the server's answer is not TLS (record header %q): %w", header.RecordHeader[:], err)
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the server closed the connection: %w", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the server did not finish in time: %w", err)
	}
	return err
}

// lookupTimer sums the time that net.Dialer spends on resolving names. The mutex guards both fields: a
// dialer of the caller's may look up several names at once, or leave a lookup running behind.
type lookupTimer struct {
	mu      sync.Mutex
	started time.Time // zero while no lookup runs
	spent   time.Duration
}

// watch returns a context under which net tells the timer of its lookups: net reads httptrace's hooks on
// every dial, not only for HTTP.
func (l *lookupTimer) watch(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) { l.start() },
		DNSDone:  func(httptrace.DNSDoneInfo) { l.stop() },
	})
}

func (l *lookupTimer) start() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.started = time.Now()
}

func (l *lookupTimer) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started.IsZero() {
		l.spent += time.Since(l.started)
		l.started = time.Time{}
	}
}

func (l *lookupTimer) total() time.Duration {
	l.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.spent
}

// splitAddress splits `host`, `host:port`, `[v6]`, `[v6]:port` and a bare IPv6 address.
func splitAddress(address string) (host, port string, err error) {
	if strings.Contains(address, "/") {
		return "", "", errors.New(wantAddress + ", not a URL")
	}
	host, port = address, "443"
	if strings.HasPrefix(address, "[") && strings.HasSuffix(address, "]") {
		host = address[1 : len(address)-1]
	} else if _, notIP := netip.ParseAddr(address); notIP != nil && strings.Contains(address, ":") {
		if host, port, err = net.SplitHostPort(address); err != nil {
			return "", "", errors.New(wantAddress)
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Errorf("port %q: want a number from 1 to 65535", port)
	}
	return host, port, checkHost(host)
}

const wantAddress = "want host, host:port or [v6]:port"

// checkHost accepts IP addresses and what can be a host name in DNS; it keeps out spaces and control
// characters rather than judging names, which is for the resolver to do.
func checkHost(host string) error {
	if host == "" {
		return errors.New("the host is missing")
	}
	if len(host) > 255 {
		return errors.New("the host is longer than the 255 bytes that DNS allows")
	}
	for _, c := range host {
		switch {
		case c >= 0x80:
			return errors.New("the host is not ASCII: give its A-label (xn--…)")
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.ContainsRune("-._", c):
		case strings.ContainsRune(":%", c): // IPv6 and its zone
			if _, err := netip.ParseAddr(host); err != nil {
				return errors.New(wantAddress)
			}
		default:
			return fmt.Errorf("%q cannot be in a host", c)
		}
	}
	return nil
}

// certificateName is the form of a host in which a certificate carries it: without the final dot of an
// absolute name, and without the zone of an IPv6 address.
func certificateName(host string) string {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.WithZone("").String()
	}
	return strings.TrimSuffix(host, ".")
}
