package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
)

// An attack is a text that somebody sends where a value is expected. Each holds the mark, by which it is told apart from all else
// that was ever sent.
type attack struct {
	about string
	text  func(mark string) string
	of    string // the name of the parameters that it is for; empty: everywhere
	json  string // how it stands in a document, quotes included, where that is not how encoding/json writes it; % is the mark
}

var attacks = []attack{
	{about: "a condition that is true", text: func(m string) string { return m + `' OR '1'='1` }},
	{about: "a second statement", text: func(m string) string { return m + `'); DROP TABLE domains; --` }},
	{about: "another select", text: func(m string) string {
		return m + `' UNION SELECT id, name, hash FROM api_keys --`
	}},
	{about: "identifiers and places of parameters", text: func(m string) string { return m + `" \ ? $1 :a @b` }},
	{about: "what LIKE takes for anything", text: func(m string) string { return "%" + m + "%_" }},
	{about: "markup", text: func(m string) string { return `<script>` + m + `</script>` }},
	{about: "lines of a header", text: func(m string) string { return m + "\r\nSet-Cookie: a=b" }},
	{about: "NUL", text: func(m string) string { return m + "\x00" }},
	{about: "no UTF-8", text: func(m string) string { return m + "\xff\xc0\x80" }, json: "\"%\xff\xc0\x80\""},
	{about: "half a character", text: func(m string) string { return m + "\xed\xa0\x80" }, json: `"%\ud800"`},
	{about: "text that runs backwards", text: func(m string) string { return m + "\u202e\u200b\ufeff" }},
	{about: "very long", text: func(m string) string { return m + strings.Repeat("a", 40_000) }},
	{about: "a path", text: func(m string) string { return "../../" + m + "/etc/passwd" }},
	{about: "a cursor of other text", of: "cursor", text: func(m string) string {
		return base64.RawURLEncoding.EncodeToString([]byte("1" + m + "' OR 1=1 --"))
	}},
	{about: "a cursor of no text", of: "cursor", text: func(m string) string {
		return base64.RawURLEncoding.EncodeToString([]byte("1" + m + "' OR 1=1 --\xff"))
	}},
}

// inDocument returns the attack as a value of JSON.
func (a attack) inDocument(mark string) []byte {
	if a.json != "" {
		return []byte(strings.ReplaceAll(a.json, "%", mark))
	}
	text, err := json.Marshal(a.text(mark))
	if err != nil {
		panic(err)
	}
	return text
}

// unthrottled lets everybody try as often as he likes: this is about what comes after.
type unthrottled struct{ *auth.Plane }

func (unthrottled) BeginLogin(string, netip.Addr) (func(), time.Duration, bool) {
	return func() {}, 0, true
}

// attackWorld is an authWorld with what the service logs.
type attackWorld struct {
	*authWorld
	log     *lockedBuffer
	schemas map[string]json.RawMessage
	marks   int
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

// TestInjection sends every attack in every parameter and in every string of every body of the OpenAPI document, so that what
// comes to be a part of it comes to be attacked. Nothing is a 5xx, nothing shows what is another tenant's, no refusal repeats
// what was sent, a filter that is attacked selects nothing, and in the end all is where it was. On both databases: they
// differ in what they make of odd text.
func TestInjection(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		log := new(lockedBuffer)
		w := &attackWorld{authWorld: newAuthWorldOn(t, s, unthrottled{auth.NewPlane("pqproxy", nil)}, slog.New(slog.NewTextHandler(log, nil))), log: log}
		described, doc := operations(t, w.public)
		w.schemas = doc.Components["schemas"]
		before := w.victim()
		for _, op := range described {
			w.attackOperation(op)
		}
		if after := w.victim(); after != before {
			t.Errorf("another tenant's domains changed:\n%s\nwere\n%s", after, before)
		}
		if w.log.Len() > 0 {
			t.Errorf("the service logged failures: %.2000s", w.log.String())
		}
	})
}

// victim returns what the first tenant and the platform have.
func (w *attackWorld) victim() string {
	var all strings.Builder
	for _, q := range []authRequest{
		{w.public, w.first.key, "GET", "/v1/domains", "", false},
		{w.public, w.first.key, "GET", "/v1/tenant", "", false},
		{w.public, w.first.key, "GET", "/v1/audit", "", false},
		{w.public, w.operator, "GET", "/v1/domains", "", false},
	} {
		answer := w.send(q)
		if answer.Code != http.StatusOK {
			w.t.Fatalf("%s: %d %s", q.path, answer.Code, answer.Body)
		}
		var list struct{ Data []map[string]any }
		w.decode(answer, &list)
		for _, row := range list.Data {
			for _, of := range []string{"axes", "status", "next_action", "stuck"} { // of domains: edges report, and then there is one
				delete(row, of)
			}
			fmt.Fprintln(&all, row)
		}
		if list.Data == nil {
			all.Write(answer.Body.Bytes())
		}
	}
	return all.String()
}

