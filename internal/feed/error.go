package feed

import (
	"context"
	"errors"
	"strings"
	"unicode"
)

// Reason says in one word why a Fetch failed. It is fit to be a metric's label: there are those below and no
// more.
type Reason string

const (
	// Unreachable: no answer came, or none that is HTTP. DNS, the network, TLS, a proxy, or a wait for
	// connection or header that was too long.
	Unreachable Reason = "unreachable"
	// TooSlow: the body came at less than 64 KiB a second, after 30 s.
	TooSlow Reason = "too_slow"
	// Status: the answer is of a status that is not expected, such as 401 or 503.
	Status Reason = "status"
	// Redirect: the answer points elsewhere. That is not followed, since the token would go there.
	Redirect Reason = "redirect"
	// TooLarge: the body is larger than Config.MaxBody.
	TooLarge Reason = "too_large"
	// Encoding: the Content-Encoding is unknown, or the gzip stream damaged.
	Encoding Reason = "encoding"
	// Truncated: the body broke off, or its framing is damaged.
	Truncated Reason = "truncated"
	// Signature: the set is not signed by one of Config.Keys. Error wraps the cause, one of feedsig's.
	Signature Reason = "signature"
	// Storage: the temporary file could not be made or written.
	Storage Reason = "storage"
	// Token: Config.Token failed, or what it returned is no token.
	Token Reason = "token"
	// Cancelled: the caller's context ended. Error wraps its Err.
	Cancelled Reason = "cancelled"
)

// Error is what Fetch returns when it fails. Its text is of one line and bounded, whatever the server sent, and
// holds neither the token nor the URL's query.
type Error struct {
	Reason Reason
	Status int   // of HTTP, where Reason is Status or Redirect
	Err    error // what happened, without the URL

	url string
}

func (e *Error) Error() string { return "fetching " + e.url + ": " + e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Retryable reports whether the same request may succeed later, with nobody changing a setting: the server or
// the network was in trouble.
func (e *Error) Retryable() bool {
	switch e.Reason {
	case Unreachable, TooSlow, Truncated, Storage:
		return true
	case Status:
		return e.Status >= 500 || e.Status == 408 || e.Status == 429
	}
	return false
}

// fail returns the error of an attempt. What peers wrote is in err only by way of a.foreign or a.quotable.
func (a *attempt) fail(reason Reason, err error) error {
	return &Error{Reason: reason, Err: err, url: a.c.shown}
}

// broken is fail for an error of the network, where reason applies unless the attempt was ended: by the caller,
// or by a bound.
func (a *attempt) broken(reason Reason, err error) error {
	var bound *exceeded
	switch {
	case errors.As(context.Cause(a.ctx), &bound):
		return a.fail(bound.reason, bound)
	case a.parent.Err() != nil:
		return a.fail(Cancelled, a.parent.Err())
	}
	return a.fail(reason, a.foreign(err))
}

// exceeded is why an attempt was ended by us.
type exceeded struct {
	reason Reason
	text   string
}

func (e *exceeded) Error() string { return e.text }

// foreign returns err with a text fit to be logged. Errors of net/http and crypto/tls quote the peer at
// whatever length, such as a first line that is not HTTP, or all names of a certificate.
func (a *attempt) foreign(err error) error {
	return &foreign{a.quotable(err.Error(), 300), err}
}

type foreign struct {
	text string
	err  error
}

func (e *foreign) Error() string { return e.text }
func (e *foreign) Unwrap() error { return e.err }

// quotable returns at most length characters of s, printable, without the token: there are servers that repeat
// what they refuse.
func (a *attempt) quotable(s string, length int) string {
	if a.token != "" {
		s = strings.ReplaceAll(s, a.token, "[token]")
	}
	var b strings.Builder
	for _, r := range s {
		if length--; length < 0 {
			b.WriteString("…")
			break
		}
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}
