package api

import (
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// shape is what an operation reads: the fields of its In. See endpoint.
type shape struct {
	typ    reflect.Type
	params []param
	body   bodyKind
	field  []int        // of Body
	doc    reflect.Type // of Body, without a pointer; for text and readers what the operation says it is like, or nil
	needed bool         // Body is no pointer
}

// param is a parameter.
type param struct {
	in, name string // "path", "query" or "header"
	field    []int
	typ      reflect.Type
	doc      string
	def      string
	enum     []string
	min, max *int64 // of numbers
	maxLen   int    // bytes
}

// bodyKind is how a body is read.
type bodyKind uint8

const (
	noBody     bodyKind = iota
	structBody          // into a struct, strictly
	textBody            // json.RawMessage
	readerBody          // io.Reader
)

const defaultMaxLen = 256 // bytes of a parameter

var (
	rawType      = reflect.TypeFor[json.RawMessage]()
	readerType   = reflect.TypeFor[io.Reader]()
	timeType     = reflect.TypeFor[time.Time]()
	durationType = reflect.TypeFor[time.Duration]()
	fromText     = reflect.TypeFor[encoding.TextUnmarshaler]()
	fromJSON     = reflect.TypeFor[json.Unmarshaler]()
)

// resolver is an In that checks and completes itself.
type resolver interface {
	resolve(now time.Time) []management.Fault
}

// shapeOf reads the fields of an In. A mistake in it is a mistake in the program: it panics.
func shapeOf(t reflect.Type, op operation) *shape {
	if t.Kind() != reflect.Struct {
		panic(op.id + ": In is no struct")
	}
	s := &shape{typ: t}
	s.add(t, nil, op)
	var inPath []string
	for segment := range strings.SplitSeq(op.path, "/") {
		if name, ok := parameterName(segment); ok {
			inPath = append(inPath, name)
		}
	}
	for _, p := range s.params {
		if p.in == "path" && !slices.Contains(inPath, p.name) {
			panic(fmt.Sprintf("%s: %s has no {%s}", op.id, op.path, p.name))
		}
	}
	for _, name := range inPath {
		if !slices.ContainsFunc(s.params, func(p param) bool { return p.in == "path" && p.name == name }) {
			panic(fmt.Sprintf("%s: In has no field for {%s}", op.id, name))
		}
	}
	return s
}

// parameterName returns the name in a segment like {id}.
func parameterName(segment string) (string, bool) {
	if strings.HasPrefix(segment, "{") && strings.HasSuffix(segment, "}") {
		return segment[1 : len(segment)-1], true
	}
	return "", false
}

func (s *shape) add(t reflect.Type, parents []int, op operation) {
	for i := range t.NumField() {
		f := t.Field(i)
		field := append(slices.Clone(parents), i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			s.add(f.Type, field, op)
			continue
		}
		if !f.IsExported() {
			continue
		}
		if f.Name == "Body" {
			s.setBody(f, field, op)
			continue
		}
		for _, in := range []string{"path", "query", "header"} {
			if name := f.Tag.Get(in); name != "" {
				s.params = append(s.params, paramOf(in, name, f, field, op))
			}
		}
	}
}

func (s *shape) setBody(f reflect.StructField, field []int, op operation) {
	s.field, s.needed, s.doc = field, true, reflect.TypeOf(op.bodyLike)
	switch t := f.Type; {
	case t == rawType:
		s.body = textBody
	case t == readerType:
		s.body = readerBody
	case t.Kind() == reflect.Struct:
		s.body, s.doc = structBody, t
	case t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct:
		s.body, s.doc, s.needed = structBody, t.Elem(), false
	default:
		panic(op.id + ": Body must be a struct, a pointer to one, json.RawMessage or io.Reader")
	}
	if s.body == structBody {
		checkMembers(s.doc, map[reflect.Type]bool{}) // now, and not at the first request
	}
}

func paramOf(in, name string, f reflect.StructField, field []int, op operation) param {
	p := param{
		in: in, name: name, field: field, typ: f.Type, doc: f.Tag.Get("doc"), def: f.Tag.Get("default"), maxLen: defaultMaxLen,
	}
	for tag, to := range map[string]**int64{"minimum": &p.min, "maximum": &p.max} {
		if text := f.Tag.Get(tag); text != "" {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				panic(fmt.Sprintf("%s: %s of %s is no number", op.id, tag, name))
			}
			*to = &n
		}
	}
	if text := f.Tag.Get("maxLength"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			panic(fmt.Sprintf("%s: maxLength of %s is no number", op.id, name))
		}
		p.maxLen = n
	}
	if text := f.Tag.Get("enum"); text != "" {
		p.enum = strings.Split(text, ",")
	}
	probe := reflect.New(p.typ).Elem()
	if p.def != "" {
		if fault := p.set(probe, p.def); fault != "" {
			panic(fmt.Sprintf("%s: the default of %s: %s", op.id, name, fault))
		}
	} else if !p.settable(p.typ) {
		panic(fmt.Sprintf("%s: %s cannot be a %s", op.id, name, p.typ))
	}
	return p
}

