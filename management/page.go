package management

import (
	"encoding/base64"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Page says which part of a list is wanted.
type Page struct {
	Limit  int    // rows; the API has bounded it
	Cursor string // next_cursor of the page before; empty: from the start
}

// cursorVersion is the first byte of every cursor, so that a later form can be told apart.
const cursorVersion = "1"

// newCursor returns the cursor behind a row with these sort keys. It is opaque to clients and holds nothing but what they were
// shown.
func newCursor(keys ...string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(cursorVersion + strings.Join(keys, "\x00")))
}

// keys returns the sort keys that newCursor was given, n of them; nil for the first page.
func (p Page) keys(n int) ([]string, error) {
	if p.Cursor == "" {
		return nil, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(p.Cursor)
	// Bytes that are no text of ours are what PostgreSQL calls an error of the query.
	if err == nil && len(text) > 0 && string(text[:1]) == cursorVersion && utf8.Valid(text) {
		if keys := strings.Split(string(text[1:]), "\x00"); len(keys) == n {
			return keys, nil
		}
	}
	return nil, InvalidField("?cursor", "no cursor of this list: begin again without one")
}

// Precondition is the value of If-Match (RFC 9110 section 13.1.1): empty, `*`, or entity tags.
type Precondition string

// ETag returns the strong entity tag of a row's version.
func ETag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// check returns PreconditionFailed where the row is another version than the caller saw. Weak tags never match.
func (c Precondition) check(version int64) error {
	if c == "" || c == "*" {
		return nil
	}
	for tag := range strings.SplitSeq(string(c), ",") {
		if strings.TrimSpace(tag) == ETag(version) {
			return nil
		}
	}
	return Errorf(PreconditionFailed, "Somebody else changed this since you read it: read it again, then repeat the change.")
}
