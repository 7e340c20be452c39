//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

const testDirectory = "http://127.0.0.1:14000/directory"

func newTestAuthority(t *testing.T) *authority {
	t.Helper()
	a, err := newAuthority(testDirectory)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// What is put into storage is what certmagic finds there for that CA, and has no reason to renew.
func TestCertmagicFindsWhatWasPut(t *testing.T) {
	a, folder := newTestAuthority(t), t.TempDir()
	names := []string{lab.TypicalName(0), lab.TypicalName(1), lab.TypicalName(99_999)}
	if err := a.putAll(t.Context(), folder, names); err != nil {
		t.Fatal(err)
	}
	var config *certmagic.Config
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return config, nil },
		Logger:           zap.NewNop(),
	})
	defer cache.Stop()
	config = certmagic.New(cache, certmagic.Config{Storage: &certmagic.FileStorage{Path: folder}, Logger: zap.NewNop()})
	config.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(config, certmagic.ACMEIssuer{CA: testDirectory, Logger: zap.NewNop()})}
	for _, name := range names {
		cert, err := config.CacheManagedCertificate(t.Context(), name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: a.Pool}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if cert.NeedsRenewal(config) || len(cert.Certificate.Certificate) != 2 {
			t.Errorf("%s: it is to be renewed, or its chain has not two certificates but %d", name, len(cert.Certificate.Certificate))
		}
	}
	if _, err := config.CacheManagedCertificate(t.Context(), lab.TypicalName(2)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a certificate that was not put: %v", err)
	}
	// Metadata with the answer of the CA is what the sweep needs not to ask it.
	storage := &certmagic.FileStorage{Path: folder}
	meta, err := storage.Load(t.Context(), certmagic.StorageKeys.SiteMeta(a.issuerKey, names[0]))
	if err != nil || !bytes.Contains(meta, []byte(`_retryAfter`)) || !bytes.Contains(meta, []byte(names[0])) {
		t.Errorf("the metadata is %s, %v", meta, err)
	}
}

func TestCertificatesDiffer(t *testing.T) {
	a, folder := newTestAuthority(t), t.TempDir()
	names := []string{"a.example.com", "b.example.com"}
	if err := a.putAll(t.Context(), folder, names); err != nil {
		t.Fatal(err)
	}
	storage := &certmagic.FileStorage{Path: folder}
	read := func(key string) string {
		content, err := storage.Load(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	if read(certmagic.StorageKeys.SiteCert(a.issuerKey, names[0])) == read(certmagic.StorageKeys.SiteCert(a.issuerKey, names[1])) {
		t.Error("two names have one certificate")
	}
	if read(certmagic.StorageKeys.SitePrivateKey(a.issuerKey, names[0])) != read(certmagic.StorageKeys.SitePrivateKey(a.issuerKey, names[1])) {
		t.Error("the key was to be made once")
	}
}

func TestPutAllFails(t *testing.T) {
	a, folder := newTestAuthority(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "certificates"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.putAll(t.Context(), folder, []string{"a.example.com", "b.example.com"}); err == nil {
		t.Error("certificates were put where there is no folder")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.putAll(ctx, t.TempDir(), []string{"a.example.com"}); !errors.Is(err, context.Canceled) {
		t.Errorf("putAll = %v, want %v", err, context.Canceled)
	}
	if err := a.putAll(t.Context(), t.TempDir(), nil); err != nil {
		t.Errorf("nothing to put: %v", err)
	}
}

func TestForgetOrders(t *testing.T) {
	folder := t.TempDir()
	write := func(file string) string {
		file = filepath.Join(folder, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		return file
	}
	gone := []string{write("pqproxy/orders/a.json"), write("locks/a.lock"), write("acme/ca/users/default/default.json")}
	set, cert := write("pqproxy/edges/f1d2/remote-ab.set"), write("certificates/ca/a/a.crt")
	write("pqproxy/edges/f1d2/accepted-ab.set")
	for range 2 { // the second time there is nothing to forget
		if err := forgetOrders(folder); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range gone {
		if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", file, err)
		}
	}
	if _, err := os.Stat(cert); err != nil {
		t.Error(err)
	}
	if got, err := keptSets(folder); err != nil || len(got) != 1 || got[0] != set {
		t.Errorf("keptSets = %v, %v, want %s", got, err, set)
	}
	if got, err := keptSets(t.TempDir()); err != nil || len(got) != 0 {
		t.Errorf("keptSets of an empty storage = %v, %v", got, err)
	}
}
