// Command quickstart shows pqproxy at work on one machine: a demo upstream behind TLS that wants to be told
// the client's address, the proxy in front of it, and a client. It needs no root and no network, leaves
// nothing behind, and runs until Ctrl-C:
//
//	go run ./examples/quickstart
//
// The same with a management plane in the same process, to which the domain is given by HTTP requests:
//
//	go run ./examples/quickstart management
//
// The proxy listens on 127.0.0.1, port 8443 or what QUICKSTART_PORT says; if that is taken, a free one. With other
// arguments the binary is Caddy with pqproxy, so that the commands it prints work with nothing else installed.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4"
	"github.com/pires/go-proxyproto"

	_ "github.com/pqproxy/caddy-pqproxy"
	"github.com/pqproxy/caddy-pqproxy/examples/internal/demo"
	_ "github.com/pqproxy/caddy-pqproxy/management/module"
	"github.com/pqproxy/caddy-pqproxy/probe"
)

// name is the domain.
const name = "app.localhost"

//go:embed Caddyfile
var caddyfile []byte

func main() {
	run := quickstart
	switch {
	case len(os.Args) == 2 && os.Args[1] == "management": // which is no command of Caddy
		run = managed
	case len(os.Args) > 1:
		caddycmd.Main()
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := inFolder(ctx, run); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// inFolder calls run with a folder that is removed afterwards.
func inFolder(ctx context.Context, run func(ctx context.Context, dir string, out io.Writer) error) error {
	dir, err := os.MkdirTemp("", "pqproxy-quickstart-")
	if err != nil {
		return err
	}
	return errors.Join(run(ctx, dir, os.Stdout), os.RemoveAll(dir))
}

// quickstart does everything and returns when ctx ends.
func quickstart(ctx context.Context, dir string, out io.Writer) error {
	up, err := demo.StartUpstream(name, proxyproto.REQUIRE)
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
`, name, edge.address, up.Address)
	port, err := edge.show(ctx, out)
	if err != nil {
		return err
	}
	fmt.Fprint(out, "\n── What the proxy recorded of it ──\n")
	for shown := false; !shown; {
		select {
		case r := <-records:
			if shown = r.ClientPort == port; shown { // the other one is the probe's
				r.Print(out)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := edge.printNextSteps(out); err != nil {
		return err
	}
	return printRecords(ctx, out)
}

// printRecords prints the records of connections until ctx ends.
func printRecords(ctx context.Context, out io.Writer) error {
	for {
		select {
		case r := <-records:
			r.Print(out)
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
func startEdge(dir string, up *demo.Upstream) (*edge, error) {
	caFile := filepath.Join(dir, "upstream-ca.pem")
	if err := os.WriteFile(caFile, up.CA, 0o600); err != nil {
		return nil, err
	}
	config, err := adapt(caddyfile, map[string]string{
		"QUICKSTART_DIR": dir, "QUICKSTART_PORT": freePort("QUICKSTART_PORT", "8443"),
		"QUICKSTART_UPSTREAM": up.Address, "QUICKSTART_CA": caFile,
	})
	if err != nil {
		return nil, err
	}
	if err := caddy.Load(config, true); err != nil {
		return nil, err
	}
	e := &edge{address: <-listening}
	return e, e.trust(dir)
}

// adapt makes a config of a Caddyfile that uses these variables, whose log comes to us.
func adapt(caddyfile []byte, variables map[string]string) ([]byte, error) {
	for variable, value := range variables {
		if err := os.Setenv(variable, value); err != nil {
			return nil, err
		}
	}
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt(caddyfile, map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return nil, err
	}
	return withLog(config)
}

// trust reads the root of Caddy's internal CA.
func (e *edge) trust(dir string) error {
	e.rootPEM, e.roots = filepath.Join(dir, "pki", "authorities", "local", "root.crt"), x509.NewCertPool()
	pem, err := os.ReadFile(e.rootPEM)
	if err != nil {
		return err
	}
	if !e.roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate", e.rootPEM)
	}
	return nil
}

// freePort returns the port that a variable says (fallback if it says none), or 0 for any if that is taken.
func freePort(variable, fallback string) string {
	wanted := cmp.Or(os.Getenv(variable), fallback)
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

// show is the client: it probes the proxy and loads the page of the upstream, and tells from which port.
func (e *edge) show(ctx context.Context, out io.Writer) (port int, err error) {
	fmt.Fprint(out, "\n── What a client negotiates ──\n\n")
	result, err := probe.Run(ctx, probe.Options{
		Address: e.address, ServerName: name, RootCAs: e.roots, ALPN: []string{"h2", "http/1.1"},
	})
	if err != nil {
		return 0, fmt.Errorf("probing %s: %w", e.address, err)
	}
	if err := result.WriteText(out); err != nil {
		return 0, err
	}
	if !result.PostQuantum {
		return 0, errors.New("the handshake was not post-quantum; is GODEBUG set?")
	}
	page, err := demo.Get(ctx, e.address, &tls.Config{ServerName: name, RootCAs: e.roots})
	if err != nil {
		return 0, fmt.Errorf("loading the page: %w", err)
	}
	fmt.Fprintf(out, "\n── What the upstream saw of the next connection ──\n\n%s", page.Text)
	return page.ClientPort, nil
}

// printNextSteps prints commands that work as they stand while this runs.
func (e *edge) printNextSteps(out io.Writer) error {
	fmt.Fprint(out, "\n── Try it from another terminal ──\n")
	if err := e.printClients(out); err != nil {
		return err
	}
	_, err := fmt.Fprint(out, "\nEvery connection leaves its record here. Ctrl-C ends everything.\n")
	return err
}

// printClients prints commands that connect.
func (e *edge) printClients(out io.Writer) error {
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(e.address)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, `
The same probe, as a command:

  %[1]s pqproxy probe %[2]s --server-name %[3]s --ca %[4]s

The page with curl. Its TLS library decides about the group: OpenSSL has
X25519MLKEM768 from 3.5 on, older ones get X25519. The record below tells.

  curl --resolve %[3]s:%[5]s:127.0.0.1 --cacert %[4]s https://%[3]s:%[5]s/
`, demo.ShellWord(binary), e.address, name, demo.ShellWord(e.rootPEM), port)
	return err
}
