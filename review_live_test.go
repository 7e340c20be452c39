package pqproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/keptset"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestLongRecords: a record that was short enough as it came, and is not in normal form, could not be read back. Whoever did
// so panicked: with health_check, or with an open connection when it was applied, that ended the process.
func TestLongRecords(t *testing.T) {
	s := newTestState(t)
	ca := string(pqtest.NewCA(t).PEM())
	text, err := json.Marshal(map[string]any{"name": "a.example.com", "health_check": map[string]any{}, "upstreams": []any{
		map[string]any{"dial": "192.0.2.1:443", "tls": map[string]any{"ca_pem": ca + strings.Repeat("\t", 500_000)}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := domain.Parse(text, domain.Remote)
	if err != nil {
		t.Fatal(err)
	}
	c := s.newChangeSet(rankRemote, false, nil)
	if err := c.put(d); err == nil || !strings.Contains(err.Error(), "shorten") {
		t.Errorf("a record that would not be read from the kept set is taken: %v", err)
	}

	// What the files of a static domain hold may be as long as it likes.
	d.Upstreams[0].TLS.CAFile = "/etc/ssl/ca.pem"
	static := s.newChangeSet(rankStatic, true, nil)
	if err := static.put(d); err != nil {
		t.Fatal(err)
	}
	s.apply(static, nil)
	if r := s.routeOf(s.table.Load().named(d.Name)); r.Upstreams[0].TLS.CAPEM != d.Upstreams[0].TLS.CAPEM {
		t.Error("a static domain is not what it was")
	}
}

// TestRejectsMended counts what is not in force: a record that a change of the set mends was counted for good.
func TestRejectsMended(t *testing.T) {
	m := startManaged(t)
	bad := func(name string) string { return m.record(name, "upstreams", `[{"dial":"10.0.0.1:80"}]`) }
	want := func(count int) {
		t.Helper()
		if got := inForce.Load().rejected(); got.Count != count || len(got.List) != count {
			t.Errorf("rejected are %+v, want %d", got, count)
		}
	}
	m.plane.set(numbered(1, 0, "", m.record("a.example.com"), bad("b.example.com"), bad("c.example.com")))
	m.want(syncApplied, "")
	want(2)
	m.plane.set(numbered(2, 1, "", bad("b.example.com")))
	m.want(syncApplied, "")
	want(2)
	m.plane.set(numbered(3, 2, `"c.example.com"`, m.record("b.example.com")))
	m.want(syncApplied, "")
	want(0)
}

// TestURLsRevisions: revisions are each URL's own. Those of another URL were refused as too old.
func TestURLsRevisions(t *testing.T) {
	m := startManaged(t)
	first, other := m.plane, startPlane(t)
	first.set(numbered(10, 0, "", m.record("a.example.com")))
	m.want(syncApplied, "")
	other.set(numbered(3, 0, "", m.record("b.example.com")))
	m.plane = other
	m.load(m.option())
	pqtest.Wait(t, "the other URL's set", func() bool { return m.serves("b.example.com") })
	first.set(numbered(9, 0, "", m.record("a.example.com")))
	m.plane = first
	m.load(m.option())
	pqtest.Wait(t, "the first URL to be refused", func() bool {
		last := inForce.Load().syncStatus().Last
		return last != nil && last.Result == syncRollback
	})
	other.set(numbered(2, 0, "", m.record("a.example.com")))
	m.plane = other
	m.load(m.option())
	m.want(syncRollback, "older than 3")
}

// TestURLChangedBack returns to a URL whose set was kept. That was laid over the other URL's, whose domains then stayed for
// good, since the server says that nothing has changed.
func TestURLChangedBack(t *testing.T) {
	m := startManaged(t)
	a := m.record("a.example.com")
	first, other := m.plane, startPlane(t)
	first.set(numbered(1, 0, "", a), "ETag", `"one"`)
	m.want(syncApplied, "")
	other.set(numbered(1, 0, "", m.record("b.example.com")))
	m.plane = other
	m.load(m.option())
	pqtest.Wait(t, "the other URL's set", func() bool { return m.serves("b.example.com") })

	down := true
	first.answers(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case down:
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.Header.Get("If-None-Match") == `"one"`:
			w.WriteHeader(http.StatusNotModified)
		default:
			_, _ = io.WriteString(w, numbered(1, 0, "", a))
		}
	})
	m.plane = first
	m.load(m.option())
	m.want("status", "503")
	if !m.serves("b.example.com") || m.serves("a.example.com") {
		t.Error("a URL that does not answer has an effect")
	}
	first.mu.Lock()
	down = false
	first.mu.Unlock()
	m.sync()
	if m.serves("b.example.com") || !m.serves("a.example.com") {
		t.Error("what is served is not the URL's set")
	}
}

// TestEmptyChange: a change of nothing, as a server that holds no requests answers, is none: it was kept anew each time,
// and where the server said that it had waited it was asked again without a pause.
func TestEmptyChange(t *testing.T) {
	m := startManaged(t)
	m.plane.set(numbered(5, 0, "", m.record("a.example.com")))
	m.want(syncApplied, "")
	m.plane.set(`{"revision":5,"base":5,"domains":[]}`, "Preference-Applied", "wait", "ETag", `"five"`)
	m.want(syncUnchanged, "")
	m.want(syncUnchanged, "")
	if got := m.plane.last().Header.Get("If-None-Match"); got != `"five"` {
		t.Errorf("If-None-Match is %s", got)
	}
	m.plane.set(`{"revision":6,"base":5,"domains":[]}`)
	if report := m.want(syncApplied, ""); report.Revision.revision != 6 {
		t.Errorf("reported %+v", report)
	}
}

// TestAcceptRevisionOnce: what an operator allows for one poll holds for that one alone. It stayed, where the poll failed or
// met the set that was in force, and sets could be played back.
func TestAcceptRevisionOnce(t *testing.T) {
	m := startManaged(t)
	a := m.record("a.example.com")
	five, ten := uint64(5), numbered(10, 0, "", a)
	m.plane.set(ten)
	m.want(syncApplied, "")
	for name, answer := range map[string]func(){
		"failed":    func() { m.plane.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }) },
		"unchanged": func() { m.plane.set(ten) },
		"refused":   func() { m.plane.set(numbered(4, 0, "", a)) },
	} {
		answer()
		m.syncAccepting(&five)
		m.plane.set(numbered(6, 0, "", m.record("b.example.com")))
		if report := m.sync(); report.Result != syncRollback {
			t.Errorf("%s: then an old set is %s", name, report.Result)
		}
	}
}

