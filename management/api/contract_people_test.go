package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/api"
)

func TestContractFirstRun(t *testing.T) {
	c := newContract(t, nil)
	c.do("", "GET", "/v1/setup", "").want(200).shape(S{"required": "bool"}).is(true, "required")
	body := func(token, more string) string {
		return `{"setup_token":"` + token + `","email":"root@example.org","password":"correct horse battery","tenant":"First"` + more + `}`
	}
	c.do("", "POST", "/v1/setup", body("wrong", "")).problem(403, "forbidden")
	c.do("", "POST", "/v1/setup", `{"setup_token":"the set-up token","email":"nobody","password":"short","tenant":""}`).
		problem(422, "invalid", "/email", "/password", "/tenant")
	made := c.do("", "POST", "/v1/setup", body("the set-up token", `,"api_key":true`)).want(201)
	made.shape(S{"tenant": tenantShape, "user": userShape, "api_key": with(keyShape, S{"secret": "text"})})
	made.is(true, "tenant", "trusted").is(true, "user", "platform").is("*", "api_key", "scopes", 0).is("platform:*", "api_key", "scopes", 1)
	secret := made.str("api_key", "secret")
	if rest, ok := strings.CutPrefix(secret, "pqk_"); !ok || len(rest) != 58 || strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		t.Error("the secret has another form")
	}
	c.do("", "POST", "/v1/setup", body("the set-up token", "")).problem(409, "setup_done")
	c.do("", "POST", "/v1/setup", body("wrong", "")).problem(409, "setup_done")
	c.do("", "GET", "/v1/setup", "").want(200).is(false, "required")

	me := c.do(secret, "GET", "/v1/me", "").want(200)
	me.shape(S{"user": "null", "api_key": keyShape, "tenant": tenantShape, "role": "null", "scopes": []any{"text"}, "platform": "bool", "tenants": "list"})
	session := c.signIn("root@example.org", "correct horse battery")
	me = c.do(session, "GET", "/v1/me", "").want(200)
	me.shape(S{"user": userShape, "api_key": "null", "tenant": tenantShape, "role": "=owner", "scopes": []any{"text"}, "platform": "bool",
		"tenants": []any{S{"tenant": tenantShape, "role": "text"}}}).is(true, "platform")

	without := newContract(t, nil)
	without.do("", "POST", "/v1/setup", body("the set-up token", "")).want(201).is(nil, "api_key")
	if _, there := without.do("", "GET", "/v1/setup", "").doc.(map[string]any)["required"]; !there {
		t.Error("required is missing")
	}
}

