package management

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// PostQuantumReport says how many handshakes were post-quantum. It is exact.
type PostQuantumReport struct {
	From         time.Time        `json:"from"`
	To           time.Time        `json:"to"`
	Connections  int64            `json:"connections" doc:"With a completed handshake."`
	PostQuantum  int64            `json:"post_quantum" doc:"Of these, with a hybrid group."`
	Share        float64          `json:"share" doc:"Of connections, 0 to 1; 0 where there were none."`
	HelloRetries int64            `json:"hello_retries" doc:"Of connections, with a round trip more, since the client guessed another group."`
	ByDay        []PostQuantumDay `json:"by_day" nullable:"false"`
}

// PostQuantumDay is a UTC day of a PostQuantumReport.
type PostQuantumDay struct {
	Day          string  `json:"day" doc:"YYYY-MM-DD"`
	Connections  int64   `json:"connections"`
	PostQuantum  int64   `json:"post_quantum"`
	Share        float64 `json:"share"`
	HelloRetries int64   `json:"hello_retries"`
}

// ReportPostQuantum returns the report of the caller's tenant or, where domain is an ID or a name, of one domain. from and to are
// as with FindUsage. Days without connections are left out.
func (p *Plane) ReportPostQuantum(ctx context.Context, who *Principal, domain string, from, to time.Time) (*PostQuantumReport, error) {
	if err := who.Require(UsageRead); err != nil {
		return nil, err
	}
	if err := checkSpan(from, to, p.cfg.Retention.Usage); err != nil {
		return nil, err
	}
	q := UsageQuery{TenantID: who.TenantID, ByStart: true, Limit: usageRows}
	var err error
	if q.DomainID, q.Domain, err = p.findDomain(ctx, who, domain); err != nil {
		return nil, err
	}
	days := make(map[time.Time]*Sums)
	from, to = p.countedSpan(from, to)
	err = p.findUsage(ctx, spans(q, Day, from, to), func(sums []UsageSum) {
		for _, s := range sums {
			day := Day.floor(s.Start)
			if days[day] == nil {
				days[day] = new(Sums)
			}
			days[day].Add(s.Sums)
		}
	})
	if err != nil {
		return nil, err
	}
	report := &PostQuantumReport{From: from, To: to, ByDay: []PostQuantumDay{}}
	var all Sums
	for day, s := range days {
		all.Add(*s)
		if s.Handshakes > 0 {
			report.ByDay = append(report.ByDay, PostQuantumDay{
				Day: day.Format(time.DateOnly), Connections: s.Handshakes, PostQuantum: s.PostQuantum,
				Share: share(s.PostQuantum, s.Handshakes), HelloRetries: s.HelloRetries,
			})
		}
	}
	slices.SortFunc(report.ByDay, func(a, b PostQuantumDay) int {
		if a.Day < b.Day {
			return -1
		}
		return 1
	})
	report.Connections, report.PostQuantum, report.HelloRetries = all.Handshakes, all.PostQuantum, all.HelloRetries
	report.Share = share(all.PostQuantum, all.Handshakes)
	return report, nil
}

// RequireReport says what `post_quantum require` would refuse of what came.
type RequireReport struct {
	From        time.Time        `json:"from"`
	To          time.Time        `json:"to"`
	Connections int64            `json:"connections" doc:"That completed a handshake, or had no group in common with the domain."`
	Refused     int64            `json:"refused" doc:"Of these, without a hybrid group."`
	Share       float64          `json:"share" doc:"Of connections, 0 to 1."`
	Complete    bool             `json:"complete" doc:"by_client has all of the refused; else records were left out, or are not kept for so long."`
	ByClient    []*RefusedClient `json:"by_client" nullable:"false" doc:"Who would be refused, most first; at most 100."`
}

// RefusedClient is a network whose clients `require` would refuse.
type RefusedClient struct {
	Network  netip.Prefix `json:"-"`
	Client   string       `json:"client" doc:"The /24, or the /48 of IPv6; empty: unknown."`
	ALPN     string       `json:"alpn"`
	Refused  int64        `json:"refused"`
	LastSeen time.Time    `json:"last_seen"`
}

// Bounds of the report.
const (
	requireDays    = 30
	requireClients = 100
	requireScan    = 20000
)

// ReportRequire simulates `require` for the last days, 1 to 30, of one domain of the caller's tenant or, where it is empty, of all. The sums
// are exact, from whole hours; by_client is made of records.
func (p *Plane) ReportRequire(ctx context.Context, who *Principal, domain string, days int) (*RequireReport, error) {
	if err := who.Require(UsageRead); err != nil {
		return nil, err
	}
	if err := who.Require(ConnectionsRead); err != nil {
		return nil, err
	}
	if days < 1 || days > requireDays {
		return nil, InvalidField("?days", "must be 1 to %d", requireDays)
	}
	now := p.now()
	from, to := Hour.floor(now.AddDate(0, 0, -days)), Hour.floor(now).Add(time.Hour)
	q := UsageQuery{TenantID: who.TenantID, Limit: usageRows}
	var err error
	if q.DomainID, q.Domain, err = p.findDomain(ctx, who, domain); err != nil {
		return nil, err
	}
	report := &RequireReport{From: from, To: to}
	err = p.search(ctx, func(ctx context.Context) error {
		var all Sums
		var dropped int64
		err := p.store.View(ctx, func(tx Tx) error {
			for _, q := range spans(q, Day, from, to) {
				sums, err := tx.FindUsage(&q)
				if err != nil {
					return err
				}
				for _, s := range sums {
					all.Add(s.Sums)
				}
			}
			dropped, err = tx.CountDropped(from, to)
			return err
		})
		if err != nil {
			return err
		}
		report.Refused = all.Refused
		report.Connections = all.PostQuantum + all.Refused
		report.Share = share(report.Refused, report.Connections)
		f := &ConnectionFilter{TenantID: who.TenantID, DomainID: q.DomainID, Domain: q.Domain, From: from, To: to, Limit: requireClients + 1}
		clients, scanned, err := p.store.CountRefused(ctx, f, requireScan)
		if err != nil {
			return err
		}
		kept := now.Add(-p.cfg.Retention.Connections)
		report.Complete = dropped == 0 && scanned < requireScan && len(clients) <= requireClients && !from.Add(time.Hour).Before(kept)
		report.ByClient = clients[:min(len(clients), requireClients)]
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, c := range report.ByClient {
		c.Client = ""
		if c.Network.IsValid() {
			c.Client = c.Network.String()
		}
	}
	if report.ByClient == nil {
		report.ByClient = []*RefusedClient{}
	}
	return report, nil
}
