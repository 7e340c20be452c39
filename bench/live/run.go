//go:build linux

package main

import (
	"context"
	"fmt"
	"regexp"
	"runtime"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// bench is one run: what its scenarios share.
type bench struct {
	lab.Results
	opts    options
	dir     string
	binary  string
	pki     *pki
	lookup  *lookupBench // nil: not wanted
	proxies *lab.Proxies
}

func newBench(opts options, filter *regexp.Regexp, dir, binary string) (*bench, error) {
	p, err := newPKI(dir)
	if err != nil {
		return nil, fmt.Errorf("making certificates: %w", err)
	}
	return &bench{
		Results: lab.Results{Cells: cells, Filter: filter},
		opts:    opts, dir: dir, binary: binary, pki: p, proxies: lab.NewProxies(binary, dir),
	}, nil
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
			wanted = wanted || b.Wants(prefix)
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
