package pqproxy

import (
	"crypto/tls"
	"net/netip"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/pqproxy/caddy-pqproxy/internal/id"
)

// endReason says how a connection ended. Each value is a metric label too; docs/connections.md says
// what each means and what to do about it.
type endReason string

const (
	reasonDone          endReason = "done"
	reasonIdleTimeout   endReason = "idle_timeout"
	reasonDrained       endReason = "drained"
	reasonEndedByAdmin  endReason = "ended_by_admin"
	reasonDomainRemoved endReason = "domain_removed"
	reasonSuspended     endReason = "suspended"
	reasonOverLimit     endReason = "over_limit"
	reasonDomainOver    endReason = "domain_over_limit"
	reasonNoHello       endReason = "no_hello"
	reasonHelloTimeout  endReason = "hello_timeout"
	reasonNotTLS        endReason = "not_tls"
	reasonBadHello      endReason = "bad_hello"
	reasonHelloTooLarge endReason = "hello_too_large"
	reasonNoSNI         endReason = "no_sni"
	reasonUnknownDomain endReason = "unknown_domain"
	reasonTLSVersion    endReason = "tls_version"
	reasonNoCommonGroup endReason = "no_common_group"
	reasonALPNMismatch  endReason = "alpn_mismatch"
	reasonEarlyData     endReason = "early_data"
	reasonNoCertificate endReason = "no_certificate"
	reasonHandshakeTime endReason = "handshake_timeout"
	reasonHandshake     endReason = "handshake_failed"
	reasonClientGone    endReason = "client_gone"
	reasonACMEChallenge endReason = "acme_challenge"
	reasonRefused       endReason = "upstream_refused"
	reasonUpTimeout     endReason = "upstream_timeout"
	reasonUnreachable   endReason = "upstream_unreachable"
	reasonUpDenied      endReason = "upstream_denied"
	reasonUpLoop        endReason = "upstream_loop"
	reasonUpCertificate endReason = "upstream_certificate"
	reasonUpTLS         endReason = "upstream_tls"
	reasonUpGroup       endReason = "upstream_group"
	reasonUpALPN        endReason = "upstream_alpn"
	reasonUpClosedEarly endReason = "upstream_closed_early"
	reasonClientReset   endReason = "client_reset"
	reasonUpstreamReset endReason = "upstream_reset"
	reasonInternal      endReason = "internal"
)

// side says who ended a connection.
type side string

const (
	sideClient   side = "client"
	sideUpstream side = "upstream"
	sideEdge     side = "edge"
)

// The keys of the connection record.
const (
	keyID                = "id"
	keyServerName        = "server_name"
	keyDomain            = "domain"
	keyTenant            = "tenant"
	keySource            = "source"
	keyClientIP          = "client_ip"
	keyClientPort        = "client_port"
	keyTLSVersion        = "tls_version"
	keyCipherSuite       = "cipher_suite"
	keyGroup             = "group"
	keyPostQuantum       = "post_quantum"
	keyOfferedPQ         = "offered_post_quantum"
	keyHelloRetry        = "hello_retry"
	keyResumed           = "resumed"
	keyALPN              = "alpn"
	keyUpstream          = "upstream"
	keyUpstreamGroup     = "upstream_group"
	keyUpstreamPQ        = "upstream_post_quantum"
	keyUpstreamResumed   = "upstream_resumed"
	keyProxyProtocol     = "proxy_protocol"
	keyHelloWait         = "hello_wait"
	keyHandshake         = "handshake"
	keyUpstreamConnect   = "upstream_connect"
	keyUpstreamHandshake = "upstream_handshake"
	keyFirstByte         = "first_byte"
	keyDuration          = "duration"
	keyBytesIn           = "bytes_in"
	keyBytesOut          = "bytes_out"
	keyClosedBy          = "closed_by"
	keyEndReason         = "end_reason"
	keyError             = "error"
)

// record is what one connection leaves behind: its log line, and what the metrics count. Durations are
// zero where the connection did not get that far.
type record struct {
	id         id.ID
	serverName string // as the client sent it, in lower case; empty: none
	route      *route // nil: none found
	client     netip.AddrPort

	offeredPQ       bool
	session         session // with the client
	completed       bool    // the handshake with it
	upstream        string  // dial address of the last one tried
	upstreamSession session

	helloWait, handshake               time.Duration
	upstreamConnect, upstreamHandshake time.Duration
	firstByte, duration                time.Duration

	bytesIn, bytesOut int64
	sentAnything      bool // whether the peer sent a byte

	closedBy side
	reason   endReason
	err      error
}

