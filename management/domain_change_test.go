package management_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
)

func marshal(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func pairFor(t *testing.T, names ...string) (chain, key string) {
	t.Helper()
	c, k := pqtest.NewCA(t).PairPEM(t, names...)
	return string(c), string(k)
}

// pointers returns where the faults of err are.
func pointers(err error) []string {
	e, ok := errors.AsType[*management.Error](err)
	if !ok {
		return nil
	}
	var all []string
	for _, f := range e.Faults {
		all = append(all, f.Pointer)
	}
	slices.Sort(all)
	return all
}

// TestCreateDomainRefused: what came in is never in an answer. MARK stands for what must not be.
func TestCreateDomainRefused(t *testing.T) {
	chain, key := pairFor(t, "other.example.com")
	for _, c := range []struct {
		about, body string
		code        management.Code
		at          []string
	}{
		{"no JSON", `{"name":MARK}`, management.Malformed, nil},
		{"no object", `["MARK"]`, management.Malformed, nil},
		{"two documents", `{} {}`, management.Malformed, nil},
		{"not UTF-8", "{\"name\":\"\xff\"}", management.Malformed, nil},
		{"too deep", `{"name":` + strings.Repeat(`[`, 64) + strings.Repeat(`]`, 64) + `}`, management.Malformed, nil},
		{"empty", `{}`, management.Invalid, []string{"/name", "/upstreams"}},
		{"twice", `{"name":"a.example.com","name":"MARK.example.com","upstreams":[{"dial":"10.0.0.5:1"}]}`, management.Invalid, []string{"/name"}},
		{"unknown", `{"name":"a.example.com","MARK":1,"upstreams":[{"dial":"10.0.0.5:1","mark":"MARK"}]}`, management.Invalid, []string{"/upstreams/0/mark", "/…"}},
		{"read-only", `{"name":"a.example.com","tenant":"MARK","id":"MARK","status":"MARK","upstreams":[{"dial":"10.0.0.5:1"}]}`, management.Invalid, []string{"/id", "/status", "/tenant"}},
		{"null", `{"name":null,"upstreams":[{"dial":"10.0.0.5:1"}]}`, management.Invalid, []string{"/name"}},
		{"address as name", `{"name":"192.0.2.1","upstreams":[{"dial":"10.0.0.5:1"}]}`, management.Invalid, []string{"/name"}},
		{"name of spaces", `{"name":"MARK MARK.example.com","upstreams":[{"dial":"10.0.0.5:1"}]}`, management.Invalid, []string{"/name"}},
		{"public suffix", `{"name":"co.uk","upstreams":[{"dial":"10.0.0.5:1"}]}`, management.Invalid, []string{"/name"}},
		{"all of a public suffix", byocBody("*.com", chain, key), management.Invalid, []string{"/name"}},
		{"single label", `{"name":"localhost","upstreams":[{"dial":"10.0.0.5:1"}]}`, management.Invalid, []string{"/name"}},
		{"wildcard with acme", `{"name":"*.example.com","upstreams":[{"dial":"10.0.0.5:1"}]}`, management.Invalid, []string{"/certificate/source"}},
		{"source not offered", `{"name":"a.example.com","upstreams":[{"dial":"10.0.0.5:1"}],"certificate":{"source":"internal"}}`, management.Invalid, []string{"/certificate/source"}},
		{"byoc without a pair", `{"name":"a.example.com","upstreams":[{"dial":"10.0.0.5:1"}],"certificate":{"source":"byoc"}}`, management.Invalid, []string{"/certificate/chain_pem", "/certificate/key_pem"}},
		{"another name's pair", byocBody("a.example.com", chain, key), management.Invalid, []string{"/certificate/chain_pem"}},
		{"no pair at all", byocBody("a.example.com", "MARK", "MARK"), management.Invalid, []string{"/certificate/chain_pem", "/certificate/key_pem"}},
		{"key in the chain", byocBody("a.example.com", key, key), management.Invalid, []string{"/certificate/chain_pem"}},
		{"file", `{"name":"a.example.com","upstreams":[{"dial":"10.0.0.5:1","tls":{"ca_file":"/etc/MARK"}}]}`, management.Invalid, []string{"/upstreams/0/tls/ca_file"}},
		{"socket", `{"name":"a.example.com","upstreams":[{"dial":"unix//run/MARK"}]}`, management.Invalid, []string{"/upstreams/0/dial"}},
		{"loopback and metadata", `{"name":"a.example.com","upstreams":[{"dial":"10.0.0.5:1"},{"dial":"127.0.0.1:22"},{"dial":"169.254.169.254:80"},{"dial":"[::ffff:127.0.0.1]:80"},{"dial":"192.168.1.1:443"}]}`,
			management.Invalid, []string{"/upstreams/1/dial", "/upstreams/2/dial", "/upstreams/3/dial", "/upstreams/4/dial"}},
		{"wrong words", `{"name":"a.example.com","upstreams":[{"dial":"10.0.0.5:1"}],"post_quantum":"MARK","proxy_protocol":"MARK","max_connections":-987654}`,
			management.Invalid, []string{"/max_connections", "/post_quantum", "/proxy_protocol"}},
	} {
		t.Run(c.about, func(t *testing.T) {
			s := newSite(t, openSQLite(t), nil)
			_, err := s.CreateDomain(t.Context(), s.tenant(nil), []byte(c.body))
			if management.CodeOf(err) != c.code || !slices.Equal(pointers(err), c.at) {
				t.Fatalf("%v at %v; want %s at %v", err, pointers(err), c.code, c.at)
			}
			for _, secret := range []string{"MARK", "987654", "169.254", "192.168", strings.Split(key, "\n")[1]} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the refusal quotes %q: %v", secret, err)
				}
			}
		})
	}
}

