package pqproxy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// responder is a CA with an OCSP responder on loopback.
type responder struct {
	t    testing.TB
	cert *x509.Certificate
	key  crypto.Signer
	url  string

	mu     sync.Mutex
	answer func(serial *big.Int) ([]byte, error) // nil: good, for an hour
	asked  int
	open   int // questions that wait for their answer
	most   int
}

// serveOn serves on a port of an address of loopback: of any, where the system is Linux; others have 127.0.0.1 alone.
func serveOn(t testing.TB, host string, h http.Handler) *httptest.Server {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		if runtime.GOOS != "linux" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(h)
	_ = server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return server
}

// startResponder starts one that listens on an address of loopback.
func startResponder(t testing.TB, host string) *responder {
	t.Helper()
	r := &responder{t: t}
	r.cert, r.key = r.certificate(nil, nil, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.Subject.CommonName = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, "responder's CA"
	})
	r.url = serveOn(t, host, r).URL
	return r
}

// certificate issues one; parent nil: to itself.
func (r *responder) certificate(parent *x509.Certificate, signer crypto.Signer, edit func(*x509.Certificate)) (*x509.Certificate, crypto.Signer) {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "leaf"}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(60 * 24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	edit(template)
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		r.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		r.t.Fatal(err)
	}
	return cert, key
}

// issue makes a pair for a name, whose leaf says that the responder is at a URL.
func (r *responder) issue(name, url string) tls.Certificate {
	r.t.Helper()
	leaf, key := r.certificate(r.cert, r.key, func(c *x509.Certificate) {
		c.DNSNames, c.OCSPServer, c.ExtKeyUsage = []string{name}, []string{url}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, r.cert.Raw}, PrivateKey: key, Leaf: leaf}
}

// response makes a response that is good for an hour, after edit.
func (r *responder) response(serial *big.Int, edit func(*ocsp.Response)) []byte {
	now := time.Now().Truncate(time.Second)
	template := ocsp.Response{Status: ocsp.Good, SerialNumber: serial, ThisUpdate: now, NextUpdate: now.Add(time.Hour)}
	if edit != nil {
		edit(&template)
	}
	response, err := ocsp.CreateResponse(r.cert, r.cert, template, r.key)
	if err != nil {
		r.t.Error(err)
	}
	return response
}

// say has it answer otherwise from now on.
func (r *responder) say(answer func(serial *big.Int) ([]byte, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

func (r *responder) questions() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// ServeHTTP implements http.Handler.
func (r *responder) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return
	}
	question, err := ocsp.ParseRequest(body)
	if err != nil || q.Method != "POST" || q.Header.Get("Content-Type") != "application/ocsp-request" {
		r.t.Errorf("the question is %s %v: %v", q.Method, q.Header, err)
		return
	}
	r.mu.Lock()
	answer := r.answer
	r.asked++
	r.open++
	r.most = max(r.most, r.open)
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.open--
	}()
	if answer == nil {
		_, _ = w.Write(r.response(question.SerialNumber, nil))
		return
	}
	response, err := answer(question.SerialNumber)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write(response)
}

// hangs makes answers wait until the test is over.
func (r *responder) hangs() func(*big.Int) ([]byte, error) {
	over := make(chan struct{})
	r.t.Cleanup(func() { close(over) })
	return func(*big.Int) ([]byte, error) { <-over; return nil, errors.New("over") }
}

// stapleOf returns what a handshake for a name carries.
func (e *edge) stapleOf(name string) []byte {
	e.t.Helper()
	c, err := e.handshake(e.client(name, unverified))
	if err != nil {
		e.t.Fatalf("%s: %v", name, err)
	}
	defer c.Close()
	return c.ConnectionState().OCSPResponse
}

// awaitStaple waits for a handshake that carries a response about a pair, and returns that.
func (e *edge) awaitStaple(name string, r *responder, pair tls.Certificate) (response *ocsp.Response) {
	e.t.Helper()
	pqtest.Wait(e.t, "a staple of "+name, func() bool {
		raw := e.stapleOf(name)
		if raw == nil {
			return false
		}
		var err error
		if response, err = ocsp.ParseResponseForCert(raw, pair.Leaf, r.cert); err != nil {
			e.t.Errorf("%s is stapled with %v", name, err)
		}
		return true
	})
	return response
}

