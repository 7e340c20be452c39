package pqproxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// frontDoor is the layer4 option of a config whose listener startEdge has opened.
const frontDoor = `
	layer4 {
		pqproxy/127.0.0.1:0 {
			route {
				pqproxy
			}
		}
	}`

// adapt returns the JSON of a Caddyfile with the given global options alone; `$DIR` and the like are
// replaced as in startEdge.
func (e *edge) adapt(options string) []byte {
	e.t.Helper()
	config := `{
		persist_config off
		skip_install_trust
		storage file_system $DIR/storage
		log default {
			output pqproxy_test
			format json
			level DEBUG
		}
		` + options + `
	}`
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(e.expand(config)), nil)
	if err != nil {
		e.t.Fatalf("adapting: %v", err)
	}
	return adapted
}

// loadOptions loads a config of the given global options alone.
func (e *edge) loadOptions(options string) {
	e.t.Helper()
	if err := caddy.Load(e.adapt(options), true); err != nil {
		e.t.Fatalf("loading: %v", err)
	}
}

// stateInForce is the state that the present config shares with those before it.
func stateInForce(t *testing.T) *state {
	t.Helper()
	app, err := caddy.ActiveContext().AppIfConfigured("pqproxy")
	if err != nil {
		t.Fatal(err)
	}
	return app.(*App).state
}

// listeningOn returns the socket of the address that was configured, and the address that it has.
func listeningOn(t *testing.T, configured string) (*listenSocket, string) {
	t.Helper()
	sockets.Lock()
	defer sockets.Unlock()
	s := sockets.byAddress[configured]
	if s == nil {
		t.Fatalf("nothing listens on %s", configured)
	}
	return s, s.ln.Addr().String()
}

// visit makes a connection, exchanges a few bytes and ends it: what a client does that must notice nothing.
// Any goroutine may call it.
func visit(addr string, cfg *tls.Config) error {
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(patience))
	c := tls.Client(raw, cfg)
	if _, err := io.WriteString(c, "visit"); err != nil {
		return fmt.Errorf("handshake or write: %w", err)
	}
	if err := c.CloseWrite(); err != nil {
		return fmt.Errorf("ending: %w", err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "visit" {
		return fmt.Errorf("the echo is %q, %w", got, err)
	}
	return nil
}

// stream sends random bytes that a seed determines and expects them back, all and in order.
type stream struct {
	conn     *tls.Conn
	seed     [32]byte
	bursts   chan struct{} // one for each burst to send; closed at the end
	sent     int
	received int
	err      error
}

const burst = 64 << 10

// send sends until bursts is closed, and then ends the stream.
func (s *stream) send() error {
	random, buf := rand.NewChaCha8(s.seed), make([]byte, burst)
	for range s.bursts {
		_, _ = random.Read(buf)
		n, err := s.conn.Write(buf)
		if s.sent += n; err != nil {
			return err
		}
	}
	return s.conn.CloseWrite()
}

// receive compares what comes back with what send sends, to the end.
func (s *stream) receive() error {
	random, want, got := rand.NewChaCha8(s.seed), make([]byte, burst), make([]byte, burst)
	for {
		n, err := io.ReadFull(s.conn, got)
		if err == io.EOF {
			return nil
		}
		_, _ = random.Read(want)
		if !bytes.Equal(got[:n], want[:n]) {
			return fmt.Errorf("the %d bytes after the first %d are not those that were sent", n, s.received)
		}
		if s.received += n; err != nil {
			return err
		}
	}
}

// run sends and receives; it returns when both have ended.
func (s *stream) run() {
	sending := make(chan error, 1)
	go func() { sending <- s.send() }()
	received := s.receive()
	s.err = errors.Join(received, <-sending)
}

// openFiles is the number of descriptors of this process, or 0 where /proc does not tell.
func openFiles() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	return len(entries)
}

