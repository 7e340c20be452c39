package keptset

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFilesDiffer: a set that is saved twice shares nothing that would show it.
func TestFilesDiffer(t *testing.T) {
	storage := newMemory()
	s := New(storage, testKey(1))
	type parts struct{ salt, nonce, sealed string }
	var seen []parts
	for range 2 {
		save(t, s, "x", testContent)
		line, sealed, _ := strings.Cut(string(storage.file()), "\n")
		var h header
		if err := json.Unmarshal([]byte(strings.TrimPrefix(line, magic+format)), &h); err != nil {
			t.Fatal(err)
		}
		if h.Size != int64(len(sealed)) {
			t.Errorf("size is %d, want %d", h.Size, len(sealed))
		}
		seen = append(seen, parts{string(h.Salt), sealed[:12], sealed[12:30]})
	}
	if a, b := seen[0], seen[1]; a.salt == b.salt || a.nonce == b.nonce || a.sealed == b.sealed {
		t.Errorf("%q", seen)
	}
}

// goldenFile returns testContent as it was saved as "remote", with testMeta and testKey(1), when the format
// was fixed. It is never written again: what was kept by an older version has to open.
func goldenFile(tb testing.TB) []byte {
	tb.Helper()
	file, err := os.ReadFile(filepath.Join("testdata", "format1.set"))
	if err != nil {
		tb.Fatal(err)
	}
	return file
}

func TestGoldenFile(t *testing.T) {
	storage := newMemory()
	s := New(storage, testKey(1))
	storage.put(s, "remote", goldenFile(t))
	meta, content, err := s.Load(context.Background(), "remote", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(content)
	if err != nil || string(text) != testContent || meta != testMeta {
		t.Errorf("%q, %+v, %v", text, meta, err)
	}
}

func TestTruncatedAnywhere(t *testing.T) {
	storage := newMemory()
	s := New(storage, testKey(1))
	save(t, s, "x", testContent)
	file := storage.file()
	for n := range file {
		storage.put(s, "x", file[:n])
		if got, err := read(s, "x", 1<<20); causeOf(err) != ErrTruncated {
			t.Errorf("%d of %d bytes: %q, %v; want ErrTruncated", n, len(file), got, err)
		}
	}
	storage.put(s, "x", append(bytes.Clone(file), 0))
	if got, err := read(s, "x", 1<<20); causeOf(err) != ErrCorrupt {
		t.Errorf("a byte more: %q, %v", got, err)
	}
}

func TestFlippedAnywhere(t *testing.T) {
	storage := newMemory()
	s := New(storage, testKey(1))
	save(t, s, "x", testContent)
	file := storage.file()
	sealed := bytes.IndexByte(file, '\n') + 1
	for i := range file {
		for bit := range 8 {
			changed := bytes.Clone(file)
			changed[i] ^= 1 << bit
			storage.put(s, "x", changed)
			got, err := read(s, "x", 1<<20)
			cause := causeOf(err)
			if got != "" || cause == nil || len(err.Error()) > 300 {
				t.Errorf("bit %d of byte %d: %q, %v", bit, i, got, err)
			}
			if i >= sealed && cause != ErrCorrupt {
				t.Errorf("bit %d of byte %d, sealed: %v", bit, i, err)
			}
		}
	}
	storage.put(s, "x", file)
	wantContent(t, s, "x", testContent)
}

// TestMovedFile puts files where they were not written.
func TestMovedFile(t *testing.T) {
	storage := newMemory()
	ours, theirs := New(storage, testKey(1)), New(storage, testKey(2))
	save(t, ours, "admin", "admin")
	admin := storage.file()

	storage.put(ours, "remote", admin)
	if got, err := read(ours, "remote", 1<<20); causeOf(err) != ErrOtherName || !strings.Contains(err.Error(), `"admin"`) {
		t.Errorf("another name: %q, %v", got, err)
	}
	storage.put(theirs, "admin", admin)
	if got, err := read(theirs, "admin", 1<<20); causeOf(err) != ErrOtherKey || !strings.Contains(err.Error(), ours.key.ID()) || !strings.Contains(err.Error(), theirs.key.ID()) {
		t.Errorf("another key: %q, %v", got, err)
	}
	// The same with a header that was made to fit.
	for _, tt := range []struct {
		name     string
		in       *Store
		set      string
		old, new string
	}{
		{"name", ours, "remote", `"name":"admin"`, `"name":"remote"`},
		{"key", theirs, "admin", ours.key.ID(), theirs.key.ID()},
		{"revision", ours, "admin", `"revision":420`, `"revision":421`},
		{"key, twice", ours, "admin", `"name"`, `"key":"` + ours.key.ID() + `","name"`},
	} {
		forged := bytes.Replace(admin, []byte(tt.old), []byte(tt.new), 1)
		if bytes.Equal(forged, admin) {
			t.Fatalf("%s: nothing was replaced", tt.name)
		}
		storage.put(tt.in, tt.set, forged)
		if got, err := read(tt.in, tt.set, 1<<20); causeOf(err) != ErrCorrupt {
			t.Errorf("forged %s: %q, %v", tt.name, got, err)
		}
	}
}

func TestForeignFiles(t *testing.T) {
	storage := newMemory()
	s := New(storage, testKey(1))
	id := s.key.ID()
	save(t, s, "x", testContent)
	good := string(storage.file())
	line, _, _ := strings.Cut(good, "\n")
	tests := []struct {
		name, file string
		want       error
		says       string
	}{
		{"JSON", `{"domains":[]}`, ErrForeign, ""},
		{"zeros", strings.Repeat("\x00", 1000), ErrForeign, ""},
		{"another word", "pqproxy-kept-sets 1 {}\n", ErrForeign, ""},
		{"format 2", "pqproxy-kept-set 2 " + line, ErrNewerFormat, "format is 2, this version reads 1"},
		{"format 2 of other shape", "pqproxy-kept-set 2 \x00\xff", ErrNewerFormat, ""},
		{"format 10", "pqproxy-kept-set 10 {}\n", ErrNewerFormat, "format is 10"},
		{"format beyond numbers", "pqproxy-kept-set " + strings.Repeat("9", 1000) + " {}\n", ErrNewerFormat, "99999"},
		{"format without end", "pqproxy-kept-set " + strings.Repeat("1", 100_000), ErrCorrupt, "format number"},
		{"format 0", "pqproxy-kept-set 0 {}\n", ErrCorrupt, "format number"},
		{"format 01", strings.Replace(good, " 1 ", " 01 ", 1), ErrCorrupt, "format number"},
		{"no format", "pqproxy-kept-set {}\n", ErrCorrupt, "format number"},
		{"no space", "pqproxy-kept-set 1{}\n", ErrCorrupt, "format number"},
		{"no header", "pqproxy-kept-set 1 \n", ErrCorrupt, "JSON"},
		{"header of another type", "pqproxy-kept-set 1 []\n", ErrCorrupt, "JSON"},
		{"deep header", "pqproxy-kept-set 1 " + strings.Repeat("[", 60_000) + "\n", ErrCorrupt, "JSON"},
		{"header without end", "pqproxy-kept-set 1 " + strings.Repeat(" ", 100_000) + "{}\n", ErrCorrupt, "65536"},
		{"empty header", "pqproxy-kept-set 1 {}\n", ErrOtherKey, id},
		{"key of 60 KB", `pqproxy-kept-set 1 {"key":"` + strings.Repeat("a", 60_000) + "\"}\n", ErrOtherKey, id},
		{"name of 60 KB", `pqproxy-kept-set 1 {"key":"` + id + `","name":"` + strings.Repeat("a", 60_000) + "\"}\n", ErrOtherName, "aaa"},
		{"no salt", `pqproxy-kept-set 1 {"key":"` + id + `","name":"x"}` + "\n", ErrCorrupt, "salt"},
		{"nothing sealed", `pqproxy-kept-set 1 {"key":"` + id + `","name":"x","salt":"` + strings.Repeat("A", 43) + "=\"}\n", ErrCorrupt, "changed"},
		{"negative size", `pqproxy-kept-set 1 {"key":"` + id + `","name":"x","size":-1,"salt":"` + strings.Repeat("A", 43) + "=\"}\n", ErrCorrupt, "behind its header"},
		{"largest size", `pqproxy-kept-set 1 {"key":"` + id + `","name":"x","size":9223372036854775807,"salt":"` + strings.Repeat("A", 43) + "=\"}\n", ErrTruncated, "0 of"},
		{"CRLF", strings.Replace(good, "\n", "\r\n", 1), ErrCorrupt, "changed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			storage.put(s, "x", []byte(tt.file))
			got, err := read(s, "x", 1<<20)
			if causeOf(err) != tt.want || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("got %q, %.300v; want %v, %s", got, err, tt.want, tt.says)
			}
			if len(err.Error()) > 300 || !strings.Contains(err.Error(), "pqproxy/edges/"+id+"/x.set") {
				t.Errorf("the error has %d bytes: %.300v", len(err.Error()), err)
			}
		})
	}
}

