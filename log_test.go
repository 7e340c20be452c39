package pqproxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/uuid"
	proxyproto "github.com/pires/go-proxyproto"

	"github.com/pqproxy/caddy-pqproxy/internal/id"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// recordFields are the fields of the record of a connection that went all the way, in the words of the
// contract that users rely on; `error` is there if it has something to say.
const recordFields = `id server_name domain tenant source client_ip client_port tls_version cipher_suite group
	post_quantum offered_post_quantum hello_retry resumed alpn upstream upstream_group upstream_post_quantum
	upstream_resumed proxy_protocol hello_wait handshake upstream_connect upstream_handshake first_byte duration
	bytes_in bytes_out closed_by end_reason`

// fieldsOf returns the keys of a line that are not of every line of Caddy's log, sorted.
func fieldsOf(l logLine) []string {
	var keys []string
	for key := range l {
		if !slices.Contains([]string{"level", "ts", "logger", "msg"}, key) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// TestRecord compares all of a record with what client and upstream know of the connection.
func TestRecord(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{
		Proxy: true,
		TLS: &tls.Config{
			Certificates: []tls.Certificate{e.ca.Issue(t, "app.internal")},
			NextProtos:   []string{"imap"},
		},
	})
	e.load(fmt.Sprintf(`
		domain *.wild.example.com {
			tenant acme
			upstream %s {
				tls_server_name app.internal
				tls_ca $CA
			}
			alpn imap
			proxy_protocol v2
			certificate $CHAIN $KEY
		}`, up.Addr()))
	begun := time.Now()
	c := e.dial(e.client("x.wild.example.com", func(cfg *tls.Config) {
		cfg.NextProtos = []string{"imap"}
		cfg.CurvePreferences = []tls.CurveID{tls.SecP384r1MLKEM1024}
	}))
	echo(t, c, "to and fro")
	c.Close()
	r := e.log.nextRecord()
	took := time.Since(begun).Seconds()
	client, server := c.ConnectionState(), up.Next(t)

	want := strings.Fields(recordFields)
	slices.Sort(want)
	if got := fieldsOf(r); !slices.Equal(got, want) {
		t.Errorf("the fields are\n%q, want\n%q", got, want)
	}
	for key, want := range map[string]any{
		"level": "info", "logger": "pqproxy.log.access", "msg": "connection",
		"server_name": "x.wild.example.com", "domain": "*.wild.example.com", "tenant": "acme", "source": "static",
		"client_ip": "127.0.0.1", "client_port": float64(c.LocalAddr().(*net.TCPAddr).Port),
		"tls_version": "TLS 1.3", "cipher_suite": tls.CipherSuiteName(client.CipherSuite),
		"group": "SecP384r1MLKEM1024", "post_quantum": true, "offered_post_quantum": true,
		"hello_retry": client.HelloRetryRequest, "resumed": false, "alpn": "imap",
		"upstream": up.Addr(), "upstream_group": server.State.CurveID.String(), "upstream_post_quantum": true, "upstream_resumed": false,
		"proxy_protocol": "v2", "bytes_in": 10.0, "bytes_out": 10.0, "closed_by": "client", "end_reason": "done",
	} {
		if r[key] != want {
			t.Errorf("%s is %v, want %v", key, r[key], want)
		}
	}
	for _, key := range []string{"hello_wait", "handshake", "upstream_connect", "upstream_handshake", "first_byte", "duration"} {
		if seconds, ok := r[key].(float64); !ok || seconds <= 0 || seconds > took {
			t.Errorf("%s is %v, of %v seconds in all", key, r[key], took)
		}
	}
	if r.num("hello_wait")+r.num("handshake")+r.num("first_byte") > r.num("duration") {
		t.Errorf("the parts are longer than the whole: %v", r)
	}

	tlvs, err := server.Header.TLVs()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(tlvs, func(tlv proxyproto.TLV) bool { return tlv.Type == proxyproto.PP2_TYPE_UNIQUE_ID })
	if i < 0 || string(tlvs[i].Value) != r.str("id") {
		t.Errorf("the upstream was told the ID in %+v, the record has %q", tlvs, r.str("id"))
	}
	id := decodeID(t, r.str("id"))
	if sec, nsec := id.Time().UnixTime(); id.Version() != 7 || time.Unix(sec, nsec).Before(begun.Truncate(time.Millisecond)) ||
		time.Unix(sec, nsec).After(time.Now()) {
		t.Errorf("the ID is %s, made at %s; the connection was made after %s", id, time.Unix(sec, nsec), begun)
	}
}

// TestRecordOfLittle looks at the records of connections that did not get far: there are only fields that say
// something, and who sent nothing is at level debug.
func TestRecordOfLittle(t *testing.T) {
	pqtest.Leaks(t)
	const always = "hello_wait handshake upstream_connect upstream_handshake first_byte duration bytes_in bytes_out closed_by end_reason id client_ip client_port"
	const routed = always + " server_name domain tenant source offered_post_quantum proxy_protocol"
	e := startEdge(t, "")
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	e.load(fmt.Sprintf("domain app.example.com {\nupstream %s\ncertificate $CHAIN $KEY\n}\n"+
		"domain b.example.com {\nupstream %[1]s\ncertificate $CHAIN $KEY\nsuspended\n}", closed.Addr()))
	shake := func(cfg *tls.Config) func() {
		return func() { _, _ = e.handshake(cfg) }
	}
	for _, test := range []struct {
		reason endReason
		level  string
		fields string
		do     func()
	}{
		{reasonNoHello, "debug", always, func() { e.dialTCP().Close() }},
		{reasonNotTLS, "info", always + " error", func() { fmt.Fprint(e.dialTCP(), "GET / HTTP/1.1\r\n\r\n") }},
		{reasonNoSNI, "info", always, shake(&tls.Config{InsecureSkipVerify: true})},
		{reasonUnknownDomain, "info", always + " server_name offered_post_quantum", shake(e.client("other.example.com"))},
		{reasonSuspended, "info", routed, shake(e.client("b.example.com"))},
		{reasonRefused, "info", routed + " upstream error tls_version cipher_suite group post_quantum hello_retry resumed alpn",
			shake(e.client("app.example.com"))},
	} {
		test.do()
		r := e.log.nextRecord()
		want := strings.Fields(test.fields)
		slices.Sort(want)
		if r.str("end_reason") != string(test.reason) || r.str("level") != test.level || !slices.Equal(fieldsOf(r), want) {
			t.Errorf("%s: level %s, fields\n%q, want\n%q\nin %v", test.reason, r.str("level"), fieldsOf(r), want, r)
		}
		decodeID(t, r.str("id"))
	}
}

// TestOverLimitRecord has a connection closed when accepted, which leaves a record all the same.
func TestOverLimitRecord(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "limits {\nmax_connections 1\n}")
	first := e.dialTCP()
	pqtest.Wait(t, "the first connection", func() bool { return admission.open.Load() == 1 })
	second := e.dialTCP()
	if n, err := second.Read(make([]byte, 1)); err == nil {
		t.Errorf("the second connection was sent %d bytes", n)
	}
	if r := e.log.nextRecord(); r.str("end_reason") != "over_limit" || r.str("closed_by") != "edge" || r.str("level") != "debug" ||
		r.num("client_port") != float64(second.LocalAddr().(*net.TCPAddr).Port) {
		t.Errorf("the record is %v", r)
	}
	first.Close()
	e.log.recordWhere("end_reason", "no_hello")
}

