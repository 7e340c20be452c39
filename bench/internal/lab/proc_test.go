//go:build linux

package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseSchedstat(t *testing.T) {
	for _, tt := range []struct {
		name    string
		in      string
		want    uint64
		wantErr bool
	}{
		{"a thread", "70994 50182 2\n", 70994, false},
		{"more than 32 bits", "9000000000000 1 2\n", 9_000_000_000_000, false},
		{"empty", "", 0, true},
		{"kernel without schedstats", "0 0\n", 0, true},
		{"not a number", "x 1 2\n", 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseSchedstat([]byte(tt.in))
			if (err != nil) != tt.wantErr || got != tt.want {
				t.Errorf("parseSchedstat(%q) = %v, %v, want %v, error %v", tt.in, got, err, tt.want, tt.wantErr)
			}
		})
	}
}

func TestParseStat(t *testing.T) {
	for _, tt := range []struct {
		name      string
		in        string
		pid, pgid int
		wantErr   bool
	}{
		{"plain", "42 (caddy) S 1 41 40 0 -1", 42, 41, false},
		{"name with space and parentheses", "42 (a) b (c)) R 7 9 9 0", 42, 9, false},
		{"no name", "42 caddy S 1 41", 0, 0, true},
		{"cut off", "42 (caddy) S 1", 0, 0, true},
		{"group not a number", "42 (caddy) S 1 x", 42, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pid, pgid, err := parseStat([]byte(tt.in))
			if (err != nil) != tt.wantErr || pid != tt.pid || pgid != tt.pgid {
				t.Errorf("parseStat(%q) = %d, %d, %v, want %d, %d, error %v", tt.in, pid, pgid, err, tt.pid, tt.pgid, tt.wantErr)
			}
		})
	}
}

func TestParseSmapsRollup(t *testing.T) {
	const full = `55e6c0a00000-7ffd3bdfe000 ---p 00000000 00:00 0                          [rollup]
Rss:                2048 kB
Pss:                1024 kB
Pss_Dirty:           100 kB
Private_Clean:         0 kB
Anonymous:           512 kB
`
	got, err := parseSmapsRollup(strings.NewReader(full))
	if want := (Memory{RSS: 2048 << 10, PSS: 1024 << 10, Anonymous: 512 << 10}); err != nil || got != want {
		t.Errorf("parseSmapsRollup = %+v, %v, want %+v", got, err, want)
	}
	for name, in := range map[string]string{
		"no Pss":       strings.Replace(full, "Pss:", "Pzz:", 1),
		"not a number": strings.Replace(full, "2048", "many", 1),
		"empty":        "",
	} {
		if _, err := parseSmapsRollup(strings.NewReader(in)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestCPUTimeSince(t *testing.T) {
	before := CPUTime{1: 100, 2: 50}
	got, err := CPUTime{1: 130, 2: 50, 3: 7}.Since(before)
	if err != nil || got != 37*time.Nanosecond {
		t.Errorf("since = %v, %v, want 37ns: 30 of thread 1, 7 of the new thread 3", got, err)
	}
	if _, err := (CPUTime{1: 130}).Since(before); err == nil {
		t.Error("the time of a thread that ended was lost without an error")
	}
}

// A process group is measured with its children, is pinned, and is gone after stop.
func TestProcessGroup(t *testing.T) {
	dir := t.TempDir()
	script := `sh -c 'while :; do :; done' & echo started; grep Cpus_allowed_list /proc/self/status; wait`
	p, err := Start(0, "spinner", []string{"/bin/sh", "-c", script}, []string{"PATH=/usr/bin:/bin"}, dir, filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	defer func() {
		if !stopped {
			p.Stop()
		}
	}()

	waitFor(t, "both lines of the script", func() bool { return strings.Contains(p.LogTail(), "Cpus_allowed_list") })
	if got := strings.Fields(p.LogTail()); got[len(got)-1] != "0" {
		t.Errorf("the child may run on cores %q, want 0 alone", got[len(got)-1])
	}
	before, err := p.CPUNow()
	if err != nil {
		t.Fatal(err)
	}
	if len(before) < 2 {
		t.Errorf("%d threads seen, want those of the shell and of its child", len(before))
	}
	waitFor(t, "CPU time of the child", func() bool {
		now, err := p.CPUNow()
		if err != nil {
			t.Fatal(err)
		}
		used, err := now.Since(before)
		return err == nil && used > 0
	})
	if m, err := p.MemoryNow(); err != nil || m.RSS <= 0 || m.PSS <= 0 || m.Anonymous <= 0 {
		t.Errorf("MemoryNow = %+v, %v", m, err)
	}

	p.Stop()
	stopped = true
	if p.Running() {
		t.Error("still running after stop")
	}
	// The child is not ours to wait for; init reaps it.
	waitFor(t, "the end of the group", func() bool { _, err := p.CPUNow(); return err != nil })
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

func TestLogTail(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(file, []byte(strings.Repeat("x", 10_000)+" end\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &Process{logFile: file}
	if got := p.LogTail(); len(got) > 4096 || !strings.HasSuffix(got, " end") {
		t.Errorf("LogTail has %d bytes and ends with %q", len(got), got[len(got)-8:])
	}
}

func TestWait(t *testing.T) {
	dir := t.TempDir()
	start := func(script string) *Process {
		p, err := Start(AnyCore, "sh", []string{"/bin/sh", "-c", script}, CleanEnv(dir), dir, filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Stop)
		return p
	}
	if err := start("exit 0").Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := start("exit 3").Wait(t.Context()); err == nil {
		t.Error("a process failed without an error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := start("while :; do sleep 1; done").Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait = %v, want %v", err, context.Canceled)
	}
}
