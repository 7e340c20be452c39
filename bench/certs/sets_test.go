//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
	"github.com/pqproxy/caddy-pqproxy/domain"
)

// What is published is a set without a fault, and what is visited leads to the upstream that there is.
func TestSetIsValid(t *testing.T) {
	const upstream = "127.0.0.1:4433"
	for _, s := range []*set{
		newSet(setTen, spread(10, 5000), spread(10, 5000), upstream),
		newSet(setStored, upTo(500), upTo(500), upstream),
		newSet(setTable, upTo(5000), spread(10, 5000), upstream),
	} {
		document := slices.Concat([]byte(`{"revision":1,"domains":[`), s.elements, []byte("]}"))
		var names []string
		served := 0
		header, err := domain.ReadSet(bytes.NewReader(document), domain.Remote, domain.SetOptions{
			Refused: func(r domain.Refusal) { t.Errorf("%s: domain %d is refused: %v", s.name, r.Index, r.Err) },
		})
		if err != nil || !header.Full || header.Domains != len(s.numbers) {
			t.Errorf("%s: ReadSet = %+v, %v, want %d domains", s.name, header, err, len(s.numbers))
		}
		var set struct {
			Domains []struct {
				Name, Tenant string
				Upstreams    []struct{ Dial string }
			}
		}
		if err := json.Unmarshal(document, &set); err != nil {
			t.Fatal(err)
		}
		for _, d := range set.Domains {
			names = append(names, d.Name)
			if d.Upstreams[0].Dial == upstream {
				served++
			}
			if !strings.Contains(d.Name, d.Tenant) {
				t.Errorf("%s is tenant %s's", d.Name, d.Tenant)
			}
		}
		if served != len(s.served) {
			t.Errorf("%s: %d domains lead to the upstream, want %d", s.name, served, len(s.served))
		}
		for _, name := range append(s.shuffledNames(len(s.served)), s.servedName(0), s.servedName(12_345)) {
			if !slices.Contains(names, name) {
				t.Errorf("%s: %s would be visited and is none of the set", s.name, name)
			}
		}
	}
}

func TestSpread(t *testing.T) {
	if got := spread(4, 10); !slices.Equal(got, []int{0, 2, 5, 7}) {
		t.Errorf("spread(4, 10) = %v", got)
	}
	if got := upTo(3); !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("upTo(3) = %v", got)
	}
}

func TestNames(t *testing.T) {
	s := newSet(setStored, upTo(1000), upTo(1000), "127.0.0.1:1")
	names := s.shuffledNames(200)
	if !slices.Equal(names, s.shuffledNames(200)) || slices.IsSorted(names) {
		t.Error("the order is another one each time, or follows one")
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != 200 {
		t.Error("a name stands twice")
	}
	if s.servedName(1) == s.servedName(2) || s.servedName(1) == lab.TypicalName(1) {
		t.Errorf("names for starts are %s and %s", s.servedName(1), s.servedName(2))
	}
}

func TestClosedPort(t *testing.T) {
	refused := func(addr string) {
		t.Helper()
		if conn, err := net.Dial("tcp4", addr); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dialling %s: %v, %v, want a refusal", addr, conn, err)
		}
		if l, err := net.Listen("tcp4", addr); err == nil {
			l.Close()
			t.Errorf("another listener could have %s", addr)
		}
	}
	p, err := closePort("")
	if err != nil {
		t.Fatal(err)
	}
	refused(p.addr)
	p.free()

	// A listener that has gone, with a connection that lingers.
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	_, _ = client.Read(make([]byte, 1))
	client.Close()
	if _, err := closePort(l.Addr().String()); err == nil {
		t.Error("the port of a listener was taken")
	}
	l.Close()
	if p, err = closePort(l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	defer p.free()
	if p.addr != l.Addr().String() {
		t.Errorf("the port is %s, want %s", p.addr, l.Addr())
	}
	refused(p.addr)
}

func TestSink(t *testing.T) {
	s, err := startSink()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp4", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
		t.Error(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(conn); len(got) > 0 || err != nil {
		t.Errorf("the sink said %q, %v", got, err)
	}
	s.Close()
}
