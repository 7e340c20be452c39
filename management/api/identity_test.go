package api

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// service is the whole of it behind its public face: real storage, passwords, tokens and limits.
type service struct {
	t    *testing.T
	face http.Handler
}

func newService(t *testing.T) *service {
	t.Helper()
	sealer, err := vault.New(vault.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	plane, err := management.New(management.Config{SetupToken: "the set-up token", SignupOpen: true}, management.Parts{
		Store: storetest.Open(t, store.SQLite), Sealer: sealer, Passwords: auth.NewPasswords(2), Auth: auth.NewPlane("pqproxy", nil),
		Resolver: silence{}, Prober: silence{}, Log: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &service{t, New(plane, Options{Log: quiet}).Public()}
}

// silence finds nothing.
type silence struct{}

func (silence) Look(context.Context, management.Lookup) management.Observation {
	return management.Observation{}
}
func (silence) Prove(context.Context, string, string, string) management.Finding {
	return management.Finding{}
}
func (silence) PublicSuffix(string) bool { return false }
func (silence) Probe(context.Context, *domain.Domain, *netpolicy.Policy) []management.UpstreamProbe {
	return nil
}

// do sends a request with a credential, a key or a session's cookie, and fails unless it is answered with that status.
func (s *service) do(status int, credential, method, path, body string) (map[string]any, *httptest.ResponseRecorder) {
	s.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if strings.HasPrefix(credential, "pqk_") {
		r.Header.Set("Authorization", "Bearer "+credential)
	} else if credential != "" {
		r.AddCookie(&http.Cookie{Name: auth.SessionCookie, Value: credential})
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	w := httptest.NewRecorder()
	s.face.ServeHTTP(w, r)
	if w.Code != status {
		s.t.Fatalf("%s %s: %d, want %d: %s", method, path, w.Code, status, w.Body)
	}
	var document map[string]any
	if w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &document); err != nil {
			s.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
	return document, w
}

func (s *service) setUp() (key string) {
	s.t.Helper()
	made, _ := s.do(201, "", "POST", "/v1/setup",
		`{"setup_token":"the set-up token","email":"root@example.com","password":"correct horse battery","tenant":"First","api_key":true}`)
	return made["api_key"].(map[string]any)["secret"].(string)
}

// signIn returns the cookie's value.
func (s *service) signIn(email, password string) string {
	s.t.Helper()
	_, w := s.do(201, "", "POST", "/v1/sessions", `{"email":"`+email+`","password":"`+password+`"}`)
	return sessionCookieOf(s.t, w).Value
}

func sessionCookieOf(t *testing.T, w *httptest.ResponseRecorder) *http.Cookie {
	t.Helper()
	cookies := w.Result().Cookies()
	if len(cookies) != 1 || cookies[0].Name != auth.SessionCookie || !cookies[0].HttpOnly || !cookies[0].Secure {
		t.Fatal("no cookie of a session, or not a safe one")
	}
	return cookies[0]
}

// TestIdentity is how a service begins, with curl alone.
func TestIdentity(t *testing.T) {
	s := newService(t)
	if state, _ := s.do(200, "", "GET", "/v1/setup", ""); state["required"] != true {
		t.Error(state)
	}
	key := s.setUp()
	s.do(409, "", "POST", "/v1/setup", `{"setup_token":"the set-up token","email":"root@example.com","password":"correct horse battery","tenant":"First"}`)
	if state, _ := s.do(200, "", "GET", "/v1/setup", ""); state["required"] != false {
		t.Error(state)
	}
	me, _ := s.do(200, key, "GET", "/v1/me", "")
	if me["user"] != nil || me["api_key"] == nil || me["role"] != nil || me["platform"] != true || me["tenant"].(map[string]any)["trusted"] != true {
		t.Error(me)
	}

	made, w := s.do(201, key, "POST", "/v1/api_keys", `{"name":"ci","scopes":["domains:read"]}`)
	id, secret := made["id"].(string), made["secret"].(string)
	if w.Header().Get("Location") != "/v1/api_keys/"+id || !strings.HasPrefix(secret, made["prefix"].(string)) {
		t.Error(made)
	}
	_, listed := s.do(200, key, "GET", "/v1/api_keys", "")
	if strings.Contains(listed.Body.String(), secret) || strings.Contains(listed.Body.String(), "hash") {
		t.Error("a list shows a secret")
	}
	s.do(403, secret, "POST", "/v1/api_keys", `{"name":"x","scopes":["*"]}`)
	s.do(200, secret, "GET", "/v1/tenant", "")
	rotated, _ := s.do(200, key, "POST", "/v1/api_keys/"+id+"/rotate", "")
	s.do(401, secret, "GET", "/v1/tenant", "")
	s.do(200, rotated["secret"].(string), "GET", "/v1/tenant", "")
	s.do(204, key, "DELETE", "/v1/api_keys/"+id, "")
	s.do(401, rotated["secret"].(string), "GET", "/v1/tenant", "")

	// A person: the token is in the cookie alone, new at each log-in, and gone when he signs out.
	_, first := s.do(201, "", "POST", "/v1/sessions", `{"email":"root@example.com","password":"correct horse battery"}`)
	cookie := sessionCookieOf(t, first)
	if strings.Contains(first.Body.String(), cookie.Value) {
		t.Error("the body has the token")
	}
	_, second := s.do(201, cookie.Value, "POST", "/v1/sessions", `{"email":"root@example.com","password":"correct horse battery"}`)
	again := sessionCookieOf(t, second)
	if again.Value == cookie.Value {
		t.Error("a session was taken over: that is fixation")
	}
	me, _ = s.do(200, again.Value, "GET", "/v1/me", "")
	if me["user"].(map[string]any)["email"] != "root@example.com" || me["role"] != "owner" || me["api_key"] != nil {
		t.Error(me)
	}
	_, out := s.do(204, cookie.Value, "DELETE", "/v1/sessions/current", "")
	if sessionCookieOf(t, out).MaxAge >= 0 {
		t.Error("the cookie stays")
	}
	s.do(401, cookie.Value, "GET", "/v1/me", "")
	s.do(200, again.Value, "GET", "/v1/me", "")
	s.do(403, key, "DELETE", "/v1/sessions/current", "")

	_, changed := s.do(200, again.Value, "PUT", "/v1/me/password", `{"password":"correct horse battery","new_password":"staple of all passwords"}`)
	s.do(401, again.Value, "GET", "/v1/me", "")
	root := sessionCookieOf(t, changed).Value

	// A tenant, its owner and a guest, without mail.
	tenant, _ := s.do(201, key, "POST", "/v1/platform/tenants", `{"name":"Second","owner_email":"owner@example.com"}`)
	link := tenant["invitation"].(map[string]any)["url"].(string)
	joined, _ := s.do(200, "", "POST", "/v1/invitations/accept", `{"token":"`+link[strings.Index(link, "=")+1:]+`","password":"a password of mine"}`)
	if joined["role"] != "owner" || joined["tenant"].(map[string]any)["id"] != tenant["id"] {
		t.Error(joined)
	}
	owner := s.signIn("owner@example.com", "a password of mine")
	s.do(403, owner, "GET", "/v1/platform/tenants", "")
	s.do(403, owner, "GET", "/v1/platform/edge_tokens", "")
	invited, _ := s.do(201, owner, "POST", "/v1/invitations", `{"email":"root@example.com","role":"viewer"}`)
	link = invited["url"].(string)
	s.do(200, root, "POST", "/v1/invitations/accept", `{"token":"`+link[strings.Index(link, "=")+1:]+`"}`)
	members, _ := s.do(200, owner, "GET", "/v1/members", "")
	if len(members["data"].([]any)) != 2 {
		t.Error(members)
	}
	guest := members["data"].([]any)[0].(map[string]any)["user"].(string)
	s.do(200, owner, "PATCH", "/v1/members/"+guest, `{"role":"operator"}`)
	s.do(422, owner, "PATCH", "/v1/members/"+guest, `{"role":"root"}`)
	s.do(204, owner, "DELETE", "/v1/members/"+guest, "")
	s.do(404, owner, "DELETE", "/v1/members/"+guest, "")

	id = tenant["id"].(string)
	s.do(200, key, "PATCH", "/v1/platform/tenants/"+id, `{"suspended":true,"max_domains":5}`)
	s.do(403, owner, "PATCH", "/v1/tenant", `{"name":"Other"}`)
	s.do(200, key, "PATCH", "/v1/platform/tenants/"+id, `{"suspended":false}`)
	renamed, _ := s.do(200, owner, "PATCH", "/v1/tenant", `{"name":"Other"}`)
	if renamed["name"] != "Other" || renamed["max_domains"] != 5. {
		t.Error(renamed)
	}
	s.do(422, owner, "DELETE", "/v1/tenant", `{"password":"not this one, no"}`)
	s.do(204, owner, "DELETE", "/v1/tenant", `{"password":"a password of mine"}`)
	s.do(403, owner, "GET", "/v1/tenant", "")

	edge, _ := s.do(201, key, "POST", "/v1/platform/edge_tokens", `{"name":"edges"}`)
	if !strings.HasPrefix(edge["secret"].(string), "pqe_") {
		t.Error(edge["prefix"])
	}
	s.do(204, key, "DELETE", "/v1/platform/edge_tokens/"+edge["id"].(string), "")

	uri, _ := s.do(200, root, "POST", "/v1/me/totp", `{"password":"staple of all passwords"}`)
	if !strings.HasPrefix(uri["uri"].(string), "otpauth://totp/") {
		t.Error("no otpauth URI")
	}
	s.do(422, root, "PUT", "/v1/me/totp", `{"code":"nothing"}`)
	s.do(204, root, "DELETE", "/v1/me/totp", `{"password":"staple of all passwords"}`)
	s.do(409, root, "DELETE", "/v1/me", `{"password":"staple of all passwords"}`)
}

// TestUsersCannotBeEnumerated: what is said of known and unknown addresses is the same to the byte, apart from the request's ID.
func TestUsersCannotBeEnumerated(t *testing.T) {
	s := newService(t)
	s.setUp()
	for _, try := range []struct {
		status             int
		method, path, body string
	}{
		{401, "POST", "/v1/sessions", `{"email":"EMAIL","password":"not the password"}`},
		{401, "POST", "/v1/sessions", `{"email":"EMAIL","password":"not the password","totp":"123456"}`},
		{202, "POST", "/v1/password_resets", `{"email":"EMAIL"}`},
		{202, "POST", "/v1/signup", `{"email":"EMAIL","password":"another password","tenant":"T"}`},
	} {
		shown := func(email string) string {
			_, w := s.do(try.status, "", try.method, try.path, strings.ReplaceAll(try.body, "EMAIL", email))
			id := w.Header().Get("X-Request-Id")
			w.Header().Del("X-Request-Id")
			var head bytes.Buffer
			for _, name := range slices.Sorted(maps.Keys(w.Header())) {
				head.WriteString(name + ": " + strings.Join(w.Header()[name], ", ") + "\n")
			}
			return head.String() + strings.ReplaceAll(w.Body.String(), id, "")
		}
		if known, unknown := shown("root@example.com"), shown("nobody@example.com"); known != unknown {
			t.Errorf("%s %s:\n%s\n%s", try.method, try.path, known, unknown)
		}
	}
}

// TestIdentityRoutesAreGuarded tries each route without a credential, with one that is unknown, and with one that lacks the scope.
func TestIdentityRoutesAreGuarded(t *testing.T) {
	s := newService(t)
	key := s.setUp()
	weak, _ := s.do(201, key, "POST", "/v1/api_keys", `{"name":"weak","scopes":["usage:read"]}`)
	unknown := management.NewSecret(management.APIKeySecret).Reveal()
	for _, r := range slices.Concat(setupRoutes(), sessionRoutes(), tenantRoutes(), memberRoutes(), apiKeyRoutes(), platformRoutes()) {
		if r.access == byAnybody {
			continue
		}
		path := strings.NewReplacer("{id}", management.NewID(management.APIKeyID), "{user}", management.NewID(management.UserID)).Replace(r.path)
		s.do(401, "", r.method, path, "")
		s.do(401, unknown, r.method, path, "")
		s.do(401, strings.Repeat("A", 43), r.method, path, "")
		if r.scope != "" {
			s.do(403, weak["secret"].(string), r.method, path, "")
		}
	}
}