// mark returns a text that nobody has sent yet.
func (w *attackWorld) mark() string {
	w.marks++
	return fmt.Sprintf("zq%dx", w.marks)
}

// attackOperation attacks one operation, as somebody who may call it.
func (w *attackWorld) attackOperation(op operationOf) {
	fields := w.strings(op)
	for _, a := range attacks {
		for _, p := range op.Parameters {
			if a.of != "" && a.of != p.Name {
				continue
			}
			mark := w.mark()
			q := w.sample(op)
			switch {
			case p.Ref == "#/components/parameters/Tenant":
				q.header = http.Header{tenantHeader: {a.text(mark)}}
			case p.Ref == "#/components/parameters/IdempotencyKey":
				q.header = http.Header{keyHeader: {a.text(mark)}}
			case p.In == "header":
				q.header = http.Header{p.Name: {a.text(mark)}}
			case p.In == "query":
				q.path += "?" + p.Name + "=" + url.QueryEscape(a.text(mark))
			case p.In == "path":
				q.path = strings.Replace(op.path, "{"+p.Name+"}", url.PathEscape(a.text(mark)), 1)
			default:
				w.t.Fatalf("%s: a parameter in %q", op.ID, p.In)
			}
			w.strike(op, q, mark, fmt.Sprintf("%s in %s %s%s", a.about, p.In, p.Name, p.Ref), p.In == "query")
		}
		for _, at := range fields {
			if a.of != "" {
				break
			}
			mark := w.mark()
			q := w.sample(op)
			if at[0] == "new_password" {
				q.credential = w.newParty().session // he may succeed, and his session ends
			}
			q.body = string(w.body(op, at, a.inDocument(mark)))
			if at[len(at)-1] == "*" {
				if _, shown := under("", a.text(mark)); shown {
					mark += " " // a plain name is repeated, so that its author finds it
				}
			}
			w.strike(op, q, mark, fmt.Sprintf("%s in %s", a.about, strings.Join(at, "/")), false)
		}
	}
}

// strike sends one request and looks at what comes back.
func (w *attackWorld) strike(op operationOf, q attackRequest, mark, about string, filter bool) {
	w.t.Helper()
	answer := w.sendAttack(q)
	body := answer.Body.String()
	fail := func(what string) {
		w.t.Errorf("%s: %s: %s: %d %.300s", op.ID, about, what, answer.Code, body)
	}
	if answer.Code >= 500 || answer.Code < 200 {
		fail("the service failed")
	}
	if answer.Code >= 400 && strings.Contains(body, mark) {
		fail("what was sent is repeated")
	}
	for name, values := range answer.Header() {
		if strings.Contains(strings.Join(values, ""), mark) || strings.ContainsAny(strings.Join(values, ""), "\r\n") {
			fail("the header " + name + " has what was sent")
		}
	}
	for _, theirs := range w.first.marks() {
		if q.credential != w.operator && strings.Contains(body, theirs) {
			fail("it shows what is another tenant's")
		}
	}
	var list struct{ Data []json.RawMessage }
	if filter && answer.Header().Get("Content-Type") == eventsType {
		if strings.Contains(body, "data:") {
			fail("the filter selects something")
		}
	} else if filter && answer.Code == http.StatusOK {
		if json.Unmarshal(answer.Body.Bytes(), &list) != nil || len(list.Data) > 0 {
			fail("the filter selects something")
		}
	}
}

// attackRequest is an authRequest with headers.
type attackRequest struct {
	authRequest
	header http.Header
}

func (w *attackWorld) sendAttack(q attackRequest) *httptest.ResponseRecorder {
	w.t.Helper()
	q.face = headerAdder{q.face, q.header}
	return w.send(q.authRequest)
}

type headerAdder struct {
	http.Handler
	header http.Header
}

func (h headerAdder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	maps.Copy(r.Header, h.header)
	h.Handler.ServeHTTP(w, r)
}

