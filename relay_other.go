//go:build !unix

package pqproxy

import "syscall"

// rawConn returns nil: where reads complete asynchronously a connection waits with a buffer in hand.
func rawConn(socket) syscall.RawConn { return nil }

// The rest is never called, as there is no rawConn.

func readDescriptor(uintptr, []byte) (int, error) { return 0, syscall.EINVAL }

func peekDescriptor(uintptr) error { return syscall.EINVAL }

func descriptorBroken(uintptr) bool { return false }
