package management_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
)

func openSQLite(t *testing.T) *store.Store { return storetest.Open(t, store.SQLite) }

// row returns a domain as it is stored.
func (s *site) row(id string) (row *management.DomainRow) {
	s.t.Helper()
	s.update(func(tx management.Tx) (err error) {
		row, err = tx.FindDomainByID("", id)
		return err
	})
	return row
}

// TestCheckBesideChange: what a tenant changes while a check runs stays, and a check that began earlier does not undo a later one.
func TestCheckBesideChange(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(nil)
		const name = "app.example.com"
		d := s.create(who, name)
		s.world.set(name, seen{dns: management.FoundOK})
		s.world.hook = func(string) {
			s.world.hook = nil
			s.patch(who, d.ID, `{"alpn":["h2"]}`)
		}
		if got := s.check(who, d.ID); len(got.ALPN) != 1 || got.Version != 2 || got.Axes.Ownership.State != management.AxisOK {
			t.Errorf("the change is lost: %+v", got)
		}
		s.world.set(name, seen{dns: management.FoundWrong})
		s.world.hook = func(string) { // sees what is wrong, and is slow: meanwhile somebody sees what is right
			s.world.hook = nil
			s.world.set(name, seen{dns: management.FoundOK})
			s.clock.pass(time.Second)
			s.check(who, d.ID)
			s.world.set(name, seen{dns: management.FoundWrong})
		}
		s.check(who, d.ID)
		if got := s.row(d.ID); got.Facts.DNS.State == management.FoundUnknown || got.Facts.CheckedAt != s.clock.now() {
			t.Errorf("the earlier check is the last word: %+v", got.Facts)
		}
		s.world.set(name, seen{})
		s.world.hook = func(string) {
			s.world.hook = nil
			if _, err := s.DeleteDomain(t.Context(), who, d.ID, ""); err != nil {
				t.Error(err)
			}
		}
		if got, err := s.CheckDomain(t.Context(), who, d.ID); err != nil || got.Status != management.Deleting {
			t.Errorf("deleted meanwhile: %+v, %v", got, err)
		}
		if got := s.feed(0); len(got) != 0 {
			t.Errorf("the check brought it back: %v", got)
		}
	})
}

// TestCheckSchedule: what waits is checked often at first and then less, what is settled rarely, and never all at once.
func TestCheckSchedule(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(nil)
		d := s.create(who, "app.example.com")
		wait := func() time.Duration { return s.row(d.ID).DueAt.Sub(s.clock.now()) }
		if wait() != 0 {
			t.Errorf("a new domain is checked in %s", wait())
		}
		last := time.Duration(0)
		for i := range 12 {
			must(t, management.CheckDue(s.Plane, t.Context()))
			got, want := wait(), min(30*time.Second<<i, time.Hour)
			if got < want*9/10 || got > want*11/10 {
				t.Errorf("check %d is followed by one in %s, want about %s", i, got, want)
			}
			last = got
			s.clock.pass(got)
		}
		if last < 50*time.Minute {
			t.Errorf("after an hour of waiting it is checked each %s", last)
		}
		s.check(who, d.ID) // somebody is at work on it
		if got := wait(); got > 40*time.Second {
			t.Errorf("after a check by hand it is checked in %s", got)
		}
		s.clock.pass(31 * 24 * time.Hour)
		must(t, management.CheckDue(s.Plane, t.Context()))
		if got := wait(); got < 20*time.Hour {
			t.Errorf("a claim that nobody cares about is checked in %s", got)
		}
		s.world.set("app.example.com", seen{dns: management.FoundOK})
		s.check(who, d.ID)
		if got := wait(); got < 5*time.Hour || got > 7*time.Hour {
			t.Errorf("a settled domain is checked in %s", got)
		}
		s.world.set("app.example.com", seen{down: true})
		s.clock.pass(7 * time.Hour)
		must(t, management.CheckDue(s.Plane, t.Context()))
		if got := wait(); got > time.Minute {
			t.Errorf("when DNS could not be asked it is asked again in %s", got)
		}
	})
}

