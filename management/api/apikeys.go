package api

import (
	"net/http"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// keyWithSecret is an API key with the secret, which is told once.
type keyWithSecret struct {
	management.APIKey
	Secret string `json:"secret" doc:"What to send as Authorization: Bearer. Shown once."`
}

// apiKeyBody is a key that somebody wants.
type apiKeyBody struct {
	Name      string            `json:"name" doc:"1 to 128 characters."`
	Scopes    management.Scopes `json:"scopes" doc:"What it may do; no more than the caller."`
	ExpiresAt *time.Time        `json:"expires_at,omitempty" doc:"When it ends; absent: never."`
}

func apiKeyRoutes() []route {
	return []route{
		endpoint(operation{
			method: http.MethodGet, path: "/v1/api_keys", id: "listAPIKeys", tag: "api keys", scope: management.KeysWrite, summary: "The tenant's API keys",
		}, func(c *call, in *struct{ paging }) (*answer[list[*management.APIKey]], error) {
			keys, next, err := c.plane.FindAPIKeys(c.ctx, c.who, in.page())
			return listOf(keys, next), err
		}),
		endpoint(operation{
			method: http.MethodPost, path: "/v1/api_keys", id: "createAPIKey", tag: "api keys", scope: management.KeysWrite, status: http.StatusCreated,
			summary: "Make an API key", codes: []management.Code{management.QuotaExceeded},
			description: "It belongs to the tenant, and stays when its maker goes; platform:* works while its maker is an operator.",
		}, func(c *call, in *struct{ Body apiKeyBody }) (*answer[keyWithSecret], error) {
			wanted := management.NewAPIKey{Name: in.Body.Name, Scopes: in.Body.Scopes}
			if in.Body.ExpiresAt != nil {
				wanted.ExpiresAt = *in.Body.ExpiresAt
			}
			key, secret, err := c.plane.CreateAPIKey(c.ctx, c.who, wanted)
			if err != nil {
				return nil, err
			}
			return created("/v1/api_keys/"+key.ID, "", keyWithSecret{*key, secret.Reveal()}), nil
		}),
		endpoint(operation{
			method: http.MethodPost, path: "/v1/api_keys/{id}/rotate", id: "rotateAPIKey", tag: "api keys", scope: management.KeysWrite,
			summary: "Give an API key a new secret", description: "The old one ends at once.",
		}, func(c *call, in *byID) (*answer[keyWithSecret], error) {
			key, secret, err := c.plane.RotateAPIKey(c.ctx, c.who, in.ID)
			if err != nil {
				return nil, err
			}
			return ok("", keyWithSecret{*key, secret.Reveal()}), nil
		}),
		endpoint(operation{
			method: http.MethodDelete, path: "/v1/api_keys/{id}", id: "deleteAPIKey", tag: "api keys", scope: management.KeysWrite, summary: "Revoke an API key",
		}, func(c *call, in *byID) (*answer[none], error) {
			return empty(), c.plane.DeleteAPIKey(c.ctx, c.who, in.ID)
		}),
	}
}
