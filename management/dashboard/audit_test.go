package dashboard

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func TestAudit(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	d := s.madeDomain(s.root, "shop.example.com")
	b.submit(b.get("/settings"), "tenant", url.Values{"name": {"New name " + hostile}}).leadsTo("/settings")
	if _, err := s.plane.PatchDomain(t.Context(), s.root, d.ID, []byte(`{"post_quantum":"require","upstreams":[{"dial":"other.example.com:443"}]}`), ""); err != nil {
		t.Fatal(err)
	}

	page := b.get("/audit").want(http.StatusOK, "tenant.updated", "domain.updated", "domain.created", testEmail, "post_quantum: prefer → require", "upstreams.0.dial: upstream.example.com:443 → other.example.com:443",
		"name: "+hostile+" → New name "+hostile)
	check(t, s, page)
	for filter, want := range map[string]int{
		"action=domain.updated": 1, "object=" + d.ID: 3, "actor=" + s.made.User.ID + "&action=tenant.updated": 1, "actor=system": 0, "from=2026-03-15": 0, "to=2026-03-13": 0, "from=2026-03-14&to=2026-03-14&object=" + d.ID: 3,
		"action=" + url.QueryEscape(hostile): 0,
	} {
		page := b.get("/audit?" + filter).want(http.StatusOK)
		check(t, s, page)
		rows := page.all(func(n *html.Node) bool {
			return n.Data == "a" && n.Parent.Data == "th" && strings.HasPrefix(attr(n, "href"), "/audit/evt_")
		})
		if len(rows) != want {
			t.Errorf("%s: %d entries, want %d", filter, len(rows), want)
		}
		if want == 0 && !strings.Contains(page.text(), "Nothing matches") {
			t.Errorf("%s: %s", filter, page.text())
		}
	}
	for _, filter := range []string{"from=x", "to=x", "cursor=x"} {
		check(t, s, b.get("/audit?"+filter).want(http.StatusUnprocessableEntity))
	}

	row := b.get("/audit?action=domain.updated").find(func(n *html.Node) bool { return n.Data == "a" && strings.HasPrefix(attr(n, "href"), "/audit/evt_") })
	event := b.get(attr(row, "href")).want(http.StatusOK, "domain updated", d.ID, testEmail, "Before and after", "prefer", "require")
	check(t, s, event)
	if event.find(func(n *html.Node) bool { return n.Data == "a" && attr(n, "href") == "/domains/"+d.ID }) == nil {
		t.Error("no link to the domain")
	}
	b.get(attr(event.find(func(n *html.Node) bool { return strings.HasPrefix(attr(n, "href"), "/audit?object=") }), "href")).want(http.StatusOK, "domain.created")

	// More than a page: every entry once.
	for i := range eventRows {
		name := "Name " + string(rune('a'+i))
		if _, err := s.plane.RenameTenant(t.Context(), s.root, &name, ""); err != nil {
			t.Fatal(err)
		}
	}
	seenIDs := map[string]bool{}
	for page = b.get("/audit?action=tenant.updated"); ; {
		for _, n := range page.all(func(n *html.Node) bool { return n.Data == "a" && strings.HasPrefix(attr(n, "href"), "/audit/evt_") }) {
			if seenIDs[attr(n, "href")] {
				t.Errorf("%s is there twice", attr(n, "href"))
			}
			seenIDs[attr(n, "href")] = true
		}
		next := page.find(func(n *html.Node) bool { return attr(n, "rel") == "next" })
		if next == nil {
			break
		}
		page = b.get(attr(next, "href")).want(http.StatusOK)
		check(t, s, page)
	}
	if len(seenIDs) != eventRows+1 {
		t.Errorf("%d entries", len(seenIDs))
	}

	// What is removed has no link to itself.
	key, _, err := s.plane.CreateAPIKey(t.Context(), s.root, management.NewAPIKey{Name: "x", Scopes: management.Scopes{management.DomainsRead}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.plane.DeleteAPIKey(t.Context(), s.root, key.ID); err != nil {
		t.Fatal(err)
	}
	row = b.get("/audit?action=api_key.deleted").find(func(n *html.Node) bool { return n.Data == "a" && strings.HasPrefix(attr(n, "href"), "/audit/evt_") })
	if b.get(attr(row, "href")).find(func(n *html.Node) bool { return attr(n, "href") == "/keys/"+key.ID }) != nil {
		t.Error("a link to what is no more")
	}
}

func TestChanges(t *testing.T) {
	long := strings.Repeat("é", valueShown)
	for _, c := range []struct{ before, after, want string }{
		{`null`, `{"a":1,"b":"","c":null}`, `a:>1 b:>""`},
		{`{"a":1}`, `null`, `a:1>`},
		{`{"a":1,"b":[1,2]}`, `{"a":1,"b":[1,2,3]}`, `b:1, 2>1, 2, 3`},
		{`{"a":[{"x":1},{"x":2}]}`, `{"a":[{"x":1},{"x":3}]}`, `a.1.x:2>3`},
		{`{"a":{"b":{"c":true}}}`, `{"a":{"b":{"c":false}}}`, `a.b.c:true>false`},
		{`{"a":[]}`, `{"a":["x"]}`, `a:>x`},
		{`{}`, `{}`, ``}, {``, ``, ``}, {`not JSON`, `{"a":1}`, `:not JSON> a:>1`},
		{`null`, `{"a":"` + long + `"}`, `a:>` + long[:valueShown] + `… (400 bytes)`},
	} {
		var got []string
		for _, one := range changes(json.RawMessage(c.before), json.RawMessage(c.after)) {
			got = append(got, one.Field+":"+one.Old+">"+one.New)
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s and %s: %q, want %q", c.before, c.after, text, c.want)
		}
	}
}

// FuzzChanges reads any two documents.
func FuzzChanges(f *testing.F) {
	f.Add(`{"a":[{"b":"x"}]}`, `{"a":[]}`)
	f.Add(strings.Repeat(`{"a":`, 50)+`1`+strings.Repeat(`}`, 50), `[[[[[[[[[[1]]]]]]]]]]`)
	f.Add(`"\ud800"`, ` null `)
	f.Fuzz(func(t *testing.T, before, after string) {
		all := changes(json.RawMessage(before), json.RawMessage(after))
		if len(all) > 2*mostFields {
			t.Errorf("%d changes", len(all))
		}
		for _, c := range all {
			if c.Old == c.New || max(len(c.Old), len(c.New)) > valueShown+32 || utf8.ValidString(before) && utf8.ValidString(after) && !utf8.ValidString(c.Old+c.New) {
				t.Errorf("%q", c)
			}
		}
	})
}
