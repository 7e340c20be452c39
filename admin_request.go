package pqproxy

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// readQuery reads a query of known parameters, each given once at most and with a value: one that is misspelt or empty
// would make a list, or the end of connections, mean more than was asked.
func readQuery(raw string, known []string) (map[string]string, error) {
	query := make(map[string]string)
	if raw == "" {
		return query, nil
	}
	bad := func(format string, args ...any) error {
		return apiError(http.StatusBadRequest, "query: "+format, args...)
	}
	for pair := range strings.SplitSeq(raw, "&") {
		key, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(key)
		switch {
		case (err != nil || !slices.Contains(known, name)) && len(known) == 0:
			return nil, bad("there is no parameter %s; this request takes none", quoteShort(key))
		case err != nil || !slices.Contains(known, name):
			return nil, bad("there is no parameter %s; this request takes %s", quoteShort(key), strings.Join(known, ", "))
		case query[name] != "":
			return nil, bad("%s is given twice; keep one", name)
		}
		if value, err = url.QueryUnescape(value); err != nil {
			return nil, bad("%s is not well encoded; write %% as %%25", name)
		}
		if value == "" {
			return nil, bad("%s is empty; give a value or leave it out", name)
		}
		query[name] = value
	}
	return query, nil
}

// number returns a parameter that is a whole number in a range, or what holds without it.
func (q *adminRequest) number(name string, least, most, normal uint64) (uint64, error) {
	text, ok := q.query[name]
	if !ok {
		return normal, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n < least || n > most {
		return 0, apiError(http.StatusBadRequest, "query: %s is %s; give a whole number from %d to %d", name, quoteShort(text), least, most)
	}
	return n, nil
}

// How many entries a list has.
const listNormal, listMost = 100, 1000

// limit returns the parameter of that name.
func (q *adminRequest) limit() (int, error) {
	n, err := q.number("limit", 1, listMost, listNormal)
	return int(n), err
}

// domainParam returns a parameter that is the name of a domain, in normal form; empty where it is not given.
func (q *adminRequest) domainParam(param string) (string, error) {
	text, ok := q.query[param]
	if !ok {
		return "", nil
	}
	name, err := domain.NormalName(text)
	if err != nil {
		return "", apiError(http.StatusBadRequest, "query: %s: %w", param, err)
	}
	return name, nil
}

// Bounds of what is sent and received. Caddy's endpoint wants a whole request within 10 s, which a large set cannot
// keep on a slow line, and lets a client that does not read hold on to its answer for ever.
const (
	transferSlack = 30 * time.Second // beside the time at transferRate, and between two bytes
	transferRate  = 64 << 10         // bytes a second, at least
)

// transferTime is how long so many bytes may take.
func transferTime(bytes int64) time.Duration {
	return transferSlack + time.Duration(bytes)*time.Second/transferRate
}

// requestBody is the body of a request, which is read while bytes arrive. What it returns as error, but for io.EOF, is
// a caddy.APIError.
type requestBody struct {
	body    io.Reader
	control *http.ResponseController
	begun   time.Time
	most    int64 // bytes
	read    int64
	err     error
}

// body returns the body of a request, which is JSON.
func (q *adminRequest) body(most int64) (*requestBody, error) {
	if given := q.r.Header.Get("Content-Type"); given != "" {
		if kind, _, err := mime.ParseMediaType(given); err != nil || kind != "application/json" {
			return nil, apiError(http.StatusUnsupportedMediaType, "the body is %s; send JSON, with the header Content-Type: application/json", quoteShort(given))
		}
	}
	if given := q.r.Header.Get("Content-Encoding"); given != "" && given != "identity" {
		return nil, apiError(http.StatusUnsupportedMediaType, "the body has the encoding %s; send it as it is", quoteShort(given))
	}
	if q.r.ContentLength > most {
		return nil, tooLarge(most)
	}
	return &requestBody{body: q.r.Body, control: http.NewResponseController(q.w), begun: time.Now(), most: most}, nil
}

func tooLarge(most int64) error {
	return apiError(http.StatusRequestEntityTooLarge, "the body has more than %d bytes; send less at a time", most)
}

// Read reads more of the body.
func (b *requestBody) Read(p []byte) (int, error) {
	if b.err != nil { // and no deadline any more: net/http already waits for the next request
		return 0, b.err
	}
	now := time.Now()
	deadline := b.begun.Add(transferTime(b.read))
	if idle := now.Add(transferSlack); idle.Before(deadline) {
		deadline = idle
	}
	_ = b.control.SetReadDeadline(deadline)
	n, err := b.body.Read(p[:min(int64(len(p)), b.most+1-b.read)])
	b.read += int64(n)
	switch {
	case b.read > b.most:
		err = tooLarge(b.most)
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = apiError(http.StatusRequestTimeout, "the body came too slowly: it stopped for %s, or has less than %d KiB a second", transferSlack, transferRate>>10)
	case err != nil && err != io.EOF:
		err = apiError(http.StatusBadRequest, "reading the body: %w", err)
	}
	b.err = err
	return n, err
}

// Bounds of drain.
const (
	drainBytes = 16 << 20
	drainTime  = 5 * time.Second
)

// drain reads what is left of a body that is refused. A client that is still sending when net/http closes the connection
// may not get to read why. One that waits for 100 Continue is not sending.
func (q *adminRequest) drain() {
	if q.r.ContentLength != 0 && q.r.Header.Get("Expect") == "" {
		_ = http.NewResponseController(q.w).SetReadDeadline(time.Now().Add(drainTime))
		_, _ = io.CopyN(io.Discard, q.r.Body, drainBytes)
	}
}

// An ETag has two parts, as in "OWN.SHOWN". OWN stands for what the admin API says of the resource, SHOWN for all that a
// GET shows, which other sources and certificates change too. GET compares the whole, a write the first part alone:
// what it would overwrite.

// etagKey keeps those who see an ETag from trying private keys against it, and makes the ETags of another process
// different ones.
var etagKey = func() []byte {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // does not fail
	return key
}()

// digestOf makes a part of an ETag.
func digestOf(parts ...string) string {
	mac := hmac.New(sha256.New, etagKey)
	for _, part := range parts {
		_, _ = mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		_, _ = io.WriteString(mac, part)
	}
	return hex.EncodeToString(mac.Sum(nil)[:12])
}

// setTag is the first part of the ETag of all that the admin API says, in a version of it.
func setTag(version uint64) string { return digestOf("set", strconv.FormatUint(version, 10)) }

// domainTag is the first part of the ETag of a domain whose entries are e and what it shadows.
func domainTag(name string, e entry) string {
	if own := e.of(rankAdmin); !own.none() {
		return digestOf("domain", name, own.body())
	}
	return digestOf("domain", name)
}

// anyTag reports whether the request has a header of entity tags (RFC 9110, section 8.8.3), and whether one of them, or `*`,
// is as wanted. Ours have no comma.
func (q *adminRequest) anyTag(header string, wanted func(tag string, weak bool) bool) (given, found bool) {
	for _, line := range q.r.Header.Values(header) {
		given = true
		for tag := range strings.SplitSeq(line, ",") {
			tag, weak := strings.CutPrefix(strings.TrimSpace(tag), "W/")
			if wanted(tag, weak) {
				return true, true
			}
		}
	}
	return given, false
}

// mayWrite holds a write to If-Match and If-None-Match (RFC 9110, section 13.1). own is the first part of the ETag as it
// is now; `*` stands for anything where exists is true.
func (q *adminRequest) mayWrite(own string, exists bool) error {
	same := func(tag string) bool {
		if tag == "*" {
			return exists
		}
		first, _, _ := strings.Cut(strings.Trim(tag, `"`), ".")
		return len(tag) > 2 && tag[0] == '"' && tag[len(tag)-1] == '"' && first == own
	}
	given, found := q.anyTag("If-Match", func(tag string, weak bool) bool { return !weak && same(tag) })
	if given && !found {
		return apiError(http.StatusPreconditionFailed, "If-Match: it has changed since, or is not there; GET it again and decide anew")
	}
	if _, found = q.anyTag("If-None-Match", func(tag string, _ bool) bool { return same(tag) }); found {
		return apiError(http.StatusPreconditionFailed, "If-None-Match: it is there already")
	}
	return nil
}

// answerTagged answers with JSON and its ETag, of which own is the first part, or with 304 if the client has that.
func (q *adminRequest) answerTagged(status int, own string, body []byte) error {
	etag := `"` + own + "." + digestOf("shown", string(body)) + `"`
	q.w.Header().Set("ETag", etag)
	if q.r.Method == http.MethodGet || q.r.Method == http.MethodHead {
		_, found := q.anyTag("If-None-Match", func(tag string, _ bool) bool { return tag == "*" || tag == etag })
		if found {
			q.w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	q.write(status, body)
	return nil
}

// answer answers with v as JSON.
func (q *adminRequest) answer(status int, v any) error {
	body, err := encodeJSON(v)
	if err != nil {
		return err
	}
	q.write(status, body)
	return nil
}

// write writes an answer that is JSON, and a line's end for those who read it in a terminal.
func (q *adminRequest) write(status int, body []byte) {
	_ = http.NewResponseController(q.w).SetWriteDeadline(time.Now().Add(transferTime(int64(len(body)))))
	q.w.Header().Set("Content-Type", "application/json")
	q.w.WriteHeader(status)
	_, _ = q.w.Write(append(body, '\n')) // a client that has left is its own affair
}

// encodeJSON returns v as JSON, with the characters that have a meaning in HTML as they are.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, apiError(http.StatusInternalServerError, "encoding the answer: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// lowest selects the n lowest of what it is given, in room for twice as many.
type lowest[T any] struct {
	n       int
	compare func(a, b T) int
	list    []T
	bounded bool // the first n of list were the lowest when they were sorted last
}

func (l *lowest[T]) add(v T) {
	if l.bounded && l.compare(v, l.list[l.n-1]) >= 0 {
		return
	}
	if l.list = append(l.list, v); len(l.list) >= 2*l.n {
		l.sorted()
	}
}

// sorted returns the n lowest, in order.
func (l *lowest[T]) sorted() []T {
	slices.SortFunc(l.list, l.compare)
	if len(l.list) >= l.n {
		clear(l.list[l.n:])
		l.list, l.bounded = l.list[:l.n], true
	}
	return l.list
}
