//go:build !linux || 386 || s390x

package pqtest

import "syscall"

// dataSegments is known on Linux only, where package syscall has getsockopt as a call of its own.
func dataSegments(syscall.Conn) int { return 0 }
