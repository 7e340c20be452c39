package dashboard

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// part says how a field of a form becomes a member of a JSON document. Names are JSON keys; with dots they go deeper, and a star stands for
// the numbers of a list: upstreams.*.dial.
type part struct {
	name string
	kind partKind
	null bool
}

type partKind uint8

const (
	textPart partKind = iota
	numberPart
	flagPart
	listPart
	multiPart
)

// text is a string; left out where the field is empty.
func text(name string) part { return part{name: name} }

// number is a whole number; left out where the field is empty. What is none is sent as it is, so that Plane tells of it with all the rest.
func number(name string) part { return part{name: name, kind: numberPart} }

// flag is a boolean: the box is checked or not.
func flag(name string) part { return part{name: name, kind: flagPart} }

// list is a list of strings, which were typed with spaces, commas or line breaks between them; left out where there are none.
func list(name string) part { return part{name: name, kind: listPart} }

// multi is a list of strings, of boxes of one name.
func multi(name string) part { return part{name: name, kind: multiPart} }

// orNull has an empty field sent as null, which in a PATCH takes the member away (RFC 7396); a list as [].
func (p part) orNull() part { p.null = true; return p }

// body makes the JSON document that the API would be sent. Rows of a list of which every field is empty are left out, and the form's fields
// renumbered, so that faults come back to the rows they are of.
func (c *ctx) body(parts ...part) []byte {
	for _, p := range parts {
		if prefix, _, ok := strings.Cut(p.name, ".*."); ok {
			c.form = renumber(c.form, prefix, parts)
		}
	}
	doc := map[string]any{}
	for _, p := range parts {
		prefix, rest, ok := strings.Cut(p.name, ".*.")
		if !ok {
			p.put(doc, p.name, c.form)
			continue
		}
		for i := range rows(c.form, prefix) {
			p.put(doc, prefix+"."+strconv.Itoa(i)+"."+rest, c.form)
		}
	}
	out, err := json.Marshal(tidy(doc))
	if err != nil {
		panic(err) // strings, numbers, booleans and what holds them
	}
	return out
}

const maxRows = 64

var rowNumber = regexp.MustCompile(`^(0|[1-9][0-9]?)$`)

// rows returns how many rows a list in a form has: one more than the highest number.
func rows(form url.Values, prefix string) int {
	n := 0
	for name := range form {
		if rest, ok := strings.CutPrefix(name, prefix+"."); ok {
			if number, _, _ := strings.Cut(rest, "."); rowNumber.MatchString(number) {
				i, _ := strconv.Atoi(number)
				n = max(n, min(i+1, maxRows))
			}
		}
	}
	return n
}

// renumber drops rows of which all texts are empty.
func renumber(form url.Values, prefix string, parts []part) url.Values {
	fresh := url.Values{}
	for name, values := range form {
		if !strings.HasPrefix(name, prefix+".") {
			fresh[name] = values
		}
	}
	to := 0
	for i := range rows(form, prefix) {
		from := prefix + "." + strconv.Itoa(i) + "."
		filled := slices.ContainsFunc(parts, func(p part) bool {
			rest, ok := strings.CutPrefix(p.name, prefix+".*.")
			return ok && p.kind != flagPart && strings.TrimSpace(form.Get(from+rest)) != ""
		})
		if !filled {
			continue
		}
		for name, values := range form {
			if rest, ok := strings.CutPrefix(name, from); ok {
				fresh[prefix+"."+strconv.Itoa(to)+"."+rest] = values
			}
		}
		to++
	}
	return fresh
}

// put sets one member.
func (p part) put(doc map[string]any, name string, form url.Values) {
	raw := form.Get(name)
	typed := strings.TrimSpace(raw)
	var value any
	switch p.kind {
	case textPart:
		if value = typed; strings.Contains(raw, "\n") {
			value = raw // PEM keeps its last line break
		}
	case numberPart:
		value = typed
		if n, err := strconv.ParseInt(typed, 10, 64); err == nil {
			value = n
		}
	case flagPart:
		value, typed = form.Has(name) && typed != "false", "-"
	case listPart:
		value = strings.FieldsFunc(typed, func(r rune) bool { return strings.ContainsRune(" ,;\n\t", r) })
	case multiPart:
		all := slices.DeleteFunc(slices.Clone(form[name]), func(s string) bool { return s == "" })
		value, typed = all, strings.Join(all, " ")
	}
	if typed == "" {
		if !p.null {
			return
		}
		if value = nil; p.kind == listPart || p.kind == multiPart {
			value = []string{}
		}
	}
	keys := strings.Split(name, ".")
	for _, key := range keys[:len(keys)-1] {
		next, ok := doc[key].(map[string]any)
		if !ok {
			next = map[string]any{}
			doc[key] = next
		}
		doc = next
	}
	doc[keys[len(keys)-1]] = value
}

// tidy makes lists of objects whose keys are 0, 1, 2 and so on.
func tidy(value any) any {
	object, ok := value.(map[string]any)
	if !ok {
		return value
	}
	all := make([]any, 0, len(object))
	for i := range len(object) {
		if row, ok := object[fmt.Sprint(i)]; ok {
			all = append(all, tidy(row))
		}
	}
	if len(object) > 0 && len(all) == len(object) {
		return all
	}
	for key := range object {
		object[key] = tidy(object[key])
	}
	return object
}
