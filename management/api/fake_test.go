package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// fakeCore stands for the Plane: a few credentials, answers in a map, and failures to order.
type fakeCore struct {
	mu       sync.Mutex
	keys     map[string]*management.Principal // by the secret's text
	sessions map[string]*management.Principal // by the cookie's value
	edges    map[string]*management.Principal
	replies  map[string]*management.Reply
	down     error
	lookups  int
}

func (f *fakeCore) find(in map[string]*management.Principal, text string) (*management.Principal, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookups++
	if f.down != nil {
		return nil, f.down
	}
	who, ok := in[text]
	if !ok {
		return nil, management.Errorf(management.Unauthenticated, "nobody")
	}
	fresh := *who
	return &fresh, nil
}

func (f *fakeCore) PrincipalOfKey(_ context.Context, s management.Secret) (*management.Principal, error) {
	return f.find(f.keys, s.Reveal())
}

func (f *fakeCore) PrincipalOfSession(_ context.Context, token, _ string) (*management.Principal, error) {
	return f.find(f.sessions, token)
}

func (f *fakeCore) PrincipalOfEdge(_ context.Context, s management.Secret) (*management.Principal, error) {
	return f.find(f.edges, s.Reveal())
}

func (f *fakeCore) Ready(context.Context) error { return f.down }

func (f *fakeCore) BeginReply(_ context.Context, who *management.Principal, key string, hash []byte) (*management.Reply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch old := f.replies[who.Actor()+key]; {
	case old == nil:
		f.replies[who.Actor()+key] = &management.Reply{RequestHash: hash}
		return nil, nil
	case !bytes.Equal(old.RequestHash, hash):
		return nil, management.Errorf(management.IdempotencyMismatch, "mismatch")
	case old.Status == 0:
		return nil, &management.Error{Code: management.Conflict, RetryAfter: time.Second}
	default:
		return old, nil
	}
}

func (f *fakeCore) FinishReply(ctx context.Context, who *management.Principal, key string, _ []byte, status int, header map[string]string, body []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.replies[who.Actor()+key]
	old.Status, old.Header, old.Body = status, header, body
	return ctx.Err()
}

func (f *fakeCore) DropReply(ctx context.Context, who *management.Principal, key string, _ []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.replies, who.Actor()+key)
	return ctx.Err()
}

// The credentials that a test API knows.
var (
	fullKey    = management.NewSecret(management.APIKeySecret).Reveal()
	narrowKey  = management.NewSecret(management.APIKeySecret).Reveal() // without domains:write
	unknownKey = management.NewSecret(management.APIKeySecret).Reveal()
	edgeKey    = management.NewSecret(management.EdgeTokenSecret).Reveal()
	aTenant    = management.NewID(management.TenantID)
)

const aSession = "session-token"

// A widget is the noun of these tests.
type widget struct {
	Name   string   `json:"name"`
	Size   int      `json:"size,omitempty"`
	Tags   []string `json:"tags,omitempty"`
	Parts  []part   `json:"parts,omitempty"`
	Secret string   `json:"secret,omitempty"`
}

type part struct {
	Dial string     `json:"dial"`
	At   *time.Time `json:"at,omitempty"`
}

type widgetID struct {
	byID
}

type newWidget struct {
	Body widget
}

type widgetFilter struct {
	paging
	timeRange
	Status string        `query:"status" enum:"up,down"`
	Name   string        `query:"name"`
	Big    *bool         `query:"big"`
	Within time.Duration `query:"within"`
}

type patchWidget struct {
	byID
	conditional
	Body json.RawMessage
}

type changeWidget struct {
	byID
	Body struct {
		Size *int `json:"size"`
	}
}

type reportWidgets struct {
	Body io.Reader
}

