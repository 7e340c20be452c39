package dashboard

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
)

func domainsRoutes() []route {
	return []route{{method: "GET", path: "/domains", scope: management.DomainsRead, handle: showDomains}}
}

// domainsPage is the data of the list.
type domainsPage struct {
	Rows   []domainsRow
	Next   string
	Status []option // to filter by
	None   bool     // there is no domain at all
}

// domainsRow is a domain as the list shows it.
type domainsRow struct {
	*management.Domain
	PQ, Days badge
}

const domainsRows = 25

func showDomains(c *ctx) error {
	q := management.DomainQuery{Status: management.Status(c.query("status")), Q: c.query("q"), Page: c.page(domainsRows)}
	if q.Status != "" && !slices.Contains(management.Statuses, q.Status) {
		return management.InvalidField("?status", "is no status of a domain")
	}
	domains, next, err := c.plane.FindDomains(c.ctx, c.who, q)
	if err != nil {
		return err
	}
	shares, err := c.lastDayOf(domains)
	if err != nil {
		return err
	}
	page := &domainsPage{Next: next, Status: []option{{Value: "", Text: "Any"}}, None: len(domains) == 0 && q.Status == "" && q.Q == "" && q.Page.Cursor == ""}
	for _, s := range management.Statuses {
		page.Status = append(page.Status, option{Value: string(s), Text: words(s)})
	}
	for _, d := range domains {
		share, known := shares[d.ID]
		known = known || shares != nil && d.Revision > 0
		page.Rows = append(page.Rows, domainsRow{d, shareBadge(d.PostQuantum, share, known), daysBadge(d, c.now())})
	}
	return c.render("domains", "Domains", page)
}

// sharesTimeout is how long a list waits for shares of post-quantum: it is good without.
const sharesTimeout = 3 * time.Second

// lastDayOf returns the shares of post-quantum of the last 24 hours, of domains that had traffic; nil: they may not be read, or took too
// long.
func (c *ctx) lastDayOf(domains []*management.Domain) (map[string]management.PostQuantumShare, error) {
	if c.who.Require(management.UsageRead) != nil {
		return nil, nil
	}
	ids := make([]string, len(domains))
	for i, d := range domains {
		ids[i] = d.ID
	}
	ctx, cancel := context.WithTimeout(c.ctx, sharesTimeout)
	defer cancel()
	now := c.now()
	shares, err := c.plane.PostQuantumShares(ctx, c.who, ids, now.Add(-24*time.Hour), now)
	if err != nil && (ctx.Err() != nil || management.CodeOf(err) == management.Unavailable) {
		return nil, c.ctx.Err()
	}
	return shares, err
}

// shareBadge says how much of what came in the last day was post-quantum, and what the domain asks for.
func shareBadge(policy domain.PostQuantum, share management.PostQuantumShare, known bool) badge {
	kind, text := "off", "no traffic"
	switch {
	case !known:
		text = "unknown"
	case share.Connections == 0:
	case share.PostQuantum == share.Connections:
		kind, text = "ok", "100 %"
	case share.PostQuantum > 0:
		kind, text = "info", formatPercent(share.Share())
	default:
		kind, text = "warn", "0 %"
	}
	b, _ := newBadge(kind, text+", "+string(policy)) // the kinds are known
	return b
}

// daysBadge says for how long the certificate in use is good.
func daysBadge(d *management.Domain, now time.Time) badge {
	axis := d.Axes.Certificate
	kind, text := "off", "none yet"
	if axis.NotAfter != nil {
		left := axis.NotAfter.Sub(now)
		kind, text = "ok", fmt.Sprintf("%d days", left/(24*time.Hour))
		switch {
		case left <= 0:
			kind, text = "bad", "ended"
		case left < 24*time.Hour:
			kind, text = "warn", "less than a day"
		case left < 48*time.Hour:
			kind, text = "warn", "1 day"
		case left < endsSoon(d.Certificate.Source):
			kind = "warn"
		}
	}
	if axis.State == management.AxisFailed && kind != "bad" {
		kind, text = "bad", text+", fails"
	}
	b, _ := newBadge(kind, text) // the kinds are known
	return b
}
