package caddytest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what must come. Nothing waits that long unless it is broken:
// the machines of CI have two cores and other tests to run.
const patience = 60 * time.Second

// scratch outlives a single test; TestMain removes it.
var scratch string

func TestMain(m *testing.M) {
	var err error
	scratch, err = os.MkdirTemp("", "caddytest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

// pqproxy returns the path of the proxy's binary, built once in each run and, when the tests are, with
// the race detector.
var pqproxy = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(scratch, "pqproxy")
	args := []string{"build", "-buildvcs=false", "-o", bin}
	if raceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./cmd/pqproxy")...)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the proxy: %w\n%s", err, out)
	}
	return bin, nil
})

// peer returns the path of a program that scripts/peers.sh installs: one of .peers/bin, or else one of
// the system's.
func peer(t *testing.T, name string) string {
	t.Helper()
	own, err := filepath.Abs(filepath.Join("..", ".peers", "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	// Debian keeps servers in /usr/sbin, which is not in every user's PATH.
	for _, file := range []string{own, name, filepath.Join("/usr/sbin", name)} {
		if path, err := exec.LookPath(file); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed: run scripts/peers.sh", name)
	return ""
}

// writeFile writes a file of the given name into dir and returns its path.
func writeFile(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