// TestDomainNames: a name is what DNS and browsers make of it, so that one cannot be claimed twice in two spellings.
func TestDomainNames(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(nil)
		for _, c := range []struct{ in, want string }{
			{"Bücher.Example.com", "xn--bcher-kva.example.com"},
			{"ａｐｐ.example.com", "app.example.com"},               // full width
			{"exam\u00adple.example.com", "example.example.com"}, // soft hyphen
			{"a。b.example.com", "a.b.example.com"},               // ideographic full stop
			{"аpple.example.com", "xn--pple-43d.example.com"},    // Cyrillic а: another name, and shown as such
			{"faß.example.com", "xn--fa-hia.example.com"},
		} {
			d := s.create(who, c.in)
			if d.Name != c.want {
				t.Errorf("%q became %q, want %q", c.in, d.Name, c.want)
			}
			if !strings.HasPrefix(d.Records[len(d.Records)-1].Name, "_pqproxy."+c.want) {
				t.Errorf("%q: the record is %+v", c.in, d.Records)
			}
			_, err := s.CreateDomain(t.Context(), who, []byte(`{"name":"`+c.want+`","upstreams":[{"dial":"10.0.0.5:1"}]}`))
			if management.CodeOf(err) != management.DomainExists {
				t.Errorf("%q again as %q: %v", c.in, c.want, err)
			}
		}
		for _, bad := range []string{"a\u202eb.example.com", "a\u0000.example.com", "xn--zzzz--.example.com", "a..example.com", "-a.example.com", "é\u0301\u0301.\u200d"} {
			body, _ := json.Marshal(map[string]any{"name": bad, "upstreams": []any{map[string]any{"dial": "10.0.0.5:1"}}})
			if d, err := s.CreateDomain(t.Context(), who, body); management.CodeOf(err) != management.Invalid {
				t.Errorf("%q: %v, %v", bad, d, err)
			}
		}
		found, _, err := s.FindDomains(t.Context(), who, management.DomainQuery{Name: "BÜCHER.example.com.", Page: management.Page{Limit: 5}})
		if err != nil || len(found) != 1 {
			t.Errorf("by name in another spelling: %v, %v", found, err)
		}
	})
}

