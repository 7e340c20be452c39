package module

import (
	"database/sql"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/pqproxy/caddy-pqproxy/internal/pgtest"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
)

// TestDatabaseComesLate: Caddy starts, and says that there is no service, until there is a database.
func TestDatabaseComesLate(t *testing.T) {
	shorten(t)
	t.Run("sqlite", func(t *testing.T) {
		p := newPlane(t)
		// A file where a directory is to be stops root as well, whom rights do not.
		obstacle := filepath.Join(p.dir, "var")
		if err := os.WriteFile(obstacle, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		p.load(ownToken + "\ndatabase sqlite " + obstacle + "/management.db")
		p.log.wait(t, "does not serve; trying again")
		p.checkUnavailable()
		if err := os.Remove(obstacle); err != nil {
			t.Fatal(err)
		}
		p.waitReady()
		p.setUp()
	})

	t.Run("postgres", func(t *testing.T) {
		p := newPlane(t)
		server := pgtest.Shared(t)
		t.Setenv("DATABASE_URL", server.URL("comes_late"))
		t.Setenv("MASTER_KEY", vault.NewKey().Reveal())
		p.load(ownToken + "\ndatabase postgres {env.DATABASE_URL}\nmaster_key {env.MASTER_KEY}")
		p.log.wait(t, "does not serve; trying again")
		p.checkUnavailable()
		if err := server.Exec(`CREATE DATABASE comes_late`); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := server.Exec(`DROP DATABASE comes_late WITH (FORCE)`); err != nil {
				t.Error(err)
			}
		})
		p.waitReady()
		p.setUp()
	})
}

// TestPasswordStaysSecret: an error of the database is logged, with the password neither in it nor anywhere else.
func TestPasswordStaysSecret(t *testing.T) {
	shorten(t)
	p := newPlane(t)
	const password = "hunter2 @/?#%"
	t.Setenv("DATABASE_PASSWORD", password)
	t.Setenv("MASTER_KEY", vault.NewKey().Reveal())
	p.load(ownToken + "\ndatabase postgres postgres://pqproxy:{env.DATABASE_PASSWORD}@/x?host=" + p.dir + "\nmaster_key {env.MASTER_KEY}")
	p.log.wait(t, "does not serve; trying again")
	p.checkUnavailable()
	for _, secret := range []string{password, url.QueryEscape(password), url.PathEscape(password), "hunter2", setupToken, os.Getenv("MASTER_KEY")} {
		if strings.Contains(p.log.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

// TestNewerDatabase: a database that a newer release has migrated is left alone, and served again when it is as it was.
func TestNewerDatabase(t *testing.T) {
	shorten(t)
	p := newPlane(t)
	p.start(ownToken)
	p.setUp()
	if err := p.loadFile("{\n\tadmin off\n\tpersist_config off\n}\n"); err != nil {
		t.Fatal(err)
	}
	running.Wait()
	exec := func(statement string) {
		t.Helper()
		db, err := sql.Open("sqlite", p.data("management.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`)
	p.load(ownToken)
	p.log.wait(t, store.ErrNewer.Error())
	p.checkUnavailable()
	exec(`DELETE FROM goose_db_version WHERE version_id = 999`)
	p.waitReady()
	p.must(http.StatusOK, "GET", "/v1/me", nil)
}
