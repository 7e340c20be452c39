//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// bench is one run: what its scenarios share.
type bench struct {
	opts   options
	filter *regexp.Regexp
	dir    string
	binary string
	pki    *pki
	lookup *lookupBench // nil: not wanted

	raw      *lab.RawFile
	measured []measurement

	mu        sync.Mutex // guards what follows
	processes map[*lab.Process]bool
	closed    bool
}

func newBench(opts options, filter *regexp.Regexp, dir, binary string) (*bench, error) {
	p, err := newPKI(dir)
	if err != nil {
		return nil, fmt.Errorf("making certificates: %w", err)
	}
	return &bench{opts: opts, filter: filter, dir: dir, binary: binary, pki: p, processes: map[*lab.Process]bool{}}, nil
}

// start starts a process in a folder, with its output in another, that close will end.
func (b *bench) start(core int, name string, argv, env []string, dir, logDir string) (*lab.Process, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errors.New("the run has ended")
	}
	p, err := lab.Start(core, name, argv, env, dir, filepath.Join(logDir, "log"))
	if err != nil {
		return nil, err
	}
	b.processes[p] = true
	return p, nil
}

func (b *bench) end(p *lab.Process) {
	p.Stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.processes, p)
}

// close ends every process, and no other can be started.
func (b *bench) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for p := range b.processes {
		p.Stop()
	}
	clear(b.processes)
}

// wants reports whether any cell is asked for whose name begins so.
func (b *bench) wants(prefix string) bool {
	for _, c := range cells {
		if strings.HasPrefix(c.name, prefix) && b.filter.MatchString(c.name) {
			return true
		}
	}
	return false
}

// measure runs all scenarios that are asked for.
func (b *bench) measure(ctx context.Context) error {
	for _, part := range []struct {
		prefixes []string
		run      func() error
	}{
		{largePrefixes("1"), func() error { return b.measureLarge("1", proxyCore) }},
		{largePrefixes("all"), func() error { return b.measureLarge("all", lab.AnyCore) }},
		{[]string{scenarioLookup}, func() error { return b.measureLookup(ctx) }},
		{[]string{livePQProxy}, b.measureLive},
		{[]string{liveCaddyL4}, b.measureRoutes},
	} {
		wanted := false
		for _, prefix := range part.prefixes {
			wanted = wanted || b.wants(prefix)
		}
		if !wanted {
			continue
		}
		if err := part.run(); err != nil {
			return err
		}
		runtime.GC() // sets of the part before
	}
	return nil
}

// measurement is one line of the raw results.
type measurement struct {
	Type   string             `json:"type"` // "measurement"
	Time   time.Time          `json:"time"`
	Round  int                `json:"round"` // from 1
	Cell   string             `json:"cell"`
	Values map[string]float64 `json:"values"`
	// Samples are single times in ms, where a figure is made of them.
	Samples map[string][]float64 `json:"samples,omitempty"`
	// Faults are what went wrong without ending the run, the first few.
	Faults []string `json:"faults,omitempty"`
}

// record writes a measurement, if its cell is asked for.
func (b *bench) record(cellName string, round int, values map[string]float64, samples map[string][]float64, faults []error) error {
	c, ok := findCell(cellName)
	if !ok {
		return fmt.Errorf("%q is no cell", cellName)
	}
	if !b.filter.MatchString(cellName) {
		return nil
	}
	m := measurement{Type: "measurement", Time: time.Now().UTC(), Round: round, Cell: cellName, Values: values, Samples: samples}
	const most = 20
	for _, fault := range faults[:min(len(faults), most)] {
		m.Faults = append(m.Faults, fault.Error())
	}
	main := c.metrics[0]
	fmt.Printf("%-44s %2d  %10s %s\n", cellName, round, lab.Number(values[main.key]), main.unit)
	for _, fault := range m.Faults {
		fmt.Println("    " + strings.ReplaceAll(fault, "\n", "\n    "))
	}
	b.measured = append(b.measured, m)
	return b.raw.Write(m)
}

// environment is the first line of the raw results: what a figure means nothing without.
type environment struct {
	Type    string    `json:"type"` // "environment"
	Time    time.Time `json:"time"`
	CPU     string    `json:"cpu"`
	Cores   int       `json:"cores"`
	Kernel  string    `json:"kernel"`
	Go      string    `json:"go"`
	Commit  string    `json:"commit,omitempty"`
	Binary  string    `json:"binary"` // versions in it
	Load    string    `json:"load"`   // /proc/loadavg before: of others, and of what was built
	Options options   `json:"options"`
}

func (b *bench) environment() environment {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		load = []byte(err.Error())
	}
	return environment{
		Type:    "environment",
		Time:    time.Now().UTC(),
		CPU:     lab.CPUModel(),
		Cores:   runtime.NumCPU(),
		Kernel:  lab.KernelRelease(),
		Go:      runtime.Version(),
		Commit:  lab.Commit(),
		Binary:  lab.BinaryVersions(b.binary),
		Load:    strings.TrimSpace(string(load)),
		Options: b.opts,
	}
}
