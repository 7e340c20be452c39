package dnscheck

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// ProofPath is where a proof over HTTP is served, followed by the token.
const ProofPath = "/.well-known/pqproxy/"

const (
	proofTime  = 5 * time.Second // of all of one fetch
	proofDial  = 2 * time.Second // of one address
	proofAddrs = 4               // addresses that are tried
	maxProof   = 1 << 10         // bytes of the body
	maxToken   = 256             // bytes of a token
)

// HTTPProver fetches proofs. The zero value of each field but Resolver is its default. It is for any number of goroutines.
type HTTPProver struct {
	Resolver *Resolver         // required
	Policy   *netpolicy.Policy // where it may connect; nil: public addresses only
	Port     int               // default 80, which is where only the owner of a host can serve
}

// Prove fetches http://NAME/.well-known/pqproxy/TOKEN and compares the body with want, white space around it aside. It
// is one request: no redirect is followed, no proxy used, nothing kept. Each address is judged by the policy when it is
// connected to, so that what it resolved to before does not matter. It ends within 5 s or when ctx does.
//
// OK: the proof is there. Wrong: something else is there, or it is where the policy forbids to go. Absent: the name has no
// address. Unknown: nobody answered. The detail holds nothing of the body.
func (p *HTTPProver) Prove(ctx context.Context, name, token, want string) Verdict {
	ctx, cancel := context.WithTimeout(ctx, proofTime)
	defer cancel()
	if strings.HasPrefix(name, "*.") {
		return Verdict{Off, "A wildcard cannot be proven over HTTP: a server of one name does not speak for the others. Use the TXT record."}
	}
	if token == "" || want == "" || len(token) > maxToken || len(want) > maxProof {
		return Verdict{Off, "There is no proof to fetch."}
	}
	policy := p.Policy
	if policy == nil {
		var err error
		if policy, err = netpolicy.New(nil); err != nil {
			return Verdict{Unknown, "The proof could not be fetched."}
		}
	}
	addrs, verdict := p.addrs(ctx, name)
	if verdict != nil {
		return *verdict
	}
	where := "http://" + name + ProofPath + url.PathEscape(token)
	reply, err := p.fetch(ctx, policy, addrs, name, where)
	if err != nil {
		return p.failed(err, where)
	}
	defer reply.Body.Close()
	return compare(reply, where, want)
}

// addrs resolves the name by ourselves, with the servers that everything is asked of, in at most half of the time: what
// is known by then is enough to go on.
func (p *HTTPProver) addrs(ctx context.Context, name string) ([]netip.Addr, *Verdict) {
	ctx, cancel := context.WithTimeout(ctx, proofTime/2)
	defer cancel()
	var v4, v6 answer
	var both sync.WaitGroup
	both.Go(func() { v4 = p.Resolver.lookup(ctx, name, dns.TypeA) })
	both.Go(func() { v6 = p.Resolver.lookup(ctx, name, dns.TypeAAAA) })
	both.Wait()
	addrs := append(v4.addrs(), v6.addrs()...)
	if len(addrs) > 0 {
		return addrs, nil
	}
	if failure := firstFailure(&v4, &v6); failure != nil {
		return nil, &Verdict{Unknown, "DNS could not be asked for " + name + ": " + failure.Reason + ". Nothing is concluded from that, and it is asked again."}
	}
	return nil, &Verdict{Absent, name + " has no address in DNS, so no proof can be fetched from it."}
}

// fetch makes the one request.
func (p *HTTPProver) fetch(ctx context.Context, policy *netpolicy.Policy, addrs []netip.Addr, name, where string) (*http.Response, error) {
	port := p.Port
	if port == 0 {
		port = 80
	}
	dialer := &net.Dialer{Timeout: proofDial, Control: policy.Control}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialFirst(ctx, dialer, addrs, port) },
		// Proxy stays nil: a proxy would go where we may not.
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 16 << 10,
	}
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, errors.New("the name cannot be in a URL")
	}
	request.Host = name
	request.Header.Set("User-Agent", "pqproxy-management")
	return client.Do(request)
}

// dialFirst connects to the first address that answers. Where none does, what the policy forbids is told rather than
// what failed: that is what the owner can change.
func dialFirst(ctx context.Context, dialer *net.Dialer, addrs []netip.Addr, port int) (net.Conn, error) {
	var denied, failed error
	for _, addr := range addrs[:min(len(addrs), proofAddrs)] {
		conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(addr.String(), strconv.Itoa(port)))
		if err == nil {
			return conn, nil
		}
		if _, ok := errors.AsType[*netpolicy.DeniedError](err); ok || errors.Is(err, netpolicy.ErrLoop) {
			denied = err
		} else {
			failed = err
		}
	}
	if denied != nil {
		return nil, denied
	}
	return nil, failed
}

// failed puts into words why there was no answer.
func (p *HTTPProver) failed(err error, where string) Verdict {
	if denied, ok := errors.AsType[*netpolicy.DeniedError](err); ok {
		return Verdict{Wrong, "The proof at " + where + " cannot be fetched: the name resolves to an address that is not public (" + denied.Class + "). Use the TXT record."}
	}
	if errors.Is(err, netpolicy.ErrLoop) {
		return Verdict{Wrong, "The proof at " + where + " cannot be fetched: the name resolves to this service itself. Use the TXT record."}
	}
	text := "the connection failed or the answer is not HTTP"
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		text = "the server did not answer in time"
	}
	return Verdict{Unknown, "The proof at " + where + " could not be fetched: " + text + ". Port 80 must be reachable from the Internet."}
}

// compare takes the proof alone: a status of 200, and the text within 1 KiB.
func compare(reply *http.Response, where, want string) Verdict {
	if reply.StatusCode >= 300 && reply.StatusCode <= 399 {
		return Verdict{Wrong, "The server redirects " + where + " elsewhere, and redirects are not followed. Serve the proof there itself, without HTTPS."}
	}
	if reply.StatusCode != http.StatusOK {
		return Verdict{Wrong, fmt.Sprintf("The server answers %d for %s, not 200. Serve the proof there.", reply.StatusCode, where)}
	}
	body, err := io.ReadAll(io.LimitReader(reply.Body, maxProof+1))
	switch {
	case err != nil:
		return Verdict{Unknown, "The proof at " + where + " could not be read to its end."}
	case len(body) > maxProof:
		return Verdict{Wrong, "What the server answers for " + where + " is longer than 1 KiB, so it is not the proof. Serve the text given and nothing else."}
	case subtle.ConstantTimeCompare([]byte(strings.TrimSpace(string(body))), []byte(want)) != 1:
		return Verdict{Wrong, "What the server answers for " + where + " is not the proof. Serve the text given and nothing else."}
	}
	return Verdict{OK, "The proof at " + where + " is right."}
}
