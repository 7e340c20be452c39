package management_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/internal/id"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// anEdge is one that reports by hand.
type anEdge struct {
	s *site
	edgereport.Report
}

func (s *site) newEdge(name string) *anEdge {
	e := &anEdge{s: s}
	e.Edge = edgereport.Edge{Name: name, Region: "gru", Version: "v1", StartedAt: s.clock.now().Truncate(time.Millisecond)}
	return e
}

// anEdgePrincipal is who reports.
func anEdgePrincipal() *management.Principal {
	return &management.Principal{EdgeTokenID: management.NewID(management.EdgeTokenID)}
}

// next is the next report, with what edit puts into it.
func (e *anEdge) next(edit func(*edgereport.Report)) string {
	e.Sequence++
	r := e.Report
	r.SentAt = e.s.clock.now()
	if edit != nil {
		edit(&r)
	}
	text, err := json.Marshal(&r)
	if err != nil {
		e.s.t.Fatal(err)
	}
	return string(text)
}

func (s *site) send(body string) (*management.EdgeAnswer, error) {
	return s.Report(context.Background(), anEdgePrincipal(), strings.NewReader(body))
}

// tell sends the next report and expects that answer.
func (e *anEdge) tell(edit func(*edgereport.Report), duplicate, resend bool) {
	e.s.t.Helper()
	e.repeat(e.next(edit), duplicate, resend)
}

func (e *anEdge) repeat(body string, duplicate, resend bool) {
	e.s.t.Helper()
	answer, err := e.s.send(body)
	if err != nil {
		e.s.t.Fatal(err)
	}
	if answer.Duplicate != duplicate || answer.Resend != resend {
		e.s.t.Fatalf("answered %+v, want duplicate %v, resend %v", *answer, duplicate, resend)
	}
}

// counted is a counter of n connections, of which half are post-quantum.
func counted(d *management.Domain, minute time.Time, n int64) edgereport.Counter {
	buckets := make([]int64, edgereport.BucketCount)
	buckets[5] = n
	return edgereport.Counter{
		Domain: d.Name, Tenant: d.Tenant, Minute: minute.Truncate(time.Minute), Connections: n, BytesIn: 10 * n, BytesOut: 100 * n,
		Groups: map[string]int64{"X25519MLKEM768": n / 2, "X25519": n - n/2}, EndReasons: map[string]int64{"done": n},
		HelloRetries: n / 4, Handshakes: buckets,
	}
}

// recorded is a record.
func recorded(d *management.Domain, at time.Time) edgereport.Connection {
	return edgereport.Connection{
		Time: at, ID: id.New().String(), Domain: d.Name, Tenant: d.Tenant, ServerName: d.Name, ClientIP: netip.MustParseAddr("198.51.100.23"),
		ClientPort: 4711, Group: "X25519MLKEM768", PostQuantum: true, TLSVersion: "TLS 1.3", EndReason: "done", BytesIn: 5, Duration: 0.25,
	}
}

// usedTotal returns the sums of all of the tenant's domains.
func (s *site) usedTotal(who *management.Principal) (sum management.Usage) {
	s.t.Helper()
	now := s.clock.now()
	used, err := s.FindUsage(s.t.Context(), who, "", now.Add(-72*time.Hour), now.Add(time.Hour), management.StepTotal)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, u := range used {
		sum.Connections += u.Connections
		sum.BytesIn += u.BytesIn
		sum.BytesOut += u.BytesOut
	}
	return sum
}

// connections returns all records of a tenant, by pages.
func (s *site) connections(who *management.Principal, q management.ConnectionQuery, limit int) (all []*management.Connection) {
	s.t.Helper()
	now := s.clock.now()
	if q.From.IsZero() {
		q.From, q.To = now.Add(-72*time.Hour), now.Add(time.Hour)
	}
	for cursor := ""; ; {
		some, next, err := s.FindConnections(s.t.Context(), who, q, management.Page{Limit: limit, Cursor: cursor})
		if err != nil {
			s.t.Fatal(err)
		}
		if all = append(all, some...); next == "" {
			return all
		}
		if len(some) != limit {
			s.t.Fatalf("a page of %d instead of %d", len(some), limit)
		}
		cursor = next
	}
}

