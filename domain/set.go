package domain

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// DefaultMaxRecords is how many entries ReadSet takes unless told otherwise: four times the largest set that
// we measure. What ReadSet remembers of as many is about 200 MB.
const DefaultMaxRecords = 4 << 20

// The lists of a set's document that entries come from, for Refusal.List.
const (
	ListDomains = "domains"
	ListRemoved = "removed"
)

// SetOptions says what ReadSet does with what it reads. The zero value checks a document and keeps nothing.
type SetOptions struct {
	// Domain is called with each good record, in the order of the document. The record shares no memory
	// with anything. An error ends ReadSet, which returns it as it is.
	Domain func(d *Domain) error

	// Removed is called with each name of `removed`, in normal form, once however often it is listed. An
	// error ends ReadSet as above.
	Removed func(name string) error

	// Refused is called with each entry that is refused alone. It TAKES BACK what Domain or Removed was
	// given under the same name, since that a name is claimed twice shows only at the second claim. What a
	// hostile document can put into all refusals together is not bounded here: count them, and keep a few.
	Refused func(r Refusal)

	// ChangeSet says that the document is no full set even without `base`: the body of a PATCH. At least
	// one of `domains` and `removed` is then required.
	ChangeSet bool

	// MaxRecords bounds the entries of `domains` and `removed` together, and with them the memory that
	// remembering their names takes. 0 or less: DefaultMaxRecords.
	MaxRecords int
}

// Refusal is an entry of a set that is not applied. The others are not affected.
type Refusal struct {
	List  string // ListDomains or ListRemoved
	Index int    // place in that list, from 0

	// Name is the normal form of the entry's name, whose last good version stays as it is. Empty where the
	// entry has none: a name without a normal form is not live, so nothing has to stay, unless it could not
	// be read at all; see SetHeader.Unnamed.
	Name string

	Err error // all faults of the entry; see Errors
}

// SetHeader is what ReadSet learned beside the entries.
type SetHeader struct {
	// Revision is the version of the set; 0 where HasRevision is false.
	Revision    uint64
	HasRevision bool

	// Base is the revision that a change set starts from: it fits an edge that has exactly this one. 0:
	// there is none.
	Base uint64

	// Full says that the document lists all domains there are, so that others are to go: it has no base,
	// and SetOptions did not say that it is a change set.
	Full bool

	// Domains and Removed count the entries to apply (given to the callbacks and not taken back), Refused
	// the refusals.
	Domains, Removed, Refused int

	// Unnamed counts the refused records whose name could not be read. In a full set, one of them may
	// stand for any live domain that the set does not list, so do not drop those while it is above 0.
	Unnamed int

	// Ignored lists the members of the document that we do not know, shortened, for a warning.
	Ignored []string

	// Size is the length of the document in bytes.
	Size int64
}

// SetError is a fault of a set's document as a whole: nothing of it may be applied.
type SetError struct {
	Offset int64  // in bytes from the start of the document
	Field  string // member of the document, such as `revision`; empty: the document
	Err    error  // io.ErrUnexpectedEOF where the document ends early

	// Malformed says that the document is no JSON text, or not all of one; else it is JSON of another shape.
	Malformed bool
}

// Error returns `domain set, byte OFFSET: FIELD: what is wrong`.
func (e *SetError) Error() string {
	text := "domain set, byte " + strconv.FormatInt(e.Offset, 10) + ": "
	if e.Field != "" {
		text += e.Field + ": "
	}
	return text + e.Err.Error()
}

// Unwrap returns Err.
func (e *SetError) Unwrap() error { return e.Err }

