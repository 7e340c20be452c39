package api

import "slices"

// table returns the routes of the nouns: one function for each, in its file.
func table() []route {
	return slices.Concat(
		feedRoutes(), reportRoutes(), edgeRoutes(), connectionRoutes(), usageRoutes(),
		domainRoutes(), certificateRoutes(), auditRoutes(),
		setupRoutes(), sessionRoutes(), tenantRoutes(), memberRoutes(), apiKeyRoutes(), platformRoutes(),
	)
}
