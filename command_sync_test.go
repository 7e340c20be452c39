package pqproxy

import (
	"compress/gzip"
	"crypto/sha512"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

func runSyncCommand(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return runCommand(t, append([]string{"sync"}, args...)...)
}

// startFeed serves a set, and returns its URL.
func startFeed(t *testing.T, set string, headers ...string) string {
	t.Helper()
	p := startPlane(t)
	p.set(set, headers...)
	return p.URL + "/domains.json"
}

// put is a request that an admin endpoint was sent.
type put struct {
	*http.Request
	body []byte
}

// admin is an admin endpoint of which the answers are given. Others are real: see TestSyncCommandEdge.
type admin struct {
	address string
	puts    chan put
}

// startAdmin runs one on a socket that the kernel chose.
func startAdmin(t *testing.T, answer http.HandlerFunc) *admin {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveAdmin(t, listener, listener.Addr().String(), answer)
}

func serveAdmin(t *testing.T, listener net.Listener, address string, answer http.HandlerFunc) *admin {
	t.Helper()
	a := &admin{address: address, puts: make(chan put, 10)}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("reading what is put: %v", err)
		}
		a.puts <- put{r, body}
		answer(w, r)
	}))
	_ = server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return a
}

// taken returns the request that was made.
func (a *admin) taken(t *testing.T) put {
	t.Helper()
	select {
	case p := <-a.puts:
		return p
	default:
		t.Fatal("nothing was put")
		return put{}
	}
}

// idle expects that nothing more was put.
func (a *admin) idle(t *testing.T) {
	t.Helper()
	select {
	case p := <-a.puts:
		t.Errorf("%s %s: %s", p.Method, p.URL, p.body)
	default:
	}
}

func answerWith(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

const someOutcome = `{"added": 2, "changed": 3, "removed": 4, "unchanged": 5, "rejected": 0}`

func TestSyncCommand(t *testing.T) {
	a := startAdmin(t, answerWith(http.StatusOK, someOutcome))
	stdout, stderr, err := runSyncCommand(t, "--management", startFeed(t, smallSet), "--admin", a.address)
	if err != nil || stderr != "" {
		t.Errorf("error %v, stderr %q", err, stderr)
	}
	want := fmt.Sprintf("fetched     2 domains in %d bytes, revision 7\nadded       2\nchanged     3\nremoved     4\nunchanged   5\nrejected    0\n", len(smallSet))
	if stdout != want {
		t.Errorf("stdout is\n%s want\n%s", stdout, want)
	}
	p := a.taken(t)
	if p.Method != http.MethodPut || p.URL.Path != "/pqproxy/domains" || p.URL.RawQuery != "" || p.Host != a.address ||
		p.Header.Get("Origin") != "http://"+a.address || p.Header.Get("Content-Type") != "application/json" ||
		p.ContentLength != int64(len(smallSet)) || string(p.body) != smallSet {
		t.Errorf("put %s %s, host %s, %d bytes, %v: %s", p.Method, p.URL, p.Host, p.ContentLength, p.Header, p.body)
	}
	a.idle(t)
}

// TestSyncCommandEdge puts sets to a real edge, which serves what it says.
func TestSyncCommandEdge(t *testing.T) {
	e := startAdminEdge(t, "limits {\n grace_period 50ms\n}\n"+loopbackAllowed)
	m := &managed{edge: e, plane: startPlane(t), up: pqtest.StartUpstream(t, pqtest.UpstreamConfig{})}
	sync := func(records ...string) (stdout string, err error) {
		t.Helper()
		m.plane.set(`{"domains":[` + strings.Join(records, ",") + `]}`)
		stdout, _, err = runSyncCommand(t, "--management", m.plane.URL, "--admin", e.expand("unix/$DIR/admin.sock"), "--json")
		return stdout, err
	}
	expect := func(stdout string, want outcome) {
		t.Helper()
		var done outcome
		if err := json.Unmarshal([]byte(stdout), &done); err != nil {
			t.Fatalf("%v in %q", err, stdout)
		}
		if len(done.Rejects) != len(want.Rejects) || len(done.Rejects) > 0 && done.Rejects[0].Name != want.Rejects[0].Name {
			t.Errorf("rejected: %+v", done.Rejects)
		}
		done.Rejects, want.Rejects = nil, nil
		if fmt.Sprint(done) != fmt.Sprint(want) {
			t.Errorf("the outcome is %+v, want %+v", done, want)
		}
	}

	a, b := m.record("a.example.com"), m.record("b.example.com")
	stdout, err := sync(a, b)
	if err != nil {
		t.Fatal(err)
	}
	expect(stdout, outcome{Added: 2})
	echo(t, e.dial(e.client("a.example.com")), "through a domain that sync has brought")

	stdout, err = sync(a, m.record("c.example.com", "upstreams", `[{"dial": "169.254.169.254:80"}]`))
	if !errors.Is(err, errRejected) {
		t.Errorf("error %v, want %v", err, errRejected)
	}
	expect(stdout, outcome{Unchanged: 1, Removed: 1, Rejected: 1, Rejects: []refusal{{Name: "c.example.com"}}})
	if _, err := e.handshake(e.client("b.example.com")); err == nil {
		t.Error("a domain that the set no longer lists is served")
	}
	echo(t, e.dial(e.client("a.example.com")), "still there")
}

func TestSyncCommandUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "pq") // t.TempDir's may be longer than a socket's path can be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "admin.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	a := serveAdmin(t, listener, "unix/"+socket, answerWith(http.StatusOK, someOutcome))
	for _, address := range []string{a.address, a.address + "|0220"} {
		if _, stderr, err := runSyncCommand(t, "--management", startFeed(t, smallSet), "--admin", address); err != nil {
			t.Errorf("%s: error %v, stderr %q", address, err, stderr)
			continue
		}
		if p := a.taken(t); p.Host != "127.0.0.1" || p.Header["Origin"] != nil || string(p.body) != smallSet {
			t.Errorf("%s: host %q, %v: %s", address, p.Host, p.Header, p.body)
		}
	}
}

