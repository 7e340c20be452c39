//go:build linux

// Command management measures the management plane through its own HTTP handlers: 100,000 domains of 1,000 tenants and
// millions of connection records, on PostgreSQL and on SQLite. How soon edges have a change, what lists, searches and pages of the
// dashboard take, and how many records a second it takes in while people use it. It runs cmd/pqproxy as a process and PostgreSQL
// beside it, and is the edges, the customers and the DNS.
//
//	go run ./bench/management                       # everything, both databases, about 45 minutes
//	go run ./bench/management -quick                # small numbers, to see that all of it works
//	go run ./bench/management -run scenario=poll    # a part
//	go run ./bench/management -database sqlite -minutes 2
//
// ../README.md says what each scenario contains. Linux only: it reads /proc.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
	"github.com/pqproxy/caddy-pqproxy/management/store"
)

// options are the command line. They are written to the first line of the raw results.
type options struct {
	Quick     bool     `json:"quick"`
	Run       string   `json:"run"`
	Databases []string `json:"databases"`
	Minutes   float64  `json:"minutes"` // of the reports
	Binary    string   `json:"binary,omitempty"`
	Size      size     `json:"size"`

	out string
}

// size is how much there is, and how much work each scenario does.
type size struct {
	Domains int `json:"domains"`
	Tenants int `json:"tenants"`
	Large   int `json:"large"`   // domains of the first tenant; the others share the rest
	Records int `json:"records"` // of connections, that are there before
	Days    int `json:"days"`    // over which these are spread

	FeedRounds  int            `json:"feed_rounds"`
	Deltas      int            `json:"deltas"`
	ListRate    int            `json:"list_rate"` // requests a second
	ListSecs    int            `json:"list_secs"`
	SingleRate  int            `json:"single_rate"`
	SingleSecs  int            `json:"single_secs"`
	QueryRate   int            `json:"query_rate"`
	QuerySecs   int            `json:"query_secs"`
	Edges       int            `json:"edges"`        // that poll
	ChangeRate  int            `json:"change_rate"`  // changes a second, while they do
	PollSecs    int            `json:"poll_secs"`    // of each phase
	PageRate    int            `json:"page_rate"`    // pages a second that people look at
	PageSecs    int            `json:"page_secs"`    // of each user
	ReportBatch int            `json:"report_batch"` // records of a report
	ReportRate  map[string]int `json:"report_rate"`  // records a second that are wanted, by database
	WriteRate   int            `json:"write_rate"`   // changes a second beside the reports
	ReportSecs  float64        `json:"report_secs"`
	CheckOf     int            `json:"check_of"` // tenants whose records are compared one by one
}

var (
	fullSize = size{
		Domains: 100_000, Tenants: 1000, Large: 10_000, Records: 5_000_000, Days: 13,
		FeedRounds: 3, Deltas: 300, ListRate: 100, ListSecs: 40, SingleRate: 20, SingleSecs: 20, QueryRate: 10, QuerySecs: 60,
		Edges: 200, ChangeRate: 10, PollSecs: 30, PageRate: 10, PageSecs: 90, ReportBatch: 500, ReportRate: map[string]int{store.Postgres: 12_000, store.SQLite: 4000},
		WriteRate: 5, ReportSecs: fullMinutes * 60, CheckOf: 20,
	}
	quickSize = size{
		Domains: 2000, Tenants: 20, Large: 400, Records: 20_000, Days: 3,
		FeedRounds: 1, Deltas: 10, ListRate: 50, ListSecs: 2, SingleRate: 20, SingleSecs: 1, QueryRate: 20, QuerySecs: 2,
		Edges: 20, ChangeRate: 10, PollSecs: 2, PageRate: 20, PageSecs: 2, ReportBatch: 100, ReportRate: map[string]int{store.Postgres: 1000, store.SQLite: 1000},
		WriteRate: 5, ReportSecs: 4, CheckOf: 3,
	}
)

const fullMinutes = 10

// databases are the choices of -database.
var databases = map[string][]string{
	store.Postgres: {store.Postgres}, store.SQLite: {store.SQLite}, "both": {store.Postgres, store.SQLite},
}

func main() { lab.Main("management", parseOptions, run) }

