package caddytest

import (
	"crypto/sha256"
	"encoding/base64"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// authority is a certificate authority, with its certificate also in the file that programs trust.
type authority struct {
	*pqtest.CA
	file string
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	ca := pqtest.NewCA(t)
	return authority{CA: ca, file: ca.PEMFile(t)}
}

// leaf is a certificate with its key, as the files that programs want.
type leaf struct {
	chain, key string
	// both has the chain and then the key, as HAProxy takes them.
	both string
	// pin is the SHA-256 of the certificate's SubjectPublicKeyInfo in base64, as Chromium takes it.
	pin string
}

// files issues a certificate for a name.
func (a authority) files(t *testing.T, name string) leaf {
	t.Helper()
	cert := a.Issue(t, name)
	chain, key := pqtest.EncodePair(t, cert)
	dir := t.TempDir()
	pin := sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo)
	return leaf{
		chain: writeFile(t, dir, "chain.pem", string(chain)),
		key:   writeFile(t, dir, "key.pem", string(key)),
		both:  writeFile(t, dir, "both.pem", string(chain)+string(key)),
		pin:   base64.StdEncoding.EncodeToString(pin[:]),
	}
}
