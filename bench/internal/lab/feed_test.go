//go:build linux

package lab

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func newFeed(t *testing.T) *Feed {
	t.Helper()
	f, err := StartFeed()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// reply is an answer of the feed.
type reply struct {
	status        int
	etag, applied string
	text          string
	set           struct {
		Revision, Base uint64
		Domains        []struct{ Name string }
		Removed        []string
	}
}

// get asks the feed; headers are pairs.
func get(t *testing.T, f *Feed, query string, headers ...string) reply {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.URL+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Add(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	r := reply{status: res.StatusCode, etag: res.Header.Get("ETag"), applied: res.Header.Get("Preference-Applied"), text: string(body)}
	if r.status == http.StatusOK {
		if err := json.Unmarshal(body, &r.set); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
	}
	return r
}

func element(name string) []byte { return []byte(`{"name":"` + name + `"}`) }

func TestFeedFullSet(t *testing.T) {
	f := newFeed(t)
	if r := get(t, f, ""); r.status != http.StatusServiceUnavailable {
		t.Errorf("before anything is published: %d, want 503", r.status)
	}
	revision, a := f.PublishFull(element("a"), false)
	r := get(t, f, "")
	if r.status != http.StatusOK || r.etag != `"1"` || revision != 1 || r.set.Revision != 1 || r.set.Base != 0 || len(r.set.Domains) != 1 {
		t.Errorf("the full set is %+v", r)
	}
	<-a.Done
	if a.Err != nil || a.Bytes != int64(len(r.text)) || !a.Full || a.Start.IsZero() || a.End.Before(a.Start) {
		t.Errorf("the answer was noted as %+v", a)
	}
	if r := get(t, f, "", "If-None-Match", `"1"`); r.status != http.StatusNotModified || r.etag != `"1"` || r.applied != "" {
		t.Errorf("with the same ETag: %+v, want 304", r)
	}
	if r := get(t, f, "?after=1"); r.status != http.StatusNotModified {
		t.Errorf("after the newest revision: %+v, want 304", r)
	}
	if r := get(t, f, "", "If-None-Match", `"0"`); r.status != http.StatusOK {
		t.Errorf("with an older ETag: %d, want the set", r.status)
	}
}

func TestFeedDeltas(t *testing.T) {
	f := newFeed(t)
	f.PublishFull(element("a"), false)
	f.PublishDelta(element("b"), nil, nil)
	_, last := f.PublishDelta([]byte{}, []string{"a", "x"}, nil)

	r := get(t, f, "?after=1")
	if r.status != http.StatusOK || r.set.Base != 1 || r.set.Revision != 2 || len(r.set.Domains) != 1 || r.etag != `"2"` {
		t.Errorf("the first delta is %+v", r)
	}
	r = get(t, f, "?after=2", "If-None-Match", `"2"`)
	if r.status != http.StatusOK || r.set.Base != 2 || r.set.Revision != 3 || strings.Join(r.set.Removed, " ") != "a x" || r.set.Domains == nil {
		t.Errorf("the second delta is %+v", r)
	}
	<-last.Done
	if last.Full || last.Err != nil {
		t.Errorf("the delta was noted as %+v", last)
	}
	if r := get(t, f, ""); r.status != http.StatusServiceUnavailable {
		t.Errorf("a full set that is not kept: %d, want 503", r.status)
	}
	if r := get(t, f, "?after=77"); r.status != http.StatusGone {
		t.Errorf("after a revision that never was: %d, want 410", r.status)
	}
}

func TestFeedReplacesASet(t *testing.T) {
	f := newFeed(t)
	f.PublishFull(element("a"), false)
	f.PublishDelta(element("b"), nil, nil)
	f.PublishFull(element("c"), false)
	if r := get(t, f, "?after=2"); r.status != http.StatusOK || r.set.Base != 0 || r.set.Revision != 3 || r.set.Domains[0].Name != "c" {
		t.Errorf("from the revision before: %+v, want the full set", r)
	}
	if r := get(t, f, "?after=1"); r.status != http.StatusGone {
		t.Errorf("from an older one: %d, want 410", r.status)
	}
	f.PublishFull(element("d"), true)
	if r := get(t, f, "?after=3"); r.status != http.StatusGone {
		t.Errorf("where the feed has forgotten: %d, want 410", r.status)
	}
	if r := get(t, f, "", "If-None-Match", `"3"`); r.status != http.StatusOK || r.set.Revision != 4 {
		t.Errorf("without after: %+v, want the full set", r)
	}
}

func TestFeedLongPoll(t *testing.T) {
	f := newFeed(t)
	f.PublishFull(element("a"), false)
	got := make(chan reply)
	go func() { got <- get(t, f, "?after=1", "If-None-Match", `"1"`, "Prefer", "respond-async, wait=25") }()
	_, a := f.PublishDelta(element("b"), nil, nil)
	r := <-got
	if r.status != http.StatusOK || r.set.Revision != 2 || r.applied != "wait" {
		t.Errorf("the poll was answered with %+v", r)
	}
	<-a.Done
}

func TestFeedAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &Feed{revision: 3, changed: make(chan struct{}), deltas: map[uint64]delta{}, answered: map[uint64]*Answer{}}
		start := time.Now()
		if got := f.await(t.Context(), `"3"`, 0, 25*time.Second); got != 3 || time.Since(start) != 25*time.Second {
			t.Errorf("await = %d after %v, want 3 after 25s", got, time.Since(start))
		}
		start = time.Now()
		if f.await(t.Context(), "", 2, 25*time.Second); time.Since(start) != 0 {
			t.Errorf("an edge that is behind waited %v", time.Since(start))
		}
		go func() {
			time.Sleep(time.Second)
			f.PublishFull([]byte{}, true)
		}()
		if got := f.await(t.Context(), "", 3, 25*time.Second); got != 4 || time.Since(start) != time.Second {
			t.Errorf("await = %d after %v, want 4 after 1s", got, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if f.await(ctx, "", 4, 25*time.Second); time.Since(start) != time.Second {
			t.Error("an edge that has gone was waited for")
		}
	})
}

func TestFeedRefuses(t *testing.T) {
	f := newFeed(t)
	f.PublishFull(element("a"), false)
	if r := get(t, f, "?after=x"); r.status != http.StatusBadRequest {
		t.Errorf("after=x: %d, want 400", r.status)
	}
	res, err := http.Post(f.URL, "application/json", nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d, want 405", res.StatusCode)
	}
}

func TestPreferredWait(t *testing.T) {
	for _, tt := range []struct {
		in   []string
		want time.Duration
	}{
		{nil, 0},
		{[]string{"wait=25"}, 25 * time.Second},
		{[]string{"respond-async", "Wait = 5"}, 5 * time.Second},
		{[]string{"return=minimal, wait=1"}, time.Second},
		{[]string{"wait=86400"}, longestWait},
		{[]string{"wait=-1"}, 0},
		{[]string{"wait"}, 0},
	} {
		if got := preferredWait(tt.in); got != tt.want {
			t.Errorf("preferredWait(%q) = %v, want %v", tt.in, got, tt.want)
		}
	}
}
