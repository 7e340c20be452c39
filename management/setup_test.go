package management_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
)

func TestSetUp(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		w := newPeople(t, s, signupOpen)
		if required, err := w.SetupRequired(t.Context()); err != nil || !required {
			t.Fatal(required, err)
		}
		who := anybody("192.0.2.1")
		wantCode(t, "sign-up before set-up", w.SignUp(t.Context(), who, management.NewAccount{Email: "a@example.com", Password: password, Tenant: "A"}), management.Forbidden)

		wrong := firstRun()
		wrong.Token = setupToken + "x"
		_, err := w.SetUp(t.Context(), who, wrong)
		wantCode(t, "wrong token", err, management.Forbidden)
		_, err = w.SetUp(t.Context(), who, management.Setup{Token: setupToken, Email: "nobody", Password: "short", Tenant: " "})
		wantCode(t, "faults", err, management.Invalid)
		for _, pointer := range []string{"/email", "/password", "/tenant"} {
			if err == nil || !strings.Contains(err.Error(), pointer+":") {
				t.Errorf("%v does not tell of %s", err, pointer)
			}
		}

		made, err := w.SetUp(t.Context(), who, firstRun())
		if err != nil {
			t.Fatal(err)
		}
		if !made.Tenant.Trusted || !made.User.Operator || made.User.Email != rootEmail {
			t.Errorf("tenant %+v, user %+v", made.Tenant, made.User)
		}
		key, err := w.PrincipalOfKey(t.Context(), made.Secret)
		if err != nil || key.Require(management.Platform) != nil || key.Require(management.All) != nil || key.TenantID != made.Tenant.ID {
			t.Errorf("the key: %+v, %v", key, err)
		}
		session := w.logIn(rootEmail, password)
		if session.Role != management.Owner || session.Require(management.Platform) != nil || session.Require(management.KeysWrite) != nil {
			t.Errorf("the session: %+v", session)
		}

		_, err = w.SetUp(t.Context(), who, firstRun())
		wantCode(t, "again", err, management.SetupDone)
		if required, err := w.SetupRequired(t.Context()); err != nil || required {
			t.Error(required, err)
		}
		if actions, _ := w.events(); fmt.Sprint(actions) != "[user.created tenant.created member.created api_key.created session.created]" {
			t.Error(actions)
		}
	})
}

func TestSetUpAtOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		w := newPeople(t, s, nil)
		var (
			all  sync.WaitGroup
			mu   sync.Mutex
			seen = map[management.Code]int{}
		)
		for range 4 {
			all.Go(func() {
				_, err := w.SetUp(t.Context(), anybody("192.0.2.1"), firstRun())
				mu.Lock()
				defer mu.Unlock()
				seen[management.CodeOf(err)]++
			})
		}
		all.Wait()
		if seen[""] != 1 || seen[management.SetupDone] != 3 {
			t.Error(seen)
		}
		tenants, _, err := w.FindTenants(t.Context(), w.logIn(rootEmail, password), management.Page{Limit: 10})
		if err != nil || len(tenants) != 1 {
			t.Errorf("%d tenants, %v", len(tenants), err)
		}
	})
}

// TestSetUpGuesses: the token cannot be guessed from many addresses at a time either.
func TestSetUpGuesses(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		w := newPeople(t, s, nil)
		wrong := firstRun()
		wrong.Token = "guess"
		for i := range 5 {
			_, err := w.SetUp(t.Context(), anybody(fmt.Sprintf("192.0.2.%d", i)), wrong)
			wantCode(t, "guess", err, management.Forbidden)
		}
		_, err := w.SetUp(t.Context(), anybody("192.0.2.9"), firstRun())
		wantCode(t, "after five guesses", err, management.RateLimited)
		if e := err.(*management.Error); e.RetryAfter <= 0 {
			t.Error("it is not said when to try again")
		}
		w.clock.pass(time.Minute)
		if _, err := w.SetUp(t.Context(), anybody("192.0.2.9"), firstRun()); err != nil {
			t.Error(err)
		}
	})
}

func TestSignUpClosed(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		err := w.SignUp(t.Context(), anybody("192.0.2.1"), management.NewAccount{Email: "a@example.com", Password: password, Tenant: "A"})
		wantCode(t, "sign-up", err, management.Forbidden)
	})
}

func TestSignUpWithoutMail(t *testing.T) {
	eachPeople(t, signupOpen, func(t *testing.T, w *people) {
		account := management.NewAccount{Email: "New@EXAMPLE.com", Password: password, Tenant: "New"}
		before := w.work.spent()
		unknown := w.SignUp(t.Context(), anybody("192.0.2.1"), account)
		forUnknown := w.work.spent() - before
		who := w.logIn("new@example.com", password)
		if who.Role != management.Owner || who.Require(management.Platform) == nil {
			t.Errorf("%+v", who)
		}

		account.Password, account.Email = newPassword, "nEW@example.com"
		before = w.work.spent()
		known := w.SignUp(t.Context(), anybody("192.0.2.1"), account)
		if forKnown := w.work.spent() - before; forKnown != forUnknown {
			t.Errorf("work for a known address %d, for an unknown one %d", forKnown, forUnknown)
		}
		wantSame(t, "sign-up", unknown, known)
		w.logIn("new@example.com", password) // nothing changed
		tenants, _, err := w.FindTenants(t.Context(), w.root, management.Page{Limit: 10})
		if err != nil || len(tenants) != 2 {
			t.Errorf("%d tenants, %v", len(tenants), err)
		}
	})
}

