//go:build unix

package pqproxy

import (
	"errors"
	"syscall"
)

// rawConn returns the descriptor of a socket, to wait on without a buffer.
func rawConn(s socket) syscall.RawConn {
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// readDescriptor is read(2) on a non-blocking descriptor, again when a signal interrupts it. It returns
// 0, nil at the end of the stream.
func readDescriptor(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}

// descriptorBroken asks by a write of nothing, which does not wait, whether writing is over: after a reset, or after
// our own end.
func descriptorBroken(fd uintptr) bool {
	return errors.Is(syscall.Sendmsg(int(fd), nil, nil, nil, 0), syscall.EPIPE)
}

// peekDescriptor asks whether a read would wait: EAGAIN. It returns nil where there is data or an end.
func peekDescriptor(fd uintptr) error {
	var one [1]byte
	for {
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK)
		if err != syscall.EINTR {
			return err
		}
	}
}
