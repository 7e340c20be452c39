package api_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

func TestContractDomains(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	owner := c.signUp("other@example.org") // of a tenant that nobody trusts
	tenant := c.do(owner, "GET", "/v1/tenant", "").str("id")

	// The least body, and what it becomes.
	made := c.do(owner, "POST", "/v1/domains", `{"name":"App.Example.com.","upstreams":[{"dial":"10.0.0.5:8443"}]}`).want(201).shape(domainShape)
	path := "/v1/domains/" + made.str("id")
	if made.Header.Get("Location") != path || made.Header.Get("ETag") == "" {
		t.Error(made.Header)
	}
	made.is("app.example.com", "name").is(tenant, "tenant").is("first", "load_balancing").is("off", "proxy_protocol").is("prefer", "post_quantum").
		is("acme", "certificate", "source").is(0, "max_connections").is(false, "suspended").is(0, "revision").
		is("pending_dns", "status").is(false, "serving").is(true, "stuck")
	if again := c.do(owner, "GET", path, "").want(200).shape(domainShape); again.Header.Get("ETag") != made.Header.Get("ETag") {
		t.Error("another ETag of the same")
	}
	c.do(owner, "POST", "/v1/domains", `{"name":"app.example.com","upstreams":[{"dial":"10.0.0.5:8443"}]}`).problem(409, "domain_exists")

	// Records and the next action.
	checked := c.do(owner, "POST", path+"/check", "").want(200).shape(domainShape)
	checked.shape([]any{recordShape}, "records").shape(nextShape, "next_action").shape(S{"type": "=A", "name": "=app.example.com", "value": "=203.0.113.10"}, "next_action", "record")
	checked.is("customer", "next_action", "who").is("traffic", "records", 0, "purpose").is("203.0.113.10", "records", 0, "value").
		is("198.51.100.7", "records", 0, "seen", 0).is(false, "records", 0, "ok").
		is("ownership", "records", 1, "purpose").is("TXT", "records", 1, "type").is("_pqproxy.app.example.com", "records", 1, "name").
		is("pending", "axes", "ownership", "state").is("pending", "axes", "dns", "state").is(nil, "axes", "ownership", "proof")
	proof := checked.str("records", 1, "value")
	if !strings.HasPrefix(proof, "pqproxy-verify=") || len(checked.list("records", 1, "seen")) != 0 {
		t.Error(checked.text)
	}

	// It is in the feed from the proof on, before DNS moves.
	c.world.set("app.example.com", false, proof)
	c.do(owner, "POST", path+"/check", "").want(200).is("ok", "axes", "ownership", "state").is("txt", "axes", "ownership", "proof").
		is("pending_dns", "status").is(1, "revision").is(true, "records", 1, "ok")
	token := c.edgeToken()
	feed := c.do(token, "GET", "/v1/edge/domains", "").want(200).is(1, "revision").is("app.example.com", "domains", 0, "name").is(tenant, "domains", 0, "tenant")
	c.signed(feed)

	// DNS, certificate, edges.
	e := c.newEdge("e1", token)
	e.report(1, "").is(1, "revision").is(false, "duplicate").is(false, "resend")
	c.world.set("app.example.com", true, proof)
	c.do(owner, "POST", path+"/check", "").want(200).is("issuing", "status").is("ok", "axes", "dns", "state").is("pending", "axes", "certificate", "state").is(true, "records", 0, "ok")
	notAfter := c.clock.now().AddDate(0, 0, 60).UTC().Format(time.RFC3339)
	e2 := c.newEdge("e2", token)
	e2.report(0, "")
	certificate := fmt.Sprintf(`"certificates":[{"name":"app.example.com","source":"acme","issuer":"CN=Test","not_after":%q,"state":"valid","error":""}]`, notAfter)
	e.report(1, certificate)
	c.do(owner, "GET", path, "").want(200).is("deploying", "status").is(1, "axes", "edges", "live").is(2, "axes", "edges", "of").is("pending", "axes", "edges", "state").
		is(nil, "axes", "edges", "since").is(true, "serving").is("service", "next_action", "who").is(false, "stuck")
	e2.report(1, certificate)
	live := c.do(owner, "GET", path, "").want(200).shape(domainShape).is("active", "status").is(true, "serving").is(false, "stuck").is(nil, "next_action").
		is("ok", "axes", "edges", "state").is(2, "axes", "edges", "live").is("ok", "axes", "certificate", "state").is(notAfter, "axes", "certificate", "not_after").is("ok", "axes", "upstream", "state")
	live.shape("time", "axes", "edges", "since")
	active := func() *reply { return c.do(owner, "GET", "/v1/domains?status=active", "").want(200) }
	c.work() // which finds out that it was active
	c.until("the list knows", active, func(a *reply) bool { return len(a.list("data")) == 1 })
	c.do(owner, "GET", path+"/certificate", "").want(200).shape(certificateShape).is("acme", "source").is("app.example.com", "domain").is("CN=Test", "issuer").is(notAfter, "not_after").is("ok", "state")

	// An edge refuses it; upstreams fail.
	e.report(1, `"rejected":[{"name":"app.example.com","field":"upstreams[0].dial","detail":"is refused here"}]`)
	c.do(owner, "GET", path, "").want(200).is("degraded", "status").is("failed", "axes", "edges", "state").is(1, "axes", "edges", "live")
	e.report(1, `"rejected":[{"name":"app.example.com","field":"","detail":""}],"upstreams":[{"domain":"app.example.com","dial":"10.0.0.5:8443","healthy":false,"error":"refused"}]`)
	c.do(owner, "GET", path, "").want(200).is("degraded", "status").is("failed", "axes", "upstream", "state")
	e.report(1, `"upstreams":[{"domain":"app.example.com","dial":"10.0.0.5:8443","healthy":true,"error":""}]`)
	c.do(owner, "GET", path, "").want(200).is("active", "status")

	// It points elsewhere.
	c.world.set("app.example.com", false, proof)
	c.do(owner, "POST", path+"/check", "").want(200).is("moved", "status").is("failed", "axes", "dns", "state").is(true, "serving")
	c.world.set("app.example.com", true, proof)
	c.do(owner, "POST", path+"/check", "").want(200).is("active", "status")

	// Merge patches.
	patch := func(body string) *reply { return c.do(owner, "PATCH", path, body) }
	patch(`{"alpn":["h2"],"post_quantum":"require","upstreams":[{"dial":"10.0.0.6:8443","tls":{"server_name":"app.internal"}},{"dial":"10.0.0.7:1","region":"gru"}]}`).
		want(200).is("h2", "alpn", 0).is("require", "post_quantum").is("app.internal", "upstreams", 0, "tls", "server_name").is("gru", "upstreams", 1, "region").is(2, "revision").
		is("active", "status").is(true, "serving") // while edges are being told
	patch(`{"alpn":null,"post_quantum":null}`).want(200).is(nil, "alpn").is("prefer", "post_quantum").is("10.0.0.6:8443", "upstreams", 0, "dial")
	patch(`{"name":"other.example.com"}`).problem(422, "invalid", "/name")
	patch(`{"name":"APP.example.com"}`).want(200)
	patch(`{"nonsense":1}`).problem(422, "invalid", "/nonsense")
	patch(`{"nonsense":null}`).problem(422, "invalid", "/nonsense")
	patch(`{"upstreams":null}`).problem(422, "invalid")
	patch(`{"status":"active"}`).problem(422, "invalid", "/status")
	patch(`[]`).problem(400, "malformed")
	patch(`{"suspended":true,"suspended":false}`).problem(422, "invalid", "/suspended")
	patch(`{"suspended":true}`).want(200).is("suspended", "status").is(false, "serving").is(true, "suspended")
	c.do(token, "GET", "/v1/edge/domains", "").want(200).is(true, "domains", 0, "suspended")
	patch(`{"suspended":false}`).want(200).is(false, "suspended").is("active", "status")

	// Nobody else sees it, and finds nothing at all.
	for _, of := range []struct{ method, path, body string }{
		{"GET", path, ""}, {"PATCH", path, `{}`}, {"DELETE", path, ""}, {"POST", path + "/check", ""}, {"POST", path + "/probe", ""}, {"GET", path + "/certificate", ""},
		{"DELETE", path + "/certificate", ""}, {"PUT", path + "/certificate", `{"chain_pem":"x","key_pem":"x"}`}, {"GET", path + "/series", ""},
	} {
		c.do(c.key, of.method, of.path, of.body).problem(404, "not_found")
	}

	probe := c.do(owner, "POST", path+"/probe", "").want(200)
	probe.shape(S{"upstreams": []any{S{"dial": "text", "reachable": "bool", "tls_version": "str", "group": "str", "post_quantum": "bool", "hello_retry_request": "bool",
		"alpn": "str", "chain_ok": "bool", "proxy_protocol": "str", "recommend": "any", "error": "str"}}}).is("10.0.0.6:8443", "upstreams", 0, "dial")

	// Lists.
	c.domain(owner, "b.example.com")
	c.domain(owner, "sub.app.example.com")
	for query, want := range map[string]string{
		"": "app.example.com b.example.com sub.app.example.com", "?q=APP": "app.example.com sub.app.example.com", "?name=B.Example.com.": "b.example.com",
		"?status=active": "app.example.com", "?status=pending_dns": "b.example.com sub.app.example.com", "?status=pending_dns&q=sub": "sub.app.example.com",
		"?name=nobody.example.com": "", "?q=%25": "", "?name=%00": "",
	} {
		list := c.do(owner, "GET", "/v1/domains"+query, "")
		if query == "?name=%00" {
			list.problem(422, "invalid", "?name")
			continue
		}
		var names []string
		for i := range list.want(200).list("data") {
			names = append(names, list.str("data", i, "name"))
		}
		if strings.Join(names, " ") != want {
			t.Errorf("%s: %v, want %s", query, names, want)
		}
	}
	c.do(owner, "GET", "/v1/domains?status=odd", "").problem(422, "invalid", "?status")

	// The end: 202, then 404 when all edges have let go.
	gone := c.do(owner, "DELETE", path, "").want(202).shape(domainShape).is("deleting", "status").is(false, "serving")
	c.do(owner, "GET", path, "").want(200).is("deleting", "status")
	c.do(owner, "PATCH", path, `{}`).problem(409, "conflict")
	delta := c.do(token, "GET", "/v1/edge/domains?after=1", "").want(200).is(1, "base").is("app.example.com", "removed", 0)
	if len(delta.list("domains")) != 0 || delta.at("revision") != gone.at("revision") {
		t.Error(delta.text)
	}
	for _, e := range []*testEdge{e, e2} {
		e.report(uint64(gone.at("revision").(float64)), `"certificates":[{"name":"app.example.com","state":"gone"}]`)
	}
	c.until("the domain is gone", func() *reply { return c.do(owner, "GET", path, "") }, func(a *reply) bool { return a.StatusCode == 404 }).problem(404, "not_found")
	c.do(owner, "DELETE", path, "").problem(404, "not_found")

	// What no edge knows goes at once.
	id := c.do(owner, "GET", "/v1/domains?name=b.example.com", "").str("data", 0, "id")
	c.do(owner, "DELETE", "/v1/domains/"+id, "").want(202).is("deleting", "status")
	c.do(owner, "GET", "/v1/domains/"+id, "").problem(404, "not_found")
}

