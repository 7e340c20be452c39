package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // HMAC-SHA-1 is what RFC 6238 and the apps have; its known collisions do not touch HMAC
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// totpPeriod is the seconds that a code is shown for (X of RFC 6238 section 4.1).
const totpPeriod = 30

// NewTOTPSecret returns a new secret for one-time passwords: 20 random bytes, the length of the hash (RFC 4226 section 4, R6). Keep
// it sealed. There are no recovery codes: who lost the secret is let in by whoever may reset it.
func NewTOTPSecret() []byte {
	secret := make([]byte, sha1.Size)
	rand.Read(secret)
	return secret
}

// TOTPText returns a secret as people type it into an app: base32 without padding.
func TOTPText(secret []byte) string {
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(secret)
}

// TOTPURI returns the otpauth URI that apps read from a QR code (github.com/google/google-authenticator/wiki/Key-Uri-Format). It
// contains the secret. issuer names the service, account the user.
func TOTPURI(issuer, account string, secret []byte) string {
	// QueryEscape, as a label must not contain a colon, which PathEscape leaves; but apps read no plus as a space.
	escape := func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
	return fmt.Sprintf("otpauth://totp/%s:%s?secret=%s&issuer=%s&algorithm=SHA1&digits=6&period=%d",
		escape(issuer), escape(account), TOTPText(secret), escape(issuer), totpPeriod)
}

// CheckTOTP checks a one-time password (RFC 6238: SHA-1, 6 digits, 30 s) against the present step and the ones before and after
// it. Spaces in it are ignored. last is the step of the last password that was accepted, 0 for none: that and earlier ones are
// refused, so each password is good once. Where ok, the caller MUST store step as the new last, in the transaction that lets
// the user in. After the clock was put back, passwords are refused until it has caught up.
func CheckTOTP(secret []byte, code string, now time.Time, last int64) (step int64, ok bool) {
	code = strings.ReplaceAll(code, " ", "")
	if len(code) != 6 || len(secret) == 0 || now.Unix() < totpPeriod {
		return 0, false
	}
	present := now.Unix() / totpPeriod
	for at := present - 1; at <= present+1; at++ { // all of them, whichever fits: no step shows in the timing
		if subtle.ConstantTimeCompare([]byte(totp(secret, at)), []byte(code)) == 1 && at > last {
			step, ok = at, true
		}
	}
	return step, ok
}

// totp returns the password of a step: HOTP of RFC 4226 section 5.3.
func totp(secret []byte, step int64) string {
	mac := hmac.New(sha1.New, secret)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(step))) //nolint:gosec // after 1970
	sum := mac.Sum(nil)
	offset := sum[len(sum)-1] & 0xf
	return fmt.Sprintf("%06d", (binary.BigEndian.Uint32(sum[offset:])&0x7fffffff)%1_000_000)
}
