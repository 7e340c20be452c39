package dnscheck

import (
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// What the server does with questions for a name instead of answering.
const (
	servfail  = "servfail"  // with the extended error "DNSSEC Bogus"
	refused   = "refused"   //
	silent    = "silent"    // no answer
	truncated = "truncated" // over UDP: TC and nothing else; over TCP as it should
	garbage   = "garbage"   // over UDP: the ID, and bytes; over TCP as it should
	garbageIn = "garbage2"  // the same over both
	oversized = "oversized" // over UDP: more than was allowed; over TCP as it should
	lying     = "lying"     // an answer to another question
	guessed   = "guessed"   // first an answer with another ID, one to another question, one that is none; then the right one
	short     = "short"     // announces more records than there are
	hangup    = "hangup"    // over UDP: TC; over TCP: closes
	referral  = "referral"  // name servers of somebody else
	noEDNS    = "noedns"    // FORMERR where there is an OPT
	dataless  = "dataless"  // an A record without address
)

// server is a DNS server over UDP and TCP on one port.
type server struct {
	addr string

	mu      sync.Mutex // guards what follows
	records []dns.RR
	does    map[string]string // by name and, where it is of one type only, ` TYPE`
	chase   bool              // answers with the whole CNAME chain, as recursive servers do
	asked   map[string]int    // by `name TYPE`

	tcp  atomic.Int32  // questions over TCP
	came chan struct{} // gets something for a question, if it has room
}

func newServer(t *testing.T, records ...string) *server {
	t.Helper()
	s := &server{does: make(map[string]string), chase: true, asked: make(map[string]int), came: make(chan struct{}, 1)}
	s.set(t, records...)
	var ln net.Listener
	var pc net.PacketConn
	for range 20 { // the port may be taken of the other protocol
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if pc, err = net.ListenPacket("udp", ln.Addr().String()); err == nil {
			break
		}
		ln.Close()
	}
	if pc == nil {
		t.Fatal("no port is free for both protocols")
	}
	s.addr = ln.Addr().String()
	var running sync.WaitGroup
	for _, d := range []*dns.Server{{Listener: ln, Handler: s}, {PacketConn: pc, Handler: s}} {
		started := make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		running.Go(func() { _ = d.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = d.Shutdown() })
	}
	t.Cleanup(running.Wait)
	t.Cleanup(func() { ln.Close(); pc.Close() }) // runs first: Shutdown waits for handlers, and nothing may come after
	return s
}

// set replaces the records, each a line of a zone file.
func (s *server) set(t *testing.T, records ...string) {
	t.Helper()
	var all []dns.RR
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rr)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = all
}

func (s *server) do(name, what string) *server {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.does[name] = what
	return s
}

func (s *server) follows(chase bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chase = chase
}

func (s *server) questions(name, qtype string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[name+" "+qtype]
}

func (s *server) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	q := query.Question[0]
	name, qtype := canonical(q.Name), dns.TypeToString[q.Qtype]
	_, udp := w.LocalAddr().(*net.UDPAddr)
	if !udp {
		s.tcp.Add(1)
	}
	s.mu.Lock()
	s.asked[name+" "+qtype]++
	what := s.does[name]
	if of := s.does[name+" "+qtype]; of != "" {
		what = of
	}
	s.mu.Unlock()
	select {
	case s.came <- struct{}{}:
	default:
	}
	reply := s.answer(query)
	switch what {
	case servfail:
		reply = new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
		reply.SetEdns0(maxUDP, false)
		reply.IsEdns0().Option = append(reply.IsEdns0().Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeDNSBogus, ExtraText: "\x1b[31m"})
	case refused:
		reply = new(dns.Msg).SetRcode(query, dns.RcodeRefused)
	case silent:
		return
	case truncated, hangup:
		if udp {
			reply.Answer, reply.Truncated = nil, true
		} else if what == hangup {
			w.Close()
			return
		}
	case garbage, garbageIn:
		if udp || what == garbageIn {
			_, _ = w.Write(append([]byte{byte(query.Id >> 8), byte(query.Id), 0x80, 0, 0, 9, 0, 9, 0, 9, 0, 9}, strings.Repeat("\xc0\x0c", 40)...))
			return
		}
	case oversized:
		if udp {
			for range 100 {
				reply.Answer = append(reply.Answer, reply.Answer[0])
			}
			reply.Compress = false
		}
	case lying:
		reply.Question[0].Name = "other.test."
	case guessed:
		other := reply.Copy()
		other.Id++
		_ = w.WriteMsg(other)
		other = reply.Copy()
		other.Question[0].Name = "other.test."
		_ = w.WriteMsg(other)
		_ = w.WriteMsg(query)
		_, _ = w.Write([]byte("no message"))
	case short:
		packed, err := reply.Pack()
		if err != nil {
			panic(err)
		}
		packed[7]++
		_, _ = w.Write(packed)
		return
	case referral:
		reply = new(dns.Msg).SetReply(query)
		reply.Ns = []dns.RR{&dns.NS{Hdr: dns.RR_Header{Name: "test.", Rrtype: dns.TypeNS, Class: dns.ClassINET}, Ns: "ns.test."}}
	case noEDNS:
		if query.IsEdns0() != nil {
			reply = new(dns.Msg).SetRcodeFormatError(query)
			reply.Question = query.Question
		}
	case dataless:
		reply.Answer = []dns.RR{&dns.ANY{Hdr: dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET}}}
	}
	_ = w.WriteMsg(reply)
}

// answer is what an honest server says.
func (s *server) answer(query *dns.Msg) *dns.Msg {
	s.mu.Lock()
	defer s.mu.Unlock()
	reply := new(dns.Msg).SetReply(query)
	reply.RecursionAvailable = true
	name := canonical(query.Question[0].Name)
	for range 20 {
		exists, next := false, ""
		for _, rr := range s.records {
			owner := canonical(rr.Header().Name)
			if owner != name && !s.wildcard(owner, name) {
				exists = exists || strings.HasSuffix(owner, "."+name)
				continue
			}
			exists = true
			rr = dns.Copy(rr)
			rr.Header().Name = name + "."
			if cname, ok := rr.(*dns.CNAME); ok {
				next = canonical(cname.Target)
			} else if rr.Header().Rrtype != query.Question[0].Qtype {
				continue
			}
			reply.Answer = append(reply.Answer, rr)
		}
		if !exists {
			reply.Rcode = dns.RcodeNameError
		}
		if next == "" || !s.chase {
			break
		}
		name = next
	}
	return reply
}

// wildcard reports whether owner is a wildcard that answers for name. s.mu is held.
func (s *server) wildcard(owner, name string) bool {
	rest, ok := strings.CutPrefix(owner, "*")
	if !ok || !strings.HasSuffix(name, rest) || name == rest[1:] {
		return false
	}
	for _, rr := range s.records {
		if o := canonical(rr.Header().Name); o == name || strings.HasSuffix(o, "."+name) {
			return false
		}
	}
	return true
}

// resolver asks s alone. Attempts that are answered take as long as they take; the timeout is for those that are not.
func (s *server) resolver(t *testing.T, timeout time.Duration) *Resolver {
	t.Helper()
	r, err := New(Options{Servers: []string{s.addr}, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const (
	patient   = 5 * time.Second       // for servers that answer
	impatient = 30 * time.Millisecond // for those that do not
)
