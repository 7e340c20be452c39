package id

import (
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	last := ""
	for range 1000 {
		made := New()
		text := made.String()
		if len(text) != Len || text < last {
			t.Fatalf("%q after %q", text, last)
		}
		last = text
		if read, err := Parse(text); err != nil || read != made {
			t.Fatalf("Parse(%q) = %v, %v", text, read, err)
		}
	}
	if made := (ID{15: 1}).String(); made != strings.Repeat("0", 25)+"1" {
		t.Fatal(made)
	}
}

func TestParseRefuses(t *testing.T) {
	good := New().String()
	for _, text := range []string{"", good[1:], good + "0", strings.ToUpper(good), "8" + good[1:], good[:25] + "u", good[:25] + "\n"} {
		if _, err := Parse(text); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(New().String())
	f.Fuzz(func(t *testing.T, text string) {
		if read, err := Parse(text); err == nil && read.String() != text {
			t.Fatalf("%q is read as %q", text, read)
		}
	})
}