func TestContractWhatADomainMayBe(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	post := func(name, more string) *reply {
		return c.do(c.key, "POST", "/v1/domains", fmt.Sprintf(`{"name":%q,"upstreams":[{"dial":"10.0.0.5:8443"}]%s}`, name, more))
	}
	post("bücher.example.com", "").want(201).is("xn--bcher-kva.example.com", "name").is("ok", "axes", "ownership", "state").is("trusted", "axes", "ownership", "proof")
	for _, name := range []string{"*.example.com", "192.0.2.1", "a b.example.com", "", "a..example.com", strings.Repeat("a.", 130) + "com"} {
		post(name, "").problem(422, "invalid")
	}
	post("c.example.com", `,"certificate":{"source":"internal"}`).problem(422, "invalid", "/certificate/source")
	post("c.example.com", `,"certificate":{"source":"byoc"}`).problem(422, "invalid")
	post("c.example.com", `,"tenant":"ten_other"`).problem(422, "invalid", "/tenant")
	for _, dial := range []string{"127.0.0.1:1", "169.254.169.254:80", "[::1]:1", "192.168.0.1:1", "unix//run/x", "x"} {
		c.do(c.key, "POST", "/v1/domains", fmt.Sprintf(`{"name":"c.example.com","upstreams":[{"dial":%q}]}`, dial)).problem(422, "invalid", "/upstreams/0/dial")
	}
	ca := pqtest.NewCA(t)
	chain, key := ca.PairPEM(t, "*.example.com")
	pair, err := json.Marshal(map[string]any{"source": "byoc", "chain_pem": string(chain), "key_pem": string(key)})
	if err != nil {
		t.Fatal(err)
	}
	wild := post("*.example.com", `,"certificate":`+string(pair)).want(201).is("byoc", "certificate", "source")
	if strings.Contains(wild.text, "pem") {
		t.Error("the pair is shown")
	}
	c.do(c.key, "DELETE", "/v1/domains/"+wild.str("id")+"/certificate", "").problem(409, "conflict")
}