// testAPI is an API with a fake core and widgets.
type testAPI struct {
	*API
	core *fakeCore
	log  *bytes.Buffer

	mu    sync.Mutex
	calls int
	do    func(c *call) (*answer[widget], error) // what creating a widget does; nil: it works
	seen  any                                    // the In of the last call
}

func (a *testAPI) saw(in any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls++
	a.seen = in
}

func newTestAPI(t *testing.T, opts Options) *testAPI {
	a := &testAPI{log: new(bytes.Buffer), core: &fakeCore{replies: map[string]*management.Reply{}}}
	all := &management.Principal{UserID: "usr_1", APIKeyID: "key_1", TenantID: aTenant, Scopes: management.Scopes{management.All}}
	few := &management.Principal{UserID: "usr_1", APIKeyID: "key_2", TenantID: aTenant, Scopes: management.Scopes{management.DomainsRead}}
	a.core.keys = map[string]*management.Principal{fullKey: all, narrowKey: few}
	a.core.sessions = map[string]*management.Principal{aSession: {UserID: "usr_1", TenantID: aTenant, Scopes: management.Scopes{management.All}}}
	a.core.edges = map[string]*management.Principal{edgeKey: {EdgeTokenID: "etk_1"}}
	opts.Log = slog.New(slog.NewTextHandler(a.log, nil))
	a.API = newAPI(nil, a.core, opts, a.widgets())
	return a
}

func (a *testAPI) widgets() []route {
	return []route{
		endpoint(operation{
			method: http.MethodPost, path: "/v1/widgets", id: "createWidget", tag: "widgets", scope: management.DomainsWrite, status: http.StatusCreated,
			once: []string{"url"},
		}, func(c *call, in *newWidget) (*answer[widget], error) {
			a.saw(in)
			if a.do != nil {
				return a.do(c)
			}
			w := in.Body
			w.Secret = "told-once"
			return created("/v1/widgets/1", management.ETag(1), w), nil
		}),
		endpoint(operation{method: http.MethodGet, path: "/v1/widgets", id: "listWidgets", tag: "widgets", scope: management.DomainsRead},
			func(c *call, in *widgetFilter) (*answer[list[widget]], error) {
				a.saw(in)
				data := make([]widget, in.Limit)
				for i := range data {
					data[i].Name = fmt.Sprintf("widget-%d", i)
				}
				return listOf(data, ""), nil
			}),
		endpoint(operation{method: http.MethodGet, path: "/v1/widgets/{id}", id: "getWidget", tag: "widgets", scope: management.DomainsRead},
			func(c *call, in *widgetID) (*answer[widget], error) {
				a.saw(in)
				if in.ID != "1" {
					return nil, management.Errorf(management.NotFound, "There is no such widget.")
				}
				return ok(management.ETag(7), widget{Name: strings.Repeat("w", 2*leastGzip)}), nil
			}),
		endpoint(operation{method: http.MethodPatch, path: "/v1/widgets/{id}", id: "updateWidget", tag: "widgets", scope: management.DomainsWrite, bodyLike: widget{}},
			func(c *call, in *patchWidget) (*answer[widget], error) {
				a.saw(in)
				return ok(management.ETag(8), widget{}), nil
			}),
		endpoint(operation{method: http.MethodPatch, path: "/v1/widgets/{id}/size", id: "resizeWidget", tag: "widgets", scope: management.DomainsWrite},
			func(c *call, in *changeWidget) (*answer[widget], error) {
				a.saw(in)
				return ok(management.ETag(8), widget{}), nil
			}),
		endpoint(operation{method: http.MethodDelete, path: "/v1/widgets/{id}", id: "deleteWidget", tag: "widgets", scope: management.DomainsWrite},
			func(c *call, in *widgetID) (*answer[none], error) {
				a.saw(in)
				return empty(), nil
			}),
		endpoint(operation{method: http.MethodGet, path: "/v1/widgets/newest", id: "getNewestWidget", tag: "widgets"},
			func(c *call, in *struct{}) (*answer[widget], error) {
				a.saw(in)
				return ok("", widget{Name: "newest"}), nil
			}),
		endpoint(operation{method: http.MethodPost, path: "/v1/sessions", id: "createSession", tag: "sessions", access: byAnybody, status: http.StatusCreated},
			func(c *call, in *newWidget) (*answer[widget], error) {
				a.saw(in)
				return &answer[widget]{Session: aSession}, nil
			}),
		stream(operation{method: http.MethodGet, path: "/v1/widgets/tail", id: "tailWidgets", tag: "widgets", endless: true, timeout: -1},
			[]media{mediaOf[widget]("application/x-ndjson"), mediaOf[list[widget]](jsonType)},
			func(c *call, in *struct{}, w http.ResponseWriter) error {
				a.saw(in)
				if !c.prefers("application/x-ndjson") {
					return c.writeJSON(w, listOf([]widget(nil), "").Body)
				}
				w.Header().Set("Content-Type", "application/x-ndjson")
				io.WriteString(w, "{}\n")
				if err := http.NewResponseController(w).Flush(); err != nil {
					return err
				}
				return errors.New("broke in the middle")
			}),
		stream(operation{
			method: http.MethodPost, path: "/v1/edge/widgets", id: "reportWidgets", tag: "edge", face: onEdge, access: byEdgeToken, maxBody: 2 << 20, gzipBody: true,
			bodyLike: widget{}, free: true,
		}, []media{mediaOf[widget](jsonType)}, func(c *call, in *reportWidgets, w http.ResponseWriter) error {
			a.saw(in)
			n, err := io.Copy(io.Discard, in.Body)
			if err != nil {
				return fmt.Errorf("reading the report: %w", err)
			}
			return c.writeJSON(w, widget{Size: int(n)})
		}),
	}
}

