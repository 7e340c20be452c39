package dashboard

import (
	"slices"
	"strconv"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
)

func reportRoutes() []route {
	return []route{{method: "GET", path: "/reports/post-quantum", scope: management.UsageRead, handle: showPostQuantum}}
}

const (
	reportSpan    = 30 * 24 * time.Hour
	reportDays    = 28 // rows of the table
	reportBars    = 62 // days in the plot; of more, weeks
	reportClients = 10
	reportNames   = 30   // domains in a list to choose from; of more, the name is typed
	reportLetters = 2000 // in their names
	requireDays   = 7    // that the simulator looks back

	// requireAtOnce is up to how many handshakes the simulator runs unasked: it looks at records one by one, which of millions takes
	// seconds that whoever came for the report should not wait.
	requireAtOnce = 50_000
)

// postQuantumPage is the data of the report.
type postQuantumPage struct {
	Fault   *summary
	Names   []option // empty: there are too many
	Domain  string   // as it was asked for; empty: all
	Days    string   // that the simulator looks back; empty: it was not asked
	Report  *management.PostQuantumReport
	Plot    *plot
	ByDay   []reportDay
	Older   int // days that the table leaves out
	Require *requirePart
	Export  string   // path and query of the same question
	Times   []string // names of the times that were asked for, which the simulator's form carries along
}

// reportDay is a row of the table.
type reportDay struct {
	management.PostQuantumDay
	Classical int64
	URL       string // its classical connections
}

// requirePart is what the simulator found.
type requirePart struct {
	*management.RequireReport
	Clients []refusedRow
	More    int    // networks that the table leaves out
	Policy  string // where the domain's policy is set; empty: no domain was chosen, or it is no more
	Now     domain.PostQuantum
	API     string
}

type refusedRow struct {
	*management.RefusedClient
	URL string
}

var reportFields = map[string]string{"domain": "Domain", "from": "From", "to": "To", "days": "Look back"}

func showPostQuantum(c *ctx) error {
	page := postQuantumPage{Domain: c.query("domain"), Days: c.query("days")}
	for _, name := range []string{"from", "to"} {
		if c.query(name) != "" {
			page.Times = append(page.Times, name)
		}
	}
	err := page.load(c)
	if page.Fault = c.filterFault(err, reportFields); err != nil && page.Fault == nil {
		return err
	}
	return c.render("report", "Post-quantum report", page)
}

func (page *postQuantumPage) load(c *ctx) error {
	var chosen *management.Domain
	if c.who.Require(management.DomainsRead) == nil {
		var err error
		if chosen, err = c.domainOf(page.Domain); err != nil {
			return err
		}
		if chosen != nil {
			page.Domain = chosen.Name // people know it by that
			c.asked.Set("domain", chosen.Name)
		}
		found, next, err := c.plane.FindDomains(c.ctx, c.who, management.DomainQuery{Page: management.Page{Limit: reportNames}})
		if err != nil {
			return err
		}
		if next == "" && len(found) > 0 {
			var names []string
			letters := 0
			for _, d := range found {
				names = append(names, d.Name)
				letters += len(d.Name)
			}
			if letters <= reportLetters {
				page.Names = withAsked(page.Domain, "All domains", names...)
			}
		}
	}
	from, to, err := c.span(reportSpan)
	if err != nil {
		return err
	}
	if page.Report, err = c.plane.ReportPostQuantum(c.ctx, c.who, page.Domain, from, to); err != nil {
		return err
	}
	page.Export = apiPath("/v1/reports/post-quantum", "domain", page.linked(chosen), "from", from.Format(time.RFC3339), "to", to.Format(time.RFC3339))
	page.draw(c, chosen)
	if page.Days == "" && page.Report.Connections > requireAtOnce {
		return nil
	}
	return page.simulate(c, chosen)
}

