package dashboard

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/internal/id"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// maxServed is what a page weighs at most with its styles and scripts as it is served to browsers, which all take gzip. Before that, where
// nothing is compressed, it is maxPageBytes.
const maxServed = 40 << 10

// heavyPages show all of one domain, and are larger than that before they are compressed: where it has twenty edges with something to say, and
// where it has sixteen upstreams in a form.
var heavyPages = map[string]int{
	"/domains/{id}": 84 << 10, "/domains/{id}/setup/done": 72 << 10, "/domains/{id}/upstreams": 124 << 10, "/domains/{id}/setup/upstream": 124 << 10,
}

// heavyWorld is a tenant that has as much as fits of everything, with texts as long as they can be, in which nothing repeats.
type heavyWorld struct {
	*site
	random *rand.Rand
	d      *management.Domain    // the one with everything
	record edgereport.Connection // one of its records
	paths  map[string][]string   // by route
}

const (
	letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	signs   = letters + letters + `ABCDEFGHIJKLMNOPQRSTUVWXYZ .,:/<&"'`
)

func (w *heavyWorld) text(n int, of string) string {
	out := make([]byte, n)
	for i := range out {
		out[i] = of[w.random.IntN(len(of))]
	}
	out[0], out[n-1] = 'a', 'z'
	return string(out)
}

// name is a host name of 253 bytes.
func (w *heavyWorld) name() string {
	return strings.Join([]string{w.text(63, letters), w.text(63, letters), w.text(63, letters), w.text(57, letters), "com"}, ".")
}

func (w *heavyWorld) update(fn func(tx management.Tx) error) {
	w.t.Helper()
	if err := w.store.Update(w.t.Context(), fn); err != nil {
		w.t.Fatal(err)
	}
}

func (w *heavyWorld) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func newHeavyWorld(t *testing.T) *heavyWorld {
	w := &heavyWorld{site: newSite(t), random: rand.New(rand.NewPCG(1, 2)), paths: map[string][]string{}}
	w.fillDomains()
	w.fillPeople()
	w.fillEdges()
	w.fillTraffic()
	w.fillLog()
	return w
}

// fillDomains makes one domain with sixteen upstreams, and more than one page of others, of all statuses, each with a certificate of its own that ends soon.
func (w *heavyWorld) fillDomains() {
	var upstreams []map[string]any
	for range domain.MaxUpstreams {
		upstreams = append(upstreams, map[string]any{"dial": strings.TrimSuffix(w.name(), ".com") + ".net:8443", "region": w.text(128, letters), "tls": map[string]any{
			"server_name": w.name(), "post_quantum": "require"}})
	}
	for i := range 28 {
		body := map[string]any{"name": w.name(), "upstreams": upstreams, "post_quantum": "require"}
		if i > 0 {
			body["upstreams"] = upstreams[:1]
		}
		text, err := json.Marshal(body)
		w.must(err)
		d, err := w.plane.CreateDomain(w.t.Context(), w.root, text)
		w.must(err)
		if i == 0 {
			w.d = d
		}
		w.update(func(tx management.Tx) error {
			row, err := tx.FindDomainByID(d.Tenant, d.ID)
			if err != nil {
				return err
			}
			row.Status, row.Revision = unsettled[i%len(unsettled)], 1
			row.Settings = row.Settings.Clone()
			row.Settings.Certificate.Source = domain.BYOC
			row.CertificateNotAfter = w.now().Add(time.Duration(i) * time.Hour)
			detail := w.text(500, signs)
			row.Facts.DNS = management.Finding{State: management.FoundWrong, Detail: detail, At: w.now()}
			row.Facts.CAA = management.Finding{State: management.FoundWrong, Detail: detail, At: w.now()}
			for range 4 {
				record := management.Record{Purpose: management.ForTraffic, Type: "CNAME", Name: d.Name, Value: w.name()}
				for range 4 {
					record.Seen = append(record.Seen, w.name())
				}
				row.Facts.Records = append(row.Facts.Records, record)
			}
			if err := tx.UpdateDomain(row); err != nil {
				return err
			}
			pair := &management.CertificateRow{
				ID: management.NewID(management.CertificateID), DomainID: d.ID, TenantID: d.Tenant, Key: []byte("sealed"), Issuer: w.text(512, signs), Serial: w.text(64, letters),
				SHA256: w.text(64, letters), KeyType: "ECDSA P-256", NotBefore: w.now(), NotAfter: row.CertificateNotAfter, CreatedAt: w.now(),
			}
			for range 100 {
				pair.Names = append(pair.Names, w.name())
			}
			for range 4 {
				pair.Warnings = append(pair.Warnings, w.text(200, signs))
			}
			return tx.PutCertificate(pair)
		})
	}
	id := w.d.ID
	for _, part := range []string{"", "/connections", "/certificate", "/activity", "/upstreams", "/policy", "/setup/dns", "/setup/upstream", "/setup/policy", "/setup/done"} {
		w.paths["/domains/{id}"+part] = []string{"/domains/" + id + part}
	}
	w.paths["/domains/{id}/setup"] = nil // a redirect
	w.paths["/domains/new"] = []string{"/domains/new"}
	w.paths["/domains"] = []string{"/domains?limit=200", "/domains?q=" + w.d.Name[:200]}
	w.paths["/certificates"] = []string{"/certificates?limit=200", "/certificates?expiring_within=90d", "/certificates?day=" + w.now().AddDate(0, 0, 1).Format(time.DateOnly)}
	w.paths["/"] = []string{"/"}
}

