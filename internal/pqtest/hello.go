package pqtest

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"
)

// TLS numbers used here (RFC 8446 sections 4, 4.2 and 5.1; RFC 7685).
const (
	recordAlert     = 21
	recordHandshake = 22
	recordHead      = 5       // type, version, length
	maxRecord       = 1 << 14 // payload of one record

	messageClientHello = 1
	messageHead        = 4 // type, length of 24 bits

	extServerName = 0
	extPadding    = 21
	extPSK        = 41
	extEarlyData  = 42
	extKeyShare   = 51
)

// Hello is a ClientHello taken apart (RFC 8446 section 4.1.2), to be changed and put together again. Bytes fills
// in all lengths, so that what is malformed is only what a test puts into it.
//
// The With functions below do the usual changes on wire bytes; Hello is for the others. Neither check their
// input: what is no ClientHello panics, being a mistake in the test.
type Hello struct {
	RecordVersion uint16 // of the first record; Bytes gives it to all
	Version       uint16 // legacy_version
	Random        []byte
	SessionID     []byte
	CipherSuites  []byte
	Compression   []byte
	Extensions    []Extension
}

// Extension is one extension of a hello, in its order.
type Extension struct {
	Type uint16
	Data []byte
}

// ClientHello returns the records that crypto/tls sends first as a client with that config: a hello that a
// server answers like any other, although nobody holds its keys.
func ClientHello(tb testing.TB, cfg *tls.Config) []byte {
	tb.Helper()
	var sink helloSink
	if err := tls.Client(&sink, cfg).Handshake(); !errors.Is(err, errSink) {
		tb.Fatalf("writing a ClientHello: %v", err)
	}
	return sink.wrote
}

// ParseHello takes apart a ClientHello, in any number of records.
func ParseHello(hello []byte) *Hello {
	message := handshakeMessage(hello)
	if message[0] != messageClientHello {
		panic(fmt.Sprintf("handshake message of type %d is no ClientHello", message[0]))
	}
	r := reader(message[messageHead:])
	h := &Hello{
		RecordVersion: binary.BigEndian.Uint16(hello[1:]),
		Version:       r.uint16(),
		Random:        r.bytes(32),
		SessionID:     r.bytes(int(r.bytes(1)[0])),
		CipherSuites:  r.vector16(),
		Compression:   r.bytes(int(r.bytes(1)[0])),
	}
	if len(r) == 0 {
		return h
	}
	for exts := reader(r.vector16()); len(exts) > 0; {
		h.Extensions = append(h.Extensions, Extension{exts.uint16(), exts.vector16()})
	}
	return h
}

