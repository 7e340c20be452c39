package pqproxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// pairRecord is the JSON of a domain with that pair.
func pairRecord(t testing.TB, dial string, pair tls.Certificate, certificate, members string) string {
	t.Helper()
	chain, key := pqtest.EncodePair(t, pair)
	return pemRecord(t, dial, chain, key, certificate, members)
}

// pemRecord is pairRecord of any text. certificate and members are further members of the certificate and of the domain.
func pemRecord(t testing.TB, dial string, chain, key []byte, certificate, members string) string {
	t.Helper()
	c, err := json.Marshal(string(chain))
	if err != nil {
		t.Fatal(err)
	}
	k, err := json.Marshal(string(key))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`{"upstreams":[{"dial":%q}],"certificate":{"source":"byoc","chain_pem":%s,"key_pem":%s%s}%s}`, dial, c, k, certificate, members)
}

// unverified makes a client look at any certificate.
func unverified(c *tls.Config) { c.InsecureSkipVerify = true }

// leafFor returns the certificate that a client of a name is shown.
func (e *edge) leafFor(name string) (*x509.Certificate, error) {
	e.t.Helper()
	c, err := e.handshake(e.client(name, unverified))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}

// wantLeaf expects a name to be served with a certificate.
func (e *edge) wantLeaf(name string, want *x509.Certificate) {
	e.t.Helper()
	if leaf, err := e.leafFor(name); err != nil || !leaf.Equal(want) {
		e.t.Fatalf("%s: %v, %v", name, leaf, err)
	}
}

// storeIssued puts a certificate into storage as if the first issuer had issued it.
func storeIssued(t testing.TB, name string, cert tls.Certificate) {
	t.Helper()
	now := inForce.Load().certs.config.Load()
	chain, key := pqtest.EncodePair(t, cert)
	meta, err := json.Marshal(certmagic.CertificateResource{SANs: []string{name}, IssuerData: json.RawMessage(`{}`)})
	if err != nil {
		t.Fatal(err)
	}
	issuer := now.issuers[0].IssuerKey()
	for at, content := range map[string][]byte{
		certmagic.StorageKeys.SiteCert(issuer, name): chain, certmagic.StorageKeys.SitePrivateKey(issuer, name): key,
		certmagic.StorageKeys.SiteMeta(issuer, name): meta,
	} {
		if err := now.storage.Store(context.Background(), at, content); err != nil {
			t.Fatal(err)
		}
	}
}

// expiring has a certificate expire at a time.
func expiring(at time.Time) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.NotAfter = at
		if !c.NotBefore.Before(at) {
			c.NotBefore = at.Add(-time.Hour)
		}
	}
}

// shownCertificate is certificateAnswer as a client reads it.
type shownCertificate struct {
	Name, Source, State, Issuer, Error string
	NotBefore                          *time.Time `json:"not_before"`
	NotAfter                           *time.Time `json:"not_after"`
	Attempts                           int
	NextAttempt                        *time.Time `json:"next_attempt"`
}

// certificate returns what the list of certificates has of a name.
func (a *apiClient) certificate(name string) (found shownCertificate) {
	a.t.Helper()
	var answer struct{ Certificates []shownCertificate }
	a.want(200, "GET", "/certificates?limit=1000", "").into(a.t, &answer)
	i := slices.IndexFunc(answer.Certificates, func(c shownCertificate) bool { return c.Name == name })
	if i < 0 {
		a.t.Fatalf("%s is in no list", name)
	}
	return answer.Certificates[i]
}