func TestPatchDomain(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		d := s.createWith(who, `{"name":"app.example.com","upstreams":[{"dial":"10.0.0.5:1","tls":{},"region":"gru"},{"dial":"10.0.0.6:1"}],"alpn":["h2"],"max_connections":7,"health_check":{"rise":5}}`)
		for _, c := range []struct {
			about, patch string
			want         string // a part of what is shown then
			code         management.Code
			at           []string
		}{
			{about: "nothing", patch: `{}`, want: `"alpn":["h2"]`},
			{about: "null removes", patch: `{"alpn":null,"max_connections":null}`, want: `"max_connections":0`},
			{about: "null inside an object removes", patch: `{"health_check":{"rise":null,"fall":9}}`, want: `"fall":9`},
			{about: "lists are replaced whole", patch: `{"upstreams":[{"dial":"10.0.0.7:1"}]}`, want: `"upstreams":[{"dial":"10.0.0.7:1"}]`},
			{about: "null in a list stays", patch: `{"upstreams":[{"dial":"10.0.0.7:1","region":null}]}`, code: management.Invalid, at: []string{"/upstreams/0/region"}},
			{about: "null as element", patch: `{"upstreams":[null]}`, code: management.Invalid, at: []string{"/upstreams/0"}},
			{about: "what is required cannot be removed", patch: `{"upstreams":null}`, code: management.Invalid, at: []string{"/upstreams"}},
			{about: "same name", patch: `{"name":"APP.example.com"}`, want: `"name":"app.example.com"`},
			{about: "another name", patch: `{"name":"b.example.com"}`, code: management.Invalid, at: []string{"/name"}},
			{about: "no name", patch: `{"name":null}`, code: management.Invalid, at: []string{"/name"}},
			{about: "tenant", patch: `{"tenant":"x"}`, code: management.Invalid, at: []string{"/tenant"}},
			{about: "unknown", patch: `{"bogus":1}`, code: management.Invalid, at: []string{"/bogus"}},
			{about: "unknown removed", patch: `{"bogus":null,"certificate":{"bogus":null}}`, code: management.Invalid, at: []string{"/bogus", "/certificate/bogus"}},
			{about: "twice", patch: `{"alpn":["a"],"alpn":["b"]}`, code: management.Invalid, at: []string{"/alpn"}},
			{about: "an object for a list", patch: `{"upstreams":{"0":{"dial":"10.0.0.8:1"}}}`, code: management.Invalid, at: []string{"/upstreams"}},
			{about: "a list for the patch", patch: `[]`, code: management.Malformed},
			{about: "private upstream", patch: `{"upstreams":[{"dial":"127.0.0.1:1"}]}`, code: management.Invalid, at: []string{"/upstreams/0/dial"}},
			{about: "byoc without a pair", patch: `{"certificate":{"source":"byoc"}}`, code: management.Invalid, at: []string{"/certificate/chain_pem", "/certificate/key_pem"}},
			{about: "default by null", patch: `{"certificate":null,"post_quantum":"require"}`, want: `"post_quantum":"require"`},
		} {
			before := s.find(who, d.ID)
			got, err := s.PatchDomain(t.Context(), who, d.ID, []byte(c.patch), "")
			if management.CodeOf(err) != c.code || !slices.Equal(pointers(err), c.at) {
				t.Errorf("%s: %v at %v", c.about, err, pointers(err))
				continue
			}
			if c.code != "" {
				if now := s.find(who, d.ID); now.Version != before.Version {
					t.Errorf("%s: a refused patch changed the domain", c.about)
				}
				continue
			}
			if text := marshal(t, got); !strings.Contains(text, c.want) {
				t.Errorf("%s: %s lacks %s", c.about, text, c.want)
			}
		}
		// What changes nothing is no change for edges either.
		before, revision := s.find(who, d.ID), s.revision()
		if after := s.patch(who, d.ID, `{"post_quantum":"require"}`); after.Version != before.Version || s.revision() != revision {
			t.Error("a patch without effect counts as a change")
		}
		stale := management.Precondition(management.ETag(before.Version - 1))
		if _, err := s.PatchDomain(t.Context(), who, d.ID, []byte(`{"alpn":["h2"]}`), stale); management.CodeOf(err) != management.PreconditionFailed {
			t.Errorf("with an old ETag: %v", err)
		}
		if _, err := s.DeleteDomain(t.Context(), who, d.ID, stale); management.CodeOf(err) != management.PreconditionFailed {
			t.Errorf("deleting with an old ETag: %v", err)
		}
		if _, err := s.PatchDomain(t.Context(), who, d.ID, []byte(`{"alpn":["h2"]}`), management.Precondition(management.ETag(before.Version))); err != nil {
			t.Errorf("with the right ETag: %v", err)
		}
		// What is shown can be sent back, but for what is ours.
		var shown map[string]any
		must(t, json.Unmarshal([]byte(marshal(t, s.find(who, d.ID))), &shown))
		for _, key := range []string{"id", "tenant", "revision", "created_at", "updated_at", "status", "serving", "stuck", "next_action", "records", "axes"} {
			if _, ok := shown[key]; !ok {
				t.Errorf("%s is not shown", key)
			}
			delete(shown, key)
		}
		revision = s.revision()
		if s.patch(who, d.ID, marshal(t, shown)); s.revision() != revision {
			t.Error("sending back what was shown changes it")
		}
	})
}