// TestSyncCommandDefaultAddress: as with Caddy's own commands.
func TestSyncCommandDefaultAddress(t *testing.T) {
	a := startAdmin(t, answerWith(http.StatusOK, someOutcome))
	was := caddy.DefaultAdminListen // Caddy sets it from CADDY_ADMIN when it starts
	t.Cleanup(func() { caddy.DefaultAdminListen = was })
	caddy.DefaultAdminListen = a.address
	if _, _, err := runSyncCommand(t, "--management", startFeed(t, smallSet)); err != nil {
		t.Fatal(err)
	}
	a.taken(t)
}

func TestSyncCommandRejected(t *testing.T) {
	const rejected = `{"added": 1, "changed": 0, "removed": 0, "unchanged": 0, "rejected": 2, "later": {"added": 9}, "rejections": [
		{"name": "b.example.com", "field": "upstreams[0].dial", "detail": "is loopback\u001b[2J\nadded 7"}, {"detail": "no name"}]}`
	a := startAdmin(t, answerWith(http.StatusOK, rejected))
	url := startFeed(t, smallSet)
	stdout, stderr, err := runSyncCommand(t, "--management", url, "--admin", a.address)
	if !errors.Is(err, errRejected) || stderr != "" {
		t.Errorf("error %v, stderr %q", err, stderr)
	}
	for _, want := range []string{"added       1\n", "rejected    2\n", `  domain "b.example.com": upstreams[0].dial: is loopback?[2J?added 7` + "\n", "  domain: no name\n"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("stdout lacks %q:\n%s", want, stdout)
		}
	}

	stdout, stderr, err = runSyncCommand(t, "--management", url, "--admin", a.address, "--json")
	if !errors.Is(err, errRejected) || stderr != "" {
		t.Errorf("--json: error %v, stderr %q", err, stderr)
	}
	var done outcome
	if err := json.Unmarshal([]byte(stdout), &done); err != nil || done.Added != 1 || done.Rejected != 2 || len(done.Rejects) != 2 ||
		done.Rejects[0].Name != "b.example.com" || done.Rejects[0].Field != "upstreams[0].dial" {
		t.Errorf("--json: %v, %+v in\n%s", err, done, stdout)
	}
}

