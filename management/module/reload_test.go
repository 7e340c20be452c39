package module

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

const ownToken = "setup_token {env.SETUP_TOKEN}"

// hold begins a request of an edge that waits for a change, and returns its answer to come.
func (p *plane) hold(token http.Header, st *state) <-chan answer {
	p.t.Helper()
	now := p.askWith(p.edge, "GET", "/v1/edge/domains", nil, token)
	if now.status != http.StatusOK {
		p.t.Fatalf("the feed: %d %s", now.status, now.text)
	}
	header := token.Clone()
	header.Set("If-None-Match", now.header.Get("ETag"))
	header.Set("Prefer", "wait=50")
	serving := st.serving.Load()
	pqtest.Wait(p.t, "the first request to have ended", func() bool { return requests(serving) == 0 }) // its answer came a little before that
	got := make(chan answer, 1)
	go func() { got <- p.askWith(p.edge, "GET", "/v1/edge/domains", nil, header) }()
	pqtest.Wait(p.t, "the edge's request to be held", func() bool {
		return requests(serving) == 1
	})
	return got
}

// requests returns how many the service has.
func requests(s *service) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// came returns the answer of hold.
func came(t *testing.T, got <-chan answer) answer {
	t.Helper()
	select {
	case a := <-got:
		return a
	case <-time.After(pqtest.Timeout):
		t.Fatal("the edge's request is not answered")
		return answer{}
	}
}

// TestReloadUnchanged reloads a config that has changed elsewhere: the service, what it remembers and whom it holds stay.
func TestReloadUnchanged(t *testing.T) {
	p := newPlane(t)
	first := p.start(ownToken)
	p.setUp()
	token := p.edgeToken()
	guess := map[string]any{"email": "ops@example.com", "password": "a wrong password of some length"}
	for status := 0; status != http.StatusTooManyRequests; {
		if status = p.ask(p.public, "POST", "/v1/sessions", guess).status; status != http.StatusUnauthorized && status != http.StatusTooManyRequests {
			t.Fatalf("a wrong password is answered %d", status)
		}
	}
	held := p.hold(token, first)

	p.load(ownToken, "grace_period 1m")
	if inForce(t) != first {
		t.Error("the reload began another service")
	}
	if guessed := p.ask(p.public, "POST", "/v1/sessions", guess); guessed.status != http.StatusTooManyRequests {
		t.Errorf("after the reload guesses are answered %d %s", guessed.status, guessed.text)
	}
	select {
	case a := <-held:
		t.Errorf("the reload ended the edge's request: %d %s", a.status, a.text)
	default:
	}
	p.must(http.StatusCreated, "POST", "/v1/domains", map[string]any{"name": "app.example.com", "upstreams": []any{map[string]any{"dial": "origin.example.net:443"}}})
	if a := came(t, held); a.status != http.StatusOK || !strings.Contains(a.text, "app.example.com") {
		t.Errorf("the edge's request is answered %d %s", a.status, a.text)
	}
	if n, _ := states.References(first.key); n != 1 {
		t.Errorf("%d configs have the service", n)
	}
}

// TestReloadChanged changes an option: the new service runs when the old one ends, and whoever waits for a change there is sent
// over at once, since the old one would not hear of it.
func TestReloadChanged(t *testing.T) {
	p := newPlane(t)
	first := p.start(ownToken)
	p.setUp()
	held := p.hold(p.edgeToken(), first)

	second := p.start(ownToken + "\nclient_ip prefix")
	if second == first {
		t.Fatal("the change began no other service")
	}
	if a := came(t, held); a.status != http.StatusNotModified || a.header.Get("Preference-Applied") == "" {
		t.Errorf("the edge's request is answered %d %v, want 304 at once", a.status, a.header)
	}
	pqtest.Wait(t, "the old service to end", func() bool { return first.serving.Load() == nil })
	if me := p.must(http.StatusOK, "GET", "/v1/me", nil); me.body["platform"] != true {
		t.Errorf("the key is known as %s", me.text)
	}
	if _, known := states.References(first.key); known {
		t.Error("the old service is still in use")
	}
}