// ReadSet reads a set of domains, or a change of one, that src gave:
//
//	{"revision": 420, "base": 410, "domains": [...], "removed": ["old.example.com"]}
//
// It hands over one entry at a time and holds none, so its memory is one record (at most MaxSize bytes), a
// read buffer, and 16 bytes of hash with a few beside for each name, which find the names claimed twice.
//
// The members may come in any order, `revision` last too, and a fault may come after a million good records:
// stage what the callbacks bring, and apply it only when ReadSet returned a header, after looking at that.
// `base` absent or 0 is a full set, which requires `domains` and allows nothing in `removed`: a change set
// that lost its base would otherwise end every domain it does not mention.
//
// Three things are kept apart. A fault of one record refuses that record: any of Parse's, its size, or a
// name that occurs twice in `domains` or in both lists, which refuses all that claim it, since one cannot
// know which was meant. A fault of the document refuses it all, with a *SetError: text that is no JSON (RFC
// 8259), ends early or goes on behind the object, nesting deeper than encoding/json takes, a member given
// twice, with a value of another type (null too), or spelled like a known one in another case. Any other
// error is the reader's or a callback's.
//
// Unknown members of the document are skipped and listed in the header, unlike those of a record: an edge
// that ignores what a newer management plane tells about the set serves the domains as they were meant,
// one that ignores a domain's field does not.
func ReadSet(r io.Reader, src Source, opts SetOptions) (*SetHeader, error) {
	if opts.MaxRecords <= 0 {
		opts.MaxRecords = DefaultMaxRecords
	}
	opts.MaxRecords = min(opts.MaxRecords, math.MaxInt32) // claim's index
	s := setReader{
		scanner: scanner{r: r, buf: make([]byte, scanBuffer)},
		src:     src,
		opts:    opts,
		seen:    make(map[nameHash]claim),
	}
	if !s.document() {
		return nil, s.err
	}
	return &s.header, nil
}

// nameHash stands for a name in normal form. 16 bytes of SHA-256, because a tenant chooses names: whoever
// found a collision (2^64 work) would have two domains refused.
type nameHash [16]byte

// claim is the first entry that had a name.
type claim struct {
	index   int32
	removed bool // in `removed`, not in `domains`
	applied bool // was given to a callback and not taken back
}

func (c claim) list() string {
	if c.removed {
		return ListRemoved
	}
	return ListDomains
}

type setReader struct {
	scanner
	src     Source
	opts    SetOptions
	header  SetHeader
	seen    map[nameHash]claim
	records int
	members []string // of the document, for finding those given twice

	found, semantic faults // of the present record
}

// Bounds of a document's own members, which an honest one is far from.
const (
	maxMembers   = 64
	maxMemberKey = 256
)

func (s *setReader) document() bool {
	if c := s.next(); c != '{' {
		return s.syntax("a set is a JSON object, which begins with {; is this the address of a feed?")
	}
	if !s.object(s.member) || !s.end() {
		return false
	}
	s.header.Size = s.offset()
	s.header.Full = s.header.Base == 0 && !s.opts.ChangeSet
	return s.checkHeader()
}

// checkHeader checks what only the whole document shows.
func (s *setReader) checkHeader() bool {
	h := &s.header
	hasDomains, hasRemoved := s.has(ListDomains), s.has(ListRemoved)
	switch {
	case h.Full && !hasDomains:
		return s.fault(ListDomains, errors.New("is missing; a full set lists all domains, even if that is []"))
	case !hasDomains && !hasRemoved:
		return s.fault(ListDomains, errors.New("is missing, and so is removed; a change set has one of them"))
	case h.Full && h.Removed > 0:
		return s.fault(ListRemoved, errors.New("is not empty, but there is no base; a change set says which revision it starts from, and a full set removes what it does not list"))
	case h.Base > 0 && !h.HasRevision:
		return s.fault("revision", errors.New("is missing; a set with a base says which revision it leads to"))
	case h.Base > h.Revision:
		return s.fault("base", fmt.Errorf("is %d, later than the revision, %d", h.Base, h.Revision))
	}
	return true
}

func (s *setReader) has(member string) bool {
	for _, m := range s.members {
		if m == member {
			return true
		}
	}
	return false
}

