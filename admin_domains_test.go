package pqproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// internal is the JSON of a domain that brings no certificate, with further members as they are.
func internalRecord(name string, members ...string) string {
	all := append([]string{fmt.Sprintf(`"name":%q,"upstreams":[{"dial":"upstream.example.net:443"}]`, name)}, members...)
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

// TestAdminPreconditions goes through If-Match and If-None-Match on all that has an ETag.
func TestAdminPreconditions(t *testing.T) {
	e := startAdminEdge(t, adminOption)
	api := e.api()
	applyAs(t, rankRemote, internalRecord("remote.example.com"))
	const path = "/domains/app.example.com"
	app := func(tenant string) string { return internalRecord("app.example.com", tenantIs(tenant)) }

	api.want(412, "PUT", path, app("0"), "If-Match", "*")
	api.want(412, "PUT", path, app("0"), "If-Match", `"x"`)
	api.want(404, "DELETE", path, "", "If-Match", "*")
	api.want(201, "PUT", path, app("0"), "If-None-Match", "*")
	api.want(412, "PUT", path, app("1"), "If-None-Match", "*")
	_, first := api.get("app.example.com")
	if !strings.HasPrefix(first, `"`) || !strings.HasSuffix(first, `"`) {
		t.Fatalf("the ETag is %s", first)
	}
	second := api.want(200, "PUT", path, app("1"), "If-Match", first).header.Get("ETag")
	if first == second {
		t.Fatal("the ETag has not changed")
	}
	for _, stale := range []string{first, "W/" + second, strings.Trim(second, `"`), "", `"`, `""`, "," + first, strings.ToUpper(second)} {
		api.want(412, "PUT", path, app("2"), "If-Match", stale)
		api.want(412, "DELETE", path, "", "If-Match", stale)
	}
	if d, etag := api.get("app.example.com"); d.Domain.Tenant != "1" || etag != second {
		t.Errorf("it is %+v, %s", d, etag)
	}
	api.want(200, "PUT", path, app("2"), "If-Match", first+`, "y" ,`+second)
	api.want(200, "PUT", path, app("1"))
	if _, again := api.get("app.example.com"); again != second {
		t.Error("the same record has another ETag")
	}
	api.want(412, "PUT", path, app("3"), "If-None-Match", second)
	api.want(200, "PUT", path, app("1"), "If-None-Match", first)

	// What other sources say of the name changes what is shown, and keeps no writer out.
	applyAs(t, rankRemote, app("r"), internalRecord("remote.example.com"))
	api.want(200, "GET", path, "", "If-None-Match", second)
	_, shadowing := api.get("app.example.com")
	if reply := api.want(304, "GET", path, "", "If-None-Match", `"z", W/`+shadowing); reply.body != "" || reply.header.Get("ETag") != shadowing {
		t.Errorf("304 has %q and the ETag %s", reply.body, reply.header.Get("ETag"))
	}
	api.want(304, "HEAD", path, "", "If-None-Match", shadowing)
	api.want(304, "GET", path, "", "If-None-Match", "*")
	api.want(204, "DELETE", path, "", "If-Match", second)
	api.want(409, "DELETE", path, "", "If-Match", second)
	api.want(412, "PUT", path, app("4"), "If-Match", second) // the name is there, and not the API's
	api.want(412, "PUT", path, app("4"), "If-Match", "*")
	api.want(201, "PUT", path, app("4"), "If-None-Match", "*")
	api.want(204, "DELETE", path, "", "If-Match", "*")

	// The set.
	tag := func() string { t.Helper(); return api.want(200, "GET", "/domains?limit=1", "").header.Get("ETag") }
	before := tag()
	api.want(304, "GET", "/domains?limit=1", "", "If-None-Match", before)
	api.want(200, "GET", "/domains?limit=2", "", "If-None-Match", before) // another page
	after := api.want(200, "PUT", "/domains", `{"domains":[`+app("1")+`]}`, "If-Match", before).header.Get("ETag")
	for _, method := range []string{"PUT", "PATCH"} {
		api.want(412, method, "/domains", `{"domains":[]}`, "If-Match", before)
		api.want(412, method, "/domains", `{"domains":[]}`, "If-Match", `"x"`)
		api.want(412, method, "/domains", `{"domains":[]}`, "If-None-Match", "*")
	}
	applyAs(t, rankRemote)
	api.want(200, "GET", "/domains?limit=1", "", "If-None-Match", before)
	if same := api.want(200, "PATCH", "/domains", `{"removed":["z.example.com"]}`, "If-Match", after).header.Get("ETag"); same != after {
		t.Error("a change set that changes nothing changes the ETag")
	}
	api.want(200, "PATCH", "/domains", `{"removed":["app.example.com"]}`, "If-Match", tag())
	api.want(412, "PATCH", "/domains", `{"removed":["app.example.com"]}`, "If-Match", after)
	api.want(200, "PUT", "/domains", `{"domains":[]}`, "If-Match", "*")
}

// TestAdminLostUpdates has many clients change one domain, and the whole set, after reading it: with If-Match every change
// builds on the one before.
func TestAdminLostUpdates(t *testing.T) {
	const clients, changes = 8, 12
	e := startAdminEdge(t, adminOption)
	api := e.api()
	api.want(201, "PUT", "/domains/app.example.com", internalRecord("app.example.com"))
	count := func(d shownDomain) string {
		return internalRecord("app.example.com", fmt.Sprintf(`"max_connections":%d`, d.Domain.MaxConnections+1))
	}
	one := func() (done bool, err error) {
		read, err := api.do("GET", "/domains/app.example.com", "")
		if err != nil {
			return false, err
		}
		var d shownDomain
		if err := json.Unmarshal([]byte(read.body), &d); err != nil {
			return false, err
		}
		reply, err := api.do("PUT", "/domains/app.example.com", count(d), "If-Match", read.header.Get("ETag"))
		if err != nil || reply.status != 200 && reply.status != 412 {
			return false, fmt.Errorf("%+v, %w", reply, err)
		}
		return reply.status == 200, nil
	}
	whole := func() (done bool, err error) {
		read, err := api.do("GET", "/domains", "")
		if err != nil {
			return false, err
		}
		var list struct{ Domains []shownDomain }
		if err := json.Unmarshal([]byte(read.body), &list); err != nil {
			return false, err
		}
		reply, err := api.do("PUT", "/domains", `{"domains":[`+count(list.Domains[0])+`]}`, "If-Match", read.header.Get("ETag"))
		if err != nil || reply.status != 200 && reply.status != 412 {
			return false, fmt.Errorf("%+v, %w", reply, err)
		}
		return reply.status == 200, nil
	}
	var all sync.WaitGroup
	for i := range clients {
		change := one
		if i%2 == 0 {
			change = whole
		}
		all.Go(func() {
			for n := 0; n < changes; {
				done, err := change()
				if err != nil {
					t.Error(err)
					return
				}
				if done {
					n++
				}
			}
		})
	}
	all.Wait()
	if d, _ := api.get("app.example.com"); d.Domain.MaxConnections != clients*changes {
		t.Errorf("%d of %d changes are there", d.Domain.MaxConnections, clients*changes)
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
	var list []*entry
	for i := range total {
		list = append(list, newEntry(typical(i), rankRemote))
	}
	list[7].body = strings.Replace(list[7].body, "tenant-0007\"", "tenant-0007"+strings.Repeat("x", most)+"\"", 1) // more than a page has
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
	reply := api.want(201, "PUT", "/domains/app.example.com", `{"upstreams":[{"dial":"up.example.net:1","tls":{"insecure_skip_verify":true}}]}`)
	var d shownDomain
	reply.into(t, &d)
	if len(d.Warnings) != 1 || !strings.HasPrefix(d.Warnings[0], "upstreams[0].tls.insecure_skip_verify: ") {
		t.Errorf("the warnings are %q", d.Warnings)
	}
}

// recordedDeadline is a ResponseWriter that says which deadline was set for reading last.
type recordedDeadline struct {
	*httptest.ResponseRecorder
	read time.Time
}

func (r *recordedDeadline) SetReadDeadline(at time.Time) error { r.read = at; return nil }

// TestAdminSlowBody: a body may take as long as it comes at a rate, and does not stop for long.
func TestAdminSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &recordedDeadline{ResponseRecorder: httptest.NewRecorder()}
		pieces, send := io.Pipe()
		q := &adminRequest{w: w, r: httptest.NewRequest("PUT", "/", pieces)}
		body, err := q.body(10 << 20)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		read := func(n int, pause, want time.Duration) {
			t.Helper()
			go func() {
				time.Sleep(pause)
				_, _ = send.Write(make([]byte, n))
			}()
			if _, err := io.ReadFull(body, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			if got := w.read.Sub(begun); got != want {
				t.Errorf("after %s it had to come within %s, want %s", time.Since(begun), got, want)
			}
		}
		read(1, 20*time.Second, 30*time.Second)
		read(64<<10, 9*time.Second, 30*time.Second+time.Second/transferRate)             // the rate: 29 s have gone for one byte
		read(1<<20, time.Second, 31*time.Second+time.Second/transferRate)                // now 64 KiB are there
		read(1<<20, time.Second, 31*time.Second+16*time.Second+time.Second/transferRate) // and now more
		read(6<<20, 0, 31*time.Second+32*time.Second+time.Second/transferRate-2*time.Second-time.Second/transferRate)

		// A stop ends it, and nothing is read or waited for any more.
		_ = send.CloseWithError(os.ErrDeadlineExceeded)
		for range 2 {
			var fault caddy.APIError
			if _, err := body.Read(make([]byte, 1)); !errors.As(err, &fault) || fault.HTTPStatus != http.StatusRequestTimeout {
				t.Errorf("the error is %v", err)
			}
		}
	})
	large := &requestBody{body: strings.NewReader("12345"), control: http.NewResponseController(httptest.NewRecorder()), most: 4}
	var fault caddy.APIError
	if text, err := io.ReadAll(large); len(text) > 5 || !errors.As(err, &fault) || fault.HTTPStatus != http.StatusRequestEntityTooLarge {
		t.Errorf("read %q, %v", text, err)
	}
	exact := &requestBody{body: strings.NewReader("1234"), control: http.NewResponseController(httptest.NewRecorder()), most: 4}
	if text, err := io.ReadAll(exact); string(text) != "1234" || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
}