// fillPeople adds members, invitations, keys, tokens and tenants.
func (w *heavyWorld) fillPeople() {
	email := func() string { return w.text(64, letters) + "@" + w.name()[64:] }
	tenant := w.root.TenantID
	var user, key, token, waiting string
	for range 60 {
		w.update(func(tx management.Tx) error {
			u := &management.User{ID: management.NewID(management.UserID), Email: email(), CreatedAt: w.now(), UpdatedAt: w.now()}
			k := &management.APIKey{ID: management.NewID(management.APIKeyID), TenantID: tenant, Name: w.text(128, signs), Prefix: "pqk_abcdefgh", Hash: []byte(u.ID), Version: 1,
				CreatedAt: w.now(), ExpiresAt: w.now().AddDate(1, 0, 0), Scopes: management.Scopes{management.DomainsRead, management.DomainsWrite, management.CertificatesWrite,
					management.ConnectionsRead, management.UsageRead, management.KeysWrite, management.MembersWrite, management.AuditRead}}
			e := &management.EdgeToken{ID: management.NewID(management.EdgeTokenID), Name: w.text(128, signs), Prefix: "pqe_abcdefgh", Hash: []byte(u.ID), CreatedAt: w.now()}
			user, key, token = u.ID, k.ID, e.ID
			for _, err := range []error{tx.InsertUser(u), tx.InsertMember(&management.Member{TenantID: tenant, UserID: u.ID, Role: management.Operator, JoinedAt: w.now(), Version: 1}),
				tx.InsertAPIKey(k), tx.InsertEdgeToken(e)} {
				if err != nil {
					return err
				}
			}
			return nil
		})
		if _, _, err := w.plane.CreateTenant(w.t.Context(), w.root, management.NewTenant{Name: w.text(128, signs), OwnerEmail: email()}); err != nil {
			w.t.Fatal(err)
		}
	}
	for range 10 { // whoever has several carries the names of all of them from page to page
		_, _, err := w.plane.CreateTenant(w.t.Context(), w.root, management.NewTenant{Name: w.text(128, signs)})
		w.must(err)
	}
	for range 48 {
		invited, err := w.plane.CreateInvitation(w.t.Context(), w.root, email(), management.Viewer)
		w.must(err)
		waiting = invited.Invitation.ID
	}
	w.paths["/members"], w.paths["/members/{user}"] = []string{"/members?limit=200"}, []string{"/members/" + user}
	w.paths["/members/invitations/{id}"] = []string{"/members/invitations/" + waiting}
	w.paths["/keys"], w.paths["/keys/{id}"] = []string{"/keys?limit=200"}, []string{"/keys/" + key}
	w.paths["/edges/tokens"], w.paths["/edges/tokens/{id}"] = []string{"/edges/tokens?limit=200"}, []string{"/edges/tokens/" + token}
	w.paths["/tenants"], w.paths["/tenants/{id}"] = []string{"/tenants?limit=200"}, []string{"/tenants/" + tenant}
	for _, path := range []string{"/settings", "/settings/totp", "/logout"} {
		w.paths[path] = []string{path}
	}
	for _, path := range []string{"/login", "/signup", "/forgot", "/verify", "/reset", "/invitation", "/setup"} {
		w.paths[path] = nil // without data of anybody's
	}
}

