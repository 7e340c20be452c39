package api

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// response is an answer before it is written.
type response struct {
	status  int
	header  http.Header
	body    []byte
	session string // for the cookie; never kept
	signOut bool
	live    bool // never answered with 304
}

const (
	leastGzip    = 1 << 10          // bytes: below, the header costs what is saved
	writeTimeout = 30 * time.Second // for a client that does not read
)

// commonHeader sets what every answer has. Answers are for one credential, so nobody stores them; they are data, so no
// browser runs or frames them.
func commonHeader(h http.Header, requestID string) {
	h.Set("X-Request-Id", requestID)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
}

func setHeader(h http.Header, name, value string) {
	if value != "" {
		h.Set(name, value)
	}
}

// write sends the response. A GET whose If-None-Match names the entity tag gets a 304.
func (res *response) write(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	for name, values := range res.header {
		h[name] = values
	}
	if res.session != "" {
		auth.SetSession(w, res.session)
	} else if res.signOut {
		auth.ClearSession(w)
	}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	if etag := h.Get("ETag"); read && !res.live && res.status == http.StatusOK && etag != "" && matches(r.Header.Values("If-None-Match"), etag) {
		h.Del("Content-Type")
		h.Del("Content-Encoding")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	body := res.body
	// An entity tag is of the bytes as they are (RFC 9110 section 8.8.3.3), and what answers an unsafe method may hold a secret beside what
	// a client chose, whose length would tell about it (BREACH). So lists and the like are compressed, nothing else.
	if read && len(body) > leastGzip && h.Get("ETag") == "" && h.Get("Content-Encoding") == "" && res.status == http.StatusOK {
		h.Add("Vary", "Accept-Encoding")
		if acceptsGzip(r.Header.Values("Accept-Encoding")) {
			body = compress(body)
			h.Set("Content-Encoding", "gzip")
		}
	}
	if res.status != http.StatusNoContent {
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	control := http.NewResponseController(w)
	bounded := control.SetWriteDeadline(time.Now().Add(writeTimeout)) == nil
	w.WriteHeader(res.status)
	if r.Method != http.MethodHead {
		w.Write(body) // a client that has gone misses it
	}
	if bounded {
		// The connection's next request may be for another handler: it is not to inherit the deadline.
		control.Flush()
		control.SetWriteDeadline(time.Time{})
	}
}

// writeJSON answers a stream's request with a document instead of a stream.
func (c *call) writeJSON(w http.ResponseWriter, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("writing the answer of %s: %w", c.route.id, err)
	}
	res := &response{status: c.route.status, header: http.Header{"Content-Type": {jsonType}}, body: append(text, '\n')}
	res.write(w, c.request)
	return nil
}

// prefers reports whether the client asks for the media type by name and not, by q=0, asks for anything else. It is for routes
// that answer in a second form only to who asks for it.
func (c *call) prefers(mediaType string) bool {
	for _, value := range c.request.Header.Values("Accept") {
		for item := range strings.SplitSeq(value, ",") {
			name, params, _ := strings.Cut(item, ";")
			if strings.EqualFold(strings.TrimSpace(name), mediaType) && !refused(params) {
				return true
			}
		}
	}
	return false
}

// refused reports whether the parameters behind an item of an Accept header are a weight of 0 (RFC 9110 section 12.4.2).
func refused(params string) bool {
	for param := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(param), "=")
		if q, err := strconv.ParseFloat(value, 64); strings.EqualFold(name, "q") && (err != nil || q <= 0) {
			return true
		}
	}
	return false
}

// acceptsGzip reads Accept-Encoding (RFC 9110 section 12.5.3).
func acceptsGzip(values []string) bool {
	any, anyRefused := false, false
	for _, value := range values {
		for item := range strings.SplitSeq(value, ",") {
			name, params, _ := strings.Cut(item, ";")
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "gzip", "x-gzip":
				return !refused(params)
			case "*":
				any, anyRefused = true, refused(params)
			}
		}
	}
	return any && !anyRefused
}

// matches reports whether If-None-Match names the tag, by weak comparison (RFC 9110 section 13.1.2).
func matches(values []string, etag string) bool {
	for _, value := range values {
		for tag := range strings.SplitSeq(value, ",") {
			tag = strings.TrimSpace(tag)
			if tag == "*" || strings.TrimPrefix(tag, "W/") == strings.TrimPrefix(etag, "W/") {
				return true
			}
		}
	}
	return false
}

func compress(body []byte) []byte {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(body) // into memory: no error
	z.Close()
	return packed.Bytes()
}

// tracker knows whether an answer has begun.
type tracker struct {
	http.ResponseWriter
	began bool
}

func (t *tracker) WriteHeader(status int) {
	t.began = t.began || status >= 200
	t.ResponseWriter.WriteHeader(status)
}

func (t *tracker) Write(b []byte) (int, error) {
	t.began = true
	return t.ResponseWriter.Write(b)
}

// FlushError is what http.ResponseController calls: a flush sends the header.
func (t *tracker) FlushError() error {
	t.began = true
	return http.NewResponseController(t.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (t *tracker) Unwrap() http.ResponseWriter { return t.ResponseWriter }
