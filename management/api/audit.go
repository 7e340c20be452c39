package api

import (
	"net/http"

	"github.com/pqproxy/caddy-pqproxy/management"
)

type auditIn struct {
	timeRange
	paging
	Actor  string `query:"actor" maxLength:"64" doc:"The ID of a user, an API key or an edge token, or system."`
	Action string `query:"action" maxLength:"64" doc:"Noun and verb, such as domain.created."`
	Object string `query:"object" maxLength:"64" doc:"The ID of what was changed."`
}

// auditRoutes are the audit log.
func auditRoutes() []route {
	return []route{
		endpoint(operation{
			method: http.MethodGet, path: "/v1/audit", id: "listEvents", tag: "audit", scope: management.AuditRead, summary: "Who changed what",
			description: "The tenant's audit log, newest first: each change with what the object was before and after, without secrets.",
		}, listEvents),
	}
}

func listEvents(c *call, in *auditIn) (*answer[list[*management.Event]], error) {
	if in.Cursor != "" && !management.IsID(management.EventID, in.Cursor) {
		return nil, management.InvalidField("?cursor", "no cursor of this list: begin again without one")
	}
	events, err := c.plane.FindEvents(c.ctx, c.who, management.EventFilter{
		Actor: in.Actor, Action: in.Action, Object: in.Object, From: in.From, To: in.To, Before: in.Cursor,
		Limit: in.Limit + 1, // one more tells whether there is a next page
	})
	if err != nil {
		return nil, err
	}
	next := ""
	if len(events) > in.Limit {
		events = events[:in.Limit]
		next = events[in.Limit-1].ID
	}
	return listOf(events, next), nil
}
