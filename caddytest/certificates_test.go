package caddytest

import (
	"crypto/tls"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/acmetest"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// withCertificates is the config of an edge whose certificate an ACME server issues, by TLS-ALPN-01 alone.
func withCertificates(t *testing.T, ca *acmetest.Server, storage string) string {
	t.Helper()
	socket, addr := listen(t) // certmagic finds its port taken
	t.Cleanup(func() { socket.Close() })
	return fmt.Sprintf(`{
	admin off
	skip_install_trust
	storage file_system %s
	layer4 {
		pqproxy/127.0.0.1:0 {
			route {
				pqproxy
			}
		}
	}
	pqproxy {
		issuer acme %s {
			trusted_roots %s
			disable_http_challenge
			alt_tlsalpn_port %s
		}
		domain app.example.com {
			upstream 127.0.0.1:1
		}
	}
}
`, storage, ca.URL(), ca.CA().PEMFile(t), addr[strings.LastIndexByte(addr, ':')+1:])
}

// serves waits until an edge serves the name with a certificate of the ACME server.
func serves(t *testing.T, e edge, ca *acmetest.Server) {
	t.Helper()
	pqtest.Wait(t, "the certificate to be served", func() bool {
		conn, err := pqtest.TryDial(t, e.addr, &tls.Config{ServerName: "app.example.com", RootCAs: ca.Roots(0)})
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// TestFleet runs two edges with one storage. What one of them orders is validated at the other one, which serves the
// certificate too; neither orders another.
func TestFleet(t *testing.T) {
	ca, storage := acmetest.Start(t, acmetest.Options{}), t.TempDir()
	release := make(chan struct{})
	ca.Inject(acmetest.Match{Endpoint: acmetest.Challenge}, 1, acmetest.Hold(release))
	first := startEdge(t, t.TempDir(), "Caddyfile", withCertificates(t, ca, storage))
	pqtest.Wait(t, "the first edge to present a challenge", func() bool { return ca.Count(acmetest.Match{Endpoint: acmetest.Challenge}) == 1 })
	second := startEdge(t, t.TempDir(), "Caddyfile", withCertificates(t, ca, storage))
	ca.ForwardTLS(second.addr)
	close(release)

	if _, ok := first.wait(func(line string) bool { return isEvent(line, "pqproxy.certificates", "certificate obtained") }); !ok {
		t.Error("the first edge did not obtain a certificate")
	}
	second.record(t, func(r record) bool { return r.EndReason == "acme_challenge" && r.ServerName == "app.example.com" })
	for _, e := range []edge{first, second} {
		serves(t, e, ca)
	}
	if n := ca.Orders(""); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
}

// TestFleetStartsAtOnce starts edges on a storage in which nothing is yet: the first makes the root of Caddy's local CA, and
// the others must not read half of it.
func TestFleetStartsAtOnce(t *testing.T) {
	ca, storage := acmetest.Start(t, acmetest.Options{}), t.TempDir()
	var fleet []edge
	for range 4 {
		fleet = append(fleet, launchEdge(t, t.TempDir(), "Caddyfile", withCertificates(t, ca, storage)))
	}
	for _, e := range fleet {
		e.listens(t)
	}
}

// TestKilledWhileOrdering kills an edge while the CA is about to issue. Started anew it does not order again at once, and
// what it has had before it serves.
func TestKilledWhileOrdering(t *testing.T) {
	ca, dir := acmetest.Start(t, acmetest.Options{}), t.TempDir()
	bin, err := pqproxy()
	if err != nil {
		t.Fatal(err)
	}
	config := withCertificates(t, ca, filepath.Join(dir, "storage"))
	writeFile(t, dir, "Caddyfile", config)
	release := make(chan struct{})
	defer close(release)
	ca.Inject(acmetest.Match{Endpoint: acmetest.NewOrder}, 1, acmetest.HoldAnswer(release))
	cmd := exec.Command(bin, "run", "--config", "Caddyfile")
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pqtest.Wait(t, "the order", func() bool { return ca.Orders("app.example.com") == 1 })
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()

	e := startEdge(t, dir, "Caddyfile", config)
	ca.ForwardTLS(e.addr)
	start := time.Now()
	var text string
	pqtest.Wait(t, "the edge to say why there is no certificate", func() bool {
		_, err := pqtest.TryDial(t, e.addr, &tls.Config{ServerName: "app.example.com", InsecureSkipVerify: true})
		if err == nil {
			t.Fatal("it has a certificate")
		}
		for _, line := range e.snapshot() {
			if strings.Contains(line, "the process ended while it was being obtained") {
				text = line
			}
		}
		return text != ""
	})
	if n := ca.Orders(""); n != 1 {
		t.Errorf("%d orders within %s of the restart", n-1, time.Since(start))
	}
}
