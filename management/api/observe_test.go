package api

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/internal/feed"
	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
	"github.com/pqproxy/caddy-pqproxy/internal/id"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// observed is both faces of a service that is set up, over HTTP.
type observed struct {
	t            *testing.T
	public, edge *httptest.Server
	key          *feedsig.PrivateKey
	apiKey       string
	edgeToken    string
	tenant       string
	plane        *management.Plane
	who          *management.Principal
}

type sameText struct{}

func (sameText) Check(string, string) error                          { return nil }
func (sameText) Hash(_ context.Context, text string) (string, error) { return text, nil }
func (sameText) Verify(_ context.Context, hash, text string) (ok, stale bool, err error) {
	return hash == text, false, nil
}

type seesNothing struct{}

func (seesNothing) Look(context.Context, management.Lookup) management.Observation {
	return management.Observation{}
}
func (seesNothing) Prove(context.Context, string, string, string) management.Finding {
	return management.Finding{State: management.FoundUnknown}
}
func (seesNothing) PublicSuffix(string) bool { return false }
func (seesNothing) Probe(context.Context, *domain.Domain, *netpolicy.Policy) []management.UpstreamProbe {
	return nil
}

func newObserved(t *testing.T) *observed {
	t.Helper()
	o := &observed{t: t}
	sealer, err := vault.New(vault.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	if o.key, err = feedsig.Generate(rand.Reader); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	o.plane, err = management.New(management.Config{SetupToken: "set-up"}, management.Parts{
		Store: storetest.Open(t, store.SQLite), Sealer: sealer, Passwords: sameText{}, Auth: auth.NewPlane("pqproxy", time.Now),
		Resolver: seesNothing{}, Prober: seesNothing{}, Signer: o.key, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	made, err := o.plane.SetUp(t.Context(), &management.Principal{}, management.Setup{
		Token: "set-up", Email: "root@example.com", Password: "a long password", Tenant: "First", APIKey: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	o.apiKey, o.tenant = made.Secret.Reveal(), made.Tenant.ID
	if o.who, err = o.plane.PrincipalOfKey(t.Context(), made.Secret); err != nil {
		t.Fatal(err)
	}
	_, token, err := o.plane.CreateEdgeToken(t.Context(), o.who, "edges")
	if err != nil {
		t.Fatal(err)
	}
	o.edgeToken = token.Reveal()
	a := New(o.plane, Options{Log: log})
	o.public, o.edge = httptest.NewServer(a.Public()), httptest.NewServer(a.Edge())
	t.Cleanup(o.public.Close)
	t.Cleanup(o.edge.Close)

	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); o.plane.Run(ctx, "test") }()
	t.Cleanup(func() { stop(); <-ended })
	return o
}

func (o *observed) domain(name string) *management.Domain {
	o.t.Helper()
	d, err := o.plane.CreateDomain(o.t.Context(), o.who, fmt.Appendf(nil, `{"name":%q,"upstreams":[{"dial":"upstream.example.com:443"}]}`, name))
	if err != nil {
		o.t.Fatal(err)
	}
	return d
}

func (o *observed) get(path string, header http.Header) (*http.Response, []byte) {
	o.t.Helper()
	r, err := http.NewRequestWithContext(o.t.Context(), http.MethodGet, o.public.URL+path, nil)
	if err != nil {
		o.t.Fatal(err)
	}
	if header != nil {
		r.Header = header
	}
	r.Header.Set("Authorization", "Bearer "+o.apiKey)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		o.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		o.t.Fatal(err)
	}
	return resp, body
}

func (o *observed) report(body string, compress bool) (int, string) {
	o.t.Helper()
	var b bytes.Buffer
	if compress {
		w := gzip.NewWriter(&b)
		io.WriteString(w, body)
		w.Close()
	} else {
		b.WriteString(body)
	}
	r, err := http.NewRequestWithContext(o.t.Context(), http.MethodPost, o.edge.URL+"/v1/edge/reports", &b)
	if err != nil {
		o.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+o.edgeToken)
	r.Header.Set("Content-Type", "application/json")
	if compress {
		r.Header.Set("Content-Encoding", "gzip")
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		o.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

// The client that edges have gets the set, the differences and the answers to long polls, with signatures that verify.
func TestFeedOverHTTP(t *testing.T) {
	o := newObserved(t)
	client, err := feed.New(feed.Config{
		URL: o.edge.URL + "/v1/edge/domains", Token: func() (string, error) { return o.edgeToken, nil }, Keys: feedsig.Keys{o.key.Public()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	o.domain("a.example.com")
	fetch := func(r feed.Request) (*feed.Answer, *domain.SetHeader, []string) {
		t.Helper()
		answer, err := client.Fetch(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if answer.Body == nil {
			return answer, nil, nil
		}
		defer answer.Body.Close()
		var names []string
		header, err := domain.ReadSet(answer.Body, domain.Remote, domain.SetOptions{
			Domain:  func(d *domain.Domain) error { names = append(names, d.Name+" "+d.Tenant); return nil },
			Refused: func(r domain.Refusal) { t.Error(r.Err) },
		})
		if err != nil {
			t.Fatal(err)
		}
		return answer, header, names
	}
	full, header, names := fetch(feed.Request{Wait: 25 * time.Second})
	if !header.Full || header.Revision == 0 || fmt.Sprint(names) != "[a.example.com "+o.tenant+"]" || !full.Waited || full.ETag != fmt.Sprintf(`"%d"`, header.Revision) {
		t.Fatalf("full set: %+v %+v %v", full, header, names)
	}
	revision := header.Revision
	if answer, _, _ := fetch(feed.Request{After: &revision, ETag: full.ETag}); !answer.NotModified || answer.Waited || answer.ETag != full.ETag {
		t.Fatalf("unchanged: %+v", answer)
	}
	later := revision + 100
	if answer, _, _ := fetch(feed.Request{After: &later}); !answer.Gone {
		t.Fatalf("a later revision: %+v", answer)
	}
	made := make(chan error, 1)
	go func() {
		_, err := o.plane.CreateDomain(context.Background(), o.who, []byte(`{"name":"b.example.com","upstreams":[{"dial":"upstream.example.com:443"}]}`))
		made <- err
	}()
	answer, header, names := fetch(feed.Request{After: &revision, ETag: full.ETag, Wait: 25 * time.Second})
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	if header == nil || header.Full || header.Base != revision || len(names) != 1 || !answer.Waited {
		t.Fatalf("difference: %+v %+v %v", answer, header, names)
	}

	for name, c := range map[string]struct {
		header http.Header
		path   string
		status int
		gzip   bool
	}{
		"without a token":     {http.Header{}, "/v1/edge/domains", 401, false},
		"with an API key":     {http.Header{"Authorization": {"Bearer " + o.apiKey}}, "/v1/edge/domains", 401, false},
		"without compression": {http.Header{"Authorization": {"Bearer " + o.edgeToken}, "Accept-Encoding": {"identity"}}, "/v1/edge/domains", 200, false},
		"with compression":    {http.Header{"Authorization": {"Bearer " + o.edgeToken}, "Accept-Encoding": {"gzip"}}, "/v1/edge/domains", 200, true},
		"a wrong revision":    {http.Header{"Authorization": {"Bearer " + o.edgeToken}}, "/v1/edge/domains?after=-1", 422, false},
	} {
		r := httptest.NewRequest(http.MethodGet, c.path, nil)
		r.Header = c.header
		w := httptest.NewRecorder()
		o.edge.Config.Handler.ServeHTTP(w, r)
		if w.Code != c.status && (c.status != 422 || w.Code != 400) || (w.Header().Get("Content-Encoding") == "gzip") != c.gzip {
			t.Errorf("%s: %d %v", name, w.Code, w.Header())
		}
		if c.status == 200 && (!strings.Contains(w.Header().Get("Vary"), "Accept-Encoding") || w.Header().Get("Cache-Control") != "no-store") {
			t.Errorf("%s: %v", name, w.Header())
		}
	}
	if resp, _ := o.get("/v1/edge/domains", nil); resp.StatusCode != http.StatusNotFound {
		t.Errorf("the public face has the feed: %d", resp.StatusCode)
	}
}

func TestPreferredWait(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"wait=25": 25 * time.Second, "respond-async, WAIT=5; x=y": 5 * time.Second, `wait="7"`: 7 * time.Second, "wait": 0, "wait=-1": 0, "wait=1e9": 0,
		"waits=4": 0, "": 0, "wait=99999999999": 0,
	} {
		if got := preferredWait(http.Header{"Prefer": {value}}); got != want {
			t.Errorf("%q: %v", value, got)
		}
	}
}

// An edge reports over HTTP, and the customer sees it in every form.
func TestObserveOverHTTP(t *testing.T) {
	o := newObserved(t)
	d := o.domain("a.example.com")
	now := time.Now().UTC().Truncate(time.Microsecond)
	body := func(sequence int) string {
		var records []edgereport.Connection
		for i := range 3 {
			records = append(records, edgereport.Connection{Time: now.Add(-time.Duration(i) * time.Second), ID: id.New().String(), Domain: d.Name, Tenant: o.tenant,
				Group: "X25519MLKEM768", PostQuantum: true, EndReason: "done"})
		}
		text, err := json.Marshal(&edgereport.Report{
			Edge: edgereport.Edge{Name: "e1", StartedAt: now.Truncate(time.Millisecond)}, Sequence: uint64(sequence), SentAt: now,
			Counters: []edgereport.Counter{{Domain: d.Name, Tenant: o.tenant, Minute: now.Truncate(time.Minute), Connections: 3, BytesIn: 7,
				Groups: map[string]int64{"X25519MLKEM768": 3}, EndReasons: map[string]int64{"done": 3}}},
			Connections: records,
		})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	first := body(1)
	for i, want := range []string{`"duplicate":false`, `"duplicate":true`} {
		if status, text := o.report(first, i == 0); status != 200 || !strings.Contains(text, want) || !strings.Contains(text, `"resend":false`) {
			t.Fatalf("%d %s", status, text)
		}
	}
	if status, text := o.report(`{"edge":`, false); status != 400 {
		t.Errorf("%d %s", status, text)
	}
	if status, text := o.report(strings.Repeat(" ", management.MaxReport)+first, true); status != 413 {
		t.Errorf("a bomb: %d %s", status, text)
	}

	resp, text := o.get("/v1/connections?limit=2", nil)
	var page struct {
		Data       []map[string]any `json:"data"`
		NextCursor *string          `json:"next_cursor"`
	}
	if err := json.Unmarshal(text, &page); err != nil || resp.StatusCode != 200 || len(page.Data) != 2 || page.NextCursor == nil {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	if c := page.Data[0]; c["domain"] != d.Name || c["domain_id"] != d.ID || c["edge"] != "e1" || c["post_quantum"] != true || c["group"] != "X25519MLKEM768" {
		t.Errorf("%v", c)
	}
	resp, text = o.get("/v1/connections?limit=2&cursor="+*page.NextCursor, http.Header{"Accept": {ndjsonType}})
	if lines := bytes.Count(text, []byte("\n")); lines != 1 || resp.Header.Get("Content-Type") != ndjsonType || resp.Header.Get(nextCursorHeader) != "" {
		t.Errorf("%d lines: %s", lines, text)
	}
	for path, want := range map[string]string{
		"/v1/usage": `"connections":3,"bytes_in":7`,
		"/v1/usage?step=total&domain=a.example.com":            `"connections":3,"bytes_in":7`,
		"/v1/domains/" + d.ID + "/series?step=hour":            `"post_quantum_share":[`,
		"/v1/reports/post-quantum":                             `"connections":3,"post_quantum":3,"share":1,"hello_retries":0`,
		"/v1/reports/require?domain=a.example.com&days=1":      `"connections":3,"refused":0,"share":0,"complete":true,"by_client":[]`,
		"/v1/platform/edges":                                   `"name":"e1"`,
		"/v1/connections?post_quantum=false":                   `"data":[]`,
		"/v1/connections?domain=a.example.com&end_reason=done": `"end_reason":"done"`,
	} {
		if resp, text := o.get(path, nil); resp.StatusCode != 200 || !strings.Contains(string(text), want) {
			t.Errorf("%s: %d %s", path, resp.StatusCode, text)
		}
	}
	for _, path := range []string{
		"/v1/usage?step=minute", "/v1/connections?client_ip=x", "/v1/connections?limit=1001", "/v1/connections?from=x", "/v1/reports/require?days=0",
		"/v1/connections?cursor=x", "/v1/domains/" + d.ID + "/series?step=total", "/v1/connections?group=a&group=b",
	} {
		if resp, text := o.get(path, nil); resp.StatusCode != 422 && resp.StatusCode != 400 {
			t.Errorf("%s: %d %s", path, resp.StatusCode, text)
		}
	}

	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, o.public.URL+"/v1/connections/tail", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+o.apiKey)
	stream, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	if stream.StatusCode != 200 || stream.Header.Get("Content-Type") != eventsType {
		t.Fatalf("tail: %d %v", stream.StatusCode, stream.Header)
	}
	lines := make(chan string, 100)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(stream.Body); s.Scan(); {
			lines <- s.Text()
		}
	}()
	<-lines // the stream has begun
	deadline := time.After(30 * time.Second)
	for sequence := 2; ; sequence++ { // until the reader of records has begun too
		if status, text := o.report(body(sequence), true); status != 200 {
			t.Fatalf("%d %s", status, text)
		}
		var line string
		select {
		case line = <-lines:
		case <-time.After(time.Second / 4):
			continue
		case <-deadline:
			t.Fatal("no record came")
		}
		if strings.HasPrefix(line, "event: connection") {
			break
		}
	}
	// The key is deleted: the stream ends.
	if err := o.plane.DeleteAPIKey(t.Context(), o.who, o.who.APIKeyID); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case _, open := <-lines:
			if !open {
				return
			}
		case <-deadline:
			t.Fatal("the stream goes on without a key")
		}
	}
}
