package dashboard

import (
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
)

func overviewRoutes() []route {
	return []route{
		{method: "GET", path: "/", handle: showOverview},
		{method: "GET", path: "/overview/live", endless: true, handle: live("overview", "part-overview", 15*time.Second, loadAttention)},
	}
}

// overviewPage is the data of the start page.
type overviewPage struct {
	NoTenant bool // an operator of the platform who is in no tenant
	First    bool // there is no domain yet
	Traffic  *traffic
	Trouble  string // why there is no Traffic

	attention
}

// traffic is what came in the last day, of all domains.
type traffic struct {
	Handshakes, PostQuantum int64
	Plot                    *plot
}

// Share is of completed handshakes; of none there is none.
func (t *traffic) Share() string {
	if t.Handshakes == 0 {
		return "–"
	}
	return formatPercent(float64(t.PostQuantum) / float64(t.Handshakes))
}

// attention is what somebody should look at: the live part of the page.
type attention struct {
	Domains  []overviewDomain
	More     []management.Status // there are more domains of these statuses than are shown
	Expiring []*management.Certificate
	Operator bool // the edges are the viewer's business
	Edges    management.EdgeSummary
}

// overviewDomain is a domain that does not go on by itself, or has not yet.
type overviewDomain struct{ *management.Domain }

// Turn says who has to act.
func (d overviewDomain) Turn() badge { return turnBadge(d.NextAction) }

// turnBadge says whose turn it is; nil: nobody's, and all is well.
func turnBadge(next *management.NextAction) badge {
	kind, text := "ok", "nothing to do"
	if next != nil {
		switch next.Who {
		case management.WhoCustomer:
			kind, text = "warn", "your turn"
		case management.WhoOperator:
			kind, text = "warn", "the operator's turn"
		default:
			kind, text = "info", "goes on by itself"
		}
	}
	b, _ := newBadge(kind, text) // the kinds are known
	return b
}

func showOverview(c *ctx) error {
	page := &overviewPage{NoTenant: c.who.TenantID == ""}
	if !page.NoTenant {
		some, _, err := c.plane.FindDomains(c.ctx, c.who, management.DomainQuery{Page: management.Page{Limit: 1}})
		if err != nil {
			return err
		}
		if page.First = len(some) == 0; !page.First {
			if page.Traffic, err = c.lastDay(); management.CodeOf(err) == management.Unavailable {
				page.Trouble = "The traffic could not be added up in time. Load the page again."
			} else if err != nil {
				return err
			}
		}
	}
	found, err := c.findAttention()
	if err != nil {
		return err
	}
	page.attention = *found
	return c.render("overview", "Overview", page)
}

func loadAttention(c *ctx) (any, error) {
	found, err := c.findAttention()
	if err != nil {
		return nil, err
	}
	return &overviewPage{NoTenant: c.who.TenantID == "", attention: *found}, nil
}

// lastDay adds up the tenant's handshakes by hour.
func (c *ctx) lastDay() (*traffic, error) {
	to := c.now().Truncate(time.Hour).Add(time.Hour)
	hours, err := c.plane.PostQuantumByHour(c.ctx, c.who, to.Add(-24*time.Hour), to)
	if err != nil {
		return nil, err
	}
	t := &traffic{Plot: &plot{Title: "Handshakes by hour, last 24 hours", Kind: barPlot, Step: time.Hour}}
	var hybrid, classical []float64
	for _, h := range hours {
		t.Handshakes += h.Connections
		t.PostQuantum += h.PostQuantum
		t.Plot.Times = append(t.Plot.Times, h.Start)
		hybrid, classical = append(hybrid, float64(h.PostQuantum)), append(classical, float64(h.Connections-h.PostQuantum))
	}
	t.Plot.Series = []series{{Name: "Post-quantum key exchange", Values: hybrid}, {Name: "Classical", Values: classical}}
	return t, nil
}

// Statuses of domains that somebody may have to do something about, the worst first.
var unsettled = []management.Status{
	management.Degraded, management.Moved, management.Verifying, management.PendingDNS, management.Issuing, management.Deploying,
}

const (
	mostOfStatus  = 3
	mostExpiring  = 5
	mostStale     = 8
	lookedThrough = 100 // certificates: those of six days are renewed in time, and left out
)

func (c *ctx) findAttention() (*attention, error) {
	a := new(attention)
	if c.who.TenantID != "" {
		some, more, err := c.plane.FindDomainsOf(c.ctx, c.who, unsettled, mostOfStatus)
		if err != nil {
			return nil, err
		}
		a.More = more
		for _, d := range some {
			if d.NextAction != nil { // else it has come on since its status was stored
				a.Domains = append(a.Domains, overviewDomain{d})
			}
		}
		certificates, _, err := c.plane.FindCertificates(c.ctx, c.who, endsSoon(domain.BYOC), management.Page{Limit: lookedThrough})
		if err != nil {
			return nil, err
		}
		for _, cert := range certificates {
			if len(a.Expiring) < mostExpiring && cert.NotAfter != nil && cert.NotAfter.Sub(c.now()) < endsSoon(cert.Source) {
				a.Expiring = append(a.Expiring, cert)
			}
		}
	}
	if a.Operator = c.who.Require(management.Platform) == nil; a.Operator {
		edges, err := c.plane.SummarizeEdges(c.ctx, c.who, mostStale)
		if err != nil {
			return nil, err
		}
		a.Edges = *edges
	}
	return a, nil
}

// endsSoon is when the end of a certificate is worth a word: edges renew theirs by themselves, and well before.
func endsSoon(source domain.CertificateSource) time.Duration {
	if source == domain.BYOC {
		return 21 * 24 * time.Hour
	}
	return 48 * time.Hour
}
