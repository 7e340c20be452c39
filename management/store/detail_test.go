package store

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// TestDetailText: what is stored is JSON, whatever the words are, and is read back as it was.
func TestDetailText(t *testing.T) {
	var d details // the same for all, as in a fold
	for _, want := range []management.Detail{
		{},
		{Groups: map[string]int64{"X25519MLKEM768": 3, "X25519": 1 << 62}},
		{EndReasons: map[string]int64{"done": 7}, Buckets: []int64{0, 2, 0}},
		{Groups: map[string]int64{"X25519": 1}, EndReasons: map[string]int64{`a "word", <with> \ é` + "\x00": 2}, Buckets: []int64{9}},
		{},
	} {
		stored := detailText(&want)
		plain, err := json.Marshal(want)
		if err != nil || stored != string(plain) {
			t.Errorf("stored as %s, package json writes %s, %v", stored, plain, err)
		}
		if err := d.Scan(stored); err != nil {
			t.Fatal(err)
		}
		var got management.Detail
		got.Add(d.Detail)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s is read as %+v", stored, got)
		}
	}
	if err := d.Scan("null and void"); err == nil {
		t.Error("no document is read as one")
	}
}

// FuzzDetail: the quick reader takes nothing that package json reads otherwise.
func FuzzDetail(f *testing.F) {
	for _, text := range []string{`{}`, `{"g":{"X25519":1},"e":{"done":2},"b":[0,1]}`, `{"b":[]}`, `{"g":{"\u0041":1}}`, `{"e":{"a":-1}}`, `{"b":[01]}`, `{,}`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var d details
		if !d.read(text) {
			return
		}
		var want, got management.Detail
		if err := json.Unmarshal([]byte(text), &want); err != nil {
			t.Fatalf("%q is no JSON: %v", text, err)
		}
		got.Add(d.Detail)
		var plain management.Detail
		plain.Add(want)
		if !reflect.DeepEqual(got, plain) {
			t.Errorf("%q is read as %+v, not %+v", text, got, plain)
		}
	})
}
