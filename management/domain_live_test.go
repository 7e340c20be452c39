package management_test

import (
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// TestDomainEdges follows a change of a domain from edge to edge, as its tenant and as an operator see it.
func TestDomainEdges(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		operator := *who
		operator.Scopes = append(operator.Scopes[:len(operator.Scopes):len(operator.Scopes)], management.Platform)
		d := s.create(who, "a.example.com")
		edges := func(as *management.Principal) []*management.DomainEdge {
			t.Helper()
			all, err := s.DomainEdges(t.Context(), as, d.ID)
			if err != nil {
				t.Fatal(err)
			}
			return all
		}
		if all := edges(who); len(all) != 0 {
			t.Errorf("before any edge reports: %+v", all[0])
		}

		// They first report in another order than that of their names.
		z, a, b := s.newEdge("z"), s.newEdge("a"), s.newEdge("b")
		a.Edge.Region = "fra"
		for _, e := range []*anEdge{z, a, b} {
			s.clock.pass(time.Second)
			e.tell(nil, false, false)
		}
		holds := func(r *edgereport.Report) {
			until := s.clock.now().Add(60 * 24 * time.Hour)
			r.Certificates = []edgereport.CertificateState{{Name: d.Name, Source: "acme", State: edgereport.CertificateValid, NotAfter: &until}}
		}
		s.clock.pass(time.Second)
		z.Revision = d.Revision
		z.tell(holds, false, false)
		first := s.clock.now()
		s.clock.pass(time.Second)
		a.Revision = d.Revision
		a.tell(nil, false, false) // has it, and no certificate yet
		s.clock.pass(time.Second)
		b.Revision = d.Revision
		b.tell(func(r *edgereport.Report) {
			holds(r)
			r.Rejected = []edgereport.Rejected{{Name: d.Name, Field: "upstreams[0].dial", Detail: "is mine"}}
		}, false, false)

		want := []management.DomainEdge{
			{Number: 1, Name: "z", Region: "gru", Applied: true, Certificate: true, LiveSince: first},
			{Number: 2, Name: "a", Region: "fra", Applied: true},
			{Number: 3, Name: "b", Region: "gru", Certificate: true, Rejected: "upstreams[0].dial: is mine"},
		}
		same := func(as *management.Principal, named bool, want ...management.DomainEdge) {
			t.Helper()
			got := edges(as)
			if len(got) != len(want) {
				t.Fatalf("%d edges", len(got))
			}
			for i, w := range want {
				if !named {
					w.Name = ""
				}
				if g := *got[i]; g.Number != w.Number || g.Name != w.Name || g.Region != w.Region || g.Applied != w.Applied || g.Certificate != w.Certificate ||
					g.Rejected != w.Rejected || !g.LiveSince.Equal(w.LiveSince) || g.Live() != !w.LiveSince.IsZero() {
					t.Errorf("%+v, want %+v", g, w)
				}
			}
		}
		same(&operator, true, want...)
		same(who, false, want...)
		if axis := s.find(who, d.ID).Axes.Edges; axis.Live != 1 || axis.Of != 3 {
			t.Errorf("the sum is another: %+v", axis)
		}

		// All live: the last of them is the moment that the sum names.
		s.clock.pass(time.Second)
		a.tell(holds, false, false)
		second := s.clock.now()
		s.clock.pass(time.Second)
		b.tell(func(r *edgereport.Report) { r.Rejected = []edgereport.Rejected{{Name: d.Name}} }, false, false)
		all := edges(&operator)
		if !all[0].LiveSince.Equal(first) || !all[1].LiveSince.Equal(second) || !all[2].Live() || all[2].Rejected != "" {
			t.Errorf("%+v %+v %+v", all[0], all[1], all[2])
		}
		last := all[0].LiveSince
		for _, e := range all {
			if e.LiveSince.After(last) {
				last = e.LiveSince
			}
		}
		if axis := s.find(who, d.ID).Axes.Edges; axis.Live != 3 || axis.Since == nil || !axis.Since.Equal(last) {
			t.Errorf("the sum is another: %+v, want since %v", axis, last)
		}

		// A change begins anew, until each has applied it.
		changed, err := s.PatchDomain(t.Context(), who, d.ID, []byte(`{"post_quantum":"require"}`), "")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range edges(who) {
			if e.Applied || e.Live() || !e.Certificate {
				t.Errorf("after the change: %+v", e)
			}
		}
		s.clock.pass(time.Second)
		a.Revision = changed.Revision
		a.tell(nil, false, false)
		if all := edges(who); all[0].Live() || !all[1].LiveSince.Equal(s.clock.now()) || all[2].Live() {
			t.Errorf("%+v %+v %+v", all[0], all[1], all[2])
		}

		// An edge that does not report any more is none, and the others move up.
		s.clock.pass(2 * time.Minute)
		a.tell(nil, false, false)
		if all := edges(who); len(all) != 1 || all[0].Number != 1 || all[0].Region != "fra" {
			t.Errorf("%d edges, the first %+v", len(all), all[0])
		}

		// Of another's domain, and to who may not read domains, nothing is said.
		if _, err := s.DomainEdges(t.Context(), s.tenant(nil), d.ID); management.CodeOf(err) != management.NotFound {
			t.Errorf("another tenant: %v", err)
		}
		narrow := *who
		narrow.Scopes = management.Scopes{management.UsageRead}
		if _, err := s.DomainEdges(t.Context(), &narrow, d.ID); management.CodeOf(err) != management.Forbidden {
			t.Errorf("without the scope: %v", err)
		}

		// Who claims a name that is another tenant's learns nothing of what edges say of that name.
		claimer := s.tenant(nil)
		claim := s.create(claimer, d.Name)
		if all, err := s.DomainEdges(t.Context(), claimer, claim.ID); err != nil || len(all) != 0 {
			t.Errorf("a claim: %d edges, %v", len(all), err)
		}
		if _, err := s.DeleteDomain(t.Context(), who, d.ID, ""); err != nil {
			t.Fatal(err)
		}
		if all := edges(who); len(all) != 0 {
			t.Errorf("of a domain that is being deleted: %d edges", len(all))
		}
	})
}
