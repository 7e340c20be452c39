package pqtest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// modulePath is what the stack of a goroutine mentions that this project runs or has started.
const modulePath = "github.com/pqproxy/caddy-pqproxy"

// Leaks counts the goroutines that have to do with this module and the open descriptors, and at the end of the
// test waits until neither is more than that. If it waits in vain, the test fails with what was left over.
//
// Call it first, since cleanups run last to first: what is closed by a cleanup registered before it still counts
// as leaked. It sees the whole process, so that the test must not run in parallel with others. Descriptors
// are counted where /proc/self/fd exists.
func Leaks(tb testing.TB) {
	tb.Helper()
	check := leaksSince(takeStock())
	tb.Cleanup(func() { check(tb, bound(tb)) })
}

// stock is what a process has open.
type stock struct {
	goroutines []string          // their stacks
	files      map[string]string // descriptor to what it is of
}

func takeStock() stock {
	return stock{goroutines(), descriptors()}
}

// leaksSince returns the check that waits until there is no more than at first.
func leaksSince(before stock) func(testing.TB, time.Duration) {
	return func(tb testing.TB, limit time.Duration) {
		tb.Helper()
		var now stock
		if poll(limit, func() bool {
			now = takeStock()
			return len(now.goroutines) <= len(before.goroutines) && len(now.files) <= len(before.files)
		}) {
			return
		}
		if n := len(now.goroutines) - len(before.goroutines); n > 0 {
			tb.Errorf("%d goroutines more than at the start; now there are:\n\n%s", n, strings.Join(now.goroutines, "\n\n"))
		}
		if n := len(now.files) - len(before.files); n > 0 {
			tb.Errorf("%d descriptors more than at the start; new ones are:\n%s", n, newFiles(before.files, now.files))
		}
	}
}

// goroutines returns the stacks of those that mention the module, the caller's own aside.
func goroutines() []string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	var ours []string
	for i, stack := range strings.Split(strings.TrimSpace(string(buf)), "\n\n") {
		// The first is the one that asks.
		if i > 0 && strings.Contains(stack, modulePath) {
			ours = append(ours, stack)
		}
	}
	return ours
}

// descriptors returns what is open, without what Go's runtime opens for its poller at the first use.
func descriptors() map[string]string {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	files := make(map[string]string)
	for _, entry := range entries {
		// What cannot be read is closed already, like the descriptor of dir itself.
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err == nil && target != "anon_inode:[eventpoll]" && target != "anon_inode:[eventfd]" {
			files[entry.Name()] = target
		}
	}
	return files
}

func newFiles(before, now map[string]string) string {
	var b strings.Builder
	for fd, target := range now {
		if before[fd] != target {
			fmt.Fprintf(&b, "%s: %s\n", fd, target)
		}
	}
	return b.String()
}
