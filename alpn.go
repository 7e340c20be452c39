package pqproxy

import (
	"container/list"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/proxyheader"
)

// acmeTLS is the protocol of TLS-ALPN-01 (RFC 8737), which never reaches an upstream.
const acmeTLS = "acme-tls/1"

// chooseALPN returns the protocol that the client shall have, or "" for none. Towards a TLS upstream it
// is the one that the upstream selects from the client's list. A refusal is an alert, sent here.
func (c *conn) chooseALPN(offered []string) (string, error) {
	if len(offered) == 0 {
		return "", nil
	}
	offered = slices.DeleteFunc(slices.Clone(offered), func(p string) bool { return p == acmeTLS })
	mismatch := func(err error) error { return c.refuse(alertNoApplicationProtocol, reasonALPNMismatch, err) }
	switch {
	case len(offered) == 0:
		return "", mismatch(errors.New("acme-tls/1 twice and nothing else"))
	case len(c.route.ALPN) > 0:
		for _, p := range c.route.ALPN {
			if slices.Contains(offered, p) {
				return p, nil
			}
		}
		return "", mismatch(fmt.Errorf("the client offers %q, the domain's alpn is %q", offered, c.route.ALPN))
	case c.upstreams()[0].tls == nil:
		return c.plainALPN(offered, mismatch)
	}
	choice, err := c.learnALPN(offered)
	switch {
	case err != nil:
		c.upstream = err.dial
		return "", c.refuse(alertInternalError, err.reason, err)
	case choice.refused:
		return "", mismatch(fmt.Errorf("upstream %s knows none of %q", c.upstreams()[0].Dial, offered))
	}
	return choice.proto, nil
}

// plainALPN chooses for an upstream that cannot be asked: HTTP/1.1 is what plain TCP services speak if
// they speak HTTP at all, and h2 without TLS needs an upstream that expects it.
func (c *conn) plainALPN(offered []string, mismatch func(error) error) (string, error) {
	switch {
	case slices.Contains(offered, "http/1.1"):
		return "http/1.1", nil
	case len(offered) == 1 && offered[0] == "h2":
		return "", mismatch(errors.New("the client offers h2 alone to a plain TCP upstream: set alpn h2 on the domain if the upstream speaks it"))
	}
	return "", nil
}

// learnALPN asks the first usable upstream what it selects, and moves it to the front of the order.
// handshake_timeout does not run meanwhile.
func (c *conn) learnALPN(offered []string) (alpnChoice, *dialError) {
	begun := time.Now()
	defer func() { // also for the alert that a failure becomes
		_ = c.clientWire.SetDeadline(c.start.Add(time.Duration(c.limits.HandshakeTimeout) + time.Since(begun)))
	}()
	ups := slices.Clone(c.upstreams())
	var failed *dialError
	for i, u := range ups {
		if u.tls == nil {
			continue
		}
		choice, err := c.owner.alpn.choose(c, u, offered)
		if err == nil {
			copy(ups[1:i+1], ups[:i])
			ups[0] = u
			c.order = ups
			return choice, nil
		}
		if failed != nil { // a copy: others may share err
			err = &dialError{reason: err.reason, dial: err.dial, err: fmt.Errorf("%w (before that: %w)", err.err, failed)}
		}
		failed = err
		if c.ctx.Err() != nil || time.Since(begun) > attemptsPerDial*time.Duration(c.limits.DialTimeout) {
			break
		}
	}
	return alpnChoice{}, failed
}

// alpnChoice is what an upstream selected from a list.
type alpnChoice struct {
	proto   string // "" if it selected none
	refused bool   // it refused the whole list (alert no_application_protocol)
}

// Bounds of what is remembered of ALPN. Lists are few in practice, but clients choose them. The time
// limits how long an upstream that has learned a new protocol is not asked for it.
const (
	alpnEntries  = 4096
	alpnLifetime = 10 * time.Minute
)

// alpnCache remembers what upstreams selected, by upstream and offered list, the least recently used going
// first. Whoever asks for an entry that is being learned waits for it.
type alpnCache struct {
	mu      sync.Mutex
	entries map[alpnKey]*list.Element // of *alpnEntry
	recent  list.List
}

type alpnKey struct {
	upstream *upstream
	name     string            // that the upstream is asked for
	offered  [sha256.Size]byte // of the names with their lengths: a list may be as long as a hello
}

type alpnEntry struct {
	key     alpnKey
	learned chan struct{} // closed when the rest is set
	choice  alpnChoice
	err     *dialError
	expires time.Time
}