// restless has CAs asked again without a rest.
func restless() *staples {
	s := &inForce.Load().certs.staples
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rest = 0
	return s
}

// TestStaple staples the responses about tenants' own pairs: of static domains and of others, whose responder is where
// the upstream policy allows it. They are kept while the domain changes, asked for anew before they are out of date, and
// forgotten with the domain.
func TestStaple(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, adminOption)
	api := e.api()
	s := restless()
	r := startResponder(t, "127.0.0.1")
	pair, static := r.issue("app.example.com", r.url), r.issue("static.example.com", r.url)
	chain, key := pqtest.EncodePair(t, static)
	writeFile(t, e.dir+"/ocsp.pem", chain)
	writeFile(t, e.dir+"/ocsp.key", key)
	e.load(adminOption + "domain static.example.com {\n upstream 127.0.0.1:9\n certificate $DIR/ocsp.pem $DIR/ocsp.key\n}\n")
	r.say(func(serial *big.Int) ([]byte, error) {
		return r.response(serial, func(o *ocsp.Response) { o.NextUpdate = o.ThisUpdate.Add(6 * time.Second) }), nil
	})
	api.want(201, "PUT", "/domains/app.example.com", pairRecord(t, "127.0.0.1:9", pair, "", `,"tenant":"acme"`))
	if n := r.questions(); n != 0 {
		t.Errorf("%d questions before anybody came", n)
	}
	first := e.awaitStaple("app.example.com", r, pair)
	e.awaitStaple("static.example.com", r, static)

	// Another upstream makes another route of it, which has the response at once.
	api.want(200, "PUT", "/domains/app.example.com", pairRecord(t, "127.0.0.1:10", pair, "", `,"tenant":"acme"`))
	s.tend()
	if e.stapleOf("app.example.com") == nil && time.Now().Before(first.NextUpdate) {
		t.Error("the response was forgotten")
	}
	r.say(nil)

	// Without a visitor, the responder is asked again when half of the time is over.
	pqtest.Wait(t, "the next response", func() bool {
		s.tend()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, st := range s.byLeaf {
			if st.name == "app.example.com" && st.until.After(first.NextUpdate.Add(time.Minute)) {
				return true
			}
		}
		return false
	})
	if next := e.awaitStaple("app.example.com", r, pair); !next.NextUpdate.After(first.NextUpdate) {
		t.Errorf("the response holds until %v", next.NextUpdate)
	}

	fresh := r.issue("app.example.com", r.url)
	api.want(200, "PUT", "/domains/app.example.com", pairRecord(t, "127.0.0.1:9", fresh, "", ""))
	e.awaitStaple("app.example.com", r, fresh) // and of no other
	s.tend()
	s.mu.Lock()
	if len(s.byLeaf) != 2 {
		t.Errorf("%d certificates are looked after", len(s.byLeaf))
	}
	s.mu.Unlock()
	api.want(204, "DELETE", "/domains/app.example.com", "")
	s.tend()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.byLeaf {
		if st.name != "static.example.com" {
			t.Errorf("%s is not forgotten", st.name)
		}
	}
}