// request is a request of a test. Its zero fields are a GET with the full key.
type request struct {
	method, target, body string
	header               http.Header
	bearer               string // "none": no header
	edge                 bool
}

func (a *testAPI) send(q request) *httptest.ResponseRecorder {
	if q.method == "" {
		q.method = http.MethodGet
	}
	r := httptest.NewRequest(q.method, q.target, strings.NewReader(q.body))
	if q.body != "" {
		r.Header.Set("Content-Type", jsonType)
	}
	bearer := q.bearer
	if bearer == "" {
		bearer = fullKey
		if q.edge {
			bearer = edgeKey
		}
	}
	if bearer != "none" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	for name, values := range q.header {
		r.Header[name] = values
	}
	w := httptest.NewRecorder()
	h := a.Public()
	if q.edge {
		h = a.Edge()
	}
	h.ServeHTTP(w, r)
	return w
}

// wantProblem fails unless w is the problem of that code.
func wantProblem(t *testing.T, w *httptest.ResponseRecorder, code management.Code) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("%d %q: %v", w.Code, w.Body, err)
	}
	if p.Code != code || w.Code != problems[code].status || p.Status != w.Code || w.Header().Get("Content-Type") != problemType ||
		p.Type != "urn:pqproxy:problem:"+string(code) || p.Title == "" || p.Detail == "" && code != management.Conflict {
		t.Fatalf("%d %s, want %s", w.Code, w.Body, code)
	}
	if p.RequestID != w.Header().Get("X-Request-Id") || !strings.HasPrefix(p.RequestID, "req_") {
		t.Fatalf("request_id %q, header %q", p.RequestID, w.Header().Get("X-Request-Id"))
	}
	return p
}

func wantStatus(t *testing.T, w *httptest.ResponseRecorder, status int) {
	t.Helper()
	if w.Code != status {
		t.Fatalf("%d %s, want %d", w.Code, w.Body, status)
	}
}

// cookieOf is the header that a browser sends.
func cookieOf(value string) http.Header {
	return http.Header{"Cookie": {auth.SessionCookie + "=" + value}}
}
