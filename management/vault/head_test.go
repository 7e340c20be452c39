package vault

import (
	"errors"
	"testing"
)

// TestSealedUnder reads the name of the master key from the start of a sealed value.
func TestSealedUnder(t *testing.T) {
	k := NewKey()
	v, err := New(k)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := v.Seal([]byte("a secret"), "a test")
	if err != nil {
		t.Fatal(err)
	}
	for _, head := range [][]byte{sealed, sealed[:HeadBytes]} {
		if id, err := SealedUnder(head); err != nil || id != k.ID() {
			t.Errorf("%d bytes are under %v, %v, want %v", len(head), id, err, k.ID())
		}
	}
	for _, c := range []struct {
		head []byte
		want error
	}{
		{nil, ErrCorrupt},
		{sealed[:HeadBytes-1], ErrCorrupt},
		{append([]byte{2}, sealed[1:]...), ErrVersion},
	} {
		if _, err := SealedUnder(c.head); !errors.Is(err, c.want) {
			t.Errorf("% x: %v, want %v", c.head[:min(len(c.head), 4)], err, c.want)
		}
	}
}
