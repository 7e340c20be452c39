package vault

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
)

const context = "certificate ten_1 dom_1"

// newVault returns a vault with these keys.
func newVault(t testing.TB, keys ...Key) *Vault {
	t.Helper()
	v, err := New(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// seal seals a value under the context of these tests.
func seal(t testing.TB, v *Vault, plaintext string) []byte {
	t.Helper()
	sealed, err := v.Seal([]byte(plaintext), context)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestSealOpen(t *testing.T) {
	v := newVault(t, NewKey())
	for _, plaintext := range []string{"", "x", strings.Repeat("private key ", 1000), strings.Repeat("x", MaxPlaintext)} {
		sealed := seal(t, v, plaintext)
		if len(sealed) != len(plaintext)+Overhead {
			t.Errorf("%d bytes became %d", len(plaintext), len(sealed))
		}
		if len(plaintext) > 8 && bytes.Contains(sealed, []byte(plaintext[:8])) {
			t.Error("the plaintext shows")
		}
		opened, err := v.Open(sealed, context)
		if err != nil || string(opened) != plaintext {
			t.Errorf("Open: %d bytes, %v", len(opened), err)
		}
	}
	if bytes.Equal(seal(t, v, "same")[headerBytes:], seal(t, v, "same")[headerBytes:]) {
		t.Error("two seals of one value are alike")
	}
	if _, err := v.Seal(make([]byte, MaxPlaintext+1), context); err == nil {
		t.Error("Seal took too much")
	}
	if _, err := v.Seal([]byte("x"), ""); err == nil {
		t.Error("Seal took an empty context")
	}
}

// TestOpenIsBound flips each bit, cuts at each length, and asks for other contexts.
func TestOpenIsBound(t *testing.T) {
	v := newVault(t, NewKey())
	sealed := seal(t, v, "key")
	for _, other := range []string{"", "certificate ten_2 dom_1", "certificate ten_1 dom_2", "totp ten_1 dom_1", context + " "} {
		if _, err := v.Open(sealed, other); !errors.Is(err, ErrCorrupt) {
			t.Errorf("context %q: %v", other, err)
		}
	}
	for i := range len(sealed) * 8 {
		flipped := bytes.Clone(sealed)
		flipped[i/8] ^= 1 << (i % 8)
		var unknown *UnknownKeyError
		_, err := v.Open(flipped, context)
		switch at := i / 8; {
		case at == 0 && errors.Is(err, ErrVersion):
		case at > 0 && at < headerBytes && errors.As(err, &unknown):
		case at >= headerBytes && errors.Is(err, ErrCorrupt):
		default:
			t.Fatalf("bit %d flipped: %v", i, err)
		}
	}
	for n := range len(sealed) {
		if _, err := v.Open(sealed[:n], context); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := v.Open(append(bytes.Clone(sealed), 0), context); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a byte more: %v", err)
	}
	// The wrapped data key of one value does not open another.
	other := seal(t, v, "key")
	copy(other[:headerBytes+wrappedBytes], sealed)
	if _, err := v.Open(other, context); !errors.Is(err, ErrCorrupt) {
		t.Errorf("data key of another value: %v", err)
	}
}

func TestRotation(t *testing.T) {
	oldKey, newKey := NewKey(), NewKey()
	before, during, after := newVault(t, oldKey), newVault(t, newKey, oldKey), newVault(t, newKey)
	sealed := seal(t, before, "key")

	var unknown *UnknownKeyError
	if _, err := after.Open(sealed, context); !errors.As(err, &unknown) || unknown.ID != oldKey.ID() || unknown.Have[0] != newKey.ID() {
		t.Fatalf("Open under a key that is not there: %v", err)
	}
	for _, id := range []string{oldKey.ID().String(), newKey.ID().String(), "master_key"} {
		if !strings.Contains(unknown.Error(), id) {
			t.Errorf("%q does not name %s", unknown, id)
		}
	}
	if _, _, err := after.Rewrap(sealed); !errors.As(err, &unknown) {
		t.Errorf("Rewrap under a key that is not there: %v", err)
	}
	if opened, err := during.Open(sealed, context); err != nil || string(opened) != "key" {
		t.Errorf("Open with the second key: %v", err)
	}
	rewrapped, changed, err := during.Rewrap(sealed)
	if err != nil || !changed {
		t.Fatalf("Rewrap: %v, %v", changed, err)
	}
	if !bytes.Equal(rewrapped[headerBytes+wrappedBytes:], sealed[headerBytes+wrappedBytes:]) {
		t.Error("Rewrap changed the value, not only its data key")
	}
	if opened, err := after.Open(rewrapped, context); err != nil || string(opened) != "key" {
		t.Errorf("Open of what was rewrapped: %v", err)
	}
	if _, err := after.Open(rewrapped, "another"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("what was rewrapped lost its context: %v", err)
	}
	if again, changed, err := during.Rewrap(rewrapped); err != nil || changed || !bytes.Equal(again, rewrapped) {
		t.Errorf("Rewrap twice: %v, %v", changed, err)
	}
	rewrapped[headerBytes+20] ^= 1
	if _, _, err := during.Rewrap(rewrapped); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Rewrap of damage: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	k := NewKey()
	for name, keys := range map[string][]Key{"none": nil, "zero": {{}}, "twice": {k, NewKey(), k}} {
		if _, err := New(keys...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestParseKey(t *testing.T) {
	k := NewKey()
	for _, text := range []string{k.Reveal(), " " + k.Reveal() + "\n", strings.TrimRight(k.Reveal(), "=")} {
		if got, err := ParseKey(text); err != nil || got.ID() != k.ID() {
			t.Errorf("%v, %v", got, err)
		}
	}
	for _, text := range []string{"", "secretish", strings.Repeat("A", 43), k.Reveal()[:40], k.Reveal() + "AAAA", k.Reveal()[:42] + "*"} {
		if _, err := ParseKey(text); err == nil {
			t.Errorf("%q is taken", text)
		} else if text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("the error quotes the key: %v", err)
		}
	}
}

// TestKeysAreHidden prints keys in every way that somebody might by accident.
func TestKeysAreHidden(t *testing.T) {
	k := NewKey()
	v := newVault(t, k)
	holder := struct {
		key   Key
		vault *Vault
		Key   Key
	}{k, v, k}
	var printed bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&printed, verb+"\n", k)
		fmt.Fprintf(&printed, verb+"\n", &k)
		fmt.Fprintf(&printed, verb+"\n", v)
		fmt.Fprintf(&printed, verb+"\n", *v)
		fmt.Fprintf(&printed, verb+"\n", holder)
		fmt.Fprintf(&printed, verb+"\n", []Key{k})
	}
	for _, value := range []any{k, v, holder, map[string]Key{"a": k}} {
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		printed.Write(text)
	}
	slog.New(slog.NewJSONHandler(&printed, nil)).Info("x", "key", k, "vault", v, "holder", holder)
	slog.New(slog.NewTextHandler(&printed, nil)).Info("x", "key", k, "vault", v, "holder", holder)

	material := k.material()
	for name, form := range map[string]string{
		"base64": strings.TrimRight(k.Reveal(), "="), "hex": fmt.Sprintf("%x", material), "HEX": fmt.Sprintf("%X", material), "raw": string(material),
		"decimal": strings.Trim(fmt.Sprint(material), "[]"), "go": strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", material), "[]byte{"), "}"),
	} {
		if strings.Contains(printed.String(), form) {
			t.Errorf("the key shows as %s", name)
		}
	}
	if !strings.Contains(printed.String(), k.ID().String()) {
		t.Error("nothing was printed")
	}
}

// FuzzOpen looks for bytes that do harm, or that open although they are not what was sealed.
func FuzzOpen(f *testing.F) {
	key := func(fill byte) Key { return keyOf([keyBytes]byte(bytes.Repeat([]byte{fill}, keyBytes))) }
	v := newVault(f, key(1), key(2))
	sealed, err := os.ReadFile("testdata/sealed.bin")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add(sealed[:Overhead])
	f.Add([]byte{})
	f.Add([]byte{2})
	f.Add(make([]byte, Overhead))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		opened, err := v.Open(b, context)
		if (err == nil) != bytes.Equal(b, sealed) {
			t.Errorf("Open of %x: %q, %v", b, opened, err)
		}
		if _, _, err := v.Rewrap(b); err == nil && !bytes.HasPrefix(b, sealed[:headerBytes+wrappedBytes]) {
			t.Errorf("Rewrap took %x", b)
		}
		if !bytes.Equal(before, b) {
			t.Error("what was to be read is changed")
		}
	})
}

// TestFormat opens a value that was sealed by the first version of the format: what is in databases stays readable.
func TestFormat(t *testing.T) {
	sealed, err := os.ReadFile("testdata/sealed.bin")
	if err != nil {
		t.Fatal(err)
	}
	v := newVault(t, keyOf([keyBytes]byte(bytes.Repeat([]byte{2}, keyBytes))))
	if opened, err := v.Open(sealed, context); err != nil || string(opened) != "a private key" {
		t.Errorf("%q, %v", opened, err)
	}
}
