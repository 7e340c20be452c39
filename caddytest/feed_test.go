package caddytest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestFeed runs examples/json-feed: a change of the file is live without a reload and touches no open connection, and
// nothing that happens to the file or to nginx ends a domain that was live.
func TestFeed(t *testing.T) {
	app, api, moved, added := startNamed(t, "app"), startNamed(t, "api"), startNamed(t, "moved"), startNamed(t, "added")
	f := startFeed(t, "", edited(t, "json-feed/domains.json", "10.0.0.5:8080", app, "10.0.0.6:8080", api))
	dir := t.TempDir()
	e := startEdge(t, dir, "Caddyfile", f.caddyfile(t))

	conn := e.open(t, "app.example.com", "app")
	e.live(t, "api.example.com", "api")
	e.unknown(t, "new.example.com")

	f.change(t, document(nil, "app.example.com", moved, "new.example.com", added))
	e.live(t, "new.example.com", "added")
	e.live(t, "app.example.com", "moved")
	e.unknown(t, "api.example.com")
	checkEcho(t, conn)

	stillLive := func(e edge) {
		t.Helper()
		e.live(t, "app.example.com", "moved")
		e.live(t, "new.example.com", "added")
		e.unknown(t, "api.example.com")
	}
	f.change(t, `{"domains":[{"name":"app.example.com",`)
	e.failed(t, "malformed", 0)
	stillLive(e)
	f.change(t, `{"domains":[]}`)
	e.failed(t, "empty", 0)
	stillLive(e)
	f.change(t, document(nil, "app.example.com", moved, "new.example.com", added))
	if _, ok := e.wait(func(line string) bool { return isEvent(line, "pqproxy", "the management URL answers again") }); !ok {
		t.Fatal("the edge does not take the file that is whole again")
	}

	f.stop(t)
	e.failed(t, "unreachable", 0)
	stillLive(e)
	checkEcho(t, conn)

	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	e.stop(t)
	stillLive(startEdge(t, dir, "Caddyfile", f.caddyfile(t)))
}

// TestFeedSigned runs examples/json-feed with the comment signs taken off what signatures need, and the commands of its
// README: what is not signed, or was changed after that, is refused.
func TestFeedSigned(t *testing.T) {
	app, added, elsewhere := startNamed(t, "app"), startNamed(t, "added"), startNamed(t, "elsewhere")
	f := startFeed(t, "# include signature.conf", document(1, "app.example.com", app))
	dir := t.TempDir()
	f.command(t, dir, "keygen")
	config := strings.Replace(f.caddyfile(t), "# verify_key", "verify_key", 1)
	e := startEdge(t, dir, "Caddyfile", config)
	e.failed(t, "signature", 0)
	e.unknown(t, "app.example.com")

	writeFile(t, f.dir, "next.json", document(1, "app.example.com", app))
	f.command(t, dir, "sign")
	e.live(t, "app.example.com", "app")
	writeFile(t, f.dir, "next.json", document(2, "app.example.com", app, "new.example.com", added))
	f.command(t, dir, "sign")
	e.live(t, "new.example.com", "added")

	before := len(e.snapshot())
	f.change(t, document(3, "app.example.com", elsewhere))
	e.failed(t, "signature", before)
	e.live(t, "app.example.com", "app")
	e.live(t, "new.example.com", "added")
}

// TestConfigLoader runs examples/config-loader: Caddy asks it again and again, domains go live and change by that alone,
// and no config is loaded.
func TestConfigLoader(t *testing.T) {
	app, moved, added := startNamed(t, "app"), startNamed(t, "moved"), startNamed(t, "added")
	f := startFeed(t, "", document(nil, "app.example.com", app))
	e := startEdge(t, t.TempDir(), "config.json", edited(t, "config-loader/config.json",
		`"admin": {`, `"admin": {"listen": "127.0.0.1:0",`,
		`"30s"`, `"200ms"`,
		`"http://127.0.0.1:9080/domains.json"`, fmt.Sprintf(`%q, "interval": "1h"`, f.url), // by itself it would ask once
		"pqproxy/:443", "pqproxy/127.0.0.1:0",
		"10.0.0.0/8", "127.0.0.0/8"))
	conn := e.open(t, "app.example.com", "app")

	f.change(t, document(nil, "app.example.com", moved, "new.example.com", added))
	e.live(t, "new.example.com", "added")
	e.live(t, "app.example.com", "moved")
	checkEcho(t, conn)

	asked, started := 0, 0
	for _, line := range e.snapshot() {
		switch {
		case isEvent(line, "config_loader", "dynamically-loaded config was nil; will retry"):
			asked++
		case isEvent(line, "admin", "admin endpoint started"): // each config that is loaded starts it
			started++
		case strings.Contains(line, `"logger":"config_loader"`):
			t.Errorf("Caddy wrote: %s", line)
		}
	}
	if asked == 0 || started != 1 {
		t.Errorf("Caddy asked the loader %d times and loaded %d configs, want several and one", asked, started)
	}
}

