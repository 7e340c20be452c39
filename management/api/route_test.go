package api

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func TestRoutesAndTheirRefusals(t *testing.T) {
	a := newTestAPI(t, Options{})
	for _, test := range []struct {
		name string
		request
		code  management.Code
		allow string
	}{
		{name: "unknown", request: request{target: "/v1/nothing"}, code: management.NotFound},
		{name: "root", request: request{target: "/"}, code: management.NotFound},
		{name: "trailing slash", request: request{target: "/v1/widgets/"}, code: management.NotFound},
		{name: "two slashes", request: request{target: "/v1//widgets"}, code: management.NotFound},
		{name: "dots", request: request{target: "/v1/./widgets"}, code: management.NotFound},
		{name: "escaped letter", request: request{target: "/v1/%77idgets"}, code: management.NotFound},
		{name: "escaped slash in an ID", request: request{target: "/v1/widgets/a%2Fb"}, code: management.NotFound},
		{name: "NUL in an ID", request: request{target: "/v1/widgets/a%00"}, code: management.NotFound},
		{name: "long ID", request: request{target: "/v1/widgets/" + strings.Repeat("a", 400)}, code: management.NotFound},
		{name: "long path", request: request{target: "/" + strings.Repeat("a/", 4000)}, code: management.NotFound},
		{name: "other method", request: request{method: "PUT", target: "/v1/widgets"}, code: management.MethodNotAllowed, allow: "GET, HEAD, POST"},
		{name: "method of nobody", request: request{method: "BREW", target: "/v1/widgets/1"}, code: management.MethodNotAllowed, allow: "DELETE, GET, HEAD, PATCH"},
		{name: "OPTIONS", request: request{method: "OPTIONS", target: "/v1/widgets", header: http.Header{"Origin": {"https://evil.example"}}}, code: management.MethodNotAllowed, allow: "GET, HEAD, POST"},
		{name: "edge route at the public face", request: request{method: "POST", target: "/v1/edge/widgets", bearer: edgeKey}, code: management.NotFound},
		{name: "public route at the edge face", request: request{target: "/v1/widgets", edge: true}, code: management.NotFound},
		{name: "document at the edge face", request: request{target: "/openapi.json", edge: true}, code: management.NotFound},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := a.send(test.request)
			wantProblem(t, w, test.code)
			if got := w.Header().Get("Allow"); got != test.allow {
				t.Errorf("Allow %q, want %q", got, test.allow)
			}
			if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("header %v", w.Header())
			}
		})
	}
	if a.calls != 0 {
		t.Errorf("%d calls got through", a.calls)
	}
}

func TestLiteralBeatsParameter(t *testing.T) {
	a := newTestAPI(t, Options{})
	w := a.send(request{target: "/v1/widgets/newest"})
	wantStatus(t, w, 200)
	if w.Body.String() != `{"name":"newest"}`+"\n" {
		t.Error(w.Body)
	}
}

func TestHeadIsGetWithoutBody(t *testing.T) {
	a := newTestAPI(t, Options{})
	got, head := a.send(request{target: "/v1/widgets/1"}), a.send(request{method: "HEAD", target: "/v1/widgets/1"})
	wantStatus(t, head, 200)
	if head.Body.Len() != 0 || head.Header().Get("Content-Length") != got.Header().Get("Content-Length") || head.Header().Get("ETag") != `"7"` {
		t.Errorf("%v, want as %v", head.Header(), got.Header())
	}
}

func TestNotModified(t *testing.T) {
	a := newTestAPI(t, Options{})
	for tag, status := range map[string]int{`"7"`: 304, `W/"7"`: 304, `"1", "7"`: 304, `*`: 304, `"8"`: 200, ``: 200} {
		w := a.send(request{target: "/v1/widgets/1", header: http.Header{"If-None-Match": {tag}}})
		if w.Code != status || status == 304 && w.Body.Len() != 0 {
			t.Errorf("%s: %d, want %d", tag, w.Code, status)
		}
	}
}

