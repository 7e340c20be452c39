// Package acmetest is a real ACME server for tests: Pebble (github.com/letsencrypt/pebble), in this process, on
// loopback ports of its own, with the switches that a certificate authority in trouble would have.
//
//	ca := acmetest.Start(t, acmetest.Options{})
//	ca.ForwardHTTP(listener.Addr().String()) // where HTTP-01 is answered
//	// … a client of ca.URL() that trusts ca.CA() obtains a certificate for any name; it chains to ca.Roots(0) …
//	ca.Inject(acmetest.Match{Endpoint: acmetest.NewOrder}, 1, acmetest.RateLimited(time.Minute))
//	// … and gets 429 when it orders the next one …
//	if n := ca.Orders("app.example.com"); n != 1 { … }
//
// It listens on a real port, so that a client may be another process (Caddy, started by an end-to-end test) just
// as well: give it URL and CA().PEMFile(t), and start no Pebble of its own.
//
// Everything is validated as Pebble does it: over HTTP-01 or TLS-ALPN-01, three times for each challenge, at the
// address that a name resolves to. What stands in front of Pebble only counts, injects faults, and takes out what
// Pebble leaves to chance (its random delays, profiles and reuse of authorizations), or would lock up on.
package acmetest

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// Options says how a server behaves. The zero value is a CA that issues to whoever passes validation.
type Options struct {
	// HTTPPort and TLSPort are where HTTP-01 and TLS-ALPN-01 are validated, at the addresses that the name
	// resolves to. 0: a port of the server's own, from which connections are passed on to the address of
	// ForwardHTTP or ForwardTLS; they wait for it, so that a client whose port is not known yet may begin.
	HTTPPort, TLSPort int

	// Profiles are offered in the directory (draft-aaron-acme-profiles). An order that names none gets the
	// first. Empty: DefaultProfiles.
	Profiles []Profile

	// AlternateChains are offered with each certificate besides the default one, each with a root of its own
	// (RFC 8555, section 7.4.2). ChainLength is the number of intermediates in each; 0 means 1.
	AlternateChains, ChainLength int

	// RejectNonces is the percentage of good nonces that are refused as bad, at random. 100 refuses all.
	// Inject BadNonce to refuse chosen ones.
	RejectNonces int

	// ReuseAuthorizations has valid authorizations of an account satisfy its further orders for an hour,
	// without another validation, as public CAs do. Otherwise each order is validated anew.
	ReuseAuthorizations bool

	// RetryAfter is sent with authorizations and orders that are being processed, in whole seconds, sometimes as
	// a date. 0: none is sent.
	RetryAfter time.Duration

	// NoRenewalInfo takes ARI (RFC 9773) out of the directory. RenewalRetryAfter replaces the six hours that
	// ARI answers tell a client to wait before it asks again, in whole seconds.
	NoRenewalInfo     bool
	RenewalRetryAfter time.Duration

	// ExternalAccounts are the MAC keys by key ID, in base64url without padding, of which each new account must
	// be bound to one (RFC 8555, section 7.3.4). Empty: accounts are free.
	ExternalAccounts map[string]string

	// Logger gets what Pebble and its HTTP server log. It must not use the test's Log, since validations may
	// outlive the test. Nil: nothing.
	Logger *log.Logger
}

// Profile is a kind of certificate that is offered.
type Profile struct {
	Name string

	// Validity is how long certificates are valid, from the second of their issuance, in whole seconds. Below 3 s
	// Pebble's ARI windows are too short for clients that check them.
	Validity time.Duration
}

// DefaultProfiles are those of Let's Encrypt: classic of 90 days, tlsserver of 45 days, shortlived of 160 hours.
func DefaultProfiles() []Profile {
	const day = 24 * time.Hour
	return []Profile{{"classic", 90 * day}, {"tlsserver", 45 * day}, {"shortlived", 160 * time.Hour}}
}

// Server is a running ACME server. Its methods may be called from any goroutine, those that take a name with or
// without upper case.
type Server struct {
	tb   testing.TB
	opts Options
	url  string
	path string // of the directory
	api  *pqtest.CA

	http     http.Server
	wg       sync.WaitGroup // of serve
	handlers sync.WaitGroup // of requests
	once     sync.Once

	pebble pebble
	dns    *resolver
	relays [2]*relay // of HTTP and TLS; nil where a port is given
	liar   *liar

	mu       sync.Mutex // guards what follows
	closed   bool
	requests []*Request
	faults   []*fault
	orders   map[string][]string // names by order ID
	issued   []*x509.Certificate
	held     map[string]int // by name; "" stands for all
}

// started numbers servers, for their directory URLs: acmez remembers directories by URL for hours, and ports return.
var started atomic.Int64

// Start runs a server until the test ends or Close is called.
func Start(tb testing.TB, opts Options) *Server {
	tb.Helper()
	if len(opts.Profiles) == 0 {
		opts.Profiles = DefaultProfiles()
	}
	if opts.Logger == nil {
		opts.Logger = log.New(io.Discard, "", 0)
	}
	if err := opts.check(); err != nil {
		tb.Fatalf("acmetest: %v", err)
	}
	s := &Server{
		tb: tb, opts: opts, api: pqtest.NewCA(tb), path: fmt.Sprintf("/%d/directory", started.Add(1)),
		orders: make(map[string][]string), held: make(map[string]int),
	}
	s.dns = startResolver(tb)
	ports := [2]int{opts.HTTPPort, opts.TLSPort}
	for i, port := range ports {
		if port == 0 {
			s.relays[i] = startRelay(tb)
			ports[i] = s.relays[i].port()
		}
	}
	if err := s.pebble.start(opts, ports[0], ports[1], s.dns.addr()); err != nil {
		tb.Fatalf("acmetest: %v", err)
	}
	s.liar = newLiar(tb, s.pebble.ca.GetIntermediateCert(0).Cert)
	s.listen()
	tb.Cleanup(s.Close)
	return s
}

