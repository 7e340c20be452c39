//go:build linux

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// An open loop goes on beside a call that hangs, and what was due meanwhile is measured from then.
func TestOpenLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		stop := make(chan struct{})
		time.AfterFunc(950*time.Millisecond, func() { close(stop) })
		start := time.Now()
		samples := openLoop(10, stop, func(i int) error {
			switch i {
			case 3:
				time.Sleep(5 * time.Second)
			case 5:
				return broken
			}
			return nil
		})
		if len(samples) != 10 {
			t.Fatalf("%d calls in 950 ms at 10/s, want 10", len(samples))
		}
		for i, s := range samples {
			want := sample{due: start.Add(time.Duration(i) * 100 * time.Millisecond)}
			if i == 3 {
				want.took = 5 * time.Second
			}
			if i == 5 {
				want.err = broken
			}
			if s != want {
				t.Errorf("call %d is %+v, want %+v", i, s, want)
			}
		}
		times, faults := within(samples, start.Add(300*time.Millisecond), start.Add(600*time.Millisecond))
		if !slices.Equal(times, []float64{5000, 0, 0}) || len(faults) != 1 {
			t.Errorf("within = %v, %v", times, faults)
		}
	})
}

func TestIsUnknownName(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(conn net.Conn)
		want   bool
	}{
		{"unrecognized_name", func(conn net.Conn) { _, _ = conn.Write([]byte{21, 3, 3, 0, 2, 2, 112}) }, true},
		{"internal_error", func(conn net.Conn) { _, _ = conn.Write([]byte{21, 3, 3, 0, 2, 2, 80}) }, false},
		{"the end", func(conn net.Conn) {}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			listener, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() { // ends with its one connection or the listener
				if conn, err := listener.Accept(); err == nil {
					buf := make([]byte, 16<<10)
					_, _ = conn.Read(buf)
					tt.answer(conn)
					conn.Close()
				}
			}()
			err = (&dialer{addr: listener.Addr().String(), groups: []tls.CurveID{tls.X25519}}).handshake("a.example.com")
			if err == nil || isUnknownName(err) != tt.want {
				t.Errorf("isUnknownName(%v) = %v, want %v", err, !tt.want, tt.want)
			}
		})
	}
}

func TestPausesSince(t *testing.T) {
	var before, after memstats
	before.NumGC, after.NumGC = 255, 258
	after.PauseNs[255], after.PauseNs[0], after.PauseNs[1], after.PauseNs[2] = 256, 257, 258, 3
	if got := after.pausesSince(before); !slices.Equal(got, []time.Duration{256, 257, 258}) {
		t.Errorf("pausesSince = %v, want those of collections 256 to 258", got)
	}
	if got := after.pausesSince(after); len(got) != 0 {
		t.Errorf("without a collection there are pauses %v", got)
	}
	after.NumGC = 1000
	if got := after.pausesSince(before); len(got) != 256 {
		t.Errorf("%d pauses, want the 256 that are remembered", len(got))
	}
}

