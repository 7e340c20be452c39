package pqproxy

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// FuzzCaddyfile reads any text as the global option `pqproxy`. It must end without a panic; a refusal names
// file and line; and what is accepted says in JSON what it said in the Caddyfile: decoded, it is the same
// config, or is refused as a domain, never as JSON.
func FuzzCaddyfile(f *testing.F) {
	goldens, err := filepath.Glob("caddytest/adapt/*.caddyfiletest")
	if err != nil || len(goldens) == 0 {
		f.Fatalf("no goldens to start from: %v", err)
	}
	for _, file := range goldens {
		content, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		config, _, _ := strings.Cut(string(content), goldenRule)
		if _, option, ok := strings.Cut(config, "\tpqproxy"); ok && !strings.Contains(config, "layer4") {
			f.Add("pqproxy" + strings.TrimSuffix(strings.TrimSpace(option), "}"))
		}
	}
	place := regexp.MustCompile(`at Fuzzfile:\d+`)
	f.Fuzz(func(t *testing.T, text string) {
		tokens, err := caddyfile.Tokenize([]byte(text), "Fuzzfile")
		if err != nil || len(tokens) == 0 {
			return // not ours to judge
		}
		var app App
		if err := app.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)); err != nil {
			if !place.MatchString(err.Error()) {
				t.Errorf("the error names no line: %v", err)
			}
			return
		}
		adapted, err := json.Marshal(&app)
		if err != nil {
			t.Fatalf("accepted, but no JSON: %v", err)
		}
		var again App
		if err := caddy.StrictUnmarshalJSON(adapted, &again); err != nil {
			if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
				t.Fatalf("%s is no JSON: %v", adapted, syntax)
			}
			return
		}
		if readapted, err := json.Marshal(&again); err != nil || string(readapted) != string(adapted) {
			t.Errorf("JSON %s became %s (%v)", adapted, readapted, err)
		}
	})
}
