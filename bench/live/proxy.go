//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// Cores: the load has one for itself. A proxy has the other, or with lab.AnyCore all that the machine has.
const (
	proxyCore = 0
	loadCore  = 1
)

// object is a JSON object of a configuration.
type object = map[string]any

// proxy is a Caddy process under test, pqproxy or caddy-l4, that listens and can be asked.
type proxy struct {
	*lab.Process
	admin *lab.Admin
	addr  string // of its one listener
}

// errEndedEarly is of a proxy that could not start; a port that was free may have been taken meanwhile.
var errEndedEarly = errors.New("ended before it was ready")

// launch starts a proxy on a core and waits until it answers on its admin endpoint and accepts connections. apps makes
// its `apps` for a listen address. End it with stop.
func (b *bench) launch(name string, core int, apps func(addr string) object) (*proxy, error) {
	var faults []error
	for range 3 {
		p, err := b.launchOnce(name, core, apps)
		if err == nil {
			return p, nil
		}
		faults = append(faults, err)
		if !errors.Is(err, errEndedEarly) {
			break
		}
	}
	return nil, errors.Join(faults...)
}

func (b *bench) launchOnce(name string, core int, apps func(addr string) object) (*proxy, error) {
	dir, err := os.MkdirTemp(b.dir, name+"-")
	if err != nil {
		return nil, err
	}
	addrs, err := lab.FreeAddrs(1)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "admin.sock")
	content, err := json.MarshalIndent(object{
		"admin": object{"listen": "unix/" + socket, "config": object{"persist": false}},
		"apps":  apps(addrs[0]),
	}, "", "\t")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "config.json")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return nil, err
	}
	env := lab.CleanEnv(dir)
	if core != lab.AnyCore {
		env = append(env, "GOMAXPROCS=1")
	}
	process, err := b.start(core, name, []string{b.binary, "run", "--config", file}, env, dir, dir)
	if err != nil {
		return nil, err
	}
	p := &proxy{Process: process, admin: lab.NewAdmin(socket), addr: addrs[0]}
	if err := p.awaitReady(); err != nil {
		tail := p.LogTail()
		b.stop(p)
		return nil, fmt.Errorf("%s: %w\nits log ends:\n%s", name, err, tail)
	}
	return p, nil
}

// awaitReady waits for the admin endpoint, which Caddy opens before its apps, and then for the config: a
// request for it waits until it is in force.
func (p *proxy) awaitReady() error {
	return await("the admin endpoint", 20*time.Second, 20*time.Millisecond, func() (bool, error) {
		if !p.Running() {
			return false, errEndedEarly
		}
		_, err := p.admin.Call(http.MethodGet, "/config/admin/listen", nil)
		return err == nil, nil
	})
}

// stop ends a proxy.
func (b *bench) stop(p *proxy) {
	p.admin.Close()
	b.end(p.Process)
}

// await asks done every so often until it is true or fails, at most for patience.
func await(what string, patience, every time.Duration, done func() (bool, error)) error {
	for end := time.Now().Add(patience); ; time.Sleep(every) {
		ok, err := done()
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("waited %v in vain for %s", patience, what)
		}
	}
}

// managed makes the apps of a pqproxy that polls a feed and serves static domains. The interval is the least there is:
// it is waited for after every answer that was not held, such as a full set behind a 410.
func managed(feedURL string, static []object) func(addr string) object {
	return func(addr string) object {
		return object{
			"layer4": object{"servers": object{"front": object{
				"listen": []string{"pqproxy/" + addr},
				"routes": []object{{"handle": []object{{"handler": "pqproxy"}}}},
			}}},
			"pqproxy": object{
				"domains":         static,
				"management":      object{"url": feedURL, "interval": "1s"},
				"upstream_policy": object{"allow": []string{"127.0.0.0/8", "10.0.0.0/8"}},
			},
		}
	}
}

// status is what we read of GET /pqproxy/status.
type status struct {
	Revision   json.RawMessage `json:"revision"` // a number where the set has one
	Domains    map[string]int  `json:"domains"`  // by source
	LastSync poll `json:"last_sync"`
}

// poll is how the last one went.
type poll struct {
	Revision json.RawMessage `json:"revision"`
	Result   string          `json:"result"`
	Error    string          `json:"error"`
	Duration float64         `json:"duration"` // seconds, from the complete answer to the new table
}

// addReported adds what the status says itself of the poll that brought a revision, while that is the last one.
func (s status) addReported(values map[string]float64, key string, revision uint64, unit time.Duration) {
	if last := s.LastSync; last.Result == "applied" && string(last.Revision) == fmt.Sprint(revision) {
		values[key] = last.Duration * float64(time.Second/unit)
	}
}

func (p *proxy) status() (status, error) {
	var s status
	answer, err := p.admin.Call(http.MethodGet, "/pqproxy/status", nil)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(answer, &s); err != nil {
		return s, fmt.Errorf("reading the status: %w", err)
	}
	return s, nil
}

// awaitRevision asks for the status until it shows the revision, and returns when that was seen. A failed poll ends
// the wait.
func (p *proxy) awaitRevision(revision uint64, every time.Duration) (time.Time, error) {
	want := fmt.Sprint(revision)
	var seen time.Time
	err := await("revision "+want, 5*time.Minute, every, func() (bool, error) {
		s, err := p.status()
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

// memstats is what we read of runtime.MemStats, which Caddy's /debug/vars shows.
type memstats struct {
	HeapInuse, HeapAlloc uint64
	NumGC                uint32
	PauseNs              [256]uint64 // of collection n at (n+255) % 256
}

func (p *proxy) memstats() (memstats, error) {
	var vars struct {
		Memstats memstats `json:"memstats"`
	}
	answer, err := p.admin.Call(http.MethodGet, "/debug/vars", nil)
	if err != nil {
		return memstats{}, err
	}
	if err := json.Unmarshal(answer, &vars); err != nil {
		return memstats{}, fmt.Errorf("reading /debug/vars: %w", err)
	}
	if vars.Memstats.HeapInuse == 0 {
		return memstats{}, errors.New("/debug/vars has no memstats")
	}
	return vars.Memstats, nil
}

// pausesSince returns the time for which the world was stopped in each collection since an earlier reading, as far as
// the runtime remembers: the last 256.
func (m memstats) pausesSince(before memstats) []time.Duration {
	var pauses []time.Duration
	for n := max(before.NumGC, m.NumGC-min(m.NumGC, 256)) + 1; n <= m.NumGC; n++ {
		pauses = append(pauses, time.Duration(m.PauseNs[(n+255)%256]))
	}
	return pauses
}

// heapAtRest returns the heap after two collections: the second frees what a sync.Pool or a finalizer held in the first.
func (p *proxy) heapAtRest() (memstats, error) {
	for range 2 {
		if err := p.admin.CollectGarbage(); err != nil {
			return memstats{}, err
		}
	}
	return p.memstats()
}

// settle waits until the process does nothing, such as keeping a set that it has applied, and returns the CPU time that
// it has used by then.
func (p *proxy) settle() (lab.CPUTime, error) {
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
	err = await(p.Name+" to rest", 2*time.Minute, look, func() (bool, error) {
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
