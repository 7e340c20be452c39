package domain

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrExpired and ErrNotYetValid are in what CheckPair returns when a certificate of the chain is out of date. What an
// edge does with a pair that it has when that expires is in Certificate.Fallback.
var (
	ErrExpired     = errors.New("the certificate has expired")
	ErrNotYetValid = errors.New("the certificate is not valid yet")
)

// maxChain is how many certificates a chain may have. Public chains have two or three; every full
// handshake carries all of them.
const maxChain = 16

// CheckPair checks whether a tenant's pair can serve the domain called name, which may be a wildcard, at
// the time now: chainPEM is the leaf and then its intermediates, each signed by the next, at the end
// possibly the root; keyPEM is the leaf's key, unencrypted, as PKCS #8, PKCS #1 or SEC 1.
//
// The leaf must name the domain among its subject alternative names (RFC 9525 section 6.3: a wildcard
// stands for one whole label; the common name is not looked at), be within its validity, be no CA, and
// allow servers and signatures (RFC 8446 section 4.4.2.2). Keys are RSA of 2048 to 8192 bits, P-256, P-384,
// P-521 or Ed25519; nothing is signed with MD5 or SHA-1. Of a root at the end none of this is asked, since
// clients do not look at the copy they are sent.
//
// Whether clients trust the chain is not checked: a tenant's own CA is as good as a public one. What some
// clients will probably refuse is in warnings, one sentence each: a chain without its intermediate (it ends in no root
// that this machine knows, and the leaf says where its issuer's certificate is), one that its issuers' own limits do not
// allow, a kind of key that browsers do not know. Warnings of the chain's end come with errors too.
//
// The certificate has its Leaf set. On failure it is nil, and err joins all faults as *Error, with the
// fields `certificate.chain_pem`, `certificate.key_pem` and `name`; errors.Is tells ErrExpired and
// ErrNotYetValid. Neither errors nor warnings hold key material.
func CheckPair(chainPEM, keyPEM []byte, name string, now time.Time) (cert *tls.Certificate, warnings []string, err error) {
	return checkPair(chainPEM, keyPEM, name, now, knownRoots())
}

func checkPair(chainPEM, keyPEM []byte, name string, now time.Time, roots *x509.CertPool) (cert *tls.Certificate, warnings []string, err error) {
	var f faults
	host, err := NormalName(name)
	if err != nil {
		f.add("name", err)
	}
	f.enter("certificate")
	chain, err := certificates(chainPEM)
	if err != nil {
		f.add("chain_pem", err)
	} else if len(chain) > maxChain {
		f.addf("chain_pem", "holds %d certificates, more than the %d allowed; give the leaf and its intermediates alone", len(chain), maxChain)
		chain = nil
	}
	key, err := privateKey(keyPEM)
	if err != nil {
		f.add("key_pem", err)
	}
	if len(chain) > 0 {
		c := chainCheck{chain: chain, now: now, roots: roots, faults: &f}
		c.leaf(host)
		c.order()
		for i := range chain {
			c.certificate(i)
		}
		if key != nil {
			c.match(key)
		}
		warnings = c.warnings()
	}
	if err := f.err(recordName(name)); err != nil {
		return nil, warnings, err
	}
	cert = &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, warnings, nil
}

// The largest keys that are worked with. A modulus of a million bits fits into a record, and reading such a key, or verifying what
// it signed, takes a core for a minute. Roots may have twice what is allowed below them; the key of an RSA modulus as long as that
// is below 10 KiB, of any other kind far below.
const (
	maxModulus  = 16384    // bits
	maxKeyBytes = 16 << 10 // of a PEM block
)

// certificates reads PEM that holds nothing but certificates, at least one; text around them is allowed.
func certificates(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	blocks := 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		blocks++
		if strings.Contains(block.Type, "PRIVATE KEY") {
			return nil, errors.New("holds a private key, and this text is shown to people; remove the key and, if others have seen it, replace it")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a %s block; leave only CERTIFICATE blocks", quote(block.Type))
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be read (%s); export it again", blocks, shorten(err.Error()))
		}
		if public, ok := cert.PublicKey.(*rsa.PublicKey); ok && public.N.BitLen() > maxModulus {
			return nil, fmt.Errorf("certificate %d has an RSA key of %d bits, which nobody can use; use RSA of 2048 to 8192 bits, or an elliptic curve", blocks, public.N.BitLen())
		}
		all = append(all, cert)
	}
	// pem.Decode passes over damaged blocks, which would turn up as an incomplete chain at clients.
	if begun := bytes.Count(text, []byte("-----BEGIN ")); begun != blocks {
		return nil, fmt.Errorf("has %d PEM blocks, of which %d can be read; export it again, with its line breaks", begun, blocks)
	}
	if blocks == 0 {
		return nil, errors.New("holds no certificate; give PEM, which begins with -----BEGIN CERTIFICATE-----")
	}
	return all, nil
}

