package pqproxy

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestExamples runs every Caddyfile and every JSON config of examples/.
func TestExamples(t *testing.T) {
	for name, run := range map[string]func(*testing.T, string){
		"Caddyfile":   runCaddyfile,
		"config.json": func(t *testing.T, config string) { runExample(t, []byte(config)) },
	} {
		files, err := filepath.Glob("examples/*/" + name)
		if err != nil || len(files) == 0 {
			t.Fatalf("no examples with a %s: %v", name, err)
		}
		for _, file := range files {
			t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) { run(t, read(t, file)) })
		}
	}
}

// TestDocExamples runs every Caddyfile and every JSON config in the documentation, and looks at records that
// it shows.
func TestDocExamples(t *testing.T) {
	for _, page := range pages(t) {
		for i, block := range codeBlocks(read(t, page), "caddyfile") {
			t.Run(fmt.Sprintf("%s/caddyfile=%d", page, i), func(t *testing.T) { runCaddyfile(t, block) })
		}
		for i, block := range codeBlocks(read(t, page), "json") {
			t.Run(fmt.Sprintf("%s/json=%d", page, i), func(t *testing.T) {
				if strings.Contains(block, `"apps"`) {
					runExample(t, []byte(block))
				} else {
					checkRecord(t, block)
				}
			})
		}
	}
}

// pages are all pages of the documentation.
func pages(t *testing.T) []string {
	t.Helper()
	all := []string{"README.md", "CONTRIBUTING.md", "examples/README.md"}
	for _, pattern := range []string{"docs/*.md", "docs/decisions/*.md", "examples/*/README.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("no pages %s: %v", pattern, err)
		}
		all = append(all, found...)
	}
	return all
}

// codeBlocks returns the contents of fenced blocks of a language.
func codeBlocks(text, language string) []string {
	var blocks []string
	for _, match := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, match[1])
	}
	return blocks
}

// checkRecord looks at a record of a connection: it has all fields that can be there, and no others.
func checkRecord(t *testing.T, text string) {
	var r map[string]any
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	keys := []string{"level", "ts", "logger", "msg"}
	for _, c := range constants(t, "log.go", "") {
		if strings.HasPrefix(c.name, "key") {
			keys = append(keys, c.value)
		}
	}
	for key := range r {
		if !slices.Contains(keys, key) {
			t.Errorf("no record has %s", key)
		}
	}
	for _, key := range keys {
		if _, ok := r[key]; !ok && key != keyError {
			t.Errorf("%s is missing", key)
		}
	}
}

func runCaddyfile(t *testing.T, config string) {
	t.Setenv("QUICKSTART_DIR", t.TempDir())
	adapted, err := adapt(config)
	if err != nil {
		t.Fatal(err)
	}
	runExample(t, adapted)
}

// runExample runs a config of the documentation with listeners, upstreams and certificates of the test's own, and
// connects to each of its domains. One without a listener is provisioned alone.
func runExample(t *testing.T, config []byte) {
	t.Setenv("APP_NAME", "app.example.com")
	pqtest.Leaks(t)
	x := &example{t: t, ca: pqtest.NewCA(t), dir: t.TempDir()}
	if err := json.Unmarshal(config, &x.config); err != nil {
		t.Fatal(err)
	}
	for i := range x.config.Apps.PQProxy.Domains {
		x.takeOver(x.config.Apps.PQProxy.Domains[i])
	}
	if x.config.Apps.Layer4 == nil {
		if err := validate(t, x.encode()); err != nil {
			t.Error(err)
		}
		return
	}
	x.listenHere()
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Errorf("stopping Caddy: %v", err)
		}
		drains.Wait()
	})
	if err := caddy.Load(x.encode(), true); err != nil {
		t.Fatal(err)
	}
	_, x.addr = listeningOn(t, "127.0.0.1:0")
	for _, d := range x.config.Apps.PQProxy.Domains {
		x.connect(d)
	}
}

// example is a config that is being run. What is named here stays as it is written, but for what the test puts in its
// place. The rest is left out, above all management URLs: examples that have one run in caddytest.
type example struct {
	t      *testing.T
	ca     *pqtest.CA
	dir    string // of storage
	addr   string // of the listener
	told   bool   // a proxy in front tells addresses
	config struct {
		Apps struct {
			Layer4 *struct {
				Servers map[string]map[string]any `json:"servers"`
			} `json:"layer4,omitempty"`
			PQProxy struct {
				UpstreamPolicy json.RawMessage  `json:"upstream_policy,omitempty"`
				Limits         json.RawMessage  `json:"limits,omitempty"`
				Domains        []map[string]any `json:"domains,omitempty"`
			} `json:"pqproxy"`
			PKI json.RawMessage `json:"pki"`
		} `json:"apps"`
		Admin   json.RawMessage `json:"admin"`
		Storage json.RawMessage `json:"storage"`
		Logging json.RawMessage `json:"logging"`
	}
	ups map[string]*pqtest.Upstream // the first of each domain
}

