package management_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

var page = management.Page{Limit: 50}

// TestOtherTenant: what is another tenant's looks as if it were not there.
func TestOtherTenant(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		other := w.tenant("Other", "other@example.com")
		key, _, err := w.CreateAPIKey(t.Context(), other, management.NewAPIKey{Name: "k", Scopes: management.Scopes{management.DomainsRead}})
		if err != nil {
			t.Fatal(err)
		}
		invited, err := w.CreateInvitation(t.Context(), other, "guest@example.com", management.Viewer)
		if err != nil {
			t.Fatal(err)
		}
		viewer := management.Viewer
		mine := w.tenant("Mine", "mine@example.com")
		tries := map[string]func(user, key, invitation string) error{
			"PATCH member":  func(u, _, _ string) error { _, err := w.UpdateMember(t.Context(), mine, u, &viewer, ""); return err },
			"DELETE member": func(u, _, _ string) error { return w.DeleteMember(t.Context(), mine, u, "") },
			"rotate key":    func(_, k, _ string) error { _, _, err := w.RotateAPIKey(t.Context(), mine, k); return err },
			"DELETE key":    func(_, k, _ string) error { return w.DeleteAPIKey(t.Context(), mine, k) },
			"DELETE invite": func(_, _, i string) error { return w.DeleteInvitation(t.Context(), mine, i) },
		}
		for what, try := range tries {
			theirs := try(other.UserID, key.ID, invited.ID)
			wantCode(t, what, theirs, management.NotFound)
			none := try(management.NewID(management.UserID), management.NewID(management.APIKeyID), management.NewID(management.InvitationID))
			wantSame(t, what, theirs, none)
			for _, odd := range []string{"", "'", "%", "a\x00", "\xff"} {
				wantSame(t, what+" with nonsense", theirs, try(odd, odd, odd))
			}
		}
		in := w.signIn("mine@example.com", password)
		_, err = w.of(in, other.TenantID)
		wantCode(t, "naming the other tenant", err, management.NotFound)
		_, none := w.of(in, management.NewID(management.TenantID))
		wantSame(t, "naming a tenant", err, none)

		for what, ids := range map[string]func() ([]string, error){
			"members": func() (ids []string, err error) {
				rows, _, err := w.FindMembers(t.Context(), mine, page)
				for _, r := range rows {
					ids = append(ids, r.UserID)
				}
				return ids, err
			},
			"keys": func() (ids []string, err error) {
				rows, _, err := w.FindAPIKeys(t.Context(), mine, page)
				for _, r := range rows {
					ids = append(ids, r.ID)
				}
				return ids, err
			},
			"invitations": func() (ids []string, err error) {
				rows, _, err := w.FindInvitations(t.Context(), mine, page)
				for _, r := range rows {
					ids = append(ids, r.ID)
				}
				return ids, err
			},
		} {
			got, err := ids()
			if err != nil || slices.Contains(got, other.UserID) || slices.Contains(got, key.ID) || slices.Contains(got, invited.ID) {
				t.Errorf("%s: %v, %v", what, got, err)
			}
		}
	})
}

// TestPlatformIsApart: the owner of a tenant gets nothing of the platform, nor does a key with `*`.
func TestPlatformIsApart(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		owner := w.tenant("Other", "other@example.com")
		yes, some := true, management.NewTenant{Name: "Mine"}
		for _, who := range []*management.Principal{owner, w.key(owner, management.All), {}, nil} {
			_, _, listErr := w.FindTenants(t.Context(), who, page)
			_, _, createErr := w.CreateTenant(t.Context(), who, some)
			_, updateErr := w.UpdateTenant(t.Context(), who, owner.TenantID, management.TenantUpdate{Trusted: &yes}, "")
			_, _, tokensErr := w.FindEdgeTokens(t.Context(), who, page)
			_, _, tokenErr := w.CreateEdgeToken(t.Context(), who, "edge")
			deleteErr := w.DeleteEdgeToken(t.Context(), who, management.NewID(management.EdgeTokenID))
			want := management.Forbidden
			if who == nil {
				want = management.Unauthenticated
			}
			for what, err := range map[string]error{"list": listErr, "create": createErr, "update": updateErr, "tokens": tokensErr, "token": tokenErr, "delete": deleteErr} {
				wantCode(t, what, err, want)
			}
		}
	})
}

