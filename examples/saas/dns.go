package main

import (
	"fmt"
	"net"
	"sync"

	"github.com/miekg/dns"

	"github.com/pqproxy/caddy-pqproxy/examples/internal/demo"
)

// nameServer stands for the customer's DNS. It has no records at first.
type nameServer struct {
	udp, tcp string // addresses

	servers []*dns.Server
	ended   sync.WaitGroup // of what close ends

	mu      sync.Mutex // guards records
	records map[string][]dns.RR
}

// startNameServer serves over UDP and TCP until close.
func startNameServer() (*nameServer, error) {
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		socket.Close()
		return nil, err
	}
	s := &nameServer{udp: socket.LocalAddr().String(), tcp: ln.Addr().String(), records: make(map[string][]dns.RR)}
	for _, server := range []*dns.Server{{PacketConn: socket, Handler: s}, {Listener: ln, Handler: s}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		s.ended.Go(func() { _ = server.ActivateAndServe() })
		<-started // or Shutdown would find nothing to shut down
		s.servers = append(s.servers, server)
	}
	return s, nil
}

func (s *nameServer) close() {
	for _, server := range s.servers {
		_ = server.Shutdown() // fails if called twice, which it is not
	}
	s.ended.Wait()
}

// set adds a record.
func (s *nameServer) set(record *demo.DNSRecord) error {
	rr, err := dns.NewRR(fmt.Sprintf("%s 60 IN %s %s", dns.Fqdn(record.Name), record.Type, record.Value))
	if err != nil {
		return fmt.Errorf("the record to set is none: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := dns.CanonicalName(record.Name)
	s.records[name] = append(s.records[name], rr)
	return nil
}

// ServeDNS answers a query.
func (s *nameServer) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg)
	reply.SetReply(query)
	for _, q := range query.Question {
		s.mu.Lock()
		records := s.records[dns.CanonicalName(q.Name)]
		s.mu.Unlock()
		if len(records) == 0 {
			reply.Rcode = dns.RcodeNameError
		}
		for _, rr := range records {
			if rr.Header().Rrtype == q.Qtype {
				reply.Answer = append(reply.Answer, rr)
			}
		}
	}
	_ = w.WriteMsg(reply) // to a client that may be gone
}
