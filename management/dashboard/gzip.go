package dashboard

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"sync"
)

// leastPacked is the size from which on compressing pays: less fits into one packet as it is.
const leastPacked = 1400

// packers are reused: a new one is hundreds of kilobytes.
var packers = sync.Pool{New: func() any {
	z, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // the level is one
	return z
}}

// encoded returns the body as the browser takes it, and says in h what it is. Answers to forms stay as they are: they may tell a new secret
// beside what was typed, and the length of what is compressed would tell how much the two have in common.
func (c *ctx) encoded(h http.Header) []byte {
	if !isRead(c.r) {
		return c.out.body
	}
	h.Set("Vary", "Accept-Encoding")
	if len(c.out.body) < leastPacked || !acceptsGzip(c.r.Header.Get("Accept-Encoding")) {
		return c.out.body
	}
	var packed bytes.Buffer
	z := packers.Get().(*gzip.Writer)
	defer packers.Put(z)
	z.Reset(&packed)
	z.Write(c.out.body)
	z.Close()
	h.Set("Content-Encoding", "gzip")
	return packed.Bytes()
}
