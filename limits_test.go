package pqproxy

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestMaxConnections fills the listener. The connection past the limit is closed when accepted; when one has left
// there is room again.
func TestMaxConnections(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, "limits {\nmax_connections 2\n}"+hostileDomains, nil)
	second := pqtest.Dial(t, s.addr, s.client("app.example.com"))
	echo(t, second, "second")
	for range 3 {
		c := pqtest.DialRaw(t, s.addr)
		if data, end := pqtest.ReadToEnd(t, c); len(data) > 0 || end != pqtest.FIN {
			t.Errorf("read %q and %s, want a FIN alone", data, end)
		}
		r := s.recordOf(t, c)
		checkEnd(t, r, reasonOverLimit, sideEdge)
		if r.str("level") != "debug" {
			t.Errorf("the record has level %s", r.str("level"))
		}
		s.disturbed(t)
	}
	echo(t, second, "second still")
	second.Close()
	checkEnd(t, s.recordOf(t, second), reasonDone, sideClient)
	s.checkReached(t, "app.example.com", 1)
}

// TestDomainMaxConnections fills one domain; another is not full by that.
func TestDomainMaxConnections(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, "domain app.example.com {\n$UP\nmax_connections 1\n$PAIR\n}", nil)
	first := pqtest.Dial(t, s.addr, s.client("app.example.com"))
	echo(t, first, "first")
	for range 3 {
		raw := pqtest.DialRaw(t, s.addr)
		c := tls.Client(raw, s.client("app.example.com"))
		if err := c.Handshake(); alertOfHandshake(err) != alertInternalError {
			t.Errorf("handshake: %v, want internal_error", err)
		}
		c.Close()
		r := s.recordOf(t, raw)
		checkEnd(t, r, reasonDomainOver, sideEdge)
		if !strings.Contains(r.str(keyError), "max_connections (1)") {
			t.Errorf("the error is %s", r.str(keyError))
		}
		s.disturbed(t)
	}
	first.Close()
	checkEnd(t, s.recordOf(t, first), reasonDone, sideClient)
	s.checkReached(t, "app.example.com", 1)
}

// proxied is a client of an edge behind caddy-l4's proxy_protocol handler, which gives it an address.
type proxied struct {
	*street
	ports int // given away
}

// connect opens a connection in the name of an address and returns it with its header, not yet written, and
// its port.
func (p *proxied) connect(t *testing.T, address string) (raw pqtest.RawConn, header []byte, port float64) {
	t.Helper()
	p.ports++
	family, destination := "TCP4", "198.51.100.1"
	if strings.Contains(address, ":") {
		family, destination = "TCP6", "2001:db8:ffff::1"
	}
	return pqtest.DialRaw(t, p.addr), fmt.Appendf(nil, "PROXY %s %s %s %d 443\r\n", family, address, destination, p.ports), float64(p.ports)
}

// halfOpen sends a hello, reads the answer and keeps its Finished.
func (p *proxied) halfOpen(t *testing.T, address string) (raw pqtest.RawConn, port float64) {
	t.Helper()
	raw, header, port := p.connect(t, address)
	if _, err := raw.Write(append(header, pqtest.ClientHello(t, p.client("app.example.com"))...)); err != nil {
		t.Fatal(err)
	}
	readServerHello(t, raw)
	return raw, port
}

// whole runs a connection from hello to close.
func (p *proxied) whole(t *testing.T, address string) {
	t.Helper()
	raw, header, port := p.connect(t, address)
	c := tls.Client(&prefixedConn{Conn: raw, prefix: header}, p.client("app.example.com"))
	echo(t, c, "whole")
	c.Close()
	checkEnd(t, p.log.recordWhere(keyClientPort, port), reasonDone, sideClient)
}

// checkAccepted waits until so many connections have reached the upstream, and expects no more.
func (p *proxied) checkAccepted(t *testing.T, want int) {
	t.Helper()
	pqtest.Wait(t, fmt.Sprint(want, " connections at the upstream"), func() bool { return p.up.Accepted() >= want })
	if got := p.up.Accepted(); got != want {
		t.Fatalf("%d connections reached the upstream, want %d", got, want)
	}
}

