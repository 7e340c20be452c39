package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/examples/internal/demo"
	"github.com/pqproxy/caddy-pqproxy/probe"
)

// name is the customer's domain.
const name = "app.example.com"

// story is what is shown.
type story struct {
	*stage
	out   io.Writer
	steps int

	operator, customer *demo.API
	domain             demo.Domain
	path               string // of the domain in the API
	roots              *x509.CertPool
	port               int // of the client whose record is looked for
}

// tell goes through all steps.
func (t *story) tell(ctx context.Context) error {
	for _, step := range []struct {
		title string
		take  func(context.Context) error
	}{
		{"The operator sets the service up", t.setUp},
		{"Two edges connect", t.connectEdges},
		{"A customer signs up", t.signUp},
		{"The customer adds a domain", t.addDomain},
		{"The customer sets the DNS record", t.setRecord},
		{"The domain goes live", t.goLive},
		{"Somebody connects", t.connect},
		{"The customer wants to know the clients' addresses", t.announceClients},
		{"What is known of it", t.look},
		{"Post-quantum is required", t.require},
	} {
		t.steps++
		fmt.Fprintf(t.out, "\n── %d. %s ──\n\n", t.steps, step.title)
		if err := step.take(ctx); err != nil {
			if cause := context.Cause(ctx); cause != nil { // such as an edge that has ended
				err = cause
			}
			return fmt.Errorf("step %d, %s: %w", t.steps, strings.ToLower(step.title), err)
		}
	}
	return t.printNextSteps()
}

// say prints a line.
func (t *story) say(format string, args ...any) { fmt.Fprintf(t.out, format+"\n", args...) }

func (t *story) setUp(ctx context.Context) error {
	t.say("Management plane: %s for people, %s for edges.", t.public, t.edgeFace)
	t.operator = &demo.API{URL: t.public}
	var made struct {
		Tenant struct{ ID string }
		APIKey struct{ Secret string } `json:"api_key"`
	}
	err := t.operator.Call(ctx, "POST", "/v1/setup", demo.Object{
		"setup_token": t.setupToken, "email": "ops@example.net", "password": rand.Text(), "tenant": "Operator", "api_key": true,
	}, &made)
	if err != nil {
		return err
	}
	t.operator.Key = made.APIKey.Secret
	t.say("POST /v1/setup with the set-up token: the first user, tenant %s, and an API key that may do everything.", made.Tenant.ID)
	return nil
}

func (t *story) connectEdges(ctx context.Context) error {
	var token struct{ Secret string }
	if err := t.operator.Call(ctx, "POST", "/v1/platform/edge_tokens", demo.Object{"name": "fleet"}, &token); err != nil {
		return err
	}
	t.say("POST /v1/platform/edge_tokens: a token. Two edges start with it.")
	if err := t.startEdges(ctx, token.Secret); err != nil {
		return err
	}
	var edges demo.List[struct {
		Name, Region, State string
		Revision            uint64
	}]
	err := t.operator.Until(ctx, "both edges to report", "/v1/platform/edges", patience, &edges, func() bool {
		up := 0
		for _, e := range edges.Data {
			if e.State == "up" {
				up++
			}
		}
		return up == len(t.edges)
	})
	if err != nil {
		return err
	}
	t.say("GET /v1/platform/edges:")
	for i, e := range edges.Data {
		t.say("  %s (%s) is %s at revision %d, on %s", e.Name, e.Region, e.State, e.Revision, t.edges[i].address)
	}
	return nil
}

func (t *story) signUp(ctx context.Context) error {
	t.customer = &demo.API{URL: t.public}
	email, password := "dev@example.com", rand.Text()
	err := t.customer.Call(ctx, "POST", "/v1/signup", demo.Object{"email": email, "password": password, "tenant": "Example"}, nil)
	if err != nil {
		return err
	}
	signedIn, err := t.customer.Send(ctx, "POST", "/v1/sessions", nil, demo.Object{"email": email, "password": password}, nil)
	if err != nil {
		return err
	}
	cookies := (&http.Response{Header: signedIn}).Cookies()
	if len(cookies) != 1 {
		return fmt.Errorf("the session came with %d cookies, not one", len(cookies))
	}
	var key struct {
		ID, Prefix, Secret string
		Scopes             []string
	}
	session := http.Header{"Cookie": {cookies[0].Name + "=" + cookies[0].Value}}
	if _, err := t.customer.Send(ctx, "POST", "/v1/api_keys", session, demo.Object{"name": "deploy", "scopes": []string{"*"}}, &key); err != nil {
		return err
	}
	t.customer.Key = key.Secret
	t.say("POST /v1/signup, POST /v1/sessions, POST /v1/api_keys: a key %s… that may do what its tenant may (%s).", key.Prefix, strings.Join(key.Scopes, ", "))
	return nil
}

