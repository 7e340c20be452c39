package api

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// deadlines is a connection that notes its deadlines.
type deadlines struct {
	*httptest.ResponseRecorder
	read, write []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.read = append(d.read, t)
	return nil
}

func (d *deadlines) SetWriteDeadline(t time.Time) error {
	d.write = append(d.write, t)
	return nil
}

// TestDeadlines: a client that sends or reads slowly is given up on, and the connection's next request inherits nothing.
func TestDeadlines(t *testing.T) {
	a := newTestAPI(t, Options{})
	for _, test := range []struct {
		method, target, key, body string
		handler                   http.Handler
	}{
		{"POST", "/v1/widgets", fullKey, `{"name":"a"}`, a.Public()},
		{"DELETE", "/v1/widgets/1", fullKey, `{}`, a.Public()},
		{"POST", "/v1/edge/widgets", edgeKey, `{}`, a.Edge()},
	} {
		d := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		r := httptest.NewRequest(test.method, test.target, strings.NewReader(test.body))
		r.Header.Set("Authorization", "Bearer "+test.key)
		r.Header.Set("Content-Type", jsonType)
		test.handler.ServeHTTP(d, r)
		if d.Code >= 300 {
			t.Fatalf("%s: %d %s", test.target, d.Code, d.Body)
		}
		for kind, set := range map[string][]time.Time{"read": d.read, "write": d.write} {
			if len(set) < 2 || set[0].IsZero() || time.Until(set[0]) > time.Minute || !set[len(set)-1].IsZero() {
				t.Errorf("%s %s: %s deadlines %v", test.method, test.target, kind, set)
			}
		}
	}
}

// TestLargeBodiesAtOnce: their memory is bounded, whoever sends them.
func TestLargeBodiesAtOnce(t *testing.T) {
	a := newTestAPI(t, Options{})
	for range mostLarge {
		a.large <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequestWithContext(ctx, "POST", "/v1/edge/widgets", strings.NewReader("{}"))
	r.Header.Set("Authorization", "Bearer "+edgeKey)
	r.Header.Set("Content-Type", jsonType)
	w := httptest.NewRecorder()
	a.Edge().ServeHTTP(w, r)
	wantProblem(t, w, management.Unavailable)
	<-a.large
	wantStatus(t, a.send(request{method: "POST", target: "/v1/edge/widgets", edge: true, body: "{}"}), 200)
	if len(a.large) != mostLarge-1 {
		t.Errorf("%d places are taken", len(a.large))
	}
}

// TestAuditPages: every entry is on one page, newest first, and none is another tenant's.
func TestAuditPages(t *testing.T) {
	w := newAuthWorld(t)
	for range 3 {
		aDomain(w, w.first)
	}
	var ids []string
	path := "/v1/audit?limit=2"
	for range 50 {
		var page list[management.Event]
		w.decode(w.send(authRequest{face: w.public, credential: w.first.key, method: "GET", path: path}), &page)
		if len(page.Data) > 2 {
			t.Fatalf("%d entries in a page", len(page.Data))
		}
		for _, e := range page.Data {
			if e.TenantID != w.first.tenant || len(ids) > 0 && e.ID >= ids[len(ids)-1] {
				t.Errorf("%+v after %v", e, ids)
			}
			ids = append(ids, e.ID)
		}
		if page.NextCursor == nil {
			break
		}
		path = "/v1/audit?limit=2&cursor=" + *page.NextCursor
	}
	if len(ids) < 5 {
		t.Errorf("%d entries", len(ids))
	}
	var all list[management.Event]
	w.decode(w.send(authRequest{face: w.public, credential: w.first.key, method: "GET", path: "/v1/audit?limit=200"}), &all)
	if len(all.Data) != len(ids) {
		t.Errorf("%d entries in pages, %d at once", len(ids), len(all.Data))
	}
	for _, cursor := range []string{"x", "evt_", management.NewID(management.DomainID)} {
		w.want(authRequest{face: w.public, credential: w.first.key, method: "GET", path: "/v1/audit?cursor=" + cursor}, http.StatusUnprocessableEntity)
	}
	var created list[management.Event]
	w.decode(w.send(authRequest{face: w.public, credential: w.first.key, method: "GET",
		path: fmt.Sprintf("/v1/audit?action=domain.created&object=%s", w.first.domain)}), &created)
	if len(created.Data) != 1 || created.Data[0].Object != w.first.domain || created.Data[0].Actor == "" || string(created.Data[0].Before) != "null" {
		t.Errorf("%+v", created.Data)
	}
}
