package management_test

import (
	"encoding/base32"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// TestLogInTellsNothing: an unknown address, an impossible one and a wrong password look alike and cost the same.
func TestLogInTellsNothing(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		try := func(email, password string) error {
			before := w.work.spent()
			_, err := w.LogIn(t.Context(), anybody("192.0.2.9"), management.Login{Email: email, Password: password})
			wantCode(t, email, err, management.Unauthenticated)
			if spent := w.work.spent() - before; spent != 1 {
				t.Errorf("%s: %d passwords were checked", email, spent)
			}
			return err
		}
		want := try(rootEmail, newPassword)
		for _, email := range []string{"nobody@example.com", "no address", "", strings.Repeat("a", 400) + "@example.com", "' OR 1=1 --@example.com"} {
			wantSame(t, email, want, try(email, password))
		}
		wantSame(t, "a giant password", want, try(rootEmail, strings.Repeat("x", 1<<20)))
	})
}

func TestLogInBruteForce(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		for _, email := range []string{rootEmail, "nobody@example.com"} { // whether or not there is such an account
			for i := range 5 {
				who := anybody(fmt.Sprintf("198.51.100.%d", i))
				_, err := w.LogIn(t.Context(), who, management.Login{Email: email, Password: newPassword})
				wantCode(t, "a guess", err, management.Unauthenticated)
			}
			before := w.work.spent()
			_, err := w.LogIn(t.Context(), anybody("198.51.100.99"), management.Login{Email: strings.ToUpper(email), Password: password})
			wantCode(t, "the right password after five guesses", err, management.RateLimited)
			if w.work.spent() != before {
				t.Error("work was done for it all the same")
			}
		}
		w.clock.pass(time.Minute)
		w.signIn(rootEmail, password)

		limited := 0
		for i := range 30 { // one address, many accounts
			_, err := w.LogIn(t.Context(), anybody("203.0.113.5"), management.Login{Email: fmt.Sprintf("u%d@example.com", i), Password: newPassword})
			if management.CodeOf(err) == management.RateLimited {
				limited++
			}
		}
		if limited != 10 {
			t.Errorf("%d of 30 tries were refused", limited)
		}
	})
}

func TestSessionLife(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		a, b := w.signIn(rootEmail, password), w.signIn(rootEmail, password)
		if a.Token.Reveal() == b.Token.Reveal() || len(a.Token.Reveal()) < 40 {
			t.Error("sessions share a token")
		}
		if text := fmt.Sprintf("%v %+v %#v %s", a, *a, a.Token, a.Token); strings.Contains(text, a.Token.Reveal()) {
			t.Error("printing a session shows its token")
		}
		if err := w.LogOut(t.Context(), anybody("192.0.2.1"), a.Token.Reveal()); err != nil {
			t.Fatal(err)
		}
		_, err := w.of(a, "")
		wantCode(t, "after signing out", err, management.Unauthenticated)
		for _, token := range []string{a.Token.Reveal(), "", "nonsense"} {
			if err := w.LogOut(t.Context(), anybody("192.0.2.1"), token); err != nil {
				t.Error(err)
			}
		}

		// Used each few hours it lives on, as far as its use is stored; then no longer than its lifetime.
		for range 5 {
			w.clock.pass(20 * time.Hour)
			w.as(b, "")
			if err := management.StoreUses(w.Plane, t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		w.clock.pass(management.SessionIdle)
		_, err = w.of(b, "")
		wantCode(t, "not used for a day", err, management.Unauthenticated)

		c := w.signIn(rootEmail, password)
		for range int(management.SessionLifetime/(20*time.Hour)) - 1 {
			w.clock.pass(20 * time.Hour)
			w.as(c, "")
			if err := management.StoreUses(w.Plane, t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		w.clock.pass(20 * time.Hour)
		_, err = w.of(c, "")
		wantCode(t, "after its lifetime", err, management.Unauthenticated)

		if err := management.TidyIdentity(w.Plane, t.Context()); err != nil {
			t.Fatal(err)
		}
		w.update(func(tx management.Tx) error {
			for _, in := range []*management.SignedIn{b, c} {
				hash, _ := w.auth.HashToken(management.SessionToken, in.Token.Reveal())
				if _, err := tx.FindSession(hash); err != management.ErrNoRow {
					t.Errorf("an ended session is still there: %v", err)
				}
			}
			return nil
		})
	})
}

// TestManySessions: the oldest gives way, so nobody fills the database by signing in.
func TestManySessions(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		first := w.signIn(rootEmail, password)
		for range 50 {
			w.clock.pass(time.Second)
			w.signIn(rootEmail, password)
		}
		_, err := w.of(first, "")
		wantCode(t, "the first of 51", err, management.Unauthenticated)
	})
}

