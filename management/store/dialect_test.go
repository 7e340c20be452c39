package store

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestRebind(t *testing.T) {
	const query = `SELECT a FROM t WHERE b = ? AND c IN (?, ?)`
	if got := sqliteDialect.rebind(query); got != query {
		t.Error(got)
	}
	if got, want := postgresDialect.rebind(query), `SELECT a FROM t WHERE b = $1 AND c IN ($2, $3)`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestFailuresOfPostgreSQL(t *testing.T) {
	code := func(code string) error { return fmt.Errorf("wrapped: %w", &pgconn.PgError{Code: code}) }
	for name, c := range map[string]struct {
		err  error
		want failure
	}{
		"unique":            {code("23505"), rowExists},
		"foreign key":       {code("23503"), otherFailure},
		"serialization":     {code("40001"), tryAgain},
		"deadlock":          {code("40P01"), tryAgain},
		"statement timeout": {code("57014"), away},
		"shutdown":          {code("57P01"), away},
		"connection lost":   {code("08006"), away},
		"too many clients":  {code("53300"), away},
		"disk full":         {code("53100"), away},
		"read only":         {code("25006"), away},
		"idle too long":     {code("25P03"), away},
		"syntax":            {code("42601"), otherFailure},
		"no code":           {code(""), otherFailure},
		"end of stream":     {io.ErrUnexpectedEOF, away},
		"something else":    {errors.New("x"), otherFailure},
	} {
		if got := classifyPostgres(c.err); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
