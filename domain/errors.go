package domain

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Error is one fault of a record. Parse, Normalize and CheckPair report all faults of a record at once,
// joined; Errors takes them apart again.
type Error struct {
	// Name is the record's name: in normal form where it has one, else as given, shortened. It is empty
	// where the record has none or could not be read so far.
	Name string

	// Field is the path of the faulty field in the JSON of the record, such as `upstreams[0].tls.ca_pem`.
	// Empty: the record as a whole.
	Field string

	// Err says what is wrong and what to do. It quotes input, shortened, but never PEM texts.
	Err error
}

// Error returns `domain "NAME": FIELD: what is wrong`.
func (e *Error) Error() string {
	text := "domain"
	if e.Name != "" {
		text += " " + strconv.Quote(e.Name)
	}
	if e.Field != "" {
		text += ": " + e.Field
	}
	return text + ": " + e.Err.Error()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Errors lists the faults in err, in the order in which they were found, however deep err wraps and joins
// them. It is empty where err holds none.
func Errors(err error) []*Error {
	switch e := err.(type) {
	case *Error:
		return []*Error{e}
	case interface{ Unwrap() []error }:
		var all []*Error
		for _, one := range e.Unwrap() {
			all = append(all, Errors(one)...)
		}
		return all
	case interface{ Unwrap() error }:
		return Errors(e.Unwrap())
	}
	return nil
}

// maxFaults bounds what one record can put into a report or a log: a megabyte of unknown fields would
// otherwise become a hundred megabytes of text.
const maxFaults = 64

// faults collects the faults of a record. Its path is where the record is being looked at.
type faults struct {
	path []byte
	list []*Error
	more int // faults beyond maxFaults
}

// enter goes into an object's member and returns what leave takes to come back.
func (f *faults) enter(key string) (mark int) {
	mark = len(f.path)
	if mark > 0 {
		f.path = append(f.path, '.')
	}
	f.path = append(f.path, key...)
	return mark
}

// index goes into an array's element and returns what leave takes to come back.
func (f *faults) index(i int) (mark int) {
	mark = len(f.path)
	f.path = append(f.path, '[')
	f.path = strconv.AppendInt(f.path, int64(i), 10)
	f.path = append(f.path, ']')
	return mark
}

// reset makes f as good as new, for the next record.
func (f *faults) reset() { *f = faults{path: f.path[:0]} }

func (f *faults) leave(mark int) { f.path = f.path[:mark] }

// add reports a fault of the member key of where f is, or of where f is itself if key is empty.
func (f *faults) add(key string, err error) {
	if len(f.list) == maxFaults {
		f.more++
		return
	}
	mark := len(f.path)
	if key != "" {
		f.enter(key)
	}
	f.list = append(f.list, &Error{Field: string(f.path), Err: err})
	f.leave(mark)
}

func (f *faults) addf(key, format string, args ...any) { f.add(key, fmt.Errorf(format, args...)) }

// merge appends what g found, except in fields, or parts of fields, that f has already faulted: a name of
// the wrong type is not missing as well.
func (f *faults) merge(g *faults) {
	known := len(f.list)
next:
	for _, e := range g.list {
		for _, k := range f.list[:known] {
			if k.Field == "" || inField(e.Field, k.Field) || inField(k.Field, e.Field) {
				continue next
			}
		}
		f.add(e.Field, e.Err)
	}
	f.more += g.more
}

// inField reports whether path is field or lies in it.
func inField(path, field string) bool {
	rest, ok := strings.CutPrefix(path, field)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// err joins what was found in the record of that name; nil if nothing was.
func (f *faults) err(name string) error {
	if len(f.list) == 0 {
		return nil
	}
	if f.more > 0 {
		f.list = append(f.list, &Error{Err: fmt.Errorf("%d more faults are not listed; correct these first", f.more)})
	}
	all := make([]error, len(f.list))
	for i, e := range f.list {
		e.Name = name
		all[i] = e
	}
	return errors.Join(all...)
}

// maxQuoted is how many bytes of outside input an error shows: a long host name's telling part, and few
// enough for a line of a log.
const maxQuoted = 64

const hiddenPEM = "(a PEM text, not shown)"

// quote renders outside input for an error.
func quote(s string) string {
	switch short := shorten(s); {
	case short == hiddenPEM:
		return short
	case len(short) < len(s):
		return strconv.Quote(short) + "..."
	}
	return strconv.Quote(s)
}

// shorten cuts s to maxQuoted bytes, at a character's boundary. A PEM text is not shown at all, wherever it
// was pasted: the first line of a short key is most of it.
func shorten(s string) string {
	if strings.Contains(s, "-----BEGIN") || strings.Contains(s, "PRIVATE KEY") {
		return hiddenPEM
	}
	if len(s) <= maxQuoted {
		return s
	}
	n := maxQuoted
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
