package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/examples/internal/demotest"
)

func TestMain(m *testing.M) { demotest.Main(m) }

// TestSaaS runs the example as its README says and every command that it prints as a reader would: pasted into a shell.
func TestSaaS(t *testing.T) {
	e := demotest.Start(t, nil)
	for _, line := range []string{
		"an API key that may do everything",
		"edge-1 (gru) is up", "edge-2 (fra) is up",
		"POST /v1/signup",
		"It is pending_dns. What the customer has to do:", "  app.example.com.  A  127.0.0.1",
		"/check: ownership ok.",
		": active. Live on 2 of 2 edges. It took ",
		"post-quantum: yes (X25519MLKEM768)", "chain         ok", "there was no PROXY header", "with X25519.",
		"live on both edges after ", "the PROXY header says so",
		" on edge-2", "X25519MLKEM768 (post-quantum)", "/v1/usage?", " handshakes were post-quantum", "it would refuse 1, of 127.0.0.0/24.",
		`{"post_quantum":"require"}: live on both edges after `, "handshake failure", "on edge-2 with X25519MLKEM768.",
	} {
		e.Expect(line)
	}
	for _, command := range []struct{ has, want string }{
		{"/v1/domains", `"status":"active"`},
		{"/v1/connections", `"edge":"edge-`},
		{"/series", `"series":{`},
		{"/probe", `"post_quantum":true`},
		{"pqproxy probe", "post-quantum: yes (X25519MLKEM768)"},
		{"-X PATCH", `"post_quantum":"prefer"`},
		{"--cacert", "the PROXY header says so"},
		{"/v1/platform/edges", `"name":"edge-2"`},
		{"/openapi.json", `"openapi": "3.1.0"`},
	} {
		line := e.Expect("  ")
		for !strings.HasPrefix(line, "  ") {
			line = e.Expect("  ")
		}
		if !strings.Contains(line, command.has) {
			t.Fatalf("the next command is %s, not one with %s", line, command.has)
		}
		if out := demotest.Shell(t, line); !strings.Contains(out, command.want) {
			t.Errorf("%s\nprinted\n%.1000s\nwithout %s", line, out, command.want)
		}
	}
	e.Expect("Ctrl-C ends everything.")
	children := childrenOf(t, e.PID)
	if len(children) != 3 {
		t.Errorf("it runs %d processes, want 3", len(children))
	}
	e.Interrupt()
	gone(t, children)
}

// TestSaaSEdgeEnds kills an edge: everything must end, with a word that says which.
func TestSaaSEdgeEnds(t *testing.T) {
	e := demotest.Start(t, nil)
	e.Expect("edge-2 (fra) is up")
	children := childrenOf(t, e.PID)
	for _, pid := range children {
		if argsOf(t, pid, "edge-2") {
			kill(t, pid)
		}
	}
	if said := e.Fails(); !strings.Contains(said, "edge-2 ended (signal: killed)") {
		t.Errorf("it says %s", said)
	}
	gone(t, children)
}

// TestSaaSKilled kills the example itself, which then cannot tidy up: its processes must end all the same.
func TestSaaSKilled(t *testing.T) {
	e := demotest.Start(t, nil)
	e.Expect("edge-2 (fra) is up")
	children := childrenOf(t, e.PID)
	kill(t, e.PID)
	gone(t, children)
}

// TestSaaSIsCaddy wants arguments to reach Caddy.
func TestSaaSIsCaddy(t *testing.T) {
	if out, err := exec.Command(demotest.Binary, "list-modules").Output(); err != nil || !strings.Contains(string(out), "\npqproxy_management\n") {
		t.Errorf("list-modules: %v\n%s", err, out)
	}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// childrenOf returns the processes that a process has started.
func childrenOf(t *testing.T, pid int) (children []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	if err != nil || len(files) == 0 {
		t.Fatalf("no /proc/%d: %v", pid, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // that thread has ended
		}
		for _, field := range strings.Fields(string(text)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			children = append(children, child)
		}
	}
	return children
}

// argsOf reports whether the command line of a process has a text.
func argsOf(t *testing.T, pid int, text string) bool {
	t.Helper()
	line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(line), text)
}

// gone waits until processes have ended. Those whose parent has gone may stay as zombies where nobody reaps them.
func gone(t *testing.T, pids []int) {
	t.Helper()
	end := time.Now().Add(demotest.Patience)
	for _, pid := range pids {
		for alive(pid) {
			if time.Now().After(end) {
				t.Fatalf("process %d still runs", pid)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func alive(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(after, "Z")
}
