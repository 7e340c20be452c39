package dashboard

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
)

func domainRoutes() []route {
	read, write := management.DomainsRead, management.DomainsWrite
	ups := upstreamPages{page: "domain_upstreams", path: "/upstreams"}
	policy := policyPages{page: "domain_policy", path: "/policy"}
	return slices.Concat([]route{
		{method: "GET", path: "/domains/{id}", scope: read, handle: showDomain},
		{method: "GET", path: "/domains/{id}/live", scope: read, endless: true, handle: live("domain", "domain-state", 2*time.Second, loadDomain)},
		{method: "POST", path: "/domains/{id}/check", scope: write, handle: checkDomain, again: showDomain},
		{method: "POST", path: "/domains/{id}/delete", scope: write, handle: deleteDomain, again: showDomain},
		{method: "GET", path: "/domains/{id}/connections", scope: management.ConnectionsRead, handle: showDomainConnections},
		{method: "GET", path: "/domains/{id}/certificate", scope: read, handle: showDomainCertificate},
		{method: "POST", path: "/domains/{id}/certificate", scope: management.CertificatesWrite, handle: uploadCertificate, again: showDomainCertificate},
		{method: "POST", path: "/domains/{id}/certificate/acme", scope: management.CertificatesWrite, handle: dropCertificate, again: showDomainCertificate},
		{method: "POST", path: "/domains/{id}/certificate/fallback", scope: write, handle: saveFallback, again: showDomainCertificate},
		{method: "GET", path: "/domains/{id}/activity", scope: management.AuditRead, handle: showDomainActivity},
	}, ups.routes(), policy.routes())
}

// domainPage is the data of every page about one domain: what they all have, and what each of them adds.
type domainPage struct {
	*management.Domain
	Tabs      []tab
	Setup     bool         // it is a step of the wizard
	Path      string       // where its forms go
	Edges     []domainEdge // those that are up, mostEdges at most
	MoreEdges int          // that are not among them
	Host      string       // a name to try it by: of a wildcard one that it covers

	// Refusal says why a form was refused that is not on the page any more.
	Refusal string

	Plots       []*plot                       // overview
	Report      *management.PostQuantumReport // overview, policy
	Health      *healthFields                 // policy
	Rows        []upstreamRow                 // upstreams
	Probes      []upstreamProbe               // upstreams, after a probe
	Advice      *advice                       // upstreams, after a probe
	Cert        *management.Certificate       // certificate
	Connections []connectionRow               // connections
	Next        string                        // connections, activity
	Events      []domainEvent                 // activity
}

// domainPage finds the domain of the path. part is what of it the page shows: "" or "/policy".
func (c *ctx) domainPage(part string) (*domainPage, error) {
	d, err := c.plane.FindDomain(c.ctx, c.who, c.param("id"))
	if err != nil {
		return nil, err
	}
	p := &domainPage{Domain: d, Path: "/domains/" + d.ID + part, Host: d.Name}
	if rest, ok := strings.CutPrefix(d.Name, "*."); ok {
		p.Host = "www." + rest
	}
	if c.refusal != nil && !p.Changes() {
		p.Refusal = c.refusal.Detail
	}
	for _, t := range []struct {
		part, text string
		scope      management.Scope
	}{
		{"", "Overview", management.DomainsRead}, {"/connections", "Connections", management.ConnectionsRead}, {"/certificate", "Certificate", management.DomainsRead},
		{"/upstreams", "Upstreams", management.DomainsRead}, {"/policy", "Policy", management.DomainsRead}, {"/activity", "Activity", management.AuditRead},
	} {
		if c.who.Require(t.scope) == nil {
			p.Tabs = append(p.Tabs, tab{t.text, c.url("/domains/" + d.ID + t.part), t.part == part})
		}
	}
	return p, nil
}

// Changes reports whether there is anything to change: nothing of what is being deleted.
func (p *domainPage) Changes() bool { return p.Status != management.Deleting }

// Turn says who has to act.
func (p *domainPage) Turn() badge { return turnBadge(p.NextAction) }