// TestDomainsOfOthers tries every method on another tenant's domain, and without the scope.
func TestDomainsOfOthers(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		owner, other := s.tenant(trusted), s.tenant(trusted)
		chain, key := pairFor(t, "app.example.com")
		d := s.createWith(owner, byocBody("app.example.com", chain, key))
		poor := &management.Principal{TenantID: owner.TenantID, Scopes: management.Scopes{management.UsageRead}}
		for name, call := range map[string]func(context.Context, *management.Principal, string) error{
			"find": func(ctx context.Context, who *management.Principal, id string) error {
				_, err := s.FindDomain(ctx, who, id)
				return err
			},
			"patch": func(ctx context.Context, who *management.Principal, id string) error {
				_, err := s.PatchDomain(ctx, who, id, []byte(`{}`), "")
				return err
			},
			"delete": func(ctx context.Context, who *management.Principal, id string) error {
				_, err := s.DeleteDomain(ctx, who, id, "")
				return err
			},
			"check": func(ctx context.Context, who *management.Principal, id string) error {
				_, err := s.CheckDomain(ctx, who, id)
				return err
			},
			"probe": func(ctx context.Context, who *management.Principal, id string) error {
				_, err := s.ProbeDomain(ctx, who, id)
				return err
			},
			"put certificate": func(ctx context.Context, who *management.Principal, id string) error {
				_, err := s.PutCertificate(ctx, who, id, chain, key, "")
				return err
			},
			"find certificate": func(ctx context.Context, who *management.Principal, id string) error {
				_, err := s.FindCertificate(ctx, who, id)
				return err
			},
			"delete certificate": func(ctx context.Context, who *management.Principal, id string) error {
				_, err := s.DeleteCertificate(ctx, who, id, "")
				return err
			},
		} {
			strange := call(t.Context(), other, d.ID)
			missing := call(t.Context(), other, management.NewID(management.DomainID))
			if management.CodeOf(strange) != management.NotFound || strange.Error() != missing.Error() {
				t.Errorf("%s of another tenant's: %v; of none: %v", name, strange, missing)
			}
			if err := call(t.Context(), poor, d.ID); management.CodeOf(err) != management.Forbidden {
				t.Errorf("%s without the scope: %v", name, err)
			}
			if err := call(t.Context(), nil, d.ID); management.CodeOf(err) != management.Unauthenticated {
				t.Errorf("%s by nobody: %v", name, err)
			}
		}
		if found, _, err := s.FindDomains(t.Context(), other, management.DomainQuery{Page: management.Page{Limit: 10}}); err != nil || len(found) != 0 {
			t.Errorf("the list of another: %v, %v", found, err)
		}
		if found, _, err := s.FindCertificates(t.Context(), other, 0, management.Page{Limit: 10}); err != nil || len(found) != 0 {
			t.Errorf("the certificates of another: %v, %v", found, err)
		}
		if s.find(owner, d.ID).Version != 1 {
			t.Error("something changed")
		}
		// A pair needs a scope of its own.
		half := &management.Principal{TenantID: owner.TenantID, Scopes: management.Scopes{management.DomainsRead, management.DomainsWrite}}
		chain, key = pairFor(t, "b.example.com")
		if _, err := s.CreateDomain(t.Context(), half, []byte(byocBody("b.example.com", chain, key))); management.CodeOf(err) != management.Forbidden {
			t.Errorf("a pair without certificates:write: %v", err)
		}
		if _, err := s.PatchDomain(t.Context(), half, d.ID, []byte(`{"certificate":null}`), ""); management.CodeOf(err) != management.Forbidden {
			t.Errorf("dropping a pair without certificates:write: %v", err)
		}
	})
}

