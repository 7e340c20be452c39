package caddytest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestFirstConnection connects as soon as the proxy listens. Caddy starts the apps of a config in random
// order, so that caddy-l4 may accept before ours has put its domains in force: the connection must wait
// for that, and neither be told that its name is unknown nor meet a proxy half made. Many domains make
// the moment long, and several starts have both orders among them.
func TestFirstConnection(t *testing.T) {
	const domains, starts = 2000, 6
	ca := newAuthority(t)
	cert := certificate(ca.files(t, "*.example.com"))
	upstream := "upstream " + pqtest.StartUpstream(t, pqtest.UpstreamConfig{}).Addr()
	var block strings.Builder
	var name string
	for i := range domains {
		name = fmt.Sprintf("app%d.example.com", i)
		block.WriteString(domainBlock(name, upstream, cert))
	}
	for i := range starts {
		t.Run(fmt.Sprintf("start=%d", i), func(t *testing.T) {
			p := startProxy(t, block.String())
			checkEcho(t, pqtest.Dial(t, p.addr, &tls.Config{ServerName: name, RootCAs: ca.Pool()}))
		})
	}
}

// TestDrain ends the proxy while a connection is open: from then on it accepts nothing, the connection
// works on, and when it has ended so does the process.
func TestDrain(t *testing.T) {
	ca, p := startWithEcho(t)
	conn := pqtest.Dial(t, p.addr, &tls.Config{ServerName: echoName, RootCAs: ca.Pool()})
	checkEcho(t, conn)

	p.terminate(t)
	refused(t, p.addr)
	checkEcho(t, conn)
	select {
	case <-p.exited:
		t.Fatal("the process ended before its last connection")
	default:
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	p.waitExit(t)
	if r := p.recordOf(t, echoName, port(conn)); r.EndReason != "done" {
		t.Errorf("the record is %+v", r)
	}
}

// TestDrainDeadline ends the proxy while a client stays: after the grace period it is cut off, without
// the close_notify that would say that all was sent.
func TestDrainDeadline(t *testing.T) {
	ca, p := startWithEcho(t, "limits {\n\tgrace_period 100ms\n\t}")
	conn := pqtest.Dial(t, p.addr, &tls.Config{ServerName: echoName, RootCAs: ca.Pool()})
	checkEcho(t, conn)

	p.terminate(t)
	if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the read at the end of the grace period gave %v, want an error that is not the end of data", err)
	}
	p.waitExit(t)
	if r := p.recordOf(t, echoName, port(conn)); r.EndReason != "drained" || r.ClosedBy != "edge" {
		t.Errorf("the record is %+v", r)
	}
}

// TestSecondProcess starts the proxy on an address that another one serves. Two sockets with
// SO_REUSEPORT would share its connections silently; it must fail and say why.
func TestSecondProcess(t *testing.T) {
	ca := newAuthority(t)
	block := echoBlock(t, ca)
	p := startProxy(t, block)

	cmd := proxyCommand(t, p.addr, block)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "address already in use") {
		t.Errorf("the second process ended with %v and said\n%s", err, out)
	}
	conn := pqtest.Dial(t, p.addr, &tls.Config{ServerName: echoName, RootCAs: ca.Pool()})
	checkEcho(t, conn)
}

// TestDescriptorLimit floods a proxy that may open 256 files with 2,000 connections. It must serve again
// as soon as they have left, and leave one record for each of them.
func TestDescriptorLimit(t *testing.T) {
	const clients = 2000
	ca := newAuthority(t)
	p := startProxy(t, echoBlock(t, ca), "/bin/sh", "-c", `ulimit -n 256 && exec "$@"`, "sh")

	conns := make([]net.Conn, clients)
	for i := range conns {
		conns[i] = pqtest.DialRaw(t, p.addr)
	}
	for _, conn := range conns {
		conn.Close()
	}

	// Those that it had accepted are not gone before it has seen them go: it may close a connection or
	// two more.
	attempts := 0
	for deadline := time.Now().Add(patience); ; attempts++ {
		conn, err := pqtest.TryDial(t, p.addr, &tls.Config{ServerName: echoName, RootCAs: ca.Pool()})
		if err == nil {
			checkEcho(t, conn)
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the proxy does not serve again: %v", err)
		}
	}

	reasons := make(map[string]int)
	total := 0
	p.record(t, func(r record) bool {
		reasons[r.EndReason]++
		total++
		return total == clients+attempts+1
	})
	if reasons["over_limit"] < clients/2 || reasons["internal"] > 0 {
		t.Errorf("the records end with %v", reasons)
	}
}

// refused connects until the address refuses.
func refused(t *testing.T, addr string) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		conn, err := net.Dial("tcp", addr)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err == nil {
			conn.Close()
		}
	}
	t.Fatalf("%s still accepts connections", addr)
}
