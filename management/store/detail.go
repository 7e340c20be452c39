package store

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// detailText is how the counts of a sum are stored: what package json makes of them. Every minute of every domain has such a
// document, which is read, added to and written a few times; this and details.read take a tenth of package json's time.
func detailText(d *management.Detail) string {
	b := append(make([]byte, 0, 256), '{')
	member := func(name string) {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), name...), `":`...)
	}
	counts := func(name string, of map[string]int64) {
		if len(of) == 0 {
			return
		}
		member(name)
		before := byte('{')
		for _, word := range slices.Sorted(maps.Keys(of)) {
			b = append(b, before)
			b = appendWord(b, word)
			b = strconv.AppendInt(append(b, ':'), of[word], 10)
			before = ','
		}
		b = append(b, '}')
	}
	counts("g", d.Groups)
	counts("e", d.EndReasons)
	if len(d.Buckets) > 0 {
		member("b")
		before := byte('[')
		for _, n := range d.Buckets {
			b = strconv.AppendInt(append(b, before), n, 10)
			before = ','
		}
		b = append(b, ']')
	}
	return string(append(b, '}'))
}

// plainWord reports whether a word is the same in JSON.
func plainWord(word string) bool {
	for i := range len(word) {
		if c := word[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}

func appendWord(b []byte, word string) []byte {
	if plainWord(word) {
		return append(append(append(b, '"'), word...), '"')
	}
	quoted, _ := json.Marshal(word) // a string: nothing in it can fail
	return append(b, quoted...)
}

// details scans the counts of many sums, one after the other, into the same memory.
type details struct {
	management.Detail                   // of the last row; good until the next
	words             map[string]string // those met, so that none is copied for each row
}

// Scan implements sql.Scanner.
func (d *details) Scan(v any) error {
	clear(d.Groups)
	clear(d.EndReasons)
	d.Buckets = d.Buckets[:0]
	if text, ok := v.(string); ok && d.read(text) {
		return nil
	}
	d.Detail = management.Detail{} // some of it may have been read
	return document{&d.Detail}.Scan(v)
}

// read reads what detailText wrote, and reports whether it was that.
func (d *details) read(text string) bool {
	rest, ok := strings.CutPrefix(text, "{")
	for first := true; ok && rest != "}"; first = false {
		if !first {
			if rest, ok = strings.CutPrefix(rest, ","); !ok {
				return false
			}
		}
		var name string
		if len(rest) < 4 {
			return false
		}
		switch name, rest = rest[:4], rest[4:]; name {
		case `"g":`:
			rest, ok = d.counts(rest, &d.Groups)
		case `"e":`:
			rest, ok = d.counts(rest, &d.EndReasons)
		case `"b":`:
			rest, ok = d.buckets(rest)
		default:
			return false
		}
	}
	return ok
}

// counts reads an object of numbers from the beginning of text, and returns what follows.
func (d *details) counts(text string, into *map[string]int64) (rest string, ok bool) {
	if *into == nil {
		*into = make(map[string]int64)
	}
	before := `{"`
	for {
		if rest, ok = strings.CutPrefix(text, before); !ok {
			return rest, false
		}
		var word string
		if word, rest, ok = strings.Cut(rest, `":`); !ok || !plainWord(word) {
			return rest, false
		}
		n, after, ok := number(rest)
		if !ok || after == "" {
			return rest, false
		}
		(*into)[d.word(word)] = n
		if after[0] == '}' {
			return after[1:], true
		}
		text, before = after, `,"`
	}
}

func (d *details) buckets(text string) (rest string, ok bool) {
	before := byte('[')
	for {
		if text == "" || text[0] != before {
			return text, false
		}
		n, after, ok := number(text[1:])
		if !ok || after == "" {
			return text, false
		}
		d.Buckets = append(d.Buckets, n)
		if after[0] == ']' {
			return after[1:], true
		}
		text, before = after, ','
	}
}

// number reads a count from the beginning of text.
func number(text string) (n int64, rest string, ok bool) {
	end := 0
	for end < len(text) && '0' <= text[end] && text[end] <= '9' {
		end++
	}
	n, err := strconv.ParseInt(text[:end], 10, 64)
	return n, text[end:], err == nil && (end == 1 || text[0] != '0') // JSON has no leading zeros
}

// word returns a word that shares no memory with its document.
func (d *details) word(text string) string {
	word, met := d.words[text]
	if !met {
		if d.words == nil {
			d.words = make(map[string]string)
		}
		word = strings.Clone(text)
		d.words[word] = word
	}
	return word
}
