package main

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait. It is long because it is met only by failures.
const patience = time.Minute

// TestQuickstart runs the quickstart as the README says and the commands that it prints as a reader would:
// pasted into a shell.
func TestQuickstart(t *testing.T) {
	binary := build(t)
	q := start(t, binary, "0")
	q.expect("post-quantum: yes (X25519MLKEM768)")
	q.expect("client address 127.0.0.1:")
	q.expect("server name    app.localhost")
	q.expect("TLS 1.3, X25519MLKEM768 (post-quantum), alpn h2")
	q.expect("PROXY v1")

	probe := q.expect(" pqproxy probe ")
	curl := q.expect("  curl ")
	q.expect("Ctrl-C ends everything.")

	if out := shell(t, probe); !strings.HasPrefix(out, "post-quantum: yes (X25519MLKEM768)\n") || !strings.Contains(out, "\nchain         ok\n") {
		t.Errorf("%s\nprinted\n%s", probe, out)
	}
	q.expect("client    127.0.0.1:")

	out := shell(t, curl)
	for _, want := range []string{`client address 127\.0\.0\.1:\d+`, "server name    app.localhost\n", "TLS 1.3, X25519MLKEM768, towards the proxy"} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s\nprinted\n%s\nwithout %s", curl, out, want)
		}
	}
	address := regexp.MustCompile(`client address (\S+)`).FindStringSubmatch(out)
	if address != nil {
		q.expect("client    " + address[1] + ` asked for "app.localhost"`) // the upstream was told the true address
	}
	q.expect("done, by the client")
	q.interrupt()
	if left, _ := filepath.Glob(filepath.Join(q.tmp, "pqproxy-quickstart-*")); len(left) > 0 {
		t.Errorf("it left %v", left)
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
	q := start(t, build(t), port)
	if line := q.expect("pqproxy serves "); strings.Contains(line, ln.Addr().String()) {
		t.Errorf("it says %q of a port that is taken", line)
	}
	q.expect("Ctrl-C ends everything.")
	q.interrupt()
}

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{
		"/tmp/a-1_b.crt": "/tmp/a-1_b.crt",
		"/tmp/a b":       "'/tmp/a b'",
		"it's":           `'it'\''s'`,
	} {
		if got := shellWord(in); got != want {
			t.Errorf("shellWord(%q) = %s, want %s", in, got, want)
		}
		if out, err := exec.Command("sh", "-c", "printf %s "+shellWord(in)).Output(); err != nil || string(out) != in {
			t.Errorf("sh reads %q as %q (%v)", in, out, err)
		}
	}
}

func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "quickstart")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	return binary
}

// quickstart is a running one.
type quickstart struct {
	t     *testing.T
	cmd   *exec.Cmd
	tmp   string
	lines chan string // of its standard output; closed at its end
	seen  []string
}

func start(t *testing.T, binary, port string) *quickstart {
	t.Helper()
	q := &quickstart{t: t, cmd: exec.Command(binary), tmp: t.TempDir(), lines: make(chan string, 256)}
	q.cmd.Env = append(os.Environ(), "QUICKSTART_PORT="+port, "TMPDIR="+q.tmp)
	q.cmd.Stderr = os.Stderr
	stdout, err := q.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := q.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.cmd.Process.Kill() }) // has ended, unless the test failed
	go func() {
		defer close(q.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			q.lines <- s.Text()
		}
	}()
	return q
}

// expect returns the next line with a text in it.
func (q *quickstart) expect(text string) string {
	q.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line, ok := <-q.lines:
			if !ok {
				q.t.Fatalf("it ended without %q:\n%s", text, strings.Join(q.seen, "\n"))
			}
			q.seen = append(q.seen, line)
			if strings.Contains(line, text) {
				return line
			}
		case <-timeout:
			q.t.Fatalf("waited for %q in vain:\n%s", text, strings.Join(q.seen, "\n"))
		}
	}
}

// interrupt is Ctrl-C. The quickstart must end well.
func (q *quickstart) interrupt() {
	q.t.Helper()
	if err := q.cmd.Process.Signal(syscall.SIGINT); err != nil {
		q.t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { _ = q.cmd.Process.Kill() })
	defer timer.Stop()
	for range q.lines { // to the end
	}
	if err := q.cmd.Wait(); err != nil {
		q.t.Errorf("after Ctrl-C: %v", err)
	}
}

func shell(t *testing.T, command string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	if err != nil {
		t.Errorf("%s\nended with %v and printed\n%s", command, err, out)
	}
	return string(out)
}
