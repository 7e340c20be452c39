package caddytest

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/acmetest"
	"github.com/pqproxy/caddy-pqproxy/internal/pgtest"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
)

// service is a management plane with its two faces.
type service struct {
	*process
	dir          string   // of its Caddyfile, and its home
	env          []string // that it runs in
	public, edge string   // URLs
	secure       string   // the address of the public face over TLS; empty: there is none
	key          string   // of the first run
}

const setupToken = "what the first run asks for"

// startService runs a management plane that asks that DNS server, whose traffic goes to 127.0.0.1.
func startService(t *testing.T, dns *nameServer, options string) *service {
	t.Helper()
	s := startServiceIn(t, t.TempDir(), dns, options)
	s.waitReady(t)
	return s
}

// startServiceIn is startService with what an earlier one has left in the folder, and does not wait.
func startServiceIn(t *testing.T, dir string, dns *nameServer, options string) *service {
	t.Helper()
	return startSecureService(t, dir, dns, options, "", leaf{})
}

// startSecureService is startServiceIn with the public face also over TLS, where a name is given, as browsers want it.
func startSecureService(t *testing.T, dir string, dns *nameServer, options, name string, cert leaf) *service {
	t.Helper()
	bin, err := pqproxy()
	if err != nil {
		t.Fatal(err)
	}
	public, publicAddr := listen(t)
	edge, edgeAddr := listen(t)
	sockets, site, secureAddr := []*os.File{public, edge}, "", ""
	if name != "" {
		var secure *os.File
		secure, secureAddr = listen(t)
		sockets = append(sockets, secure)
		site = fmt.Sprintf("https://%s:3 {\n\tbind fd/5\n\ttls %s %s\n\tpqproxy_management public\n}\n", name, cert.chain, cert.key)
	}
	writeFile(t, dir, "Caddyfile", fmt.Sprintf(`{
	admin off
	persist_config off
	auto_https disable_redirects
	servers {
		protocols h1 h2
	}
	pqproxy_management {
		setup_token {env.SETUP_TOKEN}
		resolver %s
		target a 127.0.0.1
		rate_limit 0
		upstream_policy {
			allow 127.0.0.0/8
		}
		%s
	}
}
http://127.0.0.1:1 {
	bind fd/3
	pqproxy_management public
}
http://127.0.0.1:2 {
	bind fd/4
	pqproxy_management edge
}
%s`, dns.addr, options, site))
	cmd := exec.Command(bin, "run", "--config", "Caddyfile")
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir, "SETUP_TOKEN="+setupToken)
	cmd.ExtraFiles = sockets
	s := &service{
		process: start(t, "the management plane", cmd, syscall.SIGTERM), dir: dir, env: cmd.Env, public: "http://" + publicAddr, edge: "http://" + edgeAddr,
		secure: secureAddr,
	}
	for _, socket := range sockets {
		socket.Close()
	}
	return s
}

// waitReady waits until the service serves.
func (s *service) waitReady(t *testing.T) {
	t.Helper()
	pqtest.Wait(t, "the management plane to serve", func() bool {
		answer, err := http.Get(s.public + "/readyz")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode < 300
	})
}

// firstRun makes the first user and tenant, and the key that the service is called with from then on.
func (s *service) firstRun(t *testing.T) {
	t.Helper()
	first := s.call(t, 201, "POST", "/v1/setup", object{
		"setup_token": setupToken, "email": "ops@example.com", "password": firstPassword, "tenant": "Platform", "api_key": true,
	})
	s.key = first.at("api_key", "secret").(string)
}

// firstPassword is that of the first user.
const firstPassword = "a long enough password"

// postgres returns the options of a service on a PostgreSQL database of its own, with a master key.
func postgres(t *testing.T) string {
	t.Helper()
	t.Setenv("DATABASE_URL", pgtest.Database(t))
	t.Setenv("MASTER_KEY", vault.NewKey().Reveal())
	return "database postgres {env.DATABASE_URL}\nmaster_key {env.MASTER_KEY}"
}

// object is a JSON object.
type object map[string]any

// at returns what is under a path of keys and, in arrays, numbers.
func (o object) at(path ...any) any {
	var v any = map[string]any(o)
	for _, step := range path {
		switch s := step.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[s]
		case int:
			list, _ := v.([]any)
			if s >= len(list) {
				return nil
			}
			v = list[s]
		}
	}
	return v
}