// sample returns a request of the operation that is good, but for IDs that nobody has.
func (w *attackWorld) sample(op operationOf) attackRequest {
	q := attackRequest{authRequest: authRequest{face: w.public, credential: w.second.key, method: op.method, path: op.path, stream: true}}
	test := authCases[op.ID]
	switch {
	case op.Face == "edge":
		q.face, q.credential = w.edge, w.edgeToken
	case len(op.Security) == 0:
		q.credential = ""
	case op.Scope == management.Platform:
		q.credential = w.operator
	case test.session:
		q.credential = w.second.session
	}
	for _, p := range op.Parameters {
		if p.In != "path" {
			continue
		}
		value := management.NewID(management.DomainID)
		switch { // what is there, unless it would not be any more
		case op.method == "DELETE":
		case strings.HasPrefix(op.path, "/v1/domains/"):
			value = w.second.domain
		case strings.HasPrefix(op.path, "/v1/platform/tenants/"):
			value = w.second.tenant
		case p.Name == "user":
			value = w.second.user
		}
		q.path = strings.Replace(q.path, "{"+p.Name+"}", value, 1)
	}
	if op.RequestBody != nil {
		q.body = string(w.body(op, nil, nil))
	}
	return q
}

// schema is what is read of one.
type schema struct {
	Ref        string             `json:"$ref"`
	Type       json.RawMessage    `json:"type"`
	Format     string             `json:"format"`
	Enum       []any              `json:"enum"`
	Properties map[string]*schema `json:"properties"`
	Items      *schema            `json:"items"`
	Required   []string           `json:"required"`
	Additional json.RawMessage    `json:"additionalProperties"`
}

func (w *attackWorld) schemaOf(op operationOf) *schema {
	if op.RequestBody == nil {
		return nil
	}
	for _, content := range op.RequestBody.Content {
		var c struct{ Schema *schema }
		if err := json.Unmarshal(content, &c); err != nil {
			w.t.Fatal(err)
		}
		return c.Schema
	}
	return nil
}

func (w *attackWorld) resolve(s *schema) *schema {
	for s != nil && s.Ref != "" {
		to := new(schema)
		if err := json.Unmarshal(w.schemas[strings.TrimPrefix(s.Ref, schemaPrefix)], to); err != nil {
			w.t.Fatalf("%s: %v", s.Ref, err)
		}
		s = to
	}
	return s
}

func (s *schema) is(kind string) bool { return strings.Contains(string(s.Type), `"`+kind+`"`) }

// strings returns where the body of an operation has strings; "0" is the element of an array, and the name of a member "*".
func (w *attackWorld) strings(op operationOf) (all [][]string) {
	var walk func(s *schema, at []string)
	walk = func(s *schema, at []string) {
		switch s = w.resolve(s); {
		case s == nil || len(at) > 8:
		case s.is("string"):
			all = append(all, slices.Clone(at))
		case s.is("object"):
			for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
				walk(s.Properties[name], append(slices.Clone(at), name))
			}
			all = append(all, append(slices.Clone(at), "*"))
		case s.is("array"):
			walk(s.Items, append(slices.Clone(at), "0"))
		}
	}
	walk(w.schemaOf(op), nil)
	return all
}

// body returns a document for the operation: what is required, and, at the place given, value instead of what is good. At a "*"
// it is the name of a member.
func (w *attackWorld) body(op operationOf, at []string, value []byte) []byte {
	var build func(s *schema, name string, at []string, here bool) []byte
	build = func(s *schema, name string, at []string, here bool) []byte {
		if here && len(at) == 0 {
			return value
		}
		switch s = w.resolve(s); {
		case s.is("object"):
			var members []string
			for _, member := range slices.Sorted(maps.Keys(s.Properties)) {
				on := here && at[0] == member
				if !on && !slices.Contains(s.Required, member) {
					continue
				}
				below := []string(nil)
				if on {
					below = at[1:]
				}
				members = append(members, fmt.Sprintf("%q:%s", member, build(s.Properties[member], member, below, on)))
			}
			if here && at[0] == "*" {
				members = append(members, string(value)+":1")
			}
			return []byte("{" + strings.Join(members, ",") + "}")
		case s.is("array"):
			below := []string(nil)
			if here {
				below = at[1:]
			}
			return []byte("[" + string(build(s.Items, name, below, here)) + "]")
		}
		return []byte(w.good(s, name))
	}
	return build(w.schemaOf(op), "", at, at != nil)
}

