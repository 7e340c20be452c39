//go:build linux

package main

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// Names that have a certificate: one label below each zone. The zones are by source, so that none shadows another.
const (
	upstreamName = "upstream.bench.test"
	staticZone   = ".static.bench.test"
	adminZone    = ".admin.bench.test"
	remoteZone   = ".remote.bench.test"
)

// pki is one root and two leaves under it, of the clients' side and of the upstreams.
type pki struct {
	roots    *x509.CertPool
	upstream tls.Certificate

	chain, key, ca             string // PEM
	chainFile, keyFile, caFile string
}

func newPKI(dir string) (*pki, error) {
	ca, err := lab.NewCA()
	if err != nil {
		return nil, err
	}
	chain, key, err := ca.Issue("*"+staticZone, "*"+adminZone, "*"+remoteZone)
	if err != nil {
		return nil, err
	}
	upstreamChain, upstreamKey, err := ca.Issue(upstreamName)
	if err != nil {
		return nil, err
	}
	p := &pki{
		roots: ca.Pool, chain: string(chain), key: string(key), ca: string(ca.PEM),
		chainFile: filepath.Join(dir, "chain.pem"), keyFile: filepath.Join(dir, "key.pem"), caFile: filepath.Join(dir, "ca.pem"),
	}
	if p.upstream, err = tls.X509KeyPair(upstreamChain, upstreamKey); err != nil {
		return nil, err
	}
	for file, content := range map[string]string{p.chainFile: p.chain, p.keyFile: p.key, p.caFile: p.ca} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// upstreamTLS is the TLS side of an upstream.
func (p *pki) upstreamTLS() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{p.upstream}, MinVersion: tls.VersionTLS13}
}

// byoc is a certificate that comes with the record; static sources name the files instead.
func (p *pki) byoc() object {
	return object{"source": "byoc", "chain_pem": p.chain, "key_pem": p.key}
}

func (p *pki) byocFiles() object {
	return object{"source": "byoc", "chain_file": p.chainFile, "key_file": p.keyFile}
}
