//go:build linux

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Object is a JSON object of a configuration.
type Object = map[string]any

// Proxies are the Caddy processes of a run, and other processes that are to end with it. Its methods may be called from
// any goroutine.
type Proxies struct {
	binary string
	dir    string // of their files

	mu      sync.Mutex // guards the rest
	running map[*Process]bool
	sockets int // admin sockets so far
	closed  bool
}

// NewProxies returns a run's processes, of a binary and with their files below dir. Whoever calls it calls Close.
func NewProxies(binary, dir string) *Proxies {
	return &Proxies{binary: binary, dir: dir, running: map[*Process]bool{}}
}

// Run starts a process in a folder, with its output in another, that Close will end.
func (s *Proxies) Run(core int, name string, argv, env []string, dir, logDir string) (*Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("the run has ended")
	}
	p, err := Start(core, name, argv, env, dir, filepath.Join(logDir, "log"))
	if err != nil {
		return nil, err
	}
	s.running[p] = true
	return p, nil
}

// End ends a process of Run.
func (s *Proxies) End(p *Process) {
	p.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, p)
}

// Close ends every process, and no other can be started.
func (s *Proxies) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for p := range s.running {
		p.Stop()
	}
	clear(s.running)
}

// Proxy is a Caddy process under test, pqproxy or caddy-l4, that listens and can be asked.
type Proxy struct {
	*Process
	Admin *Admin
	Addr  string    // of its one listener
	Began time.Time // just before the process was started
}

// Launch says how a proxy is started.
type Launch struct {
	Name string // for messages
	Core int    // as for Start; where it is one, GOMAXPROCS is 1
	// Home is the folder of its files: what an earlier process has kept there is found by the next. Empty: a new one.
	Home string
	// Config makes its configuration for a listen address, all but `admin`.
	Config func(addr string) Object
	// Ready returns when the process is ready, or cannot be. nil: AwaitReady.
	Ready func(p *Proxy) error
}

// ErrEndedEarly is of a proxy that could not start; a port that was free may have been taken meanwhile.
var ErrEndedEarly = errors.New("ended before it was ready")

// Launch starts a proxy and waits until it is ready. One that ends early is tried three times. End it with Stop.
func (s *Proxies) Launch(l Launch) (*Proxy, error) {
	var faults []error
	for range 3 {
		p, err := s.launchOnce(l)
		if err == nil {
			return p, nil
		}
		faults = append(faults, err)
		if !errors.Is(err, ErrEndedEarly) {
			break
		}
	}
	return nil, errors.Join(faults...)
}

func (s *Proxies) launchOnce(l Launch) (*Proxy, error) {
	home := l.Home
	if home == "" {
		var err error
		if home, err = os.MkdirTemp(s.dir, l.Name+"-"); err != nil {
			return nil, err
		}
	}
	addrs, err := FreeAddrs(1)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.sockets++ // one that was killed leaves its socket behind
	socket := filepath.Join(home, fmt.Sprintf("admin-%d.sock", s.sockets))
	s.mu.Unlock()
	config := l.Config(addrs[0])
	config["admin"] = Object{"listen": "unix/" + socket, "config": Object{"persist": false}}
	content, err := json.MarshalIndent(config, "", "\t")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(home, "config.json")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return nil, err
	}
	env := CleanEnv(home)
	if l.Core != AnyCore {
		env = append(env, "GOMAXPROCS=1")
	}
	began := time.Now()
	process, err := s.Run(l.Core, l.Name, []string{s.binary, "run", "--config", file}, env, home, home)
	if err != nil {
		return nil, err
	}
	p := &Proxy{Process: process, Admin: NewAdmin(socket), Addr: addrs[0], Began: began}
	ready := l.Ready
	if ready == nil {
		ready = (*Proxy).AwaitReady
	}
	if err := ready(p); err != nil {
		tail := p.LogTail()
		s.Stop(p)
		return nil, fmt.Errorf("%s: %w\nits log ends:\n%s", l.Name, err, tail)
	}
	return p, nil
}

// Stop ends a proxy.
func (s *Proxies) Stop(p *Proxy) {
	p.Admin.Close()
	s.End(p.Process)
}

// AwaitReady waits for the admin endpoint, which Caddy opens before its apps, and then for the config: a
// request for it waits until it is in force.
func (p *Proxy) AwaitReady() error {
	return Await("the admin endpoint", 20*time.Second, 20*time.Millisecond, func() (bool, error) {
		if !p.Running() {
			return false, ErrEndedEarly
		}
		_, err := p.Admin.Call(http.MethodGet, "/config/admin/listen", nil)
		return err == nil, nil
	})
}

