package main

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/pires/go-proxyproto"

	"github.com/pqproxy/caddy-pqproxy/examples/internal/demo"
	"github.com/pqproxy/caddy-pqproxy/probe"
)

//go:embed management.Caddyfile
var managementCaddyfile []byte

// patience is how long each step may take.
const patience = time.Minute

// email is of the first user.
const email = "you@example.com"

// managed is the quickstart with a management plane: the domain comes by HTTP requests. It returns when ctx ends.
func managed(ctx context.Context, dir string, out io.Writer) error {
	up, err := demo.StartUpstream(name, proxyproto.REQUIRE)
	if err != nil {
		return fmt.Errorf("starting the upstream: %w", err)
	}
	defer up.Close()
	defer func() {
		quiet.Store(true)
		_ = caddy.Stop() // nothing is left to be lost
	}()
	m, err := startManagement(ctx, dir, out)
	if err != nil {
		return fmt.Errorf("starting the management plane: %w", err)
	}
	edge, err := m.startEdge(ctx)
	if err != nil {
		return fmt.Errorf("starting the proxy: %w", err)
	}
	domain, err := m.addDomain(ctx, up, edge)
	if err != nil {
		return fmt.Errorf("adding the domain: %w", err)
	}
	port, err := edge.show(ctx, out)
	if err != nil {
		return err
	}
	if err := m.require(ctx, domain); err != nil {
		return fmt.Errorf("requiring post-quantum handshakes: %w", err)
	}
	if err := m.showRecord(ctx, domain, port); err != nil {
		return fmt.Errorf("looking for the record: %w", err)
	}
	if err := m.printNextSteps(edge, domain); err != nil {
		return err
	}
	for len(records) > 0 { // the one that is shown was asked for
		<-records
	}
	return printRecords(ctx, out)
}

// management is the management plane, running in this process.
type management struct {
	*demo.API
	out      io.Writer
	dir      string
	password string
	config   []byte // with the edge
}

// startManagement runs Caddy with the Caddyfile but for the edge, which needs a token of the management plane's first, and sets
// it up.
func startManagement(ctx context.Context, dir string, out io.Writer) (*management, error) {
	console, err := reservePort("QUICKSTART_CONSOLE_PORT", "8080")
	if err != nil {
		return nil, err
	}
	feed, err := reservePort("", "0")
	if err != nil {
		return nil, err
	}
	m := &management{API: &demo.API{URL: "http://127.0.0.1:" + console}, out: out, dir: dir, password: strings.ToLower(rand.Text())}
	m.config, err = adapt(managementCaddyfile, map[string]string{
		"XDG_DATA_HOME": dir, "QUICKSTART_DIR": dir, "QUICKSTART_PORT": freePort("QUICKSTART_PORT", "8443"),
		"QUICKSTART_CONSOLE_PORT": console, "QUICKSTART_FEED_PORT": feed,
	})
	if err != nil {
		return nil, err
	}
	alone, err := withoutEdge(m.config)
	if err != nil {
		return nil, err
	}
	if err := caddy.Load(alone, true); err != nil {
		return nil, err
	}
	return m, m.setUp(ctx)
}

// reservePort returns a port that is free now.
func reservePort(variable, fallback string) (string, error) {
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", freePort(variable, fallback)))
	if err != nil {
		return "", err
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	return port, err
}

// withoutEdge takes the edge out of a config.
func withoutEdge(config []byte) ([]byte, error) {
	var fields map[string]any
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, err
	}
	apps, _ := fields["apps"].(map[string]any)
	delete(apps, "layer4")
	delete(apps, "pqproxy")
	return json.Marshal(fields)
}

