package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// fill puts rows into every table that a backup has, so that a table of tomorrow is tested without a line of it here: two rows
// with something in every column, and one with NULL wherever that can be.
func fill(t testing.TB, s *Store) {
	t.Helper()
	on, err := s.write.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer on.Rollback()
	tables, err := s.d.tables(t.Context(), on)
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]string{}
	nullable := map[string]bool{}
	query := `SELECT t.name, c.name, lower(c.type), CASE WHEN c."notnull" = 0 AND c.pk = 0 THEN 'yes' ELSE 'no' END
		FROM pragma_table_list AS t, pragma_table_xinfo(t.name) AS c WHERE t.type = 'table'`
	if s.d == postgresDialect {
		query = `SELECT table_name, column_name, data_type, lower(is_nullable) FROM information_schema.columns WHERE table_schema = current_schema()`
	}
	if err := texts(t.Context(), on, query, 4, func(row []string) {
		types[row[0]+"."+row[1]] = row[2]
		nullable[row[0]+"."+row[1]] = row[3] == "yes"
	}); err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if slices.Equal(table.key, []string{"single"}) {
			continue
		}
		for n := range 3 {
			var args []any
			for _, c := range table.columns {
				name := table.name + "." + c.name
				switch types[name] {
				case "text":
					args = append(args, fmt.Sprintf("%s %d\r\n<ü\u2028\U0001F512> \\ \" ' ]", c.name, n))
				case "bytea", "blob":
					args = append(args, bytes.Repeat([]byte{0, 0xff, byte(n)}, n)) // the first is empty
				case "boolean":
					args = append(args, n == 1)
				case "smallint", "integer", "bigint":
					v := int64(n % 2) // which SQLite's booleans are
					if slices.Contains(table.key, c.name) {
						v = int64(n) + 1 // where the database numbers rows, it would begin with these itself
					}
					args = append(args, v)
				case "real", "double precision":
					args = append(args, float64(n)+0.1)
				default:
					t.Fatalf("%s has type %s, which backups do not know", name, types[name])
				}
				if n == 2 && nullable[name] {
					args[len(args)-1] = nil
				}
			}
			override := ""
			if s.d.numbered {
				override = " OVERRIDING SYSTEM VALUE"
			}
			statement := `INSERT INTO ` + quoted(table.name) + ` (` + quoted(table.columnNames()...) + `)` + override +
				` VALUES (` + strings.Repeat("?, ", len(args)-1) + `?)`
			if _, err := on.Exec(s.d.rebind(statement), args...); err != nil {
				t.Fatalf("%s: %v", table.name, err)
			}
		}
	}
	if _, err := on.Exec(`UPDATE feed_revision SET revision = 41`); err != nil {
		t.Fatal(err)
	}
	if err := on.Commit(); err != nil {
		t.Fatal(err)
	}
}

// backup returns a backup.
func backup(t testing.TB, s *Store) []byte {
	t.Helper()
	var to bytes.Buffer
	if err := s.Backup(t.Context(), &to); err != nil {
		t.Fatal(err)
	}
	return to.Bytes()
}

// lines returns the lines of a backup.
func lines(t testing.TB, backup []byte) []string {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(backup))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(zip)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// seal makes a backup of lines, with the last one that they ought to have.
func seal(lines ...string) []byte {
	text := strings.Join(lines, "\n") + "\n"
	rows := 0
	for _, line := range lines {
		if strings.HasPrefix(line, "[") {
			rows++
		}
	}
	sum := sha256.Sum256([]byte(text))
	return zipped(text + fmt.Sprintf(`{"rows":%d,"sha256":%q}`, rows, hex.EncodeToString(sum[:])) + "\n")
}

func zipped(text string) []byte {
	var to bytes.Buffer
	zip := gzip.NewWriter(&to)
	zip.Write([]byte(text))
	zip.Close()
	return to.Bytes()
}