func (t *story) addDomain(ctx context.Context) error {
	err := t.customer.Call(ctx, "POST", "/v1/domains", demo.Object{
		"name":      name,
		"upstreams": []demo.Object{{"dial": t.upstream.Address, "tls": demo.Object{"ca_pem": string(t.upstream.CA)}}},
	}, &t.domain)
	if err != nil {
		return err
	}
	t.path = "/v1/domains/" + t.domain.ID
	next := t.domain.NextAction
	if next == nil || next.Record == nil {
		return fmt.Errorf("the domain is %s, and there is no record to set", t.domain.Status)
	}
	t.say("POST /v1/domains: %s leads to %s. It is %s. What the %s has to do:", name, t.upstream.Address, t.domain.Status, next.Who)
	t.say("  %s", next.Text)
	t.say("")
	t.say("  %s.  %s  %s", next.Record.Name, next.Record.Type, next.Record.Value)
	return nil
}

func (t *story) setRecord(ctx context.Context) error {
	if err := t.dns.set(t.domain.NextAction.Record); err != nil {
		return err
	}
	t.say("The customer's name server has it.")
	if err := t.customer.Call(ctx, "POST", t.path+"/check", nil, &t.domain); err != nil {
		return err
	}
	t.say("POST %s/check: ownership %s. %s", t.path, t.domain.Axes.Ownership.State, t.domain.Axes.Ownership.Detail)
	if t.domain.Axes.Ownership.State != "ok" {
		return fmt.Errorf("the domain is %s", t.domain.Status)
	}
	return nil
}

func (t *story) goLive(ctx context.Context) error {
	begin := time.Now()
	if err := t.customer.UntilLive(ctx, &t.domain, len(t.edges), patience); err != nil {
		return err
	}
	took := time.Since(begin)
	pem, err := os.ReadFile(t.acme.rootFile)
	if err != nil {
		return err
	}
	t.roots = x509.NewCertPool()
	if !t.roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate", t.acme.rootFile)
	}
	t.say("One edge ordered a certificate, the ACME server asked the customer's DNS and then the edge, both edges serve it.")
	t.say("GET %s: %s. %s It took %d ms.", t.path, t.domain.Status, t.domain.Axes.Edges.Detail, took.Milliseconds())
	return nil
}

// client returns the settings of a client with these groups; nil: what the standard library offers.
func (t *story) client(groups ...tls.CurveID) *tls.Config {
	return &tls.Config{ServerName: name, RootCAs: t.roots, CurvePreferences: groups}
}

func (t *story) connect(ctx context.Context) error {
	result, err := probe.Run(ctx, probe.Options{Address: t.edges[0].address, ServerName: name, RootCAs: t.roots, ALPN: []string{"h2", "http/1.1"}})
	if err != nil {
		return err
	}
	if err := result.WriteText(t.out); err != nil {
		return err
	}
	page, err := demo.Get(ctx, t.edges[1].address, t.client(tls.X25519MLKEM768))
	if err != nil {
		return err
	}
	t.port = page.ClientPort
	t.say("\nThe page, through edge-2, with %s:\n\n%s", page.Group, indented(page.Text))
	old, err := demo.Get(ctx, t.edges[0].address, t.client(tls.X25519))
	if err != nil {
		return err
	}
	t.say("A client that is too old for that gets it as well, with %s.", old.Group)
	return nil
}

func indented(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ") + "\n"
}

// change changes the domain and waits until good says of each edge that it is live there. It returns how long that took.
func (t *story) change(ctx context.Context, patch demo.Object, good func(context.Context, edge) bool) (time.Duration, error) {
	if err := t.customer.Call(ctx, "PATCH", t.path, patch, &t.domain); err != nil {
		return 0, err
	}
	begin := time.Now()
	for _, e := range t.edges {
		err := demo.Until(ctx, "the change to be live on "+e.name, patience, 5*time.Millisecond, func(ctx context.Context) (bool, error) {
			return good(ctx, e), nil
		})
		if err != nil {
			return 0, err
		}
	}
	return time.Since(begin), nil
}

func (t *story) announceClients(ctx context.Context) error {
	var page *demo.Page
	took, err := t.change(ctx, demo.Object{"proxy_protocol": "v2"}, func(ctx context.Context, e edge) bool {
		got, err := demo.Get(ctx, e.address, t.client())
		page = got
		return err == nil && strings.Contains(got.Text, "the PROXY header says so")
	})
	if err != nil {
		return err
	}
	t.say("PATCH %s {\"proxy_protocol\":\"v2\"}: live on both edges after %d ms. The page:\n\n%s", t.path, took.Milliseconds(), indented(page.Text))
	return nil
}

