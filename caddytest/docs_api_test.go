package caddytest

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/internal/acmetest"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

const apiPage = "../docs/api.md"

// TestAPIPage runs every command of docs/api.md with curl, in order, in one folder and with the variables that they set, against a
// management plane with an edge, a DNS server and an ACME server.
func TestAPIPage(t *testing.T) {
	const name = "app.example.com"
	dns, ca := startNameServer(t), acmetest.Start(t, acmetest.Options{})
	upstream := startNamed(t, "upstream")
	s := startService(t, dns, "signup open")
	first := s.call(t, 201, "POST", "/v1/setup", object{
		"setup_token": setupToken, "email": "ops@example.com", "password": "a long enough password", "tenant": "Platform", "api_key": true,
	})
	s.key = first.at("api_key", "secret").(string)
	token := s.call(t, 201, "POST", "/v1/platform/edge_tokens", object{"name": "fleet"}).at("secret").(string)
	e := startManagedEdge(t, "edge-1", s, token, ca, t.TempDir())
	ca.ForwardTLS(e.addr)

	w := &walk{t: t, dir: t.TempDir(), text: strings.ReplaceAll(readPage(t), "10.0.0.5:8443", upstream)}
	writeFile(t, w.dir, "variables", "URL="+s.public+"\n")
	own := newAuthority(t)
	chain, key := pqtest.EncodePair(t, own.Issue(t, name))
	writeFile(t, w.dir, "chain.pem", string(chain))
	writeFile(t, w.dir, "key.pem", string(key))

	w.next("/openapi.json")
	if text, err := os.ReadFile(filepath.Join(w.dir, "openapi.json")); err != nil || !json.Valid(text) {
		t.Errorf("the OpenAPI document: %v\n%.100s", err, text)
	}
	w.next("/v1/signup")
	w.next("/v1/api_keys").has(`"scopes":["*"]`, `"platform":false`)
	w.next("DOMAIN=").has(`"status":"pending_dns"`, `"record":{"type":"A","name":"app.example.com","value":"127.0.0.1"}`, "_pqproxy.app.example.com")
	dns.set(t, name, name+". 60 IN A 127.0.0.1")
	w.next("/check").has(`"ownership":{"state":"ok"`)
	w.next("until ").has(`"data":[{"id":"dom_`)
	w.next("/probe").has(`"reachable":true`)
	w.next("If-Match").has(`"load_balancing":"least_conn"`)

	// A client without a hybrid group, and a change, upon which edges report at once.
	classical := &tls.Config{ServerName: name, RootCAs: ca.Roots(0), CurvePreferences: []tls.CurveID{tls.X25519}}
	conn, err := pqtest.TryDial(t, e.addr, classical)
	if err != nil {
		t.Fatal(err)
	}
	readLine(t, conn, "upstream")
	conn.Close()
	w.run(`curl -K api.curl -X PATCH "$URL$DOMAIN" --json '{"load_balancing":null}'`)
	pqtest.Wait(t, "the connection to be reported", func() bool {
		return strings.Contains(w.run(`curl -K api.curl "$URL/v1/reports/require?days=1"`).out, `"refused":1`)
	})
	w.next("post_quantum=false").has(`"data":[{"id":"`, `"group":"X25519"`, "}\n{")
	w.next("/v1/usage").has(`"connections":1`, `"handshake_p50":[`, `"share":0`)
	w.next("/v1/reports/require").has(`"refused":1`, `"client":"127.0.0.0/24"`, `"post_quantum":"require"`)
	pqtest.Wait(t, "the policy to be live", func() bool {
		conn, err := pqtest.TryDial(t, e.addr, classical)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})

	w.next("lines()").has(`"source":"byoc"`, `"state":"ok"`, `"data":[{"id":"crt_`)
	pqtest.Wait(t, "the pair to be served", func() bool {
		conn, err := pqtest.TryDial(t, e.addr, &tls.Config{ServerName: name, RootCAs: own.Pool()})
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	w.next("-X DELETE").has(`"source":"acme"`)
	w.next("/v1/audit").has(`"action":"domain.created"`, `"status":"deleting"`)
	if w.text != "" && strings.Contains(w.text, "\n```sh\n") {
		t.Errorf("there are more commands on the page:%s", w.text)
	}
	pqtest.Wait(t, "the domain to leave", func() bool {
		_, err := pqtest.TryDial(t, e.addr, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		return err != nil && strings.Contains(err.Error(), "unrecognized name")
	})
}

// walk goes through the commands of a page.
type walk struct {
	t    *testing.T
	dir  string // with the file of variables
	text string // of the page, from behind what has been run
}

// printed is what commands printed.
type printed struct {
	*walk
	commands, out string
}

// next runs the next block of commands, which must have that text.
func (w *walk) next(has string) printed {
	w.t.Helper()
	_, rest, begins := strings.Cut(w.text, "\n```sh\n")
	commands, rest, ends := strings.Cut(rest, "\n```\n")
	if !begins || !ends || !strings.Contains(commands, has) {
		w.t.Fatalf("the next commands are not some with %s:\n%s", has, commands)
	}
	w.text = "\n" + rest
	return w.run(commands)
}

// run runs commands, with the variables that earlier ones have set. Like a reader's shell, it stops at nothing but says what failed.
func (w *walk) run(commands string) printed {
	w.t.Helper()
	path := filepath.Dir(peer(w.t, "curl")) + ":" + os.Getenv("PATH")
	script := "set -eu\ncd \"$1\"\n. ./variables\n" + commands + "\n" + `{ echo "URL=$URL"; echo "DOMAIN=${DOMAIN-}"; } >variables`
	return printed{w, commands, run(w.t, []string{"PATH=" + path}, "", "/bin/sh", "-c", script, "sh", w.dir)}
}

// has wants texts in what was printed.
func (p printed) has(texts ...string) {
	p.t.Helper()
	for _, text := range texts {
		if !strings.Contains(p.out, text) {
			p.t.Errorf("%s\nprinted\n%s\nwithout %s", p.commands, p.out, text)
		}
	}
}

func readPage(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(apiPage)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestAPIPageRoutes compares the tables of docs/api.md with the OpenAPI document, both ways.
func TestAPIPageRoutes(t *testing.T) {
	golden, err := os.ReadFile("../management/api/testdata/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Paths map[string]map[string]struct {
			Scope    string                `json:"x-scope"`
			Security []map[string][]string `json:"security"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(golden, &document); err != nil {
		t.Fatal(err)
	}
	var want []string
	for path, item := range document.Paths {
		for method, op := range item {
			scope := "none"
			switch {
			case op.Scope != "":
				scope = "`" + op.Scope + "`"
			case len(op.Security) > 0 && op.Security[0]["edgeToken"] != nil:
				scope = "edge token"
			case len(op.Security) > 0:
				scope = "any"
			}
			want = append(want, fmt.Sprintf("| `%s %s` | %s |", strings.ToUpper(method), path, scope))
		}
	}
	got := regexp.MustCompile("(?m)^\\| `(?:GET|POST|PUT|PATCH|DELETE) [^|]*\\| [^|]* \\|").FindAllString(readPage(t), -1)
	compare(t, "routes", got, want)
}

// TestAPIPageCodes compares the table of codes with the code, and with what HTTP makes of them.
func TestAPIPageCodes(t *testing.T) {
	source := func(file string) string {
		text, err := os.ReadFile("../management/" + file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	statuses := make(map[string]int) // by the name of net/http's constant
	for status := 400; status < 600; status++ {
		statuses["Status"+strings.ReplaceAll(http.StatusText(status), " ", "")] = status
	}
	ofCode := make(map[string]string) // by the name of the code's constant
	for _, m := range regexp.MustCompile(`management\.(\w+):\s+\{http\.(\w+),`).FindAllStringSubmatch(source("api/problem.go"), -1) {
		ofCode[m[1]] = strconv.Itoa(statuses[m[2]])
	}
	var want []string
	for _, m := range regexp.MustCompile(`(?m)^\t(\w+) +Code = "(\w+)"`).FindAllStringSubmatch(source("error.go"), -1) {
		want = append(want, fmt.Sprintf("| `%s` | %s |", m[2], ofCode[m[1]]))
	}
	got := regexp.MustCompile("(?m)^\\| `\\w+` \\| \\d{3} \\|").FindAllString(readPage(t), -1)
	compare(t, "codes", got, want)
}

// TestAPIPageScopes compares the table of scopes with the code.
func TestAPIPageScopes(t *testing.T) {
	text, err := os.ReadFile("../management/access.go")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, m := range regexp.MustCompile(`Scope\s+= "([^"]+)"`).FindAllStringSubmatch(string(text), -1) {
		want = append(want, m[1])
	}
	_, table, _ := strings.Cut(readPage(t), "\n| scope | lets |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(table, -1) {
		got = append(got, m[1])
	}
	compare(t, "scopes", got, want)
}

// compare wants the same rows on the page and in the program.
func compare(t *testing.T, what string, page, program []string) {
	t.Helper()
	if len(program) == 0 {
		t.Fatalf("no %s were found in the program", what)
	}
	for _, row := range program {
		if !slices.Contains(page, row) {
			t.Errorf("docs/api.md has no row %s", row)
		}
	}
	for i, row := range page {
		if !slices.Contains(program, row) {
			t.Errorf("docs/api.md has the row %s, which is not among the program's %s", row, what)
		}
		if slices.Contains(page[:i], row) {
			t.Errorf("docs/api.md has the row %s twice", row)
		}
	}
}