func TestChangePassword(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		other := w.signIn(rootEmail, password)
		_, err := w.ChangePassword(t.Context(), w.root, newPassword, newPassword)
		wantCode(t, "without the old one", err, management.Invalid)
		_, err = w.ChangePassword(t.Context(), w.root, password, "short")
		wantCode(t, "to a bad one", err, management.Invalid)
		_, err = w.ChangePassword(t.Context(), w.key(w.root, management.All), password, newPassword)
		wantCode(t, "by a key", err, management.Forbidden)
		in, err := w.ChangePassword(t.Context(), w.root, password, newPassword)
		if err != nil {
			t.Fatal(err)
		}
		w.as(in, "")
		_, err = w.of(other, "")
		wantCode(t, "another session", err, management.Unauthenticated)
		_, err = w.LogIn(t.Context(), anybody("192.0.2.1"), management.Login{Email: rootEmail, Password: password})
		wantCode(t, "the old password", err, management.Unauthenticated)
		w.signIn(rootEmail, newPassword)

		for range 5 { // a stolen session is no way to guess the password
			_, _ = w.ChangePassword(t.Context(), w.root, "a guess of it", newPassword)
		}
		_, err = w.ChangePassword(t.Context(), w.root, newPassword, password)
		wantCode(t, "after many guesses", err, management.RateLimited)
	})
}

func TestStalePasswordIsHashedAgain(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		w.update(func(tx management.Tx) error {
			user, err := tx.FindUser(w.made.User.ID)
			if err != nil {
				return err
			}
			user.PasswordHash = strings.Replace(user.PasswordHash, "new:", "old:", 1)
			return tx.UpdateUser(user)
		})
		w.signIn(rootEmail, password)
		w.update(func(tx management.Tx) error {
			user, err := tx.FindUser(w.made.User.ID)
			if err == nil && !strings.HasPrefix(user.PasswordHash, "new:") {
				t.Error("the hash is still old")
			}
			return err
		})
		w.signIn(rootEmail, password)
	})
}

func TestPasswordReset(t *testing.T) {
	eachPeople(t, withMail, func(t *testing.T, w *people) {
		session := w.signIn(rootEmail, password)
		known := w.RequestPasswordReset(t.Context(), anybody("192.0.2.1"), rootEmail)
		if known != nil {
			t.Fatal(known)
		}
		sent := w.mail.last(t)
		wantSame(t, "asking", known, w.RequestPasswordReset(t.Context(), anybody("192.0.2.1"), "nobody@example.com"))
		if w.mail.count() != 1 || sent.kind != "reset" || sent.to != rootEmail {
			t.Errorf("%d mails, the first is a %s", w.mail.count(), sent.kind)
		}
		token := tokenOf(t, sent.link)
		if err := w.RequestPasswordReset(t.Context(), anybody("192.0.2.1"), rootEmail); err != nil {
			t.Fatal(err)
		}
		second := tokenOf(t, w.mail.last(t).link)

		wantCode(t, "a bad password", w.ResetPassword(t.Context(), anybody("192.0.2.1"), token, "short"), management.Invalid)
		if err := w.ResetPassword(t.Context(), anybody("192.0.2.1"), token, newPassword); err != nil {
			t.Fatal(err)
		}
		_, err := w.of(session, "")
		wantCode(t, "a session of before", err, management.Unauthenticated)
		w.signIn(rootEmail, newPassword)
		for _, token := range []string{token, second, "", "x", strings.Repeat("A", 43)} {
			wantCode(t, "a used, void or wrong link", w.ResetPassword(t.Context(), anybody("192.0.2.1"), token, newPassword), management.NotFound)
		}

		// A user's mailbox is not to be filled, and links end.
		before := w.mail.count()
		for i := range 6 {
			w.clock.pass(time.Minute)
			if err := w.RequestPasswordReset(t.Context(), anybody(fmt.Sprintf("198.51.100.%d", i)), rootEmail); err != nil {
				t.Fatal(err)
			}
		}
		if sent := w.mail.count() - before; sent != 3 {
			t.Errorf("%d mails", sent)
		}
		token = tokenOf(t, w.mail.last(t).link)
		w.clock.pass(management.ResetLifetime)
		wantCode(t, "an old link", w.ResetPassword(t.Context(), anybody("192.0.2.1"), token, newPassword), management.NotFound)
	})
}

// TestTokensHaveOnePurpose: a token of one kind opens nothing else.
func TestTokensHaveOnePurpose(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		invited, err := w.CreateInvitation(t.Context(), w.root, "new@example.com", management.Viewer)
		if err != nil {
			t.Fatal(err)
		}
		session := w.signIn(rootEmail, password).Token.Reveal()
		for _, token := range []string{w.invitation(invited), session} {
			wantCode(t, "as a reset", w.ResetPassword(t.Context(), anybody("192.0.2.1"), token, newPassword), management.NotFound)
			_, err = w.VerifySignup(t.Context(), anybody("192.0.2.1"), token, password)
			wantCode(t, "as a sign-up", err, management.NotFound)
		}
		_, err = w.AcceptInvitation(t.Context(), anybody("192.0.2.1"), session, password)
		wantCode(t, "as an invitation", err, management.NotFound)
		_, err = w.PrincipalOfSession(t.Context(), w.invitation(invited), "")
		wantCode(t, "as a session", err, management.Unauthenticated)
	})
}