// Whatever is repeated, and however reports of several edges and the folding of sums come together, each connection is counted
// once and each record is there once.
func TestReportCountedOnce(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		domains := []*management.Domain{s.create(who, "a.example.com"), s.create(who, "b.example.com")}
		const edges, reports = 4, 12
		var want struct {
			sync.Mutex
			connections int64
			ids         []string
		}
		folding, stop := context.WithCancel(t.Context())
		var all, folder sync.WaitGroup
		folder.Go(func() {
			for folding.Err() == nil {
				if _, err := s.store.FoldUsage(context.Background(), s.clock.now().Add(-48*time.Hour).Truncate(time.Minute), 3); err != nil {
					t.Error(err)
				}
			}
		})
		for n := range edges {
			e := s.newEdge(fmt.Sprint("edge-", n))
			random := rand.New(rand.NewPCG(1, uint64(n)))
			all.Go(func() {
				for range reports {
					body := e.next(func(r *edgereport.Report) {
						for range 1 + random.IntN(4) {
							d := domains[random.IntN(2)]
							at := s.clock.now().Add(-time.Duration(random.IntN(3000)) * time.Minute)
							count := int64(1 + random.IntN(9))
							r.Counters = append(r.Counters, counted(d, at, count))
							record := recorded(d, at)
							r.Connections = append(r.Connections, record)
							want.Lock()
							want.connections += count
							want.ids = append(want.ids, record.ID)
							want.Unlock()
						}
					})
					var tries sync.WaitGroup
					for range 1 + random.IntN(3) { // at once: the answer to the first may have been lost
						tries.Go(func() {
							if _, err := s.send(body); err != nil {
								t.Error(err)
							}
						})
					}
					tries.Wait()
					if answer, err := s.send(body); err != nil || !answer.Duplicate {
						t.Error("a repetition is not seen:", err)
					}
				}
			})
		}
		all.Wait()
		check := func() {
			t.Helper()
			if got := s.usedTotal(who); got.Connections != want.connections || got.BytesIn != 10*want.connections || got.BytesOut != 100*want.connections {
				t.Errorf("counted %+v, want %d connections", got, want.connections)
			}
			var ids []string
			for _, c := range s.connections(who, management.ConnectionQuery{}, 7) {
				ids = append(ids, c.ID)
			}
			slices.Sort(ids)
			slices.Sort(want.ids)
			if !slices.Equal(ids, want.ids) {
				t.Errorf("there are %d records, want %d", len(ids), len(want.ids))
			}
		}
		check()
		stop()
		folder.Wait()
		if err := management.FoldUsage(s.Plane, t.Context()); err != nil {
			t.Fatal(err)
		}
		check()
	})
}

func TestReportSequences(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		d := s.create(who, "a.example.com")
		valid := func(r *edgereport.Report) {
			notAfter := s.clock.now().Add(24 * time.Hour)
			r.Revision = s.revision()
			r.Certificates = []edgereport.CertificateState{{Name: d.Name, Source: "acme", State: edgereport.CertificateValid, NotAfter: &notAfter, Issuer: "R3"}}
		}
		live := func() int { t.Helper(); return s.edgeState(who, d.ID).Live }
		one := func(r *edgereport.Report) { r.Counters = []edgereport.Counter{counted(d, s.clock.now(), 1)} }

		e := s.newEdge("e1")
		first := e.next(valid)
		e.repeat(first, false, false)
		if live() != 1 {
			t.Fatal("not live after the first report")
		}
		e.repeat(first, true, false)

		e.Sequence++ // one is missing
		gap := e.next(one)
		e.repeat(gap, false, true)
		if live() != 0 {
			t.Fatal("states are believed after a gap")
		}
		e.repeat(gap, true, true) // the answer was lost: the wish stays
		e.tell(valid, false, false)
		if live() != 1 {
			t.Fatal("not live after all states came again")
		}

		s.clock.pass(time.Second)
		again := s.newEdge("e1") // a restart
		again.tell(func(r *edgereport.Report) {}, false, false)
		if live() != 0 {
			t.Fatal("the states of the life before are believed")
		}
		again.tell(valid, false, false)
		if live() != 1 {
			t.Fatal("not live after the restart")
		}

		// The first life goes on: it is another edge of that name. It counts, and says nothing of states.
		e.tell(func(r *edgereport.Report) {
			one(r)
			r.Certificates = []edgereport.CertificateState{{Name: d.Name, State: edgereport.CertificateGone}}
		}, false, false)
		if live() != 1 {
			t.Fatal("another life took the states away")
		}
		if s.edges()[0].Conflict {
			t.Fatal("one late report is no conflict")
		}
		s.clock.pass(30 * time.Second)
		again.tell(nil, false, false)
		e.tell(one, false, false)
		if edge := s.edges()[0]; !edge.Conflict || !edge.StartedAt.Equal(again.Edge.StartedAt) {
			t.Fatalf("no conflict: %+v", edge)
		}

		// The second life falls silent, the first takes over, and has to tell all.
		s.clock.pass(2 * time.Minute)
		e.tell(one, false, true)
		e.tell(valid, false, false)
		if live() != 1 || s.usedTotal(who).Connections != 4 {
			t.Fatalf("%d live, %d counted", live(), s.usedTotal(who).Connections)
		}

		late := s.newEdge("e2")
		late.Sequence = 7
		late.tell(valid, false, true)
	})
}

