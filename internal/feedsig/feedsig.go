// Package feedsig signs and verifies the set of domains that a management plane publishes, so that an edge
// serves what the holder of the signing key said, whoever runs the server or the network in between.
//
// A signature travels in the header PQProxy-Signature, beside the body it is for:
//
//	PQProxy-Signature: keyid="f1d2d2f924e986ac", ed25519=:MEUCIQ…:, mldsa65=:kqT8…:
//
// What is signed is the text `pqproxy-set-v1`, a line feed, and the SHA-512 of the body in 128 lower-case
// hexadecimal digits. The body is meant after content decoding, so that a server may compress as it likes;
// it is hashed while it is received, so that no set has to be held; and the first line keeps a signature
// from meaning anything elsewhere, should a key be used for something else. The revision, which keeps old
// sets from being replayed, is in the body.
//
// # Two algorithms
//
// Each key is a pair, Ed25519 (RFC 8032 section 5.1) and ML-DSA-65 (FIPS 204, with an empty context), and
// both signatures must verify. Forging a set then takes breaking both: ML-DSA holds against a quantum
// computer, and Ed25519 holds if the younger scheme or its implementation turns out to have a flaw. A header
// with one of them alone is refused, or whoever breaks one would send just that one.
//
// # Header syntax
//
// The header is a dictionary of structured fields (RFC 9651 section 3.2, before that RFC 8941) with exactly
// three members: a string and two byte sequences (sections 3.3.3 and 3.3.5). Only what Sign writes is read,
// give or take white space and order: no other members, no parameters, no escapes in the string, no member
// twice (where a dictionary would let the last one win), base64 padded and canonical. Since nothing else
// carries meaning, a signature has one form, and what is not understood is not passed over.
//
// # Keys and rotation
//
// Keys are text files of one line; see PrivateKey.Marshal and PublicKey.Marshal. The key ID is no secret and
// proves nothing; it says which key to try, so that a changed set can be told from a foreign key. To rotate:
// give the edges the new public key beside the old one, then give the management plane the new private key,
// then take the old public key from the edges.
//
//	key, err := feedsig.Generate(rand.Reader)
//	header := key.Sign(sha512.Sum512(body))
//	err = feedsig.Keys{key.Public()}.Verify(header, sha512.Sum512(body))
package feedsig

import (
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"filippo.io/mldsa"
)

// Header is the name of the HTTP header that carries a signature.
const Header = "PQProxy-Signature"

// context is the line that begins what is signed; another format of sets gets another.
const context = "pqproxy-set-v1\n"

// The causes for which Keys.Verify refuses; errors.Is finds them.
var (
	ErrNoSignature = errors.New("the set carries no signature, so anyone between here and the management plane could have written it")
	ErrMalformed   = errors.New("the signature header is malformed")
	ErrUnknownKey  = errors.New("the set is signed with a key that is not trusted here")
	ErrEd25519     = errors.New("the ed25519 signature does not fit the set: it was changed on the way, or signed with another key")
	ErrMLDSA65     = errors.New("the mldsa65 signature does not fit the set: it was changed on the way, or signed with another key")
)

// Keys are the public keys that are trusted: one, or two while keys are rotated. A key ID that is in the
// list twice is that of one key. No keys trust nothing.
type Keys []PublicKey

// Verify returns nil if header is the value of Header for a set with the SHA-512 digest, by one of the keys
// in k. Else it returns an error that says which check failed, wrapping one of the variables above. Checks
// are made in the order of the variables, and header is empty where the answer has none.
//
// An answer that has the header more than once is to be refused before: give the values joined with commas,
// as RFC 9110 section 5.2 does, and they are.
func (k Keys) Verify(header string, digest [sha512.Size]byte) error {
	if header == "" {
		return fmt.Errorf("%w; make the management plane sign (%s), or take the keys from the edge's configuration", ErrNoSignature, Header)
	}
	sig, err := parseHeader(header)
	if err != nil {
		return err
	}
	for _, key := range k {
		if key.id == sig.keyID {
			return key.verify(sig, digest)
		}
	}
	return fmt.Errorf("%w: it names %s; trusted are %s", ErrUnknownKey, sig.keyID, k.ids())
}

func (k Keys) ids() string {
	if len(k) == 0 {
		return "none"
	}
	ids := make([]string, len(k))
	for i, key := range k {
		ids[i] = key.id
	}
	return strings.Join(ids, ", ")
}

// Verify is Keys.Verify for p as the only key.
func (p PublicKey) Verify(header string, digest [sha512.Size]byte) error {
	return Keys{p}.Verify(header, digest)
}