// settable reports whether set knows the type.
func (p param) settable(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		return p.settable(t.Elem())
	}
	switch t.Kind() {
	case reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Uint64:
		return true
	}
	return reflect.PointerTo(t).Implements(fromText)
}

// set sets a field from text, or returns what is wrong with the text, for people. The text is not quoted.
func (p param) set(v reflect.Value, text string) (fault string) {
	if len(text) > p.maxLen {
		return fmt.Sprintf("is longer than %d bytes", p.maxLen)
	}
	if len(p.enum) > 0 && !slices.Contains(p.enum, text) {
		return "must be one of " + strings.Join(p.enum, ", ")
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	switch {
	case v.Type() == timeType:
		t, err := parseTime(text)
		if err != nil {
			return "must be a time like 2006-01-02T15:04:05Z (RFC 3339)"
		}
		v.Set(reflect.ValueOf(t))
	case v.Type() == durationType:
		d, err := parseDuration(text)
		if err != nil {
			return "must be a duration like 36h or 14d"
		}
		v.SetInt(int64(d))
	case reflect.PointerTo(v.Type()).Implements(fromText):
		if v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text)) != nil {
			return "is not of the expected form"
		}
	case v.Kind() == reflect.String:
		if !plain(text) {
			return "must be text without control characters"
		}
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		if text != "true" && text != "false" {
			return "must be true or false"
		}
		v.SetBool(text == "true")
	case v.CanInt():
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil || p.min != nil && n < *p.min || p.max != nil && n > *p.max {
			return "must be a whole number" + p.bounds()
		}
		v.SetInt(n)
	case v.CanUint():
		n, err := strconv.ParseUint(text, 10, v.Type().Bits())
		if err != nil || p.max != nil && n > uint64(*p.max) || p.min != nil && n < uint64(*p.min) {
			return "must be a whole number" + p.bounds()
		}
		v.SetUint(n)
	default:
		return "cannot be read"
	}
	return ""
}

func (p param) bounds() string {
	switch {
	case p.min != nil && p.max != nil:
		return fmt.Sprintf(" from %d to %d", *p.min, *p.max)
	case p.min != nil:
		return fmt.Sprintf(", at least %d", *p.min)
	case p.max != nil:
		return fmt.Sprintf(", at most %d", *p.max)
	}
	return ""
}

// parseTime reads RFC 3339. The years are those that microseconds since 1970 can tell in both databases, and that JSON can print.
func parseTime(text string) (time.Time, error) {
	var t time.Time
	if err := t.UnmarshalText([]byte(text)); err != nil { // strict, as time.Parse is not
		return time.Time{}, err
	}
	if t = t.UTC(); t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}, fmt.Errorf("the year is out of range")
	}
	return t, nil
}

// parseDuration reads what time.ParseDuration does, and days: 14d. It is never negative.
func parseDuration(text string) (d time.Duration, err error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	d, err = time.ParseDuration(text)
	if err == nil && d < 0 {
		err = fmt.Errorf("the duration is negative")
	}
	return d, err
}
