package vault

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

const (
	keyBytes = 32
	idBytes  = 8
)

// KeyID names a master key: the first 8 bytes of the SHA-256 of its 32. It is not secret.
type KeyID [idBytes]byte

// String returns the ID in hex.
func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// Key is a master key. Whatever prints one shows its ID; Reveal is for writing it where it is kept.
type Key struct {
	// A function, since package fmt asks no method of what is in an unexported field of somebody's struct, and prints what it finds
	// there. It follows pointers too, with a verb that does not fit them; a function it cannot look into.
	material func() []byte
}

// keyOf returns the Key of these bytes.
func keyOf(material [keyBytes]byte) Key { return Key{func() []byte { return material[:] }} }

// NewKey returns a new random master key.
func NewKey() Key {
	var material [keyBytes]byte
	rand.Read(material[:])
	return keyOf(material)
}

// ParseKey reads a master key: 32 bytes in base64 (RFC 4648 section 4), padded or not, with white space around it. The error never
// quotes it.
func ParseKey(text string) (Key, error) {
	b, err := base64.RawStdEncoding.Strict().DecodeString(strings.TrimRight(strings.TrimSpace(text), "="))
	defer clear(b)
	if err != nil || len(b) != keyBytes {
		return Key{}, errors.New("master_key is not 32 bytes in base64; `openssl rand -base64 32` makes one")
	}
	material := [keyBytes]byte(b)
	if material == [keyBytes]byte{} {
		return Key{}, errors.New("master_key is all zeros; `openssl rand -base64 32` makes one")
	}
	return keyOf(material), nil
}

// ID returns the name of the key; of the zero Key, zeros.
func (k Key) ID() KeyID {
	if k.material == nil {
		return KeyID{}
	}
	sum := sha256.Sum256(k.material())
	return KeyID(sum[:idBytes])
}

// Reveal returns the key as ParseKey reads it; of the zero Key, nothing.
func (k Key) Reveal() string {
	if k.material == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(k.material())
}

// String returns "master key" and the ID.
func (k Key) String() string { return "master key " + k.ID().String() }

// Format prints String whatever the verb.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// MarshalText returns String: no document gets a key by accident.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// LogValue keeps the key out of log/slog.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }
