package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/api"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
	"github.com/pqproxy/caddy-pqproxy/management/dnscheck"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
	"github.com/pqproxy/caddy-pqproxy/probe"
)

// TestForgedRequests: nobody gets the service to connect where only it can: not by an address in whatever spelling, nor by a
// name that resolves there, at once or the second time, nor by a redirect. 127.0.0.2 stands for the internet, where the
// tenant's own server is; 127.0.0.1 on the same port for what must never be reached.
func TestForgedRequests(t *testing.T) {
	forbidden, inside := net.Listener(nil), atomic.Int32{}
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, port, _ := net.SplitHostPort(r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
		http.Redirect(w, r, "http://127.0.0.1:"+port+r.URL.Path, http.StatusFound)
	}))
	for range 20 { // the port may be taken on the other address
		var err error
		if forbidden, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		var outside net.Listener
		if outside, err = net.Listen("tcp4", "127.0.0.2:"+strconv.Itoa(forbidden.Addr().(*net.TCPAddr).Port)); err == nil {
			web.Listener.Close()
			web.Listener = outside
			break
		}
		forbidden.Close()
	}
	var counting sync.WaitGroup
	counting.Go(func() {
		for {
			conn, err := forbidden.Accept()
			if err != nil {
				return
			}
			inside.Add(1)
			conn.Close()
		}
	})
	defer counting.Wait()
	defer forbidden.Close()
	web.Start()
	defer web.Close()
	port := forbidden.Addr().(*net.TCPAddr).Port

	zone := serveDNS(t)
	zone.answer("meta.test.", "A 169.254.169.254")
	zone.answer("alias.test.", "CNAME meta.test.")
	zone.answer("loop.test.", "A 127.0.0.1")
	zone.answer("six.test.", "AAAA ::1")
	zone.answer("mapped.test.", "AAAA ::ffff:127.0.0.1")
	zone.answer("ec2.test.", "AAAA fd00:ec2::254")
	zone.answer("nat64.test.", "AAAA 64:ff9b::a9fe:a9fe")
	zone.answer("zero.test.", "A 0.0.0.0")
	zone.answer("rebind.test.", "A 127.0.0.2", "A 127.0.0.1")
	zone.answer("out.test.", "A 127.0.0.2")

	s := newForged(t, zone, port)
	for _, dial := range []string{
		"169.254.169.254:80", "[::ffff:169.254.169.254]:80", "[::ffff:a9fe:a9fe]:80", "[fd00:ec2::254]:80", "[64:ff9b::169.254.169.254]:80", "[2002:a9fe:a9fe::1]:80",
		"127.0.0.1:80", "127.0.0.3:80", "[::1]:80", "[::127.0.0.1]:80", "0.0.0.0:80", "[::]:80", "10.0.0.5:80", "192.168.1.1:80", "100.100.100.200:80",
		"[fe80::1]:80", "[fe80::1%eth0]:80", "224.0.0.1:80", "255.255.255.255:80", "unix//run/docker.sock", "http://169.254.169.254/latest/meta-data", ":80", "169.254.169.254",
	} {
		code, body := s.send("POST", "/v1/domains", fmt.Sprintf(`{"name":"app.example.com","upstreams":[{"dial":%q}]}`, dial))
		if code != http.StatusUnprocessableEntity || !strings.Contains(body, `"/upstreams/0/dial"`) {
			t.Errorf("%s: %d %s", dial, code, body)
		}
	}

	names := 0
	for dial, want := range map[string]string{
		"meta.test": "cloud metadata", "alias.test": "cloud metadata", "loop.test": "loopback", "six.test": "loopback", "mapped.test": "loopback",
		"ec2.test": "cloud metadata", "nat64.test": "cloud metadata", "zero.test": "unspecified", "localhost": "", "LOCALHOST.": "",
		// As inet_aton(3) reads them, which some resolvers go by: 169.254.169.254 and 127.0.0.1.
		"2852039166": "", "0xa9fea9fe": "", "0251.0376.0251.0376": "", "169.254.43518": "", "2130706433": "", "0x7f.1": "", "017700000001": "", "127.1": "",
	} {
		names++
		code, body := s.send("POST", "/v1/domains", fmt.Sprintf(`{"name":"n%d.example.com","upstreams":[{"dial":"%s:%d"}]}`, names, dial, port))
		if code == http.StatusUnprocessableEntity && strings.Contains(body, `"/upstreams/0/dial"`) {
			continue // refused where it is no name
		}
		if code != http.StatusCreated {
			t.Errorf("%s: %d %s", dial, code, body)
			continue
		}
		var made struct{ ID string }
		if err := json.Unmarshal([]byte(body), &made); err != nil {
			t.Fatal(err)
		}
		if code, body = s.send("POST", "/v1/domains/"+made.ID+"/probe", ""); code != http.StatusOK || strings.Contains(body, `"reachable":true`) || !strings.Contains(body, want) {
			t.Errorf("the probe of %s: %d %s, want %q", dial, code, body, want)
		}
	}
	for _, name := range []string{"meta.test", "alias.test", "loop.test", "six.test", "mapped.test", "ec2.test", "nat64.test", "zero.test", "out.test"} {
		code, body := s.send("POST", "/v1/domains", `{"name":"`+name+`","upstreams":[{"dial":"8.8.8.8:443"}]}`)
		var made struct{ ID string }
		if err := json.Unmarshal([]byte(body), &made); err != nil || code != http.StatusCreated {
			t.Fatalf("%s: %d %s", name, code, body)
		}
		code, body = s.send("POST", "/v1/domains/"+made.ID+"/check", "")
		if code != http.StatusOK || strings.Contains(body, `"proof":"http"`) {
			t.Errorf("the proof of %s: %d %s", name, code, body)
		}
		finding := s.proofs.of(name)
		if want := "not public"; name == "out.test" && !strings.Contains(finding, "redirects are not followed") || name != "out.test" && !strings.Contains(finding, want) {
			t.Errorf("the proof of %s: %q", name, finding)
		}
	}

	// A name that is somebody's own server, and the second time what must not be reached.
	code, body := s.send("POST", "/v1/domains", fmt.Sprintf(`{"name":"r.example.com","upstreams":[{"dial":"rebind.test:%d"}]}`, port))
	var made struct{ ID string }
	if err := json.Unmarshal([]byte(body), &made); err != nil || code != http.StatusCreated {
		t.Fatalf("%d %s", code, body)
	}
	if code, body = s.send("POST", "/v1/domains/"+made.ID+"/probe", ""); !strings.Contains(body, `"reachable":true`) {
		t.Errorf("what the policy allows is not reached: %d %s", code, body)
	}
	if code, body = s.send("POST", "/v1/domains/"+made.ID+"/probe", ""); strings.Contains(body, `"reachable":true`) || !strings.Contains(body, "loopback") {
		t.Errorf("the second time: %d %s", code, body)
	}
	if n := inside.Load(); n != 0 {
		t.Errorf("%d connections were made to where nobody may", n)
	}
}