// TestSyncCommandRefusesSets: a set that is at fault as a whole is not put.
func TestSyncCommandRefusesSets(t *testing.T) {
	_, public := keygen(t)
	a := startAdmin(t, answerWith(http.StatusOK, someOutcome))
	for _, test := range []struct {
		name, set string
		args      []string
		want      string // in stderr; empty: it is put
	}{
		{"HTML", "<html>", nil, "a set is a JSON object"},
		{"nothing", "", nil, "ends early"},
		{"truncated", smallSet[:len(smallSet)-4], nil, "ends early"},
		{"duplicate member", `{"domains": [], "domains": []}`, nil, "domains: is given twice"},
		{"change set", `{"revision": 9, "base": 8, "domains": [], "removed": ["a.example.com"]}`, nil, "a change of revision 8, not with the full set"},
		{"empty", `{"domains": []}`, nil, "give --allow-empty"},
		{"empty and meant so", `{"domains": []}`, []string{"--allow-empty"}, ""},
		{"only bad ones", `{"domains": [{"name": "a.example.com"}]}`, nil, ""}, // their last good versions stay
		{"too large", smallSet, []string{"--max-body", "100"}, "larger than max_body, 100 bytes"},
		{"not signed", smallSet, []string{"--verify-key", public}, "carries no signature"},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := append([]string{"--management", startFeed(t, test.set), "--admin", a.address}, test.args...)
			stdout, stderr, err := runSyncCommand(t, args...)
			if test.want == "" {
				if err != nil {
					t.Errorf("error %v", err)
				}
				a.taken(t)
				return
			}
			if err == nil || stdout != "" || !strings.Contains(stderr, test.want) {
				t.Errorf("error %v, stdout %q, stderr %q, want %q", err, stdout, stderr, test.want)
			}
			a.idle(t)
		})
	}
}

// TestSyncCommandSignedWithoutRevision: without one an old set could be played back.
func TestSyncCommandSignedWithoutRevision(t *testing.T) {
	private, public := keygen(t)
	key, err := feedsig.ReadPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	set := `{"domains": [{"name": "a.example.com", "upstreams": [{"dial": "192.0.2.1:443"}]}]}`
	url := startFeed(t, set, "PQProxy-Signature", key.Sign(sha512.Sum512([]byte(set))))
	a := startAdmin(t, answerWith(http.StatusOK, someOutcome))
	_, stderr, err := runSyncCommand(t, "--management", url, "--admin", a.address, "--verify-key", public)
	if !errors.Is(err, errNoRevision) || !strings.Contains(stderr, "the set is not applied: revision is missing") {
		t.Errorf("error %v, stderr %q", err, stderr)
	}
	a.idle(t)
}

func TestSyncCommandWarns(t *testing.T) {
	a := startAdmin(t, answerWith(http.StatusOK, someOutcome))
	set := strings.Replace(smallSet, "{", `{"remove": [],`, 1)
	_, stderr, err := runSyncCommand(t, "--management", startFeed(t, set), "--admin", a.address)
	if want := "warning: members of the set that are not known here have no effect: remove\n"; err != nil || stderr != want {
		t.Errorf("error %v, stderr %q, want %q", err, stderr, want)
	}
}

