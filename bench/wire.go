//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// The harness's own protocol, spoken by its clients to its upstreams through the proxy under test. A request is one
// frame; the answer to each operation is written at its constant. Every byte that comes back is compared with what
// must come back, so that a proxy which loses, repeats or mixes up bytes ends the run instead of looking fast.
const frameSize = 64

var frameMagic = [4]byte{'b', 'n', 'c', 'h'}

// operation is byte 4 of a request frame.
type operation byte

const (
	opReport operation = 1 + iota // answered by a frame that says how this connection reached the upstream
	opEcho                        // answered by the frame itself
	opDown                        // answered by frame.n bytes of the pattern
	opUp                          // followed by frame.n bytes of the pattern, then answered by the frame itself
)

// frame is one request or answer: magic, operation, and 8 bytes of n at offset 8; a report has its facts from
// offset 16 on. The rest is zero.
type frame [frameSize]byte

func newFrame(op operation, n int64) (f frame) {
	copy(f[:], frameMagic[:])
	f[4] = byte(op)
	binary.BigEndian.PutUint64(f[8:], uint64(n))
	return f
}

func (f *frame) op() operation { return operation(f[4]) }
func (f *frame) n() int64      { return int64(binary.BigEndian.Uint64(f[8:])) }

func (f *frame) check() error {
	if !bytes.Equal(f[:4], frameMagic[:]) {
		return fmt.Errorf("malformed frame %x", f[:])
	}
	return nil
}

// headerPlace is where the PROXY header of a connection was found.
type headerPlace byte

const (
	headerAbsent    headerPlace = iota
	headerClear                 // before any TLS, as the PROXY protocol's text means it
	headerInsideTLS             // as the first application data, which is what caddy-l4 does towards TLS upstreams
)

func (p headerPlace) String() string {
	return [...]string{"absent", "clear", "inside_tls"}[p]
}

// report is what an upstream knows about a connection.
type report struct {
	place   headerPlace
	client  netip.AddrPort // from the PROXY header; only the port travels in the frame
	group   tls.CurveID    // of the upstream's TLS, 0 for plain TCP
	resumed bool
}

func (r report) frame() frame {
	f := newFrame(opReport, 0)
	f[16] = byte(r.place)
	binary.BigEndian.PutUint16(f[18:], r.client.Port())
	binary.BigEndian.PutUint16(f[20:], uint16(r.group))
	if r.resumed {
		f[22] = 1
	}
	return f
}

// parseReport reads a report's answer. Its client has no address, only the port.
func parseReport(f *frame) (report, error) {
	if err := f.check(); err != nil {
		return report{}, err
	}
	if f.op() != opReport || headerPlace(f[16]) > headerInsideTLS {
		return report{}, fmt.Errorf("not a report: %x", f[:])
	}
	return report{
		place:   headerPlace(f[16]),
		client:  netip.AddrPortFrom(netip.Addr{}, binary.BigEndian.Uint16(f[18:])),
		group:   tls.CurveID(binary.BigEndian.Uint16(f[20:])),
		resumed: f[22] == 1,
	}, nil
}

// maxProxyV1 is the longest v1 header with its CRLF (PROXY protocol, section 2.1).
const maxProxyV1 = 107

// readProxyV1 reads a v1 header if one is next and returns the client it names. An UNKNOWN header, which a proxy
// sends for connections of its own, gives the zero AddrPort. It returns found false, and consumes nothing, when the
// stream begins otherwise.
func readProxyV1(r *bufio.Reader) (client netip.AddrPort, found bool, err error) {
	first, err := r.Peek(1)
	if err != nil {
		return client, false, err
	}
	if first[0] != 'P' {
		return client, false, nil
	}
	line, err := r.ReadSlice('\n')
	if err != nil {
		return client, false, fmt.Errorf("reading PROXY header: %w", err)
	}
	client, err = parseProxyV1(string(line))
	return client, err == nil, err
}

func parseProxyV1(line string) (netip.AddrPort, error) {
	text, ok := strings.CutSuffix(line, "\r\n")
	if !ok || len(line) > maxProxyV1 {
		return netip.AddrPort{}, fmt.Errorf("malformed PROXY header %q", line)
	}
	fields := strings.Split(text, " ")
	if len(fields) >= 2 && fields[0] == "PROXY" && fields[1] == "UNKNOWN" {
		return netip.AddrPort{}, nil
	}
	if len(fields) != 6 || fields[0] != "PROXY" || (fields[1] != "TCP4" && fields[1] != "TCP6") {
		return netip.AddrPort{}, fmt.Errorf("malformed PROXY header %q", line)
	}
	addr, err := netip.ParseAddr(fields[2])
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("PROXY header %q: %w", line, err)
	}
	port, err := strconv.ParseUint(fields[4], 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("PROXY header %q: %w", line, err)
	}
	return netip.AddrPortFrom(addr, uint16(port)), nil
}

// relayChunk is one Write of the senders and one Read of the receivers: four full TLS records.
const relayChunk = lab.PatternChunk

// sendPattern writes n bytes of the pattern.
func sendPattern(w io.Writer, n int64) error {
	for sent := int64(0); sent < n; {
		chunk := lab.PatternAt(sent, min(relayChunk, n-sent))
		if _, err := w.Write(chunk); err != nil {
			return fmt.Errorf("sending at %d of %d: %w", sent, n, err)
		}
		sent += int64(len(chunk))
	}
	return nil
}

// receivePattern reads n bytes, using buf, and compares each with the pattern.
func receivePattern(r io.Reader, n int64, buf []byte) error {
	for received := int64(0); received < n; {
		got, err := r.Read(buf[:min(int64(len(buf)), relayChunk, n-received)])
		if !bytes.Equal(buf[:got], lab.PatternAt(received, int64(got))) {
			return fmt.Errorf("wrong bytes between %d and %d", received, received+int64(got))
		}
		received += int64(got)
		if err != nil && received < n {
			return fmt.Errorf("receiving at %d of %d: %w", received, n, err)
		}
	}
	return nil
}
