package dashboard

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// wizardRoutes are the steps by which a domain is added. The first makes it; each of the others has an address of its own, so that whoever
// waits for a colleague to set a record comes back to where it was.
func wizardRoutes() []route {
	read, write := management.DomainsRead, management.DomainsWrite
	ups := upstreamPages{page: "wizard_upstream", path: "/setup/upstream", setup: true}
	policy := policyPages{page: "wizard_policy", path: "/setup/policy", next: "/setup/done", setup: true}
	return slices.Concat([]route{
		{method: "GET", path: "/domains/new", scope: write, handle: showNewDomain},
		{method: "POST", path: "/domains/new", scope: write, handle: createDomain, again: showNewDomain},
		{method: "GET", path: "/domains/{id}/setup", scope: read, handle: func(c *ctx) error { return c.redirect("/domains/" + c.param("id") + "/setup/dns") }},
		{method: "GET", path: "/domains/{id}/setup/dns", scope: read, handle: wizardStep("wizard_dns", "Set the DNS records")},
		{method: "GET", path: "/domains/{id}/setup/dns/live", scope: read, endless: true, handle: live("wizard_dns", "part-dns", 3*time.Second, loadWatched)},
		{method: "POST", path: "/domains/{id}/setup/dns", scope: write, handle: checkInWizard, again: wizardStep("wizard_dns", "Set the DNS records")},
		{method: "GET", path: "/domains/{id}/setup/done", scope: read, handle: wizardStep("wizard_done", "Go live")},
		{method: "GET", path: "/domains/{id}/setup/done/live", scope: read, endless: true, handle: live("wizard_done", "domain-state", 2*time.Second, loadWatched)},
	}, ups.routes(), policy.routes())
}

// showNewDomain shows the first step. Its curl line has what was typed, once there is something.
func showNewDomain(c *ctx) error {
	name, dial := c.query("name"), c.query("dial")
	if c.form != nil {
		name, dial = c.value("name"), c.value("upstreams.0.dial")
	}
	page := newDomainPage{Body: map[string]any{
		"name": cmp.Or(name, "app.example.com"), "upstreams": []any{map[string]string{"dial": cmp.Or(dial, "origin.example.net:443")}},
	}}
	page.Own = strings.HasPrefix(strings.TrimSpace(name), "*.")
	if c.refusal != nil {
		page.Own = page.Own || slices.ContainsFunc(c.refusal.Faults, func(f management.Fault) bool { return strings.HasPrefix(f.Pointer, "/certificate") })
	}
	return c.render("wizard_name", "Add a domain", page)
}

// newDomainPage is the data of the first step.
type newDomainPage struct {
	Body any  // of the API call
	Own  bool // the part about a certificate of one's own is open
}

// createDomain makes the domain with what it cannot do without: a name and an upstream, of a wildcard also a certificate.
func createDomain(c *ctx) error {
	if strings.TrimSpace(c.value("certificate.chain_pem")+c.value("certificate.key_pem")) != "" {
		c.form.Set("certificate.source", "byoc")
	} else {
		c.form.Del("certificate.source")
	}
	body := c.body(text("name"), text("upstreams.*.dial"), text("certificate.source"), text("certificate.chain_pem"), text("certificate.key_pem"))
	d, err := c.plane.CreateDomain(c.ctx, c.who, body)
	if err != nil {
		return err
	}
	c.flash("ok", d.Name+" is added.")
	return c.redirect("/domains/" + d.ID + "/setup/dns")
}

// wizardStep shows a step that is about the state of the domain.
func wizardStep(page, title string) func(c *ctx) error {
	return func(c *ctx) error {
		p, err := loadDomain(c)
		if err != nil {
			return err
		}
		return c.render(page, title, p.(*domainPage).inSetup())
	}
}

// loadWatched is loadDomain for a page on which somebody waits for DNS.
func loadWatched(c *ctx) (any, error) {
	p, err := c.domainPage("")
	if err != nil {
		return nil, err
	}
	p.Domain = c.recheck(p.Domain)
	return p.inSetup(), c.addEdges(p)
}

func (p *domainPage) inSetup() *domainPage {
	p.Setup = true
	return p
}

func checkInWizard(c *ctx) error {
	d, err := c.plane.CheckDomain(c.ctx, c.who, c.param("id"))
	if err != nil {
		return err
	}
	c.flashChecked(d)
	return c.redirect("/domains/" + d.ID + "/setup/dns")
}

// DNSDone reports whether nothing is left to do in DNS.
func (p *domainPage) DNSDone() bool {
	return p.Axes.Ownership.State == management.AxisOK && (p.Axes.DNS.State == management.AxisOK || p.Axes.DNS.State == management.AxisOff)
}

// ProbeLine is the command that looks at the domain from outside.
func (p *domainPage) ProbeLine() string { return "caddy pqproxy probe " + shellQuote(p.Host) }

// EarlyLine is the same before DNS points at the edges; empty: it does, or no address is known.
func (p *domainPage) EarlyLine() string {
	if p.Axes.DNS.State == management.AxisOK {
		return ""
	}
	for _, r := range p.Records {
		if r.Purpose != management.ForTraffic {
			continue
		}
		address := r.Value
		if r.Type == "AAAA" {
			address = "[" + address + "]"
		}
		return "caddy pqproxy probe " + shellQuote(address+":443") + " --server-name " + shellQuote(p.Host)
	}
	return ""
}

// OpenSSLLine offers X25519MLKEM768 and nothing else: a handshake that completes proves it.
func (p *domainPage) OpenSSLLine() string {
	return "openssl s_client -connect " + shellQuote(p.Host+":443") + " -servername " + shellQuote(p.Host) + " -groups X25519MLKEM768 -brief </dev/null"
}
