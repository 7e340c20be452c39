package auth

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// How often somebody may try to sign in, in a minute and at once. An account has fewer tries than an address, which a whole
// office can share.
const (
	LoginsPerAccount = 5
	LoginsPerAddress = 20
)

// LoginThrottle slows down whoever guesses passwords: 5 tries a minute for each account, whether it exists or not, and 20 for
// each address. So whoever knows an address of a user can keep that user from signing in; sessions that are open, and API
// keys, go on. It is safe for concurrent use, with bounded memory (see Limiter).
type LoginThrottle struct {
	accounts, addresses *Limiter
}

// NewLoginThrottle returns a LoginThrottle. now is the clock; nil: time.Now.
func NewLoginThrottle(now func() time.Time) *LoginThrottle {
	return &LoginThrottle{
		accounts:  NewLimiter(LoginsPerAccount, time.Minute, LoginsPerAccount, now),
		addresses: NewLimiter(LoginsPerAddress, time.Minute, LoginsPerAddress, now),
	}
}

// Attempt is a try to sign in that was allowed and counted.
type Attempt struct {
	throttle         *LoginThrottle
	account, address charge
}

// Begin counts a try to sign in to the account with that e-mail address from a client. Call it before the password is looked
// at: a thousand tries at once are a thousand tries. Not ok: answer with retryAfter, and do no more.
func (t *LoginThrottle) Begin(email string, client netip.Addr) (try Attempt, retryAfter time.Duration, ok bool) {
	// The address first: who has none left must not use up those of an account, nor fill the memory with names.
	try.throttle = t
	if try.address, retryAfter, ok = t.addresses.take(AddressKey(client)); !ok {
		return Attempt{}, retryAfter, false
	}
	if try.account, retryAfter, ok = t.accounts.take(strings.ToLower(strings.TrimSpace(email))); !ok {
		return Attempt{}, retryAfter, false
	}
	return try, 0, true
}

// Succeeded takes the try back, as somebody was let in: who signs in properly is not slowed down. It takes back this one and no
// more, lest somebody with an account of his own wipe out his wrong guesses at others.
func (a Attempt) Succeeded() {
	if a.throttle == nil {
		return
	}
	a.throttle.accounts.refund(a.account)
	a.throttle.addresses.refund(a.address)
}

// AddressKey returns the key under which a client's address is counted: the address, of IPv6 the /64, which is the least that one
// customer has. v4-mapped addresses count as IPv4. All clients without a valid address are one.
func AddressKey(client netip.Addr) string {
	client = client.Unmap().WithZone("")
	if client.Is6() {
		prefix, _ := client.Prefix(64)
		return prefix.String()
	}
	return client.String()
}

// RetryAfter returns the value of the header Retry-After (RFC 9110 section 10.2.3): whole seconds, rounded up, at least 1.
func RetryAfter(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10)
}
