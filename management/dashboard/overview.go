package dashboard

import (
	"cmp"
	"slices"
	"sync"
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
	Up       int
	Stale    []*management.Edge
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

// lastDay adds up the tenant's handshakes by hour. The report of each hour is one sum in the database, however many domains there are.
func (c *ctx) lastDay() (*traffic, error) {
	const hours = 24
	first := c.now().UTC().Truncate(time.Hour).Add(-(hours - 1) * time.Hour)
	t := &traffic{Plot: &plot{Title: "Handshakes by hour, last 24 hours", Kind: barPlot, Step: time.Hour}}
	hybrid, classical := make([]float64, hours), make([]float64, hours)
	var mu sync.Mutex // guards the sums of t
	err := inParallel(hours, func(i int) error {
		from := first.Add(time.Duration(i) * time.Hour)
		report, err := c.plane.ReportPostQuantum(c.ctx, c.who, "", from, from.Add(time.Hour))
		if err != nil {
			return err
		}
		hybrid[i], classical[i] = float64(report.PostQuantum), float64(report.Connections-report.PostQuantum)
		mu.Lock()
		defer mu.Unlock()
		t.Handshakes += report.Connections
		t.PostQuantum += report.PostQuantum
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range hours {
		t.Plot.Times = append(t.Plot.Times, first.Add(time.Duration(i)*time.Hour))
	}
	t.Plot.Series = []series{{Name: "Post-quantum key exchange", Values: hybrid}, {Name: "Classical", Values: classical}}
	return t, nil
}

// How much is looked up at a time for one page: enough to hide round trips to a database, little enough for other pages.
const atOnce = 4

// inParallel calls fn with 0 to n-1, a few at a time, waits for all, and returns the first error.
func inParallel(n int, fn func(i int) error) error {
	errs := make([]error, n)
	places := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i := range n {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			errs[i] = fn(i)
		})
	}
	all.Wait()
	return cmp.Or(errs...)
}

// Statuses of domains that somebody may have to do something about, the worst first.
var unsettled = []management.Status{
	management.Degraded, management.Moved, management.Verifying, management.PendingDNS, management.Issuing, management.Deploying,
}

const (
	mostOfStatus  = 5
	mostExpiring  = 8
	mostStale     = 10
	lookedThrough = 100 // certificates: those of six days are renewed in time, and left out
)

func (c *ctx) findAttention() (*attention, error) {
	a := new(attention)
	if c.who.TenantID != "" {
		for _, status := range unsettled {
			some, next, err := c.plane.FindDomains(c.ctx, c.who, management.DomainQuery{Status: status, Page: management.Page{Limit: mostOfStatus}})
			if err != nil {
				return nil, err
			}
			for _, d := range some {
				if d.NextAction != nil { // else it has come on since its status was stored
					a.Domains = append(a.Domains, overviewDomain{d})
				}
			}
			if next != "" {
				a.More = append(a.More, status)
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
		edges, err := c.allEdges()
		if err != nil {
			return nil, err
		}
		a.Up = len(edges)
		a.Stale = slices.DeleteFunc(edges, func(e *management.Edge) bool { return e.State == management.EdgeUp })
		a.Up -= len(a.Stale)
		a.Stale = a.Stale[:min(len(a.Stale), mostStale)]
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

// allEdges returns the edges, at most 1,000.
func (c *ctx) allEdges() (all []*management.Edge, err error) {
	page := management.Page{Limit: 200}
	for range 5 {
		some, next, err := c.plane.FindEdges(c.ctx, c.who, page)
		if err != nil {
			return nil, err
		}
		if all, page.Cursor = append(all, some...), next; next == "" {
			break
		}
	}
	return all, nil
}
