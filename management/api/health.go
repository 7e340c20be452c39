package api

import (
	"net/http"
)

// health is the answer of both probes.
type health struct {
	Status string `json:"status" enum:"ok"`
}

// ownRoutes are the routes of the API itself.
func (a *API) ownRoutes() []route {
	return []route{
		endpoint(operation{
			method: http.MethodGet, path: "/healthz", id: "getHealth", tag: "service", face: onBoth, access: byAnybody, free: true,
			summary: "Is the process alive?", description: "Asks nothing of the database.",
		}, func(*call, *struct{}) (*answer[health], error) {
			return ok("", health{"ok"}), nil
		}),
		endpoint(operation{
			method: http.MethodGet, path: "/readyz", id: "getReadiness", tag: "service", face: onBoth, access: byAnybody,
			summary: "Can requests be served?", description: "503 while the database does not answer, or is newer than the program.",
		}, func(c *call, _ *struct{}) (*answer[health], error) {
			if err := a.core.Ready(c.ctx); err != nil {
				return nil, err
			}
			return ok("", health{"ok"}), nil
		}),
		stream(operation{
			method: http.MethodGet, path: "/openapi.json", id: "getOpenAPI", tag: "service", access: byAnybody,
			summary: "This document", description: "Made from the program's own table of routes. Its ETag changes when it does.",
		}, []media{{name: jsonType}}, func(c *call, _ *struct{}, w http.ResponseWriter) error {
			a.document.write(w, c.request)
			return nil
		}),
	}
}