// TestContractClaims: one name, several tenants.
func TestContractClaims(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	a, b := c.signUp("a@example.org"), c.signUp("b@example.org")
	first, second := "/v1/domains/"+c.domain(a, "x.example.com"), ""
	c.world.set("x.example.com", true, "")
	c.do(a, "POST", first+"/check", "").want(200).is("dns", "axes", "ownership", "proof")
	token := c.edgeToken()
	tenantOf := func() any { return c.do(token, "GET", "/v1/edge/domains", "").want(200).at("domains", 0, "tenant") }
	tenantA, tenantB := c.do(a, "GET", "/v1/tenant", "").str("id"), c.do(b, "GET", "/v1/tenant", "").str("id")
	if tenantOf() != tenantA {
		t.Error("the feed has another tenant")
	}
	made := c.do(b, "POST", "/v1/domains", `{"name":"x.example.com","upstreams":[{"dial":"10.0.0.9:1"}]}`).want(201)
	second = "/v1/domains/" + made.str("id")
	waiting := c.do(b, "POST", second+"/check", "").want(200).is(nil, "axes", "ownership", "proof").is("failed", "axes", "ownership", "state").is(false, "serving")
	c.world.set("x.example.com", true, waiting.str("records", len(waiting.list("records"))-1, "value"))
	revision := c.do(token, "GET", "/v1/edge/domains", "").at("revision")
	c.do(b, "POST", second+"/check", "").want(200).is("txt", "axes", "ownership", "proof")
	if tenantOf() != tenantB {
		t.Error("a TXT record does not beat a name that merely points here")
	}
	c.do(a, "POST", first+"/check", "").want(200).is(nil, "axes", "ownership", "proof").is(false, "serving")
	delta := c.do(token, "GET", fmt.Sprintf("/v1/edge/domains?after=%v", revision), "").want(200)
	if delta.at("domains", 0, "tenant") != tenantB || len(delta.list("removed")) != 0 {
		t.Error(delta.text)
	}

	// The operator's word for the first tenant does not take it back; its own record does where the name only pointed here.
	c.do(c.key, "PATCH", "/v1/platform/tenants/"+tenantA, `{"trusted":true}`).want(200)
	c.do(a, "POST", first+"/check", "").want(200).is(nil, "axes", "ownership", "proof")
	if tenantOf() != tenantB {
		t.Error("trust took a proven name")
	}

	// A name that somebody held in the last 90 days is not proven by pointing it here.
	c.do(b, "DELETE", second, "").want(202)
	d := c.signUp("d@example.org")
	third := "/v1/domains/" + c.domain(d, "x.example.com")
	c.world.set("x.example.com", true, "")
	c.do(d, "POST", third+"/check", "").want(200).is(nil, "axes", "ownership", "proof")
	c.do(a, "DELETE", first, "").want(202)
	c.do(d, "POST", third+"/check", "").want(200).is(nil, "axes", "ownership", "proof")
	c.clock.move(91 * 24 * time.Hour)
	d = c.signIn("d@example.org", "correct horse battery")
	c.do(d, "POST", third+"/check", "").want(200).is("dns", "axes", "ownership", "proof")
}

