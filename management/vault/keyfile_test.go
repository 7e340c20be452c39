package vault

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

func TestLoadOrCreateKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pqproxy", "master.key")
	if _, err := ReadKeyFile(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no file: %v", err)
	}
	made, created, err := LoadOrCreateKeyFile(path)
	if err != nil || !created || len(made) != 1 {
		t.Fatalf("%v, %v, %v", made, created, err)
	}
	info, err := os.Stat(path)
	if err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	again, created, err := LoadOrCreateKeyFile(path)
	if err != nil || created || len(again) != 1 || again[0].ID() != made[0].ID() {
		t.Errorf("the second time: %v, %v, %v", again, created, err)
	}
	onlyFile(t, path)
}

// TestLoadOrCreateKeyFileAtOnce has many do it at the same moment: all must go on with one key.
func TestLoadOrCreateKeyFileAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "master.key")
	var all sync.WaitGroup
	var ids [16]KeyID
	var made [16]bool
	for i := range ids {
		all.Go(func() {
			keys, created, err := LoadOrCreateKeyFile(path)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i], made[i] = keys[0].ID(), created
		})
	}
	all.Wait()
	makers := 0
	for i := range ids {
		if ids[i] != ids[0] {
			t.Errorf("two keys: %s and %s", ids[0], ids[i])
		}
		if made[i] {
			makers++
		}
	}
	if makers != 1 {
		t.Errorf("%d made the file", makers)
	}
	onlyFile(t, path)
}

func TestReadKeyFileRefuses(t *testing.T) {
	dir, k := t.TempDir(), NewKey()
	for name, test := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"group":   {k.Reveal(), 0o640, "chmod 600"},
		"others":  {k.Reveal(), 0o604, "chmod 600"},
		"written": {k.Reveal(), 0o620, "chmod 600"},
		"empty":   {"", 0o600, "has none"},
		"comment": {"# later\n\n", 0o600, "has none"},
		"garbage": {k.Reveal() + "\nxyzzy", 0o600, "line 2"},
		"long":    {strings.Repeat(k.Reveal()+"\n", 100), 0o600, "more than"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(test.text), test.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, test.mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
		if runtime.GOOS == "windows" && test.want == "chmod 600" {
			continue
		}
		_, _, err := LoadOrCreateKeyFile(path)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if strings.Contains(err.Error(), "xyzzy") || strings.Contains(err.Error(), k.Reveal()) {
			t.Errorf("%s: the error shows what is in the file: %v", name, err)
		}
		if text, _ := os.ReadFile(path); string(text) != test.text {
			t.Errorf("%s: the file was changed", name)
		}
	}
	if _, err := ReadKeyFile(dir); err == nil {
		t.Error("a directory is read")
	}
}

// TestWriteKeyFile rotates: a new key in front, then the old one left out.
func TestWriteKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "master.key")
	keys, _, err := LoadOrCreateKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	both := append([]Key{NewKey()}, keys...)
	for _, want := range [][]Key{both, both[:1]} {
		if err := WriteKeyFile(path, want); err != nil {
			t.Fatal(err)
		}
		got, err := ReadKeyFile(path)
		if err != nil || len(got) != len(want) || got[0].ID() != want[0].ID() || got[len(got)-1].ID() != want[len(want)-1].ID() {
			t.Errorf("%v, %v; want %v", got, err, want)
		}
	}
	if err := WriteKeyFile(path, nil); err == nil {
		t.Error("a file without keys is written")
	}
	onlyFile(t, path)
}

// onlyFile wants no temporary file left beside path.
func onlyFile(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}
