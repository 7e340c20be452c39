package feedsig

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"filippo.io/mldsa"
)

// The words that begin a key's line; another format of keys gets others.
const (
	privateWord = "pqproxy-feed-private-key-v1"
	publicWord  = "pqproxy-feed-public-key-v1"
)

// keyIDSize is in hexadecimal digits.
const keyIDSize = 16

// Sizes of the keys in their files: the seed of either algorithm (RFC 8032 section 5.1.5; FIPS 204
// algorithm 1, ξ), and the encoded public keys, always Ed25519 first.
const (
	privateSize = ed25519.SeedSize + mldsa.PrivateKeySize
	publicSize  = ed25519.PublicKeySize + mldsa.MLDSA65PublicKeySize
)

// maxFile is above both formats (2.7 KB), with room for white space.
const maxFile = 8 << 10

// PrivateKey signs sets. It never prints itself: Marshal alone gives it away. The zero value is of no use;
// see Generate and ParsePrivateKey. It may be used from several goroutines.
type PrivateKey struct {
	ed25519 ed25519.PrivateKey
	mldsa65 *mldsa.PrivateKey
	public  PublicKey
}

// PublicKey verifies signatures. The zero value trusts nothing. It may be used from several goroutines.
type PublicKey struct {
	id      string
	ed25519 ed25519.PublicKey
	mldsa65 *mldsa.PublicKey
}

// Generate makes a key of 64 bytes read from rand, which is crypto/rand.Reader but in tests: whoever knows
// these bytes has the key. It fails if rand does.
func Generate(rand io.Reader) (*PrivateKey, error) {
	var seeds [privateSize]byte
	if _, err := io.ReadFull(rand, seeds[:]); err != nil {
		return nil, fmt.Errorf("making a signing key: %w", err)
	}
	return newPrivateKey(seeds[:])
}

func newPrivateKey(seeds []byte) (*PrivateKey, error) {
	if subtle.ConstantTimeCompare(seeds, make([]byte, len(seeds))) == 1 {
		return nil, errors.New("the signing key is all zeros, so it is no secret; make one with keygen")
	}
	pq, err := mldsa.NewPrivateKey(mldsa.MLDSA65(), seeds[ed25519.SeedSize:])
	if err != nil {
		return nil, errors.New("the signing key is no ML-DSA-65 key") // never the cause, which might quote
	}
	k := &PrivateKey{ed25519: ed25519.NewKeyFromSeed(seeds[:ed25519.SeedSize]), mldsa65: pq}
	k.public = newPublicKey(k.ed25519.Public().(ed25519.PublicKey), pq.PublicKey())
	return k, nil
}

func newPublicKey(classical ed25519.PublicKey, pq *mldsa.PublicKey) PublicKey {
	p := PublicKey{ed25519: classical, mldsa65: pq}
	sum := sha256.Sum256(p.bytes())
	p.id = hex.EncodeToString(sum[:keyIDSize/2])
	return p
}

// Public returns the public half of k.
func (k *PrivateKey) Public() PublicKey { return k.public }

// ID returns the key ID: the first 16 hexadecimal digits of the SHA-256 of the public key, that is of the 32
// bytes of the Ed25519 key and the 1,952 bytes of the ML-DSA-65 key behind them. Empty for the zero value.
func (p PublicKey) ID() string { return p.id }

// bytes returns what is in the public key's file and what its ID is made of.
func (p PublicKey) bytes() []byte {
	if p.mldsa65 == nil {
		return nil
	}
	return append(append(make([]byte, 0, publicSize), p.ed25519...), p.mldsa65.Bytes()...)
}

func isKeyID(s string) bool {
	return len(s) == keyIDSize && strings.Trim(s, "0123456789abcdef") == ""
}

// Marshal returns k as its file has it: one line of
//
//	pqproxy-feed-private-key-v1 KEYID BASE64
//
// with the key ID of its public key and the padded base64 of both seeds, 32 bytes for Ed25519 and 32 for
// ML-DSA-65. A format of our own, since PEM has none for a pair, and with two files one could be replaced.
func (k *PrivateKey) Marshal() []byte {
	return line(privateWord, k.public.id, append(k.ed25519.Seed(), k.mldsa65.Bytes()...))
}

// Marshal returns p as its file has it: one line of
//
//	pqproxy-feed-public-key-v1 KEYID BASE64
//
// with the padded base64 of the 32 and 1,952 bytes that ID tells of. p may not be the zero value.
func (p PublicKey) Marshal() []byte { return line(publicWord, p.id, p.bytes()) }

func line(word, id string, key []byte) []byte {
	return []byte(word + " " + id + " " + base64.StdEncoding.EncodeToString(key) + "\n")
}

