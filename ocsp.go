package pqproxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ocsp"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// staples are what CAs say of the certificates in use (OCSP, RFC 6960), which handshakes carry (RFC 8446, section
// 4.4.2.1). The CA is asked in the background when a certificate is first served: that handshake goes without. certmagic
// would ask when it loads a certificate, while the client waits, without a bound on time, and wherever a tenant's
// certificate says.
type staples struct {
	certs *certificates
	rest  time.Duration // between two questions about one certificate, at least

	mu      sync.Mutex
	byLeaf  map[leafDigest]*staple
	due     []*staple // waiting for a worker, the first come first
	workers int
	of      map[stapleSource]int // how many of byLeaf are on whose behalf
	asking  map[stapleSource]int // questions under way
}

type leafDigest [sha256.Size]byte

func digestOfLeaf(der []byte) leafDigest { return sha256.Sum256(der) }

// staple is what is known of one certificate. The lock of staples guards what changes.
type staple struct {
	leaf   *x509.Certificate
	issuer []byte // its certificate
	source stapleSource

	name     string // that it served last
	queued   bool   // due, or being asked about
	next     time.Time
	failures int
	revoked  bool
	response []byte    // that it is good; nil: nobody said so
	until    time.Time // when the response is out of date
}

// stapleSource says on whose behalf a CA is asked.
type stapleSource struct {
	tenant string
	own    bool // the certificate is the tenant's, and with it the address that is asked
	static bool // the record is the operator's
}

// Bounds of the work. A response has 500 bytes to some thousands; each handshake carries it. A tenant may have a quarter of
// what is kept, and two questions at a time.
const (
	maxStaples     = 20_000
	maxStaple      = 8 << 10
	stapleRest     = time.Minute
	stapleAway     = time.Hour // most that is waited after failures
	stapleTimeout  = 10 * time.Second
	stapleWorkers  = 16
	staplesATenant = 2
	clockSkew      = 5 * time.Minute // by which a responder's clock may be ahead
	revokedAfter   = 24 * time.Hour
)

func (s *staples) open(certs *certificates) {
	s.certs, s.rest = certs, stapleRest
	s.byLeaf, s.of, s.asking = make(map[leafDigest]*staple), make(map[stapleSource]int), make(map[stapleSource]int)
}

// on returns a route's certificate with what its CA says of it, as far as that is known, and has the CA asked if it is
// time. It does not wait.
func (s *staples) on(r *route, cert *tls.Certificate) *tls.Certificate {
	if cert.Leaf == nil || len(cert.Leaf.OCSPServer) == 0 || len(cert.Certificate) < 2 {
		return cert
	}
	digest, now := digestOfLeaf(cert.Certificate[0]), time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.byLeaf[digest]
	if st == nil {
		st = &staple{leaf: cert.Leaf, issuer: cert.Certificate[1]}
		if cert == r.pair {
			st.source = stapleSource{r.Tenant, true, r.source == domain.Static}
		}
		if len(s.byLeaf) >= maxStaples || st.source.own && s.of[st.source] >= maxStaples/4 {
			return cert
		}
		s.byLeaf[digest] = st
		s.of[st.source]++
	}
	st.name = r.Name
	s.askIfDue(st, now)
	if st.response == nil || !now.Before(st.until) {
		return cert
	}
	stapled := *cert
	stapled.OCSPStaple = st.response
	return &stapled
}

// revoked reports whether the CA has said that it has revoked a certificate.
func (s *staples) revoked(leaf *x509.Certificate) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.byLeaf[digestOfLeaf(leaf.Raw)]
	return st != nil && st.revoked
}

// replace reports whether an issued certificate is to be replaced because it was revoked. One that is young is not, lest a
// responder that is wrong about all of a CA's certificates has us order without end.
func (s *staples) replace(leaf *x509.Certificate) bool {
	return time.Since(leaf.NotBefore) > revokedAfter && s.revoked(leaf)
}

// tend has CAs asked about certificates that nobody has asked for in a while, and forgets those that are not served any
// more.
func (s *staples) tend() {
	s.mu.Lock()
	all := make(map[leafDigest]staple, len(s.byLeaf))
	for digest, st := range s.byLeaf {
		all[digest] = *st
	}
	s.mu.Unlock()
	for digest, st := range all {
		if s.served(&st) {
			delete(all, digest)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for digest, st := range all {
		delete(s.byLeaf, digest)
		if s.of[st.source]--; s.of[st.source] == 0 {
			delete(s.of, st.source)
		}
	}
	s.due = slices.DeleteFunc(s.due, func(st *staple) bool { _, forgotten := all[digestOfLeaf(st.leaf.Raw)]; return forgotten })
	now := time.Now()
	for _, st := range s.byLeaf {
		s.askIfDue(st, now)
	}
}

// served reports whether the name that a certificate served last is served with it still.
func (s *staples) served(st *staple) bool {
	e := s.certs.owner.table.Load().named(st.name)
	switch {
	case e.none():
		return false
	case st.source.own:
		return e.pairEnds != 0 && e.route().sameLeaf(st.leaf)
	}
	cert := s.certs.memory.peek(st.name)
	return cert != nil && cert.Leaf.Equal(st.leaf)
}

// askIfDue has a worker ask, if it is time. Call it with the lock held.
func (s *staples) askIfDue(st *staple, now time.Time) {
	if st.queued || now.Before(st.next) {
		return
	}
	st.queued = true
	s.due = append(s.due, st)
	if s.workers < stapleWorkers && s.certs.spawn(s.work) {
		s.workers++
	}
}

// work asks about what is due. It ends when nothing is, or all of that is of tenants that have their share of workers.
func (s *staples) work() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		i := slices.IndexFunc(s.due, func(st *staple) bool { return !st.source.own || s.asking[st.source] < staplesATenant })
		if i < 0 || s.certs.ctx.Err() != nil {
			s.workers--
			return
		}
		st := s.due[i]
		s.due = slices.Delete(s.due, i, i+1)
		s.asking[st.source]++
		s.mu.Unlock()
		answer, err := s.ask(st)
		s.mu.Lock()
		if s.asking[st.source]--; s.asking[st.source] == 0 {
			delete(s.asking, st.source)
		}
		s.answered(st, answer, err)
	}
}

