package caddytest

import (
	"fmt"
	"strings"
	"testing"
)

// route is a domain of these tests, by what is special about it.
type route struct {
	name    string // of the domain
	server  string // which upstream it goes to, and its address
	dial    string
	version string // of the PROXY protocol
}

// TestPeers has every client fetch over HTTP/1.1 and HTTP/2, from every upstream, announced with either
// version of the PROXY protocol. What was negotiated, whose address the upstream was told, and that it
// all went through one connection must agree between the client, the proxy's record and the upstream.
func TestPeers(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.files(t, upstreamName)
	nginx, haproxy := startNginx(t, cert), startHAProxy(t, cert)
	routes := []route{
		{name: "nginx-v1.example.com", server: "nginx", dial: nginx, version: "v1"},
		{name: "haproxy-v1.example.com", server: "haproxy", dial: haproxy, version: "v1"},
		{name: "haproxy-v2.example.com", server: "haproxy", dial: haproxy, version: "v2"},
	}
	if nginxReadsTLVs(t) { // TestOldNginx has the other case
		routes = append(routes, route{name: "nginx-v2.example.com", server: "nginx", dial: nginx, version: "v2"})
	}
	var block strings.Builder
	for _, r := range routes {
		block.WriteString(domainBlock(r.name, tlsUpstream(r.dial, ca), "proxy_protocol "+r.version, certificate(ca.files(t, r.name))))
	}
	p := startProxy(t, block.String())

	for _, c := range clients {
		for _, protocol := range []string{"http/1.1", "h2"} {
			if !c.speaks(protocol) {
				continue
			}
			for _, r := range routes {
				t.Run(fmt.Sprintf("client=%s/protocol=%s/upstream=%s/proxy_protocol=%s", c.name, protocol, r.server, r.version), func(t *testing.T) {
					checkFetch(t, p, c, r, target{addr: p.addr, name: r.name, ca: ca, protocol: protocol})
				})
			}
		}
	}
}

// checkFetch has a client fetch through the proxy and compares what all three parties say.
func checkFetch(t *testing.T, p *proxy, c client, r route, to target) {
	t.Helper()
	got := c.fetch(t, to)
	if got.Group != "" && got.Group != c.group {
		t.Errorf("the client says that it negotiated %s, want %s", got.Group, c.group)
	}

	a := got.answer(t)
	logged := p.recordOf(t, r.name, a.ClientPort)
	want := answer{
		Server: r.server, ClientIP: "127.0.0.1", ClientPort: a.ClientPort, TLS: "TLSv1.3", ServerName: upstreamName,
		Protocol: map[string]string{"http/1.1": "HTTP/1.1", "h2": "HTTP/2.0"}[to.protocol],
	}
	if got.LocalPort != 0 {
		want.ClientPort = got.LocalPort
	}
	if r.server == "haproxy" && r.version == "v2" {
		want.Authority, want.UniqueID = r.name, logged.ID
	}
	if a != want {
		t.Errorf("the upstream saw\n%+v, want\n%+v", a, want)
	}

	wantLogged := record{
		ID: logged.ID, ServerName: r.name, Domain: r.name, ClientIP: "127.0.0.1", ClientPort: a.ClientPort,
		TLSVersion: "TLS 1.3", Group: c.group, PostQuantum: c.group == hybrid, OfferedPostQuantum: c.group == hybrid,
		HelloRetry: c.retried, ALPN: to.protocol, Upstream: r.dial, UpstreamGroup: upstreamGroup, ProxyProtocol: r.version,
		BytesIn: logged.BytesIn, BytesOut: logged.BytesOut, ClosedBy: logged.ClosedBy, EndReason: "done",
	}
	if logged != wantLogged {
		t.Errorf("the record is\n%+v, want\n%+v", logged, wantLogged)
	}
	if logged.BytesOut < int64(len(got.Body)) || logged.BytesIn == 0 {
		t.Errorf("the record counts %d bytes in and %d out for an answer of %d", logged.BytesIn, logged.BytesOut, len(got.Body))
	}
}

