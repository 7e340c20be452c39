package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"time"
)

// Purpose says what a token is for. It goes into the hash, so that a token of one purpose is never found as one of another,
// even if all of them were kept in one table.
type Purpose string

// The purposes.
const (
	Session           Purpose = "session"
	PasswordReset     Purpose = "password-reset"
	Invitation        Purpose = "invitation"
	EmailVerification Purpose = "email-verification"
)

// How long tokens are good for. The caller stores when a token was made and asks the clock; a token of a link is good once.
const (
	SessionLifetime = 30 * 24 * time.Hour // from signing in, however busy the session is: a stolen cookie does not live for ever
	SessionIdle     = 24 * time.Hour      // from the last request: who comes back tomorrow morning need not sign in again
	SessionTouch    = time.Minute         // store the time of the last request no more often than this: it is a write

	PasswordResetLifetime     = time.Hour          // long enough for a slow mail, short for a mailbox that is read later by somebody else
	EmailVerificationLifetime = 24 * time.Hour     // until the mail is read
	InvitationLifetime        = 7 * 24 * time.Hour // a colleague's holidays
)

// tokenChars is the length of a token: 32 bytes in base64url without padding.
const tokenChars = 43

// NewToken returns a new token of 32 random bytes, as 43 characters of base64url (RFC 4648 section 5), and the hash under which
// it is stored. The token itself is given away once and kept nowhere.
func NewToken(p Purpose) (secret string, hash []byte) {
	var random [32]byte
	rand.Read(random[:])
	return base64.RawURLEncoding.EncodeToString(random[:]), hashToken(p, random[:])
}

// HashToken returns the hash by which a token that somebody presents is looked up, and false if it is no token at all. The
// lookup by hash leaks nothing of use through its timing: nobody can choose hashes.
func HashToken(p Purpose, secret string) (hash []byte, ok bool) {
	if len(secret) != tokenChars {
		return nil, false
	}
	// Strict: the last character has two bits to spare, and a token has one spelling.
	random, err := base64.RawURLEncoding.Strict().DecodeString(secret)
	if err != nil || len(random) != 32 {
		return nil, false
	}
	return hashToken(p, random), true
}

// hashToken is a plain SHA-256: 256 random bits need no slow hash.
func hashToken(p Purpose, random []byte) []byte {
	sum := sha256.Sum256(append([]byte("pqproxy "+string(p)+"\n"), random...))
	return sum[:]
}

// SessionEnds returns when a session ends that was made and last used at these times. It is over at that moment, not after it.
func SessionEnds(created, used time.Time) time.Time {
	end, idle := created.Add(SessionLifetime), used.Add(SessionIdle)
	if idle.Before(end) {
		return idle
	}
	return end
}
