package pqproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/proxyheader"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// upstream is an address that traffic goes to, with its TLS settings, as one tenant has it. Domains of a
// tenant that name the same one share it, and with it the sessions that can be resumed.
type upstream struct {
	domain.Upstream
	tls *tls.Config // nil: plain TCP. ServerName is set for each connection.

	policy *groupPolicy // towards the upstream; nil: plain TCP
	open   atomic.Int64 // connections of this edge
	condition

	configs     sync.Map // configKey → *tls.Config; few, so that connections share them
	configCount atomic.Int32
}

// configKey is what the TLS config of a connection to an upstream depends on.
type configKey struct{ serverName, proto string }

// upstreamConfigs is how many TLS configs are kept for an upstream. There are more only where clients choose
// the name, under a wildcard.
const upstreamConfigs = 16

// upstreamSessions is how many sessions are kept for resumption towards one upstream: the last one for each name
// that it is asked for. There are several names only where clients choose them, under a wildcard.
const upstreamSessions = 32

// newUpstream compiles a validated upstream. Where it names a file for its CA, CAPEM holds what is in it.
func newUpstream(u domain.Upstream) *upstream {
	up := &upstream{Upstream: u}
	if u.TLS == nil {
		return up
	}
	up.policy = groupPolicies[u.TLS.PostQuantum]
	up.tls = &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		CurvePreferences:            up.policy.groups,
		InsecureSkipVerify:          u.TLS.InsecureSkipVerify,
		ClientSessionCache:          tls.NewLRUClientSessionCache(upstreamSessions),
		DynamicRecordSizingDisabled: true,
	}
	if u.TLS.CAFile != "" || u.TLS.CAPEM != "" { // an empty file must not mean the system's roots
		up.tls.RootCAs = x509.NewCertPool()
		up.tls.RootCAs.AppendCertsFromPEM([]byte(u.TLS.CAPEM))
	}
	return up
}

// relayConfig returns the TLS config of a connection on behalf of a client that asked for a name, offering one
// protocol, or none where proto is empty.
func (u *upstream) relayConfig(asked, proto string) *tls.Config {
	key := configKey{u.TLSServerName(asked), proto}
	if cfg, ok := u.configs.Load(key); ok {
		return cfg.(*tls.Config)
	}
	var protos []string
	if proto != "" {
		protos = []string{proto}
	}
	cfg := u.clientConfig(asked, protos)
	if u.configCount.Load() < upstreamConfigs { // asked first, lest the count wrap around
		u.configCount.Add(1)
		u.configs.Store(key, cfg)
	}
	return cfg
}

// clientConfig returns a new TLS config that offers protocols.
func (u *upstream) clientConfig(asked string, protos []string) *tls.Config {
	cfg := u.tls.Clone()
	cfg.ServerName = u.TLSServerName(asked)
	cfg.NextProtos = protos
	return cfg
}

// upstreamConn is a connection to an upstream, ready to relay.
type upstreamConn struct {
	leg
	upstream *upstream
	session  session // zero for plain TCP
	closing  sync.Once
}

// close closes the connection and counts it out.
func (u *upstreamConn) close() {
	u.closing.Do(func() {
		u.upstream.open.Add(-1)
		_ = u.Conn.Close()
	})
}

// dialResult is what became of all attempts.
type dialResult struct {
	conn               *upstreamConn // nil if err is set
	err                *dialError
	dial               string        // the last upstream that was tried
	connect, handshake time.Duration // of the last attempt
}

// dialError is why an upstream cannot be used.
type dialError struct {
	reason endReason
	dial   string
	err    error
	blamed bool // it is the upstream's fault, and not our client's or our own
}

func (e *dialError) Error() string { return fmt.Sprintf("upstream %s: %v", e.dial, e.err) }
func (e *dialError) Unwrap() error { return e.err }

// dialEarly starts the dial beside the handshake if there is a slot for it. Otherwise it waits for the
// client's Finished, so that half-open handshakes cannot be turned into connections to upstreams.
func (c *conn) dialEarly() {
	if c.owner.early.acquire(c.client.Addr(), c.limits) {
		c.earlySlot = true
		c.startDial()
	}
}

// releaseEarlySlot gives the slot back once the handshake is over.
func (c *conn) releaseEarlySlot() {
	if c.earlySlot {
		c.earlySlot = false
		c.owner.early.release(c.client.Addr())
	}
}

