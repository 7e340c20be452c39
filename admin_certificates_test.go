package pqproxy

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestAdminCertificateStates shows certificates in every state, without a client having come for any of them.
func TestAdminCertificateStates(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, adminOption)
	api := e.api()
	const day = 24 * time.Hour
	now := time.Now()
	acme := func(name string) {
		t.Helper()
		api.want(201, "PUT", "/domains/"+name, `{"upstreams":[{"dial":"127.0.0.1:9"}]}`)
	}
	far := e.ca.IssueWith(t, expiring(now.Add(60*day)), "valid.example.com")
	due := e.ca.IssueWith(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-80*day), now.Add(10*day) }, "due.example.com")
	over := e.ca.IssueWith(t, expiring(now.Add(-day)), "expired.example.com")
	storeIssued(t, "valid.example.com", far)
	storeIssued(t, "due.example.com", due)
	storeIssued(t, "expired.example.com", over)
	for _, name := range []string{"valid.example.com", "due.example.com", "expired.example.com", "failed.example.com"} {
		acme(name)
	}
	api.want(201, "PUT", "/domains/pending.example.com", internalRecord("pending.example.com"))
	own := e.ca.IssueWith(t, expiring(now.Add(5*day)), "own.example.com")
	api.want(201, "PUT", "/domains/own.example.com", pairRecord(t, "127.0.0.1:9", own, "", ""))
	early := e.ca.IssueWith(t, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }, "early.example.com")
	kept := inForce.Load().newChangeSet(rankRemote, false, nil) // accepted before a restart, by another clock
	kept.restore = true
	record := pairRecord(t, "127.0.0.1:9", early, "", "")
	d, err := domain.Parse([]byte(`{"name":"early.example.com",`+record[1:]), domain.Remote)
	if err == nil {
		err = kept.put(d)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inForce.Load().apply(kept, nil); err != nil {
		t.Fatal(err)
	}

	for _, tt := range []struct {
		name, state, source, fault string
		leaf                       *x509.Certificate
		tried                      bool
	}{
		{"valid", certValid, "acme", "", far.Leaf, false},
		{"due", certValid, "acme", "127.0.0.1:1", due.Leaf, true},
		{"expired", certExpired, "acme", "the certificate has expired, and obtaining another one failed: ", over.Leaf, true},
		{"failed", certFailed, "acme", "there is no certificate for failed.example.com yet: attempt 1 failed, the next one is at ", nil, true},
		{"pending", certPending, "internal", "yet: the local CA issues it when the first client comes", nil, false},
		{"own", certValid, "byoc", "", own.Leaf, false},
		{"early", certPending, "byoc", "the certificate is not valid yet; clients refuse it until ", early.Leaf, false},
	} {
		name := tt.name + ".example.com"
		var c shownCertificate
		pqtest.Wait(t, name+" to be looked at", func() bool {
			c = api.certificate(name)
			return (c.NotAfter != nil) == (tt.leaf != nil) && (c.NextAttempt != nil) == tt.tried
		})
		if c.State != tt.state || c.Source != tt.source || !strings.Contains(c.Error, tt.fault) || (c.Error == "") != (tt.fault == "") {
			t.Errorf("%s is shown as %+v", name, c)
		}
		if tt.leaf != nil && (c.Issuer != "CN=pqtest root" || !c.NotAfter.Equal(tt.leaf.NotAfter)) {
			t.Errorf("%s is shown as %+v", name, c)
		}
		if tt.tried != (c.Attempts == 1) || tt.tried && !c.NextAttempt.After(now) {
			t.Errorf("the next attempt of %s is shown as %v", name, c.NextAttempt)
		}
		var one struct{ Certificate shownCertificate }
		api.want(200, "GET", "/domains/"+name, "").into(t, &one)
		if one.Certificate.State != c.State || one.Certificate.Error != c.Error || one.Certificate.Attempts != c.Attempts {
			t.Errorf("%s is shown as %+v and as %+v", name, c, one.Certificate)
		}
	}

	for query, want := range map[string]string{
		"30d": "due early expired own", "6d": "early expired own", "0s": "expired", "70d": "due early expired own valid",
	} {
		var answer struct{ Certificates []shownCertificate }
		api.want(200, "GET", "/certificates?expiring_within="+query, "").into(t, &answer)
		var names []string
		for _, c := range answer.Certificates {
			names = append(names, strings.TrimSuffix(c.Name, ".example.com"))
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("expiring within %s: %s, want %s", query, got, want)
		}
	}
	counted := make(map[string]float64)
	for _, s := range samples(t) {
		if strings.HasPrefix(s.name, "certificates{") {
			counted[s.labels["state"]] = s.value
		}
	}
	if got, want := fmt.Sprint(counted), "map[expired:1 failed:3 pending:0 valid:4]"; got != want {
		t.Errorf("the gauges are %s, want %s", got, want)
	}
}

// TestCertIndex: the index tells issuers apart as far as it has numbers for them, and keeps nothing of what it forgets.
func TestCertIndex(t *testing.T) {
	var i certIndex
	now := time.Now()
	if _, known := i.of("a"); known || i.issuerOf("a") != "" {
		t.Error("it knows what it was not told")
	}
	i.forget("a")
	for n := range maxIssuers + 10 {
		leaf := &x509.Certificate{NotAfter: now.Add(time.Duration(n) * time.Hour)}
		leaf.Issuer.CommonName = fmt.Sprint("ca ", n)
		i.note(fmt.Sprint(n), leaf)
	}
	for n, want := range map[int]string{0: "CN=ca 0", maxIssuers - 2: fmt.Sprintf("CN=ca %d", maxIssuers-2), maxIssuers - 1: "", maxIssuers + 9: ""} {
		if got := i.issuerOf(fmt.Sprint(n)); got != want {
			t.Errorf("%d is of %q, want %q", n, got, want)
		}
	}
	var c certCounts
	i.count(&c, now.Add(90*time.Minute))
	if c.expired != 2 || c.valid != maxIssuers+8 || c.earliest != epochTimeOf(now) {
		t.Errorf("%+v", c)
	}
	i.forget("0")
	if _, known := i.of("0"); known {
		t.Error("it is not forgotten")
	}
}
