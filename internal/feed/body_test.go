package feed

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
)

func gzipped(parts ...string) []byte {
	var b bytes.Buffer
	for _, part := range parts {
		w := gzip.NewWriter(&b)
		io.WriteString(w, part)
		w.Close()
	}
	return b.Bytes()
}

func TestEncoding(t *testing.T) {
	leavesNothing(t)
	long := strings.Repeat(set, 10_000) // several reads
	flipped := gzipped(long)
	flipped[len(flipped)-5] ^= 1 // the checksum
	tests := []struct {
		name   string
		coding []string
		body   []byte
		want   string
		says   string
	}{
		{"absent", nil, []byte(set), set, ""},
		{"identity", []string{"identity"}, []byte(set), set, ""},
		{"empty", nil, nil, "", ""},
		{"gzip", []string{"gzip"}, gzipped(set), set, ""},
		{"long", []string{"gzip"}, gzipped(long), long, ""},
		{"upper case", []string{"GZip"}, gzipped(set), set, ""},
		{"old name", []string{"x-gzip"}, gzipped(set), set, ""},
		{"two streams", []string{"gzip"}, gzipped(set, "", long), set + long, ""},
		{"empty stream", []string{"gzip"}, gzipped(""), "", ""},
		{"HTML", nil, []byte("<html>"), "<html>", ""}, // the parser's to refuse

		{"no stream", []string{"gzip"}, nil, "", "damaged: unexpected EOF"},
		{"not gzip", []string{"gzip"}, []byte(set), "", "damaged: gzip: invalid header"},
		{"stream cut", []string{"gzip"}, gzipped(long)[:100], "", "damaged: unexpected EOF"},
		{"trailer cut", []string{"gzip"}, gzipped(set)[:len(gzipped(set))-1], "", "damaged: unexpected EOF"},
		{"second stream cut", []string{"gzip"}, append(gzipped(set), gzipped(set)[:12]...), "", "damaged: unexpected EOF"},
		{"checksum", []string{"gzip"}, flipped, "", "damaged: gzip: invalid checksum"},
		{"trailing text", []string{"gzip"}, append(gzipped(set), "more than ten bytes"...), "", "damaged: gzip: invalid header"},
		{"trailing byte", []string{"gzip"}, append(gzipped(set), 0), "", "damaged: unexpected EOF"},
		{"unknown", []string{"br"}, []byte(set), "", `Content-Encoding is "br"`},
		{"twice", []string{"gzip, gzip"}, gzipped(string(gzipped(set))), "", `Content-Encoding is "gzip, gzip"`},
		{"in two fields", []string{"gzip", "gzip"}, gzipped(string(gzipped(set))), "", `Content-Encoding is "gzip,gzip"`},
		{"hostile", []string{"\u202e" + strings.Repeat("x", 1000)}, []byte(set), "", `Content-Encoding is "?xxx`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, "http/1.1", func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Content-Encoding"] = tt.coding
				w.Write(tt.body)
			})
			c := s.client(t)
			if tt.says != "" {
				if e := fails(t, c, Request{}, Encoding, tt.says); e.Retryable() {
					t.Error("asking again would help")
				}
				return
			}
			if _, got := get(t, c, Request{}); got != tt.want {
				t.Errorf("got %d bytes, want %d", len(got), len(tt.want))
			}
		})
	}
}

// TestMaxBody is about the last byte; endless bodies are in TestFailures.
func TestMaxBody(t *testing.T) {
	leavesNothing(t)
	const most = 100_000
	full := strings.Repeat("a", most)
	// Streams of a byte each, which are longer than that.
	crumbs := gzipped(strings.Split(full[:100], "")...)
	for _, tt := range []struct {
		name, coding string
		body         []byte
		length       bool
		most         int64
		large        bool
	}{
		{"plain", "", []byte(full), false, most, false},
		{"plain with its length", "", []byte(full), true, most, false},
		{"one more", "", []byte(full + "a"), false, most, true},
		{"one more with its length", "", []byte(full + "a"), true, most, true},
		{"gzip", "gzip", gzipped(full), false, most, false},
		{"gzip, one more", "gzip", gzipped(full, "a"), false, most, true},
		{"more on the wire", "gzip", crumbs, false, 1000, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, "http/1.1", func(w http.ResponseWriter, r *http.Request) {
				if tt.coding != "" {
					w.Header().Set("Content-Encoding", tt.coding)
				}
				if tt.length {
					w.Header().Set("Content-Length", strconv.Itoa(len(tt.body)))
				}
				w.WriteHeader(200)
				http.NewResponseController(w).Flush()
				w.Write(tt.body)
			})
			c := s.client(t, func(cfg *Config) { cfg.MaxBody = tt.most })
			if tt.large {
				fails(t, c, Request{}, TooLarge, fmt.Sprintf("larger than max_body, %d bytes", tt.most))
			} else if _, got := get(t, c, Request{}); got != full {
				t.Errorf("got %d bytes", len(got))
			}
		})
	}
}