// comparable takes away from a backup what a restore is to change: header and end, the revisions, its audit entry, and how
// the two databases write booleans.
func comparable(lines []string) []string {
	var kept []string
	for _, line := range lines[1 : len(lines)-1] {
		if strings.HasPrefix(line, "[1,") || strings.Contains(line, `"database.restored"`) {
			continue
		}
		line = strings.ReplaceAll(strings.ReplaceAll(line, "true", "1"), "false", "0")
		kept = append(kept, line)
	}
	return kept
}

func TestBackupAndRestore(t *testing.T) {
	for _, from := range engines {
		for _, to := range engines {
			t.Run(from+" to "+to, func(t *testing.T) {
				source, target := open(t, emptyDatabase(t, from)), open(t, emptyDatabase(t, to))
				fill(t, source)
				taken := backup(t, source)
				change := target.Changed()
				if err := target.Restore(t.Context(), bytes.NewReader(taken), false); err != nil {
					t.Fatal(err)
				}
				closed(t, "word of the restore", change)
				want, got := comparable(lines(t, taken)), comparable(lines(t, backup(t, target)))
				for _, line := range want {
					if !slices.Contains(got, line) {
						t.Errorf("lost: %s", line)
					}
				}
				for _, line := range got {
					if !slices.Contains(want, line) {
						t.Errorf("came from nowhere: %s", line)
					}
				}
				if !slices.ContainsFunc(want, func(line string) bool { return strings.Contains(line, `{"b":"`) && strings.Contains(line, "null") }) {
					t.Error("no row with bytes and NULL was tried")
				}

				// Edges that saw the revisions behind the backup take the next one, and the full set.
				if n := revision(t, target); n != 41+revisionLift {
					t.Errorf("the revision is %d, want %d", n, 41+revisionLift)
				}
				var horizon uint64
				if err := target.read.QueryRow(`SELECT revision FROM feed_horizon`).Scan(&horizon); err != nil || horizon != 41+revisionLift {
					t.Errorf("deltas are told from revision %d on; %v", horizon, err)
				}
				view(t, target, func(tx *tx) error {
					events, err := tx.FindEvents(management.EventFilter{Action: "database.restored"})
					if len(events) != 1 || !strings.Contains(string(events[0].After), "1000041") {
						t.Errorf("the audit log: %+v", events)
					}
					return err
				})

				if err := target.Restore(t.Context(), bytes.NewReader(taken), false); !errors.Is(err, ErrNotEmpty) {
					t.Errorf("a second time: %v, want ErrNotEmpty", err)
				}
				bump(t, target)
				if held, err := target.Lease(t.Context(), "work", "a", time.Hour); !held || err != nil {
					t.Errorf("a lease: %v, %v", held, err)
				}
				if err := target.Restore(t.Context(), bytes.NewReader(taken), true); err != nil {
					t.Errorf("forced: %v", err)
				}
				for _, table := range forgotten {
					var rows int
					if err := target.read.QueryRow(`SELECT count(*) FROM ` + table).Scan(&rows); err != nil || rows != 0 {
						t.Errorf("%s has %d rows after a restore; %v", table, rows, err)
					}
				}
				if n := revision(t, target); n != 41+revisionLift+1+revisionLift {
					t.Errorf("the revision is %d after a second restore, which is not above what edges have seen", n)
				}
				if again := comparable(lines(t, backup(t, target))); !slices.Equal(again, got) {
					t.Error("a forced restore left other rows than the first")
				}
			})
		}
	}
}

