//go:build unix

package probe

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestUpstreamPeers probes servers as people have them, each with and without TLS and PROXY.
func TestUpstreamPeers(t *testing.T) {
	ca := newCA(t)
	leaf := ca.issue(t, leafTemplate("app.test"))
	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	pair := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]})
	pair = append(pair, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	writePeerFile(t, dir, "pair.pem", string(pair))

	for _, server := range []struct {
		name    string
		start   func(t *testing.T, dir string, sockets []*os.File)
		overTLS func(t *testing.T) string // the version that is recommended where headers are read before TLS
	}{
		{"nginx", startNginxPeer, nginxReads},
		{"haproxy", startHAProxyPeer, func(*testing.T) string { return "v2" }},
	} {
		t.Run(server.name, func(t *testing.T) {
			var sockets []*os.File
			var addresses []string
			for range 4 {
				socket, address := inheritable(t)
				sockets, addresses = append(sockets, socket), append(addresses, address)
			}
			server.start(t, dir, sockets)
			for i, address := range addresses { // the order of both configurations
				overTLS, proxy := i >= 2, i%2 == 1
				o := UpstreamOptions{Dial: address, Asked: "app.test", Timeout: upstreamPatience}
				if overTLS {
					o.TLS = &UpstreamTLS{RootCAs: ca.pool}
				}
				got := Upstream(t.Context(), o)
				want, version := ProxyRefused, "off"
				switch {
				case proxy && overTLS:
					want, version = ProxyRequired, server.overTLS(t)
				case proxy:
					want, version = ProxyRequired, "v2"
				}
				if got.ProxyProtocol != want || got.Error != "" || got.ChainOK != overTLS || (got.TLSVersion == "TLS 1.3") != overTLS {
					t.Errorf("TLS %t, PROXY %t: %+v", overTLS, proxy, got)
				}
				if got.Recommend == nil || got.Recommend.ProxyProtocol != version {
					t.Errorf("TLS %t, PROXY %t: recommends %+v, want %s", overTLS, proxy, got.Recommend, version)
				}
			}
		})
	}
}

// nginxReads returns the newest version of the header that this nginx reads in full before TLS. Before 1.23.3 its buffer
// there is as long as headers of version 1 are, and a longer one "is too large" (nginx CHANGES, 1.23.3); without TLS it
// reads into a larger one.
func nginxReads(t *testing.T) string {
	t.Helper()
	out, err := exec.Command(peerPath(t, "nginx"), "-v").CombinedOutput()
	var major, minor, patch int
	if _, scanned := fmt.Sscanf(string(out), "nginx version: nginx/%d.%d.%d", &major, &minor, &patch); err != nil || scanned != nil {
		t.Fatalf("nginx -v says %q: %v", out, err)
	}
	if major*1e6+minor*1e3+patch >= 1_023_003 {
		return "v2"
	}
	return "v1"
}

func startNginxPeer(t *testing.T, dir string, sockets []*os.File) {
	var servers strings.Builder
	for i, options := range []string{"", "proxy_protocol", "ssl", "ssl proxy_protocol"} {
		fmt.Fprintf(&servers, "server { listen %s %s; ssl_certificate pair.pem; ssl_certificate_key pair.pem; ssl_protocols TLSv1.3; location / { return 200 hello; } }\n",
			addressOf(t, sockets[i]), options)
	}
	config := writePeerFile(t, dir, "nginx.conf", `
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr error;
events {}
http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	`+servers.String()+"}\n")
	cmd := exec.Command(peerPath(t, "nginx"), "-p", dir, "-c", config, "-e", "stderr")
	// The way nginx hands its sockets to its next binary: the numbers of those already open.
	cmd.Env = append(cmd.Environ(), "NGINX=3;4;5;6;")
	startPeer(t, cmd, sockets)
}

func startHAProxyPeer(t *testing.T, dir string, sockets []*os.File) {
	pair := filepath.Join(dir, "pair.pem")
	config := writePeerFile(t, dir, "haproxy.cfg", fmt.Sprintf(`
defaults
	mode http
	timeout client 60s
	timeout http-request 60s
frontend plain
	bind fd@3
	bind fd@4 accept-proxy
	bind fd@5 ssl crt %[1]s ssl-min-ver TLSv1.3
	bind fd@6 accept-proxy ssl crt %[1]s ssl-min-ver TLSv1.3
	http-request return status 200
`, pair))
	startPeer(t, exec.Command(peerPath(t, "haproxy"), "-db", "-f", config), sockets)
}

// peerPath returns the path of a program, which scripts/peers.sh installs. Without it the test fails in CI and is skipped elsewhere.
func peerPath(t *testing.T, name string) string {
	t.Helper()
	for _, file := range []string{name, filepath.Join("/usr/sbin", name)} { // not in every user's PATH
		if path, err := exec.LookPath(file); err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed: run scripts/peers.sh", name)
	}
	t.Skipf("%s is not installed: run scripts/peers.sh", name)
	return ""
}

func writePeerFile(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// inheritable opens a socket on a free port for another program: connections wait in its queue until the program takes
// them, so that nobody has to wait for it.
func inheritable(t *testing.T) (socket *os.File, address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if socket, err = listener.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	return socket, listener.Addr().String()
}

func addressOf(t *testing.T, socket *os.File) string {
	t.Helper()
	listener, err := net.FileListener(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// startPeer runs a program that inherits sockets as descriptors 3 and up, until the test ends.
func startPeer(t *testing.T, cmd *exec.Cmd, sockets []*os.File) {
	t.Helper()
	var said bytes.Buffer
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = sockets, &said, &said, 5*time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, socket := range sockets {
		socket.Close() // only the program holds them from here: should it die, the probe sees that
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // of SIGTERM
		if t.Failed() {
			t.Logf("it said:\n%s", said.String())
		}
	})
}
