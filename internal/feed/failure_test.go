package feed

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// httpGotConn tells a that it has a connection, as the transport does.
func httpGotConn(a *attempt) {
	conn, peer := net.Pipe()
	peer.Close()
	httptrace.ContextClientTrace(a.ctx).GotConn(httptrace.GotConnInfo{Conn: conn})
}

// answerRaw starts a TCP server that reads the header of a request, hands the connection to answer, and closes
// it. It returns its address.
func answerRaw(t *testing.T, answer func(net.Conn)) string {
	t.Helper()
	return listen(t, func(conn net.Conn) {
		if readRequest(conn) {
			answer(conn)
		}
	})
}

// readRequest reads the header of a request.
func readRequest(conn net.Conn) bool {
	var got []byte
	for buf := make([]byte, 4<<10); !bytes.Contains(got, []byte("\r\n\r\n")); {
		n, err := conn.Read(buf)
		if err != nil {
			return false
		}
		got = append(got, buf[:n]...)
	}
	return true
}

// listen starts a TCP server. Connections are closed when handle returns, and have a deadline, so that no test
// hangs.
func listen(tb testing.TB, handle func(net.Conn)) (addr string) {
	tb.Helper()
	return listenOn(tb, "tcp", "127.0.0.1:0", handle)
}

func listenOn(tb testing.TB, network, address string, handle func(net.Conn)) (addr string) {
	tb.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(pqtest.Timeout))
			handle(conn)
			conn.Close()
		}
	}()
	tb.Cleanup(func() {
		ln.Close()
		<-done
	})
	return ln.Addr().String()
}

// endless writes b again and again, until the client is gone.
func endless(w io.Writer, b []byte) {
	for {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

// TestFailures has a server fail in every way, over each protocol. Each time the error says what it was, no file,
// goroutine or connection stays behind but one that can be used again, and the next Fetch succeeds.
func TestFailures(t *testing.T) {
	signer, zeros := testKey(t, 1), gzipped(string(make([]byte, 8<<20)))
	tests := []struct {
		name    string
		handler http.HandlerFunc
		shorten func(*Client)
		keys    bool
		reason  Reason
		says    string
		keeps   bool // the connection is used again
		retry   bool // Retryable
	}{
		{name: "500", reason: Status, says: `status 500 Internal Server Error; the answer begins "out of order"`, keeps: true, retry: true,
			handler: func(w http.ResponseWriter, r *http.Request) { http.Error(w, "out of order", 500) }},
		{name: "endless 500", reason: Status, says: "status 500", retry: true,
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(500)
				endless(w, []byte("again\n"))
			}},
		{name: "500 that hangs", reason: Status, says: `begins "half"`, retry: true, shorten: func(c *Client) { c.drain = 50 * time.Millisecond },
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(500)
				io.WriteString(w, "half")
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}},
		{name: "no header", reason: Unreachable, says: "no answer within 50ms", retry: true, shorten: func(c *Client) { c.header = 50 * time.Millisecond },
			handler: func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{name: "aborted before the header", reason: Unreachable, retry: true,
			handler: func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }},
		{name: "huge header", reason: Unreachable, retry: true,
			handler: func(w http.ResponseWriter, r *http.Request) {
				for range 20 {
					w.Header().Add("X-Long", strings.Repeat("x", 4<<10))
				}
			}},
		{name: "a byte, then nothing", reason: TooSlow, says: "too slowly", retry: true, shorten: func(c *Client) { c.allowance = 50 * time.Millisecond },
			handler: func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, set[:1])
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}},
		{name: "truncated", reason: Truncated, says: "broke off after 10 bytes", retry: true,
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "100")
				io.WriteString(w, set[:10])
				http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}},
		{name: "truncated, length unknown", reason: Truncated, says: "broke off after 10 bytes", retry: true,
			handler: func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, set[:10])
				http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}},
		{name: "truncated gzip", reason: Truncated, says: "broke off", retry: true,
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				w.Write(gzipped(set)[:20])
				http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}},
		{name: "10 GB", reason: TooLarge, says: "max_body, 1048576 bytes",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "10000000000")
				w.WriteHeader(200)
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}},
		{name: "endless", reason: TooLarge, says: "max_body, 1048576 bytes",
			handler: func(w http.ResponseWriter, r *http.Request) { endless(w, []byte(set)) }},
		{name: "gzip bomb", reason: TooLarge, says: "max_body, 1048576 bytes",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				endless(w, zeros)
			}},
		{name: "endless empty gzip streams", reason: TooLarge, says: "max_body, 1048576 bytes",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				endless(w, bytes.Repeat(gzipped(""), 1000))
			}},
		{name: "damaged gzip", reason: Encoding, says: "damaged",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				endless(w, []byte(set))
			}},
		{name: "unsigned", reason: Signature, says: "no signature", keys: true,
			handler: func(w http.ResponseWriter, r *http.Request) { endless(w, []byte(set)) }},
		{name: "wrong signature", reason: Signature, says: "does not fit", keys: true, keeps: true,
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set(feedsig.Header, signer.Sign([64]byte{}))
				io.WriteString(w, set)
			}},
	}
	for _, protocol := range protocols {
		for _, tt := range tests {
			t.Run(protocol+"/"+tt.name, func(t *testing.T) {
				leavesNothing(t)
				var well atomic.Bool
				s := serve(t, protocol, func(w http.ResponseWriter, r *http.Request) {
					if !well.Load() {
						tt.handler(w, r)
						return
					}
					w.Header().Set(feedsig.Header, signer.Sign(digest(set)))
					io.WriteString(w, set)
				})
				c := s.client(t, func(cfg *Config) {
					if tt.keys {
						cfg.Keys = feedsig.Keys{signer.Public()}
					}
				})
				var file *os.File
				createTemp := c.createTemp
				c.createTemp = func() (_ *os.File, err error) {
					file, err = createTemp()
					return file, err
				}
				transport := c.current()
				header, drain, allowance := c.header, c.drain, c.allowance
				if tt.shorten != nil {
					tt.shorten(c)
				}
				if e := fails(t, c, Request{}, tt.reason, tt.says); e.Retryable() != tt.retry {
					t.Errorf("%v: Retryable is %t", e, e.Retryable())
				}
				c.header, c.drain, c.allowance = header, drain, allowance
				if file != nil && !errors.Is(file.Close(), os.ErrClosed) {
					t.Error("the temporary file was left open")
				}

				want := 1
				if !tt.keeps {
					want = 2
					if c.current() == transport {
						t.Error("the transport may still offer the connection")
					}
					pqtest.Wait(t, "the connection to be closed", func() bool {
						_, open := s.counts()
						return open == 0
					})
				}
				well.Store(true)
				if _, got := get(t, c, Request{}); got != set {
					t.Errorf("afterwards it answers %q", got)
				}
				if accepted, _ := s.counts(); accepted != want {
					t.Errorf("there were %d connections, want %d", accepted, want)
				}
			})
		}
	}
}

