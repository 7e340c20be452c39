//go:build linux

package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"
)

// CA is an ECDSA P-256 root. All it issues is valid for a week (Caddy warns about less than a day).
type CA struct {
	Pool *x509.CertPool // the root alone
	PEM  []byte         // the root

	root   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64 // of the certificate issued last
}

// NewCA makes a root.
func NewCA() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &CA{Pool: x509.NewCertPool(), key: key, serial: 1}
	root := certificateTemplate(ca.serial, "pqproxy bench root")
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

// Issue makes a leaf for names, at least one, and returns certificate and PKCS #8 key, both PEM. One goroutine may
// call it at a time.
func (ca *CA) Issue(names ...string) (cert, key []byte, err error) {
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	ca.serial++
	leaf := certificateTemplate(ca.serial, names[0])
	leaf.DNSNames = names
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca.root, leafKey.Public(), ca.key)
	if err != nil {
		return nil, nil, fmt.Errorf("issuing for %q: %w", names, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}

func certificateTemplate(serial int64, commonName string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: commonName},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(7 * 24 * time.Hour),
	}
}
