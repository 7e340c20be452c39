package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// authCase says how TestAuthorization calls an operation. The zero case is one without parameters and body, which a key with
// every scope may call.
type authCase struct {
	open bool // for anybody: no more is tried

	// path makes what the operation is about, in the tenant of p, and returns its parameters.
	path func(w *authWorld, p *party) map[string]string
	// query and body are sent; %s in query is the ID of a domain of the first tenant, body may depend on what path made.
	query string
	body  func(w *authWorld, p *party, path map[string]string) string

	session bool // only who signed in may; the key gets a 403
	fresh   bool // it ends the tenant or the user: use one that nothing else needs
	stream  bool // it has no end: let it begin, then go
	status  int  // what who may gets; default: the document's success
	foreign int  // what another tenant gets with the first one's IDs; default: 404 where there are some, else what is its own
}

// authCases has every operation of the document. One that nobody described here fails the test.
var authCases = map[string]authCase{
	"getHealth": {open: true}, "getReadiness": {open: true}, "getOpenAPI": {open: true},
	"getSetup": {open: true}, "setUp": {open: true}, "signUp": {open: true}, "verifySignup": {open: true},
	"requestPasswordReset": {open: true}, "resetPassword": {open: true}, "acceptInvitation": {open: true}, "logIn": {open: true},

	"getFeed": {}, "postReport": {body: aReport},

	"logOut": {session: true, fresh: true}, "getMe": {},
	"deleteMe":       {session: true, fresh: true, body: thePassword, status: 409}, // the last owner of a tenant
	"changePassword": {session: true, fresh: true, body: text(`{"password":"` + authPassword + `","new_password":"another good password"}`)},
	"beginTOTP":      {session: true, fresh: true, body: thePassword},
	"confirmTOTP":    {session: true, fresh: true, path: begunTOTP, body: text(`{"code":"000000"}`), status: 422}, // there is no app
	"endTOTP":        {session: true, fresh: true, body: thePassword},

	"getTenant": {}, "updateTenant": {body: text(`{"name":"New"}`)}, "deleteTenant": {session: true, fresh: true, body: thePassword},
	"listMembers": {}, "updateMember": {path: aMember, body: text(`{"role":"admin"}`)}, "deleteMember": {path: aMember},
	"listInvitations": {}, "createInvitation": {body: text(`{"email":"new@example.com","role":"viewer"}`)}, "deleteInvitation": {path: anInvitation},
	"listAPIKeys": {}, "createAPIKey": {body: text(`{"name":"new","scopes":["domains:read"]}`)}, "rotateAPIKey": {path: anAPIKey}, "deleteAPIKey": {path: anAPIKey},

	"listDomains": {}, "createDomain": {body: aNewDomain}, "getDomain": {path: aDomain},
	"patchDomain": {path: aDomain, body: text(`{"suspended":true}`)}, "deleteDomain": {path: aDomain},
	"checkDomain": {path: aDomain}, "probeDomain": {path: aDomain},
	"listCertificates": {}, "getCertificate": {path: aCertificate}, "putCertificate": {path: aDomain, body: aPair}, "deleteCertificate": {path: aCertificate},

	"listConnections": {query: "?domain=%s"}, "tailConnections": {stream: true},
	"getUsage": {query: "?domain=%s"}, "getSeries": {path: aDomain},
	"getPostQuantumReport": {query: "?domain=%s"}, "getRequireReport": {query: "?domain=%s"},
	"listEvents": {},

	"listTenants": {}, "createTenant": {body: text(`{"name":"Another"}`)},
	"updateAnyTenant": {path: itsTenant, body: text(`{"max_domains":500}`), foreign: 403},
	"listEdgeTokens":  {}, "createEdgeToken": {body: text(`{"name":"new"}`)}, "deleteEdgeToken": {path: anEdgeToken, foreign: 403},
	"listEdges": {},
}