// member reads the value of one member of the document.
func (s *setReader) member(key string) bool {
	field := pathKey(key)
	switch {
	case len(key) > maxMemberKey:
		return s.fault(field, fmt.Errorf("the name of this member has more than %d bytes", maxMemberKey))
	case s.has(key):
		return s.fault(field, errors.New("is given twice; keep one"))
	case len(s.members) == maxMembers:
		return s.fault(field, fmt.Errorf("the document has more than %d members", maxMembers))
	}
	s.members = append(s.members, key)
	switch key {
	case "revision":
		s.header.HasRevision = true
		return s.number(field, &s.header.Revision)
	case "base":
		return s.number(field, &s.header.Base)
	case ListDomains:
		return s.list(field, s.record)
	case ListRemoved:
		return s.list(field, s.removal)
	}
	for _, known := range []string{"revision", "base", ListDomains, ListRemoved} {
		if strings.EqualFold(key, known) {
			return s.fault(field, fmt.Errorf("is unknown; write it as %s", known))
		}
	}
	s.header.Ignored = append(s.header.Ignored, field)
	return s.value()
}

// maxDigits is more than a number of 63 bits has.
const maxDigits = 32

func (s *setReader) number(field string, to *uint64) bool {
	c := s.next()
	if c != '-' && (c < '0' || c > '9') {
		return s.wrongType(field, "a whole number")
	}
	at := s.offset()
	digits, ok := s.captured(maxDigits, s.value)
	if !ok {
		return false
	}
	// 63 bits, since databases have no unsigned numbers.
	n, err := strconv.ParseUint(string(digits), 10, 63)
	if err != nil {
		return s.faultAt(at, field, fmt.Errorf("must be a whole number from 0 to %d, in digits only", uint64(1)<<63-1))
	}
	*to = n
	return true
}

// list reads an array; entry reads one value of it.
func (s *setReader) list(field string, entry func(i int) bool) bool {
	if s.next() != '[' {
		return s.wrongType(field, "an array")
	}
	return s.array(func(i int) bool {
		if s.records == s.opts.MaxRecords {
			return s.fault(field, fmt.Errorf("the set has more than %d entries; raise the limit if it is meant to", s.opts.MaxRecords))
		}
		s.records++
		return entry(i)
	})
}

// wrongType reports the value that begins at the next byte, unless that begins none.
func (s *setReader) wrongType(field, want string) bool {
	var got string
	switch c := s.next(); {
	case c == 'n':
		return s.fault(field, fmt.Errorf("must be %s, not null; leave the member out instead", want))
	case c == '{':
		got = "an object"
	case c == '[':
		got = "an array"
	case c == '"':
		got = "a string"
	case c == 't' || c == 'f':
		got = "a boolean"
	case c == '-' || '0' <= c && c <= '9':
		got = "a number"
	default:
		return s.syntax("a value is missing")
	}
	return s.fault(field, fmt.Errorf("must be %s, not %s", want, got))
}

// record reads entry i of `domains`.
func (s *setReader) record(i int) bool {
	s.next() // so that the size is the record's own
	start := s.offset()
	raw, ok := s.captured(MaxSize, s.value)
	if !ok {
		return false
	}
	f := &s.found
	f.reset()
	if size := s.offset() - start; size > MaxSize {
		f.addf("", "the record has %d bytes, more than the %d allowed; shorten its PEM texts", size, MaxSize)
	} else if !utf8.Valid(raw) {
		f.add("", errors.New("the record is not UTF-8 text; encode it as UTF-8"))
	} else {
		// As Parse, but for looking at the syntax again.
		d := new(Domain)
		r := decoder{data: raw, faults: f}
		r.domain(d)
		s.semantic.reset()
		normalize(d, s.src, &s.semantic)
		f.merge(&s.semantic)
		return s.decided(i, d, f)
	}
	return s.decided(i, &Domain{Name: nameIn(raw)}, f)
}