// TestStapleTrouble: handshakes go on, without a staple and without waiting, while a responder hangs, is down, or answers what
// must not be passed on.
func TestStapleTrouble(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, adminOption)
	api := e.api()
	restless()
	r := startResponder(t, "127.0.0.1")
	stranger := startResponder(t, "127.0.0.1")
	down, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = down.Close()
	const name = "app.example.com"
	edited := func(edit func(*ocsp.Response)) func(*big.Int) ([]byte, error) {
		return func(serial *big.Int) ([]byte, error) { return r.response(serial, edit), nil }
	}
	for _, tt := range []struct {
		name, url string
		answer    func(*big.Int) ([]byte, error)
		want      string // part of the log's line; empty: none is waited for
	}{
		{"hanging", r.url, r.hangs(), ""},
		{"down", "http://" + down.Addr().String(), nil, "refused"},
		{"error", r.url, func(*big.Int) ([]byte, error) { return nil, errors.New("no") }, "answers 503"},
		{"garbage", r.url, func(*big.Int) ([]byte, error) { return []byte("<html>"), nil }, "reading the OCSP response"},
		{"empty", r.url, func(*big.Int) ([]byte, error) { return nil, nil }, "reading the OCSP response"},
		{"try later", r.url, func(*big.Int) ([]byte, error) { return ocsp.TryLaterErrorResponse, nil }, "try later"},
		{"huge", r.url, func(*big.Int) ([]byte, error) { return make([]byte, 10<<20), nil }, "more than 8192 bytes"},
		{"another certificate", r.url, edited(func(o *ocsp.Response) { o.SerialNumber = big.NewInt(7) }), "no response matching"},
		{"another CA", r.url, func(serial *big.Int) ([]byte, error) { return stranger.response(serial, nil), nil }, "bad OCSP signature"},
		{"past", r.url, edited(func(o *ocsp.Response) {
			o.ThisUpdate, o.NextUpdate = o.ThisUpdate.Add(-time.Hour), o.ThisUpdate.Add(-time.Second)
		}), "of the past"},
		{"future", r.url, edited(func(o *ocsp.Response) {
			o.ThisUpdate, o.NextUpdate = o.ThisUpdate.Add(time.Hour), o.NextUpdate.Add(time.Hour)
		}), "of the future"},
		{"no end", r.url, edited(func(o *ocsp.Response) { o.NextUpdate = time.Time{} }), "does not say until when"},
		{"unknown", r.url, edited(func(o *ocsp.Response) { o.Status = ocsp.Unknown }), ""},
		{"revoked", r.url, edited(func(o *ocsp.Response) { o.Status, o.RevokedAt = ocsp.Revoked, o.ThisUpdate }), "revoked by its CA: replace it"},
		{"no URL", "ldap://127.0.0.1/x", nil, "which is no http URL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.say(tt.answer)
			asked := r.questions()
			pair := r.issue(name, tt.url)
			record := pairRecord(t, "127.0.0.1:9", pair, "", "")
			if reply, err := api.do("PUT", "/domains/"+name, record); err != nil || reply.status > 201 {
				t.Fatal(reply, err)
			}
			begun := time.Now()
			if e.stapleOf(name) != nil {
				t.Error("there is a staple")
			}
			if took := time.Since(begun); took > stapleTimeout/2 {
				t.Errorf("the handshake took %v", took)
			}
			switch {
			case tt.want != "":
				e.log.take(tt.want, func(l logLine) bool { return strings.Contains(l.str("error")+l.str("msg"), tt.want) })
			default:
				pqtest.Wait(t, "the question", func() bool { return r.questions() > asked })
			}
			if e.stapleOf(name) != nil {
				t.Error("there is a staple")
			}
			shown := api.certificate(name)
			if tt.name == "revoked" {
				if shown.State != certFailed || shown.Error != "its CA has revoked the certificate" {
					t.Errorf("it is shown as %+v", shown)
				}
			} else if shown.State != certValid || shown.Error != "" {
				t.Errorf("it is shown as %+v", shown)
			}
		})
	}
	r.say(nil) // what hangs is asked no more: the domain has another pair
	pair := r.issue(name, r.url)
	api.want(200, "PUT", "/domains/"+name, pairRecord(t, "127.0.0.1:9", pair, "", ""))
	e.awaitStaple(name, r, pair)
}

