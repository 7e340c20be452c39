package keptset

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// benchRecords writes n records of domains as edges see them, about 250 bytes each with few alike, and
// returns their bytes. As the edge does, it writes one by one.
func benchRecords(w io.Writer, n int) (size int64, err error) {
	random := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		tenant := make([]byte, 15)
		for j := range tenant {
			tenant[j] = byte(random.Uint32())
		}
		record := fmt.Sprintf(`{"name":"app-%d.customer-%08x.example.com","tenant":"ten_%s","upstreams":[{"dial":"10.%d.%d.%d:8443",`+
			`"tls":{"server_name":"app-%d.internal","post_quantum":"prefer"},"region":"gru"}],"proxy_protocol":"v1",`+
			`"certificate":{"source":"acme"}}`+"\n", i, random.Uint32(), base64.RawURLEncoding.EncodeToString(tenant),
			random.IntN(256), random.IntN(256), random.IntN(256), i)
		m, err := io.WriteString(w, record)
		size += int64(m)
		if err != nil {
			return size, err
		}
	}
	return size, nil
}

// BenchmarkKeptSet saves and loads 100,000 records. In the loop are compressing and sealing, or opening and
// decompressing, and copies in memory; gzip dominates both. Making the records is outside, and so is what a
// storage does: a disk's sync, a network. The memory of save is the compressed set, twice and more while it
// grows. file/content is how small the set became.
//
//	go test -run '^$' -bench . -count 10 ./internal/keptset
func BenchmarkKeptSet(b *testing.B) {
	var records [][]byte
	size, err := benchRecords(writerFunc(func(p []byte) (int, error) {
		records = append(records, append([]byte(nil), p...))
		return len(p), nil
	}), 100_000)
	if err != nil {
		b.Fatal(err)
	}
	if !json.Valid(records[0]) {
		b.Fatalf("%q", records[0])
	}
	storage := newMemory()
	s := New(storage, testKey(1))
	saveAll := func(b *testing.B) {
		err := s.Save(context.Background(), "remote", testMeta, func(w io.Writer) error {
			for _, record := range records {
				if _, err := w.Write(record); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.Run("op=save", func(b *testing.B) {
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			saveAll(b)
		}
		b.ReportMetric(float64(len(storage.file()))/float64(size), "file/content")
	})
	saveAll(b)
	b.Run("op=load", func(b *testing.B) {
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			_, content, err := s.Load(context.Background(), "remote", size)
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, content); err != nil || n != size {
				b.Fatalf("%d of %d bytes, %v", n, size, err)
			}
		}
	})
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
