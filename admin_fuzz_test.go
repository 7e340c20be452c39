package pqproxy

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// useState puts a state in force for one test, and returns what serves requests as Caddy's endpoint does.
func useState(t testing.TB, s *state) (serve func(*http.Request) *httptest.ResponseRecorder) {
	before := inForce.Swap(s)
	t.Cleanup(func() { inForce.Store(before) })
	mux := http.NewServeMux()
	for _, route := range new(adminAPI).Routes() {
		mux.HandleFunc(route.Pattern, func(w http.ResponseWriter, r *http.Request) {
			err := route.Handler.ServeHTTP(w, r)
			if fault, ok := err.(caddy.APIError); ok {
				w.WriteHeader(fault.HTTPStatus)
				_, _ = io.WriteString(w, fault.Error())
			} else if err != nil {
				w.WriteHeader(http.StatusInternalServerError)
			}
		})
	}
	return func(r *http.Request) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		return w
	}
}

// fuzzedState has some domains of all sources, and the policy of a config that allows nothing.
func fuzzedState(f *testing.F) (s *state, serve func(*http.Request) *httptest.ResponseRecorder) {
	s = newTestState(f)
	policy, err := netpolicy.New(nil)
	if err != nil {
		f.Fatal(err)
	}
	s.settings.Store(&settings{logger: zap.NewNop(), accessLog: zap.NewNop(), policy: policy})
	close(s.ready)
	for rank := range sourceRank(sources) {
		c := s.newChangeSet(rank, true, nil)
		for i := range 3 {
			d := typical(i + int(rank))
			d.Name = fmt.Sprintf("%c.example.com", 'a'+i+int(rank))
			if err := c.put(d); err != nil {
				f.Fatal(err)
			}
		}
		_, _ = s.apply(c, nil)
	}
	return s, useState(f, s)
}

// unchangedBy serves a request that may be refused: the table is as it was then, and never is it a fault of the server's.
func unchangedBy(t *testing.T, s *state, serve func(*http.Request) *httptest.ResponseRecorder, r *http.Request) *httptest.ResponseRecorder {
	t.Helper()
	before := s.table.Load()
	w := serve(r)
	switch {
	case w.Code >= 500:
		t.Fatalf("status %d: %s", w.Code, w.Body)
	case w.Code >= 300 && s.table.Load() != before:
		t.Fatalf("status %d, and the table has changed: %s", w.Code, w.Body)
	case w.Code < 300 && w.Code != http.StatusNoContent && !json.Valid(w.Body.Bytes()):
		t.Fatalf("the answer is no JSON: %s", w.Body)
	}
	return w
}

func FuzzAdminDomain(f *testing.F) {
	s, serve := fuzzedState(f)
	for _, body := range []string{
		"", "{}", "null", `{"upstreams":[{"dial":"192.0.2.1:443"}]}`, internalRecord("b.example.com"), internalRecord("x.example.com", tenantIs("é")),
		`{"name":"b.example.com","upstreams":[{"dial":"up.example.net:443","tls":{}}],"certificate":{"source":"byoc","chain_pem":"-----BEGIN","key_pem":"x"}}`,
		`{"upstreams":[{"dial":"127.0.0.1:1"}],"suspended":true}`,
	} {
		f.Add("b.example.com", body, "")
		f.Add("*.example.com", body, `"x", W/"y.z"`)
	}
	f.Add("caf\u00e9.example.com", `{"upstreams":[{"dial":"up.example.net:443"}]}`, "*")
	f.Fuzz(func(t *testing.T, name, body, match string) {
		r := httptest.NewRequest("PUT", "/pqproxy/domains/x", strings.NewReader(body))
		r.URL.Path = adminDomain + name
		r.Header.Set("If-Match", match)
		if match == "" {
			r.Header.Del("If-Match")
		}
		w := unchangedBy(t, s, serve, r)
		if w.Code != http.StatusOK && w.Code != http.StatusCreated {
			return
		}
		var shown struct{ Domain struct{ Name string } }
		if err := json.Unmarshal(w.Body.Bytes(), &shown); err != nil {
			t.Fatal(err)
		}
		normal, err := domain.NormalName(name)
		if err != nil || shown.Domain.Name != normal || s.table.Load().named(normal).of(rankAdmin).none() {
			t.Fatalf("%q was put as %q: %v", name, shown.Domain.Name, err)
		}
		etag := w.Header().Get("ETag")
		again := httptest.NewRequest("DELETE", "/pqproxy/domains/x", nil)
		again.URL.Path = adminDomain + name
		again.Header.Set("If-Match", etag)
		if w := unchangedBy(t, s, serve, again); w.Code != http.StatusNoContent || !s.table.Load().named(normal).of(rankAdmin).none() {
			t.Fatalf("it cannot be removed: %d %s", w.Code, w.Body)
		}
	})
}

func FuzzAdminSet(f *testing.F) {
	s, serve := fuzzedState(f)
	for _, body := range []string{
		"", "{}", "[]", `{"domains":[]}`, `{"domains":[` + internalRecord("b.example.com") + `],"removed":["c.example.com"]}`,
		`{"domains":[` + internalRecord("b.example.com") + "," + internalRecord("B.example.com.") + `]}`,
		`{"revision":9,"base":8,"removed":["b.example.com"]}`, `{"domains":[{"name":7},{"x":1}],"later":{}}`,
	} {
		f.Add(body, true)
		f.Add(body, false)
	}
	f.Fuzz(func(t *testing.T, body string, patch bool) {
		method := "PUT"
		if patch {
			method = "PATCH"
		}
		others := func() (n int) {
			for e := range s.table.Load().all {
				if !e.of(rankStatic).none() || !e.of(rankRemote).none() {
					n++
				}
			}
			return n
		}
		before := others()
		w := unchangedBy(t, s, serve, httptest.NewRequest(method, "/pqproxy/domains", strings.NewReader(body)))
		if others() != before {
			t.Fatal("other sources' domains have changed")
		}
		if w.Code != http.StatusOK {
			return
		}
		var done outcome
		if err := json.Unmarshal(w.Body.Bytes(), &done); err != nil || done.Rejected < len(done.Rejects) && done.Rejected == 0 {
			t.Fatalf("%v in %s", err, w.Body)
		}
	})
}
