//go:build linux

package lab

import (
	"errors"
	"testing"
	"time"
)

func TestParseStolen(t *testing.T) {
	if got, err := parseStolen("cpu  1 2 3 4 5 6 7 250 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n"); err != nil || got != 2500*time.Millisecond {
		t.Errorf("parseStolen = %v, %v", got, err)
	}
	for _, bad := range []string{"", "cpu 1 2 3 4 5 6 7", "cpu 1 2 3 4 5 6 7 many 9", "cpu0 1 2 3 4 5 6 7 8 9 10"} {
		if _, err := parseStolen(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	now, err := StealNow()
	if err != nil {
		t.Fatal(err)
	}
	if cores, err := now.Cores(); err != nil || cores < 0 {
		t.Errorf("Cores = %v, %v", cores, err)
	}
}

func TestCalmest(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		stolen []float64 // negative: the try fails
		want   int
		tries  int
		err    error
	}{
		{[]float64{0.01, 0}, 0, 1, nil},
		{[]float64{0.2, 0.02, 0}, 1, 2, nil},
		{[]float64{0.2, 0.1, 0.3, 0}, 1, 3, nil},
		{[]float64{0.2, -1}, 0, 2, broken},
	} {
		tries := 0
		got, stolen, err := Calmest(3, func() (int, float64, error) {
			n := tries
			tries++
			if c.stolen[n] < 0 {
				return 0, 0, broken
			}
			return n, c.stolen[n], nil
		})
		if tries != c.tries || !errors.Is(err, c.err) || err == nil && (got != c.want || stolen != c.stolen[c.want]) {
			t.Errorf("of %v: try %d with %v after %d, %v", c.stolen, got, stolen, tries, err)
		}
	}
}
