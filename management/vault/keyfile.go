package vault

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// A key file has a few keys of 44 characters.
const maxKeyFile = 4096

// ReadKeyFile reads master keys, one a line, the first of which encrypts; empty lines and those that begin with # are passed over.
// A file that its group or others may read is refused: the key is out. No file: an error that is fs.ErrNotExist.
func ReadKeyFile(path string) ([]Key, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("reading the master key: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat() // of what was opened, not of what is there by now
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the master key: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("reading the master key: %s is not a regular file", path)
	case info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows": // whose permission bits say nothing
		return nil, fmt.Errorf("reading the master key: %s may be read by others (mode %04o); whoever has read it can decrypt every private key: run chmod 600 %s, and replace the key if in doubt",
			path, info.Mode().Perm(), path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	defer clear(text)
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the master key: %w", err)
	case len(text) > maxKeyFile:
		return nil, fmt.Errorf("reading the master key: %s has more than %d bytes", path, maxKeyFile)
	}
	var keys []Key
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		k, err := ParseKey(line)
		if err != nil {
			return nil, fmt.Errorf("reading %s, line %d: %w", path, number, err)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("reading the master key: %s has none; restore it from where it is kept safe, or remove the file if nothing was ever encrypted", path)
	}
	return keys, nil
}

// LoadOrCreateKeyFile reads a key file, or makes one with a new key where there is none: at once with all its content, for its
// owner alone (0600), in a directory that is made too (0700). created says that it did. Of several processes that do this at the
// same time one makes the file, and all return its key.
func LoadOrCreateKeyFile(path string) (keys []Key, created bool, err error) {
	keys, err = ReadKeyFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return keys, false, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, false, fmt.Errorf("making the directory of the master key: %w", err)
	}
	// A link, unlike a rename, does not replace what somebody else put there in the meantime.
	k := NewKey()
	switch err := writeThen(path, []Key{k}, os.Link); {
	case errors.Is(err, fs.ErrExist):
		keys, err = ReadKeyFile(path)
		return keys, false, err
	case err != nil:
		return nil, false, fmt.Errorf("making the master key: %w", err)
	}
	return []Key{k}, true, nil
}

// WriteKeyFile replaces a key file, at once with all its content: a crash leaves the old one or the new one. For rotation: put
// the new key in front, rewrap all values, and only then leave out the old one.
func WriteKeyFile(path string, keys []Key) error {
	if _, err := New(keys...); err != nil {
		return fmt.Errorf("writing the master key: %w", err)
	}
	if err := writeThen(path, keys, os.Rename); err != nil {
		return fmt.Errorf("writing the master key: %w", err)
	}
	return nil
}

// writeThen writes keys to a temporary file beside path, and has place put it there once it is on disk.
func writeThen(path string, keys []Key, place func(from, to string) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".master-key-*") // with mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already after a rename
	for _, k := range keys {
		if _, err = f.WriteString(k.Reveal() + "\n"); err != nil {
			break
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = place(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the name of a file outlast a crash. Values are sealed right after: without it they could outlive their key.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" { // has no such thing
		return nil
	}
	d, err := os.Open(dir) //nolint:gosec // of the file that the operator names
	if err != nil {
		return err
	}
	err = d.Sync()
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	return err
}
