package pqproxy

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestProxyProtocol announces the client in both versions to plain, TLS and unix socket upstreams. With TLS
// the header and the ClientHello leave together.
func TestProxyProtocol(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	for _, version := range []string{"v1", "v2"} {
		for _, kind := range []string{"plain", "tls", "unix", "unix tls"} {
			t.Run(version+"/"+kind, func(t *testing.T) {
				cfg := pqtest.UpstreamConfig{Proxy: true}
				options := ""
				if strings.Contains(kind, "tls") {
					cfg.TLS = &tls.Config{Certificates: []tls.Certificate{e.ca.Issue(t, "app.example.com")}, NextProtos: []string{"imap"}}
					options = "{\n tls_ca $CA\n}"
				}
				if strings.Contains(kind, "unix") {
					cfg.Network = "unix"
				}
				up := pqtest.StartUpstream(t, cfg)
				e.load(fmt.Sprintf(`domain app.example.com {
					upstream %s %s
					proxy_protocol %s
					certificate $CHAIN $KEY
				}`, up.Addr(), options, version))
				c := e.dial(e.client("app.example.com", func(c *tls.Config) { c.NextProtos = []string{"imap"} }))
				echo(t, c, "hi")
				c.Close()
				r := e.log.nextRecord()

				got := up.Next(t)
				if got.Header != nil && got.Header.Command == proxyproto.LOCAL { // learning ALPN
					got = up.Next(t)
				}
				h := got.Header
				if h == nil || h.SourceAddr.String() != c.LocalAddr().String() || h.DestinationAddr.String() != e.addr || h.TransportProtocol != proxyproto.TCPv4 {
					t.Fatalf("the upstream was told %+v (%v)", h, got.Err)
				}
				segments := 1
				if kind == "plain" && len(got.First()) > got.HeaderLen {
					segments = 2 // the client's data was there before the upstream read
				}
				if !strings.Contains(kind, "unix") && got.FirstSegments() != segments {
					t.Errorf("the header came in %d writes", got.FirstSegments())
				}
				if kind == "tls" && len(got.First()) <= got.HeaderLen {
					t.Errorf("the ClientHello did not come with the header")
				}
				if version == "v2" {
					checkTLVs(t, h, r, c.ConnectionState())
				}
			})
		}
	}
}

// checkTLVs compares what a version 2 header says with the record and with what the client negotiated.
func checkTLVs(t *testing.T, h *proxyproto.Header, r logLine, state tls.ConnectionState) {
	t.Helper()
	tlvs, err := h.TLVs()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[proxyproto.PP2Type]string)
	for _, tlv := range tlvs {
		values[tlv.Type] = string(tlv.Value)
	}
	want := map[proxyproto.PP2Type]string{
		proxyproto.PP2_TYPE_AUTHORITY: "app.example.com",
		proxyproto.PP2_TYPE_UNIQUE_ID: r.str("id"),
	}
	if state.NegotiatedProtocol != "" {
		want[proxyproto.PP2_TYPE_ALPN] = state.NegotiatedProtocol
	}
	for typ, value := range want {
		if values[typ] != value {
			t.Errorf("TLV %#x is %q, want %q", typ, values[typ], value)
		}
	}
	ssl, ok := tlvparse.FindSSL(tlvs)
	if !ok {
		t.Fatal("there is no SSL TLV")
	}
	version, _ := ssl.SSLVersion()
	group, _ := ssl.SSLGroup()
	cipher, _ := ssl.SSLCipher()
	if version != "TLSv1.3" || group != state.CurveID.String() || cipher != tls.CipherSuiteName(state.CipherSuite) || ssl.Verified() {
		t.Errorf("the SSL TLV says %s, %s, %s, verified %v", version, group, cipher, ssl.Verified())
	}
}

