package pqproxy

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// patience bounds every wait of a test on a condition. It is long because it is met only by failures.
const patience = 20 * time.Second

// edge is Caddy with the app, in this process, on a socket that the kernel chose. There is one at a time.
type edge struct {
	t     testing.TB
	ca    *pqtest.CA
	dir   string
	addr  string
	log   *logLines
	admin string // the admin option of its configs
}

// startEdge runs Caddy with a `pqproxy` option of the given content, and one layer4 server whose route has
// the given handlers (default: pqproxy). `$DIR` in either is a folder of the test's own, `$CHAIN` and
// `$KEY` name a pair for app.example.com, b.example.com and *.wild.example.com, `$CA` the CA's file.
func startEdge(t testing.TB, option string, handlers ...string) *edge {
	t.Helper()
	return startEdgeWith(t, "off", option, handlers...)
}

// startAdminEdge is startEdge with an admin endpoint, which api asks.
func startAdminEdge(t testing.TB, option string) *edge {
	t.Helper()
	return startEdgeWith(t, "unix/$DIR/admin.sock", option)
}

func startEdgeWith(t testing.TB, admin, option string, handlers ...string) *edge {
	t.Helper()
	e := &edge{t: t, ca: pqtest.NewCA(t), dir: tempDir(t), log: collectLog(t), admin: admin}
	t.Cleanup(func() {
		if admin != "off" { // which Stop leaves running
			if err := caddy.Load([]byte(`{"admin":{"disabled":true,"config":{"persist":false}}}`), true); err != nil {
				t.Errorf("stopping the admin endpoint: %v", err)
			}
		}
		if err := caddy.Stop(); err != nil {
			t.Errorf("stopping Caddy: %v", err)
		}
		drains.Wait()
	})
	e.load(option, handlers...)
	<-inForce.Load().certs.started // or what starts a moment later looks like a leak of the subtest that comes first
	sockets.Lock()
	defer sockets.Unlock()
	e.addr = sockets.byAddress["127.0.0.1:0"].ln.Addr().String()
	return e
}

// tempDir is t.TempDir without its failure where something is left: Caddy's own certificate maintenance may write to
// its storage for a moment after Caddy has stopped.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pqproxy-test-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// load loads a config as startEdge does: a reload.
func (e *edge) load(option string, handlers ...string) {
	e.t.Helper()
	if err := e.tryLoad(option, handlers...); err != nil {
		e.t.Fatalf("loading: %v", err)
	}
}

func (e *edge) tryLoad(option string, handlers ...string) error {
	e.t.Helper()
	if len(handlers) == 0 {
		handlers = []string{"pqproxy"}
	}
	if !strings.Contains(option, "issuer ") { // the default one is on the Internet
		option += "\nissuer acme https://127.0.0.1:1/directory"
	}
	config := `{
		admin ` + e.admin + `
		persist_config off
		skip_install_trust
		storage file_system $DIR/storage
		log default {
			output pqproxy_test
			format json
			level {$PQPROXY_TEST_LEVEL:DEBUG}
		}
		layer4 {
			pqproxy/127.0.0.1:0 {
				route {
					` + strings.Join(handlers, "\n") + `
				}
			}
		}
		pqproxy {
			` + option + `
		}
	}`
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(e.expand(config)), nil)
	if err != nil {
		return err
	}
	return caddy.Load(adapted, true)
}

// expand replaces $DIR, $CA, $CHAIN and $KEY.
func (e *edge) expand(text string) string {
	if strings.Contains(text, "$CHAIN") {
		chain, key := e.dir+"/chain.pem", e.dir+"/key.pem"
		if _, err := os.Stat(chain); err != nil {
			c, k := e.ca.PairPEM(e.t, "app.example.com", "b.example.com", "*.wild.example.com")
			writeFile(e.t, chain, c)
			writeFile(e.t, key, k)
		}
		text = strings.NewReplacer("$CHAIN", chain, "$KEY", key).Replace(text)
	}
	if strings.Contains(text, "$CA") {
		writeFile(e.t, e.dir+"/ca.pem", e.ca.PEM())
		text = strings.ReplaceAll(text, "$CA", e.dir+"/ca.pem")
	}
	return strings.ReplaceAll(text, "$DIR", e.dir)
}