// testKey returns the key whose seeds are all b.
func testKey(tb testing.TB, b byte) *feedsig.PrivateKey {
	tb.Helper()
	k, err := feedsig.Generate(bytes.NewReader(bytes.Repeat([]byte{b}, 64)))
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func TestSignature(t *testing.T) {
	leavesNothing(t)
	old, next, foreign := testKey(t, 1), testKey(t, 2), testKey(t, 3)
	digest := sha512.Sum512([]byte(set))
	good := next.Sign(digest)
	id, rest, _ := strings.Cut(good, ", ")
	tests := []struct {
		name   string
		header []string
		keys   feedsig.Keys
		want   error
		early  bool // the body is not waited for
	}{
		{"signed", []string{good}, feedsig.Keys{next.Public()}, nil, false},
		{"rotation", []string{good}, feedsig.Keys{old.Public(), next.Public()}, nil, false},
		{"in two fields", []string{id, rest}, feedsig.Keys{next.Public()}, nil, false},
		{"nobody looks", []string{"nonsense"}, nil, nil, false},
		{"missing", nil, feedsig.Keys{next.Public()}, feedsig.ErrNoSignature, true},
		{"empty", []string{""}, feedsig.Keys{next.Public()}, feedsig.ErrNoSignature, true},
		{"malformed", []string{"nonsense=" + testToken}, feedsig.Keys{next.Public()}, feedsig.ErrMalformed, true},
		{"twice", []string{good, good}, feedsig.Keys{next.Public()}, feedsig.ErrMalformed, true},
		{"old key", []string{old.Sign(digest)}, feedsig.Keys{next.Public()}, feedsig.ErrUnknownKey, true},
		{"foreign key", []string{foreign.Sign(digest)}, feedsig.Keys{old.Public(), next.Public()}, feedsig.ErrUnknownKey, true},
		{"empty key", []string{good}, feedsig.Keys{{}}, feedsig.ErrUnknownKey, true},
		{"of another set", []string{next.Sign(sha512.Sum512(nil))}, feedsig.Keys{next.Public()}, feedsig.ErrEd25519, false},
		{"of the compressed body", []string{next.Sign(sha512.Sum512(gzipped(set)))}, feedsig.Keys{next.Public()}, feedsig.ErrEd25519, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, "h2", func(w http.ResponseWriter, r *http.Request) {
				for _, value := range tt.header {
					w.Header().Add(feedsig.Header, value)
				}
				w.Header().Set("Content-Encoding", "gzip")
				w.WriteHeader(200)
				if tt.early {
					http.NewResponseController(w).Flush()
					<-r.Context().Done()
				}
				w.Write(gzipped(set))
			})
			c := s.client(t, func(cfg *Config) { cfg.Keys = tt.keys })
			if tt.want == nil {
				if _, got := get(t, c, Request{}); got != set {
					t.Errorf("got %q", got)
				}
				return
			}
			if e := fails(t, c, Request{}, Signature, ""); !errors.Is(e, tt.want) || e.Retryable() {
				t.Errorf("got %v, want %v", e, tt.want)
			}
		})
	}
}