// TestBackupIsASnapshot changes rows while the backup is written.
func TestBackupIsASnapshot(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *Store) {
		update(t, s, func(tx *tx) error { return tx.InsertEvent(event(1)) })
		var to bytes.Buffer
		// The writer changes the database at its first byte, which comes after the snapshot and before the rows.
		changing := writerFunc(func(b []byte) (int, error) {
			if to.Len() == 0 {
				update(t, s, func(tx *tx) error {
					_, err := tx.NextRevision()
					return errors.Join(err, tx.InsertEvent(event(2)))
				})
			}
			return to.Write(b)
		})
		if err := s.Backup(t.Context(), changing); err != nil {
			t.Fatal(err)
		}
		text := strings.Join(lines(t, to.Bytes()), "\n")
		if !strings.Contains(text, event(1).ID) || strings.Contains(text, event(2).ID) || !strings.Contains(text, `"revision":0`) {
			t.Errorf("the backup has other rows than at its begin:\n%s", text)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestBackupSaysWhenItCannotBeWritten(t *testing.T) {
	s := open(t, emptyDatabase(t, SQLite))
	full := writerFunc(func([]byte) (int, error) { return 0, errOfTheTest })
	if err := s.Backup(t.Context(), full); !errors.Is(err, errOfTheTest) {
		t.Errorf("the error is %v", err)
	}
}

// TestRestoreRefusesWhatIsNoWholeBackup: and changes nothing then, even where it is forced.
func TestRestoreRefusesWhatIsNoWholeBackup(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *Store) {
		fill(t, s)
		good := backup(t, s)
		text := lines(t, good)
		body := text[:len(text)-1]
		change := func(old, new string) []byte {
			all := strings.Join(body, "\n")
			if !strings.Contains(all, old) {
				t.Fatalf("there is no %s to be changed", old)
			}
			return seal(strings.Split(strings.Replace(all, old, new, 1), "\n")...)
		}
		events := slices.IndexFunc(body, func(line string) bool { return strings.HasPrefix(line, `{"table":"events"`) })
		for name, c := range map[string]struct {
			backup []byte
			want   string
		}{
			"nothing":           {nil, "reading it"},
			"no gzip":           {[]byte("{}"), "reading it"},
			"no lines":          {zipped(""), "before its last one"},
			"another document":  {seal(`{"format":"other"}`), "no backup of pqproxy"},
			"no JSON":           {seal(body[0], "x"), "no JSON of a backup"},
			"no end":            {zipped(strings.Join(body, "\n") + "\n"), "before its last one"},
			"cut":               {good[:len(good)/2], "unexpected EOF"},
			"a byte is missing": {good[:len(good)-1], "unexpected EOF"},
			"a bit is wrong":    {flipped(good), ""},
			"a row is missing":  {zipped(strings.Join(slices.Delete(slices.Clone(text), events+1, events+2), "\n") + "\n"), "checksum"},
			"a row was changed": {zipped(strings.Replace(strings.Join(text, "\n"), "action 1", "action 2", 1) + "\n"), "checksum"},
			"a line follows":    {zipped(strings.Join(append(slices.Clone(text), "{}"), "\n") + "\n"), "follows its last line"},
			"bytes follow":      {append(slices.Clone(good), 'x'), "follows its end"},
			"a gzip follows":    {append(slices.Clone(good), good...), "follows its end"},
			"later format":      {change(`"version":1`, `"version":2`), "version 2 of the format"},
			"other schema":      {change(fmt.Sprintf(`"schema":%d`, s.schema), `"schema":999`), "the version that made it"},
			"huge revision":     {change(`"revision":41`, `"revision":18446744073709551615`), "revision"},
			"unknown table":     {change(`{"table":"events"`, `{"table":"goose_db_version"`), "no table of that name"},
			"SQL as a table":    {change(`{"table":"events"`, `{"table":"events\"; DROP TABLE events; --"`), "no table of that name"},
			"SQL as a column":   {change(`"actor"`, `"actor\") SELECT 1; --"`), "other columns"},
			"a column twice":    {change(`"tenant_id","actor"`, `"actor","actor"`), "other columns"},
			"a column less":     {change(`"tenant_id","actor"`, `"actor"`), "values for"},
			"a table twice":     {seal(append(slices.Clone(body), body[events])...), "comes twice"},
			"no tables":         {seal(body[0]), "has no table"},
			"a row first":       {seal(body[0], `[1]`), "before any table"},
			"the same row":      {seal(slices.Insert(slices.Clone(body), events+1, body[events+1])...), "events"},
			"another kind":      {change(`"actor 1`, `{"x":"actor 1"},"`), "kind that is not known"},
			"bad base64":        {change(`{"b":"`, `{"b":"?`), "kind that is not known"},
			"a list in a row":   {change(`["id 1`, `[["x"],"id 1`), "kind that is not known"},
		} {
			err := s.Restore(t.Context(), bytes.NewReader(c.backup), true)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q in it", name, err, c.want)
			} else if !strings.Contains(err.Error(), "nothing was changed") {
				t.Errorf("%s: the error does not say that nothing was changed: %v", name, err)
			}
			if now := lines(t, backup(t, s)); !slices.Equal(now[1:len(now)-1], text[1:len(text)-1]) {
				t.Fatalf("%s: rows were changed", name)
			}
		}
		if err := s.Restore(t.Context(), bytes.NewReader(good), true); err != nil {
			t.Errorf("the whole backup: %v", err)
		}
	})
}