// edges lists them as an operator sees them.
func (s *site) edges() []*management.Edge {
	s.t.Helper()
	edges, _, err := s.FindEdges(s.t.Context(), &management.Principal{UserID: "u", Scopes: management.Scopes{management.Platform}}, management.Page{Limit: 200})
	if err != nil {
		s.t.Fatal(err)
	}
	return edges
}

// edgeState returns what edges say of a domain.
func (s *site) edgeState(who *management.Principal, domainID string) (state management.EdgeState) {
	s.t.Helper()
	err := s.store.View(s.t.Context(), func(tx management.Tx) error {
		row, err := tx.FindDomainByID(who.TenantID, domainID)
		if err != nil {
			return err
		}
		states, err := management.StatesOnEdges(s.Plane, tx, []*management.DomainRow{row})
		state = states[domainID]
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return state
}

func TestEdgeStates(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		d := s.create(who, "a.example.com")
		notAfter := s.clock.now().Add(100 * time.Hour).Truncate(time.Second)
		sooner := notAfter.Add(-time.Hour)
		holding := func(until time.Time) func(*edgereport.Report) {
			return func(r *edgereport.Report) {
				r.Revision = s.revision()
				r.Certificates = []edgereport.CertificateState{{Name: d.Name, Source: "acme", Issuer: "R3", State: edgereport.CertificateValid, NotAfter: &until}}
			}
		}
		if state := s.edgeState(who, d.ID); state.Of != 0 || !state.LiveSince.Equal(time.Time{}) {
			t.Fatalf("without edges: %+v", state)
		}
		e1, e2 := s.newEdge("e1"), s.newEdge("e2")
		e1.tell(holding(notAfter), false, false)
		s.clock.pass(time.Second)
		e2.tell(func(r *edgereport.Report) {
			r.Revision = s.revision()
			r.Rejected = []edgereport.Rejected{{Name: d.Name, Field: "upstreams[0].dial", Detail: "denied"}}
		}, false, false)
		if state := s.edgeState(who, d.ID); state.Of != 2 || state.Applied != 1 || state.Live != 1 || state.Rejected != "upstreams[0].dial: denied" || !state.LiveSince.IsZero() {
			t.Fatalf("rejected by one: %+v", state)
		}
		s.clock.pass(time.Second)
		e2.tell(func(r *edgereport.Report) {
			holding(sooner)(r)
			r.Rejected = []edgereport.Rejected{{Name: d.Name}}
			r.Upstreams = []edgereport.UpstreamState{{Domain: d.Name, Dial: "10.0.0.5:8443", Error: "refused"}}
		}, false, false)
		state := s.edgeState(who, d.ID)
		if state.Of != 2 || state.Live != 2 || state.Rejected != "" || !state.LiveSince.Equal(s.clock.now()) {
			t.Fatalf("live: %+v", state)
		}
		if c := state.Certificate; c.Held != 2 || !c.NotAfter.Equal(sooner) || c.Issuer != "R3" || c.Source != "acme" {
			t.Errorf("certificate: %+v", c)
		}
		if len(state.Upstreams) != 1 || state.Upstreams[0] != (management.EdgeUpstream{Dial: "10.0.0.5:8443", Error: "refused", Down: 1}) {
			t.Errorf("upstreams: %+v", state.Upstreams)
		}
		e2.tell(func(r *edgereport.Report) {
			r.Revision = s.revision()
			r.Upstreams = []edgereport.UpstreamState{{Domain: d.Name, Dial: "10.0.0.5:8443", Healthy: true}}
		}, false, false)
		if state := s.edgeState(who, d.ID); len(state.Upstreams) != 0 || state.Live != 2 {
			t.Errorf("the upstream works again: %+v", state)
		}

		s.clock.pass(80 * time.Second)
		e1.tell(func(r *edgereport.Report) { r.Revision = s.revision() }, false, false)
		s.clock.pass(20 * time.Second)
		if state := s.edgeState(who, d.ID); state.Of != 1 || state.Live != 1 {
			t.Errorf("one edge is stale: %+v", state)
		}
		if edges := s.edges(); len(edges) != 2 || edges[0].State != management.EdgeUp || edges[1].State != management.EdgeStale || edges[0].Region != "gru" {
			t.Errorf("edges: %+v", edges)
		}

		changed, err := s.PatchDomain(t.Context(), who, d.ID, []byte(`{"post_quantum":"require"}`), "")
		if err != nil {
			t.Fatal(err)
		}
		if state := s.edgeState(who, changed.ID); state.Applied != 0 || state.Live != 0 {
			t.Errorf("a change that no edge has: %+v", state)
		}
	})
}

