package probe

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"
)

// authority issues certificates for test servers.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
	chain       [][]byte       // what a leaf is sent with
	pool        *x509.CertPool // the root alone
}

func newCA(t *testing.T) *authority {
	t.Helper()
	template := caTemplate("root")
	key := newKey(t)
	certificate := sign(t, template, template, key.Public(), key)
	ca := &authority{certificate: certificate, key: key, pool: x509.NewCertPool()}
	ca.pool.AddCert(certificate)
	return ca
}

func (ca *authority) intermediate(t *testing.T) *authority {
	t.Helper()
	key := newKey(t)
	certificate := sign(t, caTemplate("intermediate"), ca.certificate, key.Public(), ca.key)
	return &authority{certificate: certificate, key: key, chain: [][]byte{certificate.Raw}, pool: ca.pool}
}

func (ca *authority) issue(t *testing.T, template *x509.Certificate) tls.Certificate {
	t.Helper()
	return ca.issueFor(t, template, newKey(t))
}

// issueRSA is for key exchange by RSA, which no other key can do.
func (ca *authority) issueRSA(t *testing.T, template *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template.KeyUsage |= x509.KeyUsageKeyEncipherment
	return ca.issueFor(t, template, key)
}

// issueUnder makes the issuer claim another common name than the CA has.
func (ca *authority) issueUnder(t *testing.T, issuer string, template *x509.Certificate) tls.Certificate {
	t.Helper()
	renamed := *ca
	parent := *ca.certificate
	parent.RawSubject, parent.Subject = nil, pkix.Name{CommonName: issuer}
	renamed.certificate = &parent
	return renamed.issue(t, template)
}

func (ca *authority) issueFor(t *testing.T, template *x509.Certificate, key crypto.Signer) tls.Certificate {
	t.Helper()
	leaf := sign(t, template, ca.certificate, key.Public(), ca.key)
	return tls.Certificate{Certificate: append([][]byte{leaf.Raw}, ca.chain...), PrivateKey: key, Leaf: leaf}
}

func caTemplate(name string) *x509.Certificate {
	template := leafTemplate()
	template.Subject.CommonName = name
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign
	return template
}

func leafTemplate(names ...string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "leaf"},
		DNSNames:     names,
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// serve runs handle, then closes, for every connection, until the test ends; it waits for all of them.
func serve(t *testing.T, handle func(net.Conn)) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { acceptAll(listener, &running, handle) })
	t.Cleanup(func() {
		listener.Close()
		running.Wait()
	})
	return listener.Addr().String()
}

// acceptAll ends when listener is closed.
func acceptAll(listener net.Listener, running *sync.WaitGroup, handle func(net.Conn)) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		running.Go(func() {
			defer conn.Close()
			handle(conn)
		})
	}
}

// serveTLS serves TLS connections until their clients close them. wait returns when one has ended.
func serveTLS(t *testing.T, config *tls.Config) (address string, wait func()) {
	t.Helper()
	ended := make(chan struct{}, 16)
	address = serve(t, func(conn net.Conn) {
		serveConn(conn, config)
		ended <- struct{}{}
	})
	return address, func() { <-ended }
}

func serveConn(conn net.Conn, config *tls.Config) {
	io.Copy(io.Discard, tls.Server(conn, config))
}

func waitForClose(conn net.Conn) { io.Copy(io.Discard, conn) }

// readHello reads until the client waits for an answer, so that closing makes no reset of unread bytes.
func readHello(conn net.Conn) {
	tls.Server(quiet{conn}, &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return nil, errors.New("read")
	}}).Handshake()
}

func answer(s string) func(net.Conn) {
	return func(conn net.Conn) {
		readHello(conn)
		io.WriteString(conn, s)
		conn.(*net.TCPConn).CloseWrite()
		waitForClose(conn)
	}
}

// quiet keeps an alert from being sent.
type quiet struct{ net.Conn }

func (quiet) Write(b []byte) (int, error) { return len(b), nil }

// truncatingConn sends the server's first flight without its last byte, which belongs to the Finished.
type truncatingConn struct {
	net.Conn
	written bool
}

func (c *truncatingConn) Write(b []byte) (int, error) {
	if c.written {
		return len(b), nil
	}
	c.written = true
	c.Conn.Write(b[:len(b)-1])
	c.Conn.(*net.TCPConn).CloseWrite()
	return len(b), nil
}