// encode returns the config with what keeps it from touching this machine.
func (x *example) encode() []byte {
	x.t.Helper()
	c := &x.config
	c.Admin = json.RawMessage(`{"disabled":true,"config":{"persist":false}}`)
	c.Storage = json.RawMessage(fmt.Sprintf(`{"module":"file_system","root":%q}`, x.dir))
	c.Logging = json.RawMessage(`{"logs":{"default":{"writer":{"output":"discard"}}}}`)
	c.Apps.PKI = json.RawMessage(`{"certificate_authorities":{"local":{"install_trust":false}}}`)
	encoded, err := json.Marshal(c)
	if err != nil {
		x.t.Fatal(err)
	}
	return encoded
}

// takeOver gives a domain upstreams and a certificate of the test's.
func (x *example) takeOver(d map[string]any) {
	x.t.Helper()
	name := concreteName(d)
	version, _ := d["proxy_protocol"].(string)
	if x.ups == nil {
		x.ups = make(map[string]*pqtest.Upstream)
	}
	for _, u := range d["upstreams"].([]any) {
		cfg := pqtest.UpstreamConfig{Proxy: version != "" && version != "off"}
		u := u.(map[string]any)
		if settings, ok := u["tls"].(map[string]any); ok {
			asked, _ := settings["server_name"].(string)
			if asked == "" {
				asked, _, _ = net.SplitHostPort(u["dial"].(string))
				if _, err := netip.ParseAddr(asked); err == nil || asked == "" {
					asked = name
				}
				settings["server_name"] = asked
			}
			settings["ca_file"] = x.ca.PEMFile(x.t)
			cfg.TLS = &tls.Config{Certificates: []tls.Certificate{x.ca.Issue(x.t, asked)}}
		}
		up := pqtest.StartUpstream(x.t, cfg)
		u["dial"] = up.Addr()
		if x.ups[name] == nil {
			x.ups[name] = up
		}
	}
	certificate, _ := d["certificate"].(map[string]any)
	if certificate["source"] == "byoc" {
		certificate["chain_file"], certificate["key_file"] = x.ca.PairFiles(x.t, name)
		if strings.HasPrefix(d["name"].(string), "*.") {
			certificate["chain_file"], certificate["key_file"] = x.ca.PairFiles(x.t, d["name"].(string))
		}
	}
}

// concreteName is a host name that a domain covers.
func concreteName(d map[string]any) string {
	name := strings.ReplaceAll(d["name"].(string), "{env.APP_NAME}", os.Getenv("APP_NAME"))
	return strings.Replace(name, "*", "any", 1)
}

// listenHere moves the listeners to a free port, and proxies in front to this machine.
func (x *example) listenHere() {
	x.t.Helper()
	for _, server := range x.config.Apps.Layer4.Servers {
		for _, address := range server["listen"].([]any) {
			if !strings.HasPrefix(address.(string), "pqproxy/") {
				x.t.Errorf("it listens on %s", address)
			}
		}
		server["listen"] = []string{"pqproxy/127.0.0.1:0"}
		for _, r := range server["routes"].([]any) {
			for _, h := range r.(map[string]any)["handle"].([]any) {
				if handler := h.(map[string]any); handler["handler"] == "proxy_protocol" {
					handler["allow"] = []string{"127.0.0.0/8"}
					x.told = true
				}
			}
		}
	}
}

// connect has a client connect to a domain, which must be post-quantum, reach its upstream, and be announced.
func (x *example) connect(d map[string]any) {
	x.t.Helper()
	name := concreteName(d)
	raw := pqtest.DialRaw(x.t, x.addr)
	source := raw.LocalAddr().String()
	var conn net.Conn = raw
	if x.told {
		source = "203.0.113.7:40000"
		conn = &prefixedConn{Conn: raw, prefix: []byte("PROXY TCP4 203.0.113.7 192.0.2.1 40000 443\r\n")}
	}
	cfg := &tls.Config{ServerName: name, RootCAs: x.ca.Pool()}
	if protos, ok := d["alpn"].([]any); ok {
		cfg.NextProtos = []string{protos[0].(string)}
	}
	if pem, err := os.ReadFile(filepath.Join(x.dir, "pki", "authorities", "local", "root.crt")); err == nil {
		cfg.RootCAs.AppendCertsFromPEM(pem)
	}
	c := tls.Client(conn, cfg)
	echo(x.t, c, "hello")
	if group := c.ConnectionState().CurveID; group != tls.X25519MLKEM768 {
		x.t.Errorf("%s: negotiated %s", name, group)
	}
	up := x.ups[name].Next(x.t)
	if version, _ := d["proxy_protocol"].(string); version != "" && version != "off" {
		if up.Header == nil || up.Header.SourceAddr.String() != source {
			x.t.Errorf("%s: the upstream was told %+v, want %s", name, up.Header, source)
		}
	}
	c.Close()
}