// TestProxyProtocolBehindProxyProtocol has caddy-l4's proxy_protocol handler in front: the original client's address
// goes on, v6 too.
func TestProxyProtocolBehindProxyProtocol(t *testing.T) {
	pqtest.Leaks(t)
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{Proxy: true})
	e := startEdge(t, fmt.Sprintf(`domain app.example.com {
		upstream %s
		proxy_protocol v1
		certificate $CHAIN $KEY
	}`, up.Addr()), "proxy_protocol {\n allow 127.0.0.1/32\n}", "pqproxy")
	for _, in := range []struct{ header, source, destination string }{
		{"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n", "192.0.2.7:4711", "198.51.100.1:443"},
		{"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n", "[2001:db8::7]:4711", "[2001:db8::1]:443"},
	} {
		raw := e.dialTCP()
		hello := []byte(in.header)
		c := tls.Client(&prefixedConn{Conn: raw, prefix: hello}, e.client("app.example.com"))
		echo(t, c, "hi")
		c.Close()
		h := up.Next(t).Header
		if h.SourceAddr.String() != in.source || h.DestinationAddr.String() != in.destination {
			t.Errorf("the upstream was told %s to %s, want %s to %s", h.SourceAddr, h.DestinationAddr, in.source, in.destination)
		}
		r := e.log.nextRecord()
		if got := net.JoinHostPort(r.str("client_ip"), fmt.Sprint(int(r.num("client_port")))); got != in.source {
			t.Errorf("the record has client %s, want %s", got, in.source)
		}
		if r.str("end_reason") != "done" {
			t.Errorf("end_reason %s (%s)", r.str("end_reason"), r.str("error"))
		}
	}
}

// prefixedConn writes a prefix in front of the first write, in one segment with it.
type prefixedConn struct {
	net.Conn
	prefix []byte
}

func (c *prefixedConn) Write(p []byte) (int, error) {
	if c.prefix == nil {
		return c.Conn.Write(p)
	}
	first := append(c.prefix, p...)
	c.prefix = nil
	n, err := c.Conn.Write(first)
	return max(0, n-(len(first)-len(p))), err
}

// TestFailOver tries the upstreams in order until one can be used, and says which one that was.
func TestFailOver(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	closed := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	closed.Close()
	wrong := pqtest.StartUpstream(t, pqtest.UpstreamConfig{TLS: &tls.Config{Certificates: []tls.Certificate{e.ca.Issue(t, "other.internal")}}})
	good := pqtest.StartUpstream(t, pqtest.UpstreamConfig{TLS: &tls.Config{Certificates: []tls.Certificate{e.ca.Issue(t, "app.internal")}, NextProtos: []string{"h2"}}})
	option := "domain app.example.com {\n certificate $CHAIN $KEY\n"
	for _, up := range []*pqtest.Upstream{closed, wrong, good} {
		option += fmt.Sprintf("upstream %s {\n tls_server_name app.internal\n tls_ca $CA\n}\n", up.Addr())
	}
	e.load(option + "}")
	for _, protos := range [][]string{nil, {"h2"}} { // with ALPN the fail-over happens while learning
		c := e.dial(e.client("app.example.com", func(c *tls.Config) { c.NextProtos = protos }))
		echo(t, c, "hi")
		c.Close()
		if r := e.log.nextRecord(); r.str("upstream") != good.Addr() || r.str("end_reason") != "done" {
			t.Errorf("protos %v: went to %s, end_reason %s", protos, r.str("upstream"), r.str("end_reason"))
		}
	}

	good.Close()
	c := e.dial(e.client("app.example.com"))
	if _, end := pqtest.ReadToEnd(t, c); end != pqtest.RST {
		t.Errorf("the client of no usable upstream saw %s, want a reset", end)
	}
	r := e.log.nextRecord()
	if r.str("end_reason") != "upstream_certificate" { // those that had failed before come last, in order
		t.Errorf("end_reason %s", r.str("end_reason"))
	}
	for _, up := range []*pqtest.Upstream{closed, wrong, good} {
		if !strings.Contains(r.str("error"), up.Addr()) {
			t.Errorf("the error does not tell of %s: %s", up.Addr(), r.str("error"))
		}
	}
}

