//go:build linux

package main

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
)

// frames returns a stream's first frames, each for itself.
func frames(t *testing.T, id uint64, n int) [][]byte {
	t.Helper()
	var out bytes.Buffer
	var all [][]byte
	s := newSender(&stream{id: id}, &out)
	for range n {
		if err := s.send(); err != nil {
			t.Fatal(err)
		}
		all = append(all, bytes.Clone(out.Bytes()))
		out.Reset()
	}
	return all
}

// receiveAll reads to the end of the stream and returns what ended it.
func receiveAll(s *stream, r io.Reader) error {
	in := newReceiver(s, r)
	for {
		if err := in.receive(); err != nil {
			return err
		}
	}
}

func TestStream(t *testing.T) {
	const n = 500
	sent := slices.Concat(frames(t, 9, n)...)
	s := &stream{id: 9}
	if err := receiveAll(s, &oddReader{sent}); err != io.EOF {
		t.Errorf("the stream ended with %v", err)
	}
	if s.received.Load() != int64(len(sent)) || s.receivedFrames.Load() != n || len(s.times) != n {
		t.Errorf("%d bytes, %d frames and %d times were received, want %d, %d, %[5]d", s.received.Load(), s.receivedFrames.Load(), len(s.times), len(sent), n)
	}
}

// oddReader hands out pieces that end anywhere.
type oddReader struct{ rest []byte }

func (r *oddReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 1+len(r.rest)%1013)], r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func TestStreamNoticesLoss(t *testing.T) {
	f := frames(t, 9, 6)
	other := frames(t, 10, 6)
	changed := bytes.Clone(f[3])
	changed[frameHeader] ^= 1
	for _, tt := range []struct {
		name    string
		stream  [][]byte
		cut     int // bytes off the end
		wantErr error
	}{
		{"a byte changed", [][]byte{f[0], f[1], f[2], changed, f[4], f[5]}, 0, errWrongBytes},
		{"a byte lost", [][]byte{f[0], f[1][:len(f[1])-1], f[2], f[3], f[4], f[5]}, 0, errWrongBytes},
		{"a byte twice", [][]byte{f[0], f[1], f[1][len(f[1])-1:], f[2], f[3]}, 0, errWrongBytes},
		{"a frame lost", [][]byte{f[0], f[2], f[3]}, 0, errWrongBytes},
		{"a frame twice", [][]byte{f[0], f[1], f[1], f[2]}, 0, errWrongBytes},
		{"frames in another order", [][]byte{f[0], f[2], f[1], f[3]}, 0, errWrongBytes},
		{"a frame of another stream", [][]byte{f[0], other[1], f[2]}, 0, errWrongBytes},
		{"a payload of another stream", [][]byte{f[0], f[1][:frameHeader], other[1][frameHeader:], f[2]}, 0, errWrongBytes},
		{"cut off in a payload", f, 1, io.ErrUnexpectedEOF},
		{"cut off in a header", f, len(f[5]) - 1, io.ErrUnexpectedEOF},
		{"wrong, then cut off", [][]byte{f[0], changed[:frameHeader+1]}, 0, errWrongBytes},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := slices.Concat(tt.stream...)
			if err := receiveAll(&stream{id: 9}, bytes.NewReader(all[:len(all)-tt.cut])); !errors.Is(err, tt.wantErr) {
				t.Errorf("the stream ended with %v, want %v", err, tt.wantErr)
			}
		})
	}
}

// A whole frame that is missing at the end is seen by counting alone.
func TestStreamCountsTheEnd(t *testing.T) {
	f := frames(t, 9, 3)
	s := &stream{id: 9}
	if err := receiveAll(s, bytes.NewReader(slices.Concat(f[:2]...))); err != io.EOF {
		t.Errorf("the stream ended with %v", err)
	}
	if got, want := s.received.Load(), int64(len(f[0])+len(f[1])); got != want {
		t.Errorf("%d bytes were received, want %d", got, want)
	}
}

// FuzzReceive: nothing that arrives does more than end the stream.
func FuzzReceive(f *testing.F) {
	var out bytes.Buffer
	s := newSender(&stream{id: 1}, &out)
	for range 3 {
		if err := s.send(); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(out.Bytes())
	f.Add(out.Bytes()[:100])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, content []byte) {
		s := &stream{id: 1}
		if err := receiveAll(s, bytes.NewReader(content)); err == nil || s.received.Load() > int64(len(content)) {
			t.Errorf("%d bytes of %d were received, %v", s.received.Load(), len(content), err)
		}
	})
}
