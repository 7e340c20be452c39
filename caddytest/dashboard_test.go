package caddytest

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"

	"github.com/pqproxy/caddy-pqproxy/internal/acmetest"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

const (
	dashboardName    = "dash.example.com"
	dashboardOptions = "signup open"
	appName          = "app.example.com"
)

// dashboardWorld is what TestDashboard happens in: the service as a browser reaches it, and all that a customer's domain needs.
type dashboardWorld struct {
	dns      *nameServer
	ca       *acmetest.Server
	own      authority // of the upstream, and of the customer's own pair
	upstream string    // HAProxy with TLS that insists on a PROXY header
	cert     leaf      // of the dashboard
	service  *service
	way      *relay // to the service's TLS face
	chromium *chromium
	edges    []edge
	person   *tab   // signed in, who made all that there is
	domain   string // the path of the domain's page
}

// TestDashboard is the life of a customer by clicks in a real browser, from the first run to the end of a domain, and then what a browser
// has to say about every page. Anything that the browser complains about fails it: a violation of the Content-Security-Policy, an
// exception, a request that failed.
func TestDashboard(t *testing.T) {
	w := startDashboard(t)
	defer w.person.close() // before the service ends, which its page would complain about
	// Each part goes on where the one before it has ended.
	for _, part := range []struct {
		name string
		run  func(*testing.T, *dashboardWorld)
	}{
		{"first run", firstRunByClicks}, {"operator", operatorByClicks}, {"domain", domainByClicks}, {"traffic", trafficByClicks},
		{"certificate", certificateByClicks}, {"people", peopleByClicks}, {"pages", testPages},
		{"no scripts", testNoScripts}, {"back and twice", testBackAndTwice}, {"session ends", testSessionEnds}, {"keyboard", testKeyboard},
		{"end", endByClicks}, {"restart", testRestart},
	} {
		begun := time.Now()
		part.run(t, w)
		w.person.check(t)
		t.Logf("%s: %v", part.name, time.Since(begun).Round(time.Millisecond))
	}
}

