package pqproxy

import (
	"context"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/internal/pace"
)

// The sweeper goes through all names whose certificates we obtain, visited or not. Between two sweeps it rests; a name
// that there is nothing to do about for a while is passed over without a look into storage.
const (
	sweepRest   = 10 * time.Minute
	sweepBeside = 20 // times as long as a look into storage took, it rests after it,
	sweepMost   = 10 * time.Millisecond
)

// sweepSoon begins the next sweep now.
func (s *certificates) sweepSoon() {
	select {
	case s.hurry <- struct{}{}:
	default: // one is coming
	}
}

// sweepForever sweeps until close.
func (s *certificates) sweepForever() {
	rest := time.NewTimer(0)
	defer rest.Stop()
	var said noticed
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-rest.C:
		case <-s.hurry:
		}
		said = s.lookAtPairs(said)
		s.staples.tend()
		s.sweep()
		rest.Reset(s.rest - rand.N(s.rest/4+1))
	}
}

// sweep looks at every name once.
func (s *certificates) sweep() {
	var pace pace.Pace
	for e := range s.owner.table.Load().all {
		if s.ctx.Err() != nil {
			return
		}
		pace.Step()
		switch {
		case e.wantsIssued():
			s.look(e)
		case e.certificate == fromInternal:
			s.lookInternal(e.name())
		}
	}
}

// look sees whether a name has a certificate in storage that needs no renewal, and has it obtained or renewed
// otherwise.
func (s *certificates) look(e *entry) {
	name, at := e.name(), time.Now()
	if s.orders.has(name) || !s.known.lookDue(name, at) && !s.revoked(name) {
		return
	}
	now := s.config.Load()
	ctx, cancel := context.WithTimeout(s.ctx, loadTimeout)
	defer cancel()
	held, err := now.held(ctx, now.issuers, name)
	time.Sleep(min(sweepBeside*time.Since(at), sweepMost))
	switch {
	case err != nil:
		if s.ctx.Err() == nil {
			now.logger.Error("looking for a certificate in storage", zap.String(keyDomain, name), zap.Error(err))
		}
		return
	case held == nil:
		s.orders.want(name, e)
		return
	}
	s.take(name, held, false, false) // another edge may have renewed it
	switch ask := held.askAt(); {
	case held.due(at) || s.staples.replace(held.cert.Leaf):
		s.orders.want(name, e)
	case !ask.IsZero() && !at.Before(ask):
		s.askSoon(name)
	}
}

// revoked reports whether the certificate that a name is served with has been revoked.
func (s *certificates) revoked(name string) bool {
	cert := s.memory.peek(name)
	return cert != nil && s.staples.replace(cert.Leaf)
}

// lookInternal renews a certificate of the local CA that is in memory. Others are issued when somebody comes.
func (s *certificates) lookInternal(name string) {
	cert := s.memory.peek(name)
	if cert == nil || !(&heldCert{cert: cert}).due(time.Now()) {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, loadTimeout)
	defer cancel()
	now := s.config.Load()
	held, err := s.local(ctx, now, name)
	if err != nil {
		now.logger.Error("renewing a certificate of the local CA", zap.String(keyDomain, name), zap.Error(err))
		return
	}
	s.take(name, held, true, false)
}
