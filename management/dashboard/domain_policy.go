package dashboard

import (
	"fmt"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// policyPages edit what a domain asks of clients and edges: as a tab of its page, and as a step of the wizard.
type policyPages struct {
	page, path string // the template; below /domains/{id}
	next       string // where saving leads, below /domains/{id}; empty: back
	setup      bool
}

func (p policyPages) routes() []route {
	path := "/domains/{id}" + p.path
	return []route{
		{method: "GET", path: path, scope: management.DomainsRead, handle: p.show},
		{method: "POST", path: path, scope: management.DomainsWrite, handle: p.save, again: p.show},
	}
}

func (p policyPages) show(c *ctx) error {
	page, err := c.domainPage(p.path)
	if err != nil {
		return err
	}
	page.Setup = p.setup
	if page.Report, err = c.reportOf(page.Domain); err != nil {
		return err
	}
	return c.render(p.page, page.Name+": policy", page)
}

func (p policyPages) save(c *ctx) error {
	parts := []part{
		text("post_quantum"), text("proxy_protocol"), text("load_balancing"), list("alpn").orNull(), number("max_connections").orNull(),
	}
	if !p.setup {
		parts = append(parts, flag("suspended"))
	}
	d, err := c.plane.PatchDomain(c.ctx, c.who, c.param("id"), c.body(parts...), c.match())
	if err != nil {
		return err
	}
	c.flash("ok", "The policy is saved. Edges follow within seconds; open connections stay as they are.")
	if d.Suspended {
		c.flash("warn", "The policy is saved. The domain is suspended: new connections are refused, and open ones end.")
	}
	if p.next != "" {
		return c.redirect("/domains/" + d.ID + p.next)
	}
	return c.redirect("/domains/" + d.ID + p.path)
}

// PostQuantumOptions are the policies, each with what it means for this domain.
func (p *domainPage) PostQuantumOptions() []option {
	refused := "Clients that cannot are refused in the handshake."
	if r := p.Report; r != nil && r.Connections > 0 {
		if n := r.Connections - r.PostQuantum; n == 0 {
			refused += fmt.Sprintf(" In the last 24 hours that would have been none of %d.", r.Connections)
		} else {
			refused += fmt.Sprintf(" In the last 24 hours that would have been %d of %d.", n, r.Connections)
		}
	}
	return []option{
		{Value: "prefer", Text: "Prefer", Hint: "Hybrid key exchange, X25519MLKEM768 first, with every client that offers it, and classical with the others. Nobody is refused."},
		{Value: "require", Text: "Require", Hint: "Hybrid key exchange alone. " + refused},
		{Value: "off", Text: "Off", Hint: "Classical key exchange alone, for clients that fail when hybrid is offered. Whoever records the traffic today could read it with a quantum computer."},
	}
}

// ALPNText is what the field of ALPN holds.
func (p *domainPage) ALPNText() string {
	text := ""
	for i, name := range p.ALPN {
		if i > 0 {
			text += ", "
		}
		text += name
	}
	return text
}
