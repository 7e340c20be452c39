package caddytest

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestXcaddyBuild builds Caddys with the plugin as DESIGN.md section 2 and the README say, and looks for our modules in them.
//
// Before publication no list of versions can be had, so both name one. With `=.` behind a `--with` xcaddy replaces that version
// alone, and would ask for versions of the management plane's package; `--replace` without a version spares it that question.
func TestXcaddyBuild(t *testing.T) {
	dataPlane := []string{"pqproxy", "layer4.handlers.pqproxy", "caddy.config_loaders.pqproxy", "admin.api.pqproxy", "http.handlers.pqproxy_http01"}
	managementPlane := []string{"pqproxy_management", "http.handlers.pqproxy_management"}
	for name, c := range map[string]struct {
		args          []string
		have, haveNot []string
	}{
		"edge": {
			[]string{"--with", "github.com/pqproxy/caddy-pqproxy@v0.0.0=."},
			dataPlane, managementPlane,
		},
		"all": {
			[]string{"--replace", "github.com/pqproxy/caddy-pqproxy=.", "--with", "github.com/pqproxy/caddy-pqproxy@v0.0.0",
				"--with", "github.com/pqproxy/caddy-pqproxy/management/module"},
			slices.Concat(dataPlane, managementPlane), nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			bin := filepath.Join(t.TempDir(), "caddy")
			build := exec.Command(peer(t, "xcaddy"), slices.Concat([]string{"build", "v2.11.9"}, c.args, []string{"--output", bin})...)
			build.Dir = ".."
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", build, err, out)
			}
			out, err := exec.Command(bin, "list-modules").Output()
			if err != nil {
				t.Fatalf("list-modules: %v", err)
			}
			listed := strings.Fields(string(out))
			for _, module := range c.have {
				if !slices.Contains(listed, module) {
					t.Errorf("module %s is not in the Caddy that xcaddy built", module)
				}
			}
			for _, module := range c.haveNot {
				if slices.Contains(listed, module) {
					t.Errorf("module %s is in the Caddy that xcaddy built for an edge", module)
				}
			}
		})
	}
}
