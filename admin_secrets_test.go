package pqproxy

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// secretsOf returns the parts of the text of a P-256 key in PKCS #8 that have the key alone: 12 and 18 of its 32 bytes. What
// is behind them is the public key, which certificates show too.
func secretsOf(key string) []string {
	lines := strings.Split(key, "\n")
	return []string{lines[1][48:], lines[2][:24]}
}

// TestAdminNoSecrets looks for keys and tokens in every answer, error, and line of the log, with records that are good
// and with such that have their key in a wrong place.
func TestAdminNoSecrets(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	const token = "s3cret-marker-token"
	t.Setenv("PQPROXY_TEST_TOKEN", token)
	secrets := []string{token}
	p := startPlane(t)
	e := startAdminEdge(t, adminOption)
	key := "" // of the last record, as JSON
	record := func(name string) string {
		t.Helper()
		text := e.record(name, "127.0.0.1:9")
		d := new(domain.Domain)
		if err := json.Unmarshal([]byte(text), d); err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, secretsOf(d.Certificate.KeyPEM)...)
		encoded, err := json.Marshal(d.Certificate.KeyPEM)
		if err != nil {
			t.Fatal(err)
		}
		key = string(encoded)
		return text
	}
	p.set(`{"revision":1,"domains":[` + record("remote.example.com") + "," + record("app.example.com") + "]}")
	e.load(fmt.Sprintf("management %s/feed {\n interval 1h\n token {env.PQPROXY_TEST_TOKEN}\n}\n", p.URL) + adminOption +
		"domain app.example.com {\n upstream 127.0.0.1:9 {\n tls_ca $CA\n tls_server_name up\n}\n certificate $CHAIN $KEY\n}\n" +
		"domain internal.example.com {\n upstream 127.0.0.1:9\n certificate internal\n}\n")
	static, err := os.ReadFile(e.dir + "/key.pem")
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, secretsOf(string(static))...)

	api := e.api()
	api.want(200, "POST", "/sync", "")
	for _, name := range []string{"remote.example.com", "app.example.com", "a.example.com"} {
		api.want(201, "PUT", "/domains/"+name, record(name))
	}
	good := record("a.example.com")
	api.want(200, "PUT", "/domains/a.example.com", good)
	api.want(412, "PUT", "/domains/a.example.com", good, "If-Match", `"x"`)
	for _, change := range [][2]string{
		{"a.example.com", "b.example.com"},
		{"127.0.0.1", "10.0.0.1"},
		{"BEGIN PRIVATE", "BEGIN PUBLIC"},
		{"PRIVATE KEY-----", "PRIVATE KEY----"},
		{`"key_pem":`, `"key":`},
		{`"key_pem":`, `"chain_file":`},
		{`"chain_pem":`, `"fallback":`},
		{`"byoc"`, `"acme"`},
		{`"byoc"`, key},
		{`"byoc"`, ""},
		{`"a.example.com"`, key},
		{`"127.0.0.1:9"`, key},
		{`"name"`, `"tenant":` + key + `,"name"`},
		{`"name"`, `"post_quantum":` + key + `,"name"`},
		{`"name"`, key + `:1,"name"`},
		{"{", key + "{"},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("there is no %s", change[0])
		}
		api.want(400, "PUT", "/domains/a.example.com", bad)
		for _, set := range []string{`{"domains":[` + bad + `]}`, `{"domains":[],"removed":[` + key + `]}`, `{` + key + `:1,"removed":[]}`} {
			if reply, err := api.do("PATCH", "/domains", set); err != nil || reply.status >= 500 {
				t.Errorf("PATCH: %+v, %v", reply, err)
			}
		}
	}
	for _, path := range []string{
		"/domains", "/domains?limit=1", "/status", "/connections", "/certificates", "/certificates?expiring_within=9000d",
		"/domains/a.example.com", "/domains/internal.example.com", "/domains/remote.example.com", "/domains/app.example.com",
	} {
		api.want(200, "GET", path, "")
	}

	shown, _ := api.get("app.example.com")
	if shown.Source != "static" || !slices.Equal(shown.Shadows, []string{"admin", "remote"}) || len(shown.Shadowed) != 2 {
		t.Errorf("the static domain is shown as %+v", shown)
	}
	body, _, _ := strings.Cut(api.want(200, "GET", "/domains/app.example.com", "").body, `"shadowed"`)
	for _, file := range []string{"chain_file", "key_file", "ca_file"} {
		if !strings.Contains(body, `"`+file+`":"`+e.dir) {
			t.Errorf("%s is not shown: %s", file, body)
		}
	}
	if strings.Contains(body, "BEGIN") {
		t.Errorf("what is in the files is shown: %s", body)
	}

	if len(secrets) < 13 {
		t.Fatalf("there are only %d secrets to look for", len(secrets))
	}
	for where, text := range map[string]string{"an answer": api.said.String(), "the log": e.log.text()} {
		for _, secret := range secrets {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s has the secret %s: %s", where, secret, text[max(0, i-300):i])
			}
		}
	}
}
