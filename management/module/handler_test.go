package module

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestFaces: each face has its own routes, and answers 404 to all of the other.
func TestFaces(t *testing.T) {
	p := newPlane(t)
	p.start(ownToken)
	for path, want := range map[string][2]int{ // public, edge
		"/healthz":           {200, 200},
		"/readyz":            {200, 200},
		"/v1/setup":          {200, 404},
		"/v1/domains":        {401, 404},
		"/openapi.json":      {200, 404},
		"/v1/edge/domains":   {404, 401},
		"/v1/edge/reports":   {404, 405},
		"/":                  {0, 404}, // the dashboard's
		"/v1/edge/../setup":  {0, 404},
		"/v1/EDGE/domains":   {404, 404},
		"/v1%2fedge/domains": {404, 404},
	} {
		for i, client := range []*http.Client{p.public, p.edge} {
			if want[i] == 0 {
				continue
			}
			if a := p.ask(client, "GET", path, nil); a.status != want[i] {
				t.Errorf("%s on face %d: %d, want %d\n%s", path, i, a.status, want[i], a.text)
			}
		}
	}

	// No credential of one face is one of the other.
	p.setUp()
	token := p.edgeToken()
	key := http.Header{"Authorization": {"Bearer " + p.key}}
	if a := p.askWith(p.public, "GET", "/v1/domains", nil, token); a.status != http.StatusUnauthorized {
		t.Errorf("an edge token on the public face: %d", a.status)
	}
	if a := p.askWith(p.edge, "GET", "/v1/edge/domains", nil, key); a.status != http.StatusUnauthorized {
		t.Errorf("an API key on the edge face: %d", a.status)
	}
}

// TestEdgeFaceWithoutTLS: a token is not to go over a network in clear. Who the peer is, is what TCP says, whatever headers say.
func TestEdgeFaceWithoutTLS(t *testing.T) {
	newPlane(t)
	a := newApp(t)
	a.settings.rateLimit = 0 // of requests without a credential too
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Cleanup(); err != nil {
			t.Error(err)
		}
	})
	claims := http.Header{
		"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"https"}, "Forwarded": {"for=127.0.0.1;proto=https"}, "X-Real-Ip": {"127.0.0.1"},
	}
	for _, c := range []struct {
		peer string
		tls  bool
		want int
	}{
		{"127.0.0.1:50000", false, 401},
		{"127.8.9.10:50000", false, 401},
		{"[::1]:50000", false, 401},
		{"[::ffff:127.0.0.1]:50000", false, 401},
		{"", false, 401},  // a unix socket
		{"@", false, 401}, // likewise
		{"192.0.2.1:50000", false, 403},
		{"10.0.0.1:50000", false, 403},
		{"[2001:db8::1]:50000", false, 403},
		{"[fe80::1%eth0]:50000", false, 403},
		{"[::ffff:10.0.0.1]:50000", false, 403},
		{"[::]:50000", false, 403},
		{"localhost:50000", false, 403},
		{"nonsense", false, 403},
		{"192.0.2.1:50000", true, 401},
	} {
		for _, header := range []http.Header{nil, claims} {
			r := httptest.NewRequest("GET", "/v1/edge/domains", nil)
			r.RemoteAddr = c.peer
			if header != nil {
				r.Header = header.Clone()
			}
			if c.tls {
				r.TLS = new(tls.ConnectionState)
			}
			// What Caddy takes for the client, a trusted proxy having said so, is not who the peer is.
			r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), nil, new(caddyhttp.Server))
			caddyhttp.SetVar(r.Context(), caddyhttp.ClientIPVarKey, "127.0.0.1")
			w := httptest.NewRecorder()
			if err := (&Handler{Face: edgeFace, app: a}).ServeHTTP(w, r, nil); err != nil {
				t.Error(err)
			}
			if w.Code != c.want {
				t.Errorf("peer %q, TLS %t, headers %v: %d, want %d", c.peer, c.tls, header, w.Code, c.want)
			}
			if w.Code == 403 && !strings.Contains(w.Body.String(), `"code":"forbidden"`) {
				t.Errorf("the refusal is %s", w.Body)
			}
			public := httptest.NewRecorder()
			if err := (&Handler{Face: publicFace, app: a}).ServeHTTP(public, r, nil); err != nil || public.Code != 404 {
				t.Errorf("the public face says %d, %v", public.Code, err)
			}
		}
	}
}

