//go:build linux

package main

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// The time of a start ends with the first handshake that succeeds, whatever came before it.
func TestAwaitServed(t *testing.T) {
	ca, err := lab.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	chain, key, err := ca.Issue("a.example.com")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var conns atomic.Int64
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			switch conns.Add(1) {
			case 1: // nobody is there yet
			case 2: // the name is not known
				buf := make([]byte, 16<<10)
				_, _ = conn.Read(buf)
				_, _ = conn.Write([]byte{21, 3, 3, 0, 2, 2, 112})
			default:
				_ = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}).Handshake()
			}
			conn.Close()
		}
	}()
	client := &lab.Dialer{Addr: l.Addr().String(), Roots: ca.Pool}
	before := time.Now()
	at, err := awaitServed(client, "a.example.com", func() bool { return true })
	if err != nil || at.Before(before) || conns.Load() != 3 {
		t.Errorf("awaitServed = %v, %v after %d connections, want success with the third", at, err, conns.Load())
	}
	if _, err := awaitServed(client, "b.example.com", func() bool { return false }); !errors.Is(err, lab.ErrEndedEarly) {
		t.Errorf("awaitServed of a process that has ended: %v, want %v", err, lab.ErrEndedEarly)
	}
	if times, err := visitAll(client, []string{"a.example.com", "a.example.com"}); err != nil || len(times) != 2 || times[0] <= 0 {
		t.Errorf("visitAll = %v, %v", times, err)
	}
	if _, err := visitAll(client, []string{"a.example.com", "b.example.com"}); err == nil || !strings.Contains(err.Error(), "visit 2, b.example.com") {
		t.Errorf("visitAll with a name that is not served: %v", err)
	}
}

func TestParseLooked(t *testing.T) {
	const text = `# HELP caddy_pqproxy_certificates Certificates that this edge obtains.
# TYPE caddy_pqproxy_certificates gauge
caddy_pqproxy_certificate_earliest_not_after_seconds 1.8e+09
caddy_pqproxy_certificates{state="expired"} 2
caddy_pqproxy_certificates{state="failed"} 30
caddy_pqproxy_certificates{state="pending"} 1.99e+05
caddy_pqproxy_certificates{state="valid"} 100
`
	got, err := parseLooked([]byte(text))
	if want := (looked{held: 102, pending: 199_000, failed: 30}); err != nil || got != want || got.all() != 199_132 {
		t.Errorf("parseLooked = %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "caddy_pqproxy_domains 3\n", "caddy_pqproxy_certificates{state=\"valid\"} many\n", "caddy_pqproxy_certificates{state=\"valid\n"} {
		if got, err := parseLooked([]byte(bad)); err == nil {
			t.Errorf("%q: no error but %+v", bad, got)
		}
	}
}

func TestSweptAll(t *testing.T) {
	for _, tt := range []struct {
		name          string
		before, after looked
		wantErr       bool
	}{
		{"found", looked{held: 10}, looked{held: 20}, false},
		{"ordered", looked{held: 10, pending: 5}, looked{held: 10, pending: 7, failed: 1}, false},
		{"not looked", looked{held: 10, pending: 5}, looked{held: 10, pending: 3, failed: 2}, true},
		{"at the end", looked{held: 10}, looked{held: 300_000}, true},
		{"more than it remembers", looked{pending: maxOrders}, looked{pending: maxOrders}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := (phase{before: tt.before, after: tt.after}).sweptAll(300_000); (err != nil) != tt.wantErr {
				t.Errorf("sweptAll = %v", err)
			}
		})
	}
}

func TestVisitValues(t *testing.T) {
	got := visitValues([]float64{3, 5, 9}, []float64{1, 2, 8})
	for key, want := range map[string]float64{"first_p50_ms": 5, "second_p50_ms": 2, "load_p50_ms": 2, "first_p99_ms": 9, "second_p99_ms": 8, "names": 3} {
		if got[key] != want {
			t.Errorf("%s = %v, want %v", key, got[key], want)
		}
	}
}

func TestFootprint(t *testing.T) {
	heap, rss := footprint{heap: 5 << 20, rss: 60 << 20}.each(footprint{heap: 1 << 20, rss: 40 << 20}, 1024)
	if heap != 4096 || rss != 20_480 {
		t.Errorf("each = %v, %v", heap, rss)
	}
}

func TestRecordHandshakes(t *testing.T) {
	raw, err := lab.CreateRaw(t.TempDir()+"/raw", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	opts, err := parseOptions([]string{"-quick"})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{Results: newResults(t, ""), opts: opts}
	b.Raw = raw
	s := newSet(setTable, upTo(60_000), spread(10, 60_000), "127.0.0.1:1")
	sweep := phase{
		times: []float64{4, 6}, faults: []error{errors.New("broken")}, seconds: 10, cores: 0.5,
		before: looked{held: 10, pending: 10_000}, after: looked{held: 10, pending: 19_980, failed: 20},
	}
	if err := b.recordHandshakes(s, 1, phase{times: []float64{1, 3}}, sweep, phase{times: []float64{2}}); err != nil {
		t.Fatal(err)
	}
	values := b.Measured[0].Values
	for key, want := range map[string]float64{
		"ten_p99_ms": 3, "sweep_p50_ms": 4, "sweep_p99_ms": 6, "again_p99_ms": 2, "sweep_cores": 0.5, "failed": 1,
		"looked_per_s": 1000, "sweep_min": 1, "orders": 20_000, "tried_per_s": 2,
	} {
		if values[key] != want {
			t.Errorf("%s = %v, want %v", key, values[key], want)
		}
	}
	if got := b.Measured[0].Faults; len(got) != 1 || got[0] != "sweep: broken" {
		t.Errorf("faults are %q", got)
	}
}
