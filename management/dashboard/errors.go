package dashboard

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// problem is what a page makes of a code.
type problem struct {
	status int
	title  string
}

// problems has every code.
var problems = map[management.Code]problem{
	management.Malformed:            {http.StatusBadRequest, "That cannot be read"},
	management.Unauthenticated:      {http.StatusUnauthorized, "Sign in"},
	management.TOTPRequired:         {http.StatusUnauthorized, "One-time password needed"},
	management.Forbidden:            {http.StatusForbidden, "Not for your role"},
	management.CrossOrigin:          {http.StatusForbidden, "The form came from another site"},
	management.QuotaExceeded:        {http.StatusForbidden, "The quota is used up"},
	management.NotFound:             {http.StatusNotFound, "Not found"},
	management.MethodNotAllowed:     {http.StatusMethodNotAllowed, "Not done like that"},
	management.Conflict:             {http.StatusConflict, "That does not fit"},
	management.DomainExists:         {http.StatusConflict, "The domain is there already"},
	management.SetupDone:            {http.StatusConflict, "Set-up is done"},
	management.PreconditionFailed:   {http.StatusPreconditionFailed, "Somebody else changed this"},
	management.TooLarge:             {http.StatusRequestEntityTooLarge, "Too large"},
	management.UnsupportedMediaType: {http.StatusUnsupportedMediaType, "Not a form"},
	management.Invalid:              {http.StatusUnprocessableEntity, "Something has to be put right"},
	management.IdempotencyMismatch:  {http.StatusUnprocessableEntity, "The form was used already"},
	management.RateLimited:          {http.StatusTooManyRequests, "Too many requests"},
	management.Internal:             {http.StatusInternalServerError, "Something is wrong here"},
	management.Unavailable:          {http.StatusServiceUnavailable, "Not available at the moment"},
}

// expected returns err as what people are told, with its status. What is a defect or a broken part is logged in full, under the
// request's ID.
func (c *ctx) expected(err error) (*management.Error, int) {
	e, ok := errors.AsType[*management.Error](err)
	switch {
	case ok:
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled) && c.ctx.Err() != nil:
		e, ok = management.Errorf(management.Unavailable, "This took too long. Try again."), true
	}
	var kind problem
	if ok {
		kind, ok = problems[e.Code]
	}
	if !ok || e.Code == management.Internal {
		e = management.Errorf(management.Internal, "It was logged. Look whether what you did is done, and try again; if it stays, tell the operator the ID %s.",
			c.who.RequestID)
		kind = problems[management.Internal]
		c.dash.log.Error("page failed", "request_id", c.who.RequestID, "method", c.r.Method, "page", c.pattern(), "error", err)
	} else if e.Code == management.Unavailable && c.r.Context().Err() == nil {
		c.dash.log.Warn("page could not be served", "request_id", c.who.RequestID, "method", c.r.Method, "page", c.pattern(), "error", err)
	}
	return e, kind.status
}

// pattern is what the log calls the page: never the path itself, which may hold anything.
func (c *ctx) pattern() string {
	if c.route == nil {
		return ""
	}
	return c.route.path
}

// errorPage is the data of the page that tells an error.
type errorPage struct {
	Code      management.Code
	Detail    string
	Faults    []management.Fault
	RequestID string
	Status    int
	Retry     bool   // trying again may help
	Again     string // where to
}

// fail answers with err.
func (c *ctx) fail(err error) {
	e, status := c.expected(err)
	if c.status = status; e.RetryAfter > 0 {
		c.w.Header().Set("Retry-After", auth.RetryAfter(e.RetryAfter))
	} else if e.Code == management.Unavailable {
		c.w.Header().Set("Retry-After", strconv.Itoa(5))
	}
	if len(e.Allow) > 0 {
		c.w.Header().Set("Allow", strings.Join(e.Allow, ", "))
	}
	switch {
	case c.isFragment():
		c.out = &output{status: status, body: []byte(e.Detail + "\n"), plain: true}
		return
	case e.Code == management.Unauthenticated && (c.route == nil || c.route.access == byUser):
		if c.askToSignIn() == nil {
			return
		}
	}
	page := errorPage{Code: e.Code, Detail: e.Detail, Faults: e.Faults, RequestID: c.who.RequestID, Status: status}
	if page.Retry = status >= 500 || e.Code == management.RateLimited; isRead(c.r) {
		page.Again = c.r.URL.EscapedPath() + query(c.r.URL.RawQuery)
	}
	c.out = nil
	if err := c.render("error", problems[e.Code].title, page); err != nil {
		c.dash.log.Error("the page of an error failed", "request_id", c.who.RequestID, "error", err)
		c.out = &output{status: http.StatusInternalServerError, body: []byte("Something is wrong here. Request " + c.who.RequestID + "\n"), plain: true}
	}
}

// askToSignIn leads whoever is not signed in, or not any more, to the page for that, and back. A form that was just sent is
// carried along.
func (c *ctx) askToSignIn() error {
	if _, err := c.r.Cookie(auth.SessionCookie); err == nil {
		auth.ClearSession(c.w)
	}
	if c.form != nil {
		return c.carryForm()
	}
	if required, err := c.plane.SetupRequired(c.ctx); err == nil && required {
		return c.seeOther("/setup")
	}
	next := c.dash.localPage(c.r.URL.EscapedPath() + query(c.r.URL.RawQuery))
	if next == "/" {
		return c.seeOther("/login")
	}
	return c.seeOther(c.url("/login", "next", next))
}

// waitFor sleeps, unless the request ends first.
func (c *ctx) waitFor(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}