func writeFile(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// client returns a TLS config for a host name of the edge.
func (e *edge) client(serverName string, change ...func(*tls.Config)) *tls.Config {
	cfg := &tls.Config{ServerName: serverName, RootCAs: e.ca.Pool()}
	for _, c := range change {
		c(cfg)
	}
	return cfg
}

// dialTCP opens a connection to the edge without TLS.
func (e *edge) dialTCP() *net.TCPConn {
	e.t.Helper()
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// handshake connects to the edge and returns the connection, or the handshake's error.
func (e *edge) handshake(cfg *tls.Config) (*tls.Conn, error) {
	e.t.Helper()
	return pqtest.TryDial(e.t, e.addr, cfg)
}

// dial connects to the edge and completes the handshake.
func (e *edge) dial(cfg *tls.Config) *tls.Conn {
	e.t.Helper()
	return pqtest.Dial(e.t, e.addr, cfg)
}

// echo sends a text and expects it back.
func echo(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatalf("writing: %v", err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("reading the echo: %v", err)
	}
	if string(got) != text {
		t.Fatalf("echo is %q, want %q", got, text)
	}
}

// alertOfHandshake returns the number of the alert that ended a handshake, or 0.
func alertOfHandshake(err error) int {
	for alert := 1; alert < 256; alert++ {
		if err != nil && strings.Contains(err.Error(), "remote error: "+tls.AlertError(alert).Error()) {
			return alert
		}
	}
	return 0
}

// logLine is one line of Caddy's log.
type logLine map[string]any

func (l logLine) str(key string) string { s, _ := l[key].(string); return s }
func (l logLine) num(key string) float64 {
	n, _ := l[key].(float64)
	return n
}

// logLines collects what Caddy logs during one test.
type logLines struct {
	t     testing.TB
	mu    sync.Mutex
	more  *sync.Cond
	lines []logLine
	raw   bytes.Buffer
	taken map[int]bool
}

// nextRecord returns the next connection record, in the order in which connections ended.
func (l *logLines) nextRecord() logLine {
	l.t.Helper()
	return l.take("a connection record", func(line logLine) bool { return line.str("msg") == "connection" })
}

// recordWhere returns a connection record that has not been returned yet and has the value.
func (l *logLines) recordWhere(key string, want any) logLine {
	l.t.Helper()
	return l.take(fmt.Sprintf("a connection record with %s=%v", key, want), func(line logLine) bool {
		return line.str("msg") == "connection" && line[key] == want
	})
}

// message returns a line of that message that has not been returned yet.
func (l *logLines) message(msg string) logLine {
	l.t.Helper()
	return l.take("message "+msg, func(line logLine) bool { return strings.Contains(line.str("msg"), msg) })
}

// take waits for a line that satisfies want, and takes it.
func (l *logLines) take(what string, want func(logLine) bool) logLine {
	l.t.Helper()
	expired := false
	timer := time.AfterFunc(patience, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		expired = true
		l.more.Broadcast()
	})
	defer timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for i, line := range l.lines {
			if !l.taken[i] && want(line) {
				l.taken[i] = true
				return line
			}
		}
		if expired {
			l.t.Fatalf("waited for %s in vain; the log:\n%s", what, l.raw.String())
		}
		l.more.Wait()
	}
}

// all returns the lines so far that satisfy want, taken or not.
func (l *logLines) all(want func(logLine) bool) []logLine {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []logLine
	for _, line := range l.lines {
		if want(line) {
			lines = append(lines, line)
		}
	}
	return lines
}

// text returns the whole log so far.
func (l *logLines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.raw.String()
}

// currentLog is where testWriter writes.
var currentLog struct {
	sync.Mutex
	*logLines
}

func collectLog(t testing.TB) *logLines {
	l := &logLines{t: t, taken: make(map[int]bool)}
	l.more = sync.NewCond(&l.mu)
	currentLog.Lock()
	defer currentLog.Unlock()
	currentLog.logLines = l
	return l
}

func init() { caddy.RegisterModule(testWriter{}) }

// testWriter is a log writer module for tests.
type testWriter struct{}

func (testWriter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.pqproxy_test", New: func() caddy.Module { return new(testWriter) }}
}
func (testWriter) String() string                                   { return "pqproxy_test" }
func (testWriter) WriterKey() string                                { return "pqproxy_test" }
func (testWriter) OpenWriter() (io.WriteCloser, error)              { return testWriter{}, nil }
func (testWriter) Close() error                                     { return nil }
func (*testWriter) UnmarshalCaddyfile(d *caddyfile.Dispenser) error { d.Next(); return nil }

func (testWriter) Write(p []byte) (int, error) {
	currentLog.Lock()
	l := currentLog.logLines
	currentLog.Unlock()
	if l == nil {
		return len(p), nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.raw.Write(p)
	line := make(logLine)
	if err := json.Unmarshal(p, &line); err == nil {
		l.lines = append(l.lines, line)
		l.more.Broadcast()
	}
	return len(p), nil
}
