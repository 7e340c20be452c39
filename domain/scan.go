package domain

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// scanBuffer is the size of a scanner's read buffer: some hundred records, so that few lie across its end
// and have to be copied.
const scanBuffer = 64 << 10

// maxNesting is encoding/json's.
const maxNesting = 10_000

// scanner goes over a JSON text (RFC 8259) that is read piece by piece, and takes exactly what json.Valid
// takes. It exists because json.Decoder's Token, the standard library's only way to read an array element by
// element beside holding it whole, allocates for each token and is about ten times slower.
//
// Methods return false when reading is to end, and err says why.
type scanner struct {
	r      io.Reader
	buf    []byte
	pos    int   // of the next byte in buf
	filled int   // bytes of buf that are in use
	before int64 // bytes read before buf
	err    error

	depth int    // of object and array
	open  []byte // what value is in: '{' or '['

	// Of captured: where in buf the value begins (if capturing), what of it was in earlier buffers, cut to
	// limit bytes.
	capturing bool
	from      int
	kept      []byte
	limit     int
}

// offset returns how many bytes have been gone over.
func (s *scanner) offset() int64 { return s.before + int64(s.pos) }

// syntax reports text that is no JSON at the present byte.
func (s *scanner) syntax(problem string) bool {
	if s.err == nil {
		s.err = &SetError{Offset: s.offset(), Malformed: true, Err: errors.New(problem)}
	}
	return false
}

// peek returns the next byte, or 0, which JSON has nowhere, if there is none; err says why.
func (s *scanner) peek() byte {
	if s.pos == s.filled && !s.fill() {
		return 0
	}
	return s.buf[s.pos]
}

// maxEmptyReads is bufio's bound for readers that return neither bytes nor an error.
const maxEmptyReads = 100

// fill replaces buf, which has been gone over, by what follows it.
func (s *scanner) fill() bool {
	if s.err != nil {
		return false
	}
	if s.capturing {
		s.keep()
		s.from = 0
	}
	s.before += int64(s.filled)
	s.pos, s.filled = 0, 0
	for range maxEmptyReads {
		n, err := s.r.Read(s.buf)
		s.filled = n
		if n > 0 {
			return true // an error comes again with the next Read
		}
		if err == io.EOF {
			s.err = &SetError{Offset: s.before, Malformed: true, Err: fmt.Errorf("the document ends early: %w", io.ErrUnexpectedEOF)}
			return false
		}
		if err != nil {
			s.err = fmt.Errorf("reading a domain set at byte %d: %w", s.before, err)
			return false
		}
	}
	s.err = fmt.Errorf("reading a domain set at byte %d: %w", s.before, io.ErrNoProgress)
	return false
}

// keep appends the captured part of buf to kept.
func (s *scanner) keep() {
	part := s.buf[s.from:s.pos]
	s.kept = append(s.kept, part[:min(len(part), s.limit-len(s.kept))]...)
}

// captured returns what step goes over, cut to limit bytes where it does not lie in one buffer. It is valid
// until the next call.
func (s *scanner) captured(limit int, step func() bool) ([]byte, bool) {
	s.next()
	s.capturing, s.from, s.kept, s.limit = true, s.pos, s.kept[:0], limit
	ok := step()
	s.capturing = false
	if !ok {
		return nil, false
	}
	if len(s.kept) == 0 {
		return s.buf[s.from:s.pos], true
	}
	s.keep()
	return s.kept, true
}

// end goes over what may follow the text: white space alone.
func (s *scanner) end() bool {
	s.next()
	if s.err == nil {
		return s.syntax("the document goes on behind its object; send one object alone")
	}
	if e, ok := errors.AsType[*SetError](s.err); !ok || !errors.Is(e, io.ErrUnexpectedEOF) {
		return false
	}
	s.err = nil
	return true
}

// next goes over white space and returns the byte there, as peek does.
func (s *scanner) next() byte {
	for {
		switch c := s.peek(); c {
		case ' ', '\t', '\r', '\n':
			s.pos++
		default:
			return c
		}
	}
}

// object goes over an object, whose first byte is next; member goes over the value of one member.
func (s *scanner) object(member func(key string) bool) bool {
	s.pos++
	s.depth++
	if s.next() == '}' {
		s.pos++
		s.depth--
		return s.err == nil
	}
	for {
		raw, ok := s.captured(escaped(maxMemberKey), s.key)
		if !ok || !s.colon() || !member(unquote(raw)) {
			return false
		}
		switch s.next() {
		case ',':
			s.pos++
		case '}':
			s.pos++
			s.depth--
			return true
		default:
			return s.syntax("expected , or } behind a member of an object")
		}
	}
}

// array goes over an array, whose first byte is next; element goes over one value.
func (s *scanner) array(element func(i int) bool) bool {
	s.pos++
	s.depth++
	if s.next() == ']' {
		s.pos++
		s.depth--
		return s.err == nil
	}
	for i := 0; ; i++ {
		if !element(i) {
			return false
		}
		switch s.next() {
		case ',':
			s.pos++
		case ']':
			s.pos++
			s.depth--
			return true
		default:
			return s.syntax("expected , or ] behind an element of an array")
		}
	}
}

