package auth

import (
	"net/netip"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// Plane is what a management.Plane takes as Auth: the tokens, limits and one-time passwords of this package.
type Plane struct {
	issuer string
	logins *LoginThrottle
}

// NewPlane returns a Plane. issuer is what apps for one-time passwords call the service; now is the clock; nil: time.Now.
func NewPlane(issuer string, now func() time.Time) *Plane {
	return &Plane{issuer: issuer, logins: NewLoginThrottle(now)}
}

// NewToken returns a new token and its hash: see the function of that name.
func (*Plane) NewToken(p management.Purpose) (token string, hash []byte) { return NewToken(Purpose(p)) }

// HashToken returns the hash of a token: see the function of that name.
func (*Plane) HashToken(p management.Purpose, token string) (hash []byte, ok bool) {
	return HashToken(Purpose(p), token)
}

// BeginLogin counts a try: see LoginThrottle.Begin.
func (p *Plane) BeginLogin(email string, client netip.Addr) (succeeded func(), retryAfter time.Duration, ok bool) {
	try, retryAfter, ok := p.logins.Begin(email, client)
	return try.Succeeded, retryAfter, ok
}

// NewTOTPSecret returns a new secret: see the function of that name.
func (*Plane) NewTOTPSecret() []byte { return NewTOTPSecret() }

// TOTPURI returns what an app reads the secret from: see the function of that name.
func (p *Plane) TOTPURI(account string, secret []byte) string {
	return TOTPURI(p.issuer, account, secret)
}

// CheckTOTP checks a code: see the function of that name.
func (*Plane) CheckTOTP(secret []byte, code string, now time.Time, last int64) (step int64, ok bool) {
	return CheckTOTP(secret, code, now, last)
}
