package pqproxy

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
	"github.com/pqproxy/caddy-pqproxy/internal/pace"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// plane is a management URL that answers what the test says.
type plane struct {
	*httptest.Server
	mu     sync.Mutex
	answer http.HandlerFunc
	asked  []*http.Request
}

func startPlane(t *testing.T) *plane {
	p := &plane{}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		answer := p.answer
		p.asked = append(p.asked, r)
		p.mu.Unlock()
		answer(w, r)
	}))
	p.Config.ErrorLog = nil
	p.Start()
	t.Cleanup(p.Close)
	p.set(`{"domains":[]}`)
	return p
}

// set answers with a document from now on.
func (p *plane) set(document string, headers ...string) {
	p.answers(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		_, _ = io.WriteString(w, document)
	})
}

func (p *plane) answers(h http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = h
}

// last returns the request that came last.
func (p *plane) last() *http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[len(p.asked)-1]
}

func (p *plane) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.asked)
}

// managed is an edge that polls a plane, but only when the test asks for it: the interval is an hour.
type managed struct {
	*edge
	plane *plane
	up    *pqtest.Upstream
	extra string // further options of the management block
	limit string // further limits
}

const loopbackAllowed = "\nupstream_policy {\n allow 127.0.0.0/8\n}\n"

func startManaged(t *testing.T, extra ...string) *managed {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	m := &managed{plane: startPlane(t), up: pqtest.StartUpstream(t, pqtest.UpstreamConfig{}), extra: strings.Join(extra, "\n")}
	m.plane.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	m.edge = startEdge(t, m.option())
	m.failedToPoll()
	return m
}

// firstRetry would bring polls that the test did not ask for.
func init() {
	firstRetry = time.Hour
	pace.GiveWay() // opens its pipe, which the process keeps: no test has leaked it
}

// failedToPoll waits for the poll that a config begins with, which fails.
func (m *managed) failedToPoll() {
	m.t.Helper()
	m.log.message("polling the management URL")
}

// option is the pqproxy option's content.
func (m *managed) option() string {
	return fmt.Sprintf("management %s/feed {\n interval 1h\n %s\n}\nlimits {\n grace_period 50ms\n %s\n}\n%s", m.plane.URL, m.extra, m.limit, loopbackAllowed)
}

// record is a domain's JSON with a pair of its own; fields replace the defaults.
func (m *managed) record(name string, fields ...string) string {
	chain, key := m.ca.PairPEM(m.t, name)
	r := map[string]any{
		"name": name, "tenant": "acme", "upstreams": []map[string]any{{"dial": m.up.Addr()}},
		"certificate": map[string]string{"source": "byoc", "chain_pem": string(chain), "key_pem": string(key)},
	}
	for i := 0; i < len(fields); i += 2 {
		var v any
		if err := json.Unmarshal([]byte(fields[i+1]), &v); err != nil {
			m.t.Fatal(err)
		}
		r[fields[i]] = v
	}
	text, err := json.Marshal(r)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(text)
}

// sync polls now and returns the report.
func (m *managed) sync() *syncReport {
	m.t.Helper()
	return m.syncAccepting(nil)
}

func (m *managed) syncAccepting(revision *uint64) *syncReport {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	report, err := inForce.Load().syncNow(ctx, revision)
	if err != nil {
		m.t.Fatalf("polling: %v", err)
	}
	return report
}

// want polls and expects a result.
func (m *managed) want(result syncResult, in string) *syncReport {
	m.t.Helper()
	report := m.sync()
	if report.Result != result || !strings.Contains(report.Error, in) {
		m.t.Fatalf("the poll went %s (%s), want %s (%s)", report.Result, report.Error, result, in)
	}
	return report
}

// serves reports whether a name is served, by a handshake and an echo.
func (m *managed) serves(name string) bool {
	m.t.Helper()
	c, err := m.handshake(m.client(name))
	if err != nil {
		if alertOfHandshake(err) != alertUnrecognizedName {
			m.t.Fatalf("%s: %v", name, err)
		}
		return false
	}
	defer c.Close()
	echo(m.t, c, "hello "+name)
	return true
}

