//go:build linux

package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Feed is the management plane, reduced to the edge feed of DESIGN.md section 5: full sets, deltas by `after` with
// `base`, ETag and 304, 410 for an edge that is too far behind, and the long poll. It takes no token, signs nothing and
// compresses nothing: bodies are ready in memory, so that what an answer takes is the edge's.
type Feed struct {
	URL    string // where edges ask
	server *http.Server

	mu       sync.Mutex // guards the rest
	revision uint64     // of the newest document; 0: nothing is published yet, and every request is 503
	full     []byte     // elements of the full set's `domains`; nil: it cannot be had
	deltas   map[uint64]delta
	changed  chan struct{} // closed when something is published
	answered map[uint64]*Answer
}

// delta leads from one revision to the next.
type delta struct {
	revision uint64   // of the next one
	full     bool     // there is no other way than the full set; the rest is unset
	domains  []byte   // elements of the list
	removed  []string // names
}

// Answer is what is known of the first answer that carried a revision.
type Answer struct {
	Start time.Time // just before its header was sent
	End   time.Time // when its last byte had been handed to the kernel
	Bytes int64
	Full  bool
	Err   error
	Done  chan struct{} // closed when the rest is set
}

// StartFeed serves on a loopback port until Close.
func StartFeed() (*Feed, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &Feed{
		URL:      "http://" + listener.Addr().String() + "/v1/edge/domains",
		deltas:   map[uint64]delta{},
		changed:  make(chan struct{}),
		answered: map[uint64]*Answer{},
	}
	f.server = &http.Server{Handler: f, ReadHeaderTimeout: 10 * time.Second}
	go f.server.Serve(listener) // ends with Close
	return f, nil
}

// Close ends the server and every poll that waits.
func (f *Feed) Close() error { return f.server.Close() }

// PublishFull makes elements the full set of the next revision. There is no way to it but the whole: an edge that asks
// with `after` is told 410 when gone is set, and otherwise given the full set at once.
func (f *Feed) PublishFull(elements []byte, gone bool) (revision uint64, a *Answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.deltas)
	f.full = elements
	if !gone && f.revision > 0 {
		f.deltas[f.revision] = delta{revision: f.revision + 1, full: true}
	}
	return f.publish()
}

// PublishDelta makes a change of the newest revision the next one. full is the whole set after it, for an edge that has
// to begin again; nil: such an edge gets 503.
func (f *Feed) PublishDelta(domains []byte, removed []string, full []byte) (revision uint64, a *Answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deltas[f.revision] = delta{revision: f.revision + 1, domains: domains, removed: removed}
	f.full = full
	return f.publish()
}

// publish moves to the next revision and wakes the polls that wait. Call it with the lock held.
func (f *Feed) publish() (uint64, *Answer) {
	f.revision++
	a := &Answer{Done: make(chan struct{})}
	f.answered[f.revision] = a
	close(f.changed)
	f.changed = make(chan struct{})
	return f.revision, a
}

// longestWait bounds what `Prefer: wait` may ask for.
const longestWait = 60 * time.Second

// ServeHTTP answers an edge.
func (f *Feed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "this is a feed: GET it", http.StatusMethodNotAllowed)
		return
	}
	wait := preferredWait(r.Header.Values("Prefer"))
	after, err := revisionAfter(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if wait > 0 {
		w.Header().Set("Preference-Applied", "wait")
	}
	revision := f.await(r.Context(), r.Header.Get("If-None-Match"), after, wait)
	if r.Context().Err() != nil {
		return // nobody listens
	}
	f.respond(w, r.Header.Get("If-None-Match"), after, revision)
}

// await returns the newest revision as soon as it is one that the edge does not have, and at the latest after wait.
func (f *Feed) await(ctx context.Context, etag string, after uint64, wait time.Duration) uint64 {
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for {
		f.mu.Lock()
		revision, changed := f.revision, f.changed
		f.mu.Unlock()
		if revision > 0 && after != revision && etag != etagOf(revision) {
			return revision
		}
		select {
		case <-changed:
		case <-timeout.C:
			return revision
		case <-ctx.Done():
			return revision
		}
	}
}

// respond sends what an edge needs that has the revision after (0: none) or the document of etag.
func (f *Feed) respond(w http.ResponseWriter, etag string, after, revision uint64) {
	switch {
	case revision == 0:
		http.Error(w, "nothing is published yet", http.StatusServiceUnavailable)
		return
	case after == revision || etag == etagOf(revision):
		w.Header().Set("ETag", etagOf(revision))
		w.WriteHeader(http.StatusNotModified)
		return
	}
	f.mu.Lock()
	step, known := f.deltas[after]
	full := after == 0 || step.full
	if full {
		step = delta{revision: f.revision, domains: f.full}
	}
	a := f.answered[step.revision]
	delete(f.answered, step.revision) // it is the first answer's
	f.mu.Unlock()

	switch {
	case full && step.domains == nil:
		http.Error(w, "the full set is not kept", http.StatusServiceUnavailable)
	case full:
		send(w, a, step.revision, true, fmt.Sprintf(`{"revision":%d,"domains":[`, step.revision), step.domains, "]}")
	case known:
		head := fmt.Sprintf(`{"revision":%d,"base":%d,"domains":[`, step.revision, after)
		send(w, a, step.revision, false, head, step.domains, removedTail(step.removed))
	default:
		http.Error(w, "that revision is too old or not ours: ask without after", http.StatusGone)
	}
}

// sendPatience is how long an edge may take to read a document.
const sendPatience = 5 * time.Minute

// send writes a document in pieces of 64 KiB and notes in a, which may be nil, when.
func send(w http.ResponseWriter, a *Answer, revision uint64, full bool, head string, elements []byte, tail string) {
	if a == nil {
		a = &Answer{Done: make(chan struct{})}
	}
	defer close(a.Done)
	control := http.NewResponseController(w)
	if a.Err = control.SetWriteDeadline(time.Now().Add(sendPatience)); a.Err != nil {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("ETag", etagOf(revision))
	w.Header().Set("Content-Length", strconv.Itoa(len(head)+len(elements)+len(tail)))
	a.Start, a.Full = time.Now(), full
	for _, part := range [][]byte{[]byte(head), elements, []byte(tail)} {
		for len(part) > 0 {
			n, err := w.Write(part[:min(len(part), 64<<10)])
			a.Bytes += int64(n)
			if err != nil {
				a.Err = err
				return
			}
			part = part[n:]
		}
	}
	a.Err = control.Flush()
	a.End = time.Now()
}

func removedTail(names []string) string {
	var b strings.Builder
	b.WriteString(`],"removed":[`)
	for i, name := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Quote(name)) // host names: nothing to escape
	}
	b.WriteString("]}")
	return b.String()
}

func etagOf(revision uint64) string { return fmt.Sprintf(`"%d"`, revision) }

// revisionAfter reads the parameter, 0 where there is none.
func revisionAfter(r *http.Request) (uint64, error) {
	text := r.URL.Query().Get("after")
	if text == "" {
		return 0, nil
	}
	after, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("after=%q is no revision", text)
	}
	return after, nil
}

// preferredWait reads `Prefer: wait=SECONDS` (RFC 7240 section 4.3) beside other preferences; 0 where there is none.
func preferredWait(values []string) time.Duration {
	for preference := range strings.SplitSeq(strings.Join(values, ","), ",") {
		name, value, _ := strings.Cut(preference, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "wait") {
			continue
		}
		seconds, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
		if err != nil {
			return 0
		}
		return min(time.Duration(seconds)*time.Second, longestWait)
	}
	return 0
}