// domainOf returns the tenant's domain of that ID or name, nil where there is none.
func (c *ctx) domainOf(text string) (*management.Domain, error) {
	switch {
	case text == "":
		return nil, nil
	case management.IsID(management.DomainID, text):
		d, err := c.plane.FindDomain(c.ctx, c.who, text)
		if management.CodeOf(err) == management.NotFound {
			err = nil
		}
		return d, err
	}
	found, _, err := c.plane.FindDomains(c.ctx, c.who, management.DomainQuery{Name: text, Page: management.Page{Limit: 1}})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return found[0], nil
}

// linked is what the rows' links call the domain: a long name in each would be most of the page.
func (page *postQuantumPage) linked(chosen *management.Domain) string {
	if chosen != nil && len(chosen.Name) > 2*len(chosen.ID) {
		return chosen.ID
	}
	return page.Domain
}

// draw makes plot and table of the days.
func (page *postQuantumPage) draw(c *ctx, chosen *management.Domain) {
	quantum, classical := series{Name: "post-quantum"}, series{Name: "classical"}
	p := &plot{Title: "Handshakes by day", Kind: barPlot, Step: 24 * time.Hour}
	if len(page.Report.ByDay) > reportBars {
		p.Title, p.Step = "Handshakes by week", 7*24*time.Hour
	}
	for _, d := range page.Report.ByDay {
		day, err := time.Parse(time.DateOnly, d.Day)
		if err != nil {
			continue // it is one
		}
		// Truncate counts from a Monday, 1 January of the year 1.
		if begin, n := day.Truncate(p.Step), len(p.Times); n == 0 || !p.Times[n-1].Equal(begin) {
			p.Times = append(p.Times, begin)
			quantum.Values, classical.Values = append(quantum.Values, 0), append(classical.Values, 0)
		}
		last := len(p.Times) - 1
		quantum.Values[last] += float64(d.PostQuantum)
		classical.Values[last] += float64(d.Connections - d.PostQuantum)
		page.ByDay = append(page.ByDay, reportDay{d, d.Connections - d.PostQuantum,
			c.url("/connections", "domain", page.linked(chosen), "from", d.Day, "to", d.Day, "post_quantum", "false")})
	}
	slices.Reverse(page.ByDay)
	if page.Older = len(page.ByDay) - reportDays; page.Older > 0 {
		page.ByDay = page.ByDay[:reportDays]
	}
	p.Bare = p.Step == 24*time.Hour // the table below has the newest days, and a shorter time the others
	if p.Series = []series{quantum, classical}; len(p.Times) > 0 {
		page.Plot = p
	}
}

// simulate asks what `require` would have refused.
func (page *postQuantumPage) simulate(c *ctx, chosen *management.Domain) error {
	if c.who.Require(management.ConnectionsRead) != nil {
		return nil
	}
	days := requireDays
	if page.Days != "" {
		var err error
		if days, err = strconv.Atoi(page.Days); err != nil {
			return management.InvalidField("?days", "must be a whole number of days, 1 to 30")
		}
	}
	report, err := c.plane.ReportRequire(c.ctx, c.who, page.Domain, days)
	if err != nil {
		return err
	}
	part := &requirePart{RequireReport: report, API: apiPath("/v1/reports/require", "domain", page.linked(chosen), "days", strconv.Itoa(days))}
	for _, r := range report.ByClient {
		row := refusedRow{RefusedClient: r}
		if r.Client != "" {
			row.URL = c.url("/connections", "domain", page.linked(chosen), "client_ip", r.Client, "post_quantum", "false", "from", report.From.Format(time.RFC3339))
		}
		part.Clients = append(part.Clients, row)
	}
	if part.More = len(part.Clients) - reportClients; part.More > 0 {
		part.Clients = part.Clients[:reportClients]
	}
	if chosen != nil {
		part.Now = chosen.PostQuantum
		part.Policy = c.pageURL("/domains/" + chosen.ID + "/policy")
		if part.Policy == "" {
			part.Policy = c.pageURL("/domains/" + chosen.ID)
		}
	}
	page.Require = part
	return nil
}