// TestPairRotation swaps the pair of a domain 200 times while clients come and go. Each handshake is done, and with a pair that
// was in force while it went on; sessions are resumed only while their pair is.
func TestPairRotation(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, adminOption)
	api := e.api()
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	const swaps = 200
	var records []string
	number := make(map[string]int64)
	for i := range swaps + 1 {
		issue := e.ca.Issue
		if i%8 == 0 {
			issue = e.ca.IssueRSA
		}
		pair := issue(t, "app.example.com")
		records = append(records, pairRecord(t, up.Addr(), pair, "", ""))
		number[string(pair.Leaf.Raw)] = int64(i)
	}
	api.want(201, "PUT", "/domains/app.example.com", records[0])

	var begun, confirmed, handshakes, resumed atomic.Int64
	visit := func(sessions tls.ClientSessionCache) error {
		least := confirmed.Load()
		c, err := net.DialTimeout("tcp", e.addr, patience)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		client := tls.Client(c, e.client("app.example.com", func(c *tls.Config) { c.ClientSessionCache = sessions }))
		if err := client.Handshake(); err != nil {
			return fmt.Errorf("handshake: %w", err)
		}
		state, most := client.ConnectionState(), begun.Load()
		n, known := number[string(state.PeerCertificates[0].Raw)]
		if !known || n < least || n > most {
			return fmt.Errorf("pair %d (known: %v, resumed: %v) is served between the swaps %d and %d", n, known, state.DidResume, least, most)
		}
		if state.DidResume {
			resumed.Add(1)
		}
		handshakes.Add(1)
		if _, err := io.WriteString(client, "x"); err != nil {
			return err
		}
		_, err = io.ReadFull(client, make([]byte, 1)) // tickets come with this
		return err
	}
	done := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			sessions := tls.NewLRUClientSessionCache(1)
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := visit(sessions); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := 1; i <= swaps; i++ {
		begun.Store(int64(i))
		api.want(200, "PUT", "/domains/app.example.com", records[i])
		confirmed.Store(int64(i))
	}
	close(done)
	clients.Wait()
	t.Logf("%d handshakes during %d swaps, %d of them resumed", handshakes.Load(), swaps, resumed.Load())
	if handshakes.Load() < swaps/4 {
		t.Error("there were too few to tell")
	}
}

// TestPairOfOtherTenant: a tenant's pair that covers names of another tenant serves none of them, whether that one has a
// certificate or not, and whatever was visited before.
func TestPairOfOtherTenant(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, adminOption)
	api := e.api()
	const dial = "127.0.0.1:9"
	greedy := e.ca.Issue(t, "a.example.com", "b.example.com", "c.example.com", "d.example.com", "*.b.example.com", "*.example.com", "*.c.example.com")
	sub, issued := e.ca.Issue(t, "*.b.example.com"), e.ca.Issue(t, "c.example.com")
	storeIssued(t, "c.example.com", issued)
	api.want(201, "PUT", "/domains/a.example.com", pairRecord(t, dial, greedy, "", `,"tenant":"a"`))
	api.want(201, "PUT", "/domains/*.example.com", pairRecord(t, dial, greedy, "", `,"tenant":"a"`))
	for _, name := range []string{"a.example.com", "x.example.com"} {
		e.wantLeaf(name, greedy.Leaf)
	}
	api.want(201, "PUT", "/domains/*.b.example.com", pairRecord(t, dial, sub, "", `,"tenant":"b"`))
	for name, certificate := range map[string]string{"b": `{"source":"acme"}`, "c": `{"source":"acme"}`, "d": `{"source":"internal"}`} {
		api.want(201, "PUT", "/domains/"+name+".example.com", `{"tenant":"b","upstreams":[{"dial":"127.0.0.1:9"}],"certificate":`+certificate+`}`)
	}
	for range 2 { // before and after the names are in memory
		if leaf, err := e.leafFor("b.example.com"); alertOfHandshake(err) != alertInternalError {
			t.Fatalf("a name without a certificate: %v, %v", leaf, err)
		}
		if r := e.log.recordWhere("server_name", "b.example.com"); r.str("end_reason") != string(reasonNoCertificate) {
			t.Errorf("the record is %v", r)
		}
		e.wantLeaf("y.b.example.com", sub.Leaf)
		e.wantLeaf("c.example.com", issued.Leaf)
		if leaf, err := e.leafFor("d.example.com"); err != nil || leaf.Equal(greedy.Leaf) {
			t.Fatalf("a name of the local CA: %v, %v", leaf, err)
		}
		if leaf, err := e.leafFor("z.c.example.com"); alertOfHandshake(err) != alertUnrecognizedName {
			t.Fatalf("a name that nobody has: %v, %v", leaf, err)
		}
		e.wantLeaf("x.example.com", greedy.Leaf)
	}

	// A ticket of the one is worth nothing with the other.
	sessions := &anyName{ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	api.want(200, "PUT", "/domains/a.example.com", pairRecord(t, up.Addr(), greedy, "", `,"tenant":"a"`))
	resuming := func(c *tls.Config) { c.ClientSessionCache = sessions }
	c := e.dial(e.client("a.example.com", resuming))
	echo(t, c, "tickets come with this")
	c.Close()
	c = e.dial(e.client("y.b.example.com", resuming))
	defer c.Close()
	if state := c.ConnectionState(); state.DidResume || !state.PeerCertificates[0].Equal(sub.Leaf) {
		t.Errorf("resumed: %v, with %v", state.DidResume, state.PeerCertificates[0].DNSNames)
	}
}

