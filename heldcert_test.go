package pqproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// held makes a certificate of a life, without keys.
func heldFor(from time.Time, life time.Duration) *heldCert {
	return &heldCert{cert: &tls.Certificate{Leaf: &x509.Certificate{NotBefore: from, NotAfter: from.Add(life)}}}
}

// TestHeldDue decides when certificates of 90, 45 and 6 days are renewed.
func TestHeldDue(t *testing.T) {
	const day = 24 * time.Hour
	from := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(d time.Duration) time.Time { return from.Add(d) }
	for name, c := range map[string]struct {
		life, age time.Duration
		selected  time.Duration // of ARI; 0: none
		torn      bool
		want      bool
	}{
		"90 days, new":                           {life: 90 * day, age: time.Minute},
		"90 days, 59 days old":                   {life: 90 * day, age: 59 * day},
		"90 days, 61 days old":                   {life: 90 * day, age: 61 * day, want: true},
		"45 days, 29 days old":                   {life: 45 * day, age: 29 * day},
		"45 days, 31 days old":                   {life: 45 * day, age: 31 * day, want: true},
		"6 days, 3 days old":                     {life: 160 * time.Hour, age: 3 * day},
		"6 days, 106 hours old":                  {life: 160 * time.Hour, age: 106 * time.Hour},
		"6 days, 107 hours old":                  {life: 160 * time.Hour, age: 107 * time.Hour, want: true},
		"expired":                                {life: 6 * day, age: 10 * day, want: true},
		"not valid yet, of a CA a day ahead":     {life: 90 * day, age: -day},
		"of a CA a day behind":                   {life: 160 * time.Hour, age: day},
		"ARI, before its time":                   {life: 90 * day, age: 40 * day, selected: 50 * day},
		"ARI, a minute before its time":          {life: 90 * day, age: 50*day - 59*time.Second, selected: 50 * day, want: true},
		"ARI, two minutes before its time":       {life: 90 * day, age: 50*day - 2*time.Minute, selected: 50 * day},
		"ARI, past":                              {life: 160 * time.Hour, age: 2 * day, selected: day, want: true},
		"ARI later than the last third":          {life: 90 * day, age: 61 * day, selected: 80 * day, want: true},
		"ARI, past when the certificate was new": {life: 90 * day, age: time.Minute, selected: -day},
		"the same, 21 hours later":               {life: 90 * day, age: 21 * time.Hour, selected: -day},
		"the same, a day later":                  {life: 90 * day, age: day, selected: -day, want: true},
		"ARI of a minute's life":                 {life: time.Minute, age: 20 * time.Second, selected: 30 * time.Second},
		"a minute's life":                        {life: time.Minute, age: 30 * time.Second},
		"a minute's life, its last third":        {life: time.Minute, age: 41 * time.Second, want: true},
		"torn":                                   {life: 90 * day, age: day, torn: true, want: true},
	} {
		held := heldFor(from, c.life)
		held.torn = c.torn
		if c.selected != 0 {
			held.ari.SelectedTime = at(c.selected)
		}
		if got := held.due(at(c.age)); got != c.want {
			t.Errorf("%s: due is %v", name, got)
		}
	}
}

