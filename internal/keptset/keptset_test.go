package keptset

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/caddyserver/certmagic"
)

// testKey returns the key whose bytes are all b, b+1, b+2 and so on.
func testKey(b byte) *Key {
	var secret [keySize]byte
	for i := range secret {
		secret[i] = b + byte(i)
	}
	return newKey(secret)
}

var testMeta = Meta{
	Revision: 420, HasRevision: true, ETag: "\"a\xffb\"", Source: "0123456789abcdef", Domains: 2,
	Saved: time.Date(2026, 7, 1, 12, 0, 0, 5, time.UTC),
}

const testContent = `[{"name":"a.example.com"},{"name":"b.example.com"}]`

// writes returns what Save takes to keep text.
func writes(text string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}
}

func save(tb testing.TB, s *Store, name, text string) {
	tb.Helper()
	if err := s.Save(context.Background(), name, testMeta, writes(text)); err != nil {
		tb.Fatal(err)
	}
}

// read returns what is kept under name, or the error of Load or of reading.
func read(s *Store, name string, maxSize int64) (string, error) {
	_, content, err := s.Load(context.Background(), name, maxSize)
	if err != nil {
		return "", err
	}
	defer content.Close()
	text, err := io.ReadAll(content)
	return string(text), err
}

func wantContent(tb testing.TB, s *Store, name, want string) {
	tb.Helper()
	if got, err := read(s, name, 1<<20); err != nil || got != want {
		tb.Errorf("%s: got %.200q, %v; want %.200q", name, got, err, want)
	}
}

// causes are those for which outside bytes may be refused.
var causes = []error{ErrForeign, ErrNewerFormat, ErrTruncated, ErrCorrupt, ErrOtherKey, ErrOtherName, ErrTooLarge}

// causeOf returns the one cause of err, or nil if there are none or several.
func causeOf(err error) error {
	var found []error
	for _, cause := range causes {
		if errors.Is(err, cause) {
			found = append(found, cause)
		}
	}
	if len(found) != 1 {
		return nil
	}
	return found[0]
}

// memory is a storage that keeps values in memory, and returns the very slices that it keeps. Its errors,
// where set, are returned instead of doing anything.
type memory struct {
	certmagic.Storage // nil: what is not needed is not there
	mu                sync.Mutex
	values            map[string][]byte
	storeErr, loadErr error
	statErr           error
	loads             int
}

func newMemory() *memory { return &memory{values: make(map[string][]byte)} }

func (m *memory) Store(_ context.Context, key string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.storeErr == nil {
		m.values[key] = value
	}
	return m.storeErr
}

func (m *memory) Load(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loads++
	value, ok := m.values[key]
	if !ok && m.loadErr == nil {
		return nil, fmt.Errorf("memory: %w", fs.ErrNotExist)
	}
	return value, m.loadErr
}

func (m *memory) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.values, key)
	return m.storeErr
}

func (m *memory) Stat(_ context.Context, key string) (certmagic.KeyInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return certmagic.KeyInfo{Key: key, Size: int64(len(m.values[key])), IsTerminal: true}, m.statErr
}

// put keeps value as the file of s called name.
func (m *memory) put(s *Store, name string, value []byte) {
	path, err := s.path(name)
	if err != nil {
		panic(err)
	}
	m.values[path] = value
}

// file returns the only file.
func (m *memory) file() []byte {
	for value := range maps.Values(m.values) {
		return value
	}
	return nil
}

func TestSaveLoad(t *testing.T) {
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	s := New(storage, testKey(1))
	ctx := context.Background()

	_, _, err := s.Load(ctx, "remote", 1<<20)
	if path := "pqproxy/edges/" + testKey(1).ID() + "/remote.set"; !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Fatalf("before it was saved: %v, want fs.ErrNotExist and %s", err, path)
	}
	save(t, s, "remote", testContent)
	save(t, s, "admin", "others")
	meta, content, err := s.Load(ctx, "remote", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if meta != testMeta {
		t.Errorf("got %+v, want %+v", meta, testMeta)
	}
	if err := iotest.TestReader(content, []byte(testContent)); err != nil {
		t.Error(err)
	}
	if err := content.Close(); err != nil {
		t.Error(err)
	}
	if n, err := content.Read(make([]byte, 1)); n != 0 || !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %d, %v", n, err)
	}

	save(t, s, "remote", "newer")
	wantContent(t, s, "remote", "newer")
	wantContent(t, s, "admin", "others")
	for range 2 {
		if err := s.Delete(ctx, "remote"); err != nil {
			t.Error(err)
		}
		if _, err := read(s, "remote", 1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("deleted: %v", err)
		}
	}
	wantContent(t, s, "admin", "others")
}