// TestContractTrustedTXT: a tenant that is trusted, and has the record too, did not get a name that only pointed here.
func TestContractTrustedTXT(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	a := c.signUp("a@example.org")
	first := "/v1/domains/" + c.domain(a, "x.example.com")
	c.world.set("x.example.com", true, "")
	c.do(a, "POST", first+"/check", "").want(200).is("dns", "axes", "ownership", "proof")
	mine := "/v1/domains/" + c.domain(c.key, "x.example.com")
	waiting := c.do(c.key, "POST", mine+"/check", "").want(200).is(nil, "axes", "ownership", "proof")
	c.world.set("x.example.com", true, waiting.str("records", len(waiting.list("records"))-1, "value"))
	c.do(c.key, "POST", mine+"/check", "").want(200).is("ok", "axes", "ownership", "state")
	c.do(a, "GET", first, "").want(200).is(nil, "axes", "ownership", "proof")
}

// TestContractClockBack: a clock that was put back made all checks of the time after look old, and none of them counted.
func TestContractClockBack(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	owner := c.signUp("other@example.org")
	path := "/v1/domains/" + c.domain(owner, "a.example.com")
	c.do(owner, "POST", path+"/check", "").want(200)
	c.clock.move(-time.Hour)
	c.world.set("a.example.com", true, "")
	c.do(owner, "POST", path+"/check", "").want(200).is("ok", "axes", "dns", "state")
}