// good returns a value that is good where a member is called name.
func (w *attackWorld) good(s *schema, name string) string {
	switch {
	case len(s.Enum) > 0:
		return fmt.Sprintf("%q", s.Enum[0])
	case s.Format == "date-time":
		return `"` + time.Now().UTC().Add(time.Hour).Format(time.RFC3339) + `"`
	case s.is("integer") || s.is("number"):
		return "1"
	case s.is("boolean"):
		return "true"
	}
	return fmt.Sprintf("%q", map[string]string{
		"password": authPassword, "new_password": "another good password", "email": "stranger@example.com", "owner_email": "owner@example.com",
		"dial": "10.1.2.3:443", "id": "01h455vb4pex5vsknk084sn02q", "domain": "app.example.com", "name": "app.example.com",
		"client_ip": "192.0.2.1", "state": "valid", "end_reason": "done", "scopes": "domains:read",
	}[name])
}

// TestHostileBodies sends every operation that takes a body bodies that are none: malformed, of the wrong kind, too deep, too large,
// with a member twice. Each is refused, whoever sends it, and nothing comes of it.
func TestHostileBodies(t *testing.T) {
	log := new(lockedBuffer)
	w := &attackWorld{log: log, authWorld: newAuthWorldOn(t, storetest.Open(t, store.SQLite), unthrottled{auth.NewPlane("pqproxy", nil)},
		slog.New(slog.NewTextHandler(log, nil)))}
	described, doc := operations(t, w.public)
	w.schemas = doc.Components["schemas"]
	before := w.victim()
	for _, op := range described {
		s := w.resolve(w.schemaOf(op))
		if s == nil {
			continue
		}
		good := string(w.body(op, nil, nil))
		hostile := map[string]string{
			"nothing": "", "a half": good[:len(good)-1], "two": good + good, "an array": "[" + good + "]", "a string": `"` + authPassword + `"`, "null": "null",
			"deep": strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000), "deep lists": strings.Repeat("[", 100_000),
			"large": `{"a":"` + strings.Repeat("a", 9<<20) + `"}`, "no text": "\xff\xfe{\x00}\x00", "an unknown member": `{"` + w.mark() + `":1}`,
		}
		for name, member := range s.Properties {
			value := string(w.bodyOf(member, name))
			hostile[name+" twice"] = fmt.Sprintf("{%q:%s,%q:%s}", name, value, name, value)
			hostile[name+" twice in two spellings"] = fmt.Sprintf(`{"%s":%s,"\u%04x%s":%s}`, name, value, name[0], name[1:], value)
			hostile[name+" in capitals"] = fmt.Sprintf("{%q:%s}", strings.ToUpper(name), value)
		}
		for about, body := range hostile {
			if op.ID == "postReport" && (about == "an unknown member" || strings.HasSuffix(about, "in capitals")) {
				continue // an edge may know more than its management plane; what is missing there is a fault all the same
			}
			q := w.sample(op)
			q.body = body
			answer := w.sendAttack(q)
			if answer.Code < 400 || answer.Code >= 500 {
				t.Errorf("%s: %s: %d %.200s", op.ID, about, answer.Code, answer.Body)
			}
		}
	}
	if after := w.victim(); after != before {
		t.Error("another tenant's domains changed")
	}
	if w.log.Len() > 0 {
		t.Errorf("the service logged failures: %.2000s", w.log.String())
	}
}

// bodyOf returns a good value of a schema.
func (w *attackWorld) bodyOf(s *schema, name string) []byte {
	switch s = w.resolve(s); {
	case s.is("object"):
		return []byte("{}")
	case s.is("array"):
		return []byte("[]")
	}
	return []byte(w.good(s, name))
}

// TestSessionFixation: whoever planted a cookie in a browser has nothing of its owner's signing in, and a session that was there
// before is not taken over.
func TestSessionFixation(t *testing.T) {
	w := newAuthWorld(t)
	planted, _ := auth.NewToken(auth.Session)
	q := authRequest{w.public, planted, "POST", "/v1/sessions", fmt.Sprintf(`{"email":%q,"password":%q}`, w.first.email, authPassword), false}
	for _, before := range []string{planted, w.second.session, w.first.session} {
		answer := w.send(q.as(before))
		if answer.Code != http.StatusCreated {
			t.Fatalf("%d %s", answer.Code, answer.Body)
		}
		cookie := sessionCookieOf(t, answer)
		if cookie.Value == before || cookie.Domain != "" || cookie.Path != "/" || !strings.HasPrefix(cookie.Name, "__Host-") {
			t.Errorf("the session is in the cookie that was there before, or anybody can set it: %s", cookie)
		}
	}
	w.want(authRequest{w.public, planted, "GET", "/v1/me", "", false}, http.StatusUnauthorized)
	var me struct{ User struct{ Email string } }
	w.decode(w.send(authRequest{w.public, w.second.session, "GET", "/v1/me", "", false}), &me)
	if me.User.Email != w.second.email {
		t.Errorf("the session that was there before is now of %s", me.User.Email)
	}
}