// startDial dials in the background. The result is waited for, by awaitUpstream or finish.
func (c *conn) startDial() {
	c.dialed = make(chan dialResult, 1)
	go c.dialInto(c.dialed)
}

func (c *conn) dialInto(results chan<- dialResult) {
	result := dialResult{err: &dialError{reason: reasonInternal, err: errors.New("the dial panicked")}}
	defer func() { results <- result }()
	defer c.survivePanic()
	result = c.dialInOrder()
}

// attemptsPerDial bounds all attempts together at so many times dial_timeout.
const attemptsPerDial = 3

// dialInOrder tries the upstreams one after the other.
func (c *conn) dialInOrder() (result dialResult) {
	deadline := time.Now().Add(attemptsPerDial * time.Duration(c.limits.DialTimeout))
	var failed *dialError
	for _, u := range c.upstreams() {
		timeout := min(time.Until(deadline), time.Duration(c.limits.DialTimeout))
		trial := c.try(u, timeout)
		result = c.attempt(u, timeout)
		trial.ended(result.err)
		if result.err == nil {
			return result
		}
		if failed != nil {
			result.err.err = fmt.Errorf("%w (before that: %w)", result.err.err, failed)
		}
		failed = result.err
		if c.ctx.Err() != nil || result.err.reason == reasonUpALPN || time.Now().After(deadline) {
			break
		}
	}
	return result
}

// attempt dials one upstream: name resolution, TCP, PROXY header, TLS, within timeout.
func (c *conn) attempt(u *upstream, timeout time.Duration) dialResult {
	result := dialResult{dial: u.Dial}
	fail := func(reason endReason, err error, blamed bool) dialResult {
		result.err = &dialError{reason, u.Dial, err, blamed && c.ctx.Err() == nil}
		return result
	}
	begun := time.Now()
	sock, err := dialSocket(c.ctx, u, c.owner.settings.Load().policyOf(c.route), timeout)
	result.connect = time.Since(begun)
	if err != nil {
		return fail(connectReason(err), err, unreachable(err))
	}
	metrics.upstreamConnect.Observe(result.connect.Seconds())
	timeout -= result.connect

	w, keptWaiting := newWire(sock), false
	// Version 2 tells what was negotiated with the client, which is known a moment after our flight left.
	if c.route.ProxyProtocol == domain.ProxyV2 {
		begun = time.Now()
		select {
		case <-c.negotiatedSignal:
		case <-c.ctx.Done():
			_ = sock.Close()
			return fail(reasonInternal, c.ctx.Err(), false)
		}
		keptWaiting = time.Since(begun) > longWait // by the client: the upstream may have lost its patience
	}
	header := c.proxyHeader()

	conn := &upstreamConn{leg: leg{wire: w}, upstream: u}
	if u.tls == nil {
		if len(header) > 0 {
			_, err = sock.Write(header) // does not wait: nothing is in the socket's buffer yet
		}
	} else {
		begun = time.Now()
		w.header = header // leaves with the ClientHello, in one segment
		err = c.upstreamTLS13(conn, timeout)
		result.handshake = time.Since(begun)
	}
	if err != nil {
		_ = sock.Close()
		reason, err := c.explainHangUp(c.upstreamReason(u, err), err)
		return fail(reason, err, !keptWaiting && c.handshakeFault(u, reason))
	}
	u.open.Add(1)
	result.conn = conn
	return result
}

// longWait is how long an upstream may have to wait for the PROXY header before it is not to blame for hanging up.
const longWait = time.Second

// policyOf is what the addresses of a route's upstreams are held to.
func (s *settings) policyOf(r *route) *netpolicy.Policy {
	if r.source == domain.Static {
		return s.own
	}
	return s.policy
}

// dialSocket opens a connection to an upstream. The policy judges the address that is connected to, after the name was
// resolved.
func dialSocket(ctx context.Context, u *upstream, policy *netpolicy.Policy, timeout time.Duration) (socket, error) {
	dialer := net.Dialer{Timeout: max(timeout, 1), Control: policy.Control} // 0 would be no timeout
	network, address := u.Network()
	c, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return c.(socket), nil
}

// errUpstreamALPN and errUpstreamGroup are faults of an upstream that crypto/tls does not call any.
var (
	errUpstreamALPN  = errors.New("the upstream selected another protocol than the client was promised")
	errUpstreamGroup = errors.New("the upstream negotiated a group that tls.post_quantum does not allow")
)

