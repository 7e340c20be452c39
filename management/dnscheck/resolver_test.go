package dnscheck

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestLookup(t *testing.T) {
	for _, test := range []struct {
		name    string
		records []string
		does    string
		steps   bool // the server does not follow CNAMEs itself
		timeout time.Duration
		found   found
		addrs   string
		chain   string
		reason  string // of what could not be asked, or the fault
		tcp     bool
	}{
		{name: "there", records: []string{"a.test. A 192.0.2.2", "a.test. A 192.0.2.1", "a.test. A 192.0.2.1"}, found: data, addrs: "192.0.2.1 192.0.2.2"},
		{name: "no data", records: []string{"a.test. TXT x"}, found: noData},
		{name: "no name", records: []string{"b.test. A 192.0.2.1"}, found: noName},
		{name: "chain at once", records: []string{"a.test. CNAME B.test.", "b.test. CNAME c.test.", "c.test. A 192.0.2.1"}, found: data, addrs: "192.0.2.1", chain: "b.test c.test"},
		{name: "chain in steps", steps: true, records: []string{"a.test. CNAME b.test.", "b.test. CNAME c.test.", "c.test. A 192.0.2.1"}, found: data, addrs: "192.0.2.1", chain: "b.test c.test"},
		{name: "chain to no name", records: []string{"a.test. CNAME gone.test."}, found: noName, chain: "gone.test"},
		{name: "chain to no data", records: []string{"a.test. CNAME b.test.", "b.test. TXT x"}, found: noData, chain: "b.test"},
		{name: "loop", records: []string{"a.test. CNAME b.test.", "b.test. CNAME a.test."}, found: broken, chain: "b.test a.test", reason: "circle"},
		{name: "loop in steps", steps: true, records: []string{"a.test. CNAME b.test.", "b.test. CNAME a.test."}, found: broken, chain: "b.test a.test", reason: "circle"},
		{name: "loop to itself", records: []string{"a.test. CNAME A.TEST."}, found: broken, chain: "a.test", reason: "circle"},
		{name: "two CNAMEs", records: []string{"a.test. CNAME b.test.", "a.test. CNAME c.test."}, found: broken, reason: "more than one CNAME"},
		{name: "root", records: []string{"a.test. CNAME ."}, found: broken, reason: "root"},
		{name: "eight CNAMEs", records: long(8), found: data, addrs: "192.0.2.1", chain: "c1.test c2.test c3.test c4.test c5.test c6.test c7.test c8.test"},
		{name: "nine CNAMEs", records: long(9), found: failed, chain: "c1.test c2.test c3.test c4.test c5.test c6.test c7.test c8.test", reason: "more than 8"},
		{name: "nine CNAMEs in steps", steps: true, records: long(9), found: failed, chain: "c1.test c2.test c3.test c4.test c5.test c6.test c7.test c8.test", reason: "more than 8"},
		{name: "SERVFAIL", does: servfail, found: failed, reason: "SERVFAIL (DNSSEC Bogus)"},
		{name: "REFUSED", does: refused, found: failed, reason: "REFUSED"},
		{name: "referral", does: referral, found: failed, reason: "recursive"},
		{name: "silent", does: silent, timeout: impatient, found: failed, reason: "in time"},
		{name: "truncated", records: []string{"a.test. A 192.0.2.1"}, does: truncated, found: data, addrs: "192.0.2.1", tcp: true},
		{name: "truncated, then closed", records: []string{"a.test. A 192.0.2.1"}, does: hangup, found: failed, reason: "closed", tcp: true},
		{name: "garbage over UDP", records: []string{"a.test. A 192.0.2.1"}, does: garbage, found: data, addrs: "192.0.2.1", tcp: true},
		{name: "garbage", does: garbageIn, found: failed, reason: "cannot be read", tcp: true},
		{name: "oversized", records: []string{"a.test. A 192.0.2.1"}, does: oversized, found: data, addrs: "192.0.2.1", tcp: true},
		{name: "less than announced", records: []string{"a.test. A 192.0.2.1"}, does: short, found: failed, reason: "cannot be read", tcp: true},
		{name: "without data", does: dataless, found: failed, reason: "cannot be read", tcp: true},
		{name: "lying", records: []string{"other.test. A 192.0.2.1"}, does: lying, timeout: impatient, found: failed, reason: "another question"},
		{name: "guessed", records: []string{"a.test. A 192.0.2.1"}, does: guessed, found: data, addrs: "192.0.2.1"},
		{name: "no EDNS0", records: []string{"a.test. A 192.0.2.1"}, does: noEDNS, found: data, addrs: "192.0.2.1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, test.records...).do("a.test", test.does)
			s.follows(!test.steps)
			timeout := test.timeout
			if timeout == 0 {
				timeout = patient
			}
			got := s.resolver(t, timeout).lookup(t.Context(), "A.test.", dns.TypeA)
			if got.found != test.found || strings.Join(addrTexts(got.addrs()), " ") != test.addrs || strings.Join(got.chain, " ") != test.chain {
				t.Errorf("found %d, %v by %v (%v), want %d, %q by %q", got.found, got.addrs(), got.chain, got.err, test.found, test.addrs, test.chain)
			}
			reason := got.fault
			if failure := firstFailure(&got); failure != nil {
				reason = failure.Reason
			}
			if (reason == "") != (test.reason == "") || !strings.Contains(reason, test.reason) || strings.Contains(reason, "127.0.0.1") || strings.Contains(reason, "\x1b") {
				t.Errorf("reason %q, want %q", reason, test.reason)
			}
			if tcp := s.tcp.Load() > 0; tcp != test.tcp {
				t.Errorf("over TCP: %t, want %t", tcp, test.tcp)
			}
		})
	}
}

