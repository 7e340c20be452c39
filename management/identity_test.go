package management_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

const (
	setupToken  = "the set-up token"
	rootEmail   = "root@example.com"
	password    = "correct horse battery"
	newPassword = "staple of all passwords"
)

// people is a Plane for tests of identity: real tokens, limits and storage, cheap passwords, a clock that stands.
type people struct {
	*management.Plane
	t     *testing.T
	store *store.Store
	auth  *auth.Plane
	mail  *mailbox
	work  *cheapPasswords
	clock *standingClock
	made  *management.SetUp
	root  *management.Principal // the operator, signed in
}

// eachPeople runs fn on each database, with a service that is set up.
func eachPeople(t *testing.T, configure func(*management.Config, *management.Parts), fn func(t *testing.T, w *people)) {
	t.Helper()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		w := newPeople(t, s, configure)
		made, err := w.SetUp(t.Context(), anybody("192.0.2.1"), firstRun())
		if err != nil {
			t.Fatal(err)
		}
		w.made, w.root = made, w.logIn(rootEmail, password)
		fn(t, w)
	})
}

func firstRun() management.Setup {
	return management.Setup{Token: setupToken, Email: rootEmail, Password: password, Tenant: "First", APIKey: true}
}

func newPeople(t *testing.T, s *store.Store, configure func(*management.Config, *management.Parts)) *people {
	t.Helper()
	w := &people{t: t, store: s, mail: &mailbox{}, work: &cheapPasswords{}, clock: &standingClock{at: time.Now().Truncate(time.Second)}}
	w.auth = auth.NewPlane("pqproxy", w.clock.now)
	sealer, err := vault.New(vault.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	public, err := url.Parse("https://console.example.com:8443")
	if err != nil {
		t.Fatal(err)
	}
	cfg := management.Config{SetupToken: setupToken, PublicURL: public}
	parts := management.Parts{Store: s, Sealer: sealer, Passwords: w.work, Auth: w.auth, Resolver: noResolver{}, Prober: noProber{},
		Log: slog.New(slog.DiscardHandler), Clock: w.clock.now}
	if configure != nil {
		configure(&cfg, &parts)
	}
	if m, ok := parts.Mailer.(*mailbox); ok {
		w.mail = m
	}
	if w.Plane, err = management.New(cfg, parts); err != nil {
		t.Fatal(err)
	}
	return w
}

func withMail(_ *management.Config, parts *management.Parts) { parts.Mailer = &mailbox{} }

func signupOpen(cfg *management.Config, _ *management.Parts) { cfg.SignupOpen = true }

func signupByMail(cfg *management.Config, parts *management.Parts) {
	cfg.SignupOpen, parts.Mailer = true, &mailbox{}
}

// anybody is the principal of a request without a credential.
func anybody(addr string) *management.Principal {
	return &management.Principal{ClientAddr: netip.MustParseAddr(addr), RequestID: "req"}
}

// signIn signs in from a fresh address.
func (w *people) signIn(email, password string) *management.SignedIn {
	w.t.Helper()
	in, err := w.LogIn(w.t.Context(), anybody("192.0.2.2"), management.Login{Email: email, Password: password})
	if err != nil {
		w.t.Fatal(err)
	}
	return in
}

// logIn signs in and returns the principal in the first tenant.
func (w *people) logIn(email, password string) *management.Principal {
	w.t.Helper()
	return w.as(w.signIn(email, password), "")
}

// as returns the principal of a session.
func (w *people) as(in *management.SignedIn, tenant string) *management.Principal {
	w.t.Helper()
	who, err := w.of(in, tenant)
	if err != nil {
		w.t.Fatal(err)
	}
	return who
}

func (w *people) of(in *management.SignedIn, tenant string) (*management.Principal, error) {
	w.t.Helper()
	who, err := w.PrincipalOfSession(w.t.Context(), in.Token.Reveal(), tenant)
	if who != nil {
		who.ClientAddr = netip.MustParseAddr("192.0.2.3")
	}
	return who, err
}

// join makes a new user a member of the caller's tenant.
func (w *people) join(by *management.Principal, email string, role management.Role) *management.Principal {
	w.t.Helper()
	invited, err := w.CreateInvitation(w.t.Context(), by, email, role)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.AcceptInvitation(w.t.Context(), anybody("192.0.2.4"), w.invitation(invited), password); err != nil {
		w.t.Fatal(err)
	}
	return w.logIn(email, password)
}

// invitation returns the token of an invitation, from the answer or the mail.
func (w *people) invitation(invited *management.Invited) string {
	if link := invited.URL.Reveal(); link != "" {
		return tokenOf(w.t, link)
	}
	return tokenOf(w.t, w.mail.last(w.t).link)
}

// tenant makes another tenant with an owner.
func (w *people) tenant(name, email string) *management.Principal {
	w.t.Helper()
	_, invited, err := w.CreateTenant(w.t.Context(), w.root, management.NewTenant{Name: name, OwnerEmail: email})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.AcceptInvitation(w.t.Context(), anybody("192.0.2.5"), w.invitation(invited), password); err != nil {
		w.t.Fatal(err)
	}
	return w.logIn(email, password)
}

// key makes an API key and returns its principal.
func (w *people) key(by *management.Principal, scopes ...management.Scope) *management.Principal {
	w.t.Helper()
	_, secret, err := w.CreateAPIKey(w.t.Context(), by, management.NewAPIKey{Name: "k", Scopes: scopes})
	if err != nil {
		w.t.Fatal(err)
	}
	who, err := w.PrincipalOfKey(w.t.Context(), secret)
	if err != nil {
		w.t.Fatal(err)
	}
	return who
}

// update changes rows behind the plane's back.
func (w *people) update(fn func(tx management.Tx) error) {
	w.t.Helper()
	if err := w.store.Update(w.t.Context(), fn); err != nil {
		w.t.Fatal(err)
	}
}

// events returns the actions in the audit log, oldest first.
func (w *people) events() (actions []string, all []*management.Event) {
	w.t.Helper()
	err := w.store.View(w.t.Context(), func(tx management.Tx) (err error) {
		all, err = tx.FindEvents(management.EventFilter{Limit: 1000})
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	for i := len(all) - 1; i >= 0; i-- {
		actions = append(actions, all[i].Action)
	}
	return actions, all
}

func tokenOf(t *testing.T, link string) string {
	t.Helper()
	u, err := url.Parse(link)
	if err != nil || !strings.HasPrefix(link, "https://console.example.com:8443/") || u.Query().Get("token") == "" {
		t.Fatal("no link with a token")
	}
	return u.Query().Get("token")
}

// wantCode fails unless err has the code.
func wantCode(t *testing.T, what string, err error, want management.Code) {
	t.Helper()
	if got := management.CodeOf(err); got != want {
		t.Errorf("%s: %v (%s), want %s", what, err, got, want)
	}
}

// wantSame fails unless two refusals are alike to the last byte.
func wantSame(t *testing.T, what string, a, b error) {
	t.Helper()
	shown := func(err error) string {
		e, ok := errors.AsType[*management.Error](err)
		if !ok {
			return fmt.Sprint(err)
		}
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if shown(a) != shown(b) {
		t.Errorf("%s: %s and %s", what, shown(a), shown(b))
	}
}

// standingClock is a clock that moves when told.
type standingClock struct {
	mu sync.Mutex
	at time.Time
}

func (c *standingClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *standingClock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// cheapPasswords hashes nothing and counts what it would have cost.
type cheapPasswords struct {
	mu             sync.Mutex
	hashes, checks int
}

func (c *cheapPasswords) Check(password, _ string) error {
	if len(password) < 12 {
		return errors.New("must have at least 12 characters")
	}
	return nil
}

func (c *cheapPasswords) Hash(_ context.Context, password string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hashes++
	return fmt.Sprintf("new:%d:%s", c.hashes, password), nil
}

func (c *cheapPasswords) Verify(_ context.Context, hash, password string) (ok, stale bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checks++
	age, rest, _ := strings.Cut(hash, ":")
	_, stored, _ := strings.Cut(rest, ":")
	ok = hash != "" && stored == password
	return ok, ok && age == "old", nil
}

func (c *cheapPasswords) spent() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hashes + c.checks
}

// letter is a mail that was sent.
type letter struct{ kind, to, link string }

type mailbox struct {
	mu   sync.Mutex
	sent []letter
}

func (m *mailbox) put(l letter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sent = append(m.sent, l)
}

func (m *mailbox) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.sent)
}

func (m *mailbox) last(t *testing.T) letter {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.sent) == 0 {
		t.Fatal("no mail was sent")
	}
	return m.sent[len(m.sent)-1]
}

func (m *mailbox) SendVerification(to, link string)      { m.put(letter{"verification", to, link}) }
func (m *mailbox) SendAlreadyRegistered(to, link string) { m.put(letter{"registered", to, link}) }
func (m *mailbox) SendInvitation(to, _, link string)     { m.put(letter{"invitation", to, link}) }
func (m *mailbox) SendReset(to, link string)             { m.put(letter{"reset", to, link}) }

type noResolver struct{}

func (noResolver) Look(context.Context, management.Lookup) management.Observation {
	return management.Observation{}
}
func (noResolver) Prove(context.Context, string, string, string) management.Finding {
	return management.Finding{}
}
func (noResolver) PublicSuffix(string) bool { return false }

type noProber struct{}

func (noProber) Probe(context.Context, *domain.Domain, *netpolicy.Policy) []management.UpstreamProbe {
	return nil
}