// TestPairFallback has pairs expire while they are served: where the domain says so the issuers' certificate takes over at
// that moment, with no handshake lost; elsewhere the pair goes on being served.
func TestPairFallback(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, adminOption)
	api := e.api()
	at := time.Now().Add(4 * time.Second).Truncate(time.Second)
	const with, without, never = "with.example.com", "without.example.com", "never.example.com"
	issued := e.ca.Issue(t, with)
	storeIssued(t, with, issued)
	pairs := make(map[string]tls.Certificate)
	for name, fallback := range map[string]string{with: "acme", without: "none", never: "acme"} {
		pairs[name] = e.ca.IssueWith(t, expiring(at), name)
		api.want(201, "PUT", "/domains/"+name, pairRecord(t, "127.0.0.1:9", pairs[name], `,"fallback":"`+fallback+`"`, ""))
	}
	for name, pair := range pairs {
		e.wantLeaf(name, pair.Leaf)
		if shown := api.certificate(name); shown.State != certValid || !shown.NotAfter.Equal(at) {
			t.Errorf("%s is shown as %+v", name, shown)
		}
	}
	taken := false
	pqtest.Wait(t, "the issued certificate", func() bool {
		leaf, err := e.leafFor(with)
		switch {
		case err != nil:
			t.Errorf("a handshake failed: %v", err)
			return true
		case leaf.Equal(pairs[with].Leaf):
			if taken || time.Now().After(at.Add(2*time.Second)) {
				t.Error("the expired pair is served")
				return true
			}
		case leaf.Equal(issued.Leaf):
			taken = true
		}
		return taken
	})
	if early := time.Now().Before(at); early {
		t.Error("the pair was given up before it expired")
	}
	e.wantLeaf(with, issued.Leaf)
	e.wantLeaf(without, pairs[without].Leaf)
	e.wantLeaf(never, pairs[never].Leaf) // there is nothing better

	if shown := api.certificate(with); shown.State != certValid || !shown.NotAfter.Equal(issued.Leaf.NotAfter) || shown.Error != "" {
		t.Errorf("what took over is shown as %+v", shown)
	}
	if shown := api.certificate(without); shown.State != certExpired || !shown.NotAfter.Equal(at) || shown.Error != "the certificate has expired" {
		t.Errorf("what expired is shown as %+v", shown)
	}
	pqtest.Wait(t, "the attempt to obtain another one", func() bool { return api.certificate(never).NextAttempt != nil })
	if shown := api.certificate(never); shown.State != certExpired || !strings.Contains(shown.Error, "has expired, and obtaining another one failed: ") || shown.NextAttempt == nil {
		t.Errorf("what could not be replaced is shown as %+v", shown)
	}
	if counts := inForce.Load().certs.count(time.Now().Add(2 * time.Second)); counts.valid != 1 || counts.expired != 2 || counts.earliest != epochTimeOf(at) {
		t.Errorf("counted are %+v", counts)
	}
	inForce.Load().certs.sweepSoon()
	const one, other = "a domain's own certificate has expired: one of the issuers is served", "serving an expired certificate: replace it"
	for name, message := range map[string]string{with: one, without: other, never: other} {
		e.log.take(message, func(l logLine) bool { return l.str("msg") == message && l.str("domain") == name })
	}

	// A pair that has expired is refused where it is new, and no reason to refuse what else changes about its domain.
	changed := pairRecord(t, "127.0.0.1:9", pairs[without], "", `,"suspended":true`)
	api.want(200, "PUT", "/domains/"+without, changed)
	if d, _ := api.get(without); !d.Domain.Suspended {
		t.Error("a domain with an expired pair cannot be suspended")
	}
	reply := api.want(400, "PUT", "/domains/new.example.com", pairRecord(t, "127.0.0.1:9", e.ca.IssueWith(t, expiring(at), "new.example.com"), "", ""))
	if text := reply.fault(t); !strings.Contains(text, "certificate.chain_pem: the certificate has expired") {
		t.Errorf("the error is %s", text)
	}

	// When the tenant has brought a new one, the issued one is forgotten: nobody renews it any more.
	fresh := e.ca.IssueWith(t, expiring(time.Now().Add(60*24*time.Hour)), with)
	api.want(200, "PUT", "/domains/"+with, pairRecord(t, "127.0.0.1:9", fresh, `,"fallback":"acme"`, ""))
	e.wantLeaf(with, fresh.Leaf)
	if _, known := inForce.Load().certs.known.of(with); known {
		t.Error("the issued certificate is still looked after")
	}
	if shown := api.certificate(with); shown.State != certValid || !shown.NotAfter.Equal(fresh.Leaf.NotAfter) {
		t.Errorf("the new pair is shown as %+v", shown)
	}
}

