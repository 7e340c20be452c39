package caddytest

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestXcaddyBuild builds a Caddy with the plugin as DESIGN.md section 2 and the README say, and looks
// for our modules in it.
func TestXcaddyBuild(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "caddy")
	build := exec.Command(peer(t, "xcaddy"), "build", "v2.11.9",
		"--with", "github.com/pqproxy/caddy-pqproxy@v0.0.0=.", "--output", bin)
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}

	out, err := exec.Command(bin, "list-modules").Output()
	if err != nil {
		t.Fatalf("list-modules: %v", err)
	}
	listed := make(map[string]bool)
	for module := range strings.FieldsSeq(string(out)) {
		listed[module] = true
	}
	for _, module := range []string{"pqproxy", "layer4.handlers.pqproxy"} {
		if !listed[module] {
			t.Errorf("module %s is not in the Caddy that xcaddy built", module)
		}
	}
}
