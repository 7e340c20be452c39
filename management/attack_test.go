package management_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
)

// TestHostileEdgeCounts: whoever has an edge token can lie about how much there was, and must not end counting by it. Sums beyond
// what a database has numbers for made both databases refuse to add up anything of anybody, for good.
func TestHostileEdgeCounts(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who, other := s.tenant(trusted), s.tenant(trusted)
		d, theirs := s.create(who, "a.example.com"), s.create(other, "b.example.com")
		liar, honest := s.newEdge("liar"), s.newEdge("honest")
		const most = 1 << 40
		lie := counted(d, s.clock.now(), most)
		lie.BytesIn, lie.BytesOut, lie.HelloRetries = 1<<53, 1<<53, most
		lie.Groups = map[string]int64{"X25519": most, "X25519MLKEM768": most}
		lie.EndReasons = map[string]int64{"no_common_group": most}
		for round := range 2 {
			liar.tell(func(r *edgereport.Report) {
				for range 1100 { // 1024 are beyond 63 bits
					r.Counters = append(r.Counters, lie)
				}
				r.Dropped, r.Revision, r.LiveConnections = most, math.MaxInt64, most
			}, false, false)
			honest.tell(func(r *edgereport.Report) { r.Counters = []edgereport.Counter{counted(theirs, s.clock.now(), 7)} }, false, false)
			for range 2 { // not added up yet, then added up
				now := s.clock.now()
				used, err := s.FindUsage(t.Context(), who, "", now.Add(-72*time.Hour), now.Add(time.Hour), management.StepTotal)
				if err != nil || len(used) != 1 || used[0].BytesIn < 1<<53 || used[0].Connections <= 0 {
					t.Fatalf("round %d: %+v, %v", round, used, err)
				}
				if _, err := s.FindSeries(t.Context(), who, d.ID, now.Add(-time.Hour), now.Add(time.Hour), "minute"); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				if _, err := s.ReportPostQuantum(t.Context(), who, "", now.Add(-time.Hour), now); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				if got := s.usedTotal(other).Connections; got != int64(7*(round+1)) {
					t.Fatalf("round %d: another tenant has %d connections", round, got)
				}
				if err := management.FoldUsage(s.Plane, t.Context()); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
			}
		}
		if err := management.RefreshTouched(s.Plane, t.Context()); err != nil {
			t.Error(err)
		}
		// What it says of its revision is nobody else's: edges are told what there is.
		answer, err := s.Feed(t.Context(), anEdgePrincipal(), management.FeedRequest{})
		if err != nil || answer.Revision != s.revision() || answer.Revision > 100 {
			t.Errorf("the feed: %+v, %v", answer, err)
		}
		if answer != nil && answer.Body != nil {
			answer.Body.Close()
		}
	})
}