// TestReloads reloads 100 times, each time something real, while four connections carry checksummed data
// both ways and clients come and go. Nobody may notice, the socket stays the same, and
// afterwards there are no more goroutines and descriptors than before.
func TestReloads(t *testing.T) {
	const reloads, streams, visitors = 100, 4, 2
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{
		TLS: &tls.Config{Certificates: []tls.Certificate{e.ca.Issue(t, "app.internal")}},
	})
	reload := func(i int) {
		t.Helper()
		upstream := "upstream " + up.Addr() + " {\ntls_server_name app.internal\ntls_ca $CA\n}\ncertificate $CHAIN $KEY\n"
		extra := ""
		if i%2 == 1 {
			extra = "domain b.example.com {\n" + upstream + "}"
		}
		e.load(fmt.Sprintf("limits {\ngrace_period %ds\n}\ndomain app.example.com {\n%s}\n%s", 20+i%2, upstream, extra))
		s := stateInForce(t)
		if has := !s.table.Load().find("b.example.com").none(); has != (i%2 == 1) || s.settings.Load().limits.GracePeriod != caddy.Duration(20+i%2)*caddy.Duration(time.Second) {
			t.Fatalf("reload %d is not in force", i)
		}
	}
	for i := range 4 { // what is opened once is open now
		reload(i)
	}
	socket, _ := listeningOn(t, "127.0.0.1:0")

	running := make([]*stream, streams)
	var streaming sync.WaitGroup
	for i := range running {
		s := &stream{conn: e.dial(e.client("app.example.com")), seed: [32]byte{byte(i)}, bursts: make(chan struct{}, 1)}
		_ = s.conn.SetDeadline(time.Now().Add(5 * patience))
		running[i] = s
		streaming.Go(s.run)
		s.bursts <- struct{}{}
	}
	live := stateInForce(t)
	settled := func() bool { return len(live.live.list()) == streams }
	if err := visit(e.addr, e.client("app.example.com")); err != nil {
		t.Fatal(err)
	}
	pqtest.Wait(t, "the visitor to be gone", settled)
	goroutines, files := runtime.NumGoroutine(), openFiles()

	stop := make(chan struct{})
	var visits atomic.Int64
	var visiting sync.WaitGroup
	for range visitors {
		visiting.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := visit(e.addr, e.client("app.example.com")); err != nil {
					t.Errorf("a visitor during reloads: %v", err)
					return
				}
				visits.Add(1)
			}
		})
	}
	for i := range reloads {
		for _, s := range running {
			select {
			case s.bursts <- struct{}{}:
			default: // still busy with the last
			}
		}
		reload(i)
	}
	close(stop)
	visiting.Wait()
	pqtest.Wait(t, "the visitors to be gone", settled)
	pqtest.Wait(t, fmt.Sprintf("%d goroutines and %d descriptors as before", goroutines, files), func() bool {
		return runtime.NumGoroutine() <= goroutines && openFiles() <= files
	})

	for _, s := range running {
		close(s.bursts)
	}
	streaming.Wait()
	total := 0
	for i, s := range running {
		if s.err != nil || s.received != s.sent || s.sent == 0 {
			t.Errorf("stream %d sent %d bytes and got back %d: %v", i, s.sent, s.received, s.err)
		}
		total += s.received
		s.conn.Close()
		if r := e.log.recordWhere("bytes_in", float64(s.sent)); r.str("end_reason") != "done" || r.num("bytes_out") != float64(s.sent) {
			t.Errorf("the record of stream %d is %v", i, r)
		}
	}
	if now, _ := listeningOn(t, "127.0.0.1:0"); now != socket {
		t.Error("the socket is another one")
	}
	if visits.Load() < reloads/10 {
		t.Errorf("there were only %d visitors", visits.Load())
	}
	t.Logf("%d visitors and %d bytes each way during %d reloads", visits.Load(), total, reloads)
}

func init() { caddy.RegisterModule(new(failingApp)) }

// failingApp is an app that fails to start.
type failingApp struct{ ctx caddy.Context }

// afterPQProxy says whether the last failingApp was started when our app was already.
var afterPQProxy bool

var errInjected = errors.New("injected failure")

func (*failingApp) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "pqproxy_test_failing", New: func() caddy.Module { return new(failingApp) }}
}

func (a *failingApp) Provision(ctx caddy.Context) error { a.ctx = ctx; return nil }

