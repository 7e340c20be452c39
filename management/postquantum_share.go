package management

import (
	"context"
	"time"
)

// PostQuantumShare says how many handshakes were completed, and how many of them were post-quantum. It is exact.
type PostQuantumShare struct {
	Connections int64 // with a completed handshake
	PostQuantum int64 // of these, with a hybrid group
}

// Share is PostQuantum of Connections, 0 to 1; 0 where there were none.
func (s PostQuantumShare) Share() float64 { return share(s.PostQuantum, s.Connections) }

// PostQuantumHour is the share of the hour that begins at Start.
type PostQuantumHour struct {
	Start time.Time
	PostQuantumShare
}

// mostHours is how many hours PostQuantumByHour returns at most, mostShares how many domains PostQuantumShares takes.
const (
	mostHours  = 31 * 24
	mostShares = 200
)

// PostQuantumByHour returns the shares of all of the caller's tenant, hour by hour, also of hours in which nothing was. from and to
// are widened to whole hours, at most 31 days. It reads as many rows as there are hours, however many domains there are, and what
// was reported in the last seconds.
func (p *Plane) PostQuantumByHour(ctx context.Context, who *Principal, from, to time.Time) ([]PostQuantumHour, error) {
	if err := who.Require(UsageRead); err != nil {
		return nil, err
	}
	if err := checkSpan(from, to, p.cfg.Retention.Usage); err != nil {
		return nil, err
	}
	from, to = Hour.floor(from), Hour.ceil(to)
	n := int(to.Sub(from) / time.Hour)
	if n > mostHours {
		return nil, InvalidField("?from", "the time has more than %d hours: ask for a shorter one", mostHours)
	}
	hours := make([]PostQuantumHour, n)
	for i := range hours {
		hours[i].Start = from.Add(time.Duration(i) * time.Hour)
	}
	q := UsageQuery{TenantID: who.TenantID, Step: Hour, From: from, To: to, ByStart: true, Limit: n}
	err := p.findUsage(ctx, []UsageQuery{q}, func(sums []UsageSum) {
		for _, s := range sums {
			hours[s.Start.Sub(from)/time.Hour].PostQuantumShare = PostQuantumShare{s.Handshakes, s.PostQuantum}
		}
	})
	if err != nil {
		return nil, err
	}
	return hours, nil
}

// PostQuantumShares returns the shares of at most 200 domains of the caller's tenant, by ID: of those that had any connection. from and
// to are as with FindUsage.
func (p *Plane) PostQuantumShares(ctx context.Context, who *Principal, domainIDs []string, from, to time.Time) (map[string]PostQuantumShare, error) {
	if err := who.Require(UsageRead); err != nil {
		return nil, err
	}
	if err := checkSpan(from, to, p.cfg.Retention.Usage); err != nil {
		return nil, err
	}
	switch {
	case len(domainIDs) == 0:
		return nil, nil
	case len(domainIDs) > mostShares:
		return nil, InvalidField("?domain", "must be at most %d domains", mostShares)
	}
	q := UsageQuery{TenantID: who.TenantID, DomainIDs: domainIDs, ByDomain: true, Limit: mostShares}
	all := make(map[string]PostQuantumShare, len(domainIDs))
	from, to = p.countedSpan(from, to)
	err := p.findUsage(ctx, spans(q, Day, from, to), func(sums []UsageSum) {
		for _, s := range sums {
			one := all[s.DomainID]
			all[s.DomainID] = PostQuantumShare{plus(one.Connections, s.Handshakes), plus(one.PostQuantum, s.PostQuantum)}
		}
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}
