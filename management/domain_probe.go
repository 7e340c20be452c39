package management

import (
	"context"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
	"github.com/pqproxy/caddy-pqproxy/probe"
)

// Prober looks at the upstreams of a domain. Package probe has what it does.
//
// An implementer MUST end within 10 s and when the context does, connect to nothing that the policy refuses (judged when
// connecting, so that a name that resolves otherwise the second time gains nothing), and bound what it hands on.
type Prober interface {
	// Probe returns one result for each upstream of d, in their order. d is in normal form.
	Probe(ctx context.Context, d *domain.Domain, policy *netpolicy.Policy) []UpstreamProbe
}

// UpstreamProbe is what was found at an upstream.
type UpstreamProbe = probe.UpstreamResult

// ProbeDomain connects to the upstreams of one of the tenant's domains from here, and says what they are like. It takes up to
// 10 s.
func (p *Plane) ProbeDomain(ctx context.Context, who *Principal, id string) ([]UpstreamProbe, error) {
	if err := who.Require(DomainsWrite); err != nil {
		return nil, err
	}
	row, err := p.domainToAsk(ctx, who, id)
	if err != nil {
		return nil, err
	}
	end, err := p.domains.begin(who.TenantID)
	if err != nil {
		return nil, err
	}
	defer end()
	probing, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	found := p.prober.Probe(probing, row.Settings.Clone(), p.cfg.UpstreamPolicy)
	return found, ctx.Err()
}