// example returns a file of examples/.
func example(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", "examples", file))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// edited returns a file of examples/ with some of its texts, each of which must be there once, replaced by others.
func edited(t *testing.T, file string, pairs ...string) string {
	t.Helper()
	content := example(t, file)
	for i := 0; i < len(pairs); i += 2 {
		if n := strings.Count(content, pairs[i]); n != 1 {
			t.Fatalf("%s has %q %d times, want once", file, pairs[i], n)
		}
		content = strings.Replace(content, pairs[i], pairs[i+1], 1)
	}
	return content
}

// document is a set of domains with a revision, if that is not nil, from pairs of a name and an upstream.
func document(revision any, pairs ...string) string {
	set := map[string]any{}
	if revision != nil {
		set["revision"] = revision
	}
	var domains []any
	for i := 0; i < len(pairs); i += 2 {
		domains = append(domains, map[string]any{
			"name":        pairs[i],
			"upstreams":   []any{map[string]any{"dial": pairs[i+1]}},
			"certificate": map[string]any{"source": "internal"},
		})
	}
	set["domains"] = domains
	encoded, err := json.Marshal(set)
	if err != nil {
		panic(err)
	}
	return string(encoded)
}

// startNamed runs an upstream that says its name, then echoes, and returns its address.
func startNamed(t *testing.T, name string) string {
	t.Helper()
	return pqtest.StartUpstream(t, pqtest.UpstreamConfig{Handler: func(c *pqtest.UpstreamConn) {
		if _, err := io.WriteString(c, name+"\n"); err == nil {
			pqtest.Echo(c)
		}
	}}).Addr()
}

// feed is nginx with the configuration of examples/json-feed.
type feed struct {
	*process
	dir string // with its files
	url string
}

// startFeed runs nginx with a domains.json. The comment sign in front of uncomment, if that is not empty, is taken off
// in nginx.conf, and the file that it includes is empty at first.
//
// nginx makes the ETag of the file's time in seconds and its size, so that a test that changes the file within a
// second has to change its size too.
func startFeed(t *testing.T, uncomment, domains string) *feed {
	t.Helper()
	socket, addr := listen(t)
	f := &feed{dir: t.TempDir(), url: "http://" + addr + "/domains.json"}
	config := edited(t, "json-feed/nginx.conf", "127.0.0.1:9080", addr)
	if uncomment != "" {
		config = strings.Replace(config, uncomment, strings.TrimPrefix(uncomment, "# "), 1)
		writeFile(t, f.dir, "signature.conf", "")
	}
	writeFile(t, f.dir, "nginx.conf", config)
	writeFile(t, f.dir, "domains.json", domains)

	const command = `nginx -e stderr -p "$dir" -c nginx.conf`
	if !strings.Contains(example(t, "json-feed/README.md"), "\n"+command+"\n") {
		t.Errorf("the README does not start nginx with %s", command)
	}
	settings := "daemon off;"
	if os.Getuid() == 0 {
		settings += " user root;" // the test's folder is for its user alone
	}
	cmd := exec.Command(peer(t, "nginx"), "-e", "stderr", "-p", f.dir, "-c", "nginx.conf", "-g", settings)
	cmd.Env = append(cmd.Environ(), "NGINX=3;") // as startNginx does
	cmd.ExtraFiles = []*os.File{socket}
	f.process = start(t, "nginx", cmd, syscall.SIGTERM)
	socket.Close()
	return f
}

// caddyfile is that of examples/json-feed for this feed.
func (f *feed) caddyfile(t *testing.T) string {
	t.Helper()
	return edited(t, "json-feed/Caddyfile",
		"\tlayer4 {", "\tadmin off\n\tlayer4 {",
		"pqproxy/:443", "pqproxy/127.0.0.1:0",
		"http://127.0.0.1:9080/domains.json", f.url,
		"interval 20s", "interval 1s",
		"10.0.0.0/8", "127.0.0.0/8")
}

// change replaces domains.json with the commands of the README, the editor being a program that writes content.
func (f *feed) change(t *testing.T, content string) {
	t.Helper()
	file := writeFile(t, t.TempDir(), "edited.json", content)
	f.command(t, f.dir, "EDITOR", "EDITOR=cp "+file)
}

// command runs that block of the README's commands which has a word.
func (f *feed) command(t *testing.T, dir, word string, env ...string) {
	t.Helper()
	bin, err := pqproxy()
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(example(t, "json-feed/README.md"), -1) {
		if !regexp.MustCompile(`\b` + word + `\b`).MatchString(block[1]) {
			continue
		}
		path := strings.Join([]string{filepath.Dir(bin), filepath.Dir(peer(t, "nginx")), os.Getenv("PATH")}, ":")
		env = append(env, "dir="+f.dir, "PATH="+path)
		run(t, env, "", "/bin/sh", "-e", "-c", `cd "$1"`+"\n"+block[1], "sh", dir)
		return
	}
	t.Fatalf("the README has no command with %s", word)
}

// edge is a proxy whose domains come from a feed.
type edge struct {
	*proxy
	dir string // its folder, home and storage
}

// startEdge runs the binary in a folder on a config, and waits until it listens.
func startEdge(t *testing.T, dir, name, config string) edge {
	t.Helper()
	e := launchEdge(t, dir, name, config)
	e.listens(t)
	return e
}

// launchEdge is startEdge without waiting.
func launchEdge(t *testing.T, dir, name, config string) edge {
	t.Helper()
	bin, err := pqproxy()
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, name, config)
	cmd := exec.Command(bin, "run", "--config", name)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	return edge{dir: dir, proxy: &proxy{process: start(t, "pqproxy", cmd, syscall.SIGTERM)}}
}