func TestContractConventions(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	edge := c.edgeToken()

	// What is not there, and what one face has alone.
	for _, where := range []struct{ base, who, method, path string }{
		{c.public.URL, c.key, "GET", "/v1/nothing"}, {c.public.URL, "", "GET", "/nothing"}, {c.public.URL, c.key, "GET", "/v1/domains/"},
		{c.public.URL, c.key, "GET", "/v1/domains/dom_nothing"}, {c.public.URL, c.key, "GET", "/v1/domains/" + management.NewID(management.DomainID)},
		{c.public.URL, edge, "GET", "/v1/edge/domains"}, {c.public.URL, edge, "POST", "/v1/edge/reports"},
		{c.edge.URL, c.key, "GET", "/v1/domains"}, {c.edge.URL, "", "GET", "/v1/setup"}, {c.edge.URL, "", "GET", "/openapi.json"},
	} {
		c.at(where.base, where.who, where.method, where.path, "").problem(404, "not_found")
	}
	for path, allow := range map[string]string{
		"/v1/domains": "GET, HEAD, POST", "/v1/setup": "GET, HEAD, POST", "/v1/sessions": "POST", "/v1/audit": "GET, HEAD",
		"/v1/tenant": "DELETE, GET, HEAD, PATCH", "/v1/sessions/current": "DELETE",
	} {
		a := c.do(c.key, "PUT", path, `{}`).problem(405, "method_not_allowed")
		if got := a.Header.Get("Allow"); got != allow {
			t.Errorf("PUT %s: Allow %q, want %q", path, got, allow)
		}
	}
	c.at(c.edge.URL, edge, "DELETE", "/v1/edge/domains", "").problem(405, "method_not_allowed")
	for _, base := range []string{c.public.URL, c.edge.URL} {
		c.at(base, "", "GET", "/healthz", "").want(200).shape(S{"status": "=ok"})
		c.at(base, "", "GET", "/readyz", "").want(200).shape(S{"status": "=ok"})
	}
	if spec := c.do("", "GET", "/openapi.json", "").want(200); spec.str("openapi") != "3.1.0" {
		t.Error(spec.at("openapi"))
	}

	// Bodies.
	const least = `{"name":"a.example.com","upstreams":[{"dial":"10.0.0.5:8443"}]}`
	c.do(c.key, "POST", "/v1/domains", least, "Content-Type", "text/plain").problem(415, "unsupported_media_type")
	c.do(c.key, "POST", "/v1/domains", least, "Content-Type", "").problem(415, "unsupported_media_type")
	c.do(c.key, "POST", "/v1/domains", least, "Content-Encoding", "br").problem(415, "unsupported_media_type")
	c.do(c.key, "POST", "/v1/domains", `{"name":"`+strings.Repeat("a", 1<<20)+`"}`).problem(413, "too_large")
	for _, text := range []string{`{`, `{"name":}`, `[]x`, least + `{}`, `nul`, "{\"name\":\"\xff\"}"} {
		c.do(c.key, "POST", "/v1/domains", text).problem(400, "malformed")
		c.do(c.key, "POST", "/v1/api_keys", text).problem(400, "malformed")
	}
	c.do(c.key, "POST", "/v1/domains", `{"name":"a.example.com","upstreams":[{"dial":"10.0.0.5:1"},{"dial":"SECRET:99999","SECRET":1}],"SECRET":2,"post_quantum":"SECRET"}`).
		problem(422, "invalid")
	c.do(c.key, "POST", "/v1/domains", `{"name":"a.example.com","name":"b.example.com","upstreams":[{"dial":"10.0.0.5:1"}]}`).problem(422, "invalid", "/name")
	c.do(c.key, "POST", "/v1/domains", `{"name":"a.example.com","upstreams":[{"dial":"127.0.0.1:1"}]}`).problem(422, "invalid", "/upstreams/0/dial")
	c.do(c.key, "POST", "/v1/domains", `{}`).problem(422, "invalid")
	c.do(c.key, "POST", "/v1/api_keys", `{"name":"x","scopes":["*"],"extra":1,"name":"y"}`).problem(422, "invalid", "/extra", "/name")
	c.do(c.key, "POST", "/v1/api_keys", `{"name":5}`).problem(422, "invalid", "/name", "/scopes")
	c.do(c.key, "GET", "/v1/domains?nonsense=1", "").problem(422, "invalid", "?nonsense")
	for _, limit := range []string{"0", "201", "-1", "x", ""} {
		c.do(c.key, "GET", "/v1/domains?limit="+limit, "").problem(422, "invalid", "?limit")
	}
	c.do(c.key, "GET", "/v1/connections?limit=1000", "").want(200)
	c.do(c.key, "GET", "/v1/connections?limit=1001", "").problem(422, "invalid", "?limit")
	c.do(c.key, "GET", "/v1/domains?cursor=odd", "").problem(422, "invalid", "?cursor")
	c.do(c.key, "GET", "/v1/usage?from=yesterday", "").problem(422, "invalid", "?from")
	c.do(c.key, "GET", "/v1/connections?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "").problem(422, "invalid", "?from")

	// Nothing of what came in is said again.
	a := c.do(c.key, "POST", "/v1/domains", `{"name":"SECRET.example.com","upstreams":[{"dial":"SECRET"}],"post_quantum":"SECRET","certificate":{"source":"SECRET"}}`).
		problem(422, "invalid")
	if strings.Contains(a.text, "SECRET") {
		t.Error(a.text)
	}

	// Pages.
	for i := range 5 {
		c.domain(c.key, fmt.Sprintf("d%d.example.com", i))
	}
	var names []string
	for next, pages := "", 0; ; pages++ {
		list := c.do(c.key, "GET", "/v1/domains?limit=2&cursor="+next, "").want(200)
		list.shape(page(domainShape))
		for i := range list.list("data") {
			names = append(names, list.str("data", i, "name"))
		}
		if list.at("next_cursor") == nil {
			if pages != 2 {
				t.Errorf("%d pages", pages+1)
			}
			break
		}
		next = list.str("next_cursor")
	}
	if !slices.Equal(names, []string{"d0.example.com", "d1.example.com", "d2.example.com", "d3.example.com", "d4.example.com"}) {
		t.Error(names)
	}
	if list := c.do(c.key, "GET", "/v1/domains?limit=5", "").want(200); list.at("next_cursor") != nil || !strings.Contains(list.text, `"next_cursor":null`) {
		t.Error("a last page has a cursor")
	}

	// ETag and If-Match.
	path := "/v1/domains/" + c.do(c.key, "GET", "/v1/domains?name=d0.example.com", "").want(200).str("data", 0, "id")
	for _, of := range []struct{ path, patch string }{{path, `{"max_connections":5}`}, {"/v1/tenant", `{"name":"Renamed"}`}} {
		tag := c.do(c.key, "GET", of.path, "").want(200).Header.Get("ETag")
		if len(tag) < 3 || tag[0] != '"' {
			t.Fatalf("%s: ETag %q", of.path, tag)
		}
		c.do(c.key, "PATCH", of.path, of.patch, "If-Match", `"nothing"`).problem(412, "precondition_failed")
		c.do(c.key, "PATCH", of.path, of.patch, "If-Match", "W/"+tag).problem(412, "precondition_failed")
		changed := c.do(c.key, "PATCH", of.path, of.patch, "If-Match", tag, "Content-Type", "application/merge-patch+json").want(200).Header.Get("ETag")
		if changed == tag || changed == "" {
			t.Errorf("%s: ETag %s after a change of %s", of.path, changed, tag)
		}
		c.do(c.key, "PATCH", of.path, `{}`, "If-Match", tag).problem(412, "precondition_failed")
		c.do(c.key, "PATCH", of.path, `{}`, "If-Match", "*").want(200)
		if again := c.do(c.key, "PATCH", of.path, of.patch).want(200).Header.Get("ETag"); again != changed {
			t.Errorf("%s: ETag %s where nothing changed of %s", of.path, again, changed)
		}
	}
	c.do(c.key, "DELETE", path, "", "If-Match", `"nothing"`).problem(412, "precondition_failed")
	session := c.signIn("root@example.org", "correct horse battery")
	user := c.do(session, "GET", "/v1/me", "").str("user", "id")
	c.do(session, "DELETE", "/v1/tenant", `{"password":"correct horse battery"}`, "If-Match", `"nothing"`).problem(412, "precondition_failed")
	c.do(session, "DELETE", "/v1/members/"+user, "", "If-Match", `"nothing"`).problem(412, "precondition_failed")
	// What a version says is not all that is shown of a domain: somebody who asks with the tag he has is told what became of it.
	tag := c.do(c.key, "GET", path, "").want(200).Header.Get("ETag")
	c.do(c.key, "GET", path, "", "If-None-Match", tag).want(200)

	// Requests that come again.
	const key = `{"name":"ci","scopes":["domains:read"]}`
	first := c.do(c.key, "POST", "/v1/api_keys", key, "Idempotency-Key", "k1").want(201)
	again := c.do(c.key, "POST", "/v1/api_keys", key, "Idempotency-Key", "k1").want(201)
	if first.Header.Get("Idempotency-Replayed") != "" || again.Header.Get("Idempotency-Replayed") != "true" ||
		again.Header.Get("Location") != first.Header.Get("Location") || again.str("id") != first.str("id") || !strings.Contains(again.text, `"secret":null`) {
		t.Error(again.Header, again.text)
	}
	c.do(c.key, "POST", "/v1/api_keys", `{"name":"other","scopes":["domains:read"]}`, "Idempotency-Key", "k1").problem(422, "idempotency_mismatch")
	c.do(first.str("secret"), "POST", "/v1/api_keys", key, "Idempotency-Key", "k1").problem(403, "forbidden")
	c.do(session, "POST", "/v1/api_keys", key, "Idempotency-Key", "k1").want(201) // another credential's key is another key
	c.do(c.key, "POST", "/v1/api_keys", key, "Idempotency-Key", strings.Repeat("k", 256)).problem(400, "malformed")
	c.clock.move(25 * time.Hour)
	if a := c.do(c.key, "POST", "/v1/api_keys", key, "Idempotency-Key", "k1").want(201); a.str("id") == first.str("id") {
		t.Error("a key is remembered for more than 24 h")
	}
}

func TestContractRateLimit(t *testing.T) {
	c := newContract(t, func(_ *management.Config, o *api.Options) { o.RateLimit = 3 })
	c.setUp()
	limited := func(who string) (n int) {
		for ; n < 20; n++ {
			if a := c.do(who, "GET", "/v1/tenant", ""); a.StatusCode == 429 {
				a.problem(429, "rate_limited")
				return n
			}
		}
		return n
	}
	if n := limited(c.key); n < 6 || n > 9 {
		t.Errorf("%d requests at once", n)
	}
	c.clock.move(time.Minute)
	other := c.do(c.key, "POST", "/v1/api_keys", `{"name":"x","scopes":["domains:read"]}`).want(201).str("secret")
	limited(c.key)
	c.do(other, "GET", "/v1/tenant", "").want(200) // each credential for itself
}

func TestContractSessions(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	in := c.do("", "POST", "/v1/sessions", `{"email":"root@example.org","password":"correct horse battery"}`).want(201)
	if strings.Contains(in.text, in.Cookies()[0].Value) {
		t.Error("the answer has the cookie's value")
	}
	cookie := in.Cookies()[0]
	if cookie.Name != "__Host-pqproxy_session" || !cookie.Secure || !cookie.HttpOnly || cookie.Path != "/" || cookie.Domain != "" || cookie.SameSite == http.SameSiteNoneMode {
		t.Error(in.Header["Set-Cookie"])
	}
	session := cookie.Value

	// Who is no page of ours does nothing with the cookie.
	for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "", "Origin", "https://elsewhere.example"}} {
		c.do(session, "POST", "/v1/api_keys", `{"name":"x","scopes":["domains:read"]}`, header...).problem(403, "cross_origin")
		c.do(session, "GET", "/v1/tenant", "", header...).want(200)
		c.do(c.key, "POST", "/v1/domains", `{}`, header...).problem(422, "invalid") // a browser has no key
	}

	// A user of several tenants.
	second := c.do(session, "POST", "/v1/platform/tenants", `{"name":"Second"}`).want(201)
	second.shape(with(tenantShape, S{"invitation": "null"}))
	c.do(session, "GET", "/v1/tenant", "").want(200).is(c.tenant, "id")
	c.do(session, "GET", "/v1/tenant", "", "PQProxy-Tenant", second.str("id")).want(200).is("Second", "name")
	c.do(session, "GET", "/v1/tenant", "", "PQProxy-Tenant", management.NewID(management.TenantID)).problem(404, "not_found")
	c.do(c.key, "GET", "/v1/tenant", "", "PQProxy-Tenant", second.str("id")).problem(404, "not_found")
	c.do(c.key, "GET", "/v1/tenant", "", "PQProxy-Tenant", c.tenant).want(200)

	out := c.do(session, "DELETE", "/v1/sessions/current", "").want(204)
	if cookies := out.Cookies(); len(cookies) != 1 || cookies[0].MaxAge >= 0 || out.text != "" {
		t.Error(out.Header["Set-Cookie"])
	}
	c.do(session, "GET", "/v1/me", "").problem(401, "unauthenticated")
	c.do("", "GET", "/v1/me", "").problem(401, "unauthenticated")
	c.do("pqk_"+strings.Repeat("a", 58), "GET", "/v1/me", "").problem(401, "unauthenticated")
	c.do(c.edgeToken(), "GET", "/v1/me", "").problem(401, "unauthenticated")
	c.at(c.edge.URL, c.key, "GET", "/v1/edge/domains", "").problem(401, "unauthenticated")

	// 5 tries a minute for an account, 20 for an address.
	bad := func(email string) *reply {
		return c.do("", "POST", "/v1/sessions", `{"email":"`+email+`","password":"wrong horse battery"}`)
	}
	for range 5 {
		bad("root@example.org").problem(401, "unauthenticated")
	}
	bad("ROOT@example.org").problem(429, "rate_limited")
	c.do("", "POST", "/v1/sessions", `{"email":"root@example.org","password":"correct horse battery"}`).problem(429, "rate_limited")
	for i := range 13 { // what an account was refused is a try of the address all the same
		bad(fmt.Sprintf("nobody%d@example.org", i)).problem(401, "unauthenticated")
	}
	bad("somebody@example.org").problem(429, "rate_limited")
	c.clock.move(time.Minute)
	c.signIn("root@example.org", "correct horse battery")
}

