package pqproxy

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// shownConnections is the answer of GET /connections as a client reads it.
type shownConnections struct {
	Connections []struct {
		ID, Domain, Tenant, Source string
		ServerName                 string `json:"server_name"`
		ClientIP                   string `json:"client_ip"`
		ClientPort                 uint16 `json:"client_port"`
		Started                    time.Time
		Duration                   float64
		BytesIn                    int64   `json:"bytes_in"`
		BytesOut                   int64   `json:"bytes_out"`
		TLSVersion                 *string `json:"tls_version"`
		Group, ALPN, Upstream      *string
		PostQuantum                *bool `json:"post_quantum"`
		Resumed                    *bool
		UpstreamGroup              *string `json:"upstream_group"`
	}
	Total int
}

func (a *apiClient) connections(query string) (list shownConnections) {
	a.t.Helper()
	a.want(http.StatusOK, "GET", "/connections"+query, "").into(a.t, &list)
	return list
}

// end ends connections and expects so many.
func (a *apiClient) end(query string, want int) {
	a.t.Helper()
	if body := a.want(http.StatusOK, "DELETE", "/connections?"+query, "").body; body != fmt.Sprintf("{\"ended\":%d}\n", want) {
		a.t.Errorf("DELETE %s answers %s", query, body)
	}
}

// TestAdminConnections lists open connections, in whatever state they are, and ends some.
func TestAdminConnections(t *testing.T) {
	pqtest.Leaks(t)
	e := startAdminEdge(t, adminOption)
	api := e.api()
	plain := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	secure := pqtest.StartUpstream(t, pqtest.UpstreamConfig{TLS: &tls.Config{
		Certificates: []tls.Certificate{e.ca.Issue(t, "up.internal")}, NextProtos: []string{"imap"},
	}})
	ca, err := json.Marshal(string(e.ca.PEM()))
	if err != nil {
		t.Fatal(err)
	}
	put := func(name, record string) { t.Helper(); api.want(http.StatusCreated, "PUT", "/domains/"+name, record) }
	put("app.example.com", strings.Replace(e.record("app.example.com", secure.Addr(), tenantIs("acme")),
		fmt.Sprintf(`"dial":%q`, secure.Addr()), fmt.Sprintf(`"dial":%q,"tls":{"server_name":"up.internal","ca_pem":%s}`, secure.Addr(), ca), 1))
	put("*.example.com", e.record("*.example.com", plain.Addr(), tenantIs("acme")))
	put("b.example.com", e.record("b.example.com", plain.Addr(), tenantIs("other")))

	if list := api.connections(""); list.Total != 0 || list.Connections == nil {
		t.Errorf("without any: %+v", list)
	}
	silent := e.dialTCP()
	pqtest.Wait(t, "the silent connection", func() bool { return api.connections("").Total == 1 })
	if c := api.connections("").Connections[0]; c.Domain != "" || c.Group != nil || c.ServerName != "" || c.ClientPort != port(silent) {
		t.Errorf("a silent connection is %+v", c)
	}
	app := e.dial(e.client("app.example.com", func(cfg *tls.Config) { cfg.NextProtos = []string{"imap"} }))
	echo(t, app, "hello")
	wild := e.dial(e.client("any.example.com"))
	echo(t, wild, "hi")
	other := e.dial(e.client("b.example.com", func(cfg *tls.Config) { cfg.CurvePreferences = []tls.CurveID{tls.X25519} }))
	echo(t, other, "hey")

	list := api.connections("")
	var ports []uint16
	for _, c := range list.Connections {
		ports = append(ports, c.ClientPort)
	}
	if want := []uint16{port(other), port(wild), port(app), port(silent)}; !slices.Equal(ports, want) || list.Total != 4 {
		t.Fatalf("the connections come from %v, want %v, the newest first", ports, want)
	}
	c := list.Connections[2]
	if c.Group == nil || *c.Group != "X25519MLKEM768" || !*c.PostQuantum || *c.TLSVersion != "TLS 1.3" || *c.ALPN != "imap" || *c.Resumed ||
		*c.Upstream != secure.Addr() || c.UpstreamGroup == nil || *c.UpstreamGroup != "X25519MLKEM768" || c.BytesIn != 5 || c.BytesOut != 5 ||
		c.Domain != "app.example.com" || c.ServerName != "app.example.com" || c.Tenant != "acme" || c.Source != "admin" || c.ClientIP != "127.0.0.1" ||
		len(c.ID) != 26 || c.Duration <= 0 || time.Since(c.Started) > time.Minute || time.Since(c.Started) < 0 {
		t.Errorf("it is shown as %+v", c)
	}
	if c := list.Connections[1]; c.Domain != "*.example.com" || c.ServerName != "any.example.com" || c.UpstreamGroup != nil || *c.ALPN != "" {
		t.Errorf("it is shown as %+v", c)
	}
	if c := list.Connections[0]; *c.PostQuantum || *c.Group != "X25519" {
		t.Errorf("it is shown as %+v", c)
	}
	for query, want := range map[string]int{
		"?limit=1": 4, "?domain=*.Example.com": 1, "?domain=any.example.com": 0, "?tenant=acme": 2, "?tenant=acme&domain=app.example.com": 1,
		"?tenant=other&domain=app.example.com": 0,
	} {
		if list := api.connections(query); list.Total != want || query == "?limit=1" && (len(list.Connections) != 1 || list.Connections[0].ClientPort != port(other)) {
			t.Errorf("%s: %+v", query, list)
		}
	}

	ended := func(id string) {
		t.Helper()
		if r := e.log.recordWhere("id", id); r.str("end_reason") != "ended_by_admin" || r.str("closed_by") != "edge" || r.str("error") != "" {
			t.Errorf("the record is %v", r)
		}
	}
	id := func(i int) string { return list.Connections[i].ID }
	api.end("domain=app.example.com", 1)
	ended(id(2))
	if _, err := app.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "EOF") {
		t.Errorf("the client met %v, want a reset", err)
	}
	echo(t, wild, "still there")
	api.end("tenant=acme", 1)
	ended(id(1))
	api.end("id="+id(3), 1)
	ended(id(3))
	echo(t, other, "still there")
	api.end("id="+strings.ToUpper(id(0)), 1)
	ended(id(0))
	pqtest.Wait(t, "all to be gone", func() bool { return api.connections("").Total == 0 })
	api.want(http.StatusNotFound, "DELETE", "/connections?id="+id(0), "")
	api.end("domain=app.example.com", 0)
	api.end("tenant=nobody", 0)
}