// decodeID reads an ID as its readers may: 26 characters of Crockford's base32 are 130 bits, a UUID behind two zero bits.
func decodeID(t *testing.T, text string) uuid.UUID {
	t.Helper()
	if len(text) != 26 || text != strings.ToLower(text) {
		t.Fatalf("the ID %q is not 26 lower-case characters", text)
	}
	var high, low uint64
	for _, c := range text {
		digit := strings.IndexRune("0123456789abcdefghjkmnpqrstvwxyz", c)
		if digit < 0 || high>>59 != 0 {
			t.Fatalf("the ID %q is not Crockford's base32 of 128 bits", text)
		}
		high = high<<5 | low>>59
		low = low<<5 | uint64(digit)
	}
	var id uuid.UUID
	for i := range 8 {
		id[i], id[8+i] = byte(high>>(56-8*i)), byte(low>>(56-8*i))
	}
	if id.Variant() != uuid.RFC4122 {
		t.Errorf("the ID %s is of variant %s", id, id.Variant())
	}
	return id
}

func TestConnID(t *testing.T) {
	for text, want := range map[string]string{
		"00000000-0000-0000-0000-000000000000": "00000000000000000000000000",
		"ffffffff-ffff-ffff-ffff-ffffffffffff": "7zzzzzzzzzzzzzzzzzzzzzzzzz",
		"00000000-0000-0000-0000-000000000020": "00000000000000000000000010",
		// The example of RFC 9562, appendix A.6.
		"017f22e2-79b0-7cc3-98c4-dc0c0c07398f": "01fwhe4ydgfk1shh6w1g60eecf",
	} {
		if got := id.ID(uuid.MustParse(text)).String(); got != want {
			t.Errorf("%s is written %s, want %s", text, got, want)
		}
	}
	before := ""
	for range 10_000 {
		made := id.New()
		text := made.String()
		if text <= before {
			t.Fatalf("%s was made after %s and sorts before it", text, before)
		}
		if decoded := decodeID(t, text); decoded != uuid.UUID(made) || decoded.Version() != 7 {
			t.Fatalf("%s decodes to %s, want %s", text, decoded, uuid.UUID(made))
		}
		before = text
	}
}

