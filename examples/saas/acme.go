package main

import (
	"crypto/tls"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"

	"github.com/pqproxy/caddy-pqproxy/examples/internal/demo"
)

// authority is Pebble, Let's Encrypt's ACME server for tests, wired as its own main function does. It checks names by
// TLS-ALPN-01 at the address that the customer's DNS says, as a public authority does.
type authority struct {
	url      string // of the directory
	apiRoot  string // file: what edges trust when they speak to it
	rootFile string // file: what clients trust of what it issues; written by open

	http  http.Server
	ended sync.WaitGroup // of serving, which close ends

	dir, resolver string
	opened        chan struct{} // closed by open; requests wait for it

	// mu lets one request into Pebble at a time, and an order be issued before the next: its handlers lock orders twice over,
	// and would hang.
	mu     sync.Mutex
	db     *db.MemoryStore
	pebble http.Handler
}

// startAuthority listens. Nothing is issued before open, since where to check names is not known before.
func startAuthority(dir, resolver string) (*authority, error) {
	api, err := demo.NewAuthority("CA of the ACME server's own certificate")
	if err != nil {
		return nil, err
	}
	cert, err := api.Issue("127.0.0.1")
	if err != nil {
		return nil, err
	}
	a := &authority{
		apiRoot: filepath.Join(dir, "acme-api-root.pem"), rootFile: filepath.Join(dir, "root.pem"),
		dir: dir, resolver: resolver, opened: make(chan struct{}), db: db.NewMemoryStore(),
	}
	if err := os.WriteFile(a.apiRoot, api.PEM, 0o600); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	a.url = "https://" + ln.Addr().String() + wfe.DirectoryPath
	a.http = http.Server{
		Handler: a, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*cert}},
		ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0),
	}
	a.ended.Go(func() { _ = a.http.ServeTLS(ln, "", "") })
	return a, nil
}

// open begins to issue, and checks names at that port.
func (a *authority) open(tlsPort int) error {
	for variable, value := range map[string]string{ // Pebble has no other settings for these
		"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_VA_ALWAYS_VALID": "", "PEBBLE_WFE_NONCEREJECT": "0",
	} {
		if err := os.Setenv(variable, value); err != nil {
			return err
		}
	}
	silent := log.New(io.Discard, "", 0)
	issuer := ca.New(silent, a.db, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "the only one"}})
	checks := va.New(silent, 0, tlsPort, true, a.resolver, a.db)
	frontend := wfe.New(silent, a.db, checks, issuer, []string{"ca.example"}, true, false, 0, 0)
	a.pebble = frontend.Handler()
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.GetRootCert(0).Cert.Raw})
	if err := os.WriteFile(a.rootFile, root, 0o644); err != nil {
		return err
	}
	close(a.opened)
	return nil
}

func (a *authority) close() {
	_ = a.http.Close() // nothing is left to be lost
	a.ended.Wait()
}

// ServeHTTP lets Pebble answer.
func (a *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case <-a.opened:
	case <-r.Context().Done():
		return
	}
	answer := httptest.NewRecorder()
	a.mu.Lock()
	a.pebble.ServeHTTP(answer, r)
	if answer.Code < 300 && strings.Contains(r.URL.Path, "/finalize-order/") {
		a.waitIssued(path.Base(r.URL.Path))
	}
	a.mu.Unlock()
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes()) // to a client that may be gone
}

// issuing is how long Pebble may take to sign.
const issuing = 10 * time.Second

// waitIssued waits until an order that was accepted has its certificate, which Pebble makes in the background.
func (a *authority) waitIssued(id string) {
	order := a.db.GetOrderByID(id)
	for end := time.Now().Add(issuing); order != nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
		order.RLock()
		issued := order.CertificateObject != nil
		order.RUnlock()
		if issued {
			return
		}
	}
}
