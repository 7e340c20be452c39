package management_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// TestNobodyRisesAboveHimself tries every role, and keys, on members, invitations and keys.
func TestNobodyRisesAboveHimself(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		owner := w.tenant("Other", "owner@example.com")
		callers := map[string]*management.Principal{
			"viewer":      w.join(owner, "viewer@example.com", management.Viewer),
			"operator":    w.join(owner, "operator@example.com", management.Operator),
			"admin":       w.join(owner, "admin@example.com", management.Admin),
			"owner":       owner,
			"members key": w.key(owner, management.MembersWrite),
			"keys key":    w.key(owner, management.KeysWrite),
			"* key":       w.key(owner, management.All),
		}
		gives := map[string][]management.Role{ // what each can make of somebody
			"admin": {management.Viewer, management.Operator, management.Admin},
			"owner": management.Roles, "* key": management.Roles,
		}
		target := w.join(owner, "target@example.com", management.Viewer)
		reset := func(role management.Role) {
			w.update(func(tx management.Tx) error {
				m, err := tx.FindMember(owner.TenantID, target.UserID)
				if err != nil {
					return err
				}
				m.Role = role
				return tx.UpdateMember(m)
			})
		}
		for name, who := range callers {
			for _, from := range management.Roles {
				for _, to := range management.Roles {
					if from == to {
						continue
					}
					reset(from)
					_, err := w.UpdateMember(t.Context(), who, target.UserID, &to, "")
					if want := contains(gives[name], from) && contains(gives[name], to); (err == nil) != want {
						t.Errorf("%s makes a %s of a %s: %v", name, to, from, err)
					}
				}
				if name != "owner" && name != "* key" { // these would remove the target
					reset(from)
					if err := w.DeleteMember(t.Context(), who, target.UserID, ""); !contains(gives[name], from) {
						wantCode(t, name+" removes a "+string(from), err, management.Forbidden)
					} else if err != nil {
						t.Error(name, err)
					} else {
						target = w.joinAgain(owner, "target@example.com")
					}
				}
			}
			for _, role := range management.Roles {
				_, err := w.CreateInvitation(t.Context(), who, "guest@example.com", role)
				if (err == nil) != contains(gives[name], role) {
					t.Errorf("%s invites a %s: %v", name, role, err)
				}
			}
			for _, scope := range []management.Scope{management.DomainsRead, management.DomainsWrite, management.CertificatesWrite, management.ConnectionsRead,
				management.UsageRead, management.KeysWrite, management.MembersWrite, management.AuditRead, management.All, management.Platform} {
				_, _, err := w.CreateAPIKey(t.Context(), who, management.NewAPIKey{Name: "k", Scopes: management.Scopes{scope}})
				want := who.Scopes.Has(management.KeysWrite) && who.Scopes.Has(scope)
				if (err == nil) != want {
					t.Errorf("%s makes a key with %s: %v", name, scope, err)
				}
				if scope == management.Platform && err == nil {
					t.Errorf("%s has the platform", name)
				}
			}
		}

		// Nor does a weak key get the secret of a strong one.
		strong, _, err := w.CreateAPIKey(t.Context(), owner, management.NewAPIKey{Name: "strong", Scopes: management.Scopes{management.All}})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"keys key", "admin"} {
			_, _, err = w.RotateAPIKey(t.Context(), callers[name], strong.ID)
			wantCode(t, name+" rotates a stronger key", err, management.Forbidden)
		}
	})
}

func contains(roles []management.Role, role management.Role) bool {
	for _, r := range roles {
		if r == role {
			return true
		}
	}
	return false
}

// joinAgain makes a user who has an account a member again.
func (w *people) joinAgain(by *management.Principal, email string) *management.Principal {
	w.t.Helper()
	return w.join(by, email, management.Viewer)
}

func TestLastOwnerStays(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		owner := w.tenant("Other", "owner@example.com")
		key, viewer := w.key(owner, management.All), management.Viewer
		_, err := w.UpdateMember(t.Context(), owner, owner.UserID, &viewer, "")
		wantCode(t, "becomes a viewer", err, management.Conflict)
		_, err = w.UpdateMember(t.Context(), key, owner.UserID, &viewer, "")
		wantCode(t, "is made a viewer", err, management.Conflict)
		wantCode(t, "leaves", w.DeleteMember(t.Context(), owner, owner.UserID, ""), management.Conflict)
		wantCode(t, "is removed", w.DeleteMember(t.Context(), key, owner.UserID, ""), management.Conflict)
		wantCode(t, "deletes himself", w.DeleteUser(t.Context(), owner, password), management.Conflict)
		wantCode(t, "the last operator deletes himself", w.DeleteUser(t.Context(), w.root, password), management.Conflict)

		second := w.join(owner, "second@example.com", management.Owner)
		if _, err := w.UpdateMember(t.Context(), second, owner.UserID, &viewer, ""); err != nil {
			t.Error(err)
		}
		if err := w.DeleteMember(t.Context(), w.logIn("owner@example.com", password), owner.UserID, ""); err != nil {
			t.Errorf("a viewer cannot leave: %v", err)
		}
		if who := w.logIn("owner@example.com", password); who.TenantID != "" {
			t.Errorf("%+v", who)
		}
	})
}

