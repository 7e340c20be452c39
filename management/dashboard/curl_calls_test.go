package dashboard

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// callsOfForms are the calls behind forms that pagesOfCalls has no room for: several forms make one call.
var callsOfForms = map[string]string{
	"POST /domains/{id}/setup/dns": "POST /v1/domains/{id}/check", "POST /domains/{id}/setup/policy": "PATCH /v1/domains/{id}",
	"POST /domains/{id}/upstreams": "PATCH /v1/domains/{id}", "POST /domains/{id}/upstreams/apply": "PATCH /v1/domains/{id}",
	"POST /domains/{id}/setup/upstream": "PATCH /v1/domains/{id}", "POST /domains/{id}/setup/upstream/apply": "PATCH /v1/domains/{id}",
	"POST /domains/{id}/setup/upstream/probe": "POST /v1/domains/{id}/probe", "POST /domains/{id}/certificate/fallback": "PATCH /v1/domains/{id}",
}

// formsOfPeople have no curl line: an API key cannot do what they do, which takes a session and mostly its password.
var formsOfPeople = []string{
	"POST /logout", "POST /settings/password", "POST /settings/totp", "POST /settings/totp/confirm", "POST /settings/totp/off", "POST /settings/account/delete",
	"POST /settings/tenant/delete", "POST /settings/leave",
}

// apiDocument is what these tests read of the API's document.
type apiDocument struct {
	Paths      map[string]map[string]*apiCall
	Components struct{ Schemas map[string]*apiSchema }
}

type apiCall struct {
	Security   []map[string][]string
	Parameters []struct{ Name, In string }
	Body       *struct {
		Content map[string]struct{ Schema *apiSchema }
	} `json:"requestBody"`
}

type apiSchema struct {
	Ref        string `json:"$ref"`
	Properties map[string]*apiSchema
	Items      *apiSchema
	Required   []string
}

