package api

import (
	"net/http"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// edgeRoutes are the operators' side of the edges.
func edgeRoutes() []route {
	return []route{
		endpoint(operation{
			method: http.MethodGet, path: "/v1/platform/edges", id: "listEdges", tag: "platform", scope: management.Platform, summary: "Edges",
			description: "An edge is `up` for 90 seconds after a report, then `stale`, and forgotten after 30 days.",
		}, func(c *call, in *struct{ paging }) (*answer[list[*management.Edge]], error) {
			edges, next, err := c.plane.FindEdges(c.ctx, c.who, in.page())
			return listOf(edges, next), err
		}),
	}
}