func set(records ...string) string { return `{"domains":[` + strings.Join(records, ",") + `]}` }

func numbered(revision, base int, removed string, records ...string) string {
	return fmt.Sprintf(`{"revision":%d,"base":%d,"removed":[%s],"domains":[%s]}`, revision, base, removed, strings.Join(records, ","))
}

// TestPoll adds, changes and removes domains by full sets of the plainest server, and leaves other connections alone.
func TestPoll(t *testing.T) {
	pqtest.Leaks(t)
	m := startManaged(t)
	if status := inForce.Load().syncStatus(); status.Last.Result != "status" || !strings.Contains(status.Last.Error, "503") || status.Staleness != nil {
		t.Errorf("after a poll that failed the status is %+v", status)
	}
	a, b := m.record("a.example.com"), m.record("b.example.com")
	m.plane.set(set(a, b), "ETag", `"one"`)
	if report := m.want(syncApplied, ""); report.Outcome.Added != 2 || report.Revision.label != `"one"` {
		t.Errorf("reported %+v", report)
	}
	if !m.serves("a.example.com") || !m.serves("b.example.com") {
		t.Fatal("not live")
	}
	open := m.dial(m.client("a.example.com"))
	echo(t, open, "before")

	m.plane.answers(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") != `"one"` {
			t.Errorf("If-None-Match is %q", r.Header.Get("If-None-Match"))
		}
		w.WriteHeader(http.StatusNotModified)
	})
	m.want(syncUnchanged, "")
	m.plane.set(set(a, b), "ETag", `"two"`) // the same document under another name
	m.want(syncUnchanged, "")
	m.plane.set(set(a, m.record("b.example.com", "suspended", "true")))
	if report := m.want(syncApplied, ""); report.Outcome.Changed != 1 || report.Outcome.Unchanged != 1 || !strings.HasPrefix(report.Revision.label, "sha512:") {
		t.Errorf("reported %+v", report)
	}
	if m.serves("b.example.com") {
		t.Error("a suspended domain is served")
	}
	m.plane.set(set(a))
	m.want(syncApplied, "")
	if m.serves("b.example.com") {
		t.Error("a removed domain is served")
	}
	echo(t, open, "after") // none of it touched this one
	open.Close()
	if got := m.log.recordWhere("end_reason", "done"); got.str("source") != "remote" {
		t.Errorf("source is %q", got.str("source"))
	}
}

// TestPollDeltas follows changes of changes: after, base, 410, a change of another set, and a server that waits.
func TestPollDeltas(t *testing.T) {
	pqtest.Leaks(t)
	m := startManaged(t)
	a, b := m.record("a.example.com"), m.record("b.example.com")
	m.plane.set(numbered(10, 0, "", a))
	m.want(syncApplied, "")
	if r := m.plane.last(); r.URL.Query().Has("after") {
		t.Errorf("the first request is %s", r.URL)
	}
	m.plane.set(numbered(12, 10, `"a.example.com"`, b))
	m.want(syncApplied, "")
	if r := m.plane.last(); r.URL.Query().Get("after") != "10" {
		t.Errorf("the request for changes is %s", r.URL)
	}
	if m.serves("a.example.com") || !m.serves("b.example.com") {
		t.Error("the change was not applied as it is")
	}

	full := func(otherwise http.HandlerFunc) {
		m.plane.answers(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Has("after") {
				otherwise(w, r)
				return
			}
			_, _ = io.WriteString(w, numbered(20, 0, "", a))
		})
	}
	full(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) })
	if report := m.want(syncApplied, ""); report.Revision.revision != 20 || !m.serves("a.example.com") {
		t.Errorf("after 410: %+v", report)
	}
	full(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, numbered(21, 7, `"a.example.com"`))
	})
	m.want(syncUnchanged, "") // the full set, which is known
	if !m.serves("a.example.com") {
		t.Error("the change of another set was applied")
	}
	m.plane.set(numbered(21, 7, `"a.example.com"`))
	m.want(syncMalformed, "no base")

	// A server that waits is asked again at once, and interrupted when somebody wants an answer now.
	waiting, changed := make(chan struct{}, 10), make(chan string)
	m.plane.answers(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Prefer") == "" {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		if r.Header.Get("Prefer") != "wait=25" {
			t.Errorf("Prefer is %q", r.Header.Get("Prefer"))
		}
		waiting <- struct{}{}
		select {
		case document := <-changed:
			w.Header().Set("Preference-Applied", "wait")
			_, _ = io.WriteString(w, document)
		case <-r.Context().Done():
		}
	})
	m.load(strings.Replace(m.option(), "1h", "1s", 1)) // so that it begins to wait by itself
	<-waiting
	changed <- numbered(22, 20, "", b)
	<-waiting // at once, not after the interval
	if !m.serves("b.example.com") {
		t.Error("not live when the next request came")
	}
	m.want(syncUnchanged, "") // while one waits
}