func readAPI(t *testing.T) *apiDocument {
	t.Helper()
	text, err := os.ReadFile("../api/testdata/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	doc := new(apiDocument)
	if err := json.Unmarshal(text, doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// call returns the call at a path with IDs in it, and how the document writes it.
func (doc *apiDocument) call(method, path string) (found *apiCall, name string) {
	segments := strings.Split(path, "/")
	for pattern, methods := range doc.Paths {
		call := methods[strings.ToLower(method)]
		wanted := strings.Split(pattern, "/")
		if call == nil || len(wanted) != len(segments) {
			continue
		}
		fits := true
		for i, want := range wanted {
			if strings.HasPrefix(want, "{") {
				fits = fits && segments[i] != ""
			} else {
				fits = fits && want == segments[i]
			}
		}
		// A literal beats a parameter.
		if fits && (name == "" || strings.Count(pattern, "{") < strings.Count(name, "{")) {
			found, name = call, method+" "+pattern
		}
	}
	return found, name
}

// faults returns what a value has that a schema does not know, and what it lacks.
func (doc *apiDocument) faults(s *apiSchema, value any, at string, complete bool) (all []string) {
	for s != nil && s.Ref != "" {
		s = doc.Components.Schemas[strings.TrimPrefix(s.Ref, "#/components/schemas/")]
	}
	if s == nil {
		return []string{at + " has no schema"}
	}
	switch value := value.(type) {
	case map[string]any:
		for name, member := range value {
			if s.Properties[name] == nil {
				all = append(all, at+"/"+name+" is unknown")
				continue
			}
			all = append(all, doc.faults(s.Properties[name], member, at+"/"+name, complete)...)
		}
		for _, name := range s.Required {
			if _, ok := value[name]; complete && !ok {
				all = append(all, at+"/"+name+" is missing")
			}
		}
	case []any:
		for _, item := range value {
			all = append(all, doc.faults(s.Items, item, at+"/-", complete)...)
		}
	}
	return all
}

// shellWords splits a line as a POSIX shell does, as far as curl lines go.
func shellWords(line string) (words []string, err error) {
	var word strings.Builder
	open, begun := byte(0), false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case open == '\'' && c != '\'', open == '"' && c != '"':
			if open == '"' && (c == '\\' || c == '`') {
				return nil, errors.New("an escape in double quotes")
			}
			word.WriteByte(c)
		case open != 0:
			open = 0
		case c == '\'' || c == '"':
			open, begun = c, true
		case c == '\\' && i+1 < len(line):
			if i++; line[i] != '\n' { // else the line goes on
				word.WriteByte(line[i])
				begun = true
			}
		case c == ' ' || c == '\n':
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		case strings.ContainsRune("$`;&|<>()*?[]#~!{}", rune(c)):
			return nil, errors.New("a character that means something to a shell")
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	if open != 0 {
		return nil, errors.New("a quote without its end")
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}

// TestCurlLinesAreCalls reads all curl lines of all pages as a shell would, where every text that somebody can set is an attack: each is a call that the
// API has, for an API key, with parameters and members that it knows. And every form that an API key could send too has such a line beside it.
func TestCurlLinesAreCalls(t *testing.T) {
	s, _ := hostileSite(t)
	doc := readAPI(t)
	b := s.signedIn()
	formCalls := map[string]string{}
	for call, page := range pagesOfCalls {
		if strings.HasPrefix(page, "POST ") {
			formCalls[page] = call
		}
	}
	for form, call := range callsOfForms {
		formCalls[form] = call
	}

	lines, forms := 0, map[string]bool{}
	seenPages, ofRoute := map[string]bool{}, map[string]int{}
	for paths := []string{"/", "/settings/totp"}; len(paths) > 0; paths = paths[1:] {
		u, err := url.Parse(paths[0])
		if err != nil {
			t.Fatal(err)
		}
		found, _ := s.match(u.EscapedPath())
		if len(found) == 0 || u.RawQuery != "" && !strings.HasPrefix(u.Path, "/connections/") || seenPages[paths[0]] || ofRoute[found[0].path] >= mostAlike {
			continue
		}
		seenPages[paths[0]] = true
		page := b.get(paths[0])
		if page.status != http.StatusOK {
			if to := page.header.Get("Location"); to != "" {
				paths = append(paths, to)
			}
			continue
		}
		ofRoute[found[0].path]++
		calls := map[string]bool{}
		for _, line := range page.copied() {
			if !strings.HasPrefix(line, "curl ") {
				continue
			}
			lines++
			name := checkCurl(t, doc, page.path, line)
			calls[name] = true
		}
		for _, n := range page.all(func(n *html.Node) bool { return n.Data == "form" && attr(n, "method") == "post" }) {
			action, _, _ := strings.Cut(attr(n, "action"), "?")
			routes, _ := s.match(action)
			for _, rt := range routes {
				if rt.method != http.MethodPost {
					continue
				}
				form := "POST " + rt.path
				forms[form] = true
				if call := formCalls[form]; !slices.Contains(formsOfPeople, form) && !calls[call] {
					t.Errorf("%s: beside the form of %s is no curl line of %q", page.path, form, call)
				}
			}
		}
		for _, n := range page.all(func(n *html.Node) bool {
			return n.Data == "a" && strings.HasPrefix(attr(n, "href"), "/") && !has(n, "download")
		}) {
			to, _, _ := strings.Cut(attr(n, "href"), "#")
			paths = append(paths, to)
		}
	}
	for _, rt := range s.routes {
		if rt.method != http.MethodPost || rt.access != byUser {
			continue
		}
		// Shown after a probe, where one-time passwords are on, or in the answer that begins them, alone.
		hidden := strings.HasSuffix(rt.path, "/apply") || strings.HasPrefix(rt.path, "/settings/totp/")
		if form := "POST " + rt.path; !forms[form] && !hidden {
			t.Errorf("no page was opened that has the form of %s", form)
		}
	}
	if lines < 30 {
		t.Errorf("only %d curl lines", lines)
	}
}

// checkCurl looks at one line, and returns which call it makes.
func checkCurl(t *testing.T, doc *apiDocument, page, line string) (name string) {
	t.Helper()
	words, err := shellWords(line)
	if err != nil || len(words) < 4 || words[0] != "curl" {
		t.Errorf("%s: a shell reads %v, %v of %s", page, words, err, line)
		return ""
	}
	method, address, body, key := http.MethodGet, "", "", false
	for i := 1; i < len(words); i++ {
		word, value := words[i], ""
		if strings.HasPrefix(word, "-") {
			if i++; i < len(words) {
				value = words[i]
			}
		}
		switch word {
		case "-X":
			method = value
		case "-d":
			body = value
		case "-H":
			key = key || value == "Authorization: Bearer $PQPROXY_API_KEY"
		default:
			if address != "" || strings.HasPrefix(word, "-") {
				t.Errorf("%s: %q in %s", page, word, line)
			}
			address = word
		}
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host != "console.example.com" || !key {
		t.Errorf("%s: it does not go to the API with a key: %s", page, line)
		return ""
	}
	call, name := doc.call(method, u.EscapedPath())
	if call == nil {
		t.Errorf("%s: the API has no %s %s", page, method, u.Path)
		return ""
	}
	if !slices.ContainsFunc(call.Security, func(s map[string][]string) bool { _, ok := s["apiKey"]; return ok }) {
		t.Errorf("%s: %s is not for API keys", page, name)
	}
	for parameter := range u.Query() {
		if !slices.ContainsFunc(call.Parameters, func(p struct{ Name, In string }) bool { return p.In == "query" && p.Name == parameter }) {
			t.Errorf("%s: %s has no parameter %q", page, name, parameter)
		}
	}
	if (body != "") != (call.Body != nil) {
		t.Errorf("%s: %s and the body %q", page, name, body)
	}
	if body == "" || call.Body == nil {
		return name
	}
	var value map[string]any
	if err := json.Unmarshal([]byte(body), &value); err != nil {
		t.Errorf("%s: %s with the body %s: %v", page, name, body, err)
		return name
	}
	for _, fault := range doc.faults(call.Body.Content["application/json"].Schema, value, "", method != http.MethodPatch) {
		t.Errorf("%s: %s: %s", page, name, fault)
	}
	return name
}

func TestShellWords(t *testing.T) {
	for line, want := range map[string]string{
		"curl 'a b' \\\n  -d '{\"x\":\"it'\\''s\"}'": `curl|a b|-d|{"x":"it's"}`, `a "b $C" ''`: "a|b $C|", "a  b\n": "a|b",
	} {
		if got, err := shellWords(line); err != nil || strings.Join(got, "|") != want {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
	for _, line := range []string{"a 'b", "a $(b)", "a;b", "a `b`", `a "\b"`, "a *"} {
		if got, err := shellWords(line); err == nil {
			t.Errorf("%q: %q", line, got)
		}
	}
}