// TestPairOutOfDate says who may bring a pair that is out of date.
func TestPairOutOfDate(t *testing.T) {
	ca := pqtest.NewCA(t)
	now := time.Now()
	record := func(pair tls.Certificate, fallback string) *domain.Domain {
		chain, key := pqtest.EncodePair(t, pair)
		d := &domain.Domain{
			Name: "app.example.com", Upstreams: []domain.Upstream{{Dial: "up.example.net:443"}},
			Certificate: domain.Certificate{Source: domain.BYOC, ChainPEM: string(chain), KeyPEM: string(key), Fallback: fallback},
		}
		if err := d.Normalize(domain.Remote); err != nil {
			t.Fatal(err)
		}
		return d
	}
	old := ca.IssueWith(t, expiring(now.Add(-time.Minute)), "app.example.com")
	early := ca.IssueWith(t, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }, "app.example.com")
	foreign := ca.IssueWith(t, expiring(now.Add(-time.Minute)), "other.example.com")
	put := func(s *state, source sourceRank, restore bool, d *domain.Domain) error {
		c := s.newChangeSet(source, false, nil)
		c.restore = restore
		err := c.put(d)
		if _, applying := s.apply(c, nil); applying != nil {
			t.Fatal(applying)
		}
		return err
	}
	for _, tt := range []struct {
		name    string
		source  sourceRank
		restore bool
		d       *domain.Domain
		want    error
	}{
		{"new, of the admin API", rankAdmin, false, record(old, ""), domain.ErrExpired},
		{"new, of the management plane", rankRemote, false, record(old, ""), domain.ErrExpired},
		{"new, with a fallback, of the admin API", rankAdmin, false, record(old, "acme"), domain.ErrExpired},
		{"new, with a fallback, of the management plane", rankRemote, false, record(old, "acme"), nil},
		{"not yet valid", rankRemote, false, record(early, ""), domain.ErrNotYetValid},
		{"kept", rankRemote, true, record(old, ""), nil},
		{"kept, by a clock that is behind now", rankAdmin, true, record(early, ""), nil},
		{"kept, and wrong besides", rankRemote, true, record(foreign, ""), domain.ErrExpired},
	} {
		s := newTestState(t)
		if err := put(s, tt.source, tt.restore, tt.d); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if got := !s.table.Load().named("app.example.com").none(); got != (tt.want == nil) {
			t.Errorf("%s: served: %v", tt.name, got)
		}
	}

	// What has it already may say it again, and hand it over to another source; what has a good one keeps that.
	s := newTestState(t)
	if err := put(s, rankRemote, true, record(old, "")); err != nil {
		t.Fatal(err)
	}
	again := record(old, "")
	again.MaxConnections = 7
	if err := put(s, rankRemote, false, again); err != nil {
		t.Errorf("the same pair: %v", err)
	}
	if err := put(s, rankAdmin, false, again); err != nil {
		t.Errorf("the same pair of another source: %v", err)
	}
	if err := put(s, rankAdmin, false, record(ca.IssueWith(t, expiring(now.Add(-time.Second)), "app.example.com"), "")); !errors.Is(err, domain.ErrExpired) {
		t.Errorf("another pair: %v", err)
	}
}