// call makes a request of the public face with the key, and wants that status.
func (s *service) call(t *testing.T, want int, method, path string, body any) object {
	t.Helper()
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(t.Context(), method, s.public+path, content)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if s.key != "" {
		request.Header.Set("Authorization", "Bearer "+s.key)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != want {
		t.Fatalf("%s %s: %s, want %d\n%s", method, path, answer.Status, want, text)
	}
	var read object
	if len(text) > 0 {
		if err := json.Unmarshal(text, &read); err != nil {
			t.Fatalf("%s %s: %v\n%s", method, path, err, text)
		}
	}
	return read
}

// until asks again until the answer is as wanted.
func (s *service) until(t *testing.T, what, path string, good func(object) bool) (last object) {
	t.Helper()
	defer func() {
		if t.Failed() {
			text, _ := json.MarshalIndent(last, "", "  ")
			t.Logf("%s says\n%s", path, text)
		}
	}()
	// Edges report every 30 seconds, which is longer than pqtest waits for anything.
	deadline, tick := time.Now().Add(patience), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for {
		if last = s.call(t, http.StatusOK, "GET", path, nil); good(last) {
			return last
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-tick.C
	}
}

// startManagedEdge runs an edge that follows the management plane, and orders certificates from the ACME server by TLS-ALPN-01.
func startManagedEdge(t *testing.T, name string, s *service, token string, ca *acmetest.Server, storage string) edge {
	t.Helper()
	socket, addr := listen(t) // certmagic finds its port taken
	t.Cleanup(func() { socket.Close() })
	t.Setenv("EDGE_TOKEN", token)
	return startEdge(t, t.TempDir(), "Caddyfile", fmt.Sprintf(`{
	admin off
	skip_install_trust
	storage file_system %s
	layer4 {
		pqproxy/127.0.0.1:0 {
			route {
				pqproxy
			}
		}
	}
	pqproxy {
		issuer acme %s {
			trusted_roots %s
			disable_http_challenge
			alt_tlsalpn_port %s
		}
		management %s/v1/edge/domains {
			token {env.EDGE_TOKEN}
			edge %s
			region test
		}
		upstream_policy {
			allow 127.0.0.0/8
		}
	}
}
`, storage, ca.URL(), ca.CA().PEMFile(t), addr[strings.LastIndexByte(addr, ':')+1:], s.edge, name))
}

// TestManagement is the life of a customer with nothing but HTTP requests: the first run, a domain, its DNS, its certificate,
// live on two edges, a post-quantum connection that is seen in every view, the policy `require`, a pair of one's own, the end.
func TestManagement(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { testManagement(t, "") })
	t.Run("postgres", func(t *testing.T) { testManagement(t, postgres(t)) })
}

func testManagement(t *testing.T, options string) {
	const name = "app.example.com"
	dns, ca, storage := startNameServer(t), acmetest.Start(t, acmetest.Options{}), t.TempDir()
	upstream := startNamed(t, "upstream")
	s := startService(t, dns, options)

	if required := s.call(t, 200, "GET", "/v1/setup", nil)["required"]; required != true {
		t.Fatalf("set-up required: %v", required)
	}
	s.firstRun(t)
	operator := s.key
	s.call(t, 409, "POST", "/v1/setup", object{"setup_token": setupToken, "email": "x@example.com", "password": "a long enough password", "tenant": "X"})

	token := s.call(t, 201, "POST", "/v1/platform/edge_tokens", object{"name": "fleet"}).at("secret").(string)
	edges := []edge{startManagedEdge(t, "edge-1", s, token, ca, storage), startManagedEdge(t, "edge-2", s, token, ca, storage)}
	ca.ForwardTLS(edges[0].addr)

	// A customer that is not trusted shows by DNS that the name is his.
	tenant := s.call(t, 200, "GET", "/v1/tenant", nil).at("id").(string)
	s.call(t, 200, "PATCH", "/v1/platform/tenants/"+tenant, object{"trusted": false})
	s.key = s.call(t, 201, "POST", "/v1/api_keys", object{"name": "deploy", "scopes": []string{"*"}}).at("secret").(string)

	domain := s.call(t, 201, "POST", "/v1/domains", object{"name": name, "upstreams": []object{{"dial": upstream}}})
	id := domain.at("id").(string)
	path := "/v1/domains/" + id
	if status, record := domain.at("status"), domain.at("next_action", "record", "value"); status != "pending_dns" || record == nil {
		t.Fatalf("a new domain is %v with the next record %v", status, record)
	}
	if _, err := pqtest.TryDial(t, edges[0].addr, &tls.Config{ServerName: name, InsecureSkipVerify: true}); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Fatalf("a handshake for a name that nobody has proven ends with %v", err)
	}

	dns.set(t, name, name+". 60 IN A 127.0.0.1")
	checked := s.call(t, 200, "POST", path+"/check", nil)
	if state := checked.at("axes", "ownership", "state"); state != "ok" {
		t.Fatalf("ownership is %v after the record was set: %v", state, checked)
	}
	s.until(t, "the domain to be active", path, func(d object) bool {
		return d.at("status") == "active" && d.at("axes", "edges", "live") == 2.0 && d.at("axes", "edges", "of") == 2.0
	})

	roots := ca.Roots(0)
	for _, e := range edges {
		conn, err := pqtest.TryDial(t, e.addr, &tls.Config{ServerName: name, RootCAs: roots, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}})
		if err != nil {
			t.Fatal(err)
		}
		readLine(t, conn, "upstream")
		checkEcho(t, conn)
		conn.Close()
	}
	classical, err := pqtest.TryDial(t, edges[0].addr, &tls.Config{ServerName: name, RootCAs: roots, CurvePreferences: []tls.CurveID{tls.X25519}})
	if err != nil {
		t.Fatal(err)
	}
	classical.Close()

	s.until(t, "three connections in the log", "/v1/connections?domain="+id, func(l object) bool { return len(l["data"].([]any)) == 3 })
	seen := s.call(t, 200, "GET", "/v1/connections?post_quantum=true&domain="+id, nil)
	if n, group := len(seen["data"].([]any)), seen.at("data", 0, "group"); n != 2 || group != "X25519MLKEM768" {
		t.Errorf("%d connections are post-quantum, the last with %v", n, group)
	}
	usage := s.call(t, 200, "GET", "/v1/usage?step=total&domain="+id, nil)
	if n := usage.at("data", 0, "connections"); n != 3.0 {
		t.Errorf("usage counts %v connections", n)
	}
	report := s.call(t, 200, "GET", "/v1/reports/post-quantum?domain="+id, nil)
	if n, pq := report.at("connections"), report.at("post_quantum"); n != 3.0 || pq != 2.0 {
		t.Errorf("the report has %v of %v", pq, n)
	}
	simulated := s.call(t, 200, "GET", "/v1/reports/require?days=1&domain="+id, nil)
	if refused, client := simulated.at("refused"), simulated.at("by_client", 0, "client"); refused != 1.0 || client != "127.0.0.0/24" {
		t.Errorf("the simulator would refuse %v, of %v", refused, client)
	}

	s.call(t, 200, "PATCH", path, object{"post_quantum": "require"})
	pqtest.Wait(t, "the policy to be live", func() bool {
		conn, err := pqtest.TryDial(t, edges[1].addr, &tls.Config{ServerName: name, RootCAs: roots, CurvePreferences: []tls.CurveID{tls.X25519}})
		if err == nil {
			conn.Close()
		}
		return err != nil
	})

	own := newAuthority(t)
	chain, key := pqtest.EncodePair(t, own.Issue(t, name))
	bad := s.call(t, 422, "PUT", path+"/certificate", object{"chain_pem": string(chain), "key_pem": "no key"})
	if pointer := bad.at("errors", 0, "pointer"); pointer != "/key_pem" {
		t.Errorf("the fault is at %v", pointer)
	}
	s.call(t, 200, "PUT", path+"/certificate", object{"chain_pem": string(chain), "key_pem": string(key)})
	pqtest.Wait(t, "the pair to be served", func() bool {
		conn, err := pqtest.TryDial(t, edges[0].addr, &tls.Config{ServerName: name, RootCAs: own.Pool()})
		if err == nil {
			conn.Close()
		}
		return err == nil
	})

	s.call(t, 202, "DELETE", path, nil)
	for _, e := range edges {
		pqtest.Wait(t, "the domain to leave "+e.addr, func() bool {
			_, err := pqtest.TryDial(t, e.addr, &tls.Config{ServerName: name, InsecureSkipVerify: true})
			return err != nil && strings.Contains(err.Error(), "unrecognized name")
		})
	}

	s.key = operator
	listed := s.call(t, 200, "GET", "/v1/platform/edges", nil)
	for i := range edges {
		if state := listed.at("data", i, "state"); state != "up" {
			t.Errorf("an edge is %v", state)
		}
	}
	audit, err := json.Marshal(s.call(t, 200, "GET", "/v1/audit", nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{s.key, token, "PRIVATE KEY", firstPassword, setupToken} {
		if bytes.Contains(audit, []byte(secret)) {
			t.Errorf("the audit log has %.12s…", secret)
		}
		for _, p := range []*process{s.process, edges[0].process, edges[1].process} {
			if strings.Contains(p.String(), secret) {
				t.Errorf("the log of %s has %.12s…", p.name, secret)
			}
		}
	}
}

// readLine reads what an upstream of startNamed says.
func readLine(t *testing.T, conn io.Reader, want string) {
	t.Helper()
	said := make([]byte, len(want)+1)
	if _, err := io.ReadFull(conn, said); err != nil || string(said) != want+"\n" {
		t.Fatalf("the upstream says %q, %v, want %s", said, err, want)
	}
}