// TestAuthorization tries every operation of the OpenAPI document without a credential, with a revoked one, with one of the
// other face, with a key that has every scope but the right one, and as another tenant with the real IDs of the first one. Then
// it does what it should as who may, so that the refusals were not for another reason.
func TestAuthorization(t *testing.T) {
	w := newAuthWorld(t)
	described, _ := operations(t, w.public)
	known := map[string]bool{}
	for _, op := range described {
		known[op.ID] = true
		test, ok := authCases[op.ID]
		if !ok {
			t.Errorf("%s: give it a case in authCases", op.ID)
			continue
		}
		if test.open != (len(op.Security) == 0) {
			t.Errorf("%s: it is for anybody: %v, it should be: %v", op.ID, len(op.Security) == 0, test.open)
			continue
		}
		if !test.open {
			t.Run(op.ID, func(t *testing.T) { w.with(t).try(op, test) })
		}
	}
	for id := range authCases {
		if !known[id] {
			t.Errorf("%s is no operation of the document", id)
		}
	}
}

// request returns one that the operation takes, of which party, and what is in its path.
func (w *authWorld) request(op operationOf, test authCase) (p *party, path map[string]string, q authRequest) {
	face := w.public
	if op.Face == "edge" {
		face = w.edge
	}
	p = w.first
	if test.fresh {
		p = w.newParty()
	}
	q = authRequest{face: face, method: op.method, path: op.path, stream: test.stream}
	if test.path != nil {
		path = test.path(w, p)
	}
	for name, value := range path {
		q.path = strings.ReplaceAll(q.path, "{"+name+"}", value)
	}
	if test.query != "" {
		q.path += fmt.Sprintf(test.query, p.domain)
	}
	if test.body != nil {
		q.body = test.body(w, p, path)
	}
	return p, path, q
}

// try is what happens to each operation.
func (w *authWorld) try(op operationOf, test authCase) {
	p, path, q := w.request(op, test)
	success := 0
	for status := range op.Responses {
		if status < "300" {
			fmt.Sscan(status, &success)
		}
	}

	w.want(q.as(""), http.StatusUnauthorized)
	w.want(q.as("garbage"), http.StatusUnauthorized)
	if op.Face == "edge" {
		w.want(q.as(w.first.key), http.StatusUnauthorized)
		w.want(q.as(w.first.session), http.StatusUnauthorized)
		w.want(q.as(w.revokedEdge), http.StatusUnauthorized)
		w.want(q.as(w.edgeToken), success)
		return
	}
	w.want(q.as(w.edgeToken), http.StatusUnauthorized)
	w.want(q.as(w.revoked), http.StatusUnauthorized)
	w.want(q.as(w.signedOut), http.StatusUnauthorized)

	if op.Scope != "" {
		w.want(q.as(w.without(op.Scope)), http.StatusForbidden)
	}
	foreign := test.foreign
	switch {
	case foreign != 0:
	case len(path) > 0:
		foreign = http.StatusNotFound
	case op.Scope == management.Platform:
		foreign = http.StatusForbidden // a tenant's owner
	case op.method == http.MethodGet:
		foreign = success
	}
	if foreign != 0 && !test.session {
		for _, credential := range []string{w.second.key, w.second.session} {
			answer := w.send(q.as(credential))
			if answer.Code != foreign && !(test.query != "" && answer.Code == http.StatusNotFound) {
				w.t.Errorf("as another tenant: %d, want %d: %s", answer.Code, foreign, answer.Body)
			}
			for _, mark := range slices.Concat(slices.Collect(maps.Values(path)), p.marks()) {
				if strings.Contains(answer.Body.String(), mark) {
					w.t.Errorf("another tenant was shown %s: %s", mark, answer.Body)
				}
			}
		}
	}

	// As who may.
	if test.session {
		w.want(q.as(p.key), http.StatusForbidden)
	}
	credential := p.key
	if test.session {
		credential = p.session
	}
	if op.Scope == management.Platform {
		credential = w.operator
	}
	if test.status != 0 {
		success = test.status
	}
	w.want(q.as(credential), success)
}

// What the cases are about.

func text(body string) func(*authWorld, *party, map[string]string) string {
	return func(*authWorld, *party, map[string]string) string { return body }
}

func thePassword(*authWorld, *party, map[string]string) string {
	return `{"password":"` + authPassword + `"}`
}

