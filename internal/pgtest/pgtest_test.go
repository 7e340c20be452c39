package pgtest

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestStopLeavesNothing(t *testing.T) {
	server, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Exec(`CREATE TABLE t (x INT)`); err != nil {
		t.Error(err)
	}
	if pid, err := server.PID(); err != nil {
		t.Error(err)
	} else if process, err := os.FindProcess(pid); err != nil || process.Signal(syscall.Signal(0)) != nil {
		t.Errorf("PID = %d, which is no process", pid)
	}
	server.Stop()
	if _, err := os.Stat(server.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the server's folder is still there: %v", err)
	}
	if err := server.Exec(`SELECT 1`); err == nil {
		t.Error("the server still answers")
	}
}

func TestCloneIsACopyOfItsOwn(t *testing.T) {
	filled := 0
	fill := func(url string) error {
		filled++
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			return err
		}
		defer conn.Close(t.Context())
		_, err = conn.Exec(t.Context(), `CREATE TABLE t (x INT); INSERT INTO t VALUES (1)`)
		return err
	}
	for range 2 {
		conn, err := pgx.Connect(t.Context(), Clone(t, "one row", fill))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		var rows int
		if err := conn.QueryRow(t.Context(), `INSERT INTO t VALUES (2) RETURNING (SELECT count(*) FROM t)`).Scan(&rows); err != nil || rows != 1 {
			t.Errorf("a copy has %d rows, want 1; %v", rows, err)
		}
	}
	if filled != 1 {
		t.Errorf("filled %d times, want once", filled)
	}
}