// TestSecrets looks for a private key, given in each way that a config can give one, in all that the proxy
// shows: log, metrics, the config that Caddy's admin API serves, and errors about the key itself.
func TestSecrets(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	var keys []string // lines of base64 in PEM
	pair := func(name string, hosts ...string) (chain, key string) {
		c, k := e.ca.PairPEM(t, hosts...)
		keys = append(keys, keyLines(k)...)
		chain, key = e.dir+"/"+name+".pem", e.dir+"/"+name+".key"
		writeFile(t, chain, c)
		writeFile(t, key, k)
		return chain, key
	}
	byFile, byFileKey := pair("file", "app.example.com")
	byText, byTextKey := pair("text", "b.example.com")
	_, strange := pair("strange", "app.example.com")
	broken := e.dir + "/broken.key"
	writeFile(t, broken, []byte("-----BEGIN PRIVATE KEY-----\n"+keys[0]+"\n-----END PRIVATE KEY-----\n"))
	bare := e.dir + "/bare.key"
	writeFile(t, bare, []byte(strings.Join(keyLines([]byte(read(t, byFileKey))), "\n")))

	admin := e.adminSocket()
	config := func(chain, key string) []byte {
		domain := fmt.Sprintf("domain app.example.com {\nupstream %s\ncertificate %s %s\n}", up.Addr(), chain, key)
		return e.adapt("admin unix/" + admin + "\n" + frontDoor + "\npqproxy {\n" + domain + "\n}")
	}
	var shown []string
	show := func(text string) { shown = append(shown, text) }
	for name, wrong := range map[string][2]string{
		"the key of another certificate": {byFile, strange},
		"a broken key":                   {byFile, broken},
		"a key without armour":           {byFile, bare},
		"key and chain exchanged":        {byFileKey, byFile},
		"the key as chain":               {byFileKey, byFileKey},
	} {
		if err := caddy.Load(config(wrong[0], wrong[1]), true); err == nil {
			t.Errorf("%s was accepted", name)
		} else {
			show(err.Error())
		}
	}

	withText := addDomain(t, config(byFile, byFileKey), map[string]any{
		"name": "b.example.com", "upstreams": []any{map[string]any{"dial": up.Addr()}},
		"certificate": map[string]any{"source": "byoc", "chain_pem": "{file." + byText + "}", "key_pem": "{file." + byTextKey + "}"},
	})
	if err := caddy.Load(withText, true); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"app.example.com", "b.example.com"} {
		if err := visit(e.addr, e.client(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		e.log.nextRecord()
	}
	for _, path := range []string{"/config/", "/metrics"} {
		text := getAdmin(t, admin, path)
		if len(text) < 100 {
			t.Errorf("%s is only %q", path, text)
		}
		show(text)
	}
	show(e.log.text())
	for _, text := range shown {
		for _, line := range keys {
			if strings.Contains(text, line) {
				t.Errorf("a private key is shown in\n%s", text)
			}
		}
	}
}

// keyLines are the lines of a key in PEM that are its own: the first is the algorithm, alike for all.
func keyLines(key []byte) []string {
	lines := strings.Split(strings.TrimSpace(string(key)), "\n")
	return lines[2 : len(lines)-1]
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// adminSocket returns a path for Caddy's admin endpoint, which is closed when the test ends. It is not in the
// test's folder, whose name may be longer than a socket's may be.
func (e *edge) adminSocket() string {
	e.t.Helper()
	dir, err := os.MkdirTemp("", "pqproxy")
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		e.loadOptions("admin off") // caddy.Stop leaves the endpoint open
		os.RemoveAll(dir)
	})
	return dir + "/admin"
}

// getAdmin fetches a path of Caddy's admin endpoint.
func getAdmin(t *testing.T, socket, path string) string {
	t.Helper()
	transport := &http.Transport{
		DisableKeepAlives: true, // Caddy waits for open ones when it closes the endpoint
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://admin" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v\n%s", path, resp.Status, err, body)
	}
	return string(body)
}