// choose returns what the upstream selects from the list, learning it if need be on behalf of c.
func (a *alpnCache) choose(c *conn, u *upstream, offered []string) (alpnChoice, *dialError) {
	key := alpnKey{upstream: u, name: u.TLSServerName(c.serverName), offered: digestProtos(offered)}
	a.mu.Lock()
	if a.entries == nil {
		a.entries = make(map[alpnKey]*list.Element)
	}
	element := a.entries[key]
	if element != nil && element.Value.(*alpnEntry).expired() {
		a.drop(element)
		element = nil
	}
	if element != nil {
		a.recent.MoveToFront(element)
		a.mu.Unlock()
		entry := element.Value.(*alpnEntry)
		select {
		case <-entry.learned:
			return entry.choice, entry.err
		case <-c.ctx.Done():
			return alpnChoice{}, &dialError{reason: reasonInternal, dial: u.Dial, err: c.ctx.Err()}
		}
	}
	entry := &alpnEntry{key: key, learned: make(chan struct{})}
	element = a.recent.PushFront(entry)
	a.entries[key] = element
	for a.recent.Len() > alpnEntries {
		a.drop(a.recent.Back())
	}
	a.mu.Unlock()

	choice, err := c.askALPN(u, offered)
	a.mu.Lock()
	entry.choice, entry.err, entry.expires = choice, err, time.Now().Add(alpnLifetime)
	if err != nil { // those who wait share the failure, the next one asks again
		a.drop(element)
	}
	a.mu.Unlock()
	close(entry.learned)
	return choice, err
}

// expired reports whether an entry has been learned and is too old. Call it with the lock held.
func (e *alpnEntry) expired() bool { return !e.expires.IsZero() && time.Now().After(e.expires) }

// drop forgets an entry. Call it with the lock held; an entry that is gone already is ignored.
func (a *alpnCache) drop(element *list.Element) {
	entry := element.Value.(*alpnEntry)
	if a.entries[entry.key] == element {
		delete(a.entries, entry.key)
		a.recent.Remove(element)
	}
}

// forget drops all that was learned of an upstream, which has selected otherwise.
func (a *alpnCache) forget(u *upstream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, element := range a.entries {
		if key.upstream == u {
			a.drop(element)
		}
	}
}

// askALPN asks an upstream what it selects from the client's list. Others may wait for the answer, so it does not
// end with c. Clients make up lists as they like, before their Finished: the bounds of the early dials hold here too,
// in slots apart, and past them it waits for one.
func (c *conn) askALPN(u *upstream, offered []string) (alpnChoice, *dialError) {
	timeout := time.Duration(c.limits.DialTimeout)
	deadline := time.Now().Add(timeout)
	slots, client := &c.owner.learning, c.client.Addr()
	if !slots.wait(client, c.limits, timeout) {
		return alpnChoice{}, &dialError{reason: reasonUpTimeout, dial: u.Dial, err: fmt.Errorf("learning ALPN: "+
			"too many other lists were being learned for %s (limits.early_dials, limits.early_dials_per_client)", timeout)}
	}
	defer slots.release(client)
	trial := c.try(u, time.Until(deadline))
	choice, err := c.offerALPN(u, offered, deadline)
	trial.ended(err)
	return choice, err
}

// offerALPN opens a connection of our own to an upstream, offers the list, and closes it.
func (c *conn) offerALPN(u *upstream, offered []string, deadline time.Time) (alpnChoice, *dialError) {
	fail := func(reason endReason, err error, blamed bool) (alpnChoice, *dialError) {
		return alpnChoice{}, &dialError{reason, u.Dial, fmt.Errorf("learning ALPN: %w", err), blamed}
	}
	sock, err := dialSocket(context.Background(), u, c.owner.settings.Load().policyOf(c.route), time.Until(deadline))
	if err != nil {
		return fail(connectReason(err), err, unreachable(err))
	}
	defer sock.Close()
	_ = sock.SetDeadline(deadline)

	w := newWire(sock)
	w.header = ownHeader(c.route.ProxyProtocol)
	conn := tls.Client(w, u.clientConfig(c.serverName, offered))
	if err := conn.Handshake(); err != nil {
		if alertOf(err) == alertNoApplicationProtocol {
			return alpnChoice{refused: true}, nil
		}
		reason, err := c.explainHangUp(c.upstreamReason(u, err), err)
		return fail(reason, err, c.learningFault(u, reason))
	}
	proto := conn.ConnectionState().NegotiatedProtocol
	_ = conn.Close() // with close_notify, so that nobody logs a fault
	return alpnChoice{proto: proto}, nil
}

// ownHeader returns the PROXY header of a connection of our own, behind which there is no client, or nil.
func ownHeader(version domain.ProxyProtocol) []byte {
	switch version {
	case domain.ProxyV1:
		return proxyheader.AppendV1Unknown(nil)
	case domain.ProxyV2:
		return proxyheader.AppendV2Local(nil)
	}
	return nil
}

// digestProtos makes a map key of a list: each name with its length in front, as on the wire (RFC 7301).
func digestProtos(protos []string) [sha256.Size]byte {
	var list []byte
	for _, p := range protos {
		list = append(append(list, byte(len(p))), p...)
	}
	return sha256.Sum256(list)
}
