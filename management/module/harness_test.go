package module

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// setupToken is the set-up token of these tests, and one is enough to find in a log.
const setupToken = "what the first run asks for"

// plane is Caddy with the management plane in this process, on unix sockets. There is one at a time.
type plane struct {
	t            *testing.T
	dir          string // its data directory is dir/caddy
	log          *logText
	public, edge *http.Client
	key          string // of the first run
}

// newPlane prepares one whose data is in a folder of the test's own. Nothing runs before load.
func newPlane(t *testing.T) *plane {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pqm") // short: the path of a socket has at most 107 characters
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Setenv("XDG_DATA_HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("SETUP_TOKEN", setupToken)
	p := &plane{t: t, dir: dir, log: collectLog(t)}
	p.public, p.edge = p.client("public.sock"), p.client("edge.sock")
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		running.Wait()
	})
	return p
}

// client returns one that speaks to a unix socket.
func (p *plane) client(socket string) *http.Client {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(p.dir, socket))
	}}
	return &http.Client{Transport: transport, Timeout: pqtest.Timeout}
}

// data returns the path of a file in the directory of keys.
func (p *plane) data(name string) string { return filepath.Join(p.dir, "caddy", "pqproxy", name) }

// tryLoad loads a config with these options, and further global options.
func (p *plane) tryLoad(options string, global ...string) error {
	p.t.Helper()
	return p.loadFile(p.file(options, global...))
}

// file returns the Caddyfile of tryLoad.
func (p *plane) file(options string, global ...string) string {
	return fmt.Sprintf(`{
	admin off
	persist_config off
	storage file_system %[1]s/storage
	log default {
		output management_test
		format json
		level INFO
	}
	%[3]s
	pqproxy_management {
		%[2]s
	}
}
http://public.test {
	bind unix/%[1]s/public.sock
	pqproxy_management public
}
http://edge.test {
	bind unix/%[1]s/edge.sock
	pqproxy_management edge
}
`, p.dir, options, strings.Join(global, "\n"))
}

// config is file as JSON, to be changed before it is loaded.
func (p *plane) config(options string, global ...string) (config map[string]any) {
	p.t.Helper()
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(p.file(options, global...)), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := json.Unmarshal(adapted, &config); err != nil {
		p.t.Fatal(err)
	}
	return config
}

func (p *plane) loadJSON(config map[string]any) error {
	p.t.Helper()
	text, err := json.Marshal(config)
	if err != nil {
		p.t.Fatal(err)
	}
	return caddy.Load(text, true)
}

func (p *plane) loadFile(config string) error {
	p.t.Helper()
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(config), nil)
	if err != nil {
		return err
	}
	return caddy.Load(adapted, true)
}

func (p *plane) load(options string, global ...string) {
	p.t.Helper()
	if err := p.tryLoad(options, global...); err != nil {
		p.t.Fatal(err)
	}
}

// start is load, and waits until it serves.
func (p *plane) start(options string, global ...string) *state {
	p.t.Helper()
	p.load(options, global...)
	p.waitReady()
	return inForce(p.t)
}

func (p *plane) waitReady() {
	p.t.Helper()
	pqtest.Wait(p.t, "the management plane to serve", func() bool { return p.status(p.public, "/readyz") == http.StatusOK })
}

// inForce returns the service of the present config.
func inForce(t *testing.T) *state {
	t.Helper()
	app, err := caddy.ActiveContext().AppIfConfigured(appName)
	if err != nil {
		t.Fatal(err)
	}
	return app.(*App).held
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   map[string]any
	text   string
}

// ask makes a request; one that gets no answer has status 0.
func (p *plane) ask(client *http.Client, method, path string, body any) answer {
	p.t.Helper()
	return p.askWith(client, method, path, body, nil)
}

