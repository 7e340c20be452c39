package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"syscall"
)

// unreachable says why there is no connection, without the addresses of name servers, which package net puts into its
// errors.
func unreachable(err error) string {
	if dnsError, ok := errors.AsType[*net.DNSError](err); ok {
		switch {
		case dnsError.IsNotFound:
			return "the name does not resolve: check the spelling of dial, and that it has an A or AAAA record"
		case dnsError.IsTimeout:
			return "the name could not be resolved in time"
		}
		return "the name could not be resolved"
	}
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the connection was refused: check that the server listens on this port"
	case errors.Is(err, context.DeadlineExceeded), isNet && timeout.Timeout():
		return "the server did not answer in time: check the address, and that no firewall is in between"
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		err = op.Err // the policy's own words, or the system's
	}
	return clean("no connection: "+err.Error(), maxText)
}

// judge fills in the result.
func (u *upstreamProbe) judge(timeOver bool) {
	r := u.result
	if u.facts != nil && u.facts.hello {
		seen := u.facts.result
		r.TLSVersion, r.Group, r.PostQuantum = seen.TLSVersion, seen.Group, seen.PostQuantum
		r.HelloRetryRequest, r.ALPN, r.ChainOK = seen.HelloRetryRequest, seen.ALPN, seen.ChainOK
	}
	faults := u.faults()
	if timeOver {
		faults = append(faults, "the time was over before everything was tried")
	}
	r.Error = clean(strings.Join(faults, "; "), maxText)
	r.Recommend = u.recommend()
}

// faults are what keeps the domain, as it is set up, from working with the upstream.
func (u *upstreamProbe) faults() []string {
	var faults []string
	switch u.kind {
	case kindNothing:
		return []string{"the server accepts connections, but answers neither TLS nor HTTP, with or without a PROXY header: check the port"}
	case kindNoAnswer:
		return []string{"the server accepts connections, but does not answer in time"}
	case kindAlert:
		faults = append(faults, "the server refuses the TLS handshake ("+u.facts.err.Error()+"): check tls.server_name, and that it supports TLS 1.3")
	case kindTLS:
		faults = u.tlsFaults()
	case kindHTTP:
		if u.options.TLS != nil {
			faults = append(faults, "the domain has tls for this upstream, but the server speaks plain HTTP on this port: remove tls or take the port that has it")
		}
	case kindOther:
		if u.options.TLS != nil {
			faults = append(faults, "the domain has tls for this upstream, but the server does not speak TLS on this port")
		}
	}
	sends := u.options.ProxyProtocol
	switch {
	case u.result.ProxyProtocol == ProxyRefused && (sends == "v1" || sends == "v2"):
		faults = append(faults, "the domain sends a PROXY header, and the server chokes on it: set proxy_protocol to off, or have the server read it")
	case u.result.ProxyProtocol == ProxyRequired && sends == "off":
		faults = append(faults, "the server answers only behind a PROXY header: set proxy_protocol to "+u.version())
	case u.result.ProxyProtocol != ProxyUnknown && (sends == "v1" && u.v1 == ProxyRefused || sends == "v2" && u.v2 == ProxyRefused):
		faults = append(faults, "the server does not read PROXY headers of version "+sends+": set proxy_protocol to "+u.version())
	}
	return faults
}

func (u *upstreamProbe) tlsFaults() []string {
	seen, has := u.facts, u.options.TLS
	var faults []string
	if has == nil {
		faults = append(faults, "the domain sends plain TCP to this upstream, but the server speaks TLS: add tls")
	}
	if seen.state.Version < tls.VersionTLS13 {
		return append(faults, "the server has no TLS 1.3, which the edges require: enable it, or take a plain TCP port")
	}
	if seen.err != nil {
		return append(faults, "the TLS handshake does not finish: "+seen.err.Error())
	}
	if has == nil {
		return faults
	}
	if !seen.result.ChainOK && !has.InsecureSkipVerify {
		faults = append(faults, "the certificate is not good for "+u.name+": "+seen.result.ChainError)
	}
	if has.PostQuantum == "require" && !seen.result.PostQuantum {
		faults = append(faults, "the domain requires post-quantum key exchange with this upstream, and the server negotiates "+seen.result.Group)
	}
	return faults
}