// TestRoleEndsAtOnce: a session has no more than the member's role of this moment.
func TestRoleEndsAtOnce(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		owner := w.tenant("Other", "owner@example.com")
		admin := w.join(owner, "admin@example.com", management.Admin)
		in := w.signIn("admin@example.com", password)
		invited, err := w.CreateInvitation(t.Context(), w.as(in, ""), "guest@example.com", management.Admin)
		if err != nil {
			t.Fatal(err)
		}
		viewer := management.Viewer
		member, err := w.UpdateMember(t.Context(), owner, admin.UserID, &viewer, `"1"`)
		if err != nil || member.Version != 2 {
			t.Fatal(member, err)
		}
		_, err = w.UpdateMember(t.Context(), owner, admin.UserID, &viewer, `"1"`)
		wantCode(t, "of another version", err, management.PreconditionFailed)
		wantCode(t, "the session", w.as(in, "").Require(management.MembersWrite), management.Forbidden)
		_, err = w.AcceptInvitation(t.Context(), anybody("192.0.2.1"), w.invitation(invited), password)
		wantCode(t, "what he offered before", err, management.NotFound)
		if err := w.DeleteMember(t.Context(), owner, admin.UserID, ""); err != nil {
			t.Fatal(err)
		}
		if who := w.as(in, ""); who.TenantID != "" || len(who.Scopes) != 0 {
			t.Errorf("%+v", who)
		}
	})
}

func TestInvitations(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		owner := w.tenant("Other", "owner@example.com")
		for email, role := range map[string]management.Role{"nonsense": management.Viewer, "a@example.com": "root", "b@example.com": ""} {
			_, err := w.CreateInvitation(t.Context(), owner, email, role)
			wantCode(t, email, err, management.Invalid)
		}
		invited, err := w.CreateInvitation(t.Context(), owner, "new@example.com", management.Operator)
		if err != nil {
			t.Fatal(err)
		}
		if text := fmt.Sprintf("%v %+v %s", invited, invited, invited.URL); strings.Contains(text, w.invitation(invited)) {
			t.Error("printing an invitation shows its token")
		}
		again, err := w.CreateInvitation(t.Context(), owner, "NEW@example.com", management.Viewer)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.AcceptInvitation(t.Context(), anybody("192.0.2.1"), w.invitation(invited), password)
		wantCode(t, "one that was replaced", err, management.NotFound)
		_, err = w.AcceptInvitation(t.Context(), anybody("192.0.2.1"), w.invitation(again), "short")
		wantCode(t, "with a bad password", err, management.Invalid)
		joined, err := w.AcceptInvitation(t.Context(), anybody("192.0.2.1"), w.invitation(again), password)
		if err != nil || joined.Role != management.Viewer || joined.Tenant.ID != owner.TenantID {
			t.Fatal(joined, err)
		}
		_, err = w.AcceptInvitation(t.Context(), anybody("192.0.2.1"), w.invitation(again), password)
		wantCode(t, "once more", err, management.NotFound)
		_, err = w.CreateInvitation(t.Context(), owner, "new@example.com", management.Viewer)
		wantCode(t, "a member", err, management.Conflict)

		// Somebody with an account proves to be that, by password or by being signed in.
		invited, err = w.CreateInvitation(t.Context(), owner, rootEmail, management.Viewer)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.AcceptInvitation(t.Context(), anybody("192.0.2.1"), w.invitation(invited), newPassword)
		wantCode(t, "with the wrong password", err, management.Unauthenticated)
		_, err = w.AcceptInvitation(t.Context(), w.logIn("new@example.com", password), w.invitation(invited), "")
		wantCode(t, "signed in as somebody else", err, management.Unauthenticated)
		_, err = w.AcceptInvitation(t.Context(), w.key(w.root, management.All), w.invitation(invited), "")
		wantCode(t, "with his API key", err, management.Unauthenticated)
		if _, err = w.AcceptInvitation(t.Context(), w.root, w.invitation(invited), ""); err != nil {
			t.Fatal(err)
		}
		w.signIn(rootEmail, password) // his password is what it was

		invited, err = w.CreateInvitation(t.Context(), owner, "late@example.com", management.Viewer)
		if err != nil {
			t.Fatal(err)
		}
		revoked, err := w.CreateInvitation(t.Context(), owner, "never@example.com", management.Viewer)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.DeleteInvitation(t.Context(), owner, revoked.ID); err != nil {
			t.Fatal(err)
		}
		_, err = w.AcceptInvitation(t.Context(), anybody("192.0.2.1"), w.invitation(revoked), password)
		wantCode(t, "a revoked one", err, management.NotFound)
		w.clock.pass(management.InvitationLifetime)
		_, err = w.AcceptInvitation(t.Context(), anybody("192.0.2.1"), w.invitation(invited), password)
		wantCode(t, "an old one", err, management.NotFound)
	})
}

