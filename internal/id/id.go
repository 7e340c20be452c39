// Package id makes the identifiers of connections and of the management plane's objects: UUIDs of version 7
// (RFC 9562 section 5.7), whose order is that of their making, written as 26 characters of lower-case Crockford base32.
//
//	text := id.New().String() // "01kb3w6v0w7rf8d3z1q0h5m2xa"
package id

import (
	"encoding/base32"
	"errors"

	"github.com/google/uuid"
)

// ID is a UUID.
type ID [16]byte

// Len is how many characters String returns.
const Len = 26

// crockford is Crockford's base32 in lower case.
var crockford = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// New returns a new ID: the time in milliseconds, then what is random. It panics where the system has no randomness left,
// as crypto/rand does.
func New() ID { return ID(uuid.Must(uuid.NewV7())) }

// String returns the ID as 26 characters: 130 bits, of which the first two are zero.
func (id ID) String() string {
	var padded [20]byte // 160 bits are 32 characters, of which the first 6 are of the padding in front
	copy(padded[4:], id[:])
	return crockford.EncodeToString(padded[:])[6:]
}

// errNoID is all that there is to say about any text that is no ID.
var errNoID = errors.New("an ID is 26 characters of Crockford's base32 in lower case")

// Parse reads what String wrote, in that one spelling.
func Parse(text string) (ID, error) {
	if len(text) != Len || text[0] > '7' {
		return ID{}, errNoID
	}
	padded, err := crockford.DecodeString("000000" + text)
	if err != nil || len(padded) != 20 {
		return ID{}, errNoID
	}
	return ID(padded[4:]), nil
}
