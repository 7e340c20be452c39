package main

import (
	"net"
	"regexp"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/examples/internal/demotest"
)

func TestMain(m *testing.M) { demotest.Main(m) }

// TestQuickstart runs the quickstart as the README says and the commands that it prints as a reader would:
// pasted into a shell.
func TestQuickstart(t *testing.T) {
	q := demotest.Start(t, []string{"QUICKSTART_PORT=0"})
	q.Expect("post-quantum: yes (X25519MLKEM768)")
	q.Expect("client address 127.0.0.1:")
	q.Expect("server name    app.localhost")
	q.Expect("TLS 1.3, X25519MLKEM768 (post-quantum), alpn h2")
	q.Expect("PROXY v1")
	runClients(t, q)
	q.Interrupt()
}

// runClients runs the commands that connect, and looks at the records that follow.
func runClients(t *testing.T, q *demotest.Example) {
	t.Helper()
	probe := q.Expect(" pqproxy probe ")
	curl := q.Expect("  curl ")
	q.Expect("Ctrl-C ends everything.")

	if out := demotest.Shell(t, probe); !strings.HasPrefix(out, "post-quantum: yes (X25519MLKEM768)\n") || !strings.Contains(out, "\nchain         ok\n") {
		t.Errorf("%s\nprinted\n%s", probe, out)
	}
	q.Expect("client    127.0.0.1:")

	out := demotest.Shell(t, curl)
	for _, want := range []string{`client address 127\.0\.0\.1:\d+`, "server name    app.localhost\n", "TLS 1.3, X25519MLKEM768, towards the proxy"} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s\nprinted\n%s\nwithout %s", curl, out, want)
		}
	}
	address := regexp.MustCompile(`client address (\S+)`).FindStringSubmatch(out)
	if address != nil {
		q.Expect("client    " + address[1] + ` asked for "app.localhost"`) // the upstream was told the true address
	}
	q.Expect("done, by the client")
}

// TestQuickstartManagement runs the variant with a management plane, and what it prints.
func TestQuickstartManagement(t *testing.T) {
	q := demotest.Start(t, []string{"QUICKSTART_PORT=0", "QUICKSTART_CONSOLE_PORT=0"}, "management")
	q.Expect("A management plane runs on http://127.0.0.1:")
	q.Expect("GET  /v1/platform/edges: quickstart is up.")
	q.Expect("The edge serves it ")
	q.Expect(": active. Live on 1 of 1 edges.")
	q.Expect("post-quantum: yes (X25519MLKEM768)")
	told := regexp.MustCompile(`client address (\S+) \(the PROXY header says so`).FindStringSubmatch(q.Expect("client address "))
	if told == nil {
		t.Fatal("the upstream was not told the client's address")
	}
	q.Expect(`{"post_quantum":"require"}: live after `)
	q.Expect(" on quickstart")
	q.Expect("client    " + told[1] + ` asked for "app.localhost"`)
	q.Expect("X25519MLKEM768 (post-quantum)")
	q.Expect("console   http://127.0.0.1:")

	domain, report, change, document := q.Expect("  curl "), q.Expect("  curl "), q.Expect("  curl "), q.Expect("  curl ")
	for _, c := range []struct{ command, want string }{ // the change last: after it the domain is not live everywhere for a moment
		{domain, `"status":"active"`}, {report, `"share":1`}, {document, `"openapi": "3.1.0"`}, {change, `"post_quantum":"prefer"`},
	} {
		if out := demotest.Shell(t, c.command); !strings.Contains(out, c.want) {
			t.Errorf("%s\nprinted\n%.500s\nwithout %s", c.command, out, c.want)
		}
	}
	runClients(t, q)
	q.Interrupt()
}

// TestQuickstartIsCaddy wants other arguments to reach Caddy, also those that begin alike.
func TestQuickstartIsCaddy(t *testing.T) {
	if out := demotest.Shell(t, demotest.Binary+" list-modules"); !strings.Contains(out, "\npqproxy_management\n") {
		t.Errorf("list-modules printed\n%s", out)
	}
	if out := demotest.Shell(t, demotest.Binary+" pqproxy-management --help"); !strings.Contains(out, "backup") {
		t.Errorf("pqproxy-management printed\n%s", out)
	}
}

// TestQuickstartPortTaken has the port in use: the quickstart must take another one.
func TestQuickstartPortTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	q := demotest.Start(t, []string{"QUICKSTART_PORT=" + port})
	if line := q.Expect("pqproxy serves "); strings.Contains(line, ln.Addr().String()) {
		t.Errorf("it says %q of a port that is taken", line)
	}
	q.Expect("Ctrl-C ends everything.")
	q.Interrupt()
}