// privateKey reads the one private key in PEM. EC PARAMETERS, which OpenSSL writes before a key, and
// certificates beside it are passed over. Its errors hold nothing of the text.
func privateKey(text []byte) (key crypto.Signer, err error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			continue
		}
		if key != nil {
			return nil, errors.New("holds more than one private key; leave the one that belongs to the certificate")
		}
		if key, err = parseKey(block); err != nil {
			return nil, err
		}
	}
	if key == nil {
		return nil, errors.New("holds no private key that can be read; give PEM, which begins with -----BEGIN PRIVATE KEY-----, with its line breaks")
	}
	return key, nil
}

func parseKey(block *pem.Block) (crypto.Signer, error) {
	// RFC 1421 section 4.6.1.1, as OpenSSL encrypts PKCS #1 and SEC 1 keys.
	if block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
		return nil, errors.New("is encrypted, and there is nobody to ask for the passphrase; decrypt it with: openssl pkey -in KEY -out PLAIN")
	}
	if len(block.Bytes) > maxKeyBytes {
		return nil, fmt.Errorf("holds a private key of %d bytes, which nobody can use; use RSA of 2048 to 8192 bits, or an elliptic curve", len(block.Bytes))
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, errors.New("holds a key in a format that is not supported; convert it to PKCS #8 with: openssl pkey -in KEY -out PLAIN")
	}
	if err != nil {
		return nil, errors.New("holds a private key that cannot be read; export it again, as PKCS #8")
	}
	signer, ok := key.(crypto.Signer)
	if !ok { // X25519 keys agree and do not sign
		return nil, errors.New("holds a key that cannot sign; give an RSA, ECDSA or Ed25519 key")
	}
	return signer, nil
}

// chainCheck looks at a chain of at least one certificate. Errors number the certificates from 1.
type chainCheck struct {
	chain []*x509.Certificate
	now   time.Time
	roots *x509.CertPool // nil: unknown
	*faults
}

func (c *chainCheck) faultf(format string, args ...any) { c.addf("chain_pem", format, args...) }

// isRoot reports whether certificate i is a root that follows its leaf, so that nobody verifies it.
func (c *chainCheck) isRoot(i int) bool {
	return i > 0 && i == len(c.chain)-1 && selfIssued(c.chain[i])
}

func selfIssued(cert *x509.Certificate) bool { return bytes.Equal(cert.RawIssuer, cert.RawSubject) }

// leaf checks what is asked of the leaf alone. An empty name, which is none, is not looked for.
func (c *chainCheck) leaf(name string) {
	leaf := c.chain[0]
	if leaf.BasicConstraintsValid && leaf.IsCA {
		c.faultf("certificate 1 is a CA, but the first must be the server's own; put that first, or make it with basicConstraints CA:FALSE")
	}
	anyUsage := len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0 || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
	if !anyUsage && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		c.faultf("certificate 1 is not for servers; get one with the extended key usage serverAuth")
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		c.faultf("certificate 1 may not sign, as TLS 1.3 needs; get one with the key usage digitalSignature")
	}
	if len(leaf.DNSNames) == 0 {
		c.faultf("certificate 1 has no host name among its subject alternative names, and clients look at no others; get one that has")
	} else if name != "" && !slices.ContainsFunc(leaf.DNSNames, func(san string) bool { return covers(strings.ToLower(san), name) }) {
		c.faultf("certificate 1 does not cover %s but %s; get one that does", quote(name), listNames(leaf.DNSNames))
	}
}

// covers reports whether the name san of a certificate, lower case, covers a domain's name.
func covers(san, name string) bool {
	if san == name {
		return true
	}
	wildcard, ok := WildcardOf(name)
	return ok && wildcard == san
}

func listNames(names []string) string {
	const shown = 5
	quoted := make([]string, 0, shown)
	for _, name := range names[:min(len(names), shown)] {
		quoted = append(quoted, quote(name))
	}
	text := strings.Join(quoted, ", ")
	if len(names) > shown {
		text += fmt.Sprintf(" and %d more", len(names)-shown)
	}
	return text
}

