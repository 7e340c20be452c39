package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is this program once more, as Caddy.
type process struct {
	name   string
	cmd    *exec.Cmd
	ended  chan struct{}   // closed when it has ended, and all it wrote was read
	fail   func(err error) // called when it ends although nobody asked
	logged chan string     // the address that it listens on, once

	mu      sync.Mutex // guards what follows
	asked   bool       // to end
	trouble []string   // last lines of its log that are warnings or worse
}

// childVariable tells the program that it was started by itself.
const childVariable = "SAAS_CHILD"

// startProcess runs a Caddyfile with variables, sockets from descriptor 3 on, and data in a folder of its own.
func startProcess(dir, name, caddyfile string, variables map[string]string, sockets []*os.File, fail func(error)) (*process, error) {
	binary, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir = filepath.Join(dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(file, []byte(caddyfile), 0o600); err != nil {
		return nil, err
	}
	p := &process{name: name, cmd: exec.Command(binary, "run", "--config", file), ended: make(chan struct{}), fail: fail, logged: make(chan string, 1)}
	p.cmd.Dir, p.cmd.ExtraFiles = dir, sockets
	p.cmd.Env = append(os.Environ(), childVariable+"=1", "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	for variable, value := range variables {
		p.cmd.Env = append(p.cmd.Env, variable+"="+value)
	}
	if _, err := p.cmd.StdinPipe(); err != nil { // see endWithParent
		return nil, err
	}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go p.follow(stderr)
	return p, nil
}

// endWithParent ends a process that was started by this program when that is gone, however it ended: its standard input ends then.
func endWithParent() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(1)
}

// follow reads the log until the process ends.
func (p *process) follow(stderr io.Reader) {
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var entry struct{ Level, Logger, Msg, Address string }
		if json.Unmarshal(lines.Bytes(), &entry) == nil && (entry.Level == "info" || entry.Level == "debug") {
			if entry.Logger == "pqproxy" && entry.Msg == "listening" {
				select {
				case p.logged <- entry.Address:
				default:
				}
			}
			continue
		}
		p.mu.Lock()
		p.trouble = append(p.trouble, lines.Text())
		p.trouble = p.trouble[max(0, len(p.trouble)-10):]
		p.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, stderr) // a line that is too long must not block it
	err := p.cmd.Wait()
	p.mu.Lock()
	asked, trouble := p.asked, strings.Join(p.trouble, "\n  ")
	p.mu.Unlock()
	close(p.ended)
	if !asked {
		p.fail(fmt.Errorf("%s ended (%s); the last troubles in its log:\n  %s", p.name, endOf(err), trouble))
	}
}

func endOf(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// address returns where it listens.
func (p *process) address(ctx context.Context) (string, error) {
	select {
	case address := <-p.logged:
		return address, nil
	case <-time.After(patience):
		return "", fmt.Errorf("%s does not listen", p.name)
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// ending is how long a process may take to end when asked. Then it is killed.
const ending = 15 * time.Second

// stop ends the process and waits for that.
func (p *process) stop() error {
	p.mu.Lock()
	p.asked = true
	p.mu.Unlock()
	// After Ctrl-C in a terminal it is about to end already, which it does once.
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		_ = p.cmd.Process.Kill()
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(ending):
		_ = p.cmd.Process.Kill()
		<-p.ended
		return fmt.Errorf("%s did not end within %v and was killed", p.name, ending)
	}
}