// long is a chain of n CNAMEs from a.test.
func long(n int) []string {
	names := []string{"a.test."}
	for i := range n {
		names = append(names, "c"+string(rune('1'+i))+".test.")
	}
	var records []string
	for i := range n {
		records = append(records, names[i]+" CNAME "+names[i+1])
	}
	return append(records, names[n]+" A 192.0.2.1")
}

// Records of names that nobody asked for say nothing: a server could give them for any name.
func TestLookupIgnoresWhatWasNotAskedFor(t *testing.T) {
	query := newQuery("a.test", dns.TypeA, false)
	reply := new(dns.Msg).SetReply(query)
	for _, text := range []string{"b.test. A 192.0.2.9", "a.test. CH A 192.0.2.8", "a.test. AAAA 2001:db8::1", "b.test. CNAME a.test.", "a.test. A 192.0.2.1"} {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		reply.Answer = append(reply.Answer, rr)
	}
	a, at := answer{}, "a.test"
	if !a.follow(reply, &at, map[string]bool{at: true}) {
		t.Fatalf("not followed: %+v", a)
	}
	a.take(reply, at, dns.TypeA)
	if got := addrTexts(a.addrs()); !slices.Equal(got, []string{"192.0.2.1"}) || len(a.chain) > 0 {
		t.Errorf("addresses %v by %v, want that of a.test alone", got, a.chain)
	}
}

