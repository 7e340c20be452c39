package domain

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"testing"
	"testing/iotest"
)

// FuzzReadSet: a document is malformed exactly when encoding/json says so; how it is cut into reads changes
// nothing; what was accepted, written again, reads the same and without refusals.
func FuzzReadSet(f *testing.F) {
	for _, doc := range []string{
		`{"domains":[]}`,
		`{"revision":420,"base":410,"domains":[` + named("a.example.com") + `,{"name":"b"},` + named("c") + `],"removed":["d","d","c"]}`,
		`{"removed":["a"],"x":{"a":[1,-2.5e+10,"\u00e9\n",true,false,null]},"base":1,"revision":1}`,
		`{"domains":[` + named("*.é.example") + `,5,"",[{}],{"name":"a","tenant":"` + "\xff" + `"}]} x`,
		`{"domains":[{"name":"a","name":"b"}],"domains":[]}`,
		"{\"domains\" :\t[\r\n{}]}\x00",
	} {
		f.Add([]byte(doc), false)
	}
	f.Fuzz(func(t *testing.T, data []byte, changeSet bool) {
		opts := SetOptions{ChangeSet: changeSet}
		got, err := collect(bytes.NewReader(data), opts)
		slow, slowErr := collect(iotest.OneByteReader(bytes.NewReader(data)), opts)
		if !reflect.DeepEqual(err, slowErr) || !reflect.DeepEqual(got, slow) {
			t.Fatalf("read byte by byte: %+v, %v; else %+v, %v", slow, slowErr, got, err)
		}
		fault, isFault := errors.AsType[*SetError](err)
		if err != nil && (!isFault || len(err.Error()) > 4096) {
			t.Fatalf("failed with %v", err)
		}
		object := json.Valid(data) && bytes.TrimLeft(data, " \t\r\n")[0] == '{'
		// A fault of another kind may come before one of syntax, never instead of none.
		if err == nil && !object || isFault && fault.Malformed && object {
			t.Fatalf("got %v, but encoding/json finds the object valid: %t", err, object)
		}
		for _, r := range got.refusals {
			if len(Errors(r.Err)) == 0 {
				t.Fatalf("%s[%d] is refused with %v", r.List, r.Index, r.Err)
			}
		}
		if err == nil {
			checkRoundTrip(t, got)
		}
	})
}

func checkRoundTrip(t *testing.T, got *readSet) {
	h := got.header
	if h.Domains != len(got.domains) || h.Removed != len(got.removed) || h.Refused != len(got.refusals) {
		t.Fatalf("header %+v, but %d domains, %d removed, %d refused", h, len(got.domains), len(got.removed), len(got.refusals))
	}
	doc := map[string]any{"domains": []*Domain{}}
	if h.HasRevision {
		doc["revision"], doc["base"] = h.Revision, h.Base
	}
	var domains []*Domain
	for _, d := range got.domains {
		domains = append(domains, d)
	}
	if domains != nil {
		doc["domains"] = domains
	}
	var removed []string
	for name := range got.removed {
		removed = append(removed, name)
	}
	slices.Sort(removed)
	if removed != nil {
		doc["removed"] = removed
	}
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	again, err := collect(bytes.NewReader(text), SetOptions{ChangeSet: !h.Full})
	if err != nil {
		t.Fatalf("%s is refused: %v", text, err)
	}
	if !reflect.DeepEqual(again.domains, got.domains) || !reflect.DeepEqual(again.removed, got.removed) || len(again.refusals) > 0 || again.header.Revision != h.Revision || again.header.Base != h.Base {
		t.Fatalf("%s reads differently: %+v", text, again)
	}
}