// decided hands over d, which is entry i of `domains`, or refuses it if there is anything in f or its name
// has been claimed before.
func (s *setReader) decided(i int, d *Domain, f *faults) bool {
	normal, shown := d.Name, d.Name
	if len(f.list) > 0 {
		if name, err := NormalName(d.Name); err == nil {
			normal, shown = name, name
		} else {
			normal, shown = "", shorten(d.Name)
		}
	}
	if normal != "" && !s.claim(normal, claim{index: int32(i), applied: len(f.list) == 0}, f) {
		return false
	}
	if err := f.err(shown); err != nil {
		if d.Name == "" {
			s.header.Unnamed++
		}
		s.refuse(Refusal{List: ListDomains, Index: i, Name: normal, Err: err})
		return true
	}
	s.header.Domains++
	if s.opts.Domain != nil {
		return s.stop(s.opts.Domain(d))
	}
	return true
}

// removal reads entry i of `removed`.
func (s *setReader) removal(i int) bool {
	c := s.next()
	raw, ok := s.captured(escaped(maxNameInput), s.value)
	if !ok {
		return false
	}
	var f faults
	var name, normal string
	if c != '"' {
		f.add("", errors.New("must be a string, the name of a domain"))
	} else {
		var err error
		name = unquote(raw)
		if normal, err = NormalName(name); err != nil {
			f.add("", err)
		}
	}
	if normal != "" {
		name = normal
		if first, again := s.seen[hashName(normal)]; again && first.removed {
			return true
		}
		if !s.claim(normal, claim{index: int32(i), removed: true, applied: true}, &f) {
			return false
		}
	}
	if err := f.err(shorten(name)); err != nil {
		s.refuse(Refusal{List: ListRemoved, Index: i, Name: normal, Err: err})
		return true
	}
	s.header.Removed++
	if s.opts.Removed != nil {
		return s.stop(s.opts.Removed(normal))
	}
	return true
}

// claim records that c has that name. If something else has it too, that is taken back, and f gets the fault.
func (s *setReader) claim(name string, c claim, f *faults) bool {
	hash := hashName(name)
	first, again := s.seen[hash]
	if !again {
		s.seen[hash] = c
		return true
	}
	clash := fmt.Errorf("is that of %s[%d] and of %s[%d]; one set names a domain once", first.list(), first.index, c.list(), c.index)
	f.add("name", clash)
	if !first.applied {
		return true
	}
	first.applied = false
	s.seen[hash] = first
	if first.removed {
		s.header.Removed--
	} else {
		s.header.Domains--
	}
	s.refuse(Refusal{List: first.list(), Index: int(first.index), Name: name, Err: &Error{Name: name, Field: "name", Err: clash}})
	return true
}

func hashName(name string) nameHash {
	// A name fits, so the conversion to bytes stays on the stack.
	var b [maxName]byte
	sum := sha256.Sum256(b[:copy(b[:], name)])
	return nameHash(sum[:16])
}

func (s *setReader) refuse(r Refusal) {
	s.header.Refused++
	if s.opts.Refused != nil {
		s.opts.Refused(r)
	}
}

// stop ends reading if a callback returned an error.
func (s *setReader) stop(err error) bool {
	s.err = err
	return err == nil
}

// fault reports a fault of the document's member field at the present byte. It returns false, as all do that
// end reading.
func (s *setReader) fault(field string, err error) bool { return s.faultAt(s.offset(), field, err) }

func (s *setReader) faultAt(offset int64, field string, err error) bool {
	if s.err == nil {
		s.err = &SetError{Offset: offset, Field: field, Err: err}
	}
	return false
}

// nameIn returns the name in a record of which data is JSON or the beginning of JSON, as given; empty if it
// has none there. It is for records that cannot be decoded, so that their last good version is known.
func nameIn(data []byte) (name string) {
	s := scanner{r: strings.NewReader(""), buf: data, filled: len(data)}
	if s.next() != '{' {
		return ""
	}
	s.object(func(key string) bool {
		if key != "name" || s.next() != '"' {
			return s.value()
		}
		if raw, ok := s.captured(escaped(maxNameInput), s.value); ok {
			name = unquote(raw)
		}
		return false
	})
	return name
}
