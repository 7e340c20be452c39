//go:build linux

package main

import "math/rand/v2"

// chooseDomains returns k different numbers below n, the same for the same seed.
func chooseDomains(k, n int, seed uint64) []int {
	random := rand.New(rand.NewPCG(seed, 1))
	chosen := make([]int, 0, k)
	seen := make(map[int]bool, k)
	for len(chosen) < min(k, n) {
		i := random.IntN(n)
		if !seen[i] {
			seen[i] = true
			chosen = append(chosen, i)
		}
	}
	return chosen
}
