//go:build linux

package main

import (
	"fmt"
	"net"
	"syscall"
)

// closedPort is a loopback port at which nothing listens and nobody else can begin to: a CA or a management plane that
// is down, for as long as the run takes.
type closedPort struct {
	fd   int
	addr string
}

// closePort takes a loopback port: the one of addr, whose listener has gone, or with an empty addr any that is free.
// Call free.
func closePort(addr string) (*closedPort, error) {
	at := &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if addr != "" {
		tcp, err := net.ResolveTCPAddr("tcp4", addr)
		if err != nil {
			return nil, err
		}
		at.Port = tcp.Port
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a socket: %w", err)
	}
	p := &closedPort{fd: fd}
	// Connections of the listener before may linger; from then on others are kept away.
	err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(fd, at) // without listen: connections are refused
	}
	if err == nil {
		err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 0)
	}
	var bound syscall.Sockaddr
	if err == nil {
		bound, err = syscall.Getsockname(fd)
	}
	if err != nil {
		p.free()
		return nil, fmt.Errorf("taking the port of %q: %w", addr, err)
	}
	p.addr = fmt.Sprintf("127.0.0.1:%d", bound.(*syscall.SockaddrInet4).Port)
	return p, nil
}

// free lets others have the port.
func (p *closedPort) free() { _ = syscall.Close(p.fd) }
