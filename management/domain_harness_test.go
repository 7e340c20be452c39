package management_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// site is a Plane for tests of domains: real storage and vault, a world of DNS that does as told, a clock that stands.
type site struct {
	*management.Plane
	t     *testing.T
	store *store.Store
	world *world
	clock *standingClock
	edge  uint64 // sequence of the last report
}

const targetAddr = "203.0.113.10"

func eachSite(t *testing.T, fn func(t *testing.T, s *site)) {
	t.Helper()
	storetest.Each(t, func(t *testing.T, st *store.Store) { fn(t, newSite(t, st, nil)) })
}

// newSite returns an instance on that store; a nil world is a new one.
func newSite(t *testing.T, st *store.Store, w *world) *site {
	t.Helper()
	if w == nil {
		w = &world{names: make(map[string]seen)}
	}
	s := &site{t: t, store: st, world: w, clock: &standingClock{at: time.Now().UTC().Truncate(time.Second)}}
	s.Plane = s.planeWith(vault.NewKey())
	return s
}

func (s *site) planeWith(keys ...vault.Key) *management.Plane {
	s.t.Helper()
	sealer, err := vault.New(keys...)
	if err != nil {
		s.t.Fatal(err)
	}
	policy, err := netpolicy.New([]string{"10.0.0.0/8"})
	if err != nil {
		s.t.Fatal(err)
	}
	public, err := url.Parse("https://console.pqproxy.test:8443")
	if err != nil {
		s.t.Fatal(err)
	}
	p, err := management.New(management.Config{
		SetupToken: setupToken, PublicURL: public, UpstreamPolicy: policy,
		Targets: []management.Target{{Type: "a", Value: targetAddr}, {Type: "cname", Value: "edge.pqproxy.test"}},
	}, management.Parts{
		Store: s.store, Sealer: sealer, Passwords: &cheapPasswords{}, Resolver: s.world, Prober: s.world,
		Log: slog.New(slog.DiscardHandler), Clock: s.clock.now,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// tenant makes a tenant and returns who may do everything in it.
func (s *site) tenant(edit func(*management.Tenant)) *management.Principal {
	s.t.Helper()
	now := s.clock.now()
	row := &management.Tenant{ID: management.NewID(management.TenantID), Name: "T", MaxDomains: 1000, Version: 1, CreatedAt: now, UpdatedAt: now}
	if edit != nil {
		edit(row)
	}
	s.update(func(tx management.Tx) error { return tx.InsertTenant(row) })
	return &management.Principal{TenantID: row.ID, APIKeyID: management.NewID(management.APIKeyID), Scopes: management.Scopes{management.All}, RequestID: "req"}
}

func trusted(t *management.Tenant) { t.Trusted = true }

func (s *site) update(fn func(management.Tx) error) {
	s.t.Helper()
	if err := s.store.Update(context.Background(), fn); err != nil {
		s.t.Fatal(err)
	}
}

// create adds a domain of that name with one upstream.
func (s *site) create(who *management.Principal, name string) *management.Domain {
	s.t.Helper()
	return s.createWith(who, `{"name":"`+name+`","upstreams":[{"dial":"10.0.0.5:8443"}]}`)
}

func (s *site) createWith(who *management.Principal, body string) *management.Domain {
	s.t.Helper()
	d, err := s.CreateDomain(s.t.Context(), who, []byte(body))
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// byocBody is a body of a domain with its own pair.
func byocBody(name, chain, key string) string {
	text, err := json.Marshal(map[string]any{
		"name": name, "upstreams": []any{map[string]any{"dial": "10.0.0.5:8443"}},
		"certificate": map[string]any{"source": "byoc", "chain_pem": chain, "key_pem": key},
	})
	if err != nil {
		panic(err)
	}
	return string(text)
}

func (s *site) check(who *management.Principal, id string) *management.Domain {
	s.t.Helper()
	d, err := s.CheckDomain(s.t.Context(), who, id)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s *site) find(who *management.Principal, id string) *management.Domain {
	s.t.Helper()
	d, err := s.FindDomain(s.t.Context(), who, id)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// feed returns what edges are told after a revision: the records, keys included, by name; "" for what was removed.
func (s *site) feed(after uint64) map[string]string {
	s.t.Helper()
	records := make(map[string]string)
	err := s.store.View(s.t.Context(), func(tx management.Tx) error {
		last := after
		return tx.EachFeedRecord(after, func(r *management.FeedRecord) error {
			if r.Revision < last {
				s.t.Errorf("revision %d comes behind %d", r.Revision, last)
			}
			last = r.Revision
			if r.Removed {
				records[r.Name] = ""
				return nil
			}
			text, err := management.AppendFeedRecord(s.Plane, nil, r)
			if err != nil {
				return err
			}
			if _, err := domain.Parse(text, domain.Remote); err != nil {
				s.t.Errorf("the edge would refuse %s: %v", r.Name, err)
			}
			records[r.Name] = string(text)
			return nil
		})
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return records
}

func (s *site) revision() (n uint64) {
	s.t.Helper()
	err := s.store.View(s.t.Context(), func(tx management.Tx) (err error) {
		n, err = tx.Revision()
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// report sends a report of the one edge, with that revision and what else is given as JSON members.
func (s *site) report(revision uint64, members string) {
	s.t.Helper()
	s.edge++
	if members != "" {
		members = "," + members
	}
	body := `{"edge":{"name":"e1","region":"","version":"1","started_at":"2026-01-01T00:00:00Z"},"sequence":` + itoa(s.edge) +
		`,"sent_at":"` + s.clock.now().Format(time.RFC3339) + `","revision":` + itoa(revision) + members + `}`
	_, err := s.Report(s.t.Context(), &management.Principal{EdgeTokenID: management.NewID(management.EdgeTokenID)}, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := management.WalkStatuses(s.Plane, s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

func itoa(n uint64) string {
	text, _ := json.Marshal(n)
	return string(text)
}

// world is DNS, web servers and upstreams that do as told.
type world struct {
	mu    sync.Mutex
	names map[string]seen
	hook  func(name string) // called while a name is being looked at
	asked map[string]int
}

// seen is what is to be seen of a name.
type seen struct {
	dns  management.Found // "": absent
	txts []string
	http string
	down bool // nobody answers
	caa  management.Found
}

func (w *world) set(name string, s seen) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[name] = s
}

func (w *world) get(name string) seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asked == nil {
		w.asked = make(map[string]int)
	}
	w.asked[name]++
	return w.names[name]
}

// txt is what proves the claim d by DNS.
func txt(d *management.Domain) string {
	for _, r := range d.Records {
		if r.Purpose == management.ForOwnership {
			return r.Value
		}
	}
	return "none"
}

func (w *world) Look(_ context.Context, q management.Lookup) management.Observation {
	at := w.get(q.Name)
	if w.hook != nil {
		w.hook(q.Name)
	}
	if at.down {
		unknown := management.Finding{State: management.FoundUnknown, Detail: "No name server answered in time."}
		return management.Observation{Traffic: unknown, Ownership: unknown, CAA: unknown}
	}
	o := management.Observation{
		Traffic:   management.Finding{State: management.FoundAbsent, Detail: "It has no address."},
		Ownership: management.Finding{State: management.FoundAbsent, Detail: "There is no TXT record."},
		CAA:       management.Finding{State: management.FoundOK},
	}
	if at.dns != "" {
		o.Traffic.State = at.dns
	}
	if at.caa != "" {
		o.CAA.State = at.caa
	}
	for _, text := range at.txts {
		if o.Ownership.State = management.FoundWrong; text == q.Ownership {
			o.Ownership.State = management.FoundOK
			break
		}
	}
	for _, t := range q.Targets {
		o.Records = append(o.Records, management.Record{Purpose: management.ForTraffic, Type: strings.ToUpper(t.Type), Name: q.Name, Value: t.Value,
			Seen: []string{}, OK: o.Traffic.State == management.FoundOK})
	}
	o.Records = append(o.Records, management.Record{Purpose: management.ForOwnership, Type: "TXT", Name: "_pqproxy." + strings.TrimPrefix(q.Name, "*."),
		Value: q.Ownership, Seen: at.txts, OK: o.Ownership.State == management.FoundOK})
	return o
}

func (w *world) Prove(_ context.Context, name, _, want string) management.Finding {
	switch at := w.get(name); {
	case at.down:
		return management.Finding{State: management.FoundUnknown, Detail: "Nobody answered."}
	case at.http == "":
		return management.Finding{State: management.FoundAbsent}
	case at.http == want:
		return management.Finding{State: management.FoundOK}
	}
	return management.Finding{State: management.FoundWrong}
}

func (w *world) PublicSuffix(name string) bool { return name == "com" || name == "co.uk" }

func (w *world) Probe(_ context.Context, d *domain.Domain, policy *netpolicy.Policy) []management.UpstreamProbe {
	found := make([]management.UpstreamProbe, len(d.Upstreams))
	for i, u := range d.Upstreams {
		found[i].Dial, found[i].Reachable = u.Dial, policy.CheckDial(u.Dial) == nil
	}
	return found
}