// TestReloadStream has a stream of events open, which has no end of its own: the old service ends all the same, and ends it.
func TestReloadStream(t *testing.T) {
	shorten(t)
	p := newPlane(t)
	first := p.start(ownToken)
	p.setUp()
	stream := make(chan answer, 1)
	go func() { stream <- p.ask(p.public, "GET", "/v1/connections/tail", nil) }()
	pqtest.Wait(t, "the stream", func() bool {
		return requests(first.serving.Load()) == 1
	})
	p.start(ownToken + "\nrate_limit 7")
	if a := came(t, stream); !strings.HasPrefix(a.text, ": records follow") {
		t.Errorf("the stream was %d %s", a.status, a.text)
	}
	pqtest.Wait(t, "the old service to end", func() bool { return first.serving.Load() == nil })
	p.log.wait(t, "requests were cut off")
}

// TestReloadFails loads configs in which another app does not start: what ran goes on, unchanged or not, and logs.
func TestReloadFails(t *testing.T) {
	p := newPlane(t)
	first := p.start(ownToken)
	p.setUp()
	held := p.hold(p.edgeToken(), first)
	for _, options := range []string{ownToken, ownToken + "\nrate_limit 7"} {
		if err := p.failingLoad(options); err == nil || !strings.Contains(err.Error(), "this app fails") {
			t.Fatalf("loading ended with %v", err)
		}
		if inForce(t) != first {
			t.Error("another service is in force")
		}
		if n, _ := states.References(first.key); n != 1 {
			t.Errorf("%d configs have the service", n)
		}
		p.must(http.StatusOK, "GET", "/v1/me", nil)
	}
	p.must(http.StatusCreated, "POST", "/v1/domains", map[string]any{"name": "app.example.com", "upstreams": []any{map[string]any{"dial": "origin.example.net:443"}}})
	if a := came(t, held); a.status != http.StatusOK {
		t.Errorf("the edge's request is answered %d %s", a.status, a.text)
	}
	n := 0
	states.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d services are in use", n)
	}

	// The first config of all may fail as well: what it began ends without a Stop.
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.failingLoad(ownToken); err == nil {
		t.Fatal("the config is accepted")
	}
	running.Wait()
}

func (p *plane) failingLoad(options string) error {
	config := p.config(options)
	apps := config["apps"].(map[string]any)
	apps["management_failing"] = map[string]any{}
	delete(apps, "http") // whose unix sockets do not outlive a load that fails
	return p.loadJSON(config)
}

// TestRemoval loads a config without the management plane.
func TestRemoval(t *testing.T) {
	p := newPlane(t)
	first := p.start(ownToken)
	p.setUp()
	held := p.hold(p.edgeToken(), first)
	if err := caddy.Load([]byte(`{"admin":{"disabled":true,"config":{"persist":false}}}`), true); err != nil {
		t.Fatal(err)
	}
	if a := came(t, held); a.status != http.StatusNotModified {
		t.Errorf("the edge's request is answered %d %s", a.status, a.text)
	}
	running.Wait()
	if first.serving.Load() != nil {
		t.Error("it still serves")
	}
}

// TestReloads reloads 50 times, every other time with a change: nothing is left of it but one service, and no request is told
// that there is none.
func TestReloads(t *testing.T) {
	p := newPlane(t)
	pqtest.Leaks(t)
	t.Cleanup(func() { // before what Leaks counts
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		running.Wait()
	})
	p.start(ownToken)
	p.setUp()

	var asking sync.WaitGroup
	var done atomic.Bool
	var n atomic.Int64
	asking.Go(func() {
		for !done.Load() {
			switch a := p.ask(p.public, "GET", "/v1/setup", nil); a.status {
			case http.StatusOK:
				n.Add(1)
			case 0: // a server of Caddy that ends may close what it has just accepted
			default:
				t.Errorf("a request in the middle of a reload: %d %s", a.status, a.text)
				return
			}
		}
	})
	for i := range 50 {
		p.load(fmt.Sprintf("%s\nrate_limit %d", ownToken, 1000+i/2), fmt.Sprintf("grace_period %dm", i+1))
	}
	done.Store(true)
	asking.Wait()
	if n.Load() == 0 {
		t.Error("no request was made")
	}
}

