package pqproxy

import (
	"crypto/x509"
	"math"
	"sync"
	"time"
)

// certIndex is what is known of the certificates that we obtain, for those that were looked at. It is 40 bytes or so a
// name, so that a million can be listed without a look into storage.
type certIndex struct {
	mu      sync.Mutex
	byName  map[string]knownCert
	issuers []string // by knownCert.issuer; the first is unknown
	numbers map[string]uint16
}

// knownCert is a certificate that is in storage.
type knownCert struct {
	notAfter epochTime
	look     epochTime // when there may be something to do about it
	issuer   uint16
}

// maxIssuers is how many issuers are told apart: CAs rotate a few intermediates.
const maxIssuers = 1000

// epochTime is a time in seconds since 1970, at most that which 32 bits hold, which is in 2106.
type epochTime uint32

func epochTimeOf(t time.Time) epochTime { return epochTime(min(max(t.Unix(), 0), math.MaxUint32)) }

func (t epochTime) time() time.Time { return time.Unix(int64(t), 0) }

// note takes down the certificate of a name.
func (i *certIndex) note(name string, leaf *x509.Certificate) {
	issuer := cutText(leaf.Issuer.String(), maxIssuer)
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.byName == nil {
		i.byName, i.numbers, i.issuers = make(map[string]knownCert), make(map[string]uint16), []string{""}
	}
	number, ok := i.numbers[issuer]
	if !ok && len(i.issuers) < maxIssuers {
		number = uint16(len(i.issuers))
		i.issuers, i.numbers[issuer] = append(i.issuers, issuer), number
	}
	i.byName[name] = knownCert{notAfter: epochTimeOf(leaf.NotAfter), issuer: number}
}

// look sets when there may be something to do about a certificate.
func (i *certIndex) look(name string, at time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if known, ok := i.byName[name]; ok {
		known.look = epochTimeOf(at)
		i.byName[name] = known
	}
}

// lookDue reports whether there may be something to do about the certificate of a name.
func (i *certIndex) lookDue(name string, now time.Time) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	known, ok := i.byName[name]
	return !ok || !now.Before(known.look.time())
}

func (i *certIndex) forget(name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.byName, name)
}

// of returns when the certificate of a name ends, if it is known.
func (i *certIndex) of(name string) (time.Time, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	known, ok := i.byName[name]
	return known.notAfter.time(), ok
}

// issuerOf returns who issued the certificate of a name, or nothing.
func (i *certIndex) issuerOf(name string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	known, ok := i.byName[name]
	if !ok {
		return ""
	}
	return i.issuers[known.issuer]
}

// count counts the certificates that are known into c.
func (i *certIndex) count(c *certCounts, now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	at := epochTimeOf(now)
	for _, known := range i.byName {
		c.add(known.notAfter, at)
	}
}

// certCounts are the certificates of an edge by their state, and when the first of them ends.
type certCounts struct {
	valid, expired int
	earliest       epochTime // of all of them, where there are any
}

func (c *certCounts) add(notAfter, now epochTime) {
	if c.valid+c.expired == 0 || notAfter < c.earliest {
		c.earliest = notAfter
	}
	if notAfter < now {
		c.expired++
	} else {
		c.valid++
	}
}