// TestKeptHashIsKeyed: what is kept of a request with an Idempotency-Key must not let whoever reads the database try passwords
// against it: the same request of another credential is kept as something else.
func TestKeptHashIsKeyed(t *testing.T) {
	s := storetest.Open(t, store.SQLite)
	w := newAuthWorldOn(t, s, auth.NewPlane("pqproxy", nil), slog.New(slog.DiscardHandler))
	var hashes [][]byte
	for i, session := range []string{w.signIn(w.first.email), w.signIn(w.first.email)} {
		key := fmt.Sprintf("k%d", i)
		q := authRequest{headerAdder{w.public, idempotent(key)}, session, "POST", "/v1/me/totp", `{"password":"` + authPassword + `"}`, false}
		w.want(q, http.StatusOK)
		err := s.View(t.Context(), func(tx management.Tx) error {
			kept, err := tx.FindReply(w.first.user, key)
			if err != nil {
				return err
			}
			hashes = append(hashes, kept.RequestHash)
			if strings.Contains(string(kept.Body), "otpauth") {
				t.Errorf("the secret of one-time passwords is kept: %s", kept.Body)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Equal(hashes[0], hashes[1]) {
		t.Error("one password has one hash, whoever sends it")
	}
}

// TestReplayAfterLoss: an answer is replayed to who may still do what it answered, and to nobody else.
func TestReplayAfterLoss(t *testing.T) {
	w := newAuthWorld(t)
	member := aMember(w, w.first)["user"]
	w.want(authRequest{w.public, w.first.key, "PATCH", "/v1/members/" + member, `{"role":"admin"}`, false}, http.StatusOK)
	var members struct{ Data []management.Member }
	w.decode(w.send(authRequest{w.public, w.first.key, "GET", "/v1/members", "", false}), &members)
	email := ""
	for _, m := range members.Data {
		if m.UserID == member {
			email = m.Email
		}
	}
	q := authRequest{headerAdder{w.public, idempotent("once")}, w.signIn(email), "POST", "/v1/api_keys", `{"name":"k","scopes":["domains:read"]}`, false}
	w.want(q, http.StatusCreated)
	if again := w.send(q); again.Code != http.StatusCreated || again.Header().Get(replayedHeader) != "true" {
		t.Fatalf("no replay: %d %s", again.Code, again.Body)
	}
	w.want(q.as(w.second.key), http.StatusCreated) // another credential's key of the same text is another key
	w.want(q.as(w.second.session), http.StatusCreated)
	w.want(authRequest{w.public, w.first.key, "PATCH", "/v1/members/" + member, `{"role":"viewer"}`, false}, http.StatusOK)
	w.want(q, http.StatusForbidden)
	w.want(authRequest{w.public, w.first.key, "DELETE", "/v1/members/" + member, "", false}, http.StatusNoContent)
	w.want(q, http.StatusForbidden)
}

// TestCursorsOfOthers: a cursor says where to go on, and nothing of whose rows: one of another tenant's list shows nothing of that
// tenant.
func TestCursorsOfOthers(t *testing.T) {
	w := newAuthWorld(t)
	for range 3 {
		aDomain(w, w.first)
		aDomain(w, w.second)
		anAPIKey(w, w.first)
		anAPIKey(w, w.second)
	}
	for _, list := range []string{"/v1/domains", "/v1/certificates", "/v1/api_keys", "/v1/audit", "/v1/members", "/v1/invitations"} {
		var page struct {
			NextCursor *string `json:"next_cursor"`
		}
		w.decode(w.send(authRequest{w.public, w.first.key, "GET", list + "?limit=1", "", false}), &page)
		if page.NextCursor == nil {
			continue // there is one row
		}
		answer := w.send(authRequest{w.public, w.second.key, "GET", list + "?cursor=" + url.QueryEscape(*page.NextCursor), "", false})
		for _, mark := range w.first.marks() {
			if strings.Contains(answer.Body.String(), mark) {
				t.Errorf("%s: with another's cursor %s is shown", list, mark)
			}
		}
	}
}
