package dashboard

import (
	"slices"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// table returns all routes. Each file of pages has a function for its own.
func table() []route {
	return slices.Concat(
		setupRoutes(), loginRoutes(), linkRoutes(), accountRoutes(),
		overviewRoutes(), domainsRoutes(), wizardRoutes(), domainRoutes(), connectionRoutes(), reportRoutes(), certificateRoutes(),
		edgeRoutes(), tenantRoutes(), keyRoutes(), memberRoutes(), auditRoutes(), settingsRoutes(),
	)
}

// entry is an entry of the navigation. It is shown to whoever has the scope, once the page exists.
type entry struct {
	Path, Text string
	scope      management.Scope // empty: everybody who is signed in
}

// navigation is in the order in which it is shown.
var navigation = []entry{
	{"/", "Overview", ""},
	{"/domains", "Domains", management.DomainsRead},
	{"/connections", "Connections", management.ConnectionsRead},
	{"/reports/post-quantum", "Post-quantum", management.UsageRead},
	{"/certificates", "Certificates", management.DomainsRead},
	{"/keys", "API keys", management.KeysWrite},
	{"/members", "Members", management.MembersWrite},
	{"/audit", "Audit log", management.AuditRead},
	{"/edges", "Edges", management.Platform},
	{"/tenants", "Tenants", management.Platform},
	{"/settings", "Settings", ""},
}
