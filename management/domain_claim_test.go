package management_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
)

// owner returns whose record edges serve the name with; "" for nobody's.
func (s *site) owner(name string) string {
	s.t.Helper()
	_, rest, _ := strings.Cut(s.feed(0)[name], `"tenant":"`)
	tenant, _, _ := strings.Cut(rest, `"`)
	return tenant
}

// TestClaims has one case for each sentence about who gets a name. a and b are tenants that nobody vouches for.
func TestClaims(t *testing.T) {
	const name = "app.example.com"
	points := seen{dns: management.FoundOK}
	byoc := func(s *site, who *management.Principal, name string) *management.Domain {
		chain, key := pairFor(s.t, name)
		return s.createWith(who, byocBody(name, chain, key))
	}
	for _, c := range []struct {
		about string
		run   func(t *testing.T, s *site, a, b *management.Principal)
	}{
		{"names conflict within a tenant, in any spelling", func(t *testing.T, s *site, a, _ *management.Principal) {
			s.create(a, name)
			_, err := s.CreateDomain(t.Context(), a, []byte(`{"name":"App.Example.COM.","upstreams":[{"dial":"10.0.0.5:1"}]}`))
			if management.CodeOf(err) != management.DomainExists {
				t.Errorf("%v", err)
			}
		}},
		{"a trusted tenant has its names at once", func(t *testing.T, s *site, _, _ *management.Principal) {
			who := s.tenant(trusted)
			if d := s.create(who, name); s.owner(name) != who.TenantID || *d.Axes.Ownership.Proof != management.ProofTrusted {
				t.Errorf("%+v", d.Axes.Ownership)
			}
		}},
		{"txt proves before DNS moves", func(t *testing.T, s *site, a, _ *management.Principal) {
			d := s.create(a, name)
			s.world.set(name, seen{txts: []string{"something else", txt(d)}})
			d = s.check(a, d.ID)
			if s.owner(name) != a.TenantID || d.Status != management.PendingDNS || *d.Axes.Ownership.Proof != management.ProofTXT {
				t.Errorf("%s %+v", d.Status, d.Axes.Ownership)
			}
		}},
		{"http proves", func(t *testing.T, s *site, a, _ *management.Principal) {
			d := s.create(a, name)
			s.world.set(name, seen{http: txt(d)})
			if d = s.check(a, d.ID); s.owner(name) != a.TenantID || *d.Axes.Ownership.Proof != management.ProofHTTP {
				t.Errorf("%+v", d.Axes.Ownership)
			}
		}},
		{"another's token proves nothing", func(t *testing.T, s *site, a, b *management.Principal) {
			d, other := s.create(a, name), s.create(b, name)
			s.world.set(name, seen{txts: []string{txt(other)}, http: txt(other)})
			if d = s.check(a, d.ID); s.owner(name) != "" || d.Axes.Ownership.State == management.AxisOK {
				t.Errorf("%+v", d.Axes.Ownership)
			}
		}},
		{"pointing here proves only what nobody else claims", func(t *testing.T, s *site, a, b *management.Principal) {
			d := s.create(a, name)
			s.create(b, name)
			s.world.set(name, points)
			if d = s.check(a, d.ID); s.owner(name) != "" || d.Status != management.Verifying || d.NextAction.Record == nil || d.NextAction.Record.Type != "TXT" {
				t.Errorf("%s %+v", d.Status, d.NextAction)
			}
		}},
		{"a squatter never blocks the owner", func(t *testing.T, s *site, squatter, owner *management.Principal) {
			s.create(squatter, name)
			d := s.create(owner, name)
			s.world.set(name, seen{dns: management.FoundOK, txts: []string{txt(d)}})
			if s.check(owner, d.ID); s.owner(name) != owner.TenantID {
				t.Error("the owner does not get the name")
			}
		}},
		{"first proven wins: a later txt does not beat a txt", func(t *testing.T, s *site, a, b *management.Principal) {
			first, second := s.create(a, name), s.create(b, name)
			s.world.set(name, seen{txts: []string{txt(first), txt(second)}})
			s.check(a, first.ID)
			if d := s.check(b, second.ID); s.owner(name) != a.TenantID || d.Axes.Ownership.State != management.AxisFailed {
				t.Errorf("%+v", d.Axes.Ownership)
			}
			s.check(a, first.ID)
			if s.owner(name) != a.TenantID {
				t.Error("checking again took the name away")
			}
		}},
		{"a later txt beats pointing here, and the loser leaves the feed", func(t *testing.T, s *site, a, b *management.Principal) {
			first := s.create(a, name)
			s.world.set(name, points)
			s.check(a, first.ID)
			second := s.create(b, name)
			s.check(b, second.ID)
			if s.owner(name) != a.TenantID {
				t.Fatal("a claim alone took the name")
			}
			before := s.revision()
			s.world.set(name, seen{dns: management.FoundOK, txts: []string{txt(second)}})
			s.check(b, second.ID)
			if got := s.feed(before); s.owner(name) != b.TenantID || len(got) != 1 || got[name] == "" {
				t.Errorf("owner %s, delta %v", s.owner(name), got)
			}
			lost := s.find(a, first.ID)
			if lost.Status != management.Verifying || lost.Axes.Ownership.State != management.AxisFailed || lost.Axes.Ownership.Proof != nil || lost.Serving {
				t.Errorf("the loser: %s %+v", lost.Status, lost.Axes.Ownership)
			}
			text := marshal(t, lost)
			if strings.Contains(text, b.TenantID) || strings.Contains(text, txt(second)) {
				t.Errorf("the loser is told of the winner: %s", text)
			}
			events, err := s.FindEvents(t.Context(), a, management.EventFilter{Action: "domain.ownership_lost", Limit: 5})
			if err != nil || len(events) != 1 || events[0].Actor != "system" || events[0].RequestID != "" {
				t.Errorf("the loser's audit log: %+v, %v", events, err)
			}
		}},
		{"an owner whose token stays is not beaten when DNS moves away", func(t *testing.T, s *site, a, b *management.Principal) {
			first, second := s.create(a, name), s.create(b, name)
			s.world.set(name, seen{txts: []string{txt(first)}, dns: management.FoundOK})
			s.check(a, first.ID)
			s.world.set(name, seen{txts: []string{txt(first), txt(second)}, dns: management.FoundWrong})
			s.check(a, first.ID)
			if s.check(b, second.ID); s.owner(name) != a.TenantID {
				t.Error("it was")
			}
		}},
		{"who left with his records gives way to who has set his", func(t *testing.T, s *site, a, b *management.Principal) {
			first, second := s.create(a, name), s.create(b, name)
			s.world.set(name, seen{txts: []string{txt(first)}, dns: management.FoundOK})
			s.check(a, first.ID)
			s.world.set(name, seen{txts: []string{txt(second)}, dns: management.FoundWrong})
			if s.check(b, second.ID); s.owner(name) != a.TenantID {
				t.Error("he gave way before anybody saw that he had left")
			}
			s.check(a, first.ID)
			if s.check(b, second.ID); s.owner(name) != b.TenantID {
				t.Error("he keeps a name that is not his any more")
			}
		}},
		{"pointing here is upgraded to txt, which is not beaten", func(t *testing.T, s *site, a, b *management.Principal) {
			first := s.create(a, name)
			s.world.set(name, points)
			s.check(a, first.ID)
			s.world.set(name, seen{dns: management.FoundOK, txts: []string{txt(first)}})
			first = s.check(a, first.ID)
			second := s.create(b, name)
			s.world.set(name, seen{dns: management.FoundOK, txts: []string{txt(first), txt(second)}})
			if s.check(b, second.ID); s.owner(name) != a.TenantID || *first.Axes.Ownership.Proof != management.ProofTXT {
				t.Errorf("%+v", first.Axes.Ownership)
			}
		}},
		{"a dangling record is no proof for somebody else for 90 days", func(t *testing.T, s *site, a, b *management.Principal) {
			first := s.create(a, name)
			s.world.set(name, points)
			s.check(a, first.ID)
			if _, err := s.DeleteDomain(t.Context(), a, first.ID, ""); err != nil {
				t.Fatal(err)
			}
			second := s.create(b, name)
			if s.check(b, second.ID); s.owner(name) != "" {
				t.Fatal("the name fell to whoever came next")
			}
			s.clock.pass(89 * 24 * time.Hour)
			if s.check(b, second.ID); s.owner(name) != "" {
				t.Fatal("it did so after 89 days")
			}
			s.clock.pass(2 * 24 * time.Hour)
			must(t, management.ForgetHistory(s.Plane, t.Context()))
			if s.check(b, second.ID); s.owner(name) != b.TenantID {
				t.Error("after 90 days it is nobody's, but b does not get it")
			}
		}},
		{"the same tenant comes back at once", func(t *testing.T, s *site, a, _ *management.Principal) {
			first := s.create(a, name)
			s.world.set(name, points)
			s.check(a, first.ID)
			if _, err := s.DeleteDomain(t.Context(), a, first.ID, ""); err != nil {
				t.Fatal(err)
			}
			again := s.create(a, name) // while edges still let go of the first
			if s.check(a, again.ID); s.owner(name) != a.TenantID || again.ID == first.ID {
				t.Error("it does not")
			}
			must(t, management.RemoveDeleted(s.Plane, t.Context()))
			s.find(a, again.ID)
		}},
		{"who waits gets the name when its owner gives it up", func(t *testing.T, s *site, a, b *management.Principal) {
			first, second := s.create(a, name), s.create(b, name)
			s.world.set(name, seen{txts: []string{txt(first), txt(second)}})
			s.check(a, first.ID)
			s.check(b, second.ID)
			if _, err := s.DeleteDomain(t.Context(), a, first.ID, ""); err != nil {
				t.Fatal(err)
			}
			must(t, management.CheckDue(s.Plane, t.Context())) // b is due at once
			if s.owner(name) != b.TenantID {
				t.Error("b waits on")
			}
		}},
		{"a wildcard never takes another tenant's exact name", func(t *testing.T, s *site, a, b *management.Principal) {
			exact := s.create(a, name)
			s.world.set(name, points)
			s.check(a, exact.ID)
			wild := byoc(s, b, "*.example.com")
			s.world.set("*.example.com", seen{dns: management.FoundOK, txts: []string{txt(wild)}})
			s.check(b, wild.ID)
			s.check(a, exact.ID)
			if s.owner(name) != a.TenantID || s.owner("*.example.com") != b.TenantID {
				t.Errorf("owners %q, %q", s.owner(name), s.owner("*.example.com"))
			}
		}},
		{"an exact name under another's wildcard needs a proof of its own", func(t *testing.T, s *site, a, b *management.Principal) {
			wild := byoc(s, b, "*.example.com")
			s.world.set("*.example.com", seen{txts: []string{txt(wild)}})
			s.check(b, wild.ID)
			exact := s.create(a, name)
			s.world.set(name, points) // by b's wildcard record
			if s.check(a, exact.ID); s.owner(name) != "" {
				t.Fatal("b's wildcard record proved the name to be a's")
			}
			s.world.set(name, seen{dns: management.FoundOK, txts: []string{txt(exact)}})
			if s.check(a, exact.ID); s.owner(name) != a.TenantID {
				t.Error("a cannot prove it")
			}
		}},
		{"a wildcard that points here proves nothing while others have names under it", func(t *testing.T, s *site, a, b *management.Principal) {
			s.create(a, name)
			wild := byoc(s, b, "*.example.com")
			s.world.set("*.example.com", points)
			if s.check(b, wild.ID); s.owner("*.example.com") != "" {
				t.Error("it does")
			}
		}},
		{"the service's own names are nobody's", func(t *testing.T, s *site, a, _ *management.Principal) {
			for _, own := range []string{"edge.pqproxy.test", "console.pqproxy.test"} {
				s.world.set(own, points)
				_, err := s.CreateDomain(t.Context(), a, []byte(`{"name":"`+own+`","upstreams":[{"dial":"10.0.0.5:1"}]}`))
				if management.CodeOf(err) != management.Invalid {
					t.Errorf("%s: %v", own, err)
				}
			}
		}},
		{"who is trusted no longer needs a proof, once DNS has said so", func(t *testing.T, s *site, _, _ *management.Principal) {
			who := s.tenant(trusted)
			d := s.create(who, name)
			s.world.set(name, seen{down: true})
			s.setTenant(who, func(row *management.Tenant) { row.Trusted = false })
			if s.check(who, d.ID); s.owner(name) == "" {
				t.Fatal("it was turned off without an answer of DNS")
			}
			s.world.set(name, seen{})
			if s.check(who, d.ID); s.owner(name) != "" {
				t.Error("it is still served")
			}
			s.world.set(name, seen{txts: []string{"pqproxy-verify=" + s.token(d.ID)}})
			if s.check(who, d.ID); s.owner(name) == "" {
				t.Error("its own proof does not count")
			}
		}},
	} {
		t.Run(c.about, func(t *testing.T) {
			eachSite(t, func(t *testing.T, s *site) {
				s.t = t
				c.run(t, s, s.tenant(nil), s.tenant(nil))
			})
		})
	}
}