// fillEdges has more edges than a page shows report, half of which are silent now.
func (w *heavyWorld) fillEdges() {
	for i := range 60 {
		r := w.reporter(w.text(128, letters))
		r.Edge.Region, r.Edge.Version = w.text(128, signs), w.text(100, signs)
		r.tell(func(r *edgereport.Report) {
			r.Revision, r.LiveConnections, r.Draining = 1<<40, 1<<40, true
			until := w.now().Add(time.Hour)
			r.Certificates = append(r.Certificates, edgereport.CertificateState{Name: w.d.Name, Source: "byoc", Issuer: w.text(512, signs), NotAfter: &until, State: edgereport.CertificateValid})
			r.Upstreams = append(r.Upstreams, edgereport.UpstreamState{Domain: w.d.Name, Dial: w.d.Upstreams[i%16].Dial, Error: w.text(512, signs)})
			r.Rejected = append(r.Rejected, edgereport.Rejected{Name: w.d.Name, Field: "upstreams", Detail: w.text(512, signs)})
		})
		if i == 29 {
			w.pass(2 * time.Minute)
		}
	}
	w.paths["/edges"] = []string{"/edges?limit=200"}
}

// fillTraffic adds records, and counters of more than a year.
func (w *heavyWorld) fillTraffic() {
	now := w.now()
	w.reporter("records").tell(func(r *edgereport.Report) {
		for i := range 60 {
			r.Connections = append(r.Connections, edgereport.Connection{
				Time: now.Add(-time.Duration(i) * time.Second), ID: id.New().String(), Domain: w.d.Name, Tenant: w.d.Tenant, ServerName: w.name(),
				ClientIP: netip.MustParseAddr("2001:db8:1111:2222:3333:4444:5555:6666"), ClientPort: 65535, TLSVersion: "TLS 1.3", CipherSuite: w.text(64, signs), Group: "SecP384r1MLKEM1024",
				PostQuantum: true, ALPN: w.text(200, signs), Upstream: w.d.Upstreams[0].Dial, EndReason: "upstream_closed_early", ClosedBy: "upstream", Error: w.text(512, signs),
				HelloWait: 0.00123 * float64(i), Handshake: 0.0123, UpstreamConnect: 0.0041, UpstreamHandshake: 0.0097, FirstByte: 0.021, Duration: 1234.5, BytesIn: 1<<53 - 1, BytesOut: 1<<53 - 1,
			})
		}
		w.record = r.Connections[0]
		for i := range 30 { // of thirty networks, that require would refuse
			one := w.record
			one.ID, one.Time, one.Group, one.PostQuantum, one.ALPN = id.New().String(), now.Add(-time.Hour), "X25519", false, w.text(200, signs)
			one.ClientIP = netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::7", 0x1000+i))
			r.Connections = append(r.Connections, one)
		}
	})
	in := &management.Ingest{Edge: edgereport.Edge{Name: "counters", StartedAt: now}, Sequence: 1, Now: now}
	for i := range 24 * 7 {
		in.Usage = append(in.Usage, w.used(now.Add(-time.Duration(i)*time.Hour)))
	}
	for i := range 395 {
		in.Usage = append(in.Usage, w.used(now.AddDate(0, 0, -i)))
	}
	_, err := w.store.Ingest(w.t.Context(), in)
	w.must(err)
	around := "domain=" + w.d.Name + "&client_ip=2001:db8::/32&limit=200"
	w.paths["/connections"] = []string{"/connections?limit=200", "/connections?" + around}
	w.paths["/connections/tail"] = []string{"/connections/tail?" + around}
	w.paths["/connections/export"] = nil // a file
	w.paths["/connections/{id}"] = []string{"/connections/" + w.record.ID + "?at=" + url.QueryEscape(w.record.Time.UTC().Format(time.RFC3339Nano))}
	day := func(back int) string { return now.AddDate(0, 0, -back).Format(time.DateOnly) }
	w.paths["/reports/post-quantum"] = []string{"/reports/post-quantum?days=30", "/reports/post-quantum?days=30&domain=" + w.d.Name + "&from=" + day(61), "/reports/post-quantum?from=" + day(390)}
}