// TestClientAddress: the audit log has the client's address, which a header tells where the peer is a trusted proxy, and only there.
func TestClientAddress(t *testing.T) {
	for name, c := range map[string]struct {
		servers, forwarded, want string
	}{
		"no proxy":               {"", "", "127.0.0.1"},
		"a proxy nobody trusts":  {"", "198.51.100.7", "127.0.0.1"},
		"a trusted proxy":        {"servers {\n trusted_proxies static 127.0.0.0/8\n }", "198.51.100.7", "198.51.100.7"},
		"IPv6":                   {"servers {\n trusted_proxies static 127.0.0.0/8\n }", "2001:db8::7", "2001:db8::7"},
		"mapped":                 {"servers {\n trusted_proxies static 127.0.0.0/8\n }", "::ffff:198.51.100.7", "198.51.100.7"},
		"a client that pretends": {"servers {\n trusted_proxies static 127.0.0.0/8\n trusted_proxies_strict\n }", "203.0.113.9, 198.51.100.7", "198.51.100.7"},
		"nonsense":               {"servers {\n trusted_proxies static 127.0.0.0/8\n }", "nonsense", "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t)
			if err := p.loadFile(fmt.Sprintf(`{
	admin off
	persist_config off
	storage file_system %s/storage
	%s
	pqproxy_management {
		%s
	}
}
http://:0 {
	bind 127.0.0.1
	pqproxy_management public
}
`, p.dir, c.servers, ownToken)); err != nil {
				t.Fatal(err)
			}
			p.public = &http.Client{Timeout: pqtest.Timeout, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "tcp", httpAddress(t))
			}}}
			var header http.Header
			if c.forwarded != "" {
				header = http.Header{"X-Forwarded-For": {c.forwarded}}
			}
			a := p.askWith(p.public, "POST", "/v1/setup", map[string]any{
				"setup_token": setupToken, "email": "ops@example.com", "password": "a long enough password", "tenant": "Platform", "api_key": true,
			}, header)
			if a.status != http.StatusCreated {
				t.Fatalf("%d %s", a.status, a.text)
			}
			p.key = a.body["api_key"].(map[string]any)["secret"].(string)
			for _, event := range p.must(http.StatusOK, "GET", "/v1/audit", nil).body["data"].([]any) {
				if got := event.(map[string]any)["client_ip"]; got != c.want {
					t.Errorf("the audit log has %v, want %s", got, c.want)
				}
			}
		})
	}
}

// httpAddress returns where Caddy's only server listens.
func httpAddress(t *testing.T) string {
	t.Helper()
	app, err := caddy.ActiveContext().AppIfConfigured("http")
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range app.(*caddyhttp.App).Servers {
		for _, listener := range server.Listeners() {
			return listener.Addr().String()
		}
	}
	t.Fatal("nothing listens")
	return ""
}

// TestFaceFaults: a face that does not exist is a fault of the config.
func TestFaceFaults(t *testing.T) {
	for _, face := range []string{"", "Public", "both"} {
		if err := (&Handler{Face: face}).Provision(caddy.Context{}); err == nil || !strings.Contains(err.Error(), "face is public or edge") {
			t.Errorf("face %q: %v", face, err)
		}
	}
}

// TestHandlerAlone: the app need not be in the config; then it has its defaults.
func TestHandlerAlone(t *testing.T) {
	p := newPlane(t)
	if err := p.loadFile(fmt.Sprintf("{\n\tadmin off\n\tpersist_config off\n}\nhttp://public.test {\n\tbind unix/%s/public.sock\n\tpqproxy_management public\n}\n", p.dir)); err != nil {
		t.Fatal(err)
	}
	p.waitReady()
}
