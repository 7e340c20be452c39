//go:build linux

package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver pgx
	_ "modernc.org/sqlite"             // the driver sqlite

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
	"github.com/pqproxy/caddy-pqproxy/internal/pgtest"
	"github.com/pqproxy/caddy-pqproxy/management/store"
)

// postgresSettings undo what pgtest does for speed: a commit is on the disk. The rest is what anybody who keeps this much
// sets; all else is as PostgreSQL has it.
var postgresSettings = []string{"fsync=on", "synchronous_commit=on", "full_page_writes=on", "shared_buffers=1GB", "max_wal_size=4GB"}

// database is one that the management plane is measured on.
type database struct {
	name   string
	source string         // as the option database has it
	server *pgtest.Server // nil: SQLite
}

// startDatabase makes an empty database, with its files below dir or, PostgreSQL's, where pgtest has them.
func startDatabase(name, dir string) (*database, error) {
	if name == store.SQLite {
		return &database{name: name, source: filepath.Join(dir, "management.db")}, nil
	}
	server, err := pgtest.Start(postgresSettings...)
	if err != nil {
		return nil, err
	}
	if err := server.Exec(`CREATE DATABASE pqproxy`); err != nil {
		server.Stop()
		return nil, err
	}
	return &database{name: name, source: server.URL("pqproxy"), server: server}, nil
}

func (d *database) close() {
	if d.server != nil {
		d.server.Stop()
	}
}

// direct opens the database beside the management plane; of SQLite's two files the one with connection records.
func (d *database) direct(records bool) (*sql.DB, error) {
	if d.server != nil {
		return sql.Open("pgx", d.source)
	}
	file := d.source
	if records {
		file = strings.TrimSuffix(file, ".db") + "-connections.db"
	}
	return sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(30000)")
}

// count counts the rows of a table.
func (d *database) count(ctx context.Context, table string) (n int64, err error) {
	db, err := d.direct(table == recordsTable)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	err = db.QueryRowContext(ctx, `SELECT COUNT(*) FROM `+table).Scan(&n)
	return n, err
}

// The two tables that are looked at beside the management plane.
const (
	recordsTable = "connections"
	inboxTable   = "usage_inbox"
)

// withoutIndexes calls fill while the records have no indexes, as one does who loads millions of rows, and makes them
// again, as the migrations have made them.
func (d *database) withoutIndexes(ctx context.Context, fill func() error) (err error) {
	db, err := d.direct(true)
	if err != nil {
		return err
	}
	defer db.Close()
	query := `SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL AND tbl_name = '` + recordsTable + `'`
	if d.server != nil {
		query = `SELECT i.indexname, i.indexdef FROM pg_indexes AS i WHERE i.tablename = '` + recordsTable + `'
			AND NOT EXISTS (SELECT 1 FROM pg_constraint AS c WHERE c.conname = i.indexname)`
	}
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	var names, definitions []string
	for rows.Next() {
		var name, definition string
		if err := rows.Scan(&name, &definition); err != nil {
			rows.Close()
			return err
		}
		names, definitions = append(names, name), append(definitions, definition)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("the table %s has no indexes", recordsTable)
	}
	for _, name := range names {
		if _, err := db.ExecContext(ctx, `DROP INDEX `+name); err != nil {
			return err
		}
	}
	if err := fill(); err != nil {
		return err
	}
	for _, definition := range definitions {
		if _, err := db.ExecContext(ctx, definition); err != nil {
			return err
		}
	}
	return nil
}

// repeatRecords adds all records so many times again, each time as much later.
func (d *database) repeatRecords(ctx context.Context, times int, later time.Duration) error {
	db, err := d.direct(true)
	if err != nil {
		return err
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, `SELECT * FROM `+recordsTable+` LIMIT 0`)
	if err != nil {
		return err
	}
	columns, err := rows.Columns()
	if err := errors.Join(err, rows.Close()); err != nil {
		return err
	}
	columns = slices.DeleteFunc(columns, func(c string) bool { return c == "n" || c == "at" }) // what numbers them, and their time
	var last int64
	if err := db.QueryRowContext(ctx, `SELECT MAX(n) FROM `+recordsTable).Scan(&last); err != nil {
		return err
	}
	list := strings.Join(columns, ", ")
	for k := range times {
		_, err := db.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %[1]s (at, %[2]s) SELECT at + %[3]d, %[2]s FROM %[1]s WHERE n <= %[4]d ORDER BY n`,
			recordsTable, list, later.Microseconds()*int64(k+1), last))
		if err != nil {
			return err
		}
	}
	return nil
}

// settle does what PostgreSQL's own autovacuum would do within minutes of such a load.
func (d *database) settle(ctx context.Context) error {
	if d.server == nil {
		return nil
	}
	db, err := d.direct(false)
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, `VACUUM ANALYZE`)
	return errors.Join(err, d.server.Exec(`CHECKPOINT`))
}

// size returns how large the database is on the disk.
func (d *database) size(ctx context.Context) (bytes int64, err error) {
	if d.server == nil {
		err = filepath.WalkDir(filepath.Dir(d.source), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasPrefix(e.Name(), "management") {
				return err
			}
			info, err := e.Info()
			if err == nil {
				bytes += info.Size()
			}
			return err
		})
		return bytes, err
	}
	db, err := d.direct(false)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	err = db.QueryRowContext(ctx, `SELECT pg_database_size(current_database())`).Scan(&bytes)
	return bytes, err
}

// cpu returns what PostgreSQL's processes have used so far; of SQLite nothing, it is in the management plane's.
func (d *database) cpu() (used time.Duration, err error) {
	if d.server == nil {
		return 0, nil
	}
	server, err := d.server.PID()
	if err != nil {
		return 0, err
	}
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			continue // another process that ended meanwhile
		}
		pid, parent, own, waited, err := parseTimes(string(content))
		if err != nil {
			return 0, err
		}
		switch server {
		case pid:
			used += own + waited
		case parent:
			used += own
		}
	}
	return used, nil
}

// parseTimes returns fields 1, 4, 14 with 15 and 16 with 17 of /proc/PID/stat: user and system time, of the process and of
// children that it has waited for. The name of the program may hold spaces and parentheses.
func parseTimes(stat string) (pid, parent int, own, waited time.Duration, err error) {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return 0, 0, 0, 0, fmt.Errorf("malformed stat %q", stat)
	}
	after := strings.Fields(stat[end+1:]) // from field 3 on
	if len(after) < 15 {
		return 0, 0, 0, 0, fmt.Errorf("malformed stat %q", stat)
	}
	numbers := make([]int, 6)
	for i, text := range []string{strings.TrimSpace(stat[:open]), after[1], after[11], after[12], after[13], after[14]} {
		if numbers[i], err = strconv.Atoi(text); err != nil {
			return 0, 0, 0, 0, fmt.Errorf("malformed stat %q: %w", stat, err)
		}
	}
	return numbers[0], numbers[1], time.Duration(numbers[2]+numbers[3]) * lab.Ticks, time.Duration(numbers[4]+numbers[5]) * lab.Ticks, nil
}