// TestChecksAreFair: a tenant with many domains does not keep others waiting.
func TestChecksAreFair(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		many, one := s.tenant(nil), s.tenant(nil)
		for i := range 100 {
			s.create(many, fmt.Sprintf("n%d.example.com", i))
		}
		s.clock.pass(time.Second)
		late := s.create(one, "late.example.net")
		err := s.store.View(t.Context(), func(tx management.Tx) error {
			rows, err := tx.FindDomainsDue(s.clock.now(), 8, 64) // less than there are
			found, of := false, 0
			for _, r := range rows {
				found = found || r.ID == late.ID
				if r.TenantID == many.TenantID {
					of++
				}
			}
			if !found || of != 8 {
				t.Errorf("of the first %d, %d are of the tenant with many; the other's is there: %v", len(rows), of, found)
			}
			return err
		})
		must(t, err)
		must(t, management.CheckDue(s.Plane, t.Context()))
		if n := len(s.world.asked); n != 101 {
			t.Errorf("%d names were checked, want all", n)
		}
	})
}

// TestChecksAreBounded: people can start only so many checks at a time.
func TestChecksAreBounded(t *testing.T) {
	s := newSite(t, openSQLite(t), nil)
	who := s.tenant(nil)
	d := s.create(who, "app.example.com")
	var ends []func()
	for range 4 {
		end, err := management.TakeCheckPlace(s.Plane, who.TenantID)
		must(t, err)
		ends = append(ends, end)
	}
	if _, err := s.CheckDomain(t.Context(), who, d.ID); management.CodeOf(err) != management.RateLimited {
		t.Errorf("a fifth check: %v", err)
	}
	if _, err := s.ProbeDomain(t.Context(), who, d.ID); management.CodeOf(err) != management.RateLimited {
		t.Errorf("a probe beside four checks: %v", err)
	}
	for _, end := range ends {
		end()
	}
	s.check(who, d.ID)
	found, err := s.ProbeDomain(t.Context(), who, d.ID)
	if err != nil || len(found) != 1 || !found[0].Reachable {
		t.Errorf("the probe found %v, %v", found, err)
	}
}

// TestFeedDelta: deltas have every change after a revision once, and removals are forgotten only together with what needs them.
func TestFeedDelta(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		a, b := s.create(who, "a.example.com"), s.create(who, "b.example.com")
		start := s.revision()
		s.patch(who, a.ID, `{"alpn":["h2"]}`)
		s.patch(who, a.ID, `{"alpn":["http/1.1"]}`)
		if got := s.feed(start); len(got) != 1 || got["a.example.com"] == "" {
			t.Errorf("the delta is %v", got)
		}
		if d := s.find(who, a.ID); d.Revision != s.revision() {
			t.Errorf("the domain's revision is %d, the feed's %d", d.Revision, s.revision())
		}
		if _, err := s.DeleteDomain(t.Context(), who, b.ID, ""); err != nil {
			t.Fatal(err)
		}
		removed := s.revision()
		horizon := func() (n uint64) {
			s.update(func(tx management.Tx) (err error) {
				n, err = tx.FeedHorizon()
				return err
			})
			return n
		}
		s.clock.pass(24 * time.Hour)
		must(t, management.ForgetHistory(s.Plane, t.Context()))
		if _, ok := s.feed(start)["b.example.com"]; !ok || horizon() != 0 {
			t.Errorf("after a day the removal is forgotten; horizon %d", horizon())
		}
		s.clock.pass(2 * time.Hour)
		must(t, management.ForgetHistory(s.Plane, t.Context()))
		if _, ok := s.feed(start)["b.example.com"]; ok || horizon() != removed {
			t.Errorf("after 26 hours: remembered %v, horizon %d, want %d", ok, horizon(), removed)
		}
		if got := s.feed(0); len(got) != 1 {
			t.Errorf("the full set is %v", got)
		}
	})
}