func TestResolverAsksAnotherServer(t *testing.T) {
	bad := newServer(t).do("a.test", servfail)
	mute := newServer(t).do("a.test", silent)
	good := newServer(t, "a.test. A 192.0.2.1")
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	r, err := New(Options{Servers: []string{bad.addr, gone.LocalAddr().String(), mute.addr, good.addr}, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.lookup(t.Context(), "a.test", dns.TypeA); got.found != data {
		t.Errorf("found %d, %v, want data of the last server", got.found, got.err)
	}
	if bad.questions("a.test", "A") != 1 || mute.questions("a.test", "A") != 1 {
		t.Error("a server was not asked, or again")
	}
}

func TestResolverTriesAgain(t *testing.T) {
	s := newServer(t).do("a.test", servfail)
	got := s.resolver(t, patient).lookup(t.Context(), "a.test", dns.TypeA)
	if n := s.questions("a.test", "A"); got.found != failed || n != rounds {
		t.Errorf("found %d after %d questions, want failed after %d", got.found, n, rounds)
	}
	var failure *LookupError
	if !errors.As(got.err, &failure) || failure.Server != s.addr || failure.Type != "A" || !strings.Contains(failure.Error(), s.addr) {
		t.Errorf("error %v, want one that names the server for the log", got.err)
	}
}

func TestResolverEndsWithItsContext(t *testing.T) {
	s := newServer(t).do("a.test", silent)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan answer)
	go func() { ended <- s.resolver(t, time.Hour).lookup(ctx, "a.test", dns.TypeA) }()
	<-s.came
	cancel()
	select {
	case got := <-ended:
		if got.found != failed {
			t.Errorf("found %d, want failed", got.found)
		}
	case <-time.After(patient):
		t.Fatal("goes on without its context")
	}
}

func TestNewChecksServers(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1": "192.0.2.1:53", "192.0.2.1:5353": "192.0.2.1:5353", "2001:db8::1": "[2001:db8::1]:53", "[2001:db8::1]": "[2001:db8::1]:53",
		"[2001:db8::1]:5353": "[2001:db8::1]:5353", "dns.internal": "dns.internal:53", "dns.internal:54": "dns.internal:54",
		"192.0.2.1:0": "", "192.0.2.1:dns": "", ":53": "", "": "", "https://dns/": "", "1:2:3": "",
	} {
		r, err := New(Options{Servers: []string{text}})
		if (err == nil) != (want != "") || err == nil && r.servers[0] != want {
			t.Errorf("%q: %v, %v, want %q", text, r, err, want)
		}
	}
	if _, err := New(Options{Servers: slices.Repeat([]string{"192.0.2.1"}, 9)}); err == nil {
		t.Error("nine servers pass")
	}
}

func TestResolverReadsTheSystemsServersAgain(t *testing.T) {
	r, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.file = filepath.Join(t.TempDir(), "resolv.conf")
	for _, step := range []struct{ content, want string }{
		{"", "127.0.0.1:53"},
		{"nameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch example.com\n", "192.0.2.1:53 [2001:db8::1]:53"},
		{"nameserver 192.0.2.2\n", "192.0.2.2:53"},
	} {
		if step.content != "" {
			if err := os.WriteFile(r.file, []byte(step.content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := r.list(); err != nil || strings.Join(got, " ") != step.want {
			t.Errorf("%q: %v, %v, want %s", step.content, got, err, step.want)
		}
	}
}

func FuzzReadReply(f *testing.F) {
	query := newQuery("a.test", dns.TypeTXT, true)
	query.Id = 0x1234
	for _, records := range [][]string{{"a.test. TXT hello"}, {"a.test. CNAME b.test.", "b.test. TXT \"\\007\""}, {"a.test. CAA 0 issue \"ca.test\""}, {"a.test. A 192.0.2.1"}} {
		reply := new(dns.Msg).SetReply(query)
		for _, text := range records {
			rr, err := dns.NewRR(text)
			if err != nil {
				f.Fatal(err)
			}
			reply.Answer = append(reply.Answer, rr)
		}
		packed, err := reply.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
		f.Add(packed[:len(packed)-3])
	}
	f.Add([]byte("\x12\x34\x80\x00\x00\x01\x00\x01\x00\x00\x00\x00\xc0\x0c\x00\x10\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readReply(b, query)
		if (m == nil) != (err != nil) {
			t.Fatalf("%v, %v", m, err)
		}
		if err != nil {
			return
		}
		if m.Id != query.Id || !m.Response || m.Truncated || len(m.Answer) > maxAnswers {
			t.Fatalf("accepted %v", m)
		}
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeCAA} {
			a, at := answer{}, "a.test"
			if a.follow(m, &at, map[string]bool{at: true}) {
				a.take(m, at, qtype)
			}
			if len(a.chain) > maxChain {
				t.Fatalf("a chain of %d", len(a.chain))
			}
			set := caaSet{at: "a.test"}
			for _, rr := range a.rrs {
				if caa, ok := rr.(*dns.CAA); ok {
					set.records = append(set.records, caa)
				}
			}
			detail := set.judge([]string{"ca.test"}, false, "a.test").Detail
			for _, text := range append(append(shown(textsOf(&a)), shown(a.chain)...), addrText(append(a.addrs(), a.addrs()...)), detail) {
				if s := strings.ReplaceAll(text, "…", ""); strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
					t.Fatalf("not printable: %q", text)
				}
			}
		}
	})
}
