package caddytest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// target is what a client is to fetch: / of a name, from an address.
type target struct {
	addr string
	name string
	ca   authority
	// protocol is the one ALPN name that the client offers: h2 or http/1.1.
	protocol string
}

// reply is what a client got, and what it knows about its connection.
type reply struct {
	Body string `json:"body"`
	// LocalPort is the client's own, 0 where it cannot tell.
	LocalPort int `json:"local_port"`
	// Group is what the client's TLS library calls the group, empty where it cannot tell.
	Group string `json:"group"`
}

// answer returns the upstream's answer that the client received.
func (r reply) answer(t *testing.T) answer {
	t.Helper()
	var a answer
	if err := json.Unmarshal([]byte(r.Body), &a); err != nil {
		t.Fatalf("the client received %q: %v", r.Body, err)
	}
	return a
}

// client is a program, or Go, that fetches a target.
type client struct {
	name  string
	fetch func(t *testing.T, to target) reply

	// group is what it negotiates with a server that prefers X25519MLKEM768.
	group string
	// retried says that its first ClientHello carries no key share for that group, so that the server
	// asks for one with a HelloRetryRequest.
	retried bool
	// only is the one ALPN protocol it can speak, empty where it speaks both.
	only string
}

const (
	hybrid    = "X25519MLKEM768"
	classical = "X25519"
)

// clients are those of today, each with a TLS library of its own, and those that know no hybrid group.
// Debian 13's OpenSSL knows it too, so the old ones are told which group to use.
var clients = []client{
	{name: "go", fetch: fetchGo, group: hybrid},
	{name: "node", fetch: script("node", "node.mjs"), group: hybrid},
	{name: "deno", fetch: script("deno", "deno.mjs", "run", "--allow-all", "--no-config", "--no-lock"), group: hybrid, retried: true},
	{name: "bun", fetch: script("bun", "bun.mjs"), group: hybrid},
	{name: "curl", fetch: fetchCurl, group: classical},
	{name: "openssl", fetch: fetchOpenSSL, group: classical, only: "http/1.1"},
}

// speaks reports whether the client can offer an ALPN protocol.
func (c client) speaks(protocol string) bool {
	return c.only == "" || c.only == protocol
}

// fetchGo fetches with net/http.
func fetchGo(t *testing.T, to target) reply {
	t.Helper()
	var r reply
	protocols := new(http.Protocols)
	protocols.SetHTTP1(to.protocol == "http/1.1")
	protocols.SetHTTP2(to.protocol == "h2")
	transport := &http.Transport{
		Protocols: protocols,
		// With HTTP/1.1 alone net/http would offer no ALPN.
		TLSClientConfig: &tls.Config{RootCAs: to.ca.Pool(), NextProtos: []string{to.protocol}},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, to.addr)
			if err == nil {
				r.LocalPort = conn.LocalAddr().(*net.TCPAddr).Port
			}
			return conn, err
		},
	}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get("https://" + to.name + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	r.Body, r.Group = string(body), response.TLS.CurveID.String()
	return r
}

// script returns a fetch by a script of testdata/clients under a JavaScript runtime.
func script(runtime, file string, args ...string) func(*testing.T, target) reply {
	return func(t *testing.T, to target) reply {
		t.Helper()
		args := append(args[:len(args):len(args)], filepath.Join("testdata", "clients", file),
			to.addr, to.name, to.ca.file, to.protocol)
		// What runtimes keep in the home directory, and what they ask the network about, is not wanted.
		env := []string{"HOME=" + t.TempDir(), "NO_COLOR=1", "DENO_NO_UPDATE_CHECK=1", "DO_NOT_TRACK=1"}
		out := run(t, env, "", peer(t, runtime), args...)
		var r reply
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("%s wrote %q: %v", file, out, err)
		}
		return r
	}
}

// fetchCurl fetches with curl, limited to a classical group.
func fetchCurl(t *testing.T, to target) reply {
	t.Helper()
	out := run(t, nil, "", peer(t, "curl"), append(curlArgs(t, to), "--write-out", "\n%{local_port}")...)
	body, port, _ := strings.Cut(out, "\n")
	localPort, err := strconv.Atoi(port)
	if err != nil {
		t.Fatalf("curl wrote %q: %v", out, err)
	}
	return reply{Body: body, LocalPort: localPort}
}

// curlArgs returns the arguments of a curl that fetches a target with a classical group.
func curlArgs(t *testing.T, to target) []string {
	t.Helper()
	_, port, err := net.SplitHostPort(to.addr)
	if err != nil {
		t.Fatal(err)
	}
	version := map[string]string{"h2": "--http2", "http/1.1": "--http1.1"}[to.protocol]
	return []string{
		"--silent", "--show-error", "--max-time", fmt.Sprint(patience.Seconds()),
		"--noproxy", "*", "--cacert", to.ca.file, "--curves", classical, version,
		"--connect-to", fmt.Sprintf("%s:443:127.0.0.1:%s", to.name, port), "https://" + to.name + "/",
	}
}

// fetchOpenSSL fetches with openssl s_client, limited to a classical group.
func fetchOpenSSL(t *testing.T, to target) reply {
	t.Helper()
	request := "GET / HTTP/1.1\r\nHost: " + to.name + "\r\nConnection: close\r\n\r\n"
	out := run(t, nil, request, peer(t, "openssl"), opensslArgs(to)...)
	_, response, ok := strings.Cut(out, "HTTP/1.1 200 OK\r\n")
	if !ok {
		t.Fatalf("openssl wrote %q", out)
	}
	_, body, _ := strings.Cut(response, "\r\n\r\n")
	body, _, _ = strings.Cut(body, "}") // what follows is of s_client
	return reply{Body: body + "}"}
}

// opensslArgs returns the arguments of an openssl that connects to a target with a classical group, and
// ends when the server does.
func opensslArgs(to target) []string {
	return []string{
		"s_client", "-connect", to.addr, "-servername", to.name, "-groups", classical, "-alpn", to.protocol,
		"-CAfile", to.ca.file, "-verify_return_error", "-verify_hostname", to.name, "-ign_eof",
	}
}

// run runs a program to its end and returns what it wrote to standard output. The test fails unless the
// program succeeds.
func run(t *testing.T, env []string, stdin string, program string, args ...string) string {
	t.Helper()
	stdout, stderr, err := attempt(t, env, stdin, program, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

// attempt runs a program to its end, which may be a failure.
func attempt(t *testing.T, env []string, stdin string, program string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, errors bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(cmd.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errors
	err = cmd.Run()
	return out.String(), errors.String(), err
}
