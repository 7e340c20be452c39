package module

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
)

// secretValue is what no error may show.
const secretValue = "hunter2-hunter2"

// resolved resolves an App with a data directory of the test's own.
func resolved(t *testing.T, a *App) (settings, error) {
	t.Helper()
	return a.resolve(caddy.NewReplacer())
}

func TestDefaults(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", dir)
	s, err := resolved(t, new(App))
	if err != nil {
		t.Fatal(err)
	}
	if s.driver != store.SQLite || s.source != filepath.Join(dir, "caddy", "pqproxy", "management.db") || s.directory != filepath.Join(dir, "caddy", "pqproxy") {
		t.Errorf("the database is %s %s, keys are in %s", s.driver, s.source, s.directory)
	}
	if s.rateLimit != 20 || s.setupToken != "" || s.masterKeys != nil || s.signingKey != "" || s.resolvers != nil || s.smtp != nil {
		t.Errorf("the settings are %+v", s)
	}
	if p := s.plane; p.PublicURL != nil || p.Targets != nil || p.CertificateSources != nil || p.SignupOpen || p.ClientIP != management.ClientIPFull ||
		p.Retention != (management.Retention{}) || p.UpstreamPolicy == nil || p.SetupToken != "" {
		t.Errorf("the plane's are %+v", p)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("looking at the settings made %s", left[0].Name())
	}
}

