package keptset

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
)

// FuzzLoad: of all bytes only those that Save wrote open, and the others are refused for one cause, in few
// words.
func FuzzLoad(f *testing.F) {
	// The workers are other processes: what is saved here they do not have.
	good := goldenFile(f)
	id := testKey(1).ID()
	line := good[:bytes.IndexByte(good, '\n')+1]
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(line)
	f.Add(append(bytes.Clone(line), make([]byte, len(good)-len(line))...))
	f.Add([]byte(magic + "2 "))
	f.Add([]byte(magic + `1 {"key":"` + id + `","name":"remote","salt":"` + strings.Repeat("A", 43) + `=","size":30}` + "\n" + strings.Repeat("x", 30)))
	f.Fuzz(func(t *testing.T, file []byte) {
		storage := newMemory()
		s := New(storage, testKey(1))
		storage.put(s, "remote", file)
		got, err := read(s, "remote", 1<<20)
		if bytes.Equal(file, good) {
			if err != nil || got != testContent {
				t.Fatalf("%q, %v", got, err)
			}
			return
		}
		if got != "" || causeOf(err) == nil || len(err.Error()) > 300 {
			t.Fatalf("%q opens as %q, %v", file, got, err)
		}
	})
}

// FuzzContent: whatever was sealed, no more is read than is allowed, and the end is the end or one cause.
func FuzzContent(f *testing.F) {
	var buf bytes.Buffer
	if err := compress(&buf, writes(strings.Repeat(testContent, 100))); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes(), int64(1<<20))
	f.Add(buf.Bytes(), int64(1000))
	f.Add(buf.Bytes()[:20], int64(1000))
	f.Add([]byte{}, int64(0))
	f.Fuzz(func(t *testing.T, compressed []byte, maxSize int64) {
		maxSize = max(maxSize, 0) % (1 << 20)
		storage := newMemory()
		s := New(storage, testKey(1))
		sealAs(t, s, storage, compressed)
		_, content, err := s.Load(context.Background(), "x", maxSize)
		var n int64
		if err == nil {
			n, err = io.Copy(io.Discard, content)
		}
		if n > maxSize || err != nil && causeOf(err) == nil {
			t.Fatalf("%d of %d bytes, %v", n, maxSize, err)
		}
	})
}
