//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

func newTestPlan(t *testing.T) *plan {
	t.Helper()
	p, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return newPlan(p, upstreams{plain: [2]string{"127.0.0.1:1", "127.0.0.1:2"}, tls: [2]string{"127.0.0.1:3", "127.0.0.1:4"}}, 6)
}

// The changes are the same in every run, but for the certificates in them.
func TestPlanIsTheSameTwice(t *testing.T) {
	one, two := newTestPlan(t), newTestPlan(t)
	two.pki = one.pki
	for _, source := range []string{sourceAdmin, sourceRemote} {
		one.sources[source].fill(100)
		two.sources[source].fill(100)
		for range 20 {
			a, b := one.changes(source, 30), two.changes(source, 30)
			if !slices.EqualFunc(a, b, func(a, b change) bool { return a.name == b.name && bytes.Equal(a.record, b.record) }) {
				t.Fatalf("changes of source %s differ", source)
			}
		}
	}
}

// Applied one after the other, the changes lead to what the plan says there is; no name comes twice in one change set; a
// name in use is never removed, keeps its first upstream, and is changed by each touch.
func TestPlanChanges(t *testing.T) {
	for _, source := range []string{sourceAdmin, sourceRemote} {
		p := newTestPlan(t)
		s := p.sources[source]
		s.fill(200)
		live := recordsOf(t, p.elements(source), source)
		kinds := map[string]int{}
		for range 100 {
			changes := p.changes(source, 40)
			domains, removed := split(changes)
			set := recordsOf(t, domains, source)
			if len(set)+len(removed) != 40 {
				t.Fatalf("a change set of 40 has %d domains and %d removed", len(set), len(removed))
			}
			for _, name := range removed {
				if live[name] == nil || strings.HasSuffix(name, s.zone) {
					t.Errorf("%s is removed and was not there or is in use", name)
				}
				delete(live, name)
				kinds["removed"]++
			}
			for name, d := range set {
				before := live[name]
				switch {
				case before == nil:
					kinds["added"]++
				case string(mustJSON(before)) == string(mustJSON(d)):
					t.Errorf("%s is changed and the same", name)
				case strings.HasSuffix(name, s.zone):
					kinds["touched"]++
					if before.Upstreams[0].Dial != d.Upstreams[0].Dial || before.Tenant != d.Tenant {
						t.Errorf("%s is in use and has another upstream or tenant", name)
					}
				default:
					kinds["changed"]++
				}
				live[name] = d
			}
		}
		for _, kind := range []string{"added", "changed", "removed", "touched"} {
			if kinds[kind] < 200 {
				t.Errorf("of 4,000 changes %v, want some hundreds of each", kinds)
			}
		}
		s.replaceAll()
		want := recordsOf(t, p.elements(source), source)
		if got := slices.Sorted(maps.Keys(live)); !slices.Equal(got, slices.Sorted(maps.Keys(want))) || len(got) != p.count(source) {
			t.Errorf("source %s has %d domains, the plan says %d, which are others", source, len(got), p.count(source))
		}
	}
}

// recordsOf reads elements as the edge does.
func recordsOf(t *testing.T, elements []byte, source string) map[string]*domain.Domain {
	t.Helper()
	records := map[string]*domain.Domain{}
	document := `{"domains":[` + string(elements) + `]}`
	_, err := domain.ReadSet(strings.NewReader(document), domain.Source(source), domain.SetOptions{
		Domain:  func(d *domain.Domain) error { records[d.Name] = d; return nil },
		Refused: func(r domain.Refusal) { t.Errorf("%s is refused: %v", r.Name, r.Err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return records
}

func TestPlanStatic(t *testing.T) {
	p := newTestPlan(t)
	s := p.sources[sourceStatic]
	for i := range p.inUse {
		for range 12 {
			if _, err := domain.Parse(p.touch(s, i).record, domain.Static); err != nil {
				t.Error(err)
			}
		}
	}
	if names := p.usedNames(); len(names) != 18 || names[0] != "use-0"+staticZone || names[1] != "use-0"+adminZone || names[2] != "use-0"+remoteZone {
		t.Errorf("names in use are %q", names)
	}
}

func TestChangeSet(t *testing.T) {
	domains, removed := split([]change{{"a", []byte(`{"name":"a"}`)}, {"b", nil}, {"c", []byte(`{"name":"c"}`)}})
	got, err := json.Marshal(changeSet(domains, removed))
	if want := `{"domains":[{"name":"a"},{"name":"c"}],"removed":["b"]}`; err != nil || string(got) != want {
		t.Errorf("the change set is %s, %v, want %s", got, err, want)
	}
	if got := mustJSON(changeSet(nil, nil)); string(got) != `{"domains":[]}` {
		t.Errorf("a full set of none is %s", got)
	}
}

// Both proxies are told the same of names in use.
func TestRoutesAreLikeDomains(t *testing.T) {
	p := newTestPlan(t)
	r := &routesRun{stage: &stage{bench: &bench{pki: p.pki}}, plan: p}
	s := p.sources[sourceRemote]
	for touched := range 4 {
		for i := range 2 {
			s.touched[i] = touched
			var d struct {
				Upstreams []struct {
					Dial string
					TLS  *struct{ ServerName string }
				}
				LoadBalancing string `json:"load_balancing"`
			}
			var h struct {
				Upstreams []struct {
					Dial []string
					TLS  *struct{ ServerName string }
				}
				LoadBalancing struct{ Selection struct{ Policy string } } `json:"load_balancing"`
			}
			if err := json.Unmarshal(mustJSON(p.used(s, i)), &d); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(mustJSON(r.usedHandler(s, i)), &h); err != nil {
				t.Fatal(err)
			}
			if len(d.Upstreams) != len(h.Upstreams) || d.LoadBalancing != h.LoadBalancing.Selection.Policy {
				t.Fatalf("%+v and %+v differ", d, h)
			}
			for k := range d.Upstreams {
				if d.Upstreams[k].Dial != h.Upstreams[k].Dial[0] || (d.Upstreams[k].TLS == nil) != (h.Upstreams[k].TLS == nil) {
					t.Errorf("upstream %d of %+v and %+v differ", k, d, h)
				}
			}
		}
	}
}
