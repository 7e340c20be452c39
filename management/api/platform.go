package api

import (
	"net/http"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// edgeTokenWithSecret is an edge token with the secret, which is told once.
type edgeTokenWithSecret struct {
	management.EdgeToken
	Secret string `json:"secret" doc:"What edges send as Authorization: Bearer. Shown once."`
}

// newTenantBody is a tenant that an operator makes.
type newTenantBody struct {
	Name       string `json:"name" doc:"1 to 128 characters."`
	OwnerEmail string `json:"owner_email,omitempty" doc:"Who is invited to own it; absent: the caller owns it."`
	Trusted    bool   `json:"trusted,omitempty" doc:"Its word is proof enough that a domain is its own."`
	MaxDomains *int   `json:"max_domains,omitempty" minimum:"0" maximum:"1000000" doc:"Default 1000."`
}

// newTenant is a tenant that was made.
type newTenant struct {
	management.Tenant
	Invitation *invited `json:"invitation" doc:"Of the owner; null where the caller owns it."`
}

func platformRoutes() []route {
	return []route{
		endpoint(operation{
			method: http.MethodGet, path: "/v1/platform/tenants", id: "listTenants", tag: "platform", scope: management.Platform, summary: "All tenants",
		}, func(c *call, in *struct{ paging }) (*answer[list[*management.Tenant]], error) {
			tenants, next, err := c.plane.FindTenants(c.ctx, c.who, in.page())
			return listOf(tenants, next), err
		}),
		endpoint(operation{
			method: http.MethodPost, path: "/v1/platform/tenants", id: "createTenant", tag: "platform", scope: management.Platform,
			status: http.StatusCreated, summary: "Make a tenant", once: []string{"url"},
		}, func(c *call, in *struct{ Body newTenantBody }) (*answer[newTenant], error) {
			b := in.Body
			tenant, made, err := c.plane.CreateTenant(c.ctx, c.who,
				management.NewTenant{Name: b.Name, OwnerEmail: b.OwnerEmail, Trusted: b.Trusted, MaxDomains: b.MaxDomains})
			if err != nil {
				return nil, err
			}
			shown := newTenant{Tenant: *tenant}
			if made != nil {
				invitation := invitedAnswer(made)
				shown.Invitation = &invitation
			}
			return created("/v1/platform/tenants/"+tenant.ID, management.ETag(tenant.Version), shown), nil
		}),
		endpoint(operation{
			method: http.MethodPatch, path: "/v1/platform/tenants/{id}", id: "updateAnyTenant", tag: "platform", scope: management.Platform,
			summary: "Suspend or trust a tenant, or limit it", description: "A suspended tenant's domains are not served, and it can only read.",
		}, func(c *call, in *struct {
			byID
			conditional
			Body struct {
				Name       *string `json:"name,omitempty" doc:"1 to 128 characters."`
				Suspended  *bool   `json:"suspended,omitempty"`
				Trusted    *bool   `json:"trusted,omitempty"`
				MaxDomains *int    `json:"max_domains,omitempty" minimum:"0" maximum:"1000000"`
			}
		}) (*answer[*management.Tenant], error) {
			update := management.TenantUpdate{Name: in.Body.Name, Suspended: in.Body.Suspended, Trusted: in.Body.Trusted, MaxDomains: in.Body.MaxDomains}
			return tenantAnswer(c.plane.UpdateTenant(c.ctx, c.who, in.ID, update, in.IfMatch))
		}),
		endpoint(operation{
			method: http.MethodGet, path: "/v1/platform/edge_tokens", id: "listEdgeTokens", tag: "platform", scope: management.Platform, summary: "Edge tokens",
		}, func(c *call, in *struct{ paging }) (*answer[list[*management.EdgeToken]], error) {
			tokens, next, err := c.plane.FindEdgeTokens(c.ctx, c.who, in.page())
			return listOf(tokens, next), err
		}),
		endpoint(operation{
			method: http.MethodPost, path: "/v1/platform/edge_tokens", id: "createEdgeToken", tag: "platform", scope: management.Platform,
			status: http.StatusCreated, summary: "Make an edge token", codes: []management.Code{management.QuotaExceeded},
		}, func(c *call, in *struct {
			Body struct {
				Name string `json:"name" doc:"1 to 128 characters."`
			}
		}) (*answer[edgeTokenWithSecret], error) {
			token, secret, err := c.plane.CreateEdgeToken(c.ctx, c.who, in.Body.Name)
			if err != nil {
				return nil, err
			}
			return created("/v1/platform/edge_tokens/"+token.ID, "", edgeTokenWithSecret{*token, secret.Reveal()}), nil
		}),
		endpoint(operation{
			method: http.MethodDelete, path: "/v1/platform/edge_tokens/{id}", id: "deleteEdgeToken", tag: "platform", scope: management.Platform,
			summary: "Revoke an edge token",
		}, func(c *call, in *byID) (*answer[none], error) {
			return empty(), c.plane.DeleteEdgeToken(c.ctx, c.who, in.ID)
		}),
	}
}
