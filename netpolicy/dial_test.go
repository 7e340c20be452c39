package netpolicy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// server accepts connections on loopback and returns its port and how many it accepted so far.
func server(t *testing.T) (port string, accepted func() int) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	count := 0
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			count++
			mu.Unlock()
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		done.Wait()
	})
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	return port, func() int {
		mu.Lock()
		defer mu.Unlock()
		return count
	}
}

// nameServer is a DNS server whose answers change: the first question for an address of a type gets the
// first set of addresses, the next the next, and all after the last get the last.
type nameServer struct {
	t       *testing.T
	conn    net.PacketConn
	mu      sync.Mutex
	answers [][]netip.Addr
	asked   map[dnsmessage.Type]int
}

// startNameServer returns a resolver that asks such a server, whatever the system's configuration says.
func startNameServer(t *testing.T, answers ...[]netip.Addr) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{t: t, conn: conn, answers: answers, asked: make(map[dnsmessage.Type]int)}
	var done sync.WaitGroup
	done.Go(s.serve)
	t.Cleanup(func() {
		_ = conn.Close()
		done.Wait()
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp4", conn.LocalAddr().String())
	}}
}

func (s *nameServer) serve() {
	question := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(question)
		if err != nil {
			return
		}
		answer, err := s.answer(question[:n])
		if err != nil {
			s.t.Errorf("answering: %v", err)
			return
		}
		_, _ = s.conn.WriteTo(answer, from)
	}
}

func (s *nameServer) answer(question []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return nil, err
	}
	m.Header = dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true, RecursionDesired: true, RecursionAvailable: true}
	m.Additionals = nil
	q := m.Questions[0]
	for _, addr := range s.next(q.Type) {
		header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
		switch {
		case q.Type == dnsmessage.TypeA && addr.Is4():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: addr.As4()}})
		case q.Type == dnsmessage.TypeAAAA && addr.Is6():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	return m.Pack()
}

func (s *nameServer) next(asked dnsmessage.Type) []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := min(s.asked[asked], len(s.answers)-1)
	s.asked[asked]++
	return s.answers[i]
}

func addrs(texts ...string) (all []netip.Addr) {
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

func dial(t *testing.T, p *Policy, resolver *net.Resolver, address string) error {
	t.Helper()
	dialer := net.Dialer{Control: p.Control, Resolver: resolver}
	c, err := dialer.DialContext(t.Context(), "tcp", address)
	if err == nil {
		_ = c.Close()
	}
	return err
}

func TestDialLiteral(t *testing.T) {
	port, accepted := server(t)
	for _, host := range []string{"127.0.0.1", "::ffff:127.0.0.1"} {
		wantDenied(t, dial(t, mustNew(t), nil, net.JoinHostPort(host, port)), "127.0.0.0/8", "loopback")
	}
	wantDenied(t, dial(t, mustNew(t), nil, ":"+port), "::/128", "unspecified")
	if n := accepted(); n != 0 {
		t.Fatalf("%d connections came through", n)
	}
	for _, p := range []*Policy{nil, mustNew(t, "127.0.0.1")} {
		if err := dial(t, p, nil, net.JoinHostPort("127.0.0.1", port)); err != nil {
			t.Error(err)
		}
	}
}

func TestDialOwnListener(t *testing.T) {
	port, accepted := server(t)
	own := func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:" + port)} }
	resolver := startNameServer(t, addrs("127.0.0.1"))
	for _, p := range []*Policy{nil, mustNew(t), mustNew(t, "127.0.0.0/8")} {
		for _, host := range []string{"127.0.0.1", "::ffff:127.0.0.1", "", "edge.example."} {
			if err := dial(t, p.WithOwn(own), resolver, net.JoinHostPort(host, port)); !errors.Is(err, ErrLoop) {
				t.Errorf("%q: %v, want a loop", host, err)
			}
		}
	}
	if n := accepted(); n != 0 {
		t.Errorf("%d connections came through", n)
	}
}

// TestDialRebinding: a name that resolves to an allowed address while it is checked, and to another one when
// it is connected to, is refused, because Control sees what is connected to.
func TestDialRebinding(t *testing.T) {
	port, accepted := server(t)
	for _, second := range [][]netip.Addr{addrs("127.0.0.1"), addrs("::ffff:127.0.0.1")} {
		p := mustNew(t, "127.0.0.2")
		resolver := startNameServer(t, addrs("127.0.0.2", "::ffff:127.0.0.2"), second)

		const name = "rebind.example."
		if err := p.CheckDial(net.JoinHostPort(name, port)); err != nil {
			t.Fatal(err)
		}
		first, err := resolver.LookupNetIP(t.Context(), "ip", name)
		if err != nil {
			t.Fatal(err)
		}
		for _, addr := range first {
			if err := p.Check(addr); err != nil {
				t.Fatalf("what it resolves to first: %v", err)
			}
		}
		wantDenied(t, dial(t, p, resolver, net.JoinHostPort(name, port)), "127.0.0.0/8", "loopback")
	}
	if n := accepted(); n != 0 {
		t.Errorf("%d connections came through", n)
	}
}

// TestDialMixedAnswers: of a name's addresses the ones that are refused are passed over.
func TestDialMixedAnswers(t *testing.T) {
	port, _ := server(t)
	resolver := startNameServer(t, addrs("127.0.0.9", "::1", "127.0.0.1"))
	if err := dial(t, mustNew(t, "127.0.0.1"), resolver, net.JoinHostPort("mixed.example.", port)); err != nil {
		t.Error(err)
	}
}
