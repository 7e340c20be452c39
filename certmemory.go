package pqproxy

import (
	"crypto/tls"
	"sync"
	"sync/atomic"
	"time"
)

// certMemory has the issued certificates of names that were visited, those that were used lately if there are too many.
type certMemory struct {
	most int

	mu     sync.RWMutex
	byName map[string]*remembered
}

type remembered struct {
	cert *tls.Certificate
	used atomic.Int64 // seconds since 1970
}

func (m *certMemory) open(most int) { m.most, m.byName = most, make(map[string]*remembered) }

// get returns the certificate of a name for use, or nil.
func (m *certMemory) get(name string) *tls.Certificate {
	m.mu.RLock()
	r := m.byName[name]
	m.mu.RUnlock()
	if r == nil {
		return nil
	}
	if now := time.Now().Unix(); r.used.Load() != now {
		r.used.Store(now)
	}
	return r.cert
}

// peek is get without being a use.
func (m *certMemory) peek(name string) *tls.Certificate {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if r := m.byName[name]; r != nil {
		return r.cert
	}
	return nil
}

// put has a certificate served from now on. If another one makes way for it, that happens at once: no handshake finds
// neither. One that is not valid yet waits for its time, if there is one that is.
func (m *certMemory) put(name string, cert *tls.Certificate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.byName[name]
	if now := time.Now(); old != nil && now.Before(cert.Leaf.NotBefore) && isValid(old.cert, now) {
		return
	}
	if old == nil && len(m.byName) >= m.most {
		m.makeRoom()
	}
	r := &remembered{cert: cert}
	r.used.Store(time.Now().Unix())
	if old != nil {
		r.used.Store(old.used.Load())
	}
	m.byName[name] = r
}

// makeRoom forgets the one of a few, which the map chooses at random, that was not used for longest.
func (m *certMemory) makeRoom() {
	var least string
	var used int64
	seen := 0
	for name, r := range m.byName {
		if at := r.used.Load(); seen == 0 || at < used {
			least, used = name, at
		}
		if seen++; seen == 8 {
			break
		}
	}
	delete(m.byName, least)
}

func (m *certMemory) forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byName, name)
}
