// Package feed fetches the set of domains that a management plane publishes for its edges: one GET over HTTP,
// and of what comes back only a set that is whole, not too large, and signed where signatures are asked for. It
// takes the set for bytes and reads none of it. The server, and whoever is on the way to it, is not trusted: every
// wait ends, everything that is received is bounded, and a failure leaves no file and no connection behind.
//
//	client, err := feed.New(feed.Config{URL: "https://manage.internal:9443/v1/edge/domains", Keys: keys})
//	answer, err := client.Fetch(ctx, feed.Request{ETag: last.ETag, Wait: 25 * time.Second})
//	if err == nil && answer.Body != nil {
//		defer answer.Body.Close()
//		header, err := domain.ReadSet(answer.Body, …)
//	}
package feed

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
)

// Config says where the feed is and what is believed of it.
type Config struct {
	// URL is where the feed is: http or https, without user information and fragment. It may have a query,
	// but for `after`, which Request.After writes.
	URL string

	// Token returns the bearer token (RFC 6750 section 2.1). It is called for every request, so that a token
	// can be changed in its file. White space around the token is dropped. Nil, or an empty token: no
	// Authorization header is sent. Its error is passed on, so it must not hold the token.
	Token func() (string, error)

	// MaxBody is the most bytes of an answer's body, both as they are received and after content decoding. 0
	// means 1 GiB; it is at most 1 TiB.
	MaxBody int64

	// Keys are whose signature is accepted. If there are none, signatures are not looked at.
	Keys feedsig.Keys

	// TLS has private CAs and the client certificate. It is copied. Nil is what the system trusts.
	TLS *tls.Config

	// UserAgent is the header of that name. Empty means "pqproxy".
	UserAgent string

	// Pace, if not nil, is called after each piece of a body, of some 10 KiB: a body that comes as fast as it is read
	// would keep others from the processor.
	Pace func()
}

const (
	defaultMaxBody = 1 << 30
	maxMaxBody     = 1 << 40

	// maxHeader bounds the header of an answer. A signature alone has 4.6 KB.
	maxHeader = 64 << 10

	// maxTries is how often one Fetch may send its request. Once is enough, and twice if the first connection
	// was an old one. The transport knows no end with a server that takes a request over HTTP/2 and says goodbye.
	maxTries = 4

	// maxWait is the longest that a server is asked to wait, and thus that an answer is waited for.
	maxWait = time.Hour
)

// Client fetches one feed. Connections are kept for the next Fetch. It may be used from several goroutines, but
// over HTTP/2 those share a connection, and one that fails closes it for all.
type Client struct {
	cfg   Config
	url   *url.URL
	shown string // the URL for errors: without its query, which may hold secrets

	// Bounds, which tests shorten.
	connect   time.Duration // for DNS, TCP, a proxy's consent, and TLS
	header    time.Duration // for the header of an answer, beyond what the server is asked to wait
	drain     time.Duration // for the body of an answer that is not a set
	allowance time.Duration // for the body of a set, and
	rate      int64         // as much more as its bytes take at this rate a second

	dialer     net.Dialer
	createTemp func() (*os.File, error)

	mu        sync.Mutex // guards transport
	transport *http.Transport
}

// New returns a client for the feed of cfg. It opens nothing. Each error names the field at fault, as the
// configuration spells it.
func New(cfg Config) (*Client, error) {
	u, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.MaxBody < 0 || cfg.MaxBody > maxMaxBody {
		return nil, fmt.Errorf("max_body: %d bytes is not between 1 and 1 TiB; 0 means 1 GiB", cfg.MaxBody)
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = defaultMaxBody
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "pqproxy"
	}
	if !isText(cfg.UserAgent) {
		return nil, errors.New("user_agent: it has characters that are no printable ASCII")
	}
	c := &Client{
		cfg:        cfg,
		url:        u,
		shown:      (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String(),
		connect:    10 * time.Second,
		header:     30 * time.Second,
		drain:      2 * time.Second,
		allowance:  30 * time.Second,
		rate:       64 << 10,
		createTemp: func() (*os.File, error) { return os.CreateTemp("", "pqproxy-feed-*") },
	}
	// A connection that died without a word is found while it is idle, not by the next request; newTransport
	// does the same where there is HTTP/2.
	c.dialer.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}
	c.transport = c.newTransport()
	return c, nil
}

