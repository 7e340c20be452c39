package api

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/management"
)

var update = flag.Bool("update", false, "write testdata/openapi.json as the code makes it")

// described is what the tests read of the document.
type described struct {
	OpenAPI    string                                `json:"openapi"`
	Paths      map[string]map[string]json.RawMessage `json:"paths"`
	Components map[string]map[string]json.RawMessage `json:"components"`
}

// operationOf is one operation of it.
type operationOf struct {
	method, path string

	ID          string                `json:"operationId"`
	Face        string                `json:"x-face"`
	Scope       management.Scope      `json:"x-scope"`
	Security    []map[string][]string `json:"security"`
	Description string                `json:"description"`
	Summary     string                `json:"summary"`
	Parameters  []parameterOf         `json:"parameters"`
	RequestBody *struct {
		Content map[string]json.RawMessage `json:"content"`
	} `json:"requestBody"`
	Responses map[string]struct {
		Ref     string                     `json:"$ref"`
		Content map[string]json.RawMessage `json:"content"`
	} `json:"responses"`
	Codes []management.Code `json:"x-codes"`
}

type parameterOf struct {
	Ref      string `json:"$ref"`
	Name, In string
	Required bool
}

// operations reads the document that a handler serves.
func operations(t *testing.T, h http.Handler) (all []operationOf, doc described) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/openapi.json", nil))
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	for path, item := range doc.Paths {
		for method, text := range item {
			op := operationOf{method: strings.ToUpper(method), path: path}
			if err := json.Unmarshal(text, &op); err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			all = append(all, op)
		}
	}
	slices.SortFunc(all, func(a, b operationOf) int { return strings.Compare(a.path+a.method, b.path+b.method) })
	return all, doc
}

func TestDocumentGolden(t *testing.T) {
	text := New(nil, Options{}).document.text
	golden := filepath.Join("testdata", "openapi.json")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, want) {
		t.Errorf("%s is not what the code makes: run `go test ./management/api -update` and review the difference", golden)
	}
	if again := New(nil, Options{}).document.text; !bytes.Equal(text, again) {
		t.Error("two documents of one table differ")
	}
}

// TestDocumentAndRoutes compares both ways: what is served is described, and what is described is served, on its face.
func TestDocumentAndRoutes(t *testing.T) {
	for name, a := range map[string]*API{"widgets": newTestAPI(t, Options{}).API, "table": New(nil, Options{})} {
		t.Run(name, func(t *testing.T) {
			described, _ := operations(t, a.Public())
			var fromDocument, fromTable []string
			for _, op := range described {
				fromDocument = append(fromDocument, op.method+" "+op.path)
			}
			for _, r := range a.routes {
				fromTable = append(fromTable, r.method+" "+r.path)
			}
			slices.Sort(fromDocument)
			slices.Sort(fromTable)
			if !slices.Equal(fromDocument, fromTable) {
				t.Errorf("document: %q\ntable: %q", fromDocument, fromTable)
			}
			for _, op := range described {
				faces := map[string][]http.Handler{"public": {a.Public()}, "edge": {a.Edge()}, "both": {a.Public(), a.Edge()}}[op.Face]
				if len(faces) == 0 {
					t.Errorf("%s: x-face %q", op.ID, op.Face)
				}
				if len(op.Security) == 0 {
					continue // for anybody: asking would need a Plane
				}
				for _, h := range faces {
					w := httptest.NewRecorder()
					h.ServeHTTP(w, httptest.NewRequest(op.method, pathOf(op.path), nil))
					if w.Code != http.StatusUnauthorized {
						t.Errorf("%s %s without a credential: %d %s", op.method, op.path, w.Code, w.Body)
					}
				}
			}
		})
	}
}

// TestDocumentIsComplete: every operation has what a reader needs, and every schema that is referred to is there.
func TestDocumentIsComplete(t *testing.T) {
	for name, a := range map[string]*API{"widgets": newTestAPI(t, Options{}).API, "table": New(nil, Options{})} {
		t.Run(name, func(t *testing.T) {
			all, doc := operations(t, a.Public())
			if doc.OpenAPI != "3.1.0" {
				t.Error(doc.OpenAPI)
			}
			for _, op := range all {
				if name == "table" && op.Summary == "" {
					t.Errorf("%s has no summary", op.ID)
				}
				if op.Scope != "" && !strings.Contains(op.Description, "`"+string(op.Scope)+"`") {
					t.Errorf("%s does not tell its scope", op.ID)
				}
				if op.Scope != "" && !management.KnownScope(op.Scope) {
					t.Errorf("%s: no scope %q", op.ID, op.Scope)
				}
				success := 0
				for status, res := range op.Responses {
					if status < "400" {
						if status < "300" {
							success++
						}
						continue
					}
					if status == "410" && op.Face == "edge" {
						continue // the feed's own
					}
					if !strings.HasPrefix(res.Ref, "#/components/responses/") {
						t.Errorf("%s: %s is no problem document", op.ID, status)
					}
				}
				for _, code := range op.Codes {
					if status := strconv.Itoa(problems[code].status); op.Responses[status].Ref == "" {
						t.Errorf("%s: %s has no answer %s", op.ID, code, status)
					}
				}
				if success != 1 {
					t.Errorf("%s: %d successes", op.ID, success)
				}
				for _, p := range op.Parameters {
					if p.Ref == "" && (p.In == "path") != p.Required {
						t.Errorf("%s: %s in %s, required %v", op.ID, p.Name, p.In, p.Required)
					}
				}
				if op.method == "POST" && op.Face == "public" && len(op.Security) > 0 && !slices.Contains(op.Parameters, parameterOf{Ref: "#/components/parameters/" + sharedKey}) {
					t.Errorf("%s takes no %s", op.ID, keyHeader)
				}
			}
			for _, ref := range regexp.MustCompile(`"\$ref": "([^"]*)"`).FindAllSubmatch(a.document.text, -1) {
				kind, name, ok := strings.Cut(strings.TrimPrefix(string(ref[1]), "#/components/"), "/")
				if !ok || doc.Components[kind][name] == nil {
					t.Errorf("%s leads nowhere", ref[1])
				}
			}
		})
	}
}

func TestDocumentIsServed(t *testing.T) {
	a := newTestAPI(t, Options{})
	get := func(header http.Header) *httptest.ResponseRecorder {
		return a.send(request{target: "/openapi.json", bearer: "none", header: header})
	}
	plain := get(nil)
	packed := get(http.Header{"Accept-Encoding": {"gzip"}})
	z, err := gzip.NewReader(packed.Body)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil || !bytes.Equal(text, plain.Body.Bytes()) || !bytes.Equal(text, a.document.text) {
		t.Fatal("the compressed document is another", err)
	}
	tags := []string{plain.Header().Get("ETag"), packed.Header().Get("ETag")}
	if tags[0] == tags[1] || tags[0] == "" || packed.Header().Get("Vary") != "Accept-Encoding" || plain.Header().Get("Cache-Control") != "no-cache" {
		t.Errorf("%q %v", tags, packed.Header())
	}
	if w := get(http.Header{"If-None-Match": {tags[0]}}); w.Code != 304 {
		t.Error(w.Code)
	}
	if w := get(http.Header{"If-None-Match": {tags[1]}, "Accept-Encoding": {"gzip"}}); w.Code != 304 || w.Header().Get("Content-Encoding") != "" {
		t.Error(w.Code, w.Header())
	}
}

// pathOf fills a path's parameters with something that can be sent.
func pathOf(path string) string { return regexp.MustCompile(`\{[^}]*\}`).ReplaceAllString(path, "x") }
