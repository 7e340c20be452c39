package pqproxy

import (
	"context"
	"crypto/x509"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/acmetest"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestRateLimits leaves a CA alone for as long as it says, by header or in words, also after a restart.
func TestRateLimits(t *testing.T) {
	at := time.Now().Add(5 * time.Hour).UTC()
	for name, c := range map[string]struct {
		action acmetest.Action
		least  time.Duration
	}{
		"header":         {acmetest.RateLimited(3 * time.Hour), 3 * time.Hour},
		"words":          {acmetest.Problem(http.StatusTooManyRequests, "rateLimited", "too many new orders (300) from this account in the last 3h0m0s, retry after "+at.Format("2006-01-02 15:04:05 UTC")+": see https://x", 0), 5 * time.Hour},
		"neither":        {acmetest.Problem(http.StatusTooManyRequests, "rateLimited", "too many", 0), rateLimited},
		"no problem":     {acmetest.Respond(http.StatusTooManyRequests, "text/html", "<h1>Slow down"), rateLimited},
		"too long":       {acmetest.RateLimited(10000 * time.Hour), longestWait},
		"of maintenance": {acmetest.Problem(http.StatusServiceUnavailable, "serverInternal", "back soon", 2*time.Hour), 2 * time.Hour},
		"no limit":       {acmetest.Problem(http.StatusForbidden, "unauthorized", "no", 0), 0},
	} {
		t.Run(name, func(t *testing.T) {
			ca := acmetest.Start(t, acmetest.Options{})
			e := startACMEEdge(t, ca)
			ca.Inject(acmetest.Match{Endpoint: acmetest.NewOrder}, 0, c.action)
			e.serve("app.example.com")
			line := e.failed("app.example.com")
			next := time.Unix(0, int64(line.num("next")*1e9))
			least, most := c.least, c.least+2*time.Minute
			if c.least == 0 {
				least, most = backOff[0]/2, 2*backOff[0]
			}
			if got := time.Until(next); got < least-time.Minute || got > most+time.Minute {
				t.Errorf("the next attempt is in %s, want %s to %s", got, least, most)
			}
			kept := backOffOf(t, &certmagic.FileStorage{Path: e.dir + "/storage"}, "app.example.com")
			if kept == nil || kept.Next.Sub(next).Abs() > time.Second {
				t.Errorf("kept is %+v", kept)
			}
		})
	}
}

// TestCALimits stops to ask a CA that refuses all names of a tenant, and asks the next one meanwhile; that counts as nobody's
// failure, and other tenants do not notice.
func TestCALimits(t *testing.T) {
	st := newTestStorage(t)
	var calls, others atomic.Int64
	signer := newSigner(t)
	const until = 50 * time.Minute
	issuer := &testIssuer{"first", func(ctx context.Context, name string, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		calls.Add(1)
		if strings.HasPrefix(name, "n") {
			ctx.Value(answerKey{}).(*answer).retryAfter = time.Now().Add(until)
			return nil, acme.Problem{Type: acme.ProblemTypeRateLimited, Status: http.StatusTooManyRequests, Detail: "too many certificates already issued"}
		}
		return signer.sign(csr, time.Hour), nil
	}}
	s := newStateOn(t, st, issuer)
	s.certs.start()
	names := manyNames("n", 100)
	for i, name := range names { // one after the other
		serveDomains(t, s, "many", "192.0.2.1:1", domain.Certificate{}, name)
		pqtest.Wait(t, "the order to wait", func() bool {
			s.certs.orders.mu.Lock()
			defer s.certs.orders.mu.Unlock()
			return len(s.certs.orders.waiting) == i+1
		})
	}
	if n := calls.Load(); n != limitedInRow {
		t.Errorf("the CA was asked %d times, want %d", n, limitedInRow)
	}
	pending, failed := s.certs.orders.summary()
	if failed != limitedInRow || pending != len(names)-limitedInRow {
		t.Errorf("%d failed, %d are pending", failed, pending)
	}
	if backOffOf(t, st, names[50]) != nil {
		t.Error("an order that was not made counts as a failure")
	}
	if state := s.certs.orders.state(names[50]); !strings.Contains(state, "it is tried again at") {
		t.Errorf("state: %s", state)
	}
	s.certs.orders.mu.Lock()
	for _, one := range s.certs.orders.waiting {
		if in := time.Until(one.next); in < until-time.Minute || in > until+2*time.Minute {
			t.Errorf("%s is tried again in %s", one.name, in)
		}
	}
	s.certs.orders.mu.Unlock()
	serveDomains(t, s, "other", "192.0.2.1:1", domain.Certificate{}, "other.example.com")
	pqtest.Wait(t, "another tenant's certificate", func() bool { _, ok := s.certs.known.of("other.example.com"); return ok })

	// Another CA takes them.
	two := newStateOn(t, newTestStorage(t), issuer, &testIssuer{"second", func(_ context.Context, _ string, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
		others.Add(1)
		return signer.sign(csr, time.Hour), nil
	}})
	calls.Store(0)
	two.certs.start()
	serveDomains(t, two, "many", "192.0.2.1:1", domain.Certificate{}, names...)
	pqtest.Wait(t, "all certificates", func() bool { pending, failed := two.certs.orders.summary(); return pending+failed == 0 })
	if others.Load() != int64(len(names)) || calls.Load() > workersATenant+limitedInRow {
		t.Errorf("the second was asked %d times, the first %d times", others.Load(), calls.Load())
	}
}

// TestNameLimit does not stop to ask a CA that refuses one name and takes the others, nor for long.
func TestNameLimit(t *testing.T) {
	var l caLimits
	one, other := caTenant{"first", "a"}, caTenant{"first", "b"}
	for range 10 {
		l.refused(one, time.Now().Add(time.Hour))
		l.refused(one, time.Now().Add(time.Hour))
		l.accepted(one)
		l.refused(one, time.Now().Add(time.Hour))
		l.refused(one, time.Time{}) // for another reason
		l.refused(other, time.Now().Add(time.Hour))
		l.accepted(other)
	}
	if until := l.until(one); !until.IsZero() || len(l.known) != 0 {
		t.Errorf("it is not asked until %s", until)
	}
	for range limitedInRow {
		l.refused(one, time.Now().Add(100*time.Hour))
	}
	if in := time.Until(l.until(one)); in < limitedMost/2 || in > limitedMost || !l.until(other).IsZero() {
		t.Errorf("it is not asked for %s, or not for another tenant", in)
	}
	l.refused(one, time.Now().Add(time.Minute))
	if in := time.Until(l.until(one)); in > time.Minute {
		t.Errorf("it is not asked for %s", in)
	}
}

// TestIssuersFailOver asks the second CA when the first is down, slow, or refuses, and says what each of them said when both do.
func TestIssuersFailOver(t *testing.T) {
	pqtest.Leaks(t)
	first, second := acmetest.Start(t, acmetest.Options{}), acmetest.Start(t, acmetest.Options{})
	e := startACMEEdgeWith(t, first, "http 127.0.0.1:0\n"+issuerOf(t, first)+issuerOf(t, second))
	_, addr := listeningOn(t, "http/127.0.0.1:0")
	second.ForwardHTTP(addr)
	second.ForwardTLS(e.addr)
	for name, action := range map[string]acmetest.Action{
		"down.example.com":    acmetest.Cut(),
		"broken.example.com":  acmetest.Respond(http.StatusInternalServerError, "text/html", "<h1>Oops"),
		"limited.example.com": acmetest.RateLimited(time.Hour),
		"refuses.example.com": acmetest.Problem(http.StatusForbidden, "rejectedIdentifier", "policy forbids", 0),
	} {
		remove := first.Inject(acmetest.Match{Endpoint: acmetest.NewOrder}, 0, action)
		e.serve(name)
		if line := e.issued(name); !strings.Contains(second.URL(), strings.Split(line.str("issuer"), "-")[1]) {
			t.Errorf("%s was issued by %s", name, line.str("issuer"))
		}
		if len(second.Issued(name)) != 1 {
			t.Errorf("the second CA issued %d certificates for %s", len(second.Issued(name)), name)
		}
		remove()
	}
	first.Inject(acmetest.Match{Endpoint: acmetest.NewOrder}, 0, acmetest.Problem(http.StatusForbidden, "rejectedIdentifier", "first forbids", 0))
	second.Inject(acmetest.Match{Endpoint: acmetest.NewOrder}, 0, acmetest.Problem(http.StatusForbidden, "rejectedIdentifier", "second forbids", 0))
	e.serve("both.example.com")
	if text := e.failed("both.example.com").str("error"); !strings.Contains(text, "rejectedIdentifier: first forbids; ") || !strings.Contains(text, "rejectedIdentifier: second forbids") {
		t.Errorf("error: %s", text)
	}
	if state := e.api().certificate("both.example.com"); state.State != certFailed || !strings.Contains(state.Error, "first forbids") || state.Attempts != 1 {
		t.Errorf("state: %+v", state)
	}
}

// TestSlowCA waits for a CA that lets requests wait, and answers when it is asked again.
func TestSlowCA(t *testing.T) {
	pqtest.Leaks(t)
	ca := acmetest.Start(t, acmetest.Options{RetryAfter: time.Second, RejectNonces: 20})
	e := startACMEEdge(t, ca)
	release := ca.HoldIssuance("app.example.com")
	e.serve("app.example.com")
	pqtest.Wait(t, "the client to ask again", func() bool { return ca.Count(acmetest.Match{Endpoint: acmetest.Order}) >= 1 })
	release()
	e.issued("app.example.com")
	if n := ca.Orders("app.example.com"); n != 1 {
		t.Errorf("%d orders", n)
	}
}

// TestRejectedNonces obtains from a CA that refuses every other nonce.
func TestRejectedNonces(t *testing.T) {
	ca := acmetest.Start(t, acmetest.Options{})
	e := startACMEEdge(t, ca)
	for _, endpoint := range []acmetest.Endpoint{acmetest.NewAccount, acmetest.NewOrder, acmetest.Challenge, acmetest.Finalize, acmetest.Certificate} {
		ca.Inject(acmetest.Match{Endpoint: endpoint}, 2, acmetest.BadNonce())
	}
	e.serve("app.example.com")
	e.issued("app.example.com")
	e.visit("app.example.com")
}

// TestLyingCA believes nothing that does not fit: it is not stored, not served, and said.
func TestLyingCA(t *testing.T) {
	pqtest.Leaks(t)
	ca := acmetest.Start(t, acmetest.Options{NoRenewalInfo: true})
	e := startACMEEdge(t, ca)
	dir := filepath.Join(e.dir, "storage/certificates")
	for name, c := range map[string]struct {
		lie  acmetest.Action
		want string
	}{
		"name.example.com":    {ca.WrongName("other.example.com"), "another certificate than was asked for"},
		"key.example.com":     {ca.WrongKey(), "another certificate than was asked for"},
		"expired.example.com": {ca.Expired(), "certificate that clients refuse"},
		"issuer.example.com":  {ca.WrongIssuer(), "certificate that clients refuse"},
		"empty.example.com":   {acmetest.RewriteChain(func([]*x509.Certificate) []*x509.Certificate { return nil }), ""},
		"ca.example.com":      {acmetest.RewriteChain(func(chain []*x509.Certificate) []*x509.Certificate { return chain[1:] }), ""},
		"text.example.com":    {acmetest.Respond(200, "application/pem-certificate-chain", "welcome"), ""},
		"html.example.com":    {acmetest.Respond(200, "text/html", "welcome"), ""},
	} {
		ca.Inject(acmetest.Match{Endpoint: acmetest.Certificate, Name: name}, 0, c.lie)
		e.serve(name)
		if text := e.failed(name).str("error"); !strings.Contains(text, c.want) {
			t.Errorf("%s: %s", name, text)
		}
		if _, err := e.handshake(e.client(name, unverified)); alertOfHandshake(err) != alertInternalError {
			t.Errorf("%s is served: %v", name, err)
		}
		if found, _ := filepath.Glob(dir + "/*/" + name); len(found) > 0 {
			t.Errorf("%s is in storage", name)
		}
	}
	// Whose clock is wrong nobody knows here: what is not valid yet is kept, and ordered no second time.
	ca.Inject(acmetest.Match{Endpoint: acmetest.Certificate, Name: "early.example.com"}, 0, ca.NotYetValid())
	e.serve("early.example.com")
	e.issued("early.example.com")
	e.log.message("an issuer gave a certificate that is not valid yet")
	if _, err := e.handshake(e.client("early.example.com", unverified)); err != nil {
		t.Error(err)
	}
	e.certs().sweep()
	if n := ca.Orders("early.example.com"); n != 1 || e.certs().orders.has("early.example.com") {
		t.Errorf("%d orders", n)
	}
}

// TestExternalAccount binds the account to one that the CA knows, and shows nobody the key.
func TestExternalAccount(t *testing.T) {
	const keyID, key = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	ca := acmetest.Start(t, acmetest.Options{ExternalAccounts: map[string]string{keyID: key}})
	t.Setenv("PQPROXY_TEST_EAB", key)
	e := startACMEEdge(t, ca, "eab "+keyID+" {env.PQPROXY_TEST_EAB}")
	e.serve("app.example.com")
	e.issued("app.example.com")
	e.visit("app.example.com")
	// Nor is the account's own key in the log, or a certificate's.
	keys, _ := filepath.Glob(e.dir + "/storage/acme/*/users/*/*.key")
	more, _ := filepath.Glob(e.dir + "/storage/certificates/*/*/*.key")
	if len(keys) != 1 || len(more) != 1 {
		t.Fatalf("keys are %v, %v", keys, more)
	}
	secrets := []string{key}
	for _, file := range slices.Concat(keys, more) {
		lines := strings.Split(strings.TrimSpace(readFile(t, file)), "\n")
		secrets = append(secrets, lines[1:len(lines)-1]...)
	}
	log := e.log.text()
	for _, secret := range secrets {
		if strings.Contains(log, secret) {
			t.Error("a key is in the log")
		}
	}
	if lines := e.log.all(func(l logLine) bool { return l.str("level") == "debug" }); len(lines) == 0 {
		t.Error("the log has no debug lines, so this shows little")
	}
}

// TestWrongExternalAccount says what the CA said, without the key.
func TestWrongExternalAccount(t *testing.T) {
	const key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	ca := acmetest.Start(t, acmetest.Options{ExternalAccounts: map[string]string{"kid-1": "AAAA" + key[4:]}})
	e := startACMEEdge(t, ca, "eab kid-1 "+key)
	e.serve("app.example.com")
	if text := e.failed("app.example.com").str("error"); strings.Contains(text, key) || !strings.Contains(text, ":") {
		t.Errorf("error: %s", text)
	}
	if strings.Contains(e.log.text(), key) {
		t.Error("the key is in the log")
	}
}

// TestAccountOfTheCAIsGone registers anew with a CA that has lost its accounts.
func TestAccountOfTheCAIsGone(t *testing.T) {
	ca := acmetest.Start(t, acmetest.Options{})
	e := startACMEEdge(t, ca)
	e.serve("a.example.com")
	e.issued("a.example.com")
	ca.Inject(acmetest.Match{Endpoint: acmetest.NewOrder}, 1, acmetest.Problem(http.StatusBadRequest, "accountDoesNotExist", "who?", 0))
	e.serve("b.example.com")
	e.issued("b.example.com")
}

// TestEmailOfTheApp is that of issuers without one.
func TestEmailOfTheApp(t *testing.T) {
	for raw, want := range map[string]string{
		`{"module":"acme"}`:                         `{"email":"ops@example.com","module":"acme"}`,
		`{"module":"acme","email":"x@example.com"}`: `{"module":"acme","email":"x@example.com"}`,
		`{"module":"internal"}`:                     `{"module":"internal"}`,
		`{`:                                         `{`,
	} {
		if got := string(withEmail([]byte(raw), "ops@example.com")); got != want {
			t.Errorf("%s: %s", raw, got)
		}
		if got := string(withEmail([]byte(raw), "")); got != raw {
			t.Errorf("%s: %s", raw, got)
		}
	}
	ca := acmetest.Start(t, acmetest.Options{})
	e := startACMEEdgeWith(t, ca, "email app@example.com\nhttp 127.0.0.1:0\n"+issuerOf(t, ca))
	e.serve("app.example.com")
	e.issued("app.example.com")
	if found, _ := filepath.Glob(e.dir + "/storage/acme/*/users/app@example.com"); len(found) != 1 {
		t.Error("the account is not of that address")
	}
}

// TestReadRetryAfter reads both forms of the header.
func TestReadRetryAfter(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"120": now.Add(2 * time.Minute), "0": now, "Fri, 01 Jan 2027 02:00:00 GMT": now.Add(2 * time.Hour),
		"": {}, "-1": {}, "soon": {}, "99999999999999999999": {}, "1.5": {},
	} {
		if got := readRetryAfter(text, now); !got.Equal(want) {
			t.Errorf("%q: %s", text, got)
		}
	}
}