// TestOldNginx announces clients with version 2 to an nginx that cannot read headers of that length:
// the record must say where to look. With a newer nginx it must work.
func TestOldNginx(t *testing.T) {
	ca := newAuthority(t)
	r := route{name: "nginx-v2.example.com", server: "nginx", dial: startNginx(t, ca.files(t, upstreamName)), version: "v2"}
	p := startProxy(t, domainBlock(r.name, tlsUpstream(r.dial, ca), "proxy_protocol v2", certificate(ca.files(t, r.name))))
	to := target{addr: p.addr, name: r.name, ca: ca, protocol: "http/1.1"}
	if nginxReadsTLVs(t) {
		checkFetch(t, p, clients[0], r, to)
		return
	}

	if _, said, err := attempt(t, nil, "", peer(t, "curl"), curlArgs(t, to)...); err == nil {
		t.Errorf("curl got an answer: %s", said)
	}
	logged := p.record(t, func(logged record) bool { return logged.ServerName == r.name })
	if logged.EndReason != "upstream_closed_early" || logged.Upstream != r.dial || !strings.Contains(logged.Error, "PROXY") {
		t.Errorf("the record is %+v, want one that suggests looking at the PROXY protocol", logged)
	}
}

// TestRequireRefusesClassicalClients has clients that know no hybrid group come to a domain whose
// policy is `require`: they are refused with the alert handshake_failure (40), which TLS 1.3 has for
// "no group in common" (RFC 8446, section 4.1.1), and nothing is opened to the upstream for them. A
// client of today is served.
func TestRequireRefusesClassicalClients(t *testing.T) {
	const name = "app.example.com"
	ca := newAuthority(t)
	nginx := startNginx(t, ca.files(t, upstreamName))
	p := startProxy(t, domainBlock(name, tlsUpstream(nginx, ca), "proxy_protocol v1", "post_quantum require", certificate(ca.files(t, name))))
	to := target{addr: p.addr, name: name, ca: ca, protocol: "http/1.1"}

	checkRefusal := func(t *testing.T, said, alert string, err error, seen map[string]bool) {
		t.Helper()
		if err == nil || !strings.Contains(said, alert) {
			t.Errorf("the client ended with %v and said %q, want an error and %q", err, said, alert)
		}
		r := p.record(t, func(r record) bool { return r.ServerName == name && !seen[r.ID] })
		seen[r.ID] = true
		want := record{
			ID: r.ID, ServerName: name, Domain: name, ClientIP: "127.0.0.1", ClientPort: r.ClientPort, ProxyProtocol: "v1",
			BytesIn: r.BytesIn, BytesOut: r.BytesOut, ClosedBy: "edge", EndReason: "no_common_group", Error: r.Error,
		}
		if r != want {
			t.Errorf("the record is\n%+v, want\n%+v", r, want)
		}
	}
	seen := make(map[string]bool)

	_, said, err := attempt(t, nil, "", peer(t, "openssl"), opensslArgs(to)...)
	checkRefusal(t, said, "SSL alert number 40", err, seen)
	_, said, err = attempt(t, nil, "", peer(t, "curl"), curlArgs(t, to)...)
	checkRefusal(t, said, "handshake failure", err, seen)

	got := script("node", "node.mjs")(t, to)
	if got.Group != hybrid {
		t.Errorf("Node.js negotiated %s, want %s", got.Group, hybrid)
	}
}

// tlsUpstream returns the option of a domain whose upstream is one of ours, over TLS.
func tlsUpstream(addr string, ca authority) string {
	return fmt.Sprintf("upstream %s {\n\ttls\n\ttls_server_name %s\n\ttls_ca %s\n\t}", addr, upstreamName, ca.file)
}

// certificate returns the option of a domain that serves a certificate from files.
func certificate(l leaf) string {
	return fmt.Sprintf("certificate %s %s", l.chain, l.key)
}
