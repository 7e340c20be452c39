package caddytest

import (
	"net"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// nameServer is a DNS server that has the records that a test sets, and NXDOMAIN for all other names.
type nameServer struct {
	addr string

	mu      sync.Mutex // guards records
	records map[string][]dns.RR
}

// startNameServer serves over UDP until the test ends.
func startNameServer(t *testing.T) *nameServer {
	t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{addr: socket.LocalAddr().String(), records: make(map[string][]dns.RR)}
	started, ended := make(chan struct{}), make(chan error, 1)
	server := &dns.Server{PacketConn: socket, Handler: s, NotifyStartedFunc: func() { close(started) }}
	go func() { ended <- server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

// set gives a name these records, each as a zone file has it: `app.example.com. 60 IN A 127.0.0.1`.
func (s *nameServer) set(t *testing.T, name string, records ...string) {
	t.Helper()
	var parsed []dns.RR
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, rr)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[dns.CanonicalName(name)] = parsed
}

// ServeDNS answers a query.
func (s *nameServer) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg)
	reply.SetReply(query)
	for _, q := range query.Question {
		s.mu.Lock()
		records, known := s.records[dns.CanonicalName(q.Name)]
		s.mu.Unlock()
		if !known {
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