// TestPollRefuses shows each document and answer that must change nothing, and what the status says of it.
func TestPollRefuses(t *testing.T) {
	pqtest.Leaks(t)
	m := startManaged(t, "max_body 100KiB")
	a := m.record("a.example.com")
	m.plane.set(numbered(5, 0, "", a))
	m.want(syncApplied, "")
	open := m.dial(m.client("a.example.com"))

	deep := strings.Repeat("[", 1_000_000)
	for name, test := range map[string]struct {
		answer any // a document or a handler
		result syncResult
		says   string
	}{
		"error": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down for repair", 500) }, "status", "down for repair"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://elsewhere.example/x?y", http.StatusFound)
		}, "redirect", "elsewhere.example"},
		"login page": {"<!DOCTYPE html><title>Log in</title>", syncMalformed, "is this the address of a feed?"},
		"nothing":    {"", syncMalformed, "set"},
		"truncated":  {`{"revision":6,"domains":[` + a, syncMalformed, "unexpected EOF"},
		"cut": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9999")
			_, _ = io.WriteString(w, `{"domains":[`)
		}, "truncated", ""},
		"member twice": {`{"revision":6,"revision":7,"domains":[]}`, syncMalformed, "twice"},
		"list twice":   {`{"domains":[],"domains":[` + a + `]}`, syncMalformed, "twice"},
		"wrong type":   {`{"revision":"6","domains":[]}`, syncMalformed, "revision"},
		"null":         {`{"domains":null}`, syncMalformed, "domains"},
		"deep":         {`{"domains":` + deep, "too_large", "max_body"},
		"no list":      {`{"revision":6}`, syncMalformed, "domains"},
		"empty":        {`{"revision":6,"domains":[]}`, syncEmpty, "allow_empty"},
		"older":        {numbered(4, 0, "", a), syncRollback, "accept_revision=4"},
		"endless": {func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}, "too_large", "max_body"},
		"bomb": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			g := gzip.NewWriter(w)
			_, _ = g.Write(make([]byte, 10<<20))
			g.Close()
		}, "too_large", "max_body"},
		"unknown encoding": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			_, _ = io.WriteString(w, "x")
		}, "encoding", "br"},
	} {
		t.Run(name, func(t *testing.T) {
			switch answer := test.answer.(type) {
			case string:
				m.plane.set(answer)
			case func(http.ResponseWriter, *http.Request):
				m.plane.answers(answer)
			}
			m.want(test.result, test.says)
			status := inForce.Load().syncStatus()
			if status.Last.Result != test.result || status.Last.Error == "" || status.Revision.revision != 5 || status.Staleness == nil {
				t.Errorf("the status is %+v, the last poll %+v", status, status.Last)
			}
			if !m.serves("a.example.com") {
				t.Error("what was live is no longer")
			}
		})
	}
	echo(t, open, "all that time")
	m.plane.Close()
	m.want("unreachable", "refused")
	if !m.serves("a.example.com") {
		t.Error("what was live is no longer")
	}
}