// TestEarlyDials uses up the dials beside handshakes. Past them nothing is dialled for a client that keeps its
// Finished, and one that sends it is served all the same.
func TestEarlyDials(t *testing.T) {
	for _, test := range []struct {
		name, limit           string
		first, waiting, other string // clients; other is not bound by what first holds; empty: all are
	}{
		{"in all", "early_dials 1", "192.0.2.1", "192.0.2.2", ""},
		{"per IPv4 address", "early_dials_per_client 1", "192.0.2.1", "192.0.2.1", "192.0.2.2"},
		{"per IPv6 /64", "early_dials_per_client 1", "2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			pqtest.Leaks(t)
			p := &proxied{street: startStreetBehindProxy(t, "limits {\n"+test.limit+"\n}"+hostileDomains, nil)}
			first, firstPort := p.halfOpen(t, test.first)
			p.checkAccepted(t, 1)
			waiting, waitingPort := p.halfOpen(t, test.waiting)
			p.whole(t, test.waiting)
			p.checkAccepted(t, 2)
			if test.other != "" {
				other, port := p.halfOpen(t, test.other)
				p.checkAccepted(t, 3)
				other.Close()
				checkEnd(t, p.log.recordWhere(keyClientPort, port), reasonClientGone, sideClient)
			}
			// Accept queues are in order: had there been a dial for who waited, it would count by now.
			reached := p.up.Accepted()
			waiting.Close()
			checkEnd(t, p.log.recordWhere(keyClientPort, waitingPort), reasonClientGone, sideClient)
			p.whole(t, test.waiting)
			p.checkAccepted(t, reached+1)

			// The slot is free again when its handshake is over.
			first.Close()
			checkEnd(t, p.log.recordWhere(keyClientPort, firstPort), reasonClientGone, sideClient)
			again, port := p.halfOpen(t, test.waiting)
			p.checkAccepted(t, reached+2)
			again.Close()
			checkEnd(t, p.log.recordWhere(keyClientPort, port), reasonClientGone, sideClient)
		})
	}
}

// startStreetBehindProxy is startStreet with a proxy_protocol handler in front, and no neighbour.
func startStreetBehindProxy(t *testing.T, option string, handler func(*pqtest.UpstreamConn)) *street {
	t.Helper()
	handlers := []string{"proxy_protocol {\nallow 127.0.0.1/32\n}", "pqproxy"}
	s := &street{edge: startEdge(t, "", handlers...), upstreams: 1}
	s.up = pqtest.StartUpstream(t, pqtest.UpstreamConfig{Handler: handler, TLS: &tls.Config{
		Certificates: []tls.Certificate{s.ca.Issue(t, "app.example.com")},
	}})
	s.load(s.fill(option), handlers...)
	return s
}

// TestDialTimeout has upstreams that accept and say nothing. Each has dial_timeout, all together three times that. The
// client's own handshake_timeout is over by then, and still it hears what the matter is.
func TestDialTimeout(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, "", nil)
	option := "limits {\ndial_timeout 200ms\nhandshake_timeout 400ms\n}" + neighbourDomain + "domain app.example.com {\n$PAIR\n"
	var ups []*pqtest.Upstream
	for range 5 {
		up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{Handler: pqtest.Hold})
		ups = append(ups, up)
		option += "upstream " + up.Addr() + " {\ntls\n}\n"
	}
	s.load(s.fill(option + "}"))
	for _, protos := range [][]string{nil, {"h2"}} {
		t.Run(fmt.Sprintf("alpn=%d", len(protos)), func(t *testing.T) {
			raw := pqtest.DialRaw(t, s.addr)
			c := tls.Client(raw, s.client("app.example.com", offering(protos...)))
			err := c.Handshake()
			if protos != nil {
				if alertOfHandshake(err) != alertInternalError {
					t.Errorf("handshake: %v, want internal_error", err)
				}
			} else if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client read %v, want a reset", err)
			}
			c.Close()
			r := s.recordOf(t, raw)
			checkEnd(t, r, reasonUpTimeout, sideEdge)
			tried := 0 // not the same ones each time: those that did not answer come last then
			for _, up := range ups {
				if strings.Contains(r.str(keyError), up.Addr()) {
					tried++
				}
			}
			if tried != attemptsPerDial {
				t.Errorf("%d upstreams were tried (%s)", tried, r.str(keyError))
			}
			s.disturbed(t)
		})
	}
}

