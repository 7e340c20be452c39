package caddytest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestAdminAPI runs examples/admin-api: the binary on its Caddyfile, and with curl every command of its README, in order.
func TestAdminAPI(t *testing.T) {
	app, moved, added := startNamed(t, "app"), startNamed(t, "moved"), startNamed(t, "added")
	dir := t.TempDir()
	writeFile(t, dir, "app.json", edited(t, "admin-api/app.json", "10.0.0.5:8080", app))
	writeFile(t, dir, "moved.json", edited(t, "admin-api/moved.json", "10.0.0.6:8080", moved))
	writeFile(t, dir, "changes.json", strings.ReplaceAll(example(t, "admin-api/changes.json"), "10.0.0.7:8080", added))
	config := edited(t, "admin-api/Caddyfile", "pqproxy/:443", "pqproxy/127.0.0.1:0", "10.0.0.0/8", "127.0.0.0/8")
	commands := readmeCommands(t, "admin-api/README.md")

	// next runs the next block of commands, which must have that text, and returns what they print.
	next := func(has string) string {
		t.Helper()
		if len(commands) == 0 || !strings.Contains(commands[0], has) {
			t.Fatalf("the next command is not one with %s, but of %q", has, commands)
		}
		path := strings.Join([]string{filepath.Dir(peer(t, "curl")), os.Getenv("PATH")}, ":")
		out := run(t, []string{"PATH=" + path}, "", "/bin/sh", "-e", "-c", `cd "$1"`+"\n"+commands[0], "sh", dir)
		commands = commands[1:]
		return out
	}
	if commands[0] != "pqproxy run\n" {
		t.Fatalf("the README starts the edge with %q", commands[0])
	}
	commands = commands[1:]
	e := startEdge(t, dir, "Caddyfile", config)
	e.unknown(t, "app.example.com")

	if out := next("-T app.json"); !strings.Contains(out, `"source":"admin"`) {
		t.Errorf("added: %s", out)
	}
	open := e.open(t, "app.example.com", "app")
	for i, line := range strings.Split(strings.TrimSpace(next("/status")), "\n") {
		if want := []string{`{"domains":[{"domain":{"name":"app.example.com","tenant":"acme"`, `"connections":1,`, `{"domain":{"name":"app.example.com"`}; !json.Valid([]byte(line)) || !strings.Contains(line, want[i]) {
			t.Errorf("line %d is %s", i, line)
		}
	}

	next("If-Match")
	e.live(t, "app.example.com", "moved")
	checkEcho(t, open)
	if out := next("PATCH"); !strings.Contains(out, `"added":2,"changed":0,"removed":0,"unchanged":0,"rejected":0`) {
		t.Errorf("changed: %s", out)
	}
	e.live(t, "api.example.com", "added")
	e.live(t, "www.example.com", "added")

	if out := next("DELETE"); !strings.Contains(out, `"upstream":"`+app+`"`) || !strings.HasSuffix(out, "{\"ended\":1}\n") {
		t.Errorf("connections: %s", out)
	}
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still there")
	}
	if r := e.recordOf(t, "app.example.com", port(open)); r.EndReason != "ended_by_admin" {
		t.Errorf("the record is %+v", r)
	}

	if out := next("-X DELETE"); out != "" {
		t.Errorf("removed: %s", out)
	}
	e.unknown(t, "app.example.com")
	if len(commands) > 0 {
		t.Errorf("these commands were not run: %q", commands)
	}

	// What the API has set is there after a restart.
	e.stop(t)
	e = startEdge(t, dir, "Caddyfile", config)
	e.live(t, "api.example.com", "added")
	e.unknown(t, "app.example.com")
}

// readmeCommands returns the blocks of commands of a page of examples/.
func readmeCommands(t *testing.T, page string) (commands []string) {
	t.Helper()
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(example(t, page), -1) {
		commands = append(commands, block[1])
	}
	return commands
}