// TestMeta has what is easily lost: zeros that mean nothing and zeros that mean zero, zones, bytes.
func TestMeta(t *testing.T) {
	s := New(newMemory(), testKey(1))
	at := time.Date(2026, 7, 1, 14, 0, 0, 0, time.FixedZone("", 2*60*60))
	for _, tt := range []struct{ in, want Meta }{
		{Meta{Saved: at}, Meta{Saved: at.UTC()}},
		{Meta{Saved: at, HasRevision: true}, Meta{Saved: at.UTC(), HasRevision: true}},
		{Meta{Saved: at, Revision: 7}, Meta{Saved: at.UTC()}},
		{Meta{Saved: at, Revision: math.MaxUint64, HasRevision: true}, Meta{Saved: at.UTC(), Revision: math.MaxUint64, HasRevision: true}},
		{Meta{Saved: at, ETag: "\xff\n\"<", Source: "a\nb"}, Meta{Saved: at.UTC(), ETag: "\xff\n\"<", Source: "a\nb"}},
	} {
		if err := s.Save(context.Background(), "x", tt.in, writes("")); err != nil {
			t.Error(err)
		}
		got, _, err := s.Load(context.Background(), "x", 0)
		if err != nil || got != tt.want {
			t.Errorf("%+v: got %+v, %v", tt.in, got, err)
		}
	}
	before := time.Now()
	if err := s.Save(context.Background(), "x", Meta{}, writes("")); err != nil {
		t.Error(err)
	}
	if got, _, err := s.Load(context.Background(), "x", 0); err != nil || got.Saved.Before(before) || got.Saved.After(time.Now()) {
		t.Errorf("saved at %v, %v; want about %v", got.Saved, err, before)
	}
	for _, meta := range []Meta{{ETag: strings.Repeat("x", 48<<10)}, {Source: strings.Repeat("x", 64<<10)}, {Saved: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}} {
		if err := s.Save(context.Background(), "x", meta, writes("")); err == nil || !strings.Contains(err.Error(), "header") {
			t.Errorf("a header that cannot be read is written: %v", err)
		}
	}
	if err := s.Save(context.Background(), "x", Meta{ETag: strings.Repeat("\xff", 20<<10), Source: strings.Repeat("x", 20<<10)}, writes("")); err != nil {
		t.Errorf("40 KiB: %v", err)
	}
	wantContent(t, s, "x", "")
}

func TestNames(t *testing.T) {
	s := New(newMemory(), testKey(1))
	for _, name := range []string{"", "..", "../x", "a/b", `a\b`, "a.b", "A", "ä", "a\x00", strings.Repeat("a", 65)} {
		ctx := context.Background()
		_, _, loadErr := s.Load(ctx, name, 1)
		for _, err := range []error{s.Save(ctx, name, Meta{}, writes("")), loadErr, s.Delete(ctx, name)} {
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%q: %v", name, err)
			}
		}
	}
	save(t, s, strings.Repeat("a", 60)+"-_09", "long")
}

// TestSaveFails: whatever fails while a set is saved, the one before stays.
func TestSaveFails(t *testing.T) {
	folder := t.TempDir()
	kept := &certmagic.FileStorage{Path: folder}
	key := testKey(1)
	save(t, New(kept, key), "remote", testContent)
	files := func() (names []string) {
		filepath.WalkDir(folder, func(path string, _ fs.DirEntry, _ error) error {
			names = append(names, path)
			return nil
		})
		return names
	}
	before := files()
	cancelled, cancel := context.WithCancel(context.Background())

	full := errors.New("no space left on device")
	tests := []struct {
		name    string
		ctx     context.Context
		storage certmagic.Storage
		write   func(w io.Writer) error
		want    error
	}{
		{"write fails", context.Background(), kept, func(w io.Writer) error {
			io.CopyN(w, rand.NewChaCha8([32]byte{}), 1<<20)
			return full
		}, full},
		{"write fails at once", context.Background(), kept, func(io.Writer) error { return full }, full},
		{"context ends", cancelled, kept, func(w io.Writer) error {
			cancel()
			return writes("too late")(w)
		}, context.Canceled},
		{"storage is full", context.Background(), failing{kept, full}, writes("new"), full},
		{"storage is read-only", context.Background(), failing{kept, fs.ErrPermission}, writes("new"), fs.ErrPermission},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := New(tt.storage, key).Save(tt.ctx, "remote", Meta{}, tt.write)
			if !errors.Is(err, tt.want) || !strings.HasPrefix(err.Error(), "saving pqproxy/edges/"+key.ID()+"/remote.set: ") {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			wantContent(t, New(kept, key), "remote", testContent)
			if after := files(); !slices.Equal(before, after) {
				t.Errorf("there are %q now", after)
			}
		})
	}
	if err := New(failing{kept, full}, key).Delete(context.Background(), "remote"); !errors.Is(err, full) {
		t.Errorf("Delete: %v", err)
	}
}

// failing is a storage that changes nothing and says why.
type failing struct {
	certmagic.Storage
	err error
}