// TestSlowUpstream has an upstream take longer for its handshake than handshake_timeout: that is for clients.
func TestSlowUpstream(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, "", nil)
	cert := []tls.Certificate{s.ca.Issue(t, "app.example.com")}
	for _, protos := range [][]string{nil, {"h2"}} { // with ALPN our ServerHello waits for it
		t.Run(fmt.Sprintf("alpn=%d", len(protos)), func(t *testing.T) {
			s.leaks(t)
			answer := make(chan struct{})
			release := sync.OnceFunc(func() { close(answer) })
			up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{TLS: &tls.Config{
				GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
					<-answer
					return &tls.Config{Certificates: cert, NextProtos: protos}, nil
				},
			}})
			t.Cleanup(release)
			s.load(s.fill(neighbourDomain + fmt.Sprintf(`limits {
				handshake_timeout 500ms
				dial_timeout 20s
			}
			domain app.example.com {
				upstream %s {
					tls_ca $CA
				}
				$PAIR
			}`, up.Addr())))
			c := tls.Client(pqtest.DialRaw(t, s.addr), s.client("app.example.com", offering(protos...)))
			done := make(chan error, 1)
			go func() { done <- c.Handshake() }()
			pqtest.Wait(t, "the dial", func() bool { return up.Accepted() == 1 })

			silent := pqtest.DialRaw(t, s.addr) // comes later, and has no excuse
			checkEnd(t, s.recordOf(t, silent), reasonHelloTimeout, sideEdge)
			release()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			echo(t, c, "finally")
			c.Close()
			checkEnd(t, s.recordOf(t, c), reasonDone, sideClient)
			s.disturbed(t)
		})
	}
}

// TestIdleTimeout resets both sides of a connection on which nothing flows, also one where somebody does not read, and
// leaves one alone that is used.
func TestIdleTimeout(t *testing.T) {
	pqtest.Leaks(t)
	s, kinds := startTruncation(t, "limits {\nidle_timeout 1s\n}")
	busy := pqtest.Dial(t, s.addr, s.client("plain.wild.example.com"))
	busyUp := kinds["plain"].Next(t)
	defer busyUp.Close()
	say(t, busy, busyUp, "busy")
	say(t, busyUp, busy, "too")
	for _, test := range []struct {
		name string
		deed func(client, up net.Conn)
	}{
		{"silence", func(net.Conn, net.Conn) {}},
		{"upstream does not read", func(client, _ net.Conn) { flood(client) }},
		{"client does not read", func(_, up net.Conn) { flood(up) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.leaks(t)
			client, up := kinds.connect(t, s, "tls")
			flooded := make(chan struct{})
			go func() {
				defer close(flooded)
				test.deed(client, up)
			}()
			port := float64(addrPort(client.LocalAddr()).Port())
			isRecord := func(line logLine) bool { return line.str("msg") == "connection" && line[keyClientPort] == port }
			for len(s.log.all(isRecord)) == 0 {
				say(t, busy, busyUp, "busy")
				say(t, busyUp, busy, "too")
			}
			<-flooded
			checkEnd(t, s.recordOf(t, client), reasonIdleTimeout, sideEdge)
			for _, c := range []net.Conn{client, up} {
				if _, err := io.Copy(io.Discard, pqtest.Raw(t, c)); err != nil && !isReset(err) {
					t.Errorf("read %v, want a reset", err)
				}
			}
		})
	}
}

// flood writes until that fails.
func flood(c net.Conn) {
	for chunk := make([]byte, 64<<10); ; {
		if _, err := c.Write(chunk); err != nil {
			return
		}
	}
}