// TestHostileEdgeWords: reports are bounded, and so must be what they add up to: a document of all words that an edge thinks
// of would be read and written whole with each.
func TestHostileEdgeWords(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		d := s.create(who, "a.example.com")
		e := s.newEdge("e1")
		n := 0
		for range 5 {
			e.tell(func(r *edgereport.Report) {
				for range 10 {
					c := counted(d, s.clock.now(), 100)
					c.Groups, c.EndReasons = make(map[string]int64), make(map[string]int64)
					for range edgereport.MaxGroups {
						n++
						c.Groups[fmt.Sprintf("G%d", n)] = 1
					}
					for range edgereport.MaxEndReasons {
						n++
						c.EndReasons[fmt.Sprintf("r%d", n)] = 1
					}
					r.Counters = append(r.Counters, c)
				}
			}, false, false)
			if err := management.FoldUsage(s.Plane, t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		err := s.store.View(t.Context(), func(tx management.Tx) error {
			day := s.clock.now().Truncate(24 * time.Hour)
			sums, err := tx.FindUsage(&management.UsageQuery{
				TenantID: who.TenantID, DomainID: d.ID, Step: management.Day, From: day, To: day.Add(24 * time.Hour), ByStart: true, Detail: true, Limit: 10,
			})
			if err != nil || len(sums) != 1 {
				return fmt.Errorf("%d sums: %w", len(sums), err)
			}
			for words, counts := range map[int]map[string]int64{edgereport.MaxGroups: sums[0].Groups, edgereport.MaxEndReasons: sums[0].EndReasons} {
				total := int64(0)
				for _, n := range counts {
					total += n
				}
				if len(counts) > words+1 || total != int64(50*words) || counts[management.OtherWords] == 0 {
					t.Errorf("%d words of %d, which add up to %d", len(counts), words, total)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// TestOutsizedPair: a pair with numbers that take a minute to work with is refused before anything is done with them, and before any
// edge would have to. They are no keys: what takes long is finding that out.
func TestOutsizedPair(t *testing.T) {
	const bits = 1_200_000
	n := make([]byte, bits/8)
	for i := range n {
		n[i] = byte(i*i) | 1
	}
	n[0] |= 0x80
	modulus := new(big.Int).SetBytes(n)
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(template, parent *x509.Certificate, public any) []byte {
		t.Helper()
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	subject := func(name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name}}
	}
	huge := issue(subject("ca"), subject("root"), &rsa.PublicKey{N: modulus, E: 65537})
	good := issue(subject("a.example.com"), subject("ca"), signer.Public())
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	half := new(big.Int).SetBytes(n[:len(n)/2])
	der, err = asn1.Marshal(struct {
		Version                   int
		N                         *big.Int
		E                         int
		D, P, Q, DP, DQ, Inverted *big.Int
	}{0, new(big.Int).Mul(half, half), 65537, half, half, half, half, half, half})
	if err != nil {
		t.Fatal(err)
	}
	hugeKey := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: der})

	s := newSite(t, storetest.Open(t, store.SQLite), nil)
	who := s.tenant(trusted)
	d := s.create(who, "a.example.com")
	for _, c := range []struct {
		chain, key []byte
		at         string
	}{
		{append(bytes.Clone(good), huge...), key, "/chain_pem"},
		{huge, key, "/chain_pem"},
		{good, hugeKey, "/key_pem"},
	} {
		begun := time.Now()
		_, err := s.PutCertificate(t.Context(), who, d.ID, string(c.chain), string(c.key), "")
		if at := pointers(err); management.CodeOf(err) != management.Invalid || !slices.Contains(at, c.at) {
			t.Errorf("%.200v", err)
		}
		body, err := json.Marshal(map[string]any{"certificate": map[string]any{"source": "byoc", "chain_pem": string(c.chain), "key_pem": string(c.key)}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.PatchDomain(t.Context(), who, d.ID, body, "")
		if at := pointers(err); management.CodeOf(err) != management.Invalid || !slices.Contains(at, "/certificate"+c.at) {
			t.Errorf("%.200v", err)
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("%s: it took %s to refuse", c.at, took)
		}
	}

	// As a root, with which edges verify an upstream at each connection, and the probe does.
	body, err := json.Marshal(map[string]any{"upstreams": []any{map[string]any{"dial": "10.0.0.5:1", "tls": map[string]any{"ca_pem": string(huge)}}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.PatchDomain(t.Context(), who, d.ID, body, "")
	if at := pointers(err); management.CodeOf(err) != management.Invalid || !slices.Contains(at, "/upstreams/0/tls/ca_pem") {
		t.Errorf("%.200v", err)
	}
}

// TestClockGoesBack: checks that were made before the clock was put back are no reason not to look again, and nothing that was
// good ends, nor lasts for longer than it was made for.
func TestClockGoesBack(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(nil)
		d := s.check(who, s.create(who, "a.example.com").ID)
		if d.Axes.Ownership.State == management.AxisOK {
			t.Fatal("proven by nothing")
		}
		s.clock.at = s.clock.at.Add(-3 * time.Hour)
		s.world.set("a.example.com", seen{dns: management.FoundOK, txts: []string{"pqproxy-verify=" + s.token(d.ID)}})
		if d = s.check(who, d.ID); d.Axes.Ownership.State != management.AxisOK {
			t.Errorf("what is found is passed over until the clock has caught up: %+v", d.Axes.Ownership)
		}
	})
	eachPeople(t, func(_ *management.Config, parts *management.Parts) { parts.Auth = auth.NewPlane("pqproxy", nil) }, func(t *testing.T, w *people) {
		in := w.signIn(rootEmail, password)
		ends := w.clock.now().Add(time.Hour)
		_, secret, err := w.CreateAPIKey(t.Context(), w.root, management.NewAPIKey{Name: "k", Scopes: management.Scopes{management.DomainsRead}, ExpiresAt: ends})
		if err != nil {
			t.Fatal(err)
		}
		w.clock.pass(-3 * time.Hour)
		w.as(in, "")
		if _, err := w.PrincipalOfKey(t.Context(), secret); err != nil {
			t.Error(err)
		}
		w.signIn(rootEmail, password)
		w.clock.pass(4 * time.Hour)
		_, err = w.PrincipalOfKey(t.Context(), secret)
		wantCode(t, "the key, at its end", err, management.Unauthenticated)
		w.clock.pass(management.SessionLifetime - time.Hour)
		_, err = w.of(in, "")
		wantCode(t, "the session, at its end", err, management.Unauthenticated)
	})
}

// TestRestoreFromYesterday: what was done since is undone, revoked keys work again, as the documentation says, nobody is signed in,
// and edges, which have seen later revisions, are given the whole of the restored set instead of a difference.
func TestRestoreFromYesterday(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		edge := anEdgePrincipal()
		create := func(name string) *management.Domain {
			t.Helper()
			d, err := w.CreateDomain(t.Context(), w.root, []byte(`{"name":"`+name+`","upstreams":[{"dial":"8.8.8.8:443"}]}`))
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		old := create("old.example.com")
		key, secret, err := w.CreateAPIKey(t.Context(), w.root, management.NewAPIKey{Name: "k", Scopes: management.Scopes{management.DomainsRead}})
		if err != nil {
			t.Fatal(err)
		}
		in := w.signIn(rootEmail, password)
		var yesterday bytes.Buffer
		if err := w.store.Backup(t.Context(), &yesterday); err != nil {
			t.Fatal(err)
		}

		w.clock.pass(24 * time.Hour)
		today := w.logIn(rootEmail, password)
		if err := w.DeleteAPIKey(t.Context(), today, key.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := w.DeleteDomain(t.Context(), today, old.ID, ""); err != nil {
			t.Fatal(err)
		}
		w.root = today
		create("new.example.com")
		feed := func(after *uint64) (*management.FeedAnswer, string) {
			t.Helper()
			answer, err := w.Feed(t.Context(), edge, management.FeedRequest{After: after})
			if err != nil {
				t.Fatal(err)
			}
			if answer.Body == nil {
				return answer, ""
			}
			defer answer.Body.Close()
			plain, err := answer.Body.Plain()
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(plain)
			if err != nil {
				t.Fatal(err)
			}
			return answer, string(text)
		}
		seen, text := feed(nil)
		if strings.Contains(text, "old.example.com") || !strings.Contains(text, "new.example.com") {
			t.Fatal(text)
		}
		if err := w.store.Restore(t.Context(), bytes.NewReader(yesterday.Bytes()), true); err != nil {
			t.Fatal(err)
		}

		if answer, _ := feed(&seen.Revision); !answer.Gone {
			t.Errorf("an edge is told a difference from what never was: %+v", answer)
		}
		answer, text := feed(nil)
		if answer.Revision <= seen.Revision || !strings.Contains(text, "old.example.com") || strings.Contains(text, "new.example.com") {
			t.Errorf("revision %d after %d: %s", answer.Revision, seen.Revision, text)
		}
		if _, err := w.PrincipalOfKey(t.Context(), secret); err != nil {
			t.Errorf("a key that was revoked since, of which the documentation says that it is back: %v", err)
		}
		_, err = w.of(in, "")
		wantCode(t, "a session of yesterday", err, management.Unauthenticated)
		w.signIn(rootEmail, password)
	})
}