// TestPollRefusesRecords refuses records alone: their last good version stays, and good ones beside them are applied.
func TestPollRefusesRecords(t *testing.T) {
	m := startManaged(t)
	a, b := m.record("a.example.com"), m.record("b.example.com")
	m.plane.set(numbered(1, 0, "", a, b))
	m.want(syncApplied, "")
	_, otherKey := m.ca.PairPEM(t, "b.example.com")
	chain, _ := m.ca.PairPEM(t, "b.example.com")
	wrongPair, err := json.Marshal(map[string]string{"source": "byoc", "chain_pem": string(chain), "key_pem": string(otherKey)})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ record, field, says string }{
		"unknown field":   {m.record("b.example.com", "upstream", `"x"`), "upstream", "unknown field"},
		"loopback v6":     {m.record("b.example.com", "upstreams", `[{"dial":"[::1]:80"}]`), "upstreams[0].dial", "loopback"},
		"metadata":        {m.record("b.example.com", "upstreams", `[{"dial":"169.254.169.254:80"}]`), "upstreams[0].dial", "169.254.169.254"},
		"private":         {m.record("b.example.com", "upstreams", `[{"dial":"10.0.0.1:80"}]`), "upstreams[0].dial", "allow 10.0.0.0/8"},
		"unix socket":     {m.record("b.example.com", "upstreams", `[{"dial":"unix//run/x"}]`), "upstreams[0].dial", ""},
		"own listener":    {m.record("b.example.com", "upstreams", `[{"dial":"`+m.addr+`"}]`), "upstreams[0].dial", "come back to this edge"},
		"key of another":  {m.record("b.example.com", "certificate", string(wrongPair)), "certificate.key_pem", ""},
		"the same twice":  {b + "," + b, "name", "one set names a domain once"},
		"no JSON object":  {`"b.example.com"`, "", "object"},
		"files of ours":   {m.record("b.example.com", "certificate", `{"source":"byoc","chain_file":"/etc/passwd","key_file":"/etc/shadow"}`), "certificate.key_file", "edge's own"},
		"address as name": {m.record("127.0.0.1"), "name", ""},
	} {
		t.Run(name, func(t *testing.T) {
			m.plane.set(set(m.record("a.example.com", "region", `"x"`), test.record))
			m.plane.set(set(a, test.record, m.record("new.example.com", "suspended", "true")))
			report := m.want(syncApplied, "")
			if report.Outcome.Rejected == 0 || len(report.Outcome.Rejects) == 0 {
				t.Fatalf("reported %+v", report.Outcome)
			}
			r := report.Outcome.Rejects[len(report.Outcome.Rejects)-1]
			if r.Field != test.field || !strings.Contains(r.Detail, test.says) {
				t.Errorf("rejected %+v", r)
			}
			if !m.serves("a.example.com") || (test.field != "name" || name == "the same twice") && !m.serves("b.example.com") {
				t.Error("a last good version is gone")
			}
			s := inForce.Load()
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.rejects.list) == 0 {
				t.Error("the status has nothing of it")
			}
		})
		m.plane.set(set(a, b))
		m.sync()
	}
	if strings.Contains(m.log.text(), pemBody(t, otherKey)) {
		t.Error("a private key is in the log")
	}
}

// pemBody returns the first line of a PEM text's content.
func pemBody(t *testing.T, text []byte) string {
	t.Helper()
	if block, _ := pem.Decode(text); block == nil {
		t.Fatal("no PEM")
	}
	return strings.Split(string(text), "\n")[1]
}