// upstreamTLS13 runs the handshake with an upstream, offering exactly what the client was promised.
func (c *conn) upstreamTLS13(up *upstreamConn, timeout time.Duration) error {
	_ = up.sock.SetDeadline(time.Now().Add(timeout))
	stop := context.AfterFunc(c.ctx, func() { _ = up.sock.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	up.tls = tls.Client(up.wire, up.upstream.relayConfig(c.serverName, c.offerProto))
	if err := up.tls.Handshake(); err != nil {
		return err
	}
	state := up.tls.ConnectionState()
	up.session = sessionOf(&state)
	if !up.upstream.policy.allows(up.session.group) {
		return fmt.Errorf("%w: %s", errUpstreamGroup, up.session.group)
	}
	if got := up.session.alpn; got != c.offerProto {
		c.owner.alpn.forget(up.upstream)
		return fmt.Errorf("%w: %q instead of %q", errUpstreamALPN, got, c.offerProto)
	}
	if !stop() {
		return c.ctx.Err()
	}
	_ = up.sock.SetDeadline(time.Time{})
	metrics.upstreamHandshake(&up.session)
	return nil
}

// Alert numbers that an upstream may answer with (RFC 8446, section 6).
const (
	alertHandshakeFailure     = 40
	alertInsufficientSecurity = 71
)

// connectReason classifies an error before there is a connection.
func connectReason(err error) endReason {
	var denied *netpolicy.DeniedError
	switch {
	case errors.Is(err, netpolicy.ErrLoop):
		return reasonUpLoop
	case errors.As(err, &denied):
		return reasonUpDenied
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return reasonRefused
	case errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		return reasonUpTimeout
	default:
		return reasonUnreachable
	}
}

// upstreamReason classifies an error after the connection, and before it is of use.
func (c *conn) upstreamReason(u *upstream, err error) endReason {
	var certificate *tls.CertificateVerificationError
	alert := alertOf(err)
	switch {
	case errors.Is(err, errUpstreamALPN):
		return reasonUpALPN
	case errors.Is(err, errUpstreamGroup):
		return reasonUpGroup
	case errors.As(err, &certificate):
		return reasonUpCertificate
	case alert == alertNoApplicationProtocol:
		c.owner.alpn.forget(u)
		return reasonUpALPN
	case (alert == alertHandshakeFailure || alert == alertInsufficientSecurity) && u.policy.name == domain.Require:
		return reasonUpGroup
	case alert != 0:
		return reasonUpTLS
	case isTimeout(err):
		return reasonUpTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), isReset(err):
		return reasonUpClosedEarly
	case errors.Is(err, context.Canceled):
		return reasonInternal
	default:
		return reasonUpTLS
	}
}

// explainHangUp adds to the error of an upstream that hung up what usually makes it.
func (c *conn) explainHangUp(reason endReason, err error) (endReason, error) {
	if reason == reasonUpClosedEarly {
		err = fmt.Errorf("the upstream hung up in the handshake (%w): %s", err, c.route.proxyHint())
	}
	return reason, err
}

// alertOf returns the alert that a peer sent, or 0. crypto/tls keeps its type to itself, but not its text.
func alertOf(err error) int {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return 0
	}
	for _, alert := range []int{alertHandshakeFailure, alertInsufficientSecurity, alertUnrecognizedName, alertNoApplicationProtocol} {
		if op.Err.Error() == tls.AlertError(alert).Error() {
			return alert
		}
	}
	return -1 // another one
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// proxyHeader returns the PROXY header that the upstream gets, or nil.
func (c *conn) proxyHeader() []byte {
	version := c.route.ProxyProtocol
	if version == domain.ProxyOff {
		return nil
	}
	h := proxyheader.Header{Source: c.client, Destination: addrPort(c.clientWire.LocalAddr())}
	if version == domain.ProxyV1 {
		return h.AppendV1(nil)
	}
	h.ALPN, h.Authority, h.UniqueID = c.session.alpn, c.serverName, c.id.String()
	h.TLS, h.TLSVersion, h.CipherSuite, h.Group = true, c.session.version, c.session.cipherSuite, c.session.group
	return h.AppendV2(nil)
}

// proxyHint is what an operator should look at when an upstream hangs up without a word.
func (r *route) proxyHint() string {
	if r.ProxyProtocol == domain.ProxyOff {
		return "does it expect a PROXY header? proxy_protocol is off for this domain"
	}
	return fmt.Sprintf("does it accept a PROXY header? proxy_protocol is %s for this domain", r.ProxyProtocol)
}