func TestContractKeysAndRoles(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	owner := c.signIn("root@example.org", "correct horse battery")

	made := c.do(c.key, "POST", "/v1/api_keys", `{"name":"ci","scopes":["domains:read","keys:write"],"expires_at":"2099-01-01T00:00:00Z"}`).want(201)
	made.shape(with(keyShape, S{"secret": "text"})).is("2099-01-01T00:00:00Z", "expires_at")
	path, secret := "/v1/api_keys/"+made.str("id"), made.str("secret")
	if made.Header.Get("Location") != path || !strings.HasPrefix(secret, made.str("prefix")) {
		t.Error(made.Header, made.text)
	}
	list := c.do(c.key, "GET", "/v1/api_keys", "").want(200).shape(page(keyShape))
	if strings.Contains(list.text, secret) {
		t.Error("the list has a secret")
	}
	c.do(secret, "GET", "/v1/domains", "").want(200)
	for _, of := range []struct{ method, path, body string }{
		{"POST", "/v1/domains", `{"name":"a.example.com","upstreams":[{"dial":"10.0.0.5:1"}]}`}, {"GET", "/v1/connections", ""}, {"GET", "/v1/usage", ""},
		{"GET", "/v1/audit", ""}, {"GET", "/v1/members", ""}, {"GET", "/v1/platform/edges", ""}, {"PATCH", "/v1/tenant", `{"name":"x"}`},
		{"POST", "/v1/api_keys", `{"name":"more","scopes":["domains:write"]}`}, {"POST", "/v1/api_keys", `{"name":"more","scopes":["*"]}`},
		{"POST", "/v1/api_keys", `{"name":"more","scopes":["platform:*"]}`},
	} {
		c.do(secret, of.method, of.path, of.body).problem(403, "forbidden")
	}
	c.do(c.key, "POST", "/v1/api_keys", `{"name":"x","scopes":["nonsense"]}`).problem(422, "invalid", "/scopes")
	c.do(c.key, "POST", "/v1/api_keys", `{"name":"x","scopes":[]}`).problem(422, "invalid", "/scopes")
	c.do(c.key, "POST", "/v1/api_keys", `{"name":"x","scopes":["*"],"expires_at":"2001-01-01T00:00:00Z"}`).problem(422, "invalid", "/expires_at")
	c.do(c.key, "POST", "/v1/api_keys", `{"name":"x","scopes":["*"],"expires_at":null}`).want(201)
	rotated := c.do(c.key, "POST", path+"/rotate", "").want(200)
	rotated.shape(with(keyShape, S{"secret": "text"})).is(made.str("id"), "id")
	c.do(secret, "GET", "/v1/domains", "").problem(401, "unauthenticated")
	c.do(rotated.str("secret"), "GET", "/v1/domains", "").want(200)
	c.do(c.key, "DELETE", path, "").want(204)
	c.do(rotated.str("secret"), "GET", "/v1/domains", "").problem(401, "unauthenticated")
	c.do(c.key, "DELETE", path, "").problem(404, "not_found")
	short := c.do(c.key, "POST", "/v1/api_keys", fmt.Sprintf(`{"name":"x","scopes":["*"],"expires_at":%q}`, c.clock.now().Add(time.Hour).UTC().Format(time.RFC3339))).want(201).str("secret")
	c.clock.move(2 * time.Hour)
	c.do(short, "GET", "/v1/domains", "").problem(401, "unauthenticated")

	// Members, as they are invited and change.
	c.do(owner, "GET", "/v1/members", "").want(200).shape(page(S{"user": "usr_", "email": "text", "role": "=owner", "joined_at": "time"}))
	sessions := make(map[string]string)
	users := make(map[string]string)
	for _, role := range []string{"viewer", "operator", "admin", "owner"} {
		email := role + "@example.org"
		invited := c.do(owner, "POST", "/v1/invitations", `{"email":"`+email+`","role":"`+role+`"}`).want(201)
		invited.shape(S{"id": "inv_", "email": "text", "role": "text", "invited_by": "usr_", "created_at": "time", "expires_at": "time", "url": "text"})
		_, token, _ := strings.Cut(invited.str("url"), "token=")
		c.do("", "POST", "/v1/invitations/accept", `{"token":"`+token+`","password":"correct horse battery"}`).want(200)
		sessions[role] = c.signIn(email, "correct horse battery")
		users[role] = c.do(sessions[role], "GET", "/v1/me", "").want(200).is(role, "role").str("user", "id")
	}
	c.do(owner, "POST", "/v1/invitations", `{"email":"late@example.org","role":"viewer"}`).want(201)
	waiting := c.do(owner, "GET", "/v1/invitations", "").want(200)
	waiting.shape(page(S{"id": "inv_", "email": "text", "role": "text", "invited_by": "usr_", "created_at": "time", "expires_at": "time"}))
	c.do(owner, "DELETE", "/v1/invitations/"+waiting.str("data", 0, "id"), "").want(204)
	c.do(owner, "POST", "/v1/invitations", `{"email":"x","role":"king"}`).problem(422, "invalid", "/email", "/role")

	id := c.domain(c.key, "a.example.com")
	const key = `{"name":"x","scopes":["domains:read"]}`
	for _, of := range []struct {
		method, path, body string
		from               string // the weakest role that may
		status             int
	}{
		{"GET", "/v1/domains", "", "viewer", 200}, {"GET", "/v1/domains/" + id, "", "viewer", 200}, {"GET", "/v1/connections", "", "viewer", 200},
		{"GET", "/v1/usage", "", "viewer", 200}, {"GET", "/v1/tenant", "", "viewer", 200}, {"GET", "/v1/certificates", "", "viewer", 200},
		{"GET", "/v1/reports/post-quantum", "", "viewer", 200}, {"GET", "/v1/reports/require", "", "viewer", 200},
		{"PATCH", "/v1/domains/" + id, `{}`, "operator", 200}, {"POST", "/v1/domains/" + id + "/check", "", "operator", 200},
		{"GET", "/v1/audit", "", "admin", 200}, {"GET", "/v1/members", "", "admin", 200}, {"POST", "/v1/api_keys", key, "admin", 201},
		{"POST", "/v1/invitations", `{"email":"new@example.org","role":"viewer"}`, "admin", 201},
		{"PATCH", "/v1/members/" + users["viewer"], `{"role":"viewer"}`, "admin", 200},
		{"PATCH", "/v1/tenant", `{"name":"Renamed"}`, "owner", 200}, {"PATCH", "/v1/members/" + users["owner"], `{"role":"owner"}`, "admin", 200},
		{"POST", "/v1/api_keys", `{"name":"x","scopes":["*"]}`, "owner", 201},
		{"POST", "/v1/invitations", `{"email":"new@example.org","role":"owner"}`, "owner", 201},
		{"PATCH", "/v1/members/" + users["owner"], `{"role":"admin"}`, "owner", 200},
		{"GET", "/v1/platform/edges", "", "nobody", 0}, {"GET", "/v1/platform/edge_tokens", "", "nobody", 0}, {"GET", "/v1/platform/tenants", "", "nobody", 0},
		{"POST", "/v1/platform/tenants", `{"name":"x"}`, "nobody", 0}, {"POST", "/v1/platform/edge_tokens", `{"name":"x"}`, "nobody", 0},
		{"POST", "/v1/api_keys", `{"name":"x","scopes":["platform:*"]}`, "nobody", 0},
	} {
		may := false
		for _, role := range []string{"viewer", "operator", "admin", "owner"} {
			may = may || role == of.from
			if a := c.do(sessions[role], of.method, of.path, of.body); may && a.StatusCode != of.status {
				t.Errorf("%s: %s: %d %s", role, a.where, a.StatusCode, a.text)
			} else if !may {
				a.problem(403, "forbidden")
			}
		}
	}
	// `owner` has made himself an admin by then, so the first is the last.
	root := c.do(owner, "GET", "/v1/me", "").str("user", "id")
	c.do(owner, "PATCH", "/v1/members/"+root, `{"role":"viewer"}`).problem(409, "conflict")
	c.do(owner, "DELETE", "/v1/members/"+root, "").problem(409, "conflict")
	c.do(owner, "PATCH", "/v1/members/"+users["viewer"], `{"role":"operator"}`).want(200).is("operator", "role")
	c.do(sessions["viewer"], "PATCH", "/v1/domains/"+id, `{}`).want(200) // as he is now
	c.do(owner, "DELETE", "/v1/members/"+users["viewer"], "").want(204)
	c.do(sessions["viewer"], "GET", "/v1/domains", "").problem(403, "forbidden")
	c.do(owner, "DELETE", "/v1/members/"+users["viewer"], "").problem(404, "not_found")
}

