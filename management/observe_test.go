package management_test

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
)

func TestFindConnections(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who, other := s.tenant(trusted), s.tenant(trusted)
		a, b, theirs := s.create(who, "a.example.com"), s.create(who, "b.example.com"), s.create(other, "c.example.com")
		now := s.clock.now()
		e := s.newEdge("e1")
		var ids []string
		e.tell(func(r *edgereport.Report) {
			for i := range 10 {
				c := recorded(a, now.Add(-time.Duration(i/2)*time.Minute)) // two at each time
				c.ClientIP = netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
				if i == 3 {
					c.Group, c.EndReason, c.ALPN = "X25519", "upstream_refused", "h2"
				}
				if i == 4 {
					c.ClientIP = netip.MustParseAddr("2001:db8:1:2::7")
				}
				ids = append(ids, c.ID)
				r.Connections = append(r.Connections, c)
			}
			r.Connections = append(r.Connections, recorded(b, now.Add(-time.Hour)), recorded(theirs, now))
		}, false, false)

		all := s.connections(who, management.ConnectionQuery{}, 3)
		if len(all) != 11 {
			t.Fatalf("%d records", len(all))
		}
		for i := 1; i < len(all); i++ {
			if all[i].Time.After(all[i-1].Time) || all[i].ID == all[i-1].ID {
				t.Fatalf("not newest first: %v", all)
			}
		}
		for _, c := range all {
			if c.ID != ids[2] {
				continue
			}
			if c.Domain != a.Name || c.DomainID != a.ID || c.Tenant != who.TenantID || c.Edge != "e1" || c.Region != "gru" || c.ClientIP != "203.0.113.2" ||
				c.ClientPort != 4711 || !c.PostQuantum || c.BytesIn != 5 || c.Duration != 0.25 || c.TLSVersion != "TLS 1.3" || c.ServerName != a.Name {
				t.Errorf("record %+v", c)
			}
		}
		for name, c := range map[string]struct {
			q    management.ConnectionQuery
			want int
		}{
			"domain by ID":     {management.ConnectionQuery{Domain: b.ID}, 1},
			"domain by name":   {management.ConnectionQuery{Domain: "B.example.com."}, 1},
			"unknown name":     {management.ConnectionQuery{Domain: "z.example.com"}, 0},
			"another's domain": {management.ConnectionQuery{Domain: theirs.ID}, 0},
			"another's name":   {management.ConnectionQuery{Domain: theirs.Name}, 0},
			"group":            {management.ConnectionQuery{Group: "X25519"}, 1},
			"post-quantum":     {management.ConnectionQuery{PostQuantum: ptr(true)}, 10},
			"classical":        {management.ConnectionQuery{PostQuantum: ptr(false)}, 1},
			"end reason":       {management.ConnectionQuery{EndReason: "upstream_refused"}, 1},
			"address":          {management.ConnectionQuery{ClientIP: "203.0.113.5"}, 1},
			"mapped address":   {management.ConnectionQuery{ClientIP: "::ffff:203.0.113.5"}, 1},
			"network":          {management.ConnectionQuery{ClientIP: "203.0.113.0/30"}, 4},
			"network of IPv6":  {management.ConnectionQuery{ClientIP: "2001:db8::/32"}, 1},
			"all of IPv4":      {management.ConnectionQuery{ClientIP: "0.0.0.0/0"}, 10},
			"all of IPv6":      {management.ConnectionQuery{ClientIP: "::/0"}, 11}, // v4 is mapped into it
			"from and to":      {management.ConnectionQuery{From: now.Add(-2 * time.Minute), To: now}, 4},
			"SQL in a group":   {management.ConnectionQuery{Group: `' OR 1=1 --`}, 0},
			"SQL in a reason":  {management.ConnectionQuery{EndReason: `done' OR 'a'='a`}, 0},
			"all of them":      {management.ConnectionQuery{Domain: a.Name, Group: "X25519", PostQuantum: ptr(false), ClientIP: "203.0.113.3"}, 1},
		} {
			if got := s.connections(who, c.q, 4); len(got) != c.want {
				t.Errorf("%s: %d instead of %d", name, len(got), c.want)
			}
		}
		for pointer, q := range map[string]management.ConnectionQuery{
			"?client_ip": {ClientIP: "203.0.113"}, "?domain": {Domain: "no name"},
		} {
			_, _, err := s.FindConnections(t.Context(), who, q, management.Page{Limit: 1})
			if management.CodeOf(err) != management.Invalid || !strings.Contains(err.Error(), pointer) {
				t.Errorf("%s: %v", pointer, err)
			}
		}
		for _, cursor := range []string{"x", "MQ", "MTEAMg", "MS0xAC0x"} {
			if _, _, err := s.FindConnections(t.Context(), who, management.ConnectionQuery{To: now}, management.Page{Limit: 1, Cursor: cursor}); management.CodeOf(err) == management.Internal {
				t.Errorf("cursor %q: %v", cursor, err)
			}
		}
		narrow := *who
		narrow.Scopes = management.Scopes{management.DomainsRead}
		if _, _, err := s.FindConnections(t.Context(), &narrow, management.ConnectionQuery{}, management.Page{Limit: 1}); management.CodeOf(err) != management.Forbidden {
			t.Errorf("without the scope: %v", err)
		}
	})
}

