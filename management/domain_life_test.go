package management_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func validCertificate(name string, until time.Time) string {
	return `"certificates":[{"name":"` + name + `","source":"acme","issuer":"CN=Test CA","not_after":"` + until.Format(time.RFC3339) + `","state":"valid"}]`
}

// TestDomainLife is a domain from its first day to its last.
func TestDomainLife(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(nil)
		const name = "app.example.com"
		d := s.create(who, "APP.Example.com.")
		expect := func(step string, status management.Status, serving, stuck bool) {
			t.Helper()
			shown := s.find(who, d.ID)
			if shown.Status != status || shown.Serving != serving || shown.Stuck != stuck {
				t.Errorf("%s: %s serving=%v stuck=%v; want %s %v %v; next: %+v", step, shown.Status, shown.Serving, shown.Stuck, status, serving, stuck, shown.NextAction)
			}
			found, _, err := s.FindDomains(t.Context(), who, management.DomainQuery{Status: status, Page: management.Page{Limit: 10}})
			if err != nil || len(found) != 1 || found[0].ID != d.ID {
				t.Errorf("%s: the list of status %s is %v, %v", step, status, found, err)
			}
		}
		if d.Name != name || d.Tenant != who.TenantID || d.Version != 1 {
			t.Errorf("created %s of %s, version %d", d.Name, d.Tenant, d.Version)
		}
		expect("created", management.PendingDNS, false, true)
		next := s.find(who, d.ID).NextAction
		if next.Who != management.WhoCustomer || next.Record == nil || *next.Record != (management.RecordToSet{Type: "A", Name: name, Value: targetAddr}) {
			t.Errorf("next is %+v, record %+v", next, next.Record)
		}
		if got := s.feed(0); len(got) != 0 {
			t.Errorf("in the feed without a proof: %v", got)
		}
		s.check(who, d.ID)
		expect("checked in vain", management.PendingDNS, false, true)

		s.world.set(name, seen{dns: management.FoundOK})
		d = s.check(who, d.ID)
		expect("points here", management.Issuing, false, true) // no edge has reported: the operator's
		if d.Axes.Ownership.Proof == nil || *d.Axes.Ownership.Proof != management.ProofDNS || d.Axes.DNS.State != management.AxisOK {
			t.Errorf("axes %+v", d.Axes)
		}
		record := s.feed(0)[name]
		if !strings.HasPrefix(record, `{"name":"`+name+`"`) || !strings.Contains(record, `"tenant":"`+who.TenantID+`"`) {
			t.Errorf("the record is %s", record)
		}

		s.report(s.revision(), "")
		expect("applied, without a certificate", management.Issuing, false, false)
		s.clock.pass(16 * time.Minute)
		s.report(s.revision(), "")
		expect("no certificate for long", management.Issuing, false, true)
		s.report(s.revision(), `"certificates":[{"name":"`+name+`","source":"acme","state":"failed","error":"the CA says no"}]`)
		if got := s.find(who, d.ID); got.Axes.Certificate.State != management.AxisFailed || !strings.Contains(got.NextAction.Text, "the CA says no") {
			t.Errorf("a failed order is %+v, %+v", got.Axes.Certificate, got.NextAction)
		}
		s.report(s.revision(), validCertificate(name, s.clock.now().Add(60*24*time.Hour)))
		expect("certificate held", management.Active, true, false)
		if got := s.find(who, d.ID); got.NextAction != nil || got.Axes.Edges.Live != 1 || got.Axes.Edges.Of != 1 || got.Axes.Edges.Since == nil {
			t.Errorf("active: next %+v, edges %+v", got.NextAction, got.Axes.Edges)
		}

		s.report(s.revision(), `"upstreams":[{"domain":"`+name+`","dial":"10.0.0.5:8443","healthy":false,"error":"refused"}]`)
		s.refresh(name)
		expect("upstream down", management.Degraded, true, true)
		s.report(s.revision(), `"upstreams":[{"domain":"`+name+`","dial":"10.0.0.5:8443","healthy":true}]`)
		expect("upstream up", management.Active, true, false)

		s.world.set(name, seen{dns: management.FoundWrong})
		s.check(who, d.ID)
		expect("points elsewhere", management.Moved, true, true)
		if s.feed(0)[name] == "" {
			t.Error("moving DNS away took the domain out of the feed")
		}
		s.world.set(name, seen{dns: management.FoundOK})
		s.check(who, d.ID)
		expect("points here again", management.Active, true, false)

		d = s.patch(who, d.ID, `{"upstreams":[{"dial":"10.0.0.6:8443"}]}`)
		expect("changed, edges not told yet", management.Active, true, false)
		s.patch(who, d.ID, `{"suspended":true}`)
		expect("suspended", management.Suspended, false, false)
		if !strings.HasSuffix(s.feed(0)[name], `"suspended":true}`) {
			t.Errorf("the record of a suspended domain is %s", s.feed(0)[name])
		}
		s.patch(who, d.ID, `{"suspended":false}`)
		s.report(s.revision(), "")
		expect("back", management.Active, true, false)

		before := s.revision()
		gone, err := s.DeleteDomain(t.Context(), who, d.ID, "")
		if err != nil || gone.Status != management.Deleting {
			t.Fatalf("deleting: %+v, %v", gone, err)
		}
		expect("deleted", management.Deleting, false, false)
		if delta := s.feed(before); len(delta) != 1 || delta[name] != "" {
			t.Errorf("the delta is %v, want the removal", delta)
		}
		if _, err := s.PatchDomain(t.Context(), who, d.ID, []byte(`{}`), ""); management.CodeOf(err) != management.Conflict {
			t.Errorf("changing what is being deleted: %v", err)
		}
		must(t, management.RemoveDeleted(s.Plane, t.Context()))
		expect("edges still have it", management.Deleting, false, false)
		s.report(s.revision(), "")
		must(t, management.RemoveDeleted(s.Plane, t.Context()))
		if _, err := s.FindDomain(t.Context(), who, d.ID); management.CodeOf(err) != management.NotFound {
			t.Errorf("after edges let go: %v", err)
		}
		if delta := s.feed(before); len(delta) != 1 {
			t.Errorf("the removal was forgotten: %v", delta)
		}
		s.actions(who, "domain.created", "domain.verified", "domain.updated", "domain.deleted")
	})
}

