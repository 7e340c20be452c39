package acmetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

func TestRateLimited(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	s.Inject(Match{NewOrder, "App.example.com"}, 2, RateLimited(90*time.Second+1))
	for range 2 {
		problem := c.refused("rateLimited", "app.example.com")
		if problem.Status != http.StatusTooManyRequests {
			t.Errorf("status is %d, want 429", problem.Status)
		}
	}
	if seen := c.sawRetryAfter(); !slices.Equal(seen, []string{"91", "91"}) {
		t.Errorf("Retry-After was %q, want 91 each time", seen)
	}
	if n := s.Orders(""); n != 0 {
		t.Errorf("%d orders reached Pebble", n)
	}
	c.obtain("other.example.com")
	c.obtain("app.example.com")
	// The answers carried nonces, so that the client has never had to ask for another.
	if n := s.Count(Match{Endpoint: NewNonce}); n != 1 {
		t.Errorf("%d requests for nonces, want 1", n)
	}
}

func TestBadNonce(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	s.Inject(Match{Endpoint: Finalize}, 1, BadNonce())
	c.obtain("app.example.com")
	var seen []string
	for _, r := range s.Requests() {
		if r.Endpoint == Finalize {
			seen = append(seen, r.Problem)
		}
	}
	if !slices.Equal(seen, []string{"badNonce", ""}) {
		t.Errorf("finalizing ended with %q, want badNonce and then none", seen)
	}
}

// TestInject shows the order in which faults act, and that they can be taken back.
func TestInject(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	account := Match{Endpoint: NewAccount} // which acmez also looks accounts up with
	s.Inject(account, 1, Problem(http.StatusForbidden, "unauthorized", "first", 0))
	second := s.Inject(account, 0, Respond(http.StatusTeapot, "text/html", "<h1>no"))
	s.Inject(account, 0, Problem(http.StatusForbidden, "unauthorized", "third", 0))
	ask := func() error {
		_, err := c.GetAccount(t.Context(), c.account)
		return err
	}
	if p := problemOf(t, ask(), "unauthorized"); p.Detail != "first" {
		t.Errorf("%q acted, want the first", p.Detail)
	}
	for range 2 {
		if err := ask(); err == nil || !strings.Contains(err.Error(), "HTTP 418: <h1>no") {
			t.Errorf("error is %v, want the second", err)
		}
	}
	second()
	if p := problemOf(t, ask(), "unauthorized"); p.Detail != "third" {
		t.Errorf("%q acted, want the third", p.Detail)
	}
}

// TestCut resets a connection before an order, and acmez tries again.
func TestCut(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	s.Inject(Match{Endpoint: NewOrder}, 1, Cut())
	c.obtain("app.example.com")
	if n, orders := s.Count(Match{Endpoint: NewOrder}), s.Orders("app.example.com"); n != 2 || orders != 1 {
		t.Errorf("%d requests and %d orders, want 2 and 1", n, orders)
	}
	if i := slices.IndexFunc(s.Requests(), func(r Request) bool { return r.Endpoint == NewOrder }); s.Requests()[i].Status != 0 {
		t.Errorf("%+v: want no answer", s.Requests()[i])
	}
}

// TestCutAnswer loses the answers to an order and to a finalization. Pebble has done what was asked: the client makes
// another order, and a certificate is issued that this version of acmez never fetches.
func TestCutAnswer(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	s.Inject(Match{Endpoint: NewOrder}, 1, CutAnswer())
	s.Inject(Match{Endpoint: Finalize}, 1, CutAnswer())
	if _, err := c.tryObtain(order{names: []string{"app.example.com"}}); err == nil && s.Count(Match{Endpoint: Certificate}) == 0 {
		t.Error("a certificate came from nowhere")
	}
	if n := s.Orders("app.example.com"); n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
	if n := len(s.Issued("app.example.com")); n != 1 {
		t.Errorf("%d certificates, want 1", n)
	}
}

func TestHold(t *testing.T) {
	t.Parallel()
	for name, signed := range map[string]int{"Hold": 0, "HoldAnswer": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, c := start(t, Options{})
			release := make(chan struct{})
			action := Hold(release)
			if name == "HoldAnswer" {
				action = HoldAnswer(release)
			}
			s.Inject(Match{Endpoint: Finalize}, 1, action)
			done := make(chan error, 1)
			go func() {
				_, err := c.tryObtain(order{names: []string{"app.example.com"}})
				done <- err
			}()
			pqtest.Wait(t, "the request and what Pebble does of it", func() bool {
				return s.Count(Match{Endpoint: Finalize}) == 1 && len(s.Issued("")) == signed
			})
			select {
			case err := <-done:
				t.Fatalf("the client did not wait: %v", err)
			default:
			}
			close(release)
			if err := <-done; err != nil {
				t.Error(err)
			}
			if n := len(s.Issued("")); n != 1 {
				t.Errorf("%d certificates, want 1", n)
			}
		})
	}
}

