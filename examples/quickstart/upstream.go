package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/pires/go-proxyproto"
)

// upstream is the demo upstream: HTTP/1.1 and HTTP/2 over TLS 1.3, behind a PROXY header in clear that it
// requires.
type upstream struct {
	*http.Server
	address string // it listens on
	caFile  string // PEM of the CA that signed its certificate
}

// startUpstream serves on a free port. The file of its CA is in dir; the keys are in memory alone.
func startUpstream(dir string) (*upstream, error) {
	cert, ca, err := throwAwayCertificate(name)
	if err != nil {
		return nil, err
	}
	up := &upstream{caFile: filepath.Join(dir, "upstream-ca.pem")}
	if err := os.WriteFile(up.caFile, ca, 0o600); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	up.address = ln.Addr().String()
	up.Server = &http.Server{
		Handler:           http.HandlerFunc(servePage),
		ConnContext:       keepConn,
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*cert}},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // the proxy asks for ALPN on connections without a request
	}
	behindProxy := &proxyproto.Listener{Listener: ln, ReadHeaderTimeout: 10 * time.Second}
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
	peer := "unknown"
	if c, ok := r.Context().Value(connKey{}).(*tls.Conn); ok {
		if behind, ok := c.NetConn().(*proxyproto.Conn); ok {
			peer = behind.Raw().RemoteAddr().String()
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "client address %s (the PROXY header says so; TCP says %s)\n", r.RemoteAddr, peer)
	fmt.Fprintf(w, "server name    %s\n", r.TLS.ServerName)
	fmt.Fprintf(w, "tls            %s, %s, towards the proxy\n", tls.VersionName(r.TLS.Version), r.TLS.CurveID)
	fmt.Fprintf(w, "http           %s (alpn %s)\n", r.Proto, orNone(r.TLS.NegotiatedProtocol))
}

// throwAwayCertificate makes a CA and a certificate of it for a host name, both valid for a week: longer
// than anyone watches a demo.
func throwAwayCertificate(host string) (cert *tls.Certificate, caPEM []byte, err error) {
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pqproxy quickstart upstream CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(7 * 24 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{host}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return nil, nil, err
	}
	caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, caPEM, nil
}
