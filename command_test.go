package pqproxy

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/pqproxy/caddy-pqproxy/probe"
)

// runCommand runs `pqproxy ARGS...` below a root command set up as Caddy's is. A non-nil error is exit
// status 1.
func runCommand(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	root := &cobra.Command{Use: "caddy", SilenceUsage: true}
	cmd := &cobra.Command{Use: "pqproxy"}
	caddycmd.Commands()["pqproxy"].CobraFunc(cmd)
	root.AddCommand(cmd)
	root.SetArgs(append([]string{"pqproxy"}, args...))
	var out, errOut bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errOut)
	err = root.ExecuteContext(t.Context())
	return out.String(), errOut.String(), err
}

// startServer returns the address of an HTTPS server for the name example.com and a file with its root.
func startServer(t *testing.T, groups ...tls.CurveID) (address, ca string) {
	t.Helper()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{CurvePreferences: groups, NextProtos: []string{"h2", "http/1.1"}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are part of the tests
	server.StartTLS()
	t.Cleanup(server.Close)
	ca = filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return server.Listener.Addr().String(), ca
}

func TestProbeCommand(t *testing.T) {
	hybrid, ca := startServer(t, tls.X25519MLKEM768)
	classical, _ := startServer(t, tls.X25519)
	for _, test := range []struct {
		name   string
		args   []string
		status error
		want   []string // in stdout
	}{
		{
			name: "post-quantum",
			args: []string{"--server-name", "example.com", "--ca", ca, hybrid},
			want: []string{"post-quantum: yes (X25519MLKEM768)\n", "alpn          h2\n", "chain         ok\n"},
		},
		{
			name: "untrusted chain",
			args: []string{hybrid, "--server-name", "example.com"},
			want: []string{"post-quantum: yes (X25519MLKEM768)\n", "chain         not trusted: "},
		},
		{
			name:   "classical",
			args:   []string{classical},
			status: errNotPostQuantum,
			want:   []string{"post-quantum: no (X25519)\n", "Enable the group X25519MLKEM768"},
		},
		{
			name:   "no handshake",
			args:   []string{"--alpn", "imap", hybrid},
			status: errNotPostQuantum,
			want:   []string{"post-quantum: unknown (no handshake)\n", "no application protocol"},
		},
		{
			name: "repeated --alpn",
			args: []string{"--alpn", "imap", "--alpn", "pop3,http/1.1", hybrid},
			want: []string{"alpn          http/1.1\n"},
		},
		{
			name: "empty --alpn",
			args: []string{"--alpn=", hybrid},
			want: []string{"alpn          none\n"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, err := runCommand(t, append([]string{"probe"}, test.args...)...)
			if !errors.Is(err, test.status) {
				t.Errorf("error %v, want %v", err, test.status)
			}
			if stderr != "" {
				t.Errorf("stderr %q, want nothing", stderr)
			}
			for _, want := range test.want {
				if !strings.Contains(stdout, want) {
					t.Errorf("stdout lacks %q:\n%s", want, stdout)
				}
			}
		})
	}
}

func TestProbeCommandJSON(t *testing.T) {
	address, ca := startServer(t, tls.X25519MLKEM768)
	stdout, _, err := runCommand(t, "probe", "--json", "--server-name", "example.com", "--ca", ca, address)
	if err != nil {
		t.Fatal(err)
	}
	var got probe.Result
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatalf("%v in\n%s", err, stdout)
	}
	if !got.PostQuantum || got.Group != "X25519MLKEM768" || got.ALPN != "h2" || !got.ChainOK ||
		!slices.Contains(got.Chain[0].Names, "example.com") {
		t.Errorf("got %+v", got)
	}
}

func TestProbeCommandUsage(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		args []string
		want string // in stderr
	}{
		{"no host", []string{"probe"}, "accepts 1 arg(s), received 0"},
		{"two hosts", []string{"probe", "a.test", "b.test"}, "accepts 1 arg(s), received 2"},
		{"URL", []string{"probe", "https://a.test/"}, "not a URL"},
		{"unknown flag", []string{"probe", "--insecure", "a.test"}, "unknown flag: --insecure"},
		{"timeout 0", []string{"probe", "--timeout", "0s", "a.test"}, "must be more than 0"},
		{"missing CA file", []string{"probe", "--ca", empty + "x", "a.test"}, "--ca: open "},
		{"empty CA file", []string{"probe", "--ca", empty, "a.test"}, "holds no PEM certificate"},
		{"misspelt command", []string{"prob", "a.test"}, `unknown command "prob"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, err := runCommand(t, test.args...)
			if err == nil || errors.Is(err, errNotPostQuantum) {
				t.Errorf("error %v, want a usage error", err)
			}
			if !strings.Contains(stderr, test.want) || stdout != "" {
				t.Errorf("stderr %q, stdout %q, want %q on stderr alone", stderr, stdout, test.want)
			}
		})
	}
}

func TestCommandHelp(t *testing.T) {
	for _, args := range [][]string{nil, {"--help"}, {"probe", "--help"}} {
		stdout, _, err := runCommand(t, args...)
		if err != nil || !strings.Contains(stdout, "probe") {
			t.Errorf("%v: error %v, stdout:\n%s", args, err, stdout)
		}
	}
	stdout, _, _ := runCommand(t, "probe", "--help")
	if want := "$ " + os.Args[0] + " pqproxy probe example.com"; !strings.Contains(stdout, want) {
		t.Errorf("help lacks %q:\n%s", want, stdout)
	}
}
