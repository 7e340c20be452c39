package api

import (
	"net/http"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// ofDomain is the parameter that narrows a question to one domain.
type ofDomain struct {
	Domain string `query:"domain" maxLength:"512" doc:"The ID or the name of a domain. Default: all."`
}

// usageList is the answer of getUsage.
type usageList struct {
	Data []*management.Usage `json:"data" nullable:"false"`
}

// usageRoutes are what is made of counters, which are exact.
func usageRoutes() []route {
	get := func(path, id, summary, description string) operation {
		return operation{method: http.MethodGet, path: path, id: id, tag: "usage", scope: management.UsageRead, summary: summary, description: description}
	}
	return []route{
		endpoint(get("/v1/usage", "getUsage", "How much domains were used",
			"Exact, to the minute within the last 47 hours; before, the time is widened to whole hours. What edges reported a moment ago is in it."),
			func(c *call, in *struct {
				timeRange
				ofDomain
				Step string `query:"step" enum:"hour,day,total" default:"day" doc:"Days are UTC days."`
			}) (*answer[usageList], error) {
				used, err := c.plane.FindUsage(c.ctx, c.who, in.Domain, in.From, in.To, in.Step)
				if used == nil {
					used = []*management.Usage{}
				}
				return ok("", usageList{used}), err
			}),
		endpoint(get("/v1/domains/{id}/series", "getSeries", "How a domain did over time",
			"One value for each step from `start` on, null where there is none. Times are in seconds. Values by minute go back 48 hours."),
			func(c *call, in *struct {
				byID
				timeRange
				Step string `query:"step" enum:"minute,hour,day" doc:"Default: what fits the time."`
			}) (*answer[*management.Series], error) {
				series, err := c.plane.FindSeries(c.ctx, c.who, in.ID, in.From, in.To, in.Step)
				return ok("", series), err
			}),
		endpoint(get("/v1/reports/post-quantum", "getPostQuantumReport", "How many handshakes were post-quantum",
			"Exact, as with usage."),
			func(c *call, in *struct {
				timeRange
				ofDomain
			}) (*answer[*management.PostQuantumReport], error) {
				report, err := c.plane.ReportPostQuantum(c.ctx, c.who, in.Domain, in.From, in.To)
				return ok("", report), err
			}),
		endpoint(get("/v1/reports/require", "getRequireReport", "Who would be refused under post_quantum require",
			"The sums are exact. by_client is made of records, so it also needs the scope connections:read; `complete` says whether any are missing."),
			func(c *call, in *struct {
				ofDomain
				Days int `query:"days" default:"7" minimum:"1" maximum:"30" doc:"How far to look back."`
			}) (*answer[*management.RequireReport], error) {
				report, err := c.plane.ReportRequire(c.ctx, c.who, in.Domain, in.Days)
				return ok("", report), err
			}),
	}
}
