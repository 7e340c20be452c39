package management_test

import (
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func TestAPIKeyLife(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		for what, wanted := range map[string]management.NewAPIKey{
			"no name":   {Scopes: management.Scopes{management.DomainsRead}},
			"no scope":  {Name: "k"},
			"a bad one": {Name: "k", Scopes: management.Scopes{"domains:*"}},
			"twice":     {Name: "k", Scopes: management.Scopes{management.DomainsRead, management.DomainsRead}},
			"expired":   {Name: "k", Scopes: management.Scopes{management.DomainsRead}, ExpiresAt: w.clock.now()},
			"for ever":  {Name: "k", Scopes: management.Scopes{management.DomainsRead}, ExpiresAt: time.Date(292277, 1, 1, 0, 0, 0, 0, time.UTC)},
		} {
			_, _, err := w.CreateAPIKey(t.Context(), w.root, wanted)
			wantCode(t, what, err, management.Invalid)
		}
		wanted := management.NewAPIKey{Name: "k", Scopes: management.Scopes{management.DomainsRead, management.KeysWrite}, ExpiresAt: w.clock.now().Add(time.Hour)}
		key, secret, err := w.CreateAPIKey(t.Context(), w.root, wanted)
		if err != nil {
			t.Fatal(err)
		}
		who, err := w.PrincipalOfKey(t.Context(), secret)
		if err != nil || who.APIKeyID != key.ID || who.Actor() != key.ID {
			t.Fatal(who, err)
		}
		wantCode(t, "what it was not given", who.Require(management.DomainsWrite), management.Forbidden)

		// A key that ends makes none that does not.
		wanted = management.NewAPIKey{Name: "k", Scopes: management.Scopes{management.DomainsRead}}
		_, _, err = w.CreateAPIKey(t.Context(), who, wanted)
		wantCode(t, "a key that outlives its maker", err, management.Invalid)
		lasting, _, err := w.CreateAPIKey(t.Context(), w.root, wanted)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = w.RotateAPIKey(t.Context(), who, lasting.ID)
		wantCode(t, "the secret of one that outlives it", err, management.Forbidden)
		wanted.ExpiresAt = key.ExpiresAt
		if _, _, err = w.CreateAPIKey(t.Context(), who, wanted); err != nil {
			t.Error(err)
		}

		_, rotated, err := w.RotateAPIKey(t.Context(), who, key.ID)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.PrincipalOfKey(t.Context(), secret)
		wantCode(t, "the secret of before", err, management.Unauthenticated)
		if _, err = w.PrincipalOfKey(t.Context(), rotated); err != nil {
			t.Error(err)
		}
		w.clock.pass(time.Hour)
		_, expired := w.PrincipalOfKey(t.Context(), rotated)
		wantCode(t, "expired", expired, management.Unauthenticated)
		if err := w.DeleteAPIKey(t.Context(), w.root, key.ID); err != nil {
			t.Fatal(err)
		}
		_, deleted := w.PrincipalOfKey(t.Context(), rotated)
		_, unknown := w.PrincipalOfKey(t.Context(), management.NewSecret(management.APIKeySecret))
		wantSame(t, "expired and deleted", expired, deleted)
		wantSame(t, "deleted and unknown", deleted, unknown)
		wantCode(t, "deleting it again", w.DeleteAPIKey(t.Context(), w.root, key.ID), management.NotFound)
	})
}

// TestPlatformKeyNeedsOperator: platform:* of a key ends with its maker's being an operator; the rest of the key stays.
func TestPlatformKeyNeedsOperator(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		secret := w.made.Secret
		w.update(func(tx management.Tx) error {
			user, err := tx.FindUser(w.made.User.ID)
			if err != nil {
				return err
			}
			user.Operator = false
			return tx.UpdateUser(user)
		})
		who, err := w.PrincipalOfKey(t.Context(), secret)
		if err != nil || who.Require(management.All) != nil {
			t.Fatal(who, err)
		}
		wantCode(t, "the platform", who.Require(management.Platform), management.Forbidden)
		w.update(func(tx management.Tx) error { return tx.DeleteUser(w.made.User.ID) })
		who, err = w.PrincipalOfKey(t.Context(), secret)
		if err != nil || who.Require(management.All) != nil {
			t.Fatal(who, err)
		}
		wantCode(t, "the platform", who.Require(management.Platform), management.Forbidden)
	})
}

func TestLastUse(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		_, edgeSecret, err := w.CreateEdgeToken(t.Context(), w.root, "edge")
		if err != nil {
			t.Fatal(err)
		}
		used := func() (key, token time.Time) {
			keys, _, err := w.FindAPIKeys(t.Context(), w.root, page)
			if err != nil || len(keys) != 1 {
				t.Fatal(keys, err)
			}
			tokens, _, err := w.FindEdgeTokens(t.Context(), w.root, page)
			if err != nil || len(tokens) != 1 {
				t.Fatal(tokens, err)
			}
			return keys[0].LastUsedAt, tokens[0].LastUsedAt
		}
		use := func() {
			for range 3 {
				if _, err := w.PrincipalOfKey(t.Context(), w.made.Secret); err != nil {
					t.Fatal(err)
				}
				if _, err := w.PrincipalOfEdge(t.Context(), edgeSecret); err != nil {
					t.Fatal(err)
				}
			}
			if err := management.StoreUses(w.Plane, t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if key, token := used(); !key.IsZero() || !token.IsZero() {
			t.Error(key, token)
		}
		first := w.clock.now()
		use()
		if key, token := used(); !key.Equal(first) || !token.Equal(first) {
			t.Error(key, token, first)
		}
		w.clock.pass(59 * time.Second) // within the minute nothing is written
		use()
		if key, token := used(); !key.Equal(first) || !token.Equal(first) {
			t.Error(key, token, first)
		}
		w.clock.pass(time.Second)
		use()
		if key, token := used(); !key.Equal(first.Add(time.Minute)) || !token.Equal(first.Add(time.Minute)) {
			t.Error(key, token, first)
		}
	})
}

func TestTooManyAPIKeys(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		wanted := management.NewAPIKey{Name: "k", Scopes: management.Scopes{management.DomainsRead}}
		for range 99 { // and the one of the first run
			if _, _, err := w.CreateAPIKey(t.Context(), w.root, wanted); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err := w.CreateAPIKey(t.Context(), w.root, wanted)
		wantCode(t, "one more", err, management.QuotaExceeded)
	})
}

func TestEdgeTokens(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		token, secret, err := w.CreateEdgeToken(t.Context(), w.root, "edge")
		if err != nil {
			t.Fatal(err)
		}
		who, err := w.PrincipalOfEdge(t.Context(), secret)
		if err != nil || who.EdgeTokenID != token.ID || len(who.Scopes) != 0 || who.Actor() != token.ID {
			t.Fatal(who, err)
		}
		_, err = w.PrincipalOfKey(t.Context(), secret)
		wantCode(t, "as an API key", err, management.Unauthenticated)
		_, err = w.PrincipalOfEdge(t.Context(), w.made.Secret)
		wantCode(t, "an API key as an edge token", err, management.Unauthenticated)
		if err := w.DeleteEdgeToken(t.Context(), w.root, token.ID); err != nil {
			t.Fatal(err)
		}
		_, err = w.PrincipalOfEdge(t.Context(), secret)
		wantCode(t, "revoked", err, management.Unauthenticated)
		wantCode(t, "again", w.DeleteEdgeToken(t.Context(), w.root, token.ID), management.NotFound)
	})
}
