package pqproxy

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
)

// Bounds of the questions to CAs when to renew. They are asked beside the sweep, which a CA that is slow would hold up;
// what there is no room for is asked in the next one.
const (
	askers      = 4
	maxAsks     = 256
	infoTimeout = 30 * time.Second
)

// askSoon has a CA asked when to renew the certificate of a name.
func (s *certificates) askSoon(name string) {
	select {
	case s.asks <- name:
		s.known.look(name, time.Now().Add(infoTimeout)) // until there is an answer
	default:
	}
}

// askForever asks until close.
func (s *certificates) askForever() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case name := <-s.asks:
			s.askWhen(name)
		}
	}
}

// askWhen asks the CA when a certificate is to be renewed (RFC 9773), keeps the answer beside the certificate, where
// other edges find it, and has it renewed if it is time.
func (s *certificates) askWhen(name string) {
	now := s.config.Load()
	ctx, cancel := context.WithTimeout(s.ctx, infoTimeout)
	defer cancel()
	held, err := now.held(ctx, now.issuers, name)
	if err != nil || held == nil || held.torn || held.askAt().IsZero() || held.askAt().After(time.Now()) {
		return // the sweeper sees to it
	}
	info, err := now.renewalInfo(ctx, held)
	if s.ctx.Err() != nil {
		return
	}
	if err != nil {
		now.logger.Warn("asking the CA when to renew a certificate", zap.String(keyDomain, name), zap.Error(err))
	}
	held.setInfo(info, time.Now())
	if err := now.saveData(ctx, held, name); err != nil {
		now.logger.Error("keeping when a certificate is to be renewed", zap.String(keyDomain, name), zap.Error(err))
	}
	s.known.look(name, held.nextLook(time.Now()))
	if e := s.owner.table.Load().named(name); !e.none() && e.wantsIssued() && held.due(time.Now()) {
		s.orders.want(name, e)
	}
}

// renewalInfo asks the issuer of a certificate. If it fails, that is what was known.
func (i *issuing) renewalInfo(ctx context.Context, held *heldCert) (info acme.RenewalInfo, err error) {
	defer func() {
		if p := recover(); p != nil {
			info, err = held.ari, fmt.Errorf("the issuer panicked: %v", p)
		}
	}()
	for _, issuer := range i.issuers {
		getter, ok := issuer.(certmagic.RenewalInfoGetter)
		if !ok || issuer.IssuerKey() != held.issuerKey {
			continue
		}
		var cert certmagic.Certificate
		cert.Certificate = *held.cert
		info, err := getter.GetRenewalInfo(ctx, cert)
		if err != nil {
			return held.ari, err
		}
		return info, nil
	}
	return held.ari, nil
}

// setInfo takes over when a CA wants a certificate to be renewed. As long as it names the same window the time that was
// chosen in it stays.
func (h *heldCert) setInfo(info acme.RenewalInfo, now time.Time) {
	if info.SameWindow(h.ari) && !h.ari.SelectedTime.IsZero() {
		info.SelectedTime = h.ari.SelectedTime
	}
	// RFC 9773, section 4.3.2: not more often than every minute, and once a day.
	if least := now.Add(time.Minute); info.RetryAfter == nil || info.RetryAfter.Before(least) {
		at := now.Add(ariRest)
		if info.RetryAfter != nil && info.RetryAfter.After(now) {
			at = least
		}
		info.RetryAfter = &at
	} else if most := now.Add(lookAway); info.RetryAfter.After(most) {
		info.RetryAfter = &most
	}
	info.UniqueIdentifier = h.ari.UniqueIdentifier
	var issued acme.Certificate
	if json.Unmarshal(h.data, &issued) != nil {
		return
	}
	issued.RenewalInfo = &info
	if data, err := json.Marshal(issued); err == nil {
		h.setData(data)
	}
}