// TestSyncCommandToken: the token is sent, from its file or variable, and shows nowhere.
func TestSyncCommandToken(t *testing.T) {
	const secret = "s3cret-token"
	file := filepath.Join(t.TempDir(), "token")
	writeFile(t, file, []byte(secret+"\n"))
	t.Setenv("PQPROXY_TEST_TOKEN", secret)
	a := startAdmin(t, answerWith(http.StatusOK, someOutcome))
	ok := true
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer "+secret:
			t.Errorf("Authorization is %q", r.Header.Get("Authorization"))
		case !ok:
			http.Error(w, "I do not know "+secret, http.StatusUnauthorized)
		default:
			_, _ = io.WriteString(w, smallSet)
		}
	}))
	t.Cleanup(server.Close)
	for _, from := range [][]string{{"--token-file", file}, {"--token-env", "PQPROXY_TEST_TOKEN"}} {
		for _, ok = range []bool{true, false} {
			args := append([]string{"--management", server.URL + "/?q=query-secret", "--admin", a.address}, from...)
			stdout, stderr, err := runSyncCommand(t, args...)
			if (err == nil) != ok {
				t.Errorf("%v: error %v", from, err)
			}
			if all := fmt.Sprint(stdout, stderr, err); strings.Contains(all, secret) || strings.Contains(all, "query-secret") {
				t.Errorf("%v: a secret shows: %s", from, all)
			}
			if ok {
				if p := a.taken(t); p.Header.Get("Authorization") != "" {
					t.Errorf("the admin API was sent %v", p.Header)
				}
			}
		}
	}
	a.idle(t)
}

// TestSyncCommandTLS: a private CA, and a certificate of the client's.
func TestSyncCommandTLS(t *testing.T) {
	ca := pqtest.NewCA(t)
	dir := t.TempDir()
	caFile, cert, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeFile(t, caFile, ca.PEM())
	certPEM, keyPEM := ca.PairPEM(t, "edge.internal")
	writeFile(t, cert, certPEM)
	writeFile(t, key, keyPEM)

	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if names := r.TLS.PeerCertificates[0].DNSNames; len(names) != 1 || names[0] != "edge.internal" {
			t.Errorf("the client is %v", names)
		}
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, smallSet)
		_ = z.Close()
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are part of the test
	server.StartTLS()
	t.Cleanup(server.Close)
	serverCA := filepath.Join(dir, "server.pem")
	writeFile(t, serverCA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))

	a := startAdmin(t, answerWith(http.StatusOK, someOutcome))
	for _, test := range []struct {
		name string
		args []string
		want string // in stderr; empty: it works
	}{
		{"both", []string{"--ca", serverCA, "--cert", cert, "--key", key}, ""},
		{"system roots", []string{"--cert", cert, "--key", key}, "certificate"},
		{"another CA", []string{"--ca", caFile, "--cert", cert, "--key", key}, "certificate"},
		{"no certificate", []string{"--ca", serverCA}, "fetching https://"},
		{"key alone", []string{"--key", key}, "[cert key]"},
		{"no such key", []string{"--cert", cert, "--key", key + "x"}, "--cert, --key: open "},
		{"no pair", []string{"--cert", caFile, "--key", key}, "--cert, --key: tls: private key does not match"},
		{"no CA", []string{"--ca", key}, "--ca: " + key + " holds no PEM certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, stderr, err := runSyncCommand(t, append([]string{"--management", server.URL, "--admin", a.address}, test.args...)...)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if p := a.taken(t); string(p.body) != smallSet {
					t.Errorf("put %q", p.body)
				}
				return
			}
			if err == nil || !strings.Contains(stderr, test.want) {
				t.Errorf("error %v, stderr %q, want %q", err, stderr, test.want)
			}
			a.idle(t)
		})
	}
}

