package api_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/api"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// The tests of this file and of contract_*_test.go walk through DESIGN.md sections 5 and 9 as a stranger would, over HTTP alone:
// what is there called by name is there so, and nothing else is said of it.

// contract is both faces of a service with real storage, keys and tokens.
type contract struct {
	t            *testing.T
	public, edge *httptest.Server
	plane        *management.Plane
	signing      *feedsig.PrivateKey
	clock        *movedClock
	world        *toldWorld

	key    string // of the first tenant, with `*` and `platform:*`
	tenant string // the first
}

// movedClock moves when it is told to, and by a little whenever somebody looks.
type movedClock struct {
	mu sync.Mutex
	at time.Time
}

func (c *movedClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(10 * time.Microsecond)
	return c.at
}

func (c *movedClock) move(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(by)
}

// toldWorld is DNS that says what it was told.
type toldWorld struct {
	mu     sync.Mutex
	points map[string]bool
	txt    map[string]string
}

func (w *toldWorld) set(name string, points bool, txt string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.points[name], w.txt[name] = points, txt
}

func (w *toldWorld) Look(_ context.Context, q management.Lookup) management.Observation {
	w.mu.Lock()
	defer w.mu.Unlock()
	finding := func(ok bool) management.Finding {
		if ok {
			return management.Finding{State: management.FoundOK}
		}
		return management.Finding{State: management.FoundAbsent, Detail: "There is none."}
	}
	o := management.Observation{
		Traffic: finding(w.points[q.Name]), Ownership: finding(w.txt[q.Name] == q.Ownership), CAA: management.Finding{State: management.FoundOK},
	}
	seen := []string{"198.51.100.7"}
	if w.points[q.Name] {
		seen = []string{"203.0.113.10"}
	}
	o.Records = []management.Record{
		{Purpose: "traffic", Type: "A", Name: q.Name, Value: "203.0.113.10", Seen: seen, OK: w.points[q.Name]},
		{Purpose: "ownership", Type: "TXT", Name: "_pqproxy." + strings.TrimPrefix(q.Name, "*."), Value: q.Ownership, OK: w.txt[q.Name] == q.Ownership},
	}
	return o
}

func (w *toldWorld) Prove(context.Context, string, string, string) management.Finding {
	return management.Finding{State: management.FoundAbsent}
}
func (w *toldWorld) PublicSuffix(name string) bool { return name == "com" }
func (w *toldWorld) Probe(_ context.Context, d *domain.Domain, _ *netpolicy.Policy) (all []management.UpstreamProbe) {
	for _, u := range d.Upstreams {
		all = append(all, management.UpstreamProbe{Dial: u.Dial, Error: "nobody is there"})
	}
	return all
}

// quickPasswords take what real ones take, and spend no time on it.
type quickPasswords struct{ *auth.Passwords }

func (quickPasswords) Hash(_ context.Context, text string) (string, error) { return "#" + text, nil }
func (quickPasswords) Verify(_ context.Context, hash, text string) (ok, stale bool, err error) {
	return hash == "#"+text, false, nil
}

