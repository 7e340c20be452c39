package pqproxy

import "golang.org/x/sys/unix"

// unsent is how many bytes the kernel holds that the peer has not acknowledged (tcp(7), SIOCOUTQ).
func (w *wire) unsent() (n int) {
	if w.sock == nil {
		return 0
	}
	if raw := rawConn(w.sock); raw != nil {
		_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	}
	return n
}
