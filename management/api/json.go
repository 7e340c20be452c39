package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/pqproxy/caddy-pqproxy/management"
)

const (
	maxDepth  = 32  // of objects and arrays in each other
	mostTold  = 50  // faults of one request
	mostShown = 40  // bytes of a member's name that a pointer may show: less than any key of ours has, should one be sent as a name
	mostPath  = 400 // bytes of a pointer
)

// reader goes over a JSON document beside the Go type that it is to become, and notes every fault with its place.
// encoding/json alone stops at the first one, takes names in any case and, of members that are there twice, the last. The text
// is known to be a JSON document, so the reader looks only for where things end; json.Decoder's Token, which would do that too,
// takes four times as long for a large body of small values.
type reader struct {
	text   []byte
	at     int
	sparse bool   // a merge patch: members may be missing, and null removes
	path   []step // to the present value
	faults []management.Fault
}

// step is a member's name or, where that is nil, an element's index.
type step struct {
	name  []byte // as it is in the text, between the quotes
	index int
}

// readJSON checks that text is one document that fits t, and stores it in to, a pointer to a t. With t nil, any document fits
// and to is not used.
func readJSON(text []byte, t reflect.Type, sparse bool, to any) ([]management.Fault, error) {
	if err := checkSyntax(text); err != nil {
		return nil, err
	}
	r := &reader{text: text, sparse: sparse}
	r.value(t)
	if len(r.faults) > 0 || t == nil {
		return r.faults, nil
	}
	if err := json.Unmarshal(text, to); err != nil {
		// The walk is to find everything that Unmarshal does. Whatever it did not find is told without the error's text, which may
		// quote the input.
		return []management.Fault{{Pointer: "", Detail: notFound}}, nil
	}
	return nil, nil
}

const notFound = "does not fit what is expected here"

// checkSyntax returns a Malformed Error for what is no JSON document (RFC 8259) in UTF-8, of bounded depth.
func checkSyntax(text []byte) error {
	if len(bytes.TrimSpace(text)) == 0 {
		return management.Errorf(management.Malformed, "The body is empty: send a JSON document.")
	}
	if !utf8.Valid(text) {
		return management.Errorf(management.Malformed, "The body is not UTF-8.")
	}
	depth, inString, escaped := 0, false, false
	for _, b := range text {
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped, inString = b == '\\', b != '"'
		case b == '"':
			inString = true
		case b == '{' || b == '[':
			if depth++; depth > maxDepth {
				return management.Errorf(management.Malformed, "The document is nested more than %d deep.", maxDepth)
			}
		case b == '}' || b == ']':
			depth--
		}
	}
	var whole json.RawMessage
	if err := json.Unmarshal(text, &whole); err != nil {
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			return management.Errorf(management.Malformed, "The body is not one JSON document: see byte %d.", syntax.Offset)
		}
		return management.Errorf(management.Malformed, "The body is not one JSON document.")
	}
	return nil
}

// fault notes a fault at the present place.
func (r *reader) fault(detail string) { r.faultAt(r.pointer(), detail) }

func (r *reader) faultAt(pointer, detail string) {
	if len(r.faults) < mostTold {
		r.faults = append(r.faults, management.Fault{Pointer: pointer, Detail: detail})
	}
}

// pointer returns the JSON pointer of the present place; of a name that must not be repeated, its parent's.
func (r *reader) pointer() string {
	if len(r.faults) >= mostTold {
		return "" // nobody will see it
	}
	at := ""
	for _, s := range r.path {
		name := strconv.Itoa(s.index)
		if s.name != nil {
			name = unquote(s.name)
		}
		next, shown := under(at, name)
		if !shown {
			return at
		}
		at = next
	}
	return at
}

// unquote returns the string whose text stands between quotes.
func unquote(text []byte) string {
	if bytes.IndexByte(text, '\\') < 0 {
		return string(text)
	}
	var s string
	if err := json.Unmarshal(slices.Concat([]byte{'"'}, text, []byte{'"'}), &s); err != nil {
		panic("a string of a valid document is none") // without the string
	}
	return s
}

// blank skips what separates values, and returns the first byte of what follows.
func (r *reader) blank() byte {
	for {
		switch b := r.text[r.at]; b {
		case ' ', '\t', '\r', '\n', ',', ':':
			r.at++
		default:
			return b
		}
	}
}

// scalarText returns the text of the next value, which is no object or array.
func (r *reader) scalarText() []byte {
	from := r.at
	if r.text[r.at] == '"' {
		for r.at++; r.text[r.at] != '"'; r.at++ {
			if r.text[r.at] == '\\' {
				r.at++
			}
		}
		r.at++
		return r.text[from:r.at]
	}
	for r.at < len(r.text) && strings.IndexByte(" \t\r\n,]}", r.text[r.at]) < 0 {
		r.at++
	}
	return r.text[from:r.at]
}

