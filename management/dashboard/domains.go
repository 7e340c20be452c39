package dashboard

import (
	"context"
	"errors"
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

// domainsRows is how many the list shows unless it is asked otherwise: a page is to stay small.
const domainsRows = 25

func showDomains(c *ctx) error {
	q := management.DomainQuery{Status: management.Status(c.query("status")), Q: c.query("q"), Page: c.page()}
	if q.Status != "" && !slices.Contains(management.Statuses, q.Status) {
		return management.InvalidField("?status", "is no status of a domain")
	}
	if c.query("limit") == "" {
		q.Page.Limit = domainsRows
	}
	domains, next, err := c.plane.FindDomains(c.ctx, c.who, q)
	if err != nil {
		return err
	}
	reports, err := c.lastDayOf(domains)
	if err != nil {
		return err
	}
	page := &domainsPage{Next: next, Status: []option{{Value: "", Text: "Any"}}, None: len(domains) == 0 && q.Status == "" && q.Q == "" && q.Page.Cursor == ""}
	for _, s := range management.Statuses {
		page.Status = append(page.Status, option{Value: string(s), Text: words(s)})
	}
	for i, d := range domains {
		page.Rows = append(page.Rows, domainsRow{d, shareBadge(d.PostQuantum, reports[i]), daysBadge(d, c.now())})
	}
	return c.render("domains", "Domains", page)
}

// sharesTimeout is how long a list waits for shares of post-quantum: it is good without.
const sharesTimeout = 3 * time.Second

// lastDayOf returns the reports of the last 24 hours of domains; nil for one that edges never had, or that took too long.
func (c *ctx) lastDayOf(domains []*management.Domain) ([]*management.PostQuantumReport, error) {
	reports := make([]*management.PostQuantumReport, len(domains))
	if c.who.Require(management.UsageRead) != nil {
		return reports, nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, sharesTimeout)
	defer cancel()
	now := c.now()
	err := inParallel(len(domains), func(i int) error {
		if domains[i].Revision == 0 {
			return nil
		}
		report, err := c.plane.ReportPostQuantum(ctx, c.who, domains[i].ID, now.Add(-24*time.Hour), now)
		if err != nil && (ctx.Err() != nil || management.CodeOf(err) == management.Unavailable) {
			return nil
		}
		reports[i] = report
		return err
	})
	return reports, errors.Join(err, c.ctx.Err())
}

// shareBadge says how much of what came in the last day was post-quantum, and what the domain asks for. A nil report: nothing is known.
func shareBadge(policy domain.PostQuantum, report *management.PostQuantumReport) badge {
	kind, text := "off", "no traffic"
	switch {
	case report == nil:
		text = "unknown"
	case report.Connections == 0:
	case report.PostQuantum == report.Connections:
		kind, text = "ok", "100 %"
	case report.PostQuantum > 0:
		kind, text = "info", formatPercent(report.Share)
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
			kind, text = "warn", "ends today"
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