func TestContractCertificates(t *testing.T) {
	c := newContract(t, nil)
	c.setUp()
	path := "/v1/domains/" + c.domain(c.key, "app.example.com")
	ca := pqtest.NewCA(t)
	pair := func(name string) string {
		chain, key := ca.PairPEM(t, name)
		text, err := json.Marshal(map[string]any{"chain_pem": string(chain), "key_pem": string(key)})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	c.do(c.key, "PUT", path+"/certificate", pair("other.example.com")).problem(422, "invalid", "/chain_pem")
	c.do(c.key, "PUT", path+"/certificate", `{"chain_pem":"x","key_pem":"y"}`).problem(422, "invalid")
	c.do(c.key, "PUT", path+"/certificate", `{"chain_pem":"x"}`).problem(422, "invalid", "/key_pem")
	tag := c.do(c.key, "GET", path, "").Header.Get("ETag")
	c.do(c.key, "PUT", path+"/certificate", pair("app.example.com"), "If-Match", `"nothing"`).problem(412, "precondition_failed")
	own := c.do(c.key, "PUT", path+"/certificate", pair("app.example.com"), "If-Match", tag).want(200).shape(certificateShape)
	own.is("byoc", "source").is("app.example.com", "domain").is("ok", "state").shape("time", "not_before").shape("time", "not_after").shape("text", "serial").
		shape("text", "key_type").shape("text", "issuer")
	if own.str("domain_id") != strings.TrimPrefix(path, "/v1/domains/") || len(own.str("sha256")) != 64 || !slices.Equal(own.list("names"), []any{"app.example.com"}) {
		t.Error(own.text)
	}
	c.do(c.key, "GET", path, "").want(200).is("byoc", "certificate", "source").is("none", "certificate", "fallback").is("ok", "axes", "certificate", "state")
	feed := c.do(c.edgeToken(), "GET", "/v1/edge/domains", "").want(200)
	if !strings.Contains(feed.str("domains", 0, "certificate", "key_pem"), "PRIVATE KEY") {
		t.Error("edges do not get the key")
	}
	for _, where := range []string{path, path + "/certificate", "/v1/certificates", "/v1/domains", "/v1/audit?limit=200"} {
		if a := c.do(c.key, "GET", where, "").want(200); strings.Contains(a.text, "PRIVATE") || strings.Contains(a.text, "key_pem") {
			t.Errorf("%s shows a key", where)
		}
	}
	c.domain(c.key, "b.example.com")
	c.do(c.key, "GET", "/v1/certificates", "").want(200).shape(page(certificateShape))
	if soon := c.do(c.key, "GET", "/v1/certificates?expiring_within=400d", "").want(200); len(soon.list("data")) != 1 {
		t.Error(soon.text)
	}
	if soon := c.do(c.key, "GET", "/v1/certificates?expiring_within=1h", "").want(200); len(soon.list("data")) != 0 {
		t.Error(soon.text)
	}
	c.do(c.key, "GET", "/v1/certificates?expiring_within=soon", "").problem(422, "invalid", "?expiring_within")
	c.do(c.key, "DELETE", path+"/certificate", "").want(200).shape(certificateShape).is("acme", "source")
	// What edges obtained is known from them, and stays known when they say nothing for a while.
	c.work()
	notAfter := c.clock.now().AddDate(0, 0, 60).UTC().Format(time.RFC3339)
	e := c.newEdge("e1", c.edgeToken())
	revision, _ := c.do(c.key, "GET", path, "").at("revision").(float64)
	e.report(uint64(revision), fmt.Sprintf(`"certificates":[{"name":"app.example.com","source":"acme","issuer":"CN=Test","not_after":%q,"state":"valid"}]`, notAfter))
	soon := func() *reply { return c.do(c.key, "GET", "/v1/certificates?expiring_within=61d", "").want(200) }
	c.until("the list knows", soon, func(a *reply) bool { return len(a.list("data")) == 1 }).is(notAfter, "data", 0, "not_after")
	c.clock.move(time.Hour)
	c.do(c.key, "POST", path+"/check", "").want(200).is(0, "axes", "edges", "of")
	if a := soon().is(notAfter, "data", 0, "not_after"); len(a.list("data")) != 1 {
		t.Error(a.text)
	}
	c.do(c.key, "GET", path, "").want(200).is("acme", "certificate", "source")
	c.do(c.key, "DELETE", path+"/certificate", "").problem(404, "not_found")
}