// value reads the next value, which is to become a t; nil: anything.
func (r *reader) value(t reflect.Type) {
	first := r.blank()
	for t != nil && t.Kind() == reflect.Pointer {
		if first == 'n' {
			r.scalarText()
			if r.sparse {
				r.fault(notRemoved)
			}
			return
		}
		t = t.Elem()
	}
	switch {
	case t == nil:
	case t.Kind() == reflect.Interface || t == rawType:
		t = nil
	case readsItself(t):
		from, before := r.at, len(r.faults)
		r.value(nil)
		if len(r.faults) == before {
			r.itself(t, r.text[from:r.at])
		}
		return
	}
	switch first {
	case '{':
		r.object(t)
	case '[':
		r.array(t)
	case '"':
		r.str(t, r.scalarText())
	default:
		r.scalar(t, first, r.scalarText())
	}
}

const notRemoved = "cannot be removed: null is no value here"

// readsItself reports whether values of t have their own way to be read.
func readsItself(t reflect.Type) bool {
	if t == rawType || t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
		return false
	}
	p := reflect.PointerTo(t)
	return p.Implements(fromJSON) || p.Implements(fromText)
}

// itself lets a type read a value, for its faults.
func (r *reader) itself(t reflect.Type, text []byte) {
	if string(text) == "null" && (t == timeType || !reflect.PointerTo(t).Implements(fromJSON)) {
		r.fault("must not be null")
		return
	}
	to := reflect.New(t)
	switch err := json.Unmarshal(text, to.Interface()); {
	case t == timeType && err != nil:
		r.fault("must be a time like 2006-01-02T15:04:05Z (RFC 3339)")
	case t == timeType && to.Elem().Interface().(time.Time).UTC().Year() < 1:
		r.fault("must be a time after the year 0")
	case err != nil:
		r.fault("is not of the expected form")
	}
}

func (r *reader) object(t reflect.Type) {
	var members *memberSet
	var elem reflect.Type
	switch {
	case t == nil:
	case t.Kind() == reflect.Struct:
		members = membersOf(t)
	case t.Kind() == reflect.Map:
		elem = t.Elem()
	default:
		r.fault("must be " + nameOf(t))
	}
	seen := map[string]bool{}
	r.at++ // {
	for r.blank() != '}' {
		quoted := r.scalarText()
		name := unquote(quoted[1 : len(quoted)-1])
		bad := badString(quoted)
		if bad != "" {
			r.fault("the name of a member " + bad)
		}
		r.path = append(r.path, step{name: quoted[1 : len(quoted)-1]})
		typ := elem
		if members != nil {
			typ = members.types[name]
		}
		switch {
		case seen[name]:
			r.fault("is there twice")
		case members != nil && typ == nil:
			if _, shown := under("", name); shown {
				r.fault("is not known here")
			} else if bad == "" {
				r.fault("has a member that is not known here, whose name is too long or too odd to be repeated")
			}
		}
		seen[name] = true
		r.value(typ)
		r.path = r.path[:len(r.path)-1]
	}
	r.at++ // }
	if members == nil || r.sparse {
		return
	}
	for _, name := range members.required {
		if !seen[name] {
			at, _ := under(r.pointer(), name)
			r.faultAt(at, "is missing")
		}
	}
}

func (r *reader) array(t reflect.Type) {
	var elem reflect.Type
	switch {
	case t == nil:
	case (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) && t.Elem().Kind() != reflect.Uint8:
		elem = t.Elem()
	default:
		r.fault("must be " + nameOf(t))
	}
	n := 0
	r.at++ // [
	for ; r.blank() != ']'; n++ {
		r.path = append(r.path, step{index: n})
		r.value(elem)
		r.path = r.path[:len(r.path)-1]
	}
	r.at++ // ]
	if t != nil && t.Kind() == reflect.Array && n != t.Len() {
		r.fault(fmt.Sprintf("must have %d elements", t.Len()))
	}
}

func (r *reader) str(t reflect.Type, text []byte) {
	if bad := badString(text); bad != "" {
		r.fault(bad)
		return
	}
	switch {
	case t == nil || t.Kind() == reflect.String:
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		if json.Unmarshal(text, reflect.New(t).Interface()) != nil {
			r.fault("must be base64 (RFC 4648 section 4)")
		}
	default:
		r.fault("must be " + nameOf(t))
	}
}

// scalar takes a number, a boolean or null.
func (r *reader) scalar(t reflect.Type, first byte, text []byte) {
	if t == nil {
		return
	}
	isNull, isBool := first == 'n', first == 't' || first == 'f'
	switch kind := t.Kind(); {
	case isNull && r.sparse:
		r.fault(notRemoved)
	case isNull && (kind == reflect.Slice || kind == reflect.Map):
	case isNull:
		r.fault("must not be null")
	case isBool && kind == reflect.Bool:
	case !isBool && kind >= reflect.Int && kind <= reflect.Float64 && kind != reflect.Uintptr:
		if json.Unmarshal(text, reflect.New(t).Interface()) != nil {
			r.fault("must be " + nameOf(t) + ", and not too large")
		}
	default:
		r.fault("must be " + nameOf(t))
	}
}