// The tenant that the edge names decides whose a counter is; without one, whoever has proven the name.
func TestReportNames(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who, other := s.tenant(trusted), s.tenant(nil)
		d := s.create(who, "a.example.com")
		theirs := s.create(other, "a.example.com") // waits for proof
		e := s.newEdge("e1")
		e.tell(func(r *edgereport.Report) {
			now := s.clock.now()
			bare, foreign, label := counted(d, now, 3), counted(d, now, 5), counted(d, now, 7)
			bare.Tenant, foreign.Tenant, label.Tenant = "", theirs.Tenant, "a static label"
			gone := counted(d, now, 11)
			gone.Domain = "nobody.example.com"
			r.Counters = []edgereport.Counter{counted(d, now, 1), bare, foreign, label, gone}
			record := recorded(d, now)
			record.Domain = "nobody.example.com"
			r.Connections = []edgereport.Connection{record}
			r.Certificates = []edgereport.CertificateState{{Name: "nobody.example.com", State: edgereport.CertificateValid}}
		}, false, false)
		if got := s.usedTotal(who).Connections; got != 4 {
			t.Errorf("the owner has %d", got)
		}
		if got := s.usedTotal(other).Connections; got != 5 {
			t.Errorf("the other has %d", got)
		}
		if got := s.connections(who, management.ConnectionQuery{}, 10); len(got) != 0 {
			t.Errorf("a record of nobody's domain: %v", got)
		}
		if edge := s.edges()[0]; edge.UnknownDomains != 18 {
			t.Errorf("%d unknown", edge.UnknownDomains)
		}
	})
}

func TestReportClock(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		d := s.create(who, "a.example.com")
		e := s.newEdge("e1")
		now := s.clock.now()
		e.tell(func(r *edgereport.Report) {
			r.Counters = []edgereport.Counter{counted(d, now.AddDate(10, 0, 0), 1), counted(d, now.AddDate(-10, 0, 0), 2), counted(d, now.Add(-50*time.Hour), 4)}
			r.Connections = []edgereport.Connection{recorded(d, now.AddDate(1, 0, 0)), recorded(d, now.AddDate(-1, 0, 0))}
		}, false, false)
		for range 2 {
			if got := s.usedTotal(who).Connections; got != 7 {
				t.Errorf("%d of 7 are counted", got)
			}
			if err := management.FoldUsage(s.Plane, t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := s.connections(who, management.ConnectionQuery{}, 10); len(got) != 2 || !got[0].Time.Equal(now) {
			t.Errorf("records: %v", got)
		}
	})
}