// TestOnlyBadRecords: a set of which nothing can be read says nothing of the others, and ended them all.
func TestOnlyBadRecords(t *testing.T) {
	m := startManaged(t)
	m.plane.set(set(m.record("a.example.com"), m.record("b.example.com")))
	m.want(syncApplied, "")
	m.plane.set(set(m.record("not a name"), m.record("new.example.com", "tenant", "7")))
	m.want(syncEmpty, "allow_empty")
	if !m.serves("a.example.com") || !m.serves("b.example.com") {
		t.Error("domains are gone")
	}
	m.plane.set(set(m.record("a.example.com", "tenant", "7"))) // it says of b that it is gone, and a stays as it was
	m.want(syncApplied, "")
	if !m.serves("a.example.com") || m.serves("b.example.com") {
		t.Error("the last good version of the one is not all there is")
	}
}

// TestRejectedRetried: an operator follows the error and allows an address. Nothing came of it, not even with a restart,
// because the server says that the set has not changed.
func TestRejectedRetried(t *testing.T) {
	m := startManaged(t)
	a := m.record("a.example.com")
	b := m.record("b.example.com", "upstreams", `[{"dial":"10.0.0.1:80"}]`)
	serve := func(revision int) {
		etag := fmt.Sprintf(`"%d"`, revision)
		m.plane.answers(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("If-None-Match") == etag || r.URL.Query().Get("after") == strconv.Itoa(revision) {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			w.Header().Set("ETag", etag)
			_, _ = io.WriteString(w, numbered(revision, 0, "", a, b))
		})
	}
	served := func() bool { return !inForce.Load().table.Load().named("b.example.com").none() }
	serve(3)
	m.want(syncApplied, "")
	m.want(syncUnchanged, "")
	narrow, wide := m.option(), strings.Replace(m.option(), "allow 127.0.0.0/8", "allow 127.0.0.0/8\n allow 10.0.0.0/8", 1)
	m.load(wide)
	m.want(syncApplied, "")
	if !served() {
		t.Error("not there after a reload that allows its address")
	}
	m.want(syncUnchanged, "")

	m.load(narrow)
	b = strings.Replace(b, "10.0.0.1:80", "10.0.0.2:80", 1)
	serve(4)
	m.want(syncApplied, "")
	m.plane.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	m.restart()
	if status := inForce.Load().syncStatus(); status.Revision.revision != 4 {
		t.Errorf("the revision after a restart is %s", status.Revision)
	}
	serve(4)
	m.want(syncApplied, "")
	if count := inForce.Load().rejected().Count; count != 1 {
		t.Errorf("%d records are rejected", count)
	}
	m.want(syncUnchanged, "")
}