// nameOf says what a value of t is in JSON.
func nameOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() != reflect.Uint8 {
			return "an array"
		}
		return "a string"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number, 0 or more"
	}
	return "a whole number"
}

// under returns the pointer to a member or element. Names come from outside: one that is long or holds anything but plain ASCII
// is not repeated, and the pointer stays with its parent.
func under(pointer, name string) (at string, shown bool) {
	if len(name) > mostShown || len(pointer)+len(name) > mostPath {
		return pointer, false
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' || strings.IndexByte(`<>&"'\`, name[i]) >= 0 {
			return pointer, false
		}
	}
	return pointer + "/" + pointerEscapes.Replace(name), true
}

// pointerEscapes are those of RFC 6901 section 3.
var pointerEscapes = strings.NewReplacer("~", "~0", "/", "~1")

// badString says what is wrong with a string of JSON, quotes included, that no database can keep: U+0000, which PostgreSQL
// refuses, and half a surrogate pair, which is no character and which Go would replace in silence.
func badString(raw []byte) string {
	if bytes.IndexByte(raw, '\\') < 0 {
		return ""
	}
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		if i++; raw[i] != 'u' {
			continue
		}
		n, _ := strconv.ParseUint(string(raw[i+1:i+5]), 16, 16)
		i += 4
		switch {
		case n == 0:
			return "holds the character U+0000"
		case n >= 0xDC00 && n <= 0xDFFF:
			return "holds half a character"
		case n >= 0xD800 && n <= 0xDBFF:
			if i+6 >= len(raw) || raw[i+1] != '\\' || raw[i+2] != 'u' {
				return "holds half a character"
			}
			low, _ := strconv.ParseUint(string(raw[i+3:i+7]), 16, 16)
			if low < 0xDC00 || low > 0xDFFF {
				return "holds half a character"
			}
			i += 6
		}
	}
	return ""
}

// plain reports whether text can be a parameter: UTF-8 without control characters.
func plain(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c >= 0x7f && c < 0xa0 })
}

// memberSet is what a struct has in JSON.
type memberSet struct {
	types    map[string]reflect.Type
	required []string // in the order of the fields
}

var memberSets sync.Map // reflect.Type → *memberSet

// membersOf returns the members of a struct, by the rules of encoding/json for what structs here have: names in tags, and
// embedded structs without one. A member is required by the rule of the document's schema: unless its tag says omitempty,
// omitzero or required:"false".
func membersOf(t reflect.Type) *memberSet {
	if m, ok := memberSets.Load(t); ok {
		return m.(*memberSet)
	}
	m := &memberSet{types: map[string]reflect.Type{}}
	m.add(t)
	memberSets.Store(t, m)
	return m
}

// checkMembers panics if t, or what is in it, has members that cannot be read.
func checkMembers(t reflect.Type, seen map[reflect.Type]bool) {
	if seen[t] || readsItself(t) {
		return
	}
	if t == durationType {
		panic("a body with a time.Duration: JSON has numbers for it, and nobody knows of what; say seconds, or take domain.Duration")
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		checkMembers(t.Elem(), seen)
	case reflect.Struct:
		for _, member := range membersOf(t).types {
			checkMembers(member, seen)
		}
	}
}

func (m *memberSet) add(t reflect.Type) {
	var embedded []reflect.Type
	for f := range t.Fields() {
		tag := f.Tag.Get("json")
		name, options, _ := strings.Cut(tag, ",")
		switch {
		case name == "-" && options == "":
			continue
		case f.Anonymous && name == "":
			if f.Type.Kind() != reflect.Struct || !f.IsExported() {
				panic(fmt.Sprintf("%s embeds %s: in a body, embed exported structs by value", t, f.Type))
			}
			embedded = append(embedded, f.Type)
			continue
		case !f.IsExported():
			continue
		case strings.Contains(options, "string"):
			panic(fmt.Sprintf("%s.%s: the option string is not supported", t, f.Name))
		case name == "":
			name = f.Name
		}
		if _, ok := m.types[name]; ok {
			continue // the outer one wins
		}
		m.types[name] = f.Type
		required := !strings.Contains(options, "omitempty") && !strings.Contains(options, "omitzero")
		if tag, ok := f.Tag.Lookup("required"); ok {
			required = tag == "true"
		}
		if required {
			m.required = append(m.required, name)
		}
	}
	for _, e := range embedded {
		m.add(e)
	}
}