func TestCreated(t *testing.T) {
	a := newTestAPI(t, Options{})
	w := a.send(request{method: "POST", target: "/v1/widgets", body: `{"name":"a"}`})
	wantStatus(t, w, 201)
	if w.Header().Get("Location") != "/v1/widgets/1" || w.Header().Get("ETag") != `"1"` || w.Header().Get("Content-Type") != jsonType {
		t.Error(w.Header())
	}
	if w.Body.String() != `{"name":"a","secret":"told-once"}`+"\n" {
		t.Error(w.Body)
	}
	if w := a.send(request{method: "DELETE", target: "/v1/widgets/1"}); w.Code != 204 || w.Body.Len() != 0 || w.Header().Get("Content-Type") != "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

func TestRequestIDIsOurOwn(t *testing.T) {
	a := newTestAPI(t, Options{})
	seen := map[string]bool{}
	for range 3 {
		id := a.send(request{target: "/v1/widgets", header: http.Header{"X-Request-Id": {"req_chosen"}}}).Header().Get("X-Request-Id")
		if !strings.HasPrefix(id, "req_") || id == "req_chosen" || seen[id] {
			t.Errorf("%q", id)
		}
		seen[id] = true
	}
}

// TestInternalErrorsAreNeutral: what broke is for the log, under the ID that the client sees.
func TestInternalErrorsAreNeutral(t *testing.T) {
	const detail = "table pq_users has no column named swordfish"
	for name, do := range map[string]func(*call) (*answer[widget], error){
		"error":        func(*call) (*answer[widget], error) { return nil, errors.New(detail) },
		"panic":        func(*call) (*answer[widget], error) { panic(detail) },
		"panic, nil":   func(*call) (*answer[widget], error) { var w *widget; w.Name = detail; return nil, nil },
		"unknown code": func(*call) (*answer[widget], error) { return nil, management.Errorf("mystery", detail) },
	} {
		t.Run(name, func(t *testing.T) {
			a := newTestAPI(t, Options{})
			a.do = do
			w := a.send(request{method: "POST", target: "/v1/widgets", body: `{"name":"a"}`})
			p := wantProblem(t, w, management.Internal)
			if strings.Contains(w.Body.String(), "swordfish") {
				t.Error(w.Body)
			}
			if !strings.Contains(a.log.String(), p.RequestID) || !strings.Contains(a.log.String(), "createWidget") || name != "panic, nil" && !strings.Contains(a.log.String(), "swordfish") {
				t.Errorf("log: %s", a.log)
			}
		})
	}
}

func TestUnavailable(t *testing.T) {
	a := newTestAPI(t, Options{})
	a.core.down = management.Errorf(management.Unavailable, "The database is away.")
	for _, target := range []string{"/v1/widgets", "/readyz"} {
		w := a.send(request{target: target})
		wantProblem(t, w, management.Unavailable)
		if w.Header().Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", target)
		}
	}
	wantProblem(t, a.send(request{target: "/readyz", edge: true}), management.Unavailable)
	wantStatus(t, a.send(request{target: "/healthz"}), 200)
	wantStatus(t, a.send(request{target: "/healthz", edge: true}), 200)

	a.core.down = nil
	wantStatus(t, a.send(request{target: "/readyz", bearer: "none"}), 200)
}

func TestTimeoutIsUnavailable(t *testing.T) {
	a := newTestAPI(t, Options{})
	a.do = func(c *call) (*answer[widget], error) {
		if deadline, ok := c.ctx.Deadline(); !ok || time.Until(deadline) > defaultTimeout {
			t.Errorf("deadline %v, %v", deadline, ok)
		}
		return nil, context.DeadlineExceeded
	}
	wantProblem(t, a.send(request{method: "POST", target: "/v1/widgets", body: `{"name":"a"}`}), management.Unavailable)
}

