//go:build unix

package pqproxy

import (
	"math"
	"syscall"
)

// descriptorLimit is how many descriptors the process may have open; math.MaxInt64 where there is no limit.
func descriptorLimit() int64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || uint64(limit.Cur) > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(limit.Cur)
}