// newApp returns an App as Caddy provisions it, with these settings.
func newApp(t *testing.T) *App {
	t.Helper()
	a := &App{SetupToken: "{env.SETUP_TOKEN}", log: zap.NewNop(), started: make(chan struct{})}
	var err error
	if a.settings, err = a.resolve(caddy.NewReplacer()); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestCleanupWithoutStop: Caddy calls Cleanup alone where the start of a config fails.
func TestCleanupWithoutStop(t *testing.T) {
	newPlane(t)
	pqtest.Leaks(t)
	never := newApp(t)
	if err := never.Cleanup(); err != nil {
		t.Error(err)
	}
	a := newApp(t)
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.Cleanup(); err != nil {
			t.Error(err)
		}
	}
	running.Wait()
	if _, known := states.References(a.held.key); known {
		t.Error("the service is still in use")
	}
}

// TestServerBeforeApp: Caddy starts apps in any order, and stops them in any order. Requests that come before the management
// plane has started wait for it, and those to the old config's servers, when it has stopped there, are answered.
func TestServerBeforeApp(t *testing.T) {
	newPlane(t)
	a := newApp(t)
	handler := &Handler{Face: publicFace, app: a}
	ask := func(r *http.Request) int {
		w := httptest.NewRecorder()
		if err := handler.ServeHTTP(w, r, nil); err != nil {
			t.Error(err)
		}
		return w.Code
	}
	if status := ask(httptest.NewRequest("GET", "/healthz", nil)); status != http.StatusOK {
		t.Errorf("/healthz: %d", status)
	}
	gone := httptest.NewRequest("GET", "/v1/setup", nil).WithContext(canceled())
	if status := ask(gone); status != http.StatusServiceUnavailable {
		t.Errorf("a request that was given up: %d", status)
	}

	early := make(chan int, 1)
	go func() { early <- ask(httptest.NewRequest("GET", "/v1/setup", nil)) }()
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	if status := <-early; status != http.StatusOK {
		t.Errorf("a request before the start: %d", status)
	}

	next := newApp(t)
	if err := next.Start(); err != nil {
		t.Fatal(err)
	}
	for _, end := range []func() error{a.Stop, a.Cleanup} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if status := ask(httptest.NewRequest("GET", "/v1/setup", nil)); status != http.StatusOK {
			t.Errorf("a request to a server of the old config: %d", status)
		}
	}
	changed := newApp(t)
	changed.settings.fingerprint += " changed"
	if err := changed.Start(); err != nil {
		t.Fatal(err)
	}
	if err := next.Cleanup(); err != nil {
		t.Fatal(err)
	}
	pqtest.Wait(t, "the old service to end", func() bool { return a.held.serving.Load() == nil })
	if status := ask(httptest.NewRequest("GET", "/v1/setup", nil)); status != http.StatusOK {
		t.Errorf("a request to a server of the old config, whose service has ended: %d", status)
	}
	if err := changed.Cleanup(); err != nil {
		t.Fatal(err)
	}
	running.Wait()
	if status := ask(httptest.NewRequest("GET", "/v1/setup", nil)); status != http.StatusServiceUnavailable {
		t.Errorf("a request after the end: %d", status)
	}
}

// TestLogs: the service writes to the log of the config in force. A config's own is closed with it.
func TestLogs(t *testing.T) {
	p := newPlane(t)
	p.start(ownToken)
	elsewhere := p.dir + "/other.log"
	config := p.config(ownToken)
	config["logging"] = map[string]any{"logs": map[string]any{"default": map[string]any{"writer": map[string]any{"output": "file", "filename": elsewhere}}}}
	if err := p.loadJSON(config); err != nil {
		t.Fatal(err)
	}
	inForce(t).log.With("a", 1).WithGroup("g").Info("said after the reload", "b", 2)
	text, err := os.ReadFile(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "said after the reload") || !strings.Contains(string(text), `"logger":"pqproxy_management"`) ||
		!strings.Contains(string(text), `"a":1`) || !strings.Contains(string(text), `"g":{"b":2}`) {
		t.Errorf("the new log has\n%s", text)
	}
	p.load(ownToken)
	inForce(t).log.Info("said after another")
	p.log.wait(t, "said after another")
}
