//go:build !unix

package pqproxy

import "math"

// descriptorLimit is math.MaxInt64: there is no such limit.
func descriptorLimit() int64 { return math.MaxInt64 }
