package demo

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/pires/go-proxyproto"
)

// Upstream is HTTP/1.1 and HTTP/2 over TLS 1.3, with a PROXY header in clear before it. Its page tells what this side of the
// proxy knows.
type Upstream struct {
	*http.Server
	Address string // it listens on
	CA      []byte // PEM of the CA that signed its certificate
}

// StartUpstream serves a host name on a free port until Close. Without a PROXY header it serves only where proxied is
// proxyproto.USE.
func StartUpstream(host string, proxied proxyproto.Policy) (*Upstream, error) {
	ca, err := NewAuthority("pqproxy demo upstream CA")
	if err != nil {
		return nil, err
	}
	cert, err := ca.Issue(host)
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	up := &Upstream{Address: ln.Addr().String(), CA: ca.PEM}
	up.Server = &http.Server{
		Handler:           http.HandlerFunc(servePage),
		ConnContext:       keepConn,
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*cert}},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // the proxy asks for ALPN on connections without a request
	}
	behindProxy := &proxyproto.Listener{
		Listener: ln, ReadHeaderTimeout: 10 * time.Second,
		ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) { return proxied, nil },
	}
	go up.ServeTLS(behindProxy, "", "") // until Close
	return up, nil
}

// connKey is the key of the request's connection in its context.
type connKey struct{}

func keepConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// servePage tells what this side of the proxy knows.
func servePage(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	said := "nothing else is known: there was no PROXY header"
	if c, ok := r.Context().Value(connKey{}).(*tls.Conn); ok {
		if behind, ok := c.NetConn().(*proxyproto.Conn); ok && behind.ProxyHeader() != nil {
			said = fmt.Sprintf("the PROXY header says so; TCP says %s", behind.Raw().RemoteAddr())
		}
	}
	fmt.Fprintf(w, "client address %s (%s)\n", r.RemoteAddr, said)
	fmt.Fprintf(w, "server name    %s\n", r.TLS.ServerName)
	fmt.Fprintf(w, "tls            %s, %s, towards the proxy\n", tls.VersionName(r.TLS.Version), r.TLS.CurveID)
	fmt.Fprintf(w, "http           %s (alpn %s)\n", r.Proto, orNone(r.TLS.NegotiatedProtocol))
}

func orNone(alpn string) string {
	if alpn == "" {
		return "none"
	}
	return alpn
}