// TestPairFaults has every fault of a pair refused with the field that it is in, by the admin API, in a set, and in the
// config; what is only doubtful is taken and said.
func TestPairFaults(t *testing.T) {
	e := startAdminEdge(t, adminOption)
	api := e.api()
	const name, dial = "app.example.com", "127.0.0.1:9"
	now := time.Now()
	middle := e.ca.Intermediate(t)
	good := middle.Issue(t, name)
	chain, key := pqtest.EncodePair(t, good)
	_, otherKey := pqtest.EncodePair(t, middle.Issue(t, name))
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	with := func(edit func(*x509.Certificate)) (chain, key []byte) {
		return pqtest.EncodePair(t, middle.IssueWith(t, edit, name))
	}
	oldChain, oldKey := with(expiring(now.Add(-time.Minute)))
	earlyChain, earlyKey := with(func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) })
	clientChain, clientKey := with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	noSignChain, noSignKey := with(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
	otherChain, otherNameKey := pqtest.EncodePair(t, middle.Issue(t, "b.example.com"))
	weakChain, weakKey := pqtest.EncodePair(t, selfSigned(t, weak, name))
	turned, _ := pqtest.EncodePair(t, tls.Certificate{Certificate: [][]byte{good.Certificate[1], good.Certificate[0]}, PrivateKey: good.PrivateKey})
	encrypted := []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")

	for _, tt := range []struct {
		name       string
		chain, key []byte
		want       []string
	}{
		{"other key", chain, otherKey, []string{"certificate.key_pem: does not belong to the certificate"}},
		{"expired", oldChain, oldKey, []string{"certificate.chain_pem: the certificate has expired"}},
		{"not yet valid", earlyChain, earlyKey, []string{"certificate.chain_pem: the certificate is not valid yet"}},
		{"other name", otherChain, otherNameKey, []string{`certificate.chain_pem: certificate 1 does not cover "app.example.com"`}},
		{"order", turned, key, []string{"certificate.chain_pem: certificate 1 is a CA", "certificate.key_pem: belongs to certificate 2"}},
		{"weak key", weakChain, weakKey, []string{"certificate.chain_pem: certificate 1 has an RSA key of 1024 bits"}},
		{"for clients", clientChain, clientKey, []string{"certificate.chain_pem: certificate 1 is not for servers"}},
		{"may not sign", noSignChain, noSignKey, []string{"certificate.chain_pem: certificate 1 may not sign"}},
		{"encrypted key", chain, encrypted, []string{"certificate.key_pem: is encrypted"}},
		{"two faults", otherChain, encrypted, []string{"certificate.chain_pem: certificate 1 does not cover", "certificate.key_pem: is encrypted"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := api.want(400, "PUT", "/domains/"+name, pemRecord(t, dial, tt.chain, tt.key, "", "")).fault(t)
			d, err := domain.Parse([]byte(`{"name":"`+name+`",`+pemRecord(t, dial, tt.chain, tt.key, "", "")[1:]), domain.Remote)
			if err != nil {
				t.Fatal(err)
			}
			set := inForce.Load().newChangeSet(rankRemote, true, nil)
			_ = set.put(d)
			writeFile(t, e.dir+"/bad.pem", tt.chain)
			writeFile(t, e.dir+"/bad.key", tt.key)
			loading := e.tryLoad(adminOption + "domain " + name + " {\n upstream " + dial + "\n certificate $DIR/bad.pem $DIR/bad.key\n}\n")
			late := strings.Contains(tt.name, "expired") || strings.Contains(tt.name, "valid")
			if late != (loading == nil) {
				t.Errorf("loading: %v", loading)
			}
			if loading == nil {
				e.load(adminOption)
			}
			for _, want := range tt.want {
				field, detail, _ := strings.Cut(want, ": ")
				if !strings.Contains(text, want) {
					t.Errorf("the API says %s, want %s", text, want)
				}
				if !slices.ContainsFunc(set.refused, func(r refusal) bool {
					return r.Name == name && r.Field == field && strings.Contains(r.Detail, detail)
				}) {
					t.Errorf("the set says %v, want %s", set.refused, want)
				}
				if loading != nil && !strings.Contains(loading.Error(), want) {
					t.Errorf("loading: %v, want %s", loading, want)
				}
			}
			if _, err := e.leafFor(name); alertOfHandshake(err) != alertUnrecognizedName {
				t.Errorf("a refused record: %v", err)
			}
		})
	}

	t.Run("missing intermediate", func(t *testing.T) {
		pair := middle.IssueWith(t, func(c *x509.Certificate) { c.IssuingCertificateURL = []string{"http://127.0.0.1:1/issuer"} }, name)
		pair.Certificate = pair.Certificate[:1]
		api.want(201, "PUT", "/domains/"+name, pairRecord(t, dial, pair, "", ""))
		const want = "certificate.chain_pem: only the certificate itself is given"
		if d, _ := api.get(name); len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], want) {
			t.Errorf("the warnings are %q", d.Warnings)
		}
		if line := e.log.message(want); line.str("level") != "warn" || line.str("domain") != name {
			t.Errorf("the line is %v", line)
		}
		e.wantLeaf(name, pair.Leaf)
	})
}

