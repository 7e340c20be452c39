//go:build linux

package lab

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
)

// clientPatience is how long a client of the load waits for a connection and its handshake.
const clientPatience = 10 * time.Second

// Dialer opens TLS connections to a proxy. Handshakes are full ones, and no ALPN is offered.
type Dialer struct {
	Addr  string
	Roots *x509.CertPool
	// Groups are what is offered; nil: crypto/tls's default, whose key shares are X25519MLKEM768 and X25519.
	Groups []tls.CurveID
}

// Dial connects and completes the handshake. What remains of the deadline is for the caller to change.
func (d *Dialer) Dial(name string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), clientPatience)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp4", d.Addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: d.Roots, ServerName: name, CurvePreferences: d.Groups})
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return conn, nil
}

// Handshake is a connection that ends when its handshake has.
func (d *Dialer) Handshake(name string) error {
	conn, err := d.Dial(name)
	if err != nil {
		return err
	}
	conn.Close()
	return nil
}

// unrecognizedName is how crypto/tls prints the alert by which a proxy refuses a name that it does not serve (RFC 6066
// section 3). It hands out no type for it.
var unrecognizedName = tls.AlertError(112).Error()

// IsUnknownName reports whether a handshake was refused because the name is not served.
func IsUnknownName(err error) bool {
	var remote *net.OpError
	return errors.As(err, &remote) && remote.Op == "remote error" && remote.Err.Error() == unrecognizedName
}

// Sample is one connection of an open loop.
type Sample struct {
	Due  time.Time // when it was to begin
	Took time.Duration
	Err  error
}

// OpenLoop calls one at a steady rate, whether or not earlier calls have returned, so that a stall is felt by all that
// fall into it. Times count from when a call was due. It stops beginning calls when stop is closed, and returns when
// all have returned.
func OpenLoop(rate int, stop <-chan struct{}, one func(i int) error) []Sample {
	var (
		mu      sync.Mutex
		samples []Sample
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
			slices.SortFunc(samples, func(a, b Sample) int { return a.Due.Compare(b.Due) })
			return samples
		case <-timer.C:
		}
		calls.Go(func() {
			err := one(i)
			s := Sample{Due: due, Took: time.Since(due), Err: err}
			mu.Lock()
			samples = append(samples, s)
			mu.Unlock()
		})
	}
}

// Within returns the milliseconds of the samples that were due from start to end, in order of time; faults are theirs.
func Within(samples []Sample, start, end time.Time) (times []float64, faults []error) {
	for _, s := range samples {
		if s.Due.Before(start) || s.Due.After(end) {
			continue
		}
		if s.Err != nil {
			faults = append(faults, s.Err)
			continue
		}
		times = append(times, Milliseconds(s.Took))
	}
	return times, faults
}

// Milliseconds returns d as what samples and figures have.
func Milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// Await asks done every so often until it is true or fails, at most for patience.
func Await(what string, patience, every time.Duration, done func() (bool, error)) error {
	for end := time.Now().Add(patience); ; time.Sleep(every) {
		ok, err := done()
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("waited %v in vain for %s", patience, what)
		}
	}
}
