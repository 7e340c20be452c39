package dashboard

import (
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// connectionRow is a connection of a domain, with where its time went.
type connectionRow struct {
	*management.Connection
	Waterfall waterfall
}

const (
	domainConnections     = 18 // rows: each has a picture
	domainConnectionsSpan = 7 * 24 * time.Hour
)

func showDomainConnections(c *ctx) error {
	p, err := c.domainPage("/connections")
	if err != nil {
		return err
	}
	from, to, err := c.span(domainConnectionsSpan)
	if err != nil {
		return err
	}
	found, next, err := c.plane.FindConnections(c.ctx, c.who, management.ConnectionQuery{Domain: p.ID, From: from, To: to}, c.page(domainConnections))
	if err != nil {
		return err
	}
	for _, one := range found {
		p.Connections = append(p.Connections, connectionRow{one, newWaterfall(one)})
	}
	p.Next = next
	return c.render("domain_connections", p.Name+": connections", p)
}

// WaterfallLegend says once what the colours of all pictures are.
func (p *domainPage) WaterfallLegend() []waterPart {
	return newWaterfall(new(management.Connection)).Parts
}
