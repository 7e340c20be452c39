package keptset

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// keyFile writes text to the key's file of a new data folder, and returns both.
func keyFile(t *testing.T, text string, mode fs.FileMode) (dataDir, path string) {
	t.Helper()
	dataDir = t.TempDir()
	path = filepath.Join(dataDir, "pqproxy", "edge.key")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return dataDir, path
}

func keyLine(k *Key) string {
	secret := k.secret()
	return keyWord + " " + base64.StdEncoding.EncodeToString(secret[:]) + "\n"
}

func TestOpenKey(t *testing.T) {
	dataDir := filepath.Join(t.TempDir(), "not", "yet", "there")
	key, warning, err := OpenKey(dataDir)
	if err != nil || warning != "" {
		t.Fatalf("%q, %v", warning, err)
	}
	folder := filepath.Join(dataDir, "pqproxy")
	path := filepath.Join(folder, "edge.key")
	text, err := os.ReadFile(path)
	if err != nil || string(text) != keyLine(key) {
		t.Errorf("the file is not the key's line: %v", err)
	}
	if runtime.GOOS != "windows" {
		for path, want := range map[string]fs.FileMode{path: 0o600, folder: 0o700} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: mode %v, %v; want %v", path, info.Mode(), err, want)
			}
		}
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: want the key alone", entries, err)
	}
	again, _, err := OpenKey(dataDir)
	if err != nil || again.secret() != key.secret() || again.ID() != key.ID() {
		t.Errorf("opened again, it is %v, %v; want %v", again, err, key)
	}
	other, _, err := OpenKey(t.TempDir())
	if err != nil || other.ID() == key.ID() {
		t.Errorf("in another folder it is %v, %v", other, err)
	}
	if id := testKey(1).ID(); id != "898592f99d409051" {
		t.Errorf("the ID changed to %s", id)
	}
}

func TestOpenKeyTogether(t *testing.T) {
	for range 20 {
		dataDir := t.TempDir()
		keys := make([]*Key, 8)
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i := range keys {
			wg.Go(func() {
				<-start
				key, warning, err := OpenKey(dataDir)
				if err != nil || warning != "" {
					t.Errorf("%q, %v", warning, err)
				}
				keys[i] = key
			})
		}
		close(start)
		wg.Wait()
		if t.Failed() {
			return
		}
		for _, key := range keys {
			if key.secret() != keys[0].secret() {
				t.Fatalf("%v and %v", key, keys[0])
			}
		}
		if entries, err := os.ReadDir(filepath.Join(dataDir, "pqproxy")); err != nil || len(entries) != 1 {
			t.Errorf("%v, %v: want the key alone", entries, err)
		}
	}
}

// TestCreateKeyWithoutLinks is on a file system that knows none.
func TestCreateKeyWithoutLinks(t *testing.T) {
	dataDir := t.TempDir()
	path := filepath.Join(dataDir, "pqproxy", "edge.key")
	noLinks := func(oldname, newname string) error {
		return &os.LinkError{Op: "link", Old: oldname, New: newname, Err: syscall.EPERM}
	}
	if err := createKey(path, noLinks); err != nil {
		t.Fatal(err)
	}
	key, warning, err := OpenKey(dataDir)
	if err != nil || warning != "" {
		t.Fatalf("%q, %v", warning, err)
	}
	if err := createKey(path, noLinks); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	if again, _, err := OpenKey(dataDir); err != nil || again.ID() != key.ID() {
		t.Errorf("%v, %v: want %v", again, err, key)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: want the key alone", entries, err)
	}
}

func TestCreateKeyKeepsOther(t *testing.T) {
	_, path := keyFile(t, keyLine(testKey(1)), 0o600)
	if err := createKey(path, os.Link); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != keyLine(testKey(1)) {
		t.Errorf("the file was replaced, %v", err)
	}
}

func TestOpenKeyWarns(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there are no modes")
	}
	for _, tt := range []struct {
		file, folder fs.FileMode
		want         string
	}{
		{0o600, 0o700, ""},
		{0o400, 0o500, ""},
		{0o600, 0o755, ""},
		{0o640, 0o700, "mode 0640"},
		{0o604, 0o700, "mode 0604"},
		{0o620, 0o700, "mode 0620"},
		{0o600, 0o770, "mode 0770"},
		{0o600, 0o702, "mode 0702"},
		{0o644, 0o777, "mode 0644"},
	} {
		dataDir, path := keyFile(t, keyLine(testKey(1)), tt.file)
		folder := filepath.Dir(path)
		if err := os.Chmod(folder, tt.folder); err != nil {
			t.Fatal(err)
		}
		key, warning, err := OpenKey(dataDir)
		if err != nil || key.ID() != testKey(1).ID() {
			t.Errorf("%o in %o: %v, %v", tt.file, tt.folder, key, err)
		}
		if tt.want == "" && warning != "" || !strings.Contains(warning, tt.want) || tt.want != "" && !strings.Contains(warning, folder) {
			t.Errorf("%o in %o warns %q, want %s", tt.file, tt.folder, warning, tt.want)
		}
		os.Chmod(folder, 0o700)
	}
}

