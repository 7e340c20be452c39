package api

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// node is a place in the tree of paths. http.ServeMux is not used: it redirects paths that it would write differently, and its
// own refusals are no problem documents.
type node struct {
	literal map[string]*node
	any     *node // of a parameter
	routes  map[string]*route
	names   []string // of the parameters on the way here
	allow   []string
}

const maxPath = 1024 // bytes

// newRouter returns the tree of one face. Two routes in one place are a mistake in the program.
func newRouter(routes []route, f face) *node {
	root := new(node)
	ids := map[string]bool{}
	for i := range routes {
		r := &routes[i]
		if ids[r.id] || r.id == "" {
			panic(fmt.Sprintf("%s %s: the operation's ID %q is empty or there twice", r.method, r.path, r.id))
		}
		ids[r.id] = true
		if (r.access == byEdgeToken) != (r.face == onEdge) && r.access != byAnybody {
			panic(r.id + ": edge tokens are for the edge face alone, and nothing else is")
		}
		if !r.face.has(f) {
			continue
		}
		n := root
		var names []string
		for segment := range strings.SplitSeq(strings.TrimPrefix(r.path, "/"), "/") {
			n = n.child(segment)
			if name, ok := parameterName(segment); ok {
				names = append(names, name)
			}
		}
		if n.routes == nil {
			n.routes = map[string]*route{}
		}
		if n.routes[r.method] != nil {
			panic(fmt.Sprintf("%s %s is there twice", r.method, r.path))
		}
		if n.names != nil && !slices.Equal(n.names, names) {
			panic(r.path + ": the parameters have other names than those of another method")
		}
		n.routes[r.method], n.names = r, names
		n.allow = append(n.allow, r.method)
		if r.method == http.MethodGet && !r.endless {
			n.allow = append(n.allow, http.MethodHead)
		}
		slices.Sort(n.allow)
	}
	return root
}

func (n *node) child(segment string) *node {
	if _, ok := parameterName(segment); ok {
		if n.any == nil {
			n.any = new(node)
		}
		return n.any
	}
	if n.literal == nil {
		n.literal = map[string]*node{}
	}
	if n.literal[segment] == nil {
		n.literal[segment] = new(node)
	}
	return n.literal[segment]
}

// find returns the node of a path, as it came, and its parameters; nil where there is none. Paths have one spelling: an escaped
// letter, a second slash or one at the end is another path, which nobody has.
func (n *node) find(escaped string) (at *node, path map[string]string) {
	if len(escaped) > maxPath || !strings.HasPrefix(escaped, "/") {
		return nil, nil
	}
	var values []string
	for segment := range strings.SplitSeq(escaped[1:], "/") {
		if next := n.literal[segment]; next != nil {
			n = next
			continue
		}
		value, err := url.PathUnescape(segment)
		if n.any == nil || err != nil || value == "" || strings.Contains(value, "/") {
			return nil, nil
		}
		n = n.any
		values = append(values, value)
	}
	if n.routes == nil {
		return nil, nil
	}
	path = make(map[string]string, len(values))
	for i, value := range values {
		path[n.names[i]] = value
	}
	return n, path
}

// errNoRoute is for what this face does not have.
func errNoRoute() *management.Error {
	return management.Errorf(management.NotFound, "There is nothing here.")
}
