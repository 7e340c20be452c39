package api

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

func TestCredentials(t *testing.T) {
	a := newTestAPI(t, Options{})
	authorization := func(values ...string) http.Header { return http.Header{"Authorization": values} }
	other := management.NewID(management.TenantID)
	for _, test := range []struct {
		name   string
		header http.Header
		edge   bool
		code   management.Code // "": let in
	}{
		{name: "key", header: authorization("Bearer " + fullKey)},
		{name: "scheme in lower case, more blanks", header: authorization("bearer   " + fullKey)},
		{name: "nothing", code: management.Unauthenticated},
		{name: "unknown key", header: authorization("Bearer " + unknownKey), code: management.Unauthenticated},
		{name: "other scheme", header: authorization("Basic " + fullKey), code: management.Unauthenticated},
		{name: "no scheme", header: authorization(fullKey), code: management.Unauthenticated},
		{name: "two headers", header: authorization("Bearer "+fullKey, "Bearer "+fullKey), code: management.Unauthenticated},
		{name: "wrong checksum", header: authorization("Bearer " + fullKey[:len(fullKey)-4] + "aaaa"), code: management.Unauthenticated},
		{name: "more behind it", header: authorization("Bearer " + fullKey + " x"), code: management.Unauthenticated},
		{name: "edge token", header: authorization("Bearer " + edgeKey), code: management.Unauthenticated},
		{name: "session", header: cookieOf(aSession)},
		{name: "unknown session", header: cookieOf("x"), code: management.Unauthenticated},
		{name: "two sessions", header: cookieOf(aSession + "; " + auth.SessionCookie + "=" + aSession), code: management.Unauthenticated},
		{name: "key and session", header: http.Header{"Authorization": {"Bearer " + fullKey}, "Cookie": cookieOf(aSession)["Cookie"]}, code: management.Malformed},
		{name: "its tenant", header: http.Header{"Authorization": {"Bearer " + fullKey}, "Pqproxy-Tenant": {aTenant}}},
		{name: "another tenant", header: http.Header{"Authorization": {"Bearer " + fullKey}, "Pqproxy-Tenant": {other}}, code: management.NotFound},
		{name: "no tenant's ID", header: http.Header{"Authorization": {"Bearer " + fullKey}, "Pqproxy-Tenant": {"acme"}}, code: management.Malformed},
		{name: "two tenants", header: http.Header{"Authorization": {"Bearer " + fullKey}, "Pqproxy-Tenant": {aTenant, aTenant}}, code: management.Malformed},
		{name: "edge: token", edge: true, header: authorization("Bearer " + edgeKey)},
		{name: "edge: nothing", edge: true, code: management.Unauthenticated},
		{name: "edge: API key", edge: true, header: authorization("Bearer " + fullKey), code: management.Unauthenticated},
		{name: "edge: session", edge: true, header: cookieOf(aSession), code: management.Unauthenticated},
	} {
		t.Run(test.name, func(t *testing.T) {
			q := request{target: "/v1/widgets", bearer: "none", header: test.header, edge: test.edge}
			if test.edge {
				q.method, q.target, q.body = "POST", "/v1/edge/widgets", "{}"
			}
			w := a.send(q)
			if test.code == "" {
				wantStatus(t, w, 200)
				return
			}
			wantProblem(t, w, test.code)
			if got := w.Header().Get("WWW-Authenticate"); (got == "Bearer") != (test.code == management.Unauthenticated) {
				t.Errorf("WWW-Authenticate %q", got)
			}
			if strings.Contains(w.Body.String()+a.log.String(), fullKey[8:40]) {
				t.Error("the key is shown")
			}
		})
	}
}