// gauge reads a metric.
func gauge(t *testing.T, m interface{ Write(*dto.Metric) error }) float64 {
	t.Helper()
	var value dto.Metric
	if err := m.Write(&value); err != nil {
		t.Fatal(err)
	}
	return value.GetGauge().GetValue()
}

// TestRevisionMetric is 0 where there is no set with a revision any more.
func TestRevisionMetric(t *testing.T) {
	m := startManaged(t)
	m.plane.set(numbered(7, 0, "", m.record("a.example.com")))
	m.want(syncApplied, "")
	if got := gauge(t, metrics.revision); got != 7 {
		t.Errorf("it is %v", got)
	}
	m.plane.set(set(m.record("b.example.com")))
	m.want(syncApplied, "")
	if got := gauge(t, metrics.revision); got != 0 {
		t.Errorf("with a set that has none it is %v", got)
	}
	m.plane.set(numbered(8, 0, "", m.record("a.example.com")))
	m.want(syncApplied, "")
	m.load(loopbackAllowed)
	pqtest.Wait(t, "the gauge without management", func() bool { return gauge(t, metrics.revision) == 0 })
}

// TestVersionJSON: an ETag may have any bytes. The status could not be written with some of them.
func TestVersionJSON(t *testing.T) {
	for _, label := range []string{`"one"`, "\"\xe9\"", `"😀"`, `W/"a\b"`} {
		text, err := json.Marshal(version{label: label})
		var read string
		if err != nil || json.Unmarshal(text, &read) != nil || read != strings.ToValidUTF8(label, "\ufffd") {
			t.Errorf("%q is written as %s, %v", label, text, err)
		}
	}
}

// TestReportsDoNotWait: applying a million domains takes seconds, and the status and the metrics waited for that.
func TestReportsDoNotWait(t *testing.T) {
	s := newTestState(t)
	s.mu.Lock() // as apply does
	defer s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, _ = s.syncStatus(), s.conflicts(10), s.rejected()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("they wait")
	}
}

// heldStorage is a storage in memory whose calls wait, or fail, as the test says.
type heldStorage struct {
	certmagic.Storage
	mu      sync.Mutex
	values  map[string][]byte
	stores  int
	fail    error
	hold    chan struct{} // nil: nothing waits
	held    chan struct{} // gets one for each call that waits
	longest time.Duration // that a call would have waited
}