func TestReportRefused(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		d := s.create(who, "a.example.com")
		good := s.newEdge("e1").next(func(r *edgereport.Report) { r.Counters = []edgereport.Counter{counted(d, s.clock.now(), 1)} })
		for body, want := range map[string]management.Code{
			``:                                    management.Malformed,
			`{`:                                   management.Malformed,
			`[]`:                                  management.Invalid,
			good + `{}`:                           management.Malformed,
			strings.Replace(good, "e1", "", 1):    management.Invalid,
			good[:len(good)-1] + `,"sequence":2}`: management.Invalid,
			good + strings.Repeat(" ", management.MaxReport): management.TooLarge,
		} {
			_, err := s.send(body)
			if code := management.CodeOf(err); code != want {
				t.Errorf("%.60q: %v, want %s", body, err, want)
			}
			if err != nil && strings.Contains(err.Error(), "a.example.com") {
				t.Errorf("the error quotes the report: %v", err)
			}
		}
		for _, who := range []*management.Principal{nil, who, {UserID: "u", Scopes: management.Scopes{management.Platform}}} {
			if _, err := s.Report(t.Context(), who, strings.NewReader(good)); management.CodeOf(err) != management.Forbidden && management.CodeOf(err) != management.Unauthenticated {
				t.Errorf("%+v may report: %v", who, err)
			}
			if _, err := s.Feed(t.Context(), who, management.FeedRequest{}); management.CodeOf(err) != management.Forbidden && management.CodeOf(err) != management.Unauthenticated {
				t.Errorf("%+v may read the feed: %v", who, err)
			}
		}
		if got := s.usedTotal(who).Connections; got != 0 {
			t.Errorf("%d counted of refused reports", got)
		}
	})
}

// One report may name a state twice, and may name 5,000: the database must take it.
func TestReportManyStates(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		d := s.create(who, "a.example.com")
		e := s.newEdge("e1")
		e.tell(func(r *edgereport.Report) {
			for i := range 2000 {
				r.Rejected = append(r.Rejected, edgereport.Rejected{Name: d.Name, Detail: fmt.Sprint("no ", i)})
				r.Certificates = append(r.Certificates, edgereport.CertificateState{Name: d.Name, State: edgereport.CertificateFailed, Error: fmt.Sprint("no ", i)})
				r.Upstreams = append(r.Upstreams, edgereport.UpstreamState{Domain: d.Name, Dial: fmt.Sprint("10.0.0.5:", i+1), Error: "refused"})
				r.Counters = append(r.Counters, counted(d, s.clock.now(), 1))
				r.Connections = append(r.Connections, recorded(d, s.clock.now()))
			}
		}, false, false)
		if state := s.edgeState(who, d.ID); state.Rejected != "no 1999" || state.Certificate.Error != "no 1999" || len(state.Upstreams) != 2000 {
			t.Errorf("%q %q %d", state.Rejected, state.Certificate.Error, len(state.Upstreams))
		}
		if got := s.usedTotal(who).Connections; got != 2000 {
			t.Errorf("%d counted", got)
		}
		s.clock.pass(time.Second)
		s.newEdge("e1").tell(nil, false, false) // a restart: all of it is forgotten, and removed in time
		if err := management.Retain(s.Plane, t.Context()); err != nil {
			t.Fatal(err)
		}
		if state := s.edgeState(who, d.ID); state.Rejected != "" || len(state.Upstreams) != 0 {
			t.Errorf("states of the life before: %+v", state)
		}
	})
}

// What an edge reports moves the domain's status without anybody asking.
func TestReportMovesStatus(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		s.world.set("a.example.com", seen{dns: management.FoundOK})
		d := s.create(who, "a.example.com")
		s.check(who, d.ID)
		status := func() (status management.Status) {
			err := s.store.View(t.Context(), func(tx management.Tx) error {
				row, err := tx.FindDomainByID(who.TenantID, d.ID)
				if err == nil {
					status = row.Status
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return status
		}
		e := s.newEdge("e1")
		e.tell(nil, false, false)
		if status() == management.Active {
			t.Fatal("active without an edge")
		}
		e.tell(func(r *edgereport.Report) {
			notAfter := s.clock.now().Add(90 * 24 * time.Hour)
			r.Certificates = []edgereport.CertificateState{{Name: d.Name, Source: "acme", State: edgereport.CertificateValid, NotAfter: &notAfter}}
		}, false, false)
		e.tell(func(r *edgereport.Report) { r.Revision = s.revision() }, false, false)
		if err := management.RefreshTouched(s.Plane, t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := status(); got != management.Active {
			t.Errorf("status %s", got)
		}
	})
}

func TestPostQuantumGroup(t *testing.T) {
	for group, want := range map[string]bool{
		"X25519MLKEM768": true, "SecP256r1MLKEM768": true, "SecP384r1MLKEM1024": true, "X25519": false, "CurveP256": false, "CurveID(1)": false, "": false,
	} {
		if management.PostQuantumGroup(group) != want {
			t.Errorf("%q is not %v", group, want)
		}
	}
}