func TestParseBenchmark(t *testing.T) {
	const output = `goos: linux
BenchmarkLookup/domains=10         	25000000	        47.11 ns/op	       0 B/op	       0 allocs/op
BenchmarkLookup/domains=100000-2   	20000000	        60 ns/op
PASS
`
	got, err := parseBenchmark([]byte(output))
	want := []benchmarkResult{{"BenchmarkLookup/domains=10", 47.11}, {"BenchmarkLookup/domains=100000", 60}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("parseBenchmark = %v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "PASS\n", "BenchmarkLookup/x 10 many ns/op\n"} {
		if _, err := parseBenchmark([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestCellNames(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range cells {
		if seen[c.name] {
			t.Errorf("%q stands twice", c.name)
		}
		seen[c.name] = true
		for part := range strings.SplitSeq(c.name, "/") {
			if key, value, ok := strings.Cut(part, "="); !ok || key == "" || value == "" {
				t.Errorf("%q: %q is not key=value", c.name, part)
			}
		}
	}
	if len(seen) != 2*(2+2+1)+1+3+2 {
		t.Errorf("%d cells", len(seen))
	}
}

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		args    string
		domains int
		partial bool
		wantErr bool
	}{
		{"", fullDomains, false, false},
		{"-quick", quickDomains, true, false},
		{"-quick -domains 1000", 1000, true, false},
		{"-domains 200000", 200_000, true, false},
		{"-run set", fullDomains, true, false},
		{"-domains 10", 0, false, true},
		{"-domains 50000000", 0, false, true},
		{"more", 0, false, true},
	} {
		t.Run(tt.args, func(t *testing.T) {
			opts, err := parseOptions(strings.Fields(tt.args))
			if (err != nil) != tt.wantErr || err == nil && (opts.Domains != tt.domains || opts.partial() != tt.partial) {
				t.Errorf("parseOptions = %+v, %v", opts, err)
			}
		})
	}
}

func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		name   string
		figure figure
		want   string
	}{
		{"no target", figure{metric{}, lab.Spread{Median: 1}}, "–"},
		{"met", figure{metric{limit: atMost(15)}, lab.Spread{Median: 14, Most: 16}}, "met"},
		{"met as the table shows it", figure{metric{limit: atMost(1.2)}, lab.Spread{Median: 1.204}}, "met"},
		{"not met", figure{metric{limit: atMost(1.2)}, lab.Spread{Median: 1.21}}, "**not met**"},
		{"none allowed", figure{metric{limit: atMost(0)}, lab.Spread{Median: 1}}, "**not met**"},
		{"one of many", figure{metric{limit: atMost(0), most: true}, lab.Spread{Median: 0, Most: 1}}, "**not met**"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.figure.verdict(); got != tt.want {
				t.Errorf("verdict() = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestRenderSummary(t *testing.T) {
	e := environment{
		Time: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), CPU: "a processor", Cores: 2, Kernel: "6.18", Go: "go1.26.8",
		Commit: "abc", Binary: "v1", Load: "0.1 0.2 0.3", Options: options{Domains: fullDomains},
	}
	var measured []measurement
	for round, seconds := range []float64{9, 20, 10} {
		measured = append(measured, measurement{Round: round + 1, Cell: "scenario=set/cores=1/kind=replace", Values: map[string]float64{"seconds": seconds}})
	}
	for round, apply := range []float64{2, 3} {
		measured = append(measured, measurement{
			Round: round + 1, Cell: "scenario=handshake/cores=all",
			Values:  map[string]float64{"idle_p99_ms": 2, "apply_p99_ms": apply, "failed": float64(round)},
			Samples: map[string][]float64{"idle": {2}, "apply": {apply}},
		})
	}
	measured = append(measured,
		measurement{Round: 1, Cell: livePQProxy, Values: map[string]float64{"lost_bytes": 0, "reset": 2, "changes": 10_000}, Faults: []string{"it\nbroke"}},
		measurement{Round: 1, Cell: liveCaddyL4, Values: map[string]float64{"lost_bytes": 7}},
	)
	summary := renderSummary(e, measured)
	for _, want := range []string{
		"a processor, 2 cores, Linux 6.18, go1.26.8, commit abc. Large sets: 1000000 domains.\n\n- binary: v1\n- load average before: 0.1 0.2 0.3\n",
		"## Full sets\n\n| cell | figure | pqproxy | target | met |",
		"| cores=1 kind=replace | s, from the answer to live | 10.0 [9.00–20.0] | ≤ 15.0 | met |",
		"| cores=all | p99 during apply, times idle; medians of rounds | 1.25 | ≤ 1.20 | **not met** |",
		"| cores=all | p99 during apply, times idle; all rounds in one | 1.50 | ≤ 1.20 | **not met** |",
		"| cores=all | handshakes failed | 0.50 [0.00–1.00] | ≤ 0.00 | **not met** |",
		"| bytes lost | 0.00 | 7.00 | ≤ 0.00 | met |",
		"| connections reset | 2.00 | – | ≤ 0.00 | **not met** |",
		"Faults in scenario=live/proxy=pqproxy, the first 1:\n\n- it; broke\n",
	} {
		if !strings.Contains(summary, want) {
			t.Errorf("the summary lacks %q:\n%s", want, summary)
		}
	}
	if strings.Contains(summary, "## Lookup") {
		t.Error("there is a section of what was not measured")
	}
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		err := await("three", time.Minute, time.Second, func() (bool, error) { calls++; return calls == 3, nil })
		if err != nil || calls != 3 {
			t.Errorf("await = %v after %d calls", err, calls)
		}
		if err := await("never", time.Minute, time.Second, func() (bool, error) { return false, nil }); err == nil {
			t.Error("await waited in vain without an error")
		}
		broken := fmt.Errorf("broken")
		if err := await("a fault", time.Minute, time.Second, func() (bool, error) { return false, broken }); !errors.Is(err, broken) {
			t.Errorf("await = %v, want %v", err, broken)
		}
	})
}
