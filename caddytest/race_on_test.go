//go:build race

package caddytest

// raceEnabled says whether the tests were built with the race detector.
const raceEnabled = true