func startDashboard(t *testing.T) *dashboardWorld {
	t.Helper()
	own := newAuthority(t)
	w := &dashboardWorld{dns: startNameServer(t), ca: acmetest.Start(t, acmetest.Options{}), own: own, cert: own.files(t, dashboardName)}
	w.upstream = startHAProxy(t, own.files(t, upstreamName))
	w.service = startSecureService(t, t.TempDir(), w.dns, dashboardOptions, dashboardName, w.cert)
	w.service.waitReady(t)
	w.way = startRelay(t, w.service.secure)
	w.chromium = startChromium(t, dashboardName, w.way.addr, w.cert.pin)
	w.person = w.chromium.open(t)
	// As somebody does who clicks into the page first.
	for _, name := range []string{"clipboard-read", "clipboard-write"} {
		if _, err := chromedp.CallBrowser(w.person.ctx, browser.SetPermission, browser.SetPermissionParams{
			Permission: &browser.PermissionDescriptor{Name: name}, Setting: browser.PermissionSettingGranted, Origin: w.chromium.origin,
			BrowserContextID: chromedp.FromContext(w.person.ctx).BrowserContextID,
		}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// firstRunByClicks makes the first account with the set-up token, and signs in again.
func firstRunByClicks(t *testing.T, w *dashboardWorld) {
	b := w.person
	b.visit(t, "/")
	b.at(t, "/setup")
	b.look(t, "setup")
	b.fill(t, "f-setup-setup_token", "what somebody guessed")
	b.fill(t, "f-setup-email", "ops@example.com")
	b.fill(t, "f-setup-password", firstPassword)
	b.fill(t, "f-setup-tenant", "Platform")
	b.refused(t, 403, "Set up")
	b.fill(t, "f-setup-setup_token", setupToken)
	b.fill(t, "f-setup-password", firstPassword) // all else is still there
	b.click(t, "Also make an API key that can do everything")
	b.press(t, "Set up")
	b.sees(t, "This API key is shown once.")
	b.look(t, "setup-done")
	w.service.key = b.copies(t, "Copy the API key")
	w.service.call(t, 200, "GET", "/v1/audit", nil)
	b.press(t, "Go on")
	b.at(t, "/")
	b.sees(t, "Add your first domain")
	b.look(t, "overview-first")

	b.press(t, "Sign out")
	b.sees(t, "You are signed out.")
	b.visit(t, "/domains?status=active")
	b.at(t, "/login")
	b.signIn(t, "not the password", 401)
	b.signIn(t, firstPassword, 200)
	b.at(t, "/domains") // where it was to go
}

// signIn fills in the page to sign in.
func (b *tab) signIn(t *testing.T, password string, want int64) {
	t.Helper()
	b.fill(t, "f-login-email", "ops@example.com")
	b.fill(t, "f-login-password", password)
	if want == 200 {
		b.press(t, "Sign in")
	} else {
		b.refused(t, want, "Sign in")
	}
}

// operatorByClicks makes an edge token and an API key, starts two edges that the open page shows by itself, and trusts no tenant.
func operatorByClicks(t *testing.T, w *dashboardWorld) {
	b := w.person
	b.press(t, "Edges")
	b.sees(t, "No edges yet")
	b.look(t, "edges-none")
	b.press(t, "Make an edge token")
	b.fill(t, "f-create-name", "fleet")
	b.press(t, "Make")
	token := b.says(t, ".once .copied code")
	if copied := b.copies(t, "Copy the edge token"); copied != token || !strings.HasPrefix(token, "pqe_") {
		t.Fatalf("%q is copied of the edge token %.8s…", copied, token)
	}
	b.look(t, "edge-token-made")

	b.press(t, "Edges")
	b.settle(t)
	loaded := b.loadedAt(t)
	storage := t.TempDir()
	for _, name := range []string{"edge-1", "edge-2"} {
		w.edges = append(w.edges, startManagedEdge(t, name, w.service, token, w.ca, storage))
	}
	b.sees(t, "edge-1", "edge-2")
	w.ca.ForwardTLS(w.edges[0].addr)
	if b.loadedAt(t) != loaded {
		t.Error("the page of edges was loaded again")
	}

	b.press(t, "API keys")
	b.sees(t, "set-up")
	b.fill(t, "f-create-name", "deploy")
	b.click(t, "domains:read")
	b.press(t, "Make")
	b.look(t, "key-made")
	w.service.key = b.says(t, ".once .copied code")
	w.service.call(t, 200, "GET", "/v1/domains", nil)
	w.service.call(t, 403, "GET", "/v1/audit", nil)

	b.press(t, "Tenants")
	b.press(t, "Platform", "main")
	b.click(t, "Trusted")
	b.press(t, "Save")
	if evaluate[bool](t, b, `document.getElementById("f-tenant-trusted").checked`) {
		t.Error("the tenant is trusted after all")
	}
}

// loadedAt tells one load of a page from another.
func (b *tab) loadedAt(t *testing.T) float64 {
	t.Helper()
	return evaluate[float64](t, b, "performance.timeOrigin")
}

// domainByClicks goes through the wizard. What DNS says changes while the page is open.
func domainByClicks(t *testing.T, w *dashboardWorld) {
	b := w.person
	w.dns.set(t, appName, appName+". 60 IN A 203.0.113.9")
	b.press(t, "Domains")
	b.press(t, "Add a domain")
	b.fill(t, "f-domain-name", "not a name")
	b.fill(t, "f-domain-upstreams-0-dial", w.upstream)
	b.refused(t, 422, "Add the domain")
	b.look(t, "wizard-name-refused")
	b.fill(t, "f-domain-name", appName)
	b.press(t, "Add the domain")
	b.sees(t, appName+" is added.", "203.0.113.9", "to be set")
	path, ok := strings.CutSuffix(evaluate[string](t, b, "location.pathname"), "/setup/dns")
	if !ok {
		b.lost(t, "this is not the step of DNS")
	}
	w.domain = path
	if copied := b.copies(t, "Copy the value of the A record"); copied != "127.0.0.1" {
		t.Errorf("%q is copied of the A record", copied)
	}
	b.settle(t)
	b.look(t, "wizard-dns-wrong")
	loaded := b.loadedAt(t)
	w.dns.set(t, appName, appName+". 60 IN A 127.0.0.1")
	testWatching(t, w) // the page looks at DNS every 15 seconds
	testPublicPages(t, w)
	b.sees(t, "DNS is as it should be.")
	if b.loadedAt(t) != loaded {
		t.Error("the page of DNS records was loaded again")
	}

	// The upstream speaks TLS, has a certificate of a private CA, and wants to know its clients.
	b.press(t, "Next: the upstream")
	b.press(t, "Probe now")
	b.sees(t, "does not work as it is set up", "Recommended settings")
	b.look(t, "wizard-upstream-probed")
	b.press(t, "Apply them")
	b.sees(t, "The upstreams are saved.")
	if !evaluate[bool](t, b, `document.querySelector("fieldset.upstream details").open`) {
		b.click(t, "More about upstream 1")
	}
	b.fill(t, "f-upstreams-upstreams-0-tls-server_name", upstreamName)
	b.fill(t, "f-upstreams-upstreams-0-tls-ca_pem", strings.TrimSpace(string(w.own.PEM())))
	b.press(t, "Save")
	b.press(t, "Probe now")
	b.sees(t, "good for the name", "required", "What is set is what the probe recommends.")

	b.press(t, "Next: the policy")
	b.press(t, "Save and go on")
	b.settle(t)
	b.sees(t, "Prove it", "caddy pqproxy probe "+appName, "Live on 2 of 2 edges", "Live on all of them since", "All is well: nothing is to be done.")
	b.press(t, "To the domain")
	b.at(t, w.domain)
}

// fetch asks the upstream something through an edge.
func fetch(t *testing.T, e edge, roots *x509.CertPool, group tls.CurveID) answer {
	t.Helper()
	conn, err := pqtest.TryDial(t, e.addr, &tls.Config{ServerName: appName, RootCAs: roots, CurvePreferences: []tls.CurveID{group}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+appName+"\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	said, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer said.Body.Close()
	body, err := io.ReadAll(said.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{Body: string(body)}.answer(t)
}

// touch changes something of the domain in another window: edges follow, and tell at once what they would have told within 30 seconds.
func (w *dashboardWorld) touch(t *testing.T) {
	t.Helper()
	b := w.person.another(t)
	defer b.close()
	b.visit(t, w.domain+"/policy")
	b.fill(t, "f-policy-max_connections", "1000")
	b.press(t, "Save")
}

// trafficByClicks follows connections as they come, finds them again wherever they are told of, and switches to require.
func trafficByClicks(t *testing.T, w *dashboardWorld) {
	b := w.person
	b.press(t, "Connections")
	b.press(t, "Live")
	b.settle(t)
	loaded := b.loadedAt(t)
	roots := w.ca.Roots(0)
	for _, e := range w.edges {
		if a := fetch(t, e, roots, tls.X25519MLKEM768); a.Server != "haproxy" || a.ClientIP != "127.0.0.1" || a.ServerName != upstreamName {
			t.Errorf("the upstream saw %+v", a)
		}
	}
	fetch(t, w.edges[0], roots, tls.X25519)
	w.touch(t)
	b.until(t, "three records", `document.querySelectorAll("#records tr").length === 3`)
	if b.loadedAt(t) != loaded {
		t.Error("the page of new connections was loaded again")
	}
	b.sees(t, "X25519MLKEM768", appName)

	b.press(t, "Search")
	b.choose(t, "f-filter-post_quantum", "true")
	b.press(t, "Filter")
	if n := evaluate[int](t, b, `document.querySelectorAll("table.records tbody tr").length`); n != 2 {
		t.Errorf("%d connections are post-quantum", n)
	}
	b.follow(t, 200, "opening a connection", chromedp.Click(chromedp.CSS("table.records tbody tr th a")))
	b.sees(t, "X25519MLKEM768", w.upstream)
	b.until(t, "a waterfall", `document.querySelectorAll("figure.waterfall svg rect").length >= 5`)

	b.visit(t, w.domain)
	b.press(t, "Connections", "main")
	b.until(t, "three waterfalls", `document.querySelectorAll(".waterfall svg").length === 3`)
	b.press(t, "Overview", "main")
	b.until(t, "a plot", `document.querySelector("figure.plot svg")`)

	b.press(t, "Post-quantum")
	b.choose(t, "f-filter-domain", evaluate[string](t, b, `[...document.getElementById("f-filter-domain").options].at(-1).value`))
	b.press(t, "Show")
	b.sees(t, "2 of 3 handshakes")
	b.choose(t, "f-filter-days", "1")
	b.press(t, "Simulate")
	b.sees(t, "127.0.0.0/24", "would have refused")
	b.look(t, "report-simulated")
	b.press(t, "Set the domain's policy")
	b.at(t, w.domain+"/policy")
	b.do(t, "choosing require", chromedp.Click(chromedp.CSS(`#form-policy input[value="require"] + label`)))
	b.press(t, "Save")
	b.sees(t, "The policy is saved.")
	pqtest.Wait(t, "the policy to be live", func() bool {
		conn, err := pqtest.TryDial(t, w.edges[1].addr, &tls.Config{ServerName: appName, RootCAs: roots, CurvePreferences: []tls.CurveID{tls.X25519}})
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	fetch(t, w.edges[1], roots, tls.X25519MLKEM768)
}

// certificateByClicks uploads a pair: one with faults, which are all named, then a good one from files.
func certificateByClicks(t *testing.T, w *dashboardWorld) {
	b := w.person
	chain, _ := pqtest.EncodePair(t, w.own.Issue(t, "other.example.com"))
	b.visit(t, w.domain)
	b.press(t, "Certificate", "main")
	b.sees(t, "the edges, by ACME")
	b.fill(t, "f-certificate-chain_pem", strings.TrimSpace(string(chain)))
	b.fill(t, "f-certificate-key_pem", "no key")
	b.refused(t, 422, "Upload")
	b.look(t, "domain-certificate-refused")
	if faults := evaluate[[]string](t, b, `[...document.querySelectorAll(".field .error")].map((e) => e.innerText)`); len(slices.Compact(faults)) != 2 {
		t.Errorf("the faults of a chain for another name and a key that is none are %q", faults)
	}
	if key := evaluate[string](t, b, `document.getElementById("f-certificate-key_pem").value`); key != "" {
		t.Error("the page holds a key")
	}

	good := w.own.files(t, appName)
	b.fill(t, "f-certificate-chain_pem", "")
	b.do(t, "choosing files",
		chromedp.SetUploadFiles(chromedp.CSS("#f-certificate-chain_pem_file"), []string{good.chain}),
		chromedp.SetUploadFiles(chromedp.CSS("#f-certificate-key_pem_file"), []string{good.key}))
	b.press(t, "Upload")
	b.sees(t, "The certificate is in place.", "Replace it")
	for _, e := range w.edges {
		pqtest.Wait(t, "the pair to be served", func() bool {
			conn, err := pqtest.TryDial(t, e.addr, &tls.Config{ServerName: appName, RootCAs: w.own.Pool()})
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
	b.press(t, "Certificates")
	b.sees(t, appName, "your own")
}

// peopleByClicks invites somebody, who comes with a browser of their own, and looks at what was written down of all this.
func peopleByClicks(t *testing.T, w *dashboardWorld) {
	b := w.person
	b.press(t, "Members")
	b.fill(t, "f-invite-email", "viewer@example.com")
	b.press(t, "Invite")
	link, err := url.Parse(b.says(t, ".once .copied code"))
	if err != nil || link.Path != "/invitation" {
		t.Fatalf("the link of the invitation is %q: %v", link.Path, err)
	}
	b.look(t, "member-invited")
	guest := w.chromium.open(t)
	defer guest.close()
	guest.visit(t, link.RequestURI())
	guest.fill(t, "f-invitation-password", "what the viewer signs in with")
	guest.press(t, "Join")
	guest.sees(t, "You are a member of Platform now.")
	guest.fill(t, "f-login-email", "viewer@example.com")
	guest.fill(t, "f-login-password", "what the viewer signs in with")
	guest.press(t, "Sign in")
	guest.press(t, "Domains")
	guest.press(t, appName)
	guest.sees(t, "Live on 2 of 2 edges")
	if guest.says(t, "#form-delete") != "" {
		t.Error("a viewer is shown how to delete a domain")
	}
	b.press(t, "Members")
	b.sees(t, "viewer@example.com")

	b.press(t, "Audit log")
	b.sees(t, "domain.created")
	said := b.says(t, "main")
	b.fill(t, "f-filter-action", "domain.created")
	b.press(t, "Filter")
	b.follow(t, 200, "opening an entry", chromedp.Click(chromedp.CSS("table tbody th a")))
	b.sees(t, "Before and after", appName)
	for _, secret := range []string{firstPassword, setupToken, "PRIVATE KEY"} {
		if strings.Contains(said, secret) {
			t.Errorf("the audit log says %.12s…", secret)
		}
	}
	b.press(t, "Settings")
	b.fill(t, "f-totp-password", firstPassword)
	b.press(t, "Set up", "form-totp")
	b.look(t, "totp")
	b.press(t, "Overview")
	b.sees(t, "Post-quantum, last 24 hours")
}

// endByClicks deletes the domain, for which its name has to be typed.
func endByClicks(t *testing.T, w *dashboardWorld) {
	b := w.person
	b.visit(t, w.domain)
	b.click(t, "Delete "+appName)
	b.fill(t, "f-delete-name", "another.example.com")
	b.refused(t, 422, "Delete the domain")
	b.look(t, "domain-delete-refused")
	b.fill(t, "f-delete-name", appName)
	b.press(t, "Delete the domain")
	b.at(t, "/domains")
	for _, e := range w.edges {
		pqtest.Wait(t, "the domain to leave "+e.addr, func() bool {
			_, err := pqtest.TryDial(t, e.addr, &tls.Config{ServerName: appName, InsecureSkipVerify: true})
			return err != nil && strings.Contains(err.Error(), "unrecognized name")
		})
	}
}