func TestContractPlatform(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	made := c.do(c.key, "POST", "/v1/platform/edge_tokens", `{"name":"edges"}`).want(201).shape(with(tokenShape, S{"secret": "text"}))
	path := "/v1/platform/edge_tokens/" + made.str("id")
	token := made.str("secret")
	if !strings.HasPrefix(token, "pqe_") || len(token) != 62 || made.Header.Get("Location") != path {
		t.Error(made.Header, made.text)
	}
	if list := c.do(c.key, "GET", "/v1/platform/edge_tokens", "").want(200).shape(page(tokenShape)); strings.Contains(list.text, token) {
		t.Error("the list has a secret")
	}
	c.do(token, "GET", "/v1/edge/domains", "").want(200)
	c.do(c.key, "DELETE", path, "").want(204)
	c.do(token, "GET", "/v1/edge/domains", "").problem(401, "unauthenticated")
	c.do(c.key, "DELETE", path, "").problem(404, "not_found")

	other := c.signUp("other@example.org")
	second := c.do(other, "GET", "/v1/tenant", "").want(200).is(false, "trusted").str("id")
	tenants := c.do(c.key, "GET", "/v1/platform/tenants", "").want(200).shape(page(tenantShape))
	if len(tenants.list("data")) != 2 {
		t.Error(tenants.text)
	}
	patch := func(body string) *reply { return c.do(c.key, "PATCH", "/v1/platform/tenants/"+second, body) }
	patch(`{"max_domains":1}`).want(200).shape(tenantShape).is(1, "max_domains")
	patch(`{"max_domains":-1}`).problem(422, "invalid", "/max_domains")
	patch(`{"trusted":"yes"}`).problem(422, "invalid", "/trusted")
	patch(`{"nonsense":1}`).problem(422, "invalid", "/nonsense")
	id := c.domain(other, "a.example.com")
	c.do(other, "POST", "/v1/domains", `{"name":"b.example.com","upstreams":[{"dial":"10.0.0.5:1"}]}`).problem(403, "quota_exceeded")
	patch(`{"trusted":true}`).want(200).is(true, "trusted")
	c.do(other, "POST", "/v1/domains/"+id+"/check", "").want(200).is("ok", "axes", "ownership", "state").is("trusted", "axes", "ownership", "proof")
	patch(`{"suspended":true}`).want(200).is(true, "suspended")
	c.do(other, "GET", "/v1/domains/"+id, "").want(200).is("suspended", "status").is(false, "serving").is(false, "suspended")
	c.do(other, "PATCH", "/v1/domains/"+id, `{"max_connections":1}`).problem(403, "forbidden")
	feed := c.do(c.edgeToken(), "GET", "/v1/edge/domains", "").want(200)
	feed.is(true, "domains", 0, "suspended")
	patch(`{"suspended":false}`).want(200)
	if after := c.do(c.edgeToken(), "GET", fmt.Sprintf("/v1/edge/domains?after=%v", feed.at("revision")), "").want(200); after.at("domains", 0, "suspended") != nil {
		t.Error(after.text)
	}
	c.do(c.key, "PATCH", "/v1/platform/tenants/"+management.NewID(management.TenantID), `{}`).problem(404, "not_found")

	// What became of the platform can be read by who runs it, and by nobody else.
	actions := func(who string) (all []string) {
		list := c.do(who, "GET", "/v1/audit?limit=200", "").want(200).shape(page(eventShape))
		for i := range list.list("data") {
			all = append(all, list.str("data", i, "action"))
		}
		return all
	}
	for _, action := range []string{"edge_token.created", "edge_token.deleted", "tenant.updated", "tenant.created"} {
		if !slices.Contains(actions(c.key), action) {
			t.Errorf("the operator's log has no %s", action)
		}
	}
	theirs := actions(other)
	if slices.Contains(theirs, "edge_token.created") || slices.Contains(theirs, "session.created") || !slices.Contains(theirs, "domain.created") {
		t.Error(theirs)
	}
	if mine := actions(c.key); slices.Contains(mine, "domain.created") {
		t.Error("an operator's log has what another tenant did")
	}
}

