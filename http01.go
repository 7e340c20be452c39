package pqproxy

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// http01 is the plain HTTP side of the edge: it answers ACME's HTTP-01 challenges (RFC 8555, section 8.3), sends who asks
// for a name of ours to https, and says nothing to anybody else. There is one server for all addresses and configs, as
// long as the state lives, so that a reload closes no connection.
type http01 struct {
	server *http.Server
	slots  httpSlots
	answer func(http.ResponseWriter, *http.Request) bool // answers challenges of ours; another in tests
}

// httpBounds are what peers of the plain HTTP side may take.
type httpBounds struct {
	connections int // open at a time
	perClient   int // of one IPv4 address or IPv6 /64, once half of connections are open
	header      int // bytes, request line included
	read        time.Duration
	write       time.Duration
	idle        time.Duration
}

// usualHTTPBounds suffice for redirects and challenges: nobody stays, and nobody sends anything but a header.
var usualHTTPBounds = httpBounds{
	connections: 1024, perClient: 64, header: 8 << 10,
	read: 5 * time.Second, write: 10 * time.Second, idle: 30 * time.Second,
}

// headerSlop is what net/http reads beyond MaxHeaderBytes.
const headerSlop = 4 << 10

func (h *http01) open(s *state, b httpBounds) {
	h.slots.most, h.slots.perClient = b.connections, b.perClient
	h.answer = s.certs.answerChallenge
	h.server = &http.Server{
		Handler:                      http.HandlerFunc(s.serveHTTP),
		DisableGeneralOptionsHandler: true, // it would answer OPTIONS * with 200
		ReadTimeout:                  b.read,
		WriteTimeout:                 b.write,
		IdleTimeout:                  b.idle,
		MaxHeaderBytes:               b.header - headerSlop,
		ErrorLog:                     log.New(httpErrors{}, "", 0),
		Protocols:                    new(http.Protocols),
	}
	h.server.Protocols.SetHTTP1(true)
}

// shut ends the server for good, and returns what waits until it has. Requests under way are answered.
func (h *http01) shut() (wait func()) {
	done := make(chan struct{})
	go h.shutDown(done)
	return func() { <-done }
}

func (h *http01) shutDown(done chan<- struct{}) {
	defer close(done)
	ctx, cancel := context.WithTimeout(context.Background(), closingTime)
	defer cancel()
	if h.server.Shutdown(ctx) != nil {
		_ = h.server.Close()
	}
}

// httpErrors logs what net/http has to say, which is about broken clients.
type httpErrors struct{}

func (httpErrors) Write(p []byte) (int, error) {
	caddy.Log().Named("pqproxy.http").Debug(strings.TrimSpace(string(p)))
	return len(p), nil
}

// serveHTTP answers a request on a listener of ours.
func (s *state) serveHTTP(w http.ResponseWriter, r *http.Request) {
	now := s.settings.Load()
	defer surviveHTTPPanic(now.logger)
	if r.ContentLength != 0 || !now.http {
		w.Header().Set("Connection", "close") // nobody reads bodies here; and the listener may be gone
	}
	if !s.answerHTTP(w, r, now.caddyTLS) {
		w.WriteHeader(http.StatusNotFound)
	}
}

