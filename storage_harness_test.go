package pqproxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// testStorage is Caddy's file storage, which counts what it is asked, waits, fails and stops in the middle when told to.
type testStorage struct {
	*certmagic.FileStorage

	mu     sync.Mutex
	calls  map[string]int // by method
	fails  map[string]error
	hooks  map[string]func(key string) error // before the call; by method
	locked map[string]int                    // how often each lock was taken
}

func newTestStorage(t testing.TB) *testStorage {
	return &testStorage{
		FileStorage: &certmagic.FileStorage{Path: t.TempDir()},
		calls:       make(map[string]int), fails: make(map[string]error), hooks: make(map[string]func(string) error), locked: make(map[string]int),
	}
}

// fail has all calls of a method fail; nil ends that.
func (s *testStorage) fail(method string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails[method] = err
}

// hook has a function called before each call of a method, which fails if it does; nil ends that.
func (s *testStorage) hook(method string, f func(key string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks[method] = f
}

func (s *testStorage) count(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

func (s *testStorage) called(ctx context.Context, method, key string) error {
	s.mu.Lock()
	s.calls[method]++
	hook, err := s.hooks[method], s.fails[method]
	s.mu.Unlock()
	if hook != nil && err == nil {
		err = hook(key)
	}
	return errors.Join(err, ctx.Err())
}

func (s *testStorage) Store(ctx context.Context, key string, value []byte) error {
	if err := s.called(ctx, "Store", key); err != nil {
		return err
	}
	return s.FileStorage.Store(ctx, key, value)
}

func (s *testStorage) Load(ctx context.Context, key string) ([]byte, error) {
	if err := s.called(ctx, "Load", key); err != nil {
		return nil, err
	}
	return s.FileStorage.Load(ctx, key)
}

func (s *testStorage) Delete(ctx context.Context, key string) error {
	if err := s.called(ctx, "Delete", key); err != nil {
		return err
	}
	return s.FileStorage.Delete(ctx, key)
}

func (s *testStorage) TryLock(ctx context.Context, key string) (bool, error) {
	if err := s.called(ctx, "TryLock", key); err != nil {
		return false, err
	}
	ok, err := s.FileStorage.TryLock(ctx, key)
	if ok {
		s.mu.Lock()
		s.locked[key]++
		s.mu.Unlock()
	}
	return ok, err
}

// has reports whether there is a value.
func (s *testStorage) has(t testing.TB, key string) bool {
	t.Helper()
	_, err := s.FileStorage.Load(context.Background(), key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// testIssuer is an issuer for what no CA has a part in. Its name tells it apart.
type testIssuer struct {
	name  string
	issue func(ctx context.Context, name string, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error)
}

var errNoOrders = errors.New("no orders are taken here")

func (i *testIssuer) IssuerKey() string { return i.name }
func (i *testIssuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	if i.issue == nil {
		return nil, errNoOrders
	}
	return i.issue(ctx, strings.Join(csr.DNSNames, " "), csr)
}

// newStoredState is a state of no config with a storage and two issuers, whose orders nobody works on until start.
func newStoredState(t testing.TB) (*state, *testStorage) {
	t.Helper()
	st := newTestStorage(t)
	return newStateOn(t, st), st
}

// newStateOn is newStoredState with a storage that others may have too: another edge, or one that was started anew.
func newStateOn(t testing.TB, st certmagic.Storage, issuers ...certmagic.Issuer) *state {
	t.Helper()
	s := newTestState(t)
	if len(issuers) == 0 {
		issuers = []certmagic.Issuer{&testIssuer{name: "first"}, &testIssuer{name: "second"}}
	}
	s.certs.config.Store(&issuing{issuers: issuers, local: []certmagic.Issuer{&testIssuer{name: "local"}}, storage: st, logger: zap.NewNop()})
	return s
}

// signer signs requests, for testIssuer.
type signer struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newSigner(t testing.TB) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &signer{key: key}
	s.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "signer"}, NotBefore: time.Now().Add(-100 * 24 * time.Hour), NotAfter: time.Now().Add(1000 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	s.cert = s.mustSign(s.cert, key.Public())
	return s
}

func (s *signer) mustSign(template *x509.Certificate, public any) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, s.cert, public, s.key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert
}

// sign signs what a request asks for, valid for a life from now on, or what edit makes of it.
func (s *signer) sign(csr *x509.CertificateRequest, life time.Duration, edit ...func(*x509.Certificate)) *certmagic.IssuedCertificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, DNSNames: csr.DNSNames, NotBefore: time.Now().Add(-time.Second), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, e := range edit {
		e(template)
	}
	leaf := s.mustSign(template, csr.PublicKey)
	var chain []byte
	for _, cert := range []*x509.Certificate{leaf, s.cert} {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return &certmagic.IssuedCertificate{Certificate: chain}
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