// TestGracePeriod ends what a reload takes away within grace_period, and then what is left when no config has the
// app any more. All of them end by reset.
func TestGracePeriod(t *testing.T) {
	pqtest.Leaks(t)
	const limits = "limits {\ngrace_period 100ms\n}\n"
	s := startStreet(t, limits+hostileDomains, nil)
	open := func() *tls.Conn {
		s.load(s.fill(limits + neighbourDomain + hostileDomains))
		c := pqtest.Dial(t, s.addr, s.client("app.example.com"))
		echo(t, c, "hi")
		return c
	}
	for _, test := range []struct {
		name, domain string
		reason       endReason
	}{
		{"removed", "", reasonDomainRemoved},
		{"other tenant", "domain app.example.com {\ntenant other\n$UP\n$PAIR\n}", reasonDomainRemoved},
		{"suspended", "domain app.example.com {\n$UP\nsuspended\n$PAIR\n}", reasonSuspended},
	} {
		c := open()
		s.load(s.fill(limits + neighbourDomain + test.domain))
		checkEnding(t, "client of a domain that was "+test.name, c, pqtest.RST)
		checkEnd(t, s.recordOf(t, c), test.reason, sideEdge)
		s.disturbed(t)
	}
	c := open()
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*tls.Conn{c, s.neighbour} {
		checkEnding(t, "client", c, pqtest.RST)
		checkEnd(t, s.recordOf(t, c), reasonDrained, sideEdge)
	}
}