// forged is a service whose policy is that of the internet, and 127.0.0.2.
type forged struct {
	t      *testing.T
	face   http.Handler
	key    string
	proofs *proofs
}

func newForged(t *testing.T, zone *zone, port int) *forged {
	policy, err := netpolicy.New([]string{"127.0.0.2"})
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := vault.New(vault.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	resolver, err := dnscheck.New(dnscheck.Options{Servers: []string{zone.addr}})
	if err != nil {
		t.Fatal(err)
	}
	p := &proofs{prover: &dnscheck.HTTPProver{Resolver: resolver, Policy: policy, Port: port}, found: make(map[string]string)}
	quiet := slog.New(slog.DiscardHandler)
	plane, err := management.New(management.Config{SetupToken: "the set-up token", UpstreamPolicy: policy}, management.Parts{
		Store: storetest.Open(t, store.SQLite), Sealer: sealer, Passwords: auth.NewPasswords(2), Auth: auth.NewPlane("pqproxy", nil),
		Resolver: p, Prober: dialer{zone}, Log: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &forged{t: t, face: api.New(plane, api.Options{Log: quiet}).Public(), proofs: p}
	var made struct {
		Key struct{ Secret string } `json:"api_key"`
	}
	code, body := s.send("POST", "/v1/setup",
		`{"setup_token":"the set-up token","email":"root@example.com","password":"correct horse battery","tenant":"First","api_key":true}`)
	if err := json.Unmarshal([]byte(body), &made); err != nil || code != http.StatusCreated {
		t.Fatalf("%d %s", code, body)
	}
	code, body = s.sendAs(made.Key.Secret, "PATCH", "/v1/platform/tenants/"+s.tenant(made.Key.Secret), `{"trusted":false}`)
	if code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	s.key = made.Key.Secret
	return s
}

func (s *forged) tenant(key string) string {
	var tenant struct{ ID string }
	_, body := s.sendAs(key, "GET", "/v1/tenant", "")
	if err := json.Unmarshal([]byte(body), &tenant); err != nil {
		s.t.Fatal(err)
	}
	return tenant.ID
}

func (s *forged) send(method, path, body string) (code int, answer string) {
	return s.sendAs(s.key, method, path, body)
}

func (s *forged) sendAs(key, method, path, body string) (code int, answer string) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	w := httptest.NewRecorder()
	s.face.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// proofs is a management.Resolver that fetches proofs as the service does, and remembers what it was told.
type proofs struct {
	prover *dnscheck.HTTPProver

	mu    sync.Mutex // guards found
	found map[string]string
}

func (*proofs) Look(context.Context, management.Lookup) management.Observation {
	return management.Observation{}
}
func (*proofs) PublicSuffix(string) bool { return false }

func (p *proofs) Prove(ctx context.Context, name, token, want string) management.Finding {
	v := p.prover.Prove(ctx, name, token, want)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.found[name] = v.Detail
	return management.Finding{State: management.Found(v.State), Detail: v.Detail}
}

func (p *proofs) of(name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.found[name]
}

// dialer is a management.Prober that connects as the service does, but for whom it asks for names.
type dialer struct{ zone *zone }

func (d dialer) Probe(ctx context.Context, asked *domain.Domain, policy *netpolicy.Policy) (found []management.UpstreamProbe) {
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp4", d.zone.addr)
	}}
	dialer := &net.Dialer{Control: policy.Control, Resolver: resolver}
	for _, u := range asked.Upstreams {
		found = append(found, management.UpstreamProbe(*probe.Upstream(ctx, probe.UpstreamOptions{Dial: u.Dial, Asked: asked.Name, DialContext: dialer.DialContext, Timeout: 5 * time.Second})))
	}
	return found
}

// zone is a DNS server that answers each question for a name with the next of its records; the last one stays.
type zone struct {
	addr string

	mu    sync.Mutex // guards all
	names map[string][]string
	asked map[string]int
}

func serveDNS(t *testing.T) *zone {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	z := &zone{addr: conn.LocalAddr().String(), names: make(map[string][]string), asked: make(map[string]int)}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(z.serve)}
	var serving sync.WaitGroup
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	serving.Go(func() { server.ActivateAndServe() })
	<-started
	t.Cleanup(func() {
		server.Shutdown()
		serving.Wait()
	})
	return z
}

func (z *zone) answer(name string, records ...string) { z.names[name] = records }

func (z *zone) serve(w dns.ResponseWriter, question *dns.Msg) {
	reply := new(dns.Msg)
	reply.SetReply(question)
	reply.RecursionAvailable = true
	name, qtype := strings.ToLower(question.Question[0].Name), question.Question[0].Qtype
	z.mu.Lock()
	for range 4 { // CNAMEs are followed, as a recursive server does
		records := z.names[name]
		if len(records) == 0 {
			break
		}
		at := min(z.asked[name], len(records)-1)
		rr, err := dns.NewRR(name + " 0 IN " + records[at])
		if err != nil {
			panic(err)
		}
		if alias, ok := rr.(*dns.CNAME); ok {
			reply.Answer = append(reply.Answer, rr)
			name = alias.Target
			continue
		}
		if rr.Header().Rrtype == qtype {
			reply.Answer = append(reply.Answer, rr)
			z.asked[name]++
		}
		break
	}
	z.mu.Unlock()
	if len(reply.Answer) == 0 && z.names[name] == nil {
		reply.Rcode = dns.RcodeNameError
	}
	w.WriteMsg(reply) // who asked asks again
}
