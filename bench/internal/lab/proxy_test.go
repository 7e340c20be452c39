//go:build linux

package lab

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestPausesSince(t *testing.T) {
	var before, after Memstats
	before.NumGC, after.NumGC = 255, 258
	after.PauseNs[255], after.PauseNs[0], after.PauseNs[1], after.PauseNs[2] = 256, 257, 258, 3
	if got := after.PausesSince(before); !slices.Equal(got, []time.Duration{256, 257, 258}) {
		t.Errorf("PausesSince = %v, want those of collections 256 to 258", got)
	}
	if got := after.PausesSince(after); len(got) != 0 {
		t.Errorf("without a collection there are pauses %v", got)
	}
	after.NumGC = 1000
	if got := after.PausesSince(before); len(got) != 256 {
		t.Errorf("%d pauses, want the 256 that are remembered", len(got))
	}
}

func TestLaunch(t *testing.T) {
	// A Caddy that ends at once was perhaps robbed of its port, and is tried again; another failure is final.
	dir := t.TempDir()
	binary := filepath.Join(dir, "caddy")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\necho run >>runs\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	s := NewProxies(binary, dir)
	defer s.Close()
	addrs := map[string]bool{}
	l := Launch{Name: "caddy", Core: AnyCore, Home: home, Config: func(addr string) Object {
		addrs[addr] = true
		return Object{"apps": Object{"front": addr}}
	}}
	if p, err := s.Launch(l); !errors.Is(err, ErrEndedEarly) {
		t.Errorf("Launch = %v, %v, want %v", p, err, ErrEndedEarly)
	}
	runs, err := os.ReadFile(filepath.Join(home, "runs"))
	if err != nil || string(runs) != "run\nrun\nrun\n" || len(addrs) == 0 {
		t.Errorf("it ran %q, %v, at %v, want three times", runs, err, addrs)
	}
	broken := errors.New("broken")
	calls := 0
	l.Ready = func(p *Proxy) error { calls++; return broken }
	if _, err := s.Launch(l); !errors.Is(err, broken) || calls != 1 {
		t.Errorf("Launch = %v after %d calls, want %v after one", err, calls, broken)
	}
	s.Close()
	if _, err := s.Launch(l); err == nil || calls != 1 {
		t.Errorf("Launch after Close = %v", err)
	}
}