func TestDown(t *testing.T) {
	leavesNothing(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	e := fails(t, newClient(t, "http://"+ln.Addr().String()+"/feed?"+secretQuery), Request{}, Unreachable,
		"fetching http://"+ln.Addr().String()+"/feed: dial tcp "+ln.Addr().String()+": ")
	var opErr *net.OpError
	if !errors.As(e, &opErr) || !e.Retryable() {
		t.Errorf("got %v", e)
	}
}

// TestRawAnswers is about what no handler of net/http sends.
func TestRawAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		reason       Reason
		says         string
	}{
		{"silence", "", Unreachable, "EOF"},
		{"SSH", "SSH-2.0-OpenSSH_9.6\r\n" + testToken, Unreachable, `malformed HTTP response "SSH-2.0-OpenSSH_9.6"`},
		{"a long line", "HTTP " + strings.Repeat(testToken, 2000) + "\r\n\r\n", Unreachable, "malformed HTTP"},
		{"an endless line", strings.Repeat("x", 128<<10), Unreachable, ""},
		{"hints for ever", strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 10_000), Unreachable, ""},
		{"half a header", "HTTP/1.1 200 OK\r\nContent-Le", Unreachable, "malformed MIME header"},
		{"bad length", "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", Unreachable, "bad Content-Length"},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", Unreachable, "Content-Length"},
		{"bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Truncated, "broke off after 0 bytes: invalid byte in chunk length"},
		{"switching", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nbytes", Status, "status 101"},
		{"unknown status", "HTTP/1.1 799 " + testToken + "\r\nContent-Length: 0\r\n\r\n", Status, "status 799"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leavesNothing(t)
			addr := answerRaw(t, func(conn net.Conn) { io.WriteString(conn, tt.answer) })
			fails(t, newClient(t, "http://"+addr+"/feed?"+secretQuery), Request{}, tt.reason, tt.says)
		})
	}
}