// TestWrongConfigs loads configs with one fault each. The error names the field and what to do, and the edge goes on
// as it was.
func TestWrongConfigs(t *testing.T) {
	pqtest.Leaks(t)
	s := startStreet(t, hostileDomains, nil)
	writeFile(t, s.dir+"/empty", nil)
	otherChain, otherKey := s.ca.PairFiles(t, "other.example.org")
	limits := func(option string) string { return "limits {\n" + option + "\n}" }
	domain := func(option string) string {
		return "domain app.example.com {\nupstream 127.0.0.1:9\n$PAIR\n" + option + "\n}"
	}
	upstream := func(address string) string { return "domain app.example.com {\nupstream " + address + "\n$PAIR\n}" }
	pair := func(option string) string {
		return "domain app.example.com {\nupstream 127.0.0.1:9\n" + option + "\n}"
	}
	named := func(name string) string { return "domain " + name + " {\nupstream 127.0.0.1:9\n$PAIR\n}" }
	for option, want := range map[string][]string{
		limits("max_connections -1"):                         {"max_connections", "whole number", `"-1"`},
		limits("max_connections many"):                       {"max_connections", "whole number", `"many"`},
		limits("handshake_timeout 0s"):                       {"handshake_timeout", "such as 30s"},
		limits("handshake_timeout 10"):                       {"handshake_timeout", "such as 30s", `"10"`},
		limits("linger 1s\nlinger 2s"):                       {"linger", "given twice", "keep one"},
		limits("timeout 1s"):                                 {`"timeout"`, "handshake_timeout"},
		limits("max_hello 100"):                              {"limits.max_hello", "512 to 65536"},
		limits("max_hello 100000"):                           {"limits.max_hello", "512 to 65536"},
		"domain {\n}":                                        {"domain", "name"},
		"domain app.example.com {\n$PAIR\n}":                 {"app.example.com", "upstream", "give one"},
		named("127.0.0.1"):                                   {"127.0.0.1", "name", "give a host name"},
		named("*.*.example.com"):                             {"name", "*.example.com"},
		named("-a.example.com"):                              {"name", "-a.example.com"},
		domain("") + "\n" + domain(""):                       {`"app.example.com"`, "name", "keep one"},
		upstream("10.0.0.5"):                                 {"upstreams[0].dial", "10.0.0.5", "port"},
		upstream("10.0.0.5:0"):                               {"upstreams[0].dial", "port"},
		upstream("https://10.0.0.5"):                         {"upstreams[0].dial"},
		upstream("127.0.0.1:9\nupstream 127.0.0.1:9"):        {"upstreams[1].dial", "list it once"},
		upstream("127.0.0.1:9 {\ntls_ca $DIR/none\n}"):       {"upstreams[0].tls.ca_file", "no such file"},
		upstream("127.0.0.1:9 {\ntls_ca $DIR/empty\n}"):      {"upstreams[0].tls.ca_file", "no certificate in PEM form"},
		upstream("127.0.0.1:9 {\ntls_server_name 10.0.0\n}"): {"upstreams[0].tls.server_name"},
		upstream("127.0.0.1:9 {\ntls_post_quantum maybe\n}"): {"tls_post_quantum", "prefer", `"maybe"`},
		upstream("127.0.0.1:9 {\ninsecure\n}"):               {`"insecure"`, "tls_insecure_skip_verify"},
		domain("proxy_protocol v3"):                          {"proxy_protocol", "v1", `"v3"`},
		domain("post_quantum yes"):                           {"post_quantum", "require", `"yes"`},
		domain("load_balancing round_robin"):                 {"load_balancing", "least_conn", `"round_robin"`},
		domain("alpn"):                                       {"alpn"},
		domain("alpn h2 h2"):                                 {"alpn[1]", "keep one"},
		domain("alpn acme-tls/1"):                            {"alpn[0]", "remove it"},
		domain("suspended yes"):                              {"suspended", "no argument"},
		domain("max_connections -2"):                         {"max_connections", "whole number"},
		pair("certificate only-one.pem"):                     {"certificate", "key file"},
		pair("certificate $DIR/none.pem $DIR/none.key"):      {"certificate.chain_file", "certificate.key_file", "no such file"},
		pair("certificate $DIR/empty $DIR/empty"):            {"certificate.chain", "PEM"},
		pair("certificate " + otherChain + " " + otherKey):   {"certificate", "other.example.org", "app.example.com"},
		pair("certificate $CHAIN " + otherKey):               {"certificate", "key"},
		pair("certificate {env.PQPROXY_NOT_SET} $KEY"):       {"certificate.chain_file", "env.PQPROXY_NOT_SET"},
		"https :443":                                         {`"https"`, "limits, "},
	} {
		err := s.tryLoad(s.fill(option))
		if err == nil {
			t.Errorf("a wrong config was loaded:\n%s", option)
			s.load(s.fill(hostileDomains))
			continue
		}
		for _, part := range want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("the error does not mention %s:\n%s\n%v", part, option, err)
			}
		}
	}
	for app, want := range map[string][]string{
		`{"limits": {"max_connections": -5}}`:                              {"limits.max_connections", "-5 is negative", "default"},
		`{"limits": {"handshake_timeout": -1, "idle_timeout": "-1s"}}`:     {"limits.handshake_timeout", "limits.idle_timeout", "negative", "leave it out"},
		`{"limits": {"max_conns": 5}}`:                                     {"max_conns"},
		`{"limits": {"dial_timeout": "soon"}}`:                             {"soon"},
		`{"domain": []}`:                                                   {`"domain"`},
		`{"domains": [{"name": "a.example.com"}, {"name": "b_.example"}]}`: {"domains[0]", "domains[1]", "upstreams", "give at least one"},
		`{"domains": [{"name": "a.example.com", "upstreams": [{"dial": "127.0.0.1:9"}],
			"post_quantum": "maybe", "alpn": [""], "max_connections": -1, "load_balancing": "x", "proxy_protocol": "v9",
			"certificate": {"source": "internal"}}]}`: {"post_quantum", "alpn[0]", "max_connections", "load_balancing", "proxy_protocol", "give "},
		`{"domains": [{"name": "a.example.com", "upstreams": [{"dial": "127.0.0.1:9"}], "certificate": {"source": "byoc"}}]}`: {"certificate.chain", "is missing"},
		`{"domains": [{"name": "a.example.com", "upstreams": [{"dial": "127.0.0.1:9"}], "certificate": {"source": "internal", "key_pem": "x"}}]}`: {
			"certificate.key_pem", "byoc", "leave it out"},
		`{"domains": [{"name": "a.example.com", "upstreams": [{"dial": "127.0.0.1:9", "tls": {"verify": false}}]}]}`: {"verify"},
	} {
		err := loadJSON(app)
		if err == nil {
			t.Errorf("a wrong config was loaded: %s", app)
			s.load(s.fill(hostileDomains))
			continue
		}
		for _, part := range want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("the error does not mention %s: %s\n%v", part, app, err)
			}
		}
	}
	s.disturbed(t)
	s.checkReached(t, "app.example.com", 0)
}

