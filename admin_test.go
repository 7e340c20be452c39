package pqproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// apiClient asks the admin endpoint of an edge.
type apiClient struct {
	t    testing.TB
	http *http.Client

	mu   sync.Mutex
	said bytes.Buffer // all answers, headers too
}

// api returns a client for the edge's admin endpoint, which makes a connection for each request: a reload closes those
// that idle.
func (e *edge) api() *apiClient {
	e.t.Helper()
	return &apiClient{t: e.t, http: &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.dir+"/admin.sock")
		},
	}}}
}

// apiReply is an answer of the admin endpoint.
type apiReply struct {
	status int
	header http.Header
	body   string
}

// do asks and reads the answer. headers are names and values in turn. Any goroutine may call it.
func (a *apiClient) do(method, path, body string, headers ...string) (*apiReply, error) {
	r, err := http.NewRequest(method, "http://edge/pqproxy"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := a.http.Do(r)
	if errors.Is(err, io.EOF) { // the endpoint of the config before, which Caddy stops beside us, took it
		r.Body = io.NopCloser(strings.NewReader(body))
		answer, err = a.http.Do(r)
	}
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = answer.Header.Write(&a.said)
	a.said.Write(content)
	return &apiReply{answer.StatusCode, answer.Header, string(content)}, nil
}

// want asks and expects a status.
func (a *apiClient) want(status int, method, path, body string, headers ...string) *apiReply {
	a.t.Helper()
	reply, err := a.do(method, path, body, headers...)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	if reply.status != status {
		a.t.Fatalf("%s %s: status %d, want %d: %s", method, path, reply.status, status, reply.body)
	}
	return reply
}

// into reads the answer's JSON.
func (r *apiReply) into(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.body), v); err != nil {
		t.Fatalf("%v in %s", err, r.body)
	}
}

// fault returns the text of an answer that is an error.
func (r *apiReply) fault(t testing.TB) string {
	t.Helper()
	var answer map[string]string
	r.into(t, &answer)
	if len(answer) != 1 || answer["error"] == "" {
		t.Errorf("the error is %s", r.body)
	}
	return answer["error"]
}

// shownDomain is domainAnswer as a client reads it.
type shownDomain struct {
	Domain struct {
		Name           string
		Tenant         string
		Upstreams      []struct{ Dial string }
		MaxConnections int `json:"max_connections"`
		Suspended      bool
	}
	Source   string
	Shadows  []string
	Shadowed []struct {
		Source string
		Domain struct{ Tenant string }
	}
	Certificate struct {
		Source, Issuer, Error string
		NotAfter              time.Time `json:"not_after"`
	}
	Warnings []string
}

// get returns what the API shows of a name.
func (a *apiClient) get(name string) (d shownDomain, etag string) {
	a.t.Helper()
	reply := a.want(http.StatusOK, "GET", "/domains/"+name, "")
	reply.into(a.t, &d)
	return d, reply.header.Get("ETag")
}

// record is the JSON of a domain with an upstream, a pair of the edge's CA, and further members as they are.
func (e *edge) record(name, dial string, members ...string) string {
	e.t.Helper()
	chain, key := e.ca.PairPEM(e.t, name)
	pair, err := json.Marshal(map[string]string{"source": "byoc", "chain_pem": string(chain), "key_pem": string(key)})
	if err != nil {
		e.t.Fatal(err)
	}
	all := append([]string{fmt.Sprintf(`"name":%q,"upstreams":[{"dial":%q}],"certificate":%s`, name, dial, pair)}, members...)
	return "{" + strings.Join(all, ",") + "}"
}

// adminOption is the pqproxy option of most tests here.
const adminOption = "limits {\n grace_period 50ms\n}\n" + loopbackAllowed