func (p PublicKey) verify(sig *signature, digest [sha512.Size]byte) error {
	text := message(digest)
	if !ed25519.Verify(p.ed25519, text, sig.ed25519) {
		return fmt.Errorf("%w (key %s)", ErrEd25519, p.id)
	}
	if err := mldsa.Verify(p.mldsa65, text, sig.mldsa65, nil); err != nil {
		return fmt.Errorf("%w (key %s)", ErrMLDSA65, p.id)
	}
	return nil
}

// Sign returns the value of Header for a set with the SHA-512 digest: about 4.6 KB. Signing is
// deterministic (RFC 8032 section 5.1.6, FIPS 204 section 3.4), so that the same set has the same header
// whenever it is asked for. It may be called from several goroutines.
func (k *PrivateKey) Sign(digest [sha512.Size]byte) (header string) {
	text := message(digest)
	pq, err := k.mldsa65.SignDeterministic(text, nil)
	if err != nil {
		panic("feedsig: " + err.Error()) // without options there is nothing that could be wrong
	}
	sig := signature{keyID: k.public.id, ed25519: ed25519.Sign(k.ed25519, text), mldsa65: pq}
	return sig.String()
}

// message returns what is signed for a set with that digest.
func message(digest [sha512.Size]byte) []byte {
	return hex.AppendEncode([]byte(context), digest[:])
}

// signature is what a header says.
type signature struct {
	keyID            string
	ed25519, mldsa65 []byte
}

func (s *signature) String() string {
	return fmt.Sprintf(`keyid="%s", ed25519=:%s:, mldsa65=:%s:`, s.keyID,
		base64.StdEncoding.EncodeToString(s.ed25519), base64.StdEncoding.EncodeToString(s.mldsa65))
}

// maxHeader is well above the 4.6 KB of a header, and what HTTP servers take in one line.
const maxHeader = 8 << 10

// parseHeader reads the value of Header. Errors wrap ErrMalformed and quote at most the member's name: the
// rest is long and says nothing.
func parseHeader(header string) (*signature, error) {
	if len(header) > maxHeader {
		return nil, malformed("it has %d bytes; at most %d are read", len(header), maxHeader)
	}
	var s signature
	for _, member := range strings.Split(header, ",") {
		// RFC 9651 section 4.2.2: OWS, so tabs too, around the commas of a dictionary.
		key, value, ok := strings.Cut(strings.Trim(member, " \t"), "=")
		if !ok {
			return nil, malformed("a member has no value; each is written KEY=VALUE")
		}
		var err error
		switch key {
		case "keyid":
			err = s.setKeyID(value)
		case "ed25519":
			err = setBytes(&s.ed25519, key, value, ed25519.SignatureSize)
		case "mldsa65":
			err = setBytes(&s.mldsa65, key, value, mldsa.MLDSA65SignatureSize)
		default:
			err = malformed("it has the member %.32q; there are keyid, ed25519 and mldsa65 alone", key)
		}
		if err != nil {
			return nil, err
		}
	}
	switch {
	case s.keyID == "":
		return nil, malformed("keyid is missing")
	case s.ed25519 == nil:
		return nil, malformed("ed25519 is missing; both signatures are required")
	case s.mldsa65 == nil:
		return nil, malformed("mldsa65 is missing; both signatures are required")
	}
	return &s, nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

func (s *signature) setKeyID(value string) error {
	if s.keyID != "" {
		return malformed("keyid is given twice")
	}
	id, opened := strings.CutPrefix(value, `"`)
	id, closed := strings.CutSuffix(id, `"`)
	if !opened || !closed || !isKeyID(id) {
		return malformed("keyid is not %d lower-case hexadecimal digits in quotation marks", keyIDSize)
	}
	s.keyID = id
	return nil
}

func setBytes(to *[]byte, key, value string, size int) error {
	if *to != nil {
		return malformed("%s is given twice", key)
	}
	text, opened := strings.CutPrefix(value, ":")
	text, closed := strings.CutSuffix(text, ":")
	if !opened || !closed {
		return malformed("%s is not base64 between colons", key)
	}
	b, err := decode64(text)
	if err != nil {
		return malformed("%s is not padded base64 (RFC 4648 section 4)", key)
	}
	if len(b) != size {
		return malformed("%s has %d bytes; a signature has %d", key, len(b), size)
	}
	*to = b
	return nil
}

// decode64 takes the one form that encoding gives: Go's decoder goes over line breaks, and without Strict
// over bits that are set behind the end.
func decode64(text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("a line break in base64")
	}
	return base64.StdEncoding.Strict().DecodeString(text)
}
