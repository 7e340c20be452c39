package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/proxyheader"
)

// UpstreamOptions says which upstream of a domain to probe, and how it is set up now. The zero value of every field but
// Dial is its default.
type UpstreamOptions struct {
	// Dial is the upstream as the domain has it: `host:port` or `[v6]:port`. Required.
	Dial string

	// TLS is how the domain encrypts towards the upstream. Nil: it does not.
	TLS *UpstreamTLS

	// ProxyProtocol is the version of the header that the domain sends: `off`, `v1`, `v2`. What does not fit to what was
	// found is an error of the result. Default: not compared.
	ProxyProtocol string

	// Asked is the name of the domain. Where Dial is an IP address and TLS names no server, the certificate must cover
	// it, as it must for the edge. Of a wildcard, a name under it is taken.
	Asked string

	// DialContext opens the connections, as Options.Dial does. It has to enforce the address policy wherever Dial comes
	// from a tenant: the probe itself connects anywhere. After the first connection it is given that one's address, so
	// that all go to the same server.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)

	// Timeout bounds all of one upstream. Default, also for negative values: 10 s.
	Timeout time.Duration
}

// UpstreamTLS is the TLS of an upstream, in the words of the domain record.
type UpstreamTLS struct {
	ServerName         string         // default: as UpstreamOptions.Asked says
	RootCAs            *x509.CertPool // default: the system's
	PostQuantum        string         // `prefer` (default), `require`, `off`
	InsecureSkipVerify bool           // a chain that does not verify is no error then
}

// ProxyAnswer is what an upstream does with a PROXY header.
type ProxyAnswer string

// The answers.
const (
	ProxyRefused  ProxyAnswer = "refused"  // it works without, and chokes on a header of either version
	ProxyAccepted ProxyAnswer = "accepted" // it works without and with a header
	ProxyRequired ProxyAnswer = "required" // it works with a header only
	ProxyUnknown  ProxyAnswer = "unknown"  // it cannot be told
)

// UpstreamResult is what the probe of one upstream found. What did not become known is empty or false.
type UpstreamResult struct {
	Dial string `json:"dial"`

	// Reachable is whether it accepts TCP connections.
	Reachable bool `json:"reachable"`

	// TLSVersion and Group are spelled as crypto/tls does. Empty: it does not speak TLS.
	TLSVersion string `json:"tls_version"`
	Group      string `json:"group"`

	// PostQuantum is whether the handshake finished with a hybrid group, HelloRetryRequest whether the server asked for
	// another key share than was sent at first, which costs a round trip.
	PostQuantum       bool `json:"post_quantum"`
	HelloRetryRequest bool `json:"hello_retry_request"`

	// ALPN is what it selects of h2 and http/1.1. Empty: neither.
	ALPN string `json:"alpn"`

	// ChainOK is whether its certificate is good for the name, by the CA given or the system's roots.
	ChainOK bool `json:"chain_ok"`

	// ProxyProtocol is what it does with a PROXY header.
	ProxyProtocol ProxyAnswer `json:"proxy_protocol"`

	// Recommend is how to set up the domain for it; nil where too little is known.
	Recommend *Recommendation `json:"recommend"`

	// Error says, for people, what keeps the domain from working with it as it is set up now. Empty: nothing.
	Error string `json:"error"`
}

// Recommendation is a part of a domain's settings.
type Recommendation struct {
	// TLS is for the `tls` of the upstream. Nil, in JSON null: plain TCP.
	TLS *RecommendedTLS `json:"tls"`

	// ProxyProtocol is for the domain: `off`, `v1`, `v2`. Empty: it could not be told.
	ProxyProtocol string `json:"proxy_protocol,omitempty"`

	// Text says for people why.
	Text string `json:"text"`
}

// RecommendedTLS are settings of an upstream's `tls`. What is empty is to be left as it is.
type RecommendedTLS struct {
	// ServerName is given where the certificate is good, but for this name.
	ServerName string `json:"server_name,omitempty"`

	// PostQuantum is `prefer`, or `require` where that is set and works.
	PostQuantum string `json:"post_quantum,omitempty"`
}