// Where the operator keeps no single addresses, none is stored, and a search for one finds its network.
func TestConnectionsByPrefix(t *testing.T) {
	storetest.Each(t, func(t *testing.T, st *store.Store) {
		s := newSite(t, st, nil)
		sealer, err := vault.New(vault.NewKey())
		if err != nil {
			t.Fatal(err)
		}
		s.Plane, err = management.New(management.Config{SetupToken: setupToken, ClientIP: management.ClientIPPrefix}, management.Parts{
			Store: st, Sealer: sealer, Passwords: &cheapPasswords{}, Resolver: s.world, Prober: s.world, Clock: s.clock.now,
		})
		if err != nil {
			t.Fatal(err)
		}
		who := s.tenant(trusted)
		d := s.createWith(who, `{"name":"a.example.com","upstreams":[{"dial":"upstream.example.com:443"}]}`)
		s.newEdge("e1").tell(func(r *edgereport.Report) {
			four, six := recorded(d, s.clock.now()), recorded(d, s.clock.now())
			six.ClientIP = netip.MustParseAddr("2001:db8:1:2::7")
			r.Connections = []edgereport.Connection{four, six}
		}, false, false)
		found := s.connections(who, management.ConnectionQuery{ClientIP: "198.51.100.99"}, 10)
		if len(found) != 1 || found[0].ClientIP != "198.51.100.0/24" || found[0].ClientPort != 0 {
			t.Errorf("%+v", found)
		}
		found = s.connections(who, management.ConnectionQuery{ClientIP: "2001:db8:1::/64"}, 10)
		if len(found) != 1 || found[0].ClientIP != "2001:db8:1::/48" {
			t.Errorf("%+v", found)
		}
	})
}

