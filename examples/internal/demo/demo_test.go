package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{
		"":               "''",
		"/tmp/a-1_b.crt": "/tmp/a-1_b.crt",
		"/tmp/a b":       "'/tmp/a b'",
		"it's":           `'it'\''s'`,
	} {
		if got := ShellWord(in); got != want {
			t.Errorf("ShellWord(%q) = %s, want %s", in, got, want)
		}
		if out, err := exec.Command("sh", "-c", "printf %s "+ShellWord(in)).Output(); err != nil || string(out) != in {
			t.Errorf("sh reads %q as %q (%v)", in, out, err)
		}
	}
}

// TestUpstreamWithoutProxy has a client reach upstreams with no proxy between: one says so, the other wants a header.
func TestUpstreamWithoutProxy(t *testing.T) {
	for policy, serves := range map[proxyproto.Policy]bool{proxyproto.USE: true, proxyproto.REQUIRE: false} {
		up, err := StartUpstream("app.example.com", policy)
		if err != nil {
			t.Fatal(err)
		}
		defer up.Close()
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(up.CA)
		page, err := Get(t.Context(), up.Address, &tls.Config{ServerName: "app.example.com", RootCAs: roots})
		if (err == nil) != serves {
			t.Errorf("policy %v: %v", policy, err)
		}
		if serves && !strings.Contains(page.Text, "there was no PROXY header") {
			t.Errorf("the page is %s", page.Text)
		}
	}
}

// TestCallRefused wants what the service says in the error, and nothing that was sent.
func TestCallRefused(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer pqk_secret" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("the request has %v", r.Header)
		}
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = io.WriteString(w, `{"code":"invalid","detail":"The request has faults.","errors":[{"pointer":"/name","detail":"is no host name"}]}`)
	}))
	defer server.Close()
	err := (&API{URL: server.URL, Key: "pqk_secret"}).Call(t.Context(), "POST", "/v1/domains", Object{"name": "?"}, nil)
	want := "POST /v1/domains: 422 Unprocessable Entity, invalid: The request has faults.; /name: is no host name"
	if err == nil || err.Error() != want {
		t.Errorf("the error is %v, want %s", err, want)
	}
}

func TestUntil(t *testing.T) {
	no := func(context.Context) (bool, error) { return false, nil }
	if err := Until(t.Context(), "a miracle", 20*time.Millisecond, time.Millisecond, no); err == nil || !strings.Contains(err.Error(), "in vain for a miracle") {
		t.Errorf("after the wait: %v", err)
	}
	why := errors.New("the other one ended")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := Until(ctx, "a miracle", time.Minute, time.Millisecond, no); !errors.Is(err, why) {
		t.Errorf("after the context: %v", err)
	}
	if err := Until(t.Context(), "it", time.Minute, time.Millisecond, func(context.Context) (bool, error) { return false, why }); !errors.Is(err, why) {
		t.Errorf("after a failure: %v", err)
	}
}
