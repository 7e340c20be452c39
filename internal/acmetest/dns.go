package acmetest

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// resolver is the DNS server that Pebble asks, over TCP. It knows every name.
type resolver struct {
	ln     net.Listener
	server *dns.Server
	wg     sync.WaitGroup // of serve, which close ends

	mu      sync.Mutex // guards what follows
	answers map[string]answer
}

// answer is what is known of a name. The zero value is 127.0.0.1.
type answer struct {
	addrs []netip.Addr
	rcode int
}

func startResolver(tb testing.TB) *resolver {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	started := make(chan struct{})
	r := &resolver{ln: ln, answers: make(map[string]answer)}
	r.server = &dns.Server{Listener: ln, Handler: r, NotifyStartedFunc: func() { close(started) }}
	r.wg.Go(func() {
		if err := r.server.ActivateAndServe(); err != nil {
			tb.Errorf("acmetest: serving DNS: %v", err)
		}
	})
	<-started // or Shutdown would find nothing to shut down
	return r
}

func (r *resolver) addr() string { return r.ln.Addr().String() }

func (r *resolver) close() {
	_ = r.server.Shutdown() // fails if called twice, which it is not
	r.wg.Wait()
}

func (r *resolver) set(name string, a answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[dns.CanonicalName(name)] = a
}

// ServeDNS answers questions for addresses, and has no data of other types.
func (r *resolver) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg)
	reply.SetReply(query)
	for _, q := range query.Question {
		r.mu.Lock()
		a := r.answers[dns.CanonicalName(q.Name)]
		r.mu.Unlock()
		if reply.Rcode = a.rcode; a.rcode != dns.RcodeSuccess {
			continue
		}
		if len(a.addrs) == 0 {
			a.addrs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
		}
		for _, addr := range a.addrs {
			header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET}
			switch {
			case q.Qtype == dns.TypeA && addr.Is4():
				reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: addr.AsSlice()})
			case q.Qtype == dns.TypeAAAA && addr.Is6():
				reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: header, AAAA: addr.AsSlice()})
			}
		}
	}
	_ = w.WriteMsg(reply) // to a client that may be gone
}

// parseAddrs panics, like regexp.MustCompile: addresses are written in tests.
func parseAddrs(texts []string) []netip.Addr {
	var addrs []netip.Addr
	for _, text := range texts {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	return addrs
}

// parseCode panics for what is not the name of an error.
func parseCode(text string) int {
	code, ok := dns.StringToRcode[strings.ToUpper(text)]
	if !ok || code == dns.RcodeSuccess {
		panic(fmt.Sprintf("acmetest: there is no DNS error %q", text))
	}
	return code
}
