// Command quickstart shows pqproxy at work on one machine: a demo upstream behind TLS that wants to be told
// the client's address, the proxy in front of it, and a client. It needs no root and no network, leaves
// nothing behind, and runs until Ctrl-C:
//
//	go run ./examples/quickstart
//
// The proxy listens on 127.0.0.1, port 8443 or what QUICKSTART_PORT says; if that is taken, a free one. With
// arguments the binary is Caddy with pqproxy, so that the commands it prints work with nothing else installed.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4"

	_ "github.com/pqproxy/caddy-pqproxy"
	"github.com/pqproxy/caddy-pqproxy/probe"
)

// name is the domain of the Caddyfile.
const name = "app.localhost"

//go:embed Caddyfile
var caddyfile []byte

func main() {
	if len(os.Args) > 1 {
		caddycmd.Main()
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// run does everything and returns when ctx ends.
func run(ctx context.Context, out io.Writer) error {
	dir, err := os.MkdirTemp("", "pqproxy-quickstart-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	up, err := startUpstream(dir)
	if err != nil {
		return fmt.Errorf("starting the upstream: %w", err)
	}
	defer up.Close()
	edge, err := startEdge(dir, up)
	if err != nil {
		return fmt.Errorf("starting the proxy: %w", err)
	}
	defer caddy.Stop()

	fmt.Fprintf(out, `pqproxy serves https://%s on %s. Behind it, on %s, is an
upstream that speaks TLS of its own and wants to be told the client's address.
`, name, edge.address, up.address)
	if err := edge.show(ctx, out); err != nil {
		return err
	}
	if err := edge.printNextSteps(out); err != nil {
		return err
	}
	for {
		select {
		case r := <-records:
			r.print(out)
		case <-ctx.Done():
			return nil
		}
	}
}

// edge is the proxy, running in this process.
type edge struct {
	address string // it listens on
	rootPEM string // file of the root of its certificate
	roots   *x509.CertPool
}

// startEdge runs Caddy with the Caddyfile. Its storage is in dir.
func startEdge(dir string, up *upstream) (*edge, error) {
	for variable, value := range map[string]string{
		"QUICKSTART_DIR": dir, "QUICKSTART_PORT": freePort(os.Getenv("QUICKSTART_PORT")),
		"QUICKSTART_UPSTREAM": up.address, "QUICKSTART_CA": up.caFile,
	} {
		if err := os.Setenv(variable, value); err != nil {
			return nil, err
		}
	}
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt(caddyfile, map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return nil, err
	}
	if config, err = withLog(config); err != nil {
		return nil, err
	}
	if err := caddy.Load(config, true); err != nil {
		return nil, err
	}
	e := &edge{address: <-listening, rootPEM: filepath.Join(dir, "pki", "authorities", "local", "root.crt"), roots: x509.NewCertPool()}
	pem, err := os.ReadFile(e.rootPEM)
	if err != nil {
		return nil, err
	}
	if !e.roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", e.rootPEM)
	}
	return e, nil
}

// freePort returns the port wanted (8443 if none is), or 0 for any if that is taken.
func freePort(wanted string) string {
	if wanted == "" {
		wanted = "8443"
	}
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", wanted))
	if err != nil {
		return "0"
	}
	_ = ln.Close()
	return wanted
}

// withLog adds to a config that its log comes to us.
func withLog(config []byte) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, err
	}
	fields["logging"] = json.RawMessage(`{"logs":{"default":{"writer":{"output":"quickstart"},"encoder":{"format":"json"}}}}`)
	return json.Marshal(fields)
}

// show is the client: it probes the proxy, loads the page of the upstream, and shows the record of that
// connection.
func (e *edge) show(ctx context.Context, out io.Writer) error {
	fmt.Fprint(out, "\n── What a client negotiates ──\n\n")
	result, err := probe.Run(ctx, probe.Options{
		Address: e.address, ServerName: name, RootCAs: e.roots, ALPN: []string{"h2", "http/1.1"},
	})
	if err != nil {
		return fmt.Errorf("probing %s: %w", e.address, err)
	}
	if err := result.WriteText(out); err != nil {
		return err
	}
	if !result.PostQuantum {
		return errors.New("the handshake was not post-quantum; is GODEBUG set?")
	}
	page, port, err := e.load(ctx)
	if err != nil {
		return fmt.Errorf("loading the page: %w", err)
	}
	fmt.Fprintf(out, "\n── What the upstream saw of the next connection ──\n\n%s", page)
	fmt.Fprint(out, "\n── What the proxy recorded of it ──\n")
	for {
		select {
		case r := <-records:
			if r.ClientPort == port { // the other one is the probe's
				r.print(out)
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// load gets the upstream's page through the proxy, on a connection of its own, and tells its port.
func (e *edge) load(ctx context.Context) (page string, port int, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", e.address)
	if err != nil {
		return "", 0, err
	}
	defer conn.Close()
	transport := &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		TLSClientConfig:   &tls.Config{RootCAs: e.roots},
		ForceAttemptHTTP2: true,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+name+"/", nil)
	if err != nil {
		return "", 0, err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), conn.LocalAddr().(*net.TCPAddr).Port, err
}

// printNextSteps prints commands that work as they stand while this runs.
func (e *edge) printNextSteps(out io.Writer) error {
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(e.address)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, `
── Try it from another terminal ──

The same probe, as a command:

  %[1]s pqproxy probe %[2]s --server-name %[3]s --ca %[4]s

The page with curl. Its TLS library decides about the group: OpenSSL has
X25519MLKEM768 from 3.5 on, older ones get X25519. The record below tells.

  curl --resolve %[3]s:%[5]s:127.0.0.1 --cacert %[4]s https://%[3]s:%[5]s/

Every connection leaves its record here. Ctrl-C ends everything.
`, shellWord(binary), e.address, name, shellWord(e.rootPEM), port)
	return err
}

// shellWord quotes a word for sh where it needs that.
func shellWord(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