// TestAdminDomains adds, changes, suspends, resumes and removes a domain while it is used.
func TestAdminDomains(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, adminOption)
	api := e.api()
	one, two := pqtest.StartUpstream(t, pqtest.UpstreamConfig{}), pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	app := func(up *pqtest.Upstream, members ...string) string {
		return e.record("app.example.com", up.Addr(), members...)
	}
	if _, err := e.handshake(e.client("app.example.com")); alertOfHandshake(err) != alertUnrecognizedName {
		t.Errorf("before it is added: %v", err)
	}

	reply := api.want(http.StatusCreated, "PUT", "/domains/app.example.com", app(one))
	if reply.header.Get("ETag") != api.want(http.StatusOK, "GET", "/domains/app.example.com", "").header.Get("ETag") {
		t.Error("PUT and GET have two ETags")
	}
	first := e.dial(e.client("app.example.com")) // at once
	echo(t, first, "hello")
	d, _ := api.get("APP.Example.COM.")
	if d.Source != "admin" || d.Domain.Name != "app.example.com" || d.Shadows != nil || d.Certificate.Source != "byoc" || d.Certificate.Error != "" ||
		time.Until(d.Certificate.NotAfter) < time.Hour || d.Certificate.Issuer == "" {
		t.Errorf("it is shown as %+v", d)
	}

	api.want(http.StatusOK, "PUT", "/domains/app.example.com", app(two))
	echo(t, first, "unchanged") // a change of upstreams ends nothing
	second := e.dial(e.client("app.example.com"))
	echo(t, second, "hello")
	if one.Accepted() != 1 || two.Accepted() != 1 {
		t.Errorf("the upstreams have %d and %d connections", one.Accepted(), two.Accepted())
	}

	api.want(http.StatusOK, "PUT", "/domains/app.example.com", app(two, `"suspended":true`))
	if _, err := e.handshake(e.client("app.example.com")); alertOfHandshake(err) != alertUnrecognizedName {
		t.Errorf("suspended: %v", err)
	}
	for range 2 {
		e.log.recordWhere("upstream", one.Addr())
		one = two
	}
	api.want(http.StatusOK, "PUT", "/domains/app.example.com", app(two))
	third := e.dial(e.client("app.example.com"))
	echo(t, third, "hello")

	if body := api.want(http.StatusNoContent, "DELETE", "/domains/app.example.com", "").body; body != "" {
		t.Errorf("DELETE answers %q", body)
	}
	if _, err := e.handshake(e.client("app.example.com")); alertOfHandshake(err) != alertUnrecognizedName {
		t.Errorf("removed: %v", err)
	}
	e.log.recordWhere("end_reason", "domain_removed")
	if n := len(e.log.all(func(l logLine) bool { return l.str("end_reason") == "suspended" && l.str("upstream") != "" })); n != 2 {
		t.Errorf("%d open connections were ended as suspended, want 2", n)
	}
	api.want(http.StatusNotFound, "GET", "/domains/app.example.com", "")
	api.want(http.StatusNotFound, "DELETE", "/domains/app.example.com", "")
}

// TestAdminNames takes names as people write them, and the name in the body, which is optional.
func TestAdminNames(t *testing.T) {
	e := startAdminEdge(t, adminOption)
	api := e.api()
	const rest = `"upstreams":[{"dial":"name.example.net:443"}],"certificate":{"source":"internal"}`
	for _, test := range []struct {
		path, body string
		status     int
		want       string // in the answer
	}{
		{"Caf%C3%A9.Example.COM.", "{" + rest + "}", http.StatusCreated, `"name":"xn--caf-dma.example.com"`},
		{"xn--caf-dma.example.com", " \n{ " + rest + "}", http.StatusOK, `"name":"xn--caf-dma.example.com"`},
		{"xn--caf-dma.example.com", `{"name":"CAFÉ.example.com",` + rest + "}", http.StatusOK, `"name":"xn--caf-dma.example.com"`},
		{"*.example.com", "{" + rest + "}", http.StatusCreated, `"name":"*.example.com"`},
		{"%2A.example.com", "{" + rest + "}", http.StatusOK, `"name":"*.example.com"`},
		{"a.example.com", `{"name":"b.example.com",` + rest + "}", http.StatusBadRequest, "name: is b.example.com, and the path says a.example.com"},
		{"a.example.com", `{"name":"b.example.com","x":1,` + rest + "}", http.StatusBadRequest, `x: unknown field; remove it or correct its spelling (upper and lower case differ); name: is b.`},
		{"a.example.com", `{"Name":"a.example.com",` + rest + "}", http.StatusBadRequest, "Name: unknown field"},
		{"a.example.com", `{"n\u0061me":"a.example.com",` + rest + "}", http.StatusCreated, `"name":"a.example.com"`},
		{"a.example.com", `{"name":"",` + rest + "}", http.StatusBadRequest, "name"},
		{"a.example.com", `{}`, http.StatusBadRequest, `domain \"a.example.com\" is refused: upstreams: is missing`},
		{"a.example.com", `{"tenant":7,"upstreams":[{"dial":"x"}],"alpn":["acme-tls/1"],"max_connections":-1}`, http.StatusBadRequest,
			"tenant: must be a string, not a number; upstreams[0].dial: "},
		{"a.example.com", "", http.StatusBadRequest, "the record is not one JSON object"},
		{"a.example.com", "[]", http.StatusBadRequest, "must be an object, not an array"},
		{"a.example.com", "null", http.StatusBadRequest, "must be an object, not null"},
		{"a.example.com", "{" + rest + "} {}", http.StatusBadRequest, "the record is not one JSON object"},
		{"a.example.com", strings.Repeat("[", 20000), http.StatusBadRequest, "exceeded max depth"},
		{"192.0.2.1", "{" + rest + "}", http.StatusBadRequest, "the name in the path: "},
		{"a%2Fb.example.com", "{" + rest + "}", http.StatusBadRequest, "the name in the path: "},
		{strings.Repeat("a.", 200) + "com", "{" + rest + "}", http.StatusBadRequest, "the name in the path: "},
		{"%FF.com", "{" + rest + "}", http.StatusBadRequest, "the name in the path: "},
		{"", "{" + rest + "}", http.StatusNotFound, "there is no"},
	} {
		if reply := api.want(test.status, "PUT", "/domains/"+test.path, test.body); !strings.Contains(reply.body, test.want) {
			t.Errorf("PUT %s %.80s: %s, want %s", test.path, test.body, reply.body, test.want)
		}
	}
}

