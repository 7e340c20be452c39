package pqproxy

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// payloads takes a stream of records apart. Handshake records are joined: how they are cut does not matter.
func payloads(stream []byte) (parts [][]byte, rest []byte) {
	for len(stream) >= recordHeaderLen {
		length := int(binary.BigEndian.Uint16(stream[3:]))
		if len(stream) < recordHeaderLen+length {
			break
		}
		header, payload := stream[:3], stream[recordHeaderLen:recordHeaderLen+length]
		if n := len(parts); n > 0 && header[0] == contentHandshake && bytes.Equal(parts[n-1][:3], header) {
			parts[n-1] = append(parts[n-1], payload...)
		} else {
			parts = append(parts, append(bytes.Clone(header), payload...))
		}
		stream = stream[recordHeaderLen+length:]
	}
	return parts, stream
}

// cutAll feeds a stream to a cutter in chunks, reading at most read bytes at a time, and checks that no read goes
// beyond a record.
func cutAll(t testing.TB, stream []byte, piece, chunk, read int) []byte {
	var c recordCutter
	var out, unread []byte
	p := make([]byte, read)
	for fed := 0; ; {
		n, used := c.cut(p, unread, piece)
		if n > len(p) || used > len(unread) {
			t.Fatalf("cut returned %d of %d and %d of %d", n, len(p), used, len(unread))
		}
		unread = unread[used:]
		out = append(out, p[:n]...)
		if n > 0 {
			continue
		}
		if len(unread) > 0 {
			t.Fatalf("%d bytes unread and nothing handed over", len(unread))
		}
		if fed == len(stream) {
			if c.taken != fed {
				t.Fatalf("%d bytes taken of %d", c.taken, fed)
			}
			return out
		}
		end := min(len(stream), fed+chunk)
		unread = stream[fed:end]
		fed = end
	}
}

func TestRecordCutter(t *testing.T) {
	hello := pqtest.ClientHello(t, &tls.Config{ServerName: "app.example.com"})
	stream := append(bytes.Clone(hello), 20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 3, 7, 8, 9, 22, 3, 3, 0, 0)
	out := cutAll(t, stream, clientPiece, len(stream), 600)
	if bytes.Equal(out, stream) {
		t.Error("the hello was not cut")
	}
	want, _ := payloads(bytes.Clone(stream))
	got, rest := payloads(out)
	if len(rest) > 0 || len(got) != len(want) {
		t.Fatalf("%d records and %d bytes more, want %d", len(got), len(rest), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("record %d differs", i)
		}
	}
	if length := binary.BigEndian.Uint16(out[3:]); length != clientPiece {
		t.Errorf("the first piece has %d bytes, want %d", length, clientPiece)
	}
}

// FuzzRecordCutter cuts anything, in any chunks: what crypto/tls would read says the same as what came.
func FuzzRecordCutter(f *testing.F) {
	f.Add([]byte{22, 3, 1, 0, 4, 1, 0, 0, 0}, uint8(59), uint8(3), uint8(7))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint8(59), uint8(1), uint8(1))
	f.Fuzz(func(t *testing.T, stream []byte, piece, chunk, read uint8) {
		out := cutAll(t, stream, max(1, int(piece)), max(1, int(chunk)), max(1, int(read)))
		want, _ := payloads(bytes.Clone(stream))
		got, _ := payloads(out)
		for i := range want { // an unfinished record at the end may have been cut: it is one more there
			if i >= len(got) || !bytes.Equal(got[i], want[i]) && !(i == len(want)-1 && bytes.HasPrefix(got[i], want[i])) {
				t.Fatalf("record %d differs: %x came of %x", i, out, stream)
			}
		}
	})
}
