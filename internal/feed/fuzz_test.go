package feed

import (
	"bytes"
	"context"
	"crypto/sha512"
	"fmt"
	"net"
	"sync/atomic"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
)

// FuzzAnswer has a server answer with any bytes: a Fetch ends, with a set that is bounded and, where keys are
// set, signed, or with an error of the kind that all have; and no file stays.
func FuzzAnswer(f *testing.F) {
	key := testKey(f, 1)
	const most = 4 << 10
	sign := feedsig.Header + ": " + key.Sign(sha512.Sum512([]byte(set))) + "\r\n"
	head := func(fields string, body []byte) []byte {
		return append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n", len(body), fields), body...)
	}
	for _, conditional := range []bool{false, true} {
		f.Add(conditional, false, head("ETag: \"1\"\r\nPreference-Applied: wait=25\r\n", []byte(set)))
		f.Add(conditional, true, head(sign, []byte(set)))
		f.Add(conditional, true, head(sign+"Content-Encoding: gzip\r\n", gzipped(set)))
		f.Add(conditional, false, []byte("HTTP/1.1 304 Not Modified\r\n\r\n"))
		f.Add(conditional, false, []byte("HTTP/1.1 410 Gone\r\nContent-Length: 5\r\n\r\nagain"))
	}
	f.Add(false, false, head("Content-Encoding: gzip\r\n", append(gzipped(set), 'x')))
	f.Add(false, false, head("", bytes.Repeat([]byte("a"), most+1)))
	f.Add(false, false, head("Content-Encoding: gzip\r\n", gzipped(string(make([]byte, most+1)))))
	f.Add(false, false, []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"))
	f.Add(false, false, []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello"))
	f.Add(false, false, []byte("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"))
	f.Add(false, false, []byte("HTTP/1.0 200 OK\r\n\r\nto the end"))
	f.Add(false, false, []byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"))
	f.Add(false, false, []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nbytes"))
	f.Add(false, false, []byte("HTTP/1.1 302 Found\r\nLocation: https://user:"+testToken+"@elsewhere/?"+testToken+"\r\n\r\n"))
	f.Add(false, false, []byte("HTTP/1.1 401 Unauthorized\r\nContent-Length: 40\r\n\r\n\x1b[31mno "+testToken+"\r\n"))
	f.Add(false, false, []byte("SSH-2.0-"+testToken+"\r\n\r\n"))
	f.Add(false, false, []byte("HTTP/0.0 000 \n\n"))
	f.Add(false, false, []byte{})

	// A unix socket, since thousands of TCP connections leave the ports of all of them taken for a minute.
	var next atomic.Value
	path := listenOn(f, "unix", f.TempDir()+"/feed", func(conn net.Conn) {
		if readRequest(conn) {
			conn.Write(next.Load().([]byte))
		}
	})
	dir := f.TempDir()
	f.Setenv("TMPDIR", dir)

	f.Fuzz(func(t *testing.T, conditional, keys bool, answer []byte) {
		next.Store(answer)
		c := newClient(t, "http://host/feed?"+secretQuery, func(cfg *Config) {
			cfg.MaxBody = most
			if keys {
				cfg.Keys = feedsig.Keys{key.Public()}
			}
		})
		c.transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }
		var r Request
		if conditional {
			after := uint64(420)
			r = Request{ETag: `"420"`, After: &after}
		}
		got, err := c.Fetch(t.Context(), r)
		noFiles(t, dir)
		if err != nil {
			failed(t, got, err)
			return
		}
		if got.Body == nil {
			if !conditional || got.NotModified == got.Gone {
				t.Fatalf("the answer is %+v", got)
			}
			return
		}
		if got.NotModified || got.Gone || got.Body.Size > most || len(got.ETag) > 1<<10 {
			t.Errorf("the answer is %+v", got)
		}
		if text := read(t, got); keys && text != set {
			t.Errorf("%q passes for signed", text)
		}
	})
}