// value goes over one value of any depth, without recursion, since the text says how deep it is.
func (s *scanner) value() bool {
	s.open = s.open[:0]
	for {
		if !s.begin() {
			return false
		}
		// Each pass of this loop is behind a value, or behind the opening of an empty object or array.
		for {
			if len(s.open) == 0 {
				return true
			}
			more, ok := s.behind()
			if !ok {
				return false
			}
			if more {
				break
			}
		}
	}
}

// begin goes over a value that has no parts, or into an object or array up to the first value in it, or to
// the end of it if it is empty.
func (s *scanner) begin() bool {
	for {
		switch c := s.next(); {
		case c == '"':
			return s.text()
		case c == '{':
			if !s.enter(c) {
				return false
			}
			if s.next() == '}' {
				return s.leave()
			}
			if !s.key() || !s.colon() {
				return false
			}
		case c == '[':
			if !s.enter(c) {
				return false
			}
			if s.next() == ']' {
				return s.leave()
			}
		case c == 't':
			return s.word("true")
		case c == 'f':
			return s.word("false")
		case c == 'n':
			return s.word("null")
		case c == '-' || '0' <= c && c <= '9':
			return s.digits()
		default:
			return s.syntax("expected a value")
		}
	}
}

// behind goes over what follows a value in the innermost object or array: to the next value in it (more), or
// over its end.
func (s *scanner) behind() (more, ok bool) {
	in, c := s.open[len(s.open)-1], s.next()
	switch {
	case c == ',':
		s.pos++
		return true, in == '[' || s.key() && s.colon()
	case in == '{' && c == '}', in == '[' && c == ']':
		return false, s.leave()
	case in == '{':
		return false, s.syntax("expected , or } behind a member of an object")
	}
	return false, s.syntax("expected , or ] behind an element of an array")
}

func (s *scanner) enter(c byte) bool {
	if s.depth+len(s.open) == maxNesting {
		return s.syntax(fmt.Sprintf("nested more than %d deep", maxNesting))
	}
	s.open = append(s.open, c)
	s.pos++
	return true
}

func (s *scanner) leave() bool {
	s.open = s.open[:len(s.open)-1]
	s.pos++
	return true
}

// key goes over the name of a member.
func (s *scanner) key() bool {
	if s.next() != '"' {
		return s.syntax(`expected the name of a member, which begins with "`)
	}
	return s.text()
}

func (s *scanner) colon() bool {
	if s.next() != ':' {
		return s.syntax("expected : behind the name of a member")
	}
	s.pos++
	return true
}

// text goes over a string, whose first byte is next.
func (s *scanner) text() bool {
	s.pos++
	for {
		// Most bytes of a document are in strings, so they are looked at without a call for each.
		for s.pos < s.filled {
			c := s.buf[s.pos]
			if c == '"' {
				s.pos++
				return true
			}
			if c == '\\' || c < ' ' {
				break
			}
			s.pos++
		}
		if s.pos == s.filled {
			if !s.fill() {
				return false
			}
		} else if s.buf[s.pos] != '\\' {
			return s.syntax("a control character in a string; write it as an escape")
		} else if !s.escape() {
			return false
		}
	}
}

// escape goes over a backslash and what belongs to it.
func (s *scanner) escape() bool {
	s.pos++
	switch s.peek() {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.pos++
		return true
	case 'u':
		s.pos++
		for range 4 {
			c := s.peek()
			if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'f') {
				return s.syntax("expected four hexadecimal digits behind \\u")
			}
			s.pos++
		}
		return true
	}
	return s.syntax("an unknown escape in a string")
}

func (s *scanner) word(word string) bool {
	for i := range len(word) {
		if s.peek() != word[i] {
			return s.syntax("expected " + word)
		}
		s.pos++
	}
	return true
}

// digits goes over a number (RFC 8259 section 6).
func (s *scanner) digits() bool {
	if s.peek() == '-' {
		s.pos++
	}
	if s.peek() == '0' {
		s.pos++
	} else if !s.run() {
		return false
	}
	if s.peek() == '.' {
		s.pos++
		if !s.run() {
			return false
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		return s.run()
	}
	// A number ends where another byte follows; that there is none is for the caller to see.
	return s.err == nil
}

// run goes over one or more decimal digits.
func (s *scanner) run() bool {
	if c := s.peek(); c < '0' || c > '9' {
		return s.syntax("expected a digit")
	}
	for c := s.peek(); '0' <= c && c <= '9'; c = s.peek() {
		s.pos++
	}
	return s.err == nil
}

// escaped returns the length of the longest JSON string for a text of n bytes: each as \u and four digits.
// What captured cuts to it is a longer text.
func escaped(n int) int { return 6*n + len(`""`) }

// unquote returns the text of a string as JSON has it. Of one that captured cut, it returns the beginning as
// it stands, which is longer than what the caller compares it to.
func unquote(raw []byte) string {
	var text string
	if n := len(raw) - 1; n > 0 && raw[n] == '"' {
		plain := true
		for _, c := range raw {
			plain = plain && c != '\\'
		}
		if plain {
			return string(raw[1:n])
		}
		if json.Unmarshal(raw, &text) == nil {
			return text
		}
	}
	return string(raw)
}
