package acmetest

import (
	"crypto/x509"
	"math/big"
	"slices"
	"testing"
	"time"

	pebbleacme "github.com/letsencrypt/pebble/v2/acme"
	"github.com/letsencrypt/pebble/v2/core"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

func TestRenewalInfo(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{RenewalRetryAfter: time.Minute})
	leaf := c.obtain("app.example.com")
	info, err := c.GetRenewalInfo(t.Context(), leaf)
	if err != nil {
		t.Fatal(err)
	}
	middle := leaf.NotAfter.Add(-lifetime(leaf) / 3)
	if !info.SuggestedWindow.Start.Equal(middle.Add(-24*time.Hour)) || !info.SuggestedWindow.End.Equal(middle.Add(24*time.Hour)) {
		t.Errorf("the window is %v to %v, want a day around %v", info.SuggestedWindow.Start, info.SuggestedWindow.End, middle)
	}
	if until := time.Until(*info.RetryAfter); until > time.Minute || until < time.Minute-pqtest.Timeout {
		t.Errorf("to ask again in %v, want a minute", until)
	}

	start, end := time.Now().Add(time.Hour).Truncate(time.Second), time.Now().Add(2*time.Hour).Truncate(time.Second)
	if err := s.SetRenewalWindow(leaf, start, end); err != nil {
		t.Fatal(err)
	}
	info, err = c.GetRenewalInfo(t.Context(), leaf)
	if err != nil || !info.SuggestedWindow.Start.Equal(start) || !info.SuggestedWindow.End.Equal(end) {
		t.Errorf("got %+v, %v, want the window that was set", info.SuggestedWindow, err)
	}
	if err := s.RenewNow(leaf); err != nil {
		t.Fatal(err)
	}
	if info, err = c.GetRenewalInfo(t.Context(), leaf); err != nil || !info.SelectedTime.Before(time.Now()) {
		t.Errorf("got %+v, %v, want a window that is over", info.SuggestedWindow, err)
	}
	if err := s.RenewNow(s.liar.cert); err == nil {
		t.Error("a window was set for a certificate of somebody else")
	}
}

func TestNoRenewalInfo(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{NoRenewalInfo: true})
	c.obtain("app.example.com")
	if directory, err := c.GetDirectory(t.Context()); err != nil || directory.RenewalInfo != "" || s.Count(Match{Endpoint: RenewalInfo}) != 0 {
		t.Errorf("the directory has ARI at %q (%v)", directory.RenewalInfo, err)
	}
}

// TestReplaces renews as RFC 9773, section 5 says. The second renewal of one certificate is refused, which acmez meets
// with an order that replaces none.
func TestReplaces(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	leaf := c.obtain("app.example.com")
	for i, want := range []int{1, 2} {
		before := s.Count(Match{Endpoint: NewOrder})
		if _, err := c.tryObtain(order{names: []string{"app.example.com"}, replaces: leaf}); err != nil {
			t.Fatal(err)
		}
		if n := s.Count(Match{Endpoint: NewOrder}) - before; n != want {
			t.Errorf("renewal %d took %d orders, want %d", i, n, want)
		}
	}
	var refused []string
	for _, r := range s.Requests() {
		if r.Problem != "" {
			refused = append(refused, r.Problem)
		}
	}
	if !slices.Equal(refused, []string{"alreadyReplaced"}) {
		t.Errorf("refused were %q, want one alreadyReplaced", refused)
	}
}

// TestSerialWithLeadingZero: Pebble looks for the certificate to replace by the serial number without the zero that DER
// puts before a high bit. One renewal of 256 failed.
func TestSerialWithLeadingZero(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	serial := big.NewInt(0xff00)
	names := []pebbleacme.Identifier{{Type: "dns", Value: "app.example.com"}}
	s.pebble.mendSerial(&core.Order{
		Order: pebbleacme.Order{Identifiers: names}, AccountID: "7",
		CertificateObject: &core.Certificate{ID: "ff00", Cert: &x509.Certificate{SerialNumber: serial}},
	})
	_, inHex, err := parseCertID("AAAA.AP8A") // 00 ff 00
	if err != nil {
		t.Fatal(err)
	}
	found, err := s.pebble.db.GetOrderByIssuedSerial(inHex)
	if err != nil || found.AccountID != "7" || !slices.Equal(found.Identifiers, names) {
		t.Errorf("found %v (%v), want the order", found, err)
	}
}