// answered takes note of an answer. Call it with the lock held.
func (s *staples) answered(st *staple, answer *stapleAnswer, err error) {
	st.queued = false
	now, logger := time.Now(), s.certs.config.Load().logger
	fields := []zap.Field{zap.String(keyDomain, st.name), zap.String(keyTenant, st.source.tenant)}
	if err != nil {
		if st.failures++; st.failures == 1 && s.certs.ctx.Err() == nil {
			logger.Warn("asking a CA about a certificate: handshakes carry an older OCSP response or none",
				append(fields, zap.String(keyError, cutText(err.Error(), maxErrorText)))...)
		}
		pause := min(s.rest<<min(st.failures-1, 10), stapleAway)
		st.next = now.Add(pause + rand.N(pause/4+1))
		return
	}
	st.failures = 0
	st.next = answer.ThisUpdate.Add(answer.until.Sub(answer.ThisUpdate) / 2) // the other half is for failures
	if least := now.Add(s.rest); st.next.Before(least) {
		st.next = least
	}
	if answer.Status == ocsp.Good {
		st.response, st.until, st.revoked = answer.Raw, answer.until, false
		return
	}
	st.response = nil
	if answer.Status != ocsp.Revoked || st.revoked {
		return
	}
	st.revoked = true
	fields = append(fields, zap.Time("revoked_at", answer.RevokedAt))
	if st.source.own {
		logger.Error("a domain's own certificate has been revoked by its CA: replace it", fields...)
		return
	}
	logger.Error("a certificate has been revoked by its CA", fields...)
	if e := s.certs.owner.table.Load().named(st.name); !e.none() && e.wantsIssued() {
		s.certs.orders.want(st.name, e)
	}
}

// stapleAnswer is what a CA has answered.
type stapleAnswer struct {
	*ocsp.Response
	until time.Time // when it is out of date
}

// ask asks the CA about a certificate.
func (s *staples) ask(st *staple) (*stapleAnswer, error) {
	ctx, cancel := context.WithTimeout(s.certs.ctx, stapleTimeout)
	defer cancel()
	issuer, err := x509.ParseCertificate(st.issuer)
	if err != nil {
		return nil, err
	}
	question, err := ocsp.CreateRequest(st.leaf, issuer, nil)
	if err != nil {
		return nil, err
	}
	body, err := s.post(ctx, st.source, st.leaf.OCSPServer[0], question)
	if err != nil {
		return nil, err
	}
	return readStaple(body, st.leaf, issuer, time.Now())
}

// post sends a question to a responder and returns what comes back. A tenant chooses where its own certificate's
// responder is: that is connected to where an upstream of the domain might be, and to nothing else.
func (s *staples) post(ctx context.Context, source stapleSource, to string, question []byte) ([]byte, error) {
	where, err := url.Parse(to)
	if err != nil || where.Scheme != "http" && where.Scheme != "https" || where.User != nil {
		return nil, fmt.Errorf("the certificate's OCSP responder is %s, which is no http URL", quoteShort(to))
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(question))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/ocsp-request") // RFC 6960, appendix A.1
	transport := &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: maxStaple}
	var policy *netpolicy.Policy // of issued certificates: the operator trusts their CA
	switch settings := s.certs.owner.settings.Load(); {
	case source.static:
		policy = settings.own
	case source.own:
		policy = settings.policy
	default:
		transport.Proxy = http.ProxyFromEnvironment // which would connect in our stead, out of the policy's sight
	}
	transport.DialContext = (&net.Dialer{Control: policy.Control}).DialContext
	client := http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the OCSP responder answers %d", response.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxStaple+1))
	if err == nil && len(body) > maxStaple {
		err = fmt.Errorf("the OCSP response has more than %d bytes", maxStaple)
	}
	return body, err
}

// readStaple reads a response, whose signature must be the issuer's or that of a responder which the issuer has given its
// word for (RFC 6960, section 4.2.2.2), and which must be of the present.
func readStaple(body []byte, leaf, issuer *x509.Certificate, now time.Time) (*stapleAnswer, error) {
	response, err := ocsp.ParseResponseForCert(body, leaf, issuer)
	if err != nil {
		return nil, fmt.Errorf("reading the OCSP response: %w", err)
	}
	answer := &stapleAnswer{response, response.NextUpdate}
	if responder := response.Certificate; responder != nil && !responder.Equal(issuer) {
		if !slices.Contains(responder.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
			return nil, errors.New("the OCSP response is signed with a certificate that is not for that")
		}
		if responder.NotAfter.Before(answer.until) {
			answer.until = responder.NotAfter
		}
	}
	if leaf.NotAfter.Before(answer.until) {
		answer.until = leaf.NotAfter
	}
	switch {
	case response.NextUpdate.IsZero():
		return nil, errors.New("the OCSP response does not say until when it holds")
	case response.ThisUpdate.After(now.Add(clockSkew)):
		return nil, fmt.Errorf("the OCSP response is of the future, from %s on; are the clocks right?", response.ThisUpdate.UTC().Format(time.RFC3339))
	case !now.Before(answer.until):
		return nil, fmt.Errorf("the OCSP response is of the past, until %s", answer.until.UTC().Format(time.RFC3339))
	}
	return answer, nil
}