func TestStorage(t *testing.T) {
	leavesNothing(t)
	s := serve(t, "h2", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, set) })
	c := s.client(t)
	temp := c.createTemp

	c.createTemp = func() (*os.File, error) { return nil, os.ErrPermission }
	if e := fails(t, c, Request{}, Storage, "making a temporary file"); !errors.Is(e, os.ErrPermission) || !e.Retryable() {
		t.Errorf("got %v", e)
	}
	path := filepath.Join(t.TempDir(), "readonly")
	c.createTemp = func() (*os.File, error) {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return nil, err
		}
		return os.Open(path)
	}
	fails(t, c, Request{}, Storage, "writing a temporary file")
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
	// Where an open file keeps its name, it goes when it is closed.
	c.createTemp = func() (*os.File, error) {
		file, err := temp()
		if err == nil {
			path = file.Name()
			err = os.Remove(path)
		}
		return file, err
	}
	answer, err := c.Fetch(t.Context(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := read(t, answer); got != set {
		t.Errorf("got %q", got)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}

// paced gives size bytes each interval, until ctx ends it.
type paced struct {
	ctx      context.Context
	size     int
	interval time.Duration
}

func (p *paced) Read(b []byte) (int, error) {
	select {
	case <-time.After(p.interval):
		return min(p.size, len(b)), nil
	case <-p.ctx.Done():
		return 0, p.ctx.Err()
	}
}

// TestPace reads at several rates, in false time.
func TestPace(t *testing.T) {
	for _, tt := range []struct {
		name     string
		size     int // bytes that the server sends
		interval time.Duration
		ours     time.Duration // that we take for them
		reads    int
		fails    time.Duration // when
	}{
		{"a byte a second", 1, time.Second, 0, 1000, 30 * time.Second},
		{"nothing", 1, time.Hour, 0, 1, 30 * time.Second},
		{"slow but honest", 64 << 10, time.Second, 0, 5000, 0},
		{"a little slower", 64 << 10, 1100 * time.Millisecond, 0, 5000, 319 * time.Second},
		{"a slow disk", 64 << 10, 0, time.Minute, 100, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClient(t, "http://host", func(cfg *Config) { cfg.MaxBody = 0 })
				a := c.begin(t.Context(), 0, "")
				defer a.end()
				httpGotConn(a)
				a.stop()
				w := a.wire(&paced{a.ctx, tt.size, tt.interval})
				start, buf := time.Now(), make([]byte, 64<<10)
				var err error
				for range tt.reads {
					if _, err = w.Read(buf); err != nil {
						break
					}
					time.Sleep(tt.ours)
				}
				if tt.fails == 0 {
					if err != nil {
						t.Errorf("%v after %d bytes", err, w.received)
					}
					return
				}
				if e := failed(t, nil, err); e.Reason != TooSlow || !e.Retryable() {
					t.Errorf("got %s: %v", e.Reason, e)
				}
				if took := time.Since(start); took < tt.fails || took > tt.fails+2*time.Second {
					t.Errorf("failed after %v, want %v", took, tt.fails)
				}
				if _, again := w.Read(buf); again != err {
					t.Errorf("reading on gives %v", again)
				}
			})
		})
	}
}

// TestWireErrors is about a reader that gives bytes along with its end.
func TestWireErrors(t *testing.T) {
	c := newClient(t, "http://host")
	a := c.begin(t.Context(), 0, "")
	defer a.end()
	if b, err := io.ReadAll(a.wire(iotest.DataErrReader(strings.NewReader(set)))); err != nil || string(b) != set {
		t.Errorf("got %q, %v", b, err)
	}
	b, err := io.ReadAll(a.wire(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(set)))))
	if e := failed(t, nil, err); e.Reason != Truncated || !errors.Is(err, iotest.ErrTimeout) || string(b) != set[:1] {
		t.Errorf("got %q, %s: %v", b, e.Reason, err)
	}
}

// TestEndAfterHangUp: when we hang up, a server of net/http's kind ends a chunked body as if it were whole, and
// the end may arrive before the connection is closed.
func TestEndAfterHangUp(t *testing.T) {
	c := newClient(t, "http://host")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, tt := range []struct {
		hangUp func(*attempt)
		want   Reason
	}{
		{func(a *attempt) { a.cancel(&exceeded{TooSlow, "too slow"}) }, TooSlow},
		{func(a *attempt) { cancel() }, Cancelled},
	} {
		a := c.begin(ctx, 0, "")
		_, err := io.ReadAll(a.wire(readerFunc(func([]byte) (int, error) {
			tt.hangUp(a)
			return 0, io.EOF
		})))
		a.end()
		if e := failed(t, nil, err); e.Reason != tt.want {
			t.Errorf("got %s, want %s: %v", e.Reason, tt.want, err)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
