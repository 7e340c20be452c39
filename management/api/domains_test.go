package api

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestDomains takes a domain through the API, with curl alone.
func TestDomains(t *testing.T) {
	s := newService(t)
	key := s.setUp()
	d, w := s.do(201, key, "POST", "/v1/domains", `{"name":"App.Example.com","upstreams":[{"dial":"198.18.0.1.example.net:8443"}]}`)
	id, _ := d["id"].(string)
	path := "/v1/domains/" + id
	if w.Header().Get("Location") != path || w.Header().Get("ETag") != `"1"` || d["name"] != "app.example.com" || d["axes"] == nil || d["records"] == nil {
		t.Fatal(w.Header(), d)
	}
	s.do(409, key, "POST", "/v1/domains", `{"name":"app.example.com","upstreams":[{"dial":"a.example.net:1"}]}`)
	problem, w := s.do(422, key, "POST", "/v1/domains", `{"name":"b.example.com","upstreams":[{"dial":"127.0.0.1:8443"}],"nonsense":"SECRET"}`)
	if strings.Contains(w.Body.String(), "SECRET") || strings.Contains(w.Body.String(), "127.0.0.1") || len(problem["errors"].([]any)) == 0 {
		t.Error(w.Body)
	}
	list, _ := s.do(200, key, "GET", "/v1/domains?q=app&status="+d["status"].(string), "")
	if data := list["data"].([]any); len(data) != 1 || list["next_cursor"] != nil {
		t.Error(list)
	}
	s.do(422, key, "GET", "/v1/domains?status=odd", "")
	_, w = s.do(200, key, "PATCH", path, `{"post_quantum":"require"}`)
	if w.Header().Get("ETag") != `"2"` {
		t.Error(w.Header())
	}
	s.do(422, key, "PATCH", path, `{"name":"other.example.com"}`)
	s.do(200, key, "POST", path+"/check", "")
	if probes, _ := s.do(200, key, "POST", path+"/probe", ""); probes["upstreams"] == nil {
		t.Error(probes)
	}

	chain, private := pqtest.NewCA(t).PairPEM(t, "app.example.com")
	pair, err := json.Marshal(map[string]string{"chain_pem": string(chain), "key_pem": string(private)})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ method, path, body string }{
		{"PUT", path + "/certificate", string(pair)}, {"GET", path + "/certificate", ""}, {"GET", path, ""}, {"GET", "/v1/domains", ""},
		{"GET", "/v1/certificates?expiring_within=400d", ""}, {"GET", "/v1/audit", ""},
	} {
		_, w := s.do(200, key, c.method, c.path, c.body)
		if strings.Contains(w.Body.String(), strings.Split(string(private), "\n")[1]) || strings.Contains(w.Body.String(), "PRIVATE KEY") {
			t.Errorf("%s %s shows the key", c.method, c.path)
		}
	}
	if c, _ := s.do(200, key, "GET", "/v1/certificates?expiring_within=400d", ""); len(c["data"].([]any)) != 1 {
		t.Error(c)
	}
	if d, _ = s.do(200, key, "GET", path, ""); fmt.Sprint(d["certificate"]) != "map[fallback:none source:byoc]" {
		t.Error(d["certificate"])
	}
	if c, _ := s.do(200, key, "DELETE", path+"/certificate", ""); c["source"] != "acme" {
		t.Error(c)
	}
	if d, _ = s.do(202, key, "DELETE", path, ""); d["status"] != "deleting" {
		t.Error(d)
	}
	s.do(200, key, "GET", path, "")
}
