package acmetest

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
	"testing"
	"time"
)

// RewriteChain has Certificate requests answered with another chain than Pebble's, which is given leaf first. Nil
// makes an empty body.
func RewriteChain(change func(chain []*x509.Certificate) []*x509.Certificate) Action {
	return rewrite(func(text []byte) []byte {
		var chain []*x509.Certificate
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				panic(fmt.Sprintf("Pebble issued what cannot be read: %v", err))
			}
			chain = append(chain, cert)
		}
		text = nil
		for _, cert := range change(chain) {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
		}
		return text
	})
}

// WrongName has Certificate requests answered with a certificate for another name, with the client's key.
//
// This lie and those below come with the chain of an issuer of their own, under no root that anybody trusts, but alike to
// Pebble's in serial number and key identifier. Only WrongIssuer does not hold together.
func (s *Server) WrongName(name string) Action {
	return s.reissue(func(leaf *x509.Certificate) { leaf.DNSNames, leaf.IPAddresses = []string{name}, nil })
}

// Expired has Certificate requests answered with a certificate that ended an hour ago.
func (s *Server) Expired() Action {
	return s.reissue(func(leaf *x509.Certificate) {
		leaf.NotBefore, leaf.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
}

// NotYetValid has Certificate requests answered with a certificate that begins in a day.
func (s *Server) NotYetValid() Action {
	return s.reissue(func(leaf *x509.Certificate) {
		leaf.NotBefore, leaf.NotAfter = time.Now().Add(24*time.Hour), time.Now().Add(48*time.Hour)
	})
}

// WrongKey has Certificate requests answered with a certificate for a key that is not the client's.
func (s *Server) WrongKey() Action {
	return s.reissue(func(leaf *x509.Certificate) { leaf.PublicKey = s.liar.key.Public() })
}

// WrongIssuer has Certificate requests answered with the true certificate in a chain that is not its own.
func (s *Server) WrongIssuer() Action {
	return RewriteChain(func(chain []*x509.Certificate) []*x509.Certificate {
		return []*x509.Certificate{chain[0], s.liar.cert}
	})
}

// reissue signs what the leaf is changed to.
func (s *Server) reissue(change func(*x509.Certificate)) Action {
	return RewriteChain(func(chain []*x509.Certificate) []*x509.Certificate {
		leaf := &x509.Certificate{
			SerialNumber: chain[0].SerialNumber,
			NotBefore:    chain[0].NotBefore,
			NotAfter:     chain[0].NotAfter,
			KeyUsage:     chain[0].KeyUsage,
			ExtKeyUsage:  chain[0].ExtKeyUsage,
			DNSNames:     chain[0].DNSNames,
			IPAddresses:  chain[0].IPAddresses,
			PublicKey:    chain[0].PublicKey,
		}
		change(leaf)
		cert, err := s.liar.sign(leaf, leaf.PublicKey)
		if err != nil {
			panic(fmt.Sprintf("signing a lie: %v", err))
		}
		return []*x509.Certificate{cert, s.liar.cert}
	})
}

// liar is an issuer that nobody trusts.
type liar struct {
	key  crypto.Signer
	cert *x509.Certificate
}

// newLiar makes one with the key identifier of an honest issuer.
func newLiar(tb testing.TB, honest *x509.Certificate) *liar {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	l := &liar{key: key}
	l.cert = &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "acmetest liar"},
		SubjectKeyId:          honest.SubjectKeyId,
		NotBefore:             time.Now().Add(-30 * 24 * time.Hour),
		NotAfter:              time.Now().Add(365 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	if l.cert, err = l.sign(l.cert, key.Public()); err != nil {
		tb.Fatal(err)
	}
	return l
}

func (l *liar) sign(template *x509.Certificate, public crypto.PublicKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, l.cert, public, l.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
