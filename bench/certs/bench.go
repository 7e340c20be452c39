//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// Cores: the load has one for itself, the proxy the other.
const (
	proxyCore = 0
	loadCore  = 1
)

// bench is one run: what its scenarios share.
type bench struct {
	lab.Results
	opts     options
	dir      string
	proxies  *lab.Proxies
	caPort   *closedPort // where the CA would be
	ca       *authority
	upstream sink
	sets     map[string]*set
}

func newBench(opts options, results lab.Results, dir, binary string) (*bench, error) {
	port, err := closePort("")
	if err != nil {
		return nil, err
	}
	b := &bench{Results: results, opts: opts, dir: dir, proxies: lab.NewProxies(binary, dir), caPort: port}
	if b.ca, err = newAuthority("http://" + port.addr + "/directory"); err != nil {
		b.close()
		return nil, fmt.Errorf("making a CA: %w", err)
	}
	if b.upstream, err = startSink(); err != nil {
		b.close()
		return nil, err
	}
	to := b.upstream.Addr().String()
	few := spread(servedNames, opts.Table)
	b.sets = map[string]*set{
		setTen:    newSet(setTen, few, few, to),
		setStored: newSet(setStored, upTo(opts.Stored), upTo(opts.Stored), to),
		setTable:  newSet(setTable, upTo(opts.Table), few, to),
	}
	return b, nil
}

// close ends every process, and what serves them.
func (b *bench) close() {
	b.proxies.Close()
	for _, s := range b.sets {
		s.free()
	}
	if b.upstream.Listener != nil {
		_ = b.upstream.Close()
	}
	b.caPort.free()
}

// prepare fills storages, on all cores, and then moves the load to its own.
func (b *bench) prepare(ctx context.Context) error {
	for _, name := range b.setsWanted() {
		if err := b.sets[name].prepare(ctx, b); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	runtime.GC()
	if err := lab.PinSelf(loadCore); err != nil {
		return err
	}
	runtime.GOMAXPROCS(1)
	return nil
}

// setsWanted are the sets of all cells that are asked for, and ten, which all are compared with.
func (b *bench) setsWanted() []string {
	wanted := []string{setTen}
	for _, name := range []string{setStored, setTable} {
		for _, c := range b.Cells {
			if strings.Contains(c.Name, "/set="+name) && b.Filter.MatchString(c.Name) {
				wanted = append(wanted, name)
				break
			}
		}
	}
	return wanted
}

// measure runs all scenarios that are asked for.
func (b *bench) measure() error {
	for _, part := range []struct {
		scenario string
		run      func() error
	}{
		{scenarioStart, b.measureStarts},
		{scenarioMemory, b.measureMemory},
		{scenarioHandshake, b.measureHandshakes},
	} {
		if !b.Wants(part.scenario) && !(part.scenario == scenarioMemory && b.Wants(scenarioVisit)) {
			continue
		}
		if err := part.run(); err != nil {
			return err
		}
	}
	return nil
}

// start starts an edge of a set and waits until a client's handshake with one of its names has succeeded. It returns how
// long that took from the start of the process. from is where the edge has its domains from: a feed, or what the edge
// before has kept, while the feed is down.
func (b *bench) start(s *set, from, name string) (*lab.Proxy, time.Duration, error) {
	if err := forgetOrders(s.storage); err != nil {
		return nil, 0, err
	}
	l := lab.Launch{Name: "pqproxy", Core: proxyCore}
	switch from {
	case fromFeed:
		l.Config = s.config(s.feed.URL, b.ca)
	case fromKept:
		l.Home, l.Config = s.home, s.config(s.downURL(), b.ca)
	}
	var took time.Duration
	l.Ready = func(p *lab.Proxy) error {
		served, err := awaitServed(b.client(p), name, p.Running)
		took = served.Sub(p.Began)
		return err
	}
	p, err := b.proxies.Launch(l)
	return p, took, err
}

// client dials a proxy as the load does.
func (b *bench) client(p *lab.Proxy) *lab.Dialer { return &lab.Dialer{Addr: p.Addr, Roots: b.ca.Pool} }

// awaitServed dials until a handshake with a name succeeds, and returns when it had. Until then nobody may listen, the
// name may be unknown, or the connection may have to wait.
func awaitServed(client *lab.Dialer, name string, running func() bool) (time.Time, error) {
	const (
		every    = 2 * time.Millisecond
		patience = 5 * time.Minute
	)
	for end := time.Now().Add(patience); ; time.Sleep(every) {
		err := client.Handshake(name)
		switch {
		case err == nil:
			return time.Now(), nil
		case !running():
			return time.Time{}, lab.ErrEndedEarly
		case time.Now().After(end):
			return time.Time{}, fmt.Errorf("no handshake with %s has succeeded for %v, the last failed: %w", name, patience, err)
		}
	}
}

// servedName returns the name of one of the domains of a set that can be visited, another one for each n.
func (s *set) servedName(n int) string {
	const step = 7919 // prime: no two of the first names are neighbours
	return lab.TypicalName(s.served[n*step%len(s.served)])
}

// shuffledNames returns n names of a set that can be visited, in an order that is always the same and follows none.
func (s *set) shuffledNames(n int) []string {
	random := rand.New(rand.NewPCG(uint64(n), 4))
	names := make([]string, n)
	for k, at := range random.Perm(len(s.served))[:n] {
		names[k] = lab.TypicalName(s.served[at])
	}
	return names
}

// looked is what an edge says about the certificates that it obtains.
type looked struct {
	held            int // that it has found in storage
	pending, failed int // orders for others
}

// all is how many names it has looked at, as far as it remembers: orders are bounded.
func (l looked) all() int { return l.held + l.pending + l.failed }

// askLooked asks an edge's metrics. The answer is made from all that it remembers, so do not ask while measuring.
func askLooked(p *lab.Proxy) (looked, error) {
	answer, err := p.Admin.Call(http.MethodGet, "/metrics", nil)
	if err != nil {
		return looked{}, err
	}
	return parseLooked(answer)
}

// certificatesMetric has the label state: valid, expired, pending, failed.
const certificatesMetric = "caddy_pqproxy_certificates{"

// parseLooked reads the lines of one metric from the text format of Prometheus.
func parseLooked(text []byte) (looked, error) {
	var l looked
	found := false
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		labels, ok := strings.CutPrefix(lines.Text(), certificatesMetric)
		if !ok {
			continue
		}
		labels, number, _ := strings.Cut(labels, "} ")
		n, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return l, fmt.Errorf("malformed line %q of the metrics: %w", lines.Text(), err)
		}
		found = true
		switch labels {
		case `state="pending"`:
			l.pending = int(n)
		case `state="failed"`:
			l.failed = int(n)
		default:
			l.held += int(n)
		}
	}
	if !found {
		return l, errors.New("the metrics do not say how many certificates there are")
	}
	return l, nil
}