// TestCertificates takes a pair through its life, and looks for its key wherever something comes out.
func TestCertificates(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(trusted)
		d := s.create(who, "app.example.com")
		chain, key := pairFor(t, "app.example.com")
		secret := strings.Split(key, "\n")[1]
		clean := func(what string, v any, err error) {
			t.Helper()
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if strings.Contains(marshal(t, v)+fmt.Sprintf("%v %+v", v, v), secret) {
				t.Errorf("%s has the key", what)
			}
		}
		c, err := s.PutCertificate(t.Context(), who, d.ID, chain, key, management.Precondition(management.ETag(d.Version)))
		clean("the upload's answer", c, err)
		if c.Source != "byoc" || c.State != management.AxisOK || !management.IsID(management.CertificateID, c.ID) || len(c.SHA256) != 64 || c.Serial == "" ||
			c.KeyType == "" || !slices.Equal(c.Names, []string{"app.example.com"}) || c.NotAfter == nil {
			t.Errorf("uploaded: %+v", c)
		}
		d = s.find(who, d.ID)
		clean("the domain", d, nil)
		if d.Certificate.Source != "byoc" {
			t.Errorf("the source is %s", d.Certificate.Source)
		}
		record := s.feed(0)["app.example.com"]
		if !strings.Contains(record, secret) || !strings.Contains(record, `"source":"byoc"`) {
			t.Errorf("edges do not get the pair: %s", strings.ReplaceAll(record, secret, "(key)"))
		}
		list, _, err := s.FindCertificates(t.Context(), who, 0, management.Page{Limit: 10})
		clean("the list", list, err)
		if len(list) != 1 || list[0].SHA256 != c.SHA256 {
			t.Errorf("the list is %+v", list)
		}
		until := c.NotAfter.Sub(s.clock.now())
		for within, want := range map[time.Duration]int{until + time.Hour: 1, until - time.Hour: 0} {
			if list, _, err := s.FindCertificates(t.Context(), who, within, management.Page{Limit: 10}); err != nil || len(list) != want {
				t.Errorf("expiring within %s: %v, %v", within, list, err)
			}
		}
		d = s.patch(who, d.ID, `{"certificate":{"fallback":"acme"}}`) // keeps the pair
		if d.Certificate.Fallback != "acme" || !strings.Contains(s.feed(0)["app.example.com"], secret) {
			t.Errorf("changing the fallback: %+v", d.Certificate)
		}
		otherChain, otherKey := pairFor(t, "app.example.com")
		for _, half := range []string{`{"certificate":{"chain_pem":` + marshal(t, otherChain) + `}}`, `{"certificate":{"key_pem":` + marshal(t, otherKey) + `}}`} {
			if _, err := s.PatchDomain(t.Context(), who, d.ID, []byte(half), ""); management.CodeOf(err) != management.Invalid {
				t.Errorf("half a pair: %v", err)
			}
		}
		_, err = s.PutCertificate(t.Context(), who, d.ID, chain, otherKey, "")
		if !slices.Equal(pointers(err), []string{"/key_pem"}) || strings.Contains(err.Error(), strings.Split(otherKey, "\n")[1]) {
			t.Errorf("another's key: %v", err)
		}
		d = s.patch(who, d.ID, `{"certificate":{"chain_pem":`+marshal(t, otherChain)+`,"key_pem":`+marshal(t, otherKey)+`}}`)
		clean("the patch's answer", d, nil)
		if strings.Contains(s.feed(0)["app.example.com"], secret) {
			t.Error("edges still get the old pair")
		}

		wildChain, wildKey := pairFor(t, "*.example.com")
		wild := s.createWith(who, byocBody("*.example.com", wildChain, wildKey))

		// It ends while nobody looks.
		s.clock.pass(2 * until)
		must(t, management.CheckDue(s.Plane, t.Context()))
		if c, err = s.FindCertificate(t.Context(), who, d.ID); err != nil || c.State != management.AxisFailed {
			t.Errorf("after its end: %+v, %v", c, err)
		}
		c, err = s.DeleteCertificate(t.Context(), who, d.ID, "")
		clean("the deletion's answer", c, err)
		if c.Source != "acme" || strings.Contains(s.feed(0)["app.example.com"], "BEGIN") {
			t.Errorf("deleted: %+v", c)
		}
		if _, err = s.DeleteCertificate(t.Context(), who, d.ID, ""); management.CodeOf(err) != management.NotFound {
			t.Errorf("deleted twice: %v", err)
		}
		s.actions(who, "certificate.uploaded", "certificate.deleted")
		events, err := s.FindEvents(t.Context(), who, management.EventFilter{Limit: 200})
		clean("the audit log", events, err)
		if text := marshal(t, events); strings.Contains(text, strings.Split(otherKey, "\n")[1]) || strings.Contains(text, "PRIVATE") {
			t.Error("the audit log has the second key")
		}
		if _, err := s.DeleteCertificate(t.Context(), who, wild.ID, ""); management.CodeOf(err) != management.Conflict {
			t.Errorf("a wildcard without a pair: %v", err)
		}
	})
}