// TestAdminRequests are requests that are no good, whatever is in force.
func TestAdminRequests(t *testing.T) {
	e := startAdminEdge(t, adminOption)
	api := e.api()
	big := strings.Repeat(" ", domain.MaxSize+1)
	for _, test := range []struct {
		method, path, body string
		headers            []string
		status             int
		want               string // in the error
	}{
		{"GET", "/", "", nil, 404, "there is no \"/pqproxy/\"; there are /pqproxy/status, /pqproxy/domains, "},
		{"GET", "/nothing", "", nil, 404, "there is no \"/pqproxy/nothing\""},
		{"GET", "/status/", "", nil, 404, "there is no"},
		{"GET", "/domains/", "", nil, 404, "there is no"},
		{"POST", "/status", "", nil, 405, "it takes GET, HEAD"},
		{"DELETE", "/domains", "", nil, 405, "it takes GET, HEAD, PATCH, PUT"},
		{"PATCH", "/domains/app.example.com", "", nil, 405, "it takes DELETE, GET, HEAD, PUT"},
		{"GET", "/sync", "", nil, 405, "it takes POST"},
		{"HEAD", "/sync", "", nil, 405, ""},
		{"PUT", "/connections", "", nil, 405, "it takes DELETE, GET, HEAD"},
		{"POST", "/certificates", "", nil, 405, "it takes GET, HEAD"},

		{"GET", "/status?verbose=1", "", nil, 400, `query: there is no parameter "verbose"; this request takes none`},
		{"GET", "/domains?Limit=1", "", nil, 400, `query: there is no parameter "Limit"; this request takes limit, after, tenant`},
		{"GET", "/domains?limit=1&limit=2", "", nil, 400, "query: limit is given twice"},
		{"GET", "/domains?limit=", "", nil, 400, "query: limit is empty"},
		{"GET", "/domains?tenant", "", nil, 400, "query: tenant is empty"},
		{"GET", "/domains?limit=0", "", nil, 400, `query: limit is "0"; give a whole number from 1 to 1000`},
		{"GET", "/domains?limit=1001", "", nil, 400, "query: limit is"},
		{"GET", "/domains?limit=1e2", "", nil, 400, "query: limit is"},
		{"GET", "/domains?limit=-1", "", nil, 400, "query: limit is"},
		{"GET", "/domains?limit=99999999999999999999", "", nil, 400, "query: limit is"},
		{"GET", "/domains?limit=1;after=a", "", nil, 400, "query: limit is"},
		{"GET", "/domains?after=%zz", "", nil, 400, "query: after is not well encoded"},
		{"GET", "/domains?%zz=1", "", nil, 400, `query: there is no parameter "%zz"`},
		{"GET", "/domains?limit=1&", "", nil, 400, `query: there is no parameter ""`},
		{"GET", "/domains?after=..", "", nil, 400, "query: after: "},
		{"GET", "/domains/app.example.com?limit=1", "", nil, 400, "this request takes none"},
		{"PUT", "/domains?x=1", "{}", nil, 400, "this request takes none"},
		{"GET", "/connections?id=x", "", nil, 400, `there is no parameter "id"`},
		{"GET", "/connections?domain=1.2.3.4", "", nil, 400, "query: domain: "},
		{"DELETE", "/connections", "", nil, 400, "give exactly one of id, domain, tenant"},
		{"DELETE", "/connections?tenant=a&domain=b", "", nil, 400, "give exactly one of id, domain, tenant"},
		{"DELETE", "/connections?tenant=", "", nil, 400, "query: tenant is empty"},
		{"DELETE", "/connections?id=x", "", nil, 400, `query: id is "x"; give the 26 characters`},
		{"DELETE", "/connections?id=zzzzzzzzzzzzzzzzzzzzzzzzzz", "", nil, 400, "query: id is"},
		{"DELETE", "/connections?id=01m81wb050f3sr09tejjxabvjj", "", nil, 404, "no connection 01m81wb050f3sr09tejjxabvjj is open"},
		{"GET", "/certificates?expiring_within=soon", "", nil, 400, `query: expiring_within is "soon"; give a duration such as 30d`},
		{"GET", "/certificates?expiring_within=-1h", "", nil, 400, "query: expiring_within is"},
		{"POST", "/sync?accept_revision=1.5", "", nil, 400, "query: accept_revision is"},
		{"POST", "/sync?accept_revision=9223372036854775808", "", nil, 400, "query: accept_revision is"},
		{"POST", "/sync", "", nil, 409, "no management URL is configured"},

		{"PUT", "/domains/app.example.com", "{}", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "Content-Type: application/json"},
		{"PUT", "/domains", "{}", []string{"Content-Type", "text/json"}, 415, "send JSON"},
		{"PATCH", "/domains", "{}", []string{"Content-Type", "application/json/x"}, 415, "send JSON"},
		{"PUT", "/domains", "{}", []string{"Content-Type", "application/json; charset=utf-8", "Content-Encoding", "gzip"}, 415, "has the encoding"},
		{"PUT", "/domains/app.example.com", big, nil, 413, "the body has more than 1048576 bytes"},
		{"PUT", "/domains/app.example.com", "{}", []string{"Content-Type", "application/json; charset=utf-8"}, 400, "upstreams: is missing"},
		{"GET", "/domains/app.example.com", "", nil, 404, "there is no domain app.example.com"},
	} {
		reply := api.want(test.status, test.method, test.path, test.body, test.headers...)
		if test.method != "HEAD" {
			if fault := reply.fault(t); !strings.Contains(fault, test.want) {
				t.Errorf("%s %s: %q, want %q", test.method, test.path, fault, test.want)
			}
		}
		if allow := reply.header.Get("Allow"); (test.status == 405) != (allow != "") || !strings.Contains(test.want, allow) && test.want != "" {
			t.Errorf("%s %s: Allow is %q", test.method, test.path, allow)
		}
	}
	if reply := api.want(200, "HEAD", "/status", ""); reply.body != "" {
		t.Errorf("HEAD has the body %s", reply.body)
	}
	// A body of unknown length is bounded too.
	r, err := http.NewRequest("PUT", "http://edge/pqproxy/domains/app.example.com", io.MultiReader(strings.NewReader(big)))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := api.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != 413 {
		t.Errorf("a body of unknown length that is too large: status %d", answer.StatusCode)
	}
	if s := inForce.Load(); s.table.Load().size != 0 {
		t.Error("there are domains")
	}
}

