//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// lookupBench is BenchmarkLookup of the root package, built as a test binary: finding the route of a name is inside the
// process and too quick to be seen from outside. Its comment says what is in the loop.
type lookupBench struct {
	binary string
	root   string // of the module, where tests run
}

const lookupName = "BenchmarkLookup"

// buildLookup compiles it, before the load is pinned.
func (b *bench) buildLookup(ctx context.Context) error {
	if !b.Wants(scenarioLookup) {
		return nil
	}
	root, err := lab.ModuleRoot()
	if err != nil {
		return err
	}
	l := &lookupBench{binary: filepath.Join(b.dir, "lookup.test"), root: root}
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", l.binary, "github.com/pqproxy/caddy-pqproxy")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	fmt.Println("building the tests of the root package")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("building %s: %w", lookupName, err)
	}
	list, err := exec.CommandContext(ctx, l.binary, "-test.list=^"+lookupName+"$").Output()
	if err != nil {
		return fmt.Errorf("listing benchmarks: %w", err)
	}
	if !strings.Contains(string(list), lookupName) {
		return fmt.Errorf("the root package has no %s; choose other cells with -run", lookupName)
	}
	b.lookup = l
	return nil
}

// measureLookup runs it on the proxy's core.
func (b *bench) measureLookup(ctx context.Context) error {
	dir := filepath.Join(b.dir, "lookup")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	argv := []string{b.lookup.binary, "-test.run=^$", "-test.bench=^" + lookupName + "$", "-test.count=" + strconv.Itoa(b.opts.Size.LookupCount), "-test.cpu=1"}
	p, err := b.proxies.Run(proxyCore, lookupName, argv, lab.CleanEnv(dir), b.lookup.root, dir)
	if err != nil {
		return err
	}
	defer b.proxies.End(p)
	if err := p.Wait(ctx); err != nil {
		return fmt.Errorf("%s: %w\nits output ends:\n%s", lookupName, err, p.LogTail())
	}
	output, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	results, err := parseBenchmark(output)
	if err != nil {
		return fmt.Errorf("%s: %w, its output ends:\n%s", lookupName, err, p.LogTail())
	}
	rounds := map[string]int{}
	for _, r := range results {
		cell := scenarioLookup + "/" + strings.TrimPrefix(r.name, lookupName+"/")
		if _, ok := lab.FindCell(cells, cell); !ok {
			continue // a sub-benchmark of another kind
		}
		rounds[cell]++
		if err := b.Record(cell, rounds[cell], map[string]float64{"ns": r.ns}, nil, nil); err != nil {
			return err
		}
	}
	if len(rounds) == 0 {
		return fmt.Errorf("%s has no sub-benchmark named as a cell", lookupName)
	}
	return nil
}

// benchmarkResult is a line of `go test -bench`.
type benchmarkResult struct {
	name string // without the number of cores
	ns   float64
}

// parseBenchmark reads the lines of results: name, iterations, figure, ns/op, and more.
func parseBenchmark(output []byte) ([]benchmarkResult, error) {
	var results []benchmarkResult
	for lines := bufio.NewScanner(bytes.NewReader(output)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") || fields[3] != "ns/op" {
			continue
		}
		ns, err := strconv.ParseFloat(fields[2], 64)
		if err != nil {
			return nil, fmt.Errorf("malformed line %q: %w", lines.Text(), err)
		}
		name := fields[0]
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			if _, err := strconv.Atoi(name[i+1:]); err == nil {
				name = name[:i]
			}
		}
		results = append(results, benchmarkResult{name, ns})
	}
	if len(results) == 0 {
		return nil, errors.New("no results")
	}
	return results, nil
}
