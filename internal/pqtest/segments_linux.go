//go:build !386 && !s390x

package pqtest

import (
	"encoding/binary"
	"syscall"
	"unsafe"
)

// dataSegmentsOffset is where tcpi_data_segs_in stands in struct tcp_info (linux/tcp.h, since 4.6). Package
// syscall has the struct as it was long before.
const dataSegmentsOffset = 152

// dataSegments is the number of TCP segments with data that have come in on a connection, 0 if it is none of
// TCP or the kernel does not say.
func dataSegments(conn syscall.Conn) int {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	var info [dataSegmentsOffset + 4]byte
	size := uint32(len(info))
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, syscall.TCP_INFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err != nil || errno != 0 || int(size) < len(info) {
		return 0
	}
	return int(binary.NativeEndian.Uint32(info[dataSegmentsOffset:]))
}
