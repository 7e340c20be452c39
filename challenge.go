package pqproxy

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// challengePath is where CAs look for the answer of HTTP-01 (RFC 8555, section 8.3), and checkPath where our own
// self-check does.
const (
	challengePath = "/.well-known/acme-challenge/"
	checkPath     = challengePath + "pqproxy-check-"
)

// challengeFor returns the challenge that is open for a name: this process's, be it Caddy's own, or for a name of ours one
// that another edge of the fleet has put into storage. For other names, of which there is no end, nothing is read, and
// for those once at a time: anybody may ask.
func (s *certificates) challengeFor(ctx context.Context, name string) (certmagic.Challenge, bool) {
	if challenge, ok := certmagic.GetACMEChallenge(name); ok {
		return challenge, true
	}
	now := s.config.Load()
	if now == nil || !s.obtains(name) {
		return certmagic.Challenge{}, false
	}
	s.mu.Lock()
	l := s.lookups[name]
	if l != nil {
		s.mu.Unlock()
		select {
		case <-l.done:
			return l.challenge, l.found
		case <-ctx.Done():
			return certmagic.Challenge{}, false
		}
	}
	l = &challengeLookup{done: make(chan struct{})}
	s.lookups[name] = l
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.lookups, name)
		s.mu.Unlock()
		close(l.done)
	}()
	l.challenge, l.found = now.challengeFor(ctx, name)
	return l.challenge, l.found
}

// challengeLookup is a challenge that is looked for in storage. All who want it wait for one.
type challengeLookup struct {
	done      chan struct{} // closed when the rest is set
	challenge certmagic.Challenge
	found     bool
}

// challengeFor returns the challenge of a name that is in storage.
func (i *issuing) challengeFor(ctx context.Context, name string) (challenge certmagic.Challenge, found bool) {
	for _, issuer := range i.issuers {
		key := path.Join("acme", certmagic.StorageKeys.Safe(issuer.IssuerKey()), "challenge_tokens", certmagic.StorageKeys.Safe(name)+".json")
		content, err := i.load(ctx, key)
		if err == nil && content == nil {
			continue
		}
		if err == nil {
			err = json.Unmarshal(content, &challenge)
		}
		if err == nil {
			return challenge, true
		}
		i.logger.Error("reading a challenge from storage", zap.String(keyDomain, name), zap.Error(err))
	}
	return certmagic.Challenge{}, false
}

// obtains reports whether a certificate of a name may be wanted from the issuers.
func (s *certificates) obtains(name string) bool {
	e := s.owner.table.Load().named(name)
	return !e.none() && e.certificate != fromInternal && e.certificate.issued()
}

// answerChallenge answers a request for a challenge of HTTP-01, or for our self-check. It reports false, and has
// written nothing, where there is none.
func (s *certificates) answerChallenge(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodGet || !strings.HasPrefix(r.URL.Path, challengePath) {
		return false
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host, ok := domain.NormalHost(host)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(r.Context(), loadTimeout)
	defer cancel()
	if nonce, ok := strings.CutPrefix(r.URL.Path, checkPath); ok {
		if !s.obtains(host) {
			return false
		}
		answer, err := s.checkAnswer(ctx, host, nonce)
		if err != nil {
			return false
		}
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, answer)
		return true
	}
	challenge, ok := s.challengeFor(ctx, host)
	return ok && certmagic.SolveHTTPChallenge(zap.NewNop(), w, r, challenge.Challenge)
}

// challengeCertificate returns the certificate that answers TLS-ALPN-01 (RFC 8737) for a name, or nil where no CA is
// expected to ask.
func (s *certificates) challengeCertificate(name string) *tls.Certificate {
	ctx, cancel := context.WithTimeout(s.ctx, loadTimeout)
	defer cancel()
	challenge, ok := s.challengeFor(ctx, name)
	if !ok || challenge.Type != "tls-alpn-01" {
		return nil
	}
	cert, err := acmez.TLSALPN01ChallengeCert(challenge.Challenge)
	if err != nil {
		s.config.Load().logger.Error("making the certificate of a challenge", zap.String(keyDomain, name), zap.Error(err))
		return nil
	}
	return cert
}

// checkKeyPath is where the edges that share a storage have the key of their self-checks, so that any of them answers
// for any other.
const checkKeyPath = "pqproxy/check.key"

// maxNonce is what is longer than the nonces that we send.
const maxNonce = 64