// TestReadmeCommands wants every command of the README to be run by something.
func TestReadmeCommands(t *testing.T) {
	runs := map[string]struct{ file, text string }{
		"go run ./examples/quickstart":      {"examples/internal/demotest/demotest.go", `exec.Command("go", "build", "-o", binary, ".")`},
		"make test":                         {".ci/run", "make test"},
		"go build -o pqproxy ./cmd/pqproxy": {"caddytest/main_test.go", `"./cmd/pqproxy"`},
		"xcaddy build v2.11.9 --with github.com/pqproxy/caddy-pqproxy@v0.0.0=.": {"caddytest/xcaddy_test.go",
			`"--with", "github.com/pqproxy/caddy-pqproxy@v0.0.0=."`},
		"xcaddy build v2.11.9 --replace github.com/pqproxy/caddy-pqproxy=. --with github.com/pqproxy/caddy-pqproxy@v0.0.0 --with github.com/pqproxy/caddy-pqproxy/management/module": {"caddytest/xcaddy_test.go",
			`"--with", "github.com/pqproxy/caddy-pqproxy/management/module"`},
	}
	for _, block := range codeBlocks(read(t, "README.md"), "sh") {
		for command := range strings.Lines(block) {
			run, ok := runs[strings.TrimSpace(command)]
			if !ok {
				t.Errorf("nothing is known to run: %s", command)
			} else if !strings.Contains(read(t, run.file), run.text) {
				t.Errorf("%s does not run it any more: %s", run.file, command)
			}
			delete(runs, strings.TrimSpace(command))
		}
	}
	for command := range runs {
		t.Errorf("the README does not have the command %s", command)
	}
}

// TestDropIn compares the systemd drop-in with the default that it must exceed, and with the page that shows it.
func TestDropIn(t *testing.T) {
	dropIn := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(read(t, "examples/systemd/caddy.service.d/pqproxy.conf"), "")
	match := regexp.MustCompile(`(?m)^TimeoutStopSec=(.*)$`).FindStringSubmatch(dropIn)
	if match == nil {
		t.Fatal("the drop-in has no TimeoutStopSec")
	}
	if stop, err := time.ParseDuration(match[1]); err != nil || stop <= time.Duration(defaultGracePeriod)+closingTime {
		t.Errorf("TimeoutStopSec is %s (%v), which ends a drain of %s and %s", match[1], err, time.Duration(defaultGracePeriod), closingTime)
	}
	if shown := codeBlocks(read(t, "docs/operations.md"), "ini"); !slices.Contains(shown, dropIn) {
		t.Errorf("docs/operations.md shows %q, the drop-in is %q", shown, dropIn)
	}
}

// TestDocDefaults compares the defaults of the reference with those in force.
func TestDocDefaults(t *testing.T) {
	var limits Limits
	if err := limits.provision(); err != nil {
		t.Fatal(err)
	}
	manual := read(t, "docs/configuration.md")
	for option, value := range map[string]any{
		"early_dials": limits.EarlyDials, "early_dials_per_client": limits.EarlyDialsPerClient, "max_hello": limits.MaxHello,
		"handshake_timeout": limits.HandshakeTimeout, "dial_timeout": limits.DialTimeout, "idle_timeout": limits.IdleTimeout,
		"linger": limits.Linger, "grace_period": limits.GracePeriod,
	} {
		text := fmt.Sprint(value)
		if d, ok := value.(caddy.Duration); ok {
			text = regexp.MustCompile(`([hm])0[ms].*$`).ReplaceAllString(time.Duration(d).String(), "$1") // 1h0m0s is 1h
		}
		if !strings.Contains(manual, fmt.Sprintf("| `%s` | %s |", option, text)) {
			t.Errorf("docs/configuration.md does not give %s as the default of %s", text, option)
		}
	}
}

// TestDocReferences follows what the documentation points to: links, headings in them, and the tests that are named.
func TestDocReferences(t *testing.T) {
	tests := make(map[string]bool)
	for _, pattern := range []string{"*_test.go", "*/*_test.go", "*/*/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			for _, match := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllStringSubmatch(read(t, file), -1) {
				tests[match[1]] = true
			}
		}
	}
	for _, page := range pages(t) {
		text := read(t, page)
		for _, match := range regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(text, -1) {
			if !tests[match[1]] {
				t.Errorf("%s: there is no %s", page, match[1])
			}
		}
		for _, match := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(text, -1) {
			if !strings.Contains(match[1], "://") {
				checkLink(t, page, match[1])
			}
		}
	}
}

func checkLink(t *testing.T, page, link string) {
	t.Helper()
	file, anchor, _ := strings.Cut(link, "#")
	target := filepath.Join(filepath.Dir(page), file)
	if file == "" {
		target = page
	}
	if _, err := os.Stat(target); err != nil {
		t.Errorf("%s links to %s: %v", page, link, err)
		return
	}
	if anchor == "" {
		return
	}
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(read(t, target), -1) {
		kept := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		if strings.ReplaceAll(kept, " ", "-") == anchor {
			return
		}
	}
	t.Errorf("%s links to %s, which has no such heading", page, link)
}