func (a *failingApp) Start() error {
	app, err := a.ctx.AppIfConfigured("pqproxy")
	if err != nil {
		return err
	}
	s := app.(*App).state
	s.mu.Lock()
	defer s.mu.Unlock()
	afterPQProxy = slices.Contains(s.apps, app.(*App))
	return errInjected
}

func (*failingApp) Stop() error { return nil }

// TestFailedReload loads configs that fail: nothing of them may have any effect, whichever app Caddy starts
// first.
func TestFailedReload(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	domain := func(name string) string {
		return fmt.Sprintf("domain %s {\nupstream %s\ncertificate $CHAIN $KEY\n}\n", name, up.Addr())
	}
	e.load("limits {\nmax_connections 100\n}\n" + domain("app.example.com"))
	c := e.dial(e.client("app.example.com"))
	echo(t, c, "before")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()

	s := stateInForce(t)
	routes, limits := s.table.Load(), s.settings.Load().limits
	check := func(what string, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("%s: the error is %v, want %q", what, err, want)
		}
		if s.table.Load() != routes || s.settings.Load().limits != limits || admission.limit.Load() != 100 {
			t.Errorf("%s: it had an effect", what)
		}
		echo(t, c, what)
		if err := visit(e.addr, e.client("app.example.com")); err != nil {
			t.Errorf("%s: a new connection: %v", what, err)
		}
		if _, err := e.handshake(e.client("b.example.com")); alertOfHandshake(err) != alertUnrecognizedName {
			t.Errorf("%s: its domain answers: %v", what, err)
		}
	}

	next := "limits {\nmax_connections 99\ngrace_period 1ms\n}\n" + domain("b.example.com")
	for _, test := range []struct{ name, option, want string }{
		{"wrong domain", next + strings.ReplaceAll(domain("c.example.com"), up.Addr(), "nowhere"), `domains[1]: domain "c.example.com": upstreams[0].dial: `},
		{"certificate of another name", next + domain("app.example.org"), `domains[1]: domain "app.example.org": certificate`},
		{"missing file", next + strings.ReplaceAll(domain("c.example.com"), "$KEY", "$DIR/none"), "certificate.key_file: open "},
	} {
		check(test.name, e.tryLoad(test.option), test.want)
	}

	config := e.adapt("admin off\n" + frontDoor + "\npqproxy {\n" + next + "}")
	httpTaken := withApp(t, config, "http", map[string]any{
		"servers": map[string]any{"s": map[string]any{"listen": []string{taken.Addr().String()}}},
	})
	check("an http server on a taken address", caddy.Load(httpTaken, true), "address already in use")

	failing := withApp(t, config, "pqproxy_test_failing", struct{}{})
	seen := make(map[bool]bool)
	for range 100 { // Caddy starts apps in random order
		if check("another app fails", caddy.Load(failing, true), errInjected.Error()); seen[true] && seen[false] {
			break
		}
		seen[afterPQProxy] = true
	}
	if !seen[true] || !seen[false] {
		t.Error("the other app always started in the same order")
	}

	e.load(next)
	if err := visit(e.addr, e.client("b.example.com")); err != nil || admission.limit.Load() != 99 {
		t.Errorf("after a config that works: %v", err)
	}
	e.log.recordWhere("end_reason", string(reasonDomainRemoved))
}

// withApp adds an app to a config in JSON.
func withApp(t *testing.T, config []byte, name string, app any) []byte {
	t.Helper()
	return editJSON(t, config, func(apps map[string]any) { apps[name] = app })
}

// addDomain adds a domain to a config in JSON: one of what no Caddyfile can say.
func addDomain(t *testing.T, config []byte, domain any) []byte {
	t.Helper()
	return editJSON(t, config, func(apps map[string]any) {
		app := apps["pqproxy"].(map[string]any)
		app["domains"] = append(app["domains"].([]any), domain)
	})
}

