package pqproxy

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// internalRecord is the JSON of a domain with a certificate of the internal CA, which nobody has to obtain from anywhere,
// and further members as they are.
func internalRecord(name string, members ...string) string {
	all := append([]string{fmt.Sprintf(`"name":%q,"upstreams":[{"dial":"upstream.example.net:443"}],"certificate":{"source":"internal"}`, name)}, members...)
	return "{" + strings.Join(all, ",") + "}"
}

// tenantIs is the member of a record.
func tenantIs(tenant string) string { return fmt.Sprintf(`"tenant":%q`, tenant) }

// applyAs applies domains of a source beside the API.
func applyAs(t *testing.T, source sourceRank, records ...string) {
	t.Helper()
	s := inForce.Load()
	c := s.newChangeSet(source, true, nil)
	for _, text := range records {
		d, err := domain.Parse([]byte(text), source.source())
		if err == nil {
			err = c.put(d)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.apply(c, nil); err != nil {
		t.Fatal(err)
	}
}

// TestAdminPrecedence has a name in all three sources: static wins over admin, admin over remote; what is shadowed is
// reported, and goes live when the winner leaves.
func TestAdminPrecedence(t *testing.T) {
	e := startAdminEdge(t, adminOption)
	api := e.api()
	static := adminOption + "domain app.example.com {\n tenant s\n upstream upstream.example.net:443\n certificate internal\n}\n"
	e.load(static)
	applyAs(t, rankRemote, internalRecord("app.example.com", tenantIs("r")), internalRecord("b.example.com", tenantIs("r")))
	api.want(http.StatusCreated, "PUT", "/domains/app.example.com", internalRecord("app.example.com", tenantIs("a")))
	conflicts := func(want string) {
		t.Helper()
		var status struct{ Conflicts json.RawMessage }
		if api.want(http.StatusOK, "GET", "/status", "").into(t, &status); string(status.Conflicts) != want {
			t.Errorf("the conflicts are %s, want %s", status.Conflicts, want)
		}
	}
	serves := func(source, tenant string, shadowed ...string) {
		t.Helper()
		d, _ := api.get("app.example.com")
		var below []string
		for i, s := range d.Shadowed {
			below = append(below, s.Source)
			if s.Domain.Tenant != s.Source[:1] || s.Source != d.Shadows[i] {
				t.Errorf("shadowed is %+v, shadows %v", d.Shadowed, d.Shadows)
			}
		}
		if d.Source != source || d.Domain.Tenant != tenant || !slices.Equal(below, shadowed) {
			t.Errorf("%+v serves it, want %s before %v", d, source, shadowed)
		}
	}
	serves("static", "s", "admin", "remote")
	conflicts(`{"count":1,"list":[{"name":"app.example.com","source":"static","shadows":["admin","remote"]}]}`)
	if list := api.want(http.StatusOK, "GET", "/domains", "").body; !strings.Contains(list, `"source":"static","shadows":["admin","remote"],"certificate"`) {
		t.Errorf("the list is %s", list)
	}

	e.load(adminOption)
	serves("admin", "a", "remote")
	conflicts(`{"count":1,"list":[{"name":"app.example.com","source":"admin","shadows":["remote"]}]}`)
	e.load(static)
	serves("static", "s", "admin", "remote")

	api.want(http.StatusNoContent, "DELETE", "/domains/app.example.com", "")
	serves("static", "s", "remote")
	if fault := api.want(http.StatusConflict, "DELETE", "/domains/app.example.com", "").fault(t); !strings.Contains(fault, "source static") {
		t.Errorf("removing what is not admin's: %s", fault)
	}
	e.load(adminOption)
	serves("remote", "r")
	conflicts(`{"count":0,"list":[]}`)
	if fault := api.want(http.StatusConflict, "DELETE", "/domains/app.example.com", "").fault(t); !strings.Contains(fault, "source remote") {
		t.Errorf("removing what is not admin's: %s", fault)
	}
	api.want(http.StatusCreated, "PUT", "/domains/app.example.com", internalRecord("app.example.com", tenantIs("a")))
	serves("admin", "a", "remote")
	applyAs(t, rankRemote)
	serves("admin", "a")
}

// TestAdminSets replaces and changes the set of the API. A record that is refused is reported, and leaves its last good
// version; a fault of the document applies nothing.
func TestAdminSets(t *testing.T) {
	e := startAdminEdge(t, adminOption)
	api := e.api()
	applyAs(t, rankRemote, internalRecord("remote.example.com"))
	a, b, c := internalRecord("a.example.com"), internalRecord("b.example.com"), internalRecord("c.example.com")
	set := func(records ...string) string { return `{"domains":[` + strings.Join(records, ",") + `]}` }
	for _, step := range []struct {
		method, body string
		status       int
		want         string // in the answer, which is JSON of an outcome with status 200
		names        string // of source admin then
	}{
		{"PUT", set(a, b), 200, `{"added":2,"changed":0,"removed":0,"unchanged":0,"rejected":0}`, "a b"},
		{"PUT", set(b, a), 200, `{"added":0,"changed":0,"removed":0,"unchanged":2,"rejected":0}`, "a b"},
		{"PUT", set(internalRecord("a.example.com", tenantIs("x")), c), 200, `{"added":1,"changed":1,"removed":1,"unchanged":0,"rejected":0}`, "a c"},
		{"PATCH", set(b), 200, `{"added":1,"changed":0,"removed":0,"unchanged":0,"rejected":0}`, "a b c"},
		{"PATCH", `{"removed":["A.example.com.","remote.example.com","z.example.com"]}`, 200, `{"added":0,"changed":0,"removed":1,`, "b c"},
		{"PATCH", `{"removed":["b.example.com"],"domains":[` + a + `]}`, 200, `{"added":1,"changed":0,"removed":1,`, "a c"},

		// Refused records.
		{"PUT", set(b, `{"name":"a.example.com"}`), 200, `{"added":1,"changed":0,"removed":1,"unchanged":0,"rejected":1,"rejections":[{"name":"a.example.com","field":"upstreams","detail":"is missing`, "a b"},
		{"PATCH", set(`{"name":"b.example.com","upstreams":[{"dial":"10.0.0.1:1"}]}`, `{"name":"c.example.com"}`), 200, `"rejected":2,"rejections":[{"name":"b.example.com","field":"upstreams[0].dial","detail":"10.0.0.1 `, "a b"},
		{"PATCH", set(a, c, c), 200, `{"added":0,"changed":0,"removed":0,"unchanged":1,"rejected":2,"rejections":[{"name":"c.example.com","field":"name"`, "a b"},
		{"PATCH", `{"domains":[` + a + `],"removed":["a.example.com"]}`, 200, `"rejected":2,`, "a b"},
		{"PUT", set(c, `{"tenant":"nameless"}`), 200, `{"added":1,"changed":0,"removed":0,"unchanged":0,"rejected":1,"rejections":[{"field":"name"`, "a b c"}, // it may stand for a or b
		{"PUT", set(c, `{"name":"a.example.com","upstreams":7}`), 200, `"removed":1,"unchanged":1,"rejected":1,`, "a c"},

		// Faults of the document.
		{"PUT", "", 400, "nothing is applied: domain set, byte 0", "a c"},
		{"PUT", "[" + a + "]", 400, "a set is a JSON object", "a c"},
		{"PUT", `{"domains":[` + b, 400, "ends early", "a c"},
		{"PUT", set(b) + "{}", 400, "goes on behind its object", "a c"},
		{"PUT", `{"domains":[],"domains":[]}`, 400, "domains: is given twice", "a c"},
		{"PUT", `{"Domains":[]}`, 400, "write it as domains", "a c"},
		{"PUT", `{"removed":["a.example.com"]}`, 400, "domains: is missing", "a c"},
		{"PUT", `{"domains":[],"removed":["a.example.com"]}`, 400, "removed: is not empty, but there is no base", "a c"},
		{"PUT", `{"revision":9,"base":8,"domains":[]}`, 400, "base: the admin API knows no revisions", "a c"},
		{"PATCH", `{"revision":9,"base":8,"removed":["a.example.com"]}`, 400, "base: the admin API knows no revisions", "a c"},
		{"PATCH", `{}`, 400, "domains: is missing, and so is removed", "a c"},
		{"PATCH", `{"domains":null}`, 400, "must be an array, not null", "a c"},
		{"PATCH", `{"x":` + strings.Repeat("[", 20000), 400, "nothing is applied", "a c"},

		// A feed's document may be put as it is.
		{"PUT", `{"revision":9,"base":0,"generated":{"at":1},"domains":[` + b + `]}`, 200, `"removed":2,"unchanged":0,"rejected":0,"ignored":["generated"]}`, "b"},
		{"PUT", `{"domains":[]}`, 200, `"removed":1,`, ""},
	} {
		reply := api.want(step.status, step.method, "/domains", step.body)
		text := reply.body
		if step.status == 400 {
			text = reply.fault(t)
		}
		if !strings.Contains(text, step.want) {
			t.Errorf("%s %.80s: %s, want %s", step.method, step.body, text, step.want)
		}
		var names []string
		for entry := range inForce.Load().table.Load().all {
			if entry.source == rankAdmin {
				names = append(names, strings.TrimSuffix(entry.name(), ".example.com"))
			}
		}
		if slices.Sort(names); strings.Join(names, " ") != step.names {
			t.Errorf("%s %.80s: the API has %v, want %s", step.method, step.body, names, step.names)
		}
	}
	if d, _ := api.get("remote.example.com"); d.Source != "remote" {
		t.Errorf("another source's domain is %+v", d)
	}
}

// TestAdminRejections: refusals without end are counted, and the first of them reported.
func TestAdminRejections(t *testing.T) {
	e := startAdminEdge(t, adminOption)
	api := e.api()
	var set strings.Builder
	set.WriteString(`{"domains":[`)
	for range 5000 {
		set.WriteString(`{"name":7},`)
	}
	set.WriteString(internalRecord("a.example.com") + "]}")
	var done outcome
	if api.want(200, "PATCH", "/domains", set.String()).into(t, &done); done.Rejected != 5000 || len(done.Rejects) != refusalsKept || done.Added != 1 {
		t.Errorf("%d rejected, %d reported, %d added", done.Rejected, len(done.Rejects), done.Added)
	}
}

// TestAdminPaging goes through 2,500 domains while others come and go: each that stays is listed once, in order.
func TestAdminPaging(t *testing.T) {
	const total = 2500
	e := startAdminEdge(t, adminOption)
	api := e.api()
	var staying []string
	var set strings.Builder
	for i := range total {
		name := fmt.Sprintf("app-%04d.example.com", i*7919%total)
		staying = append(staying, name)
		fmt.Fprintf(&set, ",%s", internalRecord(name, tenantIs([]string{"even", "odd", `q"é`}[i%3])))
	}
	slices.Sort(staying)
	var done outcome
	if api.want(200, "PUT", "/domains", `{"domains":[`+set.String()[1:]+`]}`).into(t, &done); done.Added != total {
		t.Fatalf("%+v", done)
	}
	page := func(query string) (names []string, next string) {
		t.Helper()
		var list struct {
			Domains []shownDomain
			Next    string
		}
		api.want(200, "GET", "/domains?"+query, "").into(t, &list)
		for _, d := range list.Domains {
			names = append(names, d.Domain.Name)
		}
		return names, list.Next
	}
	all := func(query string, between func(page int)) (names []string) {
		t.Helper()
		next := ""
		for i := 0; i == 0 || next != ""; i++ {
			q := query
			if next != "" {
				q += "&after=" + next
			}
			var more []string
			more, next = page(q)
			names = append(names, more...)
			if len(more) == 0 || next != "" && next != more[len(more)-1] {
				t.Fatalf("page %d has %d names and goes on after %q", i, len(more), next)
			}
			between(i)
		}
		return names
	}
	if names := all("limit=1000", func(int) {}); !slices.Equal(names, staying) {
		t.Errorf("%d names, want %d", len(names), total)
	}
	if names, next := page("limit=500&after=app-1999.EXAMPLE.com"); len(names) != 500 || next != "" {
		t.Errorf("the last page has %d names and goes on after %q", len(names), next)
	}
	if names, next := page("after=app-2499.example.com"); len(names) != 0 || next != "" {
		t.Errorf("behind the last page there are %v, %q", names, next)
	}
	if names, _ := page("after=app-0"); len(names) != listNormal {
		t.Errorf("a page has %d names", len(names))
	}
	names := all("limit=113", func(i int) { // names come and go, before and behind where the list is
		for _, place := range []int{i, total - i} {
			name := fmt.Sprintf("app-%04d-visitor.example.com", place)
			api.want(201, "PUT", "/domains/"+name, internalRecord(name))
		}
		if i > 0 {
			api.want(204, "DELETE", fmt.Sprintf("/domains/app-%04d-visitor.example.com", i-1), "")
		}
	})
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Error("names are out of order, or listed twice")
	}
	names = slices.DeleteFunc(names, func(name string) bool { return strings.Contains(name, "visitor") })
	if !slices.Equal(names, staying) {
		t.Errorf("%d names that stayed, want %d", len(names), total)
	}
	for tenant, want := range map[string]int{"even": 834, "odd": 833, "q%22%C3%A9": 833, "eve": 0, "even%22": 0, "Even": 0} {
		n, next := 0, ""
		for first := true; first || next != ""; first = false {
			q := "limit=400&tenant=" + tenant
			if next != "" {
				q += "&after=" + next
			}
			var names []string
			names, next = page(q)
			n += len(names)
		}
		if n != want {
			t.Errorf("tenant %s has %d domains, want %d", tenant, n, want)
		}
	}
}

// TestAdminPageBytes: a page of large records ends before its limit, and no record is lost by that.
func TestAdminPageBytes(t *testing.T) {
	const total, most = 30, 5000
	s := newTestState(t)
	var list []entry
	for i := range total {
		list = append(list, newEntry(typical(i), rankRemote))
	}
	long := typical(7)
	long.Tenant += strings.Repeat("x", most) // more than a page has
	list[7] = newEntry(long, rankRemote)
	pages := 0
	for left := list; len(left) > 0; pages++ {
		body, err := s.domainPage(left, false, most)
		if err != nil {
			t.Fatal(err)
		}
		var page struct {
			Domains []shownDomain
			Next    string
		}
		(&apiReply{body: string(body)}).into(t, &page)
		n := len(page.Domains)
		if n == 0 || n > 1 && len(body) > most+100 || (page.Next == "") != (n == len(left)) || page.Next != "" && page.Next != left[n-1].name() {
			t.Fatalf("a page has %d of %d domains in %d bytes, and goes on after %q", n, len(left), len(body), page.Next)
		}
		for i, d := range page.Domains {
			if d.Domain.Name != left[i].name() {
				t.Errorf("%s is listed instead of %s", d.Domain.Name, left[i].name())
			}
		}
		left = left[n:]
	}
	if pages < 3 {
		t.Errorf("there are %d pages", pages)
	}
}

// TestAdminWarnings: what is dangerous is said where it is shown.
func TestAdminWarnings(t *testing.T) {
	e := startAdminEdge(t, adminOption)
	api := e.api()
	reply := api.want(201, "PUT", "/domains/app.example.com", `{"upstreams":[{"dial":"up.example.net:1","tls":{"insecure_skip_verify":true}}],"certificate":{"source":"internal"}}`)
	var d shownDomain
	reply.into(t, &d)
	if len(d.Warnings) != 1 || !strings.HasPrefix(d.Warnings[0], "upstreams[0].tls.insecure_skip_verify: ") {
		t.Errorf("the warnings are %q", d.Warnings)
	}
}

// TestOfTenant compares what looks at the text with what reads it.
func TestOfTenant(t *testing.T) {
	tenants := []string{"", "a", "ab", `a"`, `a\`, "é", "upstreams", `","upstreams":`}
	for _, tenant := range tenants {
		d := typical(1)
		d.Tenant = tenant
		e := newEntry(d, rankRemote)
		for _, asked := range tenants {
			if got := ofTenant(asked)(e); got != (tenant == asked) {
				t.Errorf("an entry of tenant %q is one of %q: %v", tenant, asked, got)
			}
		}
	}
}
