//go:build linux

package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a proxy under test: a process group, normally pinned to one core. Its children (nginx's worker) count
// with it.
type Process struct {
	Name    string // for messages
	cmd     *exec.Cmd
	logFile string
	exited  chan struct{} // closed when the first process has been waited for
	err     error         // of that; to be read when exited is closed
}

// AnyCore is a core for Start: none in particular.
const AnyCore = -1

// Start starts argv in a process group of its own on one core, or with AnyCore on all of the machine, with exactly the
// environment env, its output in logFile. It cannot be set afterwards: the Go runtime counts its cores when it starts.
// Whoever calls Start calls Stop.
func Start(core int, name string, argv, env []string, dir, logFile string) (*Process, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}

	var wanted unix.CPUSet
	if core == AnyCore {
		wanted.Fill()
	} else {
		wanted.Set(core)
	}
	if err := onCores(&wanted, cmd.Start); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &Process{Name: name, cmd: cmd, logFile: logFile, exited: make(chan struct{})}
	go p.reap()
	return p, nil
}

// onCores runs f, which forks, on a thread that may use the cores wanted: a child inherits the mask of the thread that
// forks it.
func onCores(wanted *unix.CPUSet, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("reading the CPU affinity: %w", err)
	}
	if err := unix.SchedSetaffinity(0, wanted); err != nil {
		return fmt.Errorf("setting the CPU affinity: %w", err)
	}
	err := f()
	return errors.Join(err, unix.SchedSetaffinity(0, &before))
}

// PinSelf moves every thread of this process to core. Threads started later inherit it; one that is started while
// this runs is found by the next pass.
func PinSelf(core int) error {
	var wanted unix.CPUSet
	wanted.Set(core)
	pinned := map[int]bool{}
	for again := true; again; {
		again = false
		threads, err := threadsOf(os.Getpid())
		if err != nil {
			return err
		}
		for _, thread := range threads {
			if pinned[thread] {
				continue
			}
			if err := unix.SchedSetaffinity(thread, &wanted); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("pinning the load to core %d: %w", core, err)
			}
			pinned[thread], again = true, true
		}
	}
	return nil
}

// reap waits for the first process, so that Running sees its end; it ends with that process.
func (p *Process) reap() {
	p.err = p.cmd.Wait() // a proxy that ends by itself is noticed by Running, and the log says why
	close(p.exited)
}

// Wait waits for a process that ends by itself, and returns an error if it failed or if ctx ended first.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.exited:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// PID returns the ID of the first process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Running reports whether the first process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Stop kills the whole group. Not gracefully: pqproxy would drain connections that the harness still holds.
func (p *Process) Stop() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.exited
}

// LogTail returns the end of what the process wrote, for error messages, and never fails.
func (p *Process) LogTail() string {
	const most = 4096
	content, err := os.ReadFile(p.logFile)
	if err != nil {
		return err.Error()
	}
	if len(content) > most {
		content = content[len(content)-most:]
	}
	return strings.TrimSpace(string(content))
}

// CPUTime is the time on CPU of each thread of a process group, in nanoseconds, by thread ID.
type CPUTime map[int]uint64

// CPUNow reads what every thread has used so far, from /proc/PID/task/TID/schedstat. Not from /proc/PID/stat, which
// counts in ticks of 10 ms, nor from /proc/PID/schedstat, which knows the first thread alone.
func (p *Process) CPUNow() (CPUTime, error) {
	members, err := groupMembers(p.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	now := CPUTime{}
	for _, pid := range members {
		threads, err := threadsOf(pid)
		if err != nil {
			return nil, err
		}
		for _, thread := range threads {
			content, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/schedstat", pid, thread))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue // ended meanwhile; Since notices if it was there before
			}
			if err != nil {
				return nil, err
			}
			if now[thread], err = parseSchedstat(content); err != nil {
				return nil, fmt.Errorf("%s, thread %d: %w", p.Name, thread, err)
			}
		}
	}
	return now, nil
}

// Since returns the CPU time between an earlier reading and this one. A thread that has gone took its time with it,
// so the difference is not known: an error.
func (c CPUTime) Since(before CPUTime) (time.Duration, error) {
	var total uint64
	for thread := range before {
		if _, ok := c[thread]; !ok {
			return 0, fmt.Errorf("thread %d ended during the measurement, its CPU time is lost", thread)
		}
	}
	for thread, used := range c {
		total += used - before[thread] // 0 for a thread started since
	}
	return time.Duration(total), nil
}

