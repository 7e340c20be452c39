//go:build linux

// Command bench compares pqproxy with caddy-l4's own tls and proxy handlers (same binary), nginx and HAProxy.
//
//	go run ./bench                     # everything: ten interleaved rounds, under twenty minutes
//	go run ./bench -quick              # one short round, to see that all of it works
//	go run ./bench -run relay -contenders pqproxy,caddy-l4
//
// The main figure is CPU time of the proxy process, all threads and children, per 1,000 connections or per GiB:
// it does not move when the load generator is the slower of the two. README.md says what each scenario contains.
// Linux only: it pins by sched_setaffinity and reads /proc.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// options are the command line. They are written to the first line of the raw results, so that every number names
// how it was made.
type options struct {
	Rounds       int      `json:"rounds"`
	MemoryRounds int      `json:"memory_rounds"`
	Quick        bool     `json:"quick"`
	Run          string   `json:"run"`
	Contenders   []string `json:"contenders"`
	ProxyCore    int      `json:"proxy_core"`
	LoadCore     int      `json:"load_core"`
	Binary       string   `json:"binary,omitempty"` // where it was not built here
	Size         size     `json:"size"`

	out string
}

// size is how much work one measurement of each scenario does. The work is fixed, not the time: every contender and
// round does the same, and a slow one is not measured on less.
type size struct {
	Workers     int   `json:"workers"`     // concurrent clients of the handshake scenarios
	Handshakes  int   `json:"handshakes"`  // counted connections
	RelayBytes  int64 `json:"relay_bytes"` // over all connections of a cell
	Pings       int   `json:"pings"`
	FirstBytes  int   `json:"first_bytes"` // connections, one after the other
	IdleConns   int   `json:"idle_conns"`
	WarmUpConns int   `json:"warm_up_conns"` // uncounted connections before each counted set
}

var (
	fullSize  = size{Workers: 16, Handshakes: 600, RelayBytes: 256 << 20, Pings: 5000, FirstBytes: 5, IdleConns: 5000, WarmUpConns: 64}
	quickSize = size{Workers: 16, Handshakes: 200, RelayBytes: 64 << 20, Pings: 1500, FirstBytes: 3, IdleConns: 1000, WarmUpConns: 32}
)

func main() { lab.Main("bench", parseOptions, run) }

func parseOptions(args []string) (options, error) {
	var (
		opts       options
		contenders string
	)
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.IntVar(&opts.Rounds, "rounds", 10, "interleaved rounds; figures are medians over them")
	fs.IntVar(&opts.MemoryRounds, "memory-rounds", 3, "rounds that also measure memory (each starts fresh processes)")
	fs.BoolVar(&opts.Quick, "quick", false, "one short round, whatever -rounds says; figures are rough")
	fs.StringVar(&opts.Run, "run", "", "only cells whose name matches this regular `expression`")
	fs.StringVar(&contenders, "contenders", strings.Join(contenderNames(), ","), "comma-separated `names`")
	fs.IntVar(&opts.ProxyCore, "proxy-core", 0, "`core` of the proxies")
	fs.IntVar(&opts.LoadCore, "load-core", 1, "`core` of clients and upstreams")
	fs.StringVar(&opts.out, "out", "", "result files are `PREFIX`-raw.jsonl and PREFIX-summary.md (default bench/results/DATE, DATE-partial when anything is left out)")
	fs.StringVar(&opts.Binary, "binary", "", "use this `file` for pqproxy and caddy-l4 instead of building ./cmd/pqproxy")
	if err := fs.Parse(args); err != nil {
		return opts, err
	}
	if fs.NArg() > 0 {
		return opts, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	opts.Contenders = strings.Split(contenders, ",")
	for _, name := range opts.Contenders {
		if !slices.Contains(contenderNames(), name) {
			return opts, fmt.Errorf("unknown contender %q, known are %s", name, strings.Join(contenderNames(), ", "))
		}
	}
	if opts.ProxyCore == opts.LoadCore {
		return opts, errors.New("-proxy-core and -load-core must differ: the load would be measured with the proxy")
	}
	if opts.Rounds < 1 || opts.MemoryRounds < 0 {
		return opts, errors.New("-rounds must be at least 1 and -memory-rounds at least 0")
	}
	opts.Size = fullSize
	if opts.Quick {
		opts.Size, opts.Rounds, opts.MemoryRounds = quickSize, 1, 1
	}
	return opts, nil
}

// partial reports whether something was left out, so that a committed result is never overwritten by a glance.
func (o options) partial() bool {
	return o.Quick || o.Run != "" || len(o.Contenders) < len(contenderNames()) || o.Binary != ""
}

// run sets up the two cores, the upstreams and the contenders, measures, and writes both result files.
func run(ctx context.Context, opts options) (err error) {
	filter, err := regexp.Compile(opts.Run)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if !slices.ContainsFunc(cells(), func(c cell) bool { return filter.MatchString(c.name) }) {
		return fmt.Errorf("no cell matches -run %q; their names are like %q", opts.Run, cells()[0].name)
	}
	if err := lab.RaiseDescriptorLimit(opts.Size.IdleConns); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "pqproxy-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	binary := opts.Binary
	if binary == "" {
		if binary, err = lab.BuildProxy(ctx, dir); err != nil {
			return err
		}
	}
	// Only now: the compiler may use every core.
	if err := lab.PinSelf(opts.LoadCore); err != nil {
		return err
	}
	runtime.GOMAXPROCS(1)

	b, err := newBench(opts, dir, binary)
	if err != nil {
		return err
	}
	defer b.close()
	defer context.AfterFunc(ctx, b.close)() // without its proxies, whatever is being measured fails at once

	out, err := resultPrefix(opts)
	if err != nil {
		return err
	}
	about := b.environment() // once: the result files will be changes in the checkout
	raw, err := lab.CreateRaw(out+lab.RawSuffix, about)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()

	measured, err := b.measure(filter, raw)
	if err != nil {
		return err
	}
	summary := renderSummary(about, measured)
	if err := os.WriteFile(out+"-summary.md", []byte(summary), 0o644); err != nil {
		return err
	}
	fmt.Printf("\n%s\nresults: %s%s, %s-summary.md\n", summary, out, lab.RawSuffix, out)
	return nil
}

// resultPrefix chooses where results go.
func resultPrefix(opts options) (string, error) {
	prefix := opts.out
	if prefix == "" {
		root, err := lab.ModuleRoot()
		if err != nil {
			return "", err
		}
		prefix = filepath.Join(root, "bench", "results", time.Now().UTC().Format(time.DateOnly))
		if opts.partial() {
			prefix += "-partial"
		}
	}
	return lab.FreePrefix(prefix)
}