func TestStatus(t *testing.T) {
	leavesNothing(t)
	tests := []struct {
		name, coding string
		status       int
		body         []byte
		noToken      bool
		says         string // to its end
		retry        bool
	}{
		{"no text", "", 500, nil, false, "feed: status 500 Internal Server Error", true},
		{"first line", "", 503, []byte(" \r\n maintenance \r\nuntil noon"), false, `feed: status 503 Service Unavailable; the answer begins "maintenance"`, true},
		{"long line", "", 502, []byte(strings.Repeat("ä", 3000)), false, `begins "` + strings.Repeat("ä", 120) + `…"`, true},
		{"binary", "", 500, []byte("\x00\xff\x1b[31m\u202e\"red\""), false, `begins "???[31m?\"red\""`, true},
		{"gzip", "gzip", 500, gzipped("squeezed\n" + strings.Repeat(" ", 1<<20)), false, `begins "squeezed"`, true},
		{"damaged gzip", "gzip", 500, []byte("not gzip"), false, "status 500 Internal Server Error", true},
		{"cut gzip", "gzip", 500, gzipped("squeezed\n", "more")[:34], false, `begins "squeezed"`, true},
		{"repeats the token", "", 500, []byte("no user has " + testToken + " here"), false, `begins "no user has [token] here"`, true},
		{"unauthorised", "", 401, []byte("go away"), false, `status 401 Unauthorized; look at the token, it is wrong, withdrawn or not meant for this; the answer begins "go away"`, false},
		{"forbidden", "", 403, nil, false, "status 403 Forbidden; look at the token, it is wrong, withdrawn or not meant for this", false},
		{"no token", "", 401, nil, true, "status 401 Unauthorized; no token is sent, set the token", false},
		{"not found", "", 404, nil, false, "status 404 Not Found", false},
		{"timeout", "", 408, nil, false, "status 408 Request Timeout", true},
		{"too many", "", 429, nil, false, "status 429 Too Many Requests", true},
		{"no content", "", 204, nil, false, "status 204 No Content", false},
		{"part", "", 206, []byte(set), false, `status 206 Partial Content; the answer begins "{\"revision\":420,\"domains\":[]}"`, false},
		{"choices", "", 300, nil, false, "status 300 Multiple Choices", false},
		{"unknown", "", 599, nil, false, "status 599", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, "http/1.1", func(w http.ResponseWriter, r *http.Request) {
				if tt.coding != "" {
					w.Header().Set("Content-Encoding", tt.coding)
				}
				w.WriteHeader(tt.status)
				w.Write(tt.body)
			})
			c := s.client(t, func(cfg *Config) {
				if tt.noToken {
					cfg.Token = nil
				}
			})
			e := fails(t, c, Request{}, Status, "")
			if !strings.HasSuffix(e.Error(), tt.says) || e.Status != tt.status || e.Retryable() != tt.retry {
				t.Errorf("got %d, retryable %t: %v\nwant %s", e.Status, e.Retryable(), e, tt.says)
			}
			// The texts here are short, so that the connection serves another request.
			fails(t, c, Request{}, Status, "")
			if accepted, _ := s.counts(); accepted != 1 {
				t.Errorf("there were %d connections", accepted)
			}
		})
	}
}

