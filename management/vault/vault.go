// Package vault encrypts what must not be readable in the database or its backups: private keys that tenants bring, the feed's
// signing key, the secrets of one-time passwords. Each value has a data key of its own, which a master key wraps; so a new master
// key means to wrap the data keys anew (Rewrap), and touches no value.
//
//	v, err := vault.New(keys...)
//	sealed, err := v.Seal(keyPEM, "certificate ten_… dom_…")
//	keyPEM, err = v.Open(sealed, "certificate ten_… dom_…")
//
// The master keys are in no backup of the database: whoever has one without the other has nothing.
package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// A sealed value is
//
//	version   1 byte: 1
//	key ID    8 bytes: which master key wraps the data key
//	wrapped   60 bytes: nonce (12), data key (32), tag (16)
//	value     nonce (12), as many bytes as the plaintext, tag (16)
//
// Both parts are AES-256-GCM (NIST SP 800-38D) with random nonces. The key ID is bound to the wrapped key, the caller's context to
// the value. Random nonces allow 2^32 wraps under one master key (section 8.3 there); no data key ever encrypts twice.
const (
	version      = 1
	gcmOverhead  = 12 + 16
	wrappedBytes = keyBytes + gcmOverhead
	headerBytes  = 1 + idBytes
	// Overhead is by how many bytes a sealed value is longer than its plaintext.
	Overhead = headerBytes + wrappedBytes + gcmOverhead
	// HeadBytes is how many bytes at the start of a sealed value say under which master key it is.
	HeadBytes = headerBytes
	// MaxPlaintext is the most that Seal takes: a chain with its key is a hundredth of it.
	MaxPlaintext = 1 << 20
)

// The two parts of a sealed value are bound to these words, so that neither passes for the other, nor for one of another format.
const (
	wrapWords  = "pqproxy vault 1 key\x00"
	valueWords = "pqproxy vault 1 value\x00"
)

var (
	// ErrCorrupt says that a value is not what was sealed, or was sealed for another context: another tenant, domain or purpose.
	// Encryption cannot tell these apart.
	ErrCorrupt = errors.New("the sealed value is damaged, or belongs to another tenant, domain or purpose")

	// ErrVersion says that a value was sealed by a newer version of this program, or is none.
	ErrVersion = errors.New("the sealed value is of an unknown version; run the program that wrote it, or a newer one")
)

// UnknownKeyError says under which master key a value is sealed, and that this one is not among those configured.
type UnknownKeyError struct {
	ID   KeyID   // of the one that is missing
	Have []KeyID // of those configured, the first of which encrypts
}

func (e *UnknownKeyError) Error() string {
	have := make([]string, len(e.Have))
	for i, id := range e.Have {
		have[i] = id.String()
	}
	return fmt.Sprintf("the value is sealed under master key %s, and configured is %s; add the missing one as a further master_key", e.ID, strings.Join(have, ", "))
}

// Vault seals and opens values. It is safe for concurrent use, and does no I/O.
type Vault struct {
	keys []Key // the first encrypts
}

// New returns a Vault with these master keys: the first encrypts, all decrypt. A key given twice is an error.
func New(keys ...Key) (*Vault, error) {
	if len(keys) == 0 {
		return nil, errors.New("a master key is needed")
	}
	for i, k := range keys {
		if k.material == nil {
			return nil, errors.New("a master key is empty")
		}
		for _, other := range keys[:i] {
			if k.ID() == other.ID() {
				return nil, fmt.Errorf("master key %s is given twice", k.ID())
			}
		}
	}
	return &Vault{append([]Key(nil), keys...)}, nil
}

// KeyIDs returns which master keys there are, in their order.
func (v *Vault) KeyIDs() []KeyID {
	ids := make([]KeyID, len(v.keys))
	for i, k := range v.keys {
		ids[i] = k.ID()
	}
	return ids
}

