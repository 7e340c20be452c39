package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func idempotent(key string) http.Header { return http.Header{keyHeader: {key}} }

func TestReplay(t *testing.T) {
	a := newTestAPI(t, Options{})
	q := request{method: "POST", target: "/v1/widgets", body: `{"name":"a"}`, header: idempotent("k 1")}
	first := a.send(q)
	wantStatus(t, first, 201)
	if first.Header().Get(replayedHeader) != "" || !strings.Contains(first.Body.String(), "told-once") {
		t.Fatal(first.Body)
	}
	again := a.send(q)
	wantStatus(t, again, 201)
	if again.Header().Get(replayedHeader) != "true" || again.Body.String() != `{"name":"a","secret":null}`+"\n" {
		t.Errorf("%v %s", again.Header(), again.Body)
	}
	for _, name := range []string{"Location", "ETag", "Content-Type"} {
		if again.Header().Get(name) != first.Header().Get(name) {
			t.Errorf("%s: %q", name, again.Header().Get(name))
		}
	}
	if again.Header().Get("X-Request-Id") == first.Header().Get("X-Request-Id") {
		t.Error("the request has the ID of another")
	}
	if a.calls != 1 {
		t.Errorf("%d calls", a.calls)
	}
	for _, reply := range a.core.replies {
		if strings.Contains(string(reply.Body), "told-once") {
			t.Error("a secret is kept")
		}
	}

	other := q
	other.body = `{"name":"b"}`
	wantProblem(t, a.send(other), management.IdempotencyMismatch)
	other = q
	other.target += "?" // the same
	wantStatus(t, a.send(other), 201)
	other.bearer, other.header = "none", http.Header{keyHeader: {"k 1"}, "Cookie": cookieOf(aSession)["Cookie"]}
	if w := a.send(other); w.Code != 201 || w.Header().Get(replayedHeader) != "" {
		t.Errorf("a session got the answer of a key: %d %v", w.Code, w.Header())
	}
	other = q
	other.header = idempotent("k 2")
	if w := a.send(other); w.Header().Get(replayedHeader) != "" {
		t.Error("another key got the answer")
	}
}

func TestRefusalsAreReplayedFailuresAreNot(t *testing.T) {
	for code, kept := range map[management.Code]bool{
		management.DomainExists: true, management.Invalid: true, management.QuotaExceeded: true,
		management.Internal: false, management.Unavailable: false, management.RateLimited: false,
	} {
		a := newTestAPI(t, Options{})
		a.do = func(*call) (*answer[widget], error) { return nil, management.Errorf(code, "no") }
		q := request{method: "POST", target: "/v1/widgets", body: `{"name":"a"}`, header: idempotent("k")}
		a.send(q)
		w := a.send(q)
		if replayed := w.Header().Get(replayedHeader) == "true"; replayed != kept || w.Code != problems[code].status || a.calls != 1 && kept || a.calls != 2 && !kept {
			t.Errorf("%s: replayed %v after %d calls, %d", code, replayed, a.calls, w.Code)
		}
	}

	a := newTestAPI(t, Options{})
	a.do = func(*call) (*answer[widget], error) { panic("oh") }
	q := request{method: "POST", target: "/v1/widgets", body: `{"name":"a"}`, header: idempotent("k")}
	wantProblem(t, a.send(q), management.Internal)
	a.do = nil
	wantStatus(t, a.send(q), 201)

	// What is refused before the work began leaves no trace.
	q.body, q.header = `{`, idempotent("k2")
	wantProblem(t, a.send(q), management.Malformed)
	q.body = `{"name":"a"}`
	wantStatus(t, a.send(q), 201)
}

func TestConcurrentDuplicate(t *testing.T) {
	a := newTestAPI(t, Options{})
	q := request{method: "POST", target: "/v1/widgets", body: `{"name":"a"}`, header: idempotent("k")}
	a.do = func(*call) (*answer[widget], error) {
		w := a.send(q)
		wantProblem(t, w, management.Conflict)
		if w.Header().Get("Retry-After") != "1" {
			t.Error(w.Header())
		}
		return ok("", widget{}), nil
	}
	wantStatus(t, a.send(q), 201)
}

func TestIdempotencyKeyForms(t *testing.T) {
	a := newTestAPI(t, Options{})
	for _, values := range [][]string{{""}, {strings.Repeat("k", 256)}, {"é"}, {"a\tb"}, {"a", "b"}} {
		wantProblem(t, a.send(request{method: "POST", target: "/v1/widgets", body: `{"name":"a"}`, header: http.Header{keyHeader: values}}), management.Malformed)
	}
	wantStatus(t, a.send(request{method: "POST", target: "/v1/widgets", body: `{"name":"a"}`, header: idempotent(strings.Repeat("k", 255))}), 201)

	// Nobody has a key without a credential, and edges' reports have numbers.
	for range 2 {
		w := a.send(request{method: "POST", target: "/v1/sessions", bearer: "none", body: `{"name":"a"}`, header: idempotent("k")})
		if w.Code != 201 || w.Header().Get(replayedHeader) != "" {
			t.Errorf("%d %v", w.Code, w.Header())
		}
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		``:                      ``,
		`{}`:                    `{}`,
		`{"secret":"x"}` + "\n": `{"secret":null}` + "\n",
		`{"a":[{"secret":{"deep":[1,2]},"b":"secret"},"secret"],"url":"u","secret":1.50,"c":1.50}`: `{"a":[{"secret":null,"b":"secret"},"secret"],"url":null,"secret":null,"c":1.50}`,
		`{"secret":null,"x":{"secret":[]}}`:      `{"secret":null,"x":{"secret":null}}`,
		`["secret",{"k":"secret","secret":"x"}]`: `["secret",{"k":"secret","secret":null}]`,
		`{"s\u0065cret":"x"}`:                    `{"s\u0065cret":null}`,
		`{"secret":`:                             ``,
		`no json`:                                ``,
	} {
		if got := string(redact([]byte(in), []string{"url"})); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func FuzzRedact(f *testing.F) {
	for _, seed := range []string{`{"secret":"x"}`, `{"a":[{"secret":{}}]}`, `[[],{},"secret"]`, `{"secret":{"secret":1}}`, `1`, `{"a":{"b":[1,{"secret":[{}]}]},"c":2}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if !json.Valid(body) {
			return
		}
		out := redact(body, nil)
		var v any
		if err := json.Unmarshal(out, &v); err != nil {
			t.Fatalf("%q became %q: %v", body, out, err)
		}
		noSecret(t, v)
	})
}

func noSecret(t *testing.T, v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if name == "secret" && value != nil {
				t.Fatalf("a secret is left: %v", value)
			}
			noSecret(t, value)
		}
	case []any:
		for _, value := range v {
			noSecret(t, value)
		}
	}
}

func FuzzIdempotencyKey(f *testing.F) {
	for _, seed := range []string{"", "k", "a b", "\x00", "é", strings.Repeat("k", 256)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, key string) {
		got, given, err := keyOf(http.Header{keyHeader: {key}})
		if !given || err == nil && (got != key || key == "" || len(key) > maxKey || strings.ContainsFunc(key, func(c rune) bool { return c < ' ' || c > '~' })) {
			t.Fatalf("%q: %q, %v", key, got, err)
		}
	})
}