// TestAdminReloads: the API works, and its domains stay, after reloads that failed, before or after Caddy has put up the
// endpoint of the failed config, and after those that did not.
func TestAdminReloads(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, adminOption)
	api := e.api()
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	works := func(when, name string) {
		t.Helper()
		api.t = t
		api.want(http.StatusCreated, "PUT", "/domains/"+name, e.record(name, up.Addr()))
		for _, served := range []string{"first.example.com", name} {
			c := e.dial(e.client(served))
			echo(t, c, when)
			c.Close()
		}
		var status struct{ Domains struct{ Admin, Static int } }
		api.want(http.StatusOK, "GET", "/status", "").into(t, &status)
		if status.Domains.Static != 0 || status.Domains.Admin != inForce.Load().table.Load().size {
			t.Errorf("%s: the status counts %+v", when, status)
		}
	}
	works("at first", "first.example.com")

	if err := e.tryLoad(adminOption + "domain bad.example.com {\n upstream x\n}"); err == nil {
		t.Fatal("the config loads")
	}
	works("after a config that was not provisioned", "second.example.com")

	failing := withApp(t, e.adapt("admin unix/$DIR/admin.sock"+frontDoor+"\npqproxy {\n"+adminOption+"\n}"), "pqproxy_test_failing", struct{}{})
	for i := range 8 { // Caddy starts apps in any order
		if err := caddy.Load(failing, true); err == nil || !strings.Contains(err.Error(), errInjected.Error()) {
			t.Fatalf("the config that fails to start: %v", err)
		}
		works("after a config that did not start", fmt.Sprintf("failed-%d.example.com", i))
	}
	for i := range 3 {
		e.load(adminOption)
		works("after a reload", fmt.Sprintf("reloaded-%d.example.com", i))
	}

	// Without the app there is nothing to ask; the connections that are left are those of a state being drained.
	c := e.dial(e.client("first.example.com"))
	echo(t, c, "before")
	e.loadOptions("admin unix/$DIR/admin.sock")
	if fault := api.want(http.StatusServiceUnavailable, "GET", "/domains", "").fault(t); !strings.Contains(fault, "load one that has it") {
		t.Errorf("without the app: %s", fault)
	}
	api.want(http.StatusServiceUnavailable, "PUT", "/domains/first.example.com", "{}")
}