// TestOpenKeyRefuses: a file that holds no key stays as it is, and nothing of it is in the error.
func TestOpenKeyRefuses(t *testing.T) {
	good := keyLine(testKey(1))
	word, base, _ := strings.Cut(strings.TrimSpace(good), " ")
	tests := []struct{ name, text, says string }{
		{"empty", "", "one line of the form pqproxy-edge-key-v1 BASE64"},
		{"blank", "\n\n", "one line"},
		{"word alone", word, "one line"},
		{"key alone", base, "one line"},
		{"another word", "pqproxy-edge-key-v2 " + base, "one line"},
		{"feed key", "pqproxy-feed-private-key-v1 0123456789abcdef " + base, "one line"},
		{"two keys", good + good, "one line"},
		{"two spaces", word + "  " + base, "one line"},
		{"tab", word + "\t" + base, "one line"},
		{"truncated", good[:len(good)-4], "padded base64"},
		{"truncated by four", word + " " + base[:40], "holds 30 bytes; a key has 32"},
		{"URL alphabet", word + " " + strings.Repeat("-", 43) + "=", "padded base64"},
		{"bits behind the end", word + " " + base[:42] + "1=", "padded base64"},
		{"line break", word + " " + base[:20] + "\n" + base[20:], "padded base64"},
		{"too long", word + " " + strings.Repeat("AAAA", 11), "holds 33 bytes"},
		{"zeros", word + " " + strings.Repeat("A", 43) + "=", "all zeros"},
		{"huge", strings.Repeat(" ", 1<<20) + good, "more than 1024 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dataDir, path := keyFile(t, tt.text, 0o600)
			key, _, err := OpenKey(dataDir)
			if err == nil {
				t.Fatalf("opened as %v", key)
			}
			for _, says := range []string{tt.says, path, "delete it"} {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("%v: does not say %q", err, says)
				}
			}
			if strings.Contains(err.Error(), base[:8]) || strings.Contains(err.Error(), base[30:38]) || len(err.Error()) > 400+2*len(path) {
				t.Errorf("the error quotes: %v", err)
			}
			if text, err := os.ReadFile(path); err != nil || string(text) != tt.text {
				t.Errorf("the file was changed, %v", err)
			}
		})
	}
	for _, text := range []string{good, strings.TrimSpace(good), "\r\n " + word + " " + base + "\r\n\n"} {
		dataDir, _ := keyFile(t, text, 0o600)
		if key, _, err := OpenKey(dataDir); err != nil || key.ID() != testKey(1).ID() {
			t.Errorf("%v, %v", key, err)
		}
	}
}

// TestOpenKeyPlaces has no file where one is expected, and a file where none is.
func TestOpenKeyPlaces(t *testing.T) {
	if _, _, err := OpenKey(""); err == nil {
		t.Error("no folder: the key went to the working directory")
	}

	folder := t.TempDir()
	if err := os.MkdirAll(filepath.Join(folder, "pqproxy", "edge.key"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenKey(folder); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder in its place: %v", err)
	}

	taken := t.TempDir()
	if err := os.WriteFile(filepath.Join(taken, "pqproxy"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenKey(taken); err == nil || !strings.Contains(err.Error(), "pqproxy") {
		t.Errorf("a file in the place of its folder: %v", err)
	}
}

func TestOpenKeySymlinks(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("links need a privilege")
	}
	_, target := keyFile(t, keyLine(testKey(1)), 0o600)
	for _, tt := range []struct{ name, target string }{{"mounted", target}, {"dangling", target + ".gone"}} {
		t.Run(tt.name, func(t *testing.T) {
			dataDir := t.TempDir()
			path := filepath.Join(dataDir, "pqproxy", "edge.key")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(tt.target, path); err != nil {
				t.Fatal(err)
			}
			key, _, err := OpenKey(dataDir)
			if tt.target == target && (err != nil || key.ID() != testKey(1).ID()) {
				t.Errorf("%v, %v", key, err)
			}
			if tt.target != target && (!errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path)) {
				t.Errorf("%v, %v: want an error, and no key made where the link leads", key, err)
			}
			if _, err := os.Stat(target + ".gone"); err == nil {
				t.Error("the key went where the link leads")
			}
		})
	}
}

// FuzzParseKey: a key that is read is written as it was, but for surrounding white space.
func FuzzParseKey(f *testing.F) {
	good := keyLine(testKey(1))
	f.Add([]byte(good))
	f.Add([]byte("\n" + strings.TrimSpace(good) + "\r\n"))
	f.Add([]byte(keyWord + " AAAA"))
	f.Fuzz(func(t *testing.T, in []byte) {
		key, err := parseKey(in)
		if err != nil {
			if len(err.Error()) > 200 {
				t.Fatal(err)
			}
			return
		}
		if trimmed := append(bytes.Trim(in, " \t\r\n"), '\n'); keyLine(key) != string(trimmed) {
			t.Fatalf("%q is written %q", in, keyLine(key))
		}
	})
}
