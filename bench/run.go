//go:build linux

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// bench is one run: the load's side, and the proxies that are up.
type bench struct {
	opts       options
	dir        string
	binary     string // pqproxy and caddy-l4
	pki        *pki
	upstreams  map[upstreamKind]*upstream
	contenders []*contender
	absent     []string // contenders that were asked for and are not installed

	mu        sync.Mutex // guards what follows
	processes map[*lab.Process]bool
	closed    bool
}

func newBench(opts options, dir, binary string) (*bench, error) {
	b := &bench{
		opts:      opts,
		dir:       dir,
		binary:    binary,
		upstreams: map[upstreamKind]*upstream{},
		processes: map[*lab.Process]bool{},
	}
	var err error
	if b.pki, err = newPKI(dir, frontNames()); err != nil {
		return nil, fmt.Errorf("making certificates: %w", err)
	}
	for _, kind := range upstreamKinds {
		if b.upstreams[kind], err = startUpstream(kind, b.pki); err != nil {
			return nil, fmt.Errorf("starting upstream %s: %w", kind, err)
		}
	}
	for i := range contenders {
		c := &contenders[i]
		if !slices.Contains(opts.Contenders, c.name) {
			continue
		}
		if c.program != "" {
			if _, err := exec.LookPath(c.program); err != nil {
				fmt.Printf("%s is not installed and is left out\n", c.name)
				b.absent = append(b.absent, c.name)
				continue
			}
		}
		b.contenders = append(b.contenders, c)
	}
	if len(b.contenders) == 0 {
		return nil, errors.New("no contender is installed")
	}
	return b, nil
}

// launch starts a proxy that close will end.
func (b *bench) launch(c *contender, argv, env []string, dir string) (*lab.Process, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errors.New("the run has ended")
	}
	p, err := lab.Start(b.opts.ProxyCore, c.name, argv, env, dir, filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	b.processes[p] = true
	return p, nil
}

func (b *bench) stop(p *lab.Process) {
	p.Stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.processes, p)
}

// close ends every proxy, and no other can be launched.
func (b *bench) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for p := range b.processes {
		p.Stop()
	}
	clear(b.processes)
}

// client returns a client of the front through which r offers an upstream.
func (b *bench) client(r *running, kind upstreamKind) *client {
	return &client{front: r.site.fronts[kind], bench: b}
}

// measurement is one line of the raw results.
type measurement struct {
	Type      string             `json:"type"` // "measurement"
	Time      time.Time          `json:"time"`
	Round     int                `json:"round"` // from 1
	Cell      string             `json:"cell"`
	Contender string             `json:"contender"`
	Seconds   float64            `json:"seconds"` // the whole cell, with warm-up
	Values    map[string]float64 `json:"values"`
}

// measure runs all rounds. Within a round each cell is run by one contender after the other, and each round begins
// with another contender, so that slow drifts of the machine (temperature, neighbours) meet all of them alike.
func (b *bench) measure(filter *regexp.Regexp, raw *lab.RawFile) ([]measurement, error) {
	type key struct {
		contender *contender
		group     tls.CurveID
	}
	var (
		all []measurement
		up  = map[key]*running{}
	)
	for round := 1; round <= b.opts.Rounds; round++ {
		for _, c := range cells() {
			if !filter.MatchString(c.name) || c.fresh && round > b.opts.MemoryRounds {
				continue
			}
			for turn := range b.contenders {
				contender := b.contenders[(turn+round-1)%len(b.contenders)]
				group := c.group
				if group == 0 {
					group = contender.groups()[0]
				}
				if !slices.Contains(contender.groups(), group) {
					continue
				}
				r := up[key{contender, group}]
				if r == nil || c.fresh {
					var err error
					if r, err = b.start(contender, group); err != nil {
						return nil, err
					}
					if !c.fresh {
						up[key{contender, group}] = r
					}
				}
				m, err := b.measureCell(round, c, r)
				if c.fresh {
					b.stop(r.Process)
					err = errors.Join(err, b.allDrained())
				}
				if err != nil {
					return nil, err
				}
				if err := raw.Write(m); err != nil {
					return nil, err
				}
				all = append(all, m)
				fmt.Printf("round %d/%d  %-64s %-9s %9.1f %s\n", round, b.opts.Rounds, c.name, contender.name, m.Values[c.metrics[0].key], c.metrics[0].unit)
			}
		}
	}
	if len(all) == 0 {
		return nil, errors.New("nothing was measured: no contender can run the cells of -run, or they are memory cells and -memory-rounds is 0")
	}
	return all, nil
}