// TestAdminSetCut: a set that stops halfway blocks nobody, and when it fails, nothing of it is applied.
func TestAdminSetCut(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, adminOption)
	api := e.api()
	body, send := io.Pipe()
	r, err := http.NewRequest("PUT", "http://edge/pqproxy/domains", body)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := api.http.Do(r)
		ended <- err
	}()
	if _, err := io.WriteString(send, `{"domains":[`+internalRecord("half.example.com")+","); err != nil {
		t.Fatal(err)
	}
	api.want(201, "PUT", "/domains/a.example.com", internalRecord("a.example.com"))
	_ = send.CloseWithError(errInjected) // which ends the connection
	if err := <-ended; err == nil {
		t.Error("the request was answered")
	}
	pqtest.Wait(t, "the set to be given up", func() bool { return len(adminUploads) == 0 })
	api.want(200, "GET", "/domains/a.example.com", "")
	api.want(404, "GET", "/domains/half.example.com", "")
}

// TestAdminWaitsForKept: a write that comes while the set of before a restart is loaded waits, since that is older.
func TestAdminWaitsForKept(t *testing.T) {
	s := newTestState(t)
	serve := useState(t, s)
	asked, cancel := context.WithCancel(t.Context())
	answered := make(chan int, 1)
	go func() {
		r := httptest.NewRequestWithContext(asked, "PUT", "/pqproxy/domains/a.example.com", strings.NewReader(internalRecord("a.example.com")))
		answered <- serve(r).Code
	}()
	if status := serve(httptest.NewRequest("GET", "/pqproxy/domains", nil)).Code; status != 200 {
		t.Errorf("reading: status %d", status)
	}
	cancel()
	if status := <-answered; status != http.StatusServiceUnavailable || s.table.Load().size != 0 {
		t.Errorf("status %d", status)
	}
	close(s.ready)
	r := httptest.NewRequest("PUT", "/pqproxy/domains/a.example.com", strings.NewReader(internalRecord("a.example.com")))
	if status := serve(r).Code; status != http.StatusCreated {
		t.Errorf("status %d", status)
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

func TestLowest(t *testing.T) {
	for n := 1; n < 8; n++ {
		for total := range 40 {
			l := lowest[int]{n: n, compare: func(a, b int) int { return a - b }}
			var all []int
			for i := range total {
				v := i * 17 % 41
				all = append(all, v)
				l.add(v)
			}
			slices.Sort(all)
			if got := l.sorted(); !slices.Equal(got, all[:min(n, total)]) || len(l.list) > 2*n {
				t.Fatalf("the lowest %d of %v are %v", n, all, got)
			}
		}
	}
}

// useState puts a state in force for one test, and returns what serves requests as Caddy's endpoint does.
func useState(t testing.TB, s *state) (serve func(*http.Request) *httptest.ResponseRecorder) {
	before := inForce.Swap(s)
	t.Cleanup(func() { inForce.Store(before) })
	mux := http.NewServeMux()
	for _, route := range new(adminAPI).Routes() {
		mux.HandleFunc(route.Pattern, func(w http.ResponseWriter, r *http.Request) {
			err := route.Handler.ServeHTTP(w, r)
			if fault, ok := err.(caddy.APIError); ok {
				w.WriteHeader(fault.HTTPStatus)
				_, _ = io.WriteString(w, fault.Error())
			} else if err != nil {
				w.WriteHeader(http.StatusInternalServerError)
			}
		})
	}
	return func(r *http.Request) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		return w
	}
}

// fuzzedState has some domains of all sources, and the policy of a config that allows nothing.
func fuzzedState(f *testing.F) (s *state, serve func(*http.Request) *httptest.ResponseRecorder) {
	s = newTestState(f)
	policy, err := netpolicy.New(nil)
	if err != nil {
		f.Fatal(err)
	}
	s.settings.Store(&settings{logger: zap.NewNop(), accessLog: zap.NewNop(), policy: policy})
	close(s.ready)
	for rank := range sourceRank(sources) {
		c := s.newChangeSet(rank, true, nil)
		for i := range 3 {
			d := typical(i + int(rank))
			d.Name = fmt.Sprintf("%c.example.com", 'a'+i+int(rank))
			if err := c.put(d); err != nil {
				f.Fatal(err)
			}
		}
		_, _ = s.apply(c, nil)
	}
	return s, useState(f, s)
}

// unchangedBy serves a request that may be refused: the table is as it was then, and never is it a fault of the server's.
func unchangedBy(t *testing.T, s *state, serve func(*http.Request) *httptest.ResponseRecorder, r *http.Request) *httptest.ResponseRecorder {
	t.Helper()
	before := s.table.Load()
	w := serve(r)
	switch {
	case w.Code >= 500:
		t.Fatalf("status %d: %s", w.Code, w.Body)
	case w.Code >= 300 && s.table.Load() != before:
		t.Fatalf("status %d, and the table has changed: %s", w.Code, w.Body)
	case w.Code < 300 && w.Code != http.StatusNoContent && !json.Valid(w.Body.Bytes()):
		t.Fatalf("the answer is no JSON: %s", w.Body)
	}
	return w
}

func FuzzAdminDomain(f *testing.F) {
	s, serve := fuzzedState(f)
	for _, body := range []string{
		"", "{}", "null", `{"upstreams":[{"dial":"192.0.2.1:443"}]}`, internalRecord("b.example.com"), internalRecord("x.example.com", tenantIs("é")),
		`{"name":"b.example.com","upstreams":[{"dial":"up.example.net:443","tls":{}}],"certificate":{"source":"byoc","chain_pem":"-----BEGIN","key_pem":"x"}}`,
		`{"upstreams":[{"dial":"127.0.0.1:1"}],"suspended":true}`,
	} {
		f.Add("b.example.com", body, "")
		f.Add("*.example.com", body, `"x", W/"y.z"`)
	}
	f.Add("caf\u00e9.example.com", `{"upstreams":[{"dial":"up.example.net:443"}]}`, "*")
	f.Fuzz(func(t *testing.T, name, body, match string) {
		r := httptest.NewRequest("PUT", "/pqproxy/domains/x", strings.NewReader(body))
		r.URL.Path = adminDomain + name
		r.Header.Set("If-Match", match)
		if match == "" {
			r.Header.Del("If-Match")
		}
		w := unchangedBy(t, s, serve, r)
		if w.Code != http.StatusOK && w.Code != http.StatusCreated {
			return
		}
		var shown struct{ Domain struct{ Name string } }
		if err := json.Unmarshal(w.Body.Bytes(), &shown); err != nil {
			t.Fatal(err)
		}
		normal, err := domain.NormalName(name)
		if err != nil || shown.Domain.Name != normal || s.table.Load().named(normal).of(rankAdmin) == nil {
			t.Fatalf("%q was put as %q: %v", name, shown.Domain.Name, err)
		}
		etag := w.Header().Get("ETag")
		again := httptest.NewRequest("DELETE", "/pqproxy/domains/x", nil)
		again.URL.Path = adminDomain + name
		again.Header.Set("If-Match", etag)
		if w := unchangedBy(t, s, serve, again); w.Code != http.StatusNoContent || s.table.Load().named(normal).of(rankAdmin) != nil {
			t.Fatalf("it cannot be removed: %d %s", w.Code, w.Body)
		}
	})
}

func FuzzAdminSet(f *testing.F) {
	s, serve := fuzzedState(f)
	for _, body := range []string{
		"", "{}", "[]", `{"domains":[]}`, `{"domains":[` + internalRecord("b.example.com") + `],"removed":["c.example.com"]}`,
		`{"domains":[` + internalRecord("b.example.com") + "," + internalRecord("B.example.com.") + `]}`,
		`{"revision":9,"base":8,"removed":["b.example.com"]}`, `{"domains":[{"name":7},{"x":1}],"later":{}}`,
	} {
		f.Add(body, true)
		f.Add(body, false)
	}
	f.Fuzz(func(t *testing.T, body string, patch bool) {
		method := "PUT"
		if patch {
			method = "PATCH"
		}
		others := func() (n int) {
			for e := range s.table.Load().all {
				if e.of(rankStatic) != nil || e.of(rankRemote) != nil {
					n++
				}
			}
			return n
		}
		before := others()
		w := unchangedBy(t, s, serve, httptest.NewRequest(method, "/pqproxy/domains", strings.NewReader(body)))
		if others() != before {
			t.Fatal("other sources' domains have changed")
		}
		if w.Code != http.StatusOK {
			return
		}
		var done outcome
		if err := json.Unmarshal(w.Body.Bytes(), &done); err != nil || done.Rejected < len(done.Rejects) && done.Rejected == 0 {
			t.Fatalf("%v in %s", err, w.Body)
		}
	})
}
