package dashboard

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// aPair makes a certificate that ends then, with a subject that is an attack.
func aPair(t *testing.T, name string, from, to time.Time) (chain, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: hostile}, DNSNames: []string{name, "*." + name}, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}))
}

func (s *site) domainWithPair(who *management.Principal, name string, ends time.Time) *management.Domain {
	s.t.Helper()
	chain, key := aPair(s.t, name, s.now().AddDate(0, 0, -1), ends)
	text, err := json.Marshal(map[string]any{
		"name": name, "upstreams": []any{map[string]any{"dial": "upstream.example.com:443"}}, "certificate": map[string]any{"source": "byoc", "chain_pem": chain, "key_pem": key},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	d, err := s.plane.CreateDomain(s.t.Context(), who, text)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

func TestCertificates(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	check(t, s, b.get("/certificates").want(http.StatusOK, "No certificates yet"))
	now := s.now()
	soonOne := s.domainWithPair(s.root, "soon.example.com", now.Add(3*24*time.Hour))
	s.domainWithPair(s.root, "later.example.com", now.Add(20*24*time.Hour))
	s.domainWithPair(s.root, "far.example.com", now.Add(400*24*time.Hour))
	s.madeDomain(s.root, "acme.example.com")
	s.domainWithPair(s.otherTenant(), "theirs.example.com", now.Add(3*24*time.Hour))

	page := b.get("/certificates").want(http.StatusOK, "soon.example.com", "later.example.com", "far.example.com", "acme.example.com", "3 days", "20 days", "none yet", "your own", `CN=\<script\>alert(1)\</script\>`,
		"also *.soon.example.com", "ECDSA P-256", "2026-03-17 15:09:26 UTC", "March 2026")
	check(t, s, page)
	if strings.Contains(page.text(), "theirs") {
		t.Error("another tenant's certificate is shown")
	}
	if page.find(func(n *html.Node) bool {
		return n.Data == "a" && attr(n, "href") == "/domains/"+soonOne.ID+"/certificate"
	}) == nil {
		t.Error("no link to where a certificate is uploaded")
	}
	for filter, want := range map[string][]string{
		"expiring_within=7d": {"soon"}, "expiring_within=21d": {"soon", "later"}, "expiring_within=90d": {"soon", "later"}, "day=2026-03-17": {"soon"}, "day=2026-03-18": nil,
	} {
		page := b.get("/certificates?" + filter).want(http.StatusOK)
		check(t, s, page)
		var got []string
		for _, n := range page.all(func(n *html.Node) bool { return n.Data == "th" && attr(n, "scope") == "row" }) {
			name, _, _ := strings.Cut(textOf(n), ".")
			got = append(got, name)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s: %v, want %v", filter, got, want)
		}
		if want == nil && !strings.Contains(page.text(), "None ends then") {
			t.Errorf("%s: %s", filter, page.text())
		}
	}
	// A day of the calendar leads to its certificates.
	day := page.find(func(n *html.Node) bool { return n.Data == "a" && textOf(n) == "17 March 2026: 1 certificate ends" })
	b.get(attr(day, "href")).want(http.StatusOK, "soon.example.com")
	for _, filter := range []string{"expiring_within=x", "expiring_within=0d", "expiring_within=7", "expiring_within=99999999999d", "day=today", "cursor=x"} {
		check(t, s, b.get("/certificates?"+filter).want(http.StatusUnprocessableEntity))
	}
	s.pass(4 * 24 * time.Hour)
	check(t, s, s.signedIn().get("/certificates").want(http.StatusOK, "ended", "1 has ended already."))
}
