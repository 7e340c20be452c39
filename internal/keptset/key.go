package keptset

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

const (
	// keyWord begins the line of a key's file; another format of keys gets another.
	keyWord = "pqproxy-edge-key-v1"
	// keySize is in bytes; what is derived has the same, for AES-256.
	keySize = 32
	// maxKeyFile is above the 65 bytes of a key's line, with room for white space.
	maxKeyFile = 1 << 10

	// What the key is used for, so that one use tells nothing about another.
	idContext   = "pqproxy-edge-key-id-v1\n"
	fileContext = "pqproxy-kept-set-v1 aes-256-gcm"
)

// Key is the key of an edge. It never prints itself. The zero value is of no use; see OpenKey. It may be
// used from several goroutines.
type Key struct {
	id string
	// A function, because fmt does not ask what is in other structs' unexported fields how to print it. Bytes it
	// would print, and those behind a pointer too, if the verb is a wrong one.
	secret func() [keySize]byte
}

// OpenKey returns the key of the edge, from the file pqproxy/edge.key in the folder dataDir, one line of
//
//	pqproxy-edge-key-v1 BASE64
//
// with the padded base64 of 32 bytes. If there is no such file, it makes a key and the file (0600, its folder
// 0700); processes that do so at once all get the key of one. The folder must be on the edge: whoever reads a
// storage and finds the key in it can read the kept sets. Edges with the same file, which is what edges have
// that share dataDir, have the same sets.
//
// A warning, meant for the log, says that others on this machine can read or replace the key; it is used
// nevertheless. A file that holds no key is never overwritten: the error says what to do. Neither shows it.
func OpenKey(dataDir string) (key *Key, warning string, err error) {
	if dataDir == "" {
		return nil, "", errors.New("edge key: no data folder is given; set HOME or XDG_DATA_HOME")
	}
	path := filepath.Join(dataDir, "pqproxy", "edge.key")
	key, warning, err = readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = createKey(path, os.Link)
		if err == nil || errors.Is(err, fs.ErrExist) {
			key, warning, err = readKey(path) // whoever was first
		}
	}
	if err != nil {
		return nil, "", fmt.Errorf("edge key: %w", err)
	}
	return key, warning, nil
}

func newKey(secret [keySize]byte) *Key {
	sum := sha256.Sum256(append([]byte(idContext), secret[:]...))
	return &Key{id: hex.EncodeToString(sum[:8]), secret: func() [keySize]byte { return secret }}
}

// readKey reads the file at path, which may be a link to one: orchestrators mount secrets like that.
func readKey(path string) (*Key, string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, "", err
	}
	if !info.Mode().IsRegular() { // opening a pipe would wait for its other end
		return nil, "", fmt.Errorf("%s is not a regular file; move it away", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, "", err
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w; restore it from a backup, or delete it: a new key is made then, and what was kept with the old one is lost",
			path, err)
	}
	return key, keyWarning(path, info), nil
}

func parseKey(text []byte) (*Key, error) {
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("the file has more than %d bytes; a key has fewer", maxKeyFile)
	}
	fields := strings.Split(strings.Trim(string(text), " \t\r\n"), " ")
	if len(fields) != 2 || fields[0] != keyWord {
		return nil, fmt.Errorf("the file is not one line of the form %s BASE64", keyWord)
	}
	// Go's decoder goes over line breaks. Its errors are not passed on: they tell where, which is of no help.
	secret, err := base64.StdEncoding.Strict().DecodeString(fields[1])
	if err != nil || strings.ContainsAny(fields[1], "\r\n") {
		return nil, errors.New("the second word of the file is not padded base64")
	}
	if len(secret) != keySize {
		return nil, fmt.Errorf("the second word of the file holds %d bytes; a key has %d", len(secret), keySize)
	}
	if [keySize]byte(secret) == [keySize]byte{} {
		return nil, errors.New("the key is all zeros, so it is no secret")
	}
	return newKey([keySize]byte(secret)), nil
}

// keyWarning says who else could have the key, or replace it.
func keyWarning(path string, info fs.FileInfo) string {
	if runtime.GOOS == "windows" {
		return "" // modes say nothing there
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Sprintf("the edge key %s has mode %04o, so that others on this machine may use it; make it 0600", path, mode)
	}
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	if err != nil {
		return ""
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Sprintf("the folder %s has mode %04o, so that others on this machine may replace the edge key in it; make it 0700", dir, mode)
	}
	return ""
}

// createKey makes a key and the file at path. It returns fs.ErrExist if there is a file by then, and never
// touches that one. link is os.Link.
func createKey(path string, link func(oldname, newname string) error) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var secret [keySize]byte
	rand.Read(secret[:]) // never fails
	line := []byte(keyWord + " " + base64.StdEncoding.EncodeToString(secret[:]) + "\n")

	// A link appears with its content, and not where something is: a rename would replace the key that another
	// process is already using.
	temp, err := os.CreateTemp(dir, "edge.key.*.tmp") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	if err := writeKey(temp, line); err != nil {
		return err
	}
	err = link(temp.Name(), path)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		// A file system without links, such as network shares of Windows. Another process that starts in this
		// moment may find the file before its content, and then fails until it is started again.
		err = writeNewKey(path, line)
	}
	if err == nil {
		syncDir(dir)
	}
	return err
}

func writeNewKey(path string, line []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := writeKey(f, line); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// writeKey writes line to f and closes it.
func writeKey(f *os.File, line []byte) error {
	_, err := f.Write(line)
	if err == nil {
		err = f.Sync() // a key that is used and then lost in a crash takes what was kept with it
	}
	return errors.Join(err, f.Close())
}

// syncDir is for the name what Sync is for the content. Not every system can; the key is good in any case.
func syncDir(dir string) {
	if d, err := os.Open(dir); err == nil {
		d.Sync()
		d.Close()
	}
}

// ID returns the key ID: the first 16 hexadecimal digits of a SHA-256 over the key. It is no secret.
func (k *Key) ID() string { return k.id }

// aead returns what seals and opens the one file with that salt. It makes the nonce itself.
func (k *Key) aead(salt []byte) (cipher.AEAD, error) {
	secret := k.secret()
	derived, err := hkdf.Key(sha256.New, secret[:], salt, fileContext, keySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// String names k by its ID.
func (k Key) String() string { return "edge key " + k.id + " (not shown)" }

// Format prints String whatever the verb.
func (k Key) Format(s fmt.State, _ rune) { io.WriteString(s, k.String()) }

// MarshalText prints String, for encoders that look into fields.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }
