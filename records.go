package pqproxy

import (
	"encoding/binary"
)

// Parts of a record (RFC 8446, section 5.1).
const (
	recordHeaderLen  = 5
	contentHandshake = 22
	maxPlaintext     = 16 << 10
)

// How many bytes of a handshake message in clear are handed to crypto/tls in one record. It reads each record into a
// buffer that begins at 576 bytes (a header and 512 bytes to spare, rounded up by the allocator), that doubles at
// least, and that it keeps for as long as the connection is open, beside another that collects the message. With a
// hybrid hello in one record they come to 4,096 bytes, in pieces to 2,624; with a ServerHello to 3,072 and
// 2,432, where the session tickets that follow make the first buffer 1,152 bytes long anyway. How a message is cut
// into records is no part of it.
const (
	clientPiece   = 576 - 512 - recordHeaderLen
	upstreamPiece = 1152 - 512 - recordHeaderLen
)

// recordCutter hands over the records of a handshake so that no read goes beyond the end of one. When the handshake is
// complete, crypto/tls has nothing of the next.
type recordCutter struct {
	header [recordHeaderLen]byte
	have   int // bytes of header that have come
	owed   int // bytes of header, its last, that are still to be handed over
	piece  int // payload that is still to be handed over under this header
	later  int // payload of the same record that comes under further headers
	taken  int // bytes taken from the stream so far
}

// cut copies from the stream to p, and returns how much of each was used. It copies nothing where the stream must
// go on first. Handshake records longer than piece bytes are cut.
func (c *recordCutter) cut(p, stream []byte, piece int) (copied, used int) {
	for {
		switch {
		case c.owed > 0:
			n := copy(p, c.header[recordHeaderLen-c.owed:])
			c.owed -= n
			return n, used
		case c.piece > 0:
			n := copy(p, stream[:min(len(stream), c.piece)])
			c.piece -= n
			c.taken += n
			return n, used + n
		case c.later > 0:
			c.begin(c.later, piece)
		default:
			n := copy(c.header[c.have:], stream)
			c.have += n
			c.taken += n
			used += n
			if stream = stream[n:]; c.have < recordHeaderLen {
				return 0, used
			}
			c.have = 0
			c.begin(int(binary.BigEndian.Uint16(c.header[3:])), piece)
		}
	}
}

// begin makes a header for the next length bytes of payload, or for the first of them.
func (c *recordCutter) begin(length, piece int) {
	c.piece, c.later, c.owed = length, 0, recordHeaderLen
	if c.header[0] == contentHandshake && length <= maxPlaintext && length > piece {
		c.piece, c.later = piece, length-piece
	}
	binary.BigEndian.PutUint16(c.header[3:], uint16(c.piece))
}
