//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// certLife is long enough for no certificate to be renewed, or looked at again as one that ends soon.
const certLife = 90 * 24 * time.Hour

// authority issues certificates into a storage in the place of a CA that cannot be reached.
type authority struct {
	*lab.CA
	key       *ecdsa.PrivateKey // of all names: making one for each takes long, and nothing depends on it
	keyPEM    []byte
	directory string // the URL of the CA
	issuerKey string // what certmagic calls the CA in storage
}

func newAuthority(directory string) (*authority, error) {
	ca, err := lab.NewCA()
	if err != nil {
		return nil, err
	}
	a := &authority{CA: ca, directory: directory, issuerKey: (&certmagic.ACMEIssuer{CA: directory}).IssuerKey()}
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	a.keyPEM, err = certmagic.PEMEncodePrivateKey(a.key)
	return a, err
}

// metadata is what certmagic and acmez keep of a certificate beside it. The CA wants to be asked again when to renew it (RFC
// 9773) long after the run.
func (a *authority) metadata(name string) ([]byte, error) {
	now := time.Now().UTC().Truncate(time.Second)
	again := now.Add(24 * time.Hour)
	ari := &acme.RenewalInfo{UniqueIdentifier: "bench." + name, RetryAfter: &again}
	ari.SuggestedWindow.Start, ari.SuggestedWindow.End = now.Add(certLife*2/3), now.Add(certLife*2/3+48*time.Hour)
	ari.SelectedTime = ari.SuggestedWindow.Start.Add(time.Hour)
	data, err := json.Marshal(acme.Certificate{
		URL: a.directory + "/cert/" + name, CA: a.directory, Account: a.directory + "/acct/1", RenewalInfo: ari,
	})
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(certmagic.CertificateResource{SANs: []string{name}, IssuerData: data}, "", "\t")
}

// put writes the certificate of a name, its key and its metadata where certmagic has them. The root is behind the leaf, in
// the place of the intermediate that a CA would have. Not through certmagic's own Store: that waits for the disk thrice.
func (a *authority) put(storage *certmagic.FileStorage, name string) error {
	der, err := a.Sign(a.key.Public(), certLife, name)
	if err != nil {
		return err
	}
	chain := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), a.PEM...)
	meta, err := a.metadata(name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(storage.Filename(certmagic.StorageKeys.CertsSitePrefix(a.issuerKey, name)), 0o700); err != nil {
		return err
	}
	for key, content := range map[string][]byte{
		certmagic.StorageKeys.SitePrivateKey(a.issuerKey, name): a.keyPEM,
		certmagic.StorageKeys.SiteCert(a.issuerKey, name):       chain,
		certmagic.StorageKeys.SiteMeta(a.issuerKey, name):       meta,
	} {
		if err := os.WriteFile(storage.Filename(key), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// putAll writes the certificates of many names, on all cores.
func (a *authority) putAll(ctx context.Context, folder string, names []string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	storage := &certmagic.FileStorage{Path: folder}
	var (
		workers sync.WaitGroup
		next    atomic.Int64
	)
	for range runtime.NumCPU() {
		workers.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(names) {
					return
				}
				if err := a.put(storage, names[i]); err != nil {
					cancel(fmt.Errorf("putting a certificate into storage: %w", err))
				}
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

// keptSets returns the files of sets that edges with this storage have kept.
func keptSets(folder string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(folder, "pqproxy", "edges", "*", "remote-*.set"))
	slices.Sort(files)
	return files, err
}

// forgetOrders removes from a storage what the orders of a process have left there: back-offs, locks, the account.
func forgetOrders(folder string) error {
	for _, part := range []string{"pqproxy/orders", "locks", "acme"} {
		if err := os.RemoveAll(filepath.Join(folder, part)); err != nil {
			return err
		}
	}
	return nil
}
