package store

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pgtest"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
)

// TestExisting opens what the operator's commands open: a database of this binary's schema, and nothing else. Neither a
// misspelt name nor a database of another version is touched.
func TestExisting(t *testing.T) {
	eachDatabase(t, func(t *testing.T, o Options) {
		bump(t, open(t, o))
		o.Existing = true
		s := open(t, o)
		if n := revision(t, s); n != 1 {
			t.Errorf("the revision is %d", n)
		}
		if _, err := s.write.Exec(`DELETE FROM goose_db_version WHERE version_id = (SELECT MAX(version_id) FROM goose_db_version)`); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "start the service of this version first") {
			t.Errorf("an older database: %v", err)
		}
		if _, err := s.write.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, ` + map[string]string{SQLite: "1", Postgres: "true"}[o.Driver] + `)`); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), o); !errors.Is(err, ErrNewer) {
			t.Errorf("a newer database: %v", err)
		}
	})

	t.Run("missing", func(t *testing.T) {
		dir := t.TempDir()
		for _, o := range []Options{
			{Driver: SQLite, Source: filepath.Join(dir, "a", "management.db")},
			{Driver: Postgres, Source: pgtest.Database(t)},
		} {
			o.Existing, o.Log = true, slog.New(slog.DiscardHandler)
			if _, err := Open(t.Context(), o); !errors.Is(err, ErrMissing) {
				t.Errorf("%s: %v", o.Driver, err)
			}
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s was made", left[0].Name())
		}
	})
}

// TestFindSealedHeads finds each master key that something in the database is sealed under, once.
func TestFindSealedHeads(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *Store) {
		first, second := vault.NewKey(), vault.NewKey()
		seal := func(k vault.Key) []byte {
			v, err := vault.New(k)
			if err != nil {
				t.Fatal(err)
			}
			sealed, err := v.Seal([]byte("a secret"), "a test")
			if err != nil {
				t.Fatal(err)
			}
			return sealed
		}
		found := func() (ids []vault.KeyID) {
			view(t, s, func(tx *tx) error {
				heads, err := tx.FindSealedHeads(vault.HeadBytes)
				for _, head := range heads {
					id, err := vault.SealedUnder(head)
					if err != nil {
						t.Error(err)
					}
					ids = append(ids, id)
				}
				return err
			})
			return ids
		}
		if ids := found(); len(ids) > 0 {
			t.Errorf("an empty database has %v", ids)
		}
		update(t, s, func(tx *tx) error {
			for i, k := range []vault.Key{first, first, second} {
				u := &management.User{ID: management.NewID(management.UserID), Email: string(rune('a'+i)) + "@example.com", CreatedAt: time.Now(), UpdatedAt: time.Now()}
				if i > 0 {
					u.TOTPSealed = seal(k)
				} else {
					u.TOTPPending = seal(k)
				}
				if err := tx.InsertUser(u); err != nil {
					return err
				}
			}
			return nil
		})
		ids := found()
		if len(ids) != 2 || !slices.Contains(ids, first.ID()) || !slices.Contains(ids, second.ID()) {
			t.Errorf("found %v, want %v and %v", ids, first.ID(), second.ID())
		}
	})
}
