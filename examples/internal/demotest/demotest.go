// Package demotest runs examples in tests as a reader would: built, started, and with the commands that they print pasted into
// a shell.
package demotest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Patience bounds every wait. It is long because it is met only by failures.
const Patience = 2 * time.Minute

// Binary is the example in the test's folder, built by Main.
var Binary string

// Main is the TestMain of an example: it builds the example once for all tests.
func Main(m *testing.M) {
	dir, err := os.MkdirTemp("", "demotest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := 1
	if Binary, err = build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

func build(dir string) (binary string, err error) {
	binary = filepath.Join(dir, "example")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("building: %w\n%s", err, out)
	}
	return binary, nil
}

// Example is a running one.
type Example struct {
	PID int
	Tmp string // its folder for temporary files, empty at first

	t      *testing.T
	cmd    *exec.Cmd
	lines  chan string // of its standard output; closed at its end
	seen   []string
	stderr strings.Builder
}

// Start runs the example with variables added to the environment.
func Start(t *testing.T, env []string, args ...string) *Example {
	t.Helper()
	e := &Example{t: t, cmd: exec.Command(Binary, args...), Tmp: t.TempDir(), lines: make(chan string, 256)}
	e.cmd.Env = append(append(os.Environ(), "TMPDIR="+e.Tmp), env...)
	e.cmd.Stderr = &e.stderr
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a shell does
	stdout, err := e.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e.PID = e.cmd.Process.Pid
	t.Cleanup(func() { _ = syscall.Kill(-e.PID, syscall.SIGKILL) }) // all have ended, unless the test failed
	go func() {
		defer close(e.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			e.lines <- s.Text()
		}
	}()
	return e
}

// Expect returns the next line with a text in it.
func (e *Example) Expect(text string) string {
	e.t.Helper()
	timeout := time.After(Patience)
	for {
		select {
		case line, ok := <-e.lines:
			if !ok {
				_ = e.cmd.Wait()
				e.t.Fatalf("it ended without %q:\n%s\n%s", text, strings.Join(e.seen, "\n"), &e.stderr)
			}
			e.seen = append(e.seen, line)
			if strings.Contains(line, text) {
				return line
			}
		case <-timeout:
			e.t.Fatalf("waited for %q in vain:\n%s", text, strings.Join(e.seen, "\n"))
		}
	}
}

// Interrupt is Ctrl-C in a terminal, which all its processes are told of. The example must end well and leave nothing in its folder for temporary files.
func (e *Example) Interrupt() {
	e.t.Helper()
	if err := syscall.Kill(-e.PID, syscall.SIGINT); err != nil {
		e.t.Fatal(err)
	}
	if err := e.wait(); err != nil {
		e.t.Errorf("after Ctrl-C: %v", err)
	}
	if e.t.Failed() {
		e.t.Logf("it printed\n%s\n%s", strings.Join(e.seen, "\n"), &e.stderr)
	}
}

// Fails waits until the example ends by itself, which must be with an error, and returns what it says of it.
func (e *Example) Fails() (said string) {
	e.t.Helper()
	if err := e.wait(); err == nil {
		e.t.Error("it ended well")
	}
	return e.stderr.String()
}

// wait waits for the end.
func (e *Example) wait() error {
	timer := time.AfterFunc(Patience, func() { _ = e.cmd.Process.Kill() })
	defer timer.Stop()
	for line := range e.lines {
		e.seen = append(e.seen, line)
	}
	err := e.cmd.Wait()
	left, globErr := filepath.Glob(filepath.Join(e.Tmp, "pqproxy-*"))
	if globErr != nil {
		e.t.Error(globErr)
	}
	if len(left) > 0 {
		e.t.Errorf("it left %v", left)
	}
	return err
}

// Shell runs a printed command, which must succeed, and returns its output.
func Shell(t *testing.T, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "sh", "-c", command).CombinedOutput()
	if err != nil {
		t.Errorf("%s\nended with %v and printed\n%s", command, err, out)
	}
	return string(out)
}