// TestSyncCommandAdminFails: what the admin API says is told, on one line, of bounded length.
func TestSyncCommandAdminFails(t *testing.T) {
	url := startFeed(t, smallSet)
	elsewhere := startAdmin(t, answerWith(http.StatusOK, someOutcome))
	for _, test := range []struct {
		name   string
		answer http.HandlerFunc
		want   string // in stderr
	}{
		{"Caddy's error", answerWith(http.StatusServiceUnavailable, `{"error": "being loaded\u001b; try\nagain"}`), "status 503 Service Unavailable: being loaded?; try?again\n"},
		{"long error", answerWith(http.StatusBadRequest, `{"error": "`+strings.Repeat("é", 5000)+`"}`), "éé…\n"},
		{"no plugin", answerWith(http.StatusNotFound, "404 page not found\n"), `status 404 Not Found; the answer begins "404 page not found"; is it a Caddy with pqproxy?`},
		{"HTML", answerWith(http.StatusOK, "<html>"), "the answer is not an outcome"},
		{"another object", answerWith(http.StatusOK, "{}"), "the answer is not an outcome"},
		{"wrong type", answerWith(http.StatusOK, `{"added": "many"}`), "the answer is not an outcome"},
		{"endless", answerWith(http.StatusOK, `{"added": 1, "x": "`+strings.Repeat("x", maxAdminAnswer)+`"}`), "it has more than 1048576 bytes"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+elsewhere.address+"/pqproxy/domains", http.StatusFound)
		}, "status 302 Found"},
		{"cut", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{"added": 1`)
		}, "they may have been applied or not"},
		{"no answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "they may have been applied or not"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := startAdmin(t, test.answer)
			stdout, stderr, err := runSyncCommand(t, "--management", url, "--admin", a.address)
			if err == nil || stdout != "" || !strings.Contains(stderr, test.want) || !strings.Contains(stderr, "the admin API at "+a.address) {
				t.Errorf("error %v, stdout %q, stderr %q, want %q", err, stdout, stderr, test.want)
			}
			if strings.Count(stderr, "\n") != 1 || len(stderr) > 3000 || strings.Contains(stderr, "\x1b") {
				t.Errorf("stderr is %q", stderr)
			}
		})
	}
	elsewhere.idle(t)
}

func TestSyncCommandNobodyThere(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := listener.Addr().String()
	_ = listener.Close()
	_, stderr, err := runSyncCommand(t, "--management", startFeed(t, smallSet), "--admin", gone)
	if err == nil || !strings.Contains(stderr, "is Caddy running, and is this its admin address?") {
		t.Errorf("admin API: error %v, stderr %q", err, stderr)
	}
	a := startAdmin(t, answerWith(http.StatusOK, someOutcome))
	_, stderr, err = runSyncCommand(t, "--management", "http://"+gone+"/", "--admin", a.address)
	if err == nil || !strings.Contains(stderr, "fetching http://"+gone+"/: ") {
		t.Errorf("management URL: error %v, stderr %q", err, stderr)
	}
	a.idle(t)
}

// TestSyncCommandTimeout has either server never answer.
func TestSyncCommandTimeout(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, and nobody reads
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	a := startAdmin(t, answerWith(http.StatusOK, someOutcome))
	for _, test := range []struct {
		name, management, admin, want string
	}{
		{"management URL", "http://" + silent.Addr().String(), a.address, "fetching http://"},
		{"admin API", startFeed(t, smallSet), silent.Addr().String(), "they may have been applied or not"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, stderr, err := runSyncCommand(t, "--management", test.management, "--admin", test.admin, "--timeout", "300ms")
			if err == nil || !strings.Contains(stderr, "--timeout of 300ms is over: ") || !strings.Contains(stderr, test.want) {
				t.Errorf("error %v, stderr %q, want %q", err, stderr, test.want)
			}
		})
	}
	a.idle(t)
}

func TestSyncCommandUsage(t *testing.T) {
	dir := t.TempDir()
	empty, large := filepath.Join(dir, "empty"), filepath.Join(dir, "large")
	writeFile(t, empty, []byte(" \n"))
	writeFile(t, large, make([]byte, maxToken+1))
	private, _ := keygen(t)
	const url = "http://127.0.0.1:1/"
	for _, test := range []struct {
		name string
		args []string
		want string // in stderr
	}{
		{"no URL", nil, `required flag(s) "management" not set`},
		{"argument", []string{"--management", url, "x"}, "unknown command"},
		{"no web URL", []string{"--management", "file:///domains.json"}, "--management: url: it must begin with https:// or http://"},
		{"password in URL", []string{"--management", "http://u:pass@127.0.0.1/"}, "use the token instead"},
		{"literal token", []string{"--management", url, "--token", "secret"}, "unknown flag: --token"},
		{"token not set", []string{"--management", url, "--token-env", "PQPROXY_TEST_UNSET"}, "--token-env: there is no environment variable of that name"},
		{"token file missing", []string{"--management", url, "--token-file", empty + "x"}, "--token-file: open "},
		{"token file empty", []string{"--management", url, "--token-file", empty}, "is empty"},
		{"token file large", []string{"--management", url, "--token-file", large}, "larger than any token"},
		{"two tokens", []string{"--management", url, "--token-file", empty, "--token-env", "HOME"}, "[token-env token-file]"},
		{"private key", []string{"--management", url, "--verify-key", private}, "--verify-key: " + private},
		{"timeout", []string{"--management", url, "--timeout", "0s"}, "--timeout 0s: must be more than 0"},
		{"max-body", []string{"--management", url, "--max-body", "0"}, "--max-body 0: must be more than 0"},
		{"admin URL", []string{"--management", url, "--admin", "http://localhost:2019"}, "is a URL; write HOST:PORT or unix//PATH"},
		{"admin without port", []string{"--management", url, "--admin", "localhost"}, "does not name one port"},
		{"admin ports", []string{"--management", url, "--admin", "localhost:2019-2020"}, "does not name one port"},
		{"admin port", []string{"--management", url, "--admin", "localhost:port"}, "--admin: "},
		{"admin socket", []string{"--management", url, "--admin", "unix/"}, "names no socket"},
		{"admin descriptor", []string{"--management", url, "--admin", "fd/3"}, "not a network to connect to"},
		{"admin UDP", []string{"--management", url, "--admin", "udp/localhost:2019"}, "not a network to connect to"},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, err := runSyncCommand(t, test.args...)
			if err == nil || stdout != "" || !strings.Contains(stderr, test.want) {
				t.Errorf("error %v, stdout %q, stderr %q, want %q", err, stdout, stderr, test.want)
			}
			for _, secret := range []string{"PQPROXY_TEST_UNSET", "pass@"} {
				if strings.Contains(stderr, secret) {
					t.Errorf("stderr repeats what may be a secret: %q", stderr)
				}
			}
		})
	}
}

func TestSyncCommandHelp(t *testing.T) {
	stdout, _, err := runSyncCommand(t, "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"THE SET REPLACES ALL DOMAINS THAT THE\nADMIN API HAS SET BEFORE", "The exit status is 0 if", "CADDY_ADMIN",
		"$ " + os.Args[0] + " pqproxy sync --management",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("help lacks %q:\n%s", want, stdout)
		}
	}
}

// FuzzReadOutcome: whatever answers, nothing panics, and an error is one printable line.
func FuzzReadOutcome(f *testing.F) {
	f.Add(200, []byte(someOutcome))
	f.Add(200, []byte(`{"added": 1, "rejected": 1, "rejections": [{"name": "a", "detail": "b\u001b"}]}`))
	f.Add(200, []byte(`{"added": null, "Added": 1}`))
	f.Add(404, []byte("404 page not found\n"))
	f.Add(400, []byte("{\"error\": \"\xff\x1b\"}"))
	f.Fuzz(func(t *testing.T, status int, text []byte) {
		if _, err := readOutcome(text); err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q", err)
		}
		said := adminRefusal(status, text).Error()
		if len(said) > 8200 || strings.ContainsFunc(said, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q", said)
		}
	})
}