func editJSON(t *testing.T, config []byte, edit func(apps map[string]any)) []byte {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(config, &doc); err != nil {
		t.Fatal(err)
	}
	edit(doc["apps"].(map[string]any))
	config, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// TestConfigWithoutApp loads a config without pqproxy: open connections go on in the background for the grace
// period, and a later config with pqproxy works beside them.
func TestConfigWithoutApp(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	option := func(grace string) string {
		return fmt.Sprintf("limits {\ngrace_period %s\n}\ndomain app.example.com {\nupstream %s\ncertificate $CHAIN $KEY\n}", grace, up.Addr())
	}

	e.load(option("1h"))
	first := pqtest.Dial(t, e.addr, e.client("app.example.com"))
	echo(t, first, "first")
	e.loadOptions("admin off")
	if _, err := net.Dial("tcp", e.addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("without pqproxy, a new connection gets %v", err)
	}
	echo(t, first, "without")

	e.load(option("1ms"))
	_, e.addr = listeningOn(t, "127.0.0.1:0")
	second := pqtest.Dial(t, e.addr, e.client("app.example.com"))
	echo(t, second, "second")
	echo(t, first, "again")
	e.loadOptions("admin off")
	if _, end := pqtest.ReadToEnd(t, second); end != pqtest.RST {
		t.Errorf("after the grace period the connection ended by %s", end)
	}
	if r := e.log.nextRecord(); r.str("end_reason") != "drained" || r.str("closed_by") != "edge" {
		t.Errorf("after the grace period the record is %v", r)
	}

	echo(t, first, "still")
	first.Close()
	if r := e.log.nextRecord(); r.str("end_reason") != "done" || r.num("bytes_in") != float64(len("first"+"without"+"again"+"still")) {
		t.Errorf("the record of the first connection is %v", r)
	}
	e.load(option("1ms"))
	_, e.addr = listeningOn(t, "127.0.0.1:0")
	if err := visit(e.addr, e.client("app.example.com")); err != nil {
		t.Error(err)
	}
}

// TestDomainsLeave removes, suspends and hands over domains: new connections are refused at once, open ones
// end spread over the grace period, and those of other domains go on.
func TestDomainsLeave(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	domain := func(name string, extra ...string) string {
		return fmt.Sprintf("domain %s {\nupstream %s\ncertificate $CHAIN $KEY\n%s\n}\n", name, up.Addr(), strings.Join(extra, "\n"))
	}
	const stays, removed, suspended, handedOver, lasts = "app.example.com", "b.example.com", "s.wild.example.com", "h.wild.example.com", "l.wild.example.com"
	e.load(domain(stays) + domain(removed) + domain(suspended) + domain(handedOver, "tenant before") + domain(lasts))
	open := make(map[string]*tls.Conn)
	for _, name := range []string{stays, removed, suspended, handedOver, lasts} {
		open[name] = pqtest.Dial(t, e.addr, e.client(name))
		echo(t, open[name], name)
	}

	// A long grace period: the end of the connection is somewhere in it.
	e.load("limits {\ngrace_period 240h\n}\n" + domain(stays) + domain(removed) + domain(suspended) + domain(handedOver, "tenant before"))
	if _, err := e.handshake(e.client(lasts)); alertOfHandshake(err) != alertUnrecognizedName {
		t.Errorf("new connection to a removed domain: %v", err)
	}
	echo(t, open[lasts], "grace")

	e.load("limits {\ngrace_period 200ms\n}\n" + domain(stays) + domain(suspended, "suspended") + domain(handedOver, "tenant after"))
	for name, reason := range map[string]endReason{removed: reasonUnknownDomain, suspended: reasonSuspended} {
		if _, err := e.handshake(e.client(name)); alertOfHandshake(err) != alertUnrecognizedName {
			t.Errorf("new connection to %s: %v", name, err)
		}
		r := e.log.take("the refusal of "+name, func(l logLine) bool {
			return l.str("server_name") == name && l.num("bytes_in") == 0
		})
		if r.str("end_reason") != string(reason) || r.str("closed_by") != "edge" {
			t.Errorf("the record of the refusal of %s is %v", name, r)
		}
	}
	if err := visit(e.addr, e.client(handedOver)); err != nil {
		t.Errorf("new connection to a domain that was handed over: %v", err)
	}
	e.log.recordWhere("tenant", "after")
	for name, reason := range map[string]endReason{removed: reasonDomainRemoved, suspended: reasonSuspended, handedOver: reasonDomainRemoved} {
		if _, end := pqtest.ReadToEnd(t, open[name]); end != pqtest.RST {
			t.Errorf("the connection of %s ended by %s", name, end)
		}
		r := e.log.take("the end of "+name, func(l logLine) bool {
			return l.str("server_name") == name && l.num("bytes_in") == float64(len(name))
		})
		if r.str("end_reason") != string(reason) || r.str("closed_by") != "edge" || r.str("domain") != name {
			t.Errorf("the record of %s is %v", name, r)
		}
	}
	echo(t, open[stays], "untouched")
	echo(t, open[lasts], "an end has one date")
}

// TestResumption resumes sessions across reloads: with the same domain of the same owner and policy, and
// nothing else. Whether a session is resumed is what the record says, and what the client saw.
func TestResumption(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	other := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	const tail = "domain b.example.com {\nupstream $UP\ncertificate $CHAIN $KEY\n}\n"
	domain := func(extra string) string {
		return strings.ReplaceAll("domain app.example.com {\nupstream $UP\ncertificate $CHAIN $KEY\n"+extra+"\n}\n"+tail, "$UP", up.Addr())
	}
	connect := func(name string, sessions tls.ClientSessionCache) bool {
		t.Helper()
		c := e.dial(e.client(name, func(cfg *tls.Config) { cfg.ClientSessionCache = sessions }))
		echo(t, c, "tickets come with this")
		c.Close()
		resumed := c.ConnectionState().DidResume
		if r := e.log.nextRecord(); r["resumed"] != resumed || r.str("server_name") != name {
			t.Errorf("client resumed: %v, the record is %v", resumed, r)
		}
		return resumed
	}

	for _, test := range []struct {
		name    string
		reloads []string // between the first connection and the second
		want    bool
	}{
		{"no reload", nil, true},
		{"same domain", []string{"limits {\ngrace_period 1m\n}\n" + domain("")}, true},
		{"other upstream", []string{strings.ReplaceAll(domain(""), up.Addr(), other.Addr())}, true},
		{"another tenant", []string{domain("tenant other")}, false},
		{"another tenant and back", []string{domain("tenant other"), domain("")}, false},
		{"another post_quantum", []string{domain("post_quantum require")}, false},
		{"suspended and back", []string{domain("suspended"), domain("")}, false},
		{"removed and back", []string{strings.ReplaceAll(tail, "$UP", up.Addr()), domain("")}, false},
		{"another pair", []string{strings.NewReplacer("$CHAIN", "$DIR/new.pem", "$KEY", "$DIR/new.key").Replace(domain(""))}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			chain, key := e.ca.PairPEM(t, "app.example.com", "b.example.com")
			writeFile(t, e.dir+"/new.pem", chain)
			writeFile(t, e.dir+"/new.key", key)
			e.load(domain(""))
			sessions := tls.NewLRUClientSessionCache(8)
			if connect("app.example.com", sessions) {
				t.Error("the first connection was resumed")
			}
			for _, option := range test.reloads {
				e.load(option)
			}
			if resumed := connect("app.example.com", sessions); resumed != test.want {
				t.Errorf("the second connection was resumed: %v, want %v", resumed, test.want)
			}
			if !connect("app.example.com", sessions) {
				t.Error("the third connection was not resumed")
			}
		})
	}

	t.Run("another name", func(t *testing.T) {
		e.load(domain(""))
		sessions := &anyName{ClientSessionCache: tls.NewLRUClientSessionCache(8)}
		connect("app.example.com", sessions)
		if connect("b.example.com", sessions) {
			t.Error("a ticket of one name was resumed under another")
		}
		if !connect("b.example.com", sessions) {
			t.Error("the name's own ticket was not resumed")
		}
	})
}