// TestHeldNextLook looks at a certificate again when there is something to do, and every day.
func TestHeldNextLook(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	in := func(d time.Duration) *time.Time { at := now.Add(d); return &at }
	for name, c := range map[string]struct {
		from, life time.Duration
		ari        acme.RenewalInfo
		want       time.Duration
	}{
		"nothing to do":        {from: 0, life: 90 * day, want: day},
		"soon due":             {from: -59 * day, life: 90 * day, want: day},
		"sooner due":           {from: -60*day + time.Hour, life: 90 * day, want: time.Hour},
		"ARI has a time":       {from: 0, life: 90 * day, ari: acme.RenewalInfo{SelectedTime: *in(2 * time.Hour)}, want: 2 * time.Hour},
		"ARI is asked":         {from: 0, life: 90 * day, ari: acme.RenewalInfo{RetryAfter: in(3 * time.Hour)}, want: 3 * time.Hour},
		"ARI is asked rarely":  {from: 0, life: 90 * day, ari: acme.RenewalInfo{RetryAfter: in(30 * day)}, want: day},
		"ARI was never asked":  {from: -time.Hour, life: 90 * day, ari: acme.RenewalInfo{UniqueIdentifier: "x"}, want: -time.Hour},
		"not valid yet":        {from: 5 * time.Hour, life: 90 * day, want: 5 * time.Hour},
		"not valid for days":   {from: 2 * day, life: 90 * day, want: 2 * day},
		"six days, of the CA":  {from: -100 * time.Hour, life: 160 * time.Hour, want: 160*time.Hour - 100*time.Hour - 160*time.Hour/3},
		"due, whatever it was": {from: -80 * day, life: 90 * day, want: -20 * day},
	} {
		held := heldFor(now.Add(c.from), c.life)
		held.ari = c.ari
		if got := held.nextLook(now).Sub(now); (got - c.want).Abs() > time.Minute {
			t.Errorf("%s: in %s, want %s", name, got, c.want)
		}
	}
}

// TestHeldBetter serves of two issuers' certificates the one that is valid, and the newer one.
func TestHeldBetter(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Now()
	order := []*heldCert{ // the better first
		heldFor(now.Add(-time.Hour), 6*day), heldFor(now.Add(-day), 90*day), heldFor(now.Add(-80*day), 90*day), // valid
		heldFor(now.Add(time.Hour), 90*day), heldFor(now.Add(-10*day), 6*day), heldFor(now.Add(-90*day), 6*day), // not
	}
	for i, a := range order {
		for j, b := range order {
			if got := a.betterThan(b, now); got != (i < j) {
				t.Errorf("%d better than %d: %v", i, j, got)
			}
		}
	}
}

// TestHeldData does not believe what is said of another certificate, and knows of a CA that was silent.
func TestHeldData(t *testing.T) {
	cert := pqtest.NewCA(t).Issue(t, "app.example.com")
	id, err := acme.ARIUniqueIdentifier(cert.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data string
		want string // identifier
	}{
		"its own":   {`{"renewal_info":{"_uniqueIdentifier":"` + id + `"}}`, id},
		"another's": {`{"renewal_info":{"_uniqueIdentifier":"` + id + `x"}}`, ""},
		"silent":    {`{"renewal_info":{}}`, id},
		"no ARI":    {`{"url":"x"}`, ""},
		"null":      {`null`, ""}, "nothing": {``, ""}, "broken": {`{`, ""}, "another kind": {`[1]`, ""},
	} {
		held := &heldCert{cert: &cert}
		held.setData([]byte(c.data))
		if held.ari.UniqueIdentifier != c.want || held.askAt().IsZero() != (c.want == "") {
			t.Errorf("%s: %q, asked at %s", name, held.ari.UniqueIdentifier, held.askAt())
		}
	}
}