func (t *story) look(ctx context.Context) error {
	var found demo.List[*demo.Record]
	var record *demo.Record
	path := "/v1/connections?domain=" + t.domain.ID
	err := t.customer.Until(ctx, "the edges to report the connection", path, patience, &found, func() bool {
		for _, r := range found.Data {
			if r.ClientPort == t.port {
				record = r
			}
		}
		return record != nil
	})
	if err != nil {
		return err
	}
	t.say("GET %s, the connection through edge-2:", path)
	record.Print(t.out)

	var simulated struct {
		Refused  int64
		ByClient []struct {
			Client  string
			Refused int64
		} `json:"by_client"`
	}
	require := "/v1/reports/require?days=1&domain=" + t.domain.ID
	err = t.customer.Until(ctx, "the edges to report the old client", require, patience, &simulated, func() bool {
		return simulated.Refused > 0 && len(simulated.ByClient) > 0
	})
	if err != nil {
		return err
	}

	var usage demo.List[struct {
		Connections int64
		BytesIn     int64 `json:"bytes_in"`
		BytesOut    int64 `json:"bytes_out"`
	}]
	path = "/v1/usage?step=total&domain=" + t.domain.ID
	if err := t.customer.Call(ctx, "GET", path, nil, &usage); err != nil {
		return err
	}
	for _, u := range usage.Data {
		t.say("\nGET %s: %d connections, %d bytes in, %d out.", path, u.Connections, u.BytesIn, u.BytesOut)
	}
	var report struct {
		Connections int64
		PostQuantum int64 `json:"post_quantum"`
		Share       float64
	}
	path = "/v1/reports/post-quantum?domain=" + t.domain.ID
	if err := t.customer.Call(ctx, "GET", path, nil, &report); err != nil {
		return err
	}
	t.say("GET %s: %d of %d handshakes were post-quantum, %.0f %%.", path, report.PostQuantum, report.Connections, 100*report.Share)
	t.say("GET %s: it would refuse %d, of %s.", require, simulated.Refused, simulated.ByClient[0].Client)
	return nil
}

func (t *story) require(ctx context.Context) error {
	var refused error
	took, err := t.change(ctx, demo.Object{"post_quantum": "require"}, func(ctx context.Context, e edge) bool {
		_, err := demo.Get(ctx, e.address, t.client(tls.X25519))
		if err != nil {
			refused = err
		}
		return err != nil
	})
	if err != nil {
		return err
	}
	t.say("PATCH %s {\"post_quantum\":\"require\"}: live on both edges after %d ms.", t.path, took.Milliseconds())
	t.say("The old client gets: %v", refused)
	for _, e := range t.edges {
		page, err := demo.Get(ctx, e.address, t.client())
		if err != nil {
			return err
		}
		t.say("A new one goes on, on %s with %s.", e.name, page.Group)
	}
	return t.customer.UntilLive(ctx, &t.domain, len(t.edges), patience)
}

// printNextSteps prints commands that work as they stand, in this order, while this runs.
func (t *story) printNextSteps() error {
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	files := make([]string, 2)
	for i, api := range []*demo.API{t.customer, t.operator} {
		files[i] = filepath.Join(t.dir, []string{"customer.curl", "operator.curl"}[i])
		if err := os.WriteFile(files[i], []byte(api.KeyFile()), 0o600); err != nil {
			return err
		}
	}
	_, port, err := net.SplitHostPort(t.edges[0].address)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(t.out, `
── Try it from another terminal ──

The customer's side. Each key is in a file that curl reads:

  curl -sS -K %[1]s %[3]s/v1/domains
  curl -sS -K %[1]s '%[3]s/v1/connections?domain=%[5]s&limit=2'
  curl -sS -K %[1]s '%[3]s%[4]s/series?step=minute'
  curl -sS -K %[1]s -X POST %[3]s%[4]s/probe

A handshake through edge-1. With curl its TLS library decides about the group,
and OpenSSL has X25519MLKEM768 from 3.5 on: so let older clients in again first.

  %[6]s pqproxy probe %[7]s --server-name %[8]s --ca %[9]s
  curl -sS -K %[1]s -X PATCH --json '{"post_quantum":"prefer"}' %[3]s%[4]s
  curl --retry 9 --retry-all-errors --resolve %[8]s:%[10]s:127.0.0.1 --cacert %[9]s https://%[8]s:%[10]s/

The operator's side, and what else there is:

  curl -sS -K %[2]s %[3]s/v1/platform/edges
  curl -sS %[3]s/openapi.json

Ctrl-C ends everything.
`, demo.ShellWord(files[0]), demo.ShellWord(files[1]), t.public, t.path, t.domain.ID,
		demo.ShellWord(binary), t.edges[0].address, name, demo.ShellWord(t.acme.rootFile), port)
	return err
}
