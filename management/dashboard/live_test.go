package dashboard

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// listen opens a stream on a real server, as a browser does.
func (b *browser) listen(ctx context.Context, server *httptest.Server, path, last string) *http.Response {
	b.t.Helper()
	r, err := http.NewRequestWithContext(ctx, "GET", server.URL+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Accept", "text/event-stream")
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	for _, cookie := range b.cookies {
		r.AddCookie(&http.Cookie{Name: cookie.Name, Value: cookie.Value})
	}
	res, err := server.Client().Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { res.Body.Close() })
	return res
}

// event reads the next event; comments and retry are passed over.
func event(t *testing.T, in *bufio.Reader) (name, id, data string) {
	t.Helper()
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("the stream ended: %v", err)
		}
		line = strings.TrimSuffix(line, "\n")
		key, value, _ := strings.Cut(line, ": ")
		switch key {
		case "event":
			name = value
		case "id":
			id = value
		case "data":
			data += value + "\n"
		case "":
			if name != "" {
				return name, id, data
			}
		}
	}
}

func TestLive(t *testing.T) {
	s, th := newThings(t)
	b := s.signedIn()
	server := httptest.NewTLSServer(s)
	defer server.Close()
	defer s.Close() // before the server, which waits for its connections

	res := b.listen(t.Context(), server, "/things/1/live", "")
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "text/event-stream; charset=utf-8" || res.Header.Get("Content-Security-Policy") != policy {
		t.Fatal(res.StatusCode, res.Header)
	}
	in := bufio.NewReader(res.Body)
	name, id, data := event(t, in)
	if name != "fragment" || data != "<p id=\"part\">one</p>\n<p>7</p>\n" || id == "" {
		t.Errorf("%s %s %q", name, id, data)
	}
	th.mu.Lock()
	th.name = hostile
	th.mu.Unlock()
	name, changed, data := event(t, in)
	if name != "fragment" || changed == id || strings.Contains(data, "<script") || !strings.Contains(data, "&lt;script&gt;") {
		t.Errorf("%s %s %q", name, changed, data)
	}

	// Who comes back with what is still so gets nothing until it changes: no flicker.
	back := bufio.NewReader(b.listen(t.Context(), server, "/things/1/live", changed).Body)
	th.mu.Lock()
	th.name = "three"
	th.mu.Unlock()
	if _, _, data := event(t, back); !strings.Contains(data, "three") {
		t.Errorf("after coming back: %q", data)
	}
	s.Close()
	if _, err := io.ReadAll(back); err != nil {
		t.Errorf("closing the dashboard cuts streams: %v", err)
	}
}

// TestLiveFallback wants the same URL to give the part as it is, and never a page to sign in.
func TestLiveFallback(t *testing.T) {
	s, _ := newThings(t)
	b := s.signedIn()
	fragment := http.Header{"Pqproxy-Fragment": {"1"}, "Accept": {"text/html"}}
	b.do("GET", "/things/1/live", nil, fragment).mustBe(http.StatusOK, "<p id=\"part\">one</p>\n<p>7</p>")
	stranger := s.browser()
	stranger.do("GET", "/things/1/live", nil, fragment).mustBe(http.StatusUnauthorized, "Sign in first.\n")
	stranger.do("GET", "/things/1/live", nil, http.Header{"Accept": {"text/event-stream"}}).mustBe(http.StatusUnauthorized, "Sign in first.\n")
}

// TestLiveEndsWithSession has a stream whose session ends.
func TestLiveEndsWithSession(t *testing.T) {
	s, _ := newThings(t)
	b := s.signedIn()
	ended := make(chan error, 1)
	s.routes = append(s.routes, route{method: "GET", path: "/things/1/tail", endless: true, scope: management.DomainsRead, handle: func(c *ctx) error {
		return c.stream(func(st *stream) error {
			if err := st.sendFragment("append", "thing", "part-thing", thingData{Name: "row"}); err != nil {
				return err
			}
			if err := s.plane.LogOut(c.ctx, nobody(), b.cookies[auth.SessionCookie].Value); err != nil {
				return err
			}
			st.checked = time.Now().Add(-streamCheck)
			err := st.keep()
			ended <- err
			return err
		})
	}})
	server := httptest.NewTLSServer(s)
	defer server.Close()
	in := bufio.NewReader(b.listen(t.Context(), server, "/things/1/tail", "").Body)
	if name, _, data := event(t, in); name != "append" || !strings.Contains(data, "row") {
		t.Errorf("%s %q", name, data)
	}
	if name, _, data := event(t, in); name != "gone" || data != "unauthenticated\n" {
		t.Errorf("%s %q", name, data)
	}
	if err := <-ended; management.CodeOf(err) != management.Unauthenticated {
		t.Error(err)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	s := newStreams()
	var leave []func()
	for range mostStreamsOf {
		l, ok := s.enter("usr_a")
		if !ok {
			t.Fatal("too few streams")
		}
		leave = append(leave, l)
	}
	if _, ok := s.enter("usr_a"); ok {
		t.Error("one user has streams without end")
	}
	if _, ok := s.enter("usr_b"); !ok {
		t.Error("one user keeps others from streams")
	}
	for _, l := range leave {
		l()
	}
	if _, ok := s.enter("usr_a"); !ok || len(s.of) != 2 {
		t.Error("what ended still counts")
	}
	s.close()
	s.close()
}

// deadlines remembers the last deadline for writing.
type deadlines struct {
	*httptest.ResponseRecorder
	last time.Time
	set  int
}

func (d *deadlines) SetWriteDeadline(at time.Time) error {
	d.last = at
	d.set++
	return nil
}

// TestStreamLeavesNoDeadline: over HTTP/2 a deadline that passes ends the stream, also where nothing is being written.
func TestStreamLeavesNoDeadline(t *testing.T) {
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	s := &stream{c: &ctx{w: w}, control: http.NewResponseController(w)}
	if err := s.send("fragment", "1", []byte("<p>one</p>\n")); err != nil {
		t.Fatal(err)
	}
	if w.set != 2 || !w.last.IsZero() {
		t.Errorf("after %d settings the deadline is %v, want one while it writes and none afterwards", w.set, w.last)
	}
}