func newContract(t *testing.T, edit func(*management.Config, *api.Options)) *contract {
	t.Helper()
	c := &contract{t: t, clock: &movedClock{at: time.Now()}, world: &toldWorld{points: make(map[string]bool), txt: make(map[string]string)}}
	sealer, err := vault.New(vault.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	if c.signing, err = feedsig.Generate(rand.Reader); err != nil {
		t.Fatal(err)
	}
	public, err := url.Parse("https://console.example.org:8443")
	if err != nil {
		t.Fatal(err)
	}
	policy, err := netpolicy.New([]string{"10.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	cfg := management.Config{
		SetupToken: "the set-up token", PublicURL: public, SignupOpen: true, UpstreamPolicy: policy,
		Targets: []management.Target{{Type: "a", Value: "203.0.113.10"}, {Type: "cname", Value: "edge.example.org"}},
	}
	opts := api.Options{Log: quiet, Clock: c.clock.now}
	if edit != nil {
		edit(&cfg, &opts)
	}
	c.plane, err = management.New(cfg, management.Parts{
		Store: storetest.Open(t, store.SQLite), Sealer: sealer, Passwords: quickPasswords{auth.NewPasswords(1)}, Auth: auth.NewPlane("pqproxy", c.clock.now),
		Resolver: c.world, Prober: c.world, Signer: c.signing, Log: quiet, Clock: c.clock.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	a := api.New(c.plane, opts)
	c.public, c.edge = httptest.NewServer(a.Public()), httptest.NewServer(a.Edge())
	t.Cleanup(c.public.Close)
	t.Cleanup(c.edge.Close)
	return c
}

// work runs the background work until the test ends.
func (c *contract) work() {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); c.plane.Run(ctx, "contract") }()
	c.t.Cleanup(func() { stop(); <-ended })
}

// setUp does the first run.
func (c *contract) setUp() {
	c.t.Helper()
	made := c.do("", "POST", "/v1/setup", `{"setup_token":"the set-up token","email":"root@example.org","password":"correct horse battery","tenant":"First","api_key":true}`).want(201)
	c.key, c.tenant = made.str("api_key", "secret"), made.str("tenant", "id")
}

// reply is an answer.
type reply struct {
	*http.Response
	c     *contract
	where string
	text  string
	doc   any
}

// do sends a request: with an API key or an edge token, with a session's cookie, or, where who is empty, as a stranger. What comes
// behind the body are headers, name and value in turn.
func (c *contract) do(who, method, path, body string, header ...string) *reply {
	c.t.Helper()
	base := c.public.URL
	if strings.HasPrefix(path, "/v1/edge/") {
		base = c.edge.URL
	}
	return c.at(base, who, method, path, body, header...)
}

func (c *contract) at(base, who, method, path, body string, header ...string) *reply {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, base+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	switch {
	case strings.HasPrefix(who, "pq"):
		r.Header.Set("Authorization", "Bearer "+who)
	case who != "":
		r.Header.Set("Cookie", "__Host-pqproxy_session="+who)
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	transport := &http.Transport{DisableCompression: true}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	a := &reply{Response: resp, c: c, where: method + " " + path, text: string(text)}
	if resp.Header.Get("Content-Encoding") == "gzip" {
		zip, err := gzip.NewReader(bytes.NewReader(text))
		if err != nil {
			c.t.Fatal(err)
		}
		if text, err = io.ReadAll(zip); err != nil {
			c.t.Fatal(err)
		}
		a.text = string(text)
	}
	if strings.Contains(resp.Header.Get("Content-Type"), "json") && !strings.Contains(resp.Header.Get("Content-Type"), "ndjson") {
		if err := json.Unmarshal(text, &a.doc); err != nil {
			c.t.Fatalf("%s: %v", a.where, err)
		}
	}
	return a
}

// want ends the test unless the answer has that status.
func (a *reply) want(status int) *reply {
	a.c.t.Helper()
	if a.StatusCode != status {
		a.c.t.Fatalf("%s: %d, want %d: %s", a.where, a.StatusCode, status, a.text)
	}
	return a
}

// at returns what is at a place in the document; nil where nothing is.
func (a *reply) at(place ...any) any {
	v := a.doc
	for _, step := range place {
		switch step := step.(type) {
		case string:
			object, _ := v.(map[string]any)
			v = object[step]
		case int:
			list, _ := v.([]any)
			if step >= len(list) {
				return nil
			}
			v = list[step]
		}
	}
	return v
}

func (a *reply) str(place ...any) string {
	a.c.t.Helper()
	s, ok := a.at(place...).(string)
	if !ok {
		a.c.t.Fatalf("%s: %v is no text: %s", a.where, place, a.text)
	}
	return s
}

func (a *reply) list(place ...any) []any {
	a.c.t.Helper()
	l, ok := a.at(place...).([]any)
	if !ok {
		a.c.t.Fatalf("%s: %v is no list: %s", a.where, place, a.text)
	}
	return l
}

// is checks the value at a place.
func (a *reply) is(want any, place ...any) *reply {
	a.c.t.Helper()
	if n, ok := want.(int); ok {
		want = float64(n)
	}
	if got := a.at(place...); got != want {
		a.c.t.Errorf("%s: %v is %v, want %v", a.where, place, got, want)
	}
	return a
}

// problem checks that the answer is a problem document of that code, with faults at just these pointers.
func (a *reply) problem(status int, code string, pointers ...string) *reply {
	a.c.t.Helper()
	if a.StatusCode != status || a.at("code") != code {
		a.c.t.Errorf("%s: %d %v, want %d %s: %s", a.where, a.StatusCode, a.at("code"), status, code, a.text)
		return a
	}
	want := S{"type": "=urn:pqproxy:problem:" + code, "title": "str", "status": "num", "detail": "str", "code": "=" + code, "request_id": "req_"}
	if a.at("errors") != nil {
		want["errors"] = []any{S{"pointer": "any", "detail": "str"}}
	}
	a.shape(want)
	if a.Header.Get("Content-Type") != "application/problem+json" || a.at("status") != float64(status) || a.Header.Get("X-Request-Id") != a.at("request_id") {
		a.c.t.Errorf("%s: %v %s", a.where, a.Header, a.text)
	}
	if status == 401 && a.Header.Get("WWW-Authenticate") == "" || status == 429 && a.Header.Get("Retry-After") == "" {
		a.c.t.Errorf("%s: %v", a.where, a.Header)
	}
	var got []string
	faults, _ := a.at("errors").([]any)
	for i := range faults {
		got = append(got, a.str("errors", i, "pointer"))
	}
	if pointers != nil && !slices.Equal(got, pointers) {
		a.c.t.Errorf("%s: faults at %q, want %q", a.where, got, pointers)
	}
	return a
}

// S is the shape of an object: its members, each with a kind: str, text (not empty), num, bool, time, any, null; a prefix of IDs such as
// dom_; =VALUE; a shape; a list with the shape of all its elements, which must have one. With | there is a choice, such as null|str. A
// member whose name ends in ? may be missing. Others than these are not there.
type S map[string]any

func (a *reply) shape(want any, place ...any) *reply {
	a.c.t.Helper()
	a.c.shape(a.where, a.at(place...), want)
	return a
}

func (c *contract) shape(where string, got, want any) {
	c.t.Helper()
	switch want := want.(type) {
	case S:
		object, ok := got.(map[string]any)
		if !ok {
			c.t.Errorf("%s: %v is no object", where, got)
			return
		}
		for name, kind := range want {
			name, optional := strings.CutSuffix(name, "?")
			if v, there := object[name]; there {
				c.shape(where+" "+name, v, kind)
			} else if !optional {
				c.t.Errorf("%s: %s is missing", where, name)
			}
		}
		for name := range object {
			if want[name] == nil && want[name+"?"] == nil {
				c.t.Errorf("%s: %s is in no contract", where, name)
			}
		}
	case []any:
		list, ok := got.([]any)
		if !ok || len(list) == 0 {
			c.t.Errorf("%s: %v is no list with something in it", where, got)
		}
		for i, v := range list {
			c.shape(where+" "+strconv.Itoa(i), v, want[0])
		}
	case string:
		for kind := range strings.SplitSeq(want, "|") {
			if fits(got, kind) {
				return
			}
		}
		c.t.Errorf("%s: %v is not %s", where, got, want)
	default:
		panic("no shape")
	}
}

var idForm = regexp.MustCompile(`^[a-z]{3}_[0-7][0-9abcdefghjkmnpqrstvwxyz]{25}$`)

func fits(v any, kind string) bool {
	text, isText := v.(string)
	switch kind {
	case "any":
		return true
	case "null":
		return v == nil
	case "str":
		return isText
	case "text":
		return text != ""
	case "num":
		_, ok := v.(float64)
		return ok
	case "bool":
		_, ok := v.(bool)
		return ok
	case "list":
		_, ok := v.([]any)
		return ok
	case "time":
		at, err := time.Parse(time.RFC3339, text)
		return err == nil && strings.HasSuffix(text, "Z") && at.Year() > 2000
	}
	if value, ok := strings.CutPrefix(kind, "="); ok {
		return text == value
	}
	return strings.HasSuffix(kind, "_") && strings.HasPrefix(text, kind) && idForm.MatchString(text)
}

// The shapes of DESIGN.md section 9, with what is there beyond it.
var (
	tenantShape = S{"id": "ten_", "name": "str", "trusted": "bool", "suspended": "bool", "max_domains": "num", "created_at": "time", "updated_at": "time"}
	userShape   = S{"id": "usr_", "email": "str", "platform": "bool", "totp": "bool", "created_at": "time", "updated_at": "time"}
	keyShape    = S{"id": "key_", "tenant": "ten_", "name": "str", "scopes": []any{"str"}, "prefix": "text", "created_by": "usr_", "created_at": "time",
		"expires_at?": "time", "last_used_at?": "time"}
	tokenShape  = S{"id": "etk_", "name": "str", "prefix": "text", "created_by": "usr_", "created_at": "time", "last_used_at?": "time"}
	recordShape = S{"purpose": "=traffic|=ownership", "type": "text", "name": "text", "value": "text", "seen": "list", "ok": "bool"}
	axisShape   = S{"state": "=ok|=pending|=failed|=unknown|=off", "detail": "str", "checked_at": "null|time"}
	domainShape = S{
		"id": "dom_", "name": "text", "tenant": "ten_", "upstreams": []any{S{"dial": "text", "tls?": "any", "region?": "str"}}, "load_balancing": "text",
		"proxy_protocol": "text", "post_quantum": "text", "alpn?": "list", "health_check?": "any", "certificate": S{"source": "text", "fallback?": "text"},
		"max_connections": "num", "suspended": "bool", "revision": "num", "created_at": "time", "updated_at": "time",
		"status":  "=pending_dns|=verifying|=issuing|=deploying|=active|=degraded|=moved|=suspended|=deleting",
		"serving": "bool", "stuck": "bool", "next_action": "any", "records": "list",
		"axes": S{
			"ownership":   with(axisShape, S{"proof": "null|=trusted|=txt|=http|=dns"}),
			"dns":         axisShape,
			"certificate": with(axisShape, S{"not_after": "null|time"}),
			"upstream":    axisShape,
			"edges":       with(axisShape, S{"live": "num", "of": "num", "since": "null|time"}),
		},
	}
	nextShape        = S{"who": "=customer|=operator|=service", "text": "text", "record": "any"}
	certificateShape = S{
		"id": "crt_", "domain": "text", "domain_id": "dom_", "source": "=byoc|=acme|=internal", "state": "text", "issuer": "str", "serial": "str", "sha256": "str",
		"key_type": "str", "names": []any{"text"}, "not_before": "null|time", "not_after": "null|time", "detail": "str", "warnings": "list",
	}
	connectionShape = S{
		"id": "text", "time": "time", "server_name": "str", "domain": "text", "domain_id": "dom_", "tenant": "ten_", "source": "str", "edge": "text", "region": "str",
		"client_ip": "str", "client_port": "num", "tls_version": "str", "cipher_suite": "str", "group": "str", "post_quantum": "bool",
		"offered_post_quantum": "bool", "hello_retry": "bool", "resumed": "bool", "alpn": "str", "upstream": "str", "upstream_group": "str",
		"upstream_post_quantum": "bool", "upstream_resumed": "bool", "proxy_protocol": "str", "hello_wait": "num", "handshake": "num",
		"upstream_connect": "num", "upstream_handshake": "num", "first_byte": "num", "duration": "num", "bytes_in": "num", "bytes_out": "num",
		"closed_by": "str", "end_reason": "text", "error": "str",
	}
	edgeShape = S{"id": "edg_", "name": "text", "region": "str", "version": "str", "state": "=up|=stale", "revision": "num", "draining": "bool",
		"live_connections": "num", "started_at": "time", "first_seen": "time", "last_seen": "time", "conflict": "bool", "dropped_records": "num",
		"unknown_domains": "num", "edge_token": "etk_"}
	eventShape = S{"id": "evt_", "time": "time", "tenant?": "ten_", "actor": "text", "action": "text", "object?": "text", "client_ip?": "text",
		"request_id?": "text", "before": "any", "after": "any"}
)

// with returns both.
func with(a, b S) S {
	all := S{}
	for _, s := range []S{a, b} {
		for name, kind := range s {
			all[name] = kind
		}
	}
	return all
}

func page(of any) S { return S{"data": []any{of}, "next_cursor": "null|text"} }

// signIn returns a session's cookie.
func (c *contract) signIn(email, password string) string {
	c.t.Helper()
	a := c.do("", "POST", "/v1/sessions", fmt.Sprintf(`{"email":%q,"password":%q}`, email, password)).want(201)
	for _, cookie := range a.Cookies() {
		return cookie.Value
	}
	c.t.Fatal("no cookie")
	return ""
}

// signUp returns a session of the owner of a new tenant, which nobody trusts.
func (c *contract) signUp(email string) string {
	c.t.Helper()
	c.do("", "POST", "/v1/signup", fmt.Sprintf(`{"email":%q,"password":"correct horse battery","tenant":"Other"}`, email)).want(202)
	return c.signIn(email, "correct horse battery")
}

// domain adds a domain and returns its ID.
func (c *contract) domain(who, name string) string {
	c.t.Helper()
	return c.do(who, "POST", "/v1/domains", fmt.Sprintf(`{"name":%q,"upstreams":[{"dial":"10.0.0.5:8443"}]}`, name)).want(201).str("id")
}

// edgeToken makes one.
func (c *contract) edgeToken() string {
	c.t.Helper()
	return c.do(c.key, "POST", "/v1/platform/edge_tokens", `{"name":"edges"}`).want(201).str("secret")
}

// until asks again and again until the answer is as it should be.
func (c *contract) until(what string, ask func() *reply, good func(*reply) bool) *reply {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		a := ask()
		if good(a) {
			return a
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.t.Fatalf("%s: still %d %s", what, a.StatusCode, a.text)
		}
	}
}

// signed checks the signature of a feed's body.
func (c *contract) signed(a *reply) {
	c.t.Helper()
	if err := c.signing.Public().Verify(a.Header.Get("PQProxy-Signature"), sha512.Sum512([]byte(a.text))); err != nil {
		c.t.Errorf("%s: %v", a.where, err)
	}
}