// TestSealedKeyIsBound: a key that is put into another tenant's row cannot be opened there.
func TestSealedKeyIsBound(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		a, b := s.tenant(trusted), s.tenant(trusted)
		chain, key := pairFor(t, "a.example.com", "b.example.com")
		from, to := s.createWith(a, byocBody("a.example.com", chain, key)), s.createWith(b, byocBody("b.example.com", chain, key))
		s.update(func(tx management.Tx) error {
			stolen, err := tx.FindCertificate(from.ID)
			if err != nil {
				return err
			}
			into, err := tx.FindCertificate(to.ID)
			if err != nil {
				return err
			}
			return tx.UpdateSealedKey(into.ID, to.ID, stolen.Key)
		})
		err := s.store.View(t.Context(), func(tx management.Tx) error {
			r, err := tx.FindFeedRecord("b.example.com")
			if err != nil {
				return err
			}
			_, err = management.AppendFeedRecord(s.Plane, nil, r)
			return err
		})
		if err == nil || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("the stolen key opens: %v", err)
		}
	})
}

func TestRotateMasterKey(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		old, new := vault.NewKey(), vault.NewKey()
		s.Plane = s.planeWith(old)
		who := s.tenant(trusted)
		chain, key := pairFor(t, "a.example.com")
		s.createWith(who, byocBody("a.example.com", chain, key))
		before, revision := s.feed(0), s.revision()
		s.Plane = s.planeWith(new, old)
		if n, err := s.RotateMasterKey(t.Context()); n != 1 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		if n, err := s.RotateMasterKey(t.Context()); n != 0 || err != nil {
			t.Errorf("again: %d, %v", n, err)
		}
		s.Plane = s.planeWith(new) // without the old one
		if after := s.feed(0); after["a.example.com"] != before["a.example.com"] || s.revision() != revision {
			t.Error("the rotation changed what edges get")
		}
		s.Plane = s.planeWith(vault.NewKey(), old)
		if _, err := s.RotateMasterKey(t.Context()); err == nil {
			t.Error("what no key opens was rotated")
		}
	})
}

