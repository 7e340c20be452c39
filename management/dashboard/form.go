package dashboard

import (
	"crypto/rand"
	"fmt"
	"html/template"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/management"
)

const (
	formField    = "_form"    // which form of the page it is
	versionField = "_version" // of the object that it was filled from
	fileSuffix   = "_file"    // a file that stands for the field
)

// form is a form of a page. Templates make one with $.Form, and their fields from it.
type form struct {
	Name, Action string
	Multipart    bool
	Method       string
	Version      string // of what is edited; empty: nothing is
	Mark         template.HTML

	v         *view
	mark      string
	values    url.Values // what was typed
	submitted bool       // it is shown again
	faults    []management.Fault
	fields    []*field
}

// Form begins a form that posts to a path of ours. The name tells it from others on the page. Pairs: "version" the Version of what is
// edited, so that the second of two people is told; "multipart" true for one with a file; "method" "get".
func (v *view) Form(name, action string, pairs ...any) (*form, error) {
	f := &form{Name: name, Action: v.c.url(action), Method: "post", v: v, mark: v.mark()}
	f.Mark = template.HTML(f.mark) //nolint:gosec // random letters: no part of it comes from outside
	for i := 0; i+1 < len(pairs); i += 2 {
		switch pairs[i] {
		case "version":
			f.Version = fmt.Sprint(pairs[i+1])
		case "multipart":
			f.Multipart = pairs[i+1] == true
		case "method":
			f.Method = fmt.Sprint(pairs[i+1])
		default:
			return nil, fmt.Errorf("a form has no %q", pairs[i])
		}
	}
	if v.c.refusal != nil && (v.c.form.Get(formField) == name || v.c.form.Get(formField) == "") {
		f.submitted, f.values, f.faults = true, v.c.form, v.c.refusal.Faults
	}
	v.forms = append(v.forms, f)
	return f, nil
}

// Tenant is whose rows the form changes.
func (f *form) Tenant() string {
	if f.v.c.me == nil {
		return ""
	}
	return f.v.c.who.TenantID
}

// Once is what makes the form count once.
func (f *form) Once() string { return rand.Text() }

// Conflict reports whether somebody else changed what the form edits: the fields say both versions.
func (f *form) Conflict() bool {
	return f.submitted && f.v.c.refusal != nil && f.v.c.refusal.Code == management.PreconditionFailed
}

// Refused reports whether this form, of all on the page, is shown again because of a fault.
func (f *form) Refused() bool { return f.submitted }

// Typed returns what was typed into a field that is not made by this form, or def.
func (f *form) Typed(name, def string) string {
	if f.submitted && !isSecret(name) {
		return f.values.Get(name)
	}
	return def
}

// field is one input with its label, hint and fault: for the template "field".
type field struct {
	Kind, ID, Name, Label string
	Value                 string
	Theirs                string // what somebody else set meanwhile, where that differs; only with Conflict
	Conflict              bool
	Hint, Error           string
	Autocomplete, Input   string // autocomplete and inputmode
	Min, Max, Unit        string
	MaxLength             string
	Accept, Placeholder   string
	Required, Checked     bool
	Autofocus, Hide       bool // Hide: the label is for screen readers alone
	Code                  bool // in a fixed font, without spelling correction
	Rows                  int
	Options               []option
}

// option is one choice.
type option struct {
	Value, Text, Hint string
	Selected          bool
}

// Describe returns the IDs of what describes the input.
func (fl *field) Describe() string {
	var ids []string
	if fl.Error != "" {
		ids = append(ids, fl.ID+"-error")
	}
	if fl.Hint != "" {
		ids = append(ids, fl.ID+"-hint")
	}
	if fl.Conflict {
		ids = append(ids, fl.ID+"-theirs")
	}
	return strings.Join(ids, " ")
}

// The kinds of fields. Name is the JSON key, or the pointer with dots; pairs are options by name: value, hint, required, autocomplete,
// inputmode, min, max, unit, maxlength, accept, placeholder, autofocus, hide, code, rows, checked, options.
func (f *form) Text(name, label string, pairs ...any) (*field, error) {
	return f.field("text", name, label, pairs)
}

// Email is for an address.
func (f *form) Email(name, label string, pairs ...any) (*field, error) {
	return f.field("email", name, label, pairs)
}

// Password is never filled in.
func (f *form) Password(name, label string, pairs ...any) (*field, error) {
	return f.field("password", name, label, pairs)
}

// Number is for a whole number.
func (f *form) Number(name, label string, pairs ...any) (*field, error) {
	return f.field("number", name, label, pairs)
}

// Area is for several lines.
func (f *form) Area(name, label string, pairs ...any) (*field, error) {
	return f.field("area", name, label, pairs)
}

// Select is for one of many.
func (f *form) Select(name, label string, pairs ...any) (*field, error) {
	return f.field("select", name, label, pairs)
}

// Radio is for one of few, each with a hint.
func (f *form) Radio(name, label string, pairs ...any) (*field, error) {
	return f.field("radio", name, label, pairs)
}

// Check is for yes or no; with options, for any of them.
func (f *form) Check(name, label string, pairs ...any) (*field, error) {
	return f.field("check", name, label, pairs)
}

// File is for the content of a file; give it the name of the field that it stands for and _file.
func (f *form) File(name, label string, pairs ...any) (*field, error) {
	return f.field("file", name, label, pairs)
}

// Date is for a day or, with "kind" in pairs, a moment.
func (f *form) Date(name, label string, pairs ...any) (*field, error) {
	return f.field("date", name, label, pairs)
}