// loadJSON loads a config with a pqproxy app, written in JSON, on the socket of the edge.
func loadJSON(app string) error {
	return caddy.Load(fmt.Appendf(nil, `{
		"admin": {"disabled": true, "config": {"persist": false}},
		"logging": {"logs": {"default": {"writer": {"output": "pqproxy_test"}, "encoder": {"format": "json"}}}},
		"apps": {
			"layer4": {"servers": {"front": {"listen": ["pqproxy/127.0.0.1:0"], "routes": [{"handle": [{"handler": "pqproxy"}]}]}}},
			"pqproxy": %s
		}
	}`, app), true)
}

// TestDescriptorLimit lets the built binary run out of descriptors: 256 of them, no max_connections that would keep
// it from that, and 2,000 clients that each send a hello and stay. It must neither stop accepting nor lose a
// connection that was there before, and serve again when they have left.
func TestDescriptorLimit(t *testing.T) {
	ca := pqtest.NewCA(t)
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	dir := t.TempDir()
	binary := filepath.Join(dir, "pqproxy")
	if out, err := exec.Command("go", "build", "-o", binary, "./cmd/pqproxy").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	chain, key := ca.PairFiles(t, "app.example.com")
	config := filepath.Join(dir, "Caddyfile")
	writeFile(t, config, fmt.Appendf(nil, `{
		admin off
		persist_config off
		storage file_system %s
		log default {
			output stderr
			format json
		}
		layer4 {
			pqproxy/127.0.0.1:0 {
				route {
					pqproxy
				}
			}
		}
		pqproxy {
			limits {
				max_connections 100000
				early_dials_per_client 2000
			}
			domain app.example.com {
				upstream %s
				certificate %s %s
			}
		}
	}`, dir, up.Addr(), chain, key))
	addr, complained := runLimited(t, "ulimit -n 256", binary, "run", "--config", config, "--adapter", "caddyfile")

	cfg := &tls.Config{ServerName: "app.example.com", RootCAs: ca.Pool()}
	before := pqtest.Dial(t, addr, cfg)
	echo(t, before, "before")
	hello := pqtest.ClientHello(t, cfg)
	clients := make([]net.Conn, 2000)
	for i := range clients {
		clients[i] = pqtest.DialRaw(t, addr)
		_, _ = clients[i].Write(hello) // those that get a reset are served as they should be
	}
	select {
	case <-complained:
	case <-time.After(patience):
		t.Fatal("the proxy did not run out of descriptors")
	}
	echo(t, before, "in the middle of it")
	for _, c := range clients {
		c.Close()
	}
	// The proxy sees them leave one by one; until then it may have to refuse.
	pqtest.Wait(t, "the proxy to serve again", func() bool {
		c, err := pqtest.TryDial(t, addr, cfg)
		if err != nil {
			return false
		}
		defer c.Close()
		_, err = io.WriteString(c, "after")
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 5))
		}
		return err == nil
	})
	echo(t, before, "after")
}

// runLimited runs a command behind a shell's `ulimit` until the test ends. It returns the address that the proxy
// says it listens on, and a channel that is closed when it complains about descriptors.
func runLimited(t *testing.T, limit string, command ...string) (addr string, complained <-chan struct{}) {
	t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", limit + ` && exec "$@"`, "sh"}, command...)...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listening, complaint, ended := make(chan string, 1), make(chan struct{}), make(chan struct{})
	go readProxyLog(stderr, listening, complaint, ended)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = cmd.Wait()
	})
	select {
	case addr = <-listening:
	case <-ended:
		t.Fatal("the proxy ended before it listened")
	}
	return addr, complaint
}

// readProxyLog reads the log until the process has ended.
func readProxyLog(stderr io.Reader, listening chan<- string, complaint, ended chan<- struct{}) {
	defer close(ended)
	complain := sync.OnceFunc(func() { close(complaint) })
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		line := make(logLine)
		if json.Unmarshal(lines.Bytes(), &line) != nil {
			continue
		}
		switch msg := line.str("msg"); {
		case msg == "listening":
			listening <- line.str("address")
		case strings.HasPrefix(msg, "accepting connections"):
			complain()
		}
	}
}
