package dashboard

import (
	"fmt"
	"strconv"

	"github.com/pqproxy/caddy-pqproxy/domain"
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
	page.Health = newHealthFields(page.HealthCheck)
	page.Health.Open = page.Health.Open || c.refusal != nil
	return c.render(p.page, page.Name+": policy", page)
}

func (p policyPages) save(c *ctx) error {
	parts := []part{
		text("post_quantum"), text("proxy_protocol"), text("load_balancing"), list("alpn").orNull(), number("max_connections").orNull(),
	}
	if !p.setup {
		parts = append(parts, flag("suspended"))
	}
	switch {
	case !c.form.Has("health_check.type"): // it is not of this form
	case c.value("health_check.type") == "":
		parts = append(parts, text("health_check").orNull()) // whatever the other fields have
	default:
		parts = append(parts, text("health_check.type"), text("health_check.interval").orNull(), text("health_check.timeout").orNull(),
			number("health_check.rise").orNull(), number("health_check.fall").orNull())
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

// healthFields are those of the health check, as the form has them. All are empty where there is none.
type healthFields struct {
	Type, Interval, Timeout, Rise, Fall string
	Open                                bool // all are to be seen
}

func newHealthFields(h *domain.HealthCheck) *healthFields {
	if h == nil {
		return new(healthFields)
	}
	return &healthFields{string(h.Type), h.Interval.String(), h.Timeout.String(), strconv.Itoa(h.Rise), strconv.Itoa(h.Fall), true}
}

// HealthText is the health check for who cannot change it.
func (p *domainPage) HealthText() string {
	h := p.HealthCheck
	if h == nil {
		return "off"
	}
	return fmt.Sprintf("%s every %s, for %s at most; up after %d, down after %d", h.Type, h.Interval, h.Timeout, h.Rise, h.Fall)
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