// TestStapleAddress: a tenant's certificate cannot have the edge ask where an upstream of the tenant could not be: not by
// its URL, not by a redirect. What a proxy would do in the edge's stead is not asked for either.
func TestStapleAddress(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, "limits {\n grace_period 50ms\n}\nupstream_policy {\n allow 127.0.0.2\n}\n")
	api := e.api()
	inside := startResponder(t, "127.0.0.1")
	outside := startResponder(t, "127.0.0.2")
	redirecting := serveOn(t, "127.0.0.2", http.RedirectHandler(inside.url, http.StatusTemporaryRedirect))

	put := func(name, url string) tls.Certificate {
		t.Helper()
		pair := inside.issue(name, url)
		api.want(201, "PUT", "/domains/"+name, pairRecord(t, "127.0.0.2:9", pair, "", `,"tenant":"mallory"`))
		if e.stapleOf(name) != nil {
			t.Errorf("%s is stapled", name)
		}
		return pair
	}
	put("direct.example.com", inside.url)
	put("redirected.example.com", redirecting.URL)
	put("localhost.example.com", strings.Replace(inside.url, "127.0.0.1", "localhost", 1))
	for name, want := range map[string]string{
		"direct.example.com": "127.0.0.0/8", "localhost.example.com": "loopback", "redirected.example.com": "answers 307",
	} {
		e.log.take(name, func(l logLine) bool { return l.str("domain") == name && strings.Contains(l.str("error"), want) })
	}
	if n := inside.questions(); n != 0 {
		t.Errorf("%d questions reached what only this host can reach", n)
	}
	outside.cert, outside.key = inside.cert, inside.key
	e.awaitStaple("allowed.example.com", inside, put("allowed.example.com", outside.url)) // the address decides, and nothing else

	// Where the operator's own certificates have their responder is the operator's affair.
	static := inside.issue("static.example.com", inside.url)
	chain, key := pqtest.EncodePair(t, static)
	writeFile(t, e.dir+"/ocsp.pem", chain)
	writeFile(t, e.dir+"/ocsp.key", key)
	e.load("domain static.example.com {\n upstream 127.0.0.1:9\n certificate $DIR/ocsp.pem $DIR/ocsp.key\n}\n")
	e.awaitStaple("static.example.com", inside, static)

	s := &inForce.Load().certs.staples
	for _, url := range []string{"http://a:b@127.0.0.2/", "file:///etc/passwd", "http://", "\x00"} {
		if _, err := s.post(t.Context(), stapleSource{own: true}, url, nil); err == nil {
			t.Errorf("%q was asked", url)
		}
	}
	var denied *netpolicy.DeniedError
	if _, err := s.post(t.Context(), stapleSource{own: true}, inside.url, nil); !errors.As(err, &denied) {
		t.Errorf("%v", err)
	}
}

// TestStapleFair has one tenant's responders hang: they are asked two at a time, and another tenant's one is asked meanwhile.
func TestStapleFair(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, adminOption)
	api := e.api()
	r, other := startResponder(t, "127.0.0.1"), startResponder(t, "127.0.0.1")
	r.say(r.hangs())
	for _, name := range strings.Split("abcdefghijklmnopqrstuvwxyz", "") {
		name += ".example.com"
		api.want(201, "PUT", "/domains/"+name, pairRecord(t, "127.0.0.1:9", r.issue(name, r.url), "", `,"tenant":"slow"`))
		e.stapleOf(name)
	}
	pair := other.issue("other.example.com", other.url)
	api.want(201, "PUT", "/domains/other.example.com", pairRecord(t, "127.0.0.1:9", pair, "", `,"tenant":"quick"`))
	e.awaitStaple("other.example.com", other, pair)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.most > staplesATenant {
		t.Errorf("%d questions at a time", r.most)
	}
}

// TestStapleIssued: certificates of the issuers are stapled too, and a responder that hangs does not hold up the first client,
// for whom the certificate is read from storage. One that its CA has revoked is replaced.
func TestStapleIssued(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, adminOption)
	api := e.api()
	restless()
	r := startResponder(t, "127.0.0.1")
	add := func(name string) tls.Certificate {
		t.Helper()
		issued := r.issue(name, r.url)
		storeIssued(t, name, issued)
		api.want(201, "PUT", "/domains/"+name, `{"upstreams":[{"dial":"127.0.0.1:9"}]}`)
		return issued
	}
	e.awaitStaple("good.example.com", r, add("good.example.com"))

	r.say(r.hangs())
	add("slow.example.com")
	begun := time.Now()
	if e.stapleOf("slow.example.com") != nil {
		t.Error("there is a staple")
	}
	if took := time.Since(begun); took > stapleTimeout/2 {
		t.Errorf("the first handshake took %v", took)
	}

	r.say(func(serial *big.Int) ([]byte, error) {
		return r.response(serial, func(o *ocsp.Response) { o.Status, o.RevokedAt = ocsp.Revoked, o.ThisUpdate }), nil
	})
	add("revoked.example.com")
	e.stapleOf("revoked.example.com")
	e.log.message("a certificate has been revoked by its CA")
	pqtest.Wait(t, "the attempt to replace it", func() bool { return api.certificate("revoked.example.com").Attempts > 0 })
	shown := api.certificate("revoked.example.com")
	if shown.State != certFailed || !strings.HasPrefix(shown.Error, "its CA has revoked the certificate, and obtaining another one failed: ") {
		t.Errorf("it is shown as %+v", shown)
	}
	if e.stapleOf("revoked.example.com") != nil {
		t.Error("what is revoked is stapled")
	}
}

