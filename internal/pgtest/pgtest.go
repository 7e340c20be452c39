// Package pgtest runs PostgreSQL for tests: one throw-away server per test binary, one database per test. Start alone also
// serves what is no test, such as a measurement.
//
//	url := pgtest.Database(t)                            // empty
//	url := pgtest.Clone(t, "migrated", migrateDatabase)  // a copy of one that migrateDatabase has filled, once
//
// The server is Debian's (scripts/peers.sh installs it), speaks on a socket in a folder of its own, forgets everything with
// the test binary, however that ends, and trades safety for speed. A test that needs one and finds none fails.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// patience is how long anything here may take.
const patience = time.Minute

// Server is a running PostgreSQL.
type Server struct {
	dir     string
	alive   io.Closer // the server ends when this is closed, or the process that holds it ends
	exited  chan struct{}
	names   atomic.Int64
	mu      sync.Mutex           // guards clones
	sources map[string]*template // by name
}

// template is a database that is copied.
type template struct {
	once     sync.Once
	database string
	err      error
}

// shared is the server of this process.
var shared = sync.OnceValues(func() (*Server, error) { return Start() })

// Shared returns the server of this process, which it starts when it is first called.
func Shared(tb testing.TB) *Server {
	tb.Helper()
	server, err := shared()
	if err != nil {
		tb.Fatal(err)
	}
	return server
}

// Database makes an empty database on the shared server, for this test alone, and returns its postgres:// URL.
func Database(tb testing.TB) string {
	tb.Helper()
	server := Shared(tb)
	return server.temporary(tb, "template1")
}

// Clone is Database with the content that fill gave to a database, when it was first called with that name. fill must leave
// no connection open.
func Clone(tb testing.TB, name string, fill func(url string) error) string {
	tb.Helper()
	server := Shared(tb)
	server.mu.Lock()
	source, ok := server.sources[name]
	if !ok {
		source = new(template)
		server.sources[name] = source
	}
	server.mu.Unlock()
	source.once.Do(func() {
		if source.database, source.err = server.create("template1"); source.err == nil {
			source.err = fill(server.URL(source.database))
		}
	})
	if source.err != nil {
		tb.Fatalf("filling the database %q that tests copy: %v", name, source.err)
	}
	return server.temporary(tb, source.database)
}

// temporary makes a database that goes with the test.
func (s *Server) temporary(tb testing.TB, source string) string {
	tb.Helper()
	name, err := s.create(source)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Exec(`DROP DATABASE ` + name + ` WITH (FORCE)`); err != nil {
			tb.Error(err)
		}
	})
	return s.URL(name)
}

// create makes a database, a copy of source, and returns its name.
func (s *Server) create(source string) (string, error) {
	name := fmt.Sprintf("test_%d", s.names.Add(1))
	return name, s.Exec(`CREATE DATABASE ` + name + ` TEMPLATE ` + source)
}

// URL returns how to reach a database of the server as its superuser, who needs no password.
func (s *Server) URL(database string) string {
	u := url.URL{Scheme: "postgres", User: url.User("postgres"), Path: "/" + database, RawQuery: url.Values{"host": {s.dir}}.Encode()}
	return u.String()
}

// Exec runs a statement as the superuser, in the database postgres.
func (s *Server) Exec(statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

// PID returns the process that all others of the server are children of.
func (s *Server) PID() (int, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, "data", "postmaster.pid"))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	return strconv.Atoi(first)
}

// Start starts a server that is not shared. Each setting is a NAME=VALUE of postgresql.conf, and wins over what is set here.
// Who can, calls Stop; the server also ends with this process.
func Start(settings ...string) (_ *Server, err error) {
	programs, err := programs()
	if err != nil {
		return nil, err
	}
	// Not in TMPDIR as a test may have set it: the path of a socket has at most 107 characters, and another user must get there.
	dir, err := os.MkdirTemp("/tmp", "pgtest")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	as, err := unprivileged(dir)
	if err != nil {
		return nil, err
	}

	// A collation that is not the order of bytes, as most databases out there have one: it shows what forgot COLLATE "C".
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(programs, "initdb"), "--pgdata", data, "--username", "postgres", "--auth", "trust",
		"--encoding", "UTF8", "--locale", "C", "--locale-provider", "icu", "--icu-locale", "und", "--no-sync")
	initdb.Dir, initdb.SysProcAttr = dir, as
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}

	args := []string{"-D", data}
	for _, setting := range slices.Concat([]string{
		"listen_addresses=", "unix_socket_directories=" + dir, "max_connections=200", "fsync=off", "synchronous_commit=off",
		"full_page_writes=off", "shared_buffers=64MB", "max_wal_size=256MB", "log_min_messages=fatal", "logging_collector=off",
	}, settings) {
		args = append(args, "-c", setting)
	}
	logFile, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer logFile.Close()

	// The shell reads until its input ends, which it does when this process ends in whatever way, and then takes everything away.
	const keeper = `postgres=$1 dir=$2; shift 2
"$postgres" "$@" </dev/null & server=$!
cat >/dev/null
kill -QUIT "$server"; wait "$server"; rm -rf "$dir"`
	cmd := exec.Command("/bin/sh", slices.Concat([]string{"-c", keeper, "pgtest", filepath.Join(programs, "postgres"), dir}, args)...)
	cmd.Dir, cmd.SysProcAttr, cmd.Stdout, cmd.Stderr = "/", as, logFile, logFile
	alive, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &Server{dir: dir, alive: alive, exited: make(chan struct{}), sources: make(map[string]*template)}
	go s.reap(cmd)
	if err := s.wait(); err != nil {
		log, _ := os.ReadFile(logFile.Name())
		s.Stop()
		return nil, fmt.Errorf("starting PostgreSQL: %w\n%s", err, log)
	}
	return s, nil
}

// reap waits for the end of the server.
func (s *Server) reap(cmd *exec.Cmd) {
	cmd.Wait()
	close(s.exited)
}

// wait returns when the server takes connections.
func (s *Server) wait() error {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(patience)
	for {
		err := s.Exec(`SELECT 1`)
		if err == nil {
			return nil
		}
		select {
		case <-again.C:
		case <-s.exited:
			return errors.New("it ended at once")
		case <-deadline:
			return err
		}
	}
}

// Stop ends the server, without ceremony, and removes its files.
func (s *Server) Stop() {
	s.alive.Close()
	<-s.exited
}

// programs returns the folder of initdb and postgres: of the PATH, or the newest that Debian has installed.
func programs() (string, error) {
	if initdb, err := exec.LookPath("initdb"); err == nil {
		if resolved, err := filepath.EvalSymlinks(initdb); err == nil {
			if _, err := os.Stat(filepath.Join(filepath.Dir(resolved), "postgres")); err == nil {
				return filepath.Dir(resolved), nil
			}
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return "", errors.New("there is no PostgreSQL on this machine, and these tests need one: run `make peers`")
	}
	newest := slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })
	return filepath.Dir(newest), nil
}

// version returns the major version in a path of Debian's.
func version(file string) int {
	n, _ := strconv.Atoi(strings.Split(file, "/")[4])
	return n
}
