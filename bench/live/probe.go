//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// clientPatience is how long a client of the load waits for a connection and its handshake.
const clientPatience = 10 * time.Second

// dialer opens TLS connections to a proxy. Handshakes are full ones, and no ALPN is offered.
type dialer struct {
	addr  string
	roots *x509.CertPool
	// groups are what is offered; nil: crypto/tls's default, whose key shares are X25519MLKEM768 and X25519.
	groups []tls.CurveID
}

// dial connects and completes the handshake. What remains of the deadline is for the caller to change.
func (d *dialer) dial(name string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), clientPatience)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp4", d.addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: d.roots, ServerName: name, CurvePreferences: d.groups})
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return conn, nil
}

// handshake is a connection that ends when its handshake has.
func (d *dialer) handshake(name string) error {
	conn, err := d.dial(name)
	if err != nil {
		return err
	}
	conn.Close()
	return nil
}

// visit is a connection that reaches the upstream and back.
func (d *dialer) visit(name string) error {
	conn, err := d.dial(name)
	if err != nil {
		return err
	}
	defer conn.Close()
	return errors.Join(conn.SetDeadline(time.Now().Add(clientPatience)), visit(conn))
}

// unrecognizedName is how crypto/tls prints the alert by which a proxy refuses a name that it does not serve (RFC 6066
// section 3). It hands out no type for it.
var unrecognizedName = tls.AlertError(112).Error()

// isUnknownName reports whether a handshake was refused because the name is not served.
func isUnknownName(err error) bool {
	var remote *net.OpError
	return errors.As(err, &remote) && remote.Op == "remote error" && remote.Err.Error() == unrecognizedName
}

// sample is one connection of an open loop.
type sample struct {
	due  time.Time // when it was to begin
	took time.Duration
	err  error
}

// openLoop calls one at a steady rate, whether or not earlier calls have returned, so that a stall is felt by all that
// fall into it. Times count from when a call was due. It stops beginning calls when stop is closed, and returns when
// all have returned.
func openLoop(rate int, stop <-chan struct{}, one func(i int) error) []sample {
	var (
		mu      sync.Mutex
		samples []sample
		calls   sync.WaitGroup
		start   = time.Now()
		timer   = time.NewTimer(0)
	)
	defer timer.Stop()
	for i := 0; ; i++ {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(rate))
		timer.Reset(time.Until(due))
		select {
		case <-stop:
			calls.Wait()
			slices.SortFunc(samples, func(a, b sample) int { return a.due.Compare(b.due) })
			return samples
		case <-timer.C:
		}
		calls.Go(func() {
			err := one(i)
			s := sample{due: due, took: time.Since(due), err: err}
			mu.Lock()
			samples = append(samples, s)
			mu.Unlock()
		})
	}
}

// milliseconds of the samples that were due from start to end, in order of time; faults are theirs.
func within(samples []sample, start, end time.Time) (times []float64, faults []error) {
	for _, s := range samples {
		if s.due.Before(start) || s.due.After(end) {
			continue
		}
		if s.err != nil {
			faults = append(faults, s.err)
			continue
		}
		times = append(times, milliseconds(s.took))
	}
	return times, faults
}

// percentileOf returns a percentile of values in any order, 0 where there are none.
func percentileOf(values []float64, p int) float64 {
	if len(values) == 0 {
		return 0
	}
	return lab.Percentile(slices.Sorted(slices.Values(values)), p)
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
