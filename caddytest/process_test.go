package caddytest

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a server program that a test started, with what it wrote to standard error.
type process struct {
	*lines
	name string
	cmd  *exec.Cmd
	quit syscall.Signal // what it ends of, with status 0
	dead bool           // the test has killed it

	// exited is closed when the program has ended and all it wrote has been read.
	exited chan struct{}
}

// start runs a server program until the test is over. It is then sent the signal quit, and the test fails
// unless it ends of that and well.
func start(t *testing.T, name string, cmd *exec.Cmd, quit syscall.Signal) *process {
	t.Helper()
	p := &process{lines: newLines(), name: name, cmd: cmd, quit: quit, exited: make(chan struct{})}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go p.follow(bufio.NewScanner(stderr))
	t.Cleanup(func() {
		p.stop(t)
		p.checkHealth(t)
		if t.Failed() {
			t.Logf("%s wrote:\n%s", name, p.String())
		}
	})
	return p
}

// follow reads what the program writes until it ends.
func (p *process) follow(stderr *bufio.Scanner) {
	stderr.Buffer(nil, 1<<20) // a goroutine dump or a Caddy config is one line at most that long
	for stderr.Scan() {
		p.add(stderr.Text())
	}
	p.cmd.Wait() // its result is in p.cmd.ProcessState
	close(p.exited)
	p.close()
}

// terminate asks the program to end.
func (p *process) terminate(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(p.quit); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signalling %s: %v", p.name, err)
	}
}

// stop asks the program to end, waits until it has, and fails the test unless it ended well.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.terminate(t)
	p.waitExit(t)
	if state := p.cmd.ProcessState; !state.Success() && !p.dead {
		t.Errorf("%s ended with %v", p.name, state)
	}
}

// kill ends the program as a power failure would, and waits until it has.
func (p *process) kill(t *testing.T) {
	t.Helper()
	p.dead = true
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.waitExit(t)
}

// waitExit waits until the program has ended, and kills it if patience ends before.
func (p *process) waitExit(t *testing.T) {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		t.Errorf("%s did not end within %v", p.name, patience)
		p.cmd.Process.Kill()
		<-p.exited
	}
}

// checkHealth fails the test if the program wrote what no peer may bring it to write.
func (p *process) checkHealth(t *testing.T) {
	t.Helper()
	for _, line := range p.snapshot() {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") ||
			strings.Contains(line, "WARNING: DATA RACE") || strings.Contains(line, `"level":"panic"`) {
			t.Errorf("%s wrote: %s", p.name, line)
		}
	}
}

// lines collects what a program writes, and lets tests wait for a line.
type lines struct {
	mu      sync.Mutex // guards all below
	list    []string
	closed  bool
	changed chan struct{} // closed, and replaced, at each change
}

func newLines() *lines {
	return &lines{changed: make(chan struct{})}
}

func (l *lines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, line)
	close(l.changed)
	l.changed = make(chan struct{})
}

// close says that no line will follow.
func (l *lines) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	close(l.changed)
	l.changed = make(chan struct{})
}

// wait returns the first line that match accepts, also one written before the call. It reports false if
// the program ended without writing one, or patience did.
func (l *lines) wait(match func(line string) bool) (string, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for seen := 0; ; {
		l.mu.Lock()
		fresh, closed, changed := l.list[seen:], l.closed, l.changed
		l.mu.Unlock()
		for _, line := range fresh {
			if match(line) {
				return line, true
			}
		}
		if closed {
			return "", false
		}
		seen += len(fresh)
		select {
		case <-changed:
		case <-ctx.Done():
			return "", false
		}
	}
}

// snapshot returns the lines written so far.
func (l *lines) snapshot() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.list[:len(l.list):len(l.list)]
}

// String returns the lines written so far as one text.
func (l *lines) String() string {
	return strings.Join(l.snapshot(), "\n")
}