func TestTOTP(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		logIn := func(password, code string) error {
			w.clock.pass(time.Minute) // the limits are not what is tested, and each code is good once
			_, err := w.LogIn(t.Context(), anybody("192.0.2.1"), management.Login{Email: rootEmail, Password: password, TOTP: code})
			return err
		}
		_, err := w.BeginTOTP(t.Context(), w.root, newPassword)
		wantCode(t, "with the wrong password", err, management.Invalid)
		wantCode(t, "to confirm nothing", w.ConfirmTOTP(t.Context(), w.root, "123456"), management.Conflict)
		uri, err := w.BeginTOTP(t.Context(), w.root, password)
		if err != nil {
			t.Fatal(err)
		}
		code := func() string { return totpCode(t, uri, w.clock.now()) }
		if err := logIn(password, ""); err != nil {
			t.Errorf("before it is confirmed: %v", err)
		}
		wantCode(t, "to confirm with nonsense", w.ConfirmTOTP(t.Context(), w.root, "abcdef"), management.Invalid)
		if err := w.ConfirmTOTP(t.Context(), w.root, code()); err != nil {
			t.Fatal(err)
		}

		wantCode(t, "wrong password, no code", logIn(newPassword, ""), management.Unauthenticated)
		wantCode(t, "no code", logIn(password, ""), management.TOTPRequired)
		wantCode(t, "a wrong code", logIn(password, "abcdef"), management.TOTPRequired)
		w.clock.pass(time.Minute)
		now := code()
		login := management.Login{Email: rootEmail, Password: newPassword, TOTP: now}
		_, err = w.LogIn(t.Context(), anybody("192.0.2.1"), login)
		wantCode(t, "wrong password, right code", err, management.Unauthenticated)
		login.Password = password
		if _, err = w.LogIn(t.Context(), anybody("192.0.2.1"), login); err != nil {
			t.Fatal(err)
		}
		_, err = w.LogIn(t.Context(), anybody("192.0.2.1"), login)
		wantCode(t, "the same code again", err, management.TOTPRequired)

		_, err = w.BeginTOTP(t.Context(), w.root, password)
		wantCode(t, "to begin while it is on", err, management.Conflict)
		if n, err := management.RewrapUsers(w.Plane, t.Context()); err != nil || n != 0 {
			t.Errorf("rewrapping under the same key: %d, %v", n, err)
		}
		wantCode(t, "to end with the wrong password", w.EndTOTP(t.Context(), w.root, newPassword), management.Invalid)
		if err := w.EndTOTP(t.Context(), w.root, password); err != nil {
			t.Fatal(err)
		}
		if err := logIn(password, ""); err != nil {
			t.Error(err)
		}

		// Who lost the app is let in by the link of who runs the service.
		if uri, err = w.BeginTOTP(t.Context(), w.root, password); err != nil {
			t.Fatal(err)
		}
		w.clock.pass(time.Minute)
		if err := w.ConfirmTOTP(t.Context(), w.root, code()); err != nil {
			t.Fatal(err)
		}
		for _, email := range []string{"nobody@example.com", "nobody", "a\x00@example.com"} {
			_, err = w.PasswordResetLink(t.Context(), email)
			wantCode(t, "a link for nobody", err, management.NotFound)
		}
		link, err := w.PasswordResetLink(t.Context(), "ROOT@example.com")
		if err != nil {
			t.Fatal(err)
		}
		if err := w.ResetPassword(t.Context(), anybody("192.0.2.1"), tokenOf(t, link), newPassword); err != nil {
			t.Fatal(err)
		}
		if err := logIn(newPassword, ""); err != nil {
			t.Error(err)
		}
	})
}

// TestTOTPSurvivesReset: the mail alone does not replace the app.
func TestTOTPSurvivesReset(t *testing.T) {
	eachPeople(t, withMail, func(t *testing.T, w *people) {
		uri, err := w.BeginTOTP(t.Context(), w.root, password)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.ConfirmTOTP(t.Context(), w.root, totpCode(t, uri, w.clock.now())); err != nil {
			t.Fatal(err)
		}
		if err := w.RequestPasswordReset(t.Context(), anybody("192.0.2.1"), rootEmail); err != nil {
			t.Fatal(err)
		}
		if err := w.ResetPassword(t.Context(), anybody("192.0.2.1"), tokenOf(t, w.mail.last(t).link), newPassword); err != nil {
			t.Fatal(err)
		}
		_, err = w.LogIn(t.Context(), anybody("192.0.2.1"), management.Login{Email: rootEmail, Password: newPassword})
		wantCode(t, "with the new password alone", err, management.TOTPRequired)
	})
}

// totpCode is what an app would show that read the URI (RFC 6238).
func totpCode(t *testing.T, uri string, now time.Time) string {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(u.Query().Get("secret"))
	if err != nil || len(secret) == 0 {
		t.Fatal("no secret in the URI")
	}
	mac := hmac.New(sha1.New, secret)
	if err := binary.Write(mac, binary.BigEndian, now.Unix()/30); err != nil {
		t.Fatal(err)
	}
	sum := mac.Sum(nil)
	at := sum[len(sum)-1] & 15
	return fmt.Sprintf("%06d", binary.BigEndian.Uint32(sum[at:])&0x7fffffff%1_000_000)
}
