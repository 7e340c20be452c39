package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Tables that no backup has.
var (
	// notBackedUp stay as they are in a restore: goose's own, and the connection records, which on SQLite are in another file.
	notBackedUp = []string{"goose_db_version", "connections"}

	// forgotten are emptied by it: leases belong to instances that run, and a session or a link that has ended since the backup
	// must not work again.
	forgotten = []string{"leases", "sessions", "password_resets"}
)

// table is one of the tables that a backup has.
type table struct {
	name    string
	columns []column // in the order of the schema, generated ones left out
	key     []string // the columns of the primary key
}

type column struct {
	name    string
	boolean bool // PostgreSQL's; SQLite's booleans are 0 and 1
}

func (t *table) columnNames() []string {
	names := make([]string, len(t.columns))
	for i, c := range t.columns {
		names[i] = c.name
	}
	return names
}

// catalog is what the two databases are asked about their tables. The first two return rows of texts.
type catalog struct {
	columns    string // table, column, type; in order
	keys       string // table, column of the primary key; in order
	references string // table, table that it points at
}

var catalogs = map[string]catalog{
	SQLite: {
		columns: `SELECT t.name, c.name, lower(c.type) FROM pragma_table_list AS t, pragma_table_xinfo(t.name) AS c
			WHERE t.schema = 'main' AND t.type = 'table' AND t.name NOT LIKE 'sqlite\_%' ESCAPE '\' AND c.hidden = 0 ORDER BY t.name, c.cid`,
		keys: `SELECT t.name, c.name FROM pragma_table_list AS t, pragma_table_xinfo(t.name) AS c
			WHERE t.schema = 'main' AND t.type = 'table' AND c.pk > 0 ORDER BY t.name, c.pk`,
		references: `SELECT t.name, f."table" FROM pragma_table_list AS t, pragma_foreign_key_list(t.name) AS f
			WHERE t.schema = 'main' AND t.type = 'table'`,
	},
	Postgres: {
		columns: `SELECT t.relname, c.attname, format_type(c.atttypid, NULL)
			FROM pg_class AS t JOIN pg_attribute AS c ON c.attrelid = t.oid
			WHERE t.relnamespace = current_schema()::regnamespace AND t.relkind IN ('r', 'p') AND NOT t.relispartition
				AND c.attnum > 0 AND NOT c.attisdropped AND c.attgenerated = ''
			ORDER BY t.relname COLLATE "C", c.attnum`,
		keys: `SELECT t.relname, c.attname
			FROM pg_index AS i JOIN pg_class AS t ON t.oid = i.indrelid CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k(attnum, n)
				JOIN pg_attribute AS c ON c.attrelid = t.oid AND c.attnum = k.attnum
			WHERE i.indisprimary AND t.relnamespace = current_schema()::regnamespace ORDER BY t.relname COLLATE "C", k.n`,
		references: `SELECT t.relname, r.relname
			FROM pg_constraint AS f JOIN pg_class AS t ON t.oid = f.conrelid JOIN pg_class AS r ON r.oid = f.confrelid
			WHERE f.contype = 'f' AND t.relnamespace = current_schema()::regnamespace`,
	},
}

// tables returns the tables that a backup has, each after those that it points at.
func (d *dialect) tables(ctx context.Context, on *sql.Tx) ([]*table, error) {
	c := catalogs[d.name]
	byName := make(map[string]*table)
	var all []*table
	err := texts(ctx, on, c.columns, 3, func(row []string) {
		if slices.Contains(notBackedUp, row[0]) || slices.Contains(forgotten, row[0]) {
			return
		}
		t := byName[row[0]]
		if t == nil {
			t = &table{name: row[0]}
			byName[t.name] = t
			all = append(all, t)
		}
		t.columns = append(t.columns, column{name: row[1], boolean: row[2] == "boolean"})
	})
	if err != nil {
		return nil, err
	}
	err = texts(ctx, on, c.keys, 2, func(row []string) {
		if t := byName[row[0]]; t != nil {
			t.key = append(t.key, row[1])
		}
	})
	if err != nil {
		return nil, err
	}
	needs := make(map[*table][]*table)
	err = texts(ctx, on, c.references, 2, func(row []string) {
		if from, to := byName[row[0]], byName[row[1]]; from != nil && to != nil && from != to {
			needs[from] = append(needs[from], to)
		}
	})
	if err != nil {
		return nil, err
	}
	return inOrder(all, needs)
}

// inOrder sorts tables so that each comes after those that it needs, and otherwise stays where it was.
func inOrder(all []*table, needs map[*table][]*table) ([]*table, error) {
	sorted := make([]*table, 0, len(all))
	for len(sorted) < len(all) {
		before := len(sorted)
		for _, t := range all {
			if slices.Contains(sorted, t) {
				continue
			}
			if !slices.ContainsFunc(needs[t], func(n *table) bool { return !slices.Contains(sorted, n) }) {
				sorted = append(sorted, t)
			}
		}
		if len(sorted) == before {
			return nil, errors.New("tables point at each other in a circle, and none can be restored first")
		}
	}
	return sorted, nil
}

// texts calls row for each row of a query whose n columns are texts.
func texts(ctx context.Context, on *sql.Tx, query string, n int, row func([]string)) error {
	rows, err := on.QueryContext(ctx, query)
	if err != nil {
		return fmt.Errorf("reading the catalogue of tables: %w", err)
	}
	defer rows.Close()
	values, to := make([]string, n), make([]any, n)
	for i := range values {
		to[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(to...); err != nil {
			return err
		}
		row(values)
	}
	return rows.Err()
}

// quoted returns names as SQL writes them. They are the schema's own, never a document's.
func quoted(names ...string) string { return `"` + strings.Join(names, `", "`) + `"` }
