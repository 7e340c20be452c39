package pqproxy

import (
	"errors"
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
)

// answer is what a CA said last about when to come again. It is in the context of the requests.
type answer struct {
	mu         sync.Mutex
	status     int
	retryAfter time.Time
}

type answerKey struct{}

// watchAnswers has what a CA answers pass by us, because acmez keeps Retry-After to itself where a request is refused.
// The client that it uses can be had in no other way. nil: it is not where it was (a test would say so), or the issuer
// has none; then a CA that has too many orders is left alone for an hour if its message does not say until when.
func watchAnswers(issuer certmagic.Issuer) *http.Client {
	module, ok := issuer.(interface{ GetACMEIssuer() *caddytls.ACMEIssuer })
	if !ok {
		return nil
	}
	inner := reflect.ValueOf(module.GetACMEIssuer()).Elem().FieldByName("issuer")
	if !inner.IsValid() || inner.Type() != reflect.TypeFor[*certmagic.ACMEIssuer]() || inner.IsNil() {
		return nil
	}
	field := inner.Elem().FieldByName("httpClient")
	if !field.IsValid() || field.Type() != reflect.TypeFor[*http.Client]() || field.IsNil() {
		return nil
	}
	client := (*http.Client)(field.UnsafePointer())
	if transport, ok := client.Transport.(*http.Transport); ok {
		transport.IdleConnTimeout = 30 * time.Second // it has none, and each reload makes another transport
		client.Transport = answers{transport}
	}
	return client
}

// answers is a transport that notes when to come again.
type answers struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := a.Transport.RoundTrip(r)
	if heard, ok := r.Context().Value(answerKey{}).(*answer); ok && err == nil {
		heard.mu.Lock()
		defer heard.mu.Unlock()
		heard.status, heard.retryAfter = response.StatusCode, time.Time{}
		if response.StatusCode >= http.StatusBadRequest {
			heard.retryAfter = readRetryAfter(response.Header.Get("Retry-After"), time.Now())
		}
	}
	return response, err
}

// readRetryAfter reads the header Retry-After (RFC 9110, section 10.2.3); zero: it says nothing.
func readRetryAfter(text string, now time.Time) time.Time {
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return now.Add(time.Duration(seconds) * time.Second)
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return time.Time{}
	}
	return at
}

// rateLimited is how long a CA that has too many orders is left alone, if it does not say.
const rateLimited = time.Hour

// longestWait is what a CA is obeyed for at most. Let's Encrypt's longest is a week.
const longestWait = 8 * 24 * time.Hour

// saidTime finds when to come again in what Let's Encrypt writes.
var saidTime = regexp.MustCompile(`retry after (\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d) ?(?:UTC|Z)`)

// until returns when a CA that refused with that error wants to be asked again; zero: it does not say. The error is of
// its last answer.
func (a *answer) until(err error) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, at := time.Now(), a.retryAfter
	problem, _ := errors.AsType[acme.Problem](err)
	limited := a.status == http.StatusTooManyRequests || problem.Status == http.StatusTooManyRequests || problem.Type == acme.ProblemTypeRateLimited
	if said := saidTime.FindStringSubmatch(problem.Detail); said != nil && limited {
		if told, err := time.Parse(time.DateTime, strings.Replace(said[1], "T", " ", 1)); err == nil && told.After(at) {
			at = told
		}
	}
	switch {
	case at.After(now.Add(longestWait)):
		return now.Add(longestWait)
	case limited && at.IsZero():
		return now.Add(rateLimited)
	}
	return at
}

// problemText returns what a CA said was wrong, if it was the CA, else the error.
func problemText(err error) string {
	problem, ok := errors.AsType[acme.Problem](err)
	if !ok {
		return err.Error()
	}
	text := strings.TrimPrefix(problem.Type, "urn:ietf:params:acme:error:") + ": " + problem.Detail
	for _, sub := range problem.Subproblems {
		text += "; " + sub.Identifier.Value + ": " + sub.Detail
	}
	return text
}