func parseOptions(args []string) (options, error) {
	var opts options
	var database string
	fs := flag.NewFlagSet("management", flag.ContinueOnError)
	fs.StringVar(&opts.Run, "run", "", "only cells whose name matches this regular `expression`")
	fs.StringVar(&database, "database", "both", "`sqlite`, postgres or both")
	fs.BoolVar(&opts.Quick, "quick", false, "small numbers, under a minute; figures are rough")
	fs.Float64Var(&opts.Minutes, "minutes", 0, fmt.Sprintf("how `long` reports come (default %d, with -quick a few seconds)", fullMinutes))
	records := fs.Int("records", 0, fmt.Sprintf("`number` of connection records that are there before (default %d, with -quick %d)", fullSize.Records, quickSize.Records))
	domains := fs.Int("domains", 0, fmt.Sprintf("`number` of domains (default %d, with -quick %d)", fullSize.Domains, quickSize.Domains))
	fs.StringVar(&opts.Binary, "binary", "", "use this `file` instead of building ./cmd/pqproxy")
	fs.StringVar(&opts.out, "out", "", "result files are `PREFIX`-raw.jsonl and PREFIX-summary.md (default bench/results/DATE-management, DATE-management-partial when anything is left out)")
	if err := fs.Parse(args); err != nil {
		return opts, err
	}
	if fs.NArg() > 0 {
		return opts, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if opts.Databases = databases[database]; opts.Databases == nil {
		return opts, fmt.Errorf("-database is sqlite, postgres or both, not %q", database)
	}
	opts.Size = fullSize
	if opts.Quick {
		opts.Size = quickSize
	}
	if opts.Minutes != 0 {
		opts.Size.ReportSecs = opts.Minutes * 60
	}
	opts.Minutes = opts.Size.ReportSecs / 60
	if *records != 0 {
		opts.Size.Records = *records
	}
	if *domains != 0 {
		opts.Size.Domains = *domains
	}
	s := opts.Size
	if least := s.Large + s.Tenants; s.Domains < least || s.Domains > lab.MaxDomains {
		return opts, fmt.Errorf("-domains %d is not from %d to %d", s.Domains, least, lab.MaxDomains)
	}
	const leastRecords, mostRecords, mostSecs = 1000, 100_000_000, 24 * 3600
	if s.Records < leastRecords || s.Records > mostRecords {
		return opts, fmt.Errorf("-records %d is not from %d to %d", s.Records, leastRecords, mostRecords)
	}
	if s.ReportSecs < 1 || s.ReportSecs > mostSecs {
		return opts, fmt.Errorf("-minutes %v is not from a second to a day", opts.Minutes)
	}
	return opts, nil
}

// partial reports whether something was left out or small, so that it is not taken for a result.
func (o options) partial() bool {
	s := o.Size
	return o.Quick || o.Run != "" || len(o.Databases) < 2 || o.Binary != "" || s.Records != fullSize.Records ||
		s.Domains != fullSize.Domains || s.ReportSecs != fullSize.ReportSecs
}

// run builds, fills, measures, and writes both result files.
func run(ctx context.Context, opts options) (err error) {
	filter, err := regexp.Compile(opts.Run)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	all := cells()
	if !slices.ContainsFunc(all, func(c lab.Cell) bool { return filter.MatchString(c.Name) }) {
		return fmt.Errorf("no cell matches -run %q; their names are like %q", opts.Run, all[0].Name)
	}
	if err := lab.RaiseDescriptorLimit(2 * opts.Size.Edges); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "pqproxy-management-")
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
	out, err := lab.ResultPrefix(opts.out, "management", opts.partial())
	if err != nil {
		return err
	}
	about := lab.EnvironmentNow(binary, opts) // once: the result files will be changes in the checkout
	b := &bench{
		Results: lab.Results{Cells: all, Filter: filter}, opts: opts, dir: dir, proxies: lab.NewProxies(binary, dir),
	}
	defer b.proxies.Close()
	defer context.AfterFunc(ctx, b.proxies.Close)() // without its processes, whatever is being measured fails at once
	if b.Raw, err = lab.CreateRaw(out+lab.RawSuffix, about); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Raw.Close()) }()
	for _, name := range opts.Databases {
		if b.Wants("") && b.wantsOf(name) {
			if err := b.measure(ctx, name); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	summary := renderSummary(about, opts, b.Measured)
	if err := os.WriteFile(out+"-summary.md", []byte(summary), 0o644); err != nil {
		return err
	}
	fmt.Printf("\n%s\nresults: %s%s, %s-summary.md\n", summary, out, lab.RawSuffix, out)
	return nil
}
