package pqproxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	_ "github.com/pqproxy/caddy-pqproxy/management/module" // its options have golden files too
)

var update = flag.Bool("update", false, "rewrite golden files from what the code does now")

// goldenRule separates the two halves of a golden file.
const goldenRule = "\n----------\n"

// TestAdapt compares what Caddyfiles become with caddytest/adapt: NAME.caddyfiletest holds a Caddyfile and
// its JSON, NAME.error.caddyfiletest one that must be refused and what the user reads, be it from the
// adapter, which names the line, or from provisioning, which names the field.
func TestAdapt(t *testing.T) {
	files, err := filepath.Glob("caddytest/adapt/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".caddyfiletest")
		t.Run(name, func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			config, want, _ := strings.Cut(string(content), goldenRule)
			config = strings.TrimSuffix(config, "\n") + "\n"
			got := adaptOutcome(t, config, strings.HasSuffix(name, ".error"))
			if *update {
				writeFile(t, file, []byte(config+goldenRule[1:]+got))
				return
			}
			if got != want {
				t.Errorf("got:\n%s\nwant:\n%s\n(go test -run TestAdapt -update . rewrites it)", got, want)
			}
		})
	}
}

// adaptOutcome is the second half of a golden file.
func adaptOutcome(t *testing.T, config string, wantError bool) string {
	adapted, err := adapt(config)
	if err == nil && wantError {
		err = validate(t, adapted)
	}
	switch {
	case wantError && err == nil:
		t.Fatal("the config is accepted")
	case wantError:
		return err.Error() + "\n"
	case err != nil:
		t.Fatal(err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, adapted, "", "\t"); err != nil {
		t.Fatal(err)
	}
	return indented.String() + "\n"
}

// adapt turns a Caddyfile into JSON. Warnings are errors: nothing of ours may cause any.
func adapt(config string) ([]byte, error) {
	adapted, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(config), map[string]any{"filename": "Caddyfile"})
	for _, w := range warnings {
		err = errors.Join(err, errors.New(w.String()))
	}
	return adapted, err
}

// validate provisions a config without starting it. Storage is a folder of the test's, and nothing is
// logged.
func validate(t *testing.T, config []byte) error {
	t.Helper()
	var cfg caddy.Config
	if err := caddy.StrictUnmarshalJSON(config, &cfg); err != nil {
		return err
	}
	persist := false
	cfg.Admin = &caddy.AdminConfig{Disabled: true, Config: &caddy.ConfigSettings{Persist: &persist}}
	cfg.StorageRaw = caddyconfig.JSONModuleObject(map[string]string{"root": t.TempDir()}, "module", "file_system", nil)
	cfg.Logging = &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {
		BaseLog: caddy.BaseLog{WriterRaw: json.RawMessage(`{"output":"discard"}`)},
	}}}
	return caddy.Validate(&cfg)
}

// TestAdaptCoversOptions asks each block which options it has, and wants a golden for every one of them, its
// place in the syntax above UnmarshalCaddyfile, and its row in the reference.
func TestAdaptCoversOptions(t *testing.T) {
	source := read(t, "caddyfile.go")
	manual := read(t, "docs/configuration.md")
	listed := regexp.MustCompile(`there are: (.*), at Caddyfile`)
	for block, config := range map[string]string{
		"pqproxy":         "",
		"limits":          "limits {",
		"management":      "management https://192.0.2.1/ {",
		"upstream_policy": "upstream_policy {",
		"domain":          "domain a.example {",
		"health_check":    "domain a.example {\nhealth_check {",
		"upstream":        "domain a.example {\nupstream 192.0.2.1:1 {",
	} {
		_, err := adapt("{\npqproxy {\n" + config + "\nno_such_option\n" + strings.Repeat("}\n", strings.Count(config, "{")) + "}\n}\n")
		if err == nil || listed.FindStringSubmatch(err.Error()) == nil {
			t.Fatalf("%s: an unknown option gives %v", block, err)
		}
		for option := range strings.SplitSeq(listed.FindStringSubmatch(err.Error())[1], ", ") {
			if _, err := os.Stat("caddytest/adapt/" + block + "_" + option + ".caddyfiletest"); err != nil {
				t.Errorf("option %s of %s has no golden: %v", option, block, err)
			}
			if !regexp.MustCompile(`(?m)^//\t+` + option + `\b`).MatchString(source) {
				t.Errorf("option %s of %s is missing in the syntax above UnmarshalCaddyfile", option, block)
			}
			if !strings.Contains(manual, "`"+option) {
				t.Errorf("option %s of %s is missing in docs/configuration.md", option, block)
			}
		}
	}
}
