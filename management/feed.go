package management

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Bounds of the feed.
const (
	feedWaitMost  = time.Minute           // the longest that a request is held
	feedWaiters   = 10000                 // requests that are held at a time
	feedRecheck   = time.Second           // a revision is believed for so long without asking the database
	feedGap       = 25 * time.Millisecond // between two looks at it: what comes faster goes out together
	feedBodies    = 128                   // bodies kept for the next that asks
	feedInMemory  = 256 << 10             // bytes of a compressed body; more is in a temporary file
	feedBuildMost = 10 * time.Minute      // for making a body
	feedSlow      = time.Second           // a full set that took so long to make is given out for a while longer
	feedTokenAge  = time.Second           // after a wait of so long the token is looked at again
)

// FeedRequest is one question of an edge (DESIGN.md section 5, "Edge feed").
type FeedRequest struct {
	After       *uint64       // the revision that the edge has; nil or 0: the full set is wanted
	IfNoneMatch string        // as the header says
	Wait        time.Duration // how long the edge would wait for a change
}

// FeedAnswer is what an edge is told. Exactly one of NotModified, Gone and Body is set.
type FeedAnswer struct {
	Revision    uint64
	NotModified bool          // 304
	Gone        bool          // 410: the difference cannot be told, ask for the full set
	Waited      time.Duration // how long it could have been held, 0: not at all; for Preference-Applied
	Body        *FeedBody     // to be closed
}

