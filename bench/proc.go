//go:build linux

package main

import (
	"bufio"
	"bytes"
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

// process is a proxy under test: a process group pinned to one core. Its children (nginx's worker) count with it.
type process struct {
	name    string
	cmd     *exec.Cmd
	logFile string
	exited  chan struct{} // closed when the first process has been waited for
}

// startPinned starts argv in a process group of its own on one core, with exactly the environment env, its output in
// logFile. It cannot be set afterwards: the Go runtime counts its cores when it starts.
func startPinned(core int, name string, argv, env []string, dir, logFile string) (*process, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}

	if err := onCore(core, cmd.Start); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, logFile: logFile, exited: make(chan struct{})}
	go p.reap()
	return p, nil
}

// onCore runs f, which forks, on a thread pinned to core: a child inherits the mask of the thread that forks it.
func onCore(core int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, wanted unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("reading the CPU affinity: %w", err)
	}
	wanted.Set(core)
	if err := unix.SchedSetaffinity(0, &wanted); err != nil {
		return fmt.Errorf("pinning to core %d: %w", core, err)
	}
	err := f()
	return errors.Join(err, unix.SchedSetaffinity(0, &before))
}

// pinSelf moves every thread of this process to core. Threads started later inherit it; one that is started while
// this runs is found by the next pass.
func pinSelf(core int) error {
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

// reap waits for the first process, so that running sees its end; it ends with that process.
func (p *process) reap() {
	_ = p.cmd.Wait() // the log says why; a proxy that ends by itself is noticed by running
	close(p.exited)
}

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// stop kills the whole group. Not gracefully: pqproxy would drain connections that the harness still holds.
func (p *process) stop() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.exited
}

// logTail returns the end of what the process wrote, for error messages.
func (p *process) logTail() string {
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

// cpuTime is the time on CPU of each thread of a process group, in nanoseconds, by thread ID.
type cpuTime map[int]uint64

// cpuNow reads what every thread has used so far, from /proc/PID/task/TID/schedstat. Not from /proc/PID/stat, which
// counts in ticks of 10 ms, nor from /proc/PID/schedstat, which knows the first thread alone.
func (p *process) cpuNow() (cpuTime, error) {
	members, err := groupMembers(p.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	now := cpuTime{}
	for _, pid := range members {
		threads, err := threadsOf(pid)
		if err != nil {
			return nil, err
		}
		for _, thread := range threads {
			content, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/schedstat", pid, thread))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue // ended meanwhile; since notices if it was there before
			}
			if err != nil {
				return nil, err
			}
			if now[thread], err = parseSchedstat(content); err != nil {
				return nil, fmt.Errorf("%s, thread %d: %w", p.name, thread, err)
			}
		}
	}
	return now, nil
}

// since returns the CPU time between an earlier reading and this one. A thread that has gone took its time with it,
// so the difference is not known: an error.
func (c cpuTime) since(before cpuTime) (time.Duration, error) {
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

// cpuAtRest waits until the process has finished what the last connections left behind (closing, logging), then
// returns its CPU time. A proxy that never rests is read after restPatience all the same: that is its cost.
func (p *process) cpuAtRest() (cpuTime, error) {
	const (
		restPoll     = 5 * time.Millisecond
		restPatience = 500 * time.Millisecond
		restNoise    = 50 * time.Microsecond
	)
	last, err := p.cpuNow()
	if err != nil {
		return nil, err
	}
	quiet := 0
	for end := time.Now().Add(restPatience); quiet < 2 && time.Now().Before(end); {
		time.Sleep(restPoll)
		now, err := p.cpuNow()
		if err != nil {
			return nil, err
		}
		used, err := now.since(last)
		if err != nil {
			return nil, err
		}
		quiet++
		if used > restNoise {
			quiet = 0
		}
		last = now
	}
	if !p.running() {
		return nil, fmt.Errorf("%s has ended", p.name)
	}
	return last, nil
}

// memory is a process group's share of physical memory, in bytes. Socket buffers are the kernel's and not in it.
type memory struct {
	RSS       int64 `json:"rss"`       // resident, shared pages included
	PSS       int64 `json:"pss"`       // resident, each shared page divided by its users
	Anonymous int64 `json:"anonymous"` // heap and stacks: resident, without files
}

// memoryNow sums /proc/PID/smaps_rollup over the group.
func (p *process) memoryNow() (memory, error) {
	members, err := groupMembers(p.cmd.Process.Pid)
	if err != nil {
		return memory{}, err
	}
	var sum memory
	for _, pid := range members {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return memory{}, err
		}
		m, err := parseSmapsRollup(bytes.NewReader(content))
		if err != nil {
			return memory{}, fmt.Errorf("%s, process %d: %w", p.name, pid, err)
		}
		sum.RSS, sum.PSS, sum.Anonymous = sum.RSS+m.RSS, sum.PSS+m.PSS, sum.Anonymous+m.Anonymous
	}
	return sum, nil
}

// parseSmapsRollup reads the three lines wanted, which are in kB.
func parseSmapsRollup(r io.Reader) (memory, error) {
	var m memory
	wanted := map[string]*int64{"Rss:": &m.RSS, "Pss:": &m.PSS, "Anonymous:": &m.Anonymous}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || fields[2] != "kB" || wanted[fields[0]] == nil {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return memory{}, fmt.Errorf("malformed smaps_rollup line %q: %w", lines.Text(), err)
		}
		*wanted[fields[0]] = kib << 10
		delete(wanted, fields[0])
	}
	if len(wanted) > 0 {
		return memory{}, errors.Join(errors.New("smaps_rollup lacks a line"), lines.Err())
	}
	return m, lines.Err()
}

// memoryAtRest polls until the resident size has moved by less than half a percent for a second.
func (p *process) memoryAtRest() (memory, error) {
	const (
		poll     = 100 * time.Millisecond
		calm     = 10 // polls in a row
		patience = 30 * time.Second
	)
	anchor, err := p.memoryNow()
	if err != nil {
		return memory{}, err
	}
	for end, quiet := time.Now().Add(patience), 0; quiet < calm; quiet++ {
		if time.Now().After(end) {
			return memory{}, fmt.Errorf("%s: memory is not at rest after %v", p.name, patience)
		}
		time.Sleep(poll)
		now, err := p.memoryNow()
		if err != nil {
			return memory{}, err
		}
		if moved := max(now.RSS-anchor.RSS, anchor.RSS-now.RSS); moved*200 > anchor.RSS {
			anchor, quiet = now, -1
		}
	}
	return p.memoryNow()
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
