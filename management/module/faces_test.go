package module

import (
	"net/http"
	"strings"
	"testing"
)

// TestPagesAndAPI: the public face has both. A browser is led to a page (here the one of the first run), everybody else reads a
// problem document.
func TestPagesAndAPI(t *testing.T) {
	p := newPlane(t)
	p.start(ownToken)
	browser := http.Header{"Accept": {"text/html,application/xhtml+xml"}}
	for _, c := range []struct {
		path   string
		header http.Header
		status int
		kind   string
	}{
		{"/setup", browser, 200, "text/html"},
		{"/setup", nil, 200, "text/html"},
		{"/", browser, 200, "text/html"},
		{"/domains", browser, 200, "text/html"},
		{"/nowhere", browser, 404, "text/html"},
		{"/nowhere", nil, 404, "application/problem+json"},
		{"/v1/nowhere", browser, 404, "application/problem+json"},
		{"/v1/setup", browser, 200, "application/json"},
		{"/openapi.json", browser, 200, "application/json"},
	} {
		a := p.askWith(p.public, "GET", c.path, nil, c.header)
		if a.status != c.status || !strings.HasPrefix(a.header.Get("Content-Type"), c.kind) {
			t.Errorf("%s for %q: %d, %s; want %d, %s", c.path, c.header.Get("Accept"), a.status, a.header.Get("Content-Type"), c.status, c.kind)
		}
	}
}