// order checks that each certificate is signed by the next: RFC 8446 section 4.4.2 no longer demands it,
// but clients exist that build no other path.
func (c *chainCheck) order() {
	for i, cert := range c.chain[:len(c.chain)-1] {
		next := c.chain[i+1]
		switch {
		case bytes.Equal(cert.Raw, next.Raw):
			c.faultf("certificate %d is certificate %d again; remove it", i+2, i+1)
		case !bytes.Equal(cert.RawIssuer, next.RawSubject):
			c.faultf("certificate %d was issued by %s, but certificate %d is of %s; let each be followed by its issuer", i+1, quote(cert.Issuer.String()), i+2, quote(next.Subject.String()))
		case weakSignature(cert):
			// Reported as such; x509 would not verify it.
		default:
			if err := cert.CheckSignatureFrom(next); err != nil {
				c.faultf("certificate %d is not signed by certificate %d (%s); let each be followed by its issuer", i+1, i+2, shorten(err.Error()))
			}
		}
	}
}

// certificate checks what is asked of every certificate but the root.
func (c *chainCheck) certificate(i int) {
	if c.isRoot(i) {
		return
	}
	cert := c.chain[i]
	switch {
	case c.now.After(cert.NotAfter):
		c.faultf("%w: certificate %d ended at %s; renew it", ErrExpired, i+1, timeText(cert.NotAfter))
	case c.now.Before(cert.NotBefore):
		c.faultf("%w: certificate %d is valid from %s on, and it is %s; wait, or correct the clock", ErrNotYetValid, i+1, timeText(cert.NotBefore), timeText(c.now))
	}
	if weakSignature(cert) {
		c.faultf("certificate %d is signed with %s, which can be forged; get it issued with SHA-256", i+1, cert.SignatureAlgorithm)
	}
	if fault := keyFault(cert.PublicKey); fault != "" {
		c.faultf("certificate %d has %s; use RSA of 2048 to 8192 bits, P-256, P-384, P-521 or Ed25519", i+1, fault)
	}
}

func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func weakSignature(cert *x509.Certificate) bool {
	switch cert.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return true
	}
	return false
}

// keyFault says what is wrong with a public key, or returns "". The upper bound of RSA is the one that
// crypto/tls clients have.
func keyFault(key any) string {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 {
			return fmt.Sprintf("an RSA key of %d bits, which is too weak", bits)
		} else if bits > 8192 {
			return fmt.Sprintf("an RSA key of %d bits, which clients refuse", bits)
		}
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() && key.Curve != elliptic.P521() {
			return "a key on the curve " + key.Curve.Params().Name + ", which TLS 1.3 does not know"
		}
	case ed25519.PublicKey:
	default:
		return "a key of a kind that is not supported"
	}
	return ""
}

// match checks that key is the leaf's.
func (c *chainCheck) match(key crypto.Signer) {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok {
		c.addf("key_pem", "holds a key of a kind that is not supported; use RSA, ECDSA or Ed25519")
		return
	}
	switch i := slices.IndexFunc(c.chain, func(cert *x509.Certificate) bool { return public.Equal(cert.PublicKey) }); {
	case i > 0:
		c.addf("key_pem", "belongs to certificate %d of the chain; put that certificate first", i+1)
	case i < 0:
		c.addf("key_pem", "does not belong to the certificate; give the key that the certificate was requested with")
	}
}

// warnings returns what may make clients refuse a chain that is sound in itself.
func (c *chainCheck) warnings() (all []string) {
	warnf := func(format string, args ...any) {
		all = append(all, fmt.Sprintf("certificate.chain_pem: "+format, args...))
	}
	leaf, last := c.chain[0], len(c.chain)-1
	switch {
	case last == 0 && selfIssued(leaf):
		warnf("the certificate is self-signed; only clients that have it as a root will accept it")
	case c.isRoot(last):
		warnf("certificate %d is a root, which clients do not use; without it every handshake is %d bytes smaller", last+1, len(c.chain[last].Raw))
	case len(leaf.IssuingCertificateURL) == 0:
		// Of a CA that publishes nothing, which is a private one: its clients have all of it.
	case last == 0 && (c.roots == nil || c.endsUnknown()):
		warnf("only the certificate itself is given; unless its issuer %s is a root that clients have, add the issuer's certificate behind it", quote(leaf.Issuer.String()))
	case last > 0 && c.endsUnknown():
		warnf("the chain ends in certificate %d, whose issuer %s is no root that this machine knows; unless clients have it as one, add its certificate",
			last+1, quote(c.chain[last].Issuer.String()))
	}
	if kind := rareKey(leaf.PublicKey); kind != "" {
		warnf("the key is %s, which not all browsers accept; use P-256 or RSA for them", kind)
	}
	if len(c.list) == 0 {
		if err := c.path(); err != nil {
			warnf("clients will probably refuse the chain (%s)", shorten(err.Error()))
		}
	}
	return all
}

// rareKey names the kinds of key that TLS 1.3 has and some browsers do not.
func rareKey(key any) string {
	switch key := key.(type) {
	case ed25519.PublicKey:
		return "Ed25519"
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P521() {
			return "P-521"
		}
	}
	return ""
}
