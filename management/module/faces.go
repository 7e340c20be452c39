package module

import (
	"net/http"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/management/api"
	"github.com/pqproxy/caddy-pqproxy/management/dashboard"
)

// publicHandler is the public face: the API where it has something, the pages elsewhere. What neither of them has is a page for
// a browser, and a problem document for everybody else.
func publicHandler(a *api.API, pages *dashboard.Dashboard) http.Handler {
	routes := a.Public()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ofAPI := a.Knows(r) || r.URL.Path == "/v1" || strings.HasPrefix(r.URL.Path, "/v1/")
		browser := strings.Contains(r.Header.Get("Accept"), "text/html")
		if ofAPI || !browser && !pages.Knows(r) {
			routes.ServeHTTP(w, r)
			return
		}
		pages.ServeHTTP(w, r)
	})
}