// Hidden has no label. It is written as given, also where the name is of a secret: for tokens of links.
func (f *form) Hidden(name string, value any) *field {
	return &field{Kind: "hidden", Name: name, Value: fmt.Sprint(value)}
}

func (f *form) field(kind, name, label string, pairs []any) (*field, error) {
	fl := &field{Kind: kind, Name: name, Label: label, ID: f.id(name), Rows: 6}
	var err error
	for i := 0; i+1 < len(pairs); i += 2 {
		err = fl.set(pairs[i], pairs[i+1])
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", name, err)
		}
	}
	if name == "name" && fl.Autocomplete == "" {
		fl.Autocomplete = "off" // it is of a thing, and browsers would offer the person's
	}
	fl.Error = f.faultOf(pointerOf(name))
	if f.submitted {
		f.fillIn(fl)
	}
	if kind == "password" || kind == "file" || isSecret(name) || hasKey(fl.Value) {
		fl.Value = ""
	}
	if kind == "select" || kind == "radio" || kind == "check" {
		options := slices.Clone(fl.Options)
		for i := range options {
			options[i].Selected = options[i].Selected || options[i].Value == fl.Value && !(kind == "check")
		}
		fl.Options = options
	}
	f.fields = append(f.fields, fl)
	return fl, nil
}

// fillIn puts what was typed into a field, and what it was filled with before beside it, if somebody else set that meanwhile.
func (f *form) fillIn(fl *field) {
	typed, given := f.values.Get(fl.Name), f.values.Has(fl.Name)
	switch {
	case fl.Kind == "check" && len(fl.Options) == 0:
		if f.Conflict() && fl.Checked != given {
			fl.Conflict, fl.Theirs = true, map[bool]string{true: "on", false: "off"}[fl.Checked]
		}
		fl.Checked = given
	case fl.Kind == "check":
		for i := range fl.Options {
			fl.Options[i].Selected = slices.Contains(f.values[fl.Name], fl.Options[i].Value)
		}
	case given || f.Name == "filter":
		if f.Conflict() && typed != fl.Value {
			fl.Conflict, fl.Theirs = true, fl.Value
			for _, o := range fl.Options {
				if o.Value == fl.Value {
					fl.Theirs = o.Text
				}
			}
			if fl.Theirs == "" {
				fl.Theirs = "nothing"
			}
		}
		fl.Value = typed
	}
}

func (fl *field) set(key, value any) error {
	text := fmt.Sprint(value)
	switch key {
	case "value":
		fl.Value = text
	case "hint":
		fl.Hint = text
	case "autocomplete":
		fl.Autocomplete = text
	case "inputmode":
		fl.Input = text
	case "min":
		fl.Min = text
	case "max":
		fl.Max = text
	case "maxlength":
		fl.MaxLength = text
	case "unit":
		fl.Unit = text
	case "accept":
		fl.Accept = text
	case "placeholder":
		fl.Placeholder = text
	case "kind":
		fl.Kind = text
	case "rows":
		n, err := strconv.Atoi(text)
		fl.Rows = n
		return err
	case "required":
		fl.Required = value == true
	case "checked":
		fl.Checked = value == true
	case "autofocus":
		fl.Autofocus = value == true
	case "hide":
		fl.Hide = value == true
	case "code":
		fl.Code = value == true
	case "options":
		all, ok := value.([]option)
		if !ok {
			return fmt.Errorf("options are %T, not what the function options returns", value)
		}
		fl.Options = all
	default:
		return fmt.Errorf("a field has no %q", key)
	}
	return nil
}

// id is that of an input.
func (f *form) id(name string) string {
	return "f-" + f.Name + "-" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '-'
	}, name)
}

// pointerOf returns the JSON pointer of a field (RFC 6901). Keys have no dots, slashes or tildes.
func pointerOf(name string) string {
	return "/" + strings.ReplaceAll(strings.TrimSuffix(name, fileSuffix), ".", "/")
}

// faultOf returns all faults of a place, and of what is in it.
func (f *form) faultOf(pointer string) string {
	var details []string
	for _, fault := range f.faults {
		if fault.Pointer == pointer || strings.HasPrefix(fault.Pointer, pointer+"/") {
			details = append(details, fault.Detail)
		}
	}
	return strings.Join(details, "; ")
}

// summary is what a form that is shown again begins with.
type summary struct {
	Form     string
	Title    string
	Detail   string
	Conflict bool
	Discard  string // where the form is as it was
	Items    []summaryItem
}

// summaryItem is one fault; without a Target its field is not on the page.
type summaryItem struct{ Target, Label, Detail string }

func (f *form) summary() summary {
	e := f.v.c.refusal
	s := summary{Form: f.Name, Title: problems[e.Code].title, Detail: e.Detail, Conflict: f.Conflict(), Discard: f.v.c.url(f.v.c.pageAbove())}
	for _, fault := range e.Faults {
		item := summaryItem{Label: strings.ReplaceAll(strings.TrimLeft(fault.Pointer, "/?"), "/", "."), Detail: fault.Detail}
		for _, fl := range f.fields {
			p := pointerOf(fl.Name)
			if fl.Kind != "hidden" && (fault.Pointer == p || strings.HasPrefix(fault.Pointer, p+"/")) {
				item.Target, item.Label = fl.ID, fl.Label
				if len(fl.Options) > 0 && fl.Kind != "select" {
					item.Target += "-0"
				}
				break
			}
		}
		s.Items = append(s.Items, item)
	}
	return s
}
