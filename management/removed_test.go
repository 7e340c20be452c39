package management_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// TestReportOfRemovedDomains: connections outlive their domain by as long as edges give them to end. What they carried was left out
// once the domain was gone, which takes two seconds.
func TestReportOfRemovedDomains(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who, other := s.tenant(trusted), s.tenant(trusted)
		gone, named, left := s.create(who, "gone.example.com"), s.create(who, "named.example.com"), s.create(other, "left.example.com")
		e := s.newEdge("e1")
		e.tell(nil, false, false)
		for _, d := range []*management.Domain{gone, named} {
			if _, err := s.DeleteDomain(t.Context(), who, d.ID, ""); err != nil {
				t.Fatal(err)
			}
		}
		s.update(func(tx management.Tx) error {
			tenant, err := tx.FindTenant(other.TenantID)
			if err != nil {
				return err
			}
			if tenant.DeletedAt = s.clock.now(); tx.UpdateTenant(tenant) != nil {
				t.Error("the tenant stays")
			}
			revision, err := tx.NextRevision()
			if err != nil {
				return err
			}
			return tx.DeleteDomainsOfTenant(other.TenantID, revision, s.clock.now())
		})
		s.update(func(tx management.Tx) error {
			if err := tx.DeleteDomain(gone.ID); err != nil {
				return err
			}
			return tx.DeleteDomain(named.ID)
		})
		now := s.clock.now()
		e.tell(func(r *edgereport.Report) {
			nobodys := counted(named, now, 4)
			nobodys.Tenant = ""
			theirs := counted(gone, now, 1000)
			theirs.Tenant = other.TenantID
			r.Counters = []edgereport.Counter{counted(gone, now, 2), nobodys, theirs, counted(left, now, 1000)}
			r.Connections = []edgereport.Connection{recorded(gone, now), recorded(left, now)}
		}, false, false)
		for d, want := range map[*management.Domain]int64{gone: 2, named: 4} {
			used, err := s.FindUsage(t.Context(), who, d.ID, now.Add(-time.Hour), now.Add(time.Minute), management.StepTotal)
			if err != nil || len(used) != 1 || used[0].Connections != want || used[0].Domain != d.Name {
				t.Errorf("%s: %v %v", d.Name, used, err)
			}
		}
		found, _, err := s.FindConnections(t.Context(), who, management.ConnectionQuery{From: now.Add(-time.Hour), To: now.Add(time.Hour)}, management.Page{Limit: 10})
		if err != nil || len(found) != 1 || found[0].DomainID != gone.ID {
			t.Errorf("%v %v", found, err)
		}
		if used, err := s.FindUsage(t.Context(), other, "", now.Add(-time.Hour), now.Add(time.Hour), management.StepTotal); err != nil || len(used) != 0 {
			t.Errorf("of a deleted tenant: %v %v", used, err)
		}
	})
}

// TestFindEventsOfPlatform: what operators do was written down, and nobody could read it.
func TestFindEventsOfPlatform(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		operator, other := s.tenant(nil), s.tenant(nil)
		operator.Scopes = append(operator.Scopes, management.Platform)
		if _, _, err := s.CreateEdgeToken(t.Context(), operator, "edges"); err != nil {
			t.Fatal(err)
		}
		yes := true
		if _, err := s.UpdateTenant(t.Context(), operator, other.TenantID, management.TenantUpdate{Trusted: &yes}, ""); err != nil {
			t.Fatal(err)
		}
		s.create(operator, "a.example.com")
		s.create(other, "b.example.com")
		actions := func(who *management.Principal, filter management.EventFilter) string {
			t.Helper()
			events, err := s.FindEvents(t.Context(), who, filter)
			if err != nil {
				t.Fatal(err)
			}
			var all []string
			for _, e := range events {
				all = append(all, e.Action)
			}
			slices.Sort(all)
			return strings.Join(all, " ")
		}
		if got := actions(operator, management.EventFilter{}); got != "domain.created edge_token.created tenant.updated" {
			t.Errorf("the operator reads %s", got)
		}
		if got := actions(operator, management.EventFilter{Action: "domain.created", TenantID: other.TenantID}); got != "domain.created" {
			t.Errorf("the operator reads %s", got)
		}
		if got := actions(other, management.EventFilter{Platform: true}); got != "domain.created domain.verified tenant.updated" {
			t.Errorf("another tenant reads %s", got)
		}
		nobody := *operator
		nobody.TenantID = ""
		if _, err := s.FindEvents(t.Context(), &nobody, management.EventFilter{}); management.CodeOf(err) != management.Forbidden {
			t.Errorf("without a tenant: %v", err)
		}
	})
}

// TestPatchDuringCheck: a domain that was changed while it was checked stays due, for what it is now.
func TestPatchDuringCheck(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(nil)
		d := s.create(who, "a.example.com")
		s.world.hook = func(string) {
			s.world.hook = nil
			s.clock.at = s.clock.at.Add(time.Second)
			if _, err := s.PatchDomain(t.Context(), who, d.ID, []byte(`{"max_connections":5}`), ""); err != nil {
				t.Error(err)
			}
		}
		if got := s.check(who, d.ID); got.MaxConnections != 5 {
			t.Errorf("%+v", got)
		}
		err := s.store.View(t.Context(), func(tx management.Tx) error {
			row, err := tx.FindDomainByID(who.TenantID, d.ID)
			if err == nil && row.DueAt.After(s.clock.now()) {
				t.Errorf("it is due at %v", row.DueAt)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// TestCheckWithTheClockBack: checks that were made by a clock that has been put back kept all later ones from counting.
func TestCheckWithTheClockBack(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(nil)
		d := s.create(who, "a.example.com")
		s.check(who, d.ID)
		s.clock.at = s.clock.at.Add(-time.Hour)
		s.world.set("a.example.com", seen{dns: management.FoundOK})
		if got := s.check(who, d.ID); got.Axes.DNS.State != management.AxisOK {
			t.Errorf("%+v", got.Axes.DNS)
		}
	})
}
