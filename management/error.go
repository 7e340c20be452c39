package management

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Code says what kind of refusal an Error is. The API maps each to one HTTP status.
type Code string

// The codes. Callers meet no others: what is no *Error is Internal.
const (
	Malformed            Code = "malformed"
	Unauthenticated      Code = "unauthenticated"
	TOTPRequired         Code = "totp_required"
	Forbidden            Code = "forbidden"
	CrossOrigin          Code = "cross_origin"
	QuotaExceeded        Code = "quota_exceeded"
	NotFound             Code = "not_found" // also whatever is another tenant's
	MethodNotAllowed     Code = "method_not_allowed"
	Conflict             Code = "conflict"
	DomainExists         Code = "domain_exists"
	SetupDone            Code = "setup_done"
	PreconditionFailed   Code = "precondition_failed"
	TooLarge             Code = "too_large"
	UnsupportedMediaType Code = "unsupported_media_type"
	Invalid              Code = "invalid"
	IdempotencyMismatch  Code = "idempotency_mismatch"
	RateLimited          Code = "rate_limited"
	Internal             Code = "internal"
	Unavailable          Code = "unavailable"
)

// Error is a refusal that the caller can do something about. Nothing in it may quote a secret or an input value.
type Error struct {
	Code       Code
	Detail     string        // one sentence for people, without a value that came in
	Faults     []Fault       // of Invalid and Malformed: all of them at once
	RetryAfter time.Duration // of RateLimited and Unavailable: when to try again; 0: not known
	Allow      []string      // of MethodNotAllowed: the methods that the resource has
}

// Fault is one fault of a document.
type Fault struct {
	Pointer string `json:"pointer"` // JSON pointer (RFC 6901) into the body, or the name of a query parameter with a ? in front
	Detail  string `json:"detail"`  // what is wrong and what to do, without the value
}

// Error returns the code and the details.
func (e *Error) Error() string {
	var text strings.Builder
	text.WriteString(string(e.Code) + ": " + e.Detail)
	for _, f := range e.Faults {
		text.WriteString("; " + f.Pointer + ": " + f.Detail)
	}
	return text.String()
}

// Errorf returns an Error of that code; the text is its Detail.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// InvalidField returns an Invalid Error with one fault.
func InvalidField(pointer, format string, args ...any) *Error {
	return &Error{Code: Invalid, Detail: "The request has a fault.", Faults: []Fault{{pointer, fmt.Sprintf(format, args...)}}}
}

// CodeOf returns the code of err: "" for nil, Internal for what is no *Error.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}

// errNotFound is what a row that does not exist and one of another tenant have in common.
func errNotFound(what string) *Error { return Errorf(NotFound, "There is no such %s.", what) }
