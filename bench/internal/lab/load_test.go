//go:build linux

package lab

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// An open loop goes on beside a call that hangs, and what was due meanwhile is measured from then.
func TestOpenLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		stop := make(chan struct{})
		time.AfterFunc(950*time.Millisecond, func() { close(stop) })
		start := time.Now()
		samples := OpenLoop(10, stop, func(i int) error {
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
			want := Sample{Due: start.Add(time.Duration(i) * 100 * time.Millisecond)}
			if i == 3 {
				want.Took = 5 * time.Second
			}
			if i == 5 {
				want.Err = broken
			}
			if s != want {
				t.Errorf("call %d is %+v, want %+v", i, s, want)
			}
		}
		times, faults := Within(samples, start.Add(300*time.Millisecond), start.Add(600*time.Millisecond))
		if !slices.Equal(times, []float64{5000, 0, 0}) || len(faults) != 1 {
			t.Errorf("Within = %v, %v", times, faults)
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
			err = (&Dialer{Addr: listener.Addr().String(), Groups: []tls.CurveID{tls.X25519}}).Handshake("a.example.com")
			if err == nil || IsUnknownName(err) != tt.want {
				t.Errorf("IsUnknownName(%v) = %v, want %v", err, !tt.want, tt.want)
			}
		})
	}
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		err := Await("three", time.Minute, time.Second, func() (bool, error) { calls++; return calls == 3, nil })
		if err != nil || calls != 3 {
			t.Errorf("Await = %v after %d calls", err, calls)
		}
		if err := Await("never", time.Minute, time.Second, func() (bool, error) { return false, nil }); err == nil {
			t.Error("Await waited in vain without an error")
		}
		broken := fmt.Errorf("broken")
		if err := Await("a fault", time.Minute, time.Second, func() (bool, error) { return false, broken }); !errors.Is(err, broken) {
			t.Errorf("Await = %v, want %v", err, broken)
		}
	})
}
