//go:build linux

package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// upstreamName is the name in the upstreams' certificate, which every contender verifies.
const upstreamName = "upstream.bench.test"

// pki is one root and two leaves under it: every contender signs with the same key and verifies the same chain, so
// that certificates are no part of the comparison.
type pki struct {
	roots    *x509.CertPool
	upstream tls.Certificate

	caFile       string // the root, PEM
	certFile     string // the front's leaf, PEM
	keyFile      string // its key, PEM
	combinedFile string // leaf and key in one file, as HAProxy wants them
}

// newPKI makes the certificates, with their files in dir. names are the front's host names.
func newPKI(dir string, names []string) (*pki, error) {
	ca, err := lab.NewCA()
	if err != nil {
		return nil, err
	}
	p := &pki{
		roots:        ca.Pool,
		caFile:       filepath.Join(dir, "ca.pem"),
		certFile:     filepath.Join(dir, "front.pem"),
		keyFile:      filepath.Join(dir, "front.key"),
		combinedFile: filepath.Join(dir, "front-and-key.pem"),
	}
	frontCert, frontKey, err := ca.Issue(names...)
	if err != nil {
		return nil, err
	}
	upstreamCert, upstreamKey, err := ca.Issue(upstreamName)
	if err != nil {
		return nil, err
	}
	if p.upstream, err = tls.X509KeyPair(upstreamCert, upstreamKey); err != nil {
		return nil, err
	}
	for file, content := range map[string][]byte{
		p.caFile:       ca.PEM,
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