func TestGzip(t *testing.T) {
	a := newTestAPI(t, Options{})
	w := a.send(request{target: "/v1/widgets?limit=200", header: http.Header{"Accept-Encoding": {"br, gzip;q=0.5"}}})
	if w.Header().Get("Content-Encoding") != "gzip" || w.Header().Get("Vary") != "Accept-Encoding" {
		t.Fatal(w.Header())
	}
	z, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	var l list[widget]
	if err := json.NewDecoder(z).Decode(&l); err != nil || len(l.Data) != 200 {
		t.Fatal(len(l.Data), err)
	}
	for accept, want := range map[string]bool{"": false, "gzip;q=0": false, "*": true, "*;q=0, gzip": true, "gzip;q=0, *": false, "identity": false, "GZIP": true} {
		if got := acceptsGzip([]string{accept}); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
	for _, q := range []request{
		{target: "/v1/widgets?limit=1"}, // small
		{target: "/v1/widgets/1"},       // an entity tag is of the plain bytes
		{method: "POST", target: "/v1/widgets", body: `{"name":"` + strings.Repeat("a", 2*leastGzip) + `"}`}, // a secret beside chosen text
	} {
		q.header = http.Header{"Accept-Encoding": {"gzip"}}
		if w := a.send(q); w.Header().Get("Content-Encoding") != "" || w.Code >= 300 {
			t.Errorf("%s %s: %d %v", q.method, q.target, w.Code, w.Header())
		}
	}
}

// TestStreamIsCutWhenItBreaks: half an answer must not look like a whole one.
func TestStreamIsCutWhenItBreaks(t *testing.T) {
	a := newTestAPI(t, Options{})
	server := httptest.NewServer(a.Public())
	defer server.Close()
	r, _ := http.NewRequest("GET", server.URL+"/v1/widgets/tail", nil)
	r.Header.Set("Authorization", "Bearer "+fullKey)
	r.Header.Set("Accept", "application/x-ndjson")
	res, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.StatusCode != 200 || string(body) != "{}\n" || err == nil {
		t.Fatalf("%d %q %v", res.StatusCode, body, err)
	}
	if w := a.send(request{method: "HEAD", target: "/v1/widgets/tail"}); w.Code != 405 || w.Header().Get("Allow") != "GET" {
		t.Errorf("HEAD: %d %v", w.Code, w.Header())
	}
	w := a.send(request{target: "/v1/widgets/tail"})
	if w.Code != 200 || w.Body.String() != `{"data":[],"next_cursor":null}`+"\n" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
}

func TestShapeMistakesPanic(t *testing.T) {
	op := operation{method: "GET", path: "/v1/{id}", id: "x"}
	for name, make := range map[string]func(){
		"parameter without a field": func() { shapeOf(typeOf[struct{}](), op) },
		"field without a parameter": func() {
			shapeOf(typeOf[struct {
				ID    string `path:"id"`
				Other string `path:"other"`
			}](), op)
		},
		"default out of bounds": func() {
			shapeOf(typeOf[struct {
				byID
				N int `query:"n" default:"9" maximum:"3"`
			}](), op)
		},
		"type that cannot be read": func() {
			shapeOf(typeOf[struct {
				byID
				N []string `query:"n"`
			}](), op)
		},
		"body that the document cannot show": func() {
			shapeOf(typeOf[struct {
				byID
				Body struct{ paging }
			}](), op)
		},
		"ID twice": func() {
			newRouter([]route{{operation: operation{path: "/a", id: "x"}}, {operation: operation{path: "/b", id: "x"}}}, onPublic)
		},
		"route twice": func() {
			newRouter([]route{{operation: operation{path: "/a", id: "x"}}, {operation: operation{path: "/a", id: "y"}}}, onPublic)
		},
		"edge token public": func() { newRouter([]route{{operation: operation{path: "/a", id: "x", access: byEdgeToken}}}, onPublic) },
		"key at the edge":   func() { newRouter([]route{{operation: operation{path: "/a", id: "x", face: onEdge}}}, onEdge) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			make()
		})
	}
}

func TestWriteProblem(t *testing.T) {
	w := httptest.NewRecorder()
	WriteProblem(w, httptest.NewRequest("GET", "/", nil), &management.Error{Code: management.Unavailable, Detail: "Not yet.", RetryAfter: 90 * time.Second})
	wantProblem(t, w, management.Unavailable)
	if w.Header().Get("Retry-After") != "90" {
		t.Error(w.Header())
	}
}

func TestKnows(t *testing.T) {
	a := newTestAPI(t, Options{})
	for path, want := range map[string]bool{"/v1/widgets": true, "/healthz": true, "/login": false, "/v1/edge/widgets": false} {
		if got := a.Knows(httptest.NewRequest("PUT", path, nil)); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}
