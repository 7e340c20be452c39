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

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

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
