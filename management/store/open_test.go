package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/pgtest"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// TestOpenAtOnce has several instances make one database at the same moment.
func TestOpenAtOnce(t *testing.T) {
	for _, driver := range engines {
		t.Run(driver, func(t *testing.T) {
			o := Options{Driver: driver, Log: slog.New(slog.DiscardHandler), Source: filepath.Join(t.TempDir(), "management.db")}
			if driver == Postgres {
				o.Source = pgtest.Database(t)
			}
			var all sync.WaitGroup
			for range 5 {
				all.Go(func() {
					s, err := Open(t.Context(), o)
					if err != nil {
						t.Error(err)
						return
					}
					if err := s.Ready(t.Context()); err != nil {
						t.Error(err)
					}
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
		})
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	eachDatabase(t, func(t *testing.T, o Options) {
		s := open(t, o)
		if err := s.Ready(t.Context()); err != nil {
			t.Errorf("an open database is not ready: %v", err)
		}
		if _, err := s.write.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, ` + map[string]string{SQLite: "1", Postgres: "true"}[o.Driver] + `)`); err != nil {
			t.Fatal(err)
		}
		if err := s.Ready(t.Context()); !errors.Is(err, ErrNewer) {
			t.Errorf("Ready: %v, want ErrNewer", err)
		}
		if _, err := Open(t.Context(), o); !errors.Is(err, ErrNewer) {
			t.Errorf("Open: %v, want ErrNewer", err)
		}
		if err := s.Backup(t.Context(), io.Discard); !errors.Is(err, ErrNewer) {
			t.Errorf("Backup: %v, want ErrNewer", err)
		}
	})
}

// TestMigrationInterrupted ends a migration in its middle: it leaves nothing, those before it stay, and it can be run again.
func TestMigrationInterrupted(t *testing.T) {
	file := func(sql string) *fstest.MapFile { return &fstest.MapFile{Data: []byte("-- +goose Up\n" + sql)} }
	const first, second = `CREATE TABLE a (x BIGINT);`, `CREATE TABLE b (x BIGINT); INSERT INTO a (x) VALUES (1);`
	eachEngine(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		for _, db := range []string{`DROP TABLE goose_db_version`} {
			if _, err := s.write.Exec(db); err != nil {
				t.Fatal(err)
			}
		}
		count := func(query string) (n int) {
			if err := s.read.QueryRow(query).Scan(&n); err != nil {
				return -1
			}
			return n
		}
		_, steps, err := migrate(ctx, Options{Log: s.log}, s.d.goose, s.write, fstest.MapFS{
			"0001_a.sql": file(first), "0002_b.sql": file(second + `INSERT INTO not_there (x) VALUES (1);`),
		})
		if err == nil || steps != 0 {
			t.Fatalf("a migration that cannot succeed: %v", err)
		}
		if a, b := count(`SELECT count(*) FROM a`), count(`SELECT count(*) FROM b`); a != 0 || b != -1 {
			t.Errorf("there are %d rows in a and %d in b, want none, and no table", a, b)
		}
		version, steps, err := migrate(ctx, Options{Log: s.log}, s.d.goose, s.write, fstest.MapFS{"0001_a.sql": file(first), "0002_b.sql": file(second)})
		if err != nil || version != 2 || steps != 1 {
			t.Errorf("once more: version %d, %d steps, %v", version, steps, err)
		}
		if a, b := count(`SELECT count(*) FROM a`), count(`SELECT count(*) FROM b`); a != 1 || b != 0 {
			t.Errorf("there are %d rows in a and %d in b, want 1 and 0", a, b)
		}
		if version, steps, err := migrate(ctx, Options{Log: s.log}, s.d.goose, s.write, fstest.MapFS{}); version != 0 || steps != 0 || err != nil {
			t.Errorf("without migrations: %d, %d, %v", version, steps, err)
		}
	})
}

// TestMigrationsAreTransactions: the rule that makes the above true of all of them, and that there is no way back.
func TestMigrationsAreTransactions(t *testing.T) {
	for _, folder := range []string{"sqlite", "postgres", "sqlite_observe"} {
		entries, err := migrations.ReadDir("migrations/" + folder)
		if err != nil {
			t.Fatal(err)
		}
		for i, entry := range entries {
			text, err := migrations.ReadFile("migrations/" + folder + "/" + entry.Name())
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(entry.Name(), fmt.Sprintf("%04d_", i+1)) {
				t.Errorf("%s/%s: want number %04d", folder, entry.Name(), i+1)
			}
			if !strings.HasPrefix(string(text), "-- +goose Up\n") || strings.Contains(string(text), "NO TRANSACTION") || strings.Contains(string(text), "+goose Down") {
				t.Errorf("%s/%s: want one transaction, forward only", folder, entry.Name())
			}
		}
	}
}

func TestSQLiteFilesArePrivate(t *testing.T) {
	o := emptyDatabase(t, SQLite)
	o.Source = filepath.Join(t.TempDir(), "made", "odd name? %41#.db")
	s := open(t, o)
	bump(t, s)
	dir := filepath.Dir(o.Source)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, entry := range entries {
		found[entry.Name()] = true
		if info, err := entry.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", entry.Name(), info.Mode(), err)
		}
	}
	for _, want := range []string{"odd name? %41#.db", "odd name? %41#.db-wal", "odd name? %41#-connections.db"} {
		if !found[want] {
			t.Errorf("there is no file %q among %v", want, found)
		}
	}
	s.Close()
	if err := os.Chmod(o.Source, 0o644); err != nil {
		t.Fatal(err)
	}
	if n := revision(t, open(t, o)); n != 1 {
		t.Errorf("opened again, the revision is %d", n)
	}
	if info, err := os.Stat(o.Source); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a file that was open to others: %v, %v", info.Mode(), err)
	}
}

func TestSQLiteSettings(t *testing.T) {
	s := open(t, emptyDatabase(t, SQLite))
	check := func(name, pragma, want, got string) {
		if got != want {
			t.Errorf("%s: %s is %s, want %s", name, pragma, got, want)
		}
	}
	read := func(pragma string, scan func(string, ...any) error) string {
		var value string
		if err := scan(`PRAGMA `+pragma, &value); err != nil {
			t.Fatal(err)
		}
		return value
	}
	write := func(q string, to ...any) error { return s.write.QueryRow(q).Scan(to...) }
	reader := func(q string, to ...any) error { return s.read.QueryRow(q).Scan(to...) }
	observe := func(q string, to ...any) error { return s.observe.QueryRow(q).Scan(to...) }
	check("write", "synchronous", "2", read("synchronous", write)) // FULL
	check("write", "foreign_keys", "1", read("foreign_keys", write))
	check("write", "journal_mode", "wal", read("journal_mode", write))
	check("write", "busy_timeout", "10000", read("busy_timeout", write))
	check("read", "query_only", "1", read("query_only", reader))
	check("observe", "journal_mode", "wal", read("journal_mode", observe))
	check("observe", "synchronous", "1", read("synchronous", observe)) // NORMAL
}

// TestOtherInstanceChangesTheSchema has another connection to PostgreSQL hold the lock that keeps others out.
func TestOtherInstanceChangesTheSchema(t *testing.T) {
	o := emptyDatabase(t, Postgres)
	other, err := open(t, o).write.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback()
	if _, err := other.Exec(`SELECT pg_advisory_xact_lock(` + migrationLock + `)`); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if s, err := Open(short, o); err == nil {
		s.Close()
		t.Error("opened while another instance changes the schema")
	}
	if err := other.Rollback(); err != nil {
		t.Fatal(err)
	}
	open(t, o)
}

// TestOtherProcessChangesTheSchema has a process hold the lock that keeps others out, and then be killed.
func TestOtherProcessChangesTheSchema(t *testing.T) {
	o := emptyDatabase(t, SQLite)
	if file := os.Getenv("PQPROXY_TEST_LOCK"); file != "" {
		if _, err := lockSQLite(context.Background(), file); err != nil {
			t.Fatal(err)
		}
		fmt.Println("locked")
		io.Copy(io.Discard, os.Stdin)
		return
	}
	other := exec.Command(os.Args[0], "-test.run=^TestOtherProcessChangesTheSchema$")
	other.Env = append(os.Environ(), "PQPROXY_TEST_LOCK="+beside(o.Source, "-migration.lock"))
	stdin, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "locked\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Open(short, o); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("while another process has the lock: %v", err)
	}
	other.Process.Kill()
	other.Wait()
	open(t, o)
}

func TestOpenFailsSoonAndSaysWhy(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := gone.Addr().String()
	gone.Close()
	notADatabase := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(notADatabase, []byte(strings.Repeat("this is no database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		driver, source, want string
	}{
		"no driver":        {"mysql", "x", "no driver"},
		"no source":        {SQLite, "", "names no file"},
		"folder":           {SQLite, t.TempDir(), "is no file"},
		"file as folder":   {SQLite, notADatabase + "/x.db", "not a directory"},
		"no database":      {SQLite, notADatabase, "not a database"},
		"nobody there":     {Postgres, "postgres://u:geheim@" + nobody + "/d?sslmode=disable", "refused"},
		"no URL":           {Postgres, "host=" + nobody + " password=geheim", "postgres://USER"},
		"other URL":        {Postgres, "mysql://u:geheim@" + nobody + "/d", "postgres://USER"},
		"unreadable":       {Postgres, "postgres://u:geheim%@" + nobody + "/d", "postgres://USER"},
		"stray slash":      {Postgres, "postgres://u:geh/geheim@" + nobody + "/d", "postgres://USER"},
		"bad parameter":    {Postgres, "postgres://u:geheim@" + nobody + "/d?sslmode=geheim", ""},
		"password twice":   {Postgres, "postgres://u@" + nobody + "/d?password=geheim&sslmode=never", ""},
		"encoded password": {Postgres, "postgres://u:geheim%2Fgeheim@" + nobody + "/d?connect_timeout=geheim%2Fgeheim", ""},
	} {
		s, err := Open(t.Context(), Options{Driver: c.driver, Source: c.source, Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			s.Close()
			t.Errorf("%s: opened", name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q in it", name, err, c.want)
		}
		if strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: the password is shown: %v", name, err)
		}
	}
}

// TestOpenSilentServer: a server that takes connections and says nothing must not hold up whoever opens.
func TestOpenSilentServer(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	o := Options{Driver: Postgres, Source: "postgres://u@" + silent.Addr().String() + "/d?sslmode=disable", Log: slog.New(slog.DiscardHandler)}
	if _, err := Open(ctx, o); err == nil {
		t.Error("opened")
	}
	config, err := parsePostgres(o.Source)
	if err != nil || config.ConnectTimeout <= 0 || config.ConnectTimeout > reachLimit {
		t.Errorf("without a deadline of the caller's it would take %v; %v", config.ConnectTimeout, err)
	}
}

// TestServerAway: what is asked of a store whose database went away is refused as unavailable, and works when it is back.
func TestServerAway(t *testing.T) {
	server, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, Options{Driver: Postgres, Source: server.URL("postgres"), Log: slog.New(slog.DiscardHandler)})
	bump(t, s)
	server.Stop()
	for name, err := range map[string]error{
		"Ready":  s.Ready(t.Context()),
		"View":   s.View(t.Context(), func(management.Tx) error { return nil }),
		"Update": s.Update(t.Context(), func(management.Tx) error { return nil }),
	} {
		if management.CodeOf(err) != management.Unavailable {
			t.Errorf("%s: %v, want code unavailable", name, err)
		}
	}
}