// anyName is a cache of sessions that offers the last one, whatever the server's name.
type anyName struct{ tls.ClientSessionCache }

func (c *anyName) Get(string) (*tls.ClientSessionState, bool) { return c.ClientSessionCache.Get("") }
func (c *anyName) Put(_ string, session *tls.ClientSessionState) {
	c.ClientSessionCache.Put("", session)
}

// TestUpstreamResumption resumes sessions with the upstream, also after a reload.
func TestUpstreamResumption(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{
		TLS: &tls.Config{Certificates: []tls.Certificate{e.ca.Issue(t, "app.internal")}},
	})
	load := func(tenant string) {
		e.load(fmt.Sprintf(`
			domain app.example.com {
				tenant %s
				upstream %s {
					tls_server_name app.internal
					tls_ca $CA
				}
				certificate $CHAIN $KEY
			}`, tenant, up.Addr()))
	}
	connect := func(want bool) {
		t.Helper()
		c := e.dial(e.client("app.example.com"))
		echo(t, c, "tickets come with this")
		c.Close()
		r := e.log.nextRecord()
		if r["upstream_resumed"] != want || up.Next(t).State.DidResume != want || r["upstream_post_quantum"] != true {
			t.Errorf("the record is %v, want upstream_resumed %v", r, want)
		}
	}
	load("acme")
	connect(false)
	connect(true)
	e.loadOptions("admin off\n") // the state goes with the last config that has the app
	load("acme")
	_, e.addr = listeningOn(t, "127.0.0.1:0")
	connect(false)
	load("other") // sessions are a tenant's own
	connect(false)
	e.load(fmt.Sprintf(`
		limits {
			grace_period 1m
		}
		domain app.example.com {
			tenant other
			upstream %s {
				tls_server_name app.internal
				tls_ca $CA
			}
			proxy_protocol off
			certificate $CHAIN $KEY
		}`, up.Addr()))
	connect(true)
}

