package edgereport

import (
	"encoding/json"
	"errors"
	"strconv"

	"github.com/pqproxy/caddy-pqproxy/internal/pace"
)

// parser reads JSON (RFC 8259) straight into a report. encoding/json takes duplicate members, the last of which wins, and
// would have to look at each text twice. The first fault is kept, and ends everything.
type parser struct {
	data []byte
	pos  int
	err  *Error
	pace pace.Pace

	texts map[string]string // those that come again and again, by their bytes
	names map[string]string // domains' names in normal form, by their bytes
}

// maxDepth bounds how deep members that we do not know may nest.
const maxDepth = 32

// field is a member of an object that becomes a T.
type field[T any] struct {
	key      string
	required bool
	read     func(p *parser, into *T)
}

// syntax reports text that is no JSON.
func (p *parser) syntax(what string) {
	if p.err == nil {
		p.err = &Error{Malformed: true, Err: errors.New("byte " + strconv.Itoa(p.pos) + ": " + what)}
		p.pos = len(p.data)
	}
}

// fault reports the value that is being read.
func (p *parser) fault(what string) {
	if p.err == nil {
		p.err = &Error{Err: errors.New(what)}
		p.pos = len(p.data)
	}
}

// within puts a step in front of the pointer of a fault, on the way out.
func (p *parser) within(step string) {
	if !p.err.Malformed {
		p.err.Pointer = "/" + step + p.err.Pointer
	}
}

// next returns the byte behind white space, or 0 at the end.
func (p *parser) next() byte {
	for ; p.pos < len(p.data); p.pos++ {
		switch c := p.data[p.pos]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// take goes past a byte if it is next.
func (p *parser) take(c byte) bool {
	if p.next() != c || p.pos == len(p.data) {
		return false
	}
	p.pos++
	return true
}

// null goes past a null if it is next: it says what an absent member says.
func (p *parser) null() bool {
	if p.next() != 'n' {
		return false
	}
	return p.word("null")
}

func (p *parser) word(word string) bool {
	if len(p.data)-p.pos < len(word) || string(p.data[p.pos:p.pos+len(word)]) != word {
		p.syntax("a value is missing")
		return false
	}
	p.pos += len(word)
	return true
}

// members calls member at the value of each member of an object. It reports false where there is a fault.
func (p *parser) members(member func(key []byte)) bool {
	if !p.take('{') {
		p.wrong("an object")
		return false
	}
	if p.take('}') {
		return true
	}
	for p.err == nil {
		key, ok := p.raw()
		if !ok {
			return false
		}
		if !p.take(':') {
			p.syntax("expected a colon")
			return false
		}
		if member(key); p.err != nil {
			return false
		}
		if p.take('}') {
			return true
		}
		if !p.take(',') {
			p.syntax("expected a comma or the end of the object")
		}
	}
	return false
}

// object reads an object. Members that no field has are skipped; one that is given twice is a fault.
func object[T any](p *parser, into *T, fields []field[T]) {
	var seen uint64
	likely := 0 // they come in the order of the fields
	ok := p.members(func(key []byte) {
		at := -1
		for n := range fields {
			i := (likely + n) % len(fields)
			if string(key) == fields[i].key {
				at = i
				break
			}
		}
		if at < 0 {
			p.skip(maxDepth)
			return
		}
		likely = at + 1
		f := &fields[at]
		switch {
		case seen&(1<<at) != 0:
			p.fault("is given twice; keep one")
		case p.null():
		default:
			f.read(p, into)
		}
		if p.err != nil {
			p.within(f.key)
			return
		}
		seen |= 1 << at
	})
	if !ok {
		return
	}
	for i := range fields {
		if fields[i].required && seen&(1<<i) == 0 {
			p.fault("is missing")
			p.within(fields[i].key)
			return
		}
	}
}

// array calls element at each element of an array of at most so many.
func (p *parser) array(most int, element func(i int)) {
	if !p.take('[') {
		p.wrong("an array")
		return
	}
	if p.take(']') {
		return
	}
	for i := 0; p.err == nil; i++ {
		p.pace.Step()
		if i == most {
			p.fault("has more than " + strconv.Itoa(most) + " entries; send the rest with the next report")
			return
		}
		if element(i); p.err != nil {
			p.within(strconv.Itoa(i))
			return
		}
		if p.take(']') {
			return
		}
		if !p.take(',') {
			p.syntax("expected a comma or the end of the array")
		}
	}
}

// objects reads an array of objects.
func objects[T any](p *parser, most int, into *[]T, fields []field[T]) {
	p.array(most, func(int) {
		var one T
		object(p, &one, fields)
		*into = append(*into, one)
	})
}

// wrong reports a value of another type, unless there is none.
func (p *parser) wrong(want string) {
	switch c := p.next(); {
	case c == '{', c == '[', c == '"', c == 't', c == 'f', c == '-', '0' <= c && c <= '9':
		p.fault("must be " + want)
	default:
		p.syntax("a value is missing")
	}
}

// raw reads a string and returns what it says. The bytes are good until the next call.
func (p *parser) raw() (text []byte, ok bool) {
	if !p.take('"') {
		p.wrong("a string")
		return nil, false
	}
	start, plain := p.pos, true
	for ; p.pos < len(p.data); p.pos++ {
		switch c := p.data[p.pos]; {
		case c == '"':
			text = p.data[start:p.pos]
			p.pos++
			if plain {
				return text, true
			}
			var unquoted string
			if json.Unmarshal(p.data[start-1:p.pos], &unquoted) != nil {
				p.syntax("a string has a faulty escape")
				return nil, false
			}
			return []byte(unquoted), true
		case c < ' ':
			p.syntax("a string has a control character")
			return nil, false
		case c == '\\':
			plain = false
			p.pos++ // whatever follows is no end
		}
	}
	p.pos = len(p.data)
	p.syntax("a string does not end")
	return nil, false
}

// number returns the text of a number.
func (p *parser) number() (text []byte, ok bool) {
	if c := p.next(); c != '-' && (c < '0' || c > '9') {
		p.wrong("a number")
		return nil, false
	}
	start := p.pos
	p.takeByte('-')
	if !p.takeByte('0') && !p.digits() {
		return nil, false
	}
	if p.takeByte('.') && !p.digits() {
		return nil, false
	}
	if p.takeByte('e') || p.takeByte('E') {
		_ = p.takeByte('+') || p.takeByte('-')
		if !p.digits() {
			return nil, false
		}
	}
	return p.data[start:p.pos], true
}

func (p *parser) takeByte(c byte) bool {
	if p.pos == len(p.data) || p.data[p.pos] != c {
		return false
	}
	p.pos++
	return true
}

// digits goes past one or more digits.
func (p *parser) digits() bool {
	start := p.pos
	for p.pos < len(p.data) && '0' <= p.data[p.pos] && p.data[p.pos] <= '9' {
		p.pos++
	}
	if p.pos == start {
		p.syntax("expected a digit")
		return false
	}
	return true
}

// skip goes past a value, whatever it is.
func (p *parser) skip(depth int) {
	if depth == 0 {
		p.fault("nests too deep")
		return
	}
	switch c := p.next(); {
	case c == '{':
		p.members(func([]byte) { p.skip(depth - 1) })
	case c == '[':
		p.array(MaxSize, func(int) { p.skip(depth - 1) })
	case c == '"':
		p.raw()
	case c == 't':
		p.word("true")
	case c == 'f':
		p.word("false")
	case c == 'n':
		p.word("null")
	default:
		p.number()
	}
}