func newHeldStorage() *heldStorage {
	return &heldStorage{values: make(map[string][]byte), held: make(chan struct{}, 100)}
}

func (h *heldStorage) wait(ctx context.Context) error {
	h.mu.Lock()
	hold, fail := h.hold, h.fail
	if deadline, ok := ctx.Deadline(); ok {
		h.longest = max(h.longest, time.Until(deadline))
	}
	h.mu.Unlock()
	if hold != nil {
		h.held <- struct{}{}
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fail
}

func (h *heldStorage) set(fail error, hold chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail, h.hold = fail, hold
}

func (h *heldStorage) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stores
}

func (h *heldStorage) Store(ctx context.Context, key string, value []byte) error {
	if err := h.wait(ctx); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stores++
	h.values[key] = value
	return nil
}

func (h *heldStorage) Load(ctx context.Context, key string) ([]byte, error) {
	if err := h.wait(ctx); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if value, ok := h.values[key]; ok {
		return value, nil
	}
	return nil, fs.ErrNotExist
}

func (h *heldStorage) Stat(context.Context, string) (certmagic.KeyInfo, error) {
	return certmagic.KeyInfo{}, fs.ErrNotExist
}

// keepingState is a state that keeps what it is told in the storage.
func keepingState(t *testing.T, storage *heldStorage) *state {
	t.Helper()
	key, _, err := keptset.OpenKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := newTestState(t)
	s.settings.Store(&settings{logger: zap.NewNop(), accessLog: zap.NewNop(), kept: keptset.New(storage, key), persistAdmin: true})
	return s
}