// sealAs keeps compressed, whatever it is, as a file that opens.
func sealAs(tb testing.TB, s *Store, storage *memory, compressed []byte) {
	tb.Helper()
	file, err := seal(s.key, newHeader("x", Meta{}), func(w io.Writer) error {
		_, err := w.Write(compressed)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	storage.put(s, "x", file)
}

// TestBadGzip has a writer that failed and did not notice. What it wrote is refused, at the end at the latest.
func TestBadGzip(t *testing.T) {
	var buf bytes.Buffer
	if err := compress(&buf, writes(testContent)); err != nil {
		t.Fatal(err)
	}
	storage := newMemory()
	s := New(storage, testKey(1))
	good := buf.Bytes()
	sealAs(t, s, storage, good)
	wantContent(t, s, "x", testContent)
	for n := range good {
		sealAs(t, s, storage, good[:n])
		if got, err := read(s, "x", 1<<20); causeOf(err) != ErrCorrupt {
			t.Errorf("%d of %d bytes: %q, %v", n, len(good), got, err)
		}
	}
	for i := len(good) - 8; i < len(good); i++ { // CRC-32 and length
		changed := bytes.Clone(good)
		changed[i] ^= 1
		sealAs(t, s, storage, changed)
		_, content, err := s.Load(context.Background(), "x", 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 { // the error stays
			if _, err := io.ReadAll(content); causeOf(err) != ErrCorrupt || !strings.Contains(err.Error(), "x.set") {
				t.Errorf("byte %d changed: %v", i, err)
			}
		}
	}
	sealAs(t, s, storage, append(bytes.Clone(good), "more"...))
	if got, err := read(s, "x", 1<<20); causeOf(err) != ErrCorrupt {
		t.Errorf("followed by something else: %q, %v", got, err)
	}
}
