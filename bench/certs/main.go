//go:build linux

// Command certs measures what certificates cost pqproxy where there are many: 100,000 domains whose certificates are in
// storage, and a table of a million. How soon the first handshake is served after a start, what memory a visited name
// costs, and what handshakes feel of the sweep. It runs cmd/pqproxy as a process and is its management plane, its
// clients and its upstream; nobody issues anything, the CA is a port that is closed.
//
//	go run ./bench/certs                   # everything, under half an hour
//	go run ./bench/certs -quick            # small numbers, to see that all of it works
//	go run ./bench/certs -run start        # a part
//
// ../README.md says what each scenario contains. Linux only: it pins by sched_setaffinity and reads /proc.
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

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// options are the command line. They are written to the first line of the raw results.
type options struct {
	Quick  bool   `json:"quick"`
	Run    string `json:"run"`
	Stored int    `json:"domains_stored"` // that have their certificates in storage
	Table  int    `json:"domains_table"`  // in the large table, of which few have one
	Binary string `json:"binary,omitempty"`
	Size   size   `json:"size"`

	out string
}

// size is how much work each scenario does.
type size struct {
	StartRounds     int `json:"start_rounds"`
	MemoryRounds    int `json:"memory_rounds"`
	VisitSome       int `json:"visit_some"` // names that are visited, and then visited again
	VisitMany       int `json:"visit_many"` // names that have been visited in the end
	HandshakeRounds int `json:"handshake_rounds"`
	HandshakeRate   int `json:"handshake_rate"` // a second
	HandshakeSecs   int `json:"handshake_secs"` // of each phase
	WarmSecs        int `json:"warm_secs"`      // between a start and a phase
}

var (
	fullSize = size{
		StartRounds: 5, MemoryRounds: 3, VisitSome: 1000, VisitMany: 10_000,
		HandshakeRounds: 6, HandshakeRate: 100, HandshakeSecs: 20, WarmSecs: 5,
	}
	quickSize = size{
		StartRounds: 1, MemoryRounds: 1, VisitSome: 100, VisitMany: 1000,
		HandshakeRounds: 1, HandshakeRate: 100, HandshakeSecs: 2, WarmSecs: 1,
	}
)

const (
	fullStored, quickStored = 100_000, 14_000
	fullTable, quickTable   = 1_000_000, 5000
)

func main() { lab.Main("certs", parseOptions, run) }

func parseOptions(args []string) (options, error) {
	var opts options
	fs := flag.NewFlagSet("certs", flag.ContinueOnError)
	fs.StringVar(&opts.Run, "run", "", "only cells whose name matches this regular `expression`")
	fs.IntVar(&opts.Stored, "domains-stored", fullStored, fmt.Sprintf("`number` of domains with certificates in storage (with -quick: %d)", quickStored))
	fs.IntVar(&opts.Table, "domains-table", fullTable, fmt.Sprintf("`number` of domains in the large table (with -quick: %d)", quickTable))
	fs.BoolVar(&opts.Quick, "quick", false, "small numbers, under a minute; figures are rough")
	fs.StringVar(&opts.Binary, "binary", "", "use this `file` instead of building ./cmd/pqproxy")
	fs.StringVar(&opts.out, "out", "", "result files are `PREFIX`-raw.jsonl and PREFIX-summary.md (default bench/results/DATE-certs, DATE-certs-partial when anything is left out)")
	if err := fs.Parse(args); err != nil {
		return opts, err
	}
	if fs.NArg() > 0 {
		return opts, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	opts.Size = fullSize
	if opts.Quick {
		opts.Size = quickSize
		if !given["domains-stored"] {
			opts.Stored = quickStored
		}
		if !given["domains-table"] {
			opts.Table = quickTable
		}
	}
	if least := opts.Size.VisitMany + servedNames; opts.Stored < least || opts.Stored > lab.MaxDomains {
		return opts, fmt.Errorf("-domains-stored %d is not from %d to %d", opts.Stored, least, lab.MaxDomains)
	}
	if opts.Table < servedNames || opts.Table > lab.MaxDomains {
		return opts, fmt.Errorf("-domains-table %d is not from %d to %d", opts.Table, servedNames, lab.MaxDomains)
	}
	return opts, nil
}

// partial reports whether something was left out or small, so that it is not taken for a result.
func (o options) partial() bool {
	return o.Quick || o.Run != "" || o.Stored != fullStored || o.Table != fullTable || o.Binary != ""
}

// run builds, prepares, measures, and writes both result files.
func run(ctx context.Context, opts options) (err error) {
	filter, err := regexp.Compile(opts.Run)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	results := lab.Results{Cells: cells, Filter: filter}
	if !results.Wants("") {
		return fmt.Errorf("no cell matches -run %q; their names are like %q", opts.Run, cells[0].Name)
	}
	if runtime.NumCPU() < 2 {
		return errors.New("two cores are needed: the load would be measured with the proxy")
	}
	dir, err := os.MkdirTemp("", "pqproxy-certs-")
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
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	b, err := newBench(opts, results, dir, binary)
	if err != nil {
		return err
	}
	defer b.close()
	defer context.AfterFunc(ctx, b.proxies.Close)() // without its proxies, whatever is being measured fails at once
	out, err := lab.ResultPrefix(opts.out, "certs", opts.partial())
	if err != nil {
		return err
	}
	about := lab.EnvironmentNow(binary, opts) // once: the result files will be changes in the checkout
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if b.Raw, err = lab.CreateRaw(out+lab.RawSuffix, about); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Raw.Close()) }()

	if err := b.measure(); err != nil {
		return err
	}
	summary := renderSummary(about, opts, b.Measured)
	if err := os.WriteFile(out+"-summary.md", []byte(summary), 0o644); err != nil {
		return err
	}
	fmt.Printf("\n%s\nresults: %s%s, %s-summary.md\n", summary, out, lab.RawSuffix, out)
	return nil
}