// measureCell runs one cell. Any fault of client, proxy or upstream is an error that ends the run.
func (b *bench) measureCell(round int, c cell, r *running) (measurement, error) {
	start := time.Now()
	values, err := c.run(b, r)
	for _, u := range b.upstreams {
		err = errors.Join(err, u.takeFault())
	}
	if err != nil {
		return measurement{}, fmt.Errorf("round %d, %s, %s: %w\nits log ends:\n%s", round, c.name, r.Name, err, r.LogTail())
	}
	return measurement{
		Type:      "measurement",
		Time:      start.UTC(),
		Round:     round,
		Cell:      c.name,
		Contender: r.Name,
		Seconds:   time.Since(start).Seconds(),
		Values:    values,
	}, nil
}

// allDrained waits for the connections of a proxy that was killed, and forgets how they ended.
func (b *bench) allDrained() error {
	var errs []error
	for _, u := range b.upstreams {
		errs = append(errs, u.drained())
		_ = u.takeFault()
	}
	return errors.Join(errs...)
}

// cost is what a piece of work took.
type cost struct {
	cpu  time.Duration // of the proxy
	wall time.Duration // until the load had finished
}

// measureCPU runs work and returns what the proxy spent on it. Where kind is given, all connections to that upstream
// were opened and closed by work, and their end belongs to it.
func (b *bench) measureCPU(r *running, kind upstreamKind, work func() error) (cost, error) {
	if kind != "" {
		if err := b.upstreams[kind].drained(); err != nil {
			return cost{}, err
		}
	}
	before, err := r.CPUAtRest()
	if err != nil {
		return cost{}, err
	}
	start := time.Now()
	if err := work(); err != nil {
		return cost{}, err
	}
	wall := time.Since(start)
	if kind != "" {
		if err := b.upstreams[kind].drained(); err != nil {
			return cost{}, err
		}
	}
	after, err := r.CPUAtRest()
	if err != nil {
		return cost{}, err
	}
	cpu, err := after.Since(before)
	return cost{cpu: cpu, wall: wall}, err
}

// environment is the first line of the raw results: what a figure means nothing without.
type environment struct {
	Type     string            `json:"type"` // "environment"
	Time     time.Time         `json:"time"`
	CPU      string            `json:"cpu"`
	Cores    int               `json:"cores"`
	Kernel   string            `json:"kernel"`
	Go       string            `json:"go"`
	Commit   string            `json:"commit,omitempty"`
	Versions map[string]string `json:"versions"`
	Absent   []string          `json:"absent,omitempty"`
	Options  options           `json:"options"`
}

func (b *bench) environment() environment {
	e := environment{
		Type:     "environment",
		Time:     time.Now().UTC(),
		CPU:      lab.CPUModel(),
		Cores:    runtime.NumCPU(),
		Kernel:   lab.KernelRelease(),
		Go:       runtime.Version(),
		Commit:   lab.Commit(),
		Versions: map[string]string{},
		Absent:   b.absent,
		Options:  b.opts,
	}
	for _, c := range b.contenders {
		switch c.name {
		case "nginx":
			e.Versions[c.name] = outputLines("nginx -V", "nginx version:", "built with OpenSSL")
		case "haproxy":
			e.Versions[c.name] = outputLines("haproxy -vv", "HAProxy version", "Running on OpenSSL version")
		default:
			e.Versions[c.name] = lab.BinaryVersions(b.binary)
		}
	}
	return e
}

// outputLines runs a command and returns the lines that begin with any of the prefixes.
func outputLines(command string, prefixes ...string) string {
	words := strings.Fields(command)
	output, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	var kept []string
	for line := range strings.Lines(string(output)) {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(line, p) }) {
			kept = append(kept, strings.TrimSpace(line))
		}
	}
	return strings.Join(kept, ", ")
}