// TestAdminDraining: a config without the app ends connections after the grace period; meanwhile they are shown, and can
// be ended at once.
func TestAdminDraining(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, "limits {\n grace_period 1h\n}\n"+loopbackAllowed)
	api := e.api()
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	api.want(http.StatusCreated, "PUT", "/domains/app.example.com", e.record("app.example.com", up.Addr()))
	c := e.dial(e.client("app.example.com"))
	echo(t, c, "hello")
	e.loadOptions("admin unix/$DIR/admin.sock")
	echo(t, c, "still there")

	var status struct {
		Draining    bool
		Connections int
	}
	api.want(http.StatusOK, "GET", "/status", "").into(t, &status)
	if !status.Draining || status.Connections != 1 {
		t.Errorf("the status is %+v", status)
	}
	api.want(http.StatusServiceUnavailable, "GET", "/domains", "")
	if body := api.want(http.StatusOK, "DELETE", "/connections?domain=app.example.com", "").body; body != "{\"ended\":1}\n" {
		t.Errorf("DELETE answers %s", body)
	}
	drains.Wait()
	if r := e.log.nextRecord(); r.str("end_reason") != "ended_by_admin" || r.str("closed_by") != "edge" {
		t.Errorf("the record is %v", r)
	}
	api.want(http.StatusServiceUnavailable, "GET", "/status", "")
}

// TestAdminUpstreamPolicy: a record may not point where the edge is not to connect, and says which range and entry that is.
func TestAdminUpstreamPolicy(t *testing.T) {
	e := startAdminEdge(t, "upstream_policy {\n allow 10.1.0.0/16\n}\n")
	api := e.api()
	for dial, want := range map[string][]string{
		"127.0.0.1:80":             {"127.0.0.0/8", "allow"},
		"[::ffff:127.0.0.1]:80":    {"127.0.0.0/8", "allow"},
		"169.254.169.254:80":       {"169.254.169.254", "allow"},
		"10.2.0.1:443":             {"10.0.0.0/8", "allow"},
		"[fd00::1]:443":            {"fc00::/7", "allow"},
		"224.0.0.1:443":            {"224.0.0.0/4"},
		e.addr:                     {"127.0.0.1"},
		"10.1.0.1:443":             nil,
		"name.of.something.com:80": nil, // judged by what it resolves to, at each dial
	} {
		body := e.record("app.example.com", "192.0.2.1:1")
		body = strings.Replace(body, "192.0.2.1:1", dial, 1)
		if want == nil {
			api.want(http.StatusCreated, "PUT", "/domains/app.example.com", body)
			api.want(http.StatusNoContent, "DELETE", "/domains/app.example.com", "")
			continue
		}
		fault := api.want(http.StatusBadRequest, "PUT", "/domains/app.example.com", body).fault(t)
		for _, part := range append(want, "upstreams[0].dial: ") {
			if !strings.Contains(fault, part) {
				t.Errorf("%s: %q lacks %s", dial, fault, part)
			}
		}
		var done outcome
		api.want(http.StatusOK, "PATCH", "/domains", `{"domains":[`+body+`]}`).into(t, &done)
		if done.Rejected != 1 || done.Added != 0 || len(done.Rejects) != 1 || done.Rejects[0].Name != "app.example.com" || done.Rejects[0].Field != "upstreams[0].dial" {
			t.Errorf("%s in a set: %+v", dial, done)
		}
	}
	api.want(http.StatusNotFound, "GET", "/domains/app.example.com", "")
}

