//go:build linux

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// upstreamName is the name in the upstreams' certificate, which every contender verifies.
const upstreamName = "upstream.bench.test"

// pki is one ECDSA P-256 root and two leaves under it: every contender signs with the same key and verifies the same
// chain, so that certificates are no part of the comparison.
type pki struct {
	roots    *x509.CertPool
	upstream tls.Certificate

	caFile       string // the root, PEM
	certFile     string // the front's leaf, PEM
	keyFile      string // its key, PEM
	combinedFile string // leaf and key in one file, as HAProxy wants them
}

// newPKI makes the certificates, valid for a week (Caddy warns about less than a day), with their files in dir. names are the front's host names.
func newPKI(dir string, names []string) (*pki, error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	root := certificateTemplate(1, "pqproxy bench root")
	root.IsCA, root.BasicConstraintsValid = true, true
	root.KeyUsage = x509.KeyUsageCertSign
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		return nil, err
	}
	if root, err = x509.ParseCertificate(rootDER); err != nil {
		return nil, err
	}

	p := &pki{
		roots:        x509.NewCertPool(),
		caFile:       filepath.Join(dir, "ca.pem"),
		certFile:     filepath.Join(dir, "front.pem"),
		keyFile:      filepath.Join(dir, "front.key"),
		combinedFile: filepath.Join(dir, "front-and-key.pem"),
	}
	p.roots.AddCert(root)
	frontCert, frontKey, err := issue(root, rootKey, 2, names)
	if err != nil {
		return nil, err
	}
	upstreamCert, upstreamKey, err := issue(root, rootKey, 3, []string{upstreamName})
	if err != nil {
		return nil, err
	}
	if p.upstream, err = tls.X509KeyPair(upstreamCert, upstreamKey); err != nil {
		return nil, err
	}
	rootPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER})
	for file, content := range map[string][]byte{
		p.caFile:       rootPEM,
		p.certFile:     frontCert,
		p.keyFile:      frontKey,
		p.combinedFile: bytes.Join([][]byte{frontCert, frontKey}, nil),
	} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// issue makes a leaf for names and returns certificate and PKCS #8 key, both PEM.
func issue(root *x509.Certificate, rootKey *ecdsa.PrivateKey, serial int64, names []string) (cert, key []byte, err error) {
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	leaf := certificateTemplate(serial, names[0])
	leaf.DNSNames = names
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, leafKey.Public(), rootKey)
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