func TestUsage(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who, other := s.tenant(trusted), s.tenant(trusted)
		a, b, theirs := s.create(who, "a.example.com"), s.create(who, "b.example.com"), s.create(other, "c.example.com")
		s.clock.at = time.Date(2026, 3, 10, 15, 30, 20, 0, time.UTC)
		now := s.clock.now()
		e := s.newEdge("e1")
		e.tell(func(r *edgereport.Report) {
			r.Counters = []edgereport.Counter{
				counted(a, now, 4), counted(a, now, 4), counted(a, now.Add(-time.Hour), 8), counted(a, now.AddDate(0, 0, -2), 16),
				counted(b, now, 32), counted(theirs, now, 1000),
			}
		}, false, false)
		check := func() {
			t.Helper()
			for _, c := range []struct {
				domain, step string
				from         time.Time
				want         string
			}{
				{"", management.StepTotal, now.AddDate(0, 0, -3), "2026-03-07T15:00:00Z a 32; 2026-03-07T15:00:00Z b 32"},
				{"", "day", now.AddDate(0, 0, -3), "2026-03-08T00:00:00Z a 16; 2026-03-10T00:00:00Z a 16; 2026-03-10T00:00:00Z b 32"},
				{"a.example.com", "hour", now.Add(-2 * time.Hour), "2026-03-10T14:00:00Z a 8; 2026-03-10T15:00:00Z a 8"},
				{b.ID, "hour", now.Add(-2 * time.Hour), "2026-03-10T15:00:00Z b 32"},
				{a.ID, "hour", now.Add(-time.Hour), "2026-03-10T14:00:00Z a 8; 2026-03-10T15:00:00Z a 8"},
				{a.ID, "hour", now.Add(-59 * time.Minute), "2026-03-10T15:00:00Z a 8"}, // from is inclusive, to the minute
				{a.ID, "day", now.Add(-59 * time.Minute), "2026-03-10T00:00:00Z a 8"},
				{a.ID, management.StepTotal, now.Add(-59 * time.Minute), "2026-03-10T14:31:00Z a 8"},
				{theirs.ID, "hour", now.Add(-2 * time.Hour), ""},
				{"c.example.com", "day", now.Add(-2 * time.Hour), ""},
			} {
				used, err := s.FindUsage(t.Context(), who, c.domain, c.from, now, c.step)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, u := range used {
					got = append(got, fmt.Sprintf("%s %s %d", u.Start.Format(time.RFC3339), u.Domain[:1], u.Connections))
					if u.BytesIn != 10*u.Connections || u.BytesOut != 100*u.Connections || u.DomainID == "" {
						t.Errorf("%+v", u)
					}
				}
				if strings.Join(got, "; ") != c.want {
					t.Errorf("%s by %s: %q, want %q", c.domain, c.step, got, c.want)
				}
			}
			series, err := s.FindSeries(t.Context(), who, a.ID, now.Add(-90*time.Minute), now.Add(time.Minute), "hour")
			if err != nil {
				t.Fatal(err)
			}
			values := func(key string) (all []any) {
				for _, v := range series.Series[key] {
					if v == nil {
						all = append(all, nil)
					} else {
						all = append(all, math.Round(*v*1e6)/1e6)
					}
				}
				return all
			}
			if got := fmt.Sprint(series.Step, " ", series.Start.Format(time.Kitchen), values("connections"), values("post_quantum_share"), values("hello_retries")); got != "hour 2:00PM[8 8] [0.5 0.5] [2 2]" {
				t.Errorf("series %s", got)
			}
			if p50 := series.Series["handshake_p50"][1]; p50 == nil || *p50 <= 0.002 || *p50 > 0.003 {
				t.Errorf("p50 %v", values("handshake_p50"))
			}
			if minutes, err := s.FindSeries(t.Context(), who, a.ID, now.Add(-5*time.Minute), now, ""); err != nil ||
				minutes.Step != "minute" || len(minutes.Series["connections"]) != 6 || *minutes.Series["connections"][5] != 8 || minutes.Series["handshake_p99"][0] != nil {
				t.Errorf("by minute: %+v %v", minutes, err)
			}
			report, err := s.ReportPostQuantum(t.Context(), who, "", now.AddDate(0, 0, -3), now)
			if err != nil || report.Connections != 64 || report.PostQuantum != 32 || report.Share != 0.5 || report.HelloRetries != 16 || len(report.ByDay) != 2 ||
				report.ByDay[0] != (management.PostQuantumDay{Day: "2026-03-08", Connections: 16, PostQuantum: 8, Share: 0.5, HelloRetries: 4}) {
				t.Errorf("post-quantum: %+v %v", report, err)
			}
		}
		check()
		for _, twice := range []int{1, 2} {
			if _, err := s.store.FoldUsage(t.Context(), now.Add(-48*time.Hour), twice); err != nil { // some of it is added up, some is not
				t.Fatal(err)
			}
			check()
		}
		if err := management.FoldUsage(s.Plane, t.Context()); err != nil {
			t.Fatal(err)
		}
		check()

		narrow := *who
		narrow.Scopes = management.Scopes{management.ConnectionsRead}
		calls := map[string]func(*management.Principal) error{
			"usage": func(p *management.Principal) error {
				_, err := s.FindUsage(t.Context(), p, "", now.Add(-1), now, "day")
				return err
			},
			"series": func(p *management.Principal) error {
				_, err := s.FindSeries(t.Context(), p, a.ID, now.Add(-1), now, "")
				return err
			},
			"post-quantum": func(p *management.Principal) error {
				_, err := s.ReportPostQuantum(t.Context(), p, "", now.Add(-1), now)
				return err
			},
			"require": func(p *management.Principal) error { _, err := s.ReportRequire(t.Context(), p, "", 1); return err },
		}
		for name, call := range calls {
			if err := call(who); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if err := call(&narrow); management.CodeOf(err) != management.Forbidden {
				t.Errorf("%s without the scope: %v", name, err)
			}
		}
		if _, err := s.FindSeries(t.Context(), other, a.ID, now.Add(-1), now, ""); management.CodeOf(err) != management.NotFound {
			t.Errorf("another's series: %v", err)
		}
		for name, call := range map[string]func() error{
			"step": func() error { _, err := s.FindUsage(t.Context(), who, "", now.Add(-1), now, "minute"); return err },
			"from": func() error { _, err := s.FindUsage(t.Context(), who, "", now, now, "day"); return err },
			"long": func() error {
				_, err := s.FindUsage(t.Context(), who, "", now.AddDate(-3, 0, 0), now, "day")
				return err
			},
			"points": func() error {
				_, err := s.FindSeries(t.Context(), who, a.ID, now.AddDate(0, 0, -9), now, "minute")
				return err
			},
			"days":       func() error { _, err := s.ReportRequire(t.Context(), who, "", 31); return err },
			"no days":    func() error { _, err := s.ReportRequire(t.Context(), who, "", 0); return err },
			"other step": func() error { _, err := s.FindSeries(t.Context(), who, a.ID, now.Add(-1), now, "year"); return err },
		} {
			if err := call(); management.CodeOf(err) != management.Invalid {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestReportRequire(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		a, b := s.create(who, "a.example.com"), s.create(who, "b.example.com")
		now := s.clock.now()
		e := s.newEdge("e1")
		e.tell(func(r *edgereport.Report) {
			counter := counted(a, now, 0)
			counter.Connections, counter.Groups = 6, map[string]int64{"X25519MLKEM768": 2, "X25519": 2, "CurveP256": 1}
			counter.EndReasons = map[string]int64{"done": 5, "no_common_group": 1}
			r.Counters = []edgereport.Counter{counter, counted(b, now, 10)}
			for i, group := range []string{"X25519", "X25519", "CurveP256", "", "X25519MLKEM768", "X25519MLKEM768"} {
				c := recorded(a, now.Add(-time.Duration(i)*time.Second))
				c.Group, c.ALPN, c.ClientIP = group, "h2", netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
				if group == "" {
					c.EndReason, c.ALPN, c.ClientIP = "no_common_group", "", netip.MustParseAddr("2001:db8:1:2::3")
				}
				r.Connections = append(r.Connections, c)
			}
		}, false, false)
		report, err := s.ReportRequire(t.Context(), who, "a.example.com", 7)
		if err != nil {
			t.Fatal(err)
		}
		if report.Connections != 6 || report.Refused != 4 || report.Share != 4.0/6 || !report.Complete || len(report.ByClient) != 2 {
			t.Fatalf("%+v", report)
		}
		if c := report.ByClient[0]; c.Client != "203.0.113.0/24" || c.ALPN != "h2" || c.Refused != 3 || !c.LastSeen.Equal(now) {
			t.Errorf("%+v", c)
		}
		if c := report.ByClient[1]; c.Client != "2001:db8:1::/48" || c.ALPN != "" || c.Refused != 1 {
			t.Errorf("%+v", c)
		}
		if all, err := s.ReportRequire(t.Context(), who, "", 7); err != nil || all.Connections != 16 || all.Refused != 9 {
			t.Errorf("%+v %v", all, err)
		}
		if long, err := s.ReportRequire(t.Context(), who, "", 30); err != nil || long.Complete {
			t.Errorf("records are not kept for 30 days: %+v %v", long, err)
		}
		e.tell(func(r *edgereport.Report) { r.Dropped = 1 }, false, false)
		if report, err := s.ReportRequire(t.Context(), who, a.ID, 1); err != nil || report.Complete || report.Refused != 4 {
			t.Errorf("a record was dropped: %+v %v", report, err)
		}
	})
}

func TestTailConnections(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who, other := s.tenant(trusted), s.tenant(trusted)
		a, b, theirs := s.create(who, "a.example.com"), s.create(who, "b.example.com"), s.create(other, "c.example.com")
		e := s.newEdge("e1")
		report := func(each ...edgereport.Connection) {
			e.tell(func(r *edgereport.Report) { r.Connections = each }, false, false)
		}
		report(recorded(a, s.clock.now())) // before anybody listens
		all, err := s.TailConnections(t.Context(), who, management.ConnectionQuery{})
		if err != nil {
			t.Fatal(err)
		}
		defer all.Close()
		one, err := s.TailConnections(t.Context(), who, management.ConnectionQuery{Domain: b.Name})
		if err != nil {
			t.Fatal(err)
		}
		defer one.Close()
		poll := management.PollTails(s.Plane)
		turn := func() {
			t.Helper()
			if err := poll(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		turn()
		report(recorded(a, s.clock.now()), recorded(b, s.clock.now()), recorded(theirs, s.clock.now()))
		for range 5 { // read again and again, handed out once
			turn()
		}
		count := func(tail *management.Tail) (n int) {
			for {
				select {
				case c := <-tail.Records():
					if c.Tenant != who.TenantID {
						t.Errorf("another tenant's record: %+v", c)
					}
					n++
				default:
					return n
				}
			}
		}
		if n, m := count(all), count(one); n != 2 || m != 1 {
			t.Errorf("%d and %d records", n, m)
		}
		for range 2 {
			var many []edgereport.Connection
			for range management.TailBuffer * 3 / 4 {
				many = append(many, recorded(a, s.clock.now()))
			}
			report(many...)
			turn()
		}
		if n, dropped := count(all), all.Dropped(); n != management.TailBuffer || dropped != int64(management.TailBuffer/2) || all.Dropped() != 0 {
			t.Errorf("%d records, %d dropped", n, dropped)
		}
		one.Close()
		all.Close()
		report(recorded(b, s.clock.now()))
		turn()
		if n := count(one); n != 0 {
			t.Errorf("%d records after the end", n)
		}
		for range 10 {
			if _, err := s.TailConnections(t.Context(), who, management.ConnectionQuery{}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.TailConnections(t.Context(), who, management.ConnectionQuery{}); management.CodeOf(err) != management.RateLimited {
			t.Errorf("too many streams: %v", err)
		}
		if _, err := s.TailConnections(t.Context(), other, management.ConnectionQuery{}); err != nil {
			t.Errorf("one tenant keeps another from streams: %v", err)
		}
	})
}

func TestRetention(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who, other, third := s.tenant(trusted), s.tenant(trusted), s.tenant(trusted)
		d, theirs, gone := s.create(who, "a.example.com"), s.create(other, "b.example.com"), s.create(third, "c.example.com")
		e := s.newEdge("e1")
		all := func() {
			e.tell(func(r *edgereport.Report) {
				for _, d := range []*management.Domain{d, theirs, gone} {
					r.Counters = append(r.Counters, counted(d, s.clock.now(), 1))
					r.Connections = append(r.Connections, recorded(d, s.clock.now()))
				}
			}, false, false)
		}
		retain := func() {
			t.Helper()
			for _, work := range []func() error{
				func() error { return management.FoldUsage(s.Plane, t.Context()) }, func() error { return management.Retain(s.Plane, t.Context()) },
				func() error { return management.RetainUsage(s.Plane, t.Context()) },
			} {
				if err := work(); err != nil {
					t.Fatal(err)
				}
			}
		}
		have := func(who *management.Principal) string {
			t.Helper()
			now := s.clock.now()
			found := s.connections(who, management.ConnectionQuery{From: now.AddDate(-1, 0, 0), To: now.Add(time.Minute)}, 100)
			used, err := s.FindUsage(t.Context(), who, "", now.AddDate(0, 0, -399), now.Add(time.Minute), "day")
			if err != nil {
				t.Fatal(err)
			}
			n := int64(0)
			for _, u := range used {
				n += u.Connections
			}
			return fmt.Sprint(len(found), " ", n)
		}
		all()
		s.clock.pass(8 * 24 * time.Hour)
		all()
		retain()
		if got := have(who); got != "2 2" {
			t.Errorf("after 8 days: %s", got)
		}
		s.update(func(tx management.Tx) error {
			if err := management.TenantChanged(s.Plane, tx, &management.Tenant{ID: other.TenantID, DeletedAt: s.clock.now()}); err != nil {
				return err
			}
			return management.PurgeDomain(s.Plane, tx, third.TenantID, gone.ID)
		})
		retain()
		if got := have(other); got != "0 0" {
			t.Errorf("of the deleted tenant: %s", got)
		}
		if got := have(third); got != "2 2" {
			t.Errorf("of the deleted domain, at once: %s", got)
		}
		s.clock.pass(7 * 24 * time.Hour)
		retain()
		if got := have(who); got != "1 2" {
			t.Errorf("after 15 days: %s", got)
		}
		s.clock.pass(24 * 24 * time.Hour)
		retain()
		if got := have(third); got != "0 0" {
			t.Errorf("of the deleted domain, after 31 days: %s", got)
		}
		if got := s.edges(); len(got) != 0 {
			t.Errorf("an edge that is silent for 30 days: %v", got)
		}
		s.clock.pass(400 * 24 * time.Hour)
		retain()
		if got := have(who); got != "0 0" {
			t.Errorf("after more than a year: %s", got)
		}
	})
}