// Bytes puts the hello together, in as few records as it takes.
func (h *Hello) Bytes() []byte {
	var exts []byte
	for _, e := range h.Extensions {
		exts = binary.BigEndian.AppendUint16(exts, e.Type)
		exts = appendVector16(exts, e.Data)
	}
	body := binary.BigEndian.AppendUint16(nil, h.Version)
	body = append(body, h.Random...)
	body = append(append(body, byte(len(h.SessionID))), h.SessionID...)
	body = appendVector16(body, h.CipherSuites)
	body = append(append(body, byte(len(h.Compression))), h.Compression...)
	body = appendVector16(body, exts)
	message := append([]byte{messageClientHello, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
	return appendRecords(nil, message, h.RecordVersion, maxRecord)
}

// Extension returns the data of the first extension of that type.
func (h *Hello) Extension(typ uint16) ([]byte, bool) {
	i := h.index(typ)
	if i < 0 {
		return nil, false
	}
	return h.Extensions[i].Data, true
}

// SetExtension replaces the extension of that type, or adds one: at the end, but before pre_shared_key, which
// has to stay last (RFC 8446 section 4.2.11).
func (h *Hello) SetExtension(typ uint16, data []byte) {
	if i := h.index(typ); i >= 0 {
		h.Extensions[i].Data = data
		return
	}
	at := len(h.Extensions)
	if psk := h.index(extPSK); psk >= 0 {
		at = psk
	}
	h.Extensions = slices.Insert(h.Extensions, at, Extension{typ, data})
}

// RemoveExtension removes all extensions of that type.
func (h *Hello) RemoveExtension(typ uint16) {
	h.Extensions = slices.DeleteFunc(h.Extensions, func(e Extension) bool { return e.Type == typ })
}

func (h *Hello) index(typ uint16) int {
	return slices.IndexFunc(h.Extensions, func(e Extension) bool { return e.Type == typ })
}

// WithExtension returns hello with an extension of that type and data in the place of the one it had, if any:
// a server_name (0) that is malformed, for example.
func WithExtension(hello []byte, typ uint16, data []byte) []byte {
	h := ParseHello(hello)
	h.SetExtension(typ, data)
	return h.Bytes()
}

// WithoutExtension returns hello without the extension of that type.
func WithoutExtension(hello []byte, typ uint16) []byte {
	h := ParseHello(hello)
	h.RemoveExtension(typ)
	return h.Bytes()
}

// WithSNI returns hello asking for name, which may be any bytes, in a server_name extension that is otherwise
// as it should be (RFC 6066 section 3).
func WithSNI(hello, name []byte) []byte {
	const hostName = 0
	entry := appendVector16([]byte{hostName}, name)
	return WithExtension(hello, extServerName, appendVector16(nil, entry))
}

// WithoutSNI returns hello asking for no name.
func WithoutSNI(hello []byte) []byte {
	return WithoutExtension(hello, extServerName)
}

// WithEarlyData returns hello announcing early data (RFC 8446 section 4.2.10).
func WithEarlyData(hello []byte) []byte {
	return WithExtension(hello, extEarlyData, nil)
}

// WithKeyShares returns hello with only those of its key shares that are of the groups given. A server that
// accepts another group it supports asks for a share of it by HelloRetryRequest; with none at all every
// server has to (RFC 8446 section 4.2.8).
func WithKeyShares(hello []byte, groups ...tls.CurveID) []byte {
	h := ParseHello(hello)
	data, ok := h.Extension(extKeyShare)
	if !ok {
		panic("hello without key_share")
	}
	r := reader(data)
	var kept []byte
	for shares := reader(r.vector16()); len(shares) > 0; {
		group, share := shares.uint16(), shares.vector16()
		if slices.Contains(groups, tls.CurveID(group)) {
			kept = appendVector16(binary.BigEndian.AppendUint16(kept, group), share)
		}
	}
	h.SetExtension(extKeyShare, appendVector16(nil, kept))
	return h.Bytes()
}

// WithPadding returns hello padded (RFC 7685) to size bytes on the wire, record headers included. Where no
// padding gives just that, it is a few bytes longer; a hello that long already is returned as it is.
func WithPadding(hello []byte, size int) []byte {
	h := ParseHello(hello)
	h.RemoveExtension(extPadding)
	padded := h.Bytes()
	if len(padded) >= size {
		return hello
	}
	// The extension's head takes 4 bytes, and each record that it makes more takes 5: below this first
	// guess there is nothing to find.
	overhead := 4 + recordHead*(size/maxRecord+1)
	for n := max(0, size-len(padded)-overhead); len(padded) < size; n++ {
		h.SetExtension(extPadding, make([]byte, n))
		padded = h.Bytes()
	}
	return padded
}

// SplitRecords returns the handshake message of hello in records of at most n bytes of payload, 1 or more. The
// whole stays one byte string: to have it arrive in pieces, write it in pieces.
func SplitRecords(hello []byte, n int) []byte {
	return appendRecords(nil, handshakeMessage(hello), binary.BigEndian.Uint16(hello[1:]), n)
}

// ReadAlert reads one TLS record in clear and returns the alert in it: level 2 is fatal, codes are those of RFC
// 8446 section 6. It is not ok if the record is another one, or the connection ended or was reset before it.
// A silent peer fails the test.
func ReadAlert(tb testing.TB, conn net.Conn) (level, code byte, ok bool) {
	tb.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(bound(tb))); err != nil {
		tb.Fatal(err)
	}
	var record [recordHead + 2]byte
	if _, err := io.ReadFull(conn, record[:]); err != nil {
		if timeout, is := errors.AsType[net.Error](err); is && timeout.Timeout() {
			tb.Fatalf("waiting for an alert: %v", err)
		}
		return 0, 0, false
	}
	if record[0] != recordAlert || binary.BigEndian.Uint16(record[3:]) != 2 {
		return 0, 0, false
	}
	return record[recordHead], record[recordHead+1], true
}

// handshakeMessage joins the payload of the records and checks that it is one message.
func handshakeMessage(records []byte) []byte {
	var message []byte
	for r := reader(records); len(r) > 0; {
		if typ := r.bytes(1)[0]; typ != recordHandshake {
			panic(fmt.Sprintf("record of type %d is no handshake", typ))
		}
		r.uint16()
		message = append(message, r.vector16()...)
	}
	if len(message) < messageHead || int(message[1])<<16|int(message[2])<<8|int(message[3]) != len(message)-messageHead {
		panic("records do not hold one whole handshake message")
	}
	return message
}

func appendRecords(b, message []byte, version uint16, n int) []byte {
	for payload := range slices.Chunk(message, n) {
		b = append(b, recordHandshake)
		b = binary.BigEndian.AppendUint16(b, version)
		b = appendVector16(b, payload)
	}
	return b
}

// appendVector16 appends data behind its length in 16 bits.
func appendVector16(b, data []byte) []byte {
	if len(data) > 0xffff {
		panic(fmt.Sprintf("%d bytes do not fit a length of 16 bits", len(data)))
	}
	return append(binary.BigEndian.AppendUint16(b, uint16(len(data))), data...)
}

// reader takes values off the front of wire bytes and panics where there are too few.
type reader []byte

func (r *reader) bytes(n int) []byte {
	b := (*r)[:n:n]
	*r = (*r)[n:]
	return b
}

func (r *reader) uint16() uint16   { return binary.BigEndian.Uint16(r.bytes(2)) }
func (r *reader) vector16() []byte { return r.bytes(int(r.uint16())) }

var errSink = errors.New("end of the hello")

// helloSink is the connection that a client writes its hello to. It answers with errSink, so that the client
// stops there.
type helloSink struct {
	net.Conn
	wrote []byte
}

func (s *helloSink) Write(p []byte) (int, error) {
	s.wrote = append(s.wrote, p...)
	return len(p), nil
}

func (s *helloSink) Read([]byte) (int, error) { return 0, errSink }
