package management

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"

	"fmt"
)

// SecretKind is the prefix of a bearer secret.
type SecretKind string

// The kinds of bearer secrets.
const (
	APIKeySecret    SecretKind = "pqk_" // the public face
	EdgeTokenSecret SecretKind = "pqe_" // the edge face
)

// Secret is a bearer secret in its one form: the prefix of its kind and 58 characters of lower-case base32 (RFC 4648
// section 6, no padding), which are 32 random bytes and their CRC-32 (IEEE, big endian). The checksum lets a scanner of
// repositories, and us, tell a secret from a typing error without asking the database. Whatever prints one shows its first
// characters alone; Reveal is for the one answer that gives it away.
type Secret struct {
	text string
}

const (
	secretBytes  = 32
	secretChars  = 58 // of 36 bytes: 288 bits at 5 a character
	shownOfPlain = 8  // characters behind the prefix that may be shown: 40 bits of 256
)

var secretEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

var errNoSecret = errors.New("no key of this service: a prefix and 58 characters of base32 with their checksum")

// NewSecret returns a new random secret.
func NewSecret(k SecretKind) Secret {
	var b [secretBytes + crc32.Size]byte
	rand.Read(b[:secretBytes])
	binary.BigEndian.PutUint32(b[secretBytes:], crc32.ChecksumIEEE(b[:secretBytes]))
	return Secret{string(k) + secretEncoding.EncodeToString(b[:])}
}

// ParseSecret reads a secret of that kind. The error never quotes it.
func ParseSecret(k SecretKind, text string) (Secret, error) {
	if len(text) != len(k)+secretChars || text[:len(k)] != string(k) {
		return Secret{}, errNoSecret
	}
	b, err := secretEncoding.DecodeString(text[len(k):])
	if err != nil || len(b) != secretBytes+crc32.Size || binary.BigEndian.Uint32(b[secretBytes:]) != crc32.ChecksumIEEE(b[:secretBytes]) {
		return Secret{}, errNoSecret
	}
	if secretEncoding.EncodeToString(b) != text[len(k):] {
		return Secret{}, errNoSecret // the last character has two bits to spare: one spelling only
	}
	return Secret{text}, nil
}

// Hash returns what is stored: the SHA-256 of the whole text. The secret has 256 random bits, so no slow hash is needed.
func (s Secret) Hash() []byte {
	sum := sha256.Sum256([]byte(s.text))
	return sum[:]
}

// Prefix returns what may be shown ever after: the kind and the first 8 characters.
func (s Secret) Prefix() string {
	if s.text == "" {
		return ""
	}
	return s.text[:len(APIKeySecret)+shownOfPlain]
}

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return s.text }

// String returns Prefix and an ellipsis.
func (s Secret) String() string { return s.Prefix() + "…" }

// Format prints String whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// LogValue keeps the secret out of log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText refuses to put a secret into a document by accident.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
