package pqproxy

import (
	"context"
	"math/rand/v2"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/internal/pace"
)

// The sweeper goes through all names whose certificates we obtain, visited or not. Between two sweeps it rests; a name
// that there is nothing to do about for a while is passed over without a look into storage.
const (
	sweepRest   = 10 * time.Minute
	sweepSlice  = 30 * time.Second // after so long it sees whether there are new names
	sweepBeside = 20               // times as long as a look into storage took, it rests after it,
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
	var tended time.Time
	at := 0 // the shard that comes next
	for {
		hurried := false
		select {
		case <-s.hurry: // before what goes on
			hurried = true
		default:
			select {
			case <-s.ctx.Done():
				return
			case <-rest.C:
			case <-s.hurry:
				hurried = true
			}
		}
		if hurried || time.Since(tended) >= s.rest/2 {
			said = s.lookAtPairs(said)
			s.staples.tend()
			tended = time.Now()
		}
		if hurried { // new names may be anywhere; those that are known take next to no time
			s.sweepOn(new(int), sweepRest)
		}
		if s.sweepOn(&at, sweepSlice) {
			rest.Reset(s.rest - rand.N(s.rest/4+1))
		} else {
			rest.Reset(0)
		}
	}
}

// sweepOn looks at names, shard after shard of the table, until it has come to the end, from where a new sweep begins, or the time is
// over. Whatever others change, all names have their turn.
func (s *certificates) sweepOn(at *int, most time.Duration) (all bool) {
	var pace pace.Pace
	for begun := time.Now(); *at < tableShards; {
		for e := range s.owner.table.Load().shards[*at].all {
			if s.ctx.Err() != nil {
				return false
			}
			pace.Step()
			switch {
			case e.wantsIssued():
				s.look(e)
			case e.certificate == fromInternal:
				s.lookInternal(e.name())
			}
		}
		if *at++; time.Since(begun) > most {
			return false
		}
	}
	*at = 0
	return true
}

// look sees whether a name has a certificate in storage that needs no renewal, and has it obtained or renewed
// otherwise.
func (s *certificates) look(e entry) {
	name, at := e.name(), time.Now()
	if s.orders.has(name) || !s.known.lookDue(name, at) && !s.revoked(name) {
		return
	}
	name = strings.Clone(name) // it is part of something large, and stays
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
	now, name := s.config.Load(), strings.Clone(name)
	held, err := s.local(ctx, now, name)
	if err != nil {
		now.logger.Error("renewing a certificate of the local CA", zap.String(keyDomain, name), zap.Error(err))
		return
	}
	s.take(name, held, true, false)
}