// Sides are the axes as rows.
func (p *domainPage) Sides() []domainSide {
	certificate := p.Axes.Certificate.Axis
	if end := p.Axes.Certificate.NotAfter; end != nil && certificate.Detail == "" {
		certificate.Detail = "Good until " + end.UTC().Format(time.DateOnly) + "."
	}
	return []domainSide{
		{"Ownership", p.Axes.Ownership.Axis}, {"DNS", p.Axes.DNS}, {"Certificate", certificate}, {"Upstream", p.upstreamSide()}, {"Edges", p.Axes.Edges.Axis},
	}
}

// upstreamSide says what to do here where nothing is known.
func (p *domainPage) upstreamSide() management.Axis {
	a := p.Axes.Upstream
	if a.State == management.AxisUnknown {
		a.Detail = "No edge has reported on it. Upstreams can be probed from here."
	}
	return a
}

// domainSide is one axis.
type domainSide struct {
	Name string
	management.Axis
}

// domainEdge is an edge, and what it has of the domain.
type domainEdge struct{ *management.DomainEdge }

// Called is what the page calls the edge: operators know it by its name, tenants by its number.
func (e domainEdge) Called() string {
	if e.Name != "" {
		return e.Name
	}
	return fmt.Sprintf("Edge %d", e.Number)
}

// Change says whether the edge has the last change.
func (e domainEdge) Change() badge {
	kind, text := "info", "not yet"
	switch {
	case e.Rejected != "":
		kind, text = "bad", "refused"
	case e.Applied:
		kind, text = "ok", "has it"
	}
	b, _ := newBadge(kind, text) // the kinds are known
	return b
}

// Held says whether the edge has a certificate.
func (e domainEdge) Held() badge {
	kind, text := "info", "not yet"
	if e.Certificate {
		kind, text = "ok", "has one"
	}
	b, _ := newBadge(kind, text) // the kinds are known
	return b
}

// mostEdges is how many edges a page about one domain lists.
const mostEdges = 20

// addEdges adds what each edge has of the domain. Where there are many, those on which it is not live come first, and the rest is counted.
func (c *ctx) addEdges(p *domainPage) error {
	edges, err := c.plane.DomainEdges(c.ctx, c.who, p.ID)
	if err != nil {
		return err
	}
	if len(edges) > mostEdges {
		slices.SortStableFunc(edges, func(a, b *management.DomainEdge) int {
			switch {
			case a.Live() == b.Live():
				return 0
			case a.Live():
				return 1
			}
			return -1
		})
		p.MoreEdges = len(edges) - mostEdges
		edges = edges[:mostEdges]
	}
	for _, e := range edges {
		p.Edges = append(p.Edges, domainEdge{e})
	}
	return nil
}

// loadDomain is the data of the part that is live.
func loadDomain(c *ctx) (any, error) {
	p, err := c.domainPage("")
	if err != nil {
		return nil, err
	}
	return p, c.addEdges(p)
}

func showDomain(c *ctx) error {
	p, err := c.domainPage("")
	if err != nil {
		return err
	}
	if err := c.addEdges(p); err != nil {
		return err
	}
	if c.who.Require(management.UsageRead) == nil && p.Revision > 0 {
		now := c.now()
		found, err := c.plane.FindSeries(c.ctx, c.who, p.ID, now.Add(-24*time.Hour), now, "hour")
		if err != nil && management.CodeOf(err) != management.Unavailable {
			return err
		}
		p.Plots = domainPlots(found)
	}
	return c.render("domain", p.Name, p)
}