// surviveHTTPPanic keeps a panic in one request from being anything but the end of its connection.
func surviveHTTPPanic(logger *zap.Logger) {
	if p := recover(); p != nil {
		logger.Error("an HTTP request panicked", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
		panic(http.ErrAbortHandler) // which net/http takes as the wish to close
	}
}

// wellKnown is what the paths of all challenges begin with (RFC 8615).
const wellKnown = "/.well-known/"

// challengeTime bounds how long a challenge may be looked for, in a storage that may be far away. It is less than
// usualHTTPBounds.write.
const challengeTime = 8 * time.Second

// answerHTTP answers a plain HTTP request if it is for a challenge, of ours or of caddyTLS (nil: that has been asked), or
// for a name of ours. It reports false, and has written nothing, where it is for neither.
func (s *state) answerHTTP(w http.ResponseWriter, r *http.Request, caddyTLS *caddytls.TLS) bool {
	if strings.HasPrefix(r.URL.Path, wellKnown) {
		ctx, cancel := context.WithTimeout(r.Context(), challengeTime)
		defer cancel()
		r := r.WithContext(ctx)
		if s.http01.answer(w, r) || caddyTLS != nil && caddyTLS.HandleHTTPChallenge(w, r) {
			return true
		}
	}
	location, ok := s.redirect(r)
	if !ok {
		return false
	}
	w.Header().Set("Location", location)
	w.WriteHeader(http.StatusPermanentRedirect) // 308 keeps the method, as 301 does not
	return true
}

// redirect returns where a request for a name of ours is sent: the same path and query with https. The host of the
// location is the name as the table spells it, or what a wildcard there stands for, and a slash follows: nothing that
// a client writes can make it lead elsewhere.
func (s *state) redirect(r *http.Request) (location string, ok bool) {
	host, ok := hostOf(r)
	if !ok {
		return "", false
	}
	e := s.table.Load().find(host)
	if e.none() || s.routeOf(e).Suspended {
		return "", false
	}
	target, ok := targetOf(r)
	if !ok {
		return "", false
	}
	return "https://" + host + s.settings.Load().httpsPort + target, true
}

// hostOf returns the normal form of the name that a request is for. Addresses have none.
func hostOf(r *http.Request) (host string, ok bool) {
	host, port, hasPort := strings.Cut(r.Host, ":")
	if hasPort && strings.Trim(port, "0123456789") != "" {
		return "", false
	}
	return domain.NormalHost(strings.TrimSuffix(host, ".")) // fully qualified, as SNI never is
}

// targetOf returns path and query of a request as they were written. It reports false for requests that have none, such
// as CONNECT and OPTIONS *.
func targetOf(r *http.Request) (target string, ok bool) {
	target = r.RequestURI
	// In absolute form (RFC 9112, section 3.2.2) the authority comes first, of which net/http has made r.Host. Without
	// one it is no such form: in x:.evil.example/ the rest would go on from our host.
	u := r.URL
	if !strings.HasPrefix(target, "/") && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil {
		target = u.RequestURI()
	}
	return escapeTarget(target), strings.HasPrefix(target, "/")
}

// escapeTarget escapes what a request line may have and a location may not: bytes beyond ASCII, and #, which would
// begin a fragment. net/http has refused control characters and spaces.
func escapeTarget(target string) string {
	plain := func(c byte) bool { return ' ' < c && c < 0x7f && c != '#' }
	var b strings.Builder
	for i := range len(target) {
		if c := target[i]; plain(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// httpSlots bounds the connections of the plain HTTP side. While they are few a client may have as many as it likes, for
// it may be a balancer that hides all of them; once half are taken, one client does not get the other half too.
type httpSlots struct {
	most, perClient int

	mu       sync.Mutex
	total    int
	byClient map[netip.Addr]int
}

// admit counts a connection in, and returns nil if it is one too many.
func (l *httpSlots) admit(c *net.TCPConn) net.Conn {
	client := dialClient(addrPort(c.RemoteAddr()).Addr())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.most || l.total >= l.most/2 && l.byClient[client] >= l.perClient {
		return nil
	}
	if l.byClient == nil {
		l.byClient = make(map[netip.Addr]int)
	}
	l.total++
	l.byClient[client]++
	return &httpConn{TCPConn: c, release: sync.OnceFunc(func() { l.release(client) })}
}

func (l *httpSlots) release(client netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.byClient[client]--; l.byClient[client] == 0 {
		delete(l.byClient, client)
	}
}

// httpConn is a connection that httpSlots has counted.
type httpConn struct {
	*net.TCPConn
	release func()
}

func (c *httpConn) Close() error {
	err := c.TCPConn.Close()
	c.release()
	return err
}