func TestCrossOrigin(t *testing.T) {
	a := newTestAPI(t, Options{})
	for _, test := range []struct {
		name, method, target string
		header               http.Header
		bearer               string
		refused              bool
	}{
		{name: "session, another site", method: "POST", header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, refused: true},
		{name: "session, sibling", method: "POST", header: http.Header{"Sec-Fetch-Site": {"same-site"}}, refused: true},
		{name: "session, old browser", method: "POST", header: http.Header{"Origin": {"https://evil.example"}}, refused: true},
		{name: "session, null origin", method: "DELETE", target: "/v1/widgets/1", header: http.Header{"Origin": {"null"}}, refused: true},
		{name: "session, same origin", method: "POST", header: http.Header{"Sec-Fetch-Site": {"same-origin"}}},
		{name: "session, curl", method: "POST"},
		{name: "session, reading", method: "GET", header: http.Header{"Sec-Fetch-Site": {"cross-site"}}},
		{name: "key, another site", method: "POST", header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, bearer: fullKey},
		{name: "signing in from another site", method: "POST", target: "/v1/sessions", header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, refused: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			q := request{method: test.method, target: test.target, bearer: test.bearer, header: http.Header{}}
			if q.target == "" {
				q.target = "/v1/widgets"
			}
			if q.method == "POST" {
				q.body = `{"name":"a"}`
			}
			if q.bearer == "" {
				q.bearer, q.header = "none", cookieOf(aSession)
			}
			for name, values := range test.header {
				q.header[name] = values
			}
			w := a.send(q)
			if test.refused {
				wantProblem(t, w, management.CrossOrigin)
			} else if w.Code >= 300 {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

func TestScopeIsAskedForBeforeTheBody(t *testing.T) {
	a := newTestAPI(t, Options{})
	wantProblem(t, a.send(request{method: "POST", target: "/v1/widgets", bearer: narrowKey, body: "{"}), management.Forbidden)
	wantStatus(t, a.send(request{target: "/v1/widgets", bearer: narrowKey}), 200)
}

func TestPrincipalKnowsTheRequest(t *testing.T) {
	addr := netip.MustParseAddr("203.0.113.9")
	a := newTestAPI(t, Options{ClientAddr: func(*http.Request) netip.Addr { return addr }})
	var who *management.Principal
	a.do = func(c *call) (*answer[widget], error) {
		who = c.who
		return ok("", widget{}), nil
	}
	w := a.send(request{method: "POST", target: "/v1/widgets", body: `{"name":"a"}`})
	if who.ClientAddr != addr || who.RequestID != w.Header().Get("X-Request-Id") || who.TenantID != aTenant {
		t.Errorf("%+v", who)
	}
}

func TestSessionCookieIsSet(t *testing.T) {
	a := newTestAPI(t, Options{})
	w := a.send(request{method: "POST", target: "/v1/sessions", bearer: "none", body: `{"name":"a"}`})
	wantStatus(t, w, 201)
	cookies := w.Result().Cookies()
	if len(cookies) != 1 || cookies[0].Name != auth.SessionCookie || cookies[0].Value != aSession || !cookies[0].Secure || !cookies[0].HttpOnly {
		t.Error(cookies)
	}
}

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) read() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestRateLimitOfCredential(t *testing.T) {
	now := &clock{now: time.Unix(1e9, 0)}
	a := newTestAPI(t, Options{RateLimit: 5, Clock: now.read})
	for range 10 { // twice as many at once
		wantStatus(t, a.send(request{target: "/v1/widgets"}), 200)
	}
	w := a.send(request{target: "/v1/widgets"})
	wantProblem(t, w, management.RateLimited)
	if w.Header().Get("Retry-After") != "1" {
		t.Error(w.Header())
	}
	wantStatus(t, a.send(request{target: "/v1/widgets", bearer: narrowKey}), 200) // another credential
	for range 50 {
		wantStatus(t, a.send(request{method: "POST", target: "/v1/edge/widgets", edge: true, body: "{}"}), 200)
	}
	now.add(time.Second)
	for range 5 {
		wantStatus(t, a.send(request{target: "/v1/widgets"}), 200)
	}
	wantProblem(t, a.send(request{target: "/v1/widgets"}), management.RateLimited)
}

// TestRateLimitOfStrangers: guesses cost their address, and lock nobody out who has a credential.
func TestRateLimitOfStrangers(t *testing.T) {
	now := &clock{now: time.Unix(1e9, 0)}
	addr := netip.MustParseAddr("203.0.113.9")
	a := newTestAPI(t, Options{RateLimit: 5, Clock: now.read, ClientAddr: func(*http.Request) netip.Addr { return addr }})
	for i := range 10 {
		switch i % 5 {
		case 0:
			wantProblem(t, a.send(request{target: "/v1/widgets", bearer: unknownKey}), management.Unauthenticated)
		case 1:
			wantProblem(t, a.send(request{target: "/v1/widgets", bearer: "none"}), management.Unauthenticated)
		case 2:
			wantProblem(t, a.send(request{target: "/v1/nothing", bearer: "none"}), management.NotFound)
		case 3:
			wantStatus(t, a.send(request{method: "POST", target: "/v1/sessions", bearer: "none", body: `{"name":"a"}`}), 201)
		case 4:
			wantProblem(t, a.send(request{target: "/v1/widgets", bearer: "none", header: cookieOf("guess")}), management.Unauthenticated)
		}
	}
	for _, q := range []request{
		{target: "/v1/widgets", bearer: unknownKey}, {target: "/v1/widgets", bearer: "none"}, {target: "/v1/nothing"}, {target: "/readyz"},
		{target: "/v1/widgets", bearer: "none", header: cookieOf("guess")}, {target: "/v1/widgets", edge: true, bearer: unknownKey},
	} {
		wantProblem(t, a.send(q), management.RateLimited)
	}
	wantStatus(t, a.send(request{target: "/v1/widgets"}), 200)
	wantStatus(t, a.send(request{target: "/healthz", bearer: "none"}), 200)
	addr = netip.MustParseAddr("203.0.113.10")
	wantProblem(t, a.send(request{target: "/v1/widgets", bearer: unknownKey}), management.Unauthenticated)
}

func TestInFlight(t *testing.T) {
	f := newInFlight(3)
	for i, want := range []bool{true, true, false} {
		if f.enter("a", 2) != want {
			t.Fatalf("a, %d", i)
		}
	}
	if !f.enter("b", 2) || f.enter("c", 2) {
		t.Fatal("wrong count")
	}
	f.leave("a")
	if !f.enter("c", 2) {
		t.Fatal("no place after one left")
	}
	f.leave("a")
	f.leave("b")
	f.leave("c")
	if f.all != 0 || len(f.of) != 0 {
		t.Fatalf("%d %v", f.all, f.of)
	}
}

// TestTooManyAtOnce: one credential cannot hold all the places.
func TestTooManyAtOnce(t *testing.T) {
	a := newTestAPI(t, Options{})
	inside, leave := make(chan struct{}, mostOfOne), make(chan struct{})
	a.do = func(*call) (*answer[widget], error) {
		inside <- struct{}{}
		<-leave
		return ok("", widget{}), nil
	}
	var all sync.WaitGroup
	for range mostOfOne {
		all.Go(func() { a.send(request{method: "POST", target: "/v1/widgets", body: `{"name":"a"}`}) })
	}
	for range mostOfOne {
		<-inside
	}
	wantProblem(t, a.send(request{target: "/v1/widgets"}), management.RateLimited)
	wantStatus(t, a.send(request{target: "/v1/widgets", bearer: narrowKey}), 200)
	close(leave)
	all.Wait()
	wantStatus(t, a.send(request{target: "/v1/widgets"}), 200)
}

func FuzzAuthorization(f *testing.F) {
	for _, seed := range []string{"", "Bearer", "Bearer ", "bearer " + fullKey, "Bearer " + edgeKey, "Basic YTpi", "Bearer\x00", " Bearer " + fullKey, "Bearer " + unknownKey} {
		f.Add(seed, "")
		f.Add("", seed)
	}
	a := newTestAPI(&testing.T{}, Options{})
	f.Fuzz(func(t *testing.T, authorization, cookie string) {
		r := httptest.NewRequest("GET", "/v1/widgets", nil)
		if authorization != "" {
			r.Header["Authorization"] = []string{authorization}
		}
		if cookie != "" {
			r.Header["Cookie"] = []string{cookie}
		}
		w := httptest.NewRecorder()
		a.Public().ServeHTTP(w, r)
		letIn := strings.Contains(authorization, fullKey) || strings.Contains(authorization, narrowKey) || strings.Contains(cookie, aSession)
		if w.Code != 401 && w.Code != 400 && !(w.Code == 200 && letIn) {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}
