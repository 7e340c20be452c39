package dashboard

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// Bounds of streams.
const (
	mostStreams   = 1000
	mostStreamsOf = 12 // of one user
	streamLasts   = 5 * time.Minute
	streamPing    = 15 * time.Second
	streamCheck   = 30 * time.Second // how often the session is looked at again
	streamWrite   = 10 * time.Second
	streamRetry   = 2 * time.Second
	leastEvery    = time.Second
)

// streams counts who listens.
type streams struct {
	mu     sync.Mutex // guards all and of
	all    int
	of     map[string]int
	closed chan struct{}
	once   sync.Once
}

func newStreams() *streams { return &streams{of: map[string]int{}, closed: make(chan struct{})} }

func (s *streams) close() { s.once.Do(func() { close(s.closed) }) }

// endWith cancels a stream when all are closed. It ends with the stream.
func (s *streams) endWith(ctx context.Context, cancel context.CancelFunc) {
	select {
	case <-s.closed:
		cancel()
	case <-ctx.Done():
	}
}

func (s *streams) enter(who string) (leave func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= mostStreams || s.of[who] >= mostStreamsOf {
		return nil, false
	}
	s.all++
	s.of[who]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		if s.of[who]--; s.of[who] <= 0 {
			delete(s.of, who)
		}
	}, true
}

// live returns the handler of a live part of a page: the template `name` of that page, drawn again every so often. A script gets an event
// whenever it looks different; a plain GET gets it as it is, which is what the script falls back to. Its route is endless.
func live(page, name string, every time.Duration, load func(c *ctx) (data any, err error)) func(c *ctx) error {
	return func(c *ctx) error {
		draw := func() ([]byte, error) {
			ctx, cancel := context.WithTimeout(c.ctx, pageTimeout)
			defer cancel()
			before := c.ctx
			c.ctx = ctx
			defer func() { c.ctx = before }()
			data, err := load(c)
			if err != nil {
				return nil, err
			}
			if err := c.fragment(page, name, data); err != nil {
				return nil, err
			}
			body := c.out.body
			c.out = nil
			return body, nil
		}
		if !strings.HasPrefix(c.r.Header.Get("Accept"), "text/event-stream") || c.r.Method == http.MethodHead {
			body, err := draw()
			if err != nil {
				return err
			}
			c.out = &output{status: http.StatusOK, body: body}
			return nil
		}
		body, err := draw()
		if err != nil {
			return err
		}
		return c.stream(func(s *stream) error {
			last := c.r.Header.Get("Last-Event-ID")
			for {
				if id := idOf(body); id != last {
					if err := s.send("fragment", id, body); err != nil {
						return err
					}
					last = id
				}
				if err := s.wait(max(every, leastEvery)); err != nil {
					return err
				}
				if body, err = draw(); err != nil {
					return err
				}
			}
		})
	}
}

func idOf(body []byte) string {
	sum := sha256.Sum256(body)
	return base64.RawURLEncoding.EncodeToString(sum[:9])
}

// stream is a connection on which events are sent (HTML, server-sent events).
type stream struct {
	c       *ctx
	control *http.ResponseController
	pinged  time.Time
	checked time.Time
}

// errStreamEnds is for a stream that has lasted long enough: the browser opens another.
var errStreamEnds = errors.New("the stream ends")

// stream calls fn with a stream of events, which ends with the browser, with the session, after five minutes, or when fn returns. The script
// opens another one.
func (c *ctx) stream(fn func(*stream) error) error {
	if c.r.Method == http.MethodHead {
		c.out = &output{status: http.StatusOK}
		return nil
	}
	leave, ok := c.dash.streams.enter(c.who.Actor())
	if !ok {
		return tooMany(10 * time.Second)
	}
	defer leave()
	ctx, cancel := context.WithTimeout(c.ctx, streamLasts)
	defer cancel()
	c.ctx = ctx
	go c.dash.streams.endWith(ctx, cancel)
	s := &stream{c: c, control: http.NewResponseController(c.w), pinged: time.Now(), checked: time.Now()}
	h := c.w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("X-Accel-Buffering", "no")
	c.written = true
	_ = s.control.SetReadDeadline(time.Time{})
	c.w.WriteHeader(http.StatusOK)
	if err := s.write(fmt.Sprintf("retry: %d\n\n", streamRetry.Milliseconds())); err != nil {
		return nil
	}
	err := fn(s)
	switch {
	case err == nil || ctx.Err() != nil:
	default:
		switch code := management.CodeOf(err); code {
		case management.Unauthenticated, management.Forbidden, management.NotFound:
			_ = s.send("gone", "", []byte(code))
		default:
			c.expected(err) // for the log; the script connects again
		}
	}
	return nil
}

// send sends one event. HTML goes line by line, as the format asks.
func (s *stream) send(event, id string, body []byte) error {
	var out strings.Builder
	out.WriteString("event: " + event + "\n")
	if id != "" {
		out.WriteString("id: " + id + "\n")
	}
	for line := range bytes.Lines(body) {
		out.WriteString("data: ")
		out.Write(bytes.TrimRight(line, "\r\n"))
		out.WriteByte('\n')
	}
	out.WriteByte('\n')
	return s.write(out.String())
}

// sendFragment draws the template `name` of a page and sends it as an event: "append" and "prepend" add it to the part, "fragment" replaces it.
func (s *stream) sendFragment(event, page, name string, data any) error {
	if err := s.c.fragment(page, name, data); err != nil {
		return err
	}
	body := s.c.out.body
	s.c.out = nil
	return s.send(event, "", body)
}

func (s *stream) write(text string) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(streamWrite))
	if _, err := s.c.w.Write([]byte(text)); err != nil {
		return errStreamEnds
	}
	if err := s.control.Flush(); err != nil {
		return errStreamEnds
	}
	// Over HTTP/2 a deadline that passes ends the stream also where nothing is being written.
	_ = s.control.SetWriteDeadline(time.Time{})
	s.pinged = time.Now()
	return nil
}

// wait waits, and keeps the connection and our knowledge of the session fresh meanwhile.
func (s *stream) wait(d time.Duration) error {
	if err := s.c.waitFor(d); err != nil {
		return err
	}
	return s.keep()
}

// keep sends a comment where nothing was sent for a while, so that nobody between takes the connection for dead, and ends the stream of
// whom may not see it any more. Streams that do not call wait call it every few seconds.
func (s *stream) keep() error {
	if time.Since(s.checked) >= streamCheck {
		s.checked = time.Now()
		cookie := cookieValue(s.c.r, auth.SessionCookie)
		again := &ctx{ctx: s.c.ctx, dash: s.c.dash, plane: s.c.plane, who: s.c.who, r: s.c.r, w: s.c.w, asked: s.c.asked}
		if err := again.identifyBy(cookie); err != nil {
			return err
		}
		if s.c.route.scope != "" {
			if err := again.who.Require(s.c.route.scope); err != nil {
				return err
			}
		}
		s.c.who, s.c.me = again.who, again.me
	}
	if time.Since(s.pinged) >= streamPing {
		return s.write(": still here\n\n")
	}
	return nil
}

// done is closed when the stream is to end.
func (s *stream) done() <-chan struct{} { return s.c.ctx.Done() }
