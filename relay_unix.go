//go:build unix

package pqproxy

import "syscall"

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

// descriptorReadable reports whether a read would not wait: there is data, an end, or an error.
func descriptorReadable(fd uintptr) bool {
	var one [1]byte
	for {
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK)
		if err != syscall.EINTR {
			return err != syscall.EAGAIN
		}
	}
}