// TestDomainGoesWithoutEdges shows that edges which are gone do not keep a deleted domain for ever.
func TestDomainGoesWithoutEdges(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		d := s.create(who, "app.example.com")
		s.report(s.revision(), "")
		if _, err := s.DeleteDomain(t.Context(), who, d.ID, ""); err != nil {
			t.Fatal(err)
		}
		s.clock.pass(6 * time.Minute)
		must(t, management.RemoveDeleted(s.Plane, t.Context()))
		if _, err := s.FindDomain(t.Context(), who, d.ID); management.CodeOf(err) != management.NotFound {
			t.Errorf("it is still there: %v", err)
		}
		// Nobody reports any more.
		alone := s.create(who, "alone.example.com")
		if _, err := s.DeleteDomain(t.Context(), who, alone.ID, ""); err != nil {
			t.Fatal(err)
		}
		s.clock.pass(6 * time.Second)
		must(t, management.RemoveDeleted(s.Plane, t.Context()))
		if _, err := s.FindDomain(t.Context(), who, alone.ID); management.CodeOf(err) != management.NotFound {
			t.Errorf("it waits for nobody: %v", err)
		}
		// What no edge ever had goes at once.
		never := s.create(s.tenant(nil), "b.example.com")
		other := &management.Principal{TenantID: never.Tenant, Scopes: management.Scopes{management.All}}
		if _, err := s.DeleteDomain(t.Context(), other, never.ID, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := s.FindDomain(t.Context(), other, never.ID); management.CodeOf(err) != management.NotFound {
			t.Errorf("what was never served is still there: %v", err)
		}
	})
}

// TestDomainDNSFailure shows that failing to ask changes nothing: neither what is served nor what is said of it.
func TestDomainDNSFailure(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(nil)
		const name = "app.example.com"
		d := s.create(who, name)
		s.world.set(name, seen{down: true})
		if d = s.check(who, d.ID); d.Status != management.PendingDNS || d.Axes.DNS.State != management.AxisUnknown || d.Stuck {
			t.Errorf("never answered: %s, %+v, stuck %v", d.Status, d.Axes.DNS, d.Stuck)
		}
		s.world.set(name, seen{dns: management.FoundOK})
		s.check(who, d.ID)
		s.report(s.revision(), validCertificate(name, s.clock.now().Add(time.Hour*1000)))
		before := s.revision()
		s.world.set(name, seen{down: true})
		for range 5 {
			s.clock.pass(time.Minute)
			d = s.check(who, d.ID)
		}
		if d.Status != management.Active || d.Axes.DNS.State != management.AxisOK || !strings.Contains(d.Axes.DNS.Detail, "No name server answered") {
			t.Errorf("DNS is down: %s, %+v", d.Status, d.Axes.DNS)
		}
		if s.revision() != before {
			t.Error("edges were told of it")
		}
		if len(d.Records) != 3 || !d.Records[0].OK {
			t.Errorf("the records are %+v, want those seen last", d.Records)
		}
	})
}

func (s *site) patch(who *management.Principal, id, patch string) *management.Domain {
	s.t.Helper()
	d, err := s.PatchDomain(s.t.Context(), who, id, []byte(patch), "")
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// refresh has the statuses of names follow what edges said, as the edges' own work does.
func (s *site) refresh(names ...string) {
	s.t.Helper()
	if err := management.RefreshReported(s.Plane, s.t.Context(), names); err != nil {
		s.t.Fatal(err)
	}
}

// actions checks that the audit log of a tenant has these actions, and every entry what was there before or after.
func (s *site) actions(who *management.Principal, want ...string) {
	s.t.Helper()
	events, err := s.FindEvents(s.t.Context(), who, management.EventFilter{Limit: 200})
	if err != nil {
		s.t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, e := range events {
		seen[e.Action] = true
		if string(e.Before) == "null" && string(e.After) == "null" {
			s.t.Errorf("%s says neither before nor after", e.Action)
		}
		if e.Action == "domain.updated" {
			var before, after map[string]any
			if json.Unmarshal(e.Before, &before) != nil || json.Unmarshal(e.After, &after) != nil || before["name"] != after["name"] {
				s.t.Errorf("%s: %s, %s", e.Action, e.Before, e.After)
			}
		}
	}
	for _, action := range want {
		if !seen[action] {
			s.t.Errorf("the audit log lacks %s", action)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