// TestPollSigned accepts sets of the holder of a key alone: what is wrong with others is said, and old ones are refused
// until an operator accepts them.
func TestPollSigned(t *testing.T) {
	t.Setenv("PQPROXY_TEST_EDGE_TOKEN", "token-that-nobody-may-see")
	dir := t.TempDir()
	var keys []*feedsig.PrivateKey
	for _, name := range []string{"old", "new", "stranger"} {
		key, err := feedsig.Generate(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
		writeFile(t, filepath.Join(dir, name+".pub"), key.Public().Marshal())
	}
	m := startManaged(t, "verify_key "+filepath.Join(dir, "old.pub"), "token {env.PQPROXY_TEST_EDGE_TOKEN}")
	a := m.record("a.example.com")
	signed := func(key *feedsig.PrivateKey, document string) {
		m.plane.set(document, feedsig.Header, key.Sign(sha512.Sum512([]byte(document))))
	}
	signed(keys[0], numbered(7, 0, "", a))
	m.want(syncApplied, "")
	if got := m.plane.last().Header.Get("Authorization"); got != "Bearer token-that-nobody-may-see" {
		t.Errorf("Authorization is %q", got)
	}
	b := numbered(8, 0, "", a, m.record("b.example.com"))
	m.plane.set(b)
	m.want("signature", "no signature")
	signed(keys[2], b)
	m.want("signature", "key")
	m.plane.set(b, feedsig.Header, keys[0].Sign(sha512.Sum512([]byte(b+" "))))
	m.want("signature", "ed25519")
	signed(keys[0], set(a))
	m.want(syncRevision, "no revision")
	signed(keys[0], numbered(6, 0, "", m.record("b.example.com")))
	m.want(syncRollback, "accept_revision=6")
	if m.serves("b.example.com") || !m.serves("a.example.com") {
		t.Error("a set that was refused has an effect")
	}
	six := uint64(6)
	if report := m.syncAccepting(&six); report.Result != syncApplied || report.Revision.revision != 6 {
		t.Errorf("accepting an older revision: %+v", report)
	}

	m.plane.answers(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") != "" || r.URL.Query().Has("after") {
			t.Error("a set is built upon that other keys verified")
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	m.extra += "\nverify_key " + filepath.Join(dir, "new.pub")
	m.load(m.option())
	pqtest.Wait(t, "the first poll with both keys", func() bool { return inForce.Load().syncStatus().Last.Result == "status" })
	signed(keys[1], b)
	m.want(syncApplied, "")
	signed(keys[0], numbered(9, 0, "", a))
	m.want(syncApplied, "")
	if strings.Contains(m.log.text(), "nobody-may-see") {
		t.Error("the token is in the log")
	}
	adapted := m.adapt("pqproxy {\n" + m.option() + "}\n")
	if bytes.Contains(adapted, []byte("nobody-may-see")) {
		t.Error("the token is in the config")
	}
}

// restart stops Caddy and starts it anew.
func (m *managed) restart() {
	m.t.Helper()
	if err := caddy.Stop(); err != nil {
		m.t.Fatal(err)
	}
	drains.Wait()
	m.load(m.option())
	sockets.Lock()
	defer sockets.Unlock()
	m.addr = sockets.byAddress["127.0.0.1:0"].ln.Addr().String()
	m.failedToPoll()
}

// TestKeptSet serves after a restart what was served before, while the management plane is down, and refuses to go back.
func TestKeptSet(t *testing.T) {
	pqtest.Leaks(t)
	m := startManaged(t)
	a := m.record("a.example.com")
	m.plane.set(numbered(30, 0, "", a))
	m.want(syncApplied, "")
	m.plane.set(numbered(31, 30, "", m.record("b.example.com")))
	m.want(syncApplied, "")
	m.plane.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	m.restart()
	if !m.serves("a.example.com") || !m.serves("b.example.com") {
		t.Fatal("not served after a restart")
	}
	status := inForce.Load().syncStatus()
	if status.Revision.revision != 31 || status.Staleness == nil {
		t.Errorf("the status is %+v", status)
	}
	m.plane.set(numbered(29, 0, "", a))
	m.want(syncRollback, "31")
	m.plane.set(numbered(32, 31, `"b.example.com"`))
	m.want(syncApplied, "")
	if r := m.plane.last(); r.URL.Query().Get("after") != "31" {
		t.Errorf("the first request for changes is %s", r.URL)
	}

	stored, err := filepath.Glob(m.dir + "/storage/pqproxy/edges/*/remote-*.set")
	if err != nil || len(stored) != 1 {
		t.Fatalf("kept are %q, %v", stored, err)
	}
	pqtest.Wait(t, "the last set to be kept", func() bool {
		content, err := os.ReadFile(stored[0])
		return err == nil && bytes.Contains(content, []byte(`"revision":32`))
	})
	content, err := os.ReadFile(stored[0])
	if err != nil {
		t.Fatal(err)
	}
	for what, broken := range map[string][]byte{
		"truncated": content[:len(content)-40],
		"corrupt":   append(bytes.Clone(content[:len(content)-1]), content[len(content)-1]^1),
		"newer":     bytes.Replace(content, []byte("set 1 "), []byte("set 9 "), 1),
		"empty":     nil,
	} {
		m.plane.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
		drains.Wait()
		writeFile(t, stored[0], broken)
		m.restart()
		m.log.message("a kept set of domains is ignored")
		if m.serves("a.example.com") {
			t.Errorf("%s: served", what)
		}
		m.plane.set(numbered(31, 0, "", a))
		m.want(syncRollback, "32") // that is kept beside it
		m.plane.set(numbered(32, 0, "", a))
		m.want(syncApplied, "")
		if !m.serves("a.example.com") {
			t.Errorf("%s: not served although the plane is back", what)
		}
	}
}

// TestPollReload keeps the poller while its settings stay, follows it to another URL, and lets the domains go with the
// management block.
func TestPollReload(t *testing.T) {
	pqtest.Leaks(t)
	m := startManaged(t)
	m.plane.set(numbered(1, 0, "", m.record("a.example.com")))
	m.want(syncApplied, "")
	open := m.dial(m.client("a.example.com"))
	asked := m.plane.count()
	for i := range 5 {
		m.limit = fmt.Sprintf("idle_timeout %dm", i+1)
		m.load(m.option())
	}
	if m.plane.count() != asked {
		t.Error("a reload without a change of the management block polls")
	}
	other := startPlane(t)
	other.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	first := m.plane
	m.plane = other
	m.load(m.option())
	m.failedToPoll()
	if !m.serves("a.example.com") {
		t.Error("another URL that does not answer has an effect")
	}
	other.set(numbered(1, 0, "", m.record("b.example.com"))) // revisions are each URL's own
	m.want(syncApplied, "")
	if m.serves("a.example.com") || !m.serves("b.example.com") {
		t.Error("the other URL's set is not what is served")
	}
	m.load(loopbackAllowed)
	if m.serves("b.example.com") {
		t.Error("domains of a management plane that the config does without are served")
	}
	if inForce.Load().syncStatus() != nil {
		t.Error("there is a status of no management plane")
	}
	if got := m.log.recordWhere("end_reason", "domain_removed"); got.str("domain") != "a.example.com" {
		t.Errorf("ended is %v", got)
	}
	open.Close()
	m.plane = first
	m.load(m.option())
	pqtest.Wait(t, "the first URL's set", func() bool { return m.serves("a.example.com") })
}

// TestConfigLoader hands its settings to the poller, and loads nothing, reload after reload.
func TestConfigLoader(t *testing.T) {
	pqtest.Leaks(t)
	m := startManaged(t)
	m.plane.set(numbered(1, 0, "", m.record("a.example.com")))
	load := func(option string) error {
		t.Helper()
		var config map[string]any
		if err := json.Unmarshal(m.adapt(frontDoor+"\npqproxy {\n"+option+"}"), &config); err != nil {
			t.Fatal(err)
		}
		config["admin"] = map[string]any{"disabled": true, "config": map[string]any{
			"persist": false, "load_delay": "10ms",
			"load": map[string]any{"module": "pqproxy", "management": map[string]any{"url": m.plane.URL + "/feed", "interval": "1h"}},
		}}
		text, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		return caddy.Load(text, true)
	}
	loaded := func() {
		t.Helper()
		if err := load(loopbackAllowed); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := (&ConfigLoader{}).LoadConfig(caddy.Context{}); err == nil || !strings.Contains(err.Error(), "load_delay") {
		t.Errorf("loading before the config is active: %v", err)
	}
	loaded()
	pqtest.Wait(t, "the domain", func() bool { return m.serves("a.example.com") })
	open := m.dial(m.client("a.example.com"))
	asked := m.plane.count()
	pqtest.Wait(t, "Caddy to ask again and again", func() bool { return m.plane.count() > asked+2 })
	loaded()
	asked = m.plane.count()
	m.plane.set(numbered(2, 1, "", m.record("b.example.com")))
	pqtest.Wait(t, "the change", func() bool { return m.serves("b.example.com") })
	echo(t, open, "no reload ended this")
	open.Close()
}

// TestUpstreamPolicy judges what names resolve to when they are dialled, and finds loops.
func TestUpstreamPolicy(t *testing.T) {
	m := startManaged(t)
	port := m.up.Addr()[strings.LastIndex(m.up.Addr(), ":"):]
	edgePort := m.addr[strings.LastIndex(m.addr, ":"):]
	m.plane.set(set(
		m.record("name.example.com", "upstreams", `[{"dial":"localhost`+port+`"}]`),
		m.record("loop.example.com", "upstreams", `[{"dial":"localhost`+edgePort+`"}]`),
	))
	if report := m.want(syncApplied, ""); report.Outcome.Added != 2 {
		t.Fatalf("applied %+v", report.Outcome)
	}
	refused := func(name, reason string) {
		t.Helper()
		c := m.dial(m.client(name))
		if _, err := io.ReadAll(c); err == nil {
			t.Errorf("%s: an orderly end", name)
		}
		got := m.log.recordWhere("end_reason", reason)
		if got.str("domain") != name || got.str("error") == "" {
			t.Errorf("%s: the record is %v", name, got)
		}
	}
	if !m.serves("name.example.com") {
		t.Error("a name that resolves to an allowed address is not served")
	}
	refused("loop.example.com", "upstream_loop")
	m.load(strings.Replace(m.option(), loopbackAllowed, "", 1)) // the domains stay, and are judged when dialled
	refused("name.example.com", "upstream_denied")

	m.load(`domain app.example.com {
		upstream localhost` + edgePort + `
		certificate $CHAIN $KEY
	}`)
	refused("app.example.com", "upstream_loop")
}

// TestPollWhileStopping stops Caddy while an answer is awaited and while one comes slowly: nothing is left behind.
func TestPollWhileStopping(t *testing.T) {
	pqtest.Leaks(t)
	m := startManaged(t)
	arrived := make(chan struct{}, 1)
	m.plane.answers(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"domains":[`)
		w.(http.Flusher).Flush()
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	ended := make(chan error, 1)
	go func() {
		_, err := inForce.Load().syncNow(context.Background(), nil)
		ended <- err
	}()
	<-arrived
	begun := time.Now()
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	drains.Wait()
	if err := <-ended; err == nil {
		t.Error("the poll succeeded")
	}
	if took := time.Since(begun); took > patience/2 {
		t.Errorf("stopping took %s", took)
	}
	m.load(m.option())
}

// TestPollNames keeps tenants apart whose names are near each other: a wildcard over another tenant's exact name, and
// letters that look alike.
func TestPollNames(t *testing.T) {
	m := startManaged(t)
	m.plane.set(set(
		m.record("*.example.com", "tenant", `"mallory"`),
		m.record("app.example.com"),
		m.record("xn--pp-6kc.example.com", "tenant", `"mallory"`), // the first letter is Cyrillic
		m.record("xn--pp-uia.example.org", "name", `"ÄPP.example.org."`),
	))
	if report := m.want(syncApplied, ""); report.Outcome.Added != 4 {
		t.Fatalf("applied %+v", report.Outcome)
	}
	for name, tenant := range map[string]string{
		"app.example.com": "acme", "APP.example.com": "acme", "other.example.com": "mallory",
		"xn--pp-6kc.example.com": "mallory", "xn--pp-uia.example.org": "acme",
	} {
		c := m.dial(m.client(name))
		echo(t, c, "hello")
		c.Close()
		if got := m.log.nextRecord(); got.str("tenant") != tenant {
			t.Errorf("%s is %s's (%s), want %s's", name, got.str("tenant"), got.str("domain"), tenant)
		}
	}
	if m.serves("example.com") || m.serves("a.b.example.com") {
		t.Error("a wildcard covers more than one label, or none")
	}
}