// checkAnswer is what an edge of ours answers to a self-check: nobody else has the key.
func (s *certificates) checkAnswer(ctx context.Context, name, nonce string) (string, error) {
	if len(nonce) > maxNonce {
		return "", errors.New("no nonce of ours")
	}
	key, err := s.checkKey(ctx)
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, key)
	_, _ = io.WriteString(mac, name+"\n"+nonce)
	return hex.EncodeToString(mac.Sum(nil)), nil
}

// checkKey reads the key of self-checks, or makes it.
func (s *certificates) checkKey(ctx context.Context) ([]byte, error) {
	now := s.config.Load()
	if now == nil {
		return nil, errNoIssuer
	}
	if kept := s.checking.Load(); kept != nil && kept.storage == now.storage {
		return kept.key, nil
	}
	key, err := now.load(ctx, checkKeyPath)
	if err == nil && key == nil {
		key, err = now.makeCheckKey(ctx)
	}
	if err != nil {
		return nil, err
	}
	if len(key) != sha256.Size {
		return nil, fmt.Errorf("%s is not a key; remove it from storage", checkKeyPath)
	}
	s.checking.Store(&checkKey{now.storage, key})
	return key, nil
}

// makeCheckKey makes the key under a lock: of two that are made at once each edge would go on with its own.
func (i *issuing) makeCheckKey(ctx context.Context) ([]byte, error) {
	unlock, err := i.lockKey(ctx, "pqproxy_check_key")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if key, err := i.load(ctx, checkKeyPath); key != nil || err != nil {
		return key, err
	}
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key)
	return key, i.storage.Store(ctx, checkKeyPath, key)
}

// checkKey is the key of self-checks in a storage.
type checkKey struct {
	storage certmagic.Storage
	key     []byte
}

// Bounds of a self-check, and how often a name that cannot be reached is left to the CA all the same: behind some
// routers a host cannot reach itself by its public address.
const (
	checkTimeout   = 5 * time.Second
	checkBlindEach = 4
)

// errNotUs is what a self-check finds where somebody else answers, or nobody can.
type errNotUs struct{ what string }

func (e *errNotUs) Error() string { return "self-check: " + e.what }

// reachesUs asks whether the name leads to this edge, or to another one with the same storage, before the CA is
// bothered: it counts failed attempts. nil: it does, or that cannot be told.
func (s *certificates) reachesUs(ctx context.Context, one *order) error {
	if !s.servesHTTP() {
		return nil // TLS-ALPN-01 alone: there is nothing to ask
	}
	var nonce [16]byte
	_, _ = rand.Read(nonce[:])
	text := hex.EncodeToString(nonce[:])
	want, err := s.checkAnswer(ctx, one.name, text)
	if err != nil {
		return fmt.Errorf("self-check: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(one.name, s.checkPort)+checkPath+text, nil)
	if err != nil {
		return fmt.Errorf("self-check: %w", err)
	}
	request.Host = one.name
	response, err := s.checkClient().Do(request)
	var noName *net.DNSError
	var denied *netpolicy.DeniedError
	switch {
	case errors.As(err, &denied):
		return nil // an address that is not ours to ask; the CA will tell
	case errors.As(err, &noName) && noName.IsNotFound:
		return &errNotUs{fmt.Sprintf("%s has no address in DNS", one.name)}
	case err != nil && one.attempts%checkBlindEach == checkBlindEach-1:
		return nil
	case err != nil:
		return &errNotUs{fmt.Sprintf("%s cannot be reached on port 80: %v", one.name, errors.Unwrap(err))}
	}
	defer response.Body.Close()
	got, _ := io.ReadAll(io.LimitReader(response.Body, int64(len(want))+1))
	if response.StatusCode != http.StatusOK || !hmac.Equal(got, []byte(want)) {
		s.checking.Store(nil) // the next one reads the key anew: somebody may have put another one into storage
		return &errNotUs{fmt.Sprintf("something else answers for %s on port 80, with status %d: does its DNS record point here?", one.name, response.StatusCode)}
	}
	return nil
}

// checkClient makes the client of one self-check. It goes where the tenant's DNS says, so it follows nothing and
// connects to no address that is not public or allowed.
func (s *certificates) checkClient() *http.Client {
	dialer := &net.Dialer{Timeout: checkTimeout, Control: s.owner.settings.Load().policy.WithOwn(nil).Control, Resolver: s.resolver}
	return &http.Client{
		Transport:     &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
