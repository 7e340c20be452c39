package domain

import (
	"crypto/x509"
	"errors"
	"runtime"
	"sync"
)

// knownRoots are the roots that this machine trusts, for warnings alone; nil: nobody can tell. On some systems a
// verification with them is the system's own, which may go and fetch what a certificate points at.
var knownRoots = sync.OnceValue(func() *x509.CertPool {
	switch runtime.GOOS {
	case "darwin", "ios", "windows":
		return nil
	}
	roots, err := x509.SystemCertPool()
	if err != nil || roots.Equal(x509.NewCertPool()) {
		return nil
	}
	return roots
})

// path says what a client that trusts the issuer of the chain's end would find wrong with the path to the leaf besides: name
// constraints, purposes and depths that an issuer is bound to, critical extensions that nobody knows.
func (c *chainCheck) path() error {
	last := len(c.chain) - 1
	if c.isRoot(last) {
		last--
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(c.chain[last])
	for _, cert := range c.chain[1:max(1, last)] {
		between.AddCert(cert)
	}
	_, err := c.chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: c.now})
	return err
}

// endsUnknown reports whether the issuer of the chain's last certificate is none of the roots.
func (c *chainCheck) endsUnknown() bool {
	if c.roots == nil {
		return false
	}
	_, err := c.chain[len(c.chain)-1].Verify(x509.VerifyOptions{
		Roots: c.roots, Intermediates: x509.NewCertPool(), CurrentTime: c.now,
	})
	var unknown x509.UnknownAuthorityError
	return errors.As(err, &unknown)
}