// TestHeldInfo keeps the time that was chosen in a CA's window, and asks it neither too often nor too rarely.
func TestHeldInfo(t *testing.T) {
	cert := pqtest.NewCA(t).Issue(t, "app.example.com")
	id, err := acme.ARIUniqueIdentifier(cert.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	held := &heldCert{cert: &cert}
	held.setData([]byte(`{"url":"kept","renewal_info":{}}`))
	info := func(start time.Time, chosen, retry time.Duration) acme.RenewalInfo {
		info := acme.RenewalInfo{UniqueIdentifier: id, SelectedTime: start.Add(chosen)}
		info.SuggestedWindow.Start, info.SuggestedWindow.End = start, start.Add(time.Hour)
		if retry != 0 {
			at := now.Add(retry)
			info.RetryAfter = &at
		}
		return info
	}
	for i, c := range []struct {
		info   acme.RenewalInfo
		chosen time.Time
		ask    time.Duration
	}{
		{info(now, time.Minute, 0), now.Add(time.Minute), ariRest},
		{info(now, 2*time.Minute, time.Second), now.Add(time.Minute), time.Minute},
		{info(now, 3*time.Minute, time.Hour), now.Add(time.Minute), time.Hour},
		{info(now.Add(time.Hour), time.Minute, 1000*time.Hour), now.Add(time.Hour + time.Minute), lookAway},
		{info(now.Add(time.Hour), time.Minute, -time.Hour), now.Add(time.Hour + time.Minute), ariRest},
	} {
		held.setInfo(c.info, now)
		if !held.ari.SelectedTime.Equal(c.chosen) || !held.askAt().Equal(now.Add(c.ask)) {
			t.Errorf("%d: renewed at %s, asked in %s", i, held.ari.SelectedTime, held.askAt().Sub(now))
		}
		var data acme.Certificate
		if json.Unmarshal(held.data, &data) != nil || data.URL != "kept" || !data.RenewalInfo.SelectedTime.Equal(c.chosen) {
			t.Errorf("%d: kept is %s", i, held.data)
		}
	}
}

// TestTornPairs ends a process at each step of writing a certificate: what is served is a pair, the new one or the one before,
// and what is in halves is obtained anew.
func TestTornPairs(t *testing.T) {
	errKilled := errors.New("killed")
	const name = "app.example.com"
	ca := pqtest.NewCA(t)
	old, fresh := ca.Issue(t, name), ca.IssueWith(t, func(c *x509.Certificate) { c.NotBefore = c.NotBefore.Add(time.Minute) }, name)
	pair := func(cert tls.Certificate) *heldCert {
		chain, key := pqtest.EncodePair(t, cert)
		held, err := newHeld("first", name, chain, key)
		if err != nil {
			t.Fatal(err)
		}
		return held
	}
	for _, renews := range []bool{false, true} {
		for steps := 0; ; steps++ {
			s, st := newStoredState(t)
			now := s.certs.config.Load()
			var before *heldCert
			if renews {
				before = keepPair(t, st, "first", name, old)
			}
			left := steps
			kill := func(string) error {
				if left--; left < 0 {
					return errKilled
				}
				return nil
			}
			st.hook("Store", kill)
			st.hook("Delete", kill)
			err := now.save(t.Context(), pair(fresh), before, name)
			st.hook("Store", nil)
			st.hook("Delete", nil)

			held, readErr := now.held(t.Context(), now.issuers, name)
			if readErr != nil {
				t.Fatal(readErr)
			}
			what := fmt.Sprintf("renews %v, killed after %d steps", renews, steps)
			switch {
			case held == nil && (renews || steps >= 2):
				t.Errorf("%s: nothing can be served", what)
			case held != nil && !held.cert.Leaf.Equal(old.Leaf) && !held.cert.Leaf.Equal(fresh.Leaf):
				t.Errorf("%s: something else is served", what)
			case held != nil && held.torn != (renews && steps == 2): // the new key beside the old chain
				t.Errorf("%s: torn is %v", what, held.torn)
			}
			if err == nil {
				if want := map[bool]int{false: 3, true: 5}[renews]; steps != want || st.has(t, keyBefore("first", name)) {
					t.Errorf("%s: want %d steps, and nothing of the one before", what, want)
				}
				break
			}
			if !errors.Is(err, errKilled) {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
}

// TestTornPairIsObtainedAnew has a key and a certificate in storage that do not belong together, in each of the ways in which
// certmagic and others leave them.
func TestTornPairIsObtainedAnew(t *testing.T) {
	const name = "app.example.com"
	ca, signer := pqtest.NewCA(t), newSigner(t)
	other := ca.Issue(t, name)
	chain, key := pqtest.EncodePair(t, ca.Issue(t, name))
	_, otherKey := pqtest.EncodePair(t, other)
	wrongChain, wrongKey := pqtest.EncodePair(t, ca.Issue(t, "b.example.com"))
	expiredChain, expiredKey := pqtest.EncodePair(t, ca.IssueWith(t, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}, name))
	for what, c := range map[string]struct {
		chain, key []byte
		served     bool
	}{
		"key alone":        {nil, key, false},
		"chain alone":      {chain, nil, false},
		"another key":      {chain, otherKey, false},
		"of another name":  {wrongChain, wrongKey, false},
		"empty":            {[]byte{}, []byte{}, false},
		"half a chain":     {chain[:len(chain)/2], key, false},
		"half a key":       {chain, key[:len(key)/2], false},
		"the two swapped":  {key, chain, false},
		"expired, but one": {expiredChain, expiredKey, true},
		"no metadata":      {chain, key, true},
	} {
		t.Run(what, func(t *testing.T) {
			orders := make(chan struct{}, 10)
			st := newTestStorage(t)
			s := newStateOn(t, st, &testIssuer{"first", func(_ context.Context, _ string, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
				orders <- struct{}{}
				return signer.sign(csr, 24*time.Hour), nil
			}})
			for at, value := range map[string][]byte{certmagic.StorageKeys.SiteCert("first", name): c.chain, certmagic.StorageKeys.SitePrivateKey("first", name): c.key} {
				if value != nil {
					if err := st.Store(t.Context(), at, value); err != nil {
						t.Fatal(err)
					}
				}
			}
			serveDomains(t, s, "", "192.0.2.1:1", domain.Certificate{}, name)
			if cert, err := s.certificateFor(routed(t, s, name)); (err == nil) != c.served {
				t.Errorf("served: %v, %v", cert, err)
			}
			s.certs.start()
			if what == "no metadata" { // it is as good as any
				pqtest.Wait(t, "the order to be done with", func() bool { return !s.certs.orders.has(name) })
				if len(orders) != 0 {
					t.Error("it was ordered anew")
				}
				return
			}
			<-orders
			pqtest.Wait(t, "the new certificate", func() bool { return !s.certs.orders.has(name) })
			held, err := s.certs.config.Load().heldFrom(t.Context(), "first", name)
			if err != nil || held == nil || held.torn || held.due(time.Now()) {
				t.Errorf("in storage is %v, %v", held, err)
			}
			pqtest.Wait(t, "the new certificate to be served", func() bool {
				cert, err := s.certificateFor(routed(t, s, name))
				return err == nil && cert.Leaf.Equal(held.cert.Leaf)
			})
		})
	}
}

// TestPairIsReadWhileWritten reads pairs while they are written over and over: there is one at any time.
func TestPairIsReadWhileWritten(t *testing.T) {
	const name = "app.example.com"
	s, st := newStoredState(t)
	now := s.certs.config.Load()
	ca := pqtest.NewCA(t)
	held := keepPair(t, st, "first", name, ca.Issue(t, name))
	var pairs [2]*heldCert
	for i := range pairs {
		chain, key := pqtest.EncodePair(t, ca.Issue(t, name))
		pair, err := newHeld("first", name, chain, key)
		if err != nil {
			t.Fatal(err)
		}
		pairs[i] = pair
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if got, err := now.held(context.Background(), now.issuers, name); err != nil || got == nil {
					t.Errorf("read %v, %v", got, err)
					return
				}
			}
		})
	}
	for i := range 50 {
		if err := now.save(t.Context(), pairs[i%2], held, name); err != nil {
			t.Error(err)
			break
		}
		held = pairs[i%2]
	}
	close(done)
	wg.Wait()
}

// TestKeyBefore keeps names and issuers apart, and no name leads out of its place.
func TestKeyBefore(t *testing.T) {
	seen := make(map[string]bool)
	for _, issuer := range []string{"first", "second", "../x"} {
		for _, name := range []string{"app.example.com", "*.example.com", "../../x"} {
			key := keyBefore(issuer, name)
			if seen[key] || !strings.HasPrefix(key, "pqproxy/before/") || strings.Contains(key, "..") {
				t.Errorf("%s and %s: %s", issuer, name, key)
			}
			seen[key] = true
		}
	}
}