// TestDomainQuota has one tenant ask for far more domains than it may have.
func TestDomainQuota(t *testing.T) {
	s := newSite(t, openSQLite(t), nil)
	who := s.tenant(func(row *management.Tenant) { row.MaxDomains = 25 })
	codes := make(map[management.Code]int)
	var last *management.Domain
	for i := range 10_000 {
		d, err := s.CreateDomain(t.Context(), who, fmt.Appendf(nil, `{"name":"n%d.example.com","upstreams":[{"dial":"10.0.0.5:1"}]}`, i))
		if codes[management.CodeOf(err)]++; err == nil {
			last = d
		}
	}
	if codes[""] != 25 || codes[management.QuotaExceeded] != 9975 {
		t.Errorf("%v", codes)
	}
	if _, err := s.DeleteDomain(t.Context(), who, last.ID, ""); err != nil {
		t.Fatal(err)
	}
	s.create(who, "one.example.com") // makes place at once
}

func TestFindDomains(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		who := s.tenant(nil)
		s.create(s.tenant(nil), "m0.example.com")
		for _, name := range []string{"m2.example.com", "a_b.example.com", "aXb.example.com", "m1.example.com", "m3.example.net"} {
			s.create(who, name)
		}
		names := func(q management.DomainQuery) (names []string) {
			for {
				found, next, err := s.FindDomains(t.Context(), who, q)
				must(t, err)
				for _, d := range found {
					names = append(names, d.Name)
				}
				if next == "" {
					return names
				}
				if len(found) != q.Page.Limit {
					t.Fatalf("a page of %d, want %d", len(found), q.Page.Limit)
				}
				q.Page.Cursor = next
			}
		}
		for _, c := range []struct {
			q    management.DomainQuery
			want string
		}{
			{management.DomainQuery{}, "a_b.example.com axb.example.com m1.example.com m2.example.com m3.example.net"},
			{management.DomainQuery{Q: "M"}, "a_b.example.com axb.example.com m1.example.com m2.example.com m3.example.net"},
			{management.DomainQuery{Q: "m1."}, "m1.example.com"},
			{management.DomainQuery{Q: "a_b"}, "a_b.example.com"}, // no wildcards of SQL
			{management.DomainQuery{Q: "%"}, ""},
			{management.DomainQuery{Q: `'; DROP TABLE domains; --`}, ""},
			{management.DomainQuery{Q: `\`}, ""},
			{management.DomainQuery{Name: "m0.example.com"}, ""}, // another tenant's
			{management.DomainQuery{Name: "no name"}, ""},
			{management.DomainQuery{Status: management.PendingDNS, Q: ".net"}, "m3.example.net"},
			{management.DomainQuery{Status: management.Active}, ""},
		} {
			c.q.Page.Limit = 2
			if got := strings.Join(names(c.q), " "); got != c.want {
				t.Errorf("%+v: %s, want %s", c.q, got, c.want)
			}
		}
		for _, cursor := range []string{"x", "MQ", "!!"} {
			q := management.DomainQuery{Page: management.Page{Limit: 2, Cursor: cursor}}
			if _, _, err := s.FindDomains(t.Context(), who, q); cursor != "MQ" && management.CodeOf(err) != management.Invalid {
				t.Errorf("the cursor %q: %v", cursor, err)
			}
		}
	})
}
