package module

import (
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
)

// TestDiskFull lets files grow no further, which SQLite meets as it does a full disk: what only reads goes on, what writes is
// told to try again, and nothing is lost.
//
// It runs in a process of its own: the limit is for all files of a process, such as those of package testing.
func TestDiskFull(t *testing.T) {
	const child = "MANAGEMENT_TEST_DISK_FULL"
	if os.Getenv(child) == "" {
		program, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestDiskFull$", "-test.count=1")
		cmd.Env = append(cmd.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	shorten(t)
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	limit := func(to uint64) {
		t.Helper()
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: to, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { limit(before.Cur) })

	p := newPlane(t)
	limit(0)
	err := p.tryLoad(ownToken)
	if err == nil {
		p.log.wait(t, "does not serve; trying again")
		p.checkUnavailable()
	}
	limit(before.Cur)
	if err != nil {
		t.Fatal(err)
	}
	p.waitReady()
	p.setUp()

	limit(0)
	domain := map[string]any{"name": "app.example.com", "upstreams": []any{map[string]any{"dial": "origin.example.net:443"}}}
	refused := p.ask(p.public, "POST", "/v1/domains", domain)
	read := p.ask(p.public, "GET", "/v1/domains", nil)
	alive := p.ask(p.edge, "GET", "/healthz", nil)
	limit(before.Cur)
	if refused.status != http.StatusServiceUnavailable || refused.body["code"] != "unavailable" || refused.header.Get("Retry-After") == "" {
		t.Errorf("a write: %d %s", refused.status, refused.text)
	}
	if read.status != http.StatusOK || alive.status != http.StatusOK {
		t.Errorf("a read: %d %s, /healthz: %d", read.status, read.text, alive.status)
	}
	p.must(http.StatusCreated, "POST", "/v1/domains", domain)
}