// TestAdminSync polls on demand and tells how that went.
func TestAdminSync(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	p := startPlane(t)
	p.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	e := startAdminEdge(t, fmt.Sprintf("management %s/feed {\n interval 1h\n}\n", p.URL)+adminOption)
	e.log.message("polling the management URL")
	api := e.api()
	fault := api.want(http.StatusBadGateway, "POST", "/sync", "").fault(t)
	if !strings.Contains(fault, "goes on being served") || !strings.Contains(fault, "503") {
		t.Errorf("a poll that fails: %s", fault)
	}

	p.set(fmt.Sprintf(`{"revision":9,"domains":[%s,{"name":"bad.example.com"}]}`, e.record("app.example.com", "127.0.0.1:9")))
	var report struct {
		Result   string
		Revision int
		Outcome  struct{ Added, Rejected int }
	}
	api.want(http.StatusOK, "POST", "/sync", "").into(t, &report)
	if report.Result != "applied" || report.Revision != 9 || report.Outcome.Added != 1 || report.Outcome.Rejected != 1 {
		t.Errorf("the report is %+v", report)
	}
	var status struct {
		Version, Caddy string
		Started        time.Time
		Uptime         float64
		Revision       int
		Draining       *bool
		Domains        struct{ Total, Static, Admin, Remote int }
		Conflicts      struct {
			Count int
			List  []any
		}
		Rejected struct {
			Count int
			List  []refusal
		}
		Management struct{ URL string }
		LastSync   struct {
			Result    string
			Time      time.Time
			Staleness *float64
		} `json:"last_sync"`
		Unhealthy *struct {
			Count int
			List  []any
		} `json:"unhealthy_upstreams"`
	}
	api.want(http.StatusOK, "GET", "/status", "").into(t, &status)
	if status.Revision != 9 || status.Domains.Remote != 1 || status.Domains.Total != 1 || status.Rejected.Count != 1 || len(status.Rejected.List) != 1 ||
		status.Rejected.List[0].Name != "bad.example.com" || status.Management.URL != p.URL+"/feed" || status.LastSync.Result != "applied" || status.LastSync.Staleness == nil || status.LastSync.Time.IsZero() ||
		status.Version == "" || status.Caddy == "" || status.Uptime <= 0 || time.Since(status.Started) > time.Hour || status.Draining == nil || *status.Draining ||
		status.Conflicts.List == nil || status.Unhealthy == nil || status.Unhealthy.List == nil {
		t.Errorf("the status is %+v", status)
	}

	p.set(`{"revision":8,"domains":[]}`)
	if fault := api.want(http.StatusBadGateway, "POST", "/sync", "").fault(t); !strings.Contains(fault, "rollback") || !strings.Contains(fault, "accept_revision=8") {
		t.Errorf("a set that is older: %s", fault)
	}
	p.set(fmt.Sprintf(`{"revision":8,"domains":[%s]}`, e.record("old.example.com", "127.0.0.1:9")))
	api.want(http.StatusOK, "POST", "/sync?accept_revision=8", "").into(t, &report)
	if report.Result != "applied" || report.Revision != 8 {
		t.Errorf("going back: %+v", report)
	}
	if fault := api.want(http.StatusConflict, "DELETE", "/domains/old.example.com", "").fault(t); !strings.Contains(fault, "is of source remote") {
		t.Errorf("removing a remote domain: %s", fault)
	}
}