// selfSigned makes a certificate for a server with that key.
func selfSigned(t testing.TB, key *rsa.PrivateKey, name string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name},
	}
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestPairRSA serves pairs with RSA keys from files, in both forms of the key, and from the API.
func TestPairRSA(t *testing.T) {
	e := startAdminEdge(t, adminOption)
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	pair := e.ca.Intermediate(t).IssueRSA(t, "app.example.com", "b.example.com", "c.example.com")
	chain, key := pqtest.EncodePair(t, pair)
	writeFile(t, e.dir+"/rsa.pem", chain)
	writeFile(t, e.dir+"/pkcs8.key", key)
	writeFile(t, e.dir+"/pkcs1.key", pem.EncodeToMemory(&pem.Block{
		Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(pair.PrivateKey.(*rsa.PrivateKey)),
	}))
	static := func(name, key string) string {
		return fmt.Sprintf("domain %s {\n upstream %s\n certificate $DIR/rsa.pem $DIR/%s\n}\n", name, up.Addr(), key)
	}
	e.load(adminOption + static("app.example.com", "pkcs8.key") + static("b.example.com", "pkcs1.key"))
	e.api().want(201, "PUT", "/domains/c.example.com", pairRecord(t, up.Addr(), pair, "", ""))
	for _, name := range []string{"app.example.com", "b.example.com", "c.example.com"} {
		c := e.dial(e.client(name)) // verified to the root, over the intermediate
		echo(t, c, "hello")
		if state := c.ConnectionState(); state.PeerCertificates[0].PublicKeyAlgorithm != x509.RSA || state.CurveID != tls.X25519MLKEM768 {
			t.Errorf("%s: %v", name, state.CurveID)
		}
		c.Close()
	}
}

