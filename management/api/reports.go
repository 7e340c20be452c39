package api

import (
	"io"
	"net/http"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// reportRoutes are what edges tell.
func reportRoutes() []route {
	return []route{
		endpoint(operation{
			method: http.MethodPost, path: "/v1/edge/reports", id: "postReport", tag: "edges", face: onEdge, access: byEdgeToken, free: true,
			maxBody: management.MaxReport, gzipBody: true, bodyLike: management.EdgeReport{}, summary: "Report what an edge did",
			description: "Send the same report until it is answered with 200: it is counted once. `resend` asks for all states again.",
			codes:       []management.Code{management.QuotaExceeded},
		}, func(c *call, in *struct{ Body io.Reader }) (*answer[*management.EdgeAnswer], error) {
			done, err := c.plane.Report(c.ctx, c.who, in.Body)
			return ok("", done), err
		}),
	}
}
