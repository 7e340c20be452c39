package pqproxy

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI is the module admin.api.pqproxy: /pqproxy/ on Caddy's admin endpoint, as docs/admin.md has it. It keeps
// nothing: after a reload that failed, Caddy leaves the endpoint with the context of the failed config, and where
// remote administration is on there are two instances. Each request looks for the state in force.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.pqproxy",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Routes returns the routes under /pqproxy/. Each is a pattern of its own, so that Caddy's metrics tell them apart.
func (adminAPI) Routes() []caddy.AdminRoute {
	routes := []caddy.AdminRoute{{Pattern: adminPrefix, Handler: caddy.AdminHandlerFunc(noSuchRoute)}}
	for _, route := range adminRoutes() {
		routes = append(routes, caddy.AdminRoute{Pattern: route.pattern, Handler: route})
	}
	return routes
}

// The paths. All others under adminPrefix are unknown.
const (
	adminPrefix  = "/pqproxy/"
	adminDomains = adminPrefix + "domains"
	adminDomain  = adminDomains + "/" // and a name
)

func adminRoutes() []adminRoute {
	return []adminRoute{
		{adminPrefix + "status", map[string]adminMethod{
			http.MethodGet: {serve: (*adminRequest).status, draining: true},
		}},
		{adminDomains, map[string]adminMethod{
			http.MethodGet:   {serve: (*adminRequest).listDomains, params: []string{"limit", "after", "tenant"}},
			http.MethodPut:   {serve: (*adminRequest).replaceDomains, writes: true},
			http.MethodPatch: {serve: (*adminRequest).changeDomains, writes: true},
		}},
		{adminDomain, map[string]adminMethod{
			http.MethodGet:    {serve: (*adminRequest).getDomain},
			http.MethodPut:    {serve: (*adminRequest).putDomain, writes: true},
			http.MethodDelete: {serve: (*adminRequest).deleteDomain, writes: true},
		}},
		{adminPrefix + "sync", map[string]adminMethod{
			http.MethodPost: {serve: (*adminRequest).sync, params: []string{"accept_revision"}},
		}},
		{adminPrefix + "connections", map[string]adminMethod{
			http.MethodGet:    {serve: (*adminRequest).listConnections, params: []string{"domain", "tenant", "limit"}, draining: true},
			http.MethodDelete: {serve: (*adminRequest).endConnections, params: []string{"id", "domain", "tenant"}, draining: true},
		}},
		{adminPrefix + "certificates", map[string]adminMethod{
			http.MethodGet: {serve: (*adminRequest).listCertificates, params: []string{"expiring_within", "limit", "after"}},
		}},
	}
}

// adminRoute is what a path can be asked.
type adminRoute struct {
	pattern string
	methods map[string]adminMethod
}

type adminMethod struct {
	serve    func(*adminRequest) error
	params   []string // the query parameters that it knows
	writes   bool     // changes domains, so what was kept must have been loaded
	draining bool     // also answers when no config is in force any more and connections are being ended
}

// adminRequest is one request to a route.
type adminRequest struct {
	w     http.ResponseWriter
	r     *http.Request
	state *state
	query map[string]string // the parameters that are given, none empty
}

// readyTimeout is how long a write waits until what was kept across a restart has been loaded: it is the older one.
const readyTimeout = 30 * time.Second

// ServeHTTP checks what is common to all requests and serves one. Caddy writes the errors.
func (route adminRoute) ServeHTTP(w http.ResponseWriter, r *http.Request) error {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet // net/http leaves the body away
	}
	m, ok := route.methods[method]
	if !ok {
		w.Header().Set("Allow", route.allow())
		return apiError(http.StatusMethodNotAllowed, "%s is not for this path; it takes %s", quoteShort(r.Method), route.allow())
	}
	query, err := readQuery(r.URL.RawQuery, m.params)
	if err != nil {
		return err
	}
	s := inForce.Load()
	if s == nil && m.draining {
		s = draining.Load()
	}
	if s == nil {
		return apiError(http.StatusServiceUnavailable, "no config with the app pqproxy is in force; load one that has it")
	}
	if m.writes {
		select {
		case <-s.ready:
		case <-time.After(readyTimeout):
			return apiError(http.StatusServiceUnavailable, "the domains of before the restart are still being loaded; try again")
		case <-r.Context().Done():
			return errClientLeft
		}
	}
	q := &adminRequest{w, r, s, query}
	if err = m.serve(q); err != nil {
		q.drain()
	}
	return err
}

// allow lists the methods of the path.
func (route adminRoute) allow() string {
	methods := slices.Collect(maps.Keys(route.methods))
	if _, ok := route.methods[http.MethodGet]; ok {
		methods = append(methods, http.MethodHead)
	}
	slices.Sort(methods)
	return strings.Join(methods, ", ")
}

func noSuchRoute(_ http.ResponseWriter, r *http.Request) error {
	var known []string
	for _, route := range adminRoutes() {
		known = append(known, route.pattern)
	}
	return apiError(http.StatusNotFound, "there is no %s; there are %s", quoteShort(r.URL.Path), strings.Join(known, ", "))
}

// apiError is an error with the status that Caddy answers it with. Caddy knows it by value alone.
func apiError(status int, format string, args ...any) caddy.APIError {
	return caddy.APIError{HTTPStatus: status, Err: fmt.Errorf(format, args...)}
}

// errClientLeft is for the log: nobody reads it.
var errClientLeft = apiError(http.StatusServiceUnavailable, "the client has left")

// quoteShort quotes outside input for an error.
func quoteShort(text string) string { return strconv.Quote(cutText(text, 64)) }

// Interface guards
var (
	_ caddy.AdminRouter  = adminAPI{}
	_ caddy.AdminHandler = adminRoute{}
)