func TestInvitationsByMail(t *testing.T) {
	eachPeople(t, withMail, func(t *testing.T, w *people) {
		invited, err := w.CreateInvitation(t.Context(), w.root, "new@example.com", management.Viewer)
		if err != nil {
			t.Fatal(err)
		}
		if invited.URL.Reveal() != "" || w.mail.last(t).to != "new@example.com" {
			t.Error("the link is not in the mail alone")
		}
		limited := false
		for i := range 10 { // no way to fill mailboxes
			_, err := w.CreateInvitation(t.Context(), w.root, fmt.Sprintf("u%d@example.com", i), management.Viewer)
			limited = limited || management.CodeOf(err) == management.RateLimited
		}
		if !limited {
			t.Error("eleven mails in a moment")
		}
	})
}

func TestTooManyInvitations(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		for i := range 50 {
			if _, err := w.CreateInvitation(t.Context(), w.root, fmt.Sprintf("u%d@example.com", i), management.Viewer); err != nil {
				t.Fatal(err)
			}
		}
		_, err := w.CreateInvitation(t.Context(), w.root, "one-more@example.com", management.Viewer)
		wantCode(t, "one more", err, management.QuotaExceeded)
	})
}

func TestDeleteUser(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		owner := w.tenant("Other", "owner@example.com")
		member := w.join(owner, "member@example.com", management.Admin)
		in := w.signIn("member@example.com", password)
		_, secret, err := w.CreateAPIKey(t.Context(), member, management.NewAPIKey{Name: "k", Scopes: management.Scopes{management.DomainsRead}})
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, "with a wrong password", w.DeleteUser(t.Context(), member, newPassword), management.Invalid)
		if err := w.DeleteUser(t.Context(), member, password); err != nil {
			t.Fatal(err)
		}
		_, err = w.of(in, "")
		wantCode(t, "the session", err, management.Unauthenticated)
		_, err = w.LogIn(t.Context(), anybody("192.0.2.1"), management.Login{Email: "member@example.com", Password: password})
		wantCode(t, "the account", err, management.Unauthenticated)
		if key, err := w.PrincipalOfKey(t.Context(), secret); err != nil || key.TenantID != owner.TenantID {
			t.Errorf("the tenant's key went with its maker: %v", err)
		}
		if members, _, err := w.FindMembers(t.Context(), owner, page); err != nil || len(members) != 1 {
			t.Errorf("%d members, %v", len(members), err)
		}
	})
}

func TestParseEmail(t *testing.T) {
	for in, want := range map[string]string{
		"a@example.com": "a@example.com", "First.Last+tag@EXAMPLE.Com": "First.Last+tag@example.com", "x@localhost": "x@localhost",
		"a@xn--bcher-kva.example":                "a@xn--bcher-kva.example",
		strings.Repeat("a", 64) + "@example.com": strings.Repeat("a", 64) + "@example.com",
	} {
		if got, err := management.ParseEmail(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "a", "@", "a@", "@example.com", "a@b@c", "Name <a@example.com>", "<a@example.com>", " a@example.com", "a@example.com ",
		"a@example.com\n", "a@example.com\r\nBcc: b@example.com", "a,b@example.com", "a@example.com,b@example.com", `"a b"@example.com`, "a@[192.0.2.1]",
		"a@-b.com", "a@b-.com", "a@b..com", "a@b.com.", "a@.b.com", "a(c)@example.com", "ä@example.com", "a@exämple.com", "a@exa_mple.com",
		strings.Repeat("a", 65) + "@example.com", "a@" + strings.Repeat("b", 64) + ".com", "a@" + strings.Repeat("b.", 130) + "com", "a\x00@example.com",
		"group: a@example.com;", "=?utf-8?q?a?= <a@example.com>"} {
		if got, err := management.ParseEmail(in); err == nil {
			t.Errorf("%q became %q", in, got)
		}
	}
}

func FuzzParseEmail(f *testing.F) {
	for _, seed := range []string{"a@example.com", "A <a@b>", `"@"@b`, "a@B.c", "a@[::1]"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		email, err := management.ParseEmail(text)
		if err != nil {
			return
		}
		if again, err := management.ParseEmail(email); err != nil || again != email {
			t.Fatalf("%q became %q became %q, %v", text, email, again, err)
		}
		if len(email) > 254 || strings.ContainsAny(email, " \r\n<>\"") || !strings.EqualFold(email, text) {
			t.Fatalf("%q became %q", text, email)
		}
	})
}

func TestCheckTitle(t *testing.T) {
	for _, name := range []string{"A", "Müller & Söhne", strings.Repeat("ü", 128), "日本語"} {
		if err := management.CheckTitle(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", " ", " a", "a ", "a\nb", "a\x00", "a\u202eb", "a\u200bb", "\xff", strings.Repeat("a", 129), "a\u00a0b"} {
		if management.CheckTitle(name) == nil {
			t.Errorf("%q is fine", name)
		}
	}
}