// kept returns the names that are kept.
func kept(t *testing.T, s *state, name string) (names []string) {
	t.Helper()
	_, content, err := s.settings.Load().kept.Load(context.Background(), name, 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	_, err = domain.ReadSet(content, domain.Remote, domain.SetOptions{Domain: func(d *domain.Domain) error {
		names = append(names, d.Name)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestForgottenSetStaysKept: with the management block the domains leave, and the poller, which still had a set to keep, kept
// what was left of it under the revision of the whole: none. Where the block came back, nothing was served.
func TestForgottenSetStaysKept(t *testing.T) {
	storage := newHeldStorage()
	s := keepingState(t, storage)
	filled(t, s, 3)
	p := &poller{owner: s, settings: &Management{feed: "f"}, stop: func() {}}
	s.remote.feed, s.remote.unkept = "f", true
	s.remote.version = version{revision: 4, hasRevision: true}
	k := p.newKeeper()
	k.poke()
	k.done(<-k.saved)
	s.remote.unkept = true // another set has come

	s.mu.Lock()
	s.poller.Store(p)
	s.manage(nil)
	s.mu.Unlock()
	k.close()
	if got := kept(t, s, keptRemote+"f"); len(got) != 3 {
		t.Errorf("kept are %q", got)
	}
}

// TestExitDoesNotWaitForStorage: a storage that does not answer held up the exit for minutes.
func TestExitDoesNotWaitForStorage(t *testing.T) {
	storage := newHeldStorage()
	s := keepingState(t, storage)
	release := make(chan struct{})
	defer close(release)
	storage.set(nil, release)
	defer func(before time.Duration) { lastKeep = before }(lastKeep)
	lastKeep = time.Millisecond
	s.mu.Lock()
	m := &Management{URL: "http://127.0.0.1:1/", feed: "f", Interval: 1 << 40, MaxBody: 1}
	m.config.URL = m.URL
	s.manage(m)
	s.mu.Unlock()
	<-storage.held
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.stopPolling()()
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("still waiting")
	}
}

// TestStorageDoesNotHoldUp: the next poll waits until the revision is kept, and clients wait at the start until what was kept
// is read. A storage that did not answer held up both for minutes.
func TestStorageDoesNotHoldUp(t *testing.T) {
	storage := newHeldStorage()
	s := keepingState(t, storage)
	p := &poller{owner: s, settings: &Management{feed: "f"}, restored: make(chan struct{})}
	p.restore()
	if storage.longest > 30*time.Second {
		t.Errorf("reading may take %s", storage.longest)
	}
	storage.longest = 0
	s.remote.feed, s.remote.unkept, s.remote.accepted = "f", true, 7
	k := p.newKeeper()
	k.saving = true // the set itself is kept in the background
	k.poke()
	if storage.count() != 1 || storage.longest > 5*time.Second {
		t.Errorf("the revision is kept %d times, and that may take %s", storage.count(), storage.longest)
	}
}

// TestPersistAdminReload: what the admin API had set was lost in a restart where persist_admin came by a reload, or worse,
// what an earlier process had kept came back in its place.
func TestPersistAdminReload(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	e := startAdminEdge(t, adminOption)
	e.api().want(201, "PUT", "/domains/a.example.com", internalRecord("a.example.com"))
	e.load("persist_admin\n" + adminOption)
	stored := func() bool {
		files, _ := filepath.Glob(e.dir + "/storage/pqproxy/edges/*/admin.set")
		return len(files) == 1
	}
	pqtest.Wait(t, "what is set to be kept", stored)
}

// TestPersistAdminTogether: changes that come while one is being kept are kept together.
func TestPersistAdminTogether(t *testing.T) {
	const clients = 20
	storage := newHeldStorage()
	s := keepingState(t, storage)
	release := make(chan struct{})
	storage.set(nil, release)
	apply := func(i int) {
		c := s.newChangeSet(rankAdmin, false, nil)
		if err := c.put(typical(i)); err != nil {
			t.Error(err)
		}
		s.apply(c, nil)
	}
	var all sync.WaitGroup
	keep := func() {
		all.Go(func() {
			if err := s.keepAdmin(); err != nil {
				t.Error(err)
			}
		})
	}
	apply(0)
	keep()
	<-storage.held
	for i := range clients {
		apply(i + 1)
		keep()
	}
	storage.set(nil, nil)
	close(release)
	all.Wait()
	if got := kept(t, s, keptAdmin); len(got) != clients+1 {
		t.Errorf("%d are kept", len(got))
	}
	if n := storage.count(); n > 2 {
		t.Errorf("they are kept %d times", n)
	}
}

// TestPersistAdminUnread: a storage that failed for a moment at the start made the next change overwrite all that had been
// kept.
func TestPersistAdminUnread(t *testing.T) {
	storage := newHeldStorage()
	before := keepingState(t, storage)
	c := before.newChangeSet(rankAdmin, false, nil)
	for i := range 3 {
		if err := c.put(typical(i)); err != nil {
			t.Fatal(err)
		}
	}
	before.apply(c, nil)
	if err := before.keepAdmin(); err != nil {
		t.Fatal(err)
	}

	after := newTestState(t)
	after.settings.Store(before.settings.Load())
	storage.set(errors.New("the storage is away"), nil)
	after.restore(after.settings.Load().kept, nil)
	storage.set(nil, nil)
	c = after.newChangeSet(rankAdmin, false, nil)
	if err := c.put(typical(9)); err != nil {
		t.Fatal(err)
	}
	after.apply(c, nil)
	if err := after.keepAdmin(); err == nil || !strings.Contains(err.Error(), "the storage is away") {
		t.Errorf("keeping: %v", err)
	}
	if got := kept(t, before, keptAdmin); len(got) != 3 {
		t.Errorf("kept are %q", got)
	}

	again := newTestState(t) // a restart finds them
	again.settings.Store(before.settings.Load())
	again.restore(again.settings.Load().kept, nil)
	if n := again.table.Load().live[rankAdmin]; n != 3 {
		t.Errorf("%d are served", n)
	}
	if err := again.keepAdmin(); err != nil {
		t.Error(err)
	}
}

// TestTableGivenBack: what a million domains took is given back when they have gone.
func TestTableGivenBack(t *testing.T) {
	const many = 50_000
	s := newTestState(t)
	filled(t, s, many)
	slots := func() (n int) {
		for i := range s.table.Load().shards {
			n += len(s.table.Load().shards[i].slots)
		}
		return n
	}
	s.apply(s.newChangeSet(rankRemote, true, nil), nil)
	if n := slots(); n > tableShards*4 {
		t.Errorf("an empty table has %d slots", n)
	}
	filled(t, s, 1000)
	for i := range 1000 {
		if d := typical(i); s.table.Load().find(d.Name).none() {
			t.Fatalf("%s is missing", d.Name)
		}
	}
}

// TestManyWriters reloads, changes the URL and takes it away while polls, writes of the admin API and reports go on: nothing
// waits for ever, and what is served at the end is what the last config and the last set say.
func TestManyWriters(t *testing.T) {
	const rounds = 24
	pqtest.Leaks(t)
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	urls := []*plane{startPlane(t), startPlane(t)}
	option := func(url string) string {
		text := "persist_admin\n" + adminOption
		if url != "" {
			text += "management " + url + "/feed {\n interval 1h\n}\n"
		}
		return text
	}
	e := startAdminEdge(t, option(""))
	api := e.api()
	name := func(url, i int) string { return fmt.Sprintf("n%d.url%d.example.com", i, url) }
	for i, p := range urls {
		revision := 0
		p.answers(func(w http.ResponseWriter, r *http.Request) {
			p.mu.Lock()
			revision++
			n := revision
			p.mu.Unlock()
			_, _ = io.WriteString(w, numbered(n, 0, "", internalRecord(name(i, n%5)), internalRecord(name(i, 5))))
		})
	}
	stop := make(chan struct{})
	var all sync.WaitGroup
	again := func(do func(i int)) {
		all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					do(i)
				}
			}
		})
	}
	ask := func(method, path, body string) {
		if _, err := api.do(method, path, body); err != nil && !strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "reset") &&
			!strings.Contains(err.Error(), "refused") && !strings.Contains(err.Error(), "no such file") {
			t.Errorf("%s %s: %v", method, path, err) // a reload restarts the endpoint
		}
	}
	again(func(int) { ask("POST", "/sync", "") })
	again(func(i int) {
		own := fmt.Sprintf("n%d.admin.example.com", i%7)
		ask("PUT", "/domains/"+own, internalRecord(own))
		ask("DELETE", "/domains/"+own, "")
	})
	again(func(int) {
		ask("GET", "/status", "")
		ask("GET", "/domains?limit=3", "")
	})
	for i := range rounds {
		url := ""
		if i%3 > 0 {
			url = urls[i%2].URL
		}
		if i%5 == 4 {
			if err := e.tryLoad(option(url) + "domain bad.example.com {\n upstream 127.0.0.1:1\n certificate /nowhere /nowhere\n}\n"); err == nil {
				t.Error("a config without its files is loaded")
			}
			continue
		}
		e.load(option(url))
	}
	close(stop)
	all.Wait()
	e.load(option(urls[0].URL))
	api.want(200, "POST", "/sync", "")
	api.want(200, "PUT", "/domains", `{"domains":[`+internalRecord("last.example.com")+`]}`)
	reply := api.want(200, "GET", "/status", "")
	var counts struct{ Domains domainCounts }
	reply.into(t, &counts)
	if counts.Domains != (domainCounts{Total: 3, Admin: 1, Remote: 2}) {
		t.Errorf("the status is %s", reply.body)
	}
	api.want(200, "GET", "/domains/"+name(0, 5), "")
	api.want(404, "GET", "/domains/"+name(1, 5), "")
	if got := kept(t, inForce.Load(), keptAdmin); len(got) != 1 || got[0] != "last.example.com" {
		t.Errorf("kept are %q", got)
	}
}
