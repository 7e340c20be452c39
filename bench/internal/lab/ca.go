//go:build linux

package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"sync/atomic"
	"time"
)

// CA is an ECDSA P-256 root. Its methods may be called from any goroutine.
type CA struct {
	Pool *x509.CertPool // the root alone
	PEM  []byte         // the root

	root   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial atomic.Int64 // of the certificate issued last
}

// week is how long the root is valid, and what Issue makes (Caddy warns about less than a day).
const week = 7 * 24 * time.Hour

// NewCA makes a root.
func NewCA() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &CA{Pool: x509.NewCertPool(), key: key}
	root := ca.template("pqproxy bench root", week)
	root.IsCA, root.BasicConstraintsValid = true, true
	root.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if ca.root, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	ca.Pool.AddCert(ca.root)
	ca.PEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return ca, nil
}

// Issue makes a leaf for names, at least one, that is valid for a week, and returns certificate and PKCS #8 key, both PEM.
func (ca *CA) Issue(names ...string) (cert, key []byte, err error) {
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := ca.Sign(leafKey.Public(), week, names...)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}

// Sign makes a leaf for a key and names, at least one, that is valid for life from now on, and returns it in DER.
func (ca *CA) Sign(key crypto.PublicKey, life time.Duration, names ...string) ([]byte, error) {
	leaf := ca.template(names[0], life)
	leaf.DNSNames = names
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca.root, key, ca.key)
	if err != nil {
		return nil, fmt.Errorf("issuing for %q: %w", names, err)
	}
	return der, nil
}

func (ca *CA) template(commonName string, life time.Duration) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(ca.serial.Add(1)),
		Subject:      pkix.Name{CommonName: commonName},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(life),
	}
}