func aReport(*authWorld, *party, map[string]string) string {
	now := time.Now().UTC().Format(time.RFC3339)
	return `{"edge":{"name":"e1","started_at":"` + now + `"},"sequence":1,"sent_at":"` + now + `"}`
}

func aNewDomain(w *authWorld, _ *party, _ map[string]string) string {
	w.count++
	return fmt.Sprintf(`{"name":"d%d.example.com","upstreams":[{"dial":"10.1.2.3:443","tls":{}}]}`, w.count)
}

func aDomain(w *authWorld, p *party) map[string]string {
	return map[string]string{"id": w.id(w.send(authRequest{w.public, p.key, "POST", "/v1/domains", aNewDomain(w, p, nil), false}))}
}

func aPair(w *authWorld, p *party, path map[string]string) string {
	var d struct{ Name string }
	w.decode(w.send(authRequest{w.public, p.key, "GET", "/v1/domains/" + path["id"], "", false}), &d)
	chain, key := w.ca.PairPEM(w.t, d.Name)
	body, err := json.Marshal(map[string]string{"chain_pem": string(chain), "key_pem": string(key)})
	if err != nil {
		w.t.Fatal(err)
	}
	return string(body)
}

func aCertificate(w *authWorld, p *party) map[string]string {
	path := aDomain(w, p)
	w.want(authRequest{w.public, p.key, "PUT", "/v1/domains/" + path["id"] + "/certificate", aPair(w, p, path), false}, http.StatusOK)
	return path
}

func anAPIKey(w *authWorld, p *party) map[string]string {
	return map[string]string{"id": w.id(w.send(authRequest{w.public, p.key, "POST", "/v1/api_keys", `{"name":"k","scopes":["domains:read"]}`, false}))}
}

func anInvitation(w *authWorld, p *party) map[string]string {
	w.count++
	body := fmt.Sprintf(`{"email":"guest%d@example.com","role":"viewer"}`, w.count)
	return map[string]string{"id": w.id(w.send(authRequest{w.public, p.key, "POST", "/v1/invitations", body, false}))}
}

func aMember(w *authWorld, p *party) map[string]string {
	w.count++
	email := fmt.Sprintf("member%d@example.com", w.count)
	var made struct{ URL string }
	w.decode(w.send(authRequest{w.public, p.key, "POST", "/v1/invitations", `{"email":"` + email + `","role":"viewer"}`, false}), &made)
	w.accept(made.URL)
	session := w.signIn(email)
	var me struct{ User struct{ ID string } }
	w.decode(w.send(authRequest{w.public, session, "GET", "/v1/me", "", false}), &me)
	return map[string]string{"user": me.User.ID}
}

func begunTOTP(w *authWorld, p *party) map[string]string {
	w.want(authRequest{w.public, p.session, "POST", "/v1/me/totp", `{"password":"` + authPassword + `"}`, false}, http.StatusOK)
	return nil
}

func itsTenant(_ *authWorld, p *party) map[string]string { return map[string]string{"id": p.tenant} }

func anEdgeToken(w *authWorld, _ *party) map[string]string {
	return map[string]string{"id": w.id(w.send(authRequest{w.public, w.operator, "POST", "/v1/platform/edge_tokens", `{"name":"e"}`, false}))}
}

// authWorld is a service with two tenants, and credentials of all kinds.
type authWorld struct {
	t             *testing.T
	public, edge  http.Handler
	ca            *pqtest.CA
	first, second *party

	operator               string // a key with platform:*
	edgeToken, revokedEdge string
	revoked                string // a key
	signedOut              string // a session

	count int
}

// party is a tenant and its owner.
type party struct {
	tenant, user, email string
	key, session        string
	domain              string // an ID
}

// marks are what nobody else may be shown.
func (p *party) marks() []string { return []string{p.tenant, p.user, p.email, p.domain} }

const authPassword = "correct horse battery"

func newAuthWorld(t *testing.T) *authWorld {
	return newAuthWorldOn(t, storetest.Open(t, store.SQLite), auth.NewPlane("pqproxy", nil), slog.New(slog.DiscardHandler))
}