// TestHoldGone has the client leave: Pebble never hears of it.
func TestHoldGone(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	asked, ended := make(chan struct{}), make(chan struct{})
	s.Inject(Match{Endpoint: NewOrder}, 1, func(w http.ResponseWriter, r *http.Request, pebble http.Handler) {
		defer close(ended)
		close(asked)
		Hold(nil)(w, r, pebble)
	})
	ctx, cancel := context.WithCancel(t.Context())
	obtained := make(chan error, 1)
	go func() {
		_, err := c.ObtainCertificateForSANs(ctx, c.account, c.key, []string{"app.example.com"})
		obtained <- err
	}()
	<-asked
	cancel()
	if err := <-obtained; !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want that of the context", err)
	}
	<-ended
	if n := s.Orders(""); n != 0 {
		t.Errorf("%d orders, want none", n)
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	s.Inject(Match{Endpoint: NewAccount}, 1, Delay(50*time.Millisecond))
	before := time.Now()
	if _, err := c.GetAccount(t.Context(), c.account); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(before); took < 50*time.Millisecond {
		t.Errorf("it took %v, want 50ms", took)
	}
}

// TestDown is a server that resets all connections.
func TestDown(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	remove := s.Inject(Match{}, 0, Cut())
	_, err := c.GetAccount(t.Context(), c.account)
	if problem := (acme.Problem{}); err == nil || errors.As(err, &problem) {
		t.Errorf("error is %v, want that of a connection", err)
	}
	remove()
	if _, err := c.GetAccount(t.Context(), c.account); err != nil {
		t.Error(err)
	}
}

func TestLies(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	now := time.Now()
	matches := func(chain []*x509.Certificate) bool {
		return chain[0].PublicKey.(*ecdsa.PublicKey).Equal(c.key.Public())
	}
	for _, lie := range []struct {
		name   string
		action Action
		check  func(chain []*x509.Certificate) bool
	}{
		{"WrongName", s.WrongName("evil.example.com"), func(chain []*x509.Certificate) bool {
			return slices.Equal(chain[0].DNSNames, []string{"evil.example.com"}) && matches(chain) && chained(chain)
		}},
		{"Expired", s.Expired(), func(chain []*x509.Certificate) bool {
			return chain[0].NotAfter.Before(now) && chain[0].VerifyHostname("app.example.com") == nil && matches(chain) && chained(chain)
		}},
		{"NotYetValid", s.NotYetValid(), func(chain []*x509.Certificate) bool {
			return chain[0].NotBefore.After(now.Add(time.Hour)) && matches(chain) && chained(chain)
		}},
		{"WrongKey", s.WrongKey(), func(chain []*x509.Certificate) bool {
			return !matches(chain) && chain[0].VerifyHostname("app.example.com") == nil && chained(chain)
		}},
		{"WrongIssuer", s.WrongIssuer(), func(chain []*x509.Certificate) bool {
			return !chained(chain) && matches(chain) && slices.ContainsFunc(s.Issued("app.example.com"), chain[0].Equal)
		}},
		{"RewriteChain", RewriteChain(func(chain []*x509.Certificate) []*x509.Certificate {
			return chain[:1]
		}), func(chain []*x509.Certificate) bool {
			return len(chain) == 1
		}},
	} {
		s.Inject(Match{Endpoint: Certificate}, 1, lie.action)
		// What holds for the lie does not hold for the truth.
		chain, truth := c.obtainChain("app.example.com"), c.obtainChain("app.example.com")
		if !lie.check(chain) || lie.check(truth) {
			t.Errorf("%s: leaf for %q from %v to %v, by %q", lie.name, chain[0].DNSNames, chain[0].NotBefore, chain[0].NotAfter, chain[0].Issuer)
		}
		if verify(s, 0, chain, "app.example.com") == nil {
			t.Errorf("%s: the chain is good", lie.name)
		}
	}
}

// chained says whether each certificate was signed by the next.
func chained(chain []*x509.Certificate) bool {
	for i, cert := range chain[:len(chain)-1] {
		if cert.CheckSignatureFrom(chain[i+1]) != nil {
			return false
		}
	}
	return len(chain) > 1
}

// TestHostileRequests sends what no client does.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	base := strings.TrimSuffix(s.URL(), s.path)
	for _, test := range []struct {
		path, body string
		status     int
	}{
		{"/order-plz", "", http.StatusBadRequest},
		{"/order-plz", `{"protected":"e30","payload":"e30","signature":""}`, http.StatusBadRequest},
		{"/order-plz", strings.Repeat("x", maxBody+1), http.StatusBadRequest},
		{"/authZ/none", "{}", http.StatusBadRequest},
		{"/chalZ/", "{}", http.StatusBadRequest},
		{"/certZ/none/alternate/x", "{}", http.StatusBadRequest},
		{"/draft-ietf-acme-ari-03/renewalInfo/x.!", "", http.StatusInternalServerError},
		{"/nowhere", "", http.StatusNotFound},
		{"/dir", "", http.StatusNotFound},
		{"/7777/directory", "", http.StatusNotFound},
	} {
		req, err := http.NewRequest(http.MethodPost, base+test.path, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/jose+json")
		resp, err := c.HTTPClient.Do(req)
		if err != nil {
			t.Errorf("%s: %v", test.path, err)
			continue
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != test.status {
			t.Errorf("%s: status %d, want %d", test.path, resp.StatusCode, test.status)
		}
	}
	c.obtain("app.example.com")
}