// TestPairNotices has the log say, once for each pair, that it expires within 30 days and within 7, and the gauge tell the
// first of all.
func TestPairNotices(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, adminOption)
	api := e.api()
	const message = "a domain's own certificate expires soon: replace it"
	day := 24 * time.Hour
	put := func(name, dial string, pair tls.Certificate) {
		t.Helper()
		if reply, err := api.do("PUT", "/domains/"+name, pairRecord(t, dial, pair, "", `,"tenant":"acme"`)); err != nil || reply.status > 201 {
			t.Fatal(reply, err)
		}
		inForce.Load().certs.sweepSoon()
	}
	until := func(days time.Duration, name string) tls.Certificate {
		return e.ca.IssueWith(t, expiring(time.Now().Add(days*day)), name)
	}
	noticed := func(name string, days float64) {
		t.Helper()
		line := e.log.take(name, func(l logLine) bool { return l.str("msg") == message && l.str("domain") == name })
		if line.num("within_days") != days || line.str("tenant") != "acme" || line.str("level") != "warn" || line["not_after"] == nil {
			t.Errorf("the line is %v", line)
		}
	}
	earliest := func() time.Time {
		t.Helper()
		for _, s := range samples(t) {
			if s.name == "certificate_earliest_not_after_seconds" {
				return time.Unix(int64(s.value), 0)
			}
		}
		return time.Time{}
	}
	if at := earliest(); !at.IsZero() {
		t.Errorf("without certificates: %v", at)
	}
	far, near, nearer := until(60, "far.example.com"), until(20, "near.example.com"), until(3, "nearer.example.com")
	put("far.example.com", "127.0.0.1:9", far)
	if at := earliest(); !at.Equal(far.Leaf.NotAfter) {
		t.Errorf("the first ends at %v", at)
	}
	put("near.example.com", "127.0.0.1:9", near)
	noticed("near.example.com", 30)
	put("nearer.example.com", "127.0.0.1:9", nearer)
	noticed("nearer.example.com", 7)
	if at := earliest(); !at.Equal(nearer.Leaf.NotAfter) {
		t.Errorf("the first ends at %v, want %v", at, nearer.Leaf.NotAfter)
	}

	put("near.example.com", "127.0.0.1:10", near) // the same pair
	put("nearer.example.com", "127.0.0.1:9", until(10, "nearer.example.com"))
	noticed("nearer.example.com", 30)
	if at := earliest(); !at.After(nearer.Leaf.NotAfter) {
		t.Errorf("the first ends at %v still", at)
	}
	api.want(204, "DELETE", "/domains/far.example.com", "")
	put("last.example.com", "127.0.0.1:9", until(29, "last.example.com"))
	noticed("last.example.com", 30)
	lines := e.log.all(func(l logLine) bool { return l.str("msg") == message })
	if len(lines) != 4 {
		t.Errorf("%d notices: %v", len(lines), lines)
	}

	// The sweeper remembers by itself, without a log to read.
	s := &inForce.Load().certs
	if again := s.lookAtPairs(s.lookAtPairs(nil)); len(again) != 3 {
		t.Errorf("%d pairs are near their end", len(again))
	}
}

// TestPairEnds: whatever the time, an entry has it.
func TestPairEnds(t *testing.T) {
	for _, at := range []time.Time{time.Unix(0, 0), time.Now(), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)} {
		ca := pqtest.NewCA(t)
		chain, _ := pqtest.EncodePair(t, ca.IssueWith(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = at.Add(-time.Hour), at }, "app.example.com"))
		d := &domain.Domain{Name: "app.example.com", Certificate: domain.Certificate{Source: domain.BYOC, ChainPEM: string(chain)}}
		ends := pairEndsOf(d)
		if want := epochTime(min(max(at.Unix(), 1), 1<<32-1)); ends != want {
			t.Errorf("%v: %d, want %d", at, ends, want)
		}
	}
	if pairEndsOf(&domain.Domain{}) != 0 {
		t.Error("a domain without a pair has one")
	}
}