// parseSchedstat returns the first of the three numbers of a schedstat file: time on CPU in nanoseconds.
func parseSchedstat(content []byte) (uint64, error) {
	fields := bytes.Fields(content)
	if len(fields) != 3 {
		return 0, fmt.Errorf("malformed schedstat %q", content)
	}
	used, err := strconv.ParseUint(string(fields[0]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("malformed schedstat %q: %w", content, err)
	}
	return used, nil
}

// CPUAtRest waits until the process has finished what the last connections left behind (closing, logging), then
// returns its CPU time. A proxy that never rests is read after restPatience all the same: that is its cost.
func (p *Process) CPUAtRest() (CPUTime, error) {
	const (
		restPoll     = 5 * time.Millisecond
		restPatience = 500 * time.Millisecond
		restNoise    = 50 * time.Microsecond
	)
	last, err := p.CPUNow()
	if err != nil {
		return nil, err
	}
	quiet := 0
	for end := time.Now().Add(restPatience); quiet < 2 && time.Now().Before(end); {
		time.Sleep(restPoll)
		now, err := p.CPUNow()
		if err != nil {
			return nil, err
		}
		used, err := now.Since(last)
		if err != nil {
			return nil, err
		}
		quiet++
		if used > restNoise {
			quiet = 0
		}
		last = now
	}
	if !p.Running() {
		return nil, fmt.Errorf("%s has ended", p.Name)
	}
	return last, nil
}

// Memory is a process group's share of physical Memory, in bytes. Socket buffers are the kernel's and not in it.
type Memory struct {
	RSS       int64 `json:"rss"`       // resident, shared pages included
	PSS       int64 `json:"pss"`       // resident, each shared page divided by its users
	Anonymous int64 `json:"anonymous"` // heap and stacks: resident, without files
}

// MemoryNow sums /proc/PID/smaps_rollup over the group.
func (p *Process) MemoryNow() (Memory, error) {
	members, err := groupMembers(p.cmd.Process.Pid)
	if err != nil {
		return Memory{}, err
	}
	var sum Memory
	for _, pid := range members {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return Memory{}, err
		}
		m, err := parseSmapsRollup(bytes.NewReader(content))
		if err != nil {
			return Memory{}, fmt.Errorf("%s, process %d: %w", p.Name, pid, err)
		}
		sum.RSS, sum.PSS, sum.Anonymous = sum.RSS+m.RSS, sum.PSS+m.PSS, sum.Anonymous+m.Anonymous
	}
	return sum, nil
}

// parseSmapsRollup reads the three lines wanted, which are in kB.
func parseSmapsRollup(r io.Reader) (Memory, error) {
	var m Memory
	wanted := map[string]*int64{"Rss:": &m.RSS, "Pss:": &m.PSS, "Anonymous:": &m.Anonymous}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || fields[2] != "kB" || wanted[fields[0]] == nil {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("malformed smaps_rollup line %q: %w", lines.Text(), err)
		}
		*wanted[fields[0]] = kib << 10
		delete(wanted, fields[0])
	}
	if len(wanted) > 0 {
		return Memory{}, errors.Join(errors.New("smaps_rollup lacks a line"), lines.Err())
	}
	return m, lines.Err()
}

// MemoryAtRest polls until the resident size has moved by less than half a percent for a second.
func (p *Process) MemoryAtRest() (Memory, error) {
	const (
		poll     = 100 * time.Millisecond
		calm     = 10 // polls in a row
		patience = 30 * time.Second
	)
	anchor, err := p.MemoryNow()
	if err != nil {
		return Memory{}, err
	}
	for end, quiet := time.Now().Add(patience), 0; quiet < calm; quiet++ {
		if time.Now().After(end) {
			return Memory{}, fmt.Errorf("%s: memory is not at rest after %v", p.Name, patience)
		}
		time.Sleep(poll)
		now, err := p.MemoryNow()
		if err != nil {
			return Memory{}, err
		}
		if moved := max(now.RSS-anchor.RSS, anchor.RSS-now.RSS); moved*200 > anchor.RSS {
			anchor, quiet = now, -1
		}
	}
	return p.MemoryNow()
}

// groupMembers returns the processes of a process group.
func groupMembers(pgid int) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var members []int
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			continue // another process that ended meanwhile
		}
		pid, group, err := parseStat(content)
		if err != nil {
			return nil, err
		}
		if group == pgid {
			members = append(members, pid)
		}
	}
	if len(members) == 0 {
		return nil, fmt.Errorf("process group %d has ended", pgid)
	}
	return members, nil
}

// parseStat returns fields 1 and 5 of /proc/PID/stat. The name between them may hold spaces and parentheses.
func parseStat(content []byte) (pid, pgid int, err error) {
	open, end := bytes.IndexByte(content, '('), bytes.LastIndexByte(content, ')')
	if open < 0 || end < open {
		return 0, 0, fmt.Errorf("malformed stat %q", content)
	}
	after := strings.Fields(string(content[end+1:])) // state, parent, group, …
	if len(after) < 3 {
		return 0, 0, fmt.Errorf("malformed stat %q", content)
	}
	pid, err1 := strconv.Atoi(strings.TrimSpace(string(content[:open])))
	pgid, err2 := strconv.Atoi(after[2])
	return pid, pgid, errors.Join(err1, err2)
}

// threadsOf returns the thread IDs of a process.
func threadsOf(pid int) ([]int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	threads := make([]int, 0, len(entries))
	for _, entry := range entries {
		thread, err := strconv.Atoi(entry.Name())
		if err != nil {
			return nil, err
		}
		threads = append(threads, thread)
	}
	return threads, nil
}
