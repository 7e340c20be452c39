//go:build linux

// Command live measures how pqproxy takes changes of its domains: a million of them, deltas on top, and a thousand
// connections that must not notice. It runs cmd/pqproxy as a process and is its management plane, its operator, its
// clients and its upstreams; the same is tried with caddy-l4's routes and Caddy's /config API.
//
//	go run ./bench/live                  # everything, under ten minutes
//	go run ./bench/live -quick           # small numbers, to see that all of it works
//	go run ./bench/live -run live        # a part
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
	"slices"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// options are the command line. They are written to the first line of the raw results.
type options struct {
	Quick   bool   `json:"quick"`
	Run     string `json:"run"`
	Domains int    `json:"domains"` // of the large sets
	Binary  string `json:"binary,omitempty"`
	Size    size   `json:"size"`

	out string
}

// size is how much work each scenario does.
type size struct {
	FullSets       int `json:"full_sets"`        // that replace each other with nothing else going on
	HandshakeRate  int `json:"handshake_rate"`   // a second
	HandshakeSecs  int `json:"handshake_secs"`   // of each phase, idle and during apply
	HandshakeRound int `json:"handshake_rounds"` // pairs of phases
	Deltas         int `json:"deltas"`
	DeltaDomains   int `json:"delta_domains"` // changed by each
	LookupCount    int `json:"lookup_count"`  // runs of each benchmark

	Conns        int `json:"conns"`         // of the live scenarios
	Names        int `json:"names"`         // that have connections, of each source
	FrameMillis  int `json:"frame_millis"`  // between frames of a connection, each way
	VisitRate    int `json:"visit_rate"`    // new connections a second beside
	QuietSecs    int `json:"quiet_secs"`    // before the changes
	ChangeSecs   int `json:"change_secs"`   // over which they are spread
	Steps        int `json:"steps"`         // in each one delta, single requests, a change set
	StepDelta    int `json:"step_delta"`    // changes of its delta
	StepSingle   int `json:"step_single"`   // PUT and DELETE of one domain
	StepPatch    int `json:"step_patch"`    // changes of its PATCH
	Resyncs      int `json:"resyncs"`       // full sets beside
	Reloads      int `json:"reloads"`       // of the config beside, each changing a static domain in use
	LiveDomains  int `json:"live_domains"`  // beside those with connections
	RouteChanges int `json:"route_changes"` // at most, of caddy-l4
	RouteSecs    int `json:"route_secs"`    // over which they are made, at most
	OtherRoutes  int `json:"other_routes"`  // of caddy-l4, beside those with connections
}

var (
	fullSize = size{
		FullSets: 3, HandshakeRate: 100, HandshakeSecs: 10, HandshakeRound: 5, Deltas: 20, DeltaDomains: 1000, LookupCount: 5,
		Conns: 1000, Names: 100, FrameMillis: 250, VisitRate: 20, QuietSecs: 10, ChangeSecs: 60,
		Steps: 100, StepDelta: 50, StepSingle: 30, StepPatch: 20, Resyncs: 20, Reloads: 10, LiveDomains: 20_000,
		RouteChanges: 200, RouteSecs: 60, OtherRoutes: 1000,
	}
	quickSize = size{
		FullSets: 2, HandshakeRate: 100, HandshakeSecs: 1, HandshakeRound: 1, Deltas: 4, DeltaDomains: 100, LookupCount: 1,
		Conns: 60, Names: 10, FrameMillis: 100, VisitRate: 20, QuietSecs: 2, ChangeSecs: 4,
		Steps: 10, StepDelta: 20, StepSingle: 10, StepPatch: 10, Resyncs: 4, Reloads: 2, LiveDomains: 500,
		RouteChanges: 20, RouteSecs: 4, OtherRoutes: 50,
	}
)

const (
	fullDomains  = 1_000_000
	quickDomains = 20_000
)

// The large sets are about domains: orders of a million certificates would be measured along with them.
func init() { lab.TypicalCertificate = `,"certificate":{"source":"internal"}` }

func main() { lab.Main("live", parseOptions, run) }

func parseOptions(args []string) (options, error) {
	var opts options
	fs := flag.NewFlagSet("live", flag.ContinueOnError)
	fs.StringVar(&opts.Run, "run", "", "only cells whose name matches this regular `expression`")
	fs.IntVar(&opts.Domains, "domains", fullDomains, fmt.Sprintf("`number` of domains in the large sets (with -quick: %d)", quickDomains))
	fs.BoolVar(&opts.Quick, "quick", false, "small numbers, under a minute; figures are rough")
	fs.StringVar(&opts.Binary, "binary", "", "use this `file` instead of building ./cmd/pqproxy")
	fs.StringVar(&opts.out, "out", "", "result files are `PREFIX`-raw.jsonl and PREFIX-summary.md (default bench/results/DATE-live, DATE-live-partial when anything is left out)")
	if err := fs.Parse(args); err != nil {
		return opts, err
	}
	if fs.NArg() > 0 {
		return opts, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	given := false
	fs.Visit(func(f *flag.Flag) { given = given || f.Name == "domains" })
	opts.Size = fullSize
	if opts.Quick {
		opts.Size = quickSize
		if !given {
			opts.Domains = quickDomains
		}
	}
	if least := opts.Size.Deltas * opts.Size.DeltaDomains; opts.Domains < least || opts.Domains > lab.MaxDomains/2 {
		return opts, fmt.Errorf("-domains %d is not from %d to %d", opts.Domains, least, lab.MaxDomains/2)
	}
	return opts, nil
}

// partial reports whether something was left out or small, so that it is not taken for a result.
func (o options) partial() bool {
	return o.Quick || o.Run != "" || o.Domains != fullDomains || o.Binary != ""
}

// run builds, measures, and writes both result files.
func run(ctx context.Context, opts options) (err error) {
	filter, err := regexp.Compile(opts.Run)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if !slices.ContainsFunc(cells, func(c lab.Cell) bool { return filter.MatchString(c.Name) }) {
		return fmt.Errorf("no cell matches -run %q; their names are like %q", opts.Run, cells[0].Name)
	}
	if runtime.NumCPU() < 2 {
		return errors.New("two cores are needed: the load would be measured with the proxy")
	}
	if err := lab.RaiseDescriptorLimit(2 * opts.Size.Conns); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "pqproxy-live-")
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
	b, err := newBench(opts, filter, dir, binary)
	if err != nil {
		return err
	}
	defer b.proxies.Close()
	defer context.AfterFunc(ctx, b.proxies.Close)() // without its proxies, whatever is being measured fails at once
	if err := b.buildLookup(ctx); err != nil {
		return err
	}
	// Only now: the compiler may use every core.
	if err := lab.PinSelf(loadCore); err != nil {
		return err
	}
	runtime.GOMAXPROCS(1)

	out, err := lab.ResultPrefix(opts.out, "live", opts.partial())
	if err != nil {
		return err
	}
	about := lab.EnvironmentNow(binary, opts) // once: the result files will be changes in the checkout
	if b.Raw, err = lab.CreateRaw(out+lab.RawSuffix, about); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Raw.Close()) }()

	if err := b.measure(ctx); err != nil {
		return err
	}
	summary := renderSummary(about, opts.Domains, b.Measured)
	if err := os.WriteFile(out+"-summary.md", []byte(summary), 0o644); err != nil {
		return err
	}
	fmt.Printf("\n%s\nresults: %s%s, %s-summary.md\n", summary, out, lab.RawSuffix, out)
	return nil
}