func TestTenantOfSession(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		tenant, _, err := w.CreateTenant(t.Context(), w.root, management.NewTenant{Name: "Second"})
		if err != nil {
			t.Fatal(err)
		}
		in := w.signIn(rootEmail, password)
		if who := w.as(in, ""); who.TenantID != w.made.Tenant.ID {
			t.Error("the default is not the tenant that was joined first")
		}
		who := w.as(in, tenant.ID)
		if who.TenantID != tenant.ID || who.Role != management.Owner || !who.Scopes.Has(management.Platform) {
			t.Errorf("%+v", who)
		}
		me, err := w.Me(t.Context(), who)
		if err != nil {
			t.Fatal(err)
		}
		if me.User.Email != rootEmail || me.APIKey != nil || me.Tenant.ID != tenant.ID || *me.Role != management.Owner || !me.Platform || len(me.Tenants) != 2 {
			t.Errorf("%+v", me)
		}
		me, err = w.Me(t.Context(), w.key(who, management.DomainsRead))
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(me)
		if err != nil {
			t.Fatal(err)
		}
		if me.User != nil || me.APIKey == nil || me.Tenant.ID != tenant.ID || me.Role != nil || me.Platform || !strings.Contains(string(text), `"scopes":["domains:read"]`) {
			t.Errorf("%s", text)
		}
		_, err = w.Me(t.Context(), anybody("192.0.2.1"))
		wantCode(t, "nobody", err, management.Unauthenticated)
	})
}

func TestUpdateTenant(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		owner := w.tenant("Other", "other@example.com")
		name, bad := "Renamed — Ünïcode", "line\nbreak"
		tenant, err := w.FindTenant(t.Context(), owner)
		if err != nil {
			t.Fatal(err)
		}
		if tenant.Trusted || tenant.MaxDomains != 1000 {
			t.Errorf("%+v", tenant)
		}
		_, err = w.RenameTenant(t.Context(), owner, &bad, "")
		wantCode(t, "a bad name", err, management.Invalid)
		_, err = w.RenameTenant(t.Context(), owner, &name, `"7"`)
		wantCode(t, "of another version", err, management.PreconditionFailed)
		renamed, err := w.RenameTenant(t.Context(), owner, &name, management.Precondition(management.ETag(tenant.Version)))
		if err != nil || renamed.Name != name || renamed.Version != tenant.Version+1 {
			t.Errorf("%+v, %v", renamed, err)
		}
		admin := w.join(owner, "admin@example.com", management.Admin)
		_, err = w.RenameTenant(t.Context(), admin, &name, "")
		wantCode(t, "by an admin", err, management.Forbidden)
		if _, err := w.FindTenant(t.Context(), w.join(owner, "viewer@example.com", management.Viewer)); err != nil {
			t.Errorf("a viewer cannot see the tenant: %v", err)
		}

		no, many := -1, 10_000_000
		for _, n := range []*int{&no, &many} {
			_, err = w.UpdateTenant(t.Context(), w.root, owner.TenantID, management.TenantUpdate{MaxDomains: n}, "")
			wantCode(t, "a bad limit", err, management.Invalid)
		}
		_, err = w.UpdateTenant(t.Context(), w.root, management.NewID(management.TenantID), management.TenantUpdate{}, "")
		wantCode(t, "no tenant", err, management.NotFound)
		yes, few := true, 7
		updated, err := w.UpdateTenant(t.Context(), w.root, owner.TenantID, management.TenantUpdate{Trusted: &yes, MaxDomains: &few}, "")
		if err != nil || !updated.Trusted || updated.MaxDomains != 7 {
			t.Errorf("%+v, %v", updated, err)
		}
	})
}