func (p *plane) askWith(client *http.Client, method, path string, body any, header http.Header) answer {
	p.t.Helper()
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			p.t.Fatal(err)
		}
		content = bytes.NewReader(text)
	}
	host := "http://public.test"
	if client == p.edge {
		host = "http://edge.test"
	}
	r, err := http.NewRequest(method, host+path, content)
	if err != nil {
		p.t.Fatal(err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if p.key != "" && client == p.public {
		r.Header.Set("Authorization", "Bearer "+p.key)
	}
	for name, values := range header {
		r.Header[name] = values
	}
	got, err := client.Do(r)
	if errors.Is(err, io.EOF) {
		// After a reload: the old server drops a request that it reads while it shuts down (net/http), and nobody has served that.
		if r.GetBody != nil {
			if r.Body, err = r.GetBody(); err != nil {
				p.t.Fatal(err)
			}
		}
		got, err = client.Do(r)
	}
	if err != nil {
		return answer{text: err.Error()}
	}
	defer got.Body.Close()
	text, err := io.ReadAll(got.Body)
	if err != nil {
		return answer{text: err.Error()}
	}
	a := answer{status: got.StatusCode, header: got.Header, text: string(text)}
	_ = json.Unmarshal(text, &a.body) // what is no JSON has no members
	return a
}

func (p *plane) status(client *http.Client, path string) int {
	p.t.Helper()
	return p.ask(client, "GET", path, nil).status
}

// must is ask on the public face with that status.
func (p *plane) must(want int, method, path string, body any) answer {
	p.t.Helper()
	a := p.ask(p.public, method, path, body)
	if a.status != want {
		p.t.Fatalf("%s %s: %d, want %d\n%s", method, path, a.status, want, a.text)
	}
	return a
}

// setUp is the first run.
func (p *plane) setUp() {
	p.t.Helper()
	a := p.must(http.StatusCreated, "POST", "/v1/setup", map[string]any{
		"setup_token": setupToken, "email": "ops@example.com", "password": "a long enough password", "tenant": "Platform", "api_key": true,
	})
	p.key = a.body["api_key"].(map[string]any)["secret"].(string)
}

// edgeToken makes one and returns the header with it.
func (p *plane) edgeToken() http.Header {
	p.t.Helper()
	secret := p.must(http.StatusCreated, "POST", "/v1/platform/edge_tokens", map[string]any{"name": "fleet"}).body["secret"].(string)
	return http.Header{"Authorization": {"Bearer " + secret}}
}

// upload adds a domain with a pair of its own, so that the database has something sealed.
func (p *plane) upload(name string) {
	p.t.Helper()
	domain := p.must(http.StatusCreated, "POST", "/v1/domains", map[string]any{"name": name, "upstreams": []any{map[string]any{"dial": "origin.example.net:443"}}})
	chain, key := pqtest.NewCA(p.t).PairPEM(p.t, name)
	p.must(http.StatusOK, "PUT", "/v1/domains/"+domain.body["id"].(string)+"/certificate", map[string]any{"chain_pem": string(chain), "key_pem": string(key)})
}

// checkUnavailable checks what everybody is told while nothing serves.
func (p *plane) checkUnavailable() {
	p.t.Helper()
	for _, client := range []*http.Client{p.public, p.edge} {
		if a := p.ask(client, "GET", "/healthz", nil); a.status != http.StatusOK || a.body["status"] != "ok" {
			p.t.Errorf("/healthz: %d %s", a.status, a.text)
		}
		for _, path := range []string{"/readyz", "/v1/setup", "/v1/edge/domains", "/nothing"} {
			a := p.ask(client, "GET", path, nil)
			if a.status != http.StatusServiceUnavailable || a.body["code"] != "unavailable" || a.header.Get("Retry-After") == "" ||
				a.header.Get("Content-Type") != "application/problem+json" {
				p.t.Errorf("%s: %d %v %s", path, a.status, a.header, a.text)
			}
		}
		if a := p.ask(client, "POST", "/healthz", nil); a.status != http.StatusServiceUnavailable {
			p.t.Errorf("POST /healthz: %d", a.status)
		}
	}
}

// shorten makes the service try again soon, and wait for requests not for long.
func shorten(t *testing.T) {
	t.Helper()
	running.Wait()
	first, last, drain := firstRetry, lastRetry, drainLimit
	firstRetry, lastRetry, drainLimit = 10*time.Millisecond, 50*time.Millisecond, 100*time.Millisecond
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		running.Wait()
		firstRetry, lastRetry, drainLimit = first, last, drain
	})
}

// logText is what Caddy logs during one test.
type logText struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// wait waits for a text in the log.
func (l *logText) wait(t *testing.T, text string) {
	t.Helper()
	pqtest.Wait(t, fmt.Sprintf("%q in the log", text), func() bool { return strings.Contains(l.String(), text) })
}

// currentLog is where testWriter writes.
var currentLog struct {
	sync.Mutex
	to *logText
}

func collectLog(t *testing.T) *logText {
	l := new(logText)
	currentLog.Lock()
	defer currentLog.Unlock()
	currentLog.to = l
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log:\n%s", l)
		}
	})
	return l
}

func init() {
	caddy.RegisterModule(testWriter{})
	caddy.RegisterModule(new(failing))
}

// testWriter is a log writer module for tests.
type testWriter struct{}

func (testWriter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.management_test", New: func() caddy.Module { return new(testWriter) }}
}
func (testWriter) String() string                                   { return "management_test" }
func (testWriter) WriterKey() string                                { return "management_test" }
func (testWriter) OpenWriter() (io.WriteCloser, error)              { return testWriter{}, nil }
func (testWriter) Close() error                                     { return nil }
func (*testWriter) UnmarshalCaddyfile(d *caddyfile.Dispenser) error { d.Next(); return nil }

func (testWriter) Write(b []byte) (int, error) {
	currentLog.Lock()
	l := currentLog.to
	currentLog.Unlock()
	if l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.text.Write(b)
	}
	return len(b), nil
}

// failing is an app that fails to start, once the management plane of the same config has begun or where that does not.
type failing struct {
	plane *App
}

func (*failing) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "management_failing", New: func() caddy.Module { return new(failing) }}
}

func (f *failing) Provision(ctx caddy.Context) error {
	app, err := ctx.App(appName)
	if err != nil {
		return err
	}
	f.plane = app.(*App)
	return nil
}

func (f *failing) Start() error {
	select {
	case <-f.plane.started:
	case <-time.After(50 * time.Millisecond): // Caddy starts apps in any order: this was the first
	}
	return fmt.Errorf("this app fails")
}
func (*failing) Stop() error { return nil }

// canceled returns a context that has ended.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