// port is the port that a connection comes from.
func port(c net.Conn) uint16 {
	return netip.MustParseAddrPort(c.LocalAddr().String()).Port()
}

// TestAdminConnectionsWhile asks all the time while connections are made, relay, and are ended: nothing may be read that
// is being written. It is for the race detector.
func TestAdminConnectionsWhile(t *testing.T) {
	e := startAdminEdge(t, adminOption)
	api := e.api()
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	api.want(http.StatusCreated, "PUT", "/domains/app.example.com", e.record("app.example.com", up.Addr()))
	cfg := e.client("app.example.com")
	done := make(chan error)
	go func() {
		var failed error
		for range 40 {
			if err := visit(e.addr, cfg); err != nil {
				failed = err
			}
		}
		done <- failed
	}()
	for asking := true; asking; {
		select {
		case err := <-done:
			if asking = false; err != nil {
				t.Errorf("a visitor met %v", err)
			}
		default:
			api.connections("?tenant=x")
			api.connections("")
			api.want(http.StatusNotFound, "DELETE", "/connections?id=01m81wb050f3sr09tejjxabvjj", "")
		}
	}
	go func() {
		for range 40 {
			_ = visit(e.addr, cfg) // which may be ended at any point
		}
		done <- nil
	}()
	for asking := true; asking; {
		select {
		case <-done:
			asking = false
		default:
			api.want(http.StatusOK, "DELETE", "/connections?domain=app.example.com", "")
			for _, c := range api.connections("").Connections {
				if _, err := api.do("DELETE", "/connections?id="+c.ID, ""); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// TestAdminCertificates lists the certificates of all domains, what there is of them.
func TestAdminCertificates(t *testing.T) {
	e := startAdminEdge(t, adminOption)
	e.load(adminOption + "domain app.example.com {\n upstream up.example.net:443\n certificate $CHAIN $KEY\n}\n")
	api := e.api()
	pair := e.ca.IssueWith(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(10 * 24 * time.Hour) }, "soon.example.com")
	chain, key := pqtest.EncodePair(t, pair)
	record, err := json.Marshal(map[string]any{
		"upstreams":   []any{map[string]string{"dial": "127.0.0.1:9"}},
		"certificate": map[string]string{"source": "byoc", "chain_pem": string(chain), "key_pem": string(key)},
	})
	if err != nil {
		t.Fatal(err)
	}
	api.want(201, "PUT", "/domains/soon.example.com", string(record))
	const internal = `{"upstreams":[{"dial":"127.0.0.1:9"}],"certificate":{"source":"internal"}}`
	api.want(201, "PUT", "/domains/internal.example.com", internal)
	api.want(201, "PUT", "/domains/none.example.com", internal)

	type shown struct {
		Name, Source, Issuer, Error string
		NotBefore                   *time.Time `json:"not_before"`
		NotAfter                    *time.Time `json:"not_after"`
	}
	list := func(query string) (all []shown, next string) {
		t.Helper()
		var answer struct {
			Certificates []shown
			Next         string
		}
		api.want(200, "GET", "/certificates"+query, "").into(t, &answer)
		if answer.Certificates == nil {
			t.Errorf("%s: no list", query)
		}
		return answer.Certificates, answer.Next
	}
	names := func(query string) string {
		t.Helper()
		all, next := list(query)
		var names []string
		for _, c := range all {
			names = append(names, strings.TrimSuffix(c.Name, ".example.com"))
		}
		if next != "" {
			names = append(names, "next:"+next)
		}
		return strings.Join(names, " ")
	}
	_, _ = e.handshake(e.client("internal.example.com")) // only who is visited gets one of the internal CA
	all, _ := list("")
	if len(all) != 4 {
		t.Fatalf("the list is %+v", all)
	}
	for i, want := range []struct{ name, source, issuer string }{
		{"app.example.com", "byoc", "CN=pqtest root"}, {"internal.example.com", "internal", "CN=Caddy Local Authority - ECC Intermediate"},
		{"none.example.com", "internal", ""}, {"soon.example.com", "byoc", "CN=pqtest root"},
	} {
		c := all[i]
		if c.Name != want.name || c.Source != want.source || c.Issuer != want.issuer || (c.Error == "") != (want.issuer != "") ||
			(c.NotAfter != nil) != (want.issuer != "") || (c.NotBefore != nil) != (want.issuer != "") {
			t.Errorf("%s is shown as %+v", want.name, c)
		}
	}
	if !all[3].NotAfter.Equal(pair.Leaf.NotAfter) || !strings.Contains(all[2].Error, "there is no certificate for none.example.com yet") {
		t.Errorf("the list is %+v", all)
	}
	for query, want := range map[string]string{
		"?limit=2":                                        "app internal next:internal.example.com",
		"?limit=2&after=internal.example.com":             "none soon",
		"?after=soon.example.com":                         "",
		"?expiring_within=20d":                            "app internal soon",
		"?expiring_within=36h":                            "app internal",
		"?expiring_within=0s":                             "",
		"?expiring_within=20d&limit=1":                    "app next:app.example.com",
		"?expiring_within=20d&after=internal.example.com": "soon",
	} {
		if got := names(query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}

	// An expired pair of the config is served all the same, and said to be.
	expired := e.ca.IssueWith(t, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-time.Hour)
	}, "app.example.com")
	chain, key = pqtest.EncodePair(t, expired)
	for file, text := range map[string][]byte{"chain.pem": chain, "key.pem": key} {
		if err := os.WriteFile(e.dir+"/"+file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e.load(adminOption + "domain app.example.com {\n upstream up.example.net:443\n certificate $CHAIN $KEY\n tenant x\n}\n")
	if d, _ := api.get("app.example.com"); d.Certificate.Error != "the certificate has expired" || !d.Certificate.NotAfter.Equal(expired.Leaf.NotAfter) {
		t.Errorf("an expired one is shown as %+v", d.Certificate)
	}
}

// TestAdminIsDocumented compares the routes with the page about them.
func TestAdminIsDocumented(t *testing.T) {
	page := read(t, "docs/admin.md")
	for _, route := range adminRoutes() {
		path := route.pattern
		if path == adminDomain {
			path += "{name}"
		}
		for _, method := range slices.Sorted(maps.Keys(route.methods)) {
			_, section, ok := strings.Cut(page, "## "+method+" "+path+"\n")
			if !ok {
				t.Errorf("docs/admin.md has no section %s %s", method, path)
				continue
			}
			section, _, _ = strings.Cut(section, "\n## ")
			for _, param := range route.methods[method].params {
				if !strings.Contains(section, "`"+param+"`") {
					t.Errorf("docs/admin.md: %s %s does not have the parameter %s", method, path, param)
				}
			}
			if !strings.Contains(section, "curl ") {
				t.Errorf("docs/admin.md: %s %s has no example", method, path)
			}
		}
	}
}