// parseURL never quotes the URL: it may hold a password, and the parser's own errors quote parts of it.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, errors.New("url: it cannot be read; write https://HOST[:PORT]/PATH")
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, errors.New("url: it must begin with https:// or http://")
	case u.User != nil:
		return nil, errors.New("url: it holds a user name or password, which would show in logs; use the token instead")
	case u.Hostname() == "":
		return nil, errors.New("url: it names no host; write https://HOST[:PORT]/PATH")
	case u.Fragment != "":
		return nil, errors.New("url: it has a fragment (#), which no server gets; take it away")
	case u.Query().Has("after"):
		return nil, errors.New("url: its query has after, which is what each request adds; take it away")
	}
	return u, nil
}

func (c *Client) newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            c.dialer.DialContext,
		TLSClientConfig:        c.cfg.TLS.Clone(),
		TLSHandshakeTimeout:    c.connect,
		ForceAttemptHTTP2:      true, // else DialContext and TLSClientConfig turn it off
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: maxHeader,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}
}

// Close closes idle connections. A Fetch that is under way goes on, and the client can be used again.
func (c *Client) Close() {
	c.current().CloseIdleConnections()
}

func (c *Client) current() *http.Transport {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.transport
}

// retire replaces t, a connection of which was closed under it: it may not know yet, and would hand it to the
// next request. What t is still dialing, for nobody, ends too.
func (c *Client) retire(t *http.Transport) {
	c.mu.Lock()
	if c.transport == t {
		c.transport = c.newTransport()
	}
	c.mu.Unlock()
	t.CloseIdleConnections()
}

func (c *Client) token() (string, error) {
	if c.cfg.Token == nil {
		return "", nil
	}
	token, err := c.cfg.Token()
	if err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	token = strings.TrimSpace(token)
	// No quotation marks either: a token that looks otherwise when quoted could not be kept out of errors.
	if !isText(token) || strings.ContainsAny(token, ` "\`) {
		return "", errors.New("reading the token: it has characters that no token has, such as a line break within; is it the right file?")
	}
	return token, nil
}

// isText reports whether s is printable ASCII.
func isText(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// Request is one question for the set.
type Request struct {
	// ETag is the one of the last answer, for If-None-Match. Empty: none is sent.
	ETag string

	// After is the revision that the edge has, to be given what changed since. Nil: the full set is wanted.
	After *uint64

	// Wait is how long the server is asked to wait for a change, if there is none yet (RFC 7240 section 4.3):
	// in whole seconds, rounded up, an hour at most. Zero or less: it is not asked.
	Wait time.Duration
}

// wait is Wait as it is sent.
func (r Request) wait() time.Duration {
	seconds := math.Ceil(min(max(r.Wait, 0), maxWait).Seconds())
	return time.Duration(seconds) * time.Second
}

// Answer is what the server says of the set: NotModified, Gone, or else the Body.
type Answer struct {
	// NotModified says that the set is that of Request.ETag, or that nothing changed since Request.After.
	NotModified bool

	// Gone says that the server no longer knows what changed since Request.After: ask again without it.
	Gone bool

	// ETag is the one of the answer, and empty if it has none, or one that is not fit to be sent back.
	ETag string

	// Waited says that the server did wait, as Request.Wait asks it to, so that it may be asked again at once.
	Waited bool

	// Body is the set, not read. It is nil with NotModified and Gone; else the caller closes it.
	Body *Body
}