// TestStapleReplace: a certificate that is younger than a day is not replaced because a responder says so.
func TestStapleReplace(t *testing.T) {
	s := newTestState(t)
	for hours, want := range map[time.Duration]bool{1: false, 23: false, 25: true} {
		leaf := &x509.Certificate{Raw: []byte{byte(hours)}, NotBefore: time.Now().Add(-hours * time.Hour)}
		if s.certs.staples.replace(leaf) {
			t.Error("a certificate of which nothing is known is replaced")
		}
		s.certs.staples.byLeaf[digestOfLeaf(leaf.Raw)] = &staple{revoked: true}
		if got := s.certs.staples.replace(leaf); got != want {
			t.Errorf("after %d hours: %v", hours, got)
		}
	}
}

// TestReadStapleResponder: who signs a response in the issuer's place must have been given that by it.
func TestReadStapleResponder(t *testing.T) {
	r := startResponder(t, "127.0.0.1")
	pair := r.issue("app.example.com", r.url)
	now := time.Now().Truncate(time.Second)
	for _, tt := range []struct {
		name string
		edit func(*x509.Certificate)
		want string
	}{
		{"delegated", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning} }, ""},
		{"for servers", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, "not for that"},
		{"for anything", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, "not for that"},
		{"expired", func(c *x509.Certificate) {
			c.ExtKeyUsage, c.NotAfter = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}, now.Add(-time.Second)
		}, "of the past"},
		{"soon expired", func(c *x509.Certificate) {
			c.ExtKeyUsage, c.NotAfter = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}, now.Add(time.Minute)
		}, ""},
	} {
		cert, key := r.certificate(r.cert, r.key, tt.edit)
		response, err := ocsp.CreateResponse(r.cert, cert, ocsp.Response{
			Status: ocsp.Good, SerialNumber: pair.Leaf.SerialNumber, ThisUpdate: now, NextUpdate: now.Add(time.Hour), Certificate: cert,
		}, key)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := readStaple(response, pair.Leaf, r.cert, time.Now())
		switch {
		case tt.want != "":
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.name == "soon expired" && !answer.until.Equal(cert.NotAfter.UTC()):
			t.Errorf("it holds until %v", answer.until)
		}
	}
}

// FuzzReadStaple: nothing that a responder says makes reading it panic, and what is stapled is what it signed.
func FuzzReadStaple(f *testing.F) {
	r := startResponder(f, "127.0.0.1")
	pair := r.issue("app.example.com", r.url)
	good := r.response(pair.Leaf.SerialNumber, nil)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(ocsp.UnauthorizedErrorResponse)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		answer, err := readStaple(body, pair.Leaf, r.cert, time.Now())
		if (err == nil) != (answer != nil) {
			t.Fatalf("%v and %v", answer, err)
		}
		if err == nil && !bytes.Equal(answer.TBSResponseData, mustParse(t, good).TBSResponseData) {
			t.Fatal("another response than the one that was signed is taken")
		}
	})
}

func mustParse(t testing.TB, response []byte) *ocsp.Response {
	parsed, err := ocsp.ParseResponse(response, nil)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// TestStapleFull: what does not fit is served without, and one tenant cannot take all the room.
func TestStapleFull(t *testing.T) {
	s := newTestState(t)
	r := startResponder(t, "127.0.0.1")
	pair := r.issue("app.example.com", r.url)
	st := &s.certs.staples
	for i := range maxStaples {
		st.byLeaf[leafDigest{byte(i), byte(i >> 8)}] = &staple{}
	}
	rt := &route{Domain: typical(0), pair: &pair}
	if got := st.on(rt, &pair); got != &pair || len(st.byLeaf) != maxStaples || len(st.due) != 0 {
		t.Error("it was taken on")
	}
	clear(st.byLeaf)
	st.of[stapleSource{tenant: rt.Tenant, own: true}] = maxStaples / 4
	if got := st.on(rt, &pair); got != &pair || len(st.byLeaf) != 0 || len(st.due) != 0 {
		t.Error("it was taken on, of a tenant that has its share")
	}
}