// Status is what we read of GET /pqproxy/status.
type Status struct {
	Revision json.RawMessage `json:"revision"` // a number where the set has one
	Domains  map[string]int  `json:"domains"`  // by source
	LastSync Sync            `json:"last_sync"`
}

// Sync is how the last poll went.
type Sync struct {
	Revision json.RawMessage `json:"revision"`
	Result   string          `json:"result"`
	Error    string          `json:"error"`
	Duration float64         `json:"duration"` // seconds, from the complete answer to the new table
}

// AddReported adds what the status says itself of the poll that brought a revision, while that is the last one.
func (s Status) AddReported(values map[string]float64, key string, revision uint64, unit time.Duration) {
	if last := s.LastSync; last.Result == "applied" && string(last.Revision) == fmt.Sprint(revision) {
		values[key] = last.Duration * float64(time.Second/unit)
	}
}

// Status asks for the status of a pqproxy.
func (p *Proxy) Status() (Status, error) {
	var s Status
	answer, err := p.Admin.Call(http.MethodGet, "/pqproxy/status", nil)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(answer, &s); err != nil {
		return s, fmt.Errorf("reading the status: %w", err)
	}
	return s, nil
}

// AwaitRevision asks for the status until it shows the revision, and returns when that was seen. A failed poll ends
// the wait.
func (p *Proxy) AwaitRevision(revision uint64, every time.Duration) (time.Time, error) {
	want := fmt.Sprint(revision)
	var seen time.Time
	err := Await("revision "+want, 5*time.Minute, every, func() (bool, error) {
		s, err := p.Status()
		if err != nil {
			return false, err
		}
		seen = time.Now()
		if string(s.Revision) == want {
			return true, nil
		}
		if last := s.LastSync; last.Error != "" {
			return false, fmt.Errorf("the last poll failed (%s): %s", last.Result, last.Error)
		}
		return false, nil
	})
	return seen, err
}

// Memstats is what we read of runtime.MemStats, which Caddy's /debug/vars shows.
type Memstats struct {
	HeapInuse, HeapAlloc uint64
	NumGC                uint32
	PauseNs              [256]uint64 // of collection n at (n+255) % 256
}

// Memstats asks for the runtime's figures as they are.
func (p *Proxy) Memstats() (Memstats, error) {
	var vars struct {
		Memstats Memstats `json:"memstats"`
	}
	answer, err := p.Admin.Call(http.MethodGet, "/debug/vars", nil)
	if err != nil {
		return Memstats{}, err
	}
	if err := json.Unmarshal(answer, &vars); err != nil {
		return Memstats{}, fmt.Errorf("reading /debug/vars: %w", err)
	}
	if vars.Memstats.HeapInuse == 0 {
		return Memstats{}, errors.New("/debug/vars has no memstats")
	}
	return vars.Memstats, nil
}

// PausesSince returns the time for which the world was stopped in each collection since an earlier reading, as far as
// the runtime remembers: the last 256.
func (m Memstats) PausesSince(before Memstats) []time.Duration {
	var pauses []time.Duration
	for n := max(before.NumGC, m.NumGC-min(m.NumGC, 256)) + 1; n <= m.NumGC; n++ {
		pauses = append(pauses, time.Duration(m.PauseNs[(n+255)%256]))
	}
	return pauses
}

// HeapAtRest returns the heap after two collections: the second frees what a sync.Pool or a finalizer held in the first.
func (p *Proxy) HeapAtRest() (Memstats, error) {
	for range 2 {
		if err := p.Admin.CollectGarbage(); err != nil {
			return Memstats{}, err
		}
	}
	return p.Memstats()
}

// Settle waits until the process does nothing, such as keeping a set that it has applied, and returns the CPU time that
// it has used by then.
func (p *Proxy) Settle() (CPUTime, error) {
	const (
		look  = 100 * time.Millisecond
		calm  = 3                    // looks in a row
		noise = 2 * time.Millisecond // of CPU in one look
	)
	last, err := p.CPUNow()
	if err != nil {
		return nil, err
	}
	quiet := 0
	err = Await(p.Name+" to rest", 2*time.Minute, look, func() (bool, error) {
		now, err := p.CPUNow()
		if err != nil {
			return false, err
		}
		used, err := now.Since(last)
		if err != nil {
			return false, err
		}
		if quiet++; used > noise {
			quiet = 0
		}
		last = now
		return quiet > calm, nil
	})
	return last, err
}
