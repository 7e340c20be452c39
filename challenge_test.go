package pqproxy

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mholt/acmez/v3/acme"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/acmetest"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// TestIssuanceHTTP01 gives a domain its certificate before anybody visits, over plain HTTP.
func TestIssuanceHTTP01(t *testing.T) {
	pqtest.Leaks(t)
	ca := acmetest.Start(t, acmetest.Options{})
	e := startACMEEdge(t, ca, "disable_tlsalpn_challenge")
	e.serve("app.example.com")
	if line := e.issued("app.example.com"); line.str("tenant") != "acme" {
		t.Errorf("logged as of tenant %q", line.str("tenant"))
	}
	if n := e.up.Accepted(); n != 0 {
		t.Errorf("the upstream saw %d connections before a client came", n)
	}
	e.visit("app.example.com")
	if n := ca.Orders(""); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
}

// TestIssuanceTLSALPN01 gives domains their certificates over TLS alone, whatever keeps their clients out: the CA is
// no client of theirs. Its connections never reach an upstream.
func TestIssuanceTLSALPN01(t *testing.T) {
	pqtest.Leaks(t)
	ca := acmetest.Start(t, acmetest.Options{})
	e := startACMEEdgeWith(t, ca, issuerOf(t, ca, "disable_http_challenge"))
	s, up := inForce.Load(), []domain.Upstream{{Dial: e.up.Addr()}}
	put := func(domains ...*domain.Domain) {
		t.Helper()
		c := s.newChangeSet(rankAdmin, false, nil)
		for _, d := range domains {
			if err := errors.Join(d.Normalize(domain.Admin), c.put(d)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.apply(c, nil); err != nil {
			t.Fatal(err)
		}
	}
	full := domain.Domain{Name: "full.example.com", Upstreams: up, MaxConnections: 1, Certificate: domain.Certificate{Source: domain.Internal}}
	put(&full)
	echo(t, e.dial(e.client("full.example.com", unverified)), "hello") // and stays
	acmeNow := full
	acmeNow.Certificate.Source = domain.ACME
	before := e.up.Accepted()
	put(&acmeNow,
		&domain.Domain{Name: "require.example.com", Upstreams: up, PostQuantum: domain.Require},
		&domain.Domain{Name: "alpn.example.com", Upstreams: up, ALPN: []string{"imap"}},
		&domain.Domain{Name: "suspended.example.com", Upstreams: up, Suspended: true})
	for _, name := range []string{"require.example.com", "alpn.example.com", "suspended.example.com", "full.example.com"} {
		e.issued(name)
		line := e.log.take("a challenge for "+name, func(l logLine) bool {
			return l.str("end_reason") == string(reasonACMEChallenge) && l.str("server_name") == name
		})
		if line.str("closed_by") != string(sideEdge) || line.str("domain") != name || line.str("alpn") != acmeTLS {
			t.Errorf("record of a challenge: %v", line)
		}
	}
	if n := e.up.Accepted(); n != before {
		t.Errorf("the upstream saw %d connections more", n-before)
	}
	e.visit("require.example.com")

	// Nobody is expected to ask any more.
	_, err := e.handshake(e.clientOf("require.example.com", func(c *tls.Config) { c.NextProtos = []string{acmeTLS} }))
	if alertOfHandshake(err) != alertNoApplicationProtocol {
		t.Errorf("a challenge that nobody waits for: %v", err)
	}
	if line := e.log.recordWhere("end_reason", string(reasonALPNMismatch)); line.str("error") == "" {
		t.Errorf("record: %v", line)
	}
}

// TestChallengeOfAnotherEdge answers challenges, of both kinds, that another edge of the fleet has put into storage, and reads
// none for names that are not ours to obtain: there is no end of those.
func TestChallengeOfAnotherEdge(t *testing.T) {
	s, st := newStoredState(t)
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, "app.example.com")
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{Source: domain.Internal}, "internal.example.com")
	issuer := s.certs.config.Load().issuers[1].IssuerKey() // the second one's too
	put := func(name, kind string) acme.Challenge {
		t.Helper()
		c := acme.Challenge{Type: kind, Token: "token", KeyAuthorization: "token.thumb", Identifier: acme.Identifier{Type: "dns", Value: name}}
		content, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Store(t.Context(), "acme/"+issuer+"/challenge_tokens/"+name+".json", content); err != nil {
			t.Fatal(err)
		}
		return c
	}
	get := func(host, path string) (string, bool) {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		r.Host = host
		w := httptest.NewRecorder()
		ok := s.certs.answerChallenge(w, r)
		if !ok && w.Body.Len() > 0 {
			t.Errorf("%s: not answered, but with %q", host, w.Body)
		}
		return w.Body.String(), ok
	}
	for _, name := range []string{"app.example.com", "internal.example.com", "unknown.example.com"} {
		put(name, acme.ChallengeTypeHTTP01)
	}
	for host, want := range map[string]string{
		"app.example.com": "token.thumb", "APP.example.com:80": "token.thumb", "internal.example.com": "", "unknown.example.com": "", "192.0.2.1": "", "": "",
	} {
		before := st.count("Load")
		if got, ok := get(host, challengePath+"token"); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v", host, got, ok)
		}
		if reads := st.count("Load") - before; reads > 0 && want == "" {
			t.Errorf("%q: %d reads from storage", host, reads)
		}
	}
	for _, path := range []string{challengePath + "other", challengePath, "/token"} {
		if got, ok := get("app.example.com", path); ok {
			t.Errorf("%s was answered with %q", path, got)
		}
	}
	if cert := s.certs.challengeCertificate("app.example.com"); cert != nil {
		t.Error("a challenge of HTTP-01 was answered by TLS")
	}

	put("app.example.com", acme.ChallengeTypeTLSALPN01)
	cert := s.certs.challengeCertificate("app.example.com")
	if cert == nil {
		t.Fatal("there is no certificate for the challenge")
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	acmeID := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31} // RFC 8737, section 6.1
	if !slices.Equal(leaf.DNSNames, []string{"app.example.com"}) ||
		!slices.ContainsFunc(leaf.Extensions, func(x pkix.Extension) bool { return x.Id.Equal(acmeID) && x.Critical }) {
		t.Errorf("the certificate for the challenge: %v, %v", leaf.DNSNames, leaf.Extensions)
	}
	if got, ok := get("app.example.com", challengePath+"token"); ok && got != "token.thumb" {
		t.Errorf("a challenge of TLS-ALPN-01 by HTTP: %q", got)
	}

	// Anybody may ask, and as many as like at a time: it is read once for all.
	reading, gate := make(chan struct{}, 100), make(chan struct{})
	st.hook("Load", func(string) error {
		reading <- struct{}{}
		<-gate
		return nil
	})
	before := st.count("Load")
	var asking sync.WaitGroup
	for range 100 {
		asking.Go(func() {
			if s.certs.challengeCertificate("app.example.com") == nil {
				t.Error("not answered")
			}
		})
	}
	<-reading
	pqtest.Wait(t, "all to ask", func() bool { return strings.Count(stacks(), "challengeCertificate(") == 100 })
	close(gate)
	asking.Wait()
	st.hook("Load", nil)
	if n := st.count("Load") - before; n != 2 { // of two issuers
		t.Errorf("%d reads", n)
	}

	// A challenge that cannot be read, and a storage that fails, are logged, and nothing is answered.
	if err := st.Store(t.Context(), "acme/"+issuer+"/challenge_tokens/app.example.com.json", []byte("{")); err != nil {
		t.Fatal(err)
	}
	if _, ok := get("app.example.com", challengePath+"token"); ok {
		t.Error("half of a challenge was answered")
	}
	st.fail("Load", errors.New("injected"))
	if _, ok := get("app.example.com", challengePath+"token"); ok {
		t.Error("a challenge was answered without storage")
	}
	if cert := s.certs.challengeCertificate("app.example.com"); cert != nil {
		t.Error("a challenge was answered without storage")
	}
}

