package dashboard

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// pagesOfCalls says by which page each call of the API is done, as the method and path of a route. Those with a reason instead need none.
var pagesOfCalls = map[string]string{
	"GET /healthz": "for machines", "GET /readyz": "for machines", "GET /openapi.json": "for machines",
	"GET /v1/edge/domains": "for edges", "POST /v1/edge/reports": "for edges",

	"GET /v1/setup": "GET /setup", "POST /v1/setup": "POST /setup",
	"POST /v1/signup": "POST /signup", "POST /v1/signup/verify": "POST /verify",
	"POST /v1/sessions": "POST /login", "DELETE /v1/sessions/current": "POST /logout",
	"POST /v1/password_resets": "POST /forgot", "PUT /v1/password_resets": "POST /reset",
	"GET /v1/me": "GET /settings", "DELETE /v1/me": "POST /settings/account/delete", "PUT /v1/me/password": "POST /settings/password",
	"POST /v1/me/totp": "POST /settings/totp", "PUT /v1/me/totp": "POST /settings/totp/confirm", "DELETE /v1/me/totp": "POST /settings/totp/off",

	"GET /v1/tenant": "GET /settings", "PATCH /v1/tenant": "POST /settings/tenant", "DELETE /v1/tenant": "POST /settings/tenant/delete",
	"GET /v1/api_keys": "GET /keys", "POST /v1/api_keys": "POST /keys", "POST /v1/api_keys/{id}/rotate": "POST /keys/{id}/rotate", "DELETE /v1/api_keys/{id}": "POST /keys/{id}/revoke",
	"GET /v1/members": "GET /members", "PATCH /v1/members/{user}": "POST /members/{user}/role", "DELETE /v1/members/{user}": "POST /members/{user}/remove",
	"GET /v1/invitations": "GET /members", "POST /v1/invitations": "POST /members/invitations", "DELETE /v1/invitations/{id}": "POST /members/invitations/{id}/revoke",
	"POST /v1/invitations/accept": "POST /invitation",

	"GET /v1/domains": "GET /domains", "POST /v1/domains": "POST /domains/new", "GET /v1/domains/{id}": "GET /domains/{id}", "PATCH /v1/domains/{id}": "POST /domains/{id}/policy",
	"DELETE /v1/domains/{id}": "POST /domains/{id}/delete", "POST /v1/domains/{id}/check": "POST /domains/{id}/check", "POST /v1/domains/{id}/probe": "POST /domains/{id}/upstreams/probe",
	"GET /v1/domains/{id}/certificate": "GET /domains/{id}/certificate", "PUT /v1/domains/{id}/certificate": "POST /domains/{id}/certificate",
	"DELETE /v1/domains/{id}/certificate": "POST /domains/{id}/certificate/acme", "GET /v1/domains/{id}/series": "GET /domains/{id}", "GET /v1/certificates": "GET /certificates",

	"GET /v1/connections": "GET /connections", "GET /v1/connections/tail": "GET /connections/tail", "GET /v1/usage": "GET /",
	"GET /v1/reports/post-quantum": "GET /reports/post-quantum", "GET /v1/reports/require": "GET /reports/post-quantum", "GET /v1/audit": "GET /audit",

	"GET /v1/platform/edges": "GET /edges", "GET /v1/platform/edge_tokens": "GET /edges/tokens", "POST /v1/platform/edge_tokens": "POST /edges/tokens",
	"DELETE /v1/platform/edge_tokens/{id}": "POST /edges/tokens/{id}/revoke", "GET /v1/platform/tenants": "GET /tenants", "POST /v1/platform/tenants": "POST /tenants",
	"PATCH /v1/platform/tenants/{id}": "POST /tenants/{id}",
}

// TestEveryCallHasAPage compares the API's document with the pages: what the API can do, people can do without it.
func TestEveryCallHasAPage(t *testing.T) {
	text, err := os.ReadFile("../api/testdata/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	routes := map[string]bool{}
	for _, rt := range table() {
		routes[rt.method+" "+rt.path] = true
	}
	calls := 0
	for path, methods := range doc.Paths {
		for method := range methods {
			call := strings.ToUpper(method) + " " + path
			page := pagesOfCalls[call]
			calls++
			if page == "" || strings.Contains(page, "/") && !routes[page] {
				t.Errorf("%s has no page: %q", call, page)
			}
		}
	}
	if calls != len(pagesOfCalls) {
		t.Errorf("the API has %d calls, and %d have a page here", calls, len(pagesOfCalls))
	}
}