func TestSignUpByMail(t *testing.T) {
	eachPeople(t, signupByMail, func(t *testing.T, w *people) {
		account := management.NewAccount{Email: "new@example.com", Password: password, Tenant: "New"}
		before := w.work.spent()
		unknown := w.SignUp(t.Context(), anybody("192.0.2.1"), account)
		forUnknown := w.work.spent() - before
		sent := w.mail.last(t)
		if sent.kind != "verification" || sent.to != "new@example.com" {
			t.Fatal(sent.kind, sent.to)
		}
		token := tokenOf(t, sent.link)
		_, err := w.LogIn(t.Context(), anybody("192.0.2.1"), management.Login{Email: "new@example.com", Password: password})
		wantCode(t, "log-in before the address is confirmed", err, management.Unauthenticated)

		known := management.NewAccount{Email: rootEmail, Password: password, Tenant: "New"}
		before = w.work.spent()
		wantSame(t, "sign-up", unknown, w.SignUp(t.Context(), anybody("192.0.2.1"), known))
		if forKnown := w.work.spent() - before; forKnown != forUnknown {
			t.Errorf("work for a known address %d, for an unknown one %d", forKnown, forUnknown)
		}
		if sent := w.mail.last(t); sent.kind != "registered" || sent.to != rootEmail || strings.Contains(sent.link, "token") {
			t.Error(sent.kind)
		}

		// The link alone is not enough: whoever signed up knows the password.
		_, err = w.VerifySignup(t.Context(), anybody("192.0.2.1"), token, newPassword)
		wantCode(t, "the wrong password", err, management.Unauthenticated)
		in, err := w.VerifySignup(t.Context(), anybody("192.0.2.1"), token, password)
		if err != nil {
			t.Fatal(err)
		}
		if who := w.as(in, ""); who.Role != management.Owner || who.Email != "new@example.com" {
			t.Errorf("%+v", who)
		}
		_, err = w.VerifySignup(t.Context(), anybody("192.0.2.1"), token, password)
		wantCode(t, "the link again", err, management.NotFound)
	})
}

// TestSignUpForAnother: somebody signs up with another's address. The other, who signs up too, gets his own account, and what
// the first one has is worth nothing.
func TestSignUpForAnother(t *testing.T) {
	eachPeople(t, signupByMail, func(t *testing.T, w *people) {
		account := management.NewAccount{Email: "victim@example.com", Password: newPassword, Tenant: "Trap"}
		if err := w.SignUp(t.Context(), anybody("192.0.2.1"), account); err != nil {
			t.Fatal(err)
		}
		trap := tokenOf(t, w.mail.last(t).link)
		account.Password, account.Tenant = password, "Mine"
		if err := w.SignUp(t.Context(), anybody("192.0.2.7"), account); err != nil {
			t.Fatal(err)
		}
		own := tokenOf(t, w.mail.last(t).link)
		if _, err := w.VerifySignup(t.Context(), anybody("192.0.2.7"), own, password); err != nil {
			t.Fatal(err)
		}
		_, err := w.VerifySignup(t.Context(), anybody("192.0.2.1"), trap, newPassword)
		wantCode(t, "the other link", err, management.NotFound)
		_, err = w.LogIn(t.Context(), anybody("192.0.2.1"), management.Login{Email: "victim@example.com", Password: newPassword})
		wantCode(t, "the other password", err, management.Unauthenticated)
	})
}

// TestSignUpFlood: an address gets three mails in a day, whoever asks and from wherever, and links end.
func TestSignUpFlood(t *testing.T) {
	eachPeople(t, signupByMail, func(t *testing.T, w *people) {
		for _, email := range []string{"new@example.com", rootEmail} {
			before := w.mail.count()
			for i := range 6 {
				w.clock.pass(time.Minute)
				account := management.NewAccount{Email: email, Password: password, Tenant: "New"}
				if err := w.SignUp(t.Context(), anybody(fmt.Sprintf("198.51.100.%d", i)), account); err != nil {
					t.Fatal(err)
				}
			}
			if sent := w.mail.count() - before; sent != 3 {
				t.Errorf("%d mails to %s", sent, email)
			}
		}
		last := tokenOf(t, w.mail.sent[2].link)
		w.clock.pass(management.VerificationLifetime)
		_, err := w.VerifySignup(t.Context(), anybody("192.0.2.1"), last, password)
		wantCode(t, "an old link", err, management.NotFound)
		if err := management.TidyIdentity(w.Plane, t.Context()); err != nil {
			t.Fatal(err)
		}
		before := w.mail.count()
		if err := w.SignUp(t.Context(), anybody("192.0.2.1"), management.NewAccount{Email: rootEmail, Password: password, Tenant: "New"}); err != nil {
			t.Fatal(err)
		}
		if w.mail.count() != before+1 {
			t.Error("no mail on the next day")
		}
	})
}