// TestSettings resolves every option as it is to be written.
func TestSettings(t *testing.T) {
	dir := t.TempDir()
	key := vault.NewKey()
	t.Setenv("TEST_MASTER_KEY", key.Reveal())
	t.Setenv("TEST_TOKEN", " a token\n")
	t.Setenv("TEST_PASSWORD", "p@ss:w/o rd?#%&+é")
	t.Setenv("TEST_HOST", "db.internal:5433")
	t.Setenv("TEST_URL", "postgres://u:p%40ss@db.internal/pqproxy?sslmode=require")
	t.Setenv("TEST_DIR", dir)
	file := filepath.Join(dir, "secret")
	if err := os.WriteFile(file, []byte(secretValue+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rate := 0
	for _, c := range []struct {
		name string
		app  App
		ok   func(settings) bool
	}{
		{"sqlite", App{Database: Database{Driver: "sqlite", Source: "{env.TEST_DIR}/m.db"}}, func(s settings) bool { return s.source == dir+"/m.db" }},
		{"postgres with a password that has everything",
			App{Database: Database{"postgres", "postgres://pq proxy:{env.TEST_PASSWORD}@{env.TEST_HOST}/pqproxy?sslmode=disable"}, MasterKeys: []string{"{env.TEST_MASTER_KEY}"}},
			nil},
		{"postgres", App{Database: Database{"postgres", "postgres://pqproxy:{env.TEST_PASSWORD}@{env.TEST_HOST}/pqproxy?sslmode=disable"}, MasterKeys: []string{"{env.TEST_MASTER_KEY}"}},
			func(s settings) bool {
				return s.source == "postgres://pqproxy:p%40ss%3Aw%2Fo%20rd%3F%23%25%26%2B%C3%A9@db.internal:5433/pqproxy?sslmode=disable"
			}},
		{"postgres by file", App{Database: Database{"postgres", "postgresql://pqproxy:{file." + file + "}@db/x"}, MasterKeys: []string{"{env.TEST_MASTER_KEY}"}},
			func(s settings) bool { return s.source == "postgresql://pqproxy:"+secretValue+"@db/x" }},
		{"postgres with the password behind", App{Database: Database{"postgres", "postgres://db/x?user=u&password={env.TEST_PASSWORD}"}, MasterKeys: []string{"{env.TEST_MASTER_KEY}"}},
			func(s settings) bool {
				return s.source == "postgres://db/x?user=u&password=p%40ss%3Aw%2Fo%20rd%3F%23%25%26%2B%C3%A9"
			}},
		{"postgres as one placeholder", App{Database: Database{"postgres", "{env.TEST_URL}"}, MasterKeys: []string{"{env.TEST_MASTER_KEY}"}},
			func(s settings) bool {
				return s.driver == store.Postgres && s.source == "postgres://u:p%40ss@db.internal/pqproxy?sslmode=require"
			}},
		{"public_url", App{PublicURL: "https://console.example.com:8443/base"}, func(s settings) bool { return s.plane.PublicURL.Port() == "8443" }},
		{"setup_token", App{SetupToken: "{env.TEST_TOKEN}"}, func(s settings) bool { return s.setupToken == "a token" }},
		{"setup_token by file", App{SetupToken: "{file." + file + "}"}, func(s settings) bool { return s.setupToken == secretValue }},
		{"master_key", App{MasterKeys: []string{"{env.TEST_MASTER_KEY}"}}, func(s settings) bool {
			v, err := s.vault()
			return err == nil && slices.Equal(v.KeyIDs(), []vault.KeyID{key.ID()})
		}},
		{"signing_key", App{SigningKey: "{env.TEST_DIR}/feed.key"}, func(s settings) bool { return s.signingKey == dir+"/feed.key" }},
		{"target", App{Targets: []Target{{"a", "203.0.113.10"}, {"aaaa", "2001:DB8::1"}, {"cname", "Edge.Example.com."}}}, func(s settings) bool {
			return slices.Equal(s.plane.Targets, []management.Target{{Type: "a", Value: "203.0.113.10"}, {Type: "aaaa", Value: "2001:db8::1"}, {Type: "cname", Value: "edge.example.com"}})
		}},
		{"resolver", App{Resolvers: []string{"192.0.2.53", "192.0.2.53:5353", "2001:db8::53", "[2001:db8::53]:5353"}}, func(s settings) bool {
			return slices.Equal(s.resolvers, []string{"192.0.2.53:53", "192.0.2.53:5353", "[2001:db8::53]:53", "[2001:db8::53]:5353"})
		}},
		{"certificate_sources", App{CertificateSources: []string{"internal", "byoc"}}, func(s settings) bool {
			return slices.Equal(s.plane.CertificateSources, []domain.CertificateSource{domain.Internal, domain.BYOC})
		}},
		{"signup", App{Signup: "open"}, func(s settings) bool { return s.plane.SignupOpen }},
		{"smtp", App{SMTP: &SMTP{Address: "mail.example.com:587", From: "pqproxy <no-reply@example.com>", Username: "u", Password: "{env.TEST_PASSWORD}"}}, func(s settings) bool {
			return s.smtp.Password == "p@ss:w/o rd?#%&+é" && s.smtp.Username == "u"
		}},
		{"retention", App{Retention: Retention{Connections: caddy.Duration(time.Hour), Usage: caddy.Duration(2 * time.Hour), Audit: caddy.Duration(3 * time.Hour)}}, func(s settings) bool {
			return s.plane.Retention == management.Retention{Connections: time.Hour, Usage: 2 * time.Hour, Audit: 3 * time.Hour}
		}},
		{"client_ip", App{ClientIP: "prefix"}, func(s settings) bool { return s.plane.ClientIP == management.ClientIPPrefix }},
		{"rate_limit", App{RateLimit: &rate}, func(s settings) bool { return s.rateLimit == 0 }},
		{"upstream_policy", App{UpstreamPolicy: UpstreamPolicy{Allow: []string{"10.0.0.0/8"}}}, func(s settings) bool { return s.plane.UpstreamPolicy != nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := resolved(t, &c.app)
			if c.ok == nil {
				if err == nil {
					t.Error("accepted") // a space is none of a URL's characters
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !c.ok(s) {
				t.Errorf("resolved to %+v", s)
			}
		})
	}
}

// TestSettingsFaults has each fault of each option: the error begins with the option and never shows a secret.
func TestSettingsFaults(t *testing.T) {
	t.Setenv("TEST_SECRET", secretValue)
	t.Setenv("TEST_EMPTY", "")
	t.Setenv("TEST_MASTER_KEY", vault.NewKey().Reveal())
	master := []string{"{env.TEST_MASTER_KEY}"}
	minus, seven := -1, []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7", "192.0.2.8", "192.0.2.9"}
	sent := func(s SMTP) App { return App{SMTP: &s} }
	for _, c := range []struct {
		name string
		app  App
		want string
	}{
		{"database", App{Database: Database{Driver: "mysql"}}, "database is one of sqlite, postgres"},
		{"sqlite placeholder", App{Database: Database{Source: "{env.TEST_EMPTY}"}}, "database has a placeholder that is empty"},
		{"sqlite unknown placeholder", App{Database: Database{Source: "{nothing.x}"}}, "database has a placeholder that is empty or unknown"},
		{"postgres without a URL", App{Database: Database{Driver: "postgres"}, MasterKeys: master}, "database postgres needs a URL"},
		{"postgres without a master key", App{Database: Database{"postgres", "postgres://db/x"}}, "master_key is required with postgres"},
		{"postgres by another scheme", App{Database: Database{"postgres", "mysql://u:{env.TEST_SECRET}@db/x"}, MasterKeys: master}, "database postgres needs a URL"},
		{"postgres that cannot be read", App{Database: Database{"postgres", "postgres://u:{env.TEST_SECRET}@db:port/x"}, MasterKeys: master}, "database postgres needs a URL"},
		{"postgres with a password", App{Database: Database{"postgres", "postgres://u:" + secretValue + "@db/x"}, MasterKeys: master}, "database has a password"},
		{"postgres with half a password", App{Database: Database{"postgres", "postgres://u:" + secretValue + "{env.TEST_SECRET}@db/x"}, MasterKeys: master}, "database has a password"},
		{"postgres with a password behind", App{Database: Database{"postgres", "postgres://db/x?password=" + secretValue}, MasterKeys: master}, "database has a password"},
		{"postgres with a key's password", App{Database: Database{"postgres", "postgres://db/x?sslpassword=" + secretValue}, MasterKeys: master}, "database has a password"},
		{"postgres with an empty placeholder", App{Database: Database{"postgres", "postgres://u:{env.TEST_EMPTY}@db/x"}, MasterKeys: master}, "database has a placeholder that is empty"},
		{"postgres with an unknown placeholder", App{Database: Database{"postgres", "postgres://u:{nothing.x}@db/x"}, MasterKeys: master}, "database has a placeholder that is empty or unknown"},
		{"public_url without a scheme", App{PublicURL: "console.example.com"}, "public_url is a URL"},
		{"public_url with a query", App{PublicURL: "https://console.example.com/?a"}, "public_url is a URL"},
		{"public_url with a fragment", App{PublicURL: "https://console.example.com/#a"}, "public_url is a URL"},
		{"public_url with a user", App{PublicURL: "https://u:" + secretValue + "@console.example.com/"}, "public_url is a URL"},
		{"public_url that cannot be read", App{PublicURL: "https://u:" + secretValue + "@console.example.com:x/"}, "public_url is a URL"},
		{"public_url of another scheme", App{PublicURL: "ftp://console.example.com/"}, "public_url is a URL"},
		{"setup_token", App{SetupToken: secretValue}, "setup_token is a secret"},
		{"setup_token in part", App{SetupToken: "{env.TEST_SECRET}" + secretValue}, "setup_token is a secret"},
		{"setup_token by another placeholder", App{SetupToken: "{http.request.header.x}"}, "setup_token is a secret"},
		{"setup_token that is not set", App{SetupToken: "{env.TEST_NOTHING}"}, "setup_token is empty"},
		{"setup_token without a file", App{SetupToken: "{file./nowhere/at/all}"}, "setup_token is empty"},
		{"master_key", App{MasterKeys: []string{base64.StdEncoding.EncodeToString([]byte(secretValue))}}, "master_key is a secret"},
		{"the second master_key", App{MasterKeys: []string{master[0], "{env.TEST_EMPTY}"}}, "master_key is empty"},
		{"signing_key", App{SigningKey: "{env.TEST_EMPTY}"}, "signing_key has a placeholder"},
		{"target a", App{Targets: []Target{{"a", "2001:db8::1"}}}, "target a takes an IPv4 address"},
		{"target aaaa", App{Targets: []Target{{"aaaa", "203.0.113.1"}}}, "target aaaa takes an IPv6 address"},
		{"target aaaa mapped", App{Targets: []Target{{"aaaa", "::ffff:203.0.113.1"}}}, "target aaaa takes an IPv6 address"},
		{"target aaaa with a zone", App{Targets: []Target{{"aaaa", "fe80::1%eth0"}}}, "target aaaa takes an IPv6 address"},
		{"target cname", App{Targets: []Target{{"cname", "not a name"}}}, "target cname takes a host name"},
		{"target wildcard", App{Targets: []Target{{"cname", "*.example.com"}}}, "target cname takes a host name"},
		{"target of another type", App{Targets: []Target{{"mx", "example.com"}}}, "target is a, aaaa or cname"},
		{"resolver", App{Resolvers: []string{"dns"}}, "resolver is the address"},
		{"resolver with a word for a port", App{Resolvers: []string{"192.0.2.1:domain"}}, "resolver is the address"},
		{"resolver with no such port", App{Resolvers: []string{"192.0.2.1:65536"}}, "resolver is the address"},
		{"resolvers without end", App{Resolvers: seven}, "resolver: "},
		{"certificate_sources", App{CertificateSources: []string{"file"}}, "certificate_sources is one of"},
		{"certificate_sources twice", App{CertificateSources: []string{"acme", "acme"}}, "certificate_sources names acme twice"},
		{"signup", App{Signup: "maybe"}, "signup is one of"},
		{"client_ip", App{ClientIP: "none"}, "client_ip is one of"},
		{"smtp without a port", sent(SMTP{Address: "mail.example.com", From: "a@example.com"}), "smtp takes host:port"},
		{"smtp with no such port", sent(SMTP{Address: "mail.example.com:smtp", From: "a@example.com"}), "smtp takes host:port"},
		{"smtp without from", sent(SMTP{Address: "mail.example.com:25"}), "smtp from is the address"},
		{"smtp from nowhere", sent(SMTP{Address: "mail.example.com:25", From: "a@[192.0.2.1]"}), "smtp from"},
		{"smtp password", sent(SMTP{Address: "mail.example.com:25", From: "a@example.com", Username: "u", Password: secretValue}), "smtp password is a secret"},
		{"smtp without a password", sent(SMTP{Address: "mail.example.com:25", From: "a@example.com", Username: "u"}), "smtp needs both"},
		{"smtp without a username", sent(SMTP{Address: "mail.example.com:25", From: "a@example.com", Password: "{env.TEST_SECRET}"}), "smtp needs both"},
		{"retention", App{Retention: Retention{Usage: -1}}, "retention usage is negative"},
		{"rate_limit", App{RateLimit: &minus}, "rate_limit is a number"},
		{"upstream_policy", App{UpstreamPolicy: UpstreamPolicy{Allow: []string{"10.0.0.0/33"}}}, "upstream_policy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := resolved(t, &c.app)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("the error is %q, want it to begin with %q", err, c.want)
			}
			if strings.Contains(err.Error(), secretValue) {
				t.Errorf("the error shows the secret: %q", err)
			}
		})
	}

	t.Run("all at once", func(t *testing.T) {
		_, err := resolved(t, &App{Signup: "maybe", ClientIP: "none", RateLimit: &minus, PublicURL: "x", SetupToken: secretValue})
		for _, option := range []string{"signup", "client_ip", "rate_limit", "public_url", "setup_token"} {
			if !strings.Contains(err.Error(), option+" ") {
				t.Errorf("nothing is said of %s: %v", option, err)
			}
		}
	})
}

// TestMasterKeyFaults has faults of keys, which are found where a config is validated.
func TestMasterKeyFaults(t *testing.T) {
	t.Setenv("TEST_MASTER_KEY", vault.NewKey().Reveal())
	t.Setenv("TEST_SECRET", secretValue)
	for name, c := range map[string]struct {
		keys []string
		want string
	}{
		"short": {[]string{"{env.TEST_SECRET}"}, "32 bytes in base64"},
		"twice": {[]string{"{env.TEST_MASTER_KEY}", "{env.TEST_MASTER_KEY}"}, "given twice"},
	} {
		t.Run(name, func(t *testing.T) {
			a := &App{MasterKeys: c.keys}
			var err error
			if a.settings, err = resolved(t, a); err != nil {
				t.Fatal(err)
			}
			err = a.Validate()
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), secretValue) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

// full is an App in which every option is set.
func full() *App {
	rate := 7
	return &App{
		Database: Database{"sqlite", "/tmp/a.db"}, PublicURL: "https://a.example.com", SetupToken: "{env.TEST_A}", MasterKeys: []string{"{env.TEST_A}"},
		SigningKey: "/tmp/a.key", Targets: []Target{{"a", "203.0.113.1"}}, Resolvers: []string{"192.0.2.1"}, CertificateSources: []string{"acme"},
		Signup: "open", SMTP: &SMTP{Address: "a:25", From: "a@example.com", Username: "a", Password: "{env.TEST_A}"},
		Retention: Retention{1, 2, 3}, ClientIP: "prefix", RateLimit: &rate, UpstreamPolicy: UpstreamPolicy{[]string{"10.0.0.0/8"}},
	}
}

// TestFingerprint changes each option in turn: a config that differs in anything is not to run on with the old service, and one
// that does not is. Options that are added are found by reflection.
func TestFingerprint(t *testing.T) {
	t.Setenv("TEST_A", secretValue)
	t.Setenv("TEST_B", secretValue+"2")
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	print := func(a *App) string {
		s, _ := resolved(t, a) // faults do not matter here
		return s.fingerprint
	}
	base := print(full())
	if again := print(full()); again != base {
		t.Error("the same config has another fingerprint")
	}
	if strings.Contains(base, secretValue) {
		t.Error("the fingerprint shows a secret")
	}

	n := 0
	var walk func(path string, get func(*App) reflect.Value)
	check := func(path string, get func(*App) reflect.Value, change func(reflect.Value)) {
		n++
		a := full()
		change(get(a))
		if print(a) == base {
			t.Errorf("a change of %s goes unnoticed", path)
		}
	}
	walk = func(path string, get func(*App) reflect.Value) {
		v := get(full())
		if v.IsZero() {
			t.Errorf("full does not set %s", path)
			return
		}
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				if f := v.Type().Field(i); f.IsExported() {
					walk(path+"."+f.Name, func(a *App) reflect.Value { return get(a).Field(i) })
				}
			}
		case reflect.Pointer:
			check(path, get, func(v reflect.Value) { v.SetZero() })
			walk(path, func(a *App) reflect.Value { return get(a).Elem() })
		case reflect.Slice:
			check(path, get, func(v reflect.Value) { v.SetZero() })
			check(path, get, func(v reflect.Value) { v.Set(reflect.Append(v, v.Index(0))) })
			walk(path+"[0]", func(a *App) reflect.Value { return get(a).Index(0) })
		case reflect.String:
			check(path, get, func(v reflect.Value) {
				if v.String() == "{env.TEST_A}" {
					v.SetString("{env.TEST_B}")
				} else {
					v.SetString(v.String() + "2")
				}
			})
		case reflect.Int, reflect.Int64:
			check(path, get, func(v reflect.Value) { v.SetInt(v.Int() + 1) })
		default:
			t.Errorf("%s is a %s, which this test knows nothing of", path, v.Kind())
		}
	}
	walk("App", func(a *App) reflect.Value { return reflect.ValueOf(a).Elem() })
	if n < 25 {
		t.Errorf("%d options were changed", n)
	}
}

// TestFingerprintPlaceholders changes what stands behind a placeholder of each option that takes one: the text of the config is
// the same then.
func TestFingerprintPlaceholders(t *testing.T) {
	for name, c := range map[string]struct {
		app      App
		from, to string
	}{
		"database sqlite":   {App{Database: Database{Source: "{env.TEST_X}"}}, "/tmp/a", "/tmp/b"},
		"database postgres": {App{Database: Database{"postgres", "postgres://u:{env.TEST_X}@db/x"}}, "a", "b"},
		"public_url":        {App{PublicURL: "{env.TEST_X}"}, "https://a.example.com", "https://b.example.com"},
		"setup_token":       {App{SetupToken: "{env.TEST_X}"}, "a", "b"},
		"master_key":        {App{MasterKeys: []string{"{env.TEST_X}"}}, "a", "b"},
		"signing_key":       {App{SigningKey: "{env.TEST_X}"}, "/a", "/b"},
		"target":            {App{Targets: []Target{{"a", "{env.TEST_X}"}}}, "192.0.2.1", "192.0.2.2"},
		"resolver":          {App{Resolvers: []string{"{env.TEST_X}"}}, "192.0.2.1", "192.0.2.2"},
		"smtp":              {App{SMTP: &SMTP{Address: "{env.TEST_X}", From: "a@example.com"}}, "a:25", "b:25"},
		"smtp from":         {App{SMTP: &SMTP{Address: "a:25", From: "{env.TEST_X}"}}, "a@example.com", "b@example.com"},
		"smtp password":     {App{SMTP: &SMTP{Address: "a:25", From: "a@example.com", Username: "a", Password: "{env.TEST_X}"}}, "a", "b"},
		"upstream_policy":   {App{UpstreamPolicy: UpstreamPolicy{[]string{"{env.TEST_X}"}}}, "10.0.0.0/8", "10.0.0.0/9"},
		"data directory":    {App{}, "a", "b"},
	} {
		t.Run(name, func(t *testing.T) {
			prints := make(map[string]bool)
			for _, value := range []string{c.from, c.from, c.to} {
				t.Setenv("TEST_X", value)
				t.Setenv("XDG_DATA_HOME", "/tmp/"+name)
				if name == "data directory" {
					t.Setenv("XDG_DATA_HOME", "/tmp/"+value)
				}
				s, _ := resolved(t, &c.app)
				prints[s.fingerprint] = true
			}
			if len(prints) != 2 {
				t.Errorf("%d fingerprints of three configs, two of which are the same", len(prints))
			}
		})
	}
}