func TestRedirect(t *testing.T) {
	leavesNothing(t)
	var followed atomic.Int32
	elsewhere := serve(t, "http/1.1", func(w http.ResponseWriter, r *http.Request) { followed.Add(1) })
	for _, tt := range []struct {
		status         int
		location, says string
	}{
		{301, elsewhere.URL + "/feed?" + testToken, "it redirects to " + elsewhere.URL + " (status 301 Moved Permanently), which is not followed"},
		{302, "https://user:sekrit@elsewhere.example:9443/" + testToken + "#x", "it redirects to https://elsewhere.example:9443 (status 302"},
		{303, "//" + testToken + "/", "it redirects to http://[token] (status 303"},
		{307, "http://%zz/", "it redirects to an address that cannot be read (status 307"},
		{308, "", "it redirects to an address that cannot be read (status 308"},
		{308, "https://" + strings.Repeat("x", 10_000), "xxx… (status 308"},
	} {
		s := serve(t, "http/1.1", func(w http.ResponseWriter, r *http.Request) {
			if tt.location != "" {
				w.Header().Set("Location", tt.location)
			}
			w.WriteHeader(tt.status)
		})
		if e := fails(t, s.client(t), Request{}, Redirect, tt.says); e.Status != tt.status || e.Retryable() {
			t.Errorf("got %d: %v", e.Status, e)
		}
		if tt.location == "" {
			continue
		}
		// A redirect within the server is none that is followed either.
		s = serve(t, "http/1.1", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/feed/" {
				followed.Add(1)
			}
			w.Header().Set("Location", "/feed/")
			w.WriteHeader(tt.status)
		})
		fails(t, s.client(t), Request{}, Redirect, "it redirects to "+s.URL+" ")
	}
	if followed.Load() > 0 {
		t.Error("a redirect was followed")
	}
}

// TestCancelled ends the context in each phase: Fetch returns, and its connection is closed.
func TestCancelled(t *testing.T) {
	hang := func(reached chan<- struct{}) func(net.Conn) {
		return func(conn net.Conn) {
			buf := make([]byte, 1<<10)
			if _, err := conn.Read(buf); err == nil {
				close(reached)
				_, err = io.Copy(io.Discard, conn)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the connection was left open")
				}
			}
		}
	}
	cancelled := func(t *testing.T, c *Client, reached <-chan struct{}) {
		t.Helper()
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			<-reached
			cancel(errors.New("a cause that is not ours"))
		}()
		answer, err := c.Fetch(ctx, Request{Wait: time.Hour})
		if e := failed(t, answer, err); e.Reason != Cancelled || !errors.Is(e, context.Canceled) || e.Retryable() {
			t.Errorf("got %s: %v", e.Reason, err)
		}
	}
	t.Run("TLS handshake", func(t *testing.T) {
		leavesNothing(t)
		reached := make(chan struct{})
		c := newClient(t, "https://"+listen(t, hang(reached)))
		c.transport.TLSHandshakeTimeout = 0 // which would do it too, later
		cancelled(t, c, reached)
	})
	t.Run("connect", func(t *testing.T) {
		leavesNothing(t)
		reached, ended := make(chan struct{}), make(chan struct{})
		c := newClient(t, "http://127.0.0.1:1")
		c.dialer.ControlContext = func(ctx context.Context, _, _ string, _ syscall.RawConn) error {
			close(reached)
			<-ctx.Done()
			close(ended)
			return ctx.Err()
		}
		cancelled(t, c, reached)
		select {
		case <-ended:
		case <-time.After(pqtest.Timeout):
			t.Error("connecting goes on")
		}
	})
	t.Run("before", func(t *testing.T) {
		leavesNothing(t)
		s := serve(t, "http/1.1", func(w http.ResponseWriter, r *http.Request) { t.Error("asked all the same") })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		answer, err := s.client(t).Fetch(ctx, Request{})
		if e := failed(t, answer, err); e.Reason != Cancelled || !errors.Is(e, context.Canceled) {
			t.Errorf("got %s: %v", e.Reason, err)
		}
	})
	for _, protocol := range protocols {
		for name, begin := range map[string]func(http.ResponseWriter){
			"header": func(http.ResponseWriter) {},
			"body": func(w http.ResponseWriter) {
				io.WriteString(w, set[:1])
				http.NewResponseController(w).Flush()
			},
		} {
			t.Run(protocol+"/"+name, func(t *testing.T) {
				leavesNothing(t)
				reached := make(chan struct{})
				s := serve(t, protocol, func(w http.ResponseWriter, r *http.Request) {
					begin(w)
					close(reached)
					<-r.Context().Done()
				})
				cancelled(t, s.client(t), reached)
				pqtest.Wait(t, "the connection to be closed", func() bool {
					_, open := s.counts()
					return open == 0
				})
			})
		}
	}
	t.Run("deadline", func(t *testing.T) {
		leavesNothing(t)
		s := serve(t, "h2", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		answer, err := s.client(t).Fetch(ctx, Request{})
		if e := failed(t, answer, err); e.Reason != Cancelled || !errors.Is(e, context.DeadlineExceeded) {
			t.Errorf("got %s: %v", e.Reason, err)
		}
	})
}