func TestSuspendedTenant(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		var told []string
		w.OnTenantChange(func(_ management.Tx, tenant *management.Tenant) error {
			if tenant.Suspended {
				told = append(told, tenant.ID)
			}
			return nil
		})
		owner := w.tenant("Other", "other@example.com")
		_, secret, err := w.CreateAPIKey(t.Context(), owner, management.NewAPIKey{Name: "k", Scopes: management.Scopes{management.All}})
		if err != nil {
			t.Fatal(err)
		}
		yes, no := true, false
		if _, err := w.UpdateTenant(t.Context(), w.root, owner.TenantID, management.TenantUpdate{Suspended: &yes}, ""); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(told, []string{owner.TenantID}) {
			t.Errorf("told of %v", told)
		}
		owner = w.logIn("other@example.com", password)
		key, err := w.PrincipalOfKey(t.Context(), secret)
		if err != nil {
			t.Fatal(err)
		}
		for _, who := range []*management.Principal{owner, key} {
			for _, s := range []management.Scope{management.DomainsWrite, management.CertificatesWrite, management.KeysWrite, management.MembersWrite, management.All, management.Platform} {
				wantCode(t, string(s), who.Require(s), management.Forbidden)
			}
			for _, s := range []management.Scope{management.DomainsRead, management.ConnectionsRead, management.UsageRead, management.AuditRead} {
				if err := who.Require(s); err != nil {
					t.Error(err)
				}
			}
		}
		wantCode(t, "to delete it", w.DeleteTenant(t.Context(), owner, password, ""), management.Forbidden)
		if _, err := w.UpdateTenant(t.Context(), w.root, owner.TenantID, management.TenantUpdate{Suspended: &no}, ""); err != nil {
			t.Fatal(err)
		}
		if err := w.logIn("other@example.com", password).Require(management.All); err != nil {
			t.Error(err)
		}
	})
}

func TestDeleteTenant(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		deleted := 0
		w.OnTenantChange(func(_ management.Tx, tenant *management.Tenant) error {
			if !tenant.DeletedAt.IsZero() {
				deleted++
			}
			return nil
		})
		owner := w.tenant("Other", "other@example.com")
		admin := w.join(owner, "admin@example.com", management.Admin)
		_, secret, err := w.CreateAPIKey(t.Context(), owner, management.NewAPIKey{Name: "k", Scopes: management.Scopes{management.All}})
		if err != nil {
			t.Fatal(err)
		}
		key, err := w.PrincipalOfKey(t.Context(), secret)
		if err != nil {
			t.Fatal(err)
		}
		invited, err := w.CreateInvitation(t.Context(), owner, "guest@example.com", management.Viewer)
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, "by a key", w.DeleteTenant(t.Context(), key, password, ""), management.Forbidden)
		wantCode(t, "by an admin", w.DeleteTenant(t.Context(), admin, password, ""), management.Forbidden)
		wantCode(t, "with a wrong password", w.DeleteTenant(t.Context(), owner, newPassword, ""), management.Invalid)
		if err := w.DeleteTenant(t.Context(), owner, password, ""); err != nil {
			t.Fatal(err)
		}
		if deleted != 1 {
			t.Errorf("the others were told %d times", deleted)
		}
		_, err = w.PrincipalOfKey(t.Context(), secret)
		wantCode(t, "its key", err, management.Unauthenticated)
		_, err = w.AcceptInvitation(t.Context(), anybody("192.0.2.1"), w.invitation(invited), password)
		wantCode(t, "its invitation", err, management.NotFound)
		_, err = w.FindTenant(t.Context(), owner)
		wantCode(t, "the tenant", err, management.NotFound)
		wantCode(t, "once more", w.DeleteTenant(t.Context(), owner, password, ""), management.NotFound)
		if who := w.logIn("other@example.com", password); who.TenantID != "" || len(who.Scopes) != 0 {
			t.Errorf("%+v", who)
		}
		if tenants, _, err := w.FindTenants(t.Context(), w.root, page); err != nil || len(tenants) != 1 {
			t.Errorf("%d tenants, %v", len(tenants), err)
		}

		// Users stay for 30 days, and are an ID in the audit log after that.
		tidy := func() (there bool) {
			if err := management.TidyIdentity(w.Plane, t.Context()); err != nil {
				t.Fatal(err)
			}
			_, err := w.LogIn(t.Context(), anybody("192.0.2.77"), management.Login{Email: "other@example.com", Password: password})
			return err == nil
		}
		if w.clock.pass(29 * 24 * time.Hour); !tidy() {
			t.Error("the user went too early")
		}
		if w.clock.pass(24*time.Hour + time.Second); tidy() {
			t.Error("the user is still there")
		}
		w.signIn(rootEmail, password)
	})
}

