package api

import (
	"net/http"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// tenantAnswer returns the answer with a tenant.
func tenantAnswer(tenant *management.Tenant, err error) (*answer[*management.Tenant], error) {
	if err != nil {
		return nil, err
	}
	return ok(management.ETag(tenant.Version), tenant), nil
}

func tenantRoutes() []route {
	return []route{
		endpoint(operation{
			method: http.MethodGet, path: "/v1/tenant", id: "getTenant", tag: "tenant", scope: management.DomainsRead, summary: "The caller's tenant",
		}, func(c *call, _ *struct{}) (*answer[*management.Tenant], error) {
			return tenantAnswer(c.plane.FindTenant(c.ctx, c.who))
		}),
		endpoint(operation{
			method: http.MethodPatch, path: "/v1/tenant", id: "updateTenant", tag: "tenant", scope: management.All, summary: "Rename the tenant",
		}, func(c *call, in *struct {
			conditional
			Body struct {
				Name *string `json:"name,omitempty" doc:"1 to 128 characters."`
			}
		}) (*answer[*management.Tenant], error) {
			return tenantAnswer(c.plane.RenameTenant(c.ctx, c.who, in.Body.Name, in.IfMatch))
		}),
		endpoint(operation{
			method: http.MethodDelete, path: "/v1/tenant", id: "deleteTenant", tag: "tenant", scope: management.All, summary: "Delete the tenant",
			description: "For an owner who signed in. Its domains end at once, as do its API keys.", codes: []management.Code{management.Conflict},
		}, func(c *call, in *struct {
			conditional
			Body passwordBody
		}) (*answer[none], error) {
			return empty(), c.plane.DeleteTenant(c.ctx, c.who, in.Body.Password, in.IfMatch)
		}),
	}
}
