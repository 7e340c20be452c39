//go:build linux

package main

import (
	"slices"
	"testing"
)

func TestChooseDomains(t *testing.T) {
	chosen := chooseDomains(1000, 2000, 7)
	if !slices.Equal(chosen, chooseDomains(1000, 2000, 7)) {
		t.Error("the choice is not the same twice")
	}
	if slices.Equal(chosen, chooseDomains(1000, 2000, 8)) {
		t.Error("another seed makes the same choice")
	}
	slices.Sort(chosen)
	if len(slices.Compact(chosen)) != 1000 || chosen[0] < 0 || chosen[999] >= 2000 {
		t.Errorf("chosen are %v", chosen)
	}
	if got := chooseDomains(5, 3, 1); len(got) != 3 {
		t.Errorf("5 of 3 are %v", got)
	}
}
