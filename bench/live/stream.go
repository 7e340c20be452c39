//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// A checked stream is one direction of one connection: frames of a 32-byte header and a payload, sent at a steady
// pace. The header names the stream and numbers the frame; the payload goes on in the pattern where the frame before
// ended, and each stream begins at another place of it. The receiver compares every byte. Hence a byte that is lost,
// doubled, changed, moved, or taken from another connection or direction is noticed, and so is one that never comes:
// both ends are in this program and count.

// A frame: 4 bytes of magic, 4 of the payload's length, 8 of the stream's number, 8 of the frame's, from 0, 8 of the
// time at which it was sent, in ns since clockStart. Big endian.
const (
	frameHeader = 32
	frameMagic  = 0x70716c76
	// mostPayload makes the longest frame a third of a TLS record: they come in one piece and in two, and with others.
	mostPayload = 5000
)

// clockStart is where the times in frames count from: monotonic, and one clock for both ends.
var clockStart = time.Now()

// stream is one direction of one connection. One goroutine sends and one receives.
type stream struct {
	id uint64 // unique in a run, from 1

	sent, received             atomic.Int64 // bytes, headers included: written without error, compared and right
	sentFrames, receivedFrames atomic.Int64
	times                      []sampleTime // of each frame; the receiver's, to be read when it has ended
}

// sampleTime is when a frame arrived and how long it took from one end to the other.
type sampleTime struct {
	at, took time.Duration // at: since clockStart
}

// offset is where in the pattern the payload byte number n of the stream is.
func (s *stream) offset(n int64) int64 {
	const step = 104_729 // prime: neighbours differ everywhere
	return int64(s.id)*step%lab.PatternPeriod + n
}

// sender writes the frames of a stream.
type sender struct {
	*stream
	w       io.Writer
	random  *rand.Rand
	payload int64 // bytes sent so far
	buf     []byte
}

func newSender(s *stream, w io.Writer) *sender {
	return &sender{stream: s, w: w, random: rand.New(rand.NewPCG(s.id, 2)), buf: make([]byte, frameHeader+mostPayload)}
}

// send writes the next frame, of random size, in one Write.
func (s *sender) send() error {
	n := 1 + s.random.Int64N(mostPayload)
	frame := s.buf[:frameHeader+n]
	binary.BigEndian.PutUint32(frame, frameMagic)
	binary.BigEndian.PutUint32(frame[4:], uint32(n))
	binary.BigEndian.PutUint64(frame[8:], s.id)
	binary.BigEndian.PutUint64(frame[16:], uint64(s.sentFrames.Load()))
	copy(frame[frameHeader:], lab.PatternAt(s.offset(s.payload), n))
	binary.BigEndian.PutUint64(frame[24:], uint64(time.Since(clockStart)))
	if _, err := s.w.Write(frame); err != nil {
		return err
	}
	s.payload += n
	s.sentFrames.Add(1)
	s.sent.Add(int64(len(frame)))
	return nil
}

// errWrongBytes is the error of receive for a stream that is not what was sent.
var errWrongBytes = errors.New("wrong bytes")

// receiver compares the frames of a stream.
type receiver struct {
	*stream
	r       io.Reader
	payload int64 // bytes received so far
	buf     []byte
}

func newReceiver(s *stream, r io.Reader) *receiver {
	return &receiver{stream: s, r: r, buf: make([]byte, frameHeader+mostPayload)}
}

// receive reads and compares the next frame. It returns io.EOF where the stream ends between two frames, and an
// error that is errWrongBytes for one that is not the next.
func (r *receiver) receive() error {
	header := r.buf[:frameHeader]
	if _, err := io.ReadFull(r.r, header); err != nil {
		return err // io.EOF at a frame's beginning alone
	}
	n := int64(binary.BigEndian.Uint32(header[4:]))
	id, number := binary.BigEndian.Uint64(header[8:]), binary.BigEndian.Uint64(header[16:])
	want := uint64(r.receivedFrames.Load())
	if binary.BigEndian.Uint32(header) != frameMagic || n < 1 || n > mostPayload || id != r.id || number != want {
		return fmt.Errorf("%w: %x is no header of stream %d, frame %d", errWrongBytes, header, r.id, want)
	}
	sentAt := time.Duration(binary.BigEndian.Uint64(header[24:]))
	payload := r.buf[frameHeader : frameHeader+n]
	if got, err := io.ReadFull(r.r, payload); err != nil {
		if !bytes.Equal(payload[:got], lab.PatternAt(r.offset(r.payload), int64(got))) {
			return fmt.Errorf("%w in the last %d bytes of stream %d, then %w", errWrongBytes, got, r.id, err)
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if !bytes.Equal(payload, lab.PatternAt(r.offset(r.payload), n)) {
		return fmt.Errorf("%w in the payload of stream %d, frame %d", errWrongBytes, r.id, want)
	}
	now := time.Since(clockStart)
	r.times = append(r.times, sampleTime{at: now, took: now - sentAt})
	r.payload += n
	r.receivedFrames.Add(1)
	r.received.Add(frameHeader + n)
	return nil
}