func TestContractAudit(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	id := c.domain(c.key, "a.example.com")
	c.do(c.key, "PATCH", "/v1/domains/"+id, `{"post_quantum":"require"}`).want(200)
	list := c.do(c.key, "GET", "/v1/audit?object="+id, "").want(200).shape(page(eventShape))
	list.is("domain.updated", "data", 0, "action").is("prefer", "data", 0, "before", "post_quantum").is("require", "data", 0, "after", "post_quantum")
	if actor := list.str("data", 0, "actor"); !strings.HasPrefix(actor, "key_") || list.at("data", 0, "client_ip") != "127.0.0.1" {
		t.Error(list.text)
	}
	if actions := c.do(c.key, "GET", "/v1/audit?action=domain.created", "").want(200); len(actions.list("data")) != 1 || actions.at("data", 0, "before") != nil {
		t.Error(actions.text)
	}
	seen := 0
	for next := ""; ; {
		page := c.do(c.key, "GET", "/v1/audit?limit=2&cursor="+next, "").want(200)
		seen += len(page.list("data"))
		if page.at("next_cursor") == nil {
			break
		}
		next = page.str("next_cursor")
	}
	all := c.do(c.key, "GET", "/v1/audit?limit=200", "").want(200)
	if len(all.list("data")) != seen {
		t.Errorf("%d entries in pages, %d at once", seen, len(all.list("data")))
	}
	// As moments, not as texts: RFC 3339 leaves out the zeros at the end of a fraction.
	var newer time.Time
	for i := range all.list("data") {
		at, err := time.Parse(time.RFC3339Nano, all.str("data", i, "time"))
		if err != nil || i > 0 && at.After(newer) {
			t.Error("not the newest first:", at, newer, err)
		}
		newer = at
	}
	c.clock.move(25 * time.Hour)
	if old := c.do(c.key, "GET", "/v1/audit", "").want(200); len(old.list("data")) != 0 {
		t.Error("the default is not the last 24 h")
	}
	from := c.clock.now().Add(-48 * time.Hour).UTC().Format(time.RFC3339)
	if old := c.do(c.key, "GET", "/v1/audit?limit=200&from="+from, "").want(200); len(old.list("data")) != seen {
		t.Error("entries are missing")
	}
}