// session is what a handshake negotiated. It is kept instead of crypto/tls's own state, which holds on to
// certificates and secrets for as long as the connection is open.
type session struct {
	version, cipherSuite uint16 // zero: there was no handshake, or not so far
	group                tls.CurveID
	alpn                 string
	resumed, helloRetry  bool
}

func sessionOf(state *tls.ConnectionState) session {
	return session{
		version: state.Version, cipherSuite: state.CipherSuite, group: state.CurveID,
		alpn: state.NegotiatedProtocol, resumed: state.DidResume, helloRetry: state.HelloRetryRequest,
	}
}

// log writes the record at level info, or debug if the peer sent nothing: health checks and scans.
func (r *record) log(logger *zap.Logger) {
	level := zapcore.InfoLevel
	if !r.sentAnything {
		level = zapcore.DebugLevel
	}
	entry := logger.Check(level, "connection")
	if entry == nil {
		return
	}
	fields := make([]zap.Field, 0, 32)
	add := func(f ...zap.Field) { fields = append(fields, f...) }
	add(zap.String(keyID, r.id.String()))
	if r.serverName != "" {
		add(zap.String(keyServerName, r.serverName))
	}
	if r.route != nil {
		add(zap.String(keyDomain, r.route.Name), zap.String(keyTenant, r.route.Tenant),
			zap.String(keySource, string(r.route.source)))
	}
	if r.client.IsValid() {
		add(zap.String(keyClientIP, r.client.Addr().Unmap().String()), zap.Uint16(keyClientPort, r.client.Port()))
	}
	if r.serverName != "" || r.route != nil {
		add(zap.Bool(keyOfferedPQ, r.offeredPQ))
	}
	if s := &r.session; s.version != 0 {
		add(zap.String(keyTLSVersion, tls.VersionName(s.version)),
			zap.String(keyCipherSuite, tls.CipherSuiteName(s.cipherSuite)),
			zap.String(keyGroup, s.group.String()),
			zap.Bool(keyPostQuantum, isPostQuantum(s.group)),
			zap.Bool(keyHelloRetry, s.helloRetry),
			zap.Bool(keyResumed, s.resumed),
			zap.String(keyALPN, s.alpn))
	}
	if r.upstream != "" {
		add(zap.String(keyUpstream, r.upstream))
	}
	if s := &r.upstreamSession; s.version != 0 {
		add(zap.String(keyUpstreamGroup, s.group.String()),
			zap.Bool(keyUpstreamPQ, isPostQuantum(s.group)),
			zap.Bool(keyUpstreamResumed, s.resumed))
	}
	if r.route != nil {
		add(zap.String(keyProxyProtocol, string(r.route.ProxyProtocol)))
	}
	add(zap.Duration(keyHelloWait, r.helloWait), zap.Duration(keyHandshake, r.handshake),
		zap.Duration(keyUpstreamConnect, r.upstreamConnect), zap.Duration(keyUpstreamHandshake, r.upstreamHandshake),
		zap.Duration(keyFirstByte, r.firstByte), zap.Duration(keyDuration, r.duration),
		zap.Int64(keyBytesIn, r.bytesIn), zap.Int64(keyBytesOut, r.bytesOut),
		zap.String(keyClosedBy, string(r.closedBy)), zap.String(keyEndReason, string(r.reason)))
	if r.err != nil {
		add(zap.String(keyError, cutText(r.err.Error(), maxErrorText)))
	}
	entry.Write(fields...)
}

// maxErrorText bounds the error of a record in bytes. It quotes what the client sent, of which a hello has 16 KiB
// that quoting makes several times as long; 16 upstreams that cannot be reached fit.
const maxErrorText = 4 << 10

// cutText returns at most so many bytes of a text, and says where it was cut.
func cutText(text string, most int) string {
	if len(text) <= most {
		return text
	}
	const ellipsis = "…"
	return strings.ToValidUTF8(text[:most-len(ellipsis)], "") + ellipsis
}