// version is the PROXY version to send; v2 before v1, as it carries more.
func (u *upstreamProbe) version() string {
	switch {
	case u.v2 == ProxyAccepted:
		return "v2"
	case u.v1 == ProxyAccepted:
		return "v1"
	case u.result.ProxyProtocol == ProxyRefused:
		return "off"
	}
	return ""
}

func (u *upstreamProbe) recommend() *Recommendation {
	r := &Recommendation{ProxyProtocol: u.version()}
	var text []string
	say := func(sentence string) { text = append(text, sentence) }
	switch u.kind {
	case kindTLS:
		r.TLS = &RecommendedTLS{PostQuantum: "prefer"}
		u.adviseTLS(r.TLS, say)
	case kindHTTP:
		say("The server speaks HTTP over plain TCP: leave tls out. What is sent to it can be read and changed by whoever is between; if that is not the same machine or a trusted network, enable TLS on the server.")
	case kindOther:
		say("The server speaks neither TLS nor HTTP: leave tls out. Whether it reads a PROXY header cannot be told; its configuration says so.")
	default:
		return nil
	}
	switch u.result.ProxyProtocol {
	case ProxyRefused:
		say("It does not read PROXY headers: leave proxy_protocol off. It sees the address of the edge as its client.")
	case ProxyAccepted:
		say("It reads PROXY headers (" + u.versions() + "), so it can be told the client's address.")
	case ProxyRequired:
		say("It answers only behind a PROXY header (" + u.versions() + ").")
	case ProxyUnknown:
		if u.kind != kindOther {
			say("Whether it reads a PROXY header could not be told; its configuration says so.")
		}
	}
	r.Text = clean(strings.Join(text, " "), 2*maxText)
	return r
}

// adviseTLS is for an upstream that speaks TLS.
func (u *upstreamProbe) adviseTLS(settings *RecommendedTLS, say func(string)) {
	seen, has := u.facts, u.options.TLS
	switch {
	case seen.state.Version < tls.VersionTLS13:
		say("The server speaks " + seen.result.TLSVersion + " at best, and the edges speak TLS 1.3 to upstreams: enable TLS 1.3 on it.")
		return
	case seen.err != nil:
		say("The server begins a TLS handshake and does not finish it; its log says why.")
		return
	case seen.result.PostQuantum && seen.result.HelloRetryRequest:
		say("Key exchange is post-quantum (" + seen.result.Group + "), after one round trip more (HelloRetryRequest): enable X25519MLKEM768 on the server to save it.")
	case seen.result.PostQuantum:
		say("Key exchange is post-quantum (" + seen.result.Group + "); post_quantum require would keep it so.")
	default:
		say("Key exchange is classical (" + seen.result.Group + "): enable the group X25519MLKEM768 on the server (OpenSSL from 3.5 and Go from 1.24 have it by default).")
	}
	if has != nil && has.PostQuantum == "require" && seen.result.PostQuantum {
		settings.PostQuantum = "require"
	}
	if name := u.otherName(); name != "" {
		settings.ServerName = name
		say("The certificate is good, but for " + name + ", not for " + u.name + ": set tls.server_name, if that server is yours.")
	} else if !seen.result.ChainOK {
		say("The certificate does not verify (" + seen.result.ChainError + "): give the CA that issued it as tls.ca_pem, or get one for " + u.name + ".")
	}
	if seen.wantsCert {
		say("The server asks for a client certificate, and the edges send none: if it insists, connections will end.")
	}
}

// otherName returns a name that the certificate is good for, where it is good for none that is configured.
func (u *upstreamProbe) otherName() string {
	seen := u.facts
	if seen.result.ChainOK || len(seen.state.PeerCertificates) == 0 {
		return ""
	}
	config := &tls.Config{}
	if u.options.TLS != nil {
		config.RootCAs = u.options.TLS.RootCAs
	}
	leaf := seen.state.PeerCertificates[0]
	for _, name := range leaf.DNSNames[:min(len(leaf.DNSNames), maxNames)] {
		if strings.HasPrefix(name, "*.") || checkHost(name) != nil {
			continue
		}
		config.ServerName = name
		if verifyChain(seen.state.PeerCertificates, config) == nil {
			return name
		}
		return "" // the name was not what is wrong
	}
	return ""
}

func (u *upstreamProbe) versions() string {
	var versions []string
	if u.v1 == ProxyAccepted {
		versions = append(versions, "v1")
	}
	if u.v2 == ProxyAccepted {
		versions = append(versions, "v2")
	}
	return strings.Join(versions, " and ")
}