// TestDeleteAndChangeAtOnce: of two who do what excludes each other, one is refused.
func TestDeleteAndChangeAtOnce(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		a := w.tenant("Other", "a@example.com")
		b := w.join(a, "b@example.com", management.Owner)
		errs := make(chan error, 2)
		for _, who := range []*management.Principal{a, b} {
			go func() { errs <- w.DeleteMember(t.Context(), who, who.UserID, "") }()
		}
		first, second := <-errs, <-errs
		if (first == nil) == (second == nil) {
			t.Errorf("both owners left, or none: %v, %v", first, second)
		}

		c := w.tenant("Third", "c@example.com")
		for range 2 {
			go func() { errs <- w.DeleteTenant(t.Context(), c, password, "") }()
		}
		first, second = <-errs, <-errs
		if (first == nil) == (second == nil) {
			t.Errorf("the tenant was deleted twice, or not: %v, %v", first, second)
		}
	})
}

// TestAuditHasNoSecrets: whatever happens, the log has neither secrets nor addresses of people.
func TestAuditHasNoSecrets(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		owner := w.tenant("Other", "owner@example.com")
		member := w.join(owner, "member@example.com", management.Operator)
		key, secret, err := w.CreateAPIKey(t.Context(), owner, management.NewAPIKey{Name: "k", Scopes: management.Scopes{management.All}})
		if err != nil {
			t.Fatal(err)
		}
		_, rotated, err := w.RotateAPIKey(t.Context(), owner, key.ID)
		if err != nil {
			t.Fatal(err)
		}
		viewer := management.Viewer
		if _, err := w.UpdateMember(t.Context(), owner, member.UserID, &viewer, ""); err != nil {
			t.Fatal(err)
		}
		if err := w.DeleteAPIKey(t.Context(), owner, key.ID); err != nil {
			t.Fatal(err)
		}
		if err := w.DeleteUser(t.Context(), member, password); err != nil {
			t.Fatal(err)
		}
		_, edge, err := w.CreateEdgeToken(t.Context(), w.root, "edge")
		if err != nil {
			t.Fatal(err)
		}
		actions, events := w.events()
		for _, want := range []string{"tenant.created", "invitation.created", "user.created", "member.created", "api_key.created", "api_key.rotated",
			"member.updated", "api_key.deleted", "member.deleted", "user.deleted", "edge_token.created", "session.created"} {
			if !slices.Contains(actions, want) {
				t.Errorf("nothing of %s", want)
			}
		}
		text, err := json.Marshal(events)
		if err != nil {
			t.Fatal(err)
		}
		for _, hidden := range []string{password, secret.Reveal(), rotated.Reveal(), edge.Reveal(), "@example.com", "token="} {
			if strings.Contains(string(text), hidden) {
				t.Errorf("the log has %q", hidden)
			}
		}
		if mine, err := w.FindEvents(t.Context(), owner, management.EventFilter{Limit: 100, TenantID: w.made.Tenant.ID}); err != nil || len(mine) == 0 ||
			slices.ContainsFunc(mine, func(e *management.Event) bool { return e.TenantID != owner.TenantID }) {
			t.Errorf("an owner sees %d events, %v", len(mine), err)
		}
	})
}

func TestPaging(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		for range 5 {
			if _, _, err := w.CreateTenant(t.Context(), w.root, management.NewTenant{Name: "T"}); err != nil {
				t.Fatal(err)
			}
		}
		seen, pages := map[string]bool{}, 0
		for p := (management.Page{Limit: 4}); ; pages++ {
			tenants, next, err := w.FindTenants(t.Context(), w.root, p)
			if err != nil {
				t.Fatal(err)
			}
			for _, tenant := range tenants {
				seen[tenant.ID] = true
			}
			if p.Cursor = next; next == "" {
				break
			}
		}
		if len(seen) != 6 || pages != 1 {
			t.Errorf("%d tenants on %d pages", len(seen), pages+1)
		}
		_, _, err := w.FindTenants(t.Context(), w.root, management.Page{Limit: 4, Cursor: "x"})
		wantCode(t, "a bad cursor", err, management.Invalid)
	})
}

// TestClosedContext: nothing hangs when the client has gone.
func TestClosedContext(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := w.LogIn(ctx, anybody("192.0.2.1"), management.Login{Email: rootEmail, Password: password}); err == nil {
			t.Error("signed in for nobody")
		}
	})
}