// TestLoadBalancing counts where connections go under each setting.
func TestLoadBalancing(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	ups := []*pqtest.Upstream{pqtest.StartUpstream(t, pqtest.UpstreamConfig{}), pqtest.StartUpstream(t, pqtest.UpstreamConfig{})}
	run := func(setting string, hold bool) (counts [2]int) {
		before := [2]int{ups[0].Accepted(), ups[1].Accepted()}
		e.load(fmt.Sprintf(`domain app.example.com {
			upstream %s
			upstream %s
			load_balancing %s
			certificate $CHAIN $KEY
		}`, ups[0].Addr(), ups[1].Addr(), setting))
		var held []*tls.Conn
		for range 20 {
			c := e.dial(e.client("app.example.com"))
			echo(t, c, "hi")
			if hold {
				held = append(held, c)
			} else {
				c.Close()
				e.log.nextRecord()
			}
		}
		for _, c := range held {
			c.Close()
			e.log.nextRecord()
		}
		return [2]int{ups[0].Accepted() - before[0], ups[1].Accepted() - before[1]}
	}
	if got := run("first", false); got != [2]int{20, 0} {
		t.Errorf("first: %v", got)
	}
	if got := run("random", false); got[0] == 0 || got[1] == 0 { // wrong once in 2^19 runs
		t.Errorf("random: %v", got)
	}
	if got := run("least_conn", true); got != [2]int{10, 10} {
		t.Errorf("least_conn with all of them open: %v", got)
	}
	if got := run("ip_hash", false); got[0] != 0 && got[1] != 0 {
		t.Errorf("ip_hash of one client: %v", got)
	}
}

// TestIPHash spreads clients evenly, and taking an upstream away moves only its own clients.
func TestIPHash(t *testing.T) {
	var ups []*upstream
	for i := range 4 {
		ups = append(ups, &upstream{Upstream: domain.Upstream{Dial: fmt.Sprintf("10.0.0.%d:8443", i)}})
	}
	all := &route{Domain: &domain.Domain{LoadBalancing: domain.IPHash}, upstreams: ups}
	fewer := &route{Domain: all.Domain, upstreams: ups[1:]}
	counts := make(map[*upstream]int)
	for i := range uint32(4000) {
		var ip [4]byte
		binary.BigEndian.PutUint32(ip[:], 0xc0000200+i)
		client := netip.AddrFrom4(ip)
		first := all.inOrder(client)[0]
		counts[first]++
		if now := fewer.inOrder(client)[0]; first != ups[0] && now != first {
			t.Fatalf("%s moved from %s to %s", client, first.Dial, now.Dial)
		}
	}
	for u, n := range counts {
		if n < 800 || n > 1200 {
			t.Errorf("%s has %d of 4000 clients", u.Dial, n)
		}
	}
}

// TestEarlyDial holds back the client's Finished: the upstream has its connection, and with version 2 the
// header that tells the negotiated group, while the handshake is unfinished.
func TestEarlyDial(t *testing.T) {
	pqtest.Leaks(t)
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{Proxy: true, Handler: pqtest.Hold})
	e := startEdge(t, fmt.Sprintf(`domain app.example.com {
		upstream %s
		proxy_protocol v2
		certificate $CHAIN $KEY
	}`, up.Addr()))
	for _, g := range []tls.CurveID{tls.X25519MLKEM768, tls.X25519} {
		raw := e.dialTCP()
		if _, err := raw.Write(pqtest.ClientHello(t, e.client("app.example.com", onlyGroup(g)))); err != nil {
			t.Fatal(err)
		}
		got := up.Next(t) // while this client never sends a Finished
		tlvs, err := got.Header.TLVs()
		if err != nil {
			t.Fatal(err)
		}
		ssl, _ := tlvparse.FindSSL(tlvs)
		if group, _ := ssl.SSLGroup(); group != g.String() {
			t.Errorf("the header says group %q, want %s", group, g)
		}
		raw.Close()
		if _, end := pqtest.ReadToEnd(t, got); end == "" {
			t.Error("the upstream's connection was left open")
		}
		if r := e.log.nextRecord(); r.str("end_reason") != "client_gone" {
			t.Errorf("end_reason %s (%s)", r.str("end_reason"), r.str("error"))
		}
	}
}