// TestSelfCheck looks at where a name leads before a CA is bothered.
func TestSelfCheck(t *testing.T) {
	s, st := newStoredState(t)
	names := []string{"app.example.com", "elsewhere.example.com", "gone.example.com", "broken.example.com", "redirects.example.com", "private.example.com", "large.example.com"}
	serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, names...)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Host {
		case "elsewhere.example.com":
			_, _ = io.WriteString(w, "welcome")
		case "redirects.example.com": // to what would be the right answer
			http.Redirect(w, r, "http://app.example.com"+r.URL.Path, http.StatusFound)
		case "large.example.com":
			_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
		default:
			if !s.certs.answerChallenge(w, r) {
				http.NotFound(w, r)
			}
		}
	}))
	defer front.Close()
	dns := startDNS(t)
	s.certs.http.Store(true)
	s.certs.resolver = dns.resolver()
	_, s.certs.checkPort, _ = net.SplitHostPort(front.Listener.Addr().String())
	allow(t, s, "127.0.0.1")

	dns.set("gone.example.com", "NXDOMAIN")
	dns.set("broken.example.com", "SERVFAIL")
	dns.set("private.example.com", "10.0.0.1")
	for name, want := range map[string]string{
		"app.example.com":       "",
		"elsewhere.example.com": "something else answers for elsewhere.example.com on port 80, with status 200",
		"redirects.example.com": "something else answers for redirects.example.com on port 80, with status 302",
		"large.example.com":     "something else answers",
		"gone.example.com":      "gone.example.com has no address in DNS",
		"broken.example.com":    "broken.example.com cannot be reached on port 80: ",
		"private.example.com":   "", // not ours to ask
		"unknown.example.com":   "something else answers for unknown.example.com on port 80, with status 404",
	} {
		err := s.certs.reachesUs(t.Context(), &order{name: name})
		var notUs *errNotUs
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || !errors.As(err, &notUs)) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}

	// What cannot be reached is left to the CA now and then: there are routers that send nobody back.
	front.Close()
	for attempts := range 2 * checkBlindEach {
		err := s.certs.reachesUs(t.Context(), &order{name: "app.example.com", attempts: attempts})
		if blind := attempts%checkBlindEach == checkBlindEach-1; (err == nil) != blind {
			t.Errorf("after %d attempts: %v", attempts, err)
		}
	}
	// Without plain HTTP there is nobody to ask.
	s.certs.http.Store(false)
	if err := s.certs.reachesUs(t.Context(), &order{name: "elsewhere.example.com"}); err != nil {
		t.Error(err)
	}
	// Without a key no answer would be ours: that is the storage's fault, and no CA hears of it.
	s.certs.http.Store(true)
	s.certs.checking.Store(nil)
	st.fail("Load", errors.New("injected"))
	if err := s.certs.reachesUs(t.Context(), &order{name: "app.example.com"}); err == nil || errors.As(err, new(*errNotUs)) {
		t.Errorf("without a key: %v", err)
	}
}