func flipped(b []byte) []byte {
	b = slices.Clone(b)
	b[len(b)/2] ^= 0x10
	return b
}

// TestBackupsOfBothDatabasesHaveTheSameTables finds what one of the two has and the other has not.
func TestBackupsOfBothDatabasesHaveTheSameTables(t *testing.T) {
	var shapes [2][]string
	for i, driver := range engines {
		for _, line := range lines(t, backup(t, open(t, emptyDatabase(t, driver)))) {
			if strings.HasPrefix(line, `{"table"`) {
				shapes[i] = append(shapes[i], line)
			}
		}
		slices.Sort(shapes[i])
	}
	if !slices.Equal(shapes[0], shapes[1]) {
		t.Errorf("SQLite has\n%s\nPostgreSQL has\n%s", strings.Join(shapes[0], "\n"), strings.Join(shapes[1], "\n"))
	}
	all := strings.Join(shapes[0], "\n")
	for _, table := range slices.Concat(notBackedUp, forgotten) {
		if strings.Contains(all, `"table":"`+table+`"`) {
			t.Errorf("%s is in the backup", table)
		}
	}
}

func TestTablesInOrder(t *testing.T) {
	a, b, c := &table{name: "a"}, &table{name: "b"}, &table{name: "c"}
	sorted, err := inOrder([]*table{a, b, c}, map[*table][]*table{a: {c}, c: {b}})
	if err != nil || !slices.Equal(sorted, []*table{b, c, a}) {
		t.Errorf("sorted: %v, %v", sorted, err)
	}
	if _, err := inOrder([]*table{a, b}, map[*table][]*table{a: {b}, b: {a}}); err == nil {
		t.Error("a circle was sorted")
	}
}

func FuzzVerifyBackup(f *testing.F) {
	head := `{"format":"pqproxy-backup","version":1,"schema":4,"revision":1,"created_at":"2026-01-02T03:04:05Z"}`
	f.Add([]byte(strings.Join([]string{head, `{"table":"t","columns":["a","b"]}`, `["x",{"b":"AA=="}]`, `[null,1.5]`, `[true,-9223372036854775808]`}, "\n")), true)
	f.Add([]byte(head+"\n"+`{"rows":0,"sha256":""}`+"\n"), false)
	f.Add([]byte(head+"\n[1]\n"), true)
	f.Fuzz(func(t *testing.T, text []byte, whole bool) {
		document := zipped(string(text))
		if whole {
			document = seal(strings.Split(string(text), "\n")...)
		}
		head, err := verifyBackup(context.Background(), bytes.NewReader(document), 4)
		if (head == nil) == (err == nil) {
			t.Errorf("header %v and error %v", head, err)
		}
	})
}
