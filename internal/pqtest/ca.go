package pqtest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// CA is a certificate authority with an ECDSA P-256 key that lives as long as the test. It may be used from
// several goroutines.
type CA struct {
	cert  *x509.Certificate
	key   crypto.Signer
	root  *CA      // itself, for a root
	chain [][]byte // intermediates that a leaf is sent with, nearest first
}

// NewCA makes a root.
func NewCA(tb testing.TB) *CA {
	tb.Helper()
	ca := &CA{key: newKey(tb)}
	ca.root = ca
	template := authority("pqtest root")
	ca.cert = sign(tb, template, template, ca.key.Public(), ca.key)
	return ca
}

// Intermediate makes an authority under ca. What it issues comes with its certificate in the chain; its Pool,
// PEM and PEMFile are those of the root.
func (ca *CA) Intermediate(tb testing.TB) *CA {
	tb.Helper()
	key := newKey(tb)
	cert := sign(tb, authority("pqtest intermediate"), ca.cert, key.Public(), ca.key)
	return &CA{cert: cert, key: key, root: ca.root, chain: append([][]byte{cert.Raw}, ca.chain...)}
}

// Issue makes a server and client certificate with an ECDSA P-256 key for the names, each a host name, a
// wildcard or an IP address. It is valid from an hour ago for a day.
func (ca *CA) Issue(tb testing.TB, names ...string) tls.Certificate {
	tb.Helper()
	return ca.issue(tb, newKey(tb), nil, names)
}

// IssueRSA is Issue with an RSA key of 2,048 bits, the same one each time, because making one is slow.
func (ca *CA) IssueRSA(tb testing.TB, names ...string) tls.Certificate {
	tb.Helper()
	key, err := rsaKey()
	if err != nil {
		tb.Fatalf("making an RSA key: %v", err)
	}
	return ca.issue(tb, key, nil, names)
}

// IssueWith is Issue, with edit applied to the certificate before it is signed: to have it expired, without
// names, or for another use.
func (ca *CA) IssueWith(tb testing.TB, edit func(*x509.Certificate), names ...string) tls.Certificate {
	tb.Helper()
	return ca.issue(tb, newKey(tb), edit, names)
}

// Pool holds the root alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.root.cert)
	return pool
}

// PEM is the root's certificate.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.root.cert.Raw})
}

// PEMFile writes PEM to a file that goes with the test, and returns its path.
func (ca *CA) PEMFile(tb testing.TB) string {
	tb.Helper()
	return writeFile(tb, tb.TempDir(), "ca.pem", ca.PEM())
}

// PairPEM issues a certificate and returns chain and PKCS #8 key in PEM.
func (ca *CA) PairPEM(tb testing.TB, names ...string) (chain, key []byte) {
	tb.Helper()
	return EncodePair(tb, ca.Issue(tb, names...))
}

// PairFiles is PairPEM in two files that go with the test. It returns their paths.
func (ca *CA) PairFiles(tb testing.TB, names ...string) (chain, key string) {
	tb.Helper()
	return WritePair(tb, ca.Issue(tb, names...))
}

// EncodePair returns the chain and the PKCS #8 key of a certificate in PEM.
func EncodePair(tb testing.TB, cert tls.Certificate) (chain, key []byte) {
	tb.Helper()
	var b bytes.Buffer
	for _, der := range cert.Certificate {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			tb.Fatalf("encoding a certificate: %v", err)
		}
	}
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		tb.Fatalf("encoding a key: %v", err)
	}
	return b.Bytes(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// WritePair is EncodePair into two files that go with the test. It returns their paths.
func WritePair(tb testing.TB, cert tls.Certificate) (chain, key string) {
	tb.Helper()
	chainPEM, keyPEM := EncodePair(tb, cert)
	dir := tb.TempDir()
	return writeFile(tb, dir, "chain.pem", chainPEM), writeFile(tb, dir, "key.pem", keyPEM)
}

func (ca *CA) issue(tb testing.TB, key crypto.Signer, edit func(*x509.Certificate), names []string) tls.Certificate {
	tb.Helper()
	template := certificate("")
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	if edit != nil {
		edit(template)
	}
	leaf := sign(tb, template, ca.cert, key.Public(), ca.key)
	return tls.Certificate{Certificate: append([][]byte{leaf.Raw}, ca.chain...), PrivateKey: key, Leaf: leaf}
}

// authority is the template of a CA certificate.
func authority(name string) *x509.Certificate {
	template := certificate(name)
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	template.BasicConstraintsValid, template.IsCA = true, true
	return template
}

// certificate is what all templates share. Validity begins an hour ago, since peers may run with clocks of
// their own.
func certificate(name string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand does not fail (its documentation)
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
	}
}

func sign(tb testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		tb.Fatalf("signing a certificate: %v", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatalf("parsing the certificate just signed: %v", err)
	}
	return cert
}

func newKey(tb testing.TB) crypto.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatalf("making a key: %v", err)
	}
	return key
}

var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func writeFile(tb testing.TB, dir, name string, content []byte) string {
	tb.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}