// maxParallel bounds how many upstreams are probed at a time; a domain has at most 16.
const maxParallel = 16

// Upstreams probes all of them, in parallel, and returns the results in their order. It ends when ctx does, or within
// the Timeout of the slowest where there are at most 16.
func Upstreams(ctx context.Context, all []UpstreamOptions) []*UpstreamResult {
	results := make([]*UpstreamResult, len(all))
	slots := make(chan struct{}, maxParallel)
	var running sync.WaitGroup
	for i := range all {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			results[i] = Upstream(ctx, all[i])
		})
	}
	running.Wait()
	return results
}

// Upstream finds out how one upstream wants to be spoken to: whether it speaks TLS, what it negotiates, and what it does
// with a PROXY header. It makes at most 6 connections, at most 4 of them at a time. On those it sends the header of a
// connection of our own (v1 UNKNOWN, v2 LOCAL), a ClientHello, or, where no TLS answers, an HTTP request `HEAD / HTTP/1.0`.
// Nothing of what the server says beyond the facts of the handshake gets into the result, which is never nil.
func Upstream(ctx context.Context, o UpstreamOptions) *UpstreamResult {
	timeout := o.Timeout
	if timeout <= 0 {
		timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	u := &upstreamProbe{options: o, step: timeout * 3 / 10, address: o.Dial, name: o.serverName(),
		result: &UpstreamResult{Dial: clean(o.Dial, maxText), ProxyProtocol: ProxyUnknown}}
	u.run(ctx)
	return u.result
}

// serverName is the name that the certificate must cover: the order of domain.UpstreamTLS.ServerName.
func (o *UpstreamOptions) serverName() string {
	if o.TLS != nil && o.TLS.ServerName != "" {
		return o.TLS.ServerName
	}
	host, _, err := net.SplitHostPort(o.Dial)
	if err != nil {
		return ""
	}
	if _, err := netip.ParseAddr(host); err != nil || o.Asked == "" {
		return host
	}
	if base, wildcard := strings.CutPrefix(o.Asked, "*."); wildcard {
		return "pqproxy-probe." + base
	}
	return o.Asked
}

// upstreamProbe is one run of Upstream.
type upstreamProbe struct {
	options UpstreamOptions
	step    time.Duration // for each connection; three in a row fit into the timeout
	address string        // Options.Dial, then the address that was connected to
	name    string
	result  *UpstreamResult

	noALPN bool // it takes neither h2 nor http/1.1
	kind   kind
	facts  *tlsAnswer // of the TLS connection that tells; nil: none
	v1, v2 ProxyAnswer
}

// kind is what an upstream speaks.
type kind int

const (
	kindUnknown  kind = iota
	kindTLS           // it answers a ClientHello with a ServerHello
	kindAlert         // it answers with an alert only
	kindHTTP          // plain HTTP
	kindOther         // bytes that are neither
	kindNothing       // nothing at all, in any way
	kindNoAnswer      // what it speaks is not known because our time was over
)

// The headers that are sent: of a connection of our own, so that no server takes the probe for a client.
var (
	headerV1 = proxyheader.AppendV1Unknown(nil)
	headerV2 = longV2Local()
)

// longV2Local is a header of command LOCAL that is as long as those of clients can be, with a TLV that means nothing
// (PP2_TYPE_NOOP, proxy-protocol.txt section 2.2.4). Some servers read short ones only, nginx before 1.23.3 among them:
// they would take the shortest LOCAL, and then no client's header.
func longV2Local() []byte {
	const typeNoop, tlvHead = 0x04, 3
	b := proxyheader.AppendV2Local(nil)
	fixed := len(b)
	b = append(b, typeNoop)
	b = binary.BigEndian.AppendUint16(b, uint16(proxyheader.MaxLen-fixed-tlvHead))
	b = append(b, make([]byte, proxyheader.MaxLen-len(b))...)
	binary.BigEndian.PutUint16(b[fixed-2:], uint16(len(b)-fixed)) // the length, the last field of the fixed part
	return b
}

// run tries without a header first, since that tells the most, then with one of each version.
func (u *upstreamProbe) run(ctx context.Context) {
	if _, _, err := net.SplitHostPort(u.options.Dial); err != nil {
		u.result.Error = "dial is no address that can be probed: give host:port or [v6]:port"
		return
	}
	bare := u.tls(ctx, nil)
	if !bare.connected {
		u.result.Error = unreachable(bare.err)
		return
	}
	u.result.Reachable = true
	if bare.remote != "" {
		u.address = bare.remote
	}
	if bare.refusedALPN {
		u.noALPN = true
		bare = u.tls(ctx, nil)
	}
	switch {
	case bare.hello:
		u.kind, u.facts = kindTLS, bare
		u.withHeader(ctx, tlsWorks, nil)
		u.result.ProxyProtocol = together(u.v1, u.v2)
	case bare.alert:
		u.kind, u.facts = kindAlert, bare
		v1, v2 := u.withHeader(ctx, tlsWorks, nil)
		u.required(v1, v2)
	default:
		u.notTLS(ctx, bare)
	}
	if ctx.Err() != nil && u.kind != kindTLS {
		u.kind = kindNoAnswer
	}
	u.judge(ctx.Err() != nil)
}

// notTLS is for an upstream that did not answer the ClientHello as TLS does.
func (u *upstreamProbe) notTLS(ctx context.Context, bare *tlsAnswer) {
	plain := u.http(ctx, nil)
	switch {
	case plain.status != 0 || bare.http:
		u.kind = kindHTTP
		u.withHeader(ctx, nil, func(a *httpAnswer) ProxyAnswer { return a.comparedWith(plain) })
		u.result.ProxyProtocol = together(u.v1, u.v2)
	case plain.bytes || bare.bytes:
		u.kind = kindOther // it may speak first, so that an answer tells nothing of the header
	default:
		v1, v2 := u.withHeader(ctx, tlsWorks, func(a *httpAnswer) ProxyAnswer { return answerOf(true, a.status != 0) })
		if u.kind = kindNothing; u.v1 == ProxyAccepted || u.v2 == ProxyAccepted {
			u.kind = kindHTTP
		}
		u.required(v1, v2)
	}
}

// required takes what is known from the connections with a header where none without worked.
func (u *upstreamProbe) required(v1, v2 *tlsAnswer) {
	for _, a := range []*tlsAnswer{v1, v2} { // the last wins: v2 is recommended
		switch {
		case a != nil && a.hello:
			u.kind, u.facts = kindTLS, a
		case a != nil && a.refusedALPN:
			u.kind, u.facts = kindAlert, a
		}
	}
	if u.v1 == ProxyAccepted || u.v2 == ProxyAccepted {
		u.result.ProxyProtocol = ProxyRequired
	}
}

// withHeader connects with a header of each version, at a time, and judges what comes back: TLS where overTLS is given,
// HTTP where overHTTP is. Either is enough.
func (u *upstreamProbe) withHeader(ctx context.Context, overTLS func(*tlsAnswer) ProxyAnswer, overHTTP func(*httpAnswer) ProxyAnswer) (tls1, tls2 *tlsAnswer) {
	var http1, http2 *httpAnswer
	var all sync.WaitGroup
	if overTLS != nil {
		all.Go(func() { tls1 = u.tls(ctx, headerV1) })
		all.Go(func() { tls2 = u.tls(ctx, headerV2) })
	}
	if overHTTP != nil {
		all.Go(func() { http1 = u.http(ctx, headerV1) })
		all.Go(func() { http2 = u.http(ctx, headerV2) })
	}
	all.Wait()
	u.v1, u.v2 = ProxyRefused, ProxyRefused
	judge := func(into *ProxyAnswer, t *tlsAnswer, h *httpAnswer) {
		var answers []ProxyAnswer
		if t != nil {
			answers = append(answers, overTLS(t))
		}
		if h != nil {
			answers = append(answers, overHTTP(h))
		}
		*into = best(answers)
		if *into == ProxyRefused && ctx.Err() != nil {
			*into = ProxyUnknown // it had no time
		}
	}
	judge(&u.v1, tls1, http1)
	judge(&u.v2, tls2, http2)
	return tls1, tls2
}

// tlsWorks: of the alerts, the one about ALPN shows that the hello was read. Others come for a header as well.
func tlsWorks(a *tlsAnswer) ProxyAnswer { return answerOf(a.connected, a.hello || a.refusedALPN) }

// answerOf: without a connection nothing is known; with one, silence is a refusal too, as some stacks wait for what the
// header seems to announce.
func answerOf(connected, works bool) ProxyAnswer {
	switch {
	case works:
		return ProxyAccepted
	case connected:
		return ProxyRefused
	}
	return ProxyUnknown
}

// best is accepted if one is, and refused if all are.
func best(answers []ProxyAnswer) ProxyAnswer {
	result := ProxyRefused
	for _, a := range answers {
		if a == ProxyAccepted {
			return a
		}
		if a == ProxyUnknown {
			result = a
		}
	}
	return result
}

// together joins what an upstream does with both versions.
func together(v1, v2 ProxyAnswer) ProxyAnswer { return best([]ProxyAnswer{v1, v2}) }

// tlsAnswer is what came back for a ClientHello.
type tlsAnswer struct {
	connected   bool
	remote      string // the address that was connected to; empty: not known
	hello       bool   // a ServerHello
	alert       bool   // an alert
	refusedALPN bool   // that alert
	http        bool   // an answer of HTTP
	bytes       bool   // bytes that are not TLS
	wantsCert   bool   // the server asked for a certificate
	result      *Result
	state       tls.ConnectionState
	err         error // what ended the handshake; nil: it finished
}

// tls makes one connection, with a header before the ClientHello.
func (u *upstreamProbe) tls(ctx context.Context, header []byte) *tlsAnswer {
	a := &tlsAnswer{}
	options := Options{
		Address: u.address, ServerName: u.name, ProxyHeader: header, Timeout: u.step,
		// Old versions are to be told from what is no TLS.
		ServerTLSMin: tls.VersionTLS10,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := u.dial(ctx, network, addr)
			if err == nil {
				a.connected, a.remote = true, remoteAddress(conn)
			}
			return conn, err
		},
	}
	if !u.noALPN {
		options.ALPN = []string{"h2", "http/1.1"}
	}
	if u.options.TLS != nil {
		options.RootCAs = u.options.TLS.RootCAs
	}
	t, err := options.target()
	if err != nil {
		a.err = err
		return a
	}
	t.config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		a.wantsCert = true
		return new(tls.Certificate), nil
	}
	ctx, cancel := context.WithTimeout(ctx, u.step)
	defer cancel()
	a.result = newResult(t.address, t.config.ServerName)
	seen, failure := t.probe(ctx, a.result)
	a.state = seen.state
	a.result.setNegotiated(seen.state, t.config)
	a.hello = seen.state.Version != 0
	if failure == nil {
		return a
	}
	a.err = failure.Err
	if header, ok := errors.AsType[tls.RecordHeaderError](failure.Err); ok {
		a.bytes, a.http = true, string(header.RecordHeader[:]) == "HTTP/"
	}
	if op, ok := errors.AsType[*net.OpError](failure.Err); ok && op.Op == "remote error" {
		a.alert = true
		a.refusedALPN = op.Err.Error() == "tls: no application protocol" // crypto/tls exports no type for alert 120
	}
	return a
}

func (u *upstreamProbe) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if u.options.DialContext != nil {
		return u.options.DialContext(ctx, network, addr)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, addr)
}

// remoteAddress returns the address of the peer, if it is one that can be dialled.
func remoteAddress(conn net.Conn) string {
	addr, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return ""
	}
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()).String()
}