// setUp is the first run.
func (m *management) setUp(ctx context.Context) error {
	err := demo.Until(ctx, "its database to open", patience, 20*time.Millisecond, func(ctx context.Context) (bool, error) {
		return m.Call(ctx, http.MethodGet, "/readyz", nil, nil) == nil, nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(m.out, "A management plane runs on %s, with SQLite and its keys in files.\n\n── The first run, an edge, a domain: by HTTP requests ──\n\n", m.URL)
	file := filepath.Join(m.dir, "caddy", "pqproxy", "setup-token")
	token, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var made struct {
		APIKey struct{ Secret string } `json:"api_key"`
	}
	err = m.Call(ctx, http.MethodPost, "/v1/setup", demo.Object{
		"setup_token": strings.TrimSpace(string(token)), "email": email, "password": m.password, "tenant": "Quickstart", "api_key": true,
	}, &made)
	if err != nil {
		return err
	}
	m.Key = made.APIKey.Secret
	fmt.Fprintf(m.out, "POST /v1/setup with what is in the file setup-token: there is a tenant, its owner, and an API key.\n")
	return nil
}

// startEdge makes a token and loads the config with the edge in it. The management plane does not notice that reload.
func (m *management) startEdge(ctx context.Context) (*edge, error) {
	var token struct{ Secret string }
	if err := m.Call(ctx, http.MethodPost, "/v1/platform/edge_tokens", demo.Object{"name": "quickstart"}, &token); err != nil {
		return nil, err
	}
	if err := os.Setenv("QUICKSTART_EDGE_TOKEN", token.Secret); err != nil {
		return nil, err
	}
	quiet.Store(true)
	defer quiet.Store(false)
	if err := caddy.Load(m.config, true); err != nil {
		return nil, err
	}
	var edges demo.List[struct{ Name, State string }]
	err := m.Until(ctx, "the edge to report", "/v1/platform/edges", patience, &edges, func() bool {
		return len(edges.Data) == 1 && edges.Data[0].State == "up"
	})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(m.out, "POST /v1/platform/edge_tokens: with this token the edge in the same process asks for domains.\nGET  /v1/platform/edges: %s is %s.\n",
		edges.Data[0].Name, edges.Data[0].State)
	return &edge{address: <-listening}, nil
}

// addDomain adds the domain and waits until it is live.
func (m *management) addDomain(ctx context.Context, up *demo.Upstream, e *edge) (*demo.Domain, error) {
	domain, begin := new(demo.Domain), time.Now()
	err := m.Call(ctx, http.MethodPost, "/v1/domains", demo.Object{
		"name": name, "proxy_protocol": "v1", "certificate": demo.Object{"source": "internal"},
		"upstreams": []demo.Object{{"dial": up.Address, "tls": demo.Object{"ca_pem": string(up.CA)}}},
	}, domain)
	if err != nil {
		return nil, err
	}
	// The internal CA issues when the first client comes.
	err = demo.Until(ctx, "the edge to serve "+name, patience, 5*time.Millisecond, func(ctx context.Context) (bool, error) {
		if e.trust(m.dir) != nil {
			return false, nil // the CA is not there yet
		}
		_, err := probe.Run(ctx, probe.Options{Address: e.address, ServerName: name, RootCAs: e.roots})
		return err == nil, nil
	})
	if err != nil {
		return nil, err
	}
	served := time.Since(begin)
	if err := m.UntilLive(ctx, domain, 1, patience); err != nil {
		return nil, err
	}
	fmt.Fprintf(m.out, "POST /v1/domains: %s leads to the upstream on %s, with a certificate of the internal CA.\nThe edge serves it %d ms after the request.\nGET  /v1/domains/%s: %s. %s\n",
		name, up.Address, served.Milliseconds(), domain.ID, domain.Status, domain.Axes.Edges.Detail)
	return domain, nil
}

// require is a change of the domain.
func (m *management) require(ctx context.Context, domain *demo.Domain) error {
	path, begin := "/v1/domains/"+domain.ID, time.Now()
	if err := m.Call(ctx, http.MethodPatch, path, demo.Object{"post_quantum": "require"}, domain); err != nil {
		return err
	}
	if err := m.UntilLive(ctx, domain, 1, patience); err != nil {
		return err
	}
	fmt.Fprintf(m.out, "\n── A change, and what the management plane was told ──\n\nPATCH %s {\"post_quantum\":\"require\"}: live after %d ms.\n",
		path, time.Since(begin).Milliseconds())
	return nil
}

// showRecord asks for the record of the connection from a port.
func (m *management) showRecord(ctx context.Context, domain *demo.Domain, port int) error {
	path := "/v1/connections?domain=" + domain.ID
	var found demo.List[*demo.Record]
	var shown *demo.Record
	err := m.Until(ctx, "the edge's report", path, patience, &found, func() bool {
		for _, r := range found.Data {
			if r.ClientPort == port {
				shown = r
			}
		}
		return shown != nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(m.out, "GET   %s:\n", path)
	shown.Print(m.out)
	return nil
}

// printNextSteps prints commands that work as they stand while this runs.
func (m *management) printNextSteps(e *edge, domain *demo.Domain) error {
	keyFile := filepath.Join(m.dir, "api-key.curl")
	if err := os.WriteFile(keyFile, []byte(m.KeyFile()), 0o600); err != nil {
		return err
	}
	fmt.Fprintf(m.out, `
── Try it from another terminal ──

console   %[1]s
user      %[2]s
password  %[3]s

The API with curl, which reads the key from a file:

  curl -sS -K %[4]s %[1]s/v1/domains/%[5]s
  curl -sS -K %[4]s '%[1]s/v1/reports/post-quantum?domain=%[5]s'
  curl -sS -K %[4]s %[1]s/v1/domains/%[5]s -X PATCH --json '{"post_quantum":"prefer"}'
  curl -sS %[1]s/openapi.json
`, m.URL, email, m.password, demo.ShellWord(keyFile), domain.ID)
	if err := e.printClients(m.out); err != nil {
		return err
	}
	_, err := fmt.Fprint(m.out, "\nEvery connection leaves its record here. Ctrl-C ends everything.\n")
	return err
}