// ParsePrivateKey reads what PrivateKey.Marshal returns. The line may be surrounded by blanks and end
// lines, and nothing else. Errors never quote it.
func ParsePrivateKey(text []byte) (*PrivateKey, error) {
	id, seeds, err := parseLine(text, privateWord, privateSize)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	k, err := newPrivateKey(seeds)
	if err != nil {
		return nil, err
	}
	if k.public.id != id {
		return nil, fmt.Errorf("signing key: %w", errWrongID)
	}
	return k, nil
}

// ParsePublicKey reads what PublicKey.Marshal returns, as ParsePrivateKey does.
func ParsePublicKey(text []byte) (PublicKey, error) {
	id, key, err := parseLine(text, publicWord, publicSize)
	if err != nil {
		return PublicKey{}, fmt.Errorf("verification key: %w", err)
	}
	pq, err := mldsa.NewPublicKey(mldsa.MLDSA65(), key[ed25519.PublicKeySize:])
	if err != nil {
		return PublicKey{}, fmt.Errorf("verification key: its second part is no ML-DSA-65 key: %w", err)
	}
	p := newPublicKey(ed25519.PublicKey(key[:ed25519.PublicKeySize:ed25519.PublicKeySize]), pq)
	if p.id != id {
		return PublicKey{}, fmt.Errorf("verification key: %w", errWrongID)
	}
	return p, nil
}

var errWrongID = errors.New("the key ID in the file is not that of the key; a part of the line was changed or lost, so copy the file again")

func parseLine(text []byte, word string, size int) (id string, key []byte, err error) {
	if len(text) > maxFile {
		return "", nil, fmt.Errorf("the file has %d bytes, more than any key", len(text))
	}
	fields := strings.Split(strings.Trim(string(text), " \t\r\n"), " ")
	switch {
	case fields[0] == privateWord && word == publicWord:
		return "", nil, errors.New("the file holds a private key where a public one is expected; keep it on the management plane alone, and give the file with " + publicWord)
	case fields[0] == publicWord && word == privateWord:
		return "", nil, errors.New("the file holds a public key where a private one is expected; give the file with " + privateWord)
	case fields[0] != word || len(fields) != 3 || !isKeyID(fields[1]):
		return "", nil, fmt.Errorf("the file is not one line of the form %s KEYID BASE64", word)
	}
	key, err = decode64(fields[2])
	if err != nil {
		return "", nil, errors.New("the third word of the file is not padded base64; copy the file again")
	}
	if len(key) != size {
		return "", nil, fmt.Errorf("the third word of the file holds %d bytes; a key has %d", len(key), size)
	}
	return fields[1], key, nil
}

// WriteFiles writes k to a new file privatePath that its owner alone can read (0600), and its public half to
// a new file publicPath (0644). Neither may exist: a key that was overwritten cannot be had again, and with
// it goes what edges accept. On failure it leaves no file behind.
func (k *PrivateKey) WriteFiles(privatePath, publicPath string) error {
	if err := writeNew(privatePath, k.Marshal(), 0o600); err != nil {
		return fmt.Errorf("writing the private key: %w", err)
	}
	if err := writeNew(publicPath, k.public.Marshal(), 0o644); err != nil {
		return errors.Join(fmt.Errorf("writing the public key: %w", err), os.Remove(privatePath))
	}
	return nil
}

func writeNew(path string, text []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync() // a key that is used and then lost in a crash locks the edges out
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// ReadPrivateKey reads the file at path; see ParsePrivateKey. The path is in its errors.
func ReadPrivateKey(path string) (*PrivateKey, error) {
	text, err := readKeyFile(path)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	k, err := ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// ReadPublicKey reads the file at path; see ParsePublicKey. The path is in its errors.
func ReadPublicKey(path string) (PublicKey, error) {
	text, err := readKeyFile(path)
	if err != nil {
		return PublicKey{}, fmt.Errorf("verification key: %w", err)
	}
	p, err := ParsePublicKey(text)
	if err != nil {
		return PublicKey{}, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// readKeyFile reads no more than shows that the file is no key: path may be mistaken for a large one.
func readKeyFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// String names k by its key ID.
func (k PrivateKey) String() string {
	return "feed signing key " + k.public.id + " (private part not shown)"
}

// Format prints String whatever the verb: %x and %#v would print the fields.
func (k PrivateKey) Format(s fmt.State, _ rune) { io.WriteString(s, k.String()) }

// LogValue keeps the key out of log/slog.
func (k PrivateKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText prints String, for encoders that look into fields. It is no way to store k; see Marshal.
func (k PrivateKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// String names p by its key ID.
func (p PublicKey) String() string { return "feed verification key " + p.id }

// Interface guards.
var (
	_ fmt.Formatter  = PrivateKey{}
	_ slog.LogValuer = PrivateKey{}
)