// Seal encrypts plaintext, at most MaxPlaintext bytes, and binds it to a context that says what it is and whose: Open asks for the
// same one. The context is not secret, must not be empty, and is not stored in what is returned.
func (v *Vault) Seal(plaintext []byte, context string) ([]byte, error) {
	if context == "" {
		return nil, errors.New("sealing a value: the context is empty; it says what the value is and whose")
	}
	if len(plaintext) > MaxPlaintext {
		return nil, fmt.Errorf("sealing a value: it has %d bytes; at most %d are allowed", len(plaintext), MaxPlaintext)
	}
	data := make([]byte, keyBytes)
	defer clear(data)
	rand.Read(data)
	sealed := v.wrap(make([]byte, 0, Overhead+len(plaintext)), data)
	return newGCM(data).Seal(sealed, nil, plaintext, []byte(valueWords+context)), nil
}

// Open decrypts what Seal or Rewrap returned, for the same context. Errors: ErrVersion, *UnknownKeyError, ErrCorrupt.
func (v *Vault) Open(sealed []byte, context string) ([]byte, error) {
	_, data, err := v.unwrap(sealed)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	plaintext, err := newGCM(data).Open(nil, nil, sealed[headerBytes+wrappedBytes:], []byte(valueWords+context))
	if err != nil {
		return nil, ErrCorrupt
	}
	return plaintext, nil
}

// Rewrap returns a value under the first master key, and false if it was already. The value itself is neither decrypted nor
// changed, so no context is needed. Errors: as of Open.
func (v *Vault) Rewrap(sealed []byte) (rewrapped []byte, changed bool, err error) {
	by, data, err := v.unwrap(sealed)
	if err != nil {
		return nil, false, err
	}
	defer clear(data)
	if by.ID() == v.keys[0].ID() {
		return sealed, false, nil
	}
	return append(v.wrap(make([]byte, 0, len(sealed)), data), sealed[headerBytes+wrappedBytes:]...), true, nil
}

// SealedUnder returns the master key that a sealed value names, of which the first HeadBytes are enough. Errors: ErrVersion,
// ErrCorrupt.
func SealedUnder(head []byte) (KeyID, error) {
	switch {
	case len(head) == 0:
		return KeyID{}, ErrCorrupt
	case head[0] != version:
		return KeyID{}, ErrVersion
	case len(head) < headerBytes:
		return KeyID{}, ErrCorrupt
	}
	return KeyID(head[1:headerBytes]), nil
}

// wrap appends the header and the data key, encrypted under the first master key.
func (v *Vault) wrap(dst, data []byte) []byte {
	id := v.keys[0].ID()
	dst = append(append(dst, version), id[:]...)
	return newGCM(v.keys[0].material()).Seal(dst, nil, data, append([]byte(wrapWords), id[:]...))
}

// unwrap returns the data key of a sealed value, and the master key that it is under.
func (v *Vault) unwrap(sealed []byte) (by Key, data []byte, err error) {
	if len(sealed) == 0 {
		return Key{}, nil, ErrCorrupt
	}
	if sealed[0] != version {
		return Key{}, nil, ErrVersion
	}
	if len(sealed) < Overhead || len(sealed) > Overhead+MaxPlaintext {
		return Key{}, nil, ErrCorrupt
	}
	id := KeyID(sealed[1:headerBytes])
	for _, k := range v.keys {
		if k.ID() != id {
			continue
		}
		data, err := newGCM(k.material()).Open(nil, nil, sealed[headerBytes:headerBytes+wrappedBytes], append([]byte(wrapWords), id[:]...))
		if err != nil {
			return Key{}, nil, ErrCorrupt
		}
		return k, data, nil
	}
	return Key{}, nil, &UnknownKeyError{ID: id, Have: v.KeyIDs()}
}

// newGCM returns AES-256-GCM that makes its own nonces and puts them in front.
func newGCM(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the key has 32 bytes
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // the block has 16
	}
	return gcm
}

// String names the master keys by ID.
func (v *Vault) String() string { return fmt.Sprint("vault with master keys ", v.KeyIDs()) }

// Format prints String whatever the verb.
func (v *Vault) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, v.String()) }

// MarshalText returns String.
func (v *Vault) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// LogValue keeps the keys out of log/slog.
func (v *Vault) LogValue() slog.Value { return slog.StringValue(v.String()) }
