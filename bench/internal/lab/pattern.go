//go:build linux

package lab

import "math/rand/v2"

const (
	// PatternPeriod is prime, hence no multiple of a record, a buffer or a page: bytes moved by any of those differ.
	PatternPeriod = 1_048_573
	// PatternChunk is how much of it is to be had in one slice.
	PatternChunk = 64 << 10
)

// pattern is what every relayed stream consists of. It runs one chunk past its period, so that a chunk at any offset
// is one slice.
var pattern = func() []byte {
	p := make([]byte, PatternPeriod+PatternChunk)
	source := rand.NewChaCha8([32]byte{'p', 'q'})
	_, _ = source.Read(p[:PatternPeriod]) // never fails
	copy(p[PatternPeriod:], p)
	return p
}()

// PatternAt returns the n ≤ PatternChunk bytes of the stream that begin at offset, which are not to be written to. It
// is the same in every run.
func PatternAt(offset, n int64) []byte {
	at := offset % PatternPeriod
	return pattern[at : at+n]
}