// domainPlots draws the series of a day; nil: they took too long.
func domainPlots(s *management.Series) []*plot {
	if s == nil {
		return nil
	}
	values := func(key string) []float64 {
		all := make([]float64, len(s.Series[key]))
		for i, v := range s.Series[key] {
			if all[i] = math.NaN(); v != nil {
				all[i] = *v
			}
		}
		return all
	}
	hybrid, classical := values("post_quantum"), values("handshakes")
	for i := range min(len(hybrid), len(classical)) {
		classical[i] -= hybrid[i]
	}
	times := make([]time.Time, len(classical))
	for i := range times {
		times[i] = s.Start.Add(time.Duration(i) * time.Hour)
	}
	return []*plot{
		{Title: "Traffic by hour", Kind: barPlot, Unit: bytesUnit, Times: times, Step: time.Hour,
			Series: []series{{Name: "From clients", Values: values("bytes_in")}, {Name: "To clients", Values: values("bytes_out")}}},
		{Title: "Handshakes by hour", Kind: barPlot, Times: times, Step: time.Hour,
			Series: []series{{Name: "Post-quantum key exchange", Values: hybrid}, {Name: "Classical", Values: classical}}},
		{Title: "How long handshakes took", Unit: secondsUnit, Times: times, Step: time.Hour,
			Series: []series{{Name: "Median", Values: values("handshake_p50")}, {Name: "95 of 100 at most", Values: values("handshake_p95")}}},
	}
}

// checkDomain looks at the domain now, for who does not want to wait, or has no scripts.
func checkDomain(c *ctx) error {
	d, err := c.plane.CheckDomain(c.ctx, c.who, c.param("id"))
	if err != nil {
		return err
	}
	c.flashChecked(d)
	return c.redirect("/domains/" + d.ID)
}

// flashChecked has the next page say what a check came to.
func (c *ctx) flashChecked(d *management.Domain) {
	switch {
	case d.NextAction == nil:
		c.flash("ok", "Checked: all is well.")
	case d.NextAction.Who == management.WhoCustomer:
		c.flash("warn", "Checked: something is still to be done. "+d.NextAction.Text)
	default:
		c.flash("ok", "Checked. "+d.NextAction.Text)
	}
}

// deleteDomain wants the name typed: the button alone is too near to others.
func deleteDomain(c *ctx) error {
	d, err := c.plane.FindDomain(c.ctx, c.who, c.param("id"))
	if err != nil {
		return err
	}
	if name, err := domain.NormalName(strings.TrimSpace(c.value("name"))); err != nil || name != d.Name {
		return management.InvalidField("/name", "is not the name of this domain; type %s to delete it", d.Name)
	}
	if _, err := c.plane.DeleteDomain(c.ctx, c.who, d.ID, c.match()); err != nil {
		return err
	}
	c.flash("ok", d.Name+" is being deleted: no new connection is taken, and edges let go of it.")
	return c.redirect("/domains")
}

// reportOf returns the report of a domain's last 24 hours; nil where it may not be read, or took too long.
func (c *ctx) reportOf(d *management.Domain) (*management.PostQuantumReport, error) {
	if c.who.Require(management.UsageRead) != nil || d.Revision == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, sharesTimeout)
	defer cancel()
	now := c.now()
	report, err := c.plane.ReportPostQuantum(ctx, c.who, d.ID, now.Add(-24*time.Hour), now)
	if err != nil && (ctx.Err() != nil || management.CodeOf(err) == management.Unavailable) {
		return nil, c.ctx.Err()
	}
	return report, err
}

// recheck looks at a domain that somebody watches and that waits for DNS, if the last look is old enough: the background's next one may
// be an hour away. Who only reads watches what the background finds.
func (c *ctx) recheck(d *management.Domain) *management.Domain {
	waits := d.Status == management.PendingDNS || d.Status == management.Verifying || d.Status == management.Moved
	last := d.Axes.Ownership.CheckedAt
	if !waits || last != nil && c.now().Sub(*last) < recheckAfter || c.who.Require(management.DomainsWrite) != nil {
		return d
	}
	ctx, cancel := context.WithTimeout(c.ctx, recheckTimeout)
	defer cancel()
	if now, err := c.plane.CheckDomain(ctx, c.who, d.ID); err == nil {
		return now
	}
	return d // too many at once, or the tenant is suspended: what is known is shown
}

const (
	recheckAfter   = 15 * time.Second
	recheckTimeout = 12 * time.Second
)