func (f failing) Store(context.Context, string, []byte) error { return f.err }
func (f failing) Delete(context.Context, string) error        { return f.err }

func TestLoadFails(t *testing.T) {
	storage := newMemory()
	s := New(storage, testKey(1))
	save(t, s, "remote", testContent)

	broken := errors.New("connection refused")
	storage.statErr = broken // no size is known, and the file is good
	wantContent(t, s, "remote", testContent)
	storage.loadErr = broken
	if _, err := read(s, "remote", 1<<20); !errors.Is(err, broken) || causeOf(err) != nil {
		t.Errorf("got %v, want %v", err, broken)
	}
}

func TestDeleteMissing(t *testing.T) {
	storage := newMemory()
	storage.storeErr = fmt.Errorf("memory: %w", fs.ErrNotExist) // which a storage should not, and some do
	if err := New(storage, testKey(1)).Delete(context.Background(), "remote"); err != nil {
		t.Error(err)
	}
}

// TestStorageMaySaveItsSlices: a storage that returns what it keeps finds it unchanged.
func TestStorageMaySaveItsSlices(t *testing.T) {
	storage := newMemory()
	s := New(storage, testKey(1))
	save(t, s, "remote", testContent)
	before := bytes.Clone(storage.file())
	for range 2 {
		wantContent(t, s, "remote", testContent)
	}
	if !bytes.Equal(before, storage.file()) {
		t.Error("Load changed the file")
	}
}

func TestMaxSize(t *testing.T) {
	storage := newMemory()
	s := New(storage, testKey(1))
	random := make([]byte, 300_000)
	rand.NewChaCha8([32]byte{1}).Read(random)
	for _, tt := range []struct{ name, content string }{
		{"empty", ""},
		{"one", "x"},
		{"text", testContent},
		{"zeros", strings.Repeat("\x00", 10<<20)},
		{"incompressible", string(random)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// In small writes, as encoders write.
			err := s.Save(context.Background(), "x", Meta{}, func(w io.Writer) error {
				_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{strings.NewReader(tt.content)}, make([]byte, 1000))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			size := int64(len(tt.content))
			for _, max := range []int64{size, size + 1, math.MaxInt64 / 2, math.MaxInt64 - 1, math.MaxInt64} {
				if got, err := read(s, "x", max); err != nil || got != tt.content {
					t.Errorf("at most %d: %d bytes, %v", max, len(got), err)
				}
			}
			for _, max := range []int64{size - 1, size / 2, 0, -1, math.MinInt64} {
				if size == 0 || max >= size {
					continue
				}
				got, err := read(s, "x", max)
				if !errors.Is(err, ErrTooLarge) || int64(len(got)) > size {
					t.Errorf("at most %d: %d bytes, %v", max, len(got), err)
				}
			}
			if size == 0 {
				wantContent(t, s, "x", "")
				return
			}
			_, content, err := s.Load(context.Background(), "x", size-1)
			if err != nil {
				t.Fatal(err)
			}
			for range 3 { // the error stays
				if n, err := io.Copy(io.Discard, content); !errors.Is(err, ErrTooLarge) || n >= size {
					t.Errorf("%d bytes, %v", n, err)
				}
			}
		})
	}
}

// TestMaxFileSize: the bound has room for contents larger than tests have, that deflate makes larger still.
func TestMaxFileSize(t *testing.T) {
	for size := int64(0); size < 1<<40; size = 2*size + 1 {
		if stored := size + 5*(size/65535+1) + 18; maxFileSize(size) < stored+maxHeader+sealSize {
			t.Errorf("%d bytes may not take %d", size, maxFileSize(size))
		}
	}
}

// TestHugeFile: a file that is too large for any set of the size is not fetched.
func TestHugeFile(t *testing.T) {
	storage := newMemory()
	s := New(storage, testKey(1))
	storage.put(s, "x", make([]byte, 2<<20))
	if _, err := read(s, "x", 1<<20); causeOf(err) != ErrTooLarge || storage.loads != 0 {
		t.Errorf("%v after %d loads, want ErrTooLarge and none", err, storage.loads)
	}
	storage.statErr = errors.ErrUnsupported
	if _, err := read(s, "x", 1<<20); causeOf(err) != ErrTooLarge {
		t.Errorf("without a size: %v", err)
	}
}

// TestConcurrentUse saves and loads one name from many sides: what is read is always one set as it was saved.
func TestConcurrentUse(t *testing.T) {
	s := New(&certmagic.FileStorage{Path: t.TempDir()}, testKey(1))
	save(t, s, "x", strings.Repeat("0", 10_000))
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 10 {
				if err := s.Save(context.Background(), "x", Meta{}, writes(strings.Repeat(string('1'+rune(i)), 10_000))); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 10 {
				if got, err := read(s, "x", 10_000); err != nil || len(got) != 10_000 || strings.Trim(got, got[:1]) != "" {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
		})
	}
	wg.Wait()
}