// TestSelfCheckKey is one for all edges with the same storage, and of another storage another.
func TestSelfCheckKey(t *testing.T) {
	a, st := newStoredState(t)
	b := newStateOn(t, st)
	serveDomains(t, a, "", "192.0.2.1:1", domain.Certificate{}, "app.example.com")
	// Both make it at once, as edges do that are new.
	var both sync.WaitGroup
	both.Add(2)
	var first atomic.Int64
	st.hook("Load", func(string) error {
		if first.Add(1) <= 2 { // neither finds one before the other has looked
			both.Done()
			both.Wait()
		}
		return nil
	})
	keys := make(chan []byte, 2)
	for _, s := range []*state{a, b} {
		go func() {
			key, err := s.certs.checkKey(t.Context())
			if err != nil {
				t.Error(err)
			}
			keys <- key
		}()
	}
	if !bytes.Equal(<-keys, <-keys) {
		t.Error("two edges made two keys")
	}
	answer := func(s *state, nonce string) string {
		t.Helper()
		text, err := s.certs.checkAnswer(t.Context(), "app.example.com", nonce)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	one, two := answer(a, "1"), answer(b, "1")
	if one != two || len(one) != 64 {
		t.Errorf("two edges answer %s and %s", one, two)
	}
	if other, _ := newStoredState(t); answer(other, "1") == one || answer(a, "2") == one {
		t.Error("the answer is not of the key and the nonce")
	}
	if _, err := a.certs.checkAnswer(t.Context(), "app.example.com", strings.Repeat("1", maxNonce+1)); err == nil {
		t.Error("a nonce may be as long as anybody likes")
	}
	// What is no key is not taken for one, lest an answer could be guessed.
	for _, content := range [][]byte{{}, []byte("short"), make([]byte, 33)} {
		if err := st.Store(t.Context(), checkKeyPath, content); err != nil {
			t.Fatal(err)
		}
		c := newStateOn(t, st)
		if _, err := c.certs.checkAnswer(t.Context(), "app.example.com", "1"); err == nil || !strings.Contains(err.Error(), checkKeyPath) {
			t.Errorf("a key of %d bytes: %v", len(content), err)
		}
	}
}

// TestSelfCheckKeepsFromCA has names that lead elsewhere, nowhere, or are not in DNS, and a CA that hears of none of them.
func TestSelfCheckKeepsFromCA(t *testing.T) {
	pqtest.Leaks(t)
	ca := acmetest.Start(t, acmetest.Options{})
	e := startACMEEdge(t, ca)
	elsewhere := httptest.NewUnstartedServer(http.NotFoundHandler())
	ln, err := net.Listen("tcp", "127.0.0.2:"+e.certs().checkPort)
	if err != nil {
		t.Skipf("there is no 127.0.0.2 here: %v", err)
	}
	elsewhere.Listener.Close()
	elsewhere.Listener = ln
	elsewhere.Start()
	defer elsewhere.Close()
	broken := map[string]string{"elsewhere.example.com": "127.0.0.2", "unreachable.example.com": "127.0.0.3", "gone.example.com": "NXDOMAIN"}
	for name, answer := range broken {
		e.dns.set(name, answer)
		e.serve(name)
	}
	for name := range broken {
		line := e.failed(name)
		if line.num("attempt") != 1 || !strings.HasPrefix(line.str("error"), "self-check: ") {
			t.Errorf("%s: %v", name, line)
		}
		if _, err := e.handshake(e.clientOf(name)); alertOfHandshake(err) != alertInternalError {
			t.Errorf("%s: %v", name, err)
		}
		record := e.log.recordWhere("server_name", name)
		if record.str("end_reason") != string(reasonNoCertificate) || !strings.Contains(record.str("error"), "attempt 1 failed") ||
			!strings.Contains(record.str("error"), "self-check: ") {
			t.Errorf("record: %v", record)
		}
	}
	if n := len(ca.Requests()); n != 0 {
		t.Errorf("the CA saw %d requests: %v", n, ca.Requests())
	}
	// When the name is pointed here at last, and comes anew, it waits for its time.
	e.dns.set("gone.example.com", "127.0.0.1")
	removeDomains(t, inForce.Load(), "gone.example.com")
	e.serve("gone.example.com")
	pqtest.Wait(t, "the order to wait", func() bool { return e.certs().orders.report("gone.example.com").attempts == 1 })
	if n := len(ca.Requests()); n != 0 {
		t.Errorf("the CA saw %d requests", n)
	}
}

// selfCheckable has names lead to a state of no config on plain HTTP, or wherever else its DNS says.
func selfCheckable(t *testing.T, s *state) *testDNS {
	t.Helper()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.certs.answerChallenge(w, r) {
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(front.Close)
	dns := startDNS(t)
	s.certs.http.Store(true)
	s.certs.resolver = dns.resolver()
	_, s.certs.checkPort, _ = net.SplitHostPort(front.Listener.Addr().String())
	allow(t, s, "127.0.0.1")
	return dns
}

// stacks returns what all goroutines do.
func stacks() string {
	buf := make([]byte, 16<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// allow opens ranges for a state of no config.
func allow(t *testing.T, s *state, ranges ...string) {
	t.Helper()
	policy, err := netpolicy.New(ranges)
	if err != nil {
		t.Fatal(err)
	}
	settings := *s.settings.Load()
	settings.policy = policy
	s.settings.Store(&settings)
}