func (o Options) check() error {
	names := make(map[string]bool)
	for _, p := range o.Profiles {
		if p.Name == "" || names[p.Name] || p.Validity < time.Second || p.Validity%time.Second != 0 {
			return fmt.Errorf("profile %q of %v: names must differ, validity be whole seconds", p.Name, p.Validity)
		}
		names[p.Name] = true
	}
	for _, d := range []time.Duration{o.RetryAfter, o.RenewalRetryAfter} {
		if d < 0 || d%time.Second != 0 {
			return fmt.Errorf("a Retry-After of %v: must be whole seconds", d)
		}
	}
	for id, key := range o.ExternalAccounts {
		if _, err := base64.RawURLEncoding.DecodeString(key); id == "" || key == "" || err != nil {
			return fmt.Errorf("external account %q: neither ID nor key may be empty, the key must be base64url without padding", id)
		}
	}
	if o.RejectNonces < 0 || o.RejectNonces > 100 {
		return fmt.Errorf("RejectNonces is %d, must be a percentage", o.RejectNonces)
	}
	return nil
}

// URL is the directory's.
func (s *Server) URL() string { return s.url }

// CA has signed the certificate of the API itself: what a client must trust to speak to it.
func (s *Server) CA() *pqtest.CA { return s.api }

// Roots holds the root of what is issued: of the default chain for 0, of the alternates for 1 and on.
func (s *Server) Roots(chain int) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.root(chain))
	return pool
}

// RootPEM is the certificate in Roots.
func (s *Server) RootPEM(chain int) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.root(chain).Raw})
}

func (s *Server) root(chain int) *x509.Certificate {
	root := s.pebble.ca.GetRootCert(chain)
	if root == nil {
		panic(fmt.Sprintf("acmetest: there is no chain %d", chain))
	}
	return root.Cert
}

// Issued returns the certificates signed for a name, oldest first, whether the client has learned of them or not.
// The name "" stands for all.
func (s *Server) Issued(name string) []*x509.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	var certs []*x509.Certificate
	for _, cert := range s.issued {
		if about(certNames(cert), name) {
			certs = append(certs, cert)
		}
	}
	return certs
}

// Orders is the number of orders that were accepted for a name, whatever became of them. The name "" stands for all.
func (s *Server) Orders(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, names := range s.orders {
		if about(names, name) {
			n++
		}
	}
	return n
}

// HoldIssuance keeps orders for a name in status processing, with RetryAfter, until release is called; "" stands for
// all names. Pebble does sign when the order is finalized, and Issued shows it, but the client is not told.
func (s *Server) HoldIssuance(name string) (release func()) {
	name = strings.ToLower(name)
	add := func(n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.held[name] += n
	}
	add(1)
	return sync.OnceFunc(func() { add(-1) })
}

func (s *Server) isHeld(names []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[""] > 0 || slices.ContainsFunc(names, func(name string) bool { return s.held[name] > 0 })
}

// SetRenewalWindow makes ARI suggest a window for an issued certificate (RFC 9773, section 4.2) instead of Pebble's own: a
// day before to a day after two thirds of the lifetime, but within it.
func (s *Server) SetRenewalWindow(leaf *x509.Certificate, start, end time.Time) error {
	return s.pebble.setRenewalWindow(leaf, start, end)
}

// RenewNow is SetRenewalWindow with a window that is over.
func (s *Server) RenewNow(leaf *x509.Certificate) error {
	now := time.Now()
	return s.SetRenewalWindow(leaf, now.Add(-2*time.Hour), now.Add(-time.Hour))
}

// Resolve says where a name is validated: at the first address, or 127.0.0.1 again when there is none.
func (s *Server) Resolve(name string, addrs ...string) {
	s.dns.set(name, answer{addrs: parseAddrs(addrs)})
}

// FailDNS has queries for a name answered by a code like "NXDOMAIN" or "SERVFAIL", which Pebble takes alike: it
// finds no address, and the challenge fails. Resolve ends it.
func (s *Server) FailDNS(name, code string) {
	s.dns.set(name, answer{rcode: parseCode(code)})
}

// ForwardHTTP gives, or changes, the address where HTTP-01 is validated, host:port. Where nobody listens there, Pebble's
// connection is reset. It panics if Options.HTTPPort is set.
func (s *Server) ForwardHTTP(addr string) { s.relays[0].forward(addr) }

// ForwardTLS is ForwardHTTP for TLS-ALPN-01 and Options.TLSPort.
func (s *Server) ForwardTLS(addr string) { s.relays[1].forward(addr) }

// Close stops the server, cuts its connections and waits for its handlers. It may be called again.
//
// Pebble cannot be told to end a validation: where HTTPPort or TLSPort is given, one that is under way goes on until
// its peer closes, 15 seconds at most. So the peer is best closed first.
func (s *Server) Close() { s.once.Do(s.close) }

func (s *Server) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.http.Close()
	s.wg.Wait()
	for _, r := range s.relays {
		if r != nil {
			r.close()
		}
	}
	handled := make(chan struct{})
	go func() { s.handlers.Wait(); close(handled) }()
	select {
	case <-handled:
		if err := s.pebble.stop(); err != nil {
			s.tb.Errorf("acmetest: %v", err)
		}
	case <-time.After(pqtest.Timeout):
		s.tb.Errorf("acmetest: a request to Pebble does not end")
	}
	s.dns.close()
}