// listens waits until the edge listens, and notes where.
func (e edge) listens(t *testing.T) {
	t.Helper()
	var listening struct {
		Address string `json:"address"`
	}
	line, ok := e.wait(func(line string) bool { return isEvent(line, "pqproxy", "listening") })
	if !ok {
		t.Fatal("the proxy does not listen")
	}
	if err := json.Unmarshal([]byte(line), &listening); err != nil {
		t.Fatal(err)
	}
	e.addr = listening.Address
}

// dial connects to a name, which the root of Caddy's local CA must vouch for.
func (e edge) dial(t *testing.T, name string) (*tls.Conn, error) {
	t.Helper()
	root, err := os.ReadFile(filepath.Join(e.dir, "caddy", "pki", "authorities", "local", "root.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(root) {
		t.Fatal("the root is no certificate")
	}
	return pqtest.TryDial(t, e.addr, &tls.Config{ServerName: name, RootCAs: roots})
}

// live waits until a name is served, by the upstream given.
func (e edge) live(t *testing.T, name, upstream string) {
	t.Helper()
	if err := e.open(t, name, upstream).Close(); err != nil {
		t.Error(err)
	}
}

// open is live and returns the connection.
func (e edge) open(t *testing.T, name, upstream string) *tls.Conn {
	t.Helper()
	var conn *tls.Conn
	pqtest.Wait(t, name+" to be live", func() (ok bool) {
		var err error
		conn, err = e.dial(t, name)
		return err == nil
	})
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, len(upstream)+1)
	if _, err := io.ReadFull(conn, said); err != nil || string(said) != upstream+"\n" {
		t.Fatalf("%s leads to an upstream that says %q, %v, want %s", name, said, err, upstream)
	}
	checkEcho(t, conn)
	return conn
}

// unknown connects to a name that the edge must not know.
func (e edge) unknown(t *testing.T, name string) {
	t.Helper()
	if _, err := e.dial(t, name); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a handshake for %s ends with %v, want the alert unrecognized_name", name, err)
	}
}

// failed waits for a poll to fail with that result, among the lines after the first so many.
func (e edge) failed(t *testing.T, result string, after int) {
	t.Helper()
	_, ok := e.wait(func(line string) bool {
		if after--; after >= 0 {
			return false
		}
		return isEvent(line, "pqproxy", "polling the management URL: what was served before goes on being served") &&
			strings.Contains(line, fmt.Sprintf(`"result":%q`, result))
	})
	if !ok {
		t.Fatalf("no poll fails with %s", result)
	}
}