// Feed answers an edge. It returns as soon as there is something new, which is milliseconds after the commit, or when the time to
// wait is over.
func (p *Plane) Feed(ctx context.Context, who *Principal, r FeedRequest) (*FeedAnswer, error) {
	if err := requireEdge(who); err != nil {
		return nil, err
	}
	after := uint64(0)
	if r.After != nil {
		after = *r.After
	}
	held, release := p.edges.feed.hold(min(max(r.Wait, 0), feedWaitMost))
	defer release()
	timer := time.NewTimer(held)
	defer timer.Stop()
	begun, over := time.Now(), held == 0
	for {
		now, err := p.feedNow(ctx, after)
		if err != nil {
			return nil, err
		}
		answer := &FeedAnswer{Revision: now.revision, Waited: held}
		named := namesTag(r.IfNoneMatch, ETag(int64(now.revision)))
		switch {
		case after > now.revision || after > 0 && after < now.floor:
			answer.Gone = true
			return answer, nil
		case after > 0 && after != now.revision, after == 0 && !named, over && !named:
			if held > 0 && time.Since(begun) > p.edges.feed.tokenAge {
				if err := p.checkToken(ctx, who); err != nil {
					return nil, err
				}
			}
			answer.Body, err = p.feedBody(ctx, after, now.revision)
			if errors.Is(err, errFeedGone) { // forgotten meanwhile
				answer.Gone, err = true, nil
			}
			if err != nil {
				return nil, err
			}
			if answer.Body != nil {
				answer.Revision = answer.Body.Revision
			}
			return answer, nil
		case over:
			answer.NotModified = true
			return answer, nil
		}
		select {
		case <-now.changed:
		case <-timer.C:
			over = true
		case <-p.edges.feed.ended:
			over = true
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// EndWaits answers all requests of the feed that are held, as if their time to wait were over, and holds none from now on: who
// asks again finds another instance, or the one that takes this one's place. For a service that is about to end.
func (p *Plane) EndWaits() { p.edges.feed.end() }

// checkToken refuses an edge whose token was revoked while its request was held: a set has private keys.
func (p *Plane) checkToken(ctx context.Context, who *Principal) error {
	if who.EdgeTokenID == "" {
		return nil
	}
	err := p.store.View(ctx, func(tx Tx) error {
		_, err := tx.FindEdgeToken(who.EdgeTokenID)
		return err
	})
	if errors.Is(err, ErrNoRow) {
		return errNoCredential()
	}
	return err
}

// namesTag reports whether If-None-Match has that entity tag, by weak comparison (RFC 9110 section 13.1.2).
func namesTag(header, tag string) bool {
	for one := range strings.SplitSeq(header, ",") {
		if one = strings.TrimSpace(one); one == "*" || strings.TrimPrefix(one, "W/") == tag {
			return true
		}
	}
	return false
}

// feedCache is what a Plane knows of the feed.
type feedCache struct {
	tokenAge time.Duration // feedTokenAge, which tests shorten

	end   func()        // closes ended, once
	ended chan struct{} // requests are held no more

	mu       sync.Mutex // guards all below
	now      feedState
	looking  chan struct{} // closed when whoever looks at the revision is done; nil: nobody does
	waiting  int
	bodies   map[uint64]*FeedBody     // by base; 0 is the full set
	building map[uint64]chan struct{} // bases of which a body is being made; closed when it is done
}

// feedState is how far the feed is.
type feedState struct {
	revision uint64
	floor    uint64          // the lowest revision from which a difference can be told
	changed  <-chan struct{} // closed when there is a higher revision
	at       time.Time       // when it was read
}

// hold counts a request that may be held, and returns for how long.
func (c *feedCache) hold(wait time.Duration) (time.Duration, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.ended:
		wait = 0
	default:
	}
	if wait == 0 || c.waiting == feedWaiters {
		return 0, func() {}
	}
	c.waiting++
	return wait, func() {
		c.mu.Lock()
		c.waiting--
		c.mu.Unlock()
	}
}

// feedNow returns how far the feed is, to an edge that has a revision. Of all requests that a change wakes, one asks the database. An edge
// can have a revision that is not known here yet: of another instance, or of a commit that is announced only now. That is
// found out before it is told that there is none such.
func (p *Plane) feedNow(ctx context.Context, has uint64) (feedState, error) {
	c := &p.edges.feed
	came := time.Now()
	for {
		c.mu.Lock()
		if now := c.now; now.changed != nil && now.changed == p.store.Changed() && time.Since(now.at) < feedRecheck &&
			(now.revision >= has || now.at.After(came)) {
			c.mu.Unlock()
			return now, nil
		}
		if looking := c.looking; looking != nil {
			c.mu.Unlock()
			select {
			case <-looking:
				continue
			case <-ctx.Done():
				return feedState{}, ctx.Err()
			}
		}
		done := make(chan struct{})
		c.looking = done
		pause := feedGap - time.Since(c.now.at)
		c.mu.Unlock()
		now, err := p.readFeedState(ctx, pause)
		c.mu.Lock()
		if err == nil {
			c.now = now
		}
		c.looking = nil
		c.mu.Unlock()
		close(done)
		return now, err
	}
}

// readFeedState asks the database, not before the pause is over.
func (p *Plane) readFeedState(ctx context.Context, pause time.Duration) (now feedState, err error) {
	if pause > 0 {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return now, ctx.Err()
		}
	}
	now.changed = p.store.Changed() // before reading, so that no change is missed
	now.at = time.Now()
	err = p.store.View(ctx, func(tx Tx) error {
		now.revision, now.floor, err = feedBounds(tx)
		return err
	})
	return now, err
}

func feedBounds(tx Tx) (revision, floor uint64, err error) {
	if revision, err = tx.Revision(); err == nil {
		floor, err = tx.FeedHorizon()
	}
	return revision, floor, err
}

// FeedBody is a document of the feed, compressed, with its signature. It is shared by all who ask for the same.
type FeedBody struct {
	Revision  uint64
	Size      int64  // bytes before compression
	GzipSize  int64  // bytes as they are kept
	Signature string // value of PQProxy-Signature; empty: the feed is not signed

	base    uint64
	data    spool
	made    time.Time
	took    time.Duration
	release func()
	refs    int // guarded by the cache's lock
}

// Gzip returns a reader of the compressed document. It may be called several times, and before Close.
func (b *FeedBody) Gzip() io.Reader { return b.data.reader() }

// Plain returns a reader of the document itself.
func (b *FeedBody) Plain() (io.Reader, error) {
	return gzip.NewReader(bufio.NewReaderSize(b.data.reader(), 64<<10))
}

// Close must be called once by each who was given the body.
func (b *FeedBody) Close() { b.release() }

// fits reports whether the body answers who wants at least that revision. A full set that takes long to make is given out
// for as long again, twice: where changes come all the time, edges that start together would otherwise each have one made.
func (b *FeedBody) fits(revision uint64) bool {
	return b.Revision >= revision || b.base == 0 && b.took >= feedSlow && time.Since(b.made) < 2*b.took
}

// feedBody returns the change from base, or with base 0 the full set, of that revision or a later one. Those who want the same
// wait for the one who makes it.
func (p *Plane) feedBody(ctx context.Context, base, revision uint64) (*FeedBody, error) {
	c := &p.edges.feed
	for {
		c.mu.Lock()
		if b := c.bodies[base]; b != nil && b.fits(revision) {
			b.refs++
			c.mu.Unlock()
			return b, nil
		}
		building := c.building[base]
		if building == nil {
			if c.building == nil {
				c.building = make(map[uint64]chan struct{})
			}
			building = make(chan struct{})
			c.building[base] = building
			c.mu.Unlock()
			return p.buildFeed(ctx, base, building)
		}
		c.mu.Unlock()
		select {
		case <-building:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// buildFeed makes a body and keeps it for others. It goes on where who asked has gone: others may wait.
func (p *Plane) buildFeed(ctx context.Context, base uint64, building chan struct{}) (b *FeedBody, err error) {
	c := &p.edges.feed
	defer func() {
		c.mu.Lock()
		delete(c.building, base)
		if err == nil && b != nil {
			b.refs = 1
			c.keep(b)
		}
		c.mu.Unlock()
		close(building)
	}()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), feedBuildMost)
	defer cancel()
	begun := time.Now()
	if b, err = p.writeFeed(ctx, base); err != nil {
		return nil, err
	}
	b.made = time.Now()
	b.took = b.made.Sub(begun)
	b.release = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.drop(b)
	}
	return b, nil
}

// keep puts a body into the cache and takes those out that nobody asks for any more. Call it with the lock held.
func (c *feedCache) keep(b *FeedBody) {
	if c.bodies == nil {
		c.bodies = make(map[uint64]*FeedBody)
	}
	for base, old := range c.bodies {
		if base == b.base || !old.fits(b.Revision) || len(c.bodies) >= feedBodies {
			delete(c.bodies, base)
			c.drop(old)
		}
	}
	c.bodies[b.base] = b
	b.refs++
}

// drop ends one use of a body. Call it with the lock held.
func (c *feedCache) drop(b *FeedBody) {
	if b.refs--; b.refs == 0 {
		b.data.close()
	}
}

// errFeedGone is what a difference is that cannot be told any more.
var errFeedGone = errors.New("the difference from this revision cannot be told")

// writeFeed reads one snapshot of the database and writes the document of it.
func (p *Plane) writeFeed(ctx context.Context, base uint64) (*FeedBody, error) {
	b := &FeedBody{base: base}
	hash := sha512.New()
	compressor, err := gzip.NewWriterLevel(&b.data, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	counted := &counter{w: io.MultiWriter(hash, compressor)}
	w := bufio.NewWriterSize(counted, 64<<10)
	err = p.store.View(ctx, func(tx Tx) error {
		revision, floor, err := feedBounds(tx)
		if err != nil {
			return err
		}
		if base > revision || base > 0 && base < floor {
			return errFeedGone
		}
		b.Revision = revision
		return p.writeSet(tx, w, base, revision)
	})
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = compressor.Close()
	}
	if err != nil {
		b.data.close()
		return nil, err
	}
	b.Size, b.GzipSize = counted.n, b.data.size
	if p.signer != nil {
		b.Signature = p.signer.Sign([sha512.Size]byte(hash.Sum(nil)))
	}
	return b, nil
}

// writeSet writes the document: {"revision":…,"base":…,"domains":[…],"removed":[…]}, the full set without base and removed.
func (p *Plane) writeSet(tx Tx, w *bufio.Writer, base, revision uint64) error {
	line := append(make([]byte, 0, 16<<10), `{"revision":`...)
	line = strconv.AppendUint(line, revision, 10)
	if base > 0 {
		line = append(line, `,"base":`...)
		line = strconv.AppendUint(line, base, 10)
	}
	line = append(line, `,"domains":[`...)
	var removed []byte
	first := true
	err := tx.EachFeedRecord(base, func(r *FeedRecord) error {
		if r.Removed {
			if len(removed) > 0 {
				removed = append(removed, ',')
			}
			removed = append(removed, '"') // a name in normal form has nothing to escape
			removed = append(removed, r.Name...)
			removed = append(removed, '"')
			return nil
		}
		if !first {
			line = append(line, ',')
		}
		first = false
		line = p.feedRecord(append(line, '\n'), r)
		_, err := w.Write(line)
		line = line[:0]
		return err
	})
	if err != nil {
		return err
	}
	line = append(line, "\n]"...)
	if base > 0 {
		line = append(line, `,"removed":[`...)
		line = append(line, removed...)
		line = append(line, ']')
	}
	_, err = w.Write(append(line, "}\n"...))
	return err
}

// feedRecord appends the record that edges get. Where the key of a pair cannot be opened, it goes without: the edge refuses that
// record alone and goes on with the last good one, which leaving the record out, or the whole feed, would not do.
func (p *Plane) feedRecord(b []byte, r *FeedRecord) []byte {
	begin := len(b)
	b, err := p.appendFeedRecord(b, r)
	if err == nil {
		return b
	}
	p.log.Error("the key of a domain's certificate cannot be had: edges keep the last one; look at master_key", "domain", r.Name, "error", err)
	return appendSuspended(append(b[:begin], r.Settings...), r.Suspended)
}

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// spool keeps what is written to it, in memory or, where that is much, in a temporary file without a name: it holds private
// keys and is gone when it is closed, however the process ends.
type spool struct {
	memory bytes.Buffer
	file   *os.File
	name   string // of a file that could not be removed while open, as on Windows
	size   int64
}

func (s *spool) Write(b []byte) (int, error) {
	if s.file == nil && s.size+int64(len(b)) > feedInMemory {
		file, err := os.CreateTemp("", "pqproxy-feed-*") // with mode 0600
		if err != nil {
			return 0, err
		}
		s.file = file
		if err := os.Remove(file.Name()); err != nil {
			s.name = file.Name()
		}
		if _, err := file.Write(s.memory.Bytes()); err != nil {
			return 0, err
		}
		s.memory = bytes.Buffer{}
	}
	s.size += int64(len(b))
	if s.file != nil {
		return s.file.Write(b)
	}
	return s.memory.Write(b)
}

// reader returns a new reader from the start.
func (s *spool) reader() io.Reader {
	if s.file != nil {
		return io.NewSectionReader(s.file, 0, s.size)
	}
	return bytes.NewReader(s.memory.Bytes())
}

func (s *spool) close() {
	if s.file == nil {
		return
	}
	s.file.Close()
	if s.name != "" {
		os.Remove(s.name)
	}
}
