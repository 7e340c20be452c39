package dashboard

import (
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func edgeRoutes() []route {
	const scope = management.Platform
	return []route{
		{method: "GET", path: "/edges", scope: scope, handle: showEdges},
		{method: "GET", path: "/edges/live", scope: scope, handle: live("edges", "part-edges", 5*time.Second, loadEdges), endless: true},
		{method: "GET", path: "/edges/tokens", scope: scope, handle: showEdgeTokens},
		{method: "POST", path: "/edges/tokens", scope: scope, handle: createEdgeToken, again: showEdgeTokens},
		{method: "GET", path: "/edges/tokens/{id}", scope: scope, handle: showEdgeToken},
		{method: "POST", path: "/edges/tokens/{id}/revoke", scope: scope, handle: revokeEdgeToken, again: showEdgeToken},
	}
}

const (
	mostCounted   = 1000 // edges that are added up
	edgeRows      = 25
	edgeTokenRows = 40
)

// edgesPage is the data of the list of edges.
type edgesPage struct {
	Rows                      []edgeRow
	Next                      string
	Newest                    uint64 // the revision that lag is counted from
	Up, Stale, Behind, Double int
	Live                      int64
	All                       int
	More                      bool // there are edges that were not added up
}

type edgeRow struct {
	*management.Edge
	Lag uint64
}

func showEdges(c *ctx) error {
	page, err := loadEdges(c)
	if err != nil {
		return err
	}
	return c.render("edges", "Edges", page)
}

func loadEdges(c *ctx) (any, error) {
	all, more, err := c.plane.FindEdges(c.ctx, c.who, management.Page{Limit: mostCounted})
	if err != nil {
		return nil, err
	}
	newest, err := c.plane.Revision(c.ctx, c.who)
	if err != nil {
		return nil, err
	}
	page := edgesPage{All: len(all), More: more != "", Newest: newest}
	for _, e := range all {
		page.Newest = max(page.Newest, e.Revision)
	}
	for _, e := range all {
		page.add(e)
	}
	found, next, err := c.plane.FindEdges(c.ctx, c.who, c.page(edgeRows))
	if err != nil {
		return nil, err
	}
	page.Next = next
	for _, e := range found {
		row := edgeRow{Edge: e}
		if e.Revision < page.Newest {
			row.Lag = page.Newest - e.Revision
		}
		page.Rows = append(page.Rows, row)
	}
	return page, nil
}

func (page *edgesPage) add(e *management.Edge) {
	if e.Conflict {
		page.Double++
	}
	if e.State != management.EdgeUp {
		page.Stale++
		return
	}
	page.Up++
	page.Live += e.LiveConnections
	if e.Revision < page.Newest {
		page.Behind++
	}
}

// edgeTokensPage is the data of the list of edge tokens.
type edgeTokensPage struct {
	Rows   []*management.EdgeToken
	Next   string
	Made   *management.EdgeToken // just now; else nil
	Secret string                // of it: told once
}

func showEdgeTokens(c *ctx) error { return c.renderEdgeTokens(edgeTokensPage{}) }

func (c *ctx) renderEdgeTokens(page edgeTokensPage) (err error) {
	if page.Rows, page.Next, err = c.plane.FindEdgeTokens(c.ctx, c.who, c.page(edgeTokenRows)); err != nil {
		return err
	}
	return c.render("edge_tokens", "Edge tokens", page)
}

func createEdgeToken(c *ctx) error {
	token, secret, err := c.plane.CreateEdgeToken(c.ctx, c.who, c.value("name"))
	if err != nil {
		return err
	}
	return c.renderEdgeTokens(edgeTokensPage{Made: token, Secret: secret.Reveal()})
}

func showEdgeToken(c *ctx) error {
	tokens, _, err := c.plane.FindEdgeTokens(c.ctx, c.who, management.Page{Limit: 1000}) // all that there can be
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if t.ID == c.param("id") {
			return c.render("edge_token", "Edge token "+t.Name, t)
		}
	}
	return management.Errorf(management.NotFound, "There is no such edge token.")
}

func revokeEdgeToken(c *ctx) error {
	if err := c.plane.DeleteEdgeToken(c.ctx, c.who, c.param("id")); err != nil {
		return err
	}
	c.flash("ok", "The edge token is revoked. Edges that use it get nothing more, and go on with what they have.")
	return c.redirect("/edges/tokens")
}