func (s *site) token(id string) (token string) {
	s.t.Helper()
	s.update(func(tx management.Tx) error {
		row, err := tx.FindDomainByID("", id)
		if err == nil {
			token = row.Token
		}
		return err
	})
	return token
}

// setTenant changes a tenant as an operator does.
func (s *site) setTenant(who *management.Principal, edit func(*management.Tenant)) {
	s.t.Helper()
	var row management.Tenant
	s.update(func(tx management.Tx) error {
		found, err := tx.FindTenant(who.TenantID)
		if err == nil {
			row = *found
		}
		return err
	})
	edit(&row)
	operator := &management.Principal{APIKeyID: management.NewID(management.APIKeyID), Scopes: management.Scopes{management.Platform}}
	_, err := s.UpdateTenant(s.t.Context(), operator, who.TenantID, management.TenantUpdate{Suspended: &row.Suspended, Trusted: &row.Trusted, MaxDomains: &row.MaxDomains}, "")
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestCreateSameNameAtOnce has goroutines and instances race for a name: one row each tenant, one owner for all.
func TestCreateSameNameAtOnce(t *testing.T) {
	for _, driver := range []string{store.SQLite, store.Postgres} {
		t.Run(driver, func(t *testing.T) {
			options := storetest.Options(t, driver)
			one := newSite(t, storetest.Reopen(t, options), nil)
			two := one
			if driver == store.Postgres {
				two = newSite(t, storetest.Reopen(t, options), one.world)
			}
			a, b := one.tenant(trusted), one.tenant(trusted)
			var wg sync.WaitGroup
			var mu sync.Mutex
			codes := make(map[management.Code]int)
			for i := range 24 {
				s, who := one, a
				if i%2 == 0 {
					s = two
				}
				if i%3 == 0 {
					who = b
				}
				wg.Go(func() {
					_, err := s.CreateDomain(t.Context(), who, []byte(`{"name":"app.example.com","upstreams":[{"dial":"10.0.0.5:1"}]}`))
					mu.Lock()
					defer mu.Unlock()
					codes[management.CodeOf(err)]++
				})
			}
			wg.Wait()
			if codes[""] != 2 || codes[management.DomainExists] != 22 {
				t.Errorf("%v, want one for each tenant and domain_exists for the others", codes)
			}
			if got := one.feed(0); len(got) != 1 {
				t.Errorf("the feed has %v", got)
			}
		})
	}
}

// TestTenantOfDomains shows what follows when a tenant is suspended, comes back, and is deleted.
func TestTenantOfDomains(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who, other := s.tenant(trusted), s.tenant(trusted)
		one, own := s.create(who, "a.example.com"), s.create(who, "b.example.com")
		s.patch(who, own.ID, `{"suspended":true}`)
		s.create(other, "c.example.com")
		waiting := s.create(other, "a.example.com")

		before := s.revision()
		s.setTenant(who, func(row *management.Tenant) { row.Suspended = true })
		delta := s.feed(before)
		if len(delta) != 1 || !strings.Contains(delta["a.example.com"], `"suspended":true`) {
			t.Errorf("suspending the tenant: %v", delta)
		}
		if d := s.find(who, one.ID); d.Status != management.Suspended || d.Serving || d.NextAction.Who != management.WhoOperator || d.Revision != s.revision() {
			t.Errorf("%s %+v revision %d", d.Status, d.NextAction, d.Revision)
		}
		_, err := s.CreateDomain(t.Context(), who, []byte(`{"name":"d.example.com","upstreams":[{"dial":"10.0.0.5:1"}]}`))
		if management.CodeOf(err) != management.Forbidden {
			t.Errorf("a suspended tenant adds a domain: %v", err)
		}
		before = s.revision()
		s.setTenant(who, func(row *management.Tenant) { row.Suspended = false })
		delta = s.feed(before)
		if len(delta) != 1 || strings.Contains(delta["a.example.com"], "suspended") {
			t.Errorf("bringing the tenant back: %v", delta)
		}
		if a, b := s.find(who, one.ID), s.find(who, own.ID); a.Status == management.Suspended || b.Status != management.Suspended {
			t.Errorf("then %s, %s", a.Status, b.Status)
		}

		before = s.revision()
		s.update(func(tx management.Tx) error {
			row, err := tx.FindTenant(who.TenantID)
			if err != nil {
				return err
			}
			row.DeletedAt = s.clock.now()
			if err := tx.UpdateTenant(row); err != nil {
				return err
			}
			return management.TenantChanged(s.Plane, tx, row)
		})
		if delta = s.feed(before); len(delta) != 2 || delta["a.example.com"] != "" || delta["b.example.com"] != "" {
			t.Errorf("deleting the tenant: %v", delta)
		}
		must(t, management.CheckDue(s.Plane, t.Context()))
		if s.owner("a.example.com") != other.TenantID || s.find(other, waiting.ID).Axes.Ownership.Proof == nil {
			t.Error("who waited for the name does not get it")
		}
	})
}