// TestContractAuditRetention: entries were kept for ever, whatever retention said.
func TestContractAuditRetention(t *testing.T) {
	c := newContract(t, func(cfg *management.Config, _ *api.Options) { cfg.Retention.Audit = 10 * 24 * time.Hour })
	c.setUp()
	c.clock.move(11 * 24 * time.Hour)
	c.domain(c.key, "a.example.com")
	c.work()
	path := "/v1/audit?limit=200&from=" + c.clock.now().AddDate(0, 0, -100).UTC().Format(time.RFC3339)
	c.until("what is older than retention is removed", func() *reply { return c.do(c.key, "GET", path, "").want(200) }, func(a *reply) bool {
		var entries struct {
			Data []struct{ Action string }
		}
		if err := json.Unmarshal([]byte(a.text), &entries); err != nil {
			t.Fatal(err)
		}
		created := false
		for _, e := range entries.Data {
			if e.Action == "tenant.created" {
				return false
			}
			created = created || e.Action == "domain.created"
		}
		return created
	})
}

func TestContractSignup(t *testing.T) {
	closed := newContract(t, func(cfg *management.Config, _ *api.Options) { cfg.SignupOpen = false })
	closed.setUp()
	closed.do("", "POST", "/v1/signup", `{"email":"a@example.org","password":"correct horse battery","tenant":"A"}`).problem(403, "forbidden")

	c := newContract(t, nil)
	c.setUp()
	known := c.do("", "POST", "/v1/signup", `{"email":"root@example.org","password":"another horse battery","tenant":"A"}`).want(202)
	unknown := c.do("", "POST", "/v1/signup", `{"email":"new@example.org","password":"another horse battery","tenant":"A"}`).want(202)
	if known.text != unknown.text {
		t.Error("known and unknown addresses are answered differently")
	}
	c.do("", "POST", "/v1/sessions", `{"email":"root@example.org","password":"another horse battery"}`).problem(401, "unauthenticated")
	session := c.signIn("new@example.org", "another horse battery")
	c.do(session, "GET", "/v1/me", "").want(200).is("owner", "role").is(false, "platform").is(false, "tenant", "trusted")
	c.do("", "POST", "/v1/signup", `{"email":"x@example.org","password":"short","tenant":"A"}`).problem(422, "invalid", "/password")

	// A tenant goes with all that it has.
	key := c.do(session, "POST", "/v1/api_keys", `{"name":"x","scopes":["*"]}`).want(201).str("secret")
	c.do(key, "DELETE", "/v1/tenant", `{"password":"another horse battery"}`).problem(403, "forbidden")
	c.do(session, "DELETE", "/v1/tenant", `{"password":"wrong horse battery"}`).problem(422, "invalid", "/password")
	c.do(session, "DELETE", "/v1/tenant", `{}`).problem(422, "invalid", "/password")
	c.do(session, "DELETE", "/v1/tenant", `{"password":"another horse battery"}`).want(204)
	c.do(key, "GET", "/v1/domains", "").problem(401, "unauthenticated")
	c.do(session, "GET", "/v1/me", "").want(200).is(nil, "tenant").is(nil, "role")
	c.do(session, "GET", "/v1/domains", "").problem(403, "forbidden")
}
