package feed

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestPost sends bodies over each protocol, on one connection, with the token in its header and nowhere else, and meets a
// server that closes the connection in between.
func TestPost(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			leavesNothing(t)
			var got atomic.Value
			s := serve(t, protocol, func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil || r.Method != http.MethodPost || r.Header.Get("Authorization") != "Bearer "+testToken || r.Header.Get("Content-Encoding") != "gzip" || strings.Contains(r.URL.String(), testToken) {
					t.Errorf("%v: %s %s %v", err, r.Method, r.URL, r.Header)
				}
				got.Store(string(body))
				_, _ = io.WriteString(w, "taken")
			})
			c := s.client(t, func(cfg *Config) { cfg.Token = func() (string, error) { return testToken, nil } })
			header := http.Header{"Content-Encoding": {"gzip"}}
			for _, body := range []string{"one", strings.Repeat("two", 1<<20)} {
				answer, err := c.Post(t.Context(), []byte(body), header)
				if err != nil || string(answer) != "taken" || got.Load() != body {
					t.Fatalf("answer %q, %v", answer, err)
				}
			}
			if accepted, _ := s.counts(); accepted != 1 {
				t.Errorf("there were %d connections", accepted)
			}
			s.CloseClientConnections()
			if answer, err := c.Post(t.Context(), []byte("three"), header); err != nil || string(answer) != "taken" || got.Load() != "three" {
				t.Errorf("after the connection was closed: %q, %v", answer, err)
			}
			if len(header) != 1 {
				t.Errorf("the caller's header is now %v", header)
			}
			c.Close()
		})
	}
}

// TestPostFailures has the server fail. The error says how, and has no token.
func TestPostFailures(t *testing.T) {
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		shorten func(*Client)
		reason  Reason
		status  int
	}{
		{name: "503", reason: Status, status: 503, handler: func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, r.Header.Get("Authorization"), http.StatusServiceUnavailable)
		}},
		{name: "204", reason: Status, status: 204, handler: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }},
		{name: "redirect", reason: Redirect, status: 307, handler: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}},
		{name: "endless", reason: TooLarge, handler: func(w http.ResponseWriter, _ *http.Request) { endless(w, []byte("again ")) }},
		{name: "hangs", reason: Unreachable, shorten: func(c *Client) { c.header = 50 * time.Millisecond }, handler: func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}},
		{name: "hangs in the answer", reason: TooSlow, shorten: func(c *Client) { c.header = 50 * time.Millisecond }, handler: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			panic(http.ErrAbortHandler) // else the answer would end in order, maybe before the client has hung up entirely
		}},
	} {
		for _, protocol := range protocols {
			t.Run(c.name+"/"+protocol, func(t *testing.T) {
				leavesNothing(t)
				s := serve(t, protocol, c.handler)
				client := s.client(t, func(cfg *Config) { cfg.Token = func() (string, error) { return testToken, nil } })
				if c.shorten != nil {
					c.shorten(client)
				}
				answer, err := client.Post(t.Context(), []byte("body"), nil)
				if c.status == 503 && strings.TrimSpace(string(answer)) != "Bearer "+testToken {
					t.Errorf("the body beside the error is %q", answer)
				}
				var failed *Error
				if !errors.As(err, &failed) || failed.Reason != c.reason || failed.Status != c.status {
					t.Fatalf("answer %q, %v", answer, err)
				}
				if strings.Contains(err.Error(), testToken) || strings.Contains(err.Error(), secretQuery) {
					t.Errorf("a secret is in %q", err)
				}
				client.Close()
			})
		}
	}
}
