//go:build linux

package lab

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		name   string
		sorted []float64
		want   float64
	}{
		{"one", []float64{3}, 3},
		{"odd", []float64{1, 2, 100}, 2},
		{"even", []float64{1, 2, 4, 100}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Median(tt.sorted); got != tt.want {
				t.Errorf("Median(%v) = %v, want %v", tt.sorted, got, tt.want)
			}
		})
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, tt := range []struct {
		name   string
		sorted []float64
		p      int
		want   float64
	}{
		{"p50 of 100", hundred, 50, 50},
		{"p99 of 100", hundred, 99, 99},
		{"p100 of 100", hundred, 100, 100},
		{"p0 is the least", hundred, 0, 1},
		{"p50 of 3", []float64{1, 2, 3}, 50, 2},
		{"p99 of 3 is the most", []float64{1, 2, 3}, 99, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Percentile(tt.sorted, tt.p); got != tt.want {
				t.Errorf("Percentile = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestSpreadOfLeavesItsInput(t *testing.T) {
	values := []float64{5, 1, 3}
	got := SpreadOf(values)
	if want := (Spread{Median: 3, Least: 1, Most: 5}); got != want {
		t.Errorf("SpreadOf = %+v, want %+v", got, want)
	}
	if values[0] != 5 {
		t.Errorf("SpreadOf sorted the caller's values: %v", values)
	}
}

func TestSpreadString(t *testing.T) {
	for _, tt := range []struct {
		spread Spread
		want   string
	}{
		{Spread{3, 1, 5}, "3.00 [1.00–5.00]"},
		{Spread{123.4, 123.4, 123.4}, "123"},
		{Spread{-12.34, -20, 0}, "-12.3 [-20.0–0.00]"},
	} {
		if got := tt.spread.String(); got != tt.want {
			t.Errorf("%+v is %q, want %q", tt.spread, got, tt.want)
		}
	}
}

func TestRawFile(t *testing.T) {
	prefix, err := FreePrefix(filepath.Join(t.TempDir(), "new", "run"))
	if err != nil {
		t.Fatal(err)
	}
	name := prefix + RawSuffix
	raw, err := CreateRaw(name, map[string]string{"type": "environment"})
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Write(map[string]string{"type": "measurement"}); err != nil {
		t.Fatal(err)
	}
	if err := raw.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateRaw(name, nil); err == nil {
		t.Error("CreateRaw replaced an existing file")
	}
	got, err := os.ReadFile(name)
	if want := "{\"type\":\"environment\"}\n{\"type\":\"measurement\"}\n"; err != nil || string(got) != want {
		t.Errorf("the file is %q, %v, want %q", got, err, want)
	}
	if next, err := FreePrefix(prefix); err != nil || next != prefix+"-2" {
		t.Errorf("FreePrefix = %q, %v, want another than the one that is taken", next, err)
	}
}

func TestIssue(t *testing.T) {
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	chain, _, err := ca.Issue("*.example.com", "example.com")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(chain)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.example.com", "example.com"} {
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: ca.Pool}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "example.net", Roots: ca.Pool}); err == nil {
		t.Error("the leaf is good for a name that it was not issued for")
	}
}

func TestPatternAt(t *testing.T) {
	// What begins near the end of a period goes on with its beginning.
	if got, want := PatternAt(PatternPeriod-1, 3)[1:], PatternAt(0, 2); !bytes.Equal(got, want) {
		t.Errorf("behind the end is %x, want the beginning %x", got, want)
	}
	if bytes.Equal(PatternAt(0, 64), PatternAt(64<<10, 64)) {
		t.Error("a chunk is like the next")
	}
}