func (w *heavyWorld) used(at time.Time) management.UsageEntry {
	n := w.random.Int64N(1 << 50)
	buckets := make([]int64, edgereport.BucketCount)
	buckets[5], buckets[20] = n, n/3
	return management.UsageEntry{
		DomainKey: management.DomainKey{ID: w.d.ID, TenantID: w.d.Tenant, Name: w.d.Name}, Minute: at.Truncate(time.Minute),
		Sums:   management.Sums{Connections: n, BytesIn: n, BytesOut: n, Handshakes: n, PostQuantum: w.random.Int64N(n), HelloRetries: n / 3, Refused: n / 5},
		Detail: management.Detail{Buckets: buckets},
	}
}

// fillLog adds changes of everything that an object can have.
func (w *heavyWorld) fillLog() {
	var last string
	object := func() json.RawMessage {
		fields := map[string]any{}
		for i := range 120 {
			fields[fmt.Sprint("field-", i)] = w.text(600, signs)
		}
		text, err := json.Marshal(fields)
		w.must(err)
		return text
	}
	for range 40 {
		w.update(func(tx management.Tx) error {
			last = management.NewID(management.EventID)
			return tx.InsertEvent(&management.Event{
				ID: last, Time: w.now(), TenantID: w.root.TenantID, Actor: w.root.UserID, Action: "domain.updated", Object: w.d.ID, ClientIP: "2001:db8:1111:2222:3333:4444:5555:6666",
				RequestID: management.NewID("req_"), Before: object(), After: object(),
			})
		})
	}
	w.paths["/audit"], w.paths["/audit/{id}"] = []string{"/audit?limit=200"}, []string{"/audit/" + last}
}

// TestWeight opens every page where there is as much to show as there can be.
func TestWeight(t *testing.T) {
	w := newHeavyWorld(t)
	b := w.signedIn()
	plain, packed := 0, 0
	for _, f := range w.static.byURL {
		plain += len(f.plain)
		if f.gzip != nil {
			packed += len(f.gzip)
		} else {
			packed += len(f.plain)
		}
	}
	t.Logf("styles and scripts: %d bytes, %d as served", plain, packed)
	for _, rt := range w.routes {
		if rt.method != http.MethodGet || rt.endless {
			continue
		}
		paths, known := w.paths[rt.path]
		if !known {
			t.Errorf("%s: say how it is opened with most on it", rt.path)
		}
		for _, path := range paths {
			page := b.get(path)
			page.t = t
			page.want(http.StatusOK)
			served := b.do("GET", path, nil, http.Header{"Accept-Encoding": {"gzip"}})
			most := max(maxPageBytes, heavyPages[rt.path])
			t.Logf("%6d %6d %s", len(page.body), len(served.body), path[:min(len(path), 60)])
			if n := plain + len(page.body); n > most {
				t.Errorf("%s has %d bytes with styles and scripts, want at most %d", path, n, most)
			}
			if n := packed + len(served.body); n > maxServed {
				t.Errorf("%s is served in %d bytes with styles and scripts, want at most %d", path, n, maxServed)
			}
		}
	}
}