// builtProxy is the program as users have it.
func builtProxy(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "pqproxy")
	if out, err := exec.Command("go", "build", "-o", bin, "./cmd/pqproxy").CombinedOutput(); err != nil {
		t.Fatalf("building the proxy: %v\n%s", err, out)
	}
	return bin
}

// TestTerminate sends SIGTERM to the built program: it accepts nothing any more, leaves a connection alone that
// ends by itself, cuts off one that does not when the grace period is over, and exits then, with
// the record of each.
func TestTerminate(t *testing.T) {
	const grace = 3 * time.Second
	ca, dir := pqtest.NewCA(t), t.TempDir()
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	chain, key := ca.PairFiles(t, "app.example.com")
	config := filepath.Join(dir, "Caddyfile")
	writeFile(t, config, fmt.Appendf(nil, `{
		admin off
		persist_config off
		storage file_system %s
		log default {
			format json
		}
		%s
		pqproxy {
			limits {
				grace_period %s
			}
			domain app.example.com {
				upstream %s
				certificate %s %s
			}
		}
	}`, dir, frontDoor, grace, up.Addr(), chain, key))
	cmd := exec.Command(builtProxy(t), "run", "--config", config, "--adapter", "caddyfile")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	log := bufio.NewScanner(stderr)
	var text bytes.Buffer
	next := func(msg string) logLine {
		t.Helper()
		for log.Scan() {
			text.WriteString(log.Text() + "\n")
			line := make(logLine)
			if json.Unmarshal(log.Bytes(), &line) == nil && line.str("msg") == msg {
				return line
			}
		}
		t.Fatalf("the log ended before %q:\n%s", msg, text.String())
		return nil
	}

	addr := next("listening").str("address")
	cfg := &tls.Config{ServerName: "app.example.com", RootCAs: ca.Pool()}
	leaves, stays := pqtest.Dial(t, addr, cfg), pqtest.Dial(t, addr, cfg)
	echo(t, leaves, "leaves")
	echo(t, stays, "stays")
	asked := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	pqtest.Wait(t, "the listener to close", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	echo(t, leaves, "goes on")
	leaves.Close()
	if r := next("connection"); r.str("end_reason") != "done" || r.num("bytes_in") != float64(len("leaves"+"goes on")) {
		t.Errorf("the record of the connection that ended by itself is %v", r)
	}
	if _, end := pqtest.ReadToEnd(t, stays); end != pqtest.RST || time.Since(asked) < grace {
		t.Errorf("the other connection ended by %s after %s", end, time.Since(asked))
	}
	if r := next("connection"); r.str("end_reason") != "drained" || r.str("closed_by") != "edge" {
		t.Errorf("the record of the connection that was cut off is %v", r)
	}
	next("shutdown complete")
	if err := cmd.Wait(); err != nil {
		t.Errorf("the process ended with %v:\n%s", err, text.String())
	}
}