func newAuthWorldOn(t *testing.T, on *store.Store, guard management.Auth, log *slog.Logger) *authWorld {
	sealer, err := vault.New(vault.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	policy, err := netpolicy.New([]string{"10.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	plane, err := management.New(management.Config{SetupToken: "the set-up token", SignupOpen: true, UpstreamPolicy: policy}, management.Parts{
		Store: on, Sealer: sealer, Passwords: textPasswords{}, Auth: guard, Resolver: silence{}, Prober: silence{}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	a := New(plane, Options{Log: log})
	w := &authWorld{t: t, public: a.Public(), edge: a.Edge(), ca: pqtest.NewCA(t)}
	var made struct {
		Key struct{ Secret string } `json:"api_key"`
	}
	w.decode(w.send(authRequest{w.public, "", "POST", "/v1/setup",
		`{"setup_token":"the set-up token","email":"root@example.com","password":"` + authPassword + `","tenant":"Platform","api_key":true}`, false}), &made)
	w.operator = made.Key.Secret
	w.first, w.second = w.newParty(), w.newParty()

	id, secret := w.newSecret(w.operator, "/v1/platform/edge_tokens", `{"name":"e"}`)
	w.revokedEdge = secret
	w.want(authRequest{w.public, w.operator, "DELETE", "/v1/platform/edge_tokens/" + id, "", false}, http.StatusNoContent)
	_, w.edgeToken = w.newSecret(w.operator, "/v1/platform/edge_tokens", `{"name":"e"}`)
	id, w.revoked = w.newSecret(w.first.key, "/v1/api_keys", `{"name":"r","scopes":["*"]}`)
	w.want(authRequest{w.public, w.first.key, "DELETE", "/v1/api_keys/" + id, "", false}, http.StatusNoContent)
	w.signedOut = w.signIn(w.first.email)
	w.want(authRequest{w.public, w.signedOut, "DELETE", "/v1/sessions/current", "", false}, http.StatusNoContent)
	return w
}

// with returns the same world for a subtest.
func (w *authWorld) with(t *testing.T) *authWorld {
	w.t = t
	return w
}

// newParty makes a tenant whose owner has a key with all its scopes, a session and a domain.
func (w *authWorld) newParty() *party {
	w.t.Helper()
	w.count++
	p := &party{email: fmt.Sprintf("owner%d@example.com", w.count)}
	var tenant struct {
		ID         string
		Invitation struct{ URL string }
	}
	w.decode(w.send(authRequest{w.public, w.operator, "POST", "/v1/platform/tenants",
		fmt.Sprintf(`{"name":"Tenant %d","owner_email":%q}`, w.count, p.email), false}), &tenant)
	p.tenant = tenant.ID
	w.accept(tenant.Invitation.URL)
	p.session = w.signIn(p.email)
	_, p.key = w.newSecret(p.session, "/v1/api_keys", `{"name":"all","scopes":["*"]}`)
	var me struct{ User struct{ ID string } }
	w.decode(w.send(authRequest{w.public, p.session, "GET", "/v1/me", "", false}), &me)
	p.user = me.User.ID
	p.domain = aDomain(w, p)["id"]
	return p
}

// without returns a key with every scope that a tenant's key can have, except those that give scope.
func (w *authWorld) without(scope management.Scope) string {
	w.t.Helper()
	scopes := management.Admin.Scopes()
	if scope == management.Platform {
		scopes = management.Scopes{management.All}
	}
	scopes = slices.DeleteFunc(scopes, func(s management.Scope) bool { return s == scope })
	list, err := json.Marshal(scopes)
	if err != nil {
		w.t.Fatal(err)
	}
	_, secret := w.newSecret(w.first.key, "/v1/api_keys", `{"name":"w","scopes":`+string(list)+`}`)
	return secret
}

func (w *authWorld) newSecret(credential, path, body string) (id, secret string) {
	w.t.Helper()
	var made struct{ ID, Secret string }
	w.decode(w.send(authRequest{w.public, credential, "POST", path, body, false}), &made)
	return made.ID, made.Secret
}

// accept follows the link of an invitation.
func (w *authWorld) accept(link string) {
	w.t.Helper()
	u, err := url.Parse(link)
	if err != nil || u.Query().Get("token") == "" {
		w.t.Fatalf("link %q: %v", link, err)
	}
	body := fmt.Sprintf(`{"token":%q,"password":%q}`, u.Query().Get("token"), authPassword)
	w.want(authRequest{w.public, "", "POST", "/v1/invitations/accept", body, false}, http.StatusOK)
}

func (w *authWorld) signIn(email string) string {
	w.t.Helper()
	answer := w.send(authRequest{w.public, "", "POST", "/v1/sessions", fmt.Sprintf(`{"email":%q,"password":%q}`, email, authPassword), false})
	cookies := answer.Result().Cookies()
	if len(cookies) != 1 {
		w.t.Fatalf("signing in: %d %s", answer.Code, answer.Body)
	}
	return cookies[0].Value
}

// authRequest is a request with a credential: a secret, or the value of the cookie.
type authRequest struct {
	face                           http.Handler
	credential, method, path, body string
	stream                         bool
}

func (q authRequest) as(credential string) authRequest {
	q.credential = credential
	return q
}

func (w *authWorld) send(q authRequest) *httptest.ResponseRecorder {
	w.t.Helper()
	w.count++
	r := httptest.NewRequest(q.method, q.path, strings.NewReader(q.body))
	// Sign-ins are limited by address: each request comes from its own.
	r.RemoteAddr = fmt.Sprintf("198.51.%d.%d:1000", w.count/250%250, w.count%250+1)
	if q.body != "" {
		r.Header.Set("Content-Type", jsonType)
	}
	switch {
	case strings.HasPrefix(q.credential, "pq"):
		r.Header.Set("Authorization", "Bearer "+q.credential)
	case q.credential != "":
		r.Header["Cookie"] = cookieOf(q.credential)["Cookie"]
	}
	answer := httptest.NewRecorder()
	if q.stream {
		ctx, cancel := context.WithCancel(w.t.Context())
		defer cancel()
		q.face.ServeHTTP(&firstWrite{answer, cancel}, r.WithContext(ctx))
		return answer
	}
	q.face.ServeHTTP(answer, r)
	return answer
}

// firstWrite lets a stream begin, then ends it.
type firstWrite struct {
	*httptest.ResponseRecorder
	cancel func()
}

func (f *firstWrite) Write(b []byte) (int, error) {
	defer f.cancel()
	return f.ResponseRecorder.Write(b)
}

func (w *authWorld) want(q authRequest, status int) {
	w.t.Helper()
	answer := w.send(q)
	if answer.Code != status {
		w.t.Errorf("%s %s: %d, want %d: %s", q.method, q.path, answer.Code, status, answer.Body)
	}
	if status == http.StatusUnauthorized && answer.Header().Get("WWW-Authenticate") != "Bearer" {
		w.t.Errorf("%s %s: %v", q.method, q.path, answer.Header())
	}
}

func (w *authWorld) decode(answer *httptest.ResponseRecorder, to any) {
	w.t.Helper()
	if answer.Code >= 300 {
		w.t.Fatalf("%d %s", answer.Code, answer.Body)
	}
	if err := json.Unmarshal(answer.Body.Bytes(), to); err != nil {
		w.t.Fatal(err)
	}
}

func (w *authWorld) id(answer *httptest.ResponseRecorder) string {
	w.t.Helper()
	var made struct{ ID string }
	w.decode(answer, &made)
	if made.ID == "" {
		w.t.Fatalf("no ID: %s", answer.Body)
	}
	return made.ID
}

// textPasswords hashes nothing: this is not about passwords, and there are many of them.
type textPasswords struct{}

func (textPasswords) Check(password, _ string) error {
	if len(password) < 12 {
		return errors.New("must have at least 12 characters")
	}
	return nil
}

func (textPasswords) Hash(_ context.Context, password string) (string, error) { return password, nil }

func (textPasswords) Verify(_ context.Context, hash, password string) (ok, stale bool, err error) {
	return hash != "" && hash == password, false, nil
}
